/*
 * Flushing: the invariants (F1) to (F7) of pool/flush.c, and what happens when the store was
 * changed behind.
 */
#include "pool-fixture.h"

#include <sys/xattr.h>

#define TEXT_LEN (200U << 10)

static char text[TEXT_LEN];

static int setup(void **state)
{
	harness_fill_text(text, sizeof(text), 2);
	return harness_setup(state);
}

static void rewrite(struct fixture *f, struct node *n, const char *data, size_t len)
{
	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE | POOL_TRUNC) == 0);
	fx_pwrite(f, n, data, len, 0);
	pool_close_file(f->pool, n, POOL_WRITE);
}

/* (F7), promise 9: number, owner, mode, xattrs, times of file and directory stay. */
static void test_attributes_stay(void **state)
{
	struct harness *h = *state;
	const struct timespec old[2] = {{1000000000, 123456789}, {900000000, 987654321}};
	struct stat dir_before, dir_after, a, b;
	struct fixture f;
	struct node *n, *again;
	char value[8];
	int fd;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	fd = openat(f.store->root_fd, "a.zst", O_RDONLY);
	assert_int_equal(fchmod(fd, 0751), 0);
	assert_int_equal(fsetxattr(fd, "user.tag", "blue", 4, 0), 0);
	if (geteuid() == 0)
		assert_int_equal(fchown(fd, 1234, 4321), 0);
	(void)close(fd);
	rewrite(&f, n, text, 7000);
	lock_take(&n->lock);
	assert_int_equal(pool_set_times(n, old), 0);
	lock_drop(&n->lock);
	assert_int_equal(fstat(f.store->root_fd, &dir_before), 0);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &a, 0), 0);
	fx_flush(&f);
	assert_int_equal(fstat(f.store->root_fd, &dir_after), 0);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &b, 0), 0);
	assert_int_not_equal(a.st_ino, b.st_ino); /* replaced indeed */
	assert_memory_equal(&dir_before.st_mtim, &dir_after.st_mtim,
	                    sizeof(struct timespec));
	assert_int_equal(b.st_mode & 07777, 0751);
	assert_int_equal(a.st_uid, b.st_uid);
	assert_int_equal(a.st_gid, b.st_gid);
	assert_int_equal(b.st_mtim.tv_sec, 900000000);
	assert_int_equal(b.st_mtim.tv_nsec, 987654321);
	fd = openat(f.store->root_fd, "a.zst", O_RDONLY);
	assert_int_equal(fgetxattr(fd, "user.tag", value, sizeof(value)), 4);
	(void)close(fd);
	again = fx_lookup(&f, "a");
	assert_ptr_equal(again, n); /* the same number under the new identity */
	node_unref(f.tree, again);
	node_unref(f.tree, n);
	fx_close(&f);
}

static void test_hard_links_are_copied_over(void **state)
{
	struct harness *h = *state;
	struct stat a, b;
	struct fixture f;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	assert_int_equal(linkat(f.store->root_fd, "a.zst", f.store->root_fd, "b.zst", 0),
	                 0);
	node_add_name(f.tree, n, f.tree->root, "b.zst");
	rewrite(&f, n, text + 100, 9000);
	fx_flush(&f);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &a, 0), 0);
	assert_int_equal(fstatat(f.store->root_fd, "b.zst", &b, 0), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	assert_int_equal(a.st_nlink, 2);
	assert_true(fx_object_is(&f, "b.zst", text + 100, 9000));
	assert_false(fx_state(&f, n).dirty);
	/* And shorter again: nothing of the longer one is left behind it. */
	rewrite(&f, n, text, 10);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.zst", text, 10));
	node_unref(f.tree, n);
	fx_close(&f);
}

static size_t conflicts(struct fixture *f, char *ret_name, size_t size)
{
	DIR *d = opendir(f->store->path);
	const struct dirent *e;
	size_t n = 0;

	assert_non_null(d);
	while ((e = readdir(d))) {
		if (strstr(e->d_name, ".cellar-conflict-")) {
			snprintf(ret_name, size, "%s", e->d_name);
			n++;
		}
	}
	(void)closedir(d);
	return n;
}

