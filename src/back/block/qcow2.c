#include "back/block/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"

/* Memory for tables: 16 MiB of L2 tables map 128 GiB with clusters of 64 KiB. */
#define L2_CACHE_BYTES (16 * MIB)
#define REFBLOCK_CACHE_BYTES (4 * MIB)

static bool probe(const uint8_t *head, size_t n) { return qcow2_header_probe(head, n); }

const struct qcow2_header *qcow2_header_of(const struct block_node *n)
{
    return &container_of(n, struct qcow2, node)->h;
}

int qcow2_break(struct qcow2 *q)
{
    uint8_t bits[8];

    q->broken = true;
    if (q->h.version >= 3 && !(q->h.incompatible & QCOW2_INCOMPAT_CORRUPT)) {
        /* If this fails the next open finds the same contradiction. */
        q->h.incompatible |= QCOW2_INCOMPAT_CORRUPT;
        qcow2_put64(bits, q->h.incompatible);
        block_file_write(q->file, QCOW2_OFF_INCOMPAT, bits, sizeof(bits));
    }
    return -EIO;
}

struct sync_waiter {
    struct qcow2_waiter w;
    bool done;
    int rc;
};

static void sync_resumed(struct qcow2_waiter *w, int rc)
{
    struct sync_waiter *s = container_of(w, struct sync_waiter, w);

    s->done = true;
    s->rc = rc;
}

static void work_on(struct qcow2 *q)
{
    block_aio_flush(q->node.aio);
    block_aio_wait(q->node.aio, UINT64_MAX);
    block_aio_poll(q->node.aio);
}

int qcow2_until_done(struct qcow2 *q, int (*fn)(void *arg, struct qcow2_waiter *w), void *arg)
{
    for (;;) {
        struct sync_waiter s = {.w.resume = sync_resumed};
        int rc = fn(arg, &s.w);

        if (rc != -EAGAIN)
            return rc;
        while (!s.done)
            work_on(q);
        if (s.rc)
            return s.rc;
    }
}

void qcow2_pump(struct qcow2 *q)
{
    while (q->oldest || q->commit.active || q->punching || q->free_waiting)
        work_on(q);
}

/* Each commit may free clusters, whose counts the next one writes. */
int qcow2_settle(struct qcow2 *q)
{
    int rc = 0;

    qcow2_pump(q);
    while (!rc && (q->freed.head || qcow2_commit_needed(q))) {
        struct sync_waiter s = {.w.resume = sync_resumed};

        qcow2_commit(q, &s.w);
        while (!s.done)
            work_on(q);
        rc = s.rc;
        qcow2_pump(q);
    }
    return rc;
}

/* Refcounts are up to date from here on: says so in the header. */
static int make_clean(struct qcow2 *q)
{
    uint8_t bits[8];
    int rc;

    q->lazy = false; /* nothing stays behind any more */
    rc = qcow2_settle(q);
    if (rc || !q->dirty_on_disk)
        return rc;
    q->h.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    qcow2_put64(bits, q->h.incompatible);
    rc = block_file_write(q->file, QCOW2_OFF_INCOMPAT, bits, sizeof(bits));
    q->dirty_on_disk = false;
    return rc;
}

static void qcow2_free(struct qcow2 *q)
{
    qcow2_cache_fini(&q->l2);
    qcow2_cache_fini(&q->refblocks);
    qcow2_meta_fini(&q->meta);
    qcow2_free_list_fini(&q->freed);
    qcow2_free_list_fini(&q->ready);
    qcow2_packed_fini(q);
    free(q->l1);
    free(q->reftable);
    free(q->zeros);
    free(q);
}

static int qcow2_close(struct block_node *n)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    int rc = 0, rc2;

    qcow2_pump(q);
    if (!n->ro) {
        rc = make_clean(q);
        rc2 = block_file_flush(q->file);
        rc = rc ? rc : rc2;
    }
    block_node_close(q->backing);
    block_file_close(q->file);
    qcow2_free(q);
    return rc;
}

