/*
 * Writing objects: see encode.h for what an object is made of.
 *
 * Each thread takes the next piece of the plan. A piece to encode: reads it, encodes it, waits for
 * its turn, and writes it where the frame before it ends. A piece to copy: waits for its turn, and
 * copies. Then it proves what it wrote. Invariants, under encoder.lock:
 *  (1) turn <= next: pieces below `turn` have their place in the object and their entries in
 *      the table; those from `next` on were not taken yet.
 *  (2) Pieces are taken in ascending order and a thread holds one at a time. So the piece
 *      whose turn it is belongs to a thread that is reading or encoding, never to one that
 *      waits: there is always progress, however few threads could be started.
 *  (3) After a failure nobody takes another piece and nobody waits.
 *
 * What is hashed, what is encoded and what is checked against are the bytes of one buffer,
 * read once: the input may change, the proof stays one of what was stored.
 */
#include "codec/encode.h"

#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/counters.h"
#include "base/lock.h"
#include "base/sysio.h"
#include "base/workers.h"
#include "codec/hash.h"
#include "codec/object.h"
#include "codec/zcontext.h"
#include "codec/zframe.h"

#define COPY_CHECK    (1U << 20)  /* bytes of a copy compared at once */
#define WRITEOUT_STEP (16U << 20) /* so much is written before the disk is asked to begin */
#define FLAG_MIN_SIZE 4096U       /* smaller files are never called incompressible */

typedef unsigned long long ull; /* for %llu */

/* ---- one frame ---- */

/* Turns a zstd result into bytes or an error. */
static errint_t zstd_result(size_t result, size_t *ret_len, char **cause)
{
	if (ZSTD_isError(result))
		return set_cause(cause, zcontext_error(result, -EIO), "zstd: %s",
		                 ZSTD_getErrorName(result));
	*ret_len = result;
	return 0;
}

static errint_t set_parameters(ZSTD_CCtx *c, int level, char **cause)
{
	static const struct {
		ZSTD_cParameter name;
		int value;
	} fixed[] = {
	    {ZSTD_c_contentSizeFlag, 1},
	    {ZSTD_c_checksumFlag, 1},
	    {ZSTD_c_dictIDFlag, 0},
	};
	size_t ignored;
	errint_t err = zstd_result(
	    ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level), &ignored, cause);

	for (size_t i = 0; i < ARRAY_LEN(fixed) && !err; i++)
		err = zstd_result(ZSTD_CCtx_setParameter(c, fixed[i].name, fixed[i].value),
		                  &ignored, cause);
	return err;
}

errint_t encode_compress(const void *data, size_t len, int level, void *buf, size_t room,
                         size_t *ret_len, char **cause)
{
	ZSTD_CCtx *c = zcontext_encoder();
	errint_t err;

	if (!c)
		return set_cause(cause, -ENOMEM, "no memory for a zstd context");
	err = set_parameters(c, level, cause);
	if (!err)
		err = zstd_result(ZSTD_compress2(c, buf, room, data, len), ret_len, cause);
	return err;
}

/* ---- the source ---- */

static errint_t read_fd(void *ctx, void *buf, size_t len, uint64_t off, char **cause)
{
	errint_t err = full_pread(*(const int *)ctx, buf, len, (off_t)off);

	if (err == -ENODATA)
		return set_cause(cause, err, "the file is shorter than %llu bytes",
		                 (ull)(off + len));
	if (err)
		return set_cause_errno(cause, err, "reading the file at %llu", (ull)off);
	return 0;
}

struct encode_source encode_source_fd(const int *fd)
{
	return (struct encode_source){.read = read_fd, .ctx = (void *)(uintptr_t)fd};
}

/* ---- all pieces ---- */

struct encoder {
	/* constant while frames are encoded */
	struct encode_source source;
	int out_fd;
	uint64_t size;
	struct encode_params params;
	const struct plan *plan;
	const struct object *base;            /* NULL: nothing is kept */
	const struct frame_hash *base_hashes; /* NULL: not known */
	bool raw;
	size_t largest;     /* logical bytes of a piece that is encoded */
	size_t room;        /* for one encoded frame */
	uint64_t first_off; /* of the object: where this one begins to write */

