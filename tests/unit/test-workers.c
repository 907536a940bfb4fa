/* base/workers.c: queued jobs, parallel loops, single threads. */
#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/workers.h"

/* Threads meet here: each waits until `wanted` have come. */
struct meeting {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	unsigned wanted, came;
};
#define MEETING(n)                                                                         \
	{                                                                                  \
		PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, n, 0                  \
	}

static void meet(struct meeting *m)
{
	(void)pthread_mutex_lock(&m->mutex);
	m->came++;
	(void)pthread_cond_broadcast(&m->cond);
	while (m->came < m->wanted)
		(void)pthread_cond_wait(&m->cond, &m->mutex);
	(void)pthread_mutex_unlock(&m->mutex);
}

static void meet_job(void *arg)
{
	meet(arg);
}

/* ---- jobs ---- */

#define JOBS 2000

static atomic_uint runs[JOBS];

static void count_run(void *arg)
{
	(void)atomic_fetch_add((atomic_uint *)arg, 1);
}

static void test_every_job_once(void **state)
{
	struct workers *w = workers_new("many", 4, NULL);

	for (int i = 0; i < JOBS; i++) {
		atomic_store(&runs[i], 0);
		workers_queue(w, count_run, &runs[i]);
	}
	workers_stop(w);
	for (int i = 0; i < JOBS; i++)
		assert_int_equal(atomic_load(&runs[i]), 1);
}

static int order[JOBS];
static int ordered;

static void note_order(void *arg)
{
	order[ordered++] = *(int *)arg; /* one thread */
}

static void test_oldest_first(void **state)
{
	static int numbers[JOBS];
	struct workers *w = workers_new("one", 1, NULL);

	ordered = 0;
	for (int i = 0; i < JOBS; i++) {
		numbers[i] = i;
		workers_queue(w, note_order, &numbers[i]);
	}
	workers_stop(w);
	assert_int_equal(ordered, JOBS);
	for (int i = 0; i < JOBS; i++)
		assert_int_equal(order[i], i);
}

static atomic_uint inits;

static void count_init(void)
{
	(void)atomic_fetch_add(&inits, 1);
}

/* Jobs that wait for each other need a thread each: none may be left queued while another
 * thread could be started, and none is started that is not needed. */
static void test_threads_on_demand(void **state)
{
	struct meeting five = MEETING(5), six = MEETING(6);
	struct workers *w = workers_new("demand", 5, count_init);

	atomic_store(&inits, 0);
	for (int i = 0; i < 4; i++)
		workers_queue(w, meet_job, &five);
	meet(&five);
	assert_int_equal(atomic_load(&inits), 4);
	for (int i = 0; i < 5; i++)
		workers_queue(w, meet_job, &six);
	meet(&six);
	workers_stop(w);
	assert_int_equal(atomic_load(&inits), 5);

	atomic_store(&inits, 0);
	w = workers_new("unused", 5, count_init);
	assert_int_equal(workers_queued(w), 0);
	workers_stop(w);
	assert_int_equal(atomic_load(&inits), 0);
}

static void test_max_threads(void **state)
{
	struct meeting gate = MEETING(3);
	struct workers *w = workers_new("max", 2, count_init);

	atomic_store(&inits, 0);
	atomic_store(&runs[0], 0);
	workers_queue(w, meet_job, &gate);
	workers_queue(w, meet_job, &gate);
	for (int i = 0; i < 10; i++)
		workers_queue(w, count_run, &runs[0]);
	assert_in_range(workers_queued(w), 10, 12); /* both threads are held at the gate */
	assert_int_equal(atomic_load(&runs[0]), 0);
	meet(&gate);
	workers_stop(w);
	assert_int_equal(atomic_load(&runs[0]), 10);
	assert_int_equal(atomic_load(&inits), 2);
	workers_stop(NULL);
}

/* One job at a time never needs a second thread, once the first is idle again: it may be
 * on its way there when the next job comes, but no more than that. */
