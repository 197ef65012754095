/* User-mode networking, from the guest's side of the cable and the host's. */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"

#define PATIENCE_MS 20000u
#define HOST 2 /* last number of the host's address */
#define DNS 3
#define ALL (NETDEV_CSUM | NETDEV_TSO4 | NETDEV_TSO6)

static uint8_t bytes[400000], got[400000];

/* ---- the host ---- */

static void patience(int fd)
{
    const struct timeval t = {.tv_sec = PATIENCE_MS / 1000};

    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)), 0);
}

static struct sockaddr_storage loopback(unsigned ip, uint16_t port)
{
    struct sockaddr_storage a = {.ss_family = ip == 4 ? AF_INET : AF_INET6};

    if (ip == 4) {
        ((struct sockaddr_in *)&a)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ((struct sockaddr_in *)&a)->sin_port = htons(port);
    } else {
        ((struct sockaddr_in6 *)&a)->sin6_addr = in6addr_loopback;
        ((struct sockaddr_in6 *)&a)->sin6_port = htons(port);
    }
    return a;
}

/* A socket of the host's loopback; -1 when it has no such family. */
static int host_socket(unsigned ip, int type, uint16_t *port)
{
    struct sockaddr_storage a = loopback(ip, 0);
    socklen_t len = ip == 4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    int fd = socket(a.ss_family, type | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&a, len)) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    if (type == SOCK_STREAM)
        assert_int_equal(listen(fd, 64), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    *port = ntohs(ip == 4 ? ((struct sockaddr_in *)&a)->sin_port
                          : ((struct sockaddr_in6 *)&a)->sin6_port);
    patience(fd);
    return fd;
}

static int host_accept(int fd)
{
    int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

    assert_true(c >= 0);
    patience(c);
    return c;
}

static int host_connect(unsigned ip, uint16_t port)
{
    struct sockaddr_storage a = loopback(ip, port);
    int fd = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    patience(fd);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(struct sockaddr_in6)), 0);
    return fd;
}

static void read_all(int fd, void *buf, size_t len)
{
    assert_int_equal(recv(fd, buf, len, MSG_WAITALL), len);
}

struct job {
    int fd;
    size_t len;
};

/* Some data needs two to move. */
static void *write_job(void *arg)
{
    struct job *j = arg;

    for (size_t done = 0; done < j->len;) {
        ssize_t n = send(j->fd, bytes + done, j->len - done, MSG_NOSIGNAL);

        if (n <= 0)
            break;
        done += (size_t)n;
    }
    return NULL;
}

static void *read_job(void *arg)
{
    struct job *j = arg;

    j->len = (size_t)recv(j->fd, got, j->len, MSG_WAITALL);
    return NULL;
}

/* ---- ARP, DHCP ---- */

static bool is_arp_reply(const struct gframe *f, const void *arg)
{
    return packet_get16(f->data + 12) == 0x0806 && f->data[21] == 2;
}

static void arp(void **state)
{
    struct netdev_cfg cfg;
    struct guest g;
    uint8_t f[60] =
        "\xff\xff\xff\xff\xff\xff\x52\x54\x00\x12\x34\x56\x08\x06\x00\x01\x08\x00\x06\x04"
        "\x00\x01\x52\x54\x00\x12\x34\x56\x0a\x00\x02\x0f\0\0\0\0\0\0\x0a\x00\x02\x02";
    const struct net_hdr h = {0};
    struct gframe *r;

    guest_defaults(&cfg);
    guest_init(&g, &cfg, 0);
    guest_send(&g, &h, f, sizeof(f));
    r = guest_recv(&g, is_arp_reply, NULL, PATIENCE_MS);
    assert_non_null(r);
    assert_memory_equal(r->data, "\x52\x54\x00\x12\x34\x56\x52\x55\x0a\x00\x02\x02", 12);
    assert_memory_equal(r->data + 22, "\x52\x55\x0a\x00\x02\x02\x0a\x00\x02\x02", 10);
    free(r);
    f[41] = 77; /* nobody's address */
    guest_send(&g, &h, f, sizeof(f));
    assert_null(guest_recv(&g, is_arp_reply, NULL, 50));
    guest_fini(&g);
}

