/*
 * rename(2), with RENAME_NOREPLACE and RENAME_EXCHANGE. How it goes, and the invariants (N1)
 * to (N4): found.h.
 *
 * A try that finds that it needs the namespace for itself, a sync (N4) or an ingest first
 * ends with -EAGAIN and says so in `need`; rename_prepare() does it without any lock, then
 * everything is looked up again.
 *
 * Threads: any loop or worker thread; no state here.
 */
#include <linux/fs.h>
#include <string.h>
#include <unistd.h>

#include "base/steps.h"
#include "mount/found.h"
#include "tree/listing.h"

/* ---- rename ---- */

enum rename_need {
	NEED_NOTHING,
	NEED_EXCLUSIVE, /* the namespace to itself */
	NEED_SYNC,      /* of x->wanted, first */
	NEED_INGEST,    /* of x->wanted, first */
};

struct renaming {
	struct request *r;
	struct node *from_dir, *to_dir;
	bool exclusive;         /* holds ns for writing */
	struct node *synced[2]; /* referenced; made durable, need not be again */
	enum rename_need need;
	struct node *wanted; /* referenced */
	struct found from, to;
	struct departure gone;
	struct node *moved[2]; /* referenced; to be told to the pool */
};

/* Ends this try; the caller sees to it and tries again. */
static errint_t rename_needs(struct renaming *x, enum rename_need need, struct node *n)
{
	x->need = need;
	x->wanted = n;
	if (n)
		node_ref(x->r->m->tree, n);
	return -EAGAIN;
}

/* The table follows what the store did to f: now it is to_dir/store_name. */
static void follow_move(struct renaming *x, const struct found *f, struct node *to_dir,
                        const char *store_name)
{
	struct tree *t = x->r->m->tree;
	struct node *n = f->node;

	node_remove_name(t, n, f->dir, f->e.store_name.s);
	node_add_name(t, n, to_dir, store_name);
	if (S_ISREG(n->type))
		pool_meta_changed(n);
	node_ref(t, n);
	x->moved[x->moved[0] ? 1 : 0] = n;
}

static errint_t must_not_exist(int dirfd, const char *store_name)
{
	struct stat st;
	errint_t err = sys_fstatat(dirfd, store_name, &st, AT_SYMLINK_NOFOLLOW);

	return err == -ENOENT ? 0 : err ? err : -EEXIST;
}

/* The store name that f gets in the place of `at` (whose name may be free). */
static errint_t name_in_place(struct renaming *x, const struct found *f,
                              const struct found *at, struct name *ret)
{
	struct mount *m = x->r->m;
	struct entry_rules rules = resolve_rules(m->tree);

	if (f->e.form == ENTRY_OTHER && at->node && at->e.form == ENTRY_OTHER) {
		*ret = at->e.store_name;
		return 0;
	}
	if (f->e.form != ENTRY_PLAIN)
		return entry_new_name(&rules, at->dirfd, is_root(at->dir), at->name,
		                      f->e.form == ENTRY_OBJECT, ret);
	/* A plain file keeps its bytes where they mean the same under the new name. */
	if (name_has_suffix(at->name) ||
	    (at->node && strcmp(at->e.store_name.s, at->name) != 0))
		return rename_needs(x, NEED_INGEST, f->node);
	memcpy(ret->s, at->name, strlen(at->name) + 1);
	return at->node ? 0 : must_not_exist(at->dirfd, at->name);
}

static errint_t check_replace(const struct renaming *x)
{
	struct mount *m = x->r->m;
	struct entry_rules rules = resolve_rules(m->tree);
	const struct found *from = &x->from, *to = &x->to;
	bool dir = S_ISDIR(from->node->type);

	if (dir && node_is_below(m->tree, to->dir, from->node))
		return -EINVAL;
	if (!to->node)
		return entry_check_free(&rules, to->dirfd, is_root(to->dir), to->name);
	if (x->r->flags & RENAME_NOREPLACE)
		return -EEXIST;
	if (S_ISDIR(to->node->type) != dir)
		return dir ? -ENOTDIR : -EISDIR;
	if (dir && node_is_below(m->tree, from->dir, to->node))
		return -ENOTEMPTY;
	return 0;
}

/* (N1): where the forms differ, the new entry first. */
static errint_t move_in_store(const struct renaming *x, const char *new_name)
{
	const struct found *from = &x->from, *to = &x->to;
	const char *old_name = from->e.store_name.s;
	errint_t err = sys_renameat2(from->dirfd, old_name, to->dirfd, new_name, 0);

	if (err || !to->node || strcmp(to->e.store_name.s, new_name) == 0)
		return err;
	step("rename.both");
	err = sys_unlinkat(to->dirfd, to->e.store_name.s, 0);
	if (err)
		(void)sys_renameat2(to->dirfd, new_name, from->dirfd, old_name, 0);
	return err;
}

