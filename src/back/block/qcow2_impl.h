/*
 * The inside of the qcow2 format, shared by qcow2*.c alone.
 *
 * All of it belongs to the I/O thread; nothing here locks. Nothing here blocks either, but what
 * says so: what needs a table that is not in memory parks its waiter and is called again later.
 *
 * Order of what reaches the disk. Tables change in memory first. A commit takes a copy of all that
 * changed and writes it in stages with a sync between them (qcow2_commit.c):
 *     data, refcount blocks | refcount table | header | L2 tables | L1 table
 * so that after a crash at any point whatever is referenced is also counted and holds what was
 * written. What loses a reference is remembered (qcow2_free.c) and given back only when a commit
 * has made the loss durable and every request that may still use it is done. So a crash leaks
 * clusters at worst. With lazy refcounts the blocks are written at the end, and a dirty bit before
 * the first L2 table makes the next open count anew.
 */
#ifndef RING3_BACK_BLOCK_QCOW2_IMPL_H
#define RING3_BACK_BLOCK_QCOW2_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "back/block/block_aio.h"
#include "back/block/block_file.h"
#include "back/block/block_node.h"
#include "back/block/qcow2_format.h"
#include "back/block/qcow2_header.h"

struct qcow2;

/* Something to be gone on with. A waiter is in at most one list. */
struct qcow2_waiter {
    void (*resume)(struct qcow2_waiter *w, int rc); /* rc: why what was waited for failed, or 0 */
    struct qcow2_waiter *next;
};

struct qcow2_waitlist {
    struct qcow2_waiter *head, **tail; /* tail is NULL while the list is empty */
};

void qcow2_park(struct qcow2_waitlist *l, struct qcow2_waiter *w);
/* Resumes all that wait now, in order. */
void qcow2_resume(struct qcow2_waitlist *l, int rc);

/* ---- qcow2_cache.c: L2 tables and refcount blocks in memory ---- */

struct qcow2_table {
    struct qcow2_cache *cache;
    uint32_t index;              /* in the L1 or the refcount table */
    uint64_t offset;             /* in the file */
    uint32_t dirty_lo, dirty_hi; /* bytes to be written; equal: none */
    unsigned pins;               /* stays in memory while there are any */
    bool loading;
    uint8_t *data; /* one cluster, as in the file */
    struct qcow2_waitlist waiters;
    struct block_req req;
    struct iovec iov;
    struct qcow2_table *newer, *older;
};

struct qcow2_cache {
    struct qcow2 *q;
    struct qcow2_table **slot; /* by index */
    uint32_t nslots;
    uint32_t count, limit;
    struct qcow2_table *newest, *oldest;
};

int qcow2_cache_init(struct qcow2_cache *c, struct qcow2 *q, uint32_t nslots, uint64_t bytes);
void qcow2_cache_fini(struct qcow2_cache *c);
/* More slots. 0 or -ENOMEM. */
int qcow2_cache_grow(struct qcow2_cache *c, uint32_t nslots);
/* The table in slot index, which the file has at offset. -EAGAIN: w waits for it; with w NULL, that
 * it is not in memory. */
int qcow2_cache_get(struct qcow2_cache *c, uint32_t index, uint64_t offset, struct qcow2_table **t,
                    struct qcow2_waiter *w);
/* Makes sure that one table more fits. -EAGAIN: w waits for a commit to make tables clean. */
int qcow2_cache_room(struct qcow2_cache *c, struct qcow2_waiter *w);
/* A new table, all zeros, to be written in full. 0 or -ENOMEM. Room was asked for. */
int qcow2_cache_new(struct qcow2_cache *c, uint32_t index, uint64_t offset, struct qcow2_table **t);
void qcow2_table_dirty(struct qcow2_table *t, uint32_t lo, uint32_t hi);
/* Drops a table that is clean and unpinned, or forgets the changes of one that is not pinned. */
void qcow2_cache_drop(struct qcow2_table *t);

static inline void qcow2_table_pin(struct qcow2_table *t) { t->pins++; }

static inline void qcow2_table_unpin(struct qcow2_table *t) { t->pins--; }

