/* Work on behalf of an admin that must not be in users' way. */
#ifndef CELLAR_BASE_BACKGROUND_H
#define CELLAR_BASE_BACKGROUND_H

/* Runs fn(ctx) on a thread of its own (named) with low priority for processor and disk
 * (nice 15, ioprio idle), and returns when it is done. Where no thread can be started, fn
 * runs on this one, as it is. The caller holds no lock. */
void background_run(const char *name, void (*fn)(void *ctx), void *ctx);

#endif
