/*
 * Read-ahead: a few threads that decode what somebody will need soon.
 *
 * Four kinds of work, most urgent first; each thread takes one unit of the most urgent kind there
 * is, from the files that have some in turn:
 *
 *   WORK_HELP      somebody waits for many units (hydrate_range: files up to eager_size, opening
 *                  for writing): the threads take those that he has not come to yet
 *   WORK_AHEAD     units in the window of a sequential reader
 *   WORK_BEHIND    what such a reader has passed goes from memory into the scratch: by a thread of
 *                  low priority
 *   WORK_COMPLETE  the rest of a file that was read in earnest (EARNEST of it) and fits into the
 *                  pool: by the same thread, only while nobody waits for a decoder and no
 *                  window is open; goes on after the last close
 *
 * Readers are known by their offsets alone (handles of one file may share a position, a kernel
 * reads ahead by itself and out of order): a request near where one of READERS ended belongs to
 * it. The window grows with what the reader has gone through, up to WINDOW_MAX, so random
 * reads cause none; it ends WINDOW_MAX before what was asked for last, which is the
 * back-pressure: a reader that stops stops the read-ahead. The last close forgets all readers.
 *
 * Invariants:
 *  (R1) A file with work is listed; being listed is a count in h->users (H4), given back under
 *       node->lock by whoever takes it off the list: a thread of ours that found no work, or
 *       readahead_forget().
 *  (R2) Work that is raised while a thread looks in vain is seen: h->raised differs then.
 *  (R3) Whoever waits for bytes gets a slot before a thread of ours does. A thread that has a slot
 *       waits for nobody.
 *
 * Memory: `slots_max` slots with one unit stored and decoded each; decoded and not kept:
 * HELD_TOTAL, above which nobody reads ahead, plus one unit for each reader that waits. Of their
 * buffers SPARE_BYTES are kept until none has been wanted for IDLE_MS to twice that.
 *
 * Locks: ra->lock and h->lock are leaves and never held together; that of the buffers lies below
 * both.
 */
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/buffers.h"
#include "base/workers.h"
#include "pool/internal.h"
#include "pool/readahead.h"

#include "utlist.h"

#define WINDOW_MAX  (16ULL << 20)
#define WINDOW_SEEN (256ULL << 10) /* gone through before there is a window */
#define NEAR        (4ULL << 20)   /* how far off a kernel's own read-ahead may be */
#define EARNEST     4              /* a quarter was read */
#define HELD_TOTAL  (128ULL << 20)
#define SPARE_BYTES (48ULL << 20)
#define IDLE_MS     5000
#define NICE        10

enum work { WORK_HELP = 1, WORK_AHEAD = 2, WORK_BEHIND = 4, WORK_COMPLETE = 8 };

struct readahead {
	/* constant after readahead_start() */
	unsigned threads; /* 0: none */
	pthread_t *thread;
	pthread_t completer;
	bool completer_runs;

	struct lock lock;    /* LOCK_LEAF */
	pthread_cond_t work; /* something was raised, or a slot is free */
	pthread_cond_t slot; /* for those who wait for bytes */
	/* under lock */
	bool stopping;
	struct hydration *list;
	unsigned slots_used, slots_max;
	unsigned waiting; /* in readahead_slot() */
	bool trimming;    /* the completer looks after spare buffers */

	struct buffers buffers;
};

/* ---- slots ---- */

static errint_t slot_room(struct buffers *from, uint8_t **buf, size_t *room, size_t len)
{
	if (*room >= len)
		return 0;
	buffer_put(from, *buf, *room);
	*buf = buffer_get(from, len, room);
	return *buf ? 0 : -ENOMEM;
}

errint_t readahead_slot_room(struct decode_slot *slot, size_t stored, size_t logical)
{
	errint_t r = slot_room(slot->from, &slot->stored, &slot->stored_room, stored);

	return r < 0 ? r
	             : slot_room(slot->from, &slot->logical, &slot->logical_room, logical);
}

/* ra->lock held; there is one left. */
static struct decode_slot *slot_take(struct readahead *ra)
{
	struct decode_slot *slot = xcalloc(1, sizeof(*slot));

	slot->from = &ra->buffers;
	ra->slots_used++;
	return slot;
}

