/* PCI: configuration accesses both ways, BARs, capabilities, INTx, and the host bridge's registers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"

#include "base/util.h"
#include "dev/pci/pcihost.h"

#define ECAM 0xe0000000ull
#define INTX0 16
#define SLOT 3

/* A device with one BAR of each kind, an interrupt pin and two capabilities. */
struct card_state {
    uint8_t reg;
    uint8_t pad[3];
    struct pci_func_state pci;
};

struct card {
    struct device dev;
    struct card_state s;
    struct pci_func pci;
    unsigned writes; /* of configuration registers, as reported */
};

struct card_cfg {
    struct pci_bus *bus;
    uint8_t devfn;
};

static uint64_t card_read(struct device *d, uint64_t off, unsigned size)
{
    struct card *c = container_of(d, struct card, dev);

    return off == 0 ? c->s.reg : 0xc0 + off;
}

static void card_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    if (off == 0)
        container_of(d, struct card, dev)->s.reg = (uint8_t)val;
}

static const struct io_ops card_ops = {
    .read = card_read, .write = card_write, .min_size = 1, .max_size = 1};

static void card_written(struct pci_func *f, unsigned off, unsigned size)
{
    container_of(f, struct card, pci)->writes++;
}

static int card_init(struct device *d, const void *cfg, struct err *e)
{
    struct card *c = container_of(d, struct card, dev);
    const struct card_cfg *cc = cfg;

    pci_func_init(&c->pci, d, &c->s.pci,
                  &(struct pci_ids){.vendor = 0x1af4,
                                    .device = 0x1041,
                                    .subsys_vendor = 0x1234,
                                    .subsys = 0x5678,
                                    .revision = 1,
                                    .prog_if = 2,
                                    .class_code = 0x0200,
                                    .pin = 1});
    pci_func_bar(&c->pci, 0, PCI_BAR_IO, 0x20, &card_ops);
    pci_func_bar(&c->pci, 1, PCI_BAR_MEM32, 0x1000, &card_ops);
    pci_func_bar(&c->pci, 4, PCI_BAR_MEM64, 0x4000, &card_ops);
    uint8_t cap = pci_func_cap(&c->pci, 0x09, 6);
    pci_func_reg(&c->pci, cap + 2u, 2, 0xbeef, 0x00ff);
    pci_func_cap(&c->pci, 0x11, 12);
    c->pci.init[PCI_STATUS + 1] = 0x20; /* something to clear */
    c->pci.w1c[PCI_STATUS + 1] = 0xf9;
    c->pci.written = card_written;
    return pci_bus_add(cc->bus, &c->pci, cc->devfn, e);
}

static void card_reset(struct device *d, enum reset_kind kind)
{
    struct card *c = container_of(d, struct card, dev);

    c->s.reg = 0;
    pci_func_reset(&c->pci);
}

static void card_resume(struct device *d)
{
    pci_func_resume(&container_of(d, struct card, dev)->pci);
}

static void card_fini(struct device *d) { pci_func_fini(&container_of(d, struct card, dev)->pci); }

static const struct state_field card_fields[] = {
    STATE_FIELD(struct card_state, reg),
    STATE_PAD(struct card_state, pad),
    STATE_SUB(struct card_state, pci, &pci_func_state_desc),
};

static const struct state_desc card_state_desc = {
    .name = "card",
    .version = 1,
    .size = sizeof(struct card_state),
    .fields = card_fields,
    .nfields = ARRAY_LEN(card_fields),
};

static const struct device_class card_class = {
    .name = "card",
    .size = sizeof(struct card),
    .init = card_init,
    .reset = card_reset,
    .resume = card_resume,
    .fini = card_fini,
    .state = &card_state_desc,
    .state_off = offsetof(struct card, s),
};

struct fixture {
    struct fake m;
    struct pci_bus *bus;
    struct device *host, *dev;
    struct card *card;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct pci_bus_cfg bus;

