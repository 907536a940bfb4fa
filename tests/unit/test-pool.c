/* Opening, closing, evicting: the states of a scratch but for flush and recovery. */
#include <pthread.h>

#include "pool-fixture.h"

#define TEXT_LEN (300U << 10)

static char text[TEXT_LEN];

static int setup(void **state)
{
	harness_fill_text(text, sizeof(text), 1);
	return harness_setup(state);
}

static void test_life_of_a_file(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a.log", text, sizeof(text));
	assert_true(fx_state(&f, n).dirty);
	assert_int_equal(pool_evict(f.pool, n),
	                 -EAGAIN); /* (E1) nothing dirty is evicted */
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.log.zst", text, sizeof(text)));
	assert_false(fx_state(&f, n).dirty);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(pool_evict(f.pool, n), -EBUSY);
	pool_close_file(f.pool, n, POOL_READ);
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_false(fx_state(&f, n).warm);
	assert_int_equal(pool_evict(f.pool, n), -ENOENT);
	assert_int_equal(pool_open_file_nowait(f.pool, n, POOL_READ), -EAGAIN);
	assert_true(fx_holds(&f, n, text, sizeof(text)));
	assert_int_equal(pool_open_file_nowait(f.pool, n, POOL_READ), 0);
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Open for writing makes dirty (S1); closed without a write, it is clean again without work. */
static void test_opened_but_not_written(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct stat before, after;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 1000);
	fx_flush(&f);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &before, 0), 0);
	assert_int_equal(pool_open_file(f.pool, n, POOL_WRITE), 0);
	assert_true(fx_state(&f, n).dirty);
	pool_close_file(f.pool, n, POOL_WRITE);
	assert_false(fx_state(&f, n).dirty);
	fx_flush(&f);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &after, 0), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	node_unref(f.tree, n);
	fx_close(&f);
}

static void test_partial_hydration(void **state)
{
	struct harness *h = *state;
	size_t len = 3 << 20;
	char *big = malloc(len), piece[100];
	struct fixture f;
	struct node *n;
	uint64_t frames;

	harness_fill_text(big, len, 5);
	fx_options(&f);
	f.o.eager_size = 1 << 20;
	f.o.frame_size = 256 << 10;
	fx_open(&f, h->path, true);
	n = fx_make(&f, "big", big, len);
	fx_flush(&f);
	assert_int_equal(pool_evict(f.pool, n), 0);
	frames = counter_get(COUNTER_FRAMES_DECODED);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED),
	                 frames); /* opened, nothing decoded */
	assert_int_equal(scratch_ready(n, len - 100, 100), -EAGAIN);
	assert_int_equal(scratch_hydrate(f.pool, n, len - 100, 100), 0);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), frames + 1);
	assert_int_equal(scratch_ready(n, len - 100, 100), 0);
	assert_int_equal(scratch_ready(n, 0, 1), -EAGAIN);
	assert_int_equal(pread(scratch_fd(n), piece, 100, (off_t)len - 100), 100);
	assert_memory_equal(piece, big + len - 100, 100);
	assert_int_equal(pool_lseek(f.pool, n, 10, SEEK_DATA, true),
	                 10); /* never called a hole */
	assert_int_equal(pool_lseek(f.pool, n, 10, SEEK_HOLE, true), (off_t)len);
	pool_close_file(f.pool, n, POOL_READ);
	/* Writing needs all of it first (H3). */
	assert_int_equal(pool_open_file(f.pool, n, POOL_WRITE), 0);
	fx_pwrite(&f, n, "X", 1, 0);
	pool_close_file(f.pool, n, POOL_WRITE);
	big[0] = 'X';
	assert_true(fx_holds(&f, n, big, len));
	fx_flush(&f);
	assert_true(fx_object_is(&f, "big.zst", big, len));
	node_unref(f.tree, n);
	fx_close(&f);
	free(big);
}

