#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2.h"
#include "back/block/qcow2_impl.h"

#define REFCOUNT_ORDER 4u /* 16 bits */

/* Where things lie in a new image: header, refcount table, refcount blocks, L1 table. */
struct layout {
    uint64_t cluster;
    uint64_t reftable, blocks, l1; /* clusters of each */
};

static uint64_t clusters_of(uint64_t bytes, uint64_t cluster)
{
    return (bytes + cluster - 1) / cluster;
}

static void make_layout(struct layout *l, uint32_t cluster_bits, uint64_t l1_entries)
{
    uint64_t per_block, total;

    *l = (struct layout){.cluster = BIT(cluster_bits), .reftable = 1, .blocks = 1};
    l->l1 = clusters_of(l1_entries * 8, l->cluster);
    per_block = l->cluster * 8 >> REFCOUNT_ORDER;
    /* Blocks count themselves, too. */
    for (;;) {
        uint64_t blocks, reftable;

        total = 1 + l->reftable + l->blocks + l->l1;
        blocks = (total + per_block - 1) / per_block;
        reftable = clusters_of(blocks * 8, l->cluster);
        if (blocks <= l->blocks && reftable <= l->reftable)
            return;
        l->blocks = MAX(blocks, l->blocks);
        l->reftable = MAX(reftable, l->reftable);
    }
}

static int write_tables(struct block_file *f, const struct layout *l)
{
    uint64_t total = 1 + l->reftable + l->blocks + l->l1, per_block;
    uint8_t *table = calloc(l->reftable, l->cluster), *blocks = calloc(l->blocks, l->cluster);
    uint8_t *l1 = calloc(MAX(l->l1, 1), l->cluster);
    int rc = table && blocks && l1 ? 0 : -ENOMEM;

    per_block = l->cluster * 8 >> REFCOUNT_ORDER;
    if (!rc) {
        for (uint64_t i = 0; i < l->blocks; i++)
            qcow2_put64(table + i * 8, (1 + l->reftable + i) * l->cluster);
        for (uint64_t c = 0; c < total; c++)
            qcow2_refcount_store(blocks + c / per_block * l->cluster, c % per_block, REFCOUNT_ORDER,
                                 1);
        rc = block_file_write(f, l->cluster, table, l->reftable * l->cluster);
    }
    if (!rc)
        rc = block_file_write(f, (1 + l->reftable) * l->cluster, blocks, l->blocks * l->cluster);
    if (!rc && l->l1)
        rc =
            block_file_write(f, (1 + l->reftable + l->blocks) * l->cluster, l1, l->l1 * l->cluster);
    free(table);
    free(blocks);
    free(l1);
    return rc;
}

