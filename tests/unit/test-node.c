/* tree/node, tree/dirfd: who lives, who is called what, and where that leads. */
#include "tree.h"

/* ---- helpers ---- */

static struct ident id(uint64_t n)
{
	return (struct ident){{n, ~n}};
}

/* A node that exists in memory only; referenced. */
static struct node *make(struct bed *b, struct node *parent, const char *store_name,
                         uint64_t ino, uint32_t type)
{
	struct ident i = id(ino);
	struct node *n = tree_adopt(b->tree, parent, store_name, &i, ino, type);

	assert_int_equal(n->ino, ino);
	assert_int_equal(n->type, type);
	return n;
}

static void assert_path(struct bed *b, struct node *n, const char *logical,
                        const char *stored)
{
	harness_assert_text(node_path(b->tree, n), logical);
	harness_assert_text(node_store_path(b->tree, n), stored);
}

/* The node of what lies in the store at path, a name in the directory `parent`. */
static struct node *make_real(struct bed *b, struct node *parent, const char *path,
                              const char *store_name, uint64_t ino)
{
	struct ident i = bed_ident(b, path);
	struct stat st;

	assert_int_equal(fstatat(bed_root(b), path, &st, AT_SYMLINK_NOFOLLOW), 0);
	return tree_adopt(b->tree, parent, store_name, &i, ino, st.st_mode & S_IFMT);
}

/* With n->lock held by the caller or not. */
static errint_t place(struct bed *b, struct node *n, struct place *ret)
{
	bool held = lock_is_mine(&n->lock);
	errint_t err;

	if (held) /* the caller took no part in this: nothing else runs */
		lock_drop(&n->lock);
	rmlock_rd(&b->tree->ns);
	if (held)
		lock_take(&n->lock);
	err = node_place(b->tree, n, ret);
	rmlock_drop(&b->tree->ns);
	return err;
}

static errint_t place_name(struct bed *b, struct node *n, char name[NAME_MAX + 1])
{
	struct place p;
	errint_t err = place(b, n, &p);

	if (!err) {
		memcpy(name, p.store_name.s, NAME_MAX + 1);
		place_release(b->tree, &p);
	}
	return err;
}

static void assert_placed(struct bed *b, struct node *n, const char *want)
{
	char name[NAME_MAX + 1];

	assert_int_equal(place_name(b, n, name), 0);
	assert_string_equal(name, want);
}

static void assert_lost(struct bed *b, struct node *n)
{
	char name[NAME_MAX + 1];

	assert_int_equal(place_name(b, n, name), -ENOENT);
	assert_false(node_has_names(b->tree, n));
}

/* ---- counts ---- */

static void test_root(void **state)
{
	struct bed *b = *state;
	struct node *n = tree_get(b->tree, TREE_ROOT_INO);

	assert_ptr_equal(n, b->tree->root);
	node_forget(b->tree, TREE_ROOT_INO, 5);
	bed_put(b, n);
	n = tree_get(b->tree, TREE_ROOT_INO);
	assert_ptr_equal(n, b->tree->root);
	assert_int_equal(tree_count(b->tree), 1);
	assert_path(b, n, "", "");
	assert_false(node_has_names(b->tree, n));
	bed_put(b, n);
	assert_null(tree_get(b->tree, 2));
	node_forget(b->tree, 2, 1); /* of an earlier daemon: nothing */
	bed_put(b, NULL);
}

