/*
 * The text of an intent: written, checked, read. The format is in intent.h. Any thread.
 */
#include "store/intent.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/sysio.h"

#define INTENT_MAX (1 << 20)

static bool is_plain(unsigned char c)
{
	return c > 0x20 && c < 0x7f && c != '%';
}

static char *percent_encode(const char *s, size_t len)
{
	char *out = xmalloc(3 * len + 1), *p = out;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];

		if (is_plain(c)) {
			*p++ = (char)c;
		} else {
			(void)snprintf(p, 4, "%%%02x", c);
			p += 3;
		}
	}
	*p = '\0';
	return out;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In place; false when it was not made by percent_encode(). */
static bool percent_decode(char *s, size_t *ret_len)
{
	char *out = s;

	for (const char *p = s; *p; p++) {
		if (*p != '%') {
			*out++ = *p;
			continue;
		}
		if (hex_digit(p[1]) < 0 || hex_digit(p[2]) < 0)
			return false;
		*out++ = (char)(hex_digit(p[1]) * 16 + hex_digit(p[2]));
		p += 2;
	}
	*out = '\0';
	*ret_len = (size_t)(out - s);
	return true;
}

char *intent_text(const struct intent *in)
{
	cleanup_free char *cap = percent_encode((const char *)in->cap, in->cap_len);
	cleanup_free char *hint = percent_encode(in->hint, strlen(in->hint));
	cleanup_free char *body = xasprintf(
	    "cellar-intent 1\ntmp %s\ntarget %016" PRIx64 "%016" PRIx64 "\nsize %" PRIu64
	    "\nmode %o\natime %lld %ld\nmtime %lld %ld\ncapability %s\nhint %s\n",
	    in->tmp, in->target.w[0], in->target.w[1], in->size, in->mode,
	    (long long)in->ts[0].tv_sec, in->ts[0].tv_nsec, (long long)in->ts[1].tv_sec,
	    in->ts[1].tv_nsec, cap, hint);

	return xasprintf("%ssum %016" PRIx64 "\n", body,
	                 (uint64_t)XXH64(body, strlen(body), 0));
}

static bool sum_is_right(char *text, size_t len)
{
	const size_t sum_len = strlen("sum ") + 16 + 1;
	char sum[32];

	if (strlen(text) != len || len < sum_len)
		return false;
	(void)snprintf(sum, sizeof sum, "sum %016" PRIx64 "\n",
	               (uint64_t)XXH64(text, len - sum_len, 0));
	if (strcmp(sum, text + len - sum_len))
		return false;
	text[len - sum_len] = '\0';
	return true;
}

/* The value of the next line, which must be "KEY VALUE"; NULL if it is another. */
static char *take_value(char **rest, const char *key)
{
	char *line = *rest ? strsep(rest, "\n") : NULL;
	size_t len = strlen(key);

	if (!line || strncmp(line, key, len) || line[len] != ' ')
		return NULL;
	return line + len + 1;
}

static bool parse_time(const char *v, struct timespec *ret)
{
	long long sec;

	if (!v || sscanf(v, "%lld %ld", &sec, &ret->tv_nsec) != 2)
		return false;
	ret->tv_sec = sec;
	return ret->tv_nsec >= 0 && ret->tv_nsec < 1000000000L;
}

/* The checksum has been found right: what follows is what intent_text() wrote, unless it is
 * of another version, or forged (is_ours). */
static bool parse_fields(char *text, struct intent *in)
{
	char *rest = text, *v = take_value(&rest, "cellar-intent");
	size_t len;

	if (!v || strcmp(v, "1"))
		return false;
	v = take_value(&rest, "tmp");
	if (!v || !*v || strlen(v) > NAME_MAX || strchr(v, '/'))
		return false;
	(void)snprintf(in->tmp, sizeof in->tmp, "%s", v);
	v = take_value(&rest, "target");
	if (!v ||
	    sscanf(v, "%16" SCNx64 "%16" SCNx64, &in->target.w[0], &in->target.w[1]) != 2)
		return false;
	v = take_value(&rest, "size");
	if (!v || sscanf(v, "%" SCNu64, &in->size) != 1 || in->size > INT64_MAX)
		return false;
	v = take_value(&rest, "mode");
	if (!v || sscanf(v, "%o", &in->mode) != 1 || in->mode > 07777)
		return false;
	if (!parse_time(take_value(&rest, "atime"), &in->ts[0]) ||
	    !parse_time(take_value(&rest, "mtime"), &in->ts[1]))
		return false;
	v = take_value(&rest, "capability");
	if (!v || !percent_decode(v, &len) || len > INTENT_CAP_MAX)
		return false;
	memcpy(in->cap, v, len);
	in->cap_len = len;
	v = take_value(&rest, "hint");
	if (!v || !percent_decode(v, &len))
		return false;
	in->hint = xstrdup(v);
	return true;
}

/* Valid is what intent_text() writes for the same values, byte by byte: a text that was made by
 * somebody else may say things that no intent of ours can. */
static bool is_ours(const struct intent *in, const char *text, size_t len)
{
	cleanup_free char *again = intent_text(in);

	return strlen(again) == len && memcmp(again, text, len) == 0;
}

errint_t intent_parse(const char *text, size_t len, struct intent *ret)
{
	cleanup_free char *copy = xmalloc(len + 1);
	struct intent in = {.hint = NULL};

	memcpy(copy, text, len);
	copy[len] = '\0';
	if (!sum_is_right(copy, len))
		return -EBADMSG;
	if (!parse_fields(copy, &in) || !is_ours(&in, text, len)) {
		free(in.hint);
		return -EPROTONOSUPPORT;
	}
	*ret = in;
	return 0;
}

errint_t intent_read(int tmp_fd, const char *name, struct intent *ret)
{
	cleanup_fd int fd = store_open_at(tmp_fd, name, O_RDONLY | O_NONBLOCK);
	cleanup_free char *text = NULL;
	struct intent in = {.hint = NULL};
	struct stat st;
	errint_t err = fd < 0 ? fd : sys_fstat(fd, &st);

	if (err)
		return err == -ELOOP ? -EBADMSG : err;
	if (!S_ISREG(st.st_mode) || st.st_size > INTENT_MAX)
		return -EBADMSG;
	text = xcalloc(1, (size_t)st.st_size + 1);
	err = full_pread(fd, text, (size_t)st.st_size, 0);
	if (err)
		return err == -ENODATA ? -EBADMSG : err;
	err = intent_parse(text, (size_t)st.st_size, &in);
	if (err)
		return err;
	(void)snprintf(in.name, sizeof in.name, "%s", name);
	*ret = in;
	return 0;
}