	/* under lock */
	struct lock lock; /* LOCK_LEAF */
	pthread_cond_t turn_moved;
	size_t next; /* piece to be taken */
	size_t turn; /* piece to be placed */
	errint_t err;
	char *cause;
	struct seek_table table;
	uint64_t writeout; /* of the object: the disk was asked to write up to here */
	XXH3_state_t *all; /* hash of the frames' hashes */
	struct frame_hash *hashes; /* one a data frame of the result */
	size_t hash_count;         /* slots passed so far */
	size_t counted,
	    ordinal; /* ordinal_of(): entries looked at, data frames among them */
};

/* What one thread works with. */
struct work {
	struct encoder *e;
	uint8_t *in, *out;           /* one frame, and encoded */
	uint8_t *back, *back_stored; /* the same read back, with `prove` */
	size_t index;                /* of the piece */
	const struct plan_piece *piece;
	size_t stored_len;
	uint64_t stored_off;
	uint32_t checksum;
	XXH128_hash_t hash;
};

static bool is_copy(const struct plan_piece *p)
{
	return p->from < p->to;
}

static bool take_piece(struct work *w)
{
	struct encoder *e = w->e;
	bool taken;

	lock_take(&e->lock);
	if (!e->err && e->params.stop && *e->params.stop) {
		e->err = -EINTR;
		(void)pthread_cond_broadcast(&e->turn_moved);
	}
	taken = !e->err && e->next < e->plan->count;
	if (taken)
		w->index = e->next++;
	lock_drop(&e->lock);
	if (taken)
		w->piece = &e->plan->pieces[w->index];
	return taken;
}

static errint_t encode_piece(struct work *w, char **cause)
{
	const struct encoder *e = w->e;
	size_t len = w->piece->len;
	errint_t err = e->source.read(e->source.ctx, w->in, len, w->piece->off, cause);

	if (err)
		return err;
	w->checksum = (uint32_t)XXH64(w->in, len, 0);
	w->hash = XXH3_128bits(w->in, len);
	if (!e->raw)
		err = encode_compress(w->in, len, e->params.level, w->out,
		                      e->room - ZFRAME_MARK_LEN, &w->stored_len, cause);
	if (err)
		return err;
	w->stored_len =
	    e->raw ? zframe_raw(w->in, len, w->out) : zframe_mark(w->out, w->stored_len);
	return 0;
}

/* Under lock. */
static errint_t place_frame(struct work *w)
{
	struct encoder *e = w->e;

	encode_hash_add(e->all, w->hash);
	e->hashes[e->hash_count++] = (struct frame_hash){w->hash.low64, w->hash.high64};
	return seektable_append(&e->table, (uint32_t)w->stored_len, (uint32_t)w->piece->len,
	                        w->checksum);
}

/* Under lock. */
static errint_t place_copies(struct work *w)
{
	struct encoder *e = w->e;
	errint_t err = 0;

	w->stored_len = 0;
	for (size_t i = w->piece->from; i < w->piece->to && !err; i++) {
		const struct seek_entry *b = &e->base->table.entries[i];

		if (e->base_hashes)
			e->hashes[e->hash_count] = e->base_hashes[i];
		e->hash_count++;
		w->stored_len += b->stored_len;
		err =
		    seektable_append(&e->table, b->stored_len, b->logical_len, b->checksum);
	}
	return err;
}

/* Waits for the piece's turn, gives it its place and passes the turn on. */
static errint_t place_piece(struct work *w)
{
	struct encoder *e = w->e;
	uint64_t from = 0, to = 0;
	errint_t err;

	lock_take(&e->lock);
	while (!e->err && e->turn != w->index)
		lock_wait(&e->lock, &e->turn_moved);
	err = e->err;
	if (!err) {
		w->stored_off = e->table.stored_len;
		err = is_copy(w->piece) ? place_copies(w) : place_frame(w);
		if (w->stored_off - e->writeout >= WRITEOUT_STEP) {
			from = e->writeout;
			to = e->writeout = w->stored_off;
		}
		e->turn++;
		(void)pthread_cond_broadcast(&e->turn_moved);
	}
	lock_drop(&e->lock);
	if (to > from)
		sys_start_writeout(e->out_fd, (off_t)from, (off_t)(to - from));
	return err;
}

/* ---- writing and proving ---- */

