/*
 * cellard, and under the name mount.cellar the helper of mount(8).
 *
 * Without -f the process that was called becomes the parent of the daemon and lives until
 * the mount answers, so that whoever called it may go on in the mount at once. It is forked
 * before anything that does not survive a fork (threads, SQLite, locks). The daemon tells its
 * parent exactly one message over a pipe:
 *
 *   'R' notice           the mount answers; notice (may be empty) is for the user
 *   'E' status text      it failed: one byte, the exit status, and why
 *
 * and a daemon that dies without a word leaves the pipe at its end.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/breaks.h"
#include "base/log.h"
#include "base/steps.h"
#include "base/syncgate.h"
#include "base/sysio.h"
#include "cellard/cmdline.h"
#include "cellard/daemon.h"

#define MESSAGE_MAX 16384

/* The daemon's end of the pipe; -1 in the foreground and once something was said. */
static int parent_fd = -1;

/* ---- the daemon's side ---- */

static void tell_parent(char kind, int status, const char *text)
{
	cleanup_free char *message = NULL;
	size_t len;
	ssize_t n;

	if (parent_fd < 0)
		return;
	message =
	    kind == 'E' ? xasprintf("E%c%s", (char)status, text) : xasprintf("R%s", text);
	len = strlen(message);
	if (kind == 'E' && len < 2)
		len = 2;
	do
		n = write(parent_fd, message, MIN_OF(len, MESSAGE_MAX));
	while (n < 0 && errno == EINTR);
	close(parent_fd);
	parent_fd = -1;
}

static void on_ready(void *ctx, const char *notice)
{
	tell_parent('R', 0, notice ? notice : "");
}

static int run(const struct cmdline *c)
{
	struct daemon_config config = {
	    .options = &c->options,
	    .foreground = c->foreground,
	    .ready = on_ready,
	};
	cleanup_free char *cause = NULL;
	errint_t r;

	daemon_block_signals();
	umask(0);
	if (chdir("/") < 0) {
		r = -errno;
		set_cause_errno(&cause, r, "cannot change to the root directory");
	} else {
		r = daemon_run(&config, &cause);
	}
	if (r == 0)
		return 0;
	if (parent_fd >= 0)
		tell_parent('E', cmdline_exit_failed(c, r == -ENOMEM),
		            cause ? cause : strerror(-r));
	else
		log_err("%s", cause ? cause : strerror(-r));
	return cmdline_exit_failed(c, r == -ENOMEM);
}

/* ---- the parent's side ---- */

static volatile pid_t daemon_pid;
static volatile sig_atomic_t interrupted;

static void pass_on(int signo)
{
	int saved = errno;

	interrupted = signo;
	if (daemon_pid > 0)
		kill(daemon_pid, SIGTERM);
	errno = saved;
}

static void pass_on_signals(void)
{
	struct sigaction sa = {.sa_handler = pass_on};

	sigemptyset(&sa.sa_mask);
	(void)sigaction(SIGINT, &sa, NULL);
	(void)sigaction(SIGTERM, &sa, NULL);
	(void)sigaction(SIGHUP, &sa, NULL);
}

static const char *program_name(const struct cmdline *c)
{
	return c->mount_helper ? "mount.cellar" : "cellard";
}

/* For a terminal: names in it are escaped, but what it quotes from a lock file may be anybody's. */
static void make_printable(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
}

