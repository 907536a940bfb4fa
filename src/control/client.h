/*
 * cellarctl's end of the control protocol.
 *
 * A daemon is found by asking each socket which mount it serves; a path is led to its mount
 * by the mount table alone, so that a mount that hangs is never touched. A server is
 * believed only if it is root's or the caller's (SO_PEERCRED); root also believes the owner
 * of the mount that it asks about.
 */
#ifndef CELLAR_CONTROL_CLIENT_H
#define CELLAR_CONTROL_CLIENT_H

#include <jansson.h>

#include "base/error.h"
#include "control/protocol.h"

struct control_client {
	int fd;
	pid_t pid; /* as the kernel tells it, in our pid namespace */
	uid_t uid; /* whose daemon it is */
	bool draining;
	char *mountpoint; /* of these two, what is not UTF-8 came escaped */
	char *store;
	struct protocol_stream stream;
};

/* Connects to every socket that answers, of root's and the caller's daemons. malloc'ed
 * array, by mount point. Dead sockets are passed over. */
errint_t control_find_all(struct control_client **ret, size_t *ret_n);
void control_client_close(struct control_client *c);
void control_clients_free(struct control_client *c, size_t n);

/* A mounted cellar as the mount table has it, and a path in it. */
struct control_mount {
	dev_t dev;    /* st_dev of everything in it */
	uid_t uid;    /* who mounted it */
	char *source; /* the store's path, as findmnt shows it */
	char *root;   /* what of the cellar is mounted here: "/", or a bind mount's part */
	char *mountpoint; /* of the mount (or bind mount) in which path lies */
	char *path;       /* absolute; symbolic links resolved as far as mountpoint */
};

/* Which cellar mount does path lie in? Does not touch it. -ENODEV: none ("... is no
 * cellar"), or what stands in the way of finding out. */
errint_t control_locate(const char *path, struct control_mount *ret, char **cause);
void control_mount_copy(const struct control_mount *m, struct control_mount *ret);
void control_mount_clear(struct control_mount *m);
/* Whether the mount is still in the mount table; whether any cellar of this source is. */
bool control_mount_exists(const struct control_mount *m);
bool control_source_is_mounted(const char *source);

/* The daemon that serves the mount. -ECONNREFUSED: none answers. */
errint_t control_connect(const struct control_mount *m, struct control_client *ret,
                         char **cause);

/* Sends a request and reads to its end; each progress / failure / entry object goes to `each` (may
 * be NULL). *ret: the result object (json_decref it). -EREMOTEIO with cause for an error
 * reply, -ECONNRESET when the daemon went. */
errint_t control_call(struct control_client *c, json_t *request, /* stolen */
                      void (*each)(void *ctx, const char *kind, json_t *object), void *ctx,
                      json_t **ret, char **cause);

#endif
