/*
 * libFuzzer target: bytes that claim to be names, and what text.h makes of them.
 *
 * The first byte chooses whether the entry is a regular file; the rest, up to its first NUL, is a
 * name in the store, one in the mount, a path of them, a size and a duration. It fails on what
 * sanitizers see and where encoding and decoding do not undo each other.
 *
 *   tests/fuzz/fuzz-names -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-names
 */
#include <string.h>

#include "base/text.h"
#include "store/names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What can stand in a directory. */
static bool is_entry(const char *s)
{
	return *s && !strchr(s, '/') && strcmp(s, ".") != 0 && strcmp(s, "..") != 0 &&
	       strlen(s) <= NAME_MAX;
}

static void fuzz_stored(const char *s, bool regular)
{
	struct name logical, again;
	bool decoded = name_decode(s, regular, &logical);

	INVARIANT(strlen(logical.s) <= strlen(s));
	if (!is_entry(s))
		return;
	INVARIANT(is_entry(logical.s));
	if (!decoded) {
		INVARIANT(strcmp(logical.s, s) == 0);
		return;
	}
	/* What was decoded encodes to what it came from; what shows as it is, does not have to. */
	if (strcmp(logical.s, s) == 0)
		return;
	INVARIANT(name_encode(logical.s, regular, &again) == 0);
	INVARIANT(strcmp(again.s, s) == 0);
}

static void fuzz_logical(const char *s, bool regular)
{
	struct name stored, again;

	if (!is_entry(s))
		return;
	if (name_encode(s, regular, &stored)) {
		INVARIANT(strlen(s) > NAME_MAX - NAMES_SUFFIX_LEN);
		return;
	}
	INVARIANT(is_entry(stored.s));
	INVARIANT(name_decode(stored.s, regular, &again));
	INVARIANT(strcmp(again.s, s) == 0);
}

static void fuzz_path(const char *s)
{
	char *path = name_decode_path(s);
	size_t slashes = 0, theirs = 0;

	INVARIANT(strlen(path) <= strlen(s));
	for (const char *p = s; *p; p++)
		slashes += *p == '/';
	for (const char *p = path; *p; p++)
		theirs += *p == '/';
	INVARIANT(slashes == theirs);
	free(path);
}

static void fuzz_text(const char *s, size_t len)
{
	char *escaped = text_escape_n(s, len);
	uint64_t v;

	for (const unsigned char *p = (unsigned char *)escaped; *p; p++)
		INVARIANT(*p >= 0x20 && *p != 0x7f);
	INVARIANT(strlen(escaped) <= 4 * len);
	free(escaped);
	if (strnlen(s, len) == len)
		return;
	if (text_parse_size(s, &v))
		INVARIANT(s[0] >= '0' && s[0] <= '9');
	if (text_parse_duration(s, &v))
		INVARIANT(s[0] >= '0' && s[0] <= '9');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct name conflict;
	bool regular;
	char *s;

	if (!size)
		return 0;
	regular = data[0] & 1;
	s = xmalloc(size);
	memcpy(s, data + 1, size - 1);
	s[size - 1] = '\0';
	fuzz_text(s, size - 1);
	fuzz_stored(s, regular);
	fuzz_logical(s, regular);
	fuzz_path(s);
	name_conflict(s, (int64_t)size * 77777777 - data[0] * 1000, &conflict);
	INVARIANT(strlen(conflict.s) <= NAME_MAX - NAMES_SUFFIX_LEN);
	free(s);
	return 0;
}
