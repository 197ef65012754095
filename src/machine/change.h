/*
 * Changing the engine of a running VM. Only the vCPUs stand meanwhile: guest time runs on, and so do timers, devices and
 * their threads. Everything here belongs to the loop's thread.
 */
#ifndef RING3_MACHINE_CHANGE_H
#define RING3_MACHINE_CHANGE_H

#include <stdint.h>

#include "base/err.h"

struct engine_ops;
struct machine;

struct change_stats {
    uint64_t n;          /* changes so far */
    uint64_t stood, most; /* ns that the vCPUs stood: altogether, and at most in one change */
};

/*
 * Moves all vCPUs to another engine, which is probed and initialised first: when it fails, that is because this host
 * cannot run it, it cannot give the guest the processor that it has seen, or it lacks what was asked of the machine
 * (--check), the VM goes on with the engine it has. 0, also if that is the engine already; else a negative errno with
 * the reason. The machine may be paused, and is so afterwards.
 */
int machine_set_engine(struct machine *m, const struct engine_ops *engine, struct err *e);

/* Moves on to the next engine in engine_list that this host offers, past those that fail; -ENOTSUP if there is no other
 * one, with the last one's reason. */
int machine_next_engine(struct machine *m, struct err *e);

#endif
