/* base/sysio.c: each wrapper's result, the loops around them, directories, faults; and
 * base/steps.c, the other way to stop a program at a chosen place. */
#include "harness.h"

#include <linux/openat2.h>
#include <pthread.h>
#include <sys/xattr.h>

#include "base/steps.h"
#include "base/sysio.h"

static int open_new(struct harness *h, const char *name)
{
	int fd = sys_openat(h->dirfd, name, O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	return fd;
}

/* ---- descriptors ---- */

static void test_open_and_close(void **state)
{
	struct harness *h = *state;
	struct stat st;
	int fd;

	assert_int_equal(sys_openat(h->dirfd, "missing", O_RDONLY, 0), -ENOENT);
	fd = sys_openat(h->dirfd, "f", O_RDWR | O_CREAT | O_EXCL, 0640);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 0137, 0);
	assert_int_equal(sys_openat(h->dirfd, "f", O_RDWR | O_CREAT | O_EXCL, 0600),
	                 -EEXIST);
	assert_int_equal(sys_close(fd), 0);
	assert_int_equal(sys_close(fd), -EBADF);
}

static void test_open_beneath(void **state)
{
	struct harness *h = *state;
	const uint64_t beneath =
	    RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
	int fd;

	assert_int_equal(sys_mkdirat(h->dirfd, "d", 0700), 0);
	assert_int_equal(sys_symlinkat("d", h->dirfd, "l"), 0);
	fd = sys_openat2(h->dirfd, "d/f", O_RDWR | O_CREAT, 0600, beneath);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(sys_close(fd), 0);
	/* A mode without O_CREAT must not be an error (the kernel refuses it). */
	fd = sys_openat2(h->dirfd, "d/f", O_RDONLY, 0600, beneath);
	assert_true(fd >= 0);
	assert_int_equal(sys_close(fd), 0);
	fd = sys_openat2(h->dirfd, "d", O_PATH | O_DIRECTORY, 0, beneath);
	assert_true(fd >= 0);
	assert_int_equal(sys_close(fd), 0);

	assert_int_equal(sys_openat2(h->dirfd, "..", O_RDONLY, 0, beneath), -EXDEV);
	assert_int_equal(sys_openat2(h->dirfd, "/etc", O_RDONLY, 0, beneath), -EXDEV);
	assert_int_equal(sys_openat2(h->dirfd, "l/f", O_RDONLY, 0, beneath), -ELOOP);
	assert_int_equal(sys_openat2(h->dirfd, "d/g", O_RDONLY, 0, beneath), -ENOENT);
}

/* ---- bytes ---- */

static void test_read_and_write(void **state)
{
	struct harness *h = *state;
	int fd = open_new(h, "f"), only_read;
	struct iovec iov[2] = {{(char[]){"ab"}, 2}, {(char[]){"cde"}, 3}};
	char buf[16] = "";

	assert_int_equal(sys_pwrite(fd, "hello", 5, 2), 5);
	assert_int_equal(sys_pread(fd, buf, sizeof(buf), 0), 7);
	assert_memory_equal(buf, "\0\0hello", 7);
	assert_int_equal(sys_pread(fd, buf, 4, 7), 0);
	assert_int_equal(sys_pwritev(fd, iov, 2, 1), 5);
	assert_int_equal(full_pread(fd, buf, 7, 0), 0);
	assert_memory_equal(buf, "\0abcdeo", 7);
	assert_int_equal(full_pread(fd, buf, 0, 100), 0);
	assert_int_equal(full_pread(fd, buf, 8, 0), -ENODATA); /* one byte short */
	assert_int_equal(full_pread(fd, buf, 1, 7), -ENODATA);

	only_read = sys_openat(h->dirfd, "f", O_RDONLY, 0);
	assert_int_equal(sys_pwrite(only_read, "x", 1, 0), -EBADF);
	assert_int_equal(full_pwrite(only_read, "x", 1, 0), -EBADF);
	assert_int_equal(sys_pwritev(only_read, iov, 2, 0), -EBADF);
	assert_int_equal(sys_pread(-1, buf, 1, 0), -EBADF);
	assert_int_equal(sys_close(only_read), 0);
	assert_int_equal(sys_close(fd), 0);
}

