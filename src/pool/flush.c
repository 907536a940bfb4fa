/*
 * Flushing: bringing objects up to date from dirty scratch (design, section 6).
 *
 *   dirty --job_prepare--> flushing --job_finish--> clean, or dirty again
 *
 * The queue is ordered by due time; flusher threads take small files in batches, so that
 * their directory syncs are shared, and large ones alone. The steps of one job:
 *
 *   job_prepare   number of the flush; gen and size of what will be encoded     [lock]
 *   job_encode    scratch -> tmp/, verified by decoding, attributes copied      [no lock]
 *                 or all of an append to the object (flush-append.c): then the next three have
 *                 nothing to do
 *   job_sync      fsync of the tmp file                                         [no lock]
 *   job_commit    still the same? rename over (or copy over); new identity      [ns, dir, file]
 *   (batch)       fsync of each directory, once                                 [no lock]
 *   job_finish    record clean, catalog                                         [lock]
 *
 * Invariants:
 *  (F1) The object at the name decodes to the old content or to the new one at every instant: the
 *       new one is complete, verified and fsynced before the rename; a copy over has a
 *       durable intent naming its target and the complete source.
 *  (F2) Content is one consistent version: gen is equal before and after encoding, both
 *       read under the gate (G2); otherwise the tmp file is thrown away and the file stays dirty.
 *       A file that is written all the time is encoded with the gate held: its writers wait.
 *       Writers whom the kernel serves know no gate: a clone of the scratch is read where the
 *       filesystem can make one; else what they write meanwhile may be there in the
 *       old version or in the new one, as after a power cut, and the file stays dirty.
 *  (F3) The object that is replaced still has the base's stamp, seen under the locks that every
 *       change through the mount takes; otherwise it is kept beside (conflict.c).
 *  (F4) The record becomes clean only after the fsync of the directory; and only if gen is still
 *       what was encoded, and the file was closed for writing before it was read and is (content.h).
 *  (F5) seq of the record is raised before the object that carries it can exist, in memory
 *       and, before the rename, in the record. From then on to the end of the flush every record
 *       that is written, by whomever, says RECORD_REPLACING too: so a record either has a lower
 *       number than the object that it may meet after a power cut, or the flag.
 *  (F6) An error leaves the scratch dirty; it is counted, kept for status, retried with
 *       back-off, and nothing of the old object is touched.
 *  (F7) The attributes of the new object are those of the old one at the rename: copied
 *       before, and copied again under the locks if the object's ctime moved since; the
 *       logical ctime is then that of the change.
 *  (F9) Until that directory is synced, every record that is written names the base that was there
 *       before (scratch_keep_base): a record may reach the disk long before the new name does, and
 *       the old object must be known as ours then, also where nothing in it says so. The new one
 *       is known by (F5).
 *  (F10) Before another inode takes the object's place, the names that the file has lost (by rename, or
 *       one of several) are durably gone, but for those in the directory of the new one: btrfs
 *       syncs one directory without the other, and a cut would bring them back, leading to the
 *       old object beside the new one. What was lost before an unclean start is not known, nor what
 *       was by files that the kernel has let us forget: the next flush syncs the store.
 *  (F8) Once the new object has its name, node and record (in memory) know it, whatever fails: what
 *       can fail of finding out its identity and stamp comes before. Otherwise the next try
 *       would take our own object for a foreign one.
 */
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/workers.h"
#include "codec/encode.h"
#include "pool/content.h"
#include "pool/flush-job.h"
#include "store/attrs.h"
#include "store/durable.h"

#include "utlist.h"

#define QUEUE_LOOK_MS  1000UL     /* at the latest a flusher looks what is due */
#define RETRY_MS       100        /* until a file that changed meanwhile is tried again */
#define BATCH_MAX      64         /* small files flushed together */
#define SMALL_BYTES    (1U << 20) /* up to here a file counts as small */
#define OPTIMISTIC     3          /* tries before writers are held up */
#define BACKOFF_MAX_MS 60000
#define SETTLE_TRIES   5
#define SETTLE_MS      1

