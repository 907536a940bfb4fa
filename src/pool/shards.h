/*
 * The directories below scratch/ that hold the scratch files: scratch/00 to scratch/ff, by the last
 * byte of the file's inode number. Each is made with its first file, so that a start looks at what
 * there is and not at 256 directories.
 *
 * Locking: none of the caller's is needed. shards_check() before there are threads; the rest from
 * any.
 */
#ifndef CELLAR_POOL_SHARDS_H
#define CELLAR_POOL_SHARDS_H

#include "base/error.h"
#include "pool/internal.h"

/* Every one that there is belongs to us alone (private.h); *cause says which does not. Entries of
 * scratch/ with other names are not looked at. */
errint_t shards_check(struct pool *p, char **cause);

/* fn for each that there is, in the order of their names, with a descriptor that ends with the call
 * or the error of opening it; stops at its first error, which is returned. */
errint_t shards_each(struct pool *p, errint_t (*fn)(void *ctx, const char *shard, int fd),
                     void *ctx);

/* Makes the one for this number; that it is there already is no error. */
errint_t shard_make(struct pool *p, uint64_t ino);

/* The names in the one for this number are durable on return, and so is its own (Y1). */
errint_t shard_sync(struct pool *p, uint64_t ino);

#endif
