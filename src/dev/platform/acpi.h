/*
 * The ACPI fixed hardware (ACPI 6.5 §4.8): PM1 event and control registers, the PM timer, a block
 * of general-purpose events and the power button. The machine is in ACPI mode from the start
 * (SCI_EN reads 1, there is no SMI command port). The one sleeping state is S5: writing its type
 * with SLP_EN requests MACHINE_POWEROFF.
 *
 * Map acpi_ops over ACPI_PORTS ports; the FADT tells the guest where. The SCI is active while an
 * enabled event is pending. Locking as device.h says.
 */
#ifndef RING3_DEV_PLATFORM_ACPI_H
#define RING3_DEV_PLATFORM_ACPI_H

#include "dev/device.h"

/* Offsets of the register blocks from the first port, and their lengths in bytes. */
#define ACPI_PM1_EVT 0x00
#define ACPI_PM1_EVT_LEN 4
#define ACPI_PM1_CNT 0x04
#define ACPI_PM1_CNT_LEN 2
#define ACPI_PM_TMR 0x08
#define ACPI_PM_TMR_LEN 4
#define ACPI_GPE0 0x20
#define ACPI_GPE0_LEN 4 /* two bytes of status, two of enable: 16 events */
#define ACPI_PORTS 0x24

#define ACPI_GPES 16
#define ACPI_SLP_TYP_S5 5 /* what the DSDT's \_S5 must say */

struct acpi_dev_cfg {
    struct irq sci; /* level-triggered, active high */
};

extern const struct device_class acpi_class;
extern const struct io_ops acpi_ops;

/* Presses and releases the power button: PWRBTN_STS. Any thread, device lock not held. */
void acpi_power_button(struct device *d);

/* Signals general-purpose event n < ACPI_GPES. Any thread, device lock not held. */
void acpi_gpe(struct device *d, unsigned n);

#endif
