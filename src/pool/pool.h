/*
 * The pool: every scratch file, who has it open, what is dirty, what goes next.
 *
 * Words: a scratch is *open* while a handle counts on it, *dirty* while its record says so,
 * *pinned* by the admin, *idle* = not open, *evictable* = clean, idle, not pinned. Dirty
 * scratch is never evicted; a scratch that cannot be proved clean is never deleted.
 *
 *   cold --pool_open--> hydrating --hydrate_run--> clean <--flush_commit-- flushing
 *     ^                                              |                       ^
 *     +------- evict_one ----------------------------+                       |
 *                                                    +--scratch_make_dirty--> dirty
 *
 * (flushing is a dirty scratch that a flusher works on.) pool/scratch.c, hydrate.c,
 * flush.c, evict.c and recovery.c hold one edge each and state their invariants at the top.
 *
 * Layout of the pool's directory (0700):
 *   pool.self    text: "cellar-pool 1\nuuid UUID\nstore UUID\n" (not "pool.id": the embedded
 *                pool shares .cellar/ with the store, whose memory of its pool has that name)
 *   pool.lock    flock(2)ed by the daemon, holds its pid
 *   catalog.db   (-wal, -shm)
 *   clean        present only after a clean shutdown; removed durably before the mount answers
 *   scratch/XX/  XX = low byte of the number in hex; files named by the number in hex, 0600; XX is
 *                made with its first (shards.h)
 *   lost+found/  what recovery could not place, record, hint and reason in its xattrs;
 *                the daemon never deletes it (lost.h)
 *
 * Blocking: functions marked [waits] may wait for store, disk or hydration and are called
 * from worker threads; the others are memory or page cache only.
 */
#ifndef CELLAR_POOL_POOL_H
#define CELLAR_POOL_POOL_H

#include <sys/uio.h>

#include "base/options.h"
#include "codec/object.h"
#include "tree/node.h"

struct pool;

struct pool_place {
	int dirfd;
	char *path;
	struct uuid uuid;
	struct uuid store; /* whose pool it is */
	int lock_fd;
	bool locked; /* through lock_fd */
	bool created;
	bool clean; /* was shut down cleanly */
};

/* Opens (or makes) and locks the pool's directory before anything else knows it.
 * store_pool: what the store's pool.id says (null: none). A pool of another store, or
 * another pool than the store remembers, is -EXDEV with a cause; new_pool overrides the
 * second. A second daemon: -EBUSY with its pid in the cause. path is absolute. */
errint_t pool_place_open(const char *path, const struct uuid *store,
                         const struct uuid *store_pool, bool new_pool,
                         struct pool_place *ret, bool *ret_draining, char **cause);
void pool_place_close(struct pool_place *p);
/* Whose pool lies at path, without a lock: -ENOENT where there is none, -EUCLEAN. */
errint_t pool_place_owner(const char *path, struct uuid *ret_store);

/* Called when attributes of a node changed without the kernel asking (flush, evict); no
 * lock held. */
typedef void (*pool_notify_fn)(void *ctx, uint64_t ino);

/* Takes over place (closed by pool_close). Nothing runs yet. */
errint_t pool_new(struct pool_place *place, struct tree *tree, const struct options *o,
                  struct pool **ret, char **cause);
/* Design section 9, before the mount answers. [waits] */
errint_t pool_recover(struct pool *p, char **cause);
/* Starts flushers and housekeeping. */
errint_t pool_start(struct pool *p);
void pool_set_notify(struct pool *p, pool_notify_fn fn, void *ctx);
/* Stops threads (what is dirty stays dirty), marks the pool clean after syncfs, frees.
 * [waits] */
void pool_close(struct pool *p);

/* ---- handles ---- */

enum pool_open_flags {
	POOL_READ = 1,
	POOL_WRITE = 2, /* the scratch becomes dirty before this returns */
	POOL_TRUNC = 4, /* with POOL_WRITE: to length 0, nothing is hydrated */
	/* A handle that the kernel will know: how it is served is settled before the function
	 * returns, pool_backing_id() tells. */
	POOL_KERNEL = 8,
	POOL_THROUGH = 16, /* ... and that needs scratch_fd() in any case */
	POOL_RATHER_SEEN =
	    32, /* ... through the daemon if it is large and not yet served */
	POOL_HANDLE = POOL_KERNEL | POOL_THROUGH | POOL_RATHER_SEEN,
};

