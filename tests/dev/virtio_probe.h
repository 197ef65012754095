/*
 * A virtio device that does nothing by itself: it counts what the transport calls, and the test
 * plays the device's part on its queues. Two queues, a configuration space of eight bytes of which
 * the last four can be written, feature bit 5.
 */
#ifndef RING3_TESTS_DEV_VIRTIO_PROBE_H
#define RING3_TESTS_DEV_VIRTIO_PROBE_H

#include "virtio_driver.h"

#define PROBE_QUEUES 2u
#define PROBE_SIZE 256u
#define PROBE_FEATURE BIT(5)
#define PROBE_REFUSED BIT(6) /* offered, but not taken alone */

struct probe_state {
    struct virtio_state virtio;
    uint32_t written; /* to the configuration space */
    uint8_t pad[4];
};

struct probe {
    struct virtio v;
    struct probe_state s;
    uint8_t config[8];
    unsigned starts, stops[2], resets, kicks[PROBE_QUEUES];
    struct virtq_chain *held[2 * PROBE_SIZE]; /* what stop gives back, by dropping or pushing */
    unsigned nheld;
};

struct probe_cfg {
    struct virtio_slot slot;
};

extern const struct device_class probe_class;

/* Fixtures: *state becomes a struct vdrv with the probe attached. */
int probe_setup(void **state);
int probe_teardown(void **state);
/* The device's part: uses what is in queue n, with an interrupt if one is wanted. */
void probe_use_all(struct vdrv *d, unsigned n);

static inline struct probe *probe_of(struct vdrv *d) { return container_of(d->v, struct probe, v); }

#endif
