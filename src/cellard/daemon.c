/*
 * One daemon: start, service, end.
 *
 * Start (daemon_start) is a ladder: what a step made is noted in struct daemon, and
 * daemon_unwind() takes away whatever is there, in reverse, after a failed step as after a
 * whole life. Until ready was called, nothing of ours answers anybody.
 *
 *   mount point free -> store locked -> pool's place locked -> catalog -> tree -> pool
 *   -> intents, recovery -> mounted -> flushers -> control socket -> requests served
 *
 * The end has three causes that may come together:
 *   umount(8)         mount_run() returns; then drain
 *   SIGTERM, SIGINT   drain, then mount_stop(); a second one does not wait for the drain
 *   cellarctl umount  drain, then mount_stop(), by a thread of the control server, which
 *                     waits for what the main thread drains after that, and tells the rest
 *
 *  (D1) All drains of one daemon share one deadline, set by whoever is first: none of them
 *       makes the end later than drain_timeout.
 *  (D2) The lock file says "draining" from the first drain on, so that the next daemon of
 *       this store waits instead of giving up.
 *  (D3) What a drain leaves dirty stays in the pool; it is told in the log, never dropped.
 *
 * Threads: `lock` covers what is marked; the warden thread reads signals; the drainer is
 * made by the warden at the first one. All threads have the ending signals blocked. Nothing
 * here resolves a path once the mount answers.
 */
#include "cellard/daemon.h"

#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#ifdef HAVE_LIBSYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "base/clock.h"
#include "base/log.h"
#include "base/sysio.h"
#include "base/text.h"
#include "base/workers.h"
#include "cellard/places.h"
#include "control/client.h"
#include "control/protocol.h"
#include "control/server.h"
#include "pool/trust.h"

#define ARENAS_MAX    4
#define POLL_MS       50    /* between looks at what another daemon holds */
#define WAIT_EXTRA_MS 10000 /* beyond drain_timeout, for one that drains */
#define WAIT_UNMOUNTED_MS                                                                  \
	5000 /* for one that has no mount: it is just starting or just ending */
#define LOG_NAME      "cellard.log"
#define LOG_KEPT_NAME "cellard.log.1"
#define LOG_MAX_BYTES (1 << 20)

struct daemon {
	/* constant after start */
	const struct daemon_config *config;
	const struct options *options;
	struct store *store;
	struct pool_place place;
	bool has_place; /* and pool does not own it */
	struct catalog *catalog;
	struct tree *tree;
	struct pool *pool;
	char *store_path; /* canonical, as findmnt shows it */
	char *pool_path;
	char *mountpoint; /* canonical */
	struct mount *mount;
	struct control_server *control;
	int log_fd;
	uint64_t started_ms;
	struct timespec started;
	bool over_itself; /* the store lies at or below the mount point */

	/* the warden */
	int signal_fd, end_fd;
	pthread_t warden;
	bool warden_runs;

	/* start only */
	uint64_t waiting_since_ms; /* for another daemon; 0: not */

	struct lock lock; /* LOCK_LEAF */
	/* under lock */
	bool draining, stop_asked;
	uint64_t drain_until_ms;
	pthread_t drainer;
	bool drainer_runs;
	bool drained; /* the mount has ended, and what it left was drained */
	struct pool_stats left;
	pthread_cond_t drained_cond;

	_Atomic bool hurry; /* skip the rest of the drain */
};

/* ---- systemd ---- */

static void tell_systemd(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void tell_systemd(const char *fmt, ...)
{
#ifdef HAVE_LIBSYSTEMD
	cleanup_free char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (text)
		(void)sd_notify(0, text);
#else
	(void)fmt;
#endif
}

/* ---- signals and limits ---- */

static sigset_t ending_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	return set;
}

