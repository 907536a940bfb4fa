/*
 * Identity of store inodes: see ident.h for what goes into one and why.
 *
 * Cost: one name_to_handle_at(2). The filesystem's id, which is mixed in, is remembered by
 * each thread under the mount id that comes with every handle. A mount id is free for
 * another filesystem once nothing refers to the mount; a store holds its root open, so its
 * own cannot change meaning; ident_forget_filesystems() is called where a store is opened.
 *
 * Threads: any; the memory of filesystem ids is thread-local, its epoch atomic.
 */
#include "store/ident.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>

#include "base/sysio.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

#define FILESYSTEMS 4 /* a store, a pool, and two to spare */

struct filesystem {
	int mount_id;
	unsigned epoch;       /* 0: slot is free */
	bool handles_persist; /* file handles mean the same after a remount */
	uint64_t id;
};

static _Atomic unsigned current_epoch = 1;
static _Thread_local struct filesystem known[FILESYSTEMS];

/* What is hashed. No padding: every byte counts. */
struct material {
	uint64_t filesystem;
	uint32_t kind; /* 0: inode number and birth time; else 1 + handle type */
	uint32_t len;
	uint8_t bytes[MAX_HANDLE_SZ];
};

union handle {
	struct file_handle h;
	uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

bool stamp_equal(const struct stamp *a, const struct stamp *b)
{
	return ident_equal(&a->ident, &b->ident) && a->stored_size == b->stored_size &&
	       a->trailer_hash[0] == b->trailer_hash[0] &&
	       a->trailer_hash[1] == b->trailer_hash[1];
}

void ident_forget_filesystems(void)
{
	if (atomic_fetch_add(&current_epoch, 1) == UINT32_MAX)
		atomic_fetch_add(&current_epoch, 1); /* 0 marks free slots */
}

static struct ident hash_material(const struct material *m)
{
	XXH128_hash_t h = XXH3_128bits(m, offsetof(struct material, bytes) + m->len);
	struct ident id = {{h.low64, h.high64}};

	if (ident_is_none(&id))
		id.w[0] = 1;
	return id;
}

static errint_t get_handle(int dirfd, const char *name, union handle *ret, int *ret_mount)
{
	int err = fault(CALL_handle);

	if (err)
		return err;
	ret->h.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(dirfd, name, &ret->h, ret_mount, *name ? 0 : AT_EMPTY_PATH) <
	    0)
		return -errno;
	return 0;
}

static bool no_handles(errint_t err)
{
	return err == -EOPNOTSUPP || err == -EOVERFLOW || err == -ENOSYS;
}

static struct filesystem *find_known(int mount_id)
{
	struct filesystem *f = &known[(unsigned)mount_id % FILESYSTEMS];

	if (f->epoch == atomic_load_explicit(&current_epoch, memory_order_relaxed) &&
	    f->mount_id == mount_id)
		return f;
	return NULL;
}

static errint_t ask_filesystem(int fd, struct filesystem *ret)
{
	struct statfs sfs;
	struct stat st;
	uint32_t half[2];
	errint_t err = sys_fstatfs(fd, &sfs);

	if (!err)
		err = sys_fstat(fd, &st);
	if (err)
		return err;
	memcpy(half, &sfs.f_fsid, sizeof half);
	ret->id = half[0] | (uint64_t)half[1] << 32;
	/* xfs and some others pass the device number off as an id: it may be another one
	 * after a remount. */
	if (sfs.f_type == XFS_SUPER_MAGIC || ret->id == (uint64_t)st.st_dev)
		ret->id = 0;
	/* FUSE makes handles of node ids, which its daemon numbers anew each time. */
	ret->handles_persist = sfs.f_type != FUSE_SUPER_MAGIC;
	return 0;
}

static errint_t from_birth(int dirfd, const char *name, uint64_t filesystem,
                           struct ident *ret)
{
	struct {
		uint64_t ino;
		int64_t sec;
		uint64_t nsec;
	} b = {0};
	struct material m = {.filesystem = filesystem, .len = sizeof b};
	struct statx stx;
	errint_t err =
	    sys_statx(dirfd, name, AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH),
	              STATX_INO | STATX_BTIME, &stx);

	if (err)
		return err;
	b.ino = stx.stx_ino;
	/* Without a birth time the number alone has to do: there is nothing else that
	 * stays with an inode. The stamp still holds size and trailer. */
	if (stx.stx_mask & STATX_BTIME) {
		b.sec = stx.stx_btime.tv_sec;
		b.nsec = stx.stx_btime.tv_nsec;
	}
	memcpy(m.bytes, &b, sizeof b);
	*ret = hash_material(&m);
	return 0;
}

static struct ident from_handle(const union handle *h, uint64_t filesystem)
{
	struct material m = {.filesystem = filesystem,
	                     .kind = 1U + (uint32_t)h->h.handle_type,
	                     .len = h->h.handle_bytes};

	memcpy(m.bytes, h->room + offsetof(struct file_handle, f_handle), m.len);
	return hash_material(&m);
}

/* All of it from one descriptor (O_PATH will do), and the filesystem is remembered. */
static errint_t get_by_fd(int fd, struct ident *ret)
{
	union handle h;
	struct filesystem f = {0};
	int mount_id = -1;
	errint_t err = get_handle(fd, "", &h, &mount_id);
	errint_t err_fs = ask_filesystem(fd, &f);

	if (err_fs)
		return err_fs;
	if (no_handles(err))
		return from_birth(fd, "", f.id, ret);
	if (err)
		return err;
	f.mount_id = mount_id;
	f.epoch = atomic_load_explicit(&current_epoch, memory_order_relaxed);
	known[(unsigned)mount_id % FILESYSTEMS] = f;
	if (!f.handles_persist)
		return from_birth(fd, "", f.id, ret);
	*ret = from_handle(&h, f.id);
	return 0;
}

errint_t ident_get(int dirfd, const char *name, struct ident *ret)
{
	const struct filesystem *f;
	union handle h;
	int mount_id = -1;
	cleanup_fd int fd = -1;
	errint_t err = get_handle(dirfd, name, &h, &mount_id);

	if (err && !no_handles(err))
		return err;
	f = err ? NULL : find_known(mount_id);
	if (f && f->handles_persist) {
		*ret = from_handle(&h, f->id);
		return 0;
	}
	if (!*name)
		return get_by_fd(dirfd, ret);
	/* One descriptor, so that handle and filesystem belong together even where `name`
	 * is a mount point. */
	fd = sys_openat(dirfd, name, O_PATH | O_NOFOLLOW, 0);
	return fd < 0 ? fd : get_by_fd(fd, ret);
}

errint_t stamp_of(int fd, const struct object *o, struct stamp *ret)
{
	struct stamp s = {.stored_size = o->stored_size};
	errint_t err = ident_get(fd, "", &s.ident);

	if (err)
		return err;
	memcpy(s.trailer_hash, o->trailer_hash, sizeof s.trailer_hash);
	*ret = s;
	return 0;
}
