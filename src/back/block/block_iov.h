/* Rows of iovecs. Pure. */
#ifndef RING3_BACK_BLOCK_BLOCK_IOV_H
#define RING3_BACK_BLOCK_BLOCK_IOV_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Bytes at..at+len of iov, which must be there, as iovecs in out, which needs room for niov.
 * Returns how many. */
unsigned block_iov_slice(const struct iovec *iov, unsigned niov, uint64_t at, uint64_t len,
                         struct iovec *out);
/* As much of that as fits into max entries. */
unsigned block_iov_slice_max(const struct iovec *iov, unsigned niov, uint64_t at, uint64_t len,
                             struct iovec *out, unsigned max);
uint64_t block_iov_len(const struct iovec *iov, unsigned niov);
void block_iov_zero(const struct iovec *iov, unsigned niov);
/* Copy from (read) and to (write) a row of iovecs, from byte `at` on; the bytes must be there. */
void block_iov_read(const struct iovec *iov, unsigned niov, uint64_t at, void *buf, size_t len);
void block_iov_write(const struct iovec *iov, unsigned niov, uint64_t at, const void *buf,
                     size_t len);

#endif
