/*
 * Text in and out: see text.h. Pure functions, no state.
 *
 * Numbers are parsed and printed in integers, so that what is printed does not depend on
 * the locale and no value is off by a rounding of doubles.
 */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/text.h"

struct unit {
	const char *name;
	uint64_t size; /* in bytes or milliseconds */
};

/* "12.25" followed by a unit. */
struct number {
	uint64_t whole;
	uint64_t part;  /* digits after the point ... */
	uint64_t scale; /* ... of which one is 1/scale */
	const char *rest;
};

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool parse_number(const char *s, struct number *ret)
{
	struct number n = {.scale = 1};

	if (!is_digit(*s))
		return false;
	for (; is_digit(*s); s++) {
		if (__builtin_mul_overflow(n.whole, 10, &n.whole) ||
		    __builtin_add_overflow(n.whole, (uint64_t)(*s - '0'), &n.whole))
			return false;
	}
	if (*s == '.') {
		s++;
		if (!is_digit(*s))
			return false;
		for (; is_digit(*s); s++) {
			/* Digits this far out are below one byte of any unit. */
			if (n.scale >= 1000000000000000000ULL)
				continue;
			n.part = n.part * 10 + (uint64_t)(*s - '0');
			n.scale *= 10;
		}
	}
	n.rest = s;
	*ret = n;
	return true;
}

/* Fractions of the smallest unit are refused: "0.5" bytes is a mistake, not 0. */
static bool scale_number(const struct number *n, uint64_t unit, uint64_t *ret)
{
	unsigned __int128 v;

	if (unit == 1 && n->scale != 1)
		return false;
	v = (unsigned __int128)n->whole * unit +
	    (unsigned __int128)n->part * unit / n->scale;
	if (v > UINT64_MAX)
		return false;
	*ret = (uint64_t)v;
	return true;
}

