/* Split virtqueues (virtio 1.2 §2.7). */
#include <errno.h>

#include "base/util.h"
#include "dev/virtio/virtq_impl.h"

/* The driver area: flags, index, ring of heads, used_event. */
#define AVAIL_FLAGS 0
#define AVAIL_INDEX 2
#define AVAIL_RING 4
#define AVAIL_NO_INTERRUPT 1
/* The device area: flags, index, ring of {id, length}, avail_event. */
#define USED_FLAGS 0
#define USED_INDEX 2
#define USED_RING 4
#define USED_NO_NOTIFY 1

struct used_elem {
    uint32_t id, len;
};

static bool sane(const struct virtq_state *s)
{
    return !(s->size & (s->size - 1)) && s->driver % 2 == 0 && s->device % 4 == 0;
}

static int pending(struct virtq *q)
{
    uint16_t n = (uint16_t)(q->avail_seen - q->s->avail);

    if (n)
        return 1;
    if (!virtq_load(q, q->s->driver + AVAIL_INDEX, &q->avail_seen, 2))
        return -EBADMSG;
    n = (uint16_t)(q->avail_seen - q->s->avail);
    if (n > q->s->size)
        return virtq_break(q, "the available index jumped");
    return n != 0;
}

/* From the head to the end of the chain, through an indirect table if there is one. */
static int collect(struct virtq *q, struct virtq_chain *c, unsigned i)
{
    uint64_t table = q->s->desc;
    unsigned n = q->s->size;
    bool indirect = false;

    for (unsigned left = n; left; left--) {
        struct vring_desc d;
        int rc;

        if (i >= n)
            return virtq_break(q, "a descriptor index beyond the table");
        if (!virtq_load(q, table + i * sizeof(d), &d, sizeof(d)))
            return -EBADMSG;
        if (d.split.flags & VRING_DESC_INDIRECT) {
            if (indirect)
                return virtq_break(q, "an indirect descriptor in an indirect table");
            rc = virtq_indirect_check(q, &d, d.split.flags, &n);
            if (rc)
                return rc;
            indirect = true;
            table = d.addr;
            i = 0;
            left = n + 1;
            continue;
        }
        rc = virtq_chain_add(q, c, d.addr, d.len, d.split.flags & VRING_DESC_WRITE);
        if (rc || !(d.split.flags & VRING_DESC_NEXT))
            return rc;
        i = d.split.next;
    }
    return virtq_break(q, "a chain that is longer than its table");
}

static int take(struct virtq *q, struct virtq_chain *c)
{
    unsigned mask = q->s->size - 1u;

    if (!virtq_load(q, q->s->driver + AVAIL_RING + 2 * (q->s->avail & mask), &c->id, 2))
        return -EBADMSG;
    if (c->id >= q->s->size)
        return virtq_break(q, "a head beyond the table");
    if (q->taken[c->id / 64] & BIT(c->id % 64))
        return virtq_break(q, "a head that is in use already");

    int rc = collect(q, c, c->id);
    if (rc)
        return rc;
    q->taken[c->id / 64] |= BIT(c->id % 64);
    q->s->avail++;
    return 0;
}

static void put_back(struct virtq *q, struct virtq_chain *c)
{
    q->taken[c->id / 64] &= ~BIT(c->id % 64);
    q->s->avail--;
}

static void fill(struct virtq *q, const struct virtq_chain *c, uint32_t written)
{
    const struct used_elem elem = {c->id, written};
    unsigned slot = (uint16_t)(q->s->used + q->filled) & (q->s->size - 1u);
    uint64_t at = q->s->device + USED_RING + slot * sizeof(elem);

    q->taken[c->id / 64] &= ~BIT(c->id % 64);
    /* Aligned to 4 only, so it may straddle two pages; nobody looks before the index moves. */
    virtq_store(q, at, &elem, sizeof(elem));
}

static void publish(struct virtq *q)
{
    q->s->used = (uint16_t)(q->s->used + q->filled);
    virtq_store(q, q->s->device + USED_INDEX, &q->s->used, 2);
}

static bool wants_interrupt(struct virtq *q)
{
    uint16_t v;

    if (q->event_idx)
        return virtq_load(q, q->s->driver + AVAIL_RING + 2u * q->s->size, &v, 2) &&
               virtq_event_passed(v, q->s->used, q->unsignalled);
    return virtq_load(q, q->s->driver + AVAIL_FLAGS, &v, 2) && !(v & AVAIL_NO_INTERRUPT);
}

static void kicks(struct virtq *q, bool on)
{
    const uint16_t flags = on ? 0 : USED_NO_NOTIFY;

    if (!q->event_idx) {
        virtq_store(q, q->s->device + USED_FLAGS, &flags, 2);
    } else if (on || q->kicks_at == q->s->avail) {
        /* Off: at a chain that is there already, so that no new one passes it. */
        q->kicks_at = (uint16_t)(q->s->avail - !on);
        virtq_store(q, q->s->device + USED_RING + sizeof(struct used_elem) * q->s->size,
                    &q->kicks_at, 2);
    }
}

static unsigned units(const struct virtq_chain *c) { return 1; }

const struct virtq_ring virtq_split = {
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
