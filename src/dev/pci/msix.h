/*
 * MSI-X of a PCI function (PCI Local Bus 3.0 §6.8.2): capability, vector table and pending bits.
 * The device reserves a memory BAR of PCI_MSIX_BAR_SIZE bytes and forwards its accesses.
 *
 * A vector that is masked, or raised while the function mask is set, bus mastering is off or the
 * function sleeps, stays pending and goes out once when nothing forbids it any more.
 *
 * Locking: the function's interrupt lock (pci.h) guards table, pending bits and control; it is
 * taken in here. pci_msix_raise and pci_msix_enabled may be called from any thread, with or without
 * the device's lock; the rest with it.
 */
#ifndef RING3_DEV_PCI_MSIX_H
#define RING3_DEV_PCI_MSIX_H

#include <stdbool.h>
#include <stdint.h>

#include "dev/pci/pci.h"

#define PCI_MSIX_MAX 128u
#define PCI_MSIX_BAR_SIZE 0x1000u /* table at 0, pending bits at PCI_MSIX_PBA */
#define PCI_MSIX_PBA 0x800u

/* Per vector: message address, upper address, data, control. */
struct pci_msix_state {
    uint32_t table[PCI_MSIX_MAX * 4];
    uint64_t pending[PCI_MSIX_MAX / 64];
};

extern const struct state_desc pci_msix_state_desc;

struct pci_msix {
    struct pci_func *f;
    struct pci_msix_state *s; /* inside the device's state */
    unsigned n;               /* vectors */
    unsigned cap;
};

/* In the device's init: n vectors (1..PCI_MSIX_MAX) whose table is in memory BAR `bar`. */
void pci_msix_init(struct pci_msix *m, struct pci_func *f, struct pci_msix_state *s, unsigned n,
                   unsigned bar);
/* In the device's reset and resume, after the function's. */
void pci_msix_reset(struct pci_msix *m);
void pci_msix_resume(struct pci_msix *m);
/* In the function's `written` hook. */
void pci_msix_written(struct pci_msix *m);

/* Accesses to the BAR, of 4 or 8 bytes, naturally aligned. */
uint64_t pci_msix_read(struct pci_msix *m, uint64_t off, unsigned size);
void pci_msix_write(struct pci_msix *m, uint64_t off, unsigned size, uint64_t val);

/* Has the guest switched from INTx to MSI-X? */
bool pci_msix_enabled(struct pci_msix *m);
/* Sends vector's message, now or when it may go. A vector that there is not is ignored. */
void pci_msix_raise(struct pci_msix *m, unsigned vector);

#endif
