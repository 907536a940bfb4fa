/*
 * The catalog's tables and every statement on them.
 *
 *   meta     key, value          pool (UUID of the pool it indexes), schema (user_version once
 *                                more: that one is a bare number in the header, and one
 *                                flipped bit must not make a newer catalog of it), clean
 *                                ("1": closed properly), and what catalog_meta_set() is given
 *   file     one row a store inode, key its identity, number unique; `sum` is the XXH64 of
 *            all other columns: SQLite has no checksums, and a flipped bit in a size must
 *            not be believed
 *   scratch  one row a scratch, key its number: mirror of the records
 *   totals   one row: files, logical and stored bytes of the regular files, kept by
 *            triggers in the transaction that changes `file`
 *
 * Times are two columns, so that the whole range of a timespec is exact. Identities and
 * hashes are 16-byte blobs, big-endian, as the hash is usually printed. A size that is not
 * known is NULL.
 *
 * How the schema moves: PRAGMA user_version counts; upgrade[v] takes version v to v + 1;
 * all steps that are needed run in one transaction, a new file begins at 0. Add a step and
 * raise CATALOG_SCHEMA; never change a step that was released.
 *
 * WAL, synchronous=NORMAL: a commit survives the death of the process, and after a power
 * cut the database is consistent, if a little older. No mmap: an I/O error in a mapping
 * is a SIGBUS, an I/O error in a read is a degraded catalog.
 */
#include "catalog/schema.h"

#include "catalog/faultvfs.h"

#include <endian.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/sysio.h"

#define APPLICATION_ID 0x434c4152 /* "CLAR" */
#define BUSY_MS        5000
#define VFS_NAME       "cellar"

/* recursive_triggers: REPLACE must fire the delete trigger. cache_size, in KiB: keys are
 * random, so a large batch touches every page; what does not fit is written twice. */
static const char writer_settings[] =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA recursive_triggers=ON;"
    "PRAGMA journal_size_limit=8388608; PRAGMA cache_size=-8192;";

static const char *const upgrade[CATALOG_SCHEMA] = {
    /* 0 -> 1 */
    "CREATE TABLE meta("
    "  key TEXT NOT NULL PRIMARY KEY,"
    "  value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE file("
    "  ident BLOB NOT NULL PRIMARY KEY,"
    "  ino INTEGER NOT NULL UNIQUE,"
    "  type INTEGER NOT NULL,"
    "  kind INTEGER NOT NULL,"
    "  logical_size INTEGER,"
    "  stored_size INTEGER NOT NULL,"
    "  stored_mtime_s INTEGER NOT NULL,"
    "  stored_mtime_ns INTEGER NOT NULL,"
    "  trailer BLOB NOT NULL,"
    "  seq INTEGER NOT NULL,"
    "  ctime_s INTEGER NOT NULL,"
    "  ctime_ns INTEGER NOT NULL,"
    "  seen_ctime_s INTEGER NOT NULL,"
    "  seen_ctime_ns INTEGER NOT NULL,"
    "  mtime_s INTEGER NOT NULL,"
    "  mtime_ns INTEGER NOT NULL,"
    "  level INTEGER NOT NULL,"
    "  frames INTEGER NOT NULL,"
    "  dead_bytes INTEGER NOT NULL,"
    "  verified INTEGER NOT NULL,"
    "  sum INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE scratch("
    "  ino INTEGER NOT NULL PRIMARY KEY,"
    "  dirty INTEGER NOT NULL,"
    "  pinned INTEGER NOT NULL,"
    "  bytes INTEGER NOT NULL,"
    "  last_use INTEGER NOT NULL,"
    "  last_error TEXT);"
    "CREATE TABLE totals("
    "  one INTEGER NOT NULL PRIMARY KEY CHECK(one = 1),"
    "  files INTEGER NOT NULL,"
    "  logical_bytes INTEGER NOT NULL,"
    "  stored_bytes INTEGER NOT NULL);"
    "INSERT INTO totals VALUES(1, 0, 0, 0);"
    /* 32768 is S_IFREG */
    "CREATE TRIGGER file_added AFTER INSERT ON file WHEN new.type = 32768 BEGIN"
    "  UPDATE totals SET files = files + 1,"
    "    logical_bytes = logical_bytes + coalesce(new.logical_size, 0),"
    "    stored_bytes = stored_bytes + new.stored_size;"
    "END;"
    "CREATE TRIGGER file_removed AFTER DELETE ON file WHEN old.type = 32768 BEGIN"
    "  UPDATE totals SET files = files - 1,"
    "    logical_bytes = logical_bytes - coalesce(old.logical_size, 0),"
    "    stored_bytes = stored_bytes - old.stored_size;"
    "END;",
};