static void test_copy_range(void **state)
{
	struct harness *h = *state;
	const size_t len = (1 << 20) + 77;
	unsigned char *data = malloc(len), *back = malloc(len);
	int in = open_new(h, "in"), out = open_new(h, "out"), only_read;

	assert_non_null(data);
	assert_non_null(back);
	harness_fill(data, len, 1);
	assert_int_equal(full_pwrite(in, data, len, 0), 0);
	assert_int_equal(full_copy_range(in, 5, out, 9, len - 5), 0);
	assert_int_equal(full_pread(out, back, len - 5, 9), 0);
	assert_memory_equal(back, data + 5, len - 5);
	assert_int_equal(lseek(in, 0, SEEK_CUR), 0); /* offsets are left alone */
	assert_int_equal(lseek(out, 0, SEEK_CUR), 0);

	/* Within one file, in ranges that overlap: copy_file_range(2) refuses that. */
	assert_int_equal(full_copy_range(in, 0, in, 10, 5), 0);
	assert_int_equal(full_pread(in, back, 5, 10), 0);
	assert_memory_equal(back, data, 5);

	assert_int_equal(full_copy_range(in, 0, out, 0, 0), 0);
	assert_int_equal(full_copy_range(in, (off_t)len - 10, out, 0, 11), -ENODATA);
	only_read = sys_openat(h->dirfd, "out", O_RDONLY, 0);
	assert_int_equal(full_copy_range(in, 0, only_read, 0, 10), -EBADF);
	assert_int_equal(sys_close(only_read), 0);
	assert_int_equal(sys_close(in), 0);
	assert_int_equal(sys_close(out), 0);
	free(data);
	free(back);
}

/* /proc files say that they are empty, and copy_file_range(2) copies nothing from them. */
static void test_copy_from_proc(void **state)
{
	struct harness *h = *state;
	int in = sys_openat(AT_FDCWD, "/proc/sys/kernel/random/boot_id", O_RDONLY, 0);
	int out = open_new(h, "out");
	char *text, *boot_id;

	assert_int_equal(full_copy_range(in, 0, out, 0, 36), 0);
	text = harness_read(h->dirfd, "out", NULL);
	boot_id = harness_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", NULL);
	assert_memory_equal(text, boot_id, 36);
	assert_int_equal(strlen(text), 36);
	free(text);
	free(boot_id);
	assert_int_equal(sys_close(in), 0);
	assert_int_equal(sys_close(out), 0);
}

static void test_sizes_and_syncs(void **state)
{
	struct harness *h = *state;
	int fd = open_new(h, "f");
	struct stat st;
	struct statfs sfs;

	assert_int_equal(sys_ftruncate(fd, 12345), 0);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 12345);
	assert_int_equal(sys_ftruncate(fd, -1), -EINVAL);
	assert_int_equal(sys_fallocate(fd, 0, 0, 20000), 0);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 20000);
	assert_int_equal(sys_fallocate(fd, 0, 0, 0), -EINVAL);
	sys_start_writeout(fd, 0, 0);
	sys_start_writeout(-1, 0, 0); /* errors do not matter */
	assert_int_equal(sys_fsync(fd), 0);
	assert_int_equal(sys_fdatasync(fd), 0);
	assert_int_equal(sys_syncfs(fd), 0);
	assert_int_equal(sys_fstatfs(fd, &sfs), 0);
	assert_true(sfs.f_bsize > 0);
	assert_int_equal(sys_close(fd), 0);
	assert_int_equal(sys_fsync(fd), -EBADF);
	assert_int_equal(sys_fdatasync(fd), -EBADF);
	assert_int_equal(sys_syncfs(fd), -EBADF);
	assert_int_equal(sys_fstatfs(fd, &sfs), -EBADF);
}

/* ---- names and attributes ---- */

