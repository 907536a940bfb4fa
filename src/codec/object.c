/*
 * What an object is: see object.h for the kinds and for what is believed of a table. How it
 * is decoded: decode.c.
 *
 * Order: the table as it stands (try_seekable), one made anew (try_rebuilt), the rest.
 * Nothing is decoded here. Memory is asked for only after the bytes that ask for it were
 * seen twice (footer and head of a table), and never more than the file is long.
 *
 * Threads: object_open() works on its own object only; after it nobody writes to one.
 */
#include "codec/object.h"

#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/sysio.h"
#include "codec/little.h"
#include "codec/rebuild.h"
#include "codec/zframe.h"

#define HASHED_END (64U << 10) /* bytes hashed at either end of what has no trailer */

/* Longest frame without content that is accepted in a table: header, one block, checksum. */
#define EMPTY_FRAME_MAX (ZFRAME_HEADER_MAX + 3 + 4)

static void set_hash(struct object *o, XXH128_hash_t h)
{
	o->trailer_hash[0] = h.low64;
	o->trailer_hash[1] = h.high64;
}

/* Whether the entries could be those of a table that stands at off: read in pieces, before the
 * memory for it is asked for. A sparse file has room for a table of any size, and it is zeros. */
static errint_t sums_fit(int fd, uint64_t off, uint64_t len, bool *ret)
{
	uint8_t piece[12 * 1024];
	uint64_t left = len - ZFRAME_SKIPPABLE_LEN - SEEKTABLE_FOOTER_LEN;
	uint64_t at = off + ZFRAME_SKIPPABLE_LEN, stored = 0;
	uint8_t footer[SEEKTABLE_FOOTER_LEN];
	size_t step;
	errint_t err =
	    full_pread(fd, footer, sizeof(footer), (off_t)(off + len - sizeof(footer)));

	step = footer[4] & SEEKTABLE_CHECKSUMS ? 12 : 8; /* both divide the piece */
	*ret = false;
	while (!err && left > 0) {
		size_t n = MIN_OF(left, (uint64_t)sizeof(piece));

		err = full_pread(fd, piece, n, (off_t)at);
		if (err)
			return err;
		for (size_t i = 0; i + step <= n; i += step) {
			uint32_t stored_len = get_le32(piece + i);

			stored += stored_len;
			if (stored_len < SEEKTABLE_FRAME_MIN || stored > off)
				return 0;
		}
		at += n;
		left -= n;
	}
	*ret = !err && stored == off;
	return err;
}

/* The table's bytes, unless the end of the object cannot be one. */
static errint_t read_table(int fd, uint64_t size, uint8_t **ret, size_t *ret_len)
{
	uint8_t footer[SEEKTABLE_FOOTER_LEN], head[ZFRAME_SKIPPABLE_LEN];
	cleanup_free uint8_t *buf = NULL;
	uint64_t len;
	bool fits;
	errint_t err;

	*ret = NULL;
	if (size < SEEKTABLE_FOOTER_LEN)
		return 0;
	err = full_pread(fd, footer, sizeof(footer), (off_t)(size - sizeof(footer)));
	if (err)
		return err;
	len = seektable_len_from_footer(footer);
	if (!len || len > size)
		return 0;
	/* Nine bytes can claim a gigabyte: the head is asked before memory is. */
	err = full_pread(fd, head, sizeof(head), (off_t)(size - len));
	if (err)
		return err;
	if (get_le32(head) != SEEKTABLE_MAGIC || get_le32(head + 4) != len - sizeof(head))
		return 0;
	err = sums_fit(fd, size - len, len, &fits);
	if (err || !fits)
		return err;
	buf = malloc(len);
	if (!buf)
		return -ENOMEM;
	err = full_pread(fd, buf, len, (off_t)(size - len));
	if (err)
		return err;
	*ret = steal_pointer(&buf);
	*ret_len = len;
	return 0;
}

/* Whether all frames are of sizes that we are willing to hold in memory. */
static bool frames_fit(const struct seek_table *t)
{
	uint32_t stored_max = (uint32_t)ZSTD_compressBound(OBJECT_FRAME_MAX);

	for (size_t i = 0; i < t->count; i++) {
		const struct seek_entry *e = &t->entries[i];

		if (e->logical_len > OBJECT_FRAME_MAX ||
		    (e->logical_len && e->stored_len > stored_max))
			return false;
	}
	return true;
}

/* The cellar frame is the last entry if it is there at all. */
static errint_t read_cellar_frame(struct object *o, uint8_t buf[CELLARFRAME_LEN])
{
	const struct seek_entry *e;
	errint_t err;

	if (!o->table.count)
		return 0;
	e = &o->table.entries[o->table.count - 1];
	if (e->logical_len || e->stored_len != CELLARFRAME_LEN)
		return 0;
	err = full_pread(o->fd, buf, CELLARFRAME_LEN, (off_t)e->stored_off);
	if (err)
		return err;
	o->has_cellar_frame = cellarframe_unpack(buf, CELLARFRAME_LEN, &o->cellar);
	return 0;
}

