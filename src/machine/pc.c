/* The PC, on one screen: a subset of Intel's Q35 with ISA devices. */
#include "machine/pc.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>

#include "dev/pci/pcihost.h"
#include "dev/platform/acpi.h"
#include "dev/platform/debugexit.h"
#include "dev/platform/i8042.h"
#include "dev/platform/irqchip.h"
#include "dev/platform/pit.h"
#include "dev/platform/rtc.h"
#include "dev/platform/uart.h"
#include "dev/virtio/blk.h"
#include "dev/virtio/console.h"
#include "dev/virtio/net.h"
#include "dev/virtio/fs.h"
#include "dev/virtio/rng.h"
#include "dev/virtio/vsock.h"
#include "machine/acpi_tables.h"
#include "machine/machine.h"
#include "machine/memory.h"

#define LAPIC_BASE 0xfee00000u
#define LAPIC_SIZE 0x1000u
#define IOAPIC_ID 0
#define ECAM_BASE 0xe0000000u
#define ECAM_BUSES_LOG2 6 /* PCIEXBAR knows no smaller window */
/* What the tables tell of. There is bus 0 only, and Linux looks for devices by ports on every bus that it hears of: 64
 * accesses a bus. */
#define PCI_BUSES_LOG2 0
#define ECAM_SIZE (1u << (20 + ECAM_BUSES_LOG2))
#define MMIO32_BASE MEMORY_LOW_MAX /* PCI BARs: from the end of RAM to the ECAM window */

#define PM_BASE 0x600
#define SCI_IRQ 9
#define COM1_PORT 0x3f8
#define COM1_IRQ 4
#define PCI_CFG_PORT 0xcf8
#define DEBUG_EXIT_PORT 0xf4
#define PCI_INTX_GSI 16
#define SHARE_FDS_MOST 4096u /* descriptors that one share may use */
/* Slots of the PCI bus between the host bridge, 0, and the ISA bridge, 31. */
#define FIRST_SLOT 1u
#define LAST_SLOT 30u

/* ---- interrupts ---- */

void machine_isa_irq(void *machine, int line, bool level)
{
    struct machine *m = machine;

    pic_set(m->pic, line, level);
    ioapic_set(m->ioapic, line == 0 ? 2 : line, level);
}

static struct irq isa(struct machine *m, int line)
{
    return (struct irq){.set = machine_isa_irq, .owner = m, .n = line};
}

static struct irq gsi(struct machine *m, int pin)
{
    return (struct irq){.set = ioapic_set, .owner = m->ioapic, .n = pin};
}

/* The PIC's output goes to the boot processor. */
static void pic_output(void *machine, int n, bool level)
{
    lapic_set_lint(((struct machine *)machine)->cpu[0].lapic, 0, level);
}

int pc_make_irq(struct machine *m, struct err *e)
{
    const struct irq intr = {.set = pic_output, .owner = m};
    int rc = pic_new(&m->pic, &intr, m->ctx.trace, e);

    if (!rc)
        rc = apic_bus_new(&m->apics, e);
    if (!rc)
        rc = ioapic_new(&m->ioapic, m->apics, IOAPIC_ID, m->ctx.trace, e);
    if (!rc)
        rc = pio_bus_new(&m->pio, &m->ctx, e);
    if (rc)
        return rc;
    apic_bus_set_eoi(m->apics, ioapic_eoi, m->ioapic);
    apic_bus_set_retry(m->apics, ioapic_retry, m->ioapic);
    return 0;
}

void pc_free_irq(struct machine *m)
{
    pci_bus_free(m->pci);
    pio_bus_free(m->pio);
    ioapic_free(m->ioapic);
    apic_bus_free(m->apics);
    pic_free(m->pic);
}

/* ---- devices ---- */

/* The first failure makes the rest of the wiring do nothing. */
struct wiring {
    struct machine *m;
    struct err *e;
    int rc;
    unsigned slot; /* the next free one of the PCI bus */
};

static struct device *add(struct wiring *w, const struct device_class *cls, const char *id,
                          const void *cfg)
{
    struct device *d = w->rc ? NULL : machine_add_device(w->m, cls, id, cfg, w->e);

    if (!d && !w->rc)
        w->rc = -ENODEV;
    return d;
}

