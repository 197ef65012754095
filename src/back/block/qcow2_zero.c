/* Discarding and zeroing in a qcow2 image: whole clusters change in their L2 table alone. */
#include <errno.h>

#include "back/block/qcow2_impl.h"

/* What an entry is to become; the same if nothing is to be done. */
static uint64_t new_entry(const struct qcow2 *q, const struct qcow2_op *op, uint64_t offset,
                          uint64_t old, const struct qcow2_cluster *c)
{
    bool unmap = op->req->op == BLOCK_DISCARD || op->req->flags & BLOCK_REQ_UNMAP;
    /* No entry at all reads as zeros if nothing is behind. */
    uint64_t zero = qcow2_backing_zero(q, offset) ? 0 : QCOW2_ZERO;

    switch (c->kind) {
    case QCOW2_UNALLOCATED:
        return zero;
    case QCOW2_ZEROS:
        return unmap && c->host ? QCOW2_ZERO : old;
    case QCOW2_DATA:
        if (c->copied && !unmap && q->h.version >= 3)
            return c->host | QCOW2_COPIED | QCOW2_ZERO;
        return zero;
    case QCOW2_PACKED:
        break;
    }
    return zero;
}

/* Changes n clusters from guest offset on, whose table is t; with dry it only looks. Returns 1 if
 * there is anything to change, 0 if not. */
static int change(struct qcow2_op *op, struct qcow2_table *t, uint64_t offset, uint64_t n, bool dry)
{
    struct qcow2 *q = op->q;
    uint32_t i = qcow2_l2_index(q, offset);

    for (uint64_t k = 0; k < n; k++) {
        uint64_t at = offset + (k << q->h.cluster_bits);
        uint64_t old = t ? qcow2_l2_entry(t, i + (uint32_t)k) : 0, new;
        struct qcow2_cluster c;

        if (!qcow2_entry_decode(old, q->h.cluster_bits, q->h.version, &c))
            return -EIO;
        new = new_entry(q, op, at, old, &c);
        if (new == old)
            continue;
        if (dry)
            return 1;
        qcow2_l2_set(t, i + (uint32_t)k, new);
        if (!(new &QCOW2_OFFSET_MASK))
            qcow2_l2_release(q, old);
    }
    return 0;
}

/* A part of a cluster: zeros are written there unless it reads as zeros already. */
static int part_step(struct qcow2_op *op, uint64_t offset, uint64_t len)
{
    struct qcow2_extent x;
    int rc;

    if (op->req->op == BLOCK_DISCARD) {
        op->pos += len;
        return 0;
    }
    rc = qcow2_map(op->q, offset, len, &x, &op->wait);
    if (rc)
        return rc;
    if (x.c.kind == QCOW2_ZEROS ||
        (x.c.kind == QCOW2_UNALLOCATED && qcow2_backing_zero(op->q, offset))) {
        op->pos += x.len;
        return 0;
    }
    return qcow2_op_write(op, len);
}

int qcow2_zero_step(struct qcow2_op *op)
{
    struct qcow2 *q = op->q;
    uint64_t offset = op->req->offset + op->pos, len = op->req->len - op->pos, n;
    uint64_t in_cluster = offset & (q->cluster - 1);
    bool to_end = offset + len == q->node.size;
    struct qcow2_table *t;
    int rc;

    if (in_cluster || (len < q->cluster && !to_end))
        return part_step(op, offset, MIN(len, q->cluster - in_cluster));
    n = len >> q->h.cluster_bits;
    if (to_end && len & (q->cluster - 1))
        n++;
    n = MIN(n, BIT(q->l2_bits) - qcow2_l2_index(q, offset));
    len = MIN(len, n << q->h.cluster_bits);
    if (q->h.version < 3 && !qcow2_backing_zero(q, offset)) {
        /* Version 2 cannot say that a cluster hides what is behind. */
        if (op->req->op == BLOCK_WRITE_ZEROES)
            return qcow2_op_write(op, len);
        op->pos += len;
        return 0;
    }
    if (q->broken)
        return -EIO;
    rc = qcow2_alloc_conflict(q, offset, &len, &op->wait);
    if (rc)
        return rc;
    n = MIN(n, (len + q->cluster - 1) >> q->h.cluster_bits);
    rc = qcow2_l2_get(q, offset, &t, &op->wait);
    if (!rc && (t || !qcow2_backing_zero(q, offset)))
        rc = change(op, t, offset, n, true);
    if (rc == 1) {
        rc = qcow2_l2_writable(q, offset, &t, &op->wait);
        if (!rc)
            rc = change(op, t, offset, n, false);
    }
    if (!rc)
        op->pos += len;
    return rc;
}
