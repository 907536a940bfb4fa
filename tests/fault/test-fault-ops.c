/*
 * Every operation under every fault: the i-th call fails, for i = 1, 2, 3 … until none fires;
 * once, and from then on until the operation is over. The operations run on the libraries,
 * without a mount, so that thousands of faults take seconds; tests/mount/test_faults.py does
 * the same with a daemon.
 *
 * After each fault (design, sections 2 and 10; F1, F4, F6 of flush.c; S1; O3; H2; R1 to R4):
 * no crash, no hang, no descriptor left open; the error that was injected or none; no wrong
 * byte while it lasts; and with the fault gone everything flushes, all objects decode, the
 * contents are what the model allows, no inode number changed; the same after a restart.
 *
 * An operation is a row in `operations`: prepare without faults, act under them. act returns
 * what the caller of the operation would see and tells the model what may be the case now.
 *
 *   test-fault-ops            a selection that fits in a minute
 *   CELLAR_TEST_SOAK=1 …      every call with every error, once and always
 *   CELLAR_TEST_PART=K/N …    every N-th operation from the K-th on, K from 0
 *   test-fault-ops OP [SPEC]  one operation, or one fault of it
 */
#include "world.h"

#include "pool/compact.h"

#include <sys/mman.h>
#include <sys/xattr.h>
#include <time.h>

#define FRAME (64U << 10)
#define LARGE (4U * FRAME - 100)

static const struct uuid another_boot = {{0xb0, 0x07}};

/* ---- operations ---- */

static void prepare_nothing(struct world *w)
{
	(void)w;
}

/* A new file, written, closed. */
static errint_t act_create(struct world *w)
{
	struct file *f = world_add(w, "new");
	struct node *n;
	errint_t r = world_create(w, f->object, &n);

	if (r < 0) {
		/* Where it cannot even be taken back, it is an empty file. */
		file_is(f, (struct content){.len = 0});
		f->may_lack = true;
		f->unborn = world_has(w, f->object);
		return r;
	}
	f->ino = n->ino;
	r = world_fill(w, n, f, world_new_content(w, 70000));
	pool_close_file(w->pool, n, POOL_READ | POOL_WRITE);
	node_unref(w->tree, n);
	return r;
}

static void prepare_cold(struct world *w)
{
	world_cool(w, world_make(w, "cold", LARGE));
}

/* Looked up, opened, read while the fault lasts: right bytes or an error. */
static errint_t act_read_cold(struct world *w)
{
	struct file *f = &w->files[0];
	struct node *n;
	errint_t r = world_lookup(w, f->name, &n);
	char *want, *got;

	if (r < 0)
		return r;
	r = pool_open_file(w->pool, n, POOL_READ);
	if (r == 0) {
		r = scratch_hydrate(w->pool, n, 0, UINT64_MAX);
		if (r == 0) {
			want = content_make(&f->may[0]);
			got = malloc(f->may[0].len);
			NEED(got);
			r = full_pread(scratch_fd(n), got, f->may[0].len, 0);
			if (r == -ENODATA ||
			    (r == 0 && memcmp(want, got, f->may[0].len) != 0))
				violation(w, "wrong bytes were read while it lasted");
			free(want);
			free(got);
		}
		pool_close_file(w->pool, n, POOL_READ);
	}
	node_unref(w->tree, n);
	return r;
}

static void prepare_cold_small(struct world *w)
{
	world_cool(w, world_make(w, "cold", 50000));
}

/* The first write to a cold file. */
static errint_t act_write_cold(struct world *w)
{
	struct file *f = &w->files[0];
	struct content c = f->may[0];
	struct node *n;
	char *data;
	errint_t r = world_lookup(w, f->name, &n);

	if (r < 0)
		return r;
	r = pool_open_file(w->pool, n, POOL_READ | POOL_WRITE);
	if (r == 0) {
		c.head_seed = ++w->next_seed;
		c.head = 3000;
		data = content_make(&c);
		c.head = world_pwrite(w, n, data, 3000, 0, &r);
		if (c.head > 0)
			file_is(f, c);
		free(data);
		pool_close_file(w->pool, n, POOL_READ | POOL_WRITE);
	}
	node_unref(w->tree, n);
	return r;
}

