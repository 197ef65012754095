/* The MC146818: time in its formats, setting it, interrupts, and what firmware leaves in CMOS. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "dev/platform/rtc.h"
#include "dev/platform/rtc_time.h"

#define SEC 1000000000ull
#define MS 1000000ull
/* 2023-11-14 22:13:20 UTC, a Tuesday, and a quarter of a second. */
#define START (1700000000ull * SEC + SEC / 4)

struct fixture {
    struct fake f;
    struct device *d;
};

static struct fixture *fixture_new(uint64_t wall)
{
    struct fixture *x = calloc(1, sizeof(*x));
    struct rtc_cfg cfg;

    fake_init(&x->f);
    clock_init_stepped(&x->f.clock, 1000000, wall);
    cfg = (struct rtc_cfg){fake_irq(&x->f, 8), 3 * GIB, 5 * GIB};
    x->d = fake_device(&x->f, &rtc_class, "rtc", &cfg);
    fake_ports(&x->f, 0x70, 2, x->d, &rtc_ops);
    return x;
}

static void fixture_free(struct fixture *x)
{
    device_free(x->d);
    fake_fini(&x->f);
    free(x);
}

static int setup(void **state)
{
    *state = fixture_new(START);
    return 0;
}

static int teardown(void **state)
{
    fixture_free(*state);
    return 0;
}

static uint8_t rd(struct fixture *x, uint8_t reg)
{
    outb(&x->f, 0x70, reg);
    return inb(&x->f, 0x71);
}

static void wr(struct fixture *x, uint8_t reg, uint8_t v)
{
    outb(&x->f, 0x70, reg);
    outb(&x->f, 0x71, v);
}

/* century year month day weekday hour minute second, as eight bytes */
static void expect(struct fixture *x, const char *want)
{
    static const uint8_t order[] = {0x32, 9, 8, 7, 6, 4, 2, 0};
    char have[32] = "";

    for (size_t i = 0; i < ARRAY_LEN(order); i++)
        snprintf(have + strlen(have), 4, "%02x ", rd(x, order[i]));
    have[strlen(have) - 1] = 0;
    assert_string_equal(have, want);
}

static void test_formats(void **state)
{
    struct fixture *x = *state;

    assert_int_equal(rd(x, 0x0a), 0x26);
    assert_int_equal(rd(x, 0x0b), 0x02);
    assert_int_equal(rd(x, 0x0d), 0x80);
    expect(x, "20 23 11 14 03 22 13 20");
    wr(x, 0x0b, 0x06); /* binary */
    expect(x, "14 17 0b 0e 03 16 0d 14");
    wr(x, 0x0b, 0x04); /* binary, 12 hours */
    expect(x, "14 17 0b 0e 03 8a 0d 14");
    wr(x, 0x0b, 0x00); /* BCD, 12 hours */
    expect(x, "20 23 11 14 03 90 13 20");
    fake_step(&x->f, 2 * 3600 * SEC); /* past midnight: 12 AM */
    expect(x, "20 23 11 15 04 12 13 20");
    fake_step(&x->f, 12 * 3600 * SEC);
    expect(x, "20 23 11 15 04 92 13 20"); /* 12 PM */
    assert_int_equal(inb(&x->f, 0x70), 0xff);
}

/* Every day of 1600-2400 against the C library. */
static void test_calendar(void **state)
{
    uint8_t cmos[128] = {[RTC_B] = RTC_B_24H | RTC_B_BINARY};

    for (int64_t day = -135140; day < 157000; day++) {
        time_t t = day * 86400 + (day & 0xffff) % 86400;
        struct tm tm;
        uint8_t shift;

        gmtime_r(&t, &tm);
        rtc_time_store(cmos, t, 0);
        assert_int_equal(cmos[RTC_CENTURY] * 100 + cmos[RTC_YEAR], tm.tm_year + 1900);
        assert_int_equal(cmos[RTC_MONTH], tm.tm_mon + 1);
        assert_int_equal(cmos[RTC_DAY], tm.tm_mday);
        assert_int_equal(cmos[RTC_DOW], tm.tm_wday + 1);
        assert_int_equal(cmos[RTC_HOUR] * 3600 + cmos[RTC_MIN] * 60 + cmos[RTC_SEC],
                         tm.tm_hour * 3600 + tm.tm_min * 60 + tm.tm_sec);
        assert_int_equal(rtc_time_load(cmos, &shift), t);
        assert_int_equal(shift, 0);
    }
}

