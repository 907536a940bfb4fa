/*
 * Listing directories.
 *
 * A directory handle holds a snapshot of the names, made at the first readdir and again
 * whenever reading starts over at offset 0 (rewinddir). Every name has a position: 0 ".",
 * 1 "..", then ascending; the offset sent with an entry is its position + 1, and reading at
 * an offset begins with the first name at or behind it. A new snapshot leaves the names that
 * it has in common with the one before in their places and puts new ones behind all
 * positions given out, so that an offset of before (telldir, an NFS cookie) still leads to
 * the same name. A name that is gone when its turn comes is passed over; one that came later
 * is seen after the next rewind. So each name that stays is listed exactly once, whatever
 * happens to the others.
 *
 * A snapshot is immutable and counted: a reader keeps the one it began with.
 *
 * Attributes are given with the first entries of a directory, and with all of them to a caller that
 * is interested (interest.h); else a name that the kernel knows is told without a look into the
 * store.
 *
 * readdirplus counts one look-up for every entry that it answers with a number, and none
 * for "." and "..", entries that did not fit, or a reply that the kernel did not take.
 *
 * Threads: any loop or worker thread; the handle's lock guards only its snapshot pointer.
 */
#include <dirent.h>
#include <string.h>

#include "mount/request.h"
#include "store/durable.h"
#include "tree/listing.h"

#include "uthash.h"

struct snapshot {
	_Atomic unsigned users;
	struct listing list;
	uint64_t *positions; /* of list.items, ascending */
	uint64_t end;        /* above all that were ever given out for the handle */
};

struct dir_handle {
	struct open_item item;
	uint32_t magic;            /* DIR_HANDLE_MAGIC */
	struct node *node;         /* referenced */
	struct lock lock;          /* LOCK_LEAF */
	struct snapshot *snapshot; /* under lock; NULL before the first readdir */
};
#define DIR_HANDLE_MAGIC 0xd12a11d1U

/* What the kernel's own filesystems say where they know no number: 0 would be skipped by
 * readdir(3). */
#define UNKNOWN_INO 0xffffffffU

/* ---- snapshots ---- */

static void snapshot_drop(struct snapshot *s)
{
	if (s && atomic_fetch_sub(&s->users, 1) == 1) {
		listing_clear(&s->list);
		free(s->positions);
		free(s);
	}
}

static struct snapshot *snapshot_get(struct dir_handle *d)
{
	struct snapshot *s;

	lock_take(&d->lock);
	s = d->snapshot;
	if (s)
		atomic_fetch_add(&s->users, 1);
	lock_drop(&d->lock);
	return s;
}

/* Names of the snapshot before, to be found again. */
struct known_name {
	UT_hash_handle hh;
	const char *name;
	size_t index;
};

/* Puts the items of s that `before` has too (by_old, NULL where it is gone) in front, at their
 * old positions, and the others behind. */
static void place_items(struct snapshot *s, const struct snapshot *before,
                        struct known_name *known)
{
	struct listing_item *items = xcalloc(s->list.count + 1, sizeof(*items));
	struct listing_item **by_old = xcalloc(before->list.count + 1, sizeof(*by_old));
	bool *old = xcalloc(s->list.count + 1, sizeof(*old));
	size_t n = 0;

	for (size_t i = 0; i < s->list.count; i++) {
		struct known_name *k;

		HASH_FIND_STR(known, s->list.items[i].logical, k);
		old[i] = k != NULL;
		if (k && by_old[k->index])
			free(s->list.items[i].logical); /* renamed while it was listed */
		else if (k)
			by_old[k->index] = &s->list.items[i];
	}
	for (size_t i = 0; i < before->list.count; i++) {
		if (!by_old[i])
			continue;
		s->positions[n] = before->positions[i];
		items[n++] = *by_old[i];
	}
	for (size_t i = 0; i < s->list.count; i++) {
		if (old[i])
			continue;
		s->positions[n] = s->end++;
		items[n++] = s->list.items[i];
	}
	free(old);
	free(by_old);
	free(s->list.items);
	s->list.items = items;
	s->list.count = n;
}

static void give_positions(struct snapshot *s, const struct snapshot *before)
{
	struct known_name *known = NULL, *names;

	s->positions = xcalloc(s->list.count + 1, sizeof(*s->positions));
	s->end = before ? before->end : 2;
	if (!before) {
		for (size_t i = 0; i < s->list.count; i++)
			s->positions[i] = s->end++;
		return;
	}
	names = xcalloc(before->list.count + 1, sizeof(*names));
	for (size_t i = 0; i < before->list.count; i++) {
		struct known_name *k = &names[i];

		k->name = before->list.items[i].logical;
		k->index = i;
		HASH_ADD_KEYPTR(hh, known, k->name, strlen(k->name), k);
	}
	place_items(s, before, known);
	HASH_CLEAR(hh, known);
	free(names);
}

