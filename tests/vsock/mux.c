/* A vsock's host side: this is the guest at one end and the host's programs, at real sockets, at the other. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "back/vsock/vsock.h"
#include "base/util.h"

#define CID 42
#define NONE 0xffff
#define LONG 60000

struct guest {
    char dir[64], path[80];
    struct vsock *v;
    struct vsock_hdr h; /* the last packet received */
    uint8_t data[65536];
    uint32_t alloc, fwd; /* what it says of itself */
};

static int set_up_ms(void **state, unsigned line_ms, unsigned request_ms, unsigned close_ms)
{
    struct guest *g = calloc(1, sizeof(*g));
    struct err e = {""};

    strcpy(g->dir, "/tmp/ring3-vsock-XXXXXX");
    assert_non_null(mkdtemp(g->dir));
    snprintf(g->path, sizeof(g->path), "%s/v", g->dir);
    g->alloc = 256 << 10;
    if (vsock_new(&g->v, &(struct vsock_cfg){CID, g->path, line_ms, request_ms, close_ms}, &e))
        fail_msg("%s", e.msg);
    *state = g;
    return 0;
}

static int set_up(void **state) { return set_up_ms(state, LONG, LONG, LONG); }

static int set_up_line(void **state) { return set_up_ms(state, 20, LONG, LONG); }

static int set_up_request(void **state) { return set_up_ms(state, LONG, 20, LONG); }

static int set_up_close(void **state) { return set_up_ms(state, LONG, LONG, 20); }

static int tear_down(void **state)
{
    struct guest *g = *state;
    char path[100];

    vsock_free(g->v);
    assert_int_equal(access(g->path, F_OK), -1);
    snprintf(path, sizeof(path), "%s_1", g->path);
    unlink(path);
    assert_int_equal(rmdir(g->dir), 0);
    free(g);
    return 0;
}

/* ---- the host's programs ---- */

static struct sockaddr_un address(const struct guest *g, const char *suffix)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof(a.sun_path), "%s%s", g->path, suffix);
    return a;
}

static int dial(struct guest *g, const char *line)
{
    struct sockaddr_un a = address(g, "");
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(write(fd, line, strlen(line)), strlen(line));
    return fd;
}

/* Listens for port 1. */
static int serve(struct guest *g)
{
    struct sockaddr_un a = address(g, "_1");
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fd, 2000), 0);
    return fd;
}

/* The end of a connection, from the host's side: EOF or an error within the time that the vsock needs. */
static bool ended(struct guest *g, int fd)
{
    char c;

    for (int i = 0; i < 1000; i++) {
        ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT);

        if (n == 0 || (n < 0 && errno != EAGAIN))
            return true;
        vsock_wake(g->v);
        vsock_wait(g->v);
        usleep(1000);
    }
    return false;
}

/* ---- the guest ---- */

static void give(struct guest *g, uint16_t op, uint32_t guest_port, uint32_t host_port, uint32_t flags,
                 const void *data, uint32_t len)
{
    struct vsock_hdr h = {.src_cid = CID,
                          .dst_cid = VSOCK_CID_HOST,
                          .src_port = guest_port,
                          .dst_port = host_port,
                          .len = len,
                          .type = VSOCK_TYPE_STREAM,
                          .op = op,
                          .flags = flags,
                          .buf_alloc = g->alloc,
                          .fwd_cnt = g->fwd};
    /* In pieces, as a guest's memory is. */
    struct iovec iov[3] = {{(void *)data, len / 3}, {NULL, 0}, {(uint8_t *)data + len / 3, len - len / 3}};

    assert_false(vsock_full(g->v));
    vsock_send(g->v, &h, iov, 3, len);
}

/* What there is for the guest now: an operation, or NONE. */
static uint16_t take_room(struct guest *g, uint32_t room)
{
    struct iovec iov[2] = {{g->data, room / 2}, {g->data + room / 2, room - room / 2}};

    memset(&g->h, 0xee, sizeof(g->h));
    if (!vsock_recv(g->v, &g->h, iov, 2)) {
        assert_false(vsock_pending(g->v));
        return NONE;
    }
    assert_int_equal(g->h.src_cid, VSOCK_CID_HOST);
    assert_int_equal(g->h.dst_cid, CID);
    assert_int_equal(g->h.type, VSOCK_TYPE_STREAM);
    assert_true(g->h.len <= room);
    if (g->h.op != VSOCK_RW)
        assert_int_equal(g->h.len, 0);
    if (g->h.op != VSOCK_RST)
        assert_int_equal(g->h.buf_alloc, VSOCK_BUF);
    return g->h.op;
}

