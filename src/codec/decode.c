/*
 * Decoding objects: see object.h for what is believed of a frame.
 *
 * The file in order: one frame, frames in parallel, everything in order, extraction. Foreign
 * frames: stream.c.
 *
 * Threads: struct object is only read; each thread decodes with its own context
 * (zcontext.h) into its own buffer. The locks are leaves and guard nothing but the first
 * error of a parallel run.
 */
#include "codec/object.h"

#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/counters.h"
#include "base/lock.h"
#include "base/sysio.h"
#include "base/workers.h"
#include "codec/little.h"
#include "codec/stream.h"
#include "codec/zcontext.h"
#include "codec/zframe.h"

typedef unsigned long long ull; /* for %llu */

/* ---- one frame ---- */

static void count_decoded(const struct object *o, uint64_t frames, uint64_t bytes)
{
	if (o->uncounted)
		return;
	count_n(COUNTER_FRAMES_DECODED, frames);
	count_n(COUNTER_BYTES_DECODED, bytes);
}

/* All results of decoding pass here once, on their way out. */
static errint_t count_damage(errint_t err)
{
	if (err == -EUCLEAN)
		count_one(COUNTER_DAMAGED);
	return err;
}

errint_t object_refuse_features(const struct zframe *f, char **cause)
{
	if (f->window > 1ULL << OBJECT_WINDOW_LOG)
		return set_cause(cause, -EUCLEAN,
		                 "needs a window of %llu bytes, more than 2^%u",
		                 (ull)f->window, OBJECT_WINDOW_LOG);
	if (f->dictionary)
		return set_cause(cause, -EUCLEAN, "needs dictionary %u", f->dictionary);
	return 0;
}

static errint_t check_frame(const struct seek_entry *e, const uint8_t *src,
                            bool *ret_has_checksum, char **cause)
{
	struct zframe f = zframe_parse(src, e->stored_len);
	size_t len;

	if (f.kind != ZFRAME_DATA)
		return set_cause(cause, -EUCLEAN, "no zstd frame stands there");
	if (object_refuse_features(&f, cause))
		return -EUCLEAN;
	if (f.has_size && f.size != e->logical_len)
		return set_cause(cause, -EUCLEAN,
		                 "holds %llu bytes, the seek table says %u", (ull)f.size,
		                 e->logical_len);
	len = ZSTD_findFrameCompressedSize(src, e->stored_len);
	if (ZSTD_isError(len))
		return set_cause(cause, -EUCLEAN, "%s", ZSTD_getErrorName(len));
	if (len != e->stored_len)
		return set_cause(cause, -EUCLEAN,
		                 "is %zu bytes long, the seek table says %u", len,
		                 e->stored_len);
	*ret_has_checksum = f.has_checksum;
	return 0;
}

static errint_t decode_bytes(const struct object *o, const struct seek_entry *e,
                             const uint8_t *src, bool has_checksum, void *buf, char **cause)
{
	ZSTD_DCtx *context = zcontext_decoder();
	uint32_t sum = 0;
	size_t len;

	if (!context)
		return -ENOMEM;
	len = ZSTD_decompressDCtx(context, buf, e->logical_len, src, e->stored_len);
	if (ZSTD_isError(len))
		return set_cause(cause, zcontext_error(len, -EUCLEAN), "%s",
		                 ZSTD_getErrorName(len));
	if (len != e->logical_len)
		return set_cause(cause, -EUCLEAN,
		                 "decodes to %zu bytes, the seek table says %u", len,
		                 e->logical_len);
	/* zstd's own content checksum is the same function, and was met by now. */
	if (has_checksum)
		sum = get_le32(src + e->stored_len - 4);
	else if (o->table.has_checksums)
		sum = (uint32_t)XXH64(buf, len, 0);
	if (o->table.has_checksums && sum != e->checksum)
		return set_cause(cause, -EUCLEAN, "checksum of the seek table differs");
	return 0;
}

static errint_t read_frame(const struct object *o, const struct seek_entry *e, uint8_t *src,
                           char **cause)
{
	errint_t err = full_pread(o->fd, src, e->stored_len, (off_t)e->stored_off);

	if (err == -ENODATA)
		return set_cause(cause, -EUCLEAN, "the object ends before it does");
	return err;
}

/* src holds stored_len bytes of room. */
static errint_t decode_entry(const struct object *o, size_t i, uint8_t *src, void *buf,
                             char **cause)
{
	const struct seek_entry *e = &o->table.entries[i];
	cleanup_free char *why = NULL;
	bool has_checksum = false;
	errint_t err = read_frame(o, e, src, &why);

	if (!err)
		err = check_frame(e, src, &has_checksum, &why);
	if (!err)
		err = decode_bytes(o, e, src, has_checksum, buf, &why);
	if (!err) {
		count_decoded(o, 1, e->logical_len);
		return 0;
	}
	if (why)
		(void)set_cause(cause, err, "frame %zu (stored at %llu): %s", i,
		                (ull)e->stored_off, why);
	else
		(void)set_cause_errno(cause, err, "frame %zu (stored at %llu)", i,
		                      (ull)e->stored_off);
	return count_damage(err);
}

