/*
 * What the frames of a scratch's base decoded to: a 128-bit hash (XXH3) for each, with the base's
 * seek table beside them. Taken while a scratch is hydrated (the bytes are in hand then) and
 * kept with it until it is evicted or gets another base, so that a flush can tell which frames
 * still say the same without decoding the old object.
 *
 * Costs 16 bytes and a seek entry (32 bytes) a frame: 48 KiB for each GiB in frames of 1 MiB.
 *
 * Threads: framehash_take() of different frames may run at once; whoever takes one owns its
 * BUSY state (hydrate.c, H1). Complete (hydrate_finish) it is constant, under node->lock as
 * s->frames is.
 */
#ifndef CELLAR_POOL_FRAMEHASH_H
#define CELLAR_POOL_FRAMEHASH_H

#include "codec/hash.h"
#include "codec/seektable.h"

struct frame_hashes {
	struct seek_table table; /* of the base; a copy, owned */
	struct frame_hash
	    *hash; /* table.count; 0, 0 also for entries without logical bytes */
};

/* Room for the frames of table, which is copied; NULL where there is no memory for it (then the
 * flush does without). */
struct frame_hashes *framehash_new(const struct seek_table *table);
/* The same, with what an encoder has hashed: one a data frame of table. */
struct frame_hashes *framehash_from(const struct seek_table *table,
                                    const struct frame_hash *data_frames);
void framehash_free(struct frame_hashes *f); /* NULL is fine */

/* data: the table.entries[i].logical_len bytes that frame i decodes to. */
void framehash_take(struct frame_hashes *f, size_t i, const void *data);
/* Whether data[0, len) is what frame i decodes to. */
bool framehash_same(const struct frame_hashes *f, size_t i, const void *data, size_t len);

#endif
