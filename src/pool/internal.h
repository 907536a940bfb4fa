/*
 * What the files of pool/ share and nobody else sees.
 *
 * A scratch belongs to one number. While anything but an untouched file of an earlier run it
 * is *attached*: node->scratch points here and the scratch holds a reference on the node.
 * Unattached ones (clean files found at start) have node == NULL and are guarded by
 * pool->lock alone.
 *
 * Which field is whose is said per group. `gen` counts changes that the daemon was asked for
 * (writes, truncations); it is raised before the bytes change, under the gate, so (of a scratch
 * that is not unseen: content.h):
 *
 *   (G1) whoever holds the gate for writing sees a gen that covers every change made so far,
 *        and no change is under way;
 *   (G2) content read between two such moments with equal gen is one consistent version.
 */
#ifndef CELLAR_POOL_INTERNAL_H
#define CELLAR_POOL_INTERNAL_H

#include <stdatomic.h>

#include "uthash.h"

#include "base/breaks.h"
#include "base/counters.h"
#include "base/log.h"
#include "base/steps.h"
#include "base/sysio.h"
#include "codec/encode.h"
#include "codec/object.h"
#include "pool/changes.h"
#include "pool/damage.h"
#include "pool/hydrate.h"
#include "pool/pool.h"
#include "pool/record.h"
#include "pool/unborn.h"
#include "tree/resolve.h"

struct scratch_name {
	char s[24]; /* "ab/0123456789abcdef" */
};

struct scratch {
	uint32_t magic; /* SCRATCH_MAGIC */
	uint64_t ino;   /* constant */
	struct pool *pool;
	struct node *node; /* set once, by attaching */

	/* under node->lock (fd also read by whoever has the node open) */
	struct record record;  /* as last written, but for the two below */
	bool base_pending;     /* record.base may not have its name durably: (F9) */
	struct stamp old_base; /* base_pending: what the records say instead */
	uint32_t old_flags;    /* and these of RECORD_NEW and RECORD_APPEND with it */
	int fd;                /* O_RDWR while fd_users > 0, else -1 */
	uint32_t opens, writers;
	uint32_t fd_users; /* of opens: (V2), serve.c */
	uint32_t served;   /* of opens: handles that the kernel knows */
	int32_t backing; /* > 0: it serves them by itself (V1); constant while served > 0 */
	uint32_t holds;  /* pool threads that rely on it while the lock is not held */
	bool flushing;   /* a flusher has it in work */
	struct ident
	    rival;   /* of an earlier run: a strange object where its own was; constant */
	bool doomed; /* the last link is gone */
	bool marked_doomed;   /* the file's mode says RECORD_DOOMED */
	bool doomed_listed;   /* in pool->doomed; under pool->lock */
	bool doomed_dirty;    /* was dirty when the last link went (E3) */
	uint32_t raises;      /* of the three below: a sync lowers what it has seen */
	uint64_t durable_seq; /* the sync_seq that is known to be on disk */
	uint64_t flushed_seq; /* number of the last flush that came to its end */
	uint64_t claimed_seq; /* highest sync_seq that a record of it may say on disk */
	bool name_unsynced;   /* object's name or new parents may not be durable */
	bool attr_unsynced;   /* object's attributes may not be durable */
	bool file_unsynced;   /* the scratch file's own name may not be durable */
	struct hydration *hydration; /* not NULL: clean and not whole */
	struct frame_hashes *frames; /* of the base, hashed as they were hydrated; NULL:
	                              * not known (an earlier run's, or a foreign base) */
	bool stale;                  /* the three below: the last look failed */
	uint64_t size;               /* while closed and not unseen */
	struct timespec mtime;       /* the same */
	uint64_t blocks;             /* st_blocks, while fd < 0 */
	mode_t mode;                 /* of the object when opened: to make it again */
	uid_t uid;
	gid_t gid;
	char *hint;              /* store path as last recorded */
	struct node *doomed_dir; /* referenced: fsync it before the file is deleted */
	int sync_error;          /* not 0: the next fsync returns it (design 5) */
	uint32_t shrinks;     /* truncations that made it shorter: a sync under way looks */
	uint32_t flush_tries; /* in a row that found the file changed meanwhile */

