#include "back/net/packet.h"

#include <string.h>

#include "back/net/net.h"

#define ETH_TYPE 12
#define ETH_IP4 0x0800
#define ETH_IP6 0x86dd

#define IP4_HLEN 20u
#define IP4_LEN 2
#define IP4_FRAG 6
#define IP4_FRAG_MASK 0x3fffu /* offset, and more fragments */
#define IP4_PROTO 9
#define IP4_SUM 10
#define IP4_SRC 12
#define IP6_HLEN 40u
#define IP6_LEN 4
#define IP6_NEXT 6
#define IP6_SRC 8

#define TCP_HLEN 20u
#define TCP_OFF 12
#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define UDP_HLEN 8u
#define UDP_LEN 4
#define UDP_SUM 6

#define OPT_END 0
#define OPT_NOP 1
#define OPT_MSS 2

static bool parse_ip4(struct packet *p, bool sized)
{
    const uint8_t *h = p->data + p->l3;
    size_t room = p->len - p->l3;
    unsigned hlen, total;

    if (room < IP4_HLEN || h[0] >> 4 != 4)
        return false;
    hlen = (h[0] & 15u) * 4;
    total = packet_get16(h + IP4_LEN);
    if (hlen < IP4_HLEN || hlen > room)
        return false;
    if (sized) {
        if (total < hlen || total > room)
            return false;
        p->len = p->l3 + total;
    }
    p->ip = 4;
    p->proto = h[IP4_PROTO];
    p->l4 = p->l3 + hlen;
    p->fragment = packet_get16(h + IP4_FRAG) & IP4_FRAG_MASK;
    return true;
}

static bool parse_ip6(struct packet *p, bool sized)
{
    const uint8_t *h = p->data + p->l3;
    size_t room = p->len - p->l3;

    if (room < IP6_HLEN || h[0] >> 4 != 6)
        return false;
    if (sized) {
        unsigned body = packet_get16(h + IP6_LEN);

        if (body > room - IP6_HLEN)
            return false;
        p->len = p->l3 + IP6_HLEN + body;
    }
    p->ip = 6;
    p->proto = h[IP6_NEXT];
    p->l4 = p->l3 + IP6_HLEN;
    p->fragment = false;
    return true;
}

bool packet_parse(struct packet *p, uint8_t *frame, size_t len, bool sized)
{
    unsigned type;
    bool ok;

    if (len < NET_ETH_HLEN)
        return false;
    *p = (struct packet){.data = frame, .len = len, .l3 = NET_ETH_HLEN};
    type = packet_get16(frame + ETH_TYPE);
    ok = type == ETH_IP4 ? parse_ip4(p, sized) : type == ETH_IP6 && parse_ip6(p, sized);
    if (!ok)
        return false;
    p->body = p->l4;
    if (p->proto == PACKET_TCP && !p->fragment) {
        size_t room = p->len - p->l4;
        unsigned hlen = room < TCP_HLEN ? 0 : (frame[p->l4 + TCP_OFF] >> 4) * 4u;

        if (hlen < TCP_HLEN || hlen > room)
            return false;
        p->body = p->l4 + hlen;
    }
    return p->proto != PACKET_UDP || p->fragment || p->len - p->l4 >= UDP_HLEN;
}

/* Adding in host byte order and with wider words gives the same sum, byte-swapped (RFC 1071 §2). */
uint64_t packet_sum(const void *data, size_t len)
{
    const uint8_t *p = data;
    uint64_t a = 0, b = 0;
    uint32_t w[4];

    for (; len >= sizeof(w); len -= sizeof(w), p += sizeof(w)) {
        memcpy(w, p, sizeof(w));
        a += (uint64_t)w[0] + w[1];
        b += (uint64_t)w[2] + w[3];
    }
    if (len) {
        memset(w, 0, sizeof(w));
        memcpy(w, p, len);
        a += (uint64_t)w[0] + w[1];
        b += (uint64_t)w[2] + w[3];
    }
    return a + b;
}