/* (F3): somebody replaced the object while the file was dirty here: both versions stay. */
static void test_conflict_keeps_both(void **state)
{
	struct harness *h = *state;
	struct fixture f, g;
	char name[300];
	struct node *n;
	int fd;

	/* A foreign object, made by another cellar. */
	fx_options(&g);
	assert_int_equal(mkdirat(h->dirfd, "other", 0700), 0);
	{
		char *dir = xasprintf("%s/other", h->path);

		fx_open(&g, dir, true);
		free(dir);
	}
	n = fx_make(&g, "a", "foreign", 7);
	fx_flush(&g);
	node_unref(g.tree, n);

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	assert_int_equal(conflicts(&f, name, sizeof(name)), 0);
	rewrite(&f, n, "ours", 4);
	assert_int_equal(linkat(g.store->root_fd, "a.zst", f.store->root_fd, "x", 0), 0);
	assert_int_equal(renameat(f.store->root_fd, "x", f.store->root_fd, "a.zst"), 0);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.zst", "ours", 4));
	assert_int_equal(conflicts(&f, name, sizeof(name)), 1);
	assert_true(fx_object_is(&f, name, "foreign", 7));
	/* Edited in place: the same identity with another content. */
	rewrite(&f, n, "ours again", 10);
	fd = openat(f.store->root_fd, "a.zst", O_WRONLY | O_APPEND);
	assert_int_equal(write(fd, "junk", 4), 4);
	(void)close(fd);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.zst", "ours again", 10));
	assert_int_equal(conflicts(&f, name, sizeof(name)), 2);
	node_unref(f.tree, n);
	fx_close(&f);
	fx_close(&g);
}

static void test_object_gone_is_made_again(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct stat st;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	assert_int_equal(fchmodat(f.store->root_fd, "a.zst", 0640, 0), 0);
	rewrite(&f, n, text, 100);
	assert_int_equal(unlinkat(f.store->root_fd, "a.zst", 0), 0);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "a.zst", text, 100));
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &st, 0), 0);
	assert_int_equal(st.st_mode & 0777, 0640);
	node_unref(f.tree, n);
	fx_close(&f);
}

static void test_plain_file_becomes_object(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct stat st;
	struct node *n;

	fx_options(&f);
	fx_open(&f, h->path, true);
	harness_write(f.store->root_fd, "p", text, 4000);
	harness_write(f.store->root_fd, "q", text, 4000);
	assert_int_equal(linkat(f.store->root_fd, "q", f.store->root_fd, "r", 0), 0);
	n = fx_lookup(&f, "p");
	assert_non_null(n);
	assert_true(n->plain);
	assert_true(fx_holds(&f, n, text, 4000));
	rewrite(&f, n, text, 3000);
	fx_flush(&f);
	assert_true(fx_object_is(&f, "p.zst", text, 3000));
	assert_int_equal(fstatat(f.store->root_fd, "p", &st, 0), -1);
	assert_false(n->plain);
	node_unref(f.tree, n);
	/* Several links: written in place as it is. */
	n = fx_lookup(&f, "q");
	rewrite(&f, n, text, 1000);
	fx_flush(&f);
	assert_int_equal(fstatat(f.store->root_fd, "r", &st, 0), 0);
	assert_int_equal(st.st_size, 1000);
	assert_int_equal(st.st_nlink, 2);
	assert_int_equal(fstatat(f.store->root_fd, "q.zst", &st, 0), -1);
	node_unref(f.tree, n);
	fx_close(&f);
}

static void count_failure(void *ctx, const char *path, const char *error)
{
	assert_string_equal(path, "a");
	assert_non_null(strstr(error, strerror(ENOSPC)));
	++*(int *)ctx;
}

