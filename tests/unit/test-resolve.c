/* tree/resolve: which node and number an entry has, whatever happened behind us, and what
 * is said of it. */
#include "tree.h"

#include "tree/listing.h"

/* ---- helpers ---- */

static errint_t look_err(struct bed *b, struct node *dir, const char *logical)
{
	struct node *n;
	struct stat st;
	errint_t err = bed_try(b, dir, logical, &n, &st);

	bed_put(b, n);
	return err;
}

static errint_t path_err(struct bed *b, const char *store_path)
{
	struct node *n = NULL;
	struct stat st;
	errint_t err;

	rmlock_rd(&b->tree->ns);
	err = resolve_store_path(b->tree, store_path, &n, &st);
	rmlock_drop(&b->tree->ns);
	bed_put(b, n);
	return err;
}

static struct node *by_path(struct bed *b, const char *store_path)
{
	struct node *n = NULL;
	struct stat st;
	errint_t err;

	rmlock_rd(&b->tree->ns);
	err = resolve_store_path(b->tree, store_path, &n, &st);
	rmlock_drop(&b->tree->ns);
	if (err)
		fail_msg("%s: %s", store_path, strerror(-err));
	return n;
}

/* What the mount does for GETATTR: stat, info, logical attributes. */
static errint_t attr(struct bed *b, struct node *n, struct stat *ret)
{
	struct tree *t = b->tree;
	struct place p;
	struct stat st;
	errint_t err;

	rmlock_rd(&t->ns);
	lock_take(&n->lock);
	err = resolve_stat(t, n, &st);
	if (!err && S_ISREG(n->type)) {
		err = node_place(t, n, &p);
		if (!err) {
			err = resolve_info(t, n, p.dirfd, p.store_name.s, &st, NULL);
			place_release(t, &p);
		}
	}
	if (!err)
		resolve_attr(n, &st, ret);
	lock_drop(&n->lock);
	rmlock_drop(&t->ns);
	return err;
}

static off_t size_of(struct bed *b, struct node *n)
{
	struct stat st;

	assert_int_equal(attr(b, n, &st), 0);
	assert_int_equal(st.st_ino, n->ino);
	return st.st_size;
}

static void unlink_path(struct bed *b, const char *path)
{
	assert_int_equal(unlinkat(bed_root(b), path, 0), 0);
}

static void rename_path(struct bed *b, const char *from, const char *to)
{
	assert_int_equal(renameat(bed_root(b), from, bed_root(b), to), 0);
}

static void copy_path(struct bed *b, const char *from, const char *to)
{
	size_t len;
	char *data = harness_read(bed_root(b), from, &len);

	harness_write(bed_root(b), to, data, len);
	free(data);
}

static uint64_t new_ino(struct bed *b)
{
	uint64_t ino;

	assert_int_equal(store_new_ino(b->store, &ino), 0);
	return ino;
}

/* A zstd frame of 5 bytes ("hello"), raw block, with or without content size. */
static const uint8_t hello_sized[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x05, 0x29,
                                      0x00, 0x00, 'h',  'e',  'l',  'l',  'o'};
static const uint8_t hello_unsized[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38, 0x29,
                                        0x00, 0x00, 'h',  'e',  'l',  'l',  'o'};

/* ---- names ---- */

static void test_forms(void **state)
{
	struct bed *b = *state;
	struct tree *t = b->tree;
	struct node *n, *again;
	struct stat st;
	char long_name[NAME_MAX + 2];

	bed_object(b, "obj.zst", 70000, 0, 0);
	harness_write(bed_root(b), "plain", "text", 4);
	harness_write(bed_root(b), "raw.zst", "no zstd", 7);
	harness_write(bed_root(b), "empty.zst", "", 0);
	bed_mkdir(b, "dir.zst~");
	assert_int_equal(symlinkat("obj", bed_root(b), "link"), 0);
	assert_int_equal(mkfifoat(bed_root(b), "fifo", 0600), 0);

	n = bed_look(b, t->root, "obj");
	again = bed_look(b, t->root, "obj");
	assert_ptr_equal(n, again);
	assert_false(n->plain);
	assert_int_equal(n->type, S_IFREG);
	assert_int_equal(size_of(b, n), 70000);
	assert_int_equal(n->info.kind, OBJECT_SEEKABLE);
	assert_int_equal(n->info.frames, 2);
	assert_int_equal(n->info.dead_bytes, 0);
	harness_assert_text(node_path(t, n), "obj");
	bed_put(b, again);
	bed_put(b, n);

	n = bed_look(b, t->root, "plain");
	assert_true(n->plain);
	assert_int_equal(size_of(b, n), 4);
	assert_int_equal(n->info.kind, OBJECT_PLAIN);
	bed_put(b, n);

	n = bed_look(b, t->root, "raw.zst");
	assert_true(n->plain);
	assert_int_equal(size_of(b, n), 7);
	harness_assert_text(node_path(t, n), "raw.zst");
	bed_put(b, n);
	assert_int_equal(look_err(b, t->root, "raw"), -ENOENT);

	n = bed_look(b, t->root, "empty");
	assert_false(n->plain);
	assert_int_equal(size_of(b, n), 0);
	assert_int_equal(n->info.kind, OBJECT_EMPTY);
	bed_put(b, n);

	n = bed_look(b, t->root, "dir.zst");
	assert_int_equal(n->type, S_IFDIR);
	harness_assert_text(node_store_path(t, n), "dir.zst~");
	bed_put(b, n);
	n = bed_look(b, t->root, "link");
	assert_int_equal(n->type, S_IFLNK);
	assert_int_equal(size_of(b, n), 3);
	bed_put(b, n);
	n = bed_look(b, t->root, "fifo");
	assert_int_equal(n->type, S_IFIFO);
	bed_put(b, n);

	assert_int_equal(look_err(b, t->root, "nothing"), -ENOENT);
	assert_int_equal(look_err(b, t->root, ".cellar"), -ENOENT);
	assert_int_equal(look_err(b, t->root, "obj.zst"), -ENOENT);
	memset(long_name, 'n', sizeof(long_name));
	long_name[252] = '\0';
	assert_int_equal(look_err(b, t->root, long_name), -ENAMETOOLONG);
	long_name[251] = '\0';
	assert_int_equal(look_err(b, t->root, long_name), -ENOENT);
	n = bed_look(b, t->root, "obj");
	assert_int_equal(look_err(b, n, "x"), -ENOTDIR);
	assert_int_equal(bed_try(b, t->root, "obj", &again, &st), 0);
	assert_int_equal(st.st_mode & S_IFMT, S_IFREG);
	bed_put(b, again);
	bed_put(b, n);
	assert_int_equal(tree_count(t), 1);
}

