/*
 * Damage, exhaustively: every bit of a small object flipped, every length cut to, blocks
 * zeroed, garbled, swapped and torn; each time every frame is read and compared with the
 * original. What must hold (design, promise 8):
 *
 *   (D1) a read is right or fails; it is never other bytes and never another length
 *   (D2) only the frame in which the damage lies fails: all others are read, and damage of
 *        the trailer costs nothing at all
 *   (D3) damage is known: a frame fails, or object.flaw says what it is, or the bytes that
 *        changed mean nothing to any decoder
 */
#include "codec.h"

#include <zstd.h>

#include "base/counters.h"
#include "base/sysio.h"
#include "codec/zframe.h"

#define FRAME 1024U

struct subject {
	struct bytes content, stored;
	int fd;
	struct object whole; /* as opened undamaged */
	unsigned long tried, failing, healed, harmless;
};

static void subject_make(const struct harness *h, struct subject *s, struct bytes content,
                         uint32_t frame_size)
{
	char *cause = NULL;

	memset(s, 0, sizeof(*s));
	s->content = content;
	s->fd = encode_bytes(h, "object", &s->content, frame_size, 1, NULL);
	s->stored = bytes_of_fd(s->fd);
	assert_int_equal(object_open(s->fd, &s->whole, &cause), 0);
	assert_int_equal(s->whole.kind, OBJECT_SEEKABLE);
	assert_null(s->whole.flaw);
}

static void subject_clear(struct subject *s)
{
	object_close(&s->whole);
	(void)close(s->fd);
	bytes_clear(&s->content);
	bytes_clear(&s->stored);
}

/* Mixed frames: text, zeros, noise, a short last one. */
static struct bytes mixed_content(void)
{
	return bytes_mixed(5 * FRAME + 333, 7);
}

static void put(struct subject *s, size_t at, const void *data, size_t len)
{
	assert_int_equal(pwrite(s->fd, data, len, (off_t)at), (ssize_t)len);
}

static void put_back(struct subject *s)
{
	assert_int_equal(ftruncate(s->fd, (off_t)s->stored.len), 0);
	put(s, 0, s->stored.p, s->stored.len);
}

/* Where the trailer begins. */
static uint64_t data_end(const struct subject *s)
{
	return s->whole.table.entries[s->whole.table.count - 1].stored_off;
}

static bool touches(const struct seek_entry *e, size_t from, size_t to)
{
	return from < e->stored_off + e->stored_len && to > e->stored_off;
}

/* All frames of a seekable one. Stored bytes [from, to) are what was damaged. */
static unsigned check_frames(struct subject *s, const struct object *o, size_t from,
                             size_t to)
{
	uint8_t buf[64 * FRAME];
	unsigned bad = 0;

	if (o->logical_size != s->content.len)
		fail_msg("damage at %zu: %llu bytes long", from,
		         (unsigned long long)o->logical_size);
	for (size_t i = 0; i < o->table.count; i++) {
		const struct seek_entry *e = &o->table.entries[i];
		errint_t err;

		if (!e->logical_len)
			continue;
		assert_true(e->logical_len <= sizeof(buf));
		err = object_decode_frame(o, i, buf, NULL);
		if (!err && memcmp(buf, s->content.p + e->logical_off, e->logical_len))
			fail_msg("damage at %zu: wrong bytes in frame %zu", from, i);
		if (err && err != -EUCLEAN)
			fail_msg("damage at %zu: frame %zu: %s", from, i, strerror(-err));
		if (err && !touches(&s->whole.table.entries[i], from, to))
			fail_msg("damage at %zu: frame %zu fails too", from, i);
		bad += err != 0;
	}
	return bad;
}

/* (D1) for what is read in order. */
static bool check_in_order(struct subject *s, const struct object *o, size_t from)
{
	struct keep k = {.calls = 0};
	errint_t err = object_decode_all(o, 1U << 30, keep_sink, &k, NULL);
	bool right =
	    !err && k.b.len == s->content.len && !memcmp(k.b.p, s->content.p, k.b.len);

	if (!err && !right)
		fail_msg("damage at %zu: decodes in order to %zu other bytes", from,
		         k.b.len);
	if (err && err != -EUCLEAN)
		fail_msg("damage at %zu: %s", from, strerror(-err));
	bytes_clear(&k.b);
	return right;
}

