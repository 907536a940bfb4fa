/*
 * lost+found: see lost.h. Everything goes by descriptors of the directory; names are single
 * components, links are not followed, and opening never waits (a fifo may lie there).
 *
 * Threads: any; only the count is shared, under pool->lock.
 */
#include "pool/lost.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/internal.h"

#define LOST_NAME   40 /* room for one of our names there */
#define NAMES_TRIED 10000
#define WHY_MAX     512

static void write_why(struct pool *p, const char *scratch_file, const char *why)
{
	struct timespec now = clock_now();
	cleanup_free char *text = xasprintf("%s %s", text_time(&now).s, why);
	cleanup_fd int fd =
	    sys_openat(p->scratch_fd, scratch_file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);

	/* Without it the entry is as safe, only less well explained. */
	if (fd >= 0)
		(void)sys_fsetxattr(fd, WHY_XATTR, text, MIN_OF(strlen(text), WHY_MAX), 0);
}

static bool is_same_file(int dirfd, const char *name, int other_dirfd, const char *other)
{
	struct stat a, b;

	return sys_fstatat(dirfd, name, &a, AT_SYMLINK_NOFOLLOW) == 0 &&
	       sys_fstatat(other_dirfd, other, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
	       a.st_ino == b.st_ino;
}

static void lost_name(uint64_t ino, unsigned i, char ret[LOST_NAME])
{
	if (i == 0)
		snprintf(ret, LOST_NAME, "%016llx", (unsigned long long)ino);
	else
		snprintf(ret, LOST_NAME, "%016llx-%u", (unsigned long long)ino, i);
}

bool pool_is_in_lost(struct pool *p, const char *scratch_file, uint64_t ino)
{
	char name[LOST_NAME];
	struct stat st;

	for (unsigned i = 0; i < NAMES_TRIED; i++) {
		lost_name(ino, i, name);
		if (is_same_file(p->scratch_fd, scratch_file, p->lost_fd, name))
			return true;
		if (sys_fstatat(p->lost_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return false;
	}
	return false;
}

static errint_t to_lost(struct pool *p, const char *scratch_file, uint64_t ino,
                        const char *why, bool link)
{
	char name[LOST_NAME];
	errint_t r = -EEXIST;

	write_why(p, scratch_file, why);
	for (unsigned i = 0; i < NAMES_TRIED && r == -EEXIST; i++) {
		lost_name(ino, i, name);
		if (link)
			r = sys_linkat(p->scratch_fd, scratch_file, p->lost_fd, name, 0);
		else
			r = sys_renameat2(p->scratch_fd, scratch_file, p->lost_fd, name,
			                  RENAME_NOREPLACE);
		/* Linked by a recovery that was stopped. */
		if (r == -EEXIST &&
		    is_same_file(p->scratch_fd, scratch_file, p->lost_fd, name))
			return link ? 0 : sys_unlinkat(p->scratch_fd, scratch_file, 0);
	}
	if (r == 0) {
		count_one(COUNTER_LOST_AND_FOUND);
		lock_take(&p->lock);
		p->lost_count++;
		lock_drop(&p->lock);
	}
	return r;
}

errint_t pool_move_to_lost(struct pool *p, const char *scratch_file, uint64_t ino,
                           const char *why)
{
	return to_lost(p, scratch_file, ino, why, false);
}

errint_t pool_link_to_lost(struct pool *p, const char *scratch_file, uint64_t ino,
                           const char *why)
{
	return to_lost(p, scratch_file, ino, why, true);
}

/* ---- looking ---- */

/* Splits "TIME REASON"; what is not of this form is all reason. */
static void parse_why(char *text, struct pool_lost *e)
{
	char *blank = strchr(text, ' ');
	struct tm tm = {0};
	int fraction = 0, end = 0;

	e->why = text;
	if (!blank)
		return;
	*blank = '\0';
	if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d.%6dZ%n", &tm.tm_year, &tm.tm_mon,
	           &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &fraction,
	           &end) == 7 &&
	    end > 0 && text[end] == '\0') {
		tm.tm_year -= 1900;
		tm.tm_mon -= 1;
		e->since =
		    (struct timespec){.tv_sec = timegm(&tm), .tv_nsec = fraction * 1000L};
		e->why = blank + 1;
	} else {
		*blank = ' ';
	}
}

static void make_token(const struct stat *st, struct pool_lost *e)
{
	/* Whatever changes the file moves its ctime; another file has another number. */
	(void)snprintf(e->token, sizeof(e->token), "%ju-%jd-%ld-%jd", (uintmax_t)st->st_ino,
	               (intmax_t)st->st_ctim.tv_sec, st->st_ctim.tv_nsec,
	               (intmax_t)st->st_size);
}

/* fd < 0: it cannot be opened (a link, a socket…), and is shown as what it is. */
static errint_t look(struct pool *p, const char *name, int fd, pool_lost_fn fn, void *ctx)
{
	struct pool_lost e = {.name = name, .hint = "", .why = ""};
	cleanup_free char *hint = NULL;
	char why[WHY_MAX + 1];
	struct stat st;
	ssize_t n;
	errint_t r = fd >= 0 ? sys_fstat(fd, &st)
	                     : sys_fstatat(p->lost_fd, name, &st, AT_SYMLINK_NOFOLLOW);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	e.mtime = st.st_mtim;
	e.since = st.st_ctim;
	e.regular = fd >= 0 && S_ISREG(st.st_mode);
	make_token(&st, &e);
	if (!e.regular)
		return fn(ctx, &e);
	e.size = (uint64_t)st.st_size;
	e.has_record = record_read(fd, &e.record) == 0;
	if (e.has_record)
		record_settle(&e.record, e.size, false);
	if (record_read_hint(fd, &hint) == 0 && hint)
		e.hint = hint;
	n = sys_fgetxattr(fd, WHY_XATTR, why, sizeof(why) - 1);
	if (n > 0) {
		why[n] = '\0';
		parse_why(why, &e);
	}
	return fn(ctx, &e);
}

static int open_entry(struct pool *p, const char *name)
{
	return sys_openat(p->lost_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
}

struct each_lost {
	struct pool *p;
	pool_lost_fn fn;
	void *ctx;
};

static errint_t each_lost(void *ctx, const char *name, unsigned char type)
{
	struct each_lost *w = ctx;
	cleanup_fd int fd = type == DT_REG ? open_entry(w->p, name) : -1;

	return look(w->p, name, fd, w->fn, w->ctx);
}

errint_t pool_each_lost(struct pool *p, pool_lost_fn fn, void *ctx)
{
	struct each_lost w = {p, fn, ctx};

	return sys_walk_dir(p->lost_fd, each_lost, &w);
}

/* ---- one entry ---- */

/* Refuses what is no single name. */
static errint_t check_name(const char *name, char **cause)
{
	cleanup_free char *shown = text_escape(name);

	if (*name && !strchr(name, '/') && strcmp(name, ".") != 0 &&
	    strcmp(name, "..") != 0)
		return 0;
	return set_cause(cause, -EINVAL, "\"%s\" is no name of an entry", shown);
}

static errint_t stat_entry(struct pool *p, const char *name, struct stat *st, char **cause)
{
	errint_t r = check_name(name, cause);

	if (r == 0)
		r = sys_fstatat(p->lost_fd, name, st, AT_SYMLINK_NOFOLLOW);
	if (r == -ENOENT || r == -ENAMETOOLONG) {
		cleanup_free char *shown = text_escape(name);

		return set_cause(cause, -ENOENT, "there is no \"%s\" in lost+found", shown);
	}
	return r;
}

errint_t pool_lost_get(struct pool *p, const char *name, pool_lost_fn fn, void *ctx,
                       int *ret_fd, char **cause)
{
	cleanup_fd int fd = -1;
	struct stat st;
	errint_t r = stat_entry(p, name, &st, cause);

	if (r < 0)
		return r;
	if (S_ISREG(st.st_mode))
		fd = open_entry(p, name);
	r = look(p, name, fd, fn, ctx);
	/* What was swapped for a fifo meanwhile is not handed out. */
	if (fd >= 0 && (sys_fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)))
		return -EINVAL;
	if (r == 0 && ret_fd)
		*ret_fd = steal_fd(&fd);
	return r;
}

errint_t pool_lost_discard(struct pool *p, const char *name, const char *token,
                           char **cause)
{
	struct pool_lost now;
	struct stat st;
	errint_t r = stat_entry(p, name, &st, cause);

	if (r < 0)
		return r;
	make_token(&st, &now);
	if (strcmp(now.token, token) != 0) /* (L1) */
		return set_cause(cause, -ESTALE, "it has changed meanwhile; look again");
	r = sys_unlinkat(p->lost_fd, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
	if (r < 0)
		return set_cause_errno(cause, r, "cannot delete it");
	lock_take(&p->lock);
	p->lost_count -= p->lost_count > 0;
	lock_drop(&p->lock);
	r = sys_fsync_dir(p->lost_fd);
	return r < 0 ? set_cause_errno(cause, r, "deleted, and lost+found cannot be synced")
	             : 0;
}