#define FILE_COLUMNS                                                                       \
	"ident, ino, type, kind, logical_size, stored_size, stored_mtime_s, "              \
	"stored_mtime_ns, trailer, seq, ctime_s, ctime_ns, seen_ctime_s, seen_ctime_ns, "  \
	"mtime_s, mtime_ns, level, frames, dead_bytes, verified, sum"

static const char *const statement_text[DB_STATEMENT_COUNT] = {
    [DB_FILE_GET] = "SELECT " FILE_COLUMNS " FROM file WHERE ident = ?1",
    [DB_FILE_BY_INO] = "SELECT " FILE_COLUMNS " FROM file WHERE ino = ?1",
    [DB_SCRATCH_GET] =
        "SELECT dirty, pinned, bytes, last_use, last_error FROM scratch WHERE ino = ?1",
    [DB_META_GET] = "SELECT value FROM meta WHERE key = ?1",
    [DB_TOTALS] = "SELECT files, logical_bytes, stored_bytes FROM totals",
    [DB_BEGIN] = "BEGIN IMMEDIATE",
    [DB_COMMIT] = "COMMIT",
    [DB_ROLLBACK] = "ROLLBACK",
    [DB_FILE_PUT] = "INSERT OR REPLACE INTO file(" FILE_COLUMNS ") VALUES(?1, ?2, ?3, ?4, "
                    "?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, "
                    "?19, ?20, ?21)",
    [DB_FILE_DELETE] = "DELETE FROM file WHERE ident = ?1",
    [DB_FILE_DELETE_INO] = "DELETE FROM file WHERE ino = ?1",
    [DB_SCRATCH_PUT] =
        "INSERT OR REPLACE INTO scratch(ino, dirty, pinned, bytes, last_use, "
        "last_error) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
    [DB_SCRATCH_DELETE] = "DELETE FROM scratch WHERE ino = ?1",
    [DB_META_PUT] = "INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)",
};

/* ---- errors ---- */

static errint_t error_of(sqlite3 *h, int rc)
{
	int sys = h ? sqlite3_system_errno(h) : 0;

	switch (rc & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE:
		return 0;
	case SQLITE_ERROR: /* our SQL is right: what it is run on is not */
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_FORMAT:
		return -EUCLEAN;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_READONLY:
		return -EROFS;
	case SQLITE_INTERRUPT:
		return -EINTR;
	case SQLITE_PERM:
	case SQLITE_AUTH:
		return -EACCES;
	case SQLITE_CANTOPEN:
	case SQLITE_IOERR:
		return sys ? -sys : -EIO;
	default:
		return -EIO;
	}
}

const char *db_message(const struct db *db)
{
	if (db->problem)
		return db->problem;
	return db->handle ? sqlite3_errmsg(db->handle) : "the database is not open";
}

static errint_t damaged(struct db *db, const char *problem)
{
	db->problem = problem;
	return -EUCLEAN;
}

/* ---- running statements ---- */

static errint_t exec(struct db *db, const char *sql)
{
	return error_of(db->handle, sqlite3_exec(db->handle, sql, NULL, NULL, NULL));
}

/* The single integer that sql yields. */
static errint_t exec_int(struct db *db, const char *sql, int64_t *ret)
{
	sqlite3_stmt *s = NULL;
	int rc = sqlite3_prepare_v2(db->handle, sql, -1, &s, NULL);

	if (rc == SQLITE_OK)
		rc = sqlite3_step(s);
	if (rc == SQLITE_ROW)
		*ret = sqlite3_column_int64(s, 0);
	sqlite3_finalize(s);
	return rc == SQLITE_DONE ? -ENOENT : error_of(db->handle, rc);
}

