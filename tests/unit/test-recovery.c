/*
 * Recovery: each row of the table at the top of pool/recovery.c, and its invariants. A "run" is a
 * child process that works on the pool and ends without closing it, as kill -9 does.
 */
#include "pool-fixture.h"

#define BOOT_1 "11111111-1111-4111-8111-111111111111"
#define BOOT_2 "22222222-2222-4222-8222-222222222222"

static char text[100000];

static int setup(void **state)
{
	harness_fill_text(text, sizeof(text), 3);
	return harness_setup(state);
}

struct run {
	const char *dir, *boot;
	void (*work)(struct fixture *f);
	bool close; /* a clean end */
	bool start; /* with flushers */
};

static void run_child(void *arg)
{
	struct run *r = arg;
	struct fixture f;

	FX_CHECK(setenv("CELLAR_BOOT_ID", r->boot, 1) == 0);
	fx_options(&f);
	fx_open(&f, r->dir, r->start);
	r->work(&f);
	catalog_commit(f.catalog);
	if (r->close)
		fx_close(&f);
}

static void run(struct harness *h, const char *boot, void (*work)(struct fixture *f),
                bool start, bool close_it)
{
	struct run r = {h->path, boot, work, close_it, start};
	char *err;
	int status = harness_child(run_child, &r, &err);

	if (status != 0)
		fail_msg("wait status 0x%x: %s", status, err);
	free(err);
}

static struct node *must_find(struct fixture *f, const char *name)
{
	struct node *n = fx_lookup(f, name);

	FX_CHECK(n != NULL);
	return n;
}

static uint64_t lost(struct fixture *f)
{
	struct pool_stats st;

	pool_get_stats(f->pool, &st);
	return st.lost;
}

/* ---- same boot: what a write returned for is there ---- */

static void write_some(struct fixture *f)
{
	struct node *n = fx_make(f, "a", text, 50000);

	node_unref(f->tree, n);
	n = fx_create(f, "open"); /* never closed */
	fx_pwrite(f, n, text, 7, 0);
	n = fx_create(f, "empty");
	pool_close_file(f->pool, n, POOL_READ | POOL_WRITE);
}

static void see_some(struct fixture *f)
{
	struct node *a = must_find(f, "a"), *o = must_find(f, "open"),
	            *e = must_find(f, "empty");

	FX_CHECK(fx_state(f, a).dirty);
	FX_CHECK(fx_holds(f, a, text, 50000));
	FX_CHECK(fx_holds(f, o, text, 7));
	FX_CHECK(fx_holds(f, e, "", 0));
	FX_CHECK(lost(f) == 0);
}

static void flush_and_see(struct fixture *f)
{
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, 50000));
	FX_CHECK(fx_object_is(f, "open.zst", text, 7));
	FX_CHECK(fx_object_is(f, "empty.zst", "", 0));
}

static void test_same_boot(void **state)
{
	run(*state, BOOT_1, write_some, false, false);
	run(*state, BOOT_1, see_some, false, false);
	run(*state, BOOT_1, see_some, false, false); /* (R1) twice, thrice: the same */
	run(*state, BOOT_1, flush_and_see, true, true);
}

/* The catalog is gone too: numbers of dirty files come from their records (R2). */
static void drop_catalog(struct harness *h)
{
	(void)unlinkat(h->dirfd, "pool/catalog.db", 0);
	(void)unlinkat(h->dirfd, "pool/catalog.db-wal", 0);
	(void)unlinkat(h->dirfd, "pool/catalog.db-shm", 0);
}

static void test_same_boot_without_catalog(void **state)
{
	run(*state, BOOT_1, write_some, false, false);
	drop_catalog(*state);
	run(*state, BOOT_1, see_some, false, false);
	run(*state, BOOT_1, flush_and_see, true, true);
}

/* ---- after a reboot ---- */

static void sync_and_write_on(struct fixture *f)
{
	struct node *n = fx_create(f, "a");

	fx_pwrite(f, n, text, 5000, 0);
	FX_CHECK(pool_fsync(f->pool, n, false) == 0);
	fx_pwrite(f, n, text + 5000, 5000, 5000); /* not synced */
	n = fx_create(f, "never");
	fx_pwrite(f, n, text, 100, 0);
}

