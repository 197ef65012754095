/* Values of --net. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "ctl/netopt.h"

static void kinds(void **state)
{
    struct netdev_cfg c;

    assert_int_equal(netopt_parse(&c, "user", NULL), 0);
    assert_int_equal(c.kind, NETDEV_USER);
    assert_int_equal(c.queues, 1);
    assert_memory_equal(c.mac, "\0\0\0\0\0\0", 6);
    netopt_free(&c);
    assert_int_equal(netopt_parse(&c, "none,mac=52:54:00:aB:cD:0f,mtu=9000,queues=4", NULL), 0);
    assert_int_equal(c.kind, NETDEV_NONE);
    assert_memory_equal(c.mac, "\x52\x54\x00\xab\xcd\x0f", 6);
    assert_int_equal(c.mtu, 9000);
    assert_int_equal(c.queues, 4);
    netopt_free(&c);
    assert_int_equal(netopt_parse(&c, "tap:my,,tap", NULL), 0);
    assert_int_equal(c.kind, NETDEV_TAP);
    assert_string_equal(c.ifname, "my,tap");
    netopt_free(&c);
}

static void user(void **state)
{
    struct netdev_cfg c;

    assert_int_equal(netopt_parse(&c,
                                  "user,net=192.168.4.0/22,host=192.168.4.1,dns=192.168.4.2,"
                                  "dhcpstart=192.168.5.9,hostname=box,restrict",
                                  NULL),
                     0);
    assert_int_equal(ntohl(c.net.s_addr), 0xc0a80400);
    assert_int_equal(c.prefix, 22);
    assert_int_equal(ntohl(c.host.s_addr), 0xc0a80401);
    assert_int_equal(ntohl(c.dns.s_addr), 0xc0a80402);
    assert_int_equal(ntohl(c.dhcp.s_addr), 0xc0a80509);
    assert_string_equal(c.hostname, "box");
    assert_true(c.restricted);
    netopt_free(&c);
}

static void forwards(void **state)
{
    struct netdev_cfg c;
    const struct sockaddr_in *h, *g;
    const struct sockaddr_in6 *h6, *g6;

    assert_int_equal(
        netopt_parse(&c,
                     "user,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.20:5353,"
                     "hostfwd=tcp:[::1]:80-[fec0::15]:8080",
                     NULL),
        0);
    assert_int_equal(c.nfwd, 3);
    h = (const void *)&c.fwd[0].host;
    g = (const void *)&c.fwd[0].guest;
    assert_false(c.fwd[0].udp);
    assert_int_equal(h->sin_family, AF_INET);
    assert_int_equal(ntohl(h->sin_addr.s_addr), INADDR_LOOPBACK);
    assert_int_equal(ntohs(h->sin_port), 2222);
    assert_int_equal(g->sin_addr.s_addr, 0);
    assert_int_equal(ntohs(g->sin_port), 22);
    h = (const void *)&c.fwd[1].host;
    g = (const void *)&c.fwd[1].guest;
    assert_true(c.fwd[1].udp);
    assert_int_equal(h->sin_addr.s_addr, 0);
    assert_int_equal(ntohl(g->sin_addr.s_addr), 0x0a000214);
    assert_int_equal(ntohs(g->sin_port), 5353);
    h6 = (const void *)&c.fwd[2].host;
    g6 = (const void *)&c.fwd[2].guest;
    assert_int_equal(h6->sin6_family, AF_INET6);
    assert_true(IN6_IS_ADDR_LOOPBACK(&h6->sin6_addr));
    assert_int_equal(ntohs(h6->sin6_port), 80);
    assert_int_equal(g6->sin6_addr.s6_addr[15], 0x15);
    assert_int_equal(ntohs(g6->sin6_port), 8080);
    netopt_free(&c);
}

/* Each with a word of what is said about it. */
static void refused(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "none of user"},
        {"tap:", "none of user"},
        {"bridge", "none of user"},
        {"user,", "unknown item"},
        {"user,speed=9", "unknown item 'speed'"},
        {"user,mac", "mac: needs a value"},
        {"user,restrict=yes", "restrict: takes no value"},
        {"user,mac=52:54:00:12:34", "mac: '52:54:00:12:34'"},
        {"user,mac=52:54:00:12:34:5", "mac: "},
        {"user,mac=52:54:00:12:34:567", "mac: "},
        {"user,mac=52-54-00-12-34-56", "mac: "},
        {"user,mac=53:54:00:12:34:56", "single card"},
        {"user,mac=00:00:00:00:00:00", "single card"},
        {"user,mtu=67", "mtu: "},
        {"user,mtu=65522", "mtu: "},
        {"user,queues=0", "queues: "},
        {"user,queues=17", "queues: "},
        {"user,net=10.0.2.0", "net: "},
        {"user,net=10.0.2.0/33", "net: "},
        {"user,net=10.0.2.0/0", "net: "},
        {"user,net=10.0.2/24", "net: "},
        {"user,host=localhost", "host: "},
        {"user,dns=0.0.0.0", "dns: "},
        {"user,hostname=", "hostname: "},
        {"user,hostname=a234567890123456789012345678901234", "hostname: "},
        {"tap:tap0,hostname=x", "user networking only"},
        {"none,hostfwd=tcp::1-:2", "user networking only"},
        {"tap:tap0,restrict", "user networking only"},
        {"none,net=10.0.2.0/24", "user networking only"},
        {"user,hostfwd=tcp:127.0.0.1:2222", "hostfwd: "},
        {"user,hostfwd=sctp::1-:2", "hostfwd: "},
        {"user,hostfwd=tcp::0-:22", "hostfwd: "},
        {"user,hostfwd=tcp::65536-:22", "hostfwd: "},
        {"user,hostfwd=tcp::22-:", "hostfwd: "},
        {"user,hostfwd=tcp:1.2.3:22-:22", "hostfwd: "},
        {"user,hostfwd=tcp:[::1]:22-:22", "hostfwd: "},
        {"user,hostfwd=tcp:[::1:22-[::2]:22", "hostfwd: "},
        {"user,hostfwd=tcp:-", "hostfwd: "},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err e = {""};
        struct netdev_cfg c;

        if (netopt_parse(&c, cases[i].text, &e) != -EINVAL)
            fail_msg("'%s' is taken", cases[i].text);
        if (!strstr(e.msg, cases[i].says))
            fail_msg("'%s': %s", cases[i].text, e.msg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds),
        cmocka_unit_test(user),
        cmocka_unit_test(forwards),
        cmocka_unit_test(refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
