/*
 * Raw disks, on the engine named by the first argument (io_uring, threads, sync), with the page
 * cache and with O_DIRECT.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "kit.h"

static enum block_aio_kind engine;

static int setup(void **state)
{
    struct kit *k = calloc(1, sizeof(*k));

    assert_non_null(k);
    kit_init(k);
    k->o.aio = engine;
    *state = k;
    return 0;
}

static int setup_direct(void **state)
{
    struct kit *k;

    setup(state);
    k = *state;
    k->o.cache = BLOCK_CACHE_NONE;
    return 0;
}

static int teardown(void **state)
{
    kit_fini(*state);
    free(*state);
    return 0;
}

static uint8_t *buffer(size_t size)
{
    void *p = NULL;

    assert_int_equal(posix_memalign(&p, 4096, size), 0);
    return p;
}

static void test_read_write(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(1 << 20);
    struct blockdev *d;

    kit_file(k, 4 << 20, 1);
    d = kit_open(k);
    assert_int_equal(block_info(d)->size, 4 << 20);
    assert_int_equal(block_info(d)->aio, engine);
    assert_string_equal(block_info(d)->format, "raw");
    assert_false(block_info(d)->probed);
    assert_int_equal(kit_read(d, 0, buf, 1 << 20), 0);
    kit_check(1, 0, buf, 1 << 20);
    assert_int_equal(kit_read(d, 512 * 13, buf, 512 * 5), 0);
    kit_check(1, 512 * 13, buf, 512 * 5);
    kit_fill(2, 65536, buf, 131072);
    assert_int_equal(kit_write(d, 65536, buf, 131072), 0);
    assert_int_equal(kit_do(d, BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    memset(buf, 0, 131072);
    kit_read_file(k, 65536, buf, 131072);
    kit_check(2, 65536, buf, 131072);
    assert_int_equal(kit_read(d, 65536 - 512, buf, 131072 + 1024), 0);
    kit_check(1, 65536 - 512, buf, 512);
    kit_check(2, 65536, buf + 512, 131072);
    kit_check(1, 65536 + 131072, buf + 512 + 131072, 512);
    assert_int_equal(block_close(d), 0);
    free(buf);
}

struct many {
    struct block_req r;
    struct iovec iov[4];
    uint8_t *buf;
    unsigned *left;
    uint64_t seed;
};

static void many_done(struct block_req *r, int rc)
{
    struct many *m = container_of(r, struct many, r);

    assert_int_equal(rc, 0);
    (*m->left)--;
}

#define MANY 700 /* more than any ring holds */
#define PIECE 6144u

/* Vectors in odd pieces, many at once; each ends once, and all bytes are where they belong. */
static void test_many(void **state)
{
    struct kit *k = *state;
    struct many *m = calloc(MANY, sizeof(*m));
    struct block_req **reqs = calloc(MANY, sizeof(struct block_req *));
    unsigned left;
    struct blockdev *d;

    assert_true(m && reqs);
    kit_file(k, (uint64_t)MANY * PIECE, 0);
    d = kit_open(k);
    for (int pass = 0; pass < 2; pass++) {
        left = MANY;
        for (unsigned i = 0; i < MANY; i++) {
            uint64_t at = (uint64_t)((i * 37) % MANY) * PIECE;
            uint8_t *p = m[i].buf = m[i].buf ? m[i].buf : buffer(PIECE);

            if (pass == 0)
                kit_fill(3, at, p, PIECE);
            else
                memset(p, 0, PIECE);
            m[i].iov[0] = (struct iovec){p, 1};
            m[i].iov[1] = (struct iovec){p + 1, 0};
            m[i].iov[2] = (struct iovec){p + 1, 4095};
            m[i].iov[3] = (struct iovec){p + 4096, PIECE - 4096};
            m[i].left = &left;
            m[i].r = (struct block_req){.op = pass ? BLOCK_READ : BLOCK_WRITE,
                                        .offset = at,
                                        .len = PIECE,
                                        .iov = m[i].iov,
                                        .niov = 4,
                                        .done = many_done};
            reqs[i] = &m[i].r;
        }
        block_submit(d, reqs, MANY);
        assert_int_equal(block_inflight(d), MANY);
        assert_int_equal(left, MANY);
        if (pass == 0) {
            block_drain(d);
        } else {
            unsigned called = 0;

            while (block_inflight(d)) {
                block_wait(d);
                called += block_poll(d);
            }
            assert_int_equal(called, MANY);
        }
        assert_int_equal(left, 0);
    }
    for (unsigned i = 0; i < MANY; i++) {
        kit_check(3, (uint64_t)((i * 37) % MANY) * PIECE, m[i].buf, PIECE);
        free(m[i].buf);
    }
    assert_int_equal(block_close(d), 0);
    free(reqs);
    free(m);
}