static void test_hard_links_are_one_node(void **state)
{
	struct bed *b = *state;
	struct node *n, *m;

	bed_object(b, "a.zst", 10, 0, 0);
	bed_mkdir(b, "d");
	assert_int_equal(linkat(bed_root(b), "a.zst", bed_root(b), "d/b.zst", 0), 0);
	n = bed_look(b, b->tree->root, "a");
	m = by_path(b, "d/b.zst");
	assert_ptr_equal(n, m);
	unlink_path(b, "a.zst");
	assert_int_equal(size_of(b, n), 10); /* found under its other name */
	harness_assert_text(node_path(b->tree, n), "d/b");
	bed_put(b, n);
	bed_put(b, m);
	assert_int_equal(tree_count(b->tree), 1);
}

/* A directory that was moved behind us is the same directory, at its new place only. */
static void test_moved_directory(void **state)
{
	struct bed *b = *state;
	struct node *d, *again, *f;

	bed_mkdir(b, "d");
	bed_mkdir(b, "e");
	bed_object(b, "d/f.zst", 10, 0, 0);
	d = bed_look(b, b->tree->root, "d");
	f = bed_look(b, d, "f");
	rename_path(b, "d", "e/D");
	again = by_path(b, "e/D");
	assert_ptr_equal(again, d);
	harness_assert_text(node_path(b->tree, f), "e/D/f");
	assert_int_equal(size_of(b, f), 10);
	assert_int_equal(look_err(b, b->tree->root, "d"), -ENOENT);
	bed_put(b, again);
	bed_put(b, f);
	bed_put(b, d);
	assert_int_equal(tree_count(b->tree), 1);
}

static void test_store_paths(void **state)
{
	struct bed *b = *state;
	struct node *n;

	bed_mkdir(b, "d");
	bed_mkdir(b, "d/x.zst~");
	bed_mkdir(b, "d/old.zst");
	bed_object(b, "d/x.zst~/f.zst", 10, 0, 0);
	bed_object(b, "d/old.zst/f.zst", 20, 0, 0);
	harness_write(bed_root(b), "d/raw.zst", "raw", 3);
	harness_write(bed_root(b), "d/N", "shadowed", 8);
	bed_object(b, "d/N.zst", 30, 0, 0);
	bed_mkdir(b, "d/backup");
	bed_object(b, "d/backup.zst", 40, 0, 0);
	assert_int_equal(symlinkat("d", bed_root(b), "ln"), 0);

	n = by_path(b, "d/x.zst~/f.zst");
	assert_int_equal(size_of(b, n), 10);
	harness_assert_text(node_path(b->tree, n), "d/x.zst/f");
	bed_put(b, n);
	n = by_path(b, "/d//old.zst/f.zst/");
	assert_int_equal(size_of(b, n), 20);
	harness_assert_text(node_path(b->tree, n), "d/old.zst/f");
	bed_put(b, n);
	n = by_path(b, "d/raw.zst");
	assert_true(n->plain);
	bed_put(b, n);
	n = by_path(b, "d/N.zst");
	assert_int_equal(size_of(b, n), 30);
	bed_put(b, n);
	/* Shown raw, beside a directory of its name: as it is, though it is zstd. */
	n = by_path(b, "d/backup.zst");
	assert_true(n->plain);
	assert_true(size_of(b, n) != 40);
	assert_int_equal(n->info.kind, OBJECT_PLAIN);
	harness_assert_text(node_path(b->tree, n), "d/backup.zst");
	bed_put(b, n);
	n = by_path(b, "");
	assert_ptr_equal(n, b->tree->root);
	bed_put(b, n);
	assert_int_equal(path_err(b, "d/N"), -ENOENT);
	assert_int_equal(path_err(b, "d/none.zst"), -ENOENT);
	assert_int_equal(path_err(b, "none/f.zst"), -ENOENT);
	assert_int_equal(path_err(b, "d/N.zst/f.zst"), -ENOTDIR);
	assert_int_equal(path_err(b, "ln/N.zst"), -ENOTDIR);
	assert_int_equal(path_err(b, "d/../d"), -EINVAL);
	assert_int_equal(path_err(b, "./d"), -EINVAL);
	assert_int_equal(path_err(b, ".cellar"), -ENOENT);
	assert_int_equal(path_err(b, ".cellar/store.id"), -ENOENT);
	assert_int_equal(tree_count(b->tree), 1);
}

/* Raw because of a directory of that name; when that is gone it is an object. */
static void test_raw_becomes_decodable(void **state)
{
	struct bed *b = *state;
	struct node *n;

	bed_mkdir(b, "backup");
	bed_object(b, "backup.zst", 40, 0, 0);
	n = bed_look(b, b->tree->root, "backup.zst");
	assert_true(n->plain);
	bed_put(b, n);
	assert_int_equal(unlinkat(bed_root(b), "backup", AT_REMOVEDIR), 0);
	n = bed_look(b, b->tree->root, "backup");
	assert_false(n->plain);
	assert_int_equal(size_of(b, n), 40);
	bed_put(b, n);
	/* And the other way round. */
	bed_mkdir(b, "backup");
	n = bed_look(b, b->tree->root, "backup.zst");
	assert_true(n->plain);
	assert_int_equal(n->info.kind, OBJECT_PLAIN);
	assert_true(size_of(b, n) > 40);
	bed_put(b, n);
}