int qcow2_read_header(struct block_file *f, struct qcow2_header *h, struct err *e)
{
    int64_t size = block_file_size(f);
    uint8_t head[QCOW2_HEADER_V2], *buf;
    uint32_t cluster;
    size_t len;
    int rc;

    if (size < 0)
        return err_set(e, (int)-size, "cannot tell its size");
    len = MIN((uint64_t)size, sizeof(head));
    rc = block_file_read(f, 0, head, len);
    if (rc)
        return err_set(e, -rc, "cannot read its header: %s", strerrordesc_np(-rc));
    rc = qcow2_header_cluster_size(head, len, &cluster, e);
    if (rc)
        return rc;
    len = MIN((uint64_t)size, cluster);
    buf = malloc(len);
    if (!buf)
        return err_set(e, ENOMEM, "out of memory");
    rc = block_file_read(f, 0, buf, len);
    if (rc)
        err_set(e, -rc, "cannot read its header: %s", strerrordesc_np(-rc));
    else
        rc = qcow2_header_parse(h, buf, len, (uint64_t)size, e);
    free(buf);
    return rc;
}

/* A table of 64-bit entries in host byte order. */
static int read_table(struct block_file *f, uint64_t offset, uint64_t n, uint64_t **out,
                      struct err *e)
{
    int rc = 0;

    *out = malloc(MAX(n, 1) * 8);
    if (!*out)
        return err_set(e, ENOMEM, "out of memory");
    if (n)
        rc = block_file_read(f, offset, *out, n * 8);
    if (rc)
        return err_set(e, -rc, "cannot read its tables: %s", strerrordesc_np(-rc));
    for (uint64_t i = 0; i < n; i++)
        (*out)[i] = qcow2_be64((const uint8_t *)&(*out)[i]);
    return 0;
}

int qcow2_backing_path(const char *image, const char *backing, char *out, size_t cap, struct err *e)
{
    const char *slash = strrchr(image, '/'), *name = backing;
    size_t dir;

    if (!strncmp(name, "file:", 5))
        name += 5;
    else if (strcspn(name, ":") < strcspn(name, "/") && strchr(name, ':'))
        return err_set(e, ENOTSUP, "the backing file '%s' is not a path", backing);
    dir = slash && name[0] != '/' ? (size_t)(slash - image) + 1 : 0;
    if (dir + strlen(name) >= cap)
        return err_set(e, ENAMETOOLONG, "the path of the backing file is too long");
    memcpy(out, image, dir);
    strcpy(out + dir, name);
    return 0;
}

static int open_backing(struct qcow2 *q, const struct block_node_options *o, struct err *e)
{
    struct block_node_options bo = *o;
    char path[4096];
    int rc;

    if (!q->h.backing[0])
        return 0;
    /* A guest may have written a raw image's first bytes: what was taken for qcow2 by looking names
     * no other files. The image that the user named is his affair. */
    if (o->depth && !o->format)
        return err_set(e, EPERM,
                       "its backing file is not opened, as the image above does not state "
                       "this image's format");
    rc = qcow2_backing_path(block_file_path(q->file), q->h.backing, path, sizeof(path), e);
    if (rc)
        return rc;
    bo.format = q->h.backing_format[0] ? q->h.backing_format : NULL;
    bo.ro = true;
    bo.depth++;
    rc = block_node_open(&q->backing, q->node.aio, path, &bo, NULL, e);
    if (rc == -ELOOP) /* once, not with the whole chain of names */
        return err_set(e, ELOOP, "its backing files form a loop, or there are more than %u",
                       BLOCK_NODE_DEPTH_MAX);
    return rc ? err_prefix(e, rc, "backing file") : 0;
}

/* What only those who write need: everything in its place and the header's bits as they should be.
 */
