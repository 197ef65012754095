/*
 * A virtual CPU as the machine sees it: its local APIC, paravirtual clock and host thread. The
 * thread runs the engine, sleeps while the guest is halted, and parks while the machine's gate is
 * closed (machine.h).
 */
#ifndef RING3_MACHINE_VCPU_H
#define RING3_MACHINE_VCPU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/err.h"
#include "engine/engine.h"
#include "irq/lapic.h"
#include "machine/pvclock.h"

struct machine;

struct vcpu_host {
    struct vcpu v; /* v.owner is this struct */
    struct machine *m;
    struct lapic *lapic;
    struct pvclock pvclock;
    uint64_t tsc_offset; /* guest TSC minus clock_tsc(); the vCPU's thread, or while it is parked */
    pthread_t thread;
    bool started;
    _Atomic bool asleep; /* waits for events, or is about to */
    /* The vCPU's thread only: how often it found the guest spinning in a row, and v.insns then. */
    unsigned spins;
    uint64_t spun_at;
};

/* Makes vCPU `index` with its APIC and the machine's engine; no thread yet. */
int vcpu_init(struct vcpu_host *h, struct machine *m, uint32_t index,
              const struct engine_ops *engine, struct err *e);
/* Undoes vcpu_init, also a failed one. The thread must have been joined. */
void vcpu_fini(struct vcpu_host *h);

/* Power-on state: APIC and clock reset, then *s. The vCPU must be parked or not started. */
int vcpu_reset(struct vcpu_host *h, const struct cpu_state *s, struct err *e);

/* Starts the thread, which parks at the closed gate or begins to run. */
int vcpu_start(struct vcpu_host *h, struct err *e);

/* Posts VCPU_EV_* and wakes the vCPU if it sleeps. Any thread, async-signal-safe. */
void vcpu_wake(struct vcpu_host *h, uint32_t events);

/* The guest's TSC moved: tells all that count by it. Only the vCPU's thread, or while it is parked.
 */
void vcpu_set_tsc_offset(struct vcpu_host *h, uint64_t offset);

#endif
