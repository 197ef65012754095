/* Virtio over PCI at register level (virtio 1.2 §2.1 to §2.5, §3.1, §4.1) and MSI-X (PCI 3.0
 * §6.8.2). */
#include <stdlib.h>
#include <string.h>

#include "virtio_probe.h"

#include "base/util.h"

static void one_request(struct vdrv *d)
{
    const struct vdrv_sg sg = {vdrv_alloc(d, 8, 8), 8};

    assert_true(vdrv_add(&d->q[0], &sg, 0, 1, d) >= 0);
    vdrv_kick(&d->q[0]);
    probe_use_all(d, 0);
    assert_ptr_equal(vdrv_used(&d->q[0], NULL), d);
}

static void test_identity(void **state)
{
    struct vdrv *d = *state;

    assert_int_equal(vdrv_pci_read(d, PCI_VENDOR_ID, 2), 0x1af4);
    assert_int_equal(vdrv_pci_read(d, PCI_DEVICE_ID, 2), 0x1040 + VIRTIO_ID_9P);
    assert_true(vdrv_pci_read(d, PCI_REVISION, 1) >= 1);
    assert_true(vdrv_pci_read(d, PCI_SUBSYS_ID, 2) >= 0x40);
    assert_int_equal(vdrv_pci_read(d, PCI_CLASS, 2), 0x0280);
    assert_int_equal(vdrv_pci_read(d, PCI_INT_PIN, 1), 1);
    assert_int_equal(vdrv_get(d, VC_NUM_QUEUES, 2), PROBE_QUEUES);
    assert_int_equal(d->vectors, PROBE_QUEUES + 1);

    /* A PCI Express endpoint of the root complex, with an extended space that is empty. */
    assert_int_equal(vdrv_pci_read(d, d->express_cap + 2, 2) >> 4 & 15, 9);
    assert_int_equal(vdrv_pci_read(d, 0x100, 4), 0);
    assert_int_equal(vdrv_pci_read(d, 0xffc, 4), 0);
}

