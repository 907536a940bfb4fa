/*
 * Locks with a class, an owner and (developer builds) a checked order: see lock.h.
 *
 * Invariants:
 *  (1) owner is the holder's thread id from just after the mutex was taken until just
 *      before it is dropped; other threads read it only to find that it is not theirs.
 *  (2) In developer builds held[] lists what this thread holds, oldest first. A blocking
 *      call is checked against it before it can block, so a cycle is reported by the first
 *      thread that goes the wrong way, not by the deadlock that may follow.
 *  (3) trylocks cannot deadlock, so they are recorded but not checked.
 *
 * A wait on a condition gives the lock up and takes it again: it is checked as a take.
 */
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/log.h"

static __thread uint32_t cached_tid;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void forget_tid(void)
{
	cached_tid = 0;
}

static void watch_forks(void)
{
	INVARIANT(pthread_atfork(NULL, NULL, forget_tid) == 0);
}

static uint32_t my_tid(void)
{
	if (!cached_tid) {
		INVARIANT(pthread_once(&fork_once, watch_forks) == 0);
		cached_tid = (uint32_t)gettid();
	}
	return cached_tid;
}

/* ---- the order ---- */

#ifdef CELLAR_DEVELOPER

#define HELD_MAX 32

struct held {
	const void *lock;
	enum lock_class class;
};

static __thread struct held held[HELD_MAX];
static __thread unsigned held_count;

static const char *class_name(enum lock_class class)
{
	static const char *const names[] = {
	    [LOCK_NAMESPACE] = "LOCK_NAMESPACE", [LOCK_NODE] = "LOCK_NODE",
	    [LOCK_SCRATCH] = "LOCK_SCRATCH",     [LOCK_POOL] = "LOCK_POOL",
	    [LOCK_LISTING] = "LOCK_LISTING",     [LOCK_NUMBERS] = "LOCK_NUMBERS",
	    [LOCK_TABLE] = "LOCK_TABLE",         [LOCK_CATALOG] = "LOCK_CATALOG",
	    [LOCK_LEAF] = "LOCK_LEAF",
	};

	return class < ARRAY_LEN(names) ? names[class] : "?";
}

__attribute__((noreturn)) static void
order_violated(const char *what, const struct held *first, enum lock_class then)
{
	log_err("lock order: %s: %s wanted while holding %s", what, class_name(then),
	        class_name(first->class));
	abort();
}

static void held_check(const void *lock, enum lock_class class)
{
	for (unsigned i = 0; i < held_count; i++) {
		const struct held *h = &held[i];

		if (h->lock == lock)
			order_violated("the same lock twice", h, class);
		if (class < h->class)
			order_violated("earlier class", h, class);
		if (class == h->class && class != LOCK_NODE)
			order_violated("two locks of one class", h, class);
	}
}

static void held_add(const void *lock, enum lock_class class)
{
	INVARIANT(held_count < HELD_MAX);
	held[held_count++] = (struct held){lock, class};
}

static void held_remove(const void *lock)
{
	unsigned i = held_count;

	while (i > 0 && held[i - 1].lock != lock)
		i--;
	INVARIANT(i > 0); /* this thread does not hold the lock it drops */
	memmove(&held[i - 1], &held[i], (held_count - i) * sizeof(held[0]));
	held_count--;
}

void lock_assert_none(void)
{
	if (held_count > 0) {
		log_err("lock order: %s held where no lock may be",
		        class_name(held[held_count - 1].class));
		abort();
	}
}

#else

static void held_check(const void *lock, enum lock_class class)
{
}

static void held_add(const void *lock, enum lock_class class)
{
}

static void held_remove(const void *lock)
{
}

void lock_assert_none(void)
{
}

#endif

/* ---- mutexes ---- */

static void set_owner(struct lock *l, uint32_t tid)
{
	__atomic_store_n(&l->owner, tid, __ATOMIC_RELAXED);
}