static void test_keep_foreign(void **state)
{
	struct bed *b = *state;
	struct node *n;

	bed_object(b, "ours.zst", 40, 0, 1);
	harness_write(bed_root(b), "theirs.zst", hello_sized, sizeof(hello_sized));
	n = bed_look(b, b->tree->root, "theirs");
	assert_int_equal(size_of(b, n), 5);
	bed_put(b, n);
	b->keep_foreign = true;
	bed_restart(b);
	for (int i = 0; i < 2; i++) { /* from its bytes, then from the catalog */
		assert_int_equal(look_err(b, b->tree->root, "theirs"), -ENOENT);
		n = bed_look(b, b->tree->root, "theirs.zst");
		assert_true(n->plain);
		assert_int_equal(size_of(b, n), sizeof(hello_sized));
		bed_put(b, n);
		n = bed_look(b, b->tree->root, "ours");
		assert_int_equal(size_of(b, n), 40);
		bed_put(b, n);
		bed_restart(b);
	}
}

static void test_rules(void **state)
{
	struct bed *b = *state;
	struct entry_rules rules = resolve_rules(b->tree);
	struct node *held[2] = {NULL, NULL};
	struct listing l;

	bed_object(b, "a.zst", 10, 0, 0);
	harness_write(bed_root(b), "b.zst", "raw", 3);
	for (int i = 0; i < 3; i++) { /* from the bytes, the catalog, memory */
		bool a = false, raw = false;

		assert_int_equal(entry_list(&rules, bed_root(b), true, &l), 0);
		assert_int_equal(l.count, 2);
		for (size_t k = 0; k < l.count; k++) {
			a |= !strcmp(l.items[k].logical, "a");
			raw |= !strcmp(l.items[k].logical, "b.zst");
		}
		assert_true(a && raw);
		listing_clear(&l);
		assert_int_equal(entry_check_free(&rules, bed_root(b), true, "a"), -EEXIST);
		bed_put(b, held[0]);
		bed_put(b, held[1]);
		held[0] = bed_look(b, b->tree->root, "a");
		held[1] = bed_look(b, b->tree->root, "b.zst");
		if (i == 0) {
			bed_put(b, held[0]);
			bed_put(b, held[1]);
			held[0] = held[1] = NULL;
		}
	}
	bed_put(b, held[0]);
	bed_put(b, held[1]);
	assert_int_equal(tree_count(b->tree), 1);
}

/* ---- numbers ---- */

static void test_numbers_last(void **state)
{
	static const char *const names[] = {"obj", "plain", "dir", "link", "empty"};
	struct bed *b = *state;
	uint64_t inos[ARRAY_LEN(names)];

	bed_object(b, "obj.zst", 10, 0, 0);
	harness_write(bed_root(b), "plain", "text", 4);
	harness_write(bed_root(b), "empty.zst", "", 0);
	bed_mkdir(b, "dir");
	assert_int_equal(symlinkat("obj", bed_root(b), "link"), 0);
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		inos[i] = bed_ino(b, names[i]);
		assert_true(inos[i] > TREE_ROOT_INO);
		for (size_t k = 0; k < i; k++)
			assert_int_not_equal(inos[i], inos[k]);
	}
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		assert_int_equal(bed_ino(b, names[i]), inos[i]);
	bed_restart(b);
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		assert_int_equal(bed_ino(b, names[i]), inos[i]);
	/* Through renames behind us too: the identity counts. */
	rename_path(b, "obj.zst", "obj2.zst");
	assert_int_equal(bed_ino(b, "obj2"), inos[0]);
}

/* What the object carries is enough where the catalog is gone. */
static void test_number_from_the_frame(void **state)
{
	struct bed *b = *state;
	uint64_t mine = new_ino(b), other = new_ino(b);
	struct node *n;
	struct stat st;

	bed_object(b, "a.zst", 10, mine, 5);
	bed_object_at(bed_root(b), "theirs.zst", 10, &bed_other_pool, other, 5);
	bed_object(b, "future.zst", 10, 1ULL << 50, 5); /* was never given out */
	bed_object(b, "zero.zst", 10, 0, 5);
	bed_object(b, "root.zst", 10, TREE_ROOT_INO, 5);
	assert_int_equal(bed_ino(b, "a"), mine);
	assert_int_not_equal(bed_ino(b, "theirs"), other);
	assert_int_not_equal(bed_ino(b, "future"), 1ULL << 50);
	assert_true(bed_ino(b, "zero") > TREE_ROOT_INO);
	assert_true(bed_ino(b, "root") > TREE_ROOT_INO);
	bed_lose_catalog(b);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(n->ino, mine);
	assert_int_equal(attr(b, n, &st), 0);
	assert_int_equal(st.st_ctim.tv_sec, 1111); /* the frame's, as long as it holds */
	assert_int_equal(n->info.seq, 5);
	assert_int_equal(n->info.level, 1);
	bed_put(b, n);
	assert_int_equal(fchmodat(bed_root(b), "a.zst", 0600, 0), 0);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(attr(b, n, &st), 0);
	assert_int_not_equal(st.st_ctim.tv_sec, 1111);
	bed_put(b, n);
}

static void test_copies_get_numbers_of_their_own(void **state)
{
	struct bed *b = *state;
	uint64_t mine = new_ino(b), copy_ino;
	struct node *n;

	bed_object(b, "a.zst", 10, mine, 5);
	copy_path(b, "a.zst", "copy.zst");
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(n->ino, mine);
	copy_ino = bed_ino(b, "copy");
	assert_int_not_equal(copy_ino, mine);
	bed_put(b, n);
	bed_restart(b);
	assert_int_equal(bed_ino(b, "copy"), copy_ino);
	assert_int_equal(bed_ino(b, "a"), mine);
	/* The catalog gone: one of them gets it, never both, also when the first one is
	 * not in memory any more. */
	bed_lose_catalog(b);
	assert_int_equal(bed_ino(b, "copy"), mine);
	assert_int_not_equal(bed_ino(b, "a"), mine);
	assert_int_equal(bed_ino(b, "copy"), mine);
}