static void test_features(void **state)
{
    struct vdrv *d = *state;
    uint64_t offered = vdrv_offered(d);

    assert_true(offered & BIT(VIRTIO_F_VERSION_1));
    assert_int_equal(offered & 0xffffff, PROBE_FEATURE | PROBE_REFUSED);
    vdrv_set(d, VC_DEVICE_FEATURE_SELECT, 4, 2);
    assert_int_equal(vdrv_get(d, VC_DEVICE_FEATURE, 4), 0);
    vdrv_set(d, VC_DEVICE_FEATURE_SELECT, 4, UINT32_MAX);
    assert_int_equal(vdrv_get(d, VC_DEVICE_FEATURE, 4), 0);

    static const struct {
        uint64_t features;
        bool good;
    } cases[] = {
        {PROBE_FEATURE, false}, /* without VERSION_1 */
        {BIT(VIRTIO_F_VERSION_1), true},
        {BIT(VIRTIO_F_VERSION_1) | BIT(7), false},  /* not offered */
        {BIT(VIRTIO_F_VERSION_1) | BIT(33), false}, /* ACCESS_PLATFORM: not offered */
        {BIT(VIRTIO_F_VERSION_1) | PROBE_REFUSED, false},
        {BIT(VIRTIO_F_VERSION_1) | PROBE_REFUSED | PROBE_FEATURE, true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        vdrv_reset(d);
        vdrv_set(d, VC_STATUS, 1, 3);
        for (unsigned w = 0; w < 2; w++) {
            vdrv_set(d, VC_DRIVER_FEATURE_SELECT, 4, w);
            vdrv_set(d, VC_DRIVER_FEATURE, 4, cases[i].features >> 32 * w);
            assert_int_equal(vdrv_get(d, VC_DRIVER_FEATURE, 4),
                             (uint32_t)(cases[i].features >> 32 * w));
        }
        vdrv_set(d, VC_STATUS, 1, 11);
        assert_int_equal(vdrv_status(d), cases[i].good ? 11 : 3);
        /* A device whose features are not settled does not start. */
        vdrv_set(d, VC_STATUS, 1, 15);
        assert_int_equal(vdrv_status(d), cases[i].good ? 15 : 3);
        assert_int_equal(virtio_running(d->v), cases[i].good);
    }
    /* Settled ones do not change any more. */
    vdrv_set(d, VC_DRIVER_FEATURE_SELECT, 4, 0);
    vdrv_set(d, VC_DRIVER_FEATURE, 4, 0);
    assert_int_equal(vdrv_get(d, VC_DRIVER_FEATURE, 4), PROBE_REFUSED | PROBE_FEATURE);
}

static void test_status(void **state)
{
    struct vdrv *d = *state;
    struct probe *p = probe_of(d);
    unsigned resets;

    vdrv_start(d, 0, 2, 16);
    assert_int_equal(p->starts, 1);
    vdrv_set(d, VC_STATUS, 1, 1); /* bits cannot be taken back one by one */
    assert_int_equal(vdrv_status(d), 15);
    vdrv_set(d, VC_STATUS, 1, 15 | VIRTIO_FAILED);
    assert_int_equal(vdrv_status(d), 15 | VIRTIO_FAILED);
    vdrv_set(d, VC_STATUS, 1, VIRTIO_NEEDS_RESET); /* is the device's */
    assert_int_equal(vdrv_status(d), 15 | VIRTIO_FAILED);
    assert_int_equal(p->starts, 1);

    resets = p->resets;
    vdrv_reset(d);
    assert_int_equal(p->stops[VIRTIO_STOP_RESET], 1);
    assert_int_equal(p->resets, resets + 1);
    assert_false(virtio_running(d->v));
    vdrv_reset(d); /* one that does not run is not stopped */
    assert_int_equal(p->stops[VIRTIO_STOP_RESET], 1);
    for (unsigned n = 0; n < PROBE_QUEUES; n++) {
        vdrv_set(d, VC_QUEUE_SELECT, 2, n);
        assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), PROBE_SIZE);
        assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 0);
        assert_int_equal(vdrv_get(d, VC_QUEUE_VECTOR, 2), VIRTIO_NO_VECTOR);
        assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DESC, 8), 0);
    }
    assert_int_equal(vdrv_get(d, VC_CONFIG_VECTOR, 2), VIRTIO_NO_VECTOR);
    vdrv_set(d, VC_DRIVER_FEATURE_SELECT, 4, 1);
    assert_int_equal(vdrv_get(d, VC_DRIVER_FEATURE, 4), 0);
}

static void test_queue_registers(void **state)
{
    struct vdrv *d = *state;

    vdrv_negotiate(d, 0);
    vdrv_set(d, VC_QUEUE_SELECT, 2, PROBE_QUEUES); /* there is no such queue */
    assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), 0);
    vdrv_set(d, VC_QUEUE_SIZE, 2, 16);
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 1);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 0);

    vdrv_set(d, VC_QUEUE_SELECT, 2, 1);
    vdrv_set(d, VC_QUEUE_SIZE, 2, PROBE_SIZE * 2);
    assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), PROBE_SIZE);
    vdrv_set(d, VC_QUEUE_SIZE, 4, 16); /* registers are written in their own width only */
    vdrv_set(d, VC_QUEUE_SIZE, 1, 16);
    assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), PROBE_SIZE);
    vdrv_set(d, VC_QUEUE_SIZE, 2, 32);
    vdrv_set(d, VC_QUEUE_DESC, 8, 0x123456789abcdef0);
    vdrv_set(d, VC_QUEUE_DRIVER, 8, 0x0fedcba987654320);
    vdrv_set(d, VC_QUEUE_DEVICE, 8, 0x1111111122222220);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DESC, 8), 0x123456789abcdef0);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DRIVER, 8), 0x0fedcba987654320);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DEVICE, 8), 0x1111111122222220);
    assert_int_equal(vdrv_read(d, d->common + VC_QUEUE_DEVICE + 5, 1), 0x11);
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 2);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 0);
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 1);
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 0); /* not the driver's to take back */
    vdrv_set(d, VC_QUEUE_DESC, 4, 0);
    vdrv_set(d, VC_QUEUE_SIZE, 2, 8);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 1);
    assert_int_equal(vdrv_get(d, VC_QUEUE_SIZE, 2), 32);
    assert_int_equal(vdrv_get(d, VC_QUEUE_DESC, 4), 0x9abcdef0);

    vdrv_set(d, VC_QUEUE_SELECT, 2, 0);
    vdrv_set(d, VC_QUEUE_VECTOR, 2, d->vectors);
    assert_int_equal(vdrv_get(d, VC_QUEUE_VECTOR, 2), VIRTIO_NO_VECTOR);
    vdrv_set(d, VC_QUEUE_VECTOR, 2, d->vectors - 1);
    assert_int_equal(vdrv_get(d, VC_QUEUE_VECTOR, 2), d->vectors - 1);
    assert_int_equal(vdrv_get(d, 56, 4), 0); /* beyond the structure */
}

