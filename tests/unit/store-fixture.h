/* A store in the test's directory, and what is in it. */
#ifndef CELLAR_TESTS_UNIT_STORE_FIXTURE_H
#define CELLAR_TESTS_UNIT_STORE_FIXTURE_H

#include "harness.h"

#include <grp.h>

#include "base/sysio.h"
#include "store/store.h"

#define MUST(cond)                                                                         \
	do {                                                                               \
		if (!(cond)) {                                                             \
			(void)fprintf(stderr, "line %d: %s: not so (errno %d)\n",          \
			              __LINE__, #cond, errno);                             \
			_exit(1);                                                          \
		}                                                                          \
	} while (0)

static inline char *store_path(struct harness *h)
{
	static char path[600];

	(void)snprintf(path, sizeof path, "%s/store", h->path);
	return path;
}

static inline struct store *open_store(struct harness *h)
{
	struct store *s = NULL;
	char *cause = NULL;
	errint_t err = store_open(store_path(h), STORE_CREATE, &s, NULL, &cause);

	if (err)
		fail_msg("store_open: %s", cause);
	assert_null(cause);
	return s;
}

static inline void put(struct harness *h, const char *path, const char *text)
{
	harness_write(h->dirfd, path, text, strlen(text));
}

static inline void expect_text(struct harness *h, const char *path, const char *text)
{
	harness_assert_text(harness_read(h->dirfd, path, NULL), text);
}

static inline struct stat stat_of(struct harness *h, const char *path)
{
	struct stat st;

	if (fstatat(h->dirfd, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
		fail_msg("%s: %s", path, strerror(errno));
	return st;
}

static inline bool is_there(struct harness *h, const char *path)
{
	return faccessat(h->dirfd, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static inline int count_entries(struct harness *h, const char *path)
{
	int fd = openat(h->dirfd, path, O_RDONLY | O_DIRECTORY);
	DIR *d = fdopendir(fd);
	int n = -2;

	assert_non_null(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

/* Child code as an ordinary user. */
static inline void become_nobody(void)
{
	if (geteuid() != 0)
		return;
	MUST(setgroups(0, NULL) == 0);
	MUST(setregid(65534, 65534) == 0);
	MUST(setreuid(65534, 65534) == 0);
}

static inline void expect_child(void (*fn)(void *), void *arg)
{
	char *text;
	int status = harness_child(fn, arg, &text);

	if (status)
		fail_msg("status 0x%x: %s", status, text);
	free(text);
}

static inline bool have_faults(void)
{
	bool have = fault_set("any:1000000000:EIO");

	(void)fault_set(NULL);
	return have;
}

#endif
