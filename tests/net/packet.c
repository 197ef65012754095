/* Checksums, MSS options, segmentation and fragmentation, against known packets and a second
 * opinion. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "back/net/net.h"
#include "back/net/segment.h"
#include "base/util.h"

/* The textbook's way: one word after the other. Returns what the checksum should be. */
static uint16_t slow_sum(uint32_t start, const uint8_t *p, size_t len)
{
    uint32_t sum = start;

    for (size_t i = 0; i < len; i += 2) {
        sum += (uint32_t)(p[i] << 8) | (i + 1 < len ? p[i + 1] : 0);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)~sum;
}

/* The checksum field of a whole TCP or UDP packet included, the result is 0. */
static uint16_t slow_check(const struct packet *p)
{
    uint8_t pseudo[40] = {0};
    size_t len = p->len - p->l4, n = p->ip == 4 ? 12 : 40;
    uint16_t sum;

    memcpy(pseudo, p->data + p->l3 + (p->ip == 4 ? 12 : 8), p->ip == 4 ? 8 : 32);
    pseudo[n - 1] = p->ip == 4 ? 0 : p->proto;
    if (p->ip == 4) {
        pseudo[9] = p->proto;
        packet_put16(pseudo + 10, (unsigned)len);
    } else {
        packet_put16(pseudo + 34, (unsigned)len);
    }
    sum = (uint16_t)~slow_sum(0, pseudo, n);
    return slow_sum(sum, p->data + p->l4, len);
}

