/*
 * The session: mount point, options, INIT, loop, end.
 *
 * Life: mount_check_point() -> mount_start() (mounted; requests wait in the kernel) ->
 * mount_run() (answers; returns when the session has ended and every queued request is
 * answered) -> mount_free().
 *
 * How a session ends: umount(8) makes reads of the FUSE device fail (ENODEV), loop threads
 * end by themselves. mount_stop() unmounts, lazily where the mount is busy; then the device
 * stays alive, so it also tells libfuse to exit and wakes the thread that waits in
 * fuse_session_loop_mt() with a signal of our own. What was read is answered; what nobody
 * read gets ENOTCONN when the device is closed.
 *
 * Nothing here resolves a path through the mount: the mount point itself is opened with
 * O_PATH only, which asks the daemon nothing. (STORE may be MOUNTPOINT.)
 *
 * Threads: mount_run() on one; mount_stop() and mount_invalidate() on any that serves no
 * request.
 */
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mount/init-hook.h"
#include "mount/passthrough.h"
#include "mount/request.h"

/* Largest request: with its header it must fit into a pipe of 1 MiB, more than which only
 * CAP_SYS_RESOURCE may have; else libfuse copies every reply twice, through fresh memory. */
#define MAX_WRITE      (248U << 12)
#define READ_AHEAD     (2 * MAX_WRITE) /* the kernel's: two requests under way */
#define MAX_BACKGROUND 64
#define TIMEOUT_S      3600.0 /* the daemon owns the store: nothing changes by itself */
#define TIMEOUT_SHARED 1.0
#define DEAD_MOUNTS    16 /* on one mount point; more are somebody's experiment */
#define END_WAIT_MS    2000
#define WAKE_MS        20

extern char **environ;

/* ---- /proc/self/mountinfo ---- */

struct mount_line {
	char *point, *type, *source; /* owned, unescaped */
	char *device;                /* "major:minor" */
};

static void mount_line_clear(struct mount_line *l)
{
	free(l->point);
	free(l->type);
	free(l->source);
	free(l->device);
	memset(l, 0, sizeof(*l));
}

/* "\040" and the like, in place. */
static char *unescape(char *s)
{
	char *out = s;

	for (const char *in = s; *in; out++) {
		if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' &&
		    in[2] <= '7' && in[3] >= '0' && in[3] <= '7') {
			*out =
			    (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0'));
			in += 4;
		} else {
			*out = *in++;
		}
	}
	*out = '\0';
	return s;
}

/* "36 35 98:0 /root /point opts tag:1 ... - type source super"; false: not number `id`. */
static bool parse_mount_line(char *line, int id, struct mount_line *ret)
{
	char *field[5], *save = NULL, *word = strtok_r(line, " \n", &save);
	char *type, *source;

	for (size_t i = 0; i < ARRAY_LEN(field); i++) {
		if (!word)
			return false;
		field[i] = word;
		word = strtok_r(NULL, " \n", &save);
	}
	if (atoi(field[0]) != id)
		return false;
	while (word && strcmp(word, "-") != 0)
		word = strtok_r(NULL, " \n", &save);
	type = word ? strtok_r(NULL, " \n", &save) : NULL;
	source = type ? strtok_r(NULL, " \n", &save) : NULL;
	if (!source)
		return false;
	ret->point = unescape(xstrdup(field[4]));
	ret->device = xstrdup(field[2]);
	ret->type = unescape(xstrdup(type));
	ret->source = unescape(xstrdup(source));
	return true;
}

static bool find_mount(int id, struct mount_line *ret)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	bool found = false;
	char *line = NULL;
	size_t size = 0;

	if (!f)
		return false;
	while (!found && getline(&line, &size, f) > 0)
		found = parse_mount_line(line, id, ret);
	free(line);
	(void)fclose(f);
	return found;
}

