/*
 * Text in and out: sizes, durations, names made printable.
 *
 * Sizes: a number, then nothing or B, K M G T (1024; also "KiB" and "KB" forms, any case).
 * Durations: a number and nothing or s, ms, m, h, d; nothing means seconds. Fractions are
 * allowed ("1.5G", "0.5s"). No sign, no blanks, no overflow.
 */
#ifndef CELLAR_BASE_TEXT_H
#define CELLAR_BASE_TEXT_H

#include <time.h>

#include "base/error.h"

bool text_parse_size(const char *s, uint64_t *ret_bytes);
bool text_parse_duration(const char *s, uint64_t *ret_ms);

/* Short forms for people, in a fixed buffer: "1.4 GiB", "12 B"; "5 s", "2.5 h", "350 ms".
 */
struct text_short {
	char s[32];
};
struct text_short text_size(uint64_t bytes);
struct text_short text_duration(uint64_t ms);

/* RFC 3339 in UTC with microseconds. */
struct text_time {
	char s[40];
};
struct text_time text_time(const struct timespec *ts);

/* A malloc'ed copy of n bytes with control characters, backslashes and bytes that are not
 * valid UTF-8 written as \n, \t, \\ or \xHH: for logs and terminals. */
char *text_escape_n(const char *s, size_t n);
char *text_escape(const char *s);

#endif
