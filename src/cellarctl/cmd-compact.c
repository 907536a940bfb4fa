/*
 * cellarctl compact: encode cold objects again, harder and in larger frames, and make
 * objects of the plain files of a store.
 */
#include <string.h>

#include "cellarctl/cmd.h"
#include "cellarctl/output.h"
#include "cellarctl/walk.h"

struct compact {
	struct out_progress progress;
	uint64_t compacted, kept, warm, before_bytes, after_bytes;
};

static void compact_progress(void *ctx, json_t *object)
{
	struct compact *c = ctx;

	out_progress_show(&c->progress, object);
}

static void compact_sum(void *ctx, json_t *result)
{
	struct compact *c = ctx;

	out_progress_clear(&c->progress);
	c->compacted += out_number(result, "compacted");
	c->kept += out_number(result, "kept");
	c->warm += out_number(result, "warm");
	c->before_bytes += out_number(result, "stored_bytes_before");
	c->after_bytes += out_number(result, "stored_bytes_after");
}

static int exec_compact(const struct cmd *self, int argc, char **argv)
{
	struct compact c = {0};
	struct files_walk w = {.command = "compact",
	                       .progress = compact_progress,
	                       .sum = compact_sum,
	                       .ctx = &c};
	struct target *targets = NULL;
	unsigned unusable = 0;
	int first = cmd_no_options(self, argc, argv);
	int status;

	if (first < 0)
		return CMD_USAGE;
	status = targets_find(argc - first, argv + first, &targets, &unusable);
	if (status != CMD_DONE)
		return status;
	out_progress_init(&c.progress, "compact");
	status = files_walk_run(&w, targets);
	out_progress_clear(&c.progress);
	targets_free(targets);
	out_line(stdout,
	         "compacted %ju files, %s to %s; %ju are as small as they get, %ju are in "
	         "use%s",
	         (uintmax_t)c.compacted, text_size(c.before_bytes).s,
	         text_size(c.after_bytes).s, (uintmax_t)c.kept, (uintmax_t)c.warm,
	         w.failed ? "; some could not be compacted" : "");
	return status == CMD_DONE && w.failed == 0 && unusable == 0 ? CMD_DONE : CMD_FAILED;
}

const struct cmd cmd_compact = {
    .name = "compact",
    .args = "[PATH]...",
    .help = "Encode cold files again, harder (compact_level) and in larger frames.",
    .exec = exec_compact,
};
