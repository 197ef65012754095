/*
 * User-mode networking: libslirp terminates the guest's TCP, UDP and ICMP in the host's sockets.
 *
 * libslirp moves a TCP stream in segments, and each costs it, and much more so the guest, about the
 * same whatever its length. So it is told of a link that takes far larger ones than the guest's
 * does. What the guest sends with segmentation offload goes in whole; what libslirp sends reaches
 * the guest as a single frame if it takes those, or cut to size.
 *
 * libslirp keeps the time and the addresses of the host's DNS servers in globals. All of our
 * instances set them to the same values, from the same clock and file.
 */
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "back/net/netdev.h"
#include "back/net/segment.h"
#include "back/net/user_cfg.h"
#include "base/util.h"

#define NS_PER_MS 1000000
#define TCP_WINDOW 65535u /* libslirp knows no window scaling */
#define TCP_MSS_MIN 88u
#define MTU_MIN 576u   /* what every IPv4 host takes */
#define MTU_MAX 16000u /* for large_mss to make sense */
#define PREFIX_MIN 8u  /* of the guest's network: */
#define PREFIX_MAX 27u /* DHCP gives 16 addresses from .15 on */
#define FLOWS 256u
#define HOST6 2 /* last numbers of addresses in the guest's IPv6 network */
#define DNS6 3
#define IP6_DST 24 /* offset in the header */
#define ICMP6_ECHO 128

struct user_timer {
    struct user_timer *next;
    SlirpTimerCb fn;
    void *arg;
    int64_t ms; /* when it is due, -1: never */
};

struct user {
    struct netdev n;
    Slirp *slirp;
    struct user_timer *timers;
    struct log_limit errors;
    uint32_t fragment_id;
    uint16_t mss[2];     /* IPv4, IPv6: TCP data in one of the guest's packets at most */
    uint8_t flow[FLOWS]; /* queue pair that the guest used last, by hash */
    /* A frame from the guest; one from libslirp that must be cut; a piece of either. */
    uint8_t tx[NET_FRAME_MAX], rx[NET_FRAME_MAX], piece[NET_FRAME_MAX];
};

static struct user *from_netdev(struct netdev *n) { return container_of(n, struct user, n); }

/* In the guest's IPv6 network. */
static struct in6_addr in6(uint8_t last)
{
    return (struct in6_addr){.s6_addr = {0xfe, 0xc0, [15] = last}};
}

/* ---- flows ---- */

/* The same for both directions. */
static uint8_t *flow(struct user *u, const struct packet *p)
{
    const uint8_t *ports = p->data + p->l4;
    unsigned h = p->proto;

    if ((p->proto == PACKET_TCP || p->proto == PACKET_UDP) && !p->fragment)
        h += packet_get16(ports) + packet_get16(ports + 2);
    return &u->flow[(h ^ h >> 8) % FLOWS];
}

/* Where to put a frame for the guest: the pair that it sends this flow's on (virtio 1.2
 * §5.1.6.5.5). */
static unsigned steer(struct user *u, const struct packet *p)
{
    unsigned queue = u->n.queues > 1 ? *flow(u, p) : 0;

    return queue < u->n.queues ? queue : 0;
}

/* The largest segment that fits a link. */
static unsigned link_mss(unsigned mtu, unsigned ip) { return mtu - (ip == 4 ? 40 : 60); }

/* The guest's peers, and it is the router of them perhaps, may take less than its link. We do not
 * know whose a segment is, for libslirp forgets what the peer asked for if its own connection takes
 * time; so the smallest that was ever asked for is the largest for all. */
static uint16_t *peer_mss(struct user *u, const struct packet *p) { return &u->mss[p->ip == 6]; }

static bool takes_large(const struct user *u, const struct packet *p)
{
    return u->n.offloads & (p->ip == 4 ? NETDEV_TSO4 : NETDEV_TSO6);
}

/* ---- from the guest ---- */

static void input(struct user *u, const uint8_t *frame, size_t len)
{
    slirp_input(u->slirp, frame, (int)len);
}

static void input_packet(void *arg, struct packet *p) { input(arg, p->data, p->len); }

/* Data that libslirp may send at once, to a guest with this MTU: a multiple of what fits a packet,
 * and not so much that a window in which less than one packet is left would need no update (RFC
 * 9293 §3.8.6.2.2: libslirp sends one for two of its segments). */
static unsigned large_mss(unsigned mtu)
{
    unsigned mss = link_mss(mtu, 4);

    return (TCP_WINDOW - mss) / 2 / mss * mss;
}

