/*
 * Hydration: filling a scratch from its object, unit by unit, each decoded once.
 *
 *   hydrating --the last unit is VALID--> clean               [hydrate_finish]
 *   hydrating --evicted, or last close of a broken one--> cold     [scratch_destroy]
 *   hydrating --cut to nothing--> dirty                       [hydrate_abandon, tail_cut]
 *
 * Three kinds of threads decode: those that need the bytes (hydrate_range, and reading.c),
 * those of readahead.c ahead of a reader, and its background pass. All go the same way:
 * hydrate_claim(), hydrate_unit().
 *
 * Invariants:
 *  (H1) A unit is decoded by exactly one thread at a time: MISSING -> BUSY under h->lock by the
 *       one that decodes; BUSY -> VALID when its bytes are in the scratch, -> HELD when they
 *       are in memory only, -> BAD when they are damaged, -> MISSING when something else failed.
 *       Whoever needs a BUSY unit waits on h->changed and looks again, on failure too: then it
 *       claims the unit itself and meets the error itself. BAD stays until the file is opened
 *       anew: damage does not go away by reading it again and again.
 *  (H2) Bytes of a scratch are believed only where the unit is VALID. The bitmap lives in
 *       memory only; the record says RECORD_PARTIAL from before the first byte until after
 *       the last, so that a restart throws a half-filled scratch away.
 *  (H3) Nothing is written by users below h->ask while hydration != NULL: opening for writing
 *       hydrates everything first, and fails where that fails; or (tail.c) the first change
 *       that is no append does. So a hole never means anything.
 *  (H4) s->hydration is set and cleared under node->lock; a thread that works on it holds a
 *       count in h->users, and the last count frees it. A scratch is destroyed only when
 *       s->hydration is the one count left (hydrate_quiet).
 *  (H5) A foreign object gives its bytes before the checksum of their frame: a unit of one is
 *       VALID from then on, but when damage shows later, all units of that frame become BAD.
 *       What the kernel has cached of them by then stays there until it is dropped. Up to
 *       eager_size nothing is served before all of it is proved.
 *  (H6) Hydration stops where the pool's disk comes to its stop mark (-ENOSPC): a few stored
 *       bytes may stand for petabytes.
 *
 * What is kept (enum keep): all units of a file that fits into the pool. What a sequential reader
 * passes is in memory first and goes into the scratch behind it (HELD -> WRITING -> VALID), at
 * low priority: the reader waits neither for the copy nor for the pool's disk. Where that is too
 * slow, what was passed is dropped, and decoded once more by the background pass. Of a file that
 * does not fit, and where the pool's disk is full, what is read here and there is kept as long as
 * there is room, and what is passed is dropped, so that reading a file of any size does not
 * displace the others. Opening for writing keeps all.
 *
 * Memory: the slots of readahead.c (one unit decoded and stored each), HELD_BYTES (held.c) for each
 * file that is read in order (HELD_TOTAL of readahead.c for all), a decoder's window for each
 * foreign file while it is open. No lock is held while decoding.
 */
#include <string.h>
#include <unistd.h>

#include "base/cancel.h"
#include "pool/held.h"
#include "pool/internal.h"
#include "pool/readahead.h"

#include "utlist.h"

#define SAMPLE_BYTES                                                                       \
	(16ULL << 20) /* kept since the pool's figures were brought up to date */

/* ---- geometry ---- */

uint64_t hydrate_unit_off(const struct hydration *h, size_t unit)
{
	if (h->object.kind == OBJECT_SEEKABLE)
		return h->object.table.entries[unit].logical_off;
	return (uint64_t)unit * OBJECT_PIECE;
}

uint64_t hydrate_unit_len(const struct hydration *h, size_t unit)
{
	if (h->object.kind == OBJECT_SEEKABLE)
		return h->object.table.entries[unit].logical_len;
	if (h->object.logical_size == OBJECT_SIZE_UNKNOWN)
		return UINT64_MAX;
	return MIN_OF(h->object.logical_size - hydrate_unit_off(h, unit),
	              (uint64_t)OBJECT_PIECE);
}

