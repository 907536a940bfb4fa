/*
 * What is ours alone: see private.h.
 */
#include "store/private.h"

#include <unistd.h>

#include "base/sysio.h"
#include "base/text.h"

#define PROBE ".owner-probe"

/* The owner of what we make there. The name is ours: a leftover of it is no loss. */
static errint_t owner_of_new(int dirfd, uid_t *ret)
{
	struct stat st;
	errint_t err;
	int fd;

	(void)sys_unlinkat(dirfd, PROBE, 0);
	fd = sys_openat(dirfd, PROBE, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fd;
	err = sys_fstat(fd, &st);
	(void)sys_close(fd);
	(void)sys_unlinkat(dirfd, PROBE, 0);
	if (!err)
		*ret = st.st_uid;
	return err;
}

static errint_t is_ours(int dirfd, const struct stat *st, bool *ret)
{
	uid_t uid = (uid_t)-1;
	errint_t err = 0;

	*ret = st->st_uid == geteuid();
	if (!*ret) {
		err = owner_of_new(dirfd, &uid);
		*ret = !err && uid == st->st_uid;
	}
	return err;
}

errint_t private_check_dir(int dirfd, const char *shown, bool close_it, char **cause)
{
	cleanup_free char *name = text_escape(shown);
	struct stat st;
	bool ours = false;
	errint_t err = sys_fstat(dirfd, &st);

	if (!err)
		err = is_ours(dirfd, &st, &ours);
	if (err)
		return set_cause_errno(cause, err, "cannot tell whose \"%s\" is", name);
	if (!ours)
		return set_cause(
		    cause, -EPERM,
		    "\"%s\" belongs to user %u, who could have put anything in "
		    "it: run cellard as that user, or make it yours with "
		    "chown -R if you trust what it holds",
		    name, (unsigned)st.st_uid);
	if (!close_it)
		return st.st_mode & 022
		           ? set_cause(cause, -EPERM,
		                       "others may write in \"%s\" (mode %03o): take that "
		                       "away with chmod go-w",
		                       name, (unsigned)st.st_mode & 07777)
		           : 0;
	if ((st.st_mode & 077) == 0)
		return 0;
	err = sys_fchmod(dirfd, 0700);
	return err ? set_cause_errno(cause, err, "cannot close \"%s\" to others", name) : 0;
}

bool private_is_own_file(const struct stat *st, const struct stat *dir)
{
	return S_ISREG(st->st_mode) && st->st_nlink == 1 && st->st_uid == dir->st_uid;
}
