/*
 * The virtio console (virtio 1.2 §5.3) with one port on a chardev, and the size of the terminal
 * behind it if there is one; emergency writes go there too. It works under its device's lock.
 */
#ifndef RING3_DEV_VIRTIO_CONSOLE_H
#define RING3_DEV_VIRTIO_CONSOLE_H

#include "back/chardev.h"
#include "dev/virtio/virtio.h"

struct virtio_console_cfg {
    struct virtio_slot slot;
    struct chardev *chr; /* not owned, outlives the device; NULL: output is dropped */
};

extern const struct device_class virtio_console_class;

#endif
