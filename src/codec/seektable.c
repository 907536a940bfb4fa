/*
 * The seek table: see seektable.h for the format and for what makes a table valid.
 *
 * Guarantees: parsing reads the whole buffer once for its sums before it allocates or
 * stores anything, so a table that lies costs no memory; a parsed table is consistent
 * (offsets ascend without gaps and end where the table begins). Nothing here reads files.
 *
 * Threads: a table belongs to its owner; reading it from several threads is fine.
 */
#include "codec/seektable.h"

#include <string.h>

#include "codec/little.h"

#define HEAD_LEN        8U /* magic and size of the skippable frame */
#define ENTRY_LEN       8U
#define ENTRY_CHECKSUM  4U
#define SUM_MAX         ((uint64_t)INT64_MAX)
#define DESC_RESERVED   0x7CU
#define ALLOCATED_FIRST 16U

struct footer {
	uint32_t count;
	bool has_checksums;
};

void seektable_init(struct seek_table *t)
{
	*t = (struct seek_table){.has_checksums = true};
}

void seektable_clear(struct seek_table *t)
{
	free(t->entries);
	seektable_init(t);
}

static errint_t grow(struct seek_table *t)
{
	size_t n = t->allocated ? t->allocated * 2 : ALLOCATED_FIRST;
	struct seek_entry *entries = realloc(t->entries, n * sizeof(*entries));

	if (!entries)
		return -ENOMEM;
	t->entries = entries;
	t->allocated = n;
	return 0;
}

errint_t seektable_append(struct seek_table *t, uint32_t stored_len, uint32_t logical_len,
                          uint32_t checksum)
{
	if (t->count >= SEEKTABLE_COUNT_MAX || stored_len > SUM_MAX - t->stored_len ||
	    logical_len > SUM_MAX - t->logical_len)
		return -EFBIG;
	if (t->count == t->allocated) {
		errint_t err = grow(t);

		if (err)
			return err;
	}
	t->entries[t->count++] = (struct seek_entry){
	    .stored_off = t->stored_len,
	    .logical_off = t->logical_len,
	    .stored_len = stored_len,
	    .logical_len = logical_len,
	    .checksum = checksum,
	};
	t->stored_len += stored_len;
	t->logical_len += logical_len;
	return 0;
}

static size_t entry_len(bool has_checksums)
{
	return ENTRY_LEN + (has_checksums ? ENTRY_CHECKSUM : 0);
}

errint_t seektable_serialize(const struct seek_table *t, uint8_t **ret, size_t *ret_len)
{
	size_t step = entry_len(t->has_checksums);
	size_t len = HEAD_LEN + t->count * step + SEEKTABLE_FOOTER_LEN;
	uint8_t *buf, *p;

	INVARIANT(t->count <= SEEKTABLE_COUNT_MAX);
	buf = malloc(len);
	if (!buf)
		return -ENOMEM;
	put_le32(buf, SEEKTABLE_MAGIC);
	put_le32(buf + 4, (uint32_t)(len - HEAD_LEN));
	p = buf + HEAD_LEN;
	for (size_t i = 0; i < t->count; i++, p += step) {
		put_le32(p, t->entries[i].stored_len);
		put_le32(p + 4, t->entries[i].logical_len);
		if (t->has_checksums)
			put_le32(p + 8, t->entries[i].checksum);
	}
	put_le32(p, (uint32_t)t->count);
	p[4] = t->has_checksums ? SEEKTABLE_CHECKSUMS : 0;
	put_le32(p + 5, SEEKTABLE_FOOTER_MAGIC);
	*ret = buf;
	*ret_len = len;
	return 0;
}

static bool footer_parse(const uint8_t *p, struct footer *ret)
{
	if (get_le32(p + 5) != SEEKTABLE_FOOTER_MAGIC || (p[4] & DESC_RESERVED))
		return false;
	ret->count = get_le32(p);
	ret->has_checksums = p[4] & SEEKTABLE_CHECKSUMS;
	return ret->count <= SEEKTABLE_COUNT_MAX;
}

