/*
 * The control protocol: lines and their limits, what a session answers to nonsense, who may
 * what, and the commands over a real pool. Nothing is mounted; a session runs on one end of
 * a socketpair(2) in a thread of its own, as in the daemon.
 */
#include "harness.h"

#include <pthread.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "catalog/catalog.h"
#include "control/client.h"
#include "control/commands.h"
#include "control/protocol.h"
#include "pool/pool.h"
#include "store/store.h"
#include "tree/resolve.h"

#define SOON_MS 50    /* a time that is to pass */
#define LONG_MS 20000 /* one that must not */

/* ---- lines ---- */

struct pair {
	int ours, theirs;
	struct protocol_stream stream; /* of theirs */
};

static void pair_open(struct pair *p)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	p->ours = fds[0];
	p->theirs = fds[1];
	protocol_stream_init(&p->stream, p->theirs);
}

static void pair_close(struct pair *p)
{
	protocol_stream_clear(&p->stream);
	if (p->ours >= 0)
		close(p->ours);
	close(p->theirs);
}

static void put(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len > 0) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		assert_true(n > 0);
		p += n;
		len -= (size_t)n;
	}
}

static void put_text(int fd, const char *text)
{
	put(fd, text, strlen(text));
}

/* Puts from a thread, because a socket holds less than a long line. */
struct putter {
	int fd;
	char *data;
	size_t len;
	pthread_t thread;
};

static void *putter_main(void *arg)
{
	struct putter *w = arg;
	size_t done = 0;

	while (done < w->len) {
		ssize_t n = send(w->fd, w->data + done, w->len - done, MSG_NOSIGNAL);

		if (n <= 0)
			break; /* the reader has seen enough */
		done += (size_t)n;
	}
	return NULL;
}

static void putter_start(struct putter *w, int fd, char fill, size_t len, const char *end)
{
	w->fd = fd;
	w->len = len + strlen(end);
	w->data = malloc(w->len);
	assert_non_null(w->data);
	memset(w->data, fill, len);
	memcpy(w->data + len, end, strlen(end));
	assert_int_equal(pthread_create(&w->thread, NULL, putter_main, w), 0);
}

static void putter_end(struct putter *w)
{
	pthread_join(w->thread, NULL);
	free(w->data);
}

static void expect_line(struct pair *p, const char *want)
{
	char *line;
	size_t len;

	assert_int_equal(protocol_read_line(&p->stream, LONG_MS, &line, &len), 0);
	assert_int_equal(len, strlen(want));
	assert_string_equal(line, want);
}

static void expect_no_line(struct pair *p, uint64_t timeout_ms, errint_t want)
{
	char *line;
	size_t len;

	assert_int_equal(protocol_read_line(&p->stream, timeout_ms, &line, &len), want);
}

static void test_lines_in_pieces(void **state)
{
	struct pair p;

	pair_open(&p);
	put_text(p.ours, "one\n\nthree\nfo");
	expect_line(&p, "one");
	expect_line(&p, "");
	expect_line(&p, "three");
	expect_no_line(&p, 0, -ETIMEDOUT);
	put_text(p.ours, "u");
	expect_no_line(&p, 0, -ETIMEDOUT);
	put_text(p.ours, "r\nhalf of fi");
	expect_line(&p, "four");
	close(p.ours);
	p.ours = -1;
	expect_no_line(&p, LONG_MS, -ENODATA);
	pair_close(&p);
}

static void test_line_with_nul(void **state)
{
	struct pair p;
	char *line;
	size_t len;

	pair_open(&p);
	put(p.ours, "a\0b\n", 4);
	assert_int_equal(protocol_read_line(&p.stream, LONG_MS, &line, &len), 0);
	assert_int_equal(len, 3);
	assert_memory_equal(line, "a\0b", 4);
	pair_close(&p);
}

