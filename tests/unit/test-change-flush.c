/*
 * A flush costs what changed: frames decoded, encoded and copied, and bytes written, counted
 * for each kind of change, and the object right each time. (P1), (P2) of pool/flush-plan.c,
 * (F2) of pool/flush.c.
 */
#include "pool-fixture.h"

#include <pthread.h>

#include "codec/plan.h"
#include "pool/content.h"

#define FRAME (64U << 10)
#define SIZE  (FRAME * 40 + 1000)

static char *data; /* what the file holds */
static size_t len, room;

static int setup(void **state)
{
	room = 4 * SIZE;
	len = SIZE;
	data = malloc(room);
	assert_non_null(data);
	harness_fill_text(data, room, 8);
	return harness_setup(state);
}

static int teardown(void **state)
{
	free(data);
	return harness_teardown(state);
}

struct counted {
	uint64_t decoded, encoded, copied, stored, flushes, unchanged;
};

static struct counted count_now(void)
{
	return (struct counted){
	    counter_get(COUNTER_FRAMES_DECODED), counter_get(COUNTER_FRAMES_ENCODED),
	    counter_get(COUNTER_FRAMES_COPIED),  counter_get(COUNTER_BYTES_STORED),
	    counter_get(COUNTER_FLUSHES),        counter_get(COUNTER_FLUSHES_UNCHANGED),
	};
}

static struct counted flush_counted(struct fixture *f)
{
	struct counted a = count_now(), b;

	fx_flush(f);
	b = count_now();
	return (struct counted){b.decoded - a.decoded, b.encoded - a.encoded,
	                        b.copied - a.copied,   b.stored - a.stored,
	                        b.flushes - a.flushes, b.unchanged - a.unchanged};
}

static void open_all(struct harness *h, struct fixture *f, uint64_t append_min)
{
	fx_options(f);
	f->o.frame_size = FRAME;
	f->o.append_min = append_min;
	fx_open(f, h->path, true);
}

static void change(struct fixture *f, struct node *n, size_t off, size_t count)
{
	for (size_t i = 0; i < count; i++)
		data[off + i] ^= 0x15;
	len = MAX_OF(len, off + count);
	FX_CHECK(pool_open_file(f->pool, n, POOL_WRITE) == 0);
	fx_pwrite(f, n, data + off, count, off);
	pool_close_file(f->pool, n, POOL_WRITE);
}

static void see(struct fixture *f, struct node *n)
{
	assert_false(fx_state(f, n).dirty);
	assert_true(fx_object_is(f, "a.zst", data, len));
	assert_true(fx_holds(f, n, data, len));
}

static struct node *make_cold(struct fixture *f)
{
	struct node *n = fx_make(f, "a", data, len);

	fx_flush(f);
	assert_int_equal(pool_evict(f->pool, n), 0);
	return n;
}

static void test_middle(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	change(&f, n, 20 * FRAME + 77, 1);
	c = flush_counted(&f);
	assert_int_equal(c.decoded, 0);
	assert_int_equal(c.encoded, 1);
	assert_int_equal(c.copied, 40);
	assert_int_equal(c.flushes, 1);
	see(&f, n);
	/* Two far apart, and across an edge of frames. */
	change(&f, n, 3, 1);
	change(&f, n, 10 * FRAME - 1, 2);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 3);
	assert_int_equal(c.copied, 38);
	see(&f, n);
	node_unref(f.tree, n);
	fx_close(&f);
}

static void truncate_to(struct fixture *f, struct node *n, size_t size)
{
	if (size > len)
		memset(data + len, 0, size - len);
	len = size;
	FX_CHECK(pool_truncate(f->pool, n, size) == 0);
}

static void test_truncate(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	truncate_to(&f, n, 10 * FRAME);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 0);
	assert_int_equal(c.copied, 10);
	see(&f, n);
	truncate_to(&f, n, 9 * FRAME - 5);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 1);
	assert_int_equal(c.copied, 8);
	see(&f, n);
	/* Shorter and longer again: the zeros between are not what the object has there. */
	truncate_to(&f, n, 2 * FRAME);
	truncate_to(&f, n, 5 * FRAME);
	c = flush_counted(&f);
	assert_int_equal(c.copied, 2);
	see(&f, n);
	truncate_to(&f, n, 0);
	(void)flush_counted(&f);
	see(&f, n);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Written, and yet the same: hashes say so; only the mtime goes to the object. */