/* A queue whose layout makes no sense is found out when the device starts. */
static void test_queues_that_make_no_sense(void **state)
{
    struct vdrv *d = *state;
    static const struct {
        uint64_t features;
        uint16_t size;
        uint64_t desc, driver, device;
    } cases[] = {
        {VDRV_SPLIT, 3, 0x10000, 0x20000, 0x30000}, /* no power of two */
        {VDRV_SPLIT, 16, 0x10008, 0x20000, 0x30000},
        {VDRV_SPLIT, 16, 0x10000, 0x20001, 0x30000},
        {VDRV_SPLIT, 16, 0x10000, 0x20000, 0x30002},
        {VDRV_PACKED, 16, 0x10004, 0x20000, 0x30000},
        {VDRV_PACKED, 16, 0x10000, 0x20002, 0x30000},
        {VDRV_SPLIT, 16, 0x10000, 0x20000, 1ull << 38}, /* not memory */
        {VDRV_PACKED, 16, 0x10000, 0x20000, 0xfffffffffffffffc},
        {VDRV_PACKED | VDRV_EVENT_IDX, 16, 0x10000, 0x20000, 1ull << 60},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        vdrv_negotiate(d, cases[i].features);
        vdrv_set(d, VC_QUEUE_SELECT, 2, 0);
        vdrv_set(d, VC_QUEUE_SIZE, 2, cases[i].size);
        vdrv_set(d, VC_QUEUE_DESC, 8, cases[i].desc);
        vdrv_set(d, VC_QUEUE_DRIVER, 8, cases[i].driver);
        vdrv_set(d, VC_QUEUE_DEVICE, 8, cases[i].device);
        vdrv_set(d, VC_QUEUE_ENABLE, 2, 1);
        vdrv_set(d, VC_CONFIG_VECTOR, 2, vdrv_config_vector(d));
        unsigned before = d->irqs[vdrv_config_vector(d)];
        vdrv_set(d, VC_STATUS, 1, 15);
        assert_int_equal(vdrv_status(d), 15 | VIRTIO_NEEDS_RESET);
        assert_int_equal(d->irqs[vdrv_config_vector(d)], before + 1);
        vdrv_write(d, d->notify, 2, 0);
        vdrv_reset(d);
        vdrv_start(d, cases[i].features, 2, 16);
        one_request(d);
    }
    /* A packed ring may have any size. */
    vdrv_start(d, VDRV_PACKED, 1, 3);
    for (int i = 0; i < 10; i++)
        one_request(d);
}

static void test_notify(void **state)
{
    struct vdrv *d = *state;
    struct probe *p = probe_of(d);

    vdrv_negotiate(d, 0);
    vdrv_queue(d, 0, 16);
    vdrv_kick(&d->q[0]); /* too early */
    assert_int_equal(p->kicks[0], 0);
    vdrv_driver_ok(d);
    vdrv_kick(&d->q[0]);
    assert_int_equal(p->kicks[0], 1);
    vdrv_write(d, d->notify + d->notify_multiplier, 2, 1); /* queue 1 is not enabled */
    vdrv_write(d, d->notify + 2, 2, 0);
    vdrv_write(d, d->notify + 2 * d->notify_multiplier, 2, 2);
    vdrv_write(d, d->notify + 0xffc, 4, 0);
    assert_int_equal(p->kicks[0], 1);
    assert_int_equal(p->kicks[1], 0);
    vdrv_read(d, d->notify, 4);
    device_quiesce(d->dev);
    vdrv_kick(&d->q[0]);
    assert_int_equal(p->kicks[0], 1);
    device_resume(d->dev);
    vdrv_kick(&d->q[0]);
    assert_int_equal(p->kicks[0], 2);
}

