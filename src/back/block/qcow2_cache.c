/* Tables of a qcow2 image in memory: least recently used ones go first, changed ones stay until a
 * commit has written them. */
#include <errno.h>
#include <stdlib.h>

#include "back/block/qcow2_impl.h"

#define TABLES_MIN 4u

void qcow2_park(struct qcow2_waitlist *l, struct qcow2_waiter *w)
{
    w->next = NULL;
    if (!l->tail)
        l->tail = &l->head;
    *l->tail = w;
    l->tail = &w->next;
}

void qcow2_resume(struct qcow2_waitlist *l, int rc)
{
    struct qcow2_waiter *w = l->head;

    /* Who is resumed may wait here again. */
    *l = (struct qcow2_waitlist){0};
    while (w) {
        struct qcow2_waiter *next = w->next;

        w->resume(w, rc);
        w = next;
    }
}

int qcow2_cache_init(struct qcow2_cache *c, struct qcow2 *q, uint32_t nslots, uint64_t bytes)
{
    uint64_t limit = bytes >> q->h.cluster_bits;

    *c = (struct qcow2_cache){.q = q, .limit = (uint32_t)MAX(limit, TABLES_MIN)};
    return qcow2_cache_grow(c, nslots);
}

int qcow2_cache_grow(struct qcow2_cache *c, uint32_t nslots)
{
    struct qcow2_table **slot;

    if (nslots <= c->nslots)
        return 0;
    /* Of a large table few slots are ever used: calloc leaves the rest untouched. */
    slot = calloc(nslots, sizeof(*slot));
    if (!slot)
        return -ENOMEM;
    for (uint32_t i = 0; i < c->nslots; i++) {
        if (c->slot[i])
            slot[i] = c->slot[i];
    }
    free(c->slot);
    c->slot = slot;
    c->nslots = nslots;
    return 0;
}

void qcow2_cache_fini(struct qcow2_cache *c)
{
    for (struct qcow2_table *t = c->newest, *older; t; t = older) {
        older = t->older;
        qcow2_cache_drop(t);
    }
    free(c->slot);
    c->slot = NULL;
    c->nslots = 0;
}

static void unlink_table(struct qcow2_table *t)
{
    struct qcow2_cache *c = t->cache;

    *(t->newer ? &t->newer->older : &c->newest) = t->older;
    *(t->older ? &t->older->newer : &c->oldest) = t->newer;
}

static void link_newest(struct qcow2_table *t)
{
    struct qcow2_cache *c = t->cache;

    t->newer = NULL;
    t->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = t;
    c->newest = t;
}

void qcow2_cache_drop(struct qcow2_table *t)
{
    unlink_table(t);
    t->cache->slot[t->index] = NULL;
    t->cache->count--;
    free(t->data);
    free(t);
}

static bool is_evictable(const struct qcow2_table *t)
{
    return !t->pins && !t->loading && t->dirty_lo == t->dirty_hi;
}

int qcow2_cache_room(struct qcow2_cache *c, struct qcow2_waiter *w)
{
    struct qcow2_table *t = c->oldest;

    while (c->count >= c->limit && t) {
        struct qcow2_table *newer = t->newer;

        if (is_evictable(t))
            qcow2_cache_drop(t);
        t = newer;
    }
    if (c->count < c->limit)
        return 0;
    qcow2_commit(c->q, w);
    return -EAGAIN;
}

static struct qcow2_table *new_table(struct qcow2_cache *c, uint32_t index, uint64_t offset)
{
    struct qcow2_table *t = calloc(1, sizeof(*t));

    if (t)
        t->data = aligned_alloc(PAGE_SIZE, ALIGN_UP(c->q->cluster, PAGE_SIZE));
    if (!t || !t->data) {
        free(t);
        return NULL;
    }
    t->cache = c;
    t->index = index;
    t->offset = offset;
    c->slot[index] = t;
    c->count++;
    link_newest(t);
    return t;
}

int qcow2_cache_new(struct qcow2_cache *c, uint32_t index, uint64_t offset, struct qcow2_table **t)
{
    *t = new_table(c, index, offset);
    if (!*t)
        return -ENOMEM;
    __builtin_memset((*t)->data, 0, c->q->cluster);
    qcow2_table_dirty(*t, 0, (uint32_t)c->q->cluster);
    return 0;
}

static void loaded(struct block_req *r, int rc)
{
    struct qcow2_table *t = container_of(r, struct qcow2_table, req);
    struct qcow2_waitlist waiters = t->waiters;

    t->loading = false;
    t->waiters = (struct qcow2_waitlist){0};
    if (rc)
        qcow2_cache_drop(t);
    qcow2_resume(&waiters, rc);
}

int qcow2_cache_get(struct qcow2_cache *c, uint32_t index, uint64_t offset, struct qcow2_table **t,
                    struct qcow2_waiter *w)
{
    struct qcow2_table *x = c->slot[index];
    int rc;

    if (likely(x && !x->loading)) {
        if (c->newest != x) {
            unlink_table(x);
            link_newest(x);
        }
        *t = x;
        return 0;
    }
    if (!w)
        return -EAGAIN;
    if (!x) {
        rc = qcow2_cache_room(c, w);
        if (rc)
            return rc;
        x = new_table(c, index, offset);
        if (!x)
            return -ENOMEM;
        x->loading = true;
        x->iov = (struct iovec){x->data, c->q->cluster};
        x->req = (struct block_req){.op = BLOCK_READ,
                                    .offset = offset,
                                    .len = c->q->cluster,
                                    .iov = &x->iov,
                                    .niov = 1,
                                    .done = loaded};
        block_file_submit(c->q->file, &x->req);
    }
    qcow2_park(&x->waiters, w);
    return -EAGAIN;
}

void qcow2_table_dirty(struct qcow2_table *t, uint32_t lo, uint32_t hi)
{
    if (t->dirty_lo == t->dirty_hi) {
        t->dirty_lo = lo;
        t->dirty_hi = hi;
    } else {
        t->dirty_lo = MIN(t->dirty_lo, lo);
        t->dirty_hi = MAX(t->dirty_hi, hi);
    }
}
