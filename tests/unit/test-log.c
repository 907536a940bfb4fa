/* base/log.c. stderr is a datagram socket here: one datagram is one write(2). */
#include "harness.h"

#include <pthread.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/log.h"

static int real_stderr = -1;
static int received;

static int capture(void **state)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	real_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);
	if (real_stderr < 0 || dup2(pair[0], STDERR_FILENO) < 0)
		return -1;
	(void)close(pair[0]);
	received = pair[1];
	(void)unsetenv("JOURNAL_STREAM");
	log_init("cellard");
	log_set_level(LOG_LEVEL_DEBUG);
	return 0;
}

static int release(void **state)
{
	(void)dup2(real_stderr, STDERR_FILENO);
	(void)close(real_stderr);
	(void)close(received);
	(void)unsetenv("JOURNAL_STREAM");
	log_init("test-log");
	log_set_level(LOG_LEVEL_INFO);
	return 0;
}

/* The next write; "" when there was none. Valid until the next call. */
static const char *next_write(void)
{
	static char buf[65536];
	ssize_t n = recv(received, buf, sizeof(buf) - 1, MSG_DONTWAIT);

	buf[n < 0 ? 0 : n] = '\0';
	return buf;
}

static void test_styles(void **state)
{
	log_err("cannot read \"%s\"", "x");
	assert_string_equal(next_write(), "cellard: error: cannot read \"x\"\n");
	log_warn("w %d", 1);
	assert_string_equal(next_write(), "cellard: warning: w 1\n");
	log_info("up");
	assert_string_equal(next_write(), "cellard: up\n");
	log_debug("flush ino=1");
	assert_string_equal(next_write(), "cellard: debug: flush ino=1\n");
	log_info("%s", "");
	assert_string_equal(next_write(), "cellard: \n");
}

static void set_journal(const char *format)
{
	char text[128];
	struct stat st;

	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	(void)snprintf(text, sizeof(text), "%llu:%llu%s", (unsigned long long)st.st_dev,
	               (unsigned long long)st.st_ino, format);
	assert_int_equal(setenv("JOURNAL_STREAM", text, 1), 0);
	log_init("cellard");
}

static void test_journal(void **state)
{
	set_journal("");
	log_err("a");
	assert_string_equal(next_write(), "<3>a\n");
	log_warn("b");
	assert_string_equal(next_write(), "<4>b\n");
	log_info("c");
	assert_string_equal(next_write(), "<6>c\n");
	log_debug("d");
	assert_string_equal(next_write(), "<7>d\n");
}

static void test_not_our_journal(void **state)
{
	static const char *const others[] = {"1:1", "", "x", "1", "1:", ":"};

	set_journal("5"); /* another inode */
	log_info("a");
	assert_string_equal(next_write(), "cellard: a\n");
	set_journal(" ");
	log_info("a");
	assert_string_equal(next_write(), "cellard: a\n");
	for (size_t i = 0; i < ARRAY_LEN(others); i++) {
		assert_int_equal(setenv("JOURNAL_STREAM", others[i], 1), 0);
		log_init("cellard");
		log_info("a");
		assert_string_equal(next_write(), "cellard: a\n");
	}
}

static void test_levels(void **state)
{
	for (int max = LOG_LEVEL_ERR; max <= LOG_LEVEL_DEBUG; max++) {
		log_set_level((enum log_level)max);
		assert_int_equal(log_get_level(), max);
		for (int level = LOG_LEVEL_ERR; level <= LOG_LEVEL_DEBUG; level++) {
			log_at((enum log_level)level, "x");
			assert_int_equal(*next_write() != '\0', level <= max);
		}
	}
}

static void test_one_line(void **state)
{
	log_info("first\nsecond\r\nthird\n\n");
	assert_string_equal(next_write(), "cellard: first second  third\n");
	log_info("a\tb\x1b[31m\x7f\x01");
	assert_string_equal(next_write(), "cellard: a\tb?[31m??\n");
	log_info("\n");
	assert_string_equal(next_write(), "cellard: \n");
	assert_string_equal(next_write(), "");
}

