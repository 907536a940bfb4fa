/*
 * What was put into the catalog and is not in the database: for each key its final state, a
 * row or "gone". Used by catalog.c, under its lock.
 *
 * A number belongs to one row. A batch does not know which row of the database (or of an
 * older batch) had a number before; so where a row here took a number and gave it up again,
 * the number itself is remembered as freed: nobody below has it either.
 */
#ifndef CELLAR_CATALOG_BATCH_H
#define CELLAR_CATALOG_BATCH_H

#include "uthash.h"

#include "catalog/schema.h"

struct freed; /* a number */

struct file_change {
	struct catalog_file row; /* when gone: only the identity */
	bool gone;
	UT_hash_handle by_ident;
	UT_hash_handle by_ino; /* unless gone */
};

struct scratch_change {
	struct catalog_scratch row;
	bool gone;
	UT_hash_handle hh;
};

struct meta_change {
	char *key, *value;
	UT_hash_handle hh;
};

struct batch {
	struct file_change *by_ident, *by_ino;
	struct freed *freed; /* not in by_ino */
	struct scratch_change *scratches;
	struct meta_change *metas;
};

/* All zero: empty. */
struct file_change *batch_file_of_ident(const struct batch *b, const struct ident *ident);
/* The live row that has the number. */
struct file_change *batch_file_of_ino(const struct batch *b, uint64_t ino);
/* Nobody has the number, here or below. */
bool batch_frees_ino(const struct batch *b, uint64_t ino);
/* The batch says who has the number, or that nobody below has it. */
bool batch_covers_ino(const struct batch *b, uint64_t ino);
void batch_put_file(struct batch *b, const struct catalog_file *row);
/* Returns the entry, which is "gone". */
struct file_change *batch_delete_file(struct batch *b, const struct ident *ident);

struct scratch_change *batch_scratch(const struct batch *b, uint64_t ino);
/* The entry, made if needed, "gone", without an error text. */
struct scratch_change *batch_take_scratch(struct batch *b, uint64_t ino);

struct meta_change *batch_meta(const struct batch *b, const char *key);
void batch_put_meta(struct batch *b, const char *key, const char *value);

bool batch_is_empty(const struct batch *b);
size_t batch_size(const struct batch *b);
void batch_clear(struct batch *b);
/* Puts what `newer` says on top of `older`; newer is empty afterwards. */
void batch_apply(struct batch *older, struct batch *newer);
/* Commits it in one transaction, or changes nothing. */
errint_t batch_write(struct db *db, const struct batch *b, char **cause);

#endif
