/*
 * A hash table for what there are millions of: its links lie in the members, 16 bytes each, and its slots
 * shrink again when members go. For all others uthash is more comfortable.
 *
 * The caller computes the hashes and compares the keys. An all-zero table is empty. No locking; only
 * hashtab_add() allocates.
 */
#ifndef CELLAR_BASE_HASHTAB_H
#define CELLAR_BASE_HASHTAB_H

#include <stddef.h>
#include <stdint.h>

struct hash_link {
	struct hash_link *next;
	uint64_t hash;
};

struct hashtab {
	struct hash_link **slots;
	size_t slot_count; /* a power of two, or 0 */
	size_t count;      /* members */
};

/* l, which is in no table, becomes a member. */
void hashtab_add(struct hashtab *t, struct hash_link *l, uint64_t hash);
/* l is a member of t, and none after that. */
void hashtab_remove(struct hashtab *t, struct hash_link *l);

/* The first member of this hash, and the next one after l; NULL: there is none (left). */
struct hash_link *hashtab_first(const struct hashtab *t, uint64_t hash);
struct hash_link *hashtab_next(const struct hash_link *l);

/* Any member, NULL: there is none. *hint: 0 at first, then as it was left: emptying the table by it does
 * not look at every slot each time. */
struct hash_link *hashtab_any(const struct hashtab *t, size_t *hint);

/* Gives the slots back; members are forgotten. */
void hashtab_clear(struct hashtab *t);

#endif