void daemon_block_signals(void)
{
	sigset_t set = ending_signals();

	(void)pthread_sigmask(SIG_BLOCK, &set, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
	/* Somebody opened a scratch file while we held a lease on it (pool/content.c). */
	(void)signal(SIGIO, SIG_IGN);
}

/* Before the warden runs: has somebody asked us to end? */
static bool end_is_pending(void)
{
	sigset_t set;

	return sigpending(&set) == 0 &&
	       (sigismember(&set, SIGTERM) == 1 || sigismember(&set, SIGINT) == 1);
}

static void set_limits(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &l) < 0)
			log_warn("cannot raise the limit of open files: %s",
			         strerror(errno));
	}
	/* An arena for each of the many threads would keep what a few of them once needed. */
	(void)mallopt(M_ARENA_MAX, ARENAS_MAX);
}

/* ---- waiting for another daemon ---- */

/* Something is held by another daemon (why names it). 0: look again; else it was waited for
 * as long as is right, or never: -EBUSY with that cause. */
static errint_t wait_for_other(struct daemon *d, bool draining, const char *why,
                               char **cause)
{
	struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};
	uint64_t now_ms = clock_mono_ms();
	uint64_t limit_ms;

	if (draining)
		limit_ms = d->options->drain_timeout + WAIT_EXTRA_MS;
	else
		limit_ms = control_source_is_mounted(d->store_path) ? 0 : WAIT_UNMOUNTED_MS;
	if (!d->waiting_since_ms) {
		d->waiting_since_ms = now_ms;
		if (draining)
			log_info("%s; waiting for it", why);
	}
	if (now_ms - d->waiting_since_ms >= limit_ms)
		return set_cause(cause, -EBUSY, "%s", why);
	if (end_is_pending())
		return set_cause(cause, -EINTR, "asked to end while waiting: %s", why);
	(void)nanosleep(&pause, NULL);
	return 0;
}

/* Whether the mount on our mount point is this store's, and if so whether its daemon is
 * about to end. *ret_why: a sentence that names it. */
static bool mounted_by_other(struct daemon *d, bool *ret_draining, char **ret_why)
{
	struct control_mount m = {0};
	struct control_client c;
	bool ours = false;

	if (control_locate(d->options->mountpoint, &m, NULL) == 0) {
		if (strcmp(m.path, m.mountpoint) == 0 &&
		    strcmp(m.source, d->store_path) == 0 &&
		    control_connect(&m, &c, NULL) == 0) {
			ours = true;
			*ret_draining = c.draining;
			*ret_why =
			    xasprintf("the store \"%s\" is in use on \"%s\" by the cellard "
			              "with pid %d",
			              d->options->store, m.mountpoint, (int)c.pid);
			control_client_close(&c);
		}
		control_mount_clear(&m);
	}
	return ours;
}

/* The mount point must be free; where a daemon of this store is just leaving it, it is
 * waited for. */
static errint_t free_mountpoint(struct daemon *d, char **cause)
{
	for (;;) {
		cleanup_free char *why = NULL;
		cleanup_free char *other = NULL;
		bool draining = false;
		errint_t r = mount_check_point(d->options->mountpoint, d->store_path, &why);

		if (r == 0)
			break;
		if (!mounted_by_other(d, &draining, &other))
			return set_cause(cause, r, "%s", why ? why : strerror(-r));
		if (!draining)
			return set_cause(cause, r, "%s", other);
		r = wait_for_other(d, true, other, cause);
		if (r < 0)
			return r;
	}
	d->mountpoint = realpath(d->options->mountpoint, NULL);
	if (!d->mountpoint)
		return set_cause_errno(cause, -errno, "cannot use the mount point \"%s\"",
		                       d->options->mountpoint);
	return 0;
}

/* A store whose disk is not mounted looks like an empty directory: nothing is made in it while
 * the pool that was named has another store already. */
