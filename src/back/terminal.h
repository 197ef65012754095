/*
 * The terminal of the process in raw mode, and the promise to give it back as it was: at
 * terminal_restore, and before any signal kills the process. A process has one such terminal, which
 * is why this module alone keeps its state per process: a signal handler gets no argument.
 *
 * Only signals whose disposition is the default are handled (a program that handles SIGTERM itself
 * calls terminal_restore on its way out). After SIGCONT raw mode is set again, since shells put
 * their own mode back when a job stops.
 */
#ifndef RING3_BACK_TERMINAL_H
#define RING3_BACK_TERMINAL_H

#include "base/err.h"

/* Puts the terminal fd, which must stay open, into raw mode. Returns 0, -EBUSY if one is raw
 * already, or the error of the terminal. */
int terminal_raw(int fd, struct err *e);

/* Undoes terminal_raw: mode and signal handlers. */
void terminal_restore(void);

#endif
