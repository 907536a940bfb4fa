/*
 * A directory shown through FUSE, every operation as late as a file says: the slow or stuck
 * store under a cellar.
 *
 *   slowfs CONTROL SOURCE MOUNTPOINT
 *
 * CONTROL holds a number of milliseconds, 0 for none. It is read again all the time: an
 * operation that waits goes on as soon as less is asked for, so that no test need wait out
 * a long delay. Stays in the foreground.
 */
#define FUSE_USE_VERSION 31
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define PAUSE_MS 5

static int source_fd, control_fd;

static long wanted_ms(void)
{
	char text[32];
	ssize_t n = pread(control_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return strtol(text, NULL, 10);
}

static void delay(void)
{
	const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000L};

	for (long waited = 0; waited < wanted_ms(); waited += PAUSE_MS)
		(void)nanosleep(&pause, NULL);
}

/* Delays, and makes the path relative to the source. */
static const char *at(const char *path)
{
	delay();
	path += strspn(path, "/");
	return *path ? path : ".";
}

static int result(long r)
{
	return r < 0 ? -errno : (int)r;
}

/* For calls that know no directory descriptor. */
static const char *full(char *buf, size_t size, const char *path)
{
	(void)snprintf(buf, size, "/proc/self/fd/%d/%s", source_fd, at(path));
	return buf;
}
#define FULL(path) full((char[4200]){0}, 4200, path)

static void *slow_init(struct fuse_conn_info *c, struct fuse_config *cfg)
{
	(void)c;
	cfg->use_ino = 1;
	cfg->hard_remove = 1;
	cfg->entry_timeout = cfg->attr_timeout = cfg->negative_timeout = 0;
	return NULL;
}

static int slow_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	if (fi) {
		delay();
		return result(fstat((int)fi->fh, st));
	}
	return result(fstatat(source_fd, at(path), st, AT_SYMLINK_NOFOLLOW));
}

static int slow_readlink(const char *path, char *buf, size_t size)
{
	ssize_t n = readlinkat(source_fd, at(path), buf, size - 1);

	if (n >= 0)
		buf[n] = '\0';
	return n < 0 ? -errno : 0;
}

static int slow_mknod(const char *path, mode_t mode, dev_t dev)
{
	return result(mknodat(source_fd, at(path), mode, dev));
}

static int slow_mkdir(const char *path, mode_t mode)
{
	return result(mkdirat(source_fd, at(path), mode));
}

static int slow_unlink(const char *path)
{
	return result(unlinkat(source_fd, at(path), 0));
}

static int slow_rmdir(const char *path)
{
	return result(unlinkat(source_fd, at(path), AT_REMOVEDIR));
}

static int slow_symlink(const char *target, const char *path)
{
	return result(symlinkat(target, source_fd, at(path)));
}

static int slow_rename(const char *from, const char *to, unsigned flags)
{
	return result(
	    renameat2(source_fd, at(from), source_fd, to + strspn(to, "/"), flags));
}

static int slow_link(const char *from, const char *to)
{
	return result(linkat(source_fd, at(from), source_fd, to + strspn(to, "/"), 0));
}

static int slow_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	(void)fi;
	return result(fchmodat(source_fd, at(path), mode, 0));
}

static int slow_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *fi)
{
	(void)fi;
	return result(fchownat(source_fd, at(path), uid, gid, AT_SYMLINK_NOFOLLOW));
}

static int slow_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
	if (fi) {
		delay();
		return result(ftruncate((int)fi->fh, size));
	}
	return result(truncate(FULL(path), size));
}

static int slow_utimens(const char *path, const struct timespec ts[2],
                        struct fuse_file_info *fi)
{
	(void)fi;
	return result(utimensat(source_fd, at(path), ts, AT_SYMLINK_NOFOLLOW));
}

static int slow_open(const char *path, struct fuse_file_info *fi)
{
	int fd = openat(source_fd, at(path), fi->flags & ~O_NOFOLLOW);

	fi->fh = (uint64_t)fd;
	return fd < 0 ? -errno : 0;
}