static void test_line_limit(void **state)
{
	struct putter w;
	struct pair p;
	char *line;
	size_t len;

	pair_open(&p);
	putter_start(&w, p.ours, 'x', PROTOCOL_LINE_MAX, "\nnext\n");
	assert_int_equal(protocol_read_line(&p.stream, LONG_MS, &line, &len), 0);
	assert_int_equal(len, PROTOCOL_LINE_MAX);
	assert_int_equal(line[len - 1], 'x');
	expect_line(&p, "next");
	putter_end(&w);

	putter_start(&w, p.ours, 'x', PROTOCOL_LINE_MAX + 1, "\n");
	expect_no_line(&p, LONG_MS, -EMSGSIZE);
	shutdown(p.theirs, SHUT_RDWR);
	putter_end(&w);
	pair_close(&p);

	/* One that never ends is given up as soon as it is too long, and not kept. */
	pair_open(&p);
	putter_start(&w, p.ours, 'x', 8 * (size_t)PROTOCOL_LINE_MAX, "");
	expect_no_line(&p, LONG_MS, -EMSGSIZE);
	assert_true(p.stream.allocated <= 4 * (size_t)PROTOCOL_LINE_MAX);
	shutdown(p.theirs, SHUT_RDWR);
	putter_end(&w);
	pair_close(&p);
}

/* Byte by byte, each in time, but never a whole line. */
static void *drip_main(void *arg)
{
	const int *fd = arg;
	struct timespec pause = {.tv_nsec = 1000000};

	while (send(*fd, "x", 1, MSG_NOSIGNAL) == 1)
		(void)nanosleep(&pause, NULL);
	return NULL;
}

static void test_slow_line(void **state)
{
	struct pair p;
	pthread_t thread;
	uint64_t start_ms = clock_mono_ms();

	pair_open(&p);
	assert_int_equal(pthread_create(&thread, NULL, drip_main, &p.ours), 0);
	expect_no_line(&p, SOON_MS, -ETIMEDOUT);
	assert_true(clock_mono_ms() - start_ms >= SOON_MS);
	shutdown(p.theirs, SHUT_RDWR);
	pthread_join(thread, NULL);
	pair_close(&p);
}

static void expect_object(const char *line, errint_t want)
{
	struct pair p;
	json_t *j = NULL;

	pair_open(&p);
	put_text(p.ours, line);
	put_text(p.ours, "\n");
	assert_int_equal(protocol_read(&p.stream, LONG_MS, &j), want);
	assert_int_equal(j != NULL, want == 0);
	json_decref(j);
	pair_close(&p);
}

static void test_objects_only(void **state)
{
	expect_object("{}", 0);
	expect_object(" {\"a\": [1, {\"b\": null}]} ", 0);
	expect_object("", -EBADMSG);
	expect_object("[]", -EBADMSG);
	expect_object("\"x\"", -EBADMSG);
	expect_object("{", -EBADMSG);
	expect_object("{} {}", -EBADMSG);
	expect_object("{\"a\":1,\"a\":2}", -EBADMSG);
	expect_object("{\"a\":\"\xff\xfe\"}", -EBADMSG);
	expect_object("{\"a\":\"\xc0\xaf\"}", -EBADMSG);
	expect_object("{\"a\":99999999999999999999}", -EBADMSG);
	expect_object("nonsense", -EBADMSG);
}

static void test_send_limits(void **state)
{
	char *big = malloc(PROTOCOL_LINE_MAX + 1);
	struct pair p;

	assert_non_null(big);
	memset(big, 'x', PROTOCOL_LINE_MAX);
	big[PROTOCOL_LINE_MAX] = '\0';
	pair_open(&p);
	assert_int_equal(protocol_send(p.theirs, json_pack("{s:s}", "a", big), LONG_MS),
	                 -EMSGSIZE);
	/* Somebody who does not read costs the time given, no more. */
	big[PROTOCOL_LINE_MAX - 100] = '\0';
	assert_int_equal(protocol_send(p.theirs, json_pack("{s:s}", "a", big), SOON_MS),
	                 -ETIMEDOUT);
	close(p.ours);
	p.ours = -1;
	assert_int_equal(protocol_send(p.theirs, json_object(), LONG_MS), -EPIPE);
	assert_int_equal(protocol_send(p.theirs, NULL, LONG_MS), -ENOMEM);
	pair_close(&p);
	free(big);
}

