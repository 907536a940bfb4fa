/*
 * System calls for disks: see sysio.h.
 *
 * Each wrapper asks fault() first, then calls the kernel until it is not interrupted, and
 * turns -1 into -errno. errno itself is not meaningful afterwards.
 *
 * Threads: any; the wrappers keep no state.
 */
#include <dirent.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/syncgate.h"
#include "base/sysio.h"

#define COPY_BUFFER_LEN (256U << 10)
#define OPENAT2_RETRIES 100

/* The body of a wrapper: the fault, or the call until it is not interrupted. */
#define CALL(name, expr)                                                                   \
	do {                                                                               \
		int fault_ = fault(CALL_##name);                                           \
		__typeof__(expr) r_;                                                       \
                                                                                           \
		if (fault_)                                                                \
			return fault_;                                                     \
		do                                                                         \
			r_ = (expr);                                                       \
		while (r_ < 0 && errno == EINTR);                                          \
		return r_ < 0 ? -errno : r_;                                               \
	} while (0)

/* ---- descriptors ---- */

int sys_openat(int dirfd, const char *path, int flags, mode_t mode)
{
	CALL(openat, openat(dirfd, path, flags | O_CLOEXEC, mode));
}

int sys_openat2(int dirfd, const char *path, int flags, mode_t mode, uint64_t resolve)
{
	bool creates = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
	struct open_how how = {.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
	                       .mode = creates ? mode & 07777 : 0,
	                       .resolve = resolve};
	int err = fault(CALL_openat2);
	long fd;

	if (err)
		return err;
	/* -EAGAIN: a rename elsewhere kept the kernel from being sure that the path stays
	 * beneath dirfd. */
	for (int i = 0; i < OPENAT2_RETRIES; i++) {
		do
			fd = syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
		while (fd < 0 && errno == EINTR);
		if (fd >= 0)
			return (int)fd;
		if (errno != EAGAIN || (flags & O_NONBLOCK))
			break;
	}
	return -errno;
}

errint_t sys_close(int fd)
{
	int err = fault(CALL_close);

	/* The descriptor is gone whatever close says; EINTR says nothing about data. */
	if (close(fd) < 0 && errno != EINTR && !err)
		err = -errno;
	return err;
}

/* ---- bytes ---- */

static size_t half_of(size_t len)
{
	return MAX_OF(len / 2, MIN_OF(len, (size_t)1));
}

ssize_t sys_pread(int fd, void *buf, size_t len, off_t off)
{
	int err = fault(CALL_pread);
	ssize_t n;

	if (err < 0)
		return err;
	if (err == FAULT_SHORT)
		len = half_of(len);
	do
		n = pread(fd, buf, len, off);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

ssize_t sys_pwrite(int fd, const void *buf, size_t len, off_t off)
{
	int err = fault(CALL_pwrite);
	ssize_t n;

	if (err < 0)
		return err;
	if (err == FAULT_SHORT)
		len = half_of(len);
	do
		n = pwrite(fd, buf, len, off);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

ssize_t sys_pwritev(int fd, const struct iovec *iov, int count, off_t off)
{
	int err = fault(CALL_pwritev);
	struct iovec first;
	ssize_t n;

	if (err < 0)
		return err;
	if (err == FAULT_SHORT && count > 0) {
		first = iov[0];
		if (count == 1)
			first.iov_len = half_of(first.iov_len);
		iov = &first;
		count = 1;
	}
	do
		n = pwritev(fd, iov, count, off);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

errint_t full_pread(int fd, void *buf, size_t len, off_t off)
{
	char *p = buf;

	while (len > 0) {
		ssize_t n = sys_pread(fd, p, len, off);

		if (n < 0)
			return (errint_t)n;
		if (n == 0)
			return -ENODATA;
		p += n;
		len -= (size_t)n;
		off += n;
	}
	return 0;
}

errint_t full_pwrite(int fd, const void *buf, size_t len, off_t off)
{
	const char *p = buf;

	while (len > 0) {
		ssize_t n = sys_pwrite(fd, p, len, off);

		if (n < 0)
			return (errint_t)n;
		if (n == 0)
			return -EIO;
		p += n;
		len -= (size_t)n;
		off += n;
	}
	return 0;
}

static errint_t copy_by_hand(int in, off_t in_off, int out, off_t out_off, size_t len)
{
	size_t size = MIN_OF(len, (size_t)COPY_BUFFER_LEN);
	cleanup_free char *buf = malloc(size ? size : 1);

	if (!buf)
		return -ENOMEM;
	while (len > 0) {
		size_t piece = MIN_OF(len, size);
		errint_t err = full_pread(in, buf, piece, in_off);

		if (!err)
			err = full_pwrite(out, buf, piece, out_off);
		if (err)
			return err;
		in_off += (off_t)piece;
		out_off += (off_t)piece;
		len -= piece;
	}
	return 0;
}

static ssize_t copy_range(int in, off_t in_off, int out, off_t out_off, size_t len)
{
	CALL(full_copy_range, copy_file_range(in, &in_off, out, &out_off, len, 0));
}

errint_t full_copy_range(int in, off_t in_off, int out, off_t out_off, size_t len)
{
	while (len > 0) {
		ssize_t n = copy_range(in, in_off, out, out_off, len);

		/* 0 is the end of the file, or a filesystem that cannot: reading tells. */
		if (n == 0 || n == -EXDEV || n == -EINVAL || n == -ENOSYS ||
		    n == -EOPNOTSUPP)
			return copy_by_hand(in, in_off, out, out_off, len);
		if (n < 0)
			return (errint_t)n;
		in_off += n;
		out_off += n;
		len -= (size_t)n;
	}
	return 0;
}

/* ---- durability and room ---- */

static errint_t do_fsync(int fd)
{
	CALL(fsync, fsync(fd));
}

errint_t sys_fsync(int fd)
{
	unsigned long n = sync_gate_before("fsync", fd);
	errint_t err = do_fsync(fd);

	if (!err)
		sync_gate_after(n, "fsync", fd);
	return err;
}

errint_t sys_fsync_dir(int fd)
{
	struct stat st;
	errint_t err = sys_fsync(fd);

	return err ? err : sys_fstat(fd, &st);
}

static errint_t do_fdatasync(int fd)
{
	CALL(fdatasync, fdatasync(fd));
}

errint_t sys_fdatasync(int fd)
{
	unsigned long n = sync_gate_before("fdatasync", fd);
	errint_t err = do_fdatasync(fd);

	if (!err)
		sync_gate_after(n, "fdatasync", fd);
	return err;
}

static errint_t do_syncfs(int fd)
{
	CALL(syncfs, syncfs(fd));
}

errint_t sys_syncfs(int fd)
{
	unsigned long n = sync_gate_before("syncfs", fd);
	errint_t err = do_syncfs(fd);

	if (!err)
		sync_gate_after(n, "syncfs", fd);
	return err;
}

void sys_start_writeout(int fd, off_t off, off_t len)
{
	(void)sync_file_range(fd, off, len, SYNC_FILE_RANGE_WRITE);
}

errint_t sys_clone_file(int in, int out)
{
	CALL(clone_file, ioctl(out, FICLONE, in));
}

errint_t sys_ftruncate(int fd, off_t size)
{
	CALL(ftruncate, ftruncate(fd, size));
}

errint_t sys_fallocate(int fd, int mode, off_t off, off_t len)
{
	CALL(fallocate, fallocate(fd, mode, off, len));
}

/* ---- attributes ---- */

errint_t sys_fstat(int fd, struct stat *st)
{
	CALL(fstat, fstat(fd, st));
}

errint_t sys_fstatat(int dirfd, const char *name, struct stat *st, int flags)
{
	CALL(fstatat, fstatat(dirfd, name, st, flags));
}

errint_t sys_statx(int dirfd, const char *name, int flags, unsigned mask, struct statx *stx)
{
	CALL(statx, statx(dirfd, name, flags, mask, stx));
}

errint_t sys_fstatfs(int fd, struct statfs *st)
{
	CALL(fstatfs, fstatfs(fd, st));
}

errint_t sys_utimensat(int dirfd, const char *name, const struct timespec ts[2], int flags)
{
	CALL(utimensat, utimensat(dirfd, name, ts, flags));
}

errint_t sys_futimens(int fd, const struct timespec ts[2])
{
	CALL(futimens, futimens(fd, ts));
}

errint_t sys_fchmod(int fd, mode_t mode)
{
	CALL(fchmod, fchmod(fd, mode));
}

errint_t sys_fchmodat(int dirfd, const char *name, mode_t mode)
{
	CALL(fchmodat, fchmodat(dirfd, name, mode, 0));
}

errint_t sys_fchown(int fd, uid_t uid, gid_t gid)
{
	CALL(fchown, fchown(fd, uid, gid));
}

errint_t sys_fchownat(int dirfd, const char *name, uid_t uid, gid_t gid, int flags)
{
	CALL(fchownat, fchownat(dirfd, name, uid, gid, flags));
}

ssize_t sys_fgetxattr(int fd, const char *name, void *buf, size_t len)
{
	CALL(fgetxattr, fgetxattr(fd, name, buf, len));
}

errint_t sys_fsetxattr(int fd, const char *name, const void *buf, size_t len, int flags)
{
	CALL(fsetxattr, fsetxattr(fd, name, buf, len, flags));
}

errint_t sys_fremovexattr(int fd, const char *name)
{
	CALL(fremovexattr, fremovexattr(fd, name));
}

ssize_t sys_flistxattr(int fd, char *buf, size_t len)
{
	CALL(flistxattr, flistxattr(fd, buf, len));
}

/* ---- names ---- */

errint_t sys_mkdirat(int dirfd, const char *name, mode_t mode)
{
	CALL(mkdirat, mkdirat(dirfd, name, mode));
}

errint_t sys_mknodat(int dirfd, const char *name, mode_t mode, dev_t rdev)
{
	CALL(mknodat, mknodat(dirfd, name, mode, rdev));
}

errint_t sys_symlinkat(const char *target, int dirfd, const char *name)
{
	CALL(symlinkat, symlinkat(target, dirfd, name));
}

ssize_t sys_readlinkat(int dirfd, const char *name, char *buf, size_t len)
{
	CALL(readlinkat, readlinkat(dirfd, name, buf, len));
}

errint_t sys_unlinkat(int dirfd, const char *name, int flags)
{
	CALL(unlinkat, unlinkat(dirfd, name, flags));
}

errint_t sys_renameat2(int odir, const char *oname, int ndir, const char *nname,
                       unsigned flags)
{
	CALL(renameat2, renameat2(odir, oname, ndir, nname, flags));
}

errint_t sys_linkat(int odir, const char *oname, int ndir, const char *nname, int flags)
{
	CALL(linkat, linkat(odir, oname, ndir, nname, flags));
}

struct fd_path fd_path(int fd)
{
	struct fd_path p;

	(void)snprintf(p.s, sizeof(p.s), "/proc/self/fd/%d", fd);
	return p;
}

/* ---- directories ---- */

static int open_again(int dirfd)
{
	CALL(walk_dir, openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

/* DT_UNKNOWN where the entry went away meanwhile. */
static errint_t entry_type(int dirfd, const struct dirent *e, unsigned char *ret)
{
	struct stat st;

	*ret = e->d_type;
	if (e->d_type != DT_UNKNOWN)
		return 0;
	if (fstatat(dirfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	*ret = IFTODT(st.st_mode);
	return 0;
}

errint_t sys_walk_dir(int dirfd,
                      errint_t (*fn)(void *ctx, const char *name, unsigned char type),
                      void *ctx)
{
	int fd = open_again(dirfd);
	errint_t err = 0;
	DIR *d;

	if (fd < 0)
		return fd;
	d = fdopendir(fd);
	if (!d) {
		err = -errno;
		(void)close(fd);
		return err;
	}
	while (!err) {
		const struct dirent *e;
		unsigned char type;

		errno = 0;
		e = readdir(d);
		if (!e) {
			err = -errno;
			break;
		}
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		err = entry_type(fd, e, &type);
		if (!err && type != DT_UNKNOWN)
			err = fn(ctx, e->d_name, type);
	}
	(void)closedir(d);
	return err;
}
