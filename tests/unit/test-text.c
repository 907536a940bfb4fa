/* base/text.c, base/uuid.c, base/clock.c, base/error.c and base/counters.c. */
#include "harness.h"

#include "base/clock.h"
#include "base/counters.h"
#include "base/text.h"

#define NOT_SET 0xdeadbeefULL

static void expect_size(const char *s, uint64_t v)
{
	uint64_t got = NOT_SET;

	if (!text_parse_size(s, &got))
		fail_msg("%s: refused", s);
	if (got != v)
		fail_msg("%s: %llu instead of %llu", s, (unsigned long long)got,
		         (unsigned long long)v);
}

static void test_sizes(void **state)
{
	static const char *const wrong[] = {
	    "",    " ",    "1 K",   "1K ",  " 1",     "-1",        "+1",   "K",    ".5G",
	    "1.",  "1.G",  "1..5G", "1,5G", "0x10",   "1e3",       "1KK",  "1iB",  "1i",
	    "1Ki", "1KBB", "1KiBs", "1P",   "1[",     "1kb1",      "1.5",  "1.5B", "0.5",
	    "1.0", "auto", "1M5",   "1\n",  "1G\x01", "\377\061G", "1\xcb"};

	expect_size("0", 0);
	expect_size("1", 1);
	expect_size("007", 7);
	expect_size("12B", 12);
	expect_size("12b", 12);
	expect_size("1K", 1024);
	expect_size("1k", 1024);
	expect_size("1KB", 1024);
	expect_size("1KiB", 1024);
	expect_size("1kib", 1024);
	expect_size("1KIB", 1024);
	expect_size("64M", 64 << 20);
	expect_size("3G", 3ULL << 30);
	expect_size("1T", 1ULL << 40);
	expect_size("1tb", 1ULL << 40);
	expect_size("1.5K", 1536);
	expect_size("1.5G", 3ULL << 29);
	expect_size("0.25T", 1ULL << 38);
	expect_size("0.0001K", 0); /* rounded down */
	expect_size("1.9999999999999999999999999999K", 2047);
	expect_size("18446744073709551615", UINT64_MAX);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		uint64_t v = NOT_SET;

		if (text_parse_size(wrong[i], &v))
			fail_msg("\"%s\" accepted", wrong[i]);
		assert_int_equal(v, NOT_SET);
	}
}

static void test_sizes_overflow(void **state)
{
	static const char *const wrong[] = {"18446744073709551616", "16777216T",
	                                    "17179869184G",         "99999999999999999999",
	                                    "18014398509481984K",   "18446744073709551615K",
	                                    "16777216.0T"};
	uint64_t v = NOT_SET;

	expect_size("16777215T", 16777215ULL << 40);
	expect_size("18014398509481983.9K", 18446744073709551513ULL);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		if (text_parse_size(wrong[i], &v))
			fail_msg("%s accepted", wrong[i]);
	}
}

static void test_durations(void **state)
{
	static const struct {
		const char *s;
		uint64_t ms;
	} good[] = {{"0", 0},
	            {"5", 5000},
	            {"5s", 5000},
	            {"0.5s", 500},
	            {"1.5", 1500},
	            {"250ms", 250},
	            {"0ms", 0},
	            {"1m", 60000},
	            {"2.5h", 9000000},
	            {"1d", 86400000},
	            {"0.001", 1},
	            {"0.0001s", 0},
	            {"18446744073709551615ms", UINT64_MAX}};
	static const char *const wrong[] = {"",
	                                    "s",
	                                    "-1s",
	                                    "1 s",
	                                    "1S",
	                                    "1ms5",
	                                    "1.5ms",
	                                    "1w",
	                                    "1min",
	                                    "1hours",
	                                    "1D",
	                                    "1.s",
	                                    "ms",
	                                    "1sm",
	                                    "1ss",
	                                    "18446744073709551616ms",
	                                    "18446744073709552s",
	                                    "auto"};

	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		uint64_t v = NOT_SET;

		if (!text_parse_duration(good[i].s, &v) || v != good[i].ms)
			fail_msg("%s: %llu", good[i].s, (unsigned long long)v);
	}
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		uint64_t v = NOT_SET;

		if (text_parse_duration(wrong[i], &v))
			fail_msg("\"%s\" accepted", wrong[i]);
		assert_int_equal(v, NOT_SET);
	}
}

