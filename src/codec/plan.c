/*
 * Choosing what stays of an object: see plan.h.
 *
 * First each data entry of the base is put on one of two lists in a byte map: it stays, or it
 * is encoded again. Then the map is read once from front to back: runs of entries that stay and
 * lie side by side in the object become pieces to copy, all between them stretches to encode.
 *
 * No state, no threads.
 */
#include "codec/plan.h"

#include <string.h>

#define COPY_MAX (64U << 20) /* stored bytes of one piece: several threads share the rest */

typedef unsigned long long ull; /* for %llu */

bool plan_can_keep(const struct object *o)
{
	return o->kind == OBJECT_SEEKABLE && !o->flaw && o->table.has_checksums;
}

static bool is_data(const struct seek_entry *e)
{
	return e->logical_len > 0;
}

size_t plan_data_frames(const struct object *o)
{
	size_t n = 0;

	for (size_t i = 0; i < o->table.count; i++)
		n += is_data(&o->table.entries[i]);
	return n;
}

uint64_t plan_dead_bytes(const struct object *o)
{
	size_t end = o->table.count - (o->has_cellar_frame ? 1 : 0);
	uint64_t dead = 0;

	for (size_t i = 0; i < end; i++) {
		if (!is_data(&o->table.entries[i]))
			dead += o->table.entries[i].stored_len;
	}
	return dead;
}

bool plan_is_worn(const struct object *o, uint32_t frame_size)
{
	size_t small = 0, frames = 0;

	for (size_t i = 0; i < o->table.count; i++) {
		const struct seek_entry *e = &o->table.entries[i];

		frames += is_data(e);
		small += is_data(e) && e->logical_len < frame_size / 8;
	}
	return plan_dead_bytes(o) > o->stored_size / 4 ||
	       (small > PLAN_SMALL_MAX && small > frames / 4);
}

/* ---- the map ---- */

enum fate { KEEP = 0, ENCODE = 1 };

struct maker {
	const struct seek_table *table;
	uint8_t *fate; /* enum fate, one an entry; means nothing for skippable ones */
	uint64_t size;
	const struct plan_rules *rules;
	struct plan *plan;
};

static bool is_below_half(const struct maker *m, size_t i)
{
	return m->table->entries[i].logical_len < m->rules->frame_size / 2;
}

/* The next data entry after i (or before it), or table->count. */
static size_t neighbour(const struct maker *m, size_t i, bool after)
{
	if (after) {
		while (++i < m->table->count && !is_data(&m->table->entries[i]))
			;
		return i;
	}
	while (i-- > 0) {
		if (is_data(&m->table->entries[i]))
			return i;
	}
	return m->table->count;
}

static void mark_changed(struct maker *m, const uint8_t *changed)
{
	for (size_t i = 0; i < m->table->count; i++) {
		const struct seek_entry *e = &m->table->entries[i];

		if (changed[i] || e->logical_off + e->logical_len > m->size)
			m->fate[i] = ENCODE;
	}
}

/* From entry i, which is at the edge of a stretch that is encoded, outwards. */
static void take_in(struct maker *m, size_t i, bool after)
{
	uint64_t taken = 0;

	for (; i < m->table->count; i = neighbour(m, i, after)) {
		if (m->fate[i] == ENCODE || !is_below_half(m, i))
			break;
		taken += m->table->entries[i].logical_len;
		if (taken > m->rules->frame_size)
			break;
		m->fate[i] = ENCODE;
	}
}

/* Stretches grow once: what is taken in does not take in more. */
static errint_t take_in_neighbours(struct maker *m)
{
	const struct seek_table *t = m->table;
	uint8_t *before;

	if (t->count == 0)
		return 0;
	before = malloc(t->count);
	if (!before)
		return -ENOMEM;
	memcpy(before, m->fate, t->count);
	for (size_t i = 0; i < t->count; i++) {
		if (!is_data(&t->entries[i]) || before[i] != ENCODE)
			continue;
		if (t->entries[i].logical_off >= m->size)
			continue; /* cut off: nothing is encoded there */
		take_in(m, neighbour(m, i, true), true);
		take_in(m, neighbour(m, i, false), false);
	}
	free(before);
	if (m->size > t->logical_len)
		take_in(m, neighbour(m, t->count, false), false);
	return 0;
}

static void merge_small(struct maker *m)
{
	size_t last = m->table->count;

	for (size_t i = 0; i < m->table->count; i++) {
		if (!is_data(&m->table->entries[i]))
			continue;
		if (last < m->table->count && is_below_half(m, last) &&
		    is_below_half(m, i) && m->fate[i] == KEEP)
			m->fate[i] = m->fate[last] = ENCODE;
		last = i;
	}
}

/* ---- pieces ---- */

