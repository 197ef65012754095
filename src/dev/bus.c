/*
 * From a vCPU's port or physical address to a device's io_ops. Any mixture of addresses and sizes
 * arrives here, chosen by the guest; devices see only what their io_ops say they take.
 */
#include "dev/bus.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define PORTS 65536u

/* ---- one device: sizes, alignment, lock ---- */

static uint64_t ones(unsigned size)
{
    assert(size >= 1 && size <= 8);
    return ~0ull >> (64 - 8 * size);
}

static unsigned min_size(const struct io_ops *ops) { return ops->min_size ? ops->min_size : 1; }

static unsigned max_size(const struct io_ops *ops) { return ops->max_size ? ops->max_size : 8; }

/* Bytes of the next piece of an access that has len bytes left at off: a power of two that the ops
 * take as it is, or a part of one min_size unit. */
static unsigned piece_size(const struct io_ops *ops, uint64_t off, unsigned len)
{
    unsigned lo = min_size(ops), size = max_size(ops);

    while (size > len || (!ops->unaligned && off & (size - 1)))
        size /= 2;
    if (size < lo) {
        unsigned left = lo - (unsigned)(off & (lo - 1));

        size = MIN(len, left);
    }
    return size;
}

/* Lock held. */
static uint64_t read_piece(struct device *d, const struct io_ops *ops, uint64_t off, unsigned size)
{
    unsigned lo = min_size(ops), shift = 0;

    if (!ops->read)
        return ones(size);
    if (size < lo) {
        shift = 8 * (unsigned)(off & (lo - 1));
        return ops->read(d, off & ~(uint64_t)(lo - 1), lo) >> shift & ones(size);
    }
    return ops->read(d, off, size) & ones(size);
}

/* What an access is, for traces: bus_pio or bus_mmio with the address as the vCPU gave it. */
struct access_info {
    bool pio;
    uint64_t addr;
};

static void trace_access(struct device *d, const struct access_info *a, const char *what,
                         unsigned size, uint64_t val)
{
    if (a->pio)
        trace(d->ctx->trace, bus_pio, "%s port=%#llx size=%u value=%#llx device=%s", what,
              (unsigned long long)a->addr, size, (unsigned long long)val, d->id);
    else
        trace(d->ctx->trace, bus_mmio, "%s address=%#llx size=%u value=%#llx device=%s", what,
              (unsigned long long)a->addr, size, (unsigned long long)val, d->id);
}

static void device_read(struct device *d, const struct io_ops *ops, struct access_info a,
                        uint64_t off, uint8_t *buf, unsigned len)
{
    if (!ops->unlocked)
        device_lock(d);
    while (len) {
        unsigned size = piece_size(ops, off, len);
        uint64_t val = read_piece(d, ops, off, size);

        memcpy(buf, &val, size);
        trace_access(d, &a, "read", size, val);
        a.addr += size;
        off += size;
        buf += size;
        len -= size;
    }
    if (!ops->unlocked)
        device_unlock(d);
}

static void device_write(struct device *d, const struct io_ops *ops, struct access_info a,
                         uint64_t off, const uint8_t *buf, unsigned len)
{
    if (!ops->unlocked)
        device_lock(d);
    while (len) {
        unsigned size = piece_size(ops, off, len);
        bool taken = ops->write && size >= min_size(ops);
        uint64_t val = 0;

        memcpy(&val, buf, size);
        trace_access(d, &a, taken ? "write" : "dropped write", size, val);
        if (taken)
            ops->write(d, off, size, val);
        a.addr += size;
        off += size;
        buf += size;
        len -= size;
    }
    if (!ops->unlocked)
        device_unlock(d);
}

static void check_ops(const struct io_ops *ops)
{
    unsigned lo = min_size(ops), hi = max_size(ops);

    assert(!(lo & (lo - 1)) && !(hi & (hi - 1)) && lo <= hi && hi <= 8);
}

/* ---- ports ---- */

/* One pio_map. Goes when its last port is unmapped. */
struct pio_mapping {
    struct device *dev;
    const struct io_ops *ops;
    uint16_t base;
    unsigned ports;
};

