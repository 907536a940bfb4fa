/*
 * The table of options, one value at a time, -o lists, help: see options.h.
 *
 * rows[] is made from options.def and everything else here reads rows[] only; a row's
 * value lives at rows[i].offset in struct options, with the type that options.h gives it.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <strings.h>

#include "base/options.h"
#include "base/text.h"

#define HELP_INDENT 8
#define HELP_WIDTH  79

struct row {
	const char *name;
	enum option_type type;
	size_t offset;
	int64_t min, max, def;     /* OPT_INT, OPT_BOOL and OPT_ENUM: def */
	uint64_t umin, umax, udef; /* OPT_SIZE, OPT_DURATION */
	const char *sdef;          /* OPT_STRING */
	const char *words;         /* OPT_ENUM: "a|b"; OPT_STRING: what it is */
	const char *unit;
	const char *help;
};

#define AT(id) .name = #id, .offset = offsetof(struct options, id)
static const struct row rows[] = {
#define OPTION_BOOL(id, d, h) {AT(id), .type = OPT_BOOL, .def = d, .help = h},
#define OPTION_INT(id, lo, hi, d, u, h)                                                    \
	{AT(id), .type = OPT_INT, .min = lo, .max = hi, .def = d, .unit = u, .help = h},
#define OPTION_SIZE(id, lo, hi, d, h)                                                      \
	{AT(id), .type = OPT_SIZE, .umin = lo, .umax = hi, .udef = d, .help = h},
#define OPTION_DURATION(id, lo, hi, d, h)                                                  \
	{AT(id), .type = OPT_DURATION, .umin = lo, .umax = hi, .udef = d, .help = h},
#define OPTION_ENUM(id, names, d, h)                                                       \
	{AT(id), .type = OPT_ENUM, .def = d, .words = names, .help = h},
#define OPTION_STRING(id, what, d, h)                                                      \
	{AT(id), .type = OPT_STRING, .words = what, .sdef = d, .help = h},
#include "base/options.def"
};
#undef AT

/* ---- fields ---- */

static bool *bool_field(struct options *o, const struct row *r)
{
	return (bool *)((char *)o + r->offset);
}

static int64_t *int_field(struct options *o, const struct row *r)
{
	return (int64_t *)((char *)o + r->offset);
}

static uint64_t *uint_field(struct options *o, const struct row *r)
{
	return (uint64_t *)((char *)o + r->offset);
}

static char **string_field(struct options *o, const struct row *r)
{
	return (char **)((char *)o + r->offset);
}

static void set_default(struct options *o, const struct row *r)
{
	switch (r->type) {
	case OPT_BOOL:
		*bool_field(o, r) = r->def != 0;
		break;
	case OPT_INT:
	case OPT_ENUM:
		*int_field(o, r) = r->def;
		break;
	case OPT_SIZE:
	case OPT_DURATION:
		*uint_field(o, r) = r->udef;
		break;
	case OPT_STRING:
		*string_field(o, r) = r->sdef ? xstrdup(r->sdef) : NULL;
		break;
	}
}

void options_init(struct options *o)
{
	memset(o, 0, sizeof(*o));
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		set_default(o, &rows[i]);
	o->kernel_options = xstrdup("");
}

void options_clear(struct options *o)
{
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		if (rows[i].type == OPT_STRING)
			free(*string_field(o, &rows[i]));
	}
	free(o->kernel_options);
	memset(o, 0, sizeof(*o));
}

/* ---- values as text ---- */

/* In the largest unit that leaves no rest, so that the text parses to the same value. */
static char *exact_size(uint64_t v)
{
	static const char *const units[] = {"", "K", "M", "G", "T"};
	size_t i = 0;

	while (i + 1 < ARRAY_LEN(units) && v >= 1024 && v % 1024 == 0) {
		v /= 1024;
		i++;
	}
	return xasprintf("%" PRIu64 "%s", v, units[i]);
}

