/*
 * The INIT reply, completed: see init-hook.h. The only file that knows the kernel's
 * structures.
 *
 * What is set, only where the kernel offers it:
 *   FUSE_PARALLEL_DIROPS     look-ups in one directory need not wait for each other
 *   FUSE_HANDLE_KILLPRIV_V2  without it every write asks for security.capability first;
 *                            with it, clearing setuid bits is our part (ops-attr.c)
 *   FUSE_PASSTHROUGH         and its max_stack_depth, where passthrough.c wants it
 * What is never sent: FUSE_SETXATTR_EXT (libfuse would misread every SETXATTR),
 * FUSE_WRITEBACK_CACHE (a write would return before the daemon has it).
 *
 * Threads: INIT is read and answered by one thread. With its reply the kernel has more requests, and
 * libfuse another thread that reads them: that one waits until ready() has returned, so that
 * no request is served by a mount that is half set up. `state` is atomic because all loop
 * threads look at it afterwards.
 */
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "mount/init-hook.h"
#include "mount/passthrough.h"

/* The kernel sends RELEASE only after the last reply that uses a handle; ThreadSanitizer
 * cannot see an order that goes through the kernel, so it is told. */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define SAW_REQUEST()   __tsan_acquire(&hook)
#define SENDING_REPLY() __tsan_release(&hook)
#else
#define SAW_REQUEST()   ((void)0)
#define SENDING_REPLY() ((void)0)
#endif

/* HOOK_DONE: answered, and ready() has returned. */
enum hook_state { HOOK_WAITING, HOOK_ASKED, HOOK_DONE };

static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_cond = PTHREAD_COND_INITIALIZER;

static struct {
	_Atomic int state; /* HOOK_DONE is stored under done_lock */
	_Atomic uint64_t sent;
	/* written before HOOK_ASKED, then constant */
	uint64_t unique;
	uint64_t offered;
	void (*ready)(void *ctx);
	void *ready_ctx;
} hook;

void init_hook_arm(void (*ready)(void *ctx), void *ctx)
{
	hook.ready = ready;
	hook.ready_ctx = ctx;
	hook.offered = 0;
	atomic_store(&hook.sent, 0);
	atomic_store(&hook.state, HOOK_WAITING);
}

uint64_t init_hook_offered_flags(void)
{
	return hook.offered;
}

uint64_t init_hook_sent_flags(void)
{
	return atomic_load(&hook.sent);
}

static uint64_t flags_of(uint32_t flags, uint32_t flags2)
{
	return flags & FUSE_INIT_EXT ? flags | (uint64_t)flags2 << 32 : flags;
}

/* Older kernels send a shorter INIT: what is missing reads as 0. */
static void look_at_request(const void *buf, size_t len)
{
	struct fuse_in_header header;
	struct fuse_init_in in;

	if (len < sizeof(header))
		return;
	memcpy(&header, buf, sizeof(header));
	if (header.opcode != FUSE_INIT)
		return;
	memset(&in, 0, sizeof(in));
	memcpy(&in, (const char *)buf + sizeof(header),
	       MIN_OF(len - sizeof(header), sizeof(in)));
	if (in.major != FUSE_KERNEL_VERSION)
		return; /* the kernel asks again in our version */
	hook.unique = header.unique;
	hook.offered = flags_of(in.flags, in.flags2);
	atomic_store(&hook.state, HOOK_ASKED);
}

/* What was read meanwhile is served when the mount is set up. */
static void wait_done(void)
{
	if (atomic_load_explicit(&hook.state, memory_order_acquire) != HOOK_ASKED)
		return;
	INVARIANT(pthread_mutex_lock(&done_lock) == 0);
	while (atomic_load(&hook.state) == HOOK_ASKED)
		INVARIANT(pthread_cond_wait(&done_cond, &done_lock) == 0);
	INVARIANT(pthread_mutex_unlock(&done_lock) == 0);
}

