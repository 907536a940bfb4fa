/*
 * cellarctl recover: what lies in lost+found of a pool, and what becomes of it.
 *
 * The daemon tells what is there and hands out an entry's file as a descriptor; so nothing here
 * opens a path of the pool, which a daemon of somebody else could have chosen. The copy goes
 * through the mount like any program's file (restore.h).
 *
 *  (V1) An entry is deleted only where the admin said so: with --move, once its copy is durable;
 *       with --discard, after a question or with --force.
 *  (V2) Nothing that exists is written over.
 *  (V3) A tail is never taken for the file: it is refused without --tail, and with it goes under
 *       a name of its own.
 */
#include <getopt.h>
#include <string.h>
#include <unistd.h>

#include "base/sysio.h"
#include "cellarctl/cmd.h"
#include "cellarctl/output.h"
#include "cellarctl/restore.h"

#define TAIL_SUFFIX ".tail"

struct recover {
	const struct cmd *self;
	const char *to, *output;
	bool all, as_json, move, discard, force, tail;

	struct target *targets;
	char **names;
	int name_count;

	uint64_t done, failed;
};

/* ---- listing ---- */

/* One cellar's entries. */
struct listing {
	json_t *entries;
};

static void listing_add(void *ctx, const char *kind, json_t *object)
{
	struct listing *l = ctx;
	size_t at = json_array_size(l->entries);

	if (strcmp(kind, "entry") != 0)
		return;
	while (at > 0 && strcmp(out_text(json_array_get(l->entries, at - 1), "name"),
	                        out_text(object, "name")) > 0)
		at--;
	json_array_insert(l->entries, at, object);
}

/* A new array, by name. NULL after a message. */
static json_t *list_entries(struct target *t)
{
	struct listing l = {.entries = json_array()};
	cleanup_free char *cause = NULL;
	json_t *result = NULL;
	errint_t r = control_call(&t->client, json_pack("{s:s}", "command", "lost"),
	                          listing_add, &l, &result, &cause);

	json_decref(result);
	if (r == 0)
		return l.entries;
	cmd_error("%s: %s", t->client.mountpoint, cause ? cause : strerror(-r));
	json_decref(l.entries);
	return NULL;
}

static void print_entry(const json_t *e)
{
	const char *path = out_text(e, "path"), *why = out_text(e, "why");

	out_line(stdout, "  %s  %s  %s, %s", out_text(e, "name"),
	         text_size(out_number(e, "size_bytes")).s, out_text(e, "state"),
	         out_text(e, "kind"));
	out_line(stdout, "      was      %s", path[0] ? path : "(not known)");
	if (json_is_integer(out_member(e, "tail_from_bytes")))
		out_line(
		    stdout,
		    "      holds    what was written from byte %ju on; what came before "
		    "was only in the object",
		    (uintmax_t)out_number(e, "tail_from_bytes"));
	out_line(stdout, "      changed  %s", out_text(e, "modified"));
	out_line(stdout, "      here     since %s", out_text(e, "set_aside"));
	out_line(stdout, "      because  %s", why[0] ? why : "(not known)");
}

/* The tokens are between the programs. */
static void strip(json_t *entries)
{
	json_t *e;
	size_t i;

	json_array_foreach (entries, i, e) {
		json_object_del(e, "token");
		json_object_del(e, "path_hex");
	}
}

static int list(struct recover *v)
{
	json_t *cellars = json_array();
	int status = CMD_DONE;

	for (struct target *t = v->targets; t; t = t->next) {
		json_t *entries = list_entries(t), *e;
		size_t i;

		if (!entries) {
			status = CMD_FAILED;
			continue;
		}
		strip(entries);
		json_array_append_new(cellars, json_pack("{s:s,s:s,s:O}", "mountpoint",
		                                         t->client.mountpoint, "store",
		                                         t->client.store, "lost_and_found",
		                                         entries));
		if (!v->as_json) {
			out_line(stdout, "%s: %zu in lost+found", t->client.mountpoint,
			         json_array_size(entries));
			json_array_foreach (entries, i, e)
				print_entry(e);
		}
		json_decref(entries);
	}
	if (v->as_json) {
		json_t *document =
		    json_pack("{s:i,s:O}", "version", PROTOCOL_VERSION, "cellars", cellars);

		json_dumpf(document, stdout, JSON_INDENT(2));
		printf("\n");
		json_decref(document);
	}
	json_decref(cellars);
	return status;
}

/* ---- one entry ---- */

static void failed(struct recover *v, const char *name, const char *why)
{
	cmd_error("%s: %s", name, why);
	v->failed++;
}