struct pio_bus {
    struct dev_ctx *ctx;
    pthread_mutex_t lock; /* of port and what it points to */
    struct pio_mapping *port[PORTS];
};

int pio_bus_new(struct pio_bus **out, struct dev_ctx *ctx, struct err *e)
{
    struct pio_bus *b = calloc(1, sizeof(*b));

    if (!b)
        return err_set(e, ENOMEM, "no memory for the port bus");
    pthread_mutex_init(&b->lock, NULL);
    b->ctx = ctx;
    *out = b;
    return 0;
}

/* Lock held. */
static struct pio_mapping *mapping_at(struct pio_bus *b, unsigned port)
{
    return port < PORTS ? b->port[port] : NULL;
}

void pio_bus_free(struct pio_bus *b)
{
    if (!b)
        return;
    for (unsigned p = 0; p < PORTS; p++)
        pio_unmap(b, (uint16_t)p, 1);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

int pio_map(struct pio_bus *b, uint16_t port, unsigned n, struct device *dev,
            const struct io_ops *ops, struct err *e)
{
    const struct pio_mapping *taken = NULL;
    struct pio_mapping *m;
    unsigned i;

    check_ops(ops);
    if (!n || n > PORTS - port)
        return err_set(e, EINVAL, "%s: %u ports from %#x on: there are no such ports", dev->id, n,
                       port);
    m = malloc(sizeof(*m));
    if (!m)
        return err_set(e, ENOMEM, "%s: no memory to map its ports", dev->id);
    *m = (struct pio_mapping){.dev = dev, .ops = ops, .base = port, .ports = n};
    pthread_mutex_lock(&b->lock);
    for (i = 0; i < n && !taken; i++)
        taken = mapping_at(b, port + i);
    if (taken)
        err_set(e, EBUSY, "%s: port %#x is taken by %s", dev->id, port + i - 1, taken->dev->id);
    for (i = 0; i < n && !taken; i++)
        b->port[port + i] = m;
    pthread_mutex_unlock(&b->lock);
    if (!taken)
        return 0;
    free(m);
    return -EBUSY;
}

void pio_unmap(struct pio_bus *b, uint16_t port, unsigned n)
{
    pthread_mutex_lock(&b->lock);
    for (unsigned p = port; n && p < PORTS; p++, n--) {
        struct pio_mapping *m = mapping_at(b, p);

        b->port[p] = NULL;
        if (m && !--m->ports)
            free(m);
    }
    pthread_mutex_unlock(&b->lock);
}

/* How many of n ports from port on belong to the same mapping, or all to none: then *m has no
 * device. A copy, since another vCPU may unmap the ports meanwhile; that waits for the device's
 * lock, so this one cannot keep the bus's. */
static unsigned port_run(struct pio_bus *b, unsigned port, unsigned n, struct pio_mapping *m)
{
    const struct pio_mapping *at;
    unsigned i = 1;

    pthread_mutex_lock(&b->lock);
    at = mapping_at(b, port);
    *m = at ? *at : (struct pio_mapping){0};
    while (i < n && mapping_at(b, port + i) == at)
        i++;
    pthread_mutex_unlock(&b->lock);
    return i;
}

uint32_t pio_read(struct pio_bus *b, uint16_t port, unsigned size)
{
    uint8_t buf[4] = {0};
    unsigned run;
    uint32_t val;

    assert(size == 1 || size == 2 || size == 4);
    for (unsigned i = 0; i < size; i += run) {
        unsigned p = port + i;
        struct pio_mapping m;

        run = port_run(b, p, size - i, &m);
        if (m.dev) {
            device_read(m.dev, m.ops, (struct access_info){true, p}, p - m.base, buf + i, run);
        } else {
            memset(buf + i, 0xff, run);
            trace(b->ctx->trace, bus_unclaimed, "read port=%#x size=%u", p, run);
        }
    }
    memcpy(&val, buf, sizeof(val));
    return val;
}

void pio_write(struct pio_bus *b, uint16_t port, unsigned size, uint32_t val)
{
    uint8_t buf[4];
    unsigned run;

    assert(size == 1 || size == 2 || size == 4);
    memcpy(buf, &val, sizeof(buf));
    for (unsigned i = 0; i < size; i += run) {
        unsigned p = port + i;
        struct pio_mapping m;

        run = port_run(b, p, size - i, &m);
        if (m.dev)
            device_write(m.dev, m.ops, (struct access_info){true, p}, p - m.base, buf + i, run);
        else
            trace(b->ctx->trace, bus_unclaimed, "write port=%#x size=%u value=%#llx", p, run,
                  (unsigned long long)(val >> (8 * i) & ones(run)));
    }
}

/* ---- memory-mapped registers ---- */

#define MMIO_PRIO 10

struct region *mmio_map(struct device *dev, const struct io_ops *ops, uint64_t gpa, uint64_t size,
                        struct err *e)
{
    struct io_target *t = malloc(sizeof(*t));
    struct region *r;

    check_ops(ops);
    if (!t) {
        err_set(e, ENOMEM, "%s: no memory to map its registers", dev->id);
        return NULL;
    }
    *t = (struct io_target){.dev = dev, .ops = ops};
    r = physmap_add(dev->ctx->map,
                    &(struct region){.name = dev->id,
                                     .kind = REGION_IO,
                                     .base = gpa,
                                     .size = size,
                                     .prio = MMIO_PRIO,
                                     .io = t,
                                     .io_free = free},
                    e);
    if (!r)
        free(t);
    return r;
}

void mmio_unmap(struct device *dev, struct region *r)
{
    int rc = physmap_del(dev->ctx->map, r, NULL);

    assert(!rc);
    (void)rc;
}

/* The range at gpa, or NULL, and how many of n bytes it goes on for. */
static const struct flat_range *range_run(const struct flat_view *v, uint64_t gpa, unsigned n,
                                          unsigned *run)
{
    const struct flat_range *r = physmap_find(v, gpa);

    if (r) {
        *run = (unsigned)MIN(n, r->end - gpa + 1);
        return r;
    }
    *run = 1;
    while (*run < n && !physmap_find(v, gpa + *run))
        ++*run;
    return NULL;
}

/* A part of an access that lies in one naturally aligned unit of 8 bytes or less, which is what
 * reaches a device at most. */
static unsigned bus_unit(uint64_t gpa, unsigned n) { return (unsigned)MIN(n, 8 - (gpa & 7)); }

void mmio_read(struct dev_ctx *ctx, uint64_t gpa, void *buf, unsigned size)
{
    uint8_t *p = buf;
    unsigned run;

    for (; size; size -= run, gpa += run, p += run) {
        const struct flat_range *r =
            range_run(physmap_view(ctx->map), gpa, bus_unit(gpa, size), &run);

        if (!r) {
            memset(p, 0xff, run);
            trace(ctx->trace, bus_unclaimed, "read address=%#llx size=%u", (unsigned long long)gpa,
                  run);
        } else if (r->kind == REGION_IO) {
            struct io_target *t = r->region->io;

            device_read(t->dev, t->ops, (struct access_info){false, gpa}, r->off + (gpa - r->start),
                        p, run);
        } else if (mem_read(ctx->map, gpa, p, run)) {
            memset(p, 0xff, run);
        }
    }
}

void mmio_write(struct dev_ctx *ctx, uint64_t gpa, const void *buf, unsigned size)
{
    const uint8_t *p = buf;
    unsigned run;

    for (; size; size -= run, gpa += run, p += run) {
        const struct flat_range *r =
            range_run(physmap_view(ctx->map), gpa, bus_unit(gpa, size), &run);

        if (!r) {
            uint64_t val = 0;

            memcpy(&val, p, run);
            trace(ctx->trace, bus_unclaimed, "write address=%#llx size=%u value=%#llx",
                  (unsigned long long)gpa, run, (unsigned long long)val);
        } else if (r->kind == REGION_IO) {
            struct io_target *t = r->region->io;

            device_write(t->dev, t->ops, (struct access_info){false, gpa},
                         r->off + (gpa - r->start), p, run);
        } else if (r->kind == REGION_RAM) {
            /* Stores to ROM are dropped. */
            mem_write(ctx->map, gpa, p, run);
        }
    }
}
