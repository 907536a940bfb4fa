/*
 * Requests, and what the operations of this layer share.
 *
 * An operation (op_*) packs its arguments into a struct request on its stack and hands it
 * to request_dispatch() with a class:
 *
 *   RUN_INLINE  memory or page cache only: runs at once, on the loop thread
 *   RUN_STORE   touches the store's or the pool's disk: runs at once while fewer than
 *               INLINE_MAX such requests are on loop threads, so that a slow disk always
 *               leaves loop threads that answer; else on the `store` workers
 *   RUN_POOL    touches the pool's disk only: runs at once while one loop thread is left for
 *               others, else on the `pool` workers: however many requests wait for a slow
 *               store, bytes that are warm are read and written
 *   RUN_WAIT    may hydrate, sync, flush, or wait for a flusher: on the `wait` workers
 *
 * A run function answers the request exactly once and returns RUN_DONE, or does nothing
 * that cannot be done again and returns RUN_MUST_WAIT: then it runs once more on a `wait`
 * worker with may_wait set, and must answer there. A request that is queued owns copies of
 * its arguments.
 *
 * A queued request whose caller is being killed is answered EINTR: before it begins, and if it
 * is `abandonable` also while a `wait` worker is at it. Then that one's answer comes to
 * nothing: it asks request_claim() first. An interrupt comes once in the life of a request;
 * whose caller was not dying then is looked at again until he is (the watcher).
 *
 * No lock is held at a reply. A reply that the kernel does not take (the caller was
 * interrupted) undoes what the kernel would have counted: look-ups and handles.
 */
#ifndef CELLAR_MOUNT_REQUEST_H
#define CELLAR_MOUNT_REQUEST_H

#include <fuse_lowlevel.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "base/log.h"
#include "base/sysio.h"
#include "base/workers.h"
#include "mount/interest.h"
#include "mount/mount.h"
#include "tree/resolve.h"

#define LOOP_THREADS  16
#define INLINE_MAX    (LOOP_THREADS - 4)
#define STORE_WORKERS 8
#define POOL_WORKERS  8
#define WAIT_WORKERS  32

struct mount {
	/* constant after mount_start() */
	struct tree *tree;
	struct pool *pool;
	const struct options *options;
	char *mountpoint, *source;
	struct fuse_session *se;
	struct workers *store_workers, *pool_workers,
	    *wait_workers; /* until mount_run() ends */
	uid_t uid;         /* of the daemon */
	gid_t gid;
	bool privileged;  /* fsuid and fsgid can be the caller's */
	double timeout_s; /* of attributes and entries */
	char *refused;    /* passthrough=on and the kernel cannot; before the loop ends */
	int mount_id;     /* in /proc/self/mountinfo; -1 unknown */
	void (*ready)(void *ctx);
	void *ready_ctx;

	struct interest interest; /* in attributes of what is listed */

	_Atomic unsigned inline_now; /* RUN_STORE requests on loop threads */
	_Atomic unsigned inline_all; /* these and RUN_POOL ones */
	_Atomic bool ended;          /* no loop any more */

	struct lock lock; /* LOCK_LEAF */
	pthread_cond_t changed;
	/* under lock */
	bool looping, stopping;
	pthread_t looper;
	struct open_item *open_items;
	struct queued
	    *watched; /* requests whose caller was interrupted and is not dying yet */
	bool watching;
	pthread_t watcher;
};

/* What the kernel holds open, files and directories. umount does not deliver every RELEASE:
 * what is left at the end of the session is closed then (mount_run). */
struct open_item {
	struct open_item *prev, *next;
	void (*close)(struct mount *m, struct open_item *i);
};
void open_item_add(struct mount *m, struct open_item *i,
                   void (*close)(struct mount *m, struct open_item *i));
void open_item_remove(struct mount *m, struct open_item *i);
void open_items_close(struct mount *m);

enum run_class { RUN_INLINE, RUN_STORE, RUN_POOL, RUN_WAIT };
enum run_end { RUN_DONE, RUN_MUST_WAIT };

struct handle;
struct request;
typedef enum run_end (*run_fn)(struct request *r);

struct request {
	fuse_req_t req;
	struct mount *m;
	run_fn run;
	uid_t uid;
	gid_t gid;
	pid_t pid;
	mode_t umask;
	bool may_wait;    /* on a worker that may */
	bool abandonable; /* what it does may come to nothing once its caller dies */
	_Atomic int
	    *claim; /* of a queued one that may have been answered; see request_claim() */

	/* Arguments: which ones are set is each operation's business. */
	uint64_t ino, ino2;
	const char *name, *name2;
	const void *data;        /* size bytes */
	struct fuse_bufvec *buf; /* a write's data as it came; becomes `data` when queued */
	size_t size;
	uint64_t off, len;
	int flags;
	mode_t mode;
	dev_t rdev;
	struct stat attr;
	struct handle *handle; /* of an open file */
	struct dir_handle *dir_handle;
};

