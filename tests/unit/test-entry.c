/* store/entry: what a logical name leads to, and what a directory shows. */
#include "harness.h"

#include "base/sysio.h"
#include "store/entry.h"

/* An object, here, begins with an O; the number of questions is counted. */
struct judge {
	int asked;
	int answer_always; /* if not 0 */
	int replacing;     /* so many times the name leads to another file meanwhile */
	bool removing;
};

static int judge(void *ctx, int dirfd, const char *store_name, const struct stat *st,
                 const struct ident *ident)
{
	struct judge *j = ctx;
	char c = 0;
	int fd;

	assert_true(name_has_suffix(store_name));
	assert_true(st->st_size > 0);
	assert_true(S_ISREG(st->st_mode));
	assert_false(ident_is_none(ident));
	j->asked++;
	if (j->answer_always)
		return j->answer_always;
	if (j->removing) {
		assert_int_equal(unlinkat(dirfd, store_name, 0), 0);
		return -ESTALE;
	}
	if (j->replacing) {
		j->replacing--;
		fd = openat(dirfd, "next", O_WRONLY | O_CREAT | O_EXCL, 0600);
		assert_int_equal(write(fd, "Other object", 12), 12);
		close(fd);
		assert_int_equal(renameat(dirfd, "next", dirfd, store_name), 0);
		return -ESTALE;
	}
	fd = openat(dirfd, store_name, O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &c, 1, 0), 1);
	close(fd);
	return c == 'O';
}

static struct judge the_judge;
static const struct entry_rules rules = {
    .probe = judge, .ctx = &the_judge, .name_max = 255};

static void object(struct harness *h, const char *name)
{
	harness_write(h->dirfd, name, "Object", 6);
}

static void other_bytes(struct harness *h, const char *name)
{
	harness_write(h->dirfd, name, "other bytes", 11);
}

static void dir(struct harness *h, const char *name)
{
	assert_int_equal(mkdirat(h->dirfd, name, 0755), 0);
}

static void expect_at(struct harness *h, bool is_root, const char *logical,
                      enum entry_form form, const char *store_name)
{
	struct ident ident;
	struct entry e;
	struct stat st;
	errint_t err = entry_lookup(&rules, h->dirfd, is_root, logical, &e);

