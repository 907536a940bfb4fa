/*
 * cellarctl: the table of commands, and what they share: finding the daemons that serve the
 * paths on the command line.
 *
 * A path is led to its mount by the mount table, the daemon is found and has answered, and
 * only then is the path opened: a mount whose daemon is dead or hangs is never touched.
 */
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/sysio.h"
#include "cellarctl/cmd.h"
#include "cellarctl/output.h"

static const struct cmd *const commands[] = {
    &cmd_status, &cmd_flush,   &cmd_evict,  &cmd_compact,
    &cmd_verify, &cmd_recover, &cmd_umount,
};

/* ---- messages ---- */

void cmd_error(const char *fmt, ...)
{
	cleanup_free char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	out_line(stderr, "cellarctl: %s", text ? text : "out of memory");
}

int cmd_usage_error(const struct cmd *c, const char *fmt, ...)
{
	cleanup_free char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (c)
		cmd_error("%s: %s", c->name, text ? text : "out of memory");
	else
		cmd_error("%s", text ? text : "out of memory");
	fprintf(stderr, "Try cellarctl --help\n");
	return CMD_USAGE;
}

int cmd_no_options(const struct cmd *c, int argc, char **argv)
{
	static const struct option none[] = {{NULL, 0, NULL, 0}};

	opterr = 0;
	optind = 0;
	if (getopt_long(argc, argv, "", none, NULL) != -1) {
		(void)cmd_usage_error(c, "wrong option \"%s\"", argv[optind - 1]);
		return -1;
	}
	return optind;
}

int cmd_exit_of(errint_t err)
{
	return err == -ENODEV || err == -ECONNREFUSED ? CMD_NO_DAEMON : CMD_FAILED;
}

/* ---- targets ---- */

static void target_free_files(struct target *t)
{
	for (size_t i = 0; i < t->count; i++) {
		close(t->files[i].fd);
		free(t->files[i].path);
	}
	free(t->files);
	t->files = NULL;
	t->count = t->allocated = 0;
}

void targets_free(struct target *t)
{
	while (t) {
		struct target *next = t->next;

		target_free_files(t);
		control_client_close(&t->client);
		control_mount_clear(&t->mount);
		free(t);
		t = next;
	}
}

/* The target of the mount, made if there is none yet. NULL with a cause. */
static struct target *target_get(struct target **list, struct control_mount *m,
                                 errint_t *ret, char **cause)
{
	struct target **at = list;
	struct target *t;

	for (; *at; at = &(*at)->next)
		if ((*at)->mount.dev == m->dev)
			return *at;
	t = xcalloc(1, sizeof(*t));
	*ret = control_connect(m, &t->client, cause);
	if (*ret < 0) {
		free(t);
		return NULL;
	}
	control_mount_copy(m, &t->mount);
	*at = t;
	return t;
}

static errint_t target_add(struct target *t, const struct control_mount *m,
                           const char *shown, char **cause)
{
	cleanup_fd int fd = sys_openat(AT_FDCWD, m->path, O_PATH | O_NOFOLLOW, 0);
	struct stat st;
	errint_t r = fd < 0 ? fd : sys_fstat(fd, &st);

	if (r < 0)
		return set_cause_errno(cause, r, "cannot open \"%s\"", shown);
	if (st.st_dev != t->mount.dev)
		return set_cause(cause, -ENODEV, "\"%s\" is no cellar", shown);
	if (t->count == t->allocated) {
		t->allocated = t->allocated ? 2 * t->allocated : 16;
		t->files = xrealloc(t->files, t->allocated * sizeof(*t->files));
	}
	t->files[t->count++] = (struct target_file){
	    .fd = steal_fd(&fd),
	    .ino = st.st_ino,
	    .path = xstrdup(shown),
	    .type = st.st_mode & S_IFMT,
	};
	return 0;
}

static errint_t targets_add_path(struct target **list, const char *path, char **cause)
{
	struct control_mount m = {0};
	struct target *t;
	errint_t r = control_locate(path, &m, cause);

	if (r < 0)
		return r;
	t = target_get(list, &m, &r, cause);
	if (t && strcmp(m.path, m.mountpoint) == 0 && strcmp(m.root, "/") == 0)
		t->everything = true;
	else if (t)
		r = target_add(t, &m, path, cause);
	control_mount_clear(&m);
	return r;
}

