/*
 * codec/object.c and codec/decode.c: what an object is taken for, and that it never decodes
 * to other bytes: our own objects, those of others, cut, flipped and forged ones.
 */
#include "codec.h"

#include <sys/mman.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/counters.h"
#include "base/sysio.h"
#include "codec/little.h"

#define NO_LIMIT UINT64_MAX
#define MIB      (1024U * 1024)

/* ---- objects of other makers, by hand ---- */

struct made {
	struct bytes object;
	struct bytes table; /* entries only */
	uint32_t frames;
	bool checksums;
};

static void add_entry(struct made *m, size_t stored, const void *data, size_t len,
                      uint32_t logical)
{
	bytes_add_le(&m->table, stored, 4);
	bytes_add_le(&m->table, logical, 4);
	if (m->checksums)
		bytes_add_le(&m->table, (uint32_t)XXH64(data, len, 0), 4);
	m->frames++;
}

static void add_frame(struct made *m, const void *data, size_t len, bool with_size)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	size_t room = ZSTD_compressBound(len), stored;
	uint8_t *buf = malloc(room);

	assert_true(c && buf);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, with_size);
	stored = ZSTD_compress2(c, buf, room, data, len);
	assert_false(ZSTD_isError(stored));
	bytes_add(&m->object, buf, stored);
	add_entry(m, stored, data, len, (uint32_t)len);
	free(buf);
	(void)ZSTD_freeCCtx(c);
}

static void add_skippable(struct made *m, uint32_t magic, uint32_t len)
{
	bytes_add_le(&m->object, magic, 4);
	bytes_add_le(&m->object, len, 4);
	for (uint32_t i = 0; i < len; i++)
		bytes_add_le(&m->object, i, 1);
	add_entry(m, 8 + len, NULL, 0, 0);
}

static void add_table(struct made *m)
{
	bytes_add_le(&m->object, 0x184D2A5E, 4);
	bytes_add_le(&m->object, m->table.len + 9, 4);
	bytes_add(&m->object, m->table.p, m->table.len);
	bytes_add_le(&m->object, m->frames, 4);
	bytes_add_le(&m->object, m->checksums ? 0x80 : 0, 1);
	bytes_add_le(&m->object, 0x8F92EAB1, 4);
}

static void made_clear(struct made *m)
{
	bytes_clear(&m->object);
	bytes_clear(&m->table);
}

/* Frames of 1000 bytes, a skippable one in the middle, a last frame of 1 byte. */
static struct made foreign_seekable(const struct bytes *data, bool checksums,
                                    bool with_size)
{
	struct made m = {.checksums = checksums};

	for (size_t off = 0; off < data->len; off += 1000) {
		size_t len = data->len - off < 1000 ? data->len - off : 1000;

		add_frame(&m, data->p + off, len, with_size);
		if (off == 1000)
			add_skippable(&m, 0x184D2A50, 5);
	}
	add_table(&m);
	return m;
}

/* ---- never other bytes ---- */

enum outcome { REFUSED, SAME, PREFIX };

/* Reads object bytes in every way there is; fails the test on wrong bytes. */
static enum outcome read_all_ways(int fd, const struct bytes *data,
                                  enum object_kind *ret_kind)
{
	struct bytes got;
	struct object o;
	errint_t err = decode_fd(fd, NO_LIMIT, ret_kind, &got);
	enum outcome outcome = REFUSED;

	if (!err) {
		if (*ret_kind == OBJECT_PLAIN)
			fail_msg("an object is shown as a plain file");
		assert_true(got.len <= data->len);
		if (got.len)
			assert_memory_equal(got.p, data->p, got.len);
		outcome = got.len == data->len ? SAME : PREFIX;
		bytes_clear(&got);
	}
	assert_int_equal(object_open(fd, &o, NULL), 0);
	for (size_t i = 0; i < o.table.count; i++) {
		const struct seek_entry *e = &o.table.entries[i];
		uint8_t *buf = malloc(e->logical_len + 1);

		assert_non_null(buf);
		err = object_decode_frame(&o, i, buf, NULL);
		assert_true(!err || err == -EUCLEAN);
		if (!err) {
			assert_true(e->logical_off + e->logical_len <= data->len);
			assert_memory_equal(buf, data->p + e->logical_off, e->logical_len);
		}
		free(buf);
	}
	object_close(&o);
	return outcome;
}

static int memory_file(const struct bytes *b)
{
	int fd = memfd_create("object", MFD_CLOEXEC);

	assert_true(fd >= 0);
	if (b->len)
		assert_int_equal(pwrite(fd, b->p, b->len, 0), b->len);
	return fd;
}

/* Every bit of the object, one by one. */
static void flip_every_bit(const struct bytes *object, const struct bytes *data)
{
	int fd = memory_file(object);
	unsigned count[3] = {0};

	for (size_t bit = 0; bit < object->len * 8; bit += HARNESS_STRIDE) {
		uint8_t b = object->p[bit / 8] ^ (uint8_t)(1U << bit % 8);
		enum object_kind kind;
		enum outcome outcome;

		assert_int_equal(pwrite(fd, &b, 1, (off_t)(bit / 8)), 1);
		outcome = read_all_ways(fd, data, &kind);
		if (outcome == PREFIX || kind == OBJECT_PLAIN || kind == OBJECT_EMPTY)
			fail_msg("bit %zu flipped: outcome %d, kind %d", bit, outcome,
			         kind);
		count[outcome]++;
		assert_int_equal(pwrite(fd, &object->p[bit / 8], 1, (off_t)(bit / 8)), 1);
	}
	/* Most bits matter. */
	assert_true(count[REFUSED] > 0 || !data->len);
	assert_true(count[SAME] > 0);
	assert_int_equal(close(fd), 0);
}

