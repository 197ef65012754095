/* From guest clusters to host clusters: L1 and L2 tables. */
#include <errno.h>

#include "back/block/qcow2_impl.h"

uint64_t qcow2_l2_entry(const struct qcow2_table *t, uint32_t i)
{
    return qcow2_be64(t->data + i * 8ull);
}

void qcow2_l2_set(struct qcow2_table *t, uint32_t i, uint64_t entry)
{
    qcow2_put64(t->data + i * 8ull, entry);
    qcow2_table_dirty(t, i * 8, i * 8 + 8);
}

int qcow2_l2_get(struct qcow2 *q, uint64_t offset, struct qcow2_table **t, struct qcow2_waiter *w)
{
    uint32_t i = qcow2_l1_index(q, offset);
    uint64_t host = i < q->h.l1_size ? q->l1[i] & QCOW2_OFFSET_MASK : 0;

    *t = NULL;
    if (!host)
        return 0;
    if (unlikely(host & (q->cluster - 1)))
        return -EIO;
    return qcow2_cache_get(&q->l2, i, host, t, w);
}

static void l1_set(struct qcow2 *q, uint32_t i, uint64_t entry)
{
    q->l1[i] = entry;
    if (q->l1_lo == q->l1_hi) {
        q->l1_lo = i;
        q->l1_hi = i + 1;
    } else {
        q->l1_lo = MIN(q->l1_lo, i);
        q->l1_hi = MAX(q->l1_hi, i + 1);
    }
}

int qcow2_l2_writable(struct qcow2 *q, uint64_t offset, struct qcow2_table **t,
                      struct qcow2_waiter *w)
{
    uint32_t i = qcow2_l1_index(q, offset);
    uint64_t host, n, old = 0;
    int rc;

    if (i >= q->h.l1_size || q->broken)
        return -EIO;
    rc = qcow2_l2_get(q, offset, t, w);
    if (rc || (*t && q->l1[i] & QCOW2_COPIED))
        return rc;
    if (!*t) {
        rc = qcow2_cache_room(&q->l2, w);
        if (rc)
            return rc;
    } else {
        old = (*t)->offset;
    }
    rc = qcow2_refcount_alloc(q, 1, &host, &n, NULL, w);
    if (rc)
        return rc;
    rc = qcow2_meta_add(&q->meta, qcow2_cluster_of(q, host));
    if (!rc && !*t) {
        rc = qcow2_cache_new(&q->l2, i, host, t);
        if (rc)
            qcow2_meta_del(&q->meta, qcow2_cluster_of(q, host));
    }
    if (rc) {
        qcow2_free_now(q, qcow2_cluster_of(q, host), 1);
        return rc;
    }
    if (old) {
        /* A snapshot keeps the old one; its clusters are shared already. */
        (*t)->offset = host;
        qcow2_table_dirty(*t, 0, (uint32_t)q->cluster);
        qcow2_meta_del(&q->meta, qcow2_cluster_of(q, old));
        qcow2_free_later(q, qcow2_cluster_of(q, old), 1);
    }
    l1_set(q, i, host | QCOW2_COPIED);
    return 0;
}

bool qcow2_backing_zero(const struct qcow2 *q, uint64_t offset)
{
    return !q->backing || offset >= q->backing->size;
}

void qcow2_l2_release(struct qcow2 *q, uint64_t entry)
{
    struct qcow2_cluster c;
    uint64_t first, last;

    if (!qcow2_entry_decode(entry, q->h.cluster_bits, q->h.version, &c) || !c.host)
        return;
    first = qcow2_cluster_of(q, c.host);
    last = first;
    if (c.kind == QCOW2_PACKED) {
        last = qcow2_cluster_of(q, c.host + c.len - 1);
        qcow2_packed_forget(q, c.host);
    }
    qcow2_free_later(q, first, last - first + 1);
}

/* Does the run of a go on with b, the cluster n clusters later? */
static bool is_next(const struct qcow2 *q, const struct qcow2_cluster *a,
                    const struct qcow2_cluster *b, uint64_t n)
{
    if (a->kind != b->kind || a->copied != b->copied || a->kind == QCOW2_PACKED)
        return false;
    return a->host ? b->host == a->host + (n << q->h.cluster_bits) : !b->host;
}

int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t len, struct qcow2_extent *x,
              struct qcow2_waiter *w)
{
    uint64_t in_cluster = offset & (q->cluster - 1), n = 1, most;
    uint32_t i = qcow2_l2_index(q, offset);
    struct qcow2_cluster next;
    struct qcow2_table *t;
    int rc = qcow2_l2_get(q, offset, &t, w);

    if (rc)
        return rc;
    most = (BIT(q->l2_bits) - i) << q->h.cluster_bits; /* what the table says something of */
    x->len = MIN(len, most - in_cluster);
    if (!t) {
        x->c = (struct qcow2_cluster){.kind = QCOW2_UNALLOCATED};
        return 0;
    }
    if (!qcow2_entry_decode(qcow2_l2_entry(t, i), q->h.cluster_bits, q->h.version, &x->c))
        return -EIO;
    while ((n << q->h.cluster_bits) - in_cluster < x->len &&
           qcow2_entry_decode(qcow2_l2_entry(t, i + (uint32_t)n), q->h.cluster_bits, q->h.version,
                              &next) &&
           is_next(q, &x->c, &next, n))
        n++;
    x->len = MIN(x->len, (n << q->h.cluster_bits) - in_cluster);
    if (x->c.kind == QCOW2_DATA)
        x->c.host += in_cluster;
    return 0;
}
