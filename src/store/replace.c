/*
 * Bringing objects up to date: files in tmp/, renaming over, copying over, and finishing
 * what was stopped.
 *
 * Renaming over is atomic by itself. Copying over is made so by an intent:
 *
 *   (1) tmp/object-N is complete and durable (the caller's fsync)
 *   (2) tmp/intent-M, which names it and the target's identity, is written and fsynced, and
 *       tmp/ is fsynced                                              step: store.intent
 *   (3) room is reserved in the target, whose size and bytes stay; without it: back to (1)
 *   (4) the bytes are copied, the target is fsynced                  step: store.copied
 *   (5) intent-M is removed, tmp/ is fsynced; object-N is removed
 *
 *   stopped       on disk                        at the next start
 *   before (2)    perhaps a torn intent          target is old; both files swept
 *   in (3), (4)   valid intent, whole object-N   copied again from the start
 *   in (5)        perhaps the intent             the same bytes copied again, or nothing
 *
 * A target found by hint or by walking is believed by its identity only. Intents are texts
 * with a checksum (intent.h): a torn one was never durable, nothing was copied. Where (4) fails instead of being
 * stopped, intent and object are kept and listed in s->unfinished until the same target is
 * written whole or replaced. The numbers in the names grow: of two intents for one target
 * the younger one counts.
 *
 * Threads: any; two calls for one target exclude each other by the file's lock, which the
 * caller holds. s->lock guards the counter and the list.
 */
#include "store/store.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/steps.h"
#include "base/sysio.h"
#include "base/text.h"
#include "store/durable.h"
#include "store/intent.h"

#define OBJECT_PREFIX "object-"
#define CAPABILITY    "security.capability"

struct store_unfinished {
	struct store_unfinished *next;
	struct ident target;
	char intent[NAME_MAX + 1];
	char tmp[NAME_MAX + 1];
};

/* ---- files in tmp/ ---- */

static int create_numbered(struct store *s, const char *prefix, struct name *ret_name)
{
	struct name name;
	int fd;

	INVARIANT(s->lock_fd >= 0);
	do {
		uint64_t n;

		lock_take(&s->lock);
		n = ++s->tmp_counter;
		lock_drop(&s->lock);
		(void)snprintf(name.s, sizeof name.s, "%s%016" PRIx64, prefix, n);
		/* Read back once it is in its place: that must not show in its atime. */
		fd = sys_openat(s->tmp_fd, name.s,
		                O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOATIME, 0600);
	} while (fd == -EEXIST);
	if (fd >= 0)
		*ret_name = name;
	return fd;
}

int store_tmp_create(struct store *s, struct name *ret_name)
{
	return create_numbered(s, OBJECT_PREFIX, ret_name);
}

static bool is_needed(struct store *s, const char *name)
{
	bool needed = false;

	lock_take(&s->lock);
	for (struct store_unfinished *u = s->unfinished; u && !needed; u = u->next)
		needed = !strcmp(u->tmp, name) || !strcmp(u->intent, name);
	lock_drop(&s->lock);
	return needed;
}

void store_tmp_unlink(struct store *s, const char *tmp_name)
{
	errint_t err = is_needed(s, tmp_name) ? 0 : sys_unlinkat(s->tmp_fd, tmp_name, 0);

	if (err && err != -ENOENT)
		atomic_store(&s->tmp_littered, true);
}

/* ---- copies that stopped halfway ---- */

static void remember_unfinished(struct store *s, const struct intent *in)
{
	struct store_unfinished *u = xcalloc(1, sizeof *u);

	u->target = in->target;
	(void)snprintf(u->intent, sizeof u->intent, "%s", in->name);
	(void)snprintf(u->tmp, sizeof u->tmp, "%s", in->tmp);
	lock_take(&s->lock);
	u->next = s->unfinished;
	s->unfinished = u;
	lock_drop(&s->lock);
}

