/* The I/O APIC: registers, edges, levels and remote IRR, delivery modes (82093AA and ICH data
 * sheets). */
#include "fake.h"

struct fixture {
    struct fake *f;
    struct ioapic *a;
};

static int setup(void **state)
{
    struct fixture *x = calloc(1, sizeof(*x));

    x->f = fake_new(2, 1000000);
    fake_enable(x->f);
    assert_int_equal(ioapic_new(&x->a, x->f->bus, 4, &x->f->trace, NULL), 0);
    apic_bus_set_eoi(x->f->bus, ioapic_eoi, x->a);
    apic_bus_set_retry(x->f->bus, ioapic_retry, x->a);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *x = *state;

    fake_free(x->f);
    ioapic_free(x->a);
    free(x);
    return 0;
}

static uint32_t rd(struct fixture *x, uint32_t reg)
{
    ioapic_mmio_write(x->a, 0, reg);
    return ioapic_mmio_read(x->a, 0x10);
}

static void wr(struct fixture *x, uint32_t reg, uint32_t val)
{
    ioapic_mmio_write(x->a, 0, reg);
    ioapic_mmio_write(x->a, 0x10, val);
}

static void route(struct fixture *x, unsigned pin, uint32_t low, uint8_t dest)
{
    wr(x, 0x10 + 2 * pin, 0x10000);
    wr(x, 0x11 + 2 * pin, (uint32_t)dest << 24);
    wr(x, 0x10 + 2 * pin, low);
}

static bool remote_irr(struct fixture *x, unsigned pin) { return rd(x, 0x10 + 2 * pin) & 0x4000; }

/* Takes one interrupt on CPU i and ends it; -1 if there is none. */
static int take(struct fixture *x, unsigned i)
{
    int v = lapic_ack(x->f->apic[i]);

    if (v >= 0)
        lapic_mmio_write(x->f->apic[i], 0xb0, 0);
    return v;
}

static void test_registers(void **state)
{
    struct fixture *x = *state;

    assert_int_equal(rd(x, 0), 4u << 24);
    assert_int_equal(ioapic_mmio_read(x->a, 0), 0);
    assert_int_equal(rd(x, 1), 0x00170020);
    assert_int_equal(rd(x, 2), 4u << 24);
    wr(x, 0, 0xffffffff);
    assert_int_equal(rd(x, 0), 0x0f000000);
    wr(x, 1, 0);
    assert_int_equal(rd(x, 1), 0x00170020);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        assert_int_equal(rd(x, 0x10 + 2 * pin), 0x10000);
        wr(x, 0x10 + 2 * pin, 0xffffffff);
        wr(x, 0x11 + 2 * pin, 0xffffffff);
        assert_int_equal(rd(x, 0x10 + 2 * pin), 0x1afff); /* status and remote IRR are read-only */
        assert_int_equal(rd(x, 0x11 + 2 * pin), 0xff000000);
    }
    wr(x, 0x40, 0x1234);
    assert_int_equal(rd(x, 0x40), 0);
    assert_int_equal(rd(x, 0xff), 0);
    assert_int_equal(ioapic_mmio_read(x->a, 0x20), 0);
    assert_int_equal(ioapic_mmio_read(x->a, 0x40), 0);
    ioapic_reset(x->a);
    assert_int_equal(rd(x, 0), 4u << 24);
    assert_int_equal(rd(x, 0x10), 0x10000);
}

