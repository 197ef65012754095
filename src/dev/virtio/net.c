#include "dev/virtio/net.h"

#include <string.h>

#include "base/util.h"
#include "dev/virtio/net_ctrl.h"

#define CLASS_ETHERNET 0x0200
#define QUEUE_SIZE 256
#define BATCH 64u /* chains taken from a queue before the other direction gets its turn */

/* Feature bits (§5.1.3). */
enum {
    NET_F_CSUM = 0,
    NET_F_GUEST_CSUM = 1,
    NET_F_MTU = 3,
    NET_F_MAC = 5,
    NET_F_GUEST_TSO4 = 7,
    NET_F_GUEST_TSO6 = 8,
    NET_F_GUEST_ECN = 9,
    NET_F_HOST_TSO4 = 11,
    NET_F_HOST_TSO6 = 12,
    NET_F_HOST_ECN = 13,
    NET_F_MRG_RXBUF = 15,
    NET_F_STATUS = 16,
    NET_F_CTRL_VQ = 17,
    NET_F_CTRL_RX = 18,
    NET_F_CTRL_VLAN = 19,
    NET_F_MQ = 22,
    NET_F_CTRL_MAC_ADDR = 23,
};

/* Configuration space (§5.1.4). */
struct net_config {
    uint8_t mac[6];
    uint16_t status, max_pairs, mtu;
};

#define NET_S_LINK_UP 1u

/* The header of each frame in the queues (§5.1.6). */
struct net_full_hdr {
    struct net_hdr h;
    uint16_t num_buffers;
};

struct net_state {
    struct virtio_state virtio;
    struct net_ctrl_state ctrl;
};

struct net {
    struct virtio v;
    struct net_state s;
    struct netdev *back;
    struct net_config config;
    /* Of the back end's worker: */
    bool hungry[NET_QUEUES_MAX];            /* a frame waits for buffers in this pair */
    struct virtq_chain *rx[VIRTQ_SIZE_MAX]; /* of one frame */
};

static struct net *from_virtio(struct virtio *v) { return container_of(v, struct net, v); }

static struct virtq *rx_queue(struct net *n, unsigned pair) { return &n->v.vq[2 * pair]; }
static struct virtq *tx_queue(struct net *n, unsigned pair) { return &n->v.vq[2 * pair + 1]; }

/* Behind those of all pairs that a driver of several may use (§5.1.2). */
static struct virtq *ctrl_queue(struct net *n)
{
    unsigned pairs = virtio_has(&n->v, NET_F_MQ) ? netdev_info(n->back)->queues : 1;

    return &n->v.vq[2 * pairs];
}

/* ---- from the guest ---- */

/* What the driver wrote beside a frame, without what it may not use. False: the frame is lost. */
static bool check_header(struct net *n, struct net_hdr *h)
{
    unsigned bit;

    if (!virtio_has(&n->v, NET_F_CSUM))
        h->flags = 0;
    h->flags &= NET_HDR_NEEDS_CSUM;
    if (h->gso_type & NET_GSO_ECN && !virtio_has(&n->v, NET_F_HOST_ECN))
        return false;
    switch (h->gso_type & ~NET_GSO_ECN) {
    case NET_GSO_NONE:
        return true;
    case NET_GSO_TCPV4:
        bit = NET_F_HOST_TSO4;
        break;
    case NET_GSO_TCPV6:
        bit = NET_F_HOST_TSO6;
        break;
    default:
        return false;
    }
    return virtio_has(&n->v, bit) && h->flags;
}

/* Takes len bytes off the front of the readable part. */
static void skip(struct virtq_chain *c, size_t len)
{
    while (len) {
        size_t part = MIN(len, c->out->iov_len);

        c->out->iov_base = (uint8_t *)c->out->iov_base + part;
        c->out->iov_len -= part;
        c->out_len -= part;
        len -= part;
        if (!c->out->iov_len) {
            c->out++;
            c->nout--;
        }
    }
}

