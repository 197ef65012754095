/* The PC: which devices there are, where they answer and which interrupts they raise. Called by
 * machine.c only. */
#ifndef RING3_MACHINE_PC_H
#define RING3_MACHINE_PC_H

#include "base/err.h"

struct machine;
struct machine_cfg;

/* Interrupt controllers that vCPUs are wired to; before them. */
int pc_make_irq(struct machine *m, struct err *e);
/* Everything else; after vCPUs and the character backends. On failure machine_free cleans up. */
int pc_make_devices(struct machine *m, const struct machine_cfg *cfg, struct err *e);
void pc_free_irq(struct machine *m);
/* Guest-physical ranges that are not RAM, into m->layout. */
int pc_reserve(struct machine *m, struct err *e);
/* Firmware tables into guest memory, and their address into m->layout; at each reset. */
int pc_write_tables(struct machine *m, struct err *e);

#endif
