/* Changes of a qcow2 disk's size. Each step leaves a valid image in the file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"
#include "back/block/qcow2_snapshot.h"

static int fail(struct err *e, int rc, const char *what)
{
    return err_set(e, -rc, "cannot %s: %s", what, strerrordesc_np(-rc));
}

/* A snapshot that does not say its disk's size would change with the disk. */
static int check_snapshot(void *arg, const struct qcow2_snapshot *s)
{
    return s->disk_size ? 0
                        : err_set(arg, EOPNOTSUPP,
                                  "snapshot '%s' prevents it: it does not "
                                  "record its disk's size",
                                  s->name);
}

/* A larger L1 table at another place. */
static int move_l1(struct qcow2 *q, uint64_t entries, struct err *e)
{
    uint64_t clusters = ALIGN_UP(entries * 8, q->cluster) >> q->h.cluster_bits, host;
    uint64_t old = q->h.l1_offset, old_len = ALIGN_UP(q->h.l1_size * 8ull, q->cluster);
    uint32_t old_entries = q->h.l1_size;
    uint64_t *l1 = calloc(entries, 8);
    uint8_t *buf = calloc(clusters, q->cluster), field[12];
    int rc = l1 && buf ? qcow2_cache_grow(&q->l2, (uint32_t)entries) : -ENOMEM;

    if (!rc)
        rc = qcow2_refcount_alloc_row(q, clusters, &host);
    if (!rc)
        rc = qcow2_meta_add_range(&q->meta, host, clusters << q->h.cluster_bits);
    if (!rc)
        rc = qcow2_settle(q);
    if (rc)
        goto out;
    memcpy(l1, q->l1, old_entries * 8ull);
    for (uint32_t i = 0; i < old_entries; i++)
        qcow2_put64(buf + i * 8ull, l1[i]);
    qcow2_put32(field, (uint32_t)entries);
    qcow2_put64(field + 4, host);
    rc = block_file_write(q->file, host, buf, clusters << q->h.cluster_bits);
    if (!rc)
        rc = block_file_flush(q->file);
    if (!rc)
        rc = block_file_write(q->file, QCOW2_OFF_L1_SIZE, field, sizeof(field));
    if (!rc)
        rc = block_file_flush(q->file);
    if (rc) {
        /* Either table may be in force now; nothing must be changed any more. */
        q->broken = true;
        goto out;
    }
    free(q->l1);
    q->l1 = l1;
    l1 = NULL;
    q->h.l1_size = (uint32_t)entries;
    q->h.l1_offset = host;
    if (old_len) {
        qcow2_meta_del_range(&q->meta, old);
        qcow2_free_later(q, qcow2_cluster_of(q, old), old_len >> q->h.cluster_bits);
    }
out:
    free(l1);
    free(buf);
    return rc ? fail(e, rc, "move the L1 table") : 0;
}

struct zeroing {
    struct block_req req;
    bool done;
    int rc;
};

static void zeroed(struct block_req *r, int rc)
{
    struct zeroing *z = container_of(r, struct zeroing, req);

    z->done = true;
    z->rc = rc;
}

static int zero(struct qcow2 *q, enum block_op op, uint64_t start, uint64_t end)
{
    struct zeroing z = {.req = {.op = op,
                                .flags = BLOCK_REQ_UNMAP,
                                .offset = start,
                                .len = end - start,
                                .done = zeroed}};

    if (start >= end)
        return 0;
    qcow2_submit(&q->node, &z.req);
    qcow2_pump(q);
    while (!z.done) {
        /* It has ended, and waits to be told so. */
        block_aio_poll(q->node.aio);
    }
    return z.rc ? z.rc : qcow2_settle(q);
}

static int write_size(struct qcow2 *q, uint64_t size)
{
    uint8_t field[8];
    int rc;

    qcow2_put64(field, size);
    rc = block_file_write(q->file, QCOW2_OFF_SIZE, field, sizeof(field));
    if (!rc)
        rc = block_file_flush(q->file);
    if (!rc)
        q->h.size = size;
    return rc;
}

int qcow2_resize(struct block_node *n, uint64_t size, struct err *e)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    uint64_t old = n->size, entries = qcow2_header_l1_entries(size, q->h.cluster_bits);
    int rc;

    if (n->ro)
        return err_set(e, EROFS, "it is open for reading only");
    if (size > INT64_MAX || entries > QCOW2_L1_ENTRIES_MAX)
        return err_set(e, EFBIG, "that is too large for clusters of %llu bytes",
                       (unsigned long long)q->cluster);
    rc = qcow2_snapshot_walk(q->file, &q->h, check_snapshot, e, NULL, e);
    if (rc)
        return rc;
    rc = qcow2_settle(q);
    if (rc)
        return fail(e, rc, "write its tables");
    if (size < old) {
        /* Clusters that lie beyond the new end altogether; that within the last one stays. */
        rc = zero(q, BLOCK_DISCARD, ALIGN_UP(size, q->cluster), old);
        if (!rc)
            rc = write_size(q, size);
        if (!rc)
            n->size = size;
        return rc ? fail(e, rc, "shrink the disk") : 0;
    }
    if (entries > q->h.l1_size) {
        rc = move_l1(q, entries, e);
        if (rc)
            return rc;
    }
    /* What becomes visible may be the rest of a cluster, what an earlier shrinking left, or belong
     * to a larger backing file. */
    n->size = size;
    rc = zero(q, BLOCK_WRITE_ZEROES, old, size);
    if (!rc)
        rc = write_size(q, size);
    if (rc) {
        n->size = old;
        return fail(e, rc, "grow the disk");
    }
    return 0;
}
