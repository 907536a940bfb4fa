/* catalog: rows come back as they were, at once and after any end; a bad database never
 * costs more than its rows. */
#include "harness.h"

#include <signal.h>
#include <sys/resource.h>
#include <pthread.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "base/counters.h"
#include "catalog/batch.h"
#include "catalog/catalog.h"

static const struct uuid pool = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
static const struct uuid other_pool = {{99}};

/* ---- helpers ---- */

static struct catalog *open_for(struct harness *h, const struct uuid *whose, bool *rebuilt)
{
	struct catalog *c = NULL;
	char *cause = NULL;
	errint_t err = catalog_open(h->dirfd, h->path, whose, &c, rebuilt, &cause);

	if (err)
		fail_msg("catalog_open: %s: %s", strerror(-err), cause);
	assert_null(cause);
	return c;
}

static struct catalog *open_it(struct harness *h)
{
	bool rebuilt = true;
	struct catalog *c = open_for(h, &pool, &rebuilt);

	assert_false(rebuilt);
	return c;
}

static struct catalog *open_rebuilt(struct harness *h)
{
	bool rebuilt = false;
	struct catalog *c = open_for(h, &pool, &rebuilt);

	assert_true(rebuilt);
	return c;
}

static struct ident id(uint64_t n)
{
	return (struct ident){{n * 0x9e3779b97f4a7c15ULL, n}};
}

static struct catalog_file row(uint64_t ident, uint64_t ino)
{
	return (struct catalog_file){
	    .ident = id(ident),
	    .ino = ino,
	    .type = S_IFREG,
	    .kind = OBJECT_SEEKABLE,
	    .logical_size = 1000 + ino,
	    .stored_size = 100 + ino,
	    .seq = ident,
	};
}

static void put(struct catalog *c, uint64_t ident, uint64_t ino)
{
	struct catalog_file r = row(ident, ino);

	catalog_file_put(c, &r);
}

static void del(struct catalog *c, uint64_t ident)
{
	struct ident i = id(ident);

	catalog_file_delete(c, &i);
}

/* The number that an identity has, or 0. */
static uint64_t ino_of(struct catalog *c, uint64_t ident)
{
	struct catalog_file r;
	struct ident i = id(ident);

	if (!catalog_file_get(c, &i, &r))
		return 0;
	assert_true(ident_equal(&r.ident, &i));
	assert_int_equal(r.seq, ident);
	return r.ino;
}

/* The identity that a number has, or 0. */
static uint64_t ident_of(struct catalog *c, uint64_t ino)
{
	struct catalog_file r;

	if (!catalog_file_by_ino(c, ino, &r))
		return 0;
	assert_int_equal(r.ino, ino);
	return r.ident.w[1];
}

static unsigned count_entries(struct harness *h, const char *part)
{
	DIR *d = fdopendir(openat(h->dirfd, ".", O_RDONLY | O_DIRECTORY));
	const struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strstr(e->d_name, part) != NULL;
	closedir(d);
	return n;
}

/* The name of the set-aside database. */
static char *aside_db(struct harness *h)
{
	DIR *d = fdopendir(openat(h->dirfd, ".", O_RDONLY | O_DIRECTORY));
	const struct dirent *e;
	char *found = NULL;

	assert_non_null(d);
	while ((e = readdir(d))) {
		size_t len = strlen(e->d_name);

		if (!strncmp(e->d_name, "catalog.db.set-aside-", 21) &&
		    e->d_name[len - 1] == 'Z')
			found = strdup(e->d_name);
	}
	closedir(d);
	return found;
}

