/*
 * A store on disk: opening, its private files, numbers, and walking. What makes and
 * replaces objects is in replace.c.
 *
 * Opening, in this order, so that two openers cannot both initialise and a stop anywhere
 * is made up for by the next open:
 *   1. the root and .cellar are opened (made);
 *   2. .cellar/lock is made and locked;
 *   3. store.id is read. It is what makes a directory a store: written last, by rename,
 *      after everything else is durable. A .cellar without it is initialised again, unless
 *      pool.id, which is younger, shows that a store.id was lost.
 * A store.id that cannot be read is never replaced: its UUID ties the pool to the store.
 *
 * Threads: any. s->lock guards the numbers and the writing of the private files; it is held
 * across the durable write of store.id (once in 2^20 numbers).
 */
#include "store/store.h"

#include <dirent.h>
#include <inttypes.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/sysio.h"
#include "base/text.h"
#include "store/durable.h"
#include "store/private.h"

#define STORE_ID        "store.id"
#define POOL_ID         "pool.id"
#define LOCK_FILE       "lock"
#define HOLDER_TRIES    40
#define HOLDER_PAUSE_NS 25000000L
#define TMP_DIR         "tmp"
#define STORE_ID_FORMAT "cellar-store 1\nuuid %s\nnext_ino %" PRIu64 "\n"
#define POOL_ID_FORMAT  "cellar-pool 1\nuuid %s\n"

#define FIRST_INO     16 /* smaller ones are for the mount's own use (1 is the root) */
#define INO_RESERVE   (1ULL << 20)
#define INO_LIMIT     (1ULL << 62)
#define TEXT_MAX      4096
#define LOCK_TEXT_MAX (4 * PATH_MAX + 256) /* an escaped path may be four times as long */

#define RESOLVE_RULES                                                                      \
	(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)

/* ---- small text files in .cellar ---- */

/* Reads at most size - 1 bytes and a NUL; -EUCLEAN when there is more. */
static errint_t read_fd_text(int fd, char *buf, size_t size)
{
	size_t len = 0;

	while (len < size) {
		ssize_t n = sys_pread(fd, buf + len, size - len, (off_t)len);

		if (n < 0)
			return (errint_t)n;
		if (n == 0) {
			buf[len] = '\0';
			return 0;
		}
		len += (size_t)n;
	}
	return -EUCLEAN;
}

static errint_t read_text(int dirfd, const char *name, char *buf, size_t size)
{
	cleanup_fd int fd = store_open_at(dirfd, name, O_RDONLY | O_NONBLOCK);

	return fd < 0 ? fd : read_fd_text(fd, buf, size);
}

static errint_t write_new_text(int dirfd, const char *name, const char *text)
{
	errint_t err, err_close;
	int fd;

	/* Never into what lies there: it may be a fifo, or a second name of another file. */
	(void)sys_unlinkat(dirfd, name, 0);
	fd = store_open_at(dirfd, name, O_WRONLY | O_CREAT | O_EXCL);
	if (fd < 0)
		return fd;
	err = full_pwrite(fd, text, strlen(text), 0);
	if (!err)
		err = store_sync_file(fd);
	err_close = sys_close(fd);
	return err ? err : err_close;
}

errint_t store_replace_text(int dirfd, const char *name, const char *text)
{
	cleanup_free char *tmp = xasprintf("%s.tmp", name);
	errint_t err = write_new_text(dirfd, tmp, text);

	if (!err)
		err = sys_renameat2(dirfd, tmp, dirfd, name, 0);
	if (err) {
		(void)sys_unlinkat(dirfd, tmp, 0);
		return err;
	}
	return store_sync_dir(dirfd);
}

/* ---- store.id ---- */

static errint_t write_store_id(struct store *s, uint64_t next_ino)
{
	cleanup_free char *text =
	    xasprintf(STORE_ID_FORMAT, uuid_format(&s->uuid).s, next_ino);

	return store_replace_text(s->private_fd, STORE_ID, text);
}

