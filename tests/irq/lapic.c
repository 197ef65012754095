/* The local APIC's registers, priorities, pins, errors, IPIs and modes (SDM vol. 3 ch. 11). */
#include "fake.h"

#include <pthread.h>
#include <sched.h>

#include "irq/lapic_impl.h"

static int setup(void **state)
{
    *state = fake_new(CPUS, 1000000);
    return 0;
}

static int teardown(void **state)
{
    fake_free(*state);
    return 0;
}

#define RD(f, i, off) lapic_mmio_read((f)->apic[i], off)
#define WR(f, i, off, v) lapic_mmio_write((f)->apic[i], off, v)

static int fixed(struct fake *f, uint32_t dest, uint8_t vector, bool level)
{
    struct apic_msg m = {.dest = dest, .vector = vector, .level = level, .assert_ = true};

    return apic_bus_deliver(f->bus, &m, NULL);
}

static void test_power_on(void **state)
{
    struct fake *f = *state;

    assert_int_equal(RD(f, 0, 0x20), 0);
    assert_int_equal(RD(f, 3, 0x20), 3u << 24);
    assert_int_equal(RD(f, 0, 0x30), 0x01050014);
    assert_int_equal(RD(f, 0, 0xd0), 0);
    assert_int_equal(RD(f, 0, 0xe0), 0xffffffff);
    assert_int_equal(RD(f, 0, 0xf0), 0xff);
    for (uint32_t off = 0x320; off <= 0x370; off += 0x10)
        assert_int_equal(RD(f, 0, off), 0x10000);
    assert_int_equal(lapic_base(f->apic[0]), 0xfee00900);
    assert_int_equal(lapic_base(f->apic[1]), 0xfee00800);
    /* LVT masks cannot be cleared while software-disabled; fixed interrupts are not accepted. */
    WR(f, 0, 0x350, 0x00700);
    assert_int_equal(RD(f, 0, 0x350), 0x10700);
    assert_int_equal(fixed(f, 0, 0x40, false), 0);
    assert_false(lapic_pending(f->apic[0]));
}

static void test_disable_masks_lvt(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    WR(f, 0, 0x350, 0x700);
    WR(f, 0, 0x370, 0xfe);
    assert_int_equal(RD(f, 0, 0x350), 0x700);
    WR(f, 0, 0xf0, 0xff);
    assert_int_equal(RD(f, 0, 0x350), 0x10700);
    assert_int_equal(RD(f, 0, 0x370), 0x100fe);
    WR(f, 0, 0xf0, 0x1ff);
    assert_int_equal(RD(f, 0, 0x350), 0x10700);
}

static void test_accept_and_eoi(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[1];

    fake_enable(f);
    assert_int_equal(fixed(f, 1, 0x41, false), 1);
    assert_int_equal(f->cpu[1].count[LAPIC_EV_INTR], 1);
    assert_true(lapic_pending(l));
    assert_int_equal(RD(f, 1, 0x220), 0x2);
    assert_int_equal(lapic_ack(l), 0x41);
    assert_int_equal(RD(f, 1, 0x220), 0);
    assert_int_equal(RD(f, 1, 0x120), 0x2);
    assert_int_equal(RD(f, 1, 0xa0), 0x40);
    assert_false(lapic_pending(l));
    assert_int_equal(lapic_ack(l), -1);

    fixed(f, 1, 0x4f, false); /* same class: waits */
    assert_false(lapic_pending(l));
    fixed(f, 1, 0x52, true); /* higher: nests */
    assert_true(lapic_pending(l));
    assert_int_equal(lapic_ack(l), 0x52);
    assert_int_equal(RD(f, 1, 0x1a0), 1u << 18); /* TMR */
    assert_int_equal(RD(f, 1, 0xa0), 0x50);
    WR(f, 1, 0xb0, 0);
    assert_int_equal(f->neoi, 1);
    assert_int_equal(f->eois[0], 0x52);
    assert_int_equal(RD(f, 1, 0xa0), 0x40);
    assert_false(lapic_pending(l));
    WR(f, 1, 0xb0, 0);
    assert_int_equal(f->neoi, 1); /* an edge is not broadcast */
    assert_true(lapic_pending(l));
    assert_int_equal(lapic_ack(l), 0x4f);
    WR(f, 1, 0xb0, 0);
    WR(f, 1, 0xb0, 0); /* with nothing in service: nothing */
    assert_int_equal(RD(f, 1, 0xa0), 0);
}