/* The mount that a descriptor lies on; -1 if the kernel does not say. */
static int mount_id_of(int fd)
{
	char path[48], line[128];
	int id = -1;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "mnt_id: %d", &id) == 1)
			break;
	}
	(void)fclose(f);
	return id;
}

/* O_PATH: asks whatever is mounted there nothing, so a dead or a hanging one does no harm.
 */
static int open_point(const char *mountpoint)
{
	int fd = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int top_mount_id(const char *mountpoint)
{
	int fd = open_point(mountpoint), id;

	if (fd < 0)
		return -1;
	id = mount_id_of(fd);
	(void)close(fd);
	return id;
}

/* ---- unmounting ---- */

/* Users unmount through the setuid helper. */
static errint_t run_fusermount(const char *mountpoint, bool lazy)
{
	const char *argv[] = {"fusermount3",
	                      "-u",
	                      "-q",
	                      lazy ? "-z" : "--",
	                      lazy ? "--" : mountpoint,
	                      lazy ? mountpoint : NULL,
	                      NULL};
	posix_spawnattr_t attr;
	sigset_t none;
	int err, status;
	pid_t pid;

	(void)sigemptyset(&none);
	(void)posix_spawnattr_init(&attr);
	(void)posix_spawnattr_setsigmask(&attr, &none);
	(void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	err = posix_spawnp(&pid, argv[0], NULL, &attr, (char **)argv, environ);
	(void)posix_spawnattr_destroy(&attr);
	if (err)
		return -err;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

static errint_t unmount(const char *mountpoint, bool lazy)
{
	if (umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
		return 0;
	return errno == EPERM ? run_fusermount(mountpoint, lazy) : -errno;
}

/* ---- the mount point ---- */

static bool is_fuse(const char *type)
{
	return strcmp(type, "fuse") == 0 || strncmp(type, "fuse.", 5) == 0;
}

static bool is_dead(int fd)
{
	struct statx stx;
	errint_t err =
	    sys_statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_INO, &stx);

	return err == -ENOTCONN || err == -ECONNABORTED;
}

/* What is mounted at the very point: true and its line, if anything is. */
static bool mounted_at(int fd, struct mount_line *ret)
{
	char path[PATH_MAX];
	ssize_t len = readlink(fd_path(fd).s, path, sizeof(path) - 1);

	if (len < 0 || !find_mount(mount_id_of(fd), ret))
		return false;
	path[len] = '\0';
	if (strcmp(path, ret->point) == 0)
		return true;
	mount_line_clear(ret);
	return false;
}

static errint_t cause_of_open(const char *mountpoint, errint_t err, char **cause)
{
	if (err == -ENOENT)
		return set_cause(cause, err, "the mount point \"%s\" does not exist",
		                 mountpoint);
	if (err == -ENOTDIR)
		return set_cause(cause, err, "the mount point \"%s\" is not a directory",
		                 mountpoint);
	return set_cause_errno(cause, err, "the mount point \"%s\"", mountpoint);
}

/* A dead cellar mount lies there. */
static errint_t detach_dead(const char *mountpoint, const char *source,
                            const struct mount_line *l, char **cause)
{
	errint_t err;

	if (strcmp(l->source, source) != 0)
		return set_cause(
		    cause, -EBUSY,
		    "\"%s\" holds the dead cellar mount of another store, \"%s\"; "
		    "unmount it first: umount -l %s",
		    mountpoint, l->source, mountpoint);
	err = unmount(mountpoint, true);
	if (err)
		return set_cause_errno(cause, err,
		                       "the dead cellar mount on \"%s\" cannot be detached",
		                       mountpoint);
	log_warn(
	    "\"%s\" held a dead mount of this store, whose daemon did not end properly; "
	    "it was detached",
	    mountpoint);
	return -EAGAIN;
}

/* -EAGAIN: something was detached, look again. */
static errint_t check_once(const char *mountpoint, const char *source, char **cause)
{
	struct mount_line l = {0};
	int fd = open_point(mountpoint);
	errint_t err = 0;

	if (fd < 0)
		return cause_of_open(mountpoint, fd, cause);
	if (mounted_at(fd, &l) && is_fuse(l.type)) {
		bool dead = strcmp(l.type, "fuse.cellar") == 0 && is_dead(fd);

		(void)close(fd); /* it would keep the mount busy */
		fd = -1;
		err = dead ? detach_dead(mountpoint, source, &l, cause)
		           : set_cause(cause, -EBUSY,
		                       "\"%s\" is already mounted (%s of \"%s\")",
		                       mountpoint, l.type, l.source);
	}
	if (fd >= 0)
		(void)close(fd);
	mount_line_clear(&l);
	return err;
}

errint_t mount_check_point(const char *mountpoint, const char *source, char **cause)
{
	errint_t err = -EAGAIN;

	for (int i = 0; err == -EAGAIN && i < DEAD_MOUNTS; i++)
		err = check_once(mountpoint, source, cause);
	return err == -EAGAIN ? set_cause(cause, -EBUSY,
	                                  "\"%s\" holds too many dead mounts", mountpoint)
	                      : err;
}

/* ---- messages of libfuse ---- */

/* While mounting (one thread): the last error becomes the cause. */
static char *mounting_error;
static bool mounting;

__attribute__((format(printf, 2, 0))) static void on_fuse_log(enum fuse_log_level level,
                                                              const char *fmt, va_list ap)
{
	char text[512];
	size_t len;

	(void)vsnprintf(text, sizeof(text), fmt, ap);
	len = strlen(text);
	while (len > 0 && text[len - 1] == '\n')
		text[--len] = '\0';
	if (mounting && level <= FUSE_LOG_ERR) {
		free(mounting_error);
		mounting_error = xstrdup(text);
	} else if (level <= FUSE_LOG_ERR) {
		log_err("%s", text);
	} else if (level <= FUSE_LOG_WARNING) {
		log_warn("%s", text);
	} else {
		log_debug("libfuse %s", text);
	}
}

/* ---- mount options ---- */

/* What libfuse hands on to the kernel; its own words are not for users. */
static bool is_passed_on(const char *word)
{
	static const char *const words[] = {
	    "ro",    "rw",      "suid",    "nosuid",      "dev",
	    "nodev", "exec",    "noexec",  "sync",        "async",
	    "atime", "noatime", "dirsync", "allow_other", "allow_root",
	};
	static const char *const starts[] = {
	    "context=", "fscontext=", "defcontext=", "rootcontext="};

	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		if (strcmp(word, words[i]) == 0)
			return true;
	}
	for (size_t i = 0; i < ARRAY_LEN(starts); i++) {
		if (strncmp(word, starts[i], strlen(starts[i])) == 0)
			return true;
	}
	return false;
}

static errint_t add_kernel_options(char **opts, const char *list)
{
	cleanup_free char *copy = xstrdup(list ? list : "");
	char *save = NULL;

	for (char *w = strtok_r(copy, ",", &save); w; w = strtok_r(NULL, ",", &save)) {
		if (!is_passed_on(w))
			log_debug("mount-option %s has no meaning for cellar", w);
		else if (fuse_opt_add_opt(opts, w) != 0)
			return -ENOMEM;
	}
	return 0;
}

static errint_t build_args(const struct mount *m, bool is_admin, struct fuse_args *args)
{
	cleanup_free char *fsname = xasprintf("fsname=%s", m->source);
	char *opts = NULL;
	/* libfuse's default is nosuid,nodev; what root mounts is like any filesystem. */
	const char *first = is_admin ? "allow_other,suid,dev" : "nosuid,nodev";
	errint_t err = -ENOMEM;

	if (fuse_opt_add_opt(&opts, "default_permissions,subtype=cellar") == 0 &&
	    fuse_opt_add_opt(&opts, first) == 0 &&
	    fuse_opt_add_opt_escaped(&opts, fsname) == 0)
		err = add_kernel_options(&opts, m->options->kernel_options);
	if (!err &&
	    (fuse_opt_add_arg(args, "cellar") != 0 || fuse_opt_add_arg(args, "-o") != 0 ||
	     fuse_opt_add_arg(args, opts) != 0))
		err = -ENOMEM;
	free(opts);
	return err;
}

/* ---- INIT ---- */

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	const struct mount *m = userdata;
	/* Not SPLICE_MOVE: a page that is moved out is gone from the scratch's page cache. */
	unsigned wanted = FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK | FUSE_CAP_SPLICE_WRITE |
	                  FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO |
	                  FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS |
	                  FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_EXPORT_SUPPORT;

	/* Requests through a pipe: large writes gain, and all small ones pay a second call.
	 * With passthrough the large writes do not come here. */
	if (!passthrough_possible(init_hook_offered_flags()))
		wanted |= FUSE_CAP_SPLICE_READ;
	conn->want = conn->capable & wanted;
	/* Our own writes move mtime too, and must not drop what the kernel has cached. */
	if (m->options->shared_store)
		conn->want |= conn->capable & FUSE_CAP_AUTO_INVAL_DATA;
	else
		conn->want |= conn->capable & FUSE_CAP_CACHE_SYMLINKS;
	conn->max_write = MAX_WRITE;
	conn->max_background = MAX_BACKGROUND;
	conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
	conn->time_gran = 1;
}

/* Locks (fcntl, flock) are the kernel's business as on any local filesystem, so there is
 * no getlk, setlk, flock. copy_file_range and ioctl: the kernel falls back. */
static const struct fuse_lowlevel_ops ops = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .statfs = op_statfs,
    .access = op_access,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .releasedir = op_releasedir,
    .fsyncdir = op_fsyncdir,
    .create = op_create,
    .open = op_open,
    .read = op_read,
    .write_buf = op_write_buf,
    .flush = op_flush,
    .fsync = op_fsync,
    .release = op_release,
    .lseek = op_lseek,
    .fallocate = op_fallocate,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .symlink = op_symlink,
    .readlink = op_readlink,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .rename = op_rename,
    .link = op_link,
    .setxattr = op_setxattr,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .removexattr = op_removexattr,
};

