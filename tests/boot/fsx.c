/*
 * In the guest: random operations on a file or on part of a disk, each compared with a model in memory, after
 * the manner of the file system exerciser that people call fsx.
 *
 * usage: fsx file PATH BYTES OPERATIONS SEED
 *        fsx disk DEVICE BYTES OPERATIONS SEED WORKERS
 *
 * A file may grow up to BYTES. Of a disk, WORKERS processes use BYTES each, one behind the other, at the same time.
 * The last line is "fsx ok", or says what differs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR 512u
#define PAGE 4096u
#define LENGTH_MAX (256u << 10) /* of one operation */

struct world {
    bool disk;
    int fd, direct;     /* through the page cache, and past it */
    uint64_t base, max; /* bytes: where it begins, how large it may become */
    uint64_t size;      /* of the file now */
    uint8_t *model, *buf;
    uint64_t seed;
    uint64_t done; /* operations */
};

/* Of the operation under way; to be said when it goes wrong. */
struct range {
    uint64_t at, len;
};

static uint64_t rnd(struct world *w, uint64_t n)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return (w->seed >> 11) % n;
}

static void fail(const struct world *w, const char *what, struct range r, const char *why)
{
    printf("fsx: operation %llu, %s of %llu bytes at %llu: %s\n", (unsigned long long)w->done, what,
           (unsigned long long)r.len, (unsigned long long)(w->base + r.at), why);
    exit(1);
}

static void check(const struct world *w, bool good, const char *what, struct range r)
{
    if (!good)
        fail(w, what, r, strerror(errno));
}

/* Somewhere below `end`, in multiples of unit; of no bytes if there is no room. */
static struct range some(struct world *w, uint64_t end, unsigned unit)
{
    uint64_t units = end / unit, most = LENGTH_MAX / unit;
    struct range r = {0, 0};

    if (!units)
        return r;
    /* Many small ones among a few large. */
    if (rnd(w, 4))
        most = most < 16 ? most : 16;
    r.len = 1 + rnd(w, most < units ? most : units);
    r.at = rnd(w, units - r.len + 1) * unit;
    r.len *= unit;
    return r;
}

static void fill(struct world *w, struct range r)
{
    for (uint64_t i = 0; i < r.len; i++)
        w->buf[i] = (uint8_t)(rnd(w, 8) ? w->seed >> 32 : 0);
}

/* A write reaches this far: what lies between is zeros (the model beyond the size always is). */
static void grew(struct world *w, struct range r)
{
    if (r.at + r.len > w->size)
        w->size = r.at + r.len;
}

static void compare(const struct world *w, const uint8_t *got, const char *what, struct range r)
{
    char why[100];

    if (!memcmp(got, w->model + r.at, r.len))
        return;
    for (uint64_t i = 0; i < r.len; i++) {
        if (got[i] != w->model[r.at + i]) {
            snprintf(why, sizeof(why), "byte %llu is %#x, not %#x", (unsigned long long)(w->base + r.at + i), got[i],
                     w->model[r.at + i]);
            fail(w, what, r, why);
        }
    }
}

/* ---- operations ---- */

static void do_read(struct world *w)
{
    struct range r = some(w, w->size, w->disk ? SECTOR : 1);

    check(w, pread(w->fd, w->buf, r.len, (off_t)(w->base + r.at)) == (ssize_t)r.len, "read", r);
    compare(w, w->buf, "read", r);
}

static void do_read_direct(struct world *w)
{
    struct range r = some(w, w->size, SECTOR);

    check(w, pread(w->direct, w->buf, r.len, (off_t)(w->base + r.at)) == (ssize_t)r.len, "direct read", r);
    compare(w, w->buf, "direct read", r);
}

static void write_to(struct world *w, int fd, const char *what, unsigned unit)
{
    struct range r = some(w, w->max, unit);

    fill(w, r);
    check(w, pwrite(fd, w->buf, r.len, (off_t)(w->base + r.at)) == (ssize_t)r.len, what, r);
    memcpy(w->model + r.at, w->buf, r.len);
    grew(w, r);
}

static void do_write(struct world *w) { write_to(w, w->fd, "write", w->disk ? SECTOR : 1); }

static void do_write_direct(struct world *w) { write_to(w, w->direct, "direct write", SECTOR); }

static void do_map(struct world *w)
{
    struct range r = some(w, w->size, w->disk ? SECTOR : 1);
    uint64_t from = (w->base + r.at) & ~(uint64_t)(PAGE - 1), skip = w->base + r.at - from;
    uint8_t *p;

    if (!r.len)
        return;
    p = mmap(NULL, skip + r.len, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, (off_t)from);
    check(w, p != MAP_FAILED, "map", r);
    compare(w, p + skip, "read of a map", r);
    if (rnd(w, 2)) {
        fill(w, r);
        memcpy(p + skip, w->buf, r.len);
        memcpy(w->model + r.at, w->buf, r.len);
        if (rnd(w, 2))
            check(w, !msync(p, skip + r.len, MS_SYNC), "sync of a map", r);
    }
    check(w, !munmap(p, skip + r.len), "unmap", r);
}

