/*
 * A pool of threads that run block_work (block.h). Threads are started as work finds none idle, up
 * to a limit, and stay. Private to block_aio.
 *
 * block_pool_add belongs to one thread; finished is called in the threads of the pool.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_POOL_H
#define RING3_BACK_BLOCK_BLOCK_POOL_H

#include "back/block/block.h"

struct block_pool;

/* finished(arg, w) is called after w->run, in the same thread. 0, or negative errno with e set. */
int block_pool_new(struct block_pool **out, void (*finished)(void *arg, struct block_work *w),
                   void *arg, struct err *e);
/* Runs what is queued and ends the threads. NULL is allowed. */
void block_pool_free(struct block_pool *p);

/* Queues w; with no thread and none to be had it is run, and finished called, in here. */
void block_pool_add(struct block_pool *p, struct block_work *w);

#endif
