/*
 * The 8254 programmable interval timer (Intel 8254 data sheet) at ports 0x40-0x43, and port 0x61
 * (Intel ICH data sheet, NMI_SC) with channel 2's gate, the speaker enable, the refresh toggle and
 * channel 2's output. All six modes, BCD, latches and read-back.
 *
 * Counting follows the machine's clock on a grid of 1/1193182 s that starts with the clock, so that
 * no period drifts. Channels 0 and 1 have their gates tied high. Channel 0's line goes high with
 * its OUT; it stays high until just before the next rising edge rather than following OUT down,
 * which saves a host timer per period and lets the 8259 hold the request for as long as the guest
 * needs.
 */
#ifndef RING3_DEV_PLATFORM_PIT_H
#define RING3_DEV_PLATFORM_PIT_H

#include "dev/device.h"

#define PIT_HZ 1193182u

/* What happens to interrupts of channel 0 that the host was too late for. */
enum pit_lost_ticks {
    PIT_LOST_DISCARD, /* dropped: the next one comes at its own time (guests that read a clock) */
    PIT_LOST_CATCH_UP /* delivered later at up to 8 times the rate, at most 60 s worth of them
                         (guests that count ticks) */
};

struct pit_cfg {
    struct irq irq; /* channel 0's output: IRQ 0 */
    enum pit_lost_ticks lost;
};

extern const struct device_class pit_class; /* cfg: struct pit_cfg */
extern const struct io_ops pit_ops;         /* 4 ports from 0x40 */
extern const struct io_ops pit_port61_ops;  /* 1 port, 0x61 */

#endif
