/*
 * Opening and closing: from a node to a scratch that can be read or written.
 *
 * Edges of the state diagram that live here: cold -> hydrating (start_cold), clean -> dirty
 * (pool_open_file with POOL_WRITE, by scratch_make_dirty); dirty -> clean without work
 * (scratch_closed, of a file that was opened for writing and not written) is in content.c.
 *
 * Invariants:
 *  (O1) A clean idle scratch is used only if its object still has the stamp it came from;
 *       otherwise it is dropped and hydrated anew (check_base).
 *  (O2) While writers > 0 the record says dirty, whatever a flusher does meanwhile.
 *  (O3) Creation: scratch and record (dirty, new) exist before the object does, so that
 *       after kill -9 a 0-byte object always has a record that knows it as new. After a power
 *       cut the object may be all there is; its mark says that nothing was promised
 *       (attrs.h).
 *  (O4) An open that fails leaves the file as it was: what could fail comes before the record that
 *       says dirty (and, with POOL_TRUNC, empty), and a scratch is attached only with its
 *       hydration.
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/content.h"
#include "pool/internal.h"
#include "pool/serve.h"
#include "pool/trust.h"
#include "store/attrs.h"

#define CLOCK_SET_BACK_NS 1000000000LL
#define SAMPLE_BYTES      (256U << 10) /* written since the last look at how large it is */

struct new_scratch {
	struct scratch *s;
};

/* ---- making a scratch ---- */

/* The content changed: the logical ctime is the mtime that the kernel has given it, so that
 * whoever reads it from the scratch after kill -9 finds the same. Of two that change it at once the
 * earlier one may be here last: the later time stays, unless the clock was set back. s->fd is
 * open. */
static void note_change(struct scratch *s)
{
	int64_t ns, before = atomic_load(&s->last_write_ns);
	struct timespec now;
	struct stat st;

	if (sys_fstat(s->fd, &st) == 0)
		now = st.st_mtim;
	else
		(void)clock_gettime(CLOCK_REALTIME, &now);
	ns = now.tv_sec * 1000000000LL + now.tv_nsec;
	while ((ns > before || before - ns > CLOCK_SET_BACK_NS) &&
	       !atomic_compare_exchange_weak(&s->last_write_ns, &before, ns))
		;
}

static int open_object(int dirfd, const char *name, struct stat *st)
{
	int fd = store_open_object(dirfd, name);
	errint_t r;

	if (fd < 0)
		return fd;
	r = sys_fstat(fd, st);
	if (r == 0 && !S_ISREG(st->st_mode))
		r = -ESTALE;
	if (r < 0) {
		(void)sys_close(fd);
		return r;
	}
	return fd;
}

static void remember_owner(struct scratch *s, const struct stat *st)
{
	s->mode = st->st_mode & 07777;
	s->uid = st->st_uid;
	s->gid = st->st_gid;
	atomic_store(&s->links, st->st_nlink);
}

/* A new file that a power cut or a failed creation left without scratch: as it was made, and soon a valid object. */
static void start_empty(struct pool *p, struct scratch *s, const struct stat *st)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, st->st_mtim};

	(void)sys_futimens(s->fd, ts);
	flush_queue(p, s, p->writeback_ms, false);
}

/* cold -> hydrating, or -> dirty and empty: with POOL_TRUNC, and what is marked new. Under ns and
 * node->lock. After an error the node is as cold as before (O4). */
