/*
 * Foreign objects in order: frames without a usable seek table, decoded piece by piece with the
 * decoder kept in between.
 *
 * What is believed: bytes of a frame come out before its checksum was met. They are proved
 * once object_stream_proved() has passed them, and all are when the end was met without an
 * error. An error is final: what comes after it cannot be known.
 *
 * Memory: the frame's window (at most 2^OBJECT_WINDOW_LOG) and 256 KiB of input.
 *
 * Threads: one at a time.
 */
#ifndef CELLAR_CODEC_STREAM_H
#define CELLAR_CODEC_STREAM_H

#include "codec/object.h"

struct object_stream;

/* o: OBJECT_FOREIGN, borrowed with its descriptor. -ENOMEM. */
errint_t object_stream_new(const struct object *o, uint64_t limit_bytes,
                           struct object_stream **ret);
void object_stream_free(struct object_stream *s); /* NULL is fine */

/* The next bytes, up to len > 0: *ret_len < len only at the end. Where the object's size is
 * known and reached, the rest is met too: that nothing follows and that the last checksum is
 * right, before the last bytes are given out. -EUCLEAN (counted as damage), -EFBIG past limit_bytes,
 * those of reading. */
errint_t object_stream_read(struct object_stream *s, void *buf, size_t len, size_t *ret_len,
                            char **cause);
/* Logical offset of the next byte; up to where checksums were met: the end of the last
 * complete frame. */
uint64_t object_stream_at(const struct object_stream *s);
uint64_t object_stream_proved(const struct object_stream *s);

#endif
