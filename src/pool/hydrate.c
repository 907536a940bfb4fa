/*
 * Hydration: filling a scratch from its object, frame by frame, in parallel, each frame once.
 *
 *   hydrating --hydrate_range(everything)--> clean            [hydrate_finish]
 *   hydrating --last close of a broken one--> cold            [scratch_destroy]
 *   hydrating --cut to nothing--> dirty                       [hydrate_abandon]
 *
 * A frame that is damaged stays MISSING: whoever reads it gets the error, whoever reads the
 * others their bytes.
 *
 * Invariants:
 *  (H1) A frame is decoded by exactly one thread at a time: MISSING -> BUSY under h->lock by the
 *       one that decodes; BUSY -> VALID when its bytes are in the scratch, BUSY -> MISSING when
 *       that failed. Whoever needs a BUSY frame waits on h->changed and looks again, on
 *       failure too: then it claims the frame itself and meets the error itself.
 *  (H2) Bytes of a scratch are believed only where the frame is VALID. The bitmap lives in
 *       memory only; the record says RECORD_PARTIAL from before the first byte until after
 *       the last, so that a restart throws a half-filled scratch away.
 *  (H3) Nothing is written by users while hydration != NULL: opening for writing hydrates
 *       everything first. So a hole never means anything.
 *  (H5) Hydration stops where the pool's disk comes to its stop mark (-ENOSPC): a few stored bytes
 *       may stand for petabytes.
 *  (H4) s->hydration is set and cleared under node->lock; a thread that works on it holds a
 *       count in h->users, and the last count frees it.
 *
 * No lock is held while decoding.
 */
#include <string.h>
#include <unistd.h>

#include "base/workers.h"
#include "pool/internal.h"

#define CLAIM_MAX 32 /* frames claimed in one go: bounds memory to threads * frame */

void hydrate_free(struct hydration *h)
{
	if (!h)
		return;
	object_close(&h->object);
	(void)sys_close(h->fd);
	framehash_free(h->frames);
	free(h->state);
	pthread_cond_destroy(&h->changed);
	lock_clear(&h->lock);
	free(h);
}

errint_t hydrate_begin(struct pool *p, struct scratch *s, int fd, struct object *object)
{
	struct hydration *h;
	errint_t r;

	lock_assert_held(&s->node->lock);
	INVARIANT(!s->hydration && s->fd >= 0);
	if (object->logical_size != OBJECT_SIZE_UNKNOWN) {
		r = sys_ftruncate(s->fd, (off_t)object->logical_size);
		if (r < 0)
			goto fail;
	}
	h = xcalloc(1, sizeof(*h));
	lock_init(&h->lock, LOCK_LEAF);
	lock_cond_init(&h->changed);
	h->object = *object;
	h->fd = fd;
	h->object.fd = fd;
	h->users = 1;
	h->units = object->kind == OBJECT_SEEKABLE ? object->table.count : 1;
	h->state = calloc(MAX_OF(h->units, 1), 1);
	if (!h->state) {
		hydrate_free(h);
		return -ENOMEM;
	}
	h->missing = h->units;
	if (object->kind == OBJECT_SEEKABLE)
		h->frames = framehash_new(&object->table);
	for (size_t i = 0; object->kind == OBJECT_SEEKABLE && i < h->units; i++) {
		if (object->table.entries[i].logical_len == 0) {
			h->state[i] = FRAME_VALID;
			h->missing--;
		}
	}
	s->hydration = h;
	atomic_store(&s->whole, false);
	return 0;
fail:
	object_close(object);
	(void)sys_close(fd);
	return r;
}

bool hydrate_abandon(struct scratch *s, struct hydration **ret)
{
	struct hydration *h = s->hydration;

	lock_assert_held(&s->node->lock);
	if (!h || h->users > 1)
		return false;
	s->hydration = NULL;
	*ret = h;
	return true;
}

void hydrate_resume(struct scratch *s, struct hydration *h)
{
	s->hydration = h;
}