/* Makes a new one the handle's, and returns it counted for the caller too. */
static errint_t snapshot_make(struct mount *m, struct dir_handle *d, struct snapshot **ret)
{
	struct snapshot *s = xcalloc(1, sizeof(*s)), *before = snapshot_get(d);
	errint_t err;
	bool mine;

	rmlock_rd(&m->tree->ns);
	err = tree_list(m->tree, d->node, &s->list);
	rmlock_drop(&m->tree->ns);
	if (err == -ENOENT) /* the directory was removed: it is empty */
		err = 0;
	if (err) {
		snapshot_drop(before);
		free(s);
		return err;
	}
	give_positions(s, before);
	atomic_init(&s->users, 2);
	lock_take(&d->lock);
	mine = d->snapshot == before;
	if (mine)
		d->snapshot = s;
	lock_drop(&d->lock);
	if (mine) {
		snapshot_drop(before); /* the handle's */
		*ret = s;
	} else {
		/* Another reader of the handle was first: positions are given out once. */
		snapshot_drop(s);
		snapshot_drop(s);
		*ret = snapshot_get(d);
	}
	snapshot_drop(before);
	return 0;
}

/* ---- open, release ---- */

static struct dir_handle *dir_handle_of(const struct fuse_file_info *fi)
{
	struct dir_handle *d = (struct dir_handle *)(uintptr_t)fi->fh;

	INVARIANT(d && d->magic == DIR_HANDLE_MAGIC);
	return d;
}

static void dir_handle_free(struct mount *m, struct dir_handle *d)
{
	open_item_remove(m, &d->item);
	snapshot_drop(d->snapshot);
	node_unref(m->tree, d->node);
	lock_clear(&d->lock);
	d->magic = 0;
	free(d);
}

static void close_item(struct mount *m, struct open_item *i)
{
	dir_handle_free(m, container_of(i, struct dir_handle, item));
}

void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request r = request_init(req, NULL);
	struct node *n = tree_get(r.m->tree, ino);
	struct dir_handle *d;

	if (!n || !S_ISDIR(n->type)) {
		(void)reply_errno(&r, n ? -ENOTDIR : -ESTALE);
		node_unref(r.m->tree, n);
		return;
	}
	d = xcalloc(1, sizeof(*d));
	d->magic = DIR_HANDLE_MAGIC;
	d->node = n;
	lock_init(&d->lock, LOCK_LEAF);
	open_item_add(r.m, &d->item, close_item);
	fi->fh = (uintptr_t)d;
	lock_assert_none();
	if (fuse_reply_open(req, fi) != 0)
		dir_handle_free(r.m, d);
}

void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request r = request_init(req, NULL);

	dir_handle_free(r.m, dir_handle_of(fi));
	(void)reply_errno(&r, 0);
}

/* ---- readdir, readdirplus ---- */

/* One reply being filled. */
struct filling {
	const struct request *r;
	struct dir_handle *d;
	bool plus;
	bool interested; /* the caller */
	char *buf;
	size_t used;
	uint64_t *counted; /* numbers whose look-ups are in the reply */
	size_t counted_len;
};

/* False: it did not fit. */
static bool fill_one(struct filling *f, const char *name, const struct fuse_entry_param *e,
                     uint64_t next_off)
{
	size_t room = f->r->size - f->used, len;
	char *at = f->buf + f->used;

	if (f->plus)
		len = fuse_add_direntry_plus(f->r->req, at, room, name, e, (off_t)next_off);
	else
		len =
		    fuse_add_direntry(f->r->req, at, room, name, &e->attr, (off_t)next_off);
	if (len > room)
		return false;
	f->used += len;
	return true;
}

static bool fill_dots(struct filling *f, uint64_t off)
{
	struct fuse_entry_param e = {0};

	e.attr.st_mode = S_IFDIR;
	e.attr.st_ino = off ? parent_ino(f->r->m, f->d->node) : f->d->node->ino;
	return fill_one(f, off ? ".." : ".", &e, off + 1);
}

/* The whole entry where it can be had without waiting; else e->ino stays 0 and the kernel
 * looks it up when somebody asks. */
static void fill_attr(struct mount *m, struct node *n, const struct stat *st,
                      struct fuse_entry_param *e)
{
	struct stat attr;
	errint_t err;

	lock_take(&n->lock);
	err = attr_locked(m, n, n->scratch ? NULL : st, &attr, NULL);
	lock_drop(&n->lock);
	if (!err)
		fill_entry(m, n, &attr, e);
}

/* The node of an item that the kernel knows by this name; NULL: look. */
static struct node *find_listed(const struct filling *f, const struct listing_item *item)
{
	struct tree *t = f->r->m->tree;
	struct name store_name;
	struct node *n;

	if (f->interested || f->r->m->options->shared_store ||
	    name_encode(item->logical, item->type == DT_REG, &store_name))
		return NULL;
	n = tree_find_listed(t, f->d->node, store_name.s);
	if (n && IFTODT(n->type) != item->type) {
		node_unref(t, n);
		n = NULL;
	}
	return n;
}

/* Finds out what is to be said of an item; *ret_n is referenced, or NULL. -ENOENT: it is gone. */
static errint_t look_at_item(const struct filling *f, const struct listing_item *item,
                             struct fuse_entry_param *e, struct node **ret_n)
{
	struct mount *m = f->r->m;
	bool attributes = f->plus && (f->interested || f->r->off == 0);
	struct stat st;
	errint_t err = 0;

