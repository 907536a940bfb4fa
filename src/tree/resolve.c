/*
 * From names to nodes, and what the store says of them. See resolve.h for the rule that
 * gives an inode its number.
 *
 * A look-up is short where memory knows the answer: the entry's identity belongs to a node
 * that has this very name. Otherwise the entry is settled under the directory's lock, which
 * everybody holds who creates, renames, unlinks or replaces something in it: the entry is
 * looked at again there, so that what becomes known here is what lies in the store.
 *
 * The race with a flush. It renames a new object over the old one and tells the node of its
 * new identity right after; in between a look-up (which holds tree->ns for reading, as the
 * flush does) sees an identity that nobody knows under a name that somebody has. Taking it
 * for a foreign file would give the file a second node and number. So: the directory's lock
 * first; and if the name still belongs to a node of another identity, that node's lock too,
 * then the entry is looked at once more. Only what is strange even then was put there behind
 * us: the node loses the name ("another identity under a known name is another file").
 * The same holds for a file being created: its node exists before the directory's lock is
 * free.
 *
 * Two look-ups of a file that has no row. One may give it a number and forget the node while the
 * other waits for the lock: so the row is looked for again, and made, under tree->numbers.
 *
 * A number that an object names in its cellar frame, or that the catalog has for it, may
 * belong to a node in memory that has another identity. That node keeps it, unless no name
 * leads to it any more and it has no scratch: then it is a later state of the same file, and
 * the node takes the new identity. A node with a scratch keeps its base whatever lies in
 * the store; what to do about that is the flusher's to decide.
 *
 * Threads: any. Locks as said in resolve.h.
 */
#include "tree/resolve.h"

#include <string.h>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/sysio.h"
#include "tree/listing.h"
#include "tree/trailer.h"

#define TRIES 8 /* looks at a directory in which somebody is busy */

/* ---- probing ---- */

/* What one look-up has learnt of the entry it is about. */
struct look {
	struct tree *tree;
	bool have_trailer;
	struct trailer trailer;
	struct ident asked; /* of this identity: whether, and which, row there was */
	bool have_row;
	struct catalog_file row;
};

static bool find_row(struct look *look, const struct ident *ident, const struct stat *st)
{
	look->asked = *ident;
	look->have_row = catalog_file_get(look->tree->catalog, ident, &look->row) &&
	                 look->row.type == (st->st_mode & S_IFMT) &&
	                 look->row.ino > TREE_ROOT_INO;
	return look->have_row;
}

/* Memory knows that the inode of this identity is an object: it was resolved as one. */
static bool is_known_object(struct tree *t, const struct ident *ident)
{
	struct node *n = tree_find_ident(t, ident);
	bool yes = false;

	if (!n)
		return false;
	rmlock_rd(&t->lock);
	for (const struct node_name *m = n->names; m && !n->raw && !yes; m = m->next)
		yes = name_has_suffix(m->store_name);
	rmlock_drop(&t->lock);
	node_unref(t, n);
	return yes;
}

static int counts_as_object(const struct tree *t, uint32_t kind, bool has_frame)
{
	return kind != OBJECT_PLAIN && (has_frame || !t->keep_foreign);
}

static int probe(struct look *look, int dirfd, const char *store_name,
                 const struct stat *st, const struct ident *ident)
{
	struct tree *t = look->tree;
	errint_t err;

	if (is_known_object(t, ident))
		return 1;
	/* A plain file's row without a hash was made without a look at the bytes. */
	if (find_row(look, ident, st) && row_matches(&look->row, st) &&
	    !row_hash_is_none(look->row.trailer_hash))
		return counts_as_object(t, look->row.kind, look->row.seq > 0);
	err = trailer_read(dirfd, store_name, ident, &look->trailer, NULL);
	if (err)
		return err;
	look->have_trailer = true;
	if (look->trailer.unreadable)
		return 1;
	return counts_as_object(t, look->trailer.kind, look->trailer.has_frame);
}

