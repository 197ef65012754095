/* Connections of a vsock: what vsock.c and vsock_conn.c know of each other. */
#ifndef RING3_BACK_VSOCK_VSOCK_CONN_H
#define RING3_BACK_VSOCK_VSOCK_CONN_H

#include "back/vsock/vsock.h"

#define VSOCK_HASH 256u
#define VSOCK_REFUSALS 256u

enum vsock_conn_state {
    CONN_LINE,      /* the host's program has yet to say CONNECT; the guest knows nothing */
    CONN_REQUESTED, /* the guest has yet to accept */
    CONN_OPEN,
    CONN_CLOSING, /* SHUTDOWN of both directions was sent: the guest has yet to answer */
    CONN_LINGER,  /* gone for the guest; what it sent is still on its way to the host's program */
    CONN_RESET,   /* to be freed once RST was sent */
};

/* What the guest has to be told. */
enum {
    TELL_REQUEST = 1,
    TELL_RESPONSE = 2,
    TELL_SHUTDOWN = 4,
    TELL_CREDIT = 8, /* CREDIT_UPDATE */
    ASK_CREDIT = 16,
    TELL_DATA = 32, /* the socket may have some */
    TELL_RST = 64,
};

struct vsock_conn {
    struct vsock *v;
    struct vsock_conn *next_all, *prev_all;
    struct vsock_conn *next_hash;               /* while in the table */
    struct vsock_conn *next_ready, *prev_ready; /* while listed */
    enum vsock_conn_state state;
    uint32_t guest_port, host_port;
    int fd; /* -1: closed */
    bool hashed, listed;
    uint32_t tell;
    uint64_t deadline; /* CLOCK_MONOTONIC ms, or 0 */

    uint32_t guest_shut; /* what the guest said it is done with */
    uint32_t host_shut;  /* what the host's program is done with, as the guest has to see it */

    /* To the guest. */
    uint32_t sent, peer_alloc, peer_fwd;
    bool starved; /* the socket has data for which the guest gave no credit */
    /* From the guest: bytes received, passed on, and passed on as the guest knows. */
    uint32_t received, forwarded, told;
    uint8_t *buf; /* VSOCK_BUF bytes, a ring; NULL while nothing waits */
    uint32_t head, waiting;
};

struct vsock_refusal {
    uint32_t guest_port, host_port;
};

struct vsock {
    struct vsock_cfg cfg;
    char path[VSOCK_PATH_MAX + 1];
    int epoll, wake, listener;
    bool bound;         /* path is ours to remove */
    uint64_t resume_at; /* ms: when the listener is looked at again; 0: it is now */
    struct vsock_conn *all;
    struct vsock_conn *hash[VSOCK_HASH];
    struct vsock_conn *ready, *ready_last;
    unsigned nconns, nbufs;
    unsigned ntimed; /* connections with a deadline */
    uint32_t next_port;
    /* RST for what is no connection. */
    struct vsock_refusal refused[VSOCK_REFUSALS];
    unsigned refused_first, nrefused;
};

struct vsock_conn *vsock_find(struct vsock *v, uint32_t guest_port, uint32_t host_port);
void vsock_hash_add(struct vsock_conn *c);
/* A free port of the host for a connection to that port of the guest. */
uint32_t vsock_port(struct vsock *v, uint32_t guest_port);
/* RST for these ports, when the guest takes one. */
void vsock_refuse(struct vsock *v, uint32_t guest_port, uint32_t host_port);
/* The list of those that have something to tell; the one told moves to its end. Adding one that is
 * listed, or taking out one that is not, changes nothing. */
void vsock_ready_add(struct vsock_conn *c);
void vsock_ready_del(struct vsock_conn *c);
uint64_t vsock_now_ms(void);

/* Takes fd, watched for events from now on; NULL (and fd closed) if there are too many, or no
 * memory. */
struct vsock_conn *vsock_conn_new(struct vsock *v, int fd, enum vsock_conn_state state);
void vsock_conn_free(struct vsock_conn *c);
/* Passes on RST, then frees. Frees at once what the guest does not know. */
void vsock_conn_reset(struct vsock_conn *c);
/* Events of its socket (EPOLL*). c may be freed by this, by timeout, packet and fill. */
void vsock_conn_event(struct vsock_conn *c, uint32_t events);
void vsock_conn_timeout(struct vsock_conn *c);
void vsock_conn_packet(struct vsock_conn *c, const struct vsock_hdr *h, const struct iovec *data,
                       unsigned n);
/* Makes the next packet of what there is to tell; false if that came to nothing. */
bool vsock_conn_fill(struct vsock_conn *c, struct vsock_hdr *h, const struct iovec *data,
                     unsigned n);

#endif
