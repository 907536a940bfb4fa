/*
 * Keeping the pool small: eviction of clean scratch, deletion of doomed scratch, marks of
 * the pool's disk, and the housekeeping thread that does these and the background sync.
 *
 *   clean --evict_one--> cold
 *
 * Invariants:
 *  (E1) Only clean, idle, unpinned scratch is evicted, least recently used first; looked at
 *       again under the node's lock before the file is deleted; not while a mapping uses it.
 *  (E2) A scratch became clean only after the directory fsync of its flush (flush.c, F4): so what
 *       replaces an evicted one is durable.
 *  (E3) A doomed dirty scratch is deleted only after an fsync of every directory from which one of
 *       its links went: until then a power cut may bring the link back.
 *
 * Marks: *run* = evict down to here, *cull* = start (and flush dirty ones early), *stop* =
 * writers wait for the flushers, bounded, then ENOSPC. For pool_size they are 90 %, 100 %
 * and 125 % (of what is not open); for the disk's free blocks and inodes 3, 2 and 1 times the
 * smaller of 1 % and 256 MiB.
 */
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/workers.h"
#include "pool/content.h"

#include "utlist.h"

#define HOUSE_MS     500
#define THROTTLE_MS  20000
#define STOP_BYTES   (256ULL << 20)
#define CANDIDATES   512
#define IDLE_PARTIAL 64 /* half-hydrated idle ones kept: each holds a descriptor */

/* ---- marks ---- */

struct space {
	uint64_t free_bytes, stop_bytes;
	uint64_t free_files, stop_files; /* 0, 0 where the filesystem has no such limit */
};

static bool measure_disk(struct pool *p, struct space *ret)
{
	struct statfs st;

	memset(ret, 0, sizeof(*ret));
	if (sys_fstatfs(p->scratch_fd, &st) < 0)
		return false;
	ret->free_bytes = (uint64_t)st.f_bavail * (uint64_t)st.f_bsize;
	ret->stop_bytes =
	    MIN_OF((uint64_t)st.f_blocks * (uint64_t)st.f_bsize / 100, STOP_BYTES);
	if (st.f_files > 0) {
		ret->free_files = st.f_ffree;
		ret->stop_files = MIN_OF((uint64_t)st.f_files / 100, 10000U);
	}
	return true;
}

static bool below_mark(const struct space *sp, unsigned times)
{
	return sp->free_bytes < times * sp->stop_bytes ||
	       (sp->stop_files > 0 && sp->free_files < times * sp->stop_files);
}

bool pool_has_room(struct pool *p, uint64_t bytes)
{
	struct space sp;

	if (!measure_disk(p, &sp))
		return true; /* the write finds out */
	return sp.free_bytes > bytes && sp.free_bytes - bytes >= 3 * sp.stop_bytes;
}

void evict_measure(struct pool *p)
{
	uint64_t closed = p->bytes > p->open_bytes ? p->bytes - p->open_bytes : 0;
	bool full =
	    atomic_load(&p->no_space) || closed > p->limit_bytes + p->limit_bytes / 4;

	if (atomic_exchange(&p->full, full) && !full)
		pthread_cond_broadcast(&p->progress);
}

void evict_wake(struct pool *p)
{
	lock_take(&p->lock);
	p->house_wanted = true;
	pthread_cond_signal(&p->house);
	lock_drop(&p->lock);
}

bool evict_no_space(struct pool *p)
{
	struct space space;

	if (!atomic_load(&p->no_space))
		return false;
	/* Housekeeping said so; meanwhile there may be room: nobody is refused for old news. */
	if (!measure_disk(p, &space) || below_mark(&space, 1))
		return true;
	lock_take(&p->lock);
	atomic_store(&p->no_space, false);
	evict_measure(p);
	lock_drop(&p->lock);
	return false;
}

/* Whether waiting can make room: something may be evicted, or flushed and then evicted.
 * p->lock held. */
static bool may_gain(struct pool *p)
{
	struct scratch *s;

	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (!s->is_open && !s->pinned && (!s->is_dirty || s->fail_count == 0))
			return true;
	}
	return false;
}