/* A flush whose row was lost: the object is newer than the catalog. */
static void test_newer_object_than_row(void **state)
{
	struct bed *b = *state;
	uint64_t mine = new_ino(b);
	struct node *n, *old;

	bed_object(b, "a.zst", 10, mine, 5);
	assert_int_equal(bed_ino(b, "a"), mine);
	unlink_path(b, "a.zst");
	bed_object(b, "a.zst", 20, mine, 6);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(n->ino, mine);
	assert_int_equal(size_of(b, n), 20);
	/* Now it is in memory, and its object goes, for a newer one: the same file. */
	rename_path(b, "a.zst", "kept.zst");
	bed_object(b, "a.zst", 30, mine, 7);
	unlink_path(b, "kept.zst");
	old = n;
	n = bed_look(b, b->tree->root, "a");
	assert_ptr_equal(n, old);
	assert_int_equal(size_of(b, n), 30);
	bed_put(b, n);
	/* But not while another object of it lies there under a name we know. */
	assert_int_equal(linkat(bed_root(b), "a.zst", bed_root(b), "b.zst", 0), 0);
	assert_int_equal(bed_ino(b, "b"), mine);
	rename_path(b, "a.zst", "kept.zst");
	bed_object(b, "a.zst", 40, mine, 8);
	assert_int_not_equal(bed_ino(b, "a"), mine);
	bed_put(b, old);
	/* Nor does an older one, or another flush of the same number, take it. */
	assert_int_equal(bed_ino(b, "b"), mine);
	unlink_path(b, "a.zst");
	bed_object(b, "a.zst", 50, mine, 7);
	assert_int_not_equal(bed_ino(b, "a"), mine);
	assert_int_equal(tree_count(b->tree), 1);
}

/* A node with a scratch keeps its base: its object was replaced behind us. */
static void test_scratch_keeps_identity(void **state)
{
	struct bed *b = *state;
	uint64_t mine = new_ino(b);
	struct node *n, *m;
	struct ident before;

	bed_object(b, "a.zst", 10, mine, 5);
	n = bed_look(b, b->tree->root, "a");
	lock_take(&n->lock);
	n->scratch = (struct scratch *)n;
	before = n->ident;
	lock_drop(&n->lock);
	unlink_path(b, "a.zst");
	bed_object(b, "a.zst", 20, mine, 6);
	m = bed_look(b, b->tree->root, "a");
	assert_ptr_not_equal(m, n);
	assert_int_not_equal(m->ino, mine);
	assert_true(node_is(b->tree, n, &before));
	assert_false(node_has_names(b->tree, n));
	n->scratch = NULL;
	bed_put(b, n);
	bed_put(b, m);
}

static void test_another_identity_is_another_file(void **state)
{
	struct bed *b = *state;
	struct node *n, *m, *d;
	uint64_t ino;

	bed_object(b, "a.zst", 10, 0, 0);
	n = bed_look(b, b->tree->root, "a");
	bed_object(b, "new.zst", 20, 0, 0);
	rename_path(b, "new.zst", "a.zst");
	m = bed_look(b, b->tree->root, "a");
	assert_ptr_not_equal(m, n);
	assert_int_not_equal(m->ino, n->ino);
	assert_false(node_has_names(b->tree, n));
	assert_int_equal(size_of(b, m), 20);
	bed_put(b, n);
	ino = m->ino;
	bed_put(b, m);
	/* A directory in place of the file, and a file in place of the directory. */
	unlink_path(b, "a.zst");
	bed_mkdir(b, "a");
	d = bed_look(b, b->tree->root, "a");
	assert_int_equal(d->type, S_IFDIR);
	assert_int_not_equal(d->ino, ino);
	assert_int_equal(unlinkat(bed_root(b), "a", AT_REMOVEDIR), 0);
	harness_write(bed_root(b), "a", "plain", 5);
	m = bed_look(b, b->tree->root, "a");
	assert_int_equal(m->type, S_IFREG);
	assert_int_not_equal(m->ino, d->ino);
	assert_false(node_has_names(b->tree, d));
	bed_put(b, m);
	bed_put(b, d);
	assert_int_equal(tree_count(b->tree), 1);
}

/* ---- races with ourselves ---- */

struct looker {
	struct bed *b;
	const char *logical;
	struct node *n;
	errint_t err;
	_Atomic int tid;
	pthread_t thread;
};

static void *run_look(void *arg)
{
	struct looker *l = arg;
	struct stat st;

	atomic_store(&l->tid, (int)gettid());
	l->err = bed_try(l->b, l->b->tree->root, l->logical, &l->n, &st);
	return NULL;
}

static void start_look(struct looker *l)
{
	assert_int_equal(pthread_create(&l->thread, NULL, run_look, l), 0);
	bed_wait_asleep(&l->tid);
}

static void end_look(struct looker *l)
{
	assert_int_equal(pthread_join(l->thread, NULL), 0);
	assert_int_equal(l->err, 0);
}

/* The new object is in place and the node does not know it: the look-up waits. */
static void look_during_a_flush(struct bed *b, bool lock_dir)
{
	struct looker l = {.b = b, .logical = "a"};
	uint64_t mine = new_ino(b);
	struct ident new;
	struct node *n;

	bed_object(b, "a.zst", 10, mine, 1);
	n = bed_look(b, b->tree->root, "a");
	bed_object(b, "tmp", 20, mine, 2);
	new = bed_ident(b, "tmp");
	node_lock_pair(n, lock_dir ? b->tree->root : NULL);
	rename_path(b, "tmp", "a.zst");
	start_look(&l);
	node_set_ident(b->tree, n, &new);
	node_unlock_pair(n, lock_dir ? b->tree->root : NULL);
	end_look(&l);
	assert_ptr_equal(l.n, n);
	assert_int_equal(size_of(b, n), 20);
	bed_put(b, l.n);
	bed_put(b, n);
	assert_int_equal(tree_count(b->tree), 1);
}

static void test_look_during_a_flush(void **state)
{
	look_during_a_flush(*state, true);
	look_during_a_flush(*state, false);
}

/* A file is there and its node is not: the creator's number counts. */
static void test_look_during_a_create(void **state)
{
	struct bed *b = *state;
	struct looker l = {.b = b, .logical = "a"};
	uint64_t mine = new_ino(b);
	struct ident ident;
	struct node *n;

	lock_take(&b->tree->root->lock);
	harness_write(bed_root(b), "a.zst", "", 0);
	start_look(&l);
	ident = bed_ident(b, "a.zst");
	n = tree_adopt(b->tree, b->tree->root, "a.zst", &ident, mine, S_IFREG);
	assert_int_equal(n->ino, mine);
	lock_drop(&b->tree->root->lock);
	end_look(&l);
	assert_ptr_equal(l.n, n);
	bed_put(b, l.n);
	bed_put(b, n);
	bed_restart(b);
	assert_int_equal(bed_ino(b, "a"), mine);
}

