/*
 * The commands of the control protocol, as the daemon answers them.
 *
 * Invariants:
 *  (K2) No lock of another layer is held while something is sent: a peer that does not read
 *       holds up nobody but its own thread, and that for idle_ms at most.
 *  (K3) Nothing received is believed: numbers are looked up in the inode table, the peer's
 *       rights come from the kernel (SO_PEERCRED), and every list has a bound.
 * (K1) is that of session.c.
 *
 * A flush goes in slices, so that a thread here comes back to look at `stop`: the daemon's
 * end must not wait for a client's request.
 */
#include "control/commands.h"

#include <string.h>
#include <unistd.h>

#include "base/background.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/log.h"
#include "base/text.h"
#include "control/lost.h"
#include "mount/passthrough.h"
#include "pool/compact.h"
#include "pool/damage.h"
#include "pool/lost.h"
#include "tree/resolve.h"
#include "upkeep/verify.h"

#define PROGRESS_EVERY_MS 100
#define FLUSH_SLICE_MS    1000
#define STATUS_LIST_BYTES (PROTOCOL_LINE_MAX / 4) /* for each of the lists in status */
#define FAILURES_KEPT     100000

/* ---- sending ---- */

static void session_progress(struct control_session *s, const struct pool_progress *p)
{
	uint64_t now_ms = clock_mono_ms();

	if (s->progress_sent_ms && now_ms - s->progress_sent_ms < PROGRESS_EVERY_MS)
		return;
	s->progress_sent_ms = now_ms;
	control_session_send(s, json_pack("{s:{s:I,s:I,s:I,s:I,s:I}}", "progress",
	                                  "files_done", (json_int_t)p->files_done,
	                                  "files_total", (json_int_t)p->files_total,
	                                  "bytes_done", (json_int_t)p->bytes_done,
	                                  "bytes_total", (json_int_t)p->bytes_total,
	                                  "failed", (json_int_t)p->failed));
}

static void session_failure(struct control_session *s, const char *path, const char *error)
{
	control_session_send(s, json_pack("{s:{s:o,s:o}}", "failure", "path",
	                                  protocol_string(path), "error",
	                                  protocol_string(error)));
}

/* ---- status ---- */

static json_t *json_seconds(uint64_t ms)
{
	return json_real((double)ms / 1000.0);
}

static json_t *json_ratio(uint64_t part, uint64_t whole)
{
	return whole ? json_real((double)part / (double)whole) : json_null();
}

/* A list that grows no further than STATUS_LIST_BYTES; the counts beside it are true. */
struct status_list {
	json_t *items;
	size_t bytes;
};

static bool status_list_has_room(struct status_list *l, const char *a, const char *b)
{
	size_t bytes = 64;

	/* The worst an escape does to a byte is \u00XX. */
	bytes += 6 * ((a ? strlen(a) : 0) + (b ? strlen(b) : 0));
	if (l->bytes + bytes > STATUS_LIST_BYTES)
		return false;
	l->bytes += bytes;
	return true;
}

static void status_add_failing(void *ctx, const char *path, const char *error)
{
	struct status_list *l = ctx;

	if (status_list_has_room(l, path, error))
		json_array_append_new(l->items,
		                      json_pack("{s:o,s:o}", "path", protocol_string(path),
		                                "error", protocol_string(error)));
}

static errint_t status_add_lost(void *ctx, const struct pool_lost *e)
{
	struct status_list *l = ctx;

	/* The reason is short and ours. */
	if (status_list_has_room(l, e->name, e->hint) &&
	    status_list_has_room(l, e->why, NULL))
		json_array_append_new(l->items, json_pack("{s:o,s:o,s:o}", "name",
		                                          protocol_string(e->name), "path",
		                                          protocol_string(e->hint), "why",
		                                          protocol_string(e->why)));
	return 0;
}