/* Makes node's scratch ready and counts one handle (and one writer). Files up to eager_size
 * are whole on return. -EMFILE/-ENFILE past max_open. [waits] */
errint_t pool_open_file(struct pool *p, struct node *n, unsigned flags);
/* The same without waiting: -EAGAIN where it would. */
errint_t pool_open_file_nowait(struct pool *p, struct node *n, unsigned flags);
/* Gives one handle back. Never waits. True: attributes that a kernel was told while it was open may
 * be wrong now (stores through a mapping). */
bool pool_close_file(struct pool *p, struct node *n, unsigned flags);

/* A new file, in the order that kill -9 needs: scratch with a record (dirty, new, no base)
 * first, then the caller creates the object, then attach (base known, one writer handle
 * counted if flags say so). Numbers come from store_new_ino(). On failure
 * pool_abandon_new(). */
struct new_scratch;
errint_t pool_prepare_new(struct pool *p, uint64_t ino, const char *store_path,
                          struct new_scratch **ret);
errint_t pool_attach_new(struct pool *p, struct new_scratch *ns, struct node *n,
                         unsigned flags);
void pool_abandon_new(struct pool *p, struct new_scratch *ns);
/* Instead of pool_abandon_new() where the object, open for writing as fd, was made and cannot be taken
 * away again: it is a new, empty file, for this daemon (unborn.h) and, since the record stays, for
 * the next. Takes fd. */
void pool_keep_new(struct pool *p, struct new_scratch *ns, int fd);

/* ---- data of an open node ---- */

/* 0 if [off, off+len) can be read or written at once, else -EAGAIN: scratch_hydrate()
 * first. */
errint_t scratch_ready(struct node *n, uint64_t off, uint64_t len);
errint_t scratch_hydrate(struct pool *p, struct node *n, uint64_t off,
                         uint64_t len); /* [waits] */
/* Where the bytes of a read are: in the scratch at the offset that was asked for (fd >= 0), or in
 * memory (iov[0, count), which is all of it up to the end of the file). Valid until _end. */
#define READ_VIEW_MAX 8
struct held_frame;
struct read_view {
	int fd;
	size_t count;
	struct iovec iov[READ_VIEW_MAX];
	/* the pool's */
	struct held_frame *held[READ_VIEW_MAX];
	char *copy;
};
/* Makes [off, off + len) of an open node readable, decoding what is missing [waits]; without
 * wait -EAGAIN where that has to be done. -EUCLEAN: damaged; -EINTR: cancelled (base/cancel.h). On
 * an error there is nothing to end. */
errint_t scratch_read(struct pool *p, struct node *n, uint64_t off, size_t len, bool wait,
                      struct read_view *ret);
void scratch_read_end(struct pool *p, struct read_view *v);

/* The descriptor for pread and splice while the node is open through the daemon. */
int scratch_fd(struct node *n);

/* ---- the kernel serves scratches by itself (passthrough) ---- */

/* open: registers the file open as fd (O_PATH) with the kernel: an id > 0, or -errno. Called
 * under node->lock, so neither waits. */
struct pool_direct {
	int (*open)(void *ctx, int fd);
	void (*close)(void *ctx, int id);
	void *ctx;
};
/* Whether the pool is fit for it: 0 with an O_PATH descriptor of a file without a name (the caller
 * closes it), or an error with a cause. Then, before the first request,
 * who does it (NULL: nobody any more). [waits] */
errint_t pool_probe_direct(struct pool *p, int *ret_fd, char **cause);
void pool_set_direct(struct pool *p, const struct pool_direct *direct);
/* The id under which the kernel serves the handles of an open node, 0 where the daemon does. */
int32_t pool_backing_id(struct node *n);

/* Brackets one write by the daemon (pwrite or splice into scratch_fd). begin: -EAGAIN when
 * it would have to wait and !wait; -ENOSPC past the stop mark; the range must be hydrated
 * first. end: written < 0 or the count. */
errint_t scratch_write_begin(struct pool *p, struct node *n, uint64_t off, size_t len,
                             bool wait);
void scratch_write_end(struct pool *p, struct node *n, uint64_t off, ssize_t written);

/* [waits] all three; node open for writing, or opened by the callee for the time. */
errint_t pool_truncate(struct pool *p, struct node *n, uint64_t size);
errint_t pool_fallocate(struct pool *p, struct node *n, int mode, uint64_t off,
                        uint64_t len);
/* fsync of an open or closed node as design section 5 has it: on return its bytes, size and
 * name are durable. */