/* O_TRUNC of a cold file, then other bytes. An open that failed changed nothing. */
static errint_t act_truncate_open(struct world *w)
{
	struct file *f = &w->files[0];
	struct node *n;
	errint_t r = world_lookup(w, f->name, &n);

	if (r < 0)
		return r;
	r = pool_open_file(w->pool, n, POOL_WRITE | POOL_TRUNC);
	if (r == 0) {
		r = world_fill(w, n, f, world_new_content(w, 30000));
		pool_close_file(w->pool, n, POOL_WRITE | POOL_TRUNC);
	}
	node_unref(w->tree, n);
	return r;
}

static void prepare_synced(struct world *w)
{
	struct node *n;

	world_make(w, "dirty", 60000);
	world_flush(w);
	world_rewrite(w, &w->files[0], 60000);
	NEED(world_lookup(w, "dirty", &n) == 0);
	NEED(pool_fsync(w->pool, n, false) == 0);
	node_unref(w->tree, n);
}

/* Shorter, then longer; each is done or not. */
static errint_t act_truncate(struct world *w)
{
	struct file *f = &w->files[0];
	struct node *n;
	errint_t r = world_lookup(w, f->name, &n);

	if (r < 0)
		return r;
	for (int i = 0; i < 2 && r == 0; i++) {
		struct content shorter = f->may[0];

		shorter.len = i ? 100 : 20000;
		r = pool_truncate(w->pool, n, shorter.len);
		if (r == 0)
			file_is(f, shorter);
	}
	node_unref(w->tree, n);
	return r;
}

static void prepare_dirty(struct world *w)
{
	world_make(w, "dirty", 60000);
	world_flush(w);
	world_rewrite(w, &w->files[0], 60000);
}

/* (Y1): what it answers 0 for is in the record, which is what recovery goes by. */
static errint_t act_fsync(struct world *w)
{
	struct record record;
	struct node *n;
	errint_t r = world_lookup(w, w->files[0].name, &n);
	char path[600];
	int fd;

	if (r < 0)
		return r;
	r = pool_fsync(w->pool, n, false);
	if (r == 0) {
		(void)snprintf(path, sizeof(path), "%s/pool/scratch/%s", w->dir,
		               scratch_name(n->ino).s);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		NEED(fd >= 0);
		{
			uint8_t buf[RECORD_LEN];
			ssize_t len = fgetxattr(fd, RECORD_XATTR, buf, sizeof(buf));

			NEED(record_unpack(buf, (size_t)len, &record) == 0);
		}
		if (record.sync_seq == 0 || record.sync_size < w->files[0].may[0].len)
			violation(w, "fsync answered 0, the record knows nothing of it");
		(void)close(fd);
	}
	node_unref(w->tree, n);
	return r;
}

/* The cause must reach whoever waits for the flush. */
static void look_for_cause(void *ctx, const char *path, const char *error)
{
	struct world *w = ctx;
	const char *end = w->spec ? strstr(w->spec, ":E") : NULL;
	static const struct {
		const char *name;
		int number;
	} names[] = {{"EIO", EIO},
	             {"ENOSPC", ENOSPC},
	             {"EDQUOT", EDQUOT},
	             {"EMFILE", EMFILE},
	             {"ENOMEM", ENOMEM}};

	for (size_t i = 0; end && i < ARRAY_LEN(names); i++) {
		if (strncmp(end + 1, names[i].name, strlen(names[i].name)) == 0 &&
		    !strstr(error, strerror(names[i].number)))
			violation(w,
			          "the cause of the failed flush of \"%s\" is not told: %s",
			          path, error);
	}
}

static errint_t act_flush(struct world *w)
{
	return pool_flush(w->pool, NULL, FLUSH_MS, NULL, look_for_cause, w);
}

static void prepare_new(struct world *w)
{
	world_make(w, "one", 60000);
}

static void prepare_large(struct world *w)
{
	world_make(w, "large", LARGE);
	world_flush(w);
	world_rewrite(w, &w->files[0], LARGE - 5);
}

static void prepare_many(struct world *w)
{
	char name[8];

	for (int i = 0; i < 4; i++) {
		(void)snprintf(name, sizeof(name), "m%d", i);
		world_make(w, name, 5000);
	}
	world_flush(w);
	for (int i = 0; i < 4; i++)
		world_rewrite(w, &w->files[i], 4000);
}

