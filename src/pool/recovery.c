/*
 * Recovery: what an earlier daemon left in the pool, sorted out before the mount answers
 * (design, section 9). Records are read, not contents; flushing goes on behind the mount.
 *
 * For a dirty scratch, its object first, then trust:
 *
 *   the object                              after a reboot              same boot
 *   ------------------------------------------------------------------------------------
 *   AT_BASE   has the base's stamp          trust rule                  take
 *   torn      base's, and then what an       cut back: AT_BASE           same
 *             append wrote (RECORD_APPEND)
 *   (of a flush of this very scratch: an older version of the file, restored behind us, names
 *   both too and is FOREIGN)
 *   NEWER     names this pool, this file,   n >= sync_seq: the object   take, with the new
 *             flush number n                is the truth; else new      base
 *                                           base and trust rule
 *             a tail whose object is FOREIGN goes to lost+found: it is no file by itself
 *   FOREIGN   is someone else's             trust rule; the flush       take; the flush
 *                                           keeps both (section 8)      keeps both
 *   ABSENT    is not where the hint says,   wait                        wait
 *             or another file of this
 *             pool is (a rename of ours)
 *
 * A scratch that is doomed was marked before the last link went (pool_dooming): where its object is still
 * there, the unlink did not happen; where it is not, the scratch goes with it. After a reboot it waits
 * too where its object is not at the hint: the unlink, and a rename before it, may not have become
 * durable.
 *
 * Trust rule: only if sync_seq > 0 and the object is of no later flush, and cut to sync_size before the record gets the new boot
 * id; otherwise the object is the truth and the scratch goes to lost+found. (A new file whose
 * object is still the 0-byte place-holder becomes an empty file.) A pool that was synced and marked
 * at its end counts as the same boot: what was left dirty in it is whole.
 * Waiting: a look-up that meets the object's identity takes the scratch over (recovery_met); a walk
 * behind the mount meets every file; only a finished walk may say that an object is gone.
 *
 * Invariants:
 *  (R1) Every step may be stopped and done again: a scratch is deleted only if it is clean, or
 *       doomed with its name gone, empty and never synced, or older than its object; everything else is moved.
 *  (R2) The number of an object that a record names goes into the catalog before the object is
 *       resolved, so that a lost row cannot give it another number.
 *  (R3) Clean scratch is kept only if nothing can have torn it: same boot, or the pool was
 *       synced and marked; and it was whole.
 *  (R4) The clean mark is gone, durably, before the mount answers; and it is made again only by a
 *       daemon that came to the end of recovery.
 *  (R5) A 0-byte object always has a record that knows it as new, also while what was written of
 *       it is set aside.
 */
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/workers.h"
#include "pool/content.h"
#include "pool/flush-job.h"
#include "pool/lost.h"
#include "pool/shards.h"
#include "store/append.h"
#include "store/private.h"

#include "utlist.h"

enum object_place { AT_BASE, NEWER, FOREIGN, ABSENT };

struct found {
	enum object_place where;
	struct stat st;
	struct stamp stamp;
	struct object object; /* table freed; figures stay */
};

struct recovery {
	struct pool *p;
	const char *shard; /* the one that is being read */
	int shard_fd;
	uint64_t taken, kept, dropped;
	errint_t error;
	char **cause;
};

/* ---- looking at the store ---- */

/* Opens what lies at a store path: -ENOENT where it is not, or is no regular file. */
static int open_path(struct pool *p, const char *path, int *ret_dirfd)
{
	cleanup_free char *copy = xstrdup(path);
	char *slash = strrchr(copy, '/');
	const char *base = slash ? slash + 1 : copy;
	struct stat st;
	errint_t r;
	int dirfd, fd;

	/* A hint is what it says, no more: it may lead over a link or out of the store by now, or
	 * have been made to. */
	if (!*base || strncmp(copy, NAMES_PRIVATE "/", sizeof(NAMES_PRIVATE)) == 0)
		return -ENOENT;
	if (slash)
		*slash = '\0';
	dirfd = store_open_dir(p->store, slash ? copy : "", O_RDONLY);
	if (dirfd == -ENOTDIR || dirfd == -ELOOP || dirfd == -EXDEV)
		return -ENOENT;
	if (dirfd < 0)
		return dirfd;
	fd = store_open_object(dirfd, base);
	if (fd == -ELOOP || fd == -ENXIO || fd == -EXDEV || fd == -EINVAL)
		fd = -ENOENT;
	if (fd >= 0) {
		r = sys_fstat(fd, &st);
		if (r == 0 && !S_ISREG(st.st_mode))
			r = -ENOENT;
		if (r < 0) {
			(void)sys_close(fd);
			fd = r;
		}
	}
	if (ret_dirfd && fd >= 0)
		*ret_dirfd = dirfd;
	else
		(void)sys_close(dirfd);
	return fd;
}

