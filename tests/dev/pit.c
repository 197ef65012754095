/* The 8254, mode by mode as its data sheet draws them, and port 0x61. Channel 2 is the one with a
 * gate and a visible output; channel 0 the one with an interrupt. */
#include "fake.h"

#include <stdlib.h>

#include "base/util.h"
#include "dev/platform/pit.h"
#include "dev/platform/pit_counter.h"

#define NS 1000000000ull

struct fixture {
    struct fake f;
    struct device *d;
    uint64_t clk; /* where `at` and `go` have brought the clock */
};

static struct fixture *fixture_new(enum pit_lost_ticks lost)
{
    struct fixture *x = calloc(1, sizeof(*x));

    fake_init(&x->f);
    x->d = fake_device(&x->f, &pit_class, "pit",
                       &(struct pit_cfg){.irq = fake_irq(&x->f, 0), .lost = lost});
    fake_ports(&x->f, 0x40, 4, x->d, &pit_ops);
    fake_ports(&x->f, 0x61, 1, x->d, &pit_port61_ops);
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
    *state = fixture_new(PIT_LOST_DISCARD);
    return 0;
}

static int teardown(void **state)
{
    fixture_free(*state);
    return 0;
}

/* Lets n CLK pulses pass. */
static void go(struct fixture *x, uint64_t n)
{
    uint64_t ns;

    x->clk += n;
    ns = (uint64_t)(((unsigned __int128)x->clk * NS + PIT_HZ - 1) / PIT_HZ);
    fake_step(&x->f, ns - clock_now(&x->f.clock));
}

static void control(struct fixture *x, uint8_t v) { outb(&x->f, 0x43, v); }

static void count16(struct fixture *x, unsigned ch, uint16_t v)
{
    outb(&x->f, (uint16_t)(0x40 + ch), (uint8_t)v);
    outb(&x->f, (uint16_t)(0x40 + ch), (uint8_t)(v >> 8));
}

static uint16_t read16(struct fixture *x, unsigned ch)
{
    uint16_t lo;

    control(x, (uint8_t)(ch << 6));
    lo = inb(&x->f, (uint16_t)(0x40 + ch));
    return (uint16_t)(lo | inb(&x->f, (uint16_t)(0x40 + ch)) << 8);
}

static bool out2(struct fixture *x) { return inb(&x->f, 0x61) & 0x20; }

static void gate2(struct fixture *x, bool on) { outb(&x->f, 0x61, on ? 1 : 0); }

static uint8_t status(struct fixture *x, unsigned ch)
{
    control(x, (uint8_t)(0xe0 | 2 << ch));
    return inb(&x->f, (uint16_t)(0x40 + ch));
}

static void test_mode0(void **state)
{
    struct fixture *x = *state;

    gate2(x, true);
    control(x, 0xb0);
    assert_false(out2(x));
    assert_int_equal(status(x, 2), 0x70); /* OUT low, null count */
    count16(x, 2, 4);
    go(x, 1); /* loaded */
    assert_int_equal(read16(x, 2), 4);
    assert_int_equal(status(x, 2), 0x30);
    go(x, 3);
    assert_int_equal(read16(x, 2), 1);
    assert_false(out2(x));
    go(x, 1); /* N + 1 pulses after the write */
    assert_int_equal(read16(x, 2), 0);
    assert_true(out2(x));
    go(x, 2);
    assert_int_equal(read16(x, 2), 0xfffe); /* wraps, stays high */
    assert_true(out2(x));
    go(x, 0x10000);
    assert_int_equal(read16(x, 2), 0xfffe);
    assert_true(out2(x));

    /* The first byte of a new count stops counting and lowers OUT. */
    outb(&x->f, 0x42, 3);
    assert_false(out2(x));
    go(x, 10);
    outb(&x->f, 0x42, 0);
    go(x, 3);
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));

    /* The gate suspends; a count written meanwhile is loaded. */
    count16(x, 2, 10);
    go(x, 5);
    assert_int_equal(read16(x, 2), 6);
    gate2(x, false);
    go(x, 100);
    assert_int_equal(read16(x, 2), 6);
    gate2(x, true);
    go(x, 5);
    assert_int_equal(read16(x, 2), 1);
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
    gate2(x, false);
    assert_true(out2(x)); /* the gate does not move OUT */
    count16(x, 2, 3);
    assert_int_equal(read16(x, 2), 3);
    assert_false(out2(x));
    gate2(x, true);
    go(x, 3); /* no CLK is needed to load it */
    assert_true(out2(x));
}

