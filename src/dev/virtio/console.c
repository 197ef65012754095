/* The virtio console. */
#include "dev/virtio/console.h"

#include <string.h>

#include "base/util.h"

#define QUEUE_SIZE 128
enum { QUEUE_IN, QUEUE_OUT, QUEUES };

#define F_SIZE 0
#define F_EMERGENCY 2

struct config {
    uint16_t columns, rows;
    uint32_t max_ports;
    uint32_t emergency;
};

struct virtio_console_state {
    struct virtio_state virtio;
    uint64_t sent; /* of the chain at the head of the output queue, bytes that are out already */
};

struct virtio_console {
    struct virtio v;
    struct virtio_console_state s;
    struct config config;
    struct chardev *chr;
    bool refused; /* the backend was told no and waits for chardev_accept_input */
};

static const struct state_field virtio_console_fields[] = {
    STATE_SUB(struct virtio_console_state, virtio, &virtio_state_desc),
    STATE_FIELD(struct virtio_console_state, sent),
};

static const struct state_desc virtio_console_state_desc = {
    .name = "virtio-console",
    .version = 1,
    .size = sizeof(struct virtio_console_state),
    .fields = virtio_console_fields,
    .nfields = ARRAY_LEN(virtio_console_fields),
};

/* ---- output ---- */

static size_t put(struct virtio_console *c, const uint8_t *p, size_t n)
{
    return c->chr ? chardev_write(c->chr, p, n) : n;
}

/* Sends what of the chain is not out yet; true when all is. */
static bool send_chain(struct virtio_console *c, const struct virtq_chain *chain)
{
    uint64_t skip = c->s.sent;

    for (unsigned i = 0; i < chain->nout; i++) {
        const struct iovec *iov = &chain->out[i];
        size_t took;

        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }
        took = put(c, (const uint8_t *)iov->iov_base + skip, iov->iov_len - skip);
        c->s.sent += took;
        if (took < iov->iov_len - skip)
            return false;
        skip = 0;
    }
    return true;
}

/* A chain that the backend has no room for goes back into the queue; on_writable continues. */
static void send(struct virtio_console *c)
{
    struct virtq *q = &c->v.vq[QUEUE_OUT];
    struct virtq_chain *chain;

    while (virtq_pop(q, &chain) > 0) {
        if (!send_chain(c, chain)) {
            virtq_unpop(q, chain);
            break;
        }
        c->s.sent = 0;
        virtq_push(q, chain, 0);
    }
    virtq_notify(q);
}

static void on_writable(void *arg)
{
    struct virtio_console *c = arg;

    device_lock(&c->v.dev);
    if (virtio_running(&c->v))
        send(c);
    device_unlock(&c->v.dev);
}

/* ---- input ---- */

static size_t on_receive(void *arg, const uint8_t *p, size_t n)
{
    struct virtio_console *c = arg;
    struct virtq *q = &c->v.vq[QUEUE_IN];
    struct virtq_chain *chain;
    size_t took = 0;

    device_lock(&c->v.dev);
    if (virtio_running(&c->v)) {
        while (took < n && virtq_pop(q, &chain) > 0) {
            size_t part = virtq_write(chain, 0, p + took, n - took);

            virtq_push(q, chain, (uint32_t)part);
            took += part;
        }
        virtq_notify(q);
    }
    c->refused = took < n;
    device_unlock(&c->v.dev);
    return took;
}

/* There may be room for what the backend had to keep. */
static void accept_input(struct virtio_console *c)
{
    if (c->chr && c->refused && virtio_running(&c->v)) {
        c->refused = false;
        chardev_accept_input(c->chr);
    }
}

/* ---- size ---- */

static bool look_at_size(struct virtio_console *c)
{
    uint16_t columns, rows;

    if (!c->chr || !chardev_size(c->chr, &columns, &rows) ||
        (columns == c->config.columns && rows == c->config.rows))
        return false;
    c->config.columns = columns;
    c->config.rows = rows;
    return true;
}

static void on_resized(void *arg)
{
    struct virtio_console *c = arg;

    device_lock(&c->v.dev);
    if (look_at_size(c))
        virtio_config_changed(&c->v);
    device_unlock(&c->v.dev);
}

/* ---- virtio ---- */

static void console_start(struct virtio *v)
{
    struct virtio_console *c = container_of(v, struct virtio_console, v);

    /* Linux reads the size only when it hears that it has changed. */
    look_at_size(c);
    if (virtio_has(v, F_SIZE))
        virtio_config_changed(v);
    send(c);
    accept_input(c);
}

static void console_kick(struct virtio *v, unsigned n)
{
    struct virtio_console *c = container_of(v, struct virtio_console, v);

    if (n == QUEUE_OUT)
        send(c);
    else
        accept_input(c);
}

static void console_reset(struct virtio *v)
{
    container_of(v, struct virtio_console, v)->s.sent = 0;
}

static void console_config_write(struct virtio *v, uint32_t off, const uint8_t *buf, uint32_t len)
{
    /* A byte for the console while nothing else works (§5.3.4); lost if there is no room. */
    if (off == offsetof(struct config, emergency))
        put(container_of(v, struct virtio_console, v), buf, 1);
}

static const struct virtio_ops console_ops = {
    .id = VIRTIO_ID_CONSOLE,
    .pci_class = 0x0780, /* communication controller, other */
    .start = console_start,
    .kick = console_kick,
    .reset = console_reset,
    .config_write = console_config_write,
};

/* ---- device ---- */

static int console_init(struct device *d, const void *cfg, struct err *e)
{
    struct virtio_console *c = container_of(d, struct virtio_console, v.dev);
    const struct virtio_console_cfg *cc = cfg;
    uint16_t columns, rows;
    bool sized = cc->chr && chardev_size(cc->chr, &columns, &rows);
    const struct virtio_params p = {
        .ops = &console_ops,
        .slot = cc->slot,
        .features = BIT(F_EMERGENCY) | (sized ? BIT(F_SIZE) : 0),
        .queues = QUEUES,
        .queue_size = QUEUE_SIZE,
        .config = &c->config,
        .config_len = sizeof(c->config),
    };
    int rc = virtio_init(&c->v, &c->s.virtio, &p, e);

    if (rc)
        return rc;
    c->chr = cc->chr;
    look_at_size(c);
    c->refused = true; /* until the driver is there */
    if (c->chr)
        chardev_attach(c->chr, &(struct chardev_front){.receive = on_receive,
                                                       .writable = on_writable,
                                                       .resized = on_resized,
                                                       .arg = c});
    return 0;
}

static void console_fini(struct device *d)
{
    struct virtio_console *c = container_of(d, struct virtio_console, v.dev);

    if (c->chr)
        chardev_attach(c->chr, NULL);
    virtio_dev_fini(d);
}

const struct device_class virtio_console_class = {
    .name = "virtio-console",
    .size = sizeof(struct virtio_console),
    .init = console_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = console_fini,
    .state = &virtio_console_state_desc,
    .state_off = offsetof(struct virtio_console, s),
};