errint_t object_decode_frame_with(const struct object *o, size_t i, void *stored, void *buf,
                                  char **cause)
{
	INVARIANT(o->kind == OBJECT_SEEKABLE && i < o->table.count);
	if (!o->table.entries[i].logical_len)
		return 0;
	return decode_entry(o, i, stored, buf, cause);
}

errint_t object_decode_frame(const struct object *o, size_t i, void *buf, char **cause)
{
	const struct seek_entry *e;
	cleanup_free uint8_t *src = NULL;

	INVARIANT(o->kind == OBJECT_SEEKABLE && i < o->table.count);
	e = &o->table.entries[i];
	if (!e->logical_len)
		return 0;
	src = malloc(e->stored_len);
	if (!src)
		return set_cause_errno(cause, -ENOMEM, "frame %zu", i);
	return decode_entry(o, i, src, buf, cause);
}

/* ---- frames in parallel ---- */

struct each {
	/* constant during the run */
	const struct object *o;
	size_t to;
	size_t stored_max, logical_max; /* largest frame of the range */
	object_frame_fn fn;
	void *ctx;

	_Atomic size_t next;
	_Atomic bool failed;

	/* under lock */
	struct lock lock; /* LOCK_LEAF */
	errint_t err;
	char *cause;
};

/* Takes the cause over. */
static void each_fail(struct each *e, errint_t err, char *cause)
{
	atomic_store(&e->failed, true);
	lock_take(&e->lock);
	if (!e->err) {
		e->err = err;
		e->cause = steal_pointer(&cause);
	}
	lock_drop(&e->lock);
	free(cause);
}

/* One thread's share. Never returns an error: the first one is in *e. */
static errint_t each_run(void *ctx, size_t thread)
{
	struct each *e = ctx;
	cleanup_free uint8_t *stored = malloc(e->stored_max);
	cleanup_free uint8_t *logical = malloc(e->logical_max);

	if (!stored || !logical) {
		each_fail(e, -ENOMEM, NULL);
		return 0;
	}
	while (!atomic_load(&e->failed)) {
		size_t i = atomic_fetch_add(&e->next, 1);
		char *cause = NULL;
		errint_t err;

		if (i >= e->to)
			break;
		if (!e->o->table.entries[i].logical_len)
			continue;
		err = decode_entry(e->o, i, stored, logical, &cause);
		if (!err)
			err = e->fn(e->ctx, i, logical);
		if (err)
			each_fail(e, err, cause);
	}
	return 0;
}

errint_t object_each_frame(const struct object *o, size_t from, size_t to, unsigned threads,
                           object_frame_fn fn, void *ctx, char **cause)
{
	struct each e = {.o = o, .to = to, .fn = fn, .ctx = ctx, .next = from};
	size_t frames = 0;

	INVARIANT(o->kind == OBJECT_SEEKABLE && from <= to && to <= o->table.count);
	for (size_t i = from; i < to; i++) {
		const struct seek_entry *entry = &o->table.entries[i];

		if (!entry->logical_len)
			continue;
		frames++;
		e.stored_max = MAX_OF(e.stored_max, entry->stored_len);
		e.logical_max = MAX_OF(e.logical_max, entry->logical_len);
	}
	if (!frames)
		return 0;

	lock_init(&e.lock, LOCK_LEAF);
	threads = (unsigned)MIN_OF(frames, (size_t)MAX_OF(threads, 1U));
	(void)parallel_for(threads, threads, each_run, &e);
	lock_clear(&e.lock);
	if (e.cause)
		(void)set_cause(cause, e.err, "%s", e.cause);
	free(e.cause);
	return e.err;
}

/* ---- everything in order ---- */

static errint_t put_pieces(uint64_t off, const uint8_t *data, size_t len,
                           object_sink_fn sink, void *ctx)
{
	errint_t err = 0;

	for (size_t at = 0; at < len && !err; at += OBJECT_PIECE)
		err =
		    sink(ctx, off + at, data + at, MIN_OF(len - at, (size_t)OBJECT_PIECE));
	return err;
}

struct in_order {
	const struct seek_table *table;
	object_sink_fn sink;
	void *ctx;
};

static errint_t put_frame(void *ctx, size_t i, const void *data)
{
	const struct in_order *p = ctx;
	const struct seek_entry *e = &p->table->entries[i];

	return put_pieces(e->logical_off, data, e->logical_len, p->sink, p->ctx);
}

