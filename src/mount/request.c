/*
 * Requests: dispatch, replies, attributes, identity of the caller. See request.h.
 *
 * Life of a queued request:
 *
 *   QUEUED --worker begins--> BEGUN --request_claim()--> CLAIMED, answered by the worker
 *      \                        |
 *       \--caller is dying------+--caller is dying, abandonable--> CANCELLED, answered EINTR
 *
 * Whoever moves the state to CLAIMED or CANCELLED answers. (What is not abandonable needs no
 * claim: once begun nobody else answers it.) The worker frees the memory in all cases; the
 * interrupt callback touches it only before its move, and the worker unregisters the callback,
 * which waits for one that is running, before it answers. The watcher moves the state and
 * takes the request off its list under m->lock, and touches only libfuse's part afterwards.
 *
 * A process in OPEN ignores even SIGKILL until the reply, so dying callers are let go; a
 * signal that the caller catches must not fail its open or read, as on any local
 * filesystem.
 *
 * Threads: everything here may be called from any loop or worker thread.
 */
#include <linux/securebits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/counters.h"
#include "base/text.h"
#include "mount/request.h"

#include "utlist.h"

/* ---- the caller's identity ---- */

static __thread bool own_umask;

/* Only where a thread cannot have a umask of its own (a sandbox refuses unshare(2)). */
static pthread_mutex_t shared_umask = PTHREAD_MUTEX_INITIALIZER;

/* Per thread, once: an own umask, and capabilities that stay when the fsuid changes. */
static void creds_prepare_thread(const struct mount *m)
{
	static __thread bool prepared;
	static _Atomic bool warned;
	int bits;

	if (prepared)
		return;
	prepared = true;
	own_umask = unshare(CLONE_FS) == 0;
	if (own_umask)
		(void)umask(0);
	if (!m->privileged)
		return;
	bits = prctl(PR_GET_SECUREBITS);
	if ((bits < 0 || prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) != 0) &&
	    !atomic_exchange(&warned, true))
		log_warn(
		    "PR_SET_SECUREBITS: %s; users may be refused to create files where "
		    "only a supplementary group lets them",
		    strerror(errno));
}

static bool is_another(const struct request *r)
{
	return r->m->privileged && (r->uid != r->m->uid || r->gid != r->m->gid);
}

/* Of this thread only, which is what the system calls mean (and not their wrappers'
 * namesakes). */
static void set_fs_ids(uid_t uid, gid_t gid)
{
	(void)syscall(SYS_setfsgid, gid);
	(void)syscall(SYS_setfsuid, uid);
}

void creds_enter(const struct request *r)
{
	creds_prepare_thread(r->m);
	if (!own_umask)
		INVARIANT(pthread_mutex_lock(&shared_umask) == 0);
	(void)umask(r->umask & 07777);
	if (is_another(r))
		set_fs_ids(r->uid, r->gid);
}

void creds_leave(const struct request *r)
{
	if (is_another(r))
		set_fs_ids(r->m->uid, r->m->gid);
	(void)umask(0);
	if (!own_umask)
		INVARIANT(pthread_mutex_unlock(&shared_umask) == 0);
}

/* ---- dying callers ---- */

static bool status_mask(const char *status, const char *key, uint64_t *ret)
{
	const char *line = strstr(status, key);

	if (!line)
		return false;
	*ret = strtoull(line + strlen(key), NULL, 16);
	return true;
}

#define SIGNAL_BIT(n) (1ULL << ((n)-1))

/* Whether thread `pid` has a signal pending that ends it. */
static bool caller_is_dying(pid_t pid)
{
	const uint64_t harmless = SIGNAL_BIT(SIGCHLD) | SIGNAL_BIT(SIGCONT) |
	                          SIGNAL_BIT(SIGSTOP) | SIGNAL_BIT(SIGTSTP) |
	                          SIGNAL_BIT(SIGTTIN) | SIGNAL_BIT(SIGTTOU) |
	                          SIGNAL_BIT(SIGURG) | SIGNAL_BIT(SIGWINCH);
	uint64_t own, shared, blocked, ignored, caught;
	char path[48], text[8192];
	ssize_t n;
	int fd;

	if (pid <= 0)
		return false; /* of another pid namespace */
	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	(void)close(fd);
	if (n <= 0)
		return false;
	text[n] = '\0';
	if (!status_mask(text, "\nSigPnd:", &own) ||
	    !status_mask(text, "\nShdPnd:", &shared) ||
	    !status_mask(text, "\nSigBlk:", &blocked) ||
	    !status_mask(text, "\nSigIgn:", &ignored) ||
	    !status_mask(text, "\nSigCgt:", &caught))
		return false;
	return ((own | shared) & ~blocked & ~ignored & ~caught & ~harmless) != 0;
}

