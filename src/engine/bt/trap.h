/* Host faults in translated code (SIGFPE, SIGSEGV, SIGBUS): what else raises them goes on to whoever
 * handled them before. */
#ifndef RING3_ENGINE_BT_TRAP_H
#define RING3_ENGINE_BT_TRAP_H

#include "engine/bt/bt.h"

/* Once per process, later calls do nothing. */
int bt_trap_init(struct err *e);
/* This thread is about to run bt's code; NULL: no longer. */
void bt_trap_enter(const struct bt *bt);

#endif
