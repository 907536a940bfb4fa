/*
 * lost+found over the control protocol: what lies there, one file of it as a descriptor, and
 * its end. Restoring is done by cellarctl, through the mount, like any program that writes a
 * file: so it has the promises that any program has.
 */
#include "control/lost.h"

#include <string.h>

#include "base/text.h"
#include "pool/lost.h"
#include "store/names.h"

struct lost_run {
	struct control_session *session;
	json_t *only; /* the one that was asked for, instead of sending all */
	bool one;
	uint64_t count;
};

/* NULL as null. The names of files may be anything: what is not UTF-8 is escaped for showing,
 * and told in hex for using. */
static json_t *hex_string(const char *s)
{
	cleanup_free char *hex = xmalloc(2 * strlen(s) + 1);
	char *to = hex;

	for (; *s; s++, to += 2)
		(void)snprintf(to, 3, "%02x", (unsigned char)*s);
	*to = '\0';
	return json_string(hex);
}

static json_t *time_string(const struct timespec *t)
{
	return json_string(text_time(t).s);
}

static json_t *entry_json(const struct pool_lost *e)
{
	cleanup_free char *path = *e->hint ? name_decode_path(e->hint) : NULL;
	const struct record *r = &e->record;
	bool tail = e->has_record && r->kind == RECORD_TAIL;
	json_t *j = json_object();

	json_object_set_new(j, "name", protocol_string(e->name));
	json_object_set_new(j, "path", protocol_string(path));
	json_object_set_new(j, "path_hex", path ? hex_string(path) : json_null());
	json_object_set_new(j, "number",
	                    e->has_record ? json_integer((json_int_t)r->ino) : json_null());
	json_object_set_new(j, "size_bytes", json_integer((json_int_t)e->size));
	json_object_set_new(j, "state",
	                    json_string(!e->has_record             ? "unknown"
	                                : r->state == RECORD_DIRTY ? "dirty"
	                                                           : "clean"));
	json_object_set_new(j, "kind",
	                    json_string(!e->regular      ? "no file"
	                                : !e->has_record ? "unknown"
	                                : tail           ? "tail"
	                                                 : "whole"));
	json_object_set_new(j, "tail_from_bytes",
	                    tail ? json_integer((json_int_t)MIN_OF(r->ask, INT64_MAX))
	                         : json_null());
	json_object_set_new(j, "synced_bytes",
	                    e->has_record && r->sync_seq > 0
	                        ? json_integer((json_int_t)r->sync_size)
	                        : json_null());
	json_object_set_new(j, "modified", time_string(&e->mtime));
	json_object_set_new(j, "set_aside", time_string(&e->since));
	json_object_set_new(j, "why", *e->why ? protocol_string(e->why) : json_null());
	json_object_set_new(j, "token", json_string(e->token));
	return j;
}

static errint_t lost_entry(void *ctx, const struct pool_lost *e)
{
	struct lost_run *run = ctx;
	json_t *j = entry_json(e);

	run->count++;
	if (run->one) {
		json_decref(run->only);
		run->only = j;
		return 0;
	}
	control_session_send(run->session, json_pack("{s:o}", "entry", j));
	return control_session_stopped(run->session) ? -ECANCELED : 0;
}

static const char *member(const struct control_session *s, const char *name)
{
	return json_string_value(json_object_get(s->request, name));
}

errint_t control_lost(struct control_session *s, const struct control_inodes *inodes,
                      json_t **ret, char **cause)
{
	struct lost_run run = {.session = s, .one = json_object_get(s->request, "name")};
	const char *name = member(s, "name");
	errint_t r;

	if (run.one && !name)
		return set_cause(cause, -EINVAL, "\"name\" must be a string");
	if (!run.one) {
		r = pool_each_lost(s->context->pool, lost_entry, &run);
		if (r < 0)
			return set_cause_errno(cause, r, "cannot read lost+found");
		*ret = json_pack("{s:I}", "entries", (json_int_t)run.count);
		return 0;
	}
	r = pool_lost_get(s->context->pool, name, lost_entry, &run, &s->result_fd, cause);
	if (r == 0 && !run.only)
		r = set_cause(cause, -ENOENT, "it went meanwhile");
	if (r == 0)
		*ret = json_pack("{s:O}", "entry", run.only);
	json_decref(run.only);
	return r;
}

errint_t control_discard(struct control_session *s, const struct control_inodes *inodes,
                         json_t **ret, char **cause)
{
	const char *name = member(s, "name"), *token = member(s, "token");
	struct pool_stats left;
	errint_t r;

	if (!name || !token)
		return set_cause(
		    cause, -EINVAL,
		    "discard needs the \"name\" and the \"token\" of an entry");
	r = pool_lost_discard(s->context->pool, name, token, cause);
	if (r < 0)
		return r;
	pool_get_stats(s->context->pool, &left);
	*ret = json_pack("{s:I}", "left", (json_int_t)left.lost);
	return 0;
}