static errint_t prepare(struct db *db, enum db_statement from, enum db_statement to)
{
	for (unsigned i = from; i < to; i++) {
		int rc =
		    sqlite3_prepare_v3(db->handle, statement_text[i], -1,
		                       SQLITE_PREPARE_PERSISTENT, &db->statements[i], NULL);

		if (rc != SQLITE_OK)
			return error_of(db->handle, rc);
	}
	return 0;
}

/* Steps once: 1 for a row (the caller resets when it has read it), 0 when done (reset here),
 * or an error (reset here). */
static int step_once(struct db *db, sqlite3_stmt *s)
{
	int rc = sqlite3_step(s);

	db->problem = NULL;
	if (rc == SQLITE_ROW)
		return 1;
	sqlite3_reset(s);
	return error_of(db->handle, rc);
}

static errint_t run(struct db *db, enum db_statement which)
{
	sqlite3_stmt *s = db->statements[which];
	int got = step_once(db, s);

	if (got > 0)
		sqlite3_reset(s);
	return got > 0 ? 0 : got;
}

static void bind_int(sqlite3_stmt *s, int at, int64_t value)
{
	int rc = sqlite3_bind_int64(s, at, value);

	INVARIANT(rc == SQLITE_OK || rc == SQLITE_NOMEM);
}

static void bind_text(sqlite3_stmt *s, int at, const char *text)
{
	int rc = text ? sqlite3_bind_text(s, at, text, -1, SQLITE_TRANSIENT)
	              : sqlite3_bind_null(s, at);

	INVARIANT(rc == SQLITE_OK || rc == SQLITE_NOMEM || rc == SQLITE_TOOBIG);
}

static void bind_pair(sqlite3_stmt *s, int at, const uint64_t w[2])
{
	uint64_t be[2] = {htobe64(w[0]), htobe64(w[1])};
	int rc = sqlite3_bind_blob(s, at, be, sizeof(be), SQLITE_TRANSIENT);

	INVARIANT(rc == SQLITE_OK || rc == SQLITE_NOMEM);
}

static bool column_pair(sqlite3_stmt *s, int at, uint64_t ret[2])
{
	const void *p = sqlite3_column_blob(s, at);
	uint64_t be[2];

	if (!p || sqlite3_column_bytes(s, at) != (int)sizeof(be))
		return false;
	memcpy(be, p, sizeof(be));
	ret[0] = be64toh(be[0]);
	ret[1] = be64toh(be[1]);
	return true;
}

static void bind_time(sqlite3_stmt *s, int at, const struct timespec *ts)
{
	bind_int(s, at, ts->tv_sec);
	bind_int(s, at + 1, ts->tv_nsec);
}

static struct timespec column_time(sqlite3_stmt *s, int at)
{
	return (struct timespec){
	    .tv_sec = sqlite3_column_int64(s, at),
	    .tv_nsec = sqlite3_column_int64(s, at + 1),
	};
}

/* ---- file ---- */

static int64_t file_sum(const struct catalog_file *f)
{
	const uint64_t w[] = {
	    htole64(f->ident.w[0]),
	    htole64(f->ident.w[1]),
	    htole64(f->ino),
	    htole64(f->type),
	    htole64(f->kind),
	    htole64(f->logical_size),
	    htole64(f->stored_size),
	    htole64((uint64_t)f->stored_mtime.tv_sec),
	    htole64((uint64_t)f->stored_mtime.tv_nsec),
	    htole64(f->trailer_hash[0]),
	    htole64(f->trailer_hash[1]),
	    htole64(f->seq),
	    htole64((uint64_t)f->ctime.tv_sec),
	    htole64((uint64_t)f->ctime.tv_nsec),
	    htole64((uint64_t)f->seen_ctime.tv_sec),
	    htole64((uint64_t)f->seen_ctime.tv_nsec),
	    htole64((uint64_t)f->mtime.tv_sec),
	    htole64((uint64_t)f->mtime.tv_nsec),
	    htole64((uint64_t)(int64_t)f->level),
	    htole64(f->frames),
	    htole64(f->dead_bytes),
	    htole64((uint64_t)f->verified),
	};

	return (int64_t)XXH64(w, sizeof(w), 0);
}