static void test_eoi_broadcast_suppression(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    WR(f, 0, 0xf0, 0x11ff);
    assert_int_equal(RD(f, 0, 0xf0), 0x11ff);
    fixed(f, 0, 0x60, true);
    assert_int_equal(lapic_ack(f->apic[0]), 0x60);
    WR(f, 0, 0xb0, 0);
    assert_int_equal(f->neoi, 0);
}

static void test_tpr(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];
    unsigned events;

    fake_enable(f);
    lapic_set_cr8(l, 5);
    assert_int_equal(RD(f, 0, 0x80), 0x50);
    assert_int_equal(RD(f, 0, 0xa0), 0x50);
    fixed(f, 0, 0x5f, false);
    assert_false(lapic_pending(l));
    assert_int_equal(f->cpu[0].count[LAPIC_EV_INTR], 0);
    fixed(f, 0, 0x60, false);
    assert_true(lapic_pending(l));
    assert_int_equal(lapic_ack(l), 0x60);
    WR(f, 0, 0xb0, 0);
    events = f->cpu[0].count[LAPIC_EV_INTR];
    lapic_set_cr8(l, 4);
    assert_true(lapic_pending(l));
    assert_int_equal(f->cpu[0].count[LAPIC_EV_INTR], events + 1);
    WR(f, 0, 0x80, 0x57);
    assert_int_equal(lapic_get_cr8(l), 5);
    assert_int_equal(RD(f, 0, 0xa0), 0x57); /* TPR >= ISRV: all eight bits */
    assert_false(lapic_pending(l));
    WR(f, 0, 0x80, 0x40);
    assert_int_equal(lapic_ack(l), 0x5f);
    assert_int_equal(RD(f, 0, 0xa0), 0x50);
    /* Arbitration priority: TPR above both, else from IRR and TPR & ISR. */
    assert_int_equal(RD(f, 0, 0x90), 0x40);
    WR(f, 0, 0x80, 0x63);
    assert_int_equal(RD(f, 0, 0x90), 0x63);
    fixed(f, 0, 0x99, false);
    assert_int_equal(RD(f, 0, 0x90), 0x90);
}

static void test_all_vectors(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    for (unsigned v = 16; v < 256; v++)
        assert_int_equal(fixed(f, 2, (uint8_t)v, v & 1), 1);
    for (int class = 15; class >= 1; class --) {
        for (int k = 15; k >= 0; k--) {
            assert_int_equal(lapic_ack(f->apic[2]), class * 16 + k);
            WR(f, 2, 0xb0, 0);
        }
    }
    assert_int_equal(lapic_ack(f->apic[2]), -1);
    assert_int_equal(f->neoi, 120);
}

static void test_errors(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    WR(f, 0, 0x370, 0xfe);
    assert_int_equal(fixed(f, 0, 15, false), 0);
    assert_int_equal(RD(f, 0, 0x280), 0); /* not before ESR is written */
    assert_int_equal(lapic_ack(f->apic[0]), 0xfe);
    WR(f, 0, 0xb0, 0);
    WR(f, 0, 0x280, 0);
    assert_int_equal(RD(f, 0, 0x280), 0x40);
    WR(f, 0, 0x280, 0);
    assert_int_equal(RD(f, 0, 0x280), 0);
    WR(f, 0, 0x300, 0x4000 | 5); /* illegal vector in an IPI */
    WR(f, 0, 0x280, 0);
    assert_int_equal(RD(f, 0, 0x280), 0x20);
    RD(f, 0, 0x00); /* reserved registers */
    WR(f, 0, 0x3f0, 0x40);
    RD(f, 0, 0x2f0);
    RD(f, 0, 0xff0);
    WR(f, 0, 0x280, 0);
    assert_int_equal(RD(f, 0, 0x280), 0x80);
    /* An error LVT that is itself illegal ends. */
    WR(f, 0, 0x370, 0x03);
    RD(f, 0, 0x00);
    WR(f, 0, 0x280, 0);
    assert_int_equal(RD(f, 0, 0x280), 0xc0);
    /* Off the 16-byte steps there is nothing. */
    assert_int_equal(RD(f, 0, 0x34), 0);
    WR(f, 0, 0x84, 0x70);
    assert_int_equal(RD(f, 0, 0x80), 0);
}

