/*
 * Extended attributes: those of the store's inode, through a /proc/self/fd path because it
 * may be of any type and is never opened (an O_PATH descriptor of a symbolic link names the
 * link itself).
 *
 * Names in user.cellar. are the daemon's: getxattr answers them from what it knows, nobody
 * sets, removes or lists them.
 *   user.cellar.state         cold, clean, dirty or flushing (regular files)
 *   user.cellar.ino           logical inode number
 *   user.cellar.stored_bytes  size of the object (regular files)
 *
 * Who may read and change what is checked by the kernel before it asks, but for listing
 * trusted.*, which only root sees.
 *
 * Threads: any loop or worker thread; no state here.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include "mount/request.h"

#define OURS       "user.cellar."
#define ACL_ACCESS "system.posix_acl_access"

static bool is_ours(const char *name)
{
	return strncmp(name, OURS, sizeof(OURS) - 1) == 0;
}

/* ---- answers ---- */

/* len < 0: -errno. size 0 asks for the length only. */
static enum run_end reply_value(const struct request *r, const char *value, ssize_t len)
{
	if (len < 0)
		return reply_errno(r, (errint_t)len);
	if (r->size && (size_t)len > r->size)
		return reply_errno(r, -ERANGE);
	lock_assert_none();
	if (r->size == 0)
		(void)fuse_reply_xattr(r->req, (size_t)len);
	else
		(void)fuse_reply_buf(r->req, value, (size_t)len);
	return RUN_DONE;
}

/* A descriptor as node_path_fd(), with the locks taken for a moment only: what is done
 * with it needs none. */
static int path_fd(struct mount *m, struct node *n)
{
	int fd;

	rmlock_rd(&m->tree->ns);
	lock_take(&n->lock);
	fd = node_path_fd(m, n);
	lock_drop(&n->lock);
	rmlock_drop(&m->tree->ns);
	return fd;
}

/* ---- get ---- */

static const char *state_word(struct mount *m, struct node *n)
{
	struct node_state s;

	pool_node_state(m->pool, n, &s);
	if (s.flushing)
		return "flushing";
	if (s.dirty)
		return "dirty";
	return s.warm ? "clean" : "cold";
}

static errint_t stored_bytes(struct mount *m, struct node *n, uint64_t *ret)
{
	struct stat st;
	errint_t err;

	rmlock_rd(&m->tree->ns);
	lock_take(&n->lock);
	err = resolve_stat(m->tree, n, &st);
	lock_drop(&n->lock);
	rmlock_drop(&m->tree->ns);
	*ret = err ? 0 : (uint64_t)st.st_size;
	return err;
}

static enum run_end reply_ours(const struct request *r, struct node *n)
{
	struct mount *m = r->m;
	const char *what = r->name + sizeof(OURS) - 1;
	char text[32];
	uint64_t bytes;
	errint_t err;

	if (strcmp(what, "ino") == 0) {
		(void)snprintf(text, sizeof(text), "%" PRIu64, n->ino);
	} else if (strcmp(what, "state") == 0 && S_ISREG(n->type)) {
		(void)snprintf(text, sizeof(text), "%s", state_word(m, n));
	} else if (strcmp(what, "stored_bytes") == 0 && S_ISREG(n->type)) {
		err = stored_bytes(m, n, &bytes);
		if (err)
			return reply_errno(r, stale_if_gone(err));
		(void)snprintf(text, sizeof(text), "%" PRIu64, bytes);
	} else {
		return reply_errno(r, -ENODATA);
	}
	return reply_value(r, text, (ssize_t)strlen(text));
}

/* The kernel asks at the first write to each file, and no directory hands it down to a new one. */
static bool lacks_capability(const struct request *r, struct node *n)
{
	bool bare;

	if (strcmp(r->name, "security.capability") != 0 || r->m->options->shared_store)
		return false;
	lock_take(&n->lock);
	bare = n->bare;
	lock_drop(&n->lock);
	return bare;
}

static enum run_end reply_stored(const struct request *r, struct node *n)
{
	char *value = r->size ? malloc(r->size) : NULL;
	int fd = path_fd(r->m, n);
	enum run_end end;
	ssize_t len;

	if (fd < 0) {
		end = reply_errno(r, stale_if_gone(fd));
	} else if (r->size && !value) {
		end = reply_errno(r, -ENOMEM);
	} else {
		len = getxattr(fd_path(fd).s, r->name, value, r->size);
		end = reply_value(r, value, len < 0 ? -errno : len);
	}
	if (fd >= 0)
		(void)sys_close(fd);
	free(value);
	return end;
}

static enum run_end run_getxattr(struct request *r)
{
	struct node *n = tree_get(r->m->tree, r->ino);
	enum run_end end;

