/*
 * fsync and the background sync: what makes written bytes survive a power cut.
 *
 * Invariants (design, section 5, "fsync"):
 *  (Y1) Before a reply: the object's inode and name, the names of new parent directories and the
 *       scratch's own name are durable (the first time since they changed), then the data up
 *       to S, then a record with sync_seq > 0 and sync_size >= S.
 *  (Y2) A record never claims more than is durable: sync_size is raised only after fdatasync of
 *       that much returned 0, and lowered, durably, before the file shrinks (shrink(),
 *       handles.c). A file that shrank during a sync is looked at again.
 *  (Y3) An error of fdatasync or fsync of a scratch is sticky: the kernel reports a lost page once, so
 *       the record is not advanced again until a flush from memory has succeeded; each fsync
 *       until then answers the error. One of syncfs says nothing of any file: each is asked by
 *       an fdatasync of its own then.
 *  (Y4) Of a sync and a flush the later one has the higher number, and what counts is when they looked
 *       at the file: a sync that follows a flush has a new number, also where sync_size says enough
 *       already; one that looked before a flush did, and comes to its record after that flush has
 *       ended, records nothing: the object has it. And a record whose base is a flush's
 *       object keeps no sync of before that flush (job_finish()). So recovery may compare the two.
 *  (Y5) Syncs of one file that overlap each wait for everything themselves: no flag is lowered and
 *       no record counts before the disk has answered.
 *
 * No lock is held while a disk is waited for; what changes meanwhile raises its flag or gen
 * again and is met by the next sync.
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/content.h"
#include "pool/internal.h"
#include "pool/shards.h"
#include "pool/trust.h"
#include "store/attrs.h"
#include "store/durable.h"

#include "utlist.h"

/* Directories whose own name is known to be durable; a set, emptied when it grows large. */
struct dir_seen {
	uint64_t ino;
	UT_hash_handle hh;
};
#define SEEN_MAX 100000

static bool dir_is_seen(struct pool *p, uint64_t ino)
{
	struct dir_seen *d;

	lock_take(&p->seen_lock);
	HASH_FIND(hh, p->seen, &ino, sizeof(ino), d);
	lock_drop(&p->seen_lock);
	return d != NULL;
}

static void seen_empty(struct pool *p)
{
	struct dir_seen *d, *next;

	HASH_ITER (hh, p->seen, d, next) {
		HASH_DEL(p->seen, d);
		free(d);
	}
}

static void dir_mark_seen(struct pool *p, uint64_t ino)
{
	struct dir_seen *d;

	lock_take(&p->seen_lock);
	HASH_FIND(hh, p->seen, &ino, sizeof(ino), d);
	if (!d) {
		if (HASH_COUNT(p->seen) >= SEEN_MAX)
			seen_empty(p);
		d = xcalloc(1, sizeof(*d));
		d->ino = ino;
		HASH_ADD(hh, p->seen, ino, sizeof(d->ino), d);
	}
	lock_drop(&p->seen_lock);
}

void sync_forget_dir(struct pool *p, uint64_t ino)
{
	struct dir_seen *d;

	lock_take(&p->seen_lock);
	HASH_FIND(hh, p->seen, &ino, sizeof(ino), d);
	if (d) {
		HASH_DEL(p->seen, d);
		free(d);
	}
	lock_drop(&p->seen_lock);
}

bool sync_left_unknown(struct pool *p, uint64_t *ret_gen)
{
	*ret_gen = atomic_load(&p->tree->left_forgotten);
	return *ret_gen != atomic_load(&p->left_synced);
}

void sync_left_known(struct pool *p, uint64_t gen)
{
	uint64_t now = atomic_load(&p->left_synced);

	while (now < gen && !atomic_compare_exchange_weak(&p->left_synced, &now, gen))
		;
}

void sync_clear(struct pool *p)
{
	seen_empty(p);
}