static void test_life(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *d = make(b, t->root, "d", 10, S_IFDIR);
	struct node *e = make(b, d, "e", 11, S_IFDIR);
	struct node *f = make(b, e, "f.zst", 12, S_IFREG);
	struct ident i = id(12);

	node_add_lookup(t, f);
	node_add_lookup(t, f);
	bed_put(b, d);
	bed_put(b, e);
	bed_put(b, f);
	assert_int_equal(tree_count(t), 4); /* f is looked up, and keeps the others */
	node_ref(t, f);
	node_forget(t, 12, 1);
	node_forget(t, 12, 1);
	assert_int_equal(tree_count(t), 4);
	f = tree_get(t, 12);
	assert_ptr_equal(tree_find_ident(t, &i), f);
	bed_put(b, f);
	bed_put(b, f);
	node_add_lookup(t, d);
	bed_put(b, f); /* the last: f and e go, d is looked up */
	assert_int_equal(tree_count(t), 2);
	assert_null(tree_get(t, 12));
	assert_null(tree_get(t, 11));
	assert_null(tree_find_ident(t, &i));
	node_forget(t, 10, 1);
	assert_int_equal(tree_count(t), 1);
}

/* In a child: it has none of the threads, so it must not want a lock that one may have held. */
static void forget_too_much(void *arg)
{
	struct bed *b = arg;
	struct node *n = tree_get(b->tree, 12);

	node_add_lookup(b->tree, n);
	node_forget(b->tree, 12, 2);
}

static void test_forget_too_much(void **state)
{
	static const char *const words[] = {"nlookup", NULL};
	struct bed *b = *state;
	struct node *n = make(b, b->tree->root, "f.zst", 12, S_IFREG);

	harness_expect_abort(forget_too_much, b, words);
	bed_put(b, n);
}

#ifdef __SANITIZE_THREAD__
#define DEPTH 5000
#else
#define DEPTH 20000
#endif

static void test_deep(void **state)
{
	struct bed *b = *state;
	struct node *n = b->tree->root, *child, *middle = NULL;
	char *path;

	node_ref(b->tree, n);
	for (unsigned i = 0; i < DEPTH; i++) {
		child = make(b, n, "dir", 100 + i, S_IFDIR);
		bed_put(b, n);
		n = child;
		if (i == DEPTH / 2)
			middle = n;
	}
	assert_int_equal(tree_count(b->tree), DEPTH + 1);
	assert_true(node_is_below(b->tree, n, middle));
	assert_false(node_is_below(b->tree, middle, n));
	path = node_path(b->tree, n);
	assert_int_equal(strlen(path), 4 * DEPTH - 1);
	assert_memory_equal(path, "dir/dir/", 8);
	assert_string_equal(path + 4 * DEPTH - 9, "/dir/dir");
	free(path);
	bed_put(b, n);
	assert_int_equal(tree_count(b->tree), 1);
}

/* ---- adopting ---- */

static void test_adopt(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct ident one = id(1), two = id(2);
	struct node *n = tree_adopt(t, t->root, "a.zst", &one, 20, S_IFREG);
	struct node *m;
	struct catalog_file row;

	assert_int_equal(n->ino, 20);
	assert_true(node_is(t, n, &one));
	/* The identity wins over the number; the name is one more. */
	m = tree_adopt(t, t->root, "b.zst", &one, 21, S_IFREG);
	assert_ptr_equal(m, n);
	assert_null(tree_get(t, 21));
	bed_put(b, m);
	/* The number of somebody else: no name, no new identity. */
	m = tree_adopt(t, t->root, "c.zst", &two, 20, S_IFREG);
	assert_ptr_equal(m, n);
	assert_false(node_is(t, m, &two));
	assert_null(tree_find_name(t, t->root, "c.zst"));
	bed_put(b, m);
	m = tree_find_name(t, t->root, "b.zst");
	assert_ptr_equal(m, n);
	bed_put(b, m);
	/* The number is remembered, and nothing is said of the contents. */
	assert_true(catalog_file_get(b->catalog, &one, &row));
	assert_int_equal(row.ino, 20);
	assert_int_equal(row.type, S_IFREG);
	assert_false(n->info_valid);
	bed_put(b, n);
	assert_int_equal(tree_count(t), 1);
	/* An inode of another type with this identity: a number that was used again. */
	n = tree_adopt(t, t->root, "x", &one, 30, S_IFDIR);
	m = tree_adopt(t, t->root, "y.zst", &one, 31, S_IFREG);
	assert_ptr_not_equal(m, n);
	assert_ptr_equal(tree_find_ident(t, &one), m);
	bed_put(b, m);
	bed_put(b, m);
	bed_put(b, n);
	assert_int_equal(tree_count(t), 1);
}