static uint16_t take(struct guest *g) { return take_room(g, 4096); }

/* Waits for the next packet. */
static uint16_t await(struct guest *g)
{
    uint16_t op;

    while ((op = take(g)) == NONE)
        vsock_wait(g->v);
    return op;
}

/* A connection that the host began: the host's fd; its port in *host_port. */
static int open_from_host(struct guest *g, uint32_t port, uint32_t *host_port)
{
    char line[40], answer[40] = "", want[40];
    int fd;

    snprintf(line, sizeof(line), "CONNECT %u\n", port);
    fd = dial(g, line);
    assert_int_equal(await(g), VSOCK_REQUEST);
    assert_int_equal(g->h.dst_port, port);
    *host_port = g->h.src_port;
    assert_true(*host_port >= VSOCK_HOST_PORT);
    assert_int_equal(recv(fd, answer, 1, MSG_DONTWAIT), -1); /* not before the guest agrees */
    give(g, VSOCK_RESPONSE, port, *host_port, 0, NULL, 0);
    assert_int_equal(take(g), NONE);
    snprintf(want, sizeof(want), "OK %u\n", *host_port);
    assert_int_equal(recv(fd, answer, sizeof(answer) - 1, 0), strlen(want));
    assert_string_equal(answer, want);
    return fd;
}

/* One that the guest began, to port 1: accepted from the listener. */
static int open_from_guest(struct guest *g, int listener, uint32_t port)
{
    give(g, VSOCK_REQUEST, port, 1, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_RESPONSE);
    assert_int_equal(g->h.src_port, 1);
    assert_int_equal(g->h.dst_port, port);

    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* ---- connecting ---- */

static void test_from_host(void **state)
{
    struct guest *g = *state;
    uint32_t port, port2;
    int fd = open_from_host(g, 1234, &port), fd2 = open_from_host(g, 1234, &port2);
    char buf[16] = "";

    assert_true(port != port2);
    assert_int_equal(write(fd, "to guest", 8), 8);
    assert_int_equal(await(g), VSOCK_RW);
    assert_int_equal(g->h.src_port, port);
    assert_int_equal(g->h.len, 8);
    assert_memory_equal(g->data, "to guest", 8);
    give(g, VSOCK_RW, 1234, port, 0, "to host", 7);
    assert_int_equal(read(fd, buf, sizeof(buf)), 7);
    assert_string_equal(buf, "to host");
    assert_int_equal(recv(fd2, buf, 1, MSG_DONTWAIT), -1);
    close(fd);
    close(fd2);
}

/* What is sent right behind the line is data, after the guest has accepted. */
static void test_line_and_data(void **state)
{
    struct guest *g = *state;
    int fd = dial(g, "CONN");

    vsock_wait(g->v);
    assert_int_equal(take(g), NONE);
    assert_int_equal(write(fd, "ECT 7\nhello\n", 12), 12);
    assert_int_equal(await(g), VSOCK_REQUEST);
    assert_int_equal(g->h.dst_port, 7);
    assert_int_equal(take(g), NONE);
    give(g, VSOCK_RESPONSE, 7, g->h.src_port, 0, NULL, 0);
    close(fd);
}

/* A program that says all it has to say and leaves is heard. */
static void test_hasty(void **state)
{
    struct guest *g = *state;

    close(dial(g, "CONNECT 7\nhello"));
    assert_int_equal(await(g), VSOCK_REQUEST);
    give(g, VSOCK_RESPONSE, 7, g->h.src_port, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_SHUTDOWN);
    assert_int_equal(g->h.flags, VSOCK_SHUT_RCV);
    assert_int_equal(take(g), VSOCK_RW);
    assert_memory_equal(g->data, "hello", 5);
    assert_int_equal(take(g), VSOCK_SHUTDOWN);
    assert_int_equal(g->h.flags, VSOCK_SHUT_RCV | VSOCK_SHUT_SEND);
    /* But not one that has nothing to say. */
    close(dial(g, "CONNECT 7\n"));
    vsock_wait(g->v);
    assert_int_equal(take(g), NONE);
}

static void test_bad_lines(void **state)
{
    static const char *const lines[] = {
        "\n", "CONNECT\n", "CONNECT \n", "CONNECT x\n", "connect 1\n", "CONNECT 1 \n", "CONNECT -1\n", "CONNECT 1x\n",
        "CONNECT 4294967296\n", "CONNECT 18446744073709551617\n", "GET / HTTP/1.0\r\n", " CONNECT 1\n",
        "CONNECT 00000000000000000000000000000000000000000000001\n"};
    struct guest *g = *state;

    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        int fd = dial(g, lines[i]);

        if (!ended(g, fd))
            fail_msg("'%s' is taken", lines[i]);
        assert_int_equal(take(g), NONE);
        close(fd);
    }
    int fd = dial(g, "CONNECT 4294967295\n");
    assert_int_equal(await(g), VSOCK_REQUEST);
    assert_int_equal(g->h.dst_port, UINT32_MAX);
    close(fd);
}

