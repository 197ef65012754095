/* The connections of a vsock, its listener, and what is no connection. */
#include "back/vsock/vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "back/vsock/vsock_conn.h"
#include "base/util.h"

#define EVENTS 64
#define BACKLOG 128
#define RETRY_MS 100

_Static_assert(sizeof(struct vsock_hdr) == 44, "virtio 1.2 §5.10.6");

uint64_t vsock_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- lists ---- */

struct vsock_conn *vsock_find(struct vsock *v, uint32_t guest_port, uint32_t host_port)
{
    struct vsock_conn *c = v->hash[guest_port % VSOCK_HASH];

    while (c && (c->guest_port != guest_port || c->host_port != host_port))
        c = c->next_hash;
    return c;
}

void vsock_hash_add(struct vsock_conn *c)
{
    struct vsock_conn **head = &c->v->hash[c->guest_port % VSOCK_HASH];

    c->next_hash = *head;
    *head = c;
    c->hashed = true;
}

uint32_t vsock_port(struct vsock *v, uint32_t guest_port)
{
    do {
        v->next_port = VSOCK_HOST_PORT | (v->next_port + 1) % VSOCK_HOST_PORT;
    } while (vsock_find(v, guest_port, v->next_port));
    return v->next_port;
}

void vsock_ready_add(struct vsock_conn *c)
{
    struct vsock *v = c->v;

    if (c->listed)
        return;
    c->listed = true;
    c->next_ready = NULL;
    c->prev_ready = v->ready_last;
    *(v->ready_last ? &v->ready_last->next_ready : &v->ready) = c;
    v->ready_last = c;
}

void vsock_ready_del(struct vsock_conn *c)
{
    struct vsock *v = c->v;

    if (!c->listed)
        return;
    c->listed = false;
    *(c->prev_ready ? &c->prev_ready->next_ready : &v->ready) = c->next_ready;
    *(c->next_ready ? &c->next_ready->prev_ready : &v->ready_last) = c->prev_ready;
}

/* ---- life ---- */

static int address(const struct vsock *v, struct sockaddr_un *a, const char *suffix)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    return (size_t)snprintf(a->sun_path, sizeof(a->sun_path), "%s%s", v->path, suffix) <
                   sizeof(a->sun_path)
               ? 0
               : -ENAMETOOLONG;
}

static int new_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* Is there a socket that nobody listens at? */
static bool stale(const struct sockaddr_un *a)
{
    struct stat st;
    int fd = new_socket();
    bool refused = fd >= 0 && lstat(a->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
                   connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0 && errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return refused;
}

static int start_listener(struct vsock *v, struct err *e)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &v->listener};
    struct sockaddr_un a;
    int rc = address(v, &a, "");

    if (rc)
        return err_set(e, ENAMETOOLONG, "the path of the socket is too long");
    v->listener = new_socket();
    if (v->listener < 0)
        return err_sys(e, "cannot create a socket");
    /* The file gets this mode, less the umask: who may connect talks to the guest's services. */
    fchmod(v->listener, 0600);
    rc = bind(v->listener, (struct sockaddr *)&a, sizeof(a));
    if (rc < 0 && errno == EADDRINUSE && stale(&a)) {
        unlink(a.sun_path);
        rc = bind(v->listener, (struct sockaddr *)&a, sizeof(a));
    }
    if (rc < 0)
        return err_sys(e, "cannot make the socket %s", v->path);
    v->bound = true;
    if (listen(v->listener, BACKLOG) < 0)
        return err_sys(e, "cannot listen at %s", v->path);
    if (epoll_ctl(v->epoll, EPOLL_CTL_ADD, v->listener, &ev) < 0)
        return err_sys(e, "cannot watch a socket");
    return 0;
}

