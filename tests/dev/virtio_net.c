/* Network device at register and ring level (virtio 1.2 §5.1), on split and packed rings, without
 * and with event indices. The wire it is plugged into is the test's: what the driver sends is kept,
 * what arrives is put in by the test. */
#include <stdlib.h>
#include <string.h>

#include "virtio_driver.h"

#include "back/net/netdev.h"
#include "base/util.h"
#include "dev/virtio/net.h"

#define F(n) BIT(n)
enum {
    CSUM = 0,
    GUEST_CSUM = 1,
    MTU = 3,
    MAC = 5,
    GUEST_TSO4 = 7,
    GUEST_TSO6 = 8,
    GUEST_ECN = 9,
    HOST_TSO4 = 11,
    HOST_TSO6 = 12,
    HOST_ECN = 13,
    MRG_RXBUF = 15,
    STATUS = 16,
    CTRL_VQ = 17,
    CTRL_RX = 18,
    CTRL_VLAN = 19,
    MQ = 22,
    CTRL_MAC_ADDR = 23,
};

#define HDR 12u
#define PAIRS 4u
#define PATIENCE 20

static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};

/* ---- the wire ---- */

struct wire_frame {
    struct wire_frame *next;
    struct net_hdr h;
    unsigned queue;
    size_t len;
    uint8_t data[];
};

struct wire {
    struct netdev n;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct wire_frame *sent, **sent_tail; /* by the guest */
    struct wire_frame *put, **put_tail;   /* for the guest */
    unsigned offloads, queues;            /* as last configured */
};

static struct wire *wire_of(struct netdev *n) { return container_of(n, struct wire, n); }

static struct wire_frame *frame_new(const struct net_hdr *h, unsigned queue,
                                    const struct iovec *iov, unsigned niov)
{
    size_t len = netdev_iov_len(iov, niov);
    struct wire_frame *f = malloc(sizeof(*f) + len);

    if (!f)
        abort();
    *f = (struct wire_frame){.h = *h, .queue = queue, .len = len};
    netdev_gather(f->data, len, iov, niov);
    return f;
}

