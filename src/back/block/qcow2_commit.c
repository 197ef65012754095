/* Writes what changed in a qcow2 image's tables, in an order that a crash cannot hurt. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_impl.h"

#define WRITE_ALIGN 4096u

/* A copy of bytes to be written: requests go on changing the original meanwhile. */
struct qcow2_segment {
    struct qcow2_segment *next;
    struct qcow2 *q;
    struct qcow2_table *t; /* pinned; NULL: L1, refcount table, header */
    uint32_t lo, hi;       /* of t: what it had changed */
    struct block_req req;
    struct iovec iov;
    uint8_t *buf;
};

static void advance(struct qcow2 *q);

static struct qcow2_segment *segment_new(struct qcow2 *q, enum qcow2_stage stage, uint64_t offset,
                                         size_t len)
{
    struct qcow2_segment *s = calloc(1, sizeof(*s));

    if (s)
        s->buf = aligned_alloc(WRITE_ALIGN, ALIGN_UP(len, WRITE_ALIGN));
    if (!s || !s->buf) {
        free(s);
        return NULL;
    }
    s->q = q;
    s->iov = (struct iovec){s->buf, len};
    s->req = (struct block_req){
        .op = BLOCK_WRITE, .offset = offset, .len = len, .iov = &s->iov, .niov = 1};
    s->next = q->commit.segments[stage];
    q->commit.segments[stage] = s;
    return s;
}

static int take_table(struct qcow2_table *t, enum qcow2_stage stage)
{
    struct qcow2 *q = t->cache->q;
    uint32_t align = (uint32_t)MIN(q->cluster, WRITE_ALIGN);
    uint32_t lo = (uint32_t)ALIGN_DOWN(t->dirty_lo, align);
    uint32_t hi = (uint32_t)ALIGN_UP(t->dirty_hi, align);
    struct qcow2_segment *s = segment_new(q, stage, t->offset + lo, hi - lo);

    if (!s)
        return -ENOMEM;
    memcpy(s->buf, t->data + lo, hi - lo);
    s->t = t;
    s->lo = t->dirty_lo;
    s->hi = t->dirty_hi;
    t->dirty_lo = t->dirty_hi = 0;
    qcow2_table_pin(t);
    return 0;
}

static bool is_dirty(const struct qcow2_table *t) { return t->dirty_lo != t->dirty_hi; }

static int take_tables(struct qcow2_cache *c, enum qcow2_stage stage)
{
    int rc = 0;

    for (struct qcow2_table *t = c->oldest; t && !rc; t = t->newer) {
        if (is_dirty(t))
            rc = take_table(t, stage);
    }
    return rc;
}

/* Entries lo..hi of a table whose original is in host byte order. */
static int take_entries(struct qcow2 *q, enum qcow2_stage stage, uint64_t offset,
                        const uint64_t *table, uint32_t lo, uint32_t hi)
{
    struct qcow2_segment *s = segment_new(q, stage, offset + lo * 8ull, (hi - lo) * 8ull);

    if (!s)
        return -ENOMEM;
    for (uint32_t i = lo; i < hi; i++)
        qcow2_put64(s->buf + (i - lo) * 8ull, table[i]);
    return 0;
}

static int take_reftable(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;
    struct qcow2_segment *s;
    int rc;

    if (q->reftable_lo != q->reftable_hi) {
        rc = take_entries(q, QCOW2_STAGE_REFTABLE, q->h.reftable_offset, q->reftable,
                          q->reftable_lo, q->reftable_hi);
        if (rc)
            return rc;
        c->reftable_lo = q->reftable_lo;
        c->reftable_hi = q->reftable_hi;
        q->reftable_lo = q->reftable_hi = 0;
    }
    if (q->reftable_moved) {
        s = segment_new(q, QCOW2_STAGE_HEADER, QCOW2_OFF_REFTABLE, 12);
        if (!s)
            return -ENOMEM;
        qcow2_put64(s->buf, q->h.reftable_offset);
        qcow2_put32(s->buf + 8, q->h.reftable_clusters);
        c->reftable_moved = true;
        q->reftable_moved = false;
    }
    return 0;
}

/* The bit that tells the next open that refcount blocks are behind. */
static int take_dirty_bit(struct qcow2 *q)
{
    struct qcow2_segment *s;

    if (q->dirty_on_disk)
        return 0;
    s = segment_new(q, QCOW2_STAGE_HEADER, QCOW2_OFF_INCOMPAT, 8);
    if (!s)
        return -ENOMEM;
    q->h.incompatible |= QCOW2_INCOMPAT_DIRTY;
    qcow2_put64(s->buf, q->h.incompatible);
    q->dirty_on_disk = q->commit.dirty_bit = true;
    return 0;
}

/* May refcounts stay behind for now? Not when they fill the memory meant for them, and not when the
 * table has moved: its old place is about to be used for something else. */
static bool may_postpone(const struct qcow2 *q)
{
    return q->lazy && !q->reftable_moved && q->refblocks.count < q->refblocks.limit;
}

static bool any_dirty(const struct qcow2_cache *c)
{
    for (const struct qcow2_table *t = c->newest; t; t = t->older) {
        if (is_dirty(t))
            return true;
    }
    return false;
}

static bool refcounts_needed(const struct qcow2 *q)
{
    return any_dirty(&q->refblocks) || q->reftable_lo != q->reftable_hi || q->reftable_moved;
}