bool lock_is_mine(const struct lock *l)
{
	return __atomic_load_n(&l->owner, __ATOMIC_RELAXED) == my_tid();
}

void lock_init(struct lock *l, enum lock_class class)
{
	INVARIANT(pthread_mutex_init(&l->mutex, NULL) == 0);
	l->class = class;
	set_owner(l, 0);
}

void lock_clear(struct lock *l)
{
	INVARIANT(__atomic_load_n(&l->owner, __ATOMIC_RELAXED) == 0);
	INVARIANT(pthread_mutex_destroy(&l->mutex) == 0);
}

void lock_take(struct lock *l)
{
	held_check(l, l->class);
	INVARIANT(!lock_is_mine(l));
	INVARIANT(pthread_mutex_lock(&l->mutex) == 0);
	set_owner(l, my_tid());
	held_add(l, l->class);
}

bool lock_try(struct lock *l)
{
	int err = pthread_mutex_trylock(&l->mutex);

	if (err == EBUSY)
		return false;
	INVARIANT(err == 0);
	set_owner(l, my_tid());
	held_add(l, l->class);
	return true;
}

void lock_drop(struct lock *l)
{
	lock_assert_held(l);
	held_remove(l);
	set_owner(l, 0);
	INVARIANT(pthread_mutex_unlock(&l->mutex) == 0);
}

/* ---- conditions ---- */

void lock_cond_init(pthread_cond_t *c)
{
	pthread_condattr_t attr;

	INVARIANT(pthread_condattr_init(&attr) == 0);
	INVARIANT(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
	INVARIANT(pthread_cond_init(c, &attr) == 0);
	INVARIANT(pthread_condattr_destroy(&attr) == 0);
}

static void wait_begin(struct lock *l)
{
	lock_assert_held(l);
	held_remove(l);
	held_check(l, l->class);
	set_owner(l, 0);
}

static void wait_end(struct lock *l)
{
	set_owner(l, my_tid());
	held_add(l, l->class);
}

void lock_wait(struct lock *l, pthread_cond_t *c)
{
	wait_begin(l);
	INVARIANT(pthread_cond_wait(c, &l->mutex) == 0);
	wait_end(l);
}

bool lock_wait_ms(struct lock *l, pthread_cond_t *c, uint64_t wait_ms)
{
	const uint64_t longest_ms = 1000ULL * 86400 * 365 * 100; /* time_t holds the sum */
	struct timespec until;
	int err;

	wait_ms = MIN_OF(wait_ms, longest_ms);
	INVARIANT(clock_gettime(CLOCK_MONOTONIC, &until) == 0);
	until.tv_sec += (time_t)(wait_ms / 1000);
	until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	wait_begin(l);
	err = pthread_cond_timedwait(c, &l->mutex, &until);
	INVARIANT(err == 0 || err == ETIMEDOUT);
	wait_end(l);
	return err == 0;
}

/* ---- readers and writers ---- */

static void rw_init(pthread_rwlock_t *rw)
{
	pthread_rwlockattr_t attr;

	/* Readers come all the time; without this a directory rename would starve. */
	INVARIANT(pthread_rwlockattr_init(&attr) == 0);
	INVARIANT(pthread_rwlockattr_setkind_np(
	              &attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP) == 0);
	INVARIANT(pthread_rwlock_init(rw, &attr) == 0);
	INVARIANT(pthread_rwlockattr_destroy(&attr) == 0);
}

void rwlock_init(struct rwlock *l, enum lock_class class)
{
	rw_init(&l->rw);
	l->class = class;
}

void rwlock_clear(struct rwlock *l)
{
	INVARIANT(pthread_rwlock_destroy(&l->rw) == 0);
}

void rwlock_rd(struct rwlock *l)
{
	held_check(l, l->class);
	INVARIANT(pthread_rwlock_rdlock(&l->rw) == 0);
	held_add(l, l->class);
}

void rwlock_wr(struct rwlock *l)
{
	held_check(l, l->class);
	INVARIANT(pthread_rwlock_wrlock(&l->rw) == 0);
	held_add(l, l->class);
}

static bool rwlock_tried(struct rwlock *l, int err)
{
	if (err == EBUSY)
		return false;
	INVARIANT(err == 0);
	held_add(l, l->class);
	return true;
}

bool rwlock_try_rd(struct rwlock *l)
{
	return rwlock_tried(l, pthread_rwlock_tryrdlock(&l->rw));
}

bool rwlock_try_wr(struct rwlock *l)
{
	return rwlock_tried(l, pthread_rwlock_trywrlock(&l->rw));
}

void rwlock_drop(struct rwlock *l)
{
	held_remove(l);
	INVARIANT(pthread_rwlock_unlock(&l->rw) == 0);
}

/* ---- read mostly ---- */

/* Threads are dealt out to the parts as they come. */
static pthread_rwlock_t *my_part(struct rmlock *l)
{
	static _Atomic unsigned threads;
	static __thread unsigned mine; /* counted from 1 */

	if (!mine)
		mine = atomic_fetch_add(&threads, 1) + 1;
	return &l->part[mine % l->parts].rw;
}

void rmlock_init(struct rmlock *l, enum lock_class class)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	rmlock_init_parts(l, class, cpus > 1 ? (unsigned)MIN_OF(cpus, RMLOCK_PARTS) : 1);
}

