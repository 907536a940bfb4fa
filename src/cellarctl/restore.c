/*
 * Putting a file back: see restore.h.
 */
#include "cellarctl/restore.h"

#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/sysio.h"

#define PIECE       (1U << 20)
#define NAMES_TRIED 1000
#define INSIDE                                                                             \
	(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)

/* ---- bytes ---- */

static errint_t write_all(int fd, const char *p, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* [off, end) of the source to where out stands. */
static errint_t copy_range(const struct restore *r, char *buf, uint64_t off, uint64_t end,
                           int out)
{
	while (off < end) {
		size_t len = MIN_OF(end - off, (uint64_t)PIECE);
		ssize_t n = sys_pread(r->fd, buf, len, (off_t)off);
		errint_t err;

		if (n <= 0)
			return n < 0 ? (errint_t)n : -ENODATA; /* it became shorter */
		err = write_all(out, buf, (size_t)n);
		if (err)
			return err;
		off += (uint64_t)n;
	}
	return 0;
}

/* Extents of data, with the holes between them sought over. */
static errint_t copy_sparse(const struct restore *r, char *buf, uint64_t size, int out,
                            off_t out_start)
{
	uint64_t at = r->from;

	while (at < size) {
		off_t data = lseek(r->fd, (off_t)at, SEEK_DATA);
		off_t hole = data < 0 ? data : lseek(r->fd, data, SEEK_HOLE);
		errint_t err;

		if (data < 0 && errno == ENXIO)
			break; /* nothing but a hole */
		if (data < 0 || hole < 0)
			return -errno;
		if (lseek(out, out_start + data - (off_t)r->from, SEEK_SET) < 0)
			return -errno;
		err = copy_range(r, buf, (uint64_t)data, MIN_OF((uint64_t)hole, size), out);
		if (err)
			return err;
		at = (uint64_t)hole;
	}
	return sys_ftruncate(out, out_start + (off_t)(size - r->from));
}

errint_t restore_bytes(const struct restore *r, int out_fd, char **cause)
{
	cleanup_free char *buf = xmalloc(PIECE);
	off_t start = lseek(out_fd, 0, SEEK_CUR);
	struct stat st, out_st;
	errint_t err = sys_fstat(r->fd, &st);
	uint64_t size;

	if (!err)
		err = sys_fstat(out_fd, &out_st);
	if (err)
		return set_cause_errno(cause, err, "cannot look at it");
	size = (uint64_t)st.st_size;
	if (size <= r->from)
		return 0;
	if (start >= 0 && S_ISREG(out_st.st_mode))
		err = copy_sparse(r, buf, size, out_fd, start);
	else
		err = copy_range(r, buf, r->from, size, out_fd);
	return err ? set_cause_errno(cause, err, "cannot copy it") : 0;
}

/* ---- names ---- */

/* The directory that path lies in; *ret_base points into path. */
static int open_parent(const struct restore *r, const char *path, const char **ret_base)
{
	cleanup_free char *dir = xstrdup(path);
	char *slash = strrchr(dir, '/');

	*ret_base = slash ? path + (slash - dir) + 1 : path;
	if (slash)
		*slash = '\0';
	return sys_openat2(r->root_fd, slash && *dir ? dir : ".", O_RDONLY | O_DIRECTORY, 0,
	                   INSIDE);
}

static errint_t explain_parent(const struct restore *r, const char *path, errint_t err,
                               char **cause)
{
	const char *slash = strrchr(path, '/');
	int len = slash ? (int)(slash - path) : 0;

	if (err == -EXDEV || err == -ELOOP)
		return set_cause(cause, err,
		                 "the way to \"%s\" leads out of the cellar or over a link",
		                 path);
	if (err == -ENOENT && r->is_guess)
		return set_cause(
		    cause, err,
		    "its directory \"%.*s\" is there no more; name a place with --to", len,
		    path);
	return set_cause_errno(cause, err, "cannot open the directory of \"%s\"", path);
}

static int make_copy(int dirfd, char *name, size_t size)
{
	static unsigned count;

	(void)snprintf(name, size, ".cellar-recover-%ld-%u", (long)getpid(), ++count);
	return sys_openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
}

/* base, or with may_add base.recovered, base.recovered-2… */
static errint_t give_name(const struct restore *r, int dirfd, const char *tmp,
                          const char *base, char **ret)
{
	errint_t err = -EEXIST;

	for (unsigned i = 0; i < NAMES_TRIED && err == -EEXIST; i++) {
		cleanup_free char *name = i == 0   ? xstrdup(base)
		                          : i == 1 ? xasprintf("%s.recovered", base)
		                                   : xasprintf("%s.recovered-%u", base, i);

		err = sys_renameat2(dirfd, tmp, dirfd, name, RENAME_NOREPLACE);
		if (!err)
			*ret = steal_pointer(&name);
		if (!r->may_add)
			break;
	}
	return err;
}

static errint_t sync_copy(int fd, int dirfd)
{
	errint_t err = sys_fsync(fd);

	return err ? err : sys_fsync(dirfd);
}

static errint_t fill_copy(const struct restore *r, int fd, char **cause)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}};
	struct stat st;
	errint_t err = restore_bytes(r, fd, cause);

	if (!err)
		err = sys_fstat(r->fd, &st);
	if (!err) {
		ts[1] = st.st_mtim;
		err = sys_futimens(fd, ts);
	}
	if (!err)
		err = sys_fsync(fd);
	return err ? set_cause_errno(cause, err, "cannot write the copy") : 0;
}

errint_t restore_file(const struct restore *r, const char *path, char **ret, char **cause)
{
	const char *base;
	cleanup_fd int dirfd = open_parent(r, path, &base);
	cleanup_fd int fd = -1;
	cleanup_free char *name = NULL;
	char tmp[64];
	errint_t err;

	if (dirfd < 0)
		return explain_parent(r, path, dirfd, cause);
	if (!*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
		return set_cause(cause, -EINVAL, "\"%s\" is no name for a file", path);
	fd = make_copy(dirfd, tmp, sizeof(tmp));
	if (fd < 0)
		return set_cause_errno(cause, fd, "cannot make a file beside \"%s\"", path);
	err = fill_copy(r, fd, cause);
	if (!err) {
		err = give_name(r, dirfd, tmp, base, &name);
		if (err == -EEXIST)
			set_cause(cause, err, "\"%s\" exists; nothing is overwritten",
			          path);
		else if (err)
			set_cause_errno(cause, err, "cannot name the copy \"%s\"", path);
	}
	if (err) {
		(void)sys_unlinkat(dirfd, tmp, 0); /* (C3) */
		return err;
	}
	*ret = xasprintf("%.*s%s", (int)(base - path), path, name);
	err = sync_copy(fd, dirfd); /* (C1) */
	return err ? set_cause_errno(cause, err, "the copy is \"%s\", and cannot be synced",
	                             *ret)
	           : 0;
}