int vsock_new(struct vsock **out, const struct vsock_cfg *cfg, struct err *e)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    struct vsock *v = calloc(1, sizeof(*v));
    int rc;

    if (!v)
        return err_set(e, ENOMEM, "out of memory");
    v->cfg = *cfg;
    v->cfg.path = v->path;
    v->epoll = v->wake = v->listener = -1;
    if (cfg->cid < VSOCK_CID_MIN || cfg->cid > VSOCK_CID_MAX) {
        rc = err_set(e, EINVAL, "a CID is %u to %u", VSOCK_CID_MIN, VSOCK_CID_MAX);
        goto fail;
    }
    if (!cfg->path[0] || strlen(cfg->path) > VSOCK_PATH_MAX) {
        rc = err_set(e, EINVAL, "the path of the socket is not of 1 to %u bytes", VSOCK_PATH_MAX);
        goto fail;
    }
    strcpy(v->path, cfg->path);
    v->epoll = epoll_create1(EPOLL_CLOEXEC);
    v->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->epoll < 0 || v->wake < 0 || epoll_ctl(v->epoll, EPOLL_CTL_ADD, v->wake, &ev) < 0) {
        rc = err_sys(e, "cannot watch descriptors");
        goto fail;
    }
    rc = start_listener(v, e);
    if (rc)
        goto fail;
    *out = v;
    return 0;

fail:
    vsock_free(v);
    return rc;
}

void vsock_reset(struct vsock *v)
{
    while (v->all)
        vsock_conn_free(v->all);
    v->nrefused = 0;
}

void vsock_free(struct vsock *v)
{
    if (!v)
        return;
    vsock_reset(v);
    if (v->bound)
        unlink(v->path);
    if (v->listener >= 0)
        close(v->listener);
    if (v->wake >= 0)
        close(v->wake);
    if (v->epoll >= 0)
        close(v->epoll);
    free(v);
}

/* ---- packets of the guest ---- */

void vsock_refuse(struct vsock *v, uint32_t guest_port, uint32_t host_port)
{
    unsigned at = (v->refused_first + v->nrefused) % VSOCK_REFUSALS;

    if (v->nrefused < VSOCK_REFUSALS) {
        v->refused[at] = (struct vsock_refusal){guest_port, host_port};
        v->nrefused++;
    }
}

bool vsock_full(const struct vsock *v) { return v->nrefused == VSOCK_REFUSALS; }

/* A guest's connection to port N: the program that listens at path_N, if there is one. */
static void connect_host(struct vsock *v, const struct vsock_hdr *h)
{
    struct sockaddr_un a;
    struct vsock_conn *c = NULL;
    char suffix[16];
    int fd;

    snprintf(suffix, sizeof(suffix), "_%u", h->dst_port);
    fd = address(v, &a, suffix) ? -1 : new_socket();
    /* A Unix socket connects at once, or not at all (a full backlog included). */
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        close(fd);
        fd = -1;
    }
    if (fd >= 0)
        c = vsock_conn_new(v, fd, CONN_OPEN);
    if (!c) {
        vsock_refuse(v, h->src_port, h->dst_port);
        return;
    }
    c->guest_port = h->src_port;
    c->host_port = h->dst_port;
    c->peer_alloc = h->buf_alloc;
    c->peer_fwd = h->fwd_cnt;
    vsock_hash_add(c);
    c->tell = TELL_RESPONSE | TELL_DATA;
    vsock_ready_add(c);
}

void vsock_send(struct vsock *v, const struct vsock_hdr *h, const struct iovec *data, unsigned n,
                size_t len)
{
    /* Nobody else is reached from here, and the guest is itself. */
    if (h->src_cid != v->cfg.cid || h->dst_cid != VSOCK_CID_HOST)
        return;

    struct vsock_conn *c = vsock_find(v, h->src_port, h->dst_port);
    bool bad = h->type != VSOCK_TYPE_STREAM || (h->op == VSOCK_RW ? h->len > len : h->len != 0);

    if (c && bad)
        vsock_conn_reset(c);
    else if (c)
        vsock_conn_packet(c, h, data, n);
    else if (!bad && h->op == VSOCK_REQUEST)
        connect_host(v, h);
    else if (h->op != VSOCK_RST)
        vsock_refuse(v, h->src_port, h->dst_port);
}

