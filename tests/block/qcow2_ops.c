/*
 * Random operations on an image, many at a time, beside a model of the disk in memory.
 *
 * usage: qcow2_ops IMAGE MODEL SEED OPERATIONS ENGINE
 *
 * MODEL is a raw file with what the disk holds before; it gets what it must hold afterwards. Reads
 * are compared at once. ENGINE: io_uring, threads, sync.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "back/block/block.h"
#include "base/util.h"
#include "program.h"

#define BATCH 24
#define SECTOR BLOCK_SECTOR

struct op {
    struct block_req req;
    struct iovec iov[3];
    uint8_t *buf;
    int rc;
    bool done;
};

static void on_done(struct block_req *r, int rc)
{
    struct op *o = container_of(r, struct op, req);

    o->done = true;
    o->rc = rc;
}

static void finish(struct blockdev *d, struct op *o)
{
    while (!o->done) {
        block_wait(d);
        block_poll(d);
    }
}

static bool overlaps(const struct op *ops, unsigned n, uint64_t offset, uint64_t len)
{
    for (unsigned i = 0; i < n; i++) {
        const struct block_req *r = &ops[i].req;

        if (r->op != BLOCK_FLUSH && offset < r->offset + r->len && r->offset < offset + len)
            return true;
    }
    return false;
}

/* Sizes of all magnitudes, close to each other at times, so that clusters are shared. */
static void choose(struct op *ops, unsigned n, uint64_t size)
{
    static const uint64_t lens[] = {SECTOR, 4096, 16384, 65536, 300000, 1 << 20, 5 << 20};
    struct block_req *r = &ops[n].req;
    uint64_t k = chance(100);
    unsigned tries = 0;

    r->op = k < 35   ? BLOCK_READ
            : k < 82 ? BLOCK_WRITE
            : k < 88 ? BLOCK_DISCARD
            : k < 95 ? BLOCK_WRITE_ZEROES
                     : BLOCK_FLUSH;
    r->flags = r->op == BLOCK_WRITE_ZEROES && chance(2) ? BLOCK_REQ_UNMAP : 0;
    if (r->op == BLOCK_FLUSH)
        return;
    do {
        if (++tries > 1000) { /* the others cover the whole disk */
            r->op = BLOCK_FLUSH;
            r->len = r->offset = 0;
            return;
        }
        r->len = (chance(lens[chance(ARRAY_LEN(lens))]) / SECTOR + 1) * SECTOR;
        if (chance(3) == 0)
            r->len = ALIGN_UP(r->len, 65536);
        r->len = MIN(r->len, size);
        if (n && chance(2))
            r->offset = ops[n - 1].req.offset + ops[n - 1].req.len;
        else
            r->offset = chance((size - r->len) / SECTOR + 1) * SECTOR;
        if (r->len >= 65536 && chance(2))
            r->offset = ALIGN_DOWN(r->offset, 65536);
        if (chance(20) == 0)
            r->offset = size - r->len;
    } while (r->offset > size - r->len || overlaps(ops, n, r->offset, r->len));
}

static void prepare(struct op *o)
{
    uint64_t a = chance(o->req.len / SECTOR) * SECTOR, b = a + chance((o->req.len - a) / SECTOR) * SECTOR;

    o->buf = aligned_alloc(4096, ALIGN_UP(o->req.len, 4096));
    if (o->req.op == BLOCK_WRITE) {
        for (uint64_t i = 0; i < o->req.len; i += 8)
            *(uint64_t *)(o->buf + i) = chance_bits();
        if (chance(6) == 0)
            memset(o->buf, 0, o->req.len);
    }
    o->iov[0] = (struct iovec){o->buf, a};
    o->iov[1] = (struct iovec){o->buf + a, b - a};
    o->iov[2] = (struct iovec){o->buf + b, o->req.len - b};
    o->req.iov = o->iov;
    o->req.niov = 3;
}

static bool all_zero(const uint8_t *p, uint64_t n) { return p[0] == 0 && !memcmp(p, p + 1, n - 1); }

/* What a discard leaves is undefined: each sector is as it was, or zeros. */
static void settle_discard(struct blockdev *d, const struct op *o, uint8_t *model)
{
    struct op r = {
        .req = {.op = BLOCK_READ, .offset = o->req.offset, .len = o->req.len, .done = on_done}};
    struct block_req *p = &r.req;

    prepare(&r);
    block_submit(d, &p, 1);
    finish(d, &r);
    if (r.rc)
        die("a read failed", o->req.offset);
    for (uint64_t i = 0; i < o->req.len; i += SECTOR) {
        if (!memcmp(r.buf + i, model + o->req.offset + i, SECTOR))
            continue;
        if (!all_zero(r.buf + i, SECTOR))
            die("a discard left something strange", o->req.offset + i);
        memset(model + o->req.offset + i, 0, SECTOR);
    }
    free(r.buf);
}

