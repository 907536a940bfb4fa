/*
 * Files that are appended to without being hydrated: the record kind `tail` (design, section 5).
 *
 *   partly hydrated, clean --tail_begin--> dirty tail --flush--> clean, partly hydrated
 *   dirty tail --cut to nothing--> dirty, whole, empty           [tail_cut]
 *   dirty tail --anything else but an append--> dirty, whole     [hydrate_range, tail_whole]
 *
 * Invariants:
 *  (T1) A tail holds the bytes from `ask` on; below, its file is asked of the base object, whose
 *       descriptor and table the hydration keeps. The base may be appended to or replaced
 *       meanwhile: its first bytes stay where they are, and the inode as long as it is open.
 *  (T2) Below `ask` the scratch is believed only where the unit is VALID in memory (H2), and
 *       while it is a dirty tail nothing is hydrated into it but all of it: what is read stays in
 *       memory (hydrate_would_hold). So its mtime is that of the user's writes.
 *  (T3) Bytes below `ask` change only after all was hydrated and the record says whole, which it
 *       does only after the scratch was fdatasynced: so a hole never means anything.
 *       Cut to nothing, the scratch is shorter than `ask` before the record says whole; and where
 *       it is shorter, it is a whole file whatever the record says (record_settle).
 *  (T4) No unit is written at or past `ask`, whatever the base has there.
 *  (T5) A clean tail is worth nothing once it is closed, and dropped.
 *  (T6) While a dirty tail is made whole its mtime is what it was before: that is shown (content_stat),
 *       and put back at the end. Who writes meanwhile moves it, and then it stays so.
 */
#include <string.h>
#include <unistd.h>

#include "codec/plan.h"
#include "pool/internal.h"

bool tail_possible(const struct pool *p, const struct scratch *s)
{
	const struct hydration *h = s->hydration;

	lock_assert_held(&s->node->lock);
	return h && !s->node->plain && h->object.has_cellar_frame &&
	       plan_can_keep(&h->object) && h->object.logical_size > p->eager_size;
}

bool tail_is_dirty(const struct scratch *s)
{
	return s->hydration && s->hydration->tail && s->record.state == RECORD_DIRTY;
}

/* (T2) */
static void become_tail(struct hydration *h)
{
	lock_take(&h->lock);
	h->tail = true;
	h->fits = false;
	lock_drop(&h->lock);
}

/* Whoever fills the scratch now would move its mtime later (T2). Readers that never end are
 * not waited for: then the mtime shows too young a time until the last writer closes. */
errint_t tail_quiet(struct pool *p, struct scratch *s, bool wait)
{
	for (int i = 0; i < 3 && s->hydration && s->record.state == RECORD_CLEAN; i++) {
		if (hydrate_quiet(p, s, wait))
			return 0;
		if (!wait)
			return -EAGAIN;
	}
	return 0;
}

errint_t tail_begin(struct pool *p, struct scratch *s)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {0}};
	struct hydration *h = s->hydration;
	struct record before = s->record;
	struct stat st;
	errint_t r = 0;

	lock_assert_held(&s->node->lock);
	INVARIANT(h && s->record.state == RECORD_CLEAN);
	if (!h->tail) { /* else the last flush has made the two the same */
		r = sys_fstat(h->fd, &st);
		ts[1] = st.st_mtim;
		if (r == 0)
			r = sys_futimens(s->fd, ts);
	}
	if (r < 0)
		return r;
	s->record.state = RECORD_DIRTY;
	s->record.kind = RECORD_TAIL;
	s->record.ask = h->ask;
	s->record.flags &= ~(RECORD_PARTIAL | RECORD_DOOMED);
	s->record.sync_seq = s->record.sync_size = 0;
	s->file_unsynced = s->name_unsynced = true;
	r = scratch_record(p, s);
	if (r < 0)
		s->record = before;
	else
		become_tail(h);
	return r;
}