static void test_lint(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    f->pic_vector = 0x21;
    f->pic_intr = true;
    lapic_set_lint(l, 0, true);
    assert_false(lapic_pending(l)); /* LINT0 is masked */
    fake_enable(f);
    WR(f, 0, 0x350, 0x700);
    assert_true(lapic_pending(l));
    assert_int_equal(f->cpu[0].count[LAPIC_EV_INTR], 1);
    lapic_set_cr8(l, 15); /* ExtINT passes the TPR by */
    assert_true(lapic_pending(l));
    assert_int_equal(lapic_ack(l), 0x21);
    assert_false(lapic_pending(l));
    assert_int_equal(RD(f, 0, 0x100) | RD(f, 0, 0x110), 0); /* no ISR bit */
    lapic_set_cr8(l, 0);

    /* LINT1 as NMI: an edge, once. */
    WR(f, 0, 0x360, 0x400);
    lapic_set_lint(l, 1, true);
    lapic_set_lint(l, 1, true);
    assert_int_equal(f->cpu[0].count[LAPIC_EV_NMI], 1);
    lapic_set_lint(l, 1, false);
    lapic_set_lint(l, 1, true);
    assert_int_equal(f->cpu[0].count[LAPIC_EV_NMI], 2);
    WR(f, 0, 0x360, 0x10400);
    lapic_set_lint(l, 1, false);
    lapic_set_lint(l, 1, true);
    assert_int_equal(f->cpu[0].count[LAPIC_EV_NMI], 2);

    /* LINT1 fixed and level-triggered: remote IRR until EOI, again while asserted. */
    lapic_set_lint(l, 1, false);
    WR(f, 0, 0x360, 0x8077);
    lapic_set_lint(l, 1, true);
    assert_int_equal(RD(f, 0, 0x360), 0xc077);
    assert_int_equal(lapic_ack(l), 0x77);
    WR(f, 0, 0xb0, 0);
    assert_int_equal(RD(f, 0, 0x360), 0xc077);
    assert_int_equal(lapic_ack(l), 0x77);
    lapic_set_lint(l, 1, false);
    WR(f, 0, 0xb0, 0);
    assert_int_equal(RD(f, 0, 0x360), 0x8077);
    assert_int_equal(lapic_ack(l), -1);
}

static void test_disabled_pins(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];

    assert_int_equal(lapic_wrmsr(l, 0x1b, 0xfee00100), 0);
    f->pic_intr = true;
    f->pic_vector = 0x30;
    lapic_set_lint(l, 0, true);
    assert_true(lapic_pending(l)); /* LINT0 is INTR */
    assert_int_equal(lapic_ack(l), 0x30);
    lapic_set_lint(l, 1, true);
    assert_int_equal(f->cpu[0].count[LAPIC_EV_NMI], 1);
    assert_int_equal(RD(f, 0, 0x30), 0xffffffff);
}

static void test_extint_message(void **state)
{
    struct fake *f = *state;
    struct apic_msg m = {.dest = 0, .delivery = APIC_EXTINT, .assert_ = true};

    fake_enable(f);
    f->pic_vector = 0x28;
    f->pic_intr = true;
    assert_false(lapic_pending(f->apic[0]));
    assert_int_equal(apic_bus_deliver(f->bus, &m, NULL), 1);
    assert_int_equal(f->cpu[0].count[LAPIC_EV_INTR], 1);
    assert_true(lapic_pending(f->apic[0]));
    assert_int_equal(lapic_ack(f->apic[0]), 0x28);
    f->pic_intr = true; /* one message, one INTA */
    assert_false(lapic_pending(f->apic[0]));
}

/* ---- IPIs ---- */

static void icr(struct fake *f, unsigned from, uint32_t dest, uint32_t lo)
{
    WR(f, from, 0x310, dest << 24);
    WR(f, from, 0x300, lo);
}

static unsigned who_has(struct fake *f, uint8_t vector)
{
    unsigned set = 0;

    for (unsigned i = 0; i < CPUS; i++)
        if (fake_irr(f->apic[i], vector))
            set |= 1u << i;
    return set;
}