errint_t db_file_put(struct db *db, const struct catalog_file *row)
{
	sqlite3_stmt *s = db->statements[DB_FILE_PUT];

	bind_pair(s, 1, row->ident.w);
	bind_int(s, 2, (int64_t)row->ino);
	bind_int(s, 3, row->type);
	bind_int(s, 4, row->kind);
	if (row->logical_size == OBJECT_SIZE_UNKNOWN)
		(void)sqlite3_bind_null(s, 5);
	else
		bind_int(s, 5, (int64_t)row->logical_size);
	bind_int(s, 6, (int64_t)row->stored_size);
	bind_time(s, 7, &row->stored_mtime);
	bind_pair(s, 9, row->trailer_hash);
	bind_int(s, 10, (int64_t)row->seq);
	bind_time(s, 11, &row->ctime);
	bind_time(s, 13, &row->seen_ctime);
	bind_time(s, 15, &row->mtime);
	bind_int(s, 17, row->level);
	bind_int(s, 18, row->frames);
	bind_int(s, 19, (int64_t)row->dead_bytes);
	bind_int(s, 20, row->verified);
	bind_int(s, 21, file_sum(row));
	return run(db, DB_FILE_PUT);
}

static errint_t read_file(struct db *db, sqlite3_stmt *s, struct catalog_file *ret)
{
	struct catalog_file f = {
	    .ino = (uint64_t)sqlite3_column_int64(s, 1),
	    .type = (uint32_t)sqlite3_column_int64(s, 2),
	    .kind = (uint32_t)sqlite3_column_int64(s, 3),
	    .logical_size = sqlite3_column_type(s, 4) == SQLITE_NULL
	                        ? OBJECT_SIZE_UNKNOWN
	                        : (uint64_t)sqlite3_column_int64(s, 4),
	    .stored_size = (uint64_t)sqlite3_column_int64(s, 5),
	    .stored_mtime = column_time(s, 6),
	    .seq = (uint64_t)sqlite3_column_int64(s, 9),
	    .ctime = column_time(s, 10),
	    .seen_ctime = column_time(s, 12),
	    .mtime = column_time(s, 14),
	    .level = (int32_t)sqlite3_column_int64(s, 16),
	    .frames = (uint32_t)sqlite3_column_int64(s, 17),
	    .dead_bytes = (uint64_t)sqlite3_column_int64(s, 18),
	    .verified = sqlite3_column_int64(s, 19),
	};

	if (!column_pair(s, 0, f.ident.w) || !column_pair(s, 8, f.trailer_hash) ||
	    sqlite3_column_int64(s, 20) != file_sum(&f))
		return damaged(db, "a row does not match its checksum");
	*ret = f;
	return 0;
}

static errint_t get_file(struct db *db, enum db_statement which, struct catalog_file *ret)
{
	sqlite3_stmt *s = db->statements[which];
	int got = step_once(db, s);
	errint_t err;

	if (got <= 0)
		return got ? got : -ENOENT;
	err = read_file(db, s, ret);
	sqlite3_reset(s);
	return err;
}

errint_t db_file_get(struct db *db, const struct ident *ident, struct catalog_file *ret)
{
	bind_pair(db->statements[DB_FILE_GET], 1, ident->w);
	return get_file(db, DB_FILE_GET, ret);
}

errint_t db_file_by_ino(struct db *db, uint64_t ino, struct catalog_file *ret)
{
	bind_int(db->statements[DB_FILE_BY_INO], 1, (int64_t)ino);
	return get_file(db, DB_FILE_BY_INO, ret);
}

errint_t db_file_delete(struct db *db, const struct ident *ident)
{
	bind_pair(db->statements[DB_FILE_DELETE], 1, ident->w);
	return run(db, DB_FILE_DELETE);
}

