/* Resets of one queue (virtio 1.2 §2.6.1, §4.1.4.3) and of the PCI function (PCI Express Base 2.0
 * §6.6.2), with requests in flight: the transport with a device that does nothing by itself, then
 * every device. */
#include <stdlib.h>
#include <string.h>

#include "virtio_probe.h"
#include "virtio_rows.h"

#include "base/util.h"

#define RESETS BIT(VIRTIO_F_RING_RESET)
#define STATUS_RUNNING 15u

#define EXPRESS_DEVICE_CAPS 4
#define EXPRESS_DEVICE_CONTROL 8

static void add_one(struct vdrv *d, unsigned n)
{
    const struct vdrv_sg sg = {vdrv_alloc(d, 8, 8), 8};

    assert_true(vdrv_add(&d->q[n], &sg, 0, 1, d) >= 0);
    vdrv_kick(&d->q[n]);
}

static void one_request(struct vdrv *d, unsigned n)
{
    unsigned before = d->irqs[n];

    add_one(d, n);
    probe_use_all(d, n);
    assert_ptr_equal(vdrv_used(&d->q[n], NULL), d);
    if (!d->q[n].event_idx) /* else as the driver asks */
        assert_int_equal(d->irqs[n], before + 1);
}

static void hold_one(struct vdrv *d)
{
    struct probe *p = probe_of(d);

    add_one(d, 0);
    assert_int_equal(virtq_pop(&d->v->vq[0], &p->held[p->nheld++]), 1);
}

static void reset_queue(struct vdrv *d, unsigned n)
{
    vdrv_set(d, VC_QUEUE_SELECT, 2, n);
    vdrv_set(d, VC_QUEUE_RESET, 2, 1);
    assert_int_equal(vdrv_get(d, VC_QUEUE_RESET, 2), 0);
}

/* Queue n is as after a reset of the device. */
static void assert_fresh(struct vdrv *d, unsigned n)
{
    vdrv_set(d, VC_QUEUE_SELECT, 2, n);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 0);
    assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), d->v->queue_size);
    assert_int_equal(vdrv_get(d, VC_QUEUE_VECTOR, 2), VIRTIO_NO_VECTOR);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DESC, 8), 0);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DRIVER, 8), 0);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DEVICE, 8), 0);
}

static void test_queue_reset(void **state)
{
    static const uint64_t layouts[] = {VDRV_SPLIT, VDRV_PACKED, VDRV_PACKED | VDRV_EVENT_IDX,
                                       VDRV_EVENT_IDX | VDRV_INDIRECT};
    struct vdrv *d = *state;
    struct probe *p = probe_of(d);

    for (size_t i = 0; i < ARRAY_LEN(layouts); i++) {
        unsigned resets, kicks;

        vdrv_start(d, layouts[i] | RESETS, 2, 16);
        for (int n = 0; n < 5; n++) {
            one_request(d, 0);
            one_request(d, 1);
        }
        add_one(d, 1); /* waits in the other queue */
        hold_one(d);
        hold_one(d);
        add_one(d, 0); /* not taken yet: never will be */
        resets = p->resets;
        reset_queue(d, 0);
        assert_int_equal(p->nheld, 0);
        assert_int_equal(p->resets, resets); /* the device is not */
        assert_int_equal(vdrv_status(d), STATUS_RUNNING);
        assert_true(virtio_running(d->v));
        assert_fresh(d, 0);
        kicks = p->kicks[0];
        vdrv_kick(&d->q[0]);
        assert_int_equal(p->kicks[0], kicks);
        probe_use_all(d, 0);

        /* The other goes on where it was. */
        probe_use_all(d, 1);
        assert_ptr_equal(vdrv_used(&d->q[1], NULL), d);
        one_request(d, 1);

        /* Another place and size; in its first round again. */
        vdrv_queue(d, 0, 8);
        for (int n = 0; n < 20; n++)
            one_request(d, 0);
        one_request(d, 1);
        reset_queue(d, 0);
        reset_queue(d, 0); /* twice is no harm */
        assert_fresh(d, 0);
        reset_queue(d, 1);
        vdrv_queue(d, 1, 4);
        one_request(d, 1);
        vdrv_queue(d, 0, 16);
        one_request(d, 0);
        assert_int_equal(p->stops[VIRTIO_STOP_RESET], i);
        vdrv_reset(d);
    }
}

