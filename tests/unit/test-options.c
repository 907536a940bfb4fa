/* base/options.c, base/options-file.c: the table, -o, the file, help. */
#include "harness.h"

#include "base/options.h"

/* Parses list into fresh options: *cause gets what it said (NULL on success). */
static errint_t parse(struct options *o, const char *list, char **cause)
{
	errint_t err;

	*cause = NULL;
	options_init(o);
	err = options_parse(o, list, cause);
	assert_int_equal(err != 0, *cause != NULL);
	return err;
}

static void expect_refused(const char *list, const char *said)
{
	struct options o;
	char *cause;

	if (parse(&o, list, &cause) != -EINVAL)
		fail_msg("\"%s\" accepted", list);
	assert_string_equal(cause, said);
	free(cause);
	options_clear(&o);
}

static void parse_ok(struct options *o, const char *list)
{
	char *cause;

	if (parse(o, list, &cause) != 0)
		fail_msg("%s: %s", list, cause);
}

static void test_defaults(void **state)
{
	struct options o;

	options_init(&o);
	assert_null(o.store);
	assert_null(o.pool);
	assert_true(o.create);
	assert_false(o.new_pool);
	assert_int_equal(o.level, 3);
	assert_int_equal(o.frame_size, 1 << 20);
	assert_int_equal(o.foreign_zst, FOREIGN_ZST_DECODE);
	assert_true(o.pool_size == OPTION_AUTO);
	assert_true(o.max_idle == OPTION_AUTO);
	assert_int_equal(o.writeback_delay, 5000);
	assert_int_equal(o.log_level, LOG_OPTION_INFO);
	assert_string_equal(o.kernel_options, "");
	assert_int_equal(options_check(&o, NULL), 0);
	options_clear(&o);
	assert_null(o.kernel_options);
	options_clear(&o); /* twice is fine */
}

static void test_every_type(void **state)
{
	struct options o;

	parse_ok(&o,
	         "level=19,frame_size=64K,foreign_zst=keep,pool_size=1.5G,max_idle=auto,"
	         "writeback_delay=250ms,pool=/a b/c=d,create=no,shared_store,new_pool=ON");
	assert_int_equal(o.level, 19);
	assert_int_equal(o.frame_size, 64 << 10);
	assert_int_equal(o.foreign_zst, FOREIGN_ZST_KEEP);
	assert_int_equal(o.pool_size, 3ULL << 29);
	assert_true(o.max_idle == OPTION_AUTO);
	assert_int_equal(o.writeback_delay, 250);
	assert_string_equal(o.pool, "/a b/c=d");
	assert_false(o.create);
	assert_true(o.shared_store);
	assert_true(o.new_pool);
	options_clear(&o);
}

static void test_bool_words(void **state)
{
	static const char *const yes[] = {"create",    "create=yes", "create=true",
	                                  "create=on", "create=1",   "create=YES"};
	static const char *const no[] = {"create=no", "create=false", "create=off",
	                                 "create=0", "create=Off"};
	struct options o;
	char list[64];

	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		(void)snprintf(list, sizeof(list), "create=no,%s", yes[i]);
		parse_ok(&o, list);
		assert_true(o.create);
		options_clear(&o);
	}
	for (size_t i = 0; i < ARRAY_LEN(no); i++) {
		parse_ok(&o, no[i]);
		assert_false(o.create);
		options_clear(&o);
	}
	expect_refused("create=", "-o create=: must be yes or no");
	expect_refused("create=2", "-o create=2: must be yes or no");
	expect_refused("nocreate", "-o nocreate: unknown option");
}

static void test_lists(void **state)
{
	struct options o;

	parse_ok(&o, "");
	assert_int_equal(o.level, 3);
	options_clear(&o);

	parse_ok(&o, ",,level=4,,level=5,");
	assert_int_equal(o.level, 5); /* the last one counts */
	options_clear(&o);

	parse_ok(&o, "pool=/a\\,b\\\\,level=6,store=c\\d\\,");
	assert_string_equal(o.pool, "/a,b\\");
	assert_string_equal(o.store, "c\\d,");
	assert_int_equal(o.level, 6);
	options_clear(&o);

	parse_ok(&o, "store=\\");
	assert_string_equal(o.store, "\\");
	options_clear(&o);

	parse_ok(&o, "frame-size=2M,writeback-delay=1,max_open=7");
	assert_int_equal(o.frame_size, 2 << 20);
	assert_int_equal(o.writeback_delay, 1000);
	assert_int_equal(o.max_open, 7);
	options_clear(&o);

	/* A second list goes on where the first one stopped. */
	parse_ok(&o, "level=7,pool=/x");
	assert_int_equal(options_parse(&o, "pool=/y", NULL), 0);
	assert_int_equal(o.level, 7);
	assert_string_equal(o.pool, "/y");
	options_clear(&o);
}