/* ---- the queue ---- */

static int by_due(const struct scratch *a, const struct scratch *b)
{
	return a->due_ms < b->due_ms ? -1 : a->due_ms > b->due_ms;
}

/* pool->lock held. */
static void queue_insert(struct pool *p, struct scratch *s)
{
	struct scratch *tail = p->queue ? p->queue->queue_prev : NULL;

	s->queued = true;
	if (!tail || by_due(tail, s) <= 0) {
		DL_APPEND2(p->queue, s, queue_prev, queue_next);
	} else if (by_due(s, p->queue) < 0) {
		DL_PREPEND2(p->queue, s, queue_prev, queue_next);
	} else {
		/* Rare: a retry among fresh ones. */
		DL_INSERT_INORDER2(p->queue, s, by_due, queue_prev, queue_next);
	}
}

/* pool->lock held. */
static void queue_remove(struct pool *p, struct scratch *s)
{
	if (!s->queued)
		return;
	DL_DELETE2(p->queue, s, queue_prev, queue_next);
	s->queued = false;
}

void flush_queue(struct pool *p, struct scratch *s, uint64_t delay_ms, bool urgent)
{
	uint64_t due = delay_ms == 0 ? 0 : clock_mono_ms() + delay_ms;

	lock_take(&p->lock);
	if (s->queued && s->urgent && !urgent && s->due_ms <= due) {
		/* Somebody waits for it: not put off. */
		lock_drop(&p->lock);
		return;
	}
	queue_remove(p, s);
	s->due_ms = due;
	s->urgent = s->urgent || urgent;
	queue_insert(p, s);
	if (due <=
	    clock_mono_ms() + QUEUE_LOOK_MS) /* else they look in time by themselves */
		pthread_cond_signal(&p->work);
	lock_drop(&p->lock);
}

void flush_unqueue(struct pool *p, struct scratch *s)
{
	lock_take(&p->lock);
	if (!s->urgent)
		queue_remove(p, s);
	lock_drop(&p->lock);
}

void flush_unqueue_always(struct pool *p, struct scratch *s)
{
	lock_take(&p->lock);
	queue_remove(p, s);
	s->urgent = false;
	lock_drop(&p->lock);
}

/* The first that is due and in nobody's work; *ret_wait_ms: how long there is none. p->lock held. */
static struct scratch *queue_next_due(struct pool *p, struct scratch *from,
                                      uint64_t *ret_wait_ms)
{
	uint64_t now = clock_mono_ms();
	struct scratch *s;

	*ret_wait_ms = QUEUE_LOOK_MS;
	for (s = from; s; s = s->queue_next) {
		if (s->due_ms > now) {
			*ret_wait_ms = MIN_OF(s->due_ms - now, QUEUE_LOOK_MS);
			return NULL;
		}
		if (!s->is_flushing)
			return s;
	}
	return NULL;
}

/* Takes what is due: one large file, or small ones up to BATCH_MAX. Waits; 0 when stopping. */
static size_t queue_take(struct pool *p, struct job *jobs)
{
	uint64_t wait_ms, share;
	struct scratch *s, *next;
	size_t n = 0;

	lock_take(&p->lock);
	while (!atomic_load(&p->stopping)) {
		s = queue_next_due(p, p->queue, &wait_ms);
		if (s)
			break;
		(void)lock_wait_ms(&p->lock, &p->work, wait_ms);
	}
	share = 1 + p->dirty_count / p->flusher_count;
	if (atomic_load(&p->stopping))
		s = NULL;
	for (; s && n < BATCH_MAX && n < share; s = next) {
		bool small = s->bytes <= SMALL_BYTES;

		if (n > 0 && !small)
			break;
		next = s->queue_next;
		queue_remove(p, s);
		memset(&jobs[n], 0, sizeof(jobs[n]));
		changes_init(&jobs[n].changes);
		jobs[n].s = s;
		jobs[n].urgent = s->urgent;
		s->urgent = false;
		jobs[n].n = s->node;
		node_ref(p->tree, s->node); /* alive: its scratch is listed */
		n++;
		if (!small)
			break;
		next = queue_next_due(p, next, &wait_ms);
	}
	lock_drop(&p->lock);
	return n;
}

