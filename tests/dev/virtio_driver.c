#include "virtio_driver.h"

#include <string.h>
#include <time.h>

#include "base/util.h"
#include "mem/ram.h"

#define DEVFN PCI_DEVFN(4, 0)
#define BAR_BASE 0x2000000000ull /* far above RAM, within 40 bits */
#define BAR_STEP 0x100000ull
#define LINE 16
#define MSI_ADDRESS 0xfee00000u
#define WAIT_S 20

#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u
#define DESC_AVAIL BIT(7)
#define DESC_USED BIT(15)
#define EVENT_DESC 2u

/* ---- machine ---- */

static void on_msi(void *owner, uint64_t addr, uint32_t data)
{
    struct vdrv *d = owner;

    if (d->any_msi)
        return;
    assert_int_equal(addr, MSI_ADDRESS);
    assert_true(data < ARRAY_LEN(d->irqs));
    atomic_fetch_add(&d->irqs[data], 1);
}

void vdrv_init(struct vdrv *d)
{
    struct pci_bus_cfg cfg;

    memset(d, 0, sizeof(*d));
    fake_init(&d->f);
    assert_int_equal(ram_new(&d->ram, "ram", VDRV_RAM, NULL), 0);
    d->region = physmap_add(
        d->f.ctx.map,
        &(struct region){.name = "ram", .kind = REGION_RAM, .size = VDRV_RAM, .ram = d->ram}, NULL);
    assert_non_null(d->region);
    d->free = MIB;
    cfg = (struct pci_bus_cfg){.ctx = &d->f.ctx, .pio = d->f.pio, .msi = on_msi, .msi_owner = d};
    for (int i = 0; i < PCI_INTX_LINES; i++)
        cfg.intx[i] = fake_irq(&d->f, LINE + i);
    assert_int_equal(pci_bus_new(&d->bus, &cfg, NULL), 0);
}

void vdrv_fini(struct vdrv *d)
{
    device_free(d->dev);
    pci_bus_free(d->bus);
    fake_fini(&d->f);
    ram_free(d->ram);
}

void vdrv_move(struct vdrv *from, struct vdrv *to)
{
    device_quiesce(from->dev); /* nothing is in flight in the memory copied */
    memcpy(to->ram->host, from->ram->host, VDRV_RAM);
    fake_migrate(from->dev, to->dev);
    memcpy(to->q, from->q, sizeof(to->q));
    for (unsigned i = 0; i < VDRV_QUEUES; i++)
        to->q[i].d = to;
    to->nq = from->nq;
    to->free = from->free;
    to->features = from->features;
}

struct virtio_slot vdrv_slot(struct vdrv *d) { return (struct virtio_slot){d->bus, DEVFN}; }

uint64_t vdrv_alloc(struct vdrv *d, uint64_t len, uint64_t align)
{
    uint64_t at = ALIGN_UP(d->free, align);

    assert_true(at + len <= VDRV_RAM);
    d->free = at + len;
    memset(vdrv_ptr(d, at), 0, len);
    return at;
}

void *vdrv_ptr(struct vdrv *d, uint64_t gpa)
{
    assert_true(gpa < VDRV_RAM);
    return d->ram->host + gpa;
}

unsigned vdrv_config_vector(const struct vdrv *d) { return d->vectors - 1; }

void vdrv_msix(struct vdrv *d, bool on)
{
    uint32_t control = vdrv_pci_read(d, d->msix_cap + 2, 2);

    vdrv_pci_write(d, d->msix_cap + 2, 2, on ? control | 0x8000 : control & 0x7fff);
}

bool vdrv_line(const struct vdrv *d) { return d->f.level[LINE + (DEVFN >> 3) % PCI_INTX_LINES]; }

/* ---- registers ---- */

uint32_t vdrv_pci_read(struct vdrv *d, unsigned off, unsigned size)
{
    return pci_bus_read(d->bus, NULL, 0, DEVFN, off, size);
}

void vdrv_pci_write(struct vdrv *d, unsigned off, unsigned size, uint32_t val)
{
    pci_bus_write(d->bus, NULL, 0, DEVFN, off, size, val);
}

uint64_t vdrv_read(struct vdrv *d, uint64_t gpa, unsigned size)
{
    uint64_t v = 0;

    mmio_read(&d->f.ctx, gpa, &v, size);
    return v;
}

void vdrv_write(struct vdrv *d, uint64_t gpa, unsigned size, uint64_t val)
{
    mmio_write(&d->f.ctx, gpa, &val, size);
}

