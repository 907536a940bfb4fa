/*
 * Ranges that changed: see changes.h.
 */
#include "pool/changes.h"

#include <string.h>

#define GRAIN_FIRST 16 /* log2: 64 KiB */
#define NONE        UINT64_MAX

void changes_init(struct changes *c)
{
	memset(c, 0, sizeof(*c));
	lock_init(&c->lock, LOCK_LEAF);
	changes_reset(c);
}

void changes_release(struct changes *c)
{
	free(c->map);
	c->map = NULL;
	lock_clear(&c->lock);
}

static void reset(struct changes *c)
{
	free(c->map);
	c->map = NULL;
	c->words = 0;
	c->grain_log2 = GRAIN_FIRST;
	c->all = false;
	c->low = c->from = NONE;
}

void changes_reset(struct changes *c)
{
	lock_take(&c->lock);
	reset(c);
	lock_drop(&c->lock);
}

/* ---- the bitmap ---- */

static bool has_grain(const struct changes *c, uint64_t i)
{
	return i / 64 < c->words && (c->map[i / 64] >> i % 64 & 1);
}

static void set_grain(struct changes *c, uint64_t i)
{
	c->map[i / 64] |= 1ULL << i % 64;
}

/* Two grains become one. */
static void coarsen(struct changes *c)
{
	uint64_t bits = (uint64_t)c->words * 64;

	for (uint64_t i = 0; i < bits; i += 2) {
		bool any = has_grain(c, i) || has_grain(c, i + 1);

		c->map[i / 2 / 64] &= ~(1ULL << i / 2 % 64);
		if (any)
			set_grain(c, i / 2);
	}
	for (size_t w = c->words / 2 + c->words % 2; w < c->words; w++)
		c->map[w] = 0;
	/* An odd number of words leaves half of one behind. */
	if (c->words % 2)
		c->map[c->words / 2] &= 0xffffffffU;
	c->grain_log2++;
}

/* Room for the grain of offset `last`. False: no memory. */
static bool reach(struct changes *c, uint64_t last)
{
	size_t words;
	uint64_t *map;

	while ((last >> c->grain_log2) / 64 >= CHANGES_MAP_MAX / sizeof(*map))
		coarsen(c);
	words = (size_t)((last >> c->grain_log2) / 64 + 1);
	if (words <= c->words)
		return true;
	words = MIN_OF(MAX_OF(words, 2 * c->words), CHANGES_MAP_MAX / sizeof(*map));
	map = realloc(c->map, words * sizeof(*map));
	if (!map)
		return false;
	memset(map + c->words, 0, (words - c->words) * sizeof(*map));
	c->map = map;
	c->words = words;
	return true;
}

/* ---- noting ---- */

static void note(struct changes *c, uint64_t off, uint64_t len)
{
	uint64_t last = off + len - 1;

	if (len == 0)
		return;
	if (last < off)
		last = NONE - 1;
	c->low = MIN_OF(c->low, off);
	if (off >= c->from)
		return;
	last = MIN_OF(last, c->from - 1);
	if (!reach(c, last)) {
		c->from = off;
		return;
	}
	for (uint64_t i = off >> c->grain_log2; i <= last >> c->grain_log2; i++)
		set_grain(c, i);
}

void changes_note(struct changes *c, uint64_t off, uint64_t len)
{
	lock_take(&c->lock);
	note(c, off, len);
	lock_drop(&c->lock);
}

void changes_note_from(struct changes *c, uint64_t off)
{
	lock_take(&c->lock);
	c->low = MIN_OF(c->low, off);
	c->from = MIN_OF(c->from, off);
	lock_drop(&c->lock);
}

void changes_note_all(struct changes *c)
{
	lock_take(&c->lock);
	c->all = true;
	lock_drop(&c->lock);
}

void changes_move(struct changes *into, struct changes *from)
{
	struct changes f;
	uint64_t low;

	/* Taken out first: two leaves are never held at once. */
	lock_take(&from->lock);
	f = *from;
	from->map = NULL;
	reset(from);
	lock_drop(&from->lock);

	lock_take(&into->lock);
	into->all |= f.all;
	into->from = MIN_OF(into->from, f.from);
	low = MIN_OF(into->low, f.low); /* exact, unlike the grains */
	for (uint64_t i = 0; i < (uint64_t)f.words * 64; i++) {
		if (has_grain(&f, i))
			note(into, i << f.grain_log2, 1ULL << f.grain_log2);
	}
	into->low = low;
	lock_drop(&into->lock);
	free(f.map);
}

/* ---- asking ---- */

bool changes_unseen(struct changes *c)
{
	bool all;

	lock_take(&c->lock);
	all = c->all;
	lock_drop(&c->lock);
	return all;
}

uint64_t changes_lowest(struct changes *c)
{
	uint64_t low;

	lock_take(&c->lock);
	low = c->all ? 0 : c->low;
	lock_drop(&c->lock);
	return low;
}

bool changes_touch(struct changes *c, uint64_t off, uint64_t len)
{
	bool touched = false;
	uint64_t last;

	if (len == 0)
		return false;
	lock_take(&c->lock);
	last = off + len - 1;
	if (last >= c->low) {
		off = MAX_OF(off, c->low);
		touched = last >= c->from;
		for (uint64_t i = off >> c->grain_log2;
		     !touched && i <= last >> c->grain_log2 && i / 64 < c->words; i++)
			touched = has_grain(c, i);
	}
	lock_drop(&c->lock);
	return touched;
}