struct decode_slot *readahead_slot(struct pool *p)
{
	struct readahead *ra = p->readahead;
	struct decode_slot *slot;

	lock_take(&ra->lock);
	ra->waiting++;
	while (ra->slots_used >= ra->slots_max)
		lock_wait(&ra->lock, &ra->slot);
	ra->waiting--;
	slot = slot_take(ra);
	lock_drop(&ra->lock);
	return slot;
}

static void slot_free(struct decode_slot *slot)
{
	buffer_put(slot->from, slot->stored, slot->stored_room);
	buffer_put(slot->from, slot->logical, slot->logical_room);
	free(slot);
}

/* After slot_free(): another may be taken. ra->lock held. */
static void slot_gone(struct readahead *ra)
{
	bool trim = !ra->trimming;

	ra->slots_used--;
	ra->trimming = true;
	if (ra->waiting > 0)
		pthread_cond_signal(&ra->slot);
	if (trim || (ra->waiting == 0 && ra->list))
		pthread_cond_broadcast(&ra->work);
}

void readahead_slot_end(struct pool *p, struct decode_slot *slot)
{
	struct readahead *ra = p->readahead;

	slot_free(slot);
	lock_take(&ra->lock);
	slot_gone(ra);
	lock_drop(&ra->lock);
}

/* ---- bytes in memory ---- */

struct held_frame *readahead_held_new(struct pool *p, size_t len)
{
	size_t room;
	uint8_t *data = buffer_get(&p->readahead->buffers, len, &room);
	struct held_frame *f;

	if (!data)
		return NULL;
	f = xcalloc(1, sizeof(*f));
	f->data = data;
	f->room = room;
	f->len = len;
	atomic_init(&f->refs, 1);
	atomic_fetch_add(&p->held_bytes, len);
	return f;
}

void readahead_held_free(struct pool *p, struct held_frame *f)
{
	atomic_fetch_sub(&p->held_bytes, f->len);
	buffer_put(&p->readahead->buffers, f->data, f->room);
	free(f);
}

/* ---- raising and forgetting ---- */

/* (R1), (R2) node->lock held. */
static void raise_work(struct pool *p, struct hydration *h, unsigned work)
{
	struct readahead *ra = p->readahead;

	lock_assert_held(&h->node->lock);
	if (ra->threads == 0)
		return;
	lock_take(&ra->lock);
	if (!ra->stopping) {
		h->work |= work;
		h->raised++;
		if (!h->listed) {
			hydrate_get(h);
			h->listed = true;
			DL_APPEND(ra->list, h);
		}
		pthread_cond_broadcast(&ra->work);
	}
	lock_drop(&ra->lock);
}

/* Taken off the list by the caller: gives the count back. */
static void unlisted(struct pool *p, struct hydration *h)
{
	struct node *n = h->node;

	node_ref(p->tree, n);
	lock_take(&n->lock);
	hydrate_put(h);
	lock_drop(&n->lock);
	node_unref(p->tree, n);
}

void readahead_forget(struct pool *p, struct hydration *h, bool complete)
{
	struct readahead *ra = p->readahead;
	bool off = false;

	lock_assert_held(&h->node->lock);
	lock_take(&h->lock);
	memset(h->readers, 0, sizeof(h->readers));
	if (complete)
		h->completing = false;
	lock_drop(&h->lock);
	lock_take(&ra->lock);
	h->work &= complete ? 0U : (unsigned)WORK_COMPLETE | WORK_BEHIND;
	if (h->listed && h->at_work == 0 && h->work == 0) {
		DL_DELETE(ra->list, h);
		h->listed = false;
		off = true;
	}
	lock_drop(&ra->lock);
	if (off)
		hydrate_put(h);
}

/* ---- readers ---- */

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

/* The reader that this request continues, or the place of the one seen longest ago. */
static struct reader *find_reader(struct hydration *h, uint64_t off)
{
	struct reader *best = NULL, *oldest = &h->readers[0];

