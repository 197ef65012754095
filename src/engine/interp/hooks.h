/* What tests may ask of the interpreter beyond engine_ops. */
#ifndef RING3_ENGINE_INTERP_HOOKS_H
#define RING3_ENGINE_INTERP_HOOKS_H

#include <stdbool.h>

struct vcpu;

/* From the next run() on: every instruction by its plain function (true), or by fast handlers where there are
 * any (false, the default). Only while run() is not running. */
void interp_use_plain(struct vcpu *v, bool plain);

#endif
