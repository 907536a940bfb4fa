/*
 * Decoding before somebody waits for it: ahead of sequential readers, to the end of files that
 * are read in earnest, and beside whoever waits for many frames. See readahead.c.
 */
#ifndef CELLAR_POOL_READAHEAD_H
#define CELLAR_POOL_READAHEAD_H

#include "pool/hydrate.h"

struct readahead;

/* No threads yet; without them (unit tests, tools) everything is decoded by whoever needs it. */
void readahead_new(struct pool *p);
errint_t readahead_start(struct pool *p);
/* Joins the threads and gives up what was wanted; no handle is open any more. Then _free. */
void readahead_stop(struct pool *p);
void readahead_free(struct pool *p);

/* node->lock held: somebody asked for [off, off + len). Whether that was part of a sequential
 * pass. */
bool readahead_note(struct pool *p, struct hydration *h, uint64_t off, uint64_t len);
/* node->lock held: others may help with w, until readahead_help_end(). */
void readahead_help(struct pool *p, struct hydration *h, struct want *w);
void readahead_help_end(struct hydration *h, struct want *w);
/* Something is in memory that belongs into the scratch. No lock held. */
void readahead_behind(struct pool *p, struct hydration *h);
/* node->lock held: nobody reads it any more; with `complete` the background pass ends too. */
void readahead_forget(struct pool *p, struct hydration *h, bool complete);

/* ---- room to decode in ---- */

/* Buffers for one unit. There are twice as many as decoding threads: that bounds the memory of
 * decoding, whatever the number of readers. */
struct decode_slot {
	uint8_t *stored, *logical;
	size_t stored_room, logical_room;
	struct buffers *from;
};
/* Waits for one. Foreground: before all read-ahead. No lock held. */
struct decode_slot *readahead_slot(struct pool *p);
void readahead_slot_end(struct pool *p, struct decode_slot *slot);
/* Room for so much; -ENOMEM. */
errint_t readahead_slot_room(struct decode_slot *slot, size_t stored, size_t logical);

/* A buffer of len bytes in memory for decoded bytes, from those that were used before if there is
 * one. NULL: no memory. Counted in pool->held_bytes until it is given back. */
struct held_frame *readahead_held_new(struct pool *p, size_t len);
void readahead_held_free(struct pool *p, struct held_frame *f);

#endif
