/* A PCI function: configuration space, BARs, INTx. */
#include <assert.h>
#include <string.h>

#include "base/util.h"
#include "dev/pci/pci.h"
#include "dev/pci/pci_bus.h"

#define BAR_IO 0x1
#define BAR_MEM64 0x4
#define BAR_PREFETCH 0x8

#define CAP_NEXT 1

static const struct state_field pci_func_fields[] = {
    STATE_ARRAY(struct pci_func_state, cfg),
};

const struct state_desc pci_func_state_desc = {
    .name = "pci",
    .version = 1,
    .size = sizeof(struct pci_func_state),
    .fields = pci_func_fields,
    .nfields = ARRAY_LEN(pci_func_fields),
};

/* ---- setting up ---- */

void pci_func_reg(struct pci_func *f, unsigned off, unsigned size, uint32_t value, uint32_t wmask)
{
    memcpy(f->init + off, &value, size);
    memcpy(f->wmask + off, &wmask, size);
}

void pci_func_init(struct pci_func *f, struct device *dev, struct pci_func_state *s,
                   const struct pci_ids *ids)
{
    *f = (struct pci_func){.dev = dev, .s = s};
    pthread_mutex_init(&f->irq_lock, NULL);
    pci_func_reg(f, PCI_VENDOR_ID, 2, ids->vendor, 0);
    pci_func_reg(f, PCI_DEVICE_ID, 2, ids->device, 0);
    pci_func_reg(f, PCI_REVISION, 1, ids->revision, 0);
    pci_func_reg(f, PCI_CLASS_PROG, 1, ids->prog_if, 0);
    pci_func_reg(f, PCI_CLASS, 2, ids->class_code, 0);
    pci_func_reg(f, PCI_SUBSYS_VENDOR, 2, ids->subsys_vendor, 0);
    pci_func_reg(f, PCI_SUBSYS_ID, 2, ids->subsys, 0);
    pci_func_reg(f, PCI_COMMAND, 2, 0, PCI_COMMAND_MASTER);
    if (ids->pin) {
        pci_func_reg(f, PCI_INT_PIN, 1, ids->pin, 0);
        pci_func_reg(f, PCI_INT_LINE, 1, 0, 0xff);
        pci_func_reg(f, PCI_COMMAND, 2, 0, PCI_COMMAND_MASTER | PCI_COMMAND_INTX_OFF);
        f->own[PCI_STATUS] = PCI_STATUS_INTX;
    }
}

void pci_func_bar(struct pci_func *f, unsigned n, enum pci_bar_kind kind, uint64_t size,
                  const struct io_ops *ops)
{
    unsigned off = PCI_BAR0 + 4 * n;
    uint64_t mask = ~(size - 1);

    assert(n < PCI_BARS && f->bar[n].kind == PCI_BAR_NONE && !(size & (size - 1)));
    assert(kind == PCI_BAR_IO ? size >= 4 && size <= 256 : size >= 16);
    f->bar[n] = (struct pci_bar){.kind = kind, .size = size, .ops = ops};
    switch (kind) {
    case PCI_BAR_IO:
        pci_func_reg(f, off, 4, BAR_IO, (uint32_t)mask & ~3u);
        f->wmask[PCI_COMMAND] |= PCI_COMMAND_IO;
        break;
    case PCI_BAR_MEM32:
        assert(size <= 2 * GIB);
        pci_func_reg(f, off, 4, 0, (uint32_t)mask & ~15u);
        f->wmask[PCI_COMMAND] |= PCI_COMMAND_MEMORY;
        break;
    case PCI_BAR_MEM64:
    case PCI_BAR_MEM64_PREFETCH:
        assert(n + 1 < PCI_BARS && f->bar[n + 1].kind == PCI_BAR_NONE);
        f->bar[n + 1].kind = PCI_BAR_UPPER;
        pci_func_reg(f, off, 4, BAR_MEM64 | (kind == PCI_BAR_MEM64 ? 0 : BAR_PREFETCH),
                     (uint32_t)mask & ~15u);
        pci_func_reg(f, off + 4, 4, 0, (uint32_t)(mask >> 32));
        f->wmask[PCI_COMMAND] |= PCI_COMMAND_MEMORY;
        break;
    default:
        assert(!"not a kind of BAR");
    }
}

