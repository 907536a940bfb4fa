/*
 * Units of a hydration that are decoded in memory: what a sequential reader has before it and a
 * little of what it has passed. Bounded for each file; what was passed goes first.
 *
 * h->lock is held for all of it.
 */
#ifndef CELLAR_POOL_HELD_H
#define CELLAR_POOL_HELD_H

#include "pool/hydrate.h"

/* Takes a reference; others are dropped where there are too many bytes. */
void held_list(struct pool *p, struct hydration *h, struct held_frame *f);
/* Off the list; a unit that is HELD is MISSING then. */
void held_unlist(struct pool *p, struct hydration *h, struct held_frame *f);
/* All but what is on its way into the scratch. */
void held_drop(struct pool *p, struct hydration *h);

#endif
