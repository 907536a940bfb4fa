/*
 * A hydration under way: which parts of a base are in its scratch, who works on the others.
 * For pool/ only; the order of events and the invariants are in hydrate.c.
 *
 * A *unit* is what is decoded in one go: a frame of a seekable object; a piece of OBJECT_PIECE
 * logical bytes of the others (plain: any piece can be copied; foreign: in order, by one
 * thread at a time). A foreign object of unknown size is one unit.
 */
#ifndef CELLAR_POOL_HYDRATE_H
#define CELLAR_POOL_HYDRATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "codec/stream.h"
#include "pool/framehash.h"

struct node;
struct pool;
struct scratch;
struct decode_slot;

enum frame_state {
	FRAME_MISSING = 0,
	FRAME_BUSY,
	FRAME_VALID, /* in the scratch */
	FRAME_HELD,  /* in memory; goes into the scratch behind the reader, or is dropped */
	FRAME_WRITING, /* HELD, and on its way into the scratch */
	FRAME_BAD,     /* damaged; until the file is opened anew */
};

/* Decoded bytes of a unit in memory. Whoever holds a reference may read it. */
struct held_frame {
	_Atomic uint32_t refs;
	bool listed; /* in hydration->held, which holds one reference; under its lock */
	bool passed; /* a reader has had its last byte; under its lock */
	size_t unit, len, room;
	uint8_t *data;
	struct held_frame *prev, *next;
};

/* Somebody waits for these units: others may help. Lives on its owner's stack. */
struct want {
	size_t next, to;
	struct want *link;
};

/* A reader as the offsets tell it: see readahead.c. */
struct reader {
	uint64_t pos;      /* the highest byte it has asked for, plus one */
	uint64_t seen;     /* bytes it went through; 0: the place is free */
	uint32_t requests; /* that were its */
	uint64_t used;     /* hydration->reads when last seen */
	size_t next;       /* units before are there or taken care of */
	size_t ahead_to;   /* one past the last unit wanted now */
};
#define READERS 4

struct hydration {
	/* constant after hydrate_begin() */
	struct pool *p;
	struct node *node; /* referenced */
	struct scratch
	    *s; /* alive while s->hydration is this one, which it is while a unit is
	                    * missing and somebody has a count */
	struct object object; /* its descriptor is ours */
	int fd;
	size_t units;
	bool in_order; /* foreign */
	uint64_t
	    ask; /* bytes from here on are in the scratch, not in the object (tail.c) */
	bool
	    tail; /* and it was written to so: under lock and node->lock, as is fits then */
	bool fits; /* the whole file has room in the pool: all of it is kept */

	/* under node->lock */
	uint32_t users; /* s->hydration, threads that work on it, the list of readahead.c */
	pthread_cond_t idle; /* waits on node->lock: only s->hydration is left */

	struct lock lock; /* LOCK_LEAF */
	pthread_cond_t changed;
	/* under lock */
	size_t missing;              /* units that are not VALID */
	uint8_t *state;              /* enum frame_state, one a unit */
	struct frame_hashes *frames; /* of a seekable object; NULL: no memory for them.
	                              * Entries: whoever has the unit BUSY */
	uint64_t kept_bytes, unsampled_bytes;
	struct held_frame *held; /* oldest first */
	uint64_t held_bytes;
	struct object_stream
	    *stream; /* in_order: the decoder between two units; its own while
	                               * stream_busy */
	bool stream_busy;
	bool closed;       /* nobody has it open */
	size_t order_next; /* in_order: all units before are VALID */
	struct reader readers[READERS];
	uint64_t reads, read_bytes;
	struct want *wants;
	bool completing;
	size_t complete_next;

	/* under readahead's lock */
	unsigned work;    /* enum work bits */
	uint32_t raised;  /* counts raises: work that came while somebody looked */
	uint32_t at_work; /* threads of readahead.c on it */
	bool listed;
	struct hydration *prev, *next;
};

/* Prepares hydration of s, not attached yet, for node n (n->lock held) from the object open as fd;
 * fd and object are taken over, on errors too. */
errint_t hydrate_begin(struct pool *p, struct scratch *s, struct node *n, int fd,
                       struct object *object);
/* The same for a scratch that has its size and holds the bytes from `ask` on. */
errint_t hydrate_attach(struct pool *p, struct scratch *s, struct node *n, int fd,
                        struct object *object, uint64_t ask);
void hydrate_free(struct hydration *h);

bool hydrate_is_ready(struct scratch *s, uint64_t off, uint64_t len);
/* On 0 [off, off + len) is in the scratch. -EUCLEAN: some of it is damaged; -EINTR: cancelled
 * (base/cancel.h). [waits]; the node is open, node->lock not held. */
