/* Hashes of decoded frames: see framehash.h. */
#include "pool/framehash.h"

#include <string.h>
#include <xxhash.h>

struct frame_hashes *framehash_new(const struct seek_table *table)
{
	struct frame_hashes *f = calloc(1, sizeof(*f));
	size_t room = MAX_OF(table->count, (size_t)1);

	if (!f)
		return NULL;
	f->table = *table;
	f->table.allocated = room;
	f->table.entries = malloc(room * sizeof(*f->table.entries));
	f->hash = calloc(room, sizeof(*f->hash));
	if (!f->table.entries || !f->hash) {
		framehash_free(f);
		return NULL;
	}
	if (table->count > 0)
		memcpy(f->table.entries, table->entries,
		       table->count * sizeof(*table->entries));
	return f;
}

struct frame_hashes *framehash_from(const struct seek_table *table,
                                    const struct frame_hash *data_frames)
{
	struct frame_hashes *f = framehash_new(table);

	for (size_t i = 0; f && i < table->count; i++) {
		if (table->entries[i].logical_len > 0)
			f->hash[i] = *data_frames++;
	}
	return f;
}

void framehash_free(struct frame_hashes *f)
{
	if (!f)
		return;
	seektable_clear(&f->table);
	free(f->hash);
	free(f);
}

static struct frame_hash hash_of(const void *data, size_t len)
{
	XXH128_hash_t h = XXH3_128bits(data, len);

	return (struct frame_hash){h.low64, h.high64};
}

void framehash_take(struct frame_hashes *f, size_t i, const void *data)
{
	INVARIANT(i < f->table.count);
	f->hash[i] = hash_of(data, f->table.entries[i].logical_len);
}

bool framehash_same(const struct frame_hashes *f, size_t i, const void *data, size_t len)
{
	struct frame_hash h;

	INVARIANT(i < f->table.count);
	if (len != f->table.entries[i].logical_len)
		return false;
	h = hash_of(data, len);
	return h.low == f->hash[i].low && h.high == f->hash[i].high;
}
