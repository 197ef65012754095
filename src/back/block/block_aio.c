/*
 * The lists and the sleep of the I/O thread. What the pool finished arrives on a stack that its
 * threads push to and the I/O thread takes whole; what completed otherwise, on a plain list.
 */
#include "back/block/block_aio.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "back/block/block_aio_priv.h"
#include "back/block/block_pool.h"
#include "base/util.h"

/* Is the I/O thread asleep, and has it been told to wake? */
enum { AWAKE, ASLEEP, WOKEN };

struct block_aio {
    enum block_aio_kind kind;
    struct block_uring *uring; /* NULL: another engine */
    struct block_pool *pool;   /* NULL: sync */
    int wake_fd;               /* eventfd, written to end a sleep */
    _Atomic int state;
    struct block_work *_Atomic finished; /* newest first */
    struct block_req *head, **tail;      /* completed */
};

static void pool_finished(void *arg, struct block_work *w)
{
    struct block_aio *a = arg;
    struct block_work *old = atomic_load_explicit(&a->finished, memory_order_relaxed);

    do {
        w->next = old;
    } while (!atomic_compare_exchange_weak(&a->finished, &old, w));
    /* Who pushes to a stack that is not empty knows that another is waking the thread. */
    if (!old)
        block_aio_wake(a);
}

/* A file that grows beyond the process's limit is an error for the guest, not our end. */
static void ignore_sigxfsz(void)
{
    struct sigaction sa;

    if (sigaction(SIGXFSZ, NULL, &sa) == 0 && !(sa.sa_flags & SA_SIGINFO) &&
        sa.sa_handler == SIG_DFL) {
        sa.sa_handler = SIG_IGN;
        sigaction(SIGXFSZ, &sa, NULL);
    }
}

int block_aio_new(struct block_aio **out, enum block_aio_kind kind, struct err *e)
{
    struct block_aio *a = calloc(1, sizeof(*a));
    int rc;

    if (!a)
        return err_set(e, ENOMEM, "no memory for disk I/O");
    ignore_sigxfsz();
    a->tail = &a->head;
    a->kind = kind;
    a->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (a->wake_fd < 0) {
        rc = err_sys(e, "cannot create an eventfd for disk I/O");
        goto out_free;
    }
    if (kind == BLOCK_AIO_URING && block_uring_new(&a->uring, a->wake_fd))
        a->kind = BLOCK_AIO_THREADS;
    if (kind != BLOCK_AIO_SYNC) {
        rc = block_pool_new(&a->pool, pool_finished, a, e);
        if (rc)
            goto out_uring;
    }
    *out = a;
    return 0;

out_uring:
    block_uring_free(a->uring);
    close(a->wake_fd);
out_free:
    free(a);
    return rc;
}

void block_aio_free(struct block_aio *a)
{
    if (!a)
        return;
    block_pool_free(a->pool);
    assert(!a->head && !a->finished);
    block_uring_free(a->uring);
    close(a->wake_fd);
    free(a);
}

enum block_aio_kind block_aio_kind(const struct block_aio *a) { return a->kind; }

struct block_uring *block_aio_uring(struct block_aio *a) { return a->uring; }

void block_aio_flush(struct block_aio *a)
{
    if (a->uring)
        block_uring_flush(a->uring);
}

void block_aio_complete(struct block_aio *a, struct block_req *r, int rc)
{
    r->rc = rc;
    r->next = NULL;
    *a->tail = r;
    a->tail = &r->next;
}

void block_aio_work(struct block_aio *a, struct block_work *w)
{
    if (a->pool) {
        block_pool_add(a->pool, w);
    } else {
        w->run(w);
        pool_finished(a, w);
    }
}

static void take_finished(struct block_aio *a)
{
    struct block_work *w = NULL, *newest;

    if (!atomic_load_explicit(&a->finished, memory_order_relaxed))
        return;
    newest = atomic_exchange(&a->finished, NULL);
    while (newest) { /* oldest first */
        struct block_work *next = newest->next;

        newest->next = w;
        w = newest;
        newest = next;
    }
    while (w) {
        struct block_work *next = w->next;

        w->done(w);
        w = next;
    }
}

void block_aio_poll(struct block_aio *a)
{
    struct block_req *r;

    if (a->uring)
        block_uring_reap(a->uring, block_file_finished);
    take_finished(a);
    r = a->head;
    a->head = NULL;
    a->tail = &a->head;
    while (r) {
        struct block_req *next = r->next;
        int rc = r->rc;

        if (r->tracked)
            block_file_untrack(r);
        if (r->finish)
            r->finish(r, rc);
        else
            r->done(r, rc);
        r = next;
    }
}

/* Until wake_fd is written or the deadline. */
static void sleep_on_eventfd(struct block_aio *a, uint64_t deadline)
{
    struct pollfd pfd = {.fd = a->wake_fd, .events = POLLIN};
    struct timespec now, left;
    uint64_t ns;

    if (deadline != UINT64_MAX) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
        ns = deadline > ns ? deadline - ns : 0;
        left = (struct timespec){.tv_sec = (time_t)(ns / 1000000000u),
                                 .tv_nsec = (long)(ns % 1000000000u)};
    }
    if (ppoll(&pfd, 1, deadline == UINT64_MAX ? NULL : &left, NULL) == 1) {
        uint64_t count;
        ssize_t n = read(a->wake_fd, &count, sizeof(count));

        (void)n; /* readable, and we are the only reader */
    }
}

bool block_aio_wait(struct block_aio *a, uint64_t deadline)
{
    int state = AWAKE;

    if (a->head)
        return false;
    if (atomic_compare_exchange_strong(&a->state, &state, ASLEEP)) {
        if (a->uring)
            block_uring_wait(a->uring, deadline);
        else
            sleep_on_eventfd(a, deadline);
    }
    return atomic_exchange(&a->state, AWAKE) == WOKEN;
}

void block_aio_wake(struct block_aio *a)
{
    uint64_t one = 1;
    int saved = errno;

    if (atomic_exchange(&a->state, WOKEN) == ASLEEP) {
        ssize_t n = write(a->wake_fd, &one, sizeof(one));

        (void)n; /* fails only when the counter is full, and then the thread wakes anyway */
    }
    errno = saved;
}