/* (F6): an error leaves the scratch dirty, says which and why, and the next try works. */
static void test_failure_is_kept_and_retried(void **state)
{
	static const char *const calls[] = {"pwrite", "fsync", "renameat2", "fsetxattr"};
	struct harness *h = *state;
	struct fixture f;
	struct node *n;

#ifndef CELLAR_DEVELOPER
	skip();
#endif
	fx_options(&f);
	fx_open(&f, h->path, true);
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		char *spec = xasprintf("%s:1:ENOSPC:always", calls[i]);
		int failures = 0;

		rewrite(&f, n, text + i, 6000);
		log_set_level(LOG_LEVEL_ERR - 1);
		assert_true(fault_set(spec));
		assert_int_equal(
		    pool_flush(f.pool, NULL, 0, NULL, count_failure, &failures), -EIO);
		assert_true(fault_fired());
		assert_int_equal(failures, 1);
		assert_true(fx_state(&f, n).dirty);
		assert_true(
		    fx_object_is(&f, "a.zst", i ? text + i - 1 : text, i ? 6000 : 5000) ||
		    fx_object_is(&f, "a.zst", text + i, 6000));
		assert_true(fault_set(""));
		log_set_level(LOG_LEVEL_ERR);
		fx_flush(&f);
		assert_true(fx_object_is(&f, "a.zst", text + i, 6000));
		assert_false(fx_state(&f, n).dirty);
		free(spec);
	}
	node_unref(f.tree, n);
	fx_close(&f);
}

struct writer {
	struct fixture *f;
	struct node *n;
	_Atomic bool stop;
	_Atomic uint64_t rounds;
};

/* Every write fills the whole file with one letter: a mix would be a torn version (F2). */
static void *write_all_the_time(void *arg)
{
	struct writer *w = arg;
	char block[65536];

	while (!atomic_load(&w->stop)) {
		memset(block, 'a' + (int)(w->rounds++ % 26), sizeof(block));
		fx_pwrite(w->f, w->n, block, sizeof(block), 0);
	}
	return NULL;
}