static void test_same_bytes(void **state)
{
	struct fixture f;
	struct counted c;
	struct stat a, b;
	struct node *n;

	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	change(&f, n, 5 * FRAME, 1);
	change(&f, n, 5 * FRAME, 1); /* and back */
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &a, 0), 0);
	c = flush_counted(&f);
	assert_int_equal(c.encoded + c.copied + c.stored + c.flushes, 0);
	assert_int_equal(c.unchanged, 1);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &b, 0), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	assert_true(timespec_cmp(&a.st_mtim, &b.st_mtim) < 0);
	see(&f, n);
	/* Opened for writing and not written: not even that. */
	FX_CHECK(pool_open_file(f.pool, n, POOL_WRITE) == 0);
	pool_close_file(f.pool, n, POOL_WRITE);
	c = flush_counted(&f);
	assert_int_equal(c.encoded + c.copied + c.stored + c.flushes, 0);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &a, 0), 0);
	assert_memory_equal(&a.st_mtim, &b.st_mtim, sizeof(a.st_mtim));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Writes that nobody saw: the frames' hashes tell the same. */
static void test_unseen(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	for (unsigned i = 0; i < 3; i++) {
		data[(7 + i) * FRAME + 5] ^= 1;
		FX_CHECK(pool_open_file(f.pool, n, POOL_WRITE) == 0);
		FX_CHECK(pwrite(scratch_fd(n), data, len, 0) == (ssize_t)len);
		changes_note_all(&n->scratch->changes);
		atomic_fetch_add(&n->scratch->gen, 1);
		pool_close_file(f.pool, n, POOL_WRITE);
		c = flush_counted(&f);
		assert_int_equal(c.decoded, 0);
		assert_int_equal(c.encoded,
		                 1); /* hydrated at first, then of the last flush */
		assert_int_equal(c.copied, 40);
		see(&f, n);
	}
	node_unref(f.tree, n);
	fx_close(&f);
}

/* What grew below append_min: the small last frame is encoded again with what came. */
static void test_grown(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	for (unsigned i = 0; i < 5; i++) {
		change(&f, n, len, 100);
		c = flush_counted(&f);
		assert_int_equal(c.encoded, 1);
		assert_int_equal(c.copied, 40);
		see(&f, n);
	}
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Boundaries of others: 64 MiB frames, as compaction makes them, become smaller ones only where
 * something changed. */
static void test_other_boundaries(void **state)
{
	struct harness *h = *state;
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(h, &f, UINT64_MAX >> 8);
	f.pool->frame_size = 5 * FRAME;
	n = make_cold(&f);
	f.pool->frame_size = FRAME;
	change(&f, n, 12 * FRAME, 1);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 5);
	assert_int_equal(c.copied, 8);
	see(&f, n);
	change(&f, n, 12 * FRAME, 1);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 1);
	assert_int_equal(c.copied, 12);
	see(&f, n);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* (P2): the object was replaced by another of ours: nothing of it is believed. */
static void test_hard_links(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	assert_int_equal(linkat(f.store->root_fd, "a.zst", f.store->root_fd, "b.zst", 0),
	                 0);
	node_add_name(f.tree, n, f.tree->root, "b.zst");
	change(&f, n, 20 * FRAME + 77, 1);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 1);
	assert_int_equal(c.copied, 40);
	see(&f, n);
	assert_true(fx_object_is(&f, "b.zst", data, len));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* A failed flush forgets nothing. */
static void test_failure_keeps_changes(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

#ifndef CELLAR_DEVELOPER
	skip();
#endif
	open_all(*state, &f, UINT64_MAX >> 8);
	n = make_cold(&f);
	change(&f, n, 5 * FRAME, 1);
	log_set_level(LOG_LEVEL_ERR - 1);
	assert_true(fault_set("fsync:1:EIO:always"));
	assert_int_equal(pool_flush(f.pool, NULL, 0, NULL, NULL, NULL), -EIO);
	assert_true(fault_set(""));
	log_set_level(LOG_LEVEL_ERR);
	change(&f, n, 15 * FRAME, 1);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 2);
	assert_int_equal(c.copied, 39);
	see(&f, n);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* ---- appends ---- */

static uint64_t object_size(struct fixture *f)
{
	struct stat st;

	assert_int_equal(fstatat(f->store->root_fd, "a.zst", &st, 0), 0);
	return (uint64_t)st.st_size;
}

