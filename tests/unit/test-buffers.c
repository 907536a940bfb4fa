/* base/buffers.c: large buffers that are used again. */
#include "harness.h"

#include <pthread.h>
#include <string.h>

#include "base/buffers.h"
#include "base/error.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

#ifdef __SANITIZE_ADDRESS__
#define REUSED false /* every buffer is malloc()'s */
#else
#define REUSED true
#endif

static const size_t lengths[] = {1,         4 * KIB,     64 * KIB, 64 * KIB + 1,
                                 300 * KIB, MIB,         2 * MIB,  2 * MIB + 1,
                                 4 * MIB,   4 * MIB + 1, 9 * MIB};

/* Every byte is there and is nobody else's. */
static void test_lengths(void **state)
{
	uint8_t *buf[3 * ARRAY_LEN(lengths)];
	size_t room[ARRAY_LEN(buf)];
	struct buffers b;

	(void)state;
	buffers_init(&b, 64 * MIB);
	for (size_t i = 0; i < ARRAY_LEN(buf); i++) {
		buf[i] = buffer_get(&b, lengths[i / 3], &room[i]);
		assert_non_null(buf[i]);
		assert_true(room[i] >= lengths[i / 3]);
		assert_int_equal((uintptr_t)buf[i] % 16, 0);
		memset(buf[i], (int)i, room[i]);
	}
	for (size_t i = 0; i < ARRAY_LEN(buf); i++) {
		for (size_t at = 0; at < room[i]; at++)
			if (buf[i][at] != i)
				fail_msg("byte %zu of buffer %zu is %u", at, i, buf[i][at]);
		buffer_put(&b, buf[i], room[i]);
	}
	buffer_put(&b, NULL, 0);
	buffers_clear(&b);
}

static void test_used_again(void **state)
{
	struct buffers b;
	void *one, *two;
	size_t room;

	(void)state;
	buffers_init(&b, 64 * MIB);
	one = buffer_get(&b, MIB, &room);
	buffer_put(&b, one, room);
	two = buffer_get(&b, MIB - 5, &room); /* of the same class */
	assert_int_equal(room, REUSED ? MIB : MIB - 5);
	if (REUSED)
		assert_ptr_equal(one, two);
	buffer_put(&b, two, room);
	buffers_clear(&b);
}

static void test_spare_is_bounded(void **state)
{
	size_t room[16];
	void *buf[16];
	struct buffers b;

	(void)state;
	buffers_init(&b, 8 * MIB);
	for (size_t i = 0; i < 16; i++)
		buf[i] = buffer_get(&b, 2 * MIB, &room[i]);
	for (size_t i = 0; i < 16; i++)
		buffer_put(&b, buf[i], room[i]);
	assert_int_equal(b.spare_bytes, REUSED ? 8 * MIB : 0);
	/* longer than any class: not kept */
	buf[0] = buffer_get(&b, 5 * MIB, &room[0]);
	buffer_put(&b, buf[0], room[0]);
	assert_int_equal(b.spare_bytes, REUSED ? 8 * MIB : 0);
	buffers_clear(&b);
}

static void test_trim(void **state)
{
	const size_t kept = REUSED ? 2 * MIB : 0; /* with the rest of its page */
	struct buffers b;
	size_t room;
	void *buf;

	(void)state;
	buffers_init(&b, 64 * MIB);
	buf = buffer_get(&b, 300 * KIB, &room);
	buffer_put(&b, buf, room);
	assert_int_equal(b.spare_bytes, kept);
	assert_int_equal(buffers_trim(&b), REUSED); /* one was wanted since */
	assert_int_equal(b.spare_bytes, kept);
	assert_false(buffers_trim(&b));
	assert_int_equal(b.spare_bytes, 0);
	buffers_clear(&b);
}

/* ---- threads ---- */

static struct buffers shared;

static void *churn(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	for (int i = 0; i < 4000; i++) {
		size_t len = lengths[(size_t)rand_r(&seed) % 6], room;
		uint8_t *buf = buffer_get(&shared, len, &room);

		assert_non_null(buf);
		buf[0] = buf[len - 1] = (uint8_t)seed;
		if (i % 100 == 0)
			(void)buffers_trim(&shared);
		assert_int_equal(buf[len - 1], (uint8_t)seed);
		buffer_put(&shared, buf, room);
	}
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t t[4];

	(void)state;
	buffers_init(&shared, 4 * MIB);
	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, churn, (void *)(i + 1)), 0);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	buffers_clear(&shared);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_lengths),          cmocka_unit_test(test_used_again),
	    cmocka_unit_test(test_spare_is_bounded), cmocka_unit_test(test_trim),
	    cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
