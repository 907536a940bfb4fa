/*
 * The inode table: nodes, their counts and their names. See node.h for the words.
 *
 * Invariants, true whenever nobody has tree->lock for writing:
 *  (1) A node is in by_ino from its birth to its end; in by_ident unless another inode took
 *      its identity over (filesystems that reuse inode numbers within one birth time).
 *  (2) A node but the root has nlookup + refs + children > 0, or somebody has just lowered one of
 *      these to nothing and is about to take tree->lock for writing, to look again
 *      (reap_number()). References and look-ups are counted atomically: up by whoever has a
 *      reference, or reads under tree->lock; down under tree->lock for reading, so that the last
 *      one can still look at the node.
 *  (3) n->children = the number of names whose parent is n. Names do not keep their own
 *      node alive, only their parent.
 *  (4) A name (parent, store name) leads to one node; a directory has at most one name; the
 *      way up from any name ends at the root or at a directory without a name, never in a
 *      circle.
 * A node whose last count has gone is taken out of all tables under tree->lock, with every
 * parent that only it kept, and freed after the lock was dropped: a look-up that comes in
 * between makes a new one.
 *
 * Threads: any. Only memory is touched under tree->lock.
 */
#include "tree/node.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/sysio.h"

/* ---- birth and death ---- */

static struct node *node_new(uint64_t ino, uint32_t type)
{
	struct node *n = xcalloc(1, sizeof(*n));

	n->magic = NODE_MAGIC;
	n->type = type;
	n->ino = ino;
	n->dead_fd = -1;
	lock_init(&n->lock, LOCK_NODE);
	return n;
}

static void node_free(struct node *n)
{
	INVARIANT(n->magic == NODE_MAGIC);
	n->magic = 0;
	if (n->dead_fd >= 0)
		(void)sys_close(n->dead_fd);
	free(n->dead_st);
	free(n->seen_st);
	lock_clear(&n->lock);
	free(n);
}

#define FREED_LEAST 16384 /* nodes: less memory is not worth looking for */

struct dead {
	struct node *nodes; /* by next_dead */
	int *fds;
	size_t fd_count;
};

/* After tree->lock was dropped. */
static void bury(struct tree *t, struct dead *d)
{
	uint64_t count = 0;
	struct node *n;

	while ((n = d->nodes)) {
		d->nodes = n->next_dead;
		INVARIANT(!n->scratch);
		node_free(n);
		count++;
	}
	if (count > 0)
		atomic_fetch_add(&t->freed, count);
	for (size_t i = 0; i < d->fd_count; i++)
		(void)sys_close(d->fds[i]);
	free(d->fds);
}

void tree_give_back(struct tree *t)
{
	uint64_t left = tree_count(t), freed = atomic_load(&t->freed);

	if (freed < FREED_LEAST || freed < left / 2)
		return;
	atomic_store(&t->freed, 0);
	/* What threads freed lies between what they still use, where the C library keeps it. */
	(void)malloc_trim(0);
}

static uint64_t name_hash(const struct node *parent, const char *store_name)
{
	return XXH3_64bits_withSeed(store_name, strlen(store_name), parent->ino);
}

static bool is_unused(const struct tree *t, const struct node *n)
{
	return n != t->root && !n->nlookup && !n->refs && !n->children;
}

static void unlist_ident_locked(struct tree *t, struct node *n)
{
	if (!n->listed)
		return;
	hashtab_remove(&t->by_ident, &n->by_ident);
	n->listed = false;
}

static void list_ident_locked(struct tree *t, struct node *n, const struct ident *ident)
{
	n->ident = *ident;
	hashtab_add(&t->by_ident, &n->by_ident, ident->w[0]); /* a hash itself */
	n->listed = true;
}

/* Takes one name out of table and list; its parent is returned with one child less, and
 * perhaps unused. */
static struct node *drop_name_locked(struct tree *t, struct node_name *name)
{
	struct node *parent = name->parent;
	struct node_name **at = &name->node->names;

	while (*at != name)
		at = &(*at)->next;
	*at = name->next;
	hashtab_remove(&t->by_name, &name->by_name);
	free(name);
	INVARIANT(parent->children > 0);
	parent->children--;
	return parent;
}

static void take_out_locked(struct tree *t, struct node *n, struct dead *d)
{
	int fd = dirfd_orphan_locked(t, n);

	hashtab_remove(&t->by_ino, &n->by_ino);
	unlist_ident_locked(t, n);
	if (fd >= 0) {
		d->fds = xrealloc(d->fds, (d->fd_count + 1) * sizeof(*d->fds));
		d->fds[d->fd_count++] = fd;
	}
}

