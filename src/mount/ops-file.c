/*
 * Files: create, open, read, write, sync, release.
 *
 * A handle counts once on its node in the pool (pool_open_file) from before the reply to
 * OPEN or CREATE until RELEASE, so the scratch and its descriptor stay while the kernel may
 * send reads and writes. All handles of a file use the one scratch.
 *
 * Reads are answered by splicing from the scratch (or from memory, where a file is not kept
 * in the pool: pool/reading.c), writes go into it between scratch_write_begin() and _end(). Pages are never moved out of the scratch
 * (FUSE_BUF_SPLICE_MOVE): its page cache is what the flusher reads.
 *
 * Creation (design, sections 5 and 7), an order that kill -9 needs: a number; a scratch
 * whose record says dirty and new; the object, by the store's own O_EXCL under the
 * directory's lock; the two joined. Whoever finds a 0-byte object after a crash finds its
 * record too. A name that is taken although the caller had no O_EXCL answers ESTALE: the
 * kernel looks it up and opens it with its permission checks, which CREATE would skip.
 *
 * O_DIRECT needs nothing: the kernel's own O_DIRECT path for FUSE knows no alignment.
 *
 * Threads: any loop or worker thread; a handle is constant while it lives.
 */
#include <string.h>
#include <unistd.h>

#include "base/steps.h"
#include "base/text.h"
#include "mount/passthrough.h"
#include "mount/request.h"
#include "store/attrs.h"

/* ---- handles ---- */

static void close_item(struct mount *m, struct open_item *i)
{
	handle_close(m, container_of(i, struct handle, item));
}

struct handle *handle_new(struct mount *m, struct node *n, unsigned pool_flags)
{
	struct handle *h = xcalloc(1, sizeof(*h));

	node_ref(m->tree, n);
	h->magic = HANDLE_MAGIC;
	h->node = n;
	h->pool_flags = pool_flags;
	h->backing_id = pool_backing_id(n);
	h->sync = (pool_flags & POOL_THROUGH) != 0;
	open_item_add(m, &h->item, close_item);
	return h;
}

void handle_close(struct mount *m, struct handle *h)
{
	INVARIANT(h->magic == HANDLE_MAGIC);
	open_item_remove(m, &h->item);
	if (pool_close_file(m->pool, h->node, h->pool_flags))
		mount_invalidate(m, h->node->ino);
	node_unref(m->tree, h->node);
	h->magic = 0;
	free(h);
}

void handle_fill(const struct mount *m, struct handle *h, struct fuse_file_info *fi)
{
	memset(fi, 0, sizeof(*fi));
	fi->fh = (uintptr_t)h;
	/* All changes come through this kernel, unless others change the store too. */
	fi->keep_cache = !m->options->shared_store && !atomic_load(&h->node->direct_once);
	fi->noflush = 1; /* close() has nothing to wait for */
}

static struct handle *handle_of(const struct fuse_file_info *fi)
{
	struct handle *h = fi ? (struct handle *)(uintptr_t)fi->fh : NULL;

	INVARIANT(!h || h->magic == HANDLE_MAGIC);
	return h;
}

static unsigned pool_flags_of(int open_flags)
{
	unsigned flags = POOL_KERNEL;

	if ((open_flags & O_ACCMODE) != O_WRONLY)
		flags |= POOL_READ;
	if ((open_flags & O_ACCMODE) != O_RDONLY)
		flags |= POOL_WRITE;
	if (open_flags & O_TRUNC)
		flags |= POOL_WRITE | POOL_TRUNC;
	/* A write must be durable before its reply: only the daemon sees to that. O_SYNC contains
	 * O_DSYNC. */
	if ((flags & POOL_WRITE) && (open_flags & O_DSYNC))
		flags |= POOL_THROUGH;
	/* What was appended is known then, and a flush need not look for it. */
	if ((flags & POOL_WRITE) && (open_flags & O_APPEND))
		flags |= POOL_RATHER_SEEN;
	return flags;
}

/* ---- create ---- */

struct creation {
	const struct request *r;
	struct node *dir;
	uint64_t ino;
	struct new_scratch *scratch; /* NULL once it is the node's */
	unsigned pool_flags;
	struct node *node; /* the result, referenced */
	struct stat attr;  /* of it */
	bool have_attr;
};

