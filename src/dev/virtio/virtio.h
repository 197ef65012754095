/*
 * Virtio devices over PCI (virtio 1.2 §2, §3, §4.1), modern only: features, status, configuration
 * space, queues and interrupts. A device embeds struct virtio first and struct virtio_state first
 * in its own state:
 *
 *      struct virtio_rng_state { struct virtio_state virtio; ... };
 *      struct virtio_rng { struct virtio v; struct virtio_rng_state s; ... };
 *      const struct device_class virtio_rng_class = {
 *          .init = rng_init,                    calls virtio_init(&r->v, &r->s.virtio, ...)
 *          .reset = virtio_dev_reset, .quiesce = virtio_dev_quiesce, .resume = virtio_dev_resume,
 *          .fini = virtio_dev_fini,             or a function of its own that calls it last
 *          .state = ..., .state_off = offsetof(struct virtio_rng, s) };
 *      and in its table of fields: STATE_SUB(struct virtio_rng_state, virtio, &virtio_state_desc).
 *
 * Life: a device runs from ops->start to ops->stop. It runs while the driver has set DRIVER_OK and
 * the machine is not quiesced. Only while it runs may it touch queues and guest memory. Features,
 * sizes and addresses of queues do not change while it runs. A driver that resets one queue, or
 * enables it again (VIRTIO_F_RING_RESET), makes that queue, or the device, pause for that.
 *
 * Threads and locks: every op is called with the device's lock held, except kick where
 * unlocked_kick says otherwise. A device either works under that lock (in kick, and in callbacks of
 * the loop, which take it by device_lock() and look at virtio_running()), or has threads of its
 * own. The latter own the queues while the device runs and NEVER take the device's lock, since stop
 * waits for them holding it. From them virtq_*() of their own queues, virtio_fail() and
 * virtio_has() are allowed. Lock order: device -> what device and thread share -> PCI function's
 * interrupts -> PCI bus -> irq controllers; the last three are taken inside virtq_notify() and
 * virtio_fail(), so call those with no lock that an irq controller or vCPU could want.
 */
#ifndef RING3_DEV_VIRTIO_VIRTIO_H
#define RING3_DEV_VIRTIO_VIRTIO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dev/device.h"
#include "dev/pci/msix.h"
#include "dev/pci/pci.h"
#include "dev/virtio/virtq.h"

#define VIRTIO_QUEUES_MAX 64u
#define VIRTIO_NO_VECTOR 0xffffu

/* Feature bits that every device has (§6); VERSION_1, the ring's and these are added by
 * virtio_init. */
#define VIRTIO_F_VERSION_1 32
#define VIRTIO_F_RING_RESET 40

/* Device types (§5). */
enum virtio_id {
    VIRTIO_ID_NET = 1,
    VIRTIO_ID_BLOCK = 2,
    VIRTIO_ID_CONSOLE = 3,
    VIRTIO_ID_RNG = 4,
    VIRTIO_ID_9P = 9,
    VIRTIO_ID_VSOCK = 19,
    VIRTIO_ID_FS = 26,
};

/* Device status (§2.1). */
enum {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,
};

struct virtio;

enum virtio_stop {
    VIRTIO_STOP_RESET,  /* the driver, or the machine, resets the device: answers are not awaited */
    VIRTIO_STOP_QUIESCE /* pause, save, a queue's reset or the end: start comes again, or nothing */
};

struct virtio_ops {
    enum virtio_id id;
    uint16_t pci_class; /* base class << 8 | subclass */

    /* The driver said DRIVER_OK, or the machine resumed one that had: negotiated features
     * (virtio_has) are fixed, enabled queues can be popped. Kicks from before are not repeated:
     * look at each queue once (or wake the thread that will). */
    void (*start)(struct virtio *v);
    /* On return nobody touches a queue or guest memory for this device, and each chain popped was
     * given back: pushed, which for VIRTIO_STOP_QUIESCE waits until its request is complete,
     * unpopped, or (for VIRTIO_STOP_RESET only) dropped. May wait for the device's threads and for
     * the host's I/O. Interrupts for what was pushed are seen to by the caller. NULL: nothing to
     * do. */
    void (*stop)(struct virtio *v, enum virtio_stop why);
    /* The same for queue n alone, in a device that runs and goes on with its other queues, whose
     * requests are not waited for: what was popped from queue n is complete and pushed on return.
     * Not called for a device that is broken. NULL: the device is stopped, and started again, for
     * each change of one queue, which is as good if its requests take no time. */
    void (*queue_stop)(struct virtio *v, unsigned n);
    /* Undoes queue_stop. Queue n may have been enabled: look at it once. NULL if that is. */
    void (*queue_start)(struct virtio *v, unsigned n);
    /* The driver notified queue n, which is enabled, while the device runs. Must not block. */
    void (*kick)(struct virtio *v, unsigned n);
    /* kick takes no lock: it is called without the device's, from any vCPU, several at a time, also
     * once or twice after the device stopped. For devices whose kick only wakes a thread. */
    bool unlocked_kick;

