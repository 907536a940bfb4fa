/* store/store: opening, numbers, walking. */
#include "store-fixture.h"

#include <pthread.h>
#include <sys/file.h>

#include "base/counters.h"
#include "store/durable.h"

/* Opening must fail so, and say all of these words. */
static void expect_refusal(const char *path, unsigned flags, errint_t want,
                           const char *word1, const char *word2)
{
	struct store *s = (struct store *)1;
	char *cause = NULL;
	errint_t err = store_open(path, flags, &s, NULL, &cause);

	assert_int_equal(err, want);
	assert_ptr_equal(s, (struct store *)1);
	assert_non_null(cause);
	if (!strstr(cause, word1) || (word2 && !strstr(cause, word2)))
		fail_msg("cause: %s", cause);
	free(cause);
}

/* ---- opening ---- */

static void test_create(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	struct uuid uuid = s->uuid, seen;
	cleanup_free char *text = NULL;

	assert_true(s->created);
	assert_false(uuid_is_null(&uuid));
	assert_int_equal(s->name_max, 255);
	assert_string_equal(s->path, store_path(h));
	assert_int_equal(stat_of(h, "store/.cellar").st_mode & 07777, 0700);
	assert_int_equal(stat_of(h, "store/.cellar/tmp").st_mode & 07777, 0700);
	assert_int_equal(stat_of(h, "store/.cellar/store.id").st_mode & 07777, 0600);
	assert_int_equal(stat_of(h, "store/.cellar/lock").st_mode & 07777, 0600);
	text = xasprintf("cellar-store 1\nuuid %s\nnext_ino 16\n", uuid_format(&uuid).s);
	expect_text(h, "store/.cellar/store.id", text);
	assert_int_equal(count_entries(h, "store/.cellar"), 3);
	store_close(s);
	for (unsigned flags = 0; flags < 2; flags++) {
		assert_int_equal(store_open(store_path(h), flags, &s, NULL, NULL), 0);
		seen = s->uuid;
		assert_true(uuid_equal(&uuid, &seen));
		assert_false(s->created);
		store_close(s);
	}
	store_close(NULL);
}

/* A relative path, a trailing slash and a symlink lead to the same absolute path. */
static void test_paths(void **state)
{
	struct harness *h = *state;
	cleanup_free char *link = xasprintf("%s/link", h->path);
	cleanup_free char *slash = xasprintf("%s///", store_path(h));
	const char *const paths[] = {link, slash, "store", "./store/."};
	int cwd = open(".", O_RDONLY | O_DIRECTORY);

	store_close(open_store(h));
	assert_int_equal(symlinkat("store", h->dirfd, "link"), 0);
	assert_int_equal(fchdir(h->dirfd), 0);
	for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
		struct store *s;

		assert_int_equal(store_open(paths[i], STORE_CREATE, &s, NULL, NULL), 0);
		assert_string_equal(s->path, store_path(h));
		store_close(s);
	}
	assert_int_equal(fchdir(cwd), 0);
	close(cwd);
}

static void test_refusals(void **state)
{
	struct harness *h = *state;
	cleanup_free char *file = xasprintf("%s/file", h->path);
	cleanup_free char *below = xasprintf("%s/none/store", h->path);
	cleanup_free char *empty = xasprintf("%s/empty", h->path);

	put(h, "file", "x");
	assert_int_equal(mkdirat(h->dirfd, "empty", 0755), 0);
	for (unsigned flags = 0; flags < 4; flags++)
		expect_refusal(file, flags, -ENOTDIR, "file\" is not a directory", NULL);
	expect_refusal(below, STORE_CREATE, -ENOENT, "does not exist", "none/store");
	expect_refusal(below, 0, -ENOENT, "does not exist", NULL);
	expect_refusal(empty, 0, -ENOENT, "holds no cellar", empty);
	expect_refusal(empty, STORE_NOLOCK | STORE_CREATE, -ENOENT, "holds no cellar",
	               NULL);
	assert_int_equal(count_entries(h, "empty"), 0);
	put(h, "empty/.cellar", "a file");
	expect_refusal(empty, STORE_CREATE, -ENOTDIR, "not a directory", ".cellar");
	expect_text(h, "empty/.cellar", "a file");
	assert_int_equal(unlinkat(h->dirfd, "empty/.cellar", 0), 0);
	assert_int_equal(symlinkat("..", h->dirfd, "empty/.cellar"), 0);
	expect_refusal(empty, STORE_CREATE, -ELOOP, ".cellar", NULL);
	assert_int_equal(count_entries(h, "."), 2);
}

