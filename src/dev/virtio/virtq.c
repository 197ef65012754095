/* Virtqueues: what the two kinds of rings have in common, chains above all. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "dev/virtio/virtq_impl.h"

#define POOL_MAX 64        /* chains kept for later */
#define POOL_SEGMENTS 64u  /* of which none has room for more */
#define FIRST_SEGMENTS 16u /* room in a new one */

static const struct state_field virtq_fields[] = {
    STATE_FIELD(struct virtq_state, desc),
    STATE_FIELD(struct virtq_state, driver),
    STATE_FIELD(struct virtq_state, device),
    STATE_FIELD(struct virtq_state, size),
    STATE_FIELD(struct virtq_state, avail),
    STATE_FIELD(struct virtq_state, used),
    STATE_FIELD_MAX(struct virtq_state, enabled, 1),
    STATE_FIELD_MAX(struct virtq_state, avail_wrap, 1),
    STATE_FIELD_MAX(struct virtq_state, used_wrap, 1),
    STATE_PAD(struct virtq_state, pad),
};

const struct state_desc virtq_state_desc = {
    .name = "virtq",
    .version = 1,
    .size = sizeof(struct virtq_state),
    .fields = virtq_fields,
    .nfields = ARRAY_LEN(virtq_fields),
};

static const struct virtq_ring *ring(const struct virtq *q)
{
    return q->packed ? &virtq_packed : &virtq_split;
}

int virtq_break(struct virtq *q, const char *why)
{
    if (!q->broken) {
        q->broken = true;
        q->hooks.broken(q->hooks.arg, q->index, why);
    }
    return -EBADMSG;
}

/* ---- guest memory ---- */

static void load(void *dst, const uint8_t *src, unsigned len)
{
    bool aligned = !((uintptr_t)src & (len - 1));
    uint64_t v8;
    uint32_t v4;
    uint16_t v2;

    if (len == 2 && aligned) {
        v2 = __atomic_load_n((const uint16_t *)src, __ATOMIC_ACQUIRE);
        memcpy(dst, &v2, 2);
    } else if (len == 4 && aligned) {
        v4 = __atomic_load_n((const uint32_t *)src, __ATOMIC_ACQUIRE);
        memcpy(dst, &v4, 4);
    } else if (len == 8 && aligned) {
        v8 = __atomic_load_n((const uint64_t *)src, __ATOMIC_ACQUIRE);
        memcpy(dst, &v8, 8);
    } else {
        memcpy(dst, src, len);
        /* Nobody may look at the source again for what was copied. */
        atomic_signal_fence(memory_order_seq_cst);
    }
}

static void store(uint8_t *dst, const void *src, unsigned len)
{
    bool aligned = !((uintptr_t)dst & (len - 1));
    uint64_t v = 0;

    memcpy(&v, src, MIN(len, sizeof(v)));
    if (len == 2 && aligned)
        __atomic_store_n((uint16_t *)dst, (uint16_t)v, __ATOMIC_RELEASE);
    else if (len == 4 && aligned)
        __atomic_store_n((uint32_t *)dst, (uint32_t)v, __ATOMIC_RELEASE);
    else if (len == 8 && aligned)
        __atomic_store_n((uint64_t *)dst, v, __ATOMIC_RELEASE);
    else
        memcpy(dst, src, len);
}

/* How much of [gpa, gpa+len) lies in one page. */
static unsigned in_page(uint64_t gpa, unsigned len)
{
    return (unsigned)MIN(len, PAGE_SIZE - (gpa & PAGE_MASK));
}

bool virtq_load(struct virtq *q, uint64_t gpa, void *buf, unsigned len)
{
    uint8_t *dst = buf;

    for (unsigned n; len; gpa += n, dst += n, len -= n) {
        const uint8_t *p;

        n = in_page(gpa, len);
        p = mem_map(q->map, gpa, n, false);
        if (!p) {
            virtq_break(q, "a ring or table is not in memory");
            return false;
        }
        load(dst, p, n);
    }
    return true;
}