static void run_sql(struct harness *h, const char *sql)
{
	char path[600];
	sqlite3 *db;

	(void)snprintf(path, sizeof(path), "%s/catalog.db", h->path);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void damage(struct harness *h, off_t from, off_t to)
{
	int fd = openat(h->dirfd, "catalog.db", O_RDWR);
	char junk[512];

	assert_true(fd >= 0);
	harness_fill(junk, sizeof(junk), 7);
	for (; from < to; from += (off_t)sizeof(junk))
		assert_int_equal(pwrite(fd, junk, sizeof(junk), from), sizeof(junk));
	close(fd);
}

static off_t db_size(struct harness *h)
{
	struct stat st;

	assert_int_equal(fstatat(h->dirfd, "catalog.db", &st, 0), 0);
	return st.st_size;
}

static void assert_sound(struct catalog *c)
{
	char *why = catalog_degraded(c);

	if (why)
		fail_msg("degraded: %s", why);
}

/* ---- rows ---- */

static void assert_row(struct catalog *c, const struct catalog_file *want)
{
	struct catalog_file got;

	memset(&got, 0xee, sizeof(got));
	assert_true(catalog_file_get(c, &want->ident, &got));
	assert_memory_equal(&got, want, sizeof(got));
	memset(&got, 0xee, sizeof(got));
	assert_true(catalog_file_by_ino(c, want->ino, &got));
	assert_memory_equal(&got, want, sizeof(got));
}

static void test_every_field(void **state)
{
	struct harness *h = *state;
	struct catalog_file rows[4];
	struct catalog *c = open_it(h);

	memset(rows, 0, sizeof(rows)); /* padding too */
	rows[0].ident = (struct ident){{UINT64_MAX, 1}};
	rows[0].ino = 1ULL << 62;
	rows[0].type = S_IFREG;
	rows[0].kind = OBJECT_FOREIGN;
	rows[0].logical_size = OBJECT_SIZE_UNKNOWN;
	rows[0].stored_size = 1ULL << 61;
	rows[0].stored_mtime = (struct timespec){-3155760000LL * 3, 999999999};
	rows[0].trailer_hash[0] = 0x0102030405060708ULL;
	rows[0].trailer_hash[1] = 0xfffefdfcfbfaf9f8ULL;
	rows[0].seq = 1ULL << 63;
	rows[0].ctime = (struct timespec){INT64_MAX, 1};
	rows[0].seen_ctime = (struct timespec){INT64_MIN, 2};
	rows[0].mtime = (struct timespec){9223372037LL, 123456789}; /* past 2262 in ns */
	rows[0].level = -7;
	rows[0].frames = UINT32_MAX;
	rows[0].dead_bytes = 12345678901234ULL;
	rows[0].verified = -1;
	rows[1].ident = (struct ident){{0, 1}};
	rows[1].ino = 1;
	rows[1].type = S_IFDIR;
	rows[2] = rows[0];
	rows[2].ident = (struct ident){{1, 0}};
	rows[2].ino = 2;
	rows[2].logical_size = 0;
	rows[3] = rows[2];
	rows[3].ident = (struct ident){{1ULL << 63, 0}};
	rows[3].ino = 3;
	rows[3].logical_size = 1ULL << 60;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		catalog_file_put(c, &rows[i]);
		assert_row(c, &rows[i]);
	}
	catalog_commit(c);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		assert_row(c, &rows[i]);
	catalog_close(c);
	c = open_it(h);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		assert_row(c, &rows[i]);
	assert_int_equal(ino_of(c, 77), 0);
	assert_int_equal(ident_of(c, 77), 0);
	assert_sound(c);
	catalog_close(c);
}

/* Each step is checked pending, committed, and after a new start. */
static void for_each_layer(struct harness *h, struct catalog **c,
                           void (*check)(struct catalog *c))
{
	check(*c);
	catalog_commit(*c);
	check(*c);
	catalog_close(*c);
	*c = open_it(h);
	check(*c);
}

static void check_two(struct catalog *c)
{
	assert_int_equal(ino_of(c, 1), 5);
	assert_int_equal(ino_of(c, 2), 6);
	assert_int_equal(ident_of(c, 5), 1);
	assert_int_equal(ident_of(c, 6), 2);
}

static void check_stolen(struct catalog *c)
{
	assert_int_equal(ino_of(c, 1), 0);
	assert_int_equal(ino_of(c, 2), 6);
	assert_int_equal(ino_of(c, 3), 5);
	assert_int_equal(ident_of(c, 5), 3);
}

static void check_swapped(struct catalog *c)
{
	assert_int_equal(ino_of(c, 2), 5);
	assert_int_equal(ino_of(c, 3), 6);
	assert_int_equal(ident_of(c, 5), 2);
	assert_int_equal(ident_of(c, 6), 3);
}

