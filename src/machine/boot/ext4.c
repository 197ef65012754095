#include "machine/boot/ext4.h"

#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

struct ext4 {
    const struct boot_disk *d;
    uint64_t start, size;
    ext2_filsys fs;
};

/* ---- libext2fs' way to the disk ---- */

static errcode_t io_close(io_channel io)
{
    if (--io->refcount > 0)
        return 0;
    ext2fs_free_mem(&io->name);
    ext2fs_free_mem(&io);
    return 0;
}

static errcode_t io_set_blksize(io_channel io, int size)
{
    if (size <= 0 || size > EXT2_MAX_BLOCK_SIZE)
        return EXT2_ET_INVALID_ARGUMENT;
    io->block_size = size;
    return 0;
}

/* A negative count is in bytes. */
static errcode_t io_read64(io_channel io, unsigned long long block, int count, void *data)
{
    struct ext4 *x = io->private_data;
    uint64_t n = count < 0 ? (uint64_t)-(int64_t)count : (uint64_t)count * (uint64_t)io->block_size;
    uint64_t off;

    if (__builtin_mul_overflow(block, (uint64_t)io->block_size, &off) || off > x->size ||
        n > x->size - off)
        return EXT2_ET_SHORT_READ;
    return x->d->read(x->d->arg, x->start + off, data, n) ? EXT2_ET_SHORT_READ : 0;
}

static errcode_t io_read(io_channel io, unsigned long block, int count, void *data)
{
    return io_read64(io, block, count, data);
}

static errcode_t io_write64(io_channel io, unsigned long long block, int count, const void *data)
{
    return EXT2_ET_RO_FILSYS;
}

static errcode_t io_write(io_channel io, unsigned long block, int count, const void *data)
{
    return EXT2_ET_RO_FILSYS;
}

static errcode_t io_flush(io_channel io) { return 0; }

static errcode_t io_open(const char *name, int flags, io_channel *out);

static struct struct_io_manager *manager(void)
{
    static const struct struct_io_manager m = {
        .magic = EXT2_ET_MAGIC_IO_MANAGER,
        .name = "ring3",
        .open = io_open,
        .close = io_close,
        .set_blksize = io_set_blksize,
        .read_blk = io_read,
        .write_blk = io_write,
        .flush = io_flush,
        .read_blk64 = io_read64,
        .write_blk64 = io_write64,
    };

    /* libext2fs never writes to it. */
    return (struct struct_io_manager *)(uintptr_t)&m;
}

/* All that libext2fs hands through to here is the name: it is the number of a pointer. */
static errcode_t io_open(const char *name, int flags, io_channel *out)
{
    io_channel io;
    errcode_t rc = ext2fs_get_memzero(sizeof(*io), &io);

    if (rc)
        return rc;
    io->magic = EXT2_ET_MAGIC_IO_CHANNEL;
    io->manager = manager();
    io->block_size = 1024;
    io->refcount = 1;
    io->private_data = (void *)(uintptr_t)strtoull(name, NULL, 16);
    rc = ext2fs_get_mem(strlen(name) + 1, &io->name);
    if (rc) {
        ext2fs_free_mem(&io);
        return rc;
    }
    memcpy(io->name, name, strlen(name) + 1);
    *out = io;
    return 0;
}

/* ---- file systems ---- */

static int failed(errcode_t rc, struct err *e)
{
    switch (rc) {
    case EXT2_ET_FILE_NOT_FOUND:
        return err_set(e, ENOENT, "not there");
    case EXT2_ET_NO_DIRECTORY:
        return err_set(e, ENOTDIR, "not a directory");
    case EXT2_ET_SYMLINK_LOOP:
        return err_set(e, ELOOP, "too many symbolic links");
    case EXT2_ET_NO_MEMORY:
        return err_set(e, ENOMEM, "no memory");
    case EXT2_ET_UNSUPP_FEATURE:
    case EXT2_ET_RO_UNSUPP_FEATURE:
        return err_set(e, ENOTSUP, "an ext4 file system with features that are not known here");
    default:
        return err_set(e, EIO, "ext4: error %ld: corrupt?", (long)rc);
    }
}

int ext4_open(struct ext4 **out, const struct boot_disk *d, uint64_t start, uint64_t size,
              struct err *e)
{
    struct ext4 *x = malloc(sizeof(*x));
    char name[32];
    errcode_t rc;