/* ---- dispatch ---- */

enum queued_state { QUEUED, BEGUN, CLAIMED, CANCELLED };

#define WATCH_MS 100

struct queued {
	struct request r;
	_Atomic int state;
	bool interrupted; /* while it was being queued */
	bool watched;     /* under m->lock; so are the two below */
	struct queued *prev, *next;
	void *data; /* owned copies of what r points to */
	char names[];
};

/* libfuse calls the interrupt function from inside fuse_req_interrupt_func() when the
 * interrupt came first. There a reply would free the request under its caller's feet: it
 * is left to the watcher. */
static __thread bool registering;

/* Takes the right to answer from the worker, where that may be. */
static bool cancel(struct queued *q)
{
	int expected = QUEUED;

	if (atomic_compare_exchange_strong(&q->state, &expected, CANCELLED))
		return true;
	expected = BEGUN;
	return q->r.claim &&
	       atomic_compare_exchange_strong(&q->state, &expected, CANCELLED);
}

/* One round of the watcher: answers for one caller who is dying by now. m->lock held, which is
 * given up for the answer. False: there is none. */
static bool watch_once(struct mount *m)
{
	struct queued *q;

	DL_FOREACH (m->watched, q) {
		fuse_req_t req = q->r.req;

		if (!caller_is_dying(q->r.pid) || !cancel(q))
			continue;
		DL_DELETE(m->watched, q);
		q->watched = false;
		lock_drop(&m->lock);
		(void)fuse_reply_err(req, EINTR);
		lock_take(&m->lock);
		return true;
	}
	return false;
}

static void *watcher_main(void *arg)
{
	struct mount *m = arg;

	lock_take(&m->lock);
	while (m->watching) {
		if (!m->watched)
			lock_wait(&m->lock, &m->changed);
		else if (!watch_once(m))
			(void)lock_wait_ms(&m->lock, &m->changed, WATCH_MS);
	}
	lock_drop(&m->lock);
	return NULL;
}

static void watch(struct queued *q)
{
	struct mount *m = q->r.m;

	lock_take(&m->lock);
	if (!m->watching && !m->ended)
		m->watching = thread_start(&m->watcher, "watcher", watcher_main, m) == 0;
	if (m->watching && !q->watched) {
		DL_APPEND(m->watched, q);
		q->watched = true;
		pthread_cond_broadcast(&m->changed);
	}
	lock_drop(&m->lock);
}

static void unwatch(struct queued *q)
{
	struct mount *m = q->r.m;

	lock_take(&m->lock);
	if (q->watched)
		DL_DELETE(m->watched, q);
	q->watched = false;
	lock_drop(&m->lock);
}

void requests_stop(struct mount *m)
{
	bool watching;

	lock_take(&m->lock);
	watching = m->watching;
	m->watching = false;
	pthread_cond_broadcast(&m->changed);
	lock_drop(&m->lock);
	if (watching)
		(void)pthread_join(m->watcher, NULL);
}

static void on_interrupt(fuse_req_t req, void *arg)
{
	struct queued *q = arg;

	if (registering) {
		q->interrupted = true;
		return;
	}
	if (!caller_is_dying(q->r.pid))
		watch(q); /* no other interrupt will come */
	else if (cancel(q))
		(void)fuse_reply_err(req, EINTR);
}

static void queued_free(struct queued *q)
{
	unwatch(q);
	free(q->data);
	free(q);
}

/* Copies what r points to; -ENOMEM, -EIO (a write's data could not be read). */
static errint_t copy_arguments(struct queued *q, const struct request *r)
{
	size_t len = r->name ? strlen(r->name) + 1 : 0;

	if (r->name)
		q->r.name = memcpy(q->names, r->name, len);
	if (r->name2)
		q->r.name2 = memcpy(q->names + len, r->name2, strlen(r->name2) + 1);
	if (!r->data && !r->buf)
		return 0;
	q->data = malloc(MAX_OF(r->size, (size_t)1));
	if (!q->data)
		return -ENOMEM;
	if (r->buf) {
		struct fuse_bufvec to = FUSE_BUFVEC_INIT(r->size);
		ssize_t n;

		to.buf[0].mem = q->data;
		n = fuse_buf_copy(&to, r->buf, 0);
		if (n != (ssize_t)r->size)
			return n < 0 ? (errint_t)n : -EIO;
		q->r.buf = NULL;
	} else {
		memcpy(q->data, r->data, r->size);
	}
	q->r.data = q->data;
	return 0;
}

