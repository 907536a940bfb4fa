/*
 * Hashes of what frames decode to: XXH3, 128 bits.
 *
 * The hash of an object's content: XXH3_128 over the XXH3_128 of each frame, in order, each in
 * canonical (big-endian) form.
 */
#ifndef CELLAR_CODEC_HASH_H
#define CELLAR_CODEC_HASH_H

#include <xxhash.h>

struct frame_hash {
	uint64_t low, high; /* both 0: not known */
};

static inline void encode_hash_add(XXH3_state_t *all, XXH128_hash_t h)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, h);
	(void)XXH3_128bits_update(all, c.digest, sizeof(c.digest));
}

static inline void encode_hash_end(const XXH3_state_t *all, uint64_t ret[2])
{
	XXH128_hash_t h = XXH3_128bits_digest(all);

	ret[0] = h.low64;
	ret[1] = h.high64;
}

#endif