	if (!n)
		return reply_errno(r, -ESTALE);
	if (is_ours(r->name))
		end = reply_ours(r, n);
	else if (lacks_capability(r, n))
		end = reply_errno(r, -ENODATA);
	else
		end = reply_stored(r, n);
	node_unref(r->m->tree, n);
	return end;
}

void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct request r = request_init(req, run_getxattr);

	r.ino = ino;
	r.name = name;
	r.size = size;
	request_dispatch(&r, RUN_STORE);
}

/* ---- list ---- */

static bool is_listed(const struct request *r, const char *name)
{
	if (is_ours(name))
		return false;
	return r->uid == 0 || strncmp(name, "trusted.", 8) != 0;
}

/* Takes out of names[0..len) what is not for the caller; the new length. */
static size_t filter_names(const struct request *r, char *names, size_t len)
{
	size_t kept = 0;

	for (size_t at = 0; at < len;) {
		size_t n = strnlen(names + at, len - at) + 1;

		n = MIN_OF(n, len - at);
		if (names[at + n - 1] == '\0' && is_listed(r, names + at)) {
			memmove(names + kept, names + at, n);
			kept += n;
		}
		at += n;
	}
	return kept;
}

static enum run_end run_listxattr(struct request *r)
{
	struct node *n = tree_get(r->m->tree, r->ino);
	char *names = malloc(XATTR_LIST_MAX);
	enum run_end end;
	ssize_t len;
	int fd;

	if (!n || !names) {
		end = reply_errno(r, n ? -ENOMEM : -ESTALE);
		goto out;
	}
	fd = path_fd(r->m, n);
	if (fd < 0) {
		end = reply_errno(r, stale_if_gone(fd));
		goto out;
	}
	len = listxattr(fd_path(fd).s, names, XATTR_LIST_MAX);
	if (len < 0)
		end = reply_errno(r, -errno);
	else
		end = reply_value(r, names, (ssize_t)filter_names(r, names, (size_t)len));
	(void)sys_close(fd);
out:
	free(names);
	node_unref(r->m->tree, n);
	return end;
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	struct request r = request_init(req, run_listxattr);

	r.ino = ino;
	r.size = size;
	request_dispatch(&r, RUN_STORE);
}

/* ---- set, remove ---- */

static bool in_group(const struct request *r, gid_t gid)
{
	gid_t groups[256];
	int n;

	if (r->gid == gid)
		return true;
	n = fuse_req_getgroups(r->req, (int)ARRAY_LEN(groups), groups);
	for (int i = 0; i < n && i < (int)ARRAY_LEN(groups); i++) {
		if (groups[i] == gid)
			return true;
	}
	return false;
}

/* An ACL may change the mode. The store's kernel would take setgid away from an owner who
 * is not of the group, as chmod does, but it sees root at work. */
static errint_t drop_setgid(const struct request *r, int fd)
{
	struct stat st;
	errint_t err = sys_fstat(fd, &st);

	if (err || !(st.st_mode & S_ISGID) || r->uid == 0 || in_group(r, st.st_gid))
		return err;
	return chmod(fd_path(fd).s, st.st_mode & 07777 & ~(mode_t)S_ISGID) == 0 ? 0
	                                                                        : -errno;
}

/* Without data: removes. Under ns and n->lock: a flush copies attributes under it, and must
 * see all of a change or nothing. */
static errint_t change_locked(const struct request *r, struct node *n)
{
	int fd = node_path_fd(r->m, n);
	errint_t err = 0;

	if (fd < 0)
		return stale_if_gone(fd);
	if (r->data) {
		n->bare = false;
		if (setxattr(fd_path(fd).s, r->name, r->data, r->size, r->flags) != 0)
			err = -errno;
		if (!err && strcmp(r->name, ACL_ACCESS) == 0)
			err = drop_setgid(r, fd);
	} else if (removexattr(fd_path(fd).s, r->name) != 0) {
		err = -errno;
	}
	(void)sys_close(fd);
	if (!err && S_ISREG(n->type))
		pool_meta_changed(n);
	return err;
}

static enum run_end run_change(struct request *r)
{
	struct mount *m = r->m;
	struct node *n = tree_get(m->tree, r->ino);
	errint_t err;

	if (!n)
		return reply_errno(r, -ESTALE);
	if (is_ours(r->name)) {
		err = -EPERM;
	} else {
		rmlock_rd(&m->tree->ns);
		lock_take(&n->lock);
		err = change_locked(r, n);
		lock_drop(&n->lock);
		rmlock_drop(&m->tree->ns);
	}
	node_unref(m->tree, n);
	return reply_errno(r, err);
}

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
                 size_t size, int flags)
{
	struct request r = request_init(req, run_change);

	r.ino = ino;
	r.name = name;
	r.data = value;
	r.size = size;
	r.flags = flags;
	request_dispatch(&r, RUN_STORE);
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	struct request r = request_init(req, run_change);

	r.ino = ino;
	r.name = name;
	request_dispatch(&r, RUN_STORE);
}
