/*
 * The pool as a whole: opening and closing it, what the admin asks of it, and the figures it
 * tells. See pool.h for words and layout, src/README for the tour of the files beside this one.
 */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/content.h"
#include "pool/internal.h"
#include "pool/readahead.h"
#include "pool/shards.h"
#include "pool/trust.h"
#include "store/private.h"

#include "utlist.h"

#define AUTO_MIN       (256ULL << 20)
#define AUTO_MAX       (20ULL << 30)
#define FD_RESERVE     512 /* store, catalog, sockets, directory cache, flushers */
#define SHARED_IDLE_MS 3600000ULL
#define OWN_IDLE_MS    86400000ULL

/* ---- opening ---- */

/* A directory of our own in one of our own, never by way of a link: what it holds is moved,
 * deleted and served. */
static errint_t make_dir(struct pool *p, int dirfd, const char *name, int *ret_fd,
                         char **cause)
{
	cleanup_free char *shown = xasprintf("%s/%s", p->place.path, name);
	errint_t r = sys_mkdirat(dirfd, name, 0700);

	if (r < 0 && r != -EEXIST)
		return r;
	*ret_fd = sys_openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
	if (*ret_fd == -ENOTDIR || *ret_fd == -ELOOP)
		return set_cause(cause, -ENOTDIR, "\"%s\" is not a directory", shown);
	return *ret_fd < 0 ? *ret_fd : private_check_dir(*ret_fd, shown, true, cause);
}

static void choose_sizes(struct pool *p, const struct options *o)
{
	struct statfs pool_fs;
	struct rlimit lim = {.rlim_cur = 1024};
	struct stat a, b;
	uint64_t disk = 0;

	if (sys_fstatfs(p->scratch_fd, &pool_fs) == 0)
		disk = (uint64_t)pool_fs.f_blocks * (uint64_t)pool_fs.f_bsize;
	p->limit_bytes = o->pool_size;
	if (o->pool_size == OPTION_AUTO)
		p->limit_bytes = MIN_OF(MAX_OF(disk / 10, AUTO_MIN), AUTO_MAX);
	p->max_idle_ms = o->max_idle;
	if (o->max_idle == OPTION_AUTO) {
		bool shared = sys_fstat(p->scratch_fd, &a) == 0 &&
		              sys_fstat(p->store->root_fd, &b) == 0 && a.st_dev == b.st_dev;

		p->max_idle_ms = shared ? SHARED_IDLE_MS : OWN_IDLE_MS;
	}
	(void)getrlimit(RLIMIT_NOFILE, &lim);
	p->max_open =
	    lim.rlim_cur > 2 * FD_RESERVE ? lim.rlim_cur - FD_RESERVE : lim.rlim_cur / 2;
	if (o->max_open > 0)
		p->max_open = MIN_OF(p->max_open, (uint64_t)o->max_open);
}

errint_t pool_new(struct pool_place *place, struct tree *tree, const struct options *o,
                  struct pool **ret, char **cause)
{
	struct pool *p = xcalloc(1, sizeof(*p));
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	errint_t r;

	p->place = *place;
	p->scratch_fd = p->lost_fd = p->trust.dirfd = -1;
	p->tree = tree;
	p->store = tree->store;
	p->catalog = tree->catalog;
	p->boot = clock_boot_id();
	p->eager_size = o->eager_size;
	p->max_object = o->max_object;
	p->writeback_ms = o->writeback_delay;
	p->sync_ms = o->sync_interval;
	p->dirty_age_ms = o->max_dirty_age;
	p->flusher_count = (unsigned)o->flushers;
	p->decode_threads = cpus > 0 ? (unsigned)MIN_OF(cpus, 16) : 1;
	p->frame_size = (uint32_t)o->frame_size;
	p->level = (int)o->level;
	p->append_min = o->append_min;
	p->flush_nice = (int)o->flush_nice;
	p->flush_ioprio = (int)o->flush_ioprio;
	lock_init(&p->lock, LOCK_POOL);
	lock_init(&p->seen_lock, LOCK_LEAF);
	lock_init(&p->trust_lock, LOCK_LEAF);
	lock_init(&p->damage_lock, LOCK_LEAF);
	lock_init(&p->unborn_lock, LOCK_LEAF);
	lock_init(&p->shards_lock, LOCK_LEAF);
	p->shards_made = 1;
	lock_cond_init(&p->work);
	lock_cond_init(&p->progress);
	lock_cond_init(&p->house);
	readahead_new(p);
	r = make_dir(p, p->place.dirfd, "scratch", &p->scratch_fd, cause);
	if (r == 0)
		r = make_dir(p, p->place.dirfd, "lost+found", &p->lost_fd, cause);
	if (r == 0)
		r = shards_check(p, cause);
	if (r < 0) {
		set_cause_errno(cause, r, "cannot set up the pool \"%s\"", place->path);
		p->place.dirfd = p->place.lock_fd = -1; /* stay the caller's */
		p->place.path = NULL;
		pool_close(p);
		return r;
	}
	choose_sizes(p, o);
	place->dirfd = place->lock_fd = -1;
	place->path = NULL;
	*ret = p;
	return 0;
}

