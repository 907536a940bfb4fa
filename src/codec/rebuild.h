/*
 * The seek table of an object whose own is damaged, made anew from the frames before it and
 * proved by the hash in the cellar frame (object.h, proof 3).
 */
#ifndef CELLAR_CODEC_REBUILD_H
#define CELLAR_CODEC_REBUILD_H

#include "codec/cellarframe.h"
#include "codec/seektable.h"

struct rebuilt {
	struct seek_table table; /* the caller clears it */
	uint8_t *bytes;          /* the same, serialized; malloc'ed */
	size_t len;
	uint8_t cellar_bytes[CELLARFRAME_LEN];
	struct cellar_frame cellar;
};

/* True and *ret filled if such a table was found and proved. Reads headers and checksums of
 * frames only, at most 2^20 times. Errors are those of reading, and -ENOMEM. */
errint_t rebuild_table(int fd, uint64_t stored_size, struct rebuilt *ret, bool *ret_found);

/* Proving frames that are read in order, without a table: a marked frame (zframe_mark()) is
 * proved once a valid cellar frame has come by whose table check is that of a table of the
 * frames since the start, or since the end of an object before (two objects joined). */
struct prover {
	struct seek_table table; /* what came by */
	size_t group;            /* first entry after the last whole object */
	bool unproved;           /* a marked frame is not proved yet */
};

void prover_init(struct prover *p);
void prover_clear(struct prover *p);
/* The next frame: -ENOMEM, -EFBIG. */
errint_t prover_data(struct prover *p, uint64_t stored_len, uint64_t logical_len,
                     uint32_t checksum, bool marked);
/* head: the first bytes of a skippable frame, CELLARFRAME_LEN of them where it is as long. */
errint_t prover_skippable(struct prover *p, uint64_t stored_len, const uint8_t *head);

#endif