static void test_runs_with_the_wall(void **state)
{
    struct fixture *x = *state;

    fake_step(&x->f, 3 * SEC / 4 - 1);
    expect(x, "20 23 11 14 03 22 13 20");
    assert_int_equal(rd(x, 0x0a), 0xa6); /* update in progress */
    fake_step(&x->f, 1);
    expect(x, "20 23 11 14 03 22 13 21");
    assert_int_equal(rd(x, 0x0a), 0x26);
    fake_step(&x->f, SEC - 244001);
    assert_int_equal(rd(x, 0x0a), 0x26);
    fake_step(&x->f, 1);
    assert_int_equal(rd(x, 0x0a), 0xa6);
    fake_step(&x->f, 46 * 86400 * SEC + 7000 * SEC);
    expect(x, "20 23 12 31 01 00 10 01");
}

static void test_set(void **state)
{
    struct fixture *x = *state;

    wr(x, 0x0b, 0x82);
    fake_step(&x->f, 10 * SEC);
    expect(x, "20 23 11 14 03 22 13 20"); /* frozen */
    assert_int_equal(rd(x, 0x0a), 0x26);
    wr(x, 0x00, 0x58);
    wr(x, 0x02, 0x59);
    wr(x, 0x04, 0x23);
    wr(x, 0x07, 0x28);
    wr(x, 0x08, 0x02);
    wr(x, 0x09, 0x00);
    wr(x, 0x32, 0x21);
    wr(x, 0x06, 0x05); /* a weekday of the guest's own choice */
    fake_step(&x->f, 100 * SEC);
    expect(x, "21 00 02 28 05 23 59 58");
    wr(x, 0x0b, 0x02);
    expect(x, "21 00 02 28 05 23 59 58");
    fake_step(&x->f, 3 * SEC / 4); /* the second hand kept its phase */
    expect(x, "21 00 02 28 05 23 59 59");
    fake_step(&x->f, SEC);
    expect(x, "21 00 03 01 06 00 00 00"); /* 2100 is no leap year */
    /* A single register while running. */
    wr(x, 0x04, 0x12);
    expect(x, "21 00 03 01 06 12 00 00");
    fake_step(&x->f, 59 * SEC);
    expect(x, "21 00 03 01 06 12 00 59");
    /* Nonsense is taken for the nearest sense once time runs. */
    wr(x, 0x0b, 0x82);
    wr(x, 0x08, 0xff);
    wr(x, 0x00, 0x99);
    assert_int_equal(rd(x, 0x08), 0xff);
    wr(x, 0x0b, 0x02);
    assert_int_equal(rd(x, 0x08), 0x12);
    assert_int_equal(rd(x, 0x00), 0x59);
}

/* As operating systems set the clock: hold the divider in reset; half a second after its release
 * comes the first update. */
static void test_divider_reset(void **state)
{
    struct fixture *x = *state;

    wr(x, 0x0b, 0x82);
    wr(x, 0x0a, 0x76);
    wr(x, 0x00, 0x30);
    wr(x, 0x0b, 0x02);
    fake_step(&x->f, 20 * SEC);
    assert_int_equal(rd(x, 0x00), 0x30); /* still held */
    wr(x, 0x0a, 0x26);
    fake_step(&x->f, SEC / 2 - 1);
    assert_int_equal(rd(x, 0x00), 0x30);
    fake_step(&x->f, 1);
    assert_int_equal(rd(x, 0x00), 0x31);
    fake_step(&x->f, SEC);
    assert_int_equal(rd(x, 0x00), 0x32);
    /* Only releasing it first, then SET, gives the same phase. */
    wr(x, 0x0b, 0x82);
    wr(x, 0x0a, 0x76);
    fake_step(&x->f, SEC / 3);
    wr(x, 0x0a, 0x26);
    wr(x, 0x00, 0x10);
    wr(x, 0x0b, 0x02);
    fake_step(&x->f, SEC / 2 - 1);
    assert_int_equal(rd(x, 0x00), 0x10);
    fake_step(&x->f, 1);
    assert_int_equal(rd(x, 0x00), 0x11);
}

/* Register C without PF, which comes and goes at the default rate of 1,024 Hz all the time. */
static uint8_t flags(struct fixture *x) { return rd(x, 0x0c) & ~0x40; }