/* RFC 1071 §3's example, and the lengths and alignments around the words we add. */
static void sums(void **state)
{
    const uint8_t rfc[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
    uint8_t buf[160], want[2];
    uint16_t got = packet_fold(packet_sum(rfc, sizeof(rfc)));

    assert_memory_equal(&got, ((uint8_t[]){0x22, 0x0d}), 2);
    for (unsigned i = 0; i < sizeof(buf); i++)
        buf[i] = (uint8_t)(i * 211 + 97);
    for (unsigned off = 0; off < 8; off++) {
        for (unsigned len = 0; len + off < sizeof(buf); len++) {
            got = packet_fold(packet_sum(buf + off, len));
            packet_put16(want, slow_sum(0, buf + off, len));
            assert_memory_equal(&got, want, 2);
        }
    }
    memset(buf, 0xff, sizeof(buf)); /* carries everywhere */
    got = packet_fold(packet_sum(buf, sizeof(buf)));
    assert_int_equal(got, 0);
}

/* A SYN as Linux sends it: 10.0.2.15:40000 to 10.0.2.2:80, MSS 1460, SACK, timestamps, window
 * scale. */
static const uint8_t syn4[] = {
    0x52, 0x55, 0x0a, 0x00, 0x02, 0x02, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x00, 0x45,
    0x00, 0x00, 0x3c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0x06, 0x66, 0x0a, 0x00, 0x02, 0x0f,
    0x0a, 0x00, 0x02, 0x02, 0x9c, 0x40, 0x00, 0x50, 0x12, 0x34, 0x56, 0x78, 0x00, 0x00, 0x00,
    0x00, 0xa0, 0x02, 0xfa, 0xf0, 0xed, 0x72, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4, 0x04, 0x02,
    0x08, 0x0a, 0x00, 0x0f, 0x42, 0x40, 0x00, 0x00, 0x00, 0x00, 0x01, 0x03, 0x03, 0x07};

static void known_syn(void **state)
{
    uint8_t frame[sizeof(syn4) + 6]; /* padded, as short frames are */
    struct packet p;

    memset(frame, 0xee, sizeof(frame));
    memcpy(frame, syn4, sizeof(syn4));
    assert_true(packet_parse(&p, frame, sizeof(frame), true));
    assert_int_equal(p.ip, 4);
    assert_int_equal(p.proto, PACKET_TCP);
    assert_int_equal(p.len, sizeof(syn4));
    assert_int_equal(p.l4, 34);
    assert_int_equal(p.body, 74);
    assert_int_equal(slow_check(&p), 0);

    /* Writing what is there already changes nothing. */
    memset(frame + 24, 0, 2);
    memset(frame + 50, 0, 2);
    packet_set_length(&p);
    packet_checksum(&p);
    assert_memory_equal(frame, syn4, sizeof(syn4));

    assert_int_equal(packet_mss(&p, 0), 1460);
    assert_memory_equal(frame, syn4, sizeof(syn4));
    assert_int_equal(packet_mss(&p, 30660), 1460);
    assert_int_equal(packet_mss(&p, 0), 30660);
    assert_int_equal(slow_check(&p), 0);
}

/* The option at an odd place, and options that lie. */
static void mss_options(void **state)
{
    static const struct {
        uint8_t opt[8];
        uint16_t mss;
    } cases[] = {
        {{1, 2, 4, 0x05, 0xb4, 1, 1, 0}, 1460},
        {{1, 1, 1, 2, 4, 0x12, 0x34, 0}, 0x1234},
        {{3, 3, 7, 2, 4, 0xff, 0xff, 0}, 0xffff},
        {{0, 2, 4, 0x05, 0xb4, 1, 1, 0}, 0}, /* behind the end */
        {{8, 0, 2, 4, 0x05, 0xb4, 1, 1}, 0}, /* no length */
        {{8, 9, 2, 4, 0x05, 0xb4, 1, 1}, 0}, /* longer than the header */
        {{1, 1, 1, 1, 1, 2, 4, 0x05}, 0},    /* cut off */
        {{1, 1, 1, 1, 1, 1, 1, 2}, 0},       /* without length at the very end */
        {{2, 3, 0x05, 0xb4, 1, 1, 1, 1}, 0}, /* of another length */
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint8_t frame[14 + 20 + 28];
        struct packet p;

        memcpy(frame, syn4, 54);
        memcpy(frame + 54, cases[i].opt, 8);
        frame[46] = 0x70;
        packet_put16(frame + 16, 20 + 28);
        assert_true(packet_parse(&p, frame, sizeof(frame), true));
        packet_set_length(&p);
        packet_checksum(&p);
        assert_int_equal(packet_mss(&p, 0x7777), cases[i].mss);
        assert_int_equal(packet_mss(&p, 0), cases[i].mss ? 0x7777 : 0);
        assert_int_equal(slow_check(&p), 0);
        frame[47] = 0x10; /* no SYN */
        assert_int_equal(packet_mss(&p, 0), 0);
    }
}

static size_t make(uint8_t *f, unsigned ip, uint8_t proto, size_t body)
{
    size_t l4 = 14 + (ip == 4 ? 20 : 40), l4len = proto == PACKET_TCP ? 20 : 8;

    memset(f, 0, l4 + l4len);
    memcpy(f, syn4, 12);
    packet_put16(f + 12, ip == 4 ? 0x0800 : 0x86dd);
    if (ip == 4) {
        memcpy(f + 14, syn4 + 14, 20);
        packet_put16(f + 16, (unsigned)(20 + l4len + body));
        packet_put16(f + 20, 0);
        f[23] = proto;
    } else {
        f[14] = 0x60;
        packet_put16(f + 18, (unsigned)(l4len + body));
        f[20] = proto;
        f[21] = 64;
        for (unsigned i = 0; i < 32; i++)
            f[22 + i] = (uint8_t)(i + 1);
    }
    packet_put16(f + l4, 40000);
    packet_put16(f + l4 + 2, 80);
    if (proto == PACKET_TCP) {
        packet_put16(f + l4 + 4, 0xffff); /* the sequence number is about to wrap */
        packet_put16(f + l4 + 6, 0xf000);
        f[l4 + 12] = 0x50;
        f[l4 + 13] = 0x80 | 0x10 | 0x08 | 0x01; /* CWR ACK PSH FIN */
    }
    for (size_t i = 0; i < body; i++)
        f[l4 + l4len + i] = (uint8_t)(i * 7 + i / 256);
    return l4 + l4len + body;
}

static void malformed(void **state)
{
    uint8_t f[200];
    struct packet p;

    for (unsigned ip = 4; ip <= 6; ip += 2) {
        size_t len = make(f, ip, PACKET_TCP, 10);

        assert_true(packet_parse(&p, f, len, true));
        for (size_t cut = 0; cut < len; cut++)
            assert_false(packet_parse(&p, f, cut, true));
        f[14] ^= 0x30; /* the other version */
        assert_false(packet_parse(&p, f, len, true));
        len = make(f, ip, PACKET_TCP, 10);
        f[14 + (ip == 4 ? 20 : 40) + 12] = 0x40; /* a TCP header of 16 bytes */
        assert_false(packet_parse(&p, f, len, true));
        f[14 + (ip == 4 ? 20 : 40) + 12] = 0xf0; /* longer than the packet */
        assert_false(packet_parse(&p, f, len, true));
        len = make(f, ip, PACKET_UDP, 0);
        assert_true(packet_parse(&p, f, len, true));
        assert_false(packet_parse(&p, f, len - 1, false));
        packet_put16(f + 12, 0x8100);
        assert_false(packet_parse(&p, f, len, true));
    }
    size_t len = make(f, 4, PACKET_UDP, 20);
    f[14] = 0x44; /* an IPv4 header of 16 bytes */
    assert_false(packet_parse(&p, f, len, true));
    f[14] = 0x45;
    packet_put16(f + 16, 19); /* total less than the header */
    assert_false(packet_parse(&p, f, len, true));
}

static uint8_t frame[NET_FRAME_MAX], piece[NET_FRAME_MAX], joined[NET_FRAME_MAX];

struct sink {
    const struct packet *whole;
    size_t limit; /* of a piece: TCP data, or IP packet */
    size_t bytes;
    unsigned n;
};

static void on_segment(void *arg, struct packet *s)
{
    struct sink *k = arg;
    size_t n = s->len - s->body, total = k->whole->len - k->whole->body;
    struct packet again;
    uint8_t *tcp = s->data + s->l4;
    bool last = k->bytes + n == total;

    assert_true(packet_parse(&again, s->data, s->len, true));
    assert_int_equal(again.len, s->len);
    assert_int_equal(again.body, s->body);
    assert_int_equal(slow_check(&again), 0);
    if (s->ip == 4) {
        assert_int_equal(slow_sum(0, s->data + 14, 20), 0);
        assert_int_equal(packet_get16(s->data + 18), (uint16_t)(0x1c46 + k->n));
    }
    assert_int_equal((uint32_t)packet_get16(tcp + 4) << 16 | packet_get16(tcp + 6),
                     (uint32_t)(0xfffff000u + k->bytes));
    assert_int_equal(tcp[13], 0x10 | (k->n == 0 ? 0x80 : 0) | (last ? 0x09 : 0));
    assert_int_equal(n, last ? total - k->bytes : k->limit);
    memcpy(joined + k->bytes, s->data + s->body, n);
    k->bytes += n;
    k->n++;
}

static void tcp_segments(void **state)
{
    static const size_t sizes[] = {0, 1, 1459, 1460, 1461, 2920, 30660, 65000};

    for (unsigned ip = 4; ip <= 6; ip += 2) {
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
            size_t len = make(frame, ip, PACKET_TCP, sizes[i]);
            struct packet p;
            struct sink k = {&p, 1460, 0, 0};

            assert_true(packet_parse(&p, frame, len, true));
            segment_tcp(&p, 1460, piece, on_segment, &k);
            assert_int_equal(k.bytes, sizes[i]);
            assert_int_equal(k.n, MAX((sizes[i] + 1459) / 1460, 1));
            assert_memory_equal(joined, frame + p.body, sizes[i]);
        }
    }
}

