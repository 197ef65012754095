/*
 * Requests of the virtio block device (virtio 1.2 §5.2.6). The driver may cut a chain into
 * descriptors as it likes (§2.7.4.3): the first 16 readable bytes are the header, the last writable
 * one is the status, and the rest is data.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "dev/virtio/blk_priv.h"

struct blk_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

/* Data of discard and write-zeroes. */
struct blk_range {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};
#define RANGE_UNMAP 1u

struct blk_req {
    struct block_req r;
    struct virtio_blk *b;
    struct virtq *q;
    struct virtq_chain *c;
    uint8_t *status;
    struct blk_req *next;
};

/* Takes n bytes off the front of a row of iovecs that has them. */
static void take_front(struct iovec **iov, unsigned *niov, size_t n)
{
    while (n) {
        size_t m = MIN(n, (*iov)->iov_len);

        (*iov)->iov_base = (char *)(*iov)->iov_base + m;
        (*iov)->iov_len -= m;
        n -= m;
        if (!(*iov)->iov_len) {
            (*iov)++;
            (*niov)--;
        }
    }
}

static uint8_t *take_last(struct iovec *iov, unsigned *niov)
{
    struct iovec *last;

    while (!iov[*niov - 1].iov_len)
        (*niov)--;
    last = &iov[*niov - 1];
    last->iov_len--;
    if (!last->iov_len)
        (*niov)--;
    return (uint8_t *)iov[last - iov].iov_base + last->iov_len;
}

static struct blk_req *req_new(struct virtio_blk *b)
{
    struct blk_req *r = b->spare;

    if (r)
        b->spare = r->next;
    else
        r = malloc(sizeof(*r));
    return r;
}

static void req_free(struct virtio_blk *b, struct blk_req *r)
{
    r->next = b->spare;
    b->spare = r;
}

void blk_req_free_spare(struct virtio_blk *b)
{
    while (b->spare) {
        struct blk_req *r = b->spare;

        b->spare = r->next;
        free(r);
    }
}

/* The guest has its answer. What it wrote counts from the start of the writable part, whose last
 * byte is the status. */
static void answer(struct virtio_blk *b, struct virtq *q, struct virtq_chain *c, uint32_t written)
{
    virtq_push(q, c, written);
    b->pushed |= BIT(q->index);
}

