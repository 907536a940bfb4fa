/*
 * Directory entries on their way to be changed: see found.h.
 *
 * Threads: any loop or worker thread; no state here.
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "mount/found.h"

/* ---- an entry, found and then locked ---- */

/* The node that memory knows under the name of an object; NULL: look. */
static struct node *find_known(struct mount *m, struct node *dir, const char *name)
{
	struct name store_name;

	if (name_encode(name, true, &store_name))
		return NULL;
	return tree_find_listed(m->tree, dir, store_name.s);
}

errint_t found_init(struct mount *m, struct found *f, struct node *dir, const char *name,
                    bool known)
{
	struct stat st;
	errint_t err;

	memset(f, 0, sizeof(*f));
	f->dir = dir;
	f->name = name;
	if (!S_ISDIR(dir->type))
		return -ENOTDIR;
	err = node_open_dir(m->tree, dir, &f->dirfd, &f->pin);
	if (err)
		return err == -ENOENT ? -ESTALE : err;
	f->opened = true;
	if (known)
		f->node = find_known(m, dir, name);
	return f->node ? 0 : resolve_name(m->tree, dir, name, &f->node, &st);
}

void found_clear(struct mount *m, struct found *f)
{
	node_unref(m->tree, f->node);
	if (f->opened)
		dirfd_release(m->tree, f->pin);
	memset(f, 0, sizeof(*f));
}

errint_t found_confirm(struct mount *m, struct found *f)
{
	struct entry_rules rules = resolve_rules(m->tree);
	errint_t err = entry_lookup(&rules, f->dirfd, is_root(f->dir), f->name, &f->e);

	if (!f->node)
		return err == -ENOENT || err == -ENAMETOOLONG ? 0 : err ? err : -EAGAIN;
	if (err)
		return err == -ENOENT ? -EAGAIN : err;
	return node_is(m->tree, f->node, &f->e.ident) ? 0 : -EAGAIN;
}

/* ---- several node locks ---- */

static bool locks_before(const struct node *a, const struct node *b)
{
	if (S_ISDIR(a->type) != S_ISDIR(b->type))
		return S_ISDIR(a->type);
	return a->ino < b->ino;
}

size_t lock_nodes(struct node **v, size_t n)
{
	size_t kept = 0;

	for (size_t i = 0; i < n; i++) {
		struct node *x = v[i];
		size_t at = 0, k;

		if (!x)
			continue;
		while (at < kept && locks_before(v[at], x))
			at++;
		if (at < kept && v[at] == x)
			continue;
		for (k = kept; k > at; k--)
			v[k] = v[k - 1];
		v[at] = x;
		kept++;
	}
	for (size_t i = 0; i < kept; i++)
		lock_take(&v[i]->lock);
	return kept;
}

void unlock_nodes(struct node **v, size_t n)
{
	while (n > 0)
		lock_drop(&v[--n]->lock);
}

/* ---- hidden plain files (N2) ---- */

