/*
 * Causes, memory that does not fail, clean-up handlers, broken invariants: see error.h.
 *
 * Nothing here takes a lock but the log's own, so it may be called under any.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

__attribute__((noreturn)) static void out_of_memory(void)
{
	log_err("out of memory");
	abort();
}

__attribute__((format(printf, 1, 0))) static char *xvasprintf(const char *fmt, va_list ap)
{
	char *s;

	if (vasprintf(&s, fmt, ap) < 0)
		out_of_memory();
	return s;
}

errint_t set_cause(char **cause, errint_t err, const char *fmt, ...)
{
	int saved = errno;
	va_list ap;

	if (!cause || *cause)
		return err;
	va_start(ap, fmt);
	*cause = xvasprintf(fmt, ap);
	va_end(ap);
	errno = saved;
	return err;
}

errint_t set_cause_errno(char **cause, errint_t err, const char *fmt, ...)
{
	int saved = errno;
	char buf[128];
	char *text;
	va_list ap;

	if (!cause || *cause)
		return err;
	va_start(ap, fmt);
	text = xvasprintf(fmt, ap);
	va_end(ap);
	*cause = xasprintf("%s: %s", text, strerror_r(-err, buf, sizeof(buf)));
	free(text);
	errno = saved;
	return err;
}

void *xmalloc(size_t size)
{
	void *p = malloc(size ? size : 1);

	if (!p)
		out_of_memory();
	return p;
}

void *xcalloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size ? size : 1);

	if (!p)
		out_of_memory();
	return p;
}

void *xrealloc(void *p, size_t size)
{
	void *q = realloc(p, size ? size : 1);

	if (!q)
		out_of_memory();
	return q;
}

char *xstrdup(const char *s)
{
	char *p = strdup(s);

	if (!p)
		out_of_memory();
	return p;
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	s = xvasprintf(fmt, ap);
	va_end(ap);
	return s;
}

void cleanup_free_fn(void *p)
{
	int saved = errno;

	free(*(void **)p);
	errno = saved;
}

void cleanup_fd_fn(const int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		(void)close(*fd);
	errno = saved;
}

void invariant_failed(const char *file, int line, const char *what)
{
	log_err("%s:%d: broken invariant: %s", file, line, what);
	abort();
}