static void test_set_ident(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *n = make(b, t->root, "a.zst", 20, S_IFREG);
	struct node *m = make(b, t->root, "b.zst", 21, S_IFREG);
	struct ident old = id(20), other = id(21), new = id(22);

	lock_take(&n->lock);
	node_set_ident(t, n, &new);
	node_set_ident(t, n, &new);
	assert_null(tree_find_ident(t, &old));
	assert_ptr_equal(tree_find_ident(t, &new), n);
	bed_put(b, n);
	node_set_ident(t, n, &other); /* m must have been a dead inode */
	lock_drop(&n->lock);
	assert_ptr_equal(tree_find_ident(t, &other), n);
	bed_put(b, n);
	bed_put(b, m);
	bed_put(b, n);
	assert_int_equal(tree_count(t), 1);
}

/* ---- names ---- */

static void test_hard_links(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *d = make(b, t->root, "d", 10, S_IFDIR);
	struct node *n = make(b, t->root, "a.zst", 20, S_IFREG);
	struct node *m = make(b, t->root, "other.zst", 21, S_IFREG);

	node_add_name(t, n, d, "b.zst");
	node_add_name(t, n, d, "b.zst");
	assert_true(node_is_below(t, n, d));
	assert_true(node_is_below(t, n, t->root));
	assert_true(node_is_below(t, n, n));
	assert_false(node_is_below(t, d, n));
	bed_put(b, d);
	assert_int_equal(tree_count(t), 4);       /* d lives by its child */
	node_remove_name(t, m, t->root, "a.zst"); /* not its name */
	node_remove_name(t, n, t->root, "a.zst");
	node_remove_name(t, n, t->root, "a.zst");
	assert_true(node_has_names(t, n));
	assert_path(b, n, "d/b", "d/b.zst");
	node_remove_name(t, n, d, "b.zst"); /* d goes with it */
	assert_false(node_has_names(t, n));
	assert_int_equal(tree_count(t), 3);
	assert_path(b, n, "?20", "?20");
	/* A name leads to one node: m takes it over. */
	node_add_name(t, n, t->root, "x.zst");
	node_add_name(t, m, t->root, "x.zst");
	assert_false(node_has_names(t, n));
	node_remove_name(t, m, t->root, "other.zst");
	assert_path(b, m, "x", "x.zst");
	bed_put(b, n);
	bed_put(b, m);
	assert_int_equal(tree_count(t), 1);
}

static void test_directory_has_one_name(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *d = make(b, t->root, "d", 10, S_IFDIR);
	struct node *e = make(b, d, "e", 11, S_IFDIR);
	struct node *f = make(b, e, "f", 12, S_IFDIR);

	node_add_name(t, e, t->root, "E");
	assert_path(b, f, "E/f", "E/f");
	assert_null(tree_find_name(t, d, "e"));
	/* Rearranged behind us: d was moved below f, which was below d before. */
	node_add_name(t, e, d, "e");
	assert_path(b, f, "d/e/f", "d/e/f");
	node_add_name(t, d, f, "d");
	assert_path(b, d, "?11/f/d", "?11/f/d");
	assert_true(node_is_below(t, d, e));
	assert_false(node_is_below(t, e, d));
	node_add_name(t, d, d, "self");
	assert_path(b, d, "?11/f/d", "?11/f/d");
	node_add_name(t, e, t->root, "e");
	assert_path(b, d, "e/f/d", "e/f/d");
	node_add_name(t, t->root, d, "root");
	assert_path(b, t->root, "", "");
	bed_put(b, d);
	bed_put(b, e);
	bed_put(b, f);
	assert_int_equal(tree_count(t), 1);
}