static void status_add_damaged(void *ctx, const struct pool_damage *d)
{
	struct status_list *l = ctx;
	json_t *ranges;

	/* 64 bytes of text are more than one range takes */
	if (!status_list_has_room(l, d->path, d->error) ||
	    l->bytes + 64 * d->count > STATUS_LIST_BYTES)
		return;
	l->bytes += 64 * d->count;
	ranges = json_array();
	for (size_t i = 0; i < d->count; i++)
		json_array_append_new(ranges, json_pack("{s:I,s:I}", "offset_bytes",
		                                        (json_int_t)d->ranges[i].off,
		                                        "length_bytes",
		                                        (json_int_t)d->ranges[i].len));
	json_array_append_new(
	    l->items, json_pack("{s:o,s:o,s:o}", "path", protocol_string(d->path), "error",
	                        protocol_string(d->error), "ranges", ranges));
}

static json_t *status_options(const struct control_session *s)
{
	json_t *j = json_object();

	for (size_t i = 0;; i++) {
		const char *name = NULL;
		cleanup_free char *text = options_text(s->context->options, i, &name);

		if (!text)
			return j;
		if (!s->privileged && strcmp(name, "pool") == 0)
			continue; /* a path */
		json_object_set_new(j, name, protocol_string(text));
	}
}

static json_t *status_counters(void)
{
	json_t *j = json_object();

	for (size_t i = 0; i < COUNTER_COUNT; i++)
		json_object_set_new(j, counter_table[i].name,
		                    json_integer((json_int_t)counter_get((enum counter)i)));
	return j;
}

static json_t *status_hits(void)
{
	uint64_t hits = counter_get(COUNTER_OPEN_HITS);
	uint64_t misses = counter_get(COUNTER_OPEN_MISSES);

	return json_pack("{s:I,s:I,s:o}", "hits", (json_int_t)hits, "misses",
	                 (json_int_t)misses, "rate", json_ratio(hits, hits + misses));
}

static json_t *status_stored(struct catalog *c)
{
	struct catalog_totals t = {0};

	catalog_get_totals(c, &t);
	return json_pack("{s:I,s:I,s:I,s:o}", "files", (json_int_t)t.files, "logical_bytes",
	                 (json_int_t)t.logical_bytes, "stored_bytes",
	                 (json_int_t)t.stored_bytes, "ratio",
	                 json_ratio(t.logical_bytes, t.stored_bytes));
}

static json_t *status_last_error(void)
{
	struct timespec when = {0};
	cleanup_free char *text = log_last_error(&when);

	if (!text)
		return json_null();
	return json_pack("{s:o,s:s}", "text", protocol_string(text), "time",
	                 text_time(&when).s);
}

static void status_add_passthrough(json_t *j, const struct pool_stats *p)
{
	const char *reason;
	bool active = passthrough_active(&reason);

	json_object_set_new(j, "passthrough",
	                    json_pack("{s:b,s:s?,s:I,s:I}", "active", (int)active, "reason",
	                              reason, "direct_files", (json_int_t)p->direct,
	                              "cached_files", (json_int_t)p->cached));
}

static void status_add_pool(json_t *j, const struct control_session *s,
                            const struct pool_stats *p, const char *pool_path)
{
	json_object_set_new(
	    j, "pool",
	    json_pack("{s:o,s:I,s:I,s:I,s:I,s:I}", "path",
	              s->privileged ? protocol_string(pool_path) : json_null(),
	              "limit_bytes", (json_int_t)p->limit_bytes, "bytes",
	              (json_int_t)p->bytes, "dirty_bytes", (json_int_t)p->dirty_bytes,
	              "open_bytes", (json_int_t)p->open_bytes, "over_bytes",
	              (json_int_t)p->over_bytes));
	json_object_set_new(j, "scratch",
	                    json_pack("{s:I,s:I,s:I,s:I,s:I}", "warm", (json_int_t)p->warm,
	                              "dirty", (json_int_t)p->dirty, "flushing",
	                              (json_int_t)p->flushing, "pinned",
	                              (json_int_t)p->pinned, "open", (json_int_t)p->open));
	json_object_set_new(j, "queue",
	                    json_pack("{s:I,s:o}", "files", (json_int_t)p->queued,
	                              "oldest_seconds", json_seconds(p->queued_oldest_ms)));
}