static int open_for_writing(struct qcow2 *q, struct err *e)
{
    int64_t size = block_file_size(q->file);
    uint8_t bits[8] = {0};
    int rc;

    if (q->h.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return err_set(e, EROFS,
                       "the image is marked corrupt; it can be read, or repaired by 'ring3 "
                       "image check --repair all'");
    if (size < 0)
        return err_set(e, (int)-size, "cannot tell its size");
    rc = qcow2_meta_load(q, e);
    if (rc)
        return err_prefix(e, rc, "the image is corrupt");
    q->fresh = ALIGN_UP((uint64_t)size, q->cluster);
    q->lazy = q->h.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    if (q->h.autoclear) {
        rc = block_file_write(q->file, QCOW2_OFF_AUTOCLEAR, bits, sizeof(bits));
        if (rc)
            return err_set(e, -rc, "cannot write its header: %s", strerrordesc_np(-rc));
        q->h.autoclear = 0;
    }
    return 0;
}

static int open_tables(struct qcow2 *q, struct err *e)
{
    const struct qcow2_header *h = &q->h;
    int rc;

    q->cluster = BIT(h->cluster_bits);
    q->l2_bits = h->cluster_bits - 3;
    q->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
    q->reftable_entries = (uint32_t)(h->reftable_clusters * q->cluster / 8);
    rc = read_table(q->file, h->l1_offset, h->l1_size, &q->l1, e);
    if (!rc)
        rc = read_table(q->file, h->reftable_offset, q->reftable_entries, &q->reftable, e);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < q->reftable_entries; i++)
        q->reftable[i] &= QCOW2_REFTABLE_MASK;
    rc = qcow2_cache_init(&q->l2, q, h->l1_size, L2_CACHE_BYTES);
    if (!rc)
        rc = qcow2_cache_init(&q->refblocks, q, q->reftable_entries, REFBLOCK_CACHE_BYTES);
    q->zeros = calloc(1, QCOW2_ZEROS_LEN);
    return rc || !q->zeros ? err_set(e, ENOMEM, "out of memory") : 0;
}

static int repair_dirty(struct block_file *f, struct err *e)
{
    struct qcow2_check check = {0};
    int rc = qcow2_check(f, QCOW2_REPAIR_ALL, &check, e);

    if (!rc && check.corruptions)
        rc = err_set(e, EINVAL, "%llu errors remain", (unsigned long long)check.corruptions);
    return rc ? err_prefix(e, rc, "the image was not closed, and cannot be repaired") : 0;
}

static int qcow2_open(struct block_node **out, struct block_file *f,
                      const struct block_node_options *o, struct err *e)
{
    const struct block_file_info *info = block_file_info(f);
    struct qcow2 *q = calloc(1, sizeof(*q));
    int rc;

    if (!q)
        return err_set(e, ENOMEM, "out of memory");
    rc = qcow2_read_header(f, &q->h, e);
    if (!rc && !o->ro && q->h.incompatible & QCOW2_INCOMPAT_DIRTY &&
        !(q->h.incompatible & QCOW2_INCOMPAT_CORRUPT)) {
        rc = repair_dirty(f, e);
        if (!rc)
            rc = qcow2_read_header(f, &q->h, e);
    }
    if (rc) {
        free(q);
        return rc;
    }
    q->file = f;
    q->node = (struct block_node){
        .ops = &qcow2_ops,
        .aio = block_file_aio(f),
        .size = ALIGN_UP(q->h.size, BLOCK_SECTOR),
        .ro = o->ro,
        .can_discard = !o->ro,
        .logical_block = BLOCK_SECTOR,
        .physical_block = info->physical_block,
        .discard_granularity = 1u << q->h.cluster_bits,
    };
    rc = open_tables(q, e);
    if (!rc && !o->ro)
        rc = open_for_writing(q, e);
    if (!rc)
        rc = open_backing(q, o, e);
    if (rc) {
        qcow2_free(q);
        return rc;
    }
    *out = &q->node;
    return 0;
}

struct status {
    struct qcow2 *q;
    uint64_t offset, len;
    struct qcow2_extent x;
};

static int status_map(void *arg, struct qcow2_waiter *w)
{
    struct status *s = arg;

    return qcow2_map(s->q, s->offset, s->len, &s->x, w);
}

static int qcow2_status(struct block_node *n, uint64_t offset, uint64_t *len)
{
    struct qcow2 *q = container_of(n, struct qcow2, node);
    struct status s = {.q = q, .offset = offset, .len = *len};
    const struct qcow2_cluster *c = &s.x.c;
    int rc = qcow2_until_done(q, status_map, &s);

    if (rc)
        return rc;
    *len = s.x.len;
    if (c->kind == QCOW2_UNALLOCATED && !qcow2_backing_zero(q, offset)) {
        *len = MIN(*len, q->backing->size - offset);
        return block_node_status(q->backing, offset, len);
    }
    return c->kind == QCOW2_ZEROS || c->kind == QCOW2_UNALLOCATED ? BLOCK_ZERO : BLOCK_DATA;
}

const struct block_node_ops qcow2_ops = {
    .name = "qcow2",
    .probe = probe,
    .open = qcow2_open,
    .submit = qcow2_submit,
    .read_now = qcow2_read_now,
    .close = qcow2_close,
    .resize = qcow2_resize,
    .status = qcow2_status,
};