static errint_t check_not_hidden(struct daemon *d, char **cause)
{
	cleanup_free char *id =
	    xasprintf("%s/" NAMES_PRIVATE "/store.id", d->options->store);
	struct uuid owner;
	struct stat st;

	if (!d->options->pool || !d->options->create || d->options->new_pool ||
	    sys_fstatat(AT_FDCWD, id, &st, 0) != -ENOENT ||
	    pool_place_owner(d->options->pool, &owner) < 0)
		return 0;
	return set_cause(
	    cause, -EXDEV,
	    "\"%s\" holds no cellar, but the pool \"%s\" belongs to one (store "
	    "%s); is the store's disk mounted?",
	    d->options->store, d->options->pool, uuid_format(&owner).s);
}

static errint_t open_store(struct daemon *d, char **cause)
{
	unsigned flags = d->options->create ? STORE_CREATE : 0;

	for (;;) {
		cleanup_free char *why = NULL;
		bool draining = false;
		errint_t r =
		    store_open(d->options->store, flags, &d->store, &draining, &why);

		if (r == -EBUSY)
			r = wait_for_other(d, draining, why ? why : "the store is in use",
			                   cause);
		else
			return r < 0 ? set_cause(cause, r, "%s", why ? why : strerror(-r))
			             : 0;
		if (r < 0)
			return r;
	}
}

/* ---- where things lie ---- */

/* How store and mount point lie to each other. */
static errint_t check_nesting(struct daemon *d, char **cause)
{
	cleanup_fd int fd = sys_openat(AT_FDCWD, d->mountpoint, O_PATH | O_DIRECTORY, 0);
	struct stat mount_st, store_st;
	bool below = false;
	errint_t r = fd < 0 ? fd : sys_fstat(fd, &mount_st);

	if (r == 0)
		r = sys_fstat(d->store->root_fd, &store_st);
	if (r == 0)
		r = places_dir_is_below(d->store->root_fd, &mount_st, &d->over_itself);
	if (r == 0)
		r = places_dir_is_below(fd, &store_st, &below);
	if (r < 0)
		return set_cause_errno(cause, r,
		                       "cannot tell where \"%s\" lies from \"%s\"",
		                       d->options->store, d->mountpoint);
	if (below &&
	    !(store_st.st_dev == mount_st.st_dev && store_st.st_ino == mount_st.st_ino))
		return set_cause(cause, -EINVAL,
		                 "the mount point \"%s\" lies inside the store \"%s\"",
		                 d->mountpoint, d->options->store);
	return 0;
}

static errint_t default_embedded(struct daemon *d, char **ret, char **cause)
{
	char path[PATH_MAX];
	ssize_t n = sys_readlinkat(AT_FDCWD, fd_path(d->store->private_fd).s, path,
	                           sizeof(path) - 1);

	if (n < 0)
		return set_cause_errno(cause, (errint_t)n, "cannot tell the path of \"%s\"",
		                       d->options->store);
	path[n] = '\0';
	*ret = xstrdup(path);
	return 0;
}

/* What is mounted on the mount point already may be hidden only by its own cellar. */
static errint_t check_covered(struct daemon *d, char **cause)
{
	struct statx stx;
	struct stat mount_st;
	bool below = false;
	errint_t r = sys_statx(AT_FDCWD, d->mountpoint, 0, STATX_BASIC_STATS, &stx);

	if (r == 0)
		r = sys_fstatat(AT_FDCWD, d->mountpoint, &mount_st, 0);
	if (r == 0)
		r = places_path_is_below(d->store_path, &mount_st, &below);
	if (r == -ENOTDIR)
		return 0; /* of the store: store_open() says it better */
	if (r < 0)
		return set_cause_errno(cause, r,
		                       "cannot tell where \"%s\" lies from \"%s\"",
		                       d->options->store, d->mountpoint);
	if ((stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) && !below)
		return set_cause(
		    cause, -EBUSY,
		    "something is mounted on \"%s\" already, and it is not where the "
		    "store lies",
		    d->mountpoint);
	return 0;
}