/* ---- packets to the guest ---- */

bool vsock_pending(const struct vsock *v) { return v->nrefused || v->ready; }

static void fill_refusal(struct vsock *v, struct vsock_hdr *h)
{
    const struct vsock_refusal *r = &v->refused[v->refused_first];

    *h = (struct vsock_hdr){.src_cid = VSOCK_CID_HOST,
                            .dst_cid = v->cfg.cid,
                            .src_port = r->host_port,
                            .dst_port = r->guest_port,
                            .type = VSOCK_TYPE_STREAM,
                            .op = VSOCK_RST};
    v->refused_first = (v->refused_first + 1) % VSOCK_REFUSALS;
    v->nrefused--;
}

bool vsock_recv(struct vsock *v, struct vsock_hdr *h, const struct iovec *data, unsigned n)
{
    if (v->nrefused) {
        fill_refusal(v, h);
        return true;
    }
    while (v->ready) {
        struct vsock_conn *c = v->ready;

        /* To the end of the list: the others are next. */
        vsock_ready_del(c);
        vsock_ready_add(c);
        if (vsock_conn_fill(c, h, data, n))
            return true;
    }
    return false;
}

/* ---- events ---- */

/* The listener is level-triggered: it is not looked at for a while when there are too many
 * connections or descriptors. */
static void listen_again(struct vsock *v, bool now)
{
    struct epoll_event ev = {.events = now ? EPOLLIN : 0, .data.ptr = &v->listener};

    v->resume_at = now ? 0 : vsock_now_ms() + RETRY_MS;
    epoll_ctl(v->epoll, EPOLL_CTL_MOD, v->listener, &ev);
}

static void accept_one(struct vsock *v)
{
    int fd;

    if (v->nconns >= VSOCK_CONNS_MAX) {
        listen_again(v, false);
        return;
    }
    fd = accept4(v->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        vsock_conn_new(v, fd, CONN_LINE); /* its first event comes by itself */
    else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
        listen_again(v, false);
}

static void run_timeouts(struct vsock *v)
{
    uint64_t now = vsock_now_ms();

    for (struct vsock_conn *c = v->all, *next; v->ntimed && c; c = next) {
        next = c->next_all;
        if (c->deadline && c->deadline <= now)
            vsock_conn_timeout(c);
    }
    if (v->resume_at && v->resume_at <= now)
        listen_again(v, true);
}

/* How long epoll may wait: -1 for ever. */
static int next_timeout(const struct vsock *v)
{
    uint64_t first = v->resume_at ? v->resume_at : UINT64_MAX, now;

    if (!v->ntimed && !v->resume_at)
        return -1;
    for (const struct vsock_conn *c = v->all; v->ntimed && c; c = c->next_all) {
        if (c->deadline)
            first = MIN(first, c->deadline);
    }
    now = vsock_now_ms();
    return first <= now ? 0 : (int)MIN(first - now, 60000u);
}

void vsock_wait(struct vsock *v)
{
    struct epoll_event ev[EVENTS];
    int n = epoll_wait(v->epoll, ev, EVENTS, next_timeout(v));
    eventfd_t count;

    /* An event may free its own connection, and no other. */
    for (int i = 0; i < n; i++) {
        if (!ev[i].data.ptr)
            eventfd_read(v->wake, &count);
        else if (ev[i].data.ptr == &v->listener)
            accept_one(v);
        else
            vsock_conn_event(ev[i].data.ptr, ev[i].events);
    }
    run_timeouts(v);
}

void vsock_wake(struct vsock *v) { eventfd_write(v->wake, 1); }
