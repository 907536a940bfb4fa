/*
 * A seek table from the frames themselves: see rebuild.h.
 *
 * The walk adds an entry for each frame as it goes. At each valid cellar frame the table so
 * far is what encode.c had when it wrote that one: if its bytes have the hash there, it is a
 * candidate. The last candidate counts, and only if what follows it is no longer than its
 * own table: an object that was appended to has older trailers in its middle, and these
 * must not make an older content of it.
 *
 * The checksum of an entry is the one that ends its zstd frame: both are the low half of the
 * content's XXH64.
 *
 * No state, no threads.
 */
#include "codec/rebuild.h"

#include <string.h>
#include <xxhash.h>

#include "base/sysio.h"
#include "codec/little.h"
#include "codec/object.h"
#include "codec/zframe.h"

#define REBUILD_READS (1U << 20)
#define CHECKSUM_LEN  4U

struct rebuilding {
	int fd;
	struct seek_table table;
	bool unfit; /* not a table that cellar writes */
	bool found;
	struct rebuilt last;
	uint64_t end; /* of its cellar frame */
};

static void rebuilt_clear(struct rebuilt *r)
{
	seektable_clear(&r->table);
	free(r->bytes);
	r->bytes = NULL;
}

static errint_t copy_table(const struct seek_table *from, struct seek_table *ret)
{
	errint_t err = 0;

	seektable_init(ret);
	for (size_t i = 0; i < from->count && !err; i++)
		err = seektable_append(ret, from->entries[i].stored_len,
		                       from->entries[i].logical_len,
		                       from->entries[i].checksum);
	if (err)
		seektable_clear(ret);
	return err;
}

static errint_t look_at_cellar(struct rebuilding *b, uint64_t off)
{
	struct rebuilt r = {.len = 0};
	errint_t err = full_pread(b->fd, r.cellar_bytes, CELLARFRAME_LEN, (off_t)off);

	if (err || !cellarframe_unpack(r.cellar_bytes, CELLARFRAME_LEN, &r.cellar))
		return err;
	err = seektable_serialize(&b->table, &r.bytes, &r.len);
	if (err)
		return err;
	if (XXH64(r.bytes, r.len, 0) == r.cellar.table_check)
		err = copy_table(&b->table, &r.table);
	else
		err = -EUCLEAN;
	if (err) {
		free(r.bytes);
		return err == -EUCLEAN ? 0 : err;
	}
	if (b->found)
		rebuilt_clear(&b->last);
	b->last = r;
	b->found = true;
	b->end = off + CELLARFRAME_LEN;
	return 0;
}

static errint_t add_data(struct rebuilding *b, uint64_t off, uint64_t stored_len,
                         const struct zframe *f)
{
	uint8_t sum[CHECKSUM_LEN];
	errint_t err;

	if (!f->has_size || !f->has_checksum || !f->size || f->size > OBJECT_FRAME_MAX ||
	    stored_len > UINT32_MAX) {
		b->unfit = true;
		return 0;
	}
	err = full_pread(b->fd, sum, sizeof(sum), (off_t)(off + stored_len - sizeof(sum)));
	return err ? err
	           : seektable_append(&b->table, (uint32_t)stored_len, (uint32_t)f->size,
	                              get_le32(sum));
}

static errint_t add_frame(void *ctx, uint64_t off, uint64_t stored_len,
                          const struct zframe *f)
{
	struct rebuilding *b = ctx;
	errint_t err;

	if (b->unfit)
		return 0;
	if (f->kind == ZFRAME_DATA)
		return add_data(b, off, stored_len, f);
	if (stored_len > UINT32_MAX) {
		b->unfit = true;
		return 0;
	}
	err =
	    seektable_append(&b->table, (uint32_t)stored_len, 0, SEEKTABLE_EMPTY_CHECKSUM);
	if (!err && stored_len == CELLARFRAME_LEN)
		err = look_at_cellar(b, off);
	return err;
}

errint_t rebuild_table(int fd, uint64_t stored_size, struct rebuilt *ret, bool *ret_found)
{
	struct rebuilding b = {.fd = fd};
	bool whole;
	errint_t err;

	seektable_init(&b.table);
	err = zframe_each(fd, stored_size, REBUILD_READS, add_frame, &b, &whole);
	seektable_clear(&b.table);
	if (err == -EFBIG)
		err = 0;
	*ret_found = !err && b.found && stored_size - b.end <= b.last.len;
	if (*ret_found)
		*ret = b.last;
	else if (b.found)
		rebuilt_clear(&b.last);
	return err;
}

/* ---- frames in order ---- */

void prover_init(struct prover *p)
{
	*p = (struct prover){.group = 0};
	seektable_init(&p->table);
}

void prover_clear(struct prover *p)
{
	seektable_clear(&p->table);
}

static errint_t prover_add(struct prover *p, uint64_t stored_len, uint64_t logical_len,
                           uint32_t checksum)
{
	if (stored_len > UINT32_MAX || logical_len > UINT32_MAX)
		return 0; /* in no table of ours: nothing will be proved from here on */
	return seektable_append(&p->table, (uint32_t)stored_len, (uint32_t)logical_len,
	                        checksum);
}

errint_t prover_data(struct prover *p, uint64_t stored_len, uint64_t logical_len,
                     uint32_t checksum, bool marked)
{
	p->unproved = p->unproved || marked;
	return prover_add(p, stored_len, logical_len, checksum);
}

/* Whether the entries from `from` on make the table of that hash. */
static errint_t has_hash(const struct prover *p, size_t from, uint64_t hash, bool *ret)
{
	struct seek_table t;
	cleanup_free uint8_t *buf = NULL;
	size_t len;
	errint_t err = 0;

	seektable_init(&t);
	for (size_t i = from; i < p->table.count && !err; i++)
		err = seektable_append(&t, p->table.entries[i].stored_len,
		                       p->table.entries[i].logical_len,
		                       p->table.entries[i].checksum);
	if (!err)
		err = seektable_serialize(&t, &buf, &len);
	if (!err)
		*ret = XXH64(buf, len, 0) == hash;
	seektable_clear(&t);
	return err;
}

errint_t prover_skippable(struct prover *p, uint64_t stored_len, const uint8_t *head)
{
	struct cellar_frame cellar;
	bool same = false;
	errint_t err = prover_add(p, stored_len, 0, SEEKTABLE_EMPTY_CHECKSUM);

	if (err)
		return err;
	if (get_le32(head) == SEEKTABLE_MAGIC && !p->unproved)
		p->group = p->table.count;
	if (stored_len != CELLARFRAME_LEN ||
	    !cellarframe_unpack(head, CELLARFRAME_LEN, &cellar))
		return 0;
	err = has_hash(p, 0, cellar.table_check, &same);
	if (!err && !same && p->group)
		err = has_hash(p, p->group, cellar.table_check, &same);
	if (!err && same)
		p->unproved = false;
	return err;
}