static void test_refused_by_guest(void **state)
{
    struct guest *g = *state;
    int fd = dial(g, "CONNECT 5\n");

    assert_int_equal(await(g), VSOCK_REQUEST);
    give(g, VSOCK_RST, 5, g->h.src_port, 0, NULL, 0);
    assert_true(ended(g, fd));
    assert_int_equal(take(g), NONE); /* RST is not answered */
    close(fd);
}

static void test_from_guest(void **state)
{
    struct guest *g = *state;
    char buf[16] = "";

    give(g, VSOCK_REQUEST, 99, 1, 0, NULL, 0); /* nobody listens */
    assert_int_equal(take(g), VSOCK_RST);
    assert_int_equal(g->h.dst_port, 99);
    assert_int_equal(g->h.src_port, 1);

    int listener = serve(g), fd = open_from_guest(g, listener, 99);
    give(g, VSOCK_RW, 99, 1, 0, "question", 8);
    assert_int_equal(read(fd, buf, sizeof(buf)), 8);
    assert_int_equal(write(fd, "answer", 6), 6);
    assert_int_equal(await(g), VSOCK_RW);
    assert_memory_equal(g->data, "answer", 6);
    assert_int_equal(g->h.fwd_cnt, 8);
    close(fd);
    close(listener);
}

/* ---- ending ---- */

/* Each direction by itself, the host first. */
static void test_half_close(void **state)
{
    struct guest *g = *state;
    uint32_t port;
    int fd = open_from_host(g, 5, &port);
    char buf[16] = "";

    assert_int_equal(write(fd, "last", 4), 4);
    shutdown(fd, SHUT_WR);
    assert_int_equal(await(g), VSOCK_RW);
    assert_int_equal(await(g), VSOCK_SHUTDOWN);
    assert_int_equal(g->h.flags, VSOCK_SHUT_SEND);
    give(g, VSOCK_RW, 5, port, 0, "still here", 10);
    assert_int_equal(read(fd, buf, sizeof(buf)), 10);
    give(g, VSOCK_SHUTDOWN, 5, port, VSOCK_SHUT_SEND, NULL, 0);
    assert_int_equal(read(fd, buf, sizeof(buf)), 0);
    close(fd);
    assert_int_equal(await(g), VSOCK_SHUTDOWN);
    assert_int_equal(g->h.flags, VSOCK_SHUT_SEND | VSOCK_SHUT_RCV);
    give(g, VSOCK_RST, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), NONE);
    give(g, VSOCK_RW, 5, port, 0, "x", 1); /* forgotten */
    assert_int_equal(take(g), VSOCK_RST);
}

