/*
 * Writes to clusters of a qcow2 image that have to be allocated first, or copied as a snapshot
 * shares them. New clusters are taken in a row; what the request does not cover of the first and
 * the last is read from where it was and written together with the data. The L2 table changes when
 * the data are written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"

#define HEAD 0
#define TAIL 1

/* A part of a cluster around the data. */
struct edge {
    uint8_t *buf; /* NULL: not to be written, as the file reads as zeros there */
    uint64_t len;
    struct block_req read;
    struct iovec iov;
};

struct qcow2_alloc {
    struct qcow2_alloc *next;
    struct qcow2_op *op;
    struct qcow2_table *l2; /* pinned */
    uint64_t guest, n;      /* first cluster, as an offset; clusters */
    uint64_t host;
    bool in_place;    /* host was preallocated, is not ours to free */
    uint64_t at, len; /* of the data, in the request */
    struct edge edge[2];
    unsigned reads;
    int rc;
    struct block_req write;
    struct iovec *iov;
    struct qcow2_waitlist waiters;
};

int qcow2_alloc_conflict(struct qcow2 *q, uint64_t offset, uint64_t *len, struct qcow2_waiter *w)
{
    uint64_t start = ALIGN_DOWN(offset, q->cluster);

    for (struct qcow2_alloc *a = q->allocs; a; a = a->next) {
        uint64_t end = a->guest + (a->n << q->h.cluster_bits);

        if (a->guest <= start && start < end) {
            qcow2_park(&a->waiters, w);
            return -EAGAIN;
        }
        if (a->guest > start)
            *len = MIN(*len, a->guest - offset);
    }
    return 0;
}

/* Sets the entries of what was written and lets go of what was there. */
static void link_clusters(struct qcow2_alloc *a)
{
    struct qcow2 *q = a->op->q;
    uint32_t first = qcow2_l2_index(q, a->guest);

    for (uint64_t i = 0; i < a->n; i++) {
        uint64_t old = qcow2_l2_entry(a->l2, first + (uint32_t)i);

        qcow2_l2_set(a->l2, first + (uint32_t)i,
                     (a->host + (i << q->h.cluster_bits)) | QCOW2_COPIED);
        if (!a->in_place)
            qcow2_l2_release(q, old);
    }
}

static void alloc_finish(struct qcow2_alloc *a)
{
    struct qcow2_op *op = a->op;
    struct qcow2 *q = op->q;
    struct qcow2_waitlist waiters = a->waiters;
    struct qcow2_alloc **p = &q->allocs;
    int rc = a->rc;

    while (*p != a)
        p = &(*p)->next;
    *p = a->next;
    if (!rc)
        link_clusters(a);
    else if (!a->in_place)
        qcow2_free_now(q, qcow2_cluster_of(q, a->host), a->n);
    qcow2_table_unpin(a->l2);
    free(a->edge[HEAD].buf);
    free(a->edge[TAIL].buf);
    free(a->iov);
    free(a);
    /* Those who waited look for themselves what became of the clusters. */
    qcow2_resume(&waiters, 0);
    qcow2_op_put(op, rc);
}

static void alloc_written(struct block_req *r, int rc)
{
    struct qcow2_alloc *a = container_of(r, struct qcow2_alloc, write);

    a->rc = rc;
    alloc_finish(a);
}

static void alloc_submit(struct qcow2_alloc *a)
{
    struct qcow2 *q = a->op->q;
    uint64_t offset = a->host + (a->edge[HEAD].buf ? 0 : a->edge[HEAD].len);
    unsigned n = 0;

    if (a->edge[HEAD].buf)
        a->iov[n++] = (struct iovec){a->edge[HEAD].buf, a->edge[HEAD].len};
    n += qcow2_op_iov(a->op, a->at, a->len, a->iov + n);
    if (a->edge[TAIL].buf)
        a->iov[n++] = (struct iovec){a->edge[TAIL].buf, a->edge[TAIL].len};
    a->write = (struct block_req){.op = BLOCK_WRITE,
                                  .offset = offset,
                                  .iov = a->iov,
                                  .niov = n,
                                  .len = block_iov_len(a->iov, n),
                                  .done = alloc_written};
    block_file_submit(q->file, &a->write);
}

static void edge_done(struct qcow2_alloc *a, int rc)
{
    if (rc && !a->rc)
        a->rc = rc;
    if (--a->reads)
        return;
    if (a->rc)
        alloc_finish(a);
    else
        alloc_submit(a);
}

static void head_read(struct block_req *r, int rc)
{
    edge_done(container_of(r, struct qcow2_alloc, edge[HEAD].read), rc);
}

static void tail_read(struct block_req *r, int rc)
{
    edge_done(container_of(r, struct qcow2_alloc, edge[TAIL].read), rc);
}