bool qcow2_commit_needed(const struct qcow2 *q)
{
    return q->commit.active || any_dirty(&q->l2) || q->l1_lo != q->l1_hi ||
           (!may_postpone(q) && refcounts_needed(q));
}

/* Copies everything that is to be written. */
static int take_all(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;
    int rc = 0;

    if (q->broken)
        return -EIO;
    if (q->sync_error)
        return q->sync_error;
    if (may_postpone(q)) {
        if (refcounts_needed(q))
            rc = take_dirty_bit(q);
    } else {
        rc = take_tables(&q->refblocks, QCOW2_STAGE_REFBLOCKS);
        if (!rc)
            rc = take_reftable(q);
    }
    if (!rc)
        rc = take_tables(&q->l2, QCOW2_STAGE_L2);
    if (!rc && q->l1_lo != q->l1_hi) {
        rc = take_entries(q, QCOW2_STAGE_L1, q->h.l1_offset, q->l1, q->l1_lo, q->l1_hi);
        if (!rc) {
            c->l1_lo = q->l1_lo;
            c->l1_hi = q->l1_hi;
            q->l1_lo = q->l1_hi = 0;
        }
    }
    return rc;
}

/* After a failure what was taken counts as changed again: it may or may not be in the file. */
static void give_back(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;

    for (unsigned i = 0; i < QCOW2_STAGES; i++) {
        for (struct qcow2_segment *s = c->segments[i]; s; s = s->next) {
            if (s->t)
                qcow2_table_dirty(s->t, s->lo, s->hi);
        }
    }
    if (c->l1_lo != c->l1_hi) {
        q->l1_lo = q->l1_lo == q->l1_hi ? c->l1_lo : MIN(q->l1_lo, c->l1_lo);
        q->l1_hi = MAX(q->l1_hi, c->l1_hi);
    }
    if (c->reftable_lo != c->reftable_hi) {
        q->reftable_lo =
            q->reftable_lo == q->reftable_hi ? c->reftable_lo : MIN(q->reftable_lo, c->reftable_lo);
        q->reftable_hi = MAX(q->reftable_hi, c->reftable_hi);
    }
    q->reftable_moved |= c->reftable_moved;
    if (c->dirty_bit)
        q->dirty_on_disk = false;
    qcow2_free_list_add(&q->freed, &c->frees);
}

static void release_segments(struct qcow2_commit *c)
{
    for (unsigned i = 0; i < QCOW2_STAGES; i++) {
        while (c->segments[i]) {
            struct qcow2_segment *s = c->segments[i];

            c->segments[i] = s->next;
            if (s->t)
                qcow2_table_unpin(s->t);
            free(s->buf);
            free(s);
        }
    }
}

static void begin(struct qcow2 *q);

static void finish(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;
    struct qcow2_waitlist waiters = c->waiters;
    int rc = c->rc;

    if (rc)
        give_back(q);
    else
        qcow2_free_list_add(&q->ready, &c->frees);
    release_segments(c);
    c->waiters = (struct qcow2_waitlist){0};
    c->active = false;
    qcow2_resume(&waiters, rc);
    if (c->wanted && !c->active)
        begin(q);
    qcow2_free_run(q);
}

static void synced(struct block_req *r, int rc)
{
    struct qcow2 *q = container_of(r, struct qcow2, commit.sync);

    if (rc) {
        /* The kernel may have dropped what it could not write: trying again would only look good.
         */
        q->sync_error = rc;
        q->commit.rc = rc;
    }
    q->commit.synced = true;
    advance(q);
}

static void failed(struct block_req *r, int rc)
{
    struct qcow2 *q = container_of(r, struct qcow2, commit.sync);

    q->commit.rc = rc;
    finish(q);
}

static void written(struct block_req *r, int rc)
{
    struct qcow2 *q = container_of(r, struct qcow2_segment, req)->q;
    struct qcow2_commit *c = &q->commit;

    if (rc && !c->rc)
        c->rc = rc;
    if (--c->pending == 0) {
        c->stage++;
        advance(q);
    }
}

static void write_stage(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;

    c->synced = false;
    for (struct qcow2_segment *s = c->segments[c->stage]; s; s = s->next)
        c->pending++;
    for (struct qcow2_segment *s = c->segments[c->stage]; s; s = s->next) {
        s->req.done = written;
        block_file_submit(q->file, &s->req);
    }
}

static void advance(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;

    while (!c->rc && c->stage < QCOW2_STAGES && !c->segments[c->stage])
        c->stage++;
    if (c->rc) {
        finish(q);
    } else if (!c->synced && c->stage != QCOW2_STAGE_REFBLOCKS) {
        c->sync = (struct block_req){.op = BLOCK_FLUSH, .done = synced};
        block_file_submit(q->file, &c->sync);
    } else if (c->stage < QCOW2_STAGES) {
        write_stage(q);
    } else {
        finish(q);
    }
}

static void begin(struct qcow2 *q)
{
    struct qcow2_commit *c = &q->commit;
    int rc;

    *c = (struct qcow2_commit){.active = true, .waiters = c->next};
    qcow2_free_list_add(&c->frees, &q->freed);
    rc = take_all(q);
    if (rc) {
        c->sync = (struct block_req){.done = failed};
        block_aio_complete(q->node.aio, &c->sync, rc);
    } else {
        advance(q);
    }
}

void qcow2_commit(struct qcow2 *q, struct qcow2_waiter *w)
{
    struct qcow2_commit *c = &q->commit;

    if (w)
        qcow2_park(&c->next, w);
    if (c->active)
        c->wanted = true;
    else
        begin(q);
}