static void send_frame(struct net *n, unsigned pair, struct virtq_chain *c)
{
    struct net_full_hdr f;

    if (virtq_read(c, 0, &f, sizeof(f)) < sizeof(f))
        return;
    skip(c, sizeof(f));
    if (c->nout && check_header(n, &f.h))
        netdev_send(n->back, pair, &f.h, c->out, c->nout);
}

/* Up to a batch; comes back for the rest. */
static void send_queue(struct net *n, unsigned pair)
{
    struct virtq *q = tx_queue(n, pair);
    struct virtq_chain *c;
    unsigned done = 0;

    do {
        virtq_kicks(q, false);
        while (done < BATCH && virtq_pop(q, &c) > 0) {
            send_frame(n, pair, c);
            virtq_push(q, c, 0);
            done++;
        }
        if (done == BATCH) {
            netdev_kick(n->back);
            return;
        }
    } while (virtq_kicks(q, true));
}

static void run_commands(struct net *n)
{
    struct virtq *q = ctrl_queue(n);
    const struct net_ctrl_limits limits = {
        .rx = virtio_has(&n->v, NET_F_CTRL_RX),
        .vlan = virtio_has(&n->v, NET_F_CTRL_VLAN),
        .mac = virtio_has(&n->v, NET_F_CTRL_MAC_ADDR),
        .pairs = virtio_has(&n->v, NET_F_MQ),
        .max_pairs = netdev_info(n->back)->queues,
    };
    struct virtq_chain *c;

    for (unsigned i = 0; i < BATCH && virtq_pop(q, &c) > 0; i++) {
        uint8_t ack = net_ctrl_command(&n->s.ctrl, c, &limits);

        trace(n->v.dev.ctx->trace, net_ctrl, "%s: %llu bytes, ack %u", n->v.dev.id,
              (unsigned long long)c->out_len, ack);
        /* An answer means that it is done. */
        netdev_set_queues(n->back, n->s.ctrl.pairs);
        memcpy(n->config.mac, n->s.ctrl.mac, sizeof(n->config.mac));
        virtq_push(q, c, (uint32_t)virtq_write(c, 0, &ack, sizeof(ack)));
    }
    if (virtq_pending(q))
        netdev_kick(n->back);
    virtq_notify(q);
}

static void on_transmit(void *arg)
{
    struct net *n = arg;

    if (virtq_pending(ctrl_queue(n)))
        run_commands(n);
    for (unsigned i = 0; i < n->s.ctrl.pairs; i++)
        send_queue(n, i);
}

/* ---- to the guest ---- */

/* Buffers for len bytes: one, or as many as it takes when the driver can merge. Their number; 0 if
 * there are too few so far; -1 if there never will be enough. */
static int take_buffers(struct net *n, struct virtq *q, size_t len)
{
    bool merge = virtio_has(&n->v, NET_F_MRG_RXBUF);
    size_t room = 0;
    unsigned k = 0, most = merge ? q->s->size : 1;

    while (room < len && k < most) {
        if (virtq_pop(q, &n->rx[k]) > 0)
            room += n->rx[k++]->in_len;
        else if (!virtq_kicks(q, true))
            break;
    }
    if (room >= len && n->rx[0]->in_len >= sizeof(struct net_full_hdr))
        return (int)k;
    for (unsigned i = k; i > 0; i--)
        virtq_unpop(q, n->rx[i - 1]);
    return k == most || room >= len || !virtq_ready(q) ? -1 : 0;
}

/* Copies header and frame, which `len` bytes in k buffers have room for, one behind the other. */
static void fill_buffers(struct net *n, struct virtq *q, unsigned k, const struct iovec *iov,
                         size_t len)
{
    size_t from = 0; /* bytes of *iov done */

    for (unsigned i = 0; i < k; i++) {
        size_t room = MIN(n->rx[i]->in_len, len);

        for (size_t at = 0; at < room;) {
            size_t part = MIN(room - at, iov->iov_len - from);

            virtq_write(n->rx[i], at, (uint8_t *)iov->iov_base + from, part);
            at += part;
            from += part;
            if (from == iov->iov_len) {
                iov++;
                from = 0;
            }
        }
        len -= room;
        virtq_fill(q, n->rx[i], (uint32_t)room);
    }
    virtq_publish(q);
}