	if (err)
		fail_msg("%s: %s", logical, strerror(-err));
	assert_string_equal(e.store_name.s, store_name);
	assert_int_equal(e.form, form);
	assert_int_equal(fstatat(h->dirfd, store_name, &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_int_equal(e.st.st_ino, st.st_ino);
	assert_int_equal(e.st.st_mode, st.st_mode);
	assert_int_equal(ident_get(h->dirfd, store_name, &ident), 0);
	assert_true(ident_equal(&e.ident, &ident));
	assert_int_equal(e.hides,
	                 form == ENTRY_OBJECT &&
	                     fstatat(h->dirfd, logical, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	                     S_ISREG(st.st_mode));
	assert_int_equal(entry_check_free(&rules, h->dirfd, is_root, logical), -EEXIST);
}

static void expect(struct harness *h, const char *logical, enum entry_form form,
                   const char *store_name)
{
	expect_at(h, false, logical, form, store_name);
}

static void expect_none(struct harness *h, const char *logical)
{
	struct entry e = {.form = (enum entry_form)99};

	assert_int_equal(entry_lookup(&rules, h->dirfd, false, logical, &e), -ENOENT);
	assert_int_equal(e.form, 99);
	if (*logical && strcmp(logical, ".") && strcmp(logical, ".."))
		assert_int_equal(entry_check_free(&rules, h->dirfd, false, logical), 0);
}

static int by_name(const void *a, const void *b)
{
	const struct listing_item *x = a, *y = b;

	return strcmp(x->logical, y->logical);
}

/* "name:type name:type …", sorted */
static char *list_at(struct harness *h, bool is_root)
{
	struct listing l;
	char *text = calloc(1, 1);

	assert_int_equal(entry_list(&rules, h->dirfd, is_root, &l), 0);
	qsort(l.items, l.count, sizeof *l.items, by_name);
	for (size_t i = 0; i < l.count; i++) {
		char *more = xasprintf("%s%s%s:%u", text, i ? " " : "", l.items[i].logical,
		                       l.items[i].type);

		free(text);
		text = more;
	}
	listing_clear(&l);
	assert_int_equal(l.count, 0);
	listing_clear(&l);
	return text;
}

static void expect_list(struct harness *h, const char *items)
{
	harness_assert_text(list_at(h, false), items);
}

static void test_objects_and_plain(void **state)
{
	struct harness *h = *state;

	expect_list(h, "");
	object(h, "a.zst");
	other_bytes(h, "plain");
	harness_write(h->dirfd, "new.zst", "", 0);
	harness_write(h->dirfd, "empty", "", 0);
	object(h, "sp ace\n\xff.zst");
	expect(h, "a", ENTRY_OBJECT, "a.zst");
	expect(h, "plain", ENTRY_PLAIN, "plain");
	expect(h, "new", ENTRY_OBJECT, "new.zst");
	expect(h, "empty", ENTRY_PLAIN, "empty");
	expect(h, "sp ace\n\xff", ENTRY_OBJECT, "sp ace\n\xff.zst");
	expect_none(h, "a.zst");
	expect_none(h, "new.zst");
	expect_none(h, "plain.zst");
	expect_none(h, "b");
	expect_none(h, "");
	expect_none(h, ".");
	expect_none(h, "..");
	expect_none(h, "a/b");
	expect_list(h, "a:8 empty:8 new:8 plain:8 sp ace\n\xff:8");
}

/* Empty ones are not asked about. */
static void test_probe_is_for_objects(void **state)
{
	struct harness *h = *state;
	struct entry e;

	harness_write(h->dirfd, "new.zst", "", 0);
	other_bytes(h, "plain");
	other_bytes(h, ".zst");
	dir(h, "d.zst");
	the_judge.asked = 0;
	expect(h, "new", ENTRY_OBJECT, "new.zst");
	expect(h, "plain", ENTRY_PLAIN, "plain");
	expect(h, ".zst", ENTRY_PLAIN, ".zst");
	expect_list(h, ".zst:8 d.zst:4 new:8 plain:8");
	assert_int_equal(the_judge.asked, 0);
	object(h, "a.zst");
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, "a", &e), 0);
	assert_int_equal(the_judge.asked, 1);
	the_judge.asked = 0;
	expect_list(h, ".zst:8 a:8 d.zst:4 new:8 plain:8");
	assert_int_equal(the_judge.asked, 1);
}

/* What is replaced while it is looked at is there, and told as what it became. */
static void test_replaced_meanwhile(void **state)
{
	struct harness *h = *state;
	const int times[] = {1, 5, 1000};

	object(h, "a.zst");
	for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
		struct entry e;
		struct ident ident;

		the_judge.replacing = times[i];
		expect_list(h, "a:8");
		the_judge.replacing = times[i];
		assert_int_equal(entry_lookup(&rules, h->dirfd, false, "a", &e), 0);
		assert_int_equal(e.form, ENTRY_OBJECT);
		assert_int_equal(e.st.st_size, 12);
		if (times[i] < 8) {
			assert_int_equal(the_judge.replacing, 0);
			assert_int_equal(ident_get(h->dirfd, "a.zst", &ident), 0);
			assert_true(ident_equal(&e.ident, &ident));
		}
	}
	the_judge.replacing = 0;
}