/* An object that was made a moment ago. */
static struct catalog_file new_object(uint64_t ino, const struct ident *ident,
                                      const struct stat *st)
{
	return (struct catalog_file){
	    .ident = *ident,
	    .ino = ino,
	    .type = S_IFREG,
	    .kind = OBJECT_EMPTY,
	    .stored_mtime = st->st_mtim,
	    .ctime = st->st_ctim,
	    .seen_ctime = st->st_ctim,
	    .mtime = st->st_mtim,
	};
}

/* The object exists as dirfd/store_name, open as fd: makes it known, with its scratch. */
static errint_t join_new(struct creation *c, int dirfd, const char *store_name, int fd)
{
	struct mount *m = c->r->m;
	struct catalog_file info;
	struct ident ident;
	struct stat st;
	struct node *n;
	errint_t err = sys_fstat(fd, &st);

	if (!err)
		err = ident_get(dirfd, store_name, &ident);
	if (err)
		return err;
	info = new_object(c->ino, &ident, &st);
	n = tree_adopt_entry(m->tree, c->dir, store_name, &info, true, false);
	if (n->ino != c->ino) {
		/* Somebody looked it up since and gave it another number. */
		err = -ESTALE;
	} else {
		lock_take(&n->lock);
		n->info = info; /* looked up since, it would know less */
		n->info_valid = true;
		n->plain = false;
		n->bare = true;
		catalog_file_put(m->tree->catalog, &info);
		err = pool_attach_new(m->pool, c->scratch, n, c->pool_flags);
		c->have_attr = !err && attr_locked(m, n, &st, &c->attr, NULL) == 0;
		lock_drop(&n->lock);
	}
	if (err) {
		catalog_file_delete(m->tree->catalog, &ident);
		node_remove_name(m->tree, n, c->dir, store_name);
		node_unref(m->tree, n);
		return err;
	}
	step("create.joined");
	c->scratch = NULL;
	c->node = n;
	return 0;
}

static errint_t taken(const struct request *r)
{
	return r->flags & O_EXCL ? -EEXIST : -ESTALE;
}

/* The object, open as fd, was made, its file could not be. Returns err; closes fd. */
static errint_t take_back(struct creation *c, int dirfd, const char *store_name, int fd,
                          errint_t err)
{
	errint_t r = sys_unlinkat(dirfd, store_name, 0);

	if (r < 0 && r != -ENOENT) {
		cleanup_free char *name = text_escape(store_name);

		log_err("\"%s\" could not be created (%s), and its empty object not be "
		        "removed (%s): it stays as an empty file",
		        name, strerror(-err), strerror(-r));
		pool_keep_new(c->r->m->pool, c->scratch, fd);
		c->scratch = NULL;
	} else {
		(void)sys_close(fd);
	}
	return err;
}

/* Under ns and the directory's lock. */
static errint_t create_in(struct creation *c, int dirfd)
{
	const struct request *r = c->r;
	struct entry_rules rules = resolve_rules(r->m->tree);
	bool root = c->dir->ino == TREE_ROOT_INO;
	struct name store_name;
	errint_t err;
	int fd;

	err = entry_check_free(&rules, dirfd, root, r->name);
	if (err == -EEXIST)
		return taken(r);
	if (!err)
		err = name_encode(r->name, true, &store_name);
	if (err)
		return err;
	creds_enter(r);
	fd = sys_openat(dirfd, store_name.s, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW,
	                r->mode & 07777);
	creds_leave(r);
	if (fd == -EEXIST) {
		/* What is shown under another name lies there, or it came just now. */
		err = entry_new_name(&rules, dirfd, root, r->name, true, &store_name);
		return err ? err : taken(r);
	}
	if (fd < 0)
		return fd;
	(void)attrs_mark_new(fd, &r->m->tree->pool);
	err = join_new(c, dirfd, store_name.s, fd);
	if (err)
		return take_back(c, dirfd, store_name.s, fd, err);
	(void)sys_close(fd);
	return 0;
}

