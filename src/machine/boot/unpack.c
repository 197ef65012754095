#include "machine/boot/unpack.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "base/util.h"

/* Dictionaries beyond this are refused; kernel builds use at most 128 MiB. */
#define DICTIONARY_MAX (256 * MIB)
#define GROW_STEP (4 * MIB)

/* The output: grows as needed, never beyond max. */
struct out {
    uint8_t *data;
    size_t len, cap, max;
};

struct in {
    const uint8_t *p;
    size_t len;
};

static int too_big(const struct out *o, struct err *e)
{
    return err_set(e, EFBIG, "unpacks to more than %zu MiB", o->max / (size_t)MIB);
}

static int corrupt(struct err *e, const char *format)
{
    return err_set(e, EINVAL, "corrupt or truncated: the %s payload does not unpack", format);
}

/* Makes room for at least one more byte, `want` if possible. */
static int out_room(struct out *o, size_t want, struct err *e)
{
    size_t cap;
    uint8_t *p;

    if (o->cap - o->len >= want)
        return 0;
    if (o->len >= o->max)
        return too_big(o, e);
    if (o->cap == o->max)
        return 0;
    cap = MAX(o->cap + o->cap / 2, o->len + want);
    cap = MIN(cap, o->max);
    p = realloc(o->data, cap);
    if (!p)
        return err_set(e, ENOMEM, "no memory to unpack the kernel");
    o->data = p;
    o->cap = cap;
    return 0;
}

static int unpack_gzip(struct in in, struct out *o, struct err *e)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in.p, .avail_in = (uInt)in.len};
    int rc, zrc = Z_OK;

    if (inflateInit2(&z, 15 + 16) != Z_OK)
        return err_set(e, ENOMEM, "no memory to unpack the kernel");
    do {
        uInt room;

        rc = out_room(o, GROW_STEP, e);
        if (rc)
            break;
        room = (uInt)MIN(o->cap - o->len, (size_t)GIB);
        z.next_out = o->data + o->len;
        z.avail_out = room;
        zrc = inflate(&z, Z_NO_FLUSH);
        o->len += room - z.avail_out;
        if (zrc == Z_BUF_ERROR && z.avail_out == 0)
            zrc = Z_OK;
        else if (zrc == Z_OK && z.avail_in == 0 && z.avail_out != 0)
            zrc = Z_DATA_ERROR;
        if (zrc == Z_MEM_ERROR)
            rc = err_set(e, ENOMEM, "no memory to unpack the kernel");
        else if (zrc != Z_OK && zrc != Z_STREAM_END)
            rc = corrupt(e, "gzip");
    } while (!rc && zrc != Z_STREAM_END);
    inflateEnd(&z);
    return rc;
}

static int lzma_pump(lzma_stream *z, struct in in, struct out *o, const char *format, struct err *e)
{
    lzma_ret zrc = LZMA_OK;
    int rc = 0;

    z->next_in = in.p;
    z->avail_in = in.len;
    while (!rc && zrc != LZMA_STREAM_END) {
        size_t room;

        rc = out_room(o, GROW_STEP, e);
        if (rc)
            break;
        room = o->cap - o->len;
        z->next_out = o->data + o->len;
        z->avail_out = room;
        zrc = lzma_code(z, LZMA_FINISH);
        o->len += room - z->avail_out;
        if (zrc == LZMA_MEM_ERROR)
            rc = err_set(e, ENOMEM, "no memory to unpack the kernel");
        else if (zrc == LZMA_MEMLIMIT_ERROR)
            rc = err_set(e, EINVAL, "its %s dictionary is larger than %llu MiB", format,
                         DICTIONARY_MAX / MIB);
        else if (zrc == LZMA_OK ? z->avail_out != 0 : zrc != LZMA_STREAM_END)
            rc = corrupt(e, format);
    }
    lzma_end(z);
    return rc;
}

static int unpack_xz(struct in in, struct out *o, struct err *e)
{
    lzma_stream z = LZMA_STREAM_INIT;

    if (lzma_stream_decoder(&z, DICTIONARY_MAX, 0) != LZMA_OK)
        return err_set(e, ENOMEM, "no memory to unpack the kernel");
    return lzma_pump(&z, in, o, "xz", e);
}

static int unpack_lzma(struct in in, struct out *o, struct err *e)
{
    lzma_stream z = LZMA_STREAM_INIT;

    if (lzma_alone_decoder(&z, DICTIONARY_MAX) != LZMA_OK)
        return err_set(e, ENOMEM, "no memory to unpack the kernel");
    return lzma_pump(&z, in, o, "lzma", e);
}

