/*
 * Names in the store and names in the mount. Pure functions of their arguments: no system
 * calls, no state, any thread. Which of several forms of a name is meant where more than
 * one lies in a directory is decided in entry.c.
 */
#include "store/names.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define CONFLICT_MARK ".cellar-conflict-"

static bool ends_in_suffix(const char *s, size_t len)
{
	return len >= NAMES_SUFFIX_LEN &&
	       !memcmp(s + len - NAMES_SUFFIX_LEN, NAMES_SUFFIX, NAMES_SUFFIX_LEN);
}

bool name_has_suffix(const char *s)
{
	size_t len = strlen(s);

	return len > NAMES_SUFFIX_LEN && ends_in_suffix(s, len);
}

bool name_has_tilde_suffix(const char *s)
{
	size_t len = strlen(s);

	while (len > 0 && s[len - 1] == '~')
		len--;
	return ends_in_suffix(s, len);
}

static errint_t join(const char *s, size_t len, const char *tail, struct name *ret)
{
	size_t tail_len = strlen(tail);

	if (len + tail_len > NAME_MAX)
		return -ENAMETOOLONG;
	memmove(ret->s, s, len);
	memcpy(ret->s + len, tail, tail_len + 1);
	return 0;
}

errint_t name_encode(const char *logical, bool regular, struct name *ret)
{
	size_t len = strlen(logical);

	if (regular)
		return join(logical, len, NAMES_SUFFIX, ret);
	return join(logical, len, name_has_tilde_suffix(logical) ? "~" : "", ret);
}

static bool is_dots(const char *s, size_t len)
{
	return (len == 1 && s[0] == '.') || (len == 2 && s[0] == '.' && s[1] == '.');
}

bool name_decode(const char *stored, bool regular, struct name *ret)
{
	size_t len = strlen(stored);
	size_t cut = 0;
	bool decoded = true;

	if (len > NAME_MAX) {
		/* No directory entry is that long; what is cut can be looked up by nobody. */
		(void)join(stored, NAME_MAX, "", ret);
		return false;
	}
	if (!regular) {
		cut = stored[0] && stored[len - 1] == '~' && name_has_tilde_suffix(stored);
	} else if (ends_in_suffix(stored, len)) {
		decoded =
		    len > NAMES_SUFFIX_LEN && !is_dots(stored, len - NAMES_SUFFIX_LEN);
		cut = decoded ? NAMES_SUFFIX_LEN : 0;
	}
	(void)join(stored, len - cut, "", ret);
	return decoded;
}

char *name_decode_path(const char *store_path)
{
	cleanup_free char *rest = xstrdup(store_path);
	char *ret = xmalloc(strlen(store_path) + 1), *to = ret, *at = rest;

	/* No component grows by decoding. */
	while (at) {
		char *name = strsep(&at, "/");
		struct name n;

		if (strlen(name) <= NAME_MAX) {
			(void)name_decode(name, !at, &n);
			name = n.s;
		}
		to = stpcpy(to, name);
		if (at)
			*to++ = '/';
	}
	*to = '\0';
	return ret;
}

static bool is_continuation(char c)
{
	return ((unsigned char)c & 0xc0) == 0x80;
}

/* The longest prefix of at most max bytes that does not cut a UTF-8 character. Bytes that
 * are no UTF-8 are cut anywhere. */
static size_t utf8_prefix(const char *s, size_t len, size_t max)
{
	size_t n = max;

	if (len <= max)
		return len;
	while (n > 0 && max - n < 3 && is_continuation(s[n]))
		n--;
	/* Continuations without a lead byte are no character. */
	if (((unsigned char)s[n] & 0xc0) != 0xc0 || n == 0)
		return max;
	return n;
}

void name_conflict(const char *logical, int64_t unix_time, struct name *ret)
{
	const int64_t year_10000 = 253402300800;
	time_t t = unix_time < 0 ? 0 : MIN_OF(unix_time, year_10000 - 1);
	char mark[sizeof CONFLICT_MARK + 16];
	struct tm tm;
	size_t n;

	gmtime_r(&t, &tm);
	n = strftime(mark, sizeof mark, CONFLICT_MARK "%Y%m%dT%H%M%SZ", &tm);
	INVARIANT(n == sizeof mark - 1);
	n = utf8_prefix(logical, strlen(logical), NAME_MAX - NAMES_SUFFIX_LEN - n);
	(void)join(logical, n, mark, ret);
}
