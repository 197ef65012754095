/* What a driver says to a network card: frames of a host that makes itself known, pings, and
 * answers the TCP that it hears, and commands. */
#include "virtio_talk.h"

#include <string.h>

#include "base/util.h"
#include "back/net/packet.h"

#define HEADER 12u /* bytes before each frame */
#define MAC "\x02\0\0\0\0\x01"
#define IP4 "\x0a\x00\x02\x0f"
#define IP4_HOST "\x0a\x00\x02\x02"
#define IP6 "\xfe\xc0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0f"
#define IP6_HOST "\xfe\xc0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02"
#define ICMP 1
#define ICMP6 58
#define TCP_HEAD 20u
#define SYN 2u
#define ACK 16u
#define LARGE 40000u /* bytes of data: more than the back end passes on in a piece */

static unsigned below(struct vworld *w, unsigned n) { return (unsigned)(vworld_rnd(w) % n); }

static uint8_t *frame(struct vtalk *t) { return t->out + HEADER; }

static void ethernet(struct vtalk *t, bool broadcast, unsigned type)
{
    vtalk_put(t, broadcast ? "\xff\xff\xff\xff\xff\xff" : "\x52\x55\x0a\x00\x02\x02", 6);
    vtalk_put(t, MAC, 6);
    vtalk_put(t, (uint8_t[]){(uint8_t)(type >> 8), (uint8_t)type}, 2);
}

static void arp(struct vtalk *t)
{
    ethernet(t, true, 0x0806);
    vtalk_put(t, "\0\x01\x08\0\x06\x04\0\x01" MAC IP4 "\0\0\0\0\0\0" IP4_HOST, 28);
}

/* A packet of this protocol with lengths that are right. */
static struct packet ip(struct vworld *w, struct vtalk *t, unsigned version, uint8_t protocol,
                        const void *head, unsigned head_len, unsigned payload)
{
    struct packet p;

    ethernet(t, false, version == 4 ? 0x0800 : 0x86dd);
    if (version == 4) {
        vtalk_put(t, (uint8_t[]){0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}, 12);
        vtalk_put(t, IP4 IP4_HOST, 8);
    } else {
        vtalk_put(t, (uint8_t[]){0x60, 0, 0, 0, 0, 0, protocol, 255}, 8);
        vtalk_put(t, IP6 IP6_HOST, 32);
    }
    vtalk_put(t, head, head_len);
    vtalk_put_random(w, t, payload);
    assert_true(packet_parse(&p, frame(t), t->out_len - HEADER, false));
    packet_set_length(&p);
    return p;
}

/* With the checksum, which an ICMP header has in its second word. */
static void icmp(struct vworld *w, struct vtalk *t, unsigned version, const void *head,
                 unsigned head_len, unsigned payload)
{
    struct packet p = ip(w, t, version, version == 4 ? ICMP : ICMP6, head, head_len, payload);
    uint64_t sum = version == 4 ? 0 : packet_pseudo(&p);
    uint16_t folded = packet_fold(sum + packet_sum(p.data + p.l4, p.len - p.l4));

    memcpy(p.data + p.l4 + 2, &folded, sizeof(folded));
}

/* Some are larger than the link, and so are the answers. */
static void ping(struct vworld *w, struct vtalk *t)
{
    unsigned payload = below(w, below(w, 4) ? 200 : 5000);

    if (below(w, 2))
        icmp(w, t, 4, "\x08\0\0\0\0\x01\0\x01", 8, payload);
    else
        icmp(w, t, 6, "\x80\0\0\0\0\x01\0\x01", 8, payload);
}

static void solicit(struct vworld *w, struct vtalk *t)
{
    icmp(w, t, 6, "\x87\0\0\0\0\0\0\0" IP6_HOST "\x01\x01" MAC, 32, 0);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)packet_get16(p) << 16 | packet_get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
    packet_put16(p, v >> 16);
    packet_put16(p + 2, v & 0xffff);
}

/* The header of an answer to what was heard, if that is TCP, else of something unasked. Returns the
 * version of its IP. */