enum verdict { READ_WHOLE, READ_PARTLY, READ_NOT };

/* Whether another decoder sees the same bytes: nothing that means anything changed. */
static bool means_nothing(const struct subject *s)
{
	struct bytes now = bytes_of_fd(s->fd);
	uint8_t *buf = malloc(s->content.len + 1);
	size_t got = ZSTD_decompress(buf, s->content.len, now.p, now.len);
	bool same =
	    !ZSTD_isError(got) && got == s->content.len && !memcmp(buf, s->content.p, got);

	free(buf);
	bytes_clear(&now);
	return same;
}

/* Damage in [from, to) was done. one: by something small, for which (D2) holds. */
static enum verdict check(struct subject *s, size_t from, size_t to, bool one)
{
	struct object o;
	unsigned bad;
	enum verdict v = READ_NOT;

	s->tried++;
	assert_int_equal(object_open(s->fd, &o, NULL), 0);
	switch (o.kind) {
	case OBJECT_SEEKABLE:
		bad = check_frames(s, &o, from, to);
		v = bad ? READ_PARTLY : READ_WHOLE;
		s->healed += !bad && o.flaw;
		if (!bad && !o.flaw) { /* (D3) */
			if (!means_nothing(s))
				fail_msg("damage at %zu: nobody knows of it", from);
			s->harmless++;
		}
		break;
	case OBJECT_FOREIGN:
		if (check_in_order(s, &o, from))
			v = READ_WHOLE;
		break;
	case OBJECT_PLAIN:
	case OBJECT_EMPTY:
		break;
	}
	s->failing += v != READ_WHOLE;
	if (one && v == READ_NOT)
		fail_msg("damage at %zu: nothing can be read", from); /* (D2) */
	if (one && v != READ_WHOLE && from >= data_end(s))
		fail_msg("damage of the trailer at %zu costs data", from);
	object_close(&o);
	return v;
}

static void say(const char *what, const struct subject *s)
{
	print_message(
	    "%s: %lu damages of %zu bytes: %lu lose a frame, %lu healed, %lu mean "
	    "nothing\n",
	    what, s->tried, s->stored.len, s->failing, s->healed, s->harmless);
}

static void flip_every_bit(struct subject *s, const char *what)
{
	for (size_t at = 0; at < s->stored.len; at++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			uint8_t b = (uint8_t)(s->stored.p[at] ^ 1U << bit);

			put(s, at, &b, 1);
			(void)check(s, at, at + 1, true);
		}
		put(s, at, &s->stored.p[at], 1);
	}
	say(what, s);
	/* most bits of the frames and none of the trailer */
	assert_in_range(s->failing, data_end(s) * 7, data_end(s) * 8);
	assert_true(s->healed > 0);
}

/* (D1) (D2) (D3) */
static void test_every_bit(void **state)
{
	struct subject s;

	subject_make(*state, &s, mixed_content(), FRAME);
	flip_every_bit(&s, "every bit, frames of all kinds");
	subject_clear(&s);
}

/* Frames of raw blocks: most of their bytes are under no rule but the checksum. */
static void test_every_bit_of_raw_frames(void **state)
{
	struct bytes noise = {.p = malloc(4500), .len = 4500};
	struct subject s;

	harness_fill(noise.p, noise.len, 3);
	subject_make(*state, &s, noise, 1500);
	assert_true(s.whole.cellar.flags & CELLARFRAME_INCOMPRESSIBLE);
	flip_every_bit(&s, "every bit, raw frames");
	subject_clear(&s);
}

/* Every byte becomes 0, 255, something else. (D1) (D2) */
static void test_every_byte(void **state)
{
	struct subject s;
	uint64_t seed = 99;

	subject_make(*state, &s, mixed_content(), FRAME);
	for (size_t at = 0; at < s.stored.len; at++) {
		uint8_t to[3] = {0, 0xFF, (uint8_t)harness_next(&seed)};

		for (unsigned i = 0; i < 3; i++) {
			if (to[i] == s.stored.p[at])
				continue;
			put(&s, at, &to[i], 1);
			(void)check(&s, at, at + 1, true);
		}
		put(&s, at, &s.stored.p[at], 1);
	}
	say("every byte", &s);
	subject_clear(&s);
}

