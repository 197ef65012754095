/*
 * The event loop. Level-triggered epoll, an eventfd to wake it from outside, and a list of
 * registrations that epoll cannot watch because they are always ready. Registrations are freed at
 * the end of a round, since a round's events may still point to them.
 */
#include "base/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH 64

struct loop_fd {
    struct loop *loop;
    int fd;
    uint32_t events;
    void (*cb)(void *arg, uint32_t events);
    void *arg;
    bool always; /* epoll refused it */
    bool dead;   /* deleted in this round */
    struct loop_fd *next;
};

struct post {
    void (*fn)(void *arg);
    void *arg;
    struct post *next;
};

struct loop {
    int epoll, wake;
    atomic_bool stop;
    bool running;
    struct loop_fd *fds;
    pthread_mutex_t lock; /* guards the posts */
    struct post *posts, **last;
};

int loop_new(struct loop **out, struct err *e)
{
    struct loop *l = calloc(1, sizeof(*l));
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    int rc;

    if (!l)
        return err_set(e, ENOMEM, "no memory for the event loop");
    l->last = &l->posts;
    atomic_init(&l->stop, false);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l->epoll < 0) {
        rc = err_sys(e, "cannot create the event loop's epoll");
        goto out_free;
    }
    l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->wake < 0) {
        rc = err_sys(e, "cannot create the event loop's eventfd");
        goto out_epoll;
    }
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->wake, &ev) < 0) {
        rc = err_sys(e, "cannot watch the event loop's eventfd");
        goto out_wake;
    }
    pthread_mutex_init(&l->lock, NULL);
    *out = l;
    return 0;

out_wake:
    close(l->wake);
out_epoll:
    close(l->epoll);
out_free:
    free(l);
    return rc;
}

static struct post *take_posts(struct loop *l)
{
    struct post *p;

    pthread_mutex_lock(&l->lock);
    p = l->posts;
    l->posts = NULL;
    l->last = &l->posts;
    pthread_mutex_unlock(&l->lock);
    return p;
}

void loop_free(struct loop *l)
{
    if (!l)
        return;
    assert(!l->running);
    for (struct post *p = take_posts(l), *next; p; p = next) {
        next = p->next;
        free(p);
    }
    for (struct loop_fd *r = l->fds, *next; r; r = next) {
        next = r->next;
        free(r);
    }
    pthread_mutex_destroy(&l->lock);
    close(l->wake);
    close(l->epoll);
    free(l);
}

/* epoll reports hang-ups whatever is asked for. Of a registration that wants nothing that would be
 * an endless loop, so it is watched for edges only, which come once and are dropped. */
static uint32_t epoll_events(uint32_t events) { return events ? events : (uint32_t)EPOLLET; }

int loop_add(struct loop *l, int fd, uint32_t events, void (*cb)(void *arg, uint32_t events),
             void *arg, struct loop_fd **out, struct err *e)
{
    struct loop_fd *r = calloc(1, sizeof(*r));
    struct epoll_event ev = {.events = epoll_events(events), .data.ptr = r};

    if (!r)
        return err_set(e, ENOMEM, "no memory to watch a file descriptor");
    *r = (struct loop_fd){.loop = l, .fd = fd, .events = events, .cb = cb, .arg = arg};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
        if (errno != EPERM) {
            int rc = err_sys(e, "cannot watch file descriptor %d", fd);

            free(r);
            return rc;
        }
        r->always = true;
    }
    r->next = l->fds;
    l->fds = r;
    *out = r;
    return 0;
}

void loop_mod(struct loop_fd *r, uint32_t events)
{
    struct epoll_event ev = {.events = epoll_events(events), .data.ptr = r};

    if (r->events == events)
        return;
    r->events = events;
    if (!r->always)
        epoll_ctl(r->loop->epoll, EPOLL_CTL_MOD, r->fd, &ev);
}

static void free_dead(struct loop *l)
{
    struct loop_fd **p = &l->fds;

    while (*p) {
        struct loop_fd *r = *p;

        if (r->dead) {
            *p = r->next;
            free(r);
        } else {
            p = &r->next;
        }
    }
}

void loop_del(struct loop_fd *r)
{
    struct loop *l = r->loop;

    if (!r->always)
        epoll_ctl(l->epoll, EPOLL_CTL_DEL, r->fd, NULL);
    r->dead = true;
    if (!l->running)
        free_dead(l);
}

static void wake(struct loop *l)
{
    uint64_t one = 1;
    int saved = errno;
    ssize_t n;

    /* Fails only when the counter is full, and then the loop is about to wake anyway. */
    n = write(l->wake, &one, sizeof(one));
    (void)n;
    errno = saved;
}

int loop_post(struct loop *l, void (*fn)(void *arg), void *arg)
{
    struct post *p = malloc(sizeof(*p));

    if (!p)
        return -ENOMEM;
    *p = (struct post){.fn = fn, .arg = arg};
    pthread_mutex_lock(&l->lock);
    *l->last = p;
    l->last = &p->next;
    pthread_mutex_unlock(&l->lock);
    wake(l);
    return 0;
}

void loop_stop(struct loop *l)
{
    atomic_store(&l->stop, true);
    wake(l);
}

static void run_posts(struct loop *l)
{
    for (struct post *p = take_posts(l), *next; p; p = next) {
        next = p->next;
        p->fn(p->arg);
        free(p);
    }
}

/* What an always-ready registration is told now, 0 if it wants nothing. */
static uint32_t always_ready(const struct loop_fd *r)
{
    return r->always && !r->dead ? r->events & (EPOLLIN | EPOLLOUT) : 0;
}

static void dispatch(struct loop *l, const struct epoll_event *ev, int n)
{
    for (int i = 0; i < n; i++) {
        struct loop_fd *r = ev[i].data.ptr;

        if (!r) {
            uint64_t count;
            ssize_t rc = read(l->wake, &count, sizeof(count));

            (void)rc; /* a second reader does not exist, and an empty counter would not matter */
        } else if (!r->dead && r->events) {
            /* An earlier callback of this round may have changed what it wants. */
            uint32_t got = ev[i].events & (r->events | EPOLLERR | EPOLLHUP);

            if (got)
                r->cb(r->arg, got);
        }
    }
    for (struct loop_fd *r = l->fds; r; r = r->next) {
        uint32_t got = always_ready(r);

        if (got)
            r->cb(r->arg, got);
    }
}

int loop_run(struct loop *l, struct err *e)
{
    struct epoll_event ev[BATCH];
    int rc = 0;

    assert(!l->running);
    l->running = true;
    while (!atomic_exchange(&l->stop, false)) {
        int timeout = -1, n;

        for (struct loop_fd *r = l->fds; r; r = r->next)
            if (always_ready(r))
                timeout = 0;
        n = epoll_wait(l->epoll, ev, BATCH, timeout);
        if (n < 0 && errno != EINTR) {
            rc = err_sys(e, "the event loop cannot wait");
            break;
        }
        dispatch(l, ev, n);
        run_posts(l);
        free_dead(l);
    }
    /* What another thread posted before it stopped us, after the last round looked. */
    run_posts(l);
    l->running = false;
    free_dead(l);
    return rc;
}