static bool on_receive(void *arg, unsigned pair, const struct net_hdr *h, const struct iovec *iov,
                       unsigned niov)
{
    struct net *n = arg;
    struct virtq *q;
    struct net_full_hdr full = {0};
    struct iovec v[8] = {{&full, sizeof(full)}};
    size_t len = sizeof(full);
    int k;

    pair = pair < n->s.ctrl.pairs ? pair : 0;
    q = rx_queue(n, pair);
    if (!virtq_ready(q) || niov >= ARRAY_LEN(v) || iov->iov_len < NET_ETH_HLEN ||
        !net_ctrl_wants(&n->s.ctrl, iov->iov_base, iov->iov_len,
                        virtio_has(&n->v, NET_F_CTRL_VLAN)))
        return true; /* dropped */
    for (unsigned i = 0; i < niov; i++) {
        v[i + 1] = iov[i];
        len += iov[i].iov_len;
    }
    k = take_buffers(n, q, len);
    n->hungry[pair] = k == 0;
    if (k <= 0)
        return k < 0;
    full = (struct net_full_hdr){*h, (uint16_t)k};
    fill_buffers(n, q, (unsigned)k, v, len);
    return true;
}

/* Once per batch. A queue in which nothing waits needs no kicks for new buffers. */
static void on_flush(void *arg)
{
    struct net *n = arg;

    for (unsigned i = 0; i < n->s.ctrl.pairs; i++) {
        virtq_notify(rx_queue(n, i));
        virtq_notify(tx_queue(n, i));
        if (!n->hungry[i])
            virtq_kicks(rx_queue(n, i), false);
    }
}

static const struct netdev_front front = {
    .receive = on_receive, .transmit = on_transmit, .flush = on_flush};

/* ---- virtio ---- */

/* Towards the guest. */
static unsigned offloads(const struct virtio *v)
{
    unsigned o = 0;

    if (virtio_has(v, NET_F_GUEST_CSUM))
        o |= NETDEV_CSUM;
    if (virtio_has(v, NET_F_GUEST_TSO4))
        o |= NETDEV_TSO4;
    if (virtio_has(v, NET_F_GUEST_TSO6))
        o |= NETDEV_TSO6;
    if (virtio_has(v, NET_F_GUEST_ECN))
        o |= NETDEV_ECN;
    return virtio_has(v, NET_F_GUEST_CSUM) ? o : 0;
}

static void net_start(struct virtio *v)
{
    struct net *n = from_virtio(v);
    unsigned most = virtio_has(v, NET_F_MQ) ? netdev_info(n->back)->queues : 1;

    n->s.ctrl.pairs = (uint16_t)MAX(MIN(n->s.ctrl.pairs, most), 1); /* a loaded one may be any */
    memset(n->hungry, 0, sizeof(n->hungry));
    netdev_set_offloads(n->back, offloads(v));
    netdev_set_queues(n->back, n->s.ctrl.pairs);
    netdev_start(n->back);
}

/* Chains are given back before each of the worker's turns ends. */
static void net_stop(struct virtio *v, enum virtio_stop why) { netdev_stop(from_virtio(v)->back); }

static void net_kick(struct virtio *v, unsigned queue) { netdev_kick(from_virtio(v)->back); }

static void net_reset_state(struct virtio *v)
{
    struct net *n = from_virtio(v);
    const struct netdev_info *info = netdev_info(n->back);

    net_ctrl_reset(&n->s.ctrl, info->mac);
    memcpy(n->config.mac, info->mac, sizeof(n->config.mac));
}