/* Valid is what we would write for the same values, byte by byte. */
static bool parse_store_id(const char *text, struct uuid *ret_uuid, uint64_t *ret_next)
{
	cleanup_free char *again = NULL;
	char id[37];

	if (sscanf(text, "cellar-store 1 uuid %36s next_ino %" SCNu64, id, ret_next) != 2 ||
	    !uuid_parse(id, ret_uuid) || uuid_is_null(ret_uuid))
		return false;
	again = xasprintf(STORE_ID_FORMAT, uuid_format(ret_uuid).s, *ret_next);
	return !strcmp(again, text) && *ret_next >= FIRST_INO && *ret_next < INO_LIMIT;
}

static errint_t load_store_id(struct store *s, char **cause)
{
	char text[TEXT_MAX];
	unsigned version;
	errint_t err = read_text(s->private_fd, STORE_ID, text, sizeof text);

	if (err && err != -EUCLEAN)
		return set_cause_errno(cause, err, "cannot read \"%s/%s/%s\"", s->path,
		                       NAMES_PRIVATE, STORE_ID);
	if (!err && parse_store_id(text, &s->uuid, &s->next_ino)) {
		s->reserved_ino = s->next_ino;
		return 0;
	}
	if (!err && sscanf(text, "cellar-store %u", &version) == 1 && version > 1)
		return set_cause(cause, -EPROTONOSUPPORT,
		                 "\"%s\" is a store of version %u; this cellar knows 1",
		                 s->path, version);
	return set_cause(cause, -EUCLEAN,
	                 "\"%s/%s/%s\" is damaged: it must hold the store's UUID and next "
	                 "inode number; restore it from a backup",
	                 s->path, NAMES_PRIVATE, STORE_ID);
}

/* ---- the lock ---- */

/* What the holder of the lock has written; it writes right after it took it, so a text of somebody
 * who is no more is waited out. Returns the pid, 0 if it is not known. */
static unsigned long read_holder(struct store *s, char text[LOCK_TEXT_MAX])
{
	const struct timespec pause = {.tv_nsec = HOLDER_PAUSE_NS};
	unsigned long pid = 0;

	for (unsigned i = 0; i < HOLDER_TRIES; i++) {
		if (i > 0)
			(void)nanosleep(&pause, NULL);
		if (read_fd_text(s->lock_fd, text, LOCK_TEXT_MAX))
			text[0] = '\0';
		pid = 0;
		(void)sscanf(text, "pid %lu", &pid);
		if (pid && (kill((pid_t)pid, 0) == 0 || errno == EPERM))
			break;
	}
	return pid;
}

static void explain_busy(struct store *s, bool *ret_draining, char **cause)
{
	char text[LOCK_TEXT_MAX];
	char *mountpoint = NULL;
	unsigned long pid = read_holder(s, text);
	bool draining;

	draining = strstr(text, "\nstate draining\n") != NULL;
	if (ret_draining)
		*ret_draining = draining;
	mountpoint = strstr(text, "\nmountpoint ");
	if (mountpoint) {
		mountpoint += strlen("\nmountpoint ");
		mountpoint[strcspn(mountpoint, "\n")] = '\0';
	}
	if (!pid)
		set_cause(cause, -EBUSY, "\"%s\" is already served by another cellard",
		          s->path);
	else
		set_cause(cause, -EBUSY,
		          "\"%s\" is already served by cellard, pid %lu%s%s%s%s", s->path,
		          pid, mountpoint ? " (mounted on " : "",
		          mountpoint ? mountpoint : "", mountpoint ? ")" : "",
		          draining ? ", which is still writing back" : "");
}