/* Buffers and places that O_DIRECT refuses. Neighbours in one block are written at once. */
static void test_unaligned(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(65536 + 4096), *back = buffer(65536);
    struct many m[64];
    struct block_req *reqs[64];
    unsigned left = 64;
    struct blockdev *d;

    kit_file(k, 1 << 20, 1);
    d = kit_open(k);
    memset(m, 0, sizeof(m));
    for (unsigned i = 0; i < 64; i++) {
        uint8_t *p = buf + 3 + i * 512;

        kit_fill(2, 1536 + i * 512, p, 512);
        m[i].iov[0] = (struct iovec){p, 512};
        m[i].left = &left;
        m[i].r = (struct block_req){.op = BLOCK_WRITE,
                                    .offset = 1536 + i * 512,
                                    .len = 512,
                                    .iov = m[i].iov,
                                    .niov = 1,
                                    .done = many_done};
        reqs[i] = &m[i].r;
    }
    block_submit(d, reqs, 64);
    block_drain(d);
    assert_int_equal(left, 0);
    assert_int_equal(kit_read(d, 0, back, 65536), 0);
    kit_check(1, 0, back, 1536);
    kit_check(2, 1536, back + 1536, 64 * 512);
    kit_check(1, 1536 + 64 * 512, back + 1536 + 64 * 512, 65536 - 1536 - 64 * 512);
    assert_int_equal(kit_read(d, 512, buf + 1, 65536), 0);
    kit_check(1, 512, buf + 1, 1024);
    kit_check(2, 1536, buf + 1 + 1024, 64 * 512);
    assert_int_equal(block_close(d), 0);
    free(buf);
    free(back);
}

/* A file whose last sector is not whole. */
static void test_short_file(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(8192);
    struct stat st;
    struct blockdev *d;

    kit_file(k, 10000, 1);
    d = kit_open(k);
    assert_int_equal(block_info(d)->size, 10240);
    memset(buf, 0xee, 8192);
    assert_int_equal(kit_read(d, 8192, buf, 2048), 0);
    kit_check(1, 8192, buf, 10000 - 8192);
    assert_true(kit_is_zero(buf + 10000 - 8192, 240));
    assert_int_equal(buf[2048], 0xee);
    assert_int_equal(kit_read(d, 10240, buf, 512), -EINVAL);
    /* Writing elsewhere does not make it longer; writing there does. */
    kit_fill(2, 9216, buf, 512);
    assert_int_equal(kit_write(d, 9216, buf, 512), 0);
    assert_int_equal(stat(k->path, &st), 0);
    assert_int_equal(st.st_size, 10000);
    kit_fill(2, 9728, buf, 512);
    assert_int_equal(kit_write(d, 9728, buf, 512), 0);
    assert_int_equal(stat(k->path, &st), 0);
    assert_int_equal(st.st_size, 10240);
    assert_int_equal(kit_read(d, 9216, buf, 1024), 0);
    kit_check(2, 9216, buf, 1024);
    assert_int_equal(block_close(d), 0);
    free(buf);
}