/* One thread takes the frames in ascending order. */
static errint_t decode_seekable(const struct object *o, object_sink_fn sink, void *ctx,
                                char **cause)
{
	struct in_order p = {.table = &o->table, .sink = sink, .ctx = ctx};

	return object_each_frame(o, 0, o->table.count, 1, put_frame, &p, cause);
}

static errint_t decode_foreign(const struct object *o, uint64_t limit, object_sink_fn sink,
                               void *ctx, char **cause)
{
	cleanup_free uint8_t *buf = malloc(OBJECT_PIECE);
	struct object_stream *s = NULL;
	uint64_t off = 0;
	size_t len = 0;
	errint_t err = buf ? object_stream_new(o, limit, &s) : -ENOMEM;

	do {
		if (!err)
			err = object_stream_read(s, buf, OBJECT_PIECE, &len, cause);
		if (!err && len > 0)
			err = sink(ctx, off, buf, len);
		off += len;
	} while (!err && len == OBJECT_PIECE);
	object_stream_free(s);
	return err;
}

static errint_t pass_plain(const struct object *o, object_sink_fn sink, void *ctx,
                           char **cause)
{
	cleanup_free uint8_t *buf = malloc(OBJECT_PIECE);
	uint64_t off = 0;

	if (!buf)
		return -ENOMEM;
	while (off < o->stored_size) {
		size_t len = MIN_OF((uint64_t)OBJECT_PIECE, o->stored_size - off);
		errint_t err = full_pread(o->fd, buf, len, (off_t)off);

		if (err)
			return set_cause_errno(cause, err, "reading the plain file at %llu",
			                       (ull)off);
		err = sink(ctx, off, buf, len);
		if (err)
			return err;
		off += len;
	}
	return 0;
}

static errint_t check_limit(const struct object *o, uint64_t limit, char **cause)
{
	if (o->logical_size != OBJECT_SIZE_UNKNOWN && o->logical_size > limit)
		return set_cause(cause, -EFBIG, "declares %llu bytes, more than %llu",
		                 (ull)o->logical_size, (ull)limit);
	return 0;
}

errint_t object_decode_all(const struct object *o, uint64_t limit_bytes,
                           object_sink_fn sink, void *ctx, char **cause)
{
	errint_t err = check_limit(o, limit_bytes, cause);

	if (err)
		return err;
	switch (o->kind) {
	case OBJECT_SEEKABLE:
		return decode_seekable(o, sink, ctx, cause);
	case OBJECT_FOREIGN:
		return decode_foreign(o, limit_bytes, sink, ctx, cause);
	case OBJECT_PLAIN:
		return pass_plain(o, sink, ctx, cause);
	case OBJECT_EMPTY:
		break;
	}
	return count_damage(set_cause(cause, -EUCLEAN, "the object is 0 bytes long"));
}

/* ---- extraction ---- */

struct extract {
	const struct seek_table *table;
	int out_fd;
	uint64_t end; /* only for what is decoded in order */
};

static errint_t write_frame(void *ctx, size_t i, const void *data)
{
	const struct extract *x = ctx;
	const struct seek_entry *e = &x->table->entries[i];

	return full_pwrite(x->out_fd, data, e->logical_len, (off_t)e->logical_off);
}

static errint_t write_piece(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct extract *x = ctx;

	x->end = off + len;
	return full_pwrite(x->out_fd, data, len, (off_t)off);
}

static errint_t extract_frames(const struct object *o, uint64_t off, uint64_t len,
                               struct extract *x, unsigned threads, char **cause)
{
	const struct seek_table *t = &o->table;
	size_t from, to;

	x->end = off;
	if (off >= t->logical_len || !len)
		return 0;
	from = seektable_find(t, off);
	to = 1 + seektable_find(t, off + MIN_OF(len, t->logical_len - off) - 1);
	x->end = t->entries[to - 1].logical_off + t->entries[to - 1].logical_len;
	return object_each_frame(o, from, to, threads, write_frame, x, cause);
}

errint_t object_extract(const struct object *o, uint64_t off, uint64_t len, int out_fd,
                        unsigned threads, uint64_t limit_bytes, uint64_t *ret_end,
                        char **cause)
{
	struct extract x = {.table = &o->table, .out_fd = out_fd};
	errint_t err;

	if (o->kind == OBJECT_SEEKABLE) {
		err = check_limit(o, limit_bytes, cause);
		if (!err)
			err = extract_frames(o, off, len, &x, threads, cause);
	} else if (off || len < o->logical_size) {
		return set_cause(cause, -EINVAL,
		                 "only a whole object without a seek table can be read");
	} else {
		err = object_decode_all(o, limit_bytes, write_piece, &x, cause);
	}
	if (!err)
		*ret_end = x.end;
	return err;
}