	for (size_t i = 0; i < READERS; i++) {
		struct reader *r = &h->readers[i];

		if (r->seen > 0 && distance(r->pos, off) <= NEAR &&
		    (!best || distance(r->pos, off) < distance(best->pos, off)))
			best = r;
		if (r->used < oldest->used)
			oldest = r;
	}
	if (!best) {
		best = oldest;
		*best = (struct reader){.pos = off}; /* its first request */
	}
	return best;
}

static bool is_sequential(const struct reader *r)
{
	return r->requests > 1 && r->seen >= WINDOW_SEEN;
}

/* h->lock held. True: there are more units to look after. */
static bool move_window(struct hydration *h, struct reader *r)
{
	uint64_t window = MIN_OF(r->seen, WINDOW_MAX);
	size_t from, to, before = r->ahead_to;

	if (!is_sequential(r))
		return false;
	hydrate_units_of(h, r->pos, window, &from, &to);
	r->next = MAX_OF(r->next, from);
	r->ahead_to = MAX_OF(r->ahead_to, to);
	return r->ahead_to > before;
}

static bool read_in_earnest(const struct hydration *h)
{
	return h->object.logical_size != OBJECT_SIZE_UNKNOWN && (h->fits || h->in_order) &&
	       h->read_bytes >= h->object.logical_size / EARNEST;
}

bool readahead_note(struct pool *p, struct hydration *h, uint64_t off, uint64_t len)
{
	uint64_t size = h->object.logical_size, end;
	bool more, complete, sequential;
	struct reader *r;

	if (off >= size)
		return false;
	end = off + MIN_OF(len, size - off);
	lock_take(&h->lock);
	r = find_reader(h, off);
	r->used = ++h->reads;
	r->requests++;
	if (end > r->pos) {
		r->seen += end - MAX_OF(off, r->pos);
		h->read_bytes += end - MAX_OF(off, r->pos);
		r->pos = end;
	}
	more = move_window(h, r);
	sequential = is_sequential(r);
	complete = !h->completing && p->limit_bytes >= size && read_in_earnest(h);
	if (complete)
		h->completing = true;
	lock_drop(&h->lock);
	if (more)
		raise_work(p, h, WORK_AHEAD);
	if (complete)
		raise_work(p, h, WORK_COMPLETE);
	return sequential;
}

void readahead_behind(struct pool *p, struct hydration *h)
{
	bool completing;

	lock_take(&h->node->lock);
	lock_take(&h->lock);
	completing = h->completing;
	lock_drop(&h->lock);
	raise_work(p, h, completing ? WORK_BEHIND | WORK_COMPLETE : WORK_BEHIND);
	lock_drop(&h->node->lock);
}

void readahead_help(struct pool *p, struct hydration *h, struct want *w)
{
	lock_take(&h->lock);
	LL_PREPEND2(h->wants, w, link);
	lock_drop(&h->lock);
	raise_work(p, h, WORK_HELP);
}

void readahead_help_end(struct hydration *h, struct want *w)
{
	lock_take(&h->lock);
	LL_DELETE2(h->wants, w, link);
	lock_drop(&h->lock);
}

/* ---- the threads ---- */

static bool claim_help(struct hydration *h, size_t *ret)
{
	struct want *w;

	LL_FOREACH2(h->wants, w, link)
	{
		if (hydrate_claim(h, &w->next, w->to, CLAIM_SKIP_BAD, ret) == CLAIM_GOT)
			return true;
	}
	return false;
}

static bool claim_ahead(struct pool *p, struct hydration *h, size_t *ret)
{
	for (size_t i = 0; i < READERS; i++) {
		struct reader *r = &h->readers[i];

		if (r->next >= r->ahead_to)
			continue;
		if (hydrate_would_hold(p, h, r->next, KEEP_PASSING) &&
		    atomic_load(&p->held_bytes) >= HELD_TOTAL)
			continue;
		if (hydrate_claim(h, &r->next, r->ahead_to, CLAIM_HELD_OK | CLAIM_SKIP_BAD,
		                  ret) == CLAIM_GOT)
			return true;
	}
	return false;
}

static bool claim_completion(struct hydration *h, size_t *ret)
{
	if (!h->completing || h->tail) /* tail.c, T2 */
		return false;
	if (hydrate_claim(h, &h->complete_next, h->units, CLAIM_HELD_OK | CLAIM_SKIP_BAD,
	                  ret) == CLAIM_GOT)
		return true;
	h->completing = h->held != NULL; /* which may be dropped yet */
	return false;
}

