/*
 * Virtio over PCI, modern (virtio 1.2 §4.1): how a driver sees struct virtio. Used by virtio.c
 * only.
 *
 * BAR 0 holds the common configuration, the ISR status and the device's configuration space, BAR 2
 * the notification addresses, 4 bytes a queue, BAR 4 MSI-X. Vectors: as many as queues, and one.
 */
#ifndef RING3_DEV_VIRTIO_VIRTIO_PCI_H
#define RING3_DEV_VIRTIO_VIRTIO_PCI_H

#include "dev/virtio/virtio.h"

/* ---- transport, called by virtio.c; device's lock held except in init and fini ---- */

int virtio_pci_init(struct virtio *v, const struct virtio_slot *slot, struct err *e);
/* Both resets: of the virtio device, which the driver does, and of the PCI function, which the
 * machine does, and the driver by a function level reset. */
void virtio_pci_reset(struct virtio *v);
void virtio_pci_reset_function(struct virtio *v);
/* What the transport has of one queue. */
void virtio_pci_reset_queue(struct virtio *v, unsigned n);
void virtio_pci_resume(struct virtio *v);
void virtio_pci_fini(struct virtio *v);
/* Any thread. */
void virtio_pci_queue_interrupt(struct virtio *v, unsigned n);
void virtio_pci_config_interrupt(struct virtio *v);

/* ---- device, called by virtio_pci.c; device's lock held ---- */

uint8_t virtio_status(const struct virtio *v);
void virtio_set_status(struct virtio *v, uint8_t status); /* 0: reset */
/* The driver resets queue n, or enables it while the device runs (VIRTIO_F_RING_RESET, §2.6.1).
 * Both wait for what the device has in flight; when they return it is done. */
void virtio_reset_queue(struct virtio *v, unsigned n);
void virtio_enable_queue(struct virtio *v, unsigned n);
/* Word 0 or 1 of the driver's features; dropped when they are settled. */
void virtio_set_features(struct virtio *v, unsigned word, uint32_t bits);

#endif
