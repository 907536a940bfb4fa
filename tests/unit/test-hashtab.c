/* base/hashtab.c against a model: every member has its place in an array. */
#include <stdlib.h>

#include "harness.h"

#include "base/error.h"
#include "base/hashtab.h"

#define MEMBERS 20000

struct member {
	uint64_t key, hash;
	struct hash_link link;
	bool in;
};

static struct member *members;
static struct hashtab table;

static struct member *find(uint64_t hash, uint64_t key)
{
	struct hash_link *l;

	for (l = hashtab_first(&table, hash); l; l = hashtab_next(l)) {
		struct member *m = container_of(l, struct member, link);

		assert_int_equal(m->hash, hash);
		if (m->key == key)
			return m;
	}
	return NULL;
}

static void check_all(size_t n)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++) {
		struct member *m = &members[i];

		assert_ptr_equal(find(m->hash, m->key), m->in ? m : NULL);
		count += m->in;
	}
	assert_int_equal(table.count, count);
}

/* n members, spread: how many hashes there are for all of them. */
static void against_a_model(size_t n, uint64_t spread, unsigned bits)
{
	size_t hint = 0, left;
	struct hash_link *l;
	unsigned seed = 1;

	members = calloc(n, sizeof(*members));
	assert_non_null(members);
	table = (struct hashtab){0};
	for (size_t i = 0; i < n; i++) {
		members[i].key = i;
		members[i].hash = (i % spread) << bits;
	}
	check_all(n);
	for (size_t i = 0; i < (size_t)4 * n; i++) {
		/* Grows, shrinks, grows: what is drawn goes in or out by the phase. */
		bool growing = (i / n) % 2 == 0;
		struct member *m = &members[(size_t)rand_r(&seed) % n];

		if (!m->in && (growing || i % 8 == 0)) {
			hashtab_add(&table, &m->link, m->hash);
			m->in = true;
		} else if (m->in && (!growing || i % 8 == 0)) {
			hashtab_remove(&table, &m->link);
			m->in = false;
		}
		if (i % n == n - 1)
			check_all(n);
	}
	left = table.count;
	assert_true(left > 0);
	while ((l = hashtab_any(&table, &hint))) {
		hashtab_remove(&table, l);
		container_of(l, struct member, link)->in = false;
		left--;
	}
	assert_int_equal(left, 0);
	check_all(n);
	hashtab_clear(&table);
	free(members);
}

static void test_distinct_hashes(void **state)
{
	against_a_model(MEMBERS, MEMBERS, 0);
}

static void test_equal_hashes(void **state)
{
	against_a_model(MEMBERS, 2000, 0);
}

/* All in one slot. */
static void test_high_bits(void **state)
{
	against_a_model(MEMBERS / 4, 200, 40);
}

/* (memory) slots go when members have gone. */
static void test_it_shrinks(void **state)
{
	size_t most;

	members = calloc(MEMBERS, sizeof(*members));
	assert_non_null(members);
	table = (struct hashtab){0};
	for (size_t i = 0; i < MEMBERS; i++)
		hashtab_add(&table, &members[i].link, i);
	most = table.slot_count;
	assert_true(most >= MEMBERS && most <= (size_t)4 * MEMBERS);
	for (size_t i = 1; i < MEMBERS; i++)
		hashtab_remove(&table, &members[i].link);
	for (size_t i = 1; i < 20; i++) {
		hashtab_add(&table, &members[i].link, i);
		hashtab_remove(&table, &members[i].link);
	}
	assert_true(table.slot_count <= 64);
	assert_ptr_equal(hashtab_first(&table, 0), &members[0].link);
	hashtab_clear(&table);
	free(members);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_distinct_hashes),
	    cmocka_unit_test(test_equal_hashes),
	    cmocka_unit_test(test_high_bits),
	    cmocka_unit_test(test_it_shrinks),
	};

	return cmocka_run_group_tests_name("hashtab", tests, NULL, NULL);
}