/* While one look-up waits to settle, another gives the file its number, and nobody keeps the
 * node: it is in the catalog only. */
static void look_during_a_look(struct bed *b, const char *waits, struct node *dir,
                               const char *looks)
{
	struct looker l = {.b = b, .logical = waits};
	struct node *n;
	struct stat st;
	uint64_t ino;

	rmlock_rd(&b->tree->ns);
	lock_take(&b->tree->root->lock);
	start_look(&l);
	assert_int_equal(resolve_name(b->tree, dir, looks, &n, &st), 0);
	ino = n->ino;
	node_unref(b->tree, n);
	lock_drop(&b->tree->root->lock);
	rmlock_drop(&b->tree->ns);
	end_look(&l);
	assert_int_equal(l.n->ino, ino);
	bed_put(b, l.n);
	assert_int_equal(bed_ino(b, waits), ino);
}

static void test_look_during_a_look(void **state)
{
	static const char *const names[] = {"ours", "foreign", "plain", "symlink"};
	struct bed *b = *state;
	struct node *dir;

	bed_object(b, "ours.zst", 10, new_ino(b), 1);
	bed_object(b, "linked.zst", 10, new_ino(b), 1);
	bed_object(b, "foreign.zst", 10, 0, 0);
	harness_write(bed_root(b), "plain", "text", 4);
	assert_int_equal(symlinkat("ours", bed_root(b), "symlink"), 0);
	bed_mkdir(b, "dir");
	assert_int_equal(linkat(bed_root(b), "linked.zst", bed_root(b), "dir/other.zst", 0),
	                 0);
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		look_during_a_look(b, names[i], b->tree->root, names[i]);
	dir = bed_look(b, b->tree->root, "dir");
	look_during_a_look(b, "linked", dir, "other");
	bed_put(b, dir);
}

/* An unlink of ours, between store and names: no name comes back to life. */
static void test_look_during_an_unlink(void **state)
{
	struct bed *b = *state;
	struct looker l = {.b = b, .logical = "b"};
	struct node *n;

	bed_object(b, "a.zst", 10, 0, 0);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(linkat(bed_root(b), "a.zst", bed_root(b), "b.zst", 0), 0);
	node_lock_pair(b->tree->root, n);
	start_look(&l); /* it knows the inode, not the name: waits for the directory */
	unlink_path(b, "b.zst");
	node_remove_name(b->tree, n, b->tree->root, "b.zst");
	node_unlock_pair(b->tree->root, n);
	assert_int_equal(pthread_join(l.thread, NULL), 0);
	assert_int_equal(l.err, -ENOENT);
	assert_null(tree_find_name(b->tree, b->tree->root, "b.zst"));
	bed_put(b, n);
}

/* With the directory's lock held by the caller. */
static void test_look_under_the_directory(void **state)
{
	struct bed *b = *state;
	struct node *n = NULL;
	struct stat st;

	bed_object(b, "a.zst", 10, 0, 0);
	rmlock_rd(&b->tree->ns);
	lock_take(&b->tree->root->lock);
	assert_int_equal(resolve_name(b->tree, b->tree->root, "a", &n, &st), 0);
	assert_true(lock_is_mine(&b->tree->root->lock));
	lock_drop(&b->tree->root->lock);
	rmlock_drop(&b->tree->ns);
	bed_put(b, n);
}

/* ---- info and attributes ---- */

static void test_info_follows_changes(void **state)
{
	struct bed *b = *state;
	struct node *n;
	struct stat st;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = -5, .tv_nsec = 7}};
	int fd;

	bed_object(b, "a.zst", 10, 0, 0);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(size_of(b, n), 10);
	bed_object(b, "a.zst", 20, 0, 0); /* in place: the same inode */
	assert_int_equal(utimensat(bed_root(b), "a.zst", ts, 0), 0);
	assert_int_equal(attr(b, n, &st), 0);
	assert_int_equal(st.st_size, 20);
	assert_int_equal(st.st_mtim.tv_sec, -5);
	assert_int_equal(st.st_mtim.tv_nsec, 7);
	/* Its frames are listed, a dead piece in front is counted. */
	fd = openat(bed_root(b), "a.zst", O_RDWR | O_TRUNC);
	assert_int_equal(write(fd, hello_sized, sizeof(hello_sized)), sizeof(hello_sized));
	close(fd);
	assert_int_equal(size_of(b, n), 5);
	assert_int_equal(n->info.kind, OBJECT_FOREIGN);
	bed_put(b, n);
	bed_restart(b);
	n = bed_look(b, b->tree->root, "a");
	assert_true(n->info_valid); /* from the catalog, not read again */
	assert_int_equal(n->info.logical_size, 5);
	bed_put(b, n);
}

static void test_info_of_another_inode(void **state)
{
	struct bed *b = *state;
	struct node *n;
	struct stat st;

	bed_object(b, "a.zst", 10, 0, 0);
	bed_object(b, "b.zst", 20, 0, 0);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(fstatat(bed_root(b), "b.zst", &st, 0), 0);
	lock_take(&n->lock);
	n->info_valid = false;
	assert_int_equal(resolve_info(b->tree, n, bed_root(b), "b.zst", &st, NULL),
	                 -ESTALE);
	assert_int_equal(resolve_info(b->tree, n, bed_root(b), "none.zst", &st, NULL),
	                 -ESTALE);
	lock_drop(&n->lock);
	assert_int_equal(size_of(b, n), 10);
	bed_put(b, n);
}