/* Every byte replaced by others, among them 0 and 0xFF. */
static void damage_every_byte(const struct bytes *object, size_t from,
                              const struct bytes *data)
{
	static const uint8_t masks[] = {0xFF, 0x0F, 0xF0, 0x55};
	int fd = memory_file(object);

	for (size_t at = from; at < object->len; at += HARNESS_STRIDE) {
		for (size_t i = 0; i < ARRAY_LEN(masks) + 1; i++) {
			uint8_t b = i ? object->p[at] ^ masks[i - 1] : 0;
			enum object_kind kind;

			assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
			if (read_all_ways(fd, data, &kind) == PREFIX)
				fail_msg("byte %zu set to 0x%02x: bytes are lost", at, b);
		}
		assert_int_equal(pwrite(fd, &object->p[at], 1, (off_t)at), 1);
	}
	assert_int_equal(close(fd), 0);
}

static void test_own_damaged(void **state)
{
	static const size_t sizes[] = {0, 1, 300, 2500};

	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct bytes data = bytes_mixed(sizes[i], i);
		int fd = encode_bytes(*state, "o", &data, 1000, 1, NULL);
		struct bytes object = bytes_of_fd(fd);

		flip_every_bit(&object, &data);
		damage_every_byte(&object, 0, &data);
		assert_int_equal(close(fd), 0);
		bytes_clear(&object);
		bytes_clear(&data);
	}
}

static void test_foreign_damaged(void **state)
{
	struct bytes data = bytes_mixed(3001, 3);

	for (int checksums = 0; checksums < 2; checksums++) {
		struct made m = foreign_seekable(&data, checksums, true);

		flip_every_bit(&m.object, &data);
		damage_every_byte(&m.object, 0, &data);
		made_clear(&m);
	}
	bytes_clear(&data);
}

/* Cut anywhere: an error, or the whole where only the table is missing; never a plain
 * file, and never what whole frames are left. */
static void test_cut(void **state)
{
	struct bytes data = bytes_mixed(2500, 5);
	int fd = encode_bytes(*state, "o", &data, 1000, 1, NULL);
	struct bytes object = bytes_of_fd(fd);
	size_t enough = object.len - (8 + 12 * 4 + 9); /* cellar frame included */
	unsigned prefixes = 0, whole = 0;

	for (size_t len = object.len - 1; len > 3; len--) {
		enum object_kind kind;
		enum outcome outcome;

		assert_int_equal(ftruncate(fd, (off_t)len), 0);
		outcome = read_all_ways(fd, &data, &kind);
		assert_int_equal(kind, len < enough ? OBJECT_FOREIGN : OBJECT_SEEKABLE);
		prefixes += outcome == PREFIX;
		whole += outcome == SAME;
	}
	assert_int_equal(prefixes, 0);
	assert_int_equal(whole, object.len - enough);
	for (size_t len = 3; len > 0; len--) {
		struct object o;

		assert_int_equal(ftruncate(fd, (off_t)len), 0);
		assert_int_equal(object_open(fd, &o, NULL), 0);
		assert_int_equal(o.kind, OBJECT_PLAIN);
		assert_int_equal(o.logical_size, len);
		object_close(&o);
	}
	assert_int_equal(close(fd), 0);
	bytes_clear(&object);
	bytes_clear(&data);
}

