/*
 * Writing objects: see encode.h for what an object is made of.
 *
 * Each thread takes the next frame of the input, reads it, encodes it, waits for its turn,
 * and writes it where the frame before it ends. Invariants, under encoder.lock:
 *  (1) turn <= next: frames below `turn` have their place in the object and their entry in
 *      the table; those from `next` on were not taken yet.
 *  (2) Frames are taken in ascending order and a thread holds one at a time. So the frame
 *      whose turn it is belongs to a thread that is reading or encoding, never to one that
 *      waits: there is always progress, however few threads could be started.
 *  (3) After a failure nobody takes another frame and nobody waits.
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
#include "codec/object.h"
#include "codec/zcontext.h"
#include "codec/zframe.h"

/* Probing. */
#define PROBE_SAMPLES  8U
#define PROBE_LEN      (64U << 10)
#define PROBE_LEVEL    1
#define PROBE_MIN_SIZE 4096U /* below, trying costs less than asking */

typedef unsigned long long ull; /* for %llu */

/* Shrinking by less than 2 % is none. */
static bool shrinks(uint64_t logical, uint64_t stored)
{
	return stored <= logical - logical / 50;
}

/* ---- hash of all frames from the hashes of each ---- */

static void add_hash(XXH3_state_t *all, XXH128_hash_t h)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, h);
	(void)XXH3_128bits_update(all, c.digest, sizeof(c.digest));
}

static void end_hash(const XXH3_state_t *all, uint64_t ret[2])
{
	XXH128_hash_t h = XXH3_128bits_digest(all);

	ret[0] = h.low64;
	ret[1] = h.high64;
}

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

