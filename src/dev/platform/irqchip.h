/*
 * What makes the interrupt controllers of src/irq reachable by the guest: the ports of the 8259
 * pair and ELCR, and the I/O APIC's page. The controllers belong to the machine, lock themselves
 * and have their own saved state (pic_save, ioapic_save), so this device has none; its reset resets
 * both, and leaves ELCR as firmware would.
 */
#ifndef RING3_DEV_PLATFORM_IRQCHIP_H
#define RING3_DEV_PLATFORM_IRQCHIP_H

#include "dev/device.h"
#include "irq/ioapic.h"
#include "irq/pic.h"

#define IOAPIC_BASE 0xfec00000ull
#define IOAPIC_SIZE 0x1000ull

struct irqchip_cfg {
    struct pic *pic; /* not owned; outlives the device, as does ioapic */
    struct ioapic *ioapic;
    uint16_t level; /* ISA lines that firmware has set to level-triggered in ELCR: the SCI */
};

extern const struct device_class irqchip_class; /* cfg: struct irqchip_cfg */
extern const struct io_ops irqchip_master_ops;  /* 2 ports from 0x20 */
extern const struct io_ops irqchip_slave_ops;   /* 2 ports from 0xa0 */
extern const struct io_ops irqchip_elcr_ops;    /* 2 ports from 0x4d0 */
extern const struct io_ops irqchip_ioapic_ops;  /* IOAPIC_SIZE bytes at IOAPIC_BASE */

#endif