/* *ret_fd: its file, or -1 where it is none. NULL after a message. */
static json_t *get_entry(struct recover *v, struct target *t, const char *name, int *ret_fd)
{
	json_t *request = json_pack("{s:s,s:s}", "command", "lost", "name", name);
	cleanup_free char *cause = NULL;
	json_t *result = NULL, *entry;
	struct stat st;
	errint_t r = -EINVAL;

	*ret_fd = -1;
	t->client.stream.takes_fds = true;
	if (request)
		r = control_call(&t->client, request, NULL, NULL, &result, &cause);
	*ret_fd = steal_fd(&t->client.stream.passed_fd);
	if (r < 0) {
		failed(v, name, cause ? cause : strerror(-r));
		return NULL;
	}
	/* Reading anything else could wait for ever. */
	if (*ret_fd >= 0 && (sys_fstat(*ret_fd, &st) < 0 || !S_ISREG(st.st_mode))) {
		close(*ret_fd);
		*ret_fd = -1;
	}
	entry = json_incref(json_object_get(result, "entry"));
	json_decref(result);
	if (!entry)
		failed(v, name, "the daemon's answer is not understood");
	return entry;
}

static bool discard_entry(struct recover *v, struct target *t, const char *name,
                          const json_t *entry)
{
	json_t *request = json_pack("{s:s,s:s,s:s}", "command", "discard", "name", name,
	                            "token", out_text(entry, "token"));
	cleanup_free char *cause = NULL;
	json_t *result = NULL;
	errint_t r = control_call(&t->client, request, NULL, NULL, &result, &cause);

	json_decref(result);
	if (r < 0)
		failed(v, name, cause ? cause : strerror(-r));
	return r == 0;
}

/* (V1) */
static bool may_discard(const struct recover *v, const char *name, const json_t *entry)
{
	char answer[16] = "";

	if (v->force)
		return true;
	if (!isatty(STDIN_FILENO))
		return false;
	out_line(stderr, "Delete %s (%s, was \"%s\") for ever? [y/N] ", name,
	         text_size(out_number(entry, "size_bytes")).s, out_text(entry, "path"));
	return fgets(answer, sizeof(answer), stdin) &&
	       (answer[0] == 'y' || answer[0] == 'Y');
}

static void discard(struct recover *v, struct target *t, const char *name)
{
	int fd;
	json_t *entry = get_entry(v, t, name, &fd);

	if (!entry)
		return;
	if (!may_discard(v, name, entry)) {
		failed(v, name, "not deleted; --force deletes without a question");
	} else if (discard_entry(v, t, name, entry)) {
		v->done++;
		out_line(stdout, "deleted %s", name);
	}
	if (fd >= 0)
		close(fd);
	json_decref(entry);
}

/* ---- reading ---- */

static void read_out(struct recover *v, const char *name, const struct restore *source)
{
	bool to_stdout = strcmp(v->output, "-") == 0;
	cleanup_free char *cause = NULL;
	int out = to_stdout
	              ? STDOUT_FILENO
	              : sys_openat(AT_FDCWD, v->output, O_WRONLY | O_CREAT | O_EXCL, 0600);
	errint_t r = out < 0 ? set_cause_errno(&cause, out, "cannot make \"%s\"", v->output)
	                     : restore_bytes(source, out, &cause);

	if (r == 0 && !to_stdout) {
		r = sys_fsync(out);
		if (r < 0)
			set_cause_errno(&cause, r, "cannot sync \"%s\"", v->output);
	}
	if (!to_stdout && out >= 0) {
		(void)sys_close(out);
		if (r < 0)
			(void)sys_unlinkat(AT_FDCWD, v->output, 0);
	}
	if (r < 0)
		failed(v, name, cause ? cause : strerror(-r));
	else
		v->done++;
}

/* ---- restoring ---- */

/* The root of the target's mount; -errno with a cause. */
static int open_mount(struct target *t, char **cause)
{
	struct control_mount m = {0};
	cleanup_fd int fd = -1;
	struct stat st;
	errint_t r = control_locate(t->client.mountpoint, &m, cause);

	if (r == 0 && (strcmp(m.path, m.mountpoint) != 0 || strcmp(m.root, "/") != 0))
		r = set_cause(cause, -ENODEV, "\"%s\" is not where it is mounted",
		              t->client.mountpoint);
	if (r == 0) {
		r = fd = sys_openat(AT_FDCWD, m.mountpoint, O_PATH | O_DIRECTORY, 0);
		if (r >= 0)
			r = sys_fstat(fd, &st);
		if (r == 0 && st.st_dev != m.dev)
			r = -ENODEV;
		if (r < 0)
			set_cause_errno(cause, r, "cannot open the mount \"%s\"",
			                m.mountpoint);
	}
	control_mount_clear(&m);
	return r < 0 ? r : steal_fd(&fd);
}

