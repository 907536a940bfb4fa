/*
 * Ways from nodes to the store: open directories, kept for a while, and the place of an
 * inode (directory and name).
 *
 * The cache. At most dirfd_max descriptors without users, the longest unused go first (second
 * chance: what was used since the last look stays); those in use are never closed, so the
 * bound may be passed by as many as there are callers. A descriptor names its inode: it stays
 * right when directories are renamed, and when its directory was removed everything below it is
 * ENOENT, which is right too. A node that dies leaves its descriptor to those who still use it.
 *
 * A miss opens from the nearest ancestor that is open, one component at a time and each
 * checked against the identity of its node: what was put there behind us is not entered.
 *
 * Is a name still right? node_place() compares the identity of what the name leads to with
 * that of the node: one name_to_handle_at(2) when all is well. When they differ, either the
 * store was changed behind us, or one of our threads is between a rename in the store and
 * node_set_ident() or node_add_name(). All of those hold n->lock (see node.h), so the second
 * look is made under it, and only then is a name dropped. Directories are renamed under
 * tree->ns held for writing and never replaced: for them the first look counts.
 *
 * Threads: any. Cache and names under tree->lock; nothing is opened or closed under it. What is cached
 * is pinned and released under it for reading.
 */
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>

#include "base/sysio.h"
#include "tree/node.h"

#define DIRFD_MOST  256
#define DIRFD_LEAST 8

struct dirfd {
	int fd;
	_Atomic unsigned pins; /* raised with the lock held, and lowered */
	_Atomic bool used;     /* since shrink_locked() came by */
	struct node *node;     /* NULL: it died */
	struct dirfd *newer, *older;
};

void dirfd_setup(struct tree *t)
{
	struct rlimit limit;

	t->dirfd_max = DIRFD_MOST;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / 8 < DIRFD_MOST)
		t->dirfd_max = MAX_OF((unsigned)(limit.rlim_cur / 8), DIRFD_LEAST);
}

/* ---- the list; all under tree->lock, for writing but pin_locked() ---- */

static void unlink_locked(struct tree *t, struct dirfd *d)
{
	*(d->newer ? &d->newer->older : &t->dirfd_newest) = d->older;
	*(d->older ? &d->older->newer : &t->dirfd_oldest) = d->newer;
	t->dirfd_count--;
	d->node->dirfd = NULL;
	d->node = NULL;
}

static void link_newest_locked(struct tree *t, struct dirfd *d, struct node *n)
{
	d->newer = NULL;
	d->older = t->dirfd_newest;
	*(d->older ? &d->older->newer : &t->dirfd_oldest) = d;
	t->dirfd_newest = d;
	t->dirfd_count++;
	d->node = n;
	n->dirfd = d;
}

static void pin_locked(struct dirfd *d)
{
	d->pins++;
	if (!atomic_load_explicit(&d->used, memory_order_relaxed))
		atomic_store_explicit(&d->used, true, memory_order_relaxed);
}

static void make_newest_locked(struct tree *t, struct dirfd *d)
{
	struct node *n = d->node;

	unlink_locked(t, d);
	link_newest_locked(t, d, n);
}

/* Takes those out that nobody has until at most `most` are left; returns them linked by `older`. */
static struct dirfd *shrink_locked(struct tree *t, unsigned most)
{
	struct dirfd *out = NULL, *d = t->dirfd_oldest;

	while (d && t->dirfd_count > most) {
		struct dirfd *newer = d->newer;

		if (atomic_exchange(&d->used, false)) {
			if (!newer)
				continue;
			make_newest_locked(t, d); /* met once more, as the last */
		} else if (!d->pins) {
			unlink_locked(t, d);
			d->older = out;
			out = d;
		}
		d = newer;
	}
	return out;
}

static void close_all(struct dirfd *d)
{
	while (d) {
		struct dirfd *next = d->older;

		(void)sys_close(d->fd);
		free(d);
		d = next;
	}
}

