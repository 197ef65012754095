/*
 * The host side of a guest's vsock (virtio 1.2 §5.10): stream connections between ports of the
 * guest and Unix sockets of the host, by the protocol that Firecracker uses:
 *   - a program of the host connects to the socket at `path`, sends "CONNECT <port>\n" and gets
 *     "OK <host port>\n" once the guest has accepted; or the connection is closed;
 *   - a guest that connects to port N of the host (CID 2) is connected to the socket at `path`_N,
 *     where some program listens, or refused.
 * Each direction ends of itself: the end of one is passed on and the other goes on until it ends,
 * too.
 *
 * The guest is hostile: it is held to the credit it was given (a connection that exceeds it is
 * reset), and its connections, the bytes waiting for slow readers and the answers waiting for a
 * guest that takes none are bounded. So are host programs that connect and say nothing.
 *
 * A vsock belongs to one thread at a time, except for vsock_wake.
 */
#ifndef RING3_BACK_VSOCK_VSOCK_H
#define RING3_BACK_VSOCK_VSOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

#define VSOCK_CID_HOST 2u
#define VSOCK_CID_MIN 3u /* of a guest */
#define VSOCK_CID_MAX 0xfffffffeu
#define VSOCK_CONNS_MAX 1024u
#define VSOCK_BUF (256u << 10)     /* what a guest may send before the host's program reads */
#define VSOCK_BUFS_MAX 256u        /* connections that may have such bytes waiting */
#define VSOCK_HOST_PORT (1u << 30) /* ports of the host for its own connections: from here on */
#define VSOCK_PATH_MAX 96u         /* bytes of `path`: "_4294967295" and a NUL fit behind it */

/* §5.10.6. All fields are little-endian, as is every host. */
struct vsock_hdr {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port;
    uint32_t len;
    uint16_t type, op;
    uint32_t flags;
    uint32_t buf_alloc, fwd_cnt;
} __attribute__((packed));

enum vsock_op {
    VSOCK_REQUEST = 1,
    VSOCK_RESPONSE,
    VSOCK_RST,
    VSOCK_SHUTDOWN,
    VSOCK_RW,
    VSOCK_CREDIT_UPDATE,
    VSOCK_CREDIT_REQUEST,
};

#define VSOCK_TYPE_STREAM 1
#define VSOCK_SHUT_RCV 1u /* flags of VSOCK_SHUTDOWN */
#define VSOCK_SHUT_SEND 2u

struct vsock;

struct vsock_cfg {
    uint64_t cid;     /* the guest's: VSOCK_CID_MIN..VSOCK_CID_MAX */
    const char *path; /* at most VSOCK_PATH_MAX bytes; copied */
    /* How long the host's program may take to say what it wants, the guest to answer a REQUEST, and
     * the guest to answer the end of a connection. */
    unsigned line_ms, request_ms, close_ms;
};

/* 2 s for a guest to accept, as Linux itself waits; 8 s to close. */
#define VSOCK_TIMEOUTS .line_ms = 5000, .request_ms = 2000, .close_ms = 8000

/* Listens at the path, for this user only. A socket that nobody listens at any more is replaced.
 * -EADDRINUSE if someone does, -EINVAL, or what the host says, with e set. */
int vsock_new(struct vsock **out, const struct vsock_cfg *cfg, struct err *e);
/* Closes everything and removes the socket. NULL is allowed. */
void vsock_free(struct vsock *v);
/* Closes every connection, without a word to the guest. */
void vsock_reset(struct vsock *v);

/* A packet of the guest: its header and the payload, of len bytes, that came with it (h->len may
 * lie). Not while vsock_full. */
void vsock_send(struct vsock *v, const struct vsock_hdr *h, const struct iovec *data, unsigned n,
                size_t len);
/* Too many answers wait for the guest: no more packets of it before it takes some. */
bool vsock_full(const struct vsock *v);

/* The next packet for the guest: false if there is none. The payload, if any, is in data, and
 * h->len its length. */
bool vsock_recv(struct vsock *v, struct vsock_hdr *h, const struct iovec *data, unsigned n);
/* May there be any? */
bool vsock_pending(const struct vsock *v);

/* Waits until a socket, a timeout or vsock_wake gives reason to look at all of the above again;
 * returns at once if vsock_wake was called since the last time. */
void vsock_wait(struct vsock *v);
/* Any thread. */
void vsock_wake(struct vsock *v);

#endif
