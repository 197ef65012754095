/*
 * What a driver says to each kind of device: requests that mean something, with values that are now
 * and then wrong. A fuzzer cuts them into descriptors as it likes.
 */
#ifndef RING3_TESTS_DEV_VIRTIO_TALK_H
#define RING3_TESTS_DEV_VIRTIO_TALK_H

#include "virtio_rows.h"

#define VTALK_MAX 8192u

struct vtalk {
    uint8_t out[VTALK_MAX];
    unsigned out_len, in_len; /* bytes; both may be 0: nothing to say to this queue */
};

/* A request for a queue. t is zeroed. */
void vtalk_blk(struct vworld *w, unsigned queue, struct vtalk *t);
void vtalk_net(struct vworld *w, unsigned queue, struct vtalk *t);
void vtalk_fs(struct vworld *w, unsigned queue, struct vtalk *t);
void vtalk_vsock(struct vworld *w, unsigned queue, struct vtalk *t);

#endif