/* The part that names files: not for everybody. */
static void status_add_names(json_t *j, const struct control_session *s,
                             const struct pool_stats *p)
{
	struct status_list failing = {.items = json_array()};
	struct status_list lost = {.items = json_array()};
	struct status_list damaged = {.items = json_array()};
	size_t damaged_files = pool_each_damaged(
	    s->context->pool, s->privileged ? status_add_damaged : NULL, &damaged);

	if (s->privileged) {
		pool_each_failing(s->context->pool, status_add_failing, &failing);
		(void)pool_each_lost(s->context->pool, status_add_lost, &lost);
	}
	json_object_set_new(j, "last_error",
	                    s->privileged ? status_last_error() : json_null());
	json_object_set_new(j, "failing_files", json_integer((json_int_t)p->failing));
	json_object_set_new(j, "failing", failing.items);
	json_object_set_new(j, "damaged_files", json_integer((json_int_t)damaged_files));
	json_object_set_new(j, "damaged", damaged.items);
	json_object_set_new(j, "lost_and_found_files", json_integer((json_int_t)p->lost));
	json_object_set_new(j, "lost_and_found", lost.items);
}

static errint_t run_status(struct control_session *s, const struct control_inodes *inodes,
                           json_t **ret, char **cause)
{
	const struct control_context *c = s->context;
	struct pool_stats p = {0};
	cleanup_free char *degraded = catalog_degraded(c->catalog);
	json_t *j = json_object();

	pool_get_stats(c->pool, &p);
	json_object_set_new(j, "pid", json_integer(getpid()));
	json_object_set_new(j, "store", protocol_string(c->store->path));
	json_object_set_new(j, "mountpoint", protocol_string(c->mountpoint));
	json_object_set_new(j, "uuid", json_string(uuid_format(&c->store->uuid).s));
	json_object_set_new(j, "program_version", json_string(PACKAGE_VERSION));
	json_object_set_new(j, "uptime_seconds",
	                    json_seconds(clock_mono_ms() - c->started_mono_ms));
	json_object_set_new(j, "started", json_string(text_time(&c->started).s));
	json_object_set_new(j, "state",
	                    json_string(c->is_draining(c->ctx) ? "draining" : "running"));
	status_add_passthrough(j, &p);
	status_add_pool(j, s, &p, c->pool_path);
	json_object_set_new(j, "hits", status_hits());
	json_object_set_new(j, "stored", status_stored(c->catalog));
	json_object_set_new(j, "counters", status_counters());
	json_object_set_new(j, "options", status_options(s));
	status_add_names(j, s, &p);
	json_object_set_new(j, "catalog_degraded",
	                    s->privileged ? protocol_string(degraded) : json_null());
	json_object_set_new(j, "nodes", json_integer((json_int_t)tree_count(c->tree)));
	*ret = j;
	return 0;
}

/* ---- inodes ---- */

/* Calls fn for the node of each number. A number that is not known (any more) is reported
 * as a failure. Returns how many those were. */
static uint64_t each_node(struct control_session *s, const struct control_inodes *inodes,
                          void (*fn)(void *ctx, struct node *n), void *ctx)
{
	struct tree *t = s->context->tree;
	uint64_t unknown = 0;

	for (size_t i = 0; i < inodes->count && !control_session_stopped(s); i++) {
		struct node *n = tree_get(t, inodes->ino[i]);

		if (n) {
			fn(ctx, n);
			node_unref(t, n);
		} else {
			cleanup_free char *path =
			    xasprintf("inode %ju", (uintmax_t)inodes->ino[i]);

			session_failure(s, path, "no such file in use here");
			unknown++;
		}
	}
	return unknown;
}

/* Whether the peer may have this node flushed. */
static errint_t session_may_flush(struct control_session *s, struct node *n)
{
	struct tree *t = s->context->tree;
	struct stat st;
	errint_t r;

	if (s->privileged)
		return 0;
	rmlock_rd(&t->ns);
	lock_take(&n->lock);
	r = resolve_stat(t, n, &st);
	lock_drop(&n->lock);
	rmlock_drop(&t->ns);
	if (r < 0)
		return r;
	return st.st_uid == s->uid ? 0 : -EPERM;
}

