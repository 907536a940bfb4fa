/*
 * Which callers look at what they list.
 *
 * An entry of READDIRPLUS with its attributes spares the caller's look-up of it, and costs the kernel
 * and us an inode in memory. `find -size`, `ls -l`, `du` and the like want them, `find -name` and
 * `ls` do not, and the request does not say which it is. So: a caller that looks up a file by name
 * gets them for some time in what it lists next. (The kernel's own guess, READDIRPLUS_AUTO, is
 * made anew for each directory, after most of it was listed.)
 *
 * Callers are thread ids as FUSE gives them. Two of one slot forget each other: a guess is lost.
 *
 * Threads: any; no lock.
 */
#ifndef CELLAR_MOUNT_INTEREST_H
#define CELLAR_MOUNT_INTEREST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define INTEREST_SLOTS 64

/* All zero: nobody. */
struct interest {
	_Atomic uint64_t
	    slots[INTEREST_SLOTS]; /* thread id << 32 | second of its last look-up */
};

/* pid has looked up a file by its name. */
void interest_note(struct interest *i, pid_t pid);

/* Whether it did so in the last seconds. */
bool interest_has(struct interest *i, pid_t pid);

#endif
