/* The virtio entropy device. */
#include "dev/virtio/rng.h"

#include <errno.h>
#include <sys/random.h>

#include "base/util.h"

#define NS_PER_S 1000000000ull
#define QUEUE_SIZE 8
#define CHUNK 256u /* what getrandom gives without being interrupted */
/* While there is nothing to give: how long until the next look. */
#define RETRY_NS 10000000u

struct virtio_rng_state {
    struct virtio_state virtio;
    uint64_t credit;   /* bytes that may be given now */
    uint64_t since;    /* guest ns up to which credit was counted */
    uint64_t retry_at; /* guest ns, or TIMER_OFF */
};

struct virtio_rng {
    struct virtio v;
    struct virtio_rng_state s;
    uint32_t rate;
    struct timer timer;
};

static const struct state_field virtio_rng_fields[] = {
    STATE_SUB(struct virtio_rng_state, virtio, &virtio_state_desc),
    STATE_FIELD(struct virtio_rng_state, credit),
    STATE_FIELD(struct virtio_rng_state, since),
    STATE_FIELD(struct virtio_rng_state, retry_at),
};

static const struct state_desc virtio_rng_state_desc = {
    .name = "virtio-rng",
    .version = 1,
    .size = sizeof(struct virtio_rng_state),
    .fields = virtio_rng_fields,
    .nfields = ARRAY_LEN(virtio_rng_fields),
};

static void earn(struct virtio_rng *r)
{
    uint64_t now = clock_now(r->v.dev.ctx->clock), ns = now - r->s.since;

    /* A loaded state may lie in the future. */
    if (now < r->s.since || ns >= NS_PER_S || r->s.credit > r->rate) {
        r->s.credit = r->rate;
        r->s.since = now;
        return;
    }

    uint64_t bytes = ns * r->rate / NS_PER_S;
    r->s.credit = MIN(r->s.credit + bytes, r->rate);
    r->s.since += bytes * NS_PER_S / r->rate;
}

static void set_retry(struct virtio_rng *r, uint64_t at)
{
    r->s.retry_at = at;
    if (at == TIMER_OFF)
        timer_cancel(r->v.dev.ctx->timers, &r->timer);
    else
        timer_arm(r->v.dev.ctx->timers, &r->timer, at);
}

/* Fills the chain as far as credit goes; returns how many bytes. */
static uint32_t fill(struct virtio_rng *r, const struct virtq_chain *c)
{
    uint64_t want = MIN(c->in_len, r->s.credit), done = 0;
    uint8_t buf[CHUNK];

    while (done < want) {
        ssize_t n = getrandom(buf, MIN(want - done, sizeof(buf)), GRND_NONBLOCK);

        if (n <= 0)
            break;
        done += virtq_write(c, done, buf, (size_t)n);
    }
    return (uint32_t)done;
}

/* Serves what is in the queue until it is empty or credit or the host's generator run dry. */
static void serve(struct virtio_rng *r)
{
    struct virtq *q = &r->v.vq[0];
    struct virtq_chain *c;

    earn(r);
    set_retry(r, TIMER_OFF);
    while (virtq_pop(q, &c) > 0) {
        uint32_t n = fill(r, c);

        if (!n && c->in_len) {
            virtq_unpop(q, c);
            set_retry(r, clock_now(r->v.dev.ctx->clock) + RETRY_NS);
            break;
        }
        r->s.credit -= n;
        virtq_push(q, c, n);
    }
    virtq_notify(q);
}

static void on_timer(void *arg)
{
    struct virtio_rng *r = arg;

    device_lock(&r->v.dev);
    if (virtio_running(&r->v) && r->s.retry_at <= clock_now(r->v.dev.ctx->clock))
        serve(r);
    device_unlock(&r->v.dev);
}

static void rng_start(struct virtio *v) { serve(container_of(v, struct virtio_rng, v)); }

static void rng_stop(struct virtio *v, enum virtio_stop why)
{
    timer_cancel(v->dev.ctx->timers, &container_of(v, struct virtio_rng, v)->timer);
}

static void rng_kick(struct virtio *v, unsigned n)
{
    struct virtio_rng *r = container_of(v, struct virtio_rng, v);

    if (r->s.retry_at == TIMER_OFF)
        serve(r);
}

static void rng_reset(struct virtio *v)
{
    /* Credit stays: it is not to be had by resets. */
    container_of(v, struct virtio_rng, v)->s.retry_at = TIMER_OFF;
}

static const struct virtio_ops rng_ops = {
    .id = VIRTIO_ID_RNG,
    .pci_class = 0x00ff, /* unclassified */
    .start = rng_start,
    .stop = rng_stop,
    .kick = rng_kick,
    .reset = rng_reset,
};

static int rng_init(struct device *d, const void *cfg, struct err *e)
{
    struct virtio_rng *r = container_of(d, struct virtio_rng, v.dev);
    const struct virtio_rng_cfg *c = cfg;
    const struct virtio_params p = {
        .ops = &rng_ops, .slot = c->slot, .queues = 1, .queue_size = QUEUE_SIZE};
    int rc;

    r->rate = c->rate;
    timer_init(&r->timer, on_timer, r);
    rc = timer_attach(d->ctx->timers, &r->timer, e);
    if (rc)
        return rc;
    rc = virtio_init(&r->v, &r->s.virtio, &p, e);
    if (rc)
        timer_detach(d->ctx->timers, &r->timer);
    return rc;
}

static void rng_fini(struct device *d)
{
    timer_detach(d->ctx->timers, &container_of(d, struct virtio_rng, v.dev)->timer);
    virtio_dev_fini(d);
}

const struct device_class virtio_rng_class = {
    .name = "virtio-rng",
    .size = sizeof(struct virtio_rng),
    .init = rng_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = rng_fini,
    .state = &virtio_rng_state_desc,
    .state_off = offsetof(struct virtio_rng, s),
};
