/*
 * Threads that run queued jobs, loops in parallel, single threads: see workers.h.
 *
 * Invariants, under workers.lock:
 *  (1) started = idle + starting + running a job; threads go only in workers_stop().
 *  (2) A job waits only if every thread is bound for another job or max_threads (or the
 *      kernel) allows no more: one is started whenever queued > idle + starting.
 *  (3) A thread leaves only when `stopping` is set and the queue is empty, so what a job
 *      queues while the pool stops is run too, by that job's own thread if by no other.
 *  (4) Where the kernel gives no thread at all, who queues a job runs it: slow, but it runs.
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/fault.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/workers.h"

struct job {
	struct job *next;
	worker_fn fn;
	void *arg;
};

struct workers {
	/* constant */
	char name[16];
	unsigned max_threads;
	void (*init)(void);

	/* under lock */
	struct lock lock; /* LOCK_LEAF */
	pthread_cond_t work;
	struct job *first, **end;
	unsigned queued;
	unsigned idle;     /* waiting for work */
	unsigned starting; /* created, not yet looked at the queue */
	unsigned started;
	bool stopping;
	bool warned;
	pthread_t *threads; /* [0, started) */
};

/* ---- one thread ---- */

struct start {
	void *(*fn)(void *);
	void *arg;
	char name[16];
};

static void *thread_main(void *arg)
{
	struct start s = *(struct start *)arg;

	free(arg);
	(void)pthread_setname_np(pthread_self(), s.name);
	return s.fn(s.arg);
}