/* The bytes that hex stands for, malloc'ed; NULL: it is no hex, or holds a NUL. */
static char *from_hex(const char *hex)
{
	size_t len = strlen(hex);
	cleanup_free char *s = xmalloc(len / 2 + 1);

	for (size_t i = 0; i < len / 2; i++) {
		unsigned c;

		if (sscanf(hex + 2 * i, "%2x", &c) != 1 || c == 0)
			return NULL;
		s[i] = (char)c;
	}
	s[len / 2] = '\0';
	return len % 2 ? NULL : steal_pointer(&s);
}

/* The path in the mount that --to names, malloc'ed. */
static char *path_of_to(const struct recover *v, struct target *t, char **cause)
{
	struct control_mount m = {0};
	char *ret = NULL;

	if (control_locate(v->to, &m, NULL) == 0 &&
	    strcmp(m.mountpoint, t->client.mountpoint) == 0) {
		const char *rest = m.path + strlen(m.mountpoint);

		ret = xstrdup(rest + strspn(rest, "/"));
	} else {
		set_cause(cause, -EXDEV,
		          "\"%s\" does not lie in \"%s\"; --output writes anywhere", v->to,
		          t->client.mountpoint);
	}
	control_mount_clear(&m);
	return ret;
}

static char *path_of_hint(const json_t *entry, bool is_tail, char **cause)
{
	cleanup_free char *path = from_hex(out_text(entry, "path_hex"));

	if (!path || !*path) {
		set_cause(cause, -ENOENT,
		          "where it belongs is not known; name a place with --to");
		return NULL;
	}
	return xasprintf("%s%s", path, is_tail ? TAIL_SUFFIX : "");
}

/* Durable under *ret_path, or why not. */
static errint_t put_back(struct recover *v, struct target *t, const json_t *entry,
                         struct restore *r, char **ret_path, char **cause)
{
	cleanup_free char *path = NULL;
	errint_t err;

	r->root_fd = open_mount(t, cause);
	if (r->root_fd < 0)
		return r->root_fd;
	r->is_guess = r->may_add = !v->to;
	path = v->to ? path_of_to(v, t, cause) : path_of_hint(entry, r->from > 0, cause);
	err = path ? restore_file(r, path, ret_path, cause) : -EINVAL;
	close(r->root_fd);
	return err;
}

static void restore_one(struct recover *v, struct target *t, const char *name,
                        const json_t *entry, struct restore *r)
{
	cleanup_free char *path = NULL, *cause = NULL;
	errint_t err = put_back(v, t, entry, r, &path, &cause);

	if (err < 0) {
		failed(v, name, cause ? cause : strerror(-err));
		return;
	}
	out_line(stdout, "%s %s to %s/%s", r->from ? "restored the tail of" : "restored",
	         name, t->client.mountpoint, path);
	if (!v->move || discard_entry(v, t, name, entry)) /* (V1) */
		v->done++;
}

static void take_out(struct recover *v, struct target *t, const char *name)
{
	struct restore r = {.fd = -1, .root_fd = -1};
	json_t *entry = get_entry(v, t, name, &r.fd);
	const char *kind = out_text(entry, "kind");

	if (!entry)
		return;
	if (strcmp(kind, "tail") == 0)
		r.from = out_number(entry, "tail_from_bytes");
	if (r.fd < 0)
		failed(v, name, "it is no regular file, or cannot be opened");
	else if (strcmp(kind, "tail") == 0 && !v->tail) /* (V3) */
		failed(
		    v, name,
		    "it holds only what was appended to its file; --tail restores that, to "
		    "a file of its own");
	else if (v->output)
		read_out(v, name, &r);
	else
		restore_one(v, t, name, entry, &r);
	if (r.fd >= 0)
		close(r.fd);
	json_decref(entry);
}

/* ---- many ---- */

static void handle(struct recover *v, struct target *t, const char *name)
{
	if (v->discard)
		discard(v, t, name);
	else
		take_out(v, t, name);
}

/* A name is the name of an entry in one of the cellars. */
static void handle_name(struct recover *v, const char *name)
{
	struct target *found = NULL;
	unsigned count = 0;

	for (struct target *t = v->targets; t; t = t->next) {
		json_t *entries = list_entries(t), *e;
		size_t i;

		json_array_foreach (entries, i, e) {
			if (strcmp(out_text(e, "name"), name) != 0)
				continue;
			found = t;
			count++;
		}
		json_decref(entries);
	}
	if (count == 0)
		failed(v, name, "there is no such entry in lost+found");
	else if (count > 1)
		failed(v, name,
		       "several cellars have such an entry; name the mount point too");
	else
		handle(v, found, name);
}

