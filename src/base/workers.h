/*
 * A pool of threads that run queued jobs, oldest first.
 *
 * Guarantees: every job accepted runs exactly once; jobs start in the order of their
 * queueing; workers_stop() runs what is queued, then joins. Threads start on demand up to
 * max_threads and block all signals. Bounded memory is the caller's: a job carries its
 * own data.
 */
#ifndef CELLAR_BASE_WORKERS_H
#define CELLAR_BASE_WORKERS_H

#include <pthread.h>

#include "base/error.h"

struct workers;

typedef void (*worker_fn)(void *arg);

/* name: shown in the thread's name (15 characters with a number). init (may be NULL) runs
 * first on each new thread (credentials, priorities). Never fails; where no thread at all can
 * be started, workers_queue() runs the job itself. */
struct workers *workers_new(const char *name, unsigned max_threads, void (*init)(void));
void workers_queue(struct workers *w, worker_fn fn, void *arg);
unsigned workers_queued(struct workers *w);
void workers_stop(struct workers *w); /* and frees; NULL is fine */

/* Runs fn(ctx, i) for i in [0, n) on up to `threads` threads including the caller;
 * returns when all are done: 0 or the error of the lowest i that failed (after a failure
 * later ones may be skipped). For frames in parallel. */
errint_t parallel_for(unsigned threads, size_t n, errint_t (*fn)(void *ctx, size_t i),
                      void *ctx);

/* Starts one named thread with all signals blocked. */
errint_t thread_start(pthread_t *ret, const char *name, void *(*fn)(void *), void *arg);

#endif
