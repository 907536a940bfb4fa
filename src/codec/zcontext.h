/*
 * zstd contexts that threads keep, and zstd's errors in our terms.
 *
 * Making a context costs more than decoding a small file, so each thread keeps one of each
 * kind until it ends. A context is borrowed for one frame: what the last user set or left
 * unfinished is reset. Meant for whole frames in memory only: decoding a stream would
 * leave its window, up to 128 MiB, with the thread.
 */
#ifndef CELLAR_CODEC_ZCONTEXT_H
#define CELLAR_CODEC_ZCONTEXT_H

#include <zstd.h>

#include "base/error.h"

/* This thread's context with all parameters at their defaults; NULL when memory is out.
 * Not to be freed, and not to be used by another thread. */
ZSTD_DCtx *zcontext_decoder(void);
ZSTD_CCtx *zcontext_encoder(void);

/* errno for a result that ZSTD_isError(): -ENOMEM, or else `other`. */
errint_t zcontext_error(size_t result, errint_t other);

#endif
