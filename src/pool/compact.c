/*
 * Compaction of one object: see compact.h for what it guarantees.
 *
 *   compact_look     cold? which object, worth it?                  [ns, file]
 *   compact_encode   object -> plain bytes -> tmp/, verified         [no lock]
 *   (sync)           fsync of the tmp file                           [no lock]
 *   compact_commit   still cold, still the same? rename or copy over [ns, directory, file]
 *   (sync)           fsync of the directory                          [no lock]
 *
 * It is a flush without a scratch and goes by the rules of flush.c: (F1) for the object, (F3)
 * for what is replaced, (F7) for attributes. Its own invariants:
 *
 *  (P1) Only a cold file is compacted: no scratch of its number exists, seen under its lock
 *       at the beginning and at the commit. So no record can name a base that goes, and no
 *       reader holds a table of it that it still needs: a hydration has its own descriptor.
 *  (P2) Any doubt ends it: what changed meanwhile (identity, size, times) is left alone and
 *       -EAGAIN says so. Losing the race costs the work, never the data.
 *  (P3) It has a flush number of its own, the old one plus 1: should the catalog's row be lost,
 *       the new object is known as the younger one of the two that name this file (resolve.h).
 *       No record can be between them (P1): a later scratch counts on from either.
 *  (P4) Every byte that is encoded was decoded with its checksums met, and what was encoded
 *       decodes to the same hash (encode_verify) before the old object goes.
 */
#include "pool/compact.h"

#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "pool/flush-job.h"
#include "store/attrs.h"
#include "store/durable.h"

/* Frames of the wanted size leave one smaller at the end; above this share of them an
 * object counts as made of too small ones. */
#define SMALL_FRAMES(wanted) ((wanted) + 1 + (wanted) / 8)

struct compaction {
	struct pool *p;
	const struct pool_compaction *wanted;
	struct job job;
	struct object object; /* of job.target_fd */
	bool have_object;
	bool worth;
	uint64_t logical_size; /* of what was encoded */
	struct pool_compacted done;
};

/* (P1) node->lock held. */
static bool is_cold(struct pool *p, struct node *n)
{
	struct scratch *s;

	if (n->scratch)
		return false;
	lock_take(&p->lock);
	HASH_FIND(hh, p->by_ino, &n->ino, sizeof(n->ino), s);
	lock_drop(&p->lock);
	return !s;
}

/* Whether a try could win anything: from the trailer alone. */
static bool is_worth(const struct compaction *c)
{
	const struct object *o = &c->object;
	const struct pool_compaction *w = c->wanted;
	uint64_t frames;

	if (c->job.n->plain)
		return o->stored_size > 0;
	if (o->kind != OBJECT_SEEKABLE || !o->has_cellar_frame)
		return o->kind != OBJECT_EMPTY;
	if (o->cellar.flags & CELLARFRAME_INCOMPRESSIBLE)
		return false;
	frames = o->logical_size / w->frame_size + 1;
	return o->logical_size > 0 &&
	       (o->cellar.level < w->level || o->table.count > SMALL_FRAMES(frames));
}

static errint_t open_target(struct compaction *c)
{
	struct job *j = &c->job;
	errint_t r;

	j->target_fd = store_open_object(j->at.dirfd, j->at.store_name.s);
	if (j->target_fd < 0)
		return set_cause_errno(&j->cause, j->target_fd, "cannot open its object");
	r = sys_fstat(j->target_fd, &j->target_st);
	if (r == 0)
		r = object_open(j->target_fd, &c->object, &j->cause);
	if (r < 0)
		return r;
	c->have_object = true;
	if (j->n->plain) {
		c->object.kind = OBJECT_PLAIN;
		c->object.logical_size = c->object.stored_size;
	}
	c->done.stored_before = c->object.stored_size;
	j->seq =
	    MAX_OF(j->n->info.seq, c->object.has_cellar_frame ? c->object.cellar.seq : 0) +
	    1; /* (P3) */
	return 0;
}