/* ---- flush ---- */

/* One flush in slices. */
struct slices {
	pool_progress_fn progress;
	void *ctx;
	json_t *failures;           /* of this slice: [path, error, path, error…] */
	struct pool_progress base;  /* slices before this one */
	struct pool_progress slice; /* as last reported in this one */
};

static struct pool_progress slices_sum(const struct slices *f)
{
	return (struct pool_progress){
	    .files_done = f->base.files_done + f->slice.files_done,
	    .files_total = f->base.files_done + f->slice.files_total,
	    .bytes_done = f->base.bytes_done + f->slice.bytes_done,
	    .bytes_total = f->base.bytes_done + f->slice.bytes_total,
	    .failed = f->slice.failed,
	};
}

static void slices_progress(void *ctx, const struct pool_progress *pr)
{
	struct slices *f = ctx;
	struct pool_progress sum;

	f->slice = *pr;
	sum = slices_sum(f);
	if (f->progress)
		f->progress(f->ctx, &sum);
}

/* Kept until it is known whether another slice follows: that one tries again, and what was
 * merely not done in time is no failure yet. */
static void slices_failure(void *ctx, const char *path, const char *error)
{
	struct slices *f = ctx;

	if (json_array_size(f->failures) >= 2 * FAILURES_KEPT)
		return;
	json_array_append_new(f->failures, protocol_string(path));
	json_array_append_new(f->failures, protocol_string(error));
}

static void slices_tell_failures(struct slices *f, pool_failure_fn failure)
{
	for (size_t i = 0; failure && i + 1 < json_array_size(f->failures); i += 2)
		failure(f->ctx, json_string_value(json_array_get(f->failures, i)),
		        json_string_value(json_array_get(f->failures, i + 1)));
}

/* How long the next slice may take; 0: until_mono_ms has come. */
static uint64_t slice_ms(uint64_t until_mono_ms)
{
	uint64_t now_ms = clock_mono_ms();

	if (until_mono_ms == 0)
		return FLUSH_SLICE_MS;
	return until_mono_ms <= now_ms ? 0 : MIN_OF(until_mono_ms - now_ms, FLUSH_SLICE_MS);
}

errint_t control_flush(struct pool *p, struct node *below, uint64_t until_mono_ms,
                       bool (*stop)(void *ctx), pool_progress_fn progress,
                       pool_failure_fn failure, void *ctx, struct pool_progress *ret_sum)
{
	struct slices f = {.progress = progress, .ctx = ctx, .failures = json_array()};
	errint_t r = -ETIMEDOUT;

	while (r == -ETIMEDOUT) {
		uint64_t ms = slice_ms(until_mono_ms);

		if (ms == 0)
			break;
		if (stop && stop(ctx)) {
			r = -ECANCELED;
			break;
		}
		f.base = slices_sum(&f);
		memset(&f.slice, 0, sizeof(f.slice));
		json_array_clear(f.failures);
		r = pool_flush(p, below, ms, slices_progress, slices_failure, &f);
	}
	if (r == 0) /* names too: what a flush returns for is known (promise 11) */
		r = pool_sync_store(p);
	slices_tell_failures(&f, failure);
	if (ret_sum) {
		*ret_sum = slices_sum(&f);
		ret_sum->failed = json_array_size(f.failures) / 2;
	}
	json_decref(f.failures);
	return r;
}

struct flush_run {
	struct control_session *session;
	struct pool_progress base; /* the inodes before this one */
	uint64_t refused;          /* inodes that were not begun */
	errint_t error;            /* what ended it early */
};

static void flush_progress(void *ctx, const struct pool_progress *pr)
{
	struct flush_run *f = ctx;
	struct pool_progress sum = {
	    .files_done = f->base.files_done + pr->files_done,
	    .files_total = f->base.files_done + pr->files_total,
	    .bytes_done = f->base.bytes_done + pr->bytes_done,
	    .bytes_total = f->base.bytes_done + pr->bytes_total,
	    .failed = f->base.failed + f->refused + pr->failed,
	};

	session_progress(f->session, &sum);
}

