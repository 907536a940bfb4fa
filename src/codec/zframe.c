/*
 * Frame headers, the walk over them, and raw frames: see zframe.h.
 *
 *   frame:  magic 4, descriptor 1, [window 1], [dictionary id 0-4], [content size 0-8],
 *           blocks, [XXH64 low 32 of the content 4]
 *   marked: the first block is raw, empty and not the last
 *   descriptor: bits 7-6 width of the content size (1, 2, 4, 8 bytes; 0 means none, or 1
 *           byte in a single segment), bit 5 single segment (then there is no window byte
 *           and the window is the content), bit 4 unused, bit 3 reserved, bit 2 checksum,
 *           bits 1-0 width of the dictionary id (0, 1, 2, 4)
 *   block:  header 3 = last 1 bit, type 2 bits (0 raw, 1 RLE: one byte follows, 2
 *           compressed), size 21 bits
 *
 * No state, no threads.
 */
#include "codec/zframe.h"

#include <xxhash.h>

#include "base/sysio.h"
#include "codec/little.h"

#define DESC_SINGLE   0x20U
#define DESC_CHECKSUM 0x04U

#define SKIPPABLE_MAGIC 0x184D2A50U /* and the fifteen after it */
#define SKIPPABLE_MASK  0xFFFFFFF0U

#define BLOCK_HEADER 3U
#define BLOCK_LAST   1U
#define CHECKSUM_LEN 4U

#define WALK_READS 4096

static const uint8_t size_width[4] = {0, 2, 4, 8}; /* by descriptor bits 7-6 */

enum block_type { BLOCK_RAW, BLOCK_RLE, BLOCK_COMPRESSED, BLOCK_RESERVED };

bool zframe_is_magic(uint32_t magic)
{
	return magic == ZFRAME_MAGIC || (magic & SKIPPABLE_MASK) == SKIPPABLE_MAGIC;
}

static uint64_t get_le(const uint8_t *p, unsigned width)
{
	uint64_t v = 0;

	for (unsigned i = width; i > 0; i--)
		v = v << 8 | p[i - 1];
	return v;
}

static struct zframe parse_skippable(const uint8_t *p, size_t len)
{
	if (len < ZFRAME_SKIPPABLE_LEN)
		return (struct zframe){.kind = ZFRAME_CUT};
	return (struct zframe){
	    .kind = ZFRAME_SKIPPABLE,
	    .header_len = ZFRAME_SKIPPABLE_LEN,
	    .body_len = get_le32(p + 4),
	};
}

static uint64_t window_size(uint8_t b)
{
	uint64_t base = 1ULL << (10 + (b >> 3));

	return base + base / 8 * (b & 7);
}

static struct zframe parse_data(const uint8_t *p, size_t len)
{
	static const uint8_t dictionary_width[4] = {0, 1, 2, 4};
	struct zframe f = {.kind = ZFRAME_CUT};
	unsigned dictionary, size;
	const uint8_t *first_block;
	bool single;

	if (len < 5)
		return f;
	single = p[4] & DESC_SINGLE;
	dictionary = dictionary_width[p[4] & 3];
	size = size_width[p[4] >> 6];
	if (!size && single)
		size = 1;
	f.header_len = 5 + !single + dictionary + size;
	if (len < f.header_len)
		return f;

	first_block = p + f.header_len;
	f.kind = ZFRAME_DATA;
	f.has_checksum = p[4] & DESC_CHECKSUM;
	f.has_size = size > 0;
	p += 5;
	if (!single)
		f.window = window_size(*p++);
	f.dictionary = (uint32_t)get_le(p, dictionary);
	f.size = get_le(p + dictionary, size);
	if (size == 2)
		f.size += 256;
	if (single)
		f.window = f.size;
	f.marked = len >= f.header_len + BLOCK_HEADER && !get_le(first_block, BLOCK_HEADER);
	return f;
}

struct zframe zframe_parse(const uint8_t *p, size_t len)
{
	uint32_t magic;

	if (len < sizeof(magic))
		return (struct zframe){.kind = ZFRAME_CUT};
	magic = get_le32(p);
	if (magic == ZFRAME_MAGIC)
		return parse_data(p, len);
	if (zframe_is_magic(magic))
		return parse_skippable(p, len);
	return (struct zframe){.kind = ZFRAME_NONE};
}

/* ---- the walk ---- */

struct walk {
	int fd;
	uint64_t pos, len;
	unsigned reads, reads_max;
	bool lost; /* cannot go on */
	zframe_fn fn;
	void *ctx;
};

/* Reads up to `want` bytes at the walk's place; how many there were. */
static errint_t walk_read(struct walk *w, uint8_t *buf, size_t want, size_t *ret_len)
{
	*ret_len = MIN_OF((uint64_t)want, w->len - w->pos);
	if (w->reads++ >= w->reads_max) {
		w->lost = true;
		return 0;
	}
	return full_pread(w->fd, buf, *ret_len, (off_t)w->pos);
}

static void walk_skip(struct walk *w, uint64_t n)
{
	if (n > w->len - w->pos)
		w->lost = true;
	else
		w->pos += n;
}

