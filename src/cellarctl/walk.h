/*
 * Every regular file of some targets, sent to the daemon in batches.
 *
 * Directories are walked here, through the mount; the descriptors of a batch are held until
 * the daemon has answered: so it knows every inode that it is asked about.
 */
#ifndef CELLAR_CELLARCTL_WALK_H
#define CELLAR_CELLARCTL_WALK_H

#include "cellarctl/cmd.h"

struct files_walk {
	const char *command; /* that takes "inodes" */
	/* as for control_call(); "failure" objects are printed here */
	void (*progress)(void *ctx, json_t *object);
	/* each result; "failed" in it is added up here */
	void (*sum)(void *ctx, json_t *result);
	void *ctx;
	uint64_t failed; /* files that could not be reached or done; said on stderr */
};

/* Sends the regular files named by the targets, and those at or below directories that are
 * named (everything: the whole mount). CMD_DONE, or CMD_FAILED when a daemon is gone or
 * refuses; what failed file by file only counts in w->failed. */
int files_walk_run(struct files_walk *w, struct target *targets);

#endif