static void test_ipi_destinations(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    icr(f, 0, 2, 0x4030);
    assert_int_equal(who_has(f, 0x30), 0x4);
    assert_int_equal(RD(f, 0, 0x300), 0x4030);
    assert_int_equal(RD(f, 0, 0x310), 2u << 24);
    icr(f, 0, 0, 0x4031); /* itself, by its ID */
    assert_int_equal(who_has(f, 0x31), 0x1);
    icr(f, 0, 0xff, 0x4032);
    assert_int_equal(who_has(f, 0x32), 0xf);
    icr(f, 0, 9, 0x4033);
    assert_int_equal(who_has(f, 0x33), 0);
    icr(f, 1, 0, 0x44034); /* self */
    assert_int_equal(who_has(f, 0x34), 0x2);
    icr(f, 1, 0, 0x84035); /* all */
    assert_int_equal(who_has(f, 0x35), 0xf);
    icr(f, 1, 0, 0xc4036); /* all but self */
    assert_int_equal(who_has(f, 0x36), 0xd);
    /* The delivery status is read-only and reserved bits stay clear. */
    icr(f, 1, 0, 0xfff3f037);
    assert_int_equal(RD(f, 1, 0x300), 0xc037);

    /* Flat logical. */
    for (unsigned i = 0; i < CPUS; i++)
        WR(f, i, 0xd0, 1u << (24 + i));
    icr(f, 0, 0x0a, 0x4840);
    assert_int_equal(who_has(f, 0x40), 0xa);
    icr(f, 0, 0xff, 0x4841);
    assert_int_equal(who_has(f, 0x41), 0xf);
    /* Cluster: 0 and 1 in cluster 0, 2 and 3 in cluster 1. */
    for (unsigned i = 0; i < CPUS; i++) {
        WR(f, i, 0xe0, 0x0fffffff);
        assert_int_equal(RD(f, i, 0xe0), 0x0fffffff);
        WR(f, i, 0xd0, (i / 2 << 28) | 1u << (24 + i % 2));
    }
    icr(f, 0, 0x12, 0x4842);
    assert_int_equal(who_has(f, 0x42), 0x8);
    icr(f, 0, 0x03, 0x4843);
    assert_int_equal(who_has(f, 0x43), 0x3);
    icr(f, 0, 0xf1, 0x4844); /* that member of every cluster */
    assert_int_equal(who_has(f, 0x44), 0x5);
}

static void test_ipi_modes(void **state)
{
    struct fake *f = *state;

    /* All but fixed and lowest priority reach software-disabled APICs too. */
    icr(f, 0, 1, 0x4400);
    assert_int_equal(f->cpu[1].count[LAPIC_EV_NMI], 1);
    icr(f, 0, 1, 0x4200);
    assert_int_equal(f->cpu[1].count[LAPIC_EV_SMI], 1);
    icr(f, 0, 1, 0xc500);
    assert_int_equal(f->cpu[1].count[LAPIC_EV_INIT], 1);
    icr(f, 0, 1, 0x8500); /* de-assert */
    assert_int_equal(f->cpu[1].count[LAPIC_EV_INIT], 1);
    icr(f, 0, 1, 0x469a);
    assert_int_equal(f->cpu[1].count[LAPIC_EV_SIPI], 1);
    assert_int_equal(f->cpu[1].sipi, 0x9a);
    icr(f, 0, 0, 0xc4500);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(f->cpu[i].count[LAPIC_EV_INIT], i == 0 ? 0 : i == 1 ? 2 : 1);
    icr(f, 0, 1, 0x4340); /* reserved mode */
    assert_int_equal(who_has(f, 0x40), 0);
    /* A globally disabled one is off the bus. */
    assert_int_equal(lapic_wrmsr(f->apic[2], 0x1b, 0xfee00000), 0);
    icr(f, 0, 2, 0x4400);
    assert_int_equal(f->cpu[2].count[LAPIC_EV_NMI], 0);
}

static void test_lowest_priority(void **state)
{
    struct fake *f = *state;
    unsigned got[CPUS] = {0};

    for (unsigned i = 1; i < CPUS; i++) /* 0 stays software-disabled */
        WR(f, i, 0xf0, 0x1ff);
    lapic_set_cr8(f->apic[1], 3);
    lapic_set_cr8(f->apic[2], 2);
    lapic_set_cr8(f->apic[3], 4);
    icr(f, 0, 0xff, 0x4150);
    assert_int_equal(who_has(f, 0x50), 0x4);
    /* Equals take turns. */
    lapic_set_cr8(f->apic[1], 0);
    lapic_set_cr8(f->apic[2], 0);
    lapic_set_cr8(f->apic[3], 0);
    for (unsigned v = 0x60; v < 0x60 + 32; v++) {
        icr(f, 0, 0xff, 0x4100 | v);
        for (unsigned i = 0; i < CPUS; i++)
            got[i] += fake_irr(f->apic[i], (uint8_t)v);
    }
    assert_int_equal(got[0], 0);
    assert_int_equal(got[1] + got[2] + got[3], 32);
    for (unsigned i = 1; i < CPUS; i++)
        assert_in_range(got[i], 10, 11);
}