/* First and one past the last unit that [off, off + len) needs. */
static void units_of(const struct hydration *h, uint64_t off, uint64_t len, size_t *from,
                     size_t *to)
{
	uint64_t end = off + len < off ? UINT64_MAX : off + len;

	*from = 0;
	*to = h->units;
	if (h->object.kind != OBJECT_SEEKABLE)
		return;
	*from = seektable_find(&h->object.table, off);
	*to = end == 0 ? 0 : seektable_find(&h->object.table, end - 1);
	*to = MIN_OF(*to + 1, h->units);
}

bool hydrate_is_ready(struct scratch *s, uint64_t off, uint64_t len)
{
	struct hydration *h;
	bool ready = true;
	size_t from, to;

	if (atomic_load(&s->whole))
		return true;
	lock_take(&s->node->lock);
	h = s->hydration;
	if (h) {
		units_of(h, off, len, &from, &to);
		lock_take(&h->lock);
		for (size_t i = from; ready && i < to; i++)
			ready = h->state[i] == FRAME_VALID;
		lock_drop(&h->lock);
	}
	lock_drop(&s->node->lock);
	return ready;
}

struct batch {
	struct scratch *s;
	struct hydration *h;
	uint64_t limit;
	size_t units[CLAIM_MAX];
	errint_t results[CLAIM_MAX];
	size_t n;
};

static errint_t decode_frame(struct scratch *s, struct hydration *h, size_t unit,
                             char **cause)
{
	const struct seek_entry *e = &h->object.table.entries[unit];
	void *buf = malloc(e->logical_len);
	errint_t r;

	if (!buf)
		return -ENOMEM;
	r = object_decode_frame(&h->object, unit, buf, cause);
	if (r == 0)
		r = evict_make_room(s->pool, e->logical_len); /* (H5) */
	if (r == 0 && h->frames)
		framehash_take(h->frames, unit, buf);
	if (r == 0)
		r = full_pwrite(s->fd, buf, e->logical_len, (off_t)e->logical_off);
	free(buf);
	return r;
}

/* A foreign or plain object is one unit: decoded in order. */
static errint_t decode_whole(struct scratch *s, struct hydration *h, uint64_t limit,
                             char **cause)
{
	uint64_t end = 0, size = h->object.logical_size, room = UINT64_MAX;
	errint_t r = 0;

	if (size != OBJECT_SIZE_UNKNOWN)
		r = evict_make_room(s->pool, size); /* (H5) */
	else
		room = evict_room(s->pool);
	if (r == 0)
		r = object_extract(&h->object, 0, size, s->fd, 1, MIN_OF(limit, room), &end,
		                   cause);
	if (r == -EFBIG && room < limit)
		r = -ENOSPC;
	if (r < 0)
		return r;
	if (size != OBJECT_SIZE_UNKNOWN && end != size)
		return set_cause(cause, -EUCLEAN, "decodes to %llu bytes instead of %llu",
		                 (unsigned long long)end, (unsigned long long)size);
	return sys_ftruncate(s->fd, (off_t)end);
}

/* Damage is listed, and said once. */
static void say_failed(struct batch *b, size_t unit, errint_t err, const char *cause)
{
	const struct object *o = &b->h->object;
	struct node *n = b->s->node;
	struct object_range range = {0};
	cleanup_free char *path = NULL;

	if (o->kind == OBJECT_SEEKABLE)
		range = (struct object_range){o->table.entries[unit].logical_off,
		                              o->table.entries[unit].logical_len};
	if (err == -EUCLEAN && !damage_note(b->s->pool, n, range, cause))
		return;
	path = node_path(b->s->pool->tree, n);
	if (range.len > 0)
		log_err("cannot decode bytes %ju-%ju of \"%s\": %s; reading them answers "
		        "an error",
		        (uintmax_t)range.off, (uintmax_t)(range.off + range.len - 1), path,
		        cause);
	else
		log_err("cannot decode \"%s\": %s; reading it answers an error", path,
		        cause);
}

