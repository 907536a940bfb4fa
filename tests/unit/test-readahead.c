/*
 * Cold files through the pool: what is decoded, when, how often, and where it stays. Attacks
 * (H1), (H4), (H5), (R1), (R3).
 */
#include "pool-fixture.h"

#include <zstd.h>

#include "base/cancel.h"
#include "pool/readahead.h"

#define FRAME  (256U << 10)
#define FRAMES 64U
#define LEN    (FRAMES * FRAME) /* 16 MiB */

static char *text;

static int setup(void **state)
{
	text = malloc(LEN);
	if (!text)
		return -1;
	harness_fill_text(text, LEN, 11);
	return harness_setup(state);
}

static int teardown(void **state)
{
	cancel_set(NULL, NULL); /* of a test that failed */
	free(text);
	return harness_teardown(state);
}

/* A pool with one cold file "big" of FRAMES frames. */
static struct node *open_with_cold(struct fixture *f, const char *dir, uint64_t pool_size)
{
	struct node *n;

	fx_options(f);
	f->o.eager_size = 1 << 20;
	f->o.frame_size = FRAME;
	f->o.pool_size = pool_size;
	fx_open(f, dir, true);
	n = fx_make(f, "big", text, LEN);
	fx_flush(f);
	/* The housekeeper may have been first. */
	if (fx_state(f, n).warm)
		assert_int_equal(pool_evict(f->pool, n), 0);
	return n;
}

static void pause_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};

	(void)nanosleep(&t, NULL);
}

/* Within a minute. */
#define wait_until(condition)                                                              \
	do {                                                                               \
		int looks_ = 0;                                                            \
		while (!(condition)) {                                                     \
			assert_true(looks_++ < 12000);                                     \
			pause_ms(5);                                                       \
		}                                                                          \
	} while (0)

/* As a request travels: first without waiting, then on a thread that may. */
static errint_t read_at(struct fixture *f, struct node *n, uint64_t off, size_t len,
                        char *buf, size_t *ret_len)
{
	struct read_view v;
	errint_t r = scratch_read(f->pool, n, off, len, false, &v);
	ssize_t got;

	*ret_len = 0;
	if (r == -EAGAIN)
		r = scratch_read(f->pool, n, off, len, true, &v);
	if (r < 0)
		return r;
	if (v.fd >= 0) {
		got = pread(v.fd, buf, len, (off_t)off);
		FX_CHECK(got >= 0);
		*ret_len = (size_t)got;
	}
	for (size_t i = 0; v.fd < 0 && i < v.count; i++) {
		FX_CHECK(*ret_len + v.iov[i].iov_len <= len);
		memcpy(buf + *ret_len, v.iov[i].iov_base, v.iov[i].iov_len);
		*ret_len += v.iov[i].iov_len;
	}
	scratch_read_end(f->pool, &v);
	return 0;
}

static bool reads_right(struct fixture *f, struct node *n, uint64_t off, size_t len)
{
	char *buf = malloc(len);
	size_t got, expected = off >= LEN ? 0 : MIN_OF((uint64_t)len, LEN - off);
	bool same;

	FX_CHECK(buf != NULL);
	same = read_at(f, n, off, len, buf, &got) == 0 && got == expected &&
	       memcmp(buf, text + (expected ? off : 0), got) == 0;
	free(buf);
	return same;
}

static bool pass_is_right(struct fixture *f, struct node *n, size_t piece)
{
	bool right = true;

	for (uint64_t off = 0; right && off < LEN + piece; off += piece)
		right = reads_right(f, n, off, piece);
	return right;
}

/* First byte, last byte and a piece in the middle cost a frame each; open costs none. */
static void test_here_and_there(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);
	uint64_t before = counter_get(COUNTER_FRAMES_DECODED);

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before);
	assert_true(reads_right(&f, n, 0, 1));
	assert_true(reads_right(&f, n, LEN - 1, 1));
	assert_true(reads_right(&f, n, 20 * FRAME + 4096, 4096));
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before + 3);
	assert_true(reads_right(&f, n, 20 * FRAME + 8192, 4096)); /* is there */
	assert_true(reads_right(&f, n, 30 * FRAME - 100, 200));   /* of two frames */
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before + 5);
	assert_int_equal(counter_get(COUNTER_FRAMES_AHEAD), 0);
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Sequential: decoded ahead, and each frame once. */
static void test_ahead_of_a_reader(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);
	uint64_t before = counter_get(COUNTER_FRAMES_DECODED);
	uint64_t ahead = counter_get(COUNTER_FRAMES_AHEAD);

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_true(reads_right(&f, n, 0, FRAME));
	assert_true(reads_right(&f, n, FRAME, FRAME));
	/* The window is as large as what was gone through: frames 2 and 3 come by themselves. */
	wait_until(scratch_ready(n, 2 * FRAME, 2 * FRAME) == 0);
	assert_true(counter_get(COUNTER_FRAMES_AHEAD) > ahead);
	assert_true(pass_is_right(&f, n, 100 << 10));
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before + FRAMES);
	wait_until(fx_state(&f, n).warm && atomic_load(&n->scratch->whole));
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
}