/* The hash of a plain file is read when there is a scratch whose stamp it is compared to. */
static void test_plain_hash_on_demand(void **state)
{
	struct bed *b = *state;
	struct node *n;
	struct object o;
	int fd;

	harness_write(bed_root(b), "plain", "some text", 9);
	n = bed_look(b, b->tree->root, "plain");
	assert_int_equal(size_of(b, n), 9);
	assert_true(!n->info.trailer_hash[0] && !n->info.trailer_hash[1]);
	n->scratch = (struct scratch *)n;
	assert_int_equal(size_of(b, n), 9);
	fd = openat(bed_root(b), "plain", O_RDONLY);
	assert_int_equal(object_open(fd, &o, NULL), 0);
	assert_int_equal(n->info.trailer_hash[0], o.trailer_hash[0]);
	assert_int_equal(n->info.trailer_hash[1], o.trailer_hash[1]);
	assert_int_equal(n->info.kind, OBJECT_PLAIN);
	object_close(&o);
	close(fd);
	n->scratch = NULL;
	bed_put(b, n);
}

static void test_unknown_size(void **state)
{
	struct bed *b = *state;
	struct node *n;

	harness_write(bed_root(b), "a.zst", hello_unsized, sizeof(hello_unsized));
	harness_write(bed_root(b), "bad.zst", hello_unsized, sizeof(hello_unsized) - 2);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(size_of(b, n), 0);
	assert_int_equal(n->info.logical_size, OBJECT_SIZE_UNKNOWN);
	assert_int_equal(resolve_size(b->tree, n, NULL), 0);
	assert_int_equal(size_of(b, n), 5);
	assert_int_equal(resolve_size(b->tree, n, NULL), 0); /* known: nothing to do */
	bed_put(b, n);
	bed_restart(b);
	n = bed_look(b, b->tree->root, "a");
	assert_int_equal(size_of(b, n), 5);
	bed_put(b, n);
	n = bed_look(b, b->tree->root, "bad");
	assert_int_equal(resolve_size(b->tree, n, NULL), -EUCLEAN);
	assert_int_equal(size_of(b, n), 0);
	bed_put(b, n);
	/* A bomb is not decoded to its end. */
	b->tree->max_object = 4;
	harness_write(bed_root(b), "c.zst", hello_unsized, sizeof(hello_unsized));
	n = bed_look(b, b->tree->root, "c");
	assert_int_equal(resolve_size(b->tree, n, NULL), -EFBIG);
	bed_put(b, n);
	n = b->tree->root;
	assert_int_equal(resolve_size(b->tree, n, NULL), -EINVAL);
}

static void test_unreadable_object(void **state)
{
	struct bed *b = *state;
	bool root = geteuid() == 0;
	struct node *n;
	uint64_t ino;

	bed_object(b, "a.zst", 10, 0, 0);
	assert_int_equal(fchmodat(bed_root(b), "a.zst", 0, 0), 0);
	assert_int_equal(fchmodat(bed_root(b), ".", 0755, 0), 0);
	(void)new_ino(b); /* reserves numbers in store.id, which is root's */
	if (root)
		assert_int_equal(seteuid(65534), 0);
	n = bed_look(b, b->tree->root, "a");
	ino = n->ino;
	assert_int_equal(size_of(b, n), 0);
	assert_int_equal(n->info.kind, OBJECT_FOREIGN);
	assert_int_equal(n->info.logical_size, OBJECT_SIZE_UNKNOWN);
	assert_int_equal(size_of(b, n), 0);
	if (root)
		assert_int_equal(seteuid(0), 0);
	/* Readable again: the ctime says so, no restart is needed. */
	assert_int_equal(fchmodat(bed_root(b), "a.zst", 0644, 0), 0);
	assert_int_equal(size_of(b, n), 10);
	assert_int_equal(n->ino, ino);
	bed_put(b, n);
}

static void test_attributes(void **state)
{
	struct bed *b = *state;
	struct stat st = {
	    .st_ino = 77,
	    .st_mode = S_IFREG | 0640,
	    .st_size = 55,
	    .st_ctim = {100, 1},
	    .st_mtim = {90, 2},
	};
	struct node n = {.type = S_IFREG, .ino = 42, .ident = {{1, 2}}, .info_valid = true};
	struct stat got;

	(void)b;
	n.info = (struct catalog_file){.ident = n.ident, .logical_size = 1000};
	n.info.ctime = (struct timespec){50, 3};
	n.info.mtime = (struct timespec){40, 4};
	resolve_attr(&n, &st, &got);
	assert_int_equal(got.st_ino, 42);
	assert_int_equal(got.st_size, 1000);
	assert_int_equal(got.st_mode, st.st_mode);
	assert_int_equal(got.st_blocks, 1);        /* never 0 while it holds a byte */
	assert_int_equal(got.st_ctim.tv_sec, 100); /* not the one that was seen */
	n.info.seen_ctime = st.st_ctim;
	resolve_attr(&n, &st, &got);
	assert_int_equal(got.st_ctim.tv_sec, 50);
	assert_int_equal(got.st_ctim.tv_nsec, 3);
	assert_int_equal(got.st_mtim.tv_sec, 90); /* files keep the store's */
	n.info.logical_size = OBJECT_SIZE_UNKNOWN;
	resolve_attr(&n, &st, &got);
	assert_int_equal(got.st_size, 0);
	assert_int_equal(got.st_blocks, 0);
	n.info.logical_size = 1000;
	n.ident.w[0]++; /* the info is of another inode */
	resolve_attr(&n, &st, &got);
	assert_int_equal(got.st_size, 0);
	assert_int_equal(got.st_ctim.tv_sec, 100);
	n.plain = true;
	resolve_attr(&n, &st, &got);
	assert_int_equal(got.st_size, 55);
	n.ident.w[0]--;
	n.type = S_IFDIR;
	resolve_attr(&n, &st, &got);
	assert_int_equal(got.st_size, 55);
	assert_int_equal(got.st_ctim.tv_sec, 50);
	assert_int_equal(got.st_mtim.tv_sec, 40);
	assert_int_equal(got.st_mtim.tv_nsec, 4);
}

static void keep(struct bed *b, struct node *n, const char *path, time_t ctime)
{
	struct timespec ts = {ctime, 9};
	struct stat st;

	assert_int_equal(fstatat(bed_root(b), path, &st, AT_SYMLINK_NOFOLLOW), 0);
	lock_take(&n->lock);
	resolve_keep_ctime(b->tree, n, &st, &ts);
	lock_drop(&n->lock);
}

