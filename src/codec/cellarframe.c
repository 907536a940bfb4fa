/*
 * Packing and unpacking the cellar frame: see cellarframe.h for the bytes.
 *
 * Guarantees: pack writes every byte of the frame; unpack believes nothing before length,
 * magics, version and checksum agree. No allocation, no files.
 */
#include "codec/cellarframe.h"

#include <xxhash.h>

#include "codec/little.h"

#define BODY_LEN  (CELLARFRAME_LEN - 8U)
#define VERSION_1 1U

enum {
	AT_MAGIC = 0,
	AT_LEN = 4,
	AT_NAME = 8,
	AT_VERSION = 12,
	AT_FLAGS = 14,
	AT_LEVEL = 16,
	AT_CTIME_NSEC = 20,
	AT_POOL = 24,
	AT_INO = 40,
	AT_SEQ = 48,
	AT_CTIME_SEC = 56,
	AT_TABLE_CHECK = 64,
	AT_CHECKSUM = 72,
};
_Static_assert(AT_CHECKSUM + 8 == CELLARFRAME_LEN, "the checksum ends the frame");

static const char frame_name[4] = {'C', 'L', 'R', 'F'};

void cellarframe_pack(const struct cellar_frame *f, uint8_t ret[CELLARFRAME_LEN])
{
	put_le32(ret + AT_MAGIC, CELLARFRAME_MAGIC);
	put_le32(ret + AT_LEN, BODY_LEN);
	memcpy(ret + AT_NAME, frame_name, sizeof(frame_name));
	put_le16(ret + AT_VERSION, VERSION_1);
	put_le16(ret + AT_FLAGS, f->flags);
	put_le32(ret + AT_LEVEL, (uint32_t)f->level);
	put_le32(ret + AT_CTIME_NSEC, (uint32_t)f->ctime.tv_nsec);
	memcpy(ret + AT_POOL, f->pool.b, sizeof(f->pool.b));
	put_le64(ret + AT_INO, f->ino);
	put_le64(ret + AT_SEQ, f->seq);
	put_le64(ret + AT_CTIME_SEC, (uint64_t)f->ctime.tv_sec);
	put_le64(ret + AT_TABLE_CHECK, f->table_check);
	put_le64(ret + AT_CHECKSUM, XXH64(ret, AT_CHECKSUM, 0));
}

bool cellarframe_is_named(const uint8_t *buf)
{
	return !memcmp(buf + AT_NAME, frame_name, sizeof(frame_name));
}

static bool frame_valid(const uint8_t *buf, size_t len)
{
	return len == CELLARFRAME_LEN && get_le32(buf + AT_MAGIC) == CELLARFRAME_MAGIC &&
	       get_le32(buf + AT_LEN) == BODY_LEN && cellarframe_is_named(buf) &&
	       get_le16(buf + AT_VERSION) == VERSION_1 &&
	       get_le32(buf + AT_CTIME_NSEC) < 1000000000U &&
	       get_le64(buf + AT_CHECKSUM) == XXH64(buf, AT_CHECKSUM, 0);
}

bool cellarframe_unpack(const uint8_t *buf, size_t len, struct cellar_frame *ret)
{
	if (!frame_valid(buf, len))
		return false;
	*ret = (struct cellar_frame){
	    .ino = get_le64(buf + AT_INO),
	    .seq = get_le64(buf + AT_SEQ),
	    .ctime = {.tv_sec = (time_t)get_le64(buf + AT_CTIME_SEC),
	              .tv_nsec = get_le32(buf + AT_CTIME_NSEC)},
	    .level = (int32_t)get_le32(buf + AT_LEVEL),
	    .flags = get_le16(buf + AT_FLAGS),
	    .table_check = get_le64(buf + AT_TABLE_CHECK),
	};
	memcpy(ret->pool.b, buf + AT_POOL, sizeof(ret->pool.b));
	return true;
}
