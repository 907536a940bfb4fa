/*
 * Intrusive hash table: see hashtab.h. Chains of slots; between a quarter and one member a slot.
 */
#include <stdlib.h>

#include "base/error.h"
#include "base/hashtab.h"

#define SLOTS_LEAST 64

/* The low bits of what is counted up are its best, those of a hash as good as any. */
static size_t slot_of(const struct hashtab *t, uint64_t hash)
{
	return (size_t)hash & (t->slot_count - 1);
}

static void resize(struct hashtab *t, size_t slot_count)
{
	struct hashtab now = {.slot_count = slot_count, .count = t->count};

	now.slots = xcalloc(slot_count, sizeof(*now.slots));
	for (size_t i = 0; i < t->slot_count; i++) {
		struct hash_link *l, *next;

		for (l = t->slots[i]; l; l = next) {
			size_t to = slot_of(&now, l->hash);

			next = l->next;
			l->next = now.slots[to];
			now.slots[to] = l;
		}
	}
	free(t->slots);
	*t = now;
}

void hashtab_add(struct hashtab *t, struct hash_link *l, uint64_t hash)
{
	size_t at;

	if (t->count >= t->slot_count)
		resize(t, t->slot_count ? 2 * t->slot_count : SLOTS_LEAST);
	else if (t->slot_count > SLOTS_LEAST && t->count < t->slot_count / 8)
		resize(t, t->slot_count / 4);
	at = slot_of(t, hash);
	l->hash = hash;
	l->next = t->slots[at];
	t->slots[at] = l;
	t->count++;
}

void hashtab_remove(struct hashtab *t, struct hash_link *l)
{
	struct hash_link **at = &t->slots[slot_of(t, l->hash)];

	while (*at != l)
		at = &(*at)->next;
	*at = l->next;
	l->next = NULL;
	t->count--;
}

struct hash_link *hashtab_first(const struct hashtab *t, uint64_t hash)
{
	struct hash_link *l = t->slot_count ? t->slots[slot_of(t, hash)] : NULL;

	while (l && l->hash != hash)
		l = l->next;
	return l;
}

struct hash_link *hashtab_next(const struct hash_link *l)
{
	struct hash_link *next = l->next;

	while (next && next->hash != l->hash)
		next = next->next;
	return next;
}

struct hash_link *hashtab_any(const struct hashtab *t, size_t *hint)
{
	while (*hint < t->slot_count && !t->slots[*hint])
		++*hint;
	return *hint < t->slot_count ? t->slots[*hint] : NULL;
}

void hashtab_clear(struct hashtab *t)
{
	free(t->slots);
	*t = (struct hashtab){0};
}
