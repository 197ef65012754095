/* The local APIC's timer: one-shot, periodic and TSC-deadline, against the stepped clock. */
#include "fake.h"
#include "irq/lapic_impl.h"

#define RD(off) lapic_mmio_read(l, off)
#define WR(off, v) lapic_mmio_write(l, off, v)

#define LVTT 0x320
#define TMICT 0x380
#define TMCCT 0x390
#define TDCR 0x3e0
#define MASKED 0x10000
#define PERIODIC 0x20000
#define DEADLINE 0x40000

static int setup(void **state)
{
    struct fake *f = fake_new(1, 2500000); /* 2.5 GHz */

    fake_enable(f);
    lapic_mmio_write(f->apic[0], TDCR, 0xb); /* divide by 1 */
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fake_free(*state);
    return 0;
}

/* Takes the timer's interrupt if there is one. */
static bool taken(struct lapic *l, uint8_t vector)
{
    int v = lapic_ack(l);

    if (v < 0)
        return false;
    assert_int_equal(v, vector);
    lapic_mmio_write(l, 0xb0, 0);
    return true;
}

static void test_one_shot(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, 0x40);
    assert_int_equal(RD(TMCCT), 0);
    WR(TMICT, 1000);
    assert_int_equal(RD(TMCCT), 1000);
    fake_step(f, 1);
    assert_int_equal(RD(TMCCT), 999);
    fake_step(f, 998);
    assert_int_equal(RD(TMCCT), 1);
    assert_false(taken(l, 0x40));
    fake_step(f, 1);
    assert_int_equal(RD(TMCCT), 0);
    assert_int_equal(RD(TMICT), 1000);
    assert_true(taken(l, 0x40));
    fake_step(f, SEC);
    assert_false(taken(l, 0x40)); /* once */
    WR(TMICT, 1000);
    WR(TMICT, 0); /* stops */
    fake_step(f, SEC);
    assert_false(taken(l, 0x40));
    WR(TMICT, 500); /* restarting replaces */
    fake_step(f, 400);
    WR(TMICT, 500);
    fake_step(f, 400);
    assert_false(taken(l, 0x40));
    fake_step(f, 100);
    assert_true(taken(l, 0x40));
}

static void test_divider(void **state)
{
    static const struct {
        uint8_t reg;
        unsigned by;
    } t[] = {{0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {10, 128}, {11, 1}};
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, 0x41);
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        WR(TDCR, t[i].reg);
        assert_int_equal(RD(TDCR), t[i].reg);
        WR(TMICT, 10000);
        fake_step(f, 1000 * t[i].by);
        assert_int_equal(RD(TMCCT), 9000);
        fake_step(f, 9000 * t[i].by - 1);
        assert_false(taken(l, 0x41));
        fake_step(f, 1);
        assert_true(taken(l, 0x41));
    }
    /* A change on the way goes on from the current count. */
    WR(TDCR, 0xb);
    WR(TMICT, 10000);
    fake_step(f, 4000);
    WR(TDCR, 0);
    assert_int_equal(RD(TMCCT), 6000);
    fake_step(f, 11999);
    assert_false(taken(l, 0x41));
    fake_step(f, 1);
    assert_true(taken(l, 0x41));
    WR(TDCR, 0xff); /* reserved bits stay clear */
    assert_int_equal(RD(TDCR), 0xb);
}

static void test_periodic(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, PERIODIC | 0x42);
    WR(TMICT, MS);
    for (int i = 0; i < 1000; i++) {
        fake_step(f, MS - 1);
        assert_false(taken(l, 0x42));
        fake_step(f, 1);
        assert_true(taken(l, 0x42));
        assert_int_equal(RD(TMCCT), MS);
    }
    /* A late host: what it missed is dropped, the grid stays. */
    fake_step(f, 7 * MS + MS / 4);
    assert_true(taken(l, 0x42));
    assert_false(taken(l, 0x42));
    assert_int_equal(RD(TMCCT), MS * 3 / 4);
    fake_step(f, MS * 3 / 4 - 1);
    assert_false(taken(l, 0x42));
    fake_step(f, 1);
    assert_true(taken(l, 0x42));
    /* To one-shot: this period ends, then no more. */
    fake_step(f, MS / 2);
    WR(LVTT, 0x42);
    assert_int_equal(RD(TMCCT), MS / 2);
    fake_step(f, MS / 2);
    assert_true(taken(l, 0x42));
    fake_step(f, 10 * MS);
    assert_false(taken(l, 0x42));
    assert_int_equal(RD(TMCCT), 0);
}

