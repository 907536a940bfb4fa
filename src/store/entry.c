/*
 * From a logical name to what lies in the store directory, and back for listings.
 *
 * Everything here follows from one sentence: an entry of the store is shown under what its
 * name decodes to (names.h), raw under its store name where that is taken by a non-regular
 * entry, where it cannot be decoded, or where its bytes are no object; and of two entries
 * that would be shown under one name the first of the order in entry.h is shown.
 * Look-up (find_*) goes from the name, listing (struct snapshot) from the entries; both ask
 * the same questions, so that what is listed can be looked up and the other way round.
 *
 * Threads: no state. The caller holds what keeps the directory still (the directory's lock
 * or the namespace); without it the answer may mix two moments, as with any look-up.
 */
#include "store/entry.h"

#include <dirent.h>
#include <string.h>

#include "base/sysio.h"

/* Out of memory in a hash is an error like any other: directories may be large. */
#define HASH_NONFATAL_OOM      1
#define uthash_nonfatal_oom(e) ((e)->lost = true)
#include "uthash.h"

struct directory {
	const struct entry_rules *rules;
	int dirfd;
	bool is_root;
};

/* ---- look-up ---- */

static bool is_private(const struct directory *d, const char *logical)
{
	return d->is_root && !strcmp(logical, NAMES_PRIVATE);
}

/* 1 there, 0 not there, or an error. A name that the filesystem cannot hold is not there. */
static int ask(const struct directory *d, const char *store_name, struct stat *st)
{
	errint_t err = sys_fstatat(d->dirfd, store_name, st, AT_SYMLINK_NOFOLLOW);

	if (err == -ENOENT || err == -ENAMETOOLONG)
		return 0;
	return err ? err : 1;
}

static errint_t fill_entry(const struct directory *d, enum entry_form form,
                           const char *store_name, const struct stat *st, struct entry *ret)
{
	struct entry e = {.form = form, .st = *st};
	errint_t err = ident_get(d->dirfd, store_name, &e.ident);

	if (err)
		return err;
	memcpy(e.store_name.s, store_name, strlen(store_name) + 1);
	*ret = e;
	return 0;
}

/* Whether the plain form of a non-regular entry is shown as itself. */
static bool plain_form_counts(const char *logical)
{
	struct name n;

	return name_decode(logical, false, &n) && !strcmp(n.s, logical);
}

/* Forms (1) and (2). *plain and *st_plain tell what lies under the logical name itself, for
 * form (4). 1 found, 0 not, or an error. */
static int find_other(const struct directory *d, const char *logical, struct name *ret_name,
                      struct stat *ret_st, int *plain, struct stat *st_plain)
{
	int r;

	if (name_has_tilde_suffix(logical) && !name_encode(logical, false, ret_name)) {
		r = ask(d, ret_name->s, ret_st);
		if (r < 0 || (r && !S_ISREG(ret_st->st_mode)))
			return r;
	}
	*plain = ask(d, logical, st_plain);
	if (*plain <= 0 || S_ISREG(st_plain->st_mode) || !plain_form_counts(logical))
		return MIN_OF(*plain, 0);
	*ret_st = *st_plain;
	memcpy(ret_name->s, logical, strlen(logical) + 1);
	return 1;
}

#define TRIES 8 /* looks at a name that keeps leading to another file */

/* Is what store_name (which ends in .zst) leads to an object? 1, or 0 for another regular
 * file, with *st and *ident of the file that was judged; -ENOENT where no regular file is; or
 * an error of looking. Reading it tells more, so that one that cannot be read is an object, and
 * so is one that was replaced each time it was looked at. */
static int judge_file(const struct directory *d, const char *store_name, struct stat *st,
                      struct ident *ident)
{
	int r = -ESTALE;

	for (int i = 0; i < TRIES && r == -ESTALE; i++) {
		r = ask(d, store_name, st);
		if (r < 0)
			return r;
		if (!r || !S_ISREG(st->st_mode))
			return -ENOENT;
		r = ident_get(d->dirfd, store_name, ident);
		if (r < 0)
			return r;
		r = st->st_size
		        ? d->rules->probe(d->rules->ctx, d->dirfd, store_name, st, ident)
		        : 1;
	}
	return r < 0 ? 1 : r;
}

/* Form (3). */
static int find_object(const struct directory *d, const char *logical, struct entry *ret)
{
	struct entry e = {.form = ENTRY_OBJECT};
	int r;

	if (name_encode(logical, true, &e.store_name))
		return 0;
	r = judge_file(d, e.store_name.s, &e.st, &e.ident);
	if (r > 0)
		*ret = e;
	return r == -ENOENT ? 0 : r;
}