	e->attr.st_mode = DTTOIF(item->type);
	e->attr.st_ino = UNKNOWN_INO;
	*ret_n = find_listed(f, item);
	if (!*ret_n) {
		rmlock_rd(&m->tree->ns);
		err = resolve_name(m->tree, f->d->node, item->logical, ret_n, &st);
		if (!err && attributes)
			fill_attr(m, *ret_n, &st, e);
		rmlock_drop(&m->tree->ns);
	}
	if (!err && !e->ino) { /* without its attributes */
		e->attr.st_mode = (*ret_n)->type;
		e->attr.st_ino = (*ret_n)->ino;
	}
	return err;
}

/* False: it did not fit. A name that is gone fits. */
static bool fill_item(struct filling *f, const struct listing_item *item, uint64_t next_off)
{
	struct mount *m = f->r->m;
	struct fuse_entry_param e = {0};
	struct node *n = NULL;
	bool fits;

	if (look_at_item(f, item, &e, &n) == -ENOENT)
		return true;
	fits = fill_one(f, item->logical, &e, next_off);
	if (fits && f->plus && e.ino) {
		lookup_count(m, n);
		f->counted[f->counted_len++] = e.ino;
	}
	node_unref(m->tree, n);
	return fits;
}

/* The first item at or behind a position. */
static size_t find_position(const struct snapshot *s, uint64_t position)
{
	size_t from = 0, to = s->list.count;

	while (from < to) {
		size_t mid = from + (to - from) / 2;

		if (s->positions[mid] < position)
			from = mid + 1;
		else
			to = mid;
	}
	return from;
}

static void fill_from(struct filling *f, const struct snapshot *s)
{
	uint64_t off = f->r->off;

	for (; off < 2; off++) {
		if (!fill_dots(f, off))
			return;
	}
	for (size_t i = find_position(s, off); i < s->list.count; i++) {
		if (!fill_item(f, &s->list.items[i], s->positions[i] + 1))
			return;
	}
}

/* No entry of readdirplus is shorter than this. */
#define ENTRY_MIN 152

static enum run_end run_read_dir(struct request *r, bool plus)
{
	struct filling f = {
	    .r = r,
	    .d = r->dir_handle,
	    .plus = plus,
	    .interested = interest_has(&r->m->interest, r->pid),
	};
	struct snapshot *s = r->off ? snapshot_get(f.d) : NULL;
	errint_t err = 0;

	if (!s)
		err = snapshot_make(r->m, f.d, &s);
	if (!err) {
		f.buf = malloc(MAX_OF(r->size, (size_t)1));
		f.counted = calloc(r->size / ENTRY_MIN + 1, sizeof(f.counted[0]));
		if (!f.buf || !f.counted)
			err = -ENOMEM;
	}
	if (err) {
		(void)reply_error(r, f.d->node, err, NULL);
	} else {
		fill_from(&f, s);
		lock_assert_none();
		if (fuse_reply_buf(r->req, f.buf, f.used) != 0) {
			for (size_t i = 0; i < f.counted_len; i++)
				lookup_undo(r->m, f.counted[i]);
		}
	}
	snapshot_drop(s);
	free(f.buf);
	free(f.counted);
	return RUN_DONE;
}

static enum run_end run_readdir(struct request *r)
{
	return run_read_dir(r, false);
}

static enum run_end run_readdirplus(struct request *r)
{
	return run_read_dir(r, true);
}

static void dispatch_read(fuse_req_t req, run_fn run, size_t size, off_t off,
                          struct fuse_file_info *fi)
{
	struct request r = request_init(req, run);

	r.dir_handle = dir_handle_of(fi);
	r.ino = r.dir_handle->node->ino;
	r.size = size;
	r.off = (uint64_t)off;
	request_dispatch(&r, RUN_STORE);
}

void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                struct fuse_file_info *fi)
{
	dispatch_read(req, run_readdir, size, off, fi);
}

void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
	dispatch_read(req, run_readdirplus, size, off, fi);
}

/* ---- fsyncdir ---- */

static enum run_end run_fsyncdir(struct request *r)
{
	struct mount *m = r->m;
	struct node *n = r->dir_handle->node;
	struct dirfd *pin;
	errint_t err;
	int dirfd;

	rmlock_rd(&m->tree->ns);
	err = node_open_dir(m->tree, n, &dirfd, &pin);
	rmlock_drop(&m->tree->ns);
	if (!err) {
		err = store_sync_dir(dirfd);
		if (err == -EBADF) /* not readable, so open for paths only */
			err = sys_syncfs(m->tree->store->root_fd);
		dirfd_release(m->tree, pin);
	}
	if (err == -ENOENT) /* removed: nothing is left to be durable */
		err = 0;
	return reply_error(r, n, err, NULL);
}

void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_fsyncdir);

	r.dir_handle = dir_handle_of(fi);
	r.ino = r.dir_handle->node->ino;
	request_dispatch(&r, RUN_WAIT);
}
