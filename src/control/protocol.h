/*
 * The control protocol between cellard and cellarctl: one JSON object a line each way over
 * a Unix stream socket. One page, so that it can be spoken by hand with `nc -U`.
 *
 *   server, on connect:
 *     {"cellar":1,"pid":N,"state":"running","mountpoint":"…","store":"…"}
 *   client, any number, one after the other:
 *     {"version":1,"command":"status"}
 *     {"version":1,"command":"flush","inodes":[N,…]}    ([] or absent: everything)
 *     {"version":1,"command":"evict","inodes":[N,…]}
 *     {"version":1,"command":"compact","inodes":[N,…]}
 *     {"version":1,"command":"verify","inodes":[N,…]}   ([] or absent: everything)
 *     {"version":1,"command":"umount"}                  drains, then unmounts
 *     {"version":1,"command":"lost"}                    what lies in lost+found of the pool
 *     {"version":1,"command":"lost","name":"…"}         one of these, its file open for reading
 *                                                       as a descriptor (SCM_RIGHTS) with the
 *                                                       result
 *     {"version":1,"command":"discard","name":"…","token":"…"}
 *                                                       deletes it if it is still the same
 *   server, any number:
 *     {"progress":{"files_done":…,"files_total":…,"bytes_done":…,"bytes_total":…,
 *                  "failed":…}}                         (totals 0: not known)
 *     {"failure":{"path":"…","error":"…"}}
 *     {"entry":{"name":"…","path":"…",…}}               of lost+found
 *   server, once for each request, last:
 *     {"result":{…}}  or  {"error":"sentence","errno":"EPERM"}
 *
 * A peer of another version gets {"error":…,"errno":"EPROTO"} and the connection is closed;
 * so does one that sends what is no JSON object, a line that is too long, or nothing. Any
 * other error leaves the connection open for the next request.
 *
 * Limits: a line of PROTOCOL_LINE_MAX bytes (of a request: PROTOCOL_REQUEST_MAX, since what parsing
 * one takes is a multiple of its length), PROTOCOL_INODES_MAX inodes,
 * PROTOCOL_CLIENTS_MAX connections (PROTOCOL_CLIENTS_KEPT of them for those who may do
 * everything), PROTOCOL_IDLE_MS without a complete line. Strings that are not UTF-8 travel
 * with text_escape().
 *
 * Who may: root and the daemon's user everything; others `status` without paths (no
 * last error text, no failing list), and flush of inodes they own. By SO_PEERCRED.
 * Sockets: /run/cellar/PID.sock (root; directory 0755, socket 0666), else
 * $XDG_RUNTIME_DIR/cellar/PID.sock, else /tmp/cellar-UID/PID.sock (0700, owner checked).
 */
#ifndef CELLAR_CONTROL_PROTOCOL_H
#define CELLAR_CONTROL_PROTOCOL_H

#define PROTOCOL_VERSION      1
#define PROTOCOL_LINE_MAX     (1U << 20)
#define PROTOCOL_REQUEST_MAX  (256U << 10)
#define PROTOCOL_INODES_MAX   10000
#define PROTOCOL_CLIENTS_MAX  64
#define PROTOCOL_CLIENTS_KEPT 16
#define PROTOCOL_IDLE_MS      30000

#include <jansson.h>
#include <sys/un.h>

#include "base/error.h"

/* ---- lines ---- */

#define PROTOCOL_NO_TIMEOUT UINT64_MAX

/* A connection's reading side. It borrows the descriptor. */
struct protocol_stream {
	int fd;
	char *buf;
	size_t allocated;
	size_t start, end; /* what was received and not yet handed out */
	size_t scanned;    /* no line end in [start, scanned) */
	size_t line_max;
	bool takes_fds; /* else what comes with the bytes is closed by the kernel */
	int passed_fd;  /* the last descriptor that came, owned; -1 */
};
void protocol_stream_init(struct protocol_stream *s, int fd);
void protocol_stream_clear(struct protocol_stream *s);

/* The next line without its end, NUL-terminated behind *ret_len bytes (it may hold NULs of
 * its own); valid until the next call. The time is that for the whole line, however slowly
 * it drips. -ENODATA: the peer closed; -EMSGSIZE: longer than line_max;
 * -ETIMEDOUT. */
errint_t protocol_read_line(struct protocol_stream *s, uint64_t timeout_ms, char **ret,
                            size_t *ret_len);

/* Reads a line that must be one JSON object: -EBADMSG if it is not, else as above. */
errint_t protocol_read(struct protocol_stream *s, uint64_t timeout_ms, json_t **ret);

/* Sends one object (stolen, whatever happens) as a line. -EMSGSIZE, -ETIMEDOUT, -EPIPE…; a
 * connection on which it failed may hold half a line and is good for nothing more. */
errint_t protocol_send(int fd, json_t *object, uint64_t timeout_ms);
/* The same, and with its first byte a descriptor (borrowed; -1: none). */
errint_t protocol_send_fd(int fd, json_t *object, int passed, uint64_t timeout_ms);

/* The string as it is if it is UTF-8, else with text_escape(). NULL gives null. */
json_t *protocol_string(const char *s);

/* ---- sockets ---- */

/* The directories where sockets of uid's daemons are looked for, in order, /run/cellar the
 * last; malloc'ed paths. uid 0: /run/cellar only. Returns how many. */
#define PROTOCOL_DIRS_MAX 3
size_t protocol_socket_dirs(uid_t uid, char *ret[PROTOCOL_DIRS_MAX]);
/* Makes the directory for this process's own socket, checks owner and mode. */
errint_t protocol_make_socket_dir(uid_t uid, char **ret, char **cause);

/* The address of `name` in an open directory, by way of /proc/self/fd, so that the length
 * of the directory's path does not matter. -ENAMETOOLONG. */
errint_t protocol_address(int dirfd, const char *name, struct sockaddr_un *ret);
/* Connects without waiting for longer than timeout_ms: a descriptor, or -ECONNREFUSED
 * (nobody behind it), -ENOENT, -EAGAIN (somebody who does not answer)… */
int protocol_connect(int dirfd, const char *name, uint64_t timeout_ms);

#endif
