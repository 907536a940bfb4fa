/*
 * The store side of a flush: where the object of a scratch is, whether it is still the one
 * the scratch came from, and how the new one takes its place. Invariants (F1), (F3), (F5),
 * (F7), (F8), (F10) of flush.c are upheld here.
 *
 * Ways in:
 *   replace    one link: rename over it
 *   append     see flush-append.c
 *   copy over  several links, or a rename would change the owner: into the same inode, by
 *              a durable intent
 *   plain      a file without .zst becomes N.zst and N goes; where it may not (several links, name too
 *              long) it is written in place as it is
 *   conflict   the object is not what the scratch came from: the foreign one is linked to
 *              NAME.cellar-conflict-TIME first, then ours takes the name (design, section 8)
 *   again      the object is gone: it is made anew under its last name
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/flush-job.h"
#include "store/attrs.h"
#include "tree/listing.h"

#define CONFLICT_TRIES 100

/* An ordinary user's own file may be unreadable by its mode: opened by giving the bit for a
 * moment. */
static int open_target(int dirfd, const char *name, const struct stat *st)
{
	int fd = store_open_object(dirfd, name), path_fd;

	if (fd != -EACCES || st->st_uid != geteuid())
		return fd;
	path_fd = sys_openat(dirfd, name, O_PATH | O_NOFOLLOW, 0);
	if (path_fd < 0)
		return fd;
	if (chmod(fd_path(path_fd).s, (st->st_mode & 07777) | S_IRUSR) == 0) {
		fd = store_open_object(dirfd, name);
		(void)chmod(fd_path(path_fd).s, st->st_mode & 07777);
	}
	(void)sys_close(path_fd);
	return fd;
}

/* Reading what is there must not show in its atime, where that can be had. */
static int open_quietly(const char *path)
{
	int fd = sys_openat(AT_FDCWD, path, O_RDWR | O_NOATIME, 0);

	return fd == -EPERM ? sys_openat(AT_FDCWD, path, O_RDWR, 0) : fd;
}

/* The same inode for writing; the owner of a file may have taken that right from himself. */
int job_open_writable(const char *path, const struct stat *st)
{
	int fd = open_quietly(path);

	if (fd == -EACCES && st->st_uid == geteuid() &&
	    chmod(path, (st->st_mode & 07777) | S_IWUSR | S_IRUSR) == 0) {
		fd = open_quietly(path);
		(void)chmod(path, st->st_mode & 07777);
	}
	return fd;
}

/* (F3) node->lock held; info is valid. */
static bool base_is_current(const struct pool *p, const struct job *j)
{
	const struct stamp *base = &j->s->record.base;
	const struct catalog_file *info = &j->n->info;

	if (ident_equal(&base->ident, &j->n->ident) &&
	    store_is_unfinished(p->store, &base->ident))
		return true; /* half copied over by us: this flush ends it */
	if (j->s->record.flags & RECORD_NEW) /* still the 0-byte place-holder */
		return ident_equal(&base->ident, &j->n->ident) && info->stored_size == 0;
	return ident_equal(&base->ident, &j->n->ident) &&
	       base->stored_size == info->stored_size &&
	       base->trailer_hash[0] == info->trailer_hash[0] &&
	       base->trailer_hash[1] == info->trailer_hash[1];
}

errint_t job_decide_plain(struct pool *p, struct job *j)
{
	size_t len = strlen(j->at.store_name.s);
	struct stat st;

	j->plain = j->target_st.st_nlink > 1 || len + NAMES_SUFFIX_LEN > p->store->name_max;
	if (!j->plain) {
		errint_t r;

		memcpy(j->install_name.s + len, NAMES_SUFFIX, NAMES_SUFFIX_LEN + 1);
		r = sys_fstatat(j->at.dirfd, j->install_name.s, &st, AT_SYMLINK_NOFOLLOW);
		if (r < 0 && r != -ENOENT)
			return r;
		j->plain = r == 0;
	}
	if (j->plain) {
		j->install_name = j->at.store_name;
		j->copy_over = true;
	}
	return 0;
}