static void test_msi(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    assert_int_equal(apic_bus_msi(f->bus, 0xfee03000, 0x0041), 1);
    assert_int_equal(who_has(f, 0x41), 0x8);
    for (unsigned i = 0; i < CPUS; i++)
        WR(f, i, 0xd0, 1u << (24 + i));
    assert_int_equal(apic_bus_msi(f->bus, 0xfee06004, 0x0042), 2); /* logical */
    assert_int_equal(who_has(f, 0x42), 0x6);
    assert_int_equal(apic_bus_msi(f->bus, 0xfee0600c, 0x0043), 1); /* with the hint: one of them */
    assert_int_equal(apic_bus_msi(f->bus, 0xfee00000, 0x0400), 1); /* NMI */
    assert_int_equal(f->cpu[0].count[LAPIC_EV_NMI], 1);
    assert_int_equal(apic_bus_msi(f->bus, 0xfee00000, 0xc044), 1); /* level */
    assert_int_equal(lapic_ack(f->apic[0]), 0x44);
    WR(f, 0, 0xb0, 0);
    assert_int_equal(f->eois[0], 0x44);
    assert_int_equal(apic_bus_msi(f->bus, 0xfee00000, 0x8045), 0); /* de-assert */
    assert_int_equal(apic_bus_msi(f->bus, 0xfed00000, 0x0046), 0);
    assert_int_equal(apic_bus_msi(f->bus, 0x1fee00000, 0x0046), 0);
    assert_int_equal(who_has(f, 0x46), 0);
}

/* ---- x2APIC ---- */

static void test_base_transitions(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[0];
    static const struct {
        uint64_t val;
        bool ok;
    } steps[] = {
        {0xfee00500, false},                         /* EXTD without EN */
        {0xfee00900, true},  {0xfee00901, false},    /* reserved */
        {0xfee00b00, false}, {0x10000000900, false}, /* beyond 40 physical bits */
        {0xff0e00900, true}, {0xfee00d00, true},     /* to x2APIC */
        {0xfee00900, false},                         /* and not back directly */
        {0xfee00500, false}, {0xfee00d00, true},     {0xfee00100, true}, /* off */
        {0xfee00d00, false},                                             /* not from there */
        {0xfee00900, true},  {0xfee00d00, true},
    };

    fake_enable(f);
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        uint64_t before = lapic_base(l);

        assert_int_equal(lapic_wrmsr(l, 0x1b, steps[i].val), steps[i].ok ? 0 : -EINVAL);
        assert_int_equal(lapic_base(l), steps[i].ok ? steps[i].val : before);
        assert_int_equal(fake_rdmsr(l, 0x1b), lapic_base(l));
    }
    /* The state was lost on the way. */
    assert_int_equal(fake_rdmsr(l, 0x80f), 0xff);
}

static void test_x2apic_keeps_state(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[1];

    fake_enable(f);
    WR(f, 1, 0x320, 0x200ef);
    lapic_set_cr8(l, 3);
    fixed(f, 1, 0x66, false);
    fake_x2apic(l);
    assert_int_equal(fake_rdmsr(l, 0x80f), 0x1ff);
    assert_int_equal(fake_rdmsr(l, 0x832), 0x200ef);
    assert_int_equal(fake_rdmsr(l, 0x808), 0x30);
    assert_int_equal(fake_rdmsr(l, 0x80d), 0x2);
    assert_int_equal(fake_rdmsr(l, 0x802), 1);
    assert_int_equal(fake_rdmsr(l, 0x823), 0x40);
    assert_int_equal(lapic_ack(l), 0x66);
    assert_int_equal(lapic_wrmsr(l, 0x80b, 0), 0);
    /* The page is gone. */
    assert_int_equal(RD(f, 1, 0x30), 0xffffffff);
    WR(f, 1, 0x80, 0);
    assert_int_equal(fake_rdmsr(l, 0x808), 0x30);
    /* INIT keeps the mode. */
    lapic_reset(l, true);
    assert_int_equal(lapic_base(l), 0xfee00c00);
    assert_int_equal(fake_rdmsr(l, 0x80d), 0x2);
    assert_int_equal(fake_rdmsr(l, 0x80f), 0xff);
    lapic_reset(l, false);
    assert_int_equal(lapic_base(l), 0xfee00800);
}