errint_t thread_start(pthread_t *ret, const char *name, void *(*fn)(void *), void *arg)
{
	struct start *s = xcalloc(1, sizeof(*s));
	sigset_t all, old;
	pthread_t t;
	int err = -fault(CALL_thread);

	s->fn = fn;
	s->arg = arg;
	(void)snprintf(s->name, sizeof(s->name), "%s", name);

	/* Blocked before it exists: not one signal is for it. */
	(void)sigfillset(&all);
	INVARIANT(pthread_sigmask(SIG_SETMASK, &all, &old) == 0);
	if (!err)
		err = pthread_create(&t, NULL, thread_main, s);
	INVARIANT(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
	if (err) {
		free(s);
		return -err;
	}
	*ret = t;
	return 0;
}

/* ---- a pool of threads ---- */

struct workers *workers_new(const char *name, unsigned max_threads, void (*init)(void))
{
	struct workers *w = xcalloc(1, sizeof(*w));

	INVARIANT(max_threads > 0);
	(void)snprintf(w->name, sizeof(w->name), "%s", name);
	w->max_threads = max_threads;
	w->init = init;
	lock_init(&w->lock, LOCK_LEAF);
	lock_cond_init(&w->work);
	w->end = &w->first;
	w->threads = xcalloc(max_threads, sizeof(w->threads[0]));
	return w;
}

static struct job *take_job_locked(struct workers *w)
{
	struct job *j = w->first;

	lock_assert_held(&w->lock);
	if (j) {
		w->first = j->next;
		if (!w->first)
			w->end = &w->first;
		w->queued--;
	}
	return j;
}

static void *worker_main(void *arg)
{
	struct workers *w = arg;

	if (w->init)
		w->init();
	lock_take(&w->lock);
	w->starting--;
	for (;;) {
		struct job *j = take_job_locked(w);

		if (j) {
			lock_drop(&w->lock);
			j->fn(j->arg);
			free(j);
			lock_assert_none();
			lock_take(&w->lock);
		} else if (w->stopping) {
			break;
		} else {
			w->idle++;
			lock_wait(&w->lock, &w->work);
			w->idle--;
		}
	}
	lock_drop(&w->lock);
	return NULL;
}

/* "hydrate-12": the number always fits, the name gives way. */
static void thread_name(const struct workers *w, unsigned number, char ret[16])
{
	char tail[12];
	int len = snprintf(tail, sizeof(tail), "-%u", number);

	(void)snprintf(ret, 16, "%.*s%s", 15 - len, w->name, tail);
}

static void start_thread_locked(struct workers *w)
{
	char name[16];
	errint_t err;

	lock_assert_held(&w->lock);
	thread_name(w, w->started, name);
	err = thread_start(&w->threads[w->started], name, worker_main, w);
	if (!err) {
		w->started++;
		w->starting++;
		return;
	}
	if (!w->warned)
		log_warn("only %u of %u threads for %s: %s", w->started, w->max_threads,
		         w->name, strerror(-err));
	w->warned = true;
}

/* (4) Whatever is queued; others may take it from us. */
static void run_jobs_here(struct workers *w)
{
	struct job *j;

	for (;;) {
		lock_take(&w->lock);
		j = take_job_locked(w);
		lock_drop(&w->lock);
		if (!j)
			return;
		j->fn(j->arg);
		free(j);
	}
}

void workers_queue(struct workers *w, worker_fn fn, void *arg)
{
	struct job *j = xmalloc(sizeof(*j));

	*j = (struct job){.fn = fn, .arg = arg};
	lock_take(&w->lock);
	*w->end = j;
	w->end = &j->next;
	w->queued++;
	/* A woken thread counts as idle until it runs, and a job stays queued as long. */
	if (w->queued > w->idle + w->starting && w->started < w->max_threads &&
	    !w->stopping)
		start_thread_locked(w);
	if (w->started == 0) { /* (4) */
		lock_drop(&w->lock);
		run_jobs_here(w);
		return;
	}
	(void)pthread_cond_signal(&w->work);
	lock_drop(&w->lock);
}

unsigned workers_queued(struct workers *w)
{
	unsigned n;

	lock_take(&w->lock);
	n = w->queued;
	lock_drop(&w->lock);
	return n;
}

void workers_stop(struct workers *w)
{
	if (!w)
		return;
	lock_take(&w->lock);
	w->stopping = true; /* from here on nobody starts a thread: threads[] is fixed */
	(void)pthread_cond_broadcast(&w->work);
	lock_drop(&w->lock);
	for (unsigned i = 0; i < w->started; i++)
		INVARIANT(pthread_join(w->threads[i], NULL) == 0);

	INVARIANT(!w->first);
	(void)pthread_cond_destroy(&w->work);
	lock_clear(&w->lock);
	free(w->threads);
	free(w);
}

/* ---- a loop in parallel ---- */

/* Indices are given out in ascending order and none after a failure, so every index below
 * a failed one was given out before and will have reported when all threads are done: the
 * lowest failure is found whatever the timing. */
struct loop {
	errint_t (*fn)(void *ctx, size_t i);
	void *ctx;
	size_t n;
	_Atomic size_t next;
	_Atomic bool failed;

	/* under lock */
	struct lock lock; /* LOCK_LEAF */
	size_t failed_index;
	errint_t err;
};

static void loop_fail(struct loop *l, size_t i, errint_t err)
{
	lock_take(&l->lock);
	if (!l->err || i < l->failed_index) {
		l->failed_index = i;
		l->err = err;
	}
	lock_drop(&l->lock);
	atomic_store_explicit(&l->failed, true, memory_order_relaxed);
}

static void *loop_run(void *arg)
{
	struct loop *l = arg;

	while (!atomic_load_explicit(&l->failed, memory_order_relaxed)) {
		size_t i = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed);
		errint_t err;

		if (i >= l->n)
			break;
		err = l->fn(l->ctx, i);
		if (err)
			loop_fail(l, i, err);
	}
	return NULL;
}

static errint_t loop_inline(size_t n, errint_t (*fn)(void *ctx, size_t i), void *ctx)
{
	for (size_t i = 0; i < n; i++) {
		errint_t err = fn(ctx, i);

		if (err)
			return err;
	}
	return 0;
}

errint_t parallel_for(unsigned threads, size_t n, errint_t (*fn)(void *ctx, size_t i),
                      void *ctx)
{
	struct loop l = {.fn = fn, .ctx = ctx, .n = n};
	pthread_t *helpers;
	size_t wanted = MIN_OF((size_t)threads, n), count = 0;

	if (wanted <= 1)
		return loop_inline(n, fn, ctx);

	/* Threads of its own: a shared pool could be full of callers that wait for it. Those
	 * that cannot be started are not missed, the caller does their share. */
	lock_init(&l.lock, LOCK_LEAF);
	helpers = xcalloc(wanted - 1, sizeof(helpers[0]));
	while (count < wanted - 1 &&
	       thread_start(&helpers[count], "parallel", loop_run, &l) == 0)
		count++;
	(void)loop_run(&l);
	for (size_t i = 0; i < count; i++)
		INVARIANT(pthread_join(helpers[i], NULL) == 0);
	free(helpers);
	lock_clear(&l.lock);
	return l.err;
}