void hydrate_units_of(const struct hydration *h, uint64_t off, uint64_t len, size_t *from,
                      size_t *to)
{
	uint64_t end = off + len < off ? UINT64_MAX : off + len;

	*from = 0;
	*to = h->units;
	if (h->object.logical_size == OBJECT_SIZE_UNKNOWN)
		return;
	if (off >= h->object.logical_size || end == off) {
		*from = *to = 0;
		return;
	}
	end = MIN_OF(end, h->object.logical_size);
	if (h->object.kind == OBJECT_SEEKABLE) {
		*from = seektable_find(&h->object.table, off);
		*to = seektable_find(&h->object.table, end - 1) + 1;
	} else {
		*from = off / OBJECT_PIECE;
		*to = (end - 1) / OBJECT_PIECE + 1;
	}
}

/* ---- begin and end ---- */

void hydrate_free(struct hydration *h)
{
	if (!h)
		return;
	held_drop(h->p, h);
	object_stream_free(h->stream);
	object_close(&h->object);
	(void)sys_close(h->fd);
	framehash_free(h->frames);
	free(h->state);
	pthread_cond_destroy(&h->changed);
	pthread_cond_destroy(&h->idle);
	lock_clear(&h->lock);
	node_unref(h->p->tree, h->node);
	free(h);
}

void hydrate_put(struct hydration *h)
{
	lock_assert_held(&h->node->lock);
	h->users--;
	if (h->users == 1)
		pthread_cond_broadcast(&h->idle);
	else if (h->users == 0)
		hydrate_free(h);
}

static size_t count_units(const struct object *o)
{
	if (o->kind == OBJECT_SEEKABLE)
		return o->table.count;
	if (o->logical_size == OBJECT_SIZE_UNKNOWN)
		return 1;
	return (o->logical_size + OBJECT_PIECE - 1) / OBJECT_PIECE;
}

/* All of a file is kept if it leaves half of the pool to the others. */
static bool file_fits(const struct pool *p, uint64_t size)
{
	return size <= p->limit_bytes / 2;
}

/* Of a foreign object that does not tell its size, from when it was decoded for its attributes. */
static uint64_t known_size(const struct node *n, const struct object *o)
{
	bool same = n->info_valid && n->info.stored_size == o->stored_size &&
	            n->info.trailer_hash[0] == o->trailer_hash[0] &&
	            n->info.trailer_hash[1] == o->trailer_hash[1];

	return same ? n->info.logical_size : OBJECT_SIZE_UNKNOWN;
}

errint_t hydrate_begin(struct pool *p, struct scratch *s, struct node *n, int fd,
                       struct object *object)
{
	errint_t r;

	INVARIANT(!s->node && !s->hydration && s->fd >= 0);
	if (object->logical_size == OBJECT_SIZE_UNKNOWN)
		object->logical_size = known_size(n, object);
	if (object->logical_size != OBJECT_SIZE_UNKNOWN) {
		r = sys_ftruncate(s->fd, (off_t)object->logical_size);
		if (r < 0) {
			object_close(object);
			(void)sys_close(fd);
			return r;
		}
	}
	return hydrate_attach(p, s, n, fd, object, object->logical_size);
}

errint_t hydrate_attach(struct pool *p, struct scratch *s, struct node *n, int fd,
                        struct object *object, uint64_t ask)
{
	struct hydration *h;

	INVARIANT(!s->hydration);
	h = xcalloc(1, sizeof(*h));
	lock_init(&h->lock, LOCK_LEAF);
	lock_cond_init(&h->changed);
	lock_cond_init(&h->idle);
	h->p = p;
	h->node = n;
	node_ref(p->tree, h->node);
	h->s = s;
	h->object = *object;
	h->fd = fd;
	h->object.fd = fd;
	h->ask = ask;
	h->users = 1;
	h->units = count_units(object);
	h->in_order = object->kind == OBJECT_FOREIGN;
	h->fits = file_fits(p, object->logical_size);
	h->state = calloc(MAX_OF(h->units, 1), 1);
	if (!h->state) {
		hydrate_free(h);
		return -ENOMEM;
	}
	h->missing = h->units;
	if (object->kind == OBJECT_SEEKABLE)
		h->frames = framehash_new(&object->table);
	for (size_t i = 0; object->kind == OBJECT_SEEKABLE && i < h->units; i++) {
		if (object->table.entries[i].logical_len == 0 ||
		    object->table.entries[i].logical_off >= ask) {
			h->state[i] = FRAME_VALID;
			h->missing--;
		}
	}
	s->hydration = h;
	atomic_store(&s->whole, false);
	return 0;
}

