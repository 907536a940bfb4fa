/*
 * Passthrough: see passthrough.h; which scratch is served so and which is not, pool/serve.c (V1).
 *
 * What the kernel asks for (Linux 6.9, fs/fuse/passthrough.c, iomode.c, backing.c):
 *   - FUSE_INIT_EXT, FUSE_PASSTHROUGH and max_stack_depth >= 1 in the reply to INIT;
 *   - CAP_SYS_ADMIN in the initial user namespace for FUSE_DEV_IOC_BACKING_OPEN;
 *   - a file on a filesystem that is not stacked itself;
 *   - of the open flags only NOFLUSH and DIRECT_IO beside PASSTHROUGH.
 *
 * The descriptor given to the ioctl may be O_PATH and is not kept: open files cost none.
 *
 * The kernel remembers the credentials of the ioctl's caller and writes with them: they must have
 * no right to the blocks that a filesystem reserves for root. So it is called with another fsuid
 * and fsgid, and without CAP_SYS_RESOURCE.
 *
 * libfuse before 3.17 knows none of this: the reply to INIT is completed by init-hook.c, those to
 * OPEN and CREATE are sent as bytes. A newer one would refuse or clear what it does not know of,
 * and is told by its own means. The ioctl is ours with both: libfuse's functions want a request,
 * and ids are closed where there is none.
 */
#include <errno.h>
#include <linux/capability.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sysio.h"
#include "mount/passthrough.h"

/* From include/uapi/linux/fuse.h of Linux 6.9; Debian 12 has that of 6.1. */
#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH (1ULL << 37)
#endif
#ifndef FOPEN_PASSTHROUGH
#define FOPEN_PASSTHROUGH (1U << 7)
#endif
struct backing_map { /* fuse_backing_map */
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define BACKING_OPEN  _IOW(229, 1, struct backing_map) /* FUSE_DEV_IOC_BACKING_OPEN */
#define BACKING_CLOSE _IOW(229, 2, uint32_t)           /* FUSE_DEV_IOC_BACKING_CLOSE */
struct open_out {                                      /* fuse_open_out */
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

/* include/linux/proc_ns.h: PROC_USER_INIT_INO, since Linux 3.8 */
#define INITIAL_USER_NS 0xEFFFFFFDU

#define STACK_DEPTH 1
#define NOBODY      65534

enum state { OFF, WANTED, OFFERED, ON };

static struct {
	_Atomic(enum state)
	    state;   /* OFF is stored after reason; `cellarctl status` reads both */
	bool insist; /* passthrough=on */
	struct pool *pool;
	int probe_fd;
	int device_fd;
	/* those of all our threads: every file that is opened leaves them for a moment */
	uid_t uid;
	gid_t gid;
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3];
	char reason[256];
} pt = {.probe_fd = -1, .device_fd = -1};

/* ---- whether ---- */

/* Nobody may do anything where the kernel does not say. */
static void read_credentials(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};

	pt.uid = geteuid();
	pt.gid = getegid();
	if (syscall(SYS_capget, &header, pt.caps) != 0)
		memset(pt.caps, 0, sizeof(pt.caps));
}

static bool has_capability(unsigned cap)
{
	return (pt.caps[CAP_TO_INDEX(cap)].effective & CAP_TO_MASK(cap)) != 0;
}

static bool in_initial_user_ns(void)
{
	struct stat st;

	return stat("/proc/self/ns/user", &st) == 0 && st.st_ino == INITIAL_USER_NS;
}

static errint_t refuse(const char *why, char **cause)
{
	(void)snprintf(pt.reason, sizeof(pt.reason), "%s", why);
	pt.state = OFF;
	if (pt.probe_fd >= 0)
		(void)sys_close(pt.probe_fd);
	pt.probe_fd = -1;
	if (pt.insist)
		return set_cause(cause, -EOPNOTSUPP, "passthrough=on is not possible: %s",
		                 why);
	log_info("passthrough is off: %s", why);
	return 0;
}

errint_t passthrough_prepare(const struct options *o, struct pool *p, char **cause)
{
	cleanup_free char *why = NULL;

	pt.pool = p;
	pt.insist = o->passthrough == PASSTHROUGH_ON;
	read_credentials();
	if (o->passthrough == PASSTHROUGH_OFF)
		return refuse("the option passthrough=off says so", cause);
	if (!has_capability(CAP_SYS_ADMIN))
		return refuse("it needs CAP_SYS_ADMIN, that is a daemon started by root",
		              cause);
	if (!in_initial_user_ns())
		return refuse(
		    "it needs CAP_SYS_ADMIN in the initial user namespace, and this is "
		    "another one",
		    cause);
	if (pool_probe_direct(p, &pt.probe_fd, &why) < 0)
		return refuse(why, cause);
	pt.state = WANTED;
	return 0;
}

bool passthrough_possible(uint64_t offered)
{
	return pt.state == WANTED && (offered & FUSE_INIT_EXT) &&
	       (offered & FUSE_PASSTHROUGH);
}

uint64_t passthrough_offer(uint64_t offered, uint32_t *ret_depth)
{
	if (!passthrough_possible(offered))
		return 0;
	pt.state = OFFERED;
	*ret_depth = STACK_DEPTH;
	return FUSE_INIT_EXT | FUSE_PASSTHROUGH;
}

/* ---- backing ids ---- */

/* Of this thread: raises or lowers what it may do at the moment. */
static void set_resource_capability(bool on)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	memcpy(data, pt.caps, sizeof(data));
	if (!on)
		data[CAP_TO_INDEX(CAP_SYS_RESOURCE)].effective &=
		    ~CAP_TO_MASK(CAP_SYS_RESOURCE);
	(void)syscall(SYS_capset, &header, data);
}

