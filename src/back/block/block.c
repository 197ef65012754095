/*
 * Blockdevs: checks, limits and cache modes around a node.
 */
#include "back/block/block.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "back/block/block_guard.h"
#include "back/block/block_limit.h"
#include "back/block/block_node.h"
#include "back/block/block_overlay.h"
#include "base/util.h"

/* struct block_req.step: what of a request the node is at. */
enum { STEP_WHOLE, STEP_FLUSH_AFTER };

struct blockdev {
    struct block_info info;
    struct block_aio *aio;
    struct block_node *node;
    bool no_flush;
    struct block_limit iops, bps;
    bool has_limits;
    bool limited;                   /* now: not while a drain lets all go */
    struct block_req *held, **last; /* waiting for the limits, in order */
    unsigned inflight, called;      /* callbacks owed; made by this round of block_poll */
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int open_node(struct blockdev *d, const char *path, const struct block_options *o,
                     struct err *e)
{
    struct block_node_options no = {
        .format = o->format,
        .ro = o->ro || o->snapshot,
        .no_lock = o->no_lock,
        .direct = o->cache == BLOCK_CACHE_NONE,
        .no_flush = o->cache == BLOCK_CACHE_UNSAFE,
    };
    struct block_node *overlay;
    int rc = block_node_open(&d->node, d->aio, path, &no, &d->info.probed, e);

    if (rc)
        return rc;
    d->info.format = d->node->ops->name;
    if (!o->snapshot || o->ro)
        return 0;
    rc = block_overlay_open(&overlay, d->node, e);
    if (rc == 0)
        d->node = overlay;
    return rc;
}

int block_open(struct blockdev **out, const char *path, const struct block_options *o,
               struct err *e)
{
    struct blockdev *d = calloc(1, sizeof(*d));
    uint64_t now = now_ns();
    int rc;

    if (!d)
        return err_set(e, ENOMEM, "no memory for a disk");
    d->last = &d->held;
    rc = block_aio_new(&d->aio, o->aio, e);
    if (rc == 0)
        rc = open_node(d, path, o, e);
    if (rc) {
        block_node_close(d->node);
        block_aio_free(d->aio);
        free(d);
        return rc;
    }
    d->info.ro = d->node->ro;
    d->no_flush = o->cache == BLOCK_CACHE_UNSAFE || d->info.ro;
    d->info.writeback = !d->info.ro && o->cache != BLOCK_CACHE_WRITETHROUGH;
    d->info.can_discard = d->node->can_discard;
    d->info.aio = block_aio_kind(d->aio);
    d->info.size = d->node->size;
    d->info.logical_block = d->node->logical_block;
    d->info.physical_block = d->node->physical_block;
    d->info.discard_granularity = d->node->discard_granularity;
    d->has_limits = d->limited = o->iops.rate || o->bps.rate;
    block_limit_init(&d->iops, &o->iops, now);
    block_limit_init(&d->bps, &o->bps, now);
    *out = d;
    return 0;
}

int block_close(struct blockdev *d)
{
    int rc;

    if (!d)
        return 0;
    block_drain(d);
    rc = block_node_close(d->node);
    block_aio_free(d->aio);
    free(d);
    return rc;
}

const struct block_info *block_info(const struct blockdev *d) { return &d->info; }

static bool is_write(const struct block_req *r)
{
    return r->op == BLOCK_WRITE || r->op == BLOCK_DISCARD || r->op == BLOCK_WRITE_ZEROES;
}

static void finish(struct block_req *r, int rc)
{
    struct blockdev *d = r->dev;

    if (rc == 0 && r->step == STEP_WHOLE && is_write(r) && !d->info.writeback && !d->no_flush) {
        /* r is the submitter's to read; the flush is a request of our own in the same place. */
        r->step = STEP_FLUSH_AFTER;
        rc = block_guard_flush(d->node, r);
        if (rc == 0)
            return;
    }
    d->inflight--;
    d->called++;
    r->done(r, rc);
}

static int check(const struct blockdev *d, const struct block_req *r)
{
    if (r->op == BLOCK_FLUSH)
        return 0;
    if ((r->offset | r->len) % BLOCK_SECTOR || r->offset > d->info.size ||
        r->len > d->info.size - r->offset)
        return -EINVAL;
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < r->niov; i++)
            if (__builtin_add_overflow(sum, r->iov[i].iov_len, &sum))
                return -EINVAL;
        if (sum != r->len)
            return -EINVAL;
    }
    if (is_write(r) && d->info.ro)
        return -EROFS;
    return r->op == BLOCK_DISCARD && !d->info.can_discard ? -EOPNOTSUPP : 0;
}

static void start(struct blockdev *d, struct block_req *r)
{
    if (r->op == BLOCK_FLUSH ? d->no_flush : r->len == 0)
        block_aio_complete(d->aio, r, 0);
    else if (d->info.probed && d->node->ops == &raw_ops && r->op == BLOCK_WRITE && r->offset == 0)
        block_guard_write(d->node, r);
    else
        block_node_submit(d->node, r);
}

static uint64_t tokens(const struct block_req *r)
{
    return r->op == BLOCK_READ || r->op == BLOCK_WRITE ? r->len : 0;
}

