/*
 * codec/encode.c: what is written is exactly what the format says, zstd's own tool reads it,
 * and the proof fails for anything else.
 */
#include "codec.h"

#include <pthread.h>
#include <xxhash.h>

#include "base/counters.h"
#include "base/sysio.h"
#include "codec/zframe.h"

#define FRAME 4096U
#define MIB   (1024U * 1024)

/* ---- the whole object, taken apart by hand ---- */

/* The seek table against the published format and against the frames themselves: walked
 * from the start of the file, without the table. */
static void assert_layout(const struct bytes *o, const struct bytes *data,
                          uint32_t frame_size)
{
	size_t frames = (data->len + frame_size - 1) / frame_size, at = 0;
	const uint8_t *footer = o->p + o->len - 9, *entry;
	size_t table_len = 8 + 12 * (frames + 1) + 9;

	assert_int_equal(le32_at(footer + 5), 0x8F92EAB1);
	assert_int_equal(footer[4], 0x80);
	assert_int_equal(le32_at(footer), frames + 1);
	assert_int_equal(le32_at(o->p + o->len - table_len), 0x184D2A5E);
	assert_int_equal(le32_at(o->p + o->len - table_len + 4), table_len - 8);
	entry = o->p + o->len - table_len + 8;
	for (size_t i = 0; i < frames; i++, entry += 12) {
		size_t off = i * frame_size, len = data->len - off;
		struct zframe f = zframe_parse(o->p + at, o->len - at);

		len = len < frame_size ? len : frame_size;
		assert_int_equal(le32_at(entry + 4), len);
		assert_int_equal(le32_at(entry + 8),
		                 (uint32_t)XXH64(data->p + off, len, 0));
		assert_int_equal(f.kind, ZFRAME_DATA);
		assert_true(f.has_size && f.has_checksum);
		assert_int_equal(f.size, len);
		assert_int_equal(f.dictionary, 0);
		assert_true(f.window <= 1U << 27);
		at += le32_at(entry);
	}
	assert_int_equal(le32_at(entry), 80);
	assert_int_equal(le32_at(entry + 4), 0);
	assert_int_equal(le32_at(entry + 8), 0x51D8E999); /* XXH64 of nothing */
	assert_int_equal(le32_at(o->p + at), 0x184D2A5C);
	assert_int_equal(le32_at(o->p + at + 4), 72);
	assert_int_equal(at + 80 + table_len, o->len);
}

static void assert_result(const struct encode_result *r, const struct bytes *o,
                          const struct bytes *data, uint32_t frame_size)
{
	struct bytes hashes = {0};
	size_t frames = 0, trailer;
	XXH128_hash_t h;

	for (size_t off = 0; off < data->len; off += frame_size, frames++) {
		size_t len = data->len - off;
		XXH128_canonical_t c;

		h = XXH3_128bits(data->p + off, len < frame_size ? len : frame_size);
		XXH128_canonicalFromHash(&c, h);
		bytes_add(&hashes, c.digest, 16);
	}
	h = XXH3_128bits(hashes.p, hashes.len);
	assert_int_equal(r->content_hash[0], h.low64);
	assert_int_equal(r->content_hash[1], h.high64);
	trailer = 80 + 8 + 12 * (frames + 1) + 9;
	h = XXH3_128bits(o->p + o->len - trailer, trailer);
	assert_int_equal(r->trailer_hash[0], h.low64);
	assert_int_equal(r->trailer_hash[1], h.high64);
	assert_int_equal(r->frames, frames);
	assert_int_equal(r->stored_size, o->len);
	assert_int_equal(r->logical_size, data->len);
	bytes_clear(&hashes);
}

static void round_trip(const struct harness *h, const struct bytes *data,
                       uint32_t frame_size, unsigned threads, bool with_cli)
{
	struct encode_result r;
	int fd = encode_bytes(h, "o.zst", data, frame_size, threads, &r);
	struct bytes object = bytes_of_fd(fd), got;
	enum object_kind kind;

	assert_layout(&object, data, frame_size);
	assert_result(&r, &object, data, frame_size);
	assert_int_equal(decode_fd(fd, data->len, &kind, &got), 0);
	assert_int_equal(kind, OBJECT_SEEKABLE);
	assert_bytes(&got, data);
	if (with_cli)
		assert_cli_decodes(h, "o.zst", data);
	assert_int_equal(close(fd), 0);
	bytes_clear(&got);
	bytes_clear(&object);
}