static char *exact_duration(uint64_t ms)
{
	static const struct {
		const char *name;
		uint64_t ms;
	} units[] = {{"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}};

	if (ms == 0)
		return xstrdup("0s");
	for (size_t i = 0; i < ARRAY_LEN(units); i++) {
		if (ms % units[i].ms == 0)
			return xasprintf("%" PRIu64 "%s", ms / units[i].ms, units[i].name);
	}
	return xasprintf("%" PRIu64 "ms", ms);
}

static char *exact_amount(const struct row *r, uint64_t v)
{
	if (v == OPTION_AUTO)
		return xstrdup("auto");
	return r->type == OPT_SIZE ? exact_size(v) : exact_duration(v);
}

/* The i-th word of "a|b|c", its length; NULL past the end. */
static const char *enum_word(const char *words, int64_t i, size_t *ret_len)
{
	for (; i > 0; i--) {
		words = strchr(words, '|');
		if (!words)
			return NULL;
		words++;
	}
	*ret_len = strcspn(words, "|");
	return words;
}

static char *value_text(const struct options *o, const struct row *r)
{
	/* The accessors do not write; one set of them serves both uses. */
	struct options *any = (struct options *)(uintptr_t)o;
	const char *word;
	size_t len = 0;

	switch (r->type) {
	case OPT_BOOL:
		return xstrdup(*bool_field(any, r) ? "yes" : "no");
	case OPT_INT:
		return xasprintf("%" PRId64, *int_field(any, r));
	case OPT_ENUM:
		word = enum_word(r->words, *int_field(any, r), &len);
		return xasprintf("%.*s", (int)len, word ? word : "");
	case OPT_SIZE:
	case OPT_DURATION:
		return exact_amount(r, *uint_field(any, r));
	case OPT_STRING:
		return xstrdup(*string_field(any, r) ? *string_field(any, r) : "");
	}
	return xstrdup("");
}

char *options_text(const struct options *o, size_t i, const char **ret_name)
{
	if (i >= ARRAY_LEN(rows))
		return NULL;
	*ret_name = rows[i].name;
	return value_text(o, &rows[i]);
}

const char *options_name(size_t i)
{
	return i < ARRAY_LEN(rows) ? rows[i].name : NULL;
}

/* What a value must be: "be between 1 and 19 threads". */
static char *allowed(const struct row *r)
{
	const char *sep;
	char *text, *lo, *hi, *longer;
	size_t len;

	switch (r->type) {
	case OPT_BOOL:
		return xstrdup("be yes or no");
	case OPT_INT:
		return xasprintf("be between %" PRId64 " and %" PRId64 "%s%s", r->min,
		                 r->max, *r->unit ? " " : "", r->unit);
	case OPT_SIZE:
	case OPT_DURATION:
		lo = exact_amount(r, r->umin);
		hi = exact_amount(r, r->umax);
		text = xasprintf("be between %s and %s%s", lo, hi,
		                 r->udef == OPTION_AUTO ? ", or auto" : "");
		free(lo);
		free(hi);
		return text;
	case OPT_ENUM:
		text = xstrdup("be ");
		for (int64_t i = 0;; i++) {
			const char *word = enum_word(r->words, i, &len);

			if (!word)
				return text;
			sep = i == 0 ? "" : word[len] ? ", " : " or ";
			longer = xasprintf("%s%s%.*s", text, sep, (int)len, word);
			free(text);
			text = longer;
		}
	case OPT_STRING:
		return xstrdup("not be empty");
	}
	return xstrdup("");
}

/* ---- setting a value ---- */

static bool parse_bool(const char *s, bool *ret)
{
	static const char *const yes[] = {"yes", "true", "on", "1"};
	static const char *const no[] = {"no", "false", "off", "0"};

	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		if (strcasecmp(s, yes[i]) == 0) {
			*ret = true;
			return true;
		}
		if (strcasecmp(s, no[i]) == 0) {
			*ret = false;
			return true;
		}
	}
	return false;
}

static bool parse_int(const char *s, int64_t *ret)
{
	const char *digits = s + (*s == '-');
	char *end;

	if (*digits < '0' || *digits > '9')
		return false;
	errno = 0;
	*ret = strtoll(s, &end, 10);
	return errno == 0 && *end == '\0';
}

static bool parse_enum(const char *words, const char *s, int64_t *ret)
{
	const char *word;
	size_t len;

	for (int64_t i = 0; (word = enum_word(words, i, &len)) != NULL; i++) {
		if (strlen(s) == len && memcmp(s, word, len) == 0) {
			*ret = i;
			return true;
		}
	}
	return false;
}

static bool parse_amount(const struct row *r, const char *s, uint64_t *ret)
{
	uint64_t v;

	if (r->udef == OPTION_AUTO && strcmp(s, "auto") == 0) {
		*ret = OPTION_AUTO;
		return true;
	}
	if (!(r->type == OPT_SIZE ? text_parse_size(s, &v) : text_parse_duration(s, &v)))
		return false;
	if (v < r->umin || v > r->umax)
		return false;
	*ret = v;
	return true;
}

static bool set_value(struct options *o, const struct row *r, const char *s)
{
	int64_t v;

	switch (r->type) {
	case OPT_BOOL:
		return parse_bool(s, bool_field(o, r));
	case OPT_INT:
		if (!parse_int(s, &v) || v < r->min || v > r->max)
			return false;
		*int_field(o, r) = v;
		return true;
	case OPT_SIZE:
	case OPT_DURATION:
		return parse_amount(r, s, uint_field(o, r));
	case OPT_ENUM:
		return parse_enum(r->words, s, int_field(o, r));
	case OPT_STRING:
		if (!*s)
			return false;
		free(*string_field(o, r));
		*string_field(o, r) = xstrdup(s);
		return true;
	}
	return false;
}

static bool same_name(const char *a, const char *b)
{
	for (;; a++, b++) {
		char c = *a == '-' ? '_' : *a;

		if (c != *b)
			return false;
		if (!c)
			return true;
	}
}

static const struct row *find_row(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		if (same_name(name, rows[i].name))
			return &rows[i];
	}
	return NULL;
}