errint_t pool_start(struct pool *p)
{
	errint_t r = readahead_start(p); /* what recovery has queued is flushed at once */

	if (r == 0)
		r = flush_start(p);
	if (r == 0)
		r = evict_start(p);
	if (r == 0)
		r = recovery_start_search(p);
	return r;
}

void pool_set_notify(struct pool *p, pool_notify_fn fn, void *ctx)
{
	p->notify_ctx = ctx;
	p->notify = fn;
}

/* ---- closing ---- */

/* What is on disk is what a next start may believe: synced, then marked. */
static void mark_clean(struct pool *p)
{
	errint_t r;
	int fd;

	/* What a start that failed has not looked at stays as doubtful as it was (R3). After a failed
	 * sync a later one says nothing (sync.c, Y3). */
	if (!p->recovered || p->trust.lost)
		return;
	r = sys_syncfs(p->store->root_fd); /* names, of what is left dirty too */
	if (r == 0) {
		r = sys_syncfs(p->scratch_fd);
		if (r < 0)
			trust_lost(p, r);
	}
	if (r == 0) {
		step("close.synced");
		fd = sys_openat(p->place.dirfd, "clean",
		                O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
		r = fd < 0 ? fd : sys_fsync(fd);
		if (fd >= 0)
			(void)sys_close(fd);
	}
	if (r == 0)
		r = sys_fsync_dir(p->place.dirfd);
	if (r == 0)
		trust_end(p);
	else
		log_warn(
		    "cannot mark the pool \"%s\" as cleanly shut down: %s; its warm copies "
		    "will be made anew after a reboot",
		    p->place.path, strerror(-r));
}

static void release_all(struct pool *p)
{
	struct scratch *s, *next;

	HASH_ITER (hh, p->by_ino, s, next) {
		struct node *n = s->node;

		if (n) {
			lock_take(&n->lock);
			n->scratch = NULL;
			lock_drop(&n->lock);
		}
		s->opens = s->holds = 0;
		scratch_unregister(p, s);
		if (s->doomed_dir)
			node_unref(p->tree, s->doomed_dir);
		scratch_free(s);
		if (n)
			node_unref(p->tree, n);
	}
}

void pool_close(struct pool *p)
{
	if (!p)
		return;
	recovery_stop_search(p);
	evict_stop(p);
	flush_stop(p);
	readahead_stop(p);
	if (p->place.dirfd >= 0) {
		evict_doomed(p); /* all handles are gone */
		release_all(p);
		mark_clean(p);
	}
	readahead_free(p);
	free(p->doomed);
	sync_clear(p);
	if (p->scratch_fd >= 0)
		(void)sys_close(p->scratch_fd);
	if (p->lost_fd >= 0)
		(void)sys_close(p->lost_fd);
	if (p->trust.dirfd >= 0)
		(void)sys_close(p->trust.dirfd);
	pool_place_close(&p->place);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->progress);
	pthread_cond_destroy(&p->house);
	damage_clear(p);
	unborn_clear(p);
	lock_clear(&p->unborn_lock);
	lock_clear(&p->shards_lock);
	lock_clear(&p->damage_lock);
	lock_clear(&p->seen_lock);
	lock_clear(&p->trust_lock);
	lock_clear(&p->lock);
	free(p);
}

/* ---- names ---- */

static void rewrite_hint(struct pool *p, struct node *n)
{
	struct scratch *s;

	lock_take(&n->lock);
	s = n->scratch;
	if (s && s->record.state == RECORD_DIRTY && !s->doomed)
		scratch_write_hint(p, s);
	if (s) {
		s->raises++;
		s->name_unsynced = true;
	}
	lock_drop(&n->lock);
}

/* Of a file with several links not all names are known: only those that somebody came by. */
static bool may_be_below(struct pool *p, struct scratch *s, struct node *dir)
{
	return atomic_load(&s->links) != 1 || node_is_below(p->tree, s->node, dir);
}

/* The dirty nodes below a directory, and those that may be, referenced; *ret malloc'ed. */
static size_t dirty_below(struct pool *p, struct node *dir, struct node ***ret)
{
	struct scratch *s;
	size_t n = 0;

	lock_take(&p->lock);
	*ret = xcalloc(p->dirty_count + 1, sizeof(**ret));
	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (!s->is_dirty || !s->node || s->busy || n >= p->dirty_count)
			continue;
		if (dir && !may_be_below(p, s, dir))
			continue;
		node_ref(p->tree, s->node);
		(*ret)[n++] = s->node;
	}
	lock_drop(&p->lock);
	return n;
}