static void test_sizes(void **state)
{
	static const size_t sizes[] = {0,         1,         FRAME - 1,     FRAME,
	                               FRAME + 1, 2 * FRAME, 2 * FRAME + 1, 10 * FRAME + 7};

	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct bytes text = bytes_text(sizes[i], i),
		             noise = bytes_text(sizes[i], i);
		struct bytes zeros = {calloc(1, sizes[i] + 1), sizes[i]};

		harness_fill(noise.p, noise.len, i);
		for (unsigned threads = 1; threads < 4; threads++) {
			round_trip(*state, &text, FRAME, threads, threads == 2);
			round_trip(*state, &noise, FRAME, threads, threads == 1);
			round_trip(*state, &zeros, FRAME, threads, threads == 3);
		}
		bytes_clear(&text);
		bytes_clear(&noise);
		bytes_clear(&zeros);
	}
}

static void test_random(void **state)
{
	uint64_t seed = 2024;

	for (unsigned round = 0; round < 60; round++) {
		struct bytes data = bytes_mixed(harness_next(&seed) % 300000, round);
		uint32_t frame_size = 1 + (uint32_t)(harness_next(&seed) % 100000);

		if (frame_size < 200)
			frame_size += 200;
		round_trip(*state, &data, frame_size, 1 + round % 4, round % 10 == 0);
		bytes_clear(&data);
	}
}

static void test_one_byte_frames(void **state)
{
	struct bytes data = bytes_text(700, 1);

	round_trip(*state, &data, 1, 3, true);
	bytes_clear(&data);
}

/* The sizes of the daemon: 1 MiB frames, several of them, real threads. */
static void test_large(void **state)
{
	struct bytes data = bytes_mixed(9 * MIB + 1, 3);

	round_trip(*state, &data, MIB, 4, true);
	round_trip(*state, &data, 8 * MIB, 2, true);
	round_trip(*state, &data, 64 * MIB, 2, true);
	bytes_clear(&data);
}

/* The object is the same whatever the number of threads. */
static void test_same_by_threads(void **state)
{
	struct bytes data = bytes_mixed(500000, 3), first = {0};

	for (unsigned threads = 1; threads < 9; threads++) {
		int fd = encode_bytes(*state, "o", &data, 10000, threads, NULL);
		struct bytes o = bytes_of_fd(fd);

		if (first.p)
			assert_bytes(&o, &first);
		else
			bytes_add(&first, o.p, o.len);
		bytes_clear(&o);
		assert_int_equal(close(fd), 0);
	}
	bytes_clear(&first);
	bytes_clear(&data);
}

