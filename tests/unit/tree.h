/* What the tests of tree/ share: a store, a catalog and a tree in a directory of their own,
 * and objects in the store. */
#ifndef CELLAR_TESTS_UNIT_TREE_H
#define CELLAR_TESTS_UNIT_TREE_H

#include "harness.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/sysio.h"
#include "codec/encode.h"
#include "tree/resolve.h"

struct bed {
	struct harness *h;
	struct store *store;
	struct catalog *catalog;
	struct tree *tree;
	bool keep_foreign;
};

static const struct uuid bed_pool = {{7, 7, 7}};
static const struct uuid bed_other_pool = {{8, 8, 8}};

static inline void bed_open(struct bed *b)
{
	char path[600], *cause = NULL;

	(void)snprintf(path, sizeof(path), "%s/store", b->h->path);
	if (store_open(path, STORE_CREATE, &b->store, NULL, &cause))
		fail_msg("store_open: %s", cause);
	if (catalog_open(b->h->dirfd, b->h->path, &bed_pool, &b->catalog, NULL, &cause))
		fail_msg("catalog_open: %s", cause);
	if (tree_open(b->store, b->catalog, &bed_pool, b->keep_foreign, 1ULL << 40,
	              &b->tree, &cause))
		fail_msg("tree_open: %s", cause);
}

static inline void bed_close(struct bed *b)
{
	tree_close(b->tree);
	catalog_close(b->catalog);
	store_close(b->store);
}

static inline void bed_restart(struct bed *b)
{
	bed_close(b);
	bed_open(b);
}

static inline void bed_lose_catalog(struct bed *b)
{
	bed_close(b);
	assert_int_equal(unlinkat(b->h->dirfd, "catalog.db", 0), 0);
	bed_open(b);
}

static inline int bed_setup(void **state)
{
	struct bed *b = calloc(1, sizeof(*b));
	void *h = NULL;

	if (!b || harness_setup(&h))
		return -1;
	b->h = h;
	bed_open(b);
	*state = b;
	return 0;
}

static inline int bed_teardown(void **state)
{
	struct bed *b = *state;
	void *h = b->h;

	bed_close(b);
	free(b);
	return harness_teardown(&h);
}

#define BED_TEST(f) cmocka_unit_test_setup_teardown(f, bed_setup, bed_teardown)

/* Paths below are relative to the store's root. */
static inline int bed_root(struct bed *b)
{
	return b->store->root_fd;
}

static inline void bed_mkdir(struct bed *b, const char *path)
{
	assert_int_equal(mkdirat(bed_root(b), path, 0755), 0);
}

/* An object with `len` bytes of text. seq 0: without a cellar frame of ours, `ino` and
 * `whose` do not matter; made as the zstd CLI would, with a content size. */
static inline void bed_object_at(int dirfd, const char *name, size_t len,
                                 const struct uuid *whose, uint64_t ino, uint64_t seq)
{
	struct encode_params p = {
	    .level = 1,
	    .frame_size = 65536,
	    .threads = 1,
	    .cellar = {.pool = *whose, .ino = ino, .seq = seq, .ctime = {.tv_sec = 1111}},
	};
	struct encode_result r;
	FILE *in = tmpfile();
	char *text = calloc(1, len + 1), *cause = NULL;
	int out = openat(dirfd, name, O_RDWR | O_CREAT | O_TRUNC, 0644);

	assert_non_null(in);
	assert_non_null(text);
	assert_true(out >= 0);
	harness_fill_text(text, len, ino + seq);
	assert_int_equal(pwrite(fileno(in), text, len, 0), len);
	if (encode_object(fileno(in), len, out, &p, &r, &cause))
		fail_msg("encode_object: %s", cause);
	(void)fclose(in);
	free(text);
	(void)close(out);
}

static inline void bed_object(struct bed *b, const char *path, size_t len, uint64_t ino,
                              uint64_t seq)
{
	bed_object_at(bed_root(b), path, len, &bed_pool, ino, seq);
}

static inline struct ident bed_ident(struct bed *b, const char *path)
{
	struct ident i;

	assert_int_equal(ident_get(bed_root(b), path, &i), 0);
	return i;
}

/* Looks a name up; the node is referenced. */
static inline errint_t bed_try(struct bed *b, struct node *dir, const char *logical,
                               struct node **ret, struct stat *ret_st)
{
	errint_t err;

	*ret = NULL;
	rmlock_rd(&b->tree->ns);
	err = resolve_name(b->tree, dir, logical, ret, ret_st);
	rmlock_drop(&b->tree->ns);
	return err;
}

static inline struct node *bed_look(struct bed *b, struct node *dir, const char *logical)
{
	struct node *n;
	struct stat st;
	errint_t err = bed_try(b, dir, logical, &n, &st);

	if (err)
		fail_msg("%s: %s", logical, strerror(-err));
	return n;
}

static inline void bed_put(struct bed *b, struct node *n)
{
	node_unref(b->tree, n);
}

/* The number of a name in the root. */
static inline uint64_t bed_ino(struct bed *b, const char *logical)
{
	struct node *n = bed_look(b, b->tree->root, logical);
	uint64_t ino = n->ino;

	bed_put(b, n);
	return ino;
}

/* Until the thread `tid` of this process sleeps in the kernel, on a lock say. */
static inline void bed_wait_asleep(_Atomic int *tid)
{
	uint64_t until = clock_mono_ms() + 20000;
	char path[64], line[256], *state = NULL;

	do {
		FILE *f;

		assert_true(clock_mono_ms() < until);
		(void)sched_yield();
		if (!atomic_load(tid))
			continue;
		(void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat",
		               atomic_load(tid));
		f = fopen(path, "r");
		assert_non_null(f);
		assert_non_null(fgets(line, sizeof(line), f));
		(void)fclose(f);
		state = strrchr(line, ')');
	} while (!state || state[2] != 'S');
}

#endif