void pool_renamed(struct pool *p, struct node *n)
{
	struct node **below;
	size_t count;

	if (S_ISREG(n->type)) {
		rewrite_hint(p, n);
		return;
	}
	if (!S_ISDIR(n->type))
		return;
	sync_forget_dir(p, n->ino);
	count = dirty_below(p, n, &below);
	for (size_t i = 0; i < count; i++) {
		rewrite_hint(p, below[i]);
		node_unref(p->tree, below[i]);
	}
	free(below);
}

/* ---- flush on request ---- */

struct wanted {
	struct node *n;
	struct scratch *s; /* compared only */
	uint64_t gen, bytes;
	uint32_t fails;
	bool done, failed;
};

/* Is what was there when the flush was asked for in the store by now? */
static void look(struct pool *p, struct wanted *w)
{
	struct scratch *s;

	lock_take(&w->n->lock);
	s = w->n->scratch;
	if (!s || s != w->s || s->doomed || s->record.state == RECORD_CLEAN) {
		w->done = true;
	} else if (!s->flushing && atomic_load(&s->flushed_gen) >= w->gen &&
	           !(s->record.flags & RECORD_NEW)) {
		w->done = true; /* dirty again, or still open for writing */
	} else {
		lock_take(&p->lock);
		w->failed = s->fail_count > w->fails;
		lock_drop(&p->lock);
	}
	lock_drop(&w->n->lock);
}

static struct wanted *collect_wanted(struct pool *p, struct node *below, size_t *ret_n)
{
	struct node **nodes;
	size_t n = dirty_below(p, below, &nodes), count = 0;
	struct wanted *w = xcalloc(n + 1, sizeof(*w));

	for (size_t i = 0; i < n; i++) {
		struct scratch *s;
		bool use = false;

		lock_take(&nodes[i]->lock);
		s = nodes[i]->scratch;
		if (s && s->record.state == RECORD_DIRTY && !s->doomed) {
			scratch_sample(p, s);
			w[count] = (struct wanted){.n = nodes[i],
			                           .s = s,
			                           .gen = content_gen(p, s),
			                           .bytes = s->size};
			lock_take(&p->lock);
			w[count].fails = s->fail_count;
			lock_drop(&p->lock);
			flush_queue(p, s, 0, true);
			use = true;
		}
		lock_drop(&nodes[i]->lock);
		if (use)
			count++;
		else
			node_unref(p->tree, nodes[i]);
	}
	free(nodes);
	*ret_n = count;
	return w;
}

/* The names of what only may be below are not told to who asked for below. */
static void report_failures(struct pool *p, struct wanted *w, size_t n, struct node *below,
                            pool_failure_fn failure, void *ctx)
{
	for (size_t i = 0; i < n; i++) {
		cleanup_free char *path = NULL, *text = NULL;

		if (w[i].done || !failure)
			continue;
		path = !below || node_is_below(p->tree, w[i].n, below)
		           ? node_path(p->tree, w[i].n)
		           : xasprintf("?%llu", (unsigned long long)w[i].n->ino);
		lock_take(&w[i].n->lock);
		if (w[i].n->scratch == w[i].s) {
			lock_take(&p->lock);
			if (w[i].s->fail_text)
				text = xstrdup(w[i].s->fail_text);
			lock_drop(&p->lock);
		}
		lock_drop(&w[i].n->lock);
		failure(ctx, path, text ? text : "not flushed in time");
	}
}

/* After a crash some dirty scratch may have no node yet: what is asked for includes it. */
static void await_search(struct pool *p, uint64_t until)
{
	lock_take(&p->lock);
	while (atomic_load(&p->waiting) > 0 && !atomic_load(&p->searched) &&
	       !atomic_load(&p->stopping)) {
		uint64_t now = clock_mono_ms();

		if (now >= until)
			break;
		(void)lock_wait_ms(&p->lock, &p->progress, MIN_OF(until - now, 1000U));
	}
	lock_drop(&p->lock);
}

/* Those whose object the search did not find; returns how many. */
static uint64_t report_waiting(struct pool *p, pool_failure_fn failure, void *ctx)
{
	struct scratch *s;
	uint64_t count = 0, n = 0;
	char **hints;

	if (atomic_load(&p->waiting) == 0)
		return 0;
	lock_take(&p->lock);
	hints = xcalloc(p->dirty_count + 1, sizeof(*hints));
	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (s->is_dirty && !s->node && !s->busy && n < p->dirty_count)
			hints[n++] = xstrdup(s->hint ? s->hint : "");
	}
	lock_drop(&p->lock);
	for (count = 0; count < n; count++) {
		if (failure)
			failure(ctx, hints[count],
			        "its object has not been found in the store");
		free(hints[count]);
	}
	free(hints);
	return count;
}

