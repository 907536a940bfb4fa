/*
 * Identity and stamps of store inodes (design, section 4).
 *
 * An identity is a 128-bit XXH3 of the filesystem's id and the file handle
 * (name_to_handle_at(2): inode number and generation); where a filesystem has no handles,
 * of inode number and birth time. Never of st_dev, which changes over a remount, nor of the
 * bare number, which ext4 reuses at once. Where f_fsid is the device number (xfs) it is left
 * out; FUSE's handles are node ids of one run and count as none.
 */
#ifndef CELLAR_STORE_IDENT_H
#define CELLAR_STORE_IDENT_H

#include <sys/stat.h>

#include "base/error.h"
#include "codec/object.h"

struct ident {
	uint64_t w[2]; /* both 0: none */
};

/* What an object was when we last knew it to be equal to the scratch. */
struct stamp {
	struct ident ident;
	uint64_t stored_size;
	uint64_t trailer_hash[2];
};

static inline bool ident_equal(const struct ident *a, const struct ident *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1];
}
static inline bool ident_is_none(const struct ident *a)
{
	return !a->w[0] && !a->w[1];
}
bool stamp_equal(const struct stamp *a, const struct stamp *b);

/* Identity of `name` in dirfd (not followed if a link), or of dirfd itself where name is
 * "". */
errint_t ident_get(int dirfd, const char *name, struct ident *ret);
/* Mount ids seen so far may from now on stand for other filesystems (store_open calls it). */
void ident_forget_filesystems(void);
/* The stamp of an opened object. */
errint_t stamp_of(int fd, const struct object *o, struct stamp *ret);

#endif