static errint_t create_locked(struct creation *c)
{
	struct tree *t = c->r->m->tree;
	struct dirfd *pin;
	errint_t err;
	int dirfd;

	rmlock_rd(&t->ns);
	err = node_open_dir(t, c->dir, &dirfd, &pin);
	if (!err) {
		lock_take(&c->dir->lock);
		err = create_in(c, dirfd);
		lock_drop(&c->dir->lock);
		dirfd_release(t, pin);
	}
	rmlock_drop(&t->ns);
	return err;
}

/* The store path that the new scratch remembers until the object is there. */
static char *new_hint(struct tree *t, struct node *dir, const char *name)
{
	cleanup_free char *at = NULL;

	rmlock_rd(&t->ns);
	at = node_store_path(t, dir);
	rmlock_drop(&t->ns);
	return xasprintf("%s%s%s" NAMES_SUFFIX, at, at[0] ? "/" : "", name);
}

/* On success c->node is open in the pool with c->pool_flags. */
static errint_t create_regular(struct creation *c)
{
	const struct request *r = c->r;
	struct mount *m = r->m;
	cleanup_free char *hint = NULL;
	errint_t err;

	if (!S_ISDIR(c->dir->type))
		return -ENOTDIR;
	err = store_new_ino(m->tree->store, &c->ino);
	if (err)
		return err;
	hint = new_hint(m->tree, c->dir, r->name);
	err = pool_prepare_new(m->pool, c->ino, hint, &c->scratch);
	if (err)
		return err;
	err = create_locked(c);
	if (c->scratch)
		pool_abandon_new(m->pool, c->scratch);
	return err;
}

static enum run_end reply_create(const struct request *r, struct node *n,
                                 const struct stat *attr, struct handle *h)
{
	struct fuse_entry_param e;
	struct fuse_file_info fi;
	int err;

	lock_assert_none();
	fill_entry(r->m, n, attr, &e);
	lookup_count(r->m, n);
	if (h->backing_id > 0) {
		err = passthrough_reply_create(r->req, &e, (uintptr_t)h, h->backing_id,
		                               h->sync);
	} else {
		handle_fill(r->m, h, &fi);
		err = fuse_reply_create(r->req, &e, &fi);
	}
	if (err != 0) {
		handle_close(r->m, h);
		lookup_undo(r->m, e.ino);
	}
	return RUN_DONE;
}

static enum run_end run_create(struct request *r)
{
	struct mount *m = r->m;
	struct node *dir = tree_get(m->tree, r->ino);
	struct creation c = {.r = r, .dir = dir, .pool_flags = pool_flags_of(r->flags)};
	char *cause = NULL;
	struct handle *h;
	enum run_end end;
	errint_t err;

	if (!dir)
		return reply_errno(r, -ESTALE);
	err = create_regular(&c);
	if (err) {
		end = reply_error(r, dir, err, NULL);
		goto out;
	}
	h = handle_new(m, c.node, c.pool_flags);
	err = c.have_attr ? 0 : attr_get(r, c.node, &c.attr, &cause);
	if (!err) {
		end = reply_create(r, c.node, &c.attr, h);
	} else {
		handle_close(m, h);
		end = reply_error(r, c.node, stale_if_gone(err), steal_pointer(&cause));
	}
	free(cause);
	node_unref(m->tree, c.node);
out:
	node_unref(m->tree, dir);
	return end;
}

void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_create);

	r.ino = parent;
	r.name = name;
	r.mode = mode;
	r.flags = fi->flags;
	request_dispatch(&r, RUN_STORE);
}

enum run_end run_mknod_regular(struct request *r)
{
	struct mount *m = r->m;
	struct node *dir = tree_get(m->tree, r->ino);
	struct creation c = {.r = r, .dir = dir, .pool_flags = POOL_WRITE};
	char *cause = NULL;
	struct stat attr;
	enum run_end end;
	errint_t err;

	if (!dir)
		return reply_errno(r, -ESTALE);
	err = create_regular(&c);
	if (!err) {
		pool_close_file(m->pool, c.node, POOL_WRITE);
		err = stale_if_gone(attr_get(r, c.node, &attr, &cause));
	}
	if (err)
		end = reply_error(r, dir, err, steal_pointer(&cause));
	else
		end = reply_entry(r, c.node, &attr);
	free(cause);
	node_unref(m->tree, c.node);
	node_unref(m->tree, dir);
	return end;
}