static int probe_remembering(void *ctx, int dirfd, const char *store_name,
                             const struct stat *st, const struct ident *ident)
{
	return probe(ctx, dirfd, store_name, st, ident);
}

static int probe_once(void *ctx, int dirfd, const char *store_name, const struct stat *st,
                      const struct ident *ident)
{
	struct look look = {.tree = ctx};

	return probe(&look, dirfd, store_name, st, ident);
}

struct entry_rules resolve_rules(struct tree *t)
{
	return (struct entry_rules){
	    .probe = probe_once,
	    .ctx = t,
	    .name_max = t->store->name_max,
	};
}

/* ---- which number ---- */

/* Whether the number in an object's cellar frame may be its own. Whether somebody in memory
 * has it is asked later, by tree_adopt_entry(). */
static bool frame_number_counts(struct tree *t, const struct trailer *r)
{
	struct catalog_file row;
	bool given_out;

	if (!trailer_is_ours(t, r) || r->frame.ino <= TREE_ROOT_INO)
		return false;
	lock_take(&t->store->lock);
	given_out = r->frame.ino < t->store->next_ino;
	lock_drop(&t->store->lock);
	/* What was never given out will be, to somebody else. */
	return given_out && (!catalog_file_by_ino(t->catalog, r->frame.ino, &row) ||
	                     row.seq < r->frame.seq);
}

/* The row for an entry that memory does not know, with the number it should have.
 * first: it may be one that somebody may have. */
static errint_t make_row(struct tree *t, const struct entry *e, const struct look *look,
                         bool first, struct catalog_file *ret, bool *ret_valid)
{
	const struct trailer *r = look->have_trailer ? &look->trailer : NULL;
	bool regular = S_ISREG(e->st.st_mode);
	uint64_t ino = 0;
	errint_t err = 0;

	if (first && look->have_row)
		ino = look->row.ino;
	else if (first && r && e->form == ENTRY_OBJECT && frame_number_counts(t, r))
		ino = r->frame.ino;
	else
		err = store_new_ino(t->store, &ino);
	if (err)
		return err;
	if (look->have_row) {
		*ret = look->row;
		ret->ino = ino;
	} else if (r && e->form == ENTRY_OBJECT) {
		*ret = row_of_trailer(t, r, ino, NULL);
	} else {
		*ret = row_new(&e->ident, ino, &e->st);
		ret->kind = OBJECT_EMPTY;
	}
	if (e->form == ENTRY_PLAIN)
		row_set_plain(ret);
	*ret_valid = !regular || row_matches(ret, &e->st);
	return 0;
}

/* n has the number that the entry should have, but another identity. True if it took the
 * entry's: see the top. The directory's lock is held. */
static bool take_over(struct tree *t, struct node *n, struct node *dir,
                      const struct entry *e)
{
	struct place place;
	bool taken = false;
	errint_t err;

	if (!S_ISREG(n->type) || !S_ISREG(e->st.st_mode) || lock_is_mine(&n->lock))
		return false;
	lock_take(&n->lock);
	if (!n->scratch && n->dead_fd < 0) {
		err = node_place(t, n, &place);
		if (!err)
			place_release(t, &place);
		taken = err == -ENOENT;
	}
	if (taken) {
		node_set_ident(t, n, &e->ident);
		n->info_valid = false;
		n->plain = e->form == ENTRY_PLAIN;
		rmlock_wr(&t->lock);
		n->raw = n->plain;
		rmlock_drop(&t->lock);
	}
	lock_drop(&n->lock);
	if (taken)
		node_add_name(t, n, dir, e->store_name.s);
	return taken;
}

/* n is the node of the entry: in the catalog before anybody can forget it. Number and type are
 * what count; resolve_info() brings the rest up to date. */
