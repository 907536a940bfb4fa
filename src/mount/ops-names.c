/*
 * Names: what makes and removes directory entries, but for regular files (ops-file.c) and
 * rename (ops-rename.c). How it goes, and the invariants (N1) to (N4): found.h.
 *
 * Threads: any loop or worker thread; no state here.
 */
#include <string.h>
#include <unistd.h>

#include "base/steps.h"
#include "mount/found.h"

/* ---- unlink, rmdir ---- */

static errint_t remove_locked(const struct request *r, struct found *f, struct departure *d)
{
	bool rmdir = r->flags & AT_REMOVEDIR;
	errint_t err;

	if (S_ISDIR(f->node->type) != rmdir)
		return rmdir ? -ENOTDIR : -EISDIR;
	err = remove_hidden(r->m, f);
	if (err)
		return err;
	departure_prepare(r->m, f, d);
	err = sys_unlinkat(f->dirfd, f->e.store_name.s, r->flags);
	step("unlink.done");
	if (err)
		departure_cancel(r->m, d);
	else
		departure_commit(r->m, f, d);
	return err;
}

static errint_t remove_once(const struct request *r, struct node *dir, bool known,
                            struct departure *d)
{
	struct mount *m = r->m;
	struct found f;
	errint_t err;

	rmlock_rd(&m->tree->ns);
	err = found_init(m, &f, dir, r->name, known);
	if (!err) {
		struct node *locked[] = {dir, f.node};
		size_t n = lock_nodes(locked, ARRAY_LEN(locked));

		err = found_confirm(m, &f);
		if (!err)
			err = remove_locked(r, &f, d);
		unlock_nodes(locked, n);
	}
	found_clear(m, &f);
	rmlock_drop(&m->tree->ns);
	return err;
}

static enum run_end run_remove(struct request *r)
{
	struct tree *t = r->m->tree;
	struct node *dir = tree_get(t, r->ino);
	struct departure d = {.fd = -1};
	enum run_end end;
	errint_t err = -EAGAIN;

	if (!dir)
		return reply_errno(r, -ESTALE);
	for (unsigned i = 0; err == -EAGAIN && i < TRIES_MAX; i++)
		err = remove_once(r, dir, i == 0, &d);
	departure_tell(r->m, &d);
	end = reply_error(r, dir, err, NULL);
	node_unref(t, dir);
	return end;
}

static void dispatch_remove(fuse_req_t req, fuse_ino_t parent, const char *name, int flags)
{
	struct request r = request_init(req, run_remove);

	r.ino = parent;
	r.name = name;
	r.flags = flags;
	request_dispatch(&r, RUN_STORE);
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	dispatch_remove(req, parent, name, 0);
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	dispatch_remove(req, parent, name, AT_REMOVEDIR);
}

/* ---- mkdir, mknod, symlink ---- */

static errint_t make_entry(const struct request *r, int dirfd, const char *store_name)
{
	errint_t err;

	creds_enter(r);
	if (S_ISLNK(r->mode))
		err = sys_symlinkat(r->name2, dirfd, store_name);
	else if (S_ISDIR(r->mode))
		err = sys_mkdirat(dirfd, store_name, r->mode & 07777);
	else
		err = sys_mknodat(dirfd, store_name, r->mode, r->rdev);
	creds_leave(r);
	return err;
}

/* Under ns: makes r->name of type r->mode in dir, then finds it as any look-up would. */
static errint_t make_in(const struct request *r, struct node *dir, int dirfd,
                        struct node **ret)
{
	struct tree *t = r->m->tree;
	struct entry_rules rules = resolve_rules(t);
	struct name store_name;
	struct stat st;
	errint_t err;

	lock_take(&dir->lock);
	err = entry_check_free(&rules, dirfd, is_root(dir), r->name);
	if (!err)
		err = entry_new_name(&rules, dirfd, is_root(dir), r->name, false,
		                     &store_name);
	if (!err)
		err = make_entry(r, dirfd, store_name.s);
	lock_drop(&dir->lock);
	if (err)
		return err;
	err = resolve_name(t, dir, r->name, ret, &st);
	if (err && err != -ENOENT)
		(void)sys_unlinkat(dirfd, store_name.s,
		                   S_ISDIR(r->mode) ? AT_REMOVEDIR : 0);
	return err == -ENOENT ? -ESTALE : err;
}

static enum run_end run_make(struct request *r)
{
	struct mount *m = r->m;
	struct node *dir = tree_get(m->tree, r->ino), *n = NULL;
	struct stat attr;
	struct dirfd *pin;
	enum run_end end;
	errint_t err;
	int dirfd;

	if (!dir)
		return reply_errno(r, -ESTALE);
	rmlock_rd(&m->tree->ns);
	err = S_ISDIR(dir->type) ? node_open_dir(m->tree, dir, &dirfd, &pin) : -ENOTDIR;
	if (!err) {
		err = make_in(r, dir, dirfd, &n);
		dirfd_release(m->tree, pin);
	}
	rmlock_drop(&m->tree->ns);
	if (!err)
		err = stale_if_gone(attr_get(r, n, &attr, NULL));
	end = err ? reply_error(r, dir, err, NULL) : reply_entry(r, n, &attr);
	node_unref(m->tree, n);
	node_unref(m->tree, dir);
	return end;
}