errint_t options_set(struct options *o, const char *where, const char *name,
                     const char *value, char **cause)
{
	const struct row *r = find_row(name);
	cleanup_free char *shown_name = text_escape(name);
	cleanup_free char *shown_value = value ? text_escape(value) : NULL;
	cleanup_free char *must = NULL;

	if (!r)
		return set_cause(cause, -EINVAL, "%s %s: unknown option", where,
		                 shown_name);
	if (!value && r->type == OPT_BOOL)
		value = "yes";
	if (value && set_value(o, r, value))
		return 0;
	must = allowed(r);
	if (!value)
		return set_cause(cause, -EINVAL, "%s %s: has no value: must %s", where,
		                 r->name, must);
	return set_cause(cause, -EINVAL, "%s %s=%s: must %s", where, r->name, shown_value,
	                 must);
}

/* ---- words of mount(8) ---- */

/* word: what is written; undoes: the word whose place it takes; pass: whether mount(2)
 * needs it (the others only undo). A value (user=NAME) is accepted where `value` says so,
 * and ignored. A word that ends in - stands for all that begin with it. */
struct mount_word {
	const char *word;
	const char *undoes;
	bool pass;
	bool value;
};

static const struct mount_word mount_words[] = {
    {"ro", "rw", true, false},
    {"rw", "ro", false, false},
    {"exec", "noexec", true, false},
    {"noexec", "exec", true, false},
    {"suid", "nosuid", true, false},
    {"nosuid", "suid", true, false},
    {"dev", "nodev", true, false},
    {"nodev", "dev", true, false},
    {"sync", "async", true, false},
    {"async", "sync", false, false},
    {"dirsync", NULL, true, false},
    {"noatime", "atime", true, false},
    {"atime", "noatime", false, false},
    /* Reads do not move atimes here, and libfuse knows no word for these. */
    {"relatime", NULL, false, false},
    {"norelatime", NULL, false, false},
    {"strictatime", NULL, false, false},
    {"nostrictatime", NULL, false, false},
    {"allow_other", NULL, true, false},
    {"allow_root", NULL, true, false},
    {"default_permissions", NULL, false, false}, /* always on */
    {"fsname", NULL, false, true},               /* the daemon sets both itself */
    {"subtype", NULL, false, true},
    {"defaults", NULL, false, false},
    {"auto", NULL, false, false},
    {"noauto", NULL, false, false},
    {"user", NULL, false, true},
    {"nouser", NULL, false, false},
    {"users", NULL, false, false},
    {"owner", NULL, false, false},
    {"group", NULL, false, false},
    {"nofail", NULL, false, false},
    {"_netdev", NULL, false, false},
    {"comment", NULL, false, true},
    {"diratime", NULL, false, false},
    {"nodiratime", NULL, false, false},
    {"loud", NULL, false, false},
    {"silent", NULL, false, false},
    {"x-", NULL, false, true},
    {"X-", NULL, false, true},
};

static const struct mount_word *find_mount_word(const char *name, bool has_value)
{
	for (size_t i = 0; i < ARRAY_LEN(mount_words); i++) {
		const struct mount_word *w = &mount_words[i];
		size_t len = strlen(w->word);
		bool matches = w->word[len - 1] == '-' ? strncmp(name, w->word, len) == 0
		                                       : strcmp(name, w->word) == 0;

		if (matches)
			return !has_value || w->value ? w : NULL;
	}
	return NULL;
}

/* list without one word; both comma-separated, nothing to escape in these words. */
static void drop_kernel_word(char *list, const char *word)
{
	size_t len = strlen(word);
	char *p = list;

	while (*p) {
		size_t here = strcspn(p, ",");

		if (here == len && memcmp(p, word, len) == 0) {
			char *rest = p + here + (p[here] == ',');

			memmove(p, rest, strlen(rest) + 1);
		} else {
			p += here + (p[here] == ',');
		}
	}
	len = strlen(list);
	if (len > 0 && list[len - 1] == ',')
		list[len - 1] = '\0';
}