/* The kernel's own read-ahead is 128 KiB for FUSE; INIT can only make it smaller. More of it means
 * fewer and larger requests (measured: 1.3 to 2.4 times the throughput). Root's to set; where
 * it cannot be, reads are only slower. */
static void set_read_ahead(const struct mount *m)
{
	struct mount_line l = {0};
	cleanup_free char *path = NULL;
	cleanup_fd int fd = -1;
	char text[16];
	int len = snprintf(text, sizeof(text), "%u\n", READ_AHEAD >> 10);

	if (!find_mount(m->mount_id, &l))
		return;
	path = xasprintf("/sys/class/bdi/%s/read_ahead_kb", l.device);
	mount_line_clear(&l);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)len) != len)
		log_debug("read-ahead of the mount stays as it is: %s: %s", path,
		          strerror(errno));
}

/* ---- start ---- */

/* On the loop thread that answered INIT, before any other request is served. */
static void on_init_answered(void *ctx)
{
	struct mount *m = ctx;

	set_read_ahead(m); /* the kernel has cut it to what libfuse knows */
	if (passthrough_begin(fuse_session_fd(m->se), &m->refused) < 0)
		fuse_session_exit(m->se);
	else if (m->ready)
		m->ready(m->ready_ctx);
}

static errint_t start_session(struct mount *m, struct fuse_args *args)
{
	static const struct fuse_custom_io io = {
	    .read = init_hook_read,
	    .writev = init_hook_writev,
	    .splice_receive = init_hook_splice_receive,
	    .splice_send = init_hook_splice_send,
	};

	m->se = fuse_session_new(args, &ops, sizeof(ops), m);
	if (!m->se)
		return -EINVAL;
	if (fuse_session_mount(m->se, m->mountpoint) != 0)
		return -EIO;
	m->mount_id = top_mount_id(m->mountpoint);
	init_hook_arm(on_init_answered, m);
	return fuse_session_custom_io(m->se, &io, fuse_session_fd(m->se));
}