/* ---- qcow2_meta.c: which clusters hold metadata, which no guest data may overwrite ---- */

struct qcow2_range {
    uint64_t start, end; /* bytes in the file */
};

struct qcow2_meta {
    uint64_t *set; /* open-addressed hash of cluster numbers; 0 is empty */
    uint32_t cap, used;
    struct qcow2_range *ranges; /* header, L1, refcount table, snapshots and their L1 tables */
    uint32_t nranges;
};

void qcow2_meta_fini(struct qcow2_meta *m);
/* -EEXIST if it is in the set, -ENOMEM. */
int qcow2_meta_add(struct qcow2_meta *m, uint64_t cluster);
void qcow2_meta_del(struct qcow2_meta *m, uint64_t cluster);
int qcow2_meta_add_range(struct qcow2_meta *m, uint64_t start, uint64_t len);
void qcow2_meta_del_range(struct qcow2_meta *m, uint64_t start);
/* Does any of the clusters of this part of the file hold metadata? */
bool qcow2_meta_hit(const struct qcow2 *q, uint64_t host, uint64_t len);
/* Fills q->meta from the header, L1, refcount table and snapshots. -EINVAL with e set if any two of
 * them overlap. Blocks. */
int qcow2_meta_load(struct qcow2 *q, struct err *e);

/* ---- qcow2_free.c: clusters that lost a reference ---- */

struct qcow2_free {
    struct qcow2_free *next;
    uint64_t cluster, n;
    uint64_t seq; /* requests up to this one may still use them */
};

struct qcow2_free_list {
    struct qcow2_free *head, **tail; /* tail is NULL while the list is empty */
    uint32_t n;
};

/* ---- qcow2_commit.c ---- */

enum qcow2_stage {
    QCOW2_STAGE_REFBLOCKS,
    QCOW2_STAGE_REFTABLE,
    QCOW2_STAGE_HEADER,
    QCOW2_STAGE_L2,
    QCOW2_STAGE_L1,
    QCOW2_STAGES
};

struct qcow2_segment;

struct qcow2_commit {
    bool active;
    bool wanted;                    /* another one is to follow */
    bool synced;                    /* nothing was written since the last sync */
    bool reftable_moved, dirty_bit; /* what the header's segments stand for */
    unsigned stage, pending;
    int rc;
    struct qcow2_segment *segments[QCOW2_STAGES];
    uint32_t l1_lo, l1_hi, reftable_lo, reftable_hi; /* entries taken */
    struct block_req sync;
    struct qcow2_waitlist waiters, next; /* for this one; for the one to follow */
    struct qcow2_free_list frees;
};

/* w is resumed when all changes made up to now are durable. */
void qcow2_commit(struct qcow2 *q, struct qcow2_waiter *w);
/* Is there anything a commit would write, or one under way? */
bool qcow2_commit_needed(const struct qcow2 *q);

/* ---- the image ---- */

struct qcow2_alloc;
struct qcow2_packed_read;

#define QCOW2_PACKED_CACHE 4

struct qcow2_packed_entry {
    uint64_t host; /* 0: empty */
    uint8_t *data; /* one cluster */
};

struct qcow2 {
    struct block_node node;
    struct block_file *file;
    struct block_node *backing; /* NULL: none */
    struct qcow2_header h;
    uint64_t cluster;       /* bytes */
    uint32_t l2_bits;       /* log2 of the entries of an L2 table */
    uint32_t refblock_bits; /* log2 of the entries of a refcount block */
    bool broken;            /* metadata contradict each other: no more writes */
    bool lazy;              /* refcount blocks are written late */
    bool dirty_on_disk;     /* the header has the dirty bit */
    int sync_error;         /* a sync failed: what it covered may be lost for good */

    uint64_t *l1;          /* host byte order; h.l1_size entries */
    uint32_t l1_lo, l1_hi; /* entries changed; equal: none */
    struct qcow2_cache l2;