static bool names_us(struct pool *p, const struct found *f, uint64_t ino)
{
	return f->object.has_cellar_frame && f->object.cellar.ino == ino &&
	       uuid_equal(&f->object.cellar.pool, &p->place.uuid);
}

/* Another file of this pool stands at the hint: a rename of our own put it there. */
static bool is_another_of_ours(struct pool *p, const struct record *rec,
                               const struct found *f)
{
	struct catalog_file row;

	if (f->object.has_cellar_frame &&
	    uuid_equal(&f->object.cellar.pool, &p->place.uuid))
		return f->object.cellar.ino != rec->ino;
	if (f->object.kind == OBJECT_EMPTY)
		return true; /* a new file's place-holder: nobody else makes such */
	return catalog_file_get(p->catalog, &f->stamp.ident, &row) && row.ino != rec->ino;
}

/* The object names this file: is it what a flush of this scratch made, or an older version that
 * somebody put there? A flush says so in the record before the object can exist; a record that
 * a power cut made old has a lower number than its flush. */
static bool is_of_our_flush(const struct record *rec, const struct found *f)
{
	return (rec->flags & (RECORD_REPLACING | RECORD_APPEND)) ||
	       f->object.cellar.seq > rec->seq;
}

static enum object_place classify(struct pool *p, const struct record *rec,
                                  const struct found *f)
{
	bool new_one = (rec->flags & RECORD_NEW) && f->object.kind == OBJECT_EMPTY;

	if (stamp_equal(&f->stamp, &rec->base))
		return AT_BASE;
	/* Created, and stopped before the record learned the identity (handles.c, O3). */
	if (new_one && (ident_is_none(&rec->base.ident) ||
	                ident_equal(&rec->base.ident, &f->stamp.ident)))
		return AT_BASE;
	if (names_us(p, f, rec->ino))
		return is_of_our_flush(rec, f) ? NEWER : FOREIGN;
	return is_another_of_ours(p, rec, f) ? ABSENT : FOREIGN;
}

/* The object may have been appended to when we were stopped: cut back to what it was, unless the
 * append had come to its end. Its mtime is put back where the catalog knows it. */
static errint_t end_append(struct pool *p, int fd, const struct record *rec)
{
	enum append_state state;
	struct catalog_file row;
	struct stat st;
	bool known;
	errint_t r = append_look(fd, &rec->base, &state);
	int rw;

	if (r < 0 || state != APPEND_TORN)
		return r;
	r = sys_fstat(fd, &st);
	if (r < 0)
		return r;
	known = catalog_file_get(p->catalog, &rec->base.ident, &row) &&
	        row.stored_size == rec->base.stored_size;
	rw = job_open_writable(fd_path(fd).s, &st);
	if (rw < 0)
		return rw;
	r = append_cut(rw, rec->base.stored_size, known ? &row.stored_mtime : NULL);
	(void)sys_close(rw);
	if (r == 0)
		log_info(
		    "cut off what an interrupted write-back had appended to the object of "
		    "file number %llu",
		    (unsigned long long)rec->ino);
	return r;
}

/* Takes fd over. */
static errint_t look_into(struct pool *p, int fd, const struct record *rec,
                          struct found *ret)
{
	errint_t r;