static errint_t take_lock(struct store *s, bool *ret_draining, char **cause)
{
	s->lock_fd = store_open_at(s->private_fd, LOCK_FILE, O_RDWR | O_CREAT);
	if (s->lock_fd < 0)
		return set_cause_errno(cause, s->lock_fd, "cannot open \"%s/%s/%s\"",
		                       s->path, NAMES_PRIVATE, LOCK_FILE);
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0) {
		errint_t err =
		    store_set_state(s, "running", NULL); /* at once: read_holder() */

		return err ? set_cause_errno(cause, err, "cannot write \"%s/%s/%s\"",
		                             s->path, NAMES_PRIVATE, LOCK_FILE)
		           : 0;
	}
	if (errno != EWOULDBLOCK)
		return set_cause_errno(cause, -errno, "cannot lock \"%s/%s/%s\"", s->path,
		                       NAMES_PRIVATE, LOCK_FILE);
	explain_busy(s, ret_draining, cause);
	return -EBUSY;
}

errint_t store_set_state(struct store *s, const char *state, const char *mountpoint)
{
	cleanup_free char *escaped = mountpoint ? text_escape(mountpoint) : NULL;
	cleanup_free char *text = xasprintf("pid %ld\nstate %s\n%s%s%s", (long)getpid(),
	                                    state, escaped ? "mountpoint " : "",
	                                    escaped ? escaped : "", escaped ? "\n" : "");
	errint_t err;

	INVARIANT(s->lock_fd >= 0);
	lock_take(&s->lock);
	err = full_pwrite(s->lock_fd, text, strlen(text), 0);
	if (!err)
		err = sys_ftruncate(s->lock_fd, (off_t)strlen(text));
	lock_drop(&s->lock);
	return err;
}

/* ---- opening ---- */

static errint_t make_root(const char *path, char **cause)
{
	errint_t err = sys_mkdirat(AT_FDCWD, path, 0755);

	if (!err || err == -EEXIST)
		return 0;
	if (err == -ENOENT)
		return set_cause(
		    cause, err,
		    "cannot create store \"%s\": the directory it is to lie in "
		    "does not exist",
		    path);
	return set_cause_errno(cause, err, "cannot create store \"%s\"", path);
}

static errint_t open_root(struct store *s, const char *path, bool create, char **cause)
{
	errint_t err = create ? make_root(path, cause) : 0;

	if (err)
		return err;
	s->root_fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
	if (s->root_fd == -ENOTDIR)
		return set_cause(cause, -ENOTDIR, "\"%s\" is not a directory", path);
	if (s->root_fd == -ENOENT)
		return set_cause(cause, -ENOENT, "store \"%s\" does not exist", path);
	if (s->root_fd < 0)
		return set_cause_errno(cause, s->root_fd, "cannot open store \"%s\"", path);
	s->path = realpath(path, NULL);
	if (!s->path)
		return set_cause_errno(cause, -errno, "cannot resolve \"%s\"", path);
	return 0;
}

static errint_t no_cellar(struct store *s, char **cause)
{
	return set_cause(cause, -ENOENT, "\"%s\" holds no cellar (it has no %s/%s)",
	                 s->path, NAMES_PRIVATE, STORE_ID);
}

/* The root's mtime is put back: making a store of an existing tree is no change of it. */
static errint_t make_private(struct store *s)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}};
	struct stat st;
	errint_t err = sys_fstat(s->root_fd, &st);

	if (!err)
		err = sys_mkdirat(s->root_fd, NAMES_PRIVATE, 0700);
	if (err)
		return err == -EEXIST ? 0 : err;
	ts[1] = st.st_mtim;
	(void)sys_futimens(s->root_fd, ts);
	return 0;
}

static errint_t check_own(struct store *s, int fd, const char *below, char **cause)
{
	cleanup_free char *shown =
	    xasprintf("%s/" NAMES_PRIVATE "%s%s", s->path, *below ? "/" : "", below);

	return private_check_dir(fd, shown, true, cause);
}

