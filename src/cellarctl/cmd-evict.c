/*
 * cellarctl evict: delete the warm copies of files, or of all files below directories.
 *
 * Directories are walked here, through the mount, in batches whose descriptors are held
 * until the daemon has answered: so it knows every inode that it is asked about.
 */
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "base/sysio.h"
#include "cellarctl/cmd.h"
#include "cellarctl/output.h"

#define BATCH     256
#define DEPTH_MAX 128 /* each level holds a descriptor */

struct evict {
	struct target *target;
	struct target_file batch[BATCH];
	size_t count;
	uint64_t evicted, cold, failed;
	bool broken; /* the daemon is gone or refuses: no more */
};

static void evict_each(void *ctx, const char *kind, json_t *object)
{
	if (strcmp(kind, "failure") == 0)
		cmd_error("%s: %s", out_text(object, "path"), out_text(object, "error"));
}

static void evict_send(struct evict *e)
{
	cleanup_free char *cause = NULL;
	json_t *result = NULL;
	errint_t r;

	if (e->count > 0 && !e->broken) {
		r = control_call(&e->target->client,
		                 target_request("evict", e->batch, e->count), evict_each,
		                 NULL, &result, &cause);
		if (r < 0) {
			cmd_error("%s: %s", e->target->client.mountpoint,
			          cause ? cause : strerror(-r));
			e->broken = true;
		}
		e->evicted += out_number(result, "evicted");
		e->cold += out_number(result, "cold");
		e->failed += out_number(result, "failed");
		json_decref(result);
	}
	for (size_t i = 0; i < e->count; i++)
		close(e->batch[i].fd);
	e->count = 0;
}

static void evict_add(struct evict *e, int fd, uint64_t ino)
{
	e->batch[e->count++] = (struct target_file){.fd = fd, .ino = ino};
	if (e->count == BATCH)
		evict_send(e);
}

static void evict_failed(struct evict *e, const char *path, errint_t err)
{
	cmd_error("%s: %s", path, strerror(-err));
	e->failed++;
}

/* What a walk needs of where it is. */
struct walk {
	struct evict *evict;
	int dirfd;
	const char *path;
	unsigned depth;
};

static void evict_dir(struct evict *e, int fd, const char *path, unsigned depth);

static errint_t evict_entry(void *ctx, const char *name, unsigned char type)
{
	struct walk *w = ctx;
	struct evict *e = w->evict;
	cleanup_free char *path = xasprintf("%s/%s", w->path, name);
	struct stat st;
	errint_t r;
	int fd;

	if (e->broken)
		return -ECANCELED;
	if (type != DT_REG && type != DT_DIR)
		return 0;
	fd = sys_openat(w->dirfd, name,
	                O_NOFOLLOW | (type == DT_DIR ? O_DIRECTORY : O_PATH), 0);
	r = fd < 0 ? fd : sys_fstat(fd, &st);
	if (r < 0) {
		if (r != -ENOENT) /* went meanwhile */
			evict_failed(e, path, r);
	} else if (st.st_dev == e->target->mount.dev && S_ISDIR(st.st_mode)) {
		evict_dir(e, fd, path, w->depth + 1);
	} else if (st.st_dev == e->target->mount.dev && S_ISREG(st.st_mode)) {
		evict_add(e, steal_fd(&fd), st.st_ino);
	}
	if (fd >= 0)
		close(fd);
	return 0;
}

static void evict_dir(struct evict *e, int fd, const char *path, unsigned depth)
{
	struct walk w = {.evict = e, .dirfd = fd, .path = path, .depth = depth};
	errint_t r = depth > DEPTH_MAX ? -ENAMETOOLONG : sys_walk_dir(fd, evict_entry, &w);

	if (r < 0 && r != -ECANCELED)
		evict_failed(e, path, r);
}

static void evict_file(struct evict *e, struct target_file *f)
{
	int fd;

	if (S_ISDIR(f->type)) {
		fd = sys_openat(AT_FDCWD, fd_path(f->fd).s, O_RDONLY | O_DIRECTORY, 0);
		if (fd < 0) {
			evict_failed(e, f->path, fd);
			return;
		}
		evict_dir(e, fd, f->path, 0);
		close(fd);
	} else if (S_ISREG(f->type)) {
		evict_add(e, steal_fd(&f->fd), f->ino);
	} else {
		cmd_error("%s: is no regular file", f->path);
		e->failed++;
	}
}

/* The mount point itself was named. */
static void evict_mount(struct evict *e)
{
	const char *mountpoint = e->target->mount.mountpoint;
	int fd = sys_openat(AT_FDCWD, mountpoint, O_RDONLY | O_DIRECTORY, 0);

	if (fd < 0) {
		evict_failed(e, mountpoint, fd);
		return;
	}
	evict_dir(e, fd, mountpoint, 0);
	close(fd);
}

static int exec_evict(const struct cmd *self, int argc, char **argv)
{
	struct evict e = {0};
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
	for (struct target *t = targets; t; t = t->next) {
		e.target = t;
		if (t->everything)
			evict_mount(&e);
		else
			for (size_t i = 0; i < t->count; i++)
				evict_file(&e, &t->files[i]);
		evict_send(&e);
		if (e.broken)
			status = CMD_FAILED;
		e.broken = false;
	}
	targets_free(targets);
	out_line(stdout, "evicted %ju files, %ju were cold already%s", (uintmax_t)e.evicted,
	         (uintmax_t)e.cold, e.failed ? "; some could not be evicted" : "");
	return status == CMD_DONE && e.failed == 0 && unusable == 0 ? CMD_DONE : CMD_FAILED;
}

const struct cmd cmd_evict = {
    .name = "evict",
    .args = "PATH...",
    .help = "Delete the warm copies of files, or of all files below directories.",
    .exec = exec_evict,
};
