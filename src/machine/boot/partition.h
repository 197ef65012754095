/* Partition tables: MBR with logical partitions, and GPT (UEFI 2.10 §5). Hostile content. */
#ifndef RING3_MACHINE_BOOT_PARTITION_H
#define RING3_MACHINE_BOOT_PARTITION_H

#include <stdint.h>

#include "machine/boot/disk.h"

#define PARTITIONS_MAX 128

struct partition {
    unsigned number;      /* as Linux counts, from 1 */
    uint64_t start, size; /* bytes, within the disk */
};

/* Fills p with at most PARTITIONS_MAX partitions in the table's order and returns their number; 0 when
 * there is no table, or it cannot be read. */
unsigned partition_list(const struct boot_disk *d, struct partition *p);

#endif
