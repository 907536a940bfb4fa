/*
 * The configuration file, read with libconfuse: see options.h.
 *
 * libconfuse does quoting, comments and line numbers; every value is a string to it and is
 * then set by the same code as one from -o, so both know the same spellings and complain in
 * the same words. The file is read whole first: the scanner behind libconfuse ends the
 * program on a read error.
 *
 * libconfuse gives its callbacks no pointer of ours: the one of the call under way is
 * thread-local.
 */
#include <confuse.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "base/sysio.h"
#include "base/text.h"

#define FILE_MAX (1U << 20)

struct reading {
	struct options *options;
	char *shown_path;
	char *cause; /* of the first mistake */
};

static __thread struct reading *now;

static char *where(const cfg_t *cfg)
{
	return xasprintf("%s:%d:", now->shown_path, cfg ? cfg->line : 0);
}

__attribute__((format(printf, 2, 0))) static void on_error(cfg_t *cfg, const char *fmt,
                                                           va_list ap)
{
	cleanup_free char *at = where(cfg);
	cleanup_free char *shown = NULL;
	char text[512];

	(void)vsnprintf(text, sizeof(text), fmt, ap);
	shown = text_escape(text);
	(void)set_cause(&now->cause, -EINVAL, "%s %s", at, shown);
}

/* Called after each value, with the line at which it stands. */
static int on_value(cfg_t *cfg, cfg_opt_t *opt)
{
	cleanup_free char *at = where(cfg);
	const char *value = cfg_opt_getnstr(opt, 0);

	return options_set(now->options, at, opt->name, value ? value : "", &now->cause)
	           ? -1
	           : 0;
}

/* A row for each name, and one with dashes where it has underscores. */
static cfg_opt_t *make_table(char ***ret_names)
{
	size_t n = 0, used = 0;
	cfg_opt_t *table;
	char **names;

	while (options_name(n))
		n++;
	table = xcalloc(2 * n + 1, sizeof(*table));
	names = xcalloc(2 * n + 1, sizeof(*names));
	for (size_t i = 0; i < n; i++) {
		names[used++] = xstrdup(options_name(i));
		if (strchr(options_name(i), '_')) {
			char *p = names[used++] = xstrdup(options_name(i));

			while ((p = strchr(p, '_')) != NULL)
				*p = '-';
		}
	}
	for (size_t i = 0; i < used; i++) {
		cfg_opt_t row = CFG_STR(names[i], NULL, CFGF_NODEFAULT);

		table[i] = row;
	}
	table[used] = (cfg_opt_t)CFG_END();
	*ret_names = names;
	return table;
}

static errint_t parse_text(const char *text)
{
	char **names = NULL;
	cfg_opt_t *table = make_table(&names);
	cfg_t *cfg = cfg_init(table, CFGF_NONE);
	errint_t err = 0;

	if (!cfg) {
		err = set_cause(&now->cause, -ENOMEM, "%s: out of memory", now->shown_path);
		goto out;
	}
	(void)cfg_set_error_function(cfg, on_error);
	for (size_t i = 0; names[i]; i++)
		(void)cfg_set_validate_func(cfg, names[i], on_value);
	if (cfg_parse_buf(cfg, text) != CFG_SUCCESS)
		err =
		    set_cause(&now->cause, -EINVAL, "%s: not understood", now->shown_path);
	(void)cfg_free(cfg);
out:
	for (size_t i = 0; names[i]; i++)
		free(names[i]);
	free(names);
	free(table);
	return err;
}

/* libconfuse 3.3 counts the line of a comment three times, and its messages then name wrong
 * lines: comments (from a # outside quotes to the end of the line) become blanks first. */
static void blank_comments(char *text)
{
	char quote = '\0';
	bool comment = false;

	for (char *c = text; *c; c++) {
		if (*c == '\n') {
			comment = false;
		} else if (comment) {
			*c = ' ';
		} else if (quote) {
			if (*c == '\\' && c[1])
				c++;
			else if (*c == quote)
				quote = '\0';
		} else if (*c == '"' || *c == '\'') {
			quote = *c;
		} else if (*c == '#') {
			comment = true;
			*c = ' ';
		}
	}
}

static errint_t read_text(const char *path, char **ret)
{
	cleanup_fd int fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_NOCTTY, 0);
	cleanup_free char *text = NULL;
	struct stat st;
	errint_t err;
	size_t len;

	if (fd < 0)
		return fd;
	err = sys_fstat(fd, &st);
	if (err)
		return err;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if (st.st_size > FILE_MAX)
		return -EFBIG;
	len = (size_t)st.st_size;
	text = xcalloc(1, len + 1);
	err = full_pread(fd, text, len, 0);
	if (err)
		return err;
	if (strlen(text) != len)
		return -EILSEQ; /* NUL bytes: no text */
	*ret = steal_pointer(&text);
	return 0;
}

errint_t options_read_file(struct options *o, const char *path, char **cause)
{
	cleanup_free char *shown_path = text_escape(path);
	cleanup_free char *text = NULL;
	struct reading r = {.options = o, .shown_path = shown_path};
	errint_t err = read_text(path, &text);

	if (err)
		return set_cause_errno(cause, err, "configuration file %s", shown_path);
	blank_comments(text);
	now = &r;
	err = parse_text(text);
	now = NULL;
	if (err)
		(void)set_cause(cause, err, "%s", r.cause);
	free(r.cause);
	return err;
}