    /* The device's own state becomes that after power-on, also each time the driver resets it. It
     * does not run. NULL: has none. */
    void (*reset)(struct virtio *v);
    /* Would this subset of the offered features do? NULL: any. (FEATURES_OK stays clear if not.) */
    bool (*accept)(struct virtio *v, uint64_t features);
    /* The driver wrote [off, off+len) of the configuration space, which lies within it; what it
     * holds has not been changed: that is for the device to do, if the field may be written. NULL:
     * none may. */
    void (*config_write)(struct virtio *v, uint32_t off, const uint8_t *buf, uint32_t len);
};

/* Saved state of every virtio device. */
struct virtio_state {
    uint64_t driver_features;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector;
    uint16_t queue_vector[VIRTIO_QUEUES_MAX];
    uint8_t status;      /* without NEEDS_RESET */
    uint8_t needs_reset; /* set from any thread */
    uint8_t generation;  /* of the configuration space */
    uint8_t isr;         /* enum virtio_isr; guarded by isr_lock */
    struct virtq_state queue[VIRTIO_QUEUES_MAX];
    struct pci_func_state pci;
    struct pci_msix_state msix;
};

extern const struct state_desc virtio_state_desc;

/* Where it sits: part of every device's cfg. */
struct virtio_slot {
    struct pci_bus *bus; /* not owned, outlives the device */
    uint8_t devfn;
};

struct virtio_params {
    const struct virtio_ops *ops; /* static */
    struct virtio_slot slot;
    uint64_t features;   /* device-specific ones (bits 0..23 and from 50 on) */
    unsigned queues;     /* 1..VIRTIO_QUEUES_MAX */
    uint16_t queue_size; /* the most entries a ring may have: a power of two up to VIRTQ_SIZE_MAX */
    /* The configuration space, in the device struct, little-endian; read at any time with the
     * device's lock held. What of it can change must follow from the device's state and backend. */
    const void *config;
    uint32_t config_len; /* at most 4 KiB */
};

struct virtio {
    struct device dev; /* first */
    const struct virtio_ops *ops;
    struct virtio_state *s;
    uint64_t offered; /* features */
    unsigned queues;
    uint16_t queue_size;
    const uint8_t *config;
    uint32_t config_len;
    _Atomic bool running;
    bool quiesced;
    struct virtq vq[VIRTIO_QUEUES_MAX];

    /* virtio_pci.c's */
    struct pci_func pci;
    struct pci_msix msix;
    pthread_mutex_t isr_lock; /* s->isr and the INTx pin go together; before the function's own */
    uint8_t pci_cfg_cap;      /* offset of the PCI configuration access capability */
};

/* ---- for devices ---- */

/* In the device's init, which does nothing that can fail after it, or calls virtio_dev_fini then.
 */
int virtio_init(struct virtio *v, struct virtio_state *s, const struct virtio_params *p,
                struct err *e);
/* For the device_class; see above. */
void virtio_dev_reset(struct device *d, enum reset_kind kind);
void virtio_dev_quiesce(struct device *d);
void virtio_dev_resume(struct device *d);
void virtio_dev_fini(struct device *d);

/* Does it run? Under the device's lock. */
static inline bool virtio_running(const struct virtio *v) { return v->running; }

/* Was feature bit n negotiated? While it runs, from any thread. */
static inline bool virtio_has(const struct virtio *v, unsigned bit)
{
    return v->s->driver_features >> bit & 1;
}

/* The configuration space has changed: new generation, and an interrupt if the driver is there.
 * Device's lock held, since before the change. */
void virtio_config_changed(struct virtio *v);

/* Something went wrong that only a reset by the driver mends (DEVICE_NEEDS_RESET, §2.1.2): tells
 * the driver and traces why. Queues of other threads go on until they are stopped. Any thread. */
void virtio_fail(struct virtio *v, const char *why);

#endif