static void test_names(void **state)
{
	struct harness *h = *state;
	struct stat st;
	char target[16] = "";

	harness_write(h->dirfd, "a", "a", 1);
	harness_write(h->dirfd, "b", "bb", 2);
	assert_int_equal(sys_renameat2(h->dirfd, "a", h->dirfd, "b", RENAME_NOREPLACE),
	                 -EEXIST);
	assert_int_equal(sys_renameat2(h->dirfd, "a", h->dirfd, "b", RENAME_EXCHANGE), 0);
	assert_int_equal(sys_fstatat(h->dirfd, "a", &st, 0), 0);
	assert_int_equal(st.st_size, 2);
	assert_int_equal(sys_renameat2(h->dirfd, "a", h->dirfd, "b", 0), 0);
	assert_int_equal(sys_fstatat(h->dirfd, "a", &st, 0), -ENOENT);
	assert_int_equal(sys_linkat(h->dirfd, "b", h->dirfd, "c", 0), 0);
	assert_int_equal(sys_linkat(h->dirfd, "b", h->dirfd, "c", 0), -EEXIST);
	assert_int_equal(sys_fstatat(h->dirfd, "c", &st, 0), 0);
	assert_int_equal(st.st_nlink, 2);
	assert_int_equal(sys_unlinkat(h->dirfd, "c", 0), 0);
	assert_int_equal(sys_unlinkat(h->dirfd, "c", 0), -ENOENT);

	assert_int_equal(sys_mkdirat(h->dirfd, "d", 0700), 0);
	assert_int_equal(sys_mkdirat(h->dirfd, "d", 0700), -EEXIST);
	assert_int_equal(sys_unlinkat(h->dirfd, "d", 0), -EISDIR);
	assert_int_equal(sys_unlinkat(h->dirfd, "d", AT_REMOVEDIR), 0);
	assert_int_equal(sys_mknodat(h->dirfd, "fifo", S_IFIFO | 0600, 0), 0);
	assert_int_equal(sys_fstatat(h->dirfd, "fifo", &st, 0), 0);
	assert_true(S_ISFIFO(st.st_mode));
	assert_int_equal(sys_mknodat(h->dirfd, "fifo", S_IFIFO | 0600, 0), -EEXIST);

	assert_int_equal(sys_symlinkat("nowhere", h->dirfd, "l"), 0);
	assert_int_equal(sys_symlinkat("nowhere", h->dirfd, "l"), -EEXIST);
	assert_int_equal(sys_readlinkat(h->dirfd, "l", target, sizeof(target)), 7);
	assert_string_equal(target, "nowhere");
	assert_int_equal(sys_readlinkat(h->dirfd, "b", target, sizeof(target)), -EINVAL);
	assert_int_equal(sys_fstatat(h->dirfd, "l", &st, 0), -ENOENT);
	assert_int_equal(sys_fstatat(h->dirfd, "l", &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_true(S_ISLNK(st.st_mode));
}

static void test_attributes(void **state)
{
	struct harness *h = *state;
	const struct timespec ts[2] = {{1000, 5}, {2000, 123456789}};
	int fd = open_new(h, "f"), path_fd;
	struct fd_path name;
	struct statx stx;
	struct stat st;

	assert_int_equal(sys_futimens(fd, ts), 0);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_atim.tv_sec, 1000);
	assert_int_equal(st.st_mtim.tv_nsec, 123456789);
	assert_int_equal(
	    sys_utimensat(h->dirfd, "f", (struct timespec[]){{1, 0}, {2, 0}}, 0), 0);
	assert_int_equal(sys_statx(h->dirfd, "f", 0, STATX_BASIC_STATS, &stx), 0);
	assert_int_equal(stx.stx_mtime.tv_sec, 2);
	assert_int_equal(sys_statx(h->dirfd, "g", 0, STATX_BASIC_STATS, &stx), -ENOENT);
	assert_int_equal(sys_utimensat(h->dirfd, "g", ts, 0), -ENOENT);
	assert_int_equal(sys_fchmod(fd, 0751), 0);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0751);
	assert_int_equal(sys_fchown(fd, geteuid(), getegid()), 0);
	assert_int_equal(sys_fchownat(h->dirfd, "f", (uid_t)-1, (gid_t)-1, 0), 0);
	assert_int_equal(sys_fchownat(h->dirfd, "g", (uid_t)-1, (gid_t)-1, 0), -ENOENT);

	/* What O_PATH descriptors cannot do themselves goes through their name. */
	path_fd = sys_openat(h->dirfd, "f", O_PATH, 0);
	assert_true(path_fd >= 0);
	assert_int_equal(sys_fchmod(path_fd, 0600), -EBADF);
	name = fd_path(path_fd);
	assert_int_equal(chmod(name.s, 0600), 0);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_string_equal(fd_path(INT32_MAX).s, "/proc/self/fd/2147483647");
	assert_int_equal(sys_close(path_fd), 0);
	assert_int_equal(sys_close(fd), 0);
}