    fake_init(&f->m);
    bus = (struct pci_bus_cfg){.ctx = &f->m.ctx, .pio = f->m.pio};
    for (int i = 0; i < PCI_INTX_LINES; i++)
        bus.intx[i] = fake_irq(&f->m, INTX0 + i);
    assert_int_equal(pci_bus_new(&f->bus, &bus, NULL), 0);
    f->host = fake_device(&f->m, &pcihost_class, "pcihost",
                          &(struct pcihost_cfg){.bus = f->bus, .ecam_base = ECAM, .buses_log2 = 8});
    fake_ports(&f->m, 0xcf8, PCIHOST_PORTS, f->host, &pcihost_cfg_ops);
    assert_non_null(mmio_map(f->host, &pcihost_ecam_ops, ECAM, 256 * MIB, NULL));
    f->dev = fake_device(&f->m, &card_class, "card",
                         &(struct card_cfg){.bus = f->bus, .devfn = PCI_DEVFN(SLOT, 0)});
    f->card = container_of(f->dev, struct card, dev);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    device_free(f->dev);
    device_free(f->host);
    pci_bus_free(f->bus);
    fake_fini(&f->m);
    free(f);
    return 0;
}

static uint32_t ecam(struct fixture *f, unsigned bus, unsigned slot, unsigned off, unsigned size)
{
    uint32_t v = 0;

    mmio_read(&f->m.ctx, ECAM + (bus << 20 | slot << 15 | off), &v, size);
    return v;
}

static uint32_t get(struct fixture *f, unsigned off, unsigned size)
{
    return ecam(f, 0, SLOT, off, size);
}

static void put(struct fixture *f, unsigned off, unsigned size, uint32_t v)
{
    mmio_write(&f->m.ctx, ECAM + (SLOT << 15 | off), &v, size);
}

static void select_reg(struct fixture *f, unsigned bus, unsigned slot, unsigned off)
{
    pio_write(f->m.pio, 0xcf8, 4, 0x80000000 | bus << 16 | slot << 11 | off);
}

static void test_mechanism_1(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pio_read(f->m.pio, 0xcfc, 4), 0xffffffff); /* not enabled */
    select_reg(f, 0, 0, 0);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 4), 0x80000000);
    assert_int_equal(pio_read(f->m.pio, 0xcfc, 4), 0x29c08086);
    assert_int_equal(pio_read(f->m.pio, 0xcfc, 2), 0x8086);
    assert_int_equal(pio_read(f->m.pio, 0xcfe, 2), 0x29c0);
    assert_int_equal(pio_read(f->m.pio, 0xcfd, 1), 0x80);
    assert_int_equal(pio_read(f->m.pio, 0xcff, 1), 0x29);

    select_reg(f, 0, SLOT, PCI_INT_LINE);
    pio_write(f->m.pio, 0xcfc, 1, 0x0b);
    assert_int_equal(get(f, PCI_INT_LINE, 2), 0x010b);

    pio_write(f->m.pio, 0xcf8, 4, 0xffffffff);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 4), 0x80fffffc); /* reserved bits */
    pio_write(f->m.pio, 0xcf8, 4, SLOT << 11);                  /* disabled again */
    pio_write(f->m.pio, 0xcfc, 4, 0xffffffff);
    assert_int_equal(pio_read(f->m.pio, 0xcfc, 1), 0xff);
    assert_int_equal(get(f, PCI_COMMAND, 2), 0);

    /* Only dwords reach the address register. */
    pio_write(f->m.pio, 0xcf8, 2, 0x1234);
    pio_write(f->m.pio, 0xcfb, 1, 0x80);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 4), SLOT << 11);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 1), 0xff);
}

static void test_reset_control(void **state)
{
    struct fixture *f = *state;

    select_reg(f, 0, SLOT, 0);
    outb(&f->m, 0xcf9, 0x02);
    assert_int_equal(f->m.requests[MACHINE_RESET], 0);
    assert_int_equal(inb(&f->m, 0xcf9), 0x02);
    outb(&f->m, 0xcf9, 0x06);
    assert_int_equal(f->m.requests[MACHINE_RESET], 1);
    outb(&f->m, 0xcf9, PCIHOST_RESET_VALUE);
    assert_int_equal(f->m.requests[MACHINE_RESET], 2);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 4), 0x80000000 | SLOT << 11); /* untouched */
    device_reset(f->host, RESET_WARM);
    assert_int_equal(inb(&f->m, 0xcf9), 0);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 4), 0);
}

