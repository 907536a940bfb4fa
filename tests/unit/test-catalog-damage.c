/*
 * A damaged catalog: bits flipped in the database, in its WAL, both cut, one of another day
 * in its place, either of them gone. What must hold (catalog.h, C1 C3 C5):
 *
 *   (D4) it opens, and works: what is put is found after the next opening
 *   (D5) a row is what was put, or not there; it is never another one
 */
#include "harness.h"

#include <sys/statfs.h>

#include "base/log.h"
#include "catalog/catalog.h"

#define ROWS 120

static const struct uuid pool = {{1, 2, 3, 4, 5, 6, 7, 8}};

struct image {
	char *db, *wal;
	size_t db_len, wal_len;
};

struct place {
	struct harness *h;
	int dirfd;
	char path[128];
};

static struct catalog_file row_of(uint64_t n, uint64_t version)
{
	return (struct catalog_file){
	    .ident = {{n * 0x9e3779b97f4a7c15ULL, n}},
	    .ino = 1000 + n,
	    .type = S_IFREG,
	    .kind = OBJECT_SEEKABLE,
	    .logical_size = 100000 * n + version,
	    .stored_size = 10000 * n + version,
	    .stored_mtime = {.tv_sec = (time_t)(1700000000 + n)},
	    .trailer_hash = {n * 3, n * 5},
	    .seq = version,
	};
}

/* In memory where there is such a place: thousands of databases are opened. */
static void place_open(struct place *p, struct harness *h)
{
	p->h = h;
	(void)snprintf(p->path, sizeof(p->path), "/dev/shm/cellar-test-XXXXXX");
	if (!mkdtemp(p->path))
		(void)snprintf(p->path, sizeof(p->path), "%.100s", h->path);
	p->dirfd = open(p->path, O_RDONLY | O_DIRECTORY);
	assert_true(p->dirfd >= 0);
}

static void place_close(struct place *p)
{
	harness_empty_dir(dup(p->dirfd));
	(void)close(p->dirfd);
	if (strcmp(p->path, p->h->path) != 0)
		(void)rmdir(p->path);
}

static struct catalog *open_it(struct place *p, const char *what, size_t at)
{
	struct catalog *c = NULL;
	char *cause = NULL;
	errint_t err = catalog_open(p->dirfd, p->path, &pool, &c, NULL, &cause);

	if (err)
		fail_msg("%s, damage at %zu: it does not open: %s", what, at,
		         cause ? cause : strerror(-err)); /* (D4) */
	free(cause);
	return c;
}

static void clean_place(struct place *p)
{
	harness_empty_dir(dup(p->dirfd));
}

static void put_image(struct place *p, const struct image *i)
{
	clean_place(p);
	if (i->db)
		harness_write(p->dirfd, "catalog.db", i->db, i->db_len);
	if (i->wal)
		harness_write(p->dirfd, "catalog.db-wal", i->wal, i->wal_len);
}

static void make_rows(struct catalog *c, uint64_t from, uint64_t version)
{
	for (uint64_t n = from; n <= ROWS; n++) {
		struct catalog_file row = row_of(n, version);

		catalog_file_put(c, &row);
	}
	catalog_commit(c);
}

/* Closed properly, and as a killed daemon leaves it, half of it in the WAL. */
static void make_images(struct place *p, struct image *closed, struct image *killed)
{
	struct catalog *c = open_it(p, "new", 0);

	make_rows(c, 1, 1);
	catalog_close(c);
	*closed = (struct image){0};
	closed->db = harness_read(p->dirfd, "catalog.db", &closed->db_len);
	c = open_it(p, "again", 0);
	make_rows(c, ROWS / 2, 2);
	*killed = (struct image){0};
	killed->db = harness_read(p->dirfd, "catalog.db", &killed->db_len);
	killed->wal = harness_read(p->dirfd, "catalog.db-wal", &killed->wal_len);
	assert_true(killed->wal_len > 4096);
	catalog_close(c);
}

static void image_clear(struct image *i)
{
	free(i->db);
	free(i->wal);
}

struct sum {
	unsigned long damages, whole, some, none, late;
};

/* (D4), (D5): in place p lies something damaged. */
static void check(struct place *p, const char *what, size_t at, struct sum *sum)
{
	struct catalog *c = open_it(p, what, at);
	struct catalog_file fresh = row_of(ROWS + 7, 9), got;
	char *degraded;
	unsigned found = 0;
	bool lost = true;

	for (uint64_t n = 1; n <= ROWS; n++) {
		struct ident id = row_of(n, 1).ident;

		if (!catalog_file_get(c, &id, &got))
			continue;
		found++;
		if (got.ino != 1000 + n || (got.seq != 1 && got.seq != 2) ||
		    got.logical_size != 100000 * n + got.seq ||
		    got.stored_size != 10000 * n + got.seq || got.trailer_hash[0] != n * 3)
			fail_msg("%s, damage at %zu: row %llu is another", what, at,
			         (unsigned long long)n);
	}
	sum->damages++;
	sum->whole += found == ROWS;
	sum->some += found > 0 && found < ROWS;
	sum->none += !found;
	/* Damage that was not met before may set it aside once more. */
	for (unsigned tries = 0; tries < 3; tries++) {
		catalog_file_put(c, &fresh);
		catalog_commit(c);
		catalog_commit(c);
		degraded = catalog_degraded(c);
		if (degraded)
			fail_msg("%s, damage at %zu: %s", what, at, degraded);
		catalog_close(c);
		c = open_it(p, what, at);
		lost = !catalog_file_get(c, &fresh.ident, &got) || got.ino != fresh.ino;
		if (!lost)
			break;
		sum->late++;
	}
	catalog_close(c);
	if (lost)
		fail_msg("%s, damage at %zu: what was put is lost", what, at);
}