bool virtq_store(struct virtq *q, uint64_t gpa, const void *buf, unsigned len)
{
    const uint8_t *src = buf;

    for (unsigned n; len; gpa += n, src += n, len -= n) {
        uint8_t *p;

        n = in_page(gpa, len);
        p = mem_map(q->map, gpa, n, true);
        if (!p) {
            virtq_break(q, "a ring is not in memory that can be written");
            return false;
        }
        store(p, src, n);
        mem_unmap(q->map, gpa, n, true);
    }
    return true;
}

/* ---- chains ---- */

static void chain_free(struct virtq_chain *c)
{
    if (!c)
        return;
    free(c->iov);
    free(c->gpa);
    free(c);
}

/* Makes room for twice as many segments; those that there are move along. */
static int chain_grow(struct virtq_chain *c)
{
    unsigned cap = c->cap ? 2 * c->cap : FIRST_SEGMENTS;
    struct iovec *iov = malloc(2 * cap * sizeof(*iov));
    uint64_t *gpa = iov ? realloc(c->gpa, cap * sizeof(*gpa)) : NULL;

    if (!gpa) {
        free(iov);
        return -ENOMEM;
    }
    if (c->n)
        memcpy(iov + cap, c->iov + c->cap, c->n * sizeof(*iov));
    free(c->iov);
    c->iov = iov;
    c->gpa = gpa;
    c->cap = cap;
    return 0;
}

static struct virtq_chain *chain_get(struct virtq *q)
{
    struct virtq_chain *c = q->pool;

    if (c) {
        q->pool = c->next;
        q->npool--;
        return c;
    }
    c = calloc(1, sizeof(*c));
    if (c && chain_grow(c)) {
        chain_free(c);
        c = NULL;
    }
    return c;
}

static void chain_put(struct virtq *q, struct virtq_chain *c)
{
    if (q->npool == POOL_MAX || c->cap > POOL_SEGMENTS) {
        chain_free(c);
        return;
    }
    c->next = q->pool;
    q->pool = c;
    q->npool++;
}

/* The segments as virtq_chain_add left them. */
static struct iovec *segments(const struct virtq_chain *c) { return c->iov + c->cap; }

static void chain_begin(struct virtq_chain *c)
{
    c->n = 0;
    c->nout = c->nin = 0;
    c->out_len = c->in_len = 0;
    c->user = NULL;
    c->slots = 0;
}

static void chain_finish(struct virtq_chain *c)
{
    memcpy(c->iov, segments(c), c->n * sizeof(*c->iov));
    c->out = c->iov;
    c->in = c->iov + c->nout;
    c->readable = c->nout;
}

/* What was writable may have been written. */
static void chain_unmap(struct virtq *q, struct virtq_chain *c)
{
    for (unsigned i = c->readable; i < c->n; i++)
        mem_unmap(q->map, c->gpa[i], segments(c)[i].iov_len, true);
}

/* Adds host memory; [gpa, gpa+len) continues the last segment if `more` and both go on. */
static int add_mapped(struct virtq *q, struct virtq_chain *c, uint64_t gpa, uint8_t *host,
                      uint64_t len, bool write, bool more)
{
    struct iovec *last = more ? &segments(c)[c->n - 1] : NULL;

    if (last && (uint8_t *)last->iov_base + last->iov_len == host) {
        last->iov_len += len;
        return 0;
    }
    if (c->n == VIRTQ_MAP_MAX)
        return virtq_break(q, "a chain of too many pieces");
    if (c->n == c->cap && chain_grow(c)) {
        virtq_break(q, "the host has no memory");
        return -ENOMEM;
    }
    segments(c)[c->n] = (struct iovec){host, len};
    c->gpa[c->n++] = gpa;
    if (write)
        c->nin++;
    else
        c->nout++;
    return 0;
}