/* ---- one job ---- */

/* The version that this flush brings to the store. node->lock held, and the gate for writing. */
static void take_version(struct pool *p, struct job *j, const struct stat *st)
{
	j->gen = content_gen(p, j->s);
	j->size = (uint64_t)st->st_size;
	changes_move(&j->changes, &j->s->changes);
}

static bool job_applies(const struct job *j)
{
	struct scratch *s = j->n->scratch; /* listed ones may have gone meanwhile */

	return s && s == j->s && !s->doomed && !s->flushing &&
	       s->record.state == RECORD_DIRTY &&
	       !(s->opens > 0 && s->writers > 0 &&
	         !j->urgent); /* else its last close queues it */
}

/* Finds out whether the file is closed for writing. Where it is not, its pages are made clean, so
 * that stores through mappings show from now on (content.c, N3). node->lock held, given up
 * meanwhile; false: the job does not apply any more. */
static bool writers_settled(struct pool *p, struct job *j)
{
	struct scratch *s = j->s;
	bool applies = true;

	j->closed = content_closed(p, s);
	for (int i = 0; applies && !j->closed && s->writers == 0 && i < SETTLE_TRIES; i++) {
		/* Its last descriptor may be on its way out of the kernel. */
		lock_drop(&j->n->lock);
		clock_sleep_ms(SETTLE_MS);
		lock_take(&j->n->lock);
		applies = job_applies(j);
		j->closed = applies && content_closed(p, s);
	}
	if (!applies || j->closed || !s->unseen)
		return applies;
	lock_drop(&j->n->lock);
	(void)sys_fdatasync(j->in_fd); /* an error is the next sync's business (Y3) */
	lock_take(&j->n->lock);
	return job_applies(j);
}

/* dirty -> flushing. False: nothing to do (any more). */
static bool job_prepare(struct pool *p, struct job *j)
{
	struct scratch *s;
	struct stat st;
	bool go = false;

	lock_take(&j->n->lock);
	if (!job_applies(j))
		goto out;
	s = j->s;
	j->in_fd = scratch_open_fd(p, s, O_RDONLY);
	if (j->in_fd < 0) {
		j->error = j->in_fd;
		goto out;
	}
	if (!writers_settled(p, j))
		goto out;
	rwlock_wr(&s->gate);
	j->error = sys_fstat(j->in_fd, &st);
	if (j->error == 0)
		take_version(p, j, &st);
	rwlock_drop(&s->gate);
	if (j->error < 0)
		goto out;
	j->seq = ++s->record.seq; /* (F5) */
	j->ask = tail_is_dirty(s) ? s->hydration->ask : 0;
	j->hold_writers = s->flush_tries >= OPTIMISTIC;
	j->unchanged = j->closed && j->gen == atomic_load(&s->flushed_gen) &&
	               !(s->record.flags & RECORD_NEW) &&
	               !ident_is_none(&s->record.base.ident);
	/* (F5): a sync may write the record now; and what is unchanged is made all the same where
	 * its object was changed behind us. */
	j->was_replacing = s->record.flags & RECORD_REPLACING;
	s->record.flags |= RECORD_REPLACING;
	j->prepared = s->flushing = true;
	scratch_mirror(p, s);
	go = true;
out:
	lock_drop(&j->n->lock);
	return go;
}

static errint_t job_encode(struct pool *p, struct job *j)
{
	errint_t r;

	j->out_fd = store_tmp_create(p->store, &j->tmp);
	if (j->out_fd < 0)
		return set_cause_errno(&j->cause, j->out_fd,
		                       "cannot make a file in the store");
	if (j->plain) {
		r = full_copy_range(j->snap_fd > 0 ? j->snap_fd : j->in_fd, 0, j->out_fd, 0,
		                    j->size);
		return r < 0 ? set_cause_errno(&j->cause, r, "cannot write to the store")
		             : 0;
	}
	r = job_run_plan(p, j); /* each frame is proved as it is written */
	step("flush.encoded");
	if (r == 0)
		r = encode_check(j->out_fd, &j->result, &j->cause);
	if (r == 0 && !is_broken(BREAK_FLUSH_FSYNC))
		sys_start_writeout(j->out_fd, 0, 0);
	step("flush.verified");
	return r;
}

