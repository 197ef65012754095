/* Snapshots: what is written is read back, and the image stays as it was. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "kit.h"
#include "program.h"

#define SIZE (24ull << 20) /* several leaves of the overlay's bits */

static void check_all(struct blockdev *d, const uint8_t *model, uint8_t *buf)
{
    assert_int_equal(kit_read(d, 0, buf, SIZE), 0);
    assert_memory_equal(buf, model, SIZE);
}

/* A read that needs not wait: in what was written, or in the image, but not across. */
static int read_now(struct blockdev *d, uint64_t at, uint8_t *buf, uint64_t len)
{
    struct iovec iov = {buf, len};
    struct block_req r = {.op = BLOCK_READ, .offset = at, .len = len, .iov = &iov, .niov = 1};

    return block_read_now(d, &r);
}

/* Random writes, zeros and discards (which make zeros) against a copy in memory. */
static void test_random(void **state)
{
    uint8_t *model = malloc(SIZE), *buf = malloc(SIZE);
    struct blockdev *d;
    struct kit k;

    (void)state;
    assert_true(model && buf);
    kit_init(&k);
    k.o.snapshot = true;
    kit_file(&k, SIZE, 1);
    kit_fill(1, 0, model, SIZE);
    d = kit_open(&k);
    assert_false(block_info(d)->ro);
    assert_true(block_info(d)->can_discard);
    for (int i = 0; i < 2000; i++) {
        uint64_t at = chance(SIZE / 512) * 512;
        uint64_t len = MIN((chance(64) + 1) * 512, SIZE - at);

        if (i % 100 == 99)
            len = MIN(len * 256, SIZE - at); /* whole leaves */
        switch (chance(5)) {
        case 4:
            assert_int_equal(kit_do(d, BLOCK_DISCARD, 0, at, NULL, len), 0);
            memset(model + at, 0, len);
            break;
        case 0:
            assert_int_equal(kit_do(d, BLOCK_WRITE_ZEROES, i & 1, at, NULL, len), 0);
            memset(model + at, 0, len);
            break;
        case 1:
            assert_int_equal(kit_read(d, at, buf, len), 0);
            assert_memory_equal(buf, model + at, len);
            break;
        default:
            kit_fill((uint64_t)i, at, model + at, len);
            assert_int_equal(kit_write(d, at, model + at, len), 0);
        }
    }
    check_all(d, model, buf);
    assert_int_equal(kit_do(d, BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    kit_fill(7, 0, model, SIZE);
    assert_int_equal(kit_write(d, 0, model, SIZE), 0);
    check_all(d, model, buf);
    assert_int_equal(block_close(d), 0);

    kit_read_file(&k, 0, buf, SIZE);
    kit_check(1, 0, buf, SIZE);
    d = kit_open(&k);
    assert_int_equal(kit_read(d, 0, buf, SIZE), 0);
    kit_check(1, 0, buf, SIZE);
    assert_int_equal(block_close(d), 0);
    kit_fini(&k);
    free(model);
    free(buf);
}

static void test_read_now(void **state)
{
    uint8_t buf[2048];
    struct blockdev *d;
    struct kit k;

    (void)state;
    kit_init(&k);
    k.o.snapshot = true;
    kit_file(&k, 65536, 1);
    d = kit_open(&k);
    kit_fill(2, 4096, buf, 1024);
    assert_int_equal(kit_write(d, 4096, buf, 1024), 0);
    memset(buf, 0, sizeof(buf));
    assert_int_equal(read_now(d, 4096, buf, 1024), 0);
    kit_check(2, 4096, buf, 1024);
    assert_int_equal(read_now(d, 5120, buf, 1024), 0);
    kit_check(1, 5120, buf, 1024);
    assert_int_equal(read_now(d, 4096, buf, 2048), -EAGAIN);
    assert_int_equal(read_now(d, 65536, buf, 512), -EAGAIN);
    block_close(d);
    kit_fini(&k);
}

/* An ro disk stays ro. */
static void test_ro(void **state)
{
    struct kit k;
    struct blockdev *d;
    uint8_t buf[512] = {0};

    (void)state;
    kit_init(&k);
    k.o.snapshot = k.o.ro = true;
    kit_file(&k, 65536, 1);
    d = kit_open(&k);
    assert_int_equal(kit_write(d, 0, buf, 512), -EROFS);
    block_close(d);
    kit_fini(&k);
}

/* Bytes of the host's disks that the files of this process take which have no name any more. */
static uint64_t nameless_bytes(void)
{
    uint64_t sum = 0;

    for (int fd = 3; fd < 64; fd++) {
        struct stat st;

        if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !st.st_nlink)
            sum += (uint64_t)st.st_blocks * 512;
    }
    return sum;
}

/* What a guest discards, the host has again. */
static void test_room(void **state)
{
    uint8_t *buf = malloc(SIZE);
    struct blockdev *d;
    struct kit k;
    uint64_t before;

    (void)state;
    assert_non_null(buf);
    kit_init(&k);
    k.o.snapshot = true;
    kit_file(&k, SIZE, 1);
    d = kit_open(&k);
    before = nameless_bytes();
    kit_fill(2, 0, buf, SIZE);
    assert_int_equal(kit_write(d, 0, buf, SIZE), 0);
    assert_true(nameless_bytes() >= before + SIZE);
    assert_int_equal(kit_do(d, BLOCK_DISCARD, 0, 0, NULL, SIZE / 2), 0);
    assert_int_equal(kit_do(d, BLOCK_WRITE_ZEROES, BLOCK_REQ_UNMAP, SIZE / 2, NULL, SIZE / 2), 0);
    assert_true(nameless_bytes() <= before + 65536);
    assert_int_equal(kit_read(d, 0, buf, SIZE), 0);
    assert_true(kit_is_zero(buf, SIZE));
    block_close(d);
    kit_fini(&k);
    free(buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_now),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_ro),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