/* A descriptor comes with its object, to whoever wants one, and to nobody else. */
static void test_descriptors(void **state)
{
	struct harness *h = *state;
	struct pair p;
	json_t *j = NULL;
	char buf[8] = "";
	int fd;

	harness_write(h->dirfd, "passed", "bytes", 5);
	fd = openat(h->dirfd, "passed", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	pair_open(&p);
	for (unsigned wanted = 0; wanted < 2; wanted++) {
		p.stream.takes_fds = wanted;
		assert_int_equal(protocol_send_fd(p.ours, json_object(), fd, LONG_MS), 0);
		assert_int_equal(protocol_read(&p.stream, LONG_MS, &j), 0);
		json_decref(j);
		assert_int_equal(p.stream.passed_fd >= 0, wanted);
	}
	assert_int_equal(pread(p.stream.passed_fd, buf, sizeof(buf), 0), 5);
	assert_string_equal(buf, "bytes");
	/* Of many that come, none is left open but the last. */
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(protocol_send_fd(p.ours, json_object(), fd, LONG_MS), 0);
		assert_int_equal(protocol_read(&p.stream, LONG_MS, &j), 0);
		json_decref(j);
		assert_true(p.stream.passed_fd >= 0 && p.stream.passed_fd < fd + 20);
	}
	fd = p.stream.passed_fd;
	protocol_stream_clear(&p.stream);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	pair_close(&p);
}

static void expect_sent_string(const char *in, const char *out)
{
	json_t *j = protocol_string(in);

	assert_string_equal(json_string_value(j), out);
	json_decref(j);
}

static void test_strings(void **state)
{
	json_t *none = protocol_string(NULL);

	assert_true(json_is_null(none));
	expect_sent_string("plain", "plain");
	expect_sent_string("gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f");
	expect_sent_string("back\\slash\n", "back\\slash\n");
	expect_sent_string("bad\xff", "bad\\xff");
}

/* ---- sockets ---- */

static void free_dirs(char **dirs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(dirs[i]);
}

static void test_socket_dirs(void **state)
{
	char *dirs[PROTOCOL_DIRS_MAX];
	size_t n = protocol_socket_dirs(0, dirs);

	assert_int_equal(n, 1);
	assert_string_equal(dirs[0], "/run/cellar");
	free_dirs(dirs, n);

	/* Another user's: our environment must not matter. */
	setenv("XDG_RUNTIME_DIR", "/tmp", 1);
	n = protocol_socket_dirs(geteuid() + 12345, dirs);
	assert_int_equal(n, 3);
	assert_non_null(strstr(dirs[0], "/tmp/cellar-"));
	assert_non_null(strstr(dirs[1], "/run/user/"));
	assert_string_equal(dirs[2], "/run/cellar");
	free_dirs(dirs, n);
	unsetenv("XDG_RUNTIME_DIR");
}

static void test_connect(void **state)
{
	struct harness *h = *state;
	struct sockaddr_un addr;
	char long_name[120];
	int listener, client;

	assert_int_equal(protocol_connect(h->dirfd, "missing.sock", LONG_MS), -ENOENT);
	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	assert_int_equal(protocol_address(h->dirfd, long_name, &addr), -ENAMETOOLONG);

	assert_int_equal(protocol_address(h->dirfd, "a.sock", &addr), 0);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(protocol_connect(h->dirfd, "a.sock", LONG_MS), -ECONNREFUSED);
	assert_int_equal(listen(listener, 1), 0);
	client = protocol_connect(h->dirfd, "a.sock", LONG_MS);
	assert_true(client >= 0);
	close(client);
	close(listener);
	assert_int_equal(protocol_connect(h->dirfd, "a.sock", LONG_MS), -ECONNREFUSED);
}

/* ---- sessions without a pool ---- */

struct talk {
	struct control_context context;
	struct control_session session;
	struct store store; /* only path and uuid */
	pthread_t thread;
	struct pair pair; /* ours: the server's end; theirs: the client's */
	bool draining;
	unsigned umounts;
};

static bool talk_is_draining(void *ctx)
{
	struct talk *t = ctx;

	return __atomic_load_n(&t->draining, __ATOMIC_RELAXED);
}

static void talk_umount(void *ctx, pool_progress_fn progress, pool_failure_fn failure,
                        void *progress_ctx, struct pool_stats *ret_left)
{
	struct talk *t = ctx;
	struct pool_progress pr = {.files_done = 1, .files_total = 3};

	__atomic_store_n(&t->draining, true, __ATOMIC_RELAXED);
	t->umounts++;
	progress(progress_ctx, &pr);
	failure(progress_ctx, "bad/\xff", "No space left on device");
	*ret_left = (struct pool_stats){.dirty = 2, .dirty_bytes = 77};
}

