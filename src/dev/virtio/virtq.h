/*
 * Virtqueues, split and packed, with indirect descriptors and event indices (virtio 1.2 §2.6 to
 * §2.8). This is the only code that touches a ring; devices see chains of host memory.
 *
 * Threads: a virtq has one owner at a time, which alone may call the functions below: the thread
 * that its device names while the device runs (virtio.h: from ops->start to the return of
 * ops->stop), the holder of the device's lock otherwise. There is no lock in here. All guest memory
 * is reached through the p2m, so an owner need not be a vCPU or the loop.
 *
 * The driver is hostile. Descriptors are copied once and checked before anything is made of them;
 * what iovecs point to is shared with the guest and may change at any time, so a device copies a
 * header once (virtq_read) and never reads twice what it has checked. A driver that breaks the
 * rules of the ring (a loop, a chain longer than the ring, an index that jumps, an address that is
 * not memory, a descriptor without length, one that is readable behind a writable one, more than
 * VIRTQ_CHAIN_BYTES, the same descriptor twice) makes the queue broken: the hook is called once,
 * every virtq_pop from then on fails, virtq_push only frees, and a reset of the device is the way
 * out.
 */
#ifndef RING3_DEV_VIRTIO_VIRTQ_H
#define RING3_DEV_VIRTIO_VIRTQ_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/state.h"
#include "mem/physmap.h"

#define VIRTQ_SIZE_MAX 1024u         /* entries of a ring, and descriptors of an indirect table */
#define VIRTQ_CHAIN_BYTES UINT32_MAX /* of all descriptors of one chain */
#define VIRTQ_MAP_MAX (4 * VIRTQ_SIZE_MAX) /* iovecs of one chain */

/* Feature bits that change the ring (§6). */
#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_EVENT_IDX 29
#define VIRTIO_F_RING_PACKED 34

/* What is saved of a queue, and nothing else the guest can see. While the queue runs the owner
 * changes the positions; the rest is the transport's, under the device's lock. */
struct virtq_state {
    uint64_t desc, driver, device; /* guest-physical addresses of the three areas */
    uint16_t size;                 /* entries, as the driver chose */
    uint16_t avail,
        used; /* next to take and to use: split: free-running; packed: slot in the ring */
    uint8_t enabled;
    uint8_t avail_wrap, used_wrap; /* packed: wrap counters that go with avail and used */
    uint8_t pad[7];
};

extern const struct state_desc virtq_state_desc;

/* One request: descriptors in the driver's order, readable ones first, as host memory. A descriptor
 * may be several iovecs. Valid from virtq_pop until it is pushed, filled, unpopped or dropped. */
struct virtq_chain {
    struct iovec *out, *in; /* device-readable; device-writable. Arrays of the chain, which a device
                             * may change (to consume them) */
    unsigned nout, nin;
    uint64_t out_len, in_len; /* bytes in each */
    void *user;               /* the device's; NULL after virtq_pop */

    /* virtq.c's own */
    uint16_t id, slots; /* head or buffer id; ring slots taken (packed) */
    unsigned n, cap;    /* segments mapped, room for them */
    unsigned readable;  /* of the n, the first ones */
    struct iovec *iov;  /* cap for the device, then cap that stay as they were */
    uint64_t *gpa;      /* of each segment */
    struct virtq_chain *next;
};

struct virtq_hooks {
    /* The driver wants to hear of used buffers. In the owner's thread. */
    void (*interrupt)(void *arg, unsigned index);
    /* The driver broke the ring, or the host has no memory. In the owner's thread, once. */
    void (*broken)(void *arg, unsigned index, const char *why);
    void *arg;
};

