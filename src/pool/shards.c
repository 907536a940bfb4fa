/*
 * See shards.h.
 *
 * Invariants:
 *  (P1) A scratch file's name is durable only when the one of its directory is. shards_made counts the
 *       directories made, from 1 (what an earlier run made and did not sync); shards_synced follows
 *       it after an fsync of scratch/ that began when shards_made was as large. A directory is made
 *       and counted under shards_lock: so shard_sync() of a file, which looks under that lock after
 *       the file was made, finds its directory counted, whoever made it.
 *  (P2) None is ever removed while the daemon runs: a name that was durable stays so.
 */
#include "pool/shards.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "store/private.h"

#define SHARDS 256

/* The name of one. */
struct shard_name {
	char s[8];
};

static struct shard_name shard_name(unsigned i)
{
	struct shard_name n;

	(void)snprintf(n.s, sizeof(n.s), "%02x", i & 0xff);
	return n;
}

/* Never by way of a link: what it holds is moved, deleted and served. */
static int open_shard(struct pool *p, const char *name)
{
	return sys_openat(p->scratch_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
}

static errint_t note_shard(void *ctx, const char *name, unsigned char type)
{
	bool *there = ctx;
	char *end;
	unsigned long i = strtoul(name, &end, 16);

	if (i < SHARDS && strcmp(shard_name((unsigned)i).s, name) == 0)
		there[i] = true;
	return 0;
}

errint_t shards_each(struct pool *p, errint_t (*fn)(void *ctx, const char *shard, int fd),
                     void *ctx)
{
	bool there[SHARDS] = {false};
	errint_t r = sys_walk_dir(p->scratch_fd, note_shard, there);

	for (unsigned i = 0; i < SHARDS && r == 0; i++) {
		struct shard_name name = shard_name(i);
		int fd;

		if (!there[i])
			continue;
		fd = open_shard(p, name.s);
		/* What it is instead, fn says. */
		r = fn(ctx, name.s, fd);
		if (fd >= 0)
			(void)sys_close(fd);
	}
	return r;
}

struct check {
	struct pool *p;
	char **cause;
};

static errint_t check_shard(void *ctx, const char *shard, int fd)
{
	struct check *c = ctx;
	cleanup_free char *shown = xasprintf("%s/scratch/%s", c->p->place.path, shard);

	if (fd == -ENOTDIR || fd == -ELOOP)
		return set_cause(c->cause, -ENOTDIR, "\"%s\" is not a directory", shown);
	if (fd < 0)
		return set_cause_errno(c->cause, fd, "cannot open \"%s\"", shown);
	return private_check_dir(fd, shown, true, c->cause);
}

errint_t shards_check(struct pool *p, char **cause)
{
	struct check c = {.p = p, .cause = cause};

	return shards_each(p, check_shard, &c);
}

errint_t shard_make(struct pool *p, uint64_t ino)
{
	struct shard_name name = shard_name((unsigned)(ino & 0xff));
	errint_t r;

	lock_take(&p->shards_lock);
	r = sys_mkdirat(p->scratch_fd, name.s, 0700);
	if (r == 0)
		p->shards_made++; /* (P1) */
	lock_drop(&p->shards_lock);
	return r == -EEXIST ? 0 : r;
}

errint_t shard_sync(struct pool *p, uint64_t ino)
{
	int fd = open_shard(p, shard_name((unsigned)(ino & 0xff)).s);
	uint64_t made, synced;
	errint_t r;

	if (fd < 0)
		return fd;
	lock_take(&p->shards_lock);
	made = p->shards_made; /* (P1) */
	synced = p->shards_synced;
	lock_drop(&p->shards_lock);
	count_one(COUNTER_POOL_SYNCS);
	r = sys_fsync_dir(fd);
	(void)sys_close(fd);
	if (r < 0 || synced >= made)
		return r;
	count_one(COUNTER_POOL_SYNCS);
	r = sys_fsync_dir(p->scratch_fd);
	if (r < 0)
		return r;
	lock_take(&p->shards_lock);
	p->shards_synced = MAX_OF(p->shards_synced, made);
	lock_drop(&p->shards_lock);
	return 0;
}
