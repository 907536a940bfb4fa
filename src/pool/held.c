/*
 * Decoded bytes in memory: see held.h.
 *
 * Threads: the list of a hydration is under its lock; a frame lives as long as somebody has a
 * reference.
 */
#include "pool/held.h"

#include "base/counters.h"
#include "pool/internal.h"
#include "pool/readahead.h"

#include "utlist.h"

#define HELD_BYTES (32ULL << 20) /* for each file; or three units */

struct held_frame *hydrate_hold(struct hydration *h, size_t unit)
{
	struct held_frame *f;

	lock_assert_held(&h->lock);
	DL_FOREACH (h->held, f) {
		if (f->unit == unit) {
			atomic_fetch_add(&f->refs, 1);
			return f;
		}
	}
	return NULL;
}

void hydrate_unhold(struct pool *p, struct held_frame *f)
{
	if (f && atomic_fetch_sub(&f->refs, 1) == 1)
		readahead_held_free(p, f);
}

void held_unlist(struct pool *p, struct hydration *h, struct held_frame *f)
{
	DL_DELETE(h->held, f);
	f->listed = false;
	h->held_bytes -= f->len;
	if (h->state[f->unit] == FRAME_HELD) {
		h->state[f->unit] = FRAME_MISSING;
		h->complete_next = MIN_OF(h->complete_next, f->unit);
		count_n(COUNTER_BYTES_PASSED, f->len);
	}
	hydrate_unhold(p, f);
}

void held_drop(struct pool *p, struct hydration *h)
{
	struct held_frame *f, *next;

	DL_FOREACH_SAFE (h->held, f, next) {
		if (h->state[f->unit] != FRAME_WRITING)
			held_unlist(p, h, f);
	}
}

void held_list(struct pool *p, struct hydration *h, struct held_frame *f)
{
	uint64_t limit = MAX_OF(HELD_BYTES, 3 * (uint64_t)f->len);
	struct held_frame *old, *next;

	for (int pass = 0; pass < 2; pass++) {
		DL_FOREACH_SAFE (h->held, old, next) {
			if (h->held_bytes + f->len <= limit)
				break;
			if (h->state[old->unit] != FRAME_WRITING &&
			    (old->passed || pass == 1))
				held_unlist(p, h, old);
		}
	}
	DL_APPEND(h->held, f);
	f->listed = true;
	h->held_bytes += f->len;
	atomic_fetch_add(&f->refs, 1);
}