static void check_moved(struct catalog *c)
{
	assert_int_equal(ino_of(c, 2), 7);
	assert_int_equal(ident_of(c, 5), 0);
	assert_int_equal(ident_of(c, 7), 2);
}

static void check_replaced(struct catalog *c)
{
	assert_int_equal(ino_of(c, 2), 0);
	assert_int_equal(ino_of(c, 4), 7);
	assert_int_equal(ident_of(c, 7), 4);
}

static void check_deleted(struct catalog *c)
{
	assert_int_equal(ino_of(c, 4), 0);
	assert_int_equal(ident_of(c, 7), 0);
	assert_int_equal(ino_of(c, 3), 6);
}

static void check_passed_on(struct catalog *c)
{
	assert_int_equal(ino_of(c, 3), 0);
	assert_int_equal(ident_of(c, 6), 0);
	assert_int_equal(ino_of(c, 5), 9);
	assert_int_equal(ident_of(c, 9), 5);
}

static void test_numbers_are_unique(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	struct catalog_file r;
	struct ident old = id(2);

	put(c, 1, 5);
	put(c, 2, 6);
	for_each_layer(h, &c, check_two);
	put(c, 3, 5);
	for_each_layer(h, &c, check_stolen);
	put(c, 3, 8);
	put(c, 2, 5);
	put(c, 3, 6);
	for_each_layer(h, &c, check_swapped);
	put(c, 2, 7);
	for_each_layer(h, &c, check_moved);
	r = row(4, 7);
	catalog_file_replace(c, &old, &r);
	for_each_layer(h, &c, check_replaced);
	del(c, 4);
	del(c, 4);
	del(c, 1234);
	for_each_layer(h, &c, check_deleted);
	put(c, 4, 7);
	catalog_commit(c);
	assert_int_equal(ino_of(c, 4), 7);
	put(c, 5, 6); /* 3 had it; and 5 does not keep it */
	put(c, 5, 9);
	for_each_layer(h, &c, check_passed_on);
	catalog_close(c);
}

static void test_scratch_and_meta(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	char text[] = "disk \"full\"'; DROP TABLE scratch; --";
	struct catalog_scratch s = {
	    .ino = 9,
	    .dirty = true,
	    .pinned = true,
	    .bytes = 1ULL << 40,
	    .last_use = -5,
	    .last_error = text,
	};
	struct catalog_scratch got;
	char *value = NULL;

	assert_false(catalog_scratch_get(c, 9, &got));
	assert_false(catalog_meta_get(c, "x", &value));
	catalog_scratch_put(c, &s);
	catalog_meta_set(c, "x", "1");
	catalog_meta_set(c, "x", "'two'");
	for (int layer = 0; layer < 3; layer++) {
		assert_true(catalog_scratch_get(c, 9, &got));
		assert_int_equal(got.ino, 9);
		assert_true(got.dirty && got.pinned);
		assert_int_equal(got.bytes, 1ULL << 40);
		assert_int_equal(got.last_use, -5);
		assert_ptr_not_equal(got.last_error, text);
		harness_assert_text(got.last_error, text);
		assert_true(catalog_meta_get(c, "x", &value));
		harness_assert_text(value, "'two'");
		if (layer == 0) {
			catalog_commit(c);
		} else if (layer == 1) {
			catalog_close(c);
			c = open_it(h);
		}
	}
	s.last_error = NULL;
	s.dirty = false;
	catalog_scratch_put(c, &s);
	catalog_commit(c);
	assert_true(catalog_scratch_get(c, 9, &got));
	assert_null(got.last_error);
	assert_false(got.dirty);
	catalog_scratch_delete(c, 9);
	assert_false(catalog_scratch_get(c, 9, &got));
	catalog_commit(c);
	assert_false(catalog_scratch_get(c, 9, &got));
	catalog_close(c);
}

static void assert_totals(struct catalog *c, uint64_t files, uint64_t logical,
                          uint64_t stored)
{
	struct catalog_totals t = {1, 1, 1};

	catalog_get_totals(c, &t);
	assert_int_equal(t.files, files);
	assert_int_equal(t.logical_bytes, logical);
	assert_int_equal(t.stored_bytes, stored);
}