static uint8_t status_of(int rc)
{
    if (rc == 0)
        return VIRTIO_BLK_S_OK;
    return rc == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

/* Is it the host's fault rather than the driver's? */
static bool is_host_error(int rc)
{
    return rc && rc != -EINVAL && rc != -EROFS && rc != -EOPNOTSUPP && rc != -ECANCELED;
}

static void req_done(struct block_req *br, int rc)
{
    static const char *const names[] = {"read", "write", "flush", "discard", "zeroing"};
    struct blk_req *r = container_of(br, struct blk_req, r);
    struct virtio_blk *b = r->b;

    if (is_host_error(rc))
        log_limited(b->v.dev.ctx->log, &b->errors, LOG_WARN, "%s: %s of %llu bytes at %llu: %s",
                    b->v.dev.id, names[br->op], (unsigned long long)br->len,
                    (unsigned long long)br->offset, strerrordesc_np(-rc));
    trace(b->v.dev.ctx->trace, virtio_blk_done, "%s queue=%u %s at=%#llx len=%#llx rc=%d",
          b->v.dev.id, r->q->index, names[br->op], (unsigned long long)br->offset,
          (unsigned long long)br->len, rc);
    *r->status = status_of(rc);
    answer(b, r->q, r->c, br->op == BLOCK_READ ? (uint32_t)br->len + 1 : 1);
    req_free(b, r);
}

/* ---- from chain to block_req ---- */

static int parse_transfer(struct blk_req *r, const struct blk_header *h, bool write)
{
    struct virtq_chain *c = r->c;

    r->r.op = write ? BLOCK_WRITE : BLOCK_READ;
    r->r.iov = write ? c->out : c->in;
    r->r.niov = write ? c->nout : c->nin;
    r->r.len = write ? c->out_len - sizeof(*h) : c->in_len - 1;
    if (h->sector > UINT64_MAX / BLOCK_SECTOR)
        return -EINVAL;
    r->r.offset = h->sector * BLOCK_SECTOR;
    return 0;
}

static int parse_range(struct virtio_blk *b, struct blk_req *r, bool zero)
{
    struct blk_range range;

    r->r.op = zero ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD;
    if (!virtio_has(&b->v, zero ? VIRTIO_BLK_F_WRITE_ZEROES : VIRTIO_BLK_F_DISCARD))
        return -EOPNOTSUPP;
    /* One range, as max_discard_seg says. */
    if (virtq_read(r->c, 0, &range, sizeof(range)) != sizeof(range) ||
        r->c->out_len != sizeof(struct blk_header) + sizeof(range))
        return -EINVAL;
    if (range.flags & ~(zero ? RANGE_UNMAP : 0))
        return -EOPNOTSUPP;
    if (range.sector > UINT64_MAX / BLOCK_SECTOR || range.sectors > BLK_DISCARD_SECTORS)
        return -EINVAL;
    r->r.flags = range.flags & RANGE_UNMAP ? BLOCK_REQ_UNMAP : 0;
    r->r.offset = range.sector * BLOCK_SECTOR;
    r->r.len = (uint64_t)range.sectors * BLOCK_SECTOR;
    return 0;
}

/* 0: r->r is to be submitted; 1: done already; or negative errno. */
static int parse(struct virtio_blk *b, struct blk_req *r, const struct blk_header *h)
{
    switch (h->type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
        return parse_transfer(r, h, h->type == VIRTIO_BLK_T_OUT);
    case VIRTIO_BLK_T_FLUSH:
        r->r.op = BLOCK_FLUSH;
        return 0;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return parse_range(b, r, h->type == VIRTIO_BLK_T_WRITE_ZEROES);
    case VIRTIO_BLK_T_GET_ID:
        if (r->c->in_len != sizeof(b->serial) + 1)
            return -EINVAL;
        virtq_write(r->c, 0, b->serial, sizeof(b->serial));
        return 1;
    }
    return -EOPNOTSUPP;
}

/* True if r is to be submitted; else the chain has been answered, and r is free. */
static bool prepare(struct virtio_blk *b, struct virtq *q, struct virtq_chain *c, struct blk_req *r)
{
    struct blk_header h;
    uint32_t written = 1;
    uint8_t *status;
    int rc;

    if (!c->in_len) {
        /* There is no place to say what is wrong. */
        virtio_fail(&b->v, "a block request without status");
        answer(b, q, c, 0);
        return false;
    }
    status = take_last(c->in, &c->nin);
    if (virtq_read(c, 0, &h, sizeof(h)) != sizeof(h)) {
        rc = -EINVAL;
    } else {
        take_front(&c->out, &c->nout, sizeof(h));
        r->r = (struct block_req){.done = req_done};
        r->b = b;
        r->q = q;
        r->c = c;
        r->status = status;
        rc = parse(b, r, &h);
        if (rc == 0)
            return true;
        if (rc == 1) {
            written = (uint32_t)c->in_len;
            rc = 0;
        }
    }
    *status = status_of(rc);
    answer(b, q, c, written);
    return false;
}

/* Requests that go to the block layer together. */
struct batch {
    struct block_req *reqs[BLK_BATCH];
    unsigned n;
    uint64_t bytes;
};

static void batch_submit(struct virtio_blk *b, struct batch *batch)
{
    block_submit(b->disk, batch->reqs, batch->n);
    batch->n = 0;
    batch->bytes = 0;
}

static void batch_add(struct virtio_blk *b, struct batch *batch, struct blk_req *r)
{
    batch->reqs[batch->n++] = &r->r;
    if (r->r.op == BLOCK_READ || r->r.op == BLOCK_WRITE)
        batch->bytes += r->r.len;
    if (batch->n < BLK_BATCH && batch->bytes < BLK_BATCH_BYTES)
        return;
    batch_submit(b, batch);
    /* The kernel may have copied all of it already: the guest goes on with that while we take more.
     */
    block_poll(b->disk);
    blk_req_notify(b);
}

uint64_t blk_req_take(struct virtio_blk *b, uint64_t queues)
{
    struct batch batch = {.n = 0};
    uint64_t any = 0;

    for (unsigned i = 0; i < b->v.queues; i++) {
        struct virtq *q = &b->v.vq[i];
        struct virtq_chain *c;

        if (!(queues & BIT(i)) || !virtq_ready(q))
            continue;
        virtq_kicks(q, false);
        /* More than the ring holds only comes from a driver that refills it as fast as requests are
         * refused. It must not keep us from noticing that the device is to stop. */
        for (unsigned got = 0; got < BLK_QUEUE_SIZE && virtq_pop(q, &c) > 0; got++) {
            struct blk_req *r = req_new(b);

            any |= BIT(i);
            if (!r) {
                virtio_fail(&b->v, "no memory for a block request");
                answer(b, q, c, 0);
            } else if (prepare(b, q, c, r)) {
                batch_add(b, &batch, r);
            } else {
                req_free(b, r);
            }
        }
    }
    if (batch.n)
        batch_submit(b, &batch);
    return any;
}

bool blk_req_take_now(struct virtio_blk *b, struct virtq *q)
{
    struct virtq_chain *c;

    if (!virtq_ready(q))
        return false;
    virtq_kicks(q, false);
    for (unsigned n = 0; n < BLK_NOW_REQUESTS; n++) {
        struct blk_req *r;

        if (virtq_pop(q, &c) <= 0)
            return virtq_kicks(q, true);
        r = req_new(b);
        if (r && !prepare(b, q, c, r)) {
            req_free(b, r);
        } else if (r && r->r.op == BLOCK_READ && r->r.len <= BLK_NOW_BYTES &&
                   block_read_now(b->disk, &r->r) == 0) {
            req_done(&r->r, 0);
        } else {
            if (r)
                req_free(b, r);
            virtq_unpop(q, c);
            break;
        }
    }
    return true;
}

static bool of_queue(const struct block_req *r, const void *q)
{
    return container_of(r, const struct blk_req, r)->q == q;
}

void blk_req_cancel(struct virtio_blk *b, const struct virtq *q) { block_cancel(b->disk, of_queue, q); }

uint64_t blk_req_notify(struct virtio_blk *b)
{
    uint64_t pushed = b->pushed;

    b->pushed = 0;
    for (uint64_t left = pushed; left; left &= left - 1)
        virtq_notify(&b->v.vq[__builtin_ctzll(left)]);
    return pushed;
}