errint_t hydrate_range(struct pool *p, struct scratch *s, uint64_t off, uint64_t len);
/* Whether hydration comes before the reply to OPEN: of what will be written to, what is small, what
 * does not tell its size. node->lock held. */
bool hydrate_first(struct pool *p, const struct scratch *s, bool write);
/* Does it: on 0 everything is there; unless the file will be written to, damaged units are left
 * out, and reading them answers the error, and so is what finds no room in the pool: it is read
 * through memory. Otherwise as hydrate_range(). */
errint_t hydrate_for_open(struct pool *p, struct scratch *s, bool write);

/* node->lock held: what was found damaged is tried again; the last handle went. */
void hydrate_opened(struct scratch *s);
void hydrate_closed(struct pool *p, struct scratch *s);
/* node->lock held, no handle open: whether nobody works on it, so that the scratch may go. If
 * somebody does, it is told to end; *wait: waits for that, giving node->lock up meanwhile, so that
 * everything has to be looked at again. */
bool hydrate_quiet(struct pool *p, struct scratch *s, bool wait);

/* The scratch was cut to nothing: the caller gets s->hydration, for hydrate_put(). node->lock held,
 * hydrate_quiet(). */
struct hydration *hydrate_forget(struct scratch *s);
/* The file is about to be cut to nothing: what was hydrated goes, and the caller gets s->hydration.
 * node->lock held, the file open, hydrate_quiet(). Then hydrate_put(), or, where the cut failed,
 * _resume(). */
errint_t hydrate_abandon(struct scratch *s, struct hydration **ret);
void hydrate_resume(struct scratch *s, struct hydration *h);

/* ---- for reading.c and readahead.c ---- */

/* node->lock held. The last put frees. */
static inline void hydrate_get(struct hydration *h)
{
	h->users++;
}
void hydrate_put(struct hydration *h);

/* First and one past the last unit that [off, off + len) needs. */
void hydrate_units_of(const struct hydration *h, uint64_t off, uint64_t len, size_t *from,
                      size_t *to);
uint64_t hydrate_unit_off(const struct hydration *h, size_t unit);
uint64_t hydrate_unit_len(const struct hydration *h, size_t unit);

enum claim { CLAIM_NONE, CLAIM_BUSY, CLAIM_BAD, CLAIM_GOT };
enum claim_flags {
	CLAIM_HELD_OK = 1,  /* what is in memory need not be decoded */
	CLAIM_SKIP_BAD = 2, /* damaged ones are passed over: never CLAIM_BAD */
};
/* The first unit in [*from, to) that is missing becomes BUSY and the caller's (GOT; foreign: the
 * next in order, which may lie before). BUSY: others are at work on what is missing. *from moves
 * over what needs nothing. h->lock held. */
enum claim hydrate_claim(struct hydration *h, size_t *from, size_t to, unsigned flags,
                         size_t *ret);
/* A claimed unit is given back as it was: nothing was done. */
void hydrate_unclaim(struct hydration *h, size_t unit);
/* h->lock held: the reference is the caller's. NULL: not in memory (any more). */
struct held_frame *hydrate_hold(struct hydration *h, size_t unit);
/* Any lock may be held or none; NULL is fine. */
void hydrate_unhold(struct pool *p, struct held_frame *f);
/* h->lock held: waits until a unit changed its state. -EINTR: cancelled. */
errint_t hydrate_wait(struct hydration *h);

enum keep {
	KEEP_ALWAYS,
	KEEP_IF_ROOM, /* in the scratch where the pool has room for it, else in memory */
	KEEP_PASSING, /* only if the whole file is kept: a reader that passes through needs it
	               * once */
};
/* Decodes a claimed unit into the scratch (fd) or into memory, and settles it. *ret_held, if
 * not NULL: a reference where it went into memory. Ends the hydration if it was the last. No
 * lock held. */
errint_t hydrate_unit(struct pool *p, struct hydration *h, size_t unit, enum keep keep,
                      int fd, struct decode_slot *slot, struct held_frame **ret_held);
/* One unit from memory into the scratch, the oldest first. False: there is none, or it cannot be
 * written. No lock held; fd as above, asked for with hydrate_claim_held(). */
struct held_frame *hydrate_claim_held(struct hydration *h);
bool hydrate_write_behind(struct pool *p, struct hydration *h, struct held_frame *f,
                          int fd);
/* h->lock held: whether the unit would go into memory. */
bool hydrate_would_hold(struct pool *p, const struct hydration *h, size_t unit,
                        enum keep keep);

#endif
