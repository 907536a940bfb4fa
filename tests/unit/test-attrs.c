/* store/attrs: a replacement looks like what it replaces. */
#include "harness.h"

#include <grp.h>
#include <sys/xattr.h>

#include "base/sysio.h"
#include "store/attrs.h"

#define ACL "system.posix_acl_access"

/* user::rw-, user:1234:r--, group::r--, mask::r--, other::--- */
static const unsigned char acl[] = {
    2,  0, 0, 0,                         /* version */
    1,  0, 6, 0, 0xff, 0xff, 0xff, 0xff, /* user:: */
    2,  0, 4, 0, 0xd2, 0x04, 0,    0,    /* user:1234 */
    4,  0, 4, 0, 0xff, 0xff, 0xff, 0xff, /* group:: */
    16, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, /* mask */
    32, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, /* other */
};

struct pair {
	int from, to;
};

static struct pair make_pair(struct harness *h)
{
	struct pair p;

	p.from = openat(h->dirfd, "from", O_RDWR | O_CREAT, 0644);
	p.to = openat(h->dirfd, "to", O_RDWR | O_CREAT, 0600);
	assert_true(p.from >= 0 && p.to >= 0);
	return p;
}

static void close_pair(struct pair *p)
{
	close(p->from);
	close(p->to);
}

static const struct timespec mtime = {.tv_sec = 1234567890, .tv_nsec = 987654321};

static void copy(struct pair *p)
{
	char *cause = NULL;

	assert_int_equal(attrs_copy(p->from, p->to, &mtime, &cause), 0);
	assert_null(cause);
}

static struct stat stat_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st;
}

static void set_xattr(int fd, const char *name, const char *value)
{
	if (fsetxattr(fd, name, value, strlen(value), 0) < 0) {
		if (errno == EOPNOTSUPP)
			skip();
		fail_msg("%s: %s", name, strerror(errno));
	}
}

static void expect_xattr(int fd, const char *name, const char *value)
{
	char buf[4096] = "";
	ssize_t n = fgetxattr(fd, name, buf, sizeof buf - 1);

	if (!value) {
		assert_int_equal(n, -1);
		assert_int_equal(errno, ENODATA);
		return;
	}
	if (n < 0)
		fail_msg("%s: %s", name, strerror(errno));
	assert_int_equal(n, strlen(value));
	assert_string_equal(buf, value);
}

static void test_mode_and_times(void **state)
{
	static const mode_t modes[] = {0644,  0600,  0,     0444, 04755,
	                               02755, 01777, 06711, 07777};
	struct pair p = make_pair(*state);
	const struct timespec ts[2] = {{.tv_sec = 111, .tv_nsec = 5}, {.tv_sec = 222}};

	for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
		assert_int_equal(fchmod(p.from, modes[i]), 0);
		assert_int_equal(futimens(p.from, ts), 0);
		copy(&p);
		assert_int_equal(stat_of(p.to).st_mode & 07777, modes[i]);
		assert_int_equal(stat_of(p.to).st_atim.tv_sec, 111);
		assert_int_equal(stat_of(p.to).st_atim.tv_nsec, 5);
		assert_int_equal(stat_of(p.to).st_mtim.tv_sec, mtime.tv_sec);
		assert_int_equal(stat_of(p.to).st_mtim.tv_nsec, mtime.tv_nsec);
		assert_int_equal(stat_of(p.from).st_mtim.tv_sec, 222);
	}
	close_pair(&p);
}

static void test_owner(void **state)
{
	struct pair p = make_pair(*state);

	if (geteuid() != 0) {
		close_pair(&p);
		skip();
	}
	assert_int_equal(fchown(p.from, 1000, 2000), 0);
	assert_int_equal(fchmod(p.from, 06755), 0);
	copy(&p);
	assert_int_equal(stat_of(p.to).st_uid, 1000);
	assert_int_equal(stat_of(p.to).st_gid, 2000);
	assert_int_equal(stat_of(p.to).st_mode & 07777, 06755);
	assert_int_equal(fchown(p.from, 0, 2000), 0);
	copy(&p);
	assert_int_equal(stat_of(p.to).st_uid, 0);
	assert_int_equal(stat_of(p.to).st_gid, 2000);
	close_pair(&p);
}

