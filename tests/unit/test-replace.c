/* store/replace and store/intent: old or new, whatever stops or fails. */
#include "store-fixture.h"

#include <sys/xattr.h>
#include <xxhash.h>

#include "base/counters.h"
#include "base/log.h"
#include "base/steps.h"
#include "store/durable.h"
#include "store/intent.h"

/* ---- tmp/ and renaming over ---- */

static void make_tmp(struct store *s, const char *text, struct name *ret)
{
	int fd = store_tmp_create(s, ret);

	assert_true(fd >= 0);
	assert_int_equal(full_pwrite(fd, text, strlen(text), 0), 0);
	assert_int_equal(fsync(fd), 0);
	close(fd);
}

static void test_tmp(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	struct name a, b, c;
	struct stat st;
	int fd = store_tmp_create(s, &a);

	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	close(fd);
	make_tmp(s, "b", &b);
	assert_string_not_equal(a.s, b.s);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	store_tmp_unlink(s, a.s);
	store_tmp_unlink(s, a.s);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 1);
	store_close(s);
	/* what is left from before is not met again */
	s = open_store(h);
	make_tmp(s, "c", &c);
	assert_string_not_equal(b.s, c.s);
	assert_true(strcmp(b.s, c.s) < 0);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	store_close(s);
}

static void test_replace(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	const struct timespec ts[2] = {{.tv_sec = 3000}, {.tv_sec = 4000, .tv_nsec = 999}};
	uint64_t syncs;
	struct name t;

	assert_int_equal(mkdirat(h->dirfd, "store/d", 0755), 0);
	for (int i = 0; i < 2; i++) {
		int dirfd = store_open_dir(s, "d", i ? O_PATH : O_RDONLY);

		put(h, "store/d/a.zst", "old");
		make_tmp(s, i ? "new 1" : "new 0", &t);
		assert_int_equal(utimensat(h->dirfd, "store/d", ts, 0), 0);
		assert_int_equal(store_replace(s, t.s, dirfd, "a.zst"), 0);
		expect_text(h, "store/d/a.zst", i ? "new 1" : "new 0");
		assert_int_equal(stat_of(h, "store/d").st_mtim.tv_sec, 4000);
		assert_int_equal(stat_of(h, "store/d").st_mtim.tv_nsec, 999);
		assert_int_equal(stat_of(h, "store/d").st_atim.tv_sec, 3000);
		syncs = counter_get(COUNTER_STORE_SYNCS);
		assert_int_equal(store_sync_dir(dirfd), 0);
		assert_int_equal(counter_get(COUNTER_STORE_SYNCS) - syncs, 1);
		close(dirfd);
	}
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	/* a directory in the way, no such directory: nothing is lost */
	assert_int_equal(mkdirat(h->dirfd, "store/e.zst", 0755), 0);
	make_tmp(s, "x", &t);
	assert_int_equal(store_replace(s, t.s, s->root_fd, "e.zst"), -EISDIR);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 1);
	assert_int_equal(store_sync_dir(-1), -EBADF);
	store_close(s);
}

static void sync_as_nobody(void *arg)
{
	struct harness *h = arg;
	int a, b;

	become_nobody();
	MUST(mkdirat(h->dirfd, "dark", 0700) == 0);
	MUST(mkdirat(h->dirfd, "dark/darker", 0300) == 0);
	MUST(fchmodat(h->dirfd, "dark", 0300, 0) == 0);
	a = openat(h->dirfd, "dark", O_PATH | O_DIRECTORY);
	b = openat(h->dirfd, "dark/darker", O_PATH | O_DIRECTORY);
	MUST(a >= 0 && b >= 0);
	MUST(openat(a, ".", O_RDONLY) < 0 && errno == EACCES);
	MUST(store_sync_dir(a) == 0);
	MUST(store_sync_dir(b) == 0);
	if (have_faults()) {
		MUST(fault_set("syncfs:1:EIO"));
		MUST(store_sync_dir(b) == -EIO);
		(void)fault_set(NULL);
	}
}

static void test_sync_unreadable(void **state)
{
	struct harness *h = *state;

	assert_int_equal(fchmod(h->dirfd, 0777), 0);
	expect_child(sync_as_nobody, h);
}

