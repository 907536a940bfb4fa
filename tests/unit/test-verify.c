/* upkeep/verify: what decodes is said to, what does not is found. */
#include "harness.h"

#include <grp.h>

#include "base/sysio.h"
#include "codec/encode.h"
#include "codec/object.h"

/* The module itself, with a hook after each reading of an object. */
static void (*after_decoding)(void *ctx);
static void *after_decoding_ctx;

static void close_hooked(struct object *o)
{
	object_close(o);
	if (after_decoding)
		after_decoding(after_decoding_ctx);
}

#define object_close close_hooked
#include "upkeep/verify.c"
#undef object_close

#define LIMIT (1ULL << 40)

/* ---- a store with objects ---- */

static struct store *open_store(struct harness *h)
{
	cleanup_free char *path = xasprintf("%s/store", h->path);
	struct store *s = NULL;
	char *cause = NULL;

	if (store_open(path, STORE_CREATE, &s, NULL, &cause))
		fail_msg("%s", cause);
	return s;
}

/* Logical bytes of the object made last; frames of 64 KiB. */
static void make_object(struct store *s, const char *path, size_t len)
{
	const struct encode_params p = {.level = 1, .frame_size = 64 << 10, .threads = 1};
	struct encode_result r;
	char *data = malloc(len + 1);
	int in = openat(s->private_fd, "in", O_RDWR | O_CREAT | O_TRUNC, 0600);
	int out = openat(s->root_fd, path, O_RDWR | O_CREAT | O_TRUNC, 0644);

	assert_true(in >= 0 && out >= 0);
	harness_fill_text(data, len, len);
	assert_int_equal(full_pwrite(in, data, len, 0), 0);
	assert_int_equal(encode_object(in, len, out, &p, &r, NULL), 0);
	assert_int_equal(unlinkat(s->private_fd, "in", 0), 0);
	close(in);
	close(out);
	free(data);
}

static void put(struct store *s, const char *path, const char *text)
{
	harness_write(s->root_fd, path, text, strlen(text));
}

static off_t size_of(struct store *s, const char *path)
{
	struct stat st;

	assert_int_equal(fstatat(s->root_fd, path, &st, AT_SYMLINK_NOFOLLOW), 0);
	return st.st_size;
}

static void flip(struct store *s, const char *path, off_t off)
{
	int fd = openat(s->root_fd, path, O_RDWR);
	unsigned char c;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &c, 1, off), 1);
	c ^= 0x10;
	assert_int_equal(pwrite(fd, &c, 1, off), 1);
	close(fd);
}

static void truncate_by(struct store *s, const char *path, off_t less)
{
	int fd = openat(s->root_fd, path, O_RDWR);

	assert_int_equal(ftruncate(fd, size_of(s, path) - less), 0);
	close(fd);
}

/* ---- what is reported ---- */

struct reports {
	char *text; /* "path\n" or "path: error\n" */
	volatile bool stop;
	int stop_after; /* if not 0 */
	int count;
};

static void note(void *ctx, const char *path, const struct verify_result *result)
{
	const char *error = result->error;
	struct reports *r = ctx;
	char *more = xasprintf("%s%s%s%s\n", r->text ? r->text : "", path,
	                       error ? ": " : "", error ? error : "");

	if (error)
		assert_true(*error);
	free(r->text);
	r->text = more;
	r->count++;
	if (r->count == r->stop_after)
		r->stop = true;
}

static char *verify(struct store *s, const char *path, struct verify_totals *t)
{
	struct reports r = {0};
	char *cause = NULL;

	if (verify_tree(s, path, LIMIT, NULL, note, &r, &r.stop, t, &cause))
		fail_msg("%s", cause);
	assert_null(cause);
	return r.text ? r.text : xstrdup("");
}

static void expect_totals(const struct verify_totals *t, uint64_t files, uint64_t damaged,
                          uint64_t plain)
{
	assert_int_equal(t->files, files);
	assert_int_equal(t->damaged, damaged);
	assert_int_equal(t->plain, plain);
}

/* The reported line of this path, without the newline; NULL if it is not there. */
static char *line_of(const char *text, const char *path)
{
	size_t len = strlen(path);

	for (const char *p = text; *p; p = strchr(p, '\n') + 1)
		if (!strncmp(p, path, len) && (p[len] == ':' || p[len] == '\n'))
			return strndup(p, strcspn(p, "\n"));
	return NULL;
}

static void expect_error(const char *text, const char *path, const char *word)
{
	char *line = line_of(text, path);

	if (!line || !strchr(line, ':') || !strstr(line, word))
		fail_msg("%s: no error with \"%s\" in:\n%s", path, word, text);
	free(line);
}

