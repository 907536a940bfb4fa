/* Copying all attributes of a store file onto its replacement; the mark of a new one. */
#ifndef CELLAR_STORE_ATTRS_H
#define CELLAR_STORE_ATTRS_H

#include <sys/stat.h>

#include "base/error.h"
#include "base/uuid.h"

/* Gives `to` the owner, group, mode (setuid, setgid, sticky included), ACLs and every other
 * xattr of `from` (system.posix_acl_*, user.*, security.*, trusted.* as far as this process
 * may), and the atime of `from`; mtime as given. Owner before mode; times last. An
 * attribute that `to` has and `from` has not is removed. Both opened O_RDONLY or O_RDWR.
 * -EPERM on what an ordinary user cannot do (another's owner) is returned: the caller
 * decides to copy over. What begins with user.cellar. is not copied. */
errint_t attrs_copy(int from, int to, const struct timespec *mtime, char **cause);

/* The mark on a 0-byte object (xattr user.cellar.new, the pool's UUID): it is the place-holder of
 * a file that this pool made and of which nothing was synced yet. So what a power cut may
 * leave of it, without a scratch, is an empty file and no damaged object. It goes with the first sync:
 * from then on a missing scratch is a loss. Filesystems and modes that refuse it: no mark. */
errint_t attrs_mark_new(int fd, const struct uuid *pool);
bool attrs_is_marked_new(int fd, const struct uuid *pool);
void attrs_unmark_new(int fd);

#endif
