/*
 * The pool's directory: made, locked, matched with its store, marked clean. Everything here
 * happens before the catalog or a scratch is looked at.
 *
 * An unmounted disk must not look like an empty pool: the store remembers its pool's UUID and
 * the pool its store's, and any mismatch is refused.
 *
 * L1. An open that fails leaves no directory that it made, and takes none from another daemon that
 *     opened it meanwhile: pool.lock is removed only under its lock, the directory only when it is
 *     empty, and who finds that the directory or the lock file it opened has gone begins again.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/text.h"
#include "pool/internal.h"
#include "store/private.h"

#define HOLDER_TRIES    40
#define HOLDER_PAUSE_NS 25000000L

#define OPEN_TRIES 16

#define POOL_MAGIC "cellar-pool 1"

/* -ENOENT: no such file; -EUCLEAN: it is no pool.self. */
static errint_t read_pool_id(int dirfd, struct uuid *pool, struct uuid *store)
{
	char buf[256], pool_text[64], store_text[64];
	ssize_t n;
	int fd = sys_openat(dirfd, "pool.self", O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);

	if (fd < 0)
		return fd;
	n = sys_pread(fd, buf, sizeof(buf) - 1, 0);
	(void)sys_close(fd);
	if (n < 0)
		return (errint_t)n;
	buf[n] = '\0';
	if (sscanf(buf, POOL_MAGIC "\nuuid %63s\nstore %63s\n", pool_text, store_text) !=
	        2 ||
	    !uuid_parse(pool_text, pool) || !uuid_parse(store_text, store))
		return -EUCLEAN;
	return 0;
}

errint_t pool_place_owner(const char *path, struct uuid *ret_store)
{
	cleanup_fd int fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
	struct uuid pool;

	return fd < 0 ? fd : read_pool_id(fd, &pool, ret_store);
}

static errint_t write_pool_id(int dirfd, const struct uuid *pool, const struct uuid *store)
{
	char text[256];

	snprintf(text, sizeof(text), POOL_MAGIC "\nuuid %s\nstore %s\n",
	         uuid_format(pool).s, uuid_format(store).s);
	return store_replace_text(dirfd, "pool.self", text);
}

/* What the holder of the lock wrote, its first line; it writes right after it took it, so a text
 * of somebody who is no more is waited out. */
static ssize_t read_holder(int fd, char *buf, size_t size)
{
	const struct timespec pause = {.tv_nsec = HOLDER_PAUSE_NS};
	ssize_t n = 0;

	for (unsigned i = 0; i < HOLDER_TRIES; i++) {
		int pid = 0;

		if (i > 0)
			(void)nanosleep(&pause, NULL);
		n = sys_pread(fd, buf, size - 1, 0);
		buf[MAX_OF(n, 0)] = '\0';
		buf[strcspn(buf, "\n")] = '\0';
		if (sscanf(buf, "pid %d", &pid) == 1 && pid > 0 &&
		    (kill(pid, 0) == 0 || errno == EPERM))
			break;
	}
	return n;
}