/* If n is unused: n, and upwards what nothing else keeps. A loop and no recursion: trees
 * may be deep. */
static void reap_locked(struct tree *t, struct node *n, struct dead *d)
{
	struct node *todo;

	if (!is_unused(t, n))
		return;
	take_out_locked(t, n, d);
	n->next_dead = NULL;
	todo = n;
	while (todo) {
		n = todo;
		todo = n->next_dead;
		n->next_dead = d->nodes;
		d->nodes = n;
		while (n->names) {
			struct node *parent = drop_name_locked(t, n->names);

			if (is_unused(t, parent)) {
				take_out_locked(t, parent, d);
				parent->next_dead = todo;
				todo = parent;
			}
		}
		if (n->left) {
			struct node *left = steal_pointer(&n->left);

			if (!n->gone)
				t->left_forgotten++;
			left->refs--;
			if (is_unused(t, left)) {
				take_out_locked(t, left, d);
				left->next_dead = todo;
				todo = left;
			}
		}
	}
}

/* A file loses a name that it had in parent. */
static void note_left_locked(struct node *n, struct node *parent)
{
	if (!S_ISREG(n->type))
		return;
	n->left_gen++;
	if (n->left) {
		n->left_more = n->left_more || n->left != parent;
		return;
	}
	n->left = parent;
	parent->refs++;
}

/* ---- finding ---- */

static struct node *by_ino_locked(struct tree *t, uint64_t ino)
{
	struct hash_link *l = hashtab_first(&t->by_ino, ino);

	return l ? container_of(l, struct node, by_ino) : NULL; /* the hash is the key */
}

static struct node *by_ident_locked(struct tree *t, const struct ident *ident)
{
	struct hash_link *l = hashtab_first(&t->by_ident, ident->w[0]);

	while (l && !ident_equal(&container_of(l, struct node, by_ident)->ident, ident))
		l = hashtab_next(l);
	return l ? container_of(l, struct node, by_ident) : NULL;
}

static struct node_name *by_name_locked(struct tree *t, struct node *parent,
                                        const char *store_name)
{
	struct hash_link *l = hashtab_first(&t->by_name, name_hash(parent, store_name));

	for (; l; l = hashtab_next(l)) {
		struct node_name *name = container_of(l, struct node_name, by_name);

		if (name->parent == parent && strcmp(name->store_name, store_name) == 0)
			return name;
	}
	return NULL;
}

struct node *tree_get(struct tree *t, uint64_t ino)
{
	struct node *n;

	rmlock_rd(&t->lock);
	n = by_ino_locked(t, ino);
	if (n)
		n->refs++;
	rmlock_drop(&t->lock);
	return n;
}

struct node *tree_find_ident(struct tree *t, const struct ident *ident)
{
	struct node *n;

	rmlock_rd(&t->lock);
	n = by_ident_locked(t, ident);
	if (n)
		n->refs++;
	rmlock_drop(&t->lock);
	return n;
}

struct node *tree_find_name(struct tree *t, struct node *parent, const char *store_name)
{
	struct node_name *name;
	struct node *n = NULL;

	rmlock_rd(&t->lock);
	name = by_name_locked(t, parent, store_name);
	if (name) {
		n = name->node;
		n->refs++;
	}
	rmlock_drop(&t->lock);
	return n;
}

struct node *tree_find_listed(struct tree *t, struct node *parent, const char *store_name)
{
	struct node_name *name;
	struct node *n = NULL;

	rmlock_rd(&t->lock);
	name = by_name_locked(t, parent, store_name);
	if (name && name->node->nlookup > 0 && !name->node->raw) {
		n = name->node;
		n->refs++;
	}
	rmlock_drop(&t->lock);
	return n;
}

uint64_t tree_count(struct tree *t)
{
	uint64_t count;

	rmlock_rd(&t->lock);
	count = t->by_ino.count;
	rmlock_drop(&t->lock);
	return count;
}

bool node_is(struct tree *t, struct node *n, const struct ident *ident)
{
	bool same;

	rmlock_rd(&t->lock);
	same = ident_equal(&n->ident, ident);
	rmlock_drop(&t->lock);
	return same;
}

/* ---- counts ---- */

void node_ref(struct tree *t, struct node *n)
{
	(void)t;
	n->refs++;
}

/* (2): the node of this number had its last count lowered. */
static void reap_number(struct tree *t, uint64_t ino)
{
	struct dead dead = {0};
	struct node *n;

	rmlock_wr(&t->lock);
	n = by_ino_locked(t, ino);
	if (n) /* perhaps a later one: as good as any */
		reap_locked(t, n, &dead);
	rmlock_drop(&t->lock);
	bury(t, &dead);
}

