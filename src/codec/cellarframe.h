/*
 * The cellar frame: what an object says of itself. A skippable frame that stands right
 * before the seek table, which lists it as an entry with decompressed size 0.
 *
 *   all little-endian:
 *     0x184D2A5C   4   magic
 *     72           4   size of what follows
 *     "CLRF"       4
 *     version      2   = 1
 *     flags        2   bit 0: CELLARFRAME_INCOMPRESSIBLE; others written 0, read past
 *     level        4   signed, zstd level of the last flush
 *     ctime nsec   4   below 10^9
 *     pool uuid   16
 *     ino          8   logical inode number
 *     seq          8   number of the flush that wrote it (design, section 5)
 *     ctime sec    8   signed; logical ctime
 *     table check  8   XXH64 (seed 0) of the whole seek table frame that follows
 *     checksum     8   XXH64 (seed 0) of all bytes before it, magic included
 *
 * A version other than 1 is treated as absent. Total length 80.
 *
 * Why the table check: the seekable format gives its table no checksum. With one length in
 * it damaged, every later frame would decode without complaint, for the wrong offset.
 */
#ifndef CELLAR_CODEC_CELLARFRAME_H
#define CELLAR_CODEC_CELLARFRAME_H

#include <time.h>

#include "base/uuid.h"

#define CELLARFRAME_MAGIC    0x184D2A5CU
#define CELLARFRAME_LEN      80
#define CELLARFRAME_NAME_END 12 /* magic, size and name */

#define CELLARFRAME_INCOMPRESSIBLE 0x1U /* does not shrink: nobody need try again */

struct cellar_frame {
	struct uuid pool;
	uint64_t ino;
	uint64_t seq;
	struct timespec ctime;
	uint64_t table_check; /* filled in by encode_object() */
	int32_t level;
	uint16_t flags;
};

void cellarframe_pack(const struct cellar_frame *f, uint8_t ret[CELLARFRAME_LEN]);
/* False when buf is no valid version 1 cellar frame. */
bool cellarframe_unpack(const uint8_t *buf, size_t len, struct cellar_frame *ret);

/* Whether the name stands where a cellar frame has it; buf holds CELLARFRAME_NAME_END bytes. */
bool cellarframe_is_named(const uint8_t *buf);

#endif
