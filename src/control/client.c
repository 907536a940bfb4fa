/*
 * Finding daemons and asking them.
 *
 * The mount table (/proc/self/mountinfo) says in which mount a path lies: from the root
 * mount down, the mount that is mounted on the one before at the shortest prefix of the
 * path. Symbolic links are resolved by hand, component by component, and only as long as
 * the way is outside every cellar: what a dead daemon left mounted would hang or fail.
 *
 * One thread; nothing is kept between calls.
 */
#include "control/client.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/sysio.h"

#define MOUNTINFO   "/proc/self/mountinfo"
#define LINKS_MAX   40
#define GREETING_MS 5000
#define SEND_MS     30000
#define CONNECT_MS  2000

/* ---- the mount table ---- */

struct mount_entry {
	int id, parent;
	dev_t dev;
	uid_t uid;
	bool is_cellar;
	char *root;
	char *mountpoint;
	char *source;
};

struct mounts {
	struct mount_entry *entries;
	size_t count, allocated;
};

static void mounts_clear(struct mounts *m)
{
	for (size_t i = 0; i < m->count; i++) {
		free(m->entries[i].root);
		free(m->entries[i].mountpoint);
		free(m->entries[i].source);
	}
	free(m->entries);
	memset(m, 0, sizeof(*m));
}

/* Blanks, tabs, line ends and backslashes stand there as \ooo. In place. */
static void mountinfo_unescape(char *s)
{
	char *to = s;

	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' &&
		    s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
			*to++ =
			    (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 4;
		} else {
			*to++ = *s++;
		}
	}
	*to = '\0';
}

static uid_t mountinfo_user(const char *super_options)
{
	const char *p = super_options ? strstr(super_options, "user_id=") : NULL;

	return p ? (uid_t)strtoul(p + strlen("user_id="), NULL, 10) : 0;
}

/* "36 35 98:0 /root /mnt/point opts [optional ...] - fstype source superopts" */
static bool mountinfo_parse(char *line, struct mount_entry *ret)
{
	char *save = NULL;
	char *field[6];
	char *word, *type, *source;
	unsigned major_no, minor_no;

	for (size_t i = 0; i < ARRAY_LEN(field); i++) {
		field[i] = strtok_r(i == 0 ? line : NULL, " \n", &save);
		if (!field[i])
			return false;
	}
	do
		word = strtok_r(NULL, " \n", &save);
	while (word && strcmp(word, "-") != 0);
	type = strtok_r(NULL, " \n", &save);
	source = strtok_r(NULL, " \n", &save);
	if (!source || sscanf(field[2], "%u:%u", &major_no, &minor_no) != 2)
		return false;
	ret->uid = mountinfo_user(strtok_r(NULL, " \n", &save));
	ret->id = atoi(field[0]);
	ret->parent = atoi(field[1]);
	ret->dev = makedev(major_no, minor_no);
	ret->is_cellar = strcmp(type, "fuse.cellar") == 0;
	mountinfo_unescape(field[3]);
	mountinfo_unescape(field[4]);
	mountinfo_unescape(source);
	ret->root = xstrdup(field[3]);
	ret->mountpoint = xstrdup(field[4]);
	ret->source = xstrdup(source);
	return true;
}

static bool mounts_has(const struct mounts *m, int id)
{
	bool found = false;

	for (size_t i = 0; i < m->count && !found; i++)
		found = m->entries[i].id == id;
	return found;
}

static const struct mount_entry *mounts_root(const struct mounts *m)
{
	for (size_t i = 0; i < m->count; i++) {
		const struct mount_entry *e = &m->entries[i];

		if (strcmp(e->mountpoint, "/") == 0 &&
		    (e->id == e->parent || !mounts_has(m, e->parent)))
			return e;
	}
	return NULL;
}

static struct mount_entry *mounts_add(struct mounts *m)
{
	if (m->count == m->allocated) {
		m->allocated = m->allocated ? 2 * m->allocated : 64;
		m->entries = xrealloc(m->entries, m->allocated * sizeof(*m->entries));
	}
	return &m->entries[m->count];
}

/* In a chroot whose root is no mount point the table has no "/": the mounts that are seen
 * hang from one that is not. */
static void mounts_add_unseen_root(struct mounts *m)
{
	struct mount_entry *e;
	size_t i = 0;

	while (i < m->count && mounts_has(m, m->entries[i].parent))
		i++;
	if (i == m->count || mounts_root(m))
		return;
	e = mounts_add(m);
	memset(e, 0, sizeof(*e));
	e->id = m->entries[i].parent;
	e->parent = -1;
	e->root = xstrdup("/");
	e->mountpoint = xstrdup("/");
	e->source = xstrdup("");
	m->count++;
}