static void test_interrupted_initialisation(void **state)
{
	struct harness *h = *state;
	struct store *s;

	assert_int_equal(mkdirat(h->dirfd, "store", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/.cellar", 0700), 0);
	expect_refusal(store_path(h), 0, -ENOENT, "holds no cellar", NULL);
	put(h, "store/.cellar/store.id.tmp", "cellar-store 1\nuu");
	put(h, "store/.cellar/lock", "");
	s = open_store(h);
	assert_true(s->created);
	assert_false(is_there(h, "store/.cellar/store.id.tmp"));
	assert_int_equal(s->next_ino, 16);
	store_close(s);

	/* a pool was known: this was a store, and its id is lost */
	put(h, "store/.cellar/pool.id", "whatever");
	assert_int_equal(unlinkat(h->dirfd, "store/.cellar/store.id", 0), 0);
	expect_refusal(store_path(h), STORE_CREATE, -EUCLEAN, "store.id", "missing");
	assert_false(is_there(h, "store/.cellar/store.id"));
}

static void test_existing_tree(void **state)
{
	struct harness *h = *state;
	const struct timespec ts[2] = {{.tv_sec = 1000}, {.tv_sec = 2000, .tv_nsec = 7}};
	struct store *s;

	assert_int_equal(mkdirat(h->dirfd, "store", 0750), 0);
	put(h, "store/a.log", "text");
	assert_int_equal(utimensat(h->dirfd, "store", ts, 0), 0);
	s = open_store(h);
	assert_true(s->created);
	assert_int_equal(stat_of(h, "store").st_mtim.tv_sec, 2000);
	assert_int_equal(stat_of(h, "store").st_mtim.tv_nsec, 7);
	assert_int_equal(stat_of(h, "store").st_mode & 07777, 0750);
	store_close(s);
}

static void test_damaged_id(void **state)
{
	static const char *const bad[] = {
	    "",
	    "cellar-store 1\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino 16",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino 16\n\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino 016\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino -16\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino 15\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino "
	    "18446744073709551616\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino "
	    "4611686018427387904\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789a\nnext_ino 16\n",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ag\nnext_ino 16\n",
	    "cellar-store 1\nuuid 00000000-0000-0000-0000-000000000000\nnext_ino 16\n",
	    "cellar-store 0\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino 16\n",
	    "rubbish",
	};
	struct harness *h = *state;
	char *large = malloc(100001);

	store_close(open_store(h));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		put(h, "store/.cellar/store.id", bad[i]);
		expect_refusal(store_path(h), STORE_CREATE, -EUCLEAN, "store.id",
		               "is damaged");
		expect_text(h, "store/.cellar/store.id", bad[i]);
	}
	memset(large, 'x', 100000);
	large[100000] = '\0';
	put(h, "store/.cellar/store.id", large);
	expect_refusal(store_path(h), 0, -EUCLEAN, "damaged", NULL);
	free(large);
	harness_write(h->dirfd, "store/.cellar/store.id", "cellar-store 1\n\0x", 17);
	expect_refusal(store_path(h), 0, -EUCLEAN, "damaged", NULL);
	put(h, "store/.cellar/store.id", "cellar-store 2\nanything\n");
	expect_refusal(store_path(h), STORE_CREATE, -EPROTONOSUPPORT, "version 2", NULL);
	put(h, "store/.cellar/store.id",
	    "cellar-store 1\nuuid 3b4bd2a4-7c0f-4fbb-a1a5-0123456789ab\nnext_ino 99\n");
	store_close(open_store(h));
}

static void test_lock(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h), *other = NULL;
	cleanup_free char *pid = xasprintf("pid %ld", (long)getpid());
	bool draining = true;
	char *cause = NULL;

	assert_int_equal(store_open(store_path(h), 0, &other, &draining, &cause), -EBUSY);
	assert_false(draining);
	assert_non_null(strstr(cause, pid));
	assert_non_null(strstr(cause, store_path(h)));
	assert_null(strstr(cause, "mounted on"));
	free(cause);
	cause = NULL;

	assert_int_equal(store_set_state(s, "running", "/mnt/a long name"), 0);
	assert_int_equal(store_set_state(s, "draining", "/mnt/a\nstate x"), 0);
	assert_int_equal(store_open(store_path(h), STORE_CREATE, &other, &draining, &cause),
	                 -EBUSY);
	assert_true(draining);
	assert_non_null(strstr(cause, pid));
	assert_non_null(strstr(cause, "(mounted on /mnt/a\\nstate x)"));
	free(cause);
	cause = NULL;

	assert_int_equal(store_set_state(s, "running", NULL), 0);
	assert_int_equal(store_open(store_path(h), 0, &other, &draining, NULL), -EBUSY);
	assert_false(draining);

	/* looking only goes on; whoever does may not give out numbers */
	assert_int_equal(store_open(store_path(h), STORE_NOLOCK, &other, NULL, NULL), 0);
	assert_true(uuid_equal(&other->uuid, &s->uuid));
	store_close(other);

	/* what nobody can read is a sentence all the same */
	put(h, "store/.cellar/lock", "rubbish");
	assert_int_equal(store_open(store_path(h), 0, &other, NULL, &cause), -EBUSY);
	assert_non_null(strstr(cause, "another cellard"));
	free(cause);
	cause = NULL;
	store_close(s);

	/* a stale text means nothing */
	put(h, "store/.cellar/lock", "pid 1\nstate draining\nmountpoint /old/place\n");
	s = open_store(h);
	cause = harness_read(h->dirfd, "store/.cellar/lock", NULL);
	assert_memory_equal(cause, pid, strlen(pid));
	assert_null(strstr(cause, "/old/place"));
	free(cause);
	store_close(s);
}