static void test_short_forms(void **state)
{
	assert_string_equal(text_size(0).s, "0 B");
	assert_string_equal(text_size(12).s, "12 B");
	assert_string_equal(text_size(1023).s, "1023 B");
	assert_string_equal(text_size(1024).s, "1 KiB");
	assert_string_equal(text_size(1025).s, "1 KiB");
	assert_string_equal(text_size(1536).s, "1.5 KiB");
	assert_string_equal(text_size(1000 << 10).s, "1000 KiB");
	assert_string_equal(text_size((1 << 20) - 52).s, "1023.9 KiB");
	assert_string_equal(text_size((1 << 20) - 51).s, "1 MiB");
	assert_string_equal(text_size((1 << 20) - 1).s, "1 MiB");
	assert_string_equal(text_size(1503238553ULL).s, "1.4 GiB");
	assert_string_equal(text_size(1ULL << 40).s, "1 TiB");
	assert_string_equal(text_size(UINT64_MAX).s, "16 EiB");

	assert_string_equal(text_duration(0).s, "0 ms");
	assert_string_equal(text_duration(350).s, "350 ms");
	assert_string_equal(text_duration(999).s, "999 ms");
	assert_string_equal(text_duration(1000).s, "1 s");
	assert_string_equal(text_duration(5000).s, "5 s");
	assert_string_equal(text_duration(59949).s, "59.9 s");
	assert_string_equal(text_duration(59950).s, "1 m");
	assert_string_equal(text_duration(9000000).s, "2.5 h");
	assert_string_equal(text_duration(86400000).s, "1 d");
	assert_string_equal(text_duration(UINT64_MAX).s, "213503982334.6 d");
}

static void test_time(void **state)
{
	static const struct {
		struct timespec ts;
		const char *s;
	} cases[] = {
	    {{0, 0}, "1970-01-01T00:00:00.000000Z"},
	    {{-1, 999999999}, "1969-12-31T23:59:59.999999Z"},
	    {{1792137600, 123456789}, "2026-10-16T08:00:00.123456Z"},
	    {{951782400, 1000}, "2000-02-29T00:00:00.000001Z"},
	    {{253402300800, 0}, "10000-01-01T00:00:00.000000Z"},
	};

	/* The local time zone must not matter. */
	assert_int_equal(setenv("TZ", "Pacific/Auckland", 1), 0);
	tzset();
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_string_equal(text_time(&cases[i].ts).s, cases[i].s);
	assert_string_equal(text_time(&(struct timespec){INT64_MAX, 0}).s,
	                    "@9223372036854775807.000000");
	assert_string_equal(text_time(&(struct timespec){INT64_MIN, 999999999}).s,
	                    "@-9223372036854775808.999999");
}

static void expect_escaped(const char *in, const char *out)
{
	char *s = text_escape(in);

	assert_string_equal(s, out);
	free(s);
}

static void test_escape(void **state)
{
	expect_escaped("", "");
	expect_escaped("plain name.log", "plain name.log");
	expect_escaped("a\nb\tc\\d", "a\\nb\\tc\\\\d");
	expect_escaped("\r\x1b[31m\x7f\x01", "\\x0d\\x1b[31m\\x7f\\x01");
	expect_escaped("gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f");
	expect_escaped("\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80");
	/* The bounds of each length. */
	expect_escaped("\xc2\xa0", "\xc2\xa0");
	expect_escaped("\xdf\xbf", "\xdf\xbf");
	expect_escaped("\xe0\xa0\x80", "\xe0\xa0\x80");
	expect_escaped("\xed\x9f\xbf", "\xed\x9f\xbf");
	expect_escaped("\xee\x80\x80", "\xee\x80\x80");
	expect_escaped("\xef\xbf\xbf", "\xef\xbf\xbf");
	expect_escaped("\xf0\x90\x80\x80", "\xf0\x90\x80\x80");
	expect_escaped("\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf");
	/* C1 control characters. */
	expect_escaped("\xc2\x80\xc2\x9b\xc2\x9f", "\\xc2\\x80\\xc2\\x9b\\xc2\\x9f");
	/* Overlong. */
	expect_escaped("\xc0\x80\xc1\xbf", "\\xc0\\x80\\xc1\\xbf");
	expect_escaped("\xe0\x9f\xbf", "\\xe0\\x9f\\xbf");
	expect_escaped("\xf0\x8f\xbf\xbf", "\\xf0\\x8f\\xbf\\xbf");
	/* Surrogates, past the last code point, never lead bytes. */
	expect_escaped("\xed\xa0\x80", "\\xed\\xa0\\x80");
	expect_escaped("\xed\xbf\xbf", "\\xed\\xbf\\xbf");
	expect_escaped("\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80");
	expect_escaped("\xf5\x80\x80\x80\xff", "\\xf5\\x80\\x80\\x80\\xff");
	/* Alone, cut short, interrupted. */
	expect_escaped("\x80", "\\x80");
	expect_escaped("\xc3", "\\xc3");
	expect_escaped("\xe2\x82", "\\xe2\\x82");
	expect_escaped("\xf0\x9f\x98", "\\xf0\\x9f\\x98");
	expect_escaped("\xc3(\xe2\x28\xa1", "\\xc3(\\xe2(\\xa1");
	expect_escaped("\xe2\x82\xc3\xbc", "\\xe2\\x82\xc3\xbc");
}

