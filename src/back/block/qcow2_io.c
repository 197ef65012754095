/* Requests to a qcow2 image. What is mapped goes to the file at once, in as few parts as the file
 * has runs of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"

/* A part of a request, with iovecs of its own. */
struct part {
    struct block_req req;
    struct qcow2_op *op;
    struct iovec iov[];
};

unsigned qcow2_op_niov(const struct qcow2_op *op, uint64_t len)
{
    if (op->req->op == BLOCK_READ || op->req->op == BLOCK_WRITE)
        return op->req->niov;
    return (unsigned)(len / QCOW2_ZEROS_LEN) + 1;
}

unsigned qcow2_op_iov(const struct qcow2_op *op, uint64_t at, uint64_t len, struct iovec *out)
{
    unsigned n = 0;

    if (op->req->op == BLOCK_READ || op->req->op == BLOCK_WRITE)
        return block_iov_slice(op->req->iov, op->req->niov, at, len, out);
    while (len) {
        out[n] = (struct iovec){op->q->zeros, MIN(len, QCOW2_ZEROS_LEN)};
        len -= out[n++].iov_len;
    }
    return n;
}

static void op_unlink(struct qcow2_op *op)
{
    struct qcow2 *q = op->q;

    *(op->older ? &op->older->newer : &q->oldest) = op->newer;
    *(op->newer ? &op->newer->older : &q->newest) = op->older;
}

void qcow2_op_put(struct qcow2_op *op, int rc)
{
    struct qcow2 *q = op->q;
    struct block_req *r = op->req;

    if (rc && !op->rc)
        op->rc = rc;
    if (--op->pending)
        return;
    rc = op->rc;
    op_unlink(op);
    free(op);
    block_aio_complete(q->node.aio, r, rc);
    if (unlikely(q->ready.head))
        qcow2_free_run(q);
}

static void op_part_done(struct block_req *r, int rc)
{
    qcow2_op_put(container_of(r, struct qcow2_op, part), rc);
}

static void part_done(struct block_req *r, int rc)
{
    struct part *p = container_of(r, struct part, req);
    struct qcow2_op *op = p->op;

    free(p);
    qcow2_op_put(op, rc);
}

/* The next len bytes of op as a request of its own, to be sent to `offset` of something else. */
static struct block_req *part_new(struct qcow2_op *op, uint64_t offset, uint64_t len)
{
    struct part *p;
    unsigned niov;

    if (op->pos == 0 && len == op->req->len && op->req->iov) {
        op->part = (struct block_req){.op = op->req->op,
                                      .offset = offset,
                                      .len = len,
                                      .iov = op->req->iov,
                                      .niov = op->req->niov,
                                      .done = op_part_done};
        op->pending++;
        return &op->part;
    }
    niov = qcow2_op_niov(op, len);
    p = malloc(sizeof(*p) + niov * sizeof(p->iov[0]));
    if (!p)
        return NULL;
    p->op = op;
    niov = qcow2_op_iov(op, op->pos, len, p->iov);
    p->req = (struct block_req){.op = op->req->op == BLOCK_READ ? BLOCK_READ : BLOCK_WRITE,
                                .offset = offset,
                                .len = len,
                                .iov = p->iov,
                                .niov = niov,
                                .done = part_done};
    op->pending++;
    return &p->req;
}

static int read_backing(struct qcow2_op *op, uint64_t offset, uint64_t *len)
{
    struct qcow2 *q = op->q;
    struct block_req *p;

    *len = MIN(*len, q->backing->size - offset);
    p = part_new(op, offset, *len);
    if (!p)
        return -ENOMEM;
    block_node_submit(q->backing, p);
    return 0;
}

static void read_zeros(struct qcow2_op *op, uint64_t len)
{
    const struct iovec *iov = op->req->iov;
    uint64_t at = op->pos;

    for (; len; iov++) {
        uint64_t n = at < iov->iov_len ? MIN(iov->iov_len - at, len) : 0;

        if (n)
            memset((uint8_t *)iov->iov_base + at, 0, n);
        at = n ? 0 : at - iov->iov_len;
        len -= n;
    }
}

/* The next part of a read or write: what lies in the image as it is on the disk. */
static int transfer_data(struct qcow2_op *op, const struct qcow2_extent *x)
{
    struct block_req *p = part_new(op, x->c.host, x->len);

    if (!p)
        return -ENOMEM;
    op->pos += x->len;
    block_file_submit(op->q->file, p);
    return 0;
}