int dirfd_orphan_locked(struct tree *t, struct node *n)
{
	struct dirfd *d = n->dirfd;
	int fd;

	if (!d)
		return -1;
	unlink_locked(t, d);
	if (d->pins)
		return -1;
	fd = d->fd;
	free(d);
	return fd;
}

void dirfd_release(struct tree *t, struct dirfd *pin)
{
	struct dirfd *out;
	bool last, orphan, crowded;

	if (!pin)
		return;
	rmlock_rd(&t->lock);
	INVARIANT(pin->pins > 0);
	last = --pin->pins == 0;
	orphan = last && !pin->node; /* nobody can find it any more */
	crowded = last && t->dirfd_count > t->dirfd_max;
	rmlock_drop(&t->lock);
	if (orphan) {
		pin->older = NULL;
		close_all(pin);
	} else if (crowded) {
		rmlock_wr(&t->lock);
		out = shrink_locked(t, t->dirfd_max);
		rmlock_drop(&t->lock);
		close_all(out);
	}
}

/* ---- opening ---- */

struct step {
	struct node *node; /* referenced */
	struct ident ident;
	struct name name;
};

struct steps {
	struct step *at; /* the deepest first */
	size_t count, allocated;
	struct dirfd *pin; /* where they begin; NULL: the store's root */
};

static void steps_add_locked(struct steps *s, struct node *n)
{
	struct step *last;

	if (s->count == s->allocated) {
		s->allocated = s->allocated ? 2 * s->allocated : 4;
		s->at = xrealloc(s->at, s->allocated * sizeof(*s->at));
	}
	last = &s->at[s->count++];
	last->node = n;
	last->ident = n->ident;
	memcpy(last->name.s, n->names->store_name, strlen(n->names->store_name) + 1);
	n->refs++;
}

/* From dir up to what is open. -ENOENT: nobody knows a way. */
static errint_t steps_gather(struct tree *t, struct node *dir, struct steps *s)
{
	errint_t err = 0;

	rmlock_rd(&t->lock);
	while (dir != t->root && !dir->dirfd) {
		if (!dir->names) {
			err = -ENOENT;
			break;
		}
		steps_add_locked(s, dir);
		dir = dir->names->parent;
	}
	if (!err && dir->dirfd) {
		s->pin = dir->dirfd;
		pin_locked(s->pin);
	}
	rmlock_drop(&t->lock);
	return err;
}

static void steps_clear(struct tree *t, struct steps *s)
{
	for (size_t i = 0; i < s->count; i++)
		node_unref(t, s->at[i].node);
	free(s->at);
}

static int open_component(struct tree *t, int parent_fd, const char *store_name)
{
	int fd = store_open_at(parent_fd, store_name, O_RDONLY | O_DIRECTORY);

	if (fd == -EACCES)
		fd = store_open_at(parent_fd, store_name, O_PATH | O_DIRECTORY);
	if (fd == -EMFILE || fd == -ENFILE) {
		struct dirfd *out;

		rmlock_wr(&t->lock);
		out = shrink_locked(t, 0);
		rmlock_drop(&t->lock);
		if (!out)
			return fd;
		close_all(out);
		fd = store_open_at(parent_fd, store_name, O_RDONLY | O_DIRECTORY);
	}
	/* Something else has this name now. */
	return fd == -ENOTDIR || fd == -ELOOP ? -ENOENT : fd;
}

/* Into the cache, pinned; if another thread was faster, its descriptor. */
static struct dirfd *cache(struct tree *t, struct node *n, int fd)
{
	struct dirfd *mine = xcalloc(1, sizeof(*mine)), *d, *out;

	mine->fd = fd;
	mine->pins = 1;
	rmlock_wr(&t->lock);
	d = n->dirfd;
	if (d) {
		pin_locked(d);
		out = mine;
	} else {
		d = mine;
		link_newest_locked(t, d, n);
		out = shrink_locked(t, t->dirfd_max);
	}
	rmlock_drop(&t->lock);
	close_all(out);
	return d;
}

