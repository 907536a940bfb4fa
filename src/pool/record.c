/*
 * Packing, checking and storing the record of a scratch; format in record.h.
 */
#include "pool/record.h"

#include <string.h>
#include <sys/xattr.h>

#include <xxhash.h>

#include "base/sysio.h"
#include "codec/little.h"

#define RECORD_VERSION  1
#define HINT_MAX        3072 /* fits beside the record on every filesystem that we know */
#define HINT_TAIL       9    /* NUL and hash */
#define CHECKSUM_OFFSET (RECORD_LEN - 8)

/* A position in the record; each call moves it on. */
static void put_u16(uint8_t **p, uint16_t v)
{
	put_le16(*p, v);
	*p += sizeof(v);
}

static void put_u32(uint8_t **p, uint32_t v)
{
	put_le32(*p, v);
	*p += sizeof(v);
}

static void put_u64(uint8_t **p, uint64_t v)
{
	put_le64(*p, v);
	*p += sizeof(v);
}

static uint32_t take_u32(const uint8_t **p)
{
	*p += sizeof(uint32_t);
	return get_le32(*p - sizeof(uint32_t));
}

static uint64_t take_u64(const uint8_t **p)
{
	*p += sizeof(uint64_t);
	return get_le64(*p - sizeof(uint64_t));
}

void record_pack(const struct record *r, uint8_t ret[RECORD_LEN])
{
	uint8_t *p = ret;

	memcpy(p, "CLRR", 4);
	p += 4;
	put_u16(&p, RECORD_VERSION);
	*p++ = (uint8_t)r->state;
	*p++ = (uint8_t)r->kind;
	put_u64(&p, r->ino);
	put_u64(&p, r->ask);
	memcpy(p, r->boot.b, sizeof(r->boot.b));
	p += sizeof(r->boot.b);
	put_u64(&p, r->base.ident.w[0]);
	put_u64(&p, r->base.ident.w[1]);
	put_u64(&p, r->base.stored_size);
	put_u64(&p, r->base.trailer_hash[0]);
	put_u64(&p, r->base.trailer_hash[1]);
	put_u64(&p, r->seq);
	put_u64(&p, r->sync_seq);
	put_u64(&p, r->sync_size);
	put_u64(&p, (uint64_t)(int64_t)r->ctime.tv_sec);
	put_u32(&p, (uint32_t)r->ctime.tv_nsec);
	put_u32(&p, r->flags);
	put_u64(&p, XXH64(ret, CHECKSUM_OFFSET, 0));
	INVARIANT(p == ret + RECORD_LEN);
}

errint_t record_unpack(const uint8_t *buf, size_t len, struct record *ret)
{
	const uint8_t *p = buf, *end = buf + CHECKSUM_OFFSET;
	struct record r = {0};

	if (len != RECORD_LEN || memcmp(p, "CLRR", 4) != 0)
		return -EUCLEAN;
	if (get_le64(end) != XXH64(buf, CHECKSUM_OFFSET, 0))
		return -EUCLEAN;
	p += 4;
	if (get_le16(p) != RECORD_VERSION)
		return -ENOTSUP;
	p += 2;
	r.state = *p++;
	r.kind = *p++;
	r.ino = take_u64(&p);
	r.ask = take_u64(&p);
	memcpy(r.boot.b, p, sizeof(r.boot.b));
	p += sizeof(r.boot.b);
	r.base.ident.w[0] = take_u64(&p);
	r.base.ident.w[1] = take_u64(&p);
	r.base.stored_size = take_u64(&p);
	r.base.trailer_hash[0] = take_u64(&p);
	r.base.trailer_hash[1] = take_u64(&p);
	r.seq = take_u64(&p);
	r.sync_seq = take_u64(&p);
	r.sync_size = take_u64(&p);
	r.ctime.tv_sec = (time_t)(int64_t)take_u64(&p);
	r.ctime.tv_nsec = take_u32(&p);
	r.flags = take_u32(&p);
	if (r.state > RECORD_DIRTY || r.kind > RECORD_TAIL ||
	    r.ctime.tv_nsec >= 1000000000L || r.sync_size > INT64_MAX || r.sync_seq > r.seq)
		return -EUCLEAN;
	*ret = r;
	return 0;
}

void record_settle(struct record *r, uint64_t size, bool rebooted)
{
	if (rebooted)
		size = r->sync_seq > 0 ? r->sync_size : UINT64_MAX;
	if (r->kind == RECORD_TAIL && size < r->ask) {
		r->kind = RECORD_WHOLE;
		r->ask = 0;
	}
}

errint_t record_write(int fd, const struct record *r)
{
	uint8_t buf[RECORD_LEN];

	record_pack(r, buf);
	return sys_fsetxattr(fd, RECORD_XATTR, buf, sizeof(buf), 0);
}

errint_t record_read(int fd, struct record *ret)
{
	uint8_t buf[RECORD_LEN + 1];
	ssize_t n = sys_fgetxattr(fd, RECORD_XATTR, buf, sizeof(buf));

	if (n == -ERANGE)
		return -EUCLEAN;
	return n < 0 ? (errint_t)n : record_unpack(buf, (size_t)n, ret);
}

errint_t record_write_hint(int fd, const char *store_path)
{
	uint8_t buf[HINT_MAX + HINT_TAIL];
	size_t len = strlen(store_path);
	errint_t r;

	if (len > HINT_MAX)
		len = 0;
	memcpy(buf, store_path, len);
	buf[len] = '\0';
	put_le64(buf + len + 1, XXH64(buf, len + 1, 0));
	r = sys_fsetxattr(fd, HINT_XATTR, buf, len ? len + HINT_TAIL : 0, 0);
	/* It is a hint: a filesystem without room for it costs a search, not the data. */
	if (r == -ENOSPC || r == -E2BIG || r == -ERANGE)
		r = sys_fsetxattr(fd, HINT_XATTR, "", 0, 0);
	return r;
}

errint_t record_read_hint(int fd, char **ret)
{
	uint8_t buf[HINT_MAX + HINT_TAIL];
	ssize_t n = sys_fgetxattr(fd, HINT_XATTR, buf, sizeof(buf));
	size_t len = n > HINT_TAIL ? (size_t)n - HINT_TAIL : 0;

	if (n < 0 && n != -ENODATA && n != -ERANGE)
		return (errint_t)n;
	if (len && (strnlen((const char *)buf, len + 1) != len ||
	            get_le64(buf + len + 1) != XXH64(buf, len + 1, 0)))
		len = 0;
	buf[len] = '\0';
	*ret = xstrdup((const char *)buf);
	return 0;
}
