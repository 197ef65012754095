/*
 * The virtio block device (virtio 1.2 §5.2): read, write, flush, discard, write-zeroes, serial
 * number, topology, cache mode, several queues, and a size that may change.
 *
 * Each device has a thread that owns its queues and its blockdev while the device runs; a kick is a
 * bit and, if the thread sleeps, an eventfd. Small reads of what is in the host's page cache are
 * done by the vCPU that kicks, if the thread sleeps: that is much less work than waking it and, the
 * guest's own idling included, halves the time of such a read. A disk whose engine is
 * BLOCK_AIO_SYNC has no thread: each request is done when the driver kicks, in the vCPU's thread,
 * and the order of all that happens is a function of what the guest does.
 */
#ifndef RING3_DEV_VIRTIO_BLK_H
#define RING3_DEV_VIRTIO_BLK_H

#include "back/block/block.h"
#include "dev/virtio/virtio.h"

#define VIRTIO_BLK_QUEUES_MAX 16u
#define VIRTIO_BLK_ID_BYTES 20u

/* Feature bits (§5.2.3). */
enum {
    VIRTIO_BLK_F_SIZE_MAX = 1,
    VIRTIO_BLK_F_SEG_MAX = 2,
    VIRTIO_BLK_F_RO = 5,
    VIRTIO_BLK_F_BLK_SIZE = 6,
    VIRTIO_BLK_F_FLUSH = 9,
    VIRTIO_BLK_F_TOPOLOGY = 10,
    VIRTIO_BLK_F_CONFIG_WCE = 11,
    VIRTIO_BLK_F_MQ = 12,
    VIRTIO_BLK_F_DISCARD = 13,
    VIRTIO_BLK_F_WRITE_ZEROES = 14,
};

/* Request types and results (§5.2.6). */
enum {
    VIRTIO_BLK_T_IN = 0,
    VIRTIO_BLK_T_OUT = 1,
    VIRTIO_BLK_T_FLUSH = 4,
    VIRTIO_BLK_T_GET_ID = 8,
    VIRTIO_BLK_T_DISCARD = 11,
    VIRTIO_BLK_T_WRITE_ZEROES = 13,
};
enum { VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP };

/* The configuration space (§5.2.4), little-endian. */
struct virtio_blk_config {
    uint64_t capacity; /* sectors of 512 bytes */
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size; /* logical blocks */
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed, aligned(4)));

struct virtio_blk_cfg {
    struct virtio_slot slot;
    struct blockdev *disk; /* drained; not owned, outlives the device, which alone uses it */
    const char *serial;    /* copied, cut to VIRTIO_BLK_ID_BYTES; NULL: none */
    unsigned queues;       /* 1..VIRTIO_BLK_QUEUES_MAX; one a vCPU is best */
};

extern const struct device_class virtio_blk_class;

/* Changes the size of the disk and its image and tells the driver. The device's lock is taken. As
 * block_resize. */
int virtio_blk_resize(struct device *d, uint64_t bytes, struct err *e);

#endif
