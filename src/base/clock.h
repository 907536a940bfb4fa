/* Time and boot identity. */
#ifndef CELLAR_BASE_CLOCK_H
#define CELLAR_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#include "base/uuid.h"

uint64_t clock_mono_ms(void);    /* CLOCK_MONOTONIC */
struct timespec clock_now(void); /* CLOCK_REALTIME_COARSE: what filesystems stamp with */
void clock_sleep_ms(
    uint64_t ms); /* never in a test's or a caller's stead: a pause between tries */
int timespec_cmp(const struct timespec *a, const struct timespec *b); /* <0, 0, >0 */

/* The kernel's boot id (/proc/sys/kernel/random/boot_id), or $CELLAR_BOOT_ID where set:
 * same value = the page cache of earlier daemons is intact. Read once. */
struct uuid clock_boot_id(void);

#endif