struct pass {
	struct fixture *f;
	struct node *n;
	size_t piece;
	bool right;
};

static void *pass_main(void *arg)
{
	struct pass *p = arg;

	p->right = pass_is_right(p->f, p->n, p->piece);
	return NULL;
}

/* (H1) Several readers at once, in step or not. */
static void test_readers_share(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);
	uint64_t before = counter_get(COUNTER_FRAMES_DECODED);
	struct pass pass[4];
	pthread_t thread[4];

	for (int i = 0; i < 4; i++) {
		assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
		pass[i] = (struct pass){&f, n, (size_t)(60 + 50 * i) << 10, false};
		assert_int_equal(pthread_create(&thread[i], NULL, pass_main, &pass[i]), 0);
	}
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(thread[i], NULL), 0);
		assert_true(pass[i].right);
		pool_close_file(f.pool, n, POOL_READ);
	}
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before + FRAMES);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* A file larger than half of the pool goes through memory, which is bounded and given back. */
static void test_does_not_fit(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 8 << 20);
	uint64_t passed = counter_get(COUNTER_BYTES_PASSED), most = 0;
	char *buf = malloc(FRAME);
	struct stat st;
	size_t got;

	assert_non_null(buf);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	for (uint64_t off = 0; off < LEN; off += FRAME) {
		assert_int_equal(read_at(&f, n, off, FRAME, buf, &got), 0);
		assert_int_equal(got, FRAME);
		assert_memory_equal(buf, text + off, FRAME);
		most = MAX_OF(most, atomic_load(&f.pool->held_bytes));
	}
	free(buf);
	assert_true(most > 0 && most <= (33U << 20));
	assert_int_equal(fstat(scratch_fd(n), &st), 0);
	assert_int_equal(st.st_size, LEN);
	assert_true(st.st_blocks * 512 <= 5 << 20); /* half of the pool and a little */
	assert_true(reads_right(&f, n, 1000, 3 * FRAME)); /* again, of both kinds */
	pool_close_file(f.pool, n, POOL_READ);
	wait_until(atomic_load(&f.pool->held_bytes) == 0);
	assert_true(counter_get(COUNTER_BYTES_PASSED) >= passed + LEN / 2);
	/* Writing needs all of it in the scratch (H3). */
	assert_int_equal(pool_open_file(f.pool, n, POOL_WRITE), 0);
	fx_pwrite(&f, n, text, 1, 0);
	assert_int_equal(fstat(scratch_fd(n), &st), 0);
	assert_true(st.st_blocks * 512 >= LEN);
	assert_true(pass_is_right(&f, n, 1 << 20));
	pool_close_file(f.pool, n, POOL_WRITE);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Read in earnest: the rest follows after the last close, and the next open finds it whole. */
static void test_completed_behind(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);
	uint64_t before = counter_get(COUNTER_FRAMES_DECODED);

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	for (unsigned i = 0; i < FRAMES / 4 + 1; i++)
		assert_true(reads_right(&f, n, i * FRAME, FRAME));
	pool_close_file(f.pool, n, POOL_READ);
	wait_until(atomic_load(&n->scratch->whole));
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before + FRAMES);
	assert_true(counter_get(COUNTER_FRAMES_COMPLETED) > 0);
	assert_non_null(n->scratch->frames);
	assert_int_equal(pool_open_file_nowait(f.pool, n, POOL_READ), 0);
	assert_int_equal(scratch_ready(n, 0, LEN), 0);
	assert_true(pass_is_right(&f, n, 1 << 20));
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* The last close ends the read-ahead, and eviction the background pass too (H4). */
static void test_cancelled(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);
	uint64_t decoded;

	for (unsigned round = 0; round < 20; round++) {
		unsigned frames = round % 2 ? 3 : FRAMES / 4 + 1;

		decoded = counter_get(COUNTER_FRAMES_DECODED);
		assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
		for (unsigned i = 0; i < frames; i++)
			assert_true(reads_right(&f, n, i * FRAME, FRAME));
		pool_close_file(f.pool, n, POOL_READ);
		assert_int_equal(pool_evict(f.pool, n), 0);
		assert_false(fx_state(&f, n).warm);
		assert_true(counter_get(COUNTER_FRAMES_DECODED) <= decoded + FRAMES);
	}
	/* Of a short look at the start not much more than the window was decoded. */
	assert_true(counter_get(COUNTER_FRAMES_DECODED) < decoded + 16);
	node_unref(f.tree, n);
	fx_close(&f);
}

static bool always(void *ctx)
{
	return true;
}