static bool is_udp_to(const struct gframe *f, const void *arg)
{
    return f->p.ip && f->p.proto == PACKET_UDP && !f->p.fragment &&
           packet_get16(f->data + f->p.l4 + 2) == *(const uint16_t *)arg;
}

/* Option `code` of a DHCP message; fails if there is none. */
static const uint8_t *dhcp_option(const struct gframe *f, uint8_t code)
{
    const uint8_t *o = f->data + f->p.l4 + 8 + 240, *end = f->data + f->p.len;

    while (o + 1 < end && *o != 255 && *o != code)
        o += *o ? 2 + o[1] : 1;
    assert_true(o + 1 < end && *o == code);
    return o + 2;
}

static void dhcp(void **state)
{
    const uint16_t client = 68;
    const struct net_hdr h = {0};
    struct netdev_cfg cfg;
    struct guest g;
    uint8_t udp[8 + 300] = {0, 68, 0, 67, 0, 0, 0, 0, 1, 1, 6, 0, 1, 2, 3, 4};
    uint8_t frame[400];
    struct gframe *r;
    size_t len;

    guest_defaults(&cfg);
    cfg.hostname = "guesty";
    cfg.net.s_addr = htonl(0xc0a84d00);
    cfg.prefix = 24;
    cfg.dns.s_addr = htonl(0xc0a84d07);
    guest_init(&g, &cfg, 0);
    memcpy(udp + 8 + 28, cfg.mac, 6);
    memcpy(udp + 8 + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8);
    len = guest_ip(&g, frame, 4, 0xffffffff, PACKET_UDP, udp, sizeof(udp));
    memset(frame, 0xff, 6);
    guest_send(&g, &h, frame, len);
    r = guest_recv(&g, is_udp_to, &client, PATIENCE_MS);
    assert_non_null(r);
    assert_memory_equal(r->data + r->p.l4 + 8 + 4, "\x01\x02\x03\x04", 4);
    assert_memory_equal(r->data + r->p.l4 + 8 + 16, "\xc0\xa8\x4d\x0f", 4);
    assert_int_equal(*dhcp_option(r, 53), 2);
    assert_memory_equal(dhcp_option(r, 1), "\xff\xff\xff\x00", 4);
    assert_memory_equal(dhcp_option(r, 3), "\xc0\xa8\x4d\x02", 4);
    assert_memory_equal(dhcp_option(r, 6), "\xc0\xa8\x4d\x07", 4);
    assert_memory_equal(dhcp_option(r, 12), "guesty", 6);
    free(r);
    guest_fini(&g);
}

/* ---- TCP ---- */

/* Data both ways, with all that offloads can be. */
static void transfer(unsigned ip, unsigned offloads, unsigned mtu, enum gsend how)
{
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    uint16_t port;
    int s = host_socket(ip, SOCK_STREAM, &port), fd;
    pthread_t t;
    struct job j;
    bool large;

    if (s < 0 && ip == 6)
        return; /* a host without IPv6 */
    guest_defaults(&cfg);
    cfg.mtu = (uint16_t)mtu;
    guest_init(&g, &cfg, offloads);
    guest_hello(&g, ip);
    assert_true(gconn_open(&c, &g, ip, HOST, port));
    assert_int_equal(c.mss, (mtu ? mtu : 1500) - (ip == 4 ? 40 : 60));
    fd = host_accept(s);

    j = (struct job){fd, sizeof(got)};
    assert_int_equal(pthread_create(&t, NULL, read_job, &j), 0);
    gconn_send(&c, bytes, sizeof(bytes), how);
    pthread_join(t, NULL);
    assert_int_equal(j.len, sizeof(bytes));
    assert_memory_equal(got, bytes, sizeof(bytes));

    memset(got, 0, sizeof(got));
    j = (struct job){fd, sizeof(bytes)};
    assert_int_equal(pthread_create(&t, NULL, write_job, &j), 0);
    gconn_recv(&c, got, sizeof(got));
    pthread_join(t, NULL);
    assert_memory_equal(got, bytes, sizeof(bytes));
    large = offloads & (ip == 4 ? NETDEV_TSO4 : NETDEV_TSO6) && mtu < 16000;
    assert_int_equal(g.large > 0, large);

    close(fd);
    gconn_close(&c);
    close(s);
    guest_fini(&g);
}

