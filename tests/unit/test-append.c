/*
 * store/append.c and the rows of recovery that belong to it: a child is killed at every step of an
 * append; then the object decodes at once to the old content or the new (but at the step where
 * the tail is being written), recovery brings it to the one or the other, and the bytes written
 * are in the scratch. (A1) to (A3), (N1).
 */
#include "pool-fixture.h"

#include <signal.h>

#include "base/steps.h"
#include "store/append.h"

#define BOOT_1 "11111111-1111-4111-8111-111111111111"
#define BOOT_2 "22222222-2222-4222-8222-222222222222"
#define FRAME  (64U << 10)
#define OLD    (FRAME * 20 + 100)
#define MORE   (FRAME * 2 + 333)

static uint64_t eager_size = 16 << 20; /* above: hydrated whole, and no tail */
static char text[OLD + 2 * MORE];

static int setup(void **state)
{
	harness_fill_text(text, sizeof(text), 31);
	return harness_setup(state);
}

struct run {
	const char *dir, *boot, *step;
	void (*work)(struct fixture *f);
	bool close, start;
};

static void options(struct fixture *f)
{
	fx_options(f);
	f->o.frame_size = FRAME;
	f->o.append_min = 10 << 10;
	f->o.eager_size = eager_size;
}

static void run_child(void *arg)
{
	struct run *r = arg;
	struct fixture f;

	FX_CHECK(setenv("CELLAR_BOOT_ID", r->boot, 1) == 0);
	if (r->step) {
		FX_CHECK(setenv("CELLAR_TEST_STEP", r->step, 1) == 0);
		steps_init();
	}
	options(&f);
	fx_open(&f, r->dir, r->start);
	r->work(&f);
	catalog_commit(f.catalog);
	if (r->close)
		fx_close(&f);
}

static void run_it(struct run *r)
{
	char *err;
	int status = harness_child(run_child, r, &err);

	if (r->step ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : status != 0)
		fail_msg("%s: wait status 0x%x: %s", r->step ? r->step : "", status, err);
	free(err);
}

static void run(struct harness *h, const char *boot, void (*work)(struct fixture *f),
                const char *step, bool close_it)
{
	struct run r = {h->path, boot, step, work, close_it, true};

	run_it(&r);
}

/* Recovery alone: `see` starts the flushers, which take what was recovered at once, when it has
 * seen what there is to see before. */
static void recover(struct harness *h, const char *boot, void (*see)(struct fixture *f))
{
	struct run r = {h->path, boot, NULL, see, true, false};

	run_it(&r);
}

static struct node *find(struct fixture *f)
{
	struct node *n = fx_lookup(f, "a");

	FX_CHECK(n != NULL);
	return n;
}

static void make_old(struct fixture *f)
{
	const struct timespec old[2] = {{1000000000, 5}, {900000000, 987654321}};
	struct node *n = fx_create(f, "a");

	fx_pwrite(f, n, text, OLD, 0);
	pool_close_file(f->pool, n, POOL_READ | POOL_WRITE);
	lock_take(&n->lock);
	FX_CHECK(pool_set_times(n, old) == 0);
	lock_drop(&n->lock);
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, OLD));
	if (OLD > eager_size)
		FX_CHECK(pool_evict(f->pool, n) == 0);
}

static void append_and_flush(struct fixture *f)
{
	struct node *n = find(f);

	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	FX_CHECK((n->scratch->record.kind == RECORD_TAIL) == (OLD > eager_size));
	fx_pwrite(f, n, text + OLD, MORE, OLD);
	pool_close_file(f->pool, n, POOL_WRITE);
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, OLD + MORE));
}

/* The same with an fsync before: trusted after a reboot too. */
static void append_sync_and_flush(struct fixture *f)
{
	struct node *n = find(f);

	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	fx_pwrite(f, n, text + OLD, MORE, OLD);
	FX_CHECK(pool_fsync(f->pool, n, false) == 0);
	pool_close_file(f->pool, n, POOL_WRITE);
	fx_flush(f);
}

