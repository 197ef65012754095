/*
 * What the kinds of back end have in common: the worker thread and the frames that wait for room in
 * the guest. For the files of this folder only; the contract with devices is net.h.
 */
#ifndef RING3_BACK_NET_NETDEV_H
#define RING3_BACK_NET_NETDEV_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "back/net/net.h"

/* Bytes that may wait for room in the guest. More than one TCP window, since all connections share
 * it; what comes on top is dropped, and TCP slows down. */
#define NETDEV_WAITING_MAX (4u << 20)

/* What the worker sleeps on. Slot 0 is its own. */
struct netdev_poll {
    struct pollfd *fds;
    unsigned n, cap;
    int timeout; /* ms, -1 = none */
};

struct netdev_ops {
    /* Sends; contract of netdev_send. */
    void (*send)(struct netdev *n, unsigned queue, const struct net_hdr *h, const struct iovec *iov,
                 unsigned niov);
    /* Offloads or queues changed; the worker is stopped, or calls this. NULL: nothing to do. */
    void (*configure)(struct netdev *n);
    /* In the worker: what to wait for (netdev_poll_add, timeout), and dealing with it afterwards.
     * While frames wait (netdev_waiting) sources of more should be left alone. NULL: nothing. */
    void (*prepare)(struct netdev *n, struct netdev_poll *p);
    void (*handle)(struct netdev *n, const struct netdev_poll *p);
    void (*free)(struct netdev *n);
};

struct netdev_frame {
    struct netdev_frame *next;
    struct net_hdr h;
    unsigned queue;
    size_t len;
    uint8_t data[];
};

struct netdev {
    const struct netdev_ops *ops;
    struct netdev_info info;
    struct netdev_front front;
    unsigned offloads; /* NETDEV_* that the guest takes */
    unsigned queues;   /* pairs that it uses */
    struct log *log;

    /* Frames that wait for room, oldest first. The worker's. */
    struct netdev_frame *head, **tail;
    size_t waiting; /* bytes */

    pthread_t thread;
    int wake; /* eventfd */
    _Atomic bool kicked;
    struct netdev_poll poll;

    /* Guards the following. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool running; /* between netdev_start and netdev_stop */
    bool busy;    /* the worker is calling the front */
    bool quit;
};

/* Fills in the common part and starts the worker, stopped. On failure nothing is left of it.
 * netdev_free undoes it before it calls ops->free, which then finds no worker. */
int netdev_init(struct netdev *n, const struct netdev_ops *ops, const struct netdev_cfg *cfg,
                uint16_t mtu, struct log *log, struct err *e);

/* What netdev_open chooses from; contract as there. */
int none_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e);
int user_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e);
int tap_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e);

/* Adds a descriptor to what the worker waits for; its slot, or -1 when memory is short. */
int netdev_poll_add(struct netdev_poll *p, int fd, short events);

/* Hands a frame to the guest, or keeps a copy until there is room. */
void netdev_deliver(struct netdev *n, unsigned queue, const struct net_hdr *h,
                    const struct iovec *iov, unsigned niov);

static inline size_t netdev_iov_len(const struct iovec *iov, unsigned niov)
{
    size_t len = 0;

    for (unsigned i = 0; i < niov; i++)
        len += iov[i].iov_len;
    return len;
}

/* Copies up to `size` bytes together. */
size_t netdev_gather(void *buf, size_t size, const struct iovec *iov, unsigned niov);

static inline bool netdev_waiting(const struct netdev *n) { return n->head != NULL; }

#endif