static void test_update_interrupt(void **state)
{
    struct fixture *x = *state;

    assert_int_equal(timerq_next(&x->f.timers), TIMER_OFF); /* nothing enabled: no host timers */
    wr(x, 0x0b, 0x12);
    fake_step(&x->f, 3 * SEC / 4 - 1);
    assert_false(x->f.level[8]);
    fake_step(&x->f, 1);
    assert_true(x->f.level[8]);
    fake_step(&x->f, 5 * SEC);
    assert_int_equal(x->f.edges[8], 1); /* held until register C is read */
    assert_int_equal(flags(x), 0x90);
    assert_false(x->f.level[8]);
    assert_int_equal(flags(x), 0x00);
    fake_step(&x->f, SEC);
    assert_int_equal(x->f.edges[8], 2);
    rd(x, 0x0c);
    /* The flag comes up without the interrupt too; enabling it then raises the line. */
    wr(x, 0x0b, 0x02);
    fake_step(&x->f, SEC);
    assert_int_equal(x->f.edges[8], 2);
    wr(x, 0x0b, 0x12);
    assert_true(x->f.level[8]);
    assert_int_equal(flags(x), 0x90);
    /* SET turns UIE off. */
    wr(x, 0x0b, 0x92);
    assert_int_equal(rd(x, 0x0b), 0x82);
    fake_step(&x->f, 3 * SEC);
    assert_int_equal(flags(x), 0);
}

static void test_alarm(void **state)
{
    struct fixture *x = *state;

    wr(x, 0x01, 0x25);
    wr(x, 0x03, 0x14);
    wr(x, 0x05, 0x22);
    wr(x, 0x0b, 0x22);
    for (int i = 0; i < 64; i++) { /* 22:14:25 */
        fake_step(&x->f, SEC);
        assert_false(x->f.level[8]);
    }
    fake_step(&x->f, SEC);
    assert_true(x->f.level[8]);
    assert_int_equal(flags(x), 0xb0);
    fake_step(&x->f, 3600 * SEC);
    assert_false(x->f.level[8]);
    for (int i = 0; i < 1439; i++) /* the next day, a minute at a time */
        fake_step(&x->f, 60 * SEC);
    assert_true(x->f.level[8]);
    rd(x, 0x0c);
    /* Any second, any hour. */
    wr(x, 0x01, 0xc0);
    wr(x, 0x05, 0xff);
    rd(x, 0x0c);
    fake_step(&x->f, SEC); /* 23:13:.. */
    assert_false(x->f.level[8]);
    while (rd(x, 0x02) != 0x14)
        fake_step(&x->f, SEC / 2);
    assert_true(x->f.level[8]);
    rd(x, 0x0c);
    fake_step(&x->f, SEC);
    assert_true(x->f.level[8]);
    rd(x, 0x0c);
    /* One that never matches, and PM in 12-hour binary. */
    wr(x, 0x03, 0x77);
    fake_step(&x->f, 86400 * SEC);
    assert_false(x->f.level[8]);
    wr(x, 0x0b, 0x24);
    wr(x, 0x01, 0);
    wr(x, 0x03, 0);
    wr(x, 0x05, 0x80 | 3);
    rd(x, 0x0c);
    while (!x->f.level[8])
        fake_step(&x->f, SEC / 4);
    assert_int_equal(rd(x, 0x04), 0x83);
    assert_int_equal(rd(x, 0x02), 0);
    assert_int_equal(rd(x, 0x00), 0);
}

static void test_periodic(void **state)
{
    /* Rate select to interrupts a second (data sheet table 5). */
    static const unsigned hz[16] = {0,   256, 128, 8192, 4096, 2048, 1024, 512,
                                    256, 128, 64,  32,   16,   8,    4,    2};
    struct fixture *x = *state;

    for (uint8_t rate = 0; rate < 16; rate++) {
        unsigned n = 0;

        wr(x, 0x0a, 0x20 | rate);
        wr(x, 0x0b, 0x42);
        rd(x, 0x0c);
        for (unsigned i = 0; i < 4 * 32768; i++) {
            uint64_t at = (uint64_t)(i + 1) * 2 * SEC / 4 / 32768;

            fake_step(&x->f, at - (uint64_t)i * 2 * SEC / 4 / 32768);
            if (!x->f.level[8])
                continue;
            assert_int_equal(rd(x, 0x0c) & 0xc0, 0xc0);
            n++;
        }
        assert_in_range(n + 1, 2 * hz[rate], 2 * hz[rate] + 2);
    }
    /* Not read for a while: one interrupt. */
    wr(x, 0x0a, 0x26);
    rd(x, 0x0c);
    x->f.edges[8] = 0;
    fake_step(&x->f, SEC);
    assert_int_equal(x->f.edges[8], 1);
    assert_int_equal(timerq_next(&x->f.timers), TIMER_OFF);
    /* With the divider in reset: none. */
    wr(x, 0x0a, 0x76);
    rd(x, 0x0c);
    fake_step(&x->f, SEC);
    assert_false(x->f.level[8]);
}