static unsigned tcp_head(struct vworld *w, uint8_t head[TCP_HEAD])
{
    uint64_t heard = vworld_heard(w);
    struct packet p;

    memset(head, 0, TCP_HEAD);
    packet_put16(head, VROWS_TCP_PORT);
    packet_put16(head + 2, 80);
    head[12] = 0x50;
    head[13] = below(w, 2) ? SYN : (uint8_t)vworld_rnd(w);
    packet_put16(head + 14, below(w, 4) ? 0xffff : below(w, 3000));
    if (!heard || !packet_parse(&p, vdrv_ptr(&w->d, heard + HEADER), 2000, true) ||
        p.proto != PACKET_TCP || p.fragment)
        return below(w, 2) ? 4 : 6;

    const uint8_t *theirs = p.data + p.l4;
    bool syn = theirs[13] & SYN;

    memcpy(head, theirs + 2, 2);
    memcpy(head + 2, theirs, 2);
    put32(head + 4, syn ? 1000 : get32(theirs + 8));
    put32(head + 8, get32(theirs + 4) + (uint32_t)(p.len - p.body) + syn);
    head[13] = syn ? SYN | ACK : (uint8_t)(ACK | (below(w, 16) ? 8 : vworld_rnd(w)));
    return p.ip;
}

/* Segments that the back end has to cut or to complete, or that are whole. */
static void tcp(struct vworld *w, struct vtalk *t)
{
    static const uint8_t ecn[] = {0, 0, 0, NET_GSO_ECN};
    uint8_t head[TCP_HEAD];
    unsigned version = tcp_head(w, head);
    unsigned payload = head[13] & SYN ? 0 : below(w, below(w, 4) ? 1400 : LARGE);
    struct packet p = ip(w, t, version, PACKET_TCP, head, TCP_HEAD, payload);
    struct net_hdr h = {0};

    packet_checksum(&p);
    if (below(w, 4)) {
        h.flags = NET_HDR_NEEDS_CSUM;
        h.hdr_len = (uint16_t)p.body;
        h.csum_start = (uint16_t)p.l4;
        h.csum_offset = PACKET_TCP_SUM;
        if (payload > 1400 || below(w, 4) == 0) {
            h.gso_type =
                (uint8_t)((version == 4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6) | ecn[below(w, 4)]);
            h.gso_size = (uint16_t)(below(w, 8) ? 500 + below(w, 1000) : below(w, 3));
        }
        if (below(w, 16) == 0) /* does not agree with the frame */
            ((uint8_t *)&h)[below(w, sizeof(h))] ^= (uint8_t)vworld_rnd(w);
    }
    memcpy(t->out, &h, sizeof(h));
}

static void control(struct vworld *w, struct vtalk *t)
{
    uint32_t n = below(w, 8) ? below(w, 5) : (uint32_t)vworld_rnd(w);

    vtalk_put(t, (uint8_t[]){(uint8_t)below(w, 6), (uint8_t)below(w, 4)}, 2);
    switch (below(w, 4)) {
    case 0: /* a switch */
        vtalk_put(t, &n, 1);
        break;
    case 1: /* a number */
        vtalk_put(t, &n, 2);
        break;
    case 2: /* an address */
        vtalk_put(t, MAC, 6);
        break;
    default: /* two tables */
        for (int i = 0; i < 2; i++) {
            vtalk_put(t, &n, 4);
            vtalk_put_random(w, t, 6 * (n < 5 ? n : 3));
        }
        break;
    }
    t->in_len = 1;
}

void vtalk_net(struct vworld *w, unsigned queue, struct vtalk *t)
{
    if (below(w, 4) == 0 && queue % 2 == 0 && queue) {
        control(w, t); /* which it is depends on the features */
        return;
    }
    if (queue % 2 == 0) {
        t->in_len = below(w, 4) ? 1600 : 12 + below(w, 300);
        return;
    }
    t->out_len = HEADER; /* no offloads */
    switch (below(w, 8)) {
    case 0:
        arp(t);
        break;
    case 1:
        solicit(w, t);
        break;
    case 2 ... 4:
        ping(w, t);
        break;
    default:
        tcp(w, t);
        break;
    }
}