static errint_t replace_in_store(const struct renaming *x, const char *new_name)
{
	struct tree *t = x->r->m->tree;
	errint_t err;

	if (!x->to.node)
		return move_in_store(x, new_name);
	/* (K1): the kernel excludes only listings through the mount. */
	tree_replacing(t, x->to.dir);
	err = move_in_store(x, new_name);
	tree_replaced(t, x->to.dir);
	return err;
}

static errint_t replace_locked(struct renaming *x)
{
	struct mount *m = x->r->m;
	struct name new_name;
	errint_t err = check_replace(x);

	if (!err)
		err = remove_hidden(m, &x->from);
	if (!err)
		err = remove_hidden(m, &x->to);
	if (!err)
		err = name_in_place(x, &x->from, &x->to, &new_name);
	if (err)
		return err;
	if (x->to.node)
		departure_prepare(m, &x->to, &x->gone);
	err = replace_in_store(x, new_name.s);
	if (err) {
		departure_cancel(m, &x->gone);
		return err;
	}
	step("rename.done");
	if (x->to.node)
		departure_commit(m, &x->to, &x->gone);
	follow_move(x, &x->from, x->to.dir, new_name.s);
	return 0;
}

/* ---- exchange ---- */

/* Two entries of one form, or a plain file and another type whose store names are just
 * their names: they swap their store names. */
static errint_t exchange_alike(struct renaming *x)
{
	struct found *a = &x->from, *b = &x->to;
	errint_t err = sys_renameat2(a->dirfd, a->e.store_name.s, b->dirfd,
	                             b->e.store_name.s, RENAME_EXCHANGE);

	if (err)
		return err;
	step("exchange.done");
	follow_move(x, a, b->dir, b->e.store_name.s);
	/* add_name() took b's name away from it: what is left to remove there is gone. */
	follow_move(x, b, a->dir, a->e.store_name.s);
	return 0;
}

/* An object and another type: their store names differ in form, so each goes to a name
 * that is free. Stopped in between, the other type is seen under its old name, the object
 * raw (N1). */
static errint_t exchange_unlike(struct renaming *x, struct found *object,
                                struct found *other)
{
	struct name object_new, other_new;
	errint_t err = remove_hidden(x->r->m, object);

	if (!err)
		err = name_encode(other->name, true, &object_new);
	if (!err)
		err = name_encode(object->name, false, &other_new);
	if (!err)
		err = must_not_exist(other->dirfd, object_new.s);
	if (!err)
		err = must_not_exist(object->dirfd, other_new.s);
	if (!err)
		err = sys_renameat2(object->dirfd, object->e.store_name.s, other->dirfd,
		                    object_new.s, 0);
	if (err)
		return err;
	step("exchange.half");
	err = sys_renameat2(other->dirfd, other->e.store_name.s, object->dirfd, other_new.s,
	                    0);
	if (err) {
		(void)sys_renameat2(other->dirfd, object_new.s, object->dirfd,
		                    object->e.store_name.s, 0);
		return err;
	}
	follow_move(x, object, other->dir, object_new.s);
	follow_move(x, other, object->dir, other_new.s);
	return 0;
}

static bool is_literal(const struct found *f)
{
	return strcmp(f->e.store_name.s, f->name) == 0 && !name_has_suffix(f->name);
}

static errint_t exchange_locked(struct renaming *x)
{
	struct tree *t = x->r->m->tree;
	struct found *a = &x->from, *b = &x->to;

	if ((S_ISDIR(a->node->type) && node_is_below(t, b->dir, a->node)) ||
	    (S_ISDIR(b->node->type) && node_is_below(t, a->dir, b->node)))
		return -EINVAL;
	if (a->e.form == ENTRY_PLAIN || b->e.form == ENTRY_PLAIN) {
		if (is_literal(a) && is_literal(b))
			return exchange_alike(x);
		return rename_needs(x, NEED_INGEST,
		                    a->e.form == ENTRY_PLAIN ? a->node : b->node);
	}
	if (a->e.form == b->e.form) {
		errint_t err = remove_hidden(x->r->m, a);

		if (!err)
			err = remove_hidden(x->r->m, b);
		return err ? err : exchange_alike(x);
	}
	return a->e.form == ENTRY_OBJECT ? exchange_unlike(x, a, b)
	                                 : exchange_unlike(x, b, a);
}

/* ---- rename, the frame ---- */

/* (N4). No node lock held. */
static errint_t rename_wants_sync(struct renaming *x, struct node *n, size_t which)
{
	struct node_state state;

	if (!S_ISREG(n->type) || x->synced[which] == n)
		return 0;
	pool_node_state(x->r->m->pool, n, &state);
	return state.dirty ? rename_needs(x, NEED_SYNC, n) : 0;
}

