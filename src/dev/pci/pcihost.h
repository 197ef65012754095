/*
 * The host bridge of a PC like Intel's Q35: 00:00.0 (memory controller) and 00:1f.0 (LPC/ISA
 * bridge), configuration mechanism 1 at ports 0xCF8..0xCFF (PCI Local Bus 3.0 §3.2.2.3.2), ECAM
 * (PCI Express Base 2.0 §7.2.2) and the reset control register at 0xCF9, which shares ports with
 * mechanism 1.
 *
 * Map pcihost_cfg_ops over PCIHOST_PORTS ports at 0xCF8, and pcihost_ecam_ops over 1 MiB <<
 * buses_log2 of memory at ecam_base. Locking as device.h and pci.h say.
 */
#ifndef RING3_DEV_PCI_PCIHOST_H
#define RING3_DEV_PCI_PCIHOST_H

#include "dev/pci/pci.h"

#define PCIHOST_PORTS 8
#define PCIHOST_RESET_OFF 1      /* offset of the reset control register from the first port */
#define PCIHOST_RESET_VALUE 0x0e /* full reset: what the FADT tells the guest to write there */

struct pcihost_cfg {
    struct pci_bus *bus; /* not owned, outlives the device */
    uint64_t ecam_base;  /* shown in PCIEXBAR; a multiple of the size; 0: no ECAM */
    unsigned buses_log2; /* 6, 7 or 8: 64 to 256 buses in the ECAM window */
};

extern const struct device_class pcihost_class;
extern const struct io_ops pcihost_cfg_ops, pcihost_ecam_ops;

#endif