uint8_t pci_func_cap(struct pci_func *f, uint8_t id, uint8_t len)
{
    unsigned at = f->cap_last ? f->cap_end : PCI_FIRST_CAP;

    assert(at + len <= PCI_CFG_SIZE);
    f->init[f->cap_last ? f->cap_last + CAP_NEXT : PCI_CAP_POINTER] = (uint8_t)at;
    f->init[at] = id;
    f->init[PCI_STATUS] |= PCI_STATUS_CAPS;
    f->cap_last = at;
    f->cap_end = (unsigned)ALIGN_UP(at + len, 4);
    return (uint8_t)at;
}

/* PCI Express Base 2.0 §7.8: what an endpoint has that sits in the root complex, without a link. */
#define CAP_EXPRESS 0x10
#define EXPRESS_SIZE 0x3c
#define EXPRESS_CAPS 2
#define EXPRESS_DEVICE_CAPS 4
#define EXPRESS_DEVICE_CONTROL 8
#define EXPRESS_VERSION 2
#define EXPRESS_INTEGRATED (9 << 4)
#define DEVICE_CAPS_ROLE_BASED BIT(15) /* error reporting, which 1.1 and later require */
#define DEVICE_CAPS_FLR BIT(28)
#define DEVICE_CONTROL_PAYLOAD 0xe0 /* largest payload, which a function level reset leaves alone \
                                     */
#define DEVICE_CONTROL_FLR BIT(15)  /* begins one, reads as 0 */
#define DEVICE_CONTROL_INIT 0x2810  /* relaxed ordering, no snoop, read requests of 512 bytes */
#define DEVICE_CONTROL_WRITABLE 0x78ff /* all but what the capabilities lack */

void pci_func_express(struct pci_func *f)
{
    unsigned cap = pci_func_cap(f, CAP_EXPRESS, EXPRESS_SIZE);

    pci_func_reg(f, PCI_CACHE_LINE, 1, 0, 0xff); /* to be kept, without effect (§7.5.1.3) */
    pci_func_reg(f, cap + EXPRESS_CAPS, 2, EXPRESS_VERSION | EXPRESS_INTEGRATED, 0);
    pci_func_reg(f, cap + EXPRESS_DEVICE_CAPS, 4,
                 DEVICE_CAPS_ROLE_BASED | (f->flr ? DEVICE_CAPS_FLR : 0), 0);
    pci_func_reg(f, cap + EXPRESS_DEVICE_CONTROL, 2, DEVICE_CONTROL_INIT, DEVICE_CONTROL_WRITABLE);
    f->express = cap;
}

/* Does this write ask for a function level reset? */
static bool asks_flr(const struct pci_func *f, unsigned off, unsigned size, uint32_t val)
{
    unsigned high = f->express + EXPRESS_DEVICE_CONTROL + 1;

    return f->express && f->flr && off <= high && off + size > high &&
           val >> 8 * (high - off) & DEVICE_CONTROL_FLR >> 8;
}

/* Everything goes back to what it is after power-on, BARs and the command register too: that is for
 * the driver to set up again. */
static void do_flr(struct pci_func *f)
{
    unsigned control = f->express + EXPRESS_DEVICE_CONTROL;
    uint8_t payload = f->s->cfg[control] & DEVICE_CONTROL_PAYLOAD;

    trace(f->dev->ctx->trace, pci_flr, "%s", f->dev->id);
    f->flr(f);
    f->s->cfg[control] = (uint8_t)((f->s->cfg[control] & ~DEVICE_CONTROL_PAYLOAD) | payload);
}

#define CAP_POWER 0x01
#define POWER_SIZE 8
#define POWER_CAPS 2
#define POWER_CONTROL 4
#define POWER_VERSION 3 /* of the capability: 1.2 */
#define POWER_STATE 3
#define POWER_D3HOT 3
#define POWER_NO_SOFT_RESET BIT(3)