bool store_is_unfinished(struct store *s, const struct ident *target)
{
	bool found = false;

	lock_take(&s->lock);
	for (struct store_unfinished *u = s->unfinished; u && !found; u = u->next)
		found = ident_equal(&u->target, target);
	lock_drop(&s->lock);
	return found;
}

void store_forget_unfinished(struct store *s)
{
	while (s->unfinished) {
		struct store_unfinished *u = s->unfinished;

		s->unfinished = u->next;
		free(u);
	}
}

static struct store_unfinished *take_unfinished(struct store *s, const struct ident *target)
{
	struct store_unfinished **p, *u;

	lock_take(&s->lock);
	p = &s->unfinished;
	while (*p && !ident_equal(&(*p)->target, target))
		p = &(*p)->next;
	u = *p;
	if (u)
		*p = u->next;
	lock_drop(&s->lock);
	return u;
}

/* (5). The object goes only when the intent is durably gone: an intent without it could not
 * be finished. */
static errint_t drop_intent(struct store *s, const char *intent)
{
	errint_t err = sys_unlinkat(s->tmp_fd, intent, 0);

	return err && err != -ENOENT ? err : store_sync_dir(s->tmp_fd);
}

static errint_t remove_intent(struct store *s, const char *intent, const char *tmp)
{
	errint_t err = drop_intent(s, intent);

	if (!err)
		store_tmp_unlink(s, tmp);
	return err;
}

/* The target is durably whole, or a younger intent for it is durable. What cannot be removed stays
 * known. */
static errint_t drop_unfinished(struct store *s, const struct ident *target)
{
	struct store_unfinished *u, *kept = NULL;
	errint_t err = 0;

	while ((u = take_unfinished(s, target))) {
		errint_t e = remove_intent(s, u->intent, u->tmp);

		if (e) {
			u->next = kept;
			kept = u;
			err = e;
		} else {
			free(u);
		}
	}
	lock_take(&s->lock);
	while ((u = kept)) {
		kept = u->next;
		u->next = s->unfinished;
		s->unfinished = u;
	}
	lock_drop(&s->lock);
	return err;
}

/* ---- renaming over ---- */

static errint_t rename_over(struct store *s, const char *tmp_name, int dirfd,
                            const char *store_name)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}};
	struct stat st;
	errint_t err = sys_fstat(dirfd, &st);

	if (!err)
		err = sys_renameat2(s->tmp_fd, tmp_name, dirfd, store_name, 0);
	if (err)
		return err;
	step("store.renamed");
	ts[1] = st.st_mtim;
	/* "." because dirfd may be O_PATH. Who may write a directory of somebody else may
	 * not set its times; the file is replaced all the same. */
	(void)sys_utimensat(dirfd, ".", ts, 0);
	return 0;
}

errint_t store_replace(struct store *s, const char *tmp_name, int dirfd,
                       const char *store_name)
{
	struct ident old;
	bool any_unfinished;
	errint_t err;

	lock_take(&s->lock);
	any_unfinished = s->unfinished != NULL;
	lock_drop(&s->lock);
	if (!any_unfinished || ident_get(dirfd, store_name, &old) ||
	    !store_is_unfinished(s, &old))
		return rename_over(s, tmp_name, dirfd, store_name);
	/* The half-written object is on its way out: its intent may go as soon as that is
	 * durable. */
	err = rename_over(s, tmp_name, dirfd, store_name);
	if (!err && store_sync_dir(dirfd) == 0)
		(void)drop_unfinished(s, &old); /* else no start will find its target */
	return err;
}

/* ---- copying over ---- */

/* (2) */
static errint_t write_intent(struct store *s, struct intent *in)
{
	cleanup_free char *text = intent_text(in);
	struct name name;
	int fd = create_numbered(s, INTENT_PREFIX, &name);
	errint_t err, err_close;

	if (fd < 0)
		return fd;
	(void)snprintf(in->name, sizeof in->name, "%s", name.s);
	err = full_pwrite(fd, text, strlen(text), 0);
	if (!err)
		err = store_sync_file(fd);
	err_close = sys_close(fd);
	if (!err)
		err = err_close;
	if (!err)
		err = store_sync_dir(s->tmp_fd);
	return err;
}