static errint_t check_pool(struct daemon *d, const char *path, char **cause)
{
	struct stat mount_st;
	bool below = false;
	errint_t r = sys_fstatat(AT_FDCWD, d->mountpoint, &mount_st, 0);

	if (r == 0)
		r = places_path_is_below(path, &mount_st, &below);
	if (r < 0)
		return set_cause_errno(cause, r, "cannot use the pool \"%s\"", path);
	if (below)
		return set_cause(cause, -EINVAL,
		                 "the pool \"%s\" lies under the mount point \"%s\"", path,
		                 d->mountpoint);
	return 0;
}

static errint_t decide_pool(struct daemon *d, char **cause)
{
	errint_t r = 0;

	if (d->options->pool)
		d->pool_path = xstrdup(d->options->pool);
	else
		r = d->over_itself
		        ? places_pool_outside(&d->store->uuid, &d->pool_path, cause)
		        : default_embedded(d, &d->pool_path, cause);
	return r < 0 ? r : check_pool(d, d->pool_path, cause);
}

static errint_t open_place(struct daemon *d, char **cause)
{
	struct uuid known;
	errint_t r = store_get_pool(d->store, &known, cause);

	while (r == 0 && !d->has_place) {
		cleanup_free char *why = NULL;
		bool draining = false;

		r = pool_place_open(d->pool_path, &d->store->uuid, &known,
		                    d->options->new_pool, &d->place, &draining, &why);
		if (r == 0)
			d->has_place = true;
		else if (r == -EBUSY)
			r = wait_for_other(d, draining, why ? why : "the pool is in use",
			                   cause);
		else
			set_cause(cause, r, "%s", why ? why : strerror(-r));
	}
	/* Durable before anything of this store can be dirty in this pool. */
	if (r == 0 && !uuid_equal(&known, &d->place.uuid))
		r = store_set_pool(d->store, &d->place.uuid, cause);
	return r;
}

/* ---- the log of a daemon in the background ---- */