static errint_t start_cold(struct pool *p, struct node *n, unsigned flags,
                           const struct place *at)
{
	cleanup_free char *cause = NULL, *path = NULL;
	struct object object;
	struct scratch *s;
	struct stat st;
	bool is_new;
	errint_t r;
	int fd = open_object(at->dirfd, at->store_name.s, &st);

	if (fd < 0)
		return fd;
	r = object_open(fd, &object, &cause);
	if (r < 0) {
		(void)sys_close(fd);
		return r;
	}
	if (n->plain)
		object.kind = OBJECT_PLAIN, object.logical_size = object.stored_size;
	is_new = object.kind == OBJECT_EMPTY && unborn_is(p, fd);
	if (!is_new && !(flags & POOL_TRUNC) &&
	    (object.kind == OBJECT_EMPTY || (object.kind == OBJECT_PLAIN && !n->plain))) {
		const char *why = object.kind == OBJECT_EMPTY
		                      ? "its object is empty, which is no valid .zst"
		                      : "its object is no zstd (any more)";

		/* It was one when it was last looked at: damage, and not its content. */
		path = node_path(p->tree, n);
		if (damage_note(p, n, (struct object_range){0}, why))
			log_err("\"%s\": %s; reading it answers an error", path, why);
		r = -EUCLEAN;
		goto fail;
	}
	if (object.logical_size != OBJECT_SIZE_UNKNOWN &&
	    object.logical_size > p->max_object) {
		path = node_path(p->tree, n);
		log_err("\"%s\" declares %s, more than max_object allows; opening it "
		        "answers EFBIG",
		        path, text_size(object.logical_size).s);
		r = -EFBIG;
		goto fail;
	}
	s = scratch_alloc(p, n->ino);
	r = stamp_of(fd, &object, &s->record.base);
	/* Another inode was put under the name since it was resolved: not with n's permissions. */
	if (r == 0 && !ident_equal(&s->record.base.ident, &n->ident))
		r = -ESTALE;
	if (r == 0)
		scratch_correct_info(p, n, &s->record.base, &object);
	if (r == 0)
		r = s->fd = scratch_create_file(p, n->ino);
	if (r >= 0) {
		path = node_store_path(p->tree, n);
		s->record.seq = object.has_cellar_frame &&
		                        uuid_equal(&object.cellar.pool, &p->place.uuid)
		                    ? object.cellar.seq
		                    : 0;
		s->record.flags = RECORD_PARTIAL;
		if (is_new || (flags & POOL_TRUNC)) {
			s->record.state = RECORD_DIRTY;
			s->record.flags = is_new ? RECORD_NEW : 0;
		}
		r = scratch_first_record(p, s, path);
	}
	if (r < 0) {
		if (s->fd >= 0)
			(void)sys_unlinkat(p->scratch_fd, scratch_name(s->ino).s, 0);
		scratch_free(s);
		goto fail;
	}
	remember_owner(s, &st);
	if (is_new || (flags & POOL_TRUNC)) {
		changes_note_from(&s->changes, 0);
		atomic_store(&s->gen, 1);
		if (flags & POOL_TRUNC)
			note_change(s);
		atomic_store(&s->whole, true);
		atomic_store(&s->dirty_since_ms, clock_mono_ms());
	} else {
		r = hydrate_begin(p, s, n, fd, &object);
		if (r < 0) {
			(void)sys_unlinkat(p->scratch_fd, scratch_name(s->ino).s, 0);
			scratch_free(s);
			return r;
		}
	}
	scratch_attach(p, s, n);
	scratch_register(p, s);
	if (!is_new && !(flags & POOL_TRUNC))
		return 0;
	unborn_came(p, fd, n->ino);
	if (!(flags & POOL_TRUNC))
		start_empty(p, s, &st);
	r = 0; /* the object is not needed */
fail:
	object_close(&object);
	(void)sys_close(fd);
	return r;
}

void scratch_adopt_earlier(struct pool *p, struct node *n)
{
	struct scratch *s;
	bool waited;

	lock_take(&p->lock);
	for (;;) {
		HASH_FIND(hh, p->by_ino, &n->ino, sizeof(n->ino), s);
		if (!s || !s->busy)
			break;
		lock_wait(&p->lock, &p->progress); /* its eviction is under way */
	}
	if (s && s->node)
		s = NULL; /* cannot be: a node has one scratch */
	if (s)
		s->busy = true;
	lock_drop(&p->lock);
	if (!s)
		return;
	waited = s->record.state == RECORD_DIRTY;
	if (!waited &&
	    n->plain) { /* decoded when its name was another one: shown raw now */
		scratch_drop(p, s);
		return;
	}
	if (waited && !recovery_settles(p, s, n)) {
		scratch_drop(p, s);
		atomic_fetch_sub(&p->waiting, 1);
		return;
	}
	if (waited)
		step("recovery.met");
	scratch_attach(p, s, n);
	if (waited) {
		if (s->record.flags & RECORD_APPEND)
			n->in_place = true; /* its flush undoes that first */
		if (s->record.kind == RECORD_TAIL && tail_resume(p, s) < 0) {
			if (scratch_set_aside(p, s, TAIL_WHY) == 0)
				atomic_fetch_sub(&p->waiting, 1);
			return;
		}
		content_recovered(p, s);
		scratch_write_hint(p, s);
		(void)scratch_record(p, s);
		scratch_mirror(p, s);
		flush_queue(p, s, p->writeback_ms, false);
	}
	lock_take(&p->lock);
	s->busy = false;
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
	if (waited)
		atomic_fetch_sub(&p->waiting, 1); /* recovery.c: found where it lies now */
}