static void *talk_main(void *arg)
{
	struct talk *t = arg;

	control_session_serve(&t->session);
	shutdown(t->pair.ours, SHUT_RDWR);
	return NULL;
}

static void talk_init(struct talk *t)
{
	memset(t, 0, sizeof(*t));
	t->store.path = (char *)(uintptr_t) "/st\xff/ore";
	t->context.store = &t->store;
	t->context.mountpoint = "/mnt";
	t->context.is_draining = talk_is_draining;
	t->context.umount = talk_umount;
	t->context.ctx = t;
}

static void talk_start(struct talk *t, uid_t uid, uint64_t idle_ms)
{
	pair_open(&t->pair);
	control_session_init(&t->session, &t->context, t->pair.ours, uid);
	assert_int_equal(t->session.idle_ms, PROTOCOL_IDLE_MS);
	t->session.idle_ms = idle_ms;
	assert_int_equal(pthread_create(&t->thread, NULL, talk_main, t), 0);
}

static void talk_end(struct talk *t)
{
	shutdown(t->pair.theirs, SHUT_RDWR);
	pthread_join(t->thread, NULL);
	control_session_clear(&t->session);
	pair_close(&t->pair);
}

static json_t *hear(struct talk *t)
{
	json_t *j = NULL;

	assert_int_equal(protocol_read(&t->pair.stream, LONG_MS, &j), 0);
	return j;
}

/* The session is over: nothing more comes. */
static void hear_end(struct talk *t)
{
	expect_no_line(&t->pair, LONG_MS, -ENODATA);
}

static void hear_greeting(struct talk *t)
{
	json_t *j = hear(t);

	assert_int_equal(json_integer_value(json_object_get(j, "cellar")), 1);
	assert_int_equal(json_integer_value(json_object_get(j, "pid")), getpid());
	assert_string_equal(json_string_value(json_object_get(j, "state")), "running");
	assert_string_equal(json_string_value(json_object_get(j, "mountpoint")), "/mnt");
	json_decref(j);
}

static void say(struct talk *t, const char *line)
{
	put_text(t->pair.theirs, line);
	put_text(t->pair.theirs, "\n");
}

static void hear_error(struct talk *t, const char *name)
{
	json_t *j = hear(t);
	const char *text = json_string_value(json_object_get(j, "error"));

	assert_string_equal(json_string_value(json_object_get(j, "errno")), name);
	assert_non_null(text);
	assert_true(strlen(text) > 0);
	json_decref(j);
}

static void test_greeting(void **state)
{
	struct talk t;
	json_t *j;

	talk_init(&t);
	talk_start(&t, geteuid(), LONG_MS);
	j = hear(&t);
	assert_string_equal(json_string_value(json_object_get(j, "store")), "/st\\xff/ore");
	json_decref(j);
	talk_end(&t);
}

