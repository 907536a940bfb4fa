/*
 * Whether the work of this thread is still wanted.
 *
 * Whoever runs a request on a worker says how to find out (cancel_set), and long loops far
 * below ask (cancel_wanted) between two pieces of work and end with -EINTR. What was done so
 * far stays; nothing is left half done. A thread on which nobody said anything is never
 * cancelled.
 *
 * Threads: per thread; no locks.
 */
#ifndef CELLAR_BASE_CANCEL_H
#define CELLAR_BASE_CANCEL_H

#include "base/error.h"

/* fn(ctx) until the next call; NULL: nobody can cancel. fn is cheap and takes leaf locks at most. */
void cancel_set(bool (*fn)(void *ctx), void *ctx);
/* Whether there is a fn at all: a wait without a limit will do otherwise. */
bool cancel_possible(void);
bool cancel_wanted(void);

/* How often a wait looks. */
#define CANCEL_LOOK_MS 50

#endif
