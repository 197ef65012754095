/* PCI host bridge, ISA bridge, configuration accesses and reset control. */
#include "dev/pci/pcihost.h"

#include <errno.h>

#include "base/util.h"

/* CONFIG_ADDRESS: enable, bus, device and function, register. */
#define ADDR_ENABLE BIT(31)
#define ADDR_KEPT 0x80fffffcu

/* Reset control (Intel ICH9 data sheet §13.7.5): the reset happens when RST_CPU goes from 0 to 1.
 */
#define RST_SYSTEM BIT(1)
#define RST_CPU BIT(2)
#define RST_FULL BIT(3)
#define RST_KEPT (RST_SYSTEM | RST_FULL)

/* PCIEXBAR (Intel Q35 data sheet §5.1.16): base, size and enable. Fixed here. */
#define PCIEXBAR 0x60
#define PCIEXBAR_ENABLE 1

#define VENDOR_INTEL 0x8086
#define Q35_MCH 0x29c0
#define ICH9_LPC 0x2918
#define CLASS_HOST_BRIDGE 0x0600
#define CLASS_ISA_BRIDGE 0x0601

struct pcihost_state {
    uint32_t address;
    uint8_t reset_control;
    uint8_t pad[3];
    struct pci_func_state host, isa;
};

struct pcihost {
    struct device dev;
    struct pcihost_state s;
    struct pci_bus *bus;
    struct pci_func host, isa;
};

static const struct state_field pcihost_fields[] = {
    STATE_FIELD_MAX(struct pcihost_state, address, ADDR_KEPT),
    STATE_FIELD_MAX(struct pcihost_state, reset_control, RST_KEPT),
    STATE_PAD(struct pcihost_state, pad),
    STATE_SUB(struct pcihost_state, host, &pci_func_state_desc),
    STATE_SUB(struct pcihost_state, isa, &pci_func_state_desc),
};

static const struct state_desc pcihost_state_desc = {
    .name = "pcihost",
    .version = 1,
    .size = sizeof(struct pcihost_state),
    .fields = pcihost_fields,
    .nfields = ARRAY_LEN(pcihost_fields),
};

/* ---- ports 0xCF8..0xCFF ---- */

static void reset_control(struct pcihost *h, uint8_t v)
{
    h->s.reset_control = v & RST_KEPT;
    if (v & RST_CPU)
        h->dev.ctx->request(h->dev.ctx->owner, MACHINE_RESET, 0);
}

/* The register that CONFIG_DATA stands for; false while accesses are not enabled. */
static bool data_target(const struct pcihost *h, uint64_t port_off, unsigned *busno, uint8_t *devfn,
                        unsigned *off)
{
    *busno = (unsigned)bits(h->s.address, 23, 16);
    *devfn = (uint8_t)bits(h->s.address, 15, 8);
    *off = (h->s.address & 0xfc) | (unsigned)(port_off & 3);
    return h->s.address & ADDR_ENABLE;
}

static uint64_t cfg_read(struct device *d, uint64_t off, unsigned size)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);
    unsigned busno, reg;
    uint8_t devfn;

    if (off >= 4)
        return data_target(h, off, &busno, &devfn, &reg)
                   ? pci_bus_read(h->bus, d, busno, devfn, reg, size)
                   : UINT32_MAX;
    /* Only a dword access means CONFIG_ADDRESS; others go to the bus, where the reset control
     * register is. */
    if (size == 4)
        return h->s.address;
    return size == 1 && off == PCIHOST_RESET_OFF ? h->s.reset_control : UINT32_MAX;
}

static void cfg_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);
    unsigned busno, reg;
    uint8_t devfn;

    if (off >= 4) {
        if (data_target(h, off, &busno, &devfn, &reg))
            pci_bus_write(h->bus, d, busno, devfn, reg, size, (uint32_t)val);
    } else if (size == 4) {
        h->s.address = (uint32_t)val & ADDR_KEPT;
    } else if (size == 1 && off == PCIHOST_RESET_OFF) {
        reset_control(h, (uint8_t)val);
    }
}

const struct io_ops pcihost_cfg_ops = {
    .read = cfg_read,
    .write = cfg_write,
    .min_size = 1,
    .max_size = 4,
};

/* ---- ECAM: bus 27..20, device and function 19..12, register 11..0 ---- */

static uint64_t ecam_read(struct device *d, uint64_t off, unsigned size)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);

    return pci_bus_read(h->bus, d, (unsigned)(off >> 20), (uint8_t)(off >> 12), off & 0xfff, size);
}

static void ecam_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);

    pci_bus_write(h->bus, d, (unsigned)(off >> 20), (uint8_t)(off >> 12), off & 0xfff, size,
                  (uint32_t)val);
}

const struct io_ops pcihost_ecam_ops = {
    .read = ecam_read,
    .write = ecam_write,
    .min_size = 1,
    .max_size = 4,
};

/* ---- device ---- */

static int pcihost_init(struct device *d, const void *cfg, struct err *e)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);
    const struct pcihost_cfg *c = cfg;

    if (c->ecam_base &&
        (c->buses_log2 < 6 || c->buses_log2 > 8 || c->ecam_base % (MIB << c->buses_log2)))
        return err_set(e, EINVAL, "no ECAM of 2^%u buses at %#llx", c->buses_log2,
                       (unsigned long long)c->ecam_base);
    h->bus = c->bus;
    pci_func_init(&h->host, d, &h->s.host,
                  &(struct pci_ids){
                      .vendor = VENDOR_INTEL, .device = Q35_MCH, .class_code = CLASS_HOST_BRIDGE});
    /* Both bridges forward what there is to be forwarded; the guest has no say in it. */
    pci_func_reg(&h->host, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 0);
    if (c->ecam_base) {
        uint32_t length = 8 - c->buses_log2; /* 0: 256 buses, 1: 128, 2: 64 */

        pci_func_reg(&h->host, PCIEXBAR, 4, (uint32_t)c->ecam_base | length << 1 | PCIEXBAR_ENABLE,
                     0);
        pci_func_reg(&h->host, PCIEXBAR + 4, 4, (uint32_t)(c->ecam_base >> 32), 0);
    }
    pci_func_init(&h->isa, d, &h->s.isa,
                  &(struct pci_ids){
                      .vendor = VENDOR_INTEL, .device = ICH9_LPC, .class_code = CLASS_ISA_BRIDGE});
    pci_func_reg(&h->isa, PCI_COMMAND, 2,
                 PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 0);

    int rc = pci_bus_add(c->bus, &h->host, PCI_DEVFN(0, 0), e);
    if (rc)
        return rc;
    rc = pci_bus_add(c->bus, &h->isa, PCI_DEVFN(31, 0), e);
    if (rc)
        pci_func_fini(&h->host);
    return rc;
}

static void pcihost_reset(struct device *d, enum reset_kind kind)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);

    h->s.address = 0;
    h->s.reset_control = 0;
    pci_func_reset(&h->host);
    pci_func_reset(&h->isa);
}

static void pcihost_resume(struct device *d)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);

    pci_func_resume(&h->host);
    pci_func_resume(&h->isa);
}

static void pcihost_fini(struct device *d)
{
    struct pcihost *h = container_of(d, struct pcihost, dev);

    pci_func_fini(&h->host);
    pci_func_fini(&h->isa);
}

const struct device_class pcihost_class = {
    .name = "pcihost",
    .size = sizeof(struct pcihost),
    .init = pcihost_init,
    .reset = pcihost_reset,
    .resume = pcihost_resume,
    .fini = pcihost_fini,
    .state = &pcihost_state_desc,
    .state_off = offsetof(struct pcihost, s),
};