static void test_xattrs(void **state)
{
	struct harness *h = *state;
	int fd = open_new(h, "f");
	char buf[64];
	errint_t err = sys_fsetxattr(fd, "user.cellar.test", "12345", 5, 0);

	if (err == -EOPNOTSUPP) {
		print_message("no user xattrs in %s\n", h->path);
		(void)sys_close(fd);
		skip();
	}
	assert_int_equal(err, 0);
	assert_int_equal(sys_fsetxattr(fd, "user.cellar.test", "1", 1, XATTR_CREATE),
	                 -EEXIST);
	assert_int_equal(sys_fgetxattr(fd, "user.cellar.test", buf, sizeof(buf)), 5);
	assert_memory_equal(buf, "12345", 5);
	assert_int_equal(sys_fgetxattr(fd, "user.cellar.test", buf, 4), -ERANGE);
	assert_int_equal(sys_fgetxattr(fd, "user.cellar.test", NULL, 0), 5);
	assert_true(sys_flistxattr(fd, buf, sizeof(buf)) >= 17);
	assert_int_equal(sys_flistxattr(fd, buf, 3), -ERANGE);
	assert_int_equal(sys_fremovexattr(fd, "user.cellar.test"), 0);
	assert_int_equal(sys_fremovexattr(fd, "user.cellar.test"), -ENODATA);
	assert_int_equal(sys_fgetxattr(fd, "user.cellar.test", buf, sizeof(buf)), -ENODATA);
	assert_int_equal(sys_close(fd), 0);
}

/* ---- directories ---- */

struct seen {
	char text[256];
	unsigned count;
	errint_t stop;
};

static errint_t see(void *ctx, const char *name, unsigned char type)
{
	struct seen *s = ctx;
	size_t len = strlen(s->text);

	s->count++;
	if (strlen(name) == 1) /* the few with types; not the many */
		(void)snprintf(s->text + len, sizeof(s->text) - len, "%s%d ", name, type);
	return s->stop;
}

static void expect_seen(const struct seen *s, const char *name, int type)
{
	char word[32];

	(void)snprintf(word, sizeof(word), "%s%d ", name, type);
	if (!strstr(s->text, word))
		fail_msg("no %s in %s", word, s->text);
}

static void make_entries(struct harness *h)
{
	harness_write(h->dirfd, "f", "", 0);
	assert_int_equal(sys_mkdirat(h->dirfd, "d", 0700), 0);
	assert_int_equal(sys_symlinkat("d", h->dirfd, "l"), 0);
	assert_int_equal(sys_mknodat(h->dirfd, "p", S_IFIFO | 0600, 0), 0);
	for (int i = 0; i < 500; i++) {
		char name[32];

		(void)snprintf(name, sizeof(name), "many-%d", i);
		harness_write(h->dirfd, name, "", 0);
	}
}

static void test_walk(void **state)
{
	struct harness *h = *state;
	int path_fd = sys_openat(AT_FDCWD, h->path, O_PATH | O_DIRECTORY, 0);
	const int from[] = {h->dirfd, h->dirfd,
	                    path_fd}; /* again, and without a position */

	make_entries(h);
	for (size_t i = 0; i < ARRAY_LEN(from); i++) {
		struct seen s = {.count = 0};

		assert_int_equal(sys_walk_dir(from[i], see, &s), 0);
		assert_int_equal(s.count, 504);
		expect_seen(&s, "f", DT_REG);
		expect_seen(&s, "d", DT_DIR);
		expect_seen(&s, "l", DT_LNK);
		expect_seen(&s, "p", DT_FIFO);
	}
	assert_int_equal(lseek(h->dirfd, 0, SEEK_CUR), 0);
	assert_int_equal(sys_close(path_fd), 0);
}

static errint_t remove_it(void *ctx, const char *name, unsigned char type)
{
	struct harness *h = ctx;

	return sys_unlinkat(h->dirfd, name, type == DT_DIR ? AT_REMOVEDIR : 0);
}