errint_t sync_directories(struct pool *p, struct node *dir, int dirfd)
{
	struct node *d = dir;
	errint_t r = store_sync_dir(dirfd);

	node_ref(p->tree, d);
	while (r == 0 && d->ino != TREE_ROOT_INO && !dir_is_seen(p, d->ino)) {
		struct place at;

		rmlock_rd(&p->tree->ns);
		r = node_place(p->tree, d, &at);
		rmlock_drop(&p->tree->ns);
		if (r < 0) {
			r = r == -ENOENT ? 0
			                 : r; /* removed: nothing is left to be durable */
			break;
		}
		r = store_sync_dir(at.dirfd);
		if (r == 0)
			dir_mark_seen(p, d->ino);
		node_ref(p->tree, at.parent);
		node_unref(p->tree, d);
		d = at.parent;
		place_release(p->tree, &at);
	}
	node_unref(p->tree, d);
	return r;
}

errint_t sync_left_directory(struct pool *p, struct node *dir)
{
	struct dirfd *pin;
	errint_t r;
	int dirfd;

	rmlock_rd(&p->tree->ns);
	r = node_open_dir(p->tree, dir, &dirfd, &pin);
	rmlock_drop(&p->tree->ns);
	if (r < 0) {
		/* The directory itself is gone. */
		return sys_syncfs(p->store->root_fd);
	}
	r = store_sync_dir(dirfd);
	dirfd_release(p->tree, pin);
	return r;
}

/* Of a new file whose scratch is durable now: from here on a missing one is a loss. Not before: a
 * place-holder without mark and scratch could not be read (attrs.h). */
static void unmark_object(struct pool *p, struct node *n)
{
	struct stat before, shown, after;
	struct place at;
	int fd;

	rmlock_rd(&p->tree->ns);
	lock_take(&n->lock);
	if (node_place(p->tree, n, &at) == 0) {
		fd = store_open_object(at.dirfd, at.store_name.s);
		if (fd >= 0) {
			bool known = sys_fstat(fd, &before) == 0;

			attrs_unmark_new(fd); /* moves the ctime, which nobody may see */
			if (known && sys_fstat(fd, &after) == 0) {
				resolve_attr(n, &before, &shown);
				resolve_keep_ctime(p->tree, n, &after, &shown.st_ctim);
			}
			(void)sys_close(fd);
		}
		place_release(p->tree, &at);
	}
	lock_drop(&n->lock);
	rmlock_drop(&p->tree->ns);
}