	memset(ret, 0, sizeof(*ret));
	if (fd == -ENOENT || fd == -ENAMETOOLONG) {
		ret->where = ABSENT;
		return 0;
	}
	if (fd < 0)
		return fd;
	r = rec->flags & RECORD_APPEND ? end_append(p, fd, rec) : 0;
	if (r == 0)
		r = sys_fstat(fd, &ret->st);
	if (r == 0)
		r = object_open(fd, &ret->object, NULL);
	if (r == 0) {
		r = stamp_of(fd, &ret->object, &ret->stamp);
		object_close(&ret->object);
	}
	if (r == 0)
		ret->where = classify(p, rec, ret);
	(void)sys_close(fd);
	return r;
}

static errint_t look_at(struct pool *p, const char *path, const struct record *rec,
                        struct found *ret)
{
	return look_into(p, open_path(p, path, NULL), rec, ret);
}

/* Nothing can have torn it: the page cache is that of its writer, or all of it was synced. */
static bool is_intact(const struct pool *p, const struct record *rec)
{
	return p->place.clean || uuid_equal(&rec->boot, &p->boot);
}

/* The object holds what was synced last, or something later (sync.c, Y4). */
static bool is_superseded(struct pool *p, const struct record *rec, const struct found *f)
{
	return names_us(p, f, rec->ino) && f->object.cellar.seq >= rec->sync_seq &&
	       !is_broken(BREAK_SEQ_COMPARE);
}

/* A plain file N that was being ingested: N.zst may be its object already. */
static errint_t look_for_ingested(struct pool *p, struct scratch *s, struct found *f)
{
	cleanup_free char *path = NULL;
	struct found g;
	errint_t r;

	if (!s->hint || !*s->hint || name_has_suffix(s->hint))
		return 0;
	path = xasprintf("%s" NAMES_SUFFIX, s->hint);
	r = look_at(p, path, &s->record, &g);
	if (r < 0 || g.where != NEWER)
		return r;
	if (f->where == AT_BASE) {
		/* Superseded and shadowed by N.zst: the ingest is finished here. */
		int dirfd, fd = open_path(p, s->hint, &dirfd);

		if (fd >= 0) {
			const char *slash = strrchr(s->hint, '/');

			(void)sys_unlinkat(dirfd, slash ? slash + 1 : s->hint, 0);
			(void)sys_close(fd);
			(void)sys_close(dirfd);
		}
	}
	free(s->hint);
	s->hint = steal_pointer(&path);
	*f = g;
	return 0;
}

/* ---- taking a dirty scratch over ---- */

/* (R2) */
static void pin_number(struct pool *p, const struct scratch *s, const struct found *f)
{
	struct catalog_file row;

	if (catalog_file_get(p->catalog, &f->stamp.ident, &row) && row.ino == s->ino)
		return;
	memset(&row, 0, sizeof(row));
	row.ident = f->stamp.ident;
	row.ino = s->ino;
	row.type = S_IFREG;
	row.kind = f->object.kind;
	row.logical_size = f->object.logical_size;
	row.stored_size = f->stamp.stored_size;
	row.stored_mtime = f->st.st_mtim;
	memcpy(row.trailer_hash, f->stamp.trailer_hash, sizeof(row.trailer_hash));
	row.ctime = row.seen_ctime = f->st.st_ctim;
	if (f->object.has_cellar_frame &&
	    uuid_equal(&f->object.cellar.pool, &p->place.uuid)) {
		row.seq = f->object.cellar.seq;
		row.ctime = f->object.cellar.ctime; /* until st_ctim moves */
	}
	catalog_file_put(p->catalog, &row);
}

/* The node of a scratch whose object is someone else's (or whose number went astray): under the
 * name of the hint, with the identity that is no more; its flush finds the conflict. */
errint_t recovery_adopt_by_hint(struct pool *p, struct scratch *s, struct node **ret)
{
	cleanup_free char *hint = xstrdup(s->hint);
	char *slash = strrchr(hint, '/');
	struct node *dir = p->tree->root;
	struct stat st;
	errint_t r = 0;

	if (slash) {
		*slash = '\0';
		r = resolve_store_path(p->tree, hint, &dir, &st);
	} else {
		node_ref(p->tree, dir);
	}
	if (r < 0)
		return r;
	*ret = tree_adopt(p->tree, dir, slash ? slash + 1 : hint, &s->record.base.ident,
	                  s->ino, S_IFREG);
	node_unref(p->tree, dir);
	return 0;
}