static void dispatch_make(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                          dev_t rdev, const char *target)
{
	struct request r = request_init(req, S_ISREG(mode) ? run_mknod_regular : run_make);

	r.ino = parent;
	r.name = name;
	r.name2 = target;
	r.mode = mode;
	r.rdev = rdev;
	r.flags = O_EXCL;
	request_dispatch(&r, RUN_STORE);
}

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	dispatch_make(req, parent, name, mode & S_IFMT ? mode : mode | S_IFREG, rdev, NULL);
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	dispatch_make(req, parent, name, (mode & 07777) | S_IFDIR, 0, NULL);
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	dispatch_make(req, parent, name, S_IFLNK | 0777, 0, target);
}

/* ---- readlink ---- */

static enum run_end run_readlink(struct request *r)
{
	struct tree *t = r->m->tree;
	struct node *n = tree_get(t, r->ino);
	char target[PATH_MAX + 1];
	ssize_t len = -ESTALE;
	int fd = -ESTALE;

	if (n) {
		rmlock_rd(&t->ns);
		lock_take(&n->lock);
		fd = stale_if_gone(node_path_fd(r->m, n));
		lock_drop(&n->lock);
		rmlock_drop(&t->ns);
	}
	if (fd >= 0) {
		len = sys_readlinkat(fd, "", target, sizeof(target) - 1);
		(void)sys_close(fd);
	} else {
		len = fd;
	}
	node_unref(t, n);
	if (len < 0)
		return reply_errno(r, (errint_t)len);
	target[len] = '\0';
	lock_assert_none();
	(void)fuse_reply_readlink(r->req, target);
	return RUN_DONE;
}

void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct request r = request_init(req, run_readlink);

	r.ino = ino;
	request_dispatch(&r, RUN_STORE);
}

/* ---- link ---- */

static errint_t link_in_store(struct mount *m, struct node *n, int dirfd,
                              const char *store_name)
{
	struct place at;
	errint_t err = node_place(m->tree, n, &at);

	if (!err) {
		err = sys_linkat(at.dirfd, at.store_name.s, dirfd, store_name, 0);
		place_release(m->tree, &at);
	} else if (err == -ENOENT && n->dead_fd >= 0) {
		/* Other links remain that nobody has looked up. */
		err = sys_linkat(AT_FDCWD, fd_path(n->dead_fd).s, dirfd, store_name,
		                 AT_SYMLINK_FOLLOW);
	}
	return err;
}

/* -EAGAIN: n is plain and must be ingested first. Under ns and both locks. */
static errint_t link_locked(const struct request *r, struct node *n, struct node *dir,
                            int dirfd)
{
	struct tree *t = r->m->tree;
	struct entry_rules rules = resolve_rules(t);
	bool regular = S_ISREG(n->type);
	struct name store_name;
	errint_t err;

	err = entry_check_free(&rules, dirfd, is_root(dir), r->name);
	if (err)
		return err;
	if (regular && n->plain) {
		if (name_has_suffix(r->name))
			return -EAGAIN;
		memcpy(store_name.s, r->name, strlen(r->name) + 1);
	} else {
		err = entry_new_name(&rules, dirfd, is_root(dir), r->name, regular,
		                     &store_name);
	}
	if (!err)
		err = link_in_store(r->m, n, dirfd, store_name.s);
	if (err)
		return err;
	step("link.done");
	node_add_name(t, n, dir, store_name.s);
	if (regular)
		pool_meta_changed(n);
	return 0;
}

static errint_t link_once(const struct request *r, struct node *n, struct node *dir)
{
	struct tree *t = r->m->tree;
	struct dirfd *pin;
	errint_t err;
	int dirfd;

	if (!S_ISDIR(dir->type))
		return -ENOTDIR;
	rmlock_rd(&t->ns);
	err = node_open_dir(t, dir, &dirfd, &pin);
	if (!err) {
		node_lock_pair(dir, n);
		err = link_locked(r, n, dir, dirfd);
		node_unlock_pair(dir, n);
		dirfd_release(t, pin);
	}
	rmlock_drop(&t->ns);
	return err;
}

static errint_t link_node(const struct request *r, struct node *n, struct node *dir)
{
	errint_t err;

	if (S_ISDIR(n->type))
		return -EPERM;
	err = link_once(r, n, dir);
	if (err == -EAGAIN && r->may_wait) {
		err = ingest(r->m, n);
		if (!err)
			err = link_once(r, n, dir);
	}
	if (!err)
		pool_renamed(r->m->pool, n);
	return err;
}

static enum run_end run_link(struct request *r)
{
	struct tree *t = r->m->tree;
	struct node *n = tree_get(t, r->ino), *dir = tree_get(t, r->ino2);
	enum run_end end;
	struct stat attr;
	errint_t err = -ESTALE;

	if (n && dir)
		err = link_node(r, n, dir);
	if (err == -EAGAIN && !r->may_wait) {
		end = RUN_MUST_WAIT;
	} else {
		if (!err)
			err = stale_if_gone(attr_get(r, n, &attr, NULL));
		end = err ? reply_error(r, n, err, NULL) : reply_entry(r, n, &attr);
	}
	node_unref(t, n);
	node_unref(t, dir);
	return end;
}

void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
	struct request r = request_init(req, run_link);

	r.ino = ino;
	r.ino2 = new_parent;
	r.name = new_name;
	request_dispatch(&r, RUN_STORE);
}
