/*
 * cellarctl evict: delete the warm copies of files, or of all files below directories.
 */
#include "cellarctl/cmd.h"
#include "cellarctl/output.h"
#include "cellarctl/walk.h"

struct evict {
	uint64_t evicted, cold;
};

static void evict_sum(void *ctx, json_t *result)
{
	struct evict *e = ctx;

	e->evicted += out_number(result, "evicted");
	e->cold += out_number(result, "cold");
}

static int exec_evict(const struct cmd *self, int argc, char **argv)
{
	struct evict e = {0};
	struct files_walk w = {.command = "evict", .sum = evict_sum, .ctx = &e};
	struct target *targets = NULL;
	unsigned unusable = 0;
	int first = cmd_no_options(self, argc, argv);
	int status;

	if (first < 0)
		return CMD_USAGE;
	if (first == argc)
		return cmd_usage_error(self, "which files?");
	status = targets_find(argc - first, argv + first, &targets, &unusable);
	if (status != CMD_DONE)
		return status;
	status = files_walk_run(&w, targets);
	targets_free(targets);
	out_line(stdout, "evicted %ju files, %ju were cold already%s", (uintmax_t)e.evicted,
	         (uintmax_t)e.cold, w.failed ? "; some could not be evicted" : "");
	return status == CMD_DONE && w.failed == 0 && unusable == 0 ? CMD_DONE : CMD_FAILED;
}

const struct cmd cmd_evict = {
    .name = "evict",
    .args = "PATH...",
    .help = "Delete the warm copies of files, or of all files below directories.",
    .exec = exec_evict,
};
