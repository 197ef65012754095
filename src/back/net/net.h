/*
 * The host side of a network card: Ethernet frames in both directions between one device and
 * something on the host (a user-mode TCP/IP stack, a tap interface, nothing).
 *
 * Offloads travel as a struct net_hdr beside each frame, whatever the back end is: one that the
 * host kernel stands behind passes it on, the others do the work themselves. Towards the host all
 * of NEEDS_CSUM, GSO_TCPV4 and GSO_TCPV6 (with or without ECN) are understood; towards the guest a
 * back end uses only what netdev_set_offloads() allows.
 *
 * Threads: each back end has a worker thread of its own, in which all of the front's functions are
 * called and netdev_send is to be called, while it runs (netdev_start to netdev_stop). The front
 * may keep rings that nobody else touches in the meantime. netdev_kick may be called from any
 * thread, with any lock held. netdev_start, netdev_stop and netdev_set_offloads are called by one
 * thread at a time, not from the front's functions, and not with a lock held that those take.
 * Everything else is fixed once the back end is open.
 *
 * What comes from the host side is hostile, as is what the guest sends: a back end drops what it
 * cannot understand.
 */
#ifndef RING3_BACK_NET_NET_H
#define RING3_BACK_NET_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/log.h"

#define NET_ETH_HLEN 14u
#define NET_MAC_LEN 6
/* The largest frame: an Ethernet header with a VLAN tag, and 64 KiB of IP packet. */
#define NET_FRAME_MAX (18u + 65535u + 40u)
#define NET_MTU_MIN 68u
#define NET_MTU_DEFAULT 1500u
#define NET_MTU_MAX 65521u
#define NET_QUEUES_MAX 16u

/* What comes with a frame: struct virtio_net_hdr of virtio 1.2 §5.1.6 without num_buffers, which is
 * also what Linux's tap interfaces use. Little-endian. */
struct net_hdr {
    uint8_t flags;    /* NET_HDR_* */
    uint8_t gso_type; /* NET_GSO_*, with or without NET_GSO_ECN */
    uint16_t hdr_len; /* a hint: bytes of headers */
    uint16_t gso_size;
    uint16_t csum_start, csum_offset;
};

#define NET_HDR_NEEDS_CSUM \
    1u /* from csum_start to the end, to be put at csum_start + csum_offset */
#define NET_HDR_DATA_VALID 2u /* checksums were verified */
#define NET_GSO_NONE 0u
#define NET_GSO_TCPV4 1u
#define NET_GSO_TCPV6 4u
#define NET_GSO_ECN 0x80u

struct netdev;

/* The device's side; in the worker's thread, none of them blocks for long. */
struct netdev_front {
    /* A frame arrived, of up to NET_FRAME_MAX bytes, for queue pair `queue`. False: there is no
     * room for it. The back end then keeps it and offers it again after netdev_kick. */
    bool (*receive)(void *arg, unsigned queue, const struct net_hdr *h, const struct iovec *iov,
                    unsigned niov);
    /* netdev_kick was called since the last time, or the worker just started. */
    void (*transmit)(void *arg);
    /* No more frames for now: tell the guest of those that there were. */
    void (*flush)(void *arg);
    void *arg;
};

/* Offloads towards the guest. */
#define NETDEV_CSUM 1u /* frames may lack their checksum, or be marked as checked */
#define NETDEV_TSO4 2u /* large TCP segments over IPv4 */
#define NETDEV_TSO6 4u /* the same over IPv6 */
#define NETDEV_ECN 8u  /* those with NET_GSO_ECN */

/* What the device may tell the guest; fixed once open. */
struct netdev_info {
    uint8_t mac[NET_MAC_LEN]; /* the guest's address */
    uint16_t mtu;             /* largest IP packet either way */
    bool link;                /* there is a cable */
    unsigned queues;          /* most queue pairs, 1..NET_QUEUES_MAX */
};

enum netdev_kind {
    NETDEV_NONE, /* a cable that leads nowhere: the link is down, frames are dropped */
    NETDEV_USER, /* user-mode TCP/IP (libslirp): NAT through the host's sockets, no privileges */
    NETDEV_TAP   /* an existing tap interface of the host */
};

/* A port of the host that leads to one of the guest. Both ends are of the same family. */
struct netdev_fwd {
    bool udp;
    struct sockaddr_storage host;  /* where to listen; the unspecified address: everywhere */
    struct sockaddr_storage guest; /* the unspecified IPv4 address: the first that DHCP gives */
};

struct netdev_cfg {
    enum netdev_kind kind;
    uint8_t mac[NET_MAC_LEN];
    uint16_t mtu;       /* NET_MTU_MIN..NET_MTU_MAX; 0: the back end's own */
    unsigned queues;    /* queue pairs, 1..NET_QUEUES_MAX */
    const char *ifname; /* NETDEV_TAP */

    /* NETDEV_USER. Zero addresses: .2, .3 and .15 of the network, which by default is
     * 10.0.2.0/24. IPv6 is fec0::/64 with the same last numbers. */
    struct in_addr net;
    unsigned prefix; /* bits of the network's part */
    struct in_addr host, dns, dhcp;
    const char *hostname; /* for the guest, by DHCP; NULL: none */
    bool restricted;      /* nothing but the forwarded ports */
    const struct netdev_fwd *fwd;
    unsigned nfwd;
};

/* Opens a back end. The cfg is not needed afterwards; log outlives the back end. What is wrong with
 * the configuration or the host is said in words that tell what to do. */
int netdev_open(struct netdev **out, const struct netdev_cfg *cfg, struct log *log, struct err *e);

/* Stops and closes. NULL is allowed. */
void netdev_free(struct netdev *n);

const struct netdev_info *netdev_info(const struct netdev *n);

/* Connects the device (the front is copied), while the back end is stopped. */
void netdev_attach(struct netdev *n, const struct netdev_front *front);

/* Which NETDEV_* offloads the guest takes; while stopped. Frames that waited are lost. */
void netdev_set_offloads(struct netdev *n, unsigned offloads);

/* How many queue pairs it uses; while stopped, or in the front's functions. */
void netdev_set_queues(struct netdev *n, unsigned queues);

/* Begins calling the front. Idempotent, as is netdev_stop. */
void netdev_start(struct netdev *n);

/* Once it returns the front is not called any more. Frames on their way are kept, or lost as on any
 * wire. */
void netdev_stop(struct netdev *n);

/* The guest has something to send, or room again. */
void netdev_kick(struct netdev *n);

/* Sends one frame, given in pieces, that the guest put into queue pair `queue`. Always takes it;
 * what the header says is checked, and a frame that does not agree with it is dropped. */
void netdev_send(struct netdev *n, unsigned queue, const struct net_hdr *h, const struct iovec *iov,
                 unsigned niov);

#endif