static struct mount *mount_alloc(const struct mount_config *c)
{
	struct mount *m = xcalloc(1, sizeof(*m));

	m->tree = c->tree;
	m->pool = c->pool;
	m->options = c->options;
	m->mountpoint = xstrdup(c->mountpoint);
	m->source = xstrdup(c->source);
	m->uid = geteuid();
	m->gid = getegid();
	m->privileged = m->uid == 0;
	m->timeout_s = c->options->shared_store ? TIMEOUT_SHARED : TIMEOUT_S;
	m->mount_id = -1;
	m->ready = c->ready;
	m->ready_ctx = c->ready_ctx;
	lock_init(&m->lock, LOCK_LEAF);
	lock_cond_init(&m->changed);
	return m;
}

errint_t mount_start(const struct mount_config *c, struct mount **ret, char **cause)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct mount *m = mount_alloc(c);
	errint_t err;

	fuse_set_log_func(on_fuse_log);
	mounting = true;
	err = passthrough_prepare(m->options, m->pool, &m->refused);
	if (err) {
		mounting = false;
		*cause = steal_pointer(&m->refused);
		mount_free(m);
		return err;
	}
	err = build_args(m, m->privileged, &args);
	if (!err)
		err = start_session(m, &args);
	mounting = false;
	fuse_opt_free_args(&args);
	if (err) {
		(void)set_cause(cause, err, "cannot mount on \"%s\": %s", m->mountpoint,
		                mounting_error ? mounting_error
		                               : "fusermount3 refused, see its message");
		free(steal_pointer(&mounting_error));
		mount_free(m);
		return err;
	}
	free(steal_pointer(&mounting_error));
	m->store_workers = workers_new("store", STORE_WORKERS, NULL);
	m->pool_workers = workers_new("pool", POOL_WORKERS, NULL);
	m->wait_workers = workers_new("wait", WAIT_WORKERS, NULL);
	*ret = m;
	return 0;
}