/* The last word of a pair counts, as in mount(8). */
static void take_mount_word(struct options *o, const struct mount_word *w)
{
	char *longer;

	drop_kernel_word(o->kernel_options, w->word);
	if (w->undoes)
		drop_kernel_word(o->kernel_options, w->undoes);
	if (!w->pass)
		return;
	longer =
	    xasprintf("%s%s%s", o->kernel_options, *o->kernel_options ? "," : "", w->word);
	free(o->kernel_options);
	o->kernel_options = longer;
}

/* ---- lists ---- */

/* Cuts the next word off *list and resolves its escapes in place; NULL at the end. */
static char *next_word(char **list)
{
	char *word = *list, *in = word, *out = word;

	if (!word)
		return NULL;
	while (*in && *in != ',') {
		if (in[0] == '\\' && (in[1] == ',' || in[1] == '\\'))
			in++;
		*out++ = *in++;
	}
	*list = *in ? in + 1 : NULL;
	*out = '\0';
	return word;
}

static errint_t parse_word(struct options *o, char *word, char **cause)
{
	char *value = strchr(word, '=');
	const struct mount_word *w;

	if (value)
		*value++ = '\0';
	w = find_mount_word(word, value != NULL);
	if (w) {
		take_mount_word(o, w);
		return 0;
	}
	return options_set(o, "-o", word, value, cause);
}

errint_t options_parse(struct options *o, const char *list, char **cause)
{
	cleanup_free char *copy = xstrdup(list);
	char *rest = copy, *word;

	while ((word = next_word(&rest)) != NULL) {
		errint_t err = *word ? parse_word(o, word, cause) : 0;

		if (err)
			return err;
	}
	return 0;
}

/* ---- all together ---- */

static bool has_kernel_word(const struct options *o, const char *word)
{
	size_t len = strlen(word);
	const char *p = o->kernel_options;

	while (*p) {
		size_t here = strcspn(p, ",");

		if (here == len && memcmp(p, word, len) == 0)
			return true;
		p += here + (p[here] == ',');
	}
	return false;
}

static bool same_text(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

errint_t options_check(const struct options *o, char **cause)
{
	if (has_kernel_word(o, "allow_other") && has_kernel_word(o, "allow_root"))
		return set_cause(cause, -EINVAL,
		                 "allow_other and allow_root exclude each other");
	if (same_text(o->pool, o->store))
		return set_cause(cause, -EINVAL, "pool and store are the same directory");
	if (same_text(o->pool, o->mountpoint))
		return set_cause(cause, -EINVAL,
		                 "the pool may not be the mount point: it would be hidden");
	return 0;
}

/* ---- help ---- */

static void print_wrapped(FILE *out, const char *text)
{
	size_t column = 0;

	while (*text) {
		size_t len = strcspn(text, " ");

		if (column > 0 && HELP_INDENT + column + 1 + len > HELP_WIDTH) {
			(void)fputc('\n', out);
			column = 0;
		}
		if (column == 0)
			(void)fprintf(out, "%*s", HELP_INDENT, "");
		else
			column += (size_t)fprintf(out, " ");
		(void)fwrite(text, 1, len, out);
		column += len;
		text += len;
		text += strspn(text, " ");
	}
	(void)fputc('\n', out);
}

static const char *kind_of(const struct row *r)
{
	switch (r->type) {
	case OPT_BOOL:
		return "[=yes|no]";
	case OPT_INT:
		return "=N";
	case OPT_SIZE:
		return "=SIZE";
	case OPT_DURATION:
		return "=TIME";
	case OPT_ENUM:
	case OPT_STRING:
		return "=";
	}
	return "";
}

static void print_row(FILE *out, const struct row *r, const struct options *defaults)
{
	cleanup_free char *def = value_text(defaults, r);
	cleanup_free char *range = NULL;
	cleanup_free char *text = NULL;

	(void)fprintf(out, "  %s%s%s\n", r->name, kind_of(r), r->words ? r->words : "");
	switch (r->type) {
	case OPT_INT:
	case OPT_SIZE:
	case OPT_DURATION:
		range = allowed(r);
		text = xasprintf("%s Default %s; %s.", r->help, def, range + strlen("be "));
		break;
	case OPT_BOOL:
	case OPT_ENUM:
		text = xasprintf("%s Default %s.", r->help, def);
		break;
	case OPT_STRING:
		text = *def ? xasprintf("%s Default %s.", r->help, def) : xstrdup(r->help);
		break;
	}
	print_wrapped(out, text);
}

void options_print_help(FILE *out)
{
	struct options defaults;

	options_init(&defaults);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		print_row(out, &rows[i], &defaults);
	options_clear(&defaults);
}