void node_unref(struct tree *t, struct node *n)
{
	uint64_t ino;
	bool unused;

	if (!n)
		return;
	rmlock_rd(&t->lock);
	INVARIANT(n->magic == NODE_MAGIC && n->refs > 0);
	ino = n->ino;
	n->refs--;
	unused = is_unused(t, n);
	rmlock_drop(&t->lock);
	if (unused)
		reap_number(t, ino);
}

void node_add_lookup(struct tree *t, struct node *n)
{
	(void)t;
	n->nlookup++;
}

void node_forget(struct tree *t, uint64_t ino, uint64_t nlookup)
{
	bool unused = false;
	struct node *n;

	rmlock_rd(&t->lock);
	n = by_ino_locked(t, ino);
	if (n && n != t->root) {
		INVARIANT(atomic_fetch_sub(&n->nlookup, nlookup) >= nlookup);
		unused = is_unused(t, n);
	}
	rmlock_drop(&t->lock);
	if (unused)
		reap_number(t, ino);
}

/* ---- names ---- */

/* (4): n, a directory, is about to be put below parent. If n is on the way up from there,
 * the store was rearranged behind us: the way is cut right below n. */
static void cut_circle_locked(struct tree *t, const struct node *n, struct node *parent,
                              struct dead *d)
{
	for (struct node *p = parent; p->names; p = p->names->parent) {
		if (p->names->parent == n) {
			reap_locked(t, drop_name_locked(t, p->names), d);
			break;
		}
	}
}

static void add_name_locked(struct tree *t, struct node *n, struct node *parent,
                            const char *store_name, struct dead *d)
{
	size_t len = strlen(store_name);
	struct node_name *name = by_name_locked(t, parent, store_name);

	if (n == t->root || n == parent || (name && name->node == n))
		return;
	INVARIANT(len > 0 && len <= NAME_MAX);
	n->refs++; /* n and parent stay whatever is dropped here */
	parent->refs++;
	if (name) {
		note_left_locked(name->node, parent);
		reap_locked(t, drop_name_locked(t, name), d);
	}
	if (S_ISDIR(n->type)) {
		while (n->names)
			reap_locked(t, drop_name_locked(t, n->names), d);
		cut_circle_locked(t, n, parent, d);
	}
	name = xcalloc(1, sizeof(*name) + len + 1);
	name->node = n;
	name->parent = parent;
	memcpy(name->store_name, store_name, len);
	name->next = n->names;
	n->names = name;
	parent->children++;
	hashtab_add(&t->by_name, &name->by_name, name_hash(parent, store_name));
	n->refs--;
	parent->refs--;
}

void node_add_name(struct tree *t, struct node *n, struct node *parent,
                   const char *store_name)
{
	struct dead dead = {0};

	rmlock_wr(&t->lock);
	add_name_locked(t, n, parent, store_name, &dead);
	rmlock_drop(&t->lock);
	bury(t, &dead);
}

void node_remove_name(struct tree *t, struct node *n, struct node *parent,
                      const char *store_name)
{
	struct dead dead = {0};
	struct node_name *name;

	rmlock_wr(&t->lock);
	name = by_name_locked(t, parent, store_name);
	if (name && name->node == n) {
		note_left_locked(n, parent);
		reap_locked(t, drop_name_locked(t, name), &dead);
	}
	rmlock_drop(&t->lock);
	bury(t, &dead);
}

struct node *node_left(struct tree *t, struct node *n, bool *ret_more, uint32_t *ret_gen)
{
	struct node *left;

	rmlock_rd(&t->lock);
	left = n->left;
	if (left)
		left->refs++;
	*ret_more = n->left_more;
	*ret_gen = n->left_gen;
	rmlock_drop(&t->lock);
	return left;
}

void node_left_done(struct tree *t, struct node *n, uint32_t gen)
{
	struct dead dead = {0};
	struct node *left = NULL;

	rmlock_wr(&t->lock);
	if (n->left_gen == gen) {
		left = steal_pointer(&n->left);
		n->left_more = false;
	}
	if (left) {
		left->refs--;
		reap_locked(t, left, &dead);
	}
	rmlock_drop(&t->lock);
	bury(t, &dead);
}

bool node_left_others(struct tree *t, struct node *n, const struct node *dir)
{
	bool others;

	rmlock_rd(&t->lock);
	others = n->left_more || (n->left && n->left != dir);
	rmlock_drop(&t->lock);
	return others;
}