static void take_tokens(struct blockdev *d, const struct block_req *r)
{
    block_limit_take(&d->iops, 1);
    block_limit_take(&d->bps, tokens(r));
}

/* Starts what the limits allow. When the next may start: UINT64_MAX if none is held. */
static uint64_t release(struct blockdev *d)
{
    uint64_t now = d->held ? now_ns() : 0;

    while (d->held) {
        struct block_req *r = d->held;
        uint64_t when =
            MAX(block_limit_when(&d->iops, 1, now), block_limit_when(&d->bps, tokens(r), now));

        if (when > now)
            return when;
        take_tokens(d, r);
        d->held = r->next;
        if (!d->held)
            d->last = &d->held;
        start(d, r);
    }
    return UINT64_MAX;
}

int block_read_now(struct blockdev *d, const struct block_req *r)
{
    if (d->has_limits || check(d, r))
        return -EAGAIN;
    return block_node_read_now(d->node, r);
}

void block_submit(struct blockdev *d, struct block_req *const *reqs, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct block_req *r = reqs[i];
        int rc = check(d, r);

        r->dev = d;
        r->finish = finish;
        r->step = STEP_WHOLE;
        r->next = NULL;
        d->inflight++;
        if (rc) {
            block_aio_complete(d->aio, r, rc);
        } else if (d->limited) {
            *d->last = r;
            d->last = &r->next;
        } else {
            take_tokens(d, r);
            start(d, r);
        }
    }
    release(d);
    block_aio_flush(d->aio);
}

unsigned block_poll(struct blockdev *d)
{
    d->called = 0;
    block_aio_poll(d->aio);
    release(d);
    block_aio_flush(d->aio);
    return d->called;
}

void block_wait(struct blockdev *d)
{
    uint64_t deadline = release(d);

    block_aio_wait(d->aio, deadline);
}

void block_wake(struct blockdev *d) { block_aio_wake(d->aio); }

/* Starts what limits hold back; what comes later waits the longer. */
static void hurry(struct blockdev *d)
{
    while (d->held) {
        struct block_req *r = d->held;

        d->held = r->next;
        take_tokens(d, r);
        start(d, r);
    }
    d->last = &d->held;
    block_aio_flush(d->aio);
}

void block_drain(struct blockdev *d)
{
    bool woken = false;

    d->limited = false;
    hurry(d);
    while (d->inflight) {
        block_poll(d);
        if (d->inflight)
            woken |= block_aio_wait(d->aio, UINT64_MAX);
    }
    d->limited = d->has_limits;
    /* That was meant for the wait after us. */
    if (woken)
        block_aio_wake(d->aio);
}

void block_cancel(struct blockdev *d, bool (*which)(const struct block_req *r, const void *arg), const void *arg)
{
    struct block_req **link = &d->held;

    while (*link) {
        struct block_req *r = *link;

        if (which && !which(r, arg)) {
            link = &r->next;
            continue;
        }
        *link = r->next;
        block_aio_complete(d->aio, r, -ECANCELED);
    }
    d->last = link;
}

unsigned block_inflight(const struct blockdev *d) { return d->inflight; }

void block_set_writeback(struct blockdev *d, bool writeback)
{
    d->info.writeback = writeback && !d->info.ro;
}

int block_resize(struct blockdev *d, uint64_t size, struct err *e)
{
    int rc;

    assert(!d->inflight);
    if (d->info.ro)
        return err_set(e, EROFS, "a read-only disk cannot be resized");
    if (size == 0 || size % BLOCK_SECTOR)
        return err_set(e, EINVAL, "a disk's size is a multiple of %u", BLOCK_SECTOR);
    if (!d->node->ops->resize)
        return err_set(e, EOPNOTSUPP, "a disk of this kind cannot be resized");
    rc = d->node->ops->resize(d->node, size, e);
    d->info.size = d->node->size;
    return rc;
}

static void read_done(struct block_req *r, int rc) {}

/* Whole sectors through a buffer of our own. */
int block_read(struct blockdev *d, uint64_t offset, void *buf, size_t len)
{
    uint64_t first = ALIGN_DOWN(offset, BLOCK_SECTOR), end;
    struct block_req r = {.op = BLOCK_READ, .offset = first, .niov = 1, .done = read_done};
    struct block_req *p = &r;
    struct iovec iov;
    int rc;

    assert(!d->inflight);
    if (offset > d->info.size || len > d->info.size - offset)
        return -EINVAL;
    end = ALIGN_UP(offset + len, BLOCK_SECTOR);
    iov.iov_len = r.len = end - first;
    if (posix_memalign(&iov.iov_base, 4096, MAX(r.len, 1)))
        return -ENOMEM;
    r.iov = &iov;
    block_submit(d, &p, 1);
    block_drain(d);
    rc = r.rc;
    if (rc == 0)
        memcpy(buf, (char *)iov.iov_base + (offset - first), len);
    free(iov.iov_base);
    return rc;
}

int block_status(struct blockdev *d, uint64_t offset, uint64_t *len)
{
    assert(!d->inflight);
    if (offset > d->info.size || *len > d->info.size - offset)
        return -EINVAL;
    return block_node_status(d->node, offset, len);
}