static void test_absent_functions(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ecam(f, 0, 5, 0, 4), 0xffffffff);
    assert_int_equal(ecam(f, 0, 5, 0, 2), 0xffff);
    assert_int_equal(ecam(f, 1, 0, 0, 4), 0xffffffff);
    assert_int_equal(ecam(f, 255, 31, 0, 4), 0xffffffff);
    mmio_write(&f->m.ctx, ECAM + (5 << 15), "\0\0\0", 4);
    select_reg(f, 7, SLOT, 0);
    assert_int_equal(pio_read(f->m.pio, 0xcfc, 4), 0xffffffff);
    assert_int_equal(get(f, 0x100, 4), 0xffffffff); /* no extended space */
    put(f, 0xffc, 4, 0);
}

static void test_bridges(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ecam(f, 0, 0, PCI_CLASS, 2), 0x0600);
    assert_int_equal(ecam(f, 0, 0, 0x60, 4), ECAM | 1); /* PCIEXBAR: 256 buses, enabled */
    assert_int_equal(ecam(f, 0, 0, 0x64, 4), 0);
    assert_int_equal(ecam(f, 0, 31, 0, 4), 0x29188086);
    assert_int_equal(ecam(f, 0, 31, PCI_CLASS, 2), 0x0601);
    assert_int_equal(ecam(f, 0, 0, PCI_HEADER_TYPE, 1), 0);

    struct err e = {0};
    assert_null(device_new(
        &pcihost_class, "bad", &f->m.ctx,
        &(struct pcihost_cfg){.bus = f->bus, .ecam_base = ECAM + MIB, .buses_log2 = 8}, &e));
    assert_null(
        device_new(&pcihost_class, "second", &f->m.ctx, &(struct pcihost_cfg){.bus = f->bus}, &e));
    assert_non_null(strstr(e.msg, "taken"));
}

static void test_read_only_registers(void **state)
{
    struct fixture *f = *state;
    uint32_t before[16];

    for (unsigned i = 0; i < 16; i++)
        before[i] = get(f, 4 * i, 4);
    for (unsigned i = 0; i < 16; i++) {
        if (i != 1 && (i < 4 || i > 9) && i != 15)
            put(f, 4 * i, 4, 0x5aa55aa5);
    }
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(get(f, 4 * i, 4), before[i]);
    assert_int_equal(before[0], 0x10411af4);
    assert_int_equal(before[2], 0x02000201);
    assert_int_equal(before[11], 0x56781234);
    put(f, PCI_COMMAND, 2, 0xffff);
    assert_int_equal(get(f, PCI_COMMAND, 2), 0x0407); /* I/O, memory, master, INTx off */
}

static void test_status_is_cleared_by_ones(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(get(f, PCI_STATUS, 2), 0x2010);
    put(f, PCI_STATUS, 2, 0x0000);
    assert_int_equal(get(f, PCI_STATUS, 2), 0x2010);
    put(f, PCI_COMMAND, 4, 0xffff0000);
    assert_int_equal(get(f, PCI_STATUS, 2), 0x0010);
    assert_int_equal(f->card->writes, 2);
}

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    unsigned first = get(f, PCI_CAP_POINTER, 1), second;

    assert_int_equal(first, 0x40);
    assert_int_equal(get(f, first, 1), 0x09);
    second = get(f, first + 1, 1);
    assert_int_equal(second, 0x48); /* behind six bytes, aligned */
    assert_int_equal(get(f, second, 1), 0x11);
    assert_int_equal(get(f, second + 1, 1), 0);
    put(f, first, 4, 0);
    assert_int_equal(get(f, first, 4), 0xbe004809); /* only the writable byte changed */
}

static void test_bar_sizing(void **state)
{
    struct fixture *f = *state;
    static const struct {
        unsigned off;
        uint32_t size;
    } bar[] = {{0x10, 0xffffffe1}, {0x14, 0xfffff000}, {0x18, 0},
               {0x1c, 0},          {0x20, 0xffffc004}, {0x24, 0xffffffff}};

    put(f, PCI_COMMAND, 2, 3); /* careless guests size while decoding is on */
    for (size_t i = 0; i < ARRAY_LEN(bar); i++) {
        put(f, bar[i].off, 4, 0xffffffff);
        assert_int_equal(get(f, bar[i].off, 4), bar[i].size);
    }
    for (unsigned i = 0; i < PCI_BARS; i++)
        assert_false(f->card->pci.bar[i].mapped);
}

