/*
 * The inode table: every inode that the kernel, the pool or a child still refers to.
 *
 * It is a layer of its own below pool/ (and not part of mount/, as the first design had it)
 * because recovery and the flushers need numbers and places without a mount.
 *
 * Three kinds of identifiers, and what can be derived from each:
 *   ino    logical number = FUSE node id = st_ino; never reused; finds the node (tree_get)
 *   ident  store inode (store/ident.h); changes when a flush replaces the object; finds the
 *          node (tree_find_ident) and the catalog's row
 *   name   (parent node, store name); a regular file has one per known hard link, a
 *          directory exactly one (the root none); leads to one node at most; finds the way
 *          to the object (node_place)
 *
 * A node lives while kernel lookups (nlookup) + references (refs: pool, control, threads)
 * + children > 0. tree_get/_adopt return a reference; node_unref() gives it back.
 *
 * Locks: names and table links under tree->lock (LOCK_TABLE, memory only; requests for what is
 * known only read). What node->lock guards is marked. tree->ns (LOCK_NAMESPACE) is read-held by whoever walks or
 * changes single names, write-held by renames of directories and exchanges: while it is
 * held in any mode, a path made from names stays true for directories.
 *
 * Names here and names in the store change together: who creates, links, renames, unlinks
 * or replaces something that is no directory holds the lock of each directory concerned,
 * and the node->lock of what is renamed, unlinked or replaced, from before the store's call
 * until node_add_name(), node_remove_name() and node_set_ident() are done. A thread that
 * finds store and names at odds takes these locks and looks again before it believes the
 * store; one that holds n->lock believes it at once.
 */
#ifndef CELLAR_TREE_NODE_H
#define CELLAR_TREE_NODE_H

#include <sys/stat.h>

#include "base/hashtab.h"
#include "base/lock.h"
#include "catalog/catalog.h"
#include "store/entry.h"
#include "store/store.h"

#define TREE_ROOT_INO 1

struct scratch; /* pool/ */
struct dirfd;   /* a cached descriptor of a directory, tree/dirfd.c */

struct node_name {
	struct node_name *next;
	struct node *node;
	struct hash_link by_name;
	struct node *parent; /* holds a child count there */
	char store_name[];
};

struct node {
	uint32_t magic; /* NODE_MAGIC */
	uint32_t type;  /* S_IFMT bits, constant */
	uint64_t ino;   /* constant */

	_Atomic uint64_t nlookup; /* these two: see (2) in node.c */
	_Atomic uint32_t refs;
	/* under tree->lock */
	uint32_t children;
	struct hash_link by_ino, by_ident;
	struct ident ident; /* written under node->lock and tree->lock; either reads */
	struct node_name *names;
	struct node *left; /* referenced: a directory where a file has lost a name */
	bool left_more;    /* and there are others */
	bool gone;         /* the inode's last link was removed */
	uint32_t left_gen; /* raised with the two */
	struct dirfd *dirfd;
	struct node *next_dead; /* on its way to be freed */
	bool listed;            /* in tree->by_ident */
	bool raw;               /* `plain` as it was resolved; for paths and probes */

	/* under node->lock */
	struct lock lock; /* LOCK_NODE */
	struct scratch
	    *scratch; /* regular files: the one scratch, or NULL (pool/ owns it) */
	struct catalog_file
	    info; /* what is known of the object; valid while st still matches */
	bool info_valid;
	bool in_place; /* the pool is writing into the object: `info` stays as it is */
	bool plain;    /* shown under its store name: ENTRY_PLAIN */
	bool bare;     /* made by us, and no extended attribute was set since */
	int dead_fd;   /* the object after its last name went while open, else -1 */
	struct stat *dead_st; /* attributes of an inode without names, else NULL */
	struct stat
	    *seen_st; /* the object's, while the kernel must ask each time; else NULL */
	_Atomic bool
	    direct_once; /* passthrough since it is known: the kernel's pages may be old */
	/* The kernel or a mapping may change it unseen; so that the kernel does not notice either.
	 * Read without the lock. */
	_Atomic bool unseen, unseen_mapped;
};
#define NODE_MAGIC 0x6e0de5a1U

struct tree {
	struct store *store;
	struct catalog *catalog;
	struct uuid pool;  /* cellar frames with this UUID are ours */
	bool keep_foreign; /* foreign_zst=keep */
	uint64_t max_object;
	struct rmlock ns;                  /* LOCK_NAMESPACE */
	struct rwlock listing[16];         /* LOCK_LISTING: listing.h */
	_Atomic uint64_t replacements[16]; /* odd while one is under way: (K2) */
	struct lock numbers; /* LOCK_NUMBERS: an identity that has no row gets one */
	struct rmlock lock;  /* LOCK_TABLE */
	struct hashtab by_ino, by_ident, by_name;
	struct node *root;
	/* called by resolve for each regular file that is met under a name it was not known by;
	 * ns and the directory's lock are held */
	void (*on_new)(void *ctx, struct node *n);
	void *on_new_ctx;
	_Atomic uint64_t freed; /* nodes, since tree_give_back() did */
	/* raised when a node is freed of which node_left() still said something, and whose inode goes on */
	_Atomic uint64_t left_forgotten;
	dev_t dev; /* st_dev of the root: what has another one is not entered */
	/* directory descriptor cache, under lock; see dirfd.c */
	struct dirfd *dirfd_newest, *dirfd_oldest;
	unsigned dirfd_count, dirfd_max;
};

