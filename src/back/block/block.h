/*
 * Disks: a blockdev is one image as a guest's disk sees it: a row of bytes that is read, written,
 * flushed, discarded and zeroed by asynchronous requests.
 *
 *   blockdev                    limits, cache mode, order of completion; this header
 *     block_node                a format: raw, qcow2, the overlay of a snapshot; block_node.h
 *       block_file              an open host file; block_file.h
 *         block_aio             how its I/O is done: io_uring, threads, synchronously; block_aio.h
 *
 * Threads: a blockdev, its nodes, files and aio belong to one thread at a time, its I/O thread;
 * every function here is called by that thread only, except block_wake and, while it waits,
 * block_read_now. Handing a drained blockdev from one thread to another needs a happens-before of
 * the caller's (a join, a mutex). Completion callbacks run in the I/O thread, from inside
 * block_poll and block_drain and never from inside block_submit; they may submit.
 *
 * Offsets, lengths and the content of buffers come from the guest and are hostile: block_submit
 * checks them. So is the content of image files.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_H
#define RING3_BACK_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

#define BLOCK_SECTOR 512u

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

/*
 * Work that blocks: run is called in another thread, done in the I/O thread afterwards; see
 * block_aio_work().
 */
struct block_work {
    void (*run)(struct block_work *w);
    void (*done)(struct block_work *w);
    struct block_work *next;
};

/* BLOCK_WRITE_ZEROES only: the range may be deallocated if it reads as zeros then. */
#define BLOCK_REQ_UNMAP 1u

/*
 * One request, to a blockdev, a node or a file: all three take the same struct, so that a layer
 * with nothing to add passes it on. Zeroed by its submitter before the fields of the first group
 * are set; it, the iovec array and the buffers stay allocated and untouched until done is called,
 * and are the submitter's again from then on.
 */
struct block_req {
    enum block_op op;
    uint32_t flags;
    uint64_t offset, len; /* bytes; len is the sum of the iovecs of READ, WRITE; FLUSH: ignored */
    const struct iovec *iov; /* READ, WRITE; never changed by the block layer */
    unsigned niov;
    /* rc is 0 or a negative errno. A failed write may have written any part of its range. */
    void (*done)(struct block_req *r, int rc);

    /* The block layer's own. */
    struct block_req *next;                      /* in the list the request waits in */
    void (*finish)(struct block_req *r, int rc); /* called instead of done: the blockdev's */
    struct blockdev *dev;
    struct block_file *file;
    struct block_work work; /* when a thread of the pool does it */
    uint64_t moved;         /* bytes that a transfer cut short has done */
    int rc;
    uint8_t step; /* of the blockdev's handling */
    bool tracked; /* counted by its file */
};

enum block_cache {
    BLOCK_CACHE_WRITEBACK,    /* the host's page cache; a flush makes writes durable */
    BLOCK_CACHE_NONE,         /* O_DIRECT; a flush makes writes durable */
    BLOCK_CACHE_WRITETHROUGH, /* the host's page cache; each write is durable when it completes */
    BLOCK_CACHE_UNSAFE        /* the host's page cache; flushes do nothing */
};

enum block_aio_kind { BLOCK_AIO_URING, BLOCK_AIO_THREADS, BLOCK_AIO_SYNC };

/* A token bucket as Firecracker has it: `rate` tokens flow in per second, up to a second's worth;
 * `burst` more are there once, at the start. Tokens are requests (iops) or bytes (bps). */
struct block_limit_cfg {
    uint64_t rate; /* 0: no limit */
    uint64_t burst;
};

struct block_options {
    const char *format; /* "raw", "qcow2"; NULL: found by looking at the image (see block_open) */
    bool ro;
    bool snapshot; /* writes go to a temporary file and are lost at block_close */
    bool no_lock;  /* do not lock the image against other users */
    enum block_cache cache;
    enum block_aio_kind aio; /* falls back to threads if the kernel refuses io_uring */
    struct block_limit_cfg iops, bps;
};

/* What a disk tells its guest. Constant except for size, which block_resize changes. */
struct block_info {
    const char *format; /* of the image: "raw", "qcow2" */
    bool probed;        /* the format was found by looking */
    bool ro;
    bool writeback; /* a flush is needed to make writes durable */
    bool can_discard;
    enum block_aio_kind aio;      /* in use */
    uint64_t size;                /* bytes, a multiple of BLOCK_SECTOR */
    uint32_t logical_block;       /* requests should be multiples of it; 512 or more */
    uint32_t physical_block;      /* best unit of writes */
    uint32_t discard_granularity; /* bytes */
};

