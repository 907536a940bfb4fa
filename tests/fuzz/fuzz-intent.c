/*
 * libFuzzer target: bytes that claim to be the intent of a copy over.
 *
 * The first byte chooses: even, the sum behind the text is put right first (no fuzzer guesses an
 * XXH64), so that the fields are reached. What is accepted names a file in tmp/ and nothing
 * else, keeps to its bounds, and what is written from it reads back the same.
 *
 *   tests/fuzz/fuzz-intent -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-intent
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "store/intent.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool same(const struct intent *a, const struct intent *b)
{
	return strcmp(a->tmp, b->tmp) == 0 && ident_equal(&a->target, &b->target) &&
	       a->size == b->size && a->mode == b->mode &&
	       a->ts[0].tv_sec == b->ts[0].tv_sec && a->ts[0].tv_nsec == b->ts[0].tv_nsec &&
	       a->ts[1].tv_sec == b->ts[1].tv_sec && a->ts[1].tv_nsec == b->ts[1].tv_nsec &&
	       a->cap_len == b->cap_len && memcmp(a->cap, b->cap, a->cap_len) == 0 &&
	       strcmp(a->hint, b->hint) == 0;
}

/* NUL-terminated; *ret_len without the NUL. */
static char *make_text(const uint8_t *data, size_t size, bool forge, size_t *ret_len)
{
	char *text = xmalloc(size + 32);

	memcpy(text, data, size);
	text[size] = '\0';
	*ret_len = size;
	if (forge)
		*ret_len += (size_t)snprintf(text + size, 32, "sum %016" PRIx64 "\n",
		                             (uint64_t)XXH64(text, size, 0));
	return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct intent in = {.hint = NULL}, again = {.hint = NULL};
	char *text, *written;
	size_t len;
	errint_t err;

	if (!size)
		return 0;
	text = make_text(data + 1, size - 1, !(data[0] & 1), &len);
	err = intent_parse(text, len, &in);
	INVARIANT(!err || err == -EBADMSG || err == -EPROTONOSUPPORT);
	if (!err) {
		INVARIANT(in.tmp[0] && !strchr(in.tmp, '/') &&
		          in.cap_len <= INTENT_CAP_MAX);
		INVARIANT(in.hint && in.ts[0].tv_nsec >= 0 &&
		          in.ts[0].tv_nsec < 1000000000L && in.ts[1].tv_nsec >= 0 &&
		          in.ts[1].tv_nsec < 1000000000L && in.mode <= 07777);
		written = intent_text(&in);
		INVARIANT(intent_parse(written, strlen(written), &again) == 0);
		INVARIANT(same(&in, &again));
		free(written);
		free(again.hint);
		free(in.hint);
	}
	free(text);
	return 0;
}
