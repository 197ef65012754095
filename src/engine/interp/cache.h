/*
 * The interpreter's code cache: decoded blocks keyed by guest-physical address and mode, so that
 * they survive remapping and are shared by address spaces. One cache per vm.
 *
 * A block lies in one guest frame, except that its only instruction may continue into a second one.
 * Writing to a frame with P2M_CODE kills the blocks whose bytes were touched: each op of a dead
 * block at which the state is exact becomes a `refetch`, so a vCPU that is running it (or jumps to
 * it through an old link) looks the code up again there. Dead blocks' memory stays until room is made with every
 * vCPU outside of blocks (sync.h). Then the cache is swept: blocks with a translation keep that and their heads, the
 * others and all decoded code go; or, if what is kept takes too much already, all of it is dropped.
 *
 * Writer and decoder: a writer stores first and looks at P2M_CODE (its translation, or the p2m)
 * after; who decodes sets P2M_CODE first, makes every vCPU drop write translations that are older,
 * and then reads the bytes and enters the block under the lock that killing takes. So a store is
 * seen by the decoder or kills what it has made.
 *
 * Locking: one mutex around building, killing and emptying; blocks are looked up, and ops read, without it. A chain
 * of the hash table can be followed while it changes: a block enters it when it is complete, and one that has left still
 * leads on, for its memory stays. Nobody waits for anything with the lock held.
 */
#ifndef RING3_ENGINE_INTERP_CACHE_H
#define RING3_ENGINE_INTERP_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/util.h"

struct cpu;
struct insn;
struct op;
struct block;
struct vm;
typedef const struct op *(*op_fn)(struct cpu *c, const struct op *o);

struct op {
    op_fn fn;
    union {
        uint64_t imm;
        struct plain *plain;
        const struct block *link; /* direct branches within the page: where they go, if live */
    };
    int32_t disp;  /* of the address; direct branches: target relative to the block's start */
    uint16_t off;  /* of the instruction in the block, bytes */
    uint16_t b, x; /* address: indices into cpu.g */
    uint8_t r, r2; /* registers: index into cpu.g, or byte offset for 8-bit ones */
    uint8_t sc;    /* scale shift; sizes for some */
    uint8_t len;   /* of the instruction(s), bytes */
    uint8_t cnt; /* instructions from the block's start to this one, itself included (the end counts
                    as one) */
    bool exact;  /* no earlier op has left out flags that would be wrong here */
};

#define BLOCK_MAX_INSNS 64
#define BLOCK_MAX_BYTES ((BLOCK_MAX_INSNS + 1) * INSN_MAX_LEN) /* with those of one that is no instruction */

struct tblock;

/* Blocks that a translator may replace begin with an op that counts entries (build.c). */
#define HEAT_NEVER 0xffffu /* cannot be translated */

struct block {
    bool live;
    bool nogroup;  /* the translator's: its accesses do not share translations */
    uint16_t heat; /* times entered so far, or HEAT_NEVER */
    uint8_t mode;
    uint8_t insns;
    uint16_t nops;    /* 1 after a sweep: what counts entries, which leaves, as there is a translation */
    struct tblock *t; /* its translation */
    uint64_t gpa;  /* of the first byte */
    uint64_t gpa2; /* frame of the part beyond the page end, or ~0 */
    struct block *hash_next;
    struct block *page_next[2]; /* in the frames' lists */
    uint16_t bytes;
    struct op op[];
};
/* Who looks for a block should have to wait for one line of memory. */
#define BLOCK_ALIGN 64
_Static_assert(offsetof(struct block, op) == BLOCK_ALIGN, "the head is a line");

/* Jump cache: RIP -> block, valid for one key (mode, privilege, TLB generation). Per vCPU. The
 * blocks of a page share a row, so that INVLPG has one row to look through. */
#define JUMP_ROW_BITS 6
#define JUMP_ROWS_BITS 7
struct jump_entry {
    uint64_t rip, key;
    struct block *block;
};
struct jump_cache {
    struct jump_entry e[1u << JUMP_ROWS_BITS][1u << JUMP_ROW_BITS];
};
static inline struct jump_entry *jump_row(struct jump_cache *jc, uint64_t rip)
{
    return jc->e[(rip >> PAGE_SHIFT ^ rip >> (PAGE_SHIFT + JUMP_ROWS_BITS)) &
                 ((1u << JUMP_ROWS_BITS) - 1)];
}
static inline struct jump_entry *jump_slot(struct jump_cache *jc, uint64_t rip)
{
    return &jump_row(jc, rip)[(rip ^ rip >> JUMP_ROW_BITS) & ((1u << JUMP_ROW_BITS) - 1)];
}

