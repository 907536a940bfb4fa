/*
 * libFuzzer target: bytes that claim to be a scratch's record, its hint, or a cellar frame.
 *
 * The first byte chooses: 0 a record, 1 a record whose checksum is put right first (no fuzzer
 * guesses an XXH64), 2 and 3 the same for a cellar frame, 4 the xattrs of a file in memory.
 * What is accepted must pack to the bytes that it came from.
 *
 *   tests/fuzz/fuzz-record -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-record
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/sysio.h"
#include "codec/cellarframe.h"
#include "codec/little.h"
#include "pool/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_record(uint8_t *p, size_t size, bool forge)
{
	uint8_t packed[RECORD_LEN];
	struct record r;
	errint_t err;

	if (forge && size == RECORD_LEN)
		put_le64(p + RECORD_LEN - 8, XXH64(p, RECORD_LEN - 8, 0));
	err = record_unpack(p, size, &r);
	INVARIANT(!err || err == -EUCLEAN || err == -ENOTSUP);
	if (err)
		return;
	INVARIANT(size == RECORD_LEN && r.sync_seq <= r.seq &&
	          r.ctime.tv_nsec < 1000000000L);
	record_pack(&r, packed);
	INVARIANT(memcmp(packed, p, RECORD_LEN) == 0);
}

static void fuzz_frame(uint8_t *p, size_t size, bool forge)
{
	uint8_t packed[CELLARFRAME_LEN];
	struct cellar_frame f;

	if (forge && size == CELLARFRAME_LEN)
		put_le64(p + CELLARFRAME_LEN - 8, XXH64(p, CELLARFRAME_LEN - 8, 0));
	if (!cellarframe_unpack(p, size, &f))
		return;
	INVARIANT(size == CELLARFRAME_LEN && f.ctime.tv_nsec < 1000000000L);
	cellarframe_pack(&f, packed);
	INVARIANT(memcmp(packed, p, CELLARFRAME_LEN) == 0);
}

/* By way of a file, as recovery reads them. */
static void fuzz_xattrs(const uint8_t *p, size_t size)
{
	int fd = memfd_create("scratch", MFD_CLOEXEC);
	size_t len = MIN_OF(size, (size_t)RECORD_LEN);
	struct record r;
	char *hint = NULL;

	INVARIANT(fd >= 0);
	if (sys_fsetxattr(fd, RECORD_XATTR, p, len, 0) == 0 &&
	    sys_fsetxattr(fd, HINT_XATTR, p + len, size - len, 0) == 0) {
		(void)record_read(fd, &r);
		INVARIANT(record_read_hint(fd, &hint) == 0 && hint);
		INVARIANT(strlen(hint) <= size - len);
		free(hint);
	}
	(void)close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy;

	if (!size)
		return 0;
	copy = xmalloc(size); /* of its true length: sanitizers see what lies behind */
	memcpy(copy, data + 1, size - 1);
	switch (data[0] % 5) {
	case 0:
	case 1:
		fuzz_record(copy, size - 1, data[0] % 5 == 1);
		break;
	case 2:
	case 3:
		fuzz_frame(copy, size - 1, data[0] % 5 == 3);
		break;
	default:
		fuzz_xattrs(copy, size - 1);
		break;
	}
	free(copy);
	return 0;
}
