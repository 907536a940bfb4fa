/* pool/framehash.c alone, and what a scratch has of it through its life. */
#include "pool-fixture.h"

#include <xxhash.h>

#define LEN (1000U << 10)

static char text[LEN];

static int setup(void **state)
{
	harness_fill_text(text, sizeof(text), 7);
	return harness_setup(state);
}

static void test_same_and_not(void **state)
{
	struct seek_table t;
	struct frame_hashes *f;
	XXH128_hash_t h = XXH3_128bits(text + 500, 300);

	seektable_init(&t);
	assert_int_equal(seektable_append(&t, 100, 500, 0), 0);
	assert_int_equal(seektable_append(&t, 90, 300, 0), 0);
	assert_int_equal(seektable_append(&t, 80, 0, 0), 0);
	f = framehash_new(&t);
	seektable_clear(&t); /* a copy was taken */
	assert_non_null(f);
	assert_int_equal(f->table.count, 3);
	assert_int_equal(f->table.entries[1].logical_off, 500);
	framehash_take(f, 0, text);
	framehash_take(f, 1, text + 500);
	assert_true(f->hash[1].low == h.low64 && f->hash[1].high == h.high64);
	assert_true(framehash_same(f, 0, text, 500));
	assert_true(framehash_same(f, 1, text + 500, 300));
	assert_false(framehash_same(f, 1, text, 300));
	assert_false(framehash_same(f, 0, text, 499));
	text[500] ^= 1;
	assert_false(framehash_same(f, 1, text + 500, 300));
	text[500] ^= 1;
	framehash_free(f);
	framehash_free(NULL);
}

static void test_empty_table(void **state)
{
	struct seek_table t;
	struct frame_hashes *f;

	seektable_init(&t);
	f = framehash_new(&t);
	assert_non_null(f);
	assert_int_equal(f->table.count, 0);
	framehash_free(f);
}

/* Hydrated: one hash a frame, of what the frame holds. */
static void test_kept_with_the_scratch(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n;

	fx_options(&f);
	f.o.frame_size = 256 << 10;
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, LEN);
	fx_flush(&f);
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_true(fx_holds(&f, n, text, LEN));
	assert_non_null(n->scratch->frames);
	for (size_t i = 0; i < n->scratch->frames->table.count; i++) {
		const struct seek_entry *e = &n->scratch->frames->table.entries[i];

		if (e->logical_len > 0)
			assert_true(framehash_same(n->scratch->frames, i,
			                           text + e->logical_off, e->logical_len));
	}
	node_unref(f.tree, n);
	fx_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_same_and_not, setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_empty_table, setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_kept_with_the_scratch, setup,
	                                    harness_teardown),
	};

	return cmocka_run_group_tests_name("framehash", tests, NULL, NULL);
}
