/*
 * Reading and mending IP packets in Ethernet frames: where the headers are, checksums (RFC 1071),
 * the TCP option for the largest segment (RFC 9293 §3.7.1). Pure. Frames are hostile; everything
 * read is within the given length.
 */
#ifndef RING3_BACK_NET_PACKET_H
#define RING3_BACK_NET_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACKET_HEADERS 134 /* Ethernet, IPv4 and TCP headers with all their options */

#define PACKET_TCP 6
#define PACKET_UDP 17
#define PACKET_TCP_SUM 16 /* offset of the checksum in the TCP header */

/* A frame that holds a whole IPv4 or IPv6 packet (without extension headers). */
struct packet {
    uint8_t *data; /* the frame */
    size_t len;    /* of the frame up to the end of the packet, without what pads it */
    unsigned ip;   /* 4 or 6 */
    unsigned l3;   /* offset of the IP header */
    unsigned l4;   /* offset of what follows it */
    unsigned body; /* TCP: offset of the data; otherwise l4 */
    uint8_t proto; /* IP protocol number */
    bool fragment; /* of an IPv4 packet; body is l4 then */
};

/* Recognises an IP packet in a frame without VLAN tag; false for anything else and for what is cut
 * short. The length fields of the IP header are believed only if `sized`; otherwise the packet
 * reaches to the end of the frame. Reads no more than PACKET_HEADERS bytes. */
bool packet_parse(struct packet *p, uint8_t *frame, size_t len, bool sized);

/* Sum of 16-bit words in network byte order, as RFC 1071 adds them, not yet folded. The odd byte at
 * an end counts as if a zero followed. Add the sums of several even-sized pieces. */
uint64_t packet_sum(const void *data, size_t len);
/* A sum as it is put into a header: folded, inverted; in memory order. */
uint16_t packet_fold(uint64_t sum);

/* The sum of the pseudo header of p's protocol data (RFC 9293 §3.1, RFC 8200 §8.1). */
uint64_t packet_pseudo(const struct packet *p);

/* Sets length fields (and the IPv4 header's checksum) to what p->len says. */
void packet_set_length(struct packet *p);

/* Writes the checksum of a TCP or UDP packet. */
void packet_checksum(struct packet *p);

/* The value of the maximum segment size option in a SYN, which is changed to `mss` if mss is not 0,
 * with the checksum changed to match; 0 if there is none. */
uint16_t packet_mss(struct packet *p, uint16_t mss);

static inline uint16_t packet_get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline void packet_put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

#endif