/* ---- run and stop ---- */

/* Wakes the thread in fuse_session_loop_mt(): it waits on a semaphore, which a signal with
 * a handler interrupts. */
static int wake_signal(void)
{
	return SIGRTMIN + 4;
}

static void on_wake(int signal)
{
}

static errint_t loop(struct mount *m)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int r;

	if (!config)
		return -ENOMEM;
	/* All of them may stay idle: they are few, and making them anew costs more. */
	fuse_loop_cfg_set_max_threads(config, LOOP_THREADS);
	fuse_loop_cfg_set_clone_fd(config, 0);
	r = fuse_session_loop_mt(m->se, config);
	fuse_loop_cfg_destroy(config);
	return r > 0 ? -r : r;
}

static bool loop_begins(struct mount *m)
{
	bool begins;

	lock_take(&m->lock);
	begins = !m->stopping;
	m->looping = begins;
	m->looper = pthread_self();
	lock_drop(&m->lock);
	return begins;
}

static void loop_ended(struct mount *m)
{
	atomic_store(&m->ended, true);
	lock_take(&m->lock);
	m->looping = false;
	pthread_cond_broadcast(&m->changed);
	lock_drop(&m->lock);
}

errint_t mount_run(struct mount *m, char **cause)
{
	struct sigaction wake = {.sa_handler = on_wake}, old_wake;
	sigset_t only_wake, old_mask;
	errint_t err = 0;

	(void)sigaction(wake_signal(), &wake, &old_wake);
	(void)sigemptyset(&only_wake);
	(void)sigaddset(&only_wake, wake_signal());
	(void)pthread_sigmask(SIG_UNBLOCK, &only_wake, &old_mask);
	if (loop_begins(m)) {
		err = loop(m);
		loop_ended(m);
	}
	(void)pthread_sigmask(SIG_SETMASK, &old_mask, NULL);
	(void)sigaction(wake_signal(), &old_wake, NULL);

	/* A store worker may hand its request on to the others. */
	workers_stop(steal_pointer(&m->store_workers));
	workers_stop(steal_pointer(&m->pool_workers));
	workers_stop(steal_pointer(&m->wait_workers));
	requests_stop(m);
	open_items_close(m);
	passthrough_end();
	if (m->refused) {
		*cause = steal_pointer(&m->refused);
		err = -EOPNOTSUPP;
	}
	return err;
}