/* ---- copying over ---- */

static const struct timespec copy_times[2] = {{.tv_sec = 50, .tv_nsec = 60},
                                              {.tv_sec = 70, .tv_nsec = 80}};

struct target {
	struct ident ident;
	int fd;
};

static struct target open_target(struct store *s, const char *name)
{
	struct target t = {.fd = store_open_at(s->root_fd, name, O_RDWR)};

	assert_true(t.fd >= 0);
	assert_int_equal(ident_get(t.fd, "", &t.ident), 0);
	return t;
}

static errint_t copy_over(struct store *s, const char *name, const char *hint,
                          const char *text)
{
	struct target t = open_target(s, name);
	struct name tmp;
	errint_t err;

	make_tmp(s, text, &tmp);
	err = store_copy_over(s, tmp.s, t.fd, &t.ident, hint, copy_times, NULL);
	if (err)
		store_tmp_unlink(s, tmp.s);
	close(t.fd);
	return err;
}

static void expect_target(struct harness *h, const char *path, const char *text)
{
	struct stat st = stat_of(h, path);
	int fd = openat(h->dirfd, path, O_RDONLY | O_NOATIME);

	assert_true(fd >= 0);
	harness_assert_text(harness_read_fd(fd, NULL), text);
	close(fd);
	assert_int_equal(st.st_size, strlen(text));
	assert_int_equal(st.st_atim.tv_sec, 50);
	assert_int_equal(st.st_mtim.tv_sec, 70);
	assert_int_equal(st.st_mtim.tv_nsec, 80);
}

static void test_copy_over(void **state)
{
	static const char *const texts[] = {"longer than before", "short", "", "again",
	                                    "again"};
	struct harness *h = *state;
	struct store *s = open_store(h);
	struct ident before, after;

	put(h, "store/a.zst", "old bytes");
	assert_int_equal(linkat(h->dirfd, "store/a.zst", h->dirfd, "store/b.zst", 0), 0);
	assert_int_equal(fchmodat(h->dirfd, "store/a.zst", 04751, 0), 0);
	assert_int_equal(ident_get(s->root_fd, "a.zst", &before), 0);
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		assert_int_equal(copy_over(s, "a.zst", "a.zst", texts[i]), 0);
		expect_target(h, "store/b.zst", texts[i]);
		assert_int_equal(stat_of(h, "store/b.zst").st_mode & 07777, 04751);
		assert_int_equal(stat_of(h, "store/b.zst").st_nlink, 2);
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
		assert_false(store_is_unfinished(s, &before));
	}
	assert_int_equal(ident_get(s->root_fd, "b.zst", &after), 0);
	assert_true(ident_equal(&before, &after));
	store_close(s);
}

/* Larger than any buffer, and a target that was sparse. */
static void test_copy_over_large(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	const size_t len = (3 << 20) + 17;
	char *data = malloc(len), *got;
	struct target t;
	struct name tmp;
	size_t got_len;
	int fd;

	put(h, "store/a.zst", "");
	t = open_target(s, "a.zst");
	assert_int_equal(ftruncate(t.fd, 8 << 20), 0);
	harness_fill(data, len, 1);
	fd = store_tmp_create(s, &tmp);
	assert_int_equal(full_pwrite(fd, data, len, 0), 0);
	close(fd);
	assert_int_equal(
	    store_copy_over(s, tmp.s, t.fd, &t.ident, "a.zst", copy_times, NULL), 0);
	got = harness_read(h->dirfd, "store/a.zst", &got_len);
	assert_int_equal(got_len, len);
	assert_memory_equal(got, data, len);
	free(got);
	free(data);
	close(t.fd);
	store_close(s);
}

static void test_copy_over_refusals(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);
	struct target t;
	struct ident other;
	struct name tmp;
	char *cause = NULL;

	put(h, "store/a.zst", "old");
	put(h, "store/b.zst", "other");
	t = open_target(s, "a.zst");
	assert_int_equal(ident_get(s->root_fd, "b.zst", &other), 0);
	make_tmp(s, "new", &tmp);
	assert_int_equal(
	    store_copy_over(s, tmp.s, t.fd, &other, "b.zst", copy_times, &cause), -ESTALE);
	assert_non_null(cause);
	free(cause);
	assert_int_equal(
	    store_copy_over(s, "none", t.fd, &t.ident, "a.zst", copy_times, NULL), -ENOENT);
	expect_text(h, "store/a.zst", "old");
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 1);
	store_tmp_unlink(s, tmp.s);
	close(t.fd);
	store_close(s);
}