static void test_written_all_the_time(void **state)
{
	struct harness *h = *state;
	struct writer w = {0};
	struct fixture f;
	pthread_t thread;

	fx_options(&f);
	fx_open(&f, h->path, true);
	w.f = &f;
	w.n = fx_create(&f, "a");
	assert_int_equal(pthread_create(&thread, NULL, write_all_the_time, &w), 0);
	for (int i = 0; i < 5; i++) {
		uint64_t before = atomic_load(&w.rounds);
		struct object o;
		char block[65536];
		int fd;

		while (atomic_load(&w.rounds) == before)
			sched_yield(); /* it does write */
		fx_flush(&f);          /* returns although the writer never stops */
		fd = openat(f.store->root_fd, "a.zst", O_RDONLY);
		assert_int_equal(object_open(fd, &o, NULL), 0);
		if (o.logical_size > 0) {
			assert_int_equal(o.logical_size, sizeof(block));
			assert_int_equal(object_decode_frame(&o, 0, block, NULL), 0);
			for (size_t k = 1; k < sizeof(block); k++)
				assert_int_equal(block[k], block[0]);
		}
		object_close(&o);
		(void)close(fd);
	}
	atomic_store(&w.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pool_close_file(f.pool, w.n, POOL_READ | POOL_WRITE);
	fx_flush(&f);
	assert_false(fx_state(&f, w.n).dirty);
	node_unref(f.tree, w.n);
	fx_close(&f);
}

static void test_many_files_below_a_limit(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	char name[16];
	uint64_t frames = 300;

	fx_options(&f);
	f.o.pool_size = 1 << 20;
	fx_open(&f, h->path, true);
	for (uint64_t i = 0; i < frames; i++) {
		snprintf(name, sizeof(name), "f%d", (int)i);
		node_unref(f.tree, fx_make(&f, name, text + i, 100 * i));
	}
	fx_flush(&f);
	for (uint64_t i = 0; i < frames; i++) {
		snprintf(name, sizeof(name), "f%d.zst", (int)i);
		assert_true(fx_object_is(&f, name, text + i, 100 * i));
	}
	fx_close(&f);
}

/* The file goes from d/a to b: names and store. */
static void move_out(struct fixture *f, struct node *n, struct node *d)
{
	int fd = openat(f->store->root_fd, "d", O_RDONLY | O_DIRECTORY);

	assert_true(fd >= 0);
	assert_int_equal(renameat(f->store->root_fd, "a.zst", fd, "a.zst"), 0);
	node_add_name(f->tree, n, d, "a.zst");
	node_remove_name(f->tree, n, f->tree->root, "a.zst");
	assert_int_equal(close(fd), 0);
}

/* (F10): what a file has left is remembered by its node, and by the tree where that is forgotten; the
 * next flush makes it durable, once. */
static void test_names_that_were_left(void **state)
{
	struct harness *h = *state;
	uint64_t ino, gen, synced;
	struct node *n, *d, *left;
	struct fixture f;
	uint32_t left_gen;
	bool more;

	fx_options(&f);
	fx_open(&f, h->path, true);
	assert_int_equal(mkdirat(f.store->root_fd, "d", 0755), 0);
	d = fx_lookup(&f, "d");
	n = fx_make(&f, "a", text, 5000);
	fx_flush(&f);
	assert_false(sync_left_unknown(f.pool, &gen));

	/* within one directory, and flushed there: nothing is left */
	assert_int_equal(renameat(f.store->root_fd, "a.zst", f.store->root_fd, "c.zst"), 0);
	node_add_name(f.tree, n, f.tree->root, "c.zst");
	node_remove_name(f.tree, n, f.tree->root, "a.zst");
	left = node_left(f.tree, n, &more, &left_gen);
	assert_ptr_equal(left, f.tree->root);
	node_unref(f.tree, left);
	rewrite(&f, n, text, 6000);
	fx_flush(&f);
	assert_null(node_left(f.tree, n, &more, &left_gen));
	assert_int_equal(renameat(f.store->root_fd, "c.zst", f.store->root_fd, "a.zst"), 0);
	node_add_name(f.tree, n, f.tree->root, "a.zst");
	node_remove_name(f.tree, n, f.tree->root, "c.zst");
	rewrite(&f, n, text, 5000);
	fx_flush(&f);

	/* to another one, and forgotten */
	move_out(&f, n, d);
	ino = n->ino;
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_false(sync_left_unknown(f.pool, &gen));
	node_unref(f.tree, n);
	assert_null(tree_get(f.tree, ino));
	assert_true(sync_left_unknown(f.pool, &gen));
	n = fx_make(&f, "other", text, 100);
	assert_true(sync_left_unknown(f.pool, &gen));
	fx_flush(&f);
	assert_false(sync_left_unknown(f.pool, &gen));
	assert_true(gen > 0);

	/* what is gone altogether does not matter */
	synced = gen;
	assert_int_equal(pool_evict(f.pool, n), 0);
	assert_int_equal(unlinkat(f.store->root_fd, "other.zst", 0), 0);
	node_set_gone(f.tree, n);
	node_remove_name(f.tree, n, f.tree->root, "other.zst");
	node_unref(f.tree, n);
	assert_false(sync_left_unknown(f.pool, &gen));
	assert_int_equal(gen, synced);
	node_unref(f.tree, d);
	fx_close(&f);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_attributes_stay),           T(test_hard_links_are_copied_over),
	    T(test_conflict_keeps_both),       T(test_object_gone_is_made_again),
	    T(test_plain_file_becomes_object), T(test_failure_is_kept_and_retried),
	    T(test_written_all_the_time),      T(test_many_files_below_a_limit),
	    T(test_names_that_were_left),
	};

	return cmocka_run_group_tests_name("flush", tests, NULL, NULL);
}
