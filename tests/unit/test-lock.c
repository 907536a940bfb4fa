/* base/lock.c: exclusion, owners, waits, and the checked order. */
#include "harness.h"

#include "base/lock.h"

/* A step that another thread has reached, without sleeping. */
struct signpost {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	int at;
};
#define SIGNPOST                                                                           \
	{                                                                                  \
		PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0                     \
	}

static void reach(struct signpost *s, int at)
{
	(void)pthread_mutex_lock(&s->mutex);
	s->at = at;
	(void)pthread_cond_broadcast(&s->cond);
	(void)pthread_mutex_unlock(&s->mutex);
}

static void wait_until(struct signpost *s, int at)
{
	(void)pthread_mutex_lock(&s->mutex);
	while (s->at < at)
		(void)pthread_cond_wait(&s->cond, &s->mutex);
	(void)pthread_mutex_unlock(&s->mutex);
}

static pthread_t run(void *(*fn)(void *), void *arg)
{
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, fn, arg), 0);
	return t;
}

static void join(pthread_t t)
{
	assert_int_equal(pthread_join(t, NULL), 0);
}

/* ---- mutexes ---- */

struct shared {
	struct lock lock;
	struct rwlock rw;
	struct rmlock rm;
	pthread_cond_t cond;
	struct signpost post;
	bool ready;
	bool tried;
	bool mine;
	uint64_t sum;
};

static void shared_init(struct shared *s, enum lock_class class)
{
	*s = (struct shared){.post = SIGNPOST};
	lock_init(&s->lock, class);
	rwlock_init(&s->rw, class);
	rmlock_init(&s->rm, class);
	lock_cond_init(&s->cond);
}

static void shared_clear(struct shared *s)
{
	lock_clear(&s->lock);
	rwlock_clear(&s->rw);
	rmlock_clear(&s->rm);
	assert_int_equal(pthread_cond_destroy(&s->cond), 0);
}

static void *try_elsewhere(void *arg)
{
	struct shared *s = arg;

	s->mine = lock_is_mine(&s->lock);
	s->tried = lock_try(&s->lock);
	if (s->tried) {
		s->mine = lock_is_mine(&s->lock);
		lock_drop(&s->lock);
	}
	return NULL;
}

static void test_owner(void **state)
{
	struct shared s;

	shared_init(&s, LOCK_POOL);
	assert_false(lock_is_mine(&s.lock));
	lock_take(&s.lock);
	assert_true(lock_is_mine(&s.lock));
	assert_false(lock_try(&s.lock)); /* not even by ourselves */
	assert_true(lock_is_mine(&s.lock));
	join(run(try_elsewhere, &s));
	assert_false(s.tried);
	assert_false(s.mine);
	lock_drop(&s.lock);
	assert_false(lock_is_mine(&s.lock));
	join(run(try_elsewhere, &s));
	assert_true(s.tried);
	assert_true(s.mine);
	assert_true(lock_try(&s.lock));
	assert_true(lock_is_mine(&s.lock));
	lock_drop(&s.lock);
	lock_assert_none();
	shared_clear(&s);
}

static void *add_under_lock(void *arg)
{
	struct shared *s = arg;

	for (int i = 0; i < 20000; i++) {
		if (i % 3 || !lock_try(&s->lock))
			lock_take(&s->lock);
		s->sum++;
		lock_drop(&s->lock);
	}
	return NULL;
}

static void test_exclusion(void **state)
{
	struct shared s;
	pthread_t t[4];

	shared_init(&s, LOCK_LEAF);
	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		t[i] = run(add_under_lock, &s);
	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		join(t[i]);
	assert_int_equal(s.sum, ARRAY_LEN(t) * 20000);
	shared_clear(&s);
}

/* ---- waits ---- */

static void *wake(void *arg)
{
	struct shared *s = arg;

	lock_take(&s->lock); /* succeeds only while the waiter has given it up */
	s->ready = true;
	(void)pthread_cond_signal(&s->cond);
	lock_drop(&s->lock);
	return NULL;
}

