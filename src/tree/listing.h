/*
 * Listing a directory of the store beside those who put entries in the place of others there.
 *
 * A name that stays must be listed exactly once, whatever its file goes through. The filesystem
 * beneath does not see to that: btrfs puts a name that is renamed over behind all others, so that who
 * reads the directory meanwhile meets neither the old entry nor the new one; and where the two
 * entries of one name have different store names (a plain file that becomes an object, a rename over
 * a file of another type), any filesystem may show neither.
 *
 * Invariant:
 *  (K1) Between the disappearance of one entry of a name and the appearance of the next nobody lists
 *       that directory: tree_list() shares a lock that tree_replacing() takes for itself. An
 *       exchange, and a rename of a directory, have tree->ns for themselves, which who lists shares.
 *  (K2) Who asks for the forms of one name one after the other and finds none may believe that only
 *       if no replacement was under way in that directory meanwhile (tree_still()), or he holds its
 *       lock; otherwise the name may have changed its form behind him, and he asks again.
 */
#ifndef CELLAR_TREE_LISTING_H
#define CELLAR_TREE_LISTING_H

#include "tree/node.h"

/* The names in `dir` as entry_list() has them. The caller holds tree->ns (any mode), and no lock of a
 * class behind LOCK_LISTING. -ENOENT: the directory is gone; others of open and getdents. */
errint_t tree_list(struct tree *t, struct node *dir, struct listing *ret);

/* Around what takes a name in `dir` from one entry and gives it to another: a rename over one, or two
 * steps in the store. Locks of one directory at a time; waits for listings of `dir` (and of the few
 * that share its lock) that are under way. */
void tree_replacing(struct tree *t, const struct node *dir);
void tree_replaced(struct tree *t, const struct node *dir);

/* (K2) since: tree_replacements() of before the first look. */
uint64_t tree_replacements(const struct tree *t, const struct node *dir);
bool tree_still(const struct tree *t, const struct node *dir, uint64_t since);

#endif
