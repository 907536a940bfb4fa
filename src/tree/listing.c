/*
 * See listing.h. The locks are a few for all directories, by number: a node has none of its own to
 * pay for.
 *
 * Threads: any.
 */
#include "tree/listing.h"
#include "tree/resolve.h"

static size_t place_of(const struct tree *t, const struct node *dir)
{
	return dir->ino % ARRAY_LEN(t->listing);
}

static struct rwlock *lock_of(struct tree *t, const struct node *dir)
{
	return &t->listing[place_of(t, dir)];
}

errint_t tree_list(struct tree *t, struct node *dir, struct listing *ret)
{
	struct entry_rules rules = resolve_rules(t);
	struct dirfd *pin;
	int dirfd;
	errint_t r = node_open_dir(t, dir, &dirfd, &pin);

	if (r < 0)
		return r;
	rwlock_rd(lock_of(t, dir));
	r = entry_list(&rules, dirfd, dir->ino == TREE_ROOT_INO, ret);
	rwlock_drop(lock_of(t, dir));
	dirfd_release(t, pin);
	return r;
}

void tree_replacing(struct tree *t, const struct node *dir)
{
	rwlock_wr(lock_of(t, dir)); /* (K1) */
	atomic_fetch_add(&t->replacements[place_of(t, dir)], 1);
}

void tree_replaced(struct tree *t, const struct node *dir)
{
	atomic_fetch_add(&t->replacements[place_of(t, dir)], 1);
	rwlock_drop(lock_of(t, dir));
}

uint64_t tree_replacements(const struct tree *t, const struct node *dir)
{
	return atomic_load(&t->replacements[place_of(t, dir)]);
}

bool tree_still(const struct tree *t, const struct node *dir, uint64_t since)
{
	return since % 2 == 0 && tree_replacements(t, dir) == since;
}