static void test_edge(void **state)
{
    struct fixture *x = *state;

    route(x, 4, 0x0034, 1);
    ioapic_set(x->a, 4, true);
    assert_int_equal(take(x, 1), 0x34);
    ioapic_set(x->a, 4, true); /* no edge */
    assert_int_equal(take(x, 1), -1);
    ioapic_set(x->a, 4, false);
    ioapic_set(x->a, 4, true);
    assert_int_equal(take(x, 1), 0x34);
    assert_false(remote_irr(x, 4));
    /* An edge while masked is lost, also when the line stays high. */
    ioapic_set(x->a, 4, false);
    wr(x, 0x18, 0x10034);
    ioapic_set(x->a, 4, true);
    wr(x, 0x18, 0x00034);
    assert_int_equal(take(x, 1), -1);
    /* Two edges before the first is taken are one interrupt. */
    for (int i = 0; i < 2; i++) {
        ioapic_set(x->a, 4, false);
        ioapic_set(x->a, 4, true);
    }
    assert_int_equal(take(x, 1), 0x34);
    assert_int_equal(take(x, 1), -1);
}

static void test_level(void **state)
{
    struct fixture *x = *state;

    route(x, 17, 0xa051, 0); /* active low: how the wire is driven is not ours to invert */
    ioapic_set(x->a, 17, true);
    assert_true(remote_irr(x, 17));
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x51);
    ioapic_set(x->a, 17, false);
    ioapic_set(x->a, 17, true); /* no second message before the EOI */
    assert_false(lapic_pending(x->f->apic[0]));
    lapic_mmio_write(x->f->apic[0], 0xb0, 0);
    assert_true(remote_irr(x, 17)); /* asserted still: sent again */
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x51);
    ioapic_set(x->a, 17, false);
    lapic_mmio_write(x->f->apic[0], 0xb0, 0);
    assert_false(remote_irr(x, 17));
    assert_int_equal(take(x, 0), -1);
}

static void test_level_masked(void **state)
{
    struct fixture *x = *state;

    route(x, 9, 0x18052, 0);
    ioapic_set(x->a, 9, true);
    assert_int_equal(take(x, 0), -1);
    wr(x, 0x22, 0x8052); /* unmasking sends */
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x52);
    wr(x, 0x22, 0x18052); /* masked in the handler: the EOI sends nothing */
    lapic_mmio_write(x->f->apic[0], 0xb0, 0);
    assert_false(remote_irr(x, 9));
    assert_int_equal(take(x, 0), -1);
    wr(x, 0x22, 0x8052);
    assert_int_equal(take(x, 0), 0x52);
    /* A level that goes away while masked is forgotten. */
    wr(x, 0x22, 0x18052);
    ioapic_set(x->a, 9, false);
    wr(x, 0x22, 0x8052);
    take(x, 0); /* what the EOI above re-sent */
    assert_int_equal(take(x, 0), -1);
}

static void test_stuck_remote_irr(void **state)
{
    struct fixture *x = *state;

    route(x, 10, 0x8053, 0);
    ioapic_set(x->a, 10, true);
    assert_true(remote_irr(x, 10));
    ioapic_set(x->a, 10, false);
    wr(x, 0x24, 0x10053); /* to edge and back: how guests without the EOI register clear it */
    assert_false(remote_irr(x, 10));
    wr(x, 0x24, 0x8053);
    assert_false(remote_irr(x, 10));
}

static void test_eoi_register(void **state)
{
    struct fixture *x = *state;

    lapic_mmio_write(x->f->apic[0], 0xf0, 0x11ff); /* no broadcast */
    route(x, 11, 0x8054, 0);
    route(x, 12, 0x8055, 0);
    ioapic_set(x->a, 11, true);
    ioapic_set(x->a, 12, true);
    assert_int_equal(take(x, 0), 0x55);
    assert_int_equal(take(x, 0), 0x54);
    ioapic_set(x->a, 11, false);
    ioapic_set(x->a, 12, false);
    assert_true(remote_irr(x, 11) && remote_irr(x, 12));
    ioapic_mmio_write(x->a, 0x40, 0x54);
    assert_false(remote_irr(x, 11));
    assert_true(remote_irr(x, 12));
}

