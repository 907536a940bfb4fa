/*
 * New files' place-holders that a failed creation left behind: neither marked as new nor removed,
 * since both failed. A 0-byte object that nothing says more of counts as damaged; of these the pool
 * knows better while it runs. They are empty files from the first look on that a program takes, and
 * housekeeping marks them as soon as the disk takes the mark (store/attrs.h).
 */
#ifndef CELLAR_POOL_UNBORN_H
#define CELLAR_POOL_UNBORN_H

#include "pool/pool.h"

#define UNBORN_MAX                                                                         \
	64 /* descriptors kept; more wait for the next start, whose record knows them */

/* Takes fd, the object opened for writing; ino is the number of its scratch file, whose record keeps
 * it over a stop. Never fails. Locks below LOCK_LEAF may be held, as for the others. */
void unborn_keep(struct pool *p, int fd, uint64_t ino);
/* Whether the object, opened as fd, 0 bytes long, is a new file's place-holder: marked or kept here. */
bool unborn_is(struct pool *p, int fd);
/* It has another scratch now, of number ino: what was kept of the first is let go. */
void unborn_came(struct pool *p, int fd, uint64_t ino);
void unborn_house(struct pool *p);
void unborn_clear(struct pool *p); /* at the end; the scratch files stay */

#endif
