/*
 * Counters: one table (counters.def) gives the code, `cellarctl status --json` and the
 * documentation. They only grow, are never reset while the daemon runs, and cost one
 * relaxed atomic add.
 */
#ifndef CELLAR_BASE_COUNTERS_H
#define CELLAR_BASE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

enum counter {
#define COUNTER(id, name, unit, text) COUNTER_##id,
#include "base/counters.def"
#undef COUNTER
	COUNTER_COUNT
};

struct counter_info {
	const char *name; /* snake_case, as in JSON */
	const char *unit;
	const char *text; /* one sentence */
};

extern const struct counter_info counter_table[COUNTER_COUNT];
extern _Atomic uint64_t counter_values[COUNTER_COUNT];

static inline void count_n(enum counter c, uint64_t n)
{
	atomic_fetch_add_explicit(&counter_values[c], n, memory_order_relaxed);
}
static inline void count_one(enum counter c)
{
	count_n(c, 1);
}
static inline uint64_t counter_get(enum counter c)
{
	return atomic_load_explicit(&counter_values[c], memory_order_relaxed);
}

#endif
