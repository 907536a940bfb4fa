/*
 * Named steps: places where a test may stop the daemon.
 *
 * step("flush.renamed") does nothing unless cellar was configured with
 * --enable-developer and CELLAR_TEST_STEP names it:
 *   CELLAR_TEST_STEP=NAME[:NTH][=ACTION]   ACTION: kill (default, SIGKILL to itself),
 *                                          wait (until the file $CELLAR_TEST_STEP_FILE
 *                                          goes away; it is created on arrival), or
 *                                          sleep-MS
 * Several, separated by commas. The names are listed in tests/README.
 */
#ifndef CELLAR_BASE_STEPS_H
#define CELLAR_BASE_STEPS_H

#include "config.h"

#ifdef CELLAR_DEVELOPER
void step(const char *name);
#else
#define step(name) ((void)0)
#endif
void steps_init(void); /* reads the environment */

#endif
