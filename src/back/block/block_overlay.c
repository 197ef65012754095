#include "back/block/block_overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define LEAF_SECTORS 8192u
#define LEAF_WORDS (LEAF_SECTORS / 64)

struct leaf {
    uint64_t words[LEAF_WORDS];
    unsigned count; /* bits set */
};

struct overlay {
    struct block_node node;
    struct block_node *base;
    struct block_file *file;
    uint64_t nleaves;
    struct leaf **leaves; /* NULL: no sector written; &full: all */
    struct leaf full;
};

static struct overlay *overlay_of(struct block_node *n)
{
    return container_of(n, struct overlay, node);
}

static bool is_written(const struct overlay *o, uint64_t sector)
{
    const struct leaf *l = o->leaves[sector / LEAF_SECTORS];
    unsigned n = sector % LEAF_SECTORS;

    return l && (l == &o->full || l->words[n / 64] & BIT(n % 64));
}

/* Sectors from `from` on, at most up to end, that are all written or all not. */
static uint64_t run_length(const struct overlay *o, uint64_t from, uint64_t end, bool written)
{
    uint64_t s = from;

    while (s < end) {
        const struct leaf *l = o->leaves[s / LEAF_SECTORS];

        if (!l || l == &o->full) {
            if ((l != NULL) != written)
                break;
            s = ALIGN_DOWN(s, LEAF_SECTORS) + LEAF_SECTORS;
        } else if (is_written(o, s) == written) {
            s++;
        } else {
            break;
        }
    }
    return MIN(s, end) - from;
}

/* Marks sectors of one leaf. */
static int mark_leaf(struct overlay *o, uint64_t index, unsigned first, unsigned n)
{
    struct leaf **slot = &o->leaves[index], *l = *slot;

    if (l == &o->full)
        return 0;
    if (n == LEAF_SECTORS) {
        free(l);
        *slot = &o->full;
        return 0;
    }
    if (!l) {
        l = *slot = calloc(1, sizeof(*l));
        if (!l)
            return -ENOMEM;
    }
    for (unsigned i = first; i < first + n; i++) {
        if (!(l->words[i / 64] & BIT(i % 64))) {
            l->words[i / 64] |= BIT(i % 64);
            l->count++;
        }
    }
    if (l->count == LEAF_SECTORS) {
        free(l);
        *slot = &o->full;
    }
    return 0;
}

static int mark_written(struct overlay *o, uint64_t first, uint64_t end)
{
    int rc = 0;

    while (rc == 0 && first < end) {
        unsigned in_leaf = (unsigned)(first % LEAF_SECTORS);
        unsigned n = (unsigned)MIN(end - first, (uint64_t)(LEAF_SECTORS - in_leaf));

        rc = mark_leaf(o, first / LEAF_SECTORS, in_leaf, n);
        first += n;
    }
    return rc;
}

/* Only now, so that a write that failed leaves what was there before. */
static void write_done(struct block_split *s, int rc)
{
    struct overlay *o = s->arg;
    struct block_req *r = s->req;

    if (rc == 0)
        rc = mark_written(o, r->offset / BLOCK_SECTOR, (r->offset + r->len) / BLOCK_SECTOR);
    block_split_free(s);
    block_aio_complete(o->node.aio, r, rc);
}

static void submit_write(struct overlay *o, struct block_req *r)
{
    struct block_split *s = block_split_begin(o->node.aio, r);

    if (!s) {
        block_aio_complete(o->node.aio, r, -ENOMEM);
        return;
    }
    s->done = write_done;
    s->arg = o;
    block_split_file(s, 0, r->len, o->file, r->offset);
    block_split_end(s);
}

static void submit_read(struct overlay *o, struct block_req *r)
{
    uint64_t first = r->offset / BLOCK_SECTOR, end = (r->offset + r->len) / BLOCK_SECTOR;
    bool written = first < end && is_written(o, first);
    uint64_t n = run_length(o, first, end, written);
    struct block_split *s;

    if (n == end - first) {
        if (written)
            block_file_submit(o->file, r);
        else
            block_node_submit(o->base, r);
        return;
    }
    s = block_split_begin(o->node.aio, r);
    if (!s) {
        block_aio_complete(o->node.aio, r, -ENOMEM);
        return;
    }
    for (uint64_t at = first; at < end; at += n, written = !written) {
        uint64_t skip = at * BLOCK_SECTOR - r->offset;

        n = run_length(o, at, end, written);
        if (written)
            block_split_file(s, skip, n * BLOCK_SECTOR, o->file, at * BLOCK_SECTOR);
        else
            block_split_node(s, skip, n * BLOCK_SECTOR, o->base, at * BLOCK_SECTOR);
    }
    block_split_end(s);
}

static void overlay_submit(struct block_node *n, struct block_req *r)
{
    struct overlay *o = overlay_of(n);

    switch (r->op) {
    case BLOCK_READ:
        submit_read(o, r);
        break;
    case BLOCK_WRITE:
    case BLOCK_WRITE_ZEROES:
    case BLOCK_DISCARD: /* a hole, in place of what the image has */
        submit_write(o, r);
        break;
    case BLOCK_FLUSH:
        block_aio_complete(n->aio, r, 0);
        break;
    }
}

static int overlay_read_now(struct block_node *n, const struct block_req *r)
{
    struct overlay *o = overlay_of(n);
    uint64_t first = r->offset / BLOCK_SECTOR, end = (r->offset + r->len) / BLOCK_SECTOR;
    bool written = first < end && is_written(o, first);

    if (run_length(o, first, end, written) < end - first)
        return -EAGAIN;
    return written ? block_file_read_now(o->file, r) : block_node_read_now(o->base, r);
}

static int overlay_close(struct block_node *n)
{
    struct overlay *o = overlay_of(n);

    for (uint64_t i = 0; i < o->nleaves; i++)
        if (o->leaves[i] != &o->full)
            free(o->leaves[i]);
    free(o->leaves);
    block_file_close(o->file);
    block_node_close(o->base); /* was not written */
    free(o);
    return 0;
}

static const struct block_node_ops overlay_ops = {
    .name = "overlay",
    .submit = overlay_submit,
    .read_now = overlay_read_now,
    .close = overlay_close,
};

int block_overlay_open(struct block_node **out, struct block_node *base, struct err *e)
{
    struct overlay *o = calloc(1, sizeof(*o));
    int rc;

    if (!o)
        return err_set(e, ENOMEM, "no memory for a snapshot");
    o->node = *base;
    o->node.ops = &overlay_ops;
    o->node.ro = false;
    o->base = base;
    o->nleaves = (base->size / BLOCK_SECTOR + LEAF_SECTORS - 1) / LEAF_SECTORS;
    o->leaves = calloc(o->nleaves, sizeof(struct leaf *));
    if (!o->leaves) {
        free(o);
        return err_set(e, ENOMEM, "no memory for a snapshot");
    }
    rc = block_file_open_temp(&o->file, base->aio, e);
    if (rc) {
        free(o->leaves);
        free(o);
        return rc;
    }
    o->node.can_discard = block_file_info(o->file)->can_discard;
    o->node.discard_granularity = block_file_info(o->file)->discard_granularity;
    *out = &o->node;
    return 0;
}
