/* Copying all attributes of a store file onto its replacement. */
#ifndef CELLAR_STORE_ATTRS_H
#define CELLAR_STORE_ATTRS_H

#include <sys/stat.h>

#include "base/error.h"

/* Gives `to` the owner, group, mode (setuid, setgid, sticky included), ACLs and every other
 * xattr of `from` (system.posix_acl_*, user.*, security.*, trusted.* as far as this process
 * may), and the atime of `from`; mtime as given. Owner before mode; times last. An
 * attribute that `to` has and `from` has not is removed. Both opened O_RDONLY or O_RDWR.
 * -EPERM on what an ordinary user cannot do (another's owner) is returned: the caller
 * decides to copy over. */
errint_t attrs_copy(int from, int to, const struct timespec *mtime, char **cause);

#endif
