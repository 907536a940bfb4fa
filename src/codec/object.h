/*
 * Reading objects: classify, find frames, decode.
 *
 * struct object describes the bytes behind one descriptor at one moment. It borrows the
 * descriptor (the caller keeps it open) and is immutable after object_open(), so any number
 * of threads may decode from it at once; each call brings its own buffers.
 *
 * Kinds (design, section 3):
 *   OBJECT_SEEKABLE  valid seek table that is proved (below); every data frame is at most
 *                    OBJECT_FRAME_MAX logical bytes
 *   OBJECT_FOREIGN   zstd (or skippable) frames without a usable seek table: read in order
 *   OBJECT_PLAIN     not zstd: neither a magic at the start nor a valid trailer at the end
 *   OBJECT_EMPTY     0 bytes long: not a valid object (a new file's place-holder)
 *
 * What is believed of a table. It has no checksum: one damaged length in it would move all
 * later frames to wrong offsets, where each still decodes without complaint. So it counts
 * as proved only when
 *   (1) the cellar frame before it carries its hash (cellarframe.h), or
 *   (2) there is no cellar frame, and each frame's own header agrees with its entry: the
 *       same content size; or, where the entry says 0, skippable or without content and of
 *       the same length. A header that is no header at all is damage of that frame and no
 *       argument against the table. At most OBJECT_PROOF_MAX frames are looked at; or
 *   (3) the table itself is damaged or cut, but a table made anew by walking the frames
 *       (rebuild.h) has the hash that a valid cellar frame carries, and nothing but the rest
 *       of the damaged table follows that one. Then the new table is believed, and `flaw`
 *       says so.
 * All else is OBJECT_FOREIGN. Data frames that cellar wrote are marked as parts of an object
 * with a trailer (zframe_mark()): where no valid cellar frame follows them whose check is that
 * of these very frames, the object was cut, maybe exactly between two frames, or its frames
 * were exchanged: it does not decode (-EUCLEAN). So damage never turns an object with a valid trailer into a
 * plain file, and a damaged frame or table never shows as other bytes.
 *
 * What is believed of a frame: nothing before zstd's content checksum (where present), the
 * table's XXH64 (where present), the declared length and the length it takes up all agree.
 * Otherwise -EUCLEAN with a cause that names frame and reason, and COUNTER_DAMAGED. Windows
 * above 2^27, dictionaries and zstd's formats before 0.8 are refused (-EUCLEAN, cause).
 */
#ifndef CELLAR_CODEC_OBJECT_H
#define CELLAR_CODEC_OBJECT_H

#include "codec/cellarframe.h"
#include "codec/seektable.h"

#define OBJECT_FRAME_MAX                                                                   \
	(64U << 20) /* larger "frames" of a table make the object foreign */
#define OBJECT_PROOF_MAX  65536
#define OBJECT_WINDOW_LOG 27
#define OBJECT_PIECE      (1U << 20) /* most bytes a sink gets at once */

enum object_kind { OBJECT_SEEKABLE, OBJECT_FOREIGN, OBJECT_PLAIN, OBJECT_EMPTY };

#define OBJECT_SIZE_UNKNOWN UINT64_MAX

/* Logical bytes [off, off + len) of a file. */
struct object_range {
	uint64_t off, len;
};

struct object {
	int fd; /* borrowed */
	enum object_kind kind;
	bool uncounted; /* set by a caller that only verifies: COUNTER_FRAMES_DECODED and
	                 * COUNTER_BYTES_DECODED stay as they are */
	uint64_t stored_size;
	uint64_t logical_size;   /* OBJECT_SIZE_UNKNOWN: foreign without content sizes */
	struct seek_table table; /* empty unless seekable */
	bool has_cellar_frame;   /* never unless seekable */
	const char *flaw;        /* damage that costs no byte of content, or NULL; static */
	struct cellar_frame cellar;
	uint64_t trailer_hash[2]; /* XXH3_128 (low, high): for seekable ones of everything
	                           * from the cellar frame (or else the table) to the end;
	                           * otherwise of the first and the last 64 KiB */
};

/* Looks at head and tail only, and at frame and block headers where a table has to be
 * proved or a foreign object's size found out (zframe_walk(): at most 4096 reads, else the
 * size is unknown). Errors: those of reading, -ENOMEM; a damaged object is not an error
 * here, it fails when decoded. On an error *ret is empty and need not be closed. */
errint_t object_open(int fd, struct object *ret, char **cause);
/* As if the object ended after `size` bytes. */
errint_t object_open_part(int fd, uint64_t size, struct object *ret, char **cause);
void object_close(struct object *o); /* frees the table; not the descriptor */

/* Whether what stands at entries that decode to nothing (old tables, the cellar frame) are
 * still frames that other decoders pass over: -EUCLEAN with a cause. */
errint_t object_check_empty(const struct object *o, char **cause);

/* Decodes data frame i of a seekable object into buf, which holds at least
 * table.entries[i].logical_len bytes. An entry of length 0 is passed over. */
errint_t object_decode_frame(const struct object *o, size_t i, void *buf, char **cause);
/* The same with the caller's room for its table.entries[i].stored_len bytes. */
errint_t object_decode_frame_with(const struct object *o, size_t i, void *stored, void *buf,
                                  char **cause);

/* Windows above 2^27 and dictionaries: -EUCLEAN and a cause. */
struct zframe;
errint_t object_refuse_features(const struct zframe *f, char **cause);

/* Decodes entries [from, to) of a seekable object on up to `threads` threads and calls fn
 * for each data frame, on the thread that decoded it, in no particular order; data is
 * valid during the call. The first failure (fn's too) stops the rest and is returned.
 * Memory: each thread its largest frame, stored and decoded. */
typedef errint_t (*object_frame_fn)(void *ctx, size_t i, const void *data);
errint_t object_each_frame(const struct object *o, size_t from, size_t to, unsigned threads,
                           object_frame_fn fn, void *ctx, char **cause);

/* Decodes everything in order, calling sink with consecutive pieces (each at most
 * OBJECT_PIECE bytes). Works for every kind but OBJECT_EMPTY (-EUCLEAN); OBJECT_PLAIN is
 * passed through. A non-zero result of sink stops and is returned. limit_bytes bounds the
 * logical size (-EFBIG): a bomb's declared or real size. Of a foreign frame sink sees
 * bytes before the frame's checksum was met: they are to be believed only once 0 was
 * returned. Memory: one window (seekable: one frame) + OBJECT_PIECE. */
typedef errint_t (*object_sink_fn)(void *ctx, uint64_t off, const void *data, size_t len);
errint_t object_decode_all(const struct object *o, uint64_t limit_bytes,
                           object_sink_fn sink, void *ctx, char **cause);

/* Copies logical bytes [off, off + len) into out_fd at the same offsets; for seekable
 * objects whole frames in parallel on up to `threads` threads; for foreign and plain ones
 * off must be 0 and len the whole (or OBJECT_SIZE_UNKNOWN), else -EINVAL. *ret_end gets the
 * offset after the last byte written. Frames that overlap the range only partly are
 * written whole; what lies past the end of the object is not written. */
errint_t object_extract(const struct object *o, uint64_t off, uint64_t len, int out_fd,
                        unsigned threads, uint64_t limit_bytes, uint64_t *ret_end,
                        char **cause);

#endif
