/* cellarctl status: what the daemons say of themselves, for people or as JSON. */
#include <getopt.h>
#include <string.h>

#include "cellarctl/cmd.h"
#include "cellarctl/output.h"

/* ---- for people ---- */

static void print_pool(const json_t *j)
{
	uint64_t bytes = out_number(j, "pool.bytes"),
	         limit = out_number(j, "pool.limit_bytes");
	uint64_t over = out_number(j, "pool.over_bytes");

	out_line(stdout, "  pool     %s %s  %s of %s, %s dirty, %s open",
	         out_bar(bytes, limit).s, out_percent(bytes, limit).s, text_size(bytes).s,
	         text_size(limit).s, text_size(out_number(j, "pool.dirty_bytes")).s,
	         text_size(out_number(j, "pool.open_bytes")).s);
	if (over > 0)
		out_line(
		    stdout,
		    "           %s above the limit, held by files that are open or dirty",
		    text_size(over).s);
	if (out_text(j, "pool.path")[0])
		out_line(stdout, "           in %s", out_text(j, "pool.path"));
}

static void print_scratch(const json_t *j)
{
	uint64_t queued = out_number(j, "queue.files");

	out_line(stdout,
	         "  scratch  %ju warm, %ju dirty, %ju flushing, %ju pinned, %ju open",
	         (uintmax_t)out_number(j, "scratch.warm"),
	         (uintmax_t)out_number(j, "scratch.dirty"),
	         (uintmax_t)out_number(j, "scratch.flushing"),
	         (uintmax_t)out_number(j, "scratch.pinned"),
	         (uintmax_t)out_number(j, "scratch.open"));
	if (queued == 0)
		out_line(stdout, "  queue    empty");
	else
		out_line(
		    stdout, "  queue    %ju files, the oldest for %s", (uintmax_t)queued,
		    text_duration((uint64_t)(out_real(j, "queue.oldest_seconds") * 1000))
		        .s);
}

static void print_use(const json_t *j)
{
	uint64_t hits = out_number(j, "hits.hits"), misses = out_number(j, "hits.misses");
	uint64_t stored = out_number(j, "stored.stored_bytes");
	uint64_t logical = out_number(j, "stored.logical_bytes");
	char ratio[32] = "";

	out_line(stdout, "  opens    %ju hits, %ju misses%s%s", (uintmax_t)hits,
	         (uintmax_t)misses, hits + misses ? ", hit rate " : "",
	         out_percent(hits, hits + misses).s);
	if (stored > 0)
		snprintf(ratio, sizeof(ratio), ", ratio %.2f",
		         (double)logical / (double)stored);
	out_line(stdout, "  stored   %ju files, %s in %s%s",
	         (uintmax_t)out_number(j, "stored.files"), text_size(logical).s,
	         text_size(stored).s, ratio);
}

static void print_list(const json_t *list, uint64_t count, const char *title,
                       const char *key, const char *value)
{
	const json_t *item;
	size_t i;

	if (count == 0)
		return;
	out_line(stdout, "  %s (%ju)", title, (uintmax_t)count);
	json_array_foreach (list, i, item)
		out_line(stdout, "    %s: %s", out_text(item, key), out_text(item, value));
	if (json_array_size(list) < count && json_array_size(list) > 0)
		out_line(stdout, "    and %ju more",
		         (uintmax_t)(count - json_array_size(list)));
}

static void print_damaged(const json_t *j)
{
	const json_t *list = out_member(j, "damaged"), *item, *range;
	uint64_t count = out_number(j, "damaged_files");
	size_t i, k;

	if (count == 0)
		return;
	out_line(stdout, "  damaged objects, as far as they were read (%ju)",
	         (uintmax_t)count);
	json_array_foreach (list, i, item) {
		out_line(stdout, "    %s: %s", out_text(item, "path"),
		         out_text(item, "error"));
		json_array_foreach (out_member(item, "ranges"), k, range) {
			uint64_t off = out_number(range, "offset_bytes");
			uint64_t len = out_number(range, "length_bytes");

			out_line(stdout, "      bytes %ju-%ju", (uintmax_t)off,
			         (uintmax_t)(off + len - 1));
		}
	}
	if (json_array_size(list) < count && json_array_size(list) > 0)
		out_line(stdout, "    and %ju more",
		         (uintmax_t)(count - json_array_size(list)));
}

static void print_passthrough(const json_t *j)
{
	if (json_is_true(out_member(j, "passthrough.active")))
		out_line(stdout,
		         "  passthrough: on, %ju files; %ju open through the daemon",
		         (uintmax_t)out_number(j, "passthrough.direct_files"),
		         (uintmax_t)out_number(j, "passthrough.cached_files"));
	else
		out_line(stdout, "  passthrough: off (%s)",
		         out_text(j, "passthrough.reason"));
}