static unsigned slirp_mtu(unsigned mtu) { return large_mss(mtu) + 40; }

/* The guest says what it takes; libslirp hears that it is much. */
static void note_mss(struct user *u, struct packet *p)
{
    uint16_t mss = packet_mss(p, 0);

    if (!mss)
        return;
    *peer_mss(u, p) = MAX(MIN(*peer_mss(u, p), mss), TCP_MSS_MIN);
    if (takes_large(u, p))
        packet_mss(p, (uint16_t)link_mss(slirp_mtu(u->n.info.mtu), p->ip));
}

/* A frame that the guest left to us to cut. */
static void input_large(struct user *u, const struct net_hdr *h, size_t len)
{
    unsigned ip = (h->gso_type & ~NET_GSO_ECN) == NET_GSO_TCPV4 ? 4 : 6;
    unsigned most = slirp_mtu(u->n.info.mtu);
    struct packet p;

    if (!packet_parse(&p, u->tx, len, false) || p.ip != ip || p.proto != PACKET_TCP || p.fragment ||
        h->gso_size == 0 || !(h->flags & NET_HDR_NEEDS_CSUM))
        return;
    /* In IPv6 packets it takes no more than it would send. */
    if (p.len - p.l3 > (ip == 4 ? UINT16_MAX : most)) {
        segment_tcp(&p, most - (p.body - p.l3), u->piece, input_packet, u);
        return;
    }
    packet_set_length(&p);
    packet_checksum(&p);
    input(u, p.data, p.len);
}

/* The checksum that the guest left to us. False if it would be outside of the frame. */
static bool complete_checksum(struct user *u, const struct net_hdr *h, size_t len)
{
    size_t at = (size_t)h->csum_start + h->csum_offset;
    uint16_t sum;

    if (!(h->flags & NET_HDR_NEEDS_CSUM))
        return true;
    if (at + sizeof(sum) > len)
        return false;
    sum = packet_fold(packet_sum(u->tx + h->csum_start, len - h->csum_start));
    /* Zero and its complement mean the same, except in UDP, where zero means none. */
    sum = sum ? sum : 0xffff;
    memcpy(u->tx + at, &sum, sizeof(sum));
    return true;
}

/* libslirp answers these for its own two addresses and tells the world, on standard error, that it
 * does not forward others; which a guest may send at any rate. */
static bool foreign_ping6(const struct packet *p)
{
    const uint8_t *to = p->data + p->l3 + IP6_DST;
    const struct in6_addr host = in6(HOST6), dns = in6(DNS6);

    return p->ip == 6 && p->proto == IPPROTO_ICMPV6 && p->len > p->l4 &&
           p->data[p->l4] == ICMP6_ECHO && memcmp(to, &host, sizeof(host)) != 0 &&
           memcmp(to, &dns, sizeof(dns)) != 0;
}

static void user_send(struct netdev *n, unsigned queue, const struct net_hdr *h,
                      const struct iovec *iov, unsigned niov)
{
    struct user *u = from_netdev(n);
    size_t len = netdev_iov_len(iov, niov);
    uint8_t gso = h->gso_type & (uint8_t)~NET_GSO_ECN;
    struct packet p;

    if (len < NET_ETH_HLEN || len > sizeof(u->tx))
        return;
    netdev_gather(u->tx, sizeof(u->tx), iov, niov);
    if (gso == NET_GSO_TCPV4 || gso == NET_GSO_TCPV6) {
        input_large(u, h, len);
        return;
    }
    if (h->gso_type != NET_GSO_NONE || !complete_checksum(u, h, len))
        return;
    if (packet_parse(&p, u->tx, len, true)) {
        if (foreign_ping6(&p))
            return;
        note_mss(u, &p);
        if (n->queues > 1)
            *flow(u, &p) = (uint8_t)queue;
    }
    input(u, u->tx, len);
}

/* ---- to the guest ---- */

static void output(struct user *u, unsigned queue, const struct iovec *iov, unsigned niov,
                   bool checked)
{
    const struct net_hdr h = {.flags =
                                  checked && u->n.offloads & NETDEV_CSUM ? NET_HDR_DATA_VALID : 0};

    netdev_deliver(&u->n, queue, &h, iov, niov);
}

static void output_packet(void *arg, struct packet *p)
{
    struct user *u = arg;
    const struct iovec iov = {p->data, p->len};

    output(u, steer(u, p), &iov, 1, !p->fragment);
}

