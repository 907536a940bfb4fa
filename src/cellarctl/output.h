/*
 * What cellarctl prints. Everything that came from a daemon or a file system is printed
 * through here, with control characters escaped, so that a name cannot drive a terminal.
 */
#ifndef CELLAR_CELLARCTL_OUTPUT_H
#define CELLAR_CELLARCTL_OUTPUT_H

#include <jansson.h>
#include <stdio.h>

#include "base/text.h"

/* A malloc'ed copy with control characters (C0, DEL, C1) as \n, \t or \xHH and bytes that
 * are not UTF-8 as \xHH. Backslashes stay: the daemon has escaped what is not UTF-8. */
char *out_clean(const char *s);
/* One line: printf(3) through out_clean(), and a line end. */
void out_line(FILE *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "[#####...............]": part of whole in 20 places. */
struct out_bar {
	char s[32];
};
struct out_bar out_bar(uint64_t part, uint64_t whole);
/* " 42 %"; "" where whole is 0. */
struct text_short out_percent(uint64_t part, uint64_t whole);

/* Members of JSON objects, 0 or "" where they are missing or of another type. path has
 * members separated by dots. */
uint64_t out_number(const json_t *j, const char *path);
double out_real(const json_t *j, const char *path);
const char *out_text(const json_t *j, const char *path);
const json_t *out_member(const json_t *j, const char *path);

/* One line on a terminal that is written over and over; nothing elsewhere. */
struct out_progress {
	bool on; /* stderr is a terminal */
	bool shown;
	const char *what;
};
void out_progress_init(struct out_progress *p, const char *what);
/* object: the protocol's progress object. */
void out_progress_show(struct out_progress *p, const json_t *object);
/* Before anything else is printed, and at the end. */
void out_progress_clear(struct out_progress *p);

#endif
