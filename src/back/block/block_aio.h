/*
 * How I/O is done: one block_aio per blockdev, shared by all files below it. Three engines:
 *   io_uring   reads, writes and flushes go to the kernel's ring, in batches
 *   threads    a pool of threads does them with ordinary system calls
 *   sync       each is done inside its submission, in the caller's thread
 * Besides files' I/O it runs work: functions that block, in the pool (for all engines but sync).
 *
 * Belongs to the I/O thread (block.h) except where said otherwise. Requests never complete inside a
 * call that submits: they are put on a list that block_aio_poll empties.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_AIO_H
#define RING3_BACK_BLOCK_BLOCK_AIO_H

#include "back/block/block.h"

struct block_aio;

/* io_uring turns into threads if the kernel refuses it. 0, or negative errno with e set. */
int block_aio_new(struct block_aio **out, enum block_aio_kind kind, struct err *e);
void block_aio_free(struct block_aio *a); /* idle; NULL is allowed */
enum block_aio_kind block_aio_kind(const struct block_aio *a);

/* Tells the kernel of what was submitted since the last time. */
void block_aio_flush(struct block_aio *a);
/* Reaps, and calls the callbacks of what has completed; those of requests that complete meanwhile
 * are left to the next call. Does not block. */
void block_aio_poll(struct block_aio *a);
/* Sleeps until block_aio_poll has something to do, block_aio_wake was called since the last
 * sleep, or CLOCK_MONOTONIC reaches deadline (ns; UINT64_MAX: never). True if woken by
 * block_aio_wake. */
bool block_aio_wait(struct block_aio *a, uint64_t deadline);
void block_aio_wake(struct block_aio *a); /* any thread, async-signal-safe */

/* Puts r on the list of completed requests: block_aio_poll will call r->done(r, rc). */
void block_aio_complete(struct block_aio *a, struct block_req *r, int rc);

/*
 * Work that blocks. run is called in a thread of the pool, several works at once and in any order
 * (under the sync engine: inside block_aio_work, in the I/O thread); afterwards block_aio_poll
 * calls done in the I/O thread. The struct is the caller's, embedded in something of its own, and
 * may be reused or freed from done on. Never fails.
 */
void block_aio_work(struct block_aio *a, struct block_work *w);

#endif
