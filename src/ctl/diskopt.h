/* The value of --disk: FILE[,ITEM]... */
#ifndef RING3_CTL_DISKOPT_H
#define RING3_CTL_DISKOPT_H

#include "base/err.h"
#include "machine/machine.h"

extern const char diskopt_arg[], diskopt_help[];

/* Parses a value into *d, whose texts are allocated. -EINVAL with e set, -ENOMEM; *d needs no
 * diskopt_free then. */
int diskopt_parse(struct machine_disk *d, const char *val, struct err *e);
void diskopt_free(struct machine_disk *d);

#endif
