/*
 * The keyboard controller of a PC (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and
 * Auxiliary Device Controller") with a keyboard on its first port and nothing on a second one, and
 * port 0x92. A20 is always on. After reset it is as firmware leaves it: keyboard and its interrupt
 * enabled, translation to scan code set 1 on.
 *
 * Map i8042_data_ops over port 0x60, i8042_command_ops over 0x64 and i8042_port92_ops over 0x92,
 * one byte each. Locking as device.h says.
 */
#ifndef RING3_DEV_PLATFORM_I8042_H
#define RING3_DEV_PLATFORM_I8042_H

#include "dev/device.h"

struct i8042_cfg {
    struct irq kbd_irq; /* ISA IRQ 1 */
};

extern const struct device_class i8042_class;
extern const struct io_ops i8042_data_ops, i8042_command_ops, i8042_port92_ops;

/* A key of the host's keyboard went down or up; numbering and result as ps2kbd_key. Any thread,
 * device lock not held. */
bool i8042_key(struct device *d, uint16_t key, bool down);

#endif
