/*
 * Power loss. The program's own writes to an image are recorded (the linker sends its pwritev,
 * fdatasync, fallocate and ftruncate here), while random requests run. Afterwards states of the
 * disk after a power loss are made up: everything before a sync is there, of what came later any
 * part, in any order, down to single sectors. In each the image must be free of corruption, and
 * hold what had been flushed when the power failed.
 *
 * usage: qcow2_power RING3-IMAGE WORK-FOLDER SEED LOSSES
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "back/block/block.h"
#include "back/block/qcow2.h"
#include "base/util.h"
#include "program.h"

#define SECTOR BLOCK_SECTOR
#define DISK (2 * MIB)
#define SECTORS (DISK / SECTOR)
#define FILE_MAX (12 * MIB)
#define ROUNDS 260

enum kind { WRITE, PUNCH, SYNC, FLUSHED };

struct event {
    enum kind kind;
    uint64_t offset, len;
    uint8_t *data;
};

static struct {
    struct event *ev;
    size_t n, cap;
    bool on;
} rec;

/* What the disk may hold: each sector is stamped with the number of the write it comes from. */
static uint32_t (*flushed)[SECTORS]; /* at each FLUSHED */
static size_t nflushed;
static uint32_t now[SECTORS]; /* acknowledged */
static uint32_t stamp;

static void record(enum kind kind, uint64_t offset, uint64_t len, const struct iovec *iov, int niov)
{
    struct event *x;
    uint64_t at = 0;

    if (!rec.on)
        return;
    if (rec.n == rec.cap) {
        rec.cap = rec.cap * 2 + 64;
        rec.ev = realloc(rec.ev, rec.cap * sizeof(*rec.ev));
    }
    x = &rec.ev[rec.n++];
    *x = (struct event){kind, offset, len, iov ? malloc(len) : NULL};
    for (int i = 0; i < niov && at < len; i++) {
        uint64_t n = MIN(iov[i].iov_len, len - at);

        memcpy(x->data + at, iov[i].iov_base, n);
        at += n;
    }
    if (kind != SYNC && kind != FLUSHED && offset + len > FILE_MAX)
        die("the image gets too large", offset);
}

ssize_t __real_pwritev64(int fd, const struct iovec *iov, int n, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t offset);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fallocate64(int fd, int mode, off_t offset, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len);
int __real_ftruncate64(int fd, off_t len);
int __wrap_ftruncate64(int fd, off_t len);

ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t offset)
{
    ssize_t rc = __real_pwritev64(fd, iov, n, offset);

    if (rc > 0)
        record(WRITE, (uint64_t)offset, (uint64_t)rc, iov, n);
    return rc;
}

int __wrap_fdatasync(int fd)
{
    record(SYNC, 0, 0, NULL, 0);
    return 0;
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len)
{
    int rc = __real_fallocate64(fd, mode, offset, len);

    /* The hole that block_file asks about lies beyond the end. */
    if (rc == 0 && offset < lseek(fd, 0, SEEK_END))
        record(PUNCH, (uint64_t)offset, (uint64_t)len, NULL, 0);
    return rc;
}

int __wrap_ftruncate64(int fd, off_t len)
{
    die("a file is truncated", (uint64_t)len);
    return 0;
}

struct op {
    struct block_req req;
    struct iovec iov;
    int rc;
    bool done;
};

static void on_done(struct block_req *r, int rc)
{
    struct op *o = container_of(r, struct op, req);

    o->rc = rc;
    o->done = true;
}

static int submit(struct blockdev *d, enum block_op kind, uint64_t offset, uint64_t len, void *buf)
{
    struct op o = {.iov = {buf, len}};
    struct block_req *r = &o.req;

    o.req = (struct block_req){.op = kind,
                               .flags = BLOCK_REQ_UNMAP,
                               .offset = offset,
                               .len = len,
                               .iov = &o.iov,
                               .niov = buf ? 1 : 0,
                               .done = on_done};
    block_submit(d, &r, 1);
    while (!o.done) {
        block_wait(d);
        block_poll(d);
    }
    return o.rc;
}

static void one(struct blockdev *d)
{
    static uint8_t buf[DISK];
    uint64_t len = (chance(3) ? chance(40) + 1 : chance(700) + 1), first = chance(SECTORS - len + 1),
             k = chance(20);
    int rc;

    if (chance(4) == 0) {
        first = ALIGN_DOWN(first, 16);
        len = MIN(ALIGN_UP(len, 16), SECTORS - first);
    }
    if (k < 5) {
        rc = submit(d, BLOCK_FLUSH, 0, 0, NULL);
        flushed = realloc(flushed, (nflushed + 1) * sizeof(*flushed));
        memcpy(flushed[nflushed++], now, sizeof(now));
        record(FLUSHED, nflushed - 1, 0, NULL, 0);
    } else if (k < 8) {
        rc = submit(d, BLOCK_WRITE_ZEROES, first * SECTOR, len * SECTOR, NULL);
        for (uint64_t i = 0; i < len; i++)
            now[first + i] = 0;
    } else {
        stamp++;
        for (uint64_t i = 0; i < len; i++) {
            uint32_t *p = (uint32_t *)(buf + i * SECTOR);

            for (unsigned w = 0; w < SECTOR / 4; w += 2) {
                p[w] = stamp;
                p[w + 1] = (uint32_t)(first + i);
            }
        }
        rc = submit(d, BLOCK_WRITE, first * SECTOR, len * SECTOR, buf);
        for (uint64_t i = 0; i < len; i++)
            now[first + i] = stamp;
    }
    if (rc)
        die("a request failed", (uint64_t)-rc);
}

