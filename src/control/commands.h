/*
 * What the daemon answers to each command of the control protocol.
 *
 * A session is one connection: server.c makes one for each, tests make them on one end of a
 * socketpair(2). What other threads may touch is marked; the rest belongs to the
 * connection's thread.
 *
 * Adding a command: a row in the table of commands.c with its handler, a line in
 * protocol.h, a cmd-NAME.c in cellarctl.
 */
#ifndef CELLAR_CONTROL_COMMANDS_H
#define CELLAR_CONTROL_COMMANDS_H

#include "control/protocol.h"
#include "control/server.h"

struct control_session {
	const struct control_context *context;
	struct protocol_stream stream;
	uid_t uid;       /* the peer's */
	bool privileged; /* root or the daemon's user */
	uint64_t idle_ms;
	uint64_t progress_sent_ms;
	const json_t *request; /* being answered, borrowed */
	int result_fd;         /* goes with its result; owned, -1: none */
	/* Read and written by any thread, with __atomic only: */
	volatile bool stop; /* the daemon ends, or the peer is gone */
	bool ending;        /* the request is umount: the daemon waits for its result */
};

/* ---- sessions (session.c) ---- */

/* Borrows fd; idle_ms is PROTOCOL_IDLE_MS. */
void control_session_init(struct control_session *s, const struct control_context *c,
                          int fd, uid_t uid);
void control_session_clear(struct control_session *s);

/* Greets, then answers requests until the peer goes, misbehaves or is idle for too long, or
 * stop is set and the socket shut down. Never waits for a peer longer than idle_ms. */
void control_session_serve(struct control_session *s);

/* For handlers: one object more before the result (stolen). After a failure the session is
 * over, and nothing is sent any more. */
void control_session_send(struct control_session *s, json_t *object);
bool control_session_stopped(const struct control_session *s);

/* ---- commands (commands.c) ---- */

enum control_command_flags {
	COMMAND_PRIVILEGED = 1, /* for root and the daemon's user only */
	COMMAND_INODES = 2,     /* takes "inodes" */
};

struct control_inodes {
	uint64_t *ino;
	size_t count; /* 0: everything */
};

struct control_command {
	const char *name;
	unsigned flags;
	/* 0 and the result object, or -errno with a cause. */
	errint_t (*run)(struct control_session *s, const struct control_inodes *inodes,
	                json_t **ret, char **cause);
};

/* NULL: no such command. */
const struct control_command *control_command_find(const char *name);

#endif