static void tcp_plain(void **state)
{
    transfer(4, 0, 0, GSEND_PLAIN);
    transfer(6, 0, 0, GSEND_PLAIN);
}

static void tcp_checksums(void **state)
{
    transfer(4, NETDEV_CSUM, 0, GSEND_CSUM);
    transfer(6, NETDEV_CSUM, 0, GSEND_CSUM);
}

static void tcp_large(void **state)
{
    transfer(4, ALL, 0, GSEND_TSO);
    transfer(6, ALL, 0, GSEND_TSO);
    transfer(4, NETDEV_CSUM | NETDEV_TSO6, 0, GSEND_TSO);
}

static void tcp_mtus(void **state)
{
    transfer(4, ALL, 576, GSEND_TSO);
    transfer(4, ALL, 9000, GSEND_TSO);
    transfer(6, ALL, 9000, GSEND_TSO);
    transfer(4, ALL, 16000, GSEND_CSUM);
    transfer(6, ALL, 16000, GSEND_CSUM);
}

/* Who wants smaller segments than the link has room for gets none that are larger. */
static void small_mss_with(unsigned offloads)
{
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    uint16_t port;
    int s = host_socket(4, SOCK_STREAM, &port), fd;

    guest_defaults(&cfg);
    guest_init(&g, &cfg, offloads);
    g.mss = 1360;
    guest_hello(&g, 4);
    assert_true(gconn_open(&c, &g, 4, HOST, port));
    fd = host_accept(s);
    assert_int_equal(send(fd, bytes, 50000, 0), 50000);
    gconn_recv(&c, got, 50000);
    assert_memory_equal(got, bytes, 50000);
    if (offloads)
        assert_true(g.large > 0); /* cut that way: guest.c checks it */
    else
        assert_int_equal(g.largest, 54 + 1360);
    close(fd);
    gconn_close(&c);
    close(s);
    guest_fini(&g);
}

static void small_mss(void **state)
{
    small_mss_with(0);
    small_mss_with(ALL);
}

static void refused(void **state)
{
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    uint16_t port;
    int s = host_socket(4, SOCK_STREAM, &port);

    close(s);
    guest_defaults(&cfg);
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 4);
    assert_false(gconn_open(&c, &g, 4, HOST, port));
    guest_fini(&g);
}

static void many_connections(void **state)
{
    struct netdev_cfg cfg;
    struct guest g;
    uint16_t port;
    int s = host_socket(4, SOCK_STREAM, &port);

    guest_defaults(&cfg);
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 4);
    for (unsigned i = 0; i < 1000; i++) {
        struct gconn c;
        uint8_t buf[100];
        int fd;

        assert_true(gconn_open(&c, &g, 4, HOST, port));
        fd = host_accept(s);
        gconn_send(&c, bytes + i, 100, GSEND_CSUM);
        read_all(fd, buf, sizeof(buf));
        assert_memory_equal(buf, bytes + i, sizeof(buf));
        assert_int_equal(send(fd, buf, sizeof(buf), 0), sizeof(buf));
        gconn_recv(&c, got, 100);
        assert_memory_equal(got, buf, sizeof(buf));
        close(fd);
        gconn_close(&c);
    }
    close(s);
    guest_fini(&g);
}

/* ---- hostile frames ---- */

