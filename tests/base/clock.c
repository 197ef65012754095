/* Guest time. The host's clocks are variables here: nothing depends on how fast the test runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <x86intrin.h>

#include "base/clock.h"

static _Atomic uint64_t fake_mono = 5000, fake_real = 1000000000000;
static _Atomic uint64_t fake_tick; /* added to the monotonic clock by every look at it */

int clock_gettime(clockid_t id, struct timespec *ts)
{
    uint64_t ns = id == CLOCK_REALTIME ? atomic_load(&fake_real)
                                       : atomic_fetch_add(&fake_mono, atomic_load(&fake_tick));

    ts->tv_sec = (time_t)(ns / 1000000000);
    ts->tv_nsec = (long)(ns % 1000000000);
    return 0;
}

static void test_runs(void **state)
{
    struct clock c;

    clock_init(&c, 1000000);
    assert_int_equal(clock_now(&c), 0);
    fake_mono += 7000000123;
    assert_int_equal(clock_now(&c), 7000000123);
    assert_int_equal(clock_tsc(&c), 7000000123);
    assert_int_equal(clock_to_host(&c, 7000000123), fake_mono);
    assert_int_equal(clock_to_host(&c, 0), fake_mono - 7000000123);
    assert_int_equal(clock_to_host(&c, UINT64_MAX), UINT64_MAX);
}

static void test_freeze(void **state)
{
    struct clock c;

    clock_init(&c, 1000000);
    fake_mono += 100;
    clock_freeze(&c);
    fake_mono += 1000;
    assert_int_equal(clock_now(&c), 100);
    assert_int_equal(clock_to_host(&c, 200), UINT64_MAX);
    clock_freeze(&c);
    assert_int_equal(clock_now(&c), 100);
    fake_mono += 1000;
    clock_thaw(&c);
    assert_int_equal(clock_now(&c), 100);
    fake_mono += 50;
    clock_thaw(&c);
    assert_int_equal(clock_now(&c), 150);
    assert_int_equal(clock_to_host(&c, 150), fake_mono);
    assert_int_equal(clock_to_host(&c, 151), fake_mono + 1);
    /* Deadlines from before the freeze, and before the host's clock began. */
    assert_int_equal(clock_to_host(&c, 90), fake_mono - 60);
    fake_mono = 10;
    clock_freeze(&c);
    clock_thaw(&c);
    assert_int_equal(clock_to_host(&c, 0), 0);
    fake_mono = 5000;
}

static void test_wall(void **state)
{
    struct clock c;
    uint64_t frozen;

    clock_init(&c, 1000000);
    assert_int_equal(clock_wall(&c), fake_real);
    /* The host's clock is set, forwards and back, with no monotonic time passing. */
    fake_real += 3600000000000;
    assert_int_equal(clock_wall(&c), fake_real);
    fake_real -= 7200000000000;
    assert_int_equal(clock_wall(&c), fake_real);
    assert_int_equal(clock_now(&c), 0);

    frozen = fake_real;
    clock_freeze(&c);
    fake_real += 5000;
    fake_mono += 5000;
    assert_int_equal(clock_wall(&c), frozen);
    clock_freeze(&c);
    assert_int_equal(clock_wall(&c), frozen);
    clock_thaw(&c);
    assert_int_equal(clock_wall(&c), fake_real);
}

static void test_stepped(void **state)
{
    struct clock c;

    clock_init_stepped(&c, 2000000, 1700000000000000000);
    assert_int_equal(clock_now(&c), 0);
    fake_mono += 12345;
    fake_real += 12345;
    assert_int_equal(clock_now(&c), 0);
    assert_int_equal(clock_wall(&c), 1700000000000000000);
    clock_step(&c, 1000);
    assert_int_equal(clock_now(&c), 1000);
    assert_int_equal(clock_tsc(&c), 2000);
    assert_int_equal(clock_wall(&c), 1700000000000001000);
    assert_int_equal(clock_to_host(&c, 2000), UINT64_MAX);
    clock_freeze(&c);
    clock_thaw(&c);
    assert_int_equal(clock_now(&c), 1000);
    assert_int_equal(clock_wall(&c), 1700000000000001000);
}