static void test_refusals(void **state)
{
	expect_refused("level=40", "-o level=40: must be between 1 and 19");
	expect_refused("level=0", "-o level=0: must be between 1 and 19");
	expect_refused("level=-1", "-o level=-1: must be between 1 and 19");
	expect_refused("level=", "-o level=: must be between 1 and 19");
	expect_refused("level= 3", "-o level= 3: must be between 1 and 19");
	expect_refused("level=3x", "-o level=3x: must be between 1 and 19");
	expect_refused("level=+3", "-o level=+3: must be between 1 and 19");
	expect_refused("level=99999999999999999999",
	               "-o level=99999999999999999999: must be between 1 and 19");
	expect_refused("level=auto", "-o level=auto: must be between 1 and 19");
	expect_refused("level", "-o level: has no value: must be between 1 and 19");
	expect_refused("flushers=65", "-o flushers=65: must be between 1 and 64 threads");
	expect_refused("frame_size=63K", "-o frame_size=63K: must be between 64K and 64M");
	expect_refused("frame_size=64M1",
	               "-o frame_size=64M1: must be between 64K and 64M");
	expect_refused("frame_size=auto",
	               "-o frame_size=auto: must be between 64K and 64M");
	expect_refused("pool_size=1K",
	               "-o pool_size=1K: must be between 1M and 1024T, or auto");
	expect_refused(
	    "pool_size=18446744073709551615",
	    "-o pool_size=18446744073709551615: must be between 1M and 1024T, or "
	    "auto");
	expect_refused("sync_interval=99ms",
	               "-o sync_interval=99ms: must be between 100ms and 1h");
	expect_refused("writeback_delay=86401",
	               "-o writeback_delay=86401: must be between 0s and 1d");
	expect_refused("foreign_zst=kee", "-o foreign_zst=kee: must be decode or keep");
	expect_refused("foreign_zst=decode|keep",
	               "-o foreign_zst=decode|keep: must be decode or keep");
	expect_refused("foreign_zst=", "-o foreign_zst=: must be decode or keep");
	expect_refused("log_level=1", "-o log_level=1: must be err, warn, info or debug");
	expect_refused("pool=", "-o pool=: must not be empty");
	expect_refused("pool", "-o pool: has no value: must not be empty");
	expect_refused("levl=3", "-o levl: unknown option");
	expect_refused("Level=3", "-o Level: unknown option");
	expect_refused("level_=3", "-o level_: unknown option");
	expect_refused("leve", "-o leve: unknown option");
	expect_refused("=3", "-o : unknown option");
	expect_refused("kernel_options=x", "-o kernel_options: unknown option");
	/* Nothing from outside reaches a terminal as it is. */
	expect_refused("level=\x1b[2J\n", "-o level=\\x1b[2J\\n: must be between 1 and 19");
	expect_refused("a\nb", "-o a\\nb: unknown option");
	/* What came before the mistake does not hide it, nor what comes after. */
	expect_refused("level=3,ro,frob,level=4", "-o frob: unknown option");
}

static void test_bounds_are_allowed(void **state)
{
	struct options o;

	parse_ok(&o,
	         "level=1,flushers=64,max_open=1073741824,frame_size=64M,eager_size=0,"
	         "sync_interval=100ms,writeback_delay=1d,max_object=1152921504606846976");
	assert_int_equal(o.level, 1);
	assert_int_equal(o.max_open, 1 << 30);
	assert_int_equal(o.max_object, 1ULL << 60);
	options_clear(&o);
}

