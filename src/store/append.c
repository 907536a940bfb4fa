/*
 * Appending in place: see append.h for the order of events and what each stop leaves.
 */
#include "store/append.h"

#include <sys/file.h>
#include <time.h>

#include "base/clock.h"
#include "base/steps.h"
#include "base/sysio.h"
#include "store/durable.h"

#define WAIT_MS 30000U
#define LOOK_MS 20U

errint_t append_begin(int fd, const struct stamp *base, struct append *ret, char **cause)
{
	struct object o;
	struct stamp now;
	struct stat st;
	errint_t err = object_open(fd, &o, cause);

	if (err)
		return err;
	err = stamp_of(fd, &o, &now);
	object_close(&o);
	if (!err)
		err = sys_fstat(fd, &st);
	if (!err && !stamp_equal(&now, base))
		err = -ESTALE;
	if (err)
		return set_cause_errno(cause, err, "cannot append to the object");
	*ret = (struct append){
	    .fd = fd,
	    .size_before = base->stored_size,
	    .mtime_before = st.st_mtim,
	    .size_now = base->stored_size,
	};
	(void)flock(fd, LOCK_EX | LOCK_NB);
	return 0;
}

void append_end(struct append *a)
{
	(void)flock(a->fd, LOCK_UN);
}

static errint_t note_size(struct append *a)
{
	struct stat st;
	errint_t err = sys_fstat(a->fd, &st);

	if (!err)
		a->size_now = (uint64_t)st.st_size;
	return err;
}

/* (2) */
errint_t append_frames(struct append *a, struct encoder *e, char **cause)
{
	errint_t err = encoder_frames(e, cause), err_size = note_size(a);

	if (err)
		return err;
	step("append.frames");
	err = err_size ? err_size : store_sync_file(a->fd); /* (A2) */
	if (err)
		return set_cause_errno(cause, err, "cannot sync what was appended");
	step("append.framesynced");
	return 0;
}

/* (3) */
errint_t append_trailer(struct append *a, struct encoder *e, const struct timespec *mtime,
                        struct encode_result *ret, char **cause)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, *mtime};
	errint_t err = encoder_trailer(e, ret, cause), err_size = note_size(a);

	if (err)
		return err;
	step("append.trailer");
	err = err_size ? err_size : sys_futimens(a->fd, ts);
	if (!err)
		err = store_sync_file(a->fd);
	if (err)
		return set_cause_errno(cause, err, "cannot sync the end of the object");
	step("append.synced");
	return 0;
}

errint_t append_cut(int fd, uint64_t size_before, const struct timespec *mtime)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {0}};
	errint_t err = sys_ftruncate(fd, (off_t)size_before);

	if (err)
		return err;
	step("append.cut");
	if (mtime) {
		ts[1] = *mtime;
		(void)sys_futimens(fd, ts);
	}
	return store_sync_file(fd);
}

/* (A3) */
errint_t append_undo(struct append *a)
{
	struct stat st;
	errint_t err = sys_fstat(a->fd, &st);

	if (err)
		return err;
	/* A write that failed midway may have left less than was noted, or more. */
	if ((uint64_t)st.st_size < a->size_before)
		return -ESTALE;
	return append_cut(a->fd, a->size_before, &a->mtime_before);
}

/* ---- after a stop ---- */

static errint_t nothing(void *ctx, size_t i, const void *data)
{
	return 0;
}

/* Whether everything past the old end decodes. */
static errint_t tail_decodes(struct object *o, uint64_t size_before, bool *ret)
{
	size_t from = o->table.count;
	errint_t err;

	*ret = false;
	while (from > 0 && o->table.entries[from - 1].stored_off >= size_before)
		from--;
	/* The old trailer must be there as dead entries: else it is no append to that object. */
	if (from == 0 ||
	    o->table.entries[from - 1].stored_off + o->table.entries[from - 1].stored_len !=
	        size_before)
		return 0;
	o->uncounted = true;
	err = object_each_frame(o, from, o->table.count, 1, nothing, NULL, NULL);
	*ret = !err;
	return err == -EUCLEAN ? 0 : err;
}

static errint_t has_prefix(int fd, const struct stamp *base, bool *ret)
{
	struct object o;
	errint_t err = object_open_part(fd, base->stored_size, &o, NULL);

	if (err)
		return err;
	*ret = o.kind == OBJECT_SEEKABLE && o.trailer_hash[0] == base->trailer_hash[0] &&
	       o.trailer_hash[1] == base->trailer_hash[1];
	object_close(&o);
	return 0;
}

errint_t append_look(int fd, const struct stamp *base, enum append_state *ret)
{
	bool prefix = false, whole = false;
	struct ident ident;
	struct object o;
	struct stat st;
	errint_t err = sys_fstat(fd, &st);

	*ret = APPEND_OTHER;
	if (!err)
		err = ident_get(fd, "", &ident);
	if (err || !ident_equal(&ident, &base->ident) ||
	    (uint64_t)st.st_size <= base->stored_size)
		return err;
	err = has_prefix(fd, base, &prefix);
	if (err || !prefix)
		return err;
	err = object_open(fd, &o, NULL);
	if (err)
		return err;
	if (o.kind == OBJECT_SEEKABLE && o.has_cellar_frame && !o.flaw)
		err = tail_decodes(&o, base->stored_size, &whole);
	object_close(&o);
	*ret = whole ? APPEND_WHOLE : APPEND_TORN;
	return err;
}

void append_wait(int fd)
{
	const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
	uint64_t until = clock_mono_ms() + WAIT_MS;

	while (flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK &&
	       clock_mono_ms() < until)
		(void)nanosleep(&pause, NULL);
	(void)flock(fd, LOCK_UN);
}
