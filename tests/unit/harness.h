/*
 * What unit tests share: a directory of their own, files in and out, repeatable data, a
 * child process whose end and stderr are looked at. Includes cmocka.
 *
 *   static void test_x(void **state)
 *   {
 *           struct harness *h = *state;      (h->path, h->dirfd)
 *           ...
 *   }
 *   cmocka_unit_test_setup_teardown(test_x, harness_setup, harness_teardown)
 *
 * Everything fails the running test on an error of its own, so nothing is returned.
 */
#ifndef CELLAR_TESTS_UNIT_HARNESS_H
#define CELLAR_TESTS_UNIT_HARNESS_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of many cases that are alike (every bit of a file flipped) a build with a sanitizer, ten times
 * as slow, takes one in so many; of a few that take long, such as kills, one in HARNESS_FEW. */
#if defined(__SANITIZE_THREAD__)
#define HARNESS_STRIDE 19
#define HARNESS_FEW    4
#elif defined(__SANITIZE_ADDRESS__)
#define HARNESS_STRIDE 7
#define HARNESS_FEW    2
#else
#define HARNESS_STRIDE 1
#define HARNESS_FEW    1
#endif

struct harness {
	char path[512]; /* absolute */
	int dirfd;
};

/* ---- a directory of its own ---- */

static inline int harness_setup(void **state)
{
	struct harness *h = calloc(1, sizeof(*h));
	const char *base = getenv("TMPDIR");
	int n;

	if (!h)
		return -1;
	n = snprintf(h->path, sizeof(h->path), "%s/cellar-unit-XXXXXX",
	             base && *base == '/' ? base : "/tmp");
	if (n < 0 || (size_t)n >= sizeof(h->path) || !mkdtemp(h->path)) {
		free(h);
		return -1;
	}
	h->dirfd = open(h->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	*state = h;
	return h->dirfd < 0 ? -1 : 0;
}

/* Removes what is in the directory; closes dirfd. */
static inline void harness_empty_dir(int dirfd)
{
	const struct dirent *e;
	DIR *d = fdopendir(dirfd);

	if (!d) {
		(void)close(dirfd);
		return;
	}
	while ((e = readdir(d)) != NULL) {
		int fd;

		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (unlinkat(dirfd, e->d_name, 0) == 0 ||
		    (errno != EISDIR && errno != EPERM))
			continue;
		(void)fchmodat(dirfd, e->d_name, 0700, 0);
		fd = openat(dirfd, e->d_name,
		            O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd >= 0)
			harness_empty_dir(fd);
		(void)unlinkat(dirfd, e->d_name, AT_REMOVEDIR);
	}
	(void)closedir(d);
}

static inline int harness_teardown(void **state)
{
	struct harness *h = *state;
	int err;

	(void)close(h->dirfd);
	h->dirfd = open(h->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (h->dirfd >= 0)
		harness_empty_dir(h->dirfd);
	err = rmdir(h->path);
	free(h);
	return err;
}

/* ---- files ---- */

/* Makes or replaces a file. */
static inline void harness_write(int dirfd, const char *name, const void *data, size_t len)
{
	int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	const char *p = data;

	if (fd < 0)
		fail_msg("%s: %s", name, strerror(errno));
	while (len > 0) {
		ssize_t n = write(fd, p, len);

		if (n <= 0)
			fail_msg("%s: %s", name, strerror(errno));
		p += n;
		len -= (size_t)n;
	}
	assert_int_equal(close(fd), 0);
}

/* The whole of an open file: malloc'ed, with a NUL after the last byte. */
static inline char *harness_read_fd(int fd, size_t *ret_len)
{
	size_t len = 0, size = 4096;
	char *buf = malloc(size);
	ssize_t n;

	assert_non_null(buf);
	while ((n = pread(fd, buf + len, size - len - 1, (off_t)len)) > 0) {
		len += (size_t)n;
		if (size - len - 1 == 0) {
			char *larger = realloc(buf, size *= 2);

			assert_non_null(larger);
			buf = larger;
		}
	}
	assert_int_equal(n, 0);
	buf[len] = '\0';
	if (ret_len)
		*ret_len = len;
	return buf;
}

static inline char *harness_read(int dirfd, const char *name, size_t *ret_len)
{
	int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
	char *buf;

	if (fd < 0)
		fail_msg("%s: %s", name, strerror(errno));
	buf = harness_read_fd(fd, ret_len);
	(void)close(fd);
	return buf;
}

/* ---- data that is the same in each run ---- */

/* splitmix64 */
static inline uint64_t harness_next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

/* Does not compress. */
static inline void harness_fill(void *buf, size_t len, uint64_t seed)
{
	unsigned char *p = buf;

	while (len > 0) {
		uint64_t v = harness_next(&seed);
		size_t n = len < sizeof(v) ? len : sizeof(v);

		memcpy(p, &v, n);
		p += n;
		len -= n;
	}
}

/* Lines that compress about as a log does. */
static inline void harness_fill_text(void *buf, size_t len, uint64_t seed)
{
	static const char *const words[] = {"INFO",   "WARN",  "session", "opened",
	                                    "closed", "block", "receive", "from",
	                                    "size",   "done"};
	char *p = buf;

	while (len > 0) {
		uint64_t v = harness_next(&seed);
		char word[48];
		size_t n = (size_t)snprintf(word, sizeof(word), "%s%s", words[v % 10],
		                            v >> 60 ? " " : "\n");

		if ((v >> 8) % 6 == 0)
			n = (size_t)snprintf(word, sizeof(word), "%u ",
			                     (unsigned)(v >> 40));
		if (n > len)
			n = len;
		memcpy(p, word, n);
		p += n;
		len -= n;
	}
}

/* ---- a child ---- */

/* Runs fn(arg) in a child without core dump; returns its wait status (the child exits with
 * 0 when fn returns) and what it wrote to stderr (malloc'ed; free it). */
static inline int harness_child(void (*fn)(void *arg), void *arg, char **ret_stderr)
{
	FILE *err = tmpfile();
	int status = -1;
	pid_t pid;

	assert_non_null(err);
	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		static const struct rlimit none = {0, 0};

		(void)setrlimit(RLIMIT_CORE, &none);
		(void)signal(SIGABRT, SIG_DFL); /* cmocka turns it into a failure */
		(void)dup2(fileno(err), STDERR_FILENO);
		fn(arg);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	*ret_stderr = harness_read_fd(fileno(err), NULL);
	(void)fclose(err);
	return status;
}

/* fn(arg) must end by abort() and say all of `words` (up to the NULL) on stderr. */
static inline void harness_expect_abort(void (*fn)(void *arg), void *arg,
                                        const char *const *words)
{
	char *text;
	int status = harness_child(fn, arg, &text);

	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
		fail_msg("no abort: wait status 0x%x, stderr: %s", status, text);
	for (; *words; words++) {
		if (!strstr(text, *words))
			fail_msg("\"%s\" not in: %s", *words, text);
	}
	free(text);
}

/* Cuts a text short that assert_string_equal would leave behind. */
#define harness_assert_text(actual, expected)                                              \
	do {                                                                               \
		char *text_ = (actual);                                                    \
                                                                                           \
		assert_non_null(text_);                                                    \
		assert_string_equal(text_, expected);                                      \
		free(text_);                                                               \
	} while (0)

#endif
