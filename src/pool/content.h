/*
 * Whether the content of a scratch changed, also by writes that the daemon never sees.
 *
 * While a kernel serves a scratch by itself (passthrough), or a mapping of it outlives its last
 * handle, `gen` alone says too little: such a scratch is *unseen*. Looking at it (content_gen)
 * folds what its stamp says into gen, so that everybody else compares one number. A scratch
 * that is not unseen costs nothing here.
 *
 * A scratch is *closed for writing* when no handle is open for writing and a read lease on it
 * was granted: then nobody can change it but through the daemon.
 *
 * All functions with a scratch: its node->lock is held. None waits for a disk.
 */
#ifndef CELLAR_POOL_CONTENT_H
#define CELLAR_POOL_CONTENT_H

#include "pool/internal.h"

/* From now on writes to s may not be seen. mappable: through a mapping too (opened for
 * reading and writing). Before the reply that lets them begin. */
void content_unseen(struct pool *p, struct scratch *s, bool mappable);

/* s was taken over from an earlier run: a process that had it open or mapped when that daemon was
 * killed may still write. Not so into a tail, which no kernel ever served. */
void content_recovered(struct pool *p, struct scratch *s);

/* gen, with every change that the stamp shows by now. Never more than once per write; it may
 * count a change that was none. */
uint64_t content_gen(struct pool *p, struct scratch *s);

/* Attributes of the scratch file; content_look() does for gen what content_gen() does, too. */
errint_t content_stat(struct pool *p, struct scratch *s, struct stat *st);
errint_t content_look(struct pool *p, struct scratch *s, struct stat *st);

/* Whether s is closed for writing. If so it is not unseen any more, and gen is exact. False
 * also while the daemon itself has it open for writing and it is unseen. */
bool content_closed(struct pool *p, struct scratch *s);

/* It changed, or may have and nothing shows it: raises gen. */
void content_changed(struct scratch *s);

/* Whether nobody at all has s open or mapped: only then may it be deleted or replaced while
 * its file lives. node->lock, or the unattached scratch marked busy. */
bool content_unused(struct pool *p, struct scratch *s);

/* The daemon set the times or the size of s: what its stamp says now is known. Raises gen if
 * s is unseen, else that is the caller's part. */
void content_own_change(struct pool *p, struct scratch *s);

/* Looks at a share of the unseen scratches: gen, bytes on disk, closed or not; what is mapped
 * without a handle and dirty for longer than max_dirty_age is queued. No lock held. */
void content_house(struct pool *p);

/* scratch.c: s is leaving the lists. pool->lock held. */
void content_forget_locked(struct pool *p, struct scratch *s);

#endif