static void test_copy_over_no_room(void **state)
{
	struct harness *h = *state;
	const struct timespec ts[2] = {{.tv_sec = 11}, {.tv_sec = 22}};
	struct store *s;
	struct target t;

	if (!have_faults())
		skip();
	s = open_store(h);
	put(h, "store/a.zst", "old");
	assert_int_equal(utimensat(h->dirfd, "store/a.zst", ts, 0), 0);
	t = open_target(s, "a.zst");
	assert_true(fault_set("fallocate:1:ENOSPC"));
	assert_int_equal(copy_over(s, "a.zst", "a.zst", "new bytes"), -ENOSPC);
	expect_text(h, "store/a.zst", "old");
	assert_int_equal(stat_of(h, "store/a.zst").st_mtim.tv_sec, 22);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	assert_false(store_is_unfinished(s, &t.ident));
	/* over a half-written object the intent stays: the object needs it */
	assert_true(fault_set("ftruncate:1:EIO"));
	assert_int_equal(copy_over(s, "a.zst", "a.zst", "first"), -EIO);
	assert_true(fault_set("fallocate:1:ENOSPC"));
	assert_int_equal(copy_over(s, "a.zst", "a.zst", "longer second"), -ENOSPC);
	assert_true(store_is_unfinished(s, &t.ident));
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	(void)fault_set(NULL);
	assert_int_equal(store_finish_intents(s, NULL), 0);
	expect_target(h, "store/a.zst", "longer second");
	assert_false(store_is_unfinished(s, &t.ident));
	/* no fallocate: done without */
	assert_true(fault_set("fallocate:1:EOPNOTSUPP"));
	assert_int_equal(copy_over(s, "a.zst", "a.zst", "new bytes"), 0);
	assert_true(fault_fired());
	(void)fault_set(NULL);
	expect_target(h, "store/a.zst", "new bytes");
	close(t.fd);
	store_close(s);
}

/* Every call fails once, or it and all after it (which is what a stop looks like). Then a
 * restart. */
static void copy_over_faults(struct harness *h)
{
	int failed = 0, unfinished = 0;
	bool fired = true;

	for (int n = 1; fired; n++) {
		for (int always = 0; always < 2; always++) {
			struct store *s = open_store(h);
			struct target t;
			struct name tmp;
			errint_t err;
			char *got;
			cleanup_free char *spec =
			    xasprintf("any:%d:EIO%s", n, always ? ":always" : "");

			put(h, "store/a.zst", "the old bytes");
			assert_int_equal(fchmodat(h->dirfd, "store/a.zst", 04711, 0), 0);
			t = open_target(s, "a.zst");
			make_tmp(s, "the new ones", &tmp);
			assert_true(fault_set(spec));
			err = store_copy_over(s, tmp.s, t.fd, &t.ident, "a.zst", copy_times,
			                      NULL);
			fired = fault_fired();
			if (!fired)
				assert_int_equal(err, 0);
			if (err)
				store_tmp_unlink(s, tmp.s);
			(void)fault_set(NULL);
			close(t.fd);
			failed += err != 0;
			got = harness_read(h->dirfd, "store/a.zst", NULL);
			if (!err)
				assert_string_equal(got, "the new ones");
			else if (!store_is_unfinished(s, &t.ident))
				assert_string_equal(got, "the old bytes");
			else
				unfinished++;
			free(got);
			store_close(s);

			s = open_store(h);
			assert_int_equal(store_finish_intents(s, NULL), 0);
			assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
			got = harness_read(h->dirfd, "store/a.zst", NULL);
			if (!err || strcmp(got, "the old bytes"))
				assert_string_equal(got, "the new ones");
			assert_int_equal(stat_of(h, "store/a.zst").st_mode & 07777, 04711);
			free(got);
			store_close(s);
		}
	}
	assert_true(failed > 20);
	assert_true(unfinished > 8);
}

