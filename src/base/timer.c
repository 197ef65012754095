/*
 * Timers: a binary heap by deadline behind one mutex, and a timerfd for the earliest.
 *
 * timerq_run first moves everything due from the heap into `batch` and then runs that. What a
 * callback arms goes into the heap, so a device that keeps arming in the past (a guest programs
 * its timer faster than the host can follow) cannot keep the loop inside one timerq_run.
 */
#include "base/timer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/util.h"

#define NS_PER_SEC 1000000000ull
#define SLOT_BATCH BIT(63) /* set in slot while the timer is in batch rather than in heap */

static void put(struct timerq *q, size_t i, struct timer *t)
{
    q->heap[i] = t;
    t->slot = i;
}

static void sift_up(struct timerq *q, size_t i, struct timer *t)
{
    while (i) {
        size_t up = (i - 1) / 2;

        if (q->heap[up]->deadline <= t->deadline)
            break;
        put(q, i, q->heap[up]);
        i = up;
    }
    put(q, i, t);
}

static void sift_down(struct timerq *q, size_t i, struct timer *t)
{
    for (;;) {
        size_t kid = 2 * i + 1;

        if (kid >= q->n)
            break;
        if (kid + 1 < q->n && q->heap[kid + 1]->deadline < q->heap[kid]->deadline)
            kid++;
        if (t->deadline <= q->heap[kid]->deadline)
            break;
        put(q, i, q->heap[kid]);
        i = kid;
    }
    put(q, i, t);
}

static void heap_remove(struct timerq *q, size_t i)
{
    struct timer *last = q->heap[--q->n];

    if (i == q->n)
        return;
    if (i && last->deadline < q->heap[(i - 1) / 2]->deadline)
        sift_up(q, i, last);
    else
        sift_down(q, i, last);
}

static void disarm(struct timerq *q, struct timer *t)
{
    if (t->deadline == TIMER_OFF)
        return;
    if (t->slot & SLOT_BATCH)
        q->batch[t->slot & ~SLOT_BATCH] = NULL;
    else
        heap_remove(q, t->slot);
    t->deadline = TIMER_OFF;
}

static void set_timerfd(struct timerq *q, uint64_t host)
{
    struct itimerspec its = {0};

    q->armed = host;
    if (host != UINT64_MAX) {
        /* An all-zero value would disarm. */
        host = MAX(host, 1);
        its.it_value.tv_sec = (time_t)(host / NS_PER_SEC);
        its.it_value.tv_nsec = (long)(host % NS_PER_SEC);
    }
    if (timerfd_settime(q->fd, TFD_TIMER_ABSTIME, &its, NULL) < 0)
        assert(!"timerfd_settime on our own timerfd cannot fail");
}

static uint64_t top_host(const struct timerq *q)
{
    return q->n ? clock_to_host(q->clock, q->heap[0]->deadline) : UINT64_MAX;
}

int timerq_init(struct timerq *q, const struct clock *c, struct err *e)
{
    memset(q, 0, sizeof(*q));
    q->clock = c;
    q->armed = UINT64_MAX;
    q->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (q->fd < 0)
        return err_sys(e, "cannot create a timer");
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->idle, NULL);
    return 0;
}

void timerq_fini(struct timerq *q)
{
    close(q->fd);
    free(q->heap);
    free(q->batch);
    pthread_cond_destroy(&q->idle);
    pthread_mutex_destroy(&q->lock);
}