static uint64_t dead_bytes(struct fixture *f, struct node *n)
{
	struct catalog_file row;

	assert_true(catalog_file_get(f->catalog, &n->ident, &row));
	return row.dead_bytes;
}

/* A line: one frame, a new table, nothing read of the old, nothing rewritten. */
static void test_append(void **state)
{
	const struct timespec old[2] = {{1000000000, 5}, {900000000, 987654321}};
	struct fixture f;
	struct counted c;
	struct stat a, b;
	uint64_t size;
	struct node *n;

	open_all(*state, &f, 100 << 10);
	n = make_cold(&f);
	assert_int_equal(fchmodat(f.store->root_fd, "a.zst", 0640, 0), 0);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &a, 0), 0);
	for (unsigned i = 0; i < 5; i++) {
		size = object_size(&f);
		change(&f, n, len, 100);
		lock_take(&n->lock);
		assert_int_equal(pool_set_times(n, old), 0);
		lock_drop(&n->lock);
		c = flush_counted(&f);
		assert_int_equal(c.decoded, 0);
		assert_int_equal(c.encoded, 1);
		assert_int_equal(c.copied, 0);
		assert_int_equal(c.flushes, 1);
		assert_int_equal(c.stored, object_size(&f) - size);
		assert_true(c.stored < 1500);
		assert_int_equal(fstatat(f.store->root_fd, "a.zst", &b, 0), 0);
		assert_int_equal(a.st_ino, b.st_ino);
		assert_int_equal(b.st_mode & 07777, 0640);
		assert_int_equal(b.st_mtim.tv_sec, 900000000);
		assert_int_equal(b.st_mtim.tv_nsec, 987654321);
		assert_false(n->in_place);
		assert_true(dead_bytes(&f, n) > i * 500);
		see(&f, n);
	}
	/* Much more than a frame, from cold. */
	assert_int_equal(pool_evict(f.pool, n), 0);
	change(&f, n, len, 3 * FRAME);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 3);
	assert_int_equal(c.copied, 0);
	see(&f, n);
	/* And a change in front of it all: replaced, the dead bytes gone. */
	change(&f, n, 0, 1);
	c = flush_counted(&f);
	assert_true(c.copied > 40);
	assert_int_equal(dead_bytes(&f, n), 0);
	see(&f, n);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* What appends leave behind is bounded: past it the flush rewrites by itself. */