static void on_fragment(void *arg, struct packet *s)
{
    struct sink *k = arg;
    const uint8_t *h = s->data + 14;
    size_t head = s->ip == 4 ? 20 : 48, n = s->len - 14 - head, off, want;
    size_t total = k->whole->len - k->whole->l4;
    bool more;

    assert_true(s->len - 14 <= k->limit);
    if (s->ip == 4) {
        assert_int_equal(packet_get16(h + 2), s->len - 14);
        assert_int_equal(slow_sum(0, h, 20), 0);
        assert_int_equal(packet_get16(h + 4), 0x1c46);
        off = (packet_get16(h + 6) & 0x1fff) * 8u;
        more = packet_get16(h + 6) & 0x2000;
    } else {
        assert_int_equal(packet_get16(h + 4), s->len - 14 - 40);
        assert_int_equal(h[6], 44);
        assert_int_equal(h[40], PACKET_UDP);
        assert_memory_equal(h + 44, ((uint8_t[]){0, 0, 0, 77}), 4);
        off = packet_get16(h + 42) & ~7u;
        more = packet_get16(h + 42) & 1;
    }
    want = ALIGN_DOWN(k->limit - head, 8);
    assert_int_equal(off, k->bytes);
    assert_int_equal(more, off + n < total);
    assert_int_equal(n, MIN(want, total - off));
    memcpy(joined + off, s->data + 14 + head, n);
    k->bytes += n;
    k->n++;
}