/* Cut to every length, also exactly between two frames. (D1): nothing, or all of it where
 * no more than the table is missing. */
static void test_every_length(void **state)
{
	struct subject s;
	uint64_t enough;
	unsigned between = 0;

	subject_make(*state, &s, mixed_content(), FRAME);
	enough = data_end(&s) + CELLARFRAME_LEN;
	for (size_t len = 0; len < s.stored.len; len++) {
		enum verdict v;

		assert_int_equal(ftruncate(s.fd, (off_t)len), 0);
		v = check(&s, len, s.stored.len, false);
		if ((v == READ_WHOLE) != (len >= enough))
			fail_msg("cut to %zu of %zu: %d", len, s.stored.len, (int)v);
		for (size_t i = 1; i < s.whole.table.count; i++)
			between += s.whole.table.entries[i].stored_off == len;
		put_back(&s);
	}
	assert_int_equal(between, s.whole.table.count - 1);
	say("every length", &s);
	subject_clear(&s);
}

/* Garbage behind the end, of every length up to a block. (D1) */
static void test_grown(void **state)
{
	struct subject s;
	uint8_t garbage[4096];

	subject_make(*state, &s, mixed_content(), FRAME);
	for (unsigned kind = 0; kind < 2; kind++) {
		memset(garbage, 0, sizeof(garbage));
		if (kind)
			harness_fill(garbage, sizeof(garbage), 5);
		for (size_t len = 1; len <= sizeof(garbage); len += len < 100 ? 1 : 61) {
			put(&s, s.stored.len, garbage, len);
			(void)check(&s, s.stored.len, s.stored.len + len, false);
			put_back(&s);
		}
	}
	say("garbage behind", &s);
	subject_clear(&s);
}

/* Objects of a few dozen blocks: zeroed, garbled, exchanged with another block, written to
 * the place of another, and two at a time. (D1) */
static void test_blocks(void **state)
{
	enum { BLOCK = 512 };
	struct subject s;
	uint8_t garbage[BLOCK], zero[BLOCK] = {0};
	size_t blocks;

	subject_make(*state, &s, bytes_mixed(60000, 11), 4 * FRAME);
	blocks = s.stored.len / BLOCK;
	assert_true(blocks > 20);
	for (size_t i = 0; i <= blocks; i++) {
		size_t at = i * BLOCK, len = MIN_OF((size_t)BLOCK, s.stored.len - at);

		if (!len)
			continue;
		put(&s, at, zero, len);
		(void)check(&s, at, at + len, false);
		harness_fill(garbage, len, i);
		put(&s, at, garbage, len);
		(void)check(&s, at, at + len, false);
		put(&s, at, s.stored.p + at, len);
		for (size_t k = 0; k < blocks; k++) {
			struct object o;

			if (k == i || len < BLOCK)
				continue;
			/* the bytes of block k where block i belongs */
			put(&s, at, s.stored.p + k * BLOCK, BLOCK);
			assert_int_equal(object_open(s.fd, &o, NULL), 0);
			if (memcmp(s.stored.p + at, s.stored.p + k * BLOCK, BLOCK)) {
				object_close(&o);
				(void)check(&s, at, at + BLOCK, false);
			} else {
				object_close(&o);
			}
			/* and the other way round: exchanged; two places are damaged */
			put(&s, k * BLOCK, s.stored.p + at, BLOCK);
			assert_int_equal(object_open(s.fd, &o, NULL), 0);
			s.tried++;
			if (o.kind == OBJECT_SEEKABLE)
				(void)check_frames(&s, &o, 0, s.stored.len);
			else if (o.kind == OBJECT_FOREIGN)
				(void)check_in_order(&s, &o, at);
			object_close(&o);
			put(&s, k * BLOCK, s.stored.p + k * BLOCK, BLOCK);
			put(&s, at, s.stored.p + at, BLOCK);
		}
	}
	say("blocks", &s);
	subject_clear(&s);
}