/* The usual: the node's name leads to its object. */
static errint_t target_at_place(struct pool *p, struct job *j)
{
	struct ident found;
	errint_t r;

	j->install_name = j->at.store_name;
	if (j->n->in_place) {
		r = job_undo_append(p, j);
		if (r < 0)
			return r;
	}
	r = sys_fstatat(j->at.dirfd, j->at.store_name.s, &j->target_st,
	                AT_SYMLINK_NOFOLLOW);
	if (r == 0)
		r = resolve_info(p->tree, j->n, j->at.dirfd, j->at.store_name.s,
		                 &j->target_st, &j->cause);
	if (r < 0)
		return r;
	j->target_fd = open_target(j->at.dirfd, j->at.store_name.s, &j->target_st);
	if (j->target_fd < 0)
		return set_cause_errno(&j->cause, j->target_fd, "cannot open its object");
	r = sys_fstat(j->target_fd, &j->target_st);
	if (r == 0)
		r = ident_get(j->target_fd, "", &found);
	if (r < 0)
		return r;
	/* Its owner and mode are about to be given to our bytes. */
	if (!ident_equal(&found, &j->n->ident))
		return set_cause(&j->cause, -ESTALE, "its object was replaced just now");
	j->conflict = !base_is_current(p, j);
	j->base_current = !j->conflict && !(j->s->record.flags & RECORD_NEW) &&
	                  !store_is_unfinished(p->store, &j->n->ident);
	if (store_is_unfinished(p->store, &j->n->ident))
		j->unchanged = false;
	if (j->conflict)
		j->unchanged = false;
	if (j->n->plain)
		return job_decide_plain(p, j);
	if (j->target_st.st_nlink > 1 && !j->conflict)
		j->copy_over = true;
	return 0;
}

/* All known names are gone, but the inode lives on under others: written through the
 * descriptor that unlink kept. */
static errint_t target_unnamed(struct job *j)
{
	errint_t r = sys_fstat(j->n->dead_fd, &j->target_st);

	if (r < 0)
		return r;
	if (j->target_st.st_nlink == 0)
		return -EAGAIN; /* the last link went just now: about to be doomed */
	j->target_fd = sys_openat(AT_FDCWD, fd_path(j->n->dead_fd).s, O_RDONLY, 0);
	if (j->target_fd < 0)
		return set_cause_errno(&j->cause, j->target_fd, "cannot open its object");
	j->copy_over = true;
	j->plain = j->n->plain;
	return 0;
}

/* The object went away behind us, or another one stands in its place. Gives n->lock up for
 * the walk (s->flushing keeps the scratch). */
static errint_t target_by_hint(struct pool *p, struct job *j)
{
	cleanup_free char *hint = xstrdup(j->s->hint ? j->s->hint : "");
	char *slash = strrchr(hint, '/');
	const char *base = slash ? slash + 1 : hint;
	struct node *dir = NULL;
	struct stat st;
	errint_t r;

	if (!*base || strlen(base) > NAME_MAX)
		return set_cause(&j->cause, -ENOENT,
		                 "its object is gone and its name unknown");
	memcpy(j->at.store_name.s, base, strlen(base) + 1);
	lock_drop(&j->n->lock);
	if (slash) {
		*slash = '\0';
		r = resolve_store_path(p->tree, hint, &dir, &st);
	} else {
		dir = p->tree->root;
		node_ref(p->tree, dir);
		r = 0;
	}
	if (r == 0 && !S_ISDIR(dir->type))
		r = -ENOTDIR;
	if (r == 0)
		r = node_open_dir(p->tree, dir, &j->at.dirfd, &j->at.pin);
	lock_take(&j->n->lock);
	if (r < 0) {
		if (dir)
			node_unref(p->tree, dir);
		return set_cause_errno(&j->cause, r,
		                       "its object and its directory are gone");
	}
	j->at.parent = dir;
	j->have_place = true;
	j->install_name = j->at.store_name;
	j->unchanged = false;
	r = sys_fstatat(j->at.dirfd, j->at.store_name.s, &j->target_st,
	                AT_SYMLINK_NOFOLLOW);
	j->conflict = r == 0;
	if (r == -ENOENT)
		memset(&j->target_st, 0, sizeof(j->target_st));
	return r == -ENOENT ? 0 : r;
}