static void test_walk_ends(void **state)
{
	struct harness *h = *state;
	struct seen s = {.stop = -ECANCELED};
	int fd;

	make_entries(h);
	assert_int_equal(sys_walk_dir(h->dirfd, see, &s), -ECANCELED);
	assert_int_equal(s.count, 1);
	s = (struct seen){.stop = 7};
	assert_int_equal(sys_walk_dir(h->dirfd, see, &s), 7);
	assert_int_equal(s.count, 1);

	assert_int_equal(sys_walk_dir(h->dirfd, remove_it, h), 0);
	s = (struct seen){.count = 0};
	assert_int_equal(sys_walk_dir(h->dirfd, see, &s), 0);
	assert_int_equal(s.count, 0);

	fd = open_new(h, "f");
	assert_int_equal(sys_walk_dir(fd, see, &s), -ENOTDIR);
	assert_int_equal(sys_close(fd), 0);
	assert_int_equal(sys_walk_dir(fd, see, &s), -EBADF);
	assert_int_equal(s.count, 0);
}

/* ---- faults ---- */

#ifdef CELLAR_DEVELOPER

static int disarm(void **state)
{
	(void)fault_set(NULL);
	return harness_teardown(state);
}

static void test_fault_specs(void **state)
{
	static const char *const wrong[] = {
	    "fsync",         "fsync:1",           "fsync:0:EIO",
	    "fsync:-1:EIO",  "fsync:x:EIO",       "fsync:1:EWHAT",
	    "fsync:1:5",     "sync:1:EIO",        "sys_fsync:1:EIO",
	    "fsync:1:short", "fsync:1:EIO:never", "fsync:1:EIO:always:",
	    ":1:EIO",        "fsync::EIO",        "fsync:1:",
	    "fsync:1x:EIO",  "full_pread:1:EIO",  "fsync:99999999999999999999:EIO",
	    "any:1:eio"};

	assert_true(fault_set("fsync:1:EIO"));
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		if (fault_set(wrong[i]))
			fail_msg("%s accepted", wrong[i]);
	}
	assert_int_equal(sys_fsync(-1), -EIO); /* what was armed before still is */
	assert_true(fault_fired());
	assert_true(fault_set("any:17:ENOSPC:always"));
	assert_false(fault_fired());
	assert_true(fault_set("pwritev:2:short"));
	assert_true(fault_set(""));
	assert_true(fault_set(NULL));
}

static void test_fault_counts(void **state)
{
	struct harness *h = *state;
	int fd = open_new(h, "f");

	assert_true(fault_set("fsync:3:EIO"));
	assert_int_equal(sys_fsync(fd), 0);
	assert_int_equal(sys_fdatasync(fd), 0); /* not counted */
	assert_int_equal(sys_fsync(fd), 0);
	assert_false(fault_fired());
	assert_int_equal(sys_fsync(fd), -EIO);
	assert_true(fault_fired());
	assert_int_equal(sys_fsync(fd), 0);
	assert_true(fault_fired());

	assert_true(fault_set("fsync:2:ENOSPC:always"));
	assert_int_equal(sys_fsync(fd), 0);
	assert_int_equal(sys_fsync(fd), -ENOSPC);
	assert_int_equal(sys_fsync(fd), -ENOSPC);

	assert_true(fault_set("any:2:EROFS"));
	assert_int_equal(sys_fsync(fd), 0);
	assert_int_equal(sys_ftruncate(fd, 1), -EROFS);
	assert_int_equal(sys_ftruncate(fd, 1), 0);

	assert_true(fault_set(NULL));
	assert_int_equal(sys_fsync(fd), 0);
	assert_false(fault_fired());
	assert_int_equal(sys_close(fd), 0);
}

