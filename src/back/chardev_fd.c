/*
 * The chardev backend on file descriptors.
 *
 * The guest's output goes into a ring; an eventfd wakes the loop, which writes the ring out without
 * ever blocking. The descriptors we were given are often shared with other processes (the shell's
 * terminal), so O_NONBLOCK is set on an open file description of our own where one can be had.
 */
#include "back/chardev_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "back/escape.h"
#include "back/terminal.h"
#include "base/util.h"

#define OUT_SIZE 65536u
#define IN_SIZE \
    65536u /* read ahead even while the guest does not listen: escapes must get through */
#define READ_CHUNK 4096u
#define SAY_SIZE 300u

struct chardev_fd {
    struct chardev base;
    struct chardev_host host;

    int in, out;       /* -1: absent or gone */
    bool own_in;       /* close `in` */
    bool own_out;      /* close `out` */
    bool restore_out;  /* O_NONBLOCK had to be set on a shared description */
    bool socket_out;   /* send() with MSG_DONTWAIT */
    bool console, raw; /* escape keys; this backend holds the terminal */
    int wake;          /* eventfd */
    struct loop_fd *in_reg, *out_reg, *wake_reg;

    /* Any thread, under lock. Bytes in the ring are only removed by the loop's thread. */
    pthread_mutex_t lock;
    bool woken;   /* wake is readable already */
    bool stalled; /* a write was cut short; the front waits for writable */
    bool dead;    /* output is dropped */
    size_t out_head, out_len;
    uint8_t out_buf[OUT_SIZE];

    /* The loop's thread only. */
    struct escape escape;
    size_t in_pos, in_len; /* bytes [in_pos, in_pos + in_len) of in_buf wait for the front */
    uint8_t in_buf[IN_SIZE];
};

static void wake(struct chardev_fd *c)
{
    pthread_mutex_lock(&c->lock);
    bool first = !c->woken;
    c->woken = true;
    pthread_mutex_unlock(&c->lock);
    if (first)
        eventfd_write(c->wake, 1);
}

/* ---- output ---- */

/* Appends what fits; returns how much. Lock held. */
static size_t ring_put(struct chardev_fd *c, const uint8_t *p, size_t n)
{
    n = MIN(n, OUT_SIZE - c->out_len);

    size_t tail = (c->out_head + c->out_len) % OUT_SIZE;
    size_t first = MIN(n, OUT_SIZE - tail);

    memcpy(c->out_buf + tail, p, first);
    memcpy(c->out_buf, p + first, n - first);
    c->out_len += n;
    return n;
}

static size_t fd_write(struct chardev *base, const uint8_t *p, size_t n)
{
    struct chardev_fd *c = container_of(base, struct chardev_fd, base);

    pthread_mutex_lock(&c->lock);
    if (c->dead) {
        pthread_mutex_unlock(&c->lock);
        return n;
    }
    size_t took = ring_put(c, p, n);
    if (took < n)
        c->stalled = true;
    pthread_mutex_unlock(&c->lock);
    wake(c);
    return took;
}

/* Writes the ring until it is empty, the host side would block, or it turns out to be gone; but at
 * most one ring's worth, lest a guest that writes as fast keep the loop's thread here. */
static void ring_write_out(struct chardev_fd *c)
{
    size_t quota = OUT_SIZE;

    pthread_mutex_lock(&c->lock);
    while (c->out_len > 0 && quota > 0 && !c->dead) {
        const uint8_t *p = c->out_buf + c->out_head;
        size_t n = MIN(MIN(c->out_len, OUT_SIZE - c->out_head), quota);

        pthread_mutex_unlock(&c->lock);
        ssize_t r =
            c->socket_out ? send(c->out, p, n, MSG_DONTWAIT | MSG_NOSIGNAL) : write(c->out, p, n);
        int err = errno;
        pthread_mutex_lock(&c->lock);

        if (r >= 0) {
            c->out_head = (c->out_head + (size_t)r) % OUT_SIZE;
            c->out_len -= (size_t)r;
            quota -= (size_t)r;
        } else if (err == EAGAIN || err == EWOULDBLOCK) {
            break;
        } else if (err != EINTR) {
            c->dead = true;
            log_msg(c->host.log, LOG_WARN, "serial output: %s; further output is dropped",
                    strerror(err));
        }
    }
    if (c->dead)
        c->out_len = 0;
    pthread_mutex_unlock(&c->lock);
}

static void on_out(void *arg, uint32_t events);

/* Has the loop watch for room exactly while bytes are left over. */
static void out_watch(struct chardev_fd *c, bool on)
{
    if (on == (c->out_reg != NULL))
        return;
    if (!on) {
        loop_del(c->out_reg);
        c->out_reg = NULL;
        return;
    }

    struct err e = {0};
    if (loop_add(c->host.loop, c->out, EPOLLOUT, on_out, c, &c->out_reg, &e) < 0) {
        c->out_reg = NULL;
        log_msg(c->host.log, LOG_WARN, "serial output: %s; further output is dropped", e.msg);
        pthread_mutex_lock(&c->lock);
        c->dead = true;
        c->out_len = 0;
        pthread_mutex_unlock(&c->lock);
    }
}