errint_t job_find_target(struct pool *p, struct job *j)
{
	errint_t r = node_place(p->tree, j->n, &j->at);

	if (r == 0) {
		j->have_place = true;
		return target_at_place(p, j);
	}
	if (r != -ENOENT)
		return set_cause_errno(&j->cause, r, "cannot reach its object");
	if (j->n->dead_fd >= 0)
		return target_unnamed(j);
	if (j->s->doomed || j->n->dead_st)
		return -EAGAIN; /* unlinked, or just being so */
	return target_by_hint(p, j);
}

struct timespec job_logical_ctime(const struct job *j, const struct stat *st)
{
	struct timespec stored = st->st_ctim;

	lock_assert_held(&j->n->lock);
	if (j->n->info_valid && timespec_cmp(&st->st_ctim, &j->n->info.seen_ctime) == 0)
		stored = j->n->info.ctime;
	return j->s ? scratch_ctime(j->s, &stored) : stored;
}

static bool has_name(struct pool *p, struct node *n, struct node *parent,
                     const char *store_name)
{
	bool found = false;

	rmlock_rd(&p->tree->lock);
	for (struct node_name *m = n->names; m && !found; m = m->next)
		found = m->parent == parent && strcmp(m->store_name, store_name) == 0;
	rmlock_drop(&p->tree->lock);
	return found;
}

errint_t job_lock_target(struct pool *p, struct job *j)
{
	struct ident ident;
	struct stat st;
	errint_t r;

	if (!j->have_place) {
		lock_take(&j->n->lock);
		return 0;
	}
	node_lock_pair(j->at.parent, j->n);
	if ((j->s && j->s->doomed) || j->n->dead_st) {
		job_unlock_target(p, j);
		return -EAGAIN;
	}
	r = sys_fstatat(j->at.dirfd, j->at.store_name.s, &st, AT_SYMLINK_NOFOLLOW);
	if (r == 0)
		r = ident_get(j->at.dirfd, j->at.store_name.s, &ident);
	if (r == -ENOENT && j->target_fd <= 0 && !j->conflict)
		return 0; /* made again, and still nothing there */
	if (r == 0 && j->target_fd > 0 &&
	    has_name(p, j->n, j->at.parent, j->at.store_name.s) &&
	    ident_equal(&ident, &j->n->ident) && st.st_size == j->target_st.st_size &&
	    timespec_cmp(&st.st_mtim, &j->target_st.st_mtim) == 0)
		return 0;
	if (r == 0 && j->conflict && st.st_ino == j->target_st.st_ino)
		return 0;
	job_unlock_target(p, j);
	return r == 0 || r == -ENOENT ? -EAGAIN : r;
}

void job_unlock_target(struct pool *p, struct job *j)
{
	if (j->have_place)
		node_unlock_pair(j->at.parent, j->n);
	else
		lock_drop(&j->n->lock);
}

/* Keeps what is at the name under another one. */
static errint_t keep_foreign(struct pool *p, struct job *j)
{
	const char *stored = j->at.store_name.s;
	struct name logical, keep, keep_stored;
	bool decoded = name_decode(stored, true, &logical);
	cleanup_free char *path = NULL;
	errint_t r = -EEXIST;

	for (int i = 0; i < CONFLICT_TRIES && r == -EEXIST; i++) {
		name_conflict(logical.s, (int64_t)clock_now().tv_sec + i, &keep);
		keep_stored = keep;
		if (decoded && name_has_suffix(stored)) {
			r = name_encode(keep.s, true, &keep_stored);
			if (r < 0)
				break;
		}
		r = sys_linkat(j->at.dirfd, stored, j->at.dirfd, keep_stored.s, 0);
		if (r == -EPERM ||
		    r == -EOPNOTSUPP) /* a directory, or no hard links here */
			r = sys_renameat2(j->at.dirfd, stored, j->at.dirfd, keep_stored.s,
			                  RENAME_NOREPLACE);
	}
	if (r < 0)
		return set_cause_errno(
		    &j->cause, r,
		    "its object was changed behind cellar and cannot be kept "
		    "beside it");
	step("conflict.kept");
	count_one(COUNTER_CONFLICTS);
	path = text_escape(stored);
	log_warn("\"%s\" was changed behind cellar while it was dirty here: the foreign "
	         "version is "
	         "kept as \"%s\"",
	         path, keep_stored.s);
	return 0;
}

