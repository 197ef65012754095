/* What every virtio device does: features, status, the life of queues. */
#include "dev/virtio/virtio.h"

#include <assert.h>
#include <errno.h>

#include "base/util.h"
#include "dev/virtio/virtio_pci.h"

#define STATUS_SETTABLE \
    (VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_DRIVER_OK | VIRTIO_FEATURES_OK | VIRTIO_FAILED)
#define FEATURES                                                                       \
    (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX) | \
     BIT(VIRTIO_F_RING_PACKED) | BIT(VIRTIO_F_RING_RESET))
#define ISR_ALL 3
#define BAD_QUEUE "a queue that makes no sense"

static const struct state_field virtio_fields[] = {
    STATE_FIELD(struct virtio_state, driver_features),
    STATE_FIELD(struct virtio_state, device_feature_select),
    STATE_FIELD(struct virtio_state, driver_feature_select),
    STATE_FIELD(struct virtio_state, queue_select),
    STATE_FIELD(struct virtio_state, config_vector),
    STATE_ARRAY(struct virtio_state, queue_vector),
    STATE_FIELD(struct virtio_state, status),
    STATE_FIELD_MAX(struct virtio_state, needs_reset, 1),
    STATE_FIELD(struct virtio_state, generation),
    STATE_FIELD_MAX(struct virtio_state, isr, ISR_ALL),
    STATE_SUBARRAY(struct virtio_state, queue, &virtq_state_desc),
    STATE_SUB(struct virtio_state, pci, &pci_func_state_desc),
    STATE_SUB(struct virtio_state, msix, &pci_msix_state_desc),
};

const struct state_desc virtio_state_desc = {
    .name = "virtio",
    .version = 1,
    .size = sizeof(struct virtio_state),
    .fields = virtio_fields,
    .nfields = ARRAY_LEN(virtio_fields),
};

/* ---- running ---- */

static bool start_queue(struct virtio *v, unsigned n)
{
    const struct virtq_state *s = &v->s->queue[n];

    return !s->enabled ||
           (s->size <= v->queue_size && virtq_start(&v->vq[n], v->s->driver_features) == 0);
}

static bool start_queues(struct virtio *v)
{
    for (unsigned i = 0; i < v->queues; i++) {
        if (!start_queue(v, i))
            return false;
    }
    return true;
}

static void stop_queues(struct virtio *v)
{
    for (unsigned i = 0; i < v->queues; i++)
        virtq_stop(&v->vq[i]);
}

static void start(struct virtio *v)
{
    if (!start_queues(v)) {
        stop_queues(v);
        virtio_fail(v, BAD_QUEUE);
        return;
    }
    v->running = true;
    v->ops->start(v);
}

static void stop(struct virtio *v, enum virtio_stop why)
{
    if (!v->running)
        return;
    if (v->ops->stop)
        v->ops->stop(v, why);
    stop_queues(v);
    v->running = false;
}

/* ---- one queue (§2.6.1) ---- */

enum pause { PAUSE_NONE, PAUSE_QUEUE, PAUSE_DEVICE };

/* Its requests are completed, if they have been started, for a disk's writes may not be left half
 * done while it goes on. */
static enum pause pause_queue(struct virtio *v, unsigned n)
{
    if (!v->running)
        return PAUSE_NONE;
    if (!v->ops->queue_stop || virtio_status(v) & VIRTIO_NEEDS_RESET) {
        stop(v, VIRTIO_STOP_QUIESCE);
        return PAUSE_DEVICE;
    }
    v->ops->queue_stop(v, n);
    virtq_stop(&v->vq[n]);
    return PAUSE_QUEUE;
}

static void resume_queue(struct virtio *v, unsigned n, enum pause what)
{
    bool good;

    if (what == PAUSE_QUEUE) {
        good = start_queue(v, n);
        v->ops->queue_start(v, n);
        if (!good) {
            stop(v, VIRTIO_STOP_QUIESCE);
            virtio_fail(v, BAD_QUEUE);
        }
    } else if (what == PAUSE_DEVICE && !v->s->needs_reset) {
        start(v);
    }
}

void virtio_reset_queue(struct virtio *v, unsigned n)
{
    enum pause what = pause_queue(v, n);

    virtq_reset(&v->vq[n], v->queue_size);
    virtio_pci_reset_queue(v, n);
    trace(v->dev.ctx->trace, virtio_queue_reset, "%s queue=%u", v->dev.id, n);
    resume_queue(v, n, what);
}

void virtio_enable_queue(struct virtio *v, unsigned n)
{
    enum pause what = pause_queue(v, n);

    v->s->queue[n].enabled = 1;
    resume_queue(v, n, what);
}

/* ---- status (§2.1, §3.1.1) ---- */

