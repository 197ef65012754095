/* The translator's part of struct cpu (engine/interp/interp.h). Offsets of these fields are in the
 * generated code. */
#ifndef RING3_ENGINE_BT_STATE_H
#define RING3_ENGINE_BT_STATE_H

#include <stdatomic.h>
#include <stdint.h>

struct check;
struct cpu;
struct tblock;

/* The jump table: RIP -> translation, for indirect branches and those that leave the page. The
 * blocks of a page lie in a row of their own, so that INVLPG has one row to clear. */
#define BT_JUMP_BITS 13
#define BT_JUMP_ROW_BITS 8 /* entries of a page: one for 16 bytes of code */
struct bt_jump {
    uint64_t rip, key;
    struct tblock *t;
    uint64_t pad;
};

/* Vector instruction sets that a block needs, and that are available with registers live. */
enum bt_level { BT_LEVEL_NONE, BT_LEVEL_SSE, BT_LEVEL_AVX, BT_LEVEL_AVX512 };

#define BT_GROUPS 8

struct bt_cpu {
    struct cpu *self;
    struct check *check;  /* in lockstep with the interpreter (check.h), or NULL */
    struct bt_jump *jump; /* 1 << BT_JUMP_BITS of them; NULL: this vCPU does not translate */
    /* What entries must match now; 0 when nothing may: control comes back at the next such branch.
     * Set by the vCPU's thread, cleared by kicks. */
    _Atomic uint64_t key;
    uint64_t vpage; /* linear address of the page that runs */
    uint64_t tmp;   /* a register that flags displace */
    uint64_t value; /* what an instruction with two memory operands carries between them */
    uint64_t group[BT_GROUPS]; /* host minus guest address of shared translations */
    _Atomic uint32_t poll;     /* look at events at the next back-edge */
    uint32_t site;             /* where translated code left */
    uint32_t level;            /* enum bt_level: the vector registers are live and offer this */
};

static inline struct bt_jump *bt_jump_slot(struct bt_jump *j, uint64_t rip)
{
    return &j[rip >> 4 & ((1u << BT_JUMP_BITS) - 1)];
}

#endif
