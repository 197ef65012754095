/* Virtio over PCI: capabilities, registers, interrupts. */
#include "dev/virtio/virtio_pci.h"

#include <string.h>

#include "base/util.h"

#define VENDOR 0x1af4
#define DEVICE_BASE 0x1040 /* modern: plus the type */
#define REVISION 1

#define BAR_REGISTERS 0
#define BAR_NOTIFY 2
#define BAR_MSIX 4

/* Within BAR_REGISTERS. */
#define REGISTERS_SIZE 0x4000u
#define COMMON 0x0000u
#define ISR 0x1000u
#define CONFIG 0x2000u
#define CONFIG_MAX 0x1000u
#define NOTIFY_SIZE 0x1000u
#define NOTIFY_MULTIPLIER 4u

#define ISR_QUEUE 1
#define ISR_CONFIG 2

/* §4.1.4.3. */
struct common {
    uint32_t device_feature_select, device_feature;
    uint32_t driver_feature_select, driver_feature;
    uint16_t config_vector, num_queues;
    uint8_t status, generation;
    uint16_t queue_select, queue_size, queue_vector, queue_enable, queue_notify_off;
    uint64_t queue_desc, queue_driver, queue_device;
    uint16_t queue_notify_data; /* of a feature that is not offered: 0 */
    uint16_t queue_reset;       /* reads as 0, for a reset is over when the write is */
    uint16_t pad[2];
};
#define COMMON_SIZE offsetof(struct common, pad)

/* §4.1.4: a capability that says where a structure is. */
#define CAP_VENDOR 0x09
enum { CAP_LEN = 2, CAP_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_MORE = 16 };
enum { TYPE_COMMON = 1, TYPE_NOTIFY, TYPE_ISR, TYPE_DEVICE, TYPE_PCI };

/* ---- interrupts ---- */

/* Called without MSI-X: sets ISR bits and raises the pin. */
static void raise_pin(struct virtio *v, uint8_t isr)
{
    pthread_mutex_lock(&v->isr_lock);
    v->s->isr |= isr;
    pci_func_intx(&v->pci, true);
    pthread_mutex_unlock(&v->isr_lock);
}

static uint8_t read_isr(struct virtio *v)
{
    uint8_t isr;

    pthread_mutex_lock(&v->isr_lock);
    isr = v->s->isr;
    v->s->isr = 0;
    pci_func_intx(&v->pci, false);
    pthread_mutex_unlock(&v->isr_lock);
    return isr;
}

static void interrupt(struct virtio *v, const uint16_t *vector, uint8_t isr)
{
    /* A vector of VIRTIO_NO_VECTOR is one that there is not. */
    if (pci_msix_enabled(&v->msix))
        pci_msix_raise(&v->msix, __atomic_load_n(vector, __ATOMIC_RELAXED));
    else
        raise_pin(v, isr);
}

void virtio_pci_queue_interrupt(struct virtio *v, unsigned n)
{
    interrupt(v, &v->s->queue_vector[n], ISR_QUEUE);
}

void virtio_pci_config_interrupt(struct virtio *v)
{
    interrupt(v, &v->s->config_vector, ISR_CONFIG);
}

/* ---- common configuration ---- */

static uint32_t feature_word(uint64_t features, uint32_t word)
{
    return word < 2 ? (uint32_t)(features >> 32 * word) : 0;
}

static void common_show(const struct virtio *v, struct common *c)
{
    const struct virtio_state *s = v->s;

    *c = (struct common){
        .device_feature_select = s->device_feature_select,
        .device_feature = feature_word(v->offered, s->device_feature_select),
        .driver_feature_select = s->driver_feature_select,
        .driver_feature = feature_word(s->driver_features, s->driver_feature_select),
        .config_vector = s->config_vector,
        .num_queues = (uint16_t)v->queues,
        .status = virtio_status(v),
        .generation = s->generation,
        .queue_select = s->queue_select,
    };
    if (s->queue_select >= v->queues)
        return; /* a size of 0: there is no such queue */

    const struct virtq_state *q = &s->queue[s->queue_select];
    c->queue_size = q->size;
    c->queue_vector = s->queue_vector[s->queue_select];
    c->queue_enable = q->enabled;
    c->queue_notify_off = s->queue_select;
    c->queue_desc = q->desc;
    c->queue_driver = q->driver;
    c->queue_device = q->device;
}

/* A vector that the table has not is refused by showing none. */
static void set_vector(const struct virtio *v, uint16_t *vector, uint32_t val)
{
    __atomic_store_n(vector, (uint16_t)(val < v->msix.n ? val : VIRTIO_NO_VECTOR),
                     __ATOMIC_RELAXED);
}

