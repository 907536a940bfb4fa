/*
 * The gate at every sync: a test can stop the daemon before and after each call of the
 * system-call table that makes something durable (sys_fsync, sys_fdatasync, sys_syncfs), and cut
 * the power there.
 *
 * Only with --enable-developer, and only if CELLAR_TEST_SYNC_GATE=PATH names a listening Unix
 * stream socket: a thread at a gate sends one line and waits for one byte,
 *
 *   before N CALL PATH     the call is not yet made
 *   after N CALL PATH      it returned 0, nobody knows yet
 *
 * N is the same for both and grows; PATH is that of the descriptor, with control characters
 * escaped. What failed has no second line. One thread is at the gate at a time, others wait their turn;
 * the gate is open between the two, so syncs of several threads may overlap. Once the other
 * end is closed all gates are open.
 */
#ifndef CELLAR_BASE_SYNCGATE_H
#define CELLAR_BASE_SYNCGATE_H

#include "config.h"

#ifdef CELLAR_DEVELOPER
/* A number to hand to sync_gate_after(); 0: there is no gate. */
unsigned long sync_gate_before(const char *call, int fd);
void sync_gate_after(unsigned long n, const char *call, int fd);
#else
#define sync_gate_before(call, fd)   0UL
#define sync_gate_after(n, call, fd) ((void)(n))
#endif
void sync_gate_init(void); /* reads the environment */

#endif