/* ---- open and release ---- */

static errint_t open_node(const struct request *r, struct node *n, unsigned pool_flags)
{
	struct mount *m = r->m;
	errint_t err;

	if (!S_ISREG(n->type))
		return -EINVAL;
	err = r->may_wait ? pool_open_file(m->pool, n, pool_flags)
	                  : pool_open_file_nowait(m->pool, n, pool_flags);
	if (!err && (pool_flags & POOL_TRUNC) && r->uid != 0) {
		err = kill_privileges(m, n);
		if (err)
			pool_close_file(m->pool, n, pool_flags);
	}
	return err;
}

static int reply_open(const struct request *r, struct handle *h)
{
	struct fuse_file_info fi;

	lock_assert_none();
	if (!request_claim(r))
		return -EINTR; /* answered by the interrupt */
	if (h->backing_id == 0) {
		handle_fill(r->m, h, &fi);
		return fuse_reply_open(r->req, &fi);
	}
	/* What the kernel knows of the times will not be true any more once it is mapped and stored
	 * into: it must ask from before that on. Attributes only: that may be said while a request
	 * is held. */
	if ((h->pool_flags & POOL_WRITE) && (h->pool_flags & POOL_READ))
		mount_invalidate(r->m, h->node->ino);
	return passthrough_reply_open(r->req, (uintptr_t)h, h->backing_id, h->sync);
}

static enum run_end run_open(struct request *r)
{
	struct mount *m = r->m;
	struct node *n = tree_get(m->tree, r->ino);
	unsigned pool_flags = pool_flags_of(r->flags);
	struct handle *h;
	enum run_end end = RUN_DONE;
	errint_t err;

	if (!n)
		return reply_errno(r, -ESTALE);
	err = open_node(r, n, pool_flags);
	if (err == -EAGAIN && !r->may_wait) {
		end = RUN_MUST_WAIT;
	} else if (err) {
		end = reply_error(r, n, stale_if_gone(err), NULL);
	} else {
		h = handle_new(m, n, pool_flags);
		if (reply_open(r, h) != 0)
			handle_close(m, h);
	}
	node_unref(m->tree, n);
	return end;
}

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_open);

	r.ino = ino;
	r.flags = fi->flags;
	r.abandonable = true;
	request_dispatch(&r, RUN_STORE);
}

/* Nobody waits for the reply, and the pool does not wait either. */
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request r = request_init(req, NULL);

	handle_close(r.m, handle_of(fi));
	(void)reply_errno(&r, 0);
}

/* Only from kernels that do not know FOPEN_NOFLUSH. close() never fails: what cannot be
 * written back stays in the pool, and fsync says so. */
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request r = request_init(req, NULL);

	(void)reply_errno(&r, 0);
}

/* ---- read ---- */

/* Bytes in memory go as they are; those in the scratch are spliced. */
static void reply_view(const struct request *r, const struct read_view *v)
{
	struct fuse_bufvec buf = FUSE_BUFVEC_INIT(r->size);

	lock_assert_none();
	if (!request_claim(r))
		return;
	if (v->fd < 0) {
		(void)fuse_reply_iov(r->req, v->iov, (int)v->count);
		return;
	}
	buf.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK | FUSE_BUF_FD_RETRY;
	buf.buf[0].fd = v->fd;
	buf.buf[0].pos = (off_t)r->off;
	(void)fuse_reply_data(r->req, &buf, 0);
}

static enum run_end run_read(struct request *r)
{
	struct node *n = r->handle->node;
	struct read_view view;
	errint_t err = scratch_read(r->m->pool, n, r->off, r->size, r->may_wait, &view);

	if (err == -EAGAIN && !r->may_wait)
		return RUN_MUST_WAIT;
	if (err)
		return reply_error(r, n, err, NULL);
	reply_view(r, &view);
	scratch_read_end(r->m->pool, &view);
	return RUN_DONE;
}

