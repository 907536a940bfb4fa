/*
 * Where directories lie from each other, and where the pool goes.
 *
 * Asked of the kernel by walking up with "..", comparing device and inode: no link, bind
 * mount or spelling of a path deceives that. Everything here happens before the mount is
 * made. No state.
 */
#include "cellard/places.h"

#include <string.h>
#include <unistd.h>

#include "base/sysio.h"

char *places_canonical(const char *path)
{
	cleanup_free char *head = xstrdup(path);
	const char *tail;
	char *real, *joined;

	for (;;) {
		char *slash;

		real = realpath(head, NULL);
		if (real)
			break;
		slash = strrchr(head, '/');
		if (!slash || slash == head)
			return xstrdup(path);
		*slash = '\0';
	}
	tail = path + strlen(head);
	if (tail[0] == '\0')
		return real;
	joined = xasprintf("%s%s", strcmp(real, "/") == 0 ? "" : real, tail);
	free(real);
	return joined;
}

errint_t places_dir_is_below(int fd, const struct stat *top, bool *ret)
{
	int at = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	struct stat st, up_st;
	errint_t r = at < 0 ? -errno : sys_fstat(at, &st);

	*ret = false;
	while (r == 0) {
		int up;

		if (st.st_dev == top->st_dev && st.st_ino == top->st_ino) {
			*ret = true;
			break;
		}
		up = sys_openat(at, "..", O_PATH | O_DIRECTORY, 0);
		if (up < 0) {
			r = up;
			break;
		}
		close(at);
		at = up;
		r = sys_fstat(at, &up_st);
		if (r < 0 || (up_st.st_dev == st.st_dev && up_st.st_ino == st.st_ino))
			break; /* the root is its own parent */
		st = up_st;
	}
	if (at >= 0)
		close(at);
	return r;
}

errint_t places_path_is_below(const char *path, const struct stat *top, bool *ret)
{
	cleanup_free char *p = xstrdup(path);

	for (;;) {
		char *slash;
		cleanup_fd int fd = sys_openat(AT_FDCWD, p, O_PATH | O_DIRECTORY, 0);

		if (fd >= 0)
			return places_dir_is_below(fd, top, ret);
		if (fd != -ENOENT)
			return fd;
		slash = strrchr(p, '/');
		if (!slash || slash[1] == '\0')
			return -ENOENT;
		slash[slash == p] = '\0'; /* "/" has its slash to keep */
	}
}

static errint_t make_dirs(const char *path, char **cause)
{
	cleanup_free char *p = xstrdup(path);
	errint_t r;

	for (char *slash = strchr(p + 1, '/');; slash = strchr(slash + 1, '/')) {
		if (slash)
			*slash = '\0';
		r = sys_mkdirat(AT_FDCWD, p, 0700);
		if (r < 0 && r != -EEXIST && r != -EROFS && r != -EACCES)
			break;
		if (!slash)
			break;
		*slash = '/';
	}
	if (r < 0 && r != -EEXIST)
		return set_cause_errno(cause, r, "cannot make the directory \"%s\"", path);
	return 0;
}

errint_t places_pool_outside(const struct uuid *store, char **ret, char **cause)
{
	cleanup_free char *parent = NULL;
	const char *base = getenv("XDG_STATE_HOME");
	const char *home = getenv("HOME");
	errint_t r;

	if (geteuid() == 0)
		parent = xstrdup("/var/lib/cellar");
	else if (base && base[0] == '/')
		parent = xasprintf("%s/cellar", base);
	else if (home && home[0] == '/')
		parent = xasprintf("%s/.local/state/cellar", home);
	else
		return set_cause(
		    cause, -EINVAL,
		    "the store lies under the mount point, and without HOME there is "
		    "no place for the pool; name one with pool=DIR");
	r = make_dirs(parent, cause);
	if (r < 0)
		return r;
	*ret = xasprintf("%s/%s", parent, uuid_format(store).s);
	return 0;
}