static void flush_failure(void *ctx, const char *path, const char *error)
{
	struct flush_run *f = ctx;

	session_failure(f->session, path, error);
}

static bool flush_stop(void *ctx)
{
	struct flush_run *f = ctx;

	return control_session_stopped(f->session);
}

/* Flushes at or below n (NULL: everything). */
static void flush_below(struct flush_run *f, struct node *n)
{
	struct pool_progress sum;
	errint_t r = control_flush(f->session->context->pool, n, 0, flush_stop,
	                           flush_progress, flush_failure, f, &sum);

	f->base.files_done += sum.files_done;
	f->base.bytes_done += sum.bytes_done;
	f->base.failed += sum.failed;
	if (r < 0 && r != -EIO)
		f->error = r;
}

static void flush_node(void *ctx, struct node *n)
{
	struct flush_run *f = ctx;
	struct tree *t = f->session->context->tree;
	errint_t r = session_may_flush(f->session, n);

	if (r < 0) {
		/* The name is not told to somebody who may not know it. */
		cleanup_free char *path = f->session->privileged
		                              ? node_path(t, n)
		                              : xasprintf("inode %ju", (uintmax_t)n->ino);

		session_failure(f->session, path, strerror(-r));
		f->refused++;
		return;
	}
	flush_below(f, n->ino == TREE_ROOT_INO ? NULL : n);
}

static errint_t run_flush(struct control_session *s, const struct control_inodes *inodes,
                          json_t **ret, char **cause)
{
	struct flush_run f = {.session = s};
	uint64_t unknown = 0;

	if (inodes->count > 0)
		unknown = each_node(s, inodes, flush_node, &f);
	else if (s->privileged)
		flush_below(&f, NULL);
	else
		return set_cause(cause, -EPERM,
		                 "only root and the user who runs this cellar may flush "
		                 "everything; name files of your own");
	if (f.error < 0)
		return set_cause_errno(cause, f.error, "the flush ended early");
	*ret = json_pack("{s:I,s:I,s:I}", "files", (json_int_t)f.base.files_done, "bytes",
	                 (json_int_t)f.base.bytes_done, "failed",
	                 (json_int_t)(f.base.failed + f.refused + unknown));
	return 0;
}

/* ---- evict ---- */

struct evict_run {
	struct control_session *session;
	uint64_t evicted, cold, failed;
};

static const char *evict_reason(errint_t err)
{
	switch (err) {
	case -EBUSY:
		return "is open";
	case -EAGAIN:
		return "has changes that are not in the store yet; flush it first";
	case -EPERM:
		return "is pinned";
	default:
		return strerror(-err);
	}
}

static void evict_node(void *ctx, struct node *n)
{
	struct evict_run *e = ctx;
	struct tree *t = e->session->context->tree;
	errint_t r;

	if (S_ISREG(n->type)) {
		r = pool_evict(e->session->context->pool, n);
	} else {
		r = -EINVAL;
	}
	if (r == 0) {
		e->evicted++;
	} else if (r == -ENOENT) {
		e->cold++;
	} else {
		cleanup_free char *path = node_path(t, n);

		e->failed++;
		session_failure(e->session, path,
		                r == -EINVAL && !S_ISREG(n->type) ? "is no regular file"
		                                                  : evict_reason(r));
	}
}

static errint_t run_evict(struct control_session *s, const struct control_inodes *inodes,
                          json_t **ret, char **cause)
{
	struct evict_run e = {.session = s};
	uint64_t unknown;

	if (inodes->count == 0)
		return set_cause(cause, -EINVAL, "evict needs at least one inode");
	unknown = each_node(s, inodes, evict_node, &e);
	*ret = json_pack("{s:I,s:I,s:I}", "evicted", (json_int_t)e.evicted, "cold",
	                 (json_int_t)e.cold, "failed", (json_int_t)(e.failed + unknown));
	return 0;
}

