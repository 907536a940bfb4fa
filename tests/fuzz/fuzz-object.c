/*
 * libFuzzer target: a file that claims to be an object, read the ways that the daemon reads one.
 *
 * fuzz-seektable.c holds the whole against its frames; this one takes ranges, a small limit, the
 * walk over headers, and objects of our own making. The first eight bytes are parameters:
 *
 *   0     0 the rest is the object; 1 the rest is content that is encoded first, 2 the same, and
 *         then one byte of the object is changed
 *   1, 2  offset and length of a range, in 64ths of the logical size
 *   3     the limit, in 4 KiB
 *   4-7   which byte is changed (three bytes), and how (one)
 *
 * It fails on what sanitizers see, on more bytes than the limit, on a range that differs from the
 * whole, on a size that the walk was sure of and decoding was not, and, for objects of our
 * own with one byte changed, on any byte that is not the one that was encoded.
 *
 *   tests/fuzz/fuzz-object -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-object
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/sysio.h"
#include "codec/encode.h"
#include "codec/object.h"
#include "codec/zframe.h"

#define PARAMETERS 8
#define LIMIT_UNIT 4096U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct kept {
	uint8_t *p;
	uint64_t len, limit;
};

static errint_t keep(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct kept *k = ctx;

	INVARIANT(off == k->len && len > 0 && len <= OBJECT_PIECE);
	INVARIANT(len <= k->limit - k->len); /* OBJECT_PLAIN too: its size is its own */
	k->p = xrealloc(k->p, k->len + len);
	memcpy(k->p + k->len, data, len);
	k->len += len;
	return 0;
}

static int memory_file(const void *data, size_t len)
{
	int fd = memfd_create("object", MFD_CLOEXEC);

	INVARIANT(fd >= 0 && full_pwrite(fd, data, len, 0) == 0);
	return fd;
}

/* Bytes [off, off + len) as hydration asks for them. */
static void check_range(const struct object *o, const struct kept *whole, uint64_t off,
                        uint64_t len)
{
	int out = memfd_create("out", MFD_CLOEXEC);
	uint64_t end = 0;
	uint8_t *got;
	errint_t err;

	INVARIANT(out >= 0);
	err = object_extract(o, off, len, out, 1, whole->limit, &end, NULL);
	if (o->kind != OBJECT_SEEKABLE && (off || len < o->logical_size)) {
		INVARIANT(err == -EINVAL);
	} else {
		INVARIANT(err == 0); /* the whole decoded, so does each part */
		INVARIANT(end <= MAX_OF(whole->len, off));
		len = off < end ? MIN_OF(len, end - off) : 0;
		got = xmalloc(len + 1);
		INVARIANT(full_pread(out, got, len, (off_t)off) == 0);
		INVARIANT(memcmp(got, whole->p ? whole->p + off : got, len) == 0);
		free(got);
	}
	(void)close(out);
}

/* Decodes the file; the content is kept in *k. 0: whole. */
static errint_t read_object(int fd, const uint8_t *parameters, struct kept *k)
{
	bool known = false;
	uint64_t walked = 0;
	struct object o;
	errint_t err;

	INVARIANT(object_open(fd, &o, NULL) == 0);
	err = object_decode_all(&o, k->limit, keep, k, NULL);
	INVARIANT(!err || err == -EUCLEAN || err == -EFBIG || o.kind == OBJECT_PLAIN);
	INVARIANT(zframe_walk(fd, o.stored_size, &known, &walked) == 0);
	if (!err && known && o.kind != OBJECT_PLAIN && o.kind != OBJECT_EMPTY)
		INVARIANT(walked == k->len);
	if (!err)
		check_range(&o, k, k->len * parameters[1] / 64,
		            k->len * parameters[2] / 64);
	object_close(&o);
	return err;
}

/* ---- objects of our own ---- */

static int encode(const uint8_t *p, size_t len, uint8_t seed)
{
	struct encode_params params = {
	    .level = 1,
	    .frame_size = 1U << (4 + seed % 12),
	    .threads = 1,
	    .cellar = {.ino = 1000U + seed, .seq = seed},
	};
	int in = memory_file(p, len), out = memfd_create("made", MFD_CLOEXEC);
	struct encode_result r;

	INVARIANT(out >= 0);
	INVARIANT(encode_object(in, len, out, &params, &r, NULL) == 0);
	INVARIANT(encode_verify(out, &r, 1, NULL) == 0);
	(void)close(in);
	return out;
}

static void change_byte(int fd, const uint8_t *parameters)
{
	struct stat st;
	uint64_t at;
	uint8_t b;

	INVARIANT(sys_fstat(fd, &st) == 0 && st.st_size > 0);
	at = ((uint64_t)parameters[4] | parameters[5] << 8 | parameters[6] << 16) %
	     (uint64_t)st.st_size;
	INVARIANT(full_pread(fd, &b, 1, (off_t)at) == 0);
	b ^= parameters[7] ? parameters[7] : 1;
	INVARIANT(full_pwrite(fd, &b, 1, (off_t)at) == 0);
}

static void fuzz_own(const uint8_t *parameters, const uint8_t *p, size_t len, bool damage)
{
	struct kept k = {.limit = len + LIMIT_UNIT};
	int fd = encode(p, len, parameters[3]);
	errint_t err;

	if (damage)
		change_byte(fd, parameters);
	err = read_object(fd, parameters, &k);
	INVARIANT(damage || !err);
	if (!err)
		INVARIANT(k.len == len && (!len || memcmp(k.p, p, len) == 0));
	free(k.p);
	(void)close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kept k = {0};
	int fd;

	if (size < PARAMETERS)
		return 0;
	k.limit = (uint64_t)data[3] * LIMIT_UNIT;
	if (data[0] % 3) {
		fuzz_own(data, data + PARAMETERS, size - PARAMETERS, data[0] % 3 == 2);
		return 0;
	}
	fd = memory_file(data + PARAMETERS, size - PARAMETERS);
	(void)read_object(fd, data, &k);
	free(k.p);
	(void)close(fd);
	return 0;
}
