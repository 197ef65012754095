/*
 * The header of a qcow2 image, versions 2 and 3, with its extensions, as QEMU's
 * docs/interop/qcow2.txt describes it. Pure: bytes in, decoded and checked struct out, and back.
 *
 * The bytes are hostile. What parse accepts has sizes and offsets that cannot overflow, tables of
 * bounded size that lie in the file, and only features that this implementation knows.
 */
#ifndef RING3_BACK_BLOCK_QCOW2_HEADER_H
#define RING3_BACK_BLOCK_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/util.h"

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_HEADER_V2 72u
#define QCOW2_HEADER_V3_MIN 104u
#define QCOW2_HEADER_V3 112u /* with compression type and padding: what build writes */

#define QCOW2_CLUSTER_BITS_MIN 9u
#define QCOW2_CLUSTER_BITS_MAX 21u
#define QCOW2_CLUSTER_BITS_DEFAULT 16u
#define QCOW2_L1_ENTRIES_MAX (32 * MIB / 8)
#define QCOW2_REFTABLE_BYTES_MAX (8 * MIB)
#define QCOW2_SNAPSHOTS_MAX 65536u
#define QCOW2_SNAPSHOT_TABLE_MAX (64 * MIB)
#define QCOW2_BACKING_MAX 1023u

/* Incompatible features. */
#define QCOW2_INCOMPAT_DIRTY BIT(0)
#define QCOW2_INCOMPAT_CORRUPT BIT(1)
#define QCOW2_INCOMPAT_DATA_FILE BIT(2)
#define QCOW2_INCOMPAT_COMPRESSION BIT(3)
#define QCOW2_INCOMPAT_EXTENDED_L2 BIT(4)
/* Compatible features. */
#define QCOW2_COMPAT_LAZY_REFCOUNTS BIT(0)
/* Features to be cleared by whoever writes and does not know them. */
#define QCOW2_AUTOCLEAR_BITMAPS BIT(0)

/* Byte offsets of the fields that change while an image is in use. */
#define QCOW2_OFF_SIZE 24
#define QCOW2_OFF_L1_SIZE 36  /* u32, and the u64 offset right after it */
#define QCOW2_OFF_REFTABLE 48 /* u64 offset, and the u32 number of clusters right after it */
#define QCOW2_OFF_SNAPSHOTS 60
#define QCOW2_OFF_INCOMPAT 72
#define QCOW2_OFF_COMPAT 80
#define QCOW2_OFF_AUTOCLEAR 88

enum qcow2_compression { QCOW2_ZLIB, QCOW2_ZSTD };

struct qcow2_header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size;    /* of the virtual disk, bytes */
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t length;
    enum qcow2_compression compression;
    /* The bitmaps extension; all zero if absent. */
    uint32_t nb_bitmaps;
    uint64_t bitmap_dir_size, bitmap_dir_offset;
    char backing[QCOW2_BACKING_MAX + 1]; /* "" if there is none */
    char backing_format[32];             /* "" if not stated */
};

/* True if the first len bytes of a file are those of a qcow2 image. */
bool qcow2_header_probe(const uint8_t *buf, size_t len);

/*
 * The cluster size that the first QCOW2_HEADER_V2 bytes of a file state: how much of it parse needs
 * to see. -EINVAL with e set if that is no qcow2 image of a version and cluster size we know.
 */
int qcow2_header_cluster_size(const uint8_t *buf, size_t len, uint32_t *bytes, struct err *e);

/*
 * Decodes and checks a header. buf holds the first len bytes of the file: its whole first cluster,
 * or less if file_size is less. -EINVAL for malformed ones, -ENOTSUP for encryption and features
 * that we do not know, which e names.
 */
int qcow2_header_parse(struct qcow2_header *h, const uint8_t *buf, size_t len, uint64_t file_size,
                       struct err *e);

/*
 * Encodes h, the table of feature names (if there is room) and the names of the backing file into
 * the first cluster: buf has 1 << h->cluster_bits bytes and is cleared first. -EINVAL with e set if
 * the backing file's name does not fit.
 */
int qcow2_header_build(const struct qcow2_header *h, uint8_t *buf, struct err *e);

/* L1 entries needed for a disk of this size, rounded up; 0 for size 0. */
uint64_t qcow2_header_l1_entries(uint64_t size, uint32_t cluster_bits);

/* Big-endian numbers at any alignment. */
static inline uint16_t qcow2_be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static inline uint32_t qcow2_be32(const uint8_t *p)
{
    uint32_t v;

    __builtin_memcpy(&v, p, sizeof(v));
    return __builtin_bswap32(v);
}

static inline uint64_t qcow2_be64(const uint8_t *p)
{
    uint64_t v;

    __builtin_memcpy(&v, p, sizeof(v));
    return __builtin_bswap64(v);
}

static inline void qcow2_put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void qcow2_put32(uint8_t *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    __builtin_memcpy(p, &v, sizeof(v));
}

static inline void qcow2_put64(uint8_t *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    __builtin_memcpy(p, &v, sizeof(v));
}

#endif