static struct queued *queued_new(const struct request *r, errint_t *ret_err)
{
	size_t names =
	    (r->name ? strlen(r->name) + 1 : 0) + (r->name2 ? strlen(r->name2) + 1 : 0);
	struct queued *q = malloc(sizeof(*q) + names);

	*ret_err = -ENOMEM;
	if (!q)
		return NULL;
	q->r = *r;
	q->data = NULL;
	q->watched = false;
	q->r.claim = NULL;
	atomic_init(&q->state, QUEUED);
	*ret_err = copy_arguments(q, r);
	if (*ret_err) {
		queued_free(q);
		return NULL;
	}
	return q;
}

static void queued_run(void *arg);

static void queue(struct queued *q, enum run_class class)
{
	struct mount *m = q->r.m;

	q->r.may_wait = class == RUN_WAIT;
	q->r.claim = q->r.may_wait && q->r.abandonable ? &q->state : NULL;
	atomic_store(&q->state, QUEUED);
	count_one(COUNTER_REQUESTS_QUEUED);
	q->interrupted = false;
	registering = true;
	fuse_req_interrupt_func(q->r.req, on_interrupt, q);
	registering = false;
	if (q->interrupted)
		watch(q);
	workers_queue(class == RUN_WAIT   ? m->wait_workers
	              : class == RUN_POOL ? m->pool_workers
	                                  : m->store_workers,
	              queued_run, q);
}

/* Asked between two pieces of long work, too (base/cancel.h). */
static bool caller_is_gone(void *arg)
{
	const struct queued *q = arg;

	if (q->r.claim) /* libfuse's part may be gone */
		return atomic_load(&q->state) == CANCELLED;
	return fuse_req_interrupted(q->r.req) && caller_is_dying(q->r.pid);
}

static void queued_run(void *arg)
{
	struct queued *q = arg;
	int expected = QUEUED;
	enum run_end end;

	if (!atomic_compare_exchange_strong(&q->state, &expected, BEGUN)) {
		queued_free(q);
		return;
	}
	if (!q->r.claim) {
		/* The watcher may not find it begun either. */
		fuse_req_interrupt_func(q->r.req, NULL, NULL);
		unwatch(q);
	}
	if (!q->r.claim && caller_is_gone(q)) {
		(void)reply_errno(&q->r, -EINTR);
		queued_free(q);
		return;
	}
	cancel_set(caller_is_gone, q);
	end = q->r.run(&q->r);
	cancel_set(NULL, NULL);
	if (end == RUN_MUST_WAIT) {
		INVARIANT(!q->r.may_wait);
		queue(q, RUN_WAIT);
		return;
	}
	queued_free(q);
}

static void copy_and_queue(const struct request *r, enum run_class class)
{
	errint_t err;
	struct queued *q = queued_new(r, &err);

	if (q)
		queue(q, class);
	else
		(void)reply_errno(r, err);
}

struct request request_init(fuse_req_t req, run_fn run)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	struct request r = {
	    .req = req,
	    .m = fuse_req_userdata(req),
	    .run = run,
	    .uid = ctx->uid,
	    .gid = ctx->gid,
	    .pid = ctx->pid,
	    .umask = ctx->umask,
	};

	count_one(COUNTER_REQUESTS);
	return r;
}

bool request_claim(const struct request *r)
{
	int expected = BEGUN;

	if (!r->claim)
		return true;
	if (!atomic_compare_exchange_strong(r->claim, &expected, CLAIMED))
		return false;
	fuse_req_interrupt_func(r->req, NULL, NULL);
	return true;
}

/* Whether the request may run on this loop thread. */
static bool take_loop_thread(struct mount *m, enum run_class class)
{
	if (class == RUN_INLINE)
		return true;
	if (class == RUN_WAIT)
		return false;
	if (class == RUN_STORE && atomic_fetch_add(&m->inline_now, 1) >= INLINE_MAX) {
		atomic_fetch_sub(&m->inline_now, 1);
		return false;
	}
	if (atomic_fetch_add(&m->inline_all, 1) < LOOP_THREADS - 1)
		return true;
	atomic_fetch_sub(&m->inline_all, 1);
	if (class == RUN_STORE)
		atomic_fetch_sub(&m->inline_now, 1);
	return false;
}

