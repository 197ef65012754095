/*
 * Timers in guest time. A timerq holds the armed timers of one machine and owns a timerfd that
 * becomes readable when the earliest is due; the main loop polls that fd and calls timerq_run().
 * timer_arm/timer_cancel may be called from any thread and from inside callbacks. Callbacks run
 * in the thread that calls timerq_run, without the queue's lock, and may arm or cancel anything.
 *
 * A callback that races with timer_cancel or a later timer_arm may still run once with the old
 * deadline: owners compare their own deadline (kept in their device state) with the time and return
 * if it is not due. timer_cancel_sync waits until a running callback has returned.
 */
#ifndef RING3_BASE_TIMER_H
#define RING3_BASE_TIMER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"

#define TIMER_OFF UINT64_MAX

struct timer {
    void (*fn)(void *arg);
    void *arg;
    uint64_t deadline; /* guest ns, TIMER_OFF when not armed; guarded by the queue's lock */
    size_t slot;       /* place in the queue's heap, or in its batch (timer.c) */
};

struct timerq {
    const struct clock *clock;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    struct timer **heap;    /* armed, by deadline */
    struct timer **batch;   /* due ones that the timerq_run under way has yet to run, in order */
    size_t n, nbatch;       /* entries of heap and batch */
    size_t attached, cap;   /* timers attached; room in heap and in batch, never less */
    struct timer *running;
    pthread_t runner;
    uint64_t armed; /* host deadline the timerfd is set to */
    int fd;         /* timerfd, CLOCK_MONOTONIC; the queue owns it */
};

int timerq_init(struct timerq *q, const struct clock *c, struct err *e);
void timerq_fini(struct timerq *q);
/* Runs all that are due by clock_now, earliest first. One thread at a time, not from a callback. */
void timerq_run(struct timerq *q);
void timerq_resync(struct timerq *q);       /* after clock_freeze/thaw/step: reprogram the timerfd */
uint64_t timerq_next(struct timerq *q);     /* earliest guest deadline or TIMER_OFF */

void timer_init(struct timer *t, void (*fn)(void *), void *arg);
/* deadline is absolute guest ns; one in the past fires at the next timerq_run. Re-arming moves it.
 * Never fails: heap growth is reserved by timer_attach, which every timer needs once first. */
int timer_attach(struct timerq *q, struct timer *t, struct err *e);
/* Cancels, and waits for a running callback unless called from it: t may be freed afterwards. Not
 * with a lock held that the callback takes. */
void timer_detach(struct timerq *q, struct timer *t);
void timer_arm(struct timerq *q, struct timer *t, uint64_t deadline);
void timer_cancel(struct timerq *q, struct timer *t);
void timer_cancel_sync(struct timerq *q, struct timer *t); /* not from its own callback */

#endif
