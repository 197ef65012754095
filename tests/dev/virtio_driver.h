/*
 * A virtio driver for tests, and a machine around one device: RAM, a PCI bus with MSI-X messages
 * counted by vector, the transport found through capabilities as a guest does it, and queues of
 * either layout. Any violation of what a driver may count on fails the test.
 *
 *      struct vdrv d;
 *      vdrv_init(&d);
 *      vdrv_attach(&d, &virtio_rng_class, &(struct virtio_rng_cfg){.slot = vdrv_slot(&d)});
 *      vdrv_start(&d, VDRV_PACKED | BIT(VIRTIO_BLK_F_FLUSH), 1, 16);   features, queues, their size
 *      vdrv_add(&d.q[0], ...); vdrv_kick(&d.q[0]); vdrv_wait(&d.q[0], &written);
 *      vdrv_fini(&d);
 */
#ifndef RING3_TESTS_DEV_VIRTIO_DRIVER_H
#define RING3_TESTS_DEV_VIRTIO_DRIVER_H

#include <stdatomic.h>

#include "fake.h"

#include "dev/virtio/virtio.h"

#define VDRV_RAM (64 * MIB) /* at 0 */
#define VDRV_QUEUES 20
#define VDRV_SIZE 256 /* entries at most */

/* Ring features, for vdrv_start; VERSION_1 is always asked for. */
#define VDRV_SPLIT 0ull
#define VDRV_PACKED BIT(VIRTIO_F_RING_PACKED)
#define VDRV_EVENT_IDX BIT(VIRTIO_F_EVENT_IDX)
#define VDRV_INDIRECT BIT(VIRTIO_F_INDIRECT_DESC)

/* Common configuration (virtio 1.2 §4.1.4.3). */
enum {
    VC_DEVICE_FEATURE_SELECT = 0,
    VC_DEVICE_FEATURE = 4,
    VC_DRIVER_FEATURE_SELECT = 8,
    VC_DRIVER_FEATURE = 12,
    VC_CONFIG_VECTOR = 16,
    VC_NUM_QUEUES = 18,
    VC_STATUS = 20,
    VC_GENERATION = 21,
    VC_QUEUE_SELECT = 22,
    VC_QUEUE_SIZE = 24,
    VC_QUEUE_VECTOR = 26,
    VC_QUEUE_ENABLE = 28,
    VC_QUEUE_NOTIFY_OFF = 30,
    VC_QUEUE_DESC = 32,
    VC_QUEUE_DRIVER = 40,
    VC_QUEUE_DEVICE = 48,
    VC_QUEUE_RESET = 58,
};

struct vdrv_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t a, b; /* split: flags, next; packed: id, flags */
};

struct vdrv_sg {
    uint64_t gpa;
    uint32_t len;
};

struct vdrv;

struct vdrv_queue {
    struct vdrv *d;
    unsigned index, size;
    bool packed, event_idx;
    bool indirect; /* chains of more than one go into a table; may be changed at any time */
    uint64_t desc, driver, device, notify;
    unsigned nfree;      /* descriptors */
    uint16_t next, used; /* split: free-running; packed: slots */
    bool next_wrap, used_wrap;
    uint16_t free[VDRV_SIZE]; /* split: free descriptors; packed: free ids (a stack) */
    unsigned nids;
    struct {
        bool busy;
        unsigned slots;
        uint64_t table; /* indirect, or 0 */
        void *cookie;
    } id[VDRV_SIZE];
    uint16_t kicked; /* where `next` was at the last vdrv_kick_if_wanted */
};

struct vdrv {
    struct fake f;
    struct ram *ram;
    struct region *region;
    uint64_t free; /* RAM from here on is free */
    struct pci_bus *bus;
    struct device *dev;
    struct virtio *v;
    /* Where things are, from the capabilities. */
    uint64_t common, isr, config, notify, msix;
    uint32_t notify_multiplier;
    unsigned msix_cap, cfg_cap, power_cap, express_cap, vectors;
    uint64_t features; /* negotiated */
    struct vdrv_queue q[VDRV_QUEUES];
    unsigned nq;
    bool any_msi; /* messages need not be as vdrv_attach set them up (fuzzing) */
    _Atomic unsigned irqs[PCI_MSIX_MAX + 1]; /* messages by vector; queue n's is n */
};