static void expect_kernel(const char *list, const char *passed)
{
	struct options o;

	parse_ok(&o, list);
	if (strcmp(o.kernel_options, passed) != 0)
		fail_msg("%s: \"%s\" instead of \"%s\"", list, o.kernel_options, passed);
	options_clear(&o);
}

static void test_words_of_mount(void **state)
{
	struct options o;

	expect_kernel("ro,noexec,nosuid,nodev,sync,dirsync,noatime",
	              "ro,noexec,nosuid,nodev,sync,dirsync,noatime");
	expect_kernel("allow_other,default_permissions", "allow_other");
	expect_kernel("defaults,rw,async,atime,relatime,strictatime,auto,noauto,user,users,"
	              "nouser,owner,group,nofail,_netdev,diratime,nodiratime,loud,silent",
	              "");
	expect_kernel(
	    "x-systemd.automount,x-gvfs-show,X-mount.mkdir=0755,x-a=b=c,comment=a b,"
	    "user=joe,fsname=a,subtype=b",
	    "");
	/* The last word of a pair counts, each word once. */
	expect_kernel("ro,rw", "");
	expect_kernel("rw,ro", "ro");
	expect_kernel("ro,ro", "ro");
	expect_kernel("noexec,nosuid,exec", "nosuid,exec");
	expect_kernel("exec,nodev,noexec", "nodev,noexec");
	expect_kernel("noatime,nosuid,atime", "nosuid");
	expect_kernel("sync,async", "");
	expect_kernel("nosuid,sync,suid,async", "suid");

	parse_ok(&o, "noexec,level=9,nofail,ro");
	assert_int_equal(o.level, 9);
	assert_string_equal(o.kernel_options, "noexec,ro");
	options_clear(&o);

	expect_refused("ro=1", "-o ro: unknown option");
	expect_refused("rox", "-o rox: unknown option");
	expect_refused("netdev", "-o netdev: unknown option");
	expect_refused("allow-other", "-o allow-other: unknown option");
}

static void test_contradictions(void **state)
{
	static const struct {
		const char *list;
		const char *says;
	} cases[] = {
	    {"allow_other,allow_root", "allow_other and allow_root exclude each other"},
	    {"pool=/s,store=/s", "pool and store are the same directory"},
	    {"pool=/m,mountpoint=/m",
	     "the pool may not be the mount point: it would be hidden"},
	};
	struct options o;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char *cause = NULL;

		parse_ok(&o, cases[i].list);
		assert_int_equal(options_check(&o, &cause), -EINVAL);
		harness_assert_text(cause, cases[i].says);
		options_clear(&o);
	}
	parse_ok(&o, "store=/a,mountpoint=/a,pool=/b,allow_other"); /* over itself */
	assert_int_equal(options_check(&o, NULL), 0);
	options_clear(&o);
}

/* ---- the file ---- */

static errint_t read_conf(struct harness *h, struct options *o, const char *text,
                          char **cause)
{
	char path[600];

	harness_write(h->dirfd, "conf", text, strlen(text));
	(void)snprintf(path, sizeof(path), "%s/conf", h->path);
	*cause = NULL;
	options_init(o);
	return options_read_file(o, path, cause);
}

static void read_ok(struct harness *h, struct options *o, const char *text)
{
	char *cause;

	if (read_conf(h, o, text, &cause) != 0)
		fail_msg("%s", cause);
	assert_null(cause);
}

/* What the cause says after "PATH/conf:" (free it). */
static char *conf_refused(struct harness *h, const char *text)
{
	struct options o;
	char *cause, *said, path[600];

	(void)snprintf(path, sizeof(path), "%s/conf:", h->path);
	assert_int_equal(read_conf(h, &o, text, &cause), -EINVAL);
	assert_non_null(cause);
	if (strncmp(cause, path, strlen(path)) != 0)
		fail_msg("no file name: %s", cause);
	said = strdup(cause + strlen(path));
	free(cause);
	options_clear(&o);
	return said;
}

static void expect_conf_refused(struct harness *h, const char *text, const char *said)
{
	harness_assert_text(conf_refused(h, text), said);
}

/* For what libconfuse puts into words of its own: the line, and what it must name. */
static void expect_conf_blames(struct harness *h, const char *text, const char *line,
                               const char *name)
{
	char *said = conf_refused(h, text);

	if (strncmp(said, line, strlen(line)) != 0 || said[strlen(line)] != ':' ||
	    !strstr(said, name))
		fail_msg("neither line %s nor \"%s\": %s", line, name, said);
	free(said);
}