/* The number of the write whose data a sector holds, 0 for zeros. */
static uint32_t stamp_of(const uint8_t *p, uint64_t sector)
{
    const uint32_t *w = (const uint32_t *)p;

    for (unsigned i = 0; i < SECTOR / 4; i += 2) {
        if (w[i] != w[0] || w[i + 1] != (w[0] ? sector : 0))
            die("a sector holds what was never written there", sector);
    }
    return w[0];
}

static void apply(uint8_t *file, uint64_t *size, const struct event *x, uint64_t from, uint64_t to)
{
    if (x->kind == PUNCH) {
        memset(file + x->offset + from, 0, to - from);
        return;
    }
    memcpy(file + x->offset + from, x->data + from, to - from);
    *size = MAX(*size, x->offset + to);
}

/* A part of an event: all, nothing, or some of its sectors. */
static void apply_some(uint8_t *file, uint64_t *size, const struct event *x)
{
    uint64_t how = chance(3);

    if (how == 0)
        return;
    for (uint64_t at = 0; at < x->len; at += SECTOR) {
        if (how == 1 || chance(2))
            apply(file, size, x, at, MIN(at + SECTOR, x->len));
    }
}

/* The file as it may be when the power fails after `events` of them; what had been flushed, or -1.
 */
static ssize_t make_state(uint8_t *file, uint64_t *size, size_t events)
{
    size_t synced = 0;
    ssize_t last = -1;

    for (size_t i = 0; i < events; i++) {
        if (rec.ev[i].kind == SYNC)
            synced = i;
        else if (rec.ev[i].kind == FLUSHED)
            last = (ssize_t)rec.ev[i].offset;
    }
    for (size_t i = 0; i < events; i++) {
        const struct event *x = &rec.ev[i];

        if (x->kind == SYNC || x->kind == FLUSHED)
            continue;
        if (i < synced)
            apply(file, size, x, 0, x->len);
        else
            apply_some(file, size, x);
    }
    return last;
}

/* Leaks are allowed. */
static void report(void *arg, const char *line)
{
    if (strncmp(line, "leaked", 6) != 0)
        fprintf(stderr, "  %s\n", line);
}

static void check(const char *path, bool lazy)
{
    struct qcow2_check r = {.report = lazy ? NULL : report};
    struct block_file_options fo = {.ro = true};
    struct block_aio *aio;
    struct block_file *f;
    struct err e = {""};

    if (block_aio_new(&aio, BLOCK_AIO_SYNC, &e) || block_file_open(&f, aio, path, &fo, &e) ||
        qcow2_check(f, QCOW2_REPAIR_NONE, &r, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        die("the image cannot be checked", 0);
    }
    if (r.corruptions && !(lazy && r.dirty))
        die("the image is corrupt", r.corruptions);
    block_file_close(f);
    block_aio_free(aio);
}

/* Each sector holds what it held at the last flush, or something written later. */
static void verify(const char *path, ssize_t last)
{
    struct block_options o = {.format = "qcow2", .aio = BLOCK_AIO_SYNC};
    static uint8_t buf[DISK];
    struct blockdev *d;
    struct err e = {""};

    if (block_open(&d, path, &o, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        die("the image cannot be opened", 0);
    }
    if (submit(d, BLOCK_READ, 0, DISK, buf))
        die("the disk cannot be read", 0);
    for (uint64_t s = 0; s < SECTORS; s++) {
        uint32_t has = stamp_of(buf + s * SECTOR, s), must = last < 0 ? 0 : flushed[last][s];

        /* Zeros may stem from a later zeroing. */
        if (has && has < must)
            die("a sector that was flushed holds older data", s);
        if (!has && must) {
            bool zeroed = now[s] == 0;

            for (size_t i = (size_t)last + 1; i < nflushed && !zeroed; i++)
                zeroed = flushed[i][s] != must;
            if (!zeroed && now[s] == must)
                die("a sector that was flushed is lost", s);
        }
    }
    if (block_close(d))
        die("the image cannot be closed", 0);
}

static void write_file(const char *path, const uint8_t *data, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        die("cannot write a state", (uint64_t)errno);
    close(fd);
}

int main(int argc, char **argv)
{
    struct block_options o = {.format = "qcow2", .aio = BLOCK_AIO_SYNC};
    char path[4096];
    uint8_t *base = calloc(1, FILE_MAX), *file = malloc(FILE_MAX);
    struct blockdev *d;
    struct err e = {""};
    uint64_t base_size, losses;
    bool lazy;
    ssize_t n;
    int fd;

    if (argc != 5)
        return 2;
    chance_seed(argv[3]);
    losses = strtoull(argv[4], NULL, 0);
    fd = open(argv[1], O_RDONLY);
    n = read(fd, base, FILE_MAX);
    if (n <= 0)
        die("cannot read the image", (uint64_t)errno);
    base_size = (uint64_t)n;
    close(fd);
    lazy = base[QCOW2_OFF_COMPAT + 7] & 1;

    rec.on = true;
    if (block_open(&d, argv[1], &o, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    for (unsigned i = 0; i < ROUNDS; i++)
        one(d);
    if (block_close(d))
        die("cannot close the image", 0);
    rec.on = false;

    snprintf(path, sizeof(path), "%s/state", argv[2]);
    for (uint64_t i = 0; i < losses; i++) {
        uint64_t size = base_size;
        ssize_t last;

        memset(file, 0, FILE_MAX);
        memcpy(file, base, base_size);
        last = make_state(file, &size, chance(rec.n + 1));
        write_file(path, file, size);
        check(path, lazy);
        verify(path, last);
    }
    for (size_t i = 0; i < rec.n; i++)
        free(rec.ev[i].data);
    free(rec.ev);
    free(flushed);
    free(base);
    free(file);
    return 0;
}