    if (!x)
        return err_set(e, ENOMEM, "no memory");
    *x = (struct ext4){.d = d, .start = start, .size = size};
    snprintf(name, sizeof(name), "%llx", (unsigned long long)(uintptr_t)x);
    rc = ext2fs_open2(name, NULL,
                      EXT2_FLAG_64BITS | EXT2_FLAG_IGNORE_CSUM_ERRORS | EXT2_FLAG_SKIP_MMP, 0, 0,
                      manager(), &x->fs);
    if (!rc) {
        *out = x;
        return 0;
    }
    free(x);
    return rc == EXT2_ET_BAD_MAGIC || rc == EXT2_ET_SHORT_READ ? -ENOENT : failed(rc, e);
}

void ext4_close(struct ext4 *x)
{
    if (!x)
        return;
    ext2fs_close_free(&x->fs);
    free(x);
}

void ext4_uuid(const struct ext4 *x, char text[EXT4_UUID_TEXT])
{
    const uint8_t *u = x->fs->super->s_uuid;

    for (unsigned k = 0; k < 16; k++) {
        const char *dash = k == 4 || k == 6 || k == 8 || k == 10 ? "-" : "";

        text += sprintf(text, "%s%02x", dash, u[k]);
    }
}

static errcode_t find(struct ext4 *x, const char *path, ext2_ino_t *ino)
{
    return ext2fs_namei_follow(x->fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, ino);
}

static int write_all(int fd, const uint8_t *p, size_t n, struct err *e)
{
    while (n) {
        ssize_t done = write(fd, p, n);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_sys(e, "cannot keep a copy");
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

static int copy(ext2_file_t f, int fd, uint64_t max, struct err *e)
{
    uint8_t buf[64 * KIB];
    __u64 size = 0;
    uint64_t left;
    int rc = 0;

    if (ext2fs_file_get_lsize(f, &size))
        return err_set(e, EIO, "ext4: no size");
    if (size > max)
        return err_set(e, EFBIG, "too large: %llu MiB",
                       (unsigned long long)(ALIGN_UP(size, MIB) / MIB));
    for (left = size; left && !rc;) {
        unsigned got = 0;
        errcode_t x = ext2fs_file_read(f, buf, (unsigned)MIN(left, (uint64_t)sizeof(buf)), &got);

        if (x)
            rc = failed(x, e);
        else if (!got)
            rc = err_set(e, EIO, "ext4: shorter than its size");
        else
            rc = write_all(fd, buf, got, e);
        left -= got;
    }
    return rc;
}

int ext4_copy(struct ext4 *x, const char *path, int fd, uint64_t max, struct err *e)
{
    ext2_ino_t ino;
    struct ext2_inode inode;
    ext2_file_t f;
    errcode_t rc = find(x, path, &ino);
    int r;

    if (!rc)
        rc = ext2fs_read_inode(x->fs, ino, &inode);
    if (rc)
        return err_prefix(e, failed(rc, e), "%s", path);
    if (!LINUX_S_ISREG(inode.i_mode))
        return err_set(e, EISDIR, "%s: not a regular file", path);
    rc = ext2fs_file_open(x->fs, ino, 0, &f);
    if (rc)
        return err_prefix(e, failed(rc, e), "%s", path);
    r = copy(f, fd, max, e);
    ext2fs_file_close(f);
    return r ? err_prefix(e, r, "%s", path) : 0;
}

struct listing {
    void (*fn)(void *arg, const char *name);
    void *arg;
};

static int entry(struct ext2_dir_entry *de, int offset, int size, char *buf, void *arg)
{
    const struct listing *l = arg;
    char name[EXT2_NAME_LEN + 1];
    int n = ext2fs_dirent_name_len(de);

    memcpy(name, de->name, (size_t)n);
    name[n] = 0;
    l->fn(l->arg, name);
    return 0;
}

int ext4_list(struct ext4 *x, const char *path, void (*fn)(void *arg, const char *name), void *arg)
{
    struct listing l = {fn, arg};
    ext2_ino_t ino;

    if (find(x, path, &ino) || ext2fs_check_directory(x->fs, ino))
        return -ENOENT;
    return ext2fs_dir_iterate(x->fs, ino, 0, NULL, entry, &l) ? -EIO : 0;
}