/* ---- machine ---- */
void vdrv_init(struct vdrv *d);
void vdrv_fini(struct vdrv *d); /* frees the device too */
struct virtio_slot vdrv_slot(struct vdrv *d);
/* Makes the device and finds it: BARs at fixed places, bus master, MSI-X on with vector n for data
 * n. */
void vdrv_attach(struct vdrv *d, const struct device_class *cls, const void *cfg);
/* Puts its BARs where vdrv_attach put them and turns it on again, after a reset or a bad guest. */
void vdrv_enable(struct vdrv *d);
uint64_t vdrv_alloc(struct vdrv *d, uint64_t len, uint64_t align); /* guest RAM, zeroed */
void *vdrv_ptr(struct vdrv *d, uint64_t gpa);
unsigned vdrv_config_vector(const struct vdrv *d);
/* Switches MSI-X on or off (then there is INTx: fake level of line vdrv_line). */
void vdrv_msix(struct vdrv *d, bool on);
bool vdrv_line(const struct vdrv *d);

/* Saves the device of `from`, with memory and rings, and loads it into that of `to`, which is
 * attached alike and was never started: the driver goes on there. */
void vdrv_move(struct vdrv *from, struct vdrv *to);

/* ---- registers ---- */
uint32_t vdrv_pci_read(struct vdrv *d, unsigned off, unsigned size);
void vdrv_pci_write(struct vdrv *d, unsigned off, unsigned size, uint32_t val);
uint64_t vdrv_read(struct vdrv *d, uint64_t gpa, unsigned size);
void vdrv_write(struct vdrv *d, uint64_t gpa, unsigned size, uint64_t val);
uint32_t vdrv_get(struct vdrv *d, unsigned reg, unsigned size); /* common configuration */
void vdrv_set(struct vdrv *d, unsigned reg, unsigned size, uint64_t val);
uint8_t vdrv_status(struct vdrv *d);
uint64_t vdrv_offered(struct vdrv *d);
void vdrv_config(struct vdrv *d, unsigned off, void *buf, unsigned len);

/* ---- life of the driver ---- */
void vdrv_reset(struct vdrv *d);
/* Reset, acknowledge, features (all must be offered), FEATURES_OK. */
void vdrv_negotiate(struct vdrv *d, uint64_t features);
/* Sets up queue n with `size` entries and its vector, and enables it. */
void vdrv_queue(struct vdrv *d, unsigned n, unsigned size);
void vdrv_driver_ok(struct vdrv *d);
/* All of it, for queues 0..queues-1. */
void vdrv_start(struct vdrv *d, uint64_t features, unsigned queues, unsigned size);

/* ---- queues ---- */
/* Makes a chain available: nout readable, then nin writable pieces. Returns its id, or -1 when the
 * ring is full. The cookie comes back when it is used. */
int vdrv_add(struct vdrv_queue *q, const struct vdrv_sg *sg, unsigned nout, unsigned nin,
             void *cookie);
/* Notifies without asking. */
void vdrv_kick(struct vdrv_queue *q);
/* Does the device want to know of what was added since the last call? */
bool vdrv_kick_wanted(struct vdrv_queue *q);
/* The next used chain: its cookie, or NULL when there is none. *written may be NULL. */
void *vdrv_used(struct vdrv_queue *q, uint32_t *written);
/* The same for devices with threads, waits until there is one (fails after 20 s). */
void *vdrv_wait(struct vdrv_queue *q, uint32_t *written);
/* Interrupts: off, on, or (event index) only when `after` more chains (slots) are used. */
void vdrv_interrupts_off(struct vdrv_queue *q);
void vdrv_interrupts_on(struct vdrv_queue *q);
void vdrv_interrupt_after(struct vdrv_queue *q, unsigned after);

/* A request of one readable and one writable buffer (either may be of length 0), kicked and waited
 * for. Returns bytes written by the device; in is filled with what they hold. */
uint32_t vdrv_request(struct vdrv_queue *q, const void *out, uint32_t out_len, void *in,
                      uint32_t in_len);

#endif