int virtq_chain_add(struct virtq *q, struct virtq_chain *c, uint64_t gpa, uint32_t len, bool write)
{
    uint8_t *host;
    int rc = 0;

    if (!len)
        return virtq_break(q, "a descriptor without length");
    if (!write && c->nin)
        return virtq_break(q, "a readable descriptor behind a writable one");
    if (len > VIRTQ_CHAIN_BYTES - c->out_len - c->in_len)
        return virtq_break(q, "a chain of 4 GiB or more");
    if (gpa + len < gpa)
        return virtq_break(q, "a descriptor beyond the address space");
    if (write)
        c->in_len += len;
    else
        c->out_len += len;
    host = mem_map(q->map, gpa, len, write);
    if (host)
        return add_mapped(q, c, gpa, host, len, write, false);
    /* Not contiguous in the host: page by page. */
    for (bool more = false; len && !rc; more = true) {
        unsigned n = in_page(gpa, len);

        host = mem_map(q->map, gpa, n, write);
        if (!host)
            return virtq_break(q, "a descriptor of what is not memory");
        rc = add_mapped(q, c, gpa, host, n, write, more);
        gpa += n;
        len -= n;
    }
    return rc;
}

int virtq_indirect_check(struct virtq *q, const struct vring_desc *d, unsigned flags, unsigned *n)
{
    *n = d->len / sizeof(*d);
    if (!q->indirect)
        return virtq_break(q, "an indirect descriptor, which was not negotiated");
    if (flags & VRING_DESC_NEXT)
        return virtq_break(q, "an indirect descriptor with a next one");
    if (!*n || d->len % sizeof(*d))
        return virtq_break(q, "an indirect table of odd size");
    if (*n > VIRTQ_SIZE_MAX)
        return virtq_break(q, "an indirect table that is too long");
    return 0;
}

/* ---- life ---- */

void virtq_init(struct virtq *q, struct virtq_state *s, unsigned index, struct physmap *map,
                const struct virtq_hooks *hooks)
{
    *q = (struct virtq){.s = s, .map = map, .hooks = *hooks, .index = index};
}

void virtq_fini(struct virtq *q)
{
    assert(!q->inflight);
    while (q->pool) {
        struct virtq_chain *c = q->pool;

        q->pool = c->next;
        chain_free(c);
    }
    q->npool = 0;
}

void virtq_reset(struct virtq *q, uint16_t size)
{
    *q->s = (struct virtq_state){.size = size, .avail_wrap = 1, .used_wrap = 1};
    q->running = q->broken = false;
}

int virtq_start(struct virtq *q, uint64_t features)
{
    const struct virtq_state *s = q->s;

    assert(!q->running && !q->inflight);
    q->broken = false;
    q->packed = features >> VIRTIO_F_RING_PACKED & 1;
    q->event_idx = features >> VIRTIO_F_EVENT_IDX & 1;
    q->indirect = features >> VIRTIO_F_INDIRECT_DESC & 1;
    q->slots = q->filled = q->unsignalled = 0;
    memset(q->taken, 0, sizeof(q->taken));
    if (!s->size || s->size > VIRTQ_SIZE_MAX || s->desc % 16 || !ring(q)->sane(s))
        return -EINVAL;
    q->avail_seen = s->avail;
    q->running = true;
    virtq_kicks(q, true);
    return 0;
}

void virtq_stop(struct virtq *q)
{
    assert(!q->inflight && !q->filled);
    if (virtq_ready(q))
        virtq_notify(q);
    q->running = false;
}

/* ---- for devices ---- */

bool virtq_pending(struct virtq *q) { return virtq_ready(q) && ring(q)->pending(q) > 0; }

bool virtq_kicks(struct virtq *q, bool on)
{
    q->kicks = on;
    if (!virtq_ready(q))
        return false;
    ring(q)->kicks(q, on);
    if (!on)
        return false;
    /* The request must be seen before we look a last time: the driver does it the other way
     * round. */
    atomic_thread_fence(memory_order_seq_cst);
    return virtq_pending(q);
}