/* The object's inode and name. */
static errint_t sync_object(struct pool *p, struct node *n)
{
	struct place at;
	errint_t r;
	int fd;

	rmlock_rd(&p->tree->ns);
	r = node_place(p->tree, n, &at);
	rmlock_drop(&p->tree->ns);
	if (r < 0)
		return r == -ENOENT ? 0 : r; /* unlinked: no name to keep */
	fd = sys_openat(at.dirfd, at.store_name.s, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
	if (fd >= 0) {
		r = store_sync_file(fd);
		(void)sys_close(fd);
	} else if (fd == -EACCES) {
		r = sys_syncfs(p->store->root_fd); /* an ordinary user's unreadable file */
	} else {
		r = fd == -ENOENT ? sys_syncfs(p->store->root_fd) : fd; /* just renamed */
	}
	if (r == 0)
		r = sync_directories(p, at.parent, at.dirfd);
	place_release(p->tree, &at);
	return r;
}

errint_t sync_scratch_name(struct pool *p, struct scratch *s)
{
	bool needed;
	errint_t r;

	lock_take(&s->node->lock);
	needed = s->file_unsynced;
	s->file_unsynced = false;
	lock_drop(&s->node->lock);
	if (!needed)
		return 0;
	r = shard_sync(p, s->ino);
	if (r < 0) {
		lock_take(&s->node->lock);
		s->file_unsynced = true;
		lock_drop(&s->node->lock);
	}
	return r;
}

/* What one sync found out under the lock before it let go. */
struct sync_state {
	struct scratch *s;
	int fd;
	uint64_t gen, size;
	uint64_t seq; /* its number (Y4) */
	uint32_t shrinks;
	bool name, attr, file;
	uint32_t raises;   /* of the flags, when they were looked at */
	bool is_new;       /* its object may be marked so */
	uint64_t recorded; /* sync number that its fsync makes durable; 0: none */
	errint_t error;    /* sync_many(): of its own */
};

/* node->lock held. The unsynced flags stay up until what they ask for is durable: another sync
 * of the same file meanwhile must not rely on this one (Y5). */
static errint_t sync_begin(struct pool *p, struct scratch *s, struct sync_state *ret)
{
	struct stat st;
	errint_t r;

	memset(ret, 0, sizeof(*ret));
	ret->s = s;
	rwlock_wr(
	    &s->gate); /* (G1): a write under way is counted but not yet in the file */
	ret->gen = content_gen(p, s);
	rwlock_drop(&s->gate);
	ret->fd = scratch_open_fd(p, s, O_RDONLY);
	if (ret->fd < 0)
		return ret->fd;
	r = sys_fstat(ret->fd, &st);
	if (r < 0) {
		(void)sys_close(ret->fd);
		return r;
	}
	ret->size = (uint64_t)st.st_size;
	ret->shrinks = s->shrinks;
	ret->name = s->name_unsynced && !s->doomed;
	ret->attr = s->attr_unsynced && !s->doomed;
	ret->file = s->file_unsynced;
	ret->is_new = (s->record.flags & RECORD_NEW) && s->record.sync_seq == 0;
	ret->raises = s->raises;
	/* seq is beyond sync_seq where a flush was given its number since. */
	if (s->record.sync_seq > 0 && s->record.sync_seq == s->record.seq &&
	    s->record.sync_size >= ret->size)
		ret->seq = s->record.sync_seq;
	else
		ret->seq = ++s->record.seq;
	return 0;
}

/* (Y3): of data, or of the record that is ahead of the disk now. node->lock held. */
static void sync_lost(struct pool *p, struct scratch *s, errint_t error)
{
	s->sync_error = error;
	trust_lost(p, error);
}

/* node->lock held, data durable up to y->size. Writes the record where it has to say more;
 * *ret_wrote: that is to be made durable; *ret_again: it shrank meanwhile. */
static errint_t sync_advance(struct pool *p, struct sync_state *y, bool *ret_wrote,
                             bool *ret_again)
{
	struct scratch *s = y->s;
	struct record before = s->record;
	errint_t r;

	*ret_wrote = false;
	*ret_again = s->shrinks != y->shrinks;
	if (*ret_again || s->record.state != RECORD_DIRTY ||
	    y->seq < s->flushed_seq) /* (Y4) */
		return 0;
	if (s->record.sync_seq >= y->seq && s->record.sync_size >= y->size) {
		/* Another sync wrote that, and may not have come to its fsync (Y5). */
		*ret_wrote = s->durable_seq != s->record.sync_seq;
		y->recorded = s->record.sync_seq;
		return 0;
	}
	s->record.sync_seq = MAX_OF(s->record.sync_seq, y->seq);
	s->record.sync_size = y->size;
	r = scratch_record(p, s);
	if (r < 0)
		s->record = before;
	else
		y->recorded = s->record.sync_seq;
	*ret_wrote = r == 0;
	return r;
}

/* node->lock held. */
static void sync_done(struct sync_state *y)
{
	struct scratch *s = y->s;

	if (s->raises == y->raises)
		s->name_unsynced = s->attr_unsynced = s->file_unsynced = false;
	if (y->recorded > 0)
		s->durable_seq = MAX_OF(s->durable_seq, y->recorded);
	atomic_store(&y->s->synced_gen, y->gen);
	atomic_store(&y->s->last_sync_ms, clock_mono_ms());
}

static errint_t sync_data(struct pool *p, struct node *n, struct sync_state *y)
{
	bool wrote = false, again = false;
	errint_t r = 0;

	if ((y->name || y->attr) && !is_broken(BREAK_NEW_NAME))
		r = sync_object(p, n);
	if (r == 0 && y->file)
		r = shard_sync(p, y->s->ino);
	if (r < 0)
		return r;
	step("fsync.names");
	if (is_broken(BREAK_RECORD_FIRST)) {
		lock_take(&n->lock);
		(void)sync_advance(p, y, &wrote, &again);
		lock_drop(&n->lock);
	}
	count_one(COUNTER_POOL_SYNCS);
	r = sys_fdatasync(y->fd);
	step("fsync.data");
	lock_take(&n->lock);
	if (r < 0)
		sync_lost(p, y->s, r);
	else
		r = sync_advance(p, y, &wrote, &again); /* (Y2) */
	lock_drop(&n->lock);
	if (r == 0 && wrote) {
		step("fsync.recorded");
		count_one(COUNTER_POOL_SYNCS);
		r = sys_fsync(y->fd);
		if (r < 0) {
			lock_take(&n->lock);
			sync_lost(p, y->s, r); /* (Y3) */
			lock_drop(&n->lock);
		}
	}
	return r < 0 ? r : again ? -EAGAIN : 0;
}

static errint_t sync_once(struct pool *p, struct node *n)
{
	struct sync_state y;
	struct scratch *s;
	errint_t r = 0;

	lock_take(&n->lock);
	s = n->scratch;
	if (!s || s->record.state != RECORD_DIRTY) {
		bool needed = !s || s->name_unsynced || s->attr_unsynced;
		uint32_t raises = s ? s->raises : 0;

		lock_drop(&n->lock);
		r = needed ? sync_object(p, n) : 0;
		if (r == 0 && s) {
			lock_take(&n->lock);
			if (n->scratch == s && s->raises == raises)
				s->name_unsynced = s->attr_unsynced = false;
			lock_drop(&n->lock);
		}
		return r;
	}
	r = s->sync_error;
	if (r == 0)
		r = sync_begin(p, s, &y);
	if (r == 0)
		s->holds++; /* so that the scratch stays while the lock is not held */
	lock_drop(&n->lock);
	if (r < 0)
		return r;
	r = sync_data(p, n, &y);
	lock_take(&n->lock);
	if (r == 0)
		sync_done(&y);
	s->holds--;
	lock_drop(&n->lock);
	if (r == 0 && y.is_new)
		unmark_object(p, n);
	(void)sys_close(y.fd);
	return r;
}

errint_t sync_file(struct pool *p, struct node *n)
{
	errint_t r;

	do
		r = sync_once(p, n);
	while (r == -EAGAIN);
	return r;
}

errint_t pool_fsync(struct pool *p, struct node *n, bool datasync)
{
	/* fdatasync is as strong: the size is data here, and the name of a new file is part of
	 * what users rely on. */
	(void)datasync;
	count_one(COUNTER_FSYNCS);
	return S_ISREG(n->type) ? sync_file(p, n) : -EINVAL;
}

errint_t pool_sync_before_rename(struct pool *p, struct node *n)
{
	bool dirty;

	if (is_broken(BREAK_RENAME_SYNC))
		return 0;
	lock_take(&n->lock);
	dirty = n->scratch && n->scratch->record.state == RECORD_DIRTY;
	lock_drop(&n->lock);
	return dirty ? pool_fsync(p, n, false) : 0;
}

errint_t pool_sync_store(struct pool *p)
{
	count_one(COUNTER_STORE_SYNCS);
	return sys_syncfs(p->store->root_fd);
}

/* ---- background ---- */

#define HOUSE_BATCH 512
#define HOUSE_FEW   8 /* up to so many are synced one by one */

static bool wants_sync(struct pool *p, struct scratch *s, uint64_t now)
{
	uint64_t since =
	    MAX_OF(atomic_load(&s->dirty_since_ms), atomic_load(&s->last_sync_ms));

	if (!s->is_dirty || !s->node || s->busy)
		return false;
	if (atomic_load(&s->gen) == atomic_load(&s->synced_gen) || now - since < p->sync_ms)
		return false;
	/* A flush that is about to happen makes more of it durable for less. */
	return !(s->queued && s->due_ms <= now + 1000 && now - since < 2 * p->sync_ms);
}

static size_t collect(struct pool *p, struct node **nodes)
{
	uint64_t now = clock_mono_ms();
	struct scratch *s;
	size_t count = 0;

	lock_take(&p->lock);
	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (count < HOUSE_BATCH && wants_sync(p, s, now)) {
			node_ref(p->tree, s->node);
			nodes[count++] = s->node;
		}
	}
	lock_drop(&p->lock);
	return count;
}