bool text_parse_size(const char *s, uint64_t *ret_bytes)
{
	static const char letters[] = "KMGT";
	struct number n;
	const char *letter;
	uint64_t unit = 1;

	if (!parse_number(s, &n))
		return false;
	s = n.rest;
	letter = *s ? strchr(letters, *s & ~0x20) : NULL;
	if (letter && ((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z'))) {
		unit <<= 10 * (letter - letters + 1);
		s++;
		if (*s && strcasecmp(s, "B") != 0 && strcasecmp(s, "iB") != 0)
			return false;
	} else if (*s && strcasecmp(s, "B") != 0) {
		return false;
	}
	return scale_number(&n, unit, ret_bytes);
}

bool text_parse_duration(const char *s, uint64_t *ret_ms)
{
	static const struct unit units[] = {{"", 1000},   {"s", 1000},    {"ms", 1},
	                                    {"m", 60000}, {"h", 3600000}, {"d", 86400000}};
	struct number n;

	if (!parse_number(s, &n))
		return false;
	for (size_t i = 0; i < ARRAY_LEN(units); i++) {
		if (strcmp(n.rest, units[i].name) == 0)
			return scale_number(&n, units[i].size, ret_ms);
	}
	return false;
}

/* The value in the largest unit of which it has at least one, to one decimal place, which
 * is left out where it is 0. A value that rounds up to the next unit is shown in that. */
static struct text_short format_short(uint64_t value, const struct unit *units, size_t n)
{
	struct text_short t;
	unsigned __int128 tenths;
	size_t i = n - 1;

	while (i > 0 && value < units[i].size)
		i--;
	tenths = (unsigned __int128)value * 10;
	if (units[i].size > 1)
		tenths = (tenths + units[i].size / 2) / units[i].size;
	if (i + 1 < n &&
	    tenths * units[i].size >= (unsigned __int128)units[i + 1].size * 10) {
		tenths = 10;
		i++;
	}
	if (tenths % 10)
		(void)snprintf(t.s, sizeof(t.s), "%llu.%u %s",
		               (unsigned long long)(tenths / 10), (unsigned)(tenths % 10),
		               units[i].name);
	else
		(void)snprintf(t.s, sizeof(t.s), "%llu %s",
		               (unsigned long long)(tenths / 10), units[i].name);
	return t;
}

struct text_short text_size(uint64_t bytes)
{
	static const struct unit units[] = {{"B", 1},
	                                    {"KiB", 1ULL << 10},
	                                    {"MiB", 1ULL << 20},
	                                    {"GiB", 1ULL << 30},
	                                    {"TiB", 1ULL << 40},
	                                    {"PiB", 1ULL << 50},
	                                    {"EiB", 1ULL << 60}};

	return format_short(bytes, units, ARRAY_LEN(units));
}

struct text_short text_duration(uint64_t ms)
{
	static const struct unit units[] = {
	    {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}};

	return format_short(ms, units, ARRAY_LEN(units));
}

struct text_time text_time(const struct timespec *ts)
{
	struct text_time t;
	struct tm tm;
	unsigned us = (unsigned)(ts->tv_nsec / 1000) % 1000000;
	size_t n = 0;

	if (gmtime_r(&ts->tv_sec, &tm))
		n = strftime(t.s, sizeof(t.s), "%Y-%m-%dT%H:%M:%S", &tm);
	if (n > 0)
		(void)snprintf(t.s + n, sizeof(t.s) - n, ".%06uZ", us);
	else /* no such year */
		(void)snprintf(t.s, sizeof(t.s), "@%lld.%06u", (long long)ts->tv_sec, us);
	return t;
}

/* Length of the well-formed UTF-8 sequence at p (Unicode, table 3-7), 0 if there is none
 * within n bytes. */
static size_t utf8_len(const unsigned char *p, size_t n)
{
	size_t len;
	unsigned char low = 0x80, high = 0xbf; /* bounds of the second byte */

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if (p[0] >= 0xe0 && p[0] <= 0xef)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (len > n)
		return 0;

	if (p[0] == 0xe0)
		low = 0xa0; /* overlong below */
	else if (p[0] == 0xed)
		high = 0x9f; /* surrogates above */
	else if (p[0] == 0xf0)
		low = 0x90; /* overlong below */
	else if (p[0] == 0xf4)
		high = 0x8f; /* past U+10FFFF */
	if (p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++) {
		if (p[i] < 0x80 || p[i] > 0xbf)
			return 0;
	}
	return len;
}

/* How many of the bytes at p are shown as they are; 0: escape the first. */
static size_t printable_len(const unsigned char *p, size_t n)
{
	size_t len = utf8_len(p, n);

	if (len == 1)
		return p[0] >= 0x20 && p[0] != 0x7f && p[0] != '\\';
	if (len == 2 && p[0] == 0xc2 && p[1] < 0xa0) /* C1: terminals obey these too */
		return 0;
	return len;
}

static char *escape_byte(char *out, unsigned char c)
{
	static const char digits[] = "0123456789abcdef";

	*out++ = '\\';
	if (c == '\n') {
		*out++ = 'n';
	} else if (c == '\t') {
		*out++ = 't';
	} else if (c == '\\') {
		*out++ = '\\';
	} else {
		*out++ = 'x';
		*out++ = digits[c >> 4];
		*out++ = digits[c & 0xf];
	}
	return out;
}

char *text_escape_n(const char *s, size_t n)
{
	const unsigned char *p = (const unsigned char *)s;
	char *ret, *out;
	size_t max;

	INVARIANT(!__builtin_mul_overflow(n, 4, &max) && max < SIZE_MAX);
	ret = out = xmalloc(max + 1);
	while (n > 0) {
		size_t len = printable_len(p, n);

		if (len > 0) {
			memcpy(out, p, len);
			out += len;
		} else {
			out = escape_byte(out, *p);
			len = 1;
		}
		p += len;
		n -= len;
	}
	*out = '\0';
	return ret;
}

char *text_escape(const char *s)
{
	return text_escape_n(s, strlen(s));
}
