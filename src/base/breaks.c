/* Broken rules: see breaks.h. Read once at start, constant from then on. */
#include "base/breaks.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

#ifndef CELLAR_DEVELOPER

void breaks_init(void)
{
}

#else

static const char *const break_names[BREAK_COUNT] = {
#define BREAK(id, name, text) [BREAK_##id] = (name),
#include "base/breaks.def"
#undef BREAK
};

static bool broken[BREAK_COUNT];

bool is_broken(enum broken_rule rule)
{
	return broken[rule];
}

static bool break_one(const char *name)
{
	for (size_t i = 0; i < BREAK_COUNT; i++) {
		if (strcmp(name, break_names[i]) == 0) {
			broken[i] = true;
			return true;
		}
	}
	return false;
}

void breaks_init(void)
{
	const char *env = getenv("CELLAR_TEST_BREAK");
	cleanup_free char *list = NULL;
	char *word, *rest;

	if (!env || !*env)
		return;
	list = xstrdup(env);
	for (rest = list; (word = strsep(&rest, ",")) != NULL;) {
		if (!break_one(word)) {
			/* A rule that nobody broke would prove nothing. */
			log_err("CELLAR_TEST_BREAK=%s: not understood", env);
			exit(2);
		}
	}
	log_warn("broken for a test: %s", env);
}

#endif