static void test_paths(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *d = make(b, t->root, "x.zst~", 10, S_IFDIR);
	struct node *e = make(b, d, "y.zst", 11, S_IFDIR); /* was there before */
	struct node *f = make(b, e, "f.zst.zst", 12, S_IFREG);
	struct node *p = make(b, e, "plain", 13, S_IFREG);
	struct node *l = make(b, e, "l.zst~~", 14, S_IFLNK);
	struct catalog_file info = {.ident = id(15), .ino = 15, .type = S_IFREG};
	struct node *r = tree_adopt_entry(t, e, "raw.zst", &info, true, true);
	struct node *all[] = {d, e, f, p, l, r};

	assert_path(b, d, "x.zst", "x.zst~");
	assert_path(b, f, "x.zst/y.zst/f.zst", "x.zst~/y.zst/f.zst.zst");
	assert_path(b, p, "x.zst/y.zst/plain", "x.zst~/y.zst/plain");
	assert_path(b, l, "x.zst/y.zst/l.zst~", "x.zst~/y.zst/l.zst~~");
	assert_path(b, r, "x.zst/y.zst/raw.zst", "x.zst~/y.zst/raw.zst");
	assert_true(r->plain);
	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		bed_put(b, all[i]);
}

static void test_lock_pair(void **state)
{
	struct bed *b = *state;
	struct node *d = make(b, b->tree->root, "d", 50, S_IFDIR);
	struct node *e = make(b, b->tree->root, "e", 40, S_IFDIR);
	struct node *f = make(b, b->tree->root, "f.zst", 30, S_IFREG);
	struct node *const pairs[][2] = {{d, e}, {e, d}, {d, f}, {f, d}, {d, NULL}, {f, f}};

	for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
		node_lock_pair(pairs[i][0], pairs[i][1]);
		assert_true(lock_is_mine(&pairs[i][0]->lock));
		if (pairs[i][1])
			assert_true(lock_is_mine(&pairs[i][1]->lock));
		node_unlock_pair(pairs[i][0], pairs[i][1]);
		assert_false(lock_is_mine(&pairs[i][0]->lock));
		if (pairs[i][1])
			assert_false(lock_is_mine(&pairs[i][1]->lock));
	}
	bed_put(b, d);
	bed_put(b, e);
	bed_put(b, f);
}

/* ---- places ---- */

