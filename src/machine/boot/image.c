#include "machine/boot/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/block.h"
#include "base/util.h"

struct reading {
    struct block_req req;
    int rc;
};

static void read_done(struct block_req *r, int rc)
{
    container_of(r, struct reading, req)->rc = rc;
}

/* Whole sectors. */
static int read_sectors(struct blockdev *d, uint64_t off, void *buf, size_t n)
{
    struct iovec iov = {buf, n};
    struct reading r = {
        .req = {.op = BLOCK_READ, .offset = off, .len = n, .iov = &iov, .niov = 1, .done = read_done},
        .rc = -EIO,
    };
    struct block_req *req = &r.req;

    block_submit(d, &req, 1);
    block_drain(d);
    return r.rc;
}

static int image_read(void *arg, uint64_t off, void *buf, size_t n)
{
    struct blockdev *d = arg;
    uint64_t first = ALIGN_DOWN(off, (uint64_t)BLOCK_SECTOR);
    uint64_t len = ALIGN_UP(off + n, (uint64_t)BLOCK_SECTOR) - first;
    uint8_t *whole;
    int rc;

    if (first == off && len == n)
        return read_sectors(d, off, buf, n);
    whole = malloc(len);
    if (!whole)
        return -ENOMEM;
    rc = read_sectors(d, first, whole, len);
    if (!rc)
        memcpy(buf, whole + (off - first), n);
    free(whole);
    return rc;
}

int boot_image_find(const char *path, const char *format, uint64_t max, struct boot_files *out,
                    struct err *e)
{
    const struct block_options options = {
        .format = format, .ro = true, .no_lock = true, .aio = BLOCK_AIO_SYNC};
    struct boot_disk disk = {.read = image_read};
    struct blockdev *d;
    int rc = block_open(&d, path, &options, e);

    if (rc)
        return rc;
    disk.arg = d;
    disk.size = block_info(d)->size;
    rc = boot_disk_find(&disk, max, out, e);
    block_close(d);
    return rc ? err_prefix(e, rc, "%s", path) : 0;
}