static void put_number(struct tree *t, const struct look *look, const struct node *n,
                       struct catalog_file *row)
{
	if (look->have_row && look->row.ino == n->ino)
		return;
	row->ino = n->ino;
	catalog_file_put(t->catalog, row);
}

/* One try to give an entry its number and its node; *ret_is: it is no node of another identity.
 * *ret_row is the row that the entry would have. */
static errint_t give_number(struct tree *t, struct node *dir, const struct entry *e,
                            struct look *look, bool first, struct node **ret,
                            struct catalog_file *ret_row, bool *ret_is)
{
	bool alone = !look->have_row, valid;
	errint_t err;

	/* Since learn() another look-up may have given it one and forgotten the node, under
	 * another directory's lock if it has more names. */
	if (alone) {
		lock_take(&t->numbers);
		(void)find_row(look, &e->ident, &e->st);
	}
	err = make_row(t, e, look, first, ret_row, &valid);
	if (!err) {
		*ret = tree_adopt_entry(t, dir, e->store_name.s, ret_row, valid,
		                        e->form == ENTRY_PLAIN);
		*ret_is = node_is(t, *ret, &e->ident);
		if (*ret_is)
			put_number(t, look, *ret, ret_row);
	}
	if (alone)
		lock_drop(&t->numbers);
	return err;
}

/* The node of an entry that was settled under the directory's lock. */
static errint_t adopt(struct tree *t, struct node *dir, const struct entry *e,
                      struct look *look, struct node **ret)
{
	struct catalog_file row;
	bool first = true, is;
	struct node *n;
	errint_t err;

	for (;; first = false) {
		err = give_number(t, dir, e, look, first, &n, &row, &is);
		if (err)
			return err;
		if (is)
			break;
		if (take_over(t, n, dir, e)) {
			put_number(t, look, n, &row);
			break;
		}
		node_unref(t, n);
	}
	if (n == t->root || n == dir) { /* a directory inside itself: a bind mount */
		node_unref(t, n);
		return -ELOOP;
	}
	if (t->on_new && S_ISREG(n->type))
		t->on_new(t->on_new_ctx, n);
	*ret = n;
	return 0;
}

/* ---- from an entry to its node ---- */

/* The short way. */
static struct node *find_known(struct tree *t, struct node *dir, const struct entry *e)
{
	struct node *n = tree_find_name(t, dir, e->store_name.s);

	if (n && n->type == (e->st.st_mode & S_IFMT) && node_is(t, n, &e->ident))
		return n;
	node_unref(t, n);
	return NULL;
}

/* Looks at the entry again: -EAGAIN if it is not what it was. */
static errint_t look_again(int dirfd, struct entry *e)
{
	struct ident ident;
	struct stat st;
	errint_t err = sys_fstatat(dirfd, e->store_name.s, &st, AT_SYMLINK_NOFOLLOW);

	if (!err)
		err = ident_get(dirfd, e->store_name.s, &ident);
	if (err == -ENOENT)
		return -EAGAIN;
	if (err)
		return err;
	if (!ident_equal(&ident, &e->ident) || (st.st_mode ^ e->st.st_mode) & S_IFMT)
		return -EAGAIN;
	e->st = st;
	return 0;
}

/* The entry's name belongs to `owner`. If that has another identity: see the top. */
static errint_t settle_owner(struct tree *t, struct node *owner, struct node *dir,
                             int dirfd, struct entry *e)
{
	bool wait = !S_ISDIR(owner->type) && !lock_is_mine(&owner->lock);
	errint_t err;

	if (node_is(t, owner, &e->ident))
		return 0;
	if (wait)
		lock_take(&owner->lock);
	err = look_again(dirfd, e);
	if (!err && !node_is(t, owner, &e->ident))
		node_remove_name(t, owner, dir, e->store_name.s);
	if (wait)
		lock_drop(&owner->lock);
	return err;
}