errint_t db_file_delete_ino(struct db *db, uint64_t ino)
{
	bind_int(db->statements[DB_FILE_DELETE_INO], 1, (int64_t)ino);
	return run(db, DB_FILE_DELETE_INO);
}

/* ---- scratch, meta, totals ---- */

static char *column_text(sqlite3_stmt *s, int at)
{
	const unsigned char *text = sqlite3_column_text(s, at);

	return text ? xstrdup((const char *)text) : NULL;
}

errint_t db_scratch_get(struct db *db, uint64_t ino, struct catalog_scratch *ret)
{
	sqlite3_stmt *s = db->statements[DB_SCRATCH_GET];
	int got;

	bind_int(s, 1, (int64_t)ino);
	got = step_once(db, s);
	if (got <= 0)
		return got ? got : -ENOENT;
	*ret = (struct catalog_scratch){
	    .ino = ino,
	    .dirty = sqlite3_column_int64(s, 0),
	    .pinned = sqlite3_column_int64(s, 1),
	    .bytes = (uint64_t)sqlite3_column_int64(s, 2),
	    .last_use = sqlite3_column_int64(s, 3),
	    .last_error = column_text(s, 4),
	};
	sqlite3_reset(s);
	return 0;
}

errint_t db_scratch_put(struct db *db, const struct catalog_scratch *row)
{
	sqlite3_stmt *s = db->statements[DB_SCRATCH_PUT];

	bind_int(s, 1, (int64_t)row->ino);
	bind_int(s, 2, row->dirty);
	bind_int(s, 3, row->pinned);
	bind_int(s, 4, (int64_t)row->bytes);
	bind_int(s, 5, row->last_use);
	bind_text(s, 6, row->last_error);
	return run(db, DB_SCRATCH_PUT);
}

errint_t db_scratch_delete(struct db *db, uint64_t ino)
{
	bind_int(db->statements[DB_SCRATCH_DELETE], 1, (int64_t)ino);
	return run(db, DB_SCRATCH_DELETE);
}

errint_t db_meta_get(struct db *db, const char *key, char **ret)
{
	sqlite3_stmt *s = db->statements[DB_META_GET];
	int got;

	bind_text(s, 1, key);
	got = step_once(db, s);
	if (got <= 0)
		return got ? got : -ENOENT;
	*ret = column_text(s, 0);
	sqlite3_reset(s);
	return *ret ? 0 : damaged(db, "a meta value is missing");
}

errint_t db_meta_put(struct db *db, const char *key, const char *value)
{
	sqlite3_stmt *s = db->statements[DB_META_PUT];

	bind_text(s, 1, key);
	bind_text(s, 2, value);
	return run(db, DB_META_PUT);
}

errint_t db_totals(struct db *db, struct catalog_totals *ret)
{
	sqlite3_stmt *s = db->statements[DB_TOTALS];
	int got = step_once(db, s);

	if (got <= 0)
		return got ? got : damaged(db, "the row of totals is missing");
	ret->files = (uint64_t)sqlite3_column_int64(s, 0);
	ret->logical_bytes = (uint64_t)sqlite3_column_int64(s, 1);
	ret->stored_bytes = (uint64_t)sqlite3_column_int64(s, 2);
	sqlite3_reset(s);
	return 0;
}

/* ---- transactions ---- */

errint_t db_begin(struct db *db)
{
	return run(db, DB_BEGIN);
}

errint_t db_commit(struct db *db)
{
	return run(db, DB_COMMIT);
}

void db_rollback(struct db *db)
{
	/* Some errors have rolled back already. */
	if (!sqlite3_get_autocommit(db->handle))
		(void)run(db, DB_ROLLBACK);
}

/* ---- opening ---- */

/* SQLite opens by path, as often as it likes, and first resolves the links in it: whoever can put
 * another directory in the place of the pool's would have the daemon write where a link leads. So
 * the path goes by the pool's descriptor, and is taken as it is. All else is SQLite's own. */