/* The file shrinks after it was opened. */
static void test_cut_while_open(void **state)
{
	struct bytes data = bytes_mixed(2500, 5);
	int fd = encode_bytes(*state, "o", &data, 1000, 1, NULL);
	char *cause = NULL;
	struct object o;
	uint8_t buf[1000];

	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(ftruncate(fd, (off_t)o.table.entries[1].stored_off + 10), 0);
	assert_int_equal(object_decode_frame(&o, 0, buf, &cause), 0);
	assert_memory_equal(buf, data.p, 1000);
	assert_int_equal(object_decode_frame(&o, 1, buf, &cause), -EUCLEAN);
	assert_non_null(strstr(cause, "frame 1"));
	free(cause);
	object_close(&o);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

/* ---- forged tables ---- */

static struct object open_made(const struct made *m)
{
	int fd = memory_file(&m->object);
	struct object o;

	assert_int_equal(object_open(fd, &o, NULL), 0);
	return o;
}

static void expect_kind(const struct made *m, enum object_kind kind)
{
	struct object o = open_made(m);

	assert_int_equal(o.kind, kind);
	if (kind != OBJECT_SEEKABLE) {
		assert_int_equal(o.table.count, 0);
		assert_false(o.has_cellar_frame);
	}
	object_close(&o);
	assert_int_equal(close(o.fd), 0);
}

static void expect_content(const struct made *m, enum object_kind kind,
                           const struct bytes *data)
{
	int fd = memory_file(&m->object);
	enum object_kind got_kind;
	struct bytes got;

	assert_int_equal(decode_fd(fd, NO_LIMIT, &got_kind, &got), 0);
	assert_int_equal(got_kind, kind);
	assert_bytes(&got, data);
	bytes_clear(&got);
	assert_int_equal(close(fd), 0);
}

/* Lengths that still add up, at the wrong places. */
static void test_shifted_table(void **state)
{
	struct bytes data = bytes_mixed(3001, 3);
	int fd = encode_bytes(*state, "o", &data, 1000, 1, NULL);
	struct made own = {.object = bytes_of_fd(fd)};
	struct made other = foreign_seekable(&data, true, true);
	struct made *both[] = {&own, &other};

	for (size_t i = 0; i < 2; i++) {
		struct bytes *b = &both[i]->object;
		uint32_t entries = le32_at(b->p + b->len - 9);
		uint8_t *first = b->p + b->len - 9 - 12 * (size_t)entries;

		assert_int_equal(le32_at(first + 4), 1000);
		expect_content(both[i], OBJECT_SEEKABLE, &data);
		first[4]++;
		first[12 + 4]--;
		/* made anew where a cellar frame vouches for it */
		expect_content(both[i], i == 0 ? OBJECT_SEEKABLE : OBJECT_FOREIGN, &data);
	}
	assert_int_equal(close(fd), 0);
	made_clear(&own);
	made_clear(&other);
	bytes_clear(&data);
}

static void test_foreign_tables(void **state)
{
	struct bytes data = bytes_mixed(3001, 4), none = {0};
	struct made m;

	m = foreign_seekable(&data, true, true);
	expect_content(&m, OBJECT_SEEKABLE, &data);
	made_clear(&m);
	m = foreign_seekable(&data, false, true);
	expect_content(&m, OBJECT_SEEKABLE, &data);
	made_clear(&m);
	/* Without content sizes nothing proves the table. */
	m = foreign_seekable(&data, true, false);
	expect_content(&m, OBJECT_FOREIGN, &data);
	made_clear(&m);
	/* An empty file, and one of skippable frames only. */
	m = (struct made){.checksums = true};
	add_table(&m);
	expect_content(&m, OBJECT_SEEKABLE, &none);
	made_clear(&m);
	m = (struct made){.checksums = true};
	add_skippable(&m, 0x184D2A5F, 0);
	add_frame(&m, "", 0, true);
	add_table(&m);
	expect_content(&m, OBJECT_SEEKABLE, &none);
	made_clear(&m);
	/* A data frame that the table calls empty. */
	m = (struct made){.checksums = false};
	add_frame(&m, "x", 1, true);
	memset(m.table.p + 4, 0, 4);
	add_table(&m);
	expect_kind(&m, OBJECT_FOREIGN);
	made_clear(&m);
	/* A skippable frame of another length than its entry. */
	m = (struct made){.checksums = false};
	add_skippable(&m, 0x184D2A50, 20);
	m.object.p[4] = 19;
	add_table(&m);
	expect_kind(&m, OBJECT_FOREIGN);
	made_clear(&m);
	bytes_clear(&data);
}

/* Tables whose entries are not one frame each. */
static void test_entries_that_lie(void **state)
{
	struct made m = {.checksums = false};
	char *cause = NULL;
	struct object o;
	uint8_t buf[4];

	/* Two frames as one: the second would go unseen. */
	add_frame(&m, "abc", 3, true);
	add_skippable(&m, 0x184D2A50, 4);
	put_le32(m.table.p, (uint32_t)m.object.len);
	m.table.len = 8;
	m.frames = 1;
	add_table(&m);
	o = open_made(&m);
	assert_int_equal(o.kind, OBJECT_SEEKABLE);
	assert_int_equal(object_decode_frame(&o, 0, buf, &cause), -EUCLEAN);
	assert_non_null(strstr(cause, "bytes long"));
	free(cause);
	object_close(&o);
	assert_int_equal(close(o.fd), 0);
	made_clear(&m);
	/* One frame as two, cut within its header. */
	m = (struct made){.checksums = false};
	add_frame(&m, "abcdefghijkl", 12, true);
	m.object.p[4] |= 0x03; /* a dictionary id: the header ends after byte 10 */
	put_le32(m.table.p, 8);
	put_le32(m.table.p + 4, 0);
	add_entry(&m, m.object.len - 8, NULL, 0, 12);
	add_table(&m);
	expect_kind(&m, OBJECT_FOREIGN);
	made_clear(&m);
	/* An empty frame with content hidden behind it. */
	m = (struct made){.checksums = false};
	add_frame(&m, "", 0, true);
	add_frame(&m, "abc", 3, true);
	put_le32(m.table.p, (uint32_t)m.object.len);
	m.table.len = 8;
	m.frames = 1;
	add_table(&m);
	expect_content(&m, OBJECT_FOREIGN,
	               &(struct bytes){(uint8_t *)(uintptr_t) "abc", 3});
	made_clear(&m);
}

/* A trailer that is valid but proves nothing, behind a head that is damaged. */
static void test_never_plain_with_trailer(void **state)
{
	struct bytes data = bytes_mixed(3001, 3), got;
	struct made m = foreign_seekable(&data, true, false);
	enum object_kind kind;
	int fd;

	m.object.p[0] ^= 1;
	expect_kind(&m, OBJECT_FOREIGN);
	fd = memory_file(&m.object);
	assert_int_equal(decode_fd(fd, NO_LIMIT, &kind, &got), -EUCLEAN);
	assert_int_equal(close(fd), 0);
	made_clear(&m);
	bytes_clear(&data);
}

/* A byte that wants 70 MiB to be read for it. */
static void test_large_stored_frame(void **state)
{
	uint32_t stored = 70U << 20;
	struct made m = {.checksums = false}, table = {.checksums = false};
	struct object o;
	int fd;

	add_frame(&m, "x", 1, true);
	fd = memory_file(&m.object);
	add_entry(&table, stored, NULL, 0, 1);
	add_table(&table);
	assert_int_equal(pwrite(fd, table.object.p, table.object.len, stored),
	                 table.object.len);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(o.kind, OBJECT_FOREIGN);
	object_close(&o);
	assert_int_equal(close(fd), 0);
	made_clear(&m);
	made_clear(&table);
}

/* A wrong checksum in a table that is otherwise right, and frames without their own. */
static void test_table_checksum_counts(void **state)
{
	struct made m = {.checksums = true};
	uint64_t damaged = counter_get(COUNTER_DAMAGED);
	char *cause = NULL;
	struct object o;
	uint8_t buf[8];

	add_frame(&m, "checked", 7, true);
	m.table.p[8] ^= 1;
	add_table(&m);
	o = open_made(&m);
	assert_int_equal(o.kind, OBJECT_SEEKABLE);
	assert_int_equal(object_decode_frame(&o, 0, buf, &cause), -EUCLEAN);
	assert_non_null(strstr(cause, "frame 0"));
	assert_non_null(strstr(cause, "checksum"));
	assert_int_equal(counter_get(COUNTER_DAMAGED), damaged + 1);
	free(cause);
	object_close(&o);
	assert_int_equal(close(o.fd), 0);
	made_clear(&m);
}

/* Frames beyond what we hold in memory: read as a stream instead. */
static void test_large_frames(void **state)
{
	size_t len = (64U << 20) + 1;
	struct made m = {.checksums = false};
	uint8_t *zeros = calloc(1, len);
	uint64_t end = 0;
	struct object o;
	int out = memory_file(&m.object);

	assert_non_null(zeros);
	add_frame(&m, zeros, len, true);
	add_table(&m);
	o = open_made(&m);
	assert_int_equal(o.kind, OBJECT_FOREIGN);
	assert_int_equal(o.logical_size, len);
	assert_int_equal(object_extract(&o, 0, len, out, 2, NO_LIMIT, &end, NULL), 0);
	assert_int_equal(end, len);
	object_close(&o);
	assert_int_equal(close(o.fd), 0);
	assert_int_equal(close(out), 0);
	made_clear(&m);
	free(zeros);
}

/* Nine bytes must not be able to ask for memory. */
static void test_claims_of_a_footer(void **state)
{
	struct made m = {.checksums = true};
	struct object o;
	int fd;

	bytes_add_le(&m.object, 1U << 27, 4);
	bytes_add_le(&m.object, 0x80, 1);
	bytes_add_le(&m.object, 0x8F92EAB1, 4);
	fd = memory_file(&(struct bytes){0});
	assert_int_equal(pwrite(fd, m.object.p, m.object.len, 1LL << 40), m.object.len);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(o.kind, OBJECT_PLAIN);
	object_close(&o);
	assert_int_equal(close(fd), 0);
	expect_kind(&m, OBJECT_PLAIN);
	made_clear(&m);
}

/* ---- kinds ---- */

static void expect_plain(const void *data, size_t len)
{
	struct bytes b = {0}, got;
	enum object_kind kind;
	int fd;

	bytes_add(&b, data, len);
	fd = memory_file(&b);
	assert_int_equal(decode_fd(fd, NO_LIMIT, &kind, &got), 0);
	assert_int_equal(kind, OBJECT_PLAIN);
	assert_bytes(&got, &b);
	assert_int_equal(close(fd), 0);
	bytes_clear(&got);
	bytes_clear(&b);
}

static void test_plain(void **state)
{
	struct bytes large = bytes_text(3 * MIB + 17, 1);

	expect_plain("x", 1);
	expect_plain("\x28\xb5\x2f", 3);
	expect_plain("\x27\xb5\x2f\xfd\0\0\0\0", 8); /* zstd before 0.8 */
	expect_plain("\x60\x2a\x4d\x18\0\0\0\0", 8);
	expect_plain("\x4f\x2a\x4d\x18\0\0\0\0", 8);
	expect_plain(large.p, large.len);
	bytes_clear(&large);
}

static void test_empty_file(void **state)
{
	struct bytes none = {0}, got;
	enum object_kind kind;
	int fd = memory_file(&none);

	assert_int_equal(decode_fd(fd, NO_LIMIT, &kind, &got), -EUCLEAN);
	assert_int_equal(kind, OBJECT_EMPTY);
	assert_int_equal(close(fd), 0);
}

static void test_own_fields(void **state)
{
	struct bytes data = bytes_text(2500, 1), object;
	struct encode_result r;
	int fd = encode_bytes(*state, "o", &data, 1000, 2, &r);
	struct cellar_frame want = sample_cellar();
	struct object o;
	XXH128_hash_t h;

	object = bytes_of_fd(fd);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(o.kind, OBJECT_SEEKABLE);
	assert_int_equal(o.fd, fd);
	assert_int_equal(o.stored_size, object.len);
	assert_int_equal(o.logical_size, 2500);
	assert_int_equal(o.table.count, 4);
	assert_true(o.has_cellar_frame);
	assert_int_equal(o.cellar.ino, want.ino);
	assert_int_equal(o.cellar.seq, want.seq);
	assert_memory_equal(o.cellar.pool.b, want.pool.b, 16);
	assert_int_equal(o.cellar.level, 3);
	h = XXH3_128bits(object.p + o.table.entries[3].stored_off,
	                 object.len - o.table.entries[3].stored_off);
	assert_int_equal(o.trailer_hash[0], h.low64);
	assert_int_equal(o.trailer_hash[1], h.high64);
	object_close(&o);
	object_close(&o); /* twice does no harm */
	assert_int_equal(close(fd), 0);
	bytes_clear(&object);
	bytes_clear(&data);
}

/* Of what has no trailer the first and the last 64 KiB count. */
static void test_ends_are_hashed(void **state)
{
	static const struct {
		size_t at;
		bool seen;
	} cases[] = {{0, true},       {65535, true},  {65536, false},
	             {134463, false}, {134464, true}, {199999, true}};
	struct bytes data = bytes_text(200000, 1);
	int fd = memory_file(&data);
	struct object before, after;

	assert_int_equal(object_open(fd, &before, NULL), 0);
	assert_int_equal(before.kind, OBJECT_PLAIN);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		size_t at = cases[i].at;

		assert_int_equal(pwrite(fd, "\x01", 1, (off_t)at), 1);
		assert_int_equal(object_open(fd, &after, NULL), 0);
		assert_int_equal(memcmp(before.trailer_hash, after.trailer_hash, 16) != 0,
		                 cases[i].seen);
		object_close(&after);
		assert_int_equal(pwrite(fd, data.p + at, 1, (off_t)at), 1);
	}
	object_close(&before);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

/* ---- foreign objects of the zstd CLI ---- */

static void expect_cli(const struct harness *h, const char *command,
                       const struct bytes *data, bool size_known)
{
	int fd, out = memory_file(&(struct bytes){0});
	struct bytes got;
	struct object o;
	uint64_t end = 0;

	assert_int_equal(run_shell(h, command), 0);
	fd = openat(h->dirfd, "f.zst", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(o.kind, OBJECT_FOREIGN);
	assert_int_equal(o.logical_size, size_known ? data->len : OBJECT_SIZE_UNKNOWN);
	assert_int_equal(
	    object_extract(&o, 0, OBJECT_SIZE_UNKNOWN, out, 2, data->len, &end, NULL), 0);
	assert_int_equal(end, data->len);
	got = bytes_of_fd(out);
	assert_bytes(&got, data);
	bytes_clear(&got);
	if (data->len)
		assert_int_equal(object_extract(&o, 0, OBJECT_SIZE_UNKNOWN, out, 2,
		                                data->len - 1, &end, NULL),
		                 -EFBIG);
	assert_int_equal(
	    object_extract(&o, 1, OBJECT_SIZE_UNKNOWN, out, 2, data->len, &end, NULL),
	    -EINVAL);
	object_close(&o);
	assert_int_equal(close(fd), 0);
	assert_int_equal(close(out), 0);
}

static void test_cli_objects(void **state)
{
	struct harness *h = *state;
	struct bytes data = bytes_mixed(3 * MIB + 5, 8), twice = {0}, none = {0};

	harness_write(h->dirfd, "f", data.p, data.len);
	harness_write(h->dirfd, "e", "", 0);
	bytes_add(&twice, data.p, data.len);
	bytes_add(&twice, data.p, data.len);
	expect_cli(h, "zstd -qf f", &data, true);
	expect_cli(h, "zstd -qf -19 --long=27 f", &data, true);
	expect_cli(h, "zstd -qf --no-check f", &data, true);
	expect_cli(h, "zstd -qf --no-content-size f", &data, false);
	expect_cli(h, "cat f | zstd -q > f.zst", &data, false);
	expect_cli(h, "cat f | zstd -q --long=27 > f.zst", &data, false);
	expect_cli(h, "zstd -qc f > f.zst && zstd -qc -19 f >> f.zst", &twice, true);
	expect_cli(h, "zstd -qc f > f.zst && zstd -qc e >> f.zst", &data, true);
	expect_cli(h, "zstd -qc f > f.zst && cat f | zstd -q >> f.zst", &twice, false);
	expect_cli(h, "zstd -qc f > f.zst && printf 'P*M\\030\\001\\0\\0\\0x' >> f.zst",
	           &data, true);
	expect_cli(h, "printf 'P*M\\030\\0\\0\\0\\0' > f.zst && zstd -qc f >> f.zst", &data,
	           true);
	expect_cli(h, "zstd -qc e > f.zst", &none, true);
	bytes_clear(&data);
	bytes_clear(&twice);
}

static void expect_refused(const struct harness *h, const char *command, const char *says)
{
	char *cause = NULL;
	struct keep k = {.calls = 0};
	struct object o;
	int fd;

	assert_int_equal(run_shell(h, command), 0);
	fd = openat(h->dirfd, "f.zst", O_RDONLY | O_CLOEXEC);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(o.kind, OBJECT_FOREIGN);
	assert_int_equal(object_decode_all(&o, NO_LIMIT, keep_sink, &k, &cause), -EUCLEAN);
	assert_non_null(cause);
	if (!strstr(cause, says))
		fail_msg("\"%s\" not in: %s", says, cause);
	free(cause);
	bytes_clear(&k.b);
	object_close(&o);
	assert_int_equal(close(fd), 0);
}

static void test_cli_damaged(void **state)
{
	struct harness *h = *state;
	struct bytes data = bytes_text(MIB, 8);

	harness_write(h->dirfd, "f", data.p, data.len);
	assert_int_equal(run_shell(h, "zstd -q f -o whole"), 0);
	expect_refused(h, "head -c -1 whole > f.zst", "in the middle");
	expect_refused(h, "head -c 50000 whole > f.zst", "in the middle");
	expect_refused(h, "head -c 4 whole > f.zst", "in the middle");
	expect_refused(h, "cat whole > f.zst; printf x >> f.zst", "in the middle");
	expect_refused(h, "cat whole > f.zst; printf garbage >> f.zst", "no zstd frame");
	expect_refused(h, "cat whole > f.zst; head -c 40000 /dev/zero >> f.zst",
	               "no zstd frame");
	expect_refused(h, "cat whole > f.zst; printf 'P*M\\030\\010\\0\\0\\0x' >> f.zst",
	               "in the middle");
	expect_refused(
	    h, "cat whole > f.zst; printf '\\047\\265\\057\\375\\0\\0\\0\\0' >> f.zst",
	    "no zstd frame"); /* a frame of zstd 0.7 */
	expect_refused(h,
	               "cat whole > f.zst; printf '\\377\\377\\377' | dd of=f.zst bs=1 "
	               "seek=20000 conv=notrunc status=none",
	               "frame at 0");
	bytes_clear(&data);
}

/* ---- windows, dictionaries, bombs ---- */

/* One frame of one raw block "abc", without content size. */
static struct made raw_frame(uint8_t descriptor, uint8_t window, uint32_t dictionary)
{
	struct made m = {.checksums = false};

	bytes_add_le(&m.object, 0xFD2FB528, 4);
	bytes_add_le(&m.object, descriptor, 1);
	bytes_add_le(&m.object, window, 1);
	if (descriptor & 3)
		bytes_add_le(&m.object, dictionary,
		             (descriptor & 3) == 3 ? 4 : descriptor & 3);
	bytes_add_le(&m.object, 3 << 3 | 1, 3);
	bytes_add(&m.object, "abc", 3);
	return m;
}

static void expect_feature(struct made m, const char *says)
{
	struct bytes abc = {(uint8_t *)(uintptr_t) "abc", 3};
	struct keep k = {.calls = 0};
	char *cause = NULL;
	struct object o = open_made(&m);
	errint_t err = object_decode_all(&o, NO_LIMIT, keep_sink, &k, &cause);

	assert_int_equal(o.kind, OBJECT_FOREIGN);
	if (says) {
		assert_int_equal(err, -EUCLEAN);
		assert_non_null(strstr(cause, says));
		assert_int_equal(k.calls, 0);
	} else {
		assert_int_equal(err, 0);
		assert_bytes(&k.b, &abc);
	}
	free(cause);
	bytes_clear(&k.b);
	object_close(&o);
	assert_int_equal(close(o.fd), 0);
	made_clear(&m);
}

static void test_windows_and_dictionaries(void **state)
{
	expect_feature(raw_frame(0, 17 << 3, 0), NULL); /* 2^27 */
	expect_feature(raw_frame(0, 17 << 3 | 1, 0), "window");
	expect_feature(raw_frame(0, 18 << 3, 0), "window");
	expect_feature(raw_frame(0, 31 << 3 | 7, 0), "window");
	expect_feature(raw_frame(1, 0, 9), "dictionary 9");
	expect_feature(raw_frame(2, 0, 0x1234), "dictionary");
	expect_feature(raw_frame(3, 0, 0x12345678), "dictionary");
	expect_feature(raw_frame(3, 0, 0), NULL);         /* id 0: none */
	expect_feature(raw_frame(8, 0, 0), "frame at 0"); /* reserved bit */
}

/* The same in a frame of a seek table, where windows are never allocated. */
static void test_table_frame_features(void **state)
{
	static const char *const says[] = {"window", "dictionary"};

	for (size_t i = 0; i < 2; i++) {
		struct made m = {.checksums = false};
		char *cause = NULL;
		struct object o;
		uint8_t buf[4];

		bytes_add_le(&m.object, 0xFD2FB528, 4);
		bytes_add_le(&m.object, 2 << 6 | i, 1); /* content size of 4 bytes */
		bytes_add_le(&m.object, i ? 0 : 18 << 3, 1);
		if (i)
			bytes_add_le(&m.object, 5, 1);
		bytes_add_le(&m.object, 3, 4);
		bytes_add_le(&m.object, 3 << 3 | 1, 3);
		bytes_add(&m.object, "abc", 3);
		add_entry(&m, m.object.len, "abc", 3, 3);
		add_table(&m);
		o = open_made(&m);
		assert_int_equal(o.kind, OBJECT_SEEKABLE);
		assert_int_equal(object_decode_frame(&o, 0, buf, &cause), -EUCLEAN);
		assert_non_null(strstr(cause, says[i]));
		free(cause);
		object_close(&o);
		assert_int_equal(close(o.fd), 0);
		made_clear(&m);
	}
}

/* ---- sizes of foreign objects, found out by walking ---- */

/* A frame of `blocks` raw blocks of one byte, which says that it holds `size`. */
static struct made frame_of_blocks(unsigned blocks, uint64_t size)
{
	struct made m = {.checksums = false};

	bytes_add_le(&m.object, 0xFD2FB528, 4);
	bytes_add_le(&m.object, 3 << 6, 1); /* content size of 8 bytes */
	bytes_add_le(&m.object, 0, 1);
	bytes_add_le(&m.object, size, 8);
	for (unsigned i = 1; i <= blocks; i++) {
		bytes_add_le(&m.object, 1 << 3 | (i == blocks), 3);
		bytes_add_le(&m.object, 'a' + i % 26, 1);
	}
	return m;
}

static void expect_size(const struct made *m, uint64_t size)
{
	struct object o = open_made(m);

	assert_int_equal(o.kind, OBJECT_FOREIGN);
	assert_int_equal(o.logical_size, size);
	object_close(&o);
	assert_int_equal(close(o.fd), 0);
}

static void test_walk(void **state)
{
	struct made m = frame_of_blocks(4095, 4095), two;
	struct bytes got;
	int fd;

	expect_size(&m, 4095);
	bytes_add_le(&m.object, 0, 1);
	expect_size(&m, OBJECT_SIZE_UNKNOWN); /* one byte follows */
	m.object.len -= 2;
	expect_size(&m, OBJECT_SIZE_UNKNOWN); /* one byte is missing */
	made_clear(&m);
	/* More blocks than are worth the reading: decoding still works. */
	m = frame_of_blocks(4096, 4096);
	expect_size(&m, OBJECT_SIZE_UNKNOWN);
	fd = memory_file(&m.object);
	assert_int_equal(decode_fd(fd, 4096, NULL, &got), 0);
	assert_int_equal(got.len, 4096);
	assert_int_equal(got.p[0], 'b');
	assert_int_equal(close(fd), 0);
	bytes_clear(&got);
	made_clear(&m);
	/* Sizes that no sum can hold, and one that is not true. */
	m = frame_of_blocks(1, UINT64_MAX);
	expect_size(&m, OBJECT_SIZE_UNKNOWN);
	made_clear(&m);
	m = frame_of_blocks(1, 1ULL << 62);
	two = frame_of_blocks(1, 1ULL << 62);
	bytes_add(&two.object, m.object.p, m.object.len);
	expect_size(&m, 1ULL << 62);
	expect_size(&two, OBJECT_SIZE_UNKNOWN);
	fd = memory_file(&m.object);
	assert_int_equal(decode_fd(fd, 1ULL << 40, NULL, &got), -EFBIG);
	assert_int_equal(decode_fd(fd, NO_LIMIT, NULL, &got), -EUCLEAN);
	assert_int_equal(close(fd), 0);
	made_clear(&m);
	made_clear(&two);
}

static void expect_bomb(const struct harness *h, const char *command, uint64_t limit)
{
	struct keep k = {.calls = 0};
	char *cause = NULL;
	struct object o;
	int fd;

	assert_int_equal(run_shell(h, command), 0);
	fd = openat(h->dirfd, "f.zst", O_RDONLY | O_CLOEXEC);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(object_decode_all(&o, limit, keep_sink, &k, &cause), -EFBIG);
	assert_true(k.b.len <= limit);
	assert_non_null(cause);
	free(cause);
	bytes_clear(&k.b);
	object_close(&o);
	assert_int_equal(close(fd), 0);
}

static void test_bombs(void **state)
{
	struct harness *h = *state;
	struct bytes zeros = {calloc(1, 8 * MIB), 8 * MIB};
	uint64_t end = 0;
	struct object o;
	int fd;

	assert_int_equal(run_shell(h, "head -c 64M /dev/zero > z"), 0);
	expect_bomb(h, "zstd -qf z -o f.zst", MIB);
	expect_bomb(h, "zstd -q < z > f.zst", 3 * MIB + 1);
	expect_bomb(h, "zstd -q < z > f.zst", 0);
	expect_bomb(h, "zstd -qf z -o f.zst", (64U << 20) - 1);
	fd = encode_bytes(h, "o", &zeros, MIB, 1, NULL);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(object_extract(&o, 0, 1, h->dirfd, 1, 8 * MIB - 1, &end, NULL),
	                 -EFBIG);
	object_close(&o);
	assert_int_equal(close(fd), 0);
	bytes_clear(&zeros);
}

/* ---- reading in order, in parallel, in ranges ---- */

static void test_sink_stops(void **state)
{
	struct harness *h = *state;
	struct bytes data = bytes_text(5 * MIB, 2);
	int fds[3];

	fds[0] = encode_bytes(h, "o", &data, 2 * MIB, 1, NULL);
	assert_int_equal(run_shell(h, "zstd -q in -o foreign"), 0);
	fds[1] = openat(h->dirfd, "foreign", O_RDONLY | O_CLOEXEC);
	fds[2] = openat(h->dirfd, "in", O_RDONLY | O_CLOEXEC);
	for (size_t i = 0; i < 3; i++) {
		struct keep k = {.stop_at = 2};
		char *cause = NULL;
		struct object o;

		assert_int_equal(object_open(fds[i], &o, NULL), 0);
		assert_int_equal(object_decode_all(&o, NO_LIMIT, keep_sink, &k, &cause),
		                 -EINTR);
		assert_int_equal(k.calls, 2);
		assert_int_equal(k.b.len, 2 * MIB);
		assert_memory_equal(k.b.p, data.p, 2 * MIB);
		free(cause);
		bytes_clear(&k.b);
		object_close(&o);
		assert_int_equal(close(fds[i]), 0);
	}
	bytes_clear(&data);
}

static void expect_range(const struct object *o, const struct bytes *data, uint64_t off,
                         uint64_t len, uint32_t frame, unsigned threads)
{
	struct bytes before = {malloc(data->len + 1), data->len}, got;
	uint64_t stop, end = 77, from, to;
	int out;

	memset(before.p, 0xEE, before.len);
	out = memory_file(&before);
	stop = len > data->len - off ? data->len : off + len;
	from = off / frame * frame;
	to = (stop + frame - 1) / frame * frame;
	to = to > data->len ? data->len : to;
	if (stop == off)
		to = from = off;
	memcpy(before.p + from, data->p + from, to - from);
	assert_int_equal(object_extract(o, off, len, out, threads, NO_LIMIT, &end, NULL),
	                 0);
	assert_int_equal(end, to);
	got = bytes_of_fd(out);
	assert_bytes(&got, &before);
	bytes_clear(&got);
	bytes_clear(&before);
	assert_int_equal(close(out), 0);
}

static void test_extract_ranges(void **state)
{
	struct bytes data = bytes_mixed(50001, 2);
	int fd = encode_bytes(*state, "o", &data, 1000, 2, NULL);
	uint64_t seed = 5, end = 0;
	struct object o;

	assert_int_equal(object_open(fd, &o, NULL), 0);
	expect_range(&o, &data, 0, data.len, 1000, 3);
	expect_range(&o, &data, 0, OBJECT_SIZE_UNKNOWN, 1000, 2);
	expect_range(&o, &data, 0, 0, 1000, 1);
	expect_range(&o, &data, 999, 1, 1000, 2);
	expect_range(&o, &data, 999, 2, 1000, 2);
	expect_range(&o, &data, 50000, 1, 1000, 2);
	expect_range(&o, &data, 50000, UINT64_MAX, 1000, 2);
	for (unsigned i = 0; i < 60; i++) {
		uint64_t off = harness_next(&seed) % data.len;

		expect_range(&o, &data, off, harness_next(&seed) % 7000, 1000,
		             1 + (unsigned)(harness_next(&seed) % 5));
	}
	assert_int_equal(object_extract(&o, data.len, 10, -1, 2, NO_LIMIT, &end, NULL), 0);
	assert_int_equal(end, data.len);
	object_close(&o);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

/* One frame of many is damaged: the others are served, the error names it. */
static void test_damage_stays_local(void **state)
{
	struct bytes data = bytes_mixed(50000, 2);
	int fd = encode_bytes(*state, "o", &data, 1000, 2, NULL);
	int out = memory_file(&(struct bytes){0});
	char *cause = NULL;
	struct object o;
	uint8_t buf[1000];
	uint64_t end = 77;

	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(pwrite(fd, "?????", 5, (off_t)o.table.entries[20].stored_off + 20),
	                 5);
	for (size_t i = 0; i < 50; i++) {
		errint_t err = object_decode_frame(&o, i, buf, NULL);

		assert_int_equal(err, i == 20 ? -EUCLEAN : 0);
		if (!err)
			assert_memory_equal(buf, data.p + 1000 * i, 1000);
	}
	for (unsigned threads = 1; threads < 5; threads++) {
		cause = NULL;
		assert_int_equal(
		    object_extract(&o, 0, data.len, out, threads, NO_LIMIT, &end, &cause),
		    -EUCLEAN);
		assert_non_null(strstr(cause, "frame 20 "));
		assert_int_equal(end, 77);
		free(cause);
	}
	object_close(&o);
	assert_int_equal(close(out), 0);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

struct seen {
	_Atomic unsigned times[50];
	size_t fail_at;
};

static errint_t see_frame(void *ctx, size_t i, const void *data)
{
	struct seen *s = ctx;

	s->times[i]++;
	return i == s->fail_at ? -ENOSPC : 0;
}

static void test_each_frame(void **state)
{
	struct bytes data = bytes_text(50000, 2);
	int fd = encode_bytes(*state, "o", &data, 1000, 2, NULL);
	struct object o;

	assert_int_equal(object_open(fd, &o, NULL), 0);
	for (unsigned threads = 0; threads < 6; threads++) {
		struct seen s = {.fail_at = SIZE_MAX};

		assert_int_equal(object_each_frame(&o, 3, 40, threads, see_frame, &s, NULL),
		                 0);
		for (size_t i = 0; i < 50; i++)
			assert_int_equal(s.times[i], i >= 3 && i < 40);
		/* A failure stops the rest, but the thread it meets may be put to sleep just
		 * before it says so, while the others come to the end: not every time. */
		for (unsigned tries = 0;; tries++) {
			s = (struct seen){.fail_at = 17};
			assert_int_equal(
			    object_each_frame(&o, 0, 51, threads, see_frame, &s, NULL),
			    -ENOSPC);
			if (s.times[49] == 0)
				break;
			assert_true(threads > 1 && tries < 1000);
		}
	}
	object_close(&o);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

static void test_counters(void **state)
{
	struct bytes data = bytes_text(50000, 2), got;
	int fd = encode_bytes(*state, "o", &data, 1000, 2, NULL);
	uint64_t frames = counter_get(COUNTER_FRAMES_DECODED);
	uint64_t bytes = counter_get(COUNTER_BYTES_DECODED);
	struct keep k = {.calls = 0};
	struct object o;

	assert_int_equal(decode_fd(fd, NO_LIMIT, NULL, &got), 0);
	bytes_clear(&got);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), frames + 50);
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), bytes + 50000);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	o.uncounted = true;
	assert_int_equal(object_decode_all(&o, NO_LIMIT, keep_sink, &k, NULL), 0);
	bytes_clear(&k.b);
	object_close(&o);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), frames + 50);
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), bytes + 50000);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