static void see_new(struct fixture *f)
{
	struct node *n = find(f);

	FX_CHECK(fx_object_is(f, "a.zst", text, OLD) ||
	         fx_object_is(f, "a.zst", text, OLD + MORE)); /* recovery has cut it */
	FX_CHECK(pool_start(f->pool) == 0);
	FX_CHECK(fx_holds(f, n, text, OLD + MORE));
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, OLD + MORE));
	FX_CHECK(fx_holds(f, n, text, OLD + MORE));
	FX_CHECK(!fx_state(f, n).dirty);
	FX_CHECK(counter_get(COUNTER_CONFLICTS) == 0);
	FX_CHECK(counter_get(COUNTER_LOST_AND_FOUND) == 0);
}

static void write_tail(struct fixture *f)
{
	struct node *n = find(f);

	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	FX_CHECK(n->scratch->record.kind == RECORD_TAIL);
	fx_pwrite(f, n, text + OLD, 1000, OLD);
	FX_CHECK(pool_fsync(f->pool, n, false) == 0);
	fx_pwrite(f, n, text + OLD + 1000, MORE - 1000, OLD + 1000); /* not synced */
}

static void see_tail(struct fixture *f)
{
	struct node *n = find(f);

	FX_CHECK(counter_get(COUNTER_RECOVERED) == 1); /* and maybe flushed by now */
	fx_flush(f);
	FX_CHECK(counter_get(COUNTER_FRAMES_DECODED) == 0);
	FX_CHECK(counter_get(COUNTER_FRAMES_COPIED) == 0);
	FX_CHECK(fx_object_is(f, "a.zst", text, OLD + MORE));
	FX_CHECK(fx_holds(f, n, text, OLD + MORE));
}

static void see_synced_tail(struct fixture *f)
{
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, OLD + 1000));
	FX_CHECK(fx_holds(f, find(f), text, OLD + 1000));
}

static void see_lost_tail(struct fixture *f)
{
	struct pool_stats st;

	pool_get_stats(f->pool, &st);
	FX_CHECK(st.lost == 1);
	FX_CHECK(st.dirty == 0);
	FX_CHECK(fx_object_is(f, "a.zst", "foreign", 7));
	FX_CHECK(fx_holds(f, find(f), "foreign", 7));
}

/* After a reboot what was never synced does not count; the old object does, with its mtime. */
static void see_old_or_new(struct fixture *f)
{
	struct node *n = find(f);
	bool old = fx_object_is(f, "a.zst", text, OLD);
	struct stat st;

	FX_CHECK(old || fx_object_is(f, "a.zst", text, OLD + MORE));
	FX_CHECK(fx_holds(f, n, text, old ? OLD : OLD + MORE));
	FX_CHECK(fstatat(f->store->root_fd, "a.zst", &st, 0) == 0);
	FX_CHECK(!old || st.st_mtim.tv_sec == 900000000);
	FX_CHECK(!old || st.st_mtim.tv_nsec == 987654321);
	FX_CHECK(!fx_state(f, n).dirty);
	FX_CHECK(pool_start(f->pool) == 0);
	fx_flush(f);
	FX_CHECK(counter_get(COUNTER_CONFLICTS) == 0);
}

static const struct {
	const char *name;
	bool object_decodes;
} steps[] = {
    {"append.begun", true},   {"append.frames", true}, {"append.framesynced", true},
    {"append.trailer", true}, {"append.synced", true}, {"flush.recorded", true},
};

static bool cli_decodes(struct harness *h, size_t *ret_len)
{
	char *cmd =
	    xasprintf("zstd -dc %s/store/a.zst 2>/dev/null > %s/out", h->path, h->path);
	int status = system(cmd);
	size_t got;
	char *out = harness_read(h->dirfd, "out", &got);
	bool prefix = got <= sizeof(text) && memcmp(out, text, got) == 0;

	free(cmd);
	free(out);
	assert_true(prefix);
	*ret_len = got;
	return status == 0;
}