static time_t ctime_of(struct bed *b, struct node *n)
{
	struct stat st;

	assert_int_equal(attr(b, n, &st), 0);
	return st.st_ctim.tv_sec;
}

static void test_keep_ctime(void **state)
{
	struct bed *b = *state;
	struct node *n, *d;
	struct ident ident;
	struct stat st;

	bed_object(b, "a.zst", 10, 0, 0);
	bed_mkdir(b, "d");
	n = bed_look(b, b->tree->root, "a");
	d = bed_look(b, b->tree->root, "d");
	assert_int_not_equal(ctime_of(b, n), 500);
	keep(b, n, "a.zst", 500);
	keep(b, d, "d", 600);
	assert_int_equal(ctime_of(b, n), 500);
	assert_int_equal(ctime_of(b, d), 600);
	assert_int_equal(size_of(b, n), 10);
	bed_put(b, n);
	bed_put(b, d);
	bed_restart(b);
	n = bed_look(b, b->tree->root, "a");
	d = bed_look(b, b->tree->root, "d");
	assert_int_equal(ctime_of(b, n), 500);
	assert_int_equal(ctime_of(b, d), 600);
	/* A change by somebody else shows. */
	assert_int_equal(fchmodat(bed_root(b), "a.zst", 0600, 0), 0);
	assert_int_equal(fchmodat(bed_root(b), "d", 0700, 0), 0);
	assert_true(ctime_of(b, n) > 600);
	assert_true(ctime_of(b, d) > 600);
	/* Before anything is known of a new object: ctime is kept, contents are read. */
	bed_object(b, "new", 20, 0, 0);
	rename_path(b, "new", "a.zst");
	ident = bed_ident(b, "a.zst");
	lock_take(&n->lock);
	node_set_ident(b->tree, n, &ident);
	lock_drop(&n->lock);
	keep(b, n, "a.zst", 700);
	assert_int_equal(size_of(b, n), 20);
	assert_int_equal(ctime_of(b, n), 700);
	bed_put(b, n);
	bed_put(b, d);
	/* The root as well. */
	keep(b, b->tree->root, ".", 800);
	bed_restart(b);
	assert_int_equal(fstat(bed_root(b), &st), 0);
	assert_int_equal(ctime_of(b, b->tree->root), 800);
}

static void test_stat_without_names(void **state)
{
	struct bed *b = *state;
	struct node *n;
	struct stat st;

	bed_object(b, "a.zst", 10, 0, 0);
	n = bed_look(b, b->tree->root, "a");
	n->dead_fd = openat(bed_root(b), "a.zst", O_PATH);
	unlink_path(b, "a.zst");
	assert_int_equal(resolve_stat(b->tree, n, &st), 0);
	assert_int_equal(st.st_nlink, 0);
	close(n->dead_fd);
	n->dead_fd = -1;
	assert_int_equal(resolve_stat(b->tree, n, &st), -ENOENT);
	n->dead_st = calloc(1, sizeof(*n->dead_st));
	n->dead_st->st_size = 123;
	assert_int_equal(resolve_stat(b->tree, n, &st), 0);
	assert_int_equal(st.st_size, 123);
	bed_put(b, n);
	assert_int_equal(resolve_stat(b->tree, b->tree->root, &st), 0);
	assert_true(S_ISDIR(st.st_mode));
}

/* ---- threads ---- */

#define THREADS 4
#define ROUNDS  400
#define FILES   6

struct worker {
	struct bed *b;
	struct node *dir;
	uint64_t seed;
	pthread_t thread;
};

static void file_name(char *name, size_t size, uint64_t k, const char *suffix)
{
	(void)snprintf(name, size, "f%u%s", (unsigned)k, suffix);
}

/* A flush of ours: new object, new identity, the same node and number. */
static void replace_file(struct worker *w, uint64_t k)
{
	struct bed *b = w->b;
	struct tree *t = b->tree;
	char logical[32], stored[32], tmp[64];
	struct ident ident;
	struct node *n;
	struct stat st;
	struct place p;

	file_name(logical, sizeof(logical), k, "");
	file_name(stored, sizeof(stored), k, ".zst");
	(void)snprintf(tmp, sizeof(tmp), "tmp-%p", (void *)w);
	rmlock_rd(&t->ns);
	INVARIANT(!resolve_name(t, w->dir, logical, &n, &st));
	INVARIANT(!node_place(t, n, &p));
	harness_write(b->h->dirfd, tmp, hello_sized, sizeof(hello_sized));
	INVARIANT(!ident_get(b->h->dirfd, tmp, &ident));
	node_lock_pair(w->dir, n);
	INVARIANT(!sys_renameat2(b->h->dirfd, tmp, p.dirfd, stored, 0));
	(void)sched_yield();
	node_set_ident(t, n, &ident);
	n->info_valid = false;
	node_unlock_pair(w->dir, n);
	place_release(t, &p);
	rmlock_drop(&t->ns);
	node_unref(t, n);
}

