/*
 * codec/seektable.c against the published format: tables are built and taken apart here
 * byte by byte, after zstd_seekable_compression_format.md, version 0.1.0.
 */
#include "codec.h"

#define CHECKSUMS 0x80

struct row {
	uint32_t stored, logical, checksum;
};

/* A table frame by the book. */
static struct bytes build(const struct row *rows, uint32_t n, uint8_t descriptor)
{
	unsigned step = descriptor & CHECKSUMS ? 12 : 8;
	struct bytes b = {0};

	bytes_add_le(&b, 0x184D2A5E, 4);
	bytes_add_le(&b, n * step + 9, 4);
	for (uint32_t i = 0; i < n; i++) {
		bytes_add_le(&b, rows[i].stored, 4);
		bytes_add_le(&b, rows[i].logical, 4);
		if (descriptor & CHECKSUMS)
			bytes_add_le(&b, rows[i].checksum, 4);
	}
	bytes_add_le(&b, n, 4);
	bytes_add_le(&b, descriptor, 1);
	bytes_add_le(&b, 0x8F92EAB1, 4);
	return b;
}

static errint_t parse(const struct bytes *b, uint64_t off, struct seek_table *t)
{
	/* A copy of exactly this length, so that a sanitizer sees a read beyond it. */
	uint8_t *copy = malloc(b->len ? b->len : 1);
	char *cause = NULL;
	errint_t err;

	assert_non_null(copy);
	if (b->len)
		memcpy(copy, b->p, b->len);
	err = seektable_parse(copy, b->len, off, t, &cause);
	if (err) {
		assert_int_equal(err, -EUCLEAN);
		assert_non_null(cause);
	} else {
		assert_null(cause);
	}
	free(cause);
	free(copy);
	return err;
}

static void expect_refused(struct bytes b, uint64_t off)
{
	struct seek_table t;

	assert_int_equal(parse(&b, off, &t), -EUCLEAN);
	bytes_clear(&b);
}

static void expect_rows(const struct seek_table *t, const struct row *rows, size_t n,
                        bool checksums)
{
	uint64_t stored = 0, logical = 0;

	assert_int_equal(t->count, n);
	assert_int_equal(t->has_checksums, checksums);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(t->entries[i].stored_off, stored);
		assert_int_equal(t->entries[i].logical_off, logical);
		assert_int_equal(t->entries[i].stored_len, rows[i].stored);
		assert_int_equal(t->entries[i].logical_len, rows[i].logical);
		assert_int_equal(t->entries[i].checksum, checksums ? rows[i].checksum : 0);
		stored += rows[i].stored;
		logical += rows[i].logical;
	}
	assert_int_equal(t->stored_len, stored);
	assert_int_equal(t->logical_len, logical);
}

static const struct row three[] = {
    {100, 1000, 0x01020304}, {80, 0, 0x51D8E999}, {0xFFFFFFFF, 7, 0xFFFFFFFF}};
#define THREE_STORED (100 + 80 + 0xFFFFFFFFULL)

static void test_parse(void **state)
{
	static const uint8_t descriptors[] = {0x80, 0x00, 0x83, 0x02};

	for (size_t i = 0; i < ARRAY_LEN(descriptors); i++) {
		struct bytes b = build(three, 3, descriptors[i]);
		struct seek_table t;

		assert_int_equal(seektable_len_from_footer(b.p + b.len - 9), b.len);
		assert_int_equal(parse(&b, THREE_STORED, &t), 0);
		expect_rows(&t, three, 3, descriptors[i] & CHECKSUMS);
		seektable_clear(&t);
		bytes_clear(&b);
	}
}

static void test_empty(void **state)
{
	struct bytes b = build(NULL, 0, CHECKSUMS), made = {0};
	struct seek_table t;

	assert_int_equal(parse(&b, 0, &t), 0);
	expect_rows(&t, NULL, 0, true);
	assert_int_equal(seektable_find(&t, 0), 0);
	assert_int_equal(seektable_serialize(&t, &made.p, &made.len), 0);
	assert_bytes(&made, &b);
	seektable_clear(&t);
	bytes_clear(&made);
	expect_refused(b, 1);
}

static void test_serialize(void **state)
{
	for (int checksums = 0; checksums < 2; checksums++) {
		struct bytes b = build(three, 3, checksums ? CHECKSUMS : 0), made = {0};
		struct seek_table t;

		seektable_init(&t);
		assert_true(t.has_checksums);
		t.has_checksums = checksums;
		for (size_t i = 0; i < 3; i++)
			assert_int_equal(
			    seektable_append(&t, three[i].stored, three[i].logical,
			                     checksums ? three[i].checksum : 0),
			    0);
		expect_rows(&t, three, 3, checksums);
		assert_int_equal(seektable_serialize(&t, &made.p, &made.len), 0);
		assert_bytes(&made, &b);
		seektable_clear(&t);
		bytes_clear(&made);
		bytes_clear(&b);
	}
}

