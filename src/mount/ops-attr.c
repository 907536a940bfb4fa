/*
 * Look-ups and attributes.
 *
 * Where an attribute comes from: tree/resolve.c knows what the store tells, pool/ overlays
 * what a scratch knows better; request.c puts the two together (attr_locked). Changes go to
 * the store's inode, and for times also to the scratch; size goes to the pool.
 *
 * Clearing setuid and setgid: with FUSE_HANDLE_KILLPRIV_V2 the kernel leaves it to us. It
 * says so by a SETATTR that sets nothing (before a write or fallocate to a file that it
 * knows to have such bits) or by FATTR_KILL_SUIDGID (truncation); chown clears them in the
 * store's own kernel; O_TRUNC at open is ours alone (ops-file.c, kill_privileges()).
 *
 * Threads: any loop or worker thread; no state here.
 */
#include <string.h>
#include <unistd.h>

#include "mount/request.h"

/* ---- look-up ---- */

/* "." and ".." are asked for only by file handles of the mount (NFS, open_by_handle_at). */
static errint_t lookup_by_handle(const struct request *r, struct node *dir,
                                 struct node **ret, struct stat *attr, char **cause)
{
	struct mount *m = r->m;
	uint64_t ino = r->name[1] == '.' ? parent_ino(m, dir) : dir->ino;
	struct node *n = tree_get(m->tree, ino);
	errint_t err;

	if (!n)
		return -ESTALE;
	err = stale_if_gone(attr_get(r, n, attr, cause));
	if (err)
		node_unref(m->tree, n);
	else
		*ret = n;
	return err;
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

static errint_t lookup(const struct request *r, struct node *dir, struct node **ret,
                       struct stat *attr, char **cause)
{
	struct tree *t = r->m->tree;
	struct node *n = NULL;
	struct stat st;
	errint_t err;

	if (is_dots(r->name))
		return lookup_by_handle(r, dir, ret, attr, cause);
	rmlock_rd(&t->ns);
	err = resolve_name(t, dir, r->name, &n, &st);
	if (!err) {
		lock_take(&n->lock);
		/* With a scratch, a flush may have replaced the object since. */
		err = attr_locked(r->m, n, n->scratch ? NULL : &st, attr, cause);
		lock_drop(&n->lock);
	}
	rmlock_drop(&t->ns);
	if (err == -EAGAIN && r->may_wait)
		err = attr_get(r, n, attr, cause);
	if (err)
		node_unref(t, n);
	else
		*ret = n;
	return err;
}

static enum run_end run_lookup(struct request *r)
{
	struct tree *t = r->m->tree;
	struct node *dir = tree_get(t, r->ino), *n = NULL;
	char *cause = NULL;
	struct stat attr;
	enum run_end end;
	errint_t err;

	if (!dir)
		return reply_errno(r, -ESTALE);
	err = lookup(r, dir, &n, &attr, &cause);
	if (!err && !S_ISDIR(n->type))
		interest_note(&r->m->interest, r->pid);
	if (!err)
		end = reply_entry(r, n, &attr);
	else if (err == -EAGAIN && !r->may_wait)
		end = RUN_MUST_WAIT;
	else
		end = reply_error(r, dir, err, steal_pointer(&cause));
	free(cause);
	node_unref(t, n);
	node_unref(t, dir);
	return end;
}

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct request r = request_init(req, run_lookup);

	r.ino = parent;
	r.name = name;
	r.abandonable = true;
	request_dispatch(&r, RUN_STORE);
}

void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	struct request r = request_init(req, NULL);

	if (ino != TREE_ROOT_INO)
		node_forget(r.m->tree, ino, nlookup);
	fuse_reply_none(req);
}

void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	struct request r = request_init(req, NULL);

	for (size_t i = 0; i < count; i++) {
		if (forgets[i].ino != TREE_ROOT_INO)
			node_forget(r.m->tree, forgets[i].ino, forgets[i].nlookup);
	}
	fuse_reply_none(req);
}

/* ---- getattr ---- */

static enum run_end reply_attr(struct request *r, struct node *n)
{
	char *cause = NULL;
	struct stat attr;
	errint_t err = attr_get(r, n, &attr, &cause);

	if (err == -EAGAIN && !r->may_wait) {
		free(cause);
		return RUN_MUST_WAIT;
	}
	if (err)
		return reply_error(r, n, stale_if_gone(err), cause);
	free(cause);
	lock_assert_none();
	if (request_claim(r))
		(void)fuse_reply_attr(r->req, &attr, attr_timeout(r->m, n));
	return RUN_DONE;
}