static void test_idle_threads_are_used(void **state)
{
	struct workers *w = workers_new("idle", 100, count_init);
	struct meeting m[200];

	atomic_store(&inits, 0);
	for (size_t i = 0; i < ARRAY_LEN(m); i++) {
		m[i] = (struct meeting)MEETING(2);
		workers_queue(w, meet_job, &m[i]);
		meet(&m[i]);
	}
	workers_stop(w);
	assert_in_range(atomic_load(&inits), 1, 50);
}

struct chain {
	struct workers *w;
	unsigned left;
	unsigned done;
};

static void queue_next(void *arg)
{
	struct chain *c = arg;

	c->done++;
	if (c->left-- > 0)
		workers_queue(c->w, queue_next, c);
}

/* What a job queues is run although the pool is stopping. */
static void test_stop_runs_what_is_queued(void **state)
{
	struct chain c = {.w = workers_new("chain", 3, NULL), .left = 500};
	struct meeting gate = MEETING(4);

	for (int i = 0; i < 3; i++)
		workers_queue(c.w, meet_job, &gate);
	workers_queue(c.w, queue_next, &c);
	meet(&gate);
	workers_stop(c.w);
	assert_int_equal(c.done, 501);
}

struct producer {
	struct workers *w;
	int from;
};

static void *produce(void *arg)
{
	const struct producer *p = arg;

	for (int i = p->from; i < JOBS; i += 4)
		workers_queue(p->w, count_run, &runs[i]);
	return NULL;
}

static void test_queue_from_many_threads(void **state)
{
	struct workers *w = workers_new("producers", 3, NULL);
	struct producer p[4];
	pthread_t t[4];

	for (int i = 0; i < JOBS; i++)
		atomic_store(&runs[i], 0);
	for (int i = 0; i < 4; i++) {
		p[i] = (struct producer){w, i};
		assert_int_equal(thread_start(&t[i], "produce", produce, &p[i]), 0);
	}
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	workers_stop(w);
	for (int i = 0; i < JOBS; i++)
		assert_int_equal(atomic_load(&runs[i]), 1);
}

/* ---- threads ---- */

struct looks {
	char name[16];
	sigset_t mask;
	bool init_ran;
};

static __thread bool init_ran;

static void mark_init(void)
{
	init_ran = true;
}

static void look(void *arg)
{
	struct looks *l = arg;

	assert_int_equal(pthread_getname_np(pthread_self(), l->name, sizeof(l->name)), 0);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &l->mask), 0);
	l->init_ran = init_ran;
}

static void *look_thread(void *arg)
{
	look(arg);
	return arg;
}

static void expect_all_blocked(const sigset_t *mask)
{
	static const int some[] = {SIGTERM, SIGINT,  SIGHUP, SIGPIPE,
	                           SIGUSR1, SIGCHLD, SIGALRM};

	for (size_t i = 0; i < ARRAY_LEN(some); i++)
		assert_int_equal(sigismember(mask, some[i]), 1);
}

static void test_threads_of_a_pool(void **state)
{
	struct looks l = {.init_ran = false};
	struct workers *w = workers_new("hydrate", 1, mark_init);
	sigset_t before, after;

	assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &before), 0);
	workers_queue(w, look, &l);
	workers_stop(w);
	assert_true(l.init_ran);
	assert_string_equal(l.name, "hydrate-0");
	expect_all_blocked(&l.mask);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &after), 0);
	assert_int_equal(sigismember(&after, SIGTERM), sigismember(&before, SIGTERM));

	w = workers_new("a-very-long-name-for-a-thread", 1, NULL);
	workers_queue(w, look, &l);
	workers_stop(w);
	assert_string_equal(l.name, "a-very-long-n-0");
	assert_false(l.init_ran);
}

static void test_single_thread(void **state)
{
	struct looks l;
	pthread_t t;
	void *ret;

	assert_int_equal(thread_start(&t, "a-name-that-is-too-long", look_thread, &l), 0);
	assert_int_equal(pthread_join(t, &ret), 0);
	assert_ptr_equal(ret, &l);
	assert_string_equal(l.name, "a-name-that-is-");
	expect_all_blocked(&l.mask);
}