/* ---- compact ---- */

struct compact_run {
	struct control_session *session;
	const struct control_inodes *inodes;
	struct pool_progress progress;
	uint64_t compacted, kept, warm, before_bytes, after_bytes;
};

/* Losing a race to a user is no failure: the file is in use. */
static void compact_node(void *ctx, struct node *n)
{
	struct compact_run *c = ctx;
	const struct control_context *context = c->session->context;
	struct pool_compaction wanted = {
	    .level = context->options->compact_level,
	    .frame_size = (uint32_t)context->options->compact_frame_size,
	    .threads = 1,
	    .stop = &c->session->stop,
	};
	cleanup_free char *cause = NULL, *path = NULL;
	struct pool_compacted done;
	errint_t r = pool_compact(context->pool, n, &wanted, &done, &cause);

	c->progress.files_done++;
	c->progress.bytes_done += done.logical_bytes;
	if (r == 0 && done.replaced) {
		c->compacted++;
		c->before_bytes += done.stored_before;
		c->after_bytes += done.stored_after;
	} else if (r == 0) {
		c->kept++;
	} else if (r == -EBUSY || r == -EAGAIN) {
		c->warm++;
	} else if (r != -ENOENT && r != -EINTR) {
		path = node_path(context->tree, n);
		c->progress.failed++;
		session_failure(c->session, path,
		                r == -EINVAL ? "is no regular file"
		                : cause      ? cause
		                             : strerror(-r));
	}
	session_progress(c->session, &c->progress);
}

static void compact_all(void *ctx)
{
	struct compact_run *c = ctx;

	c->progress.failed += each_node(c->session, c->inodes, compact_node, c);
}

static errint_t run_compact(struct control_session *s, const struct control_inodes *inodes,
                            json_t **ret, char **cause)
{
	struct compact_run c = {.session = s, .inodes = inodes};

	if (inodes->count == 0)
		return set_cause(cause, -EINVAL, "compact needs at least one inode");
	c.progress.files_total = inodes->count;
	background_run("compact", compact_all, &c);
	*ret = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "compacted", (json_int_t)c.compacted,
	                 "kept", (json_int_t)c.kept, "warm", (json_int_t)c.warm, "failed",
	                 (json_int_t)c.progress.failed, "stored_bytes_before",
	                 (json_int_t)c.before_bytes, "stored_bytes_after",
	                 (json_int_t)c.after_bytes);
	return 0;
}

/* ---- verify ---- */

struct verify_run {
	struct control_session *session;
	struct verify_totals totals; /* of the trees that are done */
	struct pool_progress progress;
	errint_t error;
	char *cause;
};

/* What was found goes into the list that status shows, or out of it. */
static void verify_remember(struct control_session *s, const char *store_path,
                            const struct verify_result *result)
{
	const struct control_context *c = s->context;
	struct node *n = NULL;
	struct stat st;
	errint_t r;

	if (!result->error && damage_is_empty(c->pool))
		return;
	rmlock_rd(&c->tree->ns);
	r = resolve_store_path(c->tree, store_path, &n, &st);
	rmlock_drop(&c->tree->ns);
	if (r < 0)
		return;
	if (result->error)
		damage_set(c->pool, n, result->ranges, result->count, result->error);
	else
		damage_forget(c->pool, n);
	node_unref(c->tree, n);
}

/* Its bytes are in its scratch, whose record says so. */
static bool verify_unflushed(void *ctx, const char *store_path)
{
	const struct control_context *c = ((struct verify_run *)ctx)->session->context;
	struct node_state state = {0};
	struct node *n = NULL;
	struct stat st;
	errint_t err;

	rmlock_rd(&c->tree->ns);
	err = resolve_store_path(c->tree, store_path, &n, &st);
	rmlock_drop(&c->tree->ns);
	if (err < 0)
		return false;
	if (S_ISREG(n->type))
		pool_node_state(c->pool, n, &state);
	node_unref(c->tree, n);
	return state.dirty;
}

