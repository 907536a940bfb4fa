/*
 * Whether the page cache still holds what an earlier daemon of this boot wrote: a mark in
 * the runtime directory (/run/cellar/pool-UUID.mark), which a reboot clears.
 *
 * The boot id that records carry is the kernel's, until the pool's filesystem was mounted anew or
 * a sync of it failed: both may have cost unwritten pages, and count as a reboot. From the next
 * start on records carry a new id, which the mark remembers for later starts.
 */
#ifndef CELLAR_POOL_TRUST_H
#define CELLAR_POOL_TRUST_H

#include "pool/pool.h"

/* Reads the mark, decides p's boot id, writes the mark. dir: where it lies; NULL: no mark, the
 * kernel's boot id counts. Before pool_recover(). Never fails: without a mark it is as if there
 * had been none. */
void pool_trust_begin(struct pool *p, const char *dir);
/* A sync of the pool returned `error`: what was written may be gone although it is read. Safe
 * at any time, from any thread; noted once. */
void trust_lost(struct pool *p, errint_t error);
/* The pool is synced and marked clean: nothing is left to doubt. */
void trust_end(struct pool *p);

#endif
