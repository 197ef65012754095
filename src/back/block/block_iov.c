#include "back/block/block_iov.h"

#include <string.h>

#include "base/util.h"

unsigned block_iov_slice_max(const struct iovec *iov, unsigned niov, uint64_t at, uint64_t len,
                             struct iovec *out, unsigned max)
{
    unsigned n = 0;

    for (unsigned i = 0; i < niov && len && n < max; i++) {
        uint64_t take;

        if (at >= iov[i].iov_len) {
            at -= iov[i].iov_len;
            continue;
        }
        take = MIN(iov[i].iov_len - at, len);
        out[n++] = (struct iovec){.iov_base = (char *)iov[i].iov_base + at, .iov_len = take};
        at = 0;
        len -= take;
    }
    return n;
}

unsigned block_iov_slice(const struct iovec *iov, unsigned niov, uint64_t at, uint64_t len,
                         struct iovec *out)
{
    return block_iov_slice_max(iov, niov, at, len, out, niov);
}

uint64_t block_iov_len(const struct iovec *iov, unsigned niov)
{
    uint64_t len = 0;

    for (unsigned i = 0; i < niov; i++)
        len += iov[i].iov_len;
    return len;
}

void block_iov_zero(const struct iovec *iov, unsigned niov)
{
    for (unsigned i = 0; i < niov; i++)
        memset(iov[i].iov_base, 0, iov[i].iov_len);
}

/* Copies between the bytes from `at` of the vectors and those at p. */
static void copy(const struct iovec *iov, unsigned niov, uint64_t at, char *p, size_t len,
                 bool to_iov)
{
    for (unsigned i = 0; i < niov && len; i++) {
        char *base = iov[i].iov_base;
        size_t n;

        if (at >= iov[i].iov_len) {
            at -= iov[i].iov_len;
            continue;
        }
        n = MIN(iov[i].iov_len - at, len);
        memcpy(to_iov ? base + at : p, to_iov ? p : base + at, n);
        at = 0;
        p += n;
        len -= n;
    }
}

void block_iov_read(const struct iovec *iov, unsigned niov, uint64_t at, void *buf, size_t len)
{
    copy(iov, niov, at, buf, len, false);
}

void block_iov_write(const struct iovec *iov, unsigned niov, uint64_t at, const void *buf,
                     size_t len)
{
    copy(iov, niov, at, (char *)buf, len, true);
}