static void kill_at_each(void **state, const char *boot, void (*append)(struct fixture *f),
                         void (*see)(struct fixture *f))
{
#ifndef CELLAR_DEVELOPER
	skip();
#endif
	static size_t turn; /* each of the tests below has other ones of the few */

	for (size_t i = turn++ % HARNESS_FEW; i < ARRAY_LEN(steps); i += HARNESS_FEW) {
		struct harness *h = *state;
		size_t got;

		run(h, BOOT_1, make_old, NULL, true);
		run(h, BOOT_1, append, steps[i].name, false);
		assert_int_equal(cli_decodes(h, &got), steps[i].object_decodes);
		assert_true(got >= OLD);
		recover(h, boot, see);
		assert_true(cli_decodes(h, &got));
		recover(h, boot, see); /* (R1) */
		assert_int_equal(unlinkat(h->dirfd, "store/a.zst", 0), 0);
	}
}

static void test_kill_same_boot(void **state)
{
	kill_at_each(state, BOOT_1, append_and_flush, see_new);
}

static void test_kill_synced_then_reboot(void **state)
{
	kill_at_each(state, BOOT_2, append_sync_and_flush, see_new);
}

static void test_kill_unsynced_then_reboot(void **state)
{
	kill_at_each(state, BOOT_2, append_and_flush, see_old_or_new);
}

static void shell(const char *fmt, const char *dir)
{
	char *cmd = xasprintf("cd %s && %s", dir, fmt);

	assert_int_equal(system(cmd), 0);
	free(cmd);
}

/* The object as a power cut may leave it: `len` bytes of `image`, the last ones zeros. */
static void tear(struct harness *h, const char *image, size_t len, size_t zeros)
{
	cleanup_free char *torn = malloc(len);
	int fd = openat(h->dirfd, "keep", O_RDWR);

	memcpy(torn, image, len);
	memset(torn + len - zeros, 0, zeros);
	assert_int_equal(pwrite(fd, torn, len, 0), len);
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	(void)close(fd);
}

static void cut_tail(struct fixture *f)
{
	struct node *n = find(f);
	struct stat st;

	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	FX_CHECK(n->scratch->record.kind == RECORD_TAIL);
	fx_pwrite(f, n, text + OLD, MORE, OLD);
	FX_CHECK(pool_truncate(f->pool, n, 0) == 0);
	FX_CHECK(n->scratch->record.kind == RECORD_WHOLE);
	FX_CHECK(fstat(n->scratch->fd, &st) == 0 && st.st_size == 0);
	FX_CHECK(fx_holds(f, n, text, 0));
	fx_pwrite(f, n, text, 10, 5); /* below where the tail began */
	pool_close_file(f->pool, n, POOL_WRITE);
	FX_CHECK(counter_get(COUNTER_FRAMES_DECODED) == 0);
}

static void synced_and_cut(struct fixture *f)
{
	struct node *n = find(f);

	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	fx_pwrite(f, n, text + OLD, MORE, OLD);
	FX_CHECK(pool_fsync(f->pool, n, false) == 0);
	FX_CHECK(pool_truncate(f->pool, n, 0) == 0);
	pool_close_file(f->pool, n, POOL_WRITE);
}

static void see_cut(struct fixture *f)
{
	char want[15] = {0};

	memcpy(want + 5, text, 10);
	FX_CHECK(fx_holds(f, find(f), want, sizeof(want)));
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", want, sizeof(want)));
}

static void see_empty_or_synced(struct fixture *f)
{
	struct node *n = find(f);
	bool empty = fx_holds(f, n, text, 0);

	FX_CHECK(empty || fx_holds(f, n, text, OLD + MORE));
	fx_flush(f);
	FX_CHECK(fx_holds(f, n, text, empty ? 0 : OLD + MORE));
	FX_CHECK(fx_object_is(f, "a.zst", text, empty ? 0 : OLD + MORE));
	FX_CHECK(counter_get(COUNTER_LOST_AND_FOUND) == 0);
	FX_CHECK(counter_get(COUNTER_CONFLICTS) == 0);
}

/* (T3): cut to nothing, a tail is not hydrated first, and a stop at any instant of that leaves the
 * old content or none. */