static void test_guest_closes(void **state)
{
    struct guest *g = *state;
    uint32_t port;
    int fd = open_from_host(g, 5, &port);
    char buf[16];

    give(g, VSOCK_SHUTDOWN, 5, port, VSOCK_SHUT_SEND, NULL, 0);
    assert_int_equal(read(fd, buf, sizeof(buf)), 0);
    assert_int_equal(write(fd, "more", 4), 4);
    assert_int_equal(await(g), VSOCK_RW);
    give(g, VSOCK_SHUTDOWN, 5, port, VSOCK_SHUT_RCV, NULL, 0); /* adds up */
    assert_int_equal(take(g), VSOCK_RST);
    assert_int_equal(take(g), NONE);
    assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
    close(fd);

    /* It does not want to read any more, but goes on sending. */
    fd = open_from_host(g, 6, &port);
    give(g, VSOCK_SHUTDOWN, 6, port, VSOCK_SHUT_RCV, NULL, 0);
    assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
    give(g, VSOCK_RW, 6, port, 0, "y", 1);
    assert_int_equal(read(fd, buf, 1), 1);
    close(fd);

    /* Sending after its end is against the rules. */
    fd = open_from_host(g, 7, &port);
    give(g, VSOCK_SHUTDOWN, 7, port, VSOCK_SHUT_SEND, NULL, 0);
    give(g, VSOCK_RW, 7, port, 0, "y", 1);
    while (await(g) != VSOCK_RST || g->h.dst_port != 7)
        ;
    close(fd);
}

static void test_host_closes(void **state)
{
    struct guest *g = *state;
    uint32_t port;
    int fd = open_from_host(g, 5, &port);

    assert_int_equal(write(fd, "last", 4), 4);
    close(fd);
    assert_int_equal(await(g), VSOCK_RW);
    assert_int_equal(await(g), VSOCK_SHUTDOWN);
    assert_int_equal(g->h.flags, VSOCK_SHUT_SEND | VSOCK_SHUT_RCV);
    give(g, VSOCK_RW, 5, port, 0, "on its way", 10); /* crossed it */
    assert_int_equal(take(g), NONE);
    give(g, VSOCK_RST, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), NONE);
}

/* Bytes that a slow program has yet to read outlive the guest's end of the connection. */
static void test_linger(void **state)
{
    struct guest *g = *state;
    uint8_t *big = calloc(1, VSOCK_BUF), *got = malloc(4 * VSOCK_BUF);
    uint32_t port, sent = 0;
    size_t n = 0;
    int fd = open_from_host(g, 5, &port);

    for (int i = 0; i < (int)VSOCK_BUF; i++)
        big[i] = (uint8_t)(i / 100);
    /* The socket's buffer is full when the vsock takes no more credit back. */
    uint32_t known = 0;
    for (;;) {
        if (VSOCK_BUF - (sent - known) >= 65536) {
            give(g, VSOCK_RW, 5, port, 0, big + sent % VSOCK_BUF, 65536);
            sent += 65536;
        } else if (take(g) == NONE) {
            break;
        }
        if (take(g) == VSOCK_CREDIT_UPDATE)
            known = g->h.fwd_cnt;
    }
    give(g, VSOCK_SHUTDOWN, 5, port, VSOCK_SHUT_RCV | VSOCK_SHUT_SEND, NULL, 0);
    assert_int_equal(take(g), VSOCK_RST); /* the guest may forget it */
    while (n < sent) {
        ssize_t r = recv(fd, got + n % VSOCK_BUF, 4096, MSG_DONTWAIT);

        if (r < 0) {
            vsock_wait(g->v);
            continue;
        }
        assert_true(r > 0);
        for (ssize_t i = 0; i < r; i++)
            assert_int_equal(got[n % VSOCK_BUF + (size_t)i], big[(n + (size_t)i) % VSOCK_BUF]);
        n += (size_t)r;
    }
    assert_true(ended(g, fd));
    assert_int_equal(take(g), NONE);
    close(fd);
    free(big);
    free(got);
}

/* ---- credit ---- */

