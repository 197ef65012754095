#include "back/block/block_guard.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

struct guard {
    struct block_req r;
    struct block_req *orig;
    struct block_aio *aio;
    uint8_t *sector;
    struct iovec iov[]; /* the sector, then the rest of the original's */
};

static void guard_done(struct block_req *r, int rc)
{
    struct guard *g = container_of(r, struct guard, r);
    struct block_req *orig = g->orig;
    struct block_aio *aio = g->aio;

    free(g->sector);
    free(g);
    block_aio_complete(aio, orig, rc);
}

static struct guard *guard_new(struct block_node *n, struct block_req *r, enum block_op op)
{
    struct guard *g = calloc(1, sizeof(*g) + (r->niov + 1) * sizeof(g->iov[0]));

    if (!g)
        return NULL;
    g->orig = r;
    g->aio = n->aio;
    g->r.op = op;
    g->r.done = guard_done;
    return g;
}

void block_guard_write(struct block_node *n, struct block_req *r)
{
    struct guard *g = guard_new(n, r, BLOCK_WRITE);
    void *sector = NULL;

    if (!g || posix_memalign(&sector, 4096, BLOCK_SECTOR)) {
        free(g);
        block_aio_complete(n->aio, r, -ENOMEM);
        return;
    }
    block_iov_read(r->iov, r->niov, 0, sector, BLOCK_SECTOR);
    if (block_node_is_header(sector, BLOCK_SECTOR)) {
        free(sector);
        free(g);
        block_aio_complete(n->aio, r, -EPERM);
        return;
    }
    g->sector = sector;
    g->r.offset = r->offset;
    g->r.len = r->len;
    g->r.iov = g->iov;
    g->iov[0] = (struct iovec){.iov_base = sector, .iov_len = BLOCK_SECTOR};
    g->r.niov =
        1 + block_iov_slice(r->iov, r->niov, BLOCK_SECTOR, r->len - BLOCK_SECTOR, g->iov + 1);
    block_node_submit(n, &g->r);
}

int block_guard_flush(struct block_node *n, struct block_req *r)
{
    struct guard *g = guard_new(n, r, BLOCK_FLUSH);

    if (!g)
        return -ENOMEM;
    block_node_submit(n, &g->r);
    return 0;
}