struct virtq {
    struct virtq_state *s;
    struct physmap *map;
    struct virtq_hooks hooks;
    unsigned index;
    /* From virtq_start: */
    _Atomic bool running; /* kicks look at it from any thread */
    bool broken;
    bool packed, event_idx, indirect;
    bool kicks;          /* the driver was asked to notify */
    uint16_t kicks_at;   /* with event_idx: where it was asked to */
    uint16_t avail_seen; /* split: the driver's index when it was last read */
    unsigned inflight;   /* chains popped and not yet filled */
    unsigned slots;      /* packed: ring slots of those and of filled ones */
    unsigned filled;     /* chains (split) or slots (packed) filled and not yet published */
    uint16_t first_slot, first_flags;    /* packed: the filled one whose flags publish them all */
    unsigned unsignalled;                /* published since virtq_notify, in the same unit */
    uint64_t taken[VIRTQ_SIZE_MAX / 64]; /* split: heads in flight */
    struct virtq_chain *pool;            /* to be used again */
    unsigned npool;
};

/* ---- for virtio.c ---- */

/* Binds q to its state; the queue does not run. */
void virtq_init(struct virtq *q, struct virtq_state *s, unsigned index, struct physmap *map,
                const struct virtq_hooks *hooks);
void virtq_fini(struct virtq *q); /* no chain may be in flight */
/* Initial state, with size entries. */
void virtq_reset(struct virtq *q, uint16_t size);
/* Runs an enabled queue with the negotiated features, from where its state (hostile after a load)
 * stands. -EINVAL when that makes no sense; nothing runs then. Kicks are on. */
int virtq_start(struct virtq *q, uint64_t features);
/* The owner has let go: no chain may be in flight. A last interrupt is raised if one is due. */
void virtq_stop(struct virtq *q);

/* ---- for devices ---- */

/* Can anything come from this queue: is it enabled, and the device running? */
static inline bool virtq_ready(const struct virtq *q) { return q->running && !q->broken; }

/* Takes the next chain. 1 and *out, 0 when there is none (or the queue is not enabled), -EBADMSG
 * when the driver broke the ring, -ENOMEM when the host has no memory; after an error the queue is
 * broken, and the driver knows. At most `size` chains are in flight at a time. The chain belongs to
 * the queue; exactly one of the following calls must give each back. */
int virtq_pop(struct virtq *q, struct virtq_chain **out);

/* Uses c: unmaps it, marks what may have been written dirty, writes it to the ring with the number
 * of bytes written from the start of its writable part (clamped to in_len), and shows the driver.
 * Any order. On a broken queue the ring is left alone. */
void virtq_push(struct virtq *q, struct virtq_chain *c, uint32_t written);
/* The same in two steps, for several chains that the driver must see at once: fill each, then
 * publish. Nothing may be popped, unpopped or dropped between the first fill and the publish. */
void virtq_fill(struct virtq *q, struct virtq_chain *c, uint32_t written);
void virtq_publish(struct virtq *q);
/* Puts c, the last chain popped (and after it the one before, and so on), back as if it had not
 * been popped. Nothing was written to it. */
void virtq_unpop(struct virtq *q, struct virtq_chain *c);
/* Gives c back without using it. Only in ops->stop when `why` is VIRTIO_STOP_RESET (virtio.h): the
 * driver gets no answer. */
void virtq_drop(struct virtq *q, struct virtq_chain *c);

/* Raises the queue's interrupt if the driver wants to hear of what was published since the last
 * call. Once for a batch of pushes. */
void virtq_notify(struct virtq *q);

/* Asks the driver to notify of new chains (on), or not to. A hint: kicks may come in spite of off.
 * After `on`, true means that there is something to pop already, for which no kick may come: the
 * usual loop is
 *      do { virtq_kicks(q, false); while (virtq_pop(q, &c) > 0) ...; } while (virtq_kicks(q,
 * true)); */
bool virtq_kicks(struct virtq *q, bool on);

/* Is there anything to pop? False also when the queue is not ready. */
bool virtq_pending(struct virtq *q);

/* Copies from the readable, or to the writable part of c, off bytes from its start; returns how
 * many bytes of len there were. They use out and in as they are now. */
size_t virtq_read(const struct virtq_chain *c, uint64_t off, void *buf, size_t len);
size_t virtq_write(const struct virtq_chain *c, uint64_t off, const void *buf, size_t len);

#endif