static errint_t open_log(struct daemon *d, char **cause)
{
	struct stat st;

	if (d->config->foreground)
		return 0;
	if (sys_fstatat(d->place.dirfd, LOG_NAME, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    st.st_size > LOG_MAX_BYTES)
		(void)sys_renameat2(d->place.dirfd, LOG_NAME, d->place.dirfd, LOG_KEPT_NAME,
		                    0);
	d->log_fd = sys_openat(d->place.dirfd, LOG_NAME,
	                       O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0600);
	if (d->log_fd < 0)
		return set_cause_errno(cause, d->log_fd, "cannot open \"%s/%s\"",
		                       d->place.path, LOG_NAME);
	return 0;
}

/* Lets go of whatever the starter gave us: a pipe we held open would never end. */
static void detach_stdio(struct daemon *d)
{
	int null_fd;

	if (d->config->foreground)
		return;
	null_fd = sys_openat(AT_FDCWD, "/dev/null", O_RDWR, 0);
	if (null_fd >= 0) {
		(void)dup2(null_fd, STDIN_FILENO);
		(void)dup2(null_fd, STDOUT_FILENO);
		close(null_fd);
	}
	(void)dup2(d->log_fd, STDERR_FILENO);
	log_show_times(true);
}

/* ---- the end ---- */

static uint64_t drain_begin(struct daemon *d)
{
	bool first;
	uint64_t until_ms;

	lock_take(&d->lock);
	first = !d->draining;
	if (first) {
		d->draining = true;
		d->drain_until_ms = clock_mono_ms() + d->options->drain_timeout;
	}
	until_ms = d->drain_until_ms;
	lock_drop(&d->lock);
	if (first) {
		errint_t r = store_set_state(d->store, "draining", d->mountpoint);

		if (r < 0)
			log_warn("cannot note in \"%s\" that this daemon drains: %s; the "
			         "next one "
			         "may refuse to wait for it",
			         d->store->path, strerror(-r));
		log_info("draining: writing back what is dirty, for at most %s",
		         text_duration(d->options->drain_timeout).s);
		tell_systemd("STOPPING=1\nSTATUS=Writing back what is dirty\n"
		             "EXTEND_TIMEOUT_USEC=%ju",
		             (uintmax_t)(d->options->drain_timeout + WAIT_EXTRA_MS) * 1000);
	}
	return until_ms;
}

/* What a drain passes through to whoever waits for it. */
struct drain_run {
	struct daemon *d;
	pool_progress_fn progress;
	pool_failure_fn failure;
	void *ctx;
};

static bool drain_hurry(void *ctx)
{
	struct drain_run *run = ctx;

	return run->d->hurry;
}

static void drain_progress(void *ctx, const struct pool_progress *pr)
{
	struct drain_run *run = ctx;

	if (run->progress)
		run->progress(run->ctx, pr);
}

static void drain_failure(void *ctx, const char *path, const char *error)
{
	struct drain_run *run = ctx;

	if (run->failure)
		run->failure(run->ctx, path, error);
}

/* 0: everything that was written so far is in the store. */
static errint_t drain(struct daemon *d, pool_progress_fn progress, pool_failure_fn failure,
                      void *progress_ctx)
{
	struct drain_run run = {d, progress, failure, progress_ctx};
	uint64_t until_ms = drain_begin(d);

	return control_flush(d->pool, NULL, until_ms, drain_hurry, drain_progress,
	                     drain_failure, &run, NULL);
}

static bool is_draining(void *ctx)
{
	struct daemon *d = ctx;
	bool draining;

	lock_take(&d->lock);
	draining = d->draining;
	lock_drop(&d->lock);
	return draining;
}

static void stop_mount(struct daemon *d)
{
	bool first;

	lock_take(&d->lock);
	first = !d->stop_asked;
	d->stop_asked = true;
	lock_drop(&d->lock);
	if (first)
		mount_stop(d->mount);
}

/* For cellarctl umount. */
static void umount_and_wait(void *ctx, pool_progress_fn progress, pool_failure_fn failure,
                            void *progress_ctx, struct pool_stats *ret_left)
{
	struct daemon *d = ctx;

	(void)drain(d, progress, failure, progress_ctx);
	stop_mount(d);
	lock_take(&d->lock);
	while (!d->drained)
		lock_wait(&d->lock, &d->drained_cond);
	*ret_left = d->left;
	lock_drop(&d->lock);
}

static void *drainer_main(void *arg)
{
	struct daemon *d = arg;

	(void)drain(d, NULL, NULL, NULL);
	stop_mount(d);
	return NULL;
}

/* A signal that asks us to end. */
static void warden_end(struct daemon *d, unsigned nth)
{
	errint_t r = 0;

	if (nth == 1) {
		lock_take(&d->lock);
		r = thread_start(&d->drainer, "drain", drainer_main, d);
		d->drainer_runs = r == 0;
		lock_drop(&d->lock);
	}
	if (nth > 1 || r < 0) {
		d->hurry = true;
		(void)drain_begin(d);
		stop_mount(d);
	}
}

static void *warden_main(void *arg)
{
	struct daemon *d = arg;
	unsigned ends = 0;

	for (;;) {
		struct pollfd p[2] = {
		    {.fd = d->signal_fd, .events = POLLIN},
		    {.fd = d->end_fd, .events = POLLIN},
		};
		struct signalfd_siginfo info;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return NULL;
		if (p[1].revents)
			return NULL;
		if (!p[0].revents ||
		    read(d->signal_fd, &info, sizeof(info)) != sizeof(info))
			continue;
		if (info.ssi_signo == SIGHUP)
			continue; /* kept for reading the options again */
		log_info("signal %u: ending", info.ssi_signo);
		warden_end(d, ++ends);
	}
}

static errint_t start_warden(struct daemon *d, char **cause)
{
	sigset_t set = ending_signals();
	errint_t r;

	d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	d->end_fd = eventfd(0, EFD_CLOEXEC);
	r = d->signal_fd < 0 || d->end_fd < 0 ? -errno : 0;
	if (r == 0)
		r = thread_start(&d->warden, "signals", warden_main, d);
	d->warden_runs = r == 0;
	return r < 0 ? set_cause_errno(cause, r, "cannot start the signal thread") : 0;
}

static void stop_warden(struct daemon *d)
{
	uint64_t one = 1;

	if (d->warden_runs) {
		while (write(d->end_fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
		pthread_join(d->warden, NULL);
	}
	if (d->drainer_runs)
		pthread_join(d->drainer, NULL);
	d->warden_runs = d->drainer_runs = false;
	if (d->signal_fd >= 0)
		close(d->signal_fd);
	if (d->end_fd >= 0)
		close(d->end_fd);
	d->signal_fd = d->end_fd = -1;
}

/* Nobody need wait for the end any more. */
static void set_drained(struct daemon *d, const struct pool_stats *left)
{
	lock_take(&d->lock);
	if (!d->drained)
		d->left = *left;
	d->drained = true;
	pthread_cond_broadcast(&d->drained_cond);
	lock_drop(&d->lock);
}

/* The mount has ended, nothing is written any more: what is left after this stays. Files
 * that the kernel never released may still count as dirty when all of their bytes are in the
 * store; they are not left. */
static void drain_the_rest(struct daemon *d)
{
	struct pool_stats left = {0};

	if (drain(d, NULL, NULL, NULL) < 0)
		pool_get_stats(d->pool, &left);
	set_drained(d, &left);
	if (left.dirty > 0)
		log_warn(
		    "%ju files, %s stay in the pool \"%s\" and will be flushed at the next "
		    "start",
		    (uintmax_t)left.dirty, text_size(left.dirty_bytes).s, d->pool_path);
	else
		log_info("everything is in the store");
}

/* ---- start ---- */

static void on_pool_notify(void *ctx, uint64_t ino)
{
	struct daemon *d = ctx;

	mount_invalidate(d->mount, ino);
}

static void on_ready(void *ctx)
{
	struct daemon *d = ctx;
	cleanup_free char *notice = NULL;
	cleanup_free char *name = text_escape(d->options->store);

	if (d->store->created)
		notice = xasprintf("initialised a new cellar in %s", name);
	detach_stdio(d);
	log_info("serving \"%s\" on \"%s\"", d->store->path, d->mountpoint);
	if (notice)
		log_info("%s", notice);
	tell_systemd("READY=1\nMAINPID=%d\nSTATUS=Serving %s", (int)getpid(), name);
	d->config->ready(d->config->ctx, notice);
}

/* The mark lies beside the control sockets; where that cannot be had the socket says why. */
static void begin_trust(struct daemon *d)
{
	cleanup_free char *dir = NULL;
	cleanup_free char *cause = NULL;

	(void)protocol_make_socket_dir(geteuid(), &dir, &cause);
	pool_trust_begin(d->pool, dir);
}

static errint_t open_layers(struct daemon *d, char **cause)
{
	const struct options *o = d->options;
	bool rebuilt = false;
	errint_t r;

	r = catalog_open(d->place.dirfd, d->place.path, &d->place.uuid, &d->catalog,
	                 &rebuilt, cause);
	if (r < 0)
		return r;
	if (rebuilt)
		log_warn(
		    "the catalog in \"%s\" was set aside and is made anew from objects and "
		    "scratch files; pins and statistics are lost",
		    d->pool_path);
	r = tree_open(d->store, d->catalog, &d->place.uuid,
	              o->foreign_zst == FOREIGN_ZST_KEEP, o->max_object, &d->tree, cause);
	if (r < 0)
		return r;
	r = pool_new(&d->place, d->tree, o, &d->pool, cause);
	if (r < 0)
		return r;
	d->has_place = false;
	pool_set_notify(d->pool, on_pool_notify, d);
	begin_trust(d);
	r = store_finish_intents(d->store, cause);
	return r < 0 ? r : pool_recover(d->pool, cause);
}

static errint_t start_mount(struct daemon *d, char **cause)
{
	struct mount_config config = {
	    .mountpoint = d->mountpoint,
	    .source = d->store_path,
	    .options = d->options,
	    .tree = d->tree,
	    .pool = d->pool,
	    .ready = on_ready,
	    .ready_ctx = d,
	};

	return mount_start(&config, &d->mount, cause);
}

static errint_t start_control(struct daemon *d, char **cause)
{
	struct control_context c = {
	    .options = d->options,
	    .store = d->store,
	    .catalog = d->catalog,
	    .tree = d->tree,
	    .pool = d->pool,
	    .pool_path = d->pool_path,
	    .mountpoint = d->mountpoint,
	    .started_mono_ms = d->started_ms,
	    .started = d->started,
	    .is_draining = is_draining,
	    .umount = umount_and_wait,
	    .ctx = d,
	};

	return control_start(&c, &d->control, cause);
}

static errint_t start(struct daemon *d, char **cause)
{
	errint_t r;

	d->store_path = places_canonical(d->options->store);
	r = free_mountpoint(d, cause);
	if (r == 0) /* before a store is made for nothing */
		r = check_covered(d, cause);
	if (r == 0 && d->options->pool)
		r = check_pool(d, d->options->pool, cause);
	if (r == 0)
		r = check_not_hidden(d, cause);
	if (r == 0)
		r = open_store(d, cause);
	if (r == 0 && d->waiting_since_ms) {
		/* Time has passed: whoever we waited for, or somebody else, may be there. */
		free(d->mountpoint);
		d->mountpoint = NULL;
		r = free_mountpoint(d, cause);
	}
	if (r == 0)
		r = check_nesting(d, cause);
	if (r == 0)
		r = decide_pool(d, cause);
	if (r == 0)
		r = open_place(d, cause);
	if (r == 0)
		r = open_log(d, cause);
	if (r == 0)
		r = open_layers(d, cause);
	if (r == 0 && end_is_pending())
		r = set_cause(cause, -EINTR, "asked to end before the mount was made");
	if (r == 0)
		r = start_mount(d, cause);
	if (r < 0)
		return r;
	r = pool_start(d->pool);
	if (r < 0)
		return set_cause_errno(cause, r, "cannot start the flushers");
	r = start_control(d, cause);
	if (r == 0) {
		r = store_set_state(d->store, "running", d->mountpoint);
		if (r < 0)
			set_cause_errno(cause, r, "cannot write the lock file of \"%s\"",
			                d->options->store);
	}
	return r < 0 ? r : start_warden(d, cause);
}

/* Takes away what there is, in reverse. */
static void unwind(struct daemon *d)
{
	stop_warden(d);
	set_drained(d, &(struct pool_stats){0}); /* where it never came to a drain */
	control_stop(d->control);
	if (d->mount)
		stop_mount(d); /* not served (any more): only the mount itself goes */
	if (d->pool)
		pool_close(d->pool);
	if (d->mount)
		mount_free(d->mount);
	if (d->tree)
		tree_close(d->tree);
	if (d->catalog)
		catalog_close(d->catalog);
	if (d->has_place)
		pool_place_close(&d->place);
	if (d->store)
		store_close(d->store);
	if (d->log_fd >= 0)
		close(d->log_fd);
	pthread_cond_destroy(&d->drained_cond);
	lock_clear(&d->lock);
	free(d->store_path);
	free(d->pool_path);
	free(d->mountpoint);
}

errint_t daemon_run(const struct daemon_config *config, char **cause)
{
	struct daemon d = {
	    .config = config,
	    .options = config->options,
	    .log_fd = -1,
	    .signal_fd = -1,
	    .end_fd = -1,
	};
	errint_t r;

	lock_init(&d.lock, LOCK_LEAF);
	lock_cond_init(&d.drained_cond);
	d.started_ms = clock_mono_ms();
	d.started = clock_now();
	set_limits();
	r = start(&d, cause);
	if (r == 0) {
		r = mount_run(d.mount, cause);
		if (r < 0 && !*cause)
			set_cause_errno(cause, r, "the mount on \"%s\" ended",
			                d.mountpoint);
		drain_the_rest(&d);
	}
	unwind(&d);
	return r;
}