uint32_t vdrv_get(struct vdrv *d, unsigned reg, unsigned size)
{
    return (uint32_t)vdrv_read(d, d->common + reg, size);
}

void vdrv_set(struct vdrv *d, unsigned reg, unsigned size, uint64_t val)
{
    if (size == 8) { /* as drivers do it (§4.1.3.1) */
        vdrv_write(d, d->common + reg, 4, val);
        vdrv_write(d, d->common + reg + 4, 4, val >> 32);
    } else {
        vdrv_write(d, d->common + reg, size, val);
    }
}

uint8_t vdrv_status(struct vdrv *d) { return (uint8_t)vdrv_get(d, VC_STATUS, 1); }

uint64_t vdrv_offered(struct vdrv *d)
{
    uint64_t f;

    vdrv_set(d, VC_DEVICE_FEATURE_SELECT, 4, 1);
    f = (uint64_t)vdrv_get(d, VC_DEVICE_FEATURE, 4) << 32;
    vdrv_set(d, VC_DEVICE_FEATURE_SELECT, 4, 0);
    return f | vdrv_get(d, VC_DEVICE_FEATURE, 4);
}

void vdrv_config(struct vdrv *d, unsigned off, void *buf, unsigned len)
{
    uint8_t *p = buf;

    for (unsigned i = 0; i < len; i++)
        p[i] = (uint8_t)vdrv_read(d, d->config + off + i, 1);
}

static uint64_t bar_address(unsigned bar) { return BAR_BASE + bar * BAR_STEP; }

