/*
 * The gate between vCPU threads and their engines: while it is closed they park outside of run(), with all guest state
 * in the engines' get_state. Closing, waiting and opening are for the loop's thread; the machine's lock is the gate's.
 */
#ifndef RING3_MACHINE_GATE_H
#define RING3_MACHINE_GATE_H

#include <stdbool.h>

struct machine;

enum gate { GATE_CLOSED, GATE_OPEN, GATE_QUIT };

/* For a vCPU's thread: parks while the gate is closed; false when the thread must end. */
bool gate_pass(struct machine *m);
/* Has every vCPU leave run() soon, also those that have no thread yet. Any thread. */
void gate_kick(struct machine *m);
/* Closes the gate and waits until every vCPU thread is parked. */
void gate_stop(struct machine *m);
/* Opens the gate, unless something waits that closed it. */
void gate_go(struct machine *m);
/* Lets the vCPU threads end. */
void gate_quit(struct machine *m);

#endif
