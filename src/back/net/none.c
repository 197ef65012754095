/* A cable that leads nowhere. */
#include <errno.h>
#include <stdlib.h>

#include "back/net/netdev.h"

static void none_send(struct netdev *n, unsigned queue, const struct net_hdr *h,
                      const struct iovec *iov, unsigned niov)
{
}

static void none_free(struct netdev *n) { free(n); }

static const struct netdev_ops none_ops = {.send = none_send, .free = none_free};

int none_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e)
{
    struct netdev *n = calloc(1, sizeof(*n));
    int rc;

    if (!n)
        return err_set(e, ENOMEM, "out of memory");
    rc = netdev_init(n, &none_ops, cfg, cfg->mtu ? cfg->mtu : NET_MTU_DEFAULT, log, e);
    if (rc) {
        free(n);
        return rc;
    }
    n->info.link = false;
    *out = n;
    return 0;
}
