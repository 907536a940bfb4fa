/*
 * Parsing what cellard and mount.cellar are called with. Everything about a single option is
 * in the table of base/options.h; here is only the order: defaults, the file, -o, arguments.
 */
#include "cellard/cmdline.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HELPER_NAME "mount.cellar"

/* What stands on the command line before it is given a meaning. */
struct words {
	char *option_list; /* all -o, joined */
	const char *config;
	const char *store, *mountpoint;
	bool help, version;
};

static const char *program_name(const struct cmdline *c)
{
	return c->mount_helper ? HELPER_NAME : "cellard";
}

static int usage_error(const struct cmdline *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static int usage_error(const struct cmdline *c, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "%s: ", program_name(c));
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nTry cellard --help\n");
	return c->mount_helper ? EXIT_MOUNT_USAGE : EXIT_CELLARD_USAGE;
}

int cmdline_exit_failed(const struct cmdline *c, bool of_the_system)
{
	if (!c->mount_helper)
		return EXIT_CELLARD_FAILED;
	return of_the_system ? EXIT_MOUNT_SYSTEM : EXIT_MOUNT_FAILED;
}

static void print_help(void)
{
	printf(
	    "Usage: cellard [-f] [-o OPT[,OPT]...] STORE MOUNTPOINT\n"
	    "       cellard [-f] [-o OPT[,OPT]...] --config FILE [STORE MOUNTPOINT]\n"
	    "       mount -t cellar [-o OPT[,OPT]...] STORE MOUNTPOINT\n"
	    "\n"
	    "Shows the files that lie compressed in STORE as plain files on MOUNTPOINT.\n"
	    "A missing or empty STORE is initialised. Returns when the mount answers; "
	    "ends\n"
	    "on umount, cellarctl umount or SIGTERM, with what was written in the store.\n"
	    "\n"
	    "  -f, --foreground   stay in the foreground, messages on stderr (services)\n"
	    "  -o OPT[,OPT]...    options, see below; a comma in a value is written \\,\n"
	    "      --config FILE  read options from FILE first; does not initialise STORE\n"
	    "                     unless told so with create=yes\n"
	    "  -h, --help         print this and exit\n"
	    "  -V, --version      print the version and exit\n"
	    "\n"
	    "Options of mount(8) (ro, noexec, allow_other, ...) are accepted too. Sizes "
	    "are\n"
	    "bytes or K, M, G, T; times are seconds or ms, s, m, h, d.\n"
	    "\n"
	    "Options:\n");
	options_print_help(stdout);
	printf("\n"
	       "Exit status: 0 done, 1 failed, 2 wrong usage; mount.cellar as mount(8).\n");
}

static void add_options(struct words *w, const char *list)
{
	char *joined;

	if (!w->option_list) {
		w->option_list = xstrdup(list);
		return;
	}
	joined = xasprintf("%s,%s", w->option_list, list);
	free(w->option_list);
	w->option_list = joined;
}

static int take_arguments(struct cmdline *c, struct words *w, int argc, char **argv)
{
	int n = argc - optind;

	if (n > 2)
		return usage_error(c, "too many arguments: \"%s\"", argv[optind + 2]);
	if (n == 1)
		return usage_error(c, "STORE without MOUNTPOINT");
	if (n == 2) {
		w->store = argv[optind];
		w->mountpoint = argv[optind + 1];
	}
	return CMDLINE_GO_ON;
}

static int parse_cellard(struct cmdline *c, struct words *w, int argc, char **argv)
{
	enum { CONFIG = 256 };
	static const struct option longs[] = {
	    {"foreground", no_argument, NULL, 'f'},
	    {"config", required_argument, NULL, CONFIG},
	    {"help", no_argument, NULL, 'h'},
	    {"version", no_argument, NULL, 'V'},
	    {NULL, 0, NULL, 0},
	};
	int o;

	opterr = 0;
	optind = 1;
	while ((o = getopt_long(argc, argv, ":fo:hV", longs, NULL)) != -1) {
		switch (o) {
		case 'f':
			c->foreground = true;
			break;
		case 'o':
			add_options(w, optarg);
			break;
		case CONFIG:
			w->config = optarg;
			break;
		case 'h':
			w->help = true;
			return CMDLINE_GO_ON;
		case 'V':
			w->version = true;
			return CMDLINE_GO_ON;
		case ':':
			return usage_error(c, "\"%s\" needs a value", argv[optind - 1]);
		default:
			if (optopt && optopt < 256)
				return usage_error(c, "unknown option \"-%c\"", optopt);
			return usage_error(c, "wrong option \"%s\"", argv[optind - 1]);
		}
	}
	return take_arguments(c, w, argc, argv);
}

