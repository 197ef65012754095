/* The open file as block_file*.c share it. */
#ifndef RING3_BACK_BLOCK_BLOCK_FILE_PRIV_H
#define RING3_BACK_BLOCK_BLOCK_FILE_PRIV_H

#include <stdatomic.h>

#include "back/block/block_file.h"

struct block_file {
    int fd;
    char *path;
    struct block_aio *aio;
    struct block_file_info info;
    bool no_flush;
    bool locked; /* by us */
    /* What the host turned out not to know (any thread). */
    _Atomic bool no_punch, no_zero_range, no_nowait;
    /* O_DIRECT: writes in flight, and those that wait for one that is not aligned, or are such. */
    unsigned writes;
    bool alone; /* an unaligned one is in flight */
    struct block_req *waiting, **last;
};

/* The transfer of len bytes, of which `done` are done already. */
int block_file_transfer(struct block_file *f, bool write, uint64_t offset, const struct iovec *iov,
                        unsigned niov, uint64_t len, uint64_t done);
/* Is the range of an O_DIRECT file's transfer aligned? */
static inline bool block_file_aligned(const struct block_file *f, uint64_t offset, uint64_t len)
{
    return ((offset | len) & (f->info.align - 1)) == 0;
}
/* Are its buffers? */
bool block_file_iov_aligned(const struct block_file *f, const struct iovec *iov, unsigned niov);

#endif