static void test_shadowed_plain(void **state)
{
	struct harness *h = *state;

	object(h, "a.zst");
	other_bytes(h, "a");
	expect(h, "a", ENTRY_OBJECT, "a.zst");
	expect_list(h, "a:8");
	/* not an object after all: both are shown */
	other_bytes(h, "a.zst");
	expect(h, "a", ENTRY_PLAIN, "a");
	expect(h, "a.zst", ENTRY_PLAIN, "a.zst");
	expect_list(h, "a:8 a.zst:8");
	/* and a file whose logical name is a.zst hides the raw one */
	object(h, "a.zst.zst");
	expect(h, "a.zst", ENTRY_OBJECT, "a.zst.zst");
	expect_list(h, "a:8 a.zst:8");
}

static void test_undecodable(void **state)
{
	struct harness *h = *state;

	object(h, ".zst");
	object(h, "..zst");
	object(h, "...zst");
	object(h, "....zst");
	expect(h, ".zst", ENTRY_PLAIN, ".zst");
	expect(h, "..zst", ENTRY_PLAIN, "..zst");
	expect(h, "...zst", ENTRY_PLAIN, "...zst");
	expect(h, "...", ENTRY_OBJECT, "....zst");
	expect_none(h, "....zst");
	expect_list(h, "...:8 ...zst:8 ..zst:8 .zst:8");
}

static void test_directory_beside_object(void **state)
{
	struct harness *h = *state;

	dir(h, "backup");
	object(h, "backup.zst");
	expect(h, "backup", ENTRY_OTHER, "backup");
	expect(h, "backup.zst", ENTRY_PLAIN, "backup.zst");
	expect_list(h, "backup:4 backup.zst:8");
	/* an empty one too */
	dir(h, "n");
	harness_write(h->dirfd, "n.zst", "", 0);
	expect(h, "n.zst", ENTRY_PLAIN, "n.zst");
	assert_int_equal(unlinkat(h->dirfd, "n", AT_REMOVEDIR), 0);
	expect(h, "n", ENTRY_OBJECT, "n.zst");
	expect_none(h, "n.zst");
	/* the directory's name may be encoded itself */
	dir(h, "x.zst~");
	object(h, "x.zst.zst");
	expect(h, "x.zst", ENTRY_OTHER, "x.zst~");
	expect(h, "x.zst.zst", ENTRY_PLAIN, "x.zst.zst");
	expect_list(h, "backup:4 backup.zst:8 n:8 x.zst:4 x.zst.zst:8");
}

static void test_tilde(void **state)
{
	struct harness *h = *state;

	object(h, "x.zst");
	dir(h, "x.zst~");
	expect(h, "x", ENTRY_OBJECT, "x.zst");
	expect(h, "x.zst", ENTRY_OTHER, "x.zst~");
	expect_none(h, "x.zst~");
	expect_list(h, "x:8 x.zst:4");
	assert_int_equal(symlinkat("x", h->dirfd, "l.zst~~"), 0);
	expect(h, "l.zst~", ENTRY_OTHER, "l.zst~~");
	expect_none(h, "l.zst");
	expect_none(h, "l.zst~~");
	/* from before: not encoded */
	assert_int_equal(mknodat(h->dirfd, "f.zst", S_IFIFO | 0600, 0), 0);
	expect(h, "f.zst", ENTRY_OTHER, "f.zst");
	expect_list(h, "f.zst:1 l.zst~:10 x:8 x.zst:4");
	/* both forms: the encoded one counts, once, with its type */
	dir(h, "f.zst~");
	expect(h, "f.zst", ENTRY_OTHER, "f.zst~");
	expect_list(h, "f.zst:4 l.zst~:10 x:8 x.zst:4");
	/* regular files know no ~ */
	other_bytes(h, "r.zst~");
	object(h, "s.zst~.zst");
	expect(h, "r.zst~", ENTRY_PLAIN, "r.zst~");
	expect(h, "s.zst~", ENTRY_OBJECT, "s.zst~.zst");
	expect_none(h, "r.zst");
	expect_none(h, "s.zst");
	expect_list(h, "f.zst:4 l.zst~:10 r.zst~:8 s.zst~:8 x:8 x.zst:4");
}

