/*
 * The control socket: one accepting thread, one thread for each connection.
 *
 * Guarantees:
 *  (S1) A socket in the directory is either ours, or another live daemon's, or refuses
 *       connections; those that refuse are removed by the next daemon that starts. Binding
 *       and removing happen under a lock of the directory, so that nobody takes a socket
 *       that is bound and not listening yet for a dead one.
 *  (S2) We remove the socket at the end only if it is the one we made (device and inode).
 *  (S3) A peer that hangs costs one of PROTOCOL_CLIENTS_MAX connections for at most
 *       PROTOCOL_IDLE_MS, and nothing else; those who may do everything keep
 *       PROTOCOL_CLIENTS_KEPT of them to themselves.
 *
 * Threads: `clients` and the counts are under lock; a connection's thread puts itself on
 * `done` as its last act, and the accepting thread (at the end control_stop()) joins it.
 */
#include "control/server.h"

#include <dirent.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include "utlist.h"

#include "base/log.h"
#include "base/sysio.h"
#include "base/workers.h"
#include "control/commands.h"
#include "control/protocol.h"

#define NAMES_TRIED 16
#define END_POLL_MS 50

struct client {
	struct client *prev, *next;
	struct control_server *server;
	pthread_t thread;
	int fd;
	struct control_session session;
};

struct control_server {
	/* constant after start */
	struct control_context context;
	int listen_fd;
	int wake_fd; /* eventfd: something is to be joined, or the end */
	pthread_t thread;
	char *dir;
	int dir_fd;
	char name[32];
	dev_t dev;
	ino_t ino;

	struct lock lock; /* LOCK_LEAF */
	struct client *clients, *done;
	unsigned count, others; /* clients; those of them that are not privileged */
	bool stopping;
};

/* ---- connections ---- */