/* What the register does not do. */
static void test_queue_reset_refused(void **state)
{
    struct vdrv *d = *state;

    vdrv_start(d, 0, 2, 16); /* not negotiated */
    vdrv_set(d, VC_QUEUE_SELECT, 2, 0);
    vdrv_set(d, VC_QUEUE_RESET, 2, 1);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 1);
    one_request(d, 0);

    vdrv_start(d, RESETS, 1, 16);
    vdrv_set(d, VC_QUEUE_SELECT, 2, 0);
    vdrv_set(d, VC_QUEUE_RESET, 2, 0);
    vdrv_set(d, VC_QUEUE_RESET, 2, 2);
    vdrv_set(d, VC_QUEUE_RESET, 1, 1);
    vdrv_set(d, VC_QUEUE_RESET - 2, 4, 0x00010001);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 1);
    vdrv_set(d, VC_QUEUE_SELECT, 2, PROBE_QUEUES); /* there is no such queue */
    vdrv_set(d, VC_QUEUE_RESET, 2, 1);
    one_request(d, 0);

    /* The registers of an enabled queue are settled, and enabling one that makes no sense is found
     * out. */
    vdrv_set(d, VC_QUEUE_SELECT, 2, 0);
    vdrv_set(d, VC_QUEUE_SIZE, 2, 8);
    assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), 16);
    reset_queue(d, 0);
    vdrv_set(d, VC_QUEUE_DESC, 8, 8);
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 1);
    assert_int_equal(vdrv_status(d), STATUS_RUNNING | VIRTIO_NEEDS_RESET);
    reset_queue(d, 0); /* does not mend it */
    assert_fresh(d, 0);
    assert_false(virtio_running(d->v));
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 1);
    assert_false(virtio_running(d->v));
    vdrv_start(d, RESETS, 2, 16);
    one_request(d, 0);

    /* Before DRIVER_OK, and in a device whose driver broke a ring. */
    vdrv_negotiate(d, RESETS);
    vdrv_queue(d, 0, 16);
    reset_queue(d, 0);
    assert_fresh(d, 0);
    vdrv_queue(d, 0, 8);
    vdrv_queue(d, 1, 8);
    vdrv_driver_ok(d);
    one_request(d, 0);
    hold_one(d);
    virtio_fail(d->v, "test");
    reset_queue(d, 1);
    assert_int_equal(probe_of(d)->nheld, 0);
    assert_false(virtio_running(d->v));
    vdrv_start(d, RESETS, 1, 16);
    one_request(d, 0);
}

/* ---- the function ---- */

/* Writes the bit; everything but the largest payload is as after power-on. */
static void flr(struct vdrv *d, unsigned size)
{
    unsigned control = d->express_cap + EXPRESS_DEVICE_CONTROL;
    uint8_t after[PCI_CFG_SIZE];

    assert_true(vdrv_pci_read(d, control - 4, 4) & BIT(28));
    vdrv_pci_write(d, control, 2, 0x2850); /* payloads of 512 bytes */
    vdrv_pci_write(d, PCI_INT_LINE, 1, 11);
    if (size == 1)
        vdrv_pci_write(d, control + 1, 1, 0xa8);
    else
        vdrv_pci_write(d, control, size, 0xa850);
    for (unsigned i = 0; i < PCI_CFG_SIZE; i++)
        after[i] = (uint8_t)vdrv_pci_read(d, i, 1);
    assert_int_equal(after[control], 0x50);
    assert_int_equal(after[control + 1], 0x28);
    after[control] = d->v->pci.init[control];
    assert_memory_equal(after, d->v->pci.init, PCI_CFG_SIZE);
}

