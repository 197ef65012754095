/* Reference counts of the clusters of a qcow2 image, and the allocation of free ones. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"

static uint64_t in_block(const struct qcow2 *q, uint64_t cluster)
{
    return cluster & (BIT(q->refblock_bits) - 1);
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *count, struct qcow2_table **t,
                       struct qcow2_waiter *w)
{
    uint64_t i = cluster >> q->refblock_bits;
    int rc;

    *count = 0;
    *t = NULL;
    if (i >= q->reftable_entries || !q->reftable[i])
        return 0;
    rc = qcow2_cache_get(&q->refblocks, (uint32_t)i, q->reftable[i], t, w);
    if (!rc)
        *count = qcow2_refcount_load((*t)->data, in_block(q, cluster), q->h.refcount_order);
    return rc;
}

void qcow2_refcount_set(struct qcow2 *q, struct qcow2_table *t, uint64_t cluster, uint64_t count)
{
    uint64_t i = in_block(q, cluster), bit = i << q->h.refcount_order;
    uint64_t last = bit + BIT(q->h.refcount_order) - 1;

    qcow2_refcount_store(t->data, i, q->h.refcount_order, count);
    qcow2_table_dirty(t, (uint32_t)(bit >> 3), (uint32_t)(last >> 3) + 1);
    if (count == 0)
        q->free_hint = MIN(q->free_hint, cluster);
}

/* Takes note of clusters that are in use from now on; true if they were still a hole. */
static bool take(struct qcow2 *q, uint64_t cluster, uint64_t n)
{
    uint64_t start = cluster << q->h.cluster_bits;
    bool fresh = start >= q->fresh;

    q->fresh = MAX(q->fresh, start + (n << q->h.cluster_bits));
    return fresh;
}

static void reftable_dirty(struct qcow2 *q, uint32_t lo, uint32_t hi)
{
    if (q->reftable_lo == q->reftable_hi) {
        q->reftable_lo = lo;
        q->reftable_hi = hi;
    } else {
        q->reftable_lo = MIN(q->reftable_lo, lo);
        q->reftable_hi = MAX(q->reftable_hi, hi);
    }
}

/* Makes refcount block i, which there is none of, in a free cluster that is yet to be counted. Room
 * in the cache was asked for. */
static int new_block(struct qcow2 *q, uint32_t i, uint64_t cluster)
{
    uint64_t host = cluster << q->h.cluster_bits;
    struct qcow2_table *t;
    int rc;

    if (qcow2_meta_hit(q, host, q->cluster))
        return qcow2_break(q);
    rc = qcow2_meta_add(&q->meta, cluster);
    if (rc)
        return rc;
    rc = qcow2_cache_new(&q->refblocks, i, host, &t);
    if (rc) {
        qcow2_meta_del(&q->meta, cluster);
        return rc;
    }
    q->reftable[i] = host;
    reftable_dirty(q, i, i + 1);
    return 0;
}

/* Counts n clusters from cluster on, whose blocks are in memory, as used once. */
static void count_row(struct qcow2 *q, uint64_t cluster, uint64_t n)
{
    for (uint64_t c = cluster; c < cluster + n; c++)
        qcow2_refcount_set(q, q->refblocks.slot[c >> q->refblock_bits], c, 1);
    take(q, cluster, n);
}

/*
 * Moves the refcount table to where it cannot count yet, with room for half as many entries more:
 * first the blocks that count the new area, each in a cluster of it, then the table.
 */