errint_t evict_throttle(struct pool *p, bool wait)
{
	uint64_t until;

	if (!atomic_load_explicit(&p->full, memory_order_relaxed))
		return 0;
	if (!wait)
		return -EAGAIN;
	until = clock_mono_ms() + THROTTLE_MS;
	evict_wake(p);
	lock_take(&p->lock);
	while (atomic_load(&p->full) && !atomic_load(&p->stopping)) {
		uint64_t now = clock_mono_ms();

		if (now >= until || (atomic_load(&p->no_space) && !may_gain(p)))
			break;
		(void)lock_wait_ms(&p->lock, &p->progress, MIN_OF(until - now, 200U));
	}
	lock_drop(&p->lock);
	/* Above pool_size only: goes on, and status says by how much. */
	return evict_no_space(p) ? -ENOSPC : 0;
}

uint64_t evict_room(struct pool *p)
{
	struct space sp;

	if (!measure_disk(p, &sp))
		return UINT64_MAX; /* the write itself will tell */
	return sp.free_bytes > sp.stop_bytes ? sp.free_bytes - sp.stop_bytes : 0;
}

/* What eviction (of dirty ones: after their flush) could free. p->lock held. */
static uint64_t evictable_bytes(const struct pool *p)
{
	const struct scratch *s;
	uint64_t bytes = 0;

	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (!s->is_open && !s->pinned && !s->busy && s->fail_count == 0 &&
		    atomic_load(&s->whole))
			bytes += s->bytes;
	}
	return bytes;
}

errint_t evict_make_room(struct pool *p, uint64_t bytes)
{
	uint64_t until = clock_mono_ms() + THROTTLE_MS;
	uint64_t room;

	while ((room = evict_room(p)) < bytes) {
		bool hope;

		lock_take(&p->lock);
		hope = evictable_bytes(p) >= bytes - room && clock_mono_ms() < until &&
		       !atomic_load(&p->stopping);
		if (hope) {
			p->room_wanted = MAX_OF(p->room_wanted, bytes);
			p->house_wanted = true;
			pthread_cond_signal(&p->house);
			(void)lock_wait_ms(&p->lock, &p->progress, 200);
		}
		lock_drop(&p->lock);
		if (!hope)
			return -ENOSPC;
	}
	return 0;
}

/* ---- eviction ---- */

static bool is_candidate(const struct scratch *s)
{
	return !s->is_dirty && !s->is_open && !s->is_flushing && !s->pinned && !s->busy &&
	       !s->doomed_listed;
}

/* (E1) node->lock held. */
static errint_t evict_locked(struct pool *p, struct scratch *s)
{
	errint_t r;

	if (s->opens > 0)
		return -EBUSY;
	if (s->record.state == RECORD_DIRTY || s->flushing)
		return -EAGAIN;
	if (s->holds > 0 || s->doomed || !content_unused(p, s))
		return -EBUSY;
	if (!hydrate_quiet(p, s, false))
		return -EBUSY; /* the background pass ends soon */
	r = scratch_destroy(p, s);
	if (r == 0)
		count_one(COUNTER_EVICTIONS);
	return r;
}

static errint_t evict_unattached(struct pool *p, struct scratch *s)
{
	errint_t r = scratch_destroy(p, s); /* s->busy keeps everybody else off */

	if (r < 0) {
		lock_take(&p->lock);
		s->busy = false;
		lock_drop(&p->lock);
	} else {
		count_one(COUNTER_EVICTIONS);
	}
	lock_take(&p->lock);
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
	return r;
}

struct victim {
	struct node *n; /* referenced, or NULL */
	struct scratch *s;
};

/* Least recently used first. p->lock held. */
static size_t choose(struct pool *p, struct victim *v, uint64_t excess, bool disk_low)
{
	uint64_t now = clock_mono_ms(), partial = 0;
	struct scratch *s;
	size_t n = 0;

	DL_FOREACH2(p->lru, s, lru_next)
	{
		bool idle, extra = false;

		if (n == CANDIDATES)
			break;
		if (!is_candidate(s))
			continue;
		idle = now - s->last_use_ms > p->max_idle_ms;
		if (s->node && !atomic_load(&s->whole))
			extra = ++partial > IDLE_PARTIAL;
		if (excess == 0 && !idle && !disk_low && !extra)
			continue;
		excess -= MIN_OF(excess, s->bytes);
		v[n].n = s->node;
		v[n].s = s;
		if (s->node)
			node_ref(p->tree, s->node);
		else
			s->busy = true;
		n++;
	}
	return n;
}

