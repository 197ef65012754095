/*
 * A writer to be killed, and what must be found afterwards.
 *
 * usage: qcow2_crash write IMAGE STATE SEED     writes and flushes until it is killed
 *        qcow2_crash full IMAGE STATE KIB       writes until the image may not grow any more, by
 * KIB qcow2_crash verify IMAGE STATE 0
 *
 * STATE is a file that is mapped: for each block of the disk the number of the last write that was
 * submitted, of the last that was acknowledged, and of the last that was flushed. A kill leaves it
 * as it was at that moment.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "back/block/block.h"
#include "base/util.h"
#include "program.h"

#define BLOCK 4096u
#define BLOCKS_MAX 16384u
#define DEPTH 16
#define LEN_MAX 24u /* blocks */

struct state {
    uint64_t number;
    /* Before a write is submitted `submitted` has its number, so that it is never behind the disk.
     */
    uint64_t submitted[BLOCKS_MAX], done[BLOCKS_MAX], flushed[BLOCKS_MAX];
};

struct op {
    struct block_req req;
    struct iovec iov;
    uint64_t first, n, number;
    bool busy;
    int rc;
    uint8_t *buf;
};

static struct state *map_state(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    struct state *s;

    if (fd < 0 || ftruncate(fd, sizeof(*s)) < 0)
        die("cannot open the state", 0);
    s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED)
        die("cannot map the state", 0);
    close(fd);
    return s;
}

static void stamp(uint8_t *p, uint64_t block, uint64_t number)
{
    for (unsigned i = 0; i < BLOCK; i += 16) {
        memcpy(p + i, &block, 8);
        memcpy(p + i + 8, &number, 8);
    }
}

static void on_done(struct block_req *r, int rc)
{
    struct op *o = container_of(r, struct op, req);

    o->rc = rc;
    o->busy = false;
}

static void wait_for(struct blockdev *d, const struct op *o)
{
    while (o->busy) {
        block_wait(d);
        block_poll(d);
    }
}

static void start(struct blockdev *d, struct op *o, enum block_op kind)
{
    struct block_req *r = &o->req;

    o->busy = true;
    o->iov = (struct iovec){o->buf, o->n * BLOCK};
    *r = (struct block_req){.op = kind,
                            .offset = o->first * BLOCK,
                            .len = o->n * BLOCK,
                            .iov = &o->iov,
                            .niov = 1,
                            .done = on_done};
    block_submit(d, &r, 1);
}

/* Writes to places of its own, so that numbers grow. */
static bool choose(struct op *ops, struct op *o, struct state *s, uint64_t blocks)
{
    o->n = chance(chance(4) ? 3 : LEN_MAX) + 1;
    o->first = chance(blocks - o->n + 1);
    for (unsigned i = 0; i < DEPTH; i++) {
        if (&ops[i] != o && ops[i].busy && o->first < ops[i].first + ops[i].n &&
            ops[i].first < o->first + o->n)
            return false;
    }
    o->number = ++s->number;
    for (uint64_t i = 0; i < o->n; i++) {
        s->submitted[o->first + i] = o->number;
        stamp(o->buf + i * BLOCK, o->first + i, o->number);
    }
    return true;
}

/* Takes note of a write that has ended. A failed one may have written any part. */
static int ended(struct op *o, struct state *s)
{
    for (uint64_t i = 0; i < o->n && !o->rc; i++)
        s->done[o->first + i] = o->number;
    o->number = 0;
    return o->rc;
}

static int flush(struct blockdev *d, struct state *s, uint64_t *copy)
{
    struct op f = {.n = 0};

    memcpy(copy, s->done, sizeof(s->done));
    start(d, &f, BLOCK_FLUSH);
    wait_for(d, &f);
    if (!f.rc)
        memcpy(s->flushed, copy, sizeof(s->flushed));
    return f.rc;
}

/* Works until it is killed, or a request fails. */
static int work(struct blockdev *d, struct state *s)
{
    struct op ops[DEPTH] = {0};
    uint64_t blocks = block_info(d)->size / BLOCK, *copy = malloc(sizeof(s->done));
    int rc = 0;

    for (unsigned i = 0; i < DEPTH; i++)
        ops[i].buf = aligned_alloc(BLOCK, LEN_MAX * BLOCK);
    while (!rc) {
        struct op *o = &ops[chance(DEPTH)];

        wait_for(d, o);
        if (o->number)
            rc = ended(o, s);
        if (!rc && choose(ops, o, s, blocks))
            start(d, o, BLOCK_WRITE);
        if (!rc && chance(40) == 0)
            rc = flush(d, s, copy);
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        wait_for(d, &ops[i]);
        if (ops[i].number)
            ended(&ops[i], s);
        free(ops[i].buf);
    }
    free(copy);
    return rc;
}

static struct blockdev *open_image(const char *path)
{
    struct block_options o = {.format = "qcow2"};
    struct blockdev *d;
    struct err e = {""};

    if (block_open(&d, path, &o, &e)) {
        fprintf(stderr, "qcow2_crash: %s\n", e.msg);
        exit(1);
    }
    return d;
}

/* The file may become so much longer; the error must be one of space, and closing may fail, too. */
static void full(const char *image, struct state *s, uint64_t kib)
{
    struct blockdev *d;
    struct rlimit limit;
    struct stat st;
    int rc;

    if (stat(image, &st) < 0)
        die("no image", 0);
    limit.rlim_cur = limit.rlim_max = (rlim_t)st.st_size + kib * KIB;
    setrlimit(RLIMIT_FSIZE, &limit);
    d = open_image(image);
    rc = work(d, s);
    if (rc != -EFBIG && rc != -ENOSPC)
        die("the wrong error", (uint64_t)-rc);
    block_close(d);
}

static void verify(struct blockdev *d, struct state *s)
{
    uint64_t blocks = block_info(d)->size / BLOCK;
    struct op o = {.n = 1, .buf = aligned_alloc(BLOCK, BLOCK)};

    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t oldest = UINT64_MAX, part[2];

        o.first = b;
        start(d, &o, BLOCK_READ);
        wait_for(d, &o);
        if (o.rc)
            die("a block cannot be read", b);
        /* A write that was under way may have got through in part. */
        for (unsigned i = 0; i < BLOCK; i += 16) {
            memcpy(part, o.buf + i, 16);
            if (part[0] != (part[1] ? b : 0))
                die("a block holds another one's data", b);
            if (part[1] < s->flushed[b])
                die("a flushed block is lost", b);
            if (part[1] > s->submitted[b])
                die("a block is from the future", b);
            oldest = MIN(oldest, part[1]);
        }
        /* What is there now has been there since before the next crash. */
        s->flushed[b] = s->done[b] = oldest;
    }
    free(o.buf);
}

int main(int argc, char **argv)
{
    struct blockdev *d;
    struct state *s;

    if (argc != 5)
        return 2;
    s = map_state(argv[3]);
    chance_seed(argv[4]);
    if (!strcmp(argv[1], "full")) {
        full(argv[2], s, strtoull(argv[4], NULL, 0));
        return 0;
    }
    d = open_image(argv[2]);
    if (!strcmp(argv[1], "verify")) {
        verify(d, s);
    } else {
        puts("writing");
        fflush(stdout);
        work(d, s);
        die("a request failed", 0);
    }
    return block_close(d) ? 1 : 0;
}