static void verify_report(void *ctx, const char *store_path,
                          const struct verify_result *result)
{
	struct verify_run *v = ctx;

	v->progress.files_done++;
	verify_remember(v->session, store_path, result);
	if (result->error) {
		v->progress.failed++;
		session_failure(v->session, store_path, result->error);
	}
	session_progress(v->session, &v->progress);
}

static void verify_below(struct verify_run *v, const char *store_path)
{
	const struct control_context *c = v->session->context;
	struct verify_totals t = {0};

	if (v->error < 0)
		return;
	v->error =
	    verify_tree(c->store, store_path, c->options->max_object, verify_unflushed,
	                verify_report, v, &v->session->stop, &t, &v->cause);
	v->totals.files += t.files;
	v->totals.damaged += t.damaged;
	v->totals.logical_bytes += t.logical_bytes;
	v->totals.stored_bytes += t.stored_bytes;
	v->totals.plain += t.plain;
}

static void verify_node(void *ctx, struct node *n)
{
	struct verify_run *v = ctx;
	struct tree *t = v->session->context->tree;
	cleanup_free char *path = NULL;

	if (n->ino == TREE_ROOT_INO) {
		verify_below(v, "");
	} else if (node_has_names(t, n)) {
		path = node_store_path(t, n);
		verify_below(v, path);
	} else {
		path = node_path(t, n);
		session_failure(v->session, path, "has no name any more");
		v->totals.files++;
		v->totals.damaged++;
	}
}

static errint_t run_verify(struct control_session *s, const struct control_inodes *inodes,
                           json_t **ret, char **cause)
{
	struct verify_run v = {.session = s};
	uint64_t unknown = 0;

	if (inodes->count > 0)
		unknown = each_node(s, inodes, verify_node, &v);
	else
		verify_below(&v, "");
	if (v.error < 0) {
		if (v.cause)
			set_cause(cause, v.error, "%s", v.cause);
		set_cause_errno(cause, v.error, "the verification ended early");
		free(v.cause);
		return v.error;
	}
	free(v.cause);
	*ret = json_pack("{s:I,s:I,s:I,s:I,s:I}", "files", (json_int_t)v.totals.files,
	                 "damaged", (json_int_t)(v.totals.damaged + unknown),
	                 "logical_bytes", (json_int_t)v.totals.logical_bytes,
	                 "stored_bytes", (json_int_t)v.totals.stored_bytes, "plain",
	                 (json_int_t)v.totals.plain);
	return 0;
}

/* ---- umount ---- */

/* Once begun it goes through, even if the peer does not wait for it: the lock file says
 * "draining" from now on, and others count on that. */
static errint_t run_umount(struct control_session *s, const struct control_inodes *inodes,
                           json_t **ret, char **cause)
{
	const struct control_context *c = s->context;
	struct flush_run f = {.session = s};
	struct pool_stats before = {0}, left = {0};

	__atomic_store_n(&s->ending, true, __ATOMIC_RELAXED);
	pool_get_stats(c->pool, &before);
	c->umount(c->ctx, flush_progress, flush_failure, &f, &left);
	*ret =
	    json_pack("{s:I,s:I,s:I}", "files_left", (json_int_t)left.dirty, "bytes_left",
	              (json_int_t)left.dirty_bytes, "files_open", (json_int_t)before.open);
	return 0;
}

/* ---- the table ---- */

static const struct control_command commands[] = {
    {"status", 0, run_status},
    {"flush", COMMAND_INODES, run_flush},
    {"evict", COMMAND_PRIVILEGED | COMMAND_INODES, run_evict},
    {"compact", COMMAND_PRIVILEGED | COMMAND_INODES, run_compact},
    {"verify", COMMAND_PRIVILEGED | COMMAND_INODES, run_verify},
    {"umount", COMMAND_PRIVILEGED, run_umount},
    {"lost", COMMAND_PRIVILEGED, control_lost},
    {"discard", COMMAND_PRIVILEGED, control_discard},
};

const struct control_command *control_command_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}
