/*
 * A whole pool over a whole store without a mount, for tests: opened, used the way mount/ does,
 * closed, or left as a killed daemon leaves it (run in a child that ends by _exit).
 *
 * fx_ calls end the process with a sentence when something fails that must not, so that they
 * serve in children too.
 */
#ifndef CELLAR_TESTS_UNIT_POOL_FIXTURE_H
#define CELLAR_TESTS_UNIT_POOL_FIXTURE_H

#include "harness.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/sysio.h"
#include "pool/internal.h"
#include "pool/pool.h"

#define FX_CHECK(cond)                                                                     \
	do {                                                                               \
		if (!(cond)) {                                                             \
			(void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__,   \
			              #cond);                                              \
			_exit(99);                                                         \
		}                                                                          \
	} while (0)

struct fixture {
	struct options o;
	struct store *store;
	struct catalog *catalog;
	struct tree *tree;
	struct pool *pool;
	char *cause;
};

static inline errint_t fx_try_open(struct fixture *f, const char *dir)
{
	char *store = xasprintf("%s/store", dir), *path = xasprintf("%s/pool", dir);
	struct pool_place place;
	struct uuid remembered;
	bool rebuilt;
	errint_t r = store_open(store, STORE_CREATE, &f->store, NULL, &f->cause);

	FX_CHECK(r == 0);
	FX_CHECK(store_get_pool(f->store, &remembered, &f->cause) == 0);
	r = pool_place_open(path, &f->store->uuid, &remembered, f->o.new_pool, &place, NULL,
	                    &f->cause);
	if (r == 0) {
		FX_CHECK(store_set_pool(f->store, &place.uuid, &f->cause) == 0);
		FX_CHECK(catalog_open(place.dirfd, place.path, &place.uuid, &f->catalog,
		                      &rebuilt, &f->cause) == 0);
		FX_CHECK(tree_open(f->store, f->catalog, &place.uuid, false,
		                   f->o.max_object, &f->tree, &f->cause) == 0);
		r = pool_new(&place, f->tree, &f->o, &f->pool, &f->cause);
		FX_CHECK(r == 0);
		FX_CHECK(store_finish_intents(f->store, &f->cause) == 0);
		r = pool_recover(f->pool, &f->cause);
	}
	free(store);
	free(path);
	return r;
}

/* start: flushers and housekeeping run too. */
static inline void fx_open(struct fixture *f, const char *dir, bool start)
{
	errint_t r = fx_try_open(f, dir);

	if (r < 0)
		(void)fprintf(stderr, "%s\n", f->cause ? f->cause : strerror(-r));
	FX_CHECK(r == 0);
	if (start)
		FX_CHECK(pool_start(f->pool) == 0);
}

static inline void fx_options(struct fixture *f)
{
	memset(f, 0, sizeof(*f));
	options_init(&f->o);
	f->o.writeback_delay = 3600 * 1000; /* flushes only when asked */
	f->o.pool_size = 1ULL << 30;
	f->o.sync_interval = 3600 * 1000;
	log_set_level(LOG_LEVEL_ERR);
}

static inline void fx_close(struct fixture *f)
{
	pool_close(f->pool);
	tree_close(f->tree);
	catalog_close(f->catalog);
	store_close(f->store);
	free(f->cause);
	options_clear(&f->o);
}

static inline struct node *fx_lookup(struct fixture *f, const char *name)
{
	struct node *n = NULL;
	struct stat st;
	errint_t r;

	rmlock_rd(&f->tree->ns);
	r = resolve_name(f->tree, f->tree->root, name, &n, &st);
	rmlock_drop(&f->tree->ns);
	return r == 0 ? n : NULL;
}

/* As CREATE does, at the root; open for writing on return. */
static inline struct node *fx_create(struct fixture *f, const char *name)
{
	struct new_scratch *ns;
	struct name stored;
	struct ident ident;
	struct node *n;
	uint64_t ino;
	int fd;

	FX_CHECK(name_encode(name, true, &stored) == 0);
	FX_CHECK(store_new_ino(f->store, &ino) == 0);
	FX_CHECK(pool_prepare_new(f->pool, ino, stored.s, &ns) == 0);
	fd = sys_openat(f->store->root_fd, stored.s, O_CREAT | O_EXCL | O_WRONLY, 0644);
	FX_CHECK(fd >= 0);
	(void)sys_close(fd);
	FX_CHECK(ident_get(f->store->root_fd, stored.s, &ident) == 0);
	n = tree_adopt(f->tree, f->tree->root, stored.s, &ident, ino, S_IFREG);
	FX_CHECK(pool_attach_new(f->pool, ns, n, POOL_READ | POOL_WRITE) == 0);
	return n;
}

static inline void fx_pwrite(struct fixture *f, struct node *n, const void *data,
                             size_t len, uint64_t off)
{
	ssize_t w;

	FX_CHECK(scratch_write_begin(f->pool, n, off, len, true) == 0);
	w = pwrite(scratch_fd(n), data, len, (off_t)off);
	scratch_write_end(f->pool, n, off, w);
	FX_CHECK(w == (ssize_t)len);
}

/* Creates, writes, closes. */
static inline struct node *fx_make(struct fixture *f, const char *name, const void *data,
                                   size_t len)
{
	struct node *n = fx_create(f, name);

	fx_pwrite(f, n, data, len, 0);
	pool_close_file(f->pool, n, POOL_READ | POOL_WRITE);
	return n;
}

/* The bytes seen through the pool; malloc'ed. */
static inline char *fx_read(struct fixture *f, struct node *n, size_t *ret_len)
{
	char *data;

	FX_CHECK(pool_open_file(f->pool, n, POOL_READ) == 0);
	FX_CHECK(scratch_hydrate(f->pool, n, 0, UINT64_MAX) == 0);
	data = harness_read_fd(scratch_fd(n), ret_len);
	pool_close_file(f->pool, n, POOL_READ);
	return data;
}

static inline bool fx_holds(struct fixture *f, struct node *n, const void *data, size_t len)
{
	size_t got;
	char *text = fx_read(f, n, &got);
	bool same = got == len && memcmp(text, data, len) == 0;

	free(text);
	return same;
}

static inline errint_t collect_sink(void *ctx, uint64_t off, const void *data, size_t len)
{
	FX_CHECK(fwrite(data, 1, len, ctx) == len);
	return 0;
}

/* Whether the object of that store name decodes to exactly this. */
static inline bool fx_object_is(struct fixture *f, const char *stored, const void *data,
                                size_t len)
{
	int fd = sys_openat(f->store->root_fd, stored, O_RDONLY, 0);
	struct object object;
	char *text = NULL;
	size_t got = 0;
	bool same;
	FILE *out = open_memstream(&text, &got);

	FX_CHECK(out != NULL);
	if (fd < 0)
		return false;
	FX_CHECK(object_open(fd, &object, NULL) == 0);
	same = object.kind != OBJECT_EMPTY &&
	       object_decode_all(&object, UINT64_MAX, collect_sink, out, NULL) == 0;
	(void)fclose(out);
	same = same && got == len && memcmp(text, data, len) == 0;
	free(text);
	object_close(&object);
	(void)close(fd);
	return same;
}

static inline struct node_state fx_state(struct fixture *f, struct node *n)
{
	struct node_state s;

	pool_node_state(f->pool, n, &s);
	return s;
}

static inline void fx_flush(struct fixture *f)
{
	FX_CHECK(pool_flush(f->pool, NULL, 60000, NULL, NULL, NULL) == 0);
}

#endif
