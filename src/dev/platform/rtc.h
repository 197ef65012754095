/*
 * The MC146818 real-time clock with 128 bytes of CMOS memory at ports 0x70 (index) and 0x71 (data),
 * as in the Intel ICH data sheet. It shows clock_wall() in UTC; what the guest sets is kept as an
 * offset to it, so guest time goes on following the host's. Binary and BCD, 12 and 24 hours, SET
 * and divider reset, update-in-progress, periodic, alarm and update-ended interrupts on one level
 * line (IRQ 8).
 *
 * It also holds what PC firmware leaves there: memory sizes (0x15-0x18, 0x30, 0x31, 0x34, 0x35,
 * 0x5b-0x5d), the century (0x32), equipment and the checksum of 0x10-0x2d. CMOS survives a reset.
 */
#ifndef RING3_DEV_PLATFORM_RTC_H
#define RING3_DEV_PLATFORM_RTC_H

#include "dev/device.h"

struct rtc_cfg {
    struct irq irq;        /* IRQ 8 */
    uint64_t mem_below_4g; /* bytes of RAM from address 0 up */
    uint64_t mem_above_4g; /* bytes of RAM from 4 GiB up */
};

extern const struct device_class rtc_class; /* cfg: struct rtc_cfg */
extern const struct io_ops rtc_ops;         /* 2 ports from 0x70 */

#endif
