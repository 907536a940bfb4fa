/*
 * Logging to stderr: see log.h.
 *
 * Guarantees: one message is one line and, unless stderr takes less, one write(2), so
 * lines of several threads do not mix. A message whose memory cannot be had is cut, not
 * lost. errno is kept.
 *
 * Threads: the level is atomic; program and style are set once before threads start; the
 * last error is under last_mutex, which is no struct lock so that a message may be logged
 * under any lock (and about locks).
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/text.h"

#define LINE_LEN 1024 /* longer ones are malloc'ed */

static const char *program;
static bool journal;
static _Atomic enum log_level max_level = LOG_LEVEL_INFO;
static _Atomic bool times;

static pthread_mutex_t last_mutex = PTHREAD_MUTEX_INITIALIZER;
static char *last_text; /* under last_mutex */
static struct timespec last_when;

/* Whether stderr is the stream that systemd connected to the journal: a program whose
 * stderr was redirected since must not print priorities. */
static bool stderr_is_journal(void)
{
	const char *env = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;
	int end = 0;

	if (!env || sscanf(env, "%llu:%llu%n", &dev, &ino, &end) != 2 || env[end] != '\0')
		return false;
	return fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *name)
{
	int saved = errno;

	program = name;
	journal = stderr_is_journal();
	errno = saved;
}

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&max_level, level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
	return atomic_load_explicit(&max_level, memory_order_relaxed);
}

void log_show_times(bool show)
{
	atomic_store_explicit(&times, show, memory_order_relaxed);
}

static int format_prefix(enum log_level level, char *buf, size_t size)
{
	static const int priority[] = {3, 4, 6, 7};
	static const char *const word[] = {"error: ", "warning: ", "", "debug: "};
	char time[48] = "";
	struct timespec now;

	if (journal)
		return snprintf(buf, size, "<%d>", priority[level]);
	if (atomic_load_explicit(&times, memory_order_relaxed)) {
		(void)clock_gettime(CLOCK_REALTIME, &now);
		(void)snprintf(time, sizeof(time), "%s ", text_time(&now).s);
	}
	return snprintf(buf, size, "%s%.64s: %s", time,
	                program ? program : program_invocation_short_name, word[level]);
}

/* Names are escaped by the callers; this is for texts of libraries, which like to bring
 * line ends, and so that nothing whatever can forge a line. */
static size_t make_one_line(char *s, size_t len)
{
	while (len > 0 && (s[len - 1] == '\n' || s[len - 1] == '\r'))
		len--;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];

		if (c == '\n' || c == '\r')
			s[i] = ' ';
		else if ((c < 0x20 && c != '\t') || c == 0x7f)
			s[i] = '?';
	}
	return len;
}

static void remember_error(const char *text, size_t len)
{
	char *copy = strndup(text, len), *old;
	struct timespec now;

	if (!copy)
		return;
	(void)clock_gettime(CLOCK_REALTIME, &now);
	(void)pthread_mutex_lock(&last_mutex);
	old = last_text;
	last_text = copy;
	last_when = now;
	(void)pthread_mutex_unlock(&last_mutex);
	free(old);
}

static void write_line(const char *s, size_t len)
{
	while (len > 0) {
		ssize_t n = write(STDERR_FILENO, s, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return; /* nobody left to tell */
		s += n;
		len -= (size_t)n;
	}
}

void log_at(enum log_level level, const char *fmt, ...)
{
	int saved = errno;
	char line[LINE_LEN], *long_line = NULL, *p = line;
	size_t prefix_len, len, size = sizeof(line);
	va_list ap;
	int n;

	if (level > log_get_level())
		return;
	prefix_len = (size_t)format_prefix(level, line, sizeof(line));

	errno = saved; /* for %m */
	va_start(ap, fmt);
	n = vsnprintf(p + prefix_len, size - prefix_len - 1, fmt, ap);
	va_end(ap);
	if (n < 0) {
		errno = saved;
		return;
	}
	if (prefix_len + (size_t)n + 2 > size) {
		long_line = malloc(prefix_len + (size_t)n + 2);
		if (long_line) {
			size = prefix_len + (size_t)n + 2;
			memcpy(long_line, line, prefix_len);
			p = long_line;
			errno = saved;
			va_start(ap, fmt);
			(void)vsnprintf(p + prefix_len, size - prefix_len - 1, fmt, ap);
			va_end(ap);
		}
	}
	len = make_one_line(p + prefix_len, strlen(p + prefix_len));
	if (level == LOG_LEVEL_ERR)
		remember_error(p + prefix_len, len);
	p[prefix_len + len] = '\n';
	write_line(p, prefix_len + len + 1);
	free(long_line);
	errno = saved;
}

char *log_last_error(struct timespec *ret_when)
{
	char *copy = NULL;

	(void)pthread_mutex_lock(&last_mutex);
	if (last_text) {
		copy = strdup(last_text);
		*ret_when = last_when;
	}
	(void)pthread_mutex_unlock(&last_mutex);
	return copy;
}
