/*
 * One of the 8254's three counters, as a function of the number of CLK pulses since time zero:
 * nothing runs, every question is answered from when the counting element was loaded. `now` must
 * never go back. Only the device's own lock protects it.
 */
#ifndef RING3_DEV_PLATFORM_PIT_COUNTER_H
#define RING3_DEV_PLATFORM_PIT_COUNTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/state.h"

#define PIT_NEVER UINT64_MAX

enum pit_phase {
    PIT_NO_COUNT, /* programmed, waiting for (the rest of) a count */
    PIT_ARMED,    /* modes 1 and 5: waiting for a trigger */
    PIT_HELD,     /* the gate is low */
    PIT_RUN
};

struct pit_counter {
    uint64_t start;  /* PIT_RUN: CLK at which the counting element held `count` */
    uint64_t change; /* modes 2 and 3: CLK at which `reload` takes over, or PIT_NEVER */
    uint16_t count;  /* what this run started from; 0 means 65,536 */
    uint16_t reload; /* the count register, in binary; 0 means 65,536 */
    uint16_t held;   /* counting element while it does not run */
    uint16_t latch;
    uint8_t control; /* low 6 bits of the control word: RW, mode, BCD */
    uint8_t status;  /* latched status */
    uint8_t lsb;     /* first byte of a two-byte count */
    uint8_t phase;   /* enum pit_phase */
    bool gate;
    bool level;      /* OUT before the run begins, or while there is none */
    bool fired;      /* modes 0 and 4: terminal count was reached before `start` */
    bool null_count; /* the count register has yet to reach the counting element */
    bool latched, status_latched;
    bool write_msb, read_msb; /* next byte of a two-byte access */
    uint8_t pad[4];
};

extern const struct state_desc pit_counter_desc;

void pit_counter_reset(struct pit_counter *c, bool gate);
void pit_counter_control(struct pit_counter *c, uint64_t now, uint8_t control);
void pit_counter_write(struct pit_counter *c, uint64_t now, uint8_t val);
uint8_t pit_counter_read(struct pit_counter *c, uint64_t now);
void pit_counter_latch(struct pit_counter *c, uint64_t now);
void pit_counter_latch_status(struct pit_counter *c, uint64_t now);
void pit_counter_gate(struct pit_counter *c, uint64_t now, bool level);
bool pit_counter_out(struct pit_counter *c, uint64_t now);
/* The first CLK after now at which OUT rises, or PIT_NEVER. */
uint64_t pit_counter_next_rise(struct pit_counter *c, uint64_t now);
/* CLK pulses from one rise to the next (modes 2 and 3, running), else 0. */
uint32_t pit_counter_period(const struct pit_counter *c);

#endif
