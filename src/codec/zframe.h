/*
 * Zstandard frames (RFC 8878) as far as they can be known without decoding: their headers,
 * where they end, how much they hold; and frames of raw blocks, which need no compressor.
 *
 * Nothing here believes more than it read; everything is bounded by what the caller gives.
 */
#ifndef CELLAR_CODEC_ZFRAME_H
#define CELLAR_CODEC_ZFRAME_H

#include "base/error.h"

#define ZFRAME_MAGIC         0xFD2FB528U
#define ZFRAME_HEADER_MAX    18 /* longest header, magic included */
#define ZFRAME_HEAD_LEN      21 /* as many bytes tell all that zframe_parse() can tell */
#define ZFRAME_BLOCK_MAX     (128U << 10)
#define ZFRAME_SKIPPABLE_LEN 8 /* header of a skippable frame */

enum zframe_kind {
	ZFRAME_NONE,      /* no frame begins with these bytes */
	ZFRAME_CUT,       /* the bytes end before the header does */
	ZFRAME_SKIPPABLE, /* only body_len and header_len mean something */
	ZFRAME_DATA,
};

struct zframe {
	enum zframe_kind kind;
	uint32_t header_len;
	uint32_t body_len; /* of a skippable frame, what follows its header */
	bool has_size;
	bool has_checksum;
	bool marked; /* see zframe_mark(); false where the bytes end before it */
	uint32_t dictionary;
	uint64_t window;
	uint64_t size; /* logical, if has_size */
};

struct zframe zframe_parse(const uint8_t *p, size_t len);
bool zframe_is_magic(uint32_t magic);

/* Every frame on the way through bytes [0, len) of fd, by reading frame and block headers
 * only, at most reads_max of them. stored_len is the frame's whole length. The walk ends
 * early, with *ret_whole false, where the bytes are no frame, a frame does not end before
 * len, or the reads are used up. Errors: those of reading, and what fn returns. */
typedef errint_t (*zframe_fn)(void *ctx, uint64_t off, uint64_t stored_len,
                              const struct zframe *f);
errint_t zframe_each(int fd, uint64_t len, unsigned reads_max, zframe_fn fn, void *ctx,
                     bool *ret_whole);

/* Adds up the content sizes of all frames in bytes [0, len) of fd by reading frame and
 * block headers only, at most 4096 of them. False when that was not enough, a frame does
 * not tell its size, or the last one does not end at len; errors are those of reading. */
errint_t zframe_walk(int fd, uint64_t len, bool *ret_known, uint64_t *ret_logical);

/* Marks the complete data frame buf[0, len) with an empty raw block before its first block,
 * ZFRAME_MARK_LEN bytes more. Every decompressor passes over it (RFC 8878: a block may hold no
 * bytes), no compressor writes one there: it is how a frame says that it is part of an object
 * with a trailer, so that one cut between two frames is known as cut. Returns the new
 * length. */
#define ZFRAME_MARK_LEN 3U
size_t zframe_mark(uint8_t *buf, size_t len);

/* One (marked) frame of raw blocks with content size and checksum around data[0, len), len > 0, in
 * buf, which holds zframe_raw_bound(len) bytes. Returns its length. */
size_t zframe_raw_bound(size_t len);
size_t zframe_raw(const uint8_t *data, size_t len, uint8_t *buf);

#endif