/* Dirty idle files are flushed early when room is wanted: oldest first. p->lock held. */
static void hurry_dirty(struct pool *p)
{
	struct scratch *s;

	DL_FOREACH2(p->queue, s, queue_next)
	{
		if (s->fail_count == 0)
			s->due_ms = 0;
	}
	pthread_cond_broadcast(&p->work);
}

void evict_house(struct pool *p)
{
	struct victim *v = xcalloc(CANDIDATES, sizeof(*v));
	struct space space;
	bool low = false, stop = false;
	uint64_t excess = 0, run = p->limit_bytes / 10 * 9;
	size_t n;

	if (measure_disk(p, &space)) {
		stop = below_mark(&space, 1);
		low = below_mark(&space, 2);
	}
	lock_take(&p->lock);
	atomic_store(&p->no_space, stop);
	low = low || (p->room_wanted > 0 && evict_room(p) < p->room_wanted);
	p->room_wanted = 0;
	evict_measure(p);
	if (p->bytes > p->limit_bytes)
		excess = p->bytes - run;
	n = choose(p, v, excess, low);
	if (excess > 0 || low)
		hurry_dirty(p);
	lock_drop(&p->lock);
	for (size_t i = 0; i < n; i++) {
		if (!v[i].n) {
			(void)evict_unattached(p, v[i].s);
			continue;
		}
		lock_take(&v[i].n->lock);
		if (v[i].n->scratch == v[i].s)
			(void)evict_locked(p, v[i].s);
		lock_drop(&v[i].n->lock);
		if (p->notify)
			p->notify(p->notify_ctx, v[i].n->ino);
		node_unref(p->tree, v[i].n);
	}
	free(v);
	lock_take(&p->lock);
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
}

errint_t pool_evict(struct pool *p, struct node *n)
{
	errint_t r;
	bool pinned;

	lock_take(&n->lock);
	if (!n->scratch)
		scratch_adopt_earlier(p, n);
	if (n->scratch) {
		lock_take(&p->lock);
		pinned = n->scratch->pinned;
		lock_drop(&p->lock);
		r = pinned ? -EPERM : evict_locked(p, n->scratch);
		while (r == -EBUSY && n->scratch && n->scratch->opens == 0 &&
		       n->scratch->hydration && !hydrate_quiet(p, n->scratch, true))
			r = n->scratch ? evict_locked(p, n->scratch) : -ENOENT;
	} else {
		r = -ENOENT;
	}
	lock_drop(&n->lock);
	if (r == 0 && p->notify)
		p->notify(p->notify_ctx, n->ino);
	return r;
}

/* ---- doomed ---- */

void evict_add_doomed(struct pool *p, struct scratch *s)
{
	lock_take(&p->lock);
	if (!s->doomed_listed) {
		if (p->doomed_count == p->doomed_allocated) {
			p->doomed_allocated = MAX_OF(64U, 2 * p->doomed_allocated);
			p->doomed =
			    xrealloc(p->doomed, p->doomed_allocated * sizeof(*p->doomed));
		}
		p->doomed[p->doomed_count++] = s;
		s->doomed_listed = true;
	}
	lock_drop(&p->lock);
}

/* A clean one needs no mark: it is dropped or kept by its record alone. */
static bool set_doomed(struct pool *p, struct scratch *s, bool doomed)
{
	if (s->record.state != RECORD_DIRTY)
		return false;
	if (doomed)
		s->record.flags |= RECORD_DOOMED;
	else
		s->record.flags &= ~RECORD_DOOMED;
	(void)scratch_mark_doomed(p, s); /* else recovery keeps what it cannot place */
	return true;
}

void pool_dooming(struct pool *p, struct node *n, bool doomed)
{
	lock_assert_held(&n->lock);
	if (n->scratch && set_doomed(p, n->scratch, doomed))
		step("doom.recorded");
}

