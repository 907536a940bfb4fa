/*
 * Writing objects: scratch bytes in, a complete seekable object out, and the proof that it
 * says what it should.
 *
 * An object as written here: data frames (content size, content checksum, no dictionary,
 * each of at most frame_size logical bytes), cellar frame, seek table. Nothing else; an
 * empty file has no data frame. `zstd -dc` prints exactly the input.
 *
 * Data that does not shrink: a few samples are tried first (encode_probe); then frames of
 * raw blocks are written at disk speed and CELLARFRAME_INCOMPRESSIBLE is set. It is also
 * set when the samples promised more than the whole kept.
 *
 * Memory: threads * (frame_size + ZSTD_compressBound(frame_size)) + one context a thread.
 */
#ifndef CELLAR_CODEC_ENCODE_H
#define CELLAR_CODEC_ENCODE_H

#include "codec/cellarframe.h"
#include "codec/seektable.h"

struct encode_params {
	int level;
	uint32_t frame_size; /* 1 to OBJECT_FRAME_MAX */
	unsigned threads;    /* at least 1 */
	const volatile bool
	    *stop; /* becomes true: -EINTR before the next frame; may be NULL */
	struct cellar_frame cellar; /* level, flags and table_check are filled in */
};

struct encode_result {
	uint64_t stored_size;
	uint64_t logical_size;
	uint64_t trailer_hash[2]; /* as object_open() would find it */
	uint64_t content_hash[2]; /* low, high of XXH3_128 over, frame by frame in order,
	                             each frame's XXH3_128 in canonical (big-endian) form */
	size_t frames;            /* data frames */
	uint16_t flags;           /* as in the cellar frame */
};

/* Encodes bytes [0, size) of in_fd into out_fd, from its offset 0; out_fd is empty. The
 * input may change meanwhile (the caller finds out by other means and throws the result
 * away), but must not be shorter than size: -ENODATA. content_hash is that of the bytes
 * that were encoded, each read once. No fsync. */
errint_t encode_object(int in_fd, uint64_t size, int out_fd, const struct encode_params *p,
                       struct encode_result *ret, char **cause);

/* Decodes the object in fd and compares with content_hash, sizes and trailer: 0, or
 * -EUCLEAN with a cause. In parallel on `threads` threads. Not counted as decoding. */
errint_t encode_verify(int fd, const struct encode_result *r, unsigned threads,
                       char **cause);

/* Whether a few samples of [0, size) say that compression is worth its time. */
errint_t encode_probe(int in_fd, uint64_t size, bool *ret_shrinks);

#endif
