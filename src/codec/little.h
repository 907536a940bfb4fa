/* Little-endian numbers in byte buffers, as all formats of cellar have them. */
#ifndef CELLAR_CODEC_LITTLE_H
#define CELLAR_CODEC_LITTLE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define LITTLE_ACCESSORS(bits)                                                             \
	static inline uint##bits##_t get_le##bits(const void *p)                           \
	{                                                                                  \
		uint##bits##_t v;                                                          \
                                                                                           \
		memcpy(&v, p, sizeof(v));                                                  \
		return le##bits##toh(v);                                                   \
	}                                                                                  \
	static inline void put_le##bits(void *p, uint##bits##_t v)                         \
	{                                                                                  \
		v = htole##bits(v);                                                        \
		memcpy(p, &v, sizeof(v));                                                  \
	}

LITTLE_ACCESSORS(16)
LITTLE_ACCESSORS(32)
LITTLE_ACCESSORS(64)

#endif