void pci_func_power(struct pci_func *f)
{
    f->power = pci_func_cap(f, CAP_POWER, POWER_SIZE);
    pci_func_reg(f, f->power + POWER_CAPS, 2, POWER_VERSION, 0);
    pci_func_reg(f, f->power + POWER_CONTROL, 2, POWER_NO_SOFT_RESET, POWER_STATE);
}

bool pci_func_asleep(const struct pci_func *f)
{
    return f->power && (f->s->cfg[f->power + POWER_CONTROL] & POWER_STATE) == POWER_D3HOT;
}

/* D1 and D2 there are not: a write that asks for them leaves the state alone (§3.2.4). */
static void power_settle(struct pci_func *f, bool asleep)
{
    uint8_t *control = &f->s->cfg[f->power + POWER_CONTROL];
    unsigned state = *control & POWER_STATE;

    if (f->power && state && state != POWER_D3HOT)
        *control = (uint8_t)((*control & ~POWER_STATE) | (asleep ? POWER_D3HOT : 0));
}

/* ---- BARs ---- */

static uint32_t cfg_dword(const struct pci_func *f, unsigned off)
{
    uint32_t v;

    memcpy(&v, f->s->cfg + off, sizeof(v));
    return v;
}

/* Where the guest wants BAR n; false when it is disabled or placed where nothing can be. */
static bool bar_wanted(const struct pci_func *f, unsigned n, uint64_t *addr)
{
    const struct pci_bar *b = &f->bar[n];
    uint16_t command = pci_func_asleep(f) ? 0 : pci_func_command(f);
    uint64_t limit;

    switch (b->kind) {
    case PCI_BAR_IO:
        *addr = cfg_dword(f, PCI_BAR0 + 4 * n) & ~3u;
        limit = 0x10000;
        if (!(command & PCI_COMMAND_IO) || !f->bus || !pci_bus_pio(f->bus))
            return false;
        break;
    case PCI_BAR_MEM32:
        *addr = cfg_dword(f, PCI_BAR0 + 4 * n) & ~15u;
        limit = 4 * GIB;
        if (!(command & PCI_COMMAND_MEMORY))
            return false;
        break;
    case PCI_BAR_MEM64:
    case PCI_BAR_MEM64_PREFETCH:
        *addr = (cfg_dword(f, PCI_BAR0 + 4 * n) & ~15u) |
                (uint64_t)cfg_dword(f, PCI_BAR0 + 4 * n + 4) << 32;
        limit = BIT(physmap_width(f->dev->ctx->map));
        if (!(command & PCI_COMMAND_MEMORY))
            return false;
        break;
    default:
        return false;
    }
    /* 0 is what an unassigned BAR holds, and all ones below the size what a sizing one does. */
    return *addr != 0 && *addr < limit && b->size < limit - *addr;
}

static void bar_unmap(struct pci_func *f, unsigned n)
{
    struct pci_bar *b = &f->bar[n];

    if (!b->mapped)
        return;
    if (b->kind == PCI_BAR_IO)
        pio_unmap(pci_bus_pio(f->bus), (uint16_t)b->addr, (unsigned)b->size);
    else
        mmio_unmap(f->dev, b->region);
    b->mapped = false;
    b->region = NULL;
}

/* A BAR that the guest puts where something else is (ports), or that the host has no memory to map,
 * stays unmapped, as one behind a bridge that does not forward it. */
static void bar_map(struct pci_func *f, unsigned n, uint64_t addr)
{
    struct pci_bar *b = &f->bar[n];
    struct err e = {0};

    if (b->kind == PCI_BAR_IO) {
        b->mapped = pio_map(pci_bus_pio(f->bus), (uint16_t)addr, (unsigned)b->size, f->dev, b->ops,
                            &e) == 0;
    } else {
        b->region = mmio_map(f->dev, b->ops, addr, b->size, &e);
        b->mapped = b->region != NULL;
    }
    b->addr = addr;
    if (!b->mapped)
        trace(f->dev->ctx->trace, pci_bar, "%s bar=%u not mapped: %s", f->dev->id, n, e.msg);
}