struct blockdev;

/*
 * Opens an image. Without options->format the first bytes decide between the formats known. That is
 * a risk with raw images, whose first bytes the guest writes: it could write the header of a
 * format that names other files of the host and wait for the next start. Hence a raw image that was
 * found by looking refuses (-EPERM) writes that would make its first sector such a header; the
 * caller should tell the user that naming the format avoids that (info->probed).
 *
 * Locks the image so that no two processes, QEMU included, write it or read it while another writes
 * it. Returns 0, or a negative errno and a message that names the file: -EBUSY if it is locked,
 * -EINVAL for a bad or unsupported image, or the error of the host.
 */
int block_open(struct blockdev **out, const char *path, const struct block_options *o,
               struct err *e);

/* Drains, flushes (unless unsafe) and closes. NULL is allowed. Returns 0, or the error of the last
 * flush. */
int block_close(struct blockdev *d);

const struct block_info *block_info(const struct blockdev *d);

/*
 * Starts n requests, in order; the kernel is told once for all of them. Each completes exactly
 * once, in any order. Refused by completion: -EINVAL for a range that is not whole sectors within
 * the disk or whose iovecs do not add up to it, -EROFS, -EPERM (see block_open), -EOPNOTSUPP.
 * Nothing orders two requests that are in flight together; a FLUSH covers the writes that had
 * completed before it was submitted.
 */
void block_submit(struct blockdev *d, struct block_req *const *reqs, unsigned n);

/*
 * Does a READ at once if that needs no waiting: all of it is in the host's page cache, where it
 * lies is known, and no limit stands in between. 0: done, and r->done is not called; -EAGAIN:
 * submit it, which also finds out what is wrong with it. Any thread may call it that keeps the I/O
 * thread (by a lock) from all functions but block_wait and block_wake. Saves that thread's waking
 * up, which for small reads costs many times the read.
 */
int block_read_now(struct blockdev *d, const struct block_req *r);

/* Calls the callbacks of the requests that have completed, and starts those that a limit held back
 * and whose time has come. Does not block. Returns the number of callbacks. */
unsigned block_poll(struct blockdev *d);

/* Sleeps until block_poll has something to do or block_wake was called; a wake between two waits is
 * not lost. Returns at once if either holds already. */
void block_wait(struct blockdev *d);

/* Makes the current or next block_wait return. Any thread; async-signal-safe; one atomic exchange
 * if the I/O thread is not asleep. */
void block_wake(struct blockdev *d);

/* Completes all requests, those that limits hold back included, without waiting for limits: what
 * comes later waits the longer. */
void block_drain(struct blockdev *d);
/* Completes with -ECANCELED, of the requests that limits hold back, those that `which` says, or all if it is NULL; they were not
 * started. */
void block_cancel(struct blockdev *d, bool (*which)(const struct block_req *r, const void *arg), const void *arg);
/* Requests submitted whose callbacks have not been called. */
unsigned block_inflight(const struct blockdev *d);

/* Durable writes without flush (false) or not (true), as the guest chooses; holds for writes that
 * complete from now on. */
void block_set_writeback(struct blockdev *d, bool writeback);

/* Changes the size, a multiple of BLOCK_SECTOR; what is new reads as zeros. Drained devices only.
 * 0, -EROFS, -EINVAL, -EOPNOTSUPP or the host's error with e set. */
int block_resize(struct blockdev *d, uint64_t size, struct err *e);

/* Reads len bytes, of any alignment, and waits for them. Drained devices only. 0 or -EINVAL for
 * what the disk does not have, -ENOMEM, or the host's error. For looking into images before a guest
 * runs.
 */
int block_read(struct blockdev *d, uint64_t offset, void *buf, size_t len);

/* Allocation of the bytes at offset, for copying images: stores in *len the length of the run from
 * there (at most what *len asked for) that is alike, and returns BLOCK_ZERO if it is known to read
 * as zeros, else BLOCK_DATA; or a negative errno. Drained devices only. Blocks. */
enum block_status { BLOCK_DATA, BLOCK_ZERO };
int block_status(struct blockdev *d, uint64_t offset, uint64_t *len);

#endif
