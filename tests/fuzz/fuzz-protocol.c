/*
 * libFuzzer target: bytes over the control socket, both ways.
 *
 * The first byte chooses. Even: the rest is what a client sends to a session of the daemon, over
 * a pool that holds a file in lost+found and nothing else; bit 1 says whether the client may do
 * everything. umount does nothing here. Each line has one answer at most, and every answer is
 * an object on a line. Odd: the rest is what a server answers to cellarctl, whose output must not
 * drive a terminal.
 *
 *   tests/fuzz/fuzz-protocol -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-protocol
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/sysio.h"
#include "cellarctl/output.h"
#include "control/client.h"
#include "control/commands.h"
#include "tree/resolve.h"

#define LINES_MAX 24    /* their answers fit the socket's buffer */
#define INPUT_MAX 65536 /* as the input does */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct control_context context;

/* ---- a cellar ---- */

static bool not_draining(void *ctx)
{
	return false;
}

static void no_umount(void *ctx, pool_progress_fn progress, pool_failure_fn failure,
                      void *progress_ctx, struct pool_stats *ret_left)
{
	*ret_left = (struct pool_stats){.dirty = 1};
}

static char dir[] = "/tmp/cellar-fuzz-XXXXXX";

static void remove_dir(void)
{
	char command[64];

	(void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	if (system(command) != 0)
		(void)fprintf(stderr, "cannot remove %s\n", dir);
}

static void make_cellar(void)
{
	static struct options options;
	static struct pool_place place;
	struct uuid none = {{0}};
	char *cause = NULL, *path;
	bool rebuilt;
	int fd;

	INVARIANT(mkdtemp(dir) != NULL);
	(void)atexit(remove_dir);
	options_init(&options);
	context.options = &options;
	path = xasprintf("%s/store", dir);
	INVARIANT(store_open(path, STORE_CREATE, &context.store, NULL, &cause) == 0);
	free(path);
	path = xasprintf("%s/pool", dir);
	INVARIANT(pool_place_open(path, &context.store->uuid, &none, false, &place, NULL,
	                          &cause) == 0);
	INVARIANT(catalog_open(place.dirfd, place.path, &place.uuid, &context.catalog,
	                       &rebuilt, &cause) == 0);
	INVARIANT(tree_open(context.store, context.catalog, &place.uuid, false,
	                    options.max_object, &context.tree, &cause) == 0);
	INVARIANT(pool_new(&place, context.tree, &options, &context.pool, &cause) == 0);
	context.pool_path = path;
	path = xasprintf("%s/pool/lost+found/00000000000000ff", dir);
	fd = sys_openat(AT_FDCWD, path, O_CREAT | O_WRONLY, 0600);
	INVARIANT(fd >= 0 && full_pwrite(fd, "found\n", 6, 0) == 0);
	(void)close(fd);
	free(path);
	INVARIANT(pool_recover(context.pool, &cause) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	log_set_level(LOG_LEVEL_ERR);
	make_cellar();
	context.mountpoint = "/mnt\x1b[2J";
	context.started_mono_ms = clock_mono_ms();
	context.started = clock_now();
	context.is_draining = not_draining;
	context.umount = no_umount;
	return 0;
}

/* ---- both ways ---- */

static void make_pair(int fds[2])
{
	int bytes = 1 << 20;

	INVARIANT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
	for (int i = 0; i < 2; i++)
		(void)setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

static void put(int fd, const uint8_t *data, size_t size)
{
	while (size > 0) {
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n <= 0)
			break;
		data += n;
		size -= (size_t)n;
	}
	(void)shutdown(fd, SHUT_WR);
}

static size_t cut_lines(const uint8_t *data, size_t size, unsigned *ret_lines)
{
	*ret_lines = 0;
	for (size_t i = 0; i < size; i++)
		if (data[i] == '\n' && ++*ret_lines == LINES_MAX)
			return i + 1;
	return size;
}

static void fuzz_server(const uint8_t *data, size_t size, bool privileged)
{
	struct protocol_stream heard;
	struct control_session s;
	unsigned lines, ends = 0;
	json_t *j = NULL;
	int fds[2];

	size = cut_lines(data, size, &lines);
	make_pair(fds);
	put(fds[0], data, size);
	control_session_init(&s, &context, fds[1], privileged ? geteuid() : geteuid() + 1);
	s.idle_ms = 100;
	control_session_serve(&s);
	control_session_clear(&s);
	(void)close(fds[1]);
	protocol_stream_init(&heard, fds[0]);
	for (unsigned n = 0; protocol_read(&heard, 0, &j) == 0; n++) {
		INVARIANT(json_is_object(j));
		INVARIANT(n > 0 || json_object_get(j, "cellar"));
		ends += json_object_get(j, "result") != NULL ||
		        json_object_get(j, "error") != NULL;
		if (!privileged && json_object_get(j, "result")) {
			/* Nothing that others may ask for names a path of the pool. */
			char *text = json_dumps(j, JSON_COMPACT);

			INVARIANT(!strstr(text, "lost+found/") && !strstr(text, "/pool"));
			free(text);
		}
		json_decref(j);
	}
	INVARIANT(ends <= lines + 1); /* (K1); and one says why it is over */
	protocol_stream_clear(&heard);
	(void)close(fds[0]);
}

static void print_each(void *ctx, const char *kind, json_t *object)
{
	char *clean = out_clean(out_text(object, "path"));

	for (const unsigned char *p = (unsigned char *)clean; *p; p++)
		INVARIANT(*p >= 0x20 && *p != 0x7f);
	(void)out_number(object, "files_done");
	(void)out_real(object, "error");
	free(clean);
}

static void fuzz_client(const uint8_t *data, size_t size)
{
	struct control_client c = {.pid = 1};
	char *cause = NULL;
	json_t *result = NULL;
	errint_t r;
	int fds[2];

	make_pair(fds);
	put(fds[0], data, size);
	c.fd = fds[1];
	protocol_stream_init(&c.stream, fds[1]);
	r = control_call(&c, json_pack("{s:s}", "command", "lost"), print_each, NULL,
	                 &result, &cause);
	INVARIANT((r == 0) == json_is_object(result));
	INVARIANT(r == 0 || cause);
	json_decref(result);
	free(cause);
	control_client_close(&c);
	(void)close(fds[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size || size > INPUT_MAX)
		return 0;
	if (data[0] & 1)
		fuzz_client(data + 1, size - 1);
	else
		fuzz_server(data + 1, size - 1, data[0] & 2);
	return 0;
}