/* Reads that are tried at once, and those of them that were. */
struct tally {
    unsigned tried, done;
};

static void read_now(struct blockdev *d, struct op *o, struct tally *t)
{
    struct block_req *r = &o->req;

    t->tried++;
    if (block_read_now(d, r)) {
        block_submit(d, &r, 1);
    } else {
        t->done++;
        on_done(r, 0);
    }
}

static void batch(struct blockdev *d, uint8_t *model, uint64_t size, struct tally *t)
{
    struct op ops[BATCH] = {0};
    struct block_req *reqs[BATCH];
    unsigned n = (unsigned)chance(BATCH) + 1, nreqs = 0;
    bool at_once = chance(2);

    for (unsigned i = 0; i < n; i++) {
        choose(ops, i, size);
        ops[i].req.done = on_done;
        if (ops[i].req.op == BLOCK_READ || ops[i].req.op == BLOCK_WRITE)
            prepare(&ops[i]);
        if (ops[i].req.op != BLOCK_READ || !at_once)
            reqs[nreqs++] = &ops[i].req;
    }
    block_submit(d, reqs, nreqs);
    for (unsigned i = 0; at_once && i < n; i++)
        if (ops[i].req.op == BLOCK_READ)
            read_now(d, &ops[i], t);
    for (unsigned i = 0; i < n; i++) {
        const struct block_req *r = &ops[i].req;

        finish(d, &ops[i]);
        if (ops[i].rc)
            die(strerrordesc_np(-ops[i].rc), r->offset);
        if (r->op == BLOCK_WRITE)
            memcpy(model + r->offset, ops[i].buf, r->len);
        else if (r->op == BLOCK_WRITE_ZEROES)
            memset(model + r->offset, 0, r->len);
        else if (r->op == BLOCK_READ && memcmp(model + r->offset, ops[i].buf, r->len))
            die("wrong data", r->offset);
    }
    for (unsigned i = 0; i < n; i++) {
        if (ops[i].req.op == BLOCK_DISCARD)
            settle_discard(d, &ops[i], model);
        free(ops[i].buf);
    }
}

static void check_all(struct blockdev *d, const uint8_t *model, uint64_t size)
{
    for (uint64_t at = 0; at < size; at += MIB) {
        struct op o = {
            .req = {.op = BLOCK_READ, .offset = at, .len = MIN(MIB, size - at), .done = on_done}};
        struct block_req *r = &o.req;

        prepare(&o);
        block_submit(d, &r, 1);
        finish(d, &o);
        if (o.rc || memcmp(model + at, o.buf, o.req.len))
            die("wrong data at the end", at);
        free(o.buf);
    }
}

int main(int argc, char **argv)
{
    static const char *const engines[] = {
        [BLOCK_AIO_URING] = "io_uring", [BLOCK_AIO_THREADS] = "threads", [BLOCK_AIO_SYNC] = "sync"};
    struct block_options o = {.format = "qcow2"};
    struct tally tally = {0};
    struct blockdev *d;
    struct err e = {""};
    uint8_t *model;
    uint64_t size, count;
    int fd, rc;

    if (argc != 6)
        return 2;
    for (size_t i = 0; i < ARRAY_LEN(engines); i++) {
        if (!strcmp(argv[5], engines[i]))
            o.aio = (enum block_aio_kind)i;
    }
    chance_seed(argv[3]);
    count = strtoull(argv[4], NULL, 0);
    if (block_open(&d, argv[1], &o, &e)) {
        fprintf(stderr, "qcow2_ops: %s\n", e.msg);
        return 1;
    }
    size = block_info(d)->size;
    model = malloc(size);
    fd = open(argv[2], O_RDWR);
    for (uint64_t at = 0; at < size; at += MIB) {
        if (pread(fd, model + at, MIN(MIB, size - at), (off_t)at) < 0)
            die("cannot read the model", at);
    }
    for (uint64_t i = 0; i < count; i++)
        batch(d, model, size, &tally);
    if (tally.tried > 200 && !tally.done)
        die("not one read could be done at once", tally.tried);
    check_all(d, model, size);
    rc = block_close(d);
    if (rc)
        die(strerrordesc_np(-rc), 0);
    for (uint64_t at = 0; at < size; at += MIB) {
        if (pwrite(fd, model + at, MIN(MIB, size - at), (off_t)at) < 0)
            die("cannot write the model", at);
    }
    close(fd);
    free(model);
    return 0;
}