/* Access rights of the x2APIC MSRs: table 11-6. */
static void test_x2apic_msrs(void **state)
{
    static const struct {
        uint16_t first, last;
        bool rd, wr;
        uint32_t reserved; /* a bit whose setting is #GP; 0: none */
    } t[] = {
        {0x802, 0x803, true, false, 0},     {0x808, 0x808, true, true, 0x100},
        {0x80a, 0x80a, true, false, 0},     {0x80b, 0x80b, false, true, 0x1},
        {0x80d, 0x80d, true, false, 0},     {0x80f, 0x80f, true, true, 0x400},
        {0x810, 0x827, true, false, 0},     {0x828, 0x828, true, true, 0x1},
        {0x830, 0x830, true, true, 0x2000}, {0x832, 0x832, true, true, 0x100},
        {0x833, 0x834, true, true, 0x8000}, {0x835, 0x836, true, true, 0x20000},
        {0x837, 0x837, true, true, 0x400},  {0x838, 0x838, true, true, 0},
        {0x839, 0x839, true, false, 0},     {0x83e, 0x83e, true, true, 0x4},
        {0x83f, 0x83f, false, true, 0x100},
    };
    struct fake *f = *state;
    struct lapic *l = f->apic[0];
    uint64_t v;

    for (uint32_t msr = 0x800; msr < 0x900; msr++) { /* in xAPIC mode: none */
        assert_int_equal(lapic_rdmsr(l, msr, &v), -EINVAL);
        assert_int_equal(lapic_wrmsr(l, msr, 0), -EINVAL);
    }
    fake_enable(f);
    fake_x2apic(l);
    for (uint32_t msr = 0x800; msr < 0x900; msr++) {
        bool rd = false, wr = false;
        uint32_t reserved = 0;

        for (size_t i = 0; i < ARRAY_LEN(t); i++) {
            if (msr >= t[i].first && msr <= t[i].last) {
                rd = t[i].rd;
                wr = t[i].wr;
                reserved = t[i].reserved;
            }
        }
        assert_int_equal(lapic_rdmsr(l, msr, &v), rd ? 0 : -EINVAL);
        assert_int_equal(lapic_wrmsr(l, msr, 0), wr ? 0 : -EINVAL);
        if (wr && msr != 0x830)
            assert_int_equal(lapic_wrmsr(l, msr, BIT(32)), -EINVAL);
        if (reserved)
            assert_int_equal(lapic_wrmsr(l, msr, reserved), -EINVAL);
    }
    assert_int_equal(lapic_rdmsr(l, 0x7ff, &v), -EINVAL);
    assert_int_equal(lapic_rdmsr(l, 0x900, &v), -EINVAL);
}

static void test_x2apic_ipi(void **state)
{
    struct fake *f = *state;

    fake_enable(f);
    for (unsigned i = 0; i < CPUS; i++)
        fake_x2apic(f->apic[i]);
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x830, 2ull << 32 | 0x4051), 0);
    assert_int_equal(fake_rdmsr(f->apic[0], 0x830), 2ull << 32 | 0x4051);
    assert_int_equal(lapic_ack(f->apic[2]), 0x51);
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x830, 0xa00000000 | 0x4852), 0); /* logical 0:1010 */
    assert_int_equal(lapic_ack(f->apic[1]), 0x52);
    assert_int_equal(lapic_ack(f->apic[3]), 0x52);
    assert_int_equal(lapic_ack(f->apic[2]), -1);
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x830, 0x1000a00000000 | 0x4853), 0); /* cluster 1 */
    assert_false(lapic_pending(f->apic[1]));
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x830, 0xffull << 32 | 0x4054), 0); /* not broadcast */
    assert_false(lapic_pending(f->apic[1]));
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x830, 0xffffffffull << 32 | 0x4061), 0);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(lapic_ack(f->apic[i]), 0x61);
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x83f, 0x70), 0);
    assert_int_equal(lapic_ack(f->apic[0]), 0x70);
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x83f, 0x0f), 0);
    assert_int_equal(lapic_wrmsr(f->apic[0], 0x828, 0), 0);
    assert_int_equal(fake_rdmsr(f->apic[0], 0x828), 0x20);
    /* An 8-bit physical broadcast, as the I/O APIC sends it, and an MSI to x2APIC targets. */
    assert_int_equal(fixed(f, 0xff, 0x81, false), 4);
    assert_int_equal(apic_bus_msi(f->bus, 0xfee03000, 0x0082), 1);
}

