/*
 * Lines of JSON over a stream socket, and where the sockets are.
 *
 * Guarantees: nothing read makes us keep more than PROTOCOL_LINE_MAX bytes; a peer that
 * sends or takes slowly costs at most the timeout. No function here keeps state beyond its
 * arguments; one stream belongs to one thread. shutdown(2) of the descriptor by another
 * thread ends every wait.
 */
#include "control/protocol.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sysio.h"
#include "base/text.h"

#define READ_PIECE 4096

/* ---- lines ---- */

void protocol_stream_init(struct protocol_stream *s, int fd)
{
	memset(s, 0, sizeof(*s));
	s->fd = fd;
	s->passed_fd = -1;
	s->line_max = PROTOCOL_LINE_MAX;
}

void protocol_stream_clear(struct protocol_stream *s)
{
	free(s->buf);
	if (s->passed_fd >= 0)
		close(s->passed_fd);
	protocol_stream_init(s, -1);
}

/* Waits until fd is ready for events, has failed or was hung up (both show at the next
 * call). -ETIMEDOUT at deadline_ms of the monotonic clock. */
static errint_t wait_ready(int fd, short events, uint64_t deadline_ms)
{
	for (;;) {
		struct pollfd p = {.fd = fd, .events = events};
		uint64_t now = clock_mono_ms();
		int wait_ms = -1;
		int n;

		if (deadline_ms != PROTOCOL_NO_TIMEOUT)
			wait_ms = now >= deadline_ms
			              ? 0
			              : (int)MIN_OF(deadline_ms - now, (uint64_t)60000);
		n = poll(&p, 1, wait_ms);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && deadline_ms != PROTOCOL_NO_TIMEOUT &&
		    clock_mono_ms() >= deadline_ms)
			return -ETIMEDOUT;
	}
}

static uint64_t deadline_after(uint64_t timeout_ms)
{
	return timeout_ms == PROTOCOL_NO_TIMEOUT ? timeout_ms
	                                         : clock_mono_ms() + timeout_ms;
}

/* Room for READ_PIECE more bytes and a NUL. */
static errint_t stream_make_room(struct protocol_stream *s)
{
	size_t want = s->end - s->start + READ_PIECE + 1;
	char *bigger;

	if (s->start > 0) {
		memmove(s->buf, s->buf + s->start, s->end - s->start);
		s->scanned -= s->start;
		s->end -= s->start;
		s->start = 0;
	}
	if (want <= s->allocated)
		return 0;
	want = MAX_OF(want, 2 * s->allocated);
	bigger = realloc(s->buf, want);
	if (!bigger)
		return -ENOMEM;
	s->buf = bigger;
	s->allocated = want;
	return 0;
}

/* Room for one descriptor; what else is sent the kernel closes. */
union control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int))];
};

static void take_passed(struct protocol_stream *s, struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		int fd;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
		    c->cmsg_len != CMSG_LEN(sizeof(fd)))
			continue;
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
		if (s->passed_fd >= 0)
			close(s->passed_fd);
		s->passed_fd = fd;
	}
}

static ssize_t receive_with_fds(struct protocol_stream *s, void *buf, size_t len)
{
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	union control control = {.bytes = {0}};
	struct msghdr m = {
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = control.bytes,
	    .msg_controllen = sizeof(control.bytes),
	};
	ssize_t n = recvmsg(s->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n >= 0)
		take_passed(s, &m);
	return n;
}

/* One recv(2). -EAGAIN: nothing there. */
static errint_t stream_receive(struct protocol_stream *s)
{
	errint_t r = stream_make_room(s);
	ssize_t n;

	if (r < 0)
		return r;
	n = s->takes_fds ? receive_with_fds(s, s->buf + s->end, READ_PIECE)
	                 : recv(s->fd, s->buf + s->end, READ_PIECE, MSG_DONTWAIT);
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	if (n == 0)
		return -ENODATA;
	s->end += (size_t)n;
	return 0;
}

