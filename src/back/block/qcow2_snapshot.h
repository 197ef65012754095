/* The snapshot table of a qcow2 image. ring3 keeps snapshots intact but does not make, apply or
 * delete them. */
#ifndef RING3_BACK_BLOCK_QCOW2_SNAPSHOT_H
#define RING3_BACK_BLOCK_QCOW2_SNAPSHOT_H

#include <stdint.h>

#include "back/block/block_file.h"
#include "back/block/qcow2_header.h"

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;       /* entries */
    uint64_t disk_size;     /* bytes; 0 if the table does not say (version 2) */
    uint64_t vm_state;      /* bytes */
    uint32_t date;          /* seconds since 1970 */
    char id[32], name[256]; /* cut off if longer */
};

/*
 * Calls fn for each snapshot until it returns other than 0, which is returned then. Offsets and
 * sizes are checked before. *len (may be NULL) becomes the length of the table in bytes. 0, -EINVAL
 * with e set, or the host's error with e set. Blocks.
 */
int qcow2_snapshot_walk(struct block_file *f, const struct qcow2_header *h,
                        int (*fn)(void *arg, const struct qcow2_snapshot *s), void *arg,
                        uint64_t *len, struct err *e);

#endif