static void test_place(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *d, *f;
	struct place p;
	struct stat st, want;

	bed_mkdir(b, "d");
	harness_write(bed_root(b), "d/f.zst", "1", 1);
	harness_write(bed_root(b), "g.zst", "2", 1);
	d = make_real(b, t->root, "d", "d", 10);
	f = make_real(b, d, "d/f.zst", "f.zst", 11);

	assert_int_equal(place(b, t->root, &p), 0);
	assert_ptr_equal(p.parent, t->root);
	assert_string_equal(p.store_name.s, "");
	assert_int_equal(p.dirfd, bed_root(b));
	place_release(t, &p);

	assert_int_equal(place(b, f, &p), 0);
	assert_ptr_equal(p.parent, d);
	assert_string_equal(p.store_name.s, "f.zst");
	assert_int_equal(fstat(p.dirfd, &st), 0);
	assert_int_equal(fstatat(bed_root(b), "d", &want, 0), 0);
	assert_int_equal(st.st_ino, want.st_ino);
	place_release(t, &p);
	assert_placed(b, d, "d");

	/* Under the node's own lock too. */
	lock_take(&f->lock);
	assert_placed(b, f, "f.zst");
	assert_true(lock_is_mine(&f->lock));
	lock_drop(&f->lock);

	/* A second link, made and known, then the first one removed behind us. */
	assert_int_equal(linkat(bed_root(b), "d/f.zst", bed_root(b), "h.zst", 0), 0);
	node_add_name(t, f, t->root, "h.zst");
	node_add_name(t, f, t->root, "g.zst"); /* not true: another inode */
	node_add_name(t, f, d, "missing.zst");
	assert_int_equal(unlinkat(bed_root(b), "d/f.zst", 0), 0);
	assert_placed(b, f, "h.zst");
	assert_null(tree_find_name(t, d, "missing.zst"));
	assert_null(tree_find_name(t, t->root, "g.zst"));
	/* Replaced behind us: it is lost. */
	assert_int_equal(renameat(bed_root(b), "g.zst", bed_root(b), "h.zst"), 0);
	lock_take(&f->lock);
	assert_lost(b, f);
	lock_drop(&f->lock);
	assert_lost(b, f);
	assert_false(lock_is_mine(&f->lock));

	/* Its directory removed, and another one there. */
	node_add_name(t, f, d, "f.zst");
	assert_int_equal(unlinkat(bed_root(b), "d", AT_REMOVEDIR), 0);
	bed_mkdir(b, "d");
	harness_write(bed_root(b), "d/f.zst", "1", 1);
	assert_lost(b, f);
	assert_lost(b, d);
	/* The name is a file in the way of a directory. */
	node_add_name(t, d, t->root, "h.zst");
	node_add_name(t, f, d, "f.zst");
	assert_lost(b, f);
	bed_put(b, d);
	bed_put(b, f);
	assert_int_equal(tree_count(t), 1);
}

struct placer {
	struct bed *b;
	struct node *n;
	errint_t err;
	char name[NAME_MAX + 1];
	_Atomic int tid;
	pthread_t thread;
};

static void *run_place(void *arg)
{
	struct placer *p = arg;

	atomic_store(&p->tid, (int)gettid());
	p->err = place_name(p->b, p->n, p->name);
	return NULL;
}

/* A flush has renamed its object into place and not yet told the node. */
static void test_place_during_a_flush(void **state)
{
	struct bed *b = *state;
	struct placer p = {.b = b};
	struct ident new;

	harness_write(bed_root(b), "f.zst", "1", 1);
	harness_write(bed_root(b), "new", "22", 2);
	p.n = make_real(b, b->tree->root, "f.zst", "f.zst", 11);
	new = bed_ident(b, "new");
	node_lock_pair(b->tree->root, p.n);
	assert_int_equal(renameat(bed_root(b), "new", bed_root(b), "f.zst"), 0);
	assert_int_equal(pthread_create(&p.thread, NULL, run_place, &p), 0);
	bed_wait_asleep(&p.tid);
	node_set_ident(b->tree, p.n, &new);
	node_unlock_pair(b->tree->root, p.n);
	assert_int_equal(pthread_join(p.thread, NULL), 0);
	assert_int_equal(p.err, 0);
	assert_string_equal(p.name, "f.zst");
	bed_put(b, p.n);
}

/* The same with a rename of ours. */
static void test_place_during_a_rename(void **state)
{
	struct bed *b = *state;
	struct placer p = {.b = b};

	harness_write(bed_root(b), "f.zst", "1", 1);
	p.n = make_real(b, b->tree->root, "f.zst", "f.zst", 11);
	node_lock_pair(b->tree->root, p.n);
	assert_int_equal(renameat(bed_root(b), "f.zst", bed_root(b), "g.zst"), 0);
	assert_int_equal(pthread_create(&p.thread, NULL, run_place, &p), 0);
	bed_wait_asleep(&p.tid);
	node_remove_name(b->tree, p.n, b->tree->root, "f.zst");
	node_add_name(b->tree, p.n, b->tree->root, "g.zst");
	node_unlock_pair(b->tree->root, p.n);
	assert_int_equal(pthread_join(p.thread, NULL), 0);
	assert_int_equal(p.err, 0);
	assert_string_equal(p.name, "g.zst");
	bed_put(b, p.n);
}