/* Counts the request and takes the caller from it. */
struct request request_init(fuse_req_t req, run_fn run);
void request_dispatch(struct request *r, enum run_class class);

/* Ends the watch for the caller's death. */
void requests_stop(struct mount *m);

/* Whether the request is still to be answered, by the caller of this; asked at most once, right
 * before fuse_reply_*(). What was counted for the answer is taken back if not. The reply_*()
 * below ask by themselves. */
bool request_claim(const struct request *r);

/* ---- replies; each returns RUN_DONE ---- */

/* Says err (0 or -errno) as it is. */
enum run_end reply_errno(const struct request *r, errint_t err);
/* Damage becomes EIO. With a cause (which is freed) it is logged under the name of n, which
 * may be NULL; without one whoever found it has said so. */
enum run_end reply_error(const struct request *r, struct node *n, errint_t err,
                         char *cause);
/* Counts a look-up of n, replies, undoes the count where the kernel did not take it. */
enum run_end reply_entry(const struct request *r, struct node *n, const struct stat *attr);

/* The same without a reply, for create and readdirplus. The root is never counted. */
void lookup_count(struct mount *m, struct node *n);
void lookup_undo(struct mount *m, uint64_t ino);
/* How long the kernel may believe attributes of n: not at all while it may be mapped and written. */
double attr_timeout(const struct mount *m, struct node *n);
void fill_entry(const struct mount *m, struct node *n, const struct stat *attr,
                struct fuse_entry_param *ret);

/* -ENOENT of something that was asked for by number means that it went behind us. */
static inline errint_t stale_if_gone(errint_t err)
{
	return err == -ENOENT ? -ESTALE : err;
}

/* ---- attributes ---- */

/* Logical attributes of n. known: what the store just said, or NULL to ask it. -EAGAIN:
 * the size of a foreign object must be learnt first (attr_get() does). The caller holds
 * tree->ns (any mode) and n->lock. */
errint_t attr_locked(struct mount *m, struct node *n, const struct stat *known,
                     struct stat *ret, char **cause);
/* The same with its own locking; -EAGAIN only where r may not wait. */
errint_t attr_get(const struct request *r, struct node *n, struct stat *ret, char **cause);
/* An O_PATH descriptor of the store's inode of n, for calls through fd_path(); -ENOENT when
 * there is none. The caller holds tree->ns and n->lock, and closes it. */
int node_path_fd(struct mount *m, struct node *n);
/* The number of the parent (its own for the root, or without a name). */
uint64_t parent_ino(struct mount *m, struct node *n);

/* ---- the caller's identity ---- */

/* What a new file takes from whoever makes it: fsuid, fsgid, umask. Short scopes around one
 * system call, always left again. Capabilities are kept: the kernel has checked the
 * caller's permissions (default_permissions). */
void creds_enter(const struct request *r);
void creds_leave(const struct request *r);

/* ---- open files (ops-file.c) ---- */

struct handle {
	struct open_item item;
	uint32_t magic;    /* HANDLE_MAGIC */
	struct node *node; /* referenced */
	unsigned pool_flags;
	/* How the kernel reaches the bytes, the same for all handles of an inode (pool/serve.c, V1). > 0:
	 * by itself (passthrough), under this id. 0: through the daemon, from the scratch, with the
	 * kernel's page cache in front. */
	int32_t backing_id;
	bool sync; /* O_SYNC or O_DSYNC for writing: a write is durable before its reply */
};
#define HANDLE_MAGIC 0x4a9d1e02U

/* For a node that was opened in the pool with pool_flags. */
struct handle *handle_new(struct mount *m, struct node *n, unsigned pool_flags);
/* Gives the pool's handle back too. */
void handle_close(struct mount *m, struct handle *h);
void handle_fill(const struct mount *m, struct handle *h, struct fuse_file_info *fi);

/* Clears what a change of content by others than root must clear (ops-attr.c): setuid, and
 * setgid where the group may execute. No lock held. */
errint_t kill_privileges(struct mount *m, struct node *n);

/* ---- operations ---- */

/* ops-attr.c */
void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi);
void op_statfs(fuse_req_t req, fuse_ino_t ino);
void op_access(fuse_req_t req, fuse_ino_t ino, int mask);

/* ops-dir.c */
void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                struct fuse_file_info *fi);
void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi);
void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

/* ops-file.c */
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi);
void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
             struct fuse_file_info *fi);
void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *buf, off_t off,
                  struct fuse_file_info *fi);
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
              struct fuse_file_info *fi);
void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                  struct fuse_file_info *fi);
/* mknod of a regular file: as create, without a handle. */
enum run_end run_mknod_regular(struct request *r);

/* ops-names.c */
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void op_readlink(fuse_req_t req, fuse_ino_t ino);
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
               const char *new_name, unsigned flags);
void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name);

/* ops-xattr.c */
void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
                 size_t size, int flags);
void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

#endif