/* (T3). fd: the scratch. */
errint_t tail_whole(struct pool *p, struct scratch *s, int fd)
{
	struct record before = s->record;
	errint_t r;

	lock_assert_held(&s->node->lock);
	count_one(COUNTER_POOL_SYNCS);
	r = sys_fdatasync(fd);
	if (r < 0)
		return r;
	s->record.kind = RECORD_WHOLE;
	s->record.ask = 0;
	s->record.flags &= ~RECORD_PARTIAL;
	r = scratch_record(p, s);
	if (r < 0)
		s->record = before;
	return r;
}

errint_t tail_fill_begin(struct scratch *s)
{
	struct stat st;
	errint_t r = 0;

	lock_assert_held(&s->node->lock);
	if (s->filling == 0) {
		r = sys_fstat(s->fd, &st);
		if (r < 0)
			return r;
		s->filling_mtime = st.st_mtim;
		s->filling_gen = atomic_load(&s->gen);
	}
	s->filling++;
	return 0;
}

errint_t tail_fill_end(struct scratch *s)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, s->filling_mtime};
	errint_t r = 0;

	lock_assert_held(&s->node->lock);
	if (--s->filling > 0)
		return 0;
	rwlock_wr(&s->gate); /* no write between the look at gen and the time */
	if (atomic_load(&s->gen) == s->filling_gen)
		r = sys_futimens(s->fd, ts);
	rwlock_drop(&s->gate);
	return r;
}

void tail_fill_stat(const struct scratch *s, struct stat *st)
{
	if (s->filling > 0 && atomic_load(&s->gen) == s->filling_gen)
		st->st_mtim = s->filling_mtime;
}

void tail_fill_set_time(struct scratch *s, const struct timespec *mtime)
{
	s->filling_mtime = *mtime;
	s->filling_gen = atomic_load(&s->gen);
}

errint_t tail_cut(struct pool *p, struct scratch *s)
{
	lock_assert_held(&s->node->lock);
	hydrate_put(hydrate_forget(s));
	s->record.kind = RECORD_WHOLE;
	s->record.ask = 0;
	s->record.flags &= ~RECORD_PARTIAL;
	return scratch_record(p, s); /* where it fails: (T3) */
}

errint_t tail_for_write(struct pool *p, struct node *n, uint64_t off, bool wait)
{
	struct scratch *s = n->scratch;
	bool whole_first;

	if (atomic_load(&s->whole))
		return 0;
	lock_take(&n->lock);
	whole_first = s->hydration && off < s->hydration->ask;
	lock_drop(&n->lock);
	if (!whole_first)
		return 0;
	return wait ? hydrate_range(p, s, 0, UINT64_MAX) : -EAGAIN;
}

bool tail_is_spent(struct pool *p, struct scratch *s)
{
	lock_assert_held(&s->node->lock);
	return s->hydration && s->hydration->tail && s->record.state == RECORD_CLEAN &&
	       s->opens == 0 && s->holds == 0 && !s->flushing && !s->doomed &&
	       hydrate_quiet(p, s, false);
}

/* ---- a tail of an earlier run ---- */

static errint_t open_base(struct pool *p, struct scratch *s, struct object *ret,
                          int *ret_fd)
{
	struct place at;
	struct stamp now;
	errint_t r = node_place(p->tree, s->node, &at);
	int fd;

	if (r < 0)
		return r;
	fd = store_open_object(at.dirfd, at.store_name.s);
	place_release(p->tree, &at);
	if (fd < 0)
		return fd;
	r = object_open(fd, ret, NULL);
	if (r < 0) {
		(void)sys_close(fd);
		return r;
	}
	r = stamp_of(fd, ret, &now);
	if (r == 0 && (!stamp_equal(&now, &s->record.base) || !plan_can_keep(ret) ||
	               ret->logical_size < s->record.ask))
		r = -ESTALE;
	if (r < 0) {
		object_close(ret);
		(void)sys_close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

errint_t tail_resume(struct pool *p, struct scratch *s)
{
	struct object object;
	int fd = -1;
	errint_t r;

	lock_assert_held(&s->node->lock);
	INVARIANT(s->record.kind == RECORD_TAIL && !s->hydration);
	r = open_base(p, s, &object, &fd);
	if (r == 0)
		r = hydrate_attach(p, s, s->node, fd, &object, s->record.ask);
	if (r == 0)
		become_tail(s->hydration);
	return r;
}