static uint64_t footer_table_len(const struct footer *f)
{
	return HEAD_LEN + (uint64_t)f->count * entry_len(f->has_checksums) +
	       SEEKTABLE_FOOTER_LEN;
}

uint64_t seektable_len_from_footer(const uint8_t footer[SEEKTABLE_FOOTER_LEN])
{
	struct footer f = {0};

	return footer_parse(footer, &f) ? footer_table_len(&f) : 0;
}

/* The header and the footer against each other and against the length of the buffer. */
static errint_t frame_check(const uint8_t *buf, size_t len, struct footer *ret,
                            char **cause)
{
	if (len < HEAD_LEN + SEEKTABLE_FOOTER_LEN)
		return set_cause(cause, -EUCLEAN,
		                 "seek table is shorter than an empty one");
	if (!footer_parse(buf + len - SEEKTABLE_FOOTER_LEN, ret))
		return set_cause(cause, -EUCLEAN, "seek table has no valid footer");
	if (footer_table_len(ret) != len)
		return set_cause(cause, -EUCLEAN,
		                 "seek table of %u entries is %zu bytes long", ret->count,
		                 len);
	if (get_le32(buf) != SEEKTABLE_MAGIC || get_le32(buf + 4) != len - HEAD_LEN)
		return set_cause(cause, -EUCLEAN,
		                 "seek table is not in a skippable frame of its length");
	return 0;
}

/* The sums of the entries, before anything is believed of them. */
static errint_t sums_check(const uint8_t *buf, const struct footer *f, uint64_t table_off,
                           char **cause)
{
	size_t step = entry_len(f->has_checksums);
	const uint8_t *p = buf + HEAD_LEN;
	uint64_t stored = 0;

	for (uint32_t i = 0; i < f->count; i++, p += step) {
		uint32_t stored_len = get_le32(p);

		if (stored_len < SEEKTABLE_FRAME_MIN)
			return set_cause(cause, -EUCLEAN,
			                 "seek table entry %u of %u bytes is no frame", i,
			                 stored_len);
		/* Neither sum can pass 2^55: 2^23 entries of 32 bits. */
		stored += stored_len;
	}
	if (stored != table_off)
		return set_cause(cause, -EUCLEAN,
		                 "seek table tells of %llu stored bytes, there are %llu",
		                 (unsigned long long)stored, (unsigned long long)table_off);
	return 0;
}

errint_t seektable_parse(const uint8_t *buf, size_t len, uint64_t table_off,
                         struct seek_table *ret, char **cause)
{
	struct seek_table t;
	struct footer f = {0};
	const uint8_t *p;
	size_t step;
	errint_t err;

	err = frame_check(buf, len, &f, cause);
	if (!err)
		err = sums_check(buf, &f, table_off, cause);
	if (err)
		return err;

	seektable_init(&t);
	t.has_checksums = f.has_checksums;
	if (f.count) {
		t.entries = calloc(f.count, sizeof(*t.entries));
		if (!t.entries)
			return set_cause(cause, -ENOMEM,
			                 "no memory for a seek table of %u entries",
			                 f.count);
		t.allocated = f.count;
	}
	step = entry_len(f.has_checksums);
	p = buf + HEAD_LEN;
	for (uint32_t i = 0; i < f.count && !err; i++, p += step)
		err = seektable_append(&t, get_le32(p), get_le32(p + 4),
		                       f.has_checksums ? get_le32(p + 8) : 0);
	INVARIANT(!err);
	*ret = t;
	return 0;
}

size_t seektable_find(const struct seek_table *t, uint64_t off)
{
	size_t low = 0, high = t->count;

	if (off >= t->logical_len)
		return t->count;
	/* The last entry that begins at or before off. It is not empty: the entry after an
	 * empty one begins at the same offset, and off is below the end of them all. */
	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (t->entries[mid].logical_off <= off)
			low = mid;
		else
			high = mid;
	}
	return low;
}