static void say(const char *what, const struct sum *s)
{
	print_message(
	    "%s: %lu damages: all rows %lu times, some %lu, none %lu; met later %lu\n",
	    what, s->damages, s->whole, s->some, s->none, s->late);
}

static bool soak(void)
{
	const char *s = getenv("CELLAR_TEST_SOAK");

	return s && *s && strcmp(s, "0") != 0;
}

/* Flips bit `at` of one file of the image. */
static void flip(struct place *p, const struct image *i, bool wal, size_t at,
                 const char *what, struct sum *sum)
{
	char *bytes = wal ? i->wal : i->db;

	bytes[at / 8] ^= (char)(1U << at % 8);
	put_image(p, i);
	check(p, what, at, sum);
	bytes[at / 8] ^= (char)(1U << at % 8);
}

static void test_flips(void **state)
{
	struct image closed, killed;
	struct sum head = {0}, rest = {0}, db = {0}, wal = {0};
	struct place p;
	size_t coarser = HARNESS_STRIDE > 1 ? 3 : 1;
	size_t step = soak() ? 31 : 1511 * coarser, head_step = soak() ? 1 : 3 * coarser;

	place_open(&p, *state);
	log_set_level(LOG_LEVEL_ERR);
	make_images(&p, &closed, &killed);
	for (size_t at = 0; at < 100UL * 8; at += head_step)
		flip(&p, &closed, false, at, "header of a closed one", &head);
	for (size_t at = 800; at < closed.db_len * 8; at += step)
		flip(&p, &closed, false, at, "closed one", &rest);
	for (size_t at = 5; at < killed.db_len * 8; at += step * 2)
		flip(&p, &killed, false, at, "killed one", &db);
	for (size_t at = 0; at < killed.wal_len * 8; at += step * 2)
		flip(&p, &killed, true, at, "WAL", &wal);
	for (size_t at = 0; at < 56UL * 8; at += 7)
		flip(&p, &killed, true, at, "head of the WAL", &wal);
	say("header of a closed one", &head);
	say("closed one", &rest);
	say("database beside a WAL", &db);
	say("WAL", &wal);
	assert_true(head.none > 0 && head.whole > 0 && rest.none > 0);
	image_clear(&closed);
	image_clear(&killed);
	place_close(&p);
}

/* Blocks zeroed and garbled, and both files cut. */
static void test_blocks(void **state)
{
	struct image closed, killed;
	struct sum sum = {0};
	struct place p;

	place_open(&p, *state);
	log_set_level(LOG_LEVEL_ERR);
	make_images(&p, &closed, &killed);
	for (size_t at = 0; at < killed.db_len; at += 4096) {
		char saved[4096];

		for (unsigned kind = 0; kind < 2; kind++) {
			memcpy(saved, killed.db + at, sizeof(saved));
			if (kind)
				harness_fill(killed.db + at, sizeof(saved), at);
			else
				memset(killed.db + at, 0, sizeof(saved));
			put_image(&p, &killed);
			check(&p, "block of the database", at, &sum);
			memcpy(killed.db + at, saved, sizeof(saved));
		}
	}
	for (size_t len = 0; len < killed.wal_len; len += 1999) {
		struct image cut = killed;

		cut.wal_len = len;
		put_image(&p, &cut);
		check(&p, "cut WAL", len, &sum);
	}
	for (size_t len = 0; len < closed.db_len; len += 1777) {
		struct image cut = closed;

		cut.db_len = len;
		put_image(&p, &cut);
		check(&p, "cut database", len, &sum);
	}
	say("blocks and cuts", &sum);
	image_clear(&closed);
	image_clear(&killed);
	place_close(&p);
}

/* The database alone gone, the WAL alone gone, each of another day, empty, a directory. */
static void test_other_files(void **state)
{
	struct image closed, killed;
	struct sum sum = {0};
	struct place p;

	place_open(&p, *state);
	log_set_level(LOG_LEVEL_ERR);
	make_images(&p, &closed, &killed);
	for (unsigned i = 0; i < 6; i++) {
		struct image x = killed;

		switch (i) {
		case 0:
			x.db = NULL;
			break;
		case 1:
			x.wal = NULL;
			break;
		case 2:
			x.db = closed.db;
			x.db_len = closed.db_len;
			break;
		case 3:
			x.db_len = 0;
			break;
		case 4:
			x.wal_len = 0;
			break;
		case 5:
			x.wal = closed.db;
			x.wal_len = closed.db_len;
			break;
		}
		put_image(&p, &x);
		check(&p, "other files", i, &sum);
	}
	say("other files", &sum);
	assert_int_equal(sum.none, 2);
	image_clear(&closed);
	image_clear(&killed);
	place_close(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_flips, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_blocks, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_other_files, harness_setup,
	                                    harness_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