static void test_cmos(void **state)
{
    struct fixture *x = *state;
    unsigned sum = 0;

    assert_int_equal(rd(x, 0x15) | rd(x, 0x16) << 8, 640);
    assert_int_equal(rd(x, 0x17) | rd(x, 0x18) << 8, 0xffff);
    assert_int_equal(rd(x, 0x30) | rd(x, 0x31) << 8, 0xffff);
    assert_int_equal(rd(x, 0x34) | rd(x, 0x35) << 8, (3 * GIB - 16 * MIB) / (64 * KIB));
    assert_int_equal(rd(x, 0x5b) | rd(x, 0x5c) << 8 | rd(x, 0x5d) << 16, 5 * GIB / (64 * KIB));
    for (uint8_t i = 0x10; i <= 0x2d; i++)
        sum += rd(x, i);
    assert_int_equal(rd(x, 0x2e) << 8 | rd(x, 0x2f), sum);
    /* Plain memory, the shutdown byte included, survives a reset; interrupt enables do not. */
    wr(x, 0x0f, 0x0a);
    wr(x, 0x7f, 0x5a);
    wr(x, 0x0b, 0x7a);
    fake_step(&x->f, 2 * SEC);
    assert_true(x->f.level[8]);
    device_reset(x->d, RESET_WARM);
    assert_false(x->f.level[8]);
    assert_int_equal(rd(x, 0x0f), 0x0a);
    assert_int_equal(rd(x, 0x7f), 0x5a);
    assert_int_equal(rd(x, 0x0b), 0x02);
    assert_int_equal(rd(x, 0x0c), 0);
    expect(x, "20 23 11 14 03 22 13 22");
    /* Read-only registers; the index's top bit (NMI mask) selects nothing. */
    wr(x, 0x0c, 0xff);
    wr(x, 0x0d, 0x00);
    assert_int_equal(rd(x, 0x0c), 0);
    assert_int_equal(rd(x, 0x0d), 0x80);
    assert_int_equal(rd(x, 0x8f), 0x0a);
    wr(x, 0x0a, 0xff);
    assert_int_equal(rd(x, 0x0a), 0x7f);
}

static void test_small_memory(void **state)
{
    struct fixture *x = *state;
    struct rtc_cfg cfg = {fake_irq(&x->f, 9), 24 * MIB, 0};
    struct device *d = fake_device(&x->f, &rtc_class, "small", &cfg);

    fake_ports(&x->f, 0x170, 2, d, &rtc_ops);
    outb(&x->f, 0x170, 0x18);
    assert_int_equal(inb(&x->f, 0x171), 0x5c); /* 23 MiB = 0x5c00 KiB */
    outb(&x->f, 0x170, 0x34);
    assert_int_equal(inb(&x->f, 0x171), 8 * MIB / (64 * KIB));
    outb(&x->f, 0x170, 0x5b);
    assert_int_equal(inb(&x->f, 0x171), 0);
    pio_unmap(x->f.pio, 0x170, 2);
    device_free(d);
}

static void test_state(void **state)
{
    struct fixture *x = *state, *y = fixture_new(START + 1000 * SEC);
    struct rtc_cfg cfg = {fake_irq(&x->f, 1), MIB, 0};

    fake_check_state(&x->f, &rtc_class, &cfg);
    fixture_free(x);
    *state = x = fixture_new(START);

    /* The guest's own offset and its pending interrupt go along; time follows the new host's wall.
     */
    wr(x, 0x0b, 0x12);
    wr(x, 0x09, 0x24);
    fake_step(&x->f, SEC / 8);
    rd(x, 0x0c);
    fake_migrate(x->d, y->d);
    expect(y, "20 24 11 14 03 22 30 00");
    fake_step(&y->f, 3 * SEC / 4);
    assert_true(y->f.level[8]);
    fixture_free(y);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_formats),      T(test_calendar),      T(test_runs_with_the_wall),
        T(test_set),          T(test_divider_reset), T(test_update_interrupt),
        T(test_alarm),        T(test_periodic),      T(test_cmos),
        T(test_small_memory), T(test_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
