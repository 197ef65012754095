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

#define VROWS_DISK MIB    /* bytes of a disk */
#define VROWS_CID 3       /* of the socket device */
#define VROWS_PORT 5      /* where a program of the host listens */
#define VROWS_TCP_PORT 22 /* of the guest: programs of the host connect to it */

struct vrow;
struct vtalk;

struct vworld {
    struct vdrv d;
    const struct vrow *row;
    struct fakechr chr;
    struct kit kit; /* a folder, and perhaps a disk in it */
    struct blockdev *disk;
    struct netdev *net;
    int program[8];    /* sockets of the host's programs that talk to the guest; 0: none */
    int listener;      /* of one that waits for the guest */
    unsigned said;     /* requests since the driver started */
    uint64_t heard[4]; /* where the device's last packets are */
    unsigned nheard;   /* packets so far */
    uint16_t port;     /* of the host: where programs reach the guest */
    unsigned queues;   /* that it has, at most VDRV_QUEUES */
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
/* One of the last packets that the device gave the driver; 0 if there is none. */
uint64_t vworld_heard(struct vworld *w);

#endif
