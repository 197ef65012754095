/* Inside of the checking of qcow2 images, shared by qcow2_check.c and qcow2_repair.c. */
#ifndef RING3_BACK_BLOCK_QCOW2_CHECK_H
#define RING3_BACK_BLOCK_QCOW2_CHECK_H

#include <stdint.h>

#include "back/block/qcow2.h"
#include "back/block/qcow2_format.h"

struct qcow2_checker {
    struct block_file *f;
    struct qcow2_header h;
    struct qcow2_check *result;
    uint64_t cluster, file_clusters;
    uint32_t l2_bits, refblock_bits;
    uint64_t *reftable; /* host byte order */
    uint32_t reftable_entries;
    bool rebuild;                         /* the refcount structures themselves are damaged */
    uint64_t wrong_counts, leaked_counts; /* findings that new refcount structures would fix */
    uint32_t **pages;                     /* references found, by cluster */
    uint64_t npages;
    uint8_t *l2, *block; /* a cluster each */
};

/* References that were found to a cluster (number). */
uint32_t qcow2_checker_refs(const struct qcow2_checker *c, uint64_t cluster);
/* Adds one to each cluster of this part of the file; 0 or -ENOMEM. */
int qcow2_checker_add(struct qcow2_checker *c, uint64_t offset, uint64_t len);
/* Takes one away. */
void qcow2_checker_sub(struct qcow2_checker *c, uint64_t cluster);
/* Notes a finding: corruption unless leak. */
void qcow2_checker_report(struct qcow2_checker *c, bool leak, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Sets the refcounts of a block, which is in c->block and is the file's at offset, to the
 * references found: only down for LEAKS. Counts what it fixes and writes the block. */
int qcow2_repair_block(struct qcow2_checker *c, enum qcow2_repair repair, uint64_t first,
                       uint64_t offset);
/* Makes a new refcount table with blocks behind all that is in use. */
int qcow2_repair_rebuild(struct qcow2_checker *c);
/* Clears the dirty and the corrupt bit. */
int qcow2_repair_bits(struct qcow2_checker *c);

#endif
