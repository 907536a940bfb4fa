/*
 * What a flush has to do: which frames of the object stay, which bytes are encoded.
 *
 * Invariants:
 *  (P1) A frame stays only if no byte of it was written since the object was equal: no noted
 *       change touches it (changes.h), or the 128-bit hash of what the scratch holds in its
 *       place is that of the frame. Never by a 32-bit checksum.
 *  (P2) Frames are taken from an object that has the base's stamp: identity, size and trailer,
 *       read through the descriptor that they are copied from.
 *  (P3) What was hashed to be called unchanged counts as read for (F2): the same look at gen
 *       covers it.
 *
 * Memory: 33 bytes a frame of the base, 72 a frame of the result, and the threads' buffers
 * (codec/encode.h: at most ENCODE_MEMORY_MAX a flusher).
 */
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/workers.h"
#include "pool/content.h"
#include "pool/flush-job.h"

#define HASH_PIECE  (1U << 20)
#define LARGE_BYTES (8U << 20) /* from here on a file is worth several threads */

/* ---- the source ---- */

/* Bytes [off, off + len) of one frame of the base. */
static errint_t read_frame(const struct job *j, size_t i, uint8_t *buf, size_t len,
                           uint64_t off, char **cause)
{
	const struct seek_entry *e = &j->base.table.entries[i];
	cleanup_free uint8_t *frame = malloc(e->logical_len);
	errint_t r = frame ? object_decode_frame(&j->base, i, frame, cause) : -ENOMEM;

	if (r == 0)
		memcpy(buf, frame + (off - e->logical_off), len);
	return r;
}

/* What a tail asks of its object. */
static errint_t read_base(const struct job *j, uint8_t *buf, size_t len, uint64_t off,
                          char **cause)
{
	size_t i = seektable_find(&j->base.table, off), done = 0;
	errint_t r = 0;

	INVARIANT(j->has_base && off + len <= j->base.logical_size);
	for (; done < len && r == 0; i++) {
		const struct seek_entry *e = &j->base.table.entries[i];
		uint64_t left = e->logical_off + e->logical_len - (off + done);
		size_t part = (size_t)MIN_OF((uint64_t)(len - done), left);

		if (e->logical_len == 0)
			continue;
		r = read_frame(j, i, buf + done, part, off + done, cause);
		done += part;
	}
	return r;
}

static errint_t read_scratch(void *ctx, void *buf, size_t len, uint64_t off, char **cause)
{
	const struct job *j = ctx;
	struct encode_source fd =
	    encode_source_fd(j->snap_fd > 0 ? &j->snap_fd : &j->in_fd);
	size_t below = off < j->ask ? (size_t)MIN_OF((uint64_t)len, j->ask - off) : 0;
	errint_t r = 0;

	if (below > 0)
		r = read_base(j, buf, below, off, cause);
	if (r == 0 && len > below)
		r = fd.read(fd.ctx, (uint8_t *)buf + below, len - below, off + below,
		            cause);
	return r;
}

/* ---- the base ---- */

static errint_t open_base(struct job *j)
{
	const struct stamp *base = &j->s->record.base;
	errint_t r;

	j->has_base = false;
	if (!j->base_current || j->plain || j->target_fd <= 0)
		return 0;
	r = object_open(j->target_fd, &j->base, &j->cause);
	if (r < 0)
		return r;
	/* (P2) */
	j->has_base = plan_can_keep(&j->base) && j->base.stored_size == base->stored_size &&
	              j->base.trailer_hash[0] == base->trailer_hash[0] &&
	              j->base.trailer_hash[1] == base->trailer_hash[1];
	if (!j->has_base)
		object_close(&j->base);
	return 0;
}

/* ---- what changed ---- */

struct look {
	struct job *j;
	const struct frame_hash *hashes; /* one an entry, or NULL */
	size_t *entries;                 /* those that have to be hashed */
	size_t count;
};

/* (P1) by hash. */
static errint_t hash_entry(void *ctx, size_t i)
{
	const struct look *l = ctx;
	const struct seek_entry *e = &l->j->base.table.entries[l->entries[i]];
	const struct frame_hash *known = &l->hashes[l->entries[i]];
	size_t len = MIN_OF(e->logical_len, HASH_PIECE);
	cleanup_free uint8_t *buf = malloc(len);
	XXH3_state_t *state = XXH3_createState();
	XXH128_hash_t h;
	errint_t r = buf && state ? 0 : -ENOMEM;

	if (r == 0)
		(void)XXH3_128bits_reset(state);
	for (uint64_t at = 0; at < e->logical_len && r == 0; at += len) {
		size_t n = MIN_OF((uint64_t)len, e->logical_len - at);

		r = l->j->source.read(l->j->source.ctx, buf, n, e->logical_off + at, NULL);
		if (r == 0)
			(void)XXH3_128bits_update(state, buf, n);
	}
	if (r == 0) {
		h = XXH3_128bits_digest(state);
		if (h.low64 == known->low && h.high64 == known->high)
			l->j->changed[l->entries[i]] = 0;
	}
	(void)XXH3_freeState(state);
	return r;
}

/* Every entry that a change may have touched, and may be called unchanged by its hash. */
static void note_candidates(struct look *l)
{
	struct job *j = l->j;
	bool all = changes_unseen(&j->changes);

	for (size_t i = 0; i < j->base.table.count; i++) {
		const struct seek_entry *e = &j->base.table.entries[i];

		if (e->logical_len == 0)
			continue;
		j->changed[i] = all || e->logical_off + e->logical_len > j->size ||
		                changes_touch(&j->changes, e->logical_off, e->logical_len);
		if (j->changed[i] && l->hashes &&
		    e->logical_off + e->logical_len <= j->size &&
		    (l->hashes[i].low || l->hashes[i].high))
			l->entries[l->count++] = i;
	}
}

