/* Names of backends, the calls that go through them, and the backend "none". */
#include "back/chardev.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "back/chardev_fd.h"
#include "base/util.h"

void chardev_attach(struct chardev *c, const struct chardev_front *front)
{
    c->front = front ? *front : (struct chardev_front){0};
    if (front)
        c->ops->accept_input(c);
}

size_t chardev_write(struct chardev *c, const uint8_t *p, size_t n)
{
    return c->ops->write(c, p, n);
}

void chardev_accept_input(struct chardev *c) { c->ops->accept_input(c); }

int chardev_flush(struct chardev *c, unsigned timeout_ms) { return c->ops->flush(c, timeout_ms); }

bool chardev_size(struct chardev *c, uint16_t *columns, uint16_t *rows)
{
    return c->ops->size && c->ops->size(c, columns, rows);
}

void chardev_resized(struct chardev *c)
{
    if (c->front.resized)
        c->front.resized(c->front.arg);
}

void chardev_free(struct chardev *c)
{
    if (c)
        c->ops->free(c);
}

static size_t none_write(struct chardev *c, const uint8_t *p, size_t n) { return n; }

static void none_accept_input(struct chardev *c) {}

static int none_flush(struct chardev *c, unsigned timeout_ms) { return 0; }

static void none_free(struct chardev *c) { free(c); }

static const struct chardev_ops none_ops = {
    .write = none_write,
    .accept_input = none_accept_input,
    .flush = none_flush,
    .free = none_free,
};

static int open_none(struct chardev **out, struct err *e)
{
    struct chardev *c = calloc(1, sizeof(*c));

    if (!c)
        return err_set(e, ENOMEM, "out of memory");
    c->ops = &none_ops;
    *out = c;
    return 0;
}

static int open_file(struct chardev **out, const char *path, const struct chardev_host *host,
                     struct err *e)
{
    /* O_NONBLOCK: a FIFO without a reader is an error, not a wait. */
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);

    if (fd < 0)
        return err_sys(e, "cannot open serial output %s", path);

    int rc = chardev_fd_new(out, &(struct chardev_fd_cfg){.in = -1, .out = fd, .own_out = true},
                            host, e);
    if (rc)
        close(fd);
    return rc;
}

/* A reader of our output that goes away, or a file that reaches its limit, must end the output, not
 * the VM. */
static void ignore_signals(void)
{
    static const int signals[] = {SIGPIPE, SIGXFSZ};
    struct sigaction sa;

    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        if (sigaction(signals[i], NULL, &sa) == 0 && !(sa.sa_flags & SA_SIGINFO) &&
            sa.sa_handler == SIG_DFL) {
            sa.sa_handler = SIG_IGN;
            sigaction(signals[i], &sa, NULL);
        }
    }
}

int chardev_open_fds(struct chardev **out, int in, int out_fd, const struct chardev_host *host,
                     struct err *e)
{
    ignore_signals();
    return chardev_fd_new(out, &(struct chardev_fd_cfg){.in = in, .out = out_fd, .console = true},
                          host, e);
}

int chardev_open(struct chardev **out, const char *name, const struct chardev_host *host,
                 struct err *e)
{
    if (strcmp(name, "none") == 0)
        return open_none(out, e);
    if (strcmp(name, "stdio") == 0)
        return chardev_open_fds(out, STDIN_FILENO, STDOUT_FILENO, host, e);
    if (strncmp(name, "file:", 5) == 0 && name[5] != '\0') {
        ignore_signals();
        return open_file(out, name + 5, host, e);
    }
    return err_set(e, EINVAL, "unknown serial port backend '%s' (want stdio, file:PATH or none)",
                   name);
}