static void open_as_nobody(void *arg)
{
	struct harness *h = arg;
	struct store *s = NULL;
	struct name name;
	uint64_t ino;
	char *cause = NULL;
	int fd;

	become_nobody();
	MUST(store_open(store_path(h), STORE_CREATE, &s, NULL, &cause) == 0);
	MUST(store_new_ino(s, &ino) == 0 && ino == 16);
	MUST((fd = store_tmp_create(s, &name)) >= 0);
	MUST(store_replace(s, name.s, s->root_fd, "a.zst") == 0);
	MUST(store_sync_dir(s->root_fd) == 0);
	store_close(s);
	MUST(store_open(store_path(h), 0, &s, NULL, &cause) == 0);
	store_close(s);
}

static void test_ordinary_user(void **state)
{
	struct harness *h = *state;
	char *text;
	int status;

	assert_int_equal(fchmod(h->dirfd, 0777), 0);
	status = harness_child(open_as_nobody, h, &text);
	if (status)
		fail_msg("%s", text);
	free(text);
}

/* Whatever call fails while a store is made: an error with a cause, or a store; and the next
 * open makes up for it. */
static void test_open_faults(void **state)
{
	struct harness *h = *state;
	int n = 0, failed = 0;
	bool fired = true;

	if (!have_faults())
		skip();
	for (n = 1; fired; n++) {
		cleanup_free char *path = xasprintf("%s/s%d", h->path, n);
		cleanup_free char *spec =
		    xasprintf("any:%d:EIO%s", n, n % 2 ? "" : ":always");
		struct store *s = NULL;
		struct uuid uuid = {{0}};
		char *cause = NULL;
		errint_t err;

		assert_true(fault_set(spec));
		err = store_open(path, STORE_CREATE, &s, NULL, &cause);
		fired = fault_fired();
		(void)fault_set(NULL);
		if (err) {
			failed++;
			assert_int_equal(err, -EIO);
			assert_non_null(cause);
			free(cause);
		} else {
			uuid = s->uuid;
			store_close(s);
		}
		assert_int_equal(store_open(path, STORE_CREATE, &s, NULL, NULL), 0);
		if (!err)
			assert_true(uuid_equal(&uuid, &s->uuid));
		store_close(s);
	}
	assert_true(failed > 15);
}

/* ---- pool.id ---- */

static void test_pool_id(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	struct uuid a = uuid_random(), b = uuid_random(), got = a;
	char *cause = NULL;

	assert_int_equal(store_get_pool(s, &got, NULL), 0);
	assert_true(uuid_is_null(&got));
	assert_int_equal(store_set_pool(s, &a, NULL), 0);
	assert_int_equal(store_get_pool(s, &got, NULL), 0);
	assert_true(uuid_equal(&got, &a));
	assert_int_equal(store_set_pool(s, &b, NULL), 0);
	store_close(s);
	s = open_store(h);
	assert_int_equal(store_get_pool(s, &got, NULL), 0);
	assert_true(uuid_equal(&got, &b));
	assert_int_equal(count_entries(h, "store/.cellar"), 4);
	put(h, "store/.cellar/pool.id", "cellar-pool 1\nuuid x\n");
	assert_int_equal(store_get_pool(s, &got, &cause), -EUCLEAN);
	assert_true(uuid_equal(&got, &b));
	assert_non_null(strstr(cause, "pool.id"));
	free(cause);
	put(h, "store/.cellar/pool.id",
	    "cellar-pool 1\nuuid 00000000-0000-0000-0000-000000000000\n");
	assert_int_equal(store_get_pool(s, &got, NULL), -EUCLEAN);
	assert_int_equal(store_set_pool(s, &a, NULL), 0);
	assert_int_equal(store_get_pool(s, &got, NULL), 0);
	store_close(s);
}