static void test_xattrs(void **state)
{
	struct pair p = make_pair(*state);
	char name[64];

	set_xattr(p.from, "user.new", "1");
	set_xattr(p.from, "user.changed", "longer than before");
	set_xattr(p.from, "user.empty", "");
	set_xattr(p.to, "user.changed", "before");
	set_xattr(p.to, "user.old", "x");
	for (int i = 0; i < 20; i++) {
		(void)snprintf(name, sizeof name, "user.many.%d", i);
		set_xattr(p.from, name, name);
	}
	copy(&p);
	expect_xattr(p.to, "user.new", "1");
	expect_xattr(p.to, "user.changed", "longer than before");
	expect_xattr(p.to, "user.empty", "");
	expect_xattr(p.to, "user.old", NULL);
	expect_xattr(p.to, "user.many.19", "user.many.19");
	assert_int_equal(flistxattr(p.to, NULL, 0), flistxattr(p.from, NULL, 0));
	/* all gone again */
	assert_int_equal(ftruncate(p.from, 0), 0);
	for (int i = 0; i < 20; i++) {
		(void)snprintf(name, sizeof name, "user.many.%d", i);
		assert_int_equal(fremovexattr(p.from, name), 0);
	}
	copy(&p);
	expect_xattr(p.to, "user.many.3", NULL);
	expect_xattr(p.to, "user.new", "1");
	close_pair(&p);
}

/* user.* can be set only while the mode lets the owner write: the mode comes after. */
static void test_read_only_file(void **state)
{
	struct harness *h = *state;
	struct pair p = make_pair(h);

	set_xattr(p.from, "user.a", "1");
	assert_int_equal(fchmod(p.from, 0444), 0);
	close(p.from);
	p.from = openat(h->dirfd, "from", O_RDONLY);
	close(p.to);
	p.to = openat(h->dirfd, "to", O_RDONLY);
	copy(&p);
	expect_xattr(p.to, "user.a", "1");
	assert_int_equal(stat_of(p.to).st_mode & 07777, 0444);
	close_pair(&p);
}

static void test_acl(void **state)
{
	struct pair p = make_pair(*state);
	unsigned char got[256];

	if (fsetxattr(p.from, ACL, acl, sizeof acl, 0) < 0) {
		close_pair(&p);
		skip();
	}
	copy(&p);
	assert_int_equal(fgetxattr(p.to, ACL, got, sizeof got), sizeof acl);
	assert_memory_equal(got, acl, sizeof acl);
	assert_int_equal(stat_of(p.to).st_mode & 07777, 0640);
	/* one that `to` got from a default ACL, say, goes */
	assert_int_equal(fremovexattr(p.from, ACL), 0);
	assert_int_equal(fchmod(p.from, 0604), 0);
	copy(&p);
	assert_int_equal(fgetxattr(p.to, ACL, got, sizeof got), -1);
	assert_int_equal(stat_of(p.to).st_mode & 07777, 0604);
	close_pair(&p);
}

static void test_roots_xattrs(void **state)
{
	/* cap_net_raw+ep, revision 2 */
	static const unsigned char cap[20] = {1, 0, 0, 2, 0, 0x20};
	struct pair p = make_pair(*state);
	unsigned char got[64];

	if (geteuid() != 0 ||
	    fsetxattr(p.from, "security.capability", cap, sizeof cap, 0) < 0) {
		close_pair(&p);
		skip();
	}
	assert_int_equal(fchown(p.from, 1000, 1000), 0);
	assert_int_equal(fsetxattr(p.from, "security.capability", cap, sizeof cap, 0), 0);
	set_xattr(p.from, "trusted.a", "1");
	set_xattr(p.to, "trusted.b", "1");
	copy(&p);
	assert_int_equal(fgetxattr(p.to, "security.capability", got, sizeof got),
	                 sizeof cap);
	assert_memory_equal(got, cap, sizeof cap);
	expect_xattr(p.to, "trusted.a", "1");
	expect_xattr(p.to, "trusted.b", NULL);
	close_pair(&p);
}