static errint_t take_step(struct tree *t, const struct step *step, struct dirfd **pin)
{
	int parent_fd = *pin ? (*pin)->fd : t->store->root_fd;
	cleanup_fd int fd = open_component(t, parent_fd, step->name.s);
	struct ident found;
	struct dirfd *next;
	errint_t err;

	if (fd < 0)
		return fd;
	err = ident_get(fd, "", &found);
	if (err)
		return err;
	if (!ident_equal(&found, &step->ident))
		return -ENOENT;
	next = cache(t, step->node, steal_fd(&fd));
	dirfd_release(t, *pin);
	*pin = next;
	return 0;
}

errint_t node_open_dir(struct tree *t, struct node *dir, int *ret_dirfd,
                       struct dirfd **ret_pin)
{
	struct steps s = {0};
	errint_t err;

	if (!S_ISDIR(dir->type))
		return -ENOTDIR;
	err = steps_gather(t, dir, &s);
	for (size_t i = s.count; i > 0 && !err; i--)
		err = take_step(t, &s.at[i - 1], &s.pin);
	steps_clear(t, &s);
	if (err) {
		dirfd_release(t, s.pin);
		return err;
	}
	*ret_dirfd = s.pin ? s.pin->fd : t->store->root_fd;
	*ret_pin = s.pin;
	return 0;
}

struct dirfd *node_opened_dir(struct tree *t, struct node *dir, int *ret_dirfd)
{
	struct dirfd *d;

	rmlock_rd(&t->lock);
	d = dir->dirfd;
	if (d)
		pin_locked(d);
	rmlock_drop(&t->lock);
	if (d)
		*ret_dirfd = d->fd;
	return d;
}

/* ---- places ---- */

/* The first name of n, its parent referenced, and the identity it should lead to. */
static errint_t first_name(struct tree *t, struct node *n, struct place *p,
                           struct ident *ret_want)
{
	errint_t err = -ENOENT;

	rmlock_rd(&t->lock);
	if (n->names) {
		p->parent = n->names->parent;
		p->parent->refs++;
		memcpy(p->store_name.s, n->names->store_name,
		       strlen(n->names->store_name) + 1);
		*ret_want = n->ident;
		err = 0;
	}
	rmlock_drop(&t->lock);
	return err;
}

/* Opens the directory and compares: -ENOENT when the name does not lead to `want`. */
static errint_t check_place(struct tree *t, struct place *p, const struct ident *want)
{
	struct ident found;
	errint_t err = node_open_dir(t, p->parent, &p->dirfd, &p->pin);

	if (!err)
		err = ident_get(p->dirfd, p->store_name.s, &found);
	if (err == -ENOTDIR)
		return -ENOENT;
	return err ? err : ident_equal(&found, want) ? 0 : -ENOENT;
}

errint_t node_place(struct tree *t, struct node *n, struct place *ret)
{
	bool held = lock_is_mine(&n->lock), sure = held || S_ISDIR(n->type);
	bool taken = false;
	struct place p;
	struct ident want;
	errint_t err;

	if (n == t->root) {
		*ret = (struct place){.parent = n, .dirfd = t->store->root_fd};
		node_ref(t, n);
		return 0;
	}
	for (;;) {
		p = (struct place){.dirfd = -1};
		err = first_name(t, n, &p, &want);
		if (!err)
			err = check_place(t, &p, &want);
		if (err != -ENOENT)
			break;
		if (!sure) {
			place_release(t, &p);
			lock_take(&n->lock);
			sure = taken = true;
			continue;
		}
		if (!p.parent) /* no name left */
			break;
		node_remove_name(t, n, p.parent, p.store_name.s);
		place_release(t, &p);
	}
	if (taken)
		lock_drop(&n->lock);
	if (err)
		place_release(t, &p);
	else
		*ret = p;
	return err;
}

void place_release(struct tree *t, struct place *p)
{
	dirfd_release(t, p->pin);
	node_unref(t, p->parent);
	*p = (struct place){.dirfd = -1};
}