static errint_t rename_find(struct renaming *x)
{
	struct mount *m = x->r->m;
	bool exchange = x->r->flags & RENAME_EXCHANGE;
	errint_t err = found_init(m, &x->from, x->from_dir, x->r->name, false);

	if (err)
		return err;
	err = found_init(m, &x->to, x->to_dir, x->r->name2, false);
	if (err && (err != -ENOENT || exchange))
		return err;
	if (S_ISDIR(x->from.node->type) && !x->exclusive)
		return rename_needs(x, NEED_EXCLUSIVE, NULL);
	if (!x->to.node || x->to.node == x->from.node || (x->r->flags & RENAME_NOREPLACE))
		return 0;
	err = rename_wants_sync(x, x->from.node, 0);
	if (!err && exchange)
		err = rename_wants_sync(x, x->to.node, 1);
	return err;
}

/* Under ns. */
static errint_t rename_once(struct renaming *x)
{
	struct mount *m = x->r->m;
	errint_t err = rename_find(x);

	/* Two links of one inode: rename(2) does nothing. */
	if (!err && x->from.node == x->to.node)
		err = x->r->flags & RENAME_NOREPLACE ? -EEXIST : 0;
	else if (!err) {
		struct node *locked[] = {x->from_dir, x->to_dir, x->from.node, x->to.node};
		size_t n = lock_nodes(locked, ARRAY_LEN(locked));

		err = found_confirm(m, &x->from);
		if (!err)
			err = found_confirm(m, &x->to);
		if (!err)
			err = x->r->flags & RENAME_EXCHANGE ? exchange_locked(x)
			                                    : replace_locked(x);
		unlock_nodes(locked, n);
	}
	found_clear(m, &x->from);
	found_clear(m, &x->to);
	return err;
}

/* Does what the last try asked for. [waits] */
static errint_t rename_prepare(struct renaming *x)
{
	struct mount *m = x->r->m;
	struct node *n = x->wanted;
	errint_t err = 0;
	size_t which;

	if (x->need == NEED_EXCLUSIVE) {
		x->exclusive = true;
	} else if (x->need == NEED_INGEST) {
		err = ingest(m, n);
	} else if (x->need == NEED_SYNC) {
		err = pool_sync_before_rename(m->pool, n);
		which = !x->synced[0] ? 0 : 1;
		node_unref(m->tree, x->synced[which]);
		x->synced[which] = n;
		x->wanted = NULL;
	}
	node_unref(m->tree, x->wanted);
	x->wanted = NULL;
	x->need = NEED_NOTHING;
	return err;
}

/* -EAGAIN only where it must wait and may not. */
static errint_t rename_all(struct renaming *x)
{
	struct rmlock *ns = &x->r->m->tree->ns;

	for (unsigned i = 0; i < TRIES_MAX; i++) {
		errint_t err;

		if (x->exclusive)
			rmlock_wr(ns);
		else
			rmlock_rd(ns);
		err = rename_once(x);
		rmlock_drop(ns);
		if (err != -EAGAIN)
			return err;
		if (x->need > NEED_EXCLUSIVE && !x->r->may_wait)
			return -EAGAIN;
		err = rename_prepare(x);
		if (err)
			return err;
	}
	return -EBUSY;
}

static void rename_end(struct renaming *x)
{
	struct mount *m = x->r->m;

	departure_tell(m, &x->gone);
	for (size_t i = 0; i < 2; i++) {
		if (x->moved[i])
			pool_renamed(m->pool, x->moved[i]);
		node_unref(m->tree, x->moved[i]);
		node_unref(m->tree, x->synced[i]);
	}
	node_unref(m->tree, x->wanted);
	node_unref(m->tree, x->from_dir);
	node_unref(m->tree, x->to_dir);
}

static enum run_end run_rename(struct request *r)
{
	struct tree *t = r->m->tree;
	struct renaming x = {
	    .r = r,
	    .from_dir = tree_get(t, r->ino),
	    .to_dir = tree_get(t, r->ino2),
	    .exclusive = r->flags & RENAME_EXCHANGE,
	    .gone.fd = -1,
	};
	errint_t err = -ESTALE;

	if (x.from_dir && x.to_dir)
		err = rename_all(&x);
	rename_end(&x);
	if (err == -EAGAIN && !r->may_wait)
		return RUN_MUST_WAIT;
	return reply_error(r, NULL, err, NULL);
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
               const char *new_name, unsigned flags)
{
	struct request r = request_init(req, run_rename);

	if (flags != 0 && flags != RENAME_NOREPLACE && flags != RENAME_EXCHANGE) {
		(void)reply_errno(&r, -EINVAL);
		return;
	}
	r.ino = parent;
	r.name = name;
	r.ino2 = new_parent;
	r.name2 = new_name;
	r.flags = (int)flags;
	request_dispatch(&r, RUN_STORE);
}