/* Old and new version of one file, torn at every 64 bytes: one of them or damage. (D1) */
static void test_torn(void **state)
{
	struct subject old, new;
	struct bytes other = bytes_mixed(5 * FRAME + 333, 7);
	unsigned long old_read = 0, new_read = 0, tried = 0;

	for (size_t i = 0; i < other.len; i += 700)
		other.p[i] ^= 0x55;
	subject_make(*state, &old, mixed_content(), FRAME);
	(void)close(old.fd);
	old.fd = dup(STDIN_FILENO);
	subject_make(*state, &new, other, FRAME);
	for (size_t at = 0; at <= new.stored.len; at += 16) {
		for (unsigned way = 0; way < 2; way++) {
			const struct bytes *first = way ? &old.stored : &new.stored;
			const struct bytes *rest = way ? &new.stored : &old.stored;
			struct object o;
			uint8_t buf[FRAME];

			if (at > first->len || at > rest->len)
				continue;
			assert_int_equal(ftruncate(new.fd, (off_t)rest->len), 0);
			put(&new, 0, first->p, at);
			put(&new, at, rest->p + at, rest->len - at);
			tried++;
			assert_int_equal(object_open(new.fd, &o, NULL), 0);
			if (o.kind != OBJECT_SEEKABLE) {
				struct keep k = {.calls = 0};

				if (o.kind == OBJECT_FOREIGN)
					assert_int_equal(object_decode_all(&o, 1 << 20,
					                                   keep_sink, &k,
					                                   NULL),
					                 -EUCLEAN);
				bytes_clear(&k.b);
				object_close(&o);
				continue;
			}
			/* whose table it is decides whose bytes count */
			for (size_t i = 0; i < o.table.count; i++) {
				const struct seek_entry *e = &o.table.entries[i];
				bool is_old =
				    o.trailer_hash[0] == old.whole.trailer_hash[0];
				const struct bytes *want =
				    is_old ? &old.content : &new.content;

				if (!e->logical_len ||
				    object_decode_frame(&o, i, buf, NULL))
					continue;
				assert_memory_equal(buf, want->p + e->logical_off,
				                    e->logical_len);
				old_read += is_old;
				new_read += !is_old;
			}
			object_close(&o);
		}
	}
	print_message(
	    "torn: %lu mixtures, %lu frames of the old one read, %lu of the new\n", tried,
	    old_read, new_read);
	assert_true(old_read > 0 && new_read > 0);
	subject_clear(&old);
	subject_clear(&new);
}

/* Frames whose own checksums hold, in the wrong order or from another version: the table
 * has their checksums, and the cellar frame that of the table. (D1) */
static void test_right_frame_in_wrong_place(void **state)
{
	struct bytes noise = {.p = malloc(6000), .len = 6000};
	struct subject s;
	const struct seek_entry *e;

	harness_fill(noise.p, noise.len, 17);
	subject_make(*state, &s, noise, 1500);
	e = s.whole.table.entries;
	assert_int_equal(e[0].stored_len, e[2].stored_len);
	put(&s, e[0].stored_off, s.stored.p + e[2].stored_off, e[2].stored_len);
	put(&s, e[2].stored_off, s.stored.p + e[0].stored_off, e[0].stored_len);
	{
		struct object o;
		uint8_t buf[1500];

		assert_int_equal(object_open(s.fd, &o, NULL), 0);
		assert_int_equal(o.kind, OBJECT_SEEKABLE);
		for (size_t i = 0; i < 4; i++) {
			errint_t err = object_decode_frame(&o, i, buf, NULL);

			assert_int_equal(err, i == 0 || i == 2 ? -EUCLEAN : 0);
		}
		object_close(&o);
	}
	/* A table that fits the exchanged frames, without the cellar frame's consent. */
	put_back(&s);
	put(&s, e[0].stored_off, s.stored.p + e[2].stored_off, e[2].stored_len);
	put(&s, e[2].stored_off, s.stored.p + e[0].stored_off, e[0].stored_len);
	{
		struct seek_table t;
		uint8_t *table;
		size_t len;

		seektable_init(&t);
		for (size_t i = 0; i < s.whole.table.count; i++) {
			size_t from = i == 0 ? 2 : i == 2 ? 0 : i;

			assert_int_equal(seektable_append(&t, e[from].stored_len,
			                                  e[from].logical_len,
			                                  e[from].checksum),
			                 0);
		}
		assert_int_equal(seektable_serialize(&t, &table, &len), 0);
		put(&s, s.stored.len - len, table, len);
		seektable_clear(&t);
		free(table);
	}
	assert_int_equal(check(&s, 0, s.stored.len, false), READ_NOT);
	subject_clear(&s);
}

