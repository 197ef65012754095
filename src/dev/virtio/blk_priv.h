/* The virtio block device as blk.c (device, thread) and blk_req.c (requests) share it. */
#ifndef RING3_DEV_VIRTIO_BLK_PRIV_H
#define RING3_DEV_VIRTIO_BLK_PRIV_H

#include <pthread.h>

#include "base/log.h"
#include "dev/virtio/blk.h"

#define BLK_QUEUE_SIZE 256u
/* A header and a status descriptor go with the data's. */
#define BLK_SEG_MAX (BLK_QUEUE_SIZE - 2)
/* What is given to the host at once, at most: copying so many bytes takes longer than telling it.
 */
#define BLK_BATCH 64u
#define BLK_BATCH_BYTES (256u << 10)
/* What a vCPU reads itself instead of waking the thread: copying more takes longer than that. And
 * after so many requests it lets the guest go on. */
#define BLK_NOW_BYTES 16384u
#define BLK_NOW_REQUESTS 32u

/* As much as one discard or write-zeroes request may cover, in sectors: a guest's mkfs discards a
 * whole disk, and the thread does something else between two of them. */
#define BLK_DISCARD_SECTORS (1u << 22)

struct virtio_blk_state {
    struct virtio_state virtio;
    uint8_t writeback; /* config.writeback as the driver set it */
    uint8_t pad[7];
};

struct blk_req;

struct virtio_blk {
    struct virtio v;
    struct virtio_blk_state s;
    struct virtio_blk_config config;
    struct blockdev *disk;
    char serial[VIRTIO_BLK_ID_BYTES];
    bool sync;      /* no thread: the disk is used with the device's lock held */
    bool may_cache; /* the user allows a write cache */
    struct log_limit errors;

    /* Whoever holds it owns the queues while the device runs: the thread, unless it sleeps, or a
     * vCPU in a kick. */
    pthread_mutex_t owner;
    struct blk_req *spare;
    uint64_t pushed; /* queues with chains pushed and not notified */

    /* The thread. Any vCPU sets bits; the rest is guarded by lock. */
    _Atomic uint64_t kicked; /* queues */
    _Atomic uint64_t away;   /* a queue that is to be left alone, or none */
    _Atomic bool run;        /* the thread may own the queues */
    _Atomic bool writeback;  /* what the disk is to be */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started, parked, end;
    bool left; /* the queue that is `away` is, and has nothing in flight */
    enum virtio_stop why;
};

/* Owner of the queues only. Takes what is in the queues of the mask and starts it, and answers what
 * is done meanwhile. Returns the queues that had anything: there may be more by now. */
uint64_t blk_req_take(struct virtio_blk *b, uint64_t queues);
/* The same for one queue in a vCPU's kick: answers what can be answered without waiting, in order.
 * True if something is left for the thread. */
bool blk_req_take_now(struct virtio_blk *b, struct virtq *q);
/* Gives up what limits hold back of the queue. */
void blk_req_cancel(struct virtio_blk *b, const struct virtq *q);
/* Raises the interrupts of queues with chains pushed; returns those queues. */
uint64_t blk_req_notify(struct virtio_blk *b);
void blk_req_free_spare(struct virtio_blk *b);

#endif