static void give_loop_thread(struct mount *m, enum run_class class)
{
	if (class == RUN_STORE)
		atomic_fetch_sub(&m->inline_now, 1);
	if (class == RUN_STORE || class == RUN_POOL)
		atomic_fetch_sub(&m->inline_all, 1);
}

void request_dispatch(struct request *r, enum run_class class)
{
	struct mount *m = r->m;
	enum run_end end;

	if (!take_loop_thread(m, class)) {
		copy_and_queue(r, class);
		return;
	}
	end = r->run(r);
	give_loop_thread(m, class);
	if (end == RUN_MUST_WAIT)
		copy_and_queue(r, RUN_WAIT);
}

/* ---- replies ---- */

enum run_end reply_errno(const struct request *r, errint_t err)
{
	lock_assert_none();
	if (request_claim(r))
		(void)fuse_reply_err(r->req, -err);
	return RUN_DONE;
}

enum run_end reply_error(const struct request *r, struct node *n, errint_t err, char *cause)
{
	if (err == -EUCLEAN && cause) {
		cleanup_free char *path = n ? node_path(r->m->tree, n) : NULL;
		cleanup_free char *shown = text_escape(path ? path : "?");

		log_err("\"%s\": %s; answered with an input/output error", shown, cause);
	}
	free(cause);
	/* -ENODATA is a file that is shorter than it says. */
	if (err == -EUCLEAN || err == -ENODATA)
		err = -EIO;
	return reply_errno(r, err);
}

void lookup_count(struct mount *m, struct node *n)
{
	if (n->ino != TREE_ROOT_INO)
		node_add_lookup(m->tree, n);
}

void lookup_undo(struct mount *m, uint64_t ino)
{
	if (ino != TREE_ROOT_INO)
		node_forget(m->tree, ino, 1);
}

/* After a write that it made by itself the kernel asks anew; a store through a mapping it does not
 * notice. */
double attr_timeout(const struct mount *m, struct node *n)
{
	return atomic_load(&n->unseen_mapped) ? 0 : m->timeout_s;
}

void fill_entry(const struct mount *m, struct node *n, const struct stat *attr,
                struct fuse_entry_param *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->ino = n->ino;
	ret->generation = 1; /* numbers are never reused */
	ret->attr = *attr;
	ret->attr_timeout = attr_timeout(m, n);
	ret->entry_timeout = m->timeout_s;
}

enum run_end reply_entry(const struct request *r, struct node *n, const struct stat *attr)
{
	struct fuse_entry_param e;

	lock_assert_none();
	if (!request_claim(r))
		return RUN_DONE;
	fill_entry(r->m, n, attr, &e);
	lookup_count(r->m, n);
	if (fuse_reply_entry(r->req, &e) != 0)
		lookup_undo(r->m, e.ino);
	return RUN_DONE;
}

/* ---- attributes ---- */

static bool info_matches(const struct node *n, const struct stat *st)
{
	return n->info_valid && n->info.stored_size == (uint64_t)st->st_size &&
	       n->info.stored_mtime.tv_sec == st->st_mtim.tv_sec &&
	       n->info.stored_mtime.tv_nsec == st->st_mtim.tv_nsec;
}

/* Brings n->info up to date with st. Where the inode has no name any more, what was known
 * must do. */
static errint_t refresh_info(struct mount *m, struct node *n, const struct stat *st,
                             char **cause)
{
	struct place at;
	errint_t err;

	if (info_matches(n, st))
		return 0;
	err = node_place(m->tree, n, &at);
	if (err)
		return err == -ENOENT && (n->dead_fd >= 0 || n->dead_st) ? 0 : err;
	err = resolve_info(m->tree, n, at.dirfd, at.store_name.s, st, cause);
	place_release(m->tree, &at);
	return err;
}

/* What the store says of n. The kernel believes that for long, but asks each time after it has
 * written to n by itself: then we remember it, as the kernel would, so that neither a slow store
 * nor three of its calls stand behind each fstat(). */
static errint_t seen_stat(struct mount *m, struct node *n, struct stat *ret)
{
	errint_t err;

	if (n->seen_st && atomic_load(&n->unseen)) {
		*ret = *n->seen_st;
		return 0;
	}
	err = resolve_stat(m->tree, n, ret);
	node_forget_seen(n);
	if (!err && atomic_load(&n->unseen) && !m->options->shared_store) {
		n->seen_st = xmalloc(sizeof(*n->seen_st));
		*n->seen_st = *ret;
	}
	return err;
}

