/*
 * Batches: see batch.h for what one says. Hash tables, nothing else; and the one place that
 * writes rows.
 */
#include "catalog/batch.h"

#include <string.h>

#include "base/counters.h"

struct file_change *batch_file_of_ident(const struct batch *b, const struct ident *ident)
{
	struct file_change *f;

	HASH_FIND(by_ident, b->by_ident, ident, sizeof(*ident), f);
	return f;
}

struct file_change *batch_file_of_ino(const struct batch *b, uint64_t ino)
{
	struct file_change *f;

	HASH_FIND(by_ino, b->by_ino, &ino, sizeof(ino), f);
	return f;
}

/* A number that a row of this batch had for a while. */
struct freed {
	uint64_t ino;
	UT_hash_handle hh;
};

static struct freed *freed_of(const struct batch *b, uint64_t ino)
{
	struct freed *f;

	HASH_FIND(hh, b->freed, &ino, sizeof(ino), f);
	return f;
}

bool batch_frees_ino(const struct batch *b, uint64_t ino)
{
	return freed_of(b, ino) != NULL;
}

bool batch_covers_ino(const struct batch *b, uint64_t ino)
{
	return batch_file_of_ino(b, ino) || freed_of(b, ino);
}

static void add_freed(struct batch *b, uint64_t ino)
{
	struct freed *f = xcalloc(1, sizeof(*f));

	f->ino = ino;
	HASH_ADD(hh, b->freed, ino, sizeof(f->ino), f);
}

static void mark_gone(struct batch *b, struct file_change *f)
{
	if (f->gone)
		return;
	HASH_DELETE(by_ino, b->by_ino, f);
	f->gone = true;
	add_freed(b, f->row.ino);
}

/* Nobody has the number, here or below. */
static void free_ino(struct batch *b, uint64_t ino)
{
	struct file_change *f = batch_file_of_ino(b, ino);

	if (f)
		mark_gone(b, f);
	else if (!freed_of(b, ino))
		add_freed(b, ino);
}

struct file_change *batch_delete_file(struct batch *b, const struct ident *ident)
{
	struct file_change *f = batch_file_of_ident(b, ident);

	if (f) {
		mark_gone(b, f);
		return f;
	}
	f = xcalloc(1, sizeof(*f));
	f->row.ident = *ident;
	f->gone = true;
	HASH_ADD(by_ident, b->by_ident, row.ident, sizeof(struct ident), f);
	return f;
}

void batch_put_file(struct batch *b, const struct catalog_file *row)
{
	struct file_change *f = batch_delete_file(b, &row->ident);
	struct freed *freed;

	free_ino(b, row->ino);
	freed = freed_of(b, row->ino);
	HASH_DEL(b->freed, freed);
	free(freed);
	f->row = *row;
	f->gone = false;
	HASH_ADD(by_ino, b->by_ino, row.ino, sizeof(f->row.ino), f);
}

struct scratch_change *batch_scratch(const struct batch *b, uint64_t ino)
{
	struct scratch_change *s;

	HASH_FIND(hh, b->scratches, &ino, sizeof(ino), s);
	return s;
}

struct scratch_change *batch_take_scratch(struct batch *b, uint64_t ino)
{
	struct scratch_change *s = batch_scratch(b, ino);

	if (!s) {
		s = xcalloc(1, sizeof(*s));
		s->row.ino = ino;
		HASH_ADD(hh, b->scratches, row.ino, sizeof(s->row.ino), s);
	}
	free(s->row.last_error);
	s->row.last_error = NULL;
	s->gone = true;
	return s;
}

struct meta_change *batch_meta(const struct batch *b, const char *key)
{
	struct meta_change *m;

	HASH_FIND_STR(b->metas, key, m);
	return m;
}

void batch_put_meta(struct batch *b, const char *key, const char *value)
{
	struct meta_change *m = batch_meta(b, key);

	if (!m) {
		m = xcalloc(1, sizeof(*m));
		m->key = xstrdup(key);
		HASH_ADD_KEYPTR(hh, b->metas, m->key, strlen(m->key), m);
	}
	free(m->value);
	m->value = xstrdup(value);
}

