/*
 * The kernel's io_uring as an engine of block_aio: reads, writes and flushes of files, and the wait
 * for them. Private to block_aio and block_file; belongs to the I/O thread.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_URING_H
#define RING3_BACK_BLOCK_BLOCK_URING_H

#include "back/block/block.h"

struct block_uring;

/* wake_fd is an eventfd that ends a wait. Negative errno if the kernel refuses. */
int block_uring_new(struct block_uring **out, int wake_fd);
void block_uring_free(struct block_uring *u); /* idle; NULL is allowed */

/* Prepares READ, WRITE or FLUSH of a file; finished(r, res) will be called with the result of the
 * system call. False if the ring is full. */
bool block_uring_submit(struct block_uring *u, int fd, struct block_req *r);
void block_uring_flush(struct block_uring *u);
/* finished is called for each that is done. */
void block_uring_reap(struct block_uring *u, void (*finished)(struct block_req *r, int res));
/* Flushes and sleeps until there is something to reap, wake_fd is written, or the deadline. */
void block_uring_wait(struct block_uring *u, uint64_t deadline);

#endif