static errint_t write_frame(const struct work *w, char **cause)
{
	errint_t err =
	    full_pwrite(w->e->out_fd, w->out, w->stored_len, (off_t)w->stored_off);

	if (err)
		return set_cause_errno(cause, err, "writing the object");
	count_one(COUNTER_FRAMES_ENCODED);
	return 0;
}

static errint_t not_what_was_written(const struct work *w, char **cause)
{
	return set_cause(cause, -EUCLEAN,
	                 "what was written at %llu reads back as other bytes",
	                 (ull)w->stored_off);
}

static errint_t prove_frame(const struct work *w, char **cause)
{
	ZSTD_DCtx *context = zcontext_decoder();
	errint_t err =
	    full_pread(w->e->out_fd, w->back_stored, w->stored_len, (off_t)w->stored_off);
	size_t len;

	if (err)
		return set_cause_errno(cause, err, "reading back the object");
	if (!context)
		return -ENOMEM;
	len = ZSTD_decompressDCtx(context, w->back, w->piece->len, w->back_stored,
	                          w->stored_len);
	if (ZSTD_isError(len))
		return set_cause(cause, zcontext_error(len, -EUCLEAN),
		                 "the frame written at %llu: %s", (ull)w->stored_off,
		                 ZSTD_getErrorName(len));
	if (len != w->piece->len || memcmp(w->back, w->in, len) != 0)
		return not_what_was_written(w, cause);
	return 0;
}

static errint_t copy_frames(const struct work *w, char **cause)
{
	const struct encoder *e = w->e;
	uint64_t from = e->base->table.entries[w->piece->from].stored_off;
	errint_t err = full_copy_range(e->base->fd, (off_t)from, e->out_fd,
	                               (off_t)w->stored_off, w->stored_len);

	if (err)
		return set_cause_errno(cause, err, "copying frames of the object");
	count_n(COUNTER_FRAMES_COPIED, w->piece->to - w->piece->from);
	return 0;
}

static errint_t prove_copies(const struct work *w, char **cause)
{
	const struct encoder *e = w->e;
	uint64_t from = e->base->table.entries[w->piece->from].stored_off;
	errint_t err = 0;

	for (size_t at = 0; at < w->stored_len && !err; at += COPY_CHECK) {
		size_t len = MIN_OF(w->stored_len - at, (size_t)COPY_CHECK);

		err = full_pread(e->base->fd, w->back, len, (off_t)(from + at));
		if (!err)
			err = full_pread(e->out_fd, w->back_stored, len,
			                 (off_t)(w->stored_off + at));
		if (err)
			return set_cause_errno(cause, err, "reading back copied frames");
		if (memcmp(w->back, w->back_stored, len) != 0)
			return not_what_was_written(w, cause);
	}
	return 0;
}

/* ---- threads ---- */

/* Takes the cause over. */
static void encoder_fail(struct encoder *e, errint_t err, char *cause)
{
	lock_take(&e->lock);
	if (!e->err) {
		e->err = err;
		e->cause = steal_pointer(&cause);
		(void)pthread_cond_broadcast(&e->turn_moved);
	}
	lock_drop(&e->lock);
	free(cause);
}

static errint_t do_piece(struct work *w, char **cause)
{
	bool copy = is_copy(w->piece);
	errint_t err = copy ? 0 : encode_piece(w, cause);

	if (!err)
		err = place_piece(w);
	if (!err)
		err = copy ? copy_frames(w, cause) : write_frame(w, cause);
	if (!err && w->e->params.prove)
		err = copy ? prove_copies(w, cause) : prove_frame(w, cause);
	return err;
}

/* One thread's share. Never returns an error: the first one is in *e. */
static errint_t encoder_run(void *ctx, size_t thread)
{
	struct encoder *e = ctx;
	size_t copies = e->plan->kept_frames && !e->plan->append ? COPY_CHECK : 0;
	bool prove = e->params.prove;
	cleanup_free uint8_t *in = malloc(MAX_OF(e->largest, (size_t)1));
	cleanup_free uint8_t *out = malloc(e->room);
	cleanup_free uint8_t *back = prove ? malloc(MAX_OF(e->largest, copies) + 1) : NULL;
	cleanup_free uint8_t *stored = prove ? malloc(MAX_OF(e->room, copies)) : NULL;
	struct work w = {.e = e, .in = in, .out = out, .back = back, .back_stored = stored};

	if (!in || !out || (prove && (!back || !stored))) {
		encoder_fail(e, -ENOMEM, NULL);
		return 0;
	}
	while (take_piece(&w)) {
		char *cause = NULL;
		errint_t err = do_piece(&w, &cause);

		if (err)
			encoder_fail(e, err, cause);
	}
	return 0;
}