/* Each of these ends the connection, after saying why. */
static void test_nonsense_ends(void **state)
{
	static const struct {
		const char *line, *name;
	} cases[] = {
	    {"", "EBADMSG"},
	    {"GET / HTTP/1.1", "EBADMSG"},
	    {"[]", "EBADMSG"},
	    {"{\"version\":1,\"command\":\"status\"", "EBADMSG"},
	    {"{\"version\":1,\"command\":\"sta\xff\"}", "EBADMSG"},
	    {"{}", "EPROTO"},
	    {"{\"command\":\"status\"}", "EPROTO"},
	    {"{\"version\":2,\"command\":\"status\"}", "EPROTO"},
	    {"{\"version\":0,\"command\":\"status\"}", "EPROTO"},
	    {"{\"version\":\"1\",\"command\":\"status\"}", "EPROTO"},
	    {"{\"version\":1.0,\"command\":\"status\"}", "EPROTO"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct talk t;

		talk_init(&t);
		talk_start(&t, geteuid(), LONG_MS);
		hear_greeting(&t);
		say(&t, cases[i].line);
		hear_error(&t, cases[i].name);
		hear_end(&t);
		talk_end(&t);
	}
}

static void test_deep_nesting(void **state)
{
	struct putter w;
	struct talk t;

	talk_init(&t);
	talk_start(&t, geteuid(), LONG_MS);
	hear_greeting(&t);
	putter_start(&w, t.pair.theirs, '[', 200000, "\n");
	hear_error(&t, "EBADMSG");
	putter_end(&w);
	talk_end(&t);
}

static void test_endless_line(void **state)
{
	struct putter w;
	struct talk t;

	talk_init(&t);
	talk_start(&t, geteuid(), LONG_MS);
	hear_greeting(&t);
	putter_start(&w, t.pair.theirs, ' ', 2 * (size_t)PROTOCOL_LINE_MAX, "");
	hear_error(&t, "EMSGSIZE");
	shutdown(t.pair.theirs, SHUT_RDWR);
	putter_end(&w);
	talk_end(&t);
}

/* What parsing takes is a multiple of the length: a request has a limit of its own. */
static void test_long_request(void **state)
{
	struct putter w;
	struct talk t;

	talk_init(&t);
	talk_start(&t, geteuid(), LONG_MS);
	hear_greeting(&t);
	putter_start(&w, t.pair.theirs, ' ', PROTOCOL_REQUEST_MAX + 1, "{}\n");
	hear_error(&t, "EMSGSIZE");
	putter_end(&w);
	talk_end(&t);
}

/* After these the connection is as good as before. */
static void test_wrong_requests(void **state)
{
	static const struct {
		const char *line, *name;
	} cases[] = {
	    {"{\"version\":1}", "EINVAL"},
	    {"{\"version\":1,\"command\":7}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"\"}", "EOPNOTSUPP"},
	    {"{\"version\":1,\"command\":\"format\"}", "EOPNOTSUPP"},
	    {"{\"version\":1,\"command\":\"flush\",\"inodes\":7}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"flush\",\"inodes\":[\"7\"]}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"flush\",\"inodes\":[7.5]}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"flush\",\"inodes\":[0]}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"flush\",\"inodes\":[-1]}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"evict\"}", "EINVAL"},
	    {"{\"version\":1,\"command\":\"evict\",\"inodes\":[]}", "EINVAL"},
	};
	struct talk t;

	talk_init(&t);
	talk_start(&t, geteuid(), LONG_MS);
	hear_greeting(&t);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		say(&t, cases[i].line);
		hear_error(&t, cases[i].name);
	}
	talk_end(&t);
}

static void test_too_many_inodes(void **state)
{
	json_t *inodes = json_array();
	struct talk t;

	for (int i = 0; i <= PROTOCOL_INODES_MAX; i++)
		json_array_append_new(inodes, json_integer(i + 1));
	talk_init(&t);
	talk_start(&t, geteuid(), LONG_MS);
	hear_greeting(&t);
	assert_int_equal(protocol_send(t.pair.theirs,
	                               json_pack("{s:i,s:s,s:o}", "version", 1, "command",
	                                         "flush", "inodes", inodes),
	                               LONG_MS),
	                 0);
	hear_error(&t, "E2BIG");
	talk_end(&t);
}

static void test_others_may_little(void **state)
{
	static const char *const lines[] = {
	    "{\"version\":1,\"command\":\"flush\"}",
	    "{\"version\":1,\"command\":\"flush\",\"inodes\":[]}",
	    "{\"version\":1,\"command\":\"evict\",\"inodes\":[1]}",
	    "{\"version\":1,\"command\":\"verify\"}",
	    "{\"version\":1,\"command\":\"umount\"}",
	    "{\"version\":1,\"command\":\"lost\"}",
	    "{\"version\":1,\"command\":\"lost\",\"name\":\"x\"}",
	    "{\"version\":1,\"command\":\"discard\",\"name\":\"x\",\"token\":\"y\"}",
	};
	struct talk t;

	talk_init(&t);
	talk_start(&t, geteuid() + 1, LONG_MS);
	hear_greeting(&t);
	for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
		say(&t, lines[i]);
		hear_error(&t, "EPERM");
	}
	talk_end(&t);
	assert_int_equal(t.umounts, 0);
}

static void test_idle_client(void **state)
{
	struct talk t;

	talk_init(&t);
	talk_start(&t, geteuid(), SOON_MS);
	hear_greeting(&t);
	hear_error(&t, "ETIMEDOUT");
	hear_end(&t);
	talk_end(&t);
}