/* A cellar frame whose length is what was damaged. */
static bool was_cellar_frame(const struct seek_entry *e, const uint8_t *head, size_t len)
{
	return e->stored_len == CELLARFRAME_LEN && len >= CELLARFRAME_NAME_END &&
	       get_le32(head) == CELLARFRAME_MAGIC && cellarframe_is_named(head);
}

/* head: the first bytes of the entry's frame, all of them or EMPTY_FRAME_MAX. */
static bool entry_agrees(const struct seek_entry *e, const uint8_t *head, size_t len)
{
	struct zframe f = zframe_parse(head, len);

	switch (f.kind) {
	case ZFRAME_DATA:
		if (!f.has_size || f.size != e->logical_len)
			return false;
		/* Nobody decodes what the table calls empty: it must be that now. */
		return e->logical_len ||
		       ZSTD_findFrameCompressedSize(head, len) == e->stored_len;
	case ZFRAME_SKIPPABLE:
		if (e->logical_len)
			return false;
		return (uint64_t)f.header_len + f.body_len == e->stored_len ||
		       was_cellar_frame(e, head, len);
	case ZFRAME_CUT:
		return false;
	case ZFRAME_NONE:
		break;
	}
	return true; /* damage, which decoding it will meet */
}

static errint_t first_frame(const struct object *o, struct zframe *ret)
{
	uint8_t head[ZFRAME_HEAD_LEN];
	size_t len = MIN_OF(o->stored_size, sizeof(head));
	errint_t err = full_pread(o->fd, head, len, 0);

	if (!err)
		*ret = zframe_parse(head, len);
	return err;
}

/* Proof (2) of object.h. */
static errint_t prove_by_headers(const struct object *o, bool *ret)
{
	*ret = false;
	if (o->table.count > OBJECT_PROOF_MAX)
		return 0;
	for (size_t i = 0; i < o->table.count; i++) {
		const struct seek_entry *e = &o->table.entries[i];
		uint8_t head[EMPTY_FRAME_MAX];
		size_t len = MIN_OF(e->stored_len, sizeof(head));
		errint_t err = full_pread(o->fd, head, len, (off_t)e->stored_off);

		if (err)
			return err;
		if (!entry_agrees(e, head, len))
			return 0;
	}
	*ret = true;
	return 0;
}

/* The table (its bytes in buf) is proved. cellar: the bytes of the cellar frame, if there. */
static errint_t become_seekable(struct object *o, const uint8_t *cellar, const uint8_t *buf,
                                size_t len)
{
	XXH3_state_t *hash = XXH3_createState();

	if (!hash)
		return -ENOMEM;
	(void)XXH3_128bits_reset(hash);
	if (o->has_cellar_frame)
		(void)XXH3_128bits_update(hash, cellar, CELLARFRAME_LEN);
	(void)XXH3_128bits_update(hash, buf, len);
	set_hash(o, XXH3_128bits_digest(hash));
	(void)XXH3_freeState(hash);
	o->kind = OBJECT_SEEKABLE;
	o->logical_size = o->table.logical_len;
	return 0;
}

/* Makes o seekable if its table may be believed. */
static errint_t accept_table(struct object *o, const uint8_t *buf, size_t len)
{
	uint8_t cellar[CELLARFRAME_LEN];
	bool proved;
	errint_t err;

	if (!frames_fit(&o->table))
		return 0;
	err = read_cellar_frame(o, cellar);
	if (err)
		return err;
	if (o->has_cellar_frame)
		proved = o->cellar.table_check == XXH64(buf, len, 0);
	else
		err = prove_by_headers(o, &proved);
	if (err || !proved)
		return err;

	if (!o->has_cellar_frame && o->table.count && o->table.entries[0].logical_len) {
		struct zframe first;

		err = first_frame(o, &first);
		if (err)
			return err;
		if (first.marked)
			o->flaw = "its cellar frame is damaged";
	}
	return become_seekable(o, cellar, buf, len);
}

/* *ret_trailer: a valid table is there, whether believed or not. */
static errint_t try_seekable(struct object *o, bool *ret_trailer)
{
	cleanup_free uint8_t *buf = NULL;
	size_t len = 0;
	errint_t err = read_table(o->fd, o->stored_size, &buf, &len);

	*ret_trailer = false;
	if (err || !buf)
		return err;
	err = seektable_parse(buf, len, o->stored_size - len, &o->table, NULL);
	if (err == -EUCLEAN)
		return 0;
	if (err)
		return err;
	*ret_trailer = true;
	err = accept_table(o, buf, len);
	if (o->kind != OBJECT_SEEKABLE) {
		seektable_clear(&o->table);
		o->has_cellar_frame = false;
		o->cellar = (struct cellar_frame){0};
	}
	return err;
}

