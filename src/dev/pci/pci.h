/*
 * PCI: functions with a type-0 configuration space, their BARs and INTx pins, and the bus they sit
 * on (PCI Local Bus 3.0 §6, PCI Express Base 2.0 §7.5).
 *
 * A device that is a PCI function embeds a struct pci_func and keeps its struct pci_func_state in
 * its own state. Which bits of the configuration space a guest may write is fixed by the masks that
 * the device sets up in init; bits outside of them never come from a guest or a saved state.
 *
 * Locking: configuration accesses take the lock of the function's device, while the host bridge's
 * is held (dispatch took it); a device therefore never calls the host bridge with its lock held.
 * Unless said otherwise the functions below want the device's lock held, except in init. The bus's
 * own mutex guards only the INTx lines and is taken last before the irq controllers'. Functions are
 * added while no vCPU runs.
 *
 * What decides about a function's interrupts (the INTx bit of the status register, the command
 * register, MSI-X) is guarded by the function's irq_lock as well, taken after the device's lock and
 * before the bus's, so that threads of a device may raise interrupts without the device's lock.
 */
#ifndef RING3_DEV_PCI_PCI_H
#define RING3_DEV_PCI_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "dev/bus.h"
#include "dev/device.h"

#define PCI_CFG_SIZE 256
#define PCI_CFG_SIZE_EXPRESS 4096
#define PCI_BARS 6
#define PCI_INTX_LINES 4
#define PCI_DEVFN(slot, fn) ((uint8_t)((slot) << 3 | (fn)))

/* Configuration registers, type 0 header. */
enum {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS_PROG = 0x09,
    PCI_CLASS = 0x0a,
    PCI_CACHE_LINE = 0x0c,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYS_VENDOR = 0x2c,
    PCI_SUBSYS_ID = 0x2e,
    PCI_CAP_POINTER = 0x34,
    PCI_INT_LINE = 0x3c,
    PCI_INT_PIN = 0x3d,
    PCI_FIRST_CAP = 0x40, /* where capabilities and private registers begin */
};

#define PCI_COMMAND_IO BIT(0)
#define PCI_COMMAND_MEMORY BIT(1)
#define PCI_COMMAND_MASTER BIT(2)
#define PCI_COMMAND_INTX_OFF BIT(10)
#define PCI_STATUS_INTX BIT(3)
#define PCI_STATUS_CAPS BIT(4)

struct pci_bus;

struct pci_func_state {
    uint8_t cfg[PCI_CFG_SIZE];
};

extern const struct state_desc pci_func_state_desc;

enum pci_bar_kind {
    PCI_BAR_NONE,
    PCI_BAR_IO,
    PCI_BAR_MEM32,
    PCI_BAR_MEM64,
    PCI_BAR_MEM64_PREFETCH,
    PCI_BAR_UPPER /* the high half of the 64-bit one before */
};

struct pci_bar {
    enum pci_bar_kind kind;
    uint64_t size; /* bytes, a power of two */
    const struct io_ops *ops;
    bool mapped;
    uint64_t addr;         /* where, while mapped */
    struct region *region; /* memory BARs, while mapped */
};

struct pci_func {
    struct device *dev;
    struct pci_func_state *s; /* inside dev's state */
    pthread_mutex_t irq_lock;
    struct pci_bus *bus; /* once on one */
    uint8_t devfn;
    uint8_t init[PCI_CFG_SIZE];  /* contents after reset */
    uint8_t wmask[PCI_CFG_SIZE]; /* bits that the guest may write */
    uint8_t w1c[PCI_CFG_SIZE];   /* bits that the guest clears by writing 1 */
    uint8_t own[PCI_CFG_SIZE];   /* bits that only the device changes; saved as part of the state */
    unsigned cap_last, cap_end;  /* the last capability, and the end of it; 0: none yet */
    unsigned power;              /* the power management capability; 0: none */
    /* The PCI Express capability, and with it the extended configuration space, in which there are
     * no capabilities: zeroes; 0: none. */
    unsigned express;
    struct pci_bar bar[PCI_BARS];
    /* Called before a guest reads [off, off+size), so that registers can be brought up to date.
     * NULL: nothing to do. */
    void (*reading)(struct pci_func *f, unsigned off, unsigned size);
    /* Called after a guest wrote [off, off+size), masks applied and BARs moved. NULL: nothing to
     * do. */
    void (*written)(struct pci_func *f, unsigned off, unsigned size);
    /* The guest asked for a function level reset (PCI Express Base 2.0 §6.6.2): the device becomes
     * what it is after power-on, pci_func_reset included, before this returns; its lock is held.
     * Set in init, before pci_func_express. NULL: there is no such reset. */
    void (*flr)(struct pci_func *f);
};

