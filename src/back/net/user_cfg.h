/* The configuration of user-mode networking: addresses and forwarded ports. For user.c only. */
#ifndef RING3_BACK_NET_USER_CFG_H
#define RING3_BACK_NET_USER_CFG_H

#include <slirp/libslirp.h>
#include <stdint.h>

#include "back/net/net.h"

/* The guest's IPv4 network, in host byte order. */
struct user_cfg_net {
    uint32_t net, mask, host, dns, dhcp;
};

/* Fills in what cfg leaves to us; -EINVAL if the addresses do not go together. */
int user_cfg_net(struct user_cfg_net *w, const struct netdev_cfg *cfg, struct err *e);

/* Listens on the host, as f says. The error tells whose fault it may be. */
int user_cfg_forward(Slirp *slirp, const struct netdev_fwd *f, struct err *e);

#endif
