/*
 * The gate at every sync: see syncgate.h.
 *
 * Threads: any. gate_mutex is held while a thread waits at the gate, which is the order the
 * other end sees. Bare calls only: a gate must not use up the faults of a test.
 */
#include "base/syncgate.h"

#ifndef CELLAR_DEVELOPER

void sync_gate_init(void)
{
}

#else

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"

static pthread_mutex_t gate_mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool gate_closed; /* there is a gate to stop at */
static atomic_ulong gate_count;
/* under gate_mutex */
static int gate_fd = -1;

static void pass(const char *when, unsigned long n, const char *call, int fd)
{
	char link[64], path[PATH_MAX + 1] = "", answer;
	cleanup_free char *name = NULL, *line = NULL;
	int saved = errno;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (readlink(link, path, sizeof(path) - 1) < 0)
		path[0] = '\0';
	name = text_escape(path);
	line = xasprintf("%s %lu %s %s\n", when, n, call, name);
	(void)pthread_mutex_lock(&gate_mutex);
	if (atomic_load(&gate_closed) &&
	    (send(gate_fd, line, strlen(line), MSG_NOSIGNAL) != (ssize_t)strlen(line) ||
	     recv(gate_fd, &answer, 1, 0) != 1))
		atomic_store(&gate_closed, false);
	(void)pthread_mutex_unlock(&gate_mutex);
	errno = saved;
}

unsigned long sync_gate_before(const char *call, int fd)
{
	unsigned long n;

	if (!atomic_load_explicit(&gate_closed, memory_order_relaxed))
		return 0;
	n = atomic_fetch_add(&gate_count, 1) + 1;
	pass("before", n, call, fd);
	return n;
}

void sync_gate_after(unsigned long n, const char *call, int fd)
{
	if (n > 0 && atomic_load_explicit(&gate_closed, memory_order_relaxed))
		pass("after", n, call, fd);
}

void sync_gate_init(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	const char *env = getenv("CELLAR_TEST_SYNC_GATE");

	if (!env || !*env)
		return;
	gate_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (gate_fd < 0 || strlen(env) >= sizeof(addr.sun_path)) {
		log_err("CELLAR_TEST_SYNC_GATE=%s: no socket", env);
		exit(2);
	}
	memcpy(addr.sun_path, env, strlen(env));
	if (connect(gate_fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		log_err("CELLAR_TEST_SYNC_GATE=%s: %s", env, strerror(errno));
		exit(2);
	}
	atomic_store(&gate_closed, true);
}

#endif