static void test_config(void **state)
{
    struct vdrv *d = *state;
    struct probe *p = probe_of(d);
    uint8_t gen;

    assert_int_equal(vdrv_read(d, d->config, 1), 0x11);
    assert_int_equal(vdrv_read(d, d->config + 2, 2), 0x4433);
    assert_int_equal(vdrv_read(d, d->config, 8), 0x8877665544332211);
    assert_int_equal(vdrv_read(d, d->config + 8, 4), 0);
    assert_int_equal(vdrv_read(d, d->config + 0x1ffc, 4), 0);
    vdrv_write(d, d->config + 4, 2, 0xabcd);
    assert_int_equal(vdrv_read(d, d->config + 4, 2), 0xabcd);
    vdrv_write(d, d->config, 4, 0);
    vdrv_write(d, d->config + 8, 4, 0);
    assert_int_equal(vdrv_read(d, d->config, 4), 0x44332211);

    vdrv_start(d, 0, 1, 16);
    gen = (uint8_t)vdrv_get(d, VC_GENERATION, 1);
    device_lock(d->dev);
    p->config[0] = 0x99;
    virtio_config_changed(&p->v);
    device_unlock(d->dev);
    assert_int_not_equal(vdrv_get(d, VC_GENERATION, 1), gen);
    assert_int_equal(d->irqs[vdrv_config_vector(d)], 1);
    vdrv_reset(d); /* without a driver nobody is told */
    device_lock(d->dev);
    virtio_config_changed(&p->v);
    device_unlock(d->dev);
    assert_int_equal(d->irqs[vdrv_config_vector(d)], 1);
}

static void test_msix(void **state)
{
    struct vdrv *d = *state;
    const uint64_t entry = d->msix, pba = d->msix + 0x800;

    vdrv_start(d, 0, 2, 16);
    one_request(d);
    assert_int_equal(d->irqs[0], 1);
    assert_int_equal(vdrv_read(d, d->isr, 1), 0);

    vdrv_write(d, entry + 12, 4, 0xffffffff); /* masked: waits, once */
    assert_int_equal(vdrv_read(d, entry + 12, 4), 1);
    one_request(d);
    one_request(d);
    assert_int_equal(d->irqs[0], 1);
    assert_int_equal(vdrv_read(d, pba, 8), 1);
    vdrv_write(d, pba, 8, 0); /* read-only */
    assert_int_equal(vdrv_read(d, pba, 4), 1);
    vdrv_write(d, entry + 12, 4, 0);
    assert_int_equal(d->irqs[0], 2);
    assert_int_equal(vdrv_read(d, pba, 8), 0);

    unsigned control = vdrv_pci_read(d, d->msix_cap + 2, 2);
    vdrv_pci_write(d, d->msix_cap + 2, 2, control | 0x4000); /* the function's mask */
    one_request(d);
    assert_int_equal(d->irqs[0], 2);
    assert_int_equal(vdrv_read(d, pba, 8), 1);
    vdrv_pci_write(d, d->msix_cap + 2, 2, control);
    assert_int_equal(d->irqs[0], 3);

    vdrv_pci_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY); /* a message is a bus master's */
    one_request(d);
    assert_int_equal(d->irqs[0], 3);
    vdrv_pci_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    assert_int_equal(d->irqs[0], 4);

    vdrv_set(d, VC_QUEUE_SELECT, 2, 0);
    vdrv_set(d, VC_QUEUE_VECTOR, 2, 2); /* another vector, while it runs */
    one_request(d);
    assert_int_equal(d->irqs[0], 4);
    assert_int_equal(d->irqs[2], 1);
    vdrv_set(d, VC_QUEUE_VECTOR, 2, VIRTIO_NO_VECTOR);
    one_request(d);
    assert_int_equal(d->irqs[2], 1);
    assert_int_equal(vdrv_read(d, pba, 8), 0);
    assert_int_equal(vdrv_read(d, entry + 16 * d->vectors, 8), 0); /* no more entries */
    assert_int_equal(vdrv_read(d, entry + 16, 8), 0xfee00000);
}