/* A frame larger than fits, whose headers are in p->data: as a whole, if the guest wants it, or in
 * pieces. */
static void output_large(struct user *u, struct packet *p, const uint8_t *frame)
{
    bool tcp = p->proto == PACKET_TCP && !p->fragment;
    uint16_t sum;

    if (tcp && takes_large(u, p)) {
        const struct iovec iov[2] = {{p->data, p->body},
                                     {(void *)(frame + p->body), p->len - p->body}};
        const struct net_hdr h = {.flags = NET_HDR_NEEDS_CSUM,
                                  .gso_type = p->ip == 4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6,
                                  .hdr_len = (uint16_t)p->body,
                                  .gso_size = *peer_mss(u, p),
                                  .csum_start = (uint16_t)p->l4,
                                  .csum_offset = PACKET_TCP_SUM};

        /* The sum of the pseudo header, not inverted, is where the guest's begins. */
        sum = (uint16_t)~packet_fold(packet_pseudo(p));
        memcpy(p->data + p->l4 + PACKET_TCP_SUM, &sum, sizeof(sum));
        netdev_deliver(&u->n, steer(u, p), &h, iov, 2);
        return;
    }
    memcpy(u->rx, frame, p->len);
    p->data = u->rx;
    if (tcp)
        segment_tcp(p, *peer_mss(u, p), u->piece, output_packet, u);
    else
        segment_fragments(p, u->n.info.mtu, u->fragment_id++, u->piece, output_packet, u);
}

static bool fits(struct user *u, const struct packet *p)
{
    bool tcp = p->proto == PACKET_TCP && !p->fragment;

    return p->len - p->l3 <= u->n.info.mtu && (!tcp || p->len - p->body <= *peer_mss(u, p));
}

static ssize_t on_packet(const void *frame, size_t len, void *arg)
{
    struct user *u = arg;
    uint8_t headers[PACKET_HEADERS];
    struct packet p;

    if (len > NET_FRAME_MAX)
        return (ssize_t)len;
    memcpy(headers, frame, MIN(len, sizeof(headers)));
    if (!packet_parse(&p, headers, len, true)) {
        const struct iovec iov = {(void *)frame, len};

        output(u, 0, &iov, 1, false);
    } else if (!fits(u, &p)) {
        output_large(u, &p, frame);
    } else {
        const struct iovec iov[2] = {{headers, p.body}, {(uint8_t *)frame + p.body, len - p.body}};
        unsigned mss = link_mss(u->n.info.mtu, p.ip);

        if (packet_mss(&p, 0) > mss)
            packet_mss(&p, (uint16_t)mss);
        output(u, steer(u, &p), iov, 2, !p.fragment);
    }
    return (ssize_t)len;
}

/* ---- libslirp's other wishes ---- */

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int64_t on_clock(void *arg) { return now_ns(); }

static void on_guest_error(const char *msg, void *arg)
{
    struct user *u = arg;

    log_limited(u->n.log, &u->errors, LOG_DEBUG, "net: %s", msg);
}

static void *on_timer_new(SlirpTimerCb fn, void *cb_arg, void *arg)
{
    struct user *u = arg;
    struct user_timer *t = calloc(1, sizeof(*t));

    if (!t)
        abort(); /* as libslirp does when it has no memory */
    *t = (struct user_timer){.next = u->timers, .fn = fn, .arg = cb_arg, .ms = -1};
    u->timers = t;
    return t;
}

static void on_timer_free(void *timer, void *arg)
{
    struct user *u = arg;
    struct user_timer **p = &u->timers;

    while (*p != timer)
        p = &(*p)->next;
    *p = (*p)->next;
    free(timer);
}

static void on_timer_mod(void *timer, int64_t ms, void *arg)
{
    ((struct user_timer *)timer)->ms = ms;
}

static void on_fd(int fd, void *arg) {}

static void on_notify(void *arg) { netdev_kick(&((struct user *)arg)->n); }

static const SlirpCb callbacks = {
    .send_packet = on_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .timer_new = on_timer_new,
    .timer_free = on_timer_free,
    .timer_mod = on_timer_mod,
    .register_poll_fd = on_fd,
    .unregister_poll_fd = on_fd,
    .notify = on_notify,
};

/* ---- the worker ---- */

static const struct {
    int slirp;
    short poll;
} events[] = {
    {SLIRP_POLL_IN, POLLIN},   {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI},
    {SLIRP_POLL_ERR, POLLERR}, {SLIRP_POLL_HUP, POLLHUP},
};