static errint_t find_node(struct pool *p, struct scratch *s, const struct found *f,
                          struct node **ret)
{
	struct stat st;
	errint_t r;

	rmlock_rd(&p->tree->ns);
	if (f->where == AT_BASE || f->where == NEWER) {
		pin_number(p, s, f);
		r = resolve_store_path(p->tree, s->hint, ret, &st);
		if (r == 0 && (*ret)->ino != s->ino) {
			node_unref(p->tree, *ret);
			r = -EEXIST;
		}
	} else {
		r = recovery_adopt_by_hint(p, s, ret);
	}
	rmlock_drop(&p->tree->ns);
	return r;
}

/* The logical ctime: the mtime is when the content changed last, unless somebody set it. One
 * that was set to the future is recognised; one that is past was overtaken by a write. */
static void fill_times(struct pool *p, struct scratch *s)
{
	struct timespec t = s->record.ctime, now = clock_now();

	scratch_sample(p, s);
	if (timespec_cmp(&s->mtime, &t) > 0 &&
	    (!(s->record.flags & RECORD_MTIME_SET) || timespec_cmp(&s->mtime, &now) <= 0))
		t = s->mtime;
	atomic_store(&s->last_write_ns, t.tv_sec * 1000000000LL + t.tv_nsec);
}

/* (R2) for an object that is elsewhere: a look-up that meets its identity must come to the same
 * number, also where the row was lost. The mtime does not match: size and kind are read anew. */
static void pin_number_of_base(struct pool *p, const struct scratch *s)
{
	struct catalog_file row;

	if (ident_is_none(&s->record.base.ident) ||
	    catalog_file_get(p->catalog, &s->record.base.ident, &row))
		return;
	memset(&row, 0, sizeof(row));
	row.ident = s->record.base.ident;
	row.ino = s->ino;
	row.type = S_IFREG;
	row.kind = s->record.flags & RECORD_NEW ? OBJECT_EMPTY : OBJECT_SEEKABLE;
	row.logical_size = OBJECT_SIZE_UNKNOWN;
	row.stored_size = s->record.base.stored_size;
	catalog_file_put(p->catalog, &row);
}

static void make_waiting(struct pool *p, struct scratch *s)
{
	cleanup_free char *hint = text_escape(s->hint);

	log_info("the object of a dirty scratch (number %llu) is not at \"%s\"; it is "
	         "looked for",
	         (unsigned long long)s->ino, hint);
	pin_number_of_base(p, s);
	if (p->place.clean) /* the mark will be gone when it is met */
		(void)scratch_record(p, s);
	scratch_register(p, s);
	fill_times(p, s);
	atomic_fetch_add(&p->waiting, 1);
	scratch_mirror(p, s);
}

/* What was met is its base from here on. Where nothing was rebooted since, the new object of a
 * flush that was stopped may be in the page cache only (F9). */
static void take_base(struct pool *p, struct scratch *s, const struct found *f)
{
	if (f->where == NEWER && is_intact(p, &s->record))
		scratch_keep_base(s);
	s->record.base = f->stamp;
	if (f->object.kind != OBJECT_EMPTY)
		s->record.flags &= ~RECORD_NEW;
}

