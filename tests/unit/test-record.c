/* The record of a scratch: format, checks, xattrs. */
#include "harness.h"

#include <xxhash.h>

#include "pool/record.h"

static struct record sample(void)
{
	struct record r = {
	    .state = RECORD_DIRTY,
	    .kind = RECORD_WHOLE,
	    .ino = 0x1122334455667788ULL,
	    .ask = 7,
	    .base = {{{1, 2}}, 3, {4, 5}},
	    .seq = 9,
	    .sync_seq = 8,
	    .sync_size = 1ULL << 40,
	    .ctime = {-3, 999999999},
	    .flags = RECORD_NEW | RECORD_DOOMED,
	};

	memset(r.boot.b, 0xb0, sizeof(r.boot.b));
	return r;
}

static void reseal(uint8_t *buf)
{
	uint64_t sum = XXH64(buf, RECORD_LEN - 8, 0);

	memcpy(buf + RECORD_LEN - 8, &sum, 8); /* tests run on little-endian machines */
}

static void test_round_trip(void **state)
{
	struct record r = sample(), back;
	uint8_t buf[RECORD_LEN];

	record_pack(&r, buf);
	assert_int_equal(record_unpack(buf, sizeof(buf), &back), 0);
	assert_memory_equal(&back.boot, &r.boot, sizeof(r.boot));
	assert_memory_equal(&back.base, &r.base, sizeof(r.base));
	assert_int_equal(back.state, RECORD_DIRTY);
	assert_int_equal(back.ino, r.ino);
	assert_int_equal(back.ask, 7);
	assert_int_equal(back.seq, 9);
	assert_int_equal(back.sync_seq, 8);
	assert_int_equal(back.sync_size, 1ULL << 40);
	assert_int_equal(back.ctime.tv_sec, -3);
	assert_int_equal(back.ctime.tv_nsec, 999999999);
	assert_int_equal(back.flags, RECORD_NEW | RECORD_DOOMED);
}

static void test_layout(void **state)
{
	struct record r = sample();
	uint8_t buf[RECORD_LEN];

	record_pack(&r, buf);
	assert_memory_equal(buf, "CLRR\1\0\1\0", 8);
	assert_int_equal(buf[8], 0x88); /* ino, little-endian */
	assert_int_equal(buf[15], 0x11);
	assert_int_equal(buf[16], 7);    /* ask */
	assert_int_equal(buf[24], 0xb0); /* boot */
	assert_int_equal(buf[40], 1);    /* base identity */
	assert_int_equal(buf[56], 3);    /* base size */
	assert_int_equal(buf[64], 4);    /* base trailer */
	assert_int_equal(buf[80], 9);    /* seq */
	assert_int_equal(buf[88], 8);    /* sync_seq */
	assert_int_equal(buf[116], RECORD_NEW | RECORD_DOOMED);
}

static void test_every_bit_counts(void **state)
{
	struct record r = sample(), back;
	uint8_t buf[RECORD_LEN];

	record_pack(&r, buf);
	for (size_t bit = 0; bit < RECORD_LEN * 8; bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(record_unpack(buf, sizeof(buf), &back), -EUCLEAN);
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t len = 0; len < RECORD_LEN; len++)
		assert_int_equal(record_unpack(buf, len, &back), -EUCLEAN);
}

static void test_impossible_and_newer(void **state)
{
	struct record r = sample(), back;
	uint8_t buf[RECORD_LEN];

	record_pack(&r, buf);
	buf[4] = 2;
	reseal(buf);
	assert_int_equal(record_unpack(buf, sizeof(buf), &back), -ENOTSUP);
	record_pack(&r, buf);
	buf[6] = 2; /* no such state */
	reseal(buf);
	assert_int_equal(record_unpack(buf, sizeof(buf), &back), -EUCLEAN);
	r.sync_seq = r.seq + 1; /* synced more than was ever numbered */
	record_pack(&r, buf);
	assert_int_equal(record_unpack(buf, sizeof(buf), &back), -EUCLEAN);
}

static void test_xattrs(void **state)
{
	struct harness *h = *state;
	struct record r = sample(), back;
	char *hint = NULL, *longest = malloc(100001);
	int fd;

	harness_write(h->dirfd, "f", "", 0);
	fd = openat(h->dirfd, "f", O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(record_read(fd, &back), -ENODATA);
	assert_int_equal(record_write(fd, &r), 0);
	assert_int_equal(record_read(fd, &back), 0);
	assert_int_equal(back.ino, r.ino);
	assert_int_equal(record_write_hint(fd, "a/b\nc.zst"), 0);
	assert_int_equal(record_read_hint(fd, &hint), 0);
	harness_assert_text(hint, "a/b\nc.zst");
	memset(longest, 'x', 100000);
	longest[100000] = '\0';
	assert_int_equal(record_write_hint(fd, longest), 0); /* a hint only: emptied */
	assert_int_equal(record_read_hint(fd, &hint), 0);
	harness_assert_text(hint, "");
	free(longest);
	(void)close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_layout),
	    cmocka_unit_test(test_every_bit_counts),
	    cmocka_unit_test(test_impossible_and_newer),
	    cmocka_unit_test_setup_teardown(test_xattrs, harness_setup, harness_teardown),
	};

	return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