static int read_step(struct qcow2_op *op)
{
    struct qcow2 *q = op->q;
    uint64_t offset = op->req->offset + op->pos;
    struct qcow2_extent x;
    int rc = qcow2_map(q, offset, op->req->len - op->pos, &x, &op->wait);

    if (rc)
        return rc;
    switch (x.c.kind) {
    case QCOW2_DATA:
        return transfer_data(op, &x);
    case QCOW2_PACKED:
        rc = qcow2_packed_read(op, &x.c, offset, x.len);
        break;
    case QCOW2_UNALLOCATED:
        if (!qcow2_backing_zero(q, offset)) {
            rc = read_backing(op, offset, &x.len);
            break;
        }
        /* fall through */
    case QCOW2_ZEROS:
        read_zeros(op, x.len);
        break;
    }
    if (!rc)
        op->pos += x.len;
    return rc;
}

int qcow2_op_write(struct qcow2_op *op, uint64_t len)
{
    struct qcow2 *q = op->q;
    uint64_t offset = op->req->offset + op->pos;
    struct qcow2_extent x;
    int rc = qcow2_map(q, offset, len, &x, &op->wait);

    if (rc)
        return rc;
    if (unlikely(q->broken))
        return -EIO;
    if (likely(x.c.kind == QCOW2_DATA && x.c.copied)) {
        if (unlikely(qcow2_meta_hit(q, x.c.host, x.len)))
            return qcow2_break(q);
        return transfer_data(op, &x);
    }
    rc = qcow2_alloc_conflict(q, offset, &len, &op->wait);
    if (!rc)
        rc = qcow2_alloc_write(op, offset, &len);
    if (!rc)
        op->pos += len;
    return rc;
}

static int step(struct qcow2_op *op)
{
    switch (op->req->op) {
    case BLOCK_READ:
        return read_step(op);
    case BLOCK_WRITE:
        return qcow2_op_write(op, op->req->len - op->pos);
    default:
        return qcow2_zero_step(op);
    }
}

/* Works on op until all of it is under way, or something has to be waited for. */
static void op_run(struct qcow2_op *op)
{
    while (!op->rc && op->pos < op->req->len) {
        int rc = step(op);

        if (rc == -EAGAIN)
            return;
        if (rc)
            op->rc = rc;
    }
    qcow2_op_put(op, 0);
}

static void op_resume(struct qcow2_waiter *w, int rc)
{
    struct qcow2_op *op = container_of(w, struct qcow2_op, wait);

    if (rc && !op->rc)
        op->rc = rc;
    op_run(op);
}

static void flushed(struct qcow2_waiter *w, int rc)
{
    qcow2_op_put(container_of(w, struct qcow2_op, wait), rc);
}

static void file_flushed(struct block_req *r, int rc)
{
    struct qcow2_op *op = container_of(r, struct qcow2_op, part);

    if (rc)
        op->q->sync_error = rc; /* see synced() of qcow2_commit.c */
    qcow2_op_put(op, rc);
}

static void flush(struct qcow2_op *op)
{
    struct qcow2 *q = op->q;

    if (q->broken || q->sync_error) {
        block_aio_complete(q->node.aio, &op->part, q->broken ? -EIO : q->sync_error);
    } else if (qcow2_commit_needed(q)) {
        qcow2_commit(q, &op->wait);
    } else {
        op->part = (struct block_req){.op = BLOCK_FLUSH, .done = file_flushed};
        block_file_submit(q->file, &op->part);
    }
}

int qcow2_read_now(struct block_node *n, const struct block_req *r)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    struct block_req part = *r;
    struct qcow2_extent x;

    if (qcow2_map(q, r->offset, r->len, &x, NULL) || x.len < r->len)
        return -EAGAIN;
    switch (x.c.kind) {
    case QCOW2_DATA:
        part.offset = x.c.host;
        return block_file_read_now(q->file, &part);
    case QCOW2_PACKED:
        return -EAGAIN;
    case QCOW2_UNALLOCATED:
        if (!qcow2_backing_zero(q, r->offset))
            return r->len > q->backing->size - r->offset ? -EAGAIN
                                                         : block_node_read_now(q->backing, r);
        /* fall through */
    case QCOW2_ZEROS:
        block_iov_zero(r->iov, r->niov);
        break;
    }
    return 0;
}

void qcow2_submit(struct block_node *n, struct block_req *r)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    struct qcow2_op *op = malloc(sizeof(*op));

    if (!op) {
        block_aio_complete(n->aio, r, -ENOMEM);
        return;
    }
    *op = (struct qcow2_op){.q = q, .req = r, .pending = 1, .seq = ++q->seq, .older = q->newest};
    *(q->newest ? &q->newest->newer : &q->oldest) = op;
    q->newest = op;
    if (r->op == BLOCK_FLUSH) {
        op->wait.resume = flushed;
        op->part.done = op_part_done;
        flush(op);
        return;
    }
    op->wait.resume = op_resume;
    op_run(op);
}