static errint_t open_private(struct store *s, bool create, char **cause)
{
	const int flags = O_RDONLY | O_DIRECTORY;
	int fd = store_open_at(s->root_fd, NAMES_PRIVATE, flags);

	if (fd == -ENOENT) {
		errint_t err = create ? make_private(s) : no_cellar(s, cause);

		if (err)
			return set_cause_errno(cause, err, "cannot create \"%s/%s\"",
			                       s->path, NAMES_PRIVATE);
		fd = store_open_at(s->root_fd, NAMES_PRIVATE, flags);
	}
	s->private_fd = fd;
	if (fd == -ENOTDIR || fd == -ELOOP)
		return set_cause(cause, fd, "\"%s/%s\" is not a directory", s->path,
		                 NAMES_PRIVATE);
	if (fd == -EXDEV)
		return set_cause(cause, fd,
		                 "\"%s/%s\" is on another filesystem than the store",
		                 s->path, NAMES_PRIVATE);
	return fd < 0 ? set_cause_errno(cause, fd, "cannot open \"%s/%s\"", s->path,
	                                NAMES_PRIVATE)
	              : 0;
}

/* 1 there, 0 not there, or an error. */
static int private_has(struct store *s, const char *name)
{
	struct stat st;
	errint_t err = sys_fstatat(s->private_fd, name, &st, AT_SYMLINK_NOFOLLOW);

	return !err ? 1 : err == -ENOENT ? 0 : err;
}

static errint_t open_tmp(struct store *s, bool create, char **cause)
{
	errint_t err = create ? sys_mkdirat(s->private_fd, TMP_DIR, 0700) : 0;

	if (!err || err == -EEXIST) {
		s->tmp_fd = store_open_at(s->private_fd, TMP_DIR, O_RDONLY | O_DIRECTORY);
		err = s->tmp_fd < 0 ? s->tmp_fd : 0;
	}
	if (err)
		set_cause_errno(cause, err, "cannot open \"%s/%s/%s\"", s->path,
		                NAMES_PRIVATE, TMP_DIR);
	return err;
}

static errint_t sync_parent(struct store *s)
{
	cleanup_fd int fd = sys_openat(s->root_fd, "..", O_PATH | O_DIRECTORY, 0);

	return fd < 0 ? fd : store_sync_dir(fd);
}

static errint_t initialise(struct store *s, char **cause)
{
	errint_t err;
	int has_pool = private_has(s, POOL_ID);

	if (has_pool > 0)
		return set_cause(
		    cause, -EUCLEAN,
		    "\"%s/%s/%s\" is missing though a pool belongs to the store; "
		    "restore it from a backup",
		    s->path, NAMES_PRIVATE, STORE_ID);
	err = has_pool;
	if (!err)
		err = store_sync_dir(s->private_fd);
	if (!err)
		err = store_sync_dir(s->root_fd);
	if (!err)
		err = sync_parent(s);
	if (!err) {
		s->uuid = uuid_random();
		s->next_ino = s->reserved_ino = FIRST_INO;
		err = write_store_id(s, FIRST_INO);
	}
	if (err)
		return set_cause_errno(cause, err, "cannot initialise store \"%s\"",
		                       s->path);
	s->created = true;
	return 0;
}

static errint_t find_last_tmp(void *ctx, const char *name, unsigned char type)
{
	struct store *s = ctx;
	unsigned long long n;

	if (sscanf(name, "%*[a-z]-%16llx", &n) == 1 && n > s->tmp_counter)
		s->tmp_counter = n;
	return 0;
}

/* What needs the lock: nobody else is initialising or using the store now. */
static errint_t open_locked(struct store *s, bool has_id, char **cause)
{
	errint_t err = open_tmp(s, true, cause);

	if (!err)
		err = check_own(s, s->tmp_fd, TMP_DIR, cause);
	if (err)
		return err;
	err = sys_walk_dir(s->tmp_fd, find_last_tmp, s);
	if (err)
		return set_cause_errno(cause, err, "cannot read \"%s/%s/%s\"", s->path,
		                       NAMES_PRIVATE, TMP_DIR);
	return has_id ? load_store_id(s, cause) : initialise(s, cause);
}