static void test_escape_counts_bytes(void **state)
{
	/* On the heap and without NUL, so that a byte read too far is seen. */
	char *p = malloc(3);

	assert_non_null(p);
	memcpy(p, "a\xe2\x82", 3);
	harness_assert_text(text_escape_n(p, 3), "a\\xe2\\x82");
	harness_assert_text(text_escape_n(p, 0), "");
	memcpy(p, "a\0b", 3);
	harness_assert_text(text_escape_n(p, 3), "a\\x00b");
	free(p);
}

static void test_uuid(void **state)
{
	static const char *const wrong[] = {"",
	                                    "123e4567-e89b-12d3-a456-42661417400",
	                                    "123e4567-e89b-12d3-a456-4266141740000",
	                                    "123e4567-e89b-12d3-a456-426614174000\n",
	                                    "123e4567e89b-12d3-a456-4266141740000",
	                                    "123e4567-e89b-12d3-a456_426614174000",
	                                    "123e4567-e89b-12d3-a456-42661417400g",
	                                    "{23e4567-e89b-12d3-a456-426614174000",
	                                    "123e4567-e89b-12d3-a456- 2661417400 "};
	struct uuid a = uuid_random(), b = uuid_random(), c;

	assert_false(uuid_equal(&a, &b));
	assert_false(uuid_is_null(&a));
	for (int i = 0; i < 100; i++) {
		struct uuid_text t;

		a = uuid_random();
		t = uuid_format(&a);
		assert_int_equal(strlen(t.s), 36);
		assert_int_equal(t.s[14], '4');
		assert_non_null(strchr("89ab", t.s[19]));
		assert_true(uuid_parse(t.s, &c));
		assert_true(uuid_equal(&a, &c));
	}
	assert_true(uuid_parse("123E4567-e89b-12d3-A456-426614174000", &c));
	assert_string_equal(uuid_format(&c).s, "123e4567-e89b-12d3-a456-426614174000");
	assert_true(uuid_parse("00000000-0000-0000-0000-000000000000", &b));
	assert_true(uuid_is_null(&b));
	a = c;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		if (uuid_parse(wrong[i], &c))
			fail_msg("\"%s\" accepted", wrong[i]);
		assert_true(uuid_equal(&a, &c)); /* not touched */
	}
}

static void print_boot_id(void *arg)
{
	struct uuid u;

	if (arg)
		(void)setenv("CELLAR_BOOT_ID", arg, 1);
	else
		(void)unsetenv("CELLAR_BOOT_ID");
	u = clock_boot_id();
	(void)setenv("CELLAR_BOOT_ID", "changed too late", 1);
	if (!uuid_equal(&u, &(struct uuid[]){clock_boot_id()}[0]))
		_exit(1);
	(void)fprintf(stderr, "%s\n", uuid_format(&u).s);
}

static char *boot_id_with(const char *env)
{
	char *text;

	assert_int_equal(harness_child(print_boot_id, (void *)(uintptr_t)env, &text), 0);
	return text;
}

static void test_boot_id(void **state)
{
	char *kernel = harness_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", NULL);
	char *a = boot_id_with("first boot"), *b = boot_id_with("second boot");

	harness_assert_text(boot_id_with(NULL), kernel);
	harness_assert_text(boot_id_with(""), kernel);
	harness_assert_text(boot_id_with("123e4567-e89b-12d3-a456-426614174000"),
	                    "123e4567-e89b-12d3-a456-426614174000\n");
	harness_assert_text(boot_id_with("first boot"), a);
	assert_string_not_equal(a, b);
	assert_string_not_equal(a, kernel);
	free(a);
	free(b);
	free(kernel);
}

