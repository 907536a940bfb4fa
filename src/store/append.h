/*
 * Appending to an object, in place.
 *
 *   (1) the caller made durable that an append to this object is under way, and what the object
 *       was before (its stamp)
 *   (2) new frames are written past the end; fsync    steps: append.frames, append.framesynced
 *   (3) cellar frame, seek table, mtime; fsync        steps: append.trailer, append.synced
 *   (4) the caller records the new stamp
 *
 *   stopped        on disk                                    what undoes or ends it
 *   before (2)     the old object                             nothing
 *   in (2)         the old object, then anything              append_cut()
 *   in (3)         perhaps the new trailer, perhaps torn      append_look() tells: kept or cut
 *   after (3)      the new object
 *
 * Invariants:
 *  (A1) Bytes [0, size before) are not written, ever: whoever reads them through a descriptor
 *       and the old table reads on undisturbed.
 *  (A2) The trailer is written after the frames that it names are durable: a trailer that is whole
 *       proves them.
 *  (A3) What fails is cut back at once; where that fails too, append_cut() has to be called before
 *       anything else is done with the object.
 *
 * The inode, its mode, owner, links and xattrs stay; the mtime is set at the end (or put back).
 * Where writing would clear mode bits or capabilities the caller must not append.
 *
 * While it lasts an advisory lock is held on the object (flock(2), if nobody else has it): who
 * finds damage there waits for it before he believes it (append_wait).
 *
 * Threads: any; the caller excludes other writers of the object.
 */
#ifndef CELLAR_STORE_APPEND_H
#define CELLAR_STORE_APPEND_H

#include "codec/encode.h"
#include "store/ident.h"

struct append {
	int fd; /* of the object, O_RDWR; borrowed */
	uint64_t size_before;
	struct timespec mtime_before;
	uint64_t size_now; /* what we made it */
};

/* -ESTALE: it has not the stamp `base`. Writes nothing. */
errint_t append_begin(int fd, const struct stamp *base, struct append *ret, char **cause);
/* e: an encoder for an appending plan, made for the same descriptor. */
errint_t append_frames(struct append *a, struct encoder *e, char **cause);
errint_t append_trailer(struct append *a, struct encoder *e, const struct timespec *mtime,
                        struct encode_result *ret, char **cause);
/* After a failure of either: the object is what it was, or the error of trying. -ESTALE: somebody
 * else wrote to it meanwhile, nothing was cut. */
errint_t append_undo(struct append *a);
void append_end(struct append *a); /* gives the advisory lock back */

/* Cuts an object back to the size it had, durably. mtime: put back (NULL: left alone).
 * step: append.cut */
errint_t append_cut(int fd, uint64_t size_before, const struct timespec *mtime);

/* What a stopped append left of an object whose stamp was `base`. */
enum append_state {
	APPEND_OTHER, /* not longer, or its first bytes do not end in the base's trailer */
	APPEND_TORN,  /* to be cut */
	APPEND_WHOLE, /* a new version: its trailer is whole and what it adds decodes */
};
errint_t append_look(int fd, const struct stamp *base, enum append_state *ret);

/* Waits until no append to the object behind fd is under way; bounded. */
void append_wait(int fd);

#endif
