/*
 * What a driver says to each kind of device: requests that mean something, with values that are now
 * and then wrong. A fuzzer cuts them into descriptors as it likes.
 */
#ifndef RING3_TESTS_DEV_VIRTIO_TALK_H
#define RING3_TESTS_DEV_VIRTIO_TALK_H

#include "virtio_rows.h"

#define VTALK_MAX 49152u

struct vtalk {
    uint8_t out[VTALK_MAX];
    unsigned out_len, in_len; /* bytes; both may be 0: nothing to say to this queue */
};

/* Adds bytes that the driver says. What is beyond the room is cut off. */
void vtalk_put(struct vtalk *t, const void *p, size_t n);
void vtalk_put_random(struct vworld *w, struct vtalk *t, unsigned n);

/* A request for a queue. t's lengths are 0. */
void vtalk_blk(struct vworld *w, unsigned queue, struct vtalk *t);
void vtalk_net(struct vworld *w, unsigned queue, struct vtalk *t);
void vtalk_fs(struct vworld *w, unsigned queue, struct vtalk *t);
void vtalk_vsock(struct vworld *w, unsigned queue, struct vtalk *t);

#endif
