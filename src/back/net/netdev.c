#include "back/net/netdev.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/util.h"

#define STACK_SIZE (512 * KIB) /* libslirp keeps a 64 KiB packet on it */

/* ---- frames that wait ---- */

static void drop_waiting(struct netdev *n)
{
    while (n->head) {
        struct netdev_frame *f = n->head;

        n->head = f->next;
        free(f);
    }
    n->tail = &n->head;
    n->waiting = 0;
}

size_t netdev_gather(void *buf, size_t size, const struct iovec *iov, unsigned niov)
{
    size_t len = 0;

    for (unsigned i = 0; i < niov; i++) {
        size_t part = MIN(iov[i].iov_len, size - len);

        memcpy((uint8_t *)buf + len, iov[i].iov_base, part);
        len += part;
    }
    return len;
}

static void keep(struct netdev *n, unsigned queue, const struct net_hdr *h, const struct iovec *iov,
                 unsigned niov)
{
    size_t len = netdev_iov_len(iov, niov);
    struct netdev_frame *f;

    if (n->waiting + len > NETDEV_WAITING_MAX)
        return;
    f = malloc(sizeof(*f) + len);
    if (!f)
        return; /* a frame lost, as on any wire */
    f->next = NULL;
    f->h = *h;
    f->queue = queue;
    f->len = len;
    netdev_gather(f->data, len, iov, niov);
    *n->tail = f;
    n->tail = &f->next;
    n->waiting += len;
}

static void deliver_waiting(struct netdev *n)
{
    while (n->head) {
        struct netdev_frame *f = n->head;
        const struct iovec iov = {f->data, f->len};

        if (!n->front.receive(n->front.arg, f->queue, &f->h, &iov, 1))
            return;
        n->head = f->next;
        if (!n->head)
            n->tail = &n->head;
        n->waiting -= f->len;
        free(f);
    }
}

void netdev_deliver(struct netdev *n, unsigned queue, const struct net_hdr *h,
                    const struct iovec *iov, unsigned niov)
{
    if (n->head || !n->front.receive(n->front.arg, queue, h, iov, niov))
        keep(n, queue, h, iov, niov);
}

/* ---- the worker ---- */

int netdev_poll_add(struct netdev_poll *p, int fd, short events)
{
    if (p->n == p->cap) {
        unsigned cap = p->cap ? 2 * p->cap : 16;
        struct pollfd *fds = realloc(p->fds, cap * sizeof(*fds));

        if (!fds)
            return -1;
        p->fds = fds;
        p->cap = cap;
    }
    p->fds[p->n] = (struct pollfd){.fd = fd, .events = events};
    return (int)p->n++;
}

/* Waits until the worker may call the front; false when it must end. */
static bool enter(struct netdev *n)
{
    bool go;

    pthread_mutex_lock(&n->lock);
    while (!n->running && !n->quit)
        pthread_cond_wait(&n->changed, &n->lock);
    go = !n->quit;
    n->busy = go;
    pthread_mutex_unlock(&n->lock);
    return go;
}

static void leave(struct netdev *n)
{
    pthread_mutex_lock(&n->lock);
    n->busy = false;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->lock);
}

static void work(struct netdev *n)
{
    if (atomic_exchange(&n->kicked, false)) {
        deliver_waiting(n);
        n->front.transmit(n->front.arg);
    }
    if (n->ops->handle)
        n->ops->handle(n, &n->poll);
    n->front.flush(n->front.arg);
    n->poll.n = 1;
    n->poll.timeout = atomic_load(&n->kicked) ? 0 : -1;
    if (n->ops->prepare)
        n->ops->prepare(n, &n->poll);
}

static void *worker(void *arg)
{
    struct netdev *n = arg;
    eventfd_t count;

    while (enter(n)) {
        work(n);
        leave(n);
        if (poll(n->poll.fds, n->poll.n, n->poll.timeout) < 0) {
            for (unsigned i = 0; i < n->poll.n; i++)
                n->poll.fds[i].revents = 0;
        }
        if (n->poll.fds[0].revents)
            eventfd_read(n->wake, &count);
    }
    return NULL;
}

