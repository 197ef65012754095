/* Where the metadata of a qcow2 image lie: guest data must never be written there, whatever the
 * tables of a hostile or damaged image say. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"
#include "back/block/qcow2_snapshot.h"

#define CAP_MIN 64u

static uint32_t slot_of(const struct qcow2_meta *m, uint64_t cluster)
{
    return (uint32_t)(cluster * 0x9e3779b97f4a7c15ull >> 32) & (m->cap - 1);
}

/* The slot that holds cluster, or the empty one where it would go. */
static uint32_t find(const struct qcow2_meta *m, uint64_t cluster)
{
    uint32_t i = slot_of(m, cluster);

    while (m->set[i] && m->set[i] != cluster)
        i = (i + 1) & (m->cap - 1);
    return i;
}

static int grow(struct qcow2_meta *m)
{
    struct qcow2_meta bigger = {.cap = MAX(m->cap * 2, CAP_MIN)};

    bigger.set = calloc(bigger.cap, sizeof(*bigger.set));
    if (!bigger.set)
        return -ENOMEM;
    for (uint32_t i = 0; i < m->cap; i++) {
        if (m->set[i])
            bigger.set[find(&bigger, m->set[i])] = m->set[i];
    }
    free(m->set);
    m->set = bigger.set;
    m->cap = bigger.cap;
    return 0;
}

int qcow2_meta_add(struct qcow2_meta *m, uint64_t cluster)
{
    uint32_t i;
    int rc = m->used + 1 > m->cap / 2 ? grow(m) : 0;

    if (rc)
        return rc;
    i = find(m, cluster);
    if (m->set[i])
        return -EEXIST;
    m->set[i] = cluster;
    m->used++;
    return 0;
}

void qcow2_meta_del(struct qcow2_meta *m, uint64_t cluster)
{
    uint32_t mask = m->cap - 1, hole, i;

    if (!m->cap)
        return;
    hole = find(m, cluster);
    if (!m->set[hole])
        return;
    m->used--;
    /* Entries after the hole that would not be found any more move into it. */
    for (i = (hole + 1) & mask; m->set[i]; i = (i + 1) & mask) {
        if (((i - slot_of(m, m->set[i])) & mask) >= ((i - hole) & mask)) {
            m->set[hole] = m->set[i];
            hole = i;
        }
    }
    m->set[hole] = 0;
}

int qcow2_meta_add_range(struct qcow2_meta *m, uint64_t start, uint64_t len)
{
    struct qcow2_range *r = realloc(m->ranges, (m->nranges + 1) * sizeof(*r));

    if (!r)
        return -ENOMEM;
    m->ranges = r;
    r[m->nranges++] = (struct qcow2_range){start, start + len};
    return 0;
}

void qcow2_meta_del_range(struct qcow2_meta *m, uint64_t start)
{
    for (uint32_t i = 0; i < m->nranges; i++) {
        if (m->ranges[i].start == start) {
            m->ranges[i] = m->ranges[--m->nranges];
            return;
        }
    }
}

void qcow2_meta_fini(struct qcow2_meta *m)
{
    free(m->set);
    free(m->ranges);
    *m = (struct qcow2_meta){0};
}

static bool hit_range(const struct qcow2_meta *m, uint64_t start, uint64_t end)
{
    for (uint32_t i = 0; i < m->nranges; i++) {
        if (start < m->ranges[i].end && end > m->ranges[i].start)
            return true;
    }
    return false;
}

bool qcow2_meta_hit(const struct qcow2 *q, uint64_t host, uint64_t len)
{
    const struct qcow2_meta *m = &q->meta;

    if (hit_range(m, host, host + len))
        return true;
    if (!m->cap)
        return false;
    for (uint64_t c = qcow2_cluster_of(q, host); c <= qcow2_cluster_of(q, host + len - 1); c++) {
        if (m->set[find(m, c)])
            return true;
    }
    return false;
}

static int range_cmp(const void *a, const void *b)
{
    const struct qcow2_range *x = a, *y = b;

    return x->start < y->start ? -1 : x->start > y->start;
}

static int add_table(struct qcow2 *q, const char *what, uint64_t offset, uint64_t size,
                     struct err *e)
{
    int rc;

    if (offset & (q->cluster - 1) || offset >= size)
        return err_set(e, EINVAL, "the offset of %s (0x%llx) is wrong", what,
                       (unsigned long long)offset);
    rc = hit_range(&q->meta, offset, offset + q->cluster)
             ? -EEXIST
             : qcow2_meta_add(&q->meta, qcow2_cluster_of(q, offset));
    if (rc == -EEXIST)
        return err_set(e, EINVAL, "%s at 0x%llx overlaps other metadata", what,
                       (unsigned long long)offset);
    return rc ? err_set(e, ENOMEM, "out of memory") : 0;
}

static int add_snapshot(void *arg, const struct qcow2_snapshot *s)
{
    struct qcow2 *q = arg;

    return qcow2_meta_add_range(&q->meta, s->l1_offset, ALIGN_UP(s->l1_size * 8ull, q->cluster));
}

static int add_ranges(struct qcow2 *q, struct err *e)
{
    const struct qcow2_header *h = &q->h;
    uint64_t table_len = 0;
    int rc = qcow2_meta_add_range(&q->meta, 0, q->cluster);

    if (!rc && h->l1_size)
        rc = qcow2_meta_add_range(&q->meta, h->l1_offset, ALIGN_UP(h->l1_size * 8ull, q->cluster));
    if (!rc)
        rc = qcow2_meta_add_range(&q->meta, h->reftable_offset,
                                  (uint64_t)h->reftable_clusters << h->cluster_bits);
    if (rc)
        return err_set(e, ENOMEM, "out of memory");
    rc = qcow2_snapshot_walk(q->file, h, add_snapshot, q, &table_len, e);
    if (!rc && table_len &&
        qcow2_meta_add_range(&q->meta, h->snapshots_offset, ALIGN_UP(table_len, q->cluster)))
        rc = err_set(e, ENOMEM, "out of memory");
    return rc;
}

int qcow2_meta_load(struct qcow2 *q, struct err *e)
{
    int64_t size = block_file_size(q->file);
    int rc;

    if (size < 0)
        return err_set(e, (int)-size, "cannot tell the file's size");
    rc = add_ranges(q, e);
    if (rc)
        return rc;
    qsort(q->meta.ranges, q->meta.nranges, sizeof(*q->meta.ranges), range_cmp);
    for (uint32_t i = 1; i < q->meta.nranges; i++) {
        if (q->meta.ranges[i].start < q->meta.ranges[i - 1].end)
            return err_set(e, EINVAL, "metadata at 0x%llx overlap other metadata",
                           (unsigned long long)q->meta.ranges[i].start);
    }
    for (uint32_t i = 0; i < q->reftable_entries && !rc; i++) {
        if (q->reftable[i])
            rc = add_table(q, "a refcount block", q->reftable[i], (uint64_t)size, e);
    }
    for (uint32_t i = 0; i < q->h.l1_size && !rc; i++) {
        if (q->l1[i] & QCOW2_OFFSET_MASK)
            rc = add_table(q, "an L2 table", q->l1[i] & QCOW2_OFFSET_MASK, (uint64_t)size, e);
    }
    return rc;
}
