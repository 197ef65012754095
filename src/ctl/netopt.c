#include "ctl/netopt.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "ctl/option.h"

#define HOSTNAME_MAX 32u /* libslirp keeps no more */

const char netopt_arg[] = "user|tap:IFNAME|none[,ITEM]...";
const char netopt_help[] =
    "A network card, and what it is connected to (repeatable): user-mode\n"
    "networking (through the host's sockets, needs no privileges), an existing\n"
    "tap interface, or nothing. Items: mac=ADDRESS, mtu=N, queues=N; for user\n"
    "also hostfwd=tcp|udp:[HOSTADDR]:PORT-[GUESTADDR]:PORT (repeatable),\n"
    "net=CIDR, host=ADDR, dns=ADDR, dhcpstart=ADDR, hostname=NAME, restrict.";

static int set_kind(void *cfg, const char *val, struct err *e)
{
    struct netdev_cfg *c = cfg;

    if (!strcmp(val, "none")) {
        c->kind = NETDEV_NONE;
    } else if (!strcmp(val, "user")) {
        c->kind = NETDEV_USER;
    } else if (!strncmp(val, "tap:", 4) && val[4]) {
        c->kind = NETDEV_TAP;
        c->ifname = strdup(val + 4);
        return c->ifname ? 0 : err_set(e, ENOMEM, "no memory");
    } else {
        return err_set(e, EINVAL, "'%s' is none of user, tap:IFNAME, none", val);
    }
    return 0;
}

static int set_mac(void *cfg, const char *val, struct err *e)
{
    uint8_t *m = ((struct netdev_cfg *)cfg)->mac;
    static const uint8_t zero[NET_MAC_LEN];
    int n = -1;

    if (sscanf(val, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &m[0], &m[1], &m[2], &m[3], &m[4],
               &m[5], &n) != NET_MAC_LEN ||
        n != 17 || val[n])
        return err_set(e, EINVAL, "'%s' is not an address like 52:54:00:12:34:56", val);
    if (m[0] & 1 || !memcmp(m, zero, NET_MAC_LEN))
        return err_set(e, EINVAL, "'%s' is not the address of a single card", val);
    return 0;
}

static int set_mtu(void *cfg, const char *val, struct err *e)
{
    uint64_t n = 0;
    int rc = option_uint(val, NET_MTU_MAX, &n, e);

    if (!rc && n < NET_MTU_MIN)
        return err_set(e, EINVAL, "'%s' is less than %u", val, NET_MTU_MIN);
    ((struct netdev_cfg *)cfg)->mtu = (uint16_t)n;
    return rc;
}

static int set_queues(void *cfg, const char *val, struct err *e)
{
    uint64_t n = 0;
    int rc = option_uint(val, NET_QUEUES_MAX, &n, e);

    if (!rc && !n)
        return err_set(e, EINVAL, "a card has at least one pair");
    ((struct netdev_cfg *)cfg)->queues = (unsigned)n;
    return rc;
}

/* ---- user ---- */

static int user_only(const struct netdev_cfg *c, struct err *e)
{
    return c->kind == NETDEV_USER ? 0 : err_set(e, EINVAL, "is for user networking only");
}

static int address(const struct netdev_cfg *c, const char *val, struct in_addr *out, struct err *e)
{
    int rc = user_only(c, e);

    if (!rc && (inet_pton(AF_INET, val, out) != 1 || !out->s_addr))
        return err_set(e, EINVAL, "'%s' is not an IPv4 address", val);
    return rc;
}

static int set_net(void *cfg, const char *val, struct err *e)
{
    struct netdev_cfg *c = cfg;
    char text[INET_ADDRSTRLEN];
    const char *slash = strchr(val, '/');
    uint64_t prefix = 0;
    int rc;

    if (!slash || slash - val >= (int)sizeof(text))
        return err_set(e, EINVAL, "'%s' is not a network like 10.0.2.0/24", val);
    memcpy(text, val, (size_t)(slash - val));
    text[slash - val] = '\0';
    rc = address(c, text, &c->net, e);
    if (!rc)
        rc = option_uint(slash + 1, 32, &prefix, e);
    if (!rc && !prefix)
        rc = err_set(e, EINVAL, "'%s' leaves no bits for the network", val);
    c->prefix = (unsigned)prefix;
    return rc;
}

static int set_host(void *cfg, const char *val, struct err *e)
{
    return address(cfg, val, &((struct netdev_cfg *)cfg)->host, e);
}

