/*
 * A tap interface of the host (Linux Documentation/networking/tuntap.rst). The kernel understands
 * the same header beside each frame as the guest does, so offloads pass through; it checks what the
 * guest writes there. With several queue pairs each is a descriptor of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "back/net/netdev.h"
#include "base/util.h"

#define IOV_MAX_SEND 1024u /* the kernel takes no more */
#define BATCH 64u          /* frames read before the guest is told */

struct tap {
    struct netdev n;
    unsigned nfds;
    int fd[NET_QUEUES_MAX];
    int slot[NET_QUEUES_MAX]; /* in what the worker waits for, -1 = not there */
    bool gone;                /* somebody deleted the interface */
    uint8_t frame[NET_FRAME_MAX];
};

static struct tap *from_netdev(struct netdev *n) { return container_of(n, struct tap, n); }

/* A write fails when the interface is down or what the guest wrote makes no sense: the frame is
 * lost. */
static void tap_send(struct netdev *n, unsigned queue, const struct net_hdr *h,
                     const struct iovec *iov, unsigned niov)
{
    struct tap *t = from_netdev(n);
    struct iovec v[IOV_MAX_SEND];
    ssize_t done;

    if (niov > IOV_MAX_SEND - 1 || queue >= t->nfds)
        return;
    v[0] = (struct iovec){(void *)h, sizeof(*h)};
    memcpy(v + 1, iov, niov * sizeof(*iov));
    do
        done = writev(t->fd[queue], v, (int)niov + 1);
    while (done < 0 && errno == EINTR);
}

static void receive(struct tap *t, unsigned queue)
{
    for (unsigned i = 0; i < BATCH && !netdev_waiting(&t->n) && !t->gone; i++) {
        struct net_hdr h;
        struct iovec v[2] = {{&h, sizeof(h)}, {t->frame, sizeof(t->frame)}};
        ssize_t len = readv(t->fd[queue], v, 2);

        if (len < 0 && errno == EBADFD) {
            log_msg(t->n.log, LOG_WARN, "net: the tap interface is gone");
            t->gone = true;
        }
        if (len < (ssize_t)(sizeof(h) + NET_ETH_HLEN))
            return;
        v[1].iov_len = (size_t)len - sizeof(h);
        netdev_deliver(&t->n, queue, &h, v + 1, 1);
    }
}

static void tap_prepare(struct netdev *n, struct netdev_poll *p)
{
    struct tap *t = from_netdev(n);

    for (unsigned i = 0; i < t->nfds; i++)
        t->slot[i] = netdev_waiting(n) || i >= n->queues || t->gone
                         ? -1
                         : netdev_poll_add(p, t->fd[i], POLLIN);
}

static void tap_handle(struct netdev *n, const struct netdev_poll *p)
{
    struct tap *t = from_netdev(n);

    for (unsigned i = 0; i < t->nfds; i++) {
        if (t->slot[i] >= 0 && p->fds[t->slot[i]].revents)
            receive(t, i);
        t->slot[i] = -1;
    }
}

