/*
 * One scratch: its file, its record, its place in the pool's lists.
 *
 * Invariants:
 *  (S1) The record says dirty before the first byte of a scratch changes
 *       (scratch_make_dirty, called by whoever opens for writing, truncates or creates).
 *  (S2) A scratch file is deleted only in scratch_destroy(), which refuses a dirty one
 *       unless it is doomed, and in scratch_drop(), for recovery (recovery.c, R1).
 *  (S3) node->scratch is set and cleared under node->lock, and cleared only while no handle is
 *       open and no flusher works on it; so an open handle may read it without the lock.
 *  (S4) Record before row: catalog_scratch_put() comes after scratch_record().
 *  (S5) The next scratch of a file counts on from its object's number. So one that goes while its records
 *       may say on disk that more was synced than the object has (it was synced, and then turned out to
 *       be what the object is) goes durably: it must not be back after a power cut beside objects
 *       of its successor, which it would claim to be newer than.
 */
#include <string.h>
#include <unistd.h>

#include "utlist.h"

#include "base/clock.h"
#include "base/text.h"
#include "pool/content.h"
#include "pool/lost.h"
#include "pool/shards.h"
#include "pool/trust.h"

/* Not with printf(3): every request that meets a scratch needs one. */
static void put_hex(char *ret, uint64_t v, unsigned digits)
{
	while (digits > 0) {
		ret[--digits] = "0123456789abcdef"[v & 15];
		v >>= 4;
	}
}

/* "xx/xxxxxxxxxxxxxxxx" */
struct scratch_name scratch_name(uint64_t ino)
{
	struct scratch_name n;

	put_hex(n.s, ino & 0xff, 2);
	n.s[2] = '/';
	put_hex(n.s + 3, ino, 16);
	n.s[19] = '\0';
	return n;
}

struct scratch *scratch_alloc(struct pool *p, uint64_t ino)
{
	struct scratch *s = xcalloc(1, sizeof(*s));

	s->magic = SCRATCH_MAGIC;
	s->ino = ino;
	s->pool = p;
	s->fd = -1;
	s->record.ino = ino;
	s->record.boot = p->boot;
	s->name_unsynced = s->attr_unsynced = s->file_unsynced = true;
	s->last_use_ms = clock_mono_ms();
	s->mode = 0600;
	s->uid = geteuid();
	s->gid = getegid();
	rwlock_init(&s->gate, LOCK_SCRATCH);
	changes_init(&s->changes);
	return s;
}

void scratch_free(struct scratch *s)
{
	if (!s)
		return;
	INVARIANT(s->magic == SCRATCH_MAGIC && !s->opens && !s->holds && !s->queued);
	hydrate_free(s->hydration);
	framehash_free(s->frames);
	if (s->fd >= 0)
		(void)sys_close(s->fd);
	rwlock_clear(&s->gate);
	changes_release(&s->changes);
	free(s->hint);
	free(s->fail_text);
	s->magic = 0;
	free(s);
}

/* pool->lock held. */
static void mirror(struct pool *p, struct scratch *s)
{
	bool dirty = s->record.state == RECORD_DIRTY && !s->doomed;

	if (dirty != s->is_dirty) {
		if (dirty) {
			p->dirty_count++;
			p->dirty_bytes += s->bytes;
		} else {
			p->dirty_count--;
			p->dirty_bytes -= s->bytes;
		}
		s->is_dirty = dirty;
	}
	if (s->flushing != s->is_flushing) {
		if (s->flushing)
			p->flushing_count++;
		else
			p->flushing_count--;
		s->is_flushing = s->flushing;
	}
	s->is_direct = s->served > 0 && s->backing > 0;
	s->is_cached = s->served > 0 && s->backing == 0;
	if (s->is_open != (s->opens > 0)) {
		s->is_open = s->opens > 0;
		p->open_bytes += s->is_open ? s->bytes : -s->bytes;
		evict_measure(p);
	}
}

void scratch_mirror(struct pool *p, struct scratch *s)
{
	lock_take(&p->lock);
	mirror(p, s);
	lock_drop(&p->lock);
}

void scratch_register(struct pool *p, struct scratch *s)
{
	lock_take(&p->lock);
	HASH_ADD(hh, p->by_ino, ino, sizeof(s->ino), s);
	DL_APPEND2(p->lru, s, lru_prev, lru_next);
	p->count++;
	p->bytes += s->bytes;
	mirror(p, s); /* from now on eviction sees it */
	lock_drop(&p->lock);
}

void scratch_unregister(struct pool *p, struct scratch *s)
{
	flush_unqueue_always(p, s);
	lock_take(&p->lock);
	HASH_DEL(p->by_ino, s);
	DL_DELETE2(p->lru, s, lru_prev, lru_next);
	content_forget_locked(p, s);
	p->count--;
	p->bytes -= s->bytes;
	if (s->is_dirty) {
		p->dirty_count--;
		p->dirty_bytes -= s->bytes;
	}
	if (s->is_open)
		p->open_bytes -= s->bytes;
	if (s->is_flushing)
		p->flushing_count--;
	s->is_dirty = s->is_flushing = s->is_open = false;
	s->bytes = 0;
	evict_measure(p);
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
}