static void do_sync(struct world *w)
{
    const struct range all = {0, w->size};

    check(w, !(rnd(w, 2) ? fsync(w->fd) : fdatasync(w->fd)), "sync", all);
    /* What is read next comes from the disk. */
    check(w, !posix_fadvise(w->fd, (off_t)w->base, (off_t)w->max, POSIX_FADV_DONTNEED), "forget", all);
}

static void do_zero(struct world *w)
{
    struct range r = some(w, w->size, w->disk ? SECTOR : 1);
    uint64_t where[2] = {w->base + r.at, r.len};

    if (!r.len)
        return;
    if (w->disk)
        check(w, !ioctl(w->fd, BLKZEROOUT, where), "zeroing", r);
    else
        check(w, !fallocate(w->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)where[0], (off_t)where[1]),
              "zeroing", r);
    memset(w->model + r.at, 0, r.len);
}

/* A disk may forget what is discarded, or not, sector by sector; from then on it stays what it is. */
static void do_discard(struct world *w)
{
    struct range r = some(w, w->size, w->disk ? PAGE : 1);
    uint64_t where[2] = {w->base + r.at, r.len};

    if (!r.len)
        return;
    if (!w->disk) {
        check(w, !fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)where[0], (off_t)where[1]),
              "punching", r);
        memset(w->model + r.at, 0, r.len);
        return;
    }
    /* Else what is on the disk is older than the model, and comes to light when the page cache forgets its own. */
    check(w, !fsync(w->fd), "sync", r);
    check(w, !ioctl(w->fd, BLKDISCARD, where), "discard", r);
    check(w, pread(w->direct, w->buf, r.len, (off_t)where[0]) == (ssize_t)r.len, "read of what was discarded", r);
    for (uint64_t at = 0; at < r.len; at += SECTOR) {
        static const uint8_t zeros[SECTOR];

        if (!memcmp(w->buf + at, zeros, SECTOR))
            memset(w->model + r.at + at, 0, SECTOR);
        else
            compare(w, w->buf + at, "read of what was discarded", (struct range){r.at + at, SECTOR});
    }
}

static void do_truncate(struct world *w)
{
    uint64_t size = rnd(w, w->max + 1);

    if (w->disk)
        return;
    check(w, !ftruncate(w->fd, (off_t)size), "truncation", (struct range){0, size});
    if (size < w->size)
        memset(w->model + size, 0, w->size - size);
    w->size = size;
}

static void (*const operations[])(struct world *) = {
    do_read,  do_read_direct, do_write, do_write_direct, do_read, do_read_direct, do_write,   do_write_direct,
    do_write, do_map,         do_map,   do_sync,         do_zero, do_discard,     do_truncate};

/* ---- */

static void check_all(struct world *w)
{
    check(w, !fsync(w->fd), "sync", (struct range){0, w->size});
    check(w, !posix_fadvise(w->fd, 0, 0, POSIX_FADV_DONTNEED), "forget", (struct range){0, w->size});
    if (!w->disk)
        check(w, lseek(w->fd, 0, SEEK_END) == (off_t)w->size, "size", (struct range){0, w->size});
    for (uint64_t at = 0; at < w->size; at += LENGTH_MAX) {
        struct range r = {at, w->size - at < LENGTH_MAX ? w->size - at : LENGTH_MAX};

        check(w, pread(w->fd, w->buf, r.len, (off_t)(w->base + at)) == (ssize_t)r.len, "last read", r);
        compare(w, w->buf, "last read", r);
    }
}

static void work(struct world *w, const char *path, uint64_t operations_left)
{
    const struct range all = {0, w->max};
    int flags = O_RDWR | (w->disk ? 0 : O_CREAT | O_TRUNC);

    w->fd = open(path, flags, 0600);
    check(w, w->fd >= 0, "open", all);
    w->direct = open(path, O_RDWR | O_DIRECT);
    check(w, w->direct >= 0, "direct open", all);
    w->model = calloc(1, w->max);
    w->buf = aligned_alloc(PAGE, LENGTH_MAX);
    check(w, w->model && w->buf, "memory", all);
    if (w->disk) {
        w->size = w->max;
        check(w, pread(w->fd, w->model, w->max, (off_t)w->base) == (ssize_t)w->max, "first read", all);
    }
    for (; operations_left; operations_left--, w->done++)
        operations[rnd(w, sizeof(operations) / sizeof(operations[0]))](w);
    check_all(w);
}

int main(int argc, char **argv)
{
    struct world w = {.disk = argc == 7 && !strcmp(argv[1], "disk")};
    unsigned workers = w.disk ? (unsigned)atoi(argv[6]) : 1;
    bool good = true;
    int status;

    if (argc != (w.disk ? 7 : 6)) {
        fprintf(stderr, "usage: fsx file PATH BYTES OPERATIONS SEED | disk DEVICE BYTES OPERATIONS SEED WORKERS\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    w.max = strtoull(argv[3], NULL, 0);
    for (unsigned i = 0; i < workers; i++) {
        w.base = i * w.max;
        w.seed = strtoull(argv[5], NULL, 0) * 0x9e3779b97f4a7c15 + i + 1;
        if (fork() == 0) {
            work(&w, argv[2], strtoull(argv[4], NULL, 0));
            exit(0);
        }
    }
    for (unsigned i = 0; i < workers; i++)
        good &= wait(&status) > 0 && status == 0;
    puts(good ? "fsx ok" : "fsx failed");
    return !good;
}
