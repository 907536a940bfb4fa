/*
 * Unseen writes: see content.h.
 *
 *   seen --content_unseen--> unseen --content_closed (lease granted)--> seen
 *
 * The stamp is (size, mtime). The design says ctime, because mtime can be set back; but every
 * setting of the mtime goes through the daemon, even in passthrough (SETATTR), and raises gen
 * there, while the record's xattr moves the ctime with every update of ours.
 *
 * What a stamp can miss, and what is done about it:
 *  (N1) A write() moves mtime before its bytes: one that is under way when the stamp is taken
 *       may put its bytes there after whoever read them. So a stamp taken within WINDOW_NS of
 *       the mtime is *young*: it counts as changed once more after that window.
 *  (N2) Without fine timestamps (Linux before 6.13) two writes within a tick have one mtime:
 *       a stamp within TICK_NS of the mtime counts as changed at every look ("racily clean").
 *  (N3) A store through a mapping moves mtime only when its page was clean: whoever reads an
 *       unseen scratch that is not closed calls fdatasync first (flush.c, sync.c), which makes
 *       the pages clean. What is read so never makes a scratch clean (flush.c, F4): a flush
 *       that began before the scratch was closed is repeated once it is (flushed_open).
 *  (N4) On a filesystem where such stores never move mtime (tmpfs), whatever was opened for
 *       reading and writing counts as changed at every look.
 *  (N5) Closed for writing means that a read lease was granted: the kernel grants it only while
 *       no description and no mapping can write. It is given back at once; node->lock keeps
 *       new opens away meanwhile, so nobody waits for it.
 *
 * A descriptor is really closed a moment after its RELEASE was sent: the lease may be refused
 * then, and housekeeping asks again.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "pool/content.h"

#include "utlist.h"

#define WINDOW_NS   1000000000LL
#define TICK_NS     20000000LL /* two ticks of the slowest clock, 100 Hz */
#define HOUSE_SHARE 8          /* a round looks at this part of them, ... */
#define HOUSE_LEAST 512        /* ... or so many */

/* ---- stamps ---- */

static int64_t ns_of(const struct timespec *t)
{
	return t->tv_sec * 1000000000LL + t->tv_nsec;
}

static int64_t age_of(const struct stat *st)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	return ns_of(&now) - ns_of(&st->st_mtim);
}

void content_changed(struct scratch *s)
{
	changes_note_all(&s->changes); /* only the frames' hashes can tell what */
	atomic_fetch_add(&s->gen, 1);
}

static void note_time(struct scratch *s, const struct stat *st)
{
	int64_t age = age_of(st);
	int64_t ns = ns_of(&st->st_mtim) + MIN_OF(age, 0); /* never of the future */

	if (ns > atomic_load(&s->last_write_ns))
		atomic_store(&s->last_write_ns, ns);
}

static void remember(struct scratch *s, const struct stat *st)
{
	s->seen_size = (uint64_t)st->st_size;
	s->seen_mtime = st->st_mtim;
}

/* Folds what st says into gen. */
static void fold(struct pool *p, struct scratch *s, const struct stat *st)
{
	int64_t age = age_of(st);
	bool recent = age >= 0 && age < WINDOW_NS;

	if ((uint64_t)st->st_size != s->seen_size ||
	    timespec_cmp(&st->st_mtim, &s->seen_mtime) != 0) {
		content_changed(s);
		note_time(s, st);
		remember(s, st);
		s->young = true;
	} else if (s->young && !recent) {
		content_changed(s); /* (N1) */
		s->young = false;
	} else if (!p->fine_times && age >= 0 && age < TICK_NS) {
		content_changed(s); /* (N2) */
	} else if (s->mappable && !p->stores_seen) {
		content_changed(s); /* (N4) */
	}
}

errint_t content_stat(struct pool *p, struct scratch *s, struct stat *st)
{
	errint_t r;

	if (s->fd >= 0) {
		r = sys_fstat(s->fd, st);
		if (r == 0)
			tail_fill_stat(s, st);
		return r;
	}
	return sys_fstatat(p->scratch_fd, scratch_name(s->ino).s, st, AT_SYMLINK_NOFOLLOW);
}

errint_t content_look(struct pool *p, struct scratch *s, struct stat *st)
{
	errint_t r = content_stat(p, s, st);

	if (s->unseen && r == 0)
		fold(p, s, st);
	else if (s->unseen)
		content_changed(s); /* cannot tell */
	return r;
}

uint64_t content_gen(struct pool *p, struct scratch *s)
{
	struct stat st;

	if (s->unseen)
		(void)content_look(p, s, &st);
	return atomic_load(&s->gen);
}

void content_own_change(struct pool *p, struct scratch *s)
{
	struct stat st;

	if (!s->unseen)
		return;
	if (content_stat(p, s, &st) == 0) {
		remember(s, &st);
		s->young = false;
	}
	content_changed(s); /* after the look: covers a write that came between */
}