static void test_copy_over_faults(void **state)
{
	if (!have_faults())
		skip();
	copy_over_faults(*state);
}

static void faults_as_nobody(void *arg)
{
	become_nobody();
	copy_over_faults(arg);
}

/* Of an ordinary user writing takes more: setuid goes with the first byte. */
static void test_copy_over_faults_user(void **state)
{
	struct harness *h = *state;

	if (!have_faults())
		skip();
	assert_int_equal(fchmod(h->dirfd, 0777), 0);
	expect_child(faults_as_nobody, h);
}

struct stop {
	struct harness *h;
	const char *step;
};

static void copy_and_die(void *arg)
{
	struct stop *stop = arg;
	struct store *s;

	MUST(setenv("CELLAR_TEST_STEP", stop->step, 1) == 0);
	steps_init();
	s = open_store(stop->h);
	(void)copy_over(s, "a.zst", "a.zst", "the new bytes");
}

static void test_stopped_at_steps(void **state)
{
	static const char *const names[] = {"store.intent", "store.copied"};
	struct harness *h = *state;

	if (!have_faults())
		skip(); /* steps come with faults */
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct stop stop = {h, names[i]};
		struct store *s = open_store(h);
		char *text;
		int status;

		put(h, "store/a.zst", "old");
		store_close(s);
		status = harness_child(copy_and_die, &stop, &text);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			fail_msg("not killed at %s: %s", names[i], text);
		free(text);
		expect_text(h, "store/a.zst", i ? "the new bytes" : "old");
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
		s = open_store(h);
		assert_int_equal(store_finish_intents(s, NULL), 0);
		expect_target(h, "store/a.zst", "the new bytes");
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
		assert_int_equal(store_finish_intents(s, NULL), 0);
		expect_target(h, "store/a.zst", "the new bytes");
		store_close(s);
	}
}

/* A copy that stopped halfway, with the target's bytes spoiled. */
static struct store *make_unfinished(struct harness *h, const char *hint, const char *text)
{
	struct store *s = open_store(h);

	put(h, "store/a.zst", "old");
	assert_true(fault_set("ftruncate:1:EIO:always"));
	assert_int_equal(copy_over(s, "a.zst", hint, text), -EIO);
	assert_true(fault_fired());
	(void)fault_set(NULL);
	put(h, "store/a.zst", "half of the");
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	return s;
}

static void test_renamed_target(void **state)
{
	struct harness *h = *state;
	static const char *const hints[] = {
	    "a.zst", "", "no/such dir/a.zst", "x%41\n\xff", "/", "../a.zst", "d/other.zst"};

	if (!have_faults())
		skip();
	assert_int_equal(mkdirat(h->dirfd, "store", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/d", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/d/e", 0755), 0);
	put(h, "store/d/other.zst", "is left alone");
	for (size_t i = 0; i < ARRAY_LEN(hints); i++) {
		store_close(make_unfinished(h, hints[i], "new"));
		assert_int_equal(
		    renameat(h->dirfd, "store/a.zst", h->dirfd, "store/d/e/moved.zst"), 0);
		put(h, "store/a.zst", "another file of that name");
		struct store *s = open_store(h);

		assert_int_equal(store_finish_intents(s, NULL), 0);
		expect_target(h, "store/d/e/moved.zst", "new");
		expect_text(h, "store/a.zst", "another file of that name");
		expect_text(h, "store/d/other.zst", "is left alone");
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
		store_close(s);
	}
}

static void test_lost_target(void **state)
{
	struct harness *h = *state;
	struct store *s;
	struct ident id;

	if (!have_faults())
		skip();
	log_set_level(LOG_LEVEL_ERR);
	store_close(make_unfinished(h, "a.zst", "new"));
	put(h, "store/.cellar/tmp/object-00000000000000ff", "junk");
	assert_int_equal(renameat(h->dirfd, "store/a.zst", h->dirfd, "away"), 0);
	assert_int_equal(ident_get(h->dirfd, "away", &id), 0);
	for (int i = 0; i < 2; i++) {
		s = open_store(h);
		assert_int_equal(store_finish_intents(s, NULL), 0);
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
		assert_true(store_is_unfinished(s, &id));
		store_close(s);
	}
	assert_int_equal(renameat(h->dirfd, "away", h->dirfd, "store/back.zst"), 0);
	s = open_store(h);
	assert_int_equal(store_finish_intents(s, NULL), 0);
	assert_false(store_is_unfinished(s, &id));
	expect_target(h, "store/back.zst", "new");
	store_close(s);
	log_set_level(LOG_LEVEL_INFO);
}