static int keep_path(sqlite3_vfs *vfs, const char *path, int size, char *ret)
{
	return snprintf(ret, (size_t)size, "%s", path) < size ? SQLITE_OK : SQLITE_CANTOPEN;
}

static sqlite3_vfs by_descriptor;

static void register_vfs(void)
{
	const sqlite3_vfs *usual = sqlite3_vfs_find(NULL);

	if (!usual)
		return;
	by_descriptor = *usual;
	by_descriptor.zName = VFS_NAME;
	by_descriptor.pNext = NULL;
	by_descriptor.xFullPathname = keep_path;
	(void)sqlite3_vfs_register(&by_descriptor, 0);
}

static errint_t connect_to(struct db *db, int dirfd)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	cleanup_free char *path = xasprintf("%s/" DB_NAME, fd_path(dirfd).s);
	int rc;

	fault_vfs_register();
	*db = (struct db){0};
	(void)pthread_once(&once, register_vfs);
	/* READWRITE for the reader too: it has to map the WAL's index. */
	rc = sqlite3_open_v2(path, &db->handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
	                     VFS_NAME);
	if (rc != SQLITE_OK)
		return error_of(db->handle, rc);
	(void)sqlite3_extended_result_codes(db->handle, 1);
	(void)sqlite3_busy_timeout(db->handle, BUSY_MS);
	return exec(db, "PRAGMA mmap_size=0; PRAGMA trusted_schema=OFF;");
}

static errint_t make_schema(struct db *db, int64_t version, const struct uuid *pool)
{
	struct uuid_text text = uuid_format(pool);
	char sql[192];
	errint_t err = exec(db, "BEGIN IMMEDIATE");

	if (err)
		return err;
	for (int64_t v = version; v < CATALOG_SCHEMA && !err; v++)
		err = exec(db, upgrade[v]);
	if (!err) {
		(void)snprintf(sql, sizeof(sql),
		               "PRAGMA application_id=%d; PRAGMA user_version=%d;"
		               "INSERT OR REPLACE INTO meta VALUES('schema', '%d');",
		               APPLICATION_ID, CATALOG_SCHEMA, CATALOG_SCHEMA);
		err = exec(db, sql);
	}
	if (!err && !version) {
		(void)snprintf(sql, sizeof(sql), "INSERT INTO meta VALUES('pool', '%s');",
		               text.s);
		err = exec(db, sql);
	}
	if (!err)
		err = exec(db, "COMMIT");
	if (err && !sqlite3_get_autocommit(db->handle))
		(void)exec(db, "ROLLBACK");
	return err;
}

/* Is it ours, and of which version? Makes or migrates the tables. */
static errint_t identify(struct db *db, const char *path, const struct uuid *pool,
                         bool *ret_new, char **cause)
{
	int64_t application = 0, version = 0, tables = 0, said = 0;
	errint_t err = exec_int(db, "PRAGMA application_id", &application);

	if (!err)
		err = exec_int(db, "PRAGMA user_version", &version);
	if (!err)
		err = exec_int(db, "SELECT count(*) FROM sqlite_master", &tables);
	if (err)
		return err;
	*ret_new = !application && !version && !tables;
	if (!*ret_new && (application != APPLICATION_ID || version < 1))
		return damaged(db, "it is a database of some other program");
	if (version > CATALOG_SCHEMA &&
	    (exec_int(db, "SELECT value FROM meta WHERE key = 'schema'", &said) ||
	     said != version))
		return damaged(db, "its version is not the one that it was made with");
	if (version > CATALOG_SCHEMA)
		return set_cause(
		    cause, -ENOTSUP,
		    "the catalog '%s' has schema %lld, this cellar knows up to %d: "
		    "use the newer cellar, or move the catalog away",
		    path, (long long)version, CATALOG_SCHEMA);
	return version < CATALOG_SCHEMA ? make_schema(db, version, pool) : 0;
}

/* A header whose version of the file format is too high makes SQLite read only, whatever the
 * file itself allows: one flipped bit, and no database would be written any more. */
