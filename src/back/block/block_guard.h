/* Requests that stand in for another one below a blockdev. I/O thread. */
#ifndef RING3_BACK_BLOCK_BLOCK_GUARD_H
#define RING3_BACK_BLOCK_BLOCK_GUARD_H

#include "back/block/block_node.h"

/* Submits r, a write to offset 0, unless its first sector looks like the header of a format that
 * names other files; then r completes with -EPERM. The sector is copied first: the guest may change
 * it meanwhile. */
void block_guard_write(struct block_node *n, struct block_req *r);

/* Flushes n, then completes r with the result. -ENOMEM if it cannot. */
int block_guard_flush(struct block_node *n, struct block_req *r);

#endif