/* A file that only grew, large enough that its flush appends to the object. cold: a tail. */
static void grow(struct world *w, bool cold)
{
	const size_t more = 30000;
	struct file *f = world_make(w, "grown", LARGE);
	struct content c = f->may[0];
	struct node *n;
	errint_t r = 0;
	char *data;

	w->pool->append_min = 1;
	w->pool->eager_size = cold ? FRAME : w->pool->eager_size;
	if (cold)
		world_cool(w, f);
	else
		world_flush(w);
	c.len += more;
	data = content_make(&c);
	NEED(world_lookup(w, f->name, &n) == 0);
	NEED(pool_open_file(w->pool, n, POOL_WRITE) == 0);
	NEED(world_pwrite(w, n, data + LARGE, more, LARGE, &r) == more && r == 0);
	pool_close_file(w->pool, n, POOL_WRITE);
	node_unref(w->tree, n);
	free(data);
	file_is(f, c);
}

static void prepare_grown(struct world *w)
{
	grow(w, false);
}

static void prepare_tail(struct world *w)
{
	grow(w, true);
}

/* Two names of one object: it is copied over. */
static void prepare_linked(struct world *w)
{
	struct file *f = world_make(w, "linked", 50000), *g;
	struct node *n;

	world_flush(w);
	NEED(linkat(w->store->root_fd, f->object, w->store->root_fd, "other.zst", 0) == 0);
	g = world_add(w, "other");
	NEED(world_lookup(w, "other", &n) == 0);
	node_unref(w->tree, n);
	world_rewrite(w, f, 55000);
	file_is(g, f->may[0]);
	g->ino = f->ino;
}

/* Other bytes follow: no intent of a failed flush may bring back what it was about. */
static void after_linked(struct world *w)
{
	world_rewrite(w, &w->files[0], 56000);
	file_is(&w->files[1], w->files[0].may[0]);
}

/* A plain file of the store, which becomes an object. */
static void prepare_plain(struct world *w)
{
	struct content c = world_new_content(w, 40000);
	struct file *f = world_add(w, "plain");
	char *data = content_make(&c);
	struct node *n;

	harness_write(w->store->root_fd, "plain", data, c.len);
	free(data);
	file_is(f, c);
	NEED(world_lookup(w, "plain", &n) == 0);
	f->ino = n->ino;
	node_unref(w->tree, n);
	world_rewrite(w, f, 41000);
}

static errint_t act_drain(struct world *w)
{
	errint_t r = act_flush(w);

	world_unwind(w);
	return r;
}

static void prepare_clean(struct world *w)
{
	world_make(w, "clean", 60000);
	world_make(w, "clean2", 6000);
	world_flush(w);
}

static errint_t act_evict(struct world *w)
{
	struct node *n;
	errint_t r = world_lookup(w, "clean", &n);

	if (r < 0)
		return r;
	r = pool_evict(w->pool, n);
	node_unref(w->tree, n);
	evict_house(w->pool);
	return r;
}

/* A flush that without a fault appends: the object stays the inode that it was. */
static errint_t act_append(struct world *w)
{
	const char *object = w->files[0].object;
	struct stat before, after;
	errint_t r;

	NEED(fstatat(w->store->root_fd, object, &before, 0) == 0);
	r = act_flush(w);
	NEED(fstatat(w->store->root_fd, object, &after, 0) == 0);
	NEED(fault_fired() ||
	     (after.st_ino == before.st_ino && after.st_size > before.st_size));
	return r;
}

/* What a compaction cannot do it leaves alone, and says why. */
static errint_t act_compact(struct world *w)
{
	struct pool_compaction how = {.level = 9, .frame_size = 1 << 20, .threads = 1};
	struct pool_compacted done;
	char *cause = NULL;
	struct node *n;
	errint_t r = world_lookup(w, w->files[0].name, &n);

	if (r < 0)
		return r;
	r = pool_compact(w->pool, n, &how, &done, &cause);
	node_unref(w->tree, n);
	NEED(fault_fired() || done.replaced);
	if (r < 0 && !cause)
		violation(w, "compaction failed with %s and no cause", strerror(-r));
	free(cause);
	return r;
}

static errint_t act_verify(struct world *w)
{
	struct verify_totals totals;
	char *cause = NULL;
	errint_t r =
	    verify_tree(w->store, "", UINT64_MAX, NULL, NULL, NULL, NULL, &totals, &cause);

	if (r == 0 && totals.files < w->count)
		violation(w, "verify passed over something and says nothing of it");
	if (r < 0 && !cause)
		violation(w, "verify failed without a cause");
	/* what it could not read it calls damaged, with the error */
	free(cause);
	return r;
}