static uint64_t allocated(const struct kit *k)
{
    struct stat st;

    assert_int_equal(stat(k->path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void test_holes(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(1 << 20);
    struct blockdev *d;
    uint64_t len;

    kit_file(k, 4 << 20, 1);
    d = kit_open(k);
    assert_true(block_info(d)->can_discard);
    assert_true(allocated(k) >= 4 << 20);
    assert_int_equal(kit_do(d, BLOCK_DISCARD, 0, 1 << 20, NULL, 1 << 20), 0);
    assert_true(allocated(k) < (3 << 20) + 65536);
    assert_int_equal(kit_read(d, 1 << 20, buf, 1 << 20), 0);
    assert_true(kit_is_zero(buf, 1 << 20));
    len = 4 << 20;
    assert_int_equal(block_status(d, 0, &len), BLOCK_DATA);
    assert_int_equal(len, 1 << 20);
    len = 3 << 20;
    assert_int_equal(block_status(d, 1 << 20, &len), BLOCK_ZERO);
    assert_int_equal(len, 1 << 20);

    /* Zeros with and without deallocation, also in parts of blocks. */
    assert_int_equal(kit_do(d, BLOCK_WRITE_ZEROES, 0, (2 << 20) + 512, NULL, 9 * 512), 0);
    assert_int_equal(kit_read(d, 2 << 20, buf, 16384), 0);
    kit_check(1, 2 << 20, buf, 512);
    assert_true(kit_is_zero(buf + 512, 9 * 512));
    kit_check(1, (2 << 20) + 10 * 512, buf + 10 * 512, 16384 - 10 * 512);
    len = allocated(k);
    assert_int_equal(kit_do(d, BLOCK_WRITE_ZEROES, BLOCK_REQ_UNMAP, 3 << 20, NULL, 1 << 20), 0);
    assert_true(allocated(k) <= len - (1 << 20) + 65536);
    assert_int_equal(kit_read(d, 3 << 20, buf, 1 << 20), 0);
    assert_true(kit_is_zero(buf, 1 << 20));
    assert_int_equal(kit_read(d, (3 << 20) - 512, buf, 512), 0);
    kit_check(1, (3 << 20) - 512, buf, 512);
    assert_int_equal(block_close(d), 0);
    free(buf);
}

static void test_refusals(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(4096);
    struct blockdev *d;

    kit_file(k, 65536, 1);
    d = kit_open(k);
    assert_int_equal(kit_read(d, 65536 - 512, buf, 1024), -EINVAL);
    assert_int_equal(kit_write(d, 65536, buf, 512), -EINVAL);
    assert_int_equal(kit_read(d, UINT64_MAX - 511, buf, 1024), -EINVAL);
    assert_int_equal(kit_read(d, 1, buf, 512), -EINVAL);
    assert_int_equal(kit_read(d, 0, buf, 511), -EINVAL);
    assert_int_equal(kit_do(d, BLOCK_DISCARD, 0, 0, NULL, UINT64_MAX - 511), -EINVAL);
    assert_int_equal(kit_do(d, BLOCK_WRITE, 0, 0, NULL, 512), -EINVAL); /* no buffer */
    assert_int_equal(kit_read(d, 512, buf, 0), 0);
    block_close(d);

    k->o.ro = true;
    d = kit_open(k);
    assert_true(block_info(d)->ro);
    assert_int_equal(kit_write(d, 0, buf, 512), -EROFS);
    assert_int_equal(kit_do(d, BLOCK_DISCARD, 0, 0, NULL, 512), -EROFS);
    assert_int_equal(kit_do(d, BLOCK_WRITE_ZEROES, 0, 0, NULL, 512), -EROFS);
    assert_int_equal(kit_do(d, BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(kit_read(d, 0, buf, 512), 0);
    kit_check(1, 0, buf, 512);
    block_close(d);
    free(buf);
}

/* The host refuses a write: the guest sees an error, and everything else goes on. */
static void test_full(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(65536);
    struct rlimit old, lim;
    struct blockdev *d;

    kit_file(k, 4 << 20, 0);
    kit_fill(5, 0, buf, 65536);
    d = kit_open(k);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    lim = old;
    lim.rlim_cur = (2 << 20) + 8192;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &lim), 0);
    assert_int_equal(kit_write(d, 1 << 20, buf, 65536), 0);
    assert_int_equal(kit_write(d, 3 << 20, buf, 65536), -EFBIG);
    assert_int_equal(kit_write(d, 2 << 20, buf, 65536), -EFBIG); /* cut short */
    assert_int_equal(kit_do(d, BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(kit_read(d, 1 << 20, buf, 65536), 0);
    kit_check(5, 0, buf, 65536);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(kit_write(d, 3 << 20, buf, 65536), 0);
    block_close(d);
    free(buf);
}

static void test_resize(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(4096);
    struct blockdev *d;
    struct err e;

    kit_file(k, 65536, 1);
    d = kit_open(k);
    assert_int_equal(block_resize(d, 131072, &e), 0);
    assert_int_equal(block_info(d)->size, 131072);
    assert_int_equal(kit_read(d, 131072 - 4096, buf, 4096), 0);
    assert_true(kit_is_zero(buf, 4096));
    assert_int_equal(block_resize(d, 100, &e), -EINVAL);
    assert_int_equal(block_resize(d, 4096, &e), 0);
    assert_int_equal(kit_read(d, 4096, buf, 512), -EINVAL);
    block_close(d);
    free(buf);
}

static int read_now(struct blockdev *d, uint64_t offset, void *buf, size_t len)
{
    struct iovec iov = {buf, len};
    struct block_req r = {
        .op = BLOCK_READ, .offset = offset, .len = len, .iov = &iov, .niov = 1};

    return block_read_now(d, &r);
}

/* What is cached can be read at once, from any thread; everything else cannot. */
static void test_read_now(void **state)
{
    struct kit *k = *state;
    uint8_t *buf = buffer(8192);
    struct blockdev *d;
    int fd;

    kit_file(k, 65536 + 100, 1);
    d = kit_open(k);
    assert_int_equal(kit_read(d, 4096, buf, 8192), 0);
    memset(buf, 0, 8192);
    if (k->o.cache == BLOCK_CACHE_NONE) {
        assert_int_equal(read_now(d, 4096, buf, 8192), -EAGAIN);
    } else {
        assert_int_equal(read_now(d, 4096, buf, 8192), 0);
        kit_check(1, 4096, buf, 8192);
    }
    assert_int_equal(read_now(d, 65536, buf, 512), -EAGAIN); /* the file ends within */
    assert_int_equal(read_now(d, 1, buf, 512), -EAGAIN);
    assert_int_equal(read_now(d, 65536 + 512, buf, 512), -EAGAIN);
    fd = open(k->path, O_RDONLY);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    /* The host may keep it nevertheless. */
    memset(buf, 0, 4096);
    if (read_now(d, 4096, buf, 4096) == 0)
        kit_check(1, 4096, buf, 4096);
    close(fd);
    block_close(d);

    k->o.iops.rate = 1000000;
    d = kit_open(k);
    assert_int_equal(kit_read(d, 4096, buf, 4096), 0);
    assert_int_equal(read_now(d, 4096, buf, 4096), -EAGAIN);
    block_close(d);
    free(buf);
}

/* A wake between two waits is not lost, nor one that a drain met. */
static void test_wake(void **state)
{
    struct kit *k = *state;
    struct blockdev *d;

    kit_file(k, 65536, 1);
    d = kit_open(k);
    block_wake(d);
    block_wait(d);
    block_wake(d);
    block_drain(d);
    block_wait(d);
    block_close(d);
}

static void test_writethrough(void **state)
{
    struct kit *k = *state;
    uint8_t buf[512] = {1};
    struct blockdev *d;

    kit_file(k, 65536, 1);
    k->o.cache = BLOCK_CACHE_WRITETHROUGH;
    d = kit_open(k);
    assert_false(block_info(d)->writeback);
    assert_int_equal(kit_write(d, 0, buf, 512), 0);
    assert_int_equal(kit_do(d, BLOCK_WRITE_ZEROES, 0, 512, NULL, 512), 0);
    block_set_writeback(d, true);
    assert_true(block_info(d)->writeback);
    assert_int_equal(kit_write(d, 0, buf, 512), 0);
    block_close(d);
}

/* Limits hold requests back, in order, and a drain lets them go. */
static void test_limits(void **state)
{
    struct kit *k = *state;
    struct many m[8];
    struct block_req *reqs[8];
    unsigned left = 8, called = 0;
    struct blockdev *d;
    uint8_t buf[512];

    kit_file(k, 65536, 1);
    k->o.iops = (struct block_limit_cfg){.rate = 1, .burst = 2};
    d = kit_open(k);
    memset(m, 0, sizeof(m));
    for (unsigned i = 0; i < 8; i++) {
        m[i].iov[0] = (struct iovec){buf, 512};
        m[i].left = &left;
        m[i].r = (struct block_req){
            .op = BLOCK_READ, .len = 512, .iov = m[i].iov, .niov = 1, .done = many_done};
        reqs[i] = &m[i].r;
    }
    block_submit(d, reqs, 8);
    /* Two of the burst, one of the bucket, and one a second: here, after waiting for it. */
    while (called < 4) {
        block_wait(d);
        called += block_poll(d);
    }
    assert_int_equal(called, 4);
    assert_int_equal(block_inflight(d), 4);
    block_drain(d);
    assert_int_equal(left, 0);
    block_close(d);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"io_uring", "threads", "sync"};
    const struct CMUnitTest tests[] = {
#define BOTH(f)                                                                                    \
    cmocka_unit_test_setup_teardown(f, setup, teardown),                                           \
        cmocka_unit_test_setup_teardown(f, setup_direct, teardown)
        BOTH(test_read_write), BOTH(test_many),    BOTH(test_unaligned),
        BOTH(test_short_file), BOTH(test_holes),   BOTH(test_refusals),
        BOTH(test_full),       BOTH(test_resize),  BOTH(test_wake),
        BOTH(test_read_now),
        cmocka_unit_test_setup_teardown(test_writethrough, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
    };

    if (argc != 2)
        return 2;
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (!strcmp(argv[1], names[i]))
            engine = (enum block_aio_kind)i;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
