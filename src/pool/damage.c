/*
 * The list of damaged objects: see damage.h.
 *
 * An entry is of one identity: when the object was replaced (flushed, put there by somebody
 * else) or is gone, the entry is dropped by the next look at the list. Paths are made when
 * the list is shown, so that they are true then.
 *
 * Locks: p->damage_lock (a leaf) guards the list. A node is referenced while the table has
 * it; an entry keeps its number and finds it again.
 */
#include "pool/damage.h"

#include <string.h>

#include "base/text.h"
#include "pool/internal.h"

struct damaged {
	UT_hash_handle hh; /* by ino */
	uint64_t ino;
	struct ident ident;
	char *path; /* as it was then */
	char *error;
	struct object_range ranges[DAMAGE_RANGES_MAX];
	size_t count;
};

static void damaged_free(struct damaged *d)
{
	free(d->path);
	free(d->error);
	free(d);
}

/* damage_lock held. */
static void drop(struct pool *p, struct damaged *d)
{
	HASH_DEL(p->damaged, d);
	damaged_free(d);
}

/* The entry of n with its identity, made if there is room; NULL: there is none. damage_lock
 * held. */
static struct damaged *entry_of(struct pool *p, struct node *n, const struct ident *ident,
                                char **path)
{
	struct damaged *d;

	HASH_FIND(hh, p->damaged, &n->ino, sizeof(n->ino), d);
	if (d && !ident_equal(&d->ident, ident)) {
		drop(p, d);
		d = NULL;
	}
	if (d)
		return d;
	if (HASH_COUNT(p->damaged) >= DAMAGE_FILES_MAX)
		return NULL;
	d = xcalloc(1, sizeof(*d));
	d->ino = n->ino;
	d->ident = *ident;
	d->path = steal_pointer(path);
	HASH_ADD(hh, p->damaged, ino, sizeof(d->ino), d);
	return d;
}

static bool has_range(const struct damaged *d, const struct object_range *r)
{
	for (size_t i = 0; i < d->count; i++)
		if (d->ranges[i].off == r->off && d->ranges[i].len == r->len)
			return true;
	return false;
}

static struct ident ident_now(struct pool *p, struct node *n)
{
	struct ident ident;

	rmlock_rd(&p->tree->lock);
	ident = n->ident;
	rmlock_drop(&p->tree->lock);
	return ident;
}

bool damage_note(struct pool *p, struct node *n, struct object_range range,
                 const char *error)
{
	struct ident ident = ident_now(p, n);
	cleanup_free char *path = node_path(p->tree, n);
	struct damaged *d;
	bool fresh = true;

	lock_take(&p->damage_lock);
	d = entry_of(p, n, &ident, &path);
	if (d) {
		fresh = !d->error || (range.len > 0 && !has_range(d, &range));
		if (!d->error)
			d->error = xstrdup(error);
		if (fresh && range.len > 0 && d->count < DAMAGE_RANGES_MAX)
			d->ranges[d->count++] = range;
	}
	lock_drop(&p->damage_lock);
	return fresh;
}

void damage_set(struct pool *p, struct node *n, const struct object_range *ranges,
                size_t count, const char *error)
{
	struct ident ident = ident_now(p, n);
	cleanup_free char *path = node_path(p->tree, n);
	struct damaged *d;

	lock_take(&p->damage_lock);
	d = entry_of(p, n, &ident, &path);
	if (d) {
		free(d->error);
		d->error = xstrdup(error);
		d->count = MIN_OF(count, (size_t)DAMAGE_RANGES_MAX);
		if (d->count)
			memcpy(d->ranges, ranges, d->count * sizeof(*ranges));
	}
	lock_drop(&p->damage_lock);
}

void damage_forget(struct pool *p, struct node *n)
{
	struct damaged *d;

	lock_take(&p->damage_lock);
	HASH_FIND(hh, p->damaged, &n->ino, sizeof(n->ino), d);
	if (d)
		drop(p, d);
	lock_drop(&p->damage_lock);
}

bool damage_is_empty(struct pool *p)
{
	bool empty;

	lock_take(&p->damage_lock);
	empty = !p->damaged;
	lock_drop(&p->damage_lock);
	return empty;
}

void damage_clear(struct pool *p)
{
	struct damaged *d, *next;

	lock_take(&p->damage_lock);
	HASH_ITER (hh, p->damaged, d, next) {
		drop(p, d);
	}
	lock_drop(&p->damage_lock);
}

/* ---- the list ---- */

static int by_offset(const void *a, const void *b)
{
	const struct object_range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

/* Sorts, and joins what touches. Returns how many are left. */
static size_t join_ranges(struct object_range *r, size_t count)
{
	size_t n = 0;

	if (!count)
		return 0;
	qsort(r, count, sizeof(*r), by_offset);
	for (size_t i = 1; i < count; i++) {
		if (r[i].off <= r[n].off + r[n].len)
			r[n].len = MAX_OF(r[n].len, r[i].off + r[i].len - r[n].off);
		else
			r[++n] = r[i];
	}
	return n + 1;
}

/* Whether the entry still says something of a file that is there; its path then. */
static bool is_true(struct pool *p, const struct damaged *d, char **ret_path)
{
	struct node *n = tree_get(p->tree, d->ino);
	bool yes = true;

	*ret_path = NULL;
	if (!n) {
		*ret_path = xstrdup(d->path ? d->path : "?"); /* forgotten by the kernel */
		return true;
	}
	yes = node_is(p->tree, n, &d->ident) && node_has_names(p->tree, n);
	if (yes)
		*ret_path = node_path(p->tree, n);
	node_unref(p->tree, n);
	return yes;
}

/* Copies, so that nothing is called under the lock. */
static struct damaged *copy_list(struct pool *p, size_t *ret_n)
{
	struct damaged *list, *d, *next;
	size_t n = 0;

	lock_take(&p->damage_lock);
	list = xcalloc(HASH_COUNT(p->damaged) + 1, sizeof(*list));
	HASH_ITER (hh, p->damaged, d, next) {
		list[n] = *d;
		list[n].path = d->path ? xstrdup(d->path) : NULL;
		list[n].error = xstrdup(d->error ? d->error : "");
		n++;
	}
	lock_drop(&p->damage_lock);
	*ret_n = n;
	return list;
}

static void forget_if_same(struct pool *p, const struct damaged *was)
{
	struct damaged *d;

	lock_take(&p->damage_lock);
	HASH_FIND(hh, p->damaged, &was->ino, sizeof(was->ino), d);
	if (d && ident_equal(&d->ident, &was->ident))
		drop(p, d);
	lock_drop(&p->damage_lock);
}

size_t pool_each_damaged(struct pool *p, pool_damage_fn fn, void *ctx)
{
	size_t n, told = 0;
	struct damaged *list = copy_list(p, &n);

	for (size_t i = 0; i < n; i++) {
		cleanup_free char *path = NULL;

		if (is_true(p, &list[i], &path)) {
			struct pool_damage d = {
			    .path = path,
			    .error = list[i].error,
			    .ranges = list[i].ranges,
			    .count = join_ranges(list[i].ranges, list[i].count),
			};

			if (fn)
				fn(ctx, &d);
			told++;
		} else {
			forget_if_same(p, &list[i]);
		}
		free(list[i].path);
		free(list[i].error);
	}
	free(list);
	return told;
}
