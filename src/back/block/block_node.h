/*
 * Formats. A block_node turns requests on a disk's bytes into I/O on files and other nodes.
 *
 * How to write one. submit runs in the I/O thread and must not block.
 *   - Where the metadata at hand says where the data lies (raw always; qcow2 with its tables
 *     cached), submit starts I/O on the file at once: the request itself, passed on, if it maps to
 *     one run (block_file_submit, with r->offset as the file's), else a split (block_split_*).
 *   - What needs metadata I/O becomes work (block_aio_work): a function in a thread of the pool
 *     that reads, allocates and updates tables with the synchronous functions of block_file, under
 *     a lock of the format's own. Its done, back in the I/O thread, starts the data's I/O, and that
 *     one's done may start work again (a table to be updated after the data). A request is
 *     finished by block_aio_complete(node->aio, r, rc).
 *   - submit may only try the lock (pthread_mutex_trylock), as work may hold it across I/O;
 *     failing that the request becomes work too. Works run in any order and beside each other:
 *     the lock is what orders them.
 * Requests of one guest in flight to the same bytes have no order, but must not damage metadata.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_NODE_H
#define RING3_BACK_BLOCK_BLOCK_NODE_H

#include <errno.h>

#include "back/block/block.h"
#include "back/block/block_aio.h"
#include "back/block/block_file.h"
#include "back/block/block_iov.h"

struct block_node_ops;

/* Embedded first in a format's own struct. */
struct block_node {
    const struct block_node_ops *ops;
    struct block_aio *aio;
    uint64_t size; /* bytes, a multiple of BLOCK_SECTOR */
    bool ro;
    bool can_discard;
    uint32_t logical_block;
    uint32_t physical_block;
    uint32_t discard_granularity;
};

struct block_node_options {
    const char *format; /* NULL: by looking */
    bool ro;
    bool no_lock;
    bool direct;
    bool no_flush;
    unsigned depth; /* of backing files above this one; a chain of too many is refused */
};

/* The greatest depth: a chain that loops ends in an error here. */
#define BLOCK_NODE_DEPTH_MAX 64u

struct block_node_ops {
    const char *name; /* "qcow2" */
    /* Do an image's first n bytes (up to 4096, the file's all if it is shorter) bear this format's
     * mark? NULL: never found by looking, but by default (raw). */
    bool (*probe)(const uint8_t *head, size_t n);
    /* Makes the node of an open file: takes f over if it succeeds. Blocks. The message names
     * neither format nor file, which the caller adds. */
    int (*open)(struct block_node **out, struct block_file *f, const struct block_node_options *o,
                struct err *e);
    /* Starts r, whose range is whole sectors within the node's size, unless it is written to an
     * ro node (the caller's mistake). */
    void (*submit)(struct block_node *n, struct block_req *r);
    /* See block_read_now(). May be NULL. */
    int (*read_now)(struct block_node *n, const struct block_req *r);
    /* Nothing is in flight: writes out all metadata, syncs the file if it was written, closes it
     * and frees the node. 0 or negative errno (the node is gone in any case). Blocks. */
    int (*close)(struct block_node *n);
    /* These may be NULL: -EOPNOTSUPP. Nothing is in flight; they block. */
    int (*resize)(struct block_node *n, uint64_t size, struct err *e);
    /* See block_status(); what a backing file supplies is reported as that reports it. */
    int (*status)(struct block_node *n, uint64_t offset, uint64_t *len);
};

/* Opens an image by path, with the format named or found. *probed (may be NULL) tells which. The
 * message names the file. For qcow2's backing files, too: with depth one more. */
int block_node_open(struct block_node **out, struct block_aio *aio, const char *path,
                    const struct block_node_options *o, bool *probed, struct err *e);
static inline void block_node_submit(struct block_node *n, struct block_req *r)
{
    n->ops->submit(n, r);
}
static inline int block_node_read_now(struct block_node *n, const struct block_req *r)
{
    return n->ops->read_now ? n->ops->read_now(n, r) : -EAGAIN;
}
int block_node_close(struct block_node *n); /* NULL is allowed */
int block_node_status(struct block_node *n, uint64_t offset, uint64_t *len);

/* Does a disk's first sector bear the mark of a format that may name other files? */
bool block_node_is_header(const uint8_t *head, size_t n);

/*
 * A request cut into parts that go to different places. Begin, add parts in any order, end; when
 * the last part has completed, done (if given, else: completion of the request with the first error
 * or 0) is called in the I/O thread. Parts of a request other than READ and WRITE carry its op and
 * flags.
 */
struct block_split {
    struct block_req *req; /* the whole */
    struct block_aio *aio;
    void (*done)(struct block_split *s, int rc); /* owns s; must call block_split_free */
    void *arg;                                   /* the caller's */
    unsigned pending;
    int rc;
};
/* NULL when memory is out: complete the request with -ENOMEM. */
struct block_split *block_split_begin(struct block_aio *aio, struct block_req *r);
/* len bytes of the request from `at` (counted from its start) go to offset of a file or node, or,
 * for a READ, are zeros. Failure (no memory) becomes the whole's. */
void block_split_file(struct block_split *s, uint64_t at, uint64_t len, struct block_file *f,
                      uint64_t offset);
void block_split_node(struct block_split *s, uint64_t at, uint64_t len, struct block_node *n,
                      uint64_t offset);
void block_split_zero(struct block_split *s, uint64_t at, uint64_t len);
void block_split_end(struct block_split *s);
void block_split_free(struct block_split *s);

/* The formats, in block_node.c's table. qcow2: qcow2.c. */
extern const struct block_node_ops raw_ops;
extern const struct block_node_ops qcow2_ops;

#endif