/* Unlink of a dirty file, as mount/found.c does it, and the deletion of its scratch. */
static errint_t act_unlink(struct world *w)
{
	struct file *f = &w->files[0];
	struct node *n;
	errint_t r = world_lookup(w, f->name, &n);

	if (r < 0)
		return r;
	lock_take(&n->lock);
	pool_dooming(w->pool, n, true);
	r = sys_unlinkat(w->store->root_fd, f->object, 0);
	if (r < 0)
		pool_dooming(w->pool, n, false);
	else
		node_remove_name(w->tree, n, w->tree->root, f->object);
	lock_drop(&n->lock);
	if (r == 0) {
		f->must_lack = f->may_lack = true;
		pool_unlinked(w->pool, n, w->tree->root);
	}
	node_unref(w->tree, n);
	evict_doomed(w->pool);
	return r;
}

/* ---- starts ---- */

static void prepare_closed(struct world *w)
{
	world_make(w, "warm", 60000);
	world_make(w, "warm2", 600);
	world_flush(w);
	world_unwind(w);
}

static errint_t act_start(struct world *w)
{
	return world_try_open(w);
}

/* Runs in a child that ends as by kill -9. The model is shared memory. */
static void in_child(struct world *w, void (*fn)(struct world *w))
{
	struct world *shared = mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE,
	                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	NEED(shared != MAP_FAILED);
	world_unwind(w);
	(void)fflush(NULL);
	pid = fork();
	NEED(pid >= 0);
	if (pid == 0) {
		w->boot = &another_boot;
		world_open(w);
		fn(w);
		memcpy(shared->files, w->files, sizeof(w->files));
		shared->count = w->count;
		shared->next_seed = w->next_seed;
		_exit(0);
	}
	NEED(waitpid(pid, &status, 0) == pid && status == 0);
	memcpy(w->files, shared->files, sizeof(w->files));
	w->count = shared->count;
	w->next_seed = shared->next_seed;
	(void)munmap(shared, sizeof(*w));
}

static void fsync_named(struct world *w, const char *name)
{
	struct node *n;

	NEED(world_lookup(w, name, &n) == 0);
	NEED(pool_fsync(w->pool, n, false) == 0);
	node_unref(w->tree, n);
}

/* What there is at a kill: new, rewritten, synced, unlinked, clean; an intent is under way. */
static void make_mixed(struct world *w)
{
	struct node *n;

	prepare_linked(w); /* its copying over is stopped after the intent */
	NEED(fault_set("full_copy_range:1:EIO:always"));
	NEED(pool_flush(w->pool, NULL, FLUSH_MS, NULL, NULL, NULL) == -EIO);
	NEED(fault_set(NULL));
	world_make(w, "clean", 20000);
	world_make(w, "rewritten", 30000);
	world_make(w, "synced", 30000);
	world_make(w, "gone", 3000);
	for (unsigned i = w->count - 4; i < w->count; i++) {
		NEED(world_lookup(w, w->files[i].name, &n) == 0);
		NEED(pool_flush(w->pool, n, FLUSH_MS, NULL, NULL, NULL) == 0);
		node_unref(w->tree, n);
	}
	world_rewrite(w, &w->files[3], 31000);
	world_rewrite(w, &w->files[4], 32000);
	fsync_named(w, "synced");
	world_make(w, "fresh", 25000);
	world_make(w, "fresh-synced", 26000);
	fsync_named(w, "fresh-synced");
	world_rewrite(w, &w->files[5], 3500);
	NEED(world_lookup(w, "gone", &n) == 0);
	lock_take(&n->lock);
	pool_dooming(w->pool, n, true);
	NEED(unlinkat(w->store->root_fd, "gone.zst", 0) == 0);
	lock_drop(&n->lock);
	node_unref(w->tree, n);
	w->files[5].must_lack = w->files[5].may_lack = true;
}

static void prepare_killed(struct world *w)
{
	in_child(w, make_mixed);
	w->boot = &another_boot; /* that of the kill */
}

/* After a power cut: what was not synced may be old (R: distrust), and a clean scratch may be
 * torn: here one is. */