/* Around the length of the buffer on the stack, and far past it. */
static void test_long_messages(void **state)
{
	static const char prefix[] = "cellard: error: ";
	const size_t prefix_len = sizeof(prefix) - 1;
	size_t lengths[40] = {9000, 20000, 1};
	char *text = malloc(20001);

	assert_non_null(text);
	for (size_t i = 3; i < ARRAY_LEN(lengths); i++)
		lengths[i] = 1024 - prefix_len - 20 + i;
	for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
		size_t len = lengths[i];
		struct timespec when;
		const char *got;

		memset(text, 'x', len);
		text[len] = '\0';
		text[len - 1] = 'y';
		log_err("%s", text);
		got = next_write();
		assert_int_equal(strlen(got), prefix_len + len + 1);
		assert_memory_equal(got, prefix, prefix_len);
		assert_memory_equal(got + prefix_len, text, len);
		assert_int_equal(got[prefix_len + len], '\n');
		harness_assert_text(log_last_error(&when), text);
	}
	free(text);
}

static void test_errno(void **state)
{
	char text[3000];

	errno = ENOSPC;
	log_warn("writing: %m");
	assert_int_equal(errno, ENOSPC);
	assert_string_equal(next_write(),
	                    "cellard: warning: writing: No space left on device\n");

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	errno = ENOSPC;
	log_warn("%s %m", text);
	assert_int_equal(errno, ENOSPC);
	assert_non_null(strstr(next_write(), "x No space left on device\n"));

	/* Nobody listens: the message is lost, the program is not. */
	(void)close(received);
	received = -1;
	(void)signal(SIGPIPE, SIG_IGN);
	errno = ENOTTY;
	log_warn("gone");
	assert_int_equal(errno, ENOTTY);
}

static void test_last_error(void **state)
{
	struct timespec before, when = {0, 0}, after;

	(void)clock_gettime(CLOCK_REALTIME, &before);
	log_err("first");
	log_err("second\n");
	(void)clock_gettime(CLOCK_REALTIME, &after);
	log_warn("only a warning");
	harness_assert_text(log_last_error(&when), "second");
	assert_true(when.tv_sec >= before.tv_sec && when.tv_sec <= after.tv_sec);
	set_journal("");
	log_err("third");
	harness_assert_text(log_last_error(&when), "third");
}

static void say_if_none(void *arg)
{
	struct timespec when = {-1, -1};

	if (log_last_error(&when) != NULL || when.tv_sec != -1)
		_exit(1);
}

static void test_no_error_yet(void **state)
{
	char *text;

	assert_int_equal(harness_child(say_if_none, NULL, &text), 0);
	free(text);
}

#define THREADS 4
#define EACH    200

static void *log_much(void *arg)
{
	char name = *(char *)arg, text[600];

	memset(text, name, sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	for (int i = 0; i < EACH; i++) {
		struct timespec when;

		log_err("%s", text);
		free(log_last_error(&when));
	}
	return NULL;
}

static void test_threads(void **state)
{
	static char names[THREADS] = {'a', 'b', 'c', 'd'};
	int counts[THREADS] = {0};
	pthread_t t[THREADS];

	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, log_much, &names[i]), 0);
	for (int n = 0; n < THREADS * EACH; n++) {
		char buf[1024];
		ssize_t len = recv(received, buf, sizeof(buf), 0);
		const char *body = buf + strlen("cellard: error: ");

		assert_int_equal(len, strlen("cellard: error: ") + 599 + 1);
		assert_in_range(body[0], 'a', 'd');
		for (int i = 1; i < 599; i++)
			assert_int_equal(body[i], body[0]);
		counts[body[0] - 'a']++;
	}
	for (int i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(t[i], NULL), 0);
		assert_int_equal(counts[i], EACH);
	}
	assert_string_equal(next_write(), "");
}

int main(void)
{
#define CAPTURED(t) cmocka_unit_test_setup_teardown(t, capture, release)
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_no_error_yet), /* first: nothing was logged before */
	    CAPTURED(test_styles),
	    CAPTURED(test_journal),
	    CAPTURED(test_not_our_journal),
	    CAPTURED(test_levels),
	    CAPTURED(test_one_line),
	    CAPTURED(test_long_messages),
	    CAPTURED(test_errno),
	    CAPTURED(test_last_error),
	    CAPTURED(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
