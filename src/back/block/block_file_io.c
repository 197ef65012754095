/*
 * Synchronous I/O on image files: transfers of any alignment, holes and zeros. Any thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "back/block/block_file.h"
#include "back/block/block_file_priv.h"
#include "back/block/block_iov.h"
#include "base/util.h"

#define BOUNCE_MAX (1 * MIB)
#define IOVS 64

bool block_file_iov_aligned(const struct block_file *f, const struct iovec *iov, unsigned niov)
{
    uintptr_t all = 0;

    for (unsigned i = 0; i < niov; i++)
        all |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return (all & (f->info.align - 1)) == 0;
}

/* One system call's worth. Bytes done, 0 at the end of the file, or negative errno. */
static int64_t transfer_some(struct block_file *f, bool write, uint64_t offset,
                             const struct iovec *iov, unsigned niov, uint64_t done, uint64_t len)
{
    struct iovec part[IOVS];
    unsigned n = block_iov_slice_max(iov, niov, done, len - done, part, IOVS);
    ssize_t rc;

    do {
        if (write)
            rc = pwritev(f->fd, part, (int)n, (off_t)(offset + done));
        else
            rc = preadv(f->fd, part, (int)n, (off_t)(offset + done));
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : rc;
}

static void zero_rest(const struct iovec *iov, unsigned niov, uint64_t done, uint64_t len)
{
    struct iovec part[IOVS];

    while (done < len) {
        unsigned n = block_iov_slice_max(iov, niov, done, len - done, part, IOVS);

        block_iov_zero(part, n);
        done += block_iov_len(part, n);
    }
}

static int transfer_plain(struct block_file *f, bool write, uint64_t offset,
                          const struct iovec *iov, unsigned niov, uint64_t len, uint64_t done)
{
    while (done < len) {
        int64_t n = transfer_some(f, write, offset, iov, niov, done, len);

        if (n < 0)
            return (int)n;
        if (n == 0 && write)
            return -EIO;
        done += (uint64_t)n;
        /* The end of the file; of O_DIRECT the last block of a file may be a part of one. */
        if (n == 0 || (!write && (done & (f->info.align - 1)))) {
            zero_rest(iov, niov, done, len);
            break;
        }
    }
    return 0;
}

/* Reads the block at offset into buf, zeros where the file has none. */
static int read_block(struct block_file *f, uint64_t offset, void *buf)
{
    struct iovec iov = {.iov_base = buf, .iov_len = f->info.align};

    return transfer_plain(f, false, offset, &iov, 1, f->info.align, 0);
}

/* A piece of a transfer through an aligned buffer. */
static int bounce_piece(struct block_file *f, bool write, uint64_t offset, const struct iovec *iov,
                        unsigned niov, uint64_t at, uint64_t n, uint8_t *buf)
{
    uint64_t align = f->info.align;
    uint64_t start = ALIGN_DOWN(offset + at, align), end = ALIGN_UP(offset + at + n, align);
    uint64_t skip = offset + at - start;
    struct iovec whole = {.iov_base = buf, .iov_len = end - start};
    int rc = 0;

    if (!write) {
        rc = transfer_plain(f, false, start, &whole, 1, end - start, 0);
        if (rc == 0)
            block_iov_write(iov, niov, at, buf + skip, n);
        return rc;
    }
    if (skip)
        rc = read_block(f, start, buf);
    if (rc == 0 && start + skip + n < end && (!skip || end - start > align))
        rc = read_block(f, end - align, buf + (end - start) - align);
    if (rc)
        return rc;
    block_iov_read(iov, niov, at, buf + skip, n);
    return transfer_plain(f, true, start, &whole, 1, end - start, 0);
}

static int transfer_bounced(struct block_file *f, bool write, uint64_t offset,
                            const struct iovec *iov, unsigned niov, uint64_t len, uint64_t done)
{
    uint64_t align = f->info.align;
    size_t size = MIN(BOUNCE_MAX, ALIGN_UP(len - done, align) + align);
    int64_t before = write ? block_file_size(f) : 0;
    uint8_t *buf;
    int rc = 0;

    if (before < 0)
        return (int)before;
    if (posix_memalign((void **)&buf, align, size))
        return -ENOMEM;
    while (rc == 0 && done < len) {
        uint64_t head = (offset + done) & (align - 1);
        uint64_t n = MIN(len - done, size - head);

        rc = bounce_piece(f, write, offset, iov, niov, done, n, buf);
        done += n;
    }
    free(buf);
    /* A whole last block must not make an image longer than what was written into it. */
    if (rc == 0 && write && !f->info.is_blockdev && (offset + len) & (align - 1) &&
        ALIGN_UP(offset + len, align) > (uint64_t)before &&
        ftruncate(f->fd, (off_t)MAX((uint64_t)before, offset + len)) < 0)
        rc = -errno;
    return rc;
}

int block_file_transfer(struct block_file *f, bool write, uint64_t offset, const struct iovec *iov,
                        unsigned niov, uint64_t len, uint64_t done)
{
    if (offset > INT64_MAX || len > INT64_MAX - offset)
        return write ? -EFBIG : -EINVAL;
    if (f->info.align == 1 ||
        (block_file_aligned(f, offset + done, len - done) && block_file_iov_aligned(f, iov, niov)))
        return transfer_plain(f, write, offset, iov, niov, len, done);
    return transfer_bounced(f, write, offset, iov, niov, len, done);
}

int block_file_read_now(struct block_file *f, const struct block_req *r)
{
    ssize_t n;

    /* O_DIRECT would wait for the disk whatever we say. */
    if (f->info.align > 1 || r->niov > IOV_MAX ||
        atomic_load_explicit(&f->no_nowait, memory_order_relaxed))
        return -EAGAIN;
    n = preadv2(f->fd, r->iov, (int)r->niov, (off_t)r->offset, RWF_NOWAIT);
    if (n < 0 && errno == EOPNOTSUPP)
        atomic_store_explicit(&f->no_nowait, true, memory_order_relaxed);
    return n >= 0 && (uint64_t)n == r->len ? 0 : -EAGAIN;
}

int block_file_readv(struct block_file *f, uint64_t offset, const struct iovec *iov, unsigned niov)
{
    return block_file_transfer(f, false, offset, iov, niov, block_iov_len(iov, niov), 0);
}

int block_file_writev(struct block_file *f, uint64_t offset, const struct iovec *iov, unsigned niov)
{
    return block_file_transfer(f, true, offset, iov, niov, block_iov_len(iov, niov), 0);
}

int block_file_read(struct block_file *f, uint64_t offset, void *buf, size_t len)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};

    return block_file_transfer(f, false, offset, &iov, 1, len, 0);
}