static void test_wait(void **state)
{
	struct shared s;
	pthread_t t;

	shared_init(&s, LOCK_POOL);
	lock_take(&s.lock);
	t = run(wake, &s);
	while (!s.ready)
		lock_wait(&s.lock, &s.cond);
	assert_true(lock_is_mine(&s.lock));
	join(t);

	s.ready = false;
	t = run(wake, &s);
	while (!s.ready)
		assert_true(lock_wait_ms(&s.lock, &s.cond, UINT64_MAX)); /* no overflow */
	join(t);
	lock_drop(&s.lock);
	lock_assert_none();
	shared_clear(&s);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void test_wait_times_out(void **state)
{
	struct shared s;
	uint64_t before, passed;

	shared_init(&s, LOCK_POOL);
	lock_take(&s.lock);
	assert_false(lock_wait_ms(&s.lock, &s.cond, 0));
	before = now_ms();
	while (lock_wait_ms(&s.lock, &s.cond, 30)) /* woken for no reason */
		before = now_ms();
	passed = now_ms() - before;
	assert_true(passed >= 29 && passed < 10000);
	assert_true(lock_is_mine(&s.lock));
	lock_drop(&s.lock);
	shared_clear(&s);
}

/* ---- readers and writers ---- */

static void *try_both(void *arg)
{
	struct shared *s = arg;

	s->tried = rwlock_try_rd(&s->rw);
	if (s->tried)
		rwlock_drop(&s->rw);
	s->mine = rwlock_try_wr(&s->rw);
	if (s->mine)
		rwlock_drop(&s->rw);
	return NULL;
}

static void test_readers_share(void **state)
{
	struct shared s;

	shared_init(&s, LOCK_NAMESPACE);
	rwlock_rd(&s.rw);
	join(run(try_both, &s));
	assert_true(s.tried);
	assert_false(s.mine);
	rwlock_drop(&s.rw);
	rwlock_wr(&s.rw);
	join(run(try_both, &s));
	assert_false(s.tried);
	assert_false(s.mine);
	rwlock_drop(&s.rw);
	join(run(try_both, &s));
	assert_true(s.tried);
	assert_true(s.mine);
	assert_true(rwlock_try_wr(&s.rw));
	assert_false(rwlock_try_rd(&s.rw));
	rwlock_drop(&s.rw);
	assert_true(rwlock_try_rd(&s.rw));
	rwlock_drop(&s.rw);
	lock_assert_none();
	shared_clear(&s);
}

static void *try_both_rm(void *arg)
{
	struct shared *s = arg;

	s->tried = rmlock_try_rd(&s->rm);
	if (s->tried)
		rmlock_drop(&s->rm);
	s->mine = rmlock_try_wr(&s->rm);
	if (s->mine)
		rmlock_drop(&s->rm);
	return NULL;
}

/* A new thread each time, so that every part is somebody's. */
static void each_part_tries(struct shared *s, bool read, bool written)
{
	for (unsigned i = 0; i < 2 * RMLOCK_PARTS; i++) {
		join(run(try_both_rm, s));
		assert_int_equal(s->tried, read);
		assert_int_equal(s->mine, written);
	}
}

static void test_read_mostly(void **state)
{
	struct shared s;

	shared_init(&s, LOCK_NAMESPACE);
	assert_true(s.rm.parts >= 1 && s.rm.parts <= RMLOCK_PARTS);
	rmlock_clear(&s.rm);
	for (unsigned parts = 1; parts <= RMLOCK_PARTS; parts += 5) {
		rmlock_init_parts(&s.rm, LOCK_NAMESPACE, parts);
		rmlock_rd(&s.rm);
		each_part_tries(&s, true, false);
		rmlock_drop(&s.rm);
		rmlock_wr(&s.rm);
		each_part_tries(&s, false, false);
		rmlock_drop(&s.rm);
		each_part_tries(&s, true, true);
		assert_true(rmlock_try_wr(&s.rm));
		each_part_tries(&s, false, false);
		rmlock_drop(&s.rm);
		lock_assert_none();
		if (parts < RMLOCK_PARTS)
			rmlock_clear(&s.rm);
	}
	shared_clear(&s);
}

struct counted {
	struct rmlock rm;
	uint64_t a, b; /* equal whenever nobody writes */
};

static void *count_up(void *arg)
{
	struct counted *c = arg;

	for (unsigned i = 0; i < 20000; i++) {
		if (i % 8 == 0) {
			rmlock_wr(&c->rm);
			c->a++;
			c->b++;
			rmlock_drop(&c->rm);
		} else {
			rmlock_rd(&c->rm);
			if (c->a != c->b)
				abort();
			rmlock_drop(&c->rm);
		}
	}
	return NULL;
}

/* Writers exclude each other and all readers, whichever part these take. */
static void test_read_mostly_excludes(void **state)
{
	struct counted c = {.a = 0};
	pthread_t threads[5];

	rmlock_init_parts(&c.rm, LOCK_TABLE, 3);
	for (size_t i = 0; i < ARRAY_LEN(threads); i++)
		threads[i] = run(count_up, &c);
	for (size_t i = 0; i < ARRAY_LEN(threads); i++)
		join(threads[i]);
	assert_int_equal(c.a, ARRAY_LEN(threads) * 2500);
	assert_int_equal(c.b, c.a);
	rmlock_clear(&c.rm);
}

static void *write_once(void *arg)
{
	struct shared *s = arg;

	rwlock_wr(&s->rw);
	s->ready = true;
	rwlock_drop(&s->rw);
	return NULL;
}

static void *read_until_refused(void *arg)
{
	struct shared *s = arg;
	uint64_t deadline = now_ms() + 20000;

	while (now_ms() < deadline) {
		if (!rwlock_try_rd(&s->rw)) {
			s->tried = false;
			return NULL;
		}
		rwlock_drop(&s->rw);
	}
	s->tried = true;
	return NULL;
}

/* While a writer waits, new readers are kept out: readers without end cannot starve it. */
static void test_writers_are_preferred(void **state)
{
	struct shared s;
	pthread_t writer;

	shared_init(&s, LOCK_NAMESPACE);
	s.tried = true;
	rwlock_rd(&s.rw);
	writer = run(write_once, &s);
	join(run(read_until_refused, &s));
	assert_false(s.tried);
	rwlock_drop(&s.rw);
	join(writer);
	assert_true(s.ready);
	shared_clear(&s);
}

/* ---- mistakes that end the program in every build ---- */

static void take_twice(void *arg)
{
	struct lock l;

	lock_init(&l, LOCK_NODE); /* the class that allows two */
	lock_take(&l);
	lock_take(&l);
}

static void drop_free(void *arg)
{
	struct lock l;

	lock_init(&l, LOCK_POOL);
	lock_drop(&l);
}

static void *hold_for_ever(void *arg)
{
	struct shared *s = arg;

	lock_take(&s->lock);
	reach(&s->post, 1);
	wait_until(&s->post, 2);
	return NULL;
}

static void drop_anothers(void *arg)
{
	static struct shared s;
	pthread_t t;

	shared_init(&s, LOCK_POOL);
	if (pthread_create(&t, NULL, hold_for_ever, &s) != 0)
		_exit(1);
	wait_until(&s.post, 1);
	lock_drop(&s.lock);
}

static void wait_without(void *arg)
{
	struct shared s;

	shared_init(&s, LOCK_POOL);
	lock_wait(&s.lock, &s.cond);
}

static void clear_held(void *arg)
{
	struct lock l;

	lock_init(&l, LOCK_POOL);
	lock_take(&l);
	lock_clear(&l);
}

static void use_after_fork(void *arg)
{
	struct lock *l = arg;

	if (lock_is_mine(l))
		abort();
}

static void test_mistakes(void **state)
{
	static const char *const any[] = {NULL};
	struct lock l;
	char *text;

	harness_expect_abort(take_twice, NULL, any);
	harness_expect_abort(drop_free, NULL, any);
	harness_expect_abort(drop_anothers, NULL, any);
	harness_expect_abort(wait_without, NULL, any);
	harness_expect_abort(clear_held, NULL, any);

	/* A child is another thread, whatever it inherited. */
	lock_init(&l, LOCK_POOL);
	lock_take(&l);
	assert_int_equal(harness_child(use_after_fork, &l, &text), 0);
	free(text);
	assert_true(lock_is_mine(&l));
	lock_drop(&l);
	lock_clear(&l);
}

/* ---- the order (developer builds) ---- */

static struct lock locks[LOCK_LEAF + 1], more[LOCK_LEAF + 1];
static struct rwlock rwlocks[LOCK_LEAF + 1];

static int make_locks(void **state)
{
	for (int i = 0; i <= LOCK_LEAF; i++) {
		lock_init(&locks[i], (enum lock_class)i);
		lock_init(&more[i], (enum lock_class)i);
		rwlock_init(&rwlocks[i], (enum lock_class)i);
	}
	return 0;
}

static int clear_locks(void **state)
{
	for (int i = 0; i <= LOCK_LEAF; i++) {
		lock_clear(&locks[i]);
		lock_clear(&more[i]);
		rwlock_clear(&rwlocks[i]);
	}
	return 0;
}

static void test_right_order(void **state)
{
	for (int i = 0; i <= LOCK_LEAF; i++)
		lock_take(&locks[i]);
	for (int i = 0; i <= LOCK_LEAF; i++) /* dropping has no order */
		lock_drop(&locks[i]);
	lock_assert_none();

	rwlock_rd(&rwlocks[LOCK_NAMESPACE]);
	lock_take(&locks[LOCK_NODE]);
	lock_take(&more[LOCK_NODE]);
	rwlock_rd(&rwlocks[LOCK_SCRATCH]);
	lock_take(&locks[LOCK_POOL]);
	lock_drop(&locks[LOCK_NODE]);
	lock_take(&locks[LOCK_LEAF]);
	lock_drop(&locks[LOCK_POOL]);
	lock_drop(&locks[LOCK_LEAF]);
	/* What was dropped no longer counts. */
	lock_take(&locks[LOCK_POOL]);
	lock_drop(&locks[LOCK_POOL]);
	rwlock_drop(&rwlocks[LOCK_SCRATCH]);
	lock_drop(&more[LOCK_NODE]);
	rwlock_drop(&rwlocks[LOCK_NAMESPACE]);
	lock_assert_none();
}

static void test_trylocks_may_go_back(void **state)
{
	lock_take(&locks[LOCK_POOL]);
	assert_true(lock_try(&locks[LOCK_NODE]));
	assert_true(lock_try(&more[LOCK_POOL]));
	assert_true(rwlock_try_rd(&rwlocks[LOCK_NAMESPACE]));
	assert_true(rwlock_try_wr(&rwlocks[LOCK_SCRATCH]));
	lock_take(&locks[LOCK_TABLE]);
	lock_drop(&locks[LOCK_TABLE]);
	rwlock_drop(&rwlocks[LOCK_SCRATCH]);
	rwlock_drop(&rwlocks[LOCK_NAMESPACE]);
	lock_drop(&more[LOCK_POOL]);
	lock_drop(&locks[LOCK_POOL]);
	lock_drop(&locks[LOCK_NODE]);
	lock_assert_none();
}

#ifdef CELLAR_DEVELOPER

static void pool_then_node(void *arg)
{
	lock_take(&locks[LOCK_POOL]);
	lock_take(&locks[LOCK_NODE]);
}

static void pool_then_reading_names(void *arg)
{
	lock_take(&locks[LOCK_POOL]);
	rwlock_rd(&rwlocks[LOCK_NAMESPACE]);
}

static void reading_gate_then_node(void *arg)
{
	rwlock_rd(&rwlocks[LOCK_SCRATCH]);
	lock_take(&locks[LOCK_NODE]);
}

static void two_leaves(void *arg)
{
	lock_take(&locks[LOCK_LEAF]);
	lock_take(&more[LOCK_LEAF]);
}

static void two_pools(void *arg)
{
	lock_take(&locks[LOCK_POOL]);
	lock_take(&more[LOCK_POOL]);
}

static void read_twice(void *arg)
{
	rwlock_rd(&rwlocks[LOCK_NAMESPACE]);
	rwlock_rd(&rwlocks[LOCK_NAMESPACE]);
}

static void write_after_read(void *arg)
{
	rwlock_rd(&rwlocks[LOCK_SCRATCH]);
	rwlock_wr(&rwlocks[LOCK_SCRATCH]);
}

static void node_behind_tried_pool(void *arg)
{
	if (!lock_try(&locks[LOCK_POOL]))
		_exit(1);
	lock_take(&locks[LOCK_NODE]);
}

/* An earlier lock taken later by try does not hide the later one. */
static void behind_the_highest(void *arg)
{
	lock_take(&locks[LOCK_TABLE]);
	if (!lock_try(&locks[LOCK_NODE]))
		_exit(1);
	lock_take(&locks[LOCK_POOL]);
}

static void wait_behind(void *arg)
{
	pthread_cond_t c;

	lock_cond_init(&c);
	lock_take(&locks[LOCK_POOL]);
	lock_take(&locks[LOCK_TABLE]);
	lock_wait(&locks[LOCK_POOL], &c);
}

static void some_held(void *arg)
{
	rwlock_rd(&rwlocks[LOCK_SCRATCH]);
	lock_assert_none();
}

static void drop_not_held(void *arg)
{
	rwlock_drop(&rwlocks[LOCK_NAMESPACE]);
}

static void test_wrong_order(void **state)
{
	static const struct {
		void (*fn)(void *);
		const char *first, *then;
	} cases[] = {
	    {pool_then_node, "LOCK_POOL", "LOCK_NODE"},
	    {pool_then_reading_names, "LOCK_POOL", "LOCK_NAMESPACE"},
	    {reading_gate_then_node, "LOCK_SCRATCH", "LOCK_NODE"},
	    {two_leaves, "LOCK_LEAF", "LOCK_LEAF"},
	    {two_pools, "LOCK_POOL", "LOCK_POOL"},
	    {read_twice, "LOCK_NAMESPACE", "same lock"},
	    {write_after_read, "LOCK_SCRATCH", "same lock"},
	    {take_twice, "LOCK_NODE", "same lock"},
	    {node_behind_tried_pool, "LOCK_POOL", "LOCK_NODE"},
	    {behind_the_highest, "LOCK_TABLE", "LOCK_POOL"},
	    {wait_behind, "LOCK_TABLE", "LOCK_POOL"},
	    {some_held, "LOCK_SCRATCH", "lock order"},
	    {drop_not_held, "invariant", "lock.c"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		harness_expect_abort(cases[i].fn, NULL,
		                     (const char *[]){cases[i].first, cases[i].then, NULL});
}

#else

static void test_wrong_order(void **state)
{
	print_message("the order is checked in developer builds only\n");
	skip();
}

#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_owner),
	    cmocka_unit_test(test_exclusion),
	    cmocka_unit_test(test_wait),
	    cmocka_unit_test(test_wait_times_out),
	    cmocka_unit_test(test_readers_share),
	    cmocka_unit_test(test_read_mostly),
	    cmocka_unit_test(test_read_mostly_excludes),
	    cmocka_unit_test(test_writers_are_preferred),
	    cmocka_unit_test(test_mistakes),
	    cmocka_unit_test(test_right_order),
	    cmocka_unit_test(test_trylocks_may_go_back),
	    cmocka_unit_test(test_wrong_order),
	};

	return cmocka_run_group_tests(tests, make_locks, clear_locks);
}