/* ---- open directories ---- */

static errint_t open_dir(struct bed *b, struct node *n, int *fd, struct dirfd **pin)
{
	errint_t err;

	rmlock_rd(&b->tree->ns);
	err = node_open_dir(b->tree, n, fd, pin);
	rmlock_drop(&b->tree->ns);
	return err;
}

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

#define LEVELS 100

/* A chain of real directories below the root: nodes referenced, inode numbers noted. */
static void make_chain(struct bed *b, struct node **nodes, ino_t *inos)
{
	int fd = dup(bed_root(b));
	struct node *parent = b->tree->root;
	struct ident i;
	struct stat st;

	for (unsigned k = 0; k < LEVELS; k++) {
		int next;

		assert_int_equal(mkdirat(fd, "sub", 0755), 0);
		next = openat(fd, "sub", O_RDONLY | O_DIRECTORY);
		assert_true(next >= 0);
		close(fd);
		fd = next;
		assert_int_equal(ident_get(fd, "", &i), 0);
		assert_int_equal(fstat(fd, &st), 0);
		inos[k] = st.st_ino;
		nodes[k] = tree_adopt(b->tree, parent, "sub", &i, 100 + k, S_IFDIR);
		parent = nodes[k];
	}
	close(fd);
}

static void test_dirfd_cache(void **state)
{
	struct bed *b = *state;
	struct node *nodes[LEVELS];
	struct dirfd *pins[LEVELS], *pin;
	ino_t inos[LEVELS];
	int fds[LEVELS], fd;
	struct stat st;
	unsigned before = open_fds();

	make_chain(b, nodes, inos);
	b->tree->dirfd_max = 10;
	assert_int_equal(open_dir(b, b->tree->root, &fd, &pin), 0);
	assert_int_equal(fd, bed_root(b));
	assert_null(pin);
	dirfd_release(b->tree, pin);
	assert_int_equal(open_dir(b, nodes[LEVELS - 1], &fd, &pin), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_ino, inos[LEVELS - 1]);
	assert_true(open_fds() <= before + 10);
	dirfd_release(b->tree, pin);
	/* Pinned ones stay open and right, however many. */
	for (unsigned k = 0; k < LEVELS; k++)
		assert_int_equal(open_dir(b, nodes[k], &fds[k], &pins[k]), 0);
	for (unsigned k = 0; k < LEVELS; k++) {
		assert_int_equal(fstat(fds[k], &st), 0);
		assert_int_equal(st.st_ino, inos[k]);
	}
	/* Again, in use: the same descriptor. */
	assert_int_equal(open_dir(b, nodes[50], &fd, &pin), 0);
	assert_int_equal(fd, fds[50]);
	dirfd_release(b->tree, pin);
	for (unsigned k = 0; k < LEVELS; k++)
		dirfd_release(b->tree, pins[k]);
	assert_true(open_fds() <= before + 10);
	assert_int_equal(b->tree->dirfd_count, 10);
	/* A dead node's descriptor is closed at once, or by its last user. */
	assert_int_equal(open_dir(b, nodes[LEVELS - 1], &fd, &pin), 0);
	for (unsigned k = 0; k < LEVELS; k++)
		bed_put(b, nodes[k]);
	assert_int_equal(tree_count(b->tree), 1);
	assert_int_equal(b->tree->dirfd_count, 0);
	assert_int_equal(open_fds(), before + 1);
	assert_int_equal(fstat(fd, &st), 0);
	dirfd_release(b->tree, pin);
	assert_int_equal(open_fds(), before);
}

