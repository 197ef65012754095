/* One connection of a vsock. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "back/vsock/vsock_conn.h"
#include "base/util.h"

#define SHUT_BOTH (VSOCK_SHUT_RCV | VSOCK_SHUT_SEND)
#define LINE_MAX_LEN 32 /* "CONNECT 4294967295\n" and some */
#define RW_MAX (64u << 10)
#define IOVS 64
#define EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

/* ---- life ---- */

static void set_deadline(struct vsock_conn *c, unsigned ms)
{
    c->v->ntimed += (ms != 0) - (c->deadline != 0);
    c->deadline = ms ? vsock_now_ms() + ms : 0;
}

struct vsock_conn *vsock_conn_new(struct vsock *v, int fd, enum vsock_conn_state state)
{
    struct vsock_conn *c = v->nconns < VSOCK_CONNS_MAX ? calloc(1, sizeof(*c)) : NULL;
    struct epoll_event ev = {.events = EVENTS, .data.ptr = c};

    if (!c || epoll_ctl(v->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
        free(c);
        close(fd);
        return NULL;
    }
    c->v = v;
    c->fd = fd;
    c->state = state;
    c->next_all = v->all;
    if (v->all)
        v->all->prev_all = c;
    v->all = c;
    v->nconns++;
    if (state == CONN_LINE)
        set_deadline(c, v->cfg.line_ms);
    return c;
}

static void drop_buf(struct vsock_conn *c)
{
    if (c->buf)
        c->v->nbufs--;
    free(c->buf);
    c->buf = NULL;
    c->head = c->waiting = 0;
}

static void close_fd(struct vsock_conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    drop_buf(c);
}

static void unhash(struct vsock_conn *c)
{
    struct vsock_conn **at = &c->v->hash[c->guest_port % VSOCK_HASH];

    if (!c->hashed)
        return;
    while (*at != c)
        at = &(*at)->next_hash;
    *at = c->next_hash;
    c->hashed = false;
}

static void tell(struct vsock_conn *c, uint32_t what)
{
    vsock_ready_add(c);
    c->tell |= what;
}

static void tell_nothing(struct vsock_conn *c)
{
    vsock_ready_del(c);
    c->tell = 0;
}

void vsock_conn_free(struct vsock_conn *c)
{
    struct vsock *v = c->v;

    set_deadline(c, 0);
    tell_nothing(c);
    unhash(c);
    close_fd(c);
    *(c->prev_all ? &c->prev_all->next_all : &v->all) = c->next_all;
    if (c->next_all)
        c->next_all->prev_all = c->prev_all;
    v->nconns--;
    free(c);
}

void vsock_conn_reset(struct vsock_conn *c)
{
    bool known = c->hashed && !(c->tell & TELL_REQUEST);

    if (!known) {
        vsock_conn_free(c);
        return;
    }
    close_fd(c);
    set_deadline(c, 0);
    c->state = CONN_RESET;
    tell_nothing(c);
    tell(c, TELL_RST);
}

/* The guest is done with it. What it sent before still goes to the host's program. */
static void linger(struct vsock_conn *c)
{
    if (!c->waiting) {
        vsock_conn_free(c);
        return;
    }
    set_deadline(c, 0);
    tell_nothing(c);
    unhash(c);
    c->state = CONN_LINGER;
}

static uint32_t credit(const struct vsock_conn *c)
{
    uint32_t inflight = c->sent - c->peer_fwd;

    return inflight > c->peer_alloc ? 0 : c->peer_alloc - inflight;
}

/* ---- from the guest to the host's program ---- */

/* The program does not read any more, or is gone: the guest is told, and what it sends is dropped.
 */
static void reader_gone(struct vsock_conn *c)
{
    c->forwarded += c->waiting;
    drop_buf(c);
    if (c->state == CONN_OPEN && !(c->host_shut & VSOCK_SHUT_RCV)) {
        c->host_shut |= VSOCK_SHUT_RCV;
        tell(c, TELL_SHUTDOWN);
    }
}

/* Has the guest used a quarter of its credit without knowing that it has it back? */
static void tell_credit(struct vsock_conn *c)
{
    if (c->state == CONN_OPEN && c->forwarded - c->told >= VSOCK_BUF / 4)
        tell(c, TELL_CREDIT);
}

/* Everything that the guest sent has been passed on. */
static void drained(struct vsock_conn *c)
{
    if (c->state == CONN_OPEN && c->guest_shut & VSOCK_SHUT_SEND)
        shutdown(c->fd, SHUT_WR);
}

/* Sends what waits, as far as the socket takes it. */
static void flush(struct vsock_conn *c)
{
    while (c->waiting) {
        uint32_t n = MIN(c->waiting, VSOCK_BUF - c->head);
        ssize_t put = send(c->fd, c->buf + c->head, n, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (put < 0) {
            reader_gone(c);
            return;
        }
        c->head = (c->head + (uint32_t)put) % VSOCK_BUF;
        c->waiting -= (uint32_t)put;
        c->forwarded += (uint32_t)put;
    }
    if (!c->waiting) {
        drop_buf(c);
        drained(c);
    }
    tell_credit(c);
}

/* Puts data from skip on into the ring, where it fits (credit saw to it). False without memory. */
static bool keep(struct vsock_conn *c, const struct iovec *data, unsigned n, size_t skip,
                 size_t len)
{
    if (!c->buf) {
        c->buf = c->v->nbufs < VSOCK_BUFS_MAX ? malloc(VSOCK_BUF) : NULL;
        if (!c->buf)
            return false;
        c->v->nbufs++;
    }
    for (unsigned i = 0; i < n && len; i++) {
        if (skip >= data[i].iov_len) {
            skip -= data[i].iov_len;
            continue;
        }
        const uint8_t *p = (const uint8_t *)data[i].iov_base + skip;
        size_t part = MIN(len, data[i].iov_len - skip);

        len -= part;
        skip = 0;
        while (part) {
            uint32_t tail = (c->head + c->waiting) % VSOCK_BUF;
            uint32_t m = (uint32_t)MIN(part, VSOCK_BUF - tail);

            memcpy(c->buf + tail, p, m);
            c->waiting += m;
            p += m;
            part -= m;
        }
    }
    return true;
}

/* The first len bytes of data, as iovecs in v; their number. *len is cut to what they hold. */
static unsigned first(const struct iovec *data, unsigned n, size_t *len, struct iovec v[IOVS])
{
    size_t left = *len;
    unsigned used = 0;

    for (unsigned i = 0; i < n && left && used < IOVS; i++) {
        if (!data[i].iov_len)
            continue;
        v[used] = (struct iovec){data[i].iov_base, MIN(left, data[i].iov_len)};
        left -= v[used++].iov_len;
    }
    *len -= left;
    return used;
}

static void take_data(struct vsock_conn *c, const struct iovec *data, unsigned n, uint32_t len)
{
    struct iovec v[IOVS];
    size_t some = len, done = 0;

    if (c->guest_shut & VSOCK_SHUT_SEND || len > VSOCK_BUF - (c->received - c->forwarded)) {
        vsock_conn_reset(c);
        return;
    }
    c->received += len;
    if (c->host_shut & VSOCK_SHUT_RCV) {
        c->forwarded += len;
        return;
    }
    if (!c->waiting) {
        struct msghdr m = {.msg_iov = v, .msg_iovlen = first(data, n, &some, v)};
        ssize_t put = some ? sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

        if (put < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            c->forwarded += len;
            reader_gone(c);
            return;
        }
        done = (size_t)MAX(put, 0);
        c->forwarded += (uint32_t)done;
    }
    if (done < len && !keep(c, data, n, done, len - done)) {
        vsock_conn_reset(c);
        return;
    }
    /* If there was room again meanwhile, no event says so. */
    if (c->waiting)
        flush(c);
    tell_credit(c);
}

/* ---- packets of the guest ---- */

static void accepted(struct vsock_conn *c)
{
    char line[24];
    int n = snprintf(line, sizeof(line), "OK %u\n", c->host_port);

    set_deadline(c, 0);
    c->state = CONN_OPEN;
    /* A socket that takes no 20 bytes as its first has a reader that is gone. */
    if (send(c->fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) != n)
        reader_gone(c);
    tell(c, TELL_DATA);
}

static void guest_shuts(struct vsock_conn *c, uint32_t flags)
{
    c->guest_shut |= flags & SHUT_BOTH;
    if (c->guest_shut == SHUT_BOTH) {
        /* The answer to the end is RST (§5.10.6.5), and then both forget the connection. */
        struct vsock *v = c->v;
        uint32_t guest_port = c->guest_port, host_port = c->host_port;

        if (c->waiting) {
            linger(c);
            vsock_refuse(v, guest_port, host_port);
        } else {
            vsock_conn_reset(c);
        }
        return;
    }
    if (c->state != CONN_OPEN)
        return;
    if (c->guest_shut & VSOCK_SHUT_RCV) {
        shutdown(c->fd, SHUT_RD);
        c->starved = false;
        c->tell &= ~(uint32_t)(TELL_DATA | ASK_CREDIT);
        if (!c->tell)
            vsock_ready_del(c);
    }
    if (c->guest_shut & VSOCK_SHUT_SEND && !c->waiting)
        drained(c);
}

void vsock_conn_packet(struct vsock_conn *c, const struct vsock_hdr *h, const struct iovec *data,
                       unsigned n)
{
    if (c->state == CONN_RESET) /* on its way already */
        return;
    c->peer_alloc = h->buf_alloc;
    c->peer_fwd = h->fwd_cnt;
    if (c->starved && credit(c)) {
        c->starved = false;
        tell(c, TELL_DATA);
    }
    switch (h->op) {
    case VSOCK_RESPONSE:
        if (c->state == CONN_REQUESTED && !(c->tell & TELL_REQUEST))
            accepted(c);
        else
            vsock_conn_reset(c);
        return;
    case VSOCK_RST:
        linger(c);
        return;
    case VSOCK_SHUTDOWN:
        guest_shuts(c, h->flags);
        return;
    case VSOCK_RW:
        if (c->state == CONN_OPEN)
            take_data(c, data, n, h->len);
        else if (c->state != CONN_CLOSING) /* which it may not have seen */
            vsock_conn_reset(c);
        return;
    case VSOCK_CREDIT_UPDATE:
        return;
    case VSOCK_CREDIT_REQUEST:
        if (c->state == CONN_OPEN)
            tell(c, TELL_CREDIT);
        return;
    default: /* a second REQUEST, or nothing we know */
        vsock_conn_reset(c);
    }
}

/* ---- the socket ---- */

/* "CONNECT <port>\n": 1 with *port, 0 if it is not all there yet, -1 if it is something else.
 * Nothing is read beyond the line. */
static int read_line(struct vsock_conn *c, uint32_t *port)
{
    char line[LINE_MAX_LEN + 1], *end;
    ssize_t got = recv(c->fd, line, LINE_MAX_LEN, MSG_PEEK | MSG_DONTWAIT);

    if (got <= 0)
        return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;

    char *eol = memchr(line, '\n', (size_t)got);
    if (!eol)
        return got == LINE_MAX_LEN ? -1 : 0;
    size_t len = (size_t)(eol - line) + 1;
    if (recv(c->fd, line, len, MSG_DONTWAIT) != (ssize_t)len)
        return -1;
    *eol = '\0';
    if (strncmp(line, "CONNECT ", 8) != 0 || line[8] < '0' || line[8] > '9')
        return -1;
    unsigned long long val = strtoull(line + 8, &end, 10);
    if (end != eol || val > UINT32_MAX)
        return -1;
    *port = (uint32_t)val;
    return 1;
}

/* The program closed its end and left nothing to read? What it did leave is still the guest's. */
static bool abandoned(const struct vsock_conn *c, uint32_t events)
{
    char byte;

    return events & (EPOLLHUP | EPOLLERR) && recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
}

static void line_event(struct vsock_conn *c, uint32_t events)
{
    uint32_t port;
    int rc = read_line(c, &port);

    if (rc < 0 || abandoned(c, events)) {
        vsock_conn_free(c);
    } else if (rc > 0) {
        c->guest_port = port;
        c->host_port = vsock_port(c->v, port);
        vsock_hash_add(c);
        c->state = CONN_REQUESTED;
        set_deadline(c, c->v->cfg.request_ms);
        tell(c, TELL_REQUEST);
    }
}

/* The program closed its end altogether, and what it sent before was passed on. */
static void hung_up(struct vsock_conn *c)
{
    if (c->host_shut & VSOCK_SHUT_SEND)
        reader_gone(c);
}

void vsock_conn_event(struct vsock_conn *c, uint32_t events)
{
    switch (c->state) {
    case CONN_LINE:
        line_event(c, events);
        return;
    case CONN_REQUESTED:
        if (abandoned(c, events))
            vsock_conn_reset(c);
        return;
    case CONN_OPEN:
        if (events & EPOLLOUT && c->waiting)
            flush(c);
        if (events & (EPOLLHUP | EPOLLERR))
            hung_up(c);
        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP) &&
            !((c->guest_shut & VSOCK_SHUT_RCV) | (c->host_shut & VSOCK_SHUT_SEND)))
            tell(c, TELL_DATA);
        return;
    case CONN_LINGER:
        flush(c);
        if (!c->waiting)
            vsock_conn_free(c);
        return;
    case CONN_CLOSING:
    case CONN_RESET:
        return;
    }
}