static errint_t choose_way(struct compaction *c)
{
	struct job *j = &c->job;
	errint_t r = 0;

	j->install_name = j->at.store_name;
	if (j->n->plain)
		r = job_decide_plain(c->p, j);
	else
		j->copy_over = j->target_st.st_nlink > 1;
	c->worth = is_worth(c) && !j->plain;
	return r;
}

static errint_t compact_look(struct compaction *c)
{
	struct job *j = &c->job;
	struct stat st;
	errint_t r;

	rmlock_rd(&c->p->tree->ns);
	lock_take(&j->n->lock);
	r = is_cold(c->p, j->n) ? node_place(c->p->tree, j->n, &j->at) : -EBUSY;
	if (r == 0) {
		j->have_place = true;
		r = sys_fstatat(j->at.dirfd, j->at.store_name.s, &st, AT_SYMLINK_NOFOLLOW);
	}
	if (r == 0)
		r = resolve_info(c->p->tree, j->n, j->at.dirfd, j->at.store_name.s, &st,
		                 &j->cause);
	if (r == 0)
		r = open_target(c);
	if (r == 0) {
		j->ctime = job_logical_ctime(j, &j->target_st);
		r = choose_way(c);
	}
	lock_drop(&j->n->lock);
	rmlock_drop(&c->p->tree->ns);
	return r;
}

/* ---- encoding ---- */

static bool is_stopped(const struct compaction *c)
{
	return c->wanted->stop && *c->wanted->stop;
}

static errint_t write_plain(void *ctx, uint64_t off, const void *data, size_t len)
{
	struct compaction *c = ctx;
	errint_t r = full_pwrite(c->job.in_fd, data, len, (off_t)off);

	if (r < 0)
		return set_cause_errno(&c->job.cause, r, "cannot write to the pool");
	c->logical_size = off + len;
	return is_stopped(c) ? -EINTR : 0;
}

/* An unnamed file on the pool's disk. */
static int make_unnamed(struct pool *p)
{
	int fd = sys_openat(p->scratch_fd, ".", O_TMPFILE | O_RDWR, 0600);
	struct name name;

	if (fd != -EOPNOTSUPP && fd != -EISDIR && fd != -ENOENT)
		return fd;
	fd = store_tmp_create(p->store, &name);
	if (fd >= 0)
		store_tmp_unlink(p->store, name.s);
	return fd;
}

/* job.in_fd: the plain bytes; of a plain file they are its own. */
static errint_t decode(struct compaction *c)
{
	struct job *j = &c->job;
	errint_t r;

	if (j->n->plain) {
		j->in_fd = dup(j->target_fd);
		c->logical_size = c->object.stored_size;
		return j->in_fd < 0 ? -errno : 0;
	}
	if (!pool_has_room(c->p, c->object.logical_size == OBJECT_SIZE_UNKNOWN
	                             ? 0
	                             : c->object.logical_size))
		return set_cause(&j->cause, -ENOSPC,
		                 "the pool's disk has no room for its plain bytes");
	j->in_fd = make_unnamed(c->p);
	if (j->in_fd < 0)
		return set_cause_errno(&j->cause, j->in_fd,
		                       "cannot make a file in the pool");
	r = object_decode_all(&c->object, c->p->max_object, write_plain, c, &j->cause);
	if (r == 0 && c->object.logical_size != OBJECT_SIZE_UNKNOWN &&
	    c->object.logical_size != c->logical_size)
		r = set_cause(&j->cause, -EUCLEAN,
		              "decodes to another number of bytes than it says");
	return r;
}

static errint_t encode(struct compaction *c)
{
	struct job *j = &c->job;
	struct encode_params params = {
	    .level = c->wanted->level,
	    .frame_size = c->wanted->frame_size,
	    .threads = c->wanted->threads,
	    .stop = c->wanted->stop,
	    .cellar = {.pool = c->p->place.uuid,
	               .ino = j->n->ino,
	               .seq = j->seq,
	               .ctime = j->ctime},
	};
	errint_t r;

	j->out_fd = store_tmp_create(c->p->store, &j->tmp);
	if (j->out_fd < 0)
		return set_cause_errno(&j->cause, j->out_fd,
		                       "cannot make a file in the store");
	r = encode_object(j->in_fd, c->logical_size, j->out_fd, &params, &j->result,
	                  &j->cause);
	if (r == 0)
		r = encode_verify(j->out_fd, &j->result, params.threads,
		                  &j->cause); /* (P4) */
	step("compact.encoded");
	return r;
}

