/*
 * See unborn.h.
 *
 * Threads: any. p->unborn_lock (a leaf) guards the list; it is held across look-ups and the marking
 * of what is listed, which is hardly ever anything: unborn_count is looked at without it.
 */
#include "pool/unborn.h"

#include <unistd.h>

#include "pool/internal.h"
#include "store/attrs.h"

struct unborn {
	int fd;
	uint64_t ino;
};

void unborn_keep(struct pool *p, int fd, uint64_t ino)
{
	lock_take(&p->unborn_lock);
	if (p->unborn_count < UNBORN_MAX) {
		if (!p->unborn)
			p->unborn = xcalloc(UNBORN_MAX, sizeof(*p->unborn));
		p->unborn[p->unborn_count] = (struct unborn){.fd = fd, .ino = ino};
		p->unborn_count++;
		fd = -1;
	}
	lock_drop(&p->unborn_lock);
	if (fd >= 0)
		(void)sys_close(fd);
}

/* unborn_lock held. The index of the object opened as fd; -1: not listed. */
static int find(struct pool *p, int fd)
{
	struct ident asked, has;

	if (ident_get(fd, "", &asked) < 0)
		return -1;
	for (unsigned i = 0; i < p->unborn_count; i++) {
		if (ident_get(p->unborn[i].fd, "", &has) == 0 && ident_equal(&asked, &has))
			return (int)i;
	}
	return -1;
}

/* unborn_lock held. Off the list; its scratch file goes, unless it is `but`'s by now. */
static void settle(struct pool *p, unsigned i, uint64_t but)
{
	struct unborn u = p->unborn[i];

	p->unborn_count--;
	p->unborn[i] = p->unborn[p->unborn_count];
	(void)sys_close(u.fd);
	if (u.ino != but)
		(void)sys_unlinkat(p->scratch_fd, scratch_name(u.ino).s, 0);
}

bool unborn_is(struct pool *p, int fd)
{
	bool yes = attrs_is_marked_new(fd, &p->place.uuid);

	if (yes || atomic_load(&p->unborn_count) == 0)
		return yes;
	lock_take(&p->unborn_lock);
	yes = find(p, fd) >= 0;
	lock_drop(&p->unborn_lock);
	return yes;
}

void unborn_came(struct pool *p, int fd, uint64_t ino)
{
	int i;

	if (atomic_load(&p->unborn_count) == 0)
		return;
	lock_take(&p->unborn_lock);
	i = find(p, fd);
	if (i >= 0)
		settle(p, (unsigned)i, ino);
	lock_drop(&p->unborn_lock);
}

/* True: nothing more is to be done for it. */
static bool mark(struct pool *p, const struct unborn *u)
{
	struct stat st;

	/* Unlinked, or written by somebody: no place-holder any more. */
	if (sys_fstat(u->fd, &st) == 0 && (st.st_nlink == 0 || st.st_size > 0))
		return true;
	return attrs_mark_new(u->fd, &p->place.uuid) == 0;
}

void unborn_house(struct pool *p)
{
	if (atomic_load(&p->unborn_count) == 0)
		return;
	lock_take(&p->unborn_lock);
	for (unsigned i = p->unborn_count; i-- > 0;) {
		if (mark(p, &p->unborn[i]))
			settle(p, i, 0);
	}
	lock_drop(&p->unborn_lock);
}

void unborn_clear(struct pool *p)
{
	for (unsigned i = 0; i < p->unborn_count; i++)
		(void)sys_close(p->unborn[i].fd);
	p->unborn_count = 0;
	free(p->unborn);
	p->unborn = NULL;
}