static void test_levels(void **state)
{
	static const int levels[] = {-5, 1, 3, 9, 19};
	struct harness *h = *state;
	struct bytes data = bytes_text(300000, 5);
	int in = file_of_bytes(h, "in", &data);

	for (size_t i = 0; i < ARRAY_LEN(levels); i++) {
		struct encode_params p = {.level = levels[i],
		                          .frame_size = 100000,
		                          .threads = 2,
		                          .cellar = sample_cellar()};
		int out =
		    openat(h->dirfd, "o", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		struct encode_result r;
		struct object o;

		p.cellar.level = 77;
		p.cellar.flags = 0xFFFF;
		assert_int_equal(encode_object(in, data.len, out, &p, &r, NULL), 0);
		assert_int_equal(encode_verify(out, &r, 2, NULL), 0);
		assert_int_equal(object_open(out, &o, NULL), 0);
		assert_int_equal(o.cellar.level, levels[i]);
		assert_int_equal(o.cellar.flags, 0);
		object_close(&o);
		assert_cli_decodes(h, "o", &data);
		assert_int_equal(close(out), 0);
	}
	assert_int_equal(close(in), 0);
	bytes_clear(&data);
}

/* ---- what does not shrink ---- */

/* Length of the raw frame of `len` bytes, by the format; the first block is empty. */
static size_t raw_len(size_t len)
{
	size_t size_field = len < 256 ? 1 : len < 65792 ? 2 : 4;

	return 5 + size_field + 3 + len + 3 * ((len + 131071) / 131072) + 4;
}

static void test_incompressible(void **state)
{
	static const uint32_t frame_sizes[] = {100,   255,    256,    257, 65791,
	                                       65792, 131072, 131073, MIB};
	struct bytes data = {malloc(3 * MIB + 11), 3 * MIB + 11};
	struct encode_result r;
	struct object o;

	assert_non_null(data.p);
	harness_fill(data.p, data.len, 6);
	for (size_t i = 0; i < ARRAY_LEN(frame_sizes); i++) {
		uint32_t frame_size = frame_sizes[i];
		int fd;

		data.len = frame_size < 1000 ? 200000 : 3 * MIB + 11;
		round_trip(*state, &data, frame_size, 2, true);
		fd = encode_bytes(*state, "o", &data, frame_size, 2, &r);
		assert_int_equal(r.flags, CELLARFRAME_INCOMPRESSIBLE);
		assert_int_equal(object_open(fd, &o, NULL), 0);
		assert_int_equal(o.cellar.flags, CELLARFRAME_INCOMPRESSIBLE);
		for (size_t k = 0; k < r.frames; k++)
			assert_int_equal(o.table.entries[k].stored_len,
			                 raw_len(o.table.entries[k].logical_len));
		object_close(&o);
		assert_int_equal(close(fd), 0);
	}
	bytes_clear(&data);
}

static void expect_probe(const struct harness *h, const struct bytes *data, bool shrinks)
{
	int fd = file_of_bytes(h, "p", data);
	bool got = !shrinks;

	assert_int_equal(encode_probe(fd, data->len, &got), 0);
	assert_int_equal(got, shrinks);
	assert_int_equal(close(fd), 0);
}

static void test_probe(void **state)
{
	struct bytes data = {malloc(4 * MIB), 4 * MIB};
	bool shrinks;
	int fd;

	assert_non_null(data.p);
	harness_fill(data.p, data.len, 9);
	expect_probe(*state, &data, false);
	data.len = 4096;
	expect_probe(*state, &data, false);
	data.len = 4095; /* too small to ask */
	expect_probe(*state, &data, true);
	data.len = 0;
	expect_probe(*state, &data, true);
	data.len = 4 * MIB;
	/* A header or an end that compresses is found, wherever the rest is noise. */
	memset(data.p, 0, 65536);
	expect_probe(*state, &data, true);
	harness_fill(data.p, data.len, 9);
	memset(data.p + data.len - 65536, 0, 65536);
	expect_probe(*state, &data, true);
	harness_fill_text(data.p, data.len, 1);
	expect_probe(*state, &data, true);
	fd = file_of_bytes(*state, "p", &data);
	assert_int_equal(encode_probe(fd, data.len + 1, &shrinks), -ENODATA);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

/* Small noise is not probed but found out; small text and a tiny file are not flagged. */
static void test_flags_of_small_files(void **state)
{
	static const struct {
		size_t len;
		bool noise;
		uint16_t flags;
	} cases[] = {{4096, true, CELLARFRAME_INCOMPRESSIBLE},
	             {65536, true, CELLARFRAME_INCOMPRESSIBLE},
	             {4095, true, 0},
	             {1, true, 0},
	             {0, true, 0},
	             {4096, false, 0},
	             {65536, false, 0}};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct bytes data = bytes_text(cases[i].len, 1);
		struct encode_result r;

		if (cases[i].noise)
			harness_fill(data.p, data.len, 3);
		assert_int_equal(close(encode_bytes(*state, "o", &data, MIB, 1, &r)), 0);
		assert_int_equal(r.flags, cases[i].flags);
		bytes_clear(&data);
	}
}

/* ---- errors ---- */

static void test_short_input(void **state)
{
	struct harness *h = *state;
	struct bytes data = bytes_text(200000, 1);
	int in = file_of_bytes(h, "in", &data);
	int out = openat(h->dirfd, "o", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	for (unsigned threads = 1; threads < 5; threads++) {
		struct encode_params p = {
		    .level = 3, .frame_size = 10000, .threads = threads};
		struct encode_result r = {.stored_size = 77};
		char *cause = NULL;

		assert_int_equal(encode_object(in, data.len + 1, out, &p, &r, &cause),
		                 -ENODATA);
		assert_non_null(cause);
		assert_int_equal(r.stored_size, 77);
		free(cause);
		/* Small enough not to be probed. */
		cause = NULL;
		assert_int_equal(ftruncate(in, 25000), 0);
		assert_int_equal(encode_object(in, 25001, out, &p, &r, &cause), -ENODATA);
		assert_non_null(strstr(cause, "shorter"));
		free(cause);
		assert_int_equal(pwrite(in, data.p, data.len, 0), data.len);
	}
	assert_int_equal(close(in), 0);
	assert_int_equal(close(out), 0);
	bytes_clear(&data);
}

static void test_too_many_frames(void **state)
{
	struct encode_params p = {.level = 3, .frame_size = 1, .threads = 1};
	struct encode_result r;
	char *cause = NULL;

	assert_int_equal(encode_object(-1, 1ULL << 27, -1, &p, &r, &cause), -EFBIG);
	assert_non_null(cause);
	free(cause);
}

/* Every read and every write of an encoding fails once, and each time that is the error. */
static void fail_each(const struct harness *h, const char *call, const char *name,
                      int error, unsigned threads)
{
	struct encode_params p = {.level = 1, .frame_size = 10000, .threads = threads};
	struct bytes data = bytes_text(95000, 1);
	int in = file_of_bytes(h, "in", &data);
	unsigned nth;

	for (nth = 1; nth < 100; nth++) {
		int out =
		    openat(h->dirfd, "o", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		char spec[64], *cause = NULL;
		struct encode_result r;
		errint_t err;

		(void)snprintf(spec, sizeof(spec), "%s:%u:%s", call, nth, name);
		assert_true(fault_set(spec));
		err = encode_object(in, data.len, out, &p, &r, &cause);
		assert_int_equal(close(out), 0);
		if (!fault_fired())
			break;
		assert_int_equal(err, -error);
		assert_non_null(cause);
		free(cause);
	}
	assert_true(fault_set(NULL));
	assert_in_range(nth, 11, 40); /* ten frames, and samples or the trailer */
	assert_int_equal(close(in), 0);
	bytes_clear(&data);
}

static void test_faults(void **state)
{
	if (!fault_set("pread:1:EIO"))
		skip(); /* needs --enable-developer */
	for (unsigned threads = 1; threads < 4; threads++) {
		fail_each(*state, "pread", "EIO", EIO, threads);
		fail_each(*state, "pwrite", "ENOSPC", ENOSPC, threads);
	}
}

/* ---- the proof ---- */

static void test_verify_finds_damage(void **state)
{
	struct bytes data = bytes_mixed(2500, 4);
	struct encode_result r;
	int fd = encode_bytes(*state, "o", &data, 1000, 1, &r);
	struct bytes object = bytes_of_fd(fd);
	size_t trailer = object.len - (80 + 8 + 12 * 4 + 9);
	unsigned unseen = 0;

	for (size_t bit = 0; bit < object.len * 8; bit += HARNESS_STRIDE) {
		uint8_t b = object.p[bit / 8] ^ (uint8_t)(1U << bit % 8);
		char *cause = NULL;
		errint_t err;

		assert_int_equal(pwrite(fd, &b, 1, (off_t)(bit / 8)), 1);
		err = encode_verify(fd, &r, 2, &cause);
		if (err) {
			assert_int_equal(err, -EUCLEAN);
			assert_non_null(cause);
			free(cause);
		} else {
			/* A bit that decoders do not look at, or the table, which the
			 * cellar frame vouches for when it is made anew. */
			struct bytes got;

			assert_true(bit / 8 < trailer || bit / 8 >= trailer + 80);
			assert_int_equal(decode_fd(fd, data.len, NULL, &got), 0);
			assert_bytes(&got, &data);
			bytes_clear(&got);
			unseen++;
		}
		assert_int_equal(pwrite(fd, &object.p[bit / 8], 1, (off_t)(bit / 8)), 1);
	}
	assert_true(unseen < object.len / HARNESS_STRIDE); /* fewer than one bit in eight */
	for (size_t len = 0; len < object.len; len += HARNESS_STRIDE) {
		assert_int_equal(ftruncate(fd, (off_t)len), 0);
		assert_int_equal(encode_verify(fd, &r, 2, NULL), -EUCLEAN);
		assert_int_equal(pwrite(fd, object.p, object.len, 0), object.len);
	}
	assert_int_equal(pwrite(fd, "x", 1, (off_t)object.len), 1);
	assert_int_equal(encode_verify(fd, &r, 2, NULL), -EUCLEAN);
	assert_int_equal(close(fd), 0);
	bytes_clear(&object);
	bytes_clear(&data);
}

/* A perfect object of other content, or with another description. */
static void test_verify_finds_others(void **state)
{
	struct bytes data = bytes_text(2500, 4);
	struct encode_result r, other;
	int fd;

	assert_int_equal(close(encode_bytes(*state, "a", &data, 1000, 1, &r)), 0);
	data.p[1700] ^= 1;
	fd = encode_bytes(*state, "b", &data, 1000, 1, &other);
	assert_int_equal(encode_verify(fd, &r, 1, NULL), -EUCLEAN);
	assert_int_equal(encode_verify(fd, &other, 1, NULL), 0);
	/* All but the content agrees. */
	other.content_hash[0] = r.content_hash[0];
	assert_int_equal(encode_verify(fd, &other, 1, NULL), -EUCLEAN);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

/* The input changes while it is read: the proof is one of what was stored. */
static void *scribble(void *arg)
{
	const int *fd = arg;
	uint64_t seed = 1;

	for (unsigned i = 0; i < 3000; i++) {
		uint64_t v = harness_next(&seed);

		if (pwrite(*fd, &v, sizeof(v), (off_t)(v % 400000)) < 0)
			return arg;
	}
	return NULL;
}

static void test_input_changes(void **state)
{
	struct harness *h = *state;
	struct bytes data = bytes_text(500000, 4);
	int in = file_of_bytes(h, "in", &data);

	for (unsigned round = 0; round < 10; round++) {
		struct encode_params p = {.level = 3, .frame_size = 20000, .threads = 2};
		int out =
		    openat(h->dirfd, "o", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		struct encode_result r;
		pthread_t t;
		void *failed;

		assert_int_equal(pthread_create(&t, NULL, scribble, &in), 0);
		assert_int_equal(encode_object(in, data.len, out, &p, &r, NULL), 0);
		assert_int_equal(encode_verify(out, &r, 2, NULL), 0);
		assert_int_equal(pthread_join(t, &failed), 0);
		assert_null(failed);
		assert_int_equal(close(out), 0);
	}
	assert_int_equal(close(in), 0);
	bytes_clear(&data);
}

static void test_counters(void **state)
{
	uint64_t encoded = counter_get(COUNTER_FRAMES_ENCODED);
	uint64_t stored = counter_get(COUNTER_BYTES_STORED);
	uint64_t decoded = counter_get(COUNTER_FRAMES_DECODED);
	struct bytes data = bytes_text(2500, 4);
	struct encode_result r;

	assert_int_equal(close(encode_bytes(*state, "o", &data, 1000, 1, &r)), 0);
	assert_int_equal(counter_get(COUNTER_FRAMES_ENCODED), encoded + 3);
	assert_int_equal(counter_get(COUNTER_BYTES_STORED), stored + r.stored_size);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), decoded);
	bytes_clear(&data);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, harness_setup, harness_teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
	    TEST(test_sizes),
	    TEST(test_random),
	    TEST(test_one_byte_frames),
	    TEST(test_large),
	    TEST(test_same_by_threads),
	    TEST(test_levels),
	    TEST(test_incompressible),
	    TEST(test_probe),
	    TEST(test_flags_of_small_files),
	    TEST(test_short_input),
	    TEST(test_too_many_frames),
	    TEST(test_faults),
	    TEST(test_verify_finds_damage),
	    TEST(test_verify_finds_others),
	    TEST(test_input_changes),
	    TEST(test_counters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