/* What is not smaller replaces only what lacks something: a table, our frame, a name. */
static bool is_better(const struct compaction *c)
{
	return c->job.result.stored_size < c->object.stored_size || c->job.n->plain ||
	       c->object.kind != OBJECT_SEEKABLE || !c->object.has_cellar_frame;
}

static errint_t compact_encode(struct compaction *c)
{
	struct job *j = &c->job;
	errint_t r = decode(c);

	if (r == 0)
		r = encode(c);
	if (r < 0 || !is_better(c)) {
		c->worth = false;
		return r;
	}
	r = attrs_copy(j->target_fd, j->out_fd, &j->target_st.st_mtim, &j->cause);
	if (r == -EPERM) { /* an ordinary user's daemon and another's file */
		free(steal_pointer(&j->cause));
		j->copy_over = true;
		r = 0;
	}
	if (r < 0)
		return r;
	r = store_sync_file(j->out_fd);
	step("compact.synced");
	return r < 0 ? set_cause_errno(&j->cause, r, "cannot sync the new object") : 0;
}

/* ---- the commit ---- */

/* (P2): attributes too, which were copied from what it was. */
static errint_t still_same(const struct compaction *c)
{
	struct stat st;
	errint_t r = sys_fstat(c->job.target_fd, &st);

	if (r < 0)
		return r;
	return st.st_nlink == c->job.target_st.st_nlink &&
	               timespec_cmp(&st.st_ctim, &c->job.target_st.st_ctim) == 0
	           ? 0
	           : -EAGAIN;
}

static errint_t compact_commit(struct compaction *c)
{
	struct job *j = &c->job;
	errint_t r;

	rmlock_rd(&c->p->tree->ns);
	r = job_lock_target(c->p, j); /* (F3) */
	if (r == 0) {
		r = is_cold(c->p, j->n) ? still_same(c) : -EBUSY; /* (P1), (P2) */
		if (r == 0)
			r = job_install(c->p, j);
		job_unlock_target(c->p, j);
	}
	rmlock_drop(&c->p->tree->ns);
	step("compact.installed");
	if (r == 0 && j->installed)
		r = sync_directories(c->p, j->at.parent, j->at.dirfd);
	if (r == 0) {
		c->done.replaced = true;
		c->done.stored_after = j->result.stored_size;
		count_one(COUNTER_COMPACTIONS);
		if (c->p->notify)
			c->p->notify(c->p->notify_ctx, j->n->ino);
	}
	return r;
}

errint_t pool_compact(struct pool *p, struct node *n, const struct pool_compaction *wanted,
                      struct pool_compacted *ret, char **cause)
{
	struct compaction c = {.p = p, .wanted = wanted, .job = {.n = n}};
	const char *doing = "cannot look at its object";
	errint_t r;

	INVARIANT(wanted->threads > 0);
	memset(ret, 0, sizeof(*ret));
	if (!S_ISREG(n->type))
		return -EINVAL;
	node_ref(p->tree, n); /* job_clear() gives it back */
	r = compact_look(&c);
	c.done.stored_after = c.done.stored_before;
	if (r == 0 && c.worth) {
		doing = "cannot make its new object";
		r = compact_encode(&c);
	}
	if (r == 0 && c.worth) {
		doing = "cannot put its new object in place";
		r = compact_commit(&c);
	}
	c.done.logical_bytes = c.logical_size;
	if (c.have_object)
		object_close(&c.object);
	*ret = c.done;
	if (r < 0)
		(void)(c.job.cause ? set_cause(cause, r, "%s", c.job.cause)
		                   : set_cause_errno(cause, r, "%s", doing));
	job_clear(p, &c.job);
	return r;
}
