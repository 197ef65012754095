#include "dev/virtio/net_ctrl.h"

#include <string.h>

#include "base/util.h"

/* Classes of commands, and commands (§5.1.6.5). */
enum {
    CTRL_RX = 0,
    CTRL_RX_PROMISC = 0,
    CTRL_RX_ALLMULTI = 1,
    CTRL_MAC = 1,
    CTRL_MAC_TABLE_SET = 0,
    CTRL_MAC_ADDR_SET = 1,
    CTRL_VLAN = 2,
    CTRL_VLAN_ADD = 0,
    CTRL_VLAN_DEL = 1,
    CTRL_MQ = 4,
    CTRL_MQ_PAIRS_SET = 0,
};

#define MAC_LEN 6u
#define ETH_TYPE 12
#define ETH_HLEN 14u
#define ETH_VLAN 0x8100

static const struct state_field net_ctrl_fields[] = {
    STATE_ARRAY(struct net_ctrl_state, mac),
    STATE_FIELD(struct net_ctrl_state, pairs),
    STATE_FIELD_MAX(struct net_ctrl_state, promisc, 1),
    STATE_FIELD_MAX(struct net_ctrl_state, allmulti, 1),
    STATE_FIELD_MAX(struct net_ctrl_state, more_unicast, 1),
    STATE_FIELD_MAX(struct net_ctrl_state, more_multicast, 1),
    STATE_FIELD_MAX(struct net_ctrl_state, nmacs, NET_CTRL_MACS),
    STATE_PAD(struct net_ctrl_state, pad),
    STATE_ARRAY(struct net_ctrl_state, macs),
    STATE_ARRAY(struct net_ctrl_state, vlans),
};

const struct state_desc net_ctrl_state_desc = {
    .name = "net_ctrl",
    .version = 1,
    .size = sizeof(struct net_ctrl_state),
    .fields = net_ctrl_fields,
    .nfields = ARRAY_LEN(net_ctrl_fields),
};

void net_ctrl_reset(struct net_ctrl_state *s, const uint8_t mac[MAC_LEN])
{
    *s = (struct net_ctrl_state){.pairs = 1, .promisc = 1};
    memcpy(s->mac, mac, MAC_LEN);
}

/* ---- commands ---- */

/* What follows the class and command bytes. */
struct data {
    const struct virtq_chain *c;
    uint64_t off;
};

static bool take(struct data *d, void *buf, size_t len)
{
    if (virtq_read(d->c, d->off, buf, len) != len)
        return false;
    d->off += len;
    return true;
}

static bool set_mode(struct net_ctrl_state *s, uint8_t command, struct data *d)
{
    uint8_t on;

    if (!take(d, &on, sizeof(on)))
        return false;
    switch (command) {
    case CTRL_RX_PROMISC:
        s->promisc = on != 0;
        return true;
    case CTRL_RX_ALLMULTI:
        s->allmulti = on != 0;
        return true;
    }
    return false;
}

/* One of the two tables: its length, then addresses. What does not fit is not read. */
static bool take_table(struct net_ctrl_state *s, struct data *d, uint8_t *more)
{
    uint32_t n;

    if (!take(d, &n, sizeof(n)) || n > (d->c->out_len - d->off) / MAC_LEN)
        return false;
    *more = n > (unsigned)(NET_CTRL_MACS - s->nmacs);
    if (*more) {
        d->off += (uint64_t)n * MAC_LEN;
        return true;
    }
    if (!take(d, s->macs + s->nmacs * MAC_LEN, n * MAC_LEN))
        return false;
    s->nmacs = (uint8_t)(s->nmacs + n);
    return true;
}

static bool set_mac(struct net_ctrl_state *s, uint8_t command, struct data *d)
{
    struct net_ctrl_state to = *s;

    switch (command) {
    case CTRL_MAC_ADDR_SET:
        return d->c->out_len - d->off == MAC_LEN && take(d, s->mac, MAC_LEN);
    case CTRL_MAC_TABLE_SET:
        to.nmacs = 0;
        memset(to.macs, 0, sizeof(to.macs));
        if (!take_table(&to, d, &to.more_unicast) || !take_table(&to, d, &to.more_multicast))
            return false;
        *s = to;
        return true;
    }
    return false;
}

static bool set_vlan(struct net_ctrl_state *s, uint8_t command, struct data *d)
{
    uint16_t id;

    if (!take(d, &id, sizeof(id)) || id >= NET_CTRL_VLANS)
        return false;
    switch (command) {
    case CTRL_VLAN_ADD:
        s->vlans[id / 8] |= (uint8_t)BIT(id % 8);
        return true;
    case CTRL_VLAN_DEL:
        s->vlans[id / 8] &= (uint8_t)~BIT(id % 8);
        return true;
    }
    return false;
}

static bool set_pairs(struct net_ctrl_state *s, uint8_t command, struct data *d, unsigned max)
{
    uint16_t n;

    if (command != CTRL_MQ_PAIRS_SET || !take(d, &n, sizeof(n)) || !n || n > max)
        return false;
    s->pairs = n;
    return true;
}

uint8_t net_ctrl_command(struct net_ctrl_state *s, const struct virtq_chain *c,
                         const struct net_ctrl_limits *limits)
{
    struct data d = {.c = c};
    uint8_t head[2]; /* class, command */
    bool ok = false;

    if (!take(&d, head, sizeof(head)))
        return NET_CTRL_ERR;
    if (head[0] == CTRL_RX)
        ok = limits->rx && set_mode(s, head[1], &d);
    else if (head[0] == CTRL_MAC)
        ok = (head[1] == CTRL_MAC_ADDR_SET ? limits->mac : limits->rx) && set_mac(s, head[1], &d);
    else if (head[0] == CTRL_VLAN)
        ok = limits->vlan && set_vlan(s, head[1], &d);
    else if (head[0] == CTRL_MQ)
        ok = limits->pairs && set_pairs(s, head[1], &d, limits->max_pairs);
    return ok ? NET_CTRL_OK : NET_CTRL_ERR;
}

/* ---- frames ---- */

static bool in_table(const struct net_ctrl_state *s, const uint8_t *mac)
{
    for (unsigned i = 0; i < s->nmacs; i++) {
        if (!memcmp(s->macs + i * MAC_LEN, mac, MAC_LEN))
            return true;
    }
    return false;
}

static bool wants_vlan(const struct net_ctrl_state *s, const uint8_t *frame, size_t len)
{
    unsigned id;

    if (len < ETH_HLEN + 4 || (frame[ETH_TYPE] << 8 | frame[ETH_TYPE + 1]) != ETH_VLAN)
        return true;
    id = (frame[ETH_HLEN] << 8 | frame[ETH_HLEN + 1]) & (NET_CTRL_VLANS - 1u);
    return s->vlans[id / 8] & BIT(id % 8);
}

bool net_ctrl_wants(const struct net_ctrl_state *s, const uint8_t *frame, size_t len, bool vlan)
{
    static const uint8_t broadcast[MAC_LEN] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

    if (vlan && !wants_vlan(s, frame, len))
        return false;
    if (s->promisc || !memcmp(frame, broadcast, MAC_LEN))
        return true;
    if (frame[0] & 1)
        return s->allmulti || s->more_multicast || in_table(s, frame);
    return s->more_unicast || !memcmp(frame, s->mac, MAC_LEN) || in_table(s, frame);
}
