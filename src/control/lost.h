/* The commands about lost+found, for the table in commands.c; what they say is in protocol.h. */
#ifndef CELLAR_CONTROL_LOST_H
#define CELLAR_CONTROL_LOST_H

#include "control/commands.h"

errint_t control_lost(struct control_session *s, const struct control_inodes *inodes,
                      json_t **ret, char **cause);
errint_t control_discard(struct control_session *s, const struct control_inodes *inodes,
                         json_t **ret, char **cause);

#endif
