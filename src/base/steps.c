/*
 * Named steps: see steps.h. Developer builds only; nothing at all otherwise.
 *
 * The table is read once at start and constant from then on but for the counts of arrivals,
 * so that any thread may pass a step at any time. Files are touched with bare calls: a step
 * must not use up the faults of a test.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/steps.h"

#ifndef CELLAR_DEVELOPER

void steps_init(void)
{
}

#else

#define STEPS_MAX    16
#define WAIT_POLL_MS 5

enum step_action { STEP_KILL, STEP_WAIT, STEP_SLEEP };

struct armed_step {
	char *name;
	unsigned long nth;
	enum step_action action;
	unsigned long sleep_ms;
	_Atomic unsigned long arrivals;
};

static struct armed_step steps[STEPS_MAX];
static unsigned step_count;
static const char *wait_file;

static bool parse_count(const char *s, unsigned long *ret)
{
	char *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	*ret = strtoul(s, &end, 10);
	return errno == 0 && *end == '\0';
}

static bool parse_action(const char *s, struct armed_step *st)
{
	if (strcmp(s, "kill") == 0) {
		st->action = STEP_KILL;
		return true;
	}
	if (strcmp(s, "wait") == 0) {
		st->action = STEP_WAIT;
		return wait_file != NULL;
	}
	if (strncmp(s, "sleep-", 6) == 0) {
		st->action = STEP_SLEEP;
		return parse_count(s + 6, &st->sleep_ms);
	}
	return false;
}

/* NAME[:NTH][=ACTION]; cuts the word up and keeps a copy of the name. */
static bool parse_step(char *word, struct armed_step *st)
{
	char *action = strchr(word, '='), *nth;

	st->nth = 1;
	st->action = STEP_KILL;
	if (action) {
		*action++ = '\0';
		if (!parse_action(action, st))
			return false;
	}
	nth = strchr(word, ':');
	if (nth) {
		*nth++ = '\0';
		if (!parse_count(nth, &st->nth) || st->nth == 0)
			return false;
	}
	if (!*word)
		return false;
	st->name = xstrdup(word);
	return true;
}

void steps_init(void)
{
	const char *env = getenv("CELLAR_TEST_STEP");
	cleanup_free char *list = NULL;
	char *word, *rest;

	wait_file = getenv("CELLAR_TEST_STEP_FILE");
	while (step_count > 0)
		free(steps[--step_count].name);
	if (!env || !*env)
		return;
	list = xstrdup(env);
	for (rest = list; (word = strsep(&rest, ",")) != NULL;) {
		struct armed_step *st = &steps[step_count];

		if (step_count == STEPS_MAX || !parse_step(word, st)) {
			/* A test that stops nowhere would prove nothing. */
			log_err("CELLAR_TEST_STEP=%s: not understood", env);
			exit(2);
		}
		atomic_store(&st->arrivals, 0);
		step_count++;
	}
}

static void sleep_ms(unsigned long ms)
{
	struct timespec ts = {.tv_sec = (time_t)(ms / 1000),
	                      .tv_nsec = (long)(ms % 1000) * 1000000};

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

static void wait_for_file_to_go(void)
{
	int fd = open(wait_file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0) {
		log_err("CELLAR_TEST_STEP_FILE=%s: %s", wait_file, strerror(errno));
		abort();
	}
	(void)close(fd);
	while (access(wait_file, F_OK) == 0)
		sleep_ms(WAIT_POLL_MS);
}

void step(const char *name)
{
	int saved = errno;

	for (unsigned i = 0; i < step_count; i++) {
		struct armed_step *st = &steps[i];

		if (strcmp(st->name, name) != 0 ||
		    atomic_fetch_add(&st->arrivals, 1) + 1 != st->nth)
			continue;
		log_debug("step %s reached", name);
		switch (st->action) {
		case STEP_KILL:
			(void)kill(getpid(), SIGKILL);
			break;
		case STEP_WAIT:
			wait_for_file_to_go();
			break;
		case STEP_SLEEP:
			sleep_ms(st->sleep_ms);
			break;
		}
	}
	errno = saved;
}

#endif