/* A client that asks and asks and never reads ends its own session only. */
static void test_client_that_does_not_read(void **state)
{
	static const char line[] = "{\"version\":1,\"command\":\"format\"}\n";
	struct talk t;
	struct timeval patience = {.tv_sec = LONG_MS / 1000};
	ssize_t n;

	talk_init(&t);
	talk_start(&t, geteuid(), SOON_MS);
	assert_int_equal(
	    setsockopt(t.pair.theirs, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)),
	    0);
	do
		n = send(t.pair.theirs, line, sizeof(line) - 1, MSG_NOSIGNAL);
	while (n > 0);
	assert_int_equal(errno, EPIPE); /* shut by the end of the session */
	talk_end(&t);
}

/* ---- sessions over a real pool ---- */

struct cellar {
	struct options options;
	struct store *store;
	struct pool_place place;
	struct catalog *catalog;
	struct tree *tree;
	struct pool *pool;
	char *path;
	struct talk talk;
};

static void cellar_open(struct cellar *c, struct harness *h)
{
	struct uuid none = {{0}};
	bool rebuilt;

	memset(c, 0, sizeof(*c));
	options_init(&c->options);
	c->path = xasprintf("%s/store", h->path);
	assert_int_equal(store_open(c->path, STORE_CREATE, &c->store, NULL, NULL), 0);
	free(c->path);
	c->path = xasprintf("%s/pool", h->path);
	assert_int_equal(
	    pool_place_open(c->path, &c->store->uuid, &none, false, &c->place, NULL, NULL),
	    0);
	assert_int_equal(catalog_open(c->place.dirfd, c->place.path, &c->place.uuid,
	                              &c->catalog, &rebuilt, NULL),
	                 0);
	assert_int_equal(tree_open(c->store, c->catalog, &c->place.uuid, false,
	                           c->options.max_object, &c->tree, NULL),
	                 0);
	assert_int_equal(pool_new(&c->place, c->tree, &c->options, &c->pool, NULL), 0);
	assert_int_equal(pool_recover(c->pool, NULL), 0);
	assert_int_equal(pool_start(c->pool), 0);

	talk_init(&c->talk);
	c->talk.context.store = c->store;
	c->talk.context.options = &c->options;
	c->talk.context.catalog = c->catalog;
	c->talk.context.tree = c->tree;
	c->talk.context.pool = c->pool;
	c->talk.context.pool_path = c->path;
	c->talk.context.started_mono_ms = clock_mono_ms();
	c->talk.context.started = clock_now();
}

static void cellar_close(struct cellar *c)
{
	pool_close(c->pool);
	tree_close(c->tree);
	catalog_close(c->catalog);
	store_close(c->store);
	options_clear(&c->options);
	free(c->path);
}

/* A file of an earlier life of the store, plain, resolved to its node. */
static struct node *cellar_add_plain(struct cellar *c, const char *name)
{
	struct node *n = NULL;
	struct stat st;

	harness_write(c->store->root_fd, name, "plain", 5);
	rmlock_rd(&c->tree->ns);
	assert_int_equal(resolve_name(c->tree, c->tree->root, name, &n, &st), 0);
	rmlock_drop(&c->tree->ns);
	return n;
}

/* The objects up to the last, which is returned; the number of failures before it. */
static json_t *ask(struct talk *t, json_t *request, const char *last,
                   unsigned *ret_failures)
{
	json_t *j;

	*ret_failures = 0;
	assert_int_equal(protocol_send(t->pair.theirs, request, LONG_MS), 0);
	for (;;) {
		json_t *value;

		j = hear(t);
		value = json_object_get(j, last);
		if (value) {
			json_incref(value);
			json_decref(j);
			return value;
		}
		if (json_object_get(j, "failure"))
			(*ret_failures)++;
		else
			assert_non_null(json_object_get(j, "progress"));
		json_decref(j);
	}
}

static json_t *request(const char *command, uint64_t ino)
{
	json_t *j = json_pack("{s:i,s:s}", "version", 1, "command", command);

	if (ino)
		json_object_set_new(j, "inodes", json_pack("[I]", (json_int_t)ino));
	return j;
}

static void assert_number(const json_t *j, const char *name, json_int_t want)
{
	const json_t *value = json_object_get(j, name);

	assert_true(json_is_integer(value));
	assert_int_equal(json_integer_value(value), want);
}

