/* The PCI bus: which functions there are, and the INTx lines that they share. */
#include "dev/pci/pci_bus.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

#define FUNCTIONS 256

struct pci_bus {
    struct pci_bus_cfg cfg;
    struct pci_func *func[FUNCTIONS];
    pthread_mutex_t lock;
    /* Which functions hold each line; guarded by lock, which is also held while a line is driven,
     * so that levels reach the irq controller in order. */
    uint64_t holders[PCI_INTX_LINES][FUNCTIONS / 64];
};

int pci_bus_new(struct pci_bus **out, const struct pci_bus_cfg *cfg, struct err *e)
{
    struct pci_bus *b = calloc(1, sizeof(*b));

    if (!b)
        return err_set(e, ENOMEM, "no memory for the PCI bus");
    b->cfg = *cfg;
    pthread_mutex_init(&b->lock, NULL);
    *out = b;
    return 0;
}

void pci_bus_free(struct pci_bus *b)
{
    if (!b)
        return;
    pthread_mutex_destroy(&b->lock);
    free(b);
}

struct pio_bus *pci_bus_pio(const struct pci_bus *b) { return b->cfg.pio; }

int pci_bus_add(struct pci_bus *b, struct pci_func *f, uint8_t devfn, struct err *e)
{
    if (b->func[devfn])
        return err_set(e, EBUSY, "PCI 00:%02x.%u is taken by %s", devfn >> 3, devfn & 7,
                       b->func[devfn]->dev->id);
    f->bus = b;
    f->devfn = devfn;
    b->func[devfn] = f;
    return 0;
}

void pci_bus_del(struct pci_bus *b, struct pci_func *f)
{
    if (f->init[PCI_INT_PIN])
        pci_bus_intx(b, f->devfn, f->init[PCI_INT_PIN], false);
    b->func[f->devfn] = NULL;
    f->bus = NULL;
}

void pci_bus_intx(struct pci_bus *b, uint8_t devfn, unsigned pin, bool level)
{
    unsigned line = ((devfn >> 3) + pin - 1) % PCI_INTX_LINES;
    uint64_t *holders = b->holders[line], any = 0;

    pthread_mutex_lock(&b->lock);
    if (level)
        holders[devfn / 64] |= BIT(devfn % 64);
    else
        holders[devfn / 64] &= ~BIT(devfn % 64);
    for (unsigned i = 0; i < FUNCTIONS / 64; i++)
        any |= holders[i];
    irq_set(&b->cfg.intx[line], any != 0);
    pthread_mutex_unlock(&b->lock);
}

void pci_bus_msi(struct pci_bus *b, uint64_t addr, uint32_t data)
{
    if (b->cfg.msi)
        b->cfg.msi(b->cfg.msi_owner, addr, data);
}

/* A function answers at bus 0 only. A function other than 0 of a device is not looked for by guests
 * unless function 0 has the multi-function bit; that is the devices' business. */
static struct pci_func *lookup(struct pci_bus *b, unsigned busno, uint8_t devfn)
{
    return busno == 0 ? b->func[devfn] : NULL;
}

uint32_t pci_bus_read(struct pci_bus *b, struct device *host, unsigned busno, uint8_t devfn,
                      unsigned off, unsigned size)
{
    struct pci_func *f = lookup(b, busno, devfn);
    uint32_t v = UINT32_MAX;

    if (f) {
        if (f->dev != host)
            device_lock(f->dev);
        v = pci_func_read(f, off, size);
        if (f->dev != host)
            device_unlock(f->dev);
    }
    v &= UINT32_MAX >> (32 - 8 * size);
    trace(b->cfg.ctx->trace, pci_cfg_read, "%02x:%02x.%u off=%#x size=%u val=%#x", busno,
          devfn >> 3, devfn & 7, off, size, v);
    return v;
}

void pci_bus_write(struct pci_bus *b, struct device *host, unsigned busno, uint8_t devfn,
                   unsigned off, unsigned size, uint32_t val)
{
    struct pci_func *f = lookup(b, busno, devfn);

    trace(b->cfg.ctx->trace, pci_cfg_write, "%02x:%02x.%u off=%#x size=%u val=%#x", busno,
          devfn >> 3, devfn & 7, off, size, val);
    if (f) {
        if (f->dev != host)
            device_lock(f->dev);
        pci_func_write(f, off, size, val);
        if (f->dev != host)
            device_unlock(f->dev);
    }
}