/* A level that nobody took is sent again as soon as somebody may; an edge is not. */
static void test_level_is_sent_again(void **state)
{
    struct fixture *x = *state;

    lapic_mmio_write(x->f->apic[1], 0xf0, 0xff);
    route(x, 17, 0x8057, 1);
    route(x, 4, 0x58, 1);
    ioapic_set(x->a, 17, true);
    ioapic_set(x->a, 4, true);
    assert_false(remote_irr(x, 17));
    lapic_mmio_write(x->f->apic[1], 0xf0, 0x1ff);
    assert_true(remote_irr(x, 17));
    ioapic_set(x->a, 17, false);
    assert_int_equal(take(x, 1), 0x57);
    assert_int_equal(take(x, 1), -1);
    /* The same by a logical address. */
    route(x, 17, 0x8857, 0x40);
    ioapic_set(x->a, 17, true);
    assert_false(remote_irr(x, 17));
    lapic_mmio_write(x->f->apic[0], 0xd0, 0x40000000);
    assert_true(remote_irr(x, 17));
    ioapic_set(x->a, 17, false);
    assert_int_equal(take(x, 0), 0x57);
    /* What is no longer asserted is not. */
    route(x, 17, 0x8857, 0x20);
    ioapic_set(x->a, 17, true);
    ioapic_set(x->a, 17, false);
    lapic_mmio_write(x->f->apic[0], 0xd0, 0x20000000);
    assert_int_equal(take(x, 0), -1);
}

static void test_nobody_accepts(void **state)
{
    struct fixture *x = *state;

    route(x, 3, 0x8056, 7);
    ioapic_set(x->a, 3, true);
    assert_false(remote_irr(x, 3)); /* nobody will ever send its EOI */
    wr(x, 0x17, 0);
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x56);
}

static void test_shared_vector(void **state)
{
    struct fixture *x = *state;

    route(x, 20, 0x8060, 0);
    route(x, 21, 0x8060, 0);
    ioapic_set(x->a, 20, true);
    ioapic_set(x->a, 21, true);
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x60);
    ioapic_set(x->a, 20, false);
    lapic_mmio_write(x->f->apic[0], 0xb0, 0);
    assert_false(remote_irr(x, 20));
    assert_true(remote_irr(x, 21));
    assert_int_equal(take(x, 0), 0x60);
}

static void test_delivery_modes(void **state)
{
    struct fixture *x = *state;
    struct fake_cpu *c = &x->f->cpu[1];

    route(x, 1, 0x0400, 1);
    ioapic_set(x->a, 1, true);
    assert_int_equal(c->count[LAPIC_EV_NMI], 1);
    route(x, 2, 0x8400, 1); /* NMI is an edge even if it says level */
    ioapic_set(x->a, 2, true);
    assert_int_equal(c->count[LAPIC_EV_NMI], 2);
    assert_false(remote_irr(x, 2));
    route(x, 3, 0x0200, 1);
    ioapic_set(x->a, 3, true);
    assert_int_equal(c->count[LAPIC_EV_SMI], 1);
    route(x, 5, 0x0500, 1);
    ioapic_set(x->a, 5, true);
    assert_int_equal(c->count[LAPIC_EV_INIT], 1);
    route(x, 6, 0x0340, 1);
    ioapic_set(x->a, 6, true);
    assert_int_equal(take(x, 1), -1);

    /* Logical lowest priority: the one with the lower PPR. */
    lapic_mmio_write(x->f->apic[0], 0xd0, 1u << 24);
    lapic_mmio_write(x->f->apic[1], 0xd0, 2u << 24);
    lapic_set_cr8(x->f->apic[0], 2);
    route(x, 7, 0x0970, 3);
    ioapic_set(x->a, 7, true);
    assert_int_equal(take(x, 0), -1);
    assert_int_equal(take(x, 1), 0x70);
}

