/*
 * One connection to the catalog's database: schema, migration, statements, and rows in
 * and out. The only file with SQL in it is schema.c.
 *
 * A struct db belongs to one thread at a time (SQLite is opened without its own mutexes).
 * Functions return 0 or: -ENOENT (no such row), -EUCLEAN (damaged, or no catalog at all),
 * -ENOSPC, -EIO and others of the system. db_message() explains the last error.
 */
#ifndef CELLAR_CATALOG_SCHEMA_H
#define CELLAR_CATALOG_SCHEMA_H

#include <stdatomic.h>

#include <sqlite3.h>

#include "catalog/catalog.h"

enum db_statement {
	/* reader and writer */
	DB_FILE_GET,
	DB_FILE_BY_INO,
	DB_SCRATCH_GET,
	DB_META_GET,
	DB_TOTALS,
	DB_READER_COUNT,
	/* writer only */
	DB_BEGIN = DB_READER_COUNT,
	DB_COMMIT,
	DB_ROLLBACK,
	DB_FILE_PUT,
	DB_FILE_DELETE,
	DB_FILE_DELETE_INO,
	DB_SCRATCH_PUT,
	DB_SCRATCH_DELETE,
	DB_META_PUT,
	DB_STATEMENT_COUNT
};

struct db {
	sqlite3 *handle; /* NULL: closed */
	sqlite3_stmt *statements[DB_STATEMENT_COUNT];
	const char *problem; /* set where SQLite itself saw no error */
};

#define DB_NAME "catalog.db"

/* The database DB_NAME in the directory open as dirfd, which stays open as long as db is. Opens for
 * writing: makes the schema in an empty file, migrates an older one, checks that
 * it is a catalog (-EUCLEAN), of this pool (-EXDEV), not newer (-ENOTSUP); durably marks it
 * as in use. path is for messages. *ret_unclean: the last user did not get to db_mark_clean(). */
errint_t db_open_writer(struct db *db, int dirfd, const char *path, const struct uuid *pool,
                        bool *ret_unclean, char **cause);
errint_t db_open_reader(struct db *db, int dirfd, char **cause);
void db_close(struct db *db); /* closed ones are fine */
const char *db_message(const struct db *db);

/* Reads every page once: 0, -EUCLEAN, -EINTR when *stop became true. */
errint_t db_quick_check(struct db *db, const _Atomic bool *stop);
/* The last thing before db_close() of the writer; also empties the WAL. */
errint_t db_mark_clean(struct db *db);

errint_t db_begin(struct db *db);
errint_t db_commit(struct db *db);
void db_rollback(struct db *db);

errint_t db_file_get(struct db *db, const struct ident *ident, struct catalog_file *ret);
errint_t db_file_by_ino(struct db *db, uint64_t ino, struct catalog_file *ret);
/* Whatever row had this identity or this number goes. */
errint_t db_file_put(struct db *db, const struct catalog_file *row);
errint_t db_file_delete(struct db *db, const struct ident *ident);
errint_t db_file_delete_ino(struct db *db, uint64_t ino);

errint_t db_scratch_get(struct db *db, uint64_t ino, struct catalog_scratch *ret);
errint_t db_scratch_put(struct db *db, const struct catalog_scratch *row);
errint_t db_scratch_delete(struct db *db, uint64_t ino);

errint_t db_meta_get(struct db *db, const char *key, char **ret);
errint_t db_meta_put(struct db *db, const char *key, const char *value);

errint_t db_totals(struct db *db, struct catalog_totals *ret);

#endif