static errint_t mounts_read(struct mounts *ret)
{
	FILE *f = fopen(MOUNTINFO, "re");
	char *line = NULL;
	size_t size = 0;

	memset(ret, 0, sizeof(*ret));
	if (!f)
		return -errno;
	while (getline(&line, &size, f) >= 0) {
		if (mountinfo_parse(line, mounts_add(ret)))
			ret->count++;
	}
	free(line);
	fclose(f);
	mounts_add_unseen_root(ret);
	return 0;
}

/* Whether path is dir or lies below it. */
static bool path_is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	if (strcmp(dir, "/") == 0)
		return true;
	return strncmp(path, dir, len) == 0 && (path[len] == '\0' || path[len] == '/');
}

/* The mount that a canonical path lies in. */
static const struct mount_entry *mounts_cover(const struct mounts *m, const char *path)
{
	const struct mount_entry *at = mounts_root(m);

	while (at) {
		const struct mount_entry *next = NULL;

		for (size_t i = 0; i < m->count; i++) {
			const struct mount_entry *e = &m->entries[i];

			if (e->parent == at->id && e != at &&
			    path_is_below(path, e->mountpoint) &&
			    (!next || strlen(e->mountpoint) < strlen(next->mountpoint)))
				next = e;
		}
		if (!next)
			break;
		at = next;
	}
	return at;
}

/* ---- from a path to its mount ---- */

struct walk {
	const struct mounts *mounts;
	char *done; /* canonical, "" is the root */
	char *rest; /* still to walk */
	unsigned links;
};

static bool walk_in_cellar(const struct walk *w, const char *path)
{
	const struct mount_entry *e = mounts_cover(w->mounts, path);

	return e && e->is_cellar;
}

/* Puts a link's target in front of what is left. */
static errint_t walk_follow(struct walk *w, const char *target)
{
	char *rest;

	if (++w->links > LINKS_MAX)
		return -ELOOP;
	rest = xasprintf("%s/%s", target, w->rest);
	free(w->rest);
	w->rest = rest;
	if (target[0] == '/')
		w->done[0] = '\0';
	return 0;
}

static errint_t walk_component(struct walk *w, const char *name)
{
	char target[PATH_MAX];
	cleanup_free char *next = NULL;
	ssize_t n;

	if (strcmp(name, ".") == 0)
		return 0;
	if (strcmp(name, "..") == 0) {
		char *slash = strrchr(w->done, '/');

		if (slash)
			*slash = '\0';
		return 0;
	}
	next = xasprintf("%s/%s", w->done, name);
	if (!walk_in_cellar(w, next)) {
		n = sys_readlinkat(AT_FDCWD, next, target, sizeof(target) - 1);
		if (n >= 0) {
			target[n] = '\0';
			return walk_follow(w, target);
		}
		if (n != -EINVAL) /* not "is no link" */
			return (errint_t)n;
	}
	free(w->done);
	w->done = steal_pointer(&next);
	return 0;
}

static errint_t walk_all(struct walk *w)
{
	for (;;) {
		size_t skip = strspn(w->rest, "/");
		size_t len = strcspn(w->rest + skip, "/");
		cleanup_free char *name = NULL;
		errint_t r;

		if (len == 0)
			return 0;
		name = strndup(w->rest + skip, len);
		if (!name)
			return -ENOMEM;
		memmove(w->rest, w->rest + skip + len, strlen(w->rest + skip + len) + 1);
		r = walk_component(w, name);
		if (r < 0)
			return r;
	}
}

static errint_t walk_start(struct walk *w, const struct mounts *m, const char *path)
{
	memset(w, 0, sizeof(*w));
	w->mounts = m;
	if (path[0] == '/') {
		w->done = xstrdup("");
	} else {
		w->done = getcwd(NULL, 0);
		if (!w->done)
			return -errno;
		if (w->done[0] != '/') /* "(unreachable)…" */
			return -ENOENT;
		if (strcmp(w->done, "/") == 0)
			w->done[0] = '\0';
	}
	w->rest = xstrdup(path);
	return path[0] ? 0 : -ENOENT;
}

errint_t control_locate(const char *path, struct control_mount *ret, char **cause)
{
	const struct mount_entry *e = NULL;
	struct mounts m;
	struct walk w = {0};
	errint_t r = mounts_read(&m);

	if (r < 0)
		return set_cause_errno(cause, r, "cannot read " MOUNTINFO);
	r = walk_start(&w, &m, path);
	if (r == 0)
		r = walk_all(&w);
	if (r < 0) {
		set_cause_errno(cause, r, "cannot find \"%s\"", path);
	} else {
		e = mounts_cover(&m, w.done[0] ? w.done : "/");
		if (!e || !e->is_cellar)
			r = set_cause(cause, -ENODEV, "\"%s\" is no cellar", path);
	}
	if (r == 0) {
		ret->dev = e->dev;
		ret->uid = e->uid;
		ret->mountpoint = xstrdup(e->mountpoint);
		ret->source = xstrdup(e->source);
		ret->root = xstrdup(e->root);
		ret->path = steal_pointer(&w.done);
	}
	free(w.done);
	free(w.rest);
	mounts_clear(&m);
	return r;
}

