/* The value of --share: DIR:TAG[:ro]. */
#ifndef RING3_CTL_SHAREOPT_H
#define RING3_CTL_SHAREOPT_H

#include "base/err.h"
#include "machine/machine.h"

extern const char shareopt_arg[], shareopt_help[];

/* Parses a value. -EINVAL or -ENAMETOOLONG with e set. */
int shareopt_parse(struct machine_share *s, const char *val, struct err *e);

#endif