static void lies(void **state)
{
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    uint16_t port;
    int s = host_socket(4, SOCK_STREAM, &port), fd;
    uint8_t frame[3000], seg[2020] = {0};
    size_t len;
    unsigned random = 1;

    guest_defaults(&cfg);
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 4);
    assert_true(gconn_open(&c, &g, 4, HOST, port));
    fd = host_accept(s);

    packet_put16(seg, c.here);
    packet_put16(seg + 2, c.there);
    for (unsigned i = 0; i < 4; i++) {
        seg[4 + i] = (uint8_t)(c.seq >> (24 - 8 * i));
        seg[8 + i] = (uint8_t)(c.ack >> (24 - 8 * i));
    }
    seg[12] = 0x50;
    seg[13] = 0x10;
    seg[14] = 0xff;
    len = guest_ip(&g, frame, 4, HOST, PACKET_TCP, seg, sizeof(seg));

    const struct net_hdr bad[] = {
        {.flags = NET_HDR_NEEDS_CSUM, .csum_start = 0xffff, .csum_offset = 0xffff},
        {.flags = NET_HDR_NEEDS_CSUM, .csum_start = (uint16_t)len, .csum_offset = 0},
        {.flags = NET_HDR_NEEDS_CSUM, .csum_start = 34, .csum_offset = (uint16_t)(len - 35)},
        {.flags = NET_HDR_NEEDS_CSUM, .csum_start = 14, .csum_offset = 10}, /* breaks the header */
        {.flags = NET_HDR_NEEDS_CSUM, .gso_type = NET_GSO_TCPV4, .gso_size = 0},
        {.flags = NET_HDR_NEEDS_CSUM, .gso_type = NET_GSO_TCPV6, .gso_size = 1000},
        {.flags = 0, .gso_type = NET_GSO_TCPV4, .gso_size = 1000},
        {.gso_type = 3, .gso_size = 1000},
        {.gso_type = NET_GSO_ECN},
        {.gso_type = 0x7f, .gso_size = 1},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        guest_send(&g, &bad[i], frame, len);
    /* All kinds of nonsense, of all lengths. */
    for (unsigned i = 0; i < 20000; i++) {
        struct net_hdr h;
        uint8_t f[200];
        size_t n = 0;

        memcpy(f, frame, sizeof(f));
        for (unsigned k = 0; k < 1 + i % 8; k++) {
            random = random * 1103515245 + 12345;
            f[12 + (random >> 16) % 60] = (uint8_t)(random >> 8);
        }
        for (unsigned k = 0; k < sizeof(h); k++) {
            random = random * 1103515245 + 12345;
            ((uint8_t *)&h)[k] = (uint8_t)(random >> 16 & (i & 1 ? 0xff : 0x07));
        }
        random = random * 1103515245 + 12345;
        n = (random >> 16) % sizeof(f);
        /* It may be this connection's, but not valid data for it. */
        f[38] = frame[38] ^ 0x40;
        guest_send(&g, &h, f, n);
    }
    /* The connection lives, and none of it arrived. */
    gconn_send(&c, bytes, 5000, GSEND_TSO);
    read_all(fd, got, 5000);
    assert_memory_equal(got, bytes, 5000);
    assert_int_equal(recv(fd, got, 1, MSG_DONTWAIT), -1);
    close(fd);
    gconn_close(&c);
    close(s);
    guest_fini(&g);
}

/* ---- a guest without room ---- */

static void no_room(void **state)
{
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    uint16_t port;
    int s = host_socket(4, SOCK_STREAM, &port), fd;
    pthread_t t;
    struct job j;

    guest_defaults(&cfg);
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 4);
    assert_true(gconn_open(&c, &g, 4, HOST, port));
    fd = host_accept(s);
    guest_full(&g, true);
    j = (struct job){fd, sizeof(bytes)};
    assert_int_equal(pthread_create(&t, NULL, write_job, &j), 0);
    pthread_mutex_lock(&g.lock);
    while (!g.refused)
        pthread_cond_wait(&g.changed, &g.lock);
    pthread_mutex_unlock(&g.lock);
    /* Kicks without room lose nothing either. */
    for (unsigned i = 0; i < 5; i++)
        guest_full(&g, true);
    guest_full(&g, false);
    gconn_recv(&c, got, sizeof(got));
    pthread_join(t, NULL);
    assert_memory_equal(got, bytes, sizeof(bytes));

    /* Stopped, nothing is touched; then it goes on. */
    netdev_stop(g.n);
    netdev_stop(g.n);
    j = (struct job){fd, 1000};
    write_job(&j);
    assert_null(guest_recv(&g, is_arp_reply, NULL, 1));
    netdev_start(g.n);
    gconn_recv(&c, got, 1000);
    assert_memory_equal(got, bytes, 1000);
    close(fd);
    gconn_close(&c);
    close(s);
    guest_fini(&g);
}

/* ---- UDP ---- */

