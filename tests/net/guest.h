/*
 * The guest's side of a network back end, for tests: frames in and out, ARP and neighbour
 * discovery, and just enough of TCP to talk to what the back end leads to. Every frame that arrives
 * is checked for what a guest may count on: sizes, checksums, headers that agree with it. Failures
 * fail the test; waits end after 20 seconds.
 */
#ifndef RING3_TESTS_NET_GUEST_H
#define RING3_TESTS_NET_GUEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>

#include "back/net/net.h"
#include "back/net/packet.h"

#define GUEST_BYTES 65000u /* of TCP data in one frame at most */

struct gframe {
    struct gframe *next;
    struct net_hdr h;
    unsigned queue;
    size_t len;
    struct packet p; /* p.ip is 0 for what is no IP packet */
    uint8_t data[];
};

struct gqueue {
    struct gframe *head, **tail;
};

struct guest {
    struct netdev *n;
    struct log log;
    unsigned offloads, mtu;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct gqueue in, out;
    bool full;        /* takes no frames */
    unsigned refused; /* that it did not take */
    unsigned large;   /* frames that arrived and were larger than the link */
    size_t largest;   /* frame that arrived */
    unsigned mss;     /* to ask for; 0: what the link takes */
    uint16_t port;    /* last one used */
};

void guest_defaults(struct netdev_cfg *cfg); /* a user-mode one */
/* Opens the back end and starts it; offloads are NETDEV_*. */
void guest_init(struct guest *g, const struct netdev_cfg *cfg, unsigned offloads);
void guest_fini(struct guest *g);
void guest_full(struct guest *g, bool full);

void guest_send(struct guest *g, const struct net_hdr *h, const void *frame, size_t len);
/* The next frame for which match returns true; others stay. To be freed. NULL: none for `ms`. */
struct gframe *guest_recv(struct guest *g, bool (*match)(const struct gframe *f, const void *arg),
                          const void *arg, unsigned ms);

/* Builds an IP packet from 10.0.2.15 or fec0::15 to host number `to` of the same network (or, if
 * v4 is not 0, to that address); checksums are valid. l4 includes the TCP or UDP header. Returns
 * the frame's length. */
size_t guest_ip(struct guest *g, uint8_t *frame, unsigned ip, uint32_t to, uint8_t proto,
                const void *l4, size_t len);
/* Makes itself known. */
void guest_hello(struct guest *g, unsigned ip);

struct gconn {
    struct guest *g;
    unsigned ip;
    uint32_t to;
    uint16_t here, there;
    uint32_t seq, ack, acked; /* next to send; next to receive; the peer's */
    uint16_t mss;             /* the peer's */
    bool fin, reset;          /* by the peer */
};

/* Ways to send data: whole packets; without checksum; as one large frame. */
enum gsend { GSEND_PLAIN, GSEND_CSUM, GSEND_TSO };

/* Connects to a port of host number `to`; false when it is refused. */
bool gconn_open(struct gconn *c, struct guest *g, unsigned ip, uint32_t to, uint16_t port);
/* Accepts a connection to our port. */
void gconn_accept(struct gconn *c, struct guest *g, unsigned ip, uint16_t port);
/* Sends, waiting for acknowledgements as the window wants. */
void gconn_send(struct gconn *c, const void *data, size_t len, enum gsend how);
/* Receives exactly len bytes. */
void gconn_recv(struct gconn *c, void *data, size_t len);
/* Sends FIN and waits until both directions are closed. */
void gconn_close(struct gconn *c);

#endif