static void test_mode1(void **state)
{
    struct fixture *x = *state;

    gate2(x, false);
    control(x, 0xb2);
    assert_true(out2(x));
    count16(x, 2, 3);
    go(x, 20);
    assert_true(out2(x)); /* waits for a trigger */
    assert_int_equal(status(x, 2), 0xf2);
    gate2(x, true);
    assert_true(out2(x));
    go(x, 1);
    assert_false(out2(x));
    assert_int_equal(status(x, 2), 0x32);
    assert_int_equal(read16(x, 2), 3);
    gate2(x, false); /* the pulse goes on without the gate */
    go(x, 2);
    assert_false(out2(x));
    gate2(x, true); /* retriggered: low for another three */
    go(x, 3);
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
    /* A count written during a pulse is for the next one. */
    gate2(x, false);
    gate2(x, true);
    go(x, 1);
    count16(x, 2, 6);
    go(x, 2);
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
    gate2(x, false);
    gate2(x, true);
    go(x, 6);
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
}

static void test_mode2(void **state)
{
    struct fixture *x = *state;

    gate2(x, true);
    control(x, 0xb4);
    assert_true(out2(x));
    count16(x, 2, 4);
    go(x, 1);
    for (int i = 0; i < 3; i++) {
        for (uint16_t n = 4; n >= 1; n--) {
            assert_int_equal(read16(x, 2), n);
            assert_int_equal(out2(x), n != 1); /* low for the one pulse at 1 */
            go(x, 1);
        }
    }
    /* A new count takes over at the end of the period. */
    go(x, 1);
    count16(x, 2, 3);
    assert_int_equal(status(x, 2), 0xf4);
    assert_int_equal(read16(x, 2), 3);
    go(x, 2);
    assert_false(out2(x));
    go(x, 1);
    assert_int_equal(read16(x, 2), 3);
    assert_int_equal(status(x, 2), 0xb4);
    go(x, 2);
    assert_false(out2(x));
    /* A low gate raises OUT at once and stops; its rise reloads. */
    gate2(x, false);
    assert_true(out2(x));
    go(x, 50);
    assert_true(out2(x));
    assert_int_equal(read16(x, 2), 1);
    gate2(x, true);
    go(x, 1);
    assert_int_equal(read16(x, 2), 3);
    go(x, 2);
    assert_false(out2(x));
}

static void test_mode3(void **state)
{
    static const uint16_t even[] = {4, 2, 4, 2}, odd[] = {4, 2, 0, 4, 2};
    struct fixture *x = *state;

    gate2(x, true);
    control(x, 0xb6);
    count16(x, 2, 4);
    go(x, 1);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(read16(x, 2), even[i % 4]);
        assert_int_equal(out2(x), i % 4 < 2);
        go(x, 1);
    }
    control(x, 0xb6);
    count16(x, 2, 5);
    go(x, 1);
    for (int i = 0; i < 10; i++) { /* high for (N + 1) / 2 */
        assert_int_equal(read16(x, 2), odd[i % 5]);
        assert_int_equal(out2(x), i % 5 < 3);
        go(x, 1);
    }
    /* A new count takes over at the end of the half: here the high one, so the low half is new. */
    count16(x, 2, 10);
    go(x, 3);
    for (int i = 0; i < 5; i++) {
        assert_false(out2(x));
        assert_int_equal(read16(x, 2), 10 - 2 * i);
        go(x, 1);
    }
    for (int i = 0; i < 5; i++) {
        assert_true(out2(x));
        go(x, 1);
    }
    /* And in the low half, at the end of the period. */
    count16(x, 2, 4);
    for (int i = 0; i < 5; i++) {
        assert_false(out2(x));
        go(x, 1);
    }
    assert_true(out2(x));
    assert_int_equal(read16(x, 2), 4);
    go(x, 2);
    assert_false(out2(x));
    gate2(x, false);
    assert_true(out2(x));
    /* Modes 6 and 7 are 2 and 3, and are shown as written. */
    control(x, 0xbe);
    assert_int_equal(status(x, 2) & 0x3f, 0x3e);
    gate2(x, true);
    count16(x, 2, 2);
    go(x, 1);
    assert_true(out2(x));
    go(x, 1);
    assert_false(out2(x));
}