static bool ring_empty(struct chardev_fd *c)
{
    pthread_mutex_lock(&c->lock);
    bool empty = c->out_len == 0;
    pthread_mutex_unlock(&c->lock);
    return empty;
}

/* Writes out and has a stalled front refill the ring, once: the loop has others to serve. Returns
 * true when nothing is left. */
static bool drain(struct chardev_fd *c)
{
    ring_write_out(c);

    pthread_mutex_lock(&c->lock);
    bool tell = c->stalled && c->out_len < OUT_SIZE;
    if (tell)
        c->stalled = false;
    pthread_mutex_unlock(&c->lock);

    if (tell && c->base.front.writable)
        c->base.front.writable(c->base.front.arg);
    return ring_empty(c);
}

static void on_out(void *arg, uint32_t events)
{
    struct chardev_fd *c = arg;

    out_watch(c, !drain(c));
}

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int fd_flush(struct chardev *base, unsigned timeout_ms)
{
    struct chardev_fd *c = container_of(base, struct chardev_fd, base);
    int64_t end = now_ms() + timeout_ms;

    while (!drain(c)) {
        int64_t left = end - now_ms();
        struct pollfd p = {.fd = c->out, .events = POLLOUT};

        if (left <= 0)
            return -ETIMEDOUT;
        poll(&p, 1, (int)MIN(left, 1000));
    }
    return 0;
}

/* ---- input ---- */

static void on_in(void *arg, uint32_t events);

static void in_end(struct chardev_fd *c)
{
    if (c->in_reg) {
        loop_del(c->in_reg);
        c->in_reg = NULL;
    }
    if (c->own_in)
        close(c->in);
    c->in = -1;
}

/* Room for a chunk and the prefix byte that an escape may have held back. */
static bool in_room(const struct chardev_fd *c) { return IN_SIZE - c->in_len > READ_CHUNK; }

/* Has the loop watch for input exactly while there is room for it. (Events of 0 would not do: a
 * hang-up is always reported and would spin the loop.) */
static void in_watch(struct chardev_fd *c)
{
    bool on = c->in >= 0 && in_room(c);

    if (on == (c->in_reg != NULL))
        return;
    if (!on) {
        loop_del(c->in_reg);
        c->in_reg = NULL;
        return;
    }

    struct err e = {0};
    if (loop_add(c->host.loop, c->in, EPOLLIN, on_in, c, &c->in_reg, &e) < 0) {
        c->in_reg = NULL;
        log_msg(c->host.log, LOG_WARN, "serial input: %s; no more input", e.msg);
        in_end(c);
    }
}

static void in_append(struct chardev_fd *c, const uint8_t *p, size_t n)
{
    if (c->in_pos + c->in_len + n > IN_SIZE) {
        memmove(c->in_buf, c->in_buf + c->in_pos, c->in_len);
        c->in_pos = 0;
    }
    memcpy(c->in_buf + c->in_pos + c->in_len, p, n);
    c->in_len += n;
}

/* Says something to the user. */
static void print(struct chardev_fd *c, const char *text)
{
    pthread_mutex_lock(&c->lock);
    if (!c->dead)
        ring_put(c, (const uint8_t *)text, strlen(text));
    pthread_mutex_unlock(&c->lock);
    out_watch(c, !drain(c));
}

static void next_engine(struct chardev_fd *c)
{
    char line[SAY_SIZE], text[SAY_SIZE + 16];

    if (!c->host.next_engine)
        return;
    c->host.next_engine(c->host.arg, line, sizeof(line));
    snprintf(text, sizeof(text), "\r\nring3: %s\r\n", line);
    print(c, text);
}

static void take(struct chardev_fd *c, const uint8_t *p, size_t n)
{
    if (!c->console) {
        in_append(c, p, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint8_t bytes[2];
        size_t count;

        switch (escape_byte(&c->escape, p[i], bytes, &count)) {
        case ESCAPE_LEAVE:
            if (c->host.leave)
                c->host.leave(c->host.arg);
            break;
        case ESCAPE_HELP:
            print(c, escape_help);
            break;
        case ESCAPE_ENGINE:
            next_engine(c);
            break;
        case ESCAPE_NONE:
            break;
        }
        in_append(c, bytes, count);
    }
}

/* Offers what waits to the front until it takes no more. */
static void feed(struct chardev_fd *c)
{
    while (c->in_len > 0 && c->base.front.receive) {
        size_t n = c->base.front.receive(c->base.front.arg, c->in_buf + c->in_pos, c->in_len);

        if (n == 0)
            break;
        c->in_pos += n;
        c->in_len -= n;
    }
    if (c->in_len == 0)
        c->in_pos = 0;
    in_watch(c);
}

static void on_in(void *arg, uint32_t events)
{
    struct chardev_fd *c = arg;
    uint8_t chunk[READ_CHUNK];
    ssize_t n = read(c->in, chunk, sizeof(chunk));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        take(c, chunk, (size_t)n);
    } else {
        /* End of file, or a terminal that hung up: the VM goes on without input. */
        uint8_t last;

        in_append(c, &last, escape_end(&c->escape, &last));
        in_end(c);
    }
    feed(c);
}