/* Under the directory's lock. */
static errint_t settle(struct tree *t, struct node *dir, int dirfd, struct entry *e,
                       struct look *look, struct node **ret)
{
	struct node *owner;
	errint_t err = look_again(dirfd, e);

	if (err)
		return err;
	owner = tree_find_name(t, dir, e->store_name.s);
	if (owner)
		err = settle_owner(t, owner, dir, dirfd, e);
	node_unref(t, owner);
	return err ? err : adopt(t, dir, e, look, ret);
}

/* What catalog or trailer say of the entry, before any lock is taken. */
static errint_t learn(struct look *look, int dirfd, const struct entry *e)
{
	errint_t err;

	if (look->have_trailer && !ident_equal(&look->trailer.ident, &e->ident))
		look->have_trailer = false;
	if (!ident_equal(&look->asked, &e->ident))
		(void)find_row(look, &e->ident, &e->st);
	if (look->have_row || look->have_trailer || e->form != ENTRY_OBJECT ||
	    !e->st.st_size)
		return 0;
	err = trailer_read(dirfd, e->store_name.s, &e->ident, &look->trailer, NULL);
	look->have_trailer = !err;
	return err == -ESTALE ? -EAGAIN : err;
}

/* A mount point (a bind mount of the same filesystem too) or a subvolume. Files may have
 * another st_dev than directories (overlayfs). */