static size_t udp(struct guest *g, uint8_t *frame, unsigned ip, uint32_t to, uint16_t here,
                  uint16_t there, const void *data, size_t len)
{
    static uint8_t l4[2000];

    memset(l4, 0, 8);
    packet_put16(l4, here);
    packet_put16(l4 + 2, there);
    memcpy(l4 + 8, data, len);
    return guest_ip(g, frame, ip, to, PACKET_UDP, l4, 8 + len);
}

static bool is_fragment(const struct gframe *f, const void *arg)
{
    return f->p.ip == 4 ? f->p.fragment && f->p.proto == PACKET_UDP
                        : f->p.ip == 6 && f->p.proto == 44;
}

static void udp_transfer(unsigned ip)
{
    const struct net_hdr h = {0};
    const uint16_t here = 5000;
    struct netdev_cfg cfg;
    struct guest g;
    uint16_t port;
    uint8_t frame[2000];
    struct sockaddr_storage from;
    socklen_t flen = sizeof(from);
    int s = host_socket(ip, SOCK_DGRAM, &port);
    struct gframe *f;
    size_t done = 0;

    if (s < 0 && ip == 6)
        return;
    guest_defaults(&cfg);
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, ip);
    guest_send(&g, &h, frame, udp(&g, frame, ip, HOST, here, port, bytes, 1000));
    assert_int_equal(recvfrom(s, got, sizeof(got), 0, (struct sockaddr *)&from, &flen), 1000);
    assert_memory_equal(got, bytes, 1000);
    assert_int_equal(sendto(s, bytes, 1400, 0, (struct sockaddr *)&from, flen), 1400);
    f = guest_recv(&g, is_udp_to, &here, PATIENCE_MS);
    assert_non_null(f);
    assert_int_equal(packet_get16(f->data + f->p.l4), port);
    assert_int_equal(f->p.len - f->p.l4 - 8, 1400);
    assert_memory_equal(f->data + f->p.l4 + 8, bytes, 1400);
    free(f);
    /* More than the link takes comes in fragments. */
    assert_int_equal(sendto(s, bytes, 5000, 0, (struct sockaddr *)&from, flen), 5000);
    while (done < 5008) {
        f = guest_recv(&g, is_fragment, NULL, PATIENCE_MS);
        assert_non_null(f);
        size_t head = ip == 4 ? 0 : 8, n = f->p.len - f->p.l4 - head;
        assert_true(done + n <= sizeof(got));
        memcpy(got + done, f->data + f->p.l4 + head, n);
        done += n;
        free(f);
    }
    assert_int_equal(done, 5008);
    assert_memory_equal(got + 8, bytes, 5000);
    close(s);
    guest_fini(&g);
}

static void udp_both(void **state)
{
    udp_transfer(4);
    udp_transfer(6);
}

/* The host's DNS server, at its address in the guest's network. */
static void dns(void **state)
{
    const struct net_hdr h = {0};
    const uint16_t here = 5353;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(53)}, from;
    socklen_t flen = sizeof(from);
    struct netdev_cfg cfg;
    struct guest g;
    uint8_t frame[200];
    struct gframe *f;
    int s;

    if (!*state)
        skip(); /* no network of our own */
    inet_pton(AF_INET, "127.0.0.77", &a.sin_addr);
    s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof(a)), 0);
    patience(s);
    guest_defaults(&cfg);
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 4);
    guest_send(&g, &h, frame, udp(&g, frame, 4, DNS, here, 53, "query", 5));
    assert_int_equal(recvfrom(s, got, 100, 0, (struct sockaddr *)&from, &flen), 5);
    assert_memory_equal(got, "query", 5);
    assert_int_equal(sendto(s, "answer", 6, 0, (struct sockaddr *)&from, flen), 6);
    f = guest_recv(&g, is_udp_to, &here, PATIENCE_MS);
    assert_non_null(f);
    assert_memory_equal(f->data + 26, "\x0a\x00\x02\x03", 4); /* from where it was asked */
    assert_memory_equal(f->data + f->p.l4 + 8, "answer", 6);
    free(f);
    close(s);
    guest_fini(&g);
}

/* ---- forwarded ports ---- */

static uint16_t free_port(int type)
{
    uint16_t port;
    int s = host_socket(4, type, &port);

    assert_true(s >= 0);
    close(s);
    return port;
}