void vsock_conn_timeout(struct vsock_conn *c)
{
    /* A guest that was told to accept, or of the end, learns that it is too late. */
    vsock_conn_reset(c);
}

/* ---- packets to the guest ---- */

/* The program will send no more. */
static void host_ends(struct vsock_conn *c)
{
    struct pollfd p = {.fd = c->fd};

    c->host_shut |= VSOCK_SHUT_SEND;
    tell(c, TELL_SHUTDOWN);
    poll(&p, 1, 0);
    if (p.revents & (POLLHUP | POLLERR))
        reader_gone(c);
}

/* Reads from the socket into data; bytes, or 0 if there is nothing to send now. */
static uint32_t fill_data(struct vsock_conn *c, const struct iovec *data, unsigned n)
{
    struct iovec v[IOVS];
    size_t len = MIN(credit(c), RW_MAX);
    unsigned nv = first(data, n, &len, v);

    if (!len) {
        c->tell &= ~(uint32_t)TELL_DATA;
        if (!c->starved)
            tell(c, ASK_CREDIT);
        c->starved = true;
        return 0;
    }

    ssize_t got = readv(c->fd, v, (int)nv);
    if (got > 0) {
        c->sent += (uint32_t)got;
        return (uint32_t)got;
    }
    if (got < 0 && errno == EINTR)
        return 0;
    c->tell &= ~(uint32_t)TELL_DATA;
    if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        host_ends(c);
    return 0;
}

