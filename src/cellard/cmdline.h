/*
 * The command line of cellard, and of mount.cellar (the same program under the name by which
 * mount(8) calls it).
 */
#ifndef CELLAR_CELLARD_CMDLINE_H
#define CELLAR_CELLARD_CMDLINE_H

#include "base/options.h"

/* What a failure is worth, by the name under which we run. */
enum cmdline_exit {
	EXIT_CELLARD_FAILED = 1,
	EXIT_CELLARD_USAGE = 2,
	/* mount(8), "EXIT STATUS" */
	EXIT_MOUNT_USAGE = 1,
	EXIT_MOUNT_SYSTEM = 2,
	EXIT_MOUNT_FAILED = 32,
};

struct cmdline {
	bool foreground;
	bool mount_helper;     /* called as mount.cellar */
	bool fake;             /* mount.cellar -f: do everything but mount */
	char *mount_namespace; /* mount.cellar -N: a pid or the path of a namespace */
	struct options
	    options; /* .store, .mountpoint and .pool are set and absolute, but for
	                           .pool, which may be NULL */
};

#define CMDLINE_GO_ON (-1)
/* CMDLINE_GO_ON, or the status to exit with: everything was said (--help on stdout, what is
 * wrong on stderr). */
int cmdline_parse(struct cmdline *c, int argc, char **argv);
void cmdline_clear(struct cmdline *c);

/* The status for a failure that is none of usage. */
int cmdline_exit_failed(const struct cmdline *c, bool of_the_system);

#endif