/* Every wrapper has a fault of its own name, and does nothing when that fires. */
static void test_every_call_fails(void **state)
{
	struct harness *h = *state;
	int fd = open_new(h, "f"), d = h->dirfd, out = open_new(h, "out");
	struct timespec ts[2] = {{1, 0}, {1, 0}};
	struct iovec iov = {ts, 1};
	struct seen seen = {.count = 0};
	struct statfs sfs;
	struct statx stx;
	struct stat st;
	char buf[8];

	harness_write(d, "f", "x", 1);
#define FAILS(name, expr)                                                                  \
	do {                                                                               \
		assert_true(fault_set(#name ":1:EUCLEAN"));                                \
		assert_int_equal((expr), -EUCLEAN);                                        \
		assert_true(fault_fired());                                                \
	} while (0)
	FAILS(openat, sys_openat(d, "new", O_RDWR | O_CREAT, 0600));
	FAILS(openat2, sys_openat2(d, "new", O_RDWR | O_CREAT, 0600, 0));
	FAILS(pread, sys_pread(fd, buf, 1, 0));
	FAILS(pread, full_pread(fd, buf, 1, 0));
	FAILS(pwrite, sys_pwrite(fd, buf, 8, 0));
	FAILS(pwrite, full_pwrite(fd, buf, 8, 0));
	FAILS(pwritev, sys_pwritev(fd, &iov, 1, 8));
	FAILS(full_copy_range, full_copy_range(fd, 0, out, 0, 1));
	FAILS(fsync, sys_fsync(fd));
	FAILS(fdatasync, sys_fdatasync(fd));
	FAILS(syncfs, sys_syncfs(fd));
	FAILS(clone_file, sys_clone_file(fd, out));
	FAILS(ftruncate, sys_ftruncate(fd, 8));
	FAILS(fallocate, sys_fallocate(fd, 0, 0, 8));
	FAILS(fstat, sys_fstat(fd, &st));
	FAILS(fstatat, sys_fstatat(d, "f", &st, 0));
	FAILS(statx, sys_statx(d, "f", 0, STATX_SIZE, &stx));
	FAILS(fstatfs, sys_fstatfs(fd, &sfs));
	FAILS(mkdirat, sys_mkdirat(d, "new", 0700));
	FAILS(mknodat, sys_mknodat(d, "new", S_IFIFO, 0));
	FAILS(symlinkat, sys_symlinkat("x", d, "new"));
	FAILS(readlinkat, sys_readlinkat(d, "l", buf, sizeof(buf)));
	FAILS(unlinkat, sys_unlinkat(d, "f", 0));
	FAILS(renameat2, sys_renameat2(d, "f", d, "new", 0));
	FAILS(linkat, sys_linkat(d, "f", d, "new", 0));
	FAILS(utimensat, sys_utimensat(d, "f", ts, 0));
	FAILS(futimens, sys_futimens(fd, ts));
	FAILS(fchmod, sys_fchmod(fd, 0));
	FAILS(fchown, sys_fchown(fd, 1, 1));
	FAILS(fchownat, sys_fchownat(d, "f", 1, 1, 0));
	FAILS(fgetxattr, sys_fgetxattr(fd, "user.x", buf, 1));
	FAILS(fsetxattr, sys_fsetxattr(fd, "user.x", buf, 1, 0));
	FAILS(fremovexattr, sys_fremovexattr(fd, "user.x"));
	FAILS(flistxattr, sys_flistxattr(fd, NULL, 0));
	FAILS(walk_dir, sys_walk_dir(d, see, &seen));
	/* A failed close has closed all the same. */
	FAILS(close, sys_close(out));
	assert_int_equal(fcntl(out, F_GETFD), -1);
#undef FAILS

	assert_true(fault_set(NULL));
	assert_int_equal(seen.count, 0);
	assert_int_equal(sys_walk_dir(d, see, &seen), 0);
	assert_int_equal(seen.count, 2); /* f and out: nothing was made */
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 1);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_not_equal(st.st_mtim.tv_sec, 1);
	assert_int_equal(sys_close(fd), 0);
}

static void test_short_transfers(void **state)
{
	struct harness *h = *state;
	int fd = open_new(h, "f");
	char data[1000], back[1000];
	struct iovec iov[2] = {{data, 400}, {data + 400, 600}};

	harness_fill(data, sizeof(data), 2);
	assert_true(fault_set("pwrite:1:short"));
	assert_int_equal(sys_pwrite(fd, data, 1000, 0), 500);
	assert_true(fault_set("pwrite:1:short"));
	assert_int_equal(sys_pwrite(fd, data, 1, 0),
	                 1); /* never 0: that is another matter */
	assert_true(fault_set("pwritev:1:short:always"));
	assert_int_equal(sys_pwritev(fd, iov, 2, 0), 400);
	assert_int_equal(sys_pwritev(fd, iov, 1, 0), 200);

	/* The loops carry on to the last byte. */
	assert_true(fault_set("any:1:short:always"));
	assert_int_equal(sys_fsync(fd), 0); /* nothing to shorten */
	assert_false(fault_fired());
	assert_int_equal(full_pwrite(fd, data, sizeof(data), 3), 0);
	assert_true(fault_fired());
	assert_int_equal(full_pread(fd, back, sizeof(back), 3), 0);
	assert_memory_equal(back, data, sizeof(data));
	assert_int_equal(full_pread(fd, back, sizeof(back), 4), -ENODATA);
	assert_true(fault_set("pread:1:short"));
	assert_int_equal(sys_pread(fd, back, 1000, 3), 500);
	assert_int_equal(sys_close(fd), 0);
}

static void test_copy_falls_back(void **state)
{
	static const char *const kinds[] = {"EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP"};
	const size_t len = (1 << 20) + 77; /* several buffers */
	struct harness *h = *state;
	unsigned char *data = malloc(len), *back = malloc(len);
	int in = open_new(h, "in"), out;

	assert_non_null(data);
	assert_non_null(back);
	harness_fill(data, len, 3);
	assert_int_equal(full_pwrite(in, data, len, 0), 0);
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		char spec[64];

		(void)snprintf(spec, sizeof(spec), "full_copy_range:1:%s", kinds[i]);
		assert_true(fault_set(spec));
		out = open_new(h, "out");
		assert_int_equal(full_copy_range(in, 1, out, 2, len - 1), 0);
		assert_true(fault_fired());
		assert_int_equal(full_pread(out, back, len - 1, 2), 0);
		assert_memory_equal(back, data + 1, len - 1);
		/* By hand, the end of the input is told too. */
		assert_true(fault_set(spec));
		assert_int_equal(full_copy_range(in, 1, out, 0, len), -ENODATA);
		assert_int_equal(sys_close(out), 0);
	}
	/* Other errors are errors, and those of the copy by hand come through. */
	out = open_new(h, "out");
	assert_true(fault_set("full_copy_range:1:ENOSPC"));
	assert_int_equal(full_copy_range(in, 0, out, 0, len), -ENOSPC);
	assert_true(fault_set("any:1:EXDEV"));
	assert_int_equal(full_copy_range(in, 0, out, 0, len), 0);
	(void)fault_set(NULL);
	assert_int_equal(sys_close(in), 0);
	assert_int_equal(sys_close(out), 0);
	free(data);
	free(back);
}

