/* How handles reach the bytes of a scratch, see serve.c. node->lock held for whatever takes one. */
#ifndef CELLAR_POOL_SERVE_H
#define CELLAR_POOL_SERVE_H

#include "pool/internal.h"

/* One more descriptor of a scratch, or -ENFILE past max_open. */
errint_t serve_count(struct pool *p);
void serve_uncount(struct pool *p);

/* One more user of s->fd, which is open after success. *counted: the caller's serve_count(); it is the
 * scratch's (and false) where this was the first user. */
errint_t serve_use_fd(struct pool *p, struct scratch *s, bool *counted);
void serve_unuse_fd(struct pool *p, struct scratch *s);
/* Whether a handle of these flags is such a user; the same answer from open to close. */
bool serve_needs_fd(const struct scratch *s, unsigned flags);

/* Counts a handle that the kernel will know, and chooses how it is served if it is the first; the
 * scratch is hydrated as far as its open does that. */
void serve_begin(struct pool *p, struct scratch *s, unsigned flags);
void serve_end(struct pool *p, struct scratch *s);

#endif
