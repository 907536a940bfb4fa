#include "cellarctl/walk.h"

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "base/sysio.h"
#include "cellarctl/output.h"

#define BATCH     256
#define DEPTH_MAX 128 /* each level holds a descriptor */

struct walker {
	struct files_walk *w;
	struct target *target;
	struct target_file batch[BATCH];
	size_t count;
	bool broken; /* the daemon is gone or refuses: no more */
};

static void on_object(void *ctx, const char *kind, json_t *object)
{
	struct files_walk *w = ctx;

	if (strcmp(kind, "failure") == 0)
		cmd_error("%s: %s", out_text(object, "path"), out_text(object, "error"));
	else if (w->progress)
		w->progress(w->ctx, object);
}

static void send_batch(struct walker *k)
{
	cleanup_free char *cause = NULL;
	json_t *result = NULL;
	errint_t r;

	if (k->count > 0 && !k->broken) {
		r = control_call(&k->target->client,
		                 target_request(k->w->command, k->batch, k->count),
		                 on_object, k->w, &result, &cause);
		if (r < 0) {
			cmd_error("%s: %s", k->target->client.mountpoint,
			          cause ? cause : strerror(-r));
			k->broken = true;
		}
		k->w->failed += out_number(result, "failed");
		if (result)
			k->w->sum(k->w->ctx, result);
		json_decref(result);
	}
	for (size_t i = 0; i < k->count; i++)
		close(k->batch[i].fd);
	k->count = 0;
}

static void add_file(struct walker *k, int fd, uint64_t ino)
{
	k->batch[k->count++] = (struct target_file){.fd = fd, .ino = ino};
	if (k->count == BATCH)
		send_batch(k);
}

static void file_failed(struct walker *k, const char *path, errint_t err)
{
	cmd_error("%s: %s", path, strerror(-err));
	k->w->failed++;
}

/* What a walk needs of where it is. */
struct walk {
	struct walker *walker;
	int dirfd;
	const char *path;
	unsigned depth;
};

static void walk_dir(struct walker *k, int fd, const char *path, unsigned depth);

static errint_t walk_entry(void *ctx, const char *name, unsigned char type)
{
	struct walk *w = ctx;
	struct walker *k = w->walker;
	cleanup_free char *path = xasprintf("%s/%s", w->path, name);
	struct stat st;
	errint_t r;
	int fd;

	if (k->broken)
		return -ECANCELED;
	if (type != DT_REG && type != DT_DIR)
		return 0;
	fd = sys_openat(w->dirfd, name,
	                O_NOFOLLOW | (type == DT_DIR ? O_DIRECTORY : O_PATH), 0);
	r = fd < 0 ? fd : sys_fstat(fd, &st);
	if (r < 0) {
		if (r != -ENOENT) /* went meanwhile */
			file_failed(k, path, r);
	} else if (st.st_dev == k->target->mount.dev && S_ISDIR(st.st_mode)) {
		walk_dir(k, fd, path, w->depth + 1);
	} else if (st.st_dev == k->target->mount.dev && S_ISREG(st.st_mode)) {
		add_file(k, steal_fd(&fd), st.st_ino);
	}
	if (fd >= 0)
		close(fd);
	return 0;
}

static void walk_dir(struct walker *k, int fd, const char *path, unsigned depth)
{
	struct walk w = {.walker = k, .dirfd = fd, .path = path, .depth = depth};
	errint_t r = depth > DEPTH_MAX ? -ENAMETOOLONG : sys_walk_dir(fd, walk_entry, &w);

	if (r < 0 && r != -ECANCELED)
		file_failed(k, path, r);
}

static void walk_file(struct walker *k, struct target_file *f)
{
	int fd;

	if (S_ISDIR(f->type)) {
		fd = sys_openat(AT_FDCWD, fd_path(f->fd).s, O_RDONLY | O_DIRECTORY, 0);
		if (fd < 0) {
			file_failed(k, f->path, fd);
			return;
		}
		walk_dir(k, fd, f->path, 0);
		close(fd);
	} else if (S_ISREG(f->type)) {
		add_file(k, steal_fd(&f->fd), f->ino);
	} else {
		cmd_error("%s: is no regular file", f->path);
		k->w->failed++;
	}
}

/* A daemon that was found by its socket: where its mount is for us. */
static errint_t locate(struct target *t, char **cause)
{
	errint_t r;

	if (t->mount.mountpoint)
		return 0;
	r = control_locate(t->client.mountpoint, &t->mount, cause);
	if (r == 0 && strcmp(t->mount.source, t->client.store) != 0) {
		control_mount_clear(&t->mount);
		r = set_cause(cause, -ENODEV, "another mount lies there");
	}
	return r;
}

/* The mount point itself was named, or nothing at all. */
static void walk_mount(struct walker *k)
{
	cleanup_free char *cause = NULL;
	errint_t r = locate(k->target, &cause);
	const char *mountpoint;
	int fd;

	if (r < 0) {
		cmd_error("%s: %s", k->target->client.mountpoint,
		          cause ? cause : strerror(-r));
		k->w->failed++;
		return;
	}
	mountpoint = k->target->mount.mountpoint;
	fd = sys_openat(AT_FDCWD, mountpoint, O_RDONLY | O_DIRECTORY, 0);
	if (fd < 0) {
		file_failed(k, mountpoint, fd);
		return;
	}
	walk_dir(k, fd, mountpoint, 0);
	close(fd);
}

int files_walk_run(struct files_walk *w, struct target *targets)
{
	struct walker k = {.w = w};
	int status = CMD_DONE;

	for (struct target *t = targets; t; t = t->next) {
		k.target = t;
		k.broken = false;
		if (t->everything)
			walk_mount(&k);
		else
			for (size_t i = 0; i < t->count; i++)
				walk_file(&k, &t->files[i]);
		send_batch(&k);
		if (k.broken)
			status = CMD_FAILED;
	}
	return status;
}
