/*
 * Rules that a test may have broken, to prove that it would notice.
 *
 * is_broken(BREAK_X) is false unless cellar was configured with --enable-developer and
 * CELLAR_TEST_BREAK=NAME[,NAME…] names that row of breaks.def; in other builds it is a
 * constant. The code asks at the one place where the rule is kept.
 */
#ifndef CELLAR_BASE_BREAKS_H
#define CELLAR_BASE_BREAKS_H

#include <stdbool.h>

#include "config.h"

enum broken_rule {
#define BREAK(id, name, text) BREAK_##id,
#include "base/breaks.def"
#undef BREAK
	BREAK_COUNT
};

#ifdef CELLAR_DEVELOPER
bool is_broken(enum broken_rule rule);
#else
#define is_broken(rule) false
#endif
void breaks_init(void); /* reads the environment */

#endif