static int backing_open(void *ctx, int fd)
{
	struct backing_map map = {.fd = fd};
	int id;

	set_resource_capability(false);
	(void)syscall(SYS_setfsgid, NOBODY);
	(void)syscall(SYS_setfsuid, NOBODY);
	id = ioctl(pt.device_fd, BACKING_OPEN, &map);
	if (id < 0)
		id = -errno;
	(void)syscall(SYS_setfsuid, pt.uid);
	(void)syscall(SYS_setfsgid, pt.gid);
	set_resource_capability(true);
	return id;
}

static void backing_close(void *ctx, int id)
{
	uint32_t u = (uint32_t)id;

	/* After an unmount the connection may be gone, and all ids with it. */
	(void)ioctl(pt.device_fd, BACKING_CLOSE, &u);
}

static const char *why_refused(int err)
{
	switch (err) {
	case -ELOOP:
		return "the pool lies on a stacked filesystem (an overlay, or another "
		       "mount of "
		       "this kind)";
	case -EPERM:
		return "the kernel refuses it to this process";
	default:
		return strerror(-err);
	}
}

errint_t passthrough_begin(int device_fd, char **cause)
{
	const struct pool_direct direct = {.open = backing_open, .close = backing_close};
	int id;

	if (pt.state == OFF)
		return 0;
	if (pt.state != OFFERED)
		return refuse("the kernel has no FUSE passthrough (Linux 6.9 or newer has)",
		              cause);
	pt.device_fd = device_fd;
	id = backing_open(NULL, pt.probe_fd);
	if (id <= 0)
		return refuse(why_refused(id), cause);
	backing_close(NULL, id);
	(void)sys_close(pt.probe_fd);
	pt.probe_fd = -1;
	pt.state = ON;
	pool_set_direct(pt.pool, &direct);
	log_info("passthrough is on: warm files are read and written in the kernel");
	return 0;
}

void passthrough_end(void)
{
	if (pt.pool)
		pool_set_direct(pt.pool, NULL);
	if (pt.probe_fd >= 0)
		(void)sys_close(pt.probe_fd);
	pt.probe_fd = -1;
	pt.pool = NULL;
}

bool passthrough_active(const char **ret_reason)
{
	enum state state = pt.state;

	*ret_reason = state == ON    ? NULL
	              : state == OFF ? pt.reason
	                             : "the mount is not answering yet";
	return state == ON;
}

/* ---- replies ---- */

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)

static void fill(struct fuse_file_info *fi, uint64_t fh, int32_t backing_id, bool direct_io)
{
	memset(fi, 0, sizeof(*fi));
	fi->fh = fh;
	fi->backing_id = backing_id; /* libfuse sets FOPEN_PASSTHROUGH with it */
	fi->direct_io = direct_io;
	fi->noflush = 1;
}

int passthrough_reply_open(fuse_req_t req, uint64_t fh, int32_t backing_id, bool direct_io)
{
	struct fuse_file_info fi;

	fill(&fi, fh, backing_id, direct_io);
	return fuse_reply_open(req, &fi);
}

int passthrough_reply_create(fuse_req_t req, const struct fuse_entry_param *e, uint64_t fh,
                             int32_t backing_id, bool direct_io)
{
	struct fuse_file_info fi;

	fill(&fi, fh, backing_id, direct_io);
	return fuse_reply_create(req, e, &fi);
}

#else

static struct open_out open_out_of(uint64_t fh, int32_t backing_id, bool direct_io)
{
	struct open_out out = {
	    .fh = fh,
	    .open_flags =
	        FOPEN_PASSTHROUGH | FOPEN_NOFLUSH | (direct_io ? FOPEN_DIRECT_IO : 0),
	    .backing_id = backing_id,
	};

	return out;
}

int passthrough_reply_open(fuse_req_t req, uint64_t fh, int32_t backing_id, bool direct_io)
{
	struct open_out out = open_out_of(fh, backing_id, direct_io);

	return fuse_reply_buf(req, (const char *)&out, sizeof(out));
}

static void split_time(double seconds, uint64_t *ret_s, uint32_t *ret_ns)
{
	*ret_s = (uint64_t)seconds;
	*ret_ns = (uint32_t)((seconds - (double)*ret_s) * 1e9);
}

int passthrough_reply_create(fuse_req_t req, const struct fuse_entry_param *e, uint64_t fh,
                             int32_t backing_id, bool direct_io)
{
	const struct stat *st = &e->attr;
	struct {
		struct fuse_entry_out entry;
		struct open_out open;
	} out;

	memset(&out, 0, sizeof(out));
	out.entry.nodeid = e->ino;
	out.entry.generation = e->generation;
	split_time(e->entry_timeout, &out.entry.entry_valid, &out.entry.entry_valid_nsec);
	split_time(e->attr_timeout, &out.entry.attr_valid, &out.entry.attr_valid_nsec);
	out.entry.attr = (struct fuse_attr){
	    .ino = st->st_ino,
	    .size = (uint64_t)st->st_size,
	    .blocks = (uint64_t)st->st_blocks,
	    .atime = (uint64_t)st->st_atim.tv_sec,
	    .mtime = (uint64_t)st->st_mtim.tv_sec,
	    .ctime = (uint64_t)st->st_ctim.tv_sec,
	    .atimensec = (uint32_t)st->st_atim.tv_nsec,
	    .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
	    .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
	    .mode = st->st_mode,
	    .nlink = (uint32_t)st->st_nlink,
	    .uid = st->st_uid,
	    .gid = st->st_gid,
	    .rdev = (uint32_t)st->st_rdev,
	    .blksize = (uint32_t)st->st_blksize,
	};
	out.open = open_out_of(fh, backing_id, direct_io);
	return fuse_reply_buf(req, (const char *)&out, sizeof(out));
}

#endif