static void fragments(void **state)
{
    static const size_t sizes[] = {1473, 1500, 2952, 9000, 65000};

    for (unsigned ip = 4; ip <= 6; ip += 2) {
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
            size_t len = make(frame, ip, PACKET_UDP, sizes[i]);
            struct packet p;
            struct sink k = {&p, 1500, 0, 0};

            assert_true(packet_parse(&p, frame, len, true));
            assert_true(segment_fragments(&p, 1500, 77, piece, on_fragment, &k));
            assert_int_equal(k.bytes, sizes[i] + 8);
            assert_true(k.n > 1);
            assert_memory_equal(joined, frame + p.l4, sizes[i] + 8);
        }
    }
    /* "Don't fragment", and no room for anything. */
    struct packet p;
    struct sink k = {&p, 1500, 0, 0};
    size_t len = make(frame, 4, PACKET_UDP, 2000);

    frame[20] = 0x40;
    assert_true(packet_parse(&p, frame, len, true));
    assert_false(segment_fragments(&p, 1500, 0, piece, on_fragment, &k));
    frame[20] = 0;
    assert_false(segment_fragments(&p, 27, 0, piece, on_fragment, &k));
    assert_int_equal(k.n, 0);
}

struct bounds {
    size_t limit, bytes;
};

static void on_any(void *arg, struct packet *s)
{
    struct bounds *b = arg;

    assert_true(s->len <= b->limit);
    b->bytes += s->len - s->body;
}

static uint32_t below(uint64_t *seed, uint32_t n)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33) % n;
}

/* Headers with any bytes, in buffers of just the sizes that the contract asks for. */
static void hostile(void **state)
{
    static const uint8_t protocols[] = {PACKET_TCP, PACKET_UDP};
    uint64_t seed = 1;

    for (unsigned i = 0; i < 20000; i++) {
        uint8_t protocol = protocols[below(&seed, 2)];
        size_t len = make(frame, below(&seed, 2) ? 4 : 6, protocol, below(&seed, 3000));
        unsigned mss = 1 + below(&seed, 1500), mtu = below(&seed, 1500);
        uint8_t *exact, *room;
        struct packet p;

        for (unsigned n = below(&seed, 6); n; n--)
            frame[12 + below(&seed, 62)] = (uint8_t)below(&seed, 256);
        len = below(&seed, 4) ? len : below(&seed, (uint32_t)len);
        exact = malloc(MAX(len, 1));
        assert_non_null(exact);
        memcpy(exact, frame, len);
        if (packet_parse(&p, exact, len, below(&seed, 2))) {
            struct bounds b = {p.body + mss, 0}, f = {14 + (size_t)mtu, 0};

            assert_true(p.len <= len && p.l4 <= p.body && p.body <= p.len);
            room = malloc(b.limit);
            assert_non_null(room);
            if (p.proto == PACKET_TCP && !p.fragment) {
                segment_tcp(&p, mss, room, on_any, &b);
                assert_int_equal(b.bytes, p.len - p.body);
            }
            free(room);
            room = malloc(f.limit);
            assert_non_null(room);
            segment_fragments(&p, mtu, i, room, on_any, &f);
            free(room);
        }
        free(exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums),      cmocka_unit_test(known_syn),    cmocka_unit_test(mss_options),
        cmocka_unit_test(malformed), cmocka_unit_test(tcp_segments), cmocka_unit_test(fragments),
        cmocka_unit_test(hostile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
