/*
 * The mount: a libfuse 3 low-level session over tree and pool.
 *
 * Id kinds: FUSE node ids are logical inode numbers (tree/node.h), never pointers; unknown
 * ones answer ESTALE. fi->fh holds a struct handle (mount/request.h).
 * One reply per request, from whichever thread finishes it; no lock is held at a reply.
 * Handlers never wait for hydration, a flusher or (beyond a bounded number of loop
 * threads) the store: see request.h.
 */
#ifndef CELLAR_MOUNT_MOUNT_H
#define CELLAR_MOUNT_MOUNT_H

#include "base/options.h"
#include "pool/pool.h"

struct mount;

struct mount_config {
	const char *mountpoint; /* absolute */
	const char *source;     /* shown by findmnt: the store's path */
	const struct options *options;
	struct tree *tree;
	struct pool *pool;
	void (*ready)(void *ctx); /* INIT is answered; called once, from a loop thread */
	void *ready_ctx;
};

/* Checks the mount point: exists, is a directory, is not the root of a FUSE mount (-EBUSY).
 * A dead cellar mount (ENOTCONN) of the same source is detached, and the log says so. The
 * root of an ordinary filesystem is fine: an existing tree may be mounted over itself.
 * Before anything else is opened, so that the daemon can refuse early (and because STORE
 * may lie under a dead mount). */
errint_t mount_check_point(const char *mountpoint, const char *source, char **cause);

/* Mounts; requests wait in the kernel until mount_run(). */
errint_t mount_start(const struct mount_config *c, struct mount **ret, char **cause);
/* Serves until unmounted or mount_stop(); returns when every request is answered. The kernel may
 * refuse what passthrough=on asks for: then ready() is not called, and cause says so. */
errint_t mount_run(struct mount *m, char **cause);
/* Any thread, not from a signal handler: makes mount_run() return and unmounts (lazily if
 * busy). */
void mount_stop(struct mount *m);
void mount_free(struct mount *m);

/* Tells the kernel that attributes of ino are stale; threads that hold no request only. */
void mount_invalidate(struct mount *m, uint64_t ino);

#endif