	/* content.c: writes that nobody tells us of; in pool->unseen while `unseen` */
	bool unseen;
	bool mappable;     /* opened for reading and writing since it became unseen */
	bool young;        /* the stamp was taken within a moment of the last write (N1) */
	bool flushed_open; /* the last flush read it while it was not closed (N3) */
	bool tell_kernel;  /* closed, and was mappable: pool_close_file() */
	bool was_direct;   /* the kernel served it: somebody may still have it mapped */
	uint64_t seen_size;
	struct timespec seen_mtime;
	/* tail.c (T6): how many fill it, and the mtime that it has while gen stays */
	unsigned filling;
	uint64_t filling_gen;
	struct timespec filling_mtime;

	_Atomic uint64_t links; /* of the object when it was last looked at; 0: not known */
	_Atomic bool whole;     /* hydration == NULL, readable without the lock */
	_Atomic uint64_t gen;   /* see (G1) */
	struct changes changes; /* since the object was equal; noted inside the gate */
	_Atomic uint64_t flushed_gen;                  /* what the object says */
	_Atomic uint64_t synced_gen;                   /* what fdatasync has covered */
	_Atomic uint64_t dirty_since_ms, last_sync_ms; /* monotonic */
	_Atomic uint64_t unsampled; /* bytes written since st_blocks was looked at */
	_Atomic int64_t
	    last_write_ns;  /* CLOCK_REALTIME of the last change; logical ctime */
	struct rwlock gate; /* LOCK_SCRATCH: see (G1) */

	/* under pool->lock */
	UT_hash_handle hh;                   /* by ino */
	struct scratch *lru_prev, *lru_next; /* all scratches, least recently used first */
	struct scratch *queue_prev, *queue_next; /* queued for a flush, by due_ms */
	struct scratch *unseen_prev, *unseen_next;
	bool queued;
	bool urgent; /* flush although open for writing */
	bool busy;   /* unattached: being evicted or attached */
	bool pinned;
	bool is_dirty, is_open, is_flushing, is_direct,
	    is_cached;  /* mirrors for status and eviction */
	uint64_t bytes; /* on the pool's disk, as last sampled */
	uint64_t due_ms;
	uint64_t last_use_ms; /* monotonic */
	uint32_t fail_count;  /* flushes failed since the last success */
	char *fail_text;
};
#define SCRATCH_MAGIC 0x5c2a7c41U

struct damaged; /* damage.c: an object that is known to be damaged */
/* trust.c: what the mark in the runtime directory says. */
struct trust {
	int dirfd; /* -1: there is no mark */
	char name[64];
	struct uuid kernel, boot;
	uint64_t mounted;
	bool lost; /* under pool->trust_lock */
};

struct dir_seen; /* sync.c: directories whose own name is known to be durable */

struct pool {
	/* constant after pool_new */
	struct pool_place place;
	int scratch_fd, lost_fd;
	struct tree *tree;
	struct store *store;
	struct catalog *catalog;
	struct uuid boot;
	uint64_t limit_bytes, max_idle_ms, eager_size, max_object;
	uint64_t writeback_ms, sync_ms, dirty_age_ms;
	uint64_t max_open;
	unsigned flusher_count, decode_threads;
	uint32_t frame_size;
	uint64_t append_min;
	int level, flush_nice, flush_ioprio;
	struct pool_direct direct;
	pool_notify_fn notify;
	void *notify_ctx;

