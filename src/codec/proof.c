/*
 * The proof that a written object says what it should: see encode.h.
 *
 * Threads: each decodes frames of its own; the hashes go into an array, one slot a frame.
 */
#include "codec/encode.h"

#include <xxhash.h>

#include "codec/hash.h"
#include "codec/object.h"

typedef unsigned long long ull; /* for %llu */

struct proof {
	const struct object *o;
	XXH128_hash_t *hashes; /* one an entry */
};

static errint_t prove_frame(void *ctx, size_t i, const void *data)
{
	const struct proof *p = ctx;

	p->hashes[i] = XXH3_128bits(data, p->o->table.entries[i].logical_len);
	return 0;
}

static errint_t compare_shape(const struct object *o, const struct encode_result *r,
                              char **cause)
{
	if (o->kind != OBJECT_SEEKABLE || !o->has_cellar_frame)
		return set_cause(cause, -EUCLEAN,
		                 "the written object has no valid trailer");
	if (o->stored_size != r->stored_size || o->logical_size != r->logical_size)
		return set_cause(
		    cause, -EUCLEAN,
		    "the written object is %llu bytes for %llu, not %llu for %llu",
		    (ull)o->stored_size, (ull)o->logical_size, (ull)r->stored_size,
		    (ull)r->logical_size);
	if (o->trailer_hash[0] != r->trailer_hash[0] ||
	    o->trailer_hash[1] != r->trailer_hash[1] || o->table.count != r->entries)
		return set_cause(cause, -EUCLEAN, "the written object has another trailer");
	return 0;
}

static errint_t compare_content(const struct proof *p, const struct encode_result *r,
                                char **cause)
{
	XXH3_state_t *all = XXH3_createState();
	uint64_t hash[2];

	if (!all)
		return -ENOMEM;
	(void)XXH3_128bits_reset(all);
	for (size_t i = 0; i < r->frames; i++)
		encode_hash_add(all, p->hashes[i]);
	encode_hash_end(all, hash);
	(void)XXH3_freeState(all);
	if (hash[0] != r->content_hash[0] || hash[1] != r->content_hash[1])
		return set_cause(cause, -EUCLEAN,
		                 "the written object decodes to other bytes");
	return 0;
}

static errint_t verify_opened(const struct object *o, const struct encode_result *r,
                              unsigned threads, char **cause)
{
	cleanup_free XXH128_hash_t *hashes = calloc(o->table.count + 1, sizeof(*hashes));
	struct proof p = {.o = o, .hashes = hashes};
	errint_t err = compare_shape(o, r, cause);

	if (err)
		return err;
	if (!hashes)
		return -ENOMEM;
	err = object_each_frame(o, 0, r->frames, threads, prove_frame, &p, cause);
	return err ? err : compare_content(&p, r, cause);
}

errint_t encode_verify(int fd, const struct encode_result *r, unsigned threads,
                       char **cause)
{
	struct object o;
	errint_t err = object_open(fd, &o, cause);

	if (err)
		return err;
	o.uncounted = true;
	err = verify_opened(&o, r, threads, cause);
	object_close(&o);
	return err;
}

errint_t encode_check(int fd, const struct encode_result *r, char **cause)
{
	struct object o;
	errint_t err = object_open(fd, &o, cause);

	if (err)
		return err;
	err = compare_shape(&o, r, cause);
	object_close(&o);
	return err;
}
