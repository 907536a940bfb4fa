/*
 * What is known to be damaged: objects of which something could not be read, by hydration
 * or by a verification, until they are replaced or found well. In memory only: a new daemon
 * learns it again by reading.
 */
#ifndef CELLAR_POOL_DAMAGE_H
#define CELLAR_POOL_DAMAGE_H

#include "codec/object.h"
#include "pool/pool.h"

#define DAMAGE_FILES_MAX  1000 /* more are counted only */
#define DAMAGE_RANGES_MAX 64   /* a file; more are left out */

/* A range of n's object cannot be read (len 0: nothing of it can); n is known by its present
 * identity. False where that was known before. Any locks below LOCK_LEAF may be held. */
bool damage_note(struct pool *p, struct node *n, struct object_range range,
                 const char *error);
/* The same for all ranges of a file at once, in the place of what was known. */
void damage_set(struct pool *p, struct node *n, const struct object_range *ranges,
                size_t count, const char *error);
/* n was found well. */
void damage_forget(struct pool *p, struct node *n);
bool damage_is_empty(struct pool *p);
void damage_clear(struct pool *p); /* all of it */

#endif