/* One an entry of the base, or NULL. They change only where a flush of this file ends. */
static const struct frame_hash *known_hashes(const struct job *j)
{
	const struct frame_hashes *f = j->s->frames;

	return j->has_base && f && f->table.count == j->base.table.count ? f->hash : NULL;
}

static errint_t find_changed(struct pool *p, struct job *j)
{
	size_t n = j->base.table.count;
	cleanup_free size_t *entries = calloc(n + 1, sizeof(*entries));
	struct look l = {.j = j, .entries = entries};
	unsigned threads = j->size > LARGE_BYTES ? p->decode_threads : 1;

	free(j->changed);
	j->changed = calloc(n + 1, 1);
	if (!j->changed || !entries)
		return -ENOMEM;
	l.hashes = known_hashes(j);
	note_candidates(&l);
	return parallel_for(threads, l.count, hash_entry, &l);
}

static bool nothing_changed(const struct job *j)
{
	if (!j->has_base || j->size != j->base.logical_size)
		return false;
	for (size_t i = 0; i < j->base.table.count; i++) {
		if (j->changed[i])
			return false;
	}
	return true;
}

/* ---- the plan ---- */

/* An append writes into the inode that users see: it must be able to leave all of it as it was. */
static bool may_append(const struct job *j)
{
	const struct stat *st = &j->target_st;

	/* With the gate held the node's lock cannot be taken (lock.h); and what is written all the
	 * time is no append. */
	if (!j->has_base || j->no_append || j->hold_writers || j->s->base_pending)
		return false; /* base_pending: no record names what would be appended to */
	/* Writing clears these, and another's file keeps no mtime that we set. */
	if ((st->st_mode & (S_ISUID | S_ISGID)) ||
	    sys_fgetxattr(j->target_fd, "security.capability", NULL, 0) > 0)
		return false;
	return geteuid() == 0 || st->st_uid == geteuid();
}

errint_t job_plan(struct pool *p, struct job *j)
{
	struct plan_rules rules = {
	    .frame_size = p->frame_size,
	    .append_min = p->append_min,
	};
	errint_t r;

	job_plan_clear(j);
	j->source = (struct encode_source){.read = read_scratch, .ctx = j};
	if (j->plain)
		return 0;
	r = open_base(j);
	if (r == 0 && j->ask > 0 && !j->has_base)
		r = set_cause(&j->cause, -ESTALE, "%s", TAIL_WHY);
	if (r == 0 && j->has_base)
		r = find_changed(p, j);
	if (r < 0)
		return r;
	j->same = nothing_changed(j);
	if (j->same)
		return 0;
	rules.may_append = may_append(j);
	return plan_make(j->has_base ? &j->base : NULL, j->changed, j->size, &rules,
	                 &j->plan, &j->cause);
}

void job_plan_clear(struct job *j)
{
	plan_clear(&j->plan);
	if (j->has_base)
		object_close(&j->base);
	j->has_base = j->same = false;
	free(j->changed);
	free(j->hashes);
	framehash_free(steal_pointer(&j->new_frames));
	j->changed = NULL;
	j->hashes = NULL;
}

/* ---- carrying it out ---- */

errint_t job_encoder(struct pool *p, struct job *j, int fd, struct encoder **ret)
{
	struct encode_params params = {
	    .level = p->level,
	    .frame_size = p->frame_size,
	    .prove = true,
	    .threads = encode_threads(p->decode_threads, p->frame_size),
	};

	params.cellar.pool = p->place.uuid;
	params.cellar.ino = j->n->ino;
	params.cellar.seq = j->seq;
	params.cellar.ctime = j->ctime;
	if (j->size <= LARGE_BYTES)
		params.threads = 1;
	return encoder_new(&j->source, j->size, fd, &params, &j->plan,
	                   j->has_base ? &j->base : NULL, known_hashes(j), ret, &j->cause);
}

/* Those of a single frame tell nothing that its change does not. */
void job_keep_hashes(struct job *j, struct encoder *e)
{
	free(j->hashes);
	j->hashes = j->result.frames > 1 ? encoder_take_hashes(e) : NULL;
}

errint_t job_run_plan(struct pool *p, struct job *j)
{
	struct encoder *e = NULL;
	errint_t r = job_encoder(p, j, j->out_fd, &e);

	if (r == 0)
		r = encoder_frames(e, &j->cause);
	if (r == 0)
		r = encoder_trailer(e, &j->result, &j->cause);
	if (r == 0)
		job_keep_hashes(j, e);
	encoder_free(e);
	return r;
}

errint_t job_still_true(struct job *j)
{
	struct scratch *s = j->s;
	bool same;

	if (j->snap_fd > 0)
		return 0; /* nobody writes to it */
	lock_take(&j->n->lock);
	rwlock_wr(&s->gate);
	(void)content_gen(s->pool, s);
	/* What was written past the end that was read is for the next flush. */
	same = atomic_load(&s->gen) == j->gen ||
	       (!changes_unseen(&s->changes) && changes_lowest(&s->changes) >= j->size);
	rwlock_drop(&s->gate);
	lock_drop(&j->n->lock);
	return same ? 0 : -EAGAIN;
}