void timerq_run(struct timerq *q)
{
    uint64_t now;

    pthread_mutex_lock(&q->lock);
    assert(!q->nbatch);
    now = clock_now(q->clock);
    while (q->n && q->heap[0]->deadline <= now) {
        struct timer *t = q->heap[0];

        heap_remove(q, 0);
        t->slot = q->nbatch | SLOT_BATCH;
        q->batch[q->nbatch++] = t;
    }
    for (size_t i = 0; i < q->nbatch; i++) {
        struct timer *t = q->batch[i];

        if (!t)
            continue;
        q->batch[i] = NULL;
        t->deadline = TIMER_OFF;
        q->running = t;
        q->runner = pthread_self();
        pthread_mutex_unlock(&q->lock);
        t->fn(t->arg);
        pthread_mutex_lock(&q->lock);
        q->running = NULL;
        pthread_cond_broadcast(&q->idle);
    }
    q->nbatch = 0;
    /* Also makes the timerfd unreadable again. */
    set_timerfd(q, top_host(q));
    pthread_mutex_unlock(&q->lock);
}

void timerq_resync(struct timerq *q)
{
    pthread_mutex_lock(&q->lock);
    set_timerfd(q, top_host(q));
    pthread_mutex_unlock(&q->lock);
}

uint64_t timerq_next(struct timerq *q)
{
    uint64_t next = TIMER_OFF;

    pthread_mutex_lock(&q->lock);
    if (q->n)
        next = q->heap[0]->deadline;
    for (size_t i = 0; i < q->nbatch; i++) {
        if (q->batch[i]) {
            next = MIN(next, q->batch[i]->deadline);
            break;
        }
    }
    pthread_mutex_unlock(&q->lock);
    return next;
}

void timer_init(struct timer *t, void (*fn)(void *), void *arg)
{
    t->fn = fn;
    t->arg = arg;
    t->deadline = TIMER_OFF;
    t->slot = 0;
}

static int grow(struct timerq *q)
{
    size_t cap = MAX(16, q->cap * 2);
    struct timer **p;

    p = realloc(q->heap, cap * sizeof(*p));
    if (!p)
        return -ENOMEM;
    q->heap = p;
    p = realloc(q->batch, cap * sizeof(*p));
    if (!p)
        return -ENOMEM;
    q->batch = p;
    q->cap = cap;
    return 0;
}

int timer_attach(struct timerq *q, struct timer *t, struct err *e)
{
    int rc = 0;

    assert(t->deadline == TIMER_OFF);
    pthread_mutex_lock(&q->lock);
    if (q->attached == q->cap)
        rc = grow(q);
    if (!rc)
        q->attached++;
    pthread_mutex_unlock(&q->lock);
    return rc ? err_set(e, ENOMEM, "no memory for a timer") : 0;
}

static void wait_idle(struct timerq *q, const struct timer *t)
{
    while (q->running == t)
        pthread_cond_wait(&q->idle, &q->lock);
}

void timer_detach(struct timerq *q, struct timer *t)
{
    pthread_mutex_lock(&q->lock);
    disarm(q, t);
    if (q->running == t && !pthread_equal(q->runner, pthread_self()))
        wait_idle(q, t);
    assert(q->attached);
    q->attached--;
    pthread_mutex_unlock(&q->lock);
}

void timer_arm(struct timerq *q, struct timer *t, uint64_t deadline)
{
    pthread_mutex_lock(&q->lock);
    disarm(q, t);
    if (deadline != TIMER_OFF) {
        assert(q->n < q->cap);
        t->deadline = deadline;
        sift_up(q, q->n++, t);
        /* A timerfd that fires too early costs one idle timerq_run, so only an earlier deadline
         * is worth a system call; cancelling and moving back never are. */
        if (t->slot == 0) {
            uint64_t host = top_host(q);

            if (host < q->armed)
                set_timerfd(q, host);
        }
    }
    pthread_mutex_unlock(&q->lock);
}

void timer_cancel(struct timerq *q, struct timer *t)
{
    pthread_mutex_lock(&q->lock);
    disarm(q, t);
    pthread_mutex_unlock(&q->lock);
}

void timer_cancel_sync(struct timerq *q, struct timer *t)
{
    pthread_mutex_lock(&q->lock);
    assert(q->running != t || !pthread_equal(q->runner, pthread_self()));
    disarm(q, t);
    wait_idle(q, t);
    pthread_mutex_unlock(&q->lock);
}
