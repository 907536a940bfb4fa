/*
 * The intent to copy one object over another: its text. What it is for is told in replace.c;
 * private to store/.
 *
 *   cellar-intent 1
 *   tmp NAME
 *   target IDENTITY       32 hex digits
 *   size N                of the object, in bytes
 *   mode OCTAL
 *   atime SEC NSEC
 *   mtime SEC NSEC
 *   capability BYTES      percent-encoded xattr, or nothing
 *   hint PATH             store path, percent-encoded
 *   sum XXH64             16 hex digits: of all before "sum "
 *
 * A torn one is known by its sum: it was never durable, hence nothing was copied.
 */
#ifndef CELLAR_STORE_INTENT_H
#define CELLAR_STORE_INTENT_H

#include "store/store.h"

#define INTENT_PREFIX   "intent-"  /* names in tmp/ */
#define INTENT_HINT_MAX (64 << 10) /* longer ones are left out: a walk finds the target */
#define INTENT_CAP_MAX  64

struct intent {
	char name[NAME_MAX + 1]; /* of the intent itself */
	char tmp[NAME_MAX + 1];  /* of the object to be copied */
	struct ident target;
	uint64_t size;
	mode_t mode;
	struct timespec ts[2];
	uint8_t cap[INTENT_CAP_MAX];
	size_t cap_len; /* 0: none */
	char *hint;     /* owned */
};

/* malloc'ed */
char *intent_text(const struct intent *in);
/* All but the name, from the text. Errors as for intent_read(), but for those of reading. */
errint_t intent_parse(const char *text, size_t len, struct intent *ret);
/* 0; -EBADMSG when it is torn or no intent at all; -EPROTONOSUPPORT when it is whole but of
 * another version or not as intent_text() writes it; or what reading it says. */
errint_t intent_read(int tmp_fd, const char *name, struct intent *ret);

#endif
