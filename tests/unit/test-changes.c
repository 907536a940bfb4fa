/*
 * pool/changes.c and codec/plan.c: what is noted is never forgotten, what is far from it is not
 * claimed for long; plans cover the file exactly once.
 */
#include "codec.h"

#include "codec/plan.h"
#include "pool/changes.h"

#define KIB 1024ULL
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

/* ---- ranges ---- */

static void test_nothing(void **state)
{
	struct changes c;

	changes_init(&c);
	assert_false(changes_touch(&c, 0, UINT64_MAX));
	assert_int_equal(changes_lowest(&c), UINT64_MAX);
	assert_false(changes_unseen(&c));
	changes_note(&c, 77, 0);
	assert_int_equal(changes_lowest(&c), UINT64_MAX);
	changes_release(&c);
}

/* The lowest offset is exact: an append is known as one. */
static void test_append_is_exact(void **state)
{
	struct changes c, d;

	changes_init(&c);
	changes_init(&d);
	changes_note(&c, 5 * MIB + 123, 10);
	assert_false(changes_touch(&c, 0, 5 * MIB + 123));
	assert_true(changes_touch(&c, 0, 5 * MIB + 124));
	assert_true(changes_touch(&c, 5 * MIB + 132, 1));
	assert_false(changes_touch(&c, 6 * MIB, GIB));
	changes_move(&d, &c);
	assert_false(changes_touch(&c, 0, UINT64_MAX));
	assert_int_equal(changes_lowest(&d), 5 * MIB + 123);
	assert_false(changes_touch(&d, 0, 5 * MIB + 123));
	assert_true(changes_touch(&d, 0, 5 * MIB + 124));
	changes_release(&c);
	changes_release(&d);
}

static void test_from(void **state)
{
	struct changes c;

	changes_init(&c);
	changes_note_from(&c, 1000);
	assert_false(changes_touch(&c, 0, 1000));
	assert_true(changes_touch(&c, 0, 1001));
	assert_true(changes_touch(&c, 900 * GIB, 1));
	changes_note(&c, 10, 1);
	assert_true(changes_touch(&c, 10, 1));
	assert_int_equal(changes_lowest(&c), 10);
	changes_reset(&c);
	assert_false(changes_touch(&c, 0, UINT64_MAX));
	changes_note_all(&c);
	assert_true(changes_unseen(&c));
	assert_int_equal(changes_lowest(&c), 0);
	changes_release(&c);
}

/* Bounded whatever the offsets, and never an under-statement. */
static void test_random_ranges(void **state)
{
	enum { RANGES = 200 };
	struct {
		uint64_t off, len;
	} r[RANGES];
	uint64_t seed = 5;

	for (unsigned round = 0; round < 40; round++) {
		unsigned top = 17 + round;
		struct changes a, b;

		changes_init(&a);
		changes_init(&b);
		for (unsigned i = 0; i < RANGES; i++) {
			r[i].off = harness_next(&seed) & ((1ULL << top) - 1);
			r[i].len = 1 + (harness_next(&seed) & 0x3ffff);
			changes_note(i % 2 ? &a : &b, r[i].off, r[i].len);
		}
		changes_move(&a, &b);
		assert_true(a.words * sizeof(*a.map) <= CHANGES_MAP_MAX);
		for (unsigned i = 0; i < RANGES; i++) {
			assert_true(changes_touch(&a, r[i].off, 1));
			assert_true(changes_touch(&a, r[i].off + r[i].len - 1, 1));
			assert_true(changes_touch(&a, r[i].off + r[i].len / 2, 1));
		}
		assert_false(changes_touch(&a, 1ULL << 60, 1ULL << 60));
		changes_release(&a);
		changes_release(&b);
	}
}

/* Far from what was written in a huge file nothing is claimed. */
static void test_coarse_but_not_blind(void **state)
{
	struct changes c;

	changes_init(&c);
	changes_note(&c, 900 * GIB, 1);
	changes_note(&c, 100 * GIB, 1);
	assert_true(changes_touch(&c, 100 * GIB, 1));
	assert_true(changes_touch(&c, 900 * GIB, 1));
	assert_false(changes_touch(&c, 101 * GIB, 700 * GIB));
	changes_release(&c);
}

/* ---- plans ---- */

/* A base of these frames; stored sizes are a tenth; skippable where 0. */
static struct object make_base(const uint32_t *lens, size_t n)
{
	struct object o = {.kind = OBJECT_SEEKABLE, .has_cellar_frame = true};

	seektable_init(&o.table);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(
		    seektable_append(&o.table, lens[i] ? lens[i] / 10 + 8 : 50, lens[i], 1),
		    0);
	assert_int_equal(seektable_append(&o.table, CELLARFRAME_LEN, 0, 0), 0);
	o.logical_size = o.table.logical_len;
	o.stored_size = o.table.stored_len + 1000;
	return o;
}

static void assert_covers(const struct plan *p, const struct object *base, uint64_t size,
                          uint64_t from)
{
	uint64_t encoded = 0;
	size_t frames = 0;

	for (size_t i = 0; i < p->count; i++) {
		const struct plan_piece *piece = &p->pieces[i];

		assert_int_equal(piece->off, from);
		assert_true(piece->len > 0);
		for (size_t k = piece->from; k < piece->to; k++)
			assert_true(base->table.entries[k].logical_len > 0);
		if (piece->from == piece->to) {
			encoded += piece->len;
			frames++;
		}
		from += piece->len;
	}
	assert_int_equal(from, size);
	assert_int_equal(encoded, p->encoded_bytes);
	assert_int_equal(frames, p->encoded_frames);
}