static void test_totals(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	struct catalog_file r;

	assert_totals(c, 0, 0, 0);
	put(c, 1, 1);
	put(c, 2, 2);
	r = row(3, 3);
	r.type = S_IFDIR;
	catalog_file_put(c, &r);
	r = row(4, 4);
	r.logical_size = OBJECT_SIZE_UNKNOWN;
	catalog_file_put(c, &r);
	assert_totals(c, 3, 1001 + 1002, 101 + 102 + 104);
	r = row(1, 1);
	r.logical_size = 7;
	catalog_file_put(c, &r);
	assert_totals(c, 3, 7 + 1002, 101 + 102 + 104);
	put(c, 9, 2); /* 2 loses its number and its row */
	assert_totals(c, 3, 7 + 1002, 101 + 102 + 104);
	del(c, 1);
	del(c, 3);
	catalog_close(c);
	c = open_it(h);
	assert_totals(c, 2, 1002, 102 + 104);
	catalog_close(c);
}

/* ---- commits ---- */

static void test_one_transaction_a_batch(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	uint64_t before = counter_get(COUNTER_CATALOG_COMMITS);
	uint64_t until = clock_mono_ms() + 20000;

	for (uint64_t i = 1; i <= 1000; i++)
		put(c, i, i);
	catalog_commit(c);
	assert_in_range(counter_get(COUNTER_CATALOG_COMMITS) - before, 1, 5);
	before = counter_get(COUNTER_CATALOG_COMMITS);
	catalog_commit(c); /* nothing to do */
	assert_int_equal(counter_get(COUNTER_CATALOG_COMMITS), before);
	put(c, 2000, 2000); /* committed without being asked */
	while (counter_get(COUNTER_CATALOG_COMMITS) == before) {
		assert_true(clock_mono_ms() < until);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	catalog_close(c);
}

static void test_file_modes(void **state)
{
	struct harness *h = *state;
	mode_t old = umask(0);
	struct catalog *c = open_it(h);
	static const char *const names[] = {"catalog.db", "catalog.db-wal",
	                                    "catalog.db-shm"};
	struct stat st;

	put(c, 1, 1);
	catalog_commit(c);
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		assert_int_equal(fstatat(h->dirfd, names[i], &st, 0), 0);
		assert_int_equal(st.st_mode & 07777, 0600);
	}
	catalog_close(c);
	assert_int_equal(count_entries(h, "catalog"), 1); /* WAL emptied and gone */
	(void)umask(old);
}

static void child_dies(void *arg)
{
	struct catalog *c = open_it(arg);

	for (uint64_t i = 1; i <= 3000; i++)
		put(c, i, i);
	catalog_commit(c);
	put(c, 5000, 5000);
	(void)raise(SIGKILL);
}

static void die_in_child(struct harness *h)
{
	char *text = NULL;
	int status = harness_child(child_dies, h, &text);

	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	free(text);
}

static void test_kill_keeps_commits(void **state)
{
	struct harness *h = *state;
	struct catalog *c;

	die_in_child(h);
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 1);
	assert_int_equal(ino_of(c, 3000), 3000);
	assert_totals(c, 3000, 3000 * 1000 + 3000 * 3001 / 2, 3000 * 100 + 3000 * 3001 / 2);
	catalog_close(c);
}

/* ---- databases that are none ---- */

static void test_garbage_is_set_aside(void **state)
{
	struct harness *h = *state;
	char junk[9000], *name, *found;
	struct catalog *c;
	size_t len;

	harness_fill(junk, sizeof(junk), 3);
	harness_write(h->dirfd, "catalog.db", junk, sizeof(junk));
	harness_write(h->dirfd, "catalog.db-wal", "wal", 3);
	c = open_rebuilt(h);
	put(c, 1, 1);
	catalog_close(c);
	name = aside_db(h);
	assert_non_null(name);
	found = harness_read(h->dirfd, name, &len);
	assert_int_equal(len, sizeof(junk));
	assert_memory_equal(found, junk, len);
	free(found);
	free(name);
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 1);
	catalog_close(c);
}

static void test_empty_file_is_new(void **state)
{
	struct harness *h = *state;
	struct catalog *c;

	harness_write(h->dirfd, "catalog.db", "", 0);
	c = open_it(h);
	assert_sound(c);
	catalog_close(c);
	assert_int_equal(count_entries(h, "set-aside"), 0);
}

