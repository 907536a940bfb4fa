/*
 * One decoder and one encoder for each thread: see zcontext.h.
 *
 * Threads: thread-specific data; the thread's end frees both. No locks.
 */
#include "codec/zcontext.h"

#include <pthread.h>
#include <zstd_errors.h>

static pthread_once_t keys_once = PTHREAD_ONCE_INIT;
static pthread_key_t decoder_key, encoder_key;

static void free_decoder(void *context)
{
	(void)ZSTD_freeDCtx(context);
}

static void free_encoder(void *context)
{
	(void)ZSTD_freeCCtx(context);
}

static void make_keys(void)
{
	INVARIANT(pthread_key_create(&decoder_key, free_decoder) == 0);
	INVARIANT(pthread_key_create(&encoder_key, free_encoder) == 0);
}

ZSTD_DCtx *zcontext_decoder(void)
{
	ZSTD_DCtx *c;

	INVARIANT(pthread_once(&keys_once, make_keys) == 0);
	c = pthread_getspecific(decoder_key);
	if (!c) {
		c = ZSTD_createDCtx();
		if (!c || pthread_setspecific(decoder_key, c)) {
			(void)ZSTD_freeDCtx(c);
			return NULL;
		}
	}
	(void)ZSTD_DCtx_reset(c, ZSTD_reset_session_and_parameters);
	return c;
}

ZSTD_CCtx *zcontext_encoder(void)
{
	ZSTD_CCtx *c;

	INVARIANT(pthread_once(&keys_once, make_keys) == 0);
	c = pthread_getspecific(encoder_key);
	if (!c) {
		c = ZSTD_createCCtx();
		if (!c || pthread_setspecific(encoder_key, c)) {
			(void)ZSTD_freeCCtx(c);
			return NULL;
		}
	}
	(void)ZSTD_CCtx_reset(c, ZSTD_reset_session_and_parameters);
	return c;
}

errint_t zcontext_error(size_t result, errint_t other)
{
	return ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation ? -ENOMEM : other;
}
