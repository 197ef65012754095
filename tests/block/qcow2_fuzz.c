/*
 * Hostile qcow2 images: good ones with bytes changed, mostly where the tables are, are opened,
 * examined, checked, repaired and used. Whatever happens must be an error or work; the sanitizers
 * watch.
 *
 * usage: qcow2_fuzz WORK-FOLDER SEED COUNT IMAGE...
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "back/block/block.h"
#include "back/block/qcow2.h"
#include "back/block/qcow2_snapshot.h"
#include "base/util.h"
#include "program.h"

#define IMAGE_MAX (4 * MIB)

struct op {
    struct block_req req;
    struct iovec iov;
    bool done;
};

static void on_done(struct block_req *r, int rc) { container_of(r, struct op, req)->done = true; }

static void use(const char *path, bool ro)
{
    static const enum block_op kinds[] = {BLOCK_READ,  BLOCK_WRITE,        BLOCK_READ,
                                          BLOCK_FLUSH, BLOCK_WRITE_ZEROES, BLOCK_DISCARD};
    struct block_options o = {.format = "qcow2", .ro = ro, .aio = BLOCK_AIO_SYNC};
    static uint8_t buf[256 * KIB];
    struct blockdev *d;
    struct err e;
    uint64_t size;

    if (block_open(&d, path, &o, &e))
        return;
    size = block_info(d)->size;
    for (unsigned i = 0; i < 40; i++) {
        struct op op = {.iov = {buf, 0}};
        struct block_req *r = &op.req;
        uint64_t len = (chance(sizeof(buf) / 512) + 1) * 512;
        uint64_t near = chance(2) ? MIN(size, IMAGE_MAX) : size;

        if (len > near)
            break;
        *r = (struct block_req){.op = kinds[chance(ARRAY_LEN(kinds))],
                                .len = len,
                                .done = on_done,
                                .offset = chance((near - len) / 512 + 1) * 512,
                                .iov = &op.iov,
                                .niov = 1};
        op.iov.iov_len = len;
        if (r->op == BLOCK_FLUSH)
            r->offset = r->len = 0;
        block_submit(d, &r, 1);
        while (!op.done) {
            block_wait(d);
            block_poll(d);
        }
    }
    if (size && chance(8) == 0)
        block_resize(d, chance(2) ? size / 2 / 512 * 512 : MIN(size, IMAGE_MAX) + MIB, &e);
    block_close(d);
}

static int on_snapshot(void *arg, const struct qcow2_snapshot *s) { return 0; }

static void examine(const char *path, enum qcow2_repair repair)
{
    struct block_file_options fo = {.ro = repair == QCOW2_REPAIR_NONE};
    struct qcow2_check r = {0};
    struct qcow2_header h;
    struct block_aio *aio;
    struct block_file *f;
    struct err e;

    if (block_aio_new(&aio, BLOCK_AIO_SYNC, &e) || block_file_open(&f, aio, path, &fo, &e)) {
        fprintf(stderr, "qcow2_fuzz: %s\n", e.msg);
        exit(1);
    }
    if (!qcow2_read_header(f, &h, &e))
        qcow2_snapshot_walk(f, &h, on_snapshot, NULL, NULL, &e);
    qcow2_check(f, repair, &r, &e);
    block_file_close(f);
    block_aio_free(aio);
}

/* Values that mean something: offsets of other tables, ends, large numbers. */
static void damage(uint8_t *p, size_t n)
{
    static const uint64_t values[] = {0,
                                      1,
                                      0x10000,
                                      0x20000,
                                      0x30000,
                                      0x40000,
                                      512,
                                      1024,
                                      4096,
                                      8192,
                                      UINT64_MAX,
                                      BIT(63),
                                      BIT(62),
                                      BIT(55),
                                      BIT(63) | 0x10000,
                                      BIT(63) | 0x30000,
                                      BIT(62) | 0x40000,
                                      INT64_MAX,
                                      0x100000001};
    size_t cluster = BIT(qcow2_be32(p + 20) % 22), tables = MIN(n, cluster * 6);

    for (uint64_t k = chance(6) + 1; k > 0; k--) {
        size_t at = chance(4) == 0 ? chance(112) : chance(3) ? chance(tables) : chance(n);

        switch (chance(4)) {
        case 0:
            p[at] ^= (uint8_t)BIT(chance(8));
            break;
        case 1:
            p[at] = (uint8_t)chance(256);
            break;
        case 2:
            at = ALIGN_DOWN(MIN(at, n - 8), 8);
            qcow2_put64(p + at, values[chance(ARRAY_LEN(values))]);
            break;
        default:
            at = ALIGN_DOWN(MIN(at, n - 8), 4);
            qcow2_put32(p + at, (uint32_t)values[chance(ARRAY_LEN(values))]);
            break;
        }
    }
}

static size_t load(const char *path, uint8_t *buf)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, IMAGE_MAX);

    if (n < 512) {
        fprintf(stderr, "qcow2_fuzz: cannot read %s\n", path);
        exit(1);
    }
    close(fd);
    return (size_t)n;
}

static void store(const char *path, const uint8_t *buf, size_t n)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || write(fd, buf, n) != (ssize_t)n) {
        fprintf(stderr, "qcow2_fuzz: cannot write %s\n", path);
        exit(1);
    }
    close(fd);
}

int main(int argc, char **argv)
{
    /* Tables may point far beyond the end; the host's disk is not to be filled. */
    struct rlimit limit = {64 * MIB, 64 * MIB};
    uint8_t *image = malloc(IMAGE_MAX);
    char path[4096];

    if (argc < 5)
        return 2;
    setrlimit(RLIMIT_FSIZE, &limit);
    chance_seed(argv[2]);
    snprintf(path, sizeof(path), "%s/fuzzed", argv[1]);
    for (uint64_t i = strtoull(argv[3], NULL, 0); i > 0; i--) {
        size_t n = load(argv[4 + chance((uint64_t)argc - 4)], image);

        damage(image, n);
        if (chance(20) == 0)
            n = 512 + chance(n - 512);
        store(path, image, n);
        examine(path, QCOW2_REPAIR_NONE);
        use(path, true);
        use(path, false);
        examine(path, chance(2) ? QCOW2_REPAIR_ALL : QCOW2_REPAIR_LEAKS);
        use(path, false);
    }
    free(image);
    return 0;
}