errint_t pool_fsync(struct pool *p, struct node *n, bool datasync);
/* A rename is about to put n over something: makes n durable first if dirty. [waits] */
errint_t pool_sync_before_rename(struct pool *p, struct node *n);

/* SEEK_DATA and SEEK_HOLE of an open node, or -errno. cached: the kernel may hold stores through
 * mappings in its own page cache; then nothing is a hole while it is open for writing. */
off_t pool_lseek(struct pool *p, struct node *n, off_t off, int whence, bool cached);

/* Overlays what the scratch knows (dirty: size, mtime, ctime, blocks) on logical
 * attributes. Under node->lock. An error: what it knows cannot be had now. */
errint_t pool_overlay_attr(struct node *n, struct stat *st);
/* The attributes of an open or dirty file whose object was taken away behind us, as far as they are
 * known; false where n is no such file. Under node->lock. */
bool pool_lone_attr(struct node *n, struct stat *ret);
/* utimes through the mount: applied to the scratch too if there is one. ts as for
 * utimensat. Under node->lock. */
errint_t pool_set_times(struct node *n, const struct timespec ts[2]);
/* Metadata of n's object changed (chmod, chown, xattr, link, rename): the next fsync covers
 * it; ctime is now. Under node->lock. */
void pool_meta_changed(struct node *n);

/* The node's names changed: the hint of a dirty scratch is written again. No node lock
 * held. */
void pool_renamed(struct pool *p, struct node *n);
/* The last link of n is about to go, or (doomed false) did not go after all: a dirty scratch says so
 * first, so that after kill -9 nobody takes it for a file whose object somebody else took away.
 * Under node->lock, around the store's unlink or rename. */
void pool_dooming(struct pool *p, struct node *n, bool doomed);
/* The last name of n went (the store's unlink or rename is done; its directory is dir). The
 * scratch is doomed: deleted after last close and after an fsync of dir. No node lock held.
 */
void pool_unlinked(struct pool *p, struct node *n, struct node *dir);

/* ---- admin ---- */

struct pool_progress {
	uint64_t files_done, files_total, bytes_done, bytes_total, failed;
};
typedef void (*pool_progress_fn)(void *ctx, const struct pool_progress *pr);
typedef void (*pool_failure_fn)(void *ctx, const char *path, const char *error);

/* Everything that was named and flushed is durable in the store: renames, directories, links
 * included. [waits] */
errint_t pool_sync_store(struct pool *p);

/* Writes back everything dirty (below: NULL or a node that is or lies below; may be a file)
 * and returns when it is in the store and durable: 0, -EIO with failures reported,
 * -ETIMEDOUT after deadline_ms (0: none). Files held open are included, with what was
 * written when the call began. [waits] */
errint_t pool_flush(struct pool *p, struct node *below, uint64_t deadline_ms,
                    pool_progress_fn progress, pool_failure_fn failure, void *ctx);

/* Deletes the scratch of n: 0, -EBUSY (open), -EAGAIN (dirty), -EPERM (pinned), -ENOENT
 * (cold). */
errint_t pool_evict(struct pool *p, struct node *n);

struct pool_stats {
	uint64_t limit_bytes, bytes, dirty_bytes, open_bytes;
	uint64_t warm, dirty, flushing, pinned, open, lost;
	uint64_t direct,
	    cached; /* open in the mount: served by the kernel, by the daemon */
	uint64_t queued, queued_oldest_ms, failing;
	uint64_t over_bytes; /* above the limit because of open or dirty files */
};
void pool_get_stats(struct pool *p, struct pool_stats *ret);
/* Files whose last flush failed: path and error each. */
void pool_each_failing(struct pool *p, pool_failure_fn fn, void *ctx);
/* Objects of which something could not be read, as far as that is known (damage.h). ranges:
 * what cannot be read, ascending; none where nothing of it can, or (error says so) all. */
struct pool_damage {
	const char *path, *error;
	const struct object_range *ranges;
	size_t count;
};
typedef void (*pool_damage_fn)(void *ctx, const struct pool_damage *d);
size_t pool_each_damaged(struct pool *p, pool_damage_fn fn, void *ctx); /* how many */

struct node_state { /* for `cellarctl status PATH` and user.cellar.* */
	bool warm, dirty, flushing, pinned;
	uint32_t open, writers;
};
void pool_node_state(struct pool *p, struct node *n, struct node_state *ret);

#endif