/* A guest cannot make the host run callbacks at a rate of its choice. */
static void test_short_period(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];
    unsigned n = 0;

    WR(LVTT, PERIODIC | 0x43);
    WR(TMICT, 7);
    fake_step(f, 7);
    assert_true(taken(l, 0x43));
    for (int i = 0; i < 1000; i++) { /* 10 ms */
        fake_step(f, 10000);
        n += taken(l, 0x43);
        assert_in_range(RD(TMCCT), 1, 7);
    }
    assert_in_range(n, 40, 50);
    /* One step after each other the count still has period 7. */
    for (int i = 0; i < 7; i++) {
        uint32_t before = RD(TMCCT);

        fake_step(f, 1);
        assert_int_equal(RD(TMCCT), before == 1 ? 7 : before - 1);
    }
}

static void test_masked(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, MASKED | 0x44);
    WR(TMICT, 1000);
    assert_int_equal(timerq_next(&f->q), TIMER_OFF); /* costs the host nothing */
    fake_step(f, 400);
    assert_int_equal(RD(TMCCT), 600);
    fake_step(f, 600);
    assert_int_equal(RD(TMCCT), 0);
    WR(LVTT, 0x44); /* what expired while masked is lost */
    fake_step(f, 5000);
    assert_false(taken(l, 0x44));

    WR(LVTT, MASKED | PERIODIC | 0x44);
    WR(TMICT, MS);
    fake_step(f, 3 * MS + 100);
    WR(LVTT, PERIODIC | 0x44);
    assert_false(taken(l, 0x44));
    fake_step(f, MS - 100);
    assert_true(taken(l, 0x44));
}

static void test_deadline(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    assert_int_equal(lapic_wrmsr(l, 0x6e0, 12345), 0); /* not in that mode: nothing */
    assert_int_equal(fake_rdmsr(l, 0x6e0), 0);
    WR(LVTT, DEADLINE | 0x45);
    assert_int_equal(lapic_wrmsr(l, 0x6e0, 2501), 0); /* 1000.4 ns */
    assert_int_equal(fake_rdmsr(l, 0x6e0), 2501);
    WR(TMICT, 50); /* ignored in this mode */
    assert_int_equal(RD(TMICT), 0);
    assert_int_equal(RD(TMCCT), 0);
    fake_step(f, 1000);
    assert_false(taken(l, 0x45)); /* TSC is 2500 */
    fake_step(f, 1);
    assert_true(taken(l, 0x45));
    assert_int_equal(fake_rdmsr(l, 0x6e0), 0);
    fake_step(f, MS);
    assert_false(taken(l, 0x45));

    assert_int_equal(lapic_wrmsr(l, 0x6e0, 1), 0); /* in the past: at once, with no host timer */
    assert_true(taken(l, 0x45));
    assert_int_equal(fake_rdmsr(l, 0x6e0), 0);

    assert_int_equal(lapic_wrmsr(l, 0x6e0, UINT64_MAX), 0); /* for ever */
    fake_step(f, 1000 * SEC);
    assert_false(taken(l, 0x45));
    assert_int_equal(lapic_wrmsr(l, 0x6e0, clock_tsc(&f->clock) + 250), 0);
    assert_int_equal(lapic_wrmsr(l, 0x6e0, 0), 0); /* disarmed */
    fake_step(f, SEC);
    assert_false(taken(l, 0x45));

    /* Leaving the mode disarms. */
    assert_int_equal(lapic_wrmsr(l, 0x6e0, clock_tsc(&f->clock) + 250), 0);
    WR(LVTT, 0x45);
    WR(LVTT, DEADLINE | 0x45);
    assert_int_equal(fake_rdmsr(l, 0x6e0), 0);
    fake_step(f, SEC);
    assert_false(taken(l, 0x45));
}

static void test_tsc_offset(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, DEADLINE | 0x46);
    fake_step(f, SEC);
    lapic_set_tsc_offset(l, -clock_tsc(&f->clock)); /* the guest's TSC is 0 now */
    assert_int_equal(lapic_wrmsr(l, 0x6e0, 2500), 0);
    fake_step(f, 999);
    assert_false(taken(l, 0x46));
    fake_step(f, 1);
    assert_true(taken(l, 0x46));
    /* An armed deadline moves with the TSC. */
    lapic_set_tsc_offset(l, 0);
    assert_int_equal(lapic_wrmsr(l, 0x6e0, clock_tsc(&f->clock) + 25000), 0);
    lapic_set_tsc_offset(l, 12500);
    fake_step(f, 5000);
    assert_true(taken(l, 0x46));
    assert_int_equal(lapic_wrmsr(l, 0x6e0, clock_tsc(&f->clock) + 25000), 0);
    lapic_set_tsc_offset(l, 50000); /* beyond it: due now */
    fake_step(f, 0);
    assert_true(taken(l, 0x46));
}

