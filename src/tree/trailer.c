/* What an object says of itself, and the catalog's row made from it: see trailer.h. */
#include "tree/trailer.h"

#include <string.h>

#include "base/clock.h"
#include "base/sysio.h"

static void note_object(struct trailer *r, const struct object *o)
{
	r->kind = o->kind;
	r->logical_size = o->kind == OBJECT_EMPTY ? 0 : o->logical_size;
	memcpy(r->hash, o->trailer_hash, sizeof(r->hash));
	r->has_frame = o->has_cellar_frame;
	r->frame = o->cellar;
	for (size_t i = 0; i < o->table.count; i++) {
		if (o->table.entries[i].logical_len)
			r->frames++;
		else
			r->dead_bytes += o->table.entries[i].stored_len;
	}
	if (r->has_frame && r->dead_bytes >= CELLARFRAME_LEN)
		r->dead_bytes -= CELLARFRAME_LEN;
}

errint_t trailer_read(int dirfd, const char *store_name, const struct ident *want,
                      struct trailer *ret, char **cause)
{
	struct trailer r = {.kind = OBJECT_FOREIGN, .logical_size = OBJECT_SIZE_UNKNOWN};
	cleanup_fd int fd = store_open_object(dirfd, store_name);
	struct object o;
	errint_t err;

	if (fd == -EACCES) {
		r.unreadable = true;
		r.ident = *want;
		err = sys_fstatat(dirfd, store_name, &r.st, AT_SYMLINK_NOFOLLOW);
		if (!err)
			*ret = r;
		return err;
	}
	if (fd < 0)
		return fd == -ENOENT || fd == -ELOOP ? -ESTALE : fd;
	err = sys_fstat(fd, &r.st);
	if (!err)
		err = ident_get(fd, "", &r.ident);
	if (err)
		return err;
	if (!S_ISREG(r.st.st_mode) || !ident_equal(&r.ident, want))
		return -ESTALE;
	err = object_open(fd, &o, cause);
	if (err)
		return err;
	note_object(&r, &o);
	object_close(&o);
	*ret = r;
	return 0;
}

/* ---- rows ---- */

bool row_hash_is_none(const uint64_t hash[2])
{
	return !hash[0] && !hash[1];
}

/* Nobody could read it: worth another try once its mode (and so its ctime) changes. */
static bool row_is_unreadable(const struct catalog_file *row)
{
	return row->kind == OBJECT_FOREIGN && row->logical_size == OBJECT_SIZE_UNKNOWN &&
	       row_hash_is_none(row->trailer_hash);
}

bool row_matches(const struct catalog_file *row, const struct stat *st)
{
	return row->stored_size == (uint64_t)st->st_size &&
	       !timespec_cmp(&row->stored_mtime, &st->st_mtim) &&
	       (!row_is_unreadable(row) || !timespec_cmp(&row->seen_ctime, &st->st_ctim));
}

void row_set_unknown(struct catalog_file *row)
{
	row->kind = OBJECT_FOREIGN;
	row->logical_size = OBJECT_SIZE_UNKNOWN;
	row->stored_size = 0;
	row->stored_mtime = (struct timespec){.tv_nsec = -1};
}

struct catalog_file row_new(const struct ident *ident, uint64_t ino, const struct stat *st)
{
	return (struct catalog_file){
	    .ident = *ident,
	    .ino = ino,
	    .type = st->st_mode & S_IFMT,
	    .stored_size = (uint64_t)st->st_size,
	    .stored_mtime = st->st_mtim,
	    .ctime = st->st_ctim,
	    .seen_ctime = st->st_ctim,
	    .mtime = st->st_mtim,
	};
}

void row_set_plain(struct catalog_file *row)
{
	row->kind = OBJECT_PLAIN;
	row->logical_size = row->stored_size;
}

bool trailer_is_ours(const struct tree *t, const struct trailer *r)
{
	return r->has_frame && uuid_equal(&r->frame.pool, &t->pool);
}

struct catalog_file row_of_trailer(const struct tree *t, const struct trailer *r,
                                   uint64_t ino, const struct catalog_file *before)
{
	struct catalog_file row = row_new(&r->ident, ino, &r->st);

	row.kind = r->kind;
	row.logical_size = r->logical_size;
	memcpy(row.trailer_hash, r->hash, sizeof(row.trailer_hash));
	row.frames = r->frames;
	row.dead_bytes = r->dead_bytes;
	if (r->has_frame) {
		row.seq = r->frame.seq;
		row.level = r->frame.level;
	}
	if (before) {
		row.ctime = before->ctime;
		row.seen_ctime = before->seen_ctime;
	} else if (trailer_is_ours(t, r) && r->frame.ino == ino) {
		row.ctime = r->frame.ctime;
	}
	if (r->unreadable)
		row.seen_ctime = r->st.st_ctim;
	return row;
}