/* The guest gets no more than it has room for. */
static void test_credit_of_guest(void **state)
{
    struct guest *g = *state;
    uint8_t buf[5000];
    uint32_t port;

    g->alloc = 1000;
    memset(buf, 'x', sizeof(buf));
    int fd = open_from_host(g, 5, &port);
    assert_int_equal(write(fd, buf, sizeof(buf)), sizeof(buf));
    assert_int_equal(await(g), VSOCK_RW);
    assert_int_equal(g->h.len, 1000);
    assert_int_equal(await(g), VSOCK_CREDIT_REQUEST);
    assert_int_equal(take(g), NONE);
    give(g, VSOCK_CREDIT_UPDATE, 5, port, 0, NULL, 0); /* nothing read yet */
    assert_int_equal(take(g), NONE);
    g->fwd = 300;
    give(g, VSOCK_CREDIT_UPDATE, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_RW);
    assert_int_equal(g->h.len, 300);
    assert_int_equal(take(g), VSOCK_CREDIT_REQUEST);
    g->fwd = 1300;
    g->alloc = 500; /* it may shrink */
    give(g, VSOCK_CREDIT_UPDATE, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_RW);
    assert_int_equal(g->h.len, 500);
    /* Nonsense: more forwarded than was sent. */
    g->fwd = 100000;
    give(g, VSOCK_CREDIT_UPDATE, 5, port, 0, NULL, 0);
    while (take(g) != NONE)
        assert_int_not_equal(g->h.op, VSOCK_RW);
    close(fd);
}

/* The guest learns what it may send, and is held to it. */
static void test_credit_of_host(void **state)
{
    struct guest *g = *state;
    uint8_t *big = calloc(1, VSOCK_BUF);
    uint32_t port, sent = 0;
    int fd = open_from_host(g, 5, &port);

    give(g, VSOCK_CREDIT_REQUEST, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_CREDIT_UPDATE);
    assert_int_equal(g->h.fwd_cnt, 0);
    give(g, VSOCK_RW, 5, port, 0, big, 65536);
    assert_int_equal(take(g), VSOCK_CREDIT_UPDATE);
    assert_int_equal(g->h.fwd_cnt, 65536);
    give(g, VSOCK_RW, 5, port, 0, big, 100); /* too little to tell of */
    assert_int_equal(take(g), NONE);
    sent = 65636;

    /* The program does not read: at last there is no credit, and everything is kept. */
    uint32_t known = 65536;
    while (sent - known < VSOCK_BUF) {
        uint32_t n = MIN(VSOCK_BUF - (sent - known), 10000);

        give(g, VSOCK_RW, 5, port, 0, big, n);
        sent += n;
        if (take(g) == VSOCK_CREDIT_UPDATE)
            known = g->h.fwd_cnt;
    }
    size_t got = 0;
    uint8_t buf[4096];
    while (got < sent) {
        ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);

        if (n > 0)
            got += (size_t)n;
        else
            vsock_wait(g->v);
    }
    uint16_t op, last = NONE;
    while ((op = take(g)) != NONE) {
        last = op;
        known = g->h.fwd_cnt;
    }
    assert_int_equal(last, VSOCK_CREDIT_UPDATE);
    assert_true(sent - known < VSOCK_BUF / 4);

    /* More than it was given. */
    for (int i = 0; i < 64; i++) {
        give(g, VSOCK_RW, 5, port, 0, big, VSOCK_BUF / 2);
        if (take(g) == VSOCK_RST)
            break;
    }
    assert_int_equal(g->h.op, VSOCK_RST);
    close(fd);
    free(big);
}

/* ---- large ---- */

#define TOTAL (32u << 20)

struct echo {
    int listener;
};

static void *echo(void *arg)
{
    struct echo *e = arg;
    struct pollfd p = {.fd = e->listener, .events = POLLIN};
    uint8_t buf[30000];
    ssize_t n;

    poll(&p, 1, -1);
    int fd = accept(e->listener, NULL, NULL);
    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        for (ssize_t at = 0, m; at < n; at += m) {
            m = write(fd, buf + at, (size_t)(n - at));
            if (m < 0)
                abort();
        }
    }
    close(fd);
    return NULL;
}