/* Registered, attached, queued. f->where says how the object was met. */
static errint_t take(struct pool *p, struct scratch *s, const struct found *f)
{
	struct node *n = NULL;
	errint_t r;

	if (f->where == ABSENT) {
		make_waiting(p, s);
		return 0;
	}
	if (f->where == FOREIGN && s->record.kind == RECORD_TAIL) {
		scratch_register(p, s);
		count_one(COUNTER_CONFLICTS);
		return scratch_set_aside(p, s, TAIL_WHY);
	}
	if (f->where != FOREIGN)
		take_base(p, s, f);
	s->record.flags &= ~(RECORD_DOOMED | RECORD_APPEND);
	r = find_node(p, s, f, &n);
	if (r < 0) {
		make_waiting(p, s);
		return 0;
	}
	rmlock_rd(&p->tree->ns);
	lock_take(&n->lock);
	if (f->where != FOREIGN)
		scratch_correct_info(p, n, &f->stamp, &f->object);
	if (n->scratch) {
		lock_drop(&n->lock);
		rmlock_drop(&p->tree->ns);
		node_unref(p->tree, n);
		return scratch_set_aside(p, s, "another scratch has its number");
	}
	s->mode = f->st.st_mode & 07777;
	s->uid = f->st.st_uid;
	s->gid = f->st.st_gid;
	atomic_store(&s->links, f->where == FOREIGN ? 0 : f->st.st_nlink);
	scratch_attach(p, s, n);
	scratch_register(p, s);
	fill_times(p, s);
	r = s->record.kind == RECORD_TAIL ? tail_resume(p, s) : 0;
	if (r < 0) {
		r = scratch_set_aside(p, s, TAIL_WHY);
		lock_drop(&n->lock);
		rmlock_drop(&p->tree->ns);
		node_unref(p->tree, n);
		return r;
	}
	content_recovered(p, s);
	r = scratch_record(p, s);
	step("recovery.taken");
	scratch_mirror(p, s);
	flush_queue(p, s, 0, false);
	lock_drop(&n->lock);
	rmlock_drop(&p->tree->ns);
	node_unref(p->tree, n);
	count_one(COUNTER_RECOVERED);
	return r;
}

/* ---- the table ---- */

static errint_t delete_scratch(struct recovery *rc, struct scratch *s)
{
	errint_t r = sys_unlinkat(rc->p->scratch_fd, scratch_name(s->ino).s, 0);

	catalog_scratch_delete(rc->p->catalog, s->ino);
	scratch_free(s);
	rc->dropped++;
	step("recovery.dropped");
	return r;
}

#define EMPTY_TMP "recovery.tmp"

/* A size that cannot be had counts as written: nothing is thrown away for it. */
static bool never_written(struct pool *p, struct scratch *s)
{
	struct stat st;

	return sys_fstatat(p->scratch_fd, scratch_name(s->ino).s, &st,
	                   AT_SYMLINK_NOFOLLOW) == 0 &&
	       (st.st_size == 0 ||
	        (s->record.kind == RECORD_TAIL && (uint64_t)st.st_size <= s->record.ask));
}

/* (R5): the written bytes are in lost+found first, then an empty file with the same record takes
 * their place at one instant. */
static errint_t empty_scratch(struct pool *p, struct scratch *s, const char *why)
{
	struct scratch_name name = scratch_name(s->ino);
	errint_t r = pool_link_to_lost(p, name.s, s->ino, why);
	int fd;

	if (r == 0)
		r = sys_fsync_dir(p->lost_fd);
	if (r < 0)
		return r;
	(void)sys_unlinkat(p->place.dirfd, EMPTY_TMP, 0);
	fd = sys_openat(p->place.dirfd, EMPTY_TMP, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW,
	                0600);
	if (fd < 0)
		return fd;
	r = record_write_hint(fd, s->hint);
	if (r == 0)
		r = record_write(fd, &s->record);
	(void)sys_close(fd);
	if (r == 0)
		r = sys_renameat2(p->place.dirfd, EMPTY_TMP, p->scratch_fd, name.s, 0);
	if (r < 0)
		(void)sys_unlinkat(p->place.dirfd, EMPTY_TMP, 0);
	return r;
}

/* Of a new file nothing was promised: it is empty, and what was written is kept aside. After an error s
 * is forgotten. */
static errint_t empty_if_written(struct pool *p, struct scratch *s)
{
	static const char why[] =
	    "it was never synced before the reboot; the new file is empty";
	cleanup_free char *hint = text_escape(s->hint);
	errint_t r;

	if (never_written(p, s))
		return 0;
	r = empty_scratch(p, s, why);
	if (r < 0) {
		scratch_free(s);
		return r;
	}
	log_warn("scratch of \"%s\" (number %llu) was moved to lost+found: %s", hint,
	         (unsigned long long)s->ino, why);
	return 0;
}

/* After a reboot, where the scratch was never synced: the object is the truth. */
static errint_t distrust(struct recovery *rc, struct scratch *s, const struct found *f)
{
	struct pool *p = rc->p;
	bool place_holder = f->where == AT_BASE && f->object.kind == OBJECT_EMPTY;
	errint_t r;

	if (!place_holder) {
		if (never_written(p, s))
			return delete_scratch(rc, s);
		scratch_register(p, s);
		return scratch_set_aside(
		    p, s,
		    "it was not synced before the reboot; the object in the "
		    "store is what counts");
	}
	r = empty_if_written(p, s);
	return r < 0 ? r : take(p, s, f);
}