/* ---- unseen and closed ---- */

void content_unseen(struct pool *p, struct scratch *s, bool mappable)
{
	struct stat st;

	lock_assert_held(&s->node->lock);
	s->mappable |= mappable;
	if (s->mappable)
		atomic_store(&s->node->unseen_mapped, true);
	if (s->unseen)
		return;
	if (content_stat(p, s, &st) == 0)
		remember(s, &st);
	else
		content_changed(s);
	s->young = false;
	s->unseen = true;
	atomic_store(&s->node->unseen, true);
	lock_take(&p->lock);
	DL_APPEND2(p->unseen, s, unseen_prev, unseen_next);
	p->unseen_count++;
	lock_drop(&p->lock);
}

void content_recovered(struct pool *p, struct scratch *s)
{
	if (s->record.kind == RECORD_WHOLE)
		content_unseen(p, s, true);
}

void content_forget_locked(struct pool *p, struct scratch *s)
{
	if (!s->unseen)
		return;
	DL_DELETE2(p->unseen, s, unseen_prev, unseen_next);
	p->unseen_count--;
	s->unseen = false;
	if (s->node) {
		atomic_store(&s->node->unseen, false);
		atomic_store(&s->node->unseen_mapped, false);
	}
}

/* 0: granted, and kept until the descriptor is closed. */
static errint_t take_lease(int fd, int type)
{
	return fcntl(fd, F_SETLEASE, type) == 0 ? 0 : -errno;
}

bool content_closed(struct pool *p, struct scratch *s)
{
	errint_t lease = -EAGAIN;
	struct stat st;
	int fd;

	if (!s->unseen)
		return true;
	if (s->writers > 0 || s->fd >= 0)
		return false;
	fd = scratch_open_fd(p, s, O_RDONLY);
	if (fd < 0)
		return false;
	lease = take_lease(fd, F_RDLCK); /* (N5) */
	if (lease != -EAGAIN) {
		if (sys_fstat(fd, &st) == 0)
			fold(p, s, &st);
		else
			content_changed(s);
		/* Refused for another reason: no leases here, so nothing was ever served unseen by
		 * this daemon. (N3) */
		if (lease < 0 || s->flushed_open)
			content_changed(s);
		s->tell_kernel = s->mappable && s->was_direct;
		s->mappable = s->young = false;
		lock_take(&p->lock);
		content_forget_locked(p, s);
		lock_drop(&p->lock);
	}
	(void)sys_close(fd);
	return lease != -EAGAIN;
}

/* dirty -> clean without work, where nothing was written; else a flush is due, no later than it is
 * queued for, and at once where only the one that read it while it was open is repeated: who asked
 * for that has waited his time. No writer is left. */
void scratch_closed(struct pool *p, struct scratch *s)
{
	bool queued, again = s->flushed_open, closed = content_closed(p, s);
	bool unchanged = closed && atomic_load(&s->gen) == atomic_load(&s->flushed_gen) &&
	                 !(s->record.flags & RECORD_NEW) &&
	                 !ident_is_none(&s->record.base.ident);
	uint64_t delay_ms = again && closed ? 0 : p->writeback_ms;
	struct record before = s->record;

	if (closed)
		s->flushed_open = false;
	if (unchanged) {
		s->record.state = RECORD_CLEAN;
		s->record.sync_seq = s->record.sync_size = 0;
		if (s->hydration)
			s->record.flags |= RECORD_PARTIAL;
		if (scratch_record(p, s) == 0) {
			count_one(COUNTER_FLUSHES_UNCHANGED);
			flush_unqueue_always(p, s);
			return;
		}
		s->record = before; /* a flush will clean it */
	}
	lock_take(&p->lock);
	queued = s->queued && s->due_ms <= clock_mono_ms() + delay_ms;
	lock_drop(&p->lock);
	if (!queued)
		flush_queue(p, s, delay_ms, false);
}

bool content_unused(struct pool *p, struct scratch *s)
{
	errint_t lease;
	int fd;

	if (!s->was_direct || s->doomed)
		return true;
	if (s->fd >= 0)
		return false;
	fd = scratch_open_fd(p, s, O_RDONLY);
	if (fd < 0)
		return fd == -ENOENT;
	lease = take_lease(fd, F_WRLCK);
	(void)sys_close(fd);
	return lease != -EAGAIN;
}

/* ---- housekeeping ---- */