static errint_t check_writable(struct db *db, int dirfd)
{
	int64_t ignored;
	errint_t err = exec_int(db, "PRAGMA application_id", &ignored);
	int fd;

	if (err || sqlite3_db_readonly(db->handle, "main") != 1)
		return err;
	fd = sys_openat(dirfd, DB_NAME, O_RDWR | O_NOFOLLOW, 0);
	if (fd < 0)
		return fd;
	(void)sys_close(fd);
	return damaged(db, "its header says that nobody may write it");
}

static errint_t check_pool(struct db *db, const struct uuid *pool)
{
	cleanup_free char *text = NULL;
	struct uuid found;
	errint_t err = db_meta_get(db, "pool", &text);

	if (err == -ENOENT || (!err && !uuid_parse(text, &found)))
		return damaged(db, "it does not say whose it is");
	if (!err && !uuid_equal(&found, pool)) {
		db->problem = "it belongs to another pool";
		return -EXDEV;
	}
	return err;
}

/* Durable, unlike other commits: a crash must be seen as one. Best effort: a full disk is
 * no reason not to read the catalog. */
static void mark_in_use(struct db *db)
{
	if (exec(db, "PRAGMA synchronous=FULL"))
		return;
	(void)db_meta_put(db, "clean", "0");
	(void)exec(db, "PRAGMA synchronous=NORMAL");
}

errint_t db_open_writer(struct db *db, int dirfd, const char *path, const struct uuid *pool,
                        bool *ret_unclean, char **cause)
{
	cleanup_free char *clean = NULL;
	bool is_new = false;
	errint_t err = connect_to(db, dirfd);

	if (!err)
		err = check_writable(db, dirfd);
	/* Looked at before journal_mode, which writes into the header of any database. */
	if (!err)
		err = identify(db, path, pool, &is_new, cause);
	if (!err)
		err = exec(db, writer_settings);
	if (!err)
		err = prepare(db, 0, DB_STATEMENT_COUNT);
	if (!err)
		err = check_pool(db, pool);
	if (err) {
		(void)set_cause(cause, err, "%s", db_message(db));
		db_close(db);
		return err;
	}
	*ret_unclean = !is_new && (db_meta_get(db, "clean", &clean) || strcmp(clean, "1"));
	mark_in_use(db);
	return 0;
}

errint_t db_open_reader(struct db *db, int dirfd, char **cause)
{
	errint_t err = connect_to(db, dirfd);

	if (!err)
		err = exec(db, "PRAGMA query_only=ON");
	if (!err)
		err = prepare(db, 0, DB_READER_COUNT);
	if (err) {
		(void)set_cause(cause, err, "%s", db_message(db));
		db_close(db);
	}
	return err;
}

void db_close(struct db *db)
{
	int rc;

	for (unsigned i = 0; i < DB_STATEMENT_COUNT; i++)
		sqlite3_finalize(db->statements[i]);
	rc = sqlite3_close(db->handle);
	INVARIANT(rc == SQLITE_OK);
	*db = (struct db){0};
}

static int stop_wanted(void *ctx)
{
	return atomic_load((const _Atomic bool *)ctx);
}

errint_t db_quick_check(struct db *db, const _Atomic bool *stop)
{
	sqlite3_stmt *s = NULL;
	errint_t err;
	int got;
	int rc = sqlite3_prepare_v2(db->handle, "PRAGMA quick_check(1)", -1, &s, NULL);

	if (rc != SQLITE_OK)
		return error_of(db->handle, rc);
	sqlite3_progress_handler(db->handle, 10000, stop_wanted, (void *)(uintptr_t)stop);
	got = step_once(db, s);
	if (got > 0) {
		const char *verdict = (const char *)sqlite3_column_text(s, 0);

		err = verdict && !strcmp(verdict, "ok") ? 0
		                                        : damaged(db, "quick_check failed");
	} else {
		err = got;
	}
	sqlite3_finalize(s);
	sqlite3_progress_handler(db->handle, 0, NULL, NULL);
	return err;
}

errint_t db_mark_clean(struct db *db)
{
	errint_t err = db_meta_put(db, "clean", "1");

	return err ? err : exec(db, "PRAGMA wal_checkpoint(TRUNCATE)");
}