static errint_t open_parts(struct store *s, const char *path, unsigned flags,
                           bool *ret_draining, char **cause)
{
	bool look_only = flags & STORE_NOLOCK;
	bool create = (flags & STORE_CREATE) && !look_only;
	struct statfs sfs;
	int has_id;
	errint_t err = open_root(s, path, create, cause);

	if (!err)
		err = open_private(s, create, cause);
	if (err)
		return err;
	err = sys_fstatfs(s->root_fd, &sfs);
	if (err)
		return set_cause_errno(cause, err, "cannot look at \"%s\"", s->path);
	s->name_max = sfs.f_namelen > 0 ? MIN_OF((size_t)sfs.f_namelen, (size_t)NAME_MAX)
	                                : (size_t)NAME_MAX;
	has_id = private_has(s, STORE_ID);
	if (!has_id && !create)
		return no_cellar(s, cause);
	if (look_only) {
		(void)open_tmp(s, false, NULL);
		return load_store_id(s, cause);
	}
	err = check_own(s, s->private_fd, "", cause);
	if (!err)
		err = take_lock(s, ret_draining, cause);
	if (err)
		return err;
	/* Somebody else may have initialised it before the lock was ours. */
	has_id = private_has(s, STORE_ID);
	if (has_id < 0)
		return set_cause_errno(cause, has_id, "cannot look for \"%s/%s/%s\"",
		                       s->path, NAMES_PRIVATE, STORE_ID);
	return open_locked(s, has_id, cause);
}

errint_t store_open(const char *path, unsigned flags, struct store **ret,
                    bool *ret_draining, char **cause)
{
	struct store *s = xcalloc(1, sizeof *s);
	errint_t err;

	s->root_fd = s->private_fd = s->tmp_fd = s->lock_fd = -1;
	lock_init(&s->lock, LOCK_LEAF);
	ident_forget_filesystems();
	err = open_parts(s, path, flags, ret_draining, cause);
	if (err) {
		store_close(s);
		return err;
	}
	*ret = s;
	return 0;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		(void)sys_close(fd);
}

void store_close(struct store *s)
{
	if (!s)
		return;
	store_sweep(s);
	store_forget_unfinished(s);
	close_if_open(s->tmp_fd);
	close_if_open(s->private_fd);
	close_if_open(s->root_fd);
	close_if_open(s->lock_fd); /* last: the lock goes with it */
	lock_clear(&s->lock);
	free(s->path);
	free(s);
}

/* ---- pool.id ---- */

errint_t store_get_pool(struct store *s, struct uuid *ret, char **cause)
{
	cleanup_free char *again = NULL;
	char text[TEXT_MAX], id[37];
	struct uuid pool = {{0}};
	errint_t err = read_text(s->private_fd, POOL_ID, text, sizeof text);

	if (err == -ENOENT) {
		*ret = pool;
		return 0;
	}
	if (err && err != -EUCLEAN)
		return set_cause_errno(cause, err, "cannot read \"%s/%s/%s\"", s->path,
		                       NAMES_PRIVATE, POOL_ID);
	if (!err && sscanf(text, "cellar-pool 1 uuid %36s", id) == 1 &&
	    uuid_parse(id, &pool))
		again = xasprintf(POOL_ID_FORMAT, uuid_format(&pool).s);
	if (!again || strcmp(again, text) || uuid_is_null(&pool))
		return set_cause(cause, -EUCLEAN,
		                 "\"%s/%s/%s\" is damaged: it must hold the UUID of the "
		                 "store's pool",
		                 s->path, NAMES_PRIVATE, POOL_ID);
	*ret = pool;
	return 0;
}

