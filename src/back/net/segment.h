/*
 * Cutting a packet into such that fit a link: TCP segmentation (what a network card's hardware
 * would do: RFC 9293 headers, one for each segment) and IP fragmentation (RFC 791 §3.2, RFC 8200
 * §4.5). Pure apart from what `out` does.
 */
#ifndef RING3_BACK_NET_SEGMENT_H
#define RING3_BACK_NET_SEGMENT_H

#include "back/net/packet.h"

/* Gets one frame after the other, in order; the bytes are its own only during the call. */
typedef void segment_fn(void *arg, struct packet *p);

/* Cuts a TCP packet that is not a fragment into segments of at most mss (at least 1) bytes of data,
 * with valid checksums. buf has room for a frame of them. */
void segment_tcp(const struct packet *p, unsigned mss, uint8_t *buf, segment_fn *out, void *arg);

/* Cuts any packet into fragments of at most mtu bytes. id identifies them among those of an IPv6
 * source. False, with nothing sent, if the packet forbids it or no fragment fits. buf has room for
 * an Ethernet header and mtu bytes. */
bool segment_fragments(const struct packet *p, unsigned mtu, uint32_t id, uint8_t *buf,
                       segment_fn *out, void *arg);

#endif
