/*
 * A cellar without a mount for the fault loops: store, catalog, tree and pool opened the way
 * the daemon does, with every error handed back; and a model of what the files must hold.
 *
 * A file of the model has the contents that it may have now (one, or old and new after an
 * operation that said it failed). world_check() is what must hold once no fault is armed any
 * more; each thing that does not is a violation, printed with what had been armed.
 *
 * Data: seeded text or noise, made again for each comparison.
 */
#ifndef CELLAR_TESTS_FAULT_WORLD_H
#define CELLAR_TESTS_FAULT_WORLD_H

#include "../unit/harness.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/sysio.h"
#include "base/text.h"
#include "pool/internal.h"
#include "pool/pool.h"
#include "store/attrs.h"
#include "upkeep/verify.h"

#define FILES_MAX    12
#define CONTENTS_MAX 4
#define FLUSH_MS     20000

/* Text of a seed, of which the first `head` bytes are of another one. */
struct content {
	uint64_t seed, head_seed;
	size_t len, head;
};

struct file {
	char name[64]; /* logical; "" : none */
	char object[72];
	struct content may[CONTENTS_MAX];
	unsigned count;
	bool may_lack; /* it need not exist */
	bool must_lack;
	bool
	    unborn; /* could be neither made nor taken back: empty from the first look on */
	uint64_t ino; /* 0: any */
};

struct world {
	char dir[512];
	struct options o;
	struct store *store;
	struct pool_place place;
	bool has_place;
	struct catalog *catalog;
	struct tree *tree;
	struct pool *pool;
	bool is_open;
	const struct uuid *boot; /* what the boot id is to be; NULL: this machine's */
	struct file files[FILES_MAX];
	unsigned count;
	uint64_t next_seed;
	unsigned lost_allowed; /* entries of lost+found that are right */
	/* the operation's own between prepare and act */
	struct node *node;
	/* what is being tried, for messages */
	const char *op, *spec, *call;
	unsigned violations;
	char said[2000]; /* of them, as much as fits */
};

__attribute__((format(printf, 2, 3))) static inline void violation(struct world *w,
                                                                   const char *fmt, ...)
{
	size_t used = strlen(w->said);
	char what[300], line[600];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	w->violations++;
	(void)snprintf(line, sizeof(line), "VIOLATION %s, %s (%s): %s\n", w->op,
	               w->spec ? w->spec : "-", w->call ? w->call : "while it lasts", what);
	(void)snprintf(w->said + used, sizeof(w->said) - used, "%s", line);
	(void)fputs(line, stderr);
}