/* ---- tests ---- */

static void test_sound_tree(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t = {.files = 99, .damaged = 99, .plain = 99};
	char *text;

	harness_assert_text(verify(s, "", &t), "");
	expect_totals(&t, 0, 0, 0);
	assert_int_equal(mkdirat(s->root_fd, "d", 0755), 0);
	assert_int_equal(mkdirat(s->root_fd, "d/x.zst~", 0755), 0);
	make_object(s, "b.zst", 1000);
	make_object(s, "a.zst", 0);
	make_object(s, "d/large.zst", (3 << 20) + 5);
	make_object(s, "d/x.zst~/y.zst", 70000);
	put(s, "plain", "text");
	put(s, "raw.zst", "not zstd at all");
	put(s, ".zst", "");
	assert_int_equal(symlinkat("b.zst", s->root_fd, "link.zst"), 0);
	assert_int_equal(mknodat(s->root_fd, "fifo.zst", S_IFIFO | 0600, 0), 0);
	text = verify(s, "", &t);
	assert_string_equal(text, "a.zst\nb.zst\nd/large.zst\nd/x.zst~/y.zst\n");
	free(text);
	expect_totals(&t, 4, 0, 3);
	assert_int_equal(t.logical_bytes, 1000 + (3 << 20) + 5 + 70000);
	assert_int_equal(t.stored_bytes, size_of(s, "a.zst") + size_of(s, "b.zst") +
	                                     size_of(s, "d/large.zst") +
	                                     size_of(s, "d/x.zst~/y.zst"));
	harness_assert_text(verify(s, "d/x.zst~", &t), "d/x.zst~/y.zst\n");
	expect_totals(&t, 1, 0, 0);
	harness_assert_text(verify(s, "b.zst", &t), "b.zst\n");
	assert_int_equal(t.logical_bytes, 1000);
	harness_assert_text(verify(s, "link.zst", &t), "");
	harness_assert_text(verify(s, "plain", &t), "");
	expect_totals(&t, 0, 0, 1);
	store_close(s);
}

/* A concatenation of frames without a table, as `cat a.zst b.zst` makes it, is fine. */
static void test_foreign(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t;
	size_t len, len2;
	char *a, *b;

	make_object(s, "a.zst", 1000);
	make_object(s, "b.zst", 2000);
	a = harness_read(s->root_fd, "a.zst", &len);
	b = harness_read(s->root_fd, "b.zst", &len2);
	a = xrealloc(a, len + len2);
	memcpy(a + len, b, len2);
	harness_write(s->root_fd, "both.zst", a, len + len2);
	harness_assert_text(verify(s, "both.zst", &t), "both.zst\n");
	expect_totals(&t, 1, 0, 0);
	assert_int_equal(t.logical_bytes, 3000);
	free(a);
	free(b);
	store_close(s);
}

static void test_damage(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t;
	char *text;

	make_object(s, "1-good.zst", 200000);
	make_object(s, "2-flip.zst", 200000);
	flip(s, "2-flip.zst", size_of(s, "2-flip.zst") / 2);
	make_object(s, "3-cut.zst", 200000);
	truncate_by(s, "3-cut.zst", size_of(s, "3-cut.zst") / 2);
	put(s, "4-empty.zst", "");
	make_object(s, "5-good.zst", 10);
	text = verify(s, "", &t);
	expect_totals(&t, 5, 3, 0);
	expect_error(text, "2-flip.zst", "");
	expect_error(text, "3-cut.zst", "");
	expect_error(text, "4-empty.zst", "is empty: no valid object");
	assert_non_null(strstr(text, "1-good.zst\n"));
	assert_non_null(strstr(text, "5-good.zst\n"));
	free(text);
	/* looking only: a second look says the same */
	text = verify(s, "", &t);
	expect_totals(&t, 5, 3, 0);
	free(text);
	store_close(s);
}

/* A bit that changes is noticed, but for the few that mean nothing to zstd: then the checksums
 * have proved the bytes all the same. */
static void test_every_bit(void **state)
{
	struct store *s = open_store(*state);
	const off_t count = 400;
	off_t len, step_len;
	int looked = 0, unnoticed = 0;

	make_object(s, "a.zst", 3000);
	len = size_of(s, "a.zst");
	step_len = len > count ? len / count : 1;
	for (off_t off = 0; off < len - 89 - 80; off += step_len) { /* the data frame */
		struct verify_totals t;

		flip(s, "a.zst", off);
		free(verify(s, "a.zst", &t));
		looked++;
		unnoticed += t.damaged != 1;
		if (t.damaged != 1)
			assert_int_equal(t.logical_bytes, 3000);
		flip(s, "a.zst", off);
	}
	assert_true(looked > 200);
	assert_true(unnoticed < looked / 20);
	store_close(s);
}