/* Bytes beyond what fsync promised may be anything after a power cut. */
static errint_t cut(struct pool *p, struct scratch *s)
{
	struct stat st;
	errint_t r =
	    sys_fstatat(p->scratch_fd, scratch_name(s->ino).s, &st, AT_SYMLINK_NOFOLLOW);
	int fd;

	if (r < 0)
		return r;
	if ((uint64_t)st.st_size < s->record.sync_size)
		return -EUCLEAN;
	if ((uint64_t)st.st_size == s->record.sync_size || is_broken(BREAK_NO_CUT))
		return 0;
	fd = scratch_open_fd(p, s, O_RDWR);
	if (fd < 0)
		return fd;
	r = sys_ftruncate(fd, (off_t)s->record.sync_size);
	(void)sys_close(fd);
	step("recovery.cut");
	return r;
}

/* Of a pool that was synced as a whole: it must be believed after the next power cut too, when the
 * mark that says so is gone. */
static errint_t claim_synced(struct pool *p, struct scratch *s)
{
	scratch_sample(p, s);
	if (s->stale)
		return -EIO;
	s->record.sync_seq = ++s->record.seq;
	s->record.sync_size = s->size;
	return 0;
}

/* Another file of this pool is where ours was: remembers which, if we do not know it. */
static void note_rival(struct pool *p, struct scratch *s, const struct found *f)
{
	struct catalog_file row;

	if (f->where == ABSENT && f->object.has_cellar_frame &&
	    !catalog_file_get(p->catalog, &f->stamp.ident, &row))
		s->rival = f->stamp.ident;
}

/* Cuts s to what was synced. False: it is gone, set aside or, after an error, forgotten; *ret is what
 * recovering it comes to. */
static bool cut_to_synced(struct pool *p, struct scratch *s, errint_t *ret)
{
	*ret = cut(p, s);
	if (*ret == 0)
		return true;
	if (*ret == -EUCLEAN) {
		scratch_register(p, s);
		*ret = scratch_set_aside(p, s, "it is shorter than what was synced");
	} else {
		scratch_free(s);
	}
	return false;
}

/* One path that cannot be looked at keeps no mount from coming up. What may be believed of the
 * scratch by itself does not depend on it: the object is met later, and only then compared. */
static errint_t cannot_look(struct pool *p, struct scratch *s, bool intact, errint_t err)
{
	cleanup_free char *hint = text_escape(s->hint);
	errint_t r = 0;

	if (!intact && s->record.sync_seq == 0 && !(s->record.flags & RECORD_NEW)) {
		scratch_register(p, s);
		return scratch_set_aside(
		    p, s,
		    "it was not synced before the reboot, and its object cannot be "
		    "looked at");
	}
	if (!intact && s->record.sync_seq == 0)
		r = empty_if_written(p, s);
	else if (!intact && !cut_to_synced(p, s, &r))
		return r;
	if (r < 0)
		return r;
	log_warn("cannot look at \"%s\", where the object of a dirty scratch (number %llu) "
	         "was last: %s; it is looked for",
	         hint, (unsigned long long)s->ino, strerror(-err));
	make_waiting(p, s);
	return 0;
}