static void test_deleted_database(void **state)
{
	struct harness *h = *state;
	struct catalog *c;

	die_in_child(h); /* leaves a WAL */
	assert_true(count_entries(h, "-wal") == 1);
	assert_int_equal(unlinkat(h->dirfd, "catalog.db", 0), 0);
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 0);
	assert_sound(c);
	catalog_close(c);
}

static void test_other_pool(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_for(h, &other_pool, NULL);

	put(c, 1, 1);
	catalog_close(c);
	c = open_rebuilt(h);
	assert_int_equal(ino_of(c, 1), 0);
	catalog_close(c);
	assert_int_equal(count_entries(h, "set-aside"), 1);
}

static void test_other_program(void **state)
{
	struct harness *h = *state;

	run_sql(h, "CREATE TABLE photos(x); INSERT INTO photos VALUES(1);");
	catalog_close(open_rebuilt(h));
	assert_int_equal(count_entries(h, "set-aside"), 1);
}

static void test_no_file(void **state)
{
	struct harness *h = *state;

	assert_int_equal(mkdirat(h->dirfd, "catalog.db", 0700), 0);
	catalog_close(open_rebuilt(h));
	assert_int_equal(unlinkat(h->dirfd, "catalog.db", 0), 0);
	assert_int_equal(symlinkat("/nonexistent/x", h->dirfd, "catalog.db"), 0);
	catalog_close(open_rebuilt(h));
	assert_int_equal(count_entries(h, "set-aside"), 2);
}

static void test_newer_schema(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	char *cause = NULL;

	put(c, 1, 1);
	catalog_close(c);
	/* a bare number in the header proves nothing: see test-catalog-damage.c */
	run_sql(h, "PRAGMA user_version=2; UPDATE meta SET value='2' WHERE key='schema'");
	c = NULL;
	assert_int_equal(catalog_open(h->dirfd, h->path, &pool, &c, NULL, &cause),
	                 -ENOTSUP);
	assert_null(c);
	assert_non_null(cause);
	assert_non_null(strstr(cause, "schema 2"));
	assert_non_null(strstr(cause, h->path));
	free(cause);
	run_sql(h, "PRAGMA user_version=1");
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 1);
	catalog_close(c);
}

static void test_missing_table(void **state)
{
	struct harness *h = *state;

	catalog_close(open_it(h));
	run_sql(h, "DROP TABLE scratch");
	catalog_close(open_rebuilt(h));
}

/* ---- damage ---- */

static void test_damage_after_a_crash(void **state)
{
	struct harness *h = *state;
	struct catalog *c;

	catalog_close(open_it(h));
	die_in_child(h);
	run_sql(h, "PRAGMA wal_checkpoint(TRUNCATE)");
	damage(h, db_size(h) / 2, db_size(h));
	c = open_rebuilt(h);
	assert_int_equal(ino_of(c, 1), 0);
	assert_sound(c);
	catalog_close(c);
}

/* Closed properly, so nothing is checked at opening: found by reading. */
static void test_damage_while_running(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	unsigned lost = 0;

	for (uint64_t i = 1; i <= 5000; i++)
		put(c, i, i);
	catalog_close(c);
	damage(h, db_size(h) / 2, db_size(h));
	c = open_it(h);
	put(c, 9999, 9999);
	for (uint64_t i = 1; i <= 5000; i++)
		lost += ino_of(c, i) != i;
	assert_true(lost > 0);
	catalog_commit(c);
	assert_true(count_entries(h, "set-aside") >= 1);
	assert_int_equal(ino_of(c, 9999), 9999);
	assert_int_equal(ino_of(c, 1), 0);
	put(c, 1, 1);
	catalog_close(c);
	assert_int_equal(count_entries(h, ".set-aside-"), 1); /* once; its WAL was empty */
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 1);
	assert_int_equal(ino_of(c, 9999), 9999);
	assert_sound(c);
	catalog_close(c);
}

static void test_flipped_bit_in_a_row(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);

	put(c, 1, 1);
	put(c, 2, 2);
	catalog_close(c);
	run_sql(h, "UPDATE file SET logical_size = logical_size + 1 WHERE ino = 2");
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 1);
	assert_int_equal(ino_of(c, 2), 0);
	catalog_commit(c);
	put(c, 3, 3); /* whatever the writer was at */
	catalog_commit(c);
	assert_int_equal(count_entries(h, ".set-aside-"), 1);
	assert_sound(c);
	catalog_close(c);
}

