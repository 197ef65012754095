#include "virtio_probe.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"

static struct probe *probe(struct virtio *v) { return container_of(v, struct probe, v); }

static void probe_start(struct virtio *v) { probe(v)->starts++; }

static void probe_stop(struct virtio *v, enum virtio_stop why)
{
    struct probe *p = probe(v);

    p->stops[why]++;
    for (unsigned i = 0; i < p->nheld; i++) {
        if (why == VIRTIO_STOP_RESET)
            virtq_drop(&v->vq[0], p->held[i]);
        else
            virtq_push(&v->vq[0], p->held[i], 0);
    }
    p->nheld = 0;
}

static void probe_kick(struct virtio *v, unsigned n) { probe(v)->kicks[n]++; }

static void probe_reset(struct virtio *v)
{
    probe(v)->resets++;
    probe(v)->s.written = 0;
}

static bool probe_accept(struct virtio *v, uint64_t features)
{
    return !(features & PROBE_REFUSED) || features & PROBE_FEATURE;
}

static void probe_config_write(struct virtio *v, uint32_t off, const uint8_t *buf, uint32_t len)
{
    struct probe *p = probe(v);

    if (off < 4)
        return;
    memcpy((uint8_t *)&p->s.written + off - 4, buf, len);
    memcpy(p->config + 4, &p->s.written, 4);
}

static const struct virtio_ops probe_ops = {
    .id = VIRTIO_ID_9P,
    .pci_class = 0x0280,
    .start = probe_start,
    .stop = probe_stop,
    .kick = probe_kick,
    .reset = probe_reset,
    .accept = probe_accept,
    .config_write = probe_config_write,
};

static int probe_init(struct device *d, const void *cfg, struct err *e)
{
    struct probe *p = container_of(d, struct probe, v.dev);
    const struct virtio_params params = {
        .ops = &probe_ops,
        .slot = ((const struct probe_cfg *)cfg)->slot,
        .features = PROBE_FEATURE | PROBE_REFUSED,
        .queues = PROBE_QUEUES,
        .queue_size = PROBE_SIZE,
        .config = p->config,
        .config_len = sizeof(p->config),
    };

    memcpy(p->config, "\x11\x22\x33\x44\x55\x66\x77\x88", 8);
    return virtio_init(&p->v, &p->s.virtio, &params, e);
}

static const struct state_field probe_fields[] = {
    STATE_SUB(struct probe_state, virtio, &virtio_state_desc),
    STATE_FIELD(struct probe_state, written),
    STATE_PAD(struct probe_state, pad),
};

static const struct state_desc probe_state_desc = {
    .name = "probe",
    .version = 1,
    .size = sizeof(struct probe_state),
    .fields = probe_fields,
    .nfields = ARRAY_LEN(probe_fields),
};

const struct device_class probe_class = {
    .name = "probe",
    .size = sizeof(struct probe),
    .init = probe_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = virtio_dev_fini,
    .state = &probe_state_desc,
    .state_off = offsetof(struct probe, s),
};

/* ---- for tests ---- */

int probe_setup(void **state)
{
    struct vdrv *d = malloc(sizeof(*d));

    assert_non_null(d);
    vdrv_init(d);
    vdrv_attach(d, &probe_class, &(struct probe_cfg){vdrv_slot(d)});
    *state = d;
    return 0;
}

int probe_teardown(void **state)
{
    vdrv_fini(*state);
    free(*state);
    return 0;
}

void probe_use_all(struct vdrv *d, unsigned n)
{
    struct virtq_chain *c;

    while (virtq_pop(&d->v->vq[n], &c) > 0)
        virtq_push(&d->v->vq[n], c, 0);
    virtq_notify(&d->v->vq[n]);
}