/* The times, and what writing clears: setuid, setgid and capabilities. -EPERM: who may write
 * another's file may not do this; nothing else can be done, and the bytes count. */
static errint_t restore_attributes(int target_fd, const struct intent *in)
{
	struct stat st;
	errint_t err = sys_fstat(target_fd, &st);

	if (!err && (st.st_mode & 07777) != (in->mode & 07777))
		err = sys_fchmod(target_fd, in->mode & 07777);
	if (!err && in->cap_len)
		(void)sys_fsetxattr(target_fd, CAPABILITY, in->cap, in->cap_len, 0);
	if (!err)
		err = sys_futimens(target_fd, in->ts);
	return err == -EPERM ? 0 : err;
}

/* (3). A failed attempt is undone: what it reserved, and what it cleared. */
static errint_t reserve_room(int target_fd, const struct stat *st, const struct intent *in)
{
	struct intent before = *in;
	errint_t err;

	if (!in->size)
		return 0;
	err = sys_fallocate(target_fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)in->size);
	if (!err || err == -EOPNOTSUPP || err == -ENOSYS || err == -EINVAL)
		return 0;
	(void)sys_ftruncate(target_fd, st->st_size);
	before.ts[0] = st->st_atim;
	before.ts[1] = st->st_mtim;
	(void)restore_attributes(target_fd, &before);
	return err;
}

/* (4) */
static errint_t copy_bytes(int tmp_fd, int target_fd, const struct intent *in)
{
	errint_t err = full_copy_range(tmp_fd, 0, target_fd, 0, in->size);

	if (!err)
		err = sys_ftruncate(target_fd, (off_t)in->size);
	if (!err)
		err = restore_attributes(target_fd, in);
	if (!err)
		err = store_sync_file(target_fd);
	if (!err)
		step("store.copied");
	return err;
}

static errint_t fill_intent(struct intent *in, const char *tmp_name, int tmp_fd,
                            int target_fd, const struct stat *target)
{
	struct stat st;
	ssize_t n = sys_fgetxattr(target_fd, CAPABILITY, in->cap, sizeof in->cap);
	errint_t err = sys_fstat(tmp_fd, &st);

	if (err)
		return err;
	in->cap_len = n > 0 ? (size_t)n : 0;
	in->size = (uint64_t)st.st_size;
	in->mode = target->st_mode & 07777;
	(void)snprintf(in->tmp, sizeof in->tmp, "%s", tmp_name);
	return 0;
}

static errint_t check_target(int target_fd, const struct ident *target, struct stat *ret)
{
	struct ident now;
	errint_t err = sys_fstat(target_fd, ret);

	if (!err)
		err = ident_get(target_fd, "", &now);
	if (!err && (!S_ISREG(ret->st_mode) || !ident_equal(&now, target)))
		err = -ESTALE;
	return err;
}