static void make_cut(struct world *w)
{
	struct content old[2];
	struct node *n;

	world_make(w, "clean", 20000);
	world_make(w, "rewritten", 30000);
	world_make(w, "synced", 30000);
	world_flush(w);
	old[0] = w->files[1].may[0];
	world_rewrite(w, &w->files[1], 31000);
	file_may_be(&w->files[1], old[0]);
	world_rewrite(w, &w->files[2], 32000);
	NEED(world_lookup(w, "synced", &n) == 0);
	NEED(pool_fsync(w->pool, n, false) == 0);
	NEED(pool_open_file(w->pool, n, POOL_WRITE) == 0);
	NEED(pwrite(scratch_fd(n), "tail beyond what was synced", 27, 32000) == 27);
	pool_close_file(w->pool, n, POOL_WRITE);
	node_unref(w->tree, n);
	world_make(w, "fresh", 25000);
	file_may_be(&w->files[3], (struct content){.len = 0});
	NEED(world_lookup(w, "clean", &n) == 0);
	NEED(pool_open_file(w->pool, n, POOL_READ) == 0);
	NEED(pwrite(scratch_fd(n), "torn", 4, 100) == 4);
	pool_close_file(w->pool, n, POOL_READ);
	node_unref(w->tree, n);
}

static void prepare_cut(struct world *w)
{
	in_child(w, make_cut);
	w->lost_allowed = 1000; /* what is not believed goes there */
}

/* ---- the catalog's own files: design, section 10: it degrades, and stops nothing ---- */

static errint_t act_create_row(struct world *w)
{
	errint_t r = act_create(w);

	catalog_commit(w->catalog);
	return r;
}

static errint_t act_flush_rows(struct world *w)
{
	errint_t r = act_flush(w);

	catalog_commit(w->catalog);
	return r;
}

/* ---- the table ---- */

struct operation {
	const char *name;
	void (*prepare)(struct world *w);
	errint_t (*act)(struct world *w);
	void (*after)(struct world *w); /* when the fault is gone; may be NULL */
	bool db;                        /* faults of SQLite's files, not of ours */
	unsigned share; /* in the short run: one fault in so many, if not 0 */
};

/* clang-format off */
static const struct operation operations[] = {
	{.name = "create", .prepare = prepare_nothing, .act = act_create},
	{.name = "read-cold", .prepare = prepare_cold, .act = act_read_cold},
	{.name = "write-cold", .prepare = prepare_cold_small, .act = act_write_cold},
	{.name = "truncate-open", .prepare = prepare_cold_small, .act = act_truncate_open},
	{.name = "truncate", .prepare = prepare_synced, .act = act_truncate},
	{.name = "fsync", .prepare = prepare_dirty, .act = act_fsync},
	{.name = "flush-new", .prepare = prepare_new, .act = act_flush},
	{.name = "flush-replace", .prepare = prepare_dirty, .act = act_flush},
	{.name = "flush-large", .prepare = prepare_large, .act = act_flush, .share = 2},
	{.name = "flush-many", .prepare = prepare_many, .act = act_flush, .share = 2},
	{.name = "append", .prepare = prepare_grown, .act = act_append},
	{.name = "append-tail", .prepare = prepare_tail, .act = act_append, .share = 2},
	{.name = "compact", .prepare = prepare_cold, .act = act_compact},
	{.name = "flush-linked", .prepare = prepare_linked, .act = act_flush, .after = after_linked},
	{.name = "flush-plain", .prepare = prepare_plain, .act = act_flush},
	{.name = "evict", .prepare = prepare_clean, .act = act_evict},
	{.name = "unlink", .prepare = prepare_dirty, .act = act_unlink},
	{.name = "verify", .prepare = prepare_clean, .act = act_verify},
	{.name = "drain", .prepare = prepare_dirty, .act = act_drain},
	{.name = "start", .prepare = prepare_closed, .act = act_start},
	{.name = "recover", .prepare = prepare_killed, .act = act_start, .share = 2},
	{.name = "recover-cut", .prepare = prepare_cut, .act = act_start, .share = 2},
	{.name = "db-create", .prepare = prepare_nothing, .act = act_create_row, .db = true},
	{.name = "db-flush", .prepare = prepare_many, .act = act_flush_rows, .db = true},
	{.name = "db-drain", .prepare = prepare_dirty, .act = act_drain, .db = true},
	{.name = "db-start", .prepare = prepare_closed, .act = act_start, .db = true},
	{.name = "db-recover", .prepare = prepare_killed, .act = act_start, .db = true},
};
/* clang-format on */