static void set_half(uint64_t *reg, bool high, uint32_t val)
{
    unsigned shift = high ? 32 : 0;

    *reg = (*reg & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)val << shift;
}

static void queue_enable(struct virtio *v, unsigned n)
{
    if (v->s->queue[n].size)
        virtio_enable_queue(v, n);
}

/* Registers of queue n that are settled once it is enabled, or (if queues cannot be reset alone)
 * the device runs. */
static void queue_write(struct virtio *v, unsigned n, unsigned off, uint32_t val)
{
    struct virtq_state *q = &v->s->queue[n];
    bool resets = v->s->status & VIRTIO_FEATURES_OK && virtio_has(v, VIRTIO_F_RING_RESET);

    if (off == offsetof(struct common, queue_reset) && val == 1 && resets)
        virtio_reset_queue(v, n);
    if (q->enabled || (v->s->status & VIRTIO_DRIVER_OK && !resets))
        return;
    switch (off) {
    case offsetof(struct common, queue_size):
        if (val <= v->queue_size)
            q->size = (uint16_t)val;
        break;
    case offsetof(struct common, queue_enable):
        if (val == 1)
            queue_enable(v, n);
        break;
    case offsetof(struct common, queue_desc):
    case offsetof(struct common, queue_desc) + 4:
        set_half(&q->desc, off & 4, val);
        break;
    case offsetof(struct common, queue_driver):
    case offsetof(struct common, queue_driver) + 4:
        set_half(&q->driver, off & 4, val);
        break;
    case offsetof(struct common, queue_device):
    case offsetof(struct common, queue_device) + 4:
        set_half(&q->device, off & 4, val);
        break;
    }
}

static void common_write(struct virtio *v, unsigned off, uint32_t val)
{
    struct virtio_state *s = v->s;

    switch (off) {
    case offsetof(struct common, device_feature_select):
        s->device_feature_select = val;
        break;
    case offsetof(struct common, driver_feature_select):
        s->driver_feature_select = val;
        break;
    case offsetof(struct common, driver_feature):
        if (s->driver_feature_select < 2)
            virtio_set_features(v, s->driver_feature_select, val);
        break;
    case offsetof(struct common, config_vector):
        set_vector(v, &s->config_vector, val);
        break;
    case offsetof(struct common, status):
        virtio_set_status(v, (uint8_t)val);
        break;
    case offsetof(struct common, queue_select):
        s->queue_select = (uint16_t)val;
        break;
    case offsetof(struct common, queue_vector):
        if (s->queue_select < v->queues)
            set_vector(v, &s->queue_vector[s->queue_select], val);
        break;
    default:
        if (s->queue_select < v->queues)
            queue_write(v, s->queue_select, off, val);
        break;
    }
}

/* Width that the driver must use (§4.1.3.1); halves of the 64-bit registers count as registers. */
static unsigned common_width(unsigned off)
{
    if (off >= COMMON_SIZE)
        return 0;
    if (off < offsetof(struct common, config_vector) ||
        (off >= offsetof(struct common, queue_desc) &&
         off < offsetof(struct common, queue_notify_data)))
        return 4;
    return off == offsetof(struct common, status) || off == offsetof(struct common, generation) ? 1
                                                                                                : 2;
}

/* ---- the BARs ---- */

static uint64_t config_read(struct virtio *v, unsigned off, unsigned size)
{
    uint64_t val = 0;

    if (off < v->config_len)
        memcpy(&val, v->config + off, MIN(size, v->config_len - off));
    trace(v->dev.ctx->trace, virtio_config, "%s read off=%#x size=%u val=%#llx", v->dev.id, off,
          size, (unsigned long long)val);
    return val;
}

static void config_write(struct virtio *v, unsigned off, unsigned size, uint32_t val)
{
    trace(v->dev.ctx->trace, virtio_config, "%s write off=%#x size=%u val=%#x", v->dev.id, off,
          size, val);
    if (v->ops->config_write && off + size <= v->config_len)
        v->ops->config_write(v, off, (const uint8_t *)&val, size);
}

static uint64_t registers_read(struct device *d, uint64_t off, unsigned size)
{
    struct virtio *v = container_of(d, struct virtio, dev);
    union {
        struct common c;
        uint8_t bytes[sizeof(struct common) + 4];
    } u = {0};
    uint32_t val = 0;

    if (off >= CONFIG)
        return config_read(v, (unsigned)off - CONFIG, size);
    if (off >= ISR)
        return off == ISR ? read_isr(v) : 0;
    if (off >= sizeof(struct common))
        return 0;
    common_show(v, &u.c);
    memcpy(&val, u.bytes + off, size);
    trace(d->ctx->trace, virtio_reg, "%s read off=%#x size=%u val=%#x", d->id, (unsigned)off, size,
          val);
    return val;
}