errint_t store_set_pool(struct store *s, const struct uuid *pool, char **cause)
{
	cleanup_free char *text = xasprintf(POOL_ID_FORMAT, uuid_format(pool).s);
	errint_t err;

	INVARIANT(s->lock_fd >= 0);
	lock_take(&s->lock);
	err = store_replace_text(s->private_fd, POOL_ID, text);
	lock_drop(&s->lock);
	if (err)
		set_cause_errno(cause, err, "cannot write \"%s/%s/%s\"", s->path,
		                NAMES_PRIVATE, POOL_ID);
	return err;
}

/* ---- numbers ---- */

errint_t store_new_ino(struct store *s, uint64_t *ret)
{
	errint_t err = 0;

	INVARIANT(s->lock_fd >= 0);
	lock_take(&s->lock);
	if (s->next_ino >= s->reserved_ino) {
		uint64_t reserve = s->next_ino + INO_RESERVE;

		err = reserve < INO_LIMIT ? write_store_id(s, reserve) : -EOVERFLOW;
		if (!err)
			s->reserved_ino = reserve;
	}
	if (!err)
		*ret = s->next_ino++;
	lock_drop(&s->lock);
	return err;
}

/* ---- walking ---- */

/* Length of the longest run of whole components of path that openat2 takes at once; 0 if a
 * single one is too long. */
static size_t piece_len(const char *path)
{
	size_t n = PATH_MAX - 1;

	while (n > 0 && path[n] != '/')
		n--;
	return n;
}

int store_open_dir(struct store *s, const char *path, int flags)
{
	cleanup_fd int at = -1;

	while (strlen(path) >= PATH_MAX) {
		char piece[PATH_MAX];
		size_t len = piece_len(path);
		int next;

		if (!len)
			return -ENAMETOOLONG;
		memcpy(piece, path, len);
		piece[len] = '\0';
		next = sys_openat2(at < 0 ? s->root_fd : at, piece, O_PATH | O_DIRECTORY, 0,
		                   RESOLVE_RULES);
		if (next < 0)
			return next;
		close_if_open(at);
		at = next;
		path += len + strspn(path + len, "/");
	}
	return sys_openat2(at < 0 ? s->root_fd : at, *path ? path : ".",
	                   flags | O_DIRECTORY, 0, RESOLVE_RULES);
}

int store_open_at(int dirfd, const char *store_name, int flags)
{
	if (!*store_name || strchr(store_name, '/'))
		return -EINVAL;
	return sys_openat2(dirfd, store_name, flags, 0600, RESOLVE_RULES);
}

int store_open_object(int dirfd, const char *store_name)
{
	const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
	int fd = store_open_at(dirfd, store_name, flags | O_NOATIME);

	return fd == -EPERM ? store_open_at(dirfd, store_name, flags) : fd;
}

struct walk_entry {
	char *name;
	unsigned char type;
};

/* A growing array: of the entries of one directory, or of the paths still to be walked. */
struct walk_list {
	struct walk_entry *v;
	size_t count, allocated;
};

static errint_t walk_list_add(struct walk_list *l, char *name, unsigned char type)
{
	if (!name)
		return -ENOMEM;
	if (l->count == l->allocated) {
		size_t n = l->allocated ? 2 * l->allocated : 64;
		struct walk_entry *v = realloc(l->v, n * sizeof *v);

		if (!v) {
			free(name);
			return -ENOMEM;
		}
		l->v = v;
		l->allocated = n;
	}
	l->v[l->count++] = (struct walk_entry){.name = name, .type = type};
	return 0;
}

static void walk_list_clear(struct walk_list *l)
{
	for (size_t i = 0; i < l->count; i++)
		free(l->v[i].name);
	free(l->v);
}

static errint_t collect(void *ctx, const char *name, unsigned char type)
{
	return walk_list_add(ctx, strdup(name), type);
}