/* (O1): does the object still say what the clean scratch holds? Under ns and node->lock;
 * -ESTALE: the name leads elsewhere now. */
static errint_t check_base(struct pool *p, struct node *n, const struct place *at,
                           bool *ret_same)
{
	struct scratch *s = n->scratch;
	cleanup_free char *cause = NULL;
	struct stat st;
	errint_t r = sys_fstatat(at->dirfd, at->store_name.s, &st, AT_SYMLINK_NOFOLLOW);

	if (r == 0)
		r = resolve_info(p->tree, n, at->dirfd, at->store_name.s, &st, &cause);
	if (r < 0)
		return r;
	remember_owner(s, &st);
	*ret_same = ident_equal(&n->ident, &s->record.base.ident) &&
	            n->info.stored_size == s->record.base.stored_size &&
	            n->info.trailer_hash[0] == s->record.base.trailer_hash[0] &&
	            n->info.trailer_hash[1] == s->record.base.trailer_hash[1];
	return 0;
}

/* Under ns and node->lock, which is given up while *ret_again is found out: then all may be
 * different. *ret_empty: the scratch was made just now, empty and dirty, as POOL_TRUNC wants it. */
static errint_t ready_once(struct pool *p, struct node *n, unsigned flags, bool wait,
                           bool *ret_again, bool *ret_empty)
{
	struct scratch *s;
	struct place at;
	bool same = true;
	errint_t r;

	*ret_empty = false;
	if (!n->scratch)
		scratch_adopt_earlier(p, n);
	s = n->scratch;
	if (s && (s->opens > 0 || s->record.state == RECORD_DIRTY)) {
		count_one(COUNTER_OPEN_HITS);
		return 0;
	}
	if (!wait && !s)
		return -EAGAIN;
	r = node_place(p->tree, n, &at);
	if (r < 0)
		return r == -ENOENT ? -ESTALE : r;
	if (s) {
		r = check_base(p, n, &at, &same);
		if (r == 0 && !same) {
			log_info(
			    "the object of \"%s\" was changed behind cellar; its clean "
			    "scratch is dropped",
			    at.store_name.s);
			if (!hydrate_quiet(p, s, wait)) {
				*ret_again = wait;
				r = -EAGAIN;
			} else {
				r = scratch_destroy(p, s);
			}
			s = NULL;
			if (r == 0 && !wait)
				r = -EAGAIN;
		}
	}
	if (r == 0 && s) {
		count_one(COUNTER_OPEN_HITS);
	} else if (r == 0) {
		count_one(COUNTER_OPEN_MISSES);
		r = start_cold(p, n, flags, &at);
		*ret_empty = r == 0 && (flags & POOL_TRUNC);
	}
	place_release(p->tree, &at);
	return r;
}

/* Makes n->scratch exist and true to its object. Under ns and node->lock. */
static errint_t ready_scratch(struct pool *p, struct node *n, unsigned flags, bool wait,
                              bool *ret_empty)
{
	bool again;
	errint_t r;

	do {
		again = false;
		r = ready_once(p, n, flags, wait, &again, ret_empty);
	} while (again);
	return r;
}

/* ---- length 0 by O_TRUNC ---- */

/* Shrinking a synced scratch: the record with the smaller sync_size first, durable, then the
 * truncation (design, section 5). node->lock held. */
