/* Host faults in translated code (SIGFPE, SIGSEGV, SIGBUS): the thread goes on elsewhere. What else raises them
 * goes to whoever handled them before. */
#ifndef RING3_ENGINE_BT_TRAP_H
#define RING3_ENGINE_BT_TRAP_H

#include <stdint.h>

#include "base/err.h"
#include "engine/bt/returns.h"

/* Handles the signals from now on. */
int trap_init(struct err *e);
/* The calling thread is about to run code for which find gives the address to go on at when the host faults at
 * pc, 0 if it is none of its; async-signal-safe. Its calls use r, which is emptied when it is full. Until trap_leave
 * signal handlers of the thread that ask for another stack get the one in r, too. 0, or -1 with errno. */
typedef uintptr_t (*trap_find_fn)(const void *arg, uintptr_t pc);
int trap_enter(trap_find_fn find, const void *arg, const struct returns *r);
void trap_leave(void);

#endif
