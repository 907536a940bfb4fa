/*
 * Making what lies in the store durable.
 *
 * fsync(2), but for btrfs. There fsync() writes a log of its own (log-tree), which is replayed after a
 * power cut; and up to Linux 6.18 at least the replay of renames is not what POSIX says: of a file
 * that was renamed over another one, both names may be gone, or the old one back, although nothing
 * but whole renames was ever asked for, and although directories were synced since. (Seen in one of
 * some 400 cuts of tests/crash, never with the mount option notreelog; fixes of that kind went into
 * Linux 6.19, "btrfs: set inode flag BTRFS_INODE_COPY_EVERYTHING when logging new name" among them.)
 * syncfs(2) commits the transaction instead, which is atomic, and leaves nothing to replay. A log is
 * replayed for the inodes that were fsynced only: so no inode of a store is.
 *
 * The pool keeps fsync(): names of scratch files are never renamed and never used again.
 *
 * Threads: any. Errors are those of the calls.
 */
#ifndef CELLAR_STORE_DURABLE_H
#define CELLAR_STORE_DURABLE_H

#include "base/error.h"

/* The bytes and attributes of the file open as fd (for reading or writing) are durable, and what led
 * to them where the filesystem sees to that. */
errint_t store_sync_file(int fd);

/* The names in a directory are, open as dirfd, O_PATH will do. */
errint_t store_sync_dir(int dirfd);

#endif