static int set_dns(void *cfg, const char *val, struct err *e)
{
    return address(cfg, val, &((struct netdev_cfg *)cfg)->dns, e);
}

static int set_dhcp(void *cfg, const char *val, struct err *e)
{
    return address(cfg, val, &((struct netdev_cfg *)cfg)->dhcp, e);
}

static int set_hostname(void *cfg, const char *val, struct err *e)
{
    struct netdev_cfg *c = cfg;
    int rc = user_only(c, e);

    if (rc)
        return rc;
    if (!*val || strlen(val) > HOSTNAME_MAX)
        return err_set(e, EINVAL, "needs 1 to %u characters", HOSTNAME_MAX);
    free((char *)c->hostname);
    c->hostname = strdup(val);
    return c->hostname ? 0 : err_set(e, ENOMEM, "no memory");
}

static int set_restrict(void *cfg, const char *val, struct err *e)
{
    struct netdev_cfg *c = cfg;

    c->restricted = true;
    return user_only(c, e);
}

/* "[ADDR]:PORT" or "ADDR:PORT", ADDR perhaps empty. The text is changed. */
static bool endpoint(char *text, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (void *)out;
    struct sockaddr_in6 *v6 = (void *)out;
    char *colon = strrchr(text, ':');
    uint64_t port = 0;
    size_t len;

    if (!colon || option_uint(colon + 1, UINT16_MAX, &port, NULL) || !port)
        return false;
    *colon = '\0';
    len = strlen(text);
    *out = (struct sockaddr_storage){.ss_family = AF_INET};
    if (len > 2 && text[0] == '[' && text[len - 1] == ']') {
        text[len - 1] = '\0';
        *v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
        return inet_pton(AF_INET6, text + 1, &v6->sin6_addr) == 1;
    }
    v4->sin_port = htons((uint16_t)port);
    return !len || inet_pton(AF_INET, text, &v4->sin_addr) == 1;
}

static bool forward(struct netdev_fwd *f, char *text)
{
    char *dash = strchr(text, '-');

    if (!dash || (strncmp(text, "tcp:", 4) != 0 && strncmp(text, "udp:", 4) != 0))
        return false;
    *dash = '\0';
    f->udp = text[0] == 'u';
    return endpoint(text + 4, &f->host) && endpoint(dash + 1, &f->guest) &&
           f->host.ss_family == f->guest.ss_family;
}

static int set_hostfwd(void *cfg, const char *val, struct err *e)
{
    struct netdev_cfg *c = cfg;
    int rc = user_only(c, e);
    struct netdev_fwd *fwd;
    char *text;

    if (rc)
        return rc;
    fwd = realloc((struct netdev_fwd *)c->fwd, (c->nfwd + 1) * sizeof(*fwd));
    if (!fwd)
        return err_set(e, ENOMEM, "no memory");
    c->fwd = fwd;
    text = strdup(val);
    if (!text)
        return err_set(e, ENOMEM, "no memory");
    if (forward(&fwd[c->nfwd], text))
        c->nfwd++;
    else
        rc = err_set(e, EINVAL,
                     "'%s' is not like tcp:127.0.0.1:2222-:22 or udp:[::1]:53-[fec0::15]:53", val);
    free(text);
    return rc;
}

static const struct option_desc items[] = {
    {"mac", "ADDRESS", NULL, set_mac},        {"mtu", "N", NULL, set_mtu},
    {"queues", "N", NULL, set_queues},        {"hostfwd", "FORWARD", NULL, set_hostfwd},
    {"net", "CIDR", NULL, set_net},           {"host", "ADDR", NULL, set_host},
    {"dns", "ADDR", NULL, set_dns},           {"dhcpstart", "ADDR", NULL, set_dhcp},
    {"hostname", "NAME", NULL, set_hostname}, {"restrict", NULL, NULL, set_restrict},
};

int netopt_parse(struct netdev_cfg *cfg, const char *text, struct err *e)
{
    int rc;

    *cfg = (struct netdev_cfg){.queues = 1};
    rc = option_list(items, ARRAY_LEN(items), text, set_kind, cfg, e);
    if (rc)
        netopt_free(cfg);
    return rc;
}

void netopt_free(struct netdev_cfg *cfg)
{
    free((char *)cfg->ifname);
    free((char *)cfg->hostname);
    free((struct netdev_fwd *)cfg->fwd);
    *cfg = (struct netdev_cfg){0};
}