/* The intent as version 2, with the right sum. */
static void write_resealed(struct harness *h, const char *path, const char *intent,
                           size_t len)
{
	cleanup_free char *body = strndup(intent, len - strlen("sum 0123456789abcdef\n"));
	cleanup_free char *text = NULL;

	assert_memory_equal(body, "cellar-intent 1\n", 16);
	body[14] = '2';
	text = xasprintf("%ssum %016llx\n", body,
	                 (unsigned long long)XXH64(body, strlen(body), 0));
	put(h, path, text);
}

/* An intent cut anywhere, or with any byte changed, was never durable: it does nothing. */
static void test_torn_intents(void **state)
{
	struct harness *h = *state;
	struct store *s;
	char *intent = NULL, *cause = NULL;
	char name[300], object[300];
	const struct dirent *e;
	size_t len = 0;
	DIR *d;

	if (!have_faults())
		skip();
	log_set_level(LOG_LEVEL_ERR);
	s = make_unfinished(h, "a.zst", "new");
	store_close(s);
	d = fdopendir(openat(h->dirfd, "store/.cellar/tmp", O_RDONLY | O_DIRECTORY));
	while ((e = readdir(d))) {
		char *into = !strncmp(e->d_name, "intent-", 7) ? name : object;

		if (e->d_name[0] != '.')
			(void)snprintf(into, sizeof name, "store/.cellar/tmp/%s",
			               e->d_name);
	}
	(void)closedir(d);
	intent = harness_read(h->dirfd, name, &len);
	for (size_t i = 0; i < 2 * len; i++) {
		put(h, object, "new");
		put(h, "store/a.zst", "untouched");
		if (i < len) {
			harness_write(h->dirfd, name, intent, i);
		} else {
			intent[i - len] ^= 4;
			harness_write(h->dirfd, name, intent, len);
			intent[i - len] ^= 4;
		}
		s = open_store(h);
		assert_int_equal(store_finish_intents(s, NULL), 0);
		store_close(s);
		expect_text(h, "store/a.zst", "untouched");
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	}
	/* and the test is no fraud: whole, it works; without its object, it warns and goes */
	put(h, object, "new");
	harness_write(h->dirfd, name, intent, len);
	s = open_store(h);
	assert_int_equal(store_finish_intents(s, NULL), 0);
	store_close(s);
	expect_target(h, "store/a.zst", "new");
	put(h, object, "ne");
	harness_write(h->dirfd, name, intent, len);
	s = open_store(h);
	assert_int_equal(store_finish_intents(s, NULL), 0);
	store_close(s);
	expect_target(h, "store/a.zst", "new");
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	/* whole, but of a version to come: not ours to throw away */
	put(h, object, "new");
	write_resealed(h, name, intent, len);
	s = open_store(h);
	assert_int_equal(store_finish_intents(s, &cause), -EPROTONOSUPPORT);
	assert_non_null(strstr(cause, "intent-"));
	free(cause);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	store_close(s);
	free(intent);
	log_set_level(LOG_LEVEL_INFO);
}

/* A line of a good intent replaced, with the right sum: what no intent of ours says is refused,
 * whatever it would lead to. */
