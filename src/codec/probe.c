/*
 * Samples: whether what is about to be encoded shrinks enough to be worth the time.
 *
 * Samples are taken at even steps from everything that is to be encoded, as if it were one
 * stretch; a sample ends where its stretch does.
 */
#include <zstd.h>

#include "base/sysio.h"
#include "codec/encode.h"

#define PROBE_SAMPLES  8U
#define PROBE_LEVEL    1
#define PROBE_MIN_SIZE 4096U /* below, trying costs less than asking */

/* Shrinking by less than 2 % is none. */
bool encode_shrinks(uint64_t logical, uint64_t stored)
{
	return stored <= logical - logical / 50;
}

/* Offset of sample i of n: the first at the start, the last at the very end, the others at
 * even steps between. A single one is the whole. */
static uint64_t sample_off(uint64_t size, size_t len, unsigned i, unsigned n)
{
	return i + 1 == n ? size - len : (size - len) / n * i;
}

/* Where in the file byte `at` of all that is to be encoded lies; *len is cut at the end of its
 * stretch. */
static uint64_t place_of(const struct plan *p, uint64_t at, size_t *len)
{
	uint64_t passed = 0, off = 0, end;
	size_t i = 0;

	for (; i < p->count; i++) {
		const struct plan_piece *piece = &p->pieces[i];

		if (piece->from < piece->to)
			continue;
		off = piece->off + (at - passed);
		if (at - passed < piece->len)
			break;
		passed += piece->len;
	}
	INVARIANT(i < p->count);
	end = p->pieces[i].off + p->pieces[i].len;
	for (i++; i < p->count && p->pieces[i].from == p->pieces[i].to && end - off < *len;
	     i++)
		end += p->pieces[i].len;
	*len = MIN_OF(*len, (size_t)MIN_OF(end - off, (uint64_t)SIZE_MAX));
	return off;
}

errint_t encode_probe_plan(const struct encode_source *s, const struct plan *p,
                           bool *ret_shrinks, char **cause)
{
	uint64_t size = p->encoded_bytes, tried = 0, stored = 0;
	size_t most = MIN_OF(size, (uint64_t)ENCODE_PROBE_LEN);
	size_t room = ZSTD_compressBound(most);
	unsigned n = (unsigned)MIN_OF((size + ENCODE_PROBE_LEN - 1) / ENCODE_PROBE_LEN,
	                              (uint64_t)PROBE_SAMPLES);
	cleanup_free void *in = NULL, *out = NULL;

	*ret_shrinks = true;
	if (size < PROBE_MIN_SIZE)
		return 0;
	in = malloc(most);
	out = malloc(room);
	if (!in || !out)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		size_t len = most, got = 0;
		uint64_t off = place_of(p, sample_off(size, most, i, n), &len);
		errint_t err = s->read(s->ctx, in, len, off, cause);

		if (!err)
			err = encode_compress(in, len, PROBE_LEVEL, out, room, &got, cause);
		if (err)
			return err;
		tried += len;
		stored += got;
	}
	*ret_shrinks = encode_shrinks(tried, stored);
	return 0;
}

errint_t encode_probe(int in_fd, uint64_t size, bool *ret_shrinks)
{
	struct encode_source s = encode_source_fd(&in_fd);
	struct plan_piece all = {.len = size};
	struct plan p = {.pieces = &all, .count = 1, .encoded_bytes = size};

	return encode_probe_plan(&s, &p, ret_shrinks, NULL);
}
