/* The translator's part of struct cpu (engine/interp/interp.h). Offsets of these fields are in the
 * generated code. */
#ifndef RING3_ENGINE_BT_STATE_H
#define RING3_ENGINE_BT_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/interp/tlb.h"

struct check;
struct cpu;
struct tblock;

/* A jump table: RIP -> translation, for indirect branches and those that leave the page. Each
 * address space that the TLB keeps has one, and the kernel's global code. */
#define BT_JUMP_BITS 14
#define BT_JUMP_ROR 13 /* the index is of RIP plus RIP rotated so */
#define BT_JUMP_SHIFT 2
struct bt_jump {
    uint64_t nrip; /* -RIP */
    struct tblock *t;
};
struct bt_jumps {
    struct bt_jump e[1u << BT_JUMP_BITS];
    uint64_t pages[64]; /* a bit for each page that may have entries, by a hash */
    /* Which entries were filled, for clearing those alone; more than the array holds: all. */
    uint32_t nfilled;
    uint16_t filled[2048];
};

/* Vector instruction sets that a block needs, and that are available with registers live. */
enum bt_level { BT_LEVEL_NONE, BT_LEVEL_SSE, BT_LEVEL_AVX, BT_LEVEL_AVX512 };

#define BT_GROUPS 8

struct bt_cpu {
    struct cpu *self;
    struct check *check; /* in lockstep with the interpreter (check.h), or NULL */
    /* The table for the mode and address space of now; `none`, which is empty, when control must
     * come back at the next such branch. Set by the vCPU's thread, taken away by kicks. */
    struct bt_jumps *_Atomic jump;
    struct bt_jumps *none, *super; /* NULL: this vCPU does not translate */
    struct bt_jumps *user;         /* by TLB context */
    uint64_t super_gen, user_gen[TLB_CONTEXTS]; /* what their contents are valid for (tlb.h) */
    bool user_global[TLB_CONTEXTS];             /* they hold code in global pages */
    uint64_t jump_mask; /* constant for PEXT */
    /* The page the stack is in, as minus its linear address, and host minus guest address. When there is none:
     * a page at no canonical address, which the guest cannot know, and memory of no importance. */
    uint64_t sp_npage, sp_addend;
    uint64_t secret;
    void *scratch; /* that memory: a page */
    uint64_t vpage; /* linear address of the page that runs */
    uint64_t tmp;   /* a register that flags displace */
    uint64_t operand; /* of memory, for making flags again (bt/flags.c) */
    uint64_t value; /* what an instruction with two memory operands carries between them */
    uint64_t group[BT_GROUPS]; /* host minus guest address of shared translations */
    /* While the interpreter runs an instruction for a translation: is that still valid? */
    const bool *live;
    /* An interrupt may be waiting that was looked for while they were disabled. */
    bool intr;
    _Atomic uint32_t poll;     /* look at events at the next back-edge */
    uint32_t site;             /* where translated code left */
    uint8_t level;             /* enum bt_level: the vector registers are live and offer this */
    uint8_t missing[4];        /* by level: nonzero if it is not offered now */
};

static inline unsigned bt_jump_index(uint64_t rip)
{
    uint64_t h = rip + (rip >> BT_JUMP_ROR | rip << (64 - BT_JUMP_ROR));

    return h >> BT_JUMP_SHIFT & ((1u << BT_JUMP_BITS) - 1);
}

static inline struct bt_jump *bt_jump_slot(struct bt_jumps *j, uint64_t rip)
{
    return &j->e[bt_jump_index(rip)];
}

#endif
