/*
 * The mark in the runtime directory: see trust.h.
 *
 *   cellar-mark 1
 *   kernel UUID      boot in which it was written
 *   boot UUID        what records of now carry
 *   mounted N        which mount of the filesystem (below); 0: not known
 *   lost 0|1         a sync failed since
 *
 * Which mount: the kernel makes a directory for a mounted ext4, xfs, btrfs or f2fs below
 * /sys/fs and never gives the inode number of one to a later one. It is the filesystem's, not the
 * mount point's: mount namespaces and bind mounts do not matter. Other filesystems are taken for the
 * same as long as the kernel runs.
 *
 * Threads: p->trust is written at start, then only by trust_lost() under p->trust_lock.
 */
#include "pool/trust.h"

#include <inttypes.h>
#include <linux/btrfs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/clock.h"
#include "pool/internal.h"

static const char *const sys_dirs[] = {"ext4", "xfs", "f2fs"};

static uint64_t number_of(const char *path)
{
	struct stat st;

	return sys_fstatat(AT_FDCWD, path, &st, 0) == 0 ? (uint64_t)st.st_ino : 0;
}

static uint64_t mounted_btrfs(int fd)
{
	struct btrfs_ioctl_fs_info_args info = {0};
	cleanup_free char *path = NULL;
	struct uuid id;

	if (ioctl(fd, BTRFS_IOC_FS_INFO, &info) < 0)
		return 0;
	memcpy(id.b, info.fsid, sizeof(id.b));
	path = xasprintf("/sys/fs/btrfs/%s", uuid_format(&id).s);
	return number_of(path);
}

static uint64_t which_mount(int fd)
{
	char link[64], device[PATH_MAX + 1], *name;
	struct stat st;
	ssize_t n;

	if (sys_fstat(fd, &st) < 0)
		return 0;
	(void)snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(st.st_dev),
	               minor(st.st_dev));
	n = sys_readlinkat(AT_FDCWD, link, device, sizeof(device) - 1);
	if (n < 0)
		return mounted_btrfs(fd);
	device[n] = '\0';
	name = strrchr(device, '/');
	for (size_t i = 0; name && i < ARRAY_LEN(sys_dirs); i++) {
		cleanup_free char *path = xasprintf("/sys/fs/%s%s", sys_dirs[i], name);
		uint64_t number = number_of(path);

		if (number > 0)
			return number;
	}
	return 0;
}

/* False: no mark, or none of this boot of the kernel. */
static bool read_mark(const struct trust *t, struct trust *ret)
{
	char text[512], kernel[40], boot[40];
	struct uuid kernel_id;
	unsigned lost;
	ssize_t n;
	int fd = sys_openat(t->dirfd, t->name, O_RDONLY | O_NOFOLLOW, 0);

	if (fd < 0)
		return false;
	n = sys_pread(fd, text, sizeof(text) - 1, 0);
	(void)sys_close(fd);
	text[MAX_OF(n, 0)] = '\0';
	if (sscanf(text,
	           "cellar-mark 1\nkernel %39s\nboot %39s\nmounted %" SCNu64 "\nlost %u",
	           kernel, boot, &ret->mounted, &lost) != 4 ||
	    !uuid_parse(kernel, &kernel_id) || !uuid_parse(boot, &ret->boot))
		return false;
	ret->lost = lost != 0;
	return uuid_equal(&kernel_id, &t->kernel);
}

static void write_mark(const struct trust *t)
{
	cleanup_free char *text = xasprintf(
	    "cellar-mark 1\nkernel %s\nboot %s\nmounted %" PRIu64 "\nlost %d\n",
	    uuid_format(&t->kernel).s, uuid_format(&t->boot).s, t->mounted, t->lost);
	errint_t r = store_replace_text(t->dirfd, t->name, text);

	if (r < 0)
		log_warn("cannot write the mark \"%s\" in the runtime directory: %s",
		         t->name, strerror(-r));
}

void pool_trust_begin(struct pool *p, const char *dir)
{
	struct trust *t = &p->trust, before = {0};
	const char *why = NULL;

	t->kernel = t->boot = clock_boot_id();
	if (dir)
		t->dirfd = sys_openat(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY, 0);
	if (!dir || t->dirfd < 0)
		return;
	t->mounted = which_mount(p->scratch_fd);
	(void)snprintf(t->name, sizeof(t->name), "pool-%s.mark",
	               uuid_format(&p->place.uuid).s);
	if (read_mark(t, &before)) {
		t->boot = before.boot;
		if (before.lost)
			why = "a sync of it failed";
		else if (before.mounted && t->mounted && before.mounted != t->mounted)
			why = "its filesystem was mounted anew";
		if (why && !p->place.clean) {
			t->boot = uuid_random();
			log_warn("the pool \"%s\" is treated as after a reboot: %s",
			         p->place.path, why);
		}
	}
	p->boot = t->boot;
	write_mark(t);
}

void trust_lost(struct pool *p, errint_t error)
{
	struct trust *t = &p->trust;

	lock_take(&p->trust_lock);
	if (!t->lost) {
		t->lost = true;
		log_err("a sync of the pool \"%s\" failed: %s; what is dirty in it is "
		        "believed after the next start only as far as it was synced",
		        p->place.path, strerror(-error));
		if (t->dirfd >= 0)
			write_mark(t);
	}
	lock_drop(&p->trust_lock);
}

void trust_end(struct pool *p)
{
	if (p->trust.dirfd >= 0)
		(void)sys_unlinkat(p->trust.dirfd, p->trust.name, 0);
}