static errint_t walk_block(struct walk *w, bool *ret_last)
{
	uint8_t buf[BLOCK_HEADER];
	uint32_t header, size;
	size_t got;
	errint_t err = walk_read(w, buf, sizeof(buf), &got);

	if (err || w->lost)
		return err;
	if (got < sizeof(buf)) {
		w->lost = true;
		return 0;
	}
	header = (uint32_t)get_le(buf, BLOCK_HEADER);
	size = header >> 3;
	switch ((enum block_type)(header >> 1 & 3)) {
	case BLOCK_RLE:
		size = 1;
		break;
	case BLOCK_RAW:
	case BLOCK_COMPRESSED:
		w->lost = size > ZFRAME_BLOCK_MAX;
		break;
	case BLOCK_RESERVED:
		w->lost = true;
		break;
	}
	*ret_last = header & BLOCK_LAST;
	walk_skip(w, BLOCK_HEADER + size);
	return 0;
}

static errint_t walk_blocks(struct walk *w, const struct zframe *f)
{
	bool last = false;
	errint_t err = 0;

	walk_skip(w, f->header_len);
	while (!err && !w->lost && !last)
		err = walk_block(w, &last);
	if (!err && !w->lost && f->has_checksum)
		walk_skip(w, CHECKSUM_LEN);
	return err;
}

static errint_t walk_frame(struct walk *w)
{
	uint8_t buf[ZFRAME_HEAD_LEN];
	uint64_t off = w->pos;
	struct zframe f;
	size_t got;
	errint_t err = walk_read(w, buf, sizeof(buf), &got);

	if (err || w->lost)
		return err;
	f = zframe_parse(buf, got);
	if (f.kind == ZFRAME_SKIPPABLE)
		walk_skip(w, (uint64_t)f.header_len + f.body_len);
	else if (f.kind == ZFRAME_DATA)
		err = walk_blocks(w, &f);
	else
		w->lost = true;
	return err || w->lost ? err : w->fn(w->ctx, off, w->pos - off, &f);
}

errint_t zframe_each(int fd, uint64_t len, unsigned reads_max, zframe_fn fn, void *ctx,
                     bool *ret_whole)
{
	struct walk w = {
	    .fd = fd, .len = len, .reads_max = reads_max, .fn = fn, .ctx = ctx};
	errint_t err = 0;

	while (!err && !w.lost && w.pos < len)
		err = walk_frame(&w);
	*ret_whole = !err && !w.lost;
	return err;
}

struct sum {
	uint64_t logical;
	bool unknown;
};

static errint_t add_size(void *ctx, uint64_t off, uint64_t stored_len,
                         const struct zframe *f)
{
	struct sum *s = ctx;

	(void)off;
	(void)stored_len;
	if (f->kind != ZFRAME_DATA)
		return 0;
	if (!f->has_size || f->size > INT64_MAX - s->logical)
		s->unknown = true;
	else
		s->logical += f->size;
	return 0;
}

errint_t zframe_walk(int fd, uint64_t len, bool *ret_known, uint64_t *ret_logical)
{
	struct sum s = {0};
	bool whole;
	errint_t err = zframe_each(fd, len, WALK_READS, add_size, &s, &whole);

	if (err)
		return err;
	*ret_known = whole && !s.unknown;
	*ret_logical = s.logical;
	return 0;
}

/* ---- marks ---- */

size_t zframe_mark(uint8_t *buf, size_t len)
{
	struct zframe f = zframe_parse(buf, len);
	uint8_t *first_block = buf + f.header_len;

	INVARIANT(f.kind == ZFRAME_DATA);
	memmove(first_block + ZFRAME_MARK_LEN, first_block, len - f.header_len);
	memset(first_block, 0, ZFRAME_MARK_LEN);
	return len + ZFRAME_MARK_LEN;
}

/* ---- frames of raw blocks ---- */

size_t zframe_raw_bound(size_t len)
{
	size_t blocks = len / ZFRAME_BLOCK_MAX + 1;

	return ZFRAME_HEADER_MAX + ZFRAME_MARK_LEN + len + blocks * BLOCK_HEADER +
	       CHECKSUM_LEN;
}

static uint8_t *put_raw_header(uint8_t *p, size_t len)
{
	unsigned width = len < 256 ? 0 : len < 256 + 65536 ? 1 : len <= UINT32_MAX ? 2 : 3;

	put_le32(p, ZFRAME_MAGIC);
	p[4] = (uint8_t)(width << 6 | DESC_SINGLE | DESC_CHECKSUM);
	p += 5;
	switch (width) {
	case 0:
		*p = (uint8_t)len;
		return p + 1;
	case 1:
		put_le16(p, (uint16_t)(len - 256));
		return p + 2;
	case 2:
		put_le32(p, (uint32_t)len);
		return p + 4;
	default:
		put_le64(p, len);
		return p + 8;
	}
}

size_t zframe_raw(const uint8_t *data, size_t len, uint8_t *buf)
{
	uint8_t *p = put_raw_header(buf, len);

	INVARIANT(len > 0);
	memset(p, 0, ZFRAME_MARK_LEN);
	p += ZFRAME_MARK_LEN;
	for (size_t off = 0; off < len;) {
		uint32_t n = (uint32_t)MIN_OF(len - off, (size_t)ZFRAME_BLOCK_MAX);
		uint32_t header = n << 3 | BLOCK_RAW << 1 | (off + n == len);

		p[0] = (uint8_t)header;
		p[1] = (uint8_t)(header >> 8);
		p[2] = (uint8_t)(header >> 16);
		memcpy(p + BLOCK_HEADER, data + off, n);
		p += BLOCK_HEADER + n;
		off += n;
	}
	put_le32(p, (uint32_t)XXH64(data, len, 0));
	return (size_t)(p + CHECKSUM_LEN - buf);
}
