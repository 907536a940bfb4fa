/*
 * Names in the store and names in the mount (design, section 3, "Names"). Pure functions.
 *
 *   logical entry                     store name
 *   regular file N                    N.zst
 *   other type N                      N, but one more ~ where N ends in .zst~*
 *
 * and back:
 *   regular S.zst                     S            (unless empty, "." or "..": raw)
 *   regular, no .zst                  itself       (a plain file)
 *   other type ending in .zst~+       one ~ less
 *   other type otherwise              itself       (also "x.zst" that was there before)
 */
#ifndef CELLAR_STORE_NAMES_H
#define CELLAR_STORE_NAMES_H

#include <limits.h>

#include "base/error.h"

#define NAMES_SUFFIX     ".zst"
#define NAMES_SUFFIX_LEN 4
#define NAMES_PRIVATE    ".cellar" /* at the root only */

struct name {
	char s[NAME_MAX + 1];
};

/* -ENAMETOOLONG when the store name would pass NAME_MAX (for regular files: logical names
 * above NAME_MAX - 4). */
errint_t name_encode(const char *logical, bool regular, struct name *ret);

/* False: cannot be decoded, is shown raw under its store name (ret gets that). */
bool name_decode(const char *stored, bool regular, struct name *ret);

bool name_has_suffix(const char *s);       /* ends in ".zst", with something before it */
bool name_has_tilde_suffix(const char *s); /* ends in ".zst" and zero or more ~ */

/* The path in the mount of what a store path names, malloc'ed: the last component as a regular
 * file's, those before as directories'. What cannot be decoded stays as it is. For showing to
 * people: only a directory's listing can tell for certain (entry.h). */
char *name_decode_path(const char *store_path);

/* "NAME.cellar-conflict-20261123T101500Z", shortened (at a UTF-8 boundary) to leave room
 * for .zst. */
void name_conflict(const char *logical, int64_t unix_time, struct name *ret);

#endif
