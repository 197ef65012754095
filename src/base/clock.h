/*
 * Guest time. One struct clock per machine: nanoseconds of guest virtual time since the machine was
 * created, following host CLOCK_MONOTONIC (or the host's TSC) except while frozen (pause, snapshot); tests step it by
 * hand. Everything that measures guest time (TSC, PIT, LAPIC timer, PM timer, RTC) reads this clock
 * and nothing else. Readers are lock-free and may be on any thread.
 */
#ifndef RING3_BASE_CLOCK_H
#define RING3_BASE_CLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct clock {
    _Atomic uint32_t seq;     /* seqlock for the fields below; odd while a writer is inside */
    _Atomic bool stepped;     /* only clock_step() moves it (tests) */
    _Atomic bool frozen;
    _Atomic uint64_t base;    /* guest ns at the moment `host` */
    _Atomic uint64_t host;    /* host time then: CLOCK_MONOTONIC ns, or ticks of the host's TSC */
    _Atomic int64_t wall_off; /* guest wall clock minus guest virtual time, ns since the Unix epoch */
    uint64_t tsc_khz;         /* rate of the guest TSC, fixed at creation */
    uint64_t counter_khz;     /* rate of the host's TSC if time follows that, else 0; fixed at creation */
};

void clock_init(struct clock *c, uint64_t tsc_khz);         /* running, wall clock = the host's */
/* The same, but time follows the host's TSC, of that rate. Then a guest that reads the hardware's TSC and what we tell it
 * of time cannot drift apart, as they would with CLOCK_MONOTONIC, whose rate the host adjusts. */
void clock_init_counter(struct clock *c, uint64_t tsc_khz, uint64_t counter_khz);
void clock_init_stepped(struct clock *c, uint64_t tsc_khz, uint64_t wall_ns); /* tests: starts at 0 */
uint64_t clock_now(const struct clock *c);                  /* guest virtual ns */
/* Guest virtual ns to TSC ticks and back, 128-bit arithmetic, rounding down. */
uint64_t clock_ns_to_tsc(const struct clock *c, uint64_t ns);
uint64_t clock_tsc_to_ns(const struct clock *c, uint64_t tsc);
uint64_t clock_tsc(const struct clock *c);                  /* clock_ns_to_tsc(clock_now) */
/* The guest's TSC at the moment when the host's TSC is `counter`, not before the clock last changed. Now, for a clock that does
 * not follow the host's TSC, is stepped or stands still. */
uint64_t clock_tsc_at(const struct clock *c, uint64_t counter);
/* Another value each time when the relation of guest time to host time changes. */
uint32_t clock_changes(const struct clock *c);
/* Guest wall clock, ns since the Unix epoch. While the clock runs unfrozen it follows host
 * CLOCK_REALTIME, steps and slewing of the host included. */
uint64_t clock_wall(const struct clock *c);
void clock_freeze(struct clock *c);                         /* idempotent */
void clock_thaw(struct clock *c);
void clock_step(struct clock *c, uint64_t ns);              /* stepped clocks only */

/* The host deadline (CLOCK_MONOTONIC ns) of guest time ns; UINT64_MAX if frozen or stepped. */
uint64_t clock_to_host(const struct clock *c, uint64_t ns);

#endif