static void test_truncate(void **state)
{
	struct harness *h = *state;
	char want[2000] = {0};
	struct fixture f;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_int_equal(pool_truncate(f.pool, n, 1000), 0); /* cold: hydrated, then cut */
	assert_int_equal(pool_truncate(f.pool, n, 2000), 0);
	memcpy(want, text, 1000);
	assert_true(fx_holds(&f, n, want, 2000));
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.zst", want, 2000));
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_int_equal(pool_open_file(f.pool, n, POOL_WRITE | POOL_TRUNC), 0);
	pool_close_file(f.pool, n, POOL_WRITE);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.zst", "", 0));
	node_unref(f.tree, n);
	fx_close(&f);
}

static void test_least_recently_used_goes_first(void **state)
{
	struct harness *h = *state;
	struct node *n[10];
	struct fixture f;
	char name[8];
	char *noise = malloc(256 << 10);
	uint64_t i;

	fx_options(&f);
	f.o.pool_size = 1 << 20;
	fx_open(&f, h->path, false);
	f.pool->limit_bytes = 100 << 20; /* nothing goes before we look */
	for (i = 0; i < 10; i++) {
		harness_fill(noise, 256 << 10, i);
		snprintf(name, sizeof(name), "f%d", (int)i);
		n[i] = fx_make(&f, name, noise, 256 << 10);
	}
	assert_int_equal(flush_start(f.pool), 0);
	fx_flush(&f);
	assert_int_equal(pool_open_file(f.pool, n[0], POOL_READ), 0); /* used again */
	pool_close_file(f.pool, n[0], POOL_READ);
	assert_int_equal(pool_open_file(f.pool, n[1], POOL_READ), 0); /* and open */
	f.pool->limit_bytes = 1 << 20;
	evict_house(f.pool);
	assert_true(fx_state(&f, n[0]).warm);
	assert_true(fx_state(&f, n[1]).warm);
	for (i = 2; i < 8; i++)
		assert_false(fx_state(&f, n[i]).warm);
	assert_true(fx_state(&f, n[9]).warm);
	assert_true(f.pool->bytes <= f.pool->limit_bytes);
	pool_close_file(f.pool, n[1], POOL_READ);
	for (i = 0; i < 10; i++)
		node_unref(f.tree, n[i]);
	fx_close(&f);
	free(noise);
}

static void test_open_limit(void **state)
{
	struct harness *h = *state;
	struct node *a, *b;
	struct fixture f;

	fx_options(&f);
	f.o.max_open = 2;
	fx_open(&f, h->path, true);
	a = fx_make(&f, "a", text, 10);
	b = fx_make(&f, "b", text, 10);
	f.pool->max_open = 1;
	assert_int_equal(pool_open_file(f.pool, a, POOL_READ), 0);
	assert_int_equal(pool_open_file(f.pool, a, POOL_READ), 0); /* the same file again */
	assert_int_equal(pool_open_file(f.pool, b, POOL_READ), -ENFILE);
	pool_close_file(f.pool, a, POOL_READ);
	assert_int_equal(pool_open_file(f.pool, b, POOL_READ), -ENFILE);
	pool_close_file(f.pool, a, POOL_READ);
	assert_int_equal(pool_open_file(f.pool, b, POOL_READ), 0);
	pool_close_file(f.pool, b, POOL_READ);
	node_unref(f.tree, a);
	node_unref(f.tree, b);
	fx_close(&f);
}

static void test_doomed(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n;
	struct stat st;
	uint64_t ino;

	fx_options(&f);
	fx_open(&f, h->path, false);
	n = fx_make(&f, "a", text, 1000);
	ino = n->ino;
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(unlinkat(f.store->root_fd, "a.zst", 0), 0);
	node_remove_name(f.tree, n, f.tree->root, "a.zst");
	pool_unlinked(f.pool, n, f.tree->root);
	evict_doomed(f.pool);
	assert_int_equal(fstatat(f.pool->scratch_fd, scratch_name(ino).s, &st, 0), 0);
	assert_int_equal(st.st_size, 1000); /* it lives to its last user */
	pool_close_file(f.pool, n, POOL_READ);
	evict_doomed(f.pool);
	assert_int_equal(fstatat(f.pool->scratch_fd, scratch_name(ino).s, &st, 0), -1);
	node_unref(f.tree, n);
	fx_close(&f);
}