unsigned encode_threads(unsigned wanted, uint32_t frame_size)
{
	uint64_t fit =
	    ENCODE_MEMORY_MAX / (4ULL * MAX_OF(frame_size, (uint32_t)COPY_CHECK));

	return (unsigned)MAX_OF(1U, MIN_OF((uint64_t)wanted, fit));
}

/* ---- beginning ---- */

/* What an append leaves in front: all that the base's table lists, and the table itself. */
static errint_t keep_in_front(struct encoder *e)
{
	const struct seek_table *t = &e->base->table;
	uint64_t table_len = e->base->stored_size - t->stored_len;
	errint_t err = 0;

	for (size_t i = 0; i < t->count && !err; i++)
		err = seektable_append(&e->table, t->entries[i].stored_len,
		                       t->entries[i].logical_len, t->entries[i].checksum);
	if (!err && table_len > UINT32_MAX)
		err = -EFBIG;
	return err ? err
	           : seektable_append(&e->table, (uint32_t)table_len, 0,
	                              SEEKTABLE_EMPTY_CHECKSUM);
}

static errint_t setup(struct encoder *e)
{
	size_t frames = e->plan->kept_frames + e->plan->encoded_frames;

	e->all = XXH3_createState();
	e->hashes = calloc(frames + 1, sizeof(*e->hashes));
	if (!e->all || !e->hashes)
		return -ENOMEM;
	(void)XXH3_128bits_reset(e->all);
	for (size_t i = 0; i < e->plan->count; i++) {
		if (!is_copy(&e->plan->pieces[i]))
			e->largest = MAX_OF(e->largest, (size_t)e->plan->pieces[i].len);
	}
	if (!e->plan->append)
		return 0;
	for (size_t i = 0; i < e->base->table.count; i++) {
		if (e->base->table.entries[i].logical_len == 0)
			continue;
		if (e->base_hashes)
			e->hashes[e->hash_count] = e->base_hashes[i];
		e->hash_count++;
	}
	e->first_off = e->writeout = e->base->stored_size;
	return keep_in_front(e);
}

errint_t encoder_new(const struct encode_source *source, uint64_t size, int out_fd,
                     const struct encode_params *p, const struct plan *plan,
                     const struct object *base, const struct frame_hash *base_hashes,
                     struct encoder **ret, char **cause)
{
	struct encoder *e = calloc(1, sizeof(*e));
	errint_t err;

	INVARIANT(p->threads > 0 && p->frame_size > 0 && p->frame_size <= OBJECT_FRAME_MAX);
	if (!e)
		return -ENOMEM;
	e->source = *source;
	e->size = size;
	e->out_fd = out_fd;
	e->params = *p;
	e->plan = plan;
	e->base = base;
	e->base_hashes = base ? base_hashes : NULL;
	seektable_init(&e->table);
	err = setup(e);
	if (err) {
		encoder_free(e);
		return set_cause_errno(cause, err, "cannot begin to encode");
	}
	*ret = e;
	return 0;
}

void encoder_free(struct encoder *e)
{
	if (!e)
		return;
	seektable_clear(&e->table);
	(void)XXH3_freeState(e->all);
	free(e->hashes);
	free(e);
}

struct frame_hash *encoder_take_hashes(struct encoder *e)
{
	return steal_pointer(&e->hashes);
}

