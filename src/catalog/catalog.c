/*
 * The catalog in front of SQLite: what was put and is not committed yet, the writer
 * thread, and what happens when the database fails.
 *
 * Three layers, looked at from the top; each is a set of final states (row, or "gone"):
 *   pending   what was put since the last commit began; any thread, under c->lock
 *   flight    the batch that the writer thread is committing now; read by look-ups under
 *             c->lock, changed by nobody until the commit is over
 *   database  read on the reader connection, under read_lock and not under c->lock, so
 *             that no put waits for a disk
 * A batch is committed in one transaction. When that fails, flight is merged back below
 * pending and tried again later (at once for catalog_commit()).
 *
 * A number has one identity: a row put takes the number away from whoever had it, in every
 * layer. So a row found in a lower layer counts only if no layer above says anything of its
 * identity or its number; and when a row gives its number up, the batch remembers that the
 * number was taken (`freed`), or a row below would come back to life. A look-up notes `generation` before it reads the database and starts again
 * if it moved: a batch that it had looked at may have been committed, and be looked at no
 * longer, between the two.
 *
 * Failure. Nothing here fails a caller. Damage (what SQLite calls corrupt, or a row with a
 * wrong checksum), found at opening, at any later time, or by the check that follows an
 * unclean end: the files are set aside, a new database is made, and work goes on. Anything
 * else (disk full, I/O error): rows stay in memory, `degraded` says why, and the writer
 * thread opens and commits again with growing pauses.
 *
 * Threads: one writer thread, which alone uses c->writer (catalog_open and catalog_close
 * do while it does not run). All else is any thread's.
 */
#include "catalog/catalog.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/sysio.h"
#include "base/workers.h"
#include "catalog/batch.h"
#include "store/private.h"

#define RETRY_FIRST_MS 1000
#define RETRY_MOST_MS  30000
#define BATCH_MOST     20000      /* changes: more than this are committed early */
#define CHECK_AT_OPEN  (32 << 20) /* bytes: larger databases are checked while running */

struct catalog {
	/* constant after open */
	int dirfd;
	char *path;
	struct uuid pool;
	pthread_t thread;
	_Atomic bool closing; /* also stops a running check */

	/* under lock */
	struct lock lock; /* LOCK_CATALOG */
	pthread_cond_t wake;
	pthread_cond_t attempted_cond;
	struct batch pending, flight;
	uint64_t generation;         /* flight was dropped, or the database replaced */
	uint64_t changes, attempted; /* counts of changes: made, and seen by a commit */
	uint64_t due_ms;             /* when the writer is to run; 0: no need */
	uint64_t retry_ms;           /* the next pause after a failure */
	bool damaged;                /* the reader met damage */
	char *degraded;

	/* under read_lock */
	struct lock read_lock; /* LOCK_LEAF */
	struct db reader;

	/* writer thread only */
	struct db writer;
	bool check_wanted;
};

/* ---- files: making, setting aside ---- */

/* Names of the set-aside copies: NAME.set-aside-TIME, the WAL beside it as SQLite would
 * look for it. */
static char *aside_name(const char *time_text, unsigned n, const char *suffix)
{
	if (n)
		return xasprintf(DB_NAME ".set-aside-%s.%u%s", time_text, n, suffix);
	return xasprintf(DB_NAME ".set-aside-%s%s", time_text, suffix);
}

static errint_t rename_aside(int dirfd, const char *from, const char *to)
{
	errint_t err = sys_renameat2(dirfd, from, dirfd, to, RENAME_NOREPLACE);

	/* A filesystem without NOREPLACE; the name has the time in it. */
	return err == -EINVAL ? sys_renameat2(dirfd, from, dirfd, to, 0) : err;
}

/* The database first: a WAL without its database is thrown away by SQLite, a database
 * without its WAL would silently be an older one. */
static errint_t set_aside(struct catalog *c, char **cause)
{
	struct timespec now = clock_now();
	char text[32];
	struct tm tm;
	unsigned n;
	errint_t err;

	gmtime_r(&now.tv_sec, &tm);
	(void)strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &tm);
	for (n = 0; n < 1000; n++) {
		cleanup_free char *to = aside_name(text, n, "");

		err = rename_aside(c->dirfd, DB_NAME, to);
		if (err != -EEXIST)
			break;
	}
	if (err && err != -ENOENT)
		return set_cause_errno(cause, err, "'%s' cannot be set aside", c->path);
	for (unsigned i = 0; i < 2; i++) {
		static const char *const suffixes[] = {"-wal", "-shm"};
		cleanup_free char *from = xasprintf(DB_NAME "%s", suffixes[i]);
		cleanup_free char *to = aside_name(text, n, suffixes[i]);

		err = rename_aside(c->dirfd, from, to);
		if (err && err != -ENOENT)
			(void)sys_unlinkat(c->dirfd, from, 0);
	}
	return 0;
}