void control_mount_copy(const struct control_mount *m, struct control_mount *ret)
{
	*ret = (struct control_mount){
	    .dev = m->dev,
	    .uid = m->uid,
	    .source = xstrdup(m->source),
	    .root = xstrdup(m->root),
	    .mountpoint = xstrdup(m->mountpoint),
	    .path = xstrdup(m->path),
	};
}

void control_mount_clear(struct control_mount *m)
{
	free(m->root);
	free(m->mountpoint);
	free(m->source);
	free(m->path);
	memset(m, 0, sizeof(*m));
}

bool control_mount_exists(const struct control_mount *m)
{
	struct mounts all;
	bool found = false;

	if (mounts_read(&all) < 0)
		return true; /* nothing says that it has gone */
	for (size_t i = 0; i < all.count && !found; i++)
		found = all.entries[i].is_cellar && all.entries[i].dev == m->dev;
	mounts_clear(&all);
	return found;
}

bool control_source_is_mounted(const char *source)
{
	struct mounts all;
	bool found = false;

	if (mounts_read(&all) < 0)
		return false;
	for (size_t i = 0; i < all.count && !found; i++)
		found =
		    all.entries[i].is_cellar && strcmp(all.entries[i].source, source) == 0;
	mounts_clear(&all);
	return found;
}

/* ---- finding daemons ---- */

struct found {
	struct control_client *clients;
	size_t count, allocated;
	uid_t believed; /* besides root and the caller */
	int dir_fd;     /* of the directory being read */
};

void control_client_close(struct control_client *c)
{
	protocol_stream_clear(&c->stream);
	if (c->fd >= 0)
		close(c->fd);
	free(c->mountpoint);
	free(c->store);
	memset(c, 0, sizeof(*c));
	c->fd = -1;
}

void control_clients_free(struct control_client *c, size_t n)
{
	for (size_t i = 0; i < n; i++)
		control_client_close(&c[i]);
	free(c);
}

/* Reads the greeting of a server whose rights are known. */
static bool client_greet(struct control_client *c)
{
	const char *mountpoint, *store, *state;
	json_t *j = NULL;
	bool good;

	if (protocol_read(&c->stream, GREETING_MS, &j) < 0)
		return false;
	mountpoint = json_string_value(json_object_get(j, "mountpoint"));
	store = json_string_value(json_object_get(j, "store"));
	state = json_string_value(json_object_get(j, "state"));
	good = mountpoint && store && json_is_integer(json_object_get(j, "cellar"));
	if (good) {
		c->mountpoint = xstrdup(mountpoint);
		c->store = xstrdup(store);
		c->draining = state && strcmp(state, "draining") == 0;
	}
	json_decref(j);
	return good;
}

static bool client_open(struct control_client *c, const struct found *f, const char *name)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	memset(c, 0, sizeof(*c));
	c->fd = protocol_connect(f->dir_fd, name, CONNECT_MS);
	if (c->fd < 0)
		return false;
	protocol_stream_init(&c->stream, c->fd);
	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	    (cred.uid == 0 || cred.uid == geteuid() || cred.uid == f->believed)) {
		c->pid = cred.pid;
		c->uid = cred.uid;
		if (client_greet(c))
			return true;
	}
	control_client_close(c);
	return false;
}

static errint_t found_add(void *ctx, const char *name, unsigned char type)
{
	struct found *f = ctx;
	size_t len = strlen(name);

	if (type != DT_SOCK || len <= 5 || strcmp(name + len - 5, ".sock") != 0)
		return 0;
	if (f->count == f->allocated) {
		f->allocated = f->allocated ? 2 * f->allocated : 8;
		f->clients = xrealloc(f->clients, f->allocated * sizeof(*f->clients));
	}
	if (client_open(&f->clients[f->count], f, name))
		f->count++;
	return 0;
}

