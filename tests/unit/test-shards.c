/* The directories of scratch/: made with their first file, durable with it (shards.c, P1). */
#include "pool-fixture.h"

#include "base/counters.h"
#include "base/fault.h"
#include "pool/shards.h"

static int setup(void **state)
{
	return harness_setup(state);
}

static unsigned count_dirs(struct fixture *f)
{
	char path[64];
	struct dirent *e;
	unsigned n = 0;
	DIR *d;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", f->pool->scratch_fd);
	d = opendir(path);
	assert_non_null(d);
	while ((e = readdir(d)) != NULL)
		n += e->d_name[0] != '.';
	(void)closedir(d);
	return n;
}

/* Syncs of the pool's disk that this call took. */
static uint64_t syncs_of(struct fixture *f, uint64_t ino, errint_t expected)
{
	uint64_t before = counter_get(COUNTER_POOL_SYNCS);

	assert_int_equal(shard_sync(f->pool, ino), expected);
	return counter_get(COUNTER_POOL_SYNCS) - before;
}

static void test_made_with_the_first_file(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n;
	struct stat st;

	fx_options(&f);
	fx_open(&f, h->path, false);
	assert_int_equal(count_dirs(&f), 0);
	n = fx_make(&f, "a", "text", 4);
	assert_int_equal(count_dirs(&f), 1);
	assert_int_equal(fstatat(f.pool->scratch_fd, scratch_name(n->ino).s, &st, 0), 0);
	assert_int_equal(shard_make(f.pool, n->ino), 0); /* there already */
	assert_int_equal(count_dirs(&f), 1);
	node_unref(f.tree, n);
	fx_close(&f);
	/* It is found again by the next start, with what it holds. */
	fx_options(&f);
	fx_open(&f, h->path, false);
	assert_int_equal(count_dirs(&f), 1);
	n = fx_lookup(&f, "a");
	assert_non_null(n);
	assert_true(fx_holds(&f, n, "text", 4));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* (P1) Its own name is synced with the first file's, and only then. */
static void test_name_is_durable(void **state)
{
	struct harness *h = *state;
	struct fixture f;

	fx_options(&f);
	fx_open(&f, h->path, false);
	assert_int_equal(shard_make(f.pool, 0x1007), 0);
	assert_int_equal(shard_make(f.pool, 0x10ff), 0);
	assert_int_equal(syncs_of(&f, 0x1007, 0), 2);
	assert_int_equal(syncs_of(&f, 0x1007, 0), 1);
	assert_int_equal(syncs_of(&f, 0x10ff, 0), 1); /* synced with the other */
	assert_int_equal(shard_make(f.pool, 0x1008), 0);
	assert_int_equal(syncs_of(&f, 0x1008, 0), 2);
	assert_int_equal(shard_sync(f.pool, 0x1009), -ENOENT);
	fx_close(&f);
	/* What an earlier run made is not known to be durable. */
	fx_options(&f);
	fx_open(&f, h->path, false);
	assert_int_equal(syncs_of(&f, 0x1008, 0), 2);
	assert_int_equal(syncs_of(&f, 0x1008, 0), 1);
	fx_close(&f);
}

/* (P1) A sync of scratch/ that failed has made nothing durable. */
static void test_failed_sync_is_tried_again(void **state)
{
	struct harness *h = *state;
	struct fixture f;

#ifndef CELLAR_DEVELOPER
	skip();
#endif
	fx_options(&f);
	fx_open(&f, h->path, false);
	assert_int_equal(shard_make(f.pool, 0x1007), 0);
	for (int nth = 1; nth <= 2; nth++) {
		char spec[32];

		(void)snprintf(spec, sizeof(spec), "fsync:%d:EIO", nth);
		assert_true(fault_set(spec));
		assert_int_equal(syncs_of(&f, 0x1007, -EIO), nth);
		assert_true(fault_fired());
		(void)fault_set("");
	}
	assert_int_equal(syncs_of(&f, 0x1007, 0), 2);
	fx_close(&f);
}

/* What lies in the place of one is not followed. */
static void test_planted(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	char *cause = NULL;

	fx_options(&f);
	fx_open(&f, h->path, false);
	assert_int_equal(mkdirat(h->dirfd, "outside", 0700), 0);
	assert_int_equal(symlinkat("../../outside", f.pool->scratch_fd, "07"), 0);
	assert_int_equal(shards_check(f.pool, &cause), -ENOTDIR);
	assert_non_null(strstr(cause, "scratch/07\" is not a directory"));
	free(steal_pointer(&cause));
	assert_int_equal(unlinkat(f.pool->scratch_fd, "07", 0), 0);
	/* Other names are not ours to judge. */
	assert_int_equal(mkdirat(f.pool->scratch_fd, "7", 0777), 0);
	assert_int_equal(mkdirat(f.pool->scratch_fd, "0A", 0777), 0);
	assert_int_equal(shards_check(f.pool, &cause), 0);
	fx_close(&f);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_made_with_the_first_file),
	    T(test_name_is_durable),
	    T(test_failed_sync_is_tried_again),
	    T(test_planted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
