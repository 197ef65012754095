/* A machine's disk images. Called by machine.c only. */
#ifndef RING3_MACHINE_DISKS_H
#define RING3_MACHINE_DISKS_H

#include "base/err.h"

struct machine;
struct machine_cfg;

/* Opens cfg->disks into m->disk, and logs what the user should know of them. On failure
 * disks_close cleans up. */
int disks_open(struct machine *m, const struct machine_cfg *cfg, struct err *e);
/* After the devices; logs what could not be written. */
void disks_close(struct machine *m);

#endif