static void test_refused(void **state)
{
	static const struct row no_frame[] = {{100, 1, 0}, {7, 0, 0}};
	static const struct row zero[] = {{0, 0, 0}};
	struct bytes b;

	/* Sums. */
	expect_refused(build(three, 3, CHECKSUMS), THREE_STORED - 1);
	expect_refused(build(three, 3, CHECKSUMS), THREE_STORED + 1);
	expect_refused(build(three, 3, CHECKSUMS), (uint32_t)THREE_STORED);
	expect_refused(build(no_frame, 2, CHECKSUMS), 107);
	expect_refused(build(zero, 1, 0), 0);
	/* Each reserved bit. */
	for (unsigned bit = 2; bit < 7; bit++) {
		b = build(three, 3, (uint8_t)(CHECKSUMS | 1U << bit));
		assert_int_equal(seektable_len_from_footer(b.p + b.len - 9), 0);
		expect_refused(b, THREE_STORED);
	}
	/* Lengths: every shorter one, and one longer at either end. */
	b = build(three, 3, CHECKSUMS);
	for (size_t len = 0; len < b.len; len++) {
		struct bytes front = {b.p, len}, back = {b.p + b.len - len, len};
		struct seek_table t;

		assert_int_equal(parse(&front, THREE_STORED, &t), -EUCLEAN);
		assert_int_equal(parse(&back, THREE_STORED, &t), -EUCLEAN);
	}
	bytes_add_le(&b, 0, 1);
	expect_refused(b, THREE_STORED);
	/* A count that claims more than there is, and more than there can be. */
	b = build(three, 3, CHECKSUMS);
	b.p[b.len - 9] = 4;
	expect_refused(b, THREE_STORED);
	b = build(three, 3, CHECKSUMS);
	memset(b.p + b.len - 9, 0xFF, 4);
	assert_int_equal(seektable_len_from_footer(b.p + b.len - 9), 0);
	expect_refused(b, THREE_STORED);
}

/* A flipped bit is refused, or means exactly what the format says it means. */
static void test_bit_flips(void **state)
{
	static const struct row rows[] = {{100, 1000, 1}, {80, 0, 2}, {33, 7, 3}};
	struct bytes b = build(rows, 3, CHECKSUMS);
	unsigned taken = 0;

	for (size_t bit = 0; bit < b.len * 8; bit++) {
		struct bytes made = {0};
		struct seek_table t;

		b.p[bit / 8] ^= (uint8_t)(1U << bit % 8);
		if (!parse(&b, 213, &t)) {
			taken++;
			assert_int_equal(t.count, 3);
			assert_int_equal(t.stored_len, 213);
			assert_int_equal(seektable_serialize(&t, &made.p, &made.len), 0);
			made.p[made.len - 5] |= b.p[b.len - 5] & 3; /* unused bits */
			assert_bytes(&made, &b);
			seektable_clear(&t);
			bytes_clear(&made);
		}
		b.p[bit / 8] ^= (uint8_t)(1U << bit % 8);
	}
	/* Three lengths and three checksums of 32 bits, two unused bits. */
	assert_int_equal(taken, 6 * 32 + 2);
	bytes_clear(&b);
}

static void test_find(void **state)
{
	struct seek_table t;
	uint64_t seed = 7;

	for (unsigned round = 0; round < 50; round++) {
		size_t n = harness_next(&seed) % 20;

		seektable_init(&t);
		for (size_t i = 0; i < n; i++) {
			uint32_t len = harness_next(&seed) % 4;

			assert_int_equal(seektable_append(&t, 8, len, 0), 0);
		}
		for (uint64_t off = 0; off < t.logical_len + 3; off++) {
			size_t at = 0;

			while (at < n &&
			       off - t.entries[at].logical_off >= t.entries[at].logical_len)
				at++;
			assert_int_equal(seektable_find(&t, off), at);
		}
		assert_int_equal(seektable_find(&t, UINT64_MAX), n);
		seektable_clear(&t);
		assert_int_equal(t.count, 0);
		assert_null(t.entries);
	}
}

static void test_bounds(void **state)
{
	struct seek_table t;

	seektable_init(&t);
	t.stored_len = INT64_MAX - 10;
	assert_int_equal(seektable_append(&t, 11, 0, 0), -EFBIG);
	assert_int_equal(seektable_append(&t, 10, 0, 0), 0);
	t.logical_len = INT64_MAX;
	assert_int_equal(seektable_append(&t, 0, 1, 0), -EFBIG);
	t.count = 1U << 27;
	assert_int_equal(seektable_append(&t, 0, 0, 0), -EFBIG);
	seektable_clear(&t);
}

static void test_random(void **state)
{
	uint64_t seed = 99;

	for (unsigned round = 0; round < 100; round++) {
		uint32_t n = (uint32_t)(harness_next(&seed) % 200);
		bool checksums = harness_next(&seed) & 1;
		struct row *rows = calloc(n + 1, sizeof(*rows));
		struct bytes b, made = {0};
		struct seek_table t;
		uint64_t off = 0;

		assert_non_null(rows);
		for (uint32_t i = 0; i < n; i++) {
			rows[i].stored = 8 + (uint32_t)(harness_next(&seed) % 0xFFFFFFF0);
			rows[i].logical = (uint32_t)harness_next(&seed);
			rows[i].checksum = (uint32_t)harness_next(&seed);
			off += rows[i].stored;
		}
		b = build(rows, n, checksums ? CHECKSUMS : 0);
		assert_int_equal(parse(&b, off, &t), 0);
		expect_rows(&t, rows, n, checksums);
		assert_int_equal(seektable_serialize(&t, &made.p, &made.len), 0);
		assert_bytes(&made, &b);
		seektable_clear(&t);
		bytes_clear(&made);
		bytes_clear(&b);
		free(rows);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_parse),     cmocka_unit_test(test_empty),
	    cmocka_unit_test(test_serialize), cmocka_unit_test(test_refused),
	    cmocka_unit_test(test_bit_flips), cmocka_unit_test(test_find),
	    cmocka_unit_test(test_bounds),    cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