static enum run_end run_getattr(struct request *r)
{
	struct node *n = tree_get(r->m->tree, r->ino);
	enum run_end end;

	if (!n)
		return reply_errno(r, -ESTALE);
	end = reply_attr(r, n);
	node_unref(r->m->tree, n);
	return end;
}

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_getattr);

	r.ino = ino;
	r.abandonable = true;
	request_dispatch(&r, RUN_STORE);
}

/* ---- setattr ---- */

#define KILL_SUIDGID FUSE_SET_ATTR_KILL_SUID /* FATTR_KILL_SUIDGID has the same bit */

#define SETS_TIMES                                                                         \
	(FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |             \
	 FUSE_SET_ATTR_MTIME_NOW)

static mode_t without_privileges(mode_t mode)
{
	mode &= ~(mode_t)S_ISUID;
	if (mode & S_IXGRP)
		mode &= ~(mode_t)S_ISGID;
	return mode;
}

static errint_t chmod_fd(int fd, mode_t mode)
{
	return chmod(fd_path(fd).s, mode & 07777) == 0 ? 0 : -errno;
}

static struct timespec time_to_set(int to_set, int set, int now, const struct timespec *t)
{
	struct timespec omit = {.tv_nsec = UTIME_OMIT}, ts_now = {.tv_nsec = UTIME_NOW};

	if (to_set & now)
		return ts_now;
	return to_set & set ? *t : omit;
}

static void times_to_set(const struct request *r, struct timespec ts[2])
{
	ts[0] = time_to_set(r->flags, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW,
	                    &r->attr.st_atim);
	ts[1] = time_to_set(r->flags, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW,
	                    &r->attr.st_mtim);
}

/* An inode that nothing but its number is left of. */
static void set_dead(const struct request *r, struct stat *st)
{
	struct timespec now, ts[2];

	(void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
	times_to_set(r, ts);
	if (r->flags & FUSE_SET_ATTR_UID)
		st->st_uid = r->attr.st_uid;
	if (r->flags & FUSE_SET_ATTR_GID)
		st->st_gid = r->attr.st_gid;
	if (r->flags & FUSE_SET_ATTR_MODE)
		st->st_mode = (st->st_mode & S_IFMT) | (r->attr.st_mode & 07777);
	if (ts[0].tv_nsec != UTIME_OMIT)
		st->st_atim = ts[0].tv_nsec == UTIME_NOW ? now : ts[0];
	if (ts[1].tv_nsec != UTIME_OMIT)
		st->st_mtim = ts[1].tv_nsec == UTIME_NOW ? now : ts[1];
	st->st_ctim = now;
}

/* Owner before mode: chown clears bits that mode may set again. before: of the inode. */
static errint_t set_owner_and_mode(const struct request *r, int fd,
                                   const struct stat *before)
{
	int owner = FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID;
	bool kill = r->flags == 0 || (r->flags & KILL_SUIDGID);
	errint_t err = 0;

	if (r->flags & owner)
		err = sys_fchownat(
		    fd, "", r->flags & FUSE_SET_ATTR_UID ? r->attr.st_uid : (uid_t)-1,
		    r->flags & FUSE_SET_ATTR_GID ? r->attr.st_gid : (gid_t)-1,
		    AT_EMPTY_PATH);
	if (!err && (r->flags & FUSE_SET_ATTR_MODE))
		err = chmod_fd(fd, r->attr.st_mode);
	else if (!err && kill && !(r->flags & owner) && S_ISREG(before->st_mode) &&
	         without_privileges(before->st_mode) != before->st_mode)
		err = chmod_fd(fd, without_privileges(before->st_mode));
	return err;
}

static errint_t set_times(const struct request *r, struct node *n, int fd)
{
	struct timespec ts[2];
	errint_t err;

	times_to_set(r, ts);
	err = sys_utimensat(fd, "", ts, AT_EMPTY_PATH);
	if (!err && S_ISREG(n->type))
		err = pool_set_times(n, ts);
	return err;
}

/* The object's bytes are the same: what is known of them holds for the new mtime, and
 * nobody need read its trailer again. */
static void keep_info(struct mount *m, struct node *n, const struct stat *before, int fd)
{
	struct stat st;

	if (!n->info_valid || n->info.stored_size != (uint64_t)before->st_size ||
	    n->info.stored_mtime.tv_sec != before->st_mtim.tv_sec ||
	    n->info.stored_mtime.tv_nsec != before->st_mtim.tv_nsec ||
	    sys_fstat(fd, &st) != 0 || st.st_size != before->st_size)
		return;
	n->info.stored_mtime = st.st_mtim;
	catalog_file_put(m->tree->catalog, &n->info);
}

static errint_t set_on_store(const struct request *r, struct node *n, int fd)
{
	struct stat before;
	errint_t err = sys_fstat(fd, &before);

	if (!err)
		err = set_owner_and_mode(r, fd, &before);
	if (!err && (r->flags & SETS_TIMES))
		err = set_times(r, n, fd);
	if (S_ISREG(n->type)) {
		if (r->flags & SETS_TIMES)
			keep_info(r->m, n, &before, fd);
		pool_meta_changed(n);
	}
	return err;
}

/* Everything but size. */
static errint_t set_metadata(const struct request *r, struct node *n)
{
	struct mount *m = r->m;
	errint_t err;
	int fd;

	rmlock_rd(&m->tree->ns);
	lock_take(&n->lock);
	fd = node_path_fd(m, n);
	if (fd >= 0) {
		err = set_on_store(r, n, fd);
		(void)sys_close(fd);
	} else if (fd == -ENOENT && n->dead_st) {
		set_dead(r, n->dead_st);
		err = 0;
	} else {
		err = stale_if_gone(fd);
	}
	lock_drop(&n->lock);
	rmlock_drop(&m->tree->ns);
	return err;
}

static errint_t set_size(const struct request *r, struct node *n)
{
	if (S_ISDIR(n->type))
		return -EISDIR;
	if (!S_ISREG(n->type))
		return -EINVAL;
	if (r->attr.st_size < 0)
		return -EFBIG;
	return pool_truncate(r->m->pool, n, (uint64_t)r->attr.st_size);
}

static enum run_end run_setattr(struct request *r)
{
	struct mount *m = r->m;
	struct node *n = tree_get(m->tree, r->ino);
	enum run_end end;
	errint_t err = 0;

	if (!n)
		return reply_errno(r, -ESTALE);
	if (r->flags & FUSE_SET_ATTR_SIZE) {
		err = set_size(r, n);
		r->flags &= ~FUSE_SET_ATTR_SIZE;
		if (!err && r->flags)
			err = set_metadata(r, n);
	} else {
		err = set_metadata(r, n);
	}
	if (err) {
		end = reply_error(r, n, stale_if_gone(err), NULL);
	} else {
		r->flags =
		    FUSE_SET_ATTR_CTIME; /* done, should it have to wait for the reply */
		end = reply_attr(r, n);
	}
	node_unref(m->tree, n);
	return end;
}

void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_setattr);

	r.ino = ino;
	r.attr = *attr;
	r.flags = to_set;
	request_dispatch(&r, to_set & FUSE_SET_ATTR_SIZE ? RUN_WAIT : RUN_STORE);
}

