/* UUIDs (RFC 4122 text form): stores, pools, boots. */
#ifndef CELLAR_BASE_UUID_H
#define CELLAR_BASE_UUID_H

#include "base/error.h"

struct uuid {
	uint8_t b[16];
};
struct uuid_text {
	char s[37];
};

struct uuid uuid_random(void);
bool uuid_parse(const char *text, struct uuid *ret);
struct uuid_text uuid_format(const struct uuid *u);
bool uuid_equal(const struct uuid *a, const struct uuid *b);
bool uuid_is_null(const struct uuid *u);

#endif