static errint_t shrink(struct pool *p, struct scratch *s, uint64_t size)
{
	errint_t r = 0;

	if (s->record.sync_seq > 0 && s->record.sync_size > size) {
		s->record.sync_size = size;
		r = scratch_record(p, s);
		if (r == 0) {
			r = sys_fsync(s->fd);
			if (r < 0)
				s->sync_error = r; /* (Y3) */
		}
		if (r < 0)
			trust_lost(p, r);
		count_one(COUNTER_POOL_SYNCS);
	}
	if (r == 0) {
		step("shrink.recorded");
		s->shrinks++;
		r = sys_ftruncate(s->fd, (off_t)size);
	}
	return r;
}

/* Under node->lock; waits for writers under way. */
static errint_t truncate_locked(struct pool *p, struct scratch *s, uint64_t size)
{
	struct stat st;
	errint_t r;

	rwlock_wr(&s->gate);
	r = sys_fstat(s->fd, &st);
	changes_note_from(&s->changes, r == 0 ? MIN_OF(size, (uint64_t)st.st_size) : 0);
	atomic_fetch_add(&s->gen, 1);
	if (r == 0)
		r = (uint64_t)st.st_size > size ? shrink(p, s, size)
		                                : sys_ftruncate(s->fd, (off_t)size);
	rwlock_drop(&s->gate);
	if (r == 0) {
		struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};

		/* POSIX: also when the size stays. */
		(void)sys_futimens(s->fd, ts);
		content_own_change(p, s);
		note_change(s);
		s->record.flags &= ~RECORD_MTIME_SET;
		scratch_sample(p, s);
	}
	step("truncate.done");
	return r;
}

/* ---- open and close ---- */

/* Counts a handle; one that the kernel knows is served from here on where hydrated is true, else
 * by settle_handle(). node->lock held. */
static errint_t acquire(struct pool *p, struct node *n, unsigned flags, bool hydrated,
                        bool *counted)
{
	struct scratch *s = n->scratch;
	bool kernel = (flags & POOL_KERNEL) && hydrated;
	errint_t r = 0;

	if (kernel)
		serve_begin(p, s, flags);
	if (serve_needs_fd(s, kernel ? flags : 0)) {
		r = serve_use_fd(p, s, counted);
	} else if (s->fd_users == 0 && s->fd >= 0) {
		(void)sys_close(s->fd); /* start_cold() left it */
		s->fd = -1;
	}
	if (r < 0) {
		if (kernel)
			serve_end(p, s);
		return r;
	}
	if (flags & POOL_WRITE)
		flush_unqueue(p,
		              s); /* writeback_delay starts anew at the next last close */
	if (s->opens++ == 0)
		hydrate_opened(s);
	scratch_touch(p, s);
	scratch_mirror(p, s);
	return 0;
}

/* A handle that was counted before its file was hydrated. node->lock held. */
static void settle_handle(struct pool *p, struct scratch *s, unsigned flags)
{
	if (!(flags & POOL_KERNEL))
		return;
	serve_begin(p, s, flags);
	if (!serve_needs_fd(s, flags))
		serve_unuse_fd(p, s);
	scratch_mirror(p, s);
}

/* The last handle went. node->lock held. */
static void last_close(struct pool *p, struct scratch *s)
{
	hydrate_closed(p, s);
	scratch_sample(p, s);
	if (s->doomed && !s->flushing)
		evict_add_doomed(p, s);
}

static void unacquire(struct pool *p, struct node *n, unsigned flags)
{
	struct scratch *s = n->scratch;

	lock_assert_held(&n->lock);
	INVARIANT(s && s->opens > 0);
	if (flags & POOL_WRITE) {
		INVARIANT(s->writers > 0);
		s->writers--;
	}
	s->opens--;
	if (serve_needs_fd(s, flags))
		serve_unuse_fd(p, s);
	if (flags & POOL_KERNEL)
		serve_end(p, s);
	if ((flags & POOL_WRITE) && s->writers == 0 && s->record.state == RECORD_DIRTY &&
	    !s->doomed && !s->flushing)
		scratch_closed(p, s);
	if (s->opens == 0)
		last_close(p, s);
	scratch_touch(p, s);
	scratch_mirror(p, s);
}

/* Counted as open by now, hydrated if need be: makes it writable. empty: it is so already.
 * node->lock held. */
