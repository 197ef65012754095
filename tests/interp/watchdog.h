/* Ends runs that do not end by themselves: an alarm that kicks a vCPU. One at a time. */
#ifndef RING3_TESTS_INTERP_WATCHDOG_H
#define RING3_TESTS_INTERP_WATCHDOG_H

#include <stdbool.h>

struct vcpu;

/* Kicks v after us microseconds, and aborts the program when three more kicks, seconds apart, do
 * not end it either. */
void watchdog_start(struct vcpu *v, long us);
bool watchdog_stop(void); /* did it bite? */

#endif