/* ---- state ---- */

static int save(void *obj, struct sbuf *out) { return lapic_save(obj, out); }

static int load(void *obj, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    return lapic_load(obj, data, len, used, e);
}

static void legalise(void *p)
{
    struct lapic_state *s = p;

    s->id = 2;
    s->base &= ~(PAGE_MASK & ~(BASE_BSP | BASE_X2APIC | BASE_ENABLE));
    if (s->base & BASE_X2APIC) {
        s->base |= BASE_ENABLE;
        s->ldr = 4;
    }
    s->irr[0] &= 0xffff0000;
    s->isr[0] &= 0xffff0000;
}

static void refused(struct lapic *l, const struct lapic_state *s, const char *why)
{
    struct err e = {""};
    struct sbuf b;
    size_t used;

    sbuf_init(&b);
    assert_int_equal(state_save(&lapic_state_desc, s, &b), 0);
    assert_int_equal(lapic_load(l, b.data, b.len, &used, &e), -EINVAL);
    assert_non_null(strstr(e.msg, why));
    sbuf_free(&b);
}

static void test_state(void **state)
{
    struct fake *f = *state;
    struct lapic *l = f->apic[2];
    struct lapic_state s = {.id = 2, .base = 0xfee00800};
    unsigned events;
    struct sbuf b;
    size_t used;

    lapic_quiesce(l);
    fake_check_state(&(struct fake_saver){&lapic_state_desc, l, save, load, legalise});
    s.base = 0xfee00400;
    refused(l, &s, "x2APIC");
    s.base = 0xfee00801;
    refused(l, &s, "reserved");
    s.base = 0xfee00c00;
    s.ldr = 8;
    refused(l, &s, "ldr");
    s.base = 0xfee00800;
    s.id = 3;
    refused(l, &s, "APIC 3");
    s.id = 2;
    s.isr[0] = 8;
    refused(l, &s, "below 16");

    /* What is pending is reported again after a load. */
    fake_enable(f);
    lapic_reset(l, false);
    WR(f, 2, 0xf0, 0x1ff);
    fixed(f, 2, 0x91, false);
    sbuf_init(&b);
    assert_int_equal(lapic_save(l, &b), 0);
    lapic_reset(l, false);
    assert_false(lapic_pending(l));
    assert_int_equal(lapic_load(l, b.data, b.len, &used, NULL), 0);
    events = f->cpu[2].count[LAPIC_EV_INTR];
    lapic_resume(l);
    assert_int_equal(f->cpu[2].count[LAPIC_EV_INTR], events + 1);
    assert_int_equal(lapic_ack(l), 0x91);
    sbuf_free(&b);
}

static void test_two_with_one_id(void **state)
{
    struct fake *f = *state;
    struct lapic_cfg cfg = {
        .id = 1, .timers = &f->q, .trace = &f->trace, .event = fake_event, .owner = &f->cpu[0]};
    struct lapic *l;
    struct err e = {""};

    assert_int_equal(lapic_new(&l, f->bus, &cfg, &e), -EEXIST);
    assert_non_null(strstr(e.msg, "ID 1"));
}

