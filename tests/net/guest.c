#include "guest.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

#define PATIENCE_MS 20000u
#define WINDOW 60000u
#define MAC "\x52\x54\x00\x12\x34\x56"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static void put32(uint8_t *p, uint32_t v)
{
    packet_put16(p, v >> 16);
    packet_put16(p + 2, v & 0xffff);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)packet_get16(p) << 16 | packet_get16(p + 2);
}

/* ---- frames ---- */

static void append(struct gqueue *q, struct gframe *f)
{
    f->next = NULL;
    *q->tail = f;
    q->tail = &f->next;
}

static struct gframe *new_frame(const struct net_hdr *h, size_t len)
{
    struct gframe *f = malloc(sizeof(*f) + len);

    if (!f)
        abort();
    *f = (struct gframe){.h = *h, .len = len};
    return f;
}

/* In the worker's thread, which checks nothing: a failed assertion is for the test's. */
static bool on_receive(void *arg, unsigned queue, const struct net_hdr *h, const struct iovec *iov,
                       unsigned niov)
{
    struct guest *g = arg;
    struct gframe *f;
    size_t len = 0;

    pthread_mutex_lock(&g->lock);
    if (g->full) {
        g->refused++;
        pthread_cond_broadcast(&g->changed);
        pthread_mutex_unlock(&g->lock);
        return false;
    }
    for (unsigned i = 0; i < niov; i++)
        len += iov[i].iov_len;
    f = new_frame(h, len);
    f->queue = queue;
    len = 0;
    for (unsigned i = 0; i < niov; i++) {
        memcpy(f->data + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    append(&g->in, f);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    return true;
}

static void on_transmit(void *arg)
{
    struct guest *g = arg;
    struct gframe *f;

    pthread_mutex_lock(&g->lock);
    f = g->out.head;
    g->out.head = NULL;
    g->out.tail = &g->out.head;
    pthread_mutex_unlock(&g->lock);
    while (f) {
        struct gframe *next = f->next;
        /* In pieces, as guests do. */
        size_t head = MIN(f->len, 54u);
        const struct iovec iov[2] = {{f->data, head}, {f->data + head, f->len - head}};

        netdev_send(g->n, f->queue, &f->h, iov, 2);
        free(f);
        f = next;
    }
}

static void on_flush(void *arg) {}

void guest_send(struct guest *g, const struct net_hdr *h, const void *frame, size_t len)
{
    struct gframe *f = new_frame(h, len);

    memcpy(f->data, frame, len);
    pthread_mutex_lock(&g->lock);
    append(&g->out, f);
    pthread_mutex_unlock(&g->lock);
    netdev_kick(g->n);
}

/* What a guest may count on. */
static void check(struct guest *g, struct gframe *f)
{
    struct packet *p = &f->p;
    uint8_t *sum;
    uint16_t got;

    g->largest = MAX(g->largest, f->len);
    assert_true(f->len >= NET_ETH_HLEN);
    if (!packet_parse(p, f->data, f->len, true)) {
        p->ip = 0;
        assert_int_equal(f->h.gso_type, NET_GSO_NONE);
        return;
    }
    if (p->ip == 4) {
        uint16_t left = packet_fold(packet_sum(f->data + p->l3, p->l4 - p->l3));
        assert_int_equal(left, 0);
    }
    if (f->h.gso_type == NET_GSO_NONE)
        assert_true(p->len - p->l3 <= g->mtu);
    else
        g->large++;
    if (p->fragment || (p->proto != PACKET_TCP && p->proto != PACKET_UDP))
        return;
    sum = f->data + p->l4 + (p->proto == PACKET_TCP ? 16 : 6);
    if (f->h.gso_type != NET_GSO_NONE) {
        assert_int_equal(f->h.gso_type, p->ip == 4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6);
        assert_true(g->offloads & (p->ip == 4 ? NETDEV_TSO4 : NETDEV_TSO6));
        assert_int_equal(p->proto, PACKET_TCP);
        assert_int_equal(f->h.flags, NET_HDR_NEEDS_CSUM);
        assert_int_equal(f->h.gso_size, g->mss ? g->mss : g->mtu - (p->body - p->l3));
        assert_int_equal(f->h.hdr_len, p->body);
        assert_true(p->len - p->body > f->h.gso_size);
    }
    if (f->h.flags & NET_HDR_NEEDS_CSUM) {
        assert_true(g->offloads & NETDEV_CSUM);
        assert_int_equal(f->h.csum_start, p->l4);
        assert_ptr_equal(f->data + f->h.csum_start + f->h.csum_offset, sum);
        got = packet_fold(packet_sum(f->data + p->l4, p->len - p->l4));
        memcpy(sum, &got, sizeof(got));
    } else {
        assert_int_equal(f->h.flags, g->offloads & NETDEV_CSUM ? NET_HDR_DATA_VALID : 0);
    }
    got = packet_fold(packet_pseudo(p) + packet_sum(f->data + p->l4, p->len - p->l4));
    assert_int_equal(got, 0);
}

struct gframe *guest_recv(struct guest *g, bool (*match)(const struct gframe *f, const void *arg),
                          const void *arg, unsigned ms)
{
    struct timespec until;
    struct gframe *f, **at;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&g->lock);
    for (;;) {
        for (at = &g->in.head; *at; at = &(*at)->next) {
            if (!(*at)->p.data)
                check(g, *at);
            if (!(*at)->p.data)
                (*at)->p.data = (*at)->data;
            if (match(*at, arg))
                break;
        }
        f = *at;
        if (f || rc)
            break;
        rc = pthread_cond_timedwait(&g->changed, &g->lock, &until);
    }
    if (f) {
        *at = f->next;
        if (g->in.tail == &f->next)
            g->in.tail = at;
    }
    pthread_mutex_unlock(&g->lock);
    return f;
}

void guest_full(struct guest *g, bool full)
{
    pthread_mutex_lock(&g->lock);
    g->full = full;
    pthread_mutex_unlock(&g->lock);
    netdev_kick(g->n);
}

/* ---- life ---- */

void guest_defaults(struct netdev_cfg *cfg)
{
    *cfg = (struct netdev_cfg){.kind = NETDEV_USER, .queues = 1};
    memcpy(cfg->mac, MAC, NET_MAC_LEN);
}

void guest_init(struct guest *g, const struct netdev_cfg *cfg, unsigned offloads)
{
    const struct netdev_front front = {
        .receive = on_receive, .transmit = on_transmit, .flush = on_flush, .arg = g};
    struct err e = {""};

    *g = (struct guest){.offloads = offloads, .port = 40000};
    g->in.tail = &g->in.head;
    g->out.tail = &g->out.head;
    log_init(&g->log, LOG_WARN, STDERR_FILENO);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    if (netdev_open(&g->n, cfg, &g->log, &e))
        fail_msg("%s", e.msg);
    g->mtu = netdev_info(g->n)->mtu;
    netdev_attach(g->n, &front);
    netdev_set_offloads(g->n, offloads);
    netdev_start(g->n);
}

static void drop(struct gqueue *q)
{
    while (q->head) {
        struct gframe *f = q->head;

        q->head = f->next;
        free(f);
    }
}

void guest_fini(struct guest *g)
{
    netdev_stop(g->n);
    netdev_attach(g->n, NULL);
    netdev_free(g->n);
    drop(&g->in);
    drop(&g->out);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
}

/* ---- packets ---- */

static uint32_t address4(uint32_t to) { return to > 255 ? to : 0x0a000200 + to; }

static void address6(uint8_t *a, uint8_t last)
{
    memset(a, 0, 16);
    a[0] = 0xfe;
    a[1] = 0xc0;
    a[15] = last;
}

size_t guest_ip(struct guest *g, uint8_t *frame, unsigned ip, uint32_t to, uint8_t proto,
                const void *l4, size_t len)
{
    uint8_t *h = frame + 14;
    size_t head = ip == 4 ? 20 : 40;
    struct packet p;

    memset(frame, 0, 14 + head);
    memcpy(frame, "\x52\x55\x0a\x00\x02\x02" MAC, 12);
    packet_put16(frame + 12, ip == 4 ? 0x0800 : 0x86dd);
    if (ip == 4) {
        h[0] = 0x45;
        h[8] = 64;
        h[9] = proto;
        put32(h + 12, 0x0a00020f);
        put32(h + 16, address4(to));
    } else {
        h[0] = 0x60;
        h[6] = proto;
        h[7] = 255;
        address6(h + 8, 0x15);
        address6(h + 24, (uint8_t)to);
    }
    memcpy(h + head, l4, len);
    p = (struct packet){.data = frame,
                        .len = 14 + head + len,
                        .ip = ip,
                        .l3 = 14,
                        .l4 = (unsigned)(14 + head),
                        .proto = proto};
    packet_set_length(&p);
    if (proto == PACKET_TCP || proto == PACKET_UDP)
        packet_checksum(&p);
    return p.len;
}

void guest_hello(struct guest *g, unsigned ip)
{
    const struct net_hdr h = {0};
    uint8_t f[128] = {0}, icmp[24] = {135};
    size_t len;

    if (ip == 4) { /* a gratuitous ARP request */
        memset(f, 0xff, 6);
        memcpy(f + 6, MAC, 6);
        memcpy(f + 12, "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01", 10);
        memcpy(f + 22, MAC, 6);
        put32(f + 28, 0x0a00020f);
        put32(f + 38, 0x0a00020f);
        guest_send(g, &h, f, 60);
        return;
    }
    /* A solicitation of the host's address. */
    address6(icmp + 8, 2);
    len = guest_ip(g, f, 6, 2, 58, icmp, sizeof(icmp));
    struct packet p = {.data = f, .len = len, .ip = 6, .l3 = 14, .l4 = 54, .proto = 58};
    uint16_t sum = packet_fold(packet_pseudo(&p) + packet_sum(f + 54, len - 54));
    memcpy(f + 56, &sum, 2);
    guest_send(g, &h, f, len);
}

/* ---- TCP ---- */

static uint8_t work[NET_FRAME_MAX], segment[GUEST_BYTES + 64];

static void emit(struct gconn *c, unsigned flags, const void *data, size_t len, enum gsend how)
{
    size_t head = flags & SYN ? 24 : 20, l4 = c->ip == 4 ? 34 : 54, n;
    struct net_hdr h = {0};

    memset(segment, 0, head);
    packet_put16(segment, c->here);
    packet_put16(segment + 2, c->there);
    put32(segment + 4, c->seq);
    put32(segment + 8, flags & ACK ? c->ack : 0);
    segment[12] = (uint8_t)(head * 4);
    segment[13] = (uint8_t)flags;
    packet_put16(segment + 14, WINDOW);
    if (flags & SYN) {
        segment[20] = 2;
        segment[21] = 4;
        packet_put16(segment + 22, c->g->mss ? c->g->mss : c->g->mtu - (c->ip == 4 ? 40 : 60));
    }
    if (len)
        memcpy(segment + head, data, len);
    n = guest_ip(c->g, work, c->ip, c->to, PACKET_TCP, segment, head + len);
    if (how != GSEND_PLAIN) {
        struct packet p = {.data = work, .len = n, .ip = c->ip, .l3 = 14, .proto = PACKET_TCP};
        uint16_t sum;

        p.l4 = (unsigned)l4;
        sum = (uint16_t)~packet_fold(packet_pseudo(&p));
        memcpy(work + l4 + 16, &sum, 2);
        h = (struct net_hdr){.flags = NET_HDR_NEEDS_CSUM,
                             .csum_start = (uint16_t)l4,
                             .csum_offset = 16,
                             .hdr_len = (uint16_t)(l4 + head)};
    }
    if (how == GSEND_TSO && len > c->mss) {
        h.gso_type = c->ip == 4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6;
        h.gso_size = c->mss;
    }
    guest_send(c->g, &h, work, n);
    c->seq += (uint32_t)len + (flags & (SYN | FIN) ? 1 : 0);
}

static bool ours(const struct gframe *f, const void *arg)
{
    const struct gconn *c = arg;
    const uint8_t *h = f->data + f->p.l4;

    if (f->p.ip != c->ip || f->p.proto != PACKET_TCP || packet_get16(h + 2) != c->here)
        return false;
    /* Not there yet: a connection to accept, from whomever. */
    return !c->there || (packet_get16(h) == c->there &&
                         (c->ip == 6 || get32(f->data + 14 + 12) == address4(c->to)));
}

/* The next segment of ours that has something new: data, an acknowledgement, FIN or RST. */
static struct gframe *next(struct gconn *c)
{
    for (;;) {
        struct gframe *f = guest_recv(c->g, ours, c, PATIENCE_MS);
        const uint8_t *h;
        size_t len;
        bool fresh = false;

        assert_non_null(f);
        h = f->data + f->p.l4;
        len = f->p.len - f->p.body;
        if (h[13] & RST) {
            c->reset = true;
            return f;
        }
        if (h[13] & ACK && (int32_t)(get32(h + 8) - c->acked) > 0) {
            c->acked = get32(h + 8);
            fresh = true;
        }
        if (h[13] & SYN || get32(h + 4) == c->ack) {
            if (h[13] & FIN && !c->fin) {
                c->fin = true;
                c->ack += (uint32_t)len + 1;
            } else {
                c->ack += (uint32_t)len;
            }
            return f;
        }
        assert_true((int32_t)(get32(h + 4) - c->ack) < 0); /* nothing may be missing */
        if (fresh) {
            f->p.len = f->p.body; /* its data is old */
            return f;
        }
        free(f);
    }
}

static uint16_t peer_mss(struct gframe *f)
{
    uint16_t mss = packet_mss(&f->p, 0);

    assert_true(mss > 0);
    return mss;
}

bool gconn_open(struct gconn *c, struct guest *g, unsigned ip, uint32_t to, uint16_t port)
{
    struct gframe *f;

    *c = (struct gconn){.g = g, .ip = ip, .to = to, .here = ++g->port, .there = port};
    c->seq = c->acked = 0xfffff000u + g->port;
    emit(c, SYN, NULL, 0, GSEND_PLAIN);
    f = next(c);
    if (c->reset) {
        free(f);
        return false;
    }
    assert_int_equal(f->data[f->p.l4 + 13], SYN | ACK);
    assert_int_equal(c->acked, c->seq);
    c->ack = get32(f->data + f->p.l4 + 4) + 1;
    c->mss = peer_mss(f);
    free(f);
    emit(c, ACK, NULL, 0, GSEND_PLAIN);
    return true;
}

void gconn_accept(struct gconn *c, struct guest *g, unsigned ip, uint16_t port)
{
    struct gframe *f;

    *c = (struct gconn){.g = g, .ip = ip, .to = 2, .here = port, .seq = 1000, .acked = 1000};
    f = next(c);
    assert_int_equal(f->data[f->p.l4 + 13], SYN);
    c->there = packet_get16(f->data + f->p.l4);
    c->ack = get32(f->data + f->p.l4 + 4) + 1;
    c->mss = peer_mss(f);
    if (ip == 4)
        c->to = get32(f->data + 14 + 12);
    free(f);
    emit(c, SYN | ACK, NULL, 0, GSEND_PLAIN);
    f = next(c);
    assert_int_equal(c->acked, c->seq);
    free(f);
}

void gconn_send(struct gconn *c, const void *data, size_t len, enum gsend how)
{
    const uint8_t *p = data;
    size_t most = how == GSEND_TSO ? GUEST_BYTES : MIN(c->mss, GUEST_BYTES);

    for (size_t n; len; p += n, len -= n) {
        n = MIN(len, most);
        emit(c, ACK | PSH, p, n, how);
        while (c->acked != c->seq)
            free(next(c));
    }
}

void gconn_recv(struct gconn *c, void *data, size_t len)
{
    uint8_t *p = data;

    while (len) {
        struct gframe *f = next(c);
        size_t n = f->p.len - f->p.body;

        assert_false(c->reset);
        assert_true(n <= len);
        if (n) {
            memcpy(p, f->data + f->p.body, n);
            emit(c, ACK, NULL, 0, GSEND_CSUM);
        }
        p += n;
        len -= n;
        assert_false(len && c->fin);
        free(f);
    }
}

void gconn_close(struct gconn *c)
{
    emit(c, FIN | ACK, NULL, 0, GSEND_PLAIN);
    while (c->acked != c->seq || !c->fin) {
        free(next(c));
        assert_false(c->reset);
    }
    emit(c, ACK, NULL, 0, GSEND_PLAIN);
}