static int unpack_zstd(struct in in, struct out *o, struct err *e)
{
    ZSTD_inBuffer zin = {.src = in.p, .size = in.len};
    ZSTD_DCtx *z = ZSTD_createDCtx();
    size_t left = 1;
    int rc = 0;

    if (!z || ZSTD_isError(ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, 28))) {
        ZSTD_freeDCtx(z);
        return err_set(e, ENOMEM, "no memory to unpack the kernel");
    }
    while (!rc && left) {
        ZSTD_outBuffer zout = {0};
        size_t at = zin.pos;

        rc = out_room(o, GROW_STEP, e);
        if (rc)
            break;
        zout.dst = o->data + o->len;
        zout.size = o->cap - o->len;
        left = ZSTD_decompressStream(z, &zout, &zin);
        o->len += zout.pos;
        if (ZSTD_isError(left) || (left && zin.pos == at && zout.pos == 0))
            rc = corrupt(e, "zstd");
    }
    ZSTD_freeDCtx(z);
    return rc;
}

/* The legacy frame of `lz4 -l`: magic, then blocks of { u32 length, data }, each unpacking to at
 * most 8 MiB. There is no end mark: the kernel's appended size ends it. */
static int unpack_lz4(struct in in, struct out *o, struct err *e)
{
    size_t pos = 4, end = in.len >= 8 ? in.len - 4 : 0;

    while (pos < end) {
        uint32_t n;
        int got, rc;

        if (end - pos < 4)
            return corrupt(e, "lz4");
        memcpy(&n, in.p + pos, 4);
        pos += 4;
        if (n > end - pos || n > LZ4_COMPRESSBOUND(8 * MIB))
            return corrupt(e, "lz4");
        rc = out_room(o, 8 * MIB, e);
        if (rc)
            return rc;
        got = LZ4_decompress_safe((const char *)in.p + pos, (char *)o->data + o->len, (int)n,
                                  (int)MIN(o->cap - o->len, 8 * MIB));
        if (got < 0) /* at the limit, running out of room looks like corruption */
            return o->cap - o->len < 8 * MIB ? too_big(o, e) : corrupt(e, "lz4");
        o->len += (size_t)got;
        pos += n;
    }
    return pos > 4 ? 0 : corrupt(e, "lz4");
}

static int unpack_none(struct in in, struct out *o, struct err *e)
{
    size_t n = in.len >= 8 ? in.len - 4 : 0;
    int rc = n > o->max ? too_big(o, e) : out_room(o, MAX(n, 1u), e);

    if (rc)
        return rc;
    memcpy(o->data, in.p, n);
    o->len = n;
    return 0;
}

/* fn NULL: known, but no library for it here. */
static const struct format {
    const char *name;
    uint8_t magic[6];
    uint8_t n;
    int (*fn)(struct in in, struct out *o, struct err *e);
} formats[] = {
    {"gzip", {0x1f, 0x8b}, 2, unpack_gzip},
    {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, unpack_xz},
    {"lzma", {0x5d, 0, 0}, 3, unpack_lzma},
    {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, unpack_zstd},
    {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4, unpack_lz4},
    {"none", {0x7f, 'E', 'L', 'F'}, 4, unpack_none},
    {"bzip2", {'B', 'Z', 'h'}, 3, NULL},
    {"lzo", {0x89, 'L', 'Z', 'O'}, 4, NULL},
};

int unpack(const uint8_t *in, size_t len, size_t hint, size_t max, uint8_t **out, size_t *out_len,
           struct err *e)
{
    struct out o = {.max = max};
    const struct format *f = NULL;
    int rc;

    for (size_t i = 0; i < ARRAY_LEN(formats) && !f; i++) {
        if (len >= formats[i].n && !memcmp(in, formats[i].magic, formats[i].n))
            f = &formats[i];
    }
    if (!f)
        return err_set(e, ENOTSUP, "unknown compression of the payload");
    if (!f->fn)
        return err_set(e, ENOTSUP, "unsupported compression %s", f->name);
    if (len > 2 * GIB - 1)
        return err_set(e, EFBIG, "the payload is too large");
    rc = hint ? out_room(&o, MIN(hint, max) + 1, e) : 0; /* + 1: see the end without growing */
    if (!rc)
        rc = f->fn((struct in){in, len}, &o, e);
    if (rc) {
        free(o.data);
        return rc;
    }
    *out = o.data;
    *out_len = o.len;
    return 0;
}
