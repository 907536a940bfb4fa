/*
 * Foreign objects, decoded in order: see stream.h.
 *
 *   between frames --next_frame--> in a frame --frame_step says so--> between frames
 *        \--no bytes left--> ended
 *
 * Threads: a stream is its caller's alone.
 */
#include "codec/stream.h"

#include <string.h>
#include <zstd.h>

#include "base/counters.h"
#include "base/sysio.h"
#include "codec/little.h"
#include "codec/rebuild.h"
#include "codec/zcontext.h"
#include "codec/zframe.h"

#define STREAM_IN (256U << 10)

typedef unsigned long long ull; /* for %llu */

struct object_stream {
	const struct object *o;
	uint64_t limit;
	ZSTD_DCtx *context; /* not the thread's: its window would stay with the thread */
	uint8_t *in_buf;
	ZSTD_inBuffer in;  /* bytes read and not yet taken */
	uint64_t read_off; /* where the next bytes are read: after those of `in` */
	uint64_t frame_off;
	struct zframe frame;  /* that one's head */
	uint64_t frame_start; /* logical offset of its first byte */
	uint64_t done;        /* logical bytes given out */
	uint64_t
	    proved; /* of them, those of complete frames that nothing more vouches for */
	struct prover prover;
	bool in_frame, ended;
	errint_t err; /* final */
};

errint_t object_stream_new(const struct object *o, uint64_t limit_bytes,
                           struct object_stream **ret)
{
	struct object_stream *s = calloc(1, sizeof(*s));

	INVARIANT(o->kind == OBJECT_FOREIGN);
	if (!s)
		return -ENOMEM;
	s->o = o;
	s->limit = limit_bytes;
	prover_init(&s->prover);
	s->context = ZSTD_createDCtx();
	s->in_buf = malloc(STREAM_IN);
	if (!s->context || !s->in_buf) {
		object_stream_free(s);
		return -ENOMEM;
	}
	(void)ZSTD_DCtx_setParameter(s->context, ZSTD_d_windowLogMax, OBJECT_WINDOW_LOG);
	*ret = s;
	return 0;
}

void object_stream_free(struct object_stream *s)
{
	if (!s)
		return;
	(void)ZSTD_freeDCtx(s->context);
	prover_clear(&s->prover);
	free(s->in_buf);
	free(s);
}

uint64_t object_stream_at(const struct object_stream *s)
{
	return s->done;
}

uint64_t object_stream_proved(const struct object_stream *s)
{
	return s->proved;
}

/* ---- input ---- */

static uint64_t stream_left(const struct object_stream *s)
{
	return s->o->stored_size - s->read_off;
}

/* Keeps what is there, and fills up. */
static errint_t stream_fill(struct object_stream *s, char **cause)
{
	size_t kept = s->in.size - s->in.pos;
	size_t more = MIN_OF((uint64_t)(STREAM_IN - kept), stream_left(s));
	errint_t err;

	memmove(s->in_buf, s->in_buf + s->in.pos, kept);
	err = full_pread(s->o->fd, s->in_buf + kept, more, (off_t)s->read_off);
	if (err == -ENODATA)
		return set_cause(cause, -EUCLEAN, "the object became shorter");
	if (err)
		return set_cause_errno(cause, err, "reading the object");
	s->in = (ZSTD_inBuffer){.src = s->in_buf, .size = kept + more};
	s->read_off += more;
	return 0;
}

/* ---- frames ---- */

static errint_t stream_cut(const struct object_stream *s, char **cause)
{
	return set_cause(cause, -EUCLEAN,
	                 "the object ends in the middle of the frame at %llu",
	                 (ull)s->frame_off);
}

static errint_t stream_too_big(const struct object_stream *s, char **cause)
{
	return set_cause(cause, -EFBIG, "decodes to more than %llu bytes", (ull)s->limit);
}

static errint_t stream_skip(struct object_stream *s, const struct zframe *f, char **cause)
{
	uint64_t len = (uint64_t)f->header_len + f->body_len;
	size_t held = s->in.size - s->in.pos;
	errint_t err = 0;

	if (len == CELLARFRAME_LEN && held < len) {
		err = stream_fill(s, cause);
		held = s->in.size - s->in.pos;
	}
	if (!err && (len != CELLARFRAME_LEN || len <= held))
		err = prover_skippable(&s->prover, len, s->in_buf + s->in.pos);
	if (err)
		return err;
	if (!s->prover.unproved)
		s->proved = s->done;
	if (len <= held) {
		s->in.pos += len;
		return 0;
	}
	if (len - held > stream_left(s))
		return stream_cut(s, cause);
	s->read_off += len - held;
	s->in.pos = s->in.size;
	return 0;
}