/* Where the object is and how it will be brought up to date; attributes of the old one. */
static errint_t job_look(struct pool *p, struct job *j)
{
	errint_t r;

	rmlock_rd(&p->tree->ns);
	lock_take(&j->n->lock);
	r = job_find_target(p, j);
	if (r == 0)
		j->ctime = job_logical_ctime(j, &j->target_st);
	lock_drop(&j->n->lock);
	rmlock_drop(&p->tree->ns);
	if (r == 0 && j->ask > 0 && !j->unchanged && !j->base_current) {
		j->alone = true;
		r = set_cause(&j->cause, -ESTALE, "%s", TAIL_WHY);
	}
	return r;
}

static errint_t copy_attributes(struct job *j, bool *ret_refused)
{
	struct timespec mtime;
	struct stat st;
	errint_t r = sys_fstat(j->in_fd, &st);

	*ret_refused = false;
	if (r < 0)
		return r;
	mtime = st.st_mtim;
	if (j->target_fd > 0) {
		r = attrs_copy(j->target_fd, j->out_fd, &mtime, &j->cause);
		if (r == -EPERM) {
			free(j->cause);
			j->cause = NULL;
			*ret_refused = true;
			r = 0;
		}
		return r;
	}
	/* The object is gone: made again with what was known of it. */
	r = sys_fchown(j->out_fd, j->s->uid, j->s->gid);
	if (r == 0 || r == -EPERM)
		r = sys_fchmod(j->out_fd, j->s->mode);
	if (r == 0) {
		struct timespec ts[2] = {{.tv_nsec = UTIME_NOW}, mtime};

		r = sys_futimens(j->out_fd, ts);
	}
	return r;
}

/* What is copied over an object takes the place of bytes that a tail still asks for (tail.c, T1):
 * there it must be whole first. -EAGAIN: it is by now, and what was found out of it does not
 * hold any more. */
static errint_t whole_before_copy(struct pool *p, struct job *j)
{
	bool partly;
	errint_t r;

	if (!j->copy_over || j->unchanged)
		return 0;
	lock_take(&j->n->lock);
	partly = j->s->hydration != NULL;
	lock_drop(&j->n->lock);
	if (!partly)
		return 0;
	r = pool_open_file(p, j->n, POOL_READ);
	if (r == 0) {
		r = hydrate_range(p, j->s, 0, UINT64_MAX);
		pool_close_file(p, j->n, POOL_READ);
	}
	return r == 0 ? -EAGAIN : r;
}

/* Writers whom nobody can hold up: one version of the file is kept aside where the filesystem can
 * share its blocks. What they wrote between the look at gen and this counts as unflushed. */
static void take_snapshot(struct pool *p, struct job *j)
{
	errint_t r;

	if (j->closed || atomic_load(&p->no_clones))
		return;
	j->snap_fd = sys_openat(p->scratch_fd, ".", O_TMPFILE | O_RDWR, 0600);
	if (j->snap_fd < 0)
		return;
	r = sys_clone_file(j->in_fd, j->snap_fd);
	if (r == 0)
		return;
	(void)sys_close(j->snap_fd);
	j->snap_fd = -1;
	if (r == -EOPNOTSUPP || r == -EINVAL || r == -ENOTTY)
		atomic_store(&p->no_clones, true);
}

