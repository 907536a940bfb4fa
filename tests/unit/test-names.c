/* store/names: the mapping between names in the mount and in the store. */
#include "harness.h"

#include "store/names.h"

static void expect_encode(const char *logical, bool regular, const char *stored)
{
	struct name n;

	assert_int_equal(name_encode(logical, regular, &n), 0);
	assert_string_equal(n.s, stored);
}

static void expect_decode(const char *stored, bool regular, bool decodable,
                          const char *logical)
{
	struct name n;

	assert_int_equal(name_decode(stored, regular, &n), decodable);
	assert_string_equal(n.s, logical);
}

static void test_encode(void **state)
{
	expect_encode("a", true, "a.zst");
	expect_encode("a.zst", true, "a.zst.zst");
	expect_encode("a.zst~", true, "a.zst~.zst");
	expect_encode("\xff\n ", true, "\xff\n .zst");
	expect_encode("a", false, "a");
	expect_encode("a~", false, "a~");
	expect_encode("zst", false, "zst");
	expect_encode("azst", false, "azst");
	expect_encode("a.zst", false, "a.zst~");
	expect_encode("a.zst~", false, "a.zst~~");
	expect_encode("a.zst~~", false, "a.zst~~~");
	expect_encode("a.zst~b", false, "a.zst~b");
	expect_encode("a.ZST", false, "a.ZST");
	expect_encode(".zst", false, ".zst~");
	expect_encode("~", false, "~");
	expect_encode(".cellar", false, ".cellar");
}

static void test_decode(void **state)
{
	expect_decode("a.zst", true, true, "a");
	expect_decode("a.zst.zst", true, true, "a.zst");
	expect_decode("a.zst~.zst", true, true, "a.zst~");
	expect_decode("a", true, true, "a");
	expect_decode("a.zst~", true, true, "a.zst~");
	expect_decode("a.ZST", true, true, "a.ZST");
	expect_decode(".zst", true, false, ".zst");
	expect_decode("..zst", true, false, "..zst");
	expect_decode("...zst", true, false, "...zst");
	expect_decode("....zst", true, true, "...");
	expect_decode("zst", true, true, "zst");
	expect_decode("a.zst", false, true, "a.zst");
	expect_decode("a.zst~", false, true, "a.zst");
	expect_decode("a.zst~~", false, true, "a.zst~");
	expect_decode("a~", false, true, "a~");
	expect_decode(".zst~", false, true, ".zst");
	expect_decode("~", false, true, "~");
	expect_decode("", false, true, "");
	expect_decode("", true, true, "");
}

/* Whatever is encoded decodes to itself, and no two names share a store name. */
static void test_round_trip(void **state)
{
	static const char *const parts[] = {"", "a", ".", ".zst", "~", "z", "\xc3\xa4"};
	const size_t n = ARRAY_LEN(parts);
	char stored[7 * 7 * 7 * 7][32];
	char logical[7 * 7 * 7 * 7][32];
	size_t count = 0;

	for (int regular = 0; regular < 2; regular++) {
		count = 0;
		for (size_t i = 0; i < n * n * n * n; i++) {
			char s[32];
			struct name e, d;

			(void)snprintf(s, sizeof s, "%s%s%s%s", parts[i % n],
			               parts[i / n % n], parts[i / n / n % n],
			               parts[i / n / n / n]);
			if (!*s || !strcmp(s, ".") || !strcmp(s, ".."))
				continue;
			assert_int_equal(name_encode(s, regular, &e), 0);
			assert_true(name_decode(e.s, regular, &d));
			assert_string_equal(d.s, s);
			assert_true(strlen(e.s) < sizeof stored[0]);
			memcpy(stored[count], e.s, strlen(e.s) + 1);
			memcpy(logical[count], s, sizeof s);
			count++;
		}
		for (size_t i = 0; i < count; i += 5)
			for (size_t j = 0; j < count; j++)
				if (!strcmp(stored[i], stored[j]))
					assert_string_equal(logical[i], logical[j]);
	}
	assert_true(count > 1000);
}

static void test_lengths(void **state)
{
	char s[300];
	struct name n;

	memset(s, 'x', sizeof s);
	s[251] = '\0';
	assert_int_equal(name_encode(s, true, &n), 0);
	assert_int_equal(strlen(n.s), 255);
	s[251] = 'x';
	s[252] = '\0';
	assert_int_equal(name_encode(s, true, &n), -ENAMETOOLONG);
	assert_int_equal(name_encode(s, false, &n), 0);
	s[252] = 'x';
	s[255] = '\0';
	assert_int_equal(name_encode(s, false, &n), 0);
	assert_string_equal(n.s, s);
	memcpy(s + 251, ".zst", 5);
	assert_int_equal(name_encode(s, false, &n), -ENAMETOOLONG);
	assert_true(name_decode(s, true, &n));
	assert_int_equal(strlen(n.s), 251);
	memset(s, 'x', 256);
	s[256] = '\0';
	assert_int_equal(name_encode(s, false, &n), -ENAMETOOLONG);
	assert_false(name_decode(s, false, &n));
	assert_false(name_decode(s, true, &n));
	assert_int_equal(strlen(n.s), 255);
}