void hydrate_opened(struct scratch *s)
{
	struct hydration *h = s->hydration;

	lock_assert_held(&s->node->lock);
	if (!h)
		return;
	lock_take(&h->lock);
	h->closed = false;
	for (size_t i = 0; i < h->units; i++) {
		if (h->state[i] == FRAME_BAD)
			h->state[i] = FRAME_MISSING;
	}
	lock_drop(&h->lock);
}

void hydrate_closed(struct pool *p, struct scratch *s)
{
	struct hydration *h = s->hydration;

	lock_assert_held(&s->node->lock);
	if (!h)
		return;
	readahead_forget(p, h, false);
	lock_take(&h->lock);
	h->closed = true;
	if (!h->fits)
		held_drop(p, h);
	if (!h->completing && !h->stream_busy)
		object_stream_free(steal_pointer(&h->stream));
	lock_drop(&h->lock);
}

bool hydrate_quiet(struct pool *p, struct scratch *s, bool wait)
{
	struct hydration *h = s->hydration;

	lock_assert_held(&s->node->lock);
	if (!h || h->users == 1)
		return true;
	readahead_forget(p, h, true);
	lock_take(&h->lock);
	held_drop(p, h);
	lock_drop(&h->lock);
	if (h->users == 1)
		return true;
	if (wait)
		lock_wait(&s->node->lock, &h->idle);
	return false;
}

struct hydration *hydrate_forget(struct scratch *s)
{
	struct hydration *h = s->hydration;

	lock_assert_held(&h->node->lock);
	INVARIANT(h->users == 1);
	lock_take(&h->lock);
	for (size_t i = 0; i < h->units; i++) {
		if (h->state[i] == FRAME_VALID && hydrate_unit_len(h, i) > 0) {
			h->state[i] = FRAME_MISSING;
			h->missing++;
		}
	}
	h->kept_bytes = 0;
	h->order_next = 0;
	lock_drop(&h->lock);
	s->hydration = NULL;
	atomic_store(&s->whole, true);
	return h;
}

/* The record still says PARTIAL: a stop here loses nothing but the warm copy. */
errint_t hydrate_abandon(struct scratch *s, struct hydration **ret)
{
	errint_t r;

	INVARIANT(s->hydration->users == 1);
	r = sys_ftruncate(s->fd, 0);
	if (r == 0)
		*ret = hydrate_forget(s);
	return r;
}

void hydrate_resume(struct scratch *s, struct hydration *h)
{
	atomic_store(&s->whole, false);
	s->hydration = h;
	if (h->object.logical_size != OBJECT_SIZE_UNKNOWN)
		(void)sys_ftruncate(s->fd, (off_t)h->object.logical_size);
}

/* hydrating -> clean: everything is there. node->lock held; fd: the scratch. */
static errint_t hydrate_finish(struct pool *p, struct scratch *s, int fd)
{
	struct hydration *h = s->hydration;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}};
	struct record before = s->record;
	struct stat st;
	errint_t r;

	if (h->tail) {
		r = tail_whole(p, s, fd);
		if (r < 0)
			return r;
		goto end;
	}
	r = sys_fstat(h->fd, &st);
	if (r == 0) {
		/* A scratch that is opened for writing and not written must not show another
		 * mtime than its object. */
		ts[1] = st.st_mtim;
		r = sys_futimens(fd, ts);
	}
	if (r == 0) {
		s->record.flags &= ~RECORD_PARTIAL; /* (H2) */
		r = scratch_record(p, s);
	}
	if (r < 0) {
		s->record = before;
		return r;
	}
	s->frames = steal_pointer(&h->frames);
end:
	s->hydration = NULL;
	atomic_store(&s->whole, true);
	scratch_sample(p, s);
	hydrate_put(h);
	return 0;
}

/* ---- what is kept ---- */

bool hydrate_would_hold(struct pool *p, const struct hydration *h, size_t unit,
                        enum keep keep)
{
	if (keep == KEEP_ALWAYS || h->in_order)
		return false;
	if (h->tail || atomic_load(&p->no_space)) /* tail.c, T2 */
		return true;
	if (keep == KEEP_PASSING)
		return true;
	return !h->fits && h->kept_bytes + hydrate_unit_len(h, unit) > p->limit_bytes / 2;
}

/* ---- claiming and settling (H1) ---- */