	struct readahead *readahead; /* readahead.c */
	_Atomic uint64_t held_bytes; /* decoded for readers only */
	bool recovered;         /* pool_recover() came to its end: may be marked clean */
	bool fine_times;        /* two writes never have one mtime; pool_probe_direct() */
	_Atomic bool no_clones; /* its filesystem cannot share blocks of files */
	bool stores_seen;       /* a store through a mapping moves mtime */

	_Atomic uint64_t left_synced; /* sync_left_unknown() */
	_Atomic bool stopping;
	_Atomic bool no_space; /* the pool's disk is past the stop mark */
	_Atomic bool full; /* closed scratch alone is well above the limit, or no_space */
	_Atomic uint64_t open_files;
	_Atomic bool open_limit_logged;

	struct lock lock;    /* LOCK_POOL */
	pthread_cond_t work; /* flushers: the queue changed */
	pthread_cond_t
	    progress; /* waiters: a flush ended, space was freed, a busy one is free */
	pthread_cond_t house; /* housekeeping: do it now */
	bool house_wanted;
	uint64_t room_wanted; /* bytes that a hydration waits for; 0: none does */
	struct scratch *by_ino;
	struct scratch *lru;
	struct scratch *queue;
	struct scratch *unseen;
	uint64_t unseen_count;
	uint64_t bytes, count, dirty_count, flushing_count, lost_count, dirty_bytes,
	    open_bytes;
	uint64_t flush_events;   /* raised when a flush ends */
	struct scratch **doomed; /* to be deleted once their directories are synced */
	size_t doomed_count, doomed_allocated;
	struct lock damage_lock; /* LOCK_LEAF: the two below */
	struct damaged *damaged; /* damage.c */
	struct lock shards_lock; /* LOCK_LEAF: shards.c, (P1) */
	uint64_t shards_made, shards_synced;
	struct lock unborn_lock; /* LOCK_LEAF: the two below */
	struct unborn *unborn;   /* unborn.c */
	_Atomic unsigned unborn_count;
	struct lock trust_lock; /* LOCK_LEAF */
	struct trust trust;
	struct lock seen_lock; /* LOCK_LEAF */
	struct dir_seen *seen;

	pthread_t *flushers;
	unsigned flushers_running;
	pthread_t housekeeper;
	bool house_running;
	pthread_t searcher;
	bool searcher_running;
	_Atomic uint64_t waiting; /* dirty scratches whose object is still looked for */
	_Atomic bool searched;    /* the search is over */
};

/* scratch.c */
struct scratch_name scratch_name(uint64_t ino);
struct scratch *scratch_alloc(struct pool *p, uint64_t ino);
void scratch_free(struct scratch *s);
/* Adds to hash and lists / takes out. Attached first: what is listed and has no node counts as an
 * untouched file of an earlier run. pool->lock not held. */
void scratch_register(struct pool *p, struct scratch *s);
void scratch_unregister(struct pool *p, struct scratch *s);
/* node->lock held: node->scratch = s; takes a node reference. */
void scratch_attach(struct pool *p, struct scratch *s, struct node *n);
/* A new empty file for ino, O_RDWR; an old one of that name is removed first. */
int scratch_create_file(struct pool *p, uint64_t ino);
int scratch_open_fd(struct pool *p, struct scratch *s, int flags);
/* The first record and hint of a new scratch file. The record comes last: where the rest fails
 * and the file cannot even be deleted, recovery finds an empty file without a record. */
errint_t scratch_first_record(struct pool *p, struct scratch *s, const char *hint);
/* Writes s->record with the present boot id; while base_pending, with the old base. node->lock
 * held. */
errint_t scratch_record(struct pool *p, struct scratch *s);
/* Makes the mode of the file say what s->record.flags say of RECORD_DOOMED; scratch_record() does
 * it too, so that one that failed is made good by the next record. node->lock held. */
errint_t scratch_mark_doomed(struct pool *p, struct scratch *s);
/* s->record.base is about to be an object that has its name in the page cache only: until
 * base_pending is lowered again records say the base that is durable. node->lock held. */