/* mount(8), "EXTERNAL HELPERS": SOURCE TARGET [-sfnv] [-N ns] [-o opts] [-t type] */
static int parse_helper(struct cmdline *c, struct words *w, int argc, char **argv)
{
	static const struct option longs[] = {
	    {"help", no_argument, NULL, 'h'},
	    {"version", no_argument, NULL, 'V'},
	    {NULL, 0, NULL, 0},
	};
	int o;

	opterr = 0;
	optind = 1;
	while ((o = getopt_long(argc, argv, ":sfnvN:o:t:hV", longs, NULL)) != -1) {
		switch (o) {
		case 's': /* sloppy, no mtab, verbose: nothing to do for us */
		case 'n':
		case 'v':
		case 't':
			break;
		case 'f':
			c->fake = true;
			break;
		case 'N':
			free(c->mount_namespace);
			c->mount_namespace = xstrdup(optarg);
			break;
		case 'o':
			add_options(w, optarg);
			break;
		case 'h':
			w->help = true;
			return CMDLINE_GO_ON;
		case 'V':
			w->version = true;
			return CMDLINE_GO_ON;
		default:
			return usage_error(c, "wrong option \"%s\"", argv[optind - 1]);
		}
	}
	if (argc - optind != 2)
		return usage_error(c, "mount(8) calls this with SOURCE and TARGET");
	return take_arguments(c, w, argc, argv);
}

static errint_t set_absolute(char **field, const char *path, char **cause)
{
	cleanup_free char *cwd = NULL;
	char *absolute;

	if (!path || path[0] == '\0')
		return set_cause(cause, -EINVAL, "an empty path");
	if (path[0] == '/') {
		absolute = xstrdup(path);
	} else {
		cwd = getcwd(NULL, 0);
		if (!cwd)
			return set_cause_errno(cause, -errno,
			                       "cannot tell the current directory");
		absolute = strcmp(cwd, "/") == 0 ? xasprintf("/%s", path)
		                                 : xasprintf("%s/%s", cwd, path);
	}
	for (size_t len = strlen(absolute); len > 1 && absolute[len - 1] == '/'; len--)
		absolute[len - 1] = '\0';
	free(*field);
	*field = absolute;
	return 0;
}

static errint_t make_absolute(char **field, char **cause)
{
	cleanup_free char *old = *field;

	*field = NULL;
	return set_absolute(field, old, cause);
}

/* Defaults, then the file, then -o, then the arguments. */
static errint_t fill_options(struct cmdline *c, const struct words *w, char **cause)
{
	struct options *o = &c->options;
	errint_t r = 0;

	if (c->mount_helper || w->config)
		o->create = false;
	if (w->config)
		r = options_read_file(o, w->config, cause);
	if (r == 0 && w->option_list)
		r = options_parse(o, w->option_list, cause);
	if (r == 0 && w->store)
		r = set_absolute(&o->store, w->store, cause);
	if (r == 0 && w->mountpoint)
		r = set_absolute(&o->mountpoint, w->mountpoint, cause);
	if (r == 0 && (!o->store || !o->mountpoint))
		return set_cause(
		    cause, -EINVAL, "%s",
		    w->config ? "neither arguments nor file name store and mountpoint"
		              : "STORE and MOUNTPOINT are missing");
	if (r == 0)
		r = make_absolute(&o->store, cause);
	if (r == 0)
		r = make_absolute(&o->mountpoint, cause);
	if (r == 0 && o->pool)
		r = make_absolute(&o->pool, cause);
	return r;
}

static bool is_mount_helper(const char *argv0)
{
	const char *slash = argv0 ? strrchr(argv0, '/') : NULL;

	return argv0 && strcmp(slash ? slash + 1 : argv0, HELPER_NAME) == 0;
}

int cmdline_parse(struct cmdline *c, int argc, char **argv)
{
	struct words w = {0};
	cleanup_free char *cause = NULL;
	errint_t r;
	int status;

	memset(c, 0, sizeof(*c));
	options_init(&c->options);
	c->mount_helper = is_mount_helper(argc > 0 ? argv[0] : NULL);
	status = c->mount_helper ? parse_helper(c, &w, argc, argv)
	                         : parse_cellard(c, &w, argc, argv);
	if (status == CMDLINE_GO_ON && (w.help || w.version)) {
		if (w.help)
			print_help();
		else
			printf("cellard %s\n", PACKAGE_VERSION);
		status = fflush(stdout) == 0 ? 0 : cmdline_exit_failed(c, true);
	} else if (status == CMDLINE_GO_ON) {
		bool wrong;

		r = fill_options(c, &w, &cause);
		wrong = r == -EINVAL;
		if (r == 0) /* each is right by itself: not usage, but the world */
			r = options_check(&c->options, &cause);
		if (wrong) {
			status = usage_error(c, "%s", cause ? cause : "wrong options");
		} else if (r < 0) {
			fprintf(stderr, "%s: %s\n", program_name(c),
			        cause ? cause : strerror(-r));
			status = cmdline_exit_failed(c, true);
		}
	}
	free(w.option_list);
	return status;
}

void cmdline_clear(struct cmdline *c)
{
	free(c->mount_namespace);
	options_clear(&c->options);
	memset(c, 0, sizeof(*c));
}