void node_set_gone(struct tree *t, struct node *n)
{
	rmlock_wr(&t->lock);
	n->gone = true;
	rmlock_drop(&t->lock);
}

bool node_has_names(struct tree *t, struct node *n)
{
	bool has;

	rmlock_rd(&t->lock);
	has = n->names != NULL;
	rmlock_drop(&t->lock);
	return has;
}

bool node_is_below(struct tree *t, struct node *n, struct node *dir)
{
	bool found = n == dir;

	rmlock_rd(&t->lock);
	for (const struct node_name *name = n->names; name && !found; name = name->next) {
		const struct node *p = name->parent;

		while (p != dir && p->names)
			p = p->names->parent;
		found = p == dir;
	}
	rmlock_drop(&t->lock);
	return found;
}

/* ---- adopting ---- */

struct node *tree_adopt_entry(struct tree *t, struct node *parent, const char *store_name,
                              const struct catalog_file *info, bool info_valid, bool plain)
{
	struct dead dead = {0};
	struct node *n;

	rmlock_wr(&t->lock);
	n = by_ident_locked(t, &info->ident);
	if (n && n->type != info->type) {
		unlist_ident_locked(t, n);
		n = NULL;
	}
	if (n) {
		add_name_locked(t, n, parent, store_name, &dead);
	} else {
		n = by_ino_locked(t, info->ino);
		if (!n) {
			n = node_new(info->ino, info->type);
			n->info = *info;
			n->info_valid = info_valid;
			n->plain = n->raw = plain;
			hashtab_add(&t->by_ino, &n->by_ino, n->ino);
			list_ident_locked(t, n, &info->ident);
			add_name_locked(t, n, parent, store_name, &dead);
		}
	}
	n->refs++;
	rmlock_drop(&t->lock);
	bury(t, &dead);
	return n;
}

struct node *tree_adopt(struct tree *t, struct node *parent, const char *store_name,
                        const struct ident *ident, uint64_t ino, uint32_t type)
{
	/* Of the contents nothing is known: no st_mtim equals this one. */
	struct catalog_file row, info = {
	                             .ident = *ident,
	                             .ino = ino,
	                             .type = type & S_IFMT,
	                             .kind = OBJECT_FOREIGN,
	                             .logical_size = OBJECT_SIZE_UNKNOWN,
	                             .stored_mtime = {.tv_nsec = -1},
	                         };
	struct node *n = tree_adopt_entry(t, parent, store_name, &info, false, false);

	/* The number is for good from here on. */
	if (node_is(t, n, ident) &&
	    (!catalog_file_get(t->catalog, ident, &row) || row.ino != n->ino)) {
		info.ino = n->ino;
		catalog_file_put(t->catalog, &info);
	}
	return n;
}

void node_forget_seen(struct node *n)
{
	lock_assert_held(&n->lock);
	free(n->seen_st);
	n->seen_st = NULL;
}

void node_set_ident(struct tree *t, struct node *n, const struct ident *ident)
{
	struct node *other;

	node_forget_seen(n);
	n->bare = false; /* who knows what the other one has */
	rmlock_wr(&t->lock);
	other = by_ident_locked(t, ident);
	if (other && other != n)
		unlist_ident_locked(t, other); /* a dead inode's number was used again */
	unlist_ident_locked(t, n);
	list_ident_locked(t, n, ident);
	n->raw = false;
	rmlock_drop(&t->lock);
}

/* ---- opening and closing ---- */

static errint_t make_root(struct tree *t)
{
	struct ident ident;
	struct catalog_file row;
	struct stat st;
	struct node *n;
	errint_t err = sys_fstat(t->store->root_fd, &st);

	if (!err)
		err = ident_get(t->store->root_fd, "", &ident);
	if (err)
		return err;
	t->dev = st.st_dev;
	n = node_new(TREE_ROOT_INO, S_IFDIR);
	if (!catalog_file_get(t->catalog, &ident, &row) || row.ino != TREE_ROOT_INO) {
		row = (struct catalog_file){
		    .ident = ident,
		    .ino = TREE_ROOT_INO,
		    .type = S_IFDIR,
		    .ctime = st.st_ctim,
		    .seen_ctime = st.st_ctim,
		    .mtime = st.st_mtim,
		};
		catalog_file_put(t->catalog, &row);
	}
	n->info = row;
	n->info_valid = true;
	t->root = n;
	hashtab_add(&t->by_ino, &n->by_ino, n->ino);
	list_ident_locked(t, n, &ident);
	return 0;
}

