#include "back/net/segment.h"

#include <string.h>

#include "base/util.h"

#define IP4_ID 4
#define IP4_FRAG 6
#define IP4_DONT 0x4000u
#define IP4_MORE 0x2000u
#define IP4_OFFSET 0x1fffu
#define IP6_NEXT 6
#define IP6_FRAGMENT 44
#define IP6_FRAG_HLEN 8u
#define IP6_HLEN 40u
#define TCP_SEQ 4
#define TCP_FLAGS 13
#define TCP_FIN 0x01
#define TCP_PSH 0x08
#define TCP_CWR 0x80

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)packet_get16(p) << 16 | packet_get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
    packet_put16(p, v >> 16);
    packet_put16(p + 2, v & 0xffff);
}

void segment_tcp(const struct packet *p, unsigned mss, uint8_t *buf, segment_fn *out, void *arg)
{
    const uint8_t *tcp = p->data + p->l4;
    uint32_t seq = get32(tcp + TCP_SEQ);
    uint16_t id = packet_get16(p->data + p->l3 + IP4_ID);
    size_t total = p->len - p->body;
    size_t off = 0;

    do {
        size_t n = MIN(total - off, (size_t)mss);
        struct packet s = *p;
        uint8_t *h = buf + p->l4;

        s.data = buf;
        s.len = p->body + n;
        memcpy(buf, p->data, p->body);
        memcpy(buf + p->body, p->data + p->body + off, n);
        put32(h + TCP_SEQ, seq + (uint32_t)off);
        if (off + n < total)
            h[TCP_FLAGS] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
        if (off)
            h[TCP_FLAGS] &= (uint8_t)~TCP_CWR; /* RFC 3168 §6.1.2: the first one says it */
        if (p->ip == 4)
            packet_put16(buf + p->l3 + IP4_ID, id++);
        packet_set_length(&s);
        packet_checksum(&s);
        out(arg, &s);
        off += n;
    } while (off < total);
}

static bool fragment4(const struct packet *p, unsigned mtu, uint8_t *buf, segment_fn *out,
                      void *arg)
{
    unsigned flags = packet_get16(p->data + p->l3 + IP4_FRAG);
    unsigned hlen = p->l4 - p->l3;
    size_t total = p->len - p->l4, room;

    if (flags & IP4_DONT || mtu < hlen + 8)
        return false;
    room = ALIGN_DOWN(mtu - hlen, 8);
    for (size_t off = 0; off < total; off += room) {
        size_t n = MIN(total - off, room);
        unsigned more = off + n < total ? IP4_MORE : flags & IP4_MORE;
        struct packet s = *p;

        s.data = buf;
        s.len = p->l4 + n;
        s.fragment = true;
        memcpy(buf, p->data, p->l4);
        memcpy(buf + p->l4, p->data + p->l4 + off, n);
        packet_put16(buf + p->l3 + IP4_FRAG,
                     more | (((flags & IP4_OFFSET) + (unsigned)(off / 8)) & IP4_OFFSET));
        packet_set_length(&s);
        out(arg, &s);
    }
    return true;
}

static bool fragment6(const struct packet *p, unsigned mtu, uint32_t id, uint8_t *buf,
                      segment_fn *out, void *arg)
{
    size_t total = p->len - p->l4, room;

    if (mtu < IP6_HLEN + IP6_FRAG_HLEN + 8)
        return false;
    room = ALIGN_DOWN(mtu - IP6_HLEN - IP6_FRAG_HLEN, 8);
    for (size_t off = 0; off < total; off += room) {
        size_t n = MIN(total - off, room);
        struct packet s = *p;
        uint8_t *h = buf + p->l4;

        s.data = buf;
        s.len = p->l4 + IP6_FRAG_HLEN + n;
        s.fragment = true;
        memcpy(buf, p->data, p->l4);
        buf[p->l3 + IP6_NEXT] = IP6_FRAGMENT;
        h[0] = p->proto;
        h[1] = 0;
        packet_put16(h + 2, (unsigned)off | (off + n < total));
        put32(h + 4, id);
        memcpy(h + IP6_FRAG_HLEN, p->data + p->l4 + off, n);
        packet_set_length(&s);
        out(arg, &s);
    }
    return true;
}

bool segment_fragments(const struct packet *p, unsigned mtu, uint32_t id, uint8_t *buf,
                       segment_fn *out, void *arg)
{
    return p->ip == 4 ? fragment4(p, mtu, buf, out, arg) : fragment6(p, mtu, id, buf, out, arg);
}
