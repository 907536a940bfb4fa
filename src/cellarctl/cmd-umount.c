/*
 * cellarctl umount: has the daemon write everything back, unmount and end, and waits until
 * it has: the mount is gone from the mount table and the process is no more.
 */
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cellarctl/cmd.h"
#include "cellarctl/output.h"

#define END_WAIT_MS 300000
#define POLL_MS     20

static void umount_each(void *ctx, const char *kind, json_t *object)
{
	struct out_progress *p = ctx;

	if (strcmp(kind, "progress") == 0) {
		out_progress_show(p, object);
		return;
	}
	out_progress_clear(p);
	cmd_error("%s: %s", out_text(object, "path"), out_text(object, "error"));
}

/* Waits for what the descriptor tells by becoming readable. */
static bool wait_readable(int fd, uint64_t deadline_ms)
{
	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		uint64_t now = clock_mono_ms();
		int n;

		if (now >= deadline_ms)
			return false;
		n = poll(&p, 1, (int)(deadline_ms - now));
		if (n > 0)
			return true;
		if (n < 0 && errno != EINTR)
			return false;
	}
}

/* The mount first, then the process (pid_fd; -1: the kernel gave none, then the end of the
 * connection has to do). */
static bool wait_for_end(const struct control_mount *m, struct control_client *c,
                         int pid_fd)
{
	uint64_t deadline_ms = clock_mono_ms() + END_WAIT_MS;
	struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};

	if (!wait_readable(pid_fd >= 0 ? pid_fd : c->fd, deadline_ms))
		return false;
	while (control_mount_exists(m)) {
		if (clock_mono_ms() >= deadline_ms)
			return false;
		(void)nanosleep(&pause, NULL);
	}
	return true;
}

static int umount_report(const struct control_mount *m, const json_t *result)
{
	uint64_t left = out_number(result, "files_left");
	uint64_t open = out_number(result, "files_open");

	if (open > 0)
		out_line(stdout, "%ju files were still open", (uintmax_t)open);
	if (left == 0) {
		out_line(stdout, "%s is unmounted, everything is in the store",
		         m->mountpoint);
		return CMD_DONE;
	}
	cmd_error(
	    "%s is unmounted; %ju files, %s stay in the pool and will be flushed at the "
	    "next start",
	    m->mountpoint, (uintmax_t)left, text_size(out_number(result, "bytes_left")).s);
	return CMD_FAILED;
}

static int umount_one(struct control_mount *m, struct control_client *c)
{
	struct out_progress progress;
	cleanup_free char *cause = NULL;
	cleanup_fd int pid_fd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	json_t *result = NULL;
	errint_t r;
	int status;

	out_progress_init(&progress, "umount");
	r = control_call(c, json_pack("{s:s}", "command", "umount"), umount_each, &progress,
	                 &result, &cause);
	out_progress_clear(&progress);
	if (r < 0) {
		cmd_error("%s: %s", m->mountpoint, cause ? cause : strerror(-r));
		return CMD_FAILED;
	}
	if (wait_for_end(m, c, pid_fd)) {
		status = umount_report(m, result);
	} else {
		cmd_error("%s: the daemon (pid %d) has not ended yet", m->mountpoint,
		          (int)c->pid);
		status = CMD_FAILED;
	}
	json_decref(result);
	return status;
}

/* A bind mount of a cellar, or of a part of it, is umount(8)'s business. */
static bool is_own_mount(const struct control_mount *m, const struct control_client *c)
{
	json_t *shown = protocol_string(m->mountpoint);
	bool own = strcmp(json_string_value(shown), c->mountpoint) == 0;

	json_decref(shown);
	return own;
}

static int exec_umount(const struct cmd *self, int argc, char **argv)
{
	struct control_mount m = {0};
	struct control_client c;
	cleanup_free char *cause = NULL;
	int first = cmd_no_options(self, argc, argv);
	errint_t r;
	int status;

	if (first < 0)
		return CMD_USAGE;
	if (argc - first != 1)
		return cmd_usage_error(self, "which mount point?");
	r = control_locate(argv[first], &m, &cause);
	if (r == 0 && strcmp(m.path, m.mountpoint) != 0)
		r = set_cause(&cause, -ENODEV,
		              "\"%s\" is no mount point; its cellar is \"%s\"", argv[first],
		              m.mountpoint);
	if (r == 0)
		r = control_connect(&m, &c, &cause);
	if (r < 0) {
		cmd_error("%s", cause ? cause : strerror(-r));
		control_mount_clear(&m);
		return cmd_exit_of(r);
	}
	if (is_own_mount(&m, &c)) {
		status = umount_one(&m, &c);
	} else {
		cmd_error("\"%s\" is a bind mount; the cellar itself is mounted on \"%s\"",
		          m.mountpoint, c.mountpoint);
		status = CMD_FAILED;
	}
	control_client_close(&c);
	control_mount_clear(&m);
	return status;
}

const struct cmd cmd_umount = {
    .name = "umount",
    .args = "MOUNTPOINT",
    .help = "Write everything back, unmount, and wait until the daemon has ended.",
    .exec = exec_umount,
};
