/*
 * Kernel passthrough: whether the kernel may serve warm files by itself, and how it is told.
 * Everything that is particular to it in the kernel's and libfuse's interfaces is here.
 *
 * One session a process, as init-hook.h. Order: passthrough_prepare() before the session
 * exists, passthrough_offer() while INIT is answered, passthrough_begin() right after; from then
 * on the state is constant until passthrough_end().
 */
#ifndef CELLAR_MOUNT_PASSTHROUGH_H
#define CELLAR_MOUNT_PASSTHROUGH_H

#include <fuse_lowlevel.h>

#include "base/options.h"
#include "pool/pool.h"

/* Decides whether it is worth asking the kernel. With passthrough=on, -EOPNOTSUPP with a
 * cause where it is not. [waits] */
errint_t passthrough_prepare(const struct options *o, struct pool *p, char **cause);

/* Whether passthrough_offer() will ask for it. offered: what the kernel's INIT says (flags2 in
 * the high half). */
bool passthrough_possible(uint64_t offered);

/* offered: as above. Returns the flags to add to the
 * reply, and sets *ret_depth, its max_stack_depth, where there are any. */
uint64_t passthrough_offer(uint64_t offered, uint32_t *ret_depth);

/* INIT is answered on the session's descriptor: tries a private file; where that works the pool
 * serves what it can through the kernel. Logs the outcome once. With passthrough=on,
 * -EOPNOTSUPP with a cause where it does not work. */
errint_t passthrough_begin(int device_fd, char **cause);

/* No reply will be sent any more, all handles are closed. */
void passthrough_end(void);

/* Whether it is active; *ret_reason: why not, a constant-lived text, NULL where it is. */
bool passthrough_active(const char **ret_reason);

/* Replies to OPEN and CREATE of a file that the kernel serves under backing_id; direct_io: this
 * handle's reads and writes come to the daemon all the same. What fuse_reply_open() returns. */
int passthrough_reply_open(fuse_req_t req, uint64_t fh, int32_t backing_id, bool direct_io);
int passthrough_reply_create(fuse_req_t req, const struct fuse_entry_param *e, uint64_t fh,
                             int32_t backing_id, bool direct_io);

#endif
