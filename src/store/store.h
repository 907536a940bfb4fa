/*
 * A store on disk: its private directory, its locks, its number ranges, and the two ways
 * to bring an object up to date.
 *
 *   STORE/.cellar/store.id   text, replaced atomically (tmp, fsync, rename, fsync):
 *                              cellar-store 1
 *                              uuid UUID
 *                              next_ino N          numbers below N may be in use
 *   STORE/.cellar/pool.id    text: the pool's UUID; "cellar-pool 1\nuuid UUID\n"
 *   STORE/.cellar/lock       flock(2)ed exclusively by the daemon; holds its pid and state
 *                            ("pid 123\nstate running|draining\nmountpoint PATH\n")
 *   STORE/.cellar/tmp/       objects being made, intents; swept by recovery
 *
 * Modes: .cellar 0700, files 0600.
 *
 * Old or new: store_replace() and store_copy_over() leave, whenever they are stopped, an
 * object that decodes to the old content or to the new (for copy_over: at the latest after
 * store_finish_intents()).
 */
#ifndef CELLAR_STORE_STORE_H
#define CELLAR_STORE_STORE_H

#include <stdatomic.h>

#include "base/lock.h"
#include "base/uuid.h"
#include "store/ident.h"
#include "store/names.h"

struct store {
	/* constant after open */
	int root_fd;    /* O_RDONLY|O_DIRECTORY: every walk starts here */
	int private_fd; /* .cellar */
	int tmp_fd;     /* .cellar/tmp */
	int lock_fd;
	char *path; /* as given, made absolute: for messages and findmnt */
	struct uuid uuid;
	bool created;    /* by this open */
	size_t name_max; /* NAME_MAX of the filesystem */
	/* under lock */
	struct lock lock; /* LOCK_LEAF */
	uint64_t next_ino;
	uint64_t reserved_ino;               /* durable in store.id */
	uint64_t tmp_counter;                /* last one used in a name in tmp/ */
	struct store_unfinished *unfinished; /* copies over that stopped halfway */
	_Atomic bool tmp_littered;           /* a file in tmp/ could not be removed */
	bool
	    tmp_known; /* store_finish_intents() came to its end: all that is needed is known */
};

enum store_open_flags {
	STORE_CREATE = 1, /* make a missing directory, initialise an empty one */
	STORE_NOLOCK = 2, /* look only: no lock taken, numbers cannot be given out */
};

/* Opens and locks. A directory that is not empty and has no .cellar is initialised too when
 * STORE_CREATE is given (an existing tree mounted over itself). A second opener: -EBUSY,
 * and the cause names the first one's pid; *ret_draining (may be NULL) tells whether that
 * one is draining. Not a directory -ENOTDIR; no cellar without STORE_CREATE -ENOENT "...
 * holds no cellar". */
errint_t store_open(const char *path, unsigned flags, struct store **ret,
                    bool *ret_draining, char **cause);
void store_close(struct store *s);

/* A small text file in a private directory (0600), old or new at every instant and durable on return;
 * NAME.tmp is used beside it. */
errint_t store_replace_text(int dirfd, const char *name, const char *text);

/* What the lock file says of us: "running", "draining". mountpoint may be NULL. */
errint_t store_set_state(struct store *s, const char *state, const char *mountpoint);

/* pool.id: null uuid when there is none. Setting is durable on return. */
errint_t store_get_pool(struct store *s, struct uuid *ret, char **cause);
errint_t store_set_pool(struct store *s, const struct uuid *pool, char **cause);

/* A logical inode number never given out before. Takes s->lock; every 2^20 numbers a
 * durable write of store.id. Errors: those of that write. */
errint_t store_new_ino(struct store *s, uint64_t *ret);

/* Walking: opens the directory `path` (relative, "" = root) beneath the root: openat2(2)
 * with RESOLVE_BENEATH | NO_MAGICLINKS | NO_SYMLINKS | NO_XDEV, in pieces where it is
 * longer than PATH_MAX. flags as for open(2), O_DIRECTORY added. */
int store_open_dir(struct store *s, const char *path, int flags);
/* One component below an open directory; same rules. What O_CREAT makes is 0600. */
int store_open_at(int dirfd, const char *store_name, int flags);
/* A file of the store for reading: never a link, never waits (fifos), its atime left alone where
 * this process may ask for that (only its owner). */
int store_open_object(int dirfd, const char *store_name);

/* Every entry at or below store_path ("" = all) that is no directory: the entries of a
 * directory by name, then its subdirectories by name. .cellar is left out; what vanishes
 * meanwhile is passed over; -ENOENT if store_path itself is not there. A directory that
 * cannot be entered or read (-EXDEV: a mount) is handed over once, with its error. Non-zero
 * from fn stops and is returned. One descriptor is open at a time, whatever the depth. */
struct store_walk_item {
	const char *dir;    /* store path, "" = root */
	const char *name;   /* in dir; "" with error */
	int dirfd;          /* dir, borrowed; -1 with error */
	unsigned char type; /* DT_* */
	errint_t error;     /* dir could not be entered (type DT_DIR) */
};
typedef errint_t (*store_walk_fn)(void *ctx, const struct store_walk_item *item);
errint_t store_walk(struct store *s, const char *store_path, store_walk_fn fn, void *ctx);

/* A new nameless-to-users file in tmp/, 0600, O_RDWR. name gets its name there. unlink
 * leaves alone what an unfinished copy over still needs. */
int store_tmp_create(struct store *s, struct name *ret_name);
void store_tmp_unlink(struct store *s, const char *tmp_name);

/* Renames tmp/tmp_name over dirfd/store_name, puts back the directory's mtime. The caller
 * has fsynced the file, holds the directory's and the file's lock, and calls
 * store_sync_dir() after. step: store.renamed */
errint_t store_replace(struct store *s, const char *tmp_name, int dirfd,
                       const char *store_name);

/* Copies tmp/tmp_name (complete, fsynced) over the bytes of the existing object open for
 * writing as target_fd: writes an intent naming (path hint, identity), fsyncs it and tmp/,
 * reserves room (fallocate), copies, truncates, sets the times to ts (atime, mtime),
 * fsyncs, removes intent and file. Mode and capabilities stay, though writing clears some.
 * steps: store.intent, store.copied
 *
 * On an error the target is as it was, unless store_is_unfinished() says so: then its bytes
 * may be neither old nor new, intent and file are kept, and the next store_copy_over() or
 * store_replace() of the same target, or store_finish_intents() after a restart, ends it. */
errint_t store_copy_over(struct store *s, const char *tmp_name, int target_fd,
                         const struct ident *target, const char *path_hint,
                         const struct timespec ts[2], char **cause);
bool store_is_unfinished(struct store *s, const struct ident *target);
/* Removes what store_tmp_unlink() could not. Nobody else is at work in tmp/; store_close() calls
 * it. */
void store_sweep(struct store *s);
void store_forget_unfinished(struct store *s); /* memory only; store_close() calls it */

/* Recovery: finishes every intent found in tmp/ (copies again where the target is found by
 * hint or, failing that, anywhere in the store by identity; else keeps file and intent and
 * logs), then removes what no intent names. Idempotent. An error (the first one; all are
 * tried) means that a target was found and could not be written. */
errint_t store_finish_intents(struct store *s, char **cause);

#endif