errint_t encoder_frames(struct encoder *e, char **cause)
{
	unsigned threads = (unsigned)MIN_OF(e->plan->count, (size_t)e->params.threads);
	bool shrinks = true;
	errint_t err = 0;

	/* What is no larger than one sample is tried by encoding it. */
	if (e->plan->encoded_bytes > ENCODE_PROBE_LEN)
		err = encode_probe_plan(&e->source, e->plan, &shrinks, cause);
	if (err || threads == 0)
		return err;
	e->raw = !shrinks;
	e->room = MAX_OF(zframe_raw_bound(e->largest),
	                 ZSTD_compressBound(e->largest) + ZFRAME_MARK_LEN);
	lock_init(&e->lock, LOCK_LEAF);
	lock_cond_init(&e->turn_moved);
	(void)parallel_for(threads, threads, encoder_run, e);
	(void)pthread_cond_destroy(&e->turn_moved);
	lock_clear(&e->lock);
	if (e->cause)
		(void)set_cause(cause, e->err, "%s", e->cause);
	free(e->cause);
	e->cause = NULL;
	return e->err;
}

/* ---- the end of the object ---- */

static uint64_t data_bytes(const struct seek_table *t)
{
	uint64_t n = 0;

	for (size_t i = 0; i < t->count; i++)
		n += t->entries[i].logical_len ? t->entries[i].stored_len : 0;
	return n;
}

static uint16_t flags_of(const struct encoder *e)
{
	bool all_raw = e->raw && e->plan->kept_frames == 0;

	if (all_raw ||
	    (e->size >= FLAG_MIN_SIZE && !encode_shrinks(e->size, data_bytes(&e->table))))
		return CELLARFRAME_INCOMPRESSIBLE;
	return 0;
}

/* Cellar frame and seek table in one buffer; the table is hashed into the frame. */
static errint_t make_trailer(struct encoder *e, const struct encode_result *r,
                             uint8_t **ret, size_t *ret_len)
{
	struct cellar_frame cellar = e->params.cellar;
	cleanup_free uint8_t *table = NULL;
	size_t table_len = 0;
	uint8_t *buf;
	errint_t err =
	    seektable_append(&e->table, CELLARFRAME_LEN, 0, SEEKTABLE_EMPTY_CHECKSUM);

	if (!err)
		err = seektable_serialize(&e->table, &table, &table_len);
	if (err)
		return err;
	buf = malloc(CELLARFRAME_LEN + table_len);
	if (!buf)
		return -ENOMEM;
	cellar.level = e->params.level;
	cellar.flags = r->flags;
	cellar.table_check = XXH64(table, table_len, 0);
	cellarframe_pack(&cellar, buf);
	memcpy(buf + CELLARFRAME_LEN, table, table_len);
	*ret = buf;
	*ret_len = CELLARFRAME_LEN + table_len;
	return 0;
}

errint_t encoder_trailer(struct encoder *e, struct encode_result *ret, char **cause)
{
	struct encode_result r = {.logical_size = e->table.logical_len};
	cleanup_free uint8_t *buf = NULL;
	uint64_t off = e->table.stored_len;
	XXH128_hash_t h;
	size_t len = 0;
	errint_t err;

	INVARIANT(e->table.logical_len == e->size);
	r.flags = flags_of(e);
	r.frames = e->plan->kept_frames + e->plan->encoded_frames;
	encode_hash_end(e->all, r.content_hash);
	err = make_trailer(e, &r, &buf, &len);
	if (!err)
		err = full_pwrite(e->out_fd, buf, len, (off_t)off);
	if (err)
		return set_cause_errno(cause, err, "writing the end of the object");
	h = XXH3_128bits(buf, len);
	r.trailer_hash[0] = h.low64;
	r.trailer_hash[1] = h.high64;
	r.entries = e->table.count;
	r.stored_size = off + len;
	r.written = r.stored_size - e->first_off;
	count_n(COUNTER_BYTES_STORED, r.written);
	*ret = r;
	return 0;
}

/* ---- from nothing ---- */

errint_t encode_object(int in_fd, uint64_t size, int out_fd, const struct encode_params *p,
                       struct encode_result *ret, char **cause)
{
	struct plan_rules rules = {.frame_size = p->frame_size};
	struct encode_source source = encode_source_fd(&in_fd);
	struct encoder *e = NULL;
	struct plan plan;
	errint_t err = plan_make(NULL, NULL, size, &rules, &plan, cause);

	if (!err)
		err = encoder_new(&source, size, out_fd, p, &plan, NULL, NULL, &e, cause);
	if (!err)
		err = encoder_frames(e, cause);
	if (!err)
		err = encoder_trailer(e, ret, cause);
	encoder_free(e);
	plan_clear(&plan);
	return err;
}
