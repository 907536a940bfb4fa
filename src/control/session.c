/*
 * A session: requests read, handed to their commands, answered.
 *
 * Invariant:
 *  (K1) Every request gets exactly one result or error, unless the peer is gone.
 * For (K2) and (K3) see commands.c.
 */
#include "control/commands.h"

#include <string.h>
#include <unistd.h>

#include "base/log.h"

/* ---- sending ---- */

bool control_session_stopped(const struct control_session *s)
{
	return __atomic_load_n(&s->stop, __ATOMIC_RELAXED);
}

/* After a failure the session is over. */
void control_session_send(struct control_session *s, json_t *object)
{
	if (control_session_stopped(s)) {
		json_decref(object);
		return;
	}
	if (protocol_send_fd(s->stream.fd, object, s->result_fd, s->idle_ms) < 0)
		__atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
	if (s->result_fd >= 0)
		close(s->result_fd);
	s->result_fd = -1;
}

static void session_error(struct control_session *s, errint_t err, const char *text)
{
	const char *name = strerrorname_np(-err);

	control_session_send(s, json_pack("{s:o,s:s}", "error", protocol_string(text),
	                                  "errno", name ? name : "EIO"));
}

/* ---- life ---- */

void control_session_init(struct control_session *s, const struct control_context *c,
                          int fd, uid_t uid)
{
	memset(s, 0, sizeof(*s));
	s->context = c;
	protocol_stream_init(&s->stream, fd);
	s->stream.line_max = PROTOCOL_REQUEST_MAX;
	s->result_fd = -1;
	s->uid = uid;
	s->privileged = uid == 0 || uid == geteuid();
	s->idle_ms = PROTOCOL_IDLE_MS;
}

void control_session_clear(struct control_session *s)
{
	protocol_stream_clear(&s->stream);
	if (s->result_fd >= 0)
		close(s->result_fd);
	s->result_fd = -1;
}

static void session_greet(struct control_session *s)
{
	const struct control_context *c = s->context;

	control_session_send(s, json_pack("{s:i,s:i,s:s,s:o,s:o}", "cellar",
	                                  PROTOCOL_VERSION, "pid", (int)getpid(), "state",
	                                  c->is_draining(c->ctx) ? "draining" : "running",
	                                  "mountpoint", protocol_string(c->mountpoint),
	                                  "store", protocol_string(c->store->path)));
}

static errint_t parse_inodes(const json_t *request, struct control_inodes *ret,
                             char **cause)
{
	const json_t *list = json_object_get(request, "inodes");
	size_t count = json_array_size(list);

	if (!list)
		return 0;
	if (!json_is_array(list))
		return set_cause(cause, -EINVAL, "\"inodes\" must be a list of numbers");
	if (count > PROTOCOL_INODES_MAX)
		return set_cause(cause, -E2BIG, "%zu inodes in one request; at most %d",
		                 count, PROTOCOL_INODES_MAX);
	if (count == 0)
		return 0;
	ret->ino = xcalloc(count, sizeof(*ret->ino));
	for (size_t i = 0; i < count; i++) {
		const json_t *item = json_array_get(list, i);

		if (!json_is_integer(item) || json_integer_value(item) <= 0)
			return set_cause(cause, -EINVAL,
			                 "\"inodes\" must be a list of positive numbers");
		ret->ino[i] = (uint64_t)json_integer_value(item);
	}
	ret->count = count;
	return 0;
}

static errint_t run_command(struct control_session *s, const json_t *request, json_t **ret,
                            char **cause)
{
	const char *name = json_string_value(json_object_get(request, "command"));
	const struct control_command *command = name ? control_command_find(name) : NULL;
	struct control_inodes inodes = {0};
	errint_t r = 0;

	if (!name)
		return set_cause(cause, -EINVAL, "the request names no \"command\"");
	if (!command)
		return set_cause(cause, -EOPNOTSUPP, "no such command: \"%.100s\"", name);
	if ((command->flags & COMMAND_PRIVILEGED) && !s->privileged)
		return set_cause(cause, -EPERM,
		                 "only root and the user who runs this cellar may %s",
		                 command->name);
	if (command->flags & COMMAND_INODES)
		r = parse_inodes(request, &inodes, cause);
	if (r == 0)
		r = command->run(s, &inodes, ret, cause);
	free(inodes.ino);
	return r;
}

/* Answers one request. */
static void session_answer(struct control_session *s, const json_t *request)
{
	cleanup_free char *cause = NULL;
	json_t *result = NULL;
	errint_t r;

	s->progress_sent_ms = 0;
	s->request = request;
	r = run_command(s, request, &result, &cause);
	s->request = NULL;
	if (r == 0 && !result)
		r = -ENOMEM;
	if (r < 0)
		session_error(s, r, cause ? cause : strerror(-r));
	else
		control_session_send(s, json_pack("{s:O}", "result", result));
	json_decref(result);
	__atomic_store_n(&s->ending, false, __ATOMIC_RELAXED);
}

/* What cannot be answered by a command ends the session. */
static void session_refuse(struct control_session *s, errint_t err)
{
	switch (err) {
	case -ENODATA:
		break;
	case -EPROTO:
		session_error(s, err,
		              "this cellard speaks version 1 of the control protocol");
		break;
	case -EBADMSG:
		session_error(s, err, "a request is one JSON object on one line");
		break;
	case -EMSGSIZE:
		session_error(s, err, "the line is too long");
		break;
	case -ETIMEDOUT:
		session_error(s, err, "no request for too long");
		break;
	default:
		log_debug("control: a connection ended: %s", strerror(-err));
		break;
	}
	__atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
}

void control_session_serve(struct control_session *s)
{
	session_greet(s);
	while (!control_session_stopped(s)) {
		const json_t *version;
		json_t *request = NULL;
		errint_t r = protocol_read(&s->stream, s->idle_ms, &request);

		version = json_object_get(request, "version");
		if (r == 0 && json_integer_value(version) != PROTOCOL_VERSION)
			r = -EPROTO;
		if (r == 0)
			session_answer(s, request);
		else
			session_refuse(s, r);
		json_decref(request);
	}
}