static int check_options(const struct qcow2_create_options *o, uint32_t cluster_bits, struct err *e)
{
    if (cluster_bits < QCOW2_CLUSTER_BITS_MIN || cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return err_set(e, EINVAL, "the cluster size must be a power of two from 512 to 2M");
    if (o->size % BLOCK_SECTOR)
        return err_set(e, EINVAL, "the size must be a multiple of %u", BLOCK_SECTOR);
    if (o->size > INT64_MAX ||
        qcow2_header_l1_entries(o->size, cluster_bits) > QCOW2_L1_ENTRIES_MAX)
        return err_set(e, EFBIG, "the size is too large for clusters of %u bytes",
                       1u << cluster_bits);
    if (o->backing && o->preallocation != QCOW2_PREALLOC_OFF)
        return err_set(e, EINVAL, "preallocation would hide the backing file");
    if (o->backing && strlen(o->backing) > QCOW2_BACKING_MAX)
        return err_set(e, EINVAL, "the backing file's name is too long");
    if (o->backing && !o->backing_format)
        return err_set(e, EINVAL, "the backing file's format is not given");
    return 0;
}

static int write_image(struct block_file *f, const struct qcow2_create_options *o,
                       uint32_t cluster_bits, struct err *e)
{
    struct layout l;
    struct qcow2_header h = {
        .version = 3,
        .cluster_bits = cluster_bits,
        .size = o->size,
        .l1_size = (uint32_t)qcow2_header_l1_entries(o->size, cluster_bits),
        .refcount_order = REFCOUNT_ORDER,
        .compatible = o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0,
        .incompatible = o->compression == QCOW2_ZLIB ? 0 : QCOW2_INCOMPAT_COMPRESSION,
        .compression = o->compression,
    };
    uint8_t *buf = malloc(1u << cluster_bits);
    int rc;

    if (!buf)
        return err_set(e, ENOMEM, "out of memory");
    make_layout(&l, cluster_bits, h.l1_size);
    h.reftable_offset = l.cluster;
    h.reftable_clusters = (uint32_t)l.reftable;
    h.l1_offset = l.l1 ? (1 + l.reftable + l.blocks) * l.cluster : 0;
    if (o->backing) {
        snprintf(h.backing, sizeof(h.backing), "%s", o->backing);
        snprintf(h.backing_format, sizeof(h.backing_format), "%s", o->backing_format);
    }
    rc = qcow2_header_build(&h, buf, e);
    if (!rc) {
        rc = write_tables(f, &l);
        if (!rc)
            rc = block_file_write(f, 0, buf, l.cluster);
        if (!rc)
            rc = block_file_flush(f);
        if (rc)
            err_set(e, -rc, "cannot write it: %s", strerrordesc_np(-rc));
    }
    free(buf);
    return rc;
}

int qcow2_create(struct block_aio *aio, const char *path, const struct qcow2_create_options *o,
                 struct err *e)
{
    uint32_t cluster_bits = o->cluster_bits ? o->cluster_bits : QCOW2_CLUSTER_BITS_DEFAULT;
    struct block_file_options fo = {.create = true};
    struct block_node_options no = {.format = "qcow2"};
    struct block_node *n;
    struct block_file *f;
    int rc = check_options(o, cluster_bits, e), rc2;

    if (!rc)
        rc = block_file_open(&f, aio, path, &fo, e);
    if (rc)
        return rc;
    rc = write_image(f, o, cluster_bits, e);
    if (rc || o->preallocation == QCOW2_PREALLOC_OFF) {
        block_file_close(f);
        return rc;
    }
    rc = qcow2_ops.open(&n, f, &no, e);
    if (rc) {
        block_file_close(f);
        return rc;
    }
    rc = qcow2_preallocate(n, o->preallocation == QCOW2_PREALLOC_FALLOC, e);
    rc2 = block_node_close(n);
    if (!rc && rc2)
        rc = err_set(e, -rc2, "cannot write its tables: %s", strerrordesc_np(-rc2));
    return rc;
}

struct prealloc {
    struct qcow2 *q;
    uint64_t offset, end; /* in the disk */
    bool reserve;
};

/* One run of clusters. */
static int prealloc_step(void *arg, struct qcow2_waiter *w)
{
    struct prealloc *p = arg;
    struct qcow2 *q = p->q;
    uint32_t i = qcow2_l2_index(q, p->offset);
    uint64_t want =
        MIN(BIT(q->l2_bits) - i, (p->end - p->offset + q->cluster - 1) >> q->h.cluster_bits);
    uint64_t host, n;
    struct qcow2_table *t;
    bool fresh;
    int rc = qcow2_l2_writable(q, p->offset, &t, w);

    if (!rc)
        rc = qcow2_refcount_alloc(q, want, &host, &n, &fresh, w);
    if (rc)
        return rc;
    if (p->reserve)
        rc = block_file_zero(q->file, host, n << q->h.cluster_bits, false);
    if (rc)
        return rc;
    /* Clusters that are no holes may hold anything. */
    for (uint64_t k = 0; k < n; k++)
        qcow2_l2_set(t, i + (uint32_t)k,
                     (host + (k << q->h.cluster_bits)) | QCOW2_COPIED |
                         (fresh || p->reserve ? 0 : QCOW2_ZERO));
    p->offset += n << q->h.cluster_bits;
    return 0;
}

int qcow2_preallocate(struct block_node *n, bool reserve, struct err *e)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    struct prealloc p = {.q = q, .end = n->size, .reserve = reserve};
    int64_t size;
    int rc = 0;

    while (!rc && p.offset < p.end)
        rc = qcow2_until_done(q, prealloc_step, &p);
    if (!rc)
        rc = qcow2_settle(q);
    if (!rc && !block_file_info(q->file)->is_blockdev) {
        size = block_file_size(q->file);
        rc = size < 0                    ? (int)size
             : (uint64_t)size < q->fresh ? block_file_truncate(q->file, q->fresh)
                                         : 0;
    }
    return rc ? err_set(e, -rc, "cannot preallocate: %s", strerrordesc_np(-rc)) : 0;
}