/* There and back again, through a program that echoes: both directions' credit, all bytes, their order, the end. */
static void test_large(void **state)
{
    struct guest *g = *state;
    struct echo e = {serve(g)};
    uint32_t sent = 0, got = 0, known = 0, bytes = 0;
    uint8_t *buf = malloc(65536);
    bool ended_host = false;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, echo, &e), 0);
    give(g, VSOCK_REQUEST, 9, 1, 0, NULL, 0);
    assert_int_equal(await(g), VSOCK_RESPONSE);
    while (!ended_host) {
        uint32_t room = VSOCK_BUF - (sent - known), n = MIN(MIN(room, 65536u), TOTAL - sent);

        if (n) {
            for (uint32_t i = 0; i < n; i++)
                buf[i] = (uint8_t)((sent + i) * 2654435761u >> 24);
            give(g, VSOCK_RW, 9, 1, 0, buf, n);
            sent += n;
            if (sent == TOTAL)
                give(g, VSOCK_SHUTDOWN, 9, 1, VSOCK_SHUT_SEND, NULL, 0);
        }
        uint16_t op = take_room(g, 4000 + sent % 50000);
        if (op == NONE) {
            if (!n)
                vsock_wait(g->v);
            continue;
        }
        known = g->h.fwd_cnt;
        if (op == VSOCK_RW) {
            for (uint32_t i = 0; i < g->h.len; i++)
                bytes += g->data[i] != (uint8_t)((got + i) * 2654435761u >> 24);
            got += g->h.len;
            g->fwd = got;
            if (got % 7 == 0) /* not always at once */
                give(g, VSOCK_CREDIT_UPDATE, 9, 1, 0, NULL, 0);
        } else if (op == VSOCK_CREDIT_REQUEST) {
            give(g, VSOCK_CREDIT_UPDATE, 9, 1, 0, NULL, 0);
        } else if (op == VSOCK_SHUTDOWN) {
            ended_host = true;
        } else {
            assert_int_equal(op, VSOCK_CREDIT_UPDATE);
        }
    }
    assert_int_equal(bytes, 0);
    assert_int_equal(got, TOTAL);
    assert_int_equal(known, TOTAL);
    pthread_join(thread, NULL);
    close(e.listener);
    free(buf);
}

/* ---- hostile ---- */

static void raw(struct guest *g, struct vsock_hdr h, size_t len)
{
    struct iovec iov = {g->data, len};

    vsock_send(g->v, &h, &iov, 1, len);
}

static void test_bad_packets(void **state)
{
    struct guest *g = *state;
    const struct vsock_hdr good = {.src_cid = CID,
                                   .dst_cid = VSOCK_CID_HOST,
                                   .src_port = 5,
                                   .dst_port = 6,
                                   .type = VSOCK_TYPE_STREAM,
                                   .op = VSOCK_RW};
    struct vsock_hdr h;
    uint32_t port;

    /* To or from somebody else: dropped. */
    h = good;
    h.src_cid = CID + 1;
    raw(g, h, 0);
    h = good;
    h.dst_cid = 7;
    h.op = VSOCK_REQUEST;
    raw(g, h, 0);
    assert_int_equal(take(g), NONE);

    /* About no connection: RST, but none for RST. */
    for (unsigned op = 0; op < 10; op++) {
        h = good;
        h.op = (uint16_t)op;
        raw(g, h, 0);
        assert_int_equal(take(g), op == VSOCK_RST ? NONE : VSOCK_RST);
    }
    h = good;
    h.type = 2; /* no stream */
    h.op = VSOCK_REQUEST;
    raw(g, h, 0);
    assert_int_equal(take(g), VSOCK_RST);

    /* About one, but wrong. */
    struct {
        uint16_t type, op;
        uint32_t len;
        size_t real;
    } bad[] = {{1, VSOCK_RW, 100, 99},     {1, VSOCK_RW, UINT32_MAX, 100}, {1, VSOCK_REQUEST, 0, 0},
               {1, VSOCK_RESPONSE, 0, 0},  {1, 0, 0, 0},                   {1, 8, 0, 0},
               {1, 0xffff, 0, 0},          {0, VSOCK_RW, 1, 1},            {2, VSOCK_RW, 1, 1},
               {1, VSOCK_SHUTDOWN, 10, 10}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        int fd = open_from_host(g, 5, &port);

        h = good;
        h.dst_port = port;
        h.type = bad[i].type;
        h.op = bad[i].op;
        h.len = bad[i].len;
        h.buf_alloc = 1000;
        raw(g, h, bad[i].real);
        assert_int_equal(take(g), VSOCK_RST);
        assert_int_equal(g->h.src_port, port);
        assert_int_equal(take(g), NONE);
        assert_true(ended(g, fd));
        close(fd);
    }
    /* Answering for the host's program before it asked. */
    int fd = dial(g, "CONNECT 5\n");
    while (!vsock_pending(g->v))
        vsock_wait(g->v);
    h = good;
    h.op = VSOCK_RESPONSE;
    for (h.dst_port = VSOCK_HOST_PORT; h.dst_port < VSOCK_HOST_PORT + 64; h.dst_port++)
        raw(g, h, 0);
    assert_true(ended(g, fd));
    while (take(g) != NONE)
        assert_int_equal(g->h.op, VSOCK_RST);
    close(fd);
}