static void print_troubles(const json_t *j)
{
	if (json_is_object(out_member(j, "last_error")))
		out_line(stdout, "  error    %s  %s", out_text(j, "last_error.time"),
		         out_text(j, "last_error.text"));
	else
		out_line(stdout, "  error    none");
	if (out_text(j, "catalog_degraded")[0])
		out_line(stdout, "  catalog  degraded: %s",
		         out_text(j, "catalog_degraded"));
	print_list(out_member(j, "failing"), out_number(j, "failing_files"),
	           "files that could not be written back, and are tried again", "path",
	           "error");
	print_damaged(j);
	print_list(out_member(j, "lost_and_found"), out_number(j, "lost_and_found_files"),
	           "files in lost+found of the pool; cellarctl recover tells more", "name",
	           "path");
}

static void print_cellar(const json_t *j)
{
	out_line(stdout, "%s", out_text(j, "mountpoint"));
	out_line(stdout, "  store    %s", out_text(j, "store"));
	out_line(stdout, "  daemon   pid %ju, cellar %s, %s, up %s",
	         (uintmax_t)out_number(j, "pid"), out_text(j, "program_version"),
	         out_text(j, "state"),
	         text_duration((uint64_t)(out_real(j, "uptime_seconds") * 1000)).s);
	print_pool(j);
	print_scratch(j);
	print_use(j);
	print_passthrough(j);
	print_troubles(j);
}

/* ---- collecting ---- */

static errint_t ask(struct control_client *c, json_t *cellars, char **cause)
{
	json_t *result = NULL;
	errint_t r = control_call(c, json_pack("{s:s}", "command", "status"), NULL, NULL,
	                          &result, cause);

	if (r == 0)
		json_array_append_new(cellars, result);
	return r;
}

static int ask_one(const char *path, json_t *cellars)
{
	struct control_mount m = {0};
	struct control_client c;
	cleanup_free char *cause = NULL;
	errint_t r = control_locate(path, &m, &cause);

	if (r == 0)
		r = control_connect(&m, &c, &cause);
	control_mount_clear(&m);
	if (r == 0) {
		r = ask(&c, cellars, &cause);
		control_client_close(&c);
	}
	if (r < 0)
		cmd_error("%s", cause ? cause : strerror(-r));
	return r < 0 ? cmd_exit_of(r) : CMD_DONE;
}

static int ask_all(json_t *cellars)
{
	struct control_client *clients = NULL;
	size_t n = 0;
	int status = CMD_DONE;

	(void)control_find_all(&clients, &n);
	for (size_t i = 0; i < n; i++) {
		cleanup_free char *cause = NULL;
		errint_t r = ask(&clients[i], cellars, &cause);

		/* One that ended just now is running no more, which is no failure. */
		if (r < 0 && r != -ECONNRESET) {
			cmd_error("%s: %s", clients[i].mountpoint,
			          cause ? cause : strerror(-r));
			status = CMD_FAILED;
		}
	}
	control_clients_free(clients, n);
	if (json_array_size(cellars) > 0 || status == CMD_FAILED)
		return status;
	cmd_error("no cellard is running");
	return CMD_NO_DAEMON;
}

static void print(json_t *cellars, bool as_json)
{
	json_t *document, *cellar;
	size_t i;

	if (as_json) {
		document =
		    json_pack("{s:i,s:O}", "version", PROTOCOL_VERSION, "cellars", cellars);
		json_dumpf(document, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
		printf("\n");
		json_decref(document);
		return;
	}
	json_array_foreach (cellars, i, cellar) {
		if (i > 0)
			printf("\n");
		print_cellar(cellar);
	}
}

static int exec_status(const struct cmd *self, int argc, char **argv)
{
	static const struct option longs[] = {{"json", no_argument, NULL, 'j'},
	                                      {NULL, 0, NULL, 0}};
	bool as_json = false;
	json_t *cellars;
	int o, status;

	opterr = 0;
	optind = 0;
	while ((o = getopt_long(argc, argv, "j", longs, NULL)) != -1) {
		if (o != 'j')
			return cmd_usage_error(self, "wrong option \"%s\"",
			                       argv[optind - 1]);
		as_json = true;
	}
	if (argc - optind > 1)
		return cmd_usage_error(self, "at most one mount point");
	cellars = json_array();
	status = argc > optind ? ask_one(argv[optind], cellars) : ask_all(cellars);
	/* With --json also the empty list: whoever parses it need not look at the status. */
	if (json_array_size(cellars) > 0 || as_json)
		print(cellars, as_json);
	json_decref(cellars);
	return status;
}

const struct cmd cmd_status = {
    .name = "status",
    .args = "[--json] [MOUNTPOINT]",
    .help = "Show the state of a cellar, or of every running one.",
    .exec = exec_status,
};
