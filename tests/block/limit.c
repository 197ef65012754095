/* The token bucket, with the time given by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "back/block/block_limit.h"

#define S 1000000000ull

static struct block_limit make(uint64_t rate, uint64_t burst, uint64_t now)
{
    struct block_limit l;
    struct block_limit_cfg cfg = {.rate = rate, .burst = burst};

    block_limit_init(&l, &cfg, now);
    return l;
}

/* Takes as many single tokens as there are. */
static unsigned drain(struct block_limit *l, uint64_t now)
{
    unsigned n = 0;

    while (block_limit_when(l, 1, now) <= now) {
        block_limit_take(l, 1);
        n++;
    }
    return n;
}

static void test_no_limit(void **state)
{
    struct block_limit l = make(0, 0, 5);

    (void)state;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(block_limit_when(&l, UINT64_MAX, 5), 5);
        block_limit_take(&l, UINT64_MAX);
    }
}

static void test_starts_full_and_refills(void **state)
{
    struct block_limit l = make(100, 0, 7);

    (void)state;
    assert_int_equal(drain(&l, 7), 100);
    assert_int_equal(block_limit_when(&l, 1, 7), 7 + S / 100);
    assert_int_equal(drain(&l, 7 + S / 100 - 1), 0);
    assert_int_equal(drain(&l, 7 + S / 100), 1);
    assert_int_equal(drain(&l, 7 + S / 2), 49);
    /* However long it rests, it holds a second's worth. */
    assert_int_equal(drain(&l, 7 + 1000 * S), 100);
}

static void test_burst_once(void **state)
{
    struct block_limit l = make(10, 25, 0);

    (void)state;
    assert_int_equal(drain(&l, 0), 35);
    assert_int_equal(drain(&l, 100 * S), 10);
}

/* Looking often must not lose the fractions of a token. */
static void test_keeps_fractions(void **state)
{
    struct block_limit l = make(3, 0, 0);
    unsigned n = drain(&l, 0);

    (void)state;
    for (uint64_t t = 0; t <= 100 * S; t += 999983)
        n += drain(&l, t);
    assert_in_range(n, 3 + 299, 3 + 300);
}

static void test_more_than_the_bucket(void **state)
{
    struct block_limit l = make(1000, 0, 0);

    (void)state;
    /* Ten seconds' worth goes when the bucket is full, and is paid for afterwards. */
    assert_int_equal(block_limit_when(&l, 10000, 0), 0);
    block_limit_take(&l, 10000);
    assert_int_equal(block_limit_when(&l, 1, 0), 9 * S + S / 1000);
    assert_int_equal(drain(&l, 9 * S), 0);
    /* Again: only when full. */
    assert_int_equal(block_limit_when(&l, 10000, 9 * S), 10 * S);
}

static void test_huge(void **state)
{
    struct block_limit l = make(UINT64_MAX, UINT64_MAX, 0);

    (void)state;
    for (int i = 0; i < 100; i++) {
        uint64_t t = block_limit_when(&l, UINT64_MAX, (uint64_t)i * S);

        assert_true(t >= (uint64_t)i * S);
        if (t == (uint64_t)i * S)
            block_limit_take(&l, UINT64_MAX);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_limit),      cmocka_unit_test(test_starts_full_and_refills),
        cmocka_unit_test(test_burst_once),    cmocka_unit_test(test_keeps_fractions),
        cmocka_unit_test(test_more_than_the_bucket), cmocka_unit_test(test_huge),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