errint_t attr_locked(struct mount *m, struct node *n, const struct stat *known,
                     struct stat *ret, char **cause)
{
	bool regular = S_ISREG(n->type), size_known = true;
	struct stat st;
	errint_t err = 0;

	lock_assert_held(&n->lock);
	if (known)
		st = *known;
	else
		err = seen_stat(m, n, &st);
	/* Taken away behind us: whoever has it open goes on, what is dirty will be made again. */
	if (err == -ENOENT && regular && pool_lone_attr(n, ret))
		return 0;
	if (!err && regular)
		err = refresh_info(m, n, &st, cause);
	if (err)
		return err;
	if (!regular || n->info_valid) {
		resolve_attr(n, &st, ret);
		size_known = !regular || n->info.logical_size != OBJECT_SIZE_UNKNOWN;
	} else {
		*ret = st;
		ret->st_ino = n->ino;
		ret->st_size = 0;
	}
	if (regular) {
		ret->st_size = size_known ? ret->st_size : -1;
		err = pool_overlay_attr(n, ret);
		if (!err && ret->st_size < 0)
			err = -EAGAIN;
	}
	return err;
}

/* A foreign object that cannot be decoded to its end has no size; it must still be there
 * to look at and to remove. Opening it says what is wrong. */
static bool size_is_unknowable(errint_t err)
{
	return err == -EUCLEAN || err == -EFBIG || err == -ENODATA || err == -EACCES;
}

errint_t attr_get(const struct request *r, struct node *n, struct stat *ret, char **cause)
{
	struct mount *m = r->m;
	errint_t err, size_err = 0;

	for (unsigned tries = 0;; tries++) {
		rmlock_rd(&m->tree->ns);
		lock_take(&n->lock);
		err = attr_locked(m, n, NULL, ret, cause);
		lock_drop(&n->lock);
		rmlock_drop(&m->tree->ns);
		if (err != -EAGAIN || !r->may_wait)
			return err;
		if (size_is_unknowable(size_err) || tries >= 10) {
			ret->st_size = 0;
			return 0;
		}
		size_err = resolve_size(m->tree, n, NULL);
		if (size_err && !size_is_unknowable(size_err))
			return size_err;
	}
}

int node_path_fd(struct mount *m, struct node *n)
{
	struct ident found;
	struct place at;
	errint_t err;
	int fd;

	lock_assert_held(&n->lock);
	err = node_place(m->tree, n, &at);
	if (err == -ENOENT && n->dead_fd >= 0) {
		fd = fcntl(n->dead_fd, F_DUPFD_CLOEXEC, 3);
		return fd < 0 ? -errno : fd;
	}
	if (err)
		return err;
	if (at.store_name.s[0])
		fd = sys_openat(at.dirfd, at.store_name.s, O_PATH | O_NOFOLLOW, 0);
	else /* the root, not by ".": its owner may have shut himself out of it */
		fd = sys_openat(AT_FDCWD, fd_path(at.dirfd).s, O_PATH, 0);
	place_release(m->tree, &at);
	/* Who may write in the store's directory may have put another inode there since: what was
	 * checked of one must not happen to the other. */
	if (fd >= 0 && n != m->tree->root) {
		err = ident_get(fd, "", &found);
		if (!err && !ident_equal(&found, &n->ident))
			err = -ENOENT;
		if (err) {
			(void)sys_close(fd);
			return err;
		}
	}
	return fd;
}

uint64_t parent_ino(struct mount *m, struct node *n)
{
	uint64_t ino = n->ino;

	rmlock_rd(&m->tree->lock);
	if (n->names && n->names->parent)
		ino = n->names->parent->ino;
	rmlock_drop(&m->tree->lock);
	return ino;
}

/* ---- what is open ---- */

void open_item_add(struct mount *m, struct open_item *i,
                   void (*close)(struct mount *m, struct open_item *i))
{
	i->close = close;
	lock_take(&m->lock);
	DL_APPEND(m->open_items, i);
	lock_drop(&m->lock);
}

void open_item_remove(struct mount *m, struct open_item *i)
{
	lock_take(&m->lock);
	DL_DELETE(m->open_items, i);
	lock_drop(&m->lock);
}

void open_items_close(struct mount *m)
{
	struct open_item *i;

	/* No request is under way any more: nobody else touches the list. */
	while ((i = m->open_items) != NULL)
		i->close(m, i);
}