/* ---- loops ---- */

#define LOOP 1000

struct loop_ctx {
	atomic_uint ran[LOOP];
	size_t fail_from, fail_step;
	pthread_t caller;
	atomic_uint elsewhere;
};

static errint_t loop_body(void *ctx, size_t i)
{
	struct loop_ctx *c = ctx;

	(void)atomic_fetch_add(&c->ran[i], 1);
	if (!pthread_equal(pthread_self(), c->caller))
		(void)atomic_fetch_add(&c->elsewhere, 1);
	if (c->fail_step && i >= c->fail_from && (i - c->fail_from) % c->fail_step == 0)
		return -(errint_t)(i + 1);
	return 0;
}

static void loop_init(struct loop_ctx *c)
{
	memset(c, 0, sizeof(*c));
	c->caller = pthread_self();
}

static void test_loop_covers_all(void **state)
{
	static const unsigned threads[] = {0, 1, 2, 3, 8, 50};
	static const size_t sizes[] = {0, 1, 2, 7, LOOP};

	for (size_t t = 0; t < ARRAY_LEN(threads); t++) {
		for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
			struct loop_ctx c;

			loop_init(&c);
			assert_int_equal(parallel_for(threads[t], sizes[s], loop_body, &c),
			                 0);
			for (size_t i = 0; i < LOOP; i++)
				assert_int_equal(atomic_load(&c.ran[i]), i < sizes[s]);
			if (threads[t] <= 1 || sizes[s] <= 1)
				assert_int_equal(atomic_load(&c.elsewhere), 0);
		}
	}
}

static errint_t meet_body(void *ctx, size_t i)
{
	meet(ctx);
	return 0;
}

/* Really at the same time, the caller included. */
static void test_loop_is_parallel(void **state)
{
	struct meeting m = MEETING(4);

	assert_int_equal(parallel_for(4, 4, meet_body, &m), 0);
	assert_int_equal(m.came, 4);
}

static void test_loop_lowest_error(void **state)
{
	for (unsigned threads = 1; threads <= 4; threads++) {
		for (size_t from = 0; from < 100; from++) {
			struct loop_ctx c;

			loop_init(&c);
			c.fail_from = from;
			c.fail_step = 3;
			assert_int_equal(parallel_for(threads, LOOP, loop_body, &c),
			                 -(errint_t)(from + 1));
			for (size_t i = 0; i <= from; i++)
				assert_int_equal(atomic_load(&c.ran[i]), 1);
		}
	}
}

struct late {
	struct meeting both;
	atomic_bool second_failed;
};

/* Index 1 fails first, for certain; index 0 is in the making and fails later. */
static errint_t fail_late(void *ctx, size_t i)
{
	struct late *l = ctx;

	if (i > 1)
		return -EIO;
	meet(&l->both);
	if (i == 1) {
		atomic_store(&l->second_failed, true);
		return -ENOSPC;
	}
	while (!atomic_load(&l->second_failed))
		(void)sched_yield();
	return -EUCLEAN;
}

static void test_loop_lowest_error_may_come_last(void **state)
{
	struct late l = {.both = MEETING(2)};

	assert_int_equal(parallel_for(2, LOOP, fail_late, &l), -EUCLEAN);
}

struct nested {
	struct loop_ctx inner[4];
	struct meeting done;
};

static errint_t nest(void *ctx, size_t i)
{
	struct nested *n = ctx;

	loop_init(&n->inner[i]);
	return parallel_for(3, LOOP, loop_body, &n->inner[i]);
}

static void nest_job(void *arg)
{
	struct nested *n = arg;

	assert_int_equal(parallel_for(4, 4, nest, n), 0);
	meet(&n->done);
}