/* The 8259 through pin 0 as ExtINT (virtual wire through the I/O APIC). */
static void test_extint(void **state)
{
    struct fixture *x = *state;

    route(x, 0, 0x0700, 0);
    x->f->pic_vector = 0x23;
    x->f->pic_intr = true;
    ioapic_set(x->a, 0, true);
    assert_true(lapic_pending(x->f->apic[0]));
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x23);
    assert_false(lapic_pending(x->f->apic[0]));
}

/* ---- state ---- */

static int save(void *obj, struct sbuf *out) { return ioapic_save(obj, out); }

static int load(void *obj, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    return ioapic_load(obj, data, len, used, e);
}

static uint64_t *entries(void *s)
{
    for (size_t i = 0; i < ioapic_state_desc.nfields; i++)
        if (!strcmp(ioapic_state_desc.fields[i].name, "entry"))
            return (uint64_t *)((char *)s + ioapic_state_desc.fields[i].off);
    fail_msg("no field 'entry'");
    return NULL;
}

static void legalise(void *s)
{
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        entries(s)[i] &= 0xff0000000001efff;
}

static void test_state(void **state)
{
    struct fixture *x = *state;
    uint64_t *s = calloc(1, ioapic_state_desc.size);
    struct err e = {""};
    struct sbuf b;
    size_t used;

    fake_check_state(&(struct fake_saver){&ioapic_state_desc, x->a, save, load, legalise});
    sbuf_init(&b);
    entries(s)[5] = BIT(20);
    assert_int_equal(state_save(&ioapic_state_desc, s, &b), 0);
    assert_int_equal(ioapic_load(x->a, b.data, b.len, &used, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "entry[5]"));
    sbuf_free(&b);
    free(s);

    /* A level in service goes on after a load: the EOI finds its remote IRR. */
    ioapic_reset(x->a);
    for (int pin = 0; pin < IOAPIC_PINS; pin++)
        ioapic_set(x->a, pin, false);
    route(x, 17, 0x8051, 0);
    ioapic_set(x->a, 17, true);
    assert_int_equal(lapic_ack(x->f->apic[0]), 0x51);
    sbuf_init(&b);
    assert_int_equal(ioapic_save(x->a, &b), 0);
    ioapic_reset(x->a);
    ioapic_set(x->a, 17, false);
    assert_int_equal(ioapic_load(x->a, b.data, b.len, &used, NULL), 0);
    lapic_mmio_write(x->f->apic[0], 0xb0, 0);
    assert_int_equal(take(x, 0), 0x51);
    sbuf_free(&b);
}

static void test_random(void **state)
{
    struct fixture *x = *state;
    uint64_t seed = 11;

    for (int i = 0; i < 200000; i++) {
        uint64_t r = fake_random(&seed);
        struct lapic *l = x->f->apic[r >> 60 & 1];

        switch (r & 7) {
        case 0:
            ioapic_mmio_write(x->a, (uint32_t)(r >> 8 & 0xf) << 4, (uint32_t)(r >> 16));
            break;
        case 1:
            wr(x, r >> 8 & 0x3f, (uint32_t)(r >> 16) & 0x3ffff);
            break;
        case 2:
            rd(x, r >> 8 & 0xff);
            break;
        case 3:
            lapic_ack(l);
            lapic_mmio_write(l, 0xb0, 0);
            break;
        case 4:
            lapic_mmio_write(l, (uint32_t)(r >> 8 & 0x3f) << 4, (uint32_t)(r >> 16));
            lapic_mmio_write(l, 0xf0, 0x1ff);
            break;
        default:
            ioapic_set(x->a, (int)(r >> 8 & 0xff) % IOAPIC_PINS, r >> 16 & 1);
        }
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_registers),
        T(test_edge),
        T(test_level),
        T(test_level_masked),
        T(test_stuck_remote_irr),
        T(test_eoi_register),
        T(test_level_is_sent_again),
        T(test_nobody_accepts),
        T(test_shared_vector),
        T(test_delivery_modes),
        T(test_extint),
        T(test_state),
        T(test_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
