/*
 * What the next version of an object is made of: frames of the present one (the *base*) that
 * stay as they are, and stretches of the file that are encoded. Nothing here reads or writes.
 *
 * Two shapes:
 *   replace   a new object: kept frames are copied as compressed bytes, in the order of the file;
 *             dead entries (old trailers) are left behind
 *   append    the base stays where it is, bytes [0, stored_size): only what lies past its end is
 *             encoded, and its trailer becomes dead entries of the new table
 *
 * A stretch that is encoded is cut into frames of frame_size from its start. It takes in
 * neighbours that are smaller than half a frame, up to frame_size bytes on either side, so that
 * small frames do not gather where a file is changed often.
 *
 * An object is *worn* when its dead bytes are more than a quarter of it, or when it has more than
 * PLAN_SMALL_MAX small frames (below an eighth of frame_size) and they are more than a quarter of
 * all. A worn one is not appended to: it is replaced, and neighbours below half a frame are
 * merged. So what appends leave behind is bounded, and its removal costs each append only a share.
 */
#ifndef CELLAR_CODEC_PLAN_H
#define CELLAR_CODEC_PLAN_H

#include "codec/object.h"

#define PLAN_SMALL_MAX 1024

struct plan_piece {
	uint64_t off, len; /* of the file */
	size_t from, to;   /* from < to: entries [from, to) of the base are kept */
};

struct plan {
	struct plan_piece *pieces; /* in the order of the file */
	size_t count, allocated;
	bool append;
	size_t kept_frames;   /* copied, or staying in front of what is appended */
	uint64_t kept_stored; /* their bytes in the object */
	size_t encoded_frames;
	uint64_t encoded_bytes; /* of the file */
};

struct plan_rules {
	uint32_t frame_size;
	bool may_append; /* the place allows it */
	uint64_t
	    append_min; /* stored bytes of kept frames from which an append is worth it */
};

/* Whether frames of o may stay in a new version: seekable by the table that stands there, and each
 * frame is covered by a checksum in it. */
bool plan_can_keep(const struct object *o);
bool plan_is_worn(const struct object *o, uint32_t frame_size);
/* Stored bytes that no byte of the file needs: skippable entries other than the cellar frame. */
uint64_t plan_dead_bytes(const struct object *o);
size_t plan_data_frames(const struct object *o);

/* base: NULL where nothing can stay; changed: one byte an entry of it, not 0 where the file says
 * something else now. Entries past size, or cut by it, count as changed. -ENOMEM, -EFBIG (too
 * many frames). plan_clear() afterwards, also on errors. */
errint_t plan_make(const struct object *base, const uint8_t *changed, uint64_t size,
                   const struct plan_rules *rules, struct plan *ret, char **cause);
void plan_clear(struct plan *p);

#endif
