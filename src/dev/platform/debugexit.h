/*
 * The debug-exit port, compatible with QEMU's isa-debug-exit: a write of any size ends the VM with
 * the value written (MACHINE_DEBUG_EXIT). It lets any guest code, privileged to do port I/O, end
 * the VM, so machines have it only when asked. Reads give 0. Map debugexit_ops over 4 ports,
 * usually at 0xf4.
 */
#ifndef RING3_DEV_PLATFORM_DEBUGEXIT_H
#define RING3_DEV_PLATFORM_DEBUGEXIT_H

#include "dev/device.h"

extern const struct device_class debugexit_class; /* takes no cfg: NULL */
extern const struct io_ops debugexit_ops;

#endif