static void test_mode4(void **state)
{
    struct fixture *x = *state;

    gate2(x, true);
    control(x, 0xb8);
    assert_true(out2(x));
    count16(x, 2, 3);
    go(x, 3);
    assert_int_equal(read16(x, 2), 1);
    assert_true(out2(x));
    go(x, 1); /* N + 1 after the write, for one pulse */
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
    assert_int_equal(read16(x, 2), 0xffff);
    go(x, 0xffff);
    assert_true(out2(x)); /* passing zero again: no strobe */
    count16(x, 2, 3);
    go(x, 2);
    count16(x, 2, 3); /* retriggered by software */
    go(x, 3);
    assert_true(out2(x));
    go(x, 1);
    assert_false(out2(x));
    /* The gate suspends. */
    count16(x, 2, 5);
    go(x, 3);
    gate2(x, false);
    go(x, 40);
    gate2(x, true);
    go(x, 2);
    assert_true(out2(x));
    go(x, 1);
    assert_false(out2(x));
    go(x, 1);
    gate2(x, false); /* after the strobe the gate brings no other */
    gate2(x, true);
    for (int i = 0; i < 10; i++) {
        assert_true(out2(x));
        go(x, 1);
    }
}

static void test_mode5(void **state)
{
    struct fixture *x = *state;

    gate2(x, false);
    control(x, 0xba);
    count16(x, 2, 3);
    go(x, 10);
    assert_true(out2(x));
    gate2(x, true);
    gate2(x, false);
    go(x, 3);
    assert_true(out2(x));
    go(x, 1); /* N + 1 after the trigger */
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
    gate2(x, true);
    go(x, 2);
    gate2(x, false);
    gate2(x, true);
    go(x, 3);
    assert_true(out2(x));
    go(x, 1);
    assert_false(out2(x));
}

static void test_bcd(void **state)
{
    struct fixture *x = *state;

    gate2(x, true);
    control(x, 0xb5);
    count16(x, 2, 0x1000);
    go(x, 1);
    assert_int_equal(read16(x, 2), 0x1000);
    go(x, 1);
    assert_int_equal(read16(x, 2), 0x0999);
    go(x, 998);
    assert_int_equal(read16(x, 2), 0x0001);
    assert_false(out2(x));
    control(x, 0xb1);
    count16(x, 2, 0); /* 10,000 */
    go(x, 1);
    assert_int_equal(read16(x, 2), 0);
    go(x, 1);
    assert_int_equal(read16(x, 2), 0x9999);
    go(x, 9998);
    assert_false(out2(x));
    go(x, 1);
    assert_true(out2(x));
    go(x, 1);
    assert_int_equal(read16(x, 2), 0x9999);
}