/* Whether the name that a .zst file decodes to is somebody else's. 1, 0 or an error. */
static int is_taken(const struct directory *d, const char *logical)
{
	struct name name;
	struct stat st, st_plain;
	int plain;

	if (is_private(d, logical))
		return 1;
	return find_other(d, logical, &name, &st, &plain, &st_plain);
}

/* Form (4), for a regular file that lies under the logical name itself. */
static int find_plain(const struct directory *d, const char *logical, const struct stat *st,
                      struct entry *ret)
{
	struct name decoded;
	struct entry e;
	errint_t err = fill_entry(d, ENTRY_PLAIN, logical, st, &e);
	int r = err ? err : 1;

	if (!err && name_has_suffix(logical) && name_decode(logical, true, &decoded)) {
		r = is_taken(d, decoded.s);
		if (!r) {
			r = judge_file(d, logical, &e.st, &e.ident);
			r = r < 0 ? r : !r;
		}
	}
	if (r > 0)
		*ret = e;
	return r == -ENOENT ? 0 : r;
}

static errint_t look_up(const struct directory *d, const char *logical, struct entry *ret)
{
	struct name name;
	struct stat st, st_plain;
	int plain;
	int r = find_other(d, logical, &name, &st, &plain, &st_plain);

	if (r > 0)
		return fill_entry(d, ENTRY_OTHER, name.s, &st, ret);
	if (!r)
		r = find_object(d, logical, ret);
	if (r > 0)
		ret->hides = plain && S_ISREG(st_plain.st_mode);
	if (!r && plain && S_ISREG(st_plain.st_mode))
		r = find_plain(d, logical, &st_plain, ret);
	if (r)
		return MIN_OF(r, 0);
	return strlen(logical) + NAMES_SUFFIX_LEN > d->rules->name_max ? -ENAMETOOLONG
	                                                               : -ENOENT;
}

errint_t entry_lookup(const struct entry_rules *r, int dirfd, bool is_root,
                      const char *logical, struct entry *ret)
{
	struct directory d = {.rules = r, .dirfd = dirfd, .is_root = is_root};

	if (strlen(logical) > NAME_MAX)
		return -ENAMETOOLONG;
	if (!*logical || !strcmp(logical, ".") || !strcmp(logical, "..") ||
	    strchr(logical, '/') || is_private(&d, logical))
		return -ENOENT;
	return look_up(&d, logical, ret);
}

errint_t entry_check_free(const struct entry_rules *r, int dirfd, bool is_root,
                          const char *logical)
{
	struct directory d = {.rules = r, .dirfd = dirfd, .is_root = is_root};
	struct entry e;
	errint_t err;

	if (is_private(&d, logical))
		return -EPERM;
	if (strlen(logical) + NAMES_SUFFIX_LEN > r->name_max)
		return -ENAMETOOLONG;
	err = entry_lookup(r, dirfd, is_root, logical, &e);
	if (err == -ENOENT)
		return 0;
	return err ? err : -EEXIST;
}

errint_t entry_new_name(const struct entry_rules *r, int dirfd, bool is_root,
                        const char *logical, bool regular, struct name *ret)
{
	struct directory d = {.rules = r, .dirfd = dirfd, .is_root = is_root};
	struct entry e;
	struct stat st;
	struct name name;
	int there;
	errint_t err;

	if (is_private(&d, logical))
		return -EPERM;
	if (strlen(logical) + NAMES_SUFFIX_LEN > r->name_max)
		return -ENAMETOOLONG;
	err = name_encode(logical, regular, &name);
	if (err)
		return err;
	there = ask(&d, name.s, &st);
	if (there < 0)
		return there;
	if (there) {
		err = entry_lookup(r, dirfd, is_root, logical, &e);
		if (err && err != -ENOENT)
			return err;
		if (err || strcmp(e.store_name.s, name.s))
			return -EEXIST;
	}
	*ret = name;
	return 0;
}

/* ---- listing ---- */

struct seen {
	char *stored;
	char *logical; /* owned; NULL: not shown */
	unsigned char type;
	bool may_be_plain; /* regular, and no object */
	bool lost;         /* no memory for its place in the hash */
	UT_hash_handle hh;
};

struct snapshot {
	struct directory dir;
	struct seen *v;
	size_t count, allocated;
	struct seen *others;  /* hash: shown non-regular entries, by logical name */
	struct seen *objects; /* hash: shown objects, by logical name */
};