/* Reading shows an expiry even if the host's callback has yet to run. */
static void test_read_before_callback(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, DEADLINE | 0x47);
    assert_int_equal(lapic_wrmsr(l, 0x6e0, 2500), 0);
    clock_step(&f->clock, 2000);
    assert_int_equal(fake_rdmsr(l, 0x6e0), 0);
    assert_true(taken(l, 0x47));
    timerq_run(&f->q);
    assert_false(taken(l, 0x47));
}

static void test_illegal_vector(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, 0x08);
    WR(TMICT, 10);
    fake_step(f, 10);
    assert_false(taken(l, 0x08));
    WR(0x280, 0);
    assert_int_equal(RD(0x280), 0x40);
}

static void test_reset_stops(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    WR(LVTT, PERIODIC | 0x48);
    WR(TMICT, 1000);
    lapic_reset(l, true);
    assert_int_equal(timerq_next(&f->q), TIMER_OFF);
    fake_step(f, SEC);
    assert_false(lapic_pending(l));
}

/* A timer goes on after a load, in another machine with its own clock at the same time. */
static void test_load(void **state)
{
    static const uint32_t modes[] = {0, PERIODIC, DEADLINE};

    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        struct fake *f = fake_new(1, 2500000), *g = fake_new(1, 2500000);
        struct lapic *l = f->apic[0];
        struct sbuf b;
        size_t used;

        fake_enable(f);
        WR(TDCR, 0xb);
        WR(LVTT, modes[i] | 0x49);
        WR(TMICT, MS);
        lapic_wrmsr(l, 0x6e0, 2500000);
        fake_step(f, MS / 4);
        lapic_quiesce(l);
        sbuf_init(&b);
        assert_int_equal(lapic_save(l, &b), 0);
        clock_step(&f->clock, MS);
        timerq_run(&f->q);
        assert_false(lapic_pending(l)); /* quiet */

        clock_step(&g->clock, MS / 4);
        l = g->apic[0];
        lapic_quiesce(l);
        assert_int_equal(lapic_load(l, b.data, b.len, &used, NULL), 0);
        fake_step(g, MS / 4);
        lapic_resume(l);
        if (modes[i] != DEADLINE)
            assert_int_equal(RD(TMCCT), MS / 2);
        fake_step(g, MS / 2 - 1);
        assert_false(taken(l, 0x49));
        fake_step(g, 1);
        assert_true(taken(l, 0x49));
        fake_step(g, MS);
        assert_int_equal(taken(l, 0x49), modes[i] == PERIODIC);
        sbuf_free(&b);
        fake_free(f);
        fake_free(g);
    }
}

static void legalise(struct lapic_state *s)
{
    s->id = 0;
    s->base = 0xfee00800;
    s->irr[0] &= 0xffff0000;
    s->isr[0] &= 0xffff0000;
}

/* Any state a file can hold must leave the timer sane: no endless callbacks, no division by zero.
 */
static void test_hostile_state(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];
    uint64_t seed = 3;
    struct lapic_state *s = calloc(1, sizeof(*s));

    for (int i = 0; i < 2000; i++) {
        struct sbuf b;
        size_t used;

        sbuf_init(&b);
        state_randomise(&lapic_state_desc, s, fake_random, &seed);
        legalise(s);
        assert_int_equal(state_save(&lapic_state_desc, s, &b), 0);
        lapic_quiesce(l);
        assert_int_equal(lapic_load(l, b.data, b.len, &used, NULL), 0);
        lapic_resume(l);
        fake_step(f, fake_random(&seed) % SEC);
        RD(TMCCT);
        WR(LVTT, (uint32_t)fake_random(&seed));
        WR(TDCR, (uint32_t)fake_random(&seed));
        WR(TMICT, (uint32_t)fake_random(&seed) >> (fake_random(&seed) & 31));
        lapic_wrmsr(l, 0x6e0, fake_random(&seed));
        fake_step(f, fake_random(&seed) % SEC);
        assert_true(timerq_next(&f->q) > clock_now(&f->clock));
        lapic_ack(l);
        WR(0xb0, 0);
        sbuf_free(&b);
    }
    free(s);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_one_shot),       T(test_divider),
        T(test_periodic),       T(test_short_period),
        T(test_masked),         T(test_deadline),
        T(test_tsc_offset),     T(test_read_before_callback),
        T(test_illegal_vector), T(test_reset_stops),
        T(test_load),           T(test_hostile_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
