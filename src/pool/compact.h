/* Compaction of one cold object: decoded, encoded again harder and in larger frames. */
#ifndef CELLAR_POOL_COMPACT_H
#define CELLAR_POOL_COMPACT_H

#include "pool/pool.h"

struct pool_compaction {
	int level;                 /* zstd level of the new object, 1 to 19 */
	uint32_t frame_size;       /* logical bytes of its frames, 1 to OBJECT_FRAME_MAX */
	unsigned threads;          /* that encode; at least 1 */
	const volatile bool *stop; /* becomes true: end early with -EINTR; may be NULL */
};

struct pool_compacted {
	bool replaced; /* false: nothing would be won, the object is as it was */
	uint64_t logical_bytes, stored_before, stored_after;
};

/* Brings the object of n to c->level and c->frame_size, or a plain file of the store into
 * an object (ingest). What users see of the file and its directory does not change: content,
 * number, times, mode, owner, xattrs, ACLs, links. Not done (replaced false) where the object
 * has that level and shape already, was found not to shrink, or would not become smaller.
 *
 * 0; -EBUSY the file is warm, open or dirty; -EAGAIN it was changed meanwhile; -EINVAL no
 * regular file; -ENOENT it has no name any more; -EINTR stopped; -EUCLEAN the object is damaged;
 * -ENOSPC; others of reading and writing. On any error the object is as it was, and the cause
 * names what failed. Takes a while and both cores' worth of memory: threads *
 * (2 * frame_size + one context of the level). The plain bytes of an object lie in an unnamed
 * file on the pool's disk meanwhile. [waits] No lock held. */
errint_t pool_compact(struct pool *p, struct node *n, const struct pool_compaction *c,
                      struct pool_compacted *ret, char **cause);

#endif