static void test_private(void **state)
{
	struct harness *h = *state;
	struct entry e;

	dir(h, ".cellar");
	object(h, ".cellar.zst");
	assert_int_equal(entry_lookup(&rules, h->dirfd, true, ".cellar", &e), -ENOENT);
	assert_int_equal(entry_check_free(&rules, h->dirfd, true, ".cellar"), -EPERM);
	expect_at(h, true, ".cellar.zst", ENTRY_PLAIN, ".cellar.zst");
	harness_assert_text(list_at(h, true), ".cellar.zst:8");
	/* elsewhere it is a name like any other */
	expect(h, ".cellar", ENTRY_OTHER, ".cellar");
	expect_list(h, ".cellar:4 .cellar.zst:8");
	/* and without it the name stays taken */
	assert_int_equal(unlinkat(h->dirfd, ".cellar", AT_REMOVEDIR), 0);
	assert_int_equal(entry_lookup(&rules, h->dirfd, true, ".cellar", &e), -ENOENT);
	expect_at(h, true, ".cellar.zst", ENTRY_PLAIN, ".cellar.zst");
	other_bytes(h, ".cellar");
	harness_assert_text(list_at(h, true), ".cellar.zst:8");
}

static void test_lengths(void **state)
{
	struct harness *h = *state;
	struct entry_rules shorter = rules;
	char s[300], stored[300];
	struct entry e;

	memset(s, 'x', sizeof s);
	s[251] = '\0';
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, s, &e), -ENOENT);
	assert_int_equal(entry_check_free(&rules, h->dirfd, false, s), 0);
	memset(stored, 'x', sizeof stored);
	memcpy(stored + 251, ".zst", 5);
	object(h, stored);
	expect(h, s, ENTRY_OBJECT, stored);
	s[251] = 'x';
	s[252] = '\0';
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, s, &e), -ENAMETOOLONG);
	assert_int_equal(entry_check_free(&rules, h->dirfd, false, s), -ENAMETOOLONG);
	other_bytes(h, s);
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, s, &e), 0);
	assert_int_equal(e.form, ENTRY_PLAIN);
	s[252] = 'x';
	s[255] = '\0';
	dir(h, s);
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, s, &e), 0);
	assert_int_equal(e.form, ENTRY_OTHER);
	/* a directory from before whose encoded name would be too long */
	memcpy(s + 251, ".zst", 4);
	assert_int_equal(unlinkat(h->dirfd, stored, 0), 0);
	dir(h, s);
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, s, &e), 0);
	assert_int_equal(e.form, ENTRY_OTHER);
	s[255] = 'x';
	s[256] = '\0';
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, s, &e), -ENAMETOOLONG);
	assert_int_equal(entry_check_free(&rules, h->dirfd, false, s), -ENAMETOOLONG);
	shorter.name_max = 20;
	assert_int_equal(entry_lookup(&shorter, h->dirfd, false, "1234567890123456", &e),
	                 -ENOENT);
	assert_int_equal(entry_lookup(&shorter, h->dirfd, false, "12345678901234567", &e),
	                 -ENAMETOOLONG);
}

static void test_probe_errors(void **state)
{
	struct harness *h = *state;
	struct entry e;

	object(h, "a.zst");
	the_judge.answer_always = -EIO;
	expect(h, "a", ENTRY_OBJECT, "a.zst");
	expect_list(h, "a:8");
	the_judge.answer_always = 0;
	the_judge.removing = true; /* it went while we looked */
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, "a", &e), -ENOENT);
	object(h, "a.zst");
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, "a.zst", &e), -ENOENT);
	object(h, "a.zst");
	expect_list(h, "");
	the_judge.removing = false;
}

static void expect_new(struct harness *h, const char *logical, bool regular, errint_t want,
                       const char *stored)
{
	struct name n = {"unchanged"};

	assert_int_equal(entry_new_name(&rules, h->dirfd, true, logical, regular, &n),
	                 want);
	assert_string_equal(n.s, want ? "unchanged" : stored);
}