void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
             struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_read);

	r.ino = ino;
	r.handle = handle_of(fi);
	r.size = size;
	r.off = (uint64_t)off;
	r.abandonable = true;
	request_dispatch(&r, RUN_POOL);
}

/* ---- write ---- */

static ssize_t write_memory(int fd, const char *data, size_t len, off_t off)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = sys_pwrite(fd, data + done, len - done, off + (off_t)done);

		if (n < 0)
			return done ? (ssize_t)done : n;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* The bytes written, or -errno if none were. */
static ssize_t write_data(const struct request *r, int fd)
{
	struct fuse_bufvec to = FUSE_BUFVEC_INIT(r->size);
	int err;

	if (r->data)
		return write_memory(fd, r->data, r->size, (off_t)r->off);
	if (!(r->buf->buf[0].flags & FUSE_BUF_IS_FD))
		return write_memory(fd, r->buf->buf[0].mem, r->size, (off_t)r->off);
	err = fault(CALL_fuse_write);
	if (err)
		return err;
	to.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK | FUSE_BUF_FD_RETRY;
	to.buf[0].fd = fd;
	to.buf[0].pos = (off_t)r->off;
	return fuse_buf_copy(&to, r->buf, 0);
}

static enum run_end run_write(struct request *r)
{
	struct pool *p = r->m->pool;
	struct node *n = r->handle->node;
	errint_t err = scratch_ready(n, r->off, r->size);
	ssize_t written;

	if (err == -EAGAIN && r->may_wait)
		err = scratch_hydrate(p, n, r->off, r->size);
	if (!err)
		err = scratch_write_begin(p, n, r->off, r->size, r->may_wait);
	if (err == -EAGAIN && !r->may_wait)
		return RUN_MUST_WAIT;
	if (err)
		return reply_error(r, n, err, NULL);
	written = write_data(r, scratch_fd(n));
	scratch_write_end(p, n, r->off, written);
	if (written < 0)
		return reply_error(r, n, (errint_t)written, NULL);
	if (r->handle->sync) {
		err = pool_fsync(p, n, true);
		if (err)
			return reply_error(r, n, err, NULL);
	}
	lock_assert_none();
	(void)fuse_reply_write(r->req, (size_t)written);
	return RUN_DONE;
}

void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *buf, off_t off,
                  struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_write);

	r.ino = ino;
	r.handle = handle_of(fi);
	r.buf = buf;
	r.size = fuse_buf_size(buf);
	r.off = (uint64_t)off;
	request_dispatch(&r, r.handle->sync ? RUN_WAIT : RUN_POOL);
}

/* ---- fsync, fallocate, lseek ---- */

static enum run_end run_fsync(struct request *r)
{
	struct node *n = r->handle->node;

	return reply_error(r, n, pool_fsync(r->m->pool, n, r->flags != 0), NULL);
}

void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_fsync);

	r.ino = ino;
	r.handle = handle_of(fi);
	r.flags = datasync;
	request_dispatch(&r, RUN_WAIT);
}

static enum run_end run_fallocate(struct request *r)
{
	struct node *n = r->handle->node;
	errint_t err = pool_fallocate(r->m->pool, n, r->flags, r->off, r->len);

	return reply_error(r, n, err, NULL);
}

void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                  struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_fallocate);

	r.ino = ino;
	r.handle = handle_of(fi);
	r.flags = mode;
	r.off = (uint64_t)off;
	r.len = (uint64_t)len;
	request_dispatch(&r, RUN_WAIT);
}

static enum run_end run_lseek(struct request *r)
{
	struct node *n = r->handle->node;
	off_t at =
	    pool_lseek(r->m->pool, n, (off_t)r->off, r->flags, r->handle->backing_id == 0);

	if (at < 0)
		return reply_error(r, n, (errint_t)at, NULL);
	lock_assert_none();
	(void)fuse_reply_lseek(r->req, at);
	return RUN_DONE;
}

void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
              struct fuse_file_info *fi)
{
	struct request r = request_init(req, run_lseek);

	r.ino = ino;
	r.handle = handle_of(fi);
	r.off = (uint64_t)off;
	r.flags = whence;
	request_dispatch(&r, RUN_STORE);
}
