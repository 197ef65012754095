/*
 * The ACPI power management timer (ACPI 6.5 §4.8.2.1): a free-running counter at 3.579545 MHz. It
 * has no state of its own; the ACPI device that owns the port truncates it to 24 bits if its FADT
 * says so.
 */
#ifndef RING3_DEV_PLATFORM_PMTIMER_H
#define RING3_DEV_PLATFORM_PMTIMER_H

#include <stdint.h>

#include "base/clock.h"

#define PMTIMER_HZ 3579545u

/* The counter's low 32 bits at the clock's present time. Any thread. */
uint32_t pmtimer_value(const struct clock *c);

#endif
