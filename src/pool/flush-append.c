/*
 * A flush that appends to the object in place instead of replacing it.
 *
 *   begin      [ns, dir, file]  the object still has the base's stamp; record (RECORD_APPEND, the
 *                               flush's number); the node believes what it knows from here on
 *   durable    [no lock]        the record, on disk: a stop from here on is known to recovery
 *   frames     [no lock]        store/append.c (2)
 *   (F2)                        what was read is still true
 *   trailer    [no lock]        store/append.c (3)
 *   finish     [file]           the new stamp; the node believes the disk again
 *
 * Invariants:
 *  (N1) The record that names base and RECORD_APPEND is durable before the first byte past the
 *       base's end is written: after any stop recovery knows that what lies there is ours.
 *  (N2) While node->in_place is set, what is known of the object (n->info) stays what it was
 *       before: look-ups meet a file that changes, and do not look into it.
 *  (N3) in_place is cleared only when the object is the new version or the old one again. Where
 *       cutting back failed it stays set, and the next flush cuts first (job_undo_append).
 */
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/flush-job.h"
#include "store/append.h"

static void end_in_place(struct pool *p, struct job *j, const struct stat *st)
{
	j->n->in_place = false;
	resolve_keep_ctime(p->tree, j->n, st, &j->ctime_before);
}

static errint_t open_object(struct job *j)
{
	int fd = job_open_writable(fd_path(j->target_fd).s, &j->target_st);

	if (fd == -EACCES || fd == -EPERM || fd == -ETXTBSY)
		j->no_append = true; /* replaced instead, by the next try */
	return fd;
}

static errint_t begin(struct pool *p, struct job *j, struct append *a, int *ret_fd)
{
	struct scratch *s = j->s;
	uint32_t flags;
	errint_t r;
	int fd;

	rmlock_rd(&p->tree->ns);
	r = job_lock_target(p, j);
	if (r < 0)
		goto out;
	r = fd = open_object(j);
	if (r >= 0)
		r = append_begin(fd, &s->record.base, a, &j->cause);
	flags = s->record.flags;
	if (r == 0) {
		s->record.flags |= RECORD_APPEND;
		r = scratch_record(p, s); /* (F5) */
		if (r < 0)
			s->record.flags = flags;
	}
	if (r == 0) {
		j->ctime_before = j->target_st.st_ctim;
		if (j->n->info_valid &&
		    timespec_cmp(&j->target_st.st_ctim, &j->n->info.seen_ctime) == 0)
			j->ctime_before = j->n->info.ctime;
		j->n->in_place = true; /* (N2) */
		*ret_fd = fd;
	} else if (fd >= 0) {
		(void)sys_close(fd);
	}
	job_unlock_target(p, j);
out:
	rmlock_drop(&p->tree->ns);
	return r;
}

/* (N1) */
static errint_t make_durable(struct pool *p, struct job *j)
{
	errint_t r = sync_scratch_name(p, j->s);

	if (r == 0) {
		count_one(COUNTER_POOL_SYNCS);
		r = sys_fsync(j->in_fd);
	}
	if (r < 0)
		return set_cause_errno(&j->cause, r,
		                       "cannot sync the record of its scratch");
	step("append.begun");
	return 0;
}

static errint_t write_it(struct pool *p, struct job *j, struct append *a)
{
	struct encoder *e = NULL;
	struct stat st;
	errint_t r = job_encoder(p, j, a->fd, &e);

	if (r == 0)
		r = append_frames(a, e, &j->cause);
	if (r == 0)
		r = job_still_true(j); /* (F2) */
	if (r == 0)
		r = sys_fstat(j->in_fd, &st);
	if (r == 0)
		r = append_trailer(a, e, &st.st_mtim, &j->result, &j->cause);
	if (r == 0)
		r = encode_check(a->fd, &j->result, &j->cause);
	if (r == 0)
		job_keep_hashes(j, e);
	encoder_free(e);
	return r;
}

/* A utimes that came between the trailer and now has set the scratch's too. */
static errint_t last_times(struct job *j, int fd)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {0}};
	struct stat want, have;
	errint_t r = sys_fstat(j->in_fd, &want);

	if (r == 0)
		r = sys_fstat(fd, &have);
	if (r < 0 || timespec_cmp(&want.st_mtim, &have.st_mtim) == 0)
		return r;
	ts[1] = want.st_mtim;
	return sys_futimens(fd, ts);
}

static errint_t finish(struct pool *p, struct job *j, int fd)
{
	errint_t r = job_look_at_new(j, fd);

	if (r < 0)
		return r;
	lock_take(&j->n->lock);
	(void)last_times(j, fd);
	job_adopt_object(p, j, fd);
	j->n->in_place = false;
	j->s->record.flags &= ~RECORD_APPEND;
	j->appended = true;
	lock_drop(&j->n->lock);
	return 0;
}

static void undo(struct pool *p, struct job *j, struct append *a)
{
	errint_t r = append_undo(a);
	struct stat st;

	lock_take(&j->n->lock);
	if (r == 0)
		r = sys_fstat(a->fd, &st);
	if (r == 0) {
		end_in_place(p, j, &st);
		j->s->record.flags &= ~RECORD_APPEND;
		(void)scratch_record(p, j->s);
	}
	lock_drop(&j->n->lock);
	if (r < 0) {
		cleanup_free char *path = node_path(p->tree, j->n);

		log_err("cannot cut the object of \"%s\" back after an append that failed: "
		        "%s; the next flush tries again",
		        path, strerror(-r));
	}
}

errint_t job_append(struct pool *p, struct job *j)
{
	struct append a;
	int fd = -1;
	errint_t r = begin(p, j, &a, &fd);

	if (r < 0)
		return r == -ESTALE ? -EAGAIN : r;
	r = make_durable(p, j);
	if (r == 0)
		r = write_it(p, j, &a);
	if (r == 0)
		r = finish(p, j, fd);
	if (r < 0)
		undo(p, j, &a);
	append_end(&a);
	(void)sys_close(fd);
	return r;
}

errint_t job_undo_append(struct pool *p, struct job *j)
{
	const struct stamp *base = &j->s->record.base;
	const struct catalog_file *info = &j->n->info;
	enum append_state state;
	struct stat st;
	errint_t r;
	int fd;

	lock_assert_held(&j->n->lock);
	r = sys_fstatat(j->at.dirfd, j->at.store_name.s, &st, AT_SYMLINK_NOFOLLOW);
	if (r < 0)
		return r;
	fd = store_open_at(j->at.dirfd, j->at.store_name.s, O_RDWR | O_NONBLOCK);
	if (fd < 0)
		return set_cause_errno(&j->cause, fd,
		                       "cannot open its object to undo an append");
	r = append_look(fd, base, &state);
	if (r == 0 && state != APPEND_OTHER)
		r = append_cut(fd, base->stored_size, &info->stored_mtime);
	if (r == 0)
		r = sys_fstat(fd, &st);
	if (r == 0) {
		j->ctime_before = info->ctime;
		end_in_place(p, j, &st);
		j->s->record.flags &= ~RECORD_APPEND;
		r = scratch_record(p, j->s);
	}
	(void)sys_close(fd);
	return r < 0 ? set_cause_errno(&j->cause, r, "cannot undo an append to its object")
	             : 0;
}