static void registers_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct virtio *v = container_of(d, struct virtio, dev);

    if (off >= CONFIG) {
        config_write(v, (unsigned)off - CONFIG, size, (uint32_t)val);
    } else if (off < ISR) {
        trace(d->ctx->trace, virtio_reg, "%s write off=%#x size=%u val=%#x", d->id, (unsigned)off,
              size, (unsigned)val);
        if (size == common_width((unsigned)off))
            common_write(v, (unsigned)off, (uint32_t)val);
    }
}

static const struct io_ops registers_ops = {
    .read = registers_read, .write = registers_write, .min_size = 1, .max_size = 4};

/* The queue that a notification address belongs to, or none. */
static bool notified(struct virtio *v, uint64_t off, unsigned *n)
{
    *n = (unsigned)(off / NOTIFY_MULTIPLIER);
    if (off % NOTIFY_MULTIPLIER || *n >= v->queues)
        return false;
    trace(v->dev.ctx->trace, virtio_kick, "%s queue=%u", v->dev.id, *n);
    return true;
}

/* Device's lock held, unless the device's kick does without. */
static void kick(struct virtio *v, unsigned n)
{
    if (v->running && v->vq[n].running)
        v->ops->kick(v, n);
}

static uint64_t notify_read(struct device *d, uint64_t off, unsigned size) { return 0; }

/* A vCPU must not wait here for another's access to the registers, if the device allows it. */
static void notify_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct virtio *v = container_of(d, struct virtio, dev);
    unsigned n;

    if (!notified(v, off, &n))
        return;
    if (!v->ops->unlocked_kick)
        device_lock(d);
    kick(v, n);
    if (!v->ops->unlocked_kick)
        device_unlock(d);
}

static const struct io_ops notify_ops = {
    .read = notify_read, .write = notify_write, .min_size = 1, .max_size = 4, .unlocked = true};

static uint64_t msix_read(struct device *d, uint64_t off, unsigned size)
{
    return pci_msix_read(&container_of(d, struct virtio, dev)->msix, off, size);
}

static void msix_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    pci_msix_write(&container_of(d, struct virtio, dev)->msix, off, size, val);
}

static const struct io_ops msix_ops = {
    .read = msix_read, .write = msix_write, .min_size = 4, .max_size = 8};

/* ---- configuration space ---- */

/* The window onto the BARs for those who cannot map them (§4.1.4.9). */
struct window {
    uint8_t bar;
    uint32_t off, len;
};

static bool window_open(const struct virtio *v, struct window *w)
{
    const uint8_t *cap = v->pci.s->cfg + v->pci_cfg_cap;
    uint64_t size;

    w->bar = cap[CAP_BAR];
    memcpy(&w->off, cap + CAP_OFFSET, 4);
    memcpy(&w->len, cap + CAP_LENGTH, 4);
    if (w->bar >= PCI_BARS || (w->len != 1 && w->len != 2 && w->len != 4) || w->off % w->len)
        return false;
    size = v->pci.bar[w->bar].size;
    return size && w->off < size && w->len <= size - w->off &&
           (w->bar != BAR_MSIX || w->len >= msix_ops.min_size);
}

static bool touches_data(const struct virtio *v, unsigned off, unsigned size)
{
    unsigned data = v->pci_cfg_cap + CAP_MORE;

    return off < data + 4 && off + size > data;
}

static void pci_reading(struct pci_func *f, unsigned off, unsigned size)
{
    struct virtio *v = container_of(f, struct virtio, pci);
    struct window w;
    uint32_t val;

    if (!touches_data(v, off, size) || !window_open(v, &w))
        return;
    val = (uint32_t)f->bar[w.bar].ops->read(&v->dev, w.off, w.len);
    memcpy(f->s->cfg + v->pci_cfg_cap + CAP_MORE, &val, w.len);
}

static void pci_written(struct pci_func *f, unsigned off, unsigned size)
{
    struct virtio *v = container_of(f, struct virtio, pci);
    struct window w;
    uint32_t val;
    unsigned n;

    pci_msix_written(&v->msix);
    /* The pin is silent while MSI-X is enabled. */
    pthread_mutex_lock(&v->isr_lock);
    pci_func_intx(f, v->s->isr && !pci_msix_enabled(&v->msix));
    pthread_mutex_unlock(&v->isr_lock);
    if (!touches_data(v, off, size) || !window_open(v, &w))
        return;
    memcpy(&val, f->s->cfg + v->pci_cfg_cap + CAP_MORE, 4);
    if (w.bar != BAR_NOTIFY)
        f->bar[w.bar].ops->write(&v->dev, w.off, w.len, val);
    else if (notified(v, w.off, &n))
        kick(v, n);
}