static errint_t job_encode_all(struct pool *p, struct job *j)
{
	bool refused = false;
	errint_t r = job_look(p, j);

	if (r == 0)
		r = whole_before_copy(p, j);
	if (r < 0 || j->unchanged)
		return r;
	take_snapshot(p, j);
	if (j->snap_fd > 0)
		j->hold_writers = false;
	if (j->hold_writers) {
		struct stat st;

		lock_take(&j->n->lock);
		rwlock_wr(&j->s->gate);
		r = sys_fstat(j->in_fd, &st);
		if (r == 0)
			take_version(p, j, &st);
		lock_drop(&j->n->lock);
	}
	if (r == 0)
		r = job_plan(p, j);
	if (r == 0 && j->plan.append) {
		r = job_append(p, j);
		if (r < 0 && j->no_append) {
			cleanup_free char *ignored = steal_pointer(&j->cause);

			r = job_plan(p, j);
		}
	}
	if (r == 0 && !j->same && !j->appended)
		r = job_encode(p, j);
	if (j->appended)
		return 0;
	if (j->hold_writers)
		rwlock_drop(&j->s->gate);
	else if (r == 0 || r == -ENODATA) /* -ENODATA: it became shorter */
		r = job_still_true(j) < 0 ? -EAGAIN : r;
	if (r == 0 && !j->same)
		r = copy_attributes(j, &refused);
	if (r == 0 && refused) {
		j->copy_over = true; /* an ordinary user's daemon and another's file */
		r = whole_before_copy(p, j);
	}
	return r;
}

/* The bytes that the object has already. A record on disk that tells of a sync with a higher number
 * than the object's may tell of a part of them only, and would be believed: it has to tell of all. */
static errint_t sync_same(struct pool *p, struct job *j)
{
	bool needed;
	errint_t r;

	lock_take(&j->n->lock);
	needed = j->s->claimed_seq > j->n->info.seq;
	lock_drop(&j->n->lock);
	r = needed ? sync_file(p, j->n) : 0;
	return r < 0 ? set_cause_errno(&j->cause, r, "cannot sync its scratch") : 0;
}

static errint_t job_sync(struct pool *p, struct job *j)
{
	errint_t r;

	if (j->same)
		return sync_same(p, j);
	if (j->unchanged || j->appended || is_broken(BREAK_FLUSH_FSYNC))
		return 0;
	r = store_sync_file(j->out_fd);
	return r < 0 ? set_cause_errno(&j->cause, r, "cannot sync the new object") : 0;
}

/* (F7): attributes once more if somebody changed them after they were copied. */
static errint_t refresh_attributes(struct job *j)
{
	struct stat st;
	bool refused;
	errint_t r;

	if (j->target_fd <= 0)
		return 0;
	r = sys_fstat(j->target_fd, &st);
	if (r < 0 || timespec_cmp(&st.st_ctim, &j->target_st.st_ctim) == 0)
		return r;
	/* That of the change: the object itself carries the older one, the catalog this. */
	j->ctime = job_logical_ctime(j, &st);
	if (j->copy_over)
		return 0;
	if (st.st_nlink != j->target_st.st_nlink)
		return -EAGAIN;
	r = copy_attributes(j, &refused);
	if (r == 0 && refused)
		return -EPERM;
	j->target_st = st;
	if (r == 0)
		r = store_sync_file(j->out_fd);
	return r;
}

/* The content is what the object says already; its mtime may not be. Nor its ctime, where a write that
 * changed nothing came while the flush before was under way: that took the mtime with it. */
static errint_t set_times(struct pool *p, struct job *j)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {0}};
	struct stat st, now;
	errint_t r = sys_fstat(j->in_fd, &st);

	if (r == 0)
		r = sys_fstat(j->target_fd, &now);
	if (r < 0)
		return r;
	j->ctime = job_logical_ctime(j, &now);
	ts[1] = st.st_mtim;
	if (timespec_cmp(&st.st_mtim, &now.st_mtim) == 0) {
		if (timespec_cmp(&j->ctime, &j->n->info.ctime) != 0)
			resolve_keep_ctime(p->tree, j->n, &now, &j->ctime);
		return 0;
	}
	r = sys_futimens(j->target_fd, ts);
	if (r == 0)
		r = sys_fstat(j->target_fd, &now);
	if (r == 0) {
		j->n->info.stored_mtime = now.st_mtim;
		resolve_keep_ctime(p->tree, j->n, &now, &j->ctime);
		r = store_sync_file(j->target_fd);
	}
	return r == -EPERM ? 0 : r; /* another's file: its content is right */
}