static void test_commands(void **state)
{
	struct cellar c;
	struct node *n;
	unsigned failures;
	json_t *j;

	cellar_open(&c, *state);
	n = cellar_add_plain(&c, "file");
	talk_start(&c.talk, geteuid(), LONG_MS);
	hear_greeting(&c.talk);

	j = ask(&c.talk, request("flush", 0), "result", &failures);
	assert_number(j, "files", 0);
	assert_number(j, "failed", 0);
	json_decref(j);
	j = ask(&c.talk, request("flush", n->ino), "result", &failures);
	assert_number(j, "failed", 0);
	assert_int_equal(failures, 0);
	json_decref(j);

	/* A number that nobody knows is said, and does not end anything. */
	j = ask(&c.talk, request("flush", n->ino + 1000), "result", &failures);
	assert_number(j, "failed", 1);
	assert_int_equal(failures, 1);
	json_decref(j);

	j = ask(&c.talk, request("evict", n->ino), "result", &failures);
	assert_number(j, "cold", 1);
	assert_number(j, "evicted", 0);
	assert_number(j, "failed", 0);
	json_decref(j);
	j = ask(&c.talk, request("evict", TREE_ROOT_INO), "result", &failures);
	assert_number(j, "failed", 1);
	assert_int_equal(failures, 1);
	json_decref(j);

	j = ask(&c.talk, request("verify", 0), "result", &failures);
	assert_number(j, "damaged", 0);
	json_decref(j);
	harness_write(c.store->root_fd, "broken.zst", "", 0);
	j = ask(&c.talk, request("verify", 0), "result", &failures);
	assert_number(j, "damaged", 1);
	assert_int_equal(failures, 1);
	json_decref(j);

	talk_end(&c.talk);
	node_unref(c.tree, n);
	cellar_close(&c);
}

static void test_status(void **state)
{
	static const char *const members[] = {
	    "pid",   "store",   "mountpoint", "uuid",    "program_version",
	    "state", "started", "pool",       "scratch", "uptime_seconds",
	    "queue", "hits",    "stored",     "options", "counters",
	    "nodes", "failing", "last_error",
	};
	struct cellar c;
	unsigned failures;
	json_t *mine, *others;

	cellar_open(&c, *state);
	talk_start(&c.talk, geteuid(), LONG_MS);
	hear_greeting(&c.talk);
	mine = ask(&c.talk, request("status", 0), "result", &failures);
	talk_end(&c.talk);
	talk_start(&c.talk, geteuid() + 1, LONG_MS);
	hear_greeting(&c.talk);
	others = ask(&c.talk, request("status", 0), "result", &failures);
	talk_end(&c.talk);

	for (size_t i = 0; i < ARRAY_LEN(members); i++) {
		assert_non_null(json_object_get(mine, members[i]));
		assert_non_null(json_object_get(others, members[i]));
	}
	assert_string_equal(
	    json_string_value(json_object_get(json_object_get(mine, "pool"), "path")),
	    c.path);
	assert_true(json_is_null(json_object_get(json_object_get(others, "pool"), "path")));
	assert_non_null(json_object_get(json_object_get(mine, "options"), "level"));
	assert_null(json_object_get(json_object_get(others, "options"), "pool"));
	assert_true(json_is_null(json_object_get(json_object_get(mine, "hits"), "rate")));
	json_decref(mine);
	json_decref(others);
	cellar_close(&c);
}

/* Others may flush what they own, and nothing else. */
static void test_flush_by_others(void **state)
{
	struct cellar c;
	struct node *n;
	unsigned failures;
	json_t *j;

	cellar_open(&c, *state);
	n = cellar_add_plain(&c, "file");
	talk_start(&c.talk, geteuid() + 1, LONG_MS);
	hear_greeting(&c.talk);
	j = ask(&c.talk, request("flush", n->ino), "result", &failures);
	assert_number(j, "failed", 1);
	assert_int_equal(failures, 1);
	json_decref(j);
	if (geteuid() == 0) {
		assert_int_equal(fchownat(c.store->root_fd, "file", 1, 1, 0), 0);
		j = ask(&c.talk, request("flush", n->ino), "result", &failures);
		assert_number(j, "failed", 0);
		json_decref(j);
	}
	talk_end(&c.talk);
	node_unref(c.tree, n);
	cellar_close(&c);
}

/* With the client's own functions: progress and failures come, then what is left. */
struct heard {
	unsigned progress, failures;
	char path[64];
};

