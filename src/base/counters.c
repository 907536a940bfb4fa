/* The table of counters and their values: see counters.h. */
#include "base/counters.h"

const struct counter_info counter_table[COUNTER_COUNT] = {
#define COUNTER(id, name, unit, text) [COUNTER_##id] = {#name, unit, text},
#include "base/counters.def"
#undef COUNTER
};

_Atomic uint64_t counter_values[COUNTER_COUNT];