/* ---- trouble that passes ---- */

static void limit_file_size(rlim_t bytes)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void test_disk_full(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	char *why;

	(void)signal(SIGXFSZ, SIG_IGN);
	put(c, 1, 1);
	put(c, 2, 2);
	catalog_commit(c);
	limit_file_size(20000);
	for (uint64_t i = 10; i < 1000; i++)
		put(c, i, i);
	put(c, 3, 2); /* 2 loses its number */
	del(c, 1);
	catalog_commit(c);
	why = catalog_degraded(c);
	put(c, 500, 5000);
	catalog_commit(c);
	put(c, 501, 999); /* 999 loses its number */
	put(c, 2000, 20); /* so does 20, and 2000 does not keep it */
	put(c, 2000, 2000);
	catalog_commit(c);
	/* All of it is there, or gone, all the same. */
	assert_int_equal(ino_of(c, 10), 10);
	assert_int_equal(ino_of(c, 1), 0);
	assert_int_equal(ino_of(c, 2), 0);
	assert_int_equal(ident_of(c, 2), 3);
	assert_int_equal(ino_of(c, 500), 5000);
	assert_int_equal(ident_of(c, 500), 0);
	assert_int_equal(ident_of(c, 999), 501);
	assert_int_equal(ino_of(c, 999), 0);
	assert_int_equal(ino_of(c, 20), 0);
	limit_file_size(RLIM_INFINITY);
	assert_non_null(why);
	assert_non_null(strstr(why, "catalog.db"));
	free(why);
	catalog_commit(c);
	assert_sound(c);
	put(c, 6000, 6000); /* goes on as before */
	catalog_close(c);
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 0);
	assert_int_equal(ino_of(c, 2), 0);
	assert_int_equal(ident_of(c, 2), 3);
	assert_int_equal(ino_of(c, 998), 998);
	assert_int_equal(ident_of(c, 999), 501);
	assert_int_equal(ino_of(c, 500), 5000);
	assert_int_equal(ino_of(c, 6000), 6000);
	assert_int_equal(ino_of(c, 20), 0);
	assert_int_equal(ident_of(c, 20), 0);
	assert_int_equal(ino_of(c, 2000), 2000);
	catalog_close(c);
	assert_int_equal(count_entries(h, "set-aside"), 0);
}

static void test_not_openable_at_first(void **state)
{
	struct harness *h = *state;
	struct rlimit limit, none;
	struct catalog *c = NULL;
	char *why;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	none = limit;
	none.rlim_cur = 0; /* no byte can be written to any file */
	(void)signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
	assert_int_equal(catalog_open(h->dirfd, h->path, &pool, &c, NULL, NULL), 0);
	why = catalog_degraded(c);
	assert_non_null(why);
	free(why);
	put(c, 1, 1);
	assert_int_equal(ino_of(c, 1), 1);
	assert_int_equal(ident_of(c, 1), 1);
	assert_int_equal(ino_of(c, 2), 0);
	assert_totals(c, 1, 1001, 101);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0); /* there is room again */
	catalog_commit(c);
	assert_sound(c);
	catalog_close(c);
	c = open_it(h);
	assert_int_equal(ino_of(c, 1), 1);
	catalog_close(c);
}