void scratch_attach(struct pool *p, struct scratch *s, struct node *n)
{
	lock_assert_held(&n->lock);
	INVARIANT(!n->scratch && !s->node && n->ino == s->ino);
	node_ref(p->tree, n);
	s->node = n;
	n->scratch = s;
}

int scratch_create_file(struct pool *p, uint64_t ino)
{
	struct scratch_name name = scratch_name(ino);
	int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW;
	int fd = sys_openat(p->scratch_fd, name.s, flags, 0600);

	if (fd == -ENOENT) {
		errint_t r = shard_make(p, ino);

		if (r < 0)
			return r;
		fd = sys_openat(p->scratch_fd, name.s, flags, 0600);
	}
	if (fd == -EEXIST) {
		/* What no scratch of this run owns is a leftover of a creation that was
		 * stopped before its first record. */
		errint_t r = sys_unlinkat(p->scratch_fd, name.s, 0);

		if (r < 0)
			return r;
		fd = sys_openat(p->scratch_fd, name.s, flags, 0600);
	}
	return fd;
}

int scratch_open_fd(struct pool *p, struct scratch *s, int flags)
{
	return sys_openat(p->scratch_fd, scratch_name(s->ino).s, flags | O_NOFOLLOW, 0);
}

static void put_row(struct pool *p, struct scratch *s)
{
	struct catalog_scratch row = {
	    .ino = s->ino,
	    .dirty = s->record.state == RECORD_DIRTY,
	};
	struct timespec now = clock_now();

	lock_take(&p->lock);
	row.pinned = s->pinned;
	row.bytes = s->bytes;
	lock_drop(&p->lock);

	row.last_use = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	catalog_scratch_put(p->catalog, &row);
}

errint_t scratch_mark_doomed(struct pool *p, struct scratch *s)
{
	bool doomed = s->record.flags & RECORD_DOOMED;
	mode_t mode = doomed ? 0600 | RECORD_DOOMED_MODE : 0600;
	errint_t r;

	if (s->marked_doomed == doomed)
		return 0;
	if (s->fd >= 0)
		r = sys_fchmod(s->fd, mode);
	else
		r = sys_fchmodat(p->scratch_fd, scratch_name(s->ino).s, mode);
	if (r == 0)
		s->marked_doomed = doomed;
	return r;
}

errint_t scratch_record(struct pool *p, struct scratch *s)
{
	struct record out;
	int fd = s->fd;
	errint_t r;

	if (s->node)
		lock_assert_held(&s->node->lock);
	s->record.boot = p->boot;
	out = s->record;
	out.flags &= ~RECORD_DOOMED;
	if (s->base_pending) {
		out.base = s->old_base;
		out.flags |= s->old_flags | RECORD_REPLACING;
	}
	if (fd < 0) {
		fd = scratch_open_fd(p, s, O_RDONLY);
		if (fd < 0)
			return fd;
	}
	s->claimed_seq = MAX_OF(s->claimed_seq, out.sync_seq);
	r = record_write(fd, &out);
	if (fd != s->fd)
		(void)sys_close(fd);
	if (r == 0)
		r = scratch_mark_doomed(p, s);
	if (r == 0)
		put_row(p, s); /* (S4) */
	return r;
}

void scratch_keep_base(struct scratch *s)
{
	if (s->base_pending)
		return; /* that one is the durable one still */
	s->base_pending = true;
	s->old_base = s->record.base;
	s->old_flags = s->record.flags & (RECORD_NEW | RECORD_APPEND);
}

errint_t scratch_first_record(struct pool *p, struct scratch *s, const char *hint)
{
	errint_t r = record_write_hint(s->fd, hint);

	if (r == 0)
		r = record_write(s->fd, &s->record);
	if (r == 0) {
		free(s->hint);
		s->hint = xstrdup(hint);
	}
	return r;
}

void scratch_write_hint(struct pool *p, struct scratch *s)
{
	char *path = node_store_path(p->tree, s->node);
	int fd = scratch_open_fd(p, s, O_RDONLY);

	if (fd >= 0) {
		(void)record_write_hint(fd, path);
		(void)sys_close(fd);
	}
	free(s->hint);
	s->hint = path;
}

errint_t scratch_make_dirty(struct pool *p, struct scratch *s)
{
	struct record before = s->record;
	errint_t r;

	if (s->record.state == RECORD_DIRTY)
		return 0;
	if (s->hydration) {
		r = tail_begin(p, s);
		if (r < 0)
			return r;
		goto dirty;
	}
	s->record.state = RECORD_DIRTY;
	s->record.kind = RECORD_WHOLE;
	s->record.flags &= ~(RECORD_PARTIAL | RECORD_DOOMED);
	s->record.sync_seq = 0;
	s->record.sync_size = 0;
	s->raises++;
	s->file_unsynced = s->name_unsynced = true;
	r = scratch_record(p, s);
	if (r < 0) {
		s->record = before;
		return r;
	}
dirty:
	atomic_store(&s->dirty_since_ms, clock_mono_ms());
	scratch_mirror(p, s);
	return 0;
}

