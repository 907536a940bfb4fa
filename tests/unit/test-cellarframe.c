/* codec/cellarframe.c against the byte table of its header. */
#include "codec.h"

#include <xxhash.h>

static struct bytes by_hand(const struct cellar_frame *f)
{
	struct bytes b = {0};

	bytes_add_le(&b, 0x184D2A5C, 4);
	bytes_add_le(&b, 72, 4);
	bytes_add(&b, "CLRF", 4);
	bytes_add_le(&b, 1, 2);
	bytes_add_le(&b, f->flags, 2);
	bytes_add_le(&b, (uint32_t)f->level, 4);
	bytes_add_le(&b, (uint64_t)f->ctime.tv_nsec, 4);
	bytes_add(&b, f->pool.b, 16);
	bytes_add_le(&b, f->ino, 8);
	bytes_add_le(&b, f->seq, 8);
	bytes_add_le(&b, (uint64_t)f->ctime.tv_sec, 8);
	bytes_add_le(&b, f->table_check, 8);
	bytes_add_le(&b, XXH64(b.p, b.len, 0), 8);
	assert_int_equal(b.len, 80);
	return b;
}

static void seal(struct bytes *b)
{
	b->len -= 8;
	bytes_add_le(b, XXH64(b->p, b->len, 0), 8);
}

static void assert_same(const struct cellar_frame *a, const struct cellar_frame *b)
{
	assert_memory_equal(a->pool.b, b->pool.b, 16);
	assert_int_equal(a->ino, b->ino);
	assert_int_equal(a->seq, b->seq);
	assert_int_equal(a->ctime.tv_sec, b->ctime.tv_sec);
	assert_int_equal(a->ctime.tv_nsec, b->ctime.tv_nsec);
	assert_int_equal(a->table_check, b->table_check);
	assert_int_equal(a->level, b->level);
	assert_int_equal(a->flags, b->flags);
}

static void round_trip(const struct cellar_frame *f)
{
	struct bytes b = by_hand(f);
	uint8_t packed[CELLARFRAME_LEN];
	struct cellar_frame got;

	memset(packed, 0x5A, sizeof(packed));
	cellarframe_pack(f, packed);
	assert_memory_equal(packed, b.p, sizeof(packed));
	memset(&got, 0x5A, sizeof(got));
	assert_true(cellarframe_unpack(b.p, b.len, &got));
	assert_same(&got, f);
	bytes_clear(&b);
}

static void test_round_trip(void **state)
{
	struct cellar_frame f = sample_cellar();

	round_trip(&f);
	f.flags = CELLARFRAME_INCOMPRESSIBLE;
	f.level = -7;
	f.ctime.tv_sec = -1; /* before 1970 */
	f.ctime.tv_nsec = 999999999;
	round_trip(&f);
	f = (struct cellar_frame){.ino = UINT64_MAX,
	                          .seq = UINT64_MAX,
	                          .table_check = UINT64_MAX,
	                          .level = INT32_MIN,
	                          .flags = 0xFFFF};
	round_trip(&f);
	round_trip(&(struct cellar_frame){0});
}

static void test_every_bit_counts(void **state)
{
	struct cellar_frame f = sample_cellar(), untouched = {.ino = 77}, got = untouched;
	struct bytes b = by_hand(&f);

	for (size_t bit = 0; bit < b.len * 8; bit++) {
		b.p[bit / 8] ^= (uint8_t)(1U << bit % 8);
		assert_false(cellarframe_unpack(b.p, b.len, &got));
		b.p[bit / 8] ^= (uint8_t)(1U << bit % 8);
	}
	assert_same(&got, &untouched);
	for (size_t len = 0; len < b.len; len++)
		assert_false(cellarframe_unpack(b.p, len, &got));
	bytes_add_le(&b, 0, 1);
	assert_false(cellarframe_unpack(b.p, b.len, &got));
	bytes_clear(&b);
}

/* Well sealed, but not version 1 as we know it. */
static void test_strangers(void **state)
{
	static const struct {
		size_t at;
		uint8_t value;
		bool valid;
	} cases[] = {
	    {0, 0x5D, false}, /* another skippable frame */
	    {4, 73, false},   {8, 'c', false},   {12, 2, false}, {12, 0, false},
	    {13, 1, false},   {23, 0x40, false}, /* more than a second of nanoseconds */
	    {14, 0xFE, true},                    /* unknown flags are read past */
	    {15, 0x80, true},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct cellar_frame f = sample_cellar(), got;
		struct bytes b = by_hand(&f);

		b.p[cases[i].at] = cases[i].value;
		seal(&b);
		assert_int_equal(cellarframe_unpack(b.p, b.len, &got), cases[i].valid);
		bytes_clear(&b);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_every_bit_counts),
	    cmocka_unit_test(test_strangers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