/* Under ns; takes the locks of directory and file. */
static errint_t job_commit(struct pool *p, struct job *j)
{
	errint_t r;

	if (j->unchanged || j->appended)
		return 0;
	rmlock_rd(&p->tree->ns);
	r = job_lock_target(p, j);
	if (r < 0)
		goto out;
	if (j->same) {
		r = set_times(p, j);
		job_unlock_target(p, j);
		goto out;
	}
	if (job_has_left(p, j))
		r = -EAGAIN; /* (F10): just now */
	else
		r = refresh_attributes(j);
	if (r == 0) {
		/* (F5), on disk: recovery compares this number with the object's, and believes
		 * of no other object that it is ours. */
		r = scratch_record(p, j->s);
	}
	if (r == 0)
		r = job_install(p, j);
	job_unlock_target(p, j);
out:
	rmlock_drop(&p->tree->ns);
	return r;
}

/* ---- after the directories are synced ---- */

static void job_failed(struct pool *p, struct job *j)
{
	struct scratch *s = j->s;
	uint64_t delay;
	cleanup_free char *path = node_path(p->tree, j->n);

	lock_take(&p->lock);
	s->fail_count++;
	delay = MIN_OF(1000ULL << MIN_OF(s->fail_count - 1, 10U), BACKOFF_MAX_MS);
	free(s->fail_text);
	s->fail_text = xstrdup(j->cause ? j->cause : strerror(-j->error));
	lock_drop(&p->lock);
	count_one(COUNTER_FLUSH_ERRORS);
	log_err("cannot flush \"%s\": %s; it stays safe in the pool, will retry in %s",
	        path, j->cause ? j->cause : strerror(-j->error), text_duration(delay).s);
	flush_queue(p, s, delay, s->opens > 0);
}

/* The foreign version keeps the name; what was appended goes to lost+found, once nobody has it open.
 * node->lock held; it is dropped where true is returned. */
static bool set_tail_aside(struct pool *p, struct job *j)
{
	struct scratch *s = j->s;
	bool done = false;

	if (s->opens == 0 && s->holds == 0 && !s->doomed && hydrate_quiet(p, s, false)) {
		scratch_mirror(p, s);
		count_one(COUNTER_CONFLICTS);
		done = scratch_set_aside(p, s, TAIL_WHY) == 0;
	}
	if (done) {
		lock_drop(&j->n->lock);
		if (p->notify)
			p->notify(p->notify_ctx, j->n->ino);
		j->s = NULL;
		changes_release(&j->changes);
	}
	return done;
}

