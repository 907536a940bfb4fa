/*
 * Writing objects: a file's bytes in, a complete seekable object out, and the proof that it
 * says what it should.
 *
 * An object as written here: data frames (content size, content checksum, no dictionary,
 * each of at most frame_size logical bytes), cellar frame, seek table. Nothing else; an
 * empty file has no data frame. `zstd -dc` prints exactly the input. An object that was appended
 * to has its earlier cellar frames and tables between its data frames, listed as entries of
 * decompressed size 0; one that was made from another may have that one's frame boundaries.
 *
 * Data that does not shrink: a few samples are tried first; then frames of raw blocks are
 * written at disk speed. CELLARFRAME_INCOMPRESSIBLE is set when the whole object does not
 * shrink. Frames that stay are not tried again.
 *
 * The proof. With `prove`, each frame is read back from where it was written as soon as it is,
 * decoded, and compared byte by byte with what was encoded; a copied frame is read back and its
 * stored bytes are compared with those of the base, so it decodes to what the base's decodes to.
 * encode_check() then compares the trailer. encode_verify() decodes a whole object once more.
 *
 * Memory: a thread holds one frame encoded and one not, with `prove` twice that: with frames of 1
 * MiB about 4 MiB, and a zstd context; and 72 bytes a frame of the object. encode_threads() says
 * how many threads stay within ENCODE_MEMORY_MAX.
 */
#ifndef CELLAR_CODEC_ENCODE_H
#define CELLAR_CODEC_ENCODE_H

#include "codec/cellarframe.h"
#include "codec/hash.h"
#include "codec/plan.h"
#include "codec/seektable.h"

#define ENCODE_PROBE_LEN  (64U << 10)
#define ENCODE_MEMORY_MAX (256ULL << 20)

struct encode_params {
	int level;
	uint32_t frame_size; /* 1 to OBJECT_FRAME_MAX */
	unsigned threads;    /* at least 1 */
	const volatile bool
	    *stop;  /* becomes true: -EINTR before the next frame; may be NULL */
	bool prove; /* see above */
	struct cellar_frame cellar; /* level, flags and table_check are filled in */
};

struct encode_result {
	uint64_t stored_size;
	uint64_t logical_size;
	uint64_t written;         /* bytes that this call wrote, copied ones included */
	uint64_t trailer_hash[2]; /* as object_open() would find it */
	uint64_t content_hash[2]; /* low, high of XXH3_128 over, frame by frame in order,
	                             each frame's XXH3_128 in canonical (big-endian) form;
	                             only where all frames were encoded */
	size_t frames;            /* data frames */
	size_t entries;           /* of the seek table */
	uint16_t flags;           /* as in the cellar frame */
};

/* Where the file's bytes come from; called by several threads at once. -ENODATA: it is shorter. */
struct encode_source {
	errint_t (*read)(void *ctx, void *buf, size_t len, uint64_t off, char **cause);
	void *ctx;
};
struct encode_source encode_source_fd(const int *fd); /* *fd is read where it is now */

/* Encodes bytes [0, size) of in_fd into out_fd, from its offset 0; out_fd is empty. The
 * input may change meanwhile (the caller finds out by other means and throws the result
 * away), but must not be shorter than size: -ENODATA. content_hash is that of the bytes
 * that were encoded, each read once. No fsync. */
errint_t encode_object(int in_fd, uint64_t size, int out_fd, const struct encode_params *p,
                       struct encode_result *ret, char **cause);

/* The same by a plan (plan.h), in two steps, so that frames can be made durable before the
 * trailer names them. base: what the plan was made from, NULL if from nothing; it, source, plan
 * and out_fd stay the caller's and must live as long. A replacing plan writes from offset 0 of the
 * empty out_fd; an appending one from base->stored_size, out_fd being the base's own file open for
 * writing. base_hashes (may be NULL): one an entry of base's
 * table. */
struct encoder;
errint_t encoder_new(const struct encode_source *source, uint64_t size, int out_fd,
                     const struct encode_params *p, const struct plan *plan,
                     const struct object *base, const struct frame_hash *base_hashes,
                     struct encoder **ret, char **cause);
errint_t encoder_frames(struct encoder *e, char **cause);
errint_t encoder_trailer(struct encoder *e, struct encode_result *ret, char **cause);
/* One hash a data frame of the result, after encoder_frames(); malloc'ed, given away. */
struct frame_hash *encoder_take_hashes(struct encoder *e);
void encoder_free(struct encoder *e); /* NULL is fine */

/* As many threads as `wanted`, but no more than ENCODE_MEMORY_MAX has room for; at least 1. */
unsigned encode_threads(unsigned wanted, uint32_t frame_size);

/* Decodes the object in fd and compares with content_hash, sizes and trailer: 0, or
 * -EUCLEAN with a cause. In parallel on `threads` threads. Not counted as decoding. */
errint_t encode_verify(int fd, const struct encode_result *r, unsigned threads,
                       char **cause);
/* Compares sizes and trailer only. */
errint_t encode_check(int fd, const struct encode_result *r, char **cause);

/* Whether a few samples of [0, size) say that compression is worth its time. */
errint_t encode_probe(int in_fd, uint64_t size, bool *ret_shrinks);

/* ---- within codec/ ---- */

errint_t encode_probe_plan(const struct encode_source *s, const struct plan *p,
                           bool *ret_shrinks, char **cause);
bool encode_shrinks(uint64_t logical, uint64_t stored);
errint_t encode_compress(const void *data, size_t len, int level, void *buf, size_t room,
                         size_t *ret_len, char **cause);

#endif