static void test_dirfd_least_recent_goes(void **state)
{
	struct bed *b = *state;
	struct node *n[3];
	struct dirfd *pin;
	int fd, first;

	b->tree->dirfd_max = 2;
	for (unsigned i = 0; i < 3; i++) {
		char name[2] = {(char)('a' + i), 0};

		bed_mkdir(b, name);
		n[i] = make_real(b, b->tree->root, name, name, 10 + i);
	}
	assert_int_equal(open_dir(b, n[0], &first, &pin), 0);
	dirfd_release(b->tree, pin);
	assert_int_equal(open_dir(b, n[1], &fd, &pin), 0);
	dirfd_release(b->tree, pin);
	assert_int_equal(open_dir(b, n[0], &fd, &pin), 0); /* used again */
	assert_int_equal(fd, first);
	dirfd_release(b->tree, pin);
	assert_int_equal(open_dir(b, n[2], &fd, &pin), 0);
	dirfd_release(b->tree, pin);
	assert_non_null(n[0]->dirfd);
	assert_null(n[1]->dirfd);
	assert_non_null(n[2]->dirfd);
	for (unsigned i = 0; i < 3; i++)
		bed_put(b, n[i]);
}

static void test_dirfd_and_changes(void **state)
{
	struct bed *b = *state;
	struct node *d, *e, *f;
	struct dirfd *pin;
	struct stat st, want;
	int fd;

	bed_mkdir(b, "d");
	bed_mkdir(b, "d/e");
	harness_write(bed_root(b), "f.zst", "1", 1);
	assert_int_equal(fstatat(bed_root(b), "d/e", &want, 0), 0);
	d = make_real(b, b->tree->root, "d", "d", 10);
	e = make_real(b, d, "d/e", "e", 11);
	f = make_real(b, b->tree->root, "f.zst", "f.zst", 12);
	assert_int_equal(open_dir(b, f, &fd, &pin), -ENOTDIR);
	assert_int_equal(open_dir(b, e, &fd, &pin), 0);
	dirfd_release(b->tree, pin);
	/* A rename of the parent: what is cached stays right. */
	assert_int_equal(renameat(bed_root(b), "d", bed_root(b), "D"), 0);
	node_add_name(b->tree, d, b->tree->root, "D");
	assert_int_equal(open_dir(b, e, &fd, &pin), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_ino, want.st_ino);
	dirfd_release(b->tree, pin);
	/* Another directory, or no directory, in its place. */
	b->tree->dirfd_max = 0;
	assert_int_equal(open_dir(b, d, &fd, &pin), 0);
	dirfd_release(b->tree, pin);
	assert_null(e->dirfd);
	assert_int_equal(renameat(bed_root(b), "D/e", bed_root(b), "kept"), 0);
	bed_mkdir(b, "D/e");
	assert_int_equal(open_dir(b, e, &fd, &pin), -ENOENT);
	assert_int_equal(unlinkat(bed_root(b), "D/e", AT_REMOVEDIR), 0);
	assert_int_equal(open_dir(b, e, &fd, &pin), -ENOENT);
	harness_write(bed_root(b), "D/e", "", 0);
	assert_int_equal(open_dir(b, e, &fd, &pin), -ENOENT);
	assert_int_equal(unlinkat(bed_root(b), "D/e", 0), 0);
	assert_int_equal(symlinkat("../kept", bed_root(b), "D/e"), 0);
	assert_int_equal(open_dir(b, e, &fd, &pin), -ENOENT); /* never followed */
	node_remove_name(b->tree, e, d, "e");
	assert_int_equal(open_dir(b, e, &fd, &pin), -ENOENT);
	bed_put(b, d);
	bed_put(b, e);
	bed_put(b, f);
}