static void test_random(void **state)
{
    struct fake *f = *state;
    uint64_t seed = 5, v;

    for (int i = 0; i < 300000; i++) {
        uint64_t r = fake_random(&seed), val = fake_random(&seed) >> (fake_random(&seed) & 63);
        struct lapic *l = f->apic[r >> 60 & 3];
        bool pending;
        int got;

        switch (r & 15) {
        case 0:
            lapic_mmio_read(l, r >> 8 & 0xfff);
            break;
        case 1:
        case 2:
            lapic_mmio_write(l, r >> 8 & 0x3f0, (uint32_t)val);
            break;
        case 3:
            lapic_mmio_write(l, 0xf0, 0x1ff);
            break;
        case 4:
            lapic_rdmsr(l, 0x800 + (r >> 8 & 0xff), &v);
            break;
        case 5:
        case 6:
            lapic_wrmsr(l, 0x800 + (r >> 8 & 0x3f), val);
            break;
        case 7:
            lapic_wrmsr(l, 0x1b, (val & 0xd00) | BASE_DEFAULT);
            break;
        case 8:
            lapic_set_lint(l, r >> 8 & 1, r >> 9 & 1);
            f->pic_intr = r >> 10 & 1;
            break;
        case 9:
            apic_bus_msi(f->bus, 0xfee00000 | (val & 0xfffff), (uint32_t)fake_random(&seed));
            break;
        case 10:
            lapic_set_cr8(l, (uint8_t)val);
            break;
        case 11:
            lapic_wrmsr(l, 0x6e0, val);
            fake_step(f, val & 0xfffff);
            assert_true(timerq_next(&f->q) > clock_now(&f->clock));
            break;
        case 12:
            lapic_reset(l, r >> 8 & 1);
            break;
        default:
            /* Nothing else touches the APIC: what is pending can be taken, and nothing else. */
            pending = lapic_pending(l);
            got = lapic_ack(l);
            assert_int_equal(pending, got >= 0);
            if (pending)
                assert_in_range(got, 0, 255);
            if (r >> 8 & 1)
                lapic_x2apic(l) ? (void)lapic_wrmsr(l, 0x80b, 0) : lapic_mmio_write(l, 0xb0, 0);
        }
    }
}

/* ---- threads ---- */

#define SENDS 100000

struct sender {
    struct fake *f;
    pthread_t t;
    uint8_t vector;
    _Atomic unsigned *left;
};

static void *send_ipis(void *arg)
{
    struct sender *s = arg;

    for (int i = 0; i < SENDS; i++)
        fixed(s->f, 1, s->vector, false);
    atomic_fetch_sub(s->left, 1);
    return NULL;
}

static void on_wake(void *owner, enum lapic_event ev, uint32_t arg)
{
    if (ev == LAPIC_EV_INTR)
        atomic_fetch_add((_Atomic unsigned *)owner, 1);
}

/* Two senders and one receiver that looks only when it was told to: no wake-up may get lost. */
static void test_threads(void **state)
{
    struct fake *f = *state;
    _Atomic unsigned wakeups = 0, left = 2;
    struct lapic_cfg cfg = {
        .id = 1, .timers = &f->q, .trace = &f->trace, .event = on_wake, .owner = &wakeups};
    struct sender s[2];
    unsigned seen = 0, taken[256] = {0};
    struct lapic *l;

    lapic_free(f->apic[1]);
    assert_int_equal(lapic_new(&l, f->bus, &cfg, NULL), 0);
    f->apic[1] = l;
    lapic_mmio_write(l, 0xf0, 0x1ff);
    for (int i = 0; i < 2; i++) {
        s[i] = (struct sender){.f = f, .vector = (uint8_t)(0x40 + 0x20 * i), .left = &left};
        assert_int_equal(pthread_create(&s[i].t, NULL, send_ipis, &s[i]), 0);
    }
    for (;;) {
        bool done = atomic_load(&left) == 0;
        unsigned now = atomic_load(&wakeups);
        int v;

        if (now == seen) {
            if (done)
                break;
            sched_yield();
            continue;
        }
        seen = now;
        while (lapic_pending(l)) {
            v = lapic_ack(l);
            assert_true(v == 0x40 || v == 0x60);
            taken[v]++;
            lapic_mmio_write(l, 0xb0, 0);
        }
    }
    for (int i = 0; i < 2; i++)
        pthread_join(s[i].t, NULL);
    assert_int_equal(lapic_ack(l), -1);
    assert_in_range(taken[0x40], 1, SENDS);
    assert_in_range(taken[0x60], 1, SENDS);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_power_on),
        T(test_disable_masks_lvt),
        T(test_accept_and_eoi),
        T(test_eoi_broadcast_suppression),
        T(test_tpr),
        T(test_all_vectors),
        T(test_errors),
        T(test_lint),
        T(test_disabled_pins),
        T(test_extint_message),
        T(test_ipi_destinations),
        T(test_ipi_modes),
        T(test_lowest_priority),
        T(test_msi),
        T(test_base_transitions),
        T(test_x2apic_keeps_state),
        T(test_x2apic_msrs),
        T(test_x2apic_ipi),
        T(test_state),
        T(test_two_with_one_id),
        T(test_random),
        T(test_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