static enum claim claim_in_order(struct hydration *h, size_t to, size_t *ret)
{
	size_t unit = h->order_next;

	if (h->stream_busy)
		return CLAIM_BUSY;
	/* Only what is complete lies before: the first that is not VALID is next. */
	while (unit < to && h->state[unit] == FRAME_VALID)
		unit++;
	h->order_next = unit;
	INVARIANT(unit < to && h->state[unit] != FRAME_BUSY);
	if (h->state[unit] == FRAME_BAD)
		return CLAIM_BAD;
	h->state[unit] = FRAME_BUSY;
	h->stream_busy = true;
	*ret = unit;
	return CLAIM_GOT;
}

enum claim hydrate_claim(struct hydration *h, size_t *from, size_t to, unsigned flags,
                         size_t *ret)
{
	bool busy = false, prefix = true;

	lock_assert_held(&h->lock);
	for (size_t i = *from; i < to; i++) {
		switch (h->state[i]) {
		case FRAME_BAD:
			if (!(flags & CLAIM_SKIP_BAD))
				return CLAIM_BAD;
			break;
		case FRAME_HELD:
			if (flags & CLAIM_HELD_OK)
				break;
			h->state[i] = FRAME_BUSY;
			*ret = i;
			return CLAIM_GOT;
		case FRAME_WRITING:
			if (flags & CLAIM_HELD_OK)
				break;
			busy = true;
			prefix = false;
			continue;
		case FRAME_BUSY:
			busy = true;
			prefix = false;
			continue;
		case FRAME_MISSING:
			if (h->in_order)
				return claim_in_order(h, to, ret);
			h->state[i] = FRAME_BUSY;
			*ret = i;
			return CLAIM_GOT;
		default:
			break;
		}
		if (prefix)
			*from = i + 1;
	}
	return busy ? CLAIM_BUSY : CLAIM_NONE;
}

errint_t hydrate_wait(struct hydration *h)
{
	if (!cancel_possible()) {
		lock_wait(&h->lock, &h->changed);
		return 0;
	}
	(void)lock_wait_ms(&h->lock, &h->changed, CANCEL_LOOK_MS);
	lock_drop(&h->lock); /* whoever is asked takes locks of its own */
	if (cancel_wanted()) {
		lock_take(&h->lock);
		return -EINTR;
	}
	lock_take(&h->lock);
	return 0;
}

/* (H5) h->lock held. */
static void spoil_from(struct hydration *h, uint64_t proved)
{
	for (size_t i = 0; i < h->units; i++) {
		if (hydrate_unit_off(h, i) + hydrate_unit_len(h, i) <= proved)
			continue;
		if (h->state[i] == FRAME_VALID)
			h->missing++;
		h->state[i] = FRAME_BAD;
		h->order_next = MIN_OF(h->order_next, i);
	}
}

static void settle(struct pool *p, struct hydration *h, size_t unit, errint_t r,
                   struct held_frame *held)
{
	lock_take(&h->lock);
	INVARIANT(h->state[unit] == FRAME_BUSY);
	if (r == 0 && held) {
		h->state[unit] = FRAME_HELD;
		held_list(p, h, held);
	} else if (r == 0) {
		h->state[unit] = FRAME_VALID;
		h->missing--;
		h->kept_bytes += hydrate_unit_len(h, unit);
		h->unsampled_bytes += hydrate_unit_len(h, unit);
	} else {
		h->state[unit] = r == -EUCLEAN ? FRAME_BAD : FRAME_MISSING;
	}
	if (h->in_order) {
		h->stream_busy = false;
		if (r == -EUCLEAN && h->stream)
			spoil_from(h, object_stream_proved(h->stream));
		if (r < 0 || (h->closed && !h->completing))
			/* begun anew by whoever comes next */
			object_stream_free(steal_pointer(&h->stream));
	}
	pthread_cond_broadcast(&h->changed);
	lock_drop(&h->lock);
}

void hydrate_unclaim(struct hydration *h, size_t unit)
{
	lock_take(&h->lock);
	h->state[unit] = FRAME_MISSING;
	if (h->in_order)
		h->stream_busy = false;
	pthread_cond_broadcast(&h->changed);
	lock_drop(&h->lock);
}

/* ---- decoding a unit ---- */

