/*
 * How the handles of a scratch reach its bytes: through the daemon's descriptor, or in the kernel
 * (passthrough, by the calls of struct pool_direct).
 *
 * Invariants:
 *  (V1) Handles that the kernel knows (POOL_KERNEL) have one way of reading and writing per
 *       scratch until the last of them goes: through the daemon (backing == 0), or in the kernel
 *       under one backing id. It is chosen when the first is counted (serve_begin).
 *  (V2) s->fd is open while somebody needs it: handles through the daemon, hydration, and the
 *       daemon's own operations (fd_users). Handles that the kernel serves need none.
 *
 * All of it under node->lock.
 */
#include "base/log.h"
#include "pool/content.h"
#include "pool/serve.h"

errint_t serve_count(struct pool *p)
{
	uint64_t n = atomic_fetch_add(&p->open_files, 1);

	if (n < p->max_open)
		return 0;
	atomic_fetch_sub(&p->open_files, 1);
	if (!atomic_exchange(&p->open_limit_logged, true))
		log_warn(
		    "%llu files are open, which is the limit (max_open, RLIMIT_NOFILE): "
		    "opening more answers ENFILE; this is said once",
		    (unsigned long long)n);
	return -ENFILE;
}

void serve_uncount(struct pool *p)
{
	atomic_fetch_sub(&p->open_files, 1);
}

/* (V2) */
errint_t serve_use_fd(struct pool *p, struct scratch *s, bool *counted)
{
	/* not so where others closed it while the lock was given up */
	bool count = s->fd_users == 0 && !*counted;
	errint_t r = count ? serve_count(p) : 0;

	if (r < 0)
		return r;
	if (s->fd_users == 0 && s->fd < 0) {
		r = scratch_open_fd(p, s, O_RDWR);
		if (r < 0) {
			if (count)
				serve_uncount(p);
			return r;
		}
		s->fd = r;
	}
	if (s->fd_users++ == 0)
		*counted = false;
	return 0;
}

void serve_unuse_fd(struct pool *p, struct scratch *s)
{
	INVARIANT(s->fd_users > 0);
	if (--s->fd_users > 0)
		return;
	(void)sys_close(s->fd);
	s->fd = -1;
	serve_uncount(p);
}

/* (V1) */
bool serve_needs_fd(const struct scratch *s, unsigned flags)
{
	return !(flags & POOL_KERNEL) || s->backing == 0 || (flags & POOL_THROUGH);
}

/* Asks the kernel to serve s by itself: its id, or 0. */
static int32_t back(struct pool *p, struct scratch *s, unsigned flags)
{
	struct stat st;
	int fd, id;

	if (!p->direct.open || !atomic_load(&s->whole))
		return 0;
	fd = scratch_open_fd(p, s, O_PATH);
	if (fd < 0)
		return 0;
	if ((flags & POOL_RATHER_SEEN) && sys_fstat(fd, &st) == 0 &&
	    (uint64_t)st.st_size > p->eager_size)
		id = 0;
	else
		id = p->direct.open(p->direct.ctx, fd);
	(void)sys_close(fd);
	if (id > 0) {
		s->was_direct = true;
		atomic_store(&s->node->direct_once, true);
	}
	return id > 0 ? id : 0;
}

/* (V1) */
void serve_begin(struct pool *p, struct scratch *s, unsigned flags)
{
	if (s->served == 0)
		s->backing = back(p, s, flags);
	s->served++;
	if (s->backing > 0 && (flags & POOL_WRITE))
		content_unseen(p, s, (flags & POOL_READ) != 0);
}

void serve_end(struct pool *p, struct scratch *s)
{
	INVARIANT(s->served > 0);
	if (--s->served == 0 && s->backing > 0) {
		p->direct.close(p->direct.ctx, s->backing);
		s->backing = 0;
	}
}

int32_t pool_backing_id(struct node *n)
{
	return n->scratch->backing;
}

void pool_set_direct(struct pool *p, const struct pool_direct *direct)
{
	p->direct = direct ? *direct : (struct pool_direct){0};
}