#define MUST(cond)                                                                         \
	do {                                                                               \
		if (!(cond)) {                                                             \
			(void)fprintf(stderr, "%s: not so (errno %d)\n", #cond, errno);    \
			_exit(1);                                                          \
		}                                                                          \
	} while (0)

static void as_nobody(void *arg)
{
	struct harness *h = arg;
	int from = openat(h->dirfd, "from", O_RDONLY);
	int own = openat(h->dirfd, "own", O_RDWR | O_CREAT, 0644);
	char *cause = NULL;
	int to;

	MUST(geteuid() != 0 || setgroups(0, NULL) == 0);
	MUST(geteuid() != 0 ||
	     (fchown(own, 65534, 65534) == 0 && setregid(65534, 65534) == 0 &&
	      setreuid(65534, 65534) == 0));
	to = openat(h->dirfd, "nobodys", O_RDWR | O_CREAT, 0600);
	MUST(to >= 0);
	/* another's file: refused, and said so */
	MUST(attrs_copy(from, to, &mtime, &cause) == -EPERM);
	MUST(cause && strstr(cause, "owner"));
	/* one's own file: all that can be seen is copied */
	MUST(fsetxattr(own, "user.a", "1", 1, 0) == 0 || errno == EOPNOTSUPP);
	MUST(fchmod(own, 06751) == 0);
	free(cause);
	cause = NULL;
	MUST(attrs_copy(own, to, &mtime, &cause) == 0);
	MUST(stat_of(to).st_mode == (S_IFREG | 06751));
	MUST(fgetxattr(own, "user.a", NULL, 0) == fgetxattr(to, "user.a", NULL, 0));
}

static void test_ordinary_user(void **state)
{
	struct harness *h = *state;
	char *text;
	int status;

	if (geteuid() != 0)
		skip();
	harness_write(h->dirfd, "from", "1", 1);
	assert_int_equal(fchmod(h->dirfd, 0777), 0);
	status = harness_child(as_nobody, h, &text);
	if (status)
		fail_msg("%s", text);
	free(text);
}

/* Every failing call is an error of the whole, with a cause. */
static void test_faults(void **state)
{
	struct harness *h = *state;
	struct pair p = make_pair(h);
	char spec[32];
	int n = 0;

	set_xattr(p.from, "user.a", "1");
	assert_int_equal(fchmod(p.from, 04711), 0);
	if (!fault_set("any:1:EIO")) {
		close_pair(&p);
		skip();
	}
	for (;;) {
		char *cause = NULL;
		errint_t err;

		(void)snprintf(spec, sizeof spec, "any:%d:EIO", n + 1);
		assert_true(fault_set(spec));
		err = attrs_copy(p.from, p.to, &mtime, &cause);
		if (!fault_fired()) {
			assert_int_equal(err, 0);
			break;
		}
		assert_int_equal(err, -EIO);
		assert_non_null(cause);
		free(cause);
		n++;
	}
	(void)fault_set(NULL);
	assert_true(n >= 7);
	assert_int_equal(stat_of(p.to).st_mode & 07777, 04711);
	expect_xattr(p.to, "user.a", "1");
	/* what a security module refuses does not matter, what a user set does */
	assert_true(fault_set("fsetxattr:1:EPERM"));
	assert_int_equal(attrs_copy(p.from, p.to, &mtime, NULL), -EPERM);
	assert_true(fault_set("flistxattr:1:EOPNOTSUPP:always"));
	assert_int_equal(attrs_copy(p.from, p.to, &mtime, NULL), 0);
	(void)fault_set(NULL);
	close_pair(&p);
}

#define T(f) cmocka_unit_test_setup_teardown(f, harness_setup, harness_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_mode_and_times), T(test_owner),  T(test_xattrs),
	    T(test_read_only_file), T(test_acl),    T(test_roots_xattrs),
	    T(test_ordinary_user),  T(test_faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
