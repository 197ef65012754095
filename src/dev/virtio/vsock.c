/* The virtio socket device. */
#include "dev/virtio/vsock.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>

#include "base/util.h"

enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, QUEUES };

#define QUEUE_SIZE 256
#define IOVS 64  /* of a packet's payload; what is in more pieces is cut short there */
#define BATCH 64 /* packets in one direction before the other has its turn */
#define F_STREAM BIT(0)
#define EVENT_TRANSPORT_RESET 0

struct virtio_vsock_state {
    struct virtio_state virtio;
    uint64_t epoch; /* of the connections, a random number: another one than ours means loaded */
    uint8_t reset_event; /* the driver has yet to hear that its connections are gone */
    uint8_t pad[7];
};

struct virtio_vsock {
    struct virtio v;
    struct virtio_vsock_state s;
    struct {
        uint64_t cid;
    } config;
    struct vsock *vsock; /* the thread's while it runs, else the lock holder's */
    uint64_t epoch;
    pthread_t thread;
    bool threaded; /* there is one */
    atomic_bool end;
};

static const struct state_field virtio_vsock_fields[] = {
    STATE_SUB(struct virtio_vsock_state, virtio, &virtio_state_desc),
    STATE_FIELD(struct virtio_vsock_state, epoch),
    STATE_FIELD_MAX(struct virtio_vsock_state, reset_event, 1),
    STATE_PAD(struct virtio_vsock_state, pad),
};

static const struct state_desc virtio_vsock_state_desc = {
    .name = "virtio-vsock",
    .version = 1,
    .size = sizeof(struct virtio_vsock_state),
    .fields = virtio_vsock_fields,
    .nfields = ARRAY_LEN(virtio_vsock_fields),
};

static struct virtio_vsock *vsock_of(struct virtio *v)
{
    return container_of(v, struct virtio_vsock, v);
}

/* ---- packets ---- */

/* What of iov comes behind a header; how many iovecs. *len becomes their bytes. */
static unsigned payload(const struct iovec *iov, unsigned n, struct iovec out[IOVS], size_t *len)
{
    size_t skip = sizeof(struct vsock_hdr);
    unsigned used = 0;

    *len = 0;
    for (unsigned i = 0; i < n && used < IOVS; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        out[used] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, iov[i].iov_len - skip};
        *len += out[used++].iov_len;
        skip = 0;
    }
    return used;
}

/* From the guest; false when there is none, or none may be taken now. */
static bool serve_tx(struct virtio_vsock *s)
{
    struct virtq *q = &s->v.vq[QUEUE_TX];
    struct iovec data[IOVS];
    struct virtq_chain *c;
    struct vsock_hdr h;
    unsigned done = 0;

    while (done < BATCH && !vsock_full(s->vsock) && virtq_pop(q, &c) > 0) {
        if (virtq_read(c, 0, &h, sizeof(h)) == sizeof(h)) {
            size_t len;
            unsigned n = payload(c->out, c->nout, data, &len);

            vsock_send(s->vsock, &h, data, n, len);
        }
        virtq_push(q, c, 0);
        done++;
    }
    virtq_notify(q);
    return done > 0;
}

/* To the guest. */
static bool serve_rx(struct virtio_vsock *s)
{
    struct virtq *q = &s->v.vq[QUEUE_RX];
    struct iovec data[IOVS];
    struct virtq_chain *c;
    struct vsock_hdr h;
    unsigned done = 0;

    while (done < BATCH && vsock_pending(s->vsock) && virtq_pop(q, &c) > 0) {
        size_t len;
        unsigned n = payload(c->in, c->nin, data, &len);

        done++;
        if (!len) { /* no buffer for packets: the next one then */
            virtq_push(q, c, 0);
            continue;
        }
        if (!vsock_recv(s->vsock, &h, data, n)) {
            virtq_unpop(q, c);
            break;
        }
        virtq_write(c, 0, &h, sizeof(h));
        virtq_push(q, c, (uint32_t)sizeof(h) + h.len);
    }
    virtq_notify(q);
    return done > 0;
}

static void serve_event(struct virtio_vsock *s)
{
    const uint32_t id = EVENT_TRANSPORT_RESET;
    struct virtq *q = &s->v.vq[QUEUE_EVENT];
    struct virtq_chain *c;

    if (!s->s.reset_event || virtq_pop(q, &c) <= 0)
        return;
    virtq_push(q, c, (uint32_t)virtq_write(c, 0, &id, sizeof(id)));
    virtq_notify(q);
    s->s.reset_event = 0;
}