static void test_new_names(void **state)
{
	struct harness *h = *state;
	char s[300];

	expect_new(h, "a", true, 0, "a.zst");
	expect_new(h, "a", false, 0, "a");
	expect_new(h, "a.zst", false, 0, "a.zst~");
	expect_new(h, ".cellar", true, -EPERM, NULL);
	object(h, "a.zst");
	expect_new(h, "a", true, 0, "a.zst"); /* where a leads */
	expect_new(h, "a.zst", false, 0, "a.zst~");
	/* raw bytes under the name that a file b would get */
	other_bytes(h, "b.zst");
	expect_new(h, "b", true, -EEXIST, NULL);
	expect_new(h, "b", false, 0, "b");
	/* a directory from before there */
	dir(h, "c.zst");
	expect_new(h, "c", true, -EEXIST, NULL);
	expect_new(h, "c.zst", false, 0, "c.zst~");
	/* a plain file under the encoded name of a directory */
	other_bytes(h, "d.zst~");
	expect_new(h, "d.zst", false, -EEXIST, NULL);
	expect_new(h, "d.zst~", true, 0, "d.zst~.zst");
	/* raw beside its directory */
	dir(h, "e");
	object(h, "e.zst");
	expect_new(h, "e", true, -EEXIST, NULL);
	expect_new(h, "e", false, 0, "e");
	memset(s, 'x', sizeof s);
	s[252] = '\0';
	expect_new(h, s, true, -ENAMETOOLONG, NULL);
	expect_new(h, s, false, -ENAMETOOLONG, NULL);
}

/* ---- listing and look-up agree ---- */

static const char *const candidates[] = {
    "x",         "x~",         "x.zst",       "x.zst~",        "x.zst~~",
    "x.zst.zst", "x.zst.zst~", "x.zst~.zst",  "x.zst.zst.zst", ".zst",
    "..zst",     "...zst",     "....zst",     "...",           ".zst~",
    ".zst.zst",  ".cellar",    ".cellar.zst", ".cellar~",      ".cellar.zst~",
    ".zst~~",    "..zst~",     "x.zst~~.zst", "x.zst~~~",      ".cellar.zst.zst",
};

static void make_something(struct harness *h, const char *name, unsigned what)
{
	switch (what) {
	case 0:
		object(h, name);
		break;
	case 1:
		other_bytes(h, name);
		break;
	case 2:
		harness_write(h->dirfd, name, "", 0);
		break;
	case 3:
		dir(h, name);
		break;
	case 4:
		assert_int_equal(symlinkat("x", h->dirfd, name), 0);
		break;
	default:
		break; /* nothing, most often */
	}
}

/* Which item of the listing is the entry with that store name; count if none. */
static size_t shown_as(struct harness *h, bool is_root, const struct listing *l,
                       const char *store_name)
{
	struct entry e;
	size_t i, found = l->count;

	for (i = 0; i < l->count; i++) {
		if (entry_lookup(&rules, h->dirfd, is_root, l->items[i].logical, &e))
			fail_msg("listed, not found: %s", l->items[i].logical);
		assert_int_equal(IFTODT(e.st.st_mode), l->items[i].type);
		if (strcmp(e.store_name.s, store_name))
			continue;
		if (found < l->count)
			fail_msg("%s is shown twice", store_name);
		found = i;
	}
	return found;
}

static bool is_listed(const struct listing *l, const char *logical)
{
	size_t n = 0;

	for (size_t i = 0; i < l->count; i++)
		n += !strcmp(l->items[i].logical, logical);
	assert_true(n <= 1);
	return n;
}