/* Hands out the first line of the buffer, if it is complete. */
static bool stream_take_line(struct protocol_stream *s, char **ret, size_t *ret_len)
{
	char *line_end;

	if (s->scanned == s->end)
		return false;
	line_end = memchr(s->buf + s->scanned, '\n', s->end - s->scanned);
	if (!line_end) {
		s->scanned = s->end;
		return false;
	}
	*line_end = '\0';
	*ret = s->buf + s->start;
	*ret_len = (size_t)(line_end - *ret);
	s->start = s->scanned = (size_t)(line_end + 1 - s->buf);
	return true;
}

errint_t protocol_read_line(struct protocol_stream *s, uint64_t timeout_ms, char **ret,
                            size_t *ret_len)
{
	uint64_t deadline_ms = deadline_after(timeout_ms);

	while (!stream_take_line(s, ret, ret_len)) {
		errint_t r;

		if (s->end - s->start > s->line_max)
			return -EMSGSIZE;
		r = stream_receive(s);
		if (r == -EAGAIN)
			r = wait_ready(s->fd, POLLIN, deadline_ms);
		else if (r == 0 && clock_mono_ms() > deadline_ms &&
		         !memchr(s->buf + s->scanned, '\n', s->end - s->scanned))
			r = -ETIMEDOUT; /* drips, and never comes to wait */
		if (r < 0)
			return r;
	}
	return *ret_len > s->line_max ? -EMSGSIZE : 0;
}

errint_t protocol_read(struct protocol_stream *s, uint64_t timeout_ms, json_t **ret)
{
	size_t len;
	char *line;
	json_t *j;
	errint_t r = protocol_read_line(s, timeout_ms, &line, &len);

	if (r < 0)
		return r;
	j = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(j)) {
		json_decref(j);
		return -EBADMSG;
	}
	*ret = j;
	return 0;
}