/* A guest that takes no answers is stopped; one that floods connections meets their limit. */
static void test_floods(void **state)
{
    struct guest *g = *state;
    unsigned refused = 0, accepted = 0;
    uint32_t port = 0;
    struct rlimit files;

    while (!vsock_full(g->v)) {
        give(g, VSOCK_RW, ++port, 5, 0, NULL, 0);
        assert_true(port < 10000);
    }
    for (uint32_t i = 1; i <= port; i++) {
        assert_int_equal(take(g), VSOCK_RST);
        assert_int_equal(g->h.dst_port, i); /* none lost, in order */
    }
    assert_int_equal(take(g), NONE);

    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < VSOCK_CONNS_MAX + 100)
        return; /* then that is the limit */
    int listener = serve(g);
    for (port = 1; port <= VSOCK_CONNS_MAX + 10; port++) {
        give(g, VSOCK_REQUEST, port, 1, 0, NULL, 0);
        uint16_t op = take(g);
        accepted += op == VSOCK_RESPONSE;
        refused += op == VSOCK_RST;
        if (op == VSOCK_RESPONSE && port > 10)
            close(accept(listener, NULL, NULL)); /* do not run out of descriptors here */
    }
    assert_int_equal(accepted, VSOCK_CONNS_MAX);
    assert_int_equal(refused, 10);
    vsock_reset(g->v);
    assert_int_equal(take(g), NONE);
    give(g, VSOCK_REQUEST, 1, 1, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_RESPONSE);
    close(listener);
}

/* -1 if the vsock is too slow for us. */
static int try_dial(struct guest *g)
{
    struct sockaddr_un a = address(g, "");
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        close(fd);
        return -1;
    }
    send(fd, "CONNECT 3\n", 10, MSG_NOSIGNAL);
    return fd;
}