static void *run_lookups(void *arg)
{
	struct worker *w = arg;
	struct tree *t = w->b->tree;
	uint64_t known[FILES] = {0};

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t k = harness_next(&w->seed) % FILES, ino;
		char logical[32];
		struct node *n;
		struct stat st;

		if (harness_next(&w->seed) % 4 == 0) {
			replace_file(w, k);
			continue;
		}
		file_name(logical, sizeof(logical), k, "");
		rmlock_rd(&t->ns);
		INVARIANT(!resolve_name(t, w->dir, logical, &n, &st));
		rmlock_drop(&t->ns);
		ino = n->ino;
		node_add_lookup(t, n);
		node_unref(t, n);
		n = tree_get(t, ino);
		INVARIANT(n && n->ino == ino);
		INVARIANT(!attr(w->b, n, &st) && st.st_size == 5);
		node_unref(t, n);
		node_forget(t, ino, 1);
		INVARIANT(!known[k] || known[k] == ino); /* through all replacements */
		known[k] = ino;
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct bed *b = *state;
	struct worker w[THREADS];
	struct node *dir, *held[FILES];
	char name[40];

	bed_mkdir(b, "d");
	for (uint64_t k = 0; k < FILES; k++) {
		(void)snprintf(name, sizeof(name), "d/f%u.zst", (unsigned)k);
		harness_write(bed_root(b), name, hello_sized, sizeof(hello_sized));
	}
	dir = bed_look(b, b->tree->root, "d");
	/* As the pool would: whoever replaces an object has a reference on its node, and
	 * the catalog's row follows only later. */
	for (uint64_t k = 0; k < FILES; k++) {
		file_name(name, sizeof(name), k, "");
		held[k] = bed_look(b, dir, name);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.b = b, .dir = dir, .seed = i};
		assert_int_equal(pthread_create(&w[i].thread, NULL, run_lookups, &w[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
	assert_int_equal(tree_count(b->tree), 2 + FILES);
	for (uint64_t k = 0; k < FILES; k++)
		bed_put(b, held[k]);
	bed_put(b, dir);
	assert_int_equal(tree_count(b->tree), 1);
	assert_int_equal(b->tree->root->children, 0);
}

/* Everything is forgotten all the time: nodes die while others look them up. */
static void *run_fleeting(void *arg)
{
	struct worker *w = arg;
	struct bed *b = w->b;
	static const char *const names[] = {"obj", "plain", "dir", "link"};

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t k = harness_next(&w->seed) % ARRAY_LEN(names);
		struct node *n, *child;
		struct stat st;

		rmlock_rd(&b->tree->ns);
		INVARIANT(!resolve_name(b->tree, b->tree->root, names[k], &n, &st));
		if (k == 2) {
			INVARIANT(!resolve_name(b->tree, n, "inner", &child, &st));
			node_unref(b->tree, n);
			n = child;
		}
		rmlock_drop(&b->tree->ns);
		INVARIANT(!attr(b, n, &st));
		node_unref(b->tree, n);
	}
	return NULL;
}

static void test_fleeting_nodes(void **state)
{
	struct bed *b = *state;
	struct worker w[THREADS];
	uint64_t ino;

	bed_object(b, "obj.zst", 10, 0, 0);
	harness_write(bed_root(b), "plain", "text", 4);
	bed_mkdir(b, "dir");
	bed_object(b, "dir/inner.zst", 10, 0, 0);
	assert_int_equal(symlinkat("obj", bed_root(b), "link"), 0);
	ino = bed_ino(b, "obj");
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.b = b, .seed = i};
		assert_int_equal(pthread_create(&w[i].thread, NULL, run_fleeting, &w[i]),
		                 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
	assert_int_equal(tree_count(b->tree), 1);
	assert_int_equal(b->tree->dirfd_count, 0);
	assert_int_equal(bed_ino(b, "obj"), ino);
}

/* (K2) "f" is a symlink or a file, one in the place of the other all the time, as rename(2) puts
 * them there: it is never away. */
struct flipper {
	struct bed *b;
	pthread_t thread;
	_Atomic bool over;
};

static void flip(struct bed *b, const char *from, const char *to, const char *old)
{
	struct node *root = b->tree->root;
	int fd = bed_root(b);

	rmlock_rd(&b->tree->ns);
	lock_take(&root->lock);
	tree_replacing(b->tree, root);
	INVARIANT(!sys_renameat2(fd, from, fd, to, 0));
	INVARIANT(!sys_unlinkat(fd, old, 0));
	tree_replaced(b->tree, root);
	lock_drop(&root->lock);
	rmlock_drop(&b->tree->ns);
}

static void *run_flips(void *arg)
{
	struct flipper *f = arg;
	int fd = bed_root(f->b);

	for (unsigned i = 0; i < 60 * ROUNDS; i++) {
		INVARIANT(!sys_symlinkat("keep", fd, "new"));
		flip(f->b, "new", "f", "f.zst");
		INVARIANT(!sys_linkat(fd, "keep.zst", fd, "new", 0));
		flip(f->b, "new", "f.zst", "f");
	}
	f->over = true;
	return NULL;
}

static void test_never_between_two_forms(void **state)
{
	struct bed *b = *state;
	struct flipper f = {.b = b};
	unsigned links = 0, files = 0;

	bed_object(b, "keep.zst", 10, 0, 0);
	assert_int_equal(linkat(bed_root(b), "keep.zst", bed_root(b), "f.zst", 0), 0);
	assert_int_equal(pthread_create(&f.thread, NULL, run_flips, &f), 0);
	while (!f.over) {
		struct node *n = bed_look(b, b->tree->root, "f");

		*(S_ISLNK(n->type) ? &links : &files) += 1;
		bed_put(b, n);
	}
	assert_int_equal(pthread_join(f.thread, NULL), 0);
	assert_true(links > 0 && files > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    BED_TEST(test_forms),
	    BED_TEST(test_hard_links_are_one_node),
	    BED_TEST(test_moved_directory),
	    BED_TEST(test_store_paths),
	    BED_TEST(test_raw_becomes_decodable),
	    BED_TEST(test_keep_foreign),
	    BED_TEST(test_rules),
	    BED_TEST(test_numbers_last),
	    BED_TEST(test_number_from_the_frame),
	    BED_TEST(test_copies_get_numbers_of_their_own),
	    BED_TEST(test_newer_object_than_row),
	    BED_TEST(test_scratch_keeps_identity),
	    BED_TEST(test_another_identity_is_another_file),
	    BED_TEST(test_look_during_a_flush),
	    BED_TEST(test_look_during_a_create),
	    BED_TEST(test_look_during_a_look),
	    BED_TEST(test_look_during_an_unlink),
	    BED_TEST(test_look_under_the_directory),
	    BED_TEST(test_info_follows_changes),
	    BED_TEST(test_info_of_another_inode),
	    BED_TEST(test_plain_hash_on_demand),
	    BED_TEST(test_unknown_size),
	    BED_TEST(test_unreadable_object),
	    BED_TEST(test_attributes),
	    BED_TEST(test_keep_ctime),
	    BED_TEST(test_stat_without_names),
	    BED_TEST(test_threads),
	    BED_TEST(test_fleeting_nodes),
	    BED_TEST(test_never_between_two_forms),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