void rmlock_init_parts(struct rmlock *l, enum lock_class class, unsigned parts)
{
	INVARIANT(parts > 0 && parts <= RMLOCK_PARTS);
	l->parts = parts;
	for (unsigned i = 0; i < l->parts; i++)
		rw_init(&l->part[i].rw);
	l->class = class;
	l->writer = 0;
}

void rmlock_clear(struct rmlock *l)
{
	for (unsigned i = 0; i < l->parts; i++)
		INVARIANT(pthread_rwlock_destroy(&l->part[i].rw) == 0);
}

void rmlock_rd(struct rmlock *l)
{
	held_check(l, l->class);
	INVARIANT(pthread_rwlock_rdlock(my_part(l)) == 0);
	held_add(l, l->class);
}

static void set_writer(struct rmlock *l, uint32_t tid)
{
	__atomic_store_n(&l->writer, tid, __ATOMIC_RELAXED);
}

void rmlock_wr(struct rmlock *l)
{
	held_check(l, l->class);
	for (unsigned i = 0; i < l->parts; i++)
		INVARIANT(pthread_rwlock_wrlock(&l->part[i].rw) == 0);
	set_writer(l, my_tid());
	held_add(l, l->class);
}

bool rmlock_try_rd(struct rmlock *l)
{
	int err = pthread_rwlock_tryrdlock(my_part(l));

	if (err == EBUSY)
		return false;
	INVARIANT(err == 0);
	held_add(l, l->class);
	return true;
}

bool rmlock_try_wr(struct rmlock *l)
{
	for (unsigned i = 0; i < l->parts; i++) {
		int err = pthread_rwlock_trywrlock(&l->part[i].rw);

		if (err == EBUSY) {
			while (i-- > 0)
				INVARIANT(pthread_rwlock_unlock(&l->part[i].rw) == 0);
			return false;
		}
		INVARIANT(err == 0);
	}
	set_writer(l, my_tid());
	held_add(l, l->class);
	return true;
}

void rmlock_drop(struct rmlock *l)
{
	held_remove(l);
	if (__atomic_load_n(&l->writer, __ATOMIC_RELAXED) != my_tid()) {
		INVARIANT(pthread_rwlock_unlock(my_part(l)) == 0);
		return;
	}
	set_writer(l, 0);
	for (unsigned i = l->parts; i-- > 0;)
		INVARIANT(pthread_rwlock_unlock(&l->part[i].rw) == 0);
}