static errint_t decode_unit(void *ctx, size_t i)
{
	struct batch *b = ctx;
	cleanup_free char *cause = NULL;
	errint_t r;

	if (b->h->object.kind == OBJECT_SEEKABLE)
		r = decode_frame(b->s, b->h, b->units[i], &cause);
	else
		r = decode_whole(b->s, b->h, b->limit, &cause);
	if (r < 0)
		say_failed(b, b->units[i], r, cause ? cause : strerror(-r));
	b->results[i] = r;
	return 0;
}

/* Claims up to CLAIM_MAX missing units in [from, to). Returns how many; *ret_busy tells whether
 * others are at work on any. */
static size_t claim(struct hydration *h, size_t from, size_t to, struct batch *b,
                    bool *ret_busy)
{
	*ret_busy = false;
	b->n = 0;
	for (size_t i = from; i < to && b->n < CLAIM_MAX; i++) {
		if (h->state[i] == FRAME_MISSING) {
			h->state[i] = FRAME_BUSY;
			b->units[b->n++] = i;
		} else if (h->state[i] == FRAME_BUSY) {
			*ret_busy = true;
		}
	}
	return b->n;
}

static errint_t settle(struct hydration *h, const struct batch *b)
{
	errint_t r = 0;

	lock_take(&h->lock);
	for (size_t i = 0; i < b->n; i++) {
		h->state[b->units[i]] = b->results[i] == 0 ? FRAME_VALID : FRAME_MISSING;
		if (b->results[i] == 0)
			h->missing--;
		else if (r == 0)
			r = b->results[i];
	}
	pthread_cond_broadcast(&h->changed);
	lock_drop(&h->lock);
	return r;
}

/* hydrating -> clean: everything is there. node->lock held. */
static errint_t hydrate_finish(struct pool *p, struct scratch *s)
{
	struct hydration *h = s->hydration;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}};
	struct record before = s->record;
	struct stat st;
	errint_t r = sys_fstat(h->fd, &st);

	if (r == 0) {
		/* A scratch that is opened for writing and not written must not show another
		 * mtime than its object. */
		ts[1] = st.st_mtim;
		r = sys_futimens(s->fd, ts);
	}
	if (r == 0) {
		s->record.flags &= ~RECORD_PARTIAL; /* (H2) */
		r = scratch_record(p, s);
	}
	if (r < 0) {
		s->record = before;
		return r;
	}
	s->hydration = NULL;
	s->frames = steal_pointer(&h->frames);
	atomic_store(&s->whole, true);
	scratch_sample(p, s);
	if (--h->users == 0)
		hydrate_free(h);
	return 0;
}

errint_t hydrate_range(struct pool *p, struct scratch *s, uint64_t off, uint64_t len)
{
	struct node *n = s->node;
	struct batch b = {.s = s, .limit = p->max_object};
	struct hydration *h;
	size_t from, to;
	bool busy = true;
	errint_t r = 0;

	lock_take(&n->lock);
	h = s->hydration;
	if (!h) {
		lock_drop(&n->lock);
		return 0;
	}
	h->users++; /* (H4) */
	lock_drop(&n->lock);
	b.h = h;
	units_of(h, off, len, &from, &to);
	while (r == 0) {
		lock_take(&h->lock);
		if (claim(h, from, to, &b, &busy) == 0 && busy)
			lock_wait(&h->lock, &h->changed);
		lock_drop(&h->lock);
		if (b.n == 0 && !busy)
			break;
		if (b.n == 0)
			continue;
		(void)parallel_for(p->decode_threads, b.n, decode_unit, &b);
		r = settle(h, &b);
		step("hydrate.batch");
	}
	lock_take(&n->lock);
	if (r == 0 && s->hydration == h) {
		lock_take(&h->lock);
		busy = h->missing > 0;
		lock_drop(&h->lock);
		if (!busy)
			r = hydrate_finish(p, s);
	}
	if (--h->users == 0)
		hydrate_free(h);
	lock_drop(&n->lock);
	return r;
}
