/* What the tests of the codec share: buffers that grow, objects in files, the zstd CLI. */
#ifndef CELLAR_TESTS_UNIT_CODEC_H
#define CELLAR_TESTS_UNIT_CODEC_H

#include "harness.h"

#include "codec/encode.h"
#include "codec/object.h"

struct bytes {
	uint8_t *p;
	size_t len;
};

static inline void bytes_clear(struct bytes *b)
{
	free(b->p);
	*b = (struct bytes){0};
}

static inline void bytes_add(struct bytes *b, const void *data, size_t len)
{
	if (!len)
		return;
	b->p = realloc(b->p, b->len + len);
	assert_non_null(b->p);
	memcpy(b->p + b->len, data, len);
	b->len += len;
}

static inline void bytes_add_le(struct bytes *b, uint64_t v, unsigned width)
{
	uint8_t le[8];

	for (unsigned i = 0; i < width; i++)
		le[i] = (uint8_t)(v >> 8 * i);
	bytes_add(b, le, width);
}

static inline uint32_t le32_at(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Half text, half zeros and noise: frames of all kinds. */
static inline struct bytes bytes_mixed(size_t len, uint64_t seed)
{
	struct bytes b = {.p = calloc(1, len + 1), .len = len};

	assert_non_null(b.p);
	harness_fill_text(b.p, len / 2, seed);
	harness_fill(b.p + len / 2 + len / 4, len - len / 2 - len / 4, seed);
	return b;
}

static inline struct bytes bytes_text(size_t len, uint64_t seed)
{
	struct bytes b = {.p = calloc(1, len + 1), .len = len};

	assert_non_null(b.p);
	harness_fill_text(b.p, len, seed);
	return b;
}

static inline struct bytes bytes_of_file(int dirfd, const char *name)
{
	struct bytes b;

	b.p = (uint8_t *)harness_read(dirfd, name, &b.len);
	return b;
}

static inline struct bytes bytes_of_fd(int fd)
{
	struct bytes b;

	b.p = (uint8_t *)harness_read_fd(fd, &b.len);
	return b;
}

static inline int file_of_bytes(const struct harness *h, const char *name,
                                const struct bytes *b)
{
	int fd;

	harness_write(h->dirfd, name, b->p, b->len);
	fd = openat(h->dirfd, name, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static inline void assert_bytes(const struct bytes *got, const struct bytes *expected)
{
	assert_int_equal(got->len, expected->len);
	if (got->len)
		assert_memory_equal(got->p, expected->p, got->len);
}

static inline struct cellar_frame sample_cellar(void)
{
	struct cellar_frame f = {
	    .ino = 0x0102030405060708ULL,
	    .seq = 42,
	    .ctime = {.tv_sec = 1700000000, .tv_nsec = 123456789},
	};

	for (unsigned i = 0; i < sizeof(f.pool.b); i++)
		f.pool.b[i] = (uint8_t)(0xA0 + i);
	return f;
}

/* Encodes data into file `name`, proves it and returns a descriptor of it. */
static inline int encode_bytes(const struct harness *h, const char *name,
                               const struct bytes *data, uint32_t frame_size,
                               unsigned threads, struct encode_result *ret)
{
	static const struct bytes nothing;
	struct encode_params p = {
	    .level = 3,
	    .frame_size = frame_size,
	    .threads = threads,
	    .cellar = sample_cellar(),
	};
	struct encode_result r;
	char *cause = NULL;
	int in = file_of_bytes(h, "in", data);
	int out = file_of_bytes(h, name, &nothing);
	errint_t err = encode_object(in, data->len, out, &p, &r, &cause);

	if (!err)
		err = encode_verify(out, &r, threads, &cause);
	if (err)
		fail_msg("%zu bytes in frames of %u: %s (%s)", data->len, frame_size,
		         strerror(-err), cause ? cause : "no cause");
	assert_null(cause);
	assert_int_equal(close(in), 0);
	if (ret)
		*ret = r;
	return out;
}

/* ---- decoding, with a sink that keeps everything ---- */

struct keep {
	struct bytes b;
	unsigned calls;
	unsigned stop_at; /* call that answers -EINTR; 0: none */
};

static inline errint_t keep_sink(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct keep *k = ctx;

	k->calls++;
	assert_true(len > 0 && len <= OBJECT_PIECE);
	assert_int_equal(off, k->b.len);
	bytes_add(&k->b, data, len);
	return k->calls == k->stop_at ? -EINTR : 0;
}

/* The whole content; -errno with a cause that is not empty. */
static inline errint_t decode_fd(int fd, uint64_t limit, enum object_kind *ret_kind,
                                 struct bytes *ret)
{
	struct keep k = {.calls = 0};
	char *cause = NULL;
	struct object o;
	errint_t err;

	assert_int_equal(object_open(fd, &o, &cause), 0);
	assert_null(cause);
	err = object_decode_all(&o, limit, keep_sink, &k, &cause);
	if (err) {
		assert_non_null(cause);
		assert_true(strlen(cause) > 0);
		free(cause);
		bytes_clear(&k.b);
	} else {
		assert_null(cause);
		if (o.logical_size != OBJECT_SIZE_UNKNOWN)
			assert_int_equal(o.logical_size, k.b.len);
	}
	if (ret_kind)
		*ret_kind = o.kind;
	object_close(&o);
	*ret = k.b;
	return err;
}

/* ---- the zstd CLI ---- */

/* Runs a shell command in the test's directory; its exit code. */
static inline int run_shell(const struct harness *h, const char *command)
{
	char line[2048];
	int n = snprintf(line, sizeof(line), "cd '%s' && { %s ; }", h->path, command);
	int status;

	assert_true(n > 0 && (size_t)n < sizeof(line));
	status = system(line);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* The CLI prints exactly `data` for file `name`, and calls it intact. */
static inline void assert_cli_decodes(const struct harness *h, const char *name,
                                      const struct bytes *data)
{
	struct bytes got;
	char command[256];

	(void)snprintf(command, sizeof(command),
	               "zstd -q -t '%s' && zstd -q -dc '%s' > cli.out", name, name);
	assert_int_equal(run_shell(h, command), 0);
	got = bytes_of_file(h->dirfd, "cli.out");
	assert_bytes(&got, data);
	bytes_clear(&got);
}

#endif