void pool_unlinked(struct pool *p, struct node *n, struct node *dir)
{
	struct scratch *s;

	if (!S_ISREG(n->type))
		return;
	damage_forget(p, n);
	lock_take(&n->lock);
	if (!n->scratch)
		scratch_adopt_earlier(p, n);
	s = n->scratch;
	if (s && !s->doomed) {
		s->doomed = true;
		s->doomed_dirty = set_doomed(p, s, true);
		node_ref(p->tree, dir);
		s->doomed_dir = dir;
		flush_unqueue_always(p, s);
		scratch_mirror(p, s);
		if (s->opens == 0 && !s->flushing)
			evict_add_doomed(p, s);
	}
	lock_drop(&n->lock);
}

/* What evict_doomed() has synced for what it found listed. */
struct doomed_syncs {
	struct node *last; /* referenced */
	errint_t result;   /* of it */
	bool all;          /* the whole store */
};

/* (E3) */
static errint_t sync_doomed(struct pool *p, const struct scratch *s, struct doomed_syncs *d)
{
	uint64_t gen;

	if (!s->doomed_dirty || d->all || is_broken(BREAK_DOOM_EARLY))
		return 0;
	if (sync_left_unknown(p, &gen) ||
	    node_left_others(p->tree, s->node, s->doomed_dir)) {
		errint_t r = pool_sync_store(p);

		d->all = r == 0;
		if (d->all)
			sync_left_known(p, gen);
		step("doomed.synced");
		return r;
	}
	if (s->doomed_dir == d->last)
		return d->result;
	node_unref(p->tree, d->last);
	d->last = s->doomed_dir;
	node_ref(p->tree, d->last);
	d->result = sync_left_directory(p, d->last);
	step("doomed.synced");
	return d->result;
}

void evict_doomed(struct pool *p)
{
	struct doomed_syncs done = {0};
	struct scratch **list;
	size_t count;

	lock_take(&p->lock);
	list = p->doomed;
	count = p->doomed_count;
	p->doomed = NULL;
	p->doomed_count = p->doomed_allocated = 0;
	lock_drop(&p->lock);
	for (size_t i = 0; i < count; i++) { /* only this function frees a listed one */
		struct scratch *s = list[i];
		struct node *n = s->node;
		errint_t synced = sync_doomed(p, s, &done);
		bool gone = false;

		node_ref(p->tree, n);
		lock_take(&n->lock);
		lock_take(&p->lock);
		s->doomed_listed = false;
		lock_drop(&p->lock);
		if (s->opens == 0 && s->holds == 0 && !s->flushing &&
		    hydrate_quiet(p, s, false) && synced == 0)
			gone = scratch_destroy(p, s) == 0;
		else if (s->opens > 0)
			gone = true; /* reopened: its last close lists it again */
		lock_drop(&n->lock);
		node_unref(p->tree, n);
		if (!gone)
			evict_add_doomed(p, s);
	}
	node_unref(p->tree, done.last);
	free(list);
}

/* ---- the thread ---- */

static void *house_main(void *arg)
{
	struct pool *p = arg;
	uint64_t interval = MIN_OF((uint64_t)HOUSE_MS, p->sync_ms);

	lock_take(&p->lock);
	while (!atomic_load(&p->stopping)) {
		if (!p->house_wanted)
			(void)lock_wait_ms(&p->lock, &p->house, interval);
		p->house_wanted = false;
		lock_drop(&p->lock);
		content_house(p);
		evict_house(p);
		flush_house(p);
		sync_house(p);
		evict_doomed(p);
		unborn_house(p);
		tree_give_back(p->tree);
		lock_take(&p->lock);
	}
	lock_drop(&p->lock);
	return NULL;
}

errint_t evict_start(struct pool *p)
{
	struct space space;
	errint_t r;

	/* Known before the first request: an earlier run may have left it full. */
	lock_take(&p->lock);
	atomic_store(&p->no_space, measure_disk(p, &space) && below_mark(&space, 1));
	evict_measure(p);
	lock_drop(&p->lock);
	r = thread_start(&p->housekeeper, "housekeeper", house_main, p);

	p->house_running = r == 0;
	return r;
}

void evict_stop(struct pool *p)
{
	if (!p->house_running)
		return;
	lock_take(&p->lock);
	atomic_store(&p->stopping, true);
	pthread_cond_broadcast(&p->house);
	lock_drop(&p->lock);
	(void)pthread_join(p->housekeeper, NULL);
	p->house_running = false;
}