static void test_bytes_and_latches(void **state)
{
    struct fixture *x = *state;

    gate2(x, true);
    control(x, 0x90); /* LSB only */
    outb(&x->f, 0x42, 0x20);
    go(x, 1);
    assert_int_equal(inb(&x->f, 0x42), 0x20);
    assert_int_equal(inb(&x->f, 0x42), 0x20);
    control(x, 0xa0); /* MSB only */
    outb(&x->f, 0x42, 0x20);
    go(x, 1);
    assert_int_equal(inb(&x->f, 0x42), 0x20);
    go(x, 1);
    assert_int_equal(inb(&x->f, 0x42), 0x1f);
    control(x, 0xb0);
    count16(x, 2, 0x1234);
    go(x, 1);
    control(x, 0x80); /* latch */
    go(x, 0x100);
    control(x, 0x80); /* a second latch is ignored */
    assert_int_equal(inb(&x->f, 0x42), 0x34);
    assert_int_equal(inb(&x->f, 0x42), 0x12);
    assert_int_equal(inb(&x->f, 0x42), 0x34); /* unlatched now: 0x1134 */
    assert_int_equal(inb(&x->f, 0x42), 0x11);
    /* Read-back of count and status together: the status comes first. */
    control(x, 0xc8);
    go(x, 0x34);
    assert_int_equal(inb(&x->f, 0x42), 0x30);
    assert_int_equal(inb(&x->f, 0x42), 0x34);
    assert_int_equal(inb(&x->f, 0x42), 0x11);
    /* Of several counters at once. */
    control(x, 0x30);
    count16(x, 0, 0x0100);
    control(x, 0x70);
    count16(x, 1, 0x0200);
    go(x, 1);
    control(x, 0xde); /* counts of all three */
    go(x, 0x10);
    assert_int_equal(inb(&x->f, 0x40), 0x00);
    assert_int_equal(inb(&x->f, 0x40), 0x01);
    assert_int_equal(inb(&x->f, 0x41), 0x00);
    assert_int_equal(inb(&x->f, 0x41), 0x02);
    assert_int_equal(inb(&x->f, 0x42), 0xff);
    assert_int_equal(inb(&x->f, 0x42), 0x10);
    /* A control word drops what is latched. */
    control(x, 0x80);
    control(x, 0xb0);
    count16(x, 2, 7);
    go(x, 1);
    assert_int_equal(inb(&x->f, 0x42), 7);
    assert_int_equal(inb(&x->f, 0x42), 0);
    assert_int_equal(inb(&x->f, 0x43), 0xff);
}

static void test_port61(void **state)
{
    struct fixture *x = *state;
    unsigned toggles = 0;
    uint8_t last;

    outb(&x->f, 0x61, 0xff);
    assert_int_equal(inb(&x->f, 0x61) & 0xcf, 0x0f);
    outb(&x->f, 0x61, 0x02);
    assert_int_equal(inb(&x->f, 0x61) & 0xcf, 0x02);
    last = inb(&x->f, 0x61) & 0x10;
    for (int i = 0; i < 1800; i++) {
        uint8_t v;

        go(x, 1);
        v = inb(&x->f, 0x61) & 0x10;
        toggles += v != last;
        last = v;
    }
    assert_int_equal(toggles, 100);
}

static void test_irq_periodic(void **state)
{
    struct fixture *x = *state;
    unsigned n;

    assert_false(x->f.level[0]);
    control(x, 0x34);
    n = x->f.edges[0]; /* mode 2 begins with OUT high */
    count16(x, 0, 11932);
    go(x, 1 + 11931);
    assert_int_equal(x->f.edges[0], n);
    go(x, 1);
    assert_int_equal(x->f.edges[0], n + 1);
    for (unsigned i = 2; i <= 500; i++) {
        go(x, 11932);
        assert_int_equal(x->f.edges[0], n + i);
    }
    assert_true(x->f.level[0]);
    /* What a late host misses is dropped, and the grid stays. */
    go(x, 11932 * 40 + 5000);
    assert_int_equal(x->f.edges[0], n + 501);
    go(x, 11932 - 5001);
    assert_int_equal(x->f.edges[0], n + 501);
    go(x, 1);
    assert_int_equal(x->f.edges[0], n + 502);

    control(x, 0x36); /* mode 3, 65,536: 18.2 Hz */
    count16(x, 0, 0);
    go(x, 1);
    n = x->f.edges[0];
    go(x, 65535);
    assert_int_equal(x->f.edges[0], n);
    go(x, 1);
    assert_int_equal(x->f.edges[0], n + 1);
    control(x, 0x30);
    assert_false(x->f.level[0]);
    go(x, 200000);
    assert_int_equal(x->f.edges[0], n + 1);
}

