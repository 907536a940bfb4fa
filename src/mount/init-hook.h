/*
 * The transport hooks of the FUSE session, and what they are for: completing the reply to
 * INIT.
 *
 * libfuse 3.14 knows some capabilities that it never puts on the wire (PARALLEL_DIROPS,
 * seen) and does not know others (HANDLE_KILLPRIV_V2). fuse_session_custom_io() lets us see
 * the request and the reply as bytes: the read hook remembers what the kernel offers, the
 * writev hook sets the missing bits in the one reply that answers it. Everything else
 * passes through untouched.
 *
 * One session a process.
 */
#ifndef CELLAR_MOUNT_INIT_HOOK_H
#define CELLAR_MOUNT_INIT_HOOK_H

#include <sys/uio.h>

#include "base/error.h"

/* Before the first request is read. ready (may be NULL) runs once, right after the reply
 * to INIT was accepted by the kernel, on the thread that sent it. */
void init_hook_arm(void (*ready)(void *ctx), void *ctx);

/* The members of struct fuse_custom_io. */
ssize_t init_hook_read(int fd, void *buf, size_t len, void *userdata);
ssize_t init_hook_writev(int fd, struct iovec *iov, int count, void *userdata);
ssize_t init_hook_splice_receive(int fd_in, off_t *off_in, int fd_out, off_t *off_out,
                                 size_t len, unsigned flags, void *userdata);
ssize_t init_hook_splice_send(int fd_in, off_t *off_in, int fd_out, off_t *off_out,
                              size_t len, unsigned flags, void *userdata);

/* The flags that the kernel offers (flags2 in the high half); 0 before its request is read. */
uint64_t init_hook_offered_flags(void);

/* The flags that the kernel was answered (flags2 in the high half); 0 before that. */
uint64_t init_hook_sent_flags(void);

#endif