struct pci_ids {
    uint16_t vendor, device, subsys_vendor, subsys;
    uint8_t revision, prog_if;
    uint16_t class_code; /* base class << 8 | subclass */
    uint8_t pin;         /* INTx: 1 = A .. 4 = D, 0 = none */
};

/* ---- functions ---- */

/* In the device's init: ids, and the standard registers' masks. The state lives in s. */
void pci_func_init(struct pci_func *f, struct device *dev, struct pci_func_state *s,
                   const struct pci_ids *ids);
/* In init: a BAR of size bytes (a power of two; at least 4 for I/O and at most 256, at least 16 for
 * memory) whose registers ops serve; a MEM64 one takes two slots. */
void pci_func_bar(struct pci_func *f, unsigned n, enum pci_bar_kind kind, uint64_t size,
                  const struct io_ops *ops);
/* In init: reserves len bytes for a capability and links it in. Returns its offset; the space must
 * suffice. */
uint8_t pci_func_cap(struct pci_func *f, uint8_t id, uint8_t len);
/* In init: little-endian contents after reset and writable bits of a register of 1, 2 or 4 bytes.
 */
void pci_func_reg(struct pci_func *f, unsigned off, unsigned size, uint32_t value, uint32_t wmask);

/* In init: the capability of a PCI Express root complex integrated endpoint (PCI Express Base 2.0
 * §7.8), with function level reset if the function can, and the extended configuration space. */
void pci_func_express(struct pci_func *f);

/* In init: the power management capability (PCI Power Management 1.2 §3.2) with the states D0 and
 * D3hot. In D3hot nothing but the configuration space answers, no interrupt is raised, and all
 * state is kept. */
void pci_func_power(struct pci_func *f);

/* In the device's reset, quiesce-safe resume and fini. Resume takes nothing but writable and own
 * bits from the (possibly loaded) state, and maps BARs and drives INTx accordingly. */
void pci_func_reset(struct pci_func *f);
void pci_func_resume(struct pci_func *f);
void pci_func_fini(struct pci_func *f); /* lock not held */

uint32_t pci_func_read(struct pci_func *f, unsigned off, unsigned size);
void pci_func_write(struct pci_func *f, unsigned off, unsigned size, uint32_t val);

static inline uint16_t pci_func_command(const struct pci_func *f)
{
    return (uint16_t)(f->s->cfg[PCI_COMMAND] | f->s->cfg[PCI_COMMAND + 1] << 8);
}

/* Is it in D3hot? irq_lock or the device's lock held. */
bool pci_func_asleep(const struct pci_func *f);

/* Drives the INTx pin; what the guest sees of it depends on the command register. Any thread, with
 * or without the device's lock. */
void pci_func_intx(struct pci_func *f, bool level);

/* ---- the bus ---- */

struct pci_bus_cfg {
    struct dev_ctx *ctx;
    struct pio_bus *pio; /* where I/O BARs are mapped; NULL: they are not */
    struct irq
        intx[PCI_INTX_LINES]; /* level-triggered; pin p of slot n drives line (n + p - 1) % 4 */
    /* A message signalled interrupt: a store to addr. Any thread. NULL: goes nowhere. */
    void (*msi)(void *owner, uint64_t addr, uint32_t data);
    void *msi_owner;
};

/* Bus 0, the only one. */
int pci_bus_new(struct pci_bus **out, const struct pci_bus_cfg *cfg, struct err *e);
void pci_bus_free(struct pci_bus *b); /* after its functions' devices */

/* Puts f at devfn. -EBUSY if that is taken. Called in the device's init. */
int pci_bus_add(struct pci_bus *b, struct pci_func *f, uint8_t devfn, struct err *e);

/* Sends a message signalled interrupt. Any thread. */
void pci_bus_msi(struct pci_bus *b, uint64_t addr, uint32_t data);

/* A configuration access of 1, 2 or 4 bytes, naturally aligned; off up to 4095. Absent functions
 * and registers beyond a function's space read as all ones. `host` is the device whose lock the
 * caller holds: its own functions are not locked again. */
uint32_t pci_bus_read(struct pci_bus *b, struct device *host, unsigned busno, uint8_t devfn,
                      unsigned off, unsigned size);
void pci_bus_write(struct pci_bus *b, struct device *host, unsigned busno, uint8_t devfn,
                   unsigned off, unsigned size, uint32_t val);

#endif