/* flushing -> clean or dirty. (F4) */
static void job_finish(struct pool *p, struct job *j)
{
	struct scratch *s = j->s;
	bool still, closed = false, again = false;

	lock_take(&j->n->lock);
	s->flushing = false;
	if (j->error == 0 || (!j->tried && !j->was_replacing))
		s->record.flags &= ~RECORD_REPLACING;
	if (j->error == 0)
		s->base_pending = false; /* (F9) */
	if (j->error == 0 && s->writers == 0)
		closed = content_closed(p, s);
	if (closed && !j->closed) {
		content_changed(s); /* once more: (N3), content.c */
		again = true;       /* and at once, as in scratch_closed() */
	}
	still = content_gen(p, s) != j->gen;
	if (j->error < 0)
		changes_move(&s->changes, &j->changes); /* they are still to be flushed */
	if (j->alone && set_tail_aside(p, j))
		return;
	if (j->error == -EAGAIN) {
		count_one(COUNTER_FLUSH_RETRIES);
		s->flush_tries++;
		/* Soon: somebody may wait for it, and who has closed it has no more to write. */
		flush_queue(p, s, MIN_OF(p->writeback_ms, RETRY_MS), j->urgent);
	} else if (j->error < 0) {
		job_failed(p, j);
	} else {
		s->flush_tries = 0;
		s->sync_error = 0;
		atomic_store(&s->flushed_gen, j->gen);
		s->flushed_seq = j->seq;
		atomic_store(&s->dirty_since_ms, clock_mono_ms());
		if (s->doomed) {
			/* unlinked while it was flushed */
		} else if (!still && closed) {
			s->record.state = RECORD_CLEAN;
			s->record.sync_seq = s->record.sync_size = 0;
			if (s->hydration)
				s->record.flags |= RECORD_PARTIAL;
			if (scratch_record(p, s) < 0) {
				s->record.state = RECORD_DIRTY;
				flush_queue(p, s, 1000, false);
			}
			step("flush.recorded");
		} else {
			if (s->record.sync_seq < j->seq) /* (Y4) */
				s->record.sync_seq = s->record.sync_size = 0;
			(void)scratch_record(p, s); /* dirty, with its new base */
			s->flushed_open = !j->closed && !closed;
			if (s->unseen && s->writers == 0)
				; /* still mapped: content_house() */
			else if (s->opens == 0 || still)
				flush_queue(p, s,
				            s->writers ? p->dirty_age_ms
				            : again    ? 0
				                       : p->writeback_ms,
				            s->writers > 0);
		}
		count_one(j->unchanged || j->same ? COUNTER_FLUSHES_UNCHANGED
		                                  : COUNTER_FLUSHES);
		lock_take(&p->lock);
		s->fail_count = 0;
		free(s->fail_text);
		s->fail_text = NULL;
		lock_drop(&p->lock);
	}
	if (s->doomed && s->opens == 0)
		evict_add_doomed(p, s);
	scratch_mirror(p, s);
	if (tail_is_spent(p, s)) {
		changes_release(&j->changes);
		j->s = NULL;
		(void)scratch_destroy(p, s);
	}
	lock_drop(&j->n->lock);
	if (p->notify && j->error == 0)
		p->notify(p->notify_ctx, j->n->ino);
}

void job_clear(struct pool *p, struct job *j)
{
	if (j->snap_fd > 0)
		(void)sys_close(j->snap_fd);
	if (j->in_fd > 0)
		(void)sys_close(j->in_fd);
	if (j->out_fd > 0)
		(void)sys_close(j->out_fd);
	if (j->target_fd > 0)
		(void)sys_close(j->target_fd);
	if (j->tmp.s[0])
		store_tmp_unlink(p->store, j->tmp.s);
	if (j->have_place)
		place_release(p->tree, &j->at);
	job_plan_clear(j);
	if (j->s)
		changes_release(&j->changes);
	free(j->cause);
	node_unref(p->tree, j->n);
}

/* Whether the directory took a new object, now or in a try whose sync failed. */
static bool needs_dir_sync(const struct job *j)
{
	return j->installed || (j->prepared && j->error == 0 && j->s->base_pending);
}

/* One fsync for each directory that took a new object. */
static void sync_batch_dirs(struct pool *p, struct job *jobs, size_t n)
{
	bool needs[BATCH_MAX];

	for (size_t i = 0; i < n; i++) {
		bool done = false;
		errint_t r;

		needs[i] = needs_dir_sync(&jobs[i]);
		if (!needs[i] || is_broken(BREAK_FLUSH_DIR))
			continue;
		for (size_t k = 0; k < i && !done && jobs[i].have_place; k++) {
			done = needs[k] && jobs[k].have_place &&
			       jobs[k].at.parent == jobs[i].at.parent;
			if (done && jobs[k].error < 0)
				jobs[i].error = jobs[k].error;
		}
		if (done)
			continue;
		r = jobs[i].have_place
		        ? sync_directories(p, jobs[i].at.parent, jobs[i].at.dirfd)
		        : pool_sync_store(p);
		if (r < 0) {
			jobs[i].error =
			    set_cause_errno(&jobs[i].cause, r, "cannot sync the directory");
		}
	}
	for (size_t i = 0; i < n; i++) {
		if (needs[i] && jobs[i].error == 0 && jobs[i].left_here)
			node_left_done(p->tree, jobs[i].n, jobs[i].left_gen); /* (F10) */
	}
	step("flush.dirsynced");
}

