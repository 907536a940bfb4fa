/* store/ident: the same inode is the same, another one is another one. */
#include "harness.h"

#include <pthread.h>

#include "base/sysio.h"
#include "codec/encode.h"
#include "store/ident.h"

static struct ident get(int dirfd, const char *name)
{
	struct ident id = {{0, 0}};

	assert_int_equal(ident_get(dirfd, name, &id), 0);
	assert_false(ident_is_none(&id));
	return id;
}

static void assert_same(struct ident a, struct ident b)
{
	assert_true(ident_equal(&a, &b));
}

static void assert_other(struct ident a, struct ident b)
{
	assert_false(ident_equal(&a, &b));
}

static void test_one_inode(void **state)
{
	struct harness *h = *state;
	struct timespec ts[2] = {{.tv_sec = 1}, {.tv_sec = 2}};
	struct ident id;
	int fd;

	harness_write(h->dirfd, "a", "1", 1);
	id = get(h->dirfd, "a");
	assert_same(id, get(h->dirfd, "a"));
	fd = openat(h->dirfd, "a", O_RDONLY);
	assert_same(id, get(fd, ""));
	close(fd);
	fd = openat(h->dirfd, "a", O_PATH);
	assert_same(id, get(fd, ""));
	close(fd);
	assert_int_equal(linkat(h->dirfd, "a", h->dirfd, "b", 0), 0);
	assert_same(id, get(h->dirfd, "b"));
	assert_int_equal(renameat(h->dirfd, "a", h->dirfd, "c"), 0);
	assert_same(id, get(h->dirfd, "c"));
	harness_write(h->dirfd, "c", "more", 4);
	assert_int_equal(fchmodat(h->dirfd, "c", 0600, 0), 0);
	assert_int_equal(utimensat(h->dirfd, "c", ts, 0), 0);
	assert_same(id, get(h->dirfd, "c"));
	ident_forget_filesystems();
	assert_same(id, get(h->dirfd, "c"));
}

static void test_other_inodes(void **state)
{
	struct harness *h = *state;
	struct ident file, link, dir, fifo;
	int fd;

	harness_write(h->dirfd, "file", "1", 1);
	assert_int_equal(symlinkat("file", h->dirfd, "link"), 0);
	assert_int_equal(symlinkat("nowhere", h->dirfd, "dangling"), 0);
	assert_int_equal(mkdirat(h->dirfd, "dir", 0755), 0);
	assert_int_equal(mknodat(h->dirfd, "fifo", S_IFIFO | 0600, 0), 0);
	file = get(h->dirfd, "file");
	link = get(h->dirfd, "link");
	dir = get(h->dirfd, "dir");
	fifo = get(h->dirfd, "fifo");
	assert_other(file, link);
	assert_other(file, dir);
	assert_other(file, fifo);
	assert_other(link, get(h->dirfd, "dangling"));
	assert_other(dir, get(h->dirfd, ""));
	fd = openat(h->dirfd, "dir", O_PATH | O_DIRECTORY);
	assert_same(dir, get(fd, ""));
	close(fd);
}

static void test_errors(void **state)
{
	struct harness *h = *state;
	struct ident id = {{7, 7}};

	assert_int_equal(ident_get(h->dirfd, "none", &id), -ENOENT);
	harness_write(h->dirfd, "a", "1", 1);
	assert_int_equal(ident_get(h->dirfd, "a/b", &id), -ENOTDIR);
	assert_int_equal(ident_get(-1, "a", &id), -EBADF);
	assert_int_equal(ident_get(-1, "", &id), -EBADF);
	assert_int_equal(id.w[0], 7);
}

/* A new file under a number that was used before is another file. */
static void test_reused_number(void **state)
{
	struct harness *h = *state;
	int reused = 0;

	for (int i = 0; i < 50; i++) {
		struct stat before, after;
		struct ident id;

		harness_write(h->dirfd, "a", "1", 1);
		assert_int_equal(fstatat(h->dirfd, "a", &before, 0), 0);
		id = get(h->dirfd, "a");
		assert_int_equal(unlinkat(h->dirfd, "a", 0), 0);
		harness_write(h->dirfd, "a", "1", 1);
		assert_int_equal(fstatat(h->dirfd, "a", &after, 0), 0);
		reused += before.st_ino == after.st_ino;
		assert_other(id, get(h->dirfd, "a"));
		assert_int_equal(unlinkat(h->dirfd, "a", 0), 0);
	}
	print_message("inode numbers reused: %d of 50\n", reused);
}

