/*
 * Reading a scratch that may not be whole: from its file where the bytes are there, else from
 * memory, decoding what is missing on the way.
 *
 * What a sequential reader passes comes from memory (hydrate.c: what is kept).
 *
 * Threads: any; those that may not wait get -EAGAIN where something has to be decoded.
 */
#include <string.h>
#include <unistd.h>

#include "base/cancel.h"
#include "pool/internal.h"
#include "pool/readahead.h"

/* What a read needs, as it is gathered. */
struct gather {
	struct pool *p;
	struct hydration *h;
	int fd;
	size_t from, to;
	enum keep keep;
	struct held_frame **pins; /* one a unit; NULL: in the scratch */
};

/* *ret_held: a reference, or NULL where the unit is in the scratch. */
static errint_t decode_unit(struct gather *g, size_t unit, struct held_frame **ret_held)
{
	struct decode_slot *slot = readahead_slot(g->p);
	errint_t r = hydrate_unit(g->p, g->h, unit, g->keep, g->fd, slot, ret_held);

	readahead_slot_end(g->p, slot);
	if (r == 0 && cancel_wanted()) {
		hydrate_unhold(g->p, steal_pointer(ret_held));
		r = -EINTR;
	}
	return r;
}

/* Makes one unit readable; pins it if it is in memory. */
static errint_t gather_unit(struct gather *g, size_t unit, bool wait)
{
	struct held_frame **pin = &g->pins[unit - g->from];
	struct hydration *h = g->h;

	for (;;) {
		struct held_frame *held = NULL;
		size_t at = unit, got = 0;
		enum claim c = CLAIM_NONE;
		errint_t r = 0;

		lock_take(&h->lock);
		if (h->state[unit] == FRAME_HELD || h->state[unit] == FRAME_WRITING)
			*pin = hydrate_hold(h, unit);
		if (*pin || h->state[unit] == FRAME_VALID) {
			lock_drop(&h->lock);
			return 0;
		}
		if (wait)
			c = hydrate_claim(h, &at, unit + 1, CLAIM_HELD_OK, &got);
		if (c == CLAIM_BUSY)
			r = hydrate_wait(h);
		lock_drop(&h->lock);
		if (!wait)
			return -EAGAIN;
		if (c == CLAIM_BAD)
			return -EUCLEAN;
		if (c == CLAIM_GOT)
			r = decode_unit(g, got, &held);
		if (r < 0)
			return r;
		if (held && got == unit) {
			*pin = held;
			return 0;
		}
		hydrate_unhold(g->p, held);
	}
}

static errint_t gather(struct gather *g, bool wait)
{
	errint_t r = 0;

	for (size_t i = g->from; r == 0 && i < g->to; i++)
		r = gather_unit(g, i, wait);
	return r;
}

/* The part of the unit that the read wants: offset in the unit and length. */
static void part_of(const struct gather *g, size_t unit, uint64_t off, size_t len,
                    uint64_t *ret_at, size_t *ret_len)
{
	uint64_t start = hydrate_unit_off(g->h, unit);
	uint64_t end = start + hydrate_unit_len(g->h, unit);
	uint64_t a = MAX_OF(start, off), b = MIN_OF(end, off + len);

	*ret_at = a - start;
	*ret_len = b > a ? b - a : 0;
}

/* All in memory: the reply is made of the very bytes. */
static void view_of_pins(struct gather *g, uint64_t off, size_t len, struct read_view *v)
{
	for (size_t i = g->from; i < g->to; i++) {
		struct held_frame *f = steal_pointer(&g->pins[i - g->from]);
		uint64_t at;
		size_t part;

		part_of(g, i, off, len, &at, &part);
		v->held[v->count] = f;
		v->iov[v->count++] = (struct iovec){f->data + at, part};
	}
}

/* What a tail holds past the bytes of its object (tail.c); short at the end of the file. */
static errint_t read_past(const struct gather *g, uint64_t off, size_t len, uint8_t *buf,
                          size_t *done)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = sys_pread(g->fd, buf + got, len - got, (off_t)(off + got));

		if (n < 0)
			return (errint_t)n;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	*done += got;
	return 0;
}

/* Here and there, or many small pieces: copied together, with `past` bytes after them. */
static errint_t view_copied(struct gather *g, uint64_t off, size_t len, size_t past,
                            struct read_view *v)
{
	size_t done = 0;
	errint_t r = 0;

	v->copy = malloc(len + past);
	if (!v->copy)
		return -ENOMEM;
	for (size_t i = g->from; r == 0 && i < g->to; i++) {
		const struct held_frame *f = g->pins[i - g->from];
		uint64_t at;
		size_t part;

		part_of(g, i, off, len, &at, &part);
		if (f)
			memcpy(v->copy + done, f->data + at, part);
		else
			r = full_pread(g->fd, v->copy + done, part,
			               (off_t)(hydrate_unit_off(g->h, i) + at));
		done += part;
	}
	if (r == 0 && past > 0)
		r = read_past(g, off + len, past, (uint8_t *)v->copy + done, &done);
	v->iov[0] = (struct iovec){v->copy, done};
	v->count = 1;
	return r;
}