static void heard_each(void *ctx, const char *kind, json_t *object)
{
	struct heard *h = ctx;

	if (strcmp(kind, "progress") == 0) {
		h->progress++;
		assert_number(object, "files_total", 3);
		return;
	}
	h->failures++;
	(void)snprintf(h->path, sizeof(h->path), "%s",
	               json_string_value(json_object_get(object, "path")));
}

static void test_umount_by_client(void **state)
{
	struct control_client client = {.pid = getpid()};
	struct heard heard = {0};
	struct cellar c;
	char *cause = NULL;
	json_t *result = NULL;

	cellar_open(&c, *state);
	talk_start(&c.talk, geteuid(), LONG_MS);
	hear_greeting(&c.talk);
	client.fd = c.talk.pair.theirs;
	protocol_stream_init(&client.stream, client.fd);
	assert_int_equal(control_call(&client, json_pack("{s:s}", "command", "umount"),
	                              heard_each, &heard, &result, &cause),
	                 0);
	assert_null(cause);
	assert_number(result, "files_left", 2);
	assert_number(result, "bytes_left", 77);
	json_decref(result);
	assert_int_equal(heard.progress, 1);
	assert_int_equal(heard.failures, 1);
	assert_string_equal(heard.path, "bad/\\xff");

	/* What the daemon refuses arrives as its sentence; its end as a lost connection. */
	assert_int_equal(control_call(&client, json_pack("{s:s}", "command", "format"),
	                              NULL, NULL, &result, &cause),
	                 -EREMOTEIO);
	assert_non_null(strstr(cause, "format"));
	free(cause);
	cause = NULL;
	__atomic_store_n(&c.talk.session.stop, true, __ATOMIC_RELAXED);
	shutdown(c.talk.pair.ours, SHUT_RDWR);
	assert_int_equal(control_call(&client, json_pack("{s:s}", "command", "status"),
	                              NULL, NULL, &result, &cause),
	                 -ECONNRESET);
	free(cause);
	protocol_stream_clear(&client.stream);
	talk_end(&c.talk);
	assert_int_equal(c.talk.umounts, 1);
	cellar_close(&c);
}

static void test_locate(void **state)
{
	struct harness *h = *state;
	struct control_mount m = {0};
	char path[600];
	char *cause = NULL;

	assert_int_equal(control_locate(h->path, &m, &cause), -ENODEV);
	assert_non_null(strstr(cause, "is no cellar"));
	free(cause);
	snprintf(path, sizeof(path), "%s/missing", h->path);
	assert_int_equal(control_locate(path, &m, NULL), -ENOENT);
	assert_int_equal(control_locate("", &m, NULL), -ENOENT);
	assert_int_equal(symlinkat("loop", h->dirfd, "loop"), 0);
	snprintf(path, sizeof(path), "%s/loop/x", h->path);
	assert_int_equal(control_locate(path, &m, NULL), -ELOOP);
	assert_int_equal(symlinkat("/", h->dirfd, "root"), 0);
	snprintf(path, sizeof(path), "%s/root/..//./tmp", h->path);
	assert_int_equal(control_locate(path, &m, NULL), -ENODEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_lines_in_pieces),
	    cmocka_unit_test(test_line_with_nul),
	    cmocka_unit_test(test_line_limit),
	    cmocka_unit_test(test_slow_line),
	    cmocka_unit_test(test_objects_only),
	    cmocka_unit_test(test_send_limits),
	    cmocka_unit_test_setup_teardown(test_descriptors, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test(test_strings),
	    cmocka_unit_test(test_socket_dirs),
	    cmocka_unit_test_setup_teardown(test_connect, harness_setup, harness_teardown),
	    cmocka_unit_test(test_greeting),
	    cmocka_unit_test(test_nonsense_ends),
	    cmocka_unit_test(test_deep_nesting),
	    cmocka_unit_test(test_endless_line),
	    cmocka_unit_test(test_long_request),
	    cmocka_unit_test(test_wrong_requests),
	    cmocka_unit_test(test_too_many_inodes),
	    cmocka_unit_test(test_others_may_little),
	    cmocka_unit_test(test_idle_client),
	    cmocka_unit_test(test_client_that_does_not_read),
	    cmocka_unit_test_setup_teardown(test_commands, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_status, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_flush_by_others, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_umount_by_client, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_locate, harness_setup, harness_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