static void *sync_often(void *arg)
{
	long failed = 0;

	for (int i = 0; i < 500; i++)
		failed += sys_fstat(*(int *)arg, &(struct stat){.st_size = 0}) == -EIO;
	return (void *)failed;
}

/* The count is of the whole process, and exact. */
static void test_faults_of_threads(void **state)
{
	struct harness *h = *state;
	long failed = 0;
	pthread_t t[4];

	assert_true(fault_set("fstat:777:EIO"));
	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		assert_int_equal(pthread_create(&t[i], NULL, sync_often, &h->dirfd), 0);
	for (size_t i = 0; i < ARRAY_LEN(t); i++) {
		void *n;

		assert_int_equal(pthread_join(t[i], &n), 0);
		failed += (long)n;
	}
	assert_int_equal(failed, 1);
	assert_true(fault_fired());
}

static void init_faults(void *arg)
{
	(void)setenv("CELLAR_TEST_FAULT", arg, 1);
	fault_init();
	if (sys_fsync(-1) != -EBADF || sys_fsync(-1) != -EDQUOT || !fault_fired())
		_exit(1);
}

static void test_fault_environment(void **state)
{
	char *text;

	assert_int_equal(harness_child(init_faults, (char[]){"fsync:2:EDQUOT"}, &text), 0);
	free(text);
	/* A misspelt one must not pass for a test that met no fault. */
	assert_int_equal(
	    WEXITSTATUS(harness_child(init_faults, (char[]){"fsnyc:2:EIO"}, &text)), 2);
	assert_non_null(strstr(text, "fsnyc:2:EIO"));
	free(text);
}