static void see_synced(struct fixture *f)
{
	struct node *n = must_find(f, "a");

	FX_CHECK(fx_holds(f, n, text, 5000)); /* cut to what was synced: no torn tail */
	n = must_find(f, "never");
	FX_CHECK(fx_holds(f, n, "", 0)); /* a prefix of what was written, and no EIO */
	FX_CHECK(lost(f) == 1);          /* what was written to it is not deleted */
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, 5000));
	FX_CHECK(fx_object_is(f, "never.zst", "", 0));
}

static void test_reboot(void **state)
{
	run(*state, BOOT_1, sync_and_write_on, false, false);
	run(*state, BOOT_2, see_synced, true, true);
}

static void overwrite_flushed(struct fixture *f)
{
	struct node *n = fx_make(f, "a", text, 3000);

	fx_flush(f);
	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	fx_pwrite(f, n, "unsynced", 8, 0);
}

static void see_old(struct fixture *f)
{
	FX_CHECK(fx_holds(f, must_find(f, "a"), text, 3000));
	FX_CHECK(lost(f) == 1);
}

static void test_unsynced_change_of_an_old_file(void **state)
{
	run(*state, BOOT_1, overwrite_flushed, true, false);
	run(*state, BOOT_2, see_old, false, true);
}

/* NEWER, n >= sync_seq: the flush came through, its record did not. */
static void flush_then_old_record(struct fixture *f)
{
	struct node *n = fx_make(f, "a", text, 3000);
	struct record before;

	FX_CHECK(pool_fsync(f->pool, n, false) == 0);
	before = n->scratch->record;
	fx_flush(f);
	lock_take(&n->lock);
	n->scratch->record = before; /* as if the last writes had not reached the disk */
	FX_CHECK(scratch_record(f->pool, n->scratch) == 0);
	lock_drop(&n->lock);
}

static void see_object_is_the_truth(struct fixture *f)
{
	struct node *n = must_find(f, "a");

	FX_CHECK(!fx_state(f, n).dirty);
	FX_CHECK(fx_holds(f, n, text, 3000));
	FX_CHECK(lost(f) == 0);
}

static void see_taken_with_new_base(struct fixture *f)
{
	struct node *n = must_find(f, "a");

	FX_CHECK(fx_state(f, n).dirty);
	FX_CHECK(fx_holds(f, n, text, 3000));
	FX_CHECK(pool_start(f->pool) == 0);
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, 3000));
	FX_CHECK(counter_get(COUNTER_CONFLICTS) == 0);
}

static void test_flush_without_its_record(void **state)
{
	run(*state, BOOT_1, flush_then_old_record, true, false);
	run(*state, BOOT_2, see_object_is_the_truth, false, true);
}

static void test_flush_without_its_record_same_boot(void **state)
{
	run(*state, BOOT_1, flush_then_old_record, true, false);
	run(*state, BOOT_1, see_taken_with_new_base, false, true);
}

/* ---- clean scratch (R3) ---- */

static void leave_clean(struct fixture *f)
{
	(void)fx_make(f, "a", text, 3000);
	fx_flush(f);
}

static void see_warm(struct fixture *f)
{
	FX_CHECK(f->pool->count == 1);
	FX_CHECK(fx_holds(f, must_find(f, "a"), text, 3000));
	FX_CHECK(counter_get(COUNTER_OPEN_HITS) == 1);
	FX_CHECK(counter_get(COUNTER_OPEN_MISSES) == 0);
}

static void see_cold(struct fixture *f)
{
	FX_CHECK(f->pool->count == 0);
	FX_CHECK(fx_holds(f, must_find(f, "a"), text, 3000));
	FX_CHECK(counter_get(COUNTER_OPEN_MISSES) == 1);
}

static void test_clean_kept_in_the_same_boot(void **state)
{
	run(*state, BOOT_1, leave_clean, true, false);
	run(*state, BOOT_1, see_warm, false, false);
}

static void test_clean_dropped_after_a_cut(void **state)
{
	run(*state, BOOT_1, leave_clean, true, false);
	run(*state, BOOT_2, see_cold, false, false);
}