static void run_batch(struct pool *p, struct job *jobs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct job *j = &jobs[i];

		if (!job_prepare(p, j))
			continue;
		j->error = job_encode_all(p, j);
	}
	for (size_t i = 0; i < n; i++) {
		if (jobs[i].prepared && jobs[i].error == 0)
			jobs[i].error = job_sync(p, &jobs[i]);
		if (jobs[i].prepared && jobs[i].error == 0)
			jobs[i].error = job_sync_left(p, &jobs[i]);
	}
	step("flush.synced");
	for (size_t i = 0; i < n; i++) {
		if (jobs[i].prepared && jobs[i].error == 0)
			jobs[i].error = job_commit(p, &jobs[i]);
	}
	step("flush.installed");
	sync_batch_dirs(p, jobs, n);
	for (size_t i = 0; i < n; i++) {
		if (jobs[i].prepared) {
			job_finish(p, &jobs[i]);
		} else if (jobs[i].error < 0) {
			lock_take(&jobs[i].n->lock);
			if (jobs[i].n->scratch == jobs[i].s)
				job_failed(p, &jobs[i]);
			lock_drop(&jobs[i].n->lock);
		}
		job_clear(p, &jobs[i]);
	}
	lock_take(&p->lock);
	p->flush_events++;
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
}

/* The daemon's foreground goes first; helper threads inherit both. Failures do not matter. */
static void step_back(struct pool *p)
{
	enum { WHO_PROCESS = 1, CLASS_SHIFT = 13, CLASS_BEST_EFFORT = 2, CLASS_IDLE = 3 };
	int class = p->flush_ioprio > 7 ? CLASS_IDLE : CLASS_BEST_EFFORT;
	int level = p->flush_ioprio > 7 ? 0 : p->flush_ioprio;

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), p->flush_nice);
	(void)syscall(SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | level);
}

static void *flusher_main(void *arg)
{
	struct pool *p = arg;
	struct job *jobs = xcalloc(BATCH_MAX, sizeof(*jobs));
	size_t n;

	step_back(p);
	while ((n = queue_take(p, jobs)) > 0)
		run_batch(p, jobs, n);
	free(jobs);
	return NULL;
}

errint_t flush_start(struct pool *p)
{
	errint_t r = 0;

	p->flushers = xcalloc(p->flusher_count, sizeof(*p->flushers));
	while (p->flushers_running < p->flusher_count && r == 0) {
		r = thread_start(&p->flushers[p->flushers_running], "flusher", flusher_main,
		                 p);
		if (r == 0)
			p->flushers_running++;
	}
	return p->flushers_running > 0 ? 0 : r;
}

void flush_stop(struct pool *p)
{
	lock_take(&p->lock);
	atomic_store(&p->stopping, true);
	pthread_cond_broadcast(&p->work);
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
	while (p->flushers_running > 0)
		(void)pthread_join(p->flushers[--p->flushers_running], NULL);
	free(p->flushers);
	p->flushers = NULL;
}

/* Files held open for writing longer than max_dirty_age. */
void flush_house(struct pool *p)
{
	uint64_t now = clock_mono_ms();
	struct scratch *s;

	lock_take(&p->lock);
	DL_FOREACH2(p->lru, s, lru_next)
	{
		if (s->is_dirty && s->is_open && !s->queued && !s->is_flushing && s->node &&
		    atomic_load(&s->gen) != atomic_load(&s->flushed_gen) &&
		    now - atomic_load(&s->dirty_since_ms) >= p->dirty_age_ms) {
			s->due_ms = 0;
			s->urgent = true;
			queue_insert(p, s);
			pthread_cond_signal(&p->work);
		}
	}
	lock_drop(&p->lock);
}
