/*
 * The options of cellard: one table (options.def), from which -o parsing, the
 * configuration file (libconfuse), --help, `cellarctl status --json` and the manual's
 * list are all made.
 *
 * Precedence: -o, then the file, then the default. A wrong name or value is -EINVAL with a
 * cause that names where it stands (file and line, or "-o"), the option, the value and what
 * is allowed.
 *
 * Adding one: a row in options.def; nothing else unless it is live (applied while running).
 */
#ifndef CELLAR_BASE_OPTIONS_H
#define CELLAR_BASE_OPTIONS_H

#include <stdio.h>

#include "base/error.h"

enum option_type { OPT_BOOL, OPT_INT, OPT_SIZE, OPT_DURATION, OPT_ENUM, OPT_STRING };

/* Enumerated values, in the order of their names in options.def. */
enum foreign_zst_mode { FOREIGN_ZST_DECODE, FOREIGN_ZST_KEEP };
enum passthrough_mode { PASSTHROUGH_AUTO, PASSTHROUGH_ON, PASSTHROUGH_OFF };
enum log_level_option {
	LOG_OPTION_ERR,
	LOG_OPTION_WARN,
	LOG_OPTION_INFO,
	LOG_OPTION_DEBUG
};

/* One field a row: bool, int64_t (OPT_INT, OPT_ENUM), uint64_t (sizes in bytes, durations
 * in milliseconds) or char * (owned; NULL where unset). */
struct options {
#define OPTION_BOOL(id, def, help)                bool id;
#define OPTION_INT(id, min, max, def, unit, help) int64_t id;
#define OPTION_SIZE(id, min, max, def, help)      uint64_t id;
#define OPTION_DURATION(id, min, max, def, help)  uint64_t id;
#define OPTION_ENUM(id, names, def, help)         int64_t id;
#define OPTION_STRING(id, what, def, help)        char *id;
#include "base/options.def"
	/* What mount(8) and fuse hand over untouched ("ro,noexec,…"), comma-separated. */
	char *kernel_options;
};

/* The value of a size option that is to be worked out when it is used ("auto"). */
#define OPTION_AUTO UINT64_MAX

void options_init(struct options *o); /* all defaults */
void options_clear(struct options *o);

/* One value, as -o and the file set it; NULL stands for "yes" of a bool. where ("-o",
 * "FILE:3:") opens the cause. Names may be written with - for _. */
errint_t options_set(struct options *o, const char *where, const char *name,
                     const char *value, char **cause);

/* Parses "name=value,name,…" with `\,` for a comma (and `\\` for a backslash) inside a
 * value. Words that belong to mount(8) or to the kernel (rw, ro, exec, noexec, suid, nosuid,
 * dev, nodev, sync, async, atime, noatime, relatime, user, nouser, users, owner, group,
 * auto, noauto, nofail, _netdev, defaults, x-*, comment=*, allow_other, allow_root, …) are
 * accepted: those that mount(2) needs are gathered in kernel_options (of opposites the
 * last), the others ignored. */
errint_t options_parse(struct options *o, const char *list, char **cause);

/* Reads a configuration file: "name = value" lines, values bare or quoted, # comments.
 * Keys set earlier by -o win: call options_parse() after this. */
errint_t options_read_file(struct options *o, const char *path, char **cause);

/* Values that contradict each other (checked once everything is known). */
errint_t options_check(const struct options *o, char **cause);

/* The list for --help: name, kind of value, default, range, help; wrapped at 79. */
void options_print_help(FILE *out);

/* The current value of row i as text that parses to the same value (malloc'ed; "" for an
 * unset string), and its name; NULL past the end. */
char *options_text(const struct options *o, size_t i, const char **ret_name);
/* Only the name of row i; NULL past the end. */
const char *options_name(size_t i);

#endif
