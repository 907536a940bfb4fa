/*
 * The commands of cellarctl: one file each, with its entry for the table in main.c.
 *
 * Adding one: cmd-NAME.c with its `struct cmd`, a line here and in the table; its verb in
 * control/commands.c if the daemon has to do it.
 */
#ifndef CELLAR_CELLARCTL_CMD_H
#define CELLAR_CELLARCTL_CMD_H

#include "control/client.h"

enum cmd_exit { CMD_DONE = 0, CMD_FAILED = 1, CMD_USAGE = 2, CMD_NO_DAEMON = 3 };

struct cmd {
	const char *name;
	const char *args; /* as the usage line shows them */
	const char *help; /* one line */
	/* argv[0] is the command's name. Returns enum cmd_exit, having said why. */
	int (*exec)(const struct cmd *self, int argc, char **argv);
};

extern const struct cmd cmd_status;
extern const struct cmd cmd_flush;
extern const struct cmd cmd_evict;
extern const struct cmd cmd_compact;
extern const struct cmd cmd_verify;
extern const struct cmd cmd_recover;
extern const struct cmd cmd_umount;

/* "cellarctl: MESSAGE" on stderr, control characters escaped. */
void cmd_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same and a hint at --help: returns CMD_USAGE. */
int cmd_usage_error(const struct cmd *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* For commands without options of their own: takes "--" and refuses other options. Returns
 * the index of the first argument, or -1 after cmd_usage_error(). */
int cmd_no_options(const struct cmd *c, int argc, char **argv);

/* ---- what to work on (main.c) ---- */

/* One daemon and what was named of its files. Descriptors are held (O_PATH), so that the
 * daemon knows the inodes while it is asked. */
struct target {
	struct control_client client;
	struct control_mount mount;
	bool everything; /* the mount point itself was named, or nothing at all */
	struct target_file {
		int fd;
		uint64_t ino;
		char *path;
		mode_t type;
	} * files;
	size_t count, allocated;
	struct target *next;
};

/* The daemons that serve the paths, each once. Without paths: all daemons of this user.
 * *ret_failed counts the paths that could not be used (said on stderr). Returns CMD_DONE, or
 * CMD_NO_DAEMON / CMD_FAILED when there is nothing to work on. */
int targets_find(int n, char **paths, struct target **ret, unsigned *ret_failed);
void targets_free(struct target *t);

/* {"command": name, "inodes": [files from, from + n)} */
json_t *target_request(const char *command, const struct target_file *files, size_t n);

/* Everything of t in as many requests as its size needs. each: as for control_call();
 * sum (may be NULL) gets every result. CMD_DONE, CMD_FAILED after a message. */
int target_call(struct target *t, const char *command,
                void (*each)(void *ctx, const char *kind, json_t *object),
                void (*sum)(void *ctx, json_t *result), void *ctx);

/* The status for what control_locate() and control_connect() say. */
int cmd_exit_of(errint_t err);

#endif
