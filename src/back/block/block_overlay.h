/*
 * The node above a disk whose writes are to be lost: what is written goes to a nameless temporary
 * file at the same offsets, and a bit for each sector tells that it is there. Works over any
 * format. What is discarded or zeroed is a hole of that file. The bits are kept in leaves, which exist only where some but not all sectors are written.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_OVERLAY_H
#define RING3_BACK_BLOCK_BLOCK_OVERLAY_H

#include "back/block/block_node.h"

/* Takes base over if it succeeds. 0, or negative errno with e set. */
int block_overlay_open(struct block_node **out, struct block_node *base, struct err *e);

#endif