/* Random packets about few ports, with programs that come and go. */
static void test_random(void **state)
{
    struct guest *g = *state;
    int listener = serve(g), fds[8];
    char buf[3000];

    srand(7);
    for (int i = 0; i < 8; i++)
        fds[i] = -1;
    for (int i = 0; i < 100000; i++) {
        int k = rand() % 8;

        switch (rand() % 8) {
        case 0:
            if (fds[k] >= 0)
                close(fds[k]);
            fds[k] = rand() % 2 ? accept4(listener, NULL, NULL, SOCK_NONBLOCK) : try_dial(g);
            break;
        case 1:
            if (fds[k] >= 0 && rand() % 2)
                send(fds[k], buf, (size_t)(rand() % 3000), MSG_NOSIGNAL | MSG_DONTWAIT);
            else if (fds[k] >= 0 && rand() % 10)
                recv(fds[k], buf, sizeof(buf), MSG_DONTWAIT);
            else if (fds[k] >= 0)
                shutdown(fds[k], rand() % 3);
            break;
        case 2:
            vsock_wake(g->v);
            vsock_wait(g->v);
            break;
        case 3:
        case 4:
            take_room(g, (uint32_t)(1 + rand() % 5000));
            break;
        default:
            if (!vsock_full(g->v)) {
                struct vsock_hdr h = {.src_cid = CID,
                                      .dst_cid = VSOCK_CID_HOST,
                                      .src_port = (uint32_t)(rand() % 4),
                                      .dst_port = rand() % 2 ? 1 : g->h.src_port,
                                      .type = rand() % 50 ? 1 : (uint16_t)rand(),
                                      .op = (uint16_t)(rand() % 9),
                                      .flags = (uint32_t)rand() % 4,
                                      .buf_alloc = (uint32_t)rand(),
                                      .fwd_cnt = rand() % 4 ? 0 : (uint32_t)rand()};
                size_t len = (size_t)(rand() % 20000);

                h.len = h.op == VSOCK_RW ? (uint32_t)len : 0;
                if (rand() % 30 == 0)
                    h.len = (uint32_t)rand();
                raw(g, h, len);
            }
        }
    }
    for (int i = 0; i < 8; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    vsock_reset(g->v);
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
        close(fd);
    fd = open_from_guest(g, listener, 3);
    close(fd);
    close(listener);
}

/* ---- time ---- */

static void test_line_timeout(void **state)
{
    struct guest *g = *state;
    int fd = dial(g, "CONNECT");

    assert_true(ended(g, fd));
    assert_int_equal(take(g), NONE);
    close(fd);
}

static void test_request_timeout(void **state)
{
    struct guest *g = *state;
    int fd = dial(g, "CONNECT 5\n");

    assert_int_equal(await(g), VSOCK_REQUEST);
    uint32_t port = g->h.src_port;
    assert_int_equal(await(g), VSOCK_RST); /* too late */
    assert_int_equal(g->h.src_port, port);
    assert_true(ended(g, fd));
    give(g, VSOCK_RESPONSE, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_RST);
    close(fd);
}

static void test_close_timeout(void **state)
{
    struct guest *g = *state;
    uint32_t port;
    int fd = open_from_host(g, 5, &port);

    close(fd);
    assert_int_equal(await(g), VSOCK_SHUTDOWN);
    assert_int_equal(await(g), VSOCK_RST);
    give(g, VSOCK_RW, 5, port, 0, NULL, 0);
    assert_int_equal(take(g), VSOCK_RST);
}

/* ---- the socket's file ---- */

static void test_path(void **state)
{
    struct guest *g = *state;
    struct vsock *v;
    struct err e = {""};
    struct stat st;
    struct vsock_cfg cfg = {CID, g->path, VSOCK_TIMEOUTS};
    char long_path[VSOCK_PATH_MAX + 2];

    assert_int_equal(stat(g->path, &st), 0);
    assert_int_equal(st.st_mode & 077, 0); /* nobody else's */
    assert_int_equal(vsock_new(&v, &cfg, &e), -EADDRINUSE);
    assert_non_null(strstr(e.msg, g->path));
    assert_int_equal(access(g->path, F_OK), 0); /* and is still there */

    /* One that a killed process left is replaced; any other file is not. */
    char path[100];
    snprintf(path, sizeof(path), "%s_1", g->path);
    close(serve(g));
    cfg.path = path;
    assert_int_equal(vsock_new(&v, &cfg, &e), 0);
    vsock_free(v);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(vsock_new(&v, &cfg, &e), -EADDRINUSE);
    assert_int_equal(access(path, F_OK), 0);

    memset(long_path, 'x', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = 0;
    cfg.path = long_path;
    assert_int_equal(vsock_new(&v, &cfg, &e), -EINVAL);
    cfg.path = "";
    assert_int_equal(vsock_new(&v, &cfg, &e), -EINVAL);
    cfg.path = path;
    for (int i = 0; i < 4; i++) {
        static const uint64_t cids[] = {0, 2, 0xffffffff, 1ull << 32};

        cfg.cid = cids[i];
        assert_int_equal(vsock_new(&v, &cfg, &e), -EINVAL);
    }
    vsock_free(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, set_up, tear_down)
#define TEST_TIME(name) cmocka_unit_test_setup_teardown(test_##name##_timeout, set_up_##name, tear_down)

int main(void)
{
    struct rlimit files;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    const struct CMUnitTest tests[] = {
        TEST(from_host),   TEST(line_and_data),   TEST(bad_lines),      TEST(refused_by_guest), TEST(hasty),
        TEST(from_guest),  TEST(half_close),      TEST(guest_closes),   TEST(host_closes),
        TEST(linger),      TEST(credit_of_guest), TEST(credit_of_host), TEST(large),
        TEST(bad_packets), TEST(floods),          TEST(random),         TEST(path),
        TEST_TIME(line),   TEST_TIME(request),    TEST_TIME(close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
