#include "back/net/user_cfg.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PREFIX_MIN 8u  /* of the guest's network: */
#define PREFIX_MAX 27u /* DHCP gives 16 addresses from .15 on */

static int check_address(const struct user_cfg_net *w, uint32_t a, const char *what, struct err *e)
{
    if ((a & w->mask) != w->net)
        return err_set(e, EINVAL, "the %s address is outside of the guest's network", what);
    if (a == w->net || a == (w->net | ~w->mask))
        return err_set(e, EINVAL, "the %s address is the network's own or its broadcast address",
                       what);
    return 0;
}

int user_cfg_net(struct user_cfg_net *w, const struct netdev_cfg *cfg, struct err *e)
{
    unsigned prefix = cfg->prefix ? cfg->prefix : 24;
    int rc;

    if (prefix < PREFIX_MIN || prefix > PREFIX_MAX)
        return err_set(e, EINVAL, "the guest's network needs /%u to /%u", PREFIX_MIN, PREFIX_MAX);
    w->mask = ~0u << (32 - prefix);
    w->net = cfg->net.s_addr ? ntohl(cfg->net.s_addr) : 0x0a000200;
    if (w->net & ~w->mask)
        return err_set(e, EINVAL, "the network's address has bits beyond /%u", prefix);
    w->host = cfg->host.s_addr ? ntohl(cfg->host.s_addr) : w->net + 2;
    w->dns = cfg->dns.s_addr ? ntohl(cfg->dns.s_addr) : w->net + 3;
    w->dhcp = cfg->dhcp.s_addr ? ntohl(cfg->dhcp.s_addr) : w->net + 15;
    rc = check_address(w, w->host, "host's", e);
    if (!rc)
        rc = check_address(w, w->dns, "DNS server's", e);
    if (!rc)
        rc = check_address(w, w->dhcp, "first DHCP", e);
    if (!rc && (w->host == w->dns || w->host == w->dhcp || w->dns == w->dhcp))
        rc = err_set(e, EINVAL, "the host, the DNS server and the guest need different addresses");
    return rc;
}

static socklen_t address_text(const struct sockaddr_storage *a, char *buf, size_t size)
{
    char ip[INET6_ADDRSTRLEN];

    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)a;

        inet_ntop(AF_INET, &in->sin_addr, ip, sizeof(ip));
        snprintf(buf, size, "%s:%u", ip, ntohs(in->sin_port));
        return sizeof(*in);
    }
    const struct sockaddr_in6 *in = (const void *)a;

    inet_ntop(AF_INET6, &in->sin6_addr, ip, sizeof(ip));
    snprintf(buf, size, "[%s]:%u", ip, ntohs(in->sin6_port));
    return sizeof(*in);
}

int user_cfg_forward(Slirp *slirp, const struct netdev_fwd *f, struct err *e)
{
    char host[INET6_ADDRSTRLEN + 16], guest[INET6_ADDRSTRLEN + 16];
    socklen_t hlen = address_text(&f->host, host, sizeof(host));
    socklen_t glen = address_text(&f->guest, guest, sizeof(guest));
    int flags = f->udp ? SLIRP_HOSTFWD_UDP : 0;
    const char *hint = "";

    if (f->host.ss_family == AF_INET6)
        flags |= SLIRP_HOSTFWD_V6ONLY;
    errno = 0;
    if (slirp_add_hostxfwd(slirp, (const void *)&f->host, hlen, (const void *)&f->guest, glen,
                           flags) == 0)
        return 0;
    if (errno == EADDRINUSE)
        hint = "; another program, or another VM, listens there";
    else if (errno == EACCES)
        hint = "; ports below net.ipv4.ip_unprivileged_port_start are for root";
    else if (errno == EADDRNOTAVAIL)
        hint = "; the host has no such address";
    return err_set(e, errno ? errno : EIO, "cannot forward %s %s to the guest's %s: %s%s",
                   f->udp ? "udp" : "tcp", host, guest, strerror(errno ? errno : EIO), hint);
}