errint_t store_copy_over(struct store *s, const char *tmp_name, int target_fd,
                         const struct ident *target, const char *path_hint,
                         const struct timespec ts[2], char **cause)
{
	struct intent in = {.target = *target, .ts = {ts[0], ts[1]}};
	cleanup_fd int tmp_fd = store_open_at(s->tmp_fd, tmp_name, O_RDONLY);
	struct stat st;
	bool was_whole;
	errint_t err = tmp_fd < 0 ? tmp_fd : check_target(target_fd, target, &st);

	if (!err)
		err = fill_intent(&in, tmp_name, tmp_fd, target_fd, &st);
	if (err)
		return set_cause_errno(cause, err, "cannot copy over the object");
	in.hint = xstrdup(strlen(path_hint) <= INTENT_HINT_MAX ? path_hint : "");
	was_whole = !store_is_unfinished(s, target);
	err = write_intent(s, &in);
	if (err) {
		set_cause_errno(cause, err, "cannot write an intent in %s/tmp",
		                NAMES_PRIVATE);
		/* It may be durable all the same; then it must not be: the next start would
		 * copy these bytes over whatever the object is by then. */
		if (in.name[0] && drop_intent(s, in.name))
			remember_unfinished(s, &in);
		goto out;
	}
	step("store.intent");
	(void)drop_unfinished(s, target);
	err = reserve_room(target_fd, &st, &in);
	if (err && was_whole && drop_intent(s, in.name) == 0) {
		set_cause_errno(cause, err, "cannot reserve room to copy over the object");
		goto out;
	}
	if (!err)
		err = copy_bytes(tmp_fd, target_fd, &in);
	/* The older ones first: alone, the next start would take them for the youngest. */
	if (!err)
		err = drop_unfinished(s, target);
	if (!err)
		err = remove_intent(s, in.name, in.tmp);
	if (err) {
		remember_unfinished(s, &in);
		set_cause_errno(
		    cause, err,
		    "copying over the object stopped halfway; the new bytes are "
		    "kept in %s/tmp/%s",
		    NAMES_PRIVATE, in.tmp);
	}
out:
	free(in.hint);
	return err;
}

/* ---- recovery ---- */

struct tmp_listing {
	char **names;
	size_t count;
};

struct recovery {
	struct store *store;
	struct intent *intents; /* in the order of their making */
	bool *done;             /* finished, or to be dropped */
	size_t count, missing;
	errint_t err; /* the first */
	char **cause;
};

static errint_t add_tmp_name(void *ctx, const char *name, unsigned char type)
{
	struct tmp_listing *l = ctx;
	char **names = realloc(l->names, (l->count + 1) * sizeof *names);
	char *copy = strdup(name);

	if (names)
		l->names = names;
	if (!names || !copy) {
		free(copy);
		return -ENOMEM;
	}
	l->names[l->count++] = copy;
	return 0;
}

static void tmp_listing_clear(struct tmp_listing *l)
{
	for (size_t i = 0; i < l->count; i++)
		free(l->names[i]);
	free(l->names);
}