static void handle_all(struct recover *v)
{
	for (struct target *t = v->targets; t; t = t->next) {
		json_t *entries = list_entries(t), *e;
		size_t i;

		v->failed += !entries;
		json_array_foreach (entries, i, e)
			handle(v, t, out_text(e, "name"));
		json_decref(entries);
	}
}

/* ---- the command ---- */

static int parse(struct recover *v, int argc, char **argv)
{
	static const struct option longs[] = {
	    {"all", no_argument, NULL, 'a'},
	    {"discard", no_argument, NULL, 'd'},
	    {"force", no_argument, NULL, 'f'},
	    {"json", no_argument, NULL, 'j'},
	    {"move", no_argument, NULL, 'm'},
	    {"output", required_argument, NULL, 'o'},
	    {"tail", no_argument, NULL, 't'},
	    {"to", required_argument, NULL, 'T'},
	    {NULL, 0, NULL, 0},
	};
	int o;

	opterr = 0;
	optind = 0;
	while ((o = getopt_long(argc, argv, "jo:", longs, NULL)) != -1) {
		switch (o) {
		case 'a':
			v->all = true;
			break;
		case 'd':
			v->discard = true;
			break;
		case 'f':
			v->force = true;
			break;
		case 'j':
			v->as_json = true;
			break;
		case 'm':
			v->move = true;
			break;
		case 'o':
			v->output = optarg;
			break;
		case 't':
			v->tail = true;
			break;
		case 'T':
			v->to = optarg;
			break;
		default:
			(void)cmd_usage_error(v->self, "wrong option \"%s\"",
			                      argv[optind - 1]);
			return -1;
		}
	}
	return optind;
}

static const char *contradiction(const struct recover *v)
{
	bool any = v->all || v->name_count > 0;

	if (v->all && v->name_count > 0)
		return "names and --all exclude each other";
	if (v->to && v->output)
		return "--to and --output exclude each other";
	if (v->discard && (v->to || v->output || v->move))
		return "--discard deletes and does nothing else";
	if (v->move && v->output)
		return "--move goes with restoring into the cellar only";
	if ((v->to || v->output) && v->name_count != 1)
		return "--to and --output need the name of one entry";
	if ((v->discard || v->move || v->tail || v->force) && !any)
		return "which entries?";
	if (v->as_json && any)
		return "--json is for the list";
	return NULL;
}

/* A path, or the name of a mount point: the names of entries are neither. */
static bool is_mountpoint(const char *arg)
{
	struct control_mount m = {0};
	bool is = strchr(arg, '/') || strcmp(arg, ".") == 0 || strcmp(arg, "..") == 0 ||
	          (control_locate(arg, &m, NULL) == 0 && strcmp(m.path, m.mountpoint) == 0);

	control_mount_clear(&m);
	return is;
}

static int exec_recover(const struct cmd *self, int argc, char **argv)
{
	struct recover v = {.self = self};
	int first = parse(&v, argc, argv), points, status;
	unsigned unusable = 0;
	const char *wrong;

	if (first < 0)
		return CMD_USAGE;
	points = first < argc && is_mountpoint(argv[first]);
	v.names = argv + first + points;
	v.name_count = argc - first - points;
	wrong = contradiction(&v);
	if (wrong)
		return cmd_usage_error(self, "%s", wrong);
	status = targets_find(points, argv + first, &v.targets, &unusable);
	if (status == CMD_NO_DAEMON)
		cmd_error(
		    "lost+found is read by the daemon: start cellard (or mount the cellar) "
		    "and ask again; until then the files lie in lost+found of the pool, "
		    "which is STORE/.cellar where no pool was named");
	if (status != CMD_DONE)
		return status;
	if (v.all)
		handle_all(&v);
	else
		for (int i = 0; i < v.name_count; i++)
			handle_name(&v, v.names[i]);
	if (!v.all && v.name_count == 0)
		status = list(&v);
	targets_free(v.targets);
	return status == CMD_DONE && v.failed == 0 ? CMD_DONE : CMD_FAILED;
}

const struct cmd cmd_recover = {
    .name = "recover",
    .args = "[--json] [MOUNTPOINT] | [MOUNTPOINT] NAME...|--all [OPTION]...",
    .help = "Show what lies in lost+found of the pool, or restore entries of it: to where "
            "they were,\n"
            "        under another name where something is there. The entries stay.\n"
            "          --to PATH      restore to this path in the cellar\n"
            "          --move         delete an entry once its copy is durable\n"
            "          --output FILE  only read it, into a new file (-: stdout)\n"
            "          --tail         also of what holds only the appended end of a file\n"
            "          --discard      delete entries (asks; --force does not)",
    .exec = exec_recover,
};
