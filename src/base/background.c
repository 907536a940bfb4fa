#include "base/background.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/workers.h"

#define NICE 15
/* ioprio_set(2); glibc has no wrapper and old headers no constants. */
#define IOPRIO_WHO_PROCESS 1
#define IOPRIO_IDLE        (3 << 13)

struct work {
	void (*fn)(void *ctx);
	void *ctx;
};

/* Threads that fn starts inherit both. */
static void *background_main(void *arg)
{
	const struct work *w = arg;

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
	(void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE);
	w->fn(w->ctx);
	return NULL;
}

void background_run(const char *name, void (*fn)(void *ctx), void *ctx)
{
	struct work w = {fn, ctx};
	pthread_t thread;

	if (thread_start(&thread, name, background_main, &w) < 0)
		fn(ctx);
	else
		(void)pthread_join(thread, NULL);
}
