/* Requests in parts (block_node.h). A part is a request of its own, with its iovecs behind it. */
#include <errno.h>
#include <stdlib.h>

#include "back/block/block_node.h"
#include "base/util.h"

struct part {
    struct block_req r;
    struct block_split *split;
    struct iovec iov[];
};

struct block_split *block_split_begin(struct block_aio *aio, struct block_req *r)
{
    struct block_split *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->req = r;
    s->aio = aio;
    s->pending = 1; /* until the end */
    return s;
}

static void put(struct block_split *s, int rc)
{
    if (rc && !s->rc)
        s->rc = rc;
    if (--s->pending)
        return;
    if (s->done) {
        s->done(s, s->rc);
    } else {
        block_aio_complete(s->aio, s->req, s->rc);
        block_split_free(s);
    }
}

static void part_done(struct block_req *r, int rc)
{
    struct part *p = container_of(r, struct part, r);
    struct block_split *s = p->split;

    free(p);
    put(s, rc);
}

static struct part *part_new(struct block_split *s, uint64_t at, uint64_t len, uint64_t offset)
{
    const struct block_req *r = s->req;
    struct part *p = calloc(1, sizeof(*p) + r->niov * sizeof(p->iov[0]));

    if (!p) {
        if (!s->rc)
            s->rc = -ENOMEM;
        return NULL;
    }
    p->split = s;
    p->r.op = r->op;
    p->r.flags = r->flags;
    p->r.offset = offset;
    p->r.len = len;
    p->r.iov = p->iov;
    p->r.niov = block_iov_slice(r->iov, r->niov, at, len, p->iov);
    p->r.done = part_done;
    s->pending++;
    return p;
}

void block_split_file(struct block_split *s, uint64_t at, uint64_t len, struct block_file *f,
                      uint64_t offset)
{
    struct part *p = part_new(s, at, len, offset);

    if (p)
        block_file_submit(f, &p->r);
}

void block_split_node(struct block_split *s, uint64_t at, uint64_t len, struct block_node *n,
                      uint64_t offset)
{
    struct part *p = part_new(s, at, len, offset);

    if (p)
        block_node_submit(n, &p->r);
}

void block_split_zero(struct block_split *s, uint64_t at, uint64_t len)
{
    struct iovec part[16];

    while (len) {
        unsigned n = block_iov_slice_max(s->req->iov, s->req->niov, at, len, part, ARRAY_LEN(part));
        uint64_t done = block_iov_len(part, n);

        block_iov_zero(part, n);
        at += done;
        len -= done;
    }
}

void block_split_end(struct block_split *s) { put(s, 0); }
void block_split_free(struct block_split *s) { free(s); }
