/*
 * A 16550A UART (National Semiconductor PC16550D data sheet), connected to a chardev. The line has
 * no speed: a byte written goes to the backend at once, and while the backend takes no more, THRE
 * stays low. Bytes from the backend are taken only when there is room, so that the receiver
 * overruns only in loopback mode. The modem lines read as a terminal that is there: DCD, DSR, CTS.
 *
 * Eight registers of one byte; map uart_ops over 8 ports (or bytes of memory). The interrupt output
 * is gated by OUT2, as on every PC board. Locking as device.h says.
 */
#ifndef RING3_DEV_PLATFORM_UART_H
#define RING3_DEV_PLATFORM_UART_H

#include "back/chardev.h"
#include "dev/device.h"

struct uart_cfg {
    struct chardev *chr; /* not owned, outlives the device; NULL: nothing is connected */
    struct irq irq;
};

extern const struct device_class uart_class;
extern const struct io_ops uart_ops;

#endif