/* From worker threads that are all busy, and inside one another. */
static void test_loops_in_jobs(void **state)
{
	struct workers *w = workers_new("nest", 2, NULL);
	struct nested *n = calloc(2, sizeof(*n));

	assert_non_null(n);
	for (int i = 0; i < 2; i++) {
		n[i].done = (struct meeting)MEETING(2);
		workers_queue(w, nest_job, &n[i]);
	}
	for (int i = 0; i < 2; i++)
		meet(&n[i].done);
	workers_stop(w);
	for (int i = 0; i < 8; i++) {
		for (int j = 0; j < LOOP; j++)
			assert_int_equal(atomic_load(&n[i / 4].inner[i % 4].ran[j]), 1);
	}
	free(n);
}

/* ---- no more threads ---- */

/* Stacks that no address space holds: from here on pthread_create() fails. */
static void forbid_threads(void)
{
	pthread_attr_t attr;

	if (pthread_attr_init(&attr) != 0 ||
	    pthread_attr_setstacksize(&attr, 1UL << 50) != 0 ||
	    pthread_setattr_default_np(&attr) != 0)
		_exit(3);
}

static void *nothing(void *arg)
{
	return arg;
}

static void loop_without_threads(void *arg)
{
	static struct loop_ctx c;
	pthread_t t;

	forbid_threads();
	if (thread_start(&t, "none", nothing, NULL) == 0)
		_exit(4);
	loop_init(&c);
	if (parallel_for(4, LOOP, loop_body, &c) != 0 || atomic_load(&c.elsewhere) != 0)
		_exit(5);
	for (size_t i = 0; i < LOOP; i++) {
		if (atomic_load(&c.ran[i]) != 1)
			_exit(6);
	}
}

static void pool_with_one_thread(void *arg)
{
	struct workers *w = workers_new("poor", 4, NULL);
	struct meeting gate = MEETING(2);

	atomic_store(&runs[0], 0);
	workers_queue(w, meet_job, &gate);
	forbid_threads();
	for (int i = 0; i < 20; i++)
		workers_queue(w, count_run, &runs[0]);
	meet(&gate);
	workers_stop(w);
	if (atomic_load(&runs[0]) != 20)
		_exit(7);
}

static void pool_without_threads(void *arg)
{
	struct workers *w = workers_new("none", 4, NULL);

	atomic_store(&runs[0], 0);
	forbid_threads();
	for (int i = 0; i < 3; i++)
		workers_queue(w, count_run, &runs[0]);
	workers_stop(w);
	if (atomic_load(&runs[0]) != 3)
		_exit(8);
}

static void test_without_threads(void **state)
{
	char *text;
	const char *once;

	assert_int_equal(harness_child(loop_without_threads, NULL, &text), 0);
	free(text);
	assert_int_equal(harness_child(pool_with_one_thread, NULL, &text), 0);
	once = strstr(text, "only 1 of 4 threads for poor");
	assert_non_null(once);
	assert_null(strstr(once + 1, "only 1 of 4")); /* said once */
	free(text);
	/* (4) */
	assert_int_equal(harness_child(pool_without_threads, NULL, &text), 0);
	assert_non_null(strstr(text, "only 0 of 4 threads for none"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_every_job_once),
	    cmocka_unit_test(test_oldest_first),
	    cmocka_unit_test(test_threads_on_demand),
	    cmocka_unit_test(test_max_threads),
	    cmocka_unit_test(test_idle_threads_are_used),
	    cmocka_unit_test(test_stop_runs_what_is_queued),
	    cmocka_unit_test(test_queue_from_many_threads),
	    cmocka_unit_test(test_threads_of_a_pool),
	    cmocka_unit_test(test_single_thread),
	    cmocka_unit_test(test_loop_covers_all),
	    cmocka_unit_test(test_loop_is_parallel),
	    cmocka_unit_test(test_loop_lowest_error),
	    cmocka_unit_test(test_loop_lowest_error_may_come_last),
	    cmocka_unit_test(test_loops_in_jobs),
	    cmocka_unit_test(test_without_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
