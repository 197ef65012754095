/*
 * SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH as events of a loop. While a struct signals lives they are
 * blocked in the calling thread and all it creates, so that nothing is left half done when one arrives.
 */
#ifndef RING3_CTL_SIGNALS_H
#define RING3_CTL_SIGNALS_H

#include <signal.h>

#include "base/err.h"
#include "base/loop.h"

struct signals {
    int fd;
    sigset_t old; /* the mask before */
    struct loop_fd *reg;
    void (*fn)(void *arg, int signo);
    void *arg;
};

/* fn is called in the loop's thread. Call from the main thread before others are created. */
int signals_init(struct signals *s, struct loop *l, void (*fn)(void *arg, int signo), void *arg,
                 struct err *e);
/* Restores the signal mask. */
void signals_fini(struct signals *s);
/* Lets the process die of the signal it was asked to end by. */
_Noreturn void signals_die(int signo);

#endif