/* What came in during a commit that failed goes on top of what was to be committed. */
static void test_batches_add_up(void **state)
{
	struct batch older = {0}, newer = {0};
	struct catalog_file r[] = {row(1, 5), row(2, 5), row(2, 6), row(3, 7),
	                           row(4, 8), row(3, 8), row(4, 7)};
	struct ident one = id(1), two = id(2), three = id(3), four = id(4);

	(void)state;
	batch_put_file(&older, &r[0]);
	batch_put_file(&older, &r[3]);
	batch_put_file(&older, &r[4]);
	batch_put_meta(&older, "k", "old");
	batch_take_scratch(&older, 9)->gone = false;
	batch_put_file(&newer, &r[1]); /* takes 5 from `one`, and passes it on */
	batch_put_file(&newer, &r[2]);
	batch_put_file(&newer, &r[5]); /* 3 and 4 swap */
	batch_put_file(&newer, &r[6]);
	batch_put_meta(&newer, "k", "new");
	(void)batch_take_scratch(&newer, 9);
	batch_apply(&older, &newer);
	assert_true(batch_is_empty(&newer));
	assert_true(batch_file_of_ident(&older, &one)->gone);
	assert_true(batch_frees_ino(&older, 5));
	assert_null(batch_file_of_ino(&older, 5));
	assert_int_equal(batch_file_of_ident(&older, &two)->row.ino, 6);
	assert_int_equal(batch_file_of_ident(&older, &three)->row.ino, 8);
	assert_int_equal(batch_file_of_ident(&older, &four)->row.ino, 7);
	assert_false(batch_file_of_ident(&older, &three)->gone);
	assert_false(batch_file_of_ident(&older, &four)->gone);
	assert_false(batch_frees_ino(&older, 7));
	assert_string_equal(batch_meta(&older, "k")->value, "new");
	assert_true(batch_scratch(&older, 9)->gone);
	batch_clear(&older);
	assert_true(batch_is_empty(&older));
}

/* ---- threads ---- */

#define THREADS 4
#define ROUNDS  1500

struct worker {
	struct catalog *c;
	uint64_t base;
	pthread_t thread;
};

/* Its own identities and numbers: what it wrote it must read, whatever is being committed. */
static void *work(void *arg)
{
	struct worker *w = arg;
	struct catalog *c = w->c;
	uint64_t seed = w->base;

	for (uint64_t i = 0; i < ROUNDS; i++) {
		uint64_t a = w->base + harness_next(&seed) % 20;
		uint64_t b = w->base + harness_next(&seed) % 20;
		uint64_t had = ino_of(c, a);
		struct catalog_file r = row(a, b);
		struct ident old = id(b);

		INVARIANT(!had || ident_of(c, had) == a);
		switch (harness_next(&seed) % 4) {
		case 0:
			del(c, a);
			INVARIANT(!ino_of(c, a) && (!had || !ident_of(c, had)));
			break;
		case 1:
			catalog_file_replace(c, &old, &r);
			INVARIANT(ino_of(c, a) == b && ident_of(c, b) == a);
			INVARIANT(a == b || !ino_of(c, b));
			break;
		default:
			catalog_file_put(c, &r);
			INVARIANT(ino_of(c, a) == b && ident_of(c, b) == a);
			INVARIANT(!had || had == b || !ident_of(c, had));
		}
		if (i % 50 == 0)
			catalog_commit(c);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct harness *h = *state;
	struct catalog *c = open_it(h);
	struct worker w[THREADS];

	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.c = c, .base = 1000 * (i + 1)};
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
	assert_sound(c);
	/* What memory says is what the disk says. */
	for (unsigned i = 0; i < THREADS; i++) {
		for (uint64_t k = 0; k < 20; k++)
			w[i].base += (ino_of(c, 1000 * (i + 1) + k) << 20);
	}
	catalog_close(c);
	c = open_it(h);
	for (unsigned i = 0; i < THREADS; i++) {
		uint64_t sum = 1000 * (i + 1);

		for (uint64_t k = 0; k < 20; k++)
			sum += (ino_of(c, 1000 * (i + 1) + k) << 20);
		assert_int_equal(sum, w[i].base);
	}
	catalog_close(c);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(test_every_field),
	    TEST(test_numbers_are_unique),
	    TEST(test_scratch_and_meta),
	    TEST(test_totals),
	    TEST(test_one_transaction_a_batch),
	    TEST(test_file_modes),
	    TEST(test_kill_keeps_commits),
	    TEST(test_garbage_is_set_aside),
	    TEST(test_empty_file_is_new),
	    TEST(test_deleted_database),
	    TEST(test_other_pool),
	    TEST(test_other_program),
	    TEST(test_no_file),
	    TEST(test_newer_schema),
	    TEST(test_missing_table),
	    TEST(test_damage_after_a_crash),
	    TEST(test_damage_while_running),
	    TEST(test_flipped_bit_in_a_row),
	    TEST(test_disk_full),
	    TEST(test_not_openable_at_first),
	    TEST(test_batches_add_up),
	    TEST(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