static void done(void)
{
	INVARIANT(pthread_mutex_lock(&done_lock) == 0);
	atomic_store(&hook.state, HOOK_DONE);
	INVARIANT(pthread_cond_broadcast(&done_cond) == 0);
	INVARIANT(pthread_mutex_unlock(&done_lock) == 0);
}

ssize_t init_hook_read(int fd, void *buf, size_t len, void *userdata)
{
	ssize_t n = read(fd, buf, len);

	SAW_REQUEST();
	wait_done();
	if (n > 0 &&
	    atomic_load_explicit(&hook.state, memory_order_relaxed) == HOOK_WAITING)
		look_at_request(buf, (size_t)n);
	return n;
}

/* Whether iov is the answer to INIT; *ret_good: one that accepts it. */
static bool is_init_reply(const struct iovec *iov, int count, bool *ret_good)
{
	struct fuse_out_header header;

	if (count < 1 || iov[0].iov_len != sizeof(header))
		return false;
	memcpy(&header, iov[0].iov_base, sizeof(header));
	*ret_good = count == 2 && header.error == 0 &&
	            iov[1].iov_len >= offsetof(struct fuse_init_out, unused);
	return header.unique == hook.unique;
}

static uint64_t complete_flags(uint64_t flags, uint32_t *ret_depth)
{
	const uint64_t wanted = FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2;
	const uint64_t never =
	    FUSE_SETXATTR_EXT | FUSE_WRITEBACK_CACHE | FUSE_HANDLE_KILLPRIV;

	flags = (flags | (wanted & hook.offered)) & ~never;
	return flags | passthrough_offer(hook.offered, ret_depth);
}

static ssize_t answer_init(int fd, const struct iovec *iov)
{
	struct fuse_init_out out;
	struct iovec changed[2] = {iov[0], {&out, MIN_OF(iov[1].iov_len, sizeof(out))}};
	uint32_t depth = 0;
	uint64_t flags;
	ssize_t n;

	memset(&out, 0, sizeof(out));
	memcpy(&out, iov[1].iov_base, changed[1].iov_len);
	flags = complete_flags(flags_of(out.flags, out.flags2), &depth);
	out.flags = (uint32_t)flags;
	out.flags2 = (uint32_t)(flags >> 32);
	if (depth >
	    0) /* max_stack_depth follows flags2; older headers have no name for it */
		memcpy((char *)&out.flags2 + sizeof(out.flags2), &depth, sizeof(depth));
	n = writev(fd, changed, 2);
	if (n < 0)
		return n;
	atomic_store(&hook.sent, flags);
	log_debug("init-flags 0x%08x flags2 0x%08x max_readahead %u max_write %u",
	          out.flags, out.flags2, out.max_readahead, out.max_write);
	if (hook.ready)
		hook.ready(hook.ready_ctx);
	return n;
}

ssize_t init_hook_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	ssize_t n;
	bool good;

	SENDING_REPLY();
	if (atomic_load_explicit(&hook.state, memory_order_acquire) != HOOK_ASKED ||
	    !is_init_reply(iov, count, &good))
		return writev(fd, iov, count);
	n = good ? answer_init(fd, iov) : writev(fd, iov, count);
	done();
	return n;
}

ssize_t init_hook_splice_receive(int fd_in, off_t *off_in, int fd_out, off_t *off_out,
                                 size_t len, unsigned flags, void *userdata)
{
	ssize_t n = splice(fd_in, off_in, fd_out, off_out, len, flags);

	SAW_REQUEST();
	wait_done();
	return n;
}

ssize_t init_hook_splice_send(int fd_in, off_t *off_in, int fd_out, off_t *off_out,
                              size_t len, unsigned flags, void *userdata)
{
	char rest[4096];
	ssize_t n;

	SENDING_REPLY();
	n = splice(fd_in, off_in, fd_out, off_out, len, flags);

	/* The caller was interrupted and waits no longer: nobody misses this reply. libfuse
	 * knows that for writev(), but complains here; its pipe must be left empty. */
	if (n < 0 && errno == ENOENT) {
		while (read(fd_in, rest, sizeof(rest)) > 0)
			;
		n = (ssize_t)len;
	}
	return n;
}