static uint8_t mem(struct fixture *f, uint64_t gpa)
{
    uint8_t v;

    mmio_read(&f->m.ctx, gpa, &v, 1);
    return v;
}

static void test_bars_map_and_move(void **state)
{
    struct fixture *f = *state;

    put(f, 0x10, 4, 0xc000);
    put(f, 0x14, 4, 0xfe000000);
    put(f, 0x20, 4, 0x00008000);
    put(f, 0x24, 4, 0x12);
    assert_int_equal(inb(&f->m, 0xc001), 0xff); /* decoding is off */
    assert_int_equal(mem(f, 0xfe000001), 0xff);

    put(f, PCI_COMMAND, 2, PCI_COMMAND_IO);
    assert_int_equal(inb(&f->m, 0xc001), 0xc1);
    assert_int_equal(inb(&f->m, 0xc01f), 0xdf);
    assert_int_equal(inb(&f->m, 0xc020), 0xff);
    assert_int_equal(mem(f, 0xfe000001), 0xff);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(inb(&f->m, 0xc001), 0xff);
    assert_int_equal(mem(f, 0xfe000001), 0xc1);
    assert_int_equal(mem(f, 0x1200008002), 0xc2);

    put(f, 0x14, 4, 0xfd000000);
    assert_int_equal(mem(f, 0xfe000001), 0xff);
    assert_int_equal(mem(f, 0xfd000001), 0xc1);
    mmio_write(&f->m.ctx, 0xfd000000, "\x42", 1);
    assert_int_equal(mem(f, 0x1200008000), 0x42); /* the same register through the other one */
    put(f, 0x24, 4, 0x13);
    assert_int_equal(mem(f, 0x1200008000), 0xff);
    assert_int_equal(mem(f, 0x1300008000), 0x42);

    put(f, PCI_COMMAND, 2, 0);
    assert_int_equal(mem(f, 0xfd000001), 0xff);
    assert_int_equal(mem(f, 0x1300008000), 0xff);
}

static void test_bars_where_nothing_can_be(void **state)
{
    struct fixture *f = *state;

    put(f, PCI_COMMAND, 2, 3);
    put(f, 0x10, 4, 0x10000); /* beyond the ports */
    put(f, 0x24, 4, 0xffff);  /* beyond the address width of 40 bits */
    put(f, 0x20, 4, 0x4000);
    put(f, 0x14, 4, 0);
    for (unsigned i = 0; i < PCI_BARS; i++)
        assert_false(f->card->pci.bar[i].mapped);
    put(f, 0x10, 4, 0xcf8 & ~0x1f); /* where the host bridge is */
    assert_false(f->card->pci.bar[0].mapped);
    assert_int_equal(pio_read(f->m.pio, 0xcf8, 4), 0);
    put(f, 0x10, 4, 0xd000); /* and it recovers */
    assert_int_equal(inb(&f->m, 0xd001), 0xc1);
}

static void test_reset_unmaps(void **state)
{
    struct fixture *f = *state;

    put(f, 0x10, 4, 0xc000);
    put(f, 0x14, 4, 0xfe000000);
    put(f, PCI_COMMAND, 2, 3);
    device_reset(f->dev, RESET_COLD);
    assert_int_equal(get(f, PCI_COMMAND, 2), 0);
    assert_int_equal(get(f, 0x10, 4), 1);
    assert_int_equal(inb(&f->m, 0xc001), 0xff);
    assert_int_equal(mem(f, 0xfe000001), 0xff);
}

static void intx(struct fixture *f, struct device *d, bool level)
{
    device_lock(d);
    pci_func_intx(&container_of(d, struct card, dev)->pci, level);
    device_unlock(d);
}