/* ---- both ---- */

static void on_wake(void *arg, uint32_t events)
{
    struct chardev_fd *c = arg;
    eventfd_t count;

    eventfd_read(c->wake, &count);
    pthread_mutex_lock(&c->lock);
    c->woken = false;
    pthread_mutex_unlock(&c->lock);
    feed(c);
    out_watch(c, !drain(c));
}

static void fd_accept_input(struct chardev *base)
{
    wake(container_of(base, struct chardev_fd, base));
}

static bool fd_size(struct chardev *base, uint16_t *columns, uint16_t *rows)
{
    struct chardev_fd *c = container_of(base, struct chardev_fd, base);
    struct winsize w;

    if (!c->raw || ioctl(c->out, TIOCGWINSZ, &w) < 0)
        return false;
    *columns = w.ws_col;
    *rows = w.ws_row;
    return true;
}

static void fd_free(struct chardev *base)
{
    struct chardev_fd *c = container_of(base, struct chardev_fd, base);

    out_watch(c, false);
    if (c->in >= 0)
        in_end(c);
    if (c->wake_reg)
        loop_del(c->wake_reg);
    if (c->wake >= 0)
        close(c->wake);
    if (c->raw) {
        terminal_restore();
        log_set_raw(c->host.log, false);
    }
    if (c->restore_out)
        fcntl(c->out, F_SETFL, fcntl(c->out, F_GETFL) & ~O_NONBLOCK);
    if (c->own_out)
        close(c->out);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static const struct chardev_ops fd_ops = {
    .write = fd_write,
    .accept_input = fd_accept_input,
    .flush = fd_flush,
    .size = fd_size,
    .free = fd_free,
};

/* A description of our own of a terminal or pipe, non-blocking; -1 if it cannot be had. */
static int reopen(int fd, int mode)
{
    char path[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static void setup_in(struct chardev_fd *c, int fd)
{
    struct stat st;

    c->in = -1;
    if (fd < 0 || fstat(fd, &st) < 0) /* a closed stdin is an ended one */
        return;
    c->in = fd;
    if (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)) {
        int own = reopen(fd, O_RDONLY);

        /* Without one we read only after the loop said so, which blocks only if someone else
         * reads the same input. */
        if (own >= 0) {
            c->in = own;
            c->own_in = true;
        }
    }
}

static void setup_out(struct chardev_fd *c, int fd, bool own)
{
    struct stat st;

    c->out = fd;
    c->own_out = own;
    if (fd < 0 || fstat(fd, &st) < 0) { /* a closed stdout swallows everything */
        c->dead = true;
        return;
    }
    if (own || S_ISREG(st.st_mode))
        return; /* opened non-blocking, or never blocks */

    c->socket_out = S_ISSOCK(st.st_mode);
    int mine = c->socket_out ? -1 : reopen(fd, O_WRONLY);
    bool reopened = mine >= 0;
    if (!reopened)
        mine = fcntl(fd, F_DUPFD_CLOEXEC, 3); /* the loop wants another one than `in` */
    if (mine >= 0) {
        c->out = mine;
        c->own_out = true;
    }
    if (reopened || c->socket_out)
        return;

    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0)
        c->restore_out = true;
}

int chardev_fd_new(struct chardev **out, const struct chardev_fd_cfg *cfg,
                   const struct chardev_host *host, struct err *e)
{
    struct chardev_fd *c = calloc(1, sizeof(*c));
    int rc;

    if (!c)
        return err_set(e, ENOMEM, "out of memory");
    c->base.ops = &fd_ops;
    c->host = *host;
    c->console = cfg->console;
    c->in = c->out = -1;
    pthread_mutex_init(&c->lock, NULL);

    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->wake < 0) {
        rc = err_sys(e, "cannot create an eventfd");
        goto fail;
    }
    rc = loop_add(host->loop, c->wake, EPOLLIN, on_wake, c, &c->wake_reg, e);
    if (rc)
        goto fail;
    setup_in(c, cfg->in);
    if (c->in >= 0) {
        rc = loop_add(host->loop, c->in, EPOLLIN, on_in, c, &c->in_reg, e);
        if (rc)
            goto fail;
    }
    if (cfg->console && cfg->in >= 0 && isatty(cfg->in)) {
        rc = terminal_raw(cfg->in, e);
        if (rc)
            goto fail;
        c->raw = true;
        log_set_raw(host->log, true);
    }
    setup_out(c, cfg->out, cfg->own_out);
    *out = &c->base;
    return 0;

fail:
    fd_free(&c->base);
    return rc;
}
