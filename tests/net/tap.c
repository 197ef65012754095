/* The tap back end in a network of our own; skipped where that cannot be had. */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_MS 20000u
#define SKIPPED 77
#define HOST 0x0a000201u /* 10.0.2.1; the guest is guest.c's 10.0.2.15 */
#define GUEST 0x0a00020fu
#define PORT 7000

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

static struct ifreq request(const char *name)
{
    struct ifreq r = {.ifr_flags = 0};

    strcpy(r.ifr_name, name);
    return r;
}

static void set_address(struct sockaddr *to, uint32_t a)
{
    *(struct sockaddr_in *)to =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(a)};
}

/* An interface that stays, with an address, a neighbour, and up. Where several have the same
 * address the first is talked to. */
static bool make_tap(const char *name, short flags)
{
    struct ifreq r = request(name);
    struct arpreq arp = {.arp_flags = ATF_PERM | ATF_COM};
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC), s = socket(AF_INET, SOCK_DGRAM, 0);
    bool ok;

    r.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | flags);
    ok = fd >= 0 && s >= 0 && !ioctl(fd, TUNSETIFF, &r) && !ioctl(fd, TUNSETPERSIST, 1);
    close(fd);
    r = request(name);
    set_address(&r.ifr_addr, HOST);
    ok = ok && !ioctl(s, SIOCSIFADDR, &r);
    r = request(name);
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    ok = ok && !ioctl(s, SIOCSIFFLAGS, &r);
    r = request(name);
    r.ifr_mtu = 1400;
    ok = ok && !ioctl(s, SIOCSIFMTU, &r);
    set_address(&arp.arp_pa, GUEST);
    arp.arp_ha.sa_family = ARPHRD_ETHER;
    memcpy(arp.arp_ha.sa_data, mac, sizeof(mac));
    strcpy(arp.arp_dev, name);
    ok = ok && !ioctl(s, SIOCSARP, &arp);
    close(s);
    return ok;
}

static void delete_tap(const char *name)
{
    struct {
        struct nlmsghdr n;
        struct ifinfomsg i;
    } m = {{sizeof(m), RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0}, {.ifi_family = AF_UNSPEC}};
    char answer[512];
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    m.i.ifi_index = (int)if_nametoindex(name);
    assert_int_equal(send(s, &m, sizeof(m), 0), sizeof(m));
    assert_true(recv(s, answer, sizeof(answer), 0) > 0);
    close(s);
    assert_int_equal(if_nametoindex(name), 0);
}

static void config(struct netdev_cfg *cfg, const char *name)
{
    guest_defaults(cfg);
    cfg->kind = NETDEV_TAP;
    cfg->ifname = name;
}

static int host_udp(void)
{
    const struct timeval t = {.tv_sec = PATIENCE_MS / 1000};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)), 0);
    return s;
}

static bool is_udp(const struct gframe *f, const void *arg)
{
    return f->p.ip == 4 && f->p.proto == PACKET_UDP;
}