static int by_intent_name(const void *a, const void *b)
{
	const struct intent *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static errint_t load_intents(struct recovery *r, const struct tmp_listing *l)
{
	r->intents = xcalloc(l->count + 1, sizeof *r->intents);
	r->done = xcalloc(l->count + 1, sizeof *r->done);
	for (size_t i = 0; i < l->count; i++) {
		struct intent *in = &r->intents[r->count];
		errint_t err;

		if (strncmp(l->names[i], INTENT_PREFIX, strlen(INTENT_PREFIX)) ||
		    strlen(l->names[i]) > NAME_MAX)
			continue;
		err = intent_read(r->store->tmp_fd, l->names[i], in);
		if (!err)
			r->count++;
		else if (err == -EBADMSG)
			log_info(
			    "intent %s in %s/tmp is incomplete: nothing had been copied",
			    l->names[i], NAMES_PRIVATE);
		else
			return set_cause_errno(r->cause, err, "cannot read %s/tmp/%s",
			                       NAMES_PRIVATE, l->names[i]);
	}
	qsort(r->intents, r->count, sizeof *r->intents, by_intent_name);
	return 0;
}

/* Opens for writing; a file that its owner made read-only is writable for the moment, its
 * mode is in the intent. */
static int open_target(int dirfd, const char *name)
{
	int fd = store_open_at(dirfd, name, O_RDWR | O_NONBLOCK);
	cleanup_fd int ro = -1;
	struct stat st;

	if (fd != -EACCES)
		return fd;
	ro = store_open_at(dirfd, name, O_RDONLY | O_NONBLOCK);
	if (ro < 0 || sys_fstat(ro, &st) || !S_ISREG(st.st_mode) ||
	    sys_fchmod(ro, (st.st_mode & 07777) | S_IWUSR))
		return fd;
	return sys_openat(AT_FDCWD, fd_path(ro).s, O_RDWR, 0);
}

static void recovery_failed(struct recovery *r, const struct intent *in, errint_t err)
{
	cleanup_free char *hint = text_escape(in->hint);

	if (!r->err)
		set_cause_errno(r->cause, err,
		                "cannot finish the interrupted write-back of \"%s\" from "
		                "%s/tmp/%s",
		                hint, NAMES_PRIVATE, in->tmp);
	if (!r->err)
		r->err = err;
	remember_unfinished(r->store, in);
}

/* The target lies under this name. */
static void finish_at(struct recovery *r, size_t i, int dirfd, const char *name)
{
	struct intent *in = &r->intents[i];
	cleanup_free char *hint = text_escape(in->hint);
	cleanup_fd int tmp_fd = store_open_at(r->store->tmp_fd, in->tmp, O_RDONLY);
	cleanup_fd int target_fd = open_target(dirfd, name);
	struct stat st;
	errint_t err = tmp_fd < 0 ? tmp_fd : target_fd < 0 ? target_fd : 0;

	r->done[i] = true;
	if (!err)
		err = check_target(target_fd, &in->target, &st);
	if (!err)
		err = copy_bytes(tmp_fd, target_fd, in);
	if (!err)
		err = remove_intent(r->store, in->name, in->tmp);
	if (err)
		recovery_failed(r, in, err);
	else
		log_info("finished the interrupted write-back of \"%s\"", hint);
}

/* Whether there is something to copy. Its loss cannot come from a stop. */
static bool source_is_whole(struct recovery *r, size_t i)
{
	struct intent *in = &r->intents[i];
	cleanup_free char *hint = text_escape(in->hint);
	struct stat st;
	errint_t err = sys_fstatat(r->store->tmp_fd, in->tmp, &st, AT_SYMLINK_NOFOLLOW);

	if (!err && S_ISREG(st.st_mode) && (uint64_t)st.st_size == in->size)
		return true;
	if (err == -ENOENT || !err) {
		log_warn(
		    "the interrupted write-back of \"%s\" cannot be finished: %s/tmp/%s "
		    "is %s; the object may be damaged",
		    hint, NAMES_PRIVATE, in->tmp, err ? "missing" : "incomplete");
		(void)sys_unlinkat(r->store->tmp_fd, in->name, 0);
	} else {
		recovery_failed(r, in, err);
	}
	return false;
}

static bool leads_to(int dirfd, const char *name, const struct ident *want)
{
	struct ident id;

	return ident_get(dirfd, name, &id) == 0 && ident_equal(&id, want);
}

static void finish_by_hint(struct recovery *r, size_t i)
{
	struct intent *in = &r->intents[i];
	cleanup_free char *dir = xstrdup(in->hint);
	char *slash = strrchr(dir, '/');
	const char *name = slash ? slash + 1 : in->hint;
	cleanup_fd int dirfd = -1;

	if (slash)
		*slash = '\0';
	if (*name)
		dirfd = store_open_dir(r->store, slash ? dir : "", O_PATH);
	if (dirfd >= 0 && leads_to(dirfd, name, &in->target))
		finish_at(r, i, dirfd, name);
	else
		r->missing++;
}

static errint_t finish_found(void *ctx, const struct store_walk_item *item)
{
	struct recovery *r = ctx;
	struct ident id;

	if (item->error) {
		cleanup_free char *dir = text_escape(item->dir);

		log_warn("cannot look into \"%s\": %s", dir, strerror(-item->error));
		return 0;
	}
	if (item->type != DT_REG || ident_get(item->dirfd, item->name, &id))
		return 0;
	for (size_t i = 0; i < r->count; i++) {
		if (!r->done[i] && ident_equal(&id, &r->intents[i].target)) {
			finish_at(r, i, item->dirfd, item->name);
			r->missing--;
		}
	}
	return r->missing ? 0 : 1;
}

static void keep_missing(struct recovery *r)
{
	for (size_t i = 0; i < r->count; i++) {
		cleanup_free char *hint = text_escape(r->intents[i].hint);

		if (r->done[i])
			continue;
		log_warn("the object of an interrupted write-back, last seen as \"%s\", is "
		         "nowhere in the store; its new bytes stay in %s/tmp/%s (and %s)",
		         hint, NAMES_PRIVATE, r->intents[i].tmp, r->intents[i].name);
		remember_unfinished(r->store, &r->intents[i]);
	}
}

/* Removes what nothing in s->unfinished names. */
static void sweep(struct store *s)
{
	struct tmp_listing l = {0};
	errint_t err = sys_walk_dir(s->tmp_fd, add_tmp_name, &l);

	for (size_t i = 0; i < l.count && !err; i++) {
		errint_t e;

		if (is_needed(s, l.names[i]))
			continue;
		e = sys_unlinkat(s->tmp_fd, l.names[i], 0);
		if (e == -EISDIR)
			e = sys_unlinkat(s->tmp_fd, l.names[i], AT_REMOVEDIR);
		if (e) {
			cleanup_free char *name = text_escape(l.names[i]);

			log_warn("cannot remove %s/tmp/%s: %s", NAMES_PRIVATE, name,
			         strerror(-e));
		}
	}
	if (err)
		log_warn("cannot sweep %s/tmp: %s", NAMES_PRIVATE, strerror(-err));
	tmp_listing_clear(&l);
}

void store_sweep(struct store *s)
{
	if (s->lock_fd >= 0 && s->tmp_known && atomic_load(&s->tmp_littered))
		sweep(s);
}

/* Of several intents for one target only the youngest says what the object is to be. An error:
 * an older one is still there, and none may be finished before it is gone. */
static errint_t drop_superseded(struct recovery *r)
{
	errint_t err = 0;

	for (size_t i = 0; i < r->count; i++) {
		for (size_t j = i + 1; j < r->count && !r->done[i]; j++) {
			if (r->done[j] ||
			    !ident_equal(&r->intents[i].target, &r->intents[j].target))
				continue;
			r->done[i] = true;
			err =
			    remove_intent(r->store, r->intents[i].name, r->intents[i].tmp);
			if (err)
				return set_cause_errno(r->cause, err,
				                       "cannot remove %s/tmp/%s",
				                       NAMES_PRIVATE, r->intents[i].name);
		}
	}
	return 0;
}

/* Those that the hint does not find are finished together in one walk. */
static errint_t finish_all(struct recovery *r)
{
	errint_t err = 0;

	for (size_t i = 0; i < r->count; i++)
		r->done[i] = !source_is_whole(r, i);
	err = drop_superseded(r);
	if (err)
		return err;
	for (size_t i = 0; i < r->count; i++)
		if (!r->done[i])
			finish_by_hint(r, i);
	if (r->missing)
		err = store_walk(r->store, "", finish_found, r);
	return err < 0 ? set_cause_errno(r->cause, err, "cannot walk the store") : 0;
}

errint_t store_finish_intents(struct store *s, char **cause)
{
	struct recovery r = {.store = s, .cause = cause};
	struct tmp_listing l = {0};
	errint_t err;

	INVARIANT(s->lock_fd >= 0);
	store_forget_unfinished(s);
	err = sys_walk_dir(s->tmp_fd, add_tmp_name, &l);
	if (err)
		set_cause_errno(cause, err, "cannot read %s/tmp", NAMES_PRIVATE);
	else
		err = load_intents(&r, &l);
	if (!err)
		err = finish_all(&r);
	if (!err) {
		keep_missing(&r);
		s->tmp_known = true;
		sweep(s);
		err = r.err;
	}
	for (size_t i = 0; i < r.count; i++)
		free(r.intents[i].hint);
	free(r.intents);
	free(r.done);
	tmp_listing_clear(&l);
	return err;
}