int block_file_write(struct block_file *f, uint64_t offset, const void *buf, size_t len)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};

    return block_file_transfer(f, true, offset, &iov, 1, len, 0);
}

int block_file_flush(struct block_file *f)
{
    return f->no_flush || fdatasync(f->fd) == 0 ? 0 : -errno;
}

static int write_zeros(struct block_file *f, uint64_t offset, uint64_t len)
{
    size_t size = (size_t)MIN(len, BOUNCE_MAX);
    void *buf;
    int rc = 0;

    if (!len)
        return 0;
    if (posix_memalign(&buf, 4096, size))
        return -ENOMEM;
    memset(buf, 0, size);
    while (rc == 0 && len) {
        size_t n = (size_t)MIN(len, size);

        rc = block_file_write(f, offset, buf, n);
        offset += n;
        len -= n;
    }
    free(buf);
    return rc;
}

/* 0, negative errno, or 1 if the host cannot do that. */
static int try_fallocate(struct block_file *f, _Atomic bool *unknown, int mode, uint64_t offset,
                         uint64_t len)
{
    int rc;

    if (atomic_load_explicit(unknown, memory_order_relaxed))
        return 1;
    do {
        rc = fallocate(f->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return -errno;
    atomic_store_explicit(unknown, true, memory_order_relaxed);
    return 1;
}

static int zero_whole(struct block_file *f, uint64_t offset, uint64_t len, bool unmap)
{
    int rc = 1;

    if (!unmap)
        rc = try_fallocate(f, &f->no_zero_range, FALLOC_FL_ZERO_RANGE, offset, len);
    if (rc == 1)
        rc = try_fallocate(f, &f->no_punch, FALLOC_FL_PUNCH_HOLE, offset, len);
    return rc == 1 ? write_zeros(f, offset, len) : rc;
}

int block_file_zero(struct block_file *f, uint64_t offset, uint64_t len, bool unmap)
{
    /* A block device zeroes whole blocks only; files do any. */
    uint64_t unit = f->info.is_blockdev ? f->info.logical_block : 1;
    uint64_t end = offset + len, first, last;
    int rc;

    if (end > INT64_MAX || end < offset)
        return -EFBIG;
    if (!len)
        return 0;
    first = ALIGN_UP(offset, unit);
    last = ALIGN_DOWN(end, unit);
    if (first >= last)
        return write_zeros(f, offset, len);
    rc = write_zeros(f, offset, first - offset);
    if (rc == 0)
        rc = zero_whole(f, first, last - first, unmap);
    if (rc == 0)
        rc = write_zeros(f, last, end - last);
    return rc;
}

int block_file_discard(struct block_file *f, uint64_t offset, uint64_t len)
{
    uint64_t unit = f->info.logical_block;
    uint64_t first = ALIGN_UP(offset, unit), last = ALIGN_DOWN(offset + len, unit);
    int rc;

    if (offset + len > INT64_MAX || offset + len < offset)
        return -EFBIG;
    if (first >= last)
        return 0;
    if (f->info.is_blockdev) {
        uint64_t range[2] = {first, last - first};

        return ioctl(f->fd, BLKDISCARD, range) == 0 ? 0 : -errno;
    }
    rc = try_fallocate(f, &f->no_punch, FALLOC_FL_PUNCH_HOLE, first, last - first);
    return rc == 1 ? -EOPNOTSUPP : rc;
}

int block_file_truncate(struct block_file *f, uint64_t size)
{
    if (f->info.is_blockdev)
        return -EOPNOTSUPP;
    if (size > INT64_MAX)
        return -EFBIG;
    return ftruncate(f->fd, (off_t)size) == 0 ? 0 : -errno;
}

int64_t block_file_size(struct block_file *f)
{
    off_t size = lseek(f->fd, 0, SEEK_END); /* fstat knows no block device's */

    return size < 0 ? -errno : size;
}

int block_file_status(struct block_file *f, uint64_t offset, uint64_t *len)
{
    int64_t size = block_file_size(f);
    off_t data, hole;

    if (size < 0)
        return (int)size;
    if (offset >= (uint64_t)size)
        return BLOCK_ZERO;
    data = lseek(f->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return BLOCK_ZERO; /* a hole up to the end, and beyond that zeros */
    if (data < 0)
        return errno == EINVAL ? BLOCK_DATA : -errno;
    if ((uint64_t)data > offset) {
        *len = MIN(*len, (uint64_t)data - offset);
        return BLOCK_ZERO;
    }
    hole = lseek(f->fd, (off_t)offset, SEEK_HOLE);
    if (hole < 0)
        return -errno;
    *len = MIN(*len, (uint64_t)hole - offset);
    return BLOCK_DATA;
}