static errint_t decode_frame(struct hydration *h, size_t unit, struct decode_slot *slot,
                             void *buf, char **cause)
{
	const struct seek_entry *e = &h->object.table.entries[unit];
	errint_t r = readahead_slot_room(slot, e->stored_len, 0);

	if (r == 0)
		r = object_decode_frame_with(&h->object, unit, slot->stored, buf, cause);
	if (r == 0 && h->frames)
		framehash_take(h->frames, unit, buf);
	return r;
}

/* The decoder stands where the last unit ended, or at the start if it is a new one. */
static errint_t decode_piece(struct pool *p, struct hydration *h, size_t unit, void *buf,
                             char **cause)
{
	uint64_t off = hydrate_unit_off(h, unit), len = hydrate_unit_len(h, unit);
	size_t got = 0;
	errint_t r = 0;

	if (h->stream && object_stream_at(h->stream) > off)
		object_stream_free(steal_pointer(&h->stream));
	if (!h->stream)
		r = object_stream_new(&h->object, p->max_object, &h->stream);
	while (r == 0) {
		bool there = object_stream_at(h->stream) == off;
		size_t want = there ? len : OBJECT_PIECE;

		r = object_stream_read(h->stream, buf, want, &got, cause);
		if (r == 0 && got < want)
			r = set_cause(cause, -EUCLEAN, "decodes to fewer bytes than known");
		if (there)
			break;
		if (r == 0 && cancel_wanted())
			r = -EINTR;
	}
	return r;
}

/* A foreign object of unknown size. */
static errint_t decode_whole(struct pool *p, struct hydration *h, int fd, char **cause)
{
	uint64_t end = 0, room = evict_room(p); /* (H6) */
	errint_t r = object_extract(&h->object, 0, OBJECT_SIZE_UNKNOWN, fd, 1,
	                            MIN_OF(p->max_object, room), &end, cause);

	if (r == -EFBIG && room < p->max_object)
		r = -ENOSPC;
	return r < 0 ? r : sys_ftruncate(fd, (off_t)end);
}

static errint_t copy_piece(struct hydration *h, size_t unit, void *buf, char **cause)
{
	errint_t r = full_pread(h->fd, buf, hydrate_unit_len(h, unit),
	                        (off_t)hydrate_unit_off(h, unit));

	return r == -ENODATA ? set_cause(cause, -EUCLEAN, "the file became shorter") : r;
}

static errint_t decode_to(struct pool *p, struct hydration *h, size_t unit,
                          struct decode_slot *slot, void *buf, char **cause)
{
	switch (h->object.kind) {
	case OBJECT_SEEKABLE:
		return decode_frame(h, unit, slot, buf, cause);
	case OBJECT_FOREIGN:
		return decode_piece(p, h, unit, buf, cause);
	default:
		return copy_piece(h, unit, buf, cause);
	}
}

static errint_t decode_held(struct pool *p, struct hydration *h, size_t unit,
                            struct decode_slot *slot, struct held_frame **ret, char **cause)
{
	struct held_frame *f = readahead_held_new(p, hydrate_unit_len(h, unit));
	errint_t r;

	if (!f)
		return -ENOMEM;
	f->unit = unit;
	r = decode_to(p, h, unit, slot, f->data, cause);
	if (r < 0) {
		hydrate_unhold(p, f);
		return r;
	}
	*ret = f;
	return 0;
}

/* (H6) */
static errint_t make_room(struct pool *p, const struct hydration *h, uint64_t len,
                          enum keep keep)
{
	if (keep == KEEP_ALWAYS || h->in_order)
		return evict_make_room(p, len);
	return evict_room(p) < len ? -ENOSPC : 0; /* it passes through memory instead */
}

static errint_t decode_kept(struct pool *p, struct hydration *h, size_t unit,
                            enum keep keep, int fd, struct decode_slot *slot, char **cause)
{
	uint64_t len = hydrate_unit_len(h, unit);
	errint_t r;

	if (h->object.logical_size == OBJECT_SIZE_UNKNOWN)
		return decode_whole(p, h, fd, cause);
	r = readahead_slot_room(slot, 0, len);
	if (r == 0)
		r = make_room(p, h, len, keep);
	if (r == 0)
		r = decode_to(p, h, unit, slot, slot->logical, cause);
	if (r == 0) {
		uint64_t off = hydrate_unit_off(h, unit);

		len = MIN_OF(len, h->ask - off); /* tail.c, T4 */
		r = full_pwrite(fd, slot->logical, len, (off_t)off);
	}
	return r;
}