extern const struct op op_leave;          /* returns to the run loop, RIP in g[G_RIP] */
extern const struct block block_unlinked; /* what an unlinked branch points to: never live */

/* Who keeps code made from blocks. Called with the lock held, those of sweeping and emptying with all vCPUs outside. */
struct cache_client {
    void *arg;
    void (*killed)(void *arg, struct tblock *t);
    void (*emptied)(void *arg);
    void (*moved)(void *arg, struct tblock *t, struct block *b); /* t's block is now b: of a sweep */
    void (*swept)(void *arg); /* dead blocks are no more */
    bool (*full)(void *arg); /* no room for more: empty the cache */
    size_t (*bytes)(void *arg); /* memory in use, for the cache's budget */
};

struct code_cache;
int cache_new(struct code_cache **out, struct vm *vm, struct err *e);
void cache_free(struct code_cache *cc);
/* Before any vCPU runs. */
void cache_attach(struct code_cache *cc, const struct cache_client *client);
/* The block for the code at the current RIP in the current mode, built if need be. Raises the
 * fetch's page fault, #UD ... through cpu_raise. max: most instructions it may have (1 to step). */
struct block *cache_lookup(struct cpu *c, unsigned max);
/* Where the code at the current RIP is, if that is known without looking at page tables; 64-bit code, not in single
 * steps. */
struct cache_place {
    uint64_t gpa;
    uint8_t mode;
    bool global; /* it lies in global pages of the upper half */
};
bool cache_place(struct cpu *c, struct cache_place *p);
/* The block there if there is one and it is in one page, or NULL. */
struct block *cache_at(struct cpu *c, const struct cache_place *p);
/* A translation that was suggested for that place, or for another one, or NULL: it may be dead, but is memory of the
 * client's until the cache is emptied. Saves the way by the block, which is two lines of memory. */
struct tblock *cache_hint(const struct code_cache *cc, const struct cache_place *p);
void cache_suggest(struct code_cache *cc, const struct cache_place *p, const struct tblock *t);
/* Memory for cpu.scratch (free() it): NULL without memory. */
struct block *cache_scratch_new(void);
/* Was the block killed that holds o, which is running? A repeated string instruction that
 * overwrites itself is fetched anew before its next iteration. */
bool cache_op_dead(const struct op *o);
/* [gpa, gpa+len) was written: kills the blocks it touches. Any thread. */
void cache_write(struct code_cache *cc, uint64_t gpa, uint64_t len);
/* Kills every block: what stands behind guest-physical addresses has changed. Any thread. */
void cache_kill_all(struct code_cache *cc);

/* A block of the single instruction i, for running it apart: not to be found, and never killed; sweeps keep it. Lock
 * held; NULL if the cache is full. */
struct block *cache_single(struct cpu *c, const struct insn *i);
/* Its instruction, or NULL if it is one of those that are not kept decoded. */
const struct insn *cache_single_insn(const struct block *b);

/* ---- for build.c ---- */
void cache_lock(struct code_cache *cc);
void cache_unlock(struct code_cache *cc);
/* Has the arena run low, or the budget been used? If not, there is room for one more block of any size. Lock held. */
bool cache_full(const struct code_cache *cc);
/* Makes room, by a sweep or by dropping everything; all vCPUs are stopped at SYNC_OUTSIDE and forget their jumps before
 * they go on. */
void cache_reclaim(struct code_cache *cc);
/* Any vCPU that is not outside (sync.h), without the lock: what it finds may be dead already, as it may be a moment
 * later. */
struct block *cache_find(struct code_cache *cc, uint64_t gpa, uint8_t mode);
/* The rest with the lock held. */
/* Memory until the next sweep, and until all is dropped; align: a power of two, 16 at least. */
void *cache_alloc(struct code_cache *cc, size_t size, size_t align);
/* The client's struct tblock come from here. */
void *cache_alloc_lasting(struct code_cache *cc, size_t size, size_t align);
void cache_add(struct code_cache *cc, struct block *b);
void cache_kill(struct code_cache *cc, struct block *b);

/* Bytes that one block and all its parts take at most. */
#define BLOCK_MAX_SIZE (64 * KIB)

#endif