static void test_irq_one_shot(void **state)
{
    struct fixture *x = *state;

    control(x, 0x30);
    count16(x, 0, 1000);
    go(x, 1000);
    assert_int_equal(x->f.edges[0], 0);
    go(x, 1);
    assert_int_equal(x->f.edges[0], 1);
    assert_true(x->f.level[0]);
    go(x, 200000);
    assert_int_equal(x->f.edges[0], 1);
    count16(x, 0, 500);
    assert_false(x->f.level[0]);
    go(x, 501);
    assert_int_equal(x->f.edges[0], 2);

    /* Mode 4, as Linux uses it for one-shot events: the rise after the strobe. */
    control(x, 0x38);
    assert_int_equal(x->f.edges[0], 2);
    count16(x, 0, 500);
    go(x, 501);
    assert_int_equal(x->f.edges[0], 2);
    go(x, 1);
    assert_int_equal(x->f.edges[0], 3);
    go(x, 200000);
    assert_int_equal(x->f.edges[0], 3);
}

/* However short the period: about 5,000 interrupts a second at most. */
static void test_irq_short_period(void **state)
{
    struct fixture *x = *state;
    unsigned n;

    control(x, 0x34);
    count16(x, 0, 2);
    n = x->f.edges[0];
    for (int i = 0; i < 11932; i++) /* 10 ms */
        go(x, 1);
    assert_in_range(x->f.edges[0] - n, 45, 52);
}

static void test_catch_up(void **state)
{
    struct fixture *x = fixture_new(PIT_LOST_CATCH_UP);
    unsigned n;

    control(x, 0x34);
    count16(x, 0, 11932);
    n = x->f.edges[0];
    go(x, 1 + 11932 * 21); /* the host slept through 20 of them */
    assert_int_equal(x->f.edges[0], n + 1);
    for (int i = 0; i < 8 * 5; i++) /* at 8 times the rate, so 2.9 periods: give it 5 */
        go(x, 11932 / 8);
    assert_in_range(x->f.edges[0] - n, 25, 26);
    n = x->f.edges[0];
    for (int i = 0; i < 80; i++)
        go(x, 11932 / 8);
    assert_in_range(x->f.edges[0] - n, 9, 10); /* back to normal */
    /* Never more than a minute's worth. */
    go(x, 3600ull * PIT_HZ);
    n = x->f.edges[0];
    for (int i = 0; i < 16 * 100 * 9; i++)
        go(x, 11932 / 8);
    assert_in_range(x->f.edges[0] - n, 6000 + 1790, 6000 + 1810);
    fixture_free(x);
}

static void test_state(void **state)
{
    struct fixture *x = *state, *y = fixture_new(PIT_LOST_DISCARD);
    struct pit_cfg cfg = {.irq = fake_irq(&x->f, 1)};
    struct err e = {""};
    unsigned n;

    if (state_desc_check(&pit_counter_desc, &e))
        fail_msg("%s", e.msg);
    fake_check_state(&x->f, &pit_class, &cfg);
    fixture_free(x);

    /* Interrupts and counts go on in another machine at the same time. */
    *state = x = fixture_new(PIT_LOST_DISCARD);
    gate2(x, true);
    control(x, 0x34);
    count16(x, 0, 10000);
    control(x, 0xb0);
    count16(x, 2, 30000);
    go(x, 1 + 25000);
    go(y, 1 + 25000);
    fake_migrate(x->d, y->d);
    n = y->f.edges[0];
    assert_int_equal(read16(y, 2), 5000);
    go(y, 4999);
    assert_int_equal(y->f.edges[0], n);
    assert_false(out2(y));
    go(y, 1);
    assert_int_equal(y->f.edges[0], n + 1);
    assert_true(out2(y));
    fixture_free(y);
}

static void test_reset(void **state)
{
    struct fixture *x = *state;

    control(x, 0x34);
    count16(x, 0, 1000);
    go(x, 2000);
    device_reset(x->d, RESET_WARM);
    assert_false(x->f.level[0]);
    assert_int_equal(timerq_next(&x->f.timers), TIMER_OFF);
    assert_int_equal(inb(&x->f, 0x61) & 0x0f, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_mode0),    T(test_mode1),        T(test_mode2),        T(test_mode3),
        T(test_mode4),    T(test_mode5),        T(test_bcd),          T(test_bytes_and_latches),
        T(test_port61),   T(test_irq_periodic), T(test_irq_one_shot), T(test_irq_short_period),
        T(test_catch_up), T(test_state),        T(test_reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
