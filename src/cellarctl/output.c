/* Text for people: see output.h. One thread, stdio. */
#include "cellarctl/output.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#define BAR_PLACES 20

/* ---- text ---- */

/* Length of the UTF-8 sequence at s, 0 if it is none that may be printed. */
static size_t printable_len(const unsigned char *s)
{
	size_t len = s[0] < 0x80 ? 1 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	char one[5] = "";
	json_t *valid;

	if (s[0] < 0x20 || s[0] == 0x7f)
		return 0;
	if (len == 1)
		return 1;
	if (s[0] == 0xc2 && s[1] < 0xa0) /* C1 */
		return 0;
	for (size_t i = 0; i < len; i++) {
		if (!s[i])
			return 0;
		one[i] = (char)s[i];
	}
	valid = json_string(one);
	json_decref(valid);
	return valid ? len : 0;
}

char *out_clean(const char *s)
{
	const unsigned char *in = (const unsigned char *)s;
	char *out = xmalloc(4 * strlen(s) + 1);
	char *to = out;

	while (*in) {
		size_t len = printable_len(in);

		if (len > 0) {
			memcpy(to, in, len);
			to += len;
			in += len;
		} else if (*in == '\n' || *in == '\t') {
			*to++ = '\\';
			*to++ = *in++ == '\n' ? 'n' : 't';
		} else {
			to += snprintf(to, 5, "\\x%02x", *in++);
		}
	}
	*to = '\0';
	return out;
}

void out_line(FILE *out, const char *fmt, ...)
{
	cleanup_free char *text = NULL;
	cleanup_free char *clean = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (!text)
		return;
	clean = out_clean(text);
	fprintf(out, "%s\n", clean);
}

struct out_bar out_bar(uint64_t part, uint64_t whole)
{
	struct out_bar b;
	size_t full = 0;

	if (whole > 0)
		full = part >= whole ? BAR_PLACES
		                     : (size_t)((double)part / (double)whole * BAR_PLACES);
	b.s[0] = '[';
	for (size_t i = 0; i < BAR_PLACES; i++)
		b.s[i + 1] = i < full ? '#' : '.';
	b.s[BAR_PLACES + 1] = ']';
	b.s[BAR_PLACES + 2] = '\0';
	return b;
}

struct text_short out_percent(uint64_t part, uint64_t whole)
{
	struct text_short t = {""};

	if (whole > 0)
		snprintf(t.s, sizeof(t.s), "%.0f %%", 100.0 * (double)part / (double)whole);
	return t;
}

/* ---- JSON ---- */

const json_t *out_member(const json_t *j, const char *path)
{
	cleanup_free char *copy = xstrdup(path);
	char *save = NULL;

	for (char *name = strtok_r(copy, ".", &save); name;
	     name = strtok_r(NULL, ".", &save))
		j = json_object_get(j, name);
	return j;
}

uint64_t out_number(const json_t *j, const char *path)
{
	json_int_t n = json_integer_value(out_member(j, path));

	return n > 0 ? (uint64_t)n : 0;
}

double out_real(const json_t *j, const char *path)
{
	return json_number_value(out_member(j, path));
}

const char *out_text(const json_t *j, const char *path)
{
	const char *s = json_string_value(out_member(j, path));

	return s ? s : "";
}

/* ---- progress ---- */

void out_progress_init(struct out_progress *p, const char *what)
{
	p->on = isatty(STDERR_FILENO) == 1;
	p->shown = false;
	p->what = what;
}

void out_progress_show(struct out_progress *p, const json_t *object)
{
	uint64_t files = out_number(object, "files_done");
	uint64_t files_total = out_number(object, "files_total");
	uint64_t bytes = out_number(object, "bytes_done");
	uint64_t bytes_total = out_number(object, "bytes_total");
	uint64_t failed = out_number(object, "failed");

	if (!p->on)
		return;
	fprintf(stderr, "\r\033[K%s", p->what);
	if (files_total > 0) {
		uint64_t part = bytes_total ? bytes : files;
		uint64_t whole = bytes_total ? bytes_total : files_total;

		fprintf(stderr, " %s %s  %ju of %ju files, %s of %s",
		        out_bar(part, whole).s, out_percent(part, whole).s,
		        (uintmax_t)files, (uintmax_t)files_total, text_size(bytes).s,
		        text_size(bytes_total).s);
	} else {
		fprintf(stderr, "  %ju files", (uintmax_t)files);
	}
	if (failed > 0)
		fprintf(stderr, ", %ju failed", (uintmax_t)failed);
	fflush(stderr);
	p->shown = true;
}

void out_progress_clear(struct out_progress *p)
{
	if (p->shown)
		fprintf(stderr, "\r\033[K");
	p->shown = false;
	fflush(stderr);
}
