/* What a function needs from its bus. Used by pci_func.c only. */
#ifndef RING3_DEV_PCI_PCI_BUS_H
#define RING3_DEV_PCI_PCI_BUS_H

#include "dev/pci/pci.h"

struct pio_bus *pci_bus_pio(const struct pci_bus *b);
void pci_bus_del(struct pci_bus *b, struct pci_func *f);
/* Pin 1..4 of a function has this level now. Any thread. */
void pci_bus_intx(struct pci_bus *b, uint8_t devfn, unsigned pin, bool level);

#endif