static int grow_reftable(struct qcow2 *q, struct qcow2_waiter *w)
{
    uint64_t per_cluster = q->cluster / 8, entries = q->reftable_entries;
    uint64_t first = entries << q->refblock_bits, nblocks = 1, clusters, old_clusters;
    uint64_t *table;
    int rc;

    for (;;) {
        uint64_t want = entries + nblocks + MAX(entries / 2, 1);

        clusters = (want + per_cluster - 1) / per_cluster;
        if (nblocks << q->refblock_bits >= nblocks + clusters)
            break;
        nblocks++;
    }
    if (clusters << q->h.cluster_bits > QCOW2_REFTABLE_BYTES_MAX ||
        (first + nblocks + clusters) << q->h.cluster_bits > QCOW2_OFFSET_END)
        return -EFBIG;
    if (qcow2_meta_hit(q, first << q->h.cluster_bits, (nblocks + clusters) << q->h.cluster_bits))
        return qcow2_break(q);
    rc = qcow2_cache_room(&q->refblocks, w); /* the rest may exceed its limit */
    if (rc)
        return rc;
    rc = qcow2_cache_grow(&q->refblocks, (uint32_t)(clusters * per_cluster));
    if (!rc)
        rc = qcow2_meta_add_range(&q->meta, (first + nblocks) << q->h.cluster_bits,
                                  clusters << q->h.cluster_bits);
    table = rc ? NULL : calloc(clusters * per_cluster, sizeof(*table));
    if (!table)
        return -ENOMEM;
    memcpy(table, q->reftable, entries * sizeof(*table));
    free(q->reftable);
    q->reftable = table;
    for (uint64_t i = 0; i < nblocks; i++) {
        struct qcow2_table *t;
        uint64_t cluster = first + i;

        rc = qcow2_meta_add(&q->meta, cluster);
        if (!rc)
            rc = qcow2_cache_new(&q->refblocks, (uint32_t)(entries + i),
                                 cluster << q->h.cluster_bits, &t);
        if (rc)
            return qcow2_break(q); /* half done; nothing of it is in the file */
        q->reftable[entries + i] = cluster << q->h.cluster_bits;
    }
    count_row(q, first, nblocks + clusters);
    old_clusters = q->h.reftable_clusters;
    qcow2_meta_del_range(&q->meta, q->h.reftable_offset);
    qcow2_free_later(q, qcow2_cluster_of(q, q->h.reftable_offset), old_clusters);
    q->reftable_entries = (uint32_t)(clusters * per_cluster);
    q->h.reftable_offset = (first + nblocks) << q->h.cluster_bits;
    q->h.reftable_clusters = (uint32_t)clusters;
    q->reftable_moved = true;
    reftable_dirty(q, 0, q->reftable_entries);
    return 0;
}

/* Makes sure that cluster (number) can be counted: grows the table, makes its block, loads it. */
static int need_block(struct qcow2 *q, uint64_t cluster, struct qcow2_table **t,
                      struct qcow2_waiter *w)
{
    uint64_t i = cluster >> q->refblock_bits;
    int rc;

    *t = NULL;
    if (i >= q->reftable_entries)
        return grow_reftable(q, w);
    if (cluster << q->h.cluster_bits >= QCOW2_OFFSET_END)
        return -EFBIG;
    if (q->reftable[i])
        return qcow2_cache_get(&q->refblocks, (uint32_t)i, q->reftable[i], t, w);
    rc = qcow2_cache_room(&q->refblocks, w);
    /* All that the block counts is free: it goes there itself. */
    if (!rc)
        rc = new_block(q, (uint32_t)i, cluster);
    if (!rc)
        count_row(q, cluster, 1);
    return rc;
}

static uint64_t count_in(const struct qcow2 *q, const struct qcow2_table *t, uint64_t i)
{
    return qcow2_refcount_load(t->data, i, q->h.refcount_order);
}

int qcow2_refcount_alloc(struct qcow2 *q, uint64_t max, uint64_t *host, uint64_t *n, bool *fresh,
                         struct qcow2_waiter *w)
{
    uint64_t entries = BIT(q->refblock_bits);

    for (;;) {
        struct qcow2_table *t;
        uint64_t base, i, end;
        int rc = q->broken ? -EIO : need_block(q, q->free_hint, &t, w);

        if (rc)
            return rc;
        if (!t)
            continue; /* the block was made, maybe in that cluster */
        base = ALIGN_DOWN(q->free_hint, entries);
        i = in_block(q, q->free_hint);
        while (i < entries && count_in(q, t, i))
            i++;
        q->free_hint = base + i;
        if (i == entries)
            continue;
        for (end = i; end < entries && end - i < max && !count_in(q, t, end); end++)
            ;
        *host = (base + i) << q->h.cluster_bits;
        *n = end - i;
        if (*host + (*n << q->h.cluster_bits) > QCOW2_OFFSET_END)
            return -EFBIG;
        /* Metadata that are not counted: the image lies, and writing would destroy it. */
        if (qcow2_meta_hit(q, *host, *n << q->h.cluster_bits))
            return qcow2_break(q);
        for (; i < end; i++)
            qcow2_refcount_set(q, t, base + i, 1);
        q->free_hint = base + end;
        if (fresh)
            *fresh = *host >= q->fresh;
        take(q, qcow2_cluster_of(q, *host), *n);
        return 0;
    }
}