/* The end in both directions was told: the socket is of no more use. */
static void closing(struct vsock_conn *c)
{
    close_fd(c);
    tell_nothing(c);
    c->state = CONN_CLOSING;
    set_deadline(c, c->v->cfg.close_ms);
}

/* One packet without data that is due, or 0. The order matters: a connection begins with REQUEST or
 * RESPONSE, and its end comes after its data. */
static uint16_t next_op(struct vsock_conn *c)
{
    static const struct {
        uint32_t tell;
        uint16_t op;
    } order[] = {
        {TELL_RST, VSOCK_RST},
        {TELL_REQUEST, VSOCK_REQUEST},
        {TELL_RESPONSE, VSOCK_RESPONSE},
        {TELL_CREDIT, VSOCK_CREDIT_UPDATE},
        {ASK_CREDIT, VSOCK_CREDIT_REQUEST},
        {TELL_SHUTDOWN, VSOCK_SHUTDOWN},
    };

    for (size_t i = 0; i < ARRAY_LEN(order); i++) {
        if (c->tell & order[i].tell) {
            c->tell &= ~order[i].tell;
            return order[i].op;
        }
    }
    return 0;
}

bool vsock_conn_fill(struct vsock_conn *c, struct vsock_hdr *h, const struct iovec *data,
                     unsigned n)
{
    uint16_t op = 0;
    uint32_t len = 0;

    /* The socket's data goes before what was found at the end of it. */
    if (!(c->tell & ~(uint32_t)TELL_DATA)) {
        len = fill_data(c, data, n);
        op = len ? VSOCK_RW : 0;
    }
    if (!op)
        op = next_op(c);
    *h = (struct vsock_hdr){.src_cid = VSOCK_CID_HOST,
                            .dst_cid = c->v->cfg.cid,
                            .src_port = c->host_port,
                            .dst_port = c->guest_port,
                            .len = len,
                            .type = VSOCK_TYPE_STREAM,
                            .op = op,
                            .flags = op == VSOCK_SHUTDOWN ? c->host_shut : 0,
                            .buf_alloc = VSOCK_BUF,
                            .fwd_cnt = c->forwarded};
    if (op) {
        c->told = c->forwarded;
        c->tell &= ~(uint32_t)TELL_CREDIT;
    }
    if (op == VSOCK_RST) {
        vsock_conn_free(c);
        return true;
    }
    if (op == VSOCK_SHUTDOWN && c->host_shut == SHUT_BOTH)
        closing(c);
    else if (!c->tell)
        vsock_ready_del(c);
    return op != 0;
}