errint_t kill_privileges(struct mount *m, struct node *n)
{
	struct stat st;
	errint_t err;
	int fd;

	rmlock_rd(&m->tree->ns);
	lock_take(&n->lock);
	fd = node_path_fd(m, n);
	err = fd < 0 ? fd : sys_fstat(fd, &st);
	if (!err && without_privileges(st.st_mode) != st.st_mode) {
		err = chmod_fd(fd, without_privileges(st.st_mode));
		pool_meta_changed(n);
	}
	if (fd >= 0)
		(void)sys_close(fd);
	lock_drop(&n->lock);
	rmlock_drop(&m->tree->ns);
	return err;
}

/* ---- the whole ---- */

static enum run_end run_statfs(struct request *r)
{
	struct store *s = r->m->tree->store;
	struct statvfs out = {0};
	struct statfs st;
	errint_t err = sys_fstatfs(s->root_fd, &st);

	if (err)
		return reply_error(r, NULL, err, NULL);
	out.f_bsize = (unsigned long)st.f_bsize;
	out.f_frsize = (unsigned long)(st.f_frsize ? st.f_frsize : st.f_bsize);
	out.f_blocks = st.f_blocks;
	out.f_bfree = st.f_bfree;
	out.f_bavail = st.f_bavail;
	out.f_files = st.f_files;
	out.f_ffree = out.f_favail = st.f_ffree;
	out.f_namemax = s->name_max - NAMES_SUFFIX_LEN;
	lock_assert_none();
	(void)fuse_reply_statfs(r->req, &out);
	return RUN_DONE;
}

void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct request r = request_init(req, run_statfs);

	request_dispatch(&r, RUN_STORE);
}

/* default_permissions: the kernel checks by itself and, so answered, never asks again. */
void op_access(fuse_req_t req, fuse_ino_t ino, int mask)
{
	struct request r = request_init(req, NULL);

	(void)reply_errno(&r, -ENOSYS);
}