/* -ESTALE, without a cause: the directory was removed by whoever made it (L1). */
static errint_t lock_pool(struct pool_place *pl, bool *ret_draining, char **cause)
{
	char buf[64];
	struct stat st;
	ssize_t n;
	int len;

	pl->lock_fd =
	    sys_openat(pl->dirfd, "pool.lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
	if (pl->lock_fd == -ENOENT)
		return -ESTALE;
	if (pl->lock_fd < 0)
		return set_cause_errno(cause, pl->lock_fd, "cannot open \"%s/pool.lock\"",
		                       pl->path);
	if (flock(pl->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK)
			return set_cause_errno(cause, -errno, "cannot lock the pool \"%s\"",
			                       pl->path);
		n = read_holder(pl->lock_fd, buf, sizeof(buf));
		if (ret_draining)
			*ret_draining = n > 0 && strstr(buf, "draining") != NULL;
		return set_cause(cause, -EBUSY,
		                 "the pool \"%s\" is in use by another cellard, %s",
		                 pl->path, buf[0] ? buf : "pid unknown");
	}
	pl->locked = true;
	if (sys_fstat(pl->lock_fd, &st) == 0 && st.st_nlink == 0)
		return -ESTALE;
	len = snprintf(buf, sizeof(buf), "pid %d\n", (int)getpid());
	if (ftruncate(pl->lock_fd, 0) < 0)
		return set_cause_errno(cause, -errno, "cannot write \"%s/pool.lock\"",
		                       pl->path);
	n = full_pwrite(pl->lock_fd, buf, (size_t)len, 0);
	return n < 0 ? set_cause_errno(cause, (errint_t)n, "cannot write \"%s/pool.lock\"",
	                               pl->path)
	             : 0;
}

/* User xattrs carry the records: without them there is no pool. */
static errint_t check_xattrs(struct pool_place *pl, char **cause)
{
	struct record probe = {.ctime = {0, 0}}, back;
	errint_t r = record_write(pl->lock_fd, &probe);

	if (r == 0)
		r = record_read(pl->lock_fd, &back);
	(void)sys_fremovexattr(pl->lock_fd, RECORD_XATTR);
	if (r < 0)
		return set_cause_errno(
		    cause, r,
		    "the filesystem of the pool \"%s\" does not keep extended "
		    "attributes, which the pool needs",
		    pl->path);
	return 0;
}

/* look_only: says no where it must, writes nothing. */
static errint_t match(struct pool_place *pl, const struct uuid *store,
                      const struct uuid *store_pool, bool new_pool, bool look_only,
                      char **cause)
{
	errint_t r = read_pool_id(pl->dirfd, &pl->uuid, &pl->store);
	bool remembered = !uuid_is_null(store_pool);

	if (r == -EUCLEAN)
		return set_cause(cause, r, "\"%s/pool.self\" is damaged", pl->path);
	if (r < 0 && r != -ENOENT)
		return set_cause_errno(cause, r, "cannot read \"%s/pool.self\"", pl->path);
	if (r == 0 && !look_only && !uuid_equal(&pl->store, store))
		return set_cause(
		    cause, -EXDEV,
		    "the pool \"%s\" belongs to another store (%s); this one is %s",
		    pl->path, uuid_format(&pl->store).s, uuid_format(store).s);
	if (look_only && r == 0)
		return 0; /* a pool: who holds it is asked first */
	if (remembered && !new_pool && (r < 0 || !uuid_equal(&pl->uuid, store_pool)))
		return set_cause(
		    cause, -EXDEV,
		    "the store's dirty data may lie in the pool %s, which is not at "
		    "\"%s\" (is its disk mounted?); new_pool starts without it",
		    uuid_format(store_pool).s, pl->path);
	if (r == 0 || look_only)
		return 0;
	if (remembered)
		log_warn("starting with a new pool in \"%s\": what was dirty in pool %s is "
		         "not seen",
		         pl->path, uuid_format(store_pool).s);
	pl->uuid = uuid_random();
	pl->store = *store;
	pl->created = true;
	r = write_pool_id(pl->dirfd, &pl->uuid, store);
	return r < 0 ? set_cause_errno(cause, r, "cannot write \"%s/pool.self\"", pl->path)
	             : 0;
}

/* What an open that failed has made, and only that (L1). */
static void undo_make(const struct pool_place *pl)
{
	if (pl->locked)
		(void)sys_unlinkat(pl->dirfd, "pool.lock", 0);
	(void)sys_unlinkat(AT_FDCWD, pl->path, AT_REMOVEDIR);
}

static errint_t open_once(const char *path, const struct uuid *store,
                          const struct uuid *store_pool, bool new_pool,
                          struct pool_place *ret, bool *ret_draining, char **cause)
{
	struct pool_place pl = {.dirfd = -1, .lock_fd = -1};
	struct stat st;
	errint_t r = sys_mkdirat(AT_FDCWD, path, 0700);
	bool made = r == 0;

	if (r < 0 && r != -EEXIST)
		return set_cause_errno(cause, r, "cannot make the pool \"%s\"", path);
	pl.path = xstrdup(path);
	pl.dirfd = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
	if (pl.dirfd < 0) {
		r = set_cause_errno(cause, pl.dirfd, "cannot open the pool \"%s\"", path);
		goto fail;
	}
	/* Refused before anything is written: the directory may be the mount point of a disk that
	 * is missing. */
	r = match(&pl, store, store_pool, new_pool, true, cause);
	if (r == 0)
		r = private_check_dir(pl.dirfd, path, false, cause);
	if (r == 0)
		r = lock_pool(&pl, ret_draining, cause);
	if (r == 0)
		r = check_xattrs(&pl, cause);
	if (r == 0)
		r = match(&pl, store, store_pool, new_pool, false, cause);
	if (r < 0)
		goto fail;
	pl.clean = sys_fstatat(pl.dirfd, "clean", &st, AT_SYMLINK_NOFOLLOW) == 0;
	*ret = pl;
	return 0;
fail:
	if (made)
		undo_make(&pl);
	pool_place_close(&pl);
	return r;
}

errint_t pool_place_open(const char *path, const struct uuid *store,
                         const struct uuid *store_pool, bool new_pool,
                         struct pool_place *ret, bool *ret_draining, char **cause)
{
	errint_t r = -ESTALE;

	if (ret_draining)
		*ret_draining = false;
	for (unsigned i = 0; i < OPEN_TRIES && r == -ESTALE; i++)
		r = open_once(path, store, store_pool, new_pool, ret, ret_draining, cause);
	if (r == -ESTALE && cause && !*cause)
		(void)set_cause(cause, r,
		                "the pool \"%s\" is removed as often as it is made", path);
	return r;
}

void pool_place_close(struct pool_place *p)
{
	if (p->dirfd >= 0)
		(void)sys_close(p->dirfd);
	if (p->lock_fd >= 0)
		(void)sys_close(p->lock_fd);
	p->dirfd = p->lock_fd = -1;
	free(p->path);
	p->path = NULL;
}