uint16_t packet_fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

uint64_t packet_pseudo(const struct packet *p)
{
    const uint8_t *h = p->data + p->l3;
    uint32_t len = (uint32_t)(p->len - p->l4);
    uint8_t tail[8] = {(uint8_t)(len >> 24),
                       (uint8_t)(len >> 16),
                       (uint8_t)(len >> 8),
                       (uint8_t)len,
                       0,
                       0,
                       0,
                       p->proto};

    return packet_sum(tail, sizeof(tail)) +
           (p->ip == 4 ? packet_sum(h + IP4_SRC, 8) : packet_sum(h + IP6_SRC, 32));
}

static void put_sum(uint8_t *where, uint16_t sum) { memcpy(where, &sum, sizeof(sum)); }

void packet_set_length(struct packet *p)
{
    uint8_t *h = p->data + p->l3;

    if (p->ip == 6) {
        packet_put16(h + IP6_LEN, (unsigned)(p->len - p->l4));
    } else {
        packet_put16(h + IP4_LEN, (unsigned)(p->len - p->l3));
        put_sum(h + IP4_SUM, 0);
        put_sum(h + IP4_SUM, packet_fold(packet_sum(h, p->l4 - p->l3)));
    }
    if (p->proto == PACKET_UDP && !p->fragment)
        packet_put16(p->data + p->l4 + UDP_LEN, (unsigned)(p->len - p->l4));
}

void packet_checksum(struct packet *p)
{
    uint8_t *at = p->data + p->l4 + (p->proto == PACKET_TCP ? PACKET_TCP_SUM : UDP_SUM);
    uint16_t sum;

    put_sum(at, 0);
    sum = packet_fold(packet_pseudo(p) + packet_sum(p->data + p->l4, p->len - p->l4));
    /* RFC 768: zero would mean that there is none. */
    put_sum(at, p->proto == PACKET_UDP && sum == 0 ? 0xffff : sum);
}

/* RFC 1624: the new checksum from the old one and the words that change. */
static void change16(uint8_t *sum, uint8_t *word, uint16_t to)
{
    uint16_t old, from, s;

    memcpy(&s, sum, sizeof(s));
    memcpy(&from, word, sizeof(from));
    packet_put16(word, to);
    memcpy(&old, word, sizeof(old));
    put_sum(sum, packet_fold((uint64_t)(uint16_t)~s + (uint16_t)~from + old));
}

/* An odd offset swaps the bytes' places in the sum, so both words around are changed. */
static void change_mss(struct packet *p, unsigned at, uint16_t mss)
{
    uint8_t *sum = p->data + p->l4 + PACKET_TCP_SUM;
    uint8_t *v = p->data + at;

    if ((at - p->l4) % 2 == 0) {
        change16(sum, v, mss);
        return;
    }
    change16(sum, v - 1, (uint16_t)(v[-1] << 8 | mss >> 8));
    change16(sum, v + 1, (uint16_t)((mss & 0xff) << 8 | v[2]));
}

uint16_t packet_mss(struct packet *p, uint16_t mss)
{
    unsigned at;

    if (p->proto != PACKET_TCP || p->fragment || !(p->data[p->l4 + TCP_FLAGS] & TCP_SYN))
        return 0;
    at = p->l4 + TCP_HLEN;
    while (at < p->body && p->data[at] != OPT_END) {
        unsigned len = p->data[at] == OPT_NOP ? 1 : at + 1 < p->body ? p->data[at + 1] : 0;

        if (len == 0 || len > p->body - at)
            return 0;
        if (p->data[at] == OPT_MSS && len == 4) {
            uint16_t old = packet_get16(p->data + at + 2);

            if (mss)
                change_mss(p, at + 2, mss);
            return old;
        }
        at += len;
    }
    return 0;
}
