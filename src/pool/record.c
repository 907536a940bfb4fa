/*
 * Packing, checking and storing the record of a scratch; format in record.h.
 */
#include "pool/record.h"

#include <endian.h>
#include <string.h>
#include <sys/xattr.h>

#include <xxhash.h>

#include "base/sysio.h"

#define RECORD_VERSION  1
#define HINT_MAX        3072 /* fits beside the record on every filesystem that we know */
#define CHECKSUM_OFFSET (RECORD_LEN - 8)

static void put16(uint8_t **p, uint16_t v)
{
	v = htole16(v);
	memcpy(*p, &v, sizeof(v));
	*p += sizeof(v);
}

static void put32(uint8_t **p, uint32_t v)
{
	v = htole32(v);
	memcpy(*p, &v, sizeof(v));
	*p += sizeof(v);
}

static void put64(uint8_t **p, uint64_t v)
{
	v = htole64(v);
	memcpy(*p, &v, sizeof(v));
	*p += sizeof(v);
}

static uint16_t get16(const uint8_t **p)
{
	uint16_t v;

	memcpy(&v, *p, sizeof(v));
	*p += sizeof(v);
	return le16toh(v);
}

static uint32_t get32(const uint8_t **p)
{
	uint32_t v;

	memcpy(&v, *p, sizeof(v));
	*p += sizeof(v);
	return le32toh(v);
}

static uint64_t get64(const uint8_t **p)
{
	uint64_t v;

	memcpy(&v, *p, sizeof(v));
	*p += sizeof(v);
	return le64toh(v);
}

void record_pack(const struct record *r, uint8_t ret[RECORD_LEN])
{
	uint8_t *p = ret;

	memcpy(p, "CLRR", 4);
	p += 4;
	put16(&p, RECORD_VERSION);
	*p++ = (uint8_t)r->state;
	*p++ = (uint8_t)r->kind;
	put64(&p, r->ino);
	put64(&p, r->ask);
	memcpy(p, r->boot.b, sizeof(r->boot.b));
	p += sizeof(r->boot.b);
	put64(&p, r->base.ident.w[0]);
	put64(&p, r->base.ident.w[1]);
	put64(&p, r->base.stored_size);
	put64(&p, r->base.trailer_hash[0]);
	put64(&p, r->base.trailer_hash[1]);
	put64(&p, r->seq);
	put64(&p, r->sync_seq);
	put64(&p, r->sync_size);
	put64(&p, (uint64_t)(int64_t)r->ctime.tv_sec);
	put32(&p, (uint32_t)r->ctime.tv_nsec);
	put32(&p, r->flags);
	put64(&p, XXH64(ret, CHECKSUM_OFFSET, 0));
	INVARIANT(p == ret + RECORD_LEN);
}

errint_t record_unpack(const uint8_t *buf, size_t len, struct record *ret)
{
	const uint8_t *p = buf, *end = buf + CHECKSUM_OFFSET;
	struct record r = {0};

	if (len != RECORD_LEN || memcmp(p, "CLRR", 4) != 0)
		return -EUCLEAN;
	if (get64(&end) != XXH64(buf, CHECKSUM_OFFSET, 0))
		return -EUCLEAN;
	p += 4;
	if (get16(&p) != RECORD_VERSION)
		return -ENOTSUP;
	r.state = *p++;
	r.kind = *p++;
	r.ino = get64(&p);
	r.ask = get64(&p);
	memcpy(r.boot.b, p, sizeof(r.boot.b));
	p += sizeof(r.boot.b);
	r.base.ident.w[0] = get64(&p);
	r.base.ident.w[1] = get64(&p);
	r.base.stored_size = get64(&p);
	r.base.trailer_hash[0] = get64(&p);
	r.base.trailer_hash[1] = get64(&p);
	r.seq = get64(&p);
	r.sync_seq = get64(&p);
	r.sync_size = get64(&p);
	r.ctime.tv_sec = (time_t)(int64_t)get64(&p);
	r.ctime.tv_nsec = get32(&p);
	r.flags = get32(&p);
	if (r.state > RECORD_DIRTY || r.kind > RECORD_TAIL ||
	    r.ctime.tv_nsec >= 1000000000L || r.sync_size > INT64_MAX || r.sync_seq > r.seq)
		return -EUCLEAN;
	*ret = r;
	return 0;
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
	size_t len = strlen(store_path);
	errint_t r;

	if (len > HINT_MAX)
		len = 0;
	r = sys_fsetxattr(fd, HINT_XATTR, store_path, len, 0);
	/* It is a hint: a filesystem without room for it costs a search, not the data. */
	if (r == -ENOSPC || r == -E2BIG || r == -ERANGE)
		r = sys_fsetxattr(fd, HINT_XATTR, "", 0, 0);
	return r;
}

errint_t record_read_hint(int fd, char **ret)
{
	char buf[HINT_MAX + 1];
	ssize_t n = sys_fgetxattr(fd, HINT_XATTR, buf, sizeof(buf) - 1);

	if (n < 0 && n != -ENODATA && n != -ERANGE)
		return (errint_t)n;
	buf[MAX_OF(n, 0)] = '\0';
	*ret = xstrdup(buf);
	return 0;
}