static void test_append_wears(void **state)
{
	struct fixture f;
	unsigned replaced = 0, appended = 0;
	struct node *n;

	open_all(*state, &f, 10 << 10);
	len = 2 * FRAME;
	n = make_cold(&f);
	for (unsigned i = 0; i < 150; i++) {
		uint64_t size = object_size(&f);
		struct counted c;

		change(&f, n, len, 10);
		c = flush_counted(&f);
		if (c.copied) {
			replaced++;
			assert_int_equal(dead_bytes(&f, n), 0);
			assert_true(c.encoded <= 2);
		} else {
			appended++;
			assert_int_equal(c.encoded, 1);
		}
		assert_true(dead_bytes(&f, n) <= size / 4 + 10000);
	}
	see(&f, n);
	assert_true(appended > 100);
	assert_in_range(replaced, 1, 20);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Hard links share the inode, which stays. */
static void test_append_links(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	open_all(*state, &f, 100 << 10);
	n = make_cold(&f);
	assert_int_equal(linkat(f.store->root_fd, "a.zst", f.store->root_fd, "b.zst", 0),
	                 0);
	node_add_name(f.tree, n, f.tree->root, "b.zst");
	change(&f, n, len, 100);
	c = flush_counted(&f);
	assert_int_equal(c.encoded, 1);
	assert_int_equal(c.copied, 0);
	see(&f, n);
	assert_true(fx_object_is(&f, "b.zst", data, len));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* (A3): an append that fails at any call leaves the old object, and the next try works. */
static void test_append_failures(void **state)
{
	static const char *const calls[] = {"pwrite", "fsync", "pread", "utimensat",
	                                    "fsetxattr"};
	struct fixture f;
	struct node *n;
	unsigned failed = 0;

#ifndef CELLAR_DEVELOPER
	skip();
#endif
	open_all(*state, &f, 100 << 10);
	n = make_cold(&f);
	log_set_level(LOG_LEVEL_ERR - 1);
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		bool fired = true;

		for (unsigned nth = 1; fired && nth < 60; nth++) {
			char *spec = xasprintf("%s:%u:ENOSPC", calls[i], nth);
			struct stat a, b;
			size_t before;

			before = len;
			change(&f, n, len, 100);
			assert_int_equal(fstatat(f.store->root_fd, "a.zst", &a, 0), 0);
			assert_true(fault_set(spec));
			if (pool_flush(f.pool, NULL, 0, NULL, NULL, NULL) != 0) {
				assert_int_equal(fstatat(f.store->root_fd, "a.zst", &b, 0),
				                 0);
				assert_int_equal(a.st_size, b.st_size);
				assert_memory_equal(&a.st_mtim, &b.st_mtim,
				                    sizeof(a.st_mtim));
				assert_true(fx_object_is(&f, "a.zst", data, before));
				assert_true(fx_state(&f, n).dirty);
				failed++;
			}
			fired = fault_fired();
			assert_true(fault_set(""));
			fx_flush(&f);
			/* Where only the record of the end was missing: written a second later. */
			while (fx_state(&f, n).dirty)
				sched_yield();
			see(&f, n);
			assert_false(n->in_place);
			free(spec);
		}
		assert_false(fired);
	}
	log_set_level(LOG_LEVEL_ERR);
	assert_true(failed > 5);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* (N3): where cutting back fails too, the next flush does it first. Meanwhile the file is served
 * and its attributes are right. */
static void test_append_cut_fails(void **state)
{
	struct fixture f;
	struct node *n;
	struct stat st;

#ifndef CELLAR_DEVELOPER
	skip();
#endif
	open_all(*state, &f, 100 << 10);
	n = make_cold(&f);
	change(&f, n, len, 100);
	log_set_level(LOG_LEVEL_ERR - 1);
	/* The first is the record's, the second that of the frames; then all: the cut's too. */
	assert_true(fault_set("fsync:2:EIO:always"));
	assert_int_equal(pool_flush(f.pool, NULL, 0, NULL, NULL, NULL), -EIO);
	assert_true(fault_fired());
	assert_true(n->in_place);
	assert_true(fault_set(""));
	log_set_level(LOG_LEVEL_ERR);
	lock_take(&n->lock);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &st, 0), 0);
	assert_int_equal(resolve_info(f.tree, n, f.store->root_fd, "a.zst", &st, NULL), 0);
	assert_int_equal(n->info.logical_size, len - 100);
	lock_drop(&n->lock);
	fx_flush(&f);
	assert_false(n->in_place);
	see(&f, n);
	assert_int_equal(counter_get(COUNTER_CONFLICTS), 0);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* The base's stamp must still hold: a foreign change beside us is kept, not appended to. */
static void test_append_to_foreign(void **state)
{
	struct fixture f;
	struct node *n;
	int fd;

	open_all(*state, &f, 100 << 10);
	n = make_cold(&f);
	change(&f, n, len, 100);
	fd = openat(f.store->root_fd, "a.zst", O_WRONLY | O_APPEND);
	assert_int_equal(write(fd, "junk", 4), 4);
	(void)close(fd);
	fx_flush(&f);
	see(&f, n);
	assert_int_equal(counter_get(COUNTER_CONFLICTS), 1);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* A log that is written to all the time: what came after the flush began is for the next. */
struct logger {
	struct fixture *f;
	struct node *n;
	_Atomic bool stop;
	_Atomic size_t written;
};

static void *log_all_the_time(void *arg)
{
	struct logger *l = arg;

	while (!atomic_load(&l->stop) && l->written + 50 < room) {
		fx_pwrite(l->f, l->n, data + l->written, 50, l->written);
		l->written += 50;
		(void)usleep(200);
	}
	return NULL;
}

static void test_append_while_written(void **state)
{
	struct logger l = {0};
	struct fixture f;
	pthread_t thread;
	uint64_t retries;

	open_all(*state, &f, 100 << 10);
	l.f = &f;
	l.n = make_cold(&f);
	l.written = len;
	FX_CHECK(pool_open_file(f.pool, l.n, POOL_WRITE) == 0);
	retries = counter_get(COUNTER_FLUSH_RETRIES);
	assert_int_equal(pthread_create(&thread, NULL, log_all_the_time, &l), 0);
	for (unsigned i = 0; i < 10; i++) {
		size_t at_least = l.written;
		struct catalog_file row;

		while (l.written == at_least)
			sched_yield();
		at_least = l.written;
		fx_flush(&f);
		lock_take(&l.n->lock);
		row = l.n->info;
		lock_drop(&l.n->lock);
		assert_true(row.logical_size >= at_least);
		assert_true(fx_object_is(&f, "a.zst", data, row.logical_size));
	}
	assert_int_equal(counter_get(COUNTER_FLUSH_RETRIES), retries);
	atomic_store(&l.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pool_close_file(f.pool, l.n, POOL_WRITE);
	len = l.written;
	fx_flush(&f);
	see(&f, l.n);
	node_unref(f.tree, l.n);
	fx_close(&f);
}

/* ---- tails: large cold files that only grow ---- */

static struct node *make_large(struct harness *h, struct fixture *f)
{
	fx_options(f);
	f->o.frame_size = FRAME;
	f->o.append_min = 100 << 10;
	f->o.eager_size = 5 * FRAME;
	fx_open(f, h->path, true);
	return make_cold(f);
}

static bool reads(struct fixture *f, struct node *n, uint64_t off, size_t count)
{
	char *got = malloc(count + 1);
	size_t done = 0;
	bool same;

	FX_CHECK(got != NULL);
	while (done < count) {
		struct read_view v;
		size_t part = 0;

		FX_CHECK(scratch_read(f->pool, n, off + done, count - done, true, &v) == 0);
		if (v.fd >= 0) {
			ssize_t r =
			    pread(v.fd, got + done, count - done, (off_t)(off + done));

			FX_CHECK(r >= 0);
			part = (size_t)r;
		}
		for (size_t i = 0; v.fd < 0 && i < v.count; i++) {
			memcpy(got + done + part, v.iov[i].iov_base, v.iov[i].iov_len);
			part += v.iov[i].iov_len;
		}
		scratch_read_end(f->pool, &v);
		if (part == 0)
			break;
		done += part;
	}
	same = off + done == MIN_OF(len, off + count) && memcmp(got, data + off, done) == 0;
	free(got);
	return same;
}

/* Opened, appended to, flushed: nothing of the old is decoded, one frame encoded. */
static void test_tail(void **state)
{
	struct stat before, st;
	struct fixture f;
	struct counted c;
	struct node *n;

	n = make_large(*state, &f);
	assert_int_equal(fstatat(f.store->root_fd, "a.zst", &before, 0), 0);
	for (unsigned i = 0; i < 4; i++) {
		c = count_now();
		FX_CHECK(pool_open_file(f.pool, n, POOL_READ | POOL_WRITE) == 0);
		assert_int_equal(n->scratch->record.kind, RECORD_TAIL);
		assert_int_equal(n->scratch->record.ask, len);
		if (i == 0) {
			assert_int_equal(fstat(scratch_fd(n), &st), 0);
			assert_memory_equal(&st.st_mtim, &before.st_mtim,
			                    sizeof(st.st_mtim));
		}
		fx_pwrite(&f, n, data + len, 100, len);
		len += 100;
		pool_close_file(f.pool, n, POOL_READ | POOL_WRITE);
		fx_flush(&f);
		assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), c.decoded);
		assert_int_equal(counter_get(COUNTER_FRAMES_ENCODED), c.encoded + 1);
		assert_int_equal(counter_get(COUNTER_FRAMES_COPIED), c.copied);
		assert_true(counter_get(COUNTER_BYTES_STORED) < c.stored + 1500);
		assert_true(fx_object_is(&f, "a.zst", data, len));
		assert_null(n->scratch); /* (T5) */
	}
	assert_true(fx_holds(&f, n, data, len));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Opened for writing and closed: nothing happened. */
static void test_tail_not_written(void **state)
{
	struct fixture f;
	struct counted c;
	struct node *n;

	n = make_large(*state, &f);
	c = count_now();
	FX_CHECK(pool_open_file(f.pool, n, POOL_WRITE) == 0);
	pool_close_file(f.pool, n, POOL_WRITE);
	assert_null(n->scratch);
	assert_int_equal(counter_get(COUNTER_FRAMES_DECODED), c.decoded);
	assert_true(fx_holds(&f, n, data, len));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Read below, above and across `ask`, while it is open, over a flush and another append. */
static void test_tail_reads(void **state)
{
	struct fixture f;
	struct node *n;
	size_t old;

	n = make_large(*state, &f);
	old = len;
	FX_CHECK(pool_open_file(f.pool, n, POOL_READ | POOL_WRITE) == 0);
	for (unsigned i = 0; i < 3; i++) {
		struct stat a, b;

		fx_pwrite(&f, n, data + len, 3 * FRAME / 2, len);
		len += 3 * FRAME / 2;
		assert_int_equal(fstat(scratch_fd(n), &a), 0);
		assert_true(reads(&f, n, 0, 100));
		assert_true(reads(&f, n, old - 50, 100));
		assert_true(reads(&f, n, old - 3 * FRAME, 4 * FRAME));
		assert_true(reads(&f, n, old, 10));
		assert_true(reads(&f, n, len - 10, 100));
		assert_true(reads(&f, n, 0, 2 * len));
		assert_int_equal(fstat(scratch_fd(n), &b), 0); /* (T2) */
		assert_memory_equal(&a.st_mtim, &b.st_mtim, sizeof(a.st_mtim));
		fx_flush(&f);
		assert_true(fx_object_is(&f, "a.zst", data, len));
		assert_int_equal(n->scratch->record.kind, RECORD_TAIL);
	}
	pool_close_file(f.pool, n, POOL_READ | POOL_WRITE);
	fx_flush(&f);
	assert_true(fx_holds(&f, n, data, len));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* (T3): whatever is no append hydrates all first. */
static void test_tail_becomes_whole(void **state)
{
	struct fixture f;
	struct node *n;

	for (unsigned how = 0; how < 4; how++) {
		struct harness *h = *state;
		size_t old;

		len = SIZE;
		n = make_large(h, &f);
		old = len;
		FX_CHECK(pool_open_file(f.pool, n, POOL_READ | POOL_WRITE) == 0);
		fx_pwrite(&f, n, data + len, 300, len);
		len += 300;
		switch (how) {
		case 0: /* an overwrite that ends past `ask` */
			for (size_t i = old - 50; i < old + 50; i++)
				data[i] ^= 0x21;
			fx_pwrite(&f, n, data + old - 50, 100, old - 50);
			break;
		case 1:
			truncate_to(&f, n, old / 2);
			break;
		case 2:
			truncate_to(&f, n, 0);
			break;
		default:
			memset(data + 10, 0, 5000);
			FX_CHECK(pool_fallocate(f.pool, n,
			                        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			                        10, 5000) == 0);
		}
		assert_null(n->scratch->hydration);
		assert_int_equal(n->scratch->record.kind, RECORD_WHOLE);
		assert_true(reads(&f, n, 0, len + 10));
		pool_close_file(f.pool, n, POOL_READ | POOL_WRITE);
		fx_flush(&f);
		see(&f, n);
		assert_int_equal(unlinkat(f.store->root_fd, "a.zst", 0), 0);
		node_unref(f.tree, n);
		fx_close(&f);
	}
}

static bool shows(struct fixture *f, struct node *n, const struct timespec *mtime)
{
	struct stat st;
	bool same;

	lock_take(&n->lock);
	FX_CHECK(content_stat(f->pool, n->scratch, &st) == 0);
	same = timespec_cmp(&st.st_mtim, mtime) == 0;
	lock_drop(&n->lock);
	return same;
}

static void fill_begin(struct node *n)
{
	lock_take(&n->lock);
	FX_CHECK(tail_fill_begin(n->scratch) == 0);
	lock_drop(&n->lock);
	clock_sleep_ms(20); /* more than a tick of the clock that files are stamped with */
	FX_CHECK(pwrite(n->scratch->fd, data, 10, 0) == 10);
}

static void fill_end(struct node *n)
{
	lock_take(&n->lock);
	FX_CHECK(tail_fill_end(n->scratch) == 0);
	lock_drop(&n->lock);
}

/* (T6) */
static void test_tail_time(void **state)
{
	struct timespec set[2] = {{.tv_nsec = UTIME_OMIT}, {1234567890, 5}};
	struct fixture f;
	struct stat st;
	struct node *n;

	n = make_large(*state, &f);
	FX_CHECK(pool_open_file(f.pool, n, POOL_READ | POOL_WRITE) == 0);
	fx_pwrite(&f, n, data + len, 300, len);
	len += 300;
	FX_CHECK(fstat(n->scratch->fd, &st) == 0);
	fill_begin(n);
	fill_begin(n); /* two fill it */
	assert_true(shows(&f, n, &st.st_mtim));
	fill_end(n);
	assert_true(shows(&f, n, &st.st_mtim));
	fill_end(n);
	assert_true(shows(&f, n, &st.st_mtim));
	fill_begin(n);
	fx_pwrite(&f, n, data + len, 300, len);
	len += 300;
	assert_false(shows(&f, n, &st.st_mtim));
	fill_end(n);
	assert_false(shows(&f, n, &st.st_mtim));
	fill_begin(n);
	lock_take(&n->lock);
	FX_CHECK(pool_set_times(n, set) == 0);
	lock_drop(&n->lock);
	FX_CHECK(pwrite(n->scratch->fd, data, 10, 0) == 10);
	assert_true(shows(&f, n, &set[1]));
	fill_end(n);
	assert_true(shows(&f, n, &set[1]));
	FX_CHECK(hydrate_range(f.pool, n->scratch, 0, UINT64_MAX) == 0);
	assert_null(n->scratch->hydration);
	assert_true(shows(&f, n, &set[1]));
	assert_int_equal(n->scratch->filling, 0);
	pool_close_file(f.pool, n, POOL_READ | POOL_WRITE);
	fx_flush(&f);
	see(&f, n);
	node_unref(f.tree, n);
	fx_close(&f);
}

/* A foreign object under a dirty tail keeps the name; the tail goes to lost+found. */
static void test_tail_alone(void **state)
{
	struct pool_stats stats;
	struct fixture f;
	struct node *n;
	size_t size;
	char *object;

	n = make_large(*state, &f);
	FX_CHECK(pool_open_file(f.pool, n, POOL_WRITE) == 0);
	fx_pwrite(&f, n, data + len, 100, len);
	pool_close_file(f.pool, n, POOL_WRITE);
	object = harness_read(f.store->root_fd, "a.zst", &size);
	harness_write(f.store->root_fd, "new", object, size);
	free(object);
	assert_int_equal(renameat(f.store->root_fd, "new", f.store->root_fd, "a.zst"), 0);
	log_set_level(LOG_LEVEL_ERR - 1);
	(void)pool_flush(f.pool, NULL, 0, NULL, NULL, NULL);
	log_set_level(LOG_LEVEL_ERR);
	pool_get_stats(f.pool, &stats);
	assert_int_equal(stats.lost, 1);
	assert_int_equal(stats.dirty, 0);
	assert_true(fx_object_is(&f, "a.zst", data, len));
	node_unref(f.tree, n);
	fx_close(&f);
}

/* Seeded random changes against the model. */
static void test_random(void **state)
{
	uint64_t seed = 21;
	struct fixture f;
	struct node *n;

	open_all(*state, &f, 100 << 10);
	n = make_cold(&f);
	for (unsigned round = 0; round < 60 / HARNESS_FEW; round++) {
		unsigned changes = 1 + harness_next(&seed) % 4;

		for (unsigned i = 0; i < changes; i++) {
			size_t off = harness_next(&seed) % len;

			switch (harness_next(&seed) % 5) {
			case 0:
				truncate_to(&f, n, MIN_OF(off + len / 2, room - 1));
				break;
			case 1:
				truncate_to(&f, n, MIN_OF(len + off % 100000, room / 2));
				break;
			case 2:
				if (len + 70001 < room)
					change(&f, n, len, 1 + off % 70000);
				break;
			default:
				change(&f, n, off, 1 + harness_next(&seed) % (len - off));
			}
			if (len == 0)
				change(&f, n, 0, 100000);
		}
		fx_flush(&f);
		see(&f, n);
		if (round % 7 == 0)
			assert_int_equal(pool_evict(f.pool, n), 0);
	}
	node_unref(f.tree, n);
	fx_close(&f);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_middle),
	    T(test_truncate),
	    T(test_same_bytes),
	    T(test_unseen),
	    T(test_grown),
	    T(test_other_boundaries),
	    T(test_hard_links),
	    T(test_failure_keeps_changes),
	    T(test_random),
	    T(test_append),
	    T(test_append_wears),
	    T(test_append_links),
	    T(test_append_failures),
	    T(test_append_cut_fails),
	    T(test_append_to_foreign),
	    T(test_append_while_written),
	    T(test_tail),
	    T(test_tail_not_written),
	    T(test_tail_reads),
	    T(test_tail_becomes_whole),
	    T(test_tail_time),
	    T(test_tail_alone),
	};

	return cmocka_run_group_tests_name("change-flush", tests, NULL, NULL);
}