static void test_intx(void **state)
{
    struct fixture *f = *state;
    const bool *line = &f->m.level[INTX0 + (SLOT + 0) % 4];

    intx(f, f->dev, true);
    assert_true(*line);
    assert_int_equal(get(f, PCI_STATUS, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_INTX_OFF);
    assert_false(*line);
    assert_int_equal(get(f, PCI_STATUS, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX); /* still pending */
    put(f, PCI_COMMAND, 2, 0);
    assert_true(*line);

    /* Another one on the same line: it stays high until both let go. */
    struct device *other =
        fake_device(&f->m, &card_class, "other",
                    &(struct card_cfg){.bus = f->bus, .devfn = PCI_DEVFN(SLOT + 4, 0)});
    intx(f, other, true);
    intx(f, f->dev, false);
    assert_true(*line);
    assert_int_equal(get(f, PCI_STATUS, 2) & PCI_STATUS_INTX, 0);
    intx(f, other, false);
    assert_false(*line);
    intx(f, other, true);
    device_free(other); /* a device that goes releases it */
    assert_false(*line);
    for (int i = 0; i < 4; i++)
        assert_false(f->m.level[INTX0 + i]);
}

static void test_slots_are_taken_once(void **state)
{
    struct fixture *f = *state;
    struct err e = {0};

    assert_null(device_new(&card_class, "again", &f->m.ctx,
                           &(struct card_cfg){.bus = f->bus, .devfn = PCI_DEVFN(SLOT, 0)}, &e));
    assert_non_null(strstr(e.msg, "00:03.0"));
}

static void test_migration(void **state)
{
    struct fixture *f = *state;
    struct device *d2 =
        fake_device(&f->m, &card_class, "other",
                    &(struct card_cfg){.bus = f->bus, .devfn = PCI_DEVFN(SLOT + 1, 0)});
    struct card *c2 = container_of(d2, struct card, dev);

    put(f, 0x14, 4, 0xfe000000);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    intx(f, f->dev, true);

    /* A hostile state: read-only bits are not taken from it. */
    memset(f->card->s.pci.cfg, 0xff, 4);
    device_lock(f->dev);
    f->card->s.pci.cfg[PCI_INT_PIN] = 0xff;
    device_unlock(f->dev);
    device_quiesce(f->dev);
    struct sbuf b;
    size_t used;
    sbuf_init(&b);
    assert_int_equal(device_save(f->dev, &b), 0);
    device_reset(f->dev, RESET_COLD);
    device_quiesce(d2);
    assert_int_equal(device_load(d2, b.data, b.len, &used, NULL), 0);
    device_resume(d2);
    sbuf_free(&b);
    assert_int_equal(ecam(f, 0, SLOT + 1, 0, 4), 0x10411af4);
    assert_int_equal(ecam(f, 0, SLOT + 1, PCI_INT_PIN, 1), 1);
    assert_true(c2->pci.bar[1].mapped);
    assert_int_equal(mem(f, 0xfe000001), 0xc1);
    assert_true(f->m.level[INTX0 + (SLOT + 1) % 4]);
    device_free(d2);
}

static void test_state(void **state)
{
    struct fixture *f = *state;
    struct pci_bus *bus;

    assert_int_equal(
        pci_bus_new(&bus, &(struct pci_bus_cfg){.ctx = &f->m.ctx, .pio = f->m.pio}, NULL), 0);
    fake_check_state(&f->m, &pcihost_class,
                     &(struct pcihost_cfg){.bus = bus, .ecam_base = ECAM, .buses_log2 = 6});
    fake_check_state(&f->m, &card_class, &(struct card_cfg){.bus = bus, .devfn = PCI_DEVFN(1, 0)});
    pci_bus_free(bus);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mechanism_1),
        TEST(test_reset_control),
        TEST(test_absent_functions),
        TEST(test_bridges),
        TEST(test_read_only_registers),
        TEST(test_status_is_cleared_by_ones),
        TEST(test_capabilities),
        TEST(test_bar_sizing),
        TEST(test_bars_map_and_move),
        TEST(test_bars_where_nothing_can_be),
        TEST(test_reset_unmaps),
        TEST(test_intx),
        TEST(test_slots_are_taken_once),
        TEST(test_migration),
        TEST(test_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