static void test_limit(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t;
	struct reports r = {0};

	make_object(s, "a.zst", 100000);
	assert_int_equal(verify_tree(s, "", 99999, NULL, note, &r, NULL, &t, NULL), 0);
	expect_totals(&t, 1, 1, 0);
	expect_error(r.text, "a.zst", "");
	free(r.text);
	assert_int_equal(verify_tree(s, "", 100000, NULL, NULL, NULL, NULL, &t, NULL), 0);
	expect_totals(&t, 1, 0, 0);
	store_close(s);
}

static void test_refusals(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t;
	char *cause = NULL;

	assert_int_equal(
	    verify_tree(s, "no\nne", LIMIT, NULL, NULL, NULL, NULL, &t, &cause), -ENOENT);
	assert_non_null(strstr(cause, "\"no\\nne\""));
	free(cause);
	assert_int_equal(verify_tree(s, ".cellar", LIMIT, NULL, NULL, NULL, NULL, &t, NULL),
	                 -ENOENT);
	store_close(s);
}

static void test_stop(void **state)
{
	struct store *s = open_store(*state);
	struct reports r = {.stop_after = 2};
	struct verify_totals t;
	char *cause = NULL;

	for (int i = 0; i < 5; i++) {
		char name[32];

		(void)snprintf(name, sizeof name, "%d.zst", i);
		make_object(s, name, 10);
	}
	assert_int_equal(verify_tree(s, "", LIMIT, NULL, note, &r, &r.stop, &t, &cause),
	                 -EINTR);
	assert_non_null(cause);
	free(cause);
	assert_string_equal(r.text, "0.zst\n1.zst\n");
	assert_int_equal(t.files, 2);
	free(r.text);
	store_close(s);
}

static void test_atime_stays(void **state)
{
	const struct timespec ts[2] = {{.tv_sec = 100}, {.tv_sec = 200}};
	struct store *s = open_store(*state);
	struct verify_totals t;
	struct stat st;

	make_object(s, "a.zst", 1000);
	assert_int_equal(utimensat(s->root_fd, "a.zst", ts, 0), 0);
	free(verify(s, "", &t));
	assert_int_equal(fstatat(s->root_fd, "a.zst", &st, 0), 0);
	assert_int_equal(st.st_atim.tv_sec, 100);
	store_close(s);
}