/* A row of clusters to be taken, and the blocks that it needs, which go before it. */
struct row {
    struct qcow2 *q;
    uint64_t start, nblocks, n; /* clusters */
    uint64_t cluster, count;    /* to get */
    struct qcow2_table *t;
};

static int row_get(void *arg, struct qcow2_waiter *w)
{
    struct row *r = arg;

    return qcow2_refcount_get(r->q, r->cluster, &r->count, &r->t, w);
}

static int row_room(void *arg, struct qcow2_waiter *w)
{
    return qcow2_cache_room(&((struct row *)arg)->q->refblocks, w);
}

static int row_grow(void *arg, struct qcow2_waiter *w)
{
    return grow_reftable(((struct row *)arg)->q, w);
}

/* The first cluster after all that the refcount table counts as used. */
static int end_of_use(struct row *r)
{
    struct qcow2 *q = r->q;

    r->start = 0;
    for (uint64_t b = q->reftable_entries; b-- > 0;) {
        int rc;

        r->cluster = b << q->refblock_bits;
        rc = qcow2_until_done(q, row_get, r);
        if (rc)
            return rc;
        for (uint64_t i = r->t ? BIT(q->refblock_bits) : 0; i-- > 0;) {
            if (count_in(q, r->t, i)) {
                r->start = (b << q->refblock_bits) + i + 1;
                return 0;
            }
        }
    }
    return 0;
}

static bool is_missing(const struct qcow2 *q, uint64_t block)
{
    return block >= q->reftable_entries || !q->reftable[block];
}

/* Chooses start and nblocks, and makes the refcount table long enough. */
static int row_plan(struct row *r)
{
    struct qcow2 *q = r->q;

    for (;;) {
        uint64_t last = 0, missing = 0;
        int rc = end_of_use(r);

        if (rc)
            return rc;
        do {
            r->nblocks = missing;
            last = (r->start + r->nblocks + r->n - 1) >> q->refblock_bits;
            missing = 0;
            for (uint64_t b = r->start >> q->refblock_bits; b <= last; b++)
                missing += is_missing(q, b);
        } while (missing > r->nblocks);
        if (last < q->reftable_entries)
            return 0;
        rc = qcow2_until_done(q, row_grow, r);
        if (rc)
            return rc;
    }
}

int qcow2_refcount_alloc_row(struct qcow2 *q, uint64_t n, uint64_t *host)
{
    struct row r = {.q = q, .n = n};
    uint64_t end, at;
    int rc = row_plan(&r);

    if (rc)
        return rc;
    end = r.start + r.nblocks + n;
    if (end << q->h.cluster_bits > QCOW2_OFFSET_END)
        return -EFBIG;
    if (qcow2_meta_hit(q, r.start << q->h.cluster_bits, (end - r.start) << q->h.cluster_bits))
        return qcow2_break(q);
    at = r.start;
    for (uint64_t b = r.start >> q->refblock_bits; b <= (end - 1) >> q->refblock_bits; b++) {
        if (!is_missing(q, b))
            continue;
        rc = qcow2_until_done(q, row_room, &r);
        if (!rc)
            rc = new_block(q, (uint32_t)b, at++);
        if (rc)
            return qcow2_break(q); /* blocks that nothing counts */
    }
    for (r.cluster = r.start; r.cluster < end; r.cluster++) {
        /* Between the blocks and the row there may be a cluster too many. */
        if (r.cluster >= at && r.cluster < r.start + r.nblocks)
            continue;
        rc = qcow2_until_done(q, row_get, &r);
        if (rc)
            return qcow2_break(q);
        qcow2_refcount_set(q, r.t, r.cluster, 1);
    }
    take(q, r.start, end - r.start);
    *host = (r.start + r.nblocks) << q->h.cluster_bits;
    return 0;
}
