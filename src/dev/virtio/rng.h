/*
 * The virtio entropy device (virtio 1.2 §5.4): one queue of writable buffers, filled from the
 * host's random number generator. What a guest can draw is bounded: `rate` bytes a second of guest
 * time, a second's worth at once; a buffer is used with less than it has room for rather than late.
 * It works under its device's lock.
 */
#ifndef RING3_DEV_VIRTIO_RNG_H
#define RING3_DEV_VIRTIO_RNG_H

#include "dev/virtio/virtio.h"

#define VIRTIO_RNG_RATE (1 * MIB) /* a fair default, bytes a second */

struct virtio_rng_cfg {
    struct virtio_slot slot;
    uint32_t rate; /* bytes a second, at least 1 */
};

extern const struct device_class virtio_rng_class;

#endif
