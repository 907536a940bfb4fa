/*
 * Putting a file back: a copy of an open file under a name in a mounted cellar, never over
 * anything.
 *
 *  (C1) On return of 0 the copy is durable under its name: written under another name, synced,
 *       renamed where nothing stood, synced again with its directory.
 *  (C2) Nothing is written outside the directory that was given, whatever the path or the mount
 *       says: no links are followed on the way, no mounts entered.
 *  (C3) What fails leaves nothing behind.
 */
#ifndef CELLAR_CELLARCTL_RESTORE_H
#define CELLAR_CELLARCTL_RESTORE_H

#include "base/error.h"

struct restore {
	int fd;        /* source, a regular file */
	uint64_t from; /* what lies before is left out */
	int root_fd;   /* of the mount */
	bool may_add;  /* where the name is taken, ".recovered" and a number are added */
	bool is_guess; /* the path is a hint: what is wrong with it is told so */
};

/* path: relative to root_fd. *ret: the path it has now, malloc'ed. -EEXIST: something is there.
 * Mode 0600, the caller's owner, the source's mtime. */
errint_t restore_file(const struct restore *r, const char *path, char **ret, char **cause);

/* The bytes of r->fd to out_fd, from its present position; holes stay holes where it can seek. */
errint_t restore_bytes(const struct restore *r, int out_fd, char **cause);

#endif
