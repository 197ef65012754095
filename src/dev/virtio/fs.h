/*
 * The virtio file system device (virtio 1.2 §5.11): FUSE requests from a high-priority and a
 * request queue to a shared directory of the host (back/share). A thread of the device's own serves
 * both queues while the device runs, one request after the other; it may wait for the host's file
 * system, and so does whoever stops the device. There is no DAX window and no notification queue.
 *
 * The session (which files the guest knows, and has open) is part of the saved state, as far as it
 * fits there: back/share/share.h says what becomes of the rest.
 */
#ifndef RING3_DEV_VIRTIO_FS_H
#define RING3_DEV_VIRTIO_FS_H

#include "back/share/share.h"
#include "dev/virtio/virtio.h"

#define VIRTIO_FS_TAG_MAX 36u /* bytes */

struct virtio_fs_cfg {
    struct virtio_slot slot;
    const char *tag; /* what the guest mounts: 1 to VIRTIO_FS_TAG_MAX bytes */
    struct share_cfg share;
};

extern const struct device_class virtio_fs_class;

#endif
