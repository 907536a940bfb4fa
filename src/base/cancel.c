/* Cancelling what a thread does for somebody: see cancel.h. */
#include "base/cancel.h"

static __thread struct {
	bool (*fn)(void *ctx);
	void *ctx;
} asked;

void cancel_set(bool (*fn)(void *ctx), void *ctx)
{
	asked.fn = fn;
	asked.ctx = ctx;
}

bool cancel_possible(void)
{
	return asked.fn != NULL;
}

bool cancel_wanted(void)
{
	return asked.fn && asked.fn(asked.ctx);
}