static errint_t add_piece(struct plan *p, const struct plan_piece *piece)
{
	if (p->count == p->allocated) {
		size_t n = p->allocated ? 2 * p->allocated : 16;
		struct plan_piece *pieces = realloc(p->pieces, n * sizeof(*pieces));

		if (!pieces)
			return -ENOMEM;
		p->pieces = pieces;
		p->allocated = n;
	}
	p->pieces[p->count++] = *piece;
	return 0;
}

static errint_t add_encoded(struct maker *m, uint64_t from, uint64_t to)
{
	errint_t err = 0;

	while (from < to && !err) {
		struct plan_piece piece = {
		    .off = from,
		    .len = MIN_OF((uint64_t)m->rules->frame_size, to - from),
		};

		err = add_piece(m->plan, &piece);
		m->plan->encoded_frames++;
		m->plan->encoded_bytes += piece.len;
		from += piece.len;
	}
	return err;
}

/* Entries from i on that stay, side by side in the object. */
static errint_t add_kept(struct maker *m, size_t i, size_t *ret_next)
{
	const struct seek_entry *entries = m->table->entries;
	struct plan_piece piece = {.off = entries[i].logical_off, .from = i};
	uint64_t stored = 0;

	for (; i < m->table->count && is_data(&entries[i]) && m->fate[i] == KEEP; i++) {
		if (stored > 0 && stored + entries[i].stored_len > COPY_MAX)
			break;
		stored += entries[i].stored_len;
		piece.len += entries[i].logical_len;
		m->plan->kept_frames++;
	}
	m->plan->kept_stored += stored;
	piece.to = i;
	*ret_next = i;
	return add_piece(m->plan, &piece);
}

static errint_t make_replace(struct maker *m)
{
	const struct seek_table *t = m->table;
	uint64_t done = 0; /* the file up to here has its pieces */
	errint_t err = 0;
	size_t i = 0;

	while (t && i < t->count && !err) {
		const struct seek_entry *e = &t->entries[i];

		if (!is_data(e) || m->fate[i] == ENCODE) {
			i++;
			continue;
		}
		err = add_encoded(m, done, e->logical_off);
		if (!err)
			err = add_kept(m, i, &i);
		done = t->entries[i - 1].logical_off + t->entries[i - 1].logical_len;
	}
	return err ? err : add_encoded(m, done, m->size);
}

static errint_t make_append(struct maker *m)
{
	m->plan->append = true;
	for (size_t i = 0; i < m->table->count; i++) {
		if (is_data(&m->table->entries[i])) {
			m->plan->kept_frames++;
			m->plan->kept_stored += m->table->entries[i].stored_len;
		}
	}
	return add_encoded(m, m->table->logical_len, m->size);
}

static bool can_append(const struct maker *m, const struct object *base)
{
	uint64_t stored = 0;

	if (!m->rules->may_append || !base->has_cellar_frame ||
	    m->size <= m->table->logical_len)
		return false;
	for (size_t i = 0; i < m->table->count; i++) {
		const struct seek_entry *e = &m->table->entries[i];

		if (is_data(e) && m->fate[i] != KEEP)
			return false;
		stored += is_data(e) ? e->stored_len : 0;
	}
	return stored >= m->rules->append_min && !plan_is_worn(base, m->rules->frame_size);
}

static errint_t make_from_base(struct maker *m, const struct object *base,
                               const uint8_t *changed)
{
	errint_t err;

	m->table = &base->table;
	m->fate = calloc(m->table->count + 1, 1);
	if (!m->fate)
		return -ENOMEM;
	mark_changed(m, changed);
	if (can_append(m, base))
		return make_append(m);
	if (plan_is_worn(base, m->rules->frame_size))
		merge_small(m);
	err = take_in_neighbours(m);
	return err ? err : make_replace(m);
}

errint_t plan_make(const struct object *base, const uint8_t *changed, uint64_t size,
                   const struct plan_rules *rules, struct plan *ret, char **cause)
{
	struct maker m = {.size = size, .rules = rules, .plan = ret};
	uint64_t frames = size / rules->frame_size;
	errint_t err;

	*ret = (struct plan){0};
	INVARIANT(rules->frame_size > 0 && rules->frame_size <= OBJECT_FRAME_MAX);
	if (base)
		frames += base->table.count + 2; /* what an append keeps in the table */
	if (frames + 2 >= SEEKTABLE_COUNT_MAX)
		return set_cause(cause, -EFBIG, "%llu bytes are too many frames of %u",
		                 (ull)size, rules->frame_size);
	err = base ? make_from_base(&m, base, changed) : make_replace(&m);
	free(m.fate);
	return err;
}

void plan_clear(struct plan *p)
{
	free(p->pieces);
	*p = (struct plan){0};
}
