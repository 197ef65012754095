/*
 * qcow2 images (QEMU's docs/interop/qcow2.txt): version 3, and 2 as found. Reading and writing go
 * through the operations of a block_node; this header has what only qcow2 can do, for the image
 * tool. Encryption, external data files, extended L2 entries and unknown features are refused.
 *
 * Functions here block and belong to the node's I/O thread; nothing may be in flight.
 */
#ifndef RING3_BACK_BLOCK_QCOW2_H
#define RING3_BACK_BLOCK_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "back/block/block_file.h"
#include "back/block/block_node.h"
#include "back/block/qcow2_header.h"
#include "base/err.h"

enum qcow2_preallocation {
    QCOW2_PREALLOC_OFF,
    QCOW2_PREALLOC_METADATA, /* all tables, and clusters that are holes of the file */
    QCOW2_PREALLOC_FALLOC    /* and the host's space for them */
};

struct qcow2_create_options {
    uint64_t size;         /* of the disk, bytes; a multiple of BLOCK_SECTOR */
    uint32_t cluster_bits; /* 0: the default */
    bool lazy_refcounts;
    enum qcow2_compression compression; /* of the clusters that convert -c writes */
    const char *backing;                /* as it is to stand in the header; NULL: none */
    const char *backing_format;         /* needed with a backing file */
    enum qcow2_preallocation preallocation;
};

/* Makes a new file, which must not exist, an image. 0, or negative errno with e set; what was made
 * of the file stays then. */
int qcow2_create(struct block_aio *aio, const char *path, const struct qcow2_create_options *o,
                 struct err *e);

/* Writes one whole cluster, which must be unallocated, in compressed form. offset is a multiple of
 * the cluster size, data has that many bytes. 0; -ENOSPC if it does not get smaller (write it as
 * it is, then); -EEXIST; other negative errno. */
int qcow2_write_packed(struct block_node *n, uint64_t offset, const void *data);

/* The header of an open image. */
const struct qcow2_header *qcow2_header_of(const struct block_node *n);
/* The path of the backing file as it is opened: made from where the image lies, if it is relative.
 * 0, -ENAMETOOLONG, or -ENOTSUP for names that are no paths (a protocol's). */
int qcow2_backing_path(const char *image, const char *backing, char *out, size_t cap,
                       struct err *e);

/* Reads and checks the header of a file. 0, or negative errno with e set. */
int qcow2_read_header(struct block_file *f, struct qcow2_header *h, struct err *e);

struct qcow2_check {
    uint64_t corruptions, leaks; /* found and still there */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, compressed_clusters, fragmented_clusters;
    uint64_t image_end; /* where the last used cluster ends */
    bool dirty;         /* the dirty bit was set */
    /* Called, if given, with a line for each finding. */
    void (*report)(void *arg, const char *line);
    void *arg;
};

enum qcow2_repair { QCOW2_REPAIR_NONE, QCOW2_REPAIR_LEAKS, QCOW2_REPAIR_ALL };

/* Checks an image that is not open as a node: counts all references and compares. Repairing needs f
 * to be writable. 0 if it could be checked, whatever was found; else negative errno with e set. */
int qcow2_check(struct block_file *f, enum qcow2_repair repair, struct qcow2_check *result,
                struct err *e);

#endif