static void wake(struct netdev *n) { eventfd_write(n->wake, 1); }

void netdev_kick(struct netdev *n)
{
    if (!atomic_exchange(&n->kicked, true))
        wake(n);
}

void netdev_start(struct netdev *n)
{
    atomic_store(&n->kicked, true);
    pthread_mutex_lock(&n->lock);
    n->running = true;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->lock);
    wake(n);
}

void netdev_stop(struct netdev *n)
{
    pthread_mutex_lock(&n->lock);
    n->running = false;
    while (n->busy)
        pthread_cond_wait(&n->changed, &n->lock);
    pthread_mutex_unlock(&n->lock);
}

/* Signals are for the main thread. */
static int start_thread(struct netdev *n, struct err *e)
{
    sigset_t all, old;
    pthread_attr_t attr;
    int rc = pthread_attr_init(&attr);

    if (!rc) {
        pthread_attr_setstacksize(&attr, STACK_SIZE);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = pthread_create(&n->thread, &attr, worker, n);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        pthread_attr_destroy(&attr);
    }
    if (rc)
        return err_set(e, rc, "cannot start a thread: %s", strerror(rc));
    pthread_setname_np(n->thread, "net");
    return 0;
}

/* ---- common ---- */

static bool front_receive(void *arg, unsigned queue, const struct net_hdr *h,
                          const struct iovec *iov, unsigned niov)
{
    return true;
}

static void front_nothing(void *arg) {}

/* While no device is attached. */
static const struct netdev_front no_front = {
    .receive = front_receive, .transmit = front_nothing, .flush = front_nothing};

static void fini(struct netdev *n)
{
    drop_waiting(n);
    if (n->wake >= 0)
        close(n->wake);
    free(n->poll.fds);
    pthread_cond_destroy(&n->changed);
    pthread_mutex_destroy(&n->lock);
}

int netdev_init(struct netdev *n, const struct netdev_ops *ops, const struct netdev_cfg *cfg,
                uint16_t mtu, struct log *log, struct err *e)
{
    int rc;

    n->ops = ops;
    n->front = no_front;
    n->log = log;
    n->queues = 1;
    n->tail = &n->head;
    n->info = (struct netdev_info){.mtu = mtu, .link = true, .queues = cfg->queues};
    memcpy(n->info.mac, cfg->mac, NET_MAC_LEN);
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->changed, NULL);
    n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (n->wake < 0)
        rc = err_sys(e, "cannot create an eventfd");
    else if (netdev_poll_add(&n->poll, n->wake, POLLIN) < 0)
        rc = err_set(e, ENOMEM, "out of memory");
    else
        rc = start_thread(n, e);
    if (rc)
        fini(n);
    return rc;
}

int netdev_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e)
{
    static int (*const open[])(struct netdev **, const struct netdev_cfg *, struct log *,
                               struct err *) = {
        [NETDEV_NONE] = none_open, [NETDEV_USER] = user_open, [NETDEV_TAP] = tap_open};

    return open[cfg->kind](out, cfg, log, e);
}

void netdev_free(struct netdev *n)
{
    if (!n)
        return;
    pthread_mutex_lock(&n->lock);
    n->quit = true;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->lock);
    wake(n);
    pthread_join(n->thread, NULL);
    fini(n);
    n->ops->free(n);
}

const struct netdev_info *netdev_info(const struct netdev *n) { return &n->info; }

void netdev_attach(struct netdev *n, const struct netdev_front *front)
{
    n->front = front ? *front : no_front;
}

void netdev_set_offloads(struct netdev *n, unsigned offloads)
{
    n->offloads = offloads;
    drop_waiting(n); /* they may be of a kind that is not allowed any more */
    if (n->ops->configure)
        n->ops->configure(n);
}

void netdev_set_queues(struct netdev *n, unsigned queues)
{
    if (n->queues == queues)
        return;
    n->queues = queues;
    if (n->ops->configure)
        n->ops->configure(n);
}

void netdev_send(struct netdev *n, unsigned queue, const struct net_hdr *h, const struct iovec *iov,
                 unsigned niov)
{
    n->ops->send(n, queue, h, iov, niov);
}