/* ---- numbers ---- */

static uint64_t new_ino(struct store *s)
{
	uint64_t ino = 0;

	assert_int_equal(store_new_ino(s, &ino), 0);
	return ino;
}

static uint64_t recorded_ino(struct harness *h)
{
	char *text = harness_read(h->dirfd, "store/.cellar/store.id", NULL);
	unsigned long long n = 0;

	assert_int_equal(sscanf(strstr(text, "next_ino "), "next_ino %llu", &n), 1);
	free(text);
	return n;
}

static void test_numbers(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	uint64_t syncs = counter_get(COUNTER_STORE_SYNCS), last;

	assert_int_equal(recorded_ino(h), 16);
	assert_int_equal(new_ino(s), 16);
	assert_int_equal(counter_get(COUNTER_STORE_SYNCS) - syncs, 2); /* file, .cellar */
	assert_int_equal(recorded_ino(h), 16 + (1 << 20));
	for (uint64_t i = 17; i < 16 + (1 << 20); i++)
		assert_int_equal(new_ino(s), i);
	assert_int_equal(counter_get(COUNTER_STORE_SYNCS) - syncs, 2);
	assert_int_equal(new_ino(s), 16 + (1 << 20));
	assert_int_equal(counter_get(COUNTER_STORE_SYNCS) - syncs, 4);
	assert_int_equal(recorded_ino(h), 16 + (2 << 20));
	last = recorded_ino(h);
	store_close(s);
	/* the rest of the range is skipped */
	s = open_store(h);
	assert_int_equal(recorded_ino(h), last);
	assert_int_equal(new_ino(s), last);
	assert_true(recorded_ino(h) > last);
	store_close(s);
}

static void test_number_faults(void **state)
{
	static const char *const calls[] = {"openat2", "pwrite", "fsync", "close",
	                                    "renameat2"};
	struct harness *h = *state;
	struct store *s;
	uint64_t ino = 77;

	if (!have_faults())
		skip();
	s = open_store(h);
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		cleanup_free char *spec = xasprintf("%s:1:ENOSPC", calls[i]);

		assert_true(fault_set(spec));
		assert_int_equal(store_new_ino(s, &ino), -ENOSPC);
		assert_int_equal(ino, 77);
		assert_int_equal(count_entries(h, "store/.cellar"), 3);
	}
	assert_true(fault_set("fsync:2:EIO"));
	assert_int_equal(store_new_ino(s, &ino), -EIO);
	(void)fault_set(NULL);
	assert_int_equal(new_ino(s), 16);
	assert_true(recorded_ino(h) > 16);
	store_close(s);
}

#define THREADS    4
#define PER_THREAD 5000

struct taker {
	struct store *store;
	uint64_t first[PER_THREAD];
};

static void *take_numbers(void *arg)
{
	struct taker *t = arg;

	for (int i = 0; i < PER_THREAD; i++)
		if (store_new_ino(t->store, &t->first[i]))
			return t;
	return NULL;
}