static void hostfwd(void **state)
{
    const uint16_t udp_port = 69;
    const struct net_hdr h = {0};
    struct netdev_fwd fwd[2];
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    struct err e;
    struct netdev *second;
    uint16_t port = free_port(SOCK_STREAM), uport = free_port(SOCK_DGRAM);
    struct sockaddr_storage a = loopback(4, uport);
    uint8_t frame[200];
    struct gframe *f;
    int fd;

    for (unsigned i = 0; i < 2; i++) {
        fwd[i] = (struct netdev_fwd){.udp = i, .host = loopback(4, i ? uport : port)};
        *(struct sockaddr_in *)&fwd[i].guest =
            (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(i ? udp_port : 22)};
    }
    guest_defaults(&cfg);
    cfg.fwd = fwd;
    cfg.nfwd = 2;
    cfg.restricted = true; /* which forwarded ports are not */
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 4);

    fd = host_connect(4, port);
    gconn_accept(&c, &g, 4, 22);
    gconn_send(&c, "SSH-2.0-guest\r\n", 15, GSEND_CSUM);
    read_all(fd, got, 15);
    assert_memory_equal(got, "SSH-2.0-guest\r\n", 15);
    assert_int_equal(send(fd, bytes, 50000, 0), 50000);
    gconn_recv(&c, got, 50000);
    assert_memory_equal(got, bytes, 50000);
    assert_true(g.large > 0);
    close(fd);
    gconn_close(&c);

    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    patience(fd);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(struct sockaddr_in)), 0);
    assert_int_equal(send(fd, "ping", 4, 0), 4);
    f = guest_recv(&g, is_udp_to, &udp_port, PATIENCE_MS);
    assert_non_null(f);
    assert_memory_equal(f->data + f->p.l4 + 8, "ping", 4);
    free(f);
    close(fd);

    /* Nothing else gets out. */
    assert_false(gconn_open(&c, &g, 4, HOST, port));
    uint16_t other;
    fd = host_socket(4, SOCK_DGRAM, &other);
    guest_send(&g, &h, frame, udp(&g, frame, 4, HOST, 77, other, "out", 3));
    assert_false(gconn_open(&c, &g, 4, HOST, port)); /* what came before is done */
    assert_int_equal(recv(fd, got, 10, MSG_DONTWAIT), -1);
    close(fd);

    assert_int_equal(netdev_open(&second, &cfg, &g.log, &e), -EADDRINUSE);
    assert_non_null(strstr(e.msg, "127.0.0.1:"));
    assert_non_null(strstr(e.msg, "another program"));
    cfg.fwd = fwd + 1;
    cfg.nfwd = 1;
    assert_int_equal(netdev_open(&second, &cfg, &g.log, &e), -EADDRINUSE);
    assert_non_null(strstr(e.msg, "udp"));
    guest_fini(&g);
    /* Now they are free again. */
    assert_int_equal(netdev_open(&second, &cfg, &g.log, &e), 0);
    netdev_free(second);
    inet_pton(AF_INET, "192.0.2.1", &((struct sockaddr_in *)&fwd[1].host)->sin_addr);
    assert_int_equal(netdev_open(&second, &cfg, &g.log, &e), -EADDRNOTAVAIL);
    assert_non_null(strstr(e.msg, "no such address"));
}

static void hostfwd6(void **state)
{
    struct netdev_fwd fwd = {.host = loopback(6, 0)};
    struct sockaddr_in6 *to = (struct sockaddr_in6 *)&fwd.guest;
    struct netdev_cfg cfg;
    struct guest g;
    struct gconn c;
    uint16_t port;
    int fd = host_socket(6, SOCK_STREAM, &port);

    if (fd < 0)
        skip();
    close(fd);
    fwd.host = loopback(6, port);
    *to = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(22)};
    inet_pton(AF_INET6, "fec0::15", &to->sin6_addr);
    guest_defaults(&cfg);
    cfg.fwd = &fwd;
    cfg.nfwd = 1;
    guest_init(&g, &cfg, ALL);
    guest_hello(&g, 6);
    fd = host_connect(6, port);
    gconn_accept(&c, &g, 6, 22);
    assert_int_equal(send(fd, bytes, 50000, 0), 50000);
    gconn_recv(&c, got, 50000);
    assert_memory_equal(got, bytes, 50000);
    close(fd);
    gconn_close(&c);
    guest_fini(&g);
}