#define MUST(cond)                                                                         \
	do {                                                                               \
		if (!(cond)) {                                                             \
			(void)fprintf(stderr, "line %d: %s: not so (errno %d)\n",          \
			              __LINE__, #cond, errno);                             \
			_exit(1);                                                          \
		}                                                                          \
	} while (0)

static void as_nobody(void *arg)
{
	struct store *s = arg;
	struct reports r = {0};
	struct verify_totals t;
	char *cause = NULL;

	MUST(setgroups(0, NULL) == 0 && setregid(65534, 65534) == 0);
	MUST(setreuid(65534, 65534) == 0);
	/* all is looked at, and what could not be is said */
	MUST(verify_tree(s, "", LIMIT, NULL, note, &r, NULL, &t, &cause) == -EACCES);
	MUST(cause && strstr(cause, "\"closed\""));
	MUST(t.files == 3 && t.damaged == 1);
	MUST(strstr(r.text, "closed: Permission denied\n"));
	MUST(strstr(r.text, "secret.zst: Permission denied\n"));
	MUST(strstr(r.text, "seen.zst\n"));
	MUST(strstr(r.text, "z/deep.zst\n"));
}

static void test_ordinary_user(void **state)
{
	struct harness *h = *state;
	struct store *s;
	char *text;
	int status;

	if (geteuid() != 0)
		skip();
	s = open_store(h);
	assert_int_equal(fchmod(h->dirfd, 0755), 0);
	make_object(s, "seen.zst", 10); /* another's: no O_NOATIME */
	make_object(s, "secret.zst", 10);
	assert_int_equal(fchmodat(s->root_fd, "secret.zst", 0600, 0), 0);
	assert_int_equal(mkdirat(s->root_fd, "closed", 0700), 0);
	assert_int_equal(mkdirat(s->root_fd, "z", 0755), 0);
	make_object(s, "closed/x.zst", 10);
	make_object(s, "z/deep.zst", 10);
	status = harness_child(as_nobody, s, &text);
	if (status)
		fail_msg("%s", text);
	free(text);
	store_close(s);
}

/* ---- a file that changes under the reading ---- */

enum change { CHANGE_NONE, CHANGE_REPLACED, CHANGE_REWRITTEN, CHANGE_GONE, CHANGE_ALWAYS };

struct race {
	struct store *store;
	enum change what;
	int readings;
};

static void change_object(void *ctx)
{
	struct race *r = ctx;
	struct store *s = r->store;

	r->readings++;
	if (r->what == CHANGE_REPLACED && r->readings == 1) {
		make_object(s, "new", 5000);
		assert_int_equal(renameat(s->root_fd, "new", s->root_fd, "a.zst"), 0);
	} else if (r->what == CHANGE_REWRITTEN && r->readings == 1) {
		make_object(s, "a.zst", 5000);
	} else if (r->what == CHANGE_GONE) {
		assert_int_equal(unlinkat(s->root_fd, "a.zst", 0), 0);
	} else if (r->what == CHANGE_ALWAYS) {
		make_object(s, "new", 5000);
		flip(s, "new", 30);
		assert_int_equal(renameat(s->root_fd, "new", s->root_fd, "a.zst"), 0);
	}
}

/* The damage has been seen; before it is believed, the file changes. */
static void race_with(struct store *s, enum change what, struct verify_totals *t,
                      int readings)
{
	struct race r = {.store = s, .what = what};

	make_object(s, "a.zst", 3000);
	flip(s, "a.zst", 30);
	after_decoding = change_object;
	after_decoding_ctx = &r;
	free(verify(s, "", t));
	after_decoding = NULL;
	assert_int_equal(r.readings, readings);
}

static void test_changes(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t;

	race_with(s, CHANGE_NONE, &t, 1);
	expect_totals(&t, 1, 1, 0);
	race_with(s, CHANGE_REPLACED, &t, 2);
	expect_totals(&t, 1, 0, 0);
	assert_int_equal(t.logical_bytes, 5000);
	race_with(s, CHANGE_REWRITTEN, &t, 2);
	expect_totals(&t, 1, 0, 0);
	assert_int_equal(t.logical_bytes, 5000);
	race_with(s, CHANGE_GONE, &t, 1);
	expect_totals(&t, 0, 0, 0);
	/* again, not for ever */
	race_with(s, CHANGE_ALWAYS, &t, 5);
	expect_totals(&t, 1, 1, 0);
	store_close(s);
}

static void test_faults(void **state)
{
	struct store *s = open_store(*state);
	struct verify_totals t;
	char *text;

	make_object(s, "a.zst", 200000);
	make_object(s, "b.zst", 10);
	if (!fault_set("pread:1:EIO")) {
		store_close(s);
		skip();
	}
	/* a file that cannot be read is no sound one; the others are looked at */
	text = verify(s, "", &t);
	assert_true(fault_fired());
	expect_totals(&t, 2, 1, 0);
	expect_error(text, "a.zst", "");
	assert_non_null(strstr(text, "b.zst\n"));
	free(text);
	(void)fault_set(NULL);
	store_close(s);
}

/* A new file of which a power cut left no scratch is an empty one, and no damaged one: as long as it
 * has the mark of this store's pool. */
static void test_marked_as_new(void **state)
{
	struct uuid pool = {{1, 2, 3}}, other = {{4}};
	struct store *s = open_store(*state);
	struct verify_totals t;
	int fd;

	assert_int_equal(store_set_pool(s, &pool, NULL), 0);
	put(s, "new.zst", "");
	fd = openat(s->root_fd, "new.zst", O_RDWR);
	assert_true(fd >= 0);
	if (attrs_mark_new(fd, &other) == -EOPNOTSUPP)
		skip();
	free(verify(s, "", &t));
	assert_int_equal(t.damaged, 1);
	assert_int_equal(attrs_mark_new(fd, &pool), 0);
	free(verify(s, "", &t));
	assert_int_equal(t.damaged, 0);
	attrs_unmark_new(fd);
	free(verify(s, "", &t));
	assert_int_equal(t.damaged, 1);
	assert_int_equal(close(fd), 0);
	store_close(s);
}

#define T(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_sound_tree),    T(test_foreign),  T(test_damage), T(test_every_bit),
	    T(test_limit),         T(test_refusals), T(test_stop),   T(test_atime_stays),
	    T(test_ordinary_user), T(test_changes),  T(test_faults), T(test_marked_as_new),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