static void test_number_threads(void **state)
{
	struct store *s = open_store(*state);
	static struct taker t[THREADS];
	pthread_t id[THREADS];
	bool *seen = calloc(THREADS * PER_THREAD + 16, 1);

	for (int i = 0; i < THREADS; i++) {
		t[i].store = s;
		assert_int_equal(pthread_create(&id[i], NULL, take_numbers, &t[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		void *r;

		assert_int_equal(pthread_join(id[i], &r), 0);
		assert_null(r);
		for (int j = 0; j < PER_THREAD; j++) {
			assert_true(t[i].first[j] < THREADS * PER_THREAD + 16);
			assert_false(seen[t[i].first[j]]);
			seen[t[i].first[j]] = true;
		}
	}
	free(seen);
	store_close(s);
}

/* ---- walking ---- */

static void test_open_dir(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	char name[300];
	int fd;

	assert_int_equal(mkdirat(h->dirfd, "store/a", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/a/b", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "outside", 0755), 0);
	put(h, "store/file", "x");
	assert_int_equal(symlinkat("a", h->dirfd, "store/link"), 0);
	assert_int_equal(symlinkat("../outside", h->dirfd, "store/out"), 0);
	for (const char *const *p =
	         (const char *const[]){"", "a", "a/b", "a/", "a//b", ".", NULL};
	     *p; p++) {
		fd = store_open_dir(s, *p, O_RDONLY);
		assert_true(fd >= 0);
		assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
		close(fd);
	}
	assert_int_equal(store_open_dir(s, "file", O_RDONLY), -ENOTDIR);
	assert_int_equal(store_open_dir(s, "none", O_RDONLY), -ENOENT);
	assert_int_equal(store_open_dir(s, "link", O_RDONLY), -ELOOP);
	assert_int_equal(store_open_dir(s, "link/b", O_RDONLY), -ELOOP);
	assert_int_equal(store_open_dir(s, "out", O_RDONLY), -ELOOP);
	assert_int_equal(store_open_dir(s, "..", O_RDONLY), -EXDEV);
	assert_int_equal(store_open_dir(s, "a/../../outside", O_RDONLY), -EXDEV);
	assert_int_equal(store_open_dir(s, "/", O_RDONLY), -EXDEV);
	assert_int_equal(store_open_dir(s, h->path, O_RDONLY), -EXDEV);
	memset(name, 'x', sizeof name);
	name[256] = '\0';
	assert_int_equal(store_open_dir(s, name, O_RDONLY), -ENAMETOOLONG);

	fd = store_open_at(s->root_fd, "file", O_RDONLY);
	assert_true(fd >= 0);
	close(fd);
	fd = store_open_at(s->root_fd, "link", O_PATH | O_NOFOLLOW);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(store_open_at(s->root_fd, "link", O_RDONLY), -ELOOP);
	assert_int_equal(store_open_at(s->root_fd, "a/b", O_RDONLY), -EINVAL);
	assert_int_equal(store_open_at(s->root_fd, "", O_RDONLY), -EINVAL);
	assert_int_equal(store_open_at(s->root_fd, "..", O_RDONLY), -EXDEV);
	store_close(s);
}

#define DEEP_NAME_LEN 200
#define DEEP          60 /* 12,000 bytes */

/* Makes the deep path below dirfd, returns it. */
static char *make_deep(int dirfd)
{
	char name[DEEP_NAME_LEN + 1];
	char *path = calloc(DEEP, DEEP_NAME_LEN + 1);
	int at = dup(dirfd);

	for (int i = 0; i < DEEP; i++) {
		int next;

		memset(name, 'a' + i % 26, DEEP_NAME_LEN);
		name[DEEP_NAME_LEN] = '\0';
		assert_int_equal(mkdirat(at, name, 0755), 0);
		next = openat(at, name, O_RDONLY | O_DIRECTORY);
		close(at);
		at = next;
		(void)snprintf(path + strlen(path), DEEP_NAME_LEN + 2, "%s%s", i ? "/" : "",
		               name);
	}
	harness_write(at, "leaf.zst", "x", 1);
	close(at);
	return path;
}

struct seen_items {
	char *text; /* one line each */
	size_t count;
	errint_t stop_at;
	size_t stop_after;
};

static errint_t see_item(void *ctx, const struct store_walk_item *item)
{
	struct seen_items *v = ctx;
	char *more = xasprintf("%s%s|%s|%u|%d\n", v->text ? v->text : "", item->dir,
	                       item->name, item->type, item->error);
	struct stat st;

	if (!item->error)
		assert_int_equal(fstatat(item->dirfd, item->name, &st, AT_SYMLINK_NOFOLLOW),
		                 0);
	free(v->text);
	v->text = more;
	v->count++;
	return v->count == v->stop_after ? v->stop_at : 0;
}

static void expect_walk(struct store *s, const char *path, const char *items)
{
	struct seen_items v = {0};

	assert_int_equal(store_walk(s, path, see_item, &v), 0);
	assert_string_equal(v.text ? v.text : "", items);
	free(v.text);
}

static void test_deep(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	char *path = make_deep(s->root_fd);
	cleanup_free char *twice = xcalloc(1, 2 * strlen(path));
	char *last = strrchr(path, '/');
	struct seen_items v = {0};
	cleanup_free char *leaf = xasprintf("%s/leaf.zst", path);
	int fd = store_open_dir(s, path, O_RDONLY);

	assert_true(fd >= 0);
	assert_int_equal(faccessat(fd, "leaf.zst", F_OK, 0), 0);
	close(fd);
	/* slashes at the seams */
	for (char *p = path, *out = twice; *p; p++) {
		*out++ = *p;
		if (*p == '/')
			*out++ = '/';
	}
	fd = store_open_dir(s, twice, O_PATH);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(store_walk(s, "", see_item, &v), 0);
	assert_int_equal(v.count, 1);
	assert_int_equal(store_walk(s, leaf, see_item, &v), 0);
	assert_int_equal(v.count, 2);
	free(v.text);
	memcpy(last + 1, "no", 3);
	assert_int_equal(store_open_dir(s, path, O_RDONLY), -ENOENT);
	path[0] = '/';
	assert_int_equal(store_open_dir(s, path, O_RDONLY), -EXDEV);
	memset(path, 'x', strlen(path));
	assert_int_equal(store_open_dir(s, path, O_RDONLY), -ENAMETOOLONG);
	free(path);
	store_close(s);
}

static void test_walk(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	struct seen_items v = {0};

	expect_walk(s, "", "");
	assert_int_equal(mkdirat(h->dirfd, "store/b", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/b/.cellar", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/a", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/a/empty", 0755), 0);
	put(h, "store/z.zst", "");
	put(h, "store/c.zst", "");
	put(h, "store/b/2.zst", "");
	put(h, "store/b/.cellar/3.zst", "");
	put(h, "store/a/1.zst", "");
	assert_int_equal(symlinkat("a", h->dirfd, "store/link"), 0);
	expect_walk(s, "",
	            "|c.zst|8|0\n|link|10|0\n|z.zst|8|0\na|1.zst|8|0\nb|2.zst|8|0\n"
	            "b/.cellar|3.zst|8|0\n");
	expect_walk(s, "b", "b|2.zst|8|0\nb/.cellar|3.zst|8|0\n");
	expect_walk(s, "b//", "b|2.zst|8|0\nb/.cellar|3.zst|8|0\n");
	expect_walk(s, "b/2.zst", "b|2.zst|8|0\n");
	expect_walk(s, "c.zst", "|c.zst|8|0\n");
	expect_walk(s, "link", "|link|10|0\n");
	expect_walk(s, "a/empty", "");
	assert_int_equal(store_walk(s, ".cellar", see_item, &v), -ENOENT);
	assert_int_equal(store_walk(s, "none", see_item, &v), -ENOENT);
	assert_int_equal(store_walk(s, "none/x", see_item, &v), -ENOENT);
	assert_int_equal(store_walk(s, "c.zst/x", see_item, &v), -ENOTDIR);
	assert_int_equal(store_walk(s, "link/1.zst", see_item, &v), -ELOOP);
	assert_int_equal(v.count, 0);
	v.stop_after = 3;
	v.stop_at = -EINTR;
	assert_int_equal(store_walk(s, "", see_item, &v), -EINTR);
	assert_int_equal(v.count, 3);
	free(v.text);
	store_close(s);
}

static void walk_as_nobody(void *arg)
{
	struct harness *h = arg;
	struct seen_items v = {0};
	struct store *s = open_store(h);

	become_nobody();
	MUST(store_walk(s, "", see_item, &v) == 0);
	MUST(!strcmp(v.text, "|a|8|0\nhidden||4|-13\nseen|b|8|0\n"));
}

static void test_walk_unreadable(void **state)
{
	struct harness *h = *state;

	if (geteuid() != 0)
		skip();
	store_close(open_store(h));
	assert_int_equal(fchmod(h->dirfd, 0755), 0);
	put(h, "store/a", "");
	assert_int_equal(mkdirat(h->dirfd, "store/hidden", 0700), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/seen", 0755), 0);
	put(h, "store/hidden/x", "");
	put(h, "store/seen/b", "");
	expect_child(walk_as_nobody, h);
}

#define T(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_create),
	    T(test_paths),
	    T(test_refusals),
	    T(test_interrupted_initialisation),
	    T(test_existing_tree),
	    T(test_damaged_id),
	    T(test_lock),
	    T(test_ordinary_user),
	    T(test_open_faults),
	    T(test_pool_id),
	    T(test_numbers),
	    T(test_number_faults),
	    T(test_number_threads),
	    T(test_open_dir),
	    T(test_deep),
	    T(test_walk),
	    T(test_walk_unreadable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
