/* The daemon's end of the control protocol. */
#ifndef CELLAR_CONTROL_SERVER_H
#define CELLAR_CONTROL_SERVER_H

#include "mount/mount.h"

struct control_server;

struct control_context {
	const struct options *options;
	struct store *store;
	struct catalog *catalog;
	struct tree *tree;
	struct pool *pool;
	const char *pool_path;
	const char *mountpoint;
	uint64_t started_mono_ms;
	struct timespec started; /* wall clock, for status */

	/* The daemon's part in its own end. All of them from any thread, with no lock held. */
	bool (*is_draining)(void *ctx);
	/* From now on the daemon counts as draining. Writes back what is dirty, unmounts, writes
	 * back what was still open, all within one drain_timeout, and tells what is left. Only
	 * control_stop() may come between its return and the end of the daemon. [waits] */
	void (*umount)(void *ctx, pool_progress_fn progress, pool_failure_fn failure,
	               void *progress_ctx, struct pool_stats *ret_left);
	void *ctx;
};

/* Binds under a lock, removes the sockets that killed daemons left, starts one accepting
 * thread; each connection has a thread of its own that keeps off the mount. */
errint_t control_start(const struct control_context *c, struct control_server **ret,
                       char **cause);
/* Ends connections, waits for what they are doing (a flush asked for by a client: until
 * its next look at the clock; an umount: until its result is sent), removes the socket if
 * it is still ours. NULL is fine. */
void control_stop(struct control_server *s);

/* pool_flush() in slices, so that `stop` (may be NULL) is looked at now and then:
 * -ECANCELED when it says true, -ETIMEDOUT at until_mono_ms (0: none). progress tells sums
 * over all slices; failures are those of the last one. *ret_sum (may be NULL): the last
 * sums. [waits] */
errint_t control_flush(struct pool *p, struct node *below, uint64_t until_mono_ms,
                       bool (*stop)(void *ctx), pool_progress_fn progress,
                       pool_failure_fn failure, void *ctx, struct pool_progress *ret_sum);

#endif