static void test_unreadable_directory(void **state)
{
	struct bed *b = *state;
	struct node *d, *f;

	if (geteuid() == 0) {
		if (seteuid(65534)) /* the store is root's: search only */
			skip();
		assert_int_equal(seteuid(0), 0);
	}
	bed_mkdir(b, "d");
	harness_write(bed_root(b), "d/f.zst", "1", 1);
	d = make_real(b, b->tree->root, "d", "d", 10);
	f = make_real(b, d, "d/f.zst", "f.zst", 11);
	assert_int_equal(fchmodat(bed_root(b), "d", 0311, 0), 0);
	if (geteuid() == 0) {
		assert_int_equal(fchmodat(b->h->dirfd, ".", 0755, 0), 0);
		assert_int_equal(seteuid(65534), 0);
	}
	assert_int_equal(openat(bed_root(b), "d", O_RDONLY | O_DIRECTORY), -1);
	assert_placed(b, f, "f.zst");
	if (getuid() == 0)
		assert_int_equal(seteuid(0), 0);
	bed_put(b, d);
	bed_put(b, f);
}

/* ---- threads ---- */

#define THREADS 4
#define ROUNDS  3000

struct adopter {
	struct bed *b;
	uint64_t seed;
	pthread_t thread;
};

static void *run_adopts(void *arg)
{
	struct adopter *a = arg;
	struct tree *t = a->b->tree;

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t k = harness_next(&a->seed) % 8, ino;
		struct ident di = id(1000 + k), fi = id(2000 + k);
		struct node *d, *f, *again;
		char name[32];

		(void)snprintf(name, sizeof(name), "f%u.zst", (unsigned)k);
		d = tree_adopt(t, t->root, name + 1, &di, 1000 + k, S_IFDIR);
		f = tree_adopt(t, d, name, &fi, 2000 + k, S_IFREG);
		INVARIANT(d->ino == 1000 + k && f->ino == 2000 + k);
		node_add_lookup(t, f);
		ino = f->ino;
		node_unref(t, d);
		again = tree_get(t, ino);
		INVARIANT(again == f);
		node_unref(t, again);
		if (k % 2)
			node_add_name(t, f, t->root, name);
		node_unref(t, f);
		free(node_path(t, f)); /* looked up: alive */
		if (k % 2 && i % 3 == 0)
			node_remove_name(t, f, t->root, name);
		node_forget(t, ino, 1);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct bed *b = *state;
	struct adopter a[THREADS];

	for (unsigned i = 0; i < THREADS; i++) {
		a[i] = (struct adopter){.b = b, .seed = i};
		assert_int_equal(pthread_create(&a[i].thread, NULL, run_adopts, &a[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(a[i].thread, NULL), 0);
	assert_int_equal(tree_count(b->tree), 1);
	assert_int_equal(b->tree->root->children, 0);
}

/* What the kernel never forgot goes with the tree (ASan would tell). */
static void test_close_with_nodes(void **state)
{
	struct bed *b = *state;
	struct node *d = make(b, b->tree->root, "d", 10, S_IFDIR);
	struct node *f = make(b, d, "f.zst", 11, S_IFREG);

	node_add_lookup(b->tree, f);
	f->dead_fd = open("/dev/null", O_RDONLY);
	f->dead_st = calloc(1, sizeof(*f->dead_st));
	bed_put(b, d);
	bed_put(b, f);
	bed_restart(b);
	assert_int_equal(tree_count(b->tree), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    BED_TEST(test_root),
	    BED_TEST(test_life),
	    BED_TEST(test_forget_too_much),
	    BED_TEST(test_deep),
	    BED_TEST(test_adopt),
	    BED_TEST(test_set_ident),
	    BED_TEST(test_hard_links),
	    BED_TEST(test_directory_has_one_name),
	    BED_TEST(test_paths),
	    BED_TEST(test_lock_pair),
	    BED_TEST(test_place),
	    BED_TEST(test_place_during_a_flush),
	    BED_TEST(test_place_during_a_rename),
	    BED_TEST(test_dirfd_cache),
	    BED_TEST(test_dirfd_least_recent_goes),
	    BED_TEST(test_dirfd_and_changes),
	    BED_TEST(test_unreadable_directory),
	    BED_TEST(test_threads),
	    BED_TEST(test_close_with_nodes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