/* Damage is listed, and said once. */
static void say_failed(struct pool *p, struct hydration *h, size_t unit, errint_t r,
                       const char *cause)
{
	cleanup_free char *path = NULL;
	struct object_range range = {0};

	if (h->object.kind == OBJECT_SEEKABLE)
		range = (struct object_range){hydrate_unit_off(h, unit),
		                              hydrate_unit_len(h, unit)};
	if (r == -EUCLEAN && !damage_note(p, h->node, range, cause))
		return;
	path = node_path(p->tree, h->node);
	if (r == -ENOSPC || r == -EDQUOT)
		log_warn("there is no room in the pool to decompress \"%s\": %s", path,
		         cause);
	else if (range.len > 0)
		log_err("cannot decode bytes %ju-%ju of \"%s\": %s; reading them answers "
		        "an error",
		        (uintmax_t)range.off, (uintmax_t)(range.off + range.len - 1), path,
		        cause);
	else
		log_err("cannot decode \"%s\": %s; reading it answers an error", path,
		        cause);
}

/* The pool's figures of a file that fills up, and the end of the hydration. */
static errint_t after_unit(struct pool *p, struct hydration *h, int fd)
{
	struct scratch *s;
	struct stat st;
	bool due, complete;
	errint_t r = 0;

	lock_take(&h->lock);
	complete = h->missing == 0;
	due = h->unsampled_bytes >= SAMPLE_BYTES;
	if (due)
		h->unsampled_bytes = 0;
	lock_drop(&h->lock);
	if (!complete && !due)
		return 0;
	lock_take(&h->node->lock);
	s = h->node->scratch;
	if (s && s->hydration == h) { /* nobody has ended it meanwhile */
		if (complete)
			r = hydrate_finish(p, s, fd);
		else if (sys_fstat(fd, &st) == 0)
			scratch_account(p, s, (uint64_t)st.st_blocks * 512);
	}
	lock_drop(&h->node->lock);
	return r;
}

errint_t hydrate_unit(struct pool *p, struct hydration *h, size_t unit, enum keep keep,
                      int fd, struct decode_slot *slot, struct held_frame **ret_held)
{
	cleanup_free char *cause = NULL;
	struct held_frame *held = NULL;
	errint_t r;
	bool hold;

	lock_take(&h->lock);
	hold = hydrate_would_hold(p, h, unit, keep);
	lock_drop(&h->lock);
	r = hold ? -ENOSPC : decode_kept(p, h, unit, keep, fd, slot, &cause);
	if ((r == -ENOSPC || r == -EDQUOT) && keep != KEEP_ALWAYS && !h->in_order)
		r = decode_held(p, h, unit, slot, &held, &cause);
	if (r < 0 && r != -EINTR)
		say_failed(p, h, unit, r, cause ? cause : strerror(-r));
	settle(p, h, unit, r, held);
	step("hydrate.batch");
	hold = held != NULL;
	if (ret_held)
		*ret_held = held;
	else
		hydrate_unhold(p, held);
	if (r == 0 && hold && h->fits)
		readahead_behind(p, h);
	return r < 0 || hold ? r : after_unit(p, h, fd);
}

/* ---- from memory into the scratch ---- */

struct held_frame *hydrate_claim_held(struct hydration *h)
{
	struct held_frame *f;

	lock_assert_held(&h->lock);
	if (h->tail) /* tail.c, T2: raised before it became one */
		return NULL;
	DL_FOREACH (h->held, f) {
		if (h->state[f->unit] == FRAME_HELD) {
			h->state[f->unit] = FRAME_WRITING;
			atomic_fetch_add(&f->refs, 1);
			return f;
		}
	}
	return NULL;
}

bool hydrate_write_behind(struct pool *p, struct hydration *h, struct held_frame *f, int fd)
{
	errint_t r = fd < 0 ? fd : evict_room(p) < f->len ? -ENOSPC : 0; /* (H6) */

	if (r == 0)
		r = full_pwrite(fd, f->data, f->len, (off_t)hydrate_unit_off(h, f->unit));
	lock_take(&h->lock);
	INVARIANT(h->state[f->unit] == FRAME_WRITING && f->listed);
	h->state[f->unit] = r == 0 ? FRAME_VALID : FRAME_HELD;
	if (r == 0) {
		h->missing--;
		h->kept_bytes += f->len;
		h->unsampled_bytes += f->len;
		held_unlist(p, h, f);
	}
	pthread_cond_broadcast(&h->changed);
	lock_drop(&h->lock);
	hydrate_unhold(p, f);
	if (r == 0)
		(void)after_unit(p, h,
		                 fd); /* where it fails, whoever opens it tries again */
	return r == 0;
}