struct racer {
	pthread_barrier_t *start;
	const char *path;
	struct uuid store;
	struct pool_place place;
	errint_t result;
	char *cause;
};

static void *race_for_pool(void *arg)
{
	const struct uuid none = {{0}};
	struct racer *a = arg;

	pthread_barrier_wait(a->start);
	a->result =
	    pool_place_open(a->path, &a->store, &none, false, &a->place, NULL, &a->cause);
	return NULL;
}

/* (L1) The loser that made the directory does not take it from the winner. */
static void test_two_stores_race_for_a_pool(void **state)
{
	struct harness *h = *state;
	cleanup_free char *path = xasprintf("%s/raced", h->path);
	pthread_barrier_t start;

	assert_int_equal(pthread_barrier_init(&start, NULL, 2), 0);
	for (int i = 0; i < 60; i++) {
		struct racer racer[2];
		pthread_t thread[2];
		int won;

		for (int k = 0; k < 2; k++) {
			racer[k] = (struct racer){
			    .start = &start, .path = path, .store = uuid_random()};
			assert_int_equal(
			    pthread_create(&thread[k], NULL, race_for_pool, &racer[k]), 0);
		}
		for (int k = 0; k < 2; k++)
			pthread_join(thread[k], NULL);
		won = racer[0].result == 0 ? 0 : 1;
		assert_int_equal(racer[won].result, 0);
		if (racer[!won].result != -EXDEV)
			assert_int_equal(racer[!won].result, -EBUSY);
		assert_non_null(racer[!won].cause);
		free(racer[!won].cause);
		assert_int_equal(unlinkat(racer[won].place.dirfd, "pool.lock", 0), 0);
		assert_int_equal(unlinkat(racer[won].place.dirfd, "pool.self", 0), 0);
		pool_place_close(&racer[won].place);
		assert_int_equal(rmdir(path), 0);
	}
	pthread_barrier_destroy(&start);
}

static void test_wrong_pool_is_refused(void **state)
{
	struct harness *h = *state;
	struct fixture f, g;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 10);
	node_unref(f.tree, n);
	/* A second daemon: the store is locked, and so is the pool. */
	{
		struct pool_place place;
		char *path = xasprintf("%s/pool", h->path), *cause = NULL;
		struct uuid none = {{0}};

		assert_int_equal(pool_place_open(path, &f.store->uuid, &none, false, &place,
		                                 NULL, &cause),
		                 -EBUSY);
		assert_non_null(strstr(cause, "pid "));
		free(cause);
		free(path);
	}
	fx_close(&f);
	/* The pool's disk is not mounted: an empty directory in its place. */
	assert_int_equal(renameat(h->dirfd, "pool", h->dirfd, "elsewhere"), 0);
	fx_options(&g);
	assert_int_equal(fx_try_open(&g, h->path), -EXDEV);
	assert_non_null(strstr(g.cause, "is its disk mounted"));
	store_close(g.store);
	free(g.cause);
	options_clear(&g.o);
	/* Another store before the same pool. */
	assert_int_equal(renameat(h->dirfd, "elsewhere", h->dirfd, "pool"), 0);
	assert_int_equal(renameat(h->dirfd, "store", h->dirfd, "old-store"), 0);
	fx_options(&g);
	assert_int_equal(fx_try_open(&g, h->path), -EXDEV);
	assert_non_null(strstr(g.cause, "belongs to another store"));
	store_close(g.store);
	free(g.cause);
	options_clear(&g.o);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_life_of_a_file),
	    T(test_opened_but_not_written),
	    T(test_partial_hydration),
	    T(test_truncate),
	    T(test_least_recently_used_goes_first),
	    T(test_open_limit),
	    T(test_doomed),
	    T(test_two_stores_race_for_a_pool),
	    T(test_wrong_pool_is_refused),
	};

	return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
