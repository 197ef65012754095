/*
 * What virtq.c shares with the two kinds of rings. A ring's functions find q->s sane (virtq_start
 * saw to it), touch guest memory through virtq_load and virtq_store only, and report a driver that
 * breaks the rules by virtq_break.
 */
#ifndef RING3_DEV_VIRTIO_VIRTQ_IMPL_H
#define RING3_DEV_VIRTIO_VIRTQ_IMPL_H

#include "dev/virtio/virtq.h"

/* Descriptor flags. */
#define VRING_DESC_NEXT 1u
#define VRING_DESC_WRITE 2u
#define VRING_DESC_INDIRECT 4u
#define VRING_DESC_AVAIL BIT(7) /* packed */
#define VRING_DESC_USED BIT(15) /* packed */

#define VRING_EVENT_WRAP BIT(15) /* packed: the wrap counter in an event index */

/* A descriptor in either layout. */
struct vring_desc {
    uint64_t addr;
    uint32_t len;
    union {
        struct {
            uint16_t flags, next;
        } split;
        struct {
            uint16_t id, flags;
        } packed;
    };
};

/* Words of 2, 4 and 8 bytes that are aligned are single accesses, with acquire and release order.
 * False, with the queue broken, when there is no such memory. */
bool virtq_load(struct virtq *q, uint64_t gpa, void *buf, unsigned len);
bool virtq_store(struct virtq *q, uint64_t gpa, const void *buf, unsigned len);

/* Breaks the queue; returns -EBADMSG. */
int virtq_break(struct virtq *q, const char *why);

/* Appends guest memory to a chain. 0, or negative with the queue broken. */
int virtq_chain_add(struct virtq *q, struct virtq_chain *c, uint64_t gpa, uint32_t len, bool write);
/* Is d, found in a ring or a table, good as an indirect one? 0 and the entries of its table. */
int virtq_indirect_check(struct virtq *q, const struct vring_desc *d, unsigned flags, unsigned *n);

struct virtq_ring {
    bool (*sane)(const struct virtq_state *s);
    /* Is a chain available? 1, 0, or negative with the queue broken. */
    int (*pending)(struct virtq *q);
    /* Collects the chain that is, and moves on. */
    int (*take)(struct virtq *q, struct virtq_chain *c);
    void (*put_back)(struct virtq *q, struct virtq_chain *c);
    void (*fill)(struct virtq *q, const struct virtq_chain *c, uint32_t written);
    void (*publish)(struct virtq *q);
    bool (*wants_interrupt)(struct virtq *q);
    void (*kicks)(struct virtq *q, bool on);
    /* How much a chain counts in q->filled. */
    unsigned (*units)(const struct virtq_chain *c);
};

extern const struct virtq_ring virtq_split, virtq_packed;

/* Where the next chain is taken, as event indices have it. */
static inline uint16_t virtq_position(const struct virtq *q)
{
    return (uint16_t)(q->s->avail | (q->packed && q->s->avail_wrap ? VRING_EVENT_WRAP : 0));
}

/* Of the last `count` entries that ended before `now`, was one `event`? (§2.7.10) */
static inline bool virtq_event_passed(uint16_t event, uint16_t now, unsigned count)
{
    return (uint16_t)(now - event - 1) < count;
}

#endif