/* A cellar frame's own object behind another one, as `cat` makes it: both are read. */
static void test_joined_objects(void **state)
{
	struct subject s;
	struct bytes twice = {0}, got;

	subject_make(*state, &s, mixed_content(), FRAME);
	put(&s, s.stored.len, s.stored.p, s.stored.len);
	assert_int_equal(decode_fd(s.fd, 1 << 20, NULL, &got), 0);
	bytes_add(&twice, s.content.p, s.content.len);
	bytes_add(&twice, s.content.p, s.content.len);
	assert_bytes(&got, &twice);
	bytes_clear(&got);
	/* the second one cut between two frames */
	assert_int_equal(
	    ftruncate(s.fd, (off_t)(s.stored.len + s.whole.table.entries[2].stored_off)),
	    0);
	assert_int_equal(decode_fd(s.fd, 1 << 20, NULL, &got), -EUCLEAN);
	bytes_clear(&twice);
	subject_clear(&s);
}

/* ---- objects of others ---- */

static struct bytes zstd_simple(const struct bytes *content, int checksum)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	struct bytes b = {.p = malloc(ZSTD_compressBound(content->len))};

	(void)ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, checksum);
	b.len = ZSTD_compress2(c, b.p, ZSTD_compressBound(content->len), content->p,
	                       content->len);
	assert_false(ZSTD_isError(b.len));
	(void)ZSTD_freeCCtx(c);
	return b;
}

/* With zstd's checksum nothing wrong is read. Without, what is read is what zstd itself
 * makes of the bytes: no more can be known of such an object. */
static void test_every_bit_of_foreign(void **state)
{
	const struct harness *h = *state;
	struct bytes content = bytes_mixed(2500, 23);

	for (int checksum = 0; checksum < 2; checksum++) {
		struct bytes stored = zstd_simple(&content, checksum);
		uint8_t *zstd_says = malloc(1 << 20);
		unsigned long wrong = 0, right = 0, refused = 0;
		int fd = file_of_bytes(h, "foreign", &stored);

		for (size_t at = 0; at < stored.len * 8; at += HARNESS_STRIDE) {
			uint8_t b = (uint8_t)(stored.p[at / 8] ^ 1U << at % 8);
			struct keep k = {.calls = 0};
			struct object o;
			size_t len;
			errint_t err;

			stored.p[at / 8] = b;
			assert_int_equal(pwrite(fd, &b, 1, (off_t)(at / 8)), 1);
			assert_int_equal(object_open(fd, &o, NULL), 0);
			err = o.kind == OBJECT_PLAIN
			          ? -EUCLEAN
			          : object_decode_all(&o, 1 << 20, keep_sink, &k, NULL);
			len = ZSTD_decompress(zstd_says, 1 << 20, stored.p, stored.len);
			if (!err && k.b.len == content.len &&
			    !memcmp(k.b.p, content.p, k.b.len)) {
				right++;
			} else if (!err) {
				wrong++;
				assert_int_equal(len, k.b.len);
				assert_memory_equal(zstd_says, k.b.p, len);
			} else {
				refused++;
			}
			bytes_clear(&k.b);
			object_close(&o);
			stored.p[at / 8] = (uint8_t)(b ^ 1U << at % 8);
			assert_int_equal(pwrite(fd, &stored.p[at / 8], 1, (off_t)(at / 8)),
			                 1);
		}
		print_message("every bit of a foreign object %s checksum: %lu refused, %lu "
		              "right, %lu wrong as zstd has it\n",
		              checksum ? "with" : "without", refused, right, wrong);
		if (checksum)
			assert_int_equal(wrong, 0);
		else
			assert_true(wrong > 0); /* or the test would not look */
		(void)close(fd);
		free(zstd_says);
		bytes_clear(&stored);
	}
	bytes_clear(&content);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_every_bit, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_every_bit_of_raw_frames, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_every_byte, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_every_length, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_grown, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_blocks, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_torn, harness_setup, harness_teardown),
	    cmocka_unit_test_setup_teardown(test_right_frame_in_wrong_place, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_joined_objects, harness_setup,
	                                    harness_teardown),
	    cmocka_unit_test_setup_teardown(test_every_bit_of_foreign, harness_setup,
	                                    harness_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
