/*
 * Random register accesses to every device class, meant to run under AddressSanitizer and UBSan:
 * whatever the guest does, alone or after a reset, a pause or a load of any state that validates,
 * nothing may crash, hang or ask for a callback in the past for ever.
 *
 * Without arguments: a fixed number of steps from a fixed seed, for `make test`.
 *     dev-fuzz [STEPS [SEED [CLASS]]]
 * runs longer, from another seed, or one class only; the seed is printed with a failure.
 *
 * A new device is one row in `rows` (and a maker if its cfg is not constant).
 */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "dev/pci/pcihost.h"
#include "dev/platform/acpi.h"
#include "dev/platform/debugexit.h"
#include "dev/platform/i8042.h"
#include "dev/platform/irqchip.h"
#include "dev/platform/pit.h"
#include "dev/platform/rtc.h"
#include "dev/platform/uart.h"

#define MAX_MAPS 5

struct fuzz_map {
    const struct io_ops *ops;
    uint64_t base, size;
    bool mmio;
};

/* What a device needs around it; made by row.make, freed by row.drop. */
struct world {
    struct fake f;
    struct apic_bus *apics;
    struct pic *pic;
    struct ioapic *ioapic;
    struct pci_bus *pci;
    union {
        struct pit_cfg pit;
        struct rtc_cfg rtc;
        struct irqchip_cfg irqchip;
        struct i8042_cfg i8042;
        struct uart_cfg uart;
        struct acpi_dev_cfg acpi;
        struct pcihost_cfg pcihost;
    } cfg;
};

struct fuzz_row {
    const struct device_class *cls;
    void (*make)(struct world *w); /* fills w->cfg; NULL: zeroes will do */
    void (*drop)(struct world *w);
    struct fuzz_map map[MAX_MAPS];
};

static void make_pit(struct world *w)
{
    w->cfg.pit = (struct pit_cfg){fake_irq(&w->f, 0), PIT_LOST_CATCH_UP};
}

static void make_rtc(struct world *w)
{
    w->cfg.rtc = (struct rtc_cfg){fake_irq(&w->f, 8), GIB, GIB};
}

static void make_irqchip(struct world *w)
{
    struct irq out = fake_irq(&w->f, 1);

    assert_int_equal(apic_bus_new(&w->apics, NULL), 0);
    assert_int_equal(pic_new(&w->pic, &out, &w->f.trace, NULL), 0);
    assert_int_equal(ioapic_new(&w->ioapic, w->apics, 1, &w->f.trace, NULL), 0);
    w->cfg.irqchip = (struct irqchip_cfg){w->pic, w->ioapic, .level = BIT(9)};
}

static void drop_irqchip(struct world *w)
{
    ioapic_free(w->ioapic);
    pic_free(w->pic);
    apic_bus_free(w->apics);
}

static void make_i8042(struct world *w) { w->cfg.i8042 = (struct i8042_cfg){fake_irq(&w->f, 1)}; }

static void make_uart(struct world *w)
{
    w->cfg.uart = (struct uart_cfg){NULL, fake_irq(&w->f, 4)};
}

static void make_acpi(struct world *w) { w->cfg.acpi = (struct acpi_dev_cfg){fake_irq(&w->f, 9)}; }

static void make_pcihost(struct world *w)
{
    struct pci_bus_cfg cfg = {.ctx = &w->f.ctx, .pio = w->f.pio};

    for (int i = 0; i < PCI_INTX_LINES; i++)
        cfg.intx[i] = fake_irq(&w->f, 16 + i);
    assert_int_equal(pci_bus_new(&w->pci, &cfg, NULL), 0);
    w->cfg.pcihost = (struct pcihost_cfg){w->pci, 0xb0000000, 8};
}

static void drop_pcihost(struct world *w) { pci_bus_free(w->pci); }

#define PIO(o, b, n)                          \
    {                                         \
        .ops = &(o), .base = (b), .size = (n) \
    }
#define MMIO(o, b, n)                                       \
    {                                                       \
        .ops = &(o), .base = (b), .size = (n), .mmio = true \
    }

/* clang-format off */
static const struct fuzz_row rows[] = {
    {&pit_class, make_pit, NULL, {PIO(pit_ops, 0x40, 4), PIO(pit_port61_ops, 0x61, 1)}},
    {&rtc_class, make_rtc, NULL, {PIO(rtc_ops, 0x70, 2)}},
    {&irqchip_class, make_irqchip, drop_irqchip,
     {PIO(irqchip_master_ops, 0x20, 2), PIO(irqchip_slave_ops, 0xa0, 2),
      PIO(irqchip_elcr_ops, 0x4d0, 2), MMIO(irqchip_ioapic_ops, IOAPIC_BASE, IOAPIC_SIZE)}},
    {&i8042_class, make_i8042, NULL,
     {PIO(i8042_data_ops, 0x60, 1), PIO(i8042_command_ops, 0x64, 1),
      PIO(i8042_port92_ops, 0x92, 1)}},
    {&uart_class, make_uart, NULL, {PIO(uart_ops, 0x3f8, 8), MMIO(uart_ops, 0xd0000000, 8)}},
    {&acpi_class, make_acpi, NULL, {PIO(acpi_ops, 0x600, ACPI_PORTS)}},
    {&debugexit_class, NULL, NULL, {PIO(debugexit_ops, 0xf4, 4)}},
    {&pcihost_class, make_pcihost, drop_pcihost,
     {PIO(pcihost_cfg_ops, 0xcf8, PCIHOST_PORTS),
      MMIO(pcihost_ecam_ops, 0xb0000000, 256 * MIB)}},
};
/* clang-format on */

static uint64_t steps = 100000, seed = 1;
static const char *only;

