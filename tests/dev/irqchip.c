/* The interrupt controllers as the guest reaches them, through ports and the I/O APIC's page; and
 * the PM timer's arithmetic. */
#include "fake.h"

#include <stdlib.h>

#include "dev/platform/irqchip.h"
#include "dev/platform/pmtimer.h"

struct fixture {
    struct fake f;
    struct apic_bus *bus;
    struct irqchip_cfg cfg;
    struct device *d;
};

static int setup(void **state)
{
    struct fixture *x = calloc(1, sizeof(*x));
    struct irq out;

    fake_init(&x->f);
    out = fake_irq(&x->f, 0);
    assert_int_equal(apic_bus_new(&x->bus, NULL), 0);
    assert_int_equal(pic_new(&x->cfg.pic, &out, &x->f.trace, NULL), 0);
    assert_int_equal(ioapic_new(&x->cfg.ioapic, x->bus, 1, &x->f.trace, NULL), 0);
    x->cfg.level = BIT(9);
    x->d = fake_device(&x->f, &irqchip_class, "irqchip", &x->cfg);
    fake_ports(&x->f, 0x20, 2, x->d, &irqchip_master_ops);
    fake_ports(&x->f, 0xa0, 2, x->d, &irqchip_slave_ops);
    fake_ports(&x->f, 0x4d0, 2, x->d, &irqchip_elcr_ops);
    assert_non_null(mmio_map(x->d, &irqchip_ioapic_ops, IOAPIC_BASE, IOAPIC_SIZE, NULL));
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *x = *state;

    fake_fini(&x->f);
    device_free(x->d);
    ioapic_free(x->cfg.ioapic);
    pic_free(x->cfg.pic);
    apic_bus_free(x->bus);
    free(x);
    return 0;
}

/* A guest without an I/O APIC that has not touched ELCR finds the SCI level-triggered. */
static void test_firmware_elcr(void **state)
{
    struct fixture *x = *state;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(inb(&x->f, 0x4d0), 0);
        assert_int_equal(inb(&x->f, 0x4d1), 0x02);
        outb(&x->f, 0x4d0, 0x20);
        outb(&x->f, 0x4d1, 0);
        device_reset(x->d, RESET_COLD);
    }
}

static void test_pic_ports(void **state)
{
    static const uint8_t init[2][4] = {{0x11, 0x20, 0x04, 0x01}, {0x11, 0x28, 0x02, 0x01}};
    static const uint16_t base[2] = {0x20, 0xa0};
    struct fixture *x = *state;

    for (int chip = 0; chip < 2; chip++) {
        outb(&x->f, base[chip], init[chip][0]);
        for (int i = 1; i < 4; i++)
            outb(&x->f, base[chip] + 1, init[chip][i]);
        outb(&x->f, base[chip] + 1, (uint8_t)(0x40 | chip));
        assert_int_equal(inb(&x->f, base[chip] + 1), 0x40 | chip);
    }
    pic_set(x->cfg.pic, 9, true);
    outb(&x->f, 0xa1, 0);
    assert_true(x->f.level[0]);
    assert_int_equal(pic_ack(x->cfg.pic), 0x29);
    outb(&x->f, 0xa0, 0x0b);
    assert_int_equal(inb(&x->f, 0xa0), 0x02);
    outb(&x->f, 0x4d1, 0x0c);
    assert_int_equal(inb(&x->f, 0x4d1), 0x0c);
    assert_int_equal(inb(&x->f, 0x4d0), 0x00);
    device_reset(x->d, RESET_COLD);
    assert_int_equal(inb(&x->f, 0x4d1), 0x02);
}

static uint64_t mmio_get(struct fixture *x, uint64_t off, unsigned size)
{
    uint64_t v = 0;

    mmio_read(&x->f.ctx, IOAPIC_BASE + off, &v, size);
    return v;
}

static void mmio_put(struct fixture *x, uint64_t off, uint64_t v, unsigned size)
{
    mmio_write(&x->f.ctx, IOAPIC_BASE + off, &v, size);
}

static void test_ioapic_page(void **state)
{
    struct fixture *x = *state;

    mmio_put(x, 0, 1, 4);
    assert_int_equal(mmio_get(x, 0x10, 4), 0x00170020);
    assert_int_equal(mmio_get(x, 0x12, 1), 0x17);
    assert_int_equal(mmio_get(x, 0x12, 2), 0x0017);
    mmio_put(x, 0, 0x10, 1);      /* the index as a byte */
    mmio_put(x, 0x10, 0x00a0, 2); /* a part of the data register is not written */
    assert_int_equal(mmio_get(x, 0x10, 4), 0x10000);
    mmio_put(x, 0x10, 0x100a0, 4);
    assert_int_equal(mmio_get(x, 0x10, 4), 0x100a0);
    device_reset(x->d, RESET_WARM);
    mmio_put(x, 0, 0x10, 4);
    assert_int_equal(mmio_get(x, 0x10, 4), 0x10000);
}

static void test_pmtimer(void **state)
{
    struct clock c;

    clock_init_stepped(&c, 1000000, 0);
    assert_int_equal(pmtimer_value(&c), 0);
    clock_step(&c, 1000000000);
    assert_int_equal(pmtimer_value(&c), 3579545);
    clock_step(&c, 1);
    assert_int_equal(pmtimer_value(&c), 3579545);
    clock_step(&c, 1200ull * 1000000000 - 1); /* wraps after 1199.9 s */
    assert_int_equal(pmtimer_value(&c), 3579545ull * 1201 - (1ull << 32));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_firmware_elcr),
        T(test_pic_ports),
        T(test_ioapic_page),
        cmocka_unit_test(test_pmtimer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