/* ---- configuration ---- */

static void bad_networks(void **state)
{
    static const struct {
        uint32_t net, host, dns, dhcp;
        unsigned prefix;
        const char *says;
    } cases[] = {
        {0x0a000200, 0, 0, 0, 28, "/8 to /27"},
        {0x0a000200, 0, 0, 0, 7, "/8 to /27"},
        {0x0a000201, 0, 0, 0, 24, "bits beyond"},
        {0x0a000200, 0x0a000302, 0, 0, 24, "host's"},
        {0x0a000200, 0, 0x0a0002ff, 0, 24, "DNS"},
        {0x0a000200, 0, 0, 0x0a000200, 24, "DHCP"},
        {0x0a000200, 0x0a000203, 0, 0, 24, "different"},
    };
    struct netdev *n;
    struct netdev_cfg cfg;
    struct log log;

    log_init(&log, LOG_WARN, STDERR_FILENO);
    guest_defaults(&cfg);
    cfg.mtu = 16001;
    assert_int_equal(netdev_open(&n, &cfg, &log, NULL), -EINVAL);
    cfg.mtu = 575;
    assert_int_equal(netdev_open(&n, &cfg, &log, NULL), -EINVAL);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err e = {""};

        guest_defaults(&cfg);
        cfg.net.s_addr = htonl(cases[i].net);
        cfg.host.s_addr = htonl(cases[i].host);
        cfg.dns.s_addr = htonl(cases[i].dns);
        cfg.dhcp.s_addr = htonl(cases[i].dhcp);
        cfg.prefix = cases[i].prefix;
        assert_int_equal(netdev_open(&n, &cfg, &log, &e), -EINVAL);
        assert_non_null(strstr(e.msg, cases[i].says));
    }
}

/* A cable that leads nowhere takes everything. */
static void none(void **state)
{
    const struct net_hdr h = {0};
    struct netdev_cfg cfg;
    struct guest g;

    guest_defaults(&cfg);
    cfg.kind = NETDEV_NONE;
    guest_init(&g, &cfg, ALL);
    assert_false(netdev_info(g.n)->link);
    guest_send(&g, &h, bytes, 1000);
    assert_null(guest_recv(&g, is_arp_reply, NULL, 20));
    guest_fini(&g);
}

/* ---- main ---- */

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

    if (fd >= 0)
        close(fd);
    return ok;
}

/* A network of our own, with nothing but loopback, and a DNS server to find; needs root or user
 * namespaces. */
static bool isolate(void)
{
    struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    char path[] = "/tmp/net-user-XXXXXX", map[32];
    unsigned uid = getuid();
    int fd;

    if (unshare(CLONE_NEWNET | CLONE_NEWNS)) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS))
            return false;
        snprintf(map, sizeof(map), "0 %u 1", uid);
        if (!write_file("/proc/self/uid_map", map))
            return false;
    }
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &r))
        return false;
    close(fd);
    fd = mkstemp(path);
    if (fd < 0)
        return false;
    close(fd);
    bool ok = write_file(path, "nameserver 127.0.0.77\n") &&
              !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
              !mount(path, "/etc/resolv.conf", NULL, MS_BIND, NULL);
    unlink(path);
    return ok;
}

int main(void)
{
    bool isolated = isolate();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arp),
        cmocka_unit_test(dhcp),
        cmocka_unit_test(tcp_plain),
        cmocka_unit_test(tcp_checksums),
        cmocka_unit_test(tcp_large),
        cmocka_unit_test(tcp_mtus),
        cmocka_unit_test(small_mss),
        cmocka_unit_test(refused),
        cmocka_unit_test(many_connections),
        cmocka_unit_test(lies),
        cmocka_unit_test(no_room),
        cmocka_unit_test(udp_both),
        cmocka_unit_test_prestate(dns, isolated ? "" : NULL),
        cmocka_unit_test(hostfwd),
        cmocka_unit_test(hostfwd6),
        cmocka_unit_test(bad_networks),
        cmocka_unit_test(none),
    };

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 31 + i / 251);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