static void pci_flr(struct pci_func *f)
{
    struct virtio *v = container_of(f, struct virtio, pci);

    v->dev.cls->reset(&v->dev, RESET_COLD);
}

static uint8_t add_cap(struct virtio *v, uint8_t type, uint8_t bar, uint32_t off, uint32_t len,
                       uint8_t size)
{
    uint8_t cap = pci_func_cap(&v->pci, CAP_VENDOR, size);

    pci_func_reg(&v->pci, cap + CAP_LEN, 1, size, 0);
    pci_func_reg(&v->pci, cap + CAP_TYPE, 1, type, 0);
    pci_func_reg(&v->pci, cap + CAP_BAR, 1, bar, 0);
    pci_func_reg(&v->pci, cap + CAP_OFFSET, 4, off, 0);
    pci_func_reg(&v->pci, cap + CAP_LENGTH, 4, len, 0);
    return cap;
}

static void add_caps(struct virtio *v)
{
    struct pci_func *f = &v->pci;
    uint8_t cap;

    pci_func_power(f);
    pci_func_express(f);
    pci_msix_init(&v->msix, f, &v->s->msix, v->queues + 1, BAR_MSIX);
    add_cap(v, TYPE_COMMON, BAR_REGISTERS, COMMON, COMMON_SIZE, CAP_MORE);
    add_cap(v, TYPE_ISR, BAR_REGISTERS, ISR, 1, CAP_MORE);
    if (v->config_len)
        add_cap(v, TYPE_DEVICE, BAR_REGISTERS, CONFIG, v->config_len, CAP_MORE);
    cap = add_cap(v, TYPE_NOTIFY, BAR_NOTIFY, 0, v->queues * NOTIFY_MULTIPLIER, CAP_MORE + 4);
    pci_func_reg(f, cap + CAP_MORE, 4, NOTIFY_MULTIPLIER, 0);
    cap = add_cap(v, TYPE_PCI, 0, 0, 0, CAP_MORE + 4);
    pci_func_reg(f, cap + CAP_BAR, 1, 0, 0xff);
    pci_func_reg(f, cap + CAP_OFFSET, 4, 0, UINT32_MAX);
    pci_func_reg(f, cap + CAP_LENGTH, 4, 0, UINT32_MAX);
    pci_func_reg(f, cap + CAP_MORE, 4, 0, UINT32_MAX);
    v->pci_cfg_cap = cap;
}

/* ---- life ---- */

int virtio_pci_init(struct virtio *v, const struct virtio_slot *slot, struct err *e)
{
    uint16_t id = (uint16_t)(DEVICE_BASE + v->ops->id);
    const struct pci_ids ids = {
        .vendor = VENDOR,
        .device = id,
        .subsys_vendor = VENDOR,
        .subsys = id,
        .revision = REVISION,
        .class_code = v->ops->pci_class,
        .pin = 1,
    };

    pthread_mutex_init(&v->isr_lock, NULL);
    pci_func_init(&v->pci, &v->dev, &v->s->pci, &ids);
    pci_func_bar(&v->pci, BAR_REGISTERS, PCI_BAR_MEM64, REGISTERS_SIZE, &registers_ops);
    pci_func_bar(&v->pci, BAR_NOTIFY, PCI_BAR_MEM64_PREFETCH, NOTIFY_SIZE, &notify_ops);
    pci_func_bar(&v->pci, BAR_MSIX, PCI_BAR_MEM64, PCI_MSIX_BAR_SIZE, &msix_ops);
    v->pci.flr = pci_flr;
    add_caps(v);
    v->pci.reading = pci_reading;
    v->pci.written = pci_written;
    return pci_bus_add(slot->bus, &v->pci, slot->devfn, e);
}

void virtio_pci_reset(struct virtio *v)
{
    v->s->config_vector = VIRTIO_NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        v->s->queue_vector[i] = VIRTIO_NO_VECTOR;
    read_isr(v);
}

void virtio_pci_reset_queue(struct virtio *v, unsigned n)
{
    __atomic_store_n(&v->s->queue_vector[n], VIRTIO_NO_VECTOR, __ATOMIC_RELAXED);
}

void virtio_pci_reset_function(struct virtio *v)
{
    pci_func_reset(&v->pci);
    pci_msix_reset(&v->msix);
}

void virtio_pci_resume(struct virtio *v)
{
    pci_func_resume(&v->pci);
    pci_msix_resume(&v->msix);
}

void virtio_pci_fini(struct virtio *v)
{
    pci_func_fini(&v->pci);
    pthread_mutex_destroy(&v->isr_lock);
}
