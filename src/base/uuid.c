/* UUIDs: RFC 4122 version 4 from getrandom(2), and their text form. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/uuid.h"

#define UUID_TEXT_LEN 36

struct uuid uuid_random(void)
{
	struct uuid u;
	ssize_t n;

	/* Up to 256 bytes come whole; only the wait for early boot's entropy is
	 * interrupted. */
	do
		n = getrandom(u.b, sizeof(u.b), 0);
	while (n < 0 && errno == EINTR);
	INVARIANT(n == (ssize_t)sizeof(u.b));

	u.b[6] = (u.b[6] & 0x0f) | 0x40; /* version 4 */
	u.b[8] = (u.b[8] & 0x3f) | 0x80; /* RFC 4122 variant */
	return u;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static bool dash_before(size_t byte)
{
	return byte == 4 || byte == 6 || byte == 8 || byte == 10;
}

bool uuid_parse(const char *text, struct uuid *ret)
{
	struct uuid u;
	const char *p = text;

	if (strnlen(text, UUID_TEXT_LEN + 1) != UUID_TEXT_LEN)
		return false;
	for (size_t i = 0; i < sizeof(u.b); i++) {
		int high, low;

		if (dash_before(i) && *p++ != '-')
			return false;
		high = hex_digit(*p++);
		low = hex_digit(*p++);
		if (high < 0 || low < 0)
			return false;
		u.b[i] = (uint8_t)(high << 4 | low);
	}
	*ret = u;
	return true;
}

struct uuid_text uuid_format(const struct uuid *u)
{
	static const char digits[] = "0123456789abcdef";
	struct uuid_text t;
	char *p = t.s;

	for (size_t i = 0; i < sizeof(u->b); i++) {
		if (dash_before(i))
			*p++ = '-';
		*p++ = digits[u->b[i] >> 4];
		*p++ = digits[u->b[i] & 0xf];
	}
	*p = '\0';
	return t;
}

bool uuid_equal(const struct uuid *a, const struct uuid *b)
{
	return memcmp(a->b, b->b, sizeof(a->b)) == 0;
}

bool uuid_is_null(const struct uuid *u)
{
	static const struct uuid null;

	return uuid_equal(u, &null);
}