/* Makes sure that the name is a regular file of ours with mode 0600; the umask does not
 * matter, and SQLite gives its other files the same mode. */
static errint_t make_file(struct catalog *c, char **cause)
{
	static const char *const names[] = {DB_NAME, DB_NAME "-wal", DB_NAME "-shm"};
	struct stat st, dir;
	int fd;
	errint_t err = sys_fstatat(c->dirfd, DB_NAME, &st, AT_SYMLINK_NOFOLLOW);
	bool exists = err == 0;

	if (!err)
		err = sys_fstat(c->dirfd, &dir);
	/* SQLite follows links and writes whatever it finds. */
	for (size_t i = 0; !err && i < ARRAY_LEN(names); i++) {
		err = sys_fstatat(c->dirfd, names[i], &st, AT_SYMLINK_NOFOLLOW);
		if (!err && !private_is_own_file(&st, &dir))
			return set_cause(
			    cause, -EUCLEAN,
			    "\"%s\" is no regular file of ours, or has another "
			    "name too",
			    names[i]);
		err = err == -ENOENT ? 0 : err;
	}
	if (exists || err != -ENOENT)
		return err;
	/* Left by a database that somebody deleted. */
	(void)sys_unlinkat(c->dirfd, DB_NAME "-wal", 0);
	(void)sys_unlinkat(c->dirfd, DB_NAME "-shm", 0);
	fd = sys_openat(c->dirfd, DB_NAME, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
	if (fd < 0)
		return set_cause_errno(cause, fd, "'%s' cannot be made", c->path);
	err = sys_fchmod(fd, 0600);
	(void)sys_close(fd);
	return err;
}

/* ---- connecting ---- */

static void drop_reader(struct catalog *c)
{
	lock_take(&c->read_lock);
	db_close(&c->reader);
	lock_drop(&c->read_lock);
}

static void disconnect(struct catalog *c)
{
	drop_reader(c);
	db_close(&c->writer);
}

static bool is_small(const struct catalog *c)
{
	struct stat st;

	return !sys_fstatat(c->dirfd, DB_NAME, &st, 0) && st.st_size <= CHECK_AT_OPEN;
}

/* Opens both connections on the file as it is. */
static errint_t connect_once(struct catalog *c, char **cause)
{
	struct db reader;
	bool unclean = false;
	errint_t err = make_file(c, cause);

	if (err)
		return err;
	err = db_open_writer(&c->writer, c->dirfd, c->path, &c->pool, &unclean, cause);
	if (err)
		return err;
	if (unclean && is_small(c)) {
		err = db_quick_check(&c->writer, &c->closing);
		if (err)
			(void)set_cause(cause, err, "%s", db_message(&c->writer));
	} else {
		c->check_wanted = unclean;
	}
	if (!err)
		err = db_open_reader(&reader, c->dirfd, cause);
	if (err) {
		db_close(&c->writer);
		return err;
	}
	lock_take(&c->read_lock);
	c->reader = reader;
	lock_drop(&c->read_lock);
	return 0;
}

/* Sets aside what is there and connects to a new database. `why` is what was wrong. */
static errint_t rebuild(struct catalog *c, const char *why, char **cause)
{
	errint_t err;

	disconnect(c);
	err = set_aside(c, cause);
	if (!err)
		log_warn(
		    "catalog '%s' set aside (%s), a new one is made: numbers, ctimes and "
		    "sizes are learnt again from the objects",
		    c->path, why);
	return err ? err : connect_once(c, cause);
}

static errint_t connect_db(struct catalog *c, bool *ret_rebuilt, char **cause)
{
	cleanup_free char *why = NULL;
	errint_t err = connect_once(c, &why);

	if (err == -EUCLEAN || err == -EXDEV) {
		err = rebuild(c, why ? why : "damaged", cause);
		*ret_rebuilt = !err;
	} else if (err) {
		(void)set_cause(cause, err, "%s", why ? why : strerror(-err));
	}
	return err;
}

/* ---- the writer thread ---- */

static void set_degraded_locked(struct catalog *c, errint_t err, const char *why)
{
	char *text = xasprintf("catalog '%s': %s; kept in memory until it works again",
	                       c->path, why ? why : strerror(-err));

	/* Once per trouble: the sentence may change while it lasts. */
	if (!c->degraded)
		log_err("%s", text);
	free(c->degraded);
	c->degraded = text;
}

static void clear_degraded_locked(struct catalog *c)
{
	if (!c->degraded)
		return;
	log_info("catalog '%s' works again", c->path);
	free(c->degraded);
	c->degraded = NULL;
}

static void schedule_locked(struct catalog *c, uint64_t at_ms)
{
	if (c->due_ms && c->due_ms <= at_ms)
		return;
	c->due_ms = at_ms ? at_ms : 1;
	pthread_cond_signal(&c->wake);
}

/* After every change, under lock. */
static void changed_locked(struct catalog *c)
{
	uint64_t now;

	c->changes++;
	if (c->degraded) /* the next attempt is scheduled, and soon enough */
		return;
	if (!c->due_ms) {
		now = clock_mono_ms();
		schedule_locked(c, now + CATALOG_BATCH_MS);
	} else if (batch_size(&c->pending) == BATCH_MOST) {
		schedule_locked(c, 1);
	}
}

static errint_t write_flight(struct catalog *c, bool was_damaged, bool *ret_rebuilt,
                             char **cause)
{
	cleanup_free char *why = NULL;
	errint_t err = 0;

	if (was_damaged) {
		err = rebuild(c, "a damaged page or row was read", cause);
		*ret_rebuilt = true;
	} else if (!c->writer.handle) {
		err = connect_db(c, ret_rebuilt, cause);
	}
	if (!err && c->check_wanted) {
		err = db_quick_check(&c->writer, &c->closing);
		if (err == -EINTR)
			err = 0;
		else
			c->check_wanted = false;
	}
	if (!err)
		err = batch_write(&c->writer, &c->flight, &why);
	else if (c->writer.handle)
		why = xstrdup(db_message(&c->writer));
	if (err == -EUCLEAN && c->writer.handle) {
		err = rebuild(c, why, cause);
		*ret_rebuilt = true;
		free(why);
		why = NULL;
		if (!err)
			err = batch_write(&c->writer, &c->flight, &why);
	}
	if (err && why)
		(void)set_cause(cause, err, "%s", why);
	return err;
}

/* One attempt at everything pending. Under lock, which it drops meanwhile. */
static void attempt_locked(struct catalog *c)
{
	cleanup_free char *cause = NULL;
	struct batch written = {0};
	uint64_t seen = c->changes;
	bool was_damaged = c->damaged, rebuilt = false;
	errint_t err;

	c->flight = c->pending;
	c->pending = (struct batch){0};
	c->damaged = false;
	c->due_ms = 0;
	lock_drop(&c->lock);

	err = write_flight(c, was_damaged, &rebuilt, &cause);

	lock_take(&c->lock);
	c->generation++;
	if (rebuilt)
		c->damaged = false; /* seen in the database that is gone */
	if (err) {
		batch_apply(&c->flight, &c->pending);
		c->pending = c->flight;
		set_degraded_locked(c, err, cause);
		schedule_locked(c, clock_mono_ms() + c->retry_ms);
		c->retry_ms = MIN_OF(c->retry_ms * 2, RETRY_MOST_MS);
	} else {
		written = c->flight;
		clear_degraded_locked(c);
		c->retry_ms = RETRY_FIRST_MS;
		/* Changes that came while it was degraded scheduled nothing. */
		if (!batch_is_empty(&c->pending))
			schedule_locked(c, clock_mono_ms() + CATALOG_BATCH_MS);
	}
	c->flight = (struct batch){0};
	c->attempted = seen;
	pthread_cond_broadcast(&c->attempted_cond);
	if (!batch_is_empty(&written)) {
		lock_drop(&c->lock);
		batch_clear(&written);
		lock_take(&c->lock);
	}
}

static void wait_until_due_locked(struct catalog *c)
{
	while (!atomic_load(&c->closing)) {
		uint64_t now;

		if (!c->due_ms) {
			lock_wait(&c->lock, &c->wake);
			continue;
		}
		now = clock_mono_ms();
		if (now >= c->due_ms)
			break;
		(void)lock_wait_ms(&c->lock, &c->wake, c->due_ms - now);
	}
}

static void *writer_main(void *arg)
{
	struct catalog *c = arg;
	bool last;

	lock_take(&c->lock);
	do {
		wait_until_due_locked(c);
		last = atomic_load(&c->closing);
		if (!last || !batch_is_empty(&c->pending))
			attempt_locked(c);
	} while (!last);
	lock_drop(&c->lock);
	return NULL;
}

/* ---- opening and closing ---- */

static void free_catalog(struct catalog *c)
{
	batch_clear(&c->pending);
	disconnect(c);
	if (c->dirfd >= 0)
		(void)sys_close(c->dirfd);
	pthread_cond_destroy(&c->wake);
	pthread_cond_destroy(&c->attempted_cond);
	lock_clear(&c->lock);
	lock_clear(&c->read_lock);
	free(c->degraded);
	free(c->path);
	free(c);
}

errint_t catalog_open(int pool_dirfd, const char *pool_path, const struct uuid *pool,
                      struct catalog **ret, bool *ret_rebuilt, char **cause)
{
	struct catalog *c = xcalloc(1, sizeof(*c));
	cleanup_free char *why = NULL;
	bool rebuilt = false;
	errint_t err;

	c->path = xasprintf("%s/" DB_NAME, pool_path);
	c->pool = *pool;
	c->retry_ms = RETRY_FIRST_MS;
	lock_init(&c->lock, LOCK_CATALOG);
	lock_init(&c->read_lock, LOCK_LEAF);
	lock_cond_init(&c->wake);
	lock_cond_init(&c->attempted_cond);
	c->dirfd = sys_openat(pool_dirfd, ".", O_RDONLY | O_DIRECTORY, 0);
	if (c->dirfd < 0) {
		err = set_cause_errno(cause, c->dirfd, "'%s' cannot be opened", pool_path);
		goto fail;
	}
	err = connect_db(c, &rebuilt, &why);
	if (err == -ENOTSUP) {
		(void)set_cause(cause, err, "%s", why);
		goto fail;
	}
	if (err) {
		lock_take(&c->lock);
		set_degraded_locked(c, err, why);
		schedule_locked(c, clock_mono_ms() + c->retry_ms);
		lock_drop(&c->lock);
	} else if (c->check_wanted) {
		c->due_ms = clock_mono_ms() + CATALOG_BATCH_MS;
	}
	err = thread_start(&c->thread, "catalog", writer_main, c);
	if (err) {
		(void)set_cause_errno(cause, err, "the catalog's thread cannot be started");
		goto fail;
	}
	*ret = c;
	if (ret_rebuilt)
		*ret_rebuilt = rebuilt;
	return 0;
fail:
	free_catalog(c);
	return err;
}

void catalog_close(struct catalog *c)
{
	if (!c)
		return;
	lock_take(&c->lock);
	atomic_store(&c->closing, true);
	pthread_cond_signal(&c->wake);
	lock_drop(&c->lock);
	(void)pthread_join(c->thread, NULL);

	/* An unfinished check is made up for at the next start. */
	drop_reader(c);
	if (c->writer.handle && !c->damaged && !c->check_wanted)
		(void)db_mark_clean(&c->writer);
	if (!batch_is_empty(&c->pending))
		log_warn(
		    "catalog '%s': the last %zu changes could not be written; they are "
		    "learnt again from the objects",
		    c->path, batch_size(&c->pending));
	free_catalog(c);
}

/* ---- look-ups ---- */

enum found { FOUND, GONE, UNKNOWN };

static enum found look_ident_locked(struct catalog *c, const struct ident *ident,
                                    struct catalog_file *ret)
{
	struct file_change *f = batch_file_of_ident(&c->pending, ident);

	if (!f) {
		f = batch_file_of_ident(&c->flight, ident);
		if (!f)
			return UNKNOWN;
		if (!f->gone && batch_covers_ino(&c->pending, f->row.ino))
			return GONE;
	}
	if (f->gone)
		return GONE;
	*ret = f->row;
	return FOUND;
}

static enum found look_ino_locked(struct catalog *c, uint64_t ino, struct catalog_file *ret)
{
	struct file_change *f = batch_file_of_ino(&c->pending, ino);

	if (!f) {
		if (batch_frees_ino(&c->pending, ino))
			return GONE;
		f = batch_file_of_ino(&c->flight, ino);
		if (!f)
			return batch_frees_ino(&c->flight, ino) ? GONE : UNKNOWN;
		if (batch_file_of_ident(&c->pending, &f->row.ident))
			return GONE;
	}
	*ret = f->row;
	return FOUND;
}

/* Whether a row read from the database is out of date: something above holds its identity
 * or its number. */
static bool is_covered_locked(struct catalog *c, const struct catalog_file *row)
{
	return batch_file_of_ident(&c->pending, &row->ident) ||
	       batch_file_of_ident(&c->flight, &row->ident) ||
	       batch_covers_ino(&c->pending, row->ino) ||
	       batch_covers_ino(&c->flight, row->ino);
}

/* A look-up that began at `generation` failed in the database. */
static void reader_failed(struct catalog *c, uint64_t generation, errint_t err,
                          const char *why)
{
	lock_take(&c->lock);
	if (err != -EUCLEAN) {
		set_degraded_locked(c, err, why);
		schedule_locked(c, clock_mono_ms() + c->retry_ms);
	} else if (generation == c->generation) { /* else it may be replaced by now */
		c->damaged = true;
		schedule_locked(c, 1);
	}
	lock_drop(&c->lock);
}

static bool read_file(struct catalog *c, uint64_t generation, const struct ident *ident,
                      uint64_t ino, struct catalog_file *ret)
{
	cleanup_free char *why = NULL;
	errint_t err = -ENOENT;

	lock_take(&c->read_lock);
	if (c->reader.handle) {
		err = ident ? db_file_get(&c->reader, ident, ret)
		            : db_file_by_ino(&c->reader, ino, ret);
		if (err && err != -ENOENT)
			why = xstrdup(db_message(&c->reader));
	}
	lock_drop(&c->read_lock);
	if (err && err != -ENOENT)
		reader_failed(c, generation, err, why);
	return !err;
}

static enum found look_locked(struct catalog *c, const struct ident *ident, uint64_t ino,
                              struct catalog_file *ret)
{
	return ident ? look_ident_locked(c, ident, ret) : look_ino_locked(c, ino, ret);
}

/* By identity, or by number where ident is NULL. */
static bool look_up(struct catalog *c, const struct ident *ident, uint64_t ino,
                    struct catalog_file *ret)
{
	enum found found;
	uint64_t generation;
	bool again;

	do {
		bool have;

		lock_take(&c->lock);
		found = look_locked(c, ident, ino, ret);
		generation = c->generation;
		lock_drop(&c->lock);
		if (found != UNKNOWN)
			break;
		have = read_file(c, generation, ident, ino, ret);
		found = have ? FOUND : GONE;
		lock_take(&c->lock);
		again = generation != c->generation;
		/* Covered by what was put meanwhile under this key: that counts. Under
		 * another key (a number has one identity): this row is gone. */
		if (!again && have && is_covered_locked(c, ret))
			found = look_locked(c, ident, ino, ret);
		lock_drop(&c->lock);
	} while (again);
	return found == FOUND;
}

bool catalog_file_get(struct catalog *c, const struct ident *ident,
                      struct catalog_file *ret)
{
	struct catalog_file row;

	if (ident_is_none(ident) || !look_up(c, ident, 0, &row))
		return false;
	*ret = row;
	return true;
}

bool catalog_file_by_ino(struct catalog *c, uint64_t ino, struct catalog_file *ret)
{
	struct catalog_file row;

	if (!ino || !look_up(c, NULL, ino, &row))
		return false;
	*ret = row;
	return true;
}

bool catalog_scratch_get(struct catalog *c, uint64_t ino, struct catalog_scratch *ret)
{
	cleanup_free char *why = NULL;
	struct catalog_scratch row = {0};
	errint_t err = -ENOENT;
	uint64_t generation;
	const struct scratch_change *s;

	lock_take(&c->lock);
	generation = c->generation;
	s = batch_scratch(&c->pending, ino);
	if (!s)
		s = batch_scratch(&c->flight, ino);
	if (s && !s->gone) {
		row = s->row;
		row.last_error = s->row.last_error ? xstrdup(s->row.last_error) : NULL;
		err = 0;
	}
	lock_drop(&c->lock);
	if (!s) {
		lock_take(&c->read_lock);
		if (c->reader.handle)
			err = db_scratch_get(&c->reader, ino, &row);
		if (err && err != -ENOENT)
			why = xstrdup(db_message(&c->reader));
		lock_drop(&c->read_lock);
		if (err && err != -ENOENT)
			reader_failed(c, generation, err, why);
	}
	if (err)
		return false;
	*ret = row;
	return true;
}

bool catalog_meta_get(struct catalog *c, const char *key, char **ret)
{
	cleanup_free char *why = NULL;
	char *value = NULL;
	errint_t err = -ENOENT;
	uint64_t generation;
	const struct meta_change *m;

	lock_take(&c->lock);
	generation = c->generation;
	m = batch_meta(&c->pending, key);
	if (!m)
		m = batch_meta(&c->flight, key);
	if (m)
		value = xstrdup(m->value);
	lock_drop(&c->lock);
	if (!value) {
		lock_take(&c->read_lock);
		if (c->reader.handle)
			err = db_meta_get(&c->reader, key, &value);
		if (err && err != -ENOENT)
			why = xstrdup(db_message(&c->reader));
		lock_drop(&c->read_lock);
		if (err && err != -ENOENT)
			reader_failed(c, generation, err, why);
	}
	if (!value)
		return false;
	*ret = value;
	return true;
}

/* ---- changes ---- */

void catalog_file_put(struct catalog *c, const struct catalog_file *row)
{
	INVARIANT(row->ino && !ident_is_none(&row->ident));
	lock_take(&c->lock);
	batch_put_file(&c->pending, row);
	changed_locked(c);
	lock_drop(&c->lock);
}

void catalog_file_delete(struct catalog *c, const struct ident *ident)
{
	if (ident_is_none(ident))
		return;
	lock_take(&c->lock);
	(void)batch_delete_file(&c->pending, ident);
	changed_locked(c);
	lock_drop(&c->lock);
}

void catalog_file_replace(struct catalog *c, const struct ident *old,
                          const struct catalog_file *row)
{
	INVARIANT(row->ino && !ident_is_none(&row->ident));
	lock_take(&c->lock);
	if (!ident_is_none(old))
		(void)batch_delete_file(&c->pending, old);
	batch_put_file(&c->pending, row);
	changed_locked(c);
	lock_drop(&c->lock);
}

void catalog_scratch_put(struct catalog *c, const struct catalog_scratch *row)
{
	struct scratch_change *s;

	lock_take(&c->lock);
	s = batch_take_scratch(&c->pending, row->ino);
	s->row = *row;
	s->row.last_error = row->last_error ? xstrdup(row->last_error) : NULL;
	s->gone = false;
	changed_locked(c);
	lock_drop(&c->lock);
}

void catalog_scratch_delete(struct catalog *c, uint64_t ino)
{
	lock_take(&c->lock);
	(void)batch_take_scratch(&c->pending, ino);
	changed_locked(c);
	lock_drop(&c->lock);
}

void catalog_meta_set(struct catalog *c, const char *key, const char *value)
{
	lock_take(&c->lock);
	batch_put_meta(&c->pending, key, value);
	changed_locked(c);
	lock_drop(&c->lock);
}

void catalog_commit(struct catalog *c)
{
	uint64_t want;

	lock_take(&c->lock);
	if (c->degraded)
		c->changes++; /* a try, whether there is something to write or not */
	want = c->changes;
	while (c->attempted < want) {
		schedule_locked(c, 1);
		lock_wait(&c->lock, &c->attempted_cond);
	}
	lock_drop(&c->lock);
}

/* ---- status ---- */

void catalog_get_totals(struct catalog *c, struct catalog_totals *ret)
{
	struct catalog_totals totals = {0};
	const struct file_change *f, *next;
	errint_t err = -ENOENT;

	catalog_commit(c);
	lock_take(&c->read_lock);
	if (c->reader.handle)
		err = db_totals(&c->reader, &totals);
	lock_drop(&c->read_lock);
	if (err) { /* no database: what memory holds */
		totals = (struct catalog_totals){0};
		lock_take(&c->lock);
		for (f = c->pending.by_ident; f; f = next) {
			next = f->by_ident.next;
			if (f->gone || !S_ISREG(f->row.type))
				continue;
			totals.files++;
			totals.stored_bytes += f->row.stored_size;
			if (f->row.logical_size != OBJECT_SIZE_UNKNOWN)
				totals.logical_bytes += f->row.logical_size;
		}
		lock_drop(&c->lock);
	}
	*ret = totals;
}

char *catalog_degraded(struct catalog *c)
{
	char *text;

	lock_take(&c->lock);
	text = c->degraded ? xstrdup(c->degraded) : NULL;
	lock_drop(&c->lock);
	return text;
}
