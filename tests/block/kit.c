#include "kit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

void kit_init(struct kit *k)
{
    const char *tmp = getenv("TMPDIR");

    memset(k, 0, sizeof(*k));
    /* A file system on a disk: O_DIRECT and holes. */
    snprintf(k->dir, sizeof(k->dir), "%s/ring3-block.XXXXXX", tmp ? tmp : "/var/tmp");
    assert_non_null(mkdtemp(k->dir));
    snprintf(k->path, sizeof(k->path), "%s/disk", k->dir);
    k->o.format = "raw";
}

void kit_fini(struct kit *k)
{
    unlink(k->path);
    assert_int_equal(rmdir(k->dir), 0);
}

uint8_t kit_byte(uint64_t seed, uint64_t at)
{
    uint64_t x = (at / 8 + 1) * (seed * 2 + 1) * 0x9e3779b97f4a7c15;

    return (uint8_t)((x ^ x >> 32) >> at % 8 * 4) | 1; /* never zero */
}

void kit_fill(uint64_t seed, uint64_t at, void *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = kit_byte(seed, at + i);
}

void kit_check(uint64_t seed, uint64_t at, const void *buf, size_t len)
{
    const uint8_t *p = buf;

    for (size_t i = 0; i < len; i++) {
        if (p[i] != kit_byte(seed, at + i))
            fail_msg("byte %#llx is %#x, not %#x", (unsigned long long)(at + i), p[i],
                     kit_byte(seed, at + i));
    }
}

bool kit_is_zero(const void *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (((const uint8_t *)buf)[i])
            return false;
    return true;
}

void kit_file(struct kit *k, uint64_t size, uint64_t seed)
{
    int fd = open(k->path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    static uint8_t buf[65536];

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    for (uint64_t at = 0; seed && at < size; at += sizeof(buf)) {
        size_t n = (size_t)MIN(size - at, sizeof(buf));

        kit_fill(seed, at, buf, n);
        assert_int_equal(pwrite(fd, buf, n, (off_t)at), n);
    }
    close(fd);
}

void kit_read_file(const struct kit *k, uint64_t offset, void *buf, size_t len)
{
    int fd = open(k->path, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, buf, len, (off_t)offset), len);
    close(fd);
}

struct blockdev *kit_open(const struct kit *k)
{
    struct blockdev *d;
    struct err e = {{0}};

    if (block_open(&d, k->path, &k->o, &e))
        fail_msg("%s", e.msg);
    return d;
}

struct wait {
    struct block_req r;
    int rc;
    bool done;
};

static void on_done(struct block_req *r, int rc)
{
    struct wait *w = container_of(r, struct wait, r);

    assert_false(w->done);
    w->done = true;
    w->rc = rc;
}

int kit_do(struct blockdev *d, enum block_op op, uint32_t flags, uint64_t offset, void *buf,
           uint64_t len)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct wait w = {.r = {.op = op,
                           .flags = flags,
                           .offset = offset,
                           .len = len,
                           .iov = &iov,
                           .niov = buf ? 1 : 0,
                           .done = on_done}};
    struct block_req *r = &w.r;

    block_submit(d, &r, 1);
    assert_false(w.done);
    while (!w.done) {
        block_wait(d);
        block_poll(d);
    }
    assert_int_equal(block_inflight(d), 0);
    return w.rc;
}

int kit_read(struct blockdev *d, uint64_t offset, void *buf, uint64_t len)
{
    return kit_do(d, BLOCK_READ, 0, offset, buf, len);
}

int kit_write(struct blockdev *d, uint64_t offset, const void *buf, uint64_t len)
{
    return kit_do(d, BLOCK_WRITE, 0, offset, (void *)buf, len);
}
