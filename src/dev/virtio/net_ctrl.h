/*
 * What a driver tells a network device through the control queue, and what follows from it for
 * frames that arrive (virtio 1.2 §5.1.6.5): receive modes, table of MAC addresses, VLANs, the
 * device's own address, queue pairs. One thread at a time: the one that owns the control queue.
 */
#ifndef RING3_DEV_VIRTIO_NET_CTRL_H
#define RING3_DEV_VIRTIO_NET_CTRL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/state.h"
#include "dev/virtio/virtq.h"

#define NET_CTRL_MACS 64
#define NET_CTRL_VLANS 4096

struct net_ctrl_state {
    uint8_t mac[6];
    uint16_t pairs; /* queue pairs in use, from 1 */
    uint8_t promisc, allmulti;
    uint8_t more_unicast, more_multicast; /* the table was too small: all of that kind pass */
    uint8_t nmacs;                        /* of the table, which holds both kinds */
    uint8_t pad[3];
    uint8_t macs[NET_CTRL_MACS * 6];
    uint8_t vlans[NET_CTRL_VLANS / 8]; /* one bit each */
};

extern const struct state_desc net_ctrl_state_desc;

/* As after a reset: everything passes but VLANs, one pair. */
void net_ctrl_reset(struct net_ctrl_state *s, const uint8_t mac[6]);

/* Which commands there are, and within which limits. */
struct net_ctrl_limits {
    bool rx, vlan, mac, pairs; /* classes that were negotiated */
    unsigned max_pairs;
};

/* Executes the command in c's readable part; returns the acknowledgement, NET_CTRL_OK or
 * NET_CTRL_ERR, which is for its writable part. Commands that make no sense change nothing. */
enum { NET_CTRL_OK = 0, NET_CTRL_ERR = 1 };
uint8_t net_ctrl_command(struct net_ctrl_state *s, const struct virtq_chain *c,
                         const struct net_ctrl_limits *limits);

/* Does the driver want a frame that begins with these (at least 14) bytes? */
bool net_ctrl_wants(const struct net_ctrl_state *s, const uint8_t *frame, size_t len, bool vlan);

#endif