static void test_clean_kept_after_a_clean_stop(void **state)
{
	run(*state, BOOT_1, leave_clean, true, true);
	run(*state, BOOT_2, see_warm, false, false);
	/* (R4) that run ended badly: its mark must be gone */
	run(*state, "33333333-3333-4333-8333-333333333333", see_cold, false, false);
}

/* ---- damage and names ---- */

static void damage_record(struct harness *h, bool remove)
{
	char path[700];
	FILE *p;

	/* The only scratch file there is. */
	snprintf(path, sizeof(path), "find %s/pool/scratch -type f -size +0", h->path);
	p = popen(path, "r");
	assert_non_null(p);
	assert_non_null(fgets(path, sizeof(path), p));
	(void)pclose(p);
	path[strcspn(path, "\n")] = '\0';
	{
		int fd = open(path, O_RDONLY);

		assert_true(fd >= 0);
		if (remove)
			assert_int_equal(sys_fremovexattr(fd, RECORD_XATTR), 0);
		else
			assert_int_equal(
			    sys_fsetxattr(fd, RECORD_XATTR, "CLRRgarbage", 11, 0), 0);
		(void)close(fd);
	}
}

static void one_dirty(struct fixture *f)
{
	(void)fx_make(f, "a", text, 3000);
}

static void see_lost(struct fixture *f)
{
	FX_CHECK(f->pool->count == 0);
	FX_CHECK(lost(f) == 1);
}

static void test_damaged_record_is_never_deleted(void **state)
{
	run(*state, BOOT_1, one_dirty, false, false);
	damage_record(*state, false);
	run(*state, BOOT_1, see_lost, false, true);
	run(*state, BOOT_1, see_lost, false, true);
}

static void test_missing_record_is_never_deleted(void **state)
{
	run(*state, BOOT_1, one_dirty, false, false);
	damage_record(*state, true);
	run(*state, BOOT_1, see_lost, false, true);
}

static void wait_settled(struct fixture *f)
{
	while (atomic_load(&f->pool->waiting) > 0)
		sched_yield();
}

static void see_moved(struct fixture *f)
{
	wait_settled(f); /* the search behind the mount meets it */
	FX_CHECK(lost(f) == 0);
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "d/moved.zst", text, 3000));
}

static void one_flushed_and_dirty(struct fixture *f)
{
	struct node *n = fx_make(f, "a", "old", 3);

	fx_flush(f);
	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE | POOL_TRUNC) == 0);
	fx_pwrite(f, n, text, 3000, 0);
}

static void test_moved_behind_us_is_found(void **state)
{
	struct harness *h = *state;

	run(h, BOOT_1, one_flushed_and_dirty, true, false);
	assert_int_equal(mkdirat(h->dirfd, "store/d", 0755), 0);
	assert_int_equal(renameat(h->dirfd, "store/a.zst", h->dirfd, "store/d/moved.zst"),
	                 0);
	run(h, BOOT_1, see_moved, true, true);
}

static void see_given_up(struct fixture *f)
{
	wait_settled(f);
	FX_CHECK(lost(f) == 1);
	FX_CHECK(f->pool->count == 0);
}

/* Behind us, by somebody else: what is dirty is kept. */
static void take_object_away(struct harness *h)
{
	assert_int_equal(unlinkat(h->dirfd, "store/a.zst", 0), 0);
	run(h, BOOT_1, see_given_up, true, true);
}

static void test_gone_goes_to_lost_and_found(void **state)
{
	struct harness *h = *state;

	run(h, BOOT_1, one_flushed_and_dirty, true, false);
	take_object_away(h);
}

static void unlink_dirty(struct fixture *f)
{
	struct node *n = fx_create(f, "a");

	fx_pwrite(f, n, text, 3000, 0);
	FX_CHECK(pool_fsync(f->pool, n, false) == 0);
	FX_CHECK(unlinkat(f->store->root_fd, "a.zst", 0) == 0);
	node_remove_name(f->tree, n, f->tree->root, "a.zst");
	pool_unlinked(f->pool, n, f->tree->root);
	(void)fx_make(f, "a", "another", 7);
}

static void see_only_another(struct fixture *f)
{
	FX_CHECK(f->pool->count == 1);
	FX_CHECK(lost(f) == 0);
	FX_CHECK(fx_holds(f, must_find(f, "a"), "another", 7));
}

