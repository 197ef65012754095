/* Compressed clusters of a qcow2 image. They are read and unpacked by a thread of the pool, one at
 * a time per cluster; the last few stay unpacked, as guests read them in small pieces. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2.h"
#include "back/block/qcow2_codec.h"
#include "back/block/qcow2_impl.h"

struct qcow2_packed_read {
    struct block_work work;
    struct qcow2_packed_read *next;
    struct qcow2 *q;
    struct qcow2_op *op;
    uint64_t host, gen;
    uint32_t packed_len;
    uint64_t at, from, len; /* of op's data; in the cluster */
    uint8_t *data;
    int rc;
    struct qcow2_waitlist waiters;
};

static void copy_out(struct qcow2_op *op, const uint8_t *cluster, uint64_t at, uint64_t from,
                     uint64_t len)
{
    block_iov_write(op->req->iov, op->req->niov, at, cluster + from, len);
}

static void unpack(struct block_work *w)
{
    struct qcow2_packed_read *p = container_of(w, struct qcow2_packed_read, work);
    uint8_t *packed = malloc(p->packed_len);

    p->rc = packed ? block_file_read(p->q->file, p->host, packed, p->packed_len) : -ENOMEM;
    if (!p->rc)
        p->rc =
            qcow2_codec_unpack(p->q->h.compression, packed, p->packed_len, p->data, p->q->cluster);
    free(packed);
}

static void unpacked(struct block_work *w)
{
    struct qcow2_packed_read *p = container_of(w, struct qcow2_packed_read, work);
    struct qcow2 *q = p->q;
    struct qcow2_op *op = p->op;
    struct qcow2_packed_read **link = &q->packed_reads;
    struct qcow2_waitlist waiters = p->waiters;
    int rc = p->rc;

    while (*link != p)
        link = &(*link)->next;
    *link = p->next;
    if (!rc)
        copy_out(op, p->data, p->at, p->from, p->len);
    if (!rc && p->gen == q->packed_gen) {
        struct qcow2_packed_entry *x = &q->packed[q->packed_next++ % QCOW2_PACKED_CACHE];

        free(x->data);
        *x = (struct qcow2_packed_entry){p->host, p->data};
    } else {
        free(p->data);
    }
    free(p);
    qcow2_resume(&waiters, rc);
    qcow2_op_put(op, rc);
}

int qcow2_packed_read(struct qcow2_op *op, const struct qcow2_cluster *c, uint64_t offset,
                      uint64_t len)
{
    struct qcow2 *q = op->q;
    struct qcow2_packed_read *p;

    for (unsigned i = 0; i < QCOW2_PACKED_CACHE; i++) {
        if (q->packed[i].host == c->host) {
            copy_out(op, q->packed[i].data, op->pos, offset & (q->cluster - 1), len);
            return 0;
        }
    }
    for (p = q->packed_reads; p; p = p->next) {
        if (p->host == c->host) {
            qcow2_park(&p->waiters, &op->wait);
            return -EAGAIN;
        }
    }
    p = calloc(1, sizeof(*p));
    if (p)
        p->data = malloc(q->cluster);
    if (!p || !p->data) {
        free(p);
        return -ENOMEM;
    }
    p->work = (struct block_work){.run = unpack, .done = unpacked};
    p->q = q;
    p->op = op;
    p->host = c->host;
    p->packed_len = c->len;
    p->gen = q->packed_gen;
    p->at = op->pos;
    p->from = offset & (q->cluster - 1);
    p->len = len;
    p->next = q->packed_reads;
    q->packed_reads = p;
    op->pending++;
    block_aio_work(q->node.aio, &p->work);
    return 0;
}

void qcow2_packed_forget(struct qcow2 *q, uint64_t host)
{
    q->packed_gen++;
    q->packed_room = 0; /* that cluster may be on its way to other uses */
    for (unsigned i = 0; i < QCOW2_PACKED_CACHE; i++) {
        if (q->packed[i].host == host)
            q->packed[i].host = 0;
    }
}

void qcow2_packed_fini(struct qcow2 *q)
{
    for (unsigned i = 0; i < QCOW2_PACKED_CACHE; i++)
        free(q->packed[i].data);
}

struct packing {
    struct qcow2 *q;
    uint64_t offset, host, n;
    struct qcow2_table *t;
};

static int get_table(void *arg, struct qcow2_waiter *w)
{
    struct packing *p = arg;

    return qcow2_l2_writable(p->q, p->offset, &p->t, w);
}

static int get_cluster(void *arg, struct qcow2_waiter *w)
{
    struct packing *p = arg;

    return qcow2_refcount_alloc(p->q, 1, &p->host, &p->n, NULL, w);
}

/* One reference more to the cluster at host that the last packed one began. */
static int share_cluster(void *arg, struct qcow2_waiter *w)
{
    struct packing *p = arg;
    struct qcow2 *q = p->q;
    uint64_t cluster = qcow2_cluster_of(q, p->host), count;
    struct qcow2_table *t;
    int rc = qcow2_refcount_get(q, cluster, &count, &t, w);

    if (rc)
        return rc;
    if (!t || count == 0)
        return qcow2_break(q);
    if (count >= qcow2_refcount_limit(q->h.refcount_order))
        return -ENOSPC;
    qcow2_refcount_set(q, t, cluster, count + 1);
    return 0;
}

/* Finds room for len bytes after the last packed cluster, or at the start of a new one. */
static int find_room(struct packing *p, uint64_t len)
{
    struct qcow2 *q = p->q;
    int rc;

    if (len <= q->packed_room) {
        p->host = q->packed_end;
        rc = qcow2_until_done(q, share_cluster, p);
        if (rc != -ENOSPC)
            return rc;
    }
    rc = qcow2_until_done(q, get_cluster, p);
    if (!rc) {
        q->packed_end = p->host;
        q->packed_room = q->cluster;
    }
    return rc;
}

int qcow2_write_packed(struct block_node *n, uint64_t offset, const void *data)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    struct packing p = {.q = q, .offset = offset};
    unsigned x = 62 - (q->h.cluster_bits - 8);
    uint8_t *buf = calloc(1, q->cluster + QCOW2_SECTOR);
    int64_t len;
    int rc;

    if (!buf)
        return -ENOMEM;
    len = qcow2_codec_pack(q->h.compression, data, q->cluster, buf, q->cluster - 1);
    rc = len < 0 ? (int)len : qcow2_until_done(q, get_table, &p);
    if (rc)
        goto out;
    if (qcow2_l2_entry(p.t, qcow2_l2_index(q, offset))) {
        rc = -EEXIST;
        goto out;
    }
    qcow2_table_pin(p.t);
    rc = find_room(&p, (uint64_t)len);
    if (!rc && p.host + (uint64_t)len > BIT(MIN(x, 56)))
        rc = -EFBIG;
    /* Whole sectors: what is read back is, too. */
    if (!rc)
        rc = block_file_write(q->file, p.host, buf,
                              ALIGN_UP(p.host + (uint64_t)len, QCOW2_SECTOR) - p.host);
    if (!rc) {
        qcow2_l2_set(p.t, qcow2_l2_index(q, offset),
                     qcow2_entry_packed(p.host, (uint64_t)len, q->h.cluster_bits));
        q->packed_end = p.host + (uint64_t)len;
        q->packed_room -= (uint64_t)len;
    }
    qcow2_table_unpin(p.t);
out:
    free(buf);
    return rc;
}