    uint64_t *reftable; /* host byte order */
    uint32_t reftable_entries;
    uint32_t reftable_lo, reftable_hi;
    bool reftable_moved; /* the header is to be changed */
    struct qcow2_cache refblocks;
    uint64_t free_hint; /* no cluster below is free */
    uint64_t fresh;     /* from this offset on the file is still a hole */

    struct qcow2_meta meta;
    struct qcow2_free_list freed, ready; /* waiting for a commit to start; committed */
    struct qcow2_waiter free_waiter;
    bool free_waiting;
    unsigned punching;

    struct qcow2_commit commit;

    struct qcow2_op *oldest, *newest; /* requests being worked on, by age */
    uint64_t seq;
    struct qcow2_alloc *allocs; /* allocating writes under way */

    struct qcow2_packed_read *packed_reads;
    struct qcow2_packed_entry packed[QCOW2_PACKED_CACHE];
    unsigned packed_next;
    uint64_t packed_gen;  /* counts compressed clusters that lost their reference */
    uint64_t packed_end;  /* where the next compressed cluster may go, in a cluster already begun */
    uint64_t packed_room; /* bytes left there */

    uint8_t *zeros; /* QCOW2_ZEROS_LEN bytes, never written */
};

#define QCOW2_ZEROS_LEN (64 * KIB)

static inline uint64_t qcow2_cluster_of(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->h.cluster_bits;
}

/* Notes that the image contradicts itself: sets the corrupt bit in the file and refuses writes from
 * now on. Returns -EIO. */
int qcow2_break(struct qcow2 *q);

/* Works on completions until nothing but requests parked forever is left: all internal I/O of q
 * done, commits included. Blocks. */
void qcow2_pump(struct qcow2 *q);
/* Makes everything durable and all freed clusters free. Nothing is in flight. Blocks. */
int qcow2_settle(struct qcow2 *q);

/* Changes the disk's size (struct block_node_ops). */
int qcow2_resize(struct block_node *n, uint64_t size, struct err *e);
/* Maps all of an empty image to clusters that read as zeros. Blocks. */
int qcow2_preallocate(struct block_node *n, bool reserve, struct err *e);

/* Calls fn until it returns other than -EAGAIN, waiting in between for what it parked w at. For
 * callers that block. */
int qcow2_until_done(struct qcow2 *q, int (*fn)(void *arg, struct qcow2_waiter *w), void *arg);

/* ---- qcow2_refcount.c ---- */

/* The reference count of a cluster (number). -EAGAIN: w waits. */
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *count, struct qcow2_table **t,
                       struct qcow2_waiter *w);
/* Sets the count of a cluster whose block t is in memory. */
void qcow2_refcount_set(struct qcow2 *q, struct qcow2_table *t, uint64_t cluster, uint64_t count);
/* Takes up to max free clusters in a row, with counts of one. fresh (may be NULL): they read as
 * zeros. -EAGAIN: w waits; -EFBIG, -EIO, -ENOMEM. */
int qcow2_refcount_alloc(struct qcow2 *q, uint64_t max, uint64_t *host, uint64_t *n, bool *fresh,
                         struct qcow2_waiter *w);
/* As alloc, but exactly n clusters in a row, past everything in use. Blocks. */
int qcow2_refcount_alloc_row(struct qcow2 *q, uint64_t n, uint64_t *host);

/* n clusters from cluster on lose a reference by a change just made in memory. */
void qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t n);
/* The same for clusters that were never referenced. */
void qcow2_free_now(struct qcow2 *q, uint64_t cluster, uint64_t n);
/* Gives back what is ready. Called whenever that may be more. */
void qcow2_free_run(struct qcow2 *q);
void qcow2_free_list_add(struct qcow2_free_list *to, struct qcow2_free_list *from);
void qcow2_free_list_fini(struct qcow2_free_list *l);

/* ---- qcow2_map.c ---- */

/* A run of guest clusters that are alike. */
struct qcow2_extent {
    struct qcow2_cluster c; /* of the first; DATA: host is that of the offset asked for */
    uint64_t len;           /* bytes from the offset asked for */
};

/* What is at offset, up to len bytes of it. -EAGAIN: w waits, or, with w NULL, that is not known
 * without waiting; -EIO. */