static void test_plan_middle(void **state)
{
	const uint32_t lens[] = {100, 100, 100, 0, 100, 100};
	struct object base = make_base(lens, ARRAY_LEN(lens));
	uint8_t changed[7] = {0, 1, 0, 0, 0, 0, 0};
	struct plan_rules rules = {.frame_size = 100, .may_append = true};
	struct plan p;

	assert_int_equal(plan_make(&base, changed, 500, &rules, &p, NULL), 0);
	assert_covers(&p, &base, 500, 0);
	assert_false(p.append);
	assert_int_equal(p.encoded_bytes, 100);
	assert_int_equal(p.kept_frames, 4);
	assert_int_equal(p.count, 4); /* 0; the change; 2; 4 and 5 */
	plan_clear(&p);
	seektable_clear(&base.table);
}

static void test_plan_truncated(void **state)
{
	const uint32_t lens[] = {100, 100, 100, 100};
	struct object base = make_base(lens, ARRAY_LEN(lens));
	uint8_t changed[5] = {0};
	struct plan_rules rules = {.frame_size = 100, .may_append = true};
	struct plan p;

	for (uint64_t size = 0; size <= 400; size += 50) {
		assert_int_equal(plan_make(&base, changed, size, &rules, &p, NULL), 0);
		assert_covers(&p, &base, size, 0);
		assert_int_equal(p.kept_frames, size / 100);
		assert_int_equal(p.encoded_bytes, size % 100);
		plan_clear(&p);
	}
	seektable_clear(&base.table);
}

static void test_plan_append(void **state)
{
	const uint32_t lens[] = {100, 100, 30};
	struct object base = make_base(lens, ARRAY_LEN(lens));
	uint8_t changed[4] = {0};
	struct plan_rules rules = {.frame_size = 100, .may_append = true, .append_min = 39};
	struct plan p;

	assert_int_equal(plan_make(&base, changed, 240, &rules, &p, NULL), 0);
	assert_true(p.append);
	assert_covers(&p, &base, 240, 230);
	assert_int_equal(p.encoded_frames, 1);
	plan_clear(&p);
	/* Too little in front, or not allowed: the small last frame is taken in. */
	rules.append_min = 48;
	assert_int_equal(plan_make(&base, changed, 240, &rules, &p, NULL), 0);
	assert_false(p.append);
	assert_covers(&p, &base, 240, 0);
	assert_int_equal(p.encoded_bytes, 40);
	assert_int_equal(p.kept_frames, 2);
	plan_clear(&p);
	rules.append_min = 0;
	changed[0] = 1;
	assert_int_equal(plan_make(&base, changed, 240, &rules, &p, NULL), 0);
	assert_false(p.append);
	assert_covers(&p, &base, 240, 0);
	plan_clear(&p);
	seektable_clear(&base.table);
}

/* Dead bytes past a quarter: replaced, and small frames merged. */
static void test_plan_worn(void **state)
{
	uint32_t lens[60];
	struct object base;
	uint8_t changed[61] = {0};
	struct plan_rules rules = {.frame_size = 1000, .may_append = true};
	struct plan p;

	for (size_t i = 0; i < ARRAY_LEN(lens); i++)
		lens[i] = i < 2 ? 1000 : i % 2 ? 10 : 0;
	base = make_base(lens, ARRAY_LEN(lens));
	assert_true(plan_is_worn(&base, 1000));
	assert_int_equal(plan_dead_bytes(&base), 29 * 50);
	assert_int_equal(plan_make(&base, changed, 2290 + 5, &rules, &p, NULL), 0);
	assert_false(p.append);
	assert_covers(&p, &base, 2295, 0);
	assert_int_equal(p.kept_frames, 2);
	assert_int_equal(p.encoded_frames, 1);
	plan_clear(&p);
	seektable_clear(&base.table);
}

static void test_plan_random(void **state)
{
	uint64_t seed = 9;

	for (unsigned round = 0; round < 3000; round++) {
		uint32_t lens[40];
		uint8_t changed[41] = {0};
		size_t n = harness_next(&seed) % ARRAY_LEN(lens);
		struct plan_rules rules = {.frame_size = 1 + harness_next(&seed) % 300};
		struct object base;
		uint64_t size;
		struct plan p;

		for (size_t i = 0; i < n; i++) {
			lens[i] = harness_next(&seed) % 4 ? harness_next(&seed) % 300 : 0;
			changed[i] = harness_next(&seed) % 3 == 0;
		}
		base = make_base(lens, n);
		size = harness_next(&seed) % (base.logical_size + 500);
		rules.may_append = harness_next(&seed) % 2;
		assert_int_equal(plan_make(&base, changed, size, &rules, &p, NULL), 0);
		assert_covers(&p, &base, size, p.append ? base.logical_size : 0);
		for (size_t i = 0; i < p.count; i++) {
			for (size_t k = p.pieces[i].from; k < p.pieces[i].to; k++)
				assert_false(changed[k]);
		}
		plan_clear(&p);
		seektable_clear(&base.table);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_nothing),
	    cmocka_unit_test(test_append_is_exact),
	    cmocka_unit_test(test_from),
	    cmocka_unit_test(test_random_ranges),
	    cmocka_unit_test(test_coarse_but_not_blind),
	    cmocka_unit_test(test_plan_middle),
	    cmocka_unit_test(test_plan_truncated),
	    cmocka_unit_test(test_plan_append),
	    cmocka_unit_test(test_plan_worn),
	    cmocka_unit_test(test_plan_random),
	};

	return cmocka_run_group_tests_name("changes", tests, NULL, NULL);
}