static uint64_t rnd(uint64_t *s)
{
    uint64_t z = *s += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t rnd_arg(void *s) { return rnd(s); }

/* Small numbers, single bits and all-ones are more telling than uniform ones. */
static uint64_t rnd_value(uint64_t *s)
{
    uint64_t r = rnd(s);

    switch (r & 7) {
    case 0:
        return 0;
    case 1:
        return ~0ull;
    case 2:
        return BIT(r >> 8 & 63);
    case 3:
        return r >> 8 & 0xf;
    case 4:
        return r >> 8 & 0xff;
    }
    return rnd(s);
}

/* An address at or a little around a register; mostly near the start, where registers are. */
static uint64_t rnd_address(const struct fuzz_map *m, uint64_t *s)
{
    uint64_t r = rnd(s), size = r & 1 ? m->size : MIN(m->size, 64);

    return m->base + (r >> 8) % size - (r >> 4 & 15 ? 0 : MIN(m->base, 3));
}

static void access_once(struct world *w, const struct fuzz_row *row, uint64_t *s)
{
    static const uint8_t pio_sizes[] = {1, 1, 2, 4};
    uint64_t r = rnd(s), addr;
    const struct fuzz_map *m;
    uint8_t buf[64];
    unsigned n = 0;

    while (n < MAX_MAPS && row->map[n].ops)
        n++;
    m = &row->map[r % n];
    addr = rnd_address(m, s);
    if (!m->mmio) {
        unsigned size = pio_sizes[r >> 16 & 3];

        if (r >> 20 & 1)
            pio_read(w->f.pio, (uint16_t)addr, size);
        else
            pio_write(w->f.pio, (uint16_t)addr, size, (uint32_t)rnd_value(s));
        return;
    }
    n = r >> 24 & 3 ? 1u << (r >> 26 & 3) : 1 + (r >> 26 & 63);
    if (r >> 20 & 1) {
        mmio_read(&w->f.ctx, addr, buf, n);
        return;
    }
    for (unsigned i = 0; i < sizeof(buf); i += 8) {
        uint64_t v = rnd_value(s);

        memcpy(buf + i, &v, 8);
    }
    mmio_write(&w->f.ctx, addr, buf, n);
}

/* Time passes; the timers that come due must each move on. */
static void let_time_pass(struct world *w, uint64_t *s)
{
    uint64_t ns = rnd(s) >> (rnd(s) % 40 + 24);

    if (clock_now(&w->f.clock) > BIT(60))
        ns = 1;
    fake_step(&w->f, ns);
    for (int i = 0; i < 100 && timerq_next(&w->f.timers) <= clock_now(&w->f.clock); i++)
        timerq_run(&w->f.timers);
    if (timerq_next(&w->f.timers) <= clock_now(&w->f.clock))
        fail_msg("a timer fires again and again without time passing");
}

/* Loads a state that is random, or the present one with a byte changed; either may be refused. */
static void load_something(struct device *d, uint64_t *s)
{
    const struct state_desc *desc = d->cls->state;
    struct sbuf b;
    struct err e;
    size_t used;

    if (!desc)
        return;
    sbuf_init(&b);
    device_quiesce(d);
    if (rnd(s) & 1) {
        void *p = calloc(1, desc->size);

        assert_non_null(p);
        state_randomise(desc, p, rnd_arg, s);
        assert_int_equal(state_save(desc, p, &b), 0);
        free(p);
    } else {
        assert_int_equal(device_save(d, &b), 0);
        b.data[rnd(s) % b.len] ^= (uint8_t)(rnd(s) % 256);
    }
    device_load(d, b.data, b.len, &used, &e);
    device_resume(d);
    sbuf_free(&b);
}

static void fuzz(const struct fuzz_row *row, uint64_t *s)
{
    struct world *w = calloc(1, sizeof(*w));
    struct device *d;

    assert_non_null(w);
    fake_init(&w->f);
    clock_init_stepped(&w->f.clock, 1000000, 1700000000ull * 1000000000);
    if (row->make)
        row->make(w);
    d = fake_device(&w->f, row->cls, row->cls->name, &w->cfg);
    for (unsigned i = 0; i < MAX_MAPS && row->map[i].ops; i++) {
        const struct fuzz_map *m = &row->map[i];

        if (m->mmio)
            assert_non_null(mmio_map(d, m->ops, m->base, m->size, NULL));
        else
            fake_ports(&w->f, (uint16_t)m->base, (unsigned)m->size, d, m->ops);
    }
    for (uint64_t i = 0; i < steps; i++) {
        uint64_t r = rnd(s);

        if (r % 16 < 13)
            access_once(w, row, s);
        else if (r % 16 < 15)
            let_time_pass(w, s);
        else if (r >> 8 & 7)
            continue;
        else if (r >> 16 & 1)
            load_something(d, s);
        else
            device_reset(d, r >> 17 & 1 ? RESET_COLD : RESET_WARM);
    }
    device_free(d);
    fake_fini(&w->f);
    if (row->drop)
        row->drop(w);
    free(w);
}

static void test_fuzz(void **state)
{
    const struct fuzz_row *row = *state;
    uint64_t s = seed;

    if (only && strcmp(only, row->cls->name))
        skip();
    fuzz(row, &s);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[ARRAY_LEN(rows)];

    if (argc > 1)
        steps = strtoull(argv[1], NULL, 0);
    if (argc > 2)
        seed = strtoull(argv[2], NULL, 0);
    if (argc > 3)
        only = argv[3];
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        tests[i] = (struct CMUnitTest){
            .name = rows[i].cls->name, .test_func = test_fuzz, .initial_state = (void *)&rows[i]};
    printf("%llu steps a class, seed %llu\n", (unsigned long long)steps, (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