static errint_t make_writable(struct pool *p, struct node *n, unsigned flags, bool empty)
{
	struct scratch *s = n->scratch;
	errint_t r = scratch_make_dirty(p, s);

	step("open.dirty");
	if (r == 0)
		s->writers++; /* (O2) */
	if (r == 0 && (flags & POOL_TRUNC) && !empty) {
		bool counted = false;

		r = serve_use_fd(p, s, &counted);
		if (r == 0) {
			r = truncate_locked(p, s, 0);
			serve_unuse_fd(p, s);
		}
		if (r < 0 && --s->writers == 0 && !s->doomed && !s->flushing)
			scratch_closed(p, s); /* dirty by now, and nobody else closes it */
	}
	return r;
}

/* A hydration that failed leaves nothing behind once nobody has it open. */
static void give_up(struct pool *p, struct node *n)
{
	struct scratch *s = n->scratch;

	unacquire(p, n, 0);
	if (s->opens == 0 && s->holds == 0 && s->hydration &&
	    s->record.state == RECORD_CLEAN && hydrate_quiet(p, s, false))
		(void)scratch_destroy(p, s);
}

/* A cold file will take room in the pool; what is warm opens however full it is. */
static errint_t wait_for_room(struct pool *p, struct node *n, unsigned flags, bool wait)
{
	bool cold;

	if (!atomic_load_explicit(&p->full, memory_order_relaxed))
		return 0;
	if (atomic_load(&p->no_space) && !(flags & POOL_WRITE))
		return 0; /* what is read is not kept then (hydrate.c) */
	lock_take(&n->lock);
	cold = !n->scratch;
	lock_drop(&n->lock);
	return cold ? evict_throttle(p, wait) : 0;
}

/* It is of length 0 by now: what a truncation does besides. node->lock held. */
static void note_cut(struct pool *p, struct scratch *s)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};

	rwlock_wr(&s->gate);
	changes_note_from(&s->changes, 0);
	atomic_fetch_add(&s->gen, 1);
	note_change(s);
	rwlock_drop(&s->gate);
	(void)sys_futimens(s->fd, ts);
	s->record.flags &= ~RECORD_MTIME_SET;
	scratch_sample(p, s);
}

/* Whoever works on the hydration has been told to end. It is cut while its record says that it is
 * worth nothing (H2), and dirty after that (O4); or it is dirty, a tail, and whole after that (T3).
 * node->lock held, as at the end. */
static errint_t make_writable_cut(struct pool *p, struct node *n, unsigned flags, bool wait)
{
	struct scratch *s = n->scratch;
	struct hydration *h;
	errint_t r;

	while (s->hydration && !hydrate_quiet(p, s, wait)) {
		if (!wait)
			return -EAGAIN;
	}
	if (!s->hydration)
		return make_writable(p, n, flags, false);
	if (tail_is_dirty(s)) {
		r = truncate_locked(p, s, 0);
		if (r == 0)
			r = tail_cut(p, s);
		return r < 0 ? r : make_writable(p, n, flags, true);
	}
	r = hydrate_abandon(s, &h);
	if (r < 0)
		return r;
	r = make_writable(p, n, flags, true);
	if (r < 0) {
		hydrate_resume(s, h);
		return r;
	}
	note_cut(p, s);
	hydrate_put(h);
	return 0;
}

/* What is only partly there, or cannot be read at all, need not be to be cut to nothing. */
static errint_t open_to_cut(struct pool *p, struct node *n, unsigned flags, bool wait,
                            bool *counted, bool *ret_done)
{
	struct scratch *s = n->scratch;
	errint_t r;

	*ret_done = false;
	if (!(flags & POOL_TRUNC) || !s->hydration)
		return 0;
	*ret_done = true;
	r = acquire(p, n, flags, false, counted);
	if (r < 0)
		return r;
	r = make_writable_cut(p, n, flags, wait);
	if (r < 0)
		unacquire(p, n, 0);
	else
		settle_handle(p, s, flags);
	return r;
}

