/* The value of --vsock: CID[,uds=PATH]. */
#ifndef RING3_CTL_VSOCKOPT_H
#define RING3_CTL_VSOCKOPT_H

#include "base/err.h"
#include "machine/machine.h"

extern const char vsockopt_arg[], vsockopt_help[];

/* Parses a value; without a path it is in XDG_RUNTIME_DIR, or in /tmp if there is none. -EINVAL
 * with e set, -ENOMEM. */
int vsockopt_parse(struct machine_vsock *v, const char *val, struct err *e);

#endif