static bool claim_for(struct pool *p, struct hydration *h, enum work work, size_t *ret)
{
	bool got = false;

	lock_take(&h->lock);
	switch (work) {
	case WORK_HELP:
		got = claim_help(h, ret);
		break;
	case WORK_AHEAD:
		got = claim_ahead(p, h, ret);
		break;
	case WORK_COMPLETE:
		got = claim_completion(h, ret);
		break;
	case WORK_BEHIND:
		break;
	}
	lock_drop(&h->lock);
	return got;
}

/* A descriptor of our own: the file may be closed, or be closed meanwhile. */
static int own_fd(struct pool *p, struct hydration *h)
{
	struct scratch *s;
	int fd;

	lock_take(&h->node->lock);
	s = h->node->scratch;
	INVARIANT(s && s->hydration == h); /* a unit is missing */
	if (s->fd >= 0) {
		fd = fcntl(s->fd, F_DUPFD_CLOEXEC, 3);
		fd = fd < 0 ? -errno : fd;
	} else {
		fd = scratch_open_fd(p, s, O_RDWR);
	}
	lock_drop(&h->node->lock);
	return fd;
}

static bool work_behind(struct pool *p, struct hydration *h)
{
	struct held_frame *f;
	bool done;
	int fd;

	lock_take(&h->lock);
	f = hydrate_claim_held(h);
	lock_drop(&h->lock);
	if (!f)
		return false;
	fd = own_fd(p, h);
	done = hydrate_write_behind(p, h, f, fd);
	if (fd >= 0)
		(void)sys_close(fd);
	return done;
}

/* One unit. False: there was nothing to do, or it cannot be done now. */
static bool work_once(struct pool *p, struct hydration *h, enum work work,
                      struct decode_slot *slot)
{
	enum keep keep = work == WORK_AHEAD ? KEEP_PASSING : KEEP_ALWAYS;
	size_t unit;
	errint_t r;
	int fd;

	if (work == WORK_BEHIND)
		return work_behind(p, h);
	if (!claim_for(p, h, work, &unit))
		return false;
	/* From here to its settling the unit is missing, so the scratch stays. */
	fd = own_fd(p, h);
	if (fd < 0) {
		hydrate_unclaim(h, unit);
		return false;
	}
	r = hydrate_unit(p, h, unit, keep, fd, slot, NULL);
	(void)sys_close(fd);
	if (work == WORK_AHEAD)
		count_one(COUNTER_FRAMES_AHEAD);
	else if (work == WORK_COMPLETE)
		count_one(COUNTER_FRAMES_COMPLETED);
	return r == 0 || r == -EUCLEAN;
}

/* The first file with the most urgent of these kinds of work. ra->lock held. */
static struct hydration *choose(const struct readahead *ra, unsigned kinds, enum work *ret)
{
	static const enum work order[] = {WORK_HELP, WORK_AHEAD, WORK_BEHIND,
	                                  WORK_COMPLETE};
	struct hydration *h;

	for (size_t i = 0; i < ARRAY_LEN(order); i++) {
		if (!(kinds & (unsigned)order[i]))
			continue;
		DL_FOREACH (ra->list, h) {
			if (h->work & (unsigned)order[i]) {
				*ret = order[i];
				return h;
			}
		}
	}
	return NULL;
}

/* Of these kinds those that may be worked at now (R3). ra->lock held. */
static unsigned allowed(const struct readahead *ra, unsigned kinds)
{
	enum work more;

	if (kinds & WORK_COMPLETE) {
		bool idle = ra->waiting == 0 && ra->slots_used == 0 &&
		            !choose(ra, WORK_HELP | WORK_AHEAD, &more);

		return idle ? kinds : kinds & ~(unsigned)WORK_COMPLETE;
	}
	return ra->waiting > 0 || ra->slots_used >= ra->slots_max ? 0 : kinds;
}