static void ports(struct wiring *w, uint16_t port, unsigned n, struct device *d,
                  const struct io_ops *ops)
{
    if (!w->rc)
        w->rc = pio_map(w->m->pio, port, n, d, ops, w->e);
}

static void mmio(struct wiring *w, uint64_t gpa, uint64_t size, struct device *d,
                 const struct io_ops *ops)
{
    if (!w->rc && !mmio_map(d, ops, gpa, size, w->e))
        w->rc = -ENODEV;
}

/* A virtio device's place. */
static struct virtio_slot next_slot(struct wiring *w)
{
    if (w->slot > LAST_SLOT && !w->rc)
        w->rc = err_set(w->e, ENOSPC, "more than %u PCI devices", LAST_SLOT - FIRST_SLOT + 1);
    return (struct virtio_slot){w->m->pci, PCI_DEVFN(w->slot++, 0)};
}

static void on_msi(void *machine, uint64_t addr, uint32_t data)
{
    apic_bus_msi(((struct machine *)machine)->apics, addr, data);
}

static int make_pci_bus(struct machine *m, struct err *e)
{
    struct pci_bus_cfg cfg = {.ctx = &m->ctx, .pio = m->pio, .msi = on_msi, .msi_owner = m};

    for (int i = 0; i < PCI_INTX_LINES; i++)
        cfg.intx[i] = gsi(m, PCI_INTX_GSI + i);
    return pci_bus_new(&m->pci, &cfg, e);
}

static void disks(struct wiring *w, const struct machine_cfg *cfg)
{
    for (unsigned i = 0; i < cfg->ndisks; i++) {
        const struct machine_disk *d = &cfg->disks[i];
        unsigned queues = d->queues ? d->queues : MIN(cfg->cpus, VIRTIO_BLK_QUEUES_MAX);
        char id[16];

        snprintf(id, sizeof(id), "disk%u", i);
        add(w, &virtio_blk_class, id,
            &(struct virtio_blk_cfg){next_slot(w), w->m->disk[i], d->serial, queues});
    }
}

/* Half of the descriptors that the process may have are for what guests open in shares. */
static unsigned share_fds(unsigned nshares)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return SHARE_FDS_MIN;
    return (unsigned)MIN(limit.rlim_cur / 2 / nshares, SHARE_FDS_MOST);
}

static void add_share(struct wiring *w, unsigned i, const struct machine_share *s, unsigned nshares)
{
    char id[16];

    snprintf(id, sizeof(id), "share%u", i);
    add(w, &virtio_fs_class, id,
        &(struct virtio_fs_cfg){
            next_slot(w), s->tag, {s->dir, s->readonly, share_fds(nshares)}});
}

/* Virtio devices, in the order of their slots. */
static void virtio_devices(struct wiring *w, const struct machine_cfg *cfg)
{
    disks(w, cfg);
    if (w->m->console)
        add(w, &virtio_console_class, "console",
            &(struct virtio_console_cfg){next_slot(w), w->m->console});
    if (cfg->rng)
        add(w, &virtio_rng_class, "rng", &(struct virtio_rng_cfg){next_slot(w), VIRTIO_RNG_RATE});
    for (unsigned k = 0; k < w->m->nnets; k++) {
        char id[16];

        snprintf(id, sizeof(id), "net%u", k);
        add(w, &virtio_net_class, id, &(struct virtio_net_cfg){next_slot(w), w->m->net[k]});
    }
    for (unsigned i = 0; i < cfg->nshares; i++)
        add_share(w, i, &cfg->shares[i], cfg->nshares);
    if (cfg->vsock.cid)
        add(w, &virtio_vsock_class, "vsock",
            &(struct virtio_vsock_cfg){next_slot(w),
                                       {cfg->vsock.cid, cfg->vsock.path, VSOCK_TIMEOUTS}});
}

