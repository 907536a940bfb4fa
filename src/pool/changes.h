/*
 * What changed in a scratch since its content was last that of its object.
 *
 * Kept in memory only, as an over-approximation: a byte that changed is always covered, a byte
 * that did not may be. Three sources of knowledge, the first that serves:
 *   ranges   every write was seen by the daemon: a bitmap of grains, 64 KiB each at first and
 *            doubled as the file grows, so that it never takes more than CHANGES_MAP_MAX bytes;
 *            besides it the lowest offset touched is kept exactly, so that an append is known
 *            as one
 *   hashes   writes may have gone unseen (`all` is set): the 128-bit hashes of the base's frames,
 *            taken at hydration or at the last flush, tell which frames differ
 *   nothing  (a dirty scratch of an earlier run): everything counts as changed
 *
 * Invariant: a change is noted before gen is raised for the last time on its behalf, inside the
 * gate; so whoever holds the gate for writing sees all changes made so far (internal.h, G1).
 *
 * Threads: any; the lock is a leaf.
 */
#ifndef CELLAR_POOL_CHANGES_H
#define CELLAR_POOL_CHANGES_H

#include "base/lock.h"

#define CHANGES_MAP_MAX 8192U

struct changes {
	struct lock lock; /* LOCK_LEAF: all below */
	bool all;
	uint64_t low;  /* lowest offset touched; UINT64_MAX: none */
	uint64_t from; /* everything from here on was touched; UINT64_MAX: nothing is */
	unsigned grain_log2;
	size_t words;  /* of map */
	uint64_t *map; /* NULL: no grain yet */
};

void changes_init(struct changes *c);
void changes_release(struct changes *c);
void changes_reset(struct changes *c); /* nothing changed */

void changes_note(struct changes *c, uint64_t off, uint64_t len);
void changes_note_from(struct changes *c, uint64_t off); /* and all after it */
void changes_note_all(struct changes *c);

/* Moves what `from` knows into `into`, which keeps what it had; `from` is reset. */
void changes_move(struct changes *into, struct changes *from);

bool changes_unseen(struct changes *c);     /* only hashes can tell */
uint64_t changes_lowest(struct changes *c); /* 0 where everything may have changed */
/* Whether a byte of [off, off + len) may have changed, as far as ranges tell. */
bool changes_touch(struct changes *c, uint64_t off, uint64_t len);

#endif