static void reset(struct virtio *v)
{
    stop(v, VIRTIO_STOP_RESET);
    v->s->driver_features = 0;
    v->s->device_feature_select = v->s->driver_feature_select = 0;
    v->s->queue_select = 0;
    v->s->status = v->s->needs_reset = 0;
    v->s->generation = 0;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        virtq_reset(&v->vq[i], i < v->queues ? v->queue_size : 0);
    virtio_pci_reset(v);
    if (v->ops->reset)
        v->ops->reset(v);
}

static bool features_good(const struct virtio *v)
{
    uint64_t f = v->s->driver_features;

    return !(f & ~v->offered) && f & BIT(VIRTIO_F_VERSION_1) &&
           (!v->ops->accept || v->ops->accept((struct virtio *)v, f));
}

uint8_t virtio_status(const struct virtio *v)
{
    return v->s->status |
           (__atomic_load_n(&v->s->needs_reset, __ATOMIC_ACQUIRE) ? VIRTIO_NEEDS_RESET : 0);
}

void virtio_set_status(struct virtio *v, uint8_t status)
{
    uint8_t old = v->s->status, set;

    if (!status) {
        reset(v);
    } else {
        /* Bits are only ever added; those that may not be are not shown as set. */
        set = status & STATUS_SETTABLE & ~old;
        if (set & VIRTIO_FEATURES_OK && !features_good(v))
            set &= (uint8_t)~VIRTIO_FEATURES_OK;
        if (!((old | set) & VIRTIO_FEATURES_OK))
            set &= (uint8_t)~VIRTIO_DRIVER_OK;
        __atomic_store_n(&v->s->status, old | set, __ATOMIC_RELAXED);
        if (set & VIRTIO_DRIVER_OK && !v->quiesced)
            start(v);
    }
    trace(v->dev.ctx->trace, virtio_status, "%s from=%#x to=%#x features=%#llx", v->dev.id, old,
          virtio_status(v), (unsigned long long)v->s->driver_features);
}

void virtio_set_features(struct virtio *v, unsigned word, uint32_t bits)
{
    uint64_t mask = (uint64_t)UINT32_MAX << 32 * word;

    if (!(v->s->status & VIRTIO_FEATURES_OK))
        v->s->driver_features = (v->s->driver_features & ~mask) | (uint64_t)bits << 32 * word;
}

void virtio_config_changed(struct virtio *v)
{
    v->s->generation++;
    if (v->s->status & VIRTIO_DRIVER_OK)
        virtio_pci_config_interrupt(v);
}

void virtio_fail(struct virtio *v, const char *why)
{
    if (__atomic_exchange_n(&v->s->needs_reset, 1, __ATOMIC_ACQ_REL))
        return;
    trace(v->dev.ctx->trace, virtio_fail, "%s: %s", v->dev.id, why);
    if (__atomic_load_n(&v->s->status, __ATOMIC_RELAXED) & VIRTIO_DRIVER_OK)
        virtio_pci_config_interrupt(v);
}

/* ---- device ---- */

static void on_interrupt(void *arg, unsigned n) { virtio_pci_queue_interrupt(arg, n); }

static void on_broken(void *arg, unsigned n, const char *why) { virtio_fail(arg, why); }

int virtio_init(struct virtio *v, struct virtio_state *s, const struct virtio_params *p,
                struct err *e)
{
    const struct virtq_hooks hooks = {on_interrupt, on_broken, v};

    assert(p->queues >= 1 && p->queues <= VIRTIO_QUEUES_MAX);
    assert(p->queue_size && p->queue_size <= VIRTQ_SIZE_MAX &&
           !(p->queue_size & (p->queue_size - 1)));
    v->ops = p->ops;
    v->s = s;
    v->offered = p->features | FEATURES;
    v->queues = p->queues;
    v->queue_size = p->queue_size;
    v->config = p->config;
    v->config_len = p->config_len;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        virtq_init(&v->vq[i], &s->queue[i], i, v->dev.ctx->map, &hooks);
    return virtio_pci_init(v, &p->slot, e);
}

void virtio_dev_reset(struct device *d, enum reset_kind kind)
{
    struct virtio *v = container_of(d, struct virtio, dev);

    reset(v);
    virtio_pci_reset_function(v);
}

void virtio_dev_quiesce(struct device *d)
{
    struct virtio *v = container_of(d, struct virtio, dev);

    stop(v, VIRTIO_STOP_QUIESCE);
    v->quiesced = true;
}

void virtio_dev_resume(struct device *d)
{
    struct virtio *v = container_of(d, struct virtio, dev);

    v->quiesced = false;
    v->s->driver_features &= v->s->status & VIRTIO_FEATURES_OK ? v->offered : ~0ull;
    virtio_pci_resume(v);
    if (v->s->status & VIRTIO_DRIVER_OK && !v->s->needs_reset && !v->running)
        start(v);
}

void virtio_dev_fini(struct device *d)
{
    struct virtio *v = container_of(d, struct virtio, dev);

    virtio_pci_fini(v);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        virtq_fini(&v->vq[i]);
}