static errint_t compress(const void *data, size_t len, int level, void *buf, size_t room,
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

/* ---- all frames ---- */

struct encoder {
	/* constant while frames are encoded */
	int in_fd, out_fd;
	uint64_t size;
	uint32_t frame_size;
	int level;
	bool raw;
	const volatile bool *stop;
	size_t frames;
	size_t room; /* for one encoded frame */

	/* under lock */
	struct lock lock; /* LOCK_LEAF */
	pthread_cond_t turn_moved;
	size_t next; /* frame to be taken */
	size_t turn; /* frame to be placed */
	errint_t err;
	char *cause;
	struct seek_table table;
	XXH3_state_t *hash;
};

struct encoded_frame {
	size_t index;
	size_t logical_len;
	size_t stored_len;
	uint64_t stored_off;
	uint32_t checksum;
	XXH128_hash_t hash;
};

static bool take_frame(struct encoder *e, struct encoded_frame *f)
{
	uint64_t off;
	bool taken;

	lock_take(&e->lock);
	if (!e->err && e->stop && *e->stop) {
		e->err = -EINTR;
		(void)pthread_cond_broadcast(&e->turn_moved);
	}
	taken = !e->err && e->next < e->frames;
	if (taken)
		f->index = e->next++;
	lock_drop(&e->lock);
	if (taken) {
		off = (uint64_t)f->index * e->frame_size;
		f->logical_len = MIN_OF((uint64_t)e->frame_size, e->size - off);
	}
	return taken;
}

static errint_t read_frame(const struct encoder *e, const struct encoded_frame *f, void *in,
                           char **cause)
{
	uint64_t off = (uint64_t)f->index * e->frame_size;
	errint_t err = full_pread(e->in_fd, in, f->logical_len, (off_t)off);

	if (err == -ENODATA)
		return set_cause(cause, err, "the file is shorter than %llu bytes",
		                 (ull)e->size);
	if (err)
		return set_cause_errno(cause, err, "reading the file at %llu", (ull)off);
	return 0;
}

static errint_t encode_frame(const struct encoder *e, struct encoded_frame *f, void *in,
                             void *out, char **cause)
{
	errint_t err = read_frame(e, f, in, cause);

	if (err)
		return err;
	f->checksum = (uint32_t)XXH64(in, f->logical_len, 0);
	f->hash = XXH3_128bits(in, f->logical_len);
	if (!e->raw)
		err = compress(in, f->logical_len, e->level, out, e->room - ZFRAME_MARK_LEN,
		               &f->stored_len, cause);
	if (err)
		return err;
	f->stored_len =
	    e->raw ? zframe_raw(in, f->logical_len, out) : zframe_mark(out, f->stored_len);
	return 0;
}

/* Waits for the frame's turn, gives it its place and passes the turn on. */
static errint_t place_frame(struct encoder *e, struct encoded_frame *f)
{
	errint_t err;

	lock_take(&e->lock);
	while (!e->err && e->turn != f->index)
		lock_wait(&e->lock, &e->turn_moved);
	err = e->err;
	if (!err) {
		f->stored_off = e->table.stored_len;
		err = seektable_append(&e->table, (uint32_t)f->stored_len,
		                       (uint32_t)f->logical_len, f->checksum);
		add_hash(e->hash, f->hash);
		e->turn++;
		(void)pthread_cond_broadcast(&e->turn_moved);
	}
	lock_drop(&e->lock);
	return err;
}

static errint_t write_frame(struct encoder *e, const struct encoded_frame *f,
                            const void *out, char **cause)
{
	errint_t err = full_pwrite(e->out_fd, out, f->stored_len, (off_t)f->stored_off);

	if (err)
		return set_cause_errno(cause, err, "writing the object");
	count_one(COUNTER_FRAMES_ENCODED);
	return 0;
}

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

/* One thread's share. Never returns an error: the first one is in *e. */
static errint_t encoder_run(void *ctx, size_t thread)
{
	struct encoder *e = ctx;
	cleanup_free void *in = malloc(MIN_OF((uint64_t)e->frame_size, e->size));
	cleanup_free void *out = malloc(e->room);
	struct encoded_frame f;

	if (!in || !out) {
		encoder_fail(e, -ENOMEM, NULL);
		return 0;
	}
	while (take_frame(e, &f)) {
		char *cause = NULL;
		errint_t err = encode_frame(e, &f, in, out, &cause);

		if (!err)
			err = place_frame(e, &f);
		if (!err)
			err = write_frame(e, &f, out, &cause);
		if (err)
			encoder_fail(e, err, cause);
	}
	return 0;
}

static errint_t encode_frames(struct encoder *e, unsigned threads, char **cause)
{
	size_t largest = MIN_OF((uint64_t)e->frame_size, e->size);

	e->room = e->raw ? zframe_raw_bound(largest)
	                 : ZSTD_compressBound(largest) + ZFRAME_MARK_LEN;
	threads = (unsigned)MIN_OF(e->frames, (size_t)threads);
	lock_init(&e->lock, LOCK_LEAF);
	lock_cond_init(&e->turn_moved);
	(void)parallel_for(threads, threads, encoder_run, e);
	(void)pthread_cond_destroy(&e->turn_moved);
	lock_clear(&e->lock);
	if (e->cause)
		(void)set_cause(cause, e->err, "%s", e->cause);
	free(e->cause);
	return e->err;
}

/* ---- the end of the object ---- */

/* Cellar frame and seek table in one buffer; the table is hashed into the frame. */
static errint_t make_trailer(struct encoder *e, const struct encode_params *p,
                             struct encode_result *r, uint8_t **ret, size_t *ret_len)
{
	struct cellar_frame cellar = p->cellar;
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
	cellar.level = p->level;
	cellar.flags = r->flags;
	cellar.table_check = XXH64(table, table_len, 0);
	cellarframe_pack(&cellar, buf);
	memcpy(buf + CELLARFRAME_LEN, table, table_len);
	*ret = buf;
	*ret_len = CELLARFRAME_LEN + table_len;
	return 0;
}

static errint_t write_trailer(struct encoder *e, const struct encode_params *p,
                              struct encode_result *r, char **cause)
{
	cleanup_free uint8_t *buf = NULL;
	uint64_t off = e->table.stored_len;
	XXH128_hash_t h;
	size_t len = 0;
	errint_t err = make_trailer(e, p, r, &buf, &len);

	if (!err)
		err = full_pwrite(e->out_fd, buf, len, (off_t)off);
	if (err)
		return set_cause_errno(cause, err, "writing the end of the object");
	h = XXH3_128bits(buf, len);
	r->trailer_hash[0] = h.low64;
	r->trailer_hash[1] = h.high64;
	r->stored_size = off + len;
	return 0;
}

static errint_t encode_all(struct encoder *e, const struct encode_params *p,
                           struct encode_result *r, char **cause)
{
	bool shrunk = true;
	errint_t err = 0;

	/* A file no larger than one sample is tried by encoding it. */
	if (e->size > PROBE_LEN)
		err = encode_probe(e->in_fd, e->size, &shrunk);
	if (err)
		return set_cause_errno(cause, err, "reading the file");
	e->raw = !shrunk;
	if (e->frames)
		err = encode_frames(e, p->threads, cause);
	if (err)
		return err;
	if (e->raw || (e->size >= PROBE_MIN_SIZE && !shrinks(e->size, e->table.stored_len)))
		r->flags = CELLARFRAME_INCOMPRESSIBLE;
	end_hash(e->hash, r->content_hash);
	return write_trailer(e, p, r, cause);
}

errint_t encode_object(int in_fd, uint64_t size, int out_fd, const struct encode_params *p,
                       struct encode_result *ret, char **cause)
{
	struct encode_result r = {.logical_size = size};
	struct encoder e = {
	    .in_fd = in_fd,
	    .out_fd = out_fd,
	    .size = size,
	    .frame_size = p->frame_size,
	    .level = p->level,
	    .stop = p->stop,
	};
	errint_t err;

	INVARIANT(p->threads > 0 && p->frame_size > 0 && p->frame_size <= OBJECT_FRAME_MAX);
	e.frames = size / p->frame_size + (size % p->frame_size != 0);
	r.frames = e.frames;
	if (e.frames >= SEEKTABLE_COUNT_MAX)
		return set_cause(cause, -EFBIG, "%llu bytes are too many frames of %u",
		                 (ull)size, p->frame_size);
	e.hash = XXH3_createState();
	if (!e.hash)
		return -ENOMEM;
	(void)XXH3_128bits_reset(e.hash);
	seektable_init(&e.table);
	err = encode_all(&e, p, &r, cause);
	seektable_clear(&e.table);
	(void)XXH3_freeState(e.hash);
	if (err)
		return err;
	count_n(COUNTER_BYTES_STORED, r.stored_size);
	*ret = r;
	return 0;
}

/* ---- proof ---- */

struct proof {
	const struct object *o;
	XXH128_hash_t *hashes; /* one an entry */
};

static errint_t prove_frame(void *ctx, size_t i, const void *data)
{
	const struct proof *p = ctx;

	p->hashes[i] = XXH3_128bits(data, p->o->table.entries[i].logical_len);
	return 0;
}

static errint_t compare_shape(const struct object *o, const struct encode_result *r,
                              char **cause)
{
	if (o->kind != OBJECT_SEEKABLE || !o->has_cellar_frame)
		return set_cause(cause, -EUCLEAN,
		                 "the written object has no valid trailer");
	if (o->stored_size != r->stored_size || o->logical_size != r->logical_size)
		return set_cause(
		    cause, -EUCLEAN,
		    "the written object is %llu bytes for %llu, not %llu for %llu",
		    (ull)o->stored_size, (ull)o->logical_size, (ull)r->stored_size,
		    (ull)r->logical_size);
	if (o->trailer_hash[0] != r->trailer_hash[0] ||
	    o->trailer_hash[1] != r->trailer_hash[1] || o->table.count != r->frames + 1)
		return set_cause(cause, -EUCLEAN, "the written object has another trailer");
	return 0;
}

static errint_t compare_content(const struct proof *p, const struct encode_result *r,
                                char **cause)
{
	XXH3_state_t *all = XXH3_createState();
	uint64_t hash[2];

	if (!all)
		return -ENOMEM;
	(void)XXH3_128bits_reset(all);
	for (size_t i = 0; i < r->frames; i++)
		add_hash(all, p->hashes[i]);
	end_hash(all, hash);
	(void)XXH3_freeState(all);
	if (hash[0] != r->content_hash[0] || hash[1] != r->content_hash[1])
		return set_cause(cause, -EUCLEAN,
		                 "the written object decodes to other bytes");
	return 0;
}

static errint_t verify_opened(const struct object *o, const struct encode_result *r,
                              unsigned threads, char **cause)
{
	cleanup_free XXH128_hash_t *hashes = calloc(o->table.count + 1, sizeof(*hashes));
	struct proof p = {.o = o, .hashes = hashes};
	errint_t err = compare_shape(o, r, cause);

	if (err)
		return err;
	if (!hashes)
		return -ENOMEM;
	err = object_each_frame(o, 0, r->frames, threads, prove_frame, &p, cause);
	return err ? err : compare_content(&p, r, cause);
}

errint_t encode_verify(int fd, const struct encode_result *r, unsigned threads,
                       char **cause)
{
	struct object o;
	errint_t err = object_open(fd, &o, cause);

	if (err)
		return err;
	o.uncounted = true;
	err = verify_opened(&o, r, threads, cause);
	object_close(&o);
	return err;
}

/* ---- samples ---- */

/* Offset of sample i of n: the first at the start, the last at the very end, the others at
 * even steps between. A single one is the whole. */
static uint64_t sample_off(uint64_t size, size_t len, unsigned i, unsigned n)
{
	return i + 1 == n ? size - len : (size - len) / n * i;
}

errint_t encode_probe(int in_fd, uint64_t size, bool *ret_shrinks)
{
	size_t len = MIN_OF(size, (uint64_t)PROBE_LEN), room = ZSTD_compressBound(len);
	unsigned n =
	    (unsigned)MIN_OF((size + PROBE_LEN - 1) / PROBE_LEN, (uint64_t)PROBE_SAMPLES);
	cleanup_free void *in = NULL, *out = NULL;
	uint64_t stored = 0;

	*ret_shrinks = true;
	if (size < PROBE_MIN_SIZE)
		return 0;
	in = malloc(len);
	out = malloc(room);
	if (!in || !out)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		size_t got = 0;
		off_t off = (off_t)sample_off(size, len, i, n);
		errint_t err = full_pread(in_fd, in, len, off);

		if (!err)
			err = compress(in, len, PROBE_LEVEL, out, room, &got, NULL);
		if (err)
			return err;
		stored += got;
	}
	*ret_shrinks = shrinks((uint64_t)n * len, stored);
	return 0;
}