/* ---- the loop ---- */

static const struct {
	const char *name;
	int number;
} errors[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT},
              {"EMFILE", EMFILE}, {"ENOMEM", ENOMEM}, {"short", 0}};

/* What one operation's child tells its parent. */
struct tally {
	unsigned long tried, fired[ARRAY_LEN(errors)], failed, calls;
	unsigned violations;
	char op[32], spec[64], said[2000];
};

struct loop {
	const struct operation *op;
	struct tally *tally;
	unsigned descriptors;
	struct world w;
	bool soak;
	unsigned divisor;
};

static void remove_tree(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0)
		harness_empty_dir(fd);
}

static void run_zstd_test(struct world *w)
{
	char command[700];

	(void)snprintf(
	    command, sizeof(command),
	    "find '%s/store' -path '*/.cellar' -prune -o -name '*.zst' -print0 | "
	    "xargs -0r zstd -tq --",
	    w->dir);
	if (system(command) != 0)
		violation(w, "zstd -t does not like an object");
}

static void fresh_world(struct world *w)
{
	w->count = 0;
	w->lost_allowed = 0;
	w->boot = NULL;
	if (w->is_open)
		return;
	world_open(w);
}

/* Files of the last round go, so that the next one begins with an empty store. */
static void empty_store(struct world *w)
{
	char path[600];

	world_unwind(w);
	(void)snprintf(path, sizeof(path), "%s/store", w->dir);
	remove_tree(path);
	(void)snprintf(path, sizeof(path), "%s/pool", w->dir);
	remove_tree(path);
}

static bool is_expected(errint_t r, int number)
{
	/* EIO is also what "not everything was flushed" answers, and what damage is. */
	return r == 0 || r == -number || r == -EIO;
}

/* One fault; false when it did not fire. */
static bool try_fault(struct loop *l, const char *spec, int number)
{
	struct world *w = &l->w;
	unsigned before = w->violations;
	bool fired;
	errint_t r;

	(void)snprintf(l->tally->spec, sizeof(l->tally->spec), "%s", spec ? spec : "");
	(void)alarm(120);
	fresh_world(w);
	w->spec = NULL;
	l->op->prepare(w);
	w->spec = spec;
	w->call = NULL;
	NEED(fault_set(spec));
	r = l->op->act(w);
	fired = fault_fired();
	l->tally->tried++;
	l->tally->failed += r < 0;
	if (!fired && r < 0)
		violation(w, "failed without a fault: %s", strerror(-r));
	if (!is_expected(r, number))
		violation(w, "answers %s", strerror(-r));
	if (l->op->db && r < 0)
		violation(w, "a failing catalog stops nothing, and it answers %s",
		          strerror(-r));
	if (number == 0 && r < 0)
		violation(w, "a short transfer is no error, and it answers %s",
		          strerror(-r));
	w->call = fault_call_name(strtoul(strchr(spec, ':') + 1, NULL, 10));
	(void)snprintf(l->tally->spec, sizeof(l->tally->spec), "after %s", spec);
	(void)fault_set(NULL);
	if (!w->is_open)
		world_open(w);
	if (l->op->after)
		l->op->after(w);
	world_check(w);
	world_unwind(w);
	world_check_closed(w, l->descriptors);
	world_open(w);
	world_check(w);
	if (w->violations > before)
		run_zstd_test(w);
	empty_store(w);
	(void)alarm(0);
	return fired;
}

/* Which of the calls of one undisturbed run are made to fail in the short run: of each name
 * the first and the last few, and some in between; the others are like them. */
static bool is_chosen(struct loop *l, const char *const *names, unsigned long n,
                      unsigned long i)
{
	unsigned long before = 0, after = 0;

	if (l->soak)
		return true;
	for (unsigned long k = 0; k < n; k++) {
		if (names[k] == names[i]) {
			before += k < i;
			after += k > i;
		}
	}
	return (before < 10 || after < 6 || before % 61 == 0) &&
	       i % (MAX_OF(l->op->share, 1U) * l->divisor) == 0;
}