static void test_tsc(void **state)
{
    struct clock c;

    clock_init_stepped(&c, 2399999, 0);
    assert_int_equal(clock_ns_to_tsc(&c, 1), 2); /* 2.399999 rounded down */
    assert_int_equal(clock_ns_to_tsc(&c, 1000000), 2399999);
    assert_int_equal(clock_tsc_to_ns(&c, 2399999), 1000000);
    assert_int_equal(clock_tsc_to_ns(&c, 2399998), 999999);
    /* A year: the product does not fit in 64 bits. 31536000 s * 2399999 kHz. */
    assert_int_equal(clock_ns_to_tsc(&c, 31536000000000000), 75686368464000000);
    assert_int_equal(clock_tsc_to_ns(&c, 75686368464000000), 31536000000000000);
    /* "Never" stays never, and the largest deadline does not wrap to a near one. */
    assert_int_equal(clock_ns_to_tsc(&c, UINT64_MAX), UINT64_MAX);
    clock_init_stepped(&c, 500000, 0);
    assert_int_equal(clock_tsc_to_ns(&c, UINT64_MAX), UINT64_MAX);
    assert_int_equal(clock_tsc_to_ns(&c, 3), 6);
}

#define READERS 3
static atomic_bool done;

static void *reader(void *arg)
{
    const struct clock *c = arg;
    uint64_t last = 0;

    while (!atomic_load(&done)) {
        uint64_t now = clock_now(c);

        if (now < last)
            return arg;
        last = now;
    }
    return NULL;
}

/* Time never goes backwards for anybody while the clock is frozen and thawed under way. */
static void test_concurrent(void **state)
{
    pthread_t t[READERS];
    struct clock c;
    void *bad = NULL;

    atomic_store(&fake_tick, 3);
    clock_init(&c, 1000000);
    for (int i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, reader, &c), 0);
    for (int i = 0; i < 20000; i++) {
        clock_freeze(&c);
        clock_thaw(&c);
    }
    atomic_store(&done, true);
    for (int i = 0; i < READERS; i++) {
        void *r;

        pthread_join(t[i], &r);
        bad = r ? r : bad;
    }
    atomic_store(&fake_tick, 0);
    assert_null(bad);
}

/* Time that follows the host's TSC: what is said of one moment agrees, whatever CLOCK_MONOTONIC does. */
static void test_counter(void **state)
{
    const uint64_t khz = 2300000;
    struct clock c;
    uint64_t host = __rdtsc(), tsc, before, after;
    uint32_t changes;

    clock_init_counter(&c, khz, khz);
    host = __rdtsc();
    tsc = clock_tsc_at(&c, host);
    /* Ticks go over one to one, but for rounding to nanoseconds. */
    for (uint64_t later = 1; later < 1ull << 60; later *= 8) {
        uint64_t d = clock_tsc_at(&c, host + later) - tsc;

        assert_true(d + 6 > later && d < later + 6);
    }
    before = clock_tsc_at(&c, __rdtsc());
    fake_mono += 1000000000;
    tsc = clock_tsc(&c);
    after = clock_tsc_at(&c, __rdtsc());
    assert_true(before <= tsc && tsc <= after);

    /* A deadline is told in the host's other clock, as seen from now. */
    assert_true(clock_to_host(&c, clock_now(&c) + 1000000000000) <= fake_mono + 1000000000000);
    assert_true(clock_to_host(&c, clock_now(&c) + 1000000000000) > fake_mono + 900000000000);
    assert_int_equal(clock_to_host(&c, UINT64_MAX), UINT64_MAX);

    changes = clock_changes(&c);
    clock_freeze(&c);
    assert_int_not_equal(clock_changes(&c), changes);
    tsc = clock_tsc(&c);
    assert_int_equal(clock_tsc_at(&c, __rdtsc() + 1000000), tsc);
    changes = clock_changes(&c);
    clock_thaw(&c);
    assert_int_not_equal(clock_changes(&c), changes);
    assert_true(clock_tsc(&c) >= tsc);
    assert_int_equal(clock_changes(&c), clock_changes(&c));

    /* Another rate: 1 GHz for the guest. */
    clock_init_counter(&c, 1000000, khz);
    host = __rdtsc();
    tsc = clock_tsc_at(&c, host);
    assert_true(clock_tsc_at(&c, host + khz * 1000) - tsc - 999999999 <= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs), cmocka_unit_test(test_freeze),
        cmocka_unit_test(test_wall), cmocka_unit_test(test_stepped),
        cmocka_unit_test(test_tsc),  cmocka_unit_test(test_concurrent),
        cmocka_unit_test(test_counter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