static void test_suffixes(void **state)
{
	assert_true(name_has_suffix("a.zst"));
	assert_true(name_has_suffix("..zst"));
	assert_false(name_has_suffix(".zst"));
	assert_false(name_has_suffix("a.zst~"));
	assert_false(name_has_suffix("zst"));
	assert_false(name_has_suffix(""));
	assert_true(name_has_tilde_suffix("a.zst"));
	assert_true(name_has_tilde_suffix("a.zst~~~"));
	assert_true(name_has_tilde_suffix(".zst"));
	assert_false(name_has_tilde_suffix("a~"));
	assert_false(name_has_tilde_suffix("a.zst~b"));
	assert_false(name_has_tilde_suffix("~~~~~"));
	assert_false(name_has_tilde_suffix(""));
}

#define MARK_LEN 33 /* ".cellar-conflict-20261123T101500Z" */
#define ROOM     (255 - 4 - MARK_LEN)

static void test_conflict(void **state)
{
	struct name n, e;
	char s[300];

	name_conflict("b.log", 1795428900, &n);
	assert_string_equal(n.s, "b.log.cellar-conflict-20261123T101500Z");
	name_conflict("b", -5, &n);
	assert_string_equal(n.s, "b.cellar-conflict-19700101T000000Z");
	name_conflict("b", INT64_MAX, &n);
	assert_string_equal(n.s, "b.cellar-conflict-99991231T235959Z");

	memset(s, 'x', sizeof s);
	s[ROOM] = '\0';
	name_conflict(s, 0, &n);
	assert_int_equal(strlen(n.s), 251);
	assert_int_equal(name_encode(n.s, true, &e), 0);
	s[ROOM] = 'x';
	s[251] = '\0';
	name_conflict(s, 0, &n);
	assert_int_equal(strlen(n.s), 251);
	assert_int_equal(name_encode(n.s, true, &e), 0);
}

/* Puts bytes so that they begin `before` bytes ahead of the cut; tells where the name is
 * cut. */
static size_t cut_at(const char *bytes, size_t before)
{
	char s[252];
	struct name n;
	const char *mark;

	memset(s, 'x', sizeof s - 1);
	s[sizeof s - 1] = '\0';
	memcpy(s + ROOM - before, bytes, strlen(bytes));
	name_conflict(s, 0, &n);
	mark = strstr(n.s, ".cellar-conflict-");
	assert_non_null(mark);
	assert_memory_equal(n.s, s, (size_t)(mark - n.s));
	return (size_t)(mark - n.s);
}

static void test_conflict_utf8(void **state)
{
	assert_int_equal(cut_at("\xc3\xa4", 2), ROOM);
	assert_int_equal(cut_at("\xc3\xa4", 1), ROOM - 1);
	assert_int_equal(cut_at("\xc3\xa4", 0), ROOM);
	assert_int_equal(cut_at("\xe2\x82\xac", 3), ROOM);
	assert_int_equal(cut_at("\xe2\x82\xac", 2), ROOM - 2);
	assert_int_equal(cut_at("\xe2\x82\xac", 1), ROOM - 1);
	assert_int_equal(cut_at("\xf0\x9f\x98\x80", 4), ROOM);
	assert_int_equal(cut_at("\xf0\x9f\x98\x80", 3), ROOM - 3);
	assert_int_equal(cut_at("\xf0\x9f\x98\x80", 1), ROOM - 1);
	/* no UTF-8: cut where it has to be */
	assert_int_equal(cut_at("\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4", 4), ROOM);
	assert_int_equal(cut_at("x\xa4", 1), ROOM);
}

static void expect_path(const char *stored, const char *want)
{
	char *got = name_decode_path(stored);

	assert_string_equal(got, want);
	free(got);
}

static void test_paths(void **state)
{
	expect_path("", "");
	expect_path("a.zst", "a");
	expect_path("d.zst/a.zst", "d.zst/a");
	expect_path("d.zst~/e/a.zst~.zst", "d.zst/e/a.zst~");
	expect_path("d/plain", "d/plain");
	expect_path("/a.zst", "/a");
	expect_path("../..zst", "../..zst");
	expect_path("d/", "d/");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_encode),        cmocka_unit_test(test_decode),
	    cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_lengths),
	    cmocka_unit_test(test_suffixes),      cmocka_unit_test(test_conflict),
	    cmocka_unit_test(test_conflict_utf8), cmocka_unit_test(test_paths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