static void place_bars(struct vdrv *d)
{
    for (unsigned n = 0; n < PCI_BARS; n += 2) {
        unsigned off = PCI_BAR0 + 4 * n;

        if ((vdrv_pci_read(d, off, 4) & 7) != 4)
            continue;
        vdrv_pci_write(d, off, 4, (uint32_t)bar_address(n));
        vdrv_pci_write(d, off + 4, 4, (uint32_t)(bar_address(n) >> 32));
    }
    vdrv_pci_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void find_caps(struct vdrv *d)
{
    unsigned cap = vdrv_pci_read(d, PCI_CAP_POINTER, 1);

    for (unsigned n = 0; cap; cap = vdrv_pci_read(d, cap + 1, 1)) {
        unsigned id = vdrv_pci_read(d, cap, 1);
        uint64_t at;

        assert_true(++n < 48);
        if (id == 0x01)
            d->power_cap = cap;
        if (id == 0x10)
            d->express_cap = cap;
        if (id == 0x11) {
            d->msix_cap = cap;
            d->vectors = (vdrv_pci_read(d, cap + 2, 2) & 0x7ff) + 1;
            d->msix = bar_address(vdrv_pci_read(d, cap + 4, 4) & 7);
        }
        if (id != 0x09)
            continue;
        at = bar_address(vdrv_pci_read(d, cap + 4, 1)) + vdrv_pci_read(d, cap + 8, 4);
        switch (vdrv_pci_read(d, cap + 3, 1)) {
        case 1:
            d->common = at;
            break;
        case 2:
            d->notify = at;
            d->notify_multiplier = vdrv_pci_read(d, cap + 16, 4);
            break;
        case 3:
            d->isr = at;
            break;
        case 4:
            d->config = at;
            break;
        case 5:
            d->cfg_cap = cap;
            break;
        }
    }
}

void vdrv_attach(struct vdrv *d, const struct device_class *cls, const void *cfg)
{
    d->dev = fake_device(&d->f, cls, cls->name, cfg);
    d->v = container_of(d->dev, struct virtio, dev);
    find_caps(d);
    assert_true(d->common && d->isr && d->notify && d->msix && d->cfg_cap && d->power_cap &&
                d->express_cap);
    vdrv_enable(d);
}

void vdrv_enable(struct vdrv *d)
{
    vdrv_pci_write(d, d->power_cap + 4, 2, 0); /* wake up */
    place_bars(d);
    for (unsigned i = 0; i < d->vectors; i++) {
        vdrv_write(d, d->msix + 16 * i, 4, MSI_ADDRESS);
        vdrv_write(d, d->msix + 16 * i + 8, 4, i);
        vdrv_write(d, d->msix + 16 * i + 12, 4, 0);
    }
    vdrv_msix(d, true);
}

/* ---- life of the driver ---- */

void vdrv_reset(struct vdrv *d)
{
    vdrv_set(d, VC_STATUS, 1, 0);
    assert_int_equal(vdrv_status(d), 0);
    d->nq = 0;
}

void vdrv_negotiate(struct vdrv *d, uint64_t features)
{
    features |= BIT(VIRTIO_F_VERSION_1);
    vdrv_reset(d);
    vdrv_set(d, VC_STATUS, 1, VIRTIO_ACKNOWLEDGE);
    vdrv_set(d, VC_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    assert_int_equal(features & ~vdrv_offered(d), 0);
    for (unsigned i = 0; i < 2; i++) {
        vdrv_set(d, VC_DRIVER_FEATURE_SELECT, 4, i);
        vdrv_set(d, VC_DRIVER_FEATURE, 4, features >> 32 * i);
    }
    vdrv_set(d, VC_STATUS, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    assert_true(vdrv_status(d) & VIRTIO_FEATURES_OK);
    d->features = features;
}

void vdrv_queue(struct vdrv *d, unsigned n, unsigned size)
{
    struct vdrv_queue *q = &d->q[n];

    assert_true(n < VDRV_QUEUES && size <= VDRV_SIZE);
    *q = (struct vdrv_queue){
        .d = d,
        .index = n,
        .size = size,
        .packed = d->features & VDRV_PACKED,
        .event_idx = d->features & VDRV_EVENT_IDX,
        .indirect = d->features & VDRV_INDIRECT,
        .nfree = size,
        .nids = size,
        .next_wrap = true,
        .used_wrap = true,
    };
    for (unsigned i = 0; i < size; i++)
        q->free[i] = (uint16_t)(size - 1 - i);
    q->desc = vdrv_alloc(d, 16 * size, 16);
    q->driver = vdrv_alloc(d, q->packed ? 4 : 6 + 2 * size, 4);
    q->device = vdrv_alloc(d, q->packed ? 4 : 6 + 8 * size, 4);
    vdrv_set(d, VC_QUEUE_SELECT, 2, n);
    assert_true(vdrv_get(d, VC_QUEUE_SIZE, 2) >= size);
    vdrv_set(d, VC_QUEUE_SIZE, 2, size);
    vdrv_set(d, VC_QUEUE_VECTOR, 2, n);
    assert_int_equal(vdrv_get(d, VC_QUEUE_VECTOR, 2), n);
    vdrv_set(d, VC_QUEUE_DESC, 8, q->desc);
    vdrv_set(d, VC_QUEUE_DRIVER, 8, q->driver);
    vdrv_set(d, VC_QUEUE_DEVICE, 8, q->device);
    q->notify = d->notify + vdrv_get(d, VC_QUEUE_NOTIFY_OFF, 2) * d->notify_multiplier;
    vdrv_set(d, VC_QUEUE_ENABLE, 2, 1);
    assert_int_equal(vdrv_get(d, VC_QUEUE_ENABLE, 2), 1);
    d->nq = MAX(d->nq, n + 1);
}

void vdrv_driver_ok(struct vdrv *d)
{
    vdrv_set(d, VC_CONFIG_VECTOR, 2, vdrv_config_vector(d));
    vdrv_set(d, VC_STATUS, 1,
             VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
    assert_int_equal(vdrv_status(d), 0xf);
}

void vdrv_start(struct vdrv *d, uint64_t features, unsigned queues, unsigned size)
{
    vdrv_negotiate(d, features);
    for (unsigned i = 0; i < queues; i++)
        vdrv_queue(d, i, size);
    vdrv_driver_ok(d);
}

/* ---- queues ---- */

static uint16_t *u16(struct vdrv_queue *q, uint64_t gpa) { return vdrv_ptr(q->d, gpa); }

static uint16_t load16(struct vdrv_queue *q, uint64_t gpa)
{
    return __atomic_load_n(u16(q, gpa), __ATOMIC_ACQUIRE);
}

static void store16(struct vdrv_queue *q, uint64_t gpa, uint16_t v)
{
    __atomic_store_n(u16(q, gpa), v, __ATOMIC_RELEASE);
}

static struct vdrv_desc *desc(struct vdrv_queue *q, unsigned i)
{
    return (struct vdrv_desc *)vdrv_ptr(q->d, q->desc) + i;
}

/* The chain as an indirect table in new guest memory (tests do not run long enough to care). */
static uint64_t make_table(struct vdrv_queue *q, const struct vdrv_sg *sg, unsigned n,
                           unsigned nout)
{
    uint64_t table = vdrv_alloc(q->d, 16 * n, 16);
    struct vdrv_desc *t = vdrv_ptr(q->d, table);

    for (unsigned i = 0; i < n; i++) {
        unsigned flags = i < nout ? 0 : DESC_WRITE;

        t[i] = (struct vdrv_desc){.addr = sg[i].gpa, .len = sg[i].len};
        if (q->packed) {
            t[i].b = (uint16_t)flags;
        } else {
            t[i].a = (uint16_t)(flags | (i + 1 < n ? DESC_NEXT : 0));
            t[i].b = (uint16_t)(i + 1);
        }
    }
    return table;
}

static int add_split(struct vdrv_queue *q, const struct vdrv_sg *sg, unsigned n, unsigned nout,
                     bool indirect)
{
    unsigned head = q->free[--q->nids], at = head;

    if (indirect) {
        q->id[head].table = make_table(q, sg, n, nout);
        *desc(q, head) = (struct vdrv_desc){q->id[head].table, 16 * n, DESC_INDIRECT, 0};
        n = 1;
    } else {
        for (unsigned i = 0; i < n; i++) {
            unsigned next = i + 1 < n ? q->free[--q->nids] : 0;

            *desc(q, at) = (struct vdrv_desc){
                sg[i].gpa, sg[i].len,
                (uint16_t)((i < nout ? 0 : DESC_WRITE) | (i + 1 < n ? DESC_NEXT : 0)),
                (uint16_t)next};
            at = next;
        }
    }
    q->id[head].slots = n;
    q->nfree -= n;
    store16(q, q->driver + 4 + 2 * (q->next % q->size), (uint16_t)head);
    store16(q, q->driver + 2, ++q->next);
    return (int)head;
}

static int add_packed(struct vdrv_queue *q, const struct vdrv_sg *sg, unsigned n, unsigned nout,
                      bool indirect)
{
    unsigned id = q->free[--q->nids], first = q->next;
    uint16_t first_flags = 0;
    struct vdrv_sg table;

    q->id[id].table = 0;
    if (indirect) {
        table = (struct vdrv_sg){make_table(q, sg, n, nout), 16 * n};
        q->id[id].table = table.gpa;
        sg = &table;
        n = 1;
    }
    for (unsigned i = 0; i < n; i++) {
        uint16_t flags =
            (uint16_t)((indirect   ? DESC_INDIRECT
                        : i < nout ? 0
                                   : DESC_WRITE) |
                       (i + 1 < n ? DESC_NEXT : 0) | (q->next_wrap ? DESC_AVAIL : DESC_USED));
        struct vdrv_desc *to = desc(q, q->next);

        to->addr = sg[i].gpa;
        to->len = sg[i].len;
        to->a = (uint16_t)id;
        if (i)
            to->b = flags;
        else
            first_flags = flags;
        if (++q->next == q->size) {
            q->next = 0;
            q->next_wrap = !q->next_wrap;
        }
    }
    q->id[id].slots = n;
    q->nfree -= n;
    store16(q, q->desc + 16 * first + 14, first_flags);
    return (int)id;
}

int vdrv_add(struct vdrv_queue *q, const struct vdrv_sg *sg, unsigned nout, unsigned nin,
             void *cookie)
{
    unsigned n = nout + nin;
    bool indirect = q->indirect && n > 1;
    int id;

    assert_true(n > 0);
    if (q->nfree < (indirect ? 1 : n))
        return -1;
    id = q->packed ? add_packed(q, sg, n, nout, indirect) : add_split(q, sg, n, nout, indirect);
    assert_false(q->id[id].busy);
    q->id[id].busy = true;
    q->id[id].cookie = cookie;
    return id;
}

void vdrv_kick(struct vdrv_queue *q)
{
    atomic_thread_fence(memory_order_seq_cst);
    vdrv_write(q->d, q->notify, 2, q->index);
}

bool vdrv_kick_wanted(struct vdrv_queue *q)
{
    uint16_t old = q->kicked, where, flags;
    unsigned count;

    atomic_thread_fence(memory_order_seq_cst);
    q->kicked = q->next;
    if (q->packed) {
        where = load16(q, q->device);
        flags = load16(q, q->device + 2);
        if (flags != EVENT_DESC)
            return flags == 0;
        assert_true(q->event_idx);
        count = (q->next + q->size - old) % q->size;
        int event = where & 0x7fff;
        if (!!(where & 0x8000) != q->next_wrap)
            event -= (int)q->size;
        return (uint16_t)(q->next - event - 1) < count;
    }
    if (!q->event_idx)
        return !(load16(q, q->device) & 1);
    where = load16(q, q->device + 4 + 8 * q->size);
    return (uint16_t)(q->next - where - 1) < (uint16_t)(q->next - old);
}

/* Frees what the chain held. */
static void *complete(struct vdrv_queue *q, unsigned id)
{
    assert_true(id < q->size && q->id[id].busy);
    q->id[id].busy = false;
    q->nfree += q->id[id].slots;
    if (q->packed || q->id[id].slots == 1) {
        q->free[q->nids++] = (uint16_t)id;
    } else {
        for (unsigned at = id;; at = desc(q, at)->b) {
            q->free[q->nids++] = (uint16_t)at;
            if (!(desc(q, at)->a & DESC_NEXT))
                break;
        }
    }
    return q->id[id].cookie;
}

void *vdrv_used(struct vdrv_queue *q, uint32_t *written)
{
    uint32_t id, len;

    if (q->packed) {
        uint16_t flags = load16(q, q->desc + 16 * q->used + 14);
        struct vdrv_desc d;

        if (!!(flags & DESC_AVAIL) != q->used_wrap || !!(flags & DESC_USED) != q->used_wrap)
            return NULL;
        d = *desc(q, q->used);
        id = d.a;
        len = d.len;
        assert_true(id < q->size && q->id[id].busy);
        q->used = (uint16_t)(q->used + q->id[id].slots);
        if (q->used >= q->size) {
            q->used = (uint16_t)(q->used - q->size);
            q->used_wrap = !q->used_wrap;
        }
    } else {
        uint64_t elem = q->device + 4 + 8 * (q->used % q->size);

        if (q->used == load16(q, q->device + 2))
            return NULL;
        memcpy(&id, vdrv_ptr(q->d, elem), 4);
        memcpy(&len, vdrv_ptr(q->d, elem + 4), 4);
        q->used++;
    }
    if (written)
        *written = len;
    return complete(q, id);
}

void *vdrv_wait(struct vdrv_queue *q, uint32_t *written)
{
    const struct timespec ms = {.tv_nsec = 1000000};

    for (unsigned i = 0; i < WAIT_S * 1000; i++) {
        void *cookie = vdrv_used(q, written);

        if (cookie)
            return cookie;
        nanosleep(&ms, NULL);
    }
    fail_msg("the device does not answer");
    return NULL;
}

void vdrv_interrupts_off(struct vdrv_queue *q)
{
    if (q->packed)
        store16(q, q->driver + 2, 1);
    else
        store16(q, q->driver, 1);
}

void vdrv_interrupts_on(struct vdrv_queue *q)
{
    if (q->packed)
        store16(q, q->driver + 2, 0);
    else if (q->event_idx)
        store16(q, q->driver + 4 + 2 * q->size, q->used);
    else
        store16(q, q->driver, 0);
}

void vdrv_interrupt_after(struct vdrv_queue *q, unsigned after)
{
    assert_true(q->event_idx);
    if (!q->packed) {
        store16(q, q->driver + 4 + 2 * q->size, (uint16_t)(q->used + after));
        return;
    }

    unsigned at = q->used + after;
    bool wrap = q->used_wrap;

    if (at >= q->size) {
        at -= q->size;
        wrap = !wrap;
    }
    store16(q, q->driver, (uint16_t)(at | (wrap ? 0x8000 : 0)));
    store16(q, q->driver + 2, EVENT_DESC);
}

uint32_t vdrv_request(struct vdrv_queue *q, const void *out, uint32_t out_len, void *in,
                      uint32_t in_len)
{
    uint64_t at = vdrv_alloc(q->d, out_len + in_len, 8);
    struct vdrv_sg sg[2];
    unsigned nout = 0, nin = 0;
    uint32_t written;

    if (out_len) {
        memcpy(vdrv_ptr(q->d, at), out, out_len);
        sg[nout++] = (struct vdrv_sg){at, out_len};
    }
    if (in_len)
        sg[nout + nin++] = (struct vdrv_sg){at + out_len, in_len};
    assert_true(vdrv_add(q, sg, nout, nin, q) >= 0);
    vdrv_kick(q);
    assert_ptr_equal(vdrv_wait(q, &written), q);
    assert_true(written <= in_len);
    if (in_len)
        memcpy(in, vdrv_ptr(q->d, at + out_len), in_len);
    return written;
}
