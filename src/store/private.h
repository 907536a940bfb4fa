/*
 * Directories and files that nobody but this daemon may have written: .cellar with what is in it, and
 * the pool.
 *
 * A store may belong to somebody else, or come out of an archive: what lies in .cellar is believed
 * (intents say what is written where, scratch is served as the content of files), so it must have
 * been made by us. Ours is what belongs to the owner of files that we make there: on a network
 * filesystem that need not be our user.
 *
 * Stateless; any thread.
 */
#ifndef CELLAR_STORE_PRIVATE_H
#define CELLAR_STORE_PRIVATE_H

#include <sys/stat.h>

#include "base/error.h"

/* dirfd (open for reading) is a directory called shown: -EPERM with a cause that says what to do
 * if it is not ours. What others may do in it is taken away (mode 0700) where close_it, else
 * -EPERM if they may write in it. */
errint_t private_check_dir(int dirfd, const char *shown, bool close_it, char **cause);

/* A regular file in a private directory of which st is the stat: made by us, under one name. A
 * second name may lie where others write. dir: stat of the directory, checked before. */
bool private_is_own_file(const struct stat *st, const struct stat *dir);

#endif
