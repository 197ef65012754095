/* Host faults in translated code (SIGFPE, SIGSEGV, SIGBUS): the thread goes on elsewhere. What else raises them
 * goes to whoever handled them before. */
#ifndef RING3_ENGINE_BT_TRAP_H
#define RING3_ENGINE_BT_TRAP_H

#include <stdint.h>

#include "base/err.h"

/* Handles the signals from now on. Once per process, later calls do nothing. */
int trap_init(struct err *e);
/* The calling thread is about to run code for which find gives the address to go on at when the host faults at
 * pc, 0 if it is none of its. Async-signal-safe. NULL: no longer. */
typedef uintptr_t (*trap_find_fn)(const void *arg, uintptr_t pc);
void trap_enter(trap_find_fn find, const void *arg);

#endif