static void test_clock(void **state)
{
	static const struct timespec early = {1, 999999999}, late = {2, 0}, later = {2, 1};
	struct timespec now = clock_now(), fine;
	uint64_t before = clock_mono_ms();

	assert_true(timespec_cmp(&early, &late) < 0);
	assert_true(timespec_cmp(&later, &late) > 0);
	assert_int_equal(timespec_cmp(&late, &late), 0);
	assert_int_equal(clock_gettime(CLOCK_REALTIME, &fine), 0);
	assert_true(timespec_cmp(&now, &fine) <= 0); /* coarse is never ahead */
	assert_true(fine.tv_sec - now.tv_sec <= 1);
	assert_true(clock_mono_ms() >= before);
}

static void test_causes(void **state)
{
	char *cause = NULL;

	errno = ENOTTY;
	assert_int_equal(set_cause(NULL, -EINVAL, "%s", "nobody asked"), -EINVAL);
	assert_int_equal(set_cause(&cause, -EINVAL, "inner %d", 1), -EINVAL);
	assert_int_equal(set_cause(&cause, -EIO, "outer"), -EIO);
	assert_int_equal(set_cause_errno(&cause, -EIO, "outer"), -EIO);
	assert_string_equal(cause, "inner 1");
	free(cause);
	cause = NULL;
	assert_int_equal(set_cause_errno(&cause, -ENOSPC, "writing %s", "x"), -ENOSPC);
	assert_string_equal(cause, "writing x: No space left on device");
	assert_int_equal(errno, ENOTTY);
	free(cause);
}

static int use_cleanups(char **ret, int *ret_fd)
{
	cleanup_free char *dropped = xstrdup("dropped");
	cleanup_free char *kept = xstrdup("kept");
	cleanup_fd int none = -1;
	cleanup_fd int closed = open("/dev/null", O_RDONLY | O_CLOEXEC);
	cleanup_fd int open_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int fd = closed;

	assert_string_equal(dropped, "dropped");
	*ret = steal_pointer(&kept);
	*ret_fd = steal_fd(&open_fd);
	assert_null(kept);
	assert_int_equal(none, open_fd);
	errno = ENOTTY;
	return fd;
}

static void test_cleanups(void **state)
{
	char *kept = NULL;
	int open_fd = -1;
	int closed = use_cleanups(&kept, &open_fd);

	assert_int_equal(errno, ENOTTY);
	assert_string_equal(kept, "kept");
	free(kept);
	assert_int_equal(fcntl(closed, F_GETFD), -1);
	assert_int_equal(close(open_fd), 0);
}

static void break_invariant(void *arg)
{
	INVARIANT(arg != NULL);
}

static void test_invariant(void **state)
{
	char *text;

	harness_expect_abort(break_invariant, NULL,
	                     (const char *[]){"test-text.c:", "arg != NULL", NULL});
	assert_int_equal(harness_child(break_invariant, state, &text), 0);
	assert_string_equal(text, "");
	free(text);
}

static void test_counters(void **state)
{
	uint64_t before = counter_get(COUNTER_FLUSHES);

	count_one(COUNTER_FLUSHES);
	count_n(COUNTER_FLUSHES, 41);
	assert_int_equal(counter_get(COUNTER_FLUSHES), before + 42);
	for (size_t i = 0; i < COUNTER_COUNT; i++) {
		const struct counter_info *c = &counter_table[i];

		/* JSON keys: snake_case, each once; a sentence each. */
		assert_int_equal(strspn(c->name, "abcdefghijklmnopqrstuvwxyz_"),
		                 strlen(c->name));
		assert_true(strlen(c->unit) > 0);
		assert_int_equal(c->text[strlen(c->text) - 1], '.');
		for (size_t j = 0; j < i; j++)
			assert_string_not_equal(c->name, counter_table[j].name);
	}
	assert_string_equal(counter_table[COUNTER_OPEN_HITS].name, "open_hits");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_sizes),
	    cmocka_unit_test(test_sizes_overflow),
	    cmocka_unit_test(test_durations),
	    cmocka_unit_test(test_short_forms),
	    cmocka_unit_test(test_time),
	    cmocka_unit_test(test_escape),
	    cmocka_unit_test(test_escape_counts_bytes),
	    cmocka_unit_test(test_uuid),
	    cmocka_unit_test(test_boot_id),
	    cmocka_unit_test(test_clock),
	    cmocka_unit_test(test_causes),
	    cmocka_unit_test(test_cleanups),
	    cmocka_unit_test(test_invariant),
	    cmocka_unit_test(test_counters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