static void wire_send(struct netdev *n, unsigned queue, const struct net_hdr *h,
                      const struct iovec *iov, unsigned niov)
{
    struct wire *w = wire_of(n);
    struct wire_frame *f = frame_new(h, queue, iov, niov);

    pthread_mutex_lock(&w->lock);
    *w->sent_tail = f;
    w->sent_tail = &f->next;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void wire_configure(struct netdev *n)
{
    wire_of(n)->offloads = n->offloads;
    wire_of(n)->queues = n->queues;
}

static void wire_handle(struct netdev *n, const struct netdev_poll *p)
{
    struct wire *w = wire_of(n);
    struct wire_frame *f;

    pthread_mutex_lock(&w->lock);
    f = w->put;
    w->put = NULL;
    w->put_tail = &w->put;
    pthread_mutex_unlock(&w->lock);
    while (f) {
        struct wire_frame *next = f->next;
        /* In two pieces that have nothing to do with the driver's. */
        size_t head = MIN(f->len, 60u);
        const struct iovec iov[2] = {{f->data, head}, {f->data + head, f->len - head}};

        netdev_deliver(n, f->queue, &f->h, iov, f->len > head ? 2 : 1);
        free(f);
        f = next;
    }
}

static void wire_free(struct netdev *n) {}

static const struct netdev_ops wire_ops = {
    .send = wire_send, .configure = wire_configure, .handle = wire_handle, .free = wire_free};

static void wire_init(struct wire *w, unsigned queues)
{
    struct netdev_cfg cfg = {.queues = queues};

    memcpy(cfg.mac, mac, sizeof(mac));
    *w = (struct wire){.sent_tail = &w->sent, .put_tail = &w->put};
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    assert_int_equal(netdev_init(&w->n, &wire_ops, &cfg, 1500, NULL, NULL), 0);
}

static void wire_drop(struct wire_frame **list, struct wire_frame ***tail)
{
    while (*list) {
        struct wire_frame *f = *list;

        *list = f->next;
        free(f);
    }
    *tail = list;
}

static void wire_fini(struct wire *w)
{
    netdev_free(&w->n);
    wire_drop(&w->sent, &w->sent_tail);
    wire_drop(&w->put, &w->put_tail);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

static void wire_put(struct wire *w, unsigned queue, const struct net_hdr *h, const void *data,
                     size_t len)
{
    const struct iovec iov = {(void *)data, len};
    struct wire_frame *f = frame_new(h, queue, &iov, 1);

    pthread_mutex_lock(&w->lock);
    *w->put_tail = f;
    w->put_tail = &f->next;
    pthread_mutex_unlock(&w->lock);
    netdev_kick(&w->n);
}

/* The next frame the guest sent; to be freed. */
static struct wire_frame *wire_next(struct wire *w)
{
    struct timespec until;
    struct wire_frame *f;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE;
    pthread_mutex_lock(&w->lock);
    while (!w->sent && !rc)
        rc = pthread_cond_timedwait(&w->changed, &w->lock, &until);
    f = w->sent;
    if (f) {
        w->sent = f->next;
        if (!w->sent)
            w->sent_tail = &w->sent;
    }
    pthread_mutex_unlock(&w->lock);
    assert_non_null(f);
    return f;
}

/* ---- fixture ---- */

static const uint64_t layouts[] = {VDRV_SPLIT, VDRV_EVENT_IDX | VDRV_INDIRECT, VDRV_PACKED,
                                   VDRV_PACKED | VDRV_EVENT_IDX | VDRV_INDIRECT};

struct fixture {
    struct wire w;
    struct vdrv d;
    uint64_t ring;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->ring = *(const uint64_t *)*state;
    wire_init(&f->w, PAIRS);
    vdrv_init(&f->d);
    vdrv_attach(&f->d, &virtio_net_class, &(struct virtio_net_cfg){vdrv_slot(&f->d), &f->w.n});
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    vdrv_fini(&f->d);
    wire_fini(&f->w);
    free(f);
    return 0;
}

/* One pair and the control queue. */
static void start(struct fixture *f, uint64_t features)
{
    vdrv_start(&f->d, f->ring | features, features & F(CTRL_VQ) ? 3 : 2, 64);
}

static uint64_t guest_bytes(struct fixture *f, const void *data, uint32_t len)
{
    uint64_t at = vdrv_alloc(&f->d, len ? len : 1, 16);

    if (data)
        memcpy(vdrv_ptr(&f->d, at), data, len);
    return at;
}

static void fill(uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(i * 13 + i / 256);
    memcpy(p, mac, sizeof(mac));
    if (len > 13) {
        p[12] = 8;
        p[13] = 0;
    }
}

/* Sends hdr and frame in pieces of the given size (0: header and frame apart). */
static void transmit(struct fixture *f, unsigned q, const struct net_hdr *h, const uint8_t *data,
                     uint32_t len, uint32_t piece)
{
    uint8_t all[HDR + 70000] = {0};
    struct vdrv_sg sg[64];
    unsigned n = 0;
    uint64_t at;

    memcpy(all, h, sizeof(*h));
    memcpy(all + HDR, data, len);
    at = guest_bytes(f, all, HDR + len);
    for (uint32_t off = 0; off < HDR + len; off += sg[n++].len) {
        uint32_t part = piece ? piece : off ? len : HDR;

        sg[n] = (struct vdrv_sg){at + off, MIN(part, HDR + len - off)};
    }
    assert_true(vdrv_add(&f->d.q[q], sg, n, 0, f) >= 0);
    vdrv_kick(&f->d.q[q]);
}

static void wait_used(struct fixture *f, unsigned q, uint32_t written)
{
    uint32_t n;

    assert_ptr_equal(vdrv_wait(&f->d.q[q], &n), f);
    assert_int_equal(n, written);
}

/* ---- identity ---- */

static void test_config(void **state)
{
    struct fixture *f = *state;
    uint8_t c[12];
    uint64_t want = F(CSUM) | F(GUEST_CSUM) | F(MTU) | F(MAC) | F(GUEST_TSO4) | F(GUEST_TSO6) |
                    F(GUEST_ECN) | F(HOST_TSO4) | F(HOST_TSO6) | F(HOST_ECN) | F(MRG_RXBUF) |
                    F(STATUS) | F(CTRL_VQ) | F(CTRL_RX) | F(CTRL_VLAN) | F(MQ) | F(CTRL_MAC_ADDR);

    assert_int_equal(vdrv_pci_read(&f->d, PCI_DEVICE_ID, 2), 0x1041);
    assert_int_equal(vdrv_pci_read(&f->d, PCI_CLASS, 2), 0x0200);
    assert_int_equal(vdrv_offered(&f->d) & 0xffffff, want);
    vdrv_config(&f->d, 0, c, sizeof(c));
    assert_memory_equal(c, mac, 6);
    assert_memory_equal(c + 6, ((uint8_t[]){1, 0, PAIRS, 0, 1500 & 255, 1500 >> 8}), 6);
    assert_int_equal(vdrv_get(&f->d, VC_NUM_QUEUES, 2), 2 * PAIRS + 1);
}

/* Features that need others (§5.1.3.1). */
static void test_dependencies(void **state)
{
    static const uint64_t bad[] = {F(GUEST_TSO4),
                                   F(GUEST_TSO6),
                                   F(HOST_TSO4),
                                   F(HOST_TSO6),
                                   F(CTRL_RX),
                                   F(CTRL_VLAN),
                                   F(MQ),
                                   F(CTRL_MAC_ADDR),
                                   F(HOST_ECN) | F(CSUM),
                                   F(GUEST_ECN) | F(GUEST_CSUM)};
    struct fixture *f = *state;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        vdrv_reset(&f->d);
        vdrv_set(&f->d, VC_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
        vdrv_set(&f->d, VC_DRIVER_FEATURE_SELECT, 4, 0);
        vdrv_set(&f->d, VC_DRIVER_FEATURE, 4, bad[i]);
        vdrv_set(&f->d, VC_DRIVER_FEATURE_SELECT, 4, 1);
        vdrv_set(&f->d, VC_DRIVER_FEATURE, 4, 1);
        vdrv_set(&f->d, VC_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
        assert_false(vdrv_status(&f->d) & VIRTIO_FEATURES_OK);
    }
}

static void test_offloads(void **state)
{
    struct fixture *f = *state;

    start(f, 0);
    assert_int_equal(f->w.offloads, 0);
    start(f, F(GUEST_CSUM) | F(GUEST_TSO4));
    assert_int_equal(f->w.offloads, NETDEV_CSUM | NETDEV_TSO4);
    start(f, F(GUEST_CSUM) | F(GUEST_TSO6) | F(GUEST_ECN));
    assert_int_equal(f->w.offloads, NETDEV_CSUM | NETDEV_TSO6 | NETDEV_ECN);
}

/* ---- from the guest ---- */

static void test_transmit(void **state)
{
    static const uint32_t pieces[] = {0, 1000000, 5, 12, 13, 100};
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    uint8_t data[200];

    fill(data, sizeof(data));
    start(f, 0);
    for (size_t i = 0; i < ARRAY_LEN(pieces); i++) {
        for (uint32_t len = 60; len < sizeof(data); len += 67) {
            struct wire_frame *got;

            transmit(f, 1, &h, data, len, pieces[i]);
            got = wire_next(&f->w);
            assert_int_equal(got->len, len);
            assert_int_equal(got->queue, 0);
            assert_memory_equal(got->data, data, len);
            free(got);
            wait_used(f, 1, 0);
        }
    }
    assert_true(atomic_load(&f->d.irqs[1]) > 0);
}

/* What the driver writes beside a frame is worth what it negotiated. */
static void test_headers(void **state)
{
    const struct net_hdr csum = {
        .flags = NET_HDR_NEEDS_CSUM | 0xf2, .csum_start = 14, .csum_offset = 2};
    const struct net_hdr tso = {
        .flags = 1, .gso_type = NET_GSO_TCPV4, .gso_size = 1000, .hdr_len = 54};
    const struct net_hdr ecn = {
        .flags = 1, .gso_type = NET_GSO_TCPV4 | NET_GSO_ECN, .gso_size = 1000};
    const struct net_hdr udp = {.flags = 1, .gso_type = 3, .gso_size = 1000};
    const struct net_hdr plain = {.flags = 0, .gso_type = NET_GSO_TCPV4, .gso_size = 1000};
    struct fixture *f = *state;
    struct wire_frame *got;
    uint8_t data[100];

    fill(data, sizeof(data));
    start(f, 0);
    transmit(f, 1, &csum, data, 100, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->h.flags, 0);
    free(got);
    wait_used(f, 1, 0);
    transmit(f, 1, &tso, data, 100, 0); /* lost */
    transmit(f, 1, &(struct net_hdr){0}, data, 61, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->len, 61);
    free(got);

    start(f, F(CSUM) | F(HOST_TSO4));
    transmit(f, 1, &csum, data, 100, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->h.flags, NET_HDR_NEEDS_CSUM);
    assert_int_equal(got->h.csum_start, 14);
    assert_int_equal(got->h.csum_offset, 2);
    free(got);
    transmit(f, 1, &tso, data, 100, 0);
    got = wire_next(&f->w);
    assert_memory_equal(&got->h, &tso, sizeof(tso));
    free(got);
    transmit(f, 1, &ecn, data, 100, 0);
    transmit(f, 1, &udp, data, 100, 0);
    transmit(f, 1, &plain, data, 100, 0);
    transmit(f, 1, &(struct net_hdr){0}, data, 62, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->len, 62); /* the others are lost */
    free(got);

    start(f, F(CSUM) | F(HOST_TSO4) | F(HOST_ECN));
    transmit(f, 1, &ecn, data, 100, 0);
    got = wire_next(&f->w);
    assert_memory_equal(&got->h, &ecn, sizeof(ecn));
    free(got);
}

/* Chains that are no frames come back unused. */
static void test_short(void **state)
{
    struct fixture *f = *state;
    uint8_t data[100];
    struct vdrv_sg sg[2];
    struct wire_frame *got;

    fill(data, sizeof(data));
    start(f, 0);
    for (uint32_t len = 1; len <= HDR; len++) {
        sg[0] = (struct vdrv_sg){guest_bytes(f, data, len), len};
        assert_true(vdrv_add(&f->d.q[1], sg, 1, 0, f) >= 0);
        vdrv_kick(&f->d.q[1]);
        wait_used(f, 1, 0);
    }
    sg[0] = (struct vdrv_sg){guest_bytes(f, data, 50), 50};
    assert_true(vdrv_add(&f->d.q[1], sg, 0, 1, f) >= 0); /* writable */
    vdrv_kick(&f->d.q[1]);
    wait_used(f, 1, 0);
    transmit(f, 1, &(struct net_hdr){0}, data, 63, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->len, 63);
    free(got);
}

/* More than a batch. */
static void test_many(void **state)
{
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    uint8_t data[100];

    fill(data, sizeof(data));
    start(f, 0);
    for (unsigned i = 0; i < 1000; i++) {
        uint8_t all[HDR + 64] = {0};
        struct vdrv_sg sg;

        memcpy(all + HDR, data, 64);
        all[HDR + 20] = (uint8_t)i;
        sg = (struct vdrv_sg){guest_bytes(f, all, sizeof(all)), sizeof(all)};
        memcpy(all, &h, sizeof(h));
        while (vdrv_add(&f->d.q[1], &sg, 1, 0, f) < 0) {
            vdrv_kick(&f->d.q[1]);
            vdrv_wait(&f->d.q[1], NULL);
        }
    }
    vdrv_kick(&f->d.q[1]);
    for (unsigned i = 0; i < 1000; i++) {
        struct wire_frame *got = wire_next(&f->w);

        assert_int_equal(got->data[20], (uint8_t)i);
        free(got);
    }
}

/* ---- to the guest ---- */

static uint64_t buffer(struct fixture *f, unsigned q, uint32_t len, unsigned pieces)
{
    uint64_t at = guest_bytes(f, NULL, len);
    struct vdrv_sg sg[16];

    for (unsigned i = 0; i < pieces; i++)
        sg[i] = (struct vdrv_sg){at + i * (len / pieces),
                                 i + 1 < pieces ? len / pieces : len - i * (len / pieces)};
    assert_true(vdrv_add(&f->d.q[q], sg, 0, pieces, vdrv_ptr(&f->d, at)) >= 0);
    return at;
}

static void check_received(struct fixture *f, unsigned q, uint32_t size, const struct net_hdr *h,
                           const uint8_t *data, uint32_t len)
{
    uint8_t all[70000];
    uint32_t got = 0, n;
    unsigned buffers = 0, want = 1;

    while (buffers < want) {
        const uint8_t *p = vdrv_wait(&f->d.q[q], &n);

        if (!buffers)
            want = p[10] | p[11] << 8;
        assert_true(want > 0 && n > 0 && n <= size);
        assert_true(++buffers == want || n == size); /* all but the last are full */
        memcpy(all + got, p, n);
        got += n;
    }
    assert_int_equal(got, HDR + len);
    assert_memory_equal(all, h, sizeof(*h));
    assert_memory_equal(all + HDR, data, len);
    assert_int_equal(want, (HDR + len + size - 1) / size);
}

static void test_receive(void **state)
{
    const struct net_hdr h = {.flags = NET_HDR_DATA_VALID};
    struct fixture *f = *state;
    uint8_t data[1514];

    fill(data, sizeof(data));
    start(f, F(GUEST_CSUM));
    for (unsigned pieces = 1; pieces < 8; pieces++) {
        buffer(f, 0, 1526, pieces);
        vdrv_kick(&f->d.q[0]);
        wire_put(&f->w, 0, &h, data, pieces == 1 ? 1514 : 60 + pieces);
        check_received(f, 0, 1526, &h, data, pieces == 1 ? 1514 : 60 + pieces);
    }
    assert_true(atomic_load(&f->d.irqs[0]) > 0);
    /* Without merging, a frame that is larger than the buffer is lost, the buffer is not. */
    buffer(f, 0, 100, 1);
    vdrv_kick(&f->d.q[0]);
    wire_put(&f->w, 0, &h, data, 89);
    wire_put(&f->w, 0, &h, data, 88);
    check_received(f, 0, 100, &h, data, 88);
}

static void test_merge(void **state)
{
    const struct net_hdr h = {.flags = 1, .gso_type = NET_GSO_TCPV4, .gso_size = 1460};
    struct fixture *f = *state;
    uint8_t *data = malloc(60000);

    fill(data, 60000);
    start(f, F(GUEST_CSUM) | F(GUEST_TSO4) | F(MRG_RXBUF));
    for (uint32_t len = 60; len < 60000; len = len * 3 / 2 + 1) {
        for (unsigned i = 0; i < (HDR + len + 1535) / 1536; i++)
            buffer(f, 0, 1536, 1 + i % 3);
        vdrv_kick(&f->d.q[0]);
        wire_put(&f->w, 0, &h, data, len);
        check_received(f, 0, 1536, &h, data, len);
        assert_null(vdrv_used(&f->d.q[0], NULL));
    }
    free(data);
}

/* Frames wait for buffers, also when there are some already; a kick comes once it was asked for. */
static void test_wait(void **state)
{
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    uint8_t data[6000];

    fill(data, sizeof(data));
    start(f, F(MRG_RXBUF));
    vdrv_kick_wanted(&f->d.q[0]);
    wire_put(&f->w, 0, &h, data, 6000);
    wire_put(&f->w, 0, &h, data, 61);
    for (unsigned i = 0; i < 6; i++) {
        /* Until the device says that it lacks some. */
        for (unsigned ms = 0; ms < PATIENCE * 1000; ms++) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
            pthread_mutex_lock(&f->w.n.lock);
            bool idle = !f->w.n.busy && f->w.n.waiting >= 61;
            pthread_mutex_unlock(&f->w.n.lock);
            if (idle)
                break;
        }
        assert_null(vdrv_used(&f->d.q[0], NULL));
        buffer(f, 0, 1024, 1);
        if (vdrv_kick_wanted(&f->d.q[0]))
            vdrv_kick(&f->d.q[0]);
        else
            fail_msg("buffer %u: no kick wanted", i);
    }
    check_received(f, 0, 1024, &h, data, 6000);
    buffer(f, 0, 1024, 1);
    if (vdrv_kick_wanted(&f->d.q[0]))
        vdrv_kick(&f->d.q[0]);
    check_received(f, 0, 1024, &h, data, 61);
}

/* A ring that can never hold a frame does not hold up the next one. */
static void test_ring_too_small(void **state)
{
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    uint8_t data[6000];

    fill(data, sizeof(data));
    vdrv_start(&f->d, f->ring | F(MRG_RXBUF), 2, 4);
    for (unsigned i = 0; i < 4; i++)
        buffer(f, 0, 1024, 1);
    vdrv_kick(&f->d.q[0]);
    wire_put(&f->w, 0, &h, data, 6000);
    wire_put(&f->w, 0, &h, data, 2000);
    check_received(f, 0, 1024, &h, data, 2000);
}

/* ---- control queue ---- */

static uint8_t command(struct fixture *f, unsigned q, uint8_t class, uint8_t cmd, const void *data,
                       uint32_t len)
{
    uint8_t out[1000] = {class, cmd}, ack = 0x77;

    memcpy(out + 2, data, len);
    assert_int_equal(vdrv_request(&f->d.q[q], out, 2 + len, &ack, 1), 1);
    return ack;
}

/* Does a frame to this address (and VLAN, if not 0) arrive? */
static bool arrives(struct fixture *f, const uint8_t to[6], unsigned vlan)
{
    static const uint8_t mark[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    const struct net_hdr h = {0};
    uint8_t data[64] = {0};
    const uint8_t *p;
    bool yes;

    buffer(f, 0, 200, 1);
    buffer(f, 0, 200, 1);
    vdrv_kick(&f->d.q[0]);
    memcpy(data, to, 6);
    data[12] = vlan ? 0x81 : 8;
    data[14] = (uint8_t)(vlan >> 8 | 0xe0); /* a priority */
    data[15] = (uint8_t)vlan;
    wire_put(&f->w, 0, &h, data, 64);
    memcpy(data, mark, 6);
    data[12] = 8;
    data[20] = 0xaa; /* the last one */
    wire_put(&f->w, 0, &h, data, 64);
    p = vdrv_wait(&f->d.q[0], NULL);
    yes = p[HDR + 20] != 0xaa;
    if (yes)
        p = vdrv_wait(&f->d.q[0], NULL);
    assert_int_equal(p[HDR + 20], 0xaa);
    if (!yes) { /* the second buffer is left over */
        wire_put(&f->w, 0, &h, data, 64);
        vdrv_wait(&f->d.q[0], NULL);
    }
    return yes;
}

static void test_filter(void **state)
{
    static const uint8_t other[6] = {2, 0, 0, 0, 0, 1}, third[6] = {2, 0, 0, 0, 0, 2};
    static const uint8_t group[6] = {1, 0, 0x5e, 0, 0, 1}, group2[6] = {1, 0, 0x5e, 0, 0, 2};
    static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct fixture *f = *state;
    uint8_t table[8 + 12], big[4 + 65 * 6 + 4] = {65};

    start(f, F(CTRL_VQ) | F(CTRL_RX) | F(CTRL_MAC_ADDR));
    assert_true(arrives(f, other, 0)); /* until told otherwise */
    assert_int_equal(command(f, 2, 0, 0, "", 1), 0);
    assert_true(arrives(f, mac, 0));
    assert_true(arrives(f, all, 0));
    assert_false(arrives(f, other, 0));
    assert_false(arrives(f, group, 0));
    assert_int_equal(command(f, 2, 0, 1, "\1", 1), 0); /* all multicast */
    assert_true(arrives(f, group, 0));
    assert_false(arrives(f, other, 0));
    assert_int_equal(command(f, 2, 0, 1, "", 1), 0);

    memcpy(table, "\1\0\0\0", 4);
    memcpy(table + 4, other, 6);
    memcpy(table + 10, "\1\0\0\0", 4);
    memcpy(table + 14, group, 6);
    assert_int_equal(command(f, 2, 1, 0, table, sizeof(table)), 0);
    assert_true(arrives(f, other, 0));
    assert_true(arrives(f, group, 0));
    assert_false(arrives(f, third, 0));
    assert_false(arrives(f, group2, 0));
    /* Tables that lie about their length change nothing. */
    for (uint32_t len = 0; len < sizeof(table); len++)
        assert_int_equal(command(f, 2, 1, 0, table, len), 1);
    memcpy(table + 10, "\xff\xff\xff\xff", 4);
    assert_int_equal(command(f, 2, 1, 0, table, sizeof(table)), 1);
    assert_true(arrives(f, other, 0));
    assert_true(arrives(f, group, 0));
    assert_false(arrives(f, third, 0));
    /* One that is larger than ours lets all of its kind pass. */
    assert_int_equal(command(f, 2, 1, 0, big, sizeof(big)), 0);
    assert_true(arrives(f, third, 0));
    assert_false(arrives(f, group, 0));
    assert_int_equal(command(f, 2, 1, 0, "\0\0\0\0\0\0\0\0", 8), 0);
    assert_false(arrives(f, third, 0));

    uint8_t c[6];
    assert_int_equal(command(f, 2, 1, 1, other, 6), 0); /* our own address */
    vdrv_config(&f->d, 0, c, 6);
    assert_memory_equal(c, other, 6);
    assert_true(arrives(f, other, 0));
    assert_false(arrives(f, mac, 0));
    assert_int_equal(command(f, 2, 1, 1, mac, 5), 1);
    /* A reset brings it back. */
    vdrv_reset(&f->d);
    vdrv_config(&f->d, 0, c, 6);
    assert_memory_equal(c, mac, 6);
}

static void test_vlans(void **state)
{
    struct fixture *f = *state;

    start(f, F(CTRL_VQ) | F(CTRL_VLAN));
    assert_true(arrives(f, mac, 0));
    assert_false(arrives(f, mac, 5));
    assert_int_equal(command(f, 2, 2, 0, "\5\0", 2), 0);
    assert_int_equal(command(f, 2, 2, 0, "\xff\x0f", 2), 0);
    assert_true(arrives(f, mac, 5));
    assert_true(arrives(f, mac, 4095));
    assert_false(arrives(f, mac, 6));
    assert_int_equal(command(f, 2, 2, 1, "\5\0", 2), 0);
    assert_false(arrives(f, mac, 5));
    assert_int_equal(command(f, 2, 2, 0, "\0\x10", 2), 1); /* 4096 */
    assert_int_equal(command(f, 2, 2, 2, "\5\0", 2), 1);
    assert_int_equal(command(f, 2, 2, 0, "\5", 1), 1);
}

/* Commands that were not negotiated, that are none, or whose chains are no commands. */
static void test_commands(void **state)
{
    struct fixture *f = *state;
    struct vdrv_sg sg[2];
    uint8_t in[4];

    start(f, F(CTRL_VQ));
    assert_int_equal(command(f, 2, 0, 0, "\1", 1), 1);
    assert_int_equal(command(f, 2, 1, 1, mac, 6), 1);
    assert_int_equal(command(f, 2, 2, 0, "\1\0", 2), 1);
    assert_int_equal(command(f, 2, 4, 0, "\1\0", 2), 1);
    assert_int_equal(command(f, 2, 99, 0, "\1\0", 2), 1);
    start(f, F(CTRL_VQ) | F(CTRL_RX));
    assert_int_equal(command(f, 2, 0, 2, "\1", 1), 1);
    assert_int_equal(command(f, 2, 0, 0, "", 0), 1);
    assert_int_equal(vdrv_request(&f->d.q[2], "", 1, in, 1), 1);
    assert_int_equal(in[0], 1);
    assert_int_equal(vdrv_request(&f->d.q[2], "\0\0\1", 3, in, 4), 1);
    assert_int_equal(in[0], 0);
    /* No room for the answer, and nothing but room. */
    sg[0] = (struct vdrv_sg){guest_bytes(f, "\0\0\1", 3), 3};
    assert_true(vdrv_add(&f->d.q[2], sg, 1, 0, f) >= 0);
    vdrv_kick(&f->d.q[2]);
    wait_used(f, 2, 0);
    assert_true(vdrv_add(&f->d.q[2], sg, 0, 1, f) >= 0);
    vdrv_kick(&f->d.q[2]);
    wait_used(f, 2, 1);
}

/* ---- several pairs ---- */

static void test_pairs(void **state)
{
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    struct wire_frame *got;
    uint8_t data[100];
    unsigned ctrl = 2 * PAIRS;

    fill(data, sizeof(data));
    vdrv_start(&f->d, f->ring | F(CTRL_VQ) | F(MQ), 2 * PAIRS + 1, 16);
    assert_int_equal(f->w.queues, 1);
    assert_int_equal(command(f, ctrl, 4, 0, "\0\0", 2), 1);
    assert_int_equal(command(f, ctrl, 4, 0, "\5\0", 2), 1);
    assert_int_equal(command(f, ctrl, 4, 0, "\4\0", 2), 0);
    assert_int_equal(f->w.queues, 4);
    for (unsigned i = 0; i < PAIRS; i++) {
        transmit(f, 2 * i + 1, &h, data, 70 + i, 0);
        got = wire_next(&f->w);
        assert_int_equal(got->queue, i);
        assert_int_equal(got->len, 70 + i);
        free(got);
        buffer(f, 2 * i, 200, 1);
        vdrv_kick(&f->d.q[2 * i]);
        wire_put(&f->w, i, &h, data, 80 + i);
        check_received(f, 2 * i, 200, &h, data, 80 + i);
    }
    /* Back to two: what comes for the others goes to the first. */
    assert_int_equal(command(f, ctrl, 4, 0, "\2\0", 2), 0);
    buffer(f, 0, 200, 1);
    vdrv_kick(&f->d.q[0]);
    wire_put(&f->w, 3, &h, data, 90);
    check_received(f, 0, 200, &h, data, 90);
}

/* ---- reset, save, hostility ---- */

static void test_reset(void **state)
{
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    struct wire_frame *got;
    uint8_t data[100];

    fill(data, sizeof(data));
    for (unsigned i = 0; i < 50; i++) {
        start(f, F(MRG_RXBUF));
        for (unsigned k = 0; k < 10; k++) {
            transmit(f, 1, &h, data, 60, 0);
            buffer(f, 0, 100, 1);
        }
        vdrv_kick(&f->d.q[0]);
        wire_put(&f->w, 0, &h, data, 100);
        vdrv_reset(&f->d); /* in flight */
        pthread_mutex_lock(&f->w.lock);
        wire_drop(&f->w.sent, &f->w.sent_tail);
        pthread_mutex_unlock(&f->w.lock);
    }
    start(f, 0);
    transmit(f, 1, &h, data, 77, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->len, 77);
    free(got);
}

/* To a device with the same wire: driver and rings go on where they were. */
static void test_save(void **state)
{
    const struct net_hdr h = {0};
    struct fixture *f = *state;
    struct wire_frame *got;
    struct sbuf b;
    struct err e = {""};
    uint8_t data[100], other[6] = {2, 0, 0, 0, 0, 1}, c[6];
    size_t used;

    fill(data, sizeof(data));
    start(f, F(CTRL_VQ) | F(CTRL_RX) | F(CTRL_MAC_ADDR));
    assert_int_equal(command(f, 2, 1, 1, other, 6), 0);
    assert_int_equal(command(f, 2, 0, 0, "", 1), 0);
    transmit(f, 1, &h, data, 71, 0);
    free(wire_next(&f->w));
    wait_used(f, 1, 0);

    sbuf_init(&b);
    device_quiesce(f->d.dev);
    transmit(f, 1, &h, data, 72, 0); /* nobody looks */
    assert_int_equal(device_save(f->d.dev, &b), 0);
    device_reset(f->d.dev, RESET_COLD);
    if (device_load(f->d.dev, b.data, b.len, &used, &e))
        fail_msg("%s", e.msg);
    sbuf_free(&b);
    device_resume(f->d.dev);

    got = wire_next(&f->w);
    assert_int_equal(got->len, 72);
    free(got);
    wait_used(f, 1, 0);
    vdrv_config(&f->d, 0, c, 6);
    assert_memory_equal(c, other, 6);
    assert_true(arrives(f, other, 0));
    assert_false(arrives(f, mac, 0));
}

static void test_state(void **state)
{
    struct fixture *f = *state;
    const struct pci_bus_cfg cfg = {.ctx = &f->d.f.ctx}; /* messages go nowhere */
    struct pci_bus *bus;

    assert_int_equal(pci_bus_new(&bus, &cfg, NULL), 0);
    fake_check_state(&f->d.f, &virtio_net_class,
                     &(struct virtio_net_cfg){{bus, PCI_DEVFN(1, 0)}, &f->w.n});
    pci_bus_free(bus);
}

/* Random chains in all queues while frames come and go. */
static void test_hostile(void **state)
{
    struct fixture *f = *state;
    uint64_t seed = 88172645463325252ull;
    uint8_t junk[4096];
    struct wire_frame *got;

    for (unsigned round = 0; round < 30; round++) {
        vdrv_start(&f->d,
                   f->ring | F(CSUM) | F(HOST_TSO4) | F(HOST_TSO6) | F(CTRL_VQ) | F(CTRL_RX) |
                       F(CTRL_VLAN) | F(CTRL_MAC_ADDR) | F(MQ) | (round & 1 ? F(MRG_RXBUF) : 0),
                   2 * PAIRS + 1, 16);
        for (unsigned i = 0; i < 100; i++) {
            struct vdrv_sg sg[6];
            unsigned n, out;
            uint64_t at;

            for (size_t k = 0; k < sizeof(junk); k += 8) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                memcpy(junk + k, &seed, 8);
            }
            for (unsigned k = 0; k < 12; k++)
                junk[k] &= 7; /* sometimes plausible */
            at = guest_bytes(f, junk, sizeof(junk));
            n = 1 + seed % 6;
            out = (unsigned)(seed >> 8) % (n + 1);
            for (unsigned k = 0; k < n; k++)
                sg[k] = (struct vdrv_sg){at + (seed >> k) % 2000, 1 + (seed >> (10 + k)) % 2000};
            vdrv_add(&f->d.q[(seed >> 40) % (2 * PAIRS + 1)], sg, out, n - out, f);
            vdrv_kick(&f->d.q[(seed >> 44) % (2 * PAIRS + 1)]);
            if (i % 4 == 0) {
                struct net_hdr h;

                memcpy(&h, junk, sizeof(h));
                wire_put(&f->w, (unsigned)(seed >> 50) % 8, &h, junk, 14 + (seed >> 20) % 4000);
            }
        }
        f->d.free = 32 * MIB; /* all of that again */
        vdrv_reset(&f->d);
    }
    pthread_mutex_lock(&f->w.lock);
    wire_drop(&f->w.sent, &f->w.sent_tail);
    pthread_mutex_unlock(&f->w.lock);
    start(f, 0);
    fill(junk, 100);
    transmit(f, 1, &(struct net_hdr){0}, junk, 64, 0);
    got = wire_next(&f->w);
    assert_int_equal(got->len, 64);
    free(got);
}

#define ON_LAYOUT(t, l)                                    \
    {                                                      \
#t " " #l, t, setup, teardown, (void *)&layouts[l] \
    }
#define ON_ALL(t) ON_LAYOUT(t, 0), ON_LAYOUT(t, 1), ON_LAYOUT(t, 2), ON_LAYOUT(t, 3)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_LAYOUT(test_config, 0),   ON_LAYOUT(test_dependencies, 0),
        ON_LAYOUT(test_offloads, 0), ON_LAYOUT(test_state, 0),
        ON_ALL(test_transmit),       ON_ALL(test_headers),
        ON_ALL(test_short),          ON_ALL(test_many),
        ON_ALL(test_receive),        ON_ALL(test_merge),
        ON_ALL(test_wait),           ON_ALL(test_ring_too_small),
        ON_ALL(test_filter),         ON_ALL(test_vlans),
        ON_ALL(test_commands),       ON_ALL(test_pairs),
        ON_ALL(test_reset),          ON_ALL(test_save),
        ON_ALL(test_hostile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