/* One turn with h. ra->lock held before and after, but not all the time. */
static void take_turn(struct pool *p, struct hydration *h, enum work work)
{
	struct readahead *ra = p->readahead;
	bool decodes = work != WORK_BEHIND;
	struct decode_slot *slot = decodes ? slot_take(ra) : NULL;
	uint32_t raised = h->raised;
	bool done;

	h->at_work++;
	DL_DELETE(ra->list, h); /* to the end: files take turns */
	DL_APPEND(ra->list, h);
	lock_drop(&ra->lock);
	done = work_once(p, h, work, slot);
	if (decodes)
		slot_free(slot);
	lock_take(&ra->lock);
	if (decodes)
		slot_gone(ra);
	h->at_work--;
	if (!done && h->raised == raised) /* (R2) */
		h->work &= ~(unsigned)work;
	if (h->at_work == 0 && h->work == 0) {
		DL_DELETE(ra->list, h);
		h->listed = false;
		pthread_cond_broadcast(&ra->work); /* the background pass may begin */
		lock_drop(&ra->lock);
		unlisted(p, h);
		lock_take(&ra->lock);
	}
}

/* ra->lock held. The completer gives buffers back that nobody has wanted for a while. */
static void wait_for_work(struct pool *p, unsigned kinds)
{
	struct readahead *ra = p->readahead;

	if (!(kinds & WORK_COMPLETE) || !ra->trimming)
		lock_wait(&ra->lock, &ra->work);
	else if (!lock_wait_ms(&ra->lock, &ra->work, IDLE_MS))
		ra->trimming =
		    buffers_trim(&ra->buffers) || atomic_load(&p->held_bytes) > 0;
}

static void run(struct pool *p, unsigned kinds)
{
	struct readahead *ra = p->readahead;
	struct hydration *h;
	enum work work;

	lock_take(&ra->lock);
	while (!ra->stopping) {
		h = choose(ra, allowed(ra, kinds), &work);
		if (h)
			take_turn(p, h, work);
		else
			wait_for_work(p, kinds);
	}
	lock_drop(&ra->lock);
}

static void *ahead_main(void *arg)
{
	run(arg, WORK_HELP | WORK_AHEAD);
	return NULL;
}

static void *completer_main(void *arg)
{
	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
	run(arg, WORK_BEHIND | WORK_COMPLETE);
	return NULL;
}

/* ---- start and end ---- */

void readahead_new(struct pool *p)
{
	struct readahead *ra = xcalloc(1, sizeof(*ra));

	lock_init(&ra->lock, LOCK_LEAF);
	lock_cond_init(&ra->work);
	lock_cond_init(&ra->slot);
	buffers_init(&ra->buffers, SPARE_BYTES);
	ra->slots_max = 2 * p->decode_threads;
	p->readahead = ra;
}

errint_t readahead_start(struct pool *p)
{
	struct readahead *ra = p->readahead;
	errint_t r = 0;

	ra->thread = xcalloc(p->decode_threads, sizeof(*ra->thread));
	while (ra->threads < p->decode_threads && r == 0) {
		r = thread_start(&ra->thread[ra->threads], "readahead", ahead_main, p);
		if (r == 0)
			ra->threads++;
	}
	ra->completer_runs =
	    thread_start(&ra->completer, "completer", completer_main, p) == 0;
	return ra->threads > 0 ? 0 : r;
}

void readahead_stop(struct pool *p)
{
	struct readahead *ra = p->readahead;
	struct hydration *h;

	lock_take(&ra->lock);
	ra->stopping = true;
	pthread_cond_broadcast(&ra->work);
	lock_drop(&ra->lock);
	while (ra->threads > 0)
		INVARIANT(pthread_join(ra->thread[--ra->threads], NULL) == 0);
	if (ra->completer_runs)
		INVARIANT(pthread_join(ra->completer, NULL) == 0);
	ra->completer_runs = false;
	free(steal_pointer(&ra->thread));
	while ((h = ra->list) != NULL) {
		DL_DELETE(ra->list, h);
		h->listed = false;
		unlisted(p, h);
	}
}

void readahead_free(struct pool *p)
{
	struct readahead *ra = p->readahead;

	buffers_clear(&ra->buffers);
	pthread_cond_destroy(&ra->work);
	pthread_cond_destroy(&ra->slot);
	lock_clear(&ra->lock);
	free(steal_pointer(&p->readahead));
}