/* What the harness itself needs: no fault is armed then. */
#define NEED(cond)                                                                         \
	do {                                                                               \
		if (!(cond)) {                                                             \
			(void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__,   \
			              #cond);                                              \
			_exit(98);                                                         \
		}                                                                          \
	} while (0)

/* ---- contents ---- */

/* harness_fill_text() for the first KiB, then that again and again with a number in it. */
static inline void fill(char *data, size_t len, uint64_t seed)
{
	const size_t block = 1024;

	harness_fill_text(data, MIN_OF(len, block), seed);
	for (size_t at = block; at < len; at += block) {
		size_t n = MIN_OF(len - at, block);
		uint64_t number = seed * 1000003 + at;

		memcpy(data + at, data, n);
		for (size_t i = 0; i < MIN_OF(n, (size_t)400); i += 40, number /= 3)
			data[at + i] = (char)('a' + number % 26);
	}
}

static inline char *content_make(const struct content *c)
{
	char *data = malloc(c->len + 1);

	NEED(data);
	fill(data, c->len, c->seed);
	if (c->head)
		fill(data, MIN_OF(c->head, c->len), c->head_seed);
	return data;
}

static inline bool content_is(const struct content *c, const char *data, size_t len)
{
	char *want;
	bool same;

	if (c->len != len)
		return false;
	want = content_make(c);
	same = memcmp(want, data, len) == 0;
	free(want);
	return same;
}

static inline struct content world_new_content(struct world *w, size_t len)
{
	return (struct content){.seed = ++w->next_seed, .len = len};
}

/* ---- opening and closing, as cellard/daemon.c ---- */

static inline void world_unwind(struct world *w)
{
	if (w->pool)
		pool_close(w->pool);
	if (w->tree)
		tree_close(w->tree);
	if (w->catalog)
		catalog_close(w->catalog);
	if (w->has_place)
		pool_place_close(&w->place);
	if (w->store)
		store_close(w->store);
	w->pool = NULL;
	w->tree = NULL;
	w->catalog = NULL;
	w->has_place = false;
	w->store = NULL;
	w->is_open = false;
}

static inline errint_t world_open_layers(struct world *w, char **cause)
{
	char store[600], pool[600];
	struct uuid known;
	bool rebuilt;
	errint_t r;

	(void)snprintf(store, sizeof(store), "%s/store", w->dir);
	(void)snprintf(pool, sizeof(pool), "%s/pool", w->dir);
	r = store_open(store, STORE_CREATE, &w->store, NULL, cause);
	if (r == 0)
		r = store_get_pool(w->store, &known, cause);
	if (r == 0)
		r = pool_place_open(pool, &w->store->uuid, &known, false, &w->place, NULL,
		                    cause);
	w->has_place = r == 0;
	if (r == 0 && !uuid_equal(&known, &w->place.uuid))
		r = store_set_pool(w->store, &w->place.uuid, cause);
	if (r == 0)
		r = catalog_open(w->place.dirfd, w->place.path, &w->place.uuid, &w->catalog,
		                 &rebuilt, cause);
	if (r == 0)
		r = tree_open(w->store, w->catalog, &w->place.uuid, false, w->o.max_object,
		              &w->tree, cause);
	if (r == 0)
		r = pool_new(&w->place, w->tree, &w->o, &w->pool, cause);
	if (r < 0)
		return r;
	w->has_place = false;
	if (w->boot)
		w->pool->boot = *w->boot;
	r = store_finish_intents(w->store, cause);
	if (r == 0)
		r = pool_recover(w->pool, cause);
	if (r == 0) {
		r = pool_start(w->pool);
		if (r < 0)
			set_cause_errno(cause, r, "cannot start the flushers");
	}
	return r;
}

/* An error must come with a sentence. */
static inline errint_t world_try_open(struct world *w)
{
	char *cause = NULL;
	errint_t r = world_open_layers(w, &cause);

	w->is_open = r == 0;
	if (r < 0) {
		if (!cause)
			violation(w, "the start failed with %s and no cause", strerror(-r));
		world_unwind(w);
	}
	free(cause);
	return r;
}

static inline void world_open(struct world *w)
{
	char *cause = NULL;
	errint_t r = world_open_layers(w, &cause);

	w->is_open = r == 0;
	if (r < 0) {
		violation(w, "does not start without a fault: %s",
		          cause ? cause : strerror(-r));
		exit(1);
	}
	free(cause);
}

/* ---- files ---- */

static inline struct file *world_add(struct world *w, const char *name)
{
	struct file *f = &w->files[w->count++];

	NEED(w->count <= FILES_MAX);
	memset(f, 0, sizeof(*f));
	(void)snprintf(f->name, sizeof(f->name), "%s", name);
	(void)snprintf(f->object, sizeof(f->object), "%s.zst", name);
	return f;
}

static inline void file_is(struct file *f, struct content c)
{
	f->may[0] = c;
	f->count = 1;
	f->may_lack = f->must_lack = false;
}

static inline void file_may_be(struct file *f, struct content c)
{
	f->may[f->count++] = c;
	NEED(f->count <= CONTENTS_MAX);
}

/* As LOOKUP does; names may have directories in them. */
static inline errint_t world_lookup(struct world *w, const char *path, struct node **ret)
{
	struct tree *t = w->tree;
	struct node *dir = t->root, *n = NULL;
	char part[64];
	struct stat st;
	errint_t r = 0;

	node_ref(t, dir);
	rmlock_rd(&t->ns);
	while (r == 0 && *path) {
		size_t len = strcspn(path, "/");

		(void)snprintf(part, sizeof(part), "%.*s", (int)len, path);
		path += len + (path[len] == '/');
		r = resolve_name(t, dir, part, &n, &st);
		node_unref(t, dir);
		dir = r == 0 ? n : NULL;
	}
	rmlock_drop(&t->ns);
	if (r < 0 && dir)
		node_unref(t, dir);
	*ret = r == 0 ? dir : NULL;
	return r;
}

/* pwrite as the mount does it; returns what was written before an error, which goes to
 * *ret_err. */
static inline size_t world_pwrite(struct world *w, struct node *n, const char *data,
                                  size_t len, uint64_t off, errint_t *ret_err)
{
	size_t done = 0;
	ssize_t k = 0;

	*ret_err = scratch_ready(n, off, len);
	if (*ret_err == -EAGAIN)
		*ret_err = scratch_hydrate(w->pool, n, off, len);
	if (*ret_err == 0)
		*ret_err = scratch_write_begin(w->pool, n, off, len, true);
	if (*ret_err < 0)
		return 0;
	while (done < len) {
		k = sys_pwrite(scratch_fd(n), data + done, len - done, (off_t)(off + done));
		if (k <= 0)
			break;
		done += (size_t)k;
	}
	scratch_write_end(w->pool, n, off, done ? (ssize_t)done : k);
	*ret_err = k < 0 && !done ? (errint_t)k : 0;
	return done;
}

/* As CREATE does, at the root (mount/ops-file.c). */
static inline errint_t world_create(struct world *w, const char *object, struct node **ret)
{
	struct new_scratch *ns;
	struct ident ident;
	struct stat st;
	struct node *n;
	uint64_t ino;
	errint_t r = store_new_ino(w->store, &ino);
	int fd;

	if (r == 0)
		r = pool_prepare_new(w->pool, ino, object, &ns);
	if (r < 0)
		return r;
	fd = sys_openat(w->store->root_fd, object, O_CREAT | O_EXCL | O_WRONLY, 0644);
	if (fd < 0) {
		pool_abandon_new(w->pool, ns);
		return fd;
	}
	(void)attrs_mark_new(fd, &w->tree->pool);
	r = sys_fstat(fd, &st);
	if (r == 0)
		r = ident_get(w->store->root_fd, object, &ident);
	if (r == 0) {
		n = tree_adopt(w->tree, w->tree->root, object, &ident, ino, S_IFREG);
		NEED(n->ino == ino);
		r = pool_attach_new(w->pool, ns, n, POOL_READ | POOL_WRITE);
		if (r < 0) {
			catalog_file_delete(w->catalog, &ident);
			node_remove_name(w->tree, n, w->tree->root, object);
			node_unref(w->tree, n);
		}
	}
	if (r < 0 && sys_unlinkat(w->store->root_fd, object, 0) < 0) {
		pool_keep_new(w->pool, ns, fd);
		return r;
	}
	(void)sys_close(fd);
	if (r == 0)
		*ret = n;
	else
		pool_abandon_new(w->pool, ns);
	return r;
}

static inline bool world_has(struct world *w, const char *object)
{
	struct stat st;

	return fstatat(w->store->root_fd, object, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Whole content in three writes, as far as it goes; *f says what it must hold. */
static inline errint_t world_fill(struct world *w, struct node *n, struct file *f,
                                  struct content c)
{
	char *data = content_make(&c);
	size_t third = c.len / 3 + 1, done = 0, want = 0;
	errint_t r = 0;

	while (r == 0 && done == want && done < c.len) {
		want = MIN_OF(done + third, c.len);
		done += world_pwrite(w, n, data + done, want - done, done, &r);
	}
	c.len = done;
	file_is(f, c);
	free(data);
	return r;
}

/* Without faults: a file with this content, dirty and closed; known by its number. */
static inline struct file *world_make(struct world *w, const char *name, size_t len)
{
	struct file *f = world_add(w, name);
	struct node *n;

	NEED(world_create(w, f->object, &n) == 0);
	NEED(world_fill(w, n, f, world_new_content(w, len)) == 0);
	f->ino = n->ino;
	pool_close_file(w->pool, n, POOL_READ | POOL_WRITE);
	node_unref(w->tree, n);
	return f;
}

/* Without faults: other content in an existing file, dirty and closed. */
static inline void world_rewrite(struct world *w, struct file *f, size_t len)
{
	struct node *n;

	NEED(world_lookup(w, f->name, &n) == 0);
	NEED(pool_open_file(w->pool, n, POOL_WRITE | POOL_TRUNC) == 0);
	NEED(world_fill(w, n, f, world_new_content(w, len)) == 0);
	pool_close_file(w->pool, n, POOL_WRITE | POOL_TRUNC);
	node_unref(w->tree, n);
}

static inline void world_flush(struct world *w)
{
	NEED(pool_flush(w->pool, NULL, FLUSH_MS, NULL, NULL, NULL) == 0);
}

static inline void world_cool(struct world *w, struct file *f)
{
	struct node *n;

	world_flush(w);
	NEED(world_lookup(w, f->name, &n) == 0);
	NEED(pool_evict(w->pool, n) == 0);
	node_unref(w->tree, n);
}

/* ---- what must hold ---- */

static inline void check_content(struct world *w, struct file *f, const char *data,
                                 size_t len, const char *where)
{
	for (unsigned i = 0; i < f->count; i++) {
		if (content_is(&f->may[i], data, len)) {
			file_is(f, f->may[i]);
			return;
		}
	}
	violation(w, "\"%s\" holds wrong bytes %s (%zu of them, want %zu)", f->name, where,
	          len, f->count ? f->may[0].len : (size_t)0);
}

static inline void check_seen(struct world *w, struct file *f)
{
	struct node *n;
	errint_t r = world_lookup(w, f->name, &n);
	char *data;
	size_t len;

	if (r == -ENOENT && f->may_lack) {
		f->must_lack = true;
		return;
	}
	if (r < 0) {
		violation(w, "\"%s\" cannot be looked up: %s", f->name, strerror(-r));
		return;
	}
	if (f->must_lack)
		violation(w, "\"%s\" is there again", f->name);
	f->may_lack = false;
	if (f->ino && n->ino != f->ino)
		violation(w, "\"%s\" has number %llu instead of %llu", f->name,
		          (unsigned long long)n->ino, (unsigned long long)f->ino);
	r = pool_open_file(w->pool, n, POOL_READ);
	if (r == 0) {
		r = scratch_hydrate(w->pool, n, 0, UINT64_MAX);
		if (r == 0) {
			data = harness_read_fd(scratch_fd(n), &len);
			check_content(w, f, data, len, "through the pool");
			free(data);
		}
		pool_close_file(w->pool, n, POOL_READ);
	}
	if (r < 0)
		violation(w, "\"%s\" cannot be read: %s", f->name, strerror(-r));
	node_unref(w->tree, n);
}

static inline errint_t append_piece(void *ctx, uint64_t off, const void *data, size_t len)
{
	NEED(fwrite(data, 1, len, ctx) == len);
	return 0;
}

static inline void check_object(struct world *w, struct file *f)
{
	int fd = openat(w->store->root_fd, f->object, O_RDONLY | O_CLOEXEC);
	struct object object;
	char *data = NULL;
	size_t len = 0;
	errint_t r = fd < 0 ? -errno : object_open(fd, &object, NULL);
	FILE *out;

	if (r == 0) {
		out = open_memstream(&data, &len);
		NEED(out);
		r = object.kind == OBJECT_EMPTY || object.kind == OBJECT_PLAIN
		        ? -EUCLEAN
		        : object_decode_all(&object, UINT64_MAX, append_piece, out, NULL);
		object_close(&object);
		(void)fclose(out);
	}
	if (fd >= 0)
		(void)close(fd);
	if (r < 0)
		violation(w, "the object of \"%s\" does not decode: %s", f->name,
		          strerror(-r));
	else
		check_content(w, f, data, len, "in the store");
	free(data);
}

static inline void say_damaged(void *ctx, const char *path,
                               const struct verify_result *result)
{
	if (result->error)
		violation(ctx, "verify: %s: %s", path, result->error);
}

struct stray_walk {
	struct world *w;
	const char *where;
	unsigned count;
};

static inline errint_t count_stray(void *ctx, const char *name, unsigned char type)
{
	struct stray_walk *s = ctx;

	(void)type;
	if (strcmp(s->where, "store") != 0 || strstr(name, ".cellar-conflict-"))
		s->count++;
	return 0;
}

static inline unsigned count_strays(struct world *w, int dirfd, const char *where)
{
	struct stray_walk s = {w, where, 0};

	NEED(sys_walk_dir(dirfd, count_stray, &s) == 0);
	return s.count;
}

static inline void say_unflushed(void *ctx, const char *path, const char *error)
{
	violation(ctx, "with the fault gone \"%s\" is not flushed: %s", path, error);
}

/* With no fault armed and the world open: everything flushes, and all is as the model has
 * it, in the pool and in the store. */
static inline void world_check(struct world *w)
{
	struct verify_totals totals;
	char *cause = NULL;
	errint_t r;

	for (unsigned i = 0; i < w->count; i++) {
		if (w->files[i].unborn)
			check_seen(w, &w->files[i]);
		w->files[i].unborn = false;
	}
	r = pool_flush(w->pool, NULL, FLUSH_MS, NULL, NULL, NULL);
	/* A flush that was under way when the fault was lifted may have met it. */
	if (r == -EIO)
		r = pool_flush(w->pool, NULL, FLUSH_MS, NULL, say_unflushed, w);
	if (r < 0 && r != -EIO)
		violation(w, "with the fault gone a flush answers %s", strerror(-r));
	for (unsigned i = 0; i < w->count; i++) {
		struct file *f = &w->files[i];

		check_seen(w, f);
		if (!f->must_lack)
			check_object(w, f);
	}
	r = verify_tree(w->store, "", UINT64_MAX, NULL, say_damaged, w, NULL, &totals,
	                &cause);
	if (r < 0)
		violation(w, "verify: %s", cause ? cause : strerror(-r));
	free(cause);
	if (count_strays(w, w->store->root_fd, "store"))
		violation(w, "there is a conflict file, and nobody else touched the store");
	if (count_strays(w, w->pool->lost_fd, "lost+found") > w->lost_allowed)
		violation(w, "something went to lost+found");
}

static inline unsigned count_descriptors(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");

	NEED(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

/* Nothing of an ended run is left but what the store's objects are. */
static inline void world_check_closed(struct world *w, unsigned descriptors)
{
	unsigned now = count_descriptors();

	if (now != descriptors)
		violation(w, "%u descriptors are open after the end instead of %u", now,
		          descriptors);
}

#endif
