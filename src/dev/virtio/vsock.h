/*
 * The virtio socket device (virtio 1.2 §5.10): packets between the guest and back/vsock, streams
 * only. A thread of the device's own moves them while the device runs; while the machine is paused
 * connections wait.
 *
 * Connections are not saved. A guest whose state was loaded hears of it by a transport reset event
 * (§5.10.6.7) and begins anew; listening sockets of it stay.
 */
#ifndef RING3_DEV_VIRTIO_VSOCK_H
#define RING3_DEV_VIRTIO_VSOCK_H

#include "back/vsock/vsock.h"
#include "dev/virtio/virtio.h"

struct virtio_vsock_cfg {
    struct virtio_slot slot;
    struct vsock_cfg vsock;
};

extern const struct device_class virtio_vsock_class;

#endif
