/*
 * Copying all attributes of one store file onto another.
 *
 * Order, and why: owner first (chown clears setuid and file capabilities); then xattrs (an
 * ordinary user may set user.* only while the mode still lets it write; an ACL sets mode
 * bits); then the mode; then the times, which everything before may move.
 *
 * Left behind: user.cellar.*, which is the daemon's own. Left alone: security.ima and security.evm. They are sums over one inode's bytes and
 * attributes, kept by the kernel; on other bytes they would only make the file unreadable.
 *
 * Threads: any; the caller keeps both files from changing.
 */
#include "store/attrs.h"

#include <string.h>
#include <sys/xattr.h>

#include "base/sysio.h"

#define XATTR_MAX (64 << 10) /* the kernel's limit for a list and for a value */
#define OURS      "user.cellar."
#define NEW_MARK  "user.cellar.new"

struct xattr_list {
	char *names; /* NUL-terminated, one after the other */
	size_t len;
};

static errint_t list_xattrs(int fd, struct xattr_list *ret)
{
	cleanup_free char *buf = malloc(XATTR_MAX);
	ssize_t n;

	if (!buf)
		return -ENOMEM;
	n = sys_flistxattr(fd, buf, XATTR_MAX);
	if (n < 0 && n != -EOPNOTSUPP)
		return (errint_t)n;
	ret->len = n > 0 ? (size_t)n : 0;
	ret->names = steal_pointer(&buf);
	return 0;
}

static const char *next_name(const struct xattr_list *l, const char *name)
{
	const char *next = name ? name + strlen(name) + 1 : l->names;

	return next < l->names + l->len ? next : NULL;
}

static bool has_name(const struct xattr_list *l, const char *name)
{
	for (const char *n = next_name(l, NULL); n; n = next_name(l, n))
		if (!strcmp(n, name))
			return true;
	return false;
}

static bool is_kernels_own(const char *name)
{
	return !strcmp(name, "security.ima") || !strcmp(name, "security.evm");
}

static bool is_refusal(errint_t err)
{
	return err == -EPERM || err == -EACCES || err == -EOPNOTSUPP || err == -EINVAL;
}

/* Whether the file is the same to its users without it: labels are the security module's
 * business, and other system.* names show what is stored elsewhere. */
static bool may_be_refused(const char *name)
{
	if (!strncmp(name, "security.", 9))
		return strcmp(name, "security.capability") != 0;
	return !strncmp(name, "system.", 7) && strncmp(name, "system.posix_acl_", 17);
}

static errint_t copy_xattr(int from, int to, const char *name, char *buf)
{
	ssize_t n = sys_fgetxattr(from, name, buf, XATTR_MAX);
	errint_t err;

	if (n == -ENODATA)
		return 0;
	err = n < 0 ? (errint_t)n : sys_fsetxattr(to, name, buf, (size_t)n, 0);
	return is_refusal(err) && may_be_refused(name) ? 0 : err;
}

static errint_t remove_xattr(int to, const char *name)
{
	errint_t err = sys_fremovexattr(to, name);

	if (err == -ENODATA || (is_refusal(err) && may_be_refused(name)))
		return 0;
	return err;
}

static errint_t copy_xattrs(int from, int to, char **cause)
{
	struct xattr_list have = {0}, want = {0};
	cleanup_free char *buf = malloc(XATTR_MAX);
	errint_t err = buf ? list_xattrs(from, &want) : -ENOMEM;

	if (!err)
		err = list_xattrs(to, &have);
	if (err) {
		set_cause_errno(cause, err, "cannot list extended attributes");
		goto out;
	}
	for (const char *n = next_name(&have, NULL); n && !err; n = next_name(&have, n)) {
		if (is_kernels_own(n) || has_name(&want, n))
			continue;
		err = remove_xattr(to, n);
		if (err)
			set_cause_errno(cause, err, "cannot remove attribute %s", n);
	}
	for (const char *n = next_name(&want, NULL); n && !err; n = next_name(&want, n)) {
		if (is_kernels_own(n) || !strncmp(n, OURS, sizeof(OURS) - 1))
			continue;
		err = copy_xattr(from, to, n, buf);
		if (err)
			set_cause_errno(cause, err, "cannot copy attribute %s", n);
	}
out:
	free(have.names);
	free(want.names);
	return err;
}

static errint_t copy_owner(int to, const struct stat *want, const struct stat *have)
{
	uid_t uid = want->st_uid == have->st_uid ? (uid_t)-1 : want->st_uid;
	gid_t gid = want->st_gid == have->st_gid ? (gid_t)-1 : want->st_gid;

	if (uid == (uid_t)-1 && gid == (gid_t)-1)
		return 0;
	return sys_fchown(to, uid, gid);
}

static errint_t copy_mode(int to, mode_t mode)
{
	struct stat st;
	errint_t err = sys_fchmod(to, mode & 07777);

	if (err || !(mode & S_ISGID))
		return err;
	/* The kernel drops setgid without a word where the caller is not in the group. */
	err = sys_fstat(to, &st);
	if (!err && !(st.st_mode & S_ISGID))
		err = -EPERM;
	return err;
}

errint_t attrs_copy(int from, int to, const struct timespec *mtime, char **cause)
{
	struct stat want, have;
	struct timespec ts[2];
	errint_t err = sys_fstat(from, &want);

	if (!err)
		err = sys_fstat(to, &have);
	if (err)
		return set_cause_errno(cause, err, "cannot read attributes");
	err = copy_owner(to, &want, &have);
	if (err)
		return set_cause_errno(cause, err, "cannot set owner %u:%u", want.st_uid,
		                       want.st_gid);
	err = copy_xattrs(from, to, cause);
	if (err)
		return err;
	err = copy_mode(to, want.st_mode);
	if (err)
		return set_cause_errno(cause, err, "cannot set mode %04o",
		                       want.st_mode & 07777U);
	ts[0] = want.st_atim;
	ts[1] = *mtime;
	err = sys_futimens(to, ts);
	if (err)
		set_cause_errno(cause, err, "cannot set times");
	return err;
}

/* ---- the mark of a new file ---- */

errint_t attrs_mark_new(int fd, const struct uuid *pool)
{
	return sys_fsetxattr(fd, NEW_MARK, pool->b, sizeof(pool->b), 0);
}

bool attrs_is_marked_new(int fd, const struct uuid *pool)
{
	struct uuid mark;

	return sys_fgetxattr(fd, NEW_MARK, mark.b, sizeof(mark.b)) == sizeof(mark.b) &&
	       uuid_equal(&mark, pool);
}

void attrs_unmark_new(int fd)
{
	(void)sys_fremovexattr(fd, NEW_MARK);
}