static void look_at(struct pool *p, struct scratch *s)
{
	bool flush;

	if (s->writers == 0 && content_closed(p, s)) {
		if (s->record.state == RECORD_DIRTY && !s->doomed && !s->flushing)
			scratch_closed(p, s);
		scratch_sample(p, s);
		scratch_mirror(p, s);
		return;
	}
	(void)content_gen(p, s);
	scratch_sample(p, s);
	if (s->writers > 0 || s->doomed || s->flushing || s->record.state != RECORD_DIRTY)
		return; /* flush_house() cares for what is open */
	lock_take(&p->lock);
	flush = !(s->queued && s->urgent);
	lock_drop(&p->lock);
	if (flush && atomic_load(&s->gen) != atomic_load(&s->flushed_gen) &&
	    clock_mono_ms() - atomic_load(&s->dirty_since_ms) >= p->dirty_age_ms)
		flush_queue(p, s, 0, true);
}

void content_house(struct pool *p)
{
	struct look {
		struct node *n;
		struct scratch *s;
	} * look;
	struct scratch *s;
	size_t n = 0, most;

	lock_take(&p->lock);
	most = MAX_OF(p->unseen_count / HOUSE_SHARE, (uint64_t)HOUSE_LEAST);
	most = MIN_OF(most, p->unseen_count);
	if (most == 0) {
		lock_drop(&p->lock);
		return;
	}
	look = xcalloc(most, sizeof(*look));
	while (n < most) {
		s = p->unseen;
		DL_DELETE2(p->unseen, s, unseen_prev, unseen_next);
		DL_APPEND2(p->unseen, s, unseen_prev, unseen_next);
		look[n].n = s->node;
		look[n].s = s;
		node_ref(p->tree, s->node);
		n++;
	}
	lock_drop(&p->lock);
	for (size_t i = 0; i < n; i++) {
		bool was_unseen = false;

		lock_take(&look[i].n->lock);
		s = look[i].n->scratch;
		if (s == look[i].s && s->unseen) {
			look_at(p, s);
			was_unseen = !s->unseen && s->was_direct;
		}
		lock_drop(&look[i].n->lock);
		if (was_unseen && p->notify)
			p->notify(p->notify_ctx, look[i].n->ino);
		node_unref(p->tree, look[i].n);
	}
	free(look);
}

/* ---- what the pool's filesystem can do ---- */

static int private_file(struct pool *p)
{
	char name[] = "probe";
	int fd;

	(void)sys_unlinkat(p->scratch_fd, name, 0);
	fd = sys_openat(p->scratch_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
	return fd;
}

/* (N2) */
static bool has_fine_times(int fd)
{
	struct stat before, after;

	for (int i = 0; i < 50; i++) {
		if (sys_fstat(fd, &before) < 0 || sys_pwrite(fd, "x", 1, 0) != 1 ||
		    sys_fstat(fd, &after) < 0 ||
		    timespec_cmp(&before.st_mtim, &after.st_mtim) == 0)
			return false;
	}
	return true;
}

/* (N4): a store to a clean page moves mtime. */
static bool sees_stores(int fd)
{
	const struct timespec past[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
	volatile char *page = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct stat st;
	bool seen = true;

	if (page == MAP_FAILED)
		return false;
	for (int i = 0; i < 2; i++) {
		seen = seen && sys_fdatasync(fd) == 0 && sys_futimens(fd, past) == 0;
		page[0] = (char)i;
		seen = seen && sys_fstat(fd, &st) == 0 && st.st_mtim.tv_sec != 1000;
	}
	(void)munmap((void *)page, 1);
	return seen;
}

errint_t pool_probe_direct(struct pool *p, int *ret_fd, char **cause)
{
	int fd = private_file(p), ro = -1;
	errint_t r, held = 0, granted = 0;

	*ret_fd = -1;
	if (fd < 0)
		return set_cause_errno(cause, fd, "cannot make a file in the pool");
	r = full_pwrite(fd, "probe", 5, 0);
	if (r == 0) {
		p->fine_times = has_fine_times(fd);
		p->stores_seen = sees_stores(fd);
		r = ro = sys_openat(p->scratch_fd, "probe", O_RDONLY | O_NOFOLLOW, 0);
	}
	if (ro >= 0)
		held = take_lease(ro, F_RDLCK);
	(void)sys_close(fd);
	if (ro >= 0) {
		granted = take_lease(ro, F_RDLCK);
		(void)sys_close(ro);
	}
	if (r >= 0)
		r = *ret_fd = sys_openat(p->scratch_fd, "probe", O_PATH | O_NOFOLLOW, 0);
	(void)sys_unlinkat(p->scratch_fd, "probe", 0);
	if (r < 0)
		return set_cause_errno(cause, r, "cannot use a file in the pool");
	if (held != -EAGAIN || granted != 0) {
		(void)sys_close(*ret_fd);
		*ret_fd = -1;
		return set_cause(
		    cause, -EOPNOTSUPP,
		    "the pool's filesystem has no leases (F_SETLEASE), which tell when "
		    "nobody can write a file any more");
	}
	return 0;
}
