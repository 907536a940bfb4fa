/*
 * cellarctl verify: decode and check objects; by the daemon that serves them, or, for a
 * store directory that is not mounted over itself, here, looking only.
 */
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "base/sysio.h"
#include "cellarctl/cmd.h"
#include "cellarctl/output.h"
#include "upkeep/verify.h"

struct verify {
	struct out_progress progress;
	struct verify_totals totals;
};

static void verify_bad(struct verify *v, const char *path, const char *error)
{
	out_progress_clear(&v->progress);
	cmd_error("%s: %s", path, error);
}

/* ---- by a daemon ---- */

static void verify_each(void *ctx, const char *kind, json_t *object)
{
	struct verify *v = ctx;

	if (strcmp(kind, "progress") == 0)
		out_progress_show(&v->progress, object);
	else
		verify_bad(v, out_text(object, "path"), out_text(object, "error"));
}

static void verify_sum(void *ctx, json_t *result)
{
	struct verify *v = ctx;

	v->totals.files += out_number(result, "files");
	v->totals.damaged += out_number(result, "damaged");
	v->totals.plain += out_number(result, "plain");
	v->totals.logical_bytes += out_number(result, "logical_bytes");
	v->totals.stored_bytes += out_number(result, "stored_bytes");
}

/* ---- here ---- */

/* The store in which path lies: *ret its root, *ret_rest the way on from there. */
static bool find_store(const char *path, char **ret, char **ret_rest)
{
	cleanup_free char *root = realpath(path, NULL);
	size_t whole = root ? strlen(root) : 0;

	while (root && root[0]) {
		cleanup_free char *id = xasprintf("%s/" NAMES_PRIVATE "/store.id", root);
		cleanup_free char *full = NULL;
		struct stat st;
		char *slash;

		if (sys_fstatat(AT_FDCWD, id, &st, AT_SYMLINK_NOFOLLOW) == 0) {
			full = realpath(path, NULL);
			*ret_rest = full && strlen(full) == whole && whole > strlen(root)
			                ? xstrdup(full + strlen(root) + 1)
			                : xstrdup("");
			*ret = steal_pointer(&root);
			return true;
		}
		slash = strrchr(root, '/');
		*slash = '\0';
	}
	return false;
}

static void verify_report(void *ctx, const char *store_path,
                          const struct verify_result *result)
{
	struct verify *v = ctx;

	if (result->error)
		verify_bad(v, store_path, result->error);
}

static int verify_offline(struct verify *v, const char *root, const char *rest)
{
	struct options o;
	struct store *s = NULL;
	struct verify_totals t = {0};
	cleanup_free char *cause = NULL;
	errint_t r = store_open(root, STORE_NOLOCK, &s, NULL, &cause);

	if (r == 0) {
		options_init(&o);
		r = verify_tree(s, rest, o.max_object, NULL, verify_report, v, NULL, &t,
		                &cause);
		options_clear(&o);
		store_close(s);
	}
	v->totals.files += t.files;
	v->totals.damaged += t.damaged;
	v->totals.plain += t.plain;
	v->totals.logical_bytes += t.logical_bytes;
	v->totals.stored_bytes += t.stored_bytes;
	if (r < 0)
		cmd_error("%s", cause ? cause : strerror(-r));
	return r < 0 ? CMD_FAILED : CMD_DONE;
}

/* Whether path was a store's and is done with. */
static bool verify_store(struct verify *v, const char *path, int *status)
{
	struct control_mount m = {0};
	char *root = NULL, *rest = NULL;

	if (control_locate(path, &m, NULL) != -ENODEV) {
		control_mount_clear(&m);
		return false;
	}
	if (!find_store(path, &root, &rest))
		return false;
	if (verify_offline(v, root, rest) != CMD_DONE)
		*status = CMD_FAILED;
	free(root);
	free(rest);
	return true;
}

/* ---- */

static int exec_verify(const struct cmd *self, int argc, char **argv)
{
	struct verify v = {0};
	struct target *targets = NULL;
	unsigned unusable = 0;
	int first = cmd_no_options(self, argc, argv);
	int status = CMD_DONE, found = CMD_DONE;
	int mounted = 0; /* how many of argv[first..] are left for daemons */
	bool any;

	if (first < 0)
		return CMD_USAGE;
	out_progress_init(&v.progress, "verify");
	any = argc > first;
	for (int i = first; i < argc; i++)
		if (!verify_store(&v, argv[i], &status))
			argv[first + mounted++] = argv[i];
	if (mounted > 0 || !any)
		found = targets_find(mounted, argv + first, &targets, &unusable);
	if (found != CMD_DONE && mounted == argc - first)
		return found; /* nothing was looked at */
	for (struct target *t = targets; t; t = t->next) {
		if (target_call(t, "verify", verify_each, verify_sum, &v) != CMD_DONE)
			status = CMD_FAILED;
		out_progress_clear(&v.progress);
	}
	targets_free(targets);
	out_line(stdout, "verified %ju files, %s in %s; %ju damaged, %ju plain",
	         (uintmax_t)v.totals.files, text_size(v.totals.logical_bytes).s,
	         text_size(v.totals.stored_bytes).s, (uintmax_t)v.totals.damaged,
	         (uintmax_t)v.totals.plain);
	return status == CMD_DONE && v.totals.damaged == 0 && unusable == 0 ? CMD_DONE
	                                                                    : CMD_FAILED;
}

const struct cmd cmd_verify = {
    .name = "verify",
    .args = "[PATH]...",
    .help = "Decode and check objects, in a mounted cellar or in a store directory.",
    .exec = exec_verify,
};