static void found_read_dirs(struct found *f, uid_t uid)
{
	char *dirs[PROTOCOL_DIRS_MAX];
	size_t n = protocol_socket_dirs(uid, dirs);
	struct stat st;

	for (size_t i = 0; i < n; i++) {
		f->dir_fd =
		    sys_openat(AT_FDCWD, dirs[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
		/* Anybody can make a directory of another's name in /tmp. */
		if (f->dir_fd >= 0 && sys_fstat(f->dir_fd, &st) == 0 &&
		    (st.st_uid == 0 || st.st_uid == uid))
			(void)sys_walk_dir(f->dir_fd, found_add, f);
		if (f->dir_fd >= 0)
			close(f->dir_fd);
		free(dirs[i]);
	}
}

static int compare_clients(const void *a, const void *b)
{
	const struct control_client *x = a, *y = b;
	int order = strcmp(x->mountpoint, y->mountpoint);

	return order ? order : (x->pid > y->pid) - (x->pid < y->pid);
}

errint_t control_find_all(struct control_client **ret, size_t *ret_n)
{
	struct found f = {.believed = geteuid()};

	found_read_dirs(&f, geteuid());
	if (f.count > 1)
		qsort(f.clients, f.count, sizeof(*f.clients), compare_clients);
	*ret = f.clients;
	*ret_n = f.count;
	return 0;
}

/* Whether the daemon's mount point is where a mount of this device is: m itself may be a
 * bind mount of it. */
static bool client_serves(const struct control_client *c, const struct mounts *all,
                          dev_t dev)
{
	bool serves = false;

	for (size_t i = 0; i < all->count && !serves; i++) {
		const struct mount_entry *e = &all->entries[i];
		json_t *shown;

		if (!e->is_cellar || e->dev != dev)
			continue;
		shown = protocol_string(e->mountpoint);
		serves = strcmp(json_string_value(shown), c->mountpoint) == 0;
		json_decref(shown);
	}
	return serves;
}

errint_t control_connect(const struct control_mount *m, struct control_client *ret,
                         char **cause)
{
	struct found f = {.believed = geteuid()};
	struct control_client *best = NULL;
	struct mounts all;
	errint_t r = mounts_read(&all);

	if (r < 0)
		return set_cause_errno(cause, r, "cannot read " MOUNTINFO);
	if (geteuid() == 0 && m->uid != 0)
		f.believed = m->uid;
	found_read_dirs(&f, geteuid());
	if (f.believed != geteuid())
		found_read_dirs(&f, f.believed);
	for (size_t i = 0; i < f.count; i++)
		/* One that drains after a plain umount may have had the same mount point. */
		if (client_serves(&f.clients[i], &all, m->dev) &&
		    (!best || (best->draining && !f.clients[i].draining)))
			best = &f.clients[i];
	mounts_clear(&all);
	if (best) {
		*ret = *best;
		memset(best, 0, sizeof(*best));
		best->fd = -1;
	} else {
		r = set_cause(cause, -ECONNREFUSED, "no cellard answers for \"%s\"",
		              m->mountpoint);
	}
	control_clients_free(f.clients, f.count);
	return r;
}

/* ---- asking ---- */

static errint_t reply_error(const json_t *reply, char **cause)
{
	const char *text = json_string_value(json_object_get(reply, "error"));

	return set_cause(cause, -EREMOTEIO, "%s",
	                 text ? text : "the daemon gave no reason");
}

/* 0: more is to come; 1: *ret is the result. */
static int take_reply(json_t *reply,
                      void (*each)(void *ctx, const char *kind, json_t *object), void *ctx,
                      json_t **ret, char **cause)
{
	static const char *const kinds[] = {"progress", "failure", "entry"};
	json_t *result = json_object_get(reply, "result");

	if (json_object_get(reply, "error"))
		return reply_error(reply, cause);
	if (json_is_object(result)) {
		*ret = json_incref(result);
		return 1;
	}
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		json_t *object = json_object_get(reply, kinds[i]);

		if (json_is_object(object) && each)
			each(ctx, kinds[i], object);
	}
	return 0;
}

errint_t control_call(struct control_client *c, json_t *request,
                      void (*each)(void *ctx, const char *kind, json_t *object), void *ctx,
                      json_t **ret, char **cause)
{
	int r;

	json_object_set_new(request, "version", json_integer(PROTOCOL_VERSION));
	/* A server that refuses us may have closed its end already, having said why. */
	r = protocol_send(c->fd, request, SEND_MS);
	if (r < 0 && r != -EPIPE)
		return set_cause_errno(cause, r, "cannot ask cellard (pid %d)",
		                       (int)c->pid);
	do {
		json_t *reply = NULL;

		r = protocol_read(&c->stream, PROTOCOL_NO_TIMEOUT, &reply);
		if (r == -ENODATA || r == -ECONNRESET)
			return set_cause(cause, -ECONNRESET,
			                 "cellard (pid %d) closed the connection",
			                 (int)c->pid);
		if (r < 0)
			return set_cause_errno(cause, r,
			                       "cannot read what cellard (pid %d) says",
			                       (int)c->pid);
		r = take_reply(reply, each, ctx, ret, cause);
		json_decref(reply);
	} while (r == 0);
	return r < 0 ? r : 0;
}