static errint_t open_file(struct pool *p, struct node *n, unsigned flags, bool wait)
{
	struct scratch *s = NULL;
	bool need_all = false, done = false, counted, empty = false;
	errint_t r;

	if (!S_ISREG(n->type))
		return -EINVAL;
	r = wait_for_room(p, n, flags, wait);
	if (r < 0)
		return r;
	rmlock_rd(&p->tree->ns);
	lock_take(&n->lock);
	counted = !n->scratch || n->scratch->fd_users == 0;
	r = counted ? serve_count(p) : 0;
	if (r < 0)
		goto out;
	r = ready_scratch(p, n, flags, wait, &empty);
	s = n->scratch;
	if (r == 0)
		r = open_to_cut(p, n, flags, wait, &counted, &done);
	need_all = r == 0 && !done && s->hydration &&
	           ((flags & POOL_TRUNC) || hydrate_first(p, s, flags & POOL_WRITE));
	if (need_all && !wait)
		r = -EAGAIN;
	if (r == 0 && !done)
		r = acquire(p, n, flags, !need_all, &counted);
	if (counted)
		serve_uncount(p);
	if (r == 0 && !done && !need_all && (flags & POOL_WRITE)) {
		r = tail_quiet(p, s, wait);
		if (r == 0)
			r = make_writable(p, n, flags, empty);
		if (r < 0)
			unacquire(p, n, flags & POOL_HANDLE);
	}
out:
	lock_drop(&n->lock);
	rmlock_drop(&p->tree->ns);
	if (r < 0 || !need_all)
		return r;

	r = hydrate_for_open(p, s, flags & POOL_WRITE);
	lock_take(&n->lock);
	if (r == 0 && !s->hydration && n->info_valid &&
	    n->info.logical_size == OBJECT_SIZE_UNKNOWN) {
		struct stat st;

		if (sys_fstat(s->fd, &st) == 0) {
			n->info.logical_size = (uint64_t)st.st_size;
			catalog_file_put(p->catalog, &n->info);
		}
	}
	if (r == 0 && (flags & POOL_WRITE))
		r = make_writable(p, n, flags, false);
	if (r < 0)
		give_up(p, n);
	else
		settle_handle(p, s, flags);
	lock_drop(&n->lock);
	return r;
}

errint_t pool_open_file(struct pool *p, struct node *n, unsigned flags)
{
	return open_file(p, n, flags, true);
}

errint_t pool_open_file_nowait(struct pool *p, struct node *n, unsigned flags)
{
	return open_file(p, n, flags, false);
}

bool pool_close_file(struct pool *p, struct node *n, unsigned flags)
{
	struct scratch *s;
	bool tell;

	lock_take(&n->lock);
	s = n->scratch;
	unacquire(p, n, flags);
	tell = s->tell_kernel;
	s->tell_kernel = false;
	if (n->scratch && tail_is_spent(p, n->scratch))
		(void)scratch_destroy(p, n->scratch);
	lock_drop(&n->lock);
	return tell;
}

/* ---- new files (O3) ---- */

errint_t pool_prepare_new(struct pool *p, uint64_t ino, const char *store_path,
                          struct new_scratch **ret)
{
	struct scratch *s;
	errint_t r;

	/* May run on a loop thread: no waiting. An empty file takes no room; its writer waits where
	 * it writes. */
	if (evict_no_space(p))
		return -ENOSPC;
	s = scratch_alloc(p, ino);
	r = s->fd = scratch_create_file(p, ino);
	if (r >= 0) {
		s->record.state = RECORD_DIRTY;
		s->record.flags = RECORD_NEW;
		r = scratch_first_record(p, s, store_path);
		if (r < 0)
			(void)sys_unlinkat(p->scratch_fd, scratch_name(ino).s, 0);
	}
	if (r < 0) {
		scratch_free(s);
		return r;
	}
	step("create.prepared");
	*ret = xmalloc(sizeof(**ret));
	(*ret)->s = s;
	return 0;
}

