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
struct returns;
struct tblock;

/*
 * Where code is that is not in the page: a table RIP -> translation for each address space that the TLB keeps and one
 * for the kernel's global code, and before it inline caches, one for each place in translated code that goes there.
 *
 * All hold -(RIP + bias) for RIP. Each table has a bias, a random number that changes whenever anything it held may be
 * wrong; bt.bias is that of the table in force. So one comparison tells that RIP is the same, in the same mode and
 * address space, and that the mapping has not changed since; and a kick makes all comparisons fail by a bias of its
 * own. (Numbers in the upper 16 bits would not do: branches to addresses that are not canonical could make up for the
 * difference of two. That of two random ones nobody knows.)
 */
#define BT_JUMP_BITS 14
#define BT_JUMP_ROR 13 /* the index is of RIP plus RIP rotated so */
#define BT_JUMP_SHIFT 2
#define BT_PAGE_BITS 16384
struct bt_jump {
    uint64_t nkey; /* -(RIP + bias) */
    struct tblock *t;
};
struct bt_jumps {
    struct bt_jump e[1u << BT_JUMP_BITS];
    uint64_t pages[BT_PAGE_BITS / 64]; /* which pages may have entries: two bits for each, by hashes */
    uint64_t bias;
    uint64_t gen; /* of the TLB, that the entries are valid for */
    bool global;  /* holds code in global pages */
};
#define BT_JUMP_TABLES (1 + TLB_CONTEXTS) /* the first is the kernel's */

/* Vector instruction sets that a block needs, and that are available with registers live. */
enum bt_level { BT_LEVEL_NONE, BT_LEVEL_SSE, BT_LEVEL_AVX, BT_LEVEL_AVX512 };

#define BT_GROUPS 6
#define BT_ROUNDS 12

/* What a lookup in a loop leaves for the rounds that follow (bt/access.c). */
struct bt_round {
    uint64_t bound;  /* how far the register or address that it goes by may come before it has left the page */
    uint64_t addend; /* as in bt_cpu.group */
};

/* What translated code uses much is from `group` on: within 128 bytes of the registers, which struct cpu has behind. */
struct bt_cpu {
    struct check *check; /* in lockstep with the interpreter (check.h), or NULL */
    struct bt_jumps *jumps; /* BT_JUMP_TABLES of them; NULL: this vCPU does not translate */
    struct bt_jumps *jump;  /* the one for the mode and address space of now */
    uint64_t now; /* what the vCPU's thread has put into bias */
    uint64_t nowhere;
    uint64_t seed; /* for the next one */
    uint64_t jump_mask; /* constant for PEXT */
    uint64_t secret;
    void *scratch; /* the stack's page when there is none */
    /* The host stack while translated code runs (returns.h), and C's. */
    struct returns *returns;
    void *sp, *csp;
    struct tblock *dead; /* what was branched to but is no more */
    uint64_t hold[2]; /* registers of stubs */
    uint64_t tmp;   /* a register that flags displace */
    /* While the interpreter runs an instruction for a translation: is that still valid? */
    const bool *live;
    /* An interrupt may be waiting that was looked for while they were disabled. */
    bool intr;
    uint8_t level;  /* enum bt_level: the vector registers are live and offer this */
    uint32_t site;  /* where translated code left */
    struct bt_round round[BT_ROUNDS];

    uint64_t group[BT_GROUPS]; /* host minus guest address of shared translations */
    uint64_t operand; /* of memory, for making flags again (bt/flags.c) */
    uint64_t value; /* what an instruction with two memory operands carries between them */
    uint64_t vpage; /* linear address of the page that runs */
    /* The page the stack is in, as minus its linear address, and host minus guest address. When there is none:
     * a page at no canonical address, which the guest cannot know, and memory of no importance. */
    uint64_t sp_npage, sp_addend;
    /* The jump table's; `nowhere`, which nothing has, when control must come back at the next such branch. Set by the
     * vCPU's thread, taken away by kicks. */
    _Atomic uint64_t bias;
    uint32_t ret;   /* the last return: its site, and BT_RET_FLAGS */
    _Atomic uint32_t quiet; /* 0: look at events at the next back-edge */
    uint8_t missing[8]; /* by enum bt_level: nonzero if it is not offered now */
};

static inline unsigned bt_jump_index(uint64_t rip)
{
    uint64_t h = rip + (rip >> BT_JUMP_ROR | rip << (64 - BT_JUMP_ROR));

    return h >> BT_JUMP_SHIFT & ((1u << BT_JUMP_BITS) - 1);
}

#endif
