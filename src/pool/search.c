/*
 * The search behind the mount: dirty scratches of an earlier run whose objects are not where
 * their hints say (recovery.c). A walk meets every file; only a finished one may say that an
 * object is gone, and then the scratch goes to lost+found, or wins its name back from a copy
 * that somebody put there (design, section 8).
 *
 * Threads: one, until it is done or recovery_stop_search().
 */
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "base/workers.h"
#include "pool/internal.h"
#include "pool/lost.h"
#include "tree/listing.h"

#include "utlist.h"

struct search {
	struct pool *p;
	struct node **stack;
	size_t count, allocated;
	bool whole; /* nothing was passed over for an error */
};

static void push(struct search *w, struct node *n)
{
	if (w->count == w->allocated) {
		w->allocated = MAX_OF(64U, 2 * w->allocated);
		w->stack = xrealloc(w->stack, w->allocated * sizeof(*w->stack));
	}
	w->stack[w->count++] = n;
}

/* Meets every entry of one directory; recovery_met does the rest. */
static void search_dir(struct search *w, struct node *dir)
{
	struct tree *t = w->p->tree;
	struct listing l = {0};
	errint_t r;

	rmlock_rd(&t->ns);
	r = tree_list(t, dir, &l);
	rmlock_drop(&t->ns);
	if (r < 0 && r != -ENOENT)
		w->whole = false;
	for (size_t i = 0; i < l.count && !atomic_load(&w->p->stopping); i++) {
		struct node *n;
		struct stat st;

		if (l.items[i].type != DT_REG && l.items[i].type != DT_DIR)
			continue;
		rmlock_rd(&t->ns);
		r = resolve_name(t, dir, l.items[i].logical, &n, &st);
		rmlock_drop(&t->ns);
		if (r < 0) {
			if (r != -ENOENT)
				w->whole = false;
			continue;
		}
		if (S_ISDIR(n->type)) {
			push(w, n);
		} else {
			recovery_met(w->p, n); /* also when the node was there already */
			node_unref(t, n);
		}
	}
	listing_clear(&l);
}

/* Whether what was met at the hint is a copy: none of the files that we knew, which may have been
 * renamed to there. */
static bool rival_is_strange(struct pool *p, const struct scratch *s)
{
	struct node *n;
	bool strange;

	if (ident_is_none(&s->rival))
		return false;
	n = tree_find_ident(p->tree, &s->rival);
	if (!n)
		return true;
	lock_take(&n->lock);
	strange = !n->scratch;
	lock_drop(&n->lock);
	node_unref(p->tree, n);
	return strange;
}

/* The object is gone, and another stands where it was: somebody put it there, for a rename of our
 * own would have doomed the scratch first. The dirty scratch wins the name (design, section 8).
 * After a power cut that record may be missing: then it does not. s->busy is ours, and given up
 * if true is returned. */
static bool win_name(struct pool *p, struct scratch *s)
{
	struct node *n = NULL;
	bool mine;
	errint_t r;

	if (ident_is_none(&s->record.base.ident) || !rival_is_strange(p, s))
		return false;
	rmlock_rd(&p->tree->ns);
	r = recovery_adopt_by_hint(p, s, &n);
	rmlock_drop(&p->tree->ns);
	if (r < 0)
		return false;
	if (n->ino != s->ino) {
		node_unref(p->tree, n);
		return false;
	}
	/* Whoever attaches it holds this node's lock, and may wait for busy with it. */
	lock_take(&p->lock);
	s->busy = false;
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
	lock_take(&n->lock);
	mine = !n->scratch; /* else a look-up was faster, and has counted it */
	if (mine) {
		scratch_attach(p, s, n);
		(void)scratch_record(p, s);
		scratch_mirror(p, s);
		flush_queue(p, s, 0, false);
	}
	lock_drop(&n->lock);
	node_unref(p->tree, n);
	if (mine)
		atomic_fetch_sub(&p->waiting, 1);
	return true;
}

/* The walk is finished: what nobody met is gone. */
static void give_up_waiting(struct pool *p)
{
	for (;;) {
		struct scratch *s, *pick = NULL;

		lock_take(&p->lock);
		DL_FOREACH2(p->lru, s, lru_next)
		{
			if (!s->node && !s->busy && s->record.state == RECORD_DIRTY) {
				pick = s;
				pick->busy = true;
				break;
			}
		}
		lock_drop(&p->lock);
		if (!pick)
			return;
		if (pick->record.flags & RECORD_DOOMED)
			scratch_drop(p, pick); /* unlinked, and so it stayed */
		else if (win_name(p, pick))
			continue; /* its flush keeps what stands there beside it */
		else if (scratch_set_aside(p, pick, "its object is gone from the store") <
		         0)
			return;
		atomic_fetch_sub(&p->waiting, 1);
		lock_take(&p->lock);
		pthread_cond_broadcast(&p->progress);
		lock_drop(&p->lock);
	}
}

static void search(struct pool *p)
{
	struct search w = {.p = p, .whole = true};

	node_ref(p->tree, p->tree->root);
	push(&w, p->tree->root);
	while (w.count > 0) {
		struct node *dir = w.stack[--w.count];

		if (!atomic_load(&p->stopping) && atomic_load(&p->waiting) > 0)
			search_dir(&w, dir);
		node_unref(p->tree, dir);
	}
	free(w.stack);
	if (atomic_load(&p->stopping) || atomic_load(&p->waiting) == 0)
		return;
	if (w.whole)
		give_up_waiting(p);
	else
		log_warn(
		    "not all of the store could be searched: %llu dirty scratch files keep "
		    "waiting for their objects",
		    (unsigned long long)atomic_load(&p->waiting));
}

static void *search_main(void *arg)
{
	struct pool *p = arg;

	search(p);
	lock_take(&p->lock);
	atomic_store(&p->searched, true);
	pthread_cond_broadcast(&p->progress);
	lock_drop(&p->lock);
	return NULL;
}

errint_t recovery_start_search(struct pool *p)
{
	errint_t r;

	if (atomic_load(&p->waiting) == 0)
		return 0;
	r = thread_start(&p->searcher, "search", search_main, p);
	p->searcher_running = r == 0;
	return r;
}

void recovery_stop_search(struct pool *p)
{
	if (!p->searcher_running)
		return;
	atomic_store(&p->stopping, true);
	(void)pthread_join(p->searcher, NULL);
	p->searcher_running = false;
}