static void no_kicks(struct virtio_vsock *s)
{
    for (unsigned i = 0; i < QUEUES; i++)
        virtq_kicks(&s->v.vq[i], false);
}

/* Kicks of what is waited for. True when there is something already. */
static bool ask_for_kicks(struct virtio_vsock *s)
{
    bool more = virtq_kicks(&s->v.vq[QUEUE_TX], !vsock_full(s->vsock));

    more |= virtq_kicks(&s->v.vq[QUEUE_RX], vsock_pending(s->vsock));
    more |= virtq_kicks(&s->v.vq[QUEUE_EVENT], s->s.reset_event);
    return more;
}

static void *vsock_thread(void *arg)
{
    struct virtio_vsock *s = arg;

    while (!atomic_load(&s->end)) {
        bool busy = serve_tx(s);

        busy |= serve_rx(s);
        serve_event(s);
        if (busy)
            continue;
        if (!ask_for_kicks(s))
            vsock_wait(s->vsock);
        no_kicks(s);
    }
    return NULL;
}

/* Signals are the main thread's. */
static int start_thread(struct virtio_vsock *s)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&s->thread, NULL, vsock_thread, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

/* ---- life ---- */

/* Other connections than before: other number. */
static void new_epoch(struct virtio_vsock *s)
{
    if (getrandom(&s->epoch, sizeof(s->epoch), GRND_NONBLOCK) != sizeof(s->epoch))
        s->epoch++;
    s->s.epoch = s->epoch;
}

static void vsock_start(struct virtio *v)
{
    struct virtio_vsock *s = vsock_of(v);

    if (s->s.epoch != s->epoch) {
        vsock_reset(s->vsock);
        new_epoch(s);
        s->s.reset_event = 1;
    }
    atomic_store(&s->end, false);
    s->threaded = start_thread(s) == 0;
    if (!s->threaded)
        virtio_fail(v, "no thread to be had");
}

static void vsock_stop(struct virtio *v, enum virtio_stop why)
{
    struct virtio_vsock *s = vsock_of(v);

    if (!s->threaded)
        return;
    atomic_store(&s->end, true);
    vsock_wake(s->vsock);
    pthread_join(s->thread, NULL);
    s->threaded = false;
    /* So that a state saved in this pause is another one than this machine's in the next. */
    if (why == VIRTIO_STOP_QUIESCE)
        new_epoch(s);
}

static void vsock_kick(struct virtio *v, unsigned n) { vsock_wake(vsock_of(v)->vsock); }

static void vsock_dev_reset(struct virtio *v)
{
    struct virtio_vsock *s = vsock_of(v);

    vsock_reset(s->vsock);
    s->epoch = s->s.epoch = 0;
    s->s.reset_event = 0;
}

static const struct virtio_ops vsock_ops = {
    .id = VIRTIO_ID_VSOCK,
    .pci_class = 0x0280, /* network, other */
    .start = vsock_start,
    .stop = vsock_stop,
    .kick = vsock_kick,
    .unlocked_kick = true,
    .reset = vsock_dev_reset,
};

static int vsock_init(struct device *d, const void *cfg, struct err *e)
{
    struct virtio_vsock *s = container_of(d, struct virtio_vsock, v.dev);
    const struct virtio_vsock_cfg *c = cfg;
    const struct virtio_params p = {.ops = &vsock_ops,
                                    .slot = c->slot,
                                    .features = F_STREAM,
                                    .queues = QUEUES,
                                    .queue_size = QUEUE_SIZE,
                                    .config = &s->config,
                                    .config_len = sizeof(s->config)};
    int rc = vsock_new(&s->vsock, &c->vsock, e);

    if (rc)
        return rc;
    s->config.cid = c->vsock.cid;
    rc = virtio_init(&s->v, &s->s.virtio, &p, e);
    if (rc)
        vsock_free(s->vsock);
    return rc;
}

static void vsock_fini(struct device *d)
{
    vsock_free(container_of(d, struct virtio_vsock, v.dev)->vsock);
    virtio_dev_fini(d);
}

const struct device_class virtio_vsock_class = {
    .name = "virtio-vsock",
    .size = sizeof(struct virtio_vsock),
    .init = vsock_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = vsock_fini,
    .state = &virtio_vsock_state_desc,
    .state_off = offsetof(struct virtio_vsock, s),
};