void scratch_account(struct pool *p, struct scratch *s, uint64_t bytes)
{
	bool over;

	lock_take(&p->lock);
	p->bytes += bytes - s->bytes;
	if (s->is_dirty)
		p->dirty_bytes += bytes - s->bytes;
	if (s->is_open)
		p->open_bytes += bytes - s->bytes;
	s->bytes = bytes;
	evict_measure(p);
	over = p->bytes > p->limit_bytes;
	lock_drop(&p->lock);
	if (over)
		evict_wake(p);
}

void scratch_sample(struct pool *p, struct scratch *s)
{
	struct stat st;
	errint_t r;

	if (s->fd >= 0)
		r = sys_fstat(s->fd, &st);
	else
		r = sys_fstatat(p->scratch_fd, scratch_name(s->ino).s, &st,
		                AT_SYMLINK_NOFOLLOW);
	s->stale = r < 0;
	if (r < 0)
		return; /* keeps what was known; the next look finds out */
	s->size = (uint64_t)st.st_size;
	s->mtime = st.st_mtim;
	s->blocks = (uint64_t)st.st_blocks;
	scratch_account(p, s, (uint64_t)st.st_blocks * 512);
}

void scratch_touch(struct pool *p, struct scratch *s)
{
	lock_take(&p->lock);
	s->last_use_ms = clock_mono_ms();
	DL_DELETE2(p->lru, s, lru_prev, lru_next);
	DL_APPEND2(p->lru, s, lru_prev, lru_next);
	lock_drop(&p->lock);
}

struct timespec scratch_ctime(struct scratch *s, const struct timespec *stored)
{
	int64_t ns = atomic_load(&s->last_write_ns);
	struct timespec t = {ns / 1000000000, ns % 1000000000};

	return ns > 0 && timespec_cmp(&t, stored) > 0 ? t : *stored;
}

/* Takes s out of node and lists; the node reference is given back by the caller. */
static struct node *detach(struct pool *p, struct scratch *s)
{
	struct node *n = s->node;

	if (n) {
		lock_assert_held(&n->lock);
		INVARIANT(n->scratch == s && !s->opens && !s->holds &&
		          !s->flushing); /* (S3) */
		n->scratch = NULL;
	}
	scratch_unregister(p, s);
	return n;
}

/* (S5) */
static bool must_go_durably(struct pool *p, const struct scratch *s)
{
	struct catalog_file row;
	uint64_t seq = 0;

	if (s->claimed_seq == 0 || s->doomed)
		return false;
	if (s->node && s->node->info_valid)
		seq = s->node->info.seq;
	else if (catalog_file_by_ino(p->catalog, s->ino, &row))
		seq = row.seq;
	return s->claimed_seq > seq;
}

errint_t scratch_destroy(struct pool *p, struct scratch *s)
{
	struct node *n, *dir = s->doomed_dir;
	uint64_t ino = s->ino;
	errint_t r;

	INVARIANT(s->record.state == RECORD_CLEAN || s->doomed); /* (S2) */
	r = sys_unlinkat(p->scratch_fd, scratch_name(ino).s, 0);
	if (r < 0 && r != -ENOENT)
		return r;
	if (must_go_durably(p, s)) {
		r = shard_sync(p, ino);
		if (r < 0)
			trust_lost(p, r);
	}
	step("evict.unlinked");
	n = detach(p, s);
	scratch_free(s);
	catalog_scratch_delete(p->catalog, ino);
	if (dir)
		node_unref(p->tree, dir);
	if (n) {
		/* The caller still holds n->lock and a reference of its own. */
		node_unref(p->tree, n);
	}
	return 0;
}

void scratch_drop(struct pool *p, struct scratch *s)
{
	uint64_t ino = s->ino;

	INVARIANT(!s->node);
	(void)sys_unlinkat(p->scratch_fd, scratch_name(ino).s, 0);
	scratch_unregister(p, s); /* wakes whoever waits for s->busy */
	scratch_free(s);
	catalog_scratch_delete(p->catalog, ino);
}

errint_t scratch_set_aside(struct pool *p, struct scratch *s, const char *why)
{
	cleanup_free char *hint = text_escape(s->hint ? s->hint : "");
	uint64_t ino = s->ino;
	struct node *n;
	errint_t r = pool_move_to_lost(p, scratch_name(ino).s, ino, why);

	if (r < 0) {
		log_err("cannot move the scratch of \"%s\" (number %llu) to lost+found: %s",
		        hint, (unsigned long long)ino, strerror(-r));
		return r;
	}
	log_warn("scratch of \"%s\" (number %llu) was moved to lost+found: %s", hint,
	         (unsigned long long)ino, why);
	step("recovery.aside");
	n = detach(p, s);
	scratch_free(s);
	catalog_scratch_delete(p->catalog, ino);
	if (n)
		node_unref(p->tree, n);
	return 0;
}