bool batch_is_empty(const struct batch *b)
{
	return !b->by_ident && !b->scratches && !b->metas;
}

size_t batch_size(const struct batch *b)
{
	return HASH_CNT(by_ident, b->by_ident) + HASH_COUNT(b->scratches);
}

void batch_clear(struct batch *b)
{
	struct file_change *f, *f_next;
	struct scratch_change *s, *s_next;
	struct meta_change *m, *m_next;
	struct freed *freed, *freed_next;

	HASH_CLEAR(by_ino, b->by_ino);
	HASH_ITER (by_ident, b->by_ident, f, f_next) {
		HASH_DELETE(by_ident, b->by_ident, f);
		free(f);
	}
	HASH_ITER (hh, b->freed, freed, freed_next) {
		HASH_DEL(b->freed, freed);
		free(freed);
	}
	HASH_ITER (hh, b->scratches, s, s_next) {
		HASH_DEL(b->scratches, s);
		free(s->row.last_error);
		free(s);
	}
	HASH_ITER (hh, b->metas, m, m_next) {
		HASH_DEL(b->metas, m);
		free(m->key);
		free(m->value);
		free(m);
	}
}

void batch_apply(struct batch *older, struct batch *newer)
{
	struct file_change *f, *f_next;
	struct scratch_change *s, *s_next;
	struct meta_change *m, *m_next;
	struct freed *freed, *freed_next;

	HASH_ITER (hh, newer->freed, freed, freed_next)
		free_ino(older, freed->ino);
	HASH_ITER (by_ident, newer->by_ident, f, f_next) {
		if (f->gone)
			(void)batch_delete_file(older, &f->row.ident);
		else
			batch_put_file(older, &f->row);
	}
	HASH_ITER (hh, newer->scratches, s, s_next) {
		struct scratch_change *mine = batch_take_scratch(older, s->row.ino);

		mine->row = s->row;
		mine->gone = s->gone;
		s->row.last_error = NULL; /* moved */
	}
	HASH_ITER (hh, newer->metas, m, m_next)
		batch_put_meta(older, m->key, m->value);
	batch_clear(newer);
}

/* Live rows of a batch have distinct numbers, so the order among them does not matter: what
 * a REPLACE throws out is out of date, or is put again by its own row. */
static errint_t write_files(struct db *db, const struct batch *b)
{
	const struct freed *freed, *freed_next;
	const struct file_change *f, *f_next;
	errint_t err = 0;

	HASH_ITER (hh, b->freed, freed, freed_next) {
		err = db_file_delete_ino(db, freed->ino);
		if (err)
			return err;
	}
	HASH_ITER (by_ident, b->by_ident, f, f_next) {
		if (f->gone)
			err = db_file_delete(db, &f->row.ident);
		else
			err = db_file_put(db, &f->row);
		if (err)
			return err;
	}
	return 0;
}

static errint_t write_others(struct db *db, const struct batch *b)
{
	const struct scratch_change *s, *s_next;
	const struct meta_change *m, *m_next;
	errint_t err;

	HASH_ITER (hh, b->scratches, s, s_next) {
		if (s->gone)
			err = db_scratch_delete(db, s->row.ino);
		else
			err = db_scratch_put(db, &s->row);
		if (err)
			return err;
	}
	HASH_ITER (hh, b->metas, m, m_next) {
		err = db_meta_put(db, m->key, m->value);
		if (err)
			return err;
	}
	return 0;
}

errint_t batch_write(struct db *db, const struct batch *b, char **cause)
{
	errint_t err;

	if (batch_is_empty(b))
		return 0;
	err = db_begin(db);
	if (!err)
		err = write_files(db, b);
	if (!err)
		err = write_others(db, b);
	if (!err)
		err = db_commit(db);
	if (err) {
		(void)set_cause_errno(cause, err, "%s", db_message(db));
		db_rollback(db);
	} else {
		count_one(COUNTER_CATALOG_COMMITS);
	}
	return err;
}
