/*
 * lost+found of the pool: what recovery could not place, and what to do with it.
 *
 * An entry keeps what it brought: record and hint in its xattrs; `user.cellar.why` says since when
 * and why it lies here ("RFC3339-TIME REASON"). Nothing here is believed beyond what it is
 * shown for: names, records and hints may be anybody's.
 *
 *  (L1) An entry goes only by pool_lost_discard(), never by itself, and only if it is still the
 *       file that the caller has seen (its token).
 */
#ifndef CELLAR_POOL_LOST_H
#define CELLAR_POOL_LOST_H

#include "pool/pool.h"
#include "pool/record.h"

#define WHY_XATTR "user.cellar.why"

struct pool_lost {
	const char *name; /* in lost+found */
	const char *hint; /* store path where its object was last known; "": not known */
	const char *why;  /* "": not known */
	bool regular;     /* a file; else what follows is 0, and nothing can be read */
	bool has_record;  /* record is valid */
	struct record record;
	uint64_t size;
	struct timespec mtime, since; /* since it lies here, as well as that is known */
	char token[64];               /* stands for this very file and state */
};

/* Moves scratch_file (below scratch/) there, under its number in hex, a suffix where that is taken.
 * Any thread; pool->lock not held. */
errint_t pool_move_to_lost(struct pool *p, const char *scratch_file, uint64_t ino,
                           const char *why);

/* The same, but the file stays where it is too. Done twice it is done once. */
errint_t pool_link_to_lost(struct pool *p, const char *scratch_file, uint64_t ino,
                           const char *why);

/* Whether scratch_file was linked there and is still there too. */
bool pool_is_in_lost(struct pool *p, const char *scratch_file, uint64_t ino);

/* Calls fn for each entry, in no order; valid during the call. Non-zero from fn stops. */
typedef errint_t (*pool_lost_fn)(void *ctx, const struct pool_lost *e);
errint_t pool_each_lost(struct pool *p, pool_lost_fn fn, void *ctx);

/* One entry; fn is called once. *ret_fd (may be NULL): open for reading, -1 where it is no file or
 * cannot be opened. -ENOENT: no such entry. */
errint_t pool_lost_get(struct pool *p, const char *name, pool_lost_fn fn, void *ctx,
                       int *ret_fd, char **cause);

/* (L1) Deletes an entry, durably. -ESTALE: it is not what the token was given out for. */
errint_t pool_lost_discard(struct pool *p, const char *name, const char *token,
                           char **cause);

#endif