/* ---- steps ---- */

struct steps_case {
	const char *spec; /* CELLAR_TEST_STEP */
	const char *file; /* CELLAR_TEST_STEP_FILE */
};

/* Passes "b", three times "a" (printing a digit behind each), "ab"; exits with 10 when it
 * gets to the end. */
static void walk_steps(void *arg)
{
	const struct steps_case *c = arg;

	if (c->file)
		(void)setenv("CELLAR_TEST_STEP_FILE", c->file, 1);
	if (c->spec)
		(void)setenv("CELLAR_TEST_STEP", c->spec, 1);
	steps_init();
	step("b");
	for (int i = 1; i <= 3; i++) {
		step("a");
		(void)fputc('0' + i, stderr);
	}
	step("ab");
	_exit(10);
}

static void expect_killed_after(const char *spec, const char *passed)
{
	char *text;
	int status = harness_child(walk_steps, &(struct steps_case){.spec = spec}, &text);

	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail_msg("%s: wait status 0x%x", spec, status);
	assert_string_equal(text, passed);
	free(text);
}

static void expect_end(const char *spec, int code)
{
	char *text;
	int status = harness_child(walk_steps, &(struct steps_case){.spec = spec}, &text);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
		fail_msg("%s: wait status 0x%x, %s", spec ? spec : "none", status, text);
	free(text);
}

static void test_steps(void **state)
{
	expect_killed_after("a", "");
	expect_killed_after("a=kill", "");
	expect_killed_after("a:2", "1");
	expect_killed_after("a:3=kill", "12");
	expect_killed_after("x,a:2,y", "1");
	expect_killed_after("a:1=sleep-1,a:2", "1");
	expect_killed_after("ab", "123");
	expect_end(NULL, 10);
	expect_end("", 10);
	expect_end("a:4", 10);
	expect_end("a:2=sleep-1", 10);
	/* What would stop nowhere is told at once. */
	expect_end("a:0", 2);
	expect_end("a:x", 2);
	expect_end("a=stop", 2);
	expect_end("a=sleep-", 2);
	expect_end("a=wait", 2); /* without CELLAR_TEST_STEP_FILE */
	expect_end(":1", 2);
	expect_end("a,,b", 2);
}

static void test_step_waits(void **state)
{
	struct harness *h = *state;
	char file[600];
	int status;
	pid_t pid;

	(void)snprintf(file, sizeof(file), "%s/arrived", h->path);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		walk_steps(&(struct steps_case){.spec = "a:2=wait", .file = file});
	while (access(file, F_OK) < 0) {
		if (waitpid(pid, &status, WNOHANG) != 0)
			fail_msg("went past the step: wait status 0x%x", status);
		(void)usleep(1000);
	}
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
	assert_int_equal(unlink(file), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 10);
}

#else

#define disarm harness_teardown

static void test_faults_and_steps(void **state)
{
	print_message("faults and steps need --enable-developer\n");
	skip();
}

#endif

int main(void)
{
#define IN_DIR(t) cmocka_unit_test_setup_teardown(t, harness_setup, disarm)
	const struct CMUnitTest tests[] = {
	    IN_DIR(test_open_and_close),
	    IN_DIR(test_open_beneath),
	    IN_DIR(test_read_and_write),
	    IN_DIR(test_copy_range),
	    IN_DIR(test_copy_from_proc),
	    IN_DIR(test_sizes_and_syncs),
	    IN_DIR(test_names),
	    IN_DIR(test_attributes),
	    IN_DIR(test_xattrs),
	    IN_DIR(test_walk),
	    IN_DIR(test_walk_ends),
#ifdef CELLAR_DEVELOPER
	    IN_DIR(test_fault_specs),
	    IN_DIR(test_fault_counts),
	    IN_DIR(test_every_call_fails),
	    IN_DIR(test_short_transfers),
	    IN_DIR(test_copy_falls_back),
	    IN_DIR(test_faults_of_threads),
	    IN_DIR(test_fault_environment),
	    IN_DIR(test_steps),
	    IN_DIR(test_step_waits),
#else
	    cmocka_unit_test(test_faults_and_steps),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
