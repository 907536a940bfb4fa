/*
 * The daemon from the first look at the mount point to the last lock: puts the layers
 * together in order, and takes them apart again.
 */
#ifndef CELLAR_CELLARD_DAEMON_H
#define CELLAR_CELLARD_DAEMON_H

#include "base/options.h"

struct daemon_config {
	const struct options *options; /* store and mountpoint absolute */
	bool foreground; /* messages stay on stderr; else POOL/cellard.log from ready on */
	/* The mount answers. notice (may be NULL): what the user should be told. Called once,
	 * from a thread of the mount; stdin, stdout and stderr are the daemon's own by then
	 * (unless in the foreground). */
	void (*ready)(void *ctx, const char *notice);
	void *ctx;
};

/* Blocks the signals that end the daemon; in the main thread, before any other is made. */
void daemon_block_signals(void);

/* Runs until the mount is gone and the dirty files are written back, as far as drain_timeout
 * allows. 0, or -errno with a cause. Whatever happens, nothing is left behind but what is
 * meant to last. */
errint_t daemon_run(const struct daemon_config *config, char **cause);

#endif