static void check_directory(struct harness *h, bool is_root)
{
	struct listing l;
	struct entry e;

	assert_int_equal(entry_list(&rules, h->dirfd, is_root, &l), 0);
	for (size_t i = 0; i < ARRAY_LEN(candidates); i++) {
		const char *s = candidates[i];
		struct stat st;
		struct name n;

		/* what is found is listed, what is listed is found */
		if (is_listed(&l, s) != !entry_lookup(&rules, h->dirfd, is_root, s, &e))
			fail_msg("%s is %s", s,
			         is_listed(&l, s) ? "not found" : "not listed");
		if (fstatat(h->dirfd, s, &st, AT_SYMLINK_NOFOLLOW) ||
		    shown_as(h, is_root, &l, s) < l.count)
			continue;
		/* hidden: then another one is shown in its place */
		(void)name_decode(s, S_ISREG(st.st_mode), &n);
		if (!is_listed(&l, n.s) && !is_listed(&l, s) &&
		    !(is_root && !strcmp(s, NAMES_PRIVATE)))
			fail_msg("%s is shown nowhere", s);
	}
	listing_clear(&l);
}

static void empty_directory(struct harness *h)
{
	int fd = open(h->path, O_RDONLY | O_DIRECTORY);

	harness_empty_dir(fd);
}

static void test_listing_agrees(void **state)
{
	struct harness *h = *state;
	uint64_t seed = 20240607;

	for (int round = 0; round < 300; round++) {
		for (size_t i = 0; i < ARRAY_LEN(candidates); i++)
			make_something(h, candidates[i],
			               harness_next(&seed) % (6 + round % 8));
		check_directory(h, round % 2);
		empty_directory(h);
	}
}

/* Many entries: all there, each once, and asked about once. */
static void test_many(void **state)
{
	struct harness *h = *state;
	const int n = 4000;
	struct listing l;

	for (int i = 0; i < n; i++) {
		char s[64];

		(void)snprintf(s, sizeof s, "%d.zst", i);
		harness_write(h->dirfd, s, "O", i % 2);
		(void)snprintf(s, sizeof s, "%d", i);
		if (i % 4 == 0)
			harness_write(h->dirfd, s, "x", 1);
	}
	the_judge.asked = 0;
	assert_int_equal(entry_list(&rules, h->dirfd, false, &l), 0);
	assert_int_equal(l.count, n);
	assert_int_equal(the_judge.asked, n / 2);
	qsort(l.items, l.count, sizeof *l.items, by_name);
	for (int i = 1; i < n; i++)
		assert_string_not_equal(l.items[i].logical, l.items[i - 1].logical);
	listing_clear(&l);
}

static void test_faults(void **state)
{
	struct harness *h = *state;
	struct entry e;
	struct listing l;

	object(h, "a.zst");
	object(h, "b.zst");
	if (!fault_set("fstatat:1:EIO"))
		skip();
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, "a", &e), -EIO);
	assert_true(fault_set("fstatat:2:EIO"));
	assert_int_equal(entry_lookup(&rules, h->dirfd, false, "a", &e), -EIO);
	assert_true(fault_set("fstatat:1:EIO"));
	assert_int_equal(entry_check_free(&rules, h->dirfd, false, "a"), -EIO);
	assert_true(fault_set("walk_dir:1:EIO"));
	assert_int_equal(entry_list(&rules, h->dirfd, false, &l), -EIO);
	/* one inode that cannot be read hides no others */
	assert_true(fault_set("fstatat:1:EIO"));
	expect_list(h, "a:8 b:8");
	assert_true(fault_fired());
	assert_true(fault_set("fstatat:1:ENOENT"));
	assert_int_equal(entry_list(&rules, h->dirfd, false, &l), 0);
	assert_int_equal(l.count, 1);
	listing_clear(&l);
	(void)fault_set(NULL);
}

#define T(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_objects_and_plain),
	    T(test_probe_is_for_objects),
	    T(test_replaced_meanwhile),
	    T(test_shadowed_plain),
	    T(test_undecodable),
	    T(test_directory_beside_object),
	    T(test_tilde),
	    T(test_private),
	    T(test_lengths),
	    T(test_probe_errors),
	    T(test_new_names),
	    T(test_listing_agrees),
	    T(test_many),
	    T(test_faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