/* More filesystems than are remembered at once; those without handles too. */
static void test_filesystems(void **state)
{
	static const char *const dirs[] = {"/",    "/proc", "/sys",    "/dev",
	                                   "/tmp", "/run",  "/dev/shm"};
	struct ident first[ARRAY_LEN(dirs)];
	int fds[ARRAY_LEN(dirs)];

	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
			struct ident id;

			fds[i] = open(dirs[i], O_RDONLY | O_DIRECTORY);
			if (fds[i] < 0)
				continue;
			id = get(fds[i], "");
			if (round == 0)
				first[i] = id;
			assert_same(first[i], id);
			close(fds[i]);
		}
	}
	/* by name, across a mount point */
	fds[0] = open("/", O_RDONLY | O_DIRECTORY);
	assert_same(get(fds[0], "proc"), first[1]);
	ident_forget_filesystems();
	assert_same(get(fds[0], "proc"), first[1]);
	close(fds[0]);
}

static void *get_often(void *arg)
{
	const struct harness *h = arg;
	struct ident *ret = calloc(1, sizeof *ret);

	for (int i = 0; i < 200; i++) {
		if (i % 50 == 0)
			ident_forget_filesystems();
		if (ident_get(h->dirfd, "a", ret))
			break;
	}
	return ret;
}

static void test_threads(void **state)
{
	struct harness *h = *state;
	pthread_t t[4];

	harness_write(h->dirfd, "a", "1", 1);
	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		assert_int_equal(pthread_create(&t[i], NULL, get_often, h), 0);
	for (size_t i = 0; i < ARRAY_LEN(t); i++) {
		void *r;

		assert_int_equal(pthread_join(t[i], &r), 0);
		assert_same(*(struct ident *)r, get(h->dirfd, "a"));
		free(r);
	}
}

static void test_stamp_equal(void **state)
{
	const struct stamp a = {
	    .ident = {{1, 2}}, .stored_size = 3, .trailer_hash = {4, 5}};
	struct stamp b = a;

	assert_true(stamp_equal(&a, &b));
	b.ident.w[0]++;
	assert_false(stamp_equal(&a, &b));
	b = a;
	b.ident.w[1]++;
	assert_false(stamp_equal(&a, &b));
	b = a;
	b.stored_size++;
	assert_false(stamp_equal(&a, &b));
	b = a;
	b.trailer_hash[0]++;
	assert_false(stamp_equal(&a, &b));
	b = a;
	b.trailer_hash[1]++;
	assert_false(stamp_equal(&a, &b));
}

static void make_object(struct harness *h, const char *name, const char *text, uint64_t seq)
{
	const struct encode_params p = {.level = 3,
	                                .frame_size = 1 << 20,
	                                .threads = 1,
	                                .cellar = {.ino = 20, .seq = seq}};
	struct encode_result r;
	int in, out;

	harness_write(h->dirfd, "in", text, strlen(text));
	in = openat(h->dirfd, "in", O_RDONLY);
	out = openat(h->dirfd, name, O_RDWR | O_CREAT | O_TRUNC, 0644);
	assert_int_equal(encode_object(in, strlen(text), out, &p, &r, NULL), 0);
	close(in);
	close(out);
}

static struct stamp stamp(struct harness *h, const char *name)
{
	int fd = openat(h->dirfd, name, O_RDONLY);
	struct object o;
	struct stamp s;

	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(stamp_of(fd, &o, &s), 0);
	object_close(&o);
	close(fd);
	return s;
}

static void test_stamp_of(void **state)
{
	struct harness *h = *state;
	struct stamp a, b;

	make_object(h, "a", "some text", 1);
	a = stamp(h, "a");
	b = stamp(h, "a");
	assert_true(stamp_equal(&a, &b));
	assert_same(a.ident, get(h->dirfd, "a"));
	/* same inode, same size, other trailer */
	make_object(h, "a", "some text", 2);
	b = stamp(h, "a");
	assert_same(a.ident, b.ident);
	assert_int_equal(a.stored_size, b.stored_size);
	assert_false(stamp_equal(&a, &b));
	/* same bytes, other inode */
	make_object(h, "b", "some text", 1);
	b = stamp(h, "b");
	assert_int_equal(a.trailer_hash[0], b.trailer_hash[0]);
	assert_false(stamp_equal(&a, &b));
}

#define T(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_one_inode),     T(test_other_inodes), T(test_errors),
	    T(test_reused_number), T(test_filesystems),  T(test_threads),
	    T(test_stamp_equal),   T(test_stamp_of),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