/* What needs what (§5.1.3.1). */
static bool net_accept(struct virtio *v, uint64_t features)
{
    static const struct {
        uint8_t bit, needs;
    } rules[] = {
        {NET_F_GUEST_TSO4, NET_F_GUEST_CSUM}, {NET_F_GUEST_TSO6, NET_F_GUEST_CSUM},
        {NET_F_HOST_TSO4, NET_F_CSUM},        {NET_F_HOST_TSO6, NET_F_CSUM},
        {NET_F_CTRL_RX, NET_F_CTRL_VQ},       {NET_F_CTRL_VLAN, NET_F_CTRL_VQ},
        {NET_F_CTRL_MAC_ADDR, NET_F_CTRL_VQ}, {NET_F_MQ, NET_F_CTRL_VQ},
    };
    const uint64_t tso = BIT(NET_F_HOST_TSO4) | BIT(NET_F_HOST_TSO6);
    const uint64_t guest_tso = BIT(NET_F_GUEST_TSO4) | BIT(NET_F_GUEST_TSO6);

    for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
        if (features & BIT(rules[i].bit) && !(features & BIT(rules[i].needs)))
            return false;
    }
    return (!(features & BIT(NET_F_HOST_ECN)) || features & tso) &&
           (!(features & BIT(NET_F_GUEST_ECN)) || features & guest_tso);
}

static const struct virtio_ops net_ops = {
    .id = VIRTIO_ID_NET,
    .pci_class = CLASS_ETHERNET,
    .start = net_start,
    .stop = net_stop,
    .kick = net_kick,
    .unlocked_kick = true,
    .reset = net_reset_state,
    .accept = net_accept,
};

#define FEATURES                                                                                   \
    (BIT(NET_F_CSUM) | BIT(NET_F_GUEST_CSUM) | BIT(NET_F_MTU) | BIT(NET_F_MAC) |                   \
     BIT(NET_F_GUEST_TSO4) | BIT(NET_F_GUEST_TSO6) | BIT(NET_F_GUEST_ECN) | BIT(NET_F_HOST_TSO4) | \
     BIT(NET_F_HOST_TSO6) | BIT(NET_F_HOST_ECN) | BIT(NET_F_MRG_RXBUF) | BIT(NET_F_STATUS) |       \
     BIT(NET_F_CTRL_VQ) | BIT(NET_F_CTRL_RX) | BIT(NET_F_CTRL_VLAN) | BIT(NET_F_CTRL_MAC_ADDR))

static int net_init(struct device *d, const void *cfg, struct err *e)
{
    struct net *n = container_of(d, struct net, v.dev);
    const struct virtio_net_cfg *c = cfg;
    const struct netdev_info *info = netdev_info(c->back);
    const struct virtio_params params = {
        .ops = &net_ops,
        .slot = c->slot,
        .features = FEATURES | (info->queues > 1 ? BIT(NET_F_MQ) : 0),
        .queues = 2 * info->queues + 1,
        .queue_size = QUEUE_SIZE,
        .config = &n->config,
        .config_len = sizeof(struct net_config),
    };
    struct netdev_front f = front;
    int rc;

    n->back = c->back;
    n->config.status = info->link ? NET_S_LINK_UP : 0;
    n->config.max_pairs = (uint16_t)info->queues;
    n->config.mtu = info->mtu;
    rc = virtio_init(&n->v, &n->s.virtio, &params, e);
    if (rc)
        return rc;
    f.arg = n;
    netdev_attach(n->back, &f);
    return 0;
}

static void net_resume(struct device *d)
{
    struct net *n = container_of(d, struct net, v.dev);

    memcpy(n->config.mac, n->s.ctrl.mac, sizeof(n->config.mac));
    virtio_dev_resume(d);
}

static void net_fini(struct device *d)
{
    netdev_attach(container_of(d, struct net, v.dev)->back, NULL);
    virtio_dev_fini(d);
}

static const struct state_field net_fields[] = {
    STATE_SUB(struct net_state, virtio, &virtio_state_desc),
    STATE_SUB(struct net_state, ctrl, &net_ctrl_state_desc),
};

static const struct state_desc net_state_desc = {
    .name = "virtio-net",
    .version = 1,
    .size = sizeof(struct net_state),
    .fields = net_fields,
    .nfields = ARRAY_LEN(net_fields),
};

const struct device_class virtio_net_class = {
    .name = "virtio-net",
    .size = sizeof(struct net),
    .init = net_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = net_resume,
    .fini = net_fini,
    .state = &net_state_desc,
    .state_off = offsetof(struct net, s),
};
