/*
 * The virtio devices, each with something on the host's side, for tests that treat all alike: a
 * driver (virtio_driver.h) that is attached and has done nothing yet. A new device is one row in
 * vrows.
 */
#ifndef RING3_TESTS_DEV_VIRTIO_ROWS_H
#define RING3_TESTS_DEV_VIRTIO_ROWS_H

#include "fakechr.h"
#include "virtio_driver.h"

#include "../block/kit.h"
#include "back/net/net.h"
#include "back/vsock/vsock.h"

#define VROWS_DISK MIB /* bytes of a disk */
#define VROWS_CID 3    /* of the socket device */
#define VROWS_PORT 5   /* where a program of the host listens */

struct vrow;
struct vtalk;

struct vworld {
    struct vdrv d;
    const struct vrow *row;
    struct fakechr chr;
    struct kit kit; /* a folder, and perhaps a disk in it */
    struct blockdev *disk;
    struct netdev *net;
    int program[4];  /* sockets of the host's programs that talk to the guest; 0: none */
    int listener;    /* of one that waits for the guest */
    unsigned said;   /* requests since the driver started */
    uint64_t heard;  /* where the device was last given room to answer in queue 0 */
    unsigned queues; /* that it has, at most VDRV_QUEUES */
    uint64_t seed;
};

struct vrow {
    const char *name;
    /* Makes the device (vdrv_attach). */
    void (*make)(struct vworld *w);
    /* Something random happens on the host's side. NULL: nothing does. */
    void (*host)(struct vworld *w);
    /* Something to say in a queue (virtio_talk.h). NULL: bytes mean nothing to it. */
    void (*talk)(struct vworld *w, unsigned queue, struct vtalk *t);
    uint64_t answers; /* queues in which each chain is used, whatever is in it */
    /* The device is freed; what it stood on may go. NULL: nothing to do. */
    void (*drop)(struct vworld *w);
};

extern const struct vrow vrows[];
extern const unsigned vrows_n;

void vworld_init(struct vworld *w, const struct vrow *row, uint64_t seed);
void vworld_fini(struct vworld *w);
uint64_t vworld_rnd(struct vworld *w);

#endif