/* The names of the calls of one undisturbed run. */
static const char **learn_calls(struct loop *l, unsigned long *ret_n)
{
	struct world *w = &l->w;
	char spec[48];
	const char **names;
	errint_t r;

	(void)snprintf(spec, sizeof(spec), "%s:1000000000:EIO", (l->op->db ? "db" : "any"));
	fresh_world(w);
	l->op->prepare(w);
	NEED(fault_set(spec));
	r = l->op->act(w);
	*ret_n = fault_calls();
	names = calloc(*ret_n + 1, sizeof(*names));
	NEED(names && r == 0);
	for (unsigned long i = 0; i < *ret_n; i++)
		names[i] = fault_call_name(i + 1);
	(void)fault_set(NULL);
	if (!w->is_open)
		world_open(w);
	world_check(w);
	empty_store(w);
	return names;
}

static bool is_transfer(const char *name)
{
	return strcmp(name, "pread") == 0 || strcmp(name, "pwrite") == 0 ||
	       strcmp(name, "pwritev") == 0 || strcmp(name, "db_write") == 0;
}

/* All faults of one operation. */
static void run_loop(struct loop *l)
{
	unsigned long n, past = 0, shorts = 0;
	const char **names = learn_calls(l, &n);
	char spec[64];

	l->tally->calls = n;
	/* a few more than there were: retries and other threads make some */
	for (unsigned long i = 0; i < n || past == 0; i++) {
		bool any_fired = i < n;

		if (i < n && is_transfer(names[i]))
			shorts++;
		if (i < n && !is_chosen(l, names, n, i))
			continue;
		if (i > 4 * n + 100)
			break;
		for (size_t e = 0; e < ARRAY_LEN(errors); e++) {
			for (int always = 0; always < 2; always++) {
				bool is_short = errors[e].number == 0;
				unsigned long nth = is_short ? shorts : i + 1;

				/* the short run: one error once, another one always */
				if (!l->soak && !is_short &&
				    (i + (always ? 2 : 0)) % 5 != e)
					continue;
				if (is_short && (i >= n || !is_transfer(names[i])))
					continue;
				(void)snprintf(spec, sizeof(spec), "%s:%lu:%s%s",
				               (l->op->db ? "db" : "any"), nth,
				               errors[e].name, always ? ":always" : "");
				if (try_fault(l, spec, errors[e].number)) {
					l->tally->fired[e]++;
					any_fired = true;
				} else if (i >= n) {
					any_fired = false;
				}
			}
		}
		if (i >= n && !any_fired)
			past++;
	}
	free(names);
}

