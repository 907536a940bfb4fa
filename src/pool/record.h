/*
 * The record: what a scratch says of itself, in its xattr `user.cellar.record`. It alone
 * decides what recovery does; the catalog only mirrors it (design, section 5).
 *
 *   128 bytes, little-endian:
 *     "CLRR"        4
 *     version       2   = 1
 *     state         1   0 clean, 1 dirty
 *     kind          1   0 whole, 1 tail
 *     ino           8   logical inode number
 *     ask           8   tail: bytes below are still asked of the base
 *     boot id      16   of the boot in which it last became dirty
 *     base ident   16   identity, size and trailer hash of the object it came from;
 *     base size     8     all zero: no object was known yet
 *     base trailer 16
 *     seq           8   last flush or sync number given out
 *     sync_seq      8   seq of the last completed fsync; 0: never
 *     sync_size     8   size that fsync made durable
 *     ctime sec     8   signed; logical ctime when last recorded
 *     ctime nsec    4
 *     flags         4   RECORD_NEW: its object was never made durable
 *                       RECORD_MTIME_SET: mtime was set explicitly
 *                       RECORD_PARTIAL: clean and not wholly hydrated; worthless later
 *                       RECORD_DOOMED: the last link is gone; deleted when that is durable.
 *                       Today the sticky bit of the file's mode says so, which costs an unlink a
 *                       fifth of what a record does; a flag written by an older cellar counts too
 *                       RECORD_APPEND: the object may be longer than base, by an append
 *                       RECORD_REPLACING: a flush may have put an object with a number up to
 *                       seq in the place of the base
 *     checksum      8   XXH64 (seed 0) of the 120 bytes before
 *
 * The length is fixed so that no update needs room: a flush makes some on a full disk, and has to
 * say what it does first. xfs and btrfs keep it in the inode, ext4 only in inodes of 512 bytes
 * (else in a block beside it; creations are not measurably slower for it). The path hint (store
 * path, may be stale) is `user.cellar.path`: the path, a NUL, and the XXH64 (seed 0) of both. One
 * without a right hash counts as empty: a damaged one could name another file.
 */
#ifndef CELLAR_POOL_RECORD_H
#define CELLAR_POOL_RECORD_H

#include <sys/stat.h>
#include <time.h>

#include "base/uuid.h"
#include "store/ident.h"

#define RECORD_LEN   128
#define RECORD_XATTR "user.cellar.record"
#define HINT_XATTR   "user.cellar.path"

enum record_state { RECORD_CLEAN = 0, RECORD_DIRTY = 1 };
enum record_kind { RECORD_WHOLE = 0, RECORD_TAIL = 1 };
#define RECORD_NEW         0x1U
#define RECORD_MTIME_SET   0x2U
#define RECORD_PARTIAL     0x4U
#define RECORD_DOOMED      0x8U
#define RECORD_DOOMED_MODE S_ISVTX
#define RECORD_APPEND      0x10U
#define RECORD_REPLACING   0x100U

struct record {
	enum record_state state;
	enum record_kind kind;
	uint64_t ino;
	uint64_t ask;
	struct uuid boot;
	struct stamp base;
	uint64_t seq;
	uint64_t sync_seq;
	uint64_t sync_size;
	struct timespec ctime;
	uint32_t flags;
};

void record_pack(const struct record *r, uint8_t ret[RECORD_LEN]);
/* 0, -EUCLEAN (length, magic, checksum or an impossible value), -ENOTSUP (newer version).
 */
errint_t record_unpack(const uint8_t *buf, size_t len, struct record *ret);

/* A record as read, of a scratch of `size` bytes: a tail that was being cut to nothing (tail.c, T3) is a
 * whole file. rebooted: not the size counts but what was synced, if anything was. */
void record_settle(struct record *r, uint64_t size, bool rebooted);

errint_t record_write(int fd, const struct record *r);      /* not synced */
errint_t record_read(int fd, struct record *ret);           /* -ENODATA: has none */
errint_t record_write_hint(int fd, const char *store_path); /* too long: an empty hint */
errint_t record_read_hint(int fd, char **ret);              /* malloc'ed */

#endif
