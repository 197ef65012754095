#include "back/block/qcow2_codec.h"

#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#define WINDOW_WRITE 12    /* log2; what other readers expect at most */
#define ZSTD_WINDOW_MAX 23 /* log2: a hostile frame could ask for much more memory */

static int unpack_zlib(const uint8_t *in, size_t inlen, uint8_t *out, size_t outlen)
{
    z_stream z = {.next_in = (uint8_t *)in,
                  .avail_in = (uInt)inlen,
                  .next_out = out,
                  .avail_out = (uInt)outlen};

    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
        return -ENOMEM;
    /* The end is that of the output, not necessarily of the stream. */
    inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return z.avail_out ? -EIO : 0;
}

static int unpack_zstd(const uint8_t *in, size_t inlen, uint8_t *out, size_t outlen)
{
    ZSTD_DCtx *ctx = ZSTD_createDCtx();
    ZSTD_inBuffer i = {in, inlen, 0};
    ZSTD_outBuffer o = {out, outlen, 0};
    int rc = 0;

    if (!ctx)
        return -ENOMEM;
    ZSTD_DCtx_setParameter(ctx, ZSTD_d_windowLogMax, ZSTD_WINDOW_MAX);
    while (o.pos < o.size && !rc) {
        size_t in_before = i.pos, out_before = o.pos;

        if (ZSTD_isError(ZSTD_decompressStream(ctx, &o, &i)) ||
            (i.pos == in_before && o.pos == out_before))
            rc = -EIO;
    }
    ZSTD_freeDCtx(ctx);
    return rc;
}

int qcow2_codec_unpack(enum qcow2_compression type, const uint8_t *in, size_t inlen, uint8_t *out,
                       size_t outlen)
{
    return type == QCOW2_ZSTD ? unpack_zstd(in, inlen, out, outlen)
                              : unpack_zlib(in, inlen, out, outlen);
}

static int64_t pack_zlib(const uint8_t *in, size_t inlen, uint8_t *out, size_t cap)
{
    z_stream z = {
        .next_in = (uint8_t *)in, .avail_in = (uInt)inlen, .next_out = out, .avail_out = (uInt)cap};
    int rc;

    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -WINDOW_WRITE, 9, Z_DEFAULT_STRATEGY) !=
        Z_OK)
        return -ENOMEM;
    rc = deflate(&z, Z_FINISH);
    deflateEnd(&z);
    return rc == Z_STREAM_END ? (int64_t)(cap - z.avail_out) : -ENOSPC;
}

static int64_t pack_zstd(const uint8_t *in, size_t inlen, uint8_t *out, size_t cap)
{
    size_t n = ZSTD_compress(out, cap, in, inlen, ZSTD_CLEVEL_DEFAULT);

    return ZSTD_isError(n) ? -ENOSPC : (int64_t)n;
}

int64_t qcow2_codec_pack(enum qcow2_compression type, const uint8_t *in, size_t inlen, uint8_t *out,
                         size_t cap)
{
    return type == QCOW2_ZSTD ? pack_zstd(in, inlen, out, cap) : pack_zlib(in, inlen, out, cap);
}