errint_t pool_flush(struct pool *p, struct node *below, uint64_t deadline_ms,
                    pool_progress_fn progress, pool_failure_fn failure, void *ctx)
{
	uint64_t until = deadline_ms ? clock_mono_ms() + deadline_ms : UINT64_MAX;
	struct pool_progress pr = {0}, shown = {.files_done = UINT64_MAX};
	struct wanted *w;
	errint_t r = 0;
	size_t n;

	if (!below)
		await_search(p, until);
	w = collect_wanted(p, below, &n);

	for (size_t i = 0; i < n; i++)
		pr.bytes_total += w[i].bytes;
	pr.files_total = n;
	for (;;) {
		uint64_t events, now = clock_mono_ms();

		lock_take(&p->lock);
		events = p->flush_events;
		lock_drop(&p->lock);
		pr.files_done = pr.bytes_done = pr.failed = 0;
		for (size_t i = 0; i < n; i++) {
			if (!w[i].done && !w[i].failed)
				look(p, &w[i]);
			pr.failed += w[i].failed && !w[i].done;
			pr.files_done += w[i].done;
			pr.bytes_done += w[i].done ? w[i].bytes : 0;
		}
		if (progress && memcmp(&pr, &shown, sizeof(pr)) != 0)
			progress(ctx, &pr);
		shown = pr;
		if (pr.files_done + pr.failed == n || now >= until ||
		    atomic_load(&p->stopping))
			break;
		lock_take(&p->lock);
		while (events == p->flush_events && !atomic_load(&p->stopping) &&
		       lock_wait_ms(&p->lock, &p->progress, MIN_OF(until - now, 1000U)))
			;
		lock_drop(&p->lock);
	}
	if (pr.files_done < n)
		r = pr.files_done + pr.failed < n ? -ETIMEDOUT : -EIO;
	report_failures(p, w, n, below, failure, ctx);
	if (!below && report_waiting(p, failure, ctx) > 0 && r == 0)
		r = atomic_load(&p->searched) ? -EIO : -ETIMEDOUT;
	for (size_t i = 0; i < n; i++)
		node_unref(p->tree, w[i].n);
	free(w);
	return r;
}

/* ---- figures ---- */

void pool_node_state(struct pool *p, struct node *n, struct node_state *ret)
{
	struct scratch *s;

	memset(ret, 0, sizeof(*ret));
	lock_take(&n->lock);
	s = n->scratch;
	if (s) {
		ret->warm = true;
		ret->dirty = s->record.state == RECORD_DIRTY;
		ret->flushing = s->flushing;
		ret->open = s->opens;
		ret->writers = s->writers;
		lock_take(&p->lock);
		ret->pinned = s->pinned;
		lock_drop(&p->lock);
	}
	lock_drop(&n->lock);
}

void pool_get_stats(struct pool *p, struct pool_stats *ret)
{
	uint64_t now = clock_mono_ms();
	struct scratch *s;

	memset(ret, 0, sizeof(*ret));
	lock_take(&p->lock);
	ret->limit_bytes = p->limit_bytes;
	ret->bytes = p->bytes;
	ret->dirty_bytes = p->dirty_bytes;
	ret->open_bytes = p->open_bytes;
	ret->warm = p->count;
	ret->dirty = p->dirty_count;
	ret->flushing = p->flushing_count;
	ret->lost = p->lost_count;
	ret->over_bytes = p->bytes > p->limit_bytes ? p->bytes - p->limit_bytes : 0;
	DL_FOREACH2(p->lru, s, lru_next)
	{
		ret->pinned += s->pinned;
		ret->open += s->is_open;
		ret->direct += s->is_direct;
		ret->cached += s->is_cached;
		ret->failing += s->fail_count > 0;
		ret->queued += s->queued;
		if (s->queued && s->is_dirty)
			ret->queued_oldest_ms = MAX_OF(
			    ret->queued_oldest_ms, now - atomic_load(&s->dirty_since_ms));
	}
	lock_drop(&p->lock);
}

void pool_each_failing(struct pool *p, pool_failure_fn fn, void *ctx)
{
	struct failing {
		struct node *n;
		char *text;
	} * f;
	struct scratch *s;
	size_t n = 0;

	lock_take(&p->lock);
	f = xcalloc(p->count + 1, sizeof(*f));
	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (!s->fail_count || !s->node)
			continue;
		node_ref(p->tree, s->node);
		f[n].n = s->node;
		f[n++].text = xstrdup(s->fail_text ? s->fail_text : "");
	}
	lock_drop(&p->lock);
	for (size_t i = 0; i < n; i++) {
		cleanup_free char *path = node_path(p->tree, f[i].n);

		fn(ctx, path, f[i].text);
		node_unref(p->tree, f[i].n);
		free(f[i].text);
	}
	free(f);
}