/* Errors of the disk are errors of the disk, at whichever read they come. */
static void test_read_errors(void **state)
{
	struct bytes data, got;
	unsigned nth;
	int fd;

	if (!fault_set("fsync:1:EIO"))
		skip(); /* needs --enable-developer */
	assert_true(fault_set(NULL));
	data = bytes_text(5000, 2);
	fd = encode_bytes(*state, "o", &data, 1000, 1, NULL);
	for (nth = 1; nth < 50; nth++) {
		struct keep k = {.calls = 0};
		struct object o;
		char spec[32], *cause = NULL;
		errint_t err;

		(void)snprintf(spec, sizeof(spec), "pread:%u:EIO", nth);
		assert_true(fault_set(spec));
		err = object_open(fd, &o, &cause);
		if (!err) {
			err = object_decode_all(&o, NO_LIMIT, keep_sink, &k, &cause);
			object_close(&o);
		}
		bytes_clear(&k.b);
		if (!fault_fired())
			break;
		assert_int_equal(err, -EIO);
		assert_non_null(cause);
		free(cause);
	}
	assert_true(fault_set(NULL));
	assert_in_range(nth, 8, 20); /* footer, head, table, cellar frame, 5 frames */
	assert_int_equal(decode_fd(fd, NO_LIMIT, NULL, &got), 0);
	assert_bytes(&got, &data);
	bytes_clear(&got);
	assert_int_equal(object_open(-1, &(struct object){0}, NULL), -EBADF);
	assert_int_equal(close(fd), 0);
	bytes_clear(&data);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, harness_setup, harness_teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
	    TEST(test_own_damaged),
	    TEST(test_foreign_damaged),
	    TEST(test_cut),
	    TEST(test_cut_while_open),
	    TEST(test_shifted_table),
	    TEST(test_foreign_tables),
	    TEST(test_entries_that_lie),
	    TEST(test_never_plain_with_trailer),
	    TEST(test_large_stored_frame),
	    TEST(test_walk),
	    TEST(test_table_checksum_counts),
	    TEST(test_large_frames),
	    TEST(test_claims_of_a_footer),
	    TEST(test_plain),
	    TEST(test_empty_file),
	    TEST(test_own_fields),
	    TEST(test_ends_are_hashed),
	    TEST(test_cli_objects),
	    TEST(test_cli_damaged),
	    TEST(test_windows_and_dictionaries),
	    TEST(test_table_frame_features),
	    TEST(test_bombs),
	    TEST(test_sink_stops),
	    TEST(test_extract_ranges),
	    TEST(test_damage_stays_local),
	    TEST(test_each_frame),
	    TEST(test_counters),
	    TEST(test_read_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
