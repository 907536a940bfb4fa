/*
 * Directory entries on their way to be changed: found, locked, looked at once more; and
 * what becomes of an inode whose name goes.
 *
 * How each operation on names works: under tree->ns the names are resolved to nodes
 * (found_init); then directories and nodes are locked in the lock order (lock_nodes), and
 * the names are looked at once more (found_confirm): a flush or another request may have
 * been faster, then all of it begins anew. What is done to the store and what the table
 * knows change under the same locks. The pool is told after all locks are dropped, for it
 * takes them itself (departure_tell).
 *
 * Invariants:
 *  (N1) One store call makes a change visible wherever the forms of the names allow it;
 *       where they do not (a regular file takes the place of another type, or the other way
 *       round) the new entry is there before the old one goes, so a stop in between shows
 *       one of them, and the other one raw, under its store name; nothing is lost.
 *  (N2) A plain file that an object hides goes before that object's name does: it must not
 *       come to light under it.
 *  (N3) Before a name of an inode goes, what is needed to serve it without any is kept:
 *       dead_fd where a scratch lives or other links remain, else dead_st.
 *  (N4) A file whose bytes are only in the pool is made durable before it replaces another
 *       name (pool_sync_before_rename()).
 */
#ifndef CELLAR_MOUNT_FOUND_H
#define CELLAR_MOUNT_FOUND_H

#include "mount/request.h"

#define TRIES_MAX 100

struct found {
	struct node *dir; /* borrowed */
	const char *name;
	int dirfd;
	struct dirfd *pin;
	bool opened;
	struct node *node; /* referenced; NULL: nothing has the name */
	struct entry e;    /* true after found_confirm(), if node is set */
};

/* -ENOENT leaves f->node NULL; the rest is usable. The caller holds ns and no node lock,
 * and calls found_clear() whatever the result is. known: what memory knows of an object's name will
 * do, for found_confirm() looks at the store anyway; after its -EAGAIN it will not. */
errint_t found_init(struct mount *m, struct found *f, struct node *dir, const char *name,
                    bool known);
void found_clear(struct mount *m, struct found *f);
/* Under the locks of directory and node: is it still so? -EAGAIN if not. */
errint_t found_confirm(struct mount *m, struct found *f);

/* Takes the locks of v[0..n) in the lock order, each once; NULLs are left out. v is sorted,
 * the number of nodes that are left is returned. */
size_t lock_nodes(struct node **v, size_t n);
void unlock_nodes(struct node **v, size_t n);

/* (N2): removes the plain file that the object f hides, if there is one. */
errint_t remove_hidden(struct mount *m, const struct found *f);

/* (N3): a name that goes. */
struct departure {
	struct node *node; /* referenced from commit on; NULL: none */
	struct node *dir;  /* the same */
	bool last;         /* the inode's last link */
	int fd;            /* becomes dead_fd */
	struct stat *st;   /* becomes dead_st */
};

/* Before the store's change, under the locks; then, under the same locks, one of the two
 * others. */
void departure_prepare(struct mount *m, const struct found *f, struct departure *d);
void departure_cancel(struct mount *m, struct departure *d);
void departure_commit(struct mount *m, const struct found *f, struct departure *d);
/* Tells the pool and lets go; no lock held. */
void departure_tell(struct mount *m, struct departure *d);

/* Makes an object of a plain file whose new name must have one. -EXDEV where it may not
 * become one (several links, too long a name): mv(1) copies then. [waits]; no lock held. */
errint_t ingest(struct mount *m, struct node *n);

static inline bool is_root(const struct node *n)
{
	return n->ino == TREE_ROOT_INO;
}

#endif