static void test_pin(void **state)
{
    struct vdrv *d = *state;

    vdrv_msix(d, false);
    vdrv_start(d, 0, 2, 16);
    assert_false(vdrv_line(d));
    one_request(d);
    assert_true(vdrv_line(d));
    assert_int_equal(vdrv_read(d, d->isr, 1), 1);
    assert_false(vdrv_line(d));
    assert_int_equal(vdrv_read(d, d->isr, 1), 0);
    device_lock(d->dev);
    virtio_config_changed(d->v);
    device_unlock(d->dev);
    one_request(d);
    assert_true(vdrv_line(d));
    vdrv_pci_write(d, PCI_COMMAND, 2, 0x406); /* INTx disable */
    assert_false(vdrv_line(d));
    vdrv_pci_write(d, PCI_COMMAND, 2, 0x006);
    assert_true(vdrv_line(d));
    vdrv_msix(d, true); /* and while MSI-X is on, the pin is silent */
    assert_false(vdrv_line(d));
    vdrv_msix(d, false);
    assert_true(vdrv_line(d));
    assert_int_equal(vdrv_read(d, d->isr, 1), 3);
    assert_false(vdrv_line(d));
    one_request(d);
    vdrv_reset(d);
    assert_false(vdrv_line(d));
}

/* PCI Power Management 1.2 §3.2.4, §5.4. */
static void test_power(void **state)
{
    struct vdrv *d = *state;
    unsigned control = d->power_cap + 4;
    struct virtq_chain *c;

    vdrv_start(d, 0, 1, 16);
    one_request(d);
    assert_int_equal(d->irqs[0], 1);
    vdrv_pci_write(d, control, 2, 3);
    assert_int_equal(vdrv_pci_read(d, control, 2), 8 | 3);
    assert_int_equal(vdrv_status(d), 0xff); /* nobody answers */
    vdrv_pci_write(d, control, 2, 1);       /* a state that there is not */
    assert_int_equal(vdrv_pci_read(d, control, 2), 8 | 3);
    const struct vdrv_sg sg = {vdrv_alloc(d, 8, 8), 8};
    vdrv_add(&d->q[0], &sg, 0, 1, d);
    assert_int_equal(virtq_pop(&d->v->vq[0], &c), 1);
    virtq_push(&d->v->vq[0], c, 0);
    virtq_notify(&d->v->vq[0]);
    assert_int_equal(d->irqs[0], 1);
    vdrv_pci_write(d, control, 2, 0);
    assert_int_equal(vdrv_pci_read(d, control, 2), 8);
    assert_int_equal(d->irqs[0], 2);
    assert_int_equal(vdrv_status(d), 15); /* all as it was */
    assert_ptr_equal(vdrv_used(&d->q[0], NULL), d);
    one_request(d);
    vdrv_pci_write(d, control, 2, 2);
    assert_int_equal(vdrv_pci_read(d, control, 2), 8);

    vdrv_msix(d, false); /* and the pin */
    one_request(d);
    assert_true(vdrv_line(d));
    vdrv_pci_write(d, control, 2, 3);
    assert_false(vdrv_line(d));
    vdrv_pci_write(d, control, 2, 0);
    assert_true(vdrv_line(d));
}

static void window(struct vdrv *d, unsigned bar, unsigned off, unsigned len)
{
    vdrv_pci_write(d, d->cfg_cap + 4, 1, bar);
    vdrv_pci_write(d, d->cfg_cap + 8, 4, off);
    vdrv_pci_write(d, d->cfg_cap + 12, 4, len);
}