int pc_make_devices(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    struct wiring w = {.m = m, .e = e, .rc = make_pci_bus(m, e), .slot = FIRST_SLOT};
    struct device *d;

    d = add(&w, &irqchip_class, "irqchip",
            &(struct irqchip_cfg){m->pic, m->ioapic, .level = BIT(SCI_IRQ)});
    ports(&w, 0x20, 2, d, &irqchip_master_ops);
    ports(&w, 0xa0, 2, d, &irqchip_slave_ops);
    ports(&w, 0x4d0, 2, d, &irqchip_elcr_ops);
    mmio(&w, IOAPIC_BASE, IOAPIC_SIZE, d, &irqchip_ioapic_ops);

    d = add(&w, &pit_class, "pit", &(struct pit_cfg){.irq = isa(m, 0)});
    ports(&w, 0x40, 4, d, &pit_ops);
    ports(&w, 0x61, 1, d, &pit_port61_ops);

    d = add(&w, &rtc_class, "rtc",
            &(struct rtc_cfg){
                .irq = isa(m, 8), m->layout.low_end, m->layout.total - m->layout.low_end});
    ports(&w, 0x70, 2, d, &rtc_ops);

    d = add(&w, &i8042_class, "i8042", &(struct i8042_cfg){.kbd_irq = isa(m, 1)});
    ports(&w, 0x60, 1, d, &i8042_data_ops);
    ports(&w, 0x64, 1, d, &i8042_command_ops);
    ports(&w, 0x92, 1, d, &i8042_port92_ops);

    d = add(&w, &uart_class, "uart0", &(struct uart_cfg){m->serial, isa(m, COM1_IRQ)});
    ports(&w, COM1_PORT, 8, d, &uart_ops);

    d = add(&w, &acpi_class, "acpi", &(struct acpi_dev_cfg){.sci = isa(m, SCI_IRQ)});
    m->acpi = d;
    ports(&w, PM_BASE, ACPI_PORTS, d, &acpi_ops);

    d = add(&w, &pcihost_class, "pcihost",
            &(struct pcihost_cfg){m->pci, ECAM_BASE, ECAM_BUSES_LOG2});
    ports(&w, PCI_CFG_PORT, PCIHOST_PORTS, d, &pcihost_cfg_ops);
    mmio(&w, ECAM_BASE, ECAM_SIZE, d, &pcihost_ecam_ops);

    d = add(&w, &debugexit_class, "debugexit", NULL);
    ports(&w, DEBUG_EXIT_PORT, 4, d, &debugexit_ops);

    virtio_devices(&w, cfg);
    return w.rc;
}

/* ---- what the guest is told ---- */

int pc_reserve(struct machine *m, struct err *e)
{
    int rc = memory_layout_reserve(&m->layout, ECAM_BASE, ECAM_SIZE, e);

    if (!rc)
        rc = memory_layout_reserve(&m->layout, IOAPIC_BASE, IOAPIC_SIZE, e);
    return rc ? rc : memory_layout_reserve(&m->layout, LAPIC_BASE, LAPIC_SIZE, e);
}

/* Room for large PCI BARs: the upper half of the address space, which no RAM reaches. */
static struct acpi_range mmio64(const struct machine *m)
{
    uint64_t half = BIT(m->cpuid.maxphys - 1);

    return (struct acpi_range){half, half};
}

int pc_write_tables(struct machine *m, struct err *e)
{
    const struct acpi_cfg cfg = {
        .cpus = m->vm.nvcpu,
        .lapic_base = LAPIC_BASE,
        .ioapic_base = IOAPIC_BASE,
        .ioapic_id = IOAPIC_ID,
        .pit_gsi = 2,
        .sci = SCI_IRQ,
        .pm_base = PM_BASE,
        .reset_port = PCI_CFG_PORT + PCIHOST_RESET_OFF,
        .reset_value = PCIHOST_RESET_VALUE,
        .rtc_century = 0x32,
        .pci_buses_log2 = PCI_BUSES_LOG2,
        .ecam_base = ECAM_BASE,
        .ecam_size = ECAM_SIZE,
        .pci_intx_gsi = PCI_INTX_GSI,
        .mmio32 = {MMIO32_BASE, ECAM_BASE - MMIO32_BASE},
        .mmio64 = mmio64(m),
        .com1_port = COM1_PORT,
        .com1_irq = COM1_IRQ,
        .i8042 = true,
    };

    return acpi_tables_build(m->map, MEMORY_FIRMWARE, MIB - MEMORY_FIRMWARE, &cfg, &m->layout.rsdp,
                             e);
}