/* Does the cluster at offset, whose entry this is, read as zeros from offset on? */
static bool reads_zero(const struct qcow2 *q, uint64_t entry, uint64_t offset)
{
    struct qcow2_cluster c;

    if (!qcow2_entry_decode(entry, q->h.cluster_bits, q->h.version, &c))
        return false;
    return c.kind == QCOW2_ZEROS || (c.kind == QCOW2_UNALLOCATED && qcow2_backing_zero(q, offset));
}

/*
 * Prepares len bytes at guest offset around the data: nothing if they are zeros and the file is a
 * hole there, a buffer of zeros if they are zeros, else a request for what they are now. What lies
 * beyond the disk's end is zeros.
 */
static int edge_init(struct qcow2_alloc *a, int which, uint64_t offset, uint64_t len, bool fresh)
{
    struct qcow2 *q = a->op->q;
    struct edge *x = &a->edge[which];
    bool zero = offset >= q->node.size ||
                reads_zero(q, qcow2_l2_entry(a->l2, qcow2_l2_index(q, offset)), offset);
    uint64_t there = zero ? 0 : MIN(len, q->node.size - offset);

    x->len = len;
    if (!len || (zero && fresh))
        return 0;
    x->buf = aligned_alloc(PAGE_SIZE, ALIGN_UP(len, PAGE_SIZE));
    if (!x->buf)
        return -ENOMEM;
    memset(x->buf + there, 0, len - there);
    if (there) {
        x->iov = (struct iovec){x->buf, there};
        x->read = (struct block_req){.op = BLOCK_READ,
                                     .offset = offset,
                                     .len = there,
                                     .iov = &x->iov,
                                     .niov = 1,
                                     .done = which == HEAD ? head_read : tail_read};
        a->reads++;
    }
    return 0;
}

/* How many clusters from entry i on, at most max, can be written as one: all to be allocated, or
 * all preallocated in a row. */
static uint64_t run_length(const struct qcow2 *q, const struct qcow2_table *t, uint32_t i,
                           uint64_t max, struct qcow2_cluster *first)
{
    uint64_t n = 0;
    struct qcow2_cluster c;

    for (; n < max && i + n < BIT(q->l2_bits); n++) {
        if (!qcow2_entry_decode(qcow2_l2_entry(t, i + (uint32_t)n), q->h.cluster_bits, q->h.version,
                                &c))
            break;
        if (n == 0)
            *first = c;
        else if (c.copied != first->copied ||
                 (c.copied &&
                  (c.kind != first->kind || c.host != first->host + (n << q->h.cluster_bits))))
            break;
    }
    return n;
}

static int find_clusters(struct qcow2_alloc *a, uint64_t offset, uint64_t len, bool *fresh,
                         struct qcow2_waiter *w)
{
    struct qcow2 *q = a->op->q;
    struct qcow2_cluster c = {.kind = QCOW2_UNALLOCATED};
    uint64_t want;
    int rc = qcow2_l2_writable(q, offset, &a->l2, w);

    if (rc)
        return rc;
    a->guest = ALIGN_DOWN(offset, q->cluster);
    want = qcow2_cluster_of(q, offset + len - 1) - qcow2_cluster_of(q, offset) + 1;
    a->n = run_length(q, a->l2, qcow2_l2_index(q, offset), want, &c);
    if (!a->n)
        return -EIO;
    if (c.copied) {
        a->host = c.host;
        a->in_place = true;
        *fresh = false;
        return qcow2_meta_hit(q, c.host, a->n << q->h.cluster_bits) ? qcow2_break(q) : 0;
    }
    return qcow2_refcount_alloc(q, a->n, &a->host, &a->n, fresh, w);
}

int qcow2_alloc_write(struct qcow2_op *op, uint64_t offset, uint64_t *len)
{
    struct qcow2 *q = op->q;
    struct qcow2_alloc *a = calloc(1, sizeof(*a));
    uint64_t end;
    bool fresh;
    int rc;

    if (!a)
        return -ENOMEM;
    a->op = op;
    rc = find_clusters(a, offset, *len, &fresh, &op->wait);
    if (rc) {
        free(a);
        return rc;
    }
    end = a->guest + (a->n << q->h.cluster_bits);
    *len = MIN(*len, end - offset);
    a->at = op->pos;
    a->len = *len;
    a->next = q->allocs;
    q->allocs = a;
    qcow2_table_pin(a->l2);
    op->pending++;

    a->iov = calloc(qcow2_op_niov(op, *len) + 2, sizeof(*a->iov));
    rc = a->iov ? edge_init(a, HEAD, a->guest, offset - a->guest, fresh) : -ENOMEM;
    if (!rc)
        rc = edge_init(a, TAIL, offset + *len, end - offset - *len, fresh);
    if (rc) {
        a->rc = rc;
        alloc_finish(a);
        return 0;
    }
    if (!a->reads) {
        alloc_submit(a);
        return 0;
    }
    /* They never end in here, so that a lives until both are submitted. */
    for (int i = HEAD; i <= TAIL; i++) {
        if (a->edge[i].read.done)
            qcow2_submit(&q->node, &a->edge[i].read);
    }
    return 0;
}
