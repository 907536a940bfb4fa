/*
 * Mutexes and reader-writer locks with a class, an owner and a checked order.
 *
 * The order of the classes below is the lock order of the whole program: a thread that
 * holds a lock of one class may take only locks of later classes. Two locks of the same
 * class: only LOCK_NODE, directories before files, two directories by ascending inode
 * number (tree/node.h: node_lock_pair).
 *
 *   OK:    rmlock_rd(&tree->ns); lock_take(&dir->lock); lock_take(&file->lock);
 *   OK:    lock_take(&file->lock); lock_take(&pool->lock);
 *   ERROR: lock_take(&pool->lock); lock_take(&file->lock);
 *
 * No lock is held across compression, across a disk wait on behalf of another file, or
 * at a fuse_reply_*() (lock_assert_none()).
 *
 * With --enable-developer every thread keeps the list of what it holds, and a violation
 * of the order ends the program with both lock names; otherwise only the owner is kept.
 * A trylock cannot deadlock: it may go against the order, and counts as held from then on.
 * A lock is dropped by the thread that took it.
 */
#ifndef CELLAR_BASE_LOCK_H
#define CELLAR_BASE_LOCK_H

#include <pthread.h>

#include "base/error.h"

enum lock_class {
	LOCK_NAMESPACE, /* struct tree.ns: directory topology; held across store calls */
	LOCK_NODE,      /* struct node.lock: one inode; held across its own store calls */
	LOCK_SCRATCH, /* struct scratch.gate: writers share it, shrink and flush exclude */
	LOCK_POOL,    /* struct pool.lock: lists, queue, accounting; memory only */
	LOCK_LISTING, /* struct tree.listing: listing, or replacing an entry (tree/listing.h) */
	LOCK_NUMBERS, /* struct tree.numbers: which number a new identity gets */
	LOCK_TABLE,   /* struct tree.lock: node table and names; memory only */
	LOCK_CATALOG, /* struct catalog.lock */
	LOCK_LEAF,    /* anything that takes no other lock while held */
};

struct lock {
	pthread_mutex_t mutex;
	enum lock_class class;
	uint32_t owner; /* gettid() of the holder, 0 = free; for asserts only */
};

struct rwlock {
	pthread_rwlock_t rw;
	enum lock_class class;
};

/* A read-mostly lock (as FreeBSD's rmlock(9), Linux's former lglock): a reader takes the one part of
 * it that is his thread's, so that readers share no cache line; a writer takes all parts, in order.
 * For what every request reads and few change. */
#define RMLOCK_PARTS 16
struct rmlock {
	union rmlock_part {
		pthread_rwlock_t rw;
		char room[128]; /* two lines: wherever it begins, no two share one */
	} part[RMLOCK_PARTS];
	unsigned parts; /* in use: one a processor */
	enum lock_class class;
	uint32_t writer; /* gettid() of the writer, 0 = none */
};

void lock_init(struct lock *l, enum lock_class class);
void lock_clear(struct lock *l);
void lock_take(struct lock *l);
bool lock_try(struct lock *l);
void lock_drop(struct lock *l);
bool lock_is_mine(const struct lock *l);
#define lock_assert_held(l) INVARIANT(lock_is_mine(l))

/* Condition waits on a struct lock (CLOCK_MONOTONIC). A wait takes the lock again, so the
 * order is checked as for lock_take(). */
void lock_cond_init(pthread_cond_t *c);
void lock_wait(struct lock *l, pthread_cond_t *c);
/* False when wait_ms passed. */
bool lock_wait_ms(struct lock *l, pthread_cond_t *c, uint64_t wait_ms);

void rwlock_init(struct rwlock *l, enum lock_class class); /* prefers writers */
void rwlock_clear(struct rwlock *l);
void rwlock_rd(struct rwlock *l);
void rwlock_wr(struct rwlock *l);
bool rwlock_try_rd(struct rwlock *l);
bool rwlock_try_wr(struct rwlock *l);
void rwlock_drop(struct rwlock *l);

void rmlock_init(struct rmlock *l, enum lock_class class); /* prefers writers */
void rmlock_init_parts(struct rmlock *l, enum lock_class class, unsigned parts);
void rmlock_clear(struct rmlock *l);
void rmlock_rd(struct rmlock *l);
void rmlock_wr(struct rmlock *l);
bool rmlock_try_rd(struct rmlock *l);
bool rmlock_try_wr(struct rmlock *l);
void rmlock_drop(struct rmlock *l);

/* Developer builds: this thread holds no lock at all. */
void lock_assert_none(void);

#endif