/* While the guest has no room, data waits where it came from. */
static int on_add_poll(int fd, int want, void *arg)
{
    struct user *u = arg;
    short mask = 0;

    if (netdev_waiting(&u->n))
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(events); i++)
        mask |= want & events[i].slirp ? events[i].poll : 0;
    return netdev_poll_add(&u->n.poll, fd, mask);
}

static int on_revents(int slot, void *arg)
{
    struct user *u = arg;
    int got = 0;

    for (size_t i = 0; i < ARRAY_LEN(events); i++)
        got |= u->n.poll.fds[slot].revents & events[i].poll ? events[i].slirp : 0;
    return got;
}

static void user_prepare(struct netdev *n, struct netdev_poll *p)
{
    struct user *u = from_netdev(n);
    int64_t now = now_ns() / NS_PER_MS;
    uint32_t ms = p->timeout < 0 ? UINT32_MAX : (uint32_t)p->timeout;

    slirp_pollfds_fill(u->slirp, &ms, on_add_poll, u);
    for (struct user_timer *t = u->timers; t; t = t->next) {
        if (t->ms >= 0 && t->ms - now < (int64_t)ms)
            ms = (uint32_t)MAX(t->ms - now, 0);
    }
    p->timeout = ms > INT32_MAX ? -1 : (int)ms;
}

static void user_handle(struct netdev *n, const struct netdev_poll *p)
{
    struct user *u = from_netdev(n);
    int64_t now = now_ns() / NS_PER_MS;

    slirp_pollfds_poll(u->slirp, false, on_revents, u);
    for (struct user_timer *t = u->timers, *next; t; t = next) {
        next = t->next;
        if (t->ms >= 0 && t->ms <= now) {
            t->ms = -1;
            t->fn(t->arg);
        }
    }
}

static void user_free(struct netdev *n)
{
    struct user *u = from_netdev(n);

    slirp_cleanup(u->slirp);
    free(u);
}

/* Another driver, another guest. */
static void user_configure(struct netdev *n)
{
    struct user *u = from_netdev(n);

    u->mss[0] = (uint16_t)link_mss(n->info.mtu, 4);
    u->mss[1] = (uint16_t)link_mss(n->info.mtu, 6);
}

static const struct netdev_ops user_ops = {.send = user_send,
                                           .configure = user_configure,
                                           .prepare = user_prepare,
                                           .handle = user_handle,
                                           .free = user_free};

/* ---- configuration ---- */

static struct in_addr in4(uint32_t a) { return (struct in_addr){.s_addr = htonl(a)}; }

static Slirp *make_slirp(struct user *u, const struct netdev_cfg *cfg, const struct user_cfg_net *w)
{
    const SlirpConfig c = {
        .version = 4,
        .restricted = cfg->restricted,
        .in_enabled = true,
        .vnetwork = in4(w->net),
        .vnetmask = in4(w->mask),
        .vhost = in4(w->host),
        .vdhcp_start = in4(w->dhcp),
        .vnameserver = in4(w->dns),
        .in6_enabled = true,
        .vprefix_addr6 = in6(0),
        .vprefix_len = 64,
        .vhost6 = in6(HOST6),
        .vnameserver6 = in6(DNS6),
        .vhostname = cfg->hostname,
        .if_mtu = slirp_mtu(u->n.info.mtu),
        .if_mru = slirp_mtu(u->n.info.mtu),
    };

    return slirp_new(&c, &callbacks, u);
}

int user_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e)
{
    struct user *u;
    struct user_cfg_net w = {0};
    int rc = user_cfg_net(&w, cfg, e);

    if (!rc && cfg->mtu && (cfg->mtu < MTU_MIN || cfg->mtu > MTU_MAX))
        rc = err_set(e, EINVAL, "mtu: user networking takes %u to %u", MTU_MIN, MTU_MAX);
    if (rc)
        return rc;
    u = calloc(1, sizeof(*u));
    if (!u)
        return err_set(e, ENOMEM, "out of memory");
    rc = netdev_init(&u->n, &user_ops, cfg, cfg->mtu ? cfg->mtu : NET_MTU_DEFAULT, log, e);
    if (rc) {
        free(u);
        return rc;
    }
    user_configure(&u->n);
    u->slirp = make_slirp(u, cfg, &w);
    for (unsigned i = 0; i < cfg->nfwd && !rc; i++)
        rc = user_cfg_forward(u->slirp, &cfg->fwd[i], e);
    if (rc) {
        netdev_free(&u->n);
        return rc;
    }
    *out = &u->n;
    return 0;
}
