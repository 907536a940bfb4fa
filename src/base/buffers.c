/*
 * Large buffers that are used again: see buffers.h.
 *
 * A buffer is a power of two long, from CLASS_MIN; up to HUGE_PAGE they are cut from one huge page
 * and are mappings of their own from then on: each is unmapped by itself.
 */
#include "base/buffers.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/error.h"

#define CLASS_MIN ((size_t)64 << 10)
#define CLASS_MAX (CLASS_MIN << (BUFFER_CLASSES - 1))
#define HUGE_PAGE ((size_t)2 << 20)

#ifdef __SANITIZE_ADDRESS__
#define EXACT true
#else
#define EXACT false
#endif

struct spare_buffer {
	struct spare_buffer *next;
};

void buffers_init(struct buffers *b, size_t spare_max)
{
	*b = (struct buffers){.spare_max = spare_max};
	INVARIANT(pthread_mutex_init(&b->lock, NULL) == 0);
}

static void unmap(void *buf, size_t room)
{
	if (munmap(buf, room) < 0) /* one mapping more would be too many */
		(void)madvise(buf, room, MADV_DONTNEED);
}

/* room is a multiple of HUGE_PAGE, and so is the address. */
static uint8_t *map(size_t room)
{
	uint8_t *all = mmap(NULL, room + HUGE_PAGE, PROT_READ | PROT_WRITE,
	                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (all == MAP_FAILED)
		return NULL;
	before = -(uintptr_t)all % HUGE_PAGE;
	if (before > 0)
		unmap(all, before);
	if (before < HUGE_PAGE)
		unmap(all + before + room, HUGE_PAGE - before);
	(void)madvise(all + before, room, MADV_HUGEPAGE); /* else it is small pages */
	return all + before;
}

static size_t class_of(size_t room)
{
	size_t i = 0;

	while (CLASS_MIN << i < room)
		i++;
	return i;
}

/* b->lock held. */
static void keep(struct buffers *b, void *buf, size_t room)
{
	struct spare_buffer *s = buf;
	size_t i = class_of(room);

	s->next = b->spare[i];
	b->spare[i] = s;
	b->spare_bytes += room;
}

/* b->lock held. */
static void *take(struct buffers *b, size_t i)
{
	struct spare_buffer *s = b->spare[i];

	if (s) {
		b->spare[i] = s->next;
		b->spare_bytes -= CLASS_MIN << i;
	}
	return s;
}

/* A new huge page's first buffer; the others are spare. */
static void *cut(struct buffers *b, size_t room)
{
	uint8_t *page = map(HUGE_PAGE);

	if (!page || room == HUGE_PAGE)
		return page;
	INVARIANT(pthread_mutex_lock(&b->lock) == 0);
	for (size_t at = HUGE_PAGE; at > room; at -= room)
		keep(b, page + at - room, room);
	INVARIANT(pthread_mutex_unlock(&b->lock) == 0);
	return page;
}

void *buffer_get(struct buffers *b, size_t len, size_t *ret_room)
{
	size_t i, room = len;
	void *buf;

	if (EXACT || len > CLASS_MAX) {
		buf = malloc(len);
	} else {
		i = class_of(len);
		room = CLASS_MIN << i;
		INVARIANT(pthread_mutex_lock(&b->lock) == 0);
		b->wanted = true;
		buf = take(b, i);
		INVARIANT(pthread_mutex_unlock(&b->lock) == 0);
		if (!buf)
			buf = room > HUGE_PAGE ? map(room) : cut(b, room);
	}
	*ret_room = buf ? room : 0;
	return buf;
}

void buffer_put(struct buffers *b, void *buf, size_t room)
{
	bool kept;

	if (!buf)
		return;
	if (EXACT || room > CLASS_MAX) {
		free(buf);
		return;
	}
	INVARIANT(pthread_mutex_lock(&b->lock) == 0);
	kept = b->spare_bytes + room <= b->spare_max;
	if (kept)
		keep(b, buf, room);
	INVARIANT(pthread_mutex_unlock(&b->lock) == 0);
	if (!kept)
		unmap(buf, room);
}

static void unmap_spare(struct buffers *b)
{
	for (size_t i = 0; i < BUFFER_CLASSES; i++) {
		void *buf;

		while ((buf = take(b, i)) != NULL)
			unmap(buf, CLASS_MIN << i);
	}
}

bool buffers_trim(struct buffers *b)
{
	bool left;

	INVARIANT(pthread_mutex_lock(&b->lock) == 0);
	if (!b->wanted)
		unmap_spare(b);
	b->wanted = false;
	left = b->spare_bytes > 0;
	INVARIANT(pthread_mutex_unlock(&b->lock) == 0);
	return left;
}

void buffers_clear(struct buffers *b)
{
	unmap_spare(b);
	INVARIANT(pthread_mutex_destroy(&b->lock) == 0);
}
