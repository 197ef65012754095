/* What block_aio and block_file know of each other. */
#ifndef RING3_BACK_BLOCK_BLOCK_AIO_PRIV_H
#define RING3_BACK_BLOCK_BLOCK_AIO_PRIV_H

#include "back/block/block_aio.h"
#include "back/block/block_uring.h"

/* The ring of an io_uring aio, else NULL. */
struct block_uring *block_aio_uring(struct block_aio *a);

/* The ring's part of r->file's request is done: res is its system call's result. */
void block_file_finished(struct block_req *r, int res);
/* A request that its file counted has completed. */
void block_file_untrack(struct block_req *r);

#endif