static bool is_elsewhere(const struct tree *t, int dirfd, const struct entry *e)
{
	struct statx stx;

	if (S_ISDIR(e->st.st_mode) && e->st.st_dev != t->dev)
		return true;
	return !sys_statx(dirfd, e->store_name.s, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
	                  STATX_TYPE, &stx) &&
	       stx.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

/* -EAGAIN: somebody is busy in this directory, look the name up again. */
static errint_t node_of_entry(struct tree *t, struct node *dir, int dirfd, struct entry *e,
                              struct look *look, struct node **ret)
{
	bool mine = lock_is_mine(&dir->lock);
	errint_t err;

	*ret = find_known(t, dir, e);
	if (*ret)
		return 0;
	if (is_elsewhere(t, dirfd, e))
		return -EXDEV;
	err = learn(look, dirfd, e);
	if (err)
		return err;
	if (!mine)
		lock_take(&dir->lock);
	err = settle(t, dir, dirfd, e, look, ret);
	if (!mine)
		lock_drop(&dir->lock);
	return err;
}

/* One look; -EAGAIN as node_of_entry(). */
static errint_t look_once(struct tree *t, struct node *dir, int dirfd, const char *logical,
                          const char *stored, struct node **ret, struct stat *ret_st)
{
	struct look look = {.tree = t};
	struct entry_rules rules = {
	    .probe = probe_remembering,
	    .ctx = &look,
	    .name_max = t->store->name_max,
	};
	struct entry e;
	errint_t err = entry_lookup(&rules, dirfd, dir == t->root, logical, &e);

	if (!err && stored && strcmp(e.store_name.s, stored))
		return -ENOENT;
	if (!err)
		err = node_of_entry(t, dir, dirfd, &e, &look, ret);
	if (!err)
		*ret_st = e.st;
	return err;
}

/* stored: only an entry of this store name counts, may be NULL. */
static errint_t look_up(struct tree *t, struct node *dir, int dirfd, const char *logical,
                        const char *stored, struct node **ret, struct stat *ret_st)
{
	errint_t err = -EAGAIN;

	for (unsigned i = 0; i < TRIES && err == -EAGAIN; i++) {
		/* At last nothing of ours may move in there. */
		bool still = i == TRIES - 1 && !lock_is_mine(&dir->lock);
		uint64_t since = tree_replacements(t, dir);

		if (still)
			lock_take(&dir->lock);
		err = look_once(t, dir, dirfd, logical, stored, ret, ret_st);
		if (still)
			lock_drop(&dir->lock);
		/* The forms of a name are tried one after the other: N may have become N.zst in
		 * between, or N.zst N. Once more in any case: others change the store too. */
		if (err == -ENOENT && i < TRIES - 1 &&
		    (i == 0 || !tree_still(t, dir, since))) /* (K2) */
			err = -EAGAIN;
	}
	return err == -EAGAIN ? -ENOENT : err;
}

errint_t resolve_name(struct tree *t, struct node *dir, const char *logical,
                      struct node **ret, struct stat *ret_st)
{
	struct dirfd *pin;
	int dirfd;
	errint_t err = node_open_dir(t, dir, &dirfd, &pin);

	if (err)
		return err;
	err = look_up(t, dir, dirfd, logical, NULL, ret, ret_st);
	dirfd_release(t, pin);
	return err;
}

/* ---- store paths ---- */

/* The entry with this store name, if it is shown under some logical name. */
static errint_t look_up_stored(struct tree *t, struct node *dir, const char *stored,
                               struct node **ret, struct stat *ret_st)
{
	struct dirfd *pin;
	struct name logical;
	struct stat st;
	int dirfd;
	errint_t err = node_open_dir(t, dir, &dirfd, &pin);

	if (err)
		return err;
	err = sys_fstatat(dirfd, stored, &st, AT_SYMLINK_NOFOLLOW);
	if (!err) {
		(void)name_decode(stored, S_ISREG(st.st_mode), &logical);
		err = look_up(t, dir, dirfd, logical.s, stored, ret, ret_st);
		if (err == -ENOENT && strcmp(logical.s, stored))
			err = look_up(t, dir, dirfd, stored, stored, ret, ret_st); /* raw */
	}
	dirfd_release(t, pin);
	return err;
}

/* The next component of *path: 1, 0 at the end, or an error. */
static int next_component(const char **path, struct name *ret)
{
	const char *p = *path + strspn(*path, "/");
	size_t len = strcspn(p, "/");

	*path = p + len;
	if (!len)
		return 0;
	if (len > NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(ret->s, p, len);
	ret->s[len] = '\0';
	return !strcmp(ret->s, ".") || !strcmp(ret->s, "..") ? -EINVAL : 1;
}

errint_t resolve_store_path(struct tree *t, const char *store_path, struct node **ret,
                            struct stat *ret_st)
{
	struct node *n = t->root, *child;
	struct name name;
	struct stat st;
	int more;
	errint_t err = sys_fstat(t->store->root_fd, &st);

	if (err)
		return err;
	node_ref(t, n);
	while ((more = next_component(&store_path, &name)) > 0) {
		if (S_ISDIR(n->type))
			err = look_up_stored(t, n, name.s, &child, &st);
		else
			err = -ENOTDIR;
		node_unref(t, n);
		if (err)
			return err;
		n = child;
	}
	if (more < 0) {
		node_unref(t, n);
		return more;
	}
	*ret = n;
	*ret_st = st;
	return 0;
}

/* ---- info ---- */

static bool info_is_current(const struct node *n, const struct stat *st)
{
	/* A stamp is compared with the hash of a file that has a scratch. */
	bool hash_missing =
	    n->plain && n->scratch && row_hash_is_none(n->info.trailer_hash);
	bool same = n->info_valid && ident_equal(&n->info.ident, &n->ident);

	if (!S_ISREG(n->type) || (same && n->in_place))
		return same;
	/* A raw name may have become decodable, or the other way round. */
	return same && !hash_missing && n->plain == (n->info.kind == OBJECT_PLAIN) &&
	       row_matches(&n->info, st);
}

/* What is known of n's present inode from before: in memory, else in the catalog. */
static bool known_before(struct tree *t, const struct node *n, struct catalog_file *ret)
{
	if (ident_equal(&n->info.ident, &n->ident) && n->info.ino == n->ino) {
		*ret = n->info;
		return true;
	}
	return catalog_file_get(t->catalog, &n->ident, ret) && ret->ino == n->ino;
}

/* Believes a row as it is, if that is enough. */
static bool info_from_row(struct node *n, const struct catalog_file *row,
                          const struct stat *st)
{
	n->info = *row;
	n->info_valid = true;
	if (n->plain)
		row_set_plain(&n->info);
	if (info_is_current(n, st))
		return true;
	n->info_valid = false;
	return false;
}

static errint_t read_info(struct tree *t, struct node *n, int dirfd, const char *store_name,
                          const struct catalog_file *before, struct catalog_file *ret,
                          char **cause)
{
	struct trailer r;
	errint_t err = trailer_read(dirfd, store_name, &n->ident, &r, cause);

	if (err)
		return err;
	*ret = row_of_trailer(t, &r, n->ino, before);
	if (n->plain)
		row_set_plain(ret);
	return 0;
}

errint_t resolve_info(struct tree *t, struct node *n, int dirfd, const char *store_name,
                      const struct stat *st, char **cause)
{
	struct catalog_file before, row;
	bool known;
	errint_t err;

	lock_assert_held(&n->lock);
	if (info_is_current(n, st))
		return 0;
	known = known_before(t, n, &before);
	if (known && info_from_row(n, &before, st))
		return 0;
	if (!S_ISREG(n->type) || (n->plain && !n->scratch)) {
		row = row_new(&n->ident, n->ino, st);
		if (n->plain)
			row_set_plain(&row);
		if (known) {
			row.ctime = before.ctime;
			row.seen_ctime = before.seen_ctime;
			row.mtime = before.mtime;
		}
	} else {
		err =
		    read_info(t, n, dirfd, store_name, known ? &before : NULL, &row, cause);
		if (err)
			return err;
	}
	n->info = row;
	n->info_valid = true;
	catalog_file_put(t->catalog, &row);
	return 0;
}

/* ---- sizes of foreign objects ---- */

struct count {
	uint64_t bytes;
};

static errint_t count_piece(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct count *c = ctx;

	(void)data;
	c->bytes = off + len;
	return cancel_wanted() ? -EINTR : 0;
}

/* Opens n's object and says whether its size is still to be learnt. */
static errint_t open_unsized(struct tree *t, struct node *n, int *ret_fd,
                             struct stat *ret_st, struct ident *ret_ident, char **cause)
{
	struct place place;
	errint_t err;
	int fd = -1;

	rmlock_rd(&t->ns);
	lock_take(&n->lock);
	err = node_place(t, n, &place);
	if (err)
		goto out;
	err = sys_fstatat(place.dirfd, place.store_name.s, ret_st, AT_SYMLINK_NOFOLLOW);
	if (!err)
		err = resolve_info(t, n, place.dirfd, place.store_name.s, ret_st, cause);
	if (!err && n->info.logical_size == OBJECT_SIZE_UNKNOWN) {
		fd = store_open_object(place.dirfd, place.store_name.s);
		err = fd < 0 ? fd : sys_fstat(fd, ret_st);
	}
	*ret_ident = n->ident;
	place_release(t, &place);
out:
	lock_drop(&n->lock);
	rmlock_drop(&t->ns);
	*ret_fd = fd;
	return err;
}

errint_t resolve_size(struct tree *t, struct node *n, char **cause)
{
	struct count count = {0};
	cleanup_fd int fd = -1;
	struct ident ident;
	struct object o;
	struct stat st, now;
	errint_t err;

	if (!S_ISREG(n->type))
		return -EINVAL;
	err = open_unsized(t, n, &fd, &st, &ident, cause);
	if (err || fd < 0)
		return err;
	err = object_open(fd, &o, cause);
	if (!err)
		err = object_decode_all(&o, t->max_object, count_piece, &count, cause);
	if (err)
		goto out;
	err = sys_fstat(fd, &now);
	if (err)
		goto out;
	lock_take(&n->lock);
	if (!ident_equal(&n->ident, &ident) || !n->info_valid ||
	    !row_matches(&n->info, &st) || now.st_size != st.st_size ||
	    timespec_cmp(&now.st_mtim, &st.st_mtim)) {
		err = -ESTALE;
	} else {
		n->info.logical_size = count.bytes;
		catalog_file_put(t->catalog, &n->info);
	}
	lock_drop(&n->lock);
out:
	object_close(&o);
	return err;
}

/* ---- attributes ---- */

void resolve_attr(const struct node *n, const struct stat *st, struct stat *ret)
{
	bool known = n->info_valid && ident_equal(&n->info.ident, &n->ident);

	*ret = *st;
	ret->st_ino = n->ino;
	if (S_ISREG(n->type)) {
		if (known && n->info.logical_size != OBJECT_SIZE_UNKNOWN)
			ret->st_size = (off_t)n->info.logical_size;
		else if (!n->plain)
			ret->st_size = 0;
		if (ret->st_size > 0 && ret->st_blocks < 1)
			ret->st_blocks = 1;
	}
	if (known && (n->in_place || !timespec_cmp(&st->st_ctim, &n->info.seen_ctime))) {
		ret->st_ctim = n->info.ctime;
		if (S_ISDIR(n->type))
			ret->st_mtim = n->info.mtime;
	}
}

static errint_t stat_unnamed(struct node *n, struct stat *ret)
{
	bool mine = lock_is_mine(&n->lock);
	errint_t err = -ENOENT;

	if (!mine)
		lock_take(&n->lock);
	if (n->dead_fd >= 0) {
		err = sys_fstat(n->dead_fd, ret);
	} else if (n->dead_st) {
		*ret = *n->dead_st;
		err = 0;
	}
	if (!mine)
		lock_drop(&n->lock);
	return err;
}

/* A directory that is open needs no way to it: after each create and unlink in it the kernel asks
 * for its attributes anew. */
static bool stat_opened(struct tree *t, struct node *n, struct stat *ret)
{
	struct dirfd *pin;
	bool there;
	int fd;

	if (!S_ISDIR(n->type))
		return false;
	pin = node_opened_dir(t, n, &fd);
	if (!pin)
		return false;
	there = sys_fstat(fd, ret) == 0 && ret->st_nlink > 0;
	dirfd_release(t, pin);
	return there;
}

errint_t resolve_stat(struct tree *t, struct node *n, struct stat *ret)
{
	errint_t err = -ENOENT;

	if (stat_opened(t, n, ret))
		return 0;
	/* Between place and stat the name may go; then there may be another. */
	for (unsigned i = 0; i < TRIES && err == -ENOENT; i++) {
		struct place place;

		err = node_place(t, n, &place);
		if (err == -ENOENT)
			return stat_unnamed(n, ret);
		if (err)
			return err;
		if (place.store_name.s[0])
			err = sys_fstatat(place.dirfd, place.store_name.s, ret,
			                  AT_SYMLINK_NOFOLLOW);
		else
			err = sys_fstat(place.dirfd, ret);
		place_release(t, &place);
	}
	return err;
}

void resolve_keep_ctime(struct tree *t, struct node *n, const struct stat *st_now,
                        const struct timespec *logical_ctime)
{
	node_forget_seen(n);
	if (!ident_equal(&n->info.ident, &n->ident) || n->info.ino != n->ino) {
		struct catalog_file row;

		if (!known_before(t, n, &row)) {
			row = row_new(&n->ident, n->ino, st_now);
			if (S_ISREG(n->type))
				row_set_unknown(&row);
		}
		n->info = row;
		n->info_valid = false;
	}
	n->info.ctime = *logical_ctime;
	n->info.seen_ctime = st_now->st_ctim;
	if (S_ISDIR(n->type)) {
		/* Put back by whoever made the change. */
		n->info.mtime = st_now->st_mtim;
		n->info_valid = true;
	}
	catalog_file_put(t->catalog, &n->info);
}
