/* cellarctl flush: write back what is dirty, and return when it is in the store and durable. */
#include <string.h>

#include "cellarctl/cmd.h"
#include "cellarctl/output.h"

struct flush {
	struct out_progress progress;
	uint64_t files, bytes, failed;
};

static void flush_each(void *ctx, const char *kind, json_t *object)
{
	struct flush *f = ctx;

	if (strcmp(kind, "progress") == 0) {
		out_progress_show(&f->progress, object);
		return;
	}
	out_progress_clear(&f->progress);
	cmd_error("%s: %s", out_text(object, "path"), out_text(object, "error"));
}

static void flush_sum(void *ctx, json_t *result)
{
	struct flush *f = ctx;

	f->files += out_number(result, "files");
	f->bytes += out_number(result, "bytes");
	f->failed += out_number(result, "failed");
}

static int exec_flush(const struct cmd *self, int argc, char **argv)
{
	struct flush f = {0};
	struct target *targets = NULL;
	unsigned unusable = 0;
	int first = cmd_no_options(self, argc, argv);
	int status;

	if (first < 0)
		return CMD_USAGE;
	status = targets_find(argc - first, argv + first, &targets, &unusable);
	if (status != CMD_DONE)
		return status;
	out_progress_init(&f.progress, "flush");
	for (struct target *t = targets; t; t = t->next) {
		if (target_call(t, "flush", flush_each, flush_sum, &f) != CMD_DONE)
			status = CMD_FAILED;
		out_progress_clear(&f.progress);
	}
	targets_free(targets);
	if (f.failed > 0)
		out_line(stdout, "flushed %ju files, %s; %ju failed", (uintmax_t)f.files,
		         text_size(f.bytes).s, (uintmax_t)f.failed);
	else
		out_line(stdout, "flushed %ju files, %s", (uintmax_t)f.files,
		         text_size(f.bytes).s);
	return status == CMD_DONE && f.failed == 0 && unusable == 0 ? CMD_DONE : CMD_FAILED;
}

const struct cmd cmd_flush = {
    .name = "flush",
    .args = "[MOUNTPOINT|PATH]...",
    .help = "Write back what is dirty (at or below PATH) and wait until it is durable.",
    .exec = exec_flush,
};