static void bars_update(struct pci_func *f)
{
    bool want[PCI_BARS];
    uint64_t addr[PCI_BARS];

    /* All that go before any that come: BARs may swap places. */
    for (unsigned n = 0; n < PCI_BARS; n++) {
        want[n] = bar_wanted(f, n, &addr[n]);
        if (f->bar[n].mapped && (!want[n] || addr[n] != f->bar[n].addr)) {
            trace(f->dev->ctx->trace, pci_bar, "%s bar=%u unmapped from %#llx", f->dev->id, n,
                  (unsigned long long)f->bar[n].addr);
            bar_unmap(f, n);
        }
    }
    for (unsigned n = 0; n < PCI_BARS; n++) {
        if (want[n] && !f->bar[n].mapped) {
            trace(f->dev->ctx->trace, pci_bar, "%s bar=%u mapped at %#llx", f->dev->id, n,
                  (unsigned long long)addr[n]);
            bar_map(f, n, addr[n]);
        }
    }
}

/* ---- INTx ---- */

/* irq_lock held, as for all that changes what this looks at. */
static void intx_update(struct pci_func *f)
{
    unsigned pin = f->init[PCI_INT_PIN];

    if (pin && f->bus)
        pci_bus_intx(f->bus, f->devfn, pin,
                     (f->s->cfg[PCI_STATUS] & PCI_STATUS_INTX) &&
                         !(pci_func_command(f) & PCI_COMMAND_INTX_OFF) && !pci_func_asleep(f));
}

void pci_func_intx(struct pci_func *f, bool level)
{
    pthread_mutex_lock(&f->irq_lock);
    if (level)
        f->s->cfg[PCI_STATUS] |= PCI_STATUS_INTX;
    else
        f->s->cfg[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
    intx_update(f);
    pthread_mutex_unlock(&f->irq_lock);
}

/* ---- configuration space ---- */

uint32_t pci_func_read(struct pci_func *f, unsigned off, unsigned size)
{
    uint32_t v = 0;

    if (off + size > PCI_CFG_SIZE)
        return f->express && off + size <= PCI_CFG_SIZE_EXPRESS ? 0 : UINT32_MAX;
    if (f->reading)
        f->reading(f, off, size);
    pthread_mutex_lock(&f->irq_lock);
    memcpy(&v, f->s->cfg + off, size);
    pthread_mutex_unlock(&f->irq_lock);
    return v;
}

void pci_func_write(struct pci_func *f, unsigned off, unsigned size, uint32_t val)
{
    bool asleep = pci_func_asleep(f);

    if (off + size > PCI_CFG_SIZE)
        return;
    pthread_mutex_lock(&f->irq_lock);
    for (unsigned i = 0; i < size; i++) {
        uint8_t *reg = &f->s->cfg[off + i];
        uint8_t v = (uint8_t)(val >> 8 * i);

        *reg = (uint8_t)((*reg & ~f->wmask[off + i]) | (v & f->wmask[off + i]));
        *reg &= (uint8_t) ~(v & f->w1c[off + i]);
    }
    power_settle(f, asleep);
    intx_update(f);
    pthread_mutex_unlock(&f->irq_lock);
    bars_update(f);
    if (asks_flr(f, off, size, val))
        do_flr(f);
    else if (f->written)
        f->written(f, off, size);
}

/* ---- life ---- */

void pci_func_reset(struct pci_func *f)
{
    pthread_mutex_lock(&f->irq_lock);
    memcpy(f->s->cfg, f->init, PCI_CFG_SIZE);
    intx_update(f);
    pthread_mutex_unlock(&f->irq_lock);
    bars_update(f);
}

void pci_func_resume(struct pci_func *f)
{
    pthread_mutex_lock(&f->irq_lock);
    for (unsigned i = 0; i < PCI_CFG_SIZE; i++) {
        uint8_t live = f->wmask[i] | f->w1c[i] | f->own[i];

        f->s->cfg[i] = (uint8_t)((f->s->cfg[i] & live) | (f->init[i] & ~live));
    }
    power_settle(f, false);
    intx_update(f);
    pthread_mutex_unlock(&f->irq_lock);
    bars_update(f);
}

void pci_func_fini(struct pci_func *f)
{
    for (unsigned n = 0; n < PCI_BARS; n++)
        bar_unmap(f, n);
    if (f->bus)
        pci_bus_del(f->bus, f);
    pthread_mutex_destroy(&f->irq_lock);
}
