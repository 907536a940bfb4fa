/*
 * libFuzzer target: bytes that claim to be seek tables and objects.
 *
 * The first byte of the input chooses: even, the rest is handed to seektable_parse(); odd,
 * the rest is the file behind object_open(), read in every way. It fails on what
 * sanitizers see, on broken promises of the headers, and when an object that decodes by its
 * table decodes to other bytes in order, as any zstd decoder would read it.
 *
 * No fuzzer guesses an XXH64: where an object ends in a cellar frame and a table, both
 * checksums of the cellar frame are put right first, so that what they protect is reached.
 *
 *   tests/fuzz/fuzz-seektable -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-seektable
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/sysio.h"
#include "codec/little.h"
#include "codec/object.h"

#define LIMIT (4U << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct kept {
	uint8_t *p;
	size_t len;
};

static void fuzz_table(const uint8_t *data, size_t size)
{
	uint64_t sum = 0, logical = 0;
	struct seek_table t;
	uint8_t *made;
	size_t made_len;

	/* The offset that the table asks for: else nearly all are refused for their sum. */
	if (size >= 17) {
		size_t step = data[size - 5] & 0x80 ? 12 : 8;

		for (size_t at = 8; at + step + 9 <= size; at += step)
			sum += get_le32(data + at);
		INVARIANT(!seektable_len_from_footer(data + size - 9) ||
		          seektable_len_from_footer(data + size - 9) >= 17);
	}
	if (seektable_parse(data, size, sum, &t, NULL))
		return;
	INVARIANT(t.stored_len == sum && t.count <= SEEKTABLE_COUNT_MAX);
	for (size_t i = 0; i < t.count; i++) {
		INVARIANT(t.entries[i].logical_off == logical);
		if (t.entries[i].logical_len)
			INVARIANT(seektable_find(&t, logical) == i);
		logical += t.entries[i].logical_len;
	}
	INVARIANT(t.logical_len == logical && seektable_find(&t, logical) == t.count);
	INVARIANT(seektable_serialize(&t, &made, &made_len) == 0);
	INVARIANT(made_len == size && !memcmp(made, data, size - 5));
	free(made);
	seektable_clear(&t);
}

/* ---- objects ---- */

static errint_t keep(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct kept *k = ctx;

	INVARIANT(off == k->len && len > 0 && len <= OBJECT_PIECE);
	k->p = xrealloc(k->p, k->len + len);
	memcpy(k->p + k->len, data, len);
	k->len += len;
	return 0;
}

/* Whether anything had to be changed. */
static bool put_checksums_right(uint8_t *p, size_t size)
{
	uint8_t before[16];
	uint64_t len = size < 9 ? 0 : seektable_len_from_footer(p + size - 9);
	uint8_t *cellar;

	if (!len || len + CELLARFRAME_LEN > size)
		return false;
	cellar = p + size - len - CELLARFRAME_LEN;
	if (get_le32(cellar) != CELLARFRAME_MAGIC)
		return false;
	memcpy(before, cellar + 64, sizeof(before));
	put_le64(cellar + 64, XXH64(p + size - len, len, 0));
	put_le64(cellar + 72, XXH64(cellar, 72, 0));
	return memcmp(before, cellar + 64, sizeof(before)) != 0;
}

/* Frame by frame against the whole. */
static void check_frames(const struct object *o, const struct kept *whole, bool whole_ok)
{
	bool all = true;

	for (size_t i = 0; i < o->table.count; i++) {
		const struct seek_entry *e = &o->table.entries[i];
		uint8_t *buf = malloc(e->logical_len + 1U);
		errint_t err;

		if (!buf)
			return;
		err = object_decode_frame(o, i, buf, NULL);
		INVARIANT(!err || err == -EUCLEAN || err == -ENOMEM);
		all = all && !err;
		if (!err && whole_ok && e->logical_len)
			INVARIANT(!memcmp(buf, whole->p + e->logical_off, e->logical_len));
		free(buf);
	}
	INVARIANT(all == whole_ok);
}

/* The same bytes, read in order. */
static void check_in_order(const struct object *o, const struct kept *whole)
{
	struct object foreign = *o;
	struct kept k = {0};

	foreign.kind = OBJECT_FOREIGN;
	foreign.logical_size = OBJECT_SIZE_UNKNOWN;
	if (!object_decode_all(&foreign, LIMIT, keep, &k, NULL))
		INVARIANT(k.len == whole->len && (!k.len || !memcmp(k.p, whole->p, k.len)));
	free(k.p);
}

static void check_extract(const struct object *o, const struct kept *whole, bool whole_ok)
{
	int out = memfd_create("out", MFD_CLOEXEC);
	uint64_t end = 0;
	errint_t err;

	INVARIANT(out >= 0);
	err = object_extract(o, 0, OBJECT_SIZE_UNKNOWN, out, 1, LIMIT, &end, NULL);
	INVARIANT(!err == whole_ok);
	INVARIANT(err || end == whole->len);
	(void)close(out);
}

static void fuzz_object(const uint8_t *data, size_t size)
{
	int fd = memfd_create("object", MFD_CLOEXEC);
	uint8_t *copy = malloc(size + 1);
	struct kept k = {0};
	char *cause = NULL;
	struct object o;
	bool forged;
	errint_t err;

	INVARIANT(fd >= 0 && copy);
	memcpy(copy, data, size);
	forged = put_checksums_right(copy, size);
	INVARIANT(full_pwrite(fd, copy, size, 0) == 0);
	INVARIANT(object_open(fd, &o, NULL) == 0);
	err = object_decode_all(&o, LIMIT, keep, &k, &cause);
	INVARIANT(!err || cause);
	INVARIANT(!err || err == -EUCLEAN || err == -EFBIG);
	if (!err && o.logical_size != OBJECT_SIZE_UNKNOWN)
		INVARIANT(k.len == o.logical_size);
	if (o.kind == OBJECT_SEEKABLE && err != -EFBIG) {
		check_frames(&o, &k, !err);
		/* A forged table may call empty what is not; damage cannot. */
		if (!err && !forged)
			check_in_order(&o, &k);
	}
	check_extract(&o, &k, !err);
	object_close(&o);
	free(cause);
	free(k.p);
	free(copy);
	(void)close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] & 1)
		fuzz_object(data + 1, size - 1);
	else
		fuzz_table(data + 1, size - 1);
	return 0;
}
