/* Which callers look at what they list: see interest.h. */
#include "mount/interest.h"

#include <stdatomic.h>

#include "base/clock.h"

#define LASTS_S 10

static _Atomic uint64_t *slot_of(struct interest *i, pid_t pid)
{
	return &i->slots[(uint32_t)pid % INTEREST_SLOTS];
}

static uint32_t second_now(void)
{
	return (uint32_t)(clock_mono_ms() / 1000);
}

void interest_note(struct interest *i, pid_t pid)
{
	uint64_t entry = (uint64_t)(uint32_t)pid << 32 | second_now();
	_Atomic uint64_t *slot = slot_of(i, pid);

	if (atomic_load_explicit(slot, memory_order_relaxed) != entry)
		atomic_store_explicit(slot, entry, memory_order_relaxed);
}

bool interest_has(struct interest *i, pid_t pid)
{
	uint64_t entry = atomic_load_explicit(slot_of(i, pid), memory_order_relaxed);

	return entry != 0 && entry >> 32 == (uint32_t)pid &&
	       second_now() - (uint32_t)entry < LASTS_S;
}