static void wake(struct control_server *s)
{
	uint64_t one = 1;

	/* Can fail only when the counter is full: then it is awake anyway. */
	while (write(s->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void *client_main(void *arg)
{
	struct client *c = arg;
	struct control_server *s = c->server;

	control_session_serve(&c->session);
	lock_take(&s->lock);
	DL_DELETE(s->clients, c);
	DL_APPEND(s->done, c);
	s->count--;
	if (!c->session.privileged)
		s->others--;
	lock_drop(&s->lock);
	wake(s);
	return NULL;
}

static void client_free(struct client *c)
{
	control_session_clear(&c->session);
	close(c->fd);
	free(c);
}

/* Joins the connections that have ended. */
static void reap(struct control_server *s)
{
	struct client *done, *c, *next;

	lock_take(&s->lock);
	done = s->done;
	s->done = NULL;
	lock_drop(&s->lock);
	DL_FOREACH_SAFE (done, c, next) {
		pthread_join(c->thread, NULL);
		DL_DELETE(done, c);
		client_free(c);
	}
}

static void refuse(int fd, const char *text, const char *name)
{
	/* One short line fits any socket buffer: no waiting. */
	(void)protocol_send(fd, json_pack("{s:s,s:s}", "error", text, "errno", name), 0);
	close(fd);
}

/* Takes the client in, if there is room. */
static errint_t client_add(struct control_server *s, struct client *c)
{
	bool other = !c->session.privileged;
	errint_t r = 0;

	lock_take(&s->lock);
	if (s->stopping)
		r = -ESHUTDOWN;
	else if (s->count >= PROTOCOL_CLIENTS_MAX ||
	         (other && s->others >= PROTOCOL_CLIENTS_MAX - PROTOCOL_CLIENTS_KEPT))
		r = -EUSERS;
	if (r == 0)
		r = thread_start(&c->thread, "control-client", client_main, c);
	if (r == 0) {
		DL_APPEND(s->clients, c);
		s->count++;
		s->others += other;
	}
	lock_drop(&s->lock); /* only now can the thread end itself */
	return r;
}

static void accept_one(struct control_server *s)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct client *c;
	errint_t r;
	int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
			log_warn("control: cannot accept a connection: %s",
			         strerror(errno));
		return;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
		close(fd);
		return;
	}
	c = xcalloc(1, sizeof(*c));
	c->server = s;
	c->fd = fd;
	control_session_init(&c->session, &s->context, fd, cred.uid);
	r = client_add(s, c);
	if (r == 0)
		return;
	refuse(fd, "too many connections", strerrorname_np(-r));
	control_session_clear(&c->session);
	free(c);
}

static bool is_stopping(struct control_server *s)
{
	bool stopping;

	lock_take(&s->lock);
	stopping = s->stopping;
	lock_drop(&s->lock);
	return stopping;
}

static void *server_main(void *arg)
{
	struct control_server *s = arg;

	while (!is_stopping(s)) {
		struct pollfd p[2] = {
		    {.fd = s->listen_fd, .events = POLLIN},
		    {.fd = s->wake_fd, .events = POLLIN},
		};
		uint64_t count;
		int n = poll(p, 2, -1);

		if (n < 0 && errno != EINTR) {
			log_err("control: poll failed: %s; cellarctl will not get through",
			        strerror(errno));
			break;
		}
		if (n > 0 && p[1].revents)
			(void)!read(s->wake_fd, &count, sizeof(count));
		reap(s);
		if (n > 0 && (p[0].revents & POLLIN)) {
			accept_one(s);
		} else if (n > 0 && p[0].revents) {
			log_err(
			    "control: the socket failed; cellarctl will not get through");
			break;
		}
	}
	return NULL;
}

/* ---- the socket ---- */

static bool name_is_socket(const char *name)
{
	size_t len = strlen(name);

	return len > 5 && strcmp(name + len - 5, ".sock") == 0;
}

static errint_t sweep_one(void *ctx, const char *name, unsigned char type)
{
	struct control_server *s = ctx;
	int fd;

	if (type != DT_SOCK || !name_is_socket(name))
		return 0;
	fd = protocol_connect(s->dir_fd, name, 0);
	if (fd >= 0)
		close(fd);
	else if (fd == -ECONNREFUSED && sys_unlinkat(s->dir_fd, name, 0) == 0)
		log_debug("control: removed the dead socket \"%s/%s\"", s->dir, name);
	return 0;
}

static errint_t bind_name(struct control_server *s)
{
	struct sockaddr_un addr;
	errint_t r;

	/* Another pid namespace may share the directory: its pids are not ours. */
	for (int i = 0; i < NAMES_TRIED; i++) {
		if (i == 0)
			snprintf(s->name, sizeof(s->name), "%d.sock", (int)getpid());
		else
			snprintf(s->name, sizeof(s->name), "%d-%d.sock", (int)getpid(), i);
		r = protocol_address(s->dir_fd, s->name, &addr);
		if (r < 0)
			return r;
		if (bind(s->listen_fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
			return 0;
		if (errno != EADDRINUSE)
			return -errno;
	}
	return -EADDRINUSE;
}

/* Under the directory's lock. */
static errint_t bind_locked(struct control_server *s)
{
	struct stat st;
	errint_t r;

	(void)sys_walk_dir(s->dir_fd, sweep_one, s);
	r = bind_name(s);
	if (r < 0)
		return r;
	r = sys_fstatat(s->dir_fd, s->name, &st, AT_SYMLINK_NOFOLLOW);
	if (r == 0) {
		s->dev = st.st_dev;
		s->ino = st.st_ino;
		/* The directory is ours alone, so that the name is the one just bound. */
		if (fchmodat(s->dir_fd, s->name, geteuid() == 0 ? 0666 : 0600, 0) < 0)
			r = -errno;
	}
	if (r == 0 && listen(s->listen_fd, PROTOCOL_CLIENTS_MAX) < 0)
		r = -errno;
	if (r < 0)
		(void)sys_unlinkat(s->dir_fd, s->name, 0);
	return r;
}

static errint_t server_bind(struct control_server *s, char **cause)
{
	cleanup_fd int lock_fd = -1;
	errint_t r = protocol_make_socket_dir(geteuid(), &s->dir, cause);

	if (r < 0)
		return r;
	s->dir_fd = sys_openat(AT_FDCWD, s->dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
	r = s->dir_fd;
	if (r >= 0) {
		lock_fd =
		    sys_openat(s->dir_fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
		r = lock_fd;
	}
	if (r >= 0)
		r = flock(lock_fd, LOCK_EX) < 0 ? -errno : 0;
	if (r == 0)
		r = bind_locked(s);
	if (r < 0)
		return set_cause_errno(cause, r, "cannot make the control socket in \"%s\"",
		                       s->dir);
	log_debug("control: listening on \"%s/%s\"", s->dir, s->name);
	return 0;
}

static void server_unbind(struct control_server *s)
{
	struct stat st;

	if (s->ino && sys_fstatat(s->dir_fd, s->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    st.st_dev == s->dev && st.st_ino == s->ino)
		(void)sys_unlinkat(s->dir_fd, s->name, 0);
}

/* ---- start and stop ---- */

static void server_free(struct control_server *s)
{
	if (s->listen_fd >= 0)
		close(s->listen_fd);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	if (s->dir_fd >= 0)
		close(s->dir_fd);
	lock_clear(&s->lock);
	free(s->dir);
	free(s);
}

errint_t control_start(const struct control_context *c, struct control_server **ret,
                       char **cause)
{
	struct control_server *s = xcalloc(1, sizeof(*s));
	errint_t r;

	s->context = *c;
	s->dir_fd = -1;
	lock_init(&s->lock, LOCK_LEAF);
	s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = s->listen_fd < 0 || s->wake_fd < 0 ? -errno : 0;
	if (r < 0)
		set_cause_errno(cause, r, "cannot make the control socket");
	if (r == 0)
		r = server_bind(s, cause);
	if (r == 0) {
		r = thread_start(&s->thread, "control", server_main, s);
		if (r < 0)
			set_cause_errno(cause, r, "cannot start the control thread");
	}
	if (r < 0) {
		server_unbind(s);
		server_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

/* Tells the connections to end; nobody is added any more. Returns how many are left. */
static unsigned end_clients(struct control_server *s)
{
	struct client *c;
	unsigned left;

	lock_take(&s->lock);
	DL_FOREACH (s->clients, c) {
		if (__atomic_load_n(&c->session.ending, __ATOMIC_RELAXED))
			continue; /* its result is still to be sent */
		__atomic_store_n(&c->session.stop, true, __ATOMIC_RELAXED);
		shutdown(c->fd, SHUT_RDWR);
	}
	left = s->count;
	lock_drop(&s->lock);
	return left;
}

void control_stop(struct control_server *s)
{
	if (!s)
		return;
	server_unbind(s);
	lock_take(&s->lock);
	s->stopping = true;
	lock_drop(&s->lock);
	wake(s);
	pthread_join(s->thread, NULL);
	while (end_clients(s) > 0) {
		struct pollfd p = {.fd = s->wake_fd, .events = POLLIN};
		uint64_t count;

		/* Look again now and then: whose end was put off wakes nobody. */
		if (poll(&p, 1, END_POLL_MS) > 0)
			(void)!read(s->wake_fd, &count, sizeof(count));
		reap(s);
	}
	reap(s);
	server_free(s);
}
