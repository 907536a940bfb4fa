/*
 * The seek table of the zstd seekable format, version 0.1.0
 * (zstd/contrib/seekable_format/zstd_seekable_compression_format.md), and nothing else.
 *
 *   skippable frame at the end of the object, all little-endian:
 *     0x184D2A5E            4   magic
 *     size of what follows  4   = n * entry + 9
 *     n entries: compressed size 4, decompressed size 4, [XXH64 low 32 of the
 *                decompressed bytes 4, if the descriptor's checksum bit is set]
 *     footer: n 4, descriptor 1 (bit 7 checksums; bits 6-2 reserved, must be 0;
 *             bits 1-0 unused), 0x8F92EAB1 4
 *
 * A table is valid iff (1) footer magic, reserved bits and skippable header agree with
 * the sizes; (2) the entries' compressed sizes add up to exactly the offset of the table;
 * (3) none is smaller than the smallest frame; (4) there are at most 2^23 entries: what a
 * table takes in memory is bounded (2^23 frames of the usual 1 MiB are 8 TiB; the format itself
 * allows 2^27). A skippable frame in the middle (our cellar frame, a dead table) is an
 * entry with decompressed size 0.
 *
 * The table has no checksum of its own. Whether it may be believed beyond these rules is
 * for object.h to find out.
 */
#ifndef CELLAR_CODEC_SEEKTABLE_H
#define CELLAR_CODEC_SEEKTABLE_H

#include "base/error.h"

#define SEEKTABLE_MAGIC        0x184D2A5EU
#define SEEKTABLE_FOOTER_MAGIC 0x8F92EAB1U
#define SEEKTABLE_FOOTER_LEN   9
#define SEEKTABLE_FRAME_MIN    8 /* a skippable frame without contents */
#define SEEKTABLE_COUNT_MAX    (1U << 23)
#define SEEKTABLE_CHECKSUMS    0x80U /* bit of the descriptor */

/* Of an entry that decodes to nothing: XXH64 (seed 0) of no bytes. */
#define SEEKTABLE_EMPTY_CHECKSUM 0x51D8E999U

struct seek_entry {
	uint64_t stored_off;  /* offset of the frame in the object */
	uint64_t logical_off; /* offset of its first byte in the file */
	uint32_t stored_len;
	uint32_t logical_len; /* 0: skippable */
	uint32_t checksum;    /* XXH64 low 32, if has_checksums */
};

struct seek_table {
	struct seek_entry *entries;
	size_t count;
	size_t allocated;
	bool has_checksums;
	uint64_t stored_len;  /* sum: offset at which the table starts */
	uint64_t logical_len; /* sum: size of the file */
};

void seektable_init(struct seek_table *t); /* empty, with checksums */
void seektable_clear(struct seek_table *t);
/* -EFBIG when a sum would pass 2^63 or count 2^23; -ENOMEM. */
errint_t seektable_append(struct seek_table *t, uint32_t stored_len, uint32_t logical_len,
                          uint32_t checksum);

/* The bytes of the whole skippable frame, malloc'ed. */
errint_t seektable_serialize(const struct seek_table *t, uint8_t **ret, size_t *ret_len);

/* Length of the whole table frame as told by the last SEEKTABLE_FOOTER_LEN bytes of an
 * object, or 0 if these are no footer. Costs nothing, believes nothing. */
uint64_t seektable_len_from_footer(const uint8_t footer[SEEKTABLE_FOOTER_LEN]);

/* Parses the table frame buf[0..len), which stood at stored offset table_off of its object.
 * -EUCLEAN with a cause when it is not valid as defined above; never reads outside buf. */
errint_t seektable_parse(const uint8_t *buf, size_t len, uint64_t table_off,
                         struct seek_table *ret, char **cause);

/* Index of the entry that holds logical byte off (entries of length 0 are passed over);
 * count if off is at or past the end. Binary search. */
size_t seektable_find(const struct seek_table *t, uint64_t off);

#endif