static void test_forged_intents(void **state)
{
	static const struct {
		const char *key, *line;
	} cases[] = {
	    {"tmp", "tmp ../../etc/passwd"},
	    {"tmp", "tmp "},
	    {"size", "size -1"},
	    {"size", "size 18446744073709551615"},
	    {"size", "size  3"},
	    {"size", "size 3 4"},
	    {"mode", "mode 104755"},
	    {"mode", "mode +644"},
	    {"atime", "atime 1 1000000000"},
	    {"mtime", "mtime 1 -1"},
	    {"mtime", "mtime 99999999999999999999 0"},
	    {"capability", "capability %0"},
	    {"hint", "hint a%00b"},
	    {"hint", "hint a b"},
	    {"target", "target 0123456789ABCDEF0123456789abcdef"},
	};
	struct intent good = {.hint = xstrdup("dir/a.zst"), .size = 3, .mode = 0644};
	struct intent in;
	cleanup_free char *text = NULL;

	(void)snprintf(good.tmp, sizeof good.tmp, "object-1");
	text = intent_text(&good);
	assert_int_equal(intent_parse(text, strlen(text), &in), 0);
	assert_string_equal(in.hint, "dir/a.zst");
	free(in.hint);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		cleanup_free char *key = xasprintf("\n%s ", cases[i].key);
		const char *line = strstr(text, key);
		const char *next = line ? strchr(line + 1, '\n') : NULL;
		const char *sum = strstr(text, "\nsum ");
		cleanup_free char *body = NULL, *forged = NULL;

		assert_true(line && next && sum);
		body = xasprintf("%.*s\n%s%.*s\n", (int)(line - text), text, cases[i].line,
		                 (int)(sum - next), next);
		forged = xasprintf("%ssum %016llx\n", body,
		                   (unsigned long long)XXH64(body, strlen(body), 0));
		assert_int_equal(intent_parse(forged, strlen(forged), &in),
		                 -EPROTONOSUPPORT);
	}
	free(good.hint);
}

static void test_sweep(void **state)
{
	struct harness *h = *state;
	struct store *s = open_store(h);

	put(h, "store/.cellar/tmp/object-1", "x");
	put(h, "store/.cellar/tmp/some.junk", "x");
	put(h, "store/.cellar/tmp/intent-", "");
	assert_int_equal(mkdirat(h->dirfd, "store/.cellar/tmp/dir", 0755), 0);
	assert_int_equal(mkdirat(h->dirfd, "store/.cellar/tmp/intent-dir", 0755), 0);
	assert_int_equal(symlinkat("/", h->dirfd, "store/.cellar/tmp/intent-link"), 0);
	assert_int_equal(
	    mknodat(h->dirfd, "store/.cellar/tmp/intent-fifo", S_IFIFO | 0600, 0), 0);
	log_set_level(LOG_LEVEL_ERR);
	assert_int_equal(store_finish_intents(s, NULL), 0);
	log_set_level(LOG_LEVEL_INFO);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	store_close(s);
}

/* A second attempt takes the place of the first. */
static void test_retry(void **state)
{
	struct harness *h = *state;
	struct store *s;
	struct ident id;

	if (!have_faults())
		skip();
	s = make_unfinished(h, "a.zst", "first");
	assert_int_equal(ident_get(s->root_fd, "a.zst", &id), 0);
	assert_true(store_is_unfinished(s, &id));
	assert_true(fault_set("fsync:3:EIO"));
	assert_int_equal(copy_over(s, "a.zst", "a.zst", "second"), 0); /* 3: of the drop */
	(void)fault_set(NULL);
	expect_target(h, "store/a.zst", "second");
	assert_false(store_is_unfinished(s, &id));
	assert_int_equal(store_finish_intents(s, NULL), 0);
	expect_target(h, "store/a.zst", "second");
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	store_close(s);
}

/* Both intents are there after a stop: the younger one counts, wherever they are found. */
static void test_two_intents(void **state)
{
	static const char *const hints[][2] = {
	    {"a.zst", "a.zst"}, {"a.zst", "gone"}, {"gone", "a.zst"}, {"gone", "gone"}};
	struct harness *h = *state;

	if (!have_faults())
		skip();
	for (size_t i = 0; i < ARRAY_LEN(hints); i++) {
		struct store *s = make_unfinished(h, hints[i][0], "first");
		struct store *later;

		store_forget_unfinished(s); /* as if the younger were of another run */
		assert_true(fault_set("ftruncate:1:EIO:always"));
		assert_int_equal(copy_over(s, "a.zst", hints[i][1], "second"), -EIO);
		(void)fault_set(NULL);
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 4);
		store_close(s);
		later = open_store(h);
		assert_int_equal(store_finish_intents(later, NULL), 0);
		expect_target(h, "store/a.zst", "second");
		assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
		store_close(later);
	}
}