/* Whether our mount is what lies on the mount point. Numbers of mounts are used again, so
 * the connection must be alive too: then the number is still ours. */
static bool is_mounted(const struct mount *m)
{
	struct pollfd device = {.fd = fuse_session_fd(m->se)};

	if (m->mount_id < 0 || poll(&device, 1, 0) < 0 || (device.revents & POLLERR))
		return false;
	return top_mount_id(m->mountpoint) == m->mount_id;
}

/* False: the mount is still in use, but nobody finds it any more. */
static bool unmount_ours(const struct mount *m)
{
	errint_t err;

	if (!is_mounted(m))
		return false; /* unmounted before, or something lies over it */
	if (unmount(m->mountpoint, false) == 0)
		return true;
	err = unmount(m->mountpoint, true);
	if (err)
		log_warn("\"%s\" cannot be unmounted: %s", m->mountpoint, strerror(-err));
	else
		log_info(
		    "\"%s\" was in use when it was unmounted; files that are open there "
		    "answer errors from now on",
		    m->mountpoint);
	return false;
}

void mount_stop(struct mount *m)
{
	uint64_t patience_ms;

	lock_take(&m->lock);
	m->stopping = true;
	lock_drop(&m->lock);
	patience_ms = unmount_ours(m) ? END_WAIT_MS : 0;

	lock_take(&m->lock);
	while (m->looping && patience_ms > 0) {
		(void)lock_wait_ms(&m->lock, &m->changed, MIN_OF(patience_ms, 100U));
		patience_ms -= MIN_OF(patience_ms, 100U);
	}
	/* The signal may come between libfuse's look at the flag and its wait: again. */
	while (m->looping) {
		fuse_session_exit(m->se);
		(void)pthread_kill(m->looper, wake_signal());
		(void)lock_wait_ms(&m->lock, &m->changed, WAKE_MS);
	}
	lock_drop(&m->lock);
}

/* libfuse's own unmount goes by the path, whatever lies there now, unless it finds the
 * connection dead. So it gets a dead one: a pipe that nobody reads in place of the device,
 * which also ends what is left of the connection. */
static void disconnect(struct fuse_session *se)
{
	int fd = fuse_session_fd(se), broken[2];

	if (fd < 0 || pipe2(broken, O_CLOEXEC) != 0)
		return;
	(void)close(broken[0]);
	if (dup3(broken[1], fd, O_CLOEXEC) >= 0)
		fuse_session_unmount(se);
	(void)close(broken[1]);
}

void mount_free(struct mount *m)
{
	if (!m)
		return;
	/* NULL after mount_run() */
	workers_stop(m->store_workers);
	workers_stop(m->pool_workers);
	workers_stop(m->wait_workers);
	requests_stop(m);
	if (m->se) {
		if (is_mounted(m))
			(void)unmount(m->mountpoint, true);
		disconnect(m->se);
		fuse_session_destroy(m->se);
	}
	(void)pthread_cond_destroy(&m->changed);
	lock_clear(&m->lock);
	passthrough_end();
	free(m->refused);
	free(m->mountpoint);
	free(m->source);
	free(m);
}

void mount_invalidate(struct mount *m, uint64_t ino)
{
	lock_assert_none();
	/* off < 0: attributes only. An inode that the kernel does not know is fine. */
	if (!atomic_load(&m->ended))
		(void)fuse_lowlevel_notify_inval_inode(m->se, ino, -1, 0);
}