static void test_unlinked_while_open_leaves_nothing(void **state)
{
	run(*state, BOOT_1, unlink_dirty, false, false);
	run(*state, BOOT_1, see_only_another, false, true);
}

/* A cellar of before the mode said it wrote it into the record. */
static void unlink_dirty_as_before(struct fixture *f)
{
	struct node *n = fx_create(f, "a");
	struct record r;

	fx_pwrite(f, n, text, 3000, 0);
	FX_CHECK(record_read(scratch_fd(n), &r) == 0);
	r.flags |= RECORD_DOOMED;
	FX_CHECK(record_write(scratch_fd(n), &r) == 0);
	FX_CHECK(unlinkat(f->store->root_fd, "a.zst", 0) == 0);
}

static void see_nothing(struct fixture *f)
{
	FX_CHECK(f->pool->count == 0);
	FX_CHECK(lost(f) == 0);
}

static void test_doomed_by_an_older_cellar(void **state)
{
	run(*state, BOOT_1, unlink_dirty_as_before, false, false);
	run(*state, BOOT_1, see_nothing, false, true);
}

static void set_doomed(struct fixture *f, bool doomed)
{
	struct node *n = must_find(f, "a");

	lock_take(&n->lock);
	pool_dooming(f->pool, n, doomed);
	lock_drop(&n->lock);
}

static void doom(struct fixture *f)
{
	one_flushed_and_dirty(f);
	set_doomed(f, true);
}

/* An unlink that failed: the file is as safe as before. */
static void doom_and_undo(struct fixture *f)
{
	doom(f);
	set_doomed(f, false);
}

static void test_not_doomed_after_all(void **state)
{
	struct harness *h = *state;

	run(h, BOOT_1, doom_and_undo, true, false);
	take_object_away(h);
}

/* Recovery takes the mark off a file whose unlink did not happen. */
static void see_it(struct fixture *f)
{
	FX_CHECK(fx_holds(f, must_find(f, "a"), text, 3000));
	FX_CHECK(lost(f) == 0);
}

static void test_doomed_and_still_there(void **state)
{
	struct harness *h = *state;

	run(h, BOOT_1, doom, true, false);
	run(h, BOOT_1, see_it, false, false);
	take_object_away(h);
}

/* Somebody else's object under the name of a dirty file: both are kept (section 8). */
static void see_both(struct fixture *f)
{
	fx_flush(f);
	FX_CHECK(fx_object_is(f, "a.zst", text, 3000));
	FX_CHECK(counter_get(COUNTER_CONFLICTS) == 1);
}

static void foreign_object(struct fixture *f)
{
	(void)fx_make(f, "a", "foreign", 7);
	fx_flush(f);
}

static void test_foreign_object_meanwhile(void **state)
{
	struct harness *h = *state;
	struct harness other = {.dirfd = h->dirfd};

	snprintf(other.path, sizeof(other.path), "%.400s/other", h->path);
	assert_int_equal(mkdirat(h->dirfd, "other", 0700), 0);
	run(&other, BOOT_1, foreign_object, true, true);
	run(h, BOOT_1, one_flushed_and_dirty, true, false);
	assert_int_equal(renameat(h->dirfd, "other/store/a.zst", h->dirfd, "store/a.zst"),
	                 0);
	run(h, BOOT_1, see_both, true, true);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_same_boot),
	    T(test_same_boot_without_catalog),
	    T(test_reboot),
	    T(test_unsynced_change_of_an_old_file),
	    T(test_flush_without_its_record),
	    T(test_flush_without_its_record_same_boot),
	    T(test_clean_kept_in_the_same_boot),
	    T(test_clean_dropped_after_a_cut),
	    T(test_clean_kept_after_a_clean_stop),
	    T(test_damaged_record_is_never_deleted),
	    T(test_missing_record_is_never_deleted),
	    T(test_moved_behind_us_is_found),
	    T(test_gone_goes_to_lost_and_found),
	    T(test_unlinked_while_open_leaves_nothing),
	    T(test_doomed_by_an_older_cellar),
	    T(test_not_doomed_after_all),
	    T(test_doomed_and_still_there),
	    T(test_foreign_object_meanwhile),
	};

	return cmocka_run_group_tests_name("recovery", tests, NULL, NULL);
}