void scratch_keep_base(struct scratch *s);
/* Writes the path hint anew from the node's names. A failure costs a search after a crash, no
 * more. node->lock held. */
void scratch_write_hint(struct pool *p, struct scratch *s);
/* clean -> dirty: the record says so before the first byte changes. node->lock held. */
errint_t scratch_make_dirty(struct pool *p, struct scratch *s);
/* Remembers size, mtime, blocks from the file, and accounts its bytes. node->lock held. */
void scratch_sample(struct pool *p, struct scratch *s);
void scratch_account(struct pool *p, struct scratch *s, uint64_t bytes);
void scratch_touch(struct pool *p, struct scratch *s); /* most recently used */
/* Mirrors dirty/open/flushing into the pool's sums. node->lock held. */
void scratch_mirror(struct pool *p, struct scratch *s);
/* Logical ctime of a scratch: the later of what the store says and the last change here. */
struct timespec scratch_ctime(struct scratch *s, const struct timespec *stored);
/* Takes node->scratch away, deletes the file, frees. node->lock held, opens == 0, !flushing. */
errint_t scratch_destroy(struct pool *p, struct scratch *s);
/* Deletes a scratch that nobody has and that nothing is lost with: recovery found its object
 * newer, or its file gone for good. It is frozen by s->busy. */
void scratch_drop(struct pool *p, struct scratch *s);
/* Moves the file to lost+found. Same conditions. why is logged, and kept with it. */
errint_t scratch_set_aside(struct pool *p, struct scratch *s, const char *why);

/* A scratch of an earlier run, still known by its number only, becomes n's. node->lock held. */
void scratch_adopt_earlier(struct pool *p, struct node *n);

/* attr.c */
/* What is known of n's object matched by inode, size and mtime, and it is another all the same: it was
 * damaged, or a power cut left an older row of one that was copied over. A flush must not take
 * that for a change by somebody else. node->lock held. */
void scratch_correct_info(struct pool *p, struct node *n, const struct stamp *now,
                          const struct object *object);

/* tail.c */
#define TAIL_WHY                                                                           \
	"its object was changed behind cellar, and what was appended to it is no file by " \
	"itself"
/* Whether what is partly hydrated may be written to at its end as it is. node->lock held. */
bool tail_possible(const struct pool *p, const struct scratch *s);
bool tail_is_dirty(const struct scratch *s); /* node->lock held */
/* (T6): around hydrating a dirty tail; its mtime stays what it is. node->lock held; begin only where
 * tail_is_dirty(). */
errint_t tail_fill_begin(struct scratch *s);
errint_t tail_fill_end(struct scratch *s);
/* What fstat() said of the scratch, corrected. node->lock held. */
void tail_fill_stat(const struct scratch *s, struct stat *st);
/* Somebody has set its mtime. node->lock held. */
void tail_fill_set_time(struct scratch *s, const struct timespec *mtime);
/* Before tail_begin(): nobody fills the scratch any more. -EAGAIN where it would wait and !wait;
 * node->lock is given up meanwhile. */
errint_t tail_quiet(struct pool *p, struct scratch *s, bool wait);
/* clean and partly hydrated -> dirty tail. node->lock held, the hydration is quiet. */
errint_t tail_begin(struct pool *p, struct scratch *s);
/* Everything is hydrated: the record says whole. node->lock held across an fdatasync. */
errint_t tail_whole(struct pool *p, struct scratch *s, int fd);
/* A dirty tail was cut to nothing: it is whole now, also where this fails. node->lock held,
 * hydrate_quiet(). */
errint_t tail_cut(struct pool *p, struct scratch *s);
/* Before a change of bytes from off on: hydrates all unless it is an append. [waits]; -EAGAIN where
 * it would and !wait. */