/* Proof (3) of object.h. */
static errint_t try_rebuilt(struct object *o)
{
	struct rebuilt r;
	struct zframe first;
	bool found = false;
	errint_t err = first_frame(o, &first);

	/* Only what cellar wrote: marked, or nothing but a trailer. */
	if (err || !(first.marked || first.kind == ZFRAME_SKIPPABLE))
		return err;
	err = rebuild_table(o->fd, o->stored_size, &r, &found);
	if (err || !found)
		return err;
	o->table = r.table;
	o->has_cellar_frame = true;
	o->cellar = r.cellar;
	o->flaw = "its seek table is damaged";
	err = become_seekable(o, r.cellar_bytes, r.bytes, r.len);
	free(r.bytes);
	return err;
}

static errint_t hash_ends(struct object *o)
{
	size_t head = MIN_OF(o->stored_size, HASHED_END);
	size_t tail = MIN_OF(o->stored_size - head, HASHED_END);
	cleanup_free uint8_t *buf = malloc(head + tail);
	errint_t err;

	if (!buf)
		return -ENOMEM;
	err = full_pread(o->fd, buf, head, 0);
	if (!err)
		err = full_pread(o->fd, buf + head, tail, (off_t)(o->stored_size - tail));
	if (!err)
		set_hash(o, XXH3_128bits(buf, head + tail));
	return err;
}

static errint_t head_is_zstd(const struct object *o, bool *ret)
{
	uint8_t head[4];
	errint_t err;

	*ret = false;
	if (o->stored_size < sizeof(head))
		return 0;
	err = full_pread(o->fd, head, sizeof(head), 0);
	if (!err)
		*ret = zframe_is_magic(get_le32(head));
	return err;
}

static errint_t classify_rest(struct object *o, bool has_trailer)
{
	bool is_zstd = false, known = false;
	uint64_t logical = 0;
	errint_t err = hash_ends(o);

	if (!err)
		err = head_is_zstd(o, &is_zstd);
	if (err)
		return err;
	if (!is_zstd && !has_trailer) {
		o->kind = OBJECT_PLAIN;
		o->logical_size = o->stored_size;
		return 0;
	}
	o->kind = OBJECT_FOREIGN;
	err = zframe_walk(o->fd, o->stored_size, &known, &logical);
	o->logical_size = !err && known ? logical : OBJECT_SIZE_UNKNOWN;
	return err;
}

static errint_t classify(struct object *o, uint64_t size)
{
	bool has_trailer = false;
	errint_t err;

	o->stored_size = size;
	if (!o->stored_size) {
		set_hash(o, XXH3_128bits(NULL, 0));
		return 0;
	}
	o->kind = OBJECT_PLAIN;
	err = try_seekable(o, &has_trailer);
	if (!err && o->kind != OBJECT_SEEKABLE)
		err = try_rebuilt(o);
	if (!err && o->kind != OBJECT_SEEKABLE)
		err = classify_rest(o, has_trailer);
	return err;
}

errint_t object_open_part(int fd, uint64_t size, struct object *ret, char **cause)
{
	struct object o = {.fd = fd, .kind = OBJECT_EMPTY};
	errint_t err;

	seektable_init(&o.table);
	err = classify(&o, size);
	if (err) {
		object_close(&o);
		o = (struct object){.fd = fd, .kind = OBJECT_EMPTY};
		(void)set_cause_errno(cause, err, "cannot read the object");
	}
	*ret = o;
	return err;
}

errint_t object_open(int fd, struct object *ret, char **cause)
{
	struct stat st;
	errint_t err = sys_fstat(fd, &st);

	if (err) {
		*ret = (struct object){.fd = fd, .kind = OBJECT_EMPTY};
		seektable_init(&ret->table);
		return set_cause_errno(cause, err, "cannot read the object");
	}
	return object_open_part(fd, (uint64_t)st.st_size, ret, cause);
}

void object_close(struct object *o)
{
	seektable_clear(&o->table);
}

errint_t object_check_empty(const struct object *o, char **cause)
{
	for (size_t i = 0; i < o->table.count; i++) {
		const struct seek_entry *e = &o->table.entries[i];
		uint8_t head[EMPTY_FRAME_MAX];
		size_t len = MIN_OF(e->stored_len, sizeof(head));
		struct zframe f;
		errint_t err;

		if (e->logical_len)
			continue;
		err = full_pread(o->fd, head, len, (off_t)e->stored_off);
		if (err)
			return set_cause_errno(cause, err, "reading the object");
		f = zframe_parse(head, len);
		if (f.kind == ZFRAME_DATA ||
		    (f.kind == ZFRAME_SKIPPABLE &&
		     (uint64_t)f.header_len + f.body_len == e->stored_len))
			continue;
		return set_cause(cause, -EUCLEAN,
		                 "the frame without content at %llu is damaged",
		                 (unsigned long long)e->stored_off);
	}
	return 0;
}