static void test_flr(void **state)
{
    struct vdrv *d = *state;
    struct probe *p = probe_of(d);

    for (unsigned size = 1; size <= 4; size *= 2) {
        unsigned resets, stops;

        vdrv_start(d, 0, 2, 16);
        one_request(d, 0);
        hold_one(d);
        vdrv_write(d, d->msix + 12, 4, 1);
        add_one(d, 0);
        probe_use_all(d, 0);
        assert_int_equal(vdrv_read(d, d->msix + 0x800, 4), 1); /* pending */
        resets = p->resets;
        stops = p->stops[VIRTIO_STOP_RESET];
        flr(d, size);
        assert_int_equal(p->resets, resets + 1);
        assert_int_equal(p->stops[VIRTIO_STOP_RESET], stops + 1);
        assert_int_equal(p->nheld, 0);
        vdrv_read(d, d->common, 4); /* nobody there */
        for (unsigned i = 0; i < d->vectors; i++)
            assert_int_equal(d->v->s->msix.table[4 * i + 3], 1); /* masked */
        vdrv_enable(d);
        assert_int_equal(vdrv_status(d), 0);
        assert_int_equal(vdrv_read(d, d->msix + 0x800, 4), 0); /* nothing pending */
        assert_fresh(d, 0);
        assert_fresh(d, 1);
        vdrv_start(d, 0, 2, 16);
        one_request(d, 0);
    }

    /* The pin falls. */
    vdrv_start(d, 0, 1, 16);
    vdrv_msix(d, false);
    add_one(d, 0);
    probe_use_all(d, 0);
    assert_true(vdrv_line(d));
    flr(d, 2);
    assert_false(vdrv_line(d));
    vdrv_enable(d);

    /* Asleep. */
    vdrv_pci_write(d, d->power_cap + 4, 2, 3);
    flr(d, 2);
    vdrv_enable(d);
    vdrv_start(d, 0, 1, 16);
    one_request(d, 0);
}

/* ---- every device ---- */

/* Chains that no device takes for anything but bytes. */
static void some_chains(struct vworld *w, unsigned n)
{
    for (int i = 0; i < 3; i++) {
        uint64_t at = vdrv_alloc(&w->d, 64, 8);
        const struct vdrv_sg sg[2] = {{at, 32}, {at + 32, 32}};

        memset(vdrv_ptr(&w->d, at), 0x55, 64);
        assert_true(vdrv_add(&w->d.q[n], sg, 1, 1, w) >= 0);
    }
    vdrv_kick(&w->d.q[n]);
}

/* The bytes of a ring that the device may write. */
static unsigned ring_bytes(const struct vdrv_queue *q)
{
    return q->packed ? 16 * q->size : 6 + 8 * q->size;
}

static uint8_t *ring(struct vworld *w, const struct vdrv_queue *q)
{
    return vdrv_ptr(&w->d, q->packed ? q->desc : q->device);
}

static void one_device(struct vworld *w, uint64_t layout)
{
    uint8_t before[16 * VDRV_SIZE];

    vdrv_negotiate(&w->d, layout | RESETS);
    for (unsigned n = 0; n < w->queues; n++)
        vdrv_queue(&w->d, n, MIN(8u, w->d.v->queue_size));
    vdrv_driver_ok(&w->d);
    for (unsigned n = 0; n < w->queues; n++)
        some_chains(w, n);
    for (unsigned n = 0; n < w->queues; n++) {
        struct vdrv_queue old = w->d.q[n];

        if (w->row->host)
            w->row->host(w);
        reset_queue(&w->d, n);
        assert_fresh(&w->d, n);
        memcpy(before, ring(w, &old), ring_bytes(&old));
        vdrv_kick(&old);
        for (int i = 0; i < 10 && w->row->host; i++)
            w->row->host(w);
        fake_step(&w->d.f, 100000000);
        vdrv_queue(&w->d, n, MIN(16u, w->d.v->queue_size));
        some_chains(w, n);
        for (unsigned i = 0; i < 3 && w->row->answers & BIT(n); i++)
            assert_ptr_equal(vdrv_wait(&w->d.q[n], NULL), w);
        assert_memory_equal(before, ring(w, &old), ring_bytes(&old));
    }
    assert_int_equal(vdrv_status(&w->d), STATUS_RUNNING);
    for (unsigned n = 0; n < w->queues; n++)
        some_chains(w, n);
    flr(&w->d, 2);
    vdrv_enable(&w->d);
    assert_int_equal(vdrv_status(&w->d), 0);
}

static void test_every_device(void **state)
{
    static const uint64_t layouts[] = {VDRV_SPLIT, VDRV_PACKED | VDRV_EVENT_IDX};
    struct vworld *w = malloc(sizeof(*w));

    assert_non_null(w);
    for (unsigned i = 0; i < vrows_n; i++) {
        vworld_init(w, &vrows[i], i);
        for (size_t l = 0; l < 2 * ARRAY_LEN(layouts); l++)
            one_device(w, layouts[l % 2]);
        vworld_fini(w);
    }
    free(w);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, probe_setup, probe_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_queue_reset),
        TEST(test_queue_reset_refused),
        TEST(test_flr),
        cmocka_unit_test(test_every_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