static errint_t recover_dirty(struct recovery *rc, struct scratch *s)
{
	struct pool *p = rc->p;
	bool intact = is_intact(p, &s->record);
	struct found f;
	errint_t r = look_at(p, s->hint, &s->record, &f);

	if (r == 0 && intact)
		note_rival(p, s, &f);
	if (r == 0)
		r = look_for_ingested(p, s, &f);
	if (r < 0 && r != -ENOMEM)
		return cannot_look(p, s, intact, r);
	if (r < 0) {
		scratch_free(s);
		return r;
	}
	if ((s->record.flags & RECORD_DOOMED) && f.where == ABSENT &&
	    (intact || s->record.sync_seq == 0))
		return delete_scratch(rc, s); /* unlinked, and so it stayed */
	if ((s->record.flags & RECORD_DOOMED) && f.where == FOREIGN) {
		scratch_register(p, s);
		return scratch_set_aside(
		    p, s,
		    "its file was unlinked, and a foreign object has its "
		    "name");
	}
	if (f.where == ABSENT && (s->record.flags & RECORD_NEW) &&
	    ident_is_none(&s->record.base.ident) && never_written(p, s))
		return delete_scratch(rc, s); /* stopped before its object was made (O3) */
	if (intact) {
		rc->taken++;
		r = p->place.clean ? claim_synced(p, s) : 0;
		if (r < 0) {
			scratch_free(s);
			return r;
		}
		return take(p, s, &f);
	}
	if (f.where == NEWER && is_superseded(p, &s->record, &f))
		return delete_scratch(rc, s);
	if (s->record.sync_seq == 0 ||
	    (f.where == AT_BASE && is_superseded(p, &s->record, &f)))
		return distrust(rc, s, &f);
	rc->taken++;
	return cut_to_synced(p, s, &r) ? take(p, s, &f) : r;
}

/* ---- the scratch directory ---- */

static errint_t move_aside(struct recovery *rc, const char *name, uint64_t ino,
                           const char *why)
{
	cleanup_free char *path = xasprintf("%s/%s", rc->shard, name);
	cleanup_free char *shown = text_escape(path);
	errint_t r = pool_move_to_lost(rc->p, path, ino, why);

	log_warn("scratch file %s %s; %s", shown, why,
	         r == 0 ? "it was moved to lost+found" : strerror(-r));
	return r;
}

static errint_t keep_clean(struct recovery *rc, struct scratch *s)
{
	struct pool *p = rc->p;
	struct catalog_scratch row;
	bool intact = is_intact(p, &s->record) || is_broken(BREAK_KEEP_CLEAN);

	if (!intact || (s->record.flags & RECORD_PARTIAL)) /* (R3) */
		return delete_scratch(rc, s);
	if (catalog_scratch_get(p->catalog, s->ino, &row)) {
		s->pinned = row.pinned;
		free(row.last_error);
	}
	scratch_register(p, s);
	scratch_sample(p, s);
	rc->kept++;
	return 0;
}

/* Its second name is the one in lost+found that a stopped recovery gave it (empty_scratch). */
static bool is_half_aside(struct recovery *rc, const char *name, uint64_t ino)
{
	cleanup_free char *path = xasprintf("%s/%s", rc->shard, name);

	return pool_is_in_lost(rc->p, path, ino);
}