static errint_t begin_frame(struct object_stream *s, const struct zframe *f, char **cause)
{
	cleanup_free char *why = NULL;

	if (object_refuse_features(f, &why))
		return set_cause(cause, -EUCLEAN, "frame at %llu: %s", (ull)s->frame_off,
		                 why);
	if (f->has_size && f->size > s->limit - s->done)
		return stream_too_big(s, cause);
	(void)ZSTD_DCtx_reset(s->context, ZSTD_reset_session_only);
	s->frame = *f;
	s->frame_start = s->done;
	s->in_frame = true;
	return 0;
}

static errint_t next_frame(struct object_stream *s, char **cause)
{
	struct zframe f;

	if (s->in.size - s->in.pos < ZFRAME_HEAD_LEN) {
		errint_t err = stream_fill(s, cause);

		if (err)
			return err;
	}
	s->frame_off = s->read_off - (s->in.size - s->in.pos);
	if (s->in.pos == s->in.size) {
		s->ended = true;
		return s->prover.unproved
		           ? set_cause(
		                 cause, -EUCLEAN,
		                 "its frames are not followed by the trailer that vouches "
		                 "for them: it was cut, or they were exchanged")
		           : 0;
	}
	f = zframe_parse(s->in_buf + s->in.pos, s->in.size - s->in.pos);
	switch (f.kind) {
	case ZFRAME_NONE:
		return set_cause(cause, -EUCLEAN, "no zstd frame stands at %llu",
		                 (ull)s->frame_off);
	case ZFRAME_CUT:
		return stream_cut(s, cause);
	case ZFRAME_SKIPPABLE:
		return stream_skip(s, &f, cause);
	case ZFRAME_DATA:
		break;
	}
	return begin_frame(s, &f, cause);
}

/* The data frame ends here. */
static errint_t end_frame(struct object_stream *s, char **cause)
{
	uint64_t end = s->read_off - (s->in.size - s->in.pos);
	uint8_t sum[4] = {0};
	errint_t err = 0;

	s->in_frame = false;
	if (!s->o->uncounted)
		count_one(COUNTER_FRAMES_DECODED);
	if (s->frame.has_checksum)
		err = full_pread(s->o->fd, sum, sizeof(sum), (off_t)(end - sizeof(sum)));
	if (err)
		return set_cause_errno(cause, err, "reading the object");
	err = prover_data(&s->prover, end - s->frame_off, s->done - s->frame_start,
	                  get_le32(sum), s->frame.marked);
	if (!err && !s->prover.unproved)
		s->proved = s->done;
	return err;
}

/* One step of zstd; out has room. */
static errint_t frame_step(struct object_stream *s, ZSTD_outBuffer *out, char **cause)
{
	size_t had = out->pos, result;
	bool dry = false;

	if (s->in.pos == s->in.size) {
		errint_t err = stream_fill(s, cause);

		if (err)
			return err;
		dry = !s->in.size;
	}
	result = ZSTD_decompressStream(s->context, out, &s->in);
	if (ZSTD_isError(result))
		return set_cause(cause, zcontext_error(result, -EUCLEAN),
		                 "frame at %llu: %s", (ull)s->frame_off,
		                 ZSTD_getErrorName(result));
	if (dry && result && out->pos == had)
		return stream_cut(s, cause);
	s->done += out->pos - had;
	if (s->done > s->limit)
		return stream_too_big(s, cause);
	return result ? 0 : end_frame(s, cause);
}

static errint_t fill_out(struct object_stream *s, ZSTD_outBuffer *out, char **cause)
{
	errint_t err = 0;

	while (!err && !s->ended && out->pos < out->size)
		err = s->in_frame ? frame_step(s, out, cause) : next_frame(s, cause);
	return err;
}

/* Behind the last byte that is expected: checksum, skippable frames, nothing else. */
static errint_t meet_end(struct object_stream *s, char **cause)
{
	uint64_t size = s->o->logical_size;
	uint8_t more;
	ZSTD_outBuffer out = {.dst = &more, .size = 1};
	errint_t err = fill_out(s, &out, cause);

	if (err)
		return err;
	if (s->done != size)
		return set_cause(cause, -EUCLEAN, "decodes to %s%llu bytes, declares %llu",
		                 s->ended ? "" : "at least ", (ull)s->done, (ull)size);
	return 0;
}

errint_t object_stream_read(struct object_stream *s, void *buf, size_t len, size_t *ret_len,
                            char **cause)
{
	ZSTD_outBuffer out = {.dst = buf, .size = len};
	errint_t err = s->err;

	if (err)
		return set_cause(cause, err, "an earlier part is damaged");
	err = fill_out(s, &out, cause);
	if (!err && s->o->logical_size != OBJECT_SIZE_UNKNOWN &&
	    (s->ended || s->done >= s->o->logical_size))
		err = meet_end(s, cause);
	if (err == -EUCLEAN)
		count_one(COUNTER_DAMAGED);
	s->err = err;
	if (err)
		return err;
	if (!s->o->uncounted)
		count_n(COUNTER_BYTES_DECODED, out.pos);
	*ret_len = out.pos;
	return 0;
}