static errint_t make_view(struct gather *g, uint64_t off, size_t len, size_t past,
                          struct read_view *v)
{
	size_t pinned = 0;

	lock_take(&g->h->lock);
	for (size_t i = g->from; i < g->to; i++) {
		struct held_frame *f = g->pins[i - g->from];

		if (!f)
			continue;
		pinned++;
		if (off + len >= hydrate_unit_off(g->h, i) + f->len)
			f->passed = true;
	}
	lock_drop(&g->h->lock);
	if (pinned == 0) {
		v->fd = g->fd;
		return 0;
	}
	if (past == 0 && pinned == g->to - g->from && pinned <= ARRAY_LEN(v->held)) {
		view_of_pins(g, off, len, v);
		return 0;
	}
	return view_copied(g, off, len, past, v);
}

static errint_t read_partial(struct gather *g, uint64_t off, size_t len, bool wait,
                             struct read_view *v)
{
	uint64_t size = g->h->ask;
	size_t past = 0;
	struct held_frame *few[8] = {NULL};
	errint_t r;

	if (off >= size) {
		v->fd = g->fd; /* at the end of the file, which it knows */
		return 0;
	}
	if (g->h->tail && len > size - off)
		past = len - (size - off);
	len = MIN_OF((uint64_t)len, size - off);
	hydrate_units_of(g->h, off, len, &g->from, &g->to);
	g->pins = g->to - g->from <= ARRAY_LEN(few)
	              ? few
	              : calloc(g->to - g->from, sizeof(*g->pins));
	if (!g->pins)
		return -ENOMEM;
	r = gather(g, wait);
	if (r == 0)
		r = make_view(g, off, len, past, v);
	for (size_t i = g->from; i < g->to; i++)
		hydrate_unhold(g->p, g->pins[i - g->from]);
	if (g->pins != few)
		free(g->pins);
	return r;
}

errint_t scratch_read(struct pool *p, struct node *n, uint64_t off, size_t len, bool wait,
                      struct read_view *ret)
{
	struct scratch *s = n->scratch;
	struct gather g = {.p = p, .fd = s->fd};
	errint_t r;

	memset(ret, 0, sizeof(*ret));
	ret->fd = s->fd;
	if (atomic_load(&s->whole))
		return 0;
	lock_take(&n->lock);
	g.h = s->hydration;
	if (g.h) {
		hydrate_get(g.h); /* (H4) */
		g.keep = readahead_note(p, g.h, off, len) ? KEEP_PASSING : KEEP_IF_ROOM;
	}
	lock_drop(&n->lock);
	if (!g.h)
		return 0;
	ret->fd = -1;
	r = read_partial(&g, off, len, wait, ret);
	if (r < 0)
		scratch_read_end(p, ret);
	lock_take(&n->lock);
	hydrate_put(g.h);
	lock_drop(&n->lock);
	return r;
}

void scratch_read_end(struct pool *p, struct read_view *v)
{
	for (size_t i = 0; i < v->count; i++)
		hydrate_unhold(p, v->held[i]);
	free(v->copy);
	memset(v, 0, sizeof(*v));
	v->fd = -1;
}

errint_t scratch_ready(struct node *n, uint64_t off, uint64_t len)
{
	return hydrate_is_ready(n->scratch, off, len) ? 0 : -EAGAIN;
}

errint_t scratch_hydrate(struct pool *p, struct node *n, uint64_t off, uint64_t len)
{
	return hydrate_range(p, n->scratch, off, len);
}

off_t pool_lseek(struct pool *p, struct node *n, off_t off, int whence, bool cached)
{
	struct scratch *s = n->scratch;
	struct stat st;
	bool unsure;
	off_t r;
	int fd;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -EINVAL;
	lock_take(&n->lock);
	unsure = cached && s->writers > 0;
	lock_drop(&n->lock);
	if (unsure || !atomic_load(&s->whole)) {
		/* What is not hydrated is never called a hole, nor what a store through a mapping
		 * may have filled that the kernel has not written back yet. */
		r = sys_fstat(s->fd, &st);
		if (r < 0)
			return r;
		if (off < 0 || off >= st.st_size)
			return -ENXIO;
		return whence == SEEK_DATA ? off : st.st_size;
	}
	/* A description of its own: s->fd's offset is nobody's, but two callers would race. */
	fd = scratch_open_fd(p, s, O_RDONLY);
	if (fd < 0)
		return fd;
	r = lseek(fd, off, whence);
	if (r < 0)
		r = -errno;
	(void)sys_close(fd);
	return r;
}