/* An interface that cannot do what it once could leaves the guest with checksums to verify. */
static void tap_configure(struct netdev *n)
{
    struct tap *t = from_netdev(n);
    unsigned long flags = 0;

    if (n->offloads & NETDEV_CSUM)
        flags |= TUN_F_CSUM;
    if (n->offloads & NETDEV_TSO4)
        flags |= TUN_F_TSO4;
    if (n->offloads & NETDEV_TSO6)
        flags |= TUN_F_TSO6;
    if (n->offloads & NETDEV_ECN)
        flags |= TUN_F_TSO_ECN;
    if (ioctl(t->fd[0], TUNSETOFFLOAD, flags) < 0)
        log_msg(n->log, LOG_WARN, "net: tap: cannot set offloads: %s", strerror(errno));
    for (unsigned i = 1; i < t->nfds; i++) {
        struct ifreq r = {.ifr_flags = i < n->queues ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

        ioctl(t->fd[i], TUNSETQUEUE, &r); /* fails when it is so already */
    }
}

static void close_fds(struct tap *t)
{
    for (unsigned i = 0; i < t->nfds; i++)
        close(t->fd[i]);
}

static void tap_free(struct netdev *n)
{
    struct tap *t = from_netdev(n);

    close_fds(t);
    free(t);
}

static const struct netdev_ops tap_ops = {.send = tap_send,
                                          .configure = tap_configure,
                                          .prepare = tap_prepare,
                                          .handle = tap_handle,
                                          .free = tap_free};

/* ---- opening ---- */

static int attach_failed(const struct netdev_cfg *cfg, int why, struct err *e)
{
    const char *name = cfg->ifname, *many = cfg->queues > 1 ? " multi_queue" : "";

    switch (why) {
    case EPERM:
        return err_set(e, why,
                       "%s belongs to somebody else; have an administrator run: ip link del %s; "
                       "ip tuntap add dev %s mode tap%s user $USER; ip link set %s up",
                       name, name, name, many, name);
    case EBUSY:
        return err_set(e, why, "%s is in use by another program, or by another VM", name);
    case EINVAL:
        return err_set(e, why, "%s is no tap interface, or not one made %s multi_queue", name,
                       cfg->queues > 1 ? "with" : "without");
    default:
        return err_set(e, why, "%s: %s", name, strerror(why));
    }
}

static int open_queue(const struct netdev_cfg *cfg, int *out, struct err *e)
{
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    const int size = sizeof(struct net_hdr);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return err_sys(e, "cannot open /dev/net/tun (is the kernel module tun loaded?)");
    memcpy(r.ifr_name, cfg->ifname, strlen(cfg->ifname) + 1);
    if (cfg->queues > 1)
        r.ifr_flags |= IFF_MULTI_QUEUE;
    if (ioctl(fd, TUNSETIFF, &r) < 0)
        rc = attach_failed(cfg, errno, e);
    else if (ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
        rc = err_sys(e, "%s: cannot set the size of headers", cfg->ifname);
    else
        rc = 0;
    if (rc)
        close(fd);
    else
        *out = fd;
    return rc;
}

/* A question to the kernel about the interface, answered in *r, which begins as zeros. */
static int ask(const struct netdev_cfg *cfg, unsigned long what, struct ifreq *r)
{
    int rc, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    memcpy(r->ifr_name, cfg->ifname, strlen(cfg->ifname) + 1);
    rc = ioctl(fd, what, r) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

static int read_mtu(const struct netdev_cfg *cfg, uint16_t *mtu, struct err *e)
{
    struct ifreq r = {.ifr_flags = 0};
    int rc = ask(cfg, SIOCGIFMTU, &r);

    if (rc)
        return err_set(e, -rc, "%s: cannot read the MTU: %s", cfg->ifname, strerror(-rc));
    *mtu = (uint16_t)MAX(MIN(r.ifr_mtu, (int)NET_MTU_MAX), (int)NET_MTU_MIN);
    return 0;
}

static void warn_if_down(const struct netdev_cfg *cfg, struct log *log)
{
    struct ifreq r = {.ifr_flags = 0};

    if (ask(cfg, SIOCGIFFLAGS, &r) == 0 && !(r.ifr_flags & IFF_UP))
        log_msg(log, LOG_WARN, "net: %s is down; bring it up with: ip link set %s up", cfg->ifname,
                cfg->ifname);
}

int tap_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e)
{
    struct tap *t;
    uint16_t mtu = 0;
    int rc;

    if (strlen(cfg->ifname) >= IFNAMSIZ)
        return err_set(e, EINVAL, "'%s' is too long for the name of an interface", cfg->ifname);
    /* TUNSETIFF would make one that nobody has configured. */
    if (!if_nametoindex(cfg->ifname))
        return err_set(e, ENODEV,
                       "there is no interface %s; make it with: ip tuntap add dev %s mode tap%s "
                       "user $USER; ip link set %s up",
                       cfg->ifname, cfg->ifname, cfg->queues > 1 ? " multi_queue" : "",
                       cfg->ifname);
    rc = read_mtu(cfg, &mtu, e);
    if (rc)
        return rc;
    t = calloc(1, sizeof(*t));
    if (!t)
        return err_set(e, ENOMEM, "out of memory");
    for (; t->nfds < cfg->queues && !rc; t->nfds += !rc) {
        t->slot[t->nfds] = -1;
        rc = open_queue(cfg, &t->fd[t->nfds], e);
    }
    if (!rc)
        rc = netdev_init(&t->n, &tap_ops, cfg, cfg->mtu ? cfg->mtu : mtu, log, e);
    if (rc) {
        close_fds(t);
        free(t);
        return rc;
    }
    warn_if_down(cfg, log);
    *out = &t->n;
    return 0;
}
