/*
 * Network device (virtio 1.2 §5.1) in front of a netdev. The back end's worker thread owns all
 * queues while the device runs; see back/net/net.h and virtio.h.
 */
#ifndef RING3_DEV_VIRTIO_NET_H
#define RING3_DEV_VIRTIO_NET_H

#include "back/net/net.h"
#include "dev/virtio/virtio.h"

struct virtio_net_cfg {
    struct virtio_slot slot;
    struct netdev *back; /* not owned, outlives the device */
};

extern const struct device_class virtio_net_class;

#endif
