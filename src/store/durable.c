/*
 * See durable.h.
 *
 * Threads: any; no state.
 */
#include "store/durable.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/breaks.h"
#include "base/counters.h"
#include "base/sysio.h"

/* Whether the filesystem's fsync() is not to be trusted, see durable.h. */
static bool by_commit(int fd)
{
	struct statfs sfs;

	if (is_broken(BREAK_BTRFS_COMMIT))
		return false;
	return sys_fstatfs(fd, &sfs) == 0 && sfs.f_type == BTRFS_SUPER_MAGIC;
}

errint_t store_sync_file(int fd)
{
	count_one(COUNTER_STORE_SYNCS);
	return by_commit(fd) ? sys_syncfs(fd) : sys_fsync(fd);
}

/* syncfs needs a descriptor that was opened for reading or writing: the nearest directory
 * above that can be, on the same filesystem. The store's root always can. */
static errint_t sync_filesystem(int dirfd)
{
	cleanup_fd int at = sys_openat(dirfd, "..", O_PATH | O_DIRECTORY, 0);
	struct stat dir, below, st;
	errint_t err = at < 0 ? at : sys_fstat(dirfd, &dir);

	if (err)
		return err;
	below = dir;
	for (;;) {
		int fd, up;

		err = sys_fstat(at, &st);
		if (err)
			return err;
		if (st.st_dev != dir.st_dev || st.st_ino == below.st_ino)
			return -EACCES; /* the top, and none was readable */
		fd = sys_openat(at, ".", O_RDONLY | O_DIRECTORY, 0);
		if (fd >= 0) {
			err = sys_syncfs(fd);
			(void)sys_close(fd);
			return err;
		}
		up = sys_openat(at, "..", O_PATH | O_DIRECTORY, 0);
		if (up < 0)
			return up;
		(void)sys_close(at);
		at = up;
		below = st;
	}
}

errint_t store_sync_dir(int dirfd)
{
	int flags = fcntl(dirfd, F_GETFL);
	cleanup_fd int reopened = -1;
	errint_t err;

	if (flags < 0)
		return -errno;
	count_one(COUNTER_STORE_SYNCS);
	if (flags & O_PATH) {
		reopened = sys_openat(dirfd, ".", O_RDONLY | O_DIRECTORY, 0);
		if (reopened == -EACCES)
			return sync_filesystem(dirfd); /* a directory of mode 0300 */
		if (reopened < 0)
			return reopened;
		dirfd = reopened;
	}
	err = by_commit(dirfd) ? sys_syncfs(dirfd) : sys_fsync_dir(dirfd);
	/* Some network filesystems have no fsync for directories. */
	return err == -EINVAL ? sys_syncfs(dirfd) : err;
}