static errint_t take_note(void *ctx, const char *name, unsigned char type)
{
	struct snapshot *s = ctx;
	char *copy;

	/* Longer ones (some filesystems count in other units) cannot be looked up. */
	if (strlen(name) > NAME_MAX)
		return 0;
	if (s->count == s->allocated) {
		size_t n = s->allocated ? 2 * s->allocated : 64;
		struct seen *v = realloc(s->v, n * sizeof *v);

		if (!v)
			return -ENOMEM;
		s->v = v;
		s->allocated = n;
	}
	copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	s->v[s->count++] = (struct seen){.stored = copy, .type = type};
	return 0;
}

static struct seen *find_seen(struct seen *hash, const char *logical)
{
	struct seen *e;

	HASH_FIND_STR(hash, logical, e);
	return e;
}

static errint_t show(struct seen **hash, struct seen *e, const char *logical)
{
	e->logical = strdup(logical);
	if (!e->logical)
		return -ENOMEM;
	HASH_ADD_KEYPTR(hh, *hash, e->logical, strlen(e->logical), e);
	return e->lost ? -ENOMEM : 0;
}

/* Forms (1) and (2): called first for the encoded ones, then for those that are shown under
 * their store name, which lose where both lie there. The private directory takes its name
 * and is not shown. */
static errint_t show_others(struct snapshot *s, bool encoded)
{
	errint_t err = 0;

	for (size_t i = 0; i < s->count && !err; i++) {
		struct seen *e = &s->v[i];
		struct name n;

		if (e->type == DT_REG)
			continue;
		(void)name_decode(e->stored, false, &n);
		if (encoded == !strcmp(n.s, e->stored) || find_seen(s->others, n.s) ||
		    is_private(&s->dir, n.s))
			continue;
		err = show(&s->others, e, n.s);
	}
	return err;
}

/* Form (3): every regular file is an object now, or may be plain, or has gone. */
static errint_t show_object(struct snapshot *s, struct seen *e)
{
	struct ident ident;
	struct stat st;
	struct name n;
	int r;

	e->may_be_plain = true;
	if (!name_has_suffix(e->stored) || !name_decode(e->stored, true, &n) ||
	    is_private(&s->dir, n.s) || find_seen(s->others, n.s))
		return 0;
	r = judge_file(&s->dir, e->stored, &st, &ident);
	e->may_be_plain = !r;
	if (r == -ENOENT)
		return 0;
	return r ? show(&s->objects, e, n.s)
	         : 0; /* one bad inode does not hide the others */
}

/* Form (4). */
static errint_t show_plain(struct snapshot *s, struct seen *e)
{
	if (!e->may_be_plain || find_seen(s->others, e->stored) ||
	    find_seen(s->objects, e->stored) || is_private(&s->dir, e->stored))
		return 0;
	e->logical = strdup(e->stored);
	return e->logical ? 0 : -ENOMEM;
}

static errint_t decide(struct snapshot *s)
{
	errint_t err = show_others(s, true);

	if (!err)
		err = show_others(s, false);
	for (size_t i = 0; i < s->count && !err; i++)
		if (s->v[i].type == DT_REG)
			err = show_object(s, &s->v[i]);
	for (size_t i = 0; i < s->count && !err; i++)
		err = show_plain(s, &s->v[i]);
	return err;
}

/* Moves the names that are shown into a listing. */
static errint_t to_listing(struct snapshot *s, struct listing *ret)
{
	struct listing l = {0};

	l.items = malloc((s->count + 1) * sizeof *l.items);
	if (!l.items)
		return -ENOMEM;
	for (size_t i = 0; i < s->count; i++) {
		struct seen *e = &s->v[i];

		if (e->logical)
			l.items[l.count++] = (struct listing_item){
			    .logical = steal_pointer(&e->logical), .type = e->type};
	}
	*ret = l;
	return 0;
}

errint_t entry_list(const struct entry_rules *r, int dirfd, bool is_root,
                    struct listing *ret)
{
	struct snapshot s = {.dir = {.rules = r, .dirfd = dirfd, .is_root = is_root}};
	errint_t err = sys_walk_dir(dirfd, take_note, &s);

	if (!err)
		err = decide(&s);
	HASH_CLEAR(hh, s.others);
	HASH_CLEAR(hh, s.objects);
	if (!err)
		err = to_listing(&s, ret);
	for (size_t i = 0; i < s.count; i++) {
		free(s.v[i].stored);
		free(s.v[i].logical);
	}
	free(s.v);
	return err;
}

void listing_clear(struct listing *l)
{
	for (size_t i = 0; i < l->count; i++)
		free(l->items[i].logical);
	free(l->items);
	*l = (struct listing){0};
}