static bool hides_plain(struct mount *m, const struct found *f)
{
	struct entry_rules rules = resolve_rules(m->tree);
	struct name decoded;
	struct ident ident;
	struct entry e;
	struct stat st;

	if (!f->e.hides || sys_fstatat(f->dirfd, f->name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
	    !S_ISREG(st.st_mode))
		return false;
	if (!name_has_suffix(f->name) || !name_decode(f->name, true, &decoded))
		return true;
	/* A file that ends in .zst is an object with a name of its own, unless raw. */
	if (entry_lookup(&rules, f->dirfd, is_root(f->dir), decoded.s, &e) == 0 &&
	    e.form == ENTRY_OTHER)
		return true;
	return st.st_size > 0 && ident_get(f->dirfd, f->name, &ident) == 0 &&
	       rules.probe(rules.ctx, f->dirfd, f->name, &st, &ident) == 0;
}

errint_t remove_hidden(struct mount *m, const struct found *f)
{
	if (!f->node || !hides_plain(m, f))
		return 0;
	return sys_unlinkat(f->dirfd, f->name, 0);
}

/* ---- a name that goes (N3) ---- */

static bool has_other_names(struct tree *t, const struct node *n)
{
	bool others;

	rmlock_rd(&t->lock);
	others = n->names && n->names->next;
	rmlock_drop(&t->lock);
	return others;
}

static int open_departing(const struct found *f, bool last)
{
	int fd = -1;

	/* Other links remain, but we do not know them: a flush writes through this one. */
	if (!last && S_ISREG(f->node->type))
		fd = sys_openat(f->dirfd, f->e.store_name.s,
		                O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
	if (fd < 0)
		fd = sys_openat(f->dirfd, f->e.store_name.s, O_PATH | O_NOFOLLOW, 0);
	return fd;
}

void departure_prepare(struct mount *m, const struct found *f, struct departure *d)
{
	struct node *n = f->node;

	d->node = n;
	d->dir = f->dir;
	d->last = S_ISDIR(n->type) || f->e.st.st_nlink <= 1;
	d->fd = -1;
	d->st = NULL;
	if (!d->last && !n->scratch && has_other_names(m->tree, n))
		return;
	if (!d->last || n->scratch)
		d->fd = open_departing(f, d->last);
	if (d->last && d->fd < 0) {
		d->st = xmalloc(sizeof(*d->st));
		*d->st = f->e.st;
		d->st->st_nlink = 0;
		d->st->st_ctim = clock_now();
	}
	if (d->last)
		pool_dooming(m->pool, n, true);
}

void departure_cancel(struct mount *m, struct departure *d)
{
	if (d->last)
		pool_dooming(m->pool, d->node, false);
	if (d->fd >= 0)
		(void)sys_close(d->fd);
	free(d->st);
	memset(d, 0, sizeof(*d));
	d->fd = -1;
}

void departure_commit(struct mount *m, const struct found *f, struct departure *d)
{
	struct node *n = d->node;

	node_ref(m->tree, n);
	node_ref(m->tree, d->dir);
	if (n->dead_fd >= 0 && (d->fd >= 0 || d->last)) {
		/* Of an earlier name; a flush may have replaced that object since. */
		(void)sys_close(n->dead_fd);
		n->dead_fd = -1;
	}
	if (d->fd >= 0)
		n->dead_fd = d->fd;
	if (d->st) {
		free(n->dead_st);
		n->dead_st = d->st;
	}
	node_forget_seen(n);
	if (!d->last && S_ISREG(n->type))
		pool_meta_changed(n);
	if (d->last) {
		catalog_file_delete(m->tree->catalog, &n->ident);
		node_set_gone(m->tree, n);
	}
	node_remove_name(m->tree, n, f->dir, f->e.store_name.s);
}

void departure_tell(struct mount *m, struct departure *d)
{
	if (!d->node)
		return;
	if (d->last)
		pool_unlinked(m->pool, d->node, d->dir);
	else if (S_ISREG(d->node->type))
		pool_renamed(m->pool, d->node);
	node_unref(m->tree, d->node);
	node_unref(m->tree, d->dir);
}

/* ---- ingest ---- */

errint_t ingest(struct mount *m, struct node *n)
{
	errint_t err = pool_open_file(m->pool, n, POOL_WRITE);
	bool plain;

	if (err)
		return err;
	/* A write of nothing: what was opened and not written would not be flushed. */
	err = scratch_write_begin(m->pool, n, 0, 0, true);
	if (!err)
		scratch_write_end(m->pool, n, 0, 0);
	pool_close_file(m->pool, n, POOL_WRITE);
	if (!err)
		err = pool_flush(m->pool, n, 0, NULL, NULL, NULL);
	if (err)
		return err;
	lock_take(&n->lock);
	plain = n->plain;
	lock_drop(&n->lock);
	return plain ? -EXDEV : 0;
}