/* Reads the message to the end of the pipe; NUL-terminated. Returns its length. */
static size_t read_message(int fd, char *buf)
{
	size_t len = 0;

	while (len < MESSAGE_MAX) {
		ssize_t n = read(fd, buf + len, MESSAGE_MAX - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	buf[len] = '\0';
	return len;
}

static int wait_for_end(const struct cmdline *c)
{
	int status;

	while (waitpid(daemon_pid, &status, 0) < 0)
		if (errno != EINTR)
			return cmdline_exit_failed(c, true);
	if (WIFSIGNALED(status))
		fprintf(stderr,
		        "%s: the daemon was ended by signal %d before the mount answered\n",
		        program_name(c), WTERMSIG(status));
	else
		fprintf(stderr,
		        "%s: the daemon ended without a word before the mount answered\n",
		        program_name(c));
	return cmdline_exit_failed(c, false);
}

/* The daemon says that it is ready: does the mount agree? */
static int check_mount(const struct cmdline *c, const char *notice)
{
	struct statx stx;
	errint_t r = sys_statx(AT_FDCWD, c->options.mountpoint, 0, STATX_BASIC_STATS, &stx);

	if (r < 0) {
		fprintf(stderr, "%s: the mount on \"%s\" does not answer: %s\n",
		        program_name(c), c->options.mountpoint, strerror(-r));
		kill(daemon_pid, SIGTERM);
		while (waitpid(daemon_pid, NULL, 0) < 0 && errno == EINTR)
			;
		return cmdline_exit_failed(c, false);
	}
	if (notice[0])
		printf("%s: %s\n", program_name(c), notice);
	return 0;
}

static int wait_for_daemon(const struct cmdline *c, int fd)
{
	char *message = xmalloc(MESSAGE_MAX + 1);
	size_t len = read_message(fd, message);
	int status;

	if (len >= 2 && message[0] == 'E') {
		make_printable(message + 2);
		fprintf(stderr, "%s: %s\n", program_name(c), message + 2);
		while (waitpid(daemon_pid, NULL, 0) < 0 && errno == EINTR)
			; /* what it made is gone when we are */
		status = (unsigned char)message[1];
	} else if (len >= 1 && message[0] == 'R' && interrupted) {
		while (waitpid(daemon_pid, NULL, 0) < 0 && errno == EINTR)
			;
		fprintf(stderr, "%s: interrupted\n", program_name(c));
		status = cmdline_exit_failed(c, false);
	} else if (len >= 1 && message[0] == 'R') {
		status = check_mount(c, message + 1);
	} else {
		status = wait_for_end(c);
	}
	free(message);
	return status;
}

static int launch(const struct cmdline *c)
{
	int fds[2];
	int status;

	if (pipe2(fds, O_CLOEXEC) < 0) {
		fprintf(stderr, "%s: cannot make a pipe: %s\n", program_name(c),
		        strerror(errno));
		return cmdline_exit_failed(c, true);
	}
	/* The daemon's priorities would go to a file, and its prefix is chosen only once. */
	unsetenv("JOURNAL_STREAM");
	fflush(NULL);
	daemon_pid = fork();
	if (daemon_pid < 0) {
		fprintf(stderr, "%s: cannot fork: %s\n", program_name(c), strerror(errno));
		return cmdline_exit_failed(c, true);
	}
	if (daemon_pid == 0) {
		close(fds[0]);
		parent_fd = fds[1];
		setsid();
		log_init("cellard");
		return run(c);
	}
	pass_on_signals();
	close(fds[1]);
	status = wait_for_daemon(c, fds[0]);
	close(fds[0]);
	return status;
}

/* mount.cellar -N: a pid, or a file that stands for a mount namespace. */
static errint_t enter_namespace(const char *ns)
{
	cleanup_free char *path = ns[strspn(ns, "0123456789")] == '\0'
	                              ? xasprintf("/proc/%s/ns/mnt", ns)
	                              : xstrdup(ns);
	cleanup_fd int fd = sys_openat(AT_FDCWD, path, O_RDONLY, 0);

	if (fd < 0)
		return fd;
	return setns(fd, CLONE_NEWNS) < 0 ? -errno : 0;
}

int main(int argc, char **argv)
{
	struct cmdline c;
	int status;
	errint_t r;

	/* Every path and option of the caller would be used with rights that are not his. */
	if (getuid() != geteuid() || getgid() != getegid()) {
		fprintf(stderr,
		        "cellard must not be installed setuid or setgid: every user "
		        "can mount without, by fusermount3\n");
		return 1;
	}
	status = cmdline_parse(&c, argc, argv);

	if (status == CMDLINE_GO_ON) {
		log_init("cellard");
		log_set_level((enum log_level)c.options.log_level);
		steps_init();
		fault_init();
		breaks_init();
		sync_gate_init();
		r = c.mount_namespace ? enter_namespace(c.mount_namespace) : 0;
		if (r < 0) {
			fprintf(stderr, "%s: cannot enter the namespace \"%s\": %s\n",
			        program_name(&c), c.mount_namespace, strerror(-r));
			status = cmdline_exit_failed(&c, true);
		} else if (c.fake) {
			status = 0;
		} else {
			status = c.foreground ? run(&c) : launch(&c);
		}
	}
	cmdline_clear(&c);
	return status;
}
