/*
 * An open host file, or block device, that holds (part of) an image. Formats sit on this.
 *
 * Asynchronous requests (block_file_submit) belong to the I/O thread. The synchronous functions may
 * be called from any thread, work of the pool (block_aio.h) included, at the same time as anything
 * else on the file; they take any alignment. With the cache off (O_DIRECT) what is not aligned goes
 * through a bounce buffer, and an unaligned write reads and writes the blocks around its ends:
 * whoever does unaligned writes sees to it that no other write to the same block
 * (block_file_info.align) is in flight, except that asynchronous ones exclude each other.
 *
 * Reading beyond the end of the file yields zeros; writing there makes it longer, zeroing there
 * need not.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_FILE_H
#define RING3_BACK_BLOCK_BLOCK_FILE_H

#include "back/block/block.h"
#include "back/block/block_aio.h"

struct block_file_options {
    bool ro;
    bool no_lock;
    bool direct;   /* O_DIRECT; -EINVAL with a message if the file system cannot */
    bool no_flush; /* flushes do nothing (cache=unsafe) */
    bool create;   /* create the file, which must not exist */
};

struct block_file_info {
    bool ro;
    bool is_blockdev;
    bool can_discard;
    uint32_t align;         /* of O_DIRECT transfers; 1 without O_DIRECT */
    uint32_t logical_block; /* of a block device, else 512 */
    uint32_t physical_block;
    uint32_t discard_granularity; /* bytes that a hole needs; the block size of a file system */
};

/* Opens and locks. The message names the file. */
int block_file_open(struct block_file **out, struct block_aio *aio, const char *path,
                    const struct block_file_options *o, struct err *e);
/* A nameless temporary file in $TMPDIR or /var/tmp, gone when closed. */
int block_file_open_temp(struct block_file **out, struct block_aio *aio, struct err *e);
void block_file_close(struct block_file *f); /* nothing in flight; NULL is allowed; does not sync */

const struct block_file_info *block_file_info(const struct block_file *f);
const char *block_file_path(const struct block_file *f); /* for messages, as given to open */
struct block_aio *block_file_aio(const struct block_file *f);

/* Starts r on the file; r->done is called from block_aio_poll. Offsets and lengths are in the
 * file's bytes, of any alignment. -ENOTSUP for DISCARD where the host cannot make holes;
 * WRITE_ZEROES always works, by writing zeros if need be. */
void block_file_submit(struct block_file *f, struct block_req *r);

/* See block_read_now(). Any thread. 0 or -EAGAIN. */
int block_file_read_now(struct block_file *f, const struct block_req *r);

/* Synchronous: 0 or a negative errno; all or (on error) any part is done. */
int block_file_read(struct block_file *f, uint64_t offset, void *buf, size_t len);
int block_file_write(struct block_file *f, uint64_t offset, const void *buf, size_t len);
int block_file_readv(struct block_file *f, uint64_t offset, const struct iovec *iov, unsigned niov);
int block_file_writev(struct block_file *f, uint64_t offset, const struct iovec *iov,
                      unsigned niov);
int block_file_flush(struct block_file *f); /* fdatasync; nothing with no_flush */
int block_file_zero(struct block_file *f, uint64_t offset, uint64_t len, bool unmap);
int block_file_discard(struct block_file *f, uint64_t offset, uint64_t len);
int block_file_truncate(struct block_file *f, uint64_t size); /* -EOPNOTSUPP for a block device */
/* Present length of the file or device in bytes; negative errno on failure. */
int64_t block_file_size(struct block_file *f);
/* As block_status, by SEEK_HOLE: holes and what lies beyond the end are BLOCK_ZERO. */
int block_file_status(struct block_file *f, uint64_t offset, uint64_t *len);

#endif
