/* Clusters that lost a reference: given back once a commit has made that durable and all requests
 * that may still read or write there have ended. Holes are made for those that nothing uses. */
#include <errno.h>
#include <stdlib.h>

#include "back/block/qcow2_impl.h"

#define FREED_MAX 4096u /* extents that wait for the guest to flush */

struct punch {
    struct block_req req;
    struct qcow2 *q;
    struct qcow2_table *t; /* pinned: the refcount block of all of them */
    uint64_t cluster, n;
};

static void list_append(struct qcow2_free_list *l, struct qcow2_free *f)
{
    f->next = NULL;
    if (!l->tail)
        l->tail = &l->head;
    *l->tail = f;
    l->tail = &f->next;
    l->n++;
}

static void list_pop(struct qcow2_free_list *l)
{
    struct qcow2_free *f = l->head;

    l->head = f->next;
    if (!l->head)
        l->tail = NULL;
    l->n--;
    free(f);
}

void qcow2_free_list_add(struct qcow2_free_list *to, struct qcow2_free_list *from)
{
    if (!from->head)
        return;
    if (!to->tail)
        to->tail = &to->head;
    *to->tail = from->head;
    to->tail = from->tail;
    to->n += from->n;
    *from = (struct qcow2_free_list){0};
}

void qcow2_free_list_fini(struct qcow2_free_list *l)
{
    while (l->head)
        list_pop(l);
}

/* Out of memory: the clusters leak, which a check repairs. */
static void add(struct qcow2_free_list *l, uint64_t cluster, uint64_t n, uint64_t seq)
{
    struct qcow2_free *f = l->tail ? container_of(l->tail, struct qcow2_free, next) : NULL;

    if (f && f->seq == seq && f->cluster + f->n == cluster) {
        f->n += n;
        return;
    }
    f = malloc(sizeof(*f));
    if (!f)
        return;
    *f = (struct qcow2_free){.cluster = cluster, .n = n, .seq = seq};
    list_append(l, f);
}

void qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t n)
{
    add(&q->freed, cluster, n, q->seq);
    if (q->freed.n > FREED_MAX && !q->commit.active)
        qcow2_commit(q, NULL);
}

void qcow2_free_now(struct qcow2 *q, uint64_t cluster, uint64_t n)
{
    add(&q->ready, cluster, n, 0);
    qcow2_free_run(q);
}

static void punched(struct block_req *r, int rc)
{
    struct punch *p = container_of(r, struct punch, req);
    struct qcow2 *q = p->q;

    /* A host that cannot make holes keeps the space; the cluster is free nevertheless. */
    for (uint64_t i = 0; i < p->n; i++) {
        uint64_t count = qcow2_refcount_load(
            p->t->data, (p->cluster + i) & (BIT(q->refblock_bits) - 1), q->h.refcount_order);

        if (count)
            qcow2_refcount_set(q, p->t, p->cluster + i, count - 1);
    }
    qcow2_table_unpin(p->t);
    q->punching--;
    free(p);
    qcow2_free_run(q);
}

static void punch(struct qcow2 *q, struct qcow2_table *t, uint64_t cluster, uint64_t n)
{
    struct punch *p = calloc(1, sizeof(*p));

    if (!p)
        return; /* leaks */
    p->q = q;
    p->t = t;
    p->cluster = cluster;
    p->n = n;
    p->req = (struct block_req){.op = BLOCK_DISCARD,
                                .offset = cluster << q->h.cluster_bits,
                                .len = n << q->h.cluster_bits,
                                .done = punched};
    qcow2_table_pin(t);
    q->punching++;
    block_file_submit(q->file, &p->req);
}

static void resumed(struct qcow2_waiter *w, int rc)
{
    struct qcow2 *q = container_of(w, struct qcow2, free_waiter);

    q->free_waiting = false;
    if (rc && q->ready.head)
        list_pop(&q->ready); /* leaks */
    qcow2_free_run(q);
}

/* Gives back clusters from the front of f that are alike; their number, or a negative errno. */
static int64_t give_back(struct qcow2 *q, const struct qcow2_free *f)
{
    struct qcow2_table *t;
    uint64_t count, n = 1, in_block;
    int rc = qcow2_refcount_get(q, f->cluster, &count, &t, &q->free_waiter);

    if (rc)
        return rc;
    if (count == 0)
        return 1; /* the image was wrong about that; a check tells */
    if (count > 1) {
        qcow2_refcount_set(q, t, f->cluster, count - 1);
        return 1;
    }
    in_block = f->cluster & (BIT(q->refblock_bits) - 1);
    while (n < f->n && in_block + n < BIT(q->refblock_bits) &&
           qcow2_refcount_load(t->data, in_block + n, q->h.refcount_order) == 1)
        n++;
    punch(q, t, f->cluster, n);
    return (int64_t)n;
}

void qcow2_free_run(struct qcow2 *q)
{
    while (!q->free_waiting && q->ready.head) {
        struct qcow2_free *f = q->ready.head;
        int64_t n;

        if (q->oldest && q->oldest->seq <= f->seq)
            return;
        q->free_waiter.resume = resumed;
        /* Whom get parks may be resumed only later. */
        n = give_back(q, f);
        if (n == -EAGAIN) {
            q->free_waiting = true;
            return;
        }
        if (n < 0 || (uint64_t)n >= f->n) {
            list_pop(&q->ready);
        } else {
            f->cluster += (uint64_t)n;
            f->n -= (uint64_t)n;
        }
    }
}
