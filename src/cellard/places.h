/* Where directories lie from each other, and where the pool goes. */
#ifndef CELLAR_CELLARD_PLACES_H
#define CELLAR_CELLARD_PLACES_H

#include <sys/stat.h>

#include "base/uuid.h"

/* The path without links, as far as it exists and answers; malloc'ed. What lies behind a
 * dead mount, or is still to be made, keeps its name. */
char *places_canonical(const char *path);

/* Whether the directory open as fd is, or lies below, the one that `top` tells of. */
errint_t places_dir_is_below(int fd, const struct stat *top, bool *ret);
/* The same for a path whose last components may not exist yet. */
errint_t places_path_is_below(const char *path, const struct stat *top, bool *ret);

/* The pool of a store that will be hidden by its own mount: /var/lib/cellar/UUID, for users
 * $XDG_STATE_HOME/cellar/UUID. Makes the directory above it (0700 what is missing). */
errint_t places_pool_outside(const struct uuid *store, char **ret, char **cause);

#endif