static void frames(void **state)
{
    struct netdev_cfg cfg;
    struct guest g;
    struct net_hdr h = {0};
    uint8_t udp[8 + 100] = {0, 1, PORT >> 8, PORT & 255}, frame[200], got[200];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(1)};
    int s = host_udp();
    struct gframe *f;
    size_t len;

    to.sin_addr.s_addr = htonl(GUEST);
    config(&cfg, "tap0");
    for (unsigned offloads = 0; offloads <= NETDEV_CSUM; offloads += NETDEV_CSUM) {
        guest_init(&g, &cfg, offloads);
        assert_int_equal(netdev_info(g.n)->mtu, 1400);
        memset(udp + 8, 'a' + (int)offloads, 100);
        len = guest_ip(&g, frame, 4, HOST, PACKET_UDP, udp, sizeof(udp));
        memset(frame, 0xff, 6);
        if (offloads) { /* the kernel is to do the checksum */
            struct packet p;
            uint16_t sum;

            assert_true(packet_parse(&p, frame, len, true));
            sum = (uint16_t)~packet_fold(packet_pseudo(&p));
            memcpy(frame + 34 + 6, &sum, 2);
            h = (struct net_hdr){.flags = NET_HDR_NEEDS_CSUM, .csum_start = 34, .csum_offset = 6};
        }
        guest_send(&g, &h, frame, len);
        assert_int_equal(recv(s, got, sizeof(got), 0), 100);
        assert_memory_equal(got, udp + 8, 100);
        assert_int_equal(sendto(s, got, 50, 0, (struct sockaddr *)&to, sizeof(to)), 50);
        /* guest.c checks the checksum, or that it may be missing. */
        f = guest_recv(&g, is_udp, NULL, PATIENCE_MS);
        assert_non_null(f);
        assert_memory_equal(f->data + f->p.l4 + 8, got, 50);
        free(f);
        /* Without room frames wait in the interface. */
        guest_full(&g, true);
        for (unsigned i = 0; i < 20; i++) {
            got[0] = (uint8_t)i;
            assert_int_equal(sendto(s, got, 50, 0, (struct sockaddr *)&to, sizeof(to)), 50);
        }
        guest_full(&g, false);
        for (unsigned i = 0; i < 20; i++) {
            f = guest_recv(&g, is_udp, NULL, PATIENCE_MS);
            assert_non_null(f);
            assert_int_equal(f->data[f->p.l4 + 8], i);
            free(f);
        }
        guest_fini(&g);
    }
    close(s);
}

static void refused(void **state)
{
    static const struct {
        const char *name;
        unsigned queues;
        int rc;
        const char *says;
    } cases[] = {
        {"tap9", 1, -ENODEV, "ip tuntap add dev tap9 mode tap user"},
        {"tap9", 2, -ENODEV, "tap multi_queue"},
        {"lo", 1, -EINVAL, "no tap interface"},
        {"tap0", 2, -EINVAL, "with multi_queue"},
        {"tap1", 1, -EINVAL, "without multi_queue"},
        {"averyveryverylongname", 1, -EINVAL, "too long"},
    };
    struct netdev_cfg cfg;
    struct netdev *n, *second;
    struct log log;
    struct err e;

    log_init(&log, LOG_WARN, STDERR_FILENO);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        config(&cfg, cases[i].name);
        cfg.queues = cases[i].queues;
        assert_int_equal(netdev_open(&n, &cfg, &log, &e), cases[i].rc);
        if (!strstr(e.msg, cases[i].says))
            fail_msg("%s: %s", cases[i].name, e.msg);
    }
    config(&cfg, "tap0");
    assert_int_equal(netdev_open(&n, &cfg, &log, &e), 0);
    assert_int_equal(netdev_open(&second, &cfg, &log, &e), -EBUSY);
    assert_non_null(strstr(e.msg, "in use"));
    netdev_free(n);
    assert_int_equal(netdev_open(&n, &cfg, &log, &e), 0);
    netdev_free(n);
    config(&cfg, "tap1");
    cfg.queues = 4;
    assert_int_equal(netdev_open(&n, &cfg, &log, &e), 0);
    netdev_set_queues(n, 3);
    netdev_set_queues(n, 4);
    netdev_set_queues(n, 1);
    netdev_free(n);
}

/* Said once, instead of being polled for ever. */
static void deleted(void **state)
{
    const char words[] = "the tap interface is gone";
    struct netdev_cfg cfg;
    struct guest g;
    char line[200] = "";
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    config(&cfg, "tap2");
    guest_init(&g, &cfg, 0);
    g.log.fd = fds[1];
    delete_tap("tap2");
    assert_true(read(fds[0], line, sizeof(line) - 1) > 0);
    assert_non_null(strstr(line, words));
    guest_fini(&g);
    close(fds[1]);
    assert_int_equal(read(fds[0], line, sizeof(line)), 0);
    close(fds[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused),
        cmocka_unit_test(frames),
        cmocka_unit_test(deleted),
    };

    if (unshare(CLONE_NEWNET) || !make_tap("tap0", 0) || !make_tap("tap1", IFF_MULTI_QUEUE) ||
        !make_tap("tap2", 0))
        return SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