static void test_file(void **state)
{
	struct options o;

	read_ok(*state, &o,
	        "# a comment\n"
	        "store = /srv/store\n"
	        "mountpoint=\"/srv/with blank\"\n"
	        "level = 9   # another\n"
	        "pool-size = '2G'\n"
	        "max_idle = 90m\n"
	        "sync_interval = \"0.5s\"\n"
	        "foreign_zst = keep\n"
	        "create = no\n"
	        "shared_store = on\n"
	        "flushers = 3"); /* no newline at the end */
	assert_string_equal(o.store, "/srv/store");
	assert_string_equal(o.mountpoint, "/srv/with blank");
	assert_int_equal(o.level, 9);
	assert_int_equal(o.pool_size, 2ULL << 30);
	assert_int_equal(o.max_idle, 5400000);
	assert_int_equal(o.sync_interval, 500);
	assert_int_equal(o.foreign_zst, FOREIGN_ZST_KEEP);
	assert_false(o.create);
	assert_true(o.shared_store);
	assert_int_equal(o.flushers, 3);
	assert_int_equal(o.frame_size, 1 << 20); /* not named: default */

	/* -o wins over the file, key by key. */
	assert_int_equal(options_parse(&o, "level=2", NULL), 0);
	assert_int_equal(o.level, 2);
	assert_int_equal(o.flushers, 3);
	options_clear(&o);

	read_ok(*state, &o, "");
	assert_int_equal(o.level, 3);
	options_clear(&o);
	read_ok(*state, &o, "level = 4\r\nlevel = 5\r\n");
	assert_int_equal(o.level, 5);
	options_clear(&o);
}

static void test_file_knows_every_option(void **state)
{
	struct options o, read;
	char text[8192];
	size_t len = 0, n = 0;
	const char *name;

	options_init(&o);
	assert_int_equal(options_parse(&o, "store=/s,mountpoint=/m,pool=/p", NULL), 0);
	for (char *value; (value = options_text(&o, n, &name)) != NULL; n++) {
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s = \"%s\"\n",
		                        name, value);
		free(value);
	}
	assert_true(n > 15);
	read_ok(*state, &read, text);
	for (size_t i = 0; i < n; i++) {
		char *a = options_text(&o, i, &name);

		harness_assert_text(options_text(&read, i, &name), a);
		free(a);
	}
	options_clear(&o);
	options_clear(&read);
}

static void test_file_refusals(void **state)
{
	struct harness *h = *state;

	expect_conf_refused(h, "\n\nlevel = 40\n", "3: level=40: must be between 1 and 19");
	expect_conf_blames(h, "level = 4\nfrob = 1\n", "2", "frob");
	expect_conf_blames(h, "level 4\n", "1", "level");
	expect_conf_blames(h, "level = 4\nlevel =", "2", "end of file");
	expect_conf_refused(h, "pool = \"\"\n", "1: pool=: must not be empty");
	expect_conf_refused(h, "pool-size = 1\n",
	                    "1: pool_size=1: must be between 1M and 1024T, or auto");
	expect_conf_blames(h, "level = {1, 2}\n", "1", "{");
	/* Words of mount(8) belong to -o; a file cannot include others. */
	expect_conf_blames(h, "ro = yes\n", "1", "ro");
	expect_conf_blames(h, "include(\"/etc/passwd\")\n", "1", "include");
	/* The first mistake is the one that is told. */
	expect_conf_refused(h, "level = x\nlevel = y\nfrob\n",
	                    "1: level=x: must be between 1 and 19");
	expect_conf_blames(h, "\x1b[2J = 1\n", "1", "\\x1b[2J");
}

static void expect_unreadable(const char *path, errint_t want, const char *why)
{
	struct options o;
	char *cause = NULL, said[1024];

	options_init(&o);
	assert_int_equal(options_read_file(&o, path, &cause), want);
	(void)snprintf(said, sizeof(said), "configuration file %s: %s", path, why);
	harness_assert_text(cause, said);
	options_clear(&o);
}

