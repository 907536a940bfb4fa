/*
 * Making what lies in the store durable.
 *
 * fsync(2), but for btrfs. There fsync() writes a log of its own (log-tree), which is replayed after a
 * power cut, and the replay of renames is not always what POSIX says: of a file that was renamed over
 * another one, the other one may be gone and its own old name be there, or an older file back under
 * a name although its directory was synced since. (Linux 6.18.44: one of some 400 cuts of
 * tests/crash; none of 2000 with the mount option notreelog. The kernel's history has fixes of this
 * kind every few releases, commit 953902e4fb4c of 6.18 the last one we know: so no version is
 * taken for safe.) syncfs(2) commits the transaction instead, which is atomic, and leaves nothing
 * to replay. What is replayed are the inodes that were fsynced, their directories and their new
 * names: so nothing in a store is. Measured on a quiet btrfs: a thousand new files are written back in
 * 0.7 s instead of 3.1, a single one and an append in the same 8 to 12 ms.
 *
 * The pool keeps fsync(): scratch files are made, synced and deleted, and renamed only into lost+found,
 * of which nothing is promised; the same cuts found nothing wrong with them.
 *
 * Threads: any. Errors are those of the calls.
 */
#ifndef CELLAR_STORE_DURABLE_H
#define CELLAR_STORE_DURABLE_H

#include "base/error.h"

/* Bytes and attributes of a file, open as fd for reading or writing. */
errint_t store_sync_file(int fd);

/* The names in a directory, open as dirfd; O_PATH will do. */
errint_t store_sync_dir(int dirfd);

#endif