int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t len, struct qcow2_extent *x,
              struct qcow2_waiter *w);
/* The L2 table that maps offset; *t is NULL if there is none. -EAGAIN: w waits; -EIO. */
int qcow2_l2_get(struct qcow2 *q, uint64_t offset, struct qcow2_table **t, struct qcow2_waiter *w);
/* The same, made if there is none and copied if snapshots share it. Also -ENOMEM, -EFBIG. */
int qcow2_l2_writable(struct qcow2 *q, uint64_t offset, struct qcow2_table **t,
                      struct qcow2_waiter *w);
/* Entries of a table in memory. set marks it dirty. */
uint64_t qcow2_l2_entry(const struct qcow2_table *t, uint32_t i);
void qcow2_l2_set(struct qcow2_table *t, uint32_t i, uint64_t entry);
/* What the entry referred to loses that reference. */
void qcow2_l2_release(struct qcow2 *q, uint64_t entry);
/* Do len bytes from offset, in clusters that are UNALLOCATED, read as zeros? */
bool qcow2_backing_zero(const struct qcow2 *q, uint64_t offset);

static inline uint32_t qcow2_l2_index(const struct qcow2 *q, uint64_t offset)
{
    return (uint32_t)(qcow2_cluster_of(q, offset) & (BIT(q->l2_bits) - 1));
}

static inline uint32_t qcow2_l1_index(const struct qcow2 *q, uint64_t offset)
{
    return (uint32_t)(qcow2_cluster_of(q, offset) >> q->l2_bits);
}

/* ---- qcow2_io.c: requests ---- */

/* A request being worked on, from front to back; parts of it run at the same time. */
struct qcow2_op {
    struct qcow2_waiter wait;
    struct qcow2 *q;
    struct block_req *req;
    uint64_t pos;     /* bytes of the request that are under way or done */
    unsigned pending; /* parts under way, and one for op_run itself */
    int rc;
    uint64_t seq;
    struct qcow2_op *older, *newer;
    struct block_req part; /* the part, if there is just one */
};

void qcow2_submit(struct block_node *n, struct block_req *r);
int qcow2_read_now(struct block_node *n, const struct block_req *r);
/* One part of op has ended. */
void qcow2_op_put(struct qcow2_op *op, int rc);
/* Iovecs of len bytes of op's data at byte `at` of it; zeros if it has none. Their number, at most
 * what qcow2_op_niov says. */
unsigned qcow2_op_iov(const struct qcow2_op *op, uint64_t at, uint64_t len, struct iovec *out);
unsigned qcow2_op_niov(const struct qcow2_op *op, uint64_t len);
/* Starts the writing of up to len bytes at op's position and moves that on. -EAGAIN: op waits. */
int qcow2_op_write(struct qcow2_op *op, uint64_t len);

/* ---- qcow2_alloc.c: writes to clusters that have to be allocated first ---- */

/* -EAGAIN if such a write is under way to the cluster at offset: w waits for it. Otherwise shortens
 * *len to what lies before the next one. */
int qcow2_alloc_conflict(struct qcow2 *q, uint64_t offset, uint64_t *len, struct qcow2_waiter *w);
/* Starts writing up to len bytes of op's data to offset; *len becomes what was started. */
int qcow2_alloc_write(struct qcow2_op *op, uint64_t offset, uint64_t *len);

/* ---- qcow2_zero.c ---- */

/* Works on op's position, a WRITE_ZEROES or DISCARD. -EAGAIN: op waits. */
int qcow2_zero_step(struct qcow2_op *op);

/* ---- qcow2_packed.c: compressed clusters ---- */

/* Reads len bytes at guest offset, in the compressed cluster c, to byte op->pos of op. -EAGAIN. */
int qcow2_packed_read(struct qcow2_op *op, const struct qcow2_cluster *c, uint64_t offset,
                      uint64_t len);
/* A compressed cluster lost its reference. */
void qcow2_packed_forget(struct qcow2 *q, uint64_t host);
void qcow2_packed_fini(struct qcow2 *q);

#endif