/* ---- whoever needs a range ---- */

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
		hydrate_units_of(h, off, len, &from, &to);
		lock_take(&h->lock);
		for (size_t i = from; ready && i < to; i++)
			ready = h->state[i] == FRAME_VALID;
		lock_drop(&h->lock);
	}
	lock_drop(&s->node->lock);
	return ready;
}

static errint_t fill_units(struct pool *p, struct hydration *h, size_t from, size_t to,
                           unsigned flags)
{
	enum claim c = CLAIM_GOT;
	errint_t r = 0;

	while (r == 0 && c != CLAIM_NONE) {
		struct decode_slot *slot;
		size_t unit = 0;

		lock_take(&h->lock);
		c = hydrate_claim(h, &from, to, flags, &unit);
		if (c == CLAIM_BUSY)
			r = hydrate_wait(h);
		lock_drop(&h->lock);
		if (c == CLAIM_BAD)
			return -EUCLEAN;
		if (c != CLAIM_GOT || r < 0)
			continue;
		slot = readahead_slot(p);
		r = hydrate_unit(p, h, unit, KEEP_ALWAYS, h->s->fd, slot, NULL);
		readahead_slot_end(p, slot);
		if (r == -EUCLEAN && (flags & CLAIM_SKIP_BAD))
			r = 0;
		if (r == 0 && cancel_wanted())
			r = -EINTR;
	}
	return r;
}

static errint_t fill(struct pool *p, struct scratch *s, uint64_t off, uint64_t len,
                     unsigned flags)
{
	struct node *n = s->node;
	struct want w = {0};
	struct hydration *h;
	bool helped, tail;
	size_t from, to;
	errint_t r;

	lock_take(&n->lock);
	h = s->hydration;
	tail = tail_is_dirty(s);
	r = tail ? tail_fill_begin(s) : 0;
	if (!h || r < 0) {
		lock_drop(&n->lock);
		return r;
	}
	hydrate_get(h); /* (H4) */
	hydrate_units_of(h, off, len, &from, &to);
	helped = to - from > 1 && !h->in_order;
	w.next = from;
	w.to = to;
	if (helped)
		readahead_help(p, h, &w);
	lock_drop(&n->lock);

	r = fill_units(p, h, from, to, flags);

	if (helped)
		readahead_help_end(h, &w);
	lock_take(&n->lock);
	if (r == 0 && s->hydration == h && s->fd >= 0) {
		bool complete;

		lock_take(&h->lock);
		complete = h->missing == 0;
		lock_drop(&h->lock);
		if (complete) /* an empty file, or where ending it failed before */
			r = hydrate_finish(p, s, s->fd);
	}
	if (tail) {
		errint_t end = tail_fill_end(s);

		r = r < 0 ? r : end;
	}
	hydrate_put(h);
	lock_drop(&n->lock);
	return r;
}

errint_t hydrate_range(struct pool *p, struct scratch *s, uint64_t off, uint64_t len)
{
	return fill(p, s, off, len, 0);
}

bool hydrate_first(struct pool *p, const struct scratch *s, bool write)
{
	uint64_t size = s->hydration->object.logical_size;

	lock_assert_held(&s->node->lock);
	return (write && !tail_possible(p, s)) || size == OBJECT_SIZE_UNKNOWN ||
	       (size <= p->eager_size && !atomic_load(&p->no_space));
}

errint_t hydrate_for_open(struct pool *p, struct scratch *s, bool write)
{
	bool all = write;
	errint_t r;

	lock_take(&s->node->lock);
	if (s->hydration && s->hydration->object.logical_size == OBJECT_SIZE_UNKNOWN)
		all = true;
	lock_drop(&s->node->lock);
	r = fill(p, s, 0, UINT64_MAX, all ? 0 : CLAIM_SKIP_BAD);
	/* The pool came to be full meanwhile: it is read through memory, as where that was known. */
	return !all && (r == -ENOSPC || r == -EDQUOT) ? 0 : r;
}