static errint_t recover_file(void *ctx, const char *name, unsigned char type)
{
	struct recovery *rc = ctx;
	struct pool *p = rc->p;
	cleanup_fd int fd = -1;
	struct record rec;
	struct scratch *s;
	struct stat st, dir;
	char *end;
	uint64_t ino = strtoull(name, &end, 16);
	errint_t r;

	if (*end || strlen(name) != 16 || type != DT_REG)
		return move_aside(rc, name, 0, "is none of ours");
	fd = sys_openat(rc->shard_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
	if (fd < 0)
		return set_cause_errno(rc->cause, fd, "cannot open scratch %s/%s",
		                       rc->shard, name);
	r = sys_fstat(fd, &st);
	if (r == 0)
		r = sys_fstat(rc->shard_fd, &dir);
	if (r < 0)
		return r;
	if (st.st_nlink == 2 && is_half_aside(rc, name, ino))
		st.st_nlink = 1;
	/* Who else can write in it could have, and who can read it would. */
	if (!private_is_own_file(&st, &dir) || (st.st_mode & 077))
		return move_aside(
		    rc, name, ino,
		    "has another owner, mode or number of names than a scratch "
		    "file of ours");
	r = record_read(fd, &rec);
	if (r == -ENODATA && st.st_size == 0)
		return sys_unlinkat(rc->shard_fd, name,
		                    0); /* stopped before its first record */
	if (r == -ENOTSUP)
		return set_cause(
		    rc->cause, r,
		    "scratch %s/%s was written by a newer cellar; this one must not "
		    "touch it",
		    rc->shard, name);
	if (r == -ENODATA || r == -EUCLEAN || (r == 0 && rec.ino != ino))
		return move_aside(rc, name, ino, "has no valid record");
	if (r < 0)
		return set_cause_errno(rc->cause, r, "cannot read scratch %s/%s", rc->shard,
		                       name);
	HASH_FIND(hh, p->by_ino, &ino, sizeof(ino), s);
	if (s)
		return 0; /* made by recovery itself while the directory was read */
	s = scratch_alloc(p, ino);
	record_settle(&rec, (uint64_t)st.st_size, !is_intact(p, &rec));
	s->record = rec;
	s->marked_doomed = st.st_mode & RECORD_DOOMED_MODE;
	if (s->marked_doomed)
		s->record.flags |= RECORD_DOOMED;
	s->claimed_seq = rec.seq; /* what it has said before, nobody knows */
	atomic_store(&s->whole, true);
	r = record_read_hint(fd, &s->hint);
	if (r < 0) {
		scratch_free(s);
		return r;
	}
	if (rec.state == RECORD_CLEAN)
		return keep_clean(rc, s);
	if (rec.kind == RECORD_TAIL)
		changes_note_from(&s->changes, rec.ask);
	else
		changes_note_all(&s->changes); /* what, nobody remembers */
	atomic_store(&s->gen, 1);
	return recover_dirty(rc, s);
}

static errint_t count_lost(void *ctx, const char *name, unsigned char type)
{
	struct pool *p = ctx;

	p->lost_count++;
	return 0;
}

bool recovery_settles(struct pool *p, struct scratch *s, struct node *n)
{
	struct place at;
	struct found f;
	errint_t r = node_place(p->tree, n, &at);

	lock_assert_held(&n->lock);
	if (r < 0)
		return true;
	r = look_into(p, store_open_object(at.dirfd, at.store_name.s), &s->record, &f);
	place_release(p->tree, &at);
	if (r < 0 || (f.where != AT_BASE && f.where != NEWER))
		return true; /* its flush finds out what that is */
	if (!uuid_equal(&s->record.boot, &p->boot) && is_superseded(p, &s->record, &f))
		return false;
	take_base(p, s, &f);
	scratch_correct_info(p, n, &f.stamp, &f.object);
	s->record.flags &= ~(RECORD_DOOMED | RECORD_APPEND);
	return true;
}

void recovery_met(void *ctx, struct node *n)
{
	struct pool *p = ctx;

	bool mine = lock_is_mine(&n->lock);

	if (atomic_load(&p->waiting) == 0)
		return;
	if (!mine)
		lock_take(&n->lock);
	if (!n->scratch)
		scratch_adopt_earlier(p, n);
	if (!mine)
		lock_drop(&n->lock);
}

static errint_t recover_shard(void *ctx, const char *shard, int fd)
{
	struct recovery *rc = ctx;

	if (fd < 0)
		return fd;
	rc->shard = shard;
	rc->shard_fd = fd;
	return sys_walk_dir(fd, recover_file, rc);
}

errint_t pool_recover(struct pool *p, char **cause)
{
	struct recovery rc = {.p = p, .cause = cause};
	errint_t r = sys_walk_dir(p->lost_fd, count_lost, p);

	if (r == 0)
		r = shards_each(p, recover_shard, &rc);
	if (r == 0 && ((p->place.clean && rc.taken > 0) || rc.dropped > 0))
		r = sys_syncfs(p->scratch_fd); /* what claim_synced() wrote; (S5) */
	if (r == 0) {
		r = sys_unlinkat(p->place.dirfd, "clean", 0); /* (R4) */
		if (r == -ENOENT)
			r = 0;
		if (r == 0)
			r = sys_fsync_dir(p->place.dirfd);
	}
	if (r < 0)
		return set_cause_errno(cause, r, "cannot recover the pool \"%s\"",
		                       p->place.path);
	if (rc.taken > 0)
		log_info("recovered %llu dirty files of an earlier run",
		         (unsigned long long)rc.taken);
	if (!p->place.clean && !p->place.created)
		p->tree->left_forgotten++;
	step("recovery.unmarked");
	p->recovered = true;
	p->tree->on_new = recovery_met;
	p->tree->on_new_ctx = p;
	return 0;
}
