/*
 * What the scratch knows of a file's attributes, and what the pool tells of a file.
 *
 * Invariants:
 *  (A1) Of a dirty file size, mtime and ctime are the scratch's; of one that is open and whose
 *       object was changed behind us, those of what was opened.
 *
 * Threads: any; node->lock is held where the header says so.
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "pool/content.h"

/* The object was changed behind us since it was hydrated. node->lock held. */
static bool base_went(const struct node *n, const struct scratch *s)
{
	const struct stamp *base = &s->record.base;

	if (s->opens == 0 || !n->info_valid || s->record.state != RECORD_CLEAN ||
	    (s->hydration && s->hydration->object.logical_size == OBJECT_SIZE_UNKNOWN))
		return false;
	return !ident_equal(&n->info.ident, &base->ident) ||
	       n->info.stored_size != base->stored_size ||
	       n->info.trailer_hash[0] != base->trailer_hash[0] ||
	       n->info.trailer_hash[1] != base->trailer_hash[1];
}

errint_t pool_overlay_attr(struct node *n, struct stat *st)
{
	struct scratch *s = n->scratch;
	struct stat now;

	if (s && base_went(n, s) && content_stat(s->pool, s, &now) == 0) {
		/* Whoever has it open goes on with what he opened, its size too. */
		st->st_size = now.st_size;
		st->st_mtim = now.st_mtim;
	}
	if (!s || (s->record.state != RECORD_DIRTY && !s->doomed))
		return 0;
	if (s->opens > 0 || s->unseen) {
		errint_t r = content_look(s->pool, s, &now); /* the ctime may follow */

		if (r < 0)
			return r;
		s->size = (uint64_t)now.st_size;
		s->mtime = now.st_mtim;
		s->blocks = (uint64_t)now.st_blocks;
	} else if (s->stale) {
		scratch_sample(s->pool, s);
		if (s->stale)
			return -EIO;
	}
	st->st_size = (off_t)s->size;
	st->st_mtim = s->mtime;
	st->st_ctim = scratch_ctime(s, &st->st_ctim);
	st->st_blocks += (blkcnt_t)s->blocks;
	if (st->st_blocks == 0 && st->st_size > 0)
		st->st_blocks = 1;
	return 0;
}

bool pool_lone_attr(struct node *n, struct stat *ret)
{
	struct scratch *s = n->scratch;

	if (!s || (s->opens == 0 && s->record.state != RECORD_DIRTY))
		return false;
	if (s->opens == 0 || content_stat(s->pool, s, ret) < 0) {
		memset(ret, 0, sizeof(*ret));
		ret->st_size = (off_t)s->size;
		ret->st_mtim = ret->st_atim = ret->st_ctim = s->mtime;
		ret->st_blocks = (blkcnt_t)s->blocks;
		ret->st_blksize = 4096;
	}
	ret->st_ino = n->ino;
	ret->st_mode = S_IFREG | s->mode;
	ret->st_uid = s->uid;
	ret->st_gid = s->gid;
	ret->st_nlink = 1;
	return true;
}

errint_t pool_set_times(struct node *n, const struct timespec ts[2])
{
	struct scratch *s = n->scratch;
	struct timespec only_mtime[2] = {{.tv_nsec = UTIME_OMIT}, ts[1]};
	int64_t ns;
	errint_t r;
	int fd;

	lock_assert_held(&n->lock);
	if (!s || ts[1].tv_nsec == UTIME_OMIT)
		return 0;
	fd = s->fd >= 0 ? s->fd : scratch_open_fd(s->pool, s, O_RDONLY);
	if (fd < 0)
		return fd;
	r = sys_futimens(fd, only_mtime);
	if (r == 0) {
		struct stat st;

		if (sys_fstat(fd, &st) == 0)
			s->mtime = st.st_mtim;
		content_own_change(s->pool, s);
		tail_fill_set_time(s, &s->mtime);
		if (s->record.state == RECORD_DIRTY) {
			s->record.flags |= RECORD_MTIME_SET;
			ns = atomic_load(&s->last_write_ns);
			s->record.ctime =
			    (struct timespec){ns / 1000000000, ns % 1000000000};
			r = scratch_record(s->pool, s);
		}
	}
	if (fd != s->fd)
		(void)sys_close(fd);
	return r;
}

void scratch_correct_info(struct pool *p, struct node *n, const struct stamp *now,
                          const struct object *object)
{
	struct catalog_file *info = &n->info;

	lock_assert_held(&n->lock);
	if (!n->info_valid || !ident_equal(&info->ident, &now->ident) ||
	    info->stored_size != now->stored_size ||
	    (info->trailer_hash[0] == now->trailer_hash[0] &&
	     info->trailer_hash[1] == now->trailer_hash[1]))
		return;
	memcpy(info->trailer_hash, now->trailer_hash, sizeof(info->trailer_hash));
	info->logical_size = object->logical_size;
	info->seq = object->has_cellar_frame ? object->cellar.seq : 0;
	catalog_file_put(p->catalog, info);
}

void pool_meta_changed(struct node *n)
{
	struct scratch *s = n->scratch;

	node_forget_seen(n);
	if (!s)
		return;
	s->raises++;
	s->attr_unsynced = true; /* the object's own ctime has moved */
}
