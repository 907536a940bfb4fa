/*
 * What an object says of itself (its end, read without its data), and the row of the catalog that
 * comes of it.
 *
 * Threads: no state.
 */
#ifndef CELLAR_TREE_TRAILER_H
#define CELLAR_TREE_TRAILER_H

#include "tree/node.h"

struct trailer {
	struct stat st;
	struct ident ident;
	bool unreadable; /* -EACCES: the rest is not known */
	uint32_t kind;
	uint64_t logical_size;
	uint64_t hash[2];
	bool has_frame;
	struct cellar_frame frame;
	uint32_t frames;
	uint64_t dead_bytes;
};

/* Reads it from a store name. -ESTALE: the name leads to something else than `want`; what cannot be
 * read for its mode is `unreadable`, and no error. [waits] */
errint_t trailer_read(int dirfd, const char *store_name, const struct ident *want,
                      struct trailer *ret, char **cause);

/* Its cellar frame is of this pool. */
bool trailer_is_ours(const struct tree *t, const struct trailer *r);

/* The row of an inode of which no more is known than st. */
struct catalog_file row_new(const struct ident *ident, uint64_t ino, const struct stat *st);

/* What the trailer says, for number ino. before: what was known of this identity, or NULL:
 * it keeps its logical ctime. */
struct catalog_file row_of_trailer(const struct tree *t, const struct trailer *r,
                                   uint64_t ino, const struct catalog_file *before);

/* Shown as it is, whatever the bytes are. */
void row_set_plain(struct catalog_file *row);

/* Makes row_matches() false for any st: of the contents nothing is known. */
void row_set_unknown(struct catalog_file *row);

/* Whether what the row says of a regular file's contents holds for st. */
bool row_matches(const struct catalog_file *row, const struct stat *st);

bool row_hash_is_none(const uint64_t hash[2]);

#endif