errint_t pool_attach_new(struct pool *p, struct new_scratch *ns, struct node *n,
                         unsigned flags)
{
	struct scratch *s = ns->s;
	bool mine = lock_is_mine(&n->lock), counted = false;
	errint_t r;

	step("create.object");
	if (!mine)
		lock_take(&n->lock);
	s->record.base.ident = n->ident;
	r = record_write(s->fd, &s->record);
	if (r == 0)
		r = serve_use_fd(p, s, &counted);
	if (r < 0) {
		memset(&s->record.base, 0, sizeof(s->record.base));
		goto out;
	}
	free(ns);
	atomic_store(&s->gen, 1);
	atomic_store(&s->links, 1);
	atomic_store(&s->whole, true);
	atomic_store(&s->dirty_since_ms, clock_mono_ms());
	s->opens = 1;
	s->writers = (flags & POOL_WRITE) ? 1 : 0;
	scratch_attach(p, s, n);
	scratch_register(p, s);
	settle_handle(p, s, flags);
	if (!(flags & POOL_WRITE))
		flush_queue(p, s, p->writeback_ms, false);
	if (!(flags & (POOL_READ | POOL_WRITE)))
		unacquire(p, n, 0);
out:
	if (!mine)
		lock_drop(&n->lock);
	return r;
}

void pool_abandon_new(struct pool *p, struct new_scratch *ns)
{
	(void)sys_unlinkat(p->scratch_fd, scratch_name(ns->s->ino).s, 0);
	scratch_free(ns->s);
	free(ns);
}

void pool_keep_new(struct pool *p, struct new_scratch *ns, int fd)
{
	unborn_keep(p, fd, ns->s->ino);
	scratch_free(ns->s);
	free(ns);
}

/* ---- data of an open node ---- */

int scratch_fd(struct node *n)
{
	return n->scratch->fd;
}

errint_t scratch_write_begin(struct pool *p, struct node *n, uint64_t off, size_t len,
                             bool wait)
{
	struct scratch *s = n->scratch;
	errint_t r = evict_throttle(p, wait);

	if (r == 0)
		r = tail_for_write(p, n, off, wait);
	if (r < 0)
		return r;
	if (wait)
		rwlock_rd(&s->gate);
	else if (!rwlock_try_rd(&s->gate))
		return -EAGAIN;
	changes_note(&s->changes, off, len);
	atomic_fetch_add(&s->gen, 1); /* (G1): before the bytes change */
	return 0;
}

void scratch_write_end(struct pool *p, struct node *n, uint64_t off, ssize_t written)
{
	struct scratch *s = n->scratch;

	if (written > 0)
		note_change(s);
	rwlock_drop(&s->gate);
	if (written > 0 &&
	    atomic_fetch_add(&s->unsampled, (uint64_t)written) + (uint64_t)written >=
	        SAMPLE_BYTES) {
		struct stat st;

		atomic_store(&s->unsampled, 0);
		if (sys_fstat(s->fd, &st) == 0)
			scratch_account(p, s, (uint64_t)st.st_blocks * 512);
	}
	step("write.done");
}

errint_t pool_truncate(struct pool *p, struct node *n, uint64_t size)
{
	unsigned flags = POOL_WRITE | (size == 0 ? POOL_TRUNC : 0);
	errint_t r;

	if (size > INT64_MAX)
		return -EFBIG;
	r = pool_open_file(p, n, flags);
	if (r < 0)
		return r;
	if (size > 0)
		r = tail_for_write(p, n, 0, true);
	if (r == 0 && size > 0) {
		lock_take(&n->lock);
		r = truncate_locked(p, n->scratch, size);
		lock_drop(&n->lock);
	}
	pool_close_file(p, n, POOL_WRITE);
	return r;
}

errint_t pool_fallocate(struct pool *p, struct node *n, int mode, uint64_t off,
                        uint64_t len)
{
	struct scratch *s;
	errint_t r;

	if (off > INT64_MAX || len > INT64_MAX - off)
		return -EFBIG;
	r = pool_open_file(p, n, POOL_WRITE);
	if (r < 0)
		return r;
	r = tail_for_write(p, n, 0, true);
	if (r < 0) {
		pool_close_file(p, n, POOL_WRITE);
		return r;
	}
	lock_take(&n->lock);
	s = n->scratch;
	rwlock_wr(&s->gate);
	changes_note(&s->changes, off, len);
	atomic_fetch_add(&s->gen, 1);
	r = sys_fallocate(s->fd, mode, (off_t)off, (off_t)len);
	if (r == 0)
		note_change(s);
	rwlock_drop(&s->gate);
	content_own_change(p, s);
	scratch_sample(p, s);
	lock_drop(&n->lock);
	pool_close_file(p, n, POOL_WRITE);
	return r;
}