/* As ring->pending; before it is said that there is nothing, an event index is brought up to date,
 * or the next chain would come without a kick. */
static int pending_or_kick(struct virtq *q)
{
    int rc = ring(q)->pending(q);

    if (rc || !q->kicks || !q->event_idx || q->kicks_at == virtq_position(q))
        return rc;
    ring(q)->kicks(q, true);
    atomic_thread_fence(memory_order_seq_cst);
    return q->broken ? -EBADMSG : ring(q)->pending(q);
}

int virtq_pop(struct virtq *q, struct virtq_chain **out)
{
    struct virtq_chain *c;
    int rc;

    assert(!q->filled);
    if (!q->running)
        return 0;
    if (q->broken)
        return -EBADMSG;
    rc = pending_or_kick(q);
    if (rc <= 0)
        return rc;
    c = chain_get(q);
    if (!c) {
        virtq_break(q, "the host has no memory");
        return -ENOMEM;
    }
    chain_begin(c);
    rc = ring(q)->take(q, c);
    chain_finish(c);
    if (rc) {
        chain_unmap(q, c);
        chain_put(q, c);
        return rc;
    }
    q->inflight++;
    *out = c;
    return 1;
}

void virtq_unpop(struct virtq *q, struct virtq_chain *c)
{
    assert(!q->filled);
    ring(q)->put_back(q, c);
    virtq_drop(q, c);
}

void virtq_drop(struct virtq *q, struct virtq_chain *c)
{
    assert(q->inflight);
    q->inflight--;
    chain_unmap(q, c);
    chain_put(q, c);
}

void virtq_fill(struct virtq *q, struct virtq_chain *c, uint32_t written)
{
    if (virtq_ready(q)) {
        ring(q)->fill(q, c, (uint32_t)MIN(written, c->in_len));
        q->filled += ring(q)->units(c);
    }
    virtq_drop(q, c);
}

void virtq_publish(struct virtq *q)
{
    if (q->filled && virtq_ready(q)) {
        ring(q)->publish(q);
        q->unsignalled += q->filled;
    }
    q->filled = 0;
}

void virtq_push(struct virtq *q, struct virtq_chain *c, uint32_t written)
{
    virtq_fill(q, c, written);
    virtq_publish(q);
}

void virtq_notify(struct virtq *q)
{
    bool wanted;

    if (!q->unsignalled || !virtq_ready(q))
        return;
    /* What was published must be seen before we look whether the driver wants to know. */
    atomic_thread_fence(memory_order_seq_cst);
    wanted = ring(q)->wants_interrupt(q);
    q->unsignalled = 0;
    if (wanted && !q->broken)
        q->hooks.interrupt(q->hooks.arg, q->index);
}

/* ---- copying ---- */

static size_t copy(const struct iovec *iov, unsigned n, uint64_t off, void *to, const void *from,
                   size_t len)
{
    size_t done = 0;

    for (; n && done < len; iov++, n--) {
        size_t part;

        if (off >= iov->iov_len) {
            off -= iov->iov_len;
            continue;
        }
        part = MIN(len - done, iov->iov_len - off);
        if (to)
            memcpy((uint8_t *)to + done, (const uint8_t *)iov->iov_base + off, part);
        else
            memcpy((uint8_t *)iov->iov_base + off, (const uint8_t *)from + done, part);
        off = 0;
        done += part;
    }
    atomic_signal_fence(memory_order_seq_cst);
    return done;
}

size_t virtq_read(const struct virtq_chain *c, uint64_t off, void *buf, size_t len)
{
    return copy(c->out, c->nout, off, buf, NULL, len);
}

size_t virtq_write(const struct virtq_chain *c, uint64_t off, const void *buf, size_t len)
{
    return copy(c->in, c->nin, off, NULL, buf, len);
}
