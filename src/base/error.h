/*
 * Errors and clean-up, used by every layer.
 *
 * Internal functions return 0 or a negative errno, typed errint_t. What a person
 * should read travels beside it in a `char **cause` (may be NULL): set_cause() stores
 * one sentence there, once, the innermost one; the caller frees it. A function either
 * logs or returns an error, never both: low layers return, edges log once.
 *
 * Damage that we prove (checksum, impossible table) is -EUCLEAN inside; the mount
 * answers EIO for it.
 */
#ifndef CELLAR_BASE_ERROR_H
#define CELLAR_BASE_ERROR_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

typedef int errint_t; /* 0 or -errno */

/* Stores a formatted sentence in *cause unless cause is NULL or already set.
 * Returns err unchanged, so that `return set_cause(cause, -EINVAL, "...")` reads well.
 * Keeps errno. */
errint_t set_cause(char **cause, errint_t err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The same, followed by ": " and strerror(-err). */
errint_t set_cause_errno(char **cause, errint_t err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Memory. The x-functions end the program when memory is out: they are for small
 * allocations; anything whose size comes from outside uses plain malloc and -ENOMEM. */
void *xmalloc(size_t size);
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t size);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Clean-up at the end of a scope; both keep errno. */
void cleanup_free_fn(void *p);
void cleanup_fd_fn(const int *fd);
#define cleanup_free __attribute__((cleanup(cleanup_free_fn)))
#define cleanup_fd   __attribute__((cleanup(cleanup_fd_fn)))

/* Hands an owned pointer (or descriptor) over: return steal_pointer(&p). */
#define steal_pointer(pp)                                                                  \
	({                                                                                 \
		__typeof__(*(pp)) *pp_ = (pp);                                             \
		__typeof__(*(pp)) p_ = *pp_;                                               \
		*pp_ = NULL;                                                               \
		p_;                                                                        \
	})
static inline int steal_fd(int *fd)
{
	int f = *fd;

	*fd = -1;
	return f;
}

/* Our own mistakes, checked in every build: a killed daemon is a case that recovery is
 * tested for; a daemon that goes on with broken state is not. */
__attribute__((noreturn)) void invariant_failed(const char *file, int line,
                                                const char *what);
#define INVARIANT(cond)                                                                    \
	do {                                                                               \
		if (!(cond))                                                               \
			invariant_failed(__FILE__, __LINE__, #cond);                       \
	} while (0)

#define ARRAY_LEN(a)          (sizeof(a) / sizeof((a)[0]))
#define container_of(p, t, m) ((t *)((char *)(p)-offsetof(t, m)))
#define MIN_OF(a, b)          ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b)          ((a) > (b) ? (a) : (b))

#endif
