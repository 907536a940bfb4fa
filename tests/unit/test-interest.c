/* mount/interest.c: a guess lasts some seconds, and is nobody else's. */
#include "harness.h"

#include "mount/interest.h"

static void test_nobody(void **state)
{
	struct interest i = {0};

	assert_false(interest_has(&i, 1000));
	assert_false(interest_has(&i, 0));
}

static void test_is_the_callers(void **state)
{
	struct interest i = {0};

	interest_note(&i, 1000);
	assert_true(interest_has(&i, 1000));
	assert_false(interest_has(&i, 1001));
	assert_false(interest_has(&i, 1000 + INTEREST_SLOTS));
	interest_note(&i, 1000 + INTEREST_SLOTS);
	assert_true(interest_has(&i, 1000 + INTEREST_SLOTS));
	assert_false(interest_has(&i, 1000));
}

/* Of another pid namespace all are 0. */
static void test_number_zero(void **state)
{
	struct interest i = {0};

	interest_note(&i, 0);
	assert_true(interest_has(&i, 0));
}

static void test_does_not_last(void **state)
{
	uint64_t pid = 1000;
	struct interest i = {0};

	interest_note(&i, (pid_t)pid);
	i.slots[pid % INTEREST_SLOTS] -= 5;
	assert_true(interest_has(&i, (pid_t)pid));
	i.slots[pid % INTEREST_SLOTS] -= 60;
	assert_false(interest_has(&i, (pid_t)pid));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_nobody),
	    cmocka_unit_test(test_is_the_callers),
	    cmocka_unit_test(test_number_zero),
	    cmocka_unit_test(test_does_not_last),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
