/* --engine-switch MS[,ENGINE]...: a running VM that changes its engine all the time, as a test. */
#ifndef RING3_CTL_ENGINE_SWITCH_H
#define RING3_CTL_ENGINE_SWITCH_H

#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"
#include "machine/machine.h"

#define ENGINE_SWITCH_MAX 16u

extern const char engine_switch_arg[], engine_switch_help[];

struct engine_switch_cfg {
    uint64_t ms; /* from one change to the next; 0: there are none */
    const struct engine_ops *engine[ENGINE_SWITCH_MAX]; /* in this order, over and over */
    unsigned n; /* 0: all that this host offers */
};

struct engine_switch {
    struct engine_switch_cfg cfg;
    struct machine *m;
    unsigned at; /* the next one */
    int fd;
    struct loop_fd *reg; /* NULL: not started */
};

/* 0, or -EINVAL with e set. */
int engine_switch_parse(struct engine_switch_cfg *c, const char *val, struct err *e);
/* Fills in the engines that this host offers if none were given. Fails if one that was given is missing, if there are
 * not two, or if the machine is to have what goes with one engine only. */
int engine_switch_check(struct engine_switch_cfg *c, const struct machine_cfg *m, struct err *e);
/* Changes m's engine from now on until engine_switch_stop, in the loop's thread; nothing with cfg->ms = 0. If a change
 * fails the machine ends with MACHINE_FAILED. */
int engine_switch_start(struct engine_switch *s, const struct engine_switch_cfg *cfg, struct machine *m, struct err *e);
/* Also after a failed start. */
void engine_switch_stop(struct engine_switch *s);

#endif
