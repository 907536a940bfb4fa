/*
 * Proving that objects decode.
 *
 * Every .zst file is opened, decoded from the first byte to the last and thrown away; what
 * the codec refuses is damage, frame by frame where there are frames; so is what it could do
 * without (a seek table that had to be made anew). Looks only. A flush may replace the object or write over it
 * while it is read, or append to it: damage is believed only of a file that is still the same,
 * under the same name, when the reading is over and no append is under way; otherwise it is
 * read once more.
 *
 * Threads: any number of calls at once; each reads one file at a time.
 */
#include "upkeep/verify.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/sysio.h"
#include "base/text.h"
#include "store/append.h"
#include "store/attrs.h"

#define ATTEMPTS 5

struct verification {
	uint64_t max_object;
	struct uuid pool; /* whose mark on new files counts */
	verify_unflushed_fn unflushed;
	verify_report_fn report;
	void *ctx;
	const volatile bool *stop;
	struct verify_totals *totals;
	errint_t err; /* the first directory that could not be read */
	char **cause;
};

/* What one reading of one file found. */
struct finding {
	const struct verification *v;
	const char *path;
	enum { FOUND_OBJECT, FOUND_PLAIN, FOUND_DAMAGE } what;
	uint64_t logical_bytes, stored_bytes;
	char *error;
	struct object_range ranges[VERIFY_RANGES_MAX];
	size_t count;
	uint64_t bad_frames;
};

static bool is_stopped(const struct verification *v)
{
	return v->stop && *v->stop;
}

static void report(const struct verification *v, const char *path,
                   const struct verify_result *result)
{
	if (v->report)
		v->report(v->ctx, path, result);
}

static errint_t count_bytes(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct finding *f = ctx;

	f->logical_bytes += len;
	return is_stopped(f->v) ? -EINTR : 0;
}

static void found_damage(struct finding *f, errint_t err, char *cause)
{
	f->what = FOUND_DAMAGE;
	f->error = cause ? cause : xstrdup(strerror(-err));
}

/* Only these stop the walk; all else is said of the file. */
static bool is_ours(errint_t err)
{
	return err == -EINTR || err == -ENOMEM;
}

static void add_range(struct finding *f, const struct seek_entry *e)
{
	struct object_range *last = f->count ? &f->ranges[f->count - 1] : NULL;

	f->bad_frames++;
	if (last && last->off + last->len == e->logical_off)
		last->len += e->logical_len;
	else if (f->count < VERIFY_RANGES_MAX)
		f->ranges[f->count++] =
		    (struct object_range){e->logical_off, e->logical_len};
}

/* Every frame by itself. *cause: what is wrong with the first that is damaged. */
static errint_t decode_frames(const struct object *o, struct finding *f, char **cause)
{
	cleanup_free uint8_t *buf = NULL;
	size_t room = 0;

	if (o->logical_size > f->v->max_object)
		return set_cause(cause, -EFBIG, "is larger than max_object allows");
	for (size_t i = 0; i < o->table.count; i++)
		room = MAX_OF(room, (size_t)o->table.entries[i].logical_len);
	buf = malloc(MAX_OF(room, (size_t)1));
	if (!buf)
		return -ENOMEM;
	for (size_t i = 0; i < o->table.count; i++) {
		const struct seek_entry *e = &o->table.entries[i];
		errint_t err;

		if (is_stopped(f->v))
			return -EINTR;
		err = object_decode_frame(o, i, buf, f->bad_frames ? NULL : cause);
		if (err == -EUCLEAN)
			add_range(f, e);
		else if (err)
			return err;
		else
			f->logical_bytes += e->logical_len;
	}
	return f->bad_frames ? -EUCLEAN : 0;
}

static errint_t decode_seekable(const struct object *o, struct finding *f, char **cause)
{
	errint_t err = decode_frames(o, f, cause);

	if (!err && o->flaw)
		return set_cause(cause, -EUCLEAN, "%s; all of its content can be read",
		                 o->flaw);
	return err ? err : object_check_empty(o, cause);
}

/* What is wrong, with where. Takes cause. */
static char *describe(const struct finding *f, char *cause)
{
	cleanup_free char *why = cause;
	const struct object_range *r = f->ranges;
	char more[64] = "";

	if (!f->count || !why)
		return steal_pointer(&why);
	if (f->bad_frames > 1)
		snprintf(more, sizeof(more), "; %ju damaged frames in all",
		         (uintmax_t)f->bad_frames);
	return xasprintf("bytes %ju-%ju: %s%s", (uintmax_t)r->off,
	                 (uintmax_t)(r->off + r->len - 1), why, more);
}

static bool is_unflushed(const struct finding *f)
{
	return f->v->unflushed && f->v->unflushed(f->v->ctx, f->path);
}

