/*
 * The catalog: an index in SQLite of what objects and scratches say of themselves. No
 * promise about data depends on it; no SQL stands outside this folder.
 *
 * Invariants (design, section 10):
 *  (C1) A row mirrors a fact that its object or record also carries, or one whose loss is
 *       harmless (numbers, ctimes, use). Losing every row loses no byte.
 *  (C2) Record before row: a caller changes the scratch's record first, then calls here.
 *  (C3) A call here never fails the caller's work: after an error the catalog is `degraded`
 *       (rows kept in memory, logged once, shown in status) and goes on.
 *  (C4) Look-ups never wait for a commit: writes gather in memory (visible to look-ups at
 *       once) and are committed by one writer thread, at the latest after
 *       CATALOG_BATCH_MS.
 *  (C5) A file that is no catalog, damaged, or of another pool is set aside (catalog.db
 *       first, then -wal, -shm, as catalog.db.set-aside-TIME, …-wal, …-shm) and a new one
 *       is made, at opening and at any later time. One of a newer schema is refused.
 *
 * WAL, synchronous=NORMAL, one writer connection, one reader connection, prepared
 * statements, user_version = CATALOG_SCHEMA.
 */
#ifndef CELLAR_CATALOG_CATALOG_H
#define CELLAR_CATALOG_CATALOG_H

#include <time.h>

#include "base/uuid.h"
#include "store/ident.h"

#define CATALOG_SCHEMA   1
#define CATALOG_BATCH_MS 500

struct catalog;

/* One store inode (object, plain file, directory, link…). */
struct catalog_file {
	struct ident ident;    /* key */
	uint64_t ino;          /* logical number; unique */
	uint32_t type;         /* st_mode & S_IFMT */
	uint32_t kind;         /* enum object_kind for regular files */
	uint64_t logical_size; /* OBJECT_SIZE_UNKNOWN: not known */
	uint64_t stored_size;  /* st_size when the line below was true */
	struct timespec stored_mtime;
	uint64_t trailer_hash[2];
	uint64_t seq;          /* flush number in its cellar frame; 0: none */
	struct timespec ctime; /* logical ctime (directories: also) */
	struct timespec
	    seen_ctime;        /* st_ctime for which that holds: another one replaces it */
	struct timespec mtime; /* directories: logical mtime for the same seen_ctime */
	int32_t level;
	uint32_t frames;
	uint64_t dead_bytes; /* in the object: old tables and frames nobody lists */
	int64_t verified;    /* unix time of the last successful verification, 0 never */
};

/* Mirror of one scratch's record. */
struct catalog_scratch {
	uint64_t ino; /* key */
	bool dirty;
	bool pinned;
	uint64_t bytes;   /* on disk */
	int64_t last_use; /* unix time in ms */
	char *last_error; /* owned by whoever holds the row; may be NULL */
};

/* dirfd: the pool's directory (for setting aside); path: the same as text, because SQLite
 * needs one. pool: the UUID that meta must hold. *ret_rebuilt (may be NULL): a new database
 * was made although there was one. -ENOTSUP: of a newer schema; any other trouble with the
 * database is no error here but a degraded catalog. */
errint_t catalog_open(int pool_dirfd, const char *pool_path, const struct uuid *pool,
                      struct catalog **ret, bool *ret_rebuilt, char **cause);
void catalog_close(struct catalog *c); /* commits, checkpoints; NULL is fine */

bool catalog_file_get(struct catalog *c, const struct ident *ident,
                      struct catalog_file *ret);
bool catalog_file_by_ino(struct catalog *c, uint64_t ino, struct catalog_file *ret);
void catalog_file_put(struct catalog *c, const struct catalog_file *row);
void catalog_file_delete(struct catalog *c, const struct ident *ident);
/* new row, and the row of the identity it replaces deleted, in one transaction */
void catalog_file_replace(struct catalog *c, const struct ident *old,
                          const struct catalog_file *row);

void catalog_scratch_put(struct catalog *c, const struct catalog_scratch *row); /* copies */
void catalog_scratch_delete(struct catalog *c, uint64_t ino);
bool catalog_scratch_get(struct catalog *c, uint64_t ino, struct catalog_scratch *ret);

bool catalog_meta_get(struct catalog *c, const char *key, char **ret); /* malloc'ed */
void catalog_meta_set(struct catalog *c, const char *key, const char *value);

/* Makes everything put so far durable in the WAL sense (a commit), or has tried to when
 * degraded. Waits for the disk. */
void catalog_commit(struct catalog *c);

/* Sums for status: how many regular files are known, and their bytes. Commits first; while
 * that fails, as of the last commit. */
struct catalog_totals {
	uint64_t files;
	uint64_t logical_bytes;
	uint64_t stored_bytes;
};
void catalog_get_totals(struct catalog *c, struct catalog_totals *ret);

/* NULL, or a malloc'ed sentence saying why it is degraded. */
char *catalog_degraded(struct catalog *c);

#endif