errint_t tree_open(struct store *store, struct catalog *catalog, const struct uuid *pool,
                   bool keep_foreign, uint64_t max_object, struct tree **ret, char **cause);
void tree_close(struct tree *t);
uint64_t tree_count(struct tree *t); /* nodes in memory */
/* Gives memory back to the system where a large part of the nodes went. From time to time, by a thread
 * that nobody waits for; no lock held. */
void tree_give_back(struct tree *t);

/* The node of a number, referenced; NULL if not in the table (FUSE: ESTALE). */
struct node *tree_get(struct tree *t, uint64_t ino);
struct node *tree_find_ident(struct tree *t, const struct ident *ident);
/* The node that is known to have this name and that the kernel knows too, referenced, or NULL. No
 * look into the store: what was put there behind us is not noticed. */
struct node *tree_find_listed(struct tree *t, struct node *parent, const char *store_name);
void node_ref(struct tree *t, struct node *n);
void node_unref(struct tree *t, struct node *n);      /* NULL is fine */
void node_add_lookup(struct tree *t, struct node *n); /* one more for the kernel */
void node_forget(struct tree *t, uint64_t ino, uint64_t nlookup); /* FUSE FORGET */

/* Finds the node for (ident, ino) or inserts it, under one lock; adds the name if it is
 * new; takes a reference. A node already known under ident wins over ino. If ino belongs
 * to a node of another identity or type, that node is returned (node_is() tells), without
 * the name: the caller decides. Whoever held the name before loses it. The catalog gets a row if it
 * has none (no lock above LOCK_CATALOG may be held). */
struct node *tree_adopt(struct tree *t, struct node *parent, const char *store_name,
                        const struct ident *ident, uint64_t ino, uint32_t type);

/* The same for an inode of which more is known (info->ino: the number wanted), without the row: a node
 * that is inserted gets `info` and `plain` before anybody can see it. */
struct node *tree_adopt_entry(struct tree *t, struct node *parent, const char *store_name,
                              const struct catalog_file *info, bool info_valid, bool plain);

/* Whether n's identity is ident. */
bool node_is(struct tree *t, struct node *n, const struct ident *ident);

/* The object was replaced (flush) or created. Under node->lock. */
void node_set_ident(struct tree *t, struct node *n, const struct ident *ident);

/* Attributes of n's store inode change or have changed: what is remembered of them goes. Under
 * node->lock. */
void node_forget_seen(struct node *n);

void node_add_name(struct tree *t, struct node *n, struct node *parent,
                   const char *store_name);
void node_remove_name(struct tree *t, struct node *n, struct node *parent,
                      const char *store_name);
/* The last link of its inode was removed: what it left does not matter. */
void node_set_gone(struct tree *t, struct node *n);
bool node_has_names(struct tree *t, struct node *n);
/* A directory (referenced) where n, a file, has lost a name since node_left_done(), or NULL; *ret_more:
 * it is not the only one. *ret_gen is for node_left_done(), which says that all that was lost until
 * then is durably gone. A node that is freed takes it along: tree->left_forgotten. */
struct node *node_left(struct tree *t, struct node *n, bool *ret_more, uint32_t *ret_gen);
void node_left_done(struct tree *t, struct node *n, uint32_t gen);
/* Whether that was in other directories than dir. */
bool node_left_others(struct tree *t, struct node *n, const struct node *dir);
/* Whether n is dir or lies below it. */
bool node_is_below(struct tree *t, struct node *n, struct node *dir);

/* One way to an inode: its parent (referenced), the open directory, the name there. */
struct place {
	struct node *parent;
	int dirfd; /* borrowed from the cache: valid until place_release() */
	struct dirfd *pin;
	struct name store_name;
};
/* Any name of n that still leads to n's identity, asked of the store; names that do not are
 * dropped. -ENOENT when none is left. The caller holds tree->ns (any mode) and may hold
 * n->lock; if it does not, n->lock is taken where a name seems not to lead to n (a flush
 * may be under way), so it holds no other file's lock then. For the root: dirfd = the
 * store's root, store_name = "". */
errint_t node_place(struct tree *t, struct node *n, struct place *ret);
void place_release(struct tree *t, struct place *p);

/* The open directory of a directory node (O_RDONLY, else O_PATH where not readable), from
 * the cache; the caller holds tree->ns. */
errint_t node_open_dir(struct tree *t, struct node *dir, int *ret_dirfd,
                       struct dirfd **ret_pin);
/* The same if it is in the cache, else NULL and nothing is opened. No lock needed. */
struct dirfd *node_opened_dir(struct tree *t, struct node *dir, int *ret_dirfd);
void dirfd_release(struct tree *t, struct dirfd *pin);

/* Locks two nodes (b may be NULL or == a) in the lock order: directories before files, then
 * by number. */
void node_lock_pair(struct node *a, struct node *b);
void node_unlock_pair(struct node *a, struct node *b);

/* The logical path of a node ("a/b.log"), malloc'ed; for messages, hints and status.
 * "?"-prefixed number where it has no name. node_store_path: the same in store names. */
char *node_path(struct tree *t, struct node *n);
char *node_store_path(struct tree *t, struct node *n);

/* ---- within tree/ ---- */

/* The node that is known to have this name, referenced, or NULL. */
struct node *tree_find_name(struct tree *t, struct node *parent, const char *store_name);

/* The node is dying; tree->lock held. Returns a descriptor to be closed, or -1. */
int dirfd_orphan_locked(struct tree *t, struct node *n);
void dirfd_setup(struct tree *t);

#endif
