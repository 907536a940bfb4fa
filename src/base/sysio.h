/*
 * The system calls through which cellar touches disks, as a table (SQLite's aSyscall
 * idea): each returns what the kernel's wrapper returns, but a failure is -errno instead
 * of -1 and errno, EINTR is retried where that is safe, and a developer build can make
 * the i-th call fail (fault.h). Layers from codec/ on use these and no bare calls for
 * anything that reads, writes, names or syncs files.
 *
 * full_*: loop until everything was transferred; a read that meets the end of the file
 * early is -ENODATA for full_pread().
 */
#ifndef CELLAR_BASE_SYSIO_H
#define CELLAR_BASE_SYSIO_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/fault.h"

int sys_openat(int dirfd, const char *path, int flags, mode_t mode); /* O_CLOEXEC added */
int sys_openat2(int dirfd, const char *path, int flags, mode_t mode, uint64_t resolve);
errint_t sys_close(int fd);
ssize_t sys_pread(int fd, void *buf, size_t len, off_t off);
ssize_t sys_pwrite(int fd, const void *buf, size_t len, off_t off);
ssize_t sys_pwritev(int fd, const struct iovec *iov, int n, off_t off);
errint_t full_pread(int fd, void *buf, size_t len, off_t off);
errint_t full_pwrite(int fd, const void *buf, size_t len, off_t off);
/* Copies len bytes: copy_file_range(2), else read and write. */
errint_t full_copy_range(int in, off_t in_off, int out, off_t out_off, size_t len);
errint_t sys_fsync(int fd);
/* Of a directory. XFS answers 0 to that after it was shut down, by an I/O error or by force, also where
 * what changed in the directory before is lost (fs/xfs/xfs_file.c, xfs_dir_fsync); fstat() then
 * tells. */
errint_t sys_fsync_dir(int fd);
errint_t sys_fdatasync(int fd);
errint_t sys_syncfs(int fd);
/* Starts write-out without waiting (sync_file_range(2)); errors do not matter. */
void sys_start_writeout(int fd, off_t off, off_t len);
/* out becomes a clone of in, sharing its blocks (FICLONE): one version of it, whoever writes. */
errint_t sys_clone_file(int in, int out);
errint_t sys_ftruncate(int fd, off_t size);
errint_t sys_fallocate(int fd, int mode, off_t off, off_t len);
errint_t sys_fstat(int fd, struct stat *st);
errint_t sys_fstatat(int dirfd, const char *name, struct stat *st, int flags);
errint_t sys_statx(int dirfd, const char *name, int flags, unsigned mask,
                   struct statx *stx);
errint_t sys_fstatfs(int fd, struct statfs *st);
errint_t sys_mkdirat(int dirfd, const char *name, mode_t mode);
errint_t sys_mknodat(int dirfd, const char *name, mode_t mode, dev_t rdev);
errint_t sys_symlinkat(const char *target, int dirfd, const char *name);
ssize_t sys_readlinkat(int dirfd, const char *name, char *buf, size_t len);
errint_t sys_unlinkat(int dirfd, const char *name, int flags);
errint_t sys_renameat2(int odir, const char *oname, int ndir, const char *nname,
                       unsigned flags);
errint_t sys_linkat(int odir, const char *oname, int ndir, const char *nname, int flags);
errint_t sys_utimensat(int dirfd, const char *name, const struct timespec ts[2], int flags);
errint_t sys_futimens(int fd, const struct timespec ts[2]);
errint_t sys_fchmod(int fd, mode_t mode);
errint_t sys_fchmodat(int dirfd, const char *name, mode_t mode); /* follows links */
errint_t sys_fchown(int fd, uid_t uid, gid_t gid);
errint_t sys_fchownat(int dirfd, const char *name, uid_t uid, gid_t gid, int flags);
ssize_t sys_fgetxattr(int fd, const char *name, void *buf, size_t len);
errint_t sys_fsetxattr(int fd, const char *name, const void *buf, size_t len, int flags);
errint_t sys_fremovexattr(int fd, const char *name);
ssize_t sys_flistxattr(int fd, char *buf, size_t len);

/* A path that names an O_PATH (or any) descriptor: "/proc/self/fd/N", for calls that
 * have no *at form (chmod, setxattr on O_PATH descriptors). */
struct fd_path {
	char s[32];
};
struct fd_path fd_path(int fd);

/* Entries of a directory. fn gets each name but "." and ".." with its d_type (never
 * DT_UNKNOWN: asked for where the filesystem does not say); non-zero from fn stops the
 * walk and is returned. dirfd keeps its position: the walk works on a fresh description. */
errint_t sys_walk_dir(int dirfd,
                      errint_t (*fn)(void *ctx, const char *name, unsigned char type),
                      void *ctx);

#endif