static int slow_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	int fd = openat(source_fd, at(path), fi->flags | O_CREAT, mode);

	fi->fh = (uint64_t)fd;
	return fd < 0 ? -errno : 0;
}

static int slow_read(const char *path, char *buf, size_t size, off_t off,
                     struct fuse_file_info *fi)
{
	(void)path;
	delay();
	return result(pread((int)fi->fh, buf, size, off));
}

static int slow_write(const char *path, const char *buf, size_t size, off_t off,
                      struct fuse_file_info *fi)
{
	(void)path;
	delay();
	return result(pwrite((int)fi->fh, buf, size, off));
}

static int slow_statfs(const char *path, struct statvfs *st)
{
	(void)path;
	delay();
	return result(fstatvfs(source_fd, st));
}

static int slow_release(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	return result(close((int)fi->fh));
}

static int slow_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
	(void)path;
	(void)datasync;
	delay();
	return result(fsync((int)fi->fh));
}

static int slow_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off,
                        struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
	int fd = openat(source_fd, at(path), O_RDONLY | O_DIRECTORY);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	(void)off;
	(void)fi;
	(void)flags;
	if (!d)
		return -errno;
	while ((e = readdir(d))) {
		struct stat st = {.st_ino = e->d_ino, .st_mode = (mode_t)e->d_type << 12};

		(void)fill(buf, e->d_name, &st, 0, 0);
	}
	(void)closedir(d);
	return 0;
}

static int slow_setxattr(const char *path, const char *name, const char *value, size_t size,
                         int flags)
{
	return result(lsetxattr(FULL(path), name, value, size, flags));
}

static int slow_getxattr(const char *path, const char *name, char *value, size_t size)
{
	return result(lgetxattr(FULL(path), name, value, size));
}

static int slow_listxattr(const char *path, char *list, size_t size)
{
	return result(llistxattr(FULL(path), list, size));
}

static int slow_removexattr(const char *path, const char *name)
{
	return result(lremovexattr(FULL(path), name));
}

static int slow_fallocate(const char *path, int mode, off_t off, off_t len,
                          struct fuse_file_info *fi)
{
	(void)path;
	delay();
	return result(fallocate((int)fi->fh, mode, off, len));
}

static const struct fuse_operations operations = {
    .init = slow_init,
    .getattr = slow_getattr,
    .readlink = slow_readlink,
    .mknod = slow_mknod,
    .mkdir = slow_mkdir,
    .unlink = slow_unlink,
    .rmdir = slow_rmdir,
    .symlink = slow_symlink,
    .rename = slow_rename,
    .link = slow_link,
    .chmod = slow_chmod,
    .chown = slow_chown,
    .truncate = slow_truncate,
    .utimens = slow_utimens,
    .open = slow_open,
    .create = slow_create,
    .read = slow_read,
    .write = slow_write,
    .statfs = slow_statfs,
    .release = slow_release,
    .fsync = slow_fsync,
    .readdir = slow_readdir,
    .setxattr = slow_setxattr,
    .getxattr = slow_getxattr,
    .listxattr = slow_listxattr,
    .removexattr = slow_removexattr,
    .fallocate = slow_fallocate,
};

int main(int argc, char **argv)
{
	/* many threads: an operation that waits must hold up no other */
	char foreground[] = "-f", option[] = "-ofsname=slowfs,default_permissions";
	char *args[] = {argv[0], foreground, option, argc == 4 ? argv[3] : NULL, NULL};

	if (argc != 4) {
		(void)fprintf(stderr, "usage: slowfs CONTROL SOURCE MOUNTPOINT\n");
		return 2;
	}
	control_fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	source_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (control_fd < 0 || source_fd < 0) {
		perror("slowfs");
		return 1;
	}
	(void)umask(0);
	return fuse_main(4, args, &operations, NULL);
}