static bool make_place(char *ret, size_t size)
{
	const char *base = getenv("TMPDIR");
	char probe[600];
	int fd;
	bool ok;

	/* Faults need no disk, and memory is a hundred times faster: where it has user xattrs
	 * (Linux 6.6). */
	(void)snprintf(ret, size, "/dev/shm/cellar-fault-XXXXXX");
	if (mkdtemp(ret)) {
		(void)snprintf(probe, sizeof(probe), "%s/x", ret);
		fd = open(probe, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
		ok = fd >= 0 && fsetxattr(fd, "user.x", "x", 1, 0) == 0;
		if (fd >= 0)
			(void)close(fd);
		(void)unlink(probe);
		if (ok)
			return true;
		(void)rmdir(ret);
	}
	(void)snprintf(ret, size, "%s/cellar-fault-XXXXXX",
	               base && *base == '/' ? base : "/var/tmp");
	return mkdtemp(ret) != NULL;
}

static void on_alarm(int sig)
{
	static const char text[] = "HANG\n";

	(void)sig;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	abort();
}

static void loop_init(struct loop *l, const struct operation *op, struct tally *tally)
{
	const char *soak = getenv("CELLAR_TEST_SOAK");

	memset(l, 0, sizeof(*l));
	l->op = op;
	l->tally = tally;
	l->soak = soak && *soak && strcmp(soak, "0") != 0;
	l->divisor = 1;
#if defined(__SANITIZE_ADDRESS__)
	l->divisor = 11;
#elif defined(__SANITIZE_THREAD__)
	l->divisor = 97;
#endif
	l->w.op = op->name;
	(void)snprintf(tally->op, sizeof(tally->op), "%s", op->name);
	NEED(make_place(l->w.dir, sizeof(l->w.dir)));
	options_init(&l->w.o);
	l->w.o.writeback_delay = 3600 * 1000; /* flushes only when asked */
	l->w.o.pool_size = 1ULL << 30;
	l->w.o.sync_interval = 3600 * 1000;
	l->w.o.flushers = 1;
	l->w.o.frame_size = FRAME;
	log_set_level(LOG_LEVEL_ERR - 1);
	(void)signal(SIGALRM, on_alarm);
	l->descriptors = count_descriptors();
}

static void loop_end(struct loop *l)
{
	world_unwind(&l->w);
	remove_tree(l->w.dir);
	(void)rmdir(l->w.dir);
	options_clear(&l->w.o);
	l->tally->violations = l->w.violations;
	memcpy(l->tally->said, l->w.said, sizeof(l->tally->said));
}

static void run_operation(const struct operation *op, struct tally *tally)
{
	struct loop l;

	loop_init(&l, op, tally);
	run_loop(&l);
	loop_end(&l);
}

/* ---- as a test ---- */

static void print_tally(const struct tally *t, double seconds)
{
	(void)printf("%-14s %5lu calls, %5lu tried, %5lu failed, fired:", t->op, t->calls,
	             t->tried, t->failed);
	for (size_t e = 0; e < ARRAY_LEN(errors); e++)
		(void)printf(" %s %lu", errors[e].name, t->fired[e]);
	(void)printf("; %u violations, %.1f s\n", t->violations, seconds);
	(void)fflush(stdout);
}

static void test_operation(void **state)
{
	const struct operation *op = *state;
	struct tally *t = mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE,
	                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct timespec from, to;
	int status;
	pid_t pid;

	assert_true(t != MAP_FAILED);
	(void)clock_gettime(CLOCK_MONOTONIC, &from);
	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)signal(SIGABRT, SIG_DFL);
		run_operation(op, t);
		exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	(void)clock_gettime(CLOCK_MONOTONIC, &to);
	print_tally(t, (double)(to.tv_sec - from.tv_sec) +
	                   (double)(to.tv_nsec - from.tv_nsec) / 1e9);
	if (status != 0)
		fail_msg("%s: wait status 0x%x at %s", op->name, status, t->spec);
	if (t->violations > 0)
		fail_msg("%u violations\n%s", t->violations, t->said);
	assert_true(t->tried > 0);
	(void)munmap(t, sizeof(*t));
}

static void test_no_faults(void **state)
{
	(void)state;
	print_message("faults need --enable-developer\n");
	skip();
}

static int run_one(const char *name, const char *spec)
{
	struct tally t = {.tried = 0};
	struct loop l;

	for (size_t i = 0; i < ARRAY_LEN(operations); i++) {
		if (strcmp(operations[i].name, name) != 0)
			continue;
		loop_init(&l, &operations[i], &t);
		log_set_level(LOG_LEVEL_INFO);
		if (spec)
			(void)printf("%s\n",
			             try_fault(&l, spec, EIO) ? "fired" : "not fired");
		else
			run_loop(&l);
		loop_end(&l);
		print_tally(&t, 0);
		return t.violations > 0;
	}
	(void)fprintf(stderr, "no such operation: %s\n", name);
	return 2;
}

/* The part of the operations that this run is for; false where the variable is none. */
static bool get_part(size_t *ret_first, size_t *ret_step)
{
	const char *part = getenv("CELLAR_TEST_PART");
	unsigned first = 0, step = 1;
	char rest;

	if (part && sscanf(part, "%u/%u%c", &first, &step, &rest) != 2)
		return false;
	*ret_first = first;
	*ret_step = step;
	return first < step && step <= ARRAY_LEN(operations);
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[ARRAY_LEN(operations)];
	size_t first, step, n = 0;
	struct CMUnitTest none[] = {cmocka_unit_test(test_no_faults)};

	if (argc > 1)
		return run_one(argv[1], argc > 2 ? argv[2] : NULL);
	if (!fault_set("any:1:EIO"))
		return cmocka_run_group_tests_name("test-fault-ops", none, NULL, NULL);
	(void)fault_set(NULL);
	if (!get_part(&first, &step)) {
		(void)fprintf(stderr, "CELLAR_TEST_PART must be K/N, K below N\n");
		return 2;
	}
	for (size_t i = first; i < ARRAY_LEN(operations); i += step) {
		tests[n++] = (struct CMUnitTest){
		    .name = operations[i].name,
		    .test_func = test_operation,
		    .initial_state = (void *)(uintptr_t)&operations[i],
		};
	}
	return _cmocka_run_group_tests("test-fault-ops", tests, n, NULL, NULL);
}