static errint_t decode(int fd, struct finding *f)
{
	struct object o;
	char *cause = NULL;
	errint_t err = object_open(fd, &o, &cause);

	if (!err) {
		f->stored_bytes = o.stored_size;
		if (o.kind == OBJECT_EMPTY)
			/* asked before it is looked at again: a flush in between shows there */
			err =
			    is_unflushed(f) || attrs_is_marked_new(fd, &f->v->pool)
			        ? 0
			        : set_cause(&cause, -EUCLEAN, "is empty: no valid object");
		else if (o.kind == OBJECT_PLAIN)
			f->what = FOUND_PLAIN;
		else if (o.kind == OBJECT_SEEKABLE)
			err = decode_seekable(&o, f, &cause);
		else
			err =
			    object_decode_all(&o, f->v->max_object, count_bytes, f, &cause);
		object_close(&o);
	}
	if (is_ours(err)) {
		free(cause);
		return err;
	}
	if (err)
		found_damage(f, err, describe(f, cause));
	else
		free(cause);
	return 0;
}

static bool is_same(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       timespec_cmp(&a->st_mtim, &b->st_mtim) == 0 &&
	       timespec_cmp(&a->st_ctim, &b->st_ctim) == 0;
}

/* Does the name still lead to what was read, unchanged? 0 yes, -EAGAIN no, -ENOENT gone. */
static errint_t still_there(int dirfd, const char *name, int fd, const struct stat *before)
{
	struct ident read, now;
	struct stat after;
	errint_t err = ident_get(dirfd, name, &now);

	if (!err)
		err = ident_get(fd, "", &read);
	if (!err)
		err = sys_fstat(fd, &after);
	if (err)
		return err == -ENOENT ? err : 0;
	return ident_equal(&read, &now) && is_same(before, &after) ? 0 : -EAGAIN;
}

/* One reading. -ENOENT: there is no such file any more; -EAGAIN: damage, but of something
 * that has changed; else what stops the walk. */
static errint_t look(int dirfd, const char *name, struct finding *f)
{
	cleanup_fd int fd = store_open_object(dirfd, name);
	struct stat before;
	errint_t err = fd < 0 ? fd : sys_fstat(fd, &before);

	if (err == -ENOENT || err == -ELOOP || err == -ENXIO)
		return -ENOENT;
	if (err) {
		found_damage(f, err, NULL);
		return 0;
	}
	if (!S_ISREG(before.st_mode))
		return -ENOENT;
	err = decode(fd, f);
	if (err || f->what != FOUND_DAMAGE)
		return err;
	append_wait(fd); /* what is being appended is whole when that is over */
	return still_there(dirfd, name, fd, &before);
}

static errint_t verify_object(const struct verification *v, int dirfd, const char *name,
                              const char *path)
{
	struct verify_totals *t = v->totals;
	struct finding f;
	errint_t err = -EAGAIN;

	for (int i = 0; i < ATTEMPTS && err == -EAGAIN; i++) {
		if (i > 0)
			free(f.error);
		f = (struct finding){.v = v, .path = path};
		err = look(dirfd, name, &f);
	}
	if (err == -EAGAIN)
		err = 0; /* changed each time: what was found last stands */
	if (err || f.what == FOUND_PLAIN) {
		t->plain += !err;
		free(f.error);
		return err == -ENOENT ? 0 : err;
	}
	t->files++;
	t->damaged += f.what == FOUND_DAMAGE;
	t->logical_bytes += f.logical_bytes;
	t->stored_bytes += f.stored_bytes;
	report(v, path,
	       &(struct verify_result){
	           .error = f.error, .ranges = f.ranges, .count = f.count});
	free(f.error);
	return 0;
}

static void unreadable_directory(struct verification *v, const struct store_walk_item *item)
{
	cleanup_free char *path = text_escape(item->dir);

	if (item->error == -EXDEV) {
		log_warn("\"%s\" is a mount inside the store: not looked into", path);
		return;
	}
	if (!v->err)
		v->err =
		    set_cause_errno(v->cause, item->error, "cannot look into \"%s\"", path);
	report(v, item->dir, &(struct verify_result){.error = strerror(-item->error)});
}

static errint_t visit(void *ctx, const struct store_walk_item *item)
{
	struct verification *v = ctx;
	cleanup_free char *path = NULL;

	if (is_stopped(v))
		return -EINTR;
	if (item->error) {
		unreadable_directory(v, item);
		return 0;
	}
	if (item->type != DT_REG)
		return 0;
	if (!name_has_suffix(item->name)) {
		v->totals->plain++;
		return 0;
	}
	path = xasprintf("%s%s%s", item->dir, *item->dir ? "/" : "", item->name);
	return verify_object(v, item->dirfd, item->name, path);
}

errint_t verify_tree(struct store *s, const char *store_path, uint64_t max_object,
                     verify_unflushed_fn unflushed, verify_report_fn report_fn, void *ctx,
                     const volatile bool *stop, struct verify_totals *totals, char **cause)
{
	struct verification v = {.max_object = max_object,
	                         .unflushed = unflushed,
	                         .report = report_fn,
	                         .ctx = ctx,
	                         .stop = stop,
	                         .totals = totals,
	                         .cause = cause};
	errint_t err;

	*totals = (struct verify_totals){0};
	(void)store_get_pool(s, &v.pool, NULL); /* not known: no mark counts */
	err = store_walk(s, store_path, visit, &v);
	if (err == -EINTR)
		return set_cause(cause, err, "stopped before the end");
	if (err) {
		cleanup_free char *path = text_escape(store_path);

		return set_cause_errno(cause, err, "cannot verify \"%s\"", path);
	}
	return v.err;
}