static int targets_of_user(struct target **ret)
{
	struct control_client *clients = NULL;
	size_t n = 0;
	struct target **at = ret;

	(void)control_find_all(&clients, &n);
	for (size_t i = 0; i < n; i++) {
		struct target *t;

		if (clients[i].uid != geteuid())
			continue;
		t = xcalloc(1, sizeof(*t));
		t->client = clients[i];
		t->everything = true;
		memset(&clients[i], 0, sizeof(clients[i]));
		clients[i].fd = -1;
		*at = t;
		at = &t->next;
	}
	control_clients_free(clients, n);
	if (*ret)
		return CMD_DONE;
	cmd_error("no cellard is running");
	return CMD_NO_DAEMON;
}

int targets_find(int n, char **paths, struct target **ret, unsigned *ret_failed)
{
	int worst = CMD_NO_DAEMON;

	*ret = NULL;
	*ret_failed = 0;
	if (n == 0)
		return targets_of_user(ret);
	for (int i = 0; i < n; i++) {
		cleanup_free char *cause = NULL;
		errint_t r = targets_add_path(ret, paths[i], &cause);

		if (r == 0)
			continue;
		(*ret_failed)++;
		cmd_error("%s", cause ? cause : strerror(-r));
		if (cmd_exit_of(r) == CMD_FAILED)
			worst = CMD_FAILED;
	}
	return *ret ? CMD_DONE : worst;
}

json_t *target_request(const char *command, const struct target_file *files, size_t n)
{
	json_t *inodes = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(inodes, json_integer((json_int_t)files[i].ino));
	return json_pack("{s:s,s:o}", "command", command, "inodes", inodes);
}

int target_call(struct target *t, const char *command,
                void (*each)(void *ctx, const char *kind, json_t *object),
                void (*sum)(void *ctx, json_t *result), void *ctx)
{
	size_t done = 0;

	do {
		size_t n = t->everything ? 0 : MIN_OF(t->count - done, PROTOCOL_INODES_MAX);
		cleanup_free char *cause = NULL;
		json_t *result = NULL;
		errint_t r;

		if (n == 0 && !t->everything)
			break; /* every path of it failed to open */
		r = control_call(&t->client, target_request(command, t->files + done, n),
		                 each, ctx, &result, &cause);
		if (r < 0) {
			cmd_error("%s: %s", t->client.mountpoint,
			          cause ? cause : strerror(-r));
			return CMD_FAILED;
		}
		if (sum)
			sum(ctx, result);
		json_decref(result);
		done += n;
	} while (!t->everything && done < t->count);
	return CMD_DONE;
}

/* ---- main ---- */

static void print_help(void)
{
	printf("Usage: cellarctl COMMAND [ARGUMENT]...\n"
	       "\n"
	       "Looks after the cellars that are mounted (see cellard --help).\n"
	       "\n");
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		printf("  %s%s%s\n        %s\n", commands[i]->name,
		       commands[i]->args[0] ? " " : "", commands[i]->args,
		       commands[i]->help);
	printf(
	    "\n"
	    "Without MOUNTPOINT or PATH, status shows every running cellar, flush, verify "
	    "and\n"
	    "recover work on every running cellar of this user.\n"
	    "\n"
	    "  -h, --help     print this and exit\n"
	    "  -V, --version  print the version and exit\n"
	    "\n"
	    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 no cellard is running "
	    "there.\n");
}

static const struct cmd *find_command(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (strcmp(commands[i]->name, name) == 0)
			return commands[i];
	return NULL;
}

static bool wants_help(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
			return true;
	return false;
}

static int finish_stdout(int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	fprintf(stderr, "cellarctl: cannot write to stdout: %s\n", strerror(errno));
	return status == CMD_DONE ? CMD_FAILED : status;
}

int main(int argc, char **argv)
{
	const struct cmd *c;
	struct rlimit l;

	/* Paths are held open while their daemon works on them. */
	if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &l);
	}
	if (argc < 2)
		return cmd_usage_error(NULL, "which command?");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
		print_help();
		return finish_stdout(CMD_DONE);
	}
	if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
		printf("cellarctl %s\n", PACKAGE_VERSION);
		return finish_stdout(CMD_DONE);
	}
	c = find_command(argv[1]);
	if (!c)
		return cmd_usage_error(NULL, "no such command: \"%s\"", argv[1]);
	if (wants_help(argc - 1, argv + 1)) {
		printf("Usage: cellarctl %s%s%s\n\n%s\n", c->name, c->args[0] ? " " : "",
		       c->args, c->help);
		return finish_stdout(CMD_DONE);
	}
	return finish_stdout(c->exec(c, argc - 1, argv + 1));
}