static void test_tail_cut_to_nothing(void **state)
{
	static const char *const at[] = {"shrink.recorded", "truncate.done", NULL};
	struct harness *h = *state;

	eager_size = FRAME;
	run(h, BOOT_1, make_old, NULL, true);
	run(h, BOOT_1, cut_tail, NULL, false);
	run(h, BOOT_1, see_cut, NULL, true);
#ifdef CELLAR_DEVELOPER
	for (size_t i = 0; i < 3; i++) {
		for (int reboot = 0; reboot < 2; reboot++) {
			shell("rm -rf store pool", h->path);
			run(h, BOOT_1, make_old, NULL, true);
			run(h, BOOT_1, synced_and_cut, at[i], false);
			run(h, reboot ? BOOT_2 : BOOT_1, see_empty_or_synced, NULL, true);
		}
	}
#endif
}

/* The tail torn at any length, as a power cut leaves it: recovery cuts it back, or keeps the new
 * version where it is whole. */
static void test_torn_anywhere(void **state)
{
	struct harness *h = *state;
	size_t old, whole;
	char *image;

#ifndef CELLAR_DEVELOPER
	skip();
#endif
	run(h, BOOT_1, make_old, NULL, true);
	free(harness_read(h->dirfd, "store/a.zst", &old));
	run(h, BOOT_1, append_sync_and_flush, "append.synced", false);
	image = harness_read(h->dirfd, "store/a.zst", &whole);
	assert_true(whole > old + 1000);
	shell("ln store/a.zst keep && cp -a pool kept", h->path);
	for (size_t i = 0; i <= 12; i += HARNESS_FEW) {
		size_t len = i == 11 ? whole - 1 : old + (whole - old) * MIN_OF(i, 12) / 12;

		tear(h, image, len, i % 3 == 1 && len > old + 50 ? 50 : 0);
		recover(h, i % 2 ? BOOT_1 : BOOT_2, see_new);
		/* The same inode again, whatever the flush has made of the name. */
		shell("ln -f keep store/a.zst && rm -rf pool && cp -a kept pool", h->path);
	}
	free(image);
}

/* The same for a file that was never hydrated. */
static void test_tail_kill_same_boot(void **state)
{
	eager_size = FRAME;
	kill_at_each(state, BOOT_1, append_and_flush, see_new);
}

static void test_tail_kill_synced_then_reboot(void **state)
{
	eager_size = FRAME;
	kill_at_each(state, BOOT_2, append_sync_and_flush, see_new);
}

static void write_and_die(struct harness *h, void (*work)(struct fixture *f))
{
	eager_size = FRAME;
	run(h, BOOT_1, make_old, NULL, true);
	run(h, BOOT_2, work, NULL, false);
}

static void test_tail_same_boot(void **state)
{
	write_and_die(*state, write_tail);
	run(*state, BOOT_2, see_tail, NULL, true);
}

static void test_tail_reboot(void **state)
{
	write_and_die(*state, write_tail);
	run(*state, BOOT_1, see_synced_tail, NULL, true);
}

static void foreign_object(struct fixture *f)
{
	struct node *n = fx_create(f, "a");

	fx_pwrite(f, n, "foreign", 7, 0);
	pool_close_file(f->pool, n, POOL_READ | POOL_WRITE);
	fx_flush(f);
}

/* Section 8: the foreign version keeps the name, the tail goes to lost+found. */
static void test_tail_and_foreign(void **state)
{
	struct harness *h = *state;
	struct harness other = {.dirfd = h->dirfd};

	snprintf(other.path, sizeof(other.path), "%.400s/other", h->path);
	assert_int_equal(mkdirat(h->dirfd, "other", 0700), 0);
	run(&other, BOOT_1, foreign_object, NULL, true);
	write_and_die(h, write_tail);
	shell("mv other/store/a.zst store/a.zst", h->path);
	run(h, BOOT_2, see_lost_tail, NULL, true);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_kill_same_boot),
	    T(test_kill_synced_then_reboot),
	    T(test_kill_unsynced_then_reboot),
	    T(test_tail_cut_to_nothing),
	    T(test_torn_anywhere),
	    T(test_tail_kill_same_boot),
	    T(test_tail_kill_synced_then_reboot),
	    T(test_tail_same_boot),
	    T(test_tail_reboot),
	    T(test_tail_and_foreign),
	};

	return cmocka_run_group_tests_name("append", tests, NULL, NULL);
}
