/*
 * Entries of qcow2's tables and the arithmetic on them (QEMU's docs/interop/qcow2.txt, "Host
 * cluster management" and "Cluster mapping"). Pure.
 */
#ifndef RING3_BACK_BLOCK_QCOW2_FORMAT_H
#define RING3_BACK_BLOCK_QCOW2_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "back/block/qcow2_header.h"
#include "base/util.h"

#define QCOW2_COPIED BIT(63)     /* L1, L2: the reference count is exactly one */
#define QCOW2_COMPRESSED BIT(62) /* L2 */
#define QCOW2_ZERO BIT(0)        /* L2, version 3: reads as zeros */
#define QCOW2_OFFSET_MASK (BIT(56) - BIT(9))
#define QCOW2_OFFSET_END BIT(56) /* host offsets in L1 and L2 are less than this */
#define QCOW2_REFTABLE_MASK (~(BIT(9) - 1))
#define QCOW2_SECTOR 512u

/* What a guest cluster is. */
enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZEROS, QCOW2_DATA, QCOW2_PACKED };

/* An L2 entry, decoded. */
struct qcow2_cluster {
    enum qcow2_kind kind;
    bool copied;   /* DATA and ZEROS: host may be written in place */
    uint64_t host; /* DATA; ZEROS: 0 if none is preallocated; PACKED: of the first byte */
    uint32_t len;  /* PACKED: bytes in the file, at least one, at most two clusters */
};

/* False for entries that are no valid ones. */
static inline bool qcow2_entry_decode(uint64_t entry, uint32_t cluster_bits, uint32_t version,
                                      struct qcow2_cluster *c)
{
    *c = (struct qcow2_cluster){.kind = QCOW2_UNALLOCATED};
    if (entry & QCOW2_COMPRESSED) {
        unsigned x = 62 - (cluster_bits - 8);
        uint64_t sectors = bits(entry, 61, x);

        c->kind = QCOW2_PACKED;
        c->host = entry & (BIT(x) - 1);
        c->len = (uint32_t)((sectors + 1) * QCOW2_SECTOR - c->host % QCOW2_SECTOR);
        return c->host >= BIT(cluster_bits) && c->host < QCOW2_OFFSET_END &&
               !(entry & QCOW2_COPIED);
    }
    c->host = entry & QCOW2_OFFSET_MASK;
    if (c->host & (BIT(cluster_bits) - 1))
        return false;
    if (entry & QCOW2_ZERO) {
        c->kind = QCOW2_ZEROS;
        c->copied = c->host && entry & QCOW2_COPIED;
        return version >= 3;
    }
    if (c->host) {
        c->kind = QCOW2_DATA;
        c->copied = entry & QCOW2_COPIED;
        return true;
    }
    return !(entry & QCOW2_COPIED); /* offset 0 is a cluster only with an external data file */
}

/* The entry of a compressed cluster of len >= 1 bytes at host. */
static inline uint64_t qcow2_entry_packed(uint64_t host, uint64_t len, uint32_t cluster_bits)
{
    unsigned x = 62 - (cluster_bits - 8);
    uint64_t sectors = (host + len - 1) / QCOW2_SECTOR - host / QCOW2_SECTOR;

    return QCOW2_COMPRESSED | sectors << x | host;
}

/* Reference counts of 1 << order bits in a refcount block, order 0 to 6. */
static inline uint64_t qcow2_refcount_load(const uint8_t *block, uint64_t i, uint32_t order)
{
    switch (order) {
    case 4:
        return qcow2_be16(block + i * 2);
    case 5:
        return qcow2_be32(block + i * 4);
    case 6:
        return qcow2_be64(block + i * 8);
    default: /* entries of less than a byte fill it from its low bits */
        return block[i << order >> 3] >> (i << order & 7) & ((1u << (1u << order)) - 1);
    }
}

static inline void qcow2_refcount_store(uint8_t *block, uint64_t i, uint32_t order, uint64_t v)
{
    uint8_t *p = block + (i << order >> 3);
    unsigned shift = i << order & 7, mask = order < 4 ? (1u << (1u << order)) - 1 : 0;

    switch (order) {
    case 4:
        qcow2_put16(p, (uint16_t)v);
        break;
    case 5:
        qcow2_put32(p, (uint32_t)v);
        break;
    case 6:
        qcow2_put64(p, v);
        break;
    default:
        *p = (uint8_t)((*p & ~(mask << shift)) | (unsigned)v << shift);
        break;
    }
}

static inline uint64_t qcow2_refcount_limit(uint32_t order)
{
    return order == 6 ? UINT64_MAX : BIT(1u << order) - 1;
}

#endif