/* (F8): everything there is to know of the new object, before it takes its place. */
errint_t job_look_at_new(struct job *j, int fd)
{
	struct object object;
	errint_t r = object_open(fd, &object, &j->cause);

	if (r < 0)
		return r;
	r = stamp_of(fd, &object, &j->stamp);
	j->kind = j->plain ? (uint32_t)OBJECT_PLAIN : object.kind;
	j->logical_size = j->plain ? object.stored_size : object.logical_size;
	j->level = object.has_cellar_frame ? object.cellar.level : 0;
	j->frames = (uint32_t)plan_data_frames(&object);
	j->dead_bytes = plan_dead_bytes(&object);
	if (j->hashes)
		j->new_frames = framehash_from(&object.table, j->hashes);
	object_close(&object);
	return r;
}

/* It is in its place: node, record (in memory) and info learn what the object is now. fd: the
 * new object. Cannot fail (F8). */
void job_adopt_object(struct pool *p, struct job *j, int fd)
{
	struct catalog_file *info = &j->n->info;
	struct stat st;
	bool have_st = sys_fstat(fd, &st) == 0;

	node_set_ident(p->tree, j->n, &j->stamp.ident);
	damage_forget(p, j->n);
	if (j->s) {
		j->s->record.base = j->stamp;
		framehash_free(j->s->frames); /* were the old base's */
		j->s->frames = steal_pointer(&j->new_frames);
		j->s->record.flags &= ~RECORD_NEW;
	}
	memset(info, 0, sizeof(*info));
	j->n->info_valid = have_st;
	if (!have_st)
		return; /* read from its trailer when it is next asked for */
	info->ident = j->stamp.ident;
	info->ino = j->n->ino;
	info->type = S_IFREG;
	info->kind = j->kind;
	info->logical_size = j->logical_size;
	info->stored_size = j->stamp.stored_size;
	info->stored_mtime = st.st_mtim;
	memcpy(info->trailer_hash, j->stamp.trailer_hash, sizeof(info->trailer_hash));
	info->seq = j->seq;
	info->level = j->level;
	info->frames = j->frames;
	info->dead_bytes = j->dead_bytes;
	resolve_keep_ctime(p->tree, j->n, &st, &j->ctime);
}

static errint_t install_copy_over(struct pool *p, struct job *j)
{
	struct timespec ts[2] = {j->target_st.st_atim, j->target_st.st_mtim};
	cleanup_free char *path = NULL;
	const char *hint;
	struct stat st;
	errint_t r = 0;
	int fd;

	if (j->s) {
		r = sys_fstat(j->in_fd, &st);
		if (r < 0)
			return r;
		ts[1] = st.st_mtim;
		hint = j->s->hint ? j->s->hint : "";
	} else {
		hint = path = node_store_path(p->tree, j->n);
	}
	fd = job_open_writable(fd_path(j->target_fd).s, &j->target_st);
	if (fd < 0)
		return set_cause_errno(&j->cause, fd, "cannot write its object");
	j->tried = true;
	r = store_copy_over(p->store, j->tmp.s, fd, &j->n->ident, hint, ts, &j->cause);
	if (r == 0) {
		j->tmp.s[0] = '\0';
		attrs_unmark_new(fd);
		j->stamp.ident = j->n->ident; /* the inode stays */
		job_adopt_object(p, j, fd);
	}
	(void)sys_close(fd);
	return r;
}

/* The rename of a plain file's object is done: the plain name goes. */
static void drop_plain_name(struct pool *p, struct job *j)
{
	errint_t r;

	step("flush.ingested");
	r = sys_unlinkat(j->at.dirfd, j->at.store_name.s, 0);
	if (r < 0 && r != -ENOENT) {
		cleanup_free char *name = text_escape(j->at.store_name.s);

		log_warn(
		    "cannot remove the plain file \"%s\", whose object is in the store "
		    "now: %s; it is hidden by the object and goes with it",
		    name, strerror(-r));
	}
	node_add_name(p->tree, j->n, j->at.parent, j->install_name.s);
	node_remove_name(p->tree, j->n, j->at.parent, j->at.store_name.s);
	j->n->plain = false;
	if (j->s)
		scratch_write_hint(p, j->s);
}