/* Many at once: the same order as sync_data(), with one syncfs for each of its waits.
 * *ret_ask_each: the pool's failed, which says nothing of which file (Y3). */
static errint_t sync_many(struct pool *p, struct node **nodes, size_t count,
                          bool *ret_ask_each)
{
	struct sync_state *y = xcalloc(count, sizeof(*y));
	errint_t r;

	*ret_ask_each = false;
	for (size_t i = 0; i < count; i++) {
		struct scratch *s;

		lock_take(&nodes[i]->lock);
		s = nodes[i]->scratch;
		y[i].fd = -1;
		if (s && s->record.state == RECORD_DIRTY && !s->sync_error && !s->doomed &&
		    sync_begin(p, s, &y[i]) == 0)
			s->holds++;
		else
			y[i].s = NULL;
		lock_drop(&nodes[i]->lock);
		if (y[i].s) {
			(void)sys_close(y[i].fd);
			y[i].fd = -1;
		}
	}
	r = sys_syncfs(p->store->root_fd);
	if (r == 0) {
		r = sys_syncfs(p->scratch_fd);
		*ret_ask_each = r < 0;
		if (r < 0)
			trust_lost(p, r);
	}
	for (size_t i = 0; i < count && r == 0; i++) {
		bool wrote, again;

		if (!y[i].s)
			continue;
		lock_take(&nodes[i]->lock);
		y[i].error = sync_advance(p, &y[i], &wrote, &again);
		lock_drop(&nodes[i]->lock);
	}
	if (r == 0) {
		r = sys_syncfs(p->scratch_fd);
		*ret_ask_each = r < 0;
		if (r < 0)
			trust_lost(p, r);
	}
	for (size_t i = 0; i < count; i++) {
		if (!y[i].s)
			continue;
		lock_take(&nodes[i]->lock);
		if (r == 0 && y[i].error == 0 && y[i].s->shrinks == y[i].shrinks)
			sync_done(&y[i]);
		y[i].s->holds--;
		lock_drop(&nodes[i]->lock);
		if (r == 0 && y[i].error == 0 && y[i].is_new)
			unmark_object(p, nodes[i]);
	}
	free(y);
	return r;
}

void sync_house(struct pool *p)
{
	struct node *nodes[HOUSE_BATCH];
	size_t count = collect(p, nodes);
	bool each = count <= HOUSE_FEW;
	errint_t r = 0;

	if (!each)
		r = sync_many(p, nodes, count, &each);
	for (size_t i = 0; i < count; i++) {
		if (each) {
			errint_t one = sync_once(p, nodes[i]);

			r = one < 0 && one != -EAGAIN ? one : r;
		}
		node_unref(p->tree, nodes[i]);
	}
	if (r < 0)
		log_err("background sync of the pool failed: %s; it is tried again in %s",
		        strerror(-r), text_duration(p->sync_ms).s);
}
