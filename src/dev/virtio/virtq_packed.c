/* Packed virtqueues (virtio 1.2 §2.8). */
#include <errno.h>

#include "base/util.h"
#include "dev/virtio/virtq_impl.h"

#define DESC_LEN 8 /* offsets in a descriptor */
#define DESC_FLAGS 14

/* Event suppression: which entry (and its wrap counter in bit 15), and flags. */
#define EVENT_ENABLE 0u
#define EVENT_DISABLE 1u
#define EVENT_DESC 2u

struct event {
    uint16_t where, flags;
};

static bool sane(const struct virtq_state *s)
{
    return s->avail < s->size && s->used < s->size && s->driver % 4 == 0 && s->device % 4 == 0;
}

static uint64_t slot_at(const struct virtq *q, unsigned slot)
{
    return q->s->desc + slot * sizeof(struct vring_desc);
}

/* Moves a position on, or back; positions are below the size and so is n. */
static void advance(const struct virtq *q, uint16_t *slot, uint8_t *wrap, unsigned n)
{
    unsigned to = *slot + n;

    if (to >= q->s->size) {
        to -= q->s->size;
        *wrap ^= 1;
    }
    *slot = (uint16_t)to;
}

static int pending(struct virtq *q)
{
    uint16_t flags;
    bool avail, used;

    /* All slots are with us; the one looked at may still bear the flags of the last round. */
    if (q->slots == q->s->size)
        return 0;
    if (!virtq_load(q, slot_at(q, q->s->avail) + DESC_FLAGS, &flags, 2))
        return -EBADMSG;
    avail = flags & VRING_DESC_AVAIL;
    used = flags & VRING_DESC_USED;
    return avail == q->s->avail_wrap && used != q->s->avail_wrap;
}

static int collect_table(struct virtq *q, struct virtq_chain *c, uint64_t table, unsigned n)
{
    int rc = 0;

    /* Its entries follow each other, without flags but WRITE (§2.8.7). */
    for (unsigned i = 0; i < n && !rc; i++) {
        struct vring_desc d;

        if (!virtq_load(q, table + i * sizeof(d), &d, sizeof(d)))
            return -EBADMSG;
        if (d.packed.flags & VRING_DESC_INDIRECT)
            return virtq_break(q, "an indirect descriptor in an indirect table");
        rc = virtq_chain_add(q, c, d.addr, d.len, d.packed.flags & VRING_DESC_WRITE);
    }
    return rc;
}

static int collect(struct virtq *q, struct virtq_chain *c)
{
    unsigned room = q->s->size - q->slots, slot = q->s->avail;
    struct vring_desc d;

    do {
        unsigned n;
        int rc;

        if (c->slots == room)
            return virtq_break(q, "a chain that is longer than the ring");
        if (!virtq_load(q, slot_at(q, slot), &d, sizeof(d)))
            return -EBADMSG;
        slot = slot + 1 == q->s->size ? 0 : slot + 1;
        c->slots++;
        if (d.packed.flags & VRING_DESC_INDIRECT) {
            rc = virtq_indirect_check(q, &d, d.packed.flags, &n);
            if (!rc)
                rc = collect_table(q, c, d.addr, n);
        } else {
            rc = virtq_chain_add(q, c, d.addr, d.len, d.packed.flags & VRING_DESC_WRITE);
        }
        if (rc)
            return rc;
    } while (d.packed.flags & VRING_DESC_NEXT);
    c->id = d.packed.id;
    return 0;
}

static int take(struct virtq *q, struct virtq_chain *c)
{
    int rc = collect(q, c);

    if (rc)
        return rc;
    q->slots += c->slots;
    advance(q, &q->s->avail, &q->s->avail_wrap, c->slots);
    return 0;
}

static void put_back(struct virtq *q, struct virtq_chain *c)
{
    q->slots -= c->slots;
    if (q->s->avail < c->slots) {
        q->s->avail = (uint16_t)(q->s->avail + q->s->size);
        q->s->avail_wrap ^= 1;
    }
    q->s->avail = (uint16_t)(q->s->avail - c->slots);
}

static void fill(struct virtq *q, const struct virtq_chain *c, uint32_t written)
{
    const struct {
        uint32_t len;
        uint16_t id;
    } elem = {written, c->id};
    const uint16_t flags = (uint16_t)((q->s->used_wrap ? VRING_DESC_AVAIL | VRING_DESC_USED : 0) |
                                      (written ? VRING_DESC_WRITE : 0));
    uint64_t at = slot_at(q, q->s->used);

    virtq_store(q, at + DESC_LEN, &elem.len, 4);
    virtq_store(q, at + DESC_LEN + 4, &elem.id, 2);
    /* The driver sees nothing of a batch before the flags of its first descriptor. */
    if (q->filled) {
        virtq_store(q, at + DESC_FLAGS, &flags, 2);
    } else {
        q->first_slot = q->s->used;
        q->first_flags = flags;
    }
    advance(q, &q->s->used, &q->s->used_wrap, c->slots);
    q->slots -= c->slots;
}

static void publish(struct virtq *q)
{
    virtq_store(q, slot_at(q, q->first_slot) + DESC_FLAGS, &q->first_flags, 2);
}

static bool wants_interrupt(struct virtq *q)
{
    unsigned event;
    struct event e;

    if (!virtq_load(q, q->s->driver, &e, sizeof(e)))
        return false;
    if (e.flags != EVENT_DESC || !q->event_idx)
        return e.flags != EVENT_DISABLE;
    /* An entry of the round before lies behind by a whole ring. */
    event = e.where & ~(unsigned)VRING_EVENT_WRAP;
    if (!!(e.where & VRING_EVENT_WRAP) != q->s->used_wrap)
        event -= q->s->size;
    return virtq_event_passed((uint16_t)event, q->s->used, q->unsignalled);
}

static void kicks(struct virtq *q, bool on)
{
    struct event e = {0, on ? EVENT_ENABLE : EVENT_DISABLE};

    if (on && q->event_idx) {
        q->kicks_at = virtq_position(q);
        e = (struct event){q->kicks_at, EVENT_DESC};
    }
    virtq_store(q, q->s->device, &e, sizeof(e));
}

static unsigned units(const struct virtq_chain *c) { return c->slots; }

const struct virtq_ring virtq_packed = {
    .sane = sane,
    .pending = pending,
    .take = take,
    .put_back = put_back,
    .fill = fill,
    .publish = publish,
    .wants_interrupt = wants_interrupt,
    .kicks = kicks,
    .units = units,
};