static void say_made_again(const struct job *j)
{
	cleanup_free char *path = text_escape(j->install_name.s);

	count_one(COUNTER_CONFLICTS);
	log_warn(
	    "\"%s\" was removed behind cellar while it was dirty here: it is made again",
	    path);
}

/* The new object takes the name. */
static errint_t take_place(struct pool *p, struct job *j, bool renamed_plain)
{
	errint_t r;

	j->tried = true;
	r = store_replace(p->store, j->tmp.s, j->at.dirfd, j->install_name.s);
	if (r < 0)
		return r;
	j->tmp.s[0] = '\0';
	j->installed = true;
	if (j->s)
		scratch_keep_base(j->s); /* (F9) */
	job_adopt_object(p, j, j->out_fd);
	if (renamed_plain)
		drop_plain_name(p, j);
	return 0;
}

static errint_t install_replace(struct pool *p, struct job *j)
{
	bool renamed_plain = strcmp(j->install_name.s, j->at.store_name.s) != 0;
	struct stat before, shown, after;
	struct timespec ts[2];
	errint_t r = sys_fstat(j->at.dirfd, &before);

	if (r < 0)
		return r;
	resolve_attr(j->at.parent, &before, &shown);
	tree_replacing(p->tree, j->at.parent); /* (K1) */
	if (j->conflict)
		r = keep_foreign(p, j);
	if (r == 0)
		r = take_place(p, j, renamed_plain);
	tree_replaced(p->tree, j->at.parent);
	if (r < 0)
		return set_cause_errno(&j->cause, r,
		                       "cannot put the new object in its place");
	if (j->target_fd <= 0 && !j->conflict)
		say_made_again(j);
	if (j->target_fd <= 0)
		node_add_name(p->tree, j->n, j->at.parent, j->install_name.s);
	/* Users must not see our renames in the directory's times (promise 9). */
	ts[0].tv_nsec = UTIME_OMIT;
	ts[1] = before.st_mtim;
	if (renamed_plain)
		(void)sys_utimensat(AT_FDCWD, fd_path(j->at.dirfd).s, ts, 0);
	if (sys_fstat(j->at.dirfd, &after) == 0)
		resolve_keep_ctime(p->tree, j->at.parent, &after, &shown.st_ctim);
	return 0;
}

static bool replaces_inode(const struct job *j)
{
	return !j->unchanged && !j->same && !j->appended && !j->copy_over;
}

errint_t job_sync_left(struct pool *p, struct job *j)
{
	uint64_t unknown_gen;
	bool more, all = sync_left_unknown(p, &unknown_gen);
	struct node *dir;
	uint32_t gen;
	errint_t r = 0;

	if (!replaces_inode(j))
		return 0;
	dir = node_left(p->tree, j->n, &more, &gen);
	if (all || more)
		r = pool_sync_store(p);
	else if (dir && dir != j->at.parent)
		r = sync_left_directory(p, dir);
	if (r < 0)
		set_cause_errno(&j->cause, r, "cannot sync a directory that it has left");
	else if (all || more || dir != j->at.parent)
		node_left_done(p->tree, j->n, gen);
	if (r == 0 && (all || more))
		sync_left_known(p, unknown_gen);
	j->left_here = r == 0 && dir == j->at.parent && !more && !all;
	j->left_gen = gen;
	node_unref(p->tree, dir);
	return r;
}

bool job_has_left(struct pool *p, const struct job *j)
{
	return replaces_inode(j) && node_left_others(p->tree, j->n, j->at.parent);
}

errint_t job_install(struct pool *p, struct job *j)
{
	errint_t r = job_look_at_new(j, j->out_fd);

	if (r < 0)
		return set_cause_errno(&j->cause, r, "cannot look at the new object");
	return j->copy_over ? install_copy_over(p, j) : install_replace(p, j);
}