errint_t tail_for_write(struct pool *p, struct node *n, uint64_t off, bool wait);
/* (T5): to be destroyed. node->lock held. */
bool tail_is_spent(struct pool *p, struct scratch *s);
/* A dirty tail of an earlier run gets its base back; -ESTALE: what is there is not its base. ns and
 * node->lock held. */
errint_t tail_resume(struct pool *p, struct scratch *s);

/* content.c: the last writer of s has gone: clean where nothing changed, else a flush is due.
 * node->lock held. */
void scratch_closed(struct pool *p, struct scratch *s);

/* sync.c */
/* fsync of the directory dirfd of node dir, and of those above it as far as their names may not be
 * durable yet. */
errint_t sync_directories(struct pool *p, struct node *dir, int dirfd);
/* What was removed from a directory is durably gone, also where it was removed itself. */
errint_t sync_left_directory(struct pool *p, struct node *dir);
/* The name of a directory changed: it is not known to be durable any more. */
void sync_forget_dir(struct pool *p, uint64_t ino);
/* (F10), (E3): whether files have lost names, not durably, of which nobody knows any more: before an
 * unclean start, or their nodes were freed. After pool_sync_store() sync_left_known() says, with the
 * *ret_gen from before it, that these are durably gone. */
bool sync_left_unknown(struct pool *p, uint64_t *ret_gen);
void sync_left_known(struct pool *p, uint64_t gen);
void sync_house(struct pool *p);
/* What is written is durable on return: (Y1). No locks. */
errint_t sync_file(struct pool *p, struct node *n);
/* The scratch file's own name is durable on return. */
errint_t sync_scratch_name(struct pool *p, struct scratch *s);
void sync_clear(struct pool *p);

/* flush.c */
void flush_queue(struct pool *p, struct scratch *s, uint64_t delay_ms, bool urgent);
void flush_unqueue(struct pool *p,
                   struct scratch *s); /* unless somebody waits for the flush */
void flush_unqueue_always(struct pool *p, struct scratch *s);
errint_t flush_start(struct pool *p);
void flush_stop(struct pool *p);
void flush_house(struct pool *p); /* queues what was open too long */

/* evict.c */
void evict_house(struct pool *p);
void evict_wake(struct pool *p); /* housekeeping soon, e.g. above the limit */
errint_t evict_throttle(struct pool *p, bool wait); /* before taking more space */
/* Whether the pool's disk is past its stop mark now. */
bool evict_no_space(struct pool *p);
/* Before a hydration writes so many bytes: -ENOSPC where that would take the pool's disk below its
 * stop mark, and nothing is left to evict. [waits] */
errint_t evict_make_room(struct pool *p, uint64_t bytes);
/* Bytes that may be written to the pool's disk before its stop mark. */
uint64_t evict_room(struct pool *p);
void evict_measure(struct pool *p); /* pool->lock held: sets p->full */
/* Whether the pool's disk can take so many bytes more and stay above its marks. */
bool pool_has_room(struct pool *p, uint64_t bytes);
void evict_doomed(struct pool *p);
void evict_add_doomed(struct pool *p, struct scratch *s);
errint_t evict_start(struct pool *p);
void evict_stop(struct pool *p);

/* recovery.c */
/* A regular file was met: if it is one whose scratch waits for it, it gets it. ctx: the pool. */
void recovery_met(void *ctx, struct node *n);
/* The node of a scratch whose object is someone else's (or whose number went astray): under the
 * name of the hint, with the identity that is no more; its flush finds the conflict. ns held. */
errint_t recovery_adopt_by_hint(struct pool *p, struct scratch *s, struct node **ret);
/* search.c */
/* The number of a waiting dirty scratch was met as n: compares it with the object there. True:
 * it is n's content (with its base brought up to date); false: the object is newer than what may
 * be believed of it. ns and n->lock held. */
bool recovery_settles(struct pool *p, struct scratch *s, struct node *n);
errint_t recovery_start_search(struct pool *p);
void recovery_stop_search(struct pool *p);

#endif