static void test_unreadable_files(void **state)
{
	struct harness *h = *state;
	char path[600];
	int fd;

	(void)snprintf(path, sizeof(path), "%s/conf", h->path);
	expect_unreadable(path, -ENOENT, "No such file or directory");
	expect_unreadable(h->path, -EISDIR, "Is a directory");
	expect_unreadable("/dev/null", -EINVAL, "Invalid argument");
	harness_write(h->dirfd, "conf", "level = 3\n\0level = 4\n", 21);
	expect_unreadable(path, -EILSEQ,
	                  "Invalid or incomplete multibyte or wide character");
	fd = openat(h->dirfd, "conf", O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 2 << 20), 0);
	(void)close(fd);
	expect_unreadable(path, -EFBIG, "File too large");
}

/* ---- text ---- */

static size_t index_of(const char *wanted)
{
	const char *name;

	for (size_t i = 0; (name = options_name(i)) != NULL; i++) {
		if (strcmp(name, wanted) == 0)
			return i;
	}
	fail_msg("no option %s", wanted);
	return 0;
}

static void expect_text(const char *list, const char *name, const char *text)
{
	const char *got_name = NULL;
	struct options o;
	char *got;

	parse_ok(&o, list);
	got = options_text(&o, index_of(name), &got_name);
	assert_string_equal(got_name, name);
	assert_string_equal(got, text);
	free(got);
	options_clear(&o);
}

static void test_text(void **state)
{
	struct options o;
	const char *name;

	expect_text("", "store", "");
	expect_text("store=/x", "store", "/x");
	expect_text("", "create", "yes");
	expect_text("create=0", "create", "no");
	expect_text("level=19", "level", "19");
	expect_text("foreign_zst=keep", "foreign_zst", "keep");
	expect_text("log_level=err", "log_level", "err");
	expect_text("", "pool_size", "auto");
	expect_text("pool_size=1536M", "pool_size", "1536M");
	expect_text("pool_size=2048M", "pool_size", "2G");
	expect_text("eager_size=1000001", "eager_size", "1000001");
	expect_text("eager_size=0", "eager_size", "0");
	expect_text("max_idle=90m", "max_idle", "90m");
	expect_text("max_idle=7200", "max_idle", "2h");
	expect_text("max_idle=48h", "max_idle", "2d");
	expect_text("writeback_delay=1.25", "writeback_delay", "1250ms");
	expect_text("writeback_delay=0", "writeback_delay", "0s");

	options_init(&o);
	assert_null(options_text(&o, 1000, &name));
	assert_null(options_name(1000));
	options_clear(&o);
}

static void test_help(void **state)
{
	char *text = NULL, *rest, *line;
	const char *name;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	assert_non_null(f);
	options_print_help(f);
	assert_int_equal(fclose(f), 0);
	assert_non_null(strstr(text,
	                       "\n  level=N\n        zstd level of a flush. Default 3; "
	                       "between 1 and 19.\n"));
	assert_non_null(strstr(text, "\n  foreign_zst=decode|keep\n"));
	for (size_t i = 0; (name = options_name(i)) != NULL; i++) {
		char head[64];

		(void)snprintf(head, sizeof(head), "  %s", name);
		line = strstr(text, head);
		assert_non_null(line);
		assert_true(line == text || line[-1] == '\n');
	}
	for (rest = text; (line = strsep(&rest, "\n")) != NULL;) {
		size_t len = strlen(line);

		if (len > 79 || (len > 0 && line[len - 1] == ' '))
			fail_msg("bad line: %s", line);
	}
	free(text);
}

int main(void)
{
#define IN_DIR(t) cmocka_unit_test_setup_teardown(t, harness_setup, harness_teardown)
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_defaults),
	    cmocka_unit_test(test_every_type),
	    cmocka_unit_test(test_bool_words),
	    cmocka_unit_test(test_lists),
	    cmocka_unit_test(test_refusals),
	    cmocka_unit_test(test_bounds_are_allowed),
	    cmocka_unit_test(test_words_of_mount),
	    cmocka_unit_test(test_contradictions),
	    IN_DIR(test_file),
	    IN_DIR(test_file_knows_every_option),
	    IN_DIR(test_file_refusals),
	    IN_DIR(test_unreadable_files),
	    cmocka_unit_test(test_text),
	    cmocka_unit_test(test_help),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