/* Whoever waits for much can be let go, and nothing is lost with it. */
static void test_caller_gone(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	cancel_set(always, NULL);
	assert_int_equal(scratch_hydrate(f.pool, n, 0, UINT64_MAX), -EINTR);
	cancel_set(NULL, NULL);
	assert_false(atomic_load(&n->scratch->whole));
	assert_true(pass_is_right(&f, n, 1 << 20));
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Cut to nothing while partly hydrated: nothing more is decoded. */
static void test_cut(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_cold(&f, h->path, 1ULL << 30);
	uint64_t before = counter_get(COUNTER_FRAMES_DECODED);
	struct stat st;

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_true(reads_right(&f, n, 5 * FRAME, 10));
	assert_int_equal(pool_open_file(f.pool, n, POOL_WRITE | POOL_TRUNC), 0);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), before + 1);
	assert_int_equal(fstat(scratch_fd(n), &st), 0);
	assert_int_equal(st.st_size, 0);
	fx_pwrite(&f, n, "new", 3, 0);
	pool_close_file(f.pool, n, POOL_WRITE);
	pool_close_file(f.pool, n, POOL_READ);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "big.zst", "new", 3));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* ---- objects of others ---- */

/* One frame of everything, with a checksum; with_size: with its content size. */
static size_t foreign(char **ret, bool with_size)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	size_t room = ZSTD_compressBound(LEN), len;

	assert_non_null(c);
	*ret = malloc(room);
	assert_non_null(*ret);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, 1);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, with_size);
	len = ZSTD_compress2(c, *ret, room, text, LEN);
	assert_false(ZSTD_isError(len));
	(void)ZSTD_freeCCtx(c);
	return len;
}

static struct node *open_with_foreign(struct fixture *f, const char *dir, const char *name,
                                      const void *data, size_t len)
{
	struct node *n;

	fx_options(f);
	f->o.eager_size = 1 << 20;
	fx_open(f, dir, true);
	harness_write(f->store->root_fd, name, data, len);
	n = fx_lookup(f, "other");
	assert_non_null(n);
	return n;
}

static void test_foreign_streams(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	char *stored;
	size_t len = foreign(&stored, true);
	struct node *n = open_with_foreign(&f, h->path, "other.zst", stored, len);
	uint64_t before = counter_get(COUNTER_BYTES_DECODED);

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), before);
	assert_true(reads_right(&f, n, 0, 4096)); /* without the rest */
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), before + OBJECT_PIECE);
	assert_true(reads_right(&f, n, LEN - 10, 10));
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), before + LEN);
	assert_true(pass_is_right(&f, n, 1 << 20));
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), before + LEN);
	assert_true(atomic_load(&n->scratch->whole));
	pool_close_file(f.pool, n, POOL_READ);
	/* Closed in the middle, it begins anew. */
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_true(reads_right(&f, n, 2 << 20, 4096));
	pool_close_file(f.pool, n, POOL_READ);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_true(pass_is_right(&f, n, 300 << 10));
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
	free(stored);
}

/* (H5) The checksum at the end is wrong: by then the start was served, from then on nothing is. */
static void test_foreign_damaged_late(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	char *stored, buf[10];
	size_t len = foreign(&stored, true), got;
	struct node *n;

	stored[len - 1] ^= 1;
	n = open_with_foreign(&f, h->path, "other.zst", stored, len);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_true(reads_right(&f, n, 0, 4096));
	assert_int_equal(read_at(&f, n, LEN - 10, 10, buf, &got), -EUCLEAN);
	assert_int_equal(read_at(&f, n, 0, 10, buf, &got), -EUCLEAN);
	assert_int_equal(pool_open_file(f.pool, n, POOL_WRITE), -EUCLEAN);
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
	free(stored);
}

/* Nobody knows how long it is before it was decoded. */
static void test_foreign_without_size(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	char *stored;
	size_t len = foreign(&stored, false);
	struct node *n = open_with_foreign(&f, h->path, "other.zst", stored, len);
	uint64_t before;

	cancel_set(always, NULL);
	assert_int_equal(resolve_size(f.tree, n, NULL), -EINTR);
	cancel_set(NULL, NULL);
	assert_int_equal(resolve_size(f.tree, n, NULL), 0);
	before = counter_get(COUNTER_BYTES_DECODED);
	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), before); /* known by now */
	assert_true(pass_is_right(&f, n, 1 << 20));
	assert_int_equal(counter_get(COUNTER_BYTES_DECODED), before + LEN);
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
	free(stored);
}

static void test_plain_by_pieces(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct node *n = open_with_foreign(&f, h->path, "other", text, LEN);

	assert_int_equal(pool_open_file(f.pool, n, POOL_READ), 0);
	assert_int_equal(scratch_ready(n, 0, 1), -EAGAIN);
	assert_true(reads_right(&f, n, LEN - 5, 100));
	assert_int_equal(scratch_ready(n, 0, 1), -EAGAIN);
	assert_true(pass_is_right(&f, n, 1 << 20));
	pool_close_file(f.pool, n, POOL_READ);
	node_unref(f.tree, n);
	fx_close(&f);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(test_here_and_there),       TEST(test_ahead_of_a_reader),
	    TEST(test_readers_share),        TEST(test_does_not_fit),
	    TEST(test_completed_behind),     TEST(test_cancelled),
	    TEST(test_caller_gone),          TEST(test_cut),
	    TEST(test_foreign_streams),      TEST(test_foreign_damaged_late),
	    TEST(test_foreign_without_size), TEST(test_plain_by_pieces),
	};

	return cmocka_run_group_tests_name("readahead", tests, NULL, NULL);
}
