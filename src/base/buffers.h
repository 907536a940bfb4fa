/*
 * Large buffers that are used again.
 *
 * Memory fresh from the kernel is dear: every page of it faults and is zeroed, and in a virtual
 * machine may fault once more in the host. malloc() gives large blocks back on every free. These
 * buffers are cut from huge pages, are kept when they are put back, up to a bound, and are given to
 * the kernel when nobody has wanted any for a while (buffers_trim()).
 *
 * Built with AddressSanitizer, every buffer is malloc()'s own, of the exact length: an access
 * outside it is seen.
 *
 * Threads: any.
 */
#ifndef CELLAR_BASE_BUFFERS_H
#define CELLAR_BASE_BUFFERS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#define BUFFER_CLASSES 7 /* 64 KiB to 4 MiB; longer ones are not kept */

struct spare_buffer;

struct buffers {
	pthread_mutex_t lock; /* a leaf below all struct locks */
	struct spare_buffer *spare[BUFFER_CLASSES];
	size_t spare_bytes, spare_max;
	bool wanted; /* since buffers_trim() */
};

/* spare_max: bytes that are kept, not counting what a last huge page had left. */
void buffers_init(struct buffers *b, size_t spare_max);
/* All have been put back. */
void buffers_clear(struct buffers *b);

/* At least len bytes with any content, aligned as malloc() does; *ret_room: how many. NULL, and no
 * room: no memory. */
void *buffer_get(struct buffers *b, size_t len, size_t *ret_room);
/* room as it was given; NULL is fine. */
void buffer_put(struct buffers *b, void *buf, size_t room);

/* Gives the spare ones to the kernel if none was wanted since the last call. Whether there are some
 * left to look after. */
bool buffers_trim(struct buffers *b);

#endif
