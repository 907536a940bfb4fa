/*
 * From names to nodes: which number does this directory entry have, and what are its
 * attributes? Answers come from memory, else from one catalog row, else from the object's
 * trailer, in this order; what was learnt is put into the catalog.
 *
 * Which number (design, section 4), for an identity that neither memory nor catalog knows:
 *   its cellar frame names this pool, ino N, flush n, and
 *     - nobody is known under N, or the row of N has seq < n and N's identity is not in
 *       memory under a live name -> it is N (a flush whose row was lost);
 *     - otherwise it is a copy -> new number;
 *   no such frame -> new number.
 */
#ifndef CELLAR_TREE_RESOLVE_H
#define CELLAR_TREE_RESOLVE_H

#include "tree/node.h"

/* Looks `logical` up in directory `dir`. Returns the node referenced and its stored
 * attributes. The caller holds tree->ns (any mode) and no node lock. -ENOENT,
 * -ENAMETOOLONG, … */
errint_t resolve_name(struct tree *t, struct node *dir, const char *logical,
                      struct node **ret, struct stat *ret_st);

/* Walks a store path ("a/b.log.zst", as in a scratch's hint; "" is the root) from the root.
 * What lies there but is not shown through the mount (shadowed, private) is -ENOENT. The
 * caller holds tree->ns (any mode) and no node lock. */
errint_t resolve_store_path(struct tree *t, const char *store_path, struct node **ret,
                            struct stat *ret_st);

/* The rules for entry_lookup() and friends that ask memory and catalog first. */
struct entry_rules resolve_rules(struct tree *t);

/* Makes n->info valid for the store attributes st (under node->lock): reads the trailer if
 * catalog and memory do not know this identity with this size and mtime. A foreign object
 * without content size keeps OBJECT_SIZE_UNKNOWN here, and so does one that may not be read.
 * trailer_hash of a plain file is filled in only while n->scratch is set (it costs reading).
 * -ESTALE: the name leads to another inode. */
errint_t resolve_info(struct tree *t, struct node *n, int dirfd, const char *store_name,
                      const struct stat *st, char **cause);

/* Decodes a foreign object once to learn its size (may take long: workers only). Under no
 * lock. -ESTALE: it was changed meanwhile, ask again. -EINTR: cancelled (base/cancel.h).
 * Errors of decoding: it has no size. */
errint_t resolve_size(struct tree *t, struct node *n, char **cause);

/* Logical attributes of a node as far as the store tells (no scratch): st_ino, logical
 * size, ctime rule, st_blocks of the object (at least 1 when size > 0). st: what the store
 * said. Under node->lock, info valid for regular files. */
void resolve_attr(const struct node *n, const struct stat *st, struct stat *ret);

/* The store's attributes of n now: of its open directory, fstatat at its place, of dead_fd, or
 * dead_st. */
errint_t resolve_stat(struct tree *t, struct node *n, struct stat *ret);

/* After the daemon's own change of n's store inode that users must not see (replacement,
 * xattr copy, a rename into a directory): the logical ctime (and for directories mtime)
 * stays what it was and holds for the new st_ctime. Under node->lock. */
void resolve_keep_ctime(struct tree *t, struct node *n, const struct stat *st_now,
                        const struct timespec *logical_ctime);

#endif
