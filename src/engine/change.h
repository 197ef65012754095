/* Moving a VM from one engine to another. */
#ifndef RING3_ENGINE_CHANGE_H
#define RING3_ENGINE_CHANGE_H

#include "base/err.h"
#include "engine/engine.h"

/*
 * All vCPUs go on with the engine `to`: with all they have in struct cpu_state, and with the events posted to them. They
 * must be outside run(), and no other thread may change the map or call the engine's code_write meanwhile; events may
 * be posted at any time. 0; or a negative errno with the reason and everything as it was. What `to` can refuse is said
 * at struct engine_ops; its probe is the caller's affair.
 */
int engine_change(struct vm *vm, const struct engine_ops *from, const struct engine_ops *to, struct err *e);

#endif