static int by_name(const void *a, const void *b)
{
	const struct walk_entry *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static char *path_join(const char *dir, const char *name)
{
	char *p = NULL;

	return asprintf(&p, "%s%s%s", dir, *dir ? "/" : "", name) < 0 ? NULL : p;
}

/* The entries of one directory; its subdirectories are put on the stack, last one first. */
static errint_t walk_entries(int dirfd, const char *dir, const struct walk_list *entries,
                             struct walk_list *stack, store_walk_fn fn, void *ctx)
{
	struct store_walk_item item = {.dir = dir, .dirfd = dirfd};
	errint_t err = 0;

	for (size_t i = 0; i < entries->count && !err; i++) {
		item.name = entries->v[i].name;
		item.type = entries->v[i].type;
		if (item.type != DT_DIR)
			err = fn(ctx, &item);
	}
	for (size_t i = entries->count; i-- > 0 && !err;) {
		const char *name = entries->v[i].name;

		if (entries->v[i].type == DT_DIR && (*dir || strcmp(name, NAMES_PRIVATE)))
			err = walk_list_add(stack, path_join(dir, name), DT_DIR);
	}
	return err;
}

static errint_t walk_dir(struct store *s, const char *dir, struct walk_list *stack,
                         store_walk_fn fn, void *ctx)
{
	struct store_walk_item bad = {.dir = dir, .name = "", .dirfd = -1, .type = DT_DIR};
	struct walk_list entries = {0};
	cleanup_fd int fd = store_open_dir(s, dir, O_RDONLY);
	errint_t err;

	if (fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP)
		return 0; /* gone, or another thing now */
	bad.error = fd < 0 ? fd : sys_walk_dir(fd, collect, &entries);
	if (bad.error == -ENOMEM) {
		walk_list_clear(&entries);
		return -ENOMEM;
	}
	if (entries.count > 1)
		qsort(entries.v, entries.count, sizeof *entries.v, by_name);
	err = walk_entries(fd, dir, &entries, stack, fn, ctx);
	if (!err && bad.error)
		err = fn(ctx, &bad);
	walk_list_clear(&entries);
	return err;
}

/* Where the walk begins: a directory goes on the stack, anything else to fn. */
static errint_t walk_start(struct store *s, char *path, struct walk_list *stack,
                           store_walk_fn fn, void *ctx)
{
	struct store_walk_item item = {.dir = ""};
	char *slash = strrchr(path, '/');
	cleanup_free char *whole = strdup(path);
	cleanup_fd int fd = -1;
	struct stat st;
	errint_t err;

	if (!whole)
		return -ENOMEM;
	if (!*path)
		return walk_list_add(stack, steal_pointer(&whole), DT_DIR);
	item.name = slash ? slash + 1 : path;
	if (slash) {
		*slash = '\0';
		item.dir = path;
	}
	if (!strcmp(item.dir, "") && !strcmp(item.name, NAMES_PRIVATE))
		return -ENOENT;
	fd = store_open_dir(s, item.dir, O_PATH);
	if (fd < 0)
		return fd;
	err = sys_fstatat(fd, item.name, &st, AT_SYMLINK_NOFOLLOW);
	if (err)
		return err;
	if (S_ISDIR(st.st_mode))
		return walk_list_add(stack, steal_pointer(&whole), DT_DIR);
	item.dirfd = fd;
	item.type = IFTODT(st.st_mode);
	return fn(ctx, &item);
}

errint_t store_walk(struct store *s, const char *store_path, store_walk_fn fn, void *ctx)
{
	struct walk_list stack = {0};
	cleanup_free char *path = strdup(store_path);
	size_t len = strlen(store_path);
	errint_t err;

	if (!path)
		return -ENOMEM;
	while (len > 0 && path[len - 1] == '/')
		path[--len] = '\0';
	err = walk_start(s, path, &stack, fn, ctx);
	while (!err && stack.count > 0) {
		cleanup_free char *dir = stack.v[--stack.count].name;

		err = walk_dir(s, dir, &stack, fn, ctx);
	}
	walk_list_clear(&stack);
	return err;
}