static ssize_t send_some(int fd, const char *p, size_t len, int passed)
{
	struct iovec iov = {.iov_base = (char *)(uintptr_t)p, .iov_len = len};
	union control control = {.bytes = {0}};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (passed >= 0) {
		m.msg_control = control.bytes;
		m.msg_controllen = sizeof(control.bytes);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(passed));
		memcpy(CMSG_DATA(&control.align), &passed, sizeof(passed));
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static errint_t send_all(int fd, const char *p, size_t len, int passed,
                         uint64_t deadline_ms)
{
	while (len > 0) {
		ssize_t n = send_some(fd, p, len, passed);
		errint_t r;

		if (n >= 0) {
			passed = -1; /* it went with the first byte */
			p += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		r = wait_ready(fd, POLLOUT, deadline_ms);
		if (r < 0)
			return r;
	}
	return 0;
}

errint_t protocol_send(int fd, json_t *object, uint64_t timeout_ms)
{
	return protocol_send_fd(fd, object, -1, timeout_ms);
}

errint_t protocol_send_fd(int fd, json_t *object, int passed, uint64_t timeout_ms)
{
	char *text =
	    object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;
	errint_t r = -ENOMEM;
	size_t len;

	json_decref(object);
	if (!text)
		return r;
	len = strlen(text);
	text[len] = '\n'; /* in the place of the NUL */
	r = len > PROTOCOL_LINE_MAX
	        ? -EMSGSIZE
	        : send_all(fd, text, len + 1, passed, deadline_after(timeout_ms));
	free(text);
	return r;
}

json_t *protocol_string(const char *s)
{
	cleanup_free char *escaped = NULL;
	json_t *j;

	if (!s)
		return json_null();
	j = json_string(s);
	if (j)
		return j;
	escaped = text_escape(s);
	return json_string(escaped);
}

/* ---- sockets ---- */

#define ROOT_DIR "/run/cellar"

/* $XDG_RUNTIME_DIR if it is really uid's: su(1) leaves that of the user before, and another
 * user's environment says nothing about where theirs are. */
static const char *runtime_dir(uid_t uid)
{
	const char *dir = uid == geteuid() ? getenv("XDG_RUNTIME_DIR") : NULL;
	struct stat st;

	if (!dir || dir[0] != '/' || sys_fstatat(AT_FDCWD, dir, &st, 0) < 0)
		return NULL;
	return S_ISDIR(st.st_mode) && st.st_uid == uid ? dir : NULL;
}

/* The directory of a user's own daemon. */
static char *own_dir(uid_t uid)
{
	const char *runtime;

	if (uid == 0)
		return xstrdup(ROOT_DIR);
	runtime = runtime_dir(uid);
	if (runtime)
		return xasprintf("%s/cellar", runtime);
	return xasprintf("/tmp/cellar-%u", (unsigned)uid);
}

/* A daemon started in a login session, asked from a job without one (or the other way
 * round), must be found too: so both of a user's places are named. */
size_t protocol_socket_dirs(uid_t uid, char *ret[PROTOCOL_DIRS_MAX])
{
	size_t n = 0;
	char *other;

	ret[n++] = own_dir(uid);
	if (uid == 0)
		return n;
	if (strncmp(ret[0], "/tmp/", 5) == 0)
		other = xasprintf("/run/user/%u/cellar", (unsigned)uid);
	else
		other = xasprintf("/tmp/cellar-%u", (unsigned)uid);
	ret[n++] = other;
	ret[n++] = xstrdup(ROOT_DIR);
	return n;
}

errint_t protocol_make_socket_dir(uid_t uid, char **ret, char **cause)
{
	cleanup_free char *dir = own_dir(uid);
	mode_t mode = uid == 0 ? 0755 : 0700;
	cleanup_fd int fd = -1;
	struct stat st;
	errint_t r;

	r = sys_mkdirat(AT_FDCWD, dir, mode);
	if (r < 0 && r != -EEXIST)
		return set_cause_errno(
		    cause, r, "cannot make the directory \"%s\" for the control socket",
		    dir);
	fd = sys_openat(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
	r = fd < 0 ? fd : sys_fstat(fd, &st);
	if (r < 0)
		return set_cause_errno(
		    cause, r, "cannot open the directory \"%s\" for the control socket",
		    dir);
	if (st.st_uid != uid)
		return set_cause(
		    cause, -EPERM,
		    "the directory \"%s\" for the control socket belongs to user "
		    "%u, not to %u",
		    dir, (unsigned)st.st_uid, (unsigned)uid);
	if ((st.st_mode & 07777) != mode) {
		r = sys_fchmod(fd, mode);
		if (r < 0)
			return set_cause_errno(cause, r, "cannot change the mode of \"%s\"",
			                       dir);
	}
	*ret = steal_pointer(&dir);
	return 0;
}

errint_t protocol_address(int dirfd, const char *name, struct sockaddr_un *ret)
{
	int n;

	memset(ret, 0, sizeof(*ret));
	ret->sun_family = AF_UNIX;
	n = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", dirfd,
	             name);
	return n < 0 || (size_t)n >= sizeof(ret->sun_path) ? -ENAMETOOLONG : 0;
}

int protocol_connect(int dirfd, const char *name, uint64_t timeout_ms)
{
	/* connect(2) on a Unix socket waits for room in the queue as long as a send may. */
	struct timeval wait = {.tv_sec = (time_t)(timeout_ms / 1000),
	                       .tv_usec = (suseconds_t)(timeout_ms % 1000 * 1000)};
	cleanup_fd int fd = -1;
	struct sockaddr_un addr;
	errint_t r = protocol_address(dirfd, name, &addr);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (timeout_ms == 0)
		wait.tv_usec = 1; /* 0 would mean for ever */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -errno;
	return steal_fd(&fd);
}