/* All can be done through configuration space too (§4.1.4.9). */
static void test_window(void **state)
{
    struct vdrv *d = *state;
    const unsigned data = d->cfg_cap + 16;

    window(d, 0, VC_NUM_QUEUES, 2);
    assert_int_equal(vdrv_pci_read(d, data, 2), PROBE_QUEUES);
    window(d, 0, VC_DEVICE_FEATURE_SELECT, 4);
    vdrv_pci_write(d, data, 4, 1);
    window(d, 0, VC_DEVICE_FEATURE, 4);
    assert_true(vdrv_pci_read(d, data, 4) & 1);
    window(d, 0, 0x2000, 4);
    assert_int_equal(vdrv_pci_read(d, data, 4), 0x44332211);
    vdrv_start(d, 0, 1, 16);
    window(d, 2, 0, 2);
    vdrv_pci_write(d, data, 2, 0);
    assert_int_equal(probe_of(d)->kicks[0], 1);
    window(d, 4, 0, 4);
    assert_int_equal(vdrv_pci_read(d, data, 4), 0xfee00000);
    /* What is no place: nothing happens. */
    window(d, 7, 0, 4);
    vdrv_pci_write(d, data, 4, 1);
    window(d, 1, 0, 4);
    vdrv_pci_read(d, data, 4);
    window(d, 0, 0xfffffffc, 4);
    vdrv_pci_read(d, data, 4);
    window(d, 0, 2, 4);
    vdrv_pci_write(d, data, 4, 1);
    window(d, 0, 0, 3);
    vdrv_pci_write(d, data, 4, 1);
    window(d, 4, 0, 1);
    vdrv_pci_read(d, data, 1);
    assert_int_equal(vdrv_status(d), 15);
}

/* Pause and go on, and what is kept over saving and loading. */
static void test_state(void **state)
{
    struct vdrv *d = *state;
    struct probe *p = probe_of(d);
    struct sbuf b;
    size_t used;

    vdrv_start(d, VDRV_PACKED | VDRV_EVENT_IDX, 2, 16);
    for (int i = 0; i < 5; i++)
        one_request(d);
    vdrv_write(d, d->msix + 12, 4, 1);
    one_request(d);
    sbuf_init(&b);
    device_quiesce(d->dev);
    assert_int_equal(p->stops[VIRTIO_STOP_QUIESCE], 1);
    assert_int_equal(device_save(d->dev, &b), 0);
    device_reset(d->dev, RESET_COLD);
    assert_int_equal(vdrv_pci_read(d, PCI_COMMAND, 2), 0);
    assert_int_equal(device_load(d->dev, b.data, b.len, &used, NULL), 0);
    device_resume(d->dev);
    sbuf_free(&b);
    assert_int_equal(p->starts, 2);
    assert_int_equal(vdrv_status(d), 15);
    assert_int_equal(vdrv_read(d, d->msix + 0x800, 4), 1);
    for (int i = 0; i < 30; i++)
        one_request(d);
    assert_int_equal(d->irqs[0], 5);
    vdrv_write(d, d->msix + 12, 4, 0);
    assert_int_equal(d->irqs[0], 6);

    /* A hostile state says that it runs, with features that were never offered. */
    device_quiesce(d->dev);
    p->s.virtio.driver_features = ~0ull;
    p->s.virtio.queue[0].size = 65535;
    device_resume(d->dev);
    assert_true(vdrv_status(d) & VIRTIO_NEEDS_RESET);
    assert_int_equal(p->s.virtio.driver_features & ~vdrv_offered(d), 0);
    vdrv_start(d, 0, 1, 16);
    one_request(d);
}

static void test_state_table(void **state)
{
    struct vdrv *d = *state;
    struct pci_bus *bus;

    assert_int_equal(pci_bus_new(&bus, &(struct pci_bus_cfg){.ctx = &d->f.ctx}, NULL), 0);
    fake_check_state(&d->f, &probe_class, &(struct probe_cfg){{bus, 8}});
    pci_bus_free(bus);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, probe_setup, probe_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_identity),
        TEST(test_features),
        TEST(test_status),
        TEST(test_queue_registers),
        TEST(test_queues_that_make_no_sense),
        TEST(test_notify),
        TEST(test_config),
        TEST(test_msix),
        TEST(test_pin),
        TEST(test_power),
        TEST(test_window),
        TEST(test_state),
        TEST(test_state_table),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