errint_t tree_open(struct store *store, struct catalog *catalog, const struct uuid *pool,
                   bool keep_foreign, uint64_t max_object, struct tree **ret, char **cause)
{
	struct tree *t = xcalloc(1, sizeof(*t));
	errint_t err;

	t->store = store;
	t->catalog = catalog;
	t->pool = *pool;
	t->keep_foreign = keep_foreign;
	t->max_object = max_object;
	rmlock_init(&t->ns, LOCK_NAMESPACE);
	for (size_t i = 0; i < ARRAY_LEN(t->listing); i++)
		rwlock_init(&t->listing[i], LOCK_LISTING);
	lock_init(&t->numbers, LOCK_NUMBERS);
	rmlock_init(&t->lock, LOCK_TABLE);
	dirfd_setup(t);
	err = make_root(t);
	if (err) {
		(void)set_cause_errno(cause, err, "the root of '%s' cannot be looked at",
		                      store->path);
		tree_close(t);
		return err;
	}
	*ret = t;
	return 0;
}

void tree_close(struct tree *t)
{
	struct dead dead = {0};
	struct hash_link *l;
	size_t hint = 0;

	if (!t)
		return;
	/* The kernel does not forget everything when it unmounts. Parents may go before their
	 * children here: all are freed at the end. */
	while ((l = hashtab_any(&t->by_ino, &hint))) {
		struct node *n = container_of(l, struct node, by_ino);

		while (n->names)
			(void)drop_name_locked(t, n->names);
		take_out_locked(t, n, &dead);
		n->next_dead = dead.nodes;
		dead.nodes = n;
	}
	bury(t, &dead);
	hashtab_clear(&t->by_ino);
	hashtab_clear(&t->by_ident);
	hashtab_clear(&t->by_name);
	rmlock_clear(&t->ns);
	for (size_t i = 0; i < ARRAY_LEN(t->listing); i++)
		rwlock_clear(&t->listing[i]);
	lock_clear(&t->numbers);
	rmlock_clear(&t->lock);
	free(t);
}

/* ---- pairs ---- */

static bool locks_first(const struct node *a, const struct node *b)
{
	if (S_ISDIR(a->type) != S_ISDIR(b->type))
		return S_ISDIR(a->type);
	return a->ino < b->ino;
}

void node_lock_pair(struct node *a, struct node *b)
{
	if (!b || a == b) {
		lock_take(&a->lock);
	} else if (locks_first(a, b)) {
		lock_take(&a->lock);
		lock_take(&b->lock);
	} else {
		lock_take(&b->lock);
		lock_take(&a->lock);
	}
}

void node_unlock_pair(struct node *a, struct node *b)
{
	if (b && a != b)
		lock_drop(&b->lock);
	lock_drop(&a->lock);
}

/* ---- paths ---- */

/* Text that grows towards its beginning. */
struct path {
	char *buf;
	size_t size, start; /* buf[start .. size) is the text */
};

static void path_prepend(struct path *p, const char *text)
{
	size_t len = strlen(text);

	if (p->start < len) {
		size_t have = p->size - p->start, size = 2 * (p->size + len);
		char *buf = xmalloc(size);

		if (have)
			memcpy(buf + size - have, p->buf + p->start, have);
		free(p->buf);
		*p = (struct path){buf, size, size - have};
	}
	p->start -= len;
	memcpy(p->buf + p->start, text, len);
}

static void prepend_component_locked(struct path *p, const struct node *n, bool logical)
{
	const char *text = n->names->store_name;
	struct name decoded;

	if (logical && !n->raw) {
		(void)name_decode(text, S_ISREG(n->type), &decoded);
		text = decoded.s;
	}
	if (p->start < p->size)
		path_prepend(p, "/");
	path_prepend(p, text);
}

static char *make_path(struct tree *t, const struct node *n, bool logical)
{
	struct path p = {0};
	char number[32];
	char *text;

	rmlock_rd(&t->lock);
	while (n->names) {
		prepend_component_locked(&p, n, logical);
		n = n->names->parent;
	}
	if (n != t->root) {
		(void)snprintf(number, sizeof(number), "?%" PRIu64, n->ino);
		if (p.start < p.size)
			path_prepend(&p, "/");
		path_prepend(&p, number);
	}
	rmlock_drop(&t->lock);
	text = xmalloc(p.size - p.start + 1);
	if (p.size > p.start)
		memcpy(text, p.buf + p.start, p.size - p.start);
	text[p.size - p.start] = '\0';
	free(p.buf);
	return text;
}

char *node_path(struct tree *t, struct node *n)
{
	return make_path(t, n, true);
}

char *node_store_path(struct tree *t, struct node *n)
{
	return make_path(t, n, false);
}