/* Replacing the half-written object by renaming ends the matter too. */
static void test_replace_unfinished(void **state)
{
	struct harness *h = *state;
	struct store *s;
	struct ident id;
	struct name tmp;

	if (!have_faults())
		skip();
	s = make_unfinished(h, "a.zst", "first");
	put(h, "store/b.zst", "b");
	make_tmp(s, "b2", &tmp);
	assert_int_equal(store_replace(s, tmp.s, s->root_fd, "b.zst"), 0);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	assert_int_equal(ident_get(s->root_fd, "a.zst", &id), 0);
	make_tmp(s, "whole", &tmp);
	assert_int_equal(store_replace(s, tmp.s, s->root_fd, "a.zst"), 0);
	assert_false(store_is_unfinished(s, &id));
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	expect_text(h, "store/a.zst", "whole");
	store_close(s);
}

/* The target cannot be written at the next start: kept, said, and done the time after. */
static void test_finish_fails(void **state)
{
	struct harness *h = *state;
	struct store *s;
	char *cause = NULL;

	if (!have_faults())
		skip();
	store_close(make_unfinished(h, "dir \n/a.zst", "new"));
	s = open_store(h);
	assert_true(fault_set("full_copy_range:1:EIO:always"));
	assert_int_equal(store_finish_intents(s, &cause), -EIO);
	(void)fault_set(NULL);
	assert_non_null(strstr(cause, "\"dir \\n/a.zst\""));
	free(cause);
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 2);
	store_close(s);
	s = open_store(h);
	assert_int_equal(store_finish_intents(s, NULL), 0);
	expect_target(h, "store/a.zst", "new");
	assert_int_equal(count_entries(h, "store/.cellar/tmp"), 0);
	store_close(s);
}

static void read_only_as_nobody(void *arg)
{
	struct harness *h = arg;
	struct store *s;

	become_nobody();
	s = make_unfinished(h, "a.zst", "new");
	store_close(s);
	MUST(fchmodat(h->dirfd, "store/a.zst", 0444, 0) == 0);
	s = open_store(h);
	MUST(store_finish_intents(s, NULL) == 0);
	expect_target(h, "store/a.zst", "new");
	store_close(s);
}

static void test_finish_read_only(void **state)
{
	struct harness *h = *state;

	if (!have_faults())
		skip();
	assert_int_equal(fchmod(h->dirfd, 0777), 0);
	expect_child(read_only_as_nobody, h);
}

static void test_capability(void **state)
{
	static const unsigned char cap[20] = {1, 0, 0, 2, 0, 0x20};
	static const char attr[] = "security.capability";
	struct harness *h = *state;
	unsigned char got[64];
	struct store *s;
	struct target t;

	if (geteuid() != 0 || !have_faults())
		skip();
	s = make_unfinished(h, "a.zst", "x");
	t = open_target(s, "a.zst");
	if (fsetxattr(t.fd, attr, cap, sizeof cap, 0) == 0) {
		assert_int_equal(copy_over(s, "a.zst", "a.zst", "with % and caps"), 0);
		assert_int_equal(fgetxattr(t.fd, attr, got, sizeof got), sizeof cap);
		assert_memory_equal(got, cap, sizeof cap);
	}
	close(t.fd);
	store_close(s);
}

#define T(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_tmp),
	    T(test_replace),
	    T(test_sync_unreadable),
	    T(test_copy_over),
	    T(test_copy_over_large),
	    T(test_copy_over_refusals),
	    T(test_copy_over_no_room),
	    T(test_copy_over_faults),
	    T(test_copy_over_faults_user),
	    T(test_stopped_at_steps),
	    T(test_renamed_target),
	    T(test_lost_target),
	    T(test_torn_intents),
	    T(test_forged_intents),
	    T(test_sweep),
	    T(test_retry),
	    T(test_two_intents),
	    T(test_replace_unfinished),
	    T(test_finish_fails),
	    T(test_finish_read_only),
	    T(test_capability),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
