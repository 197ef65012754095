/*
 * Decoded operations. A block is an array of ops; each op's handler does its work and continues with
 * the next op by a tail call (threaded dispatch). Registers and address parts are indices into
 * cpu.g, so base, index, segment base and RIP-relative addressing are one formula:
 *     g[b] + (g[x] << sc) + disp
 * Private to src/engine/interp.
 */
#ifndef RING3_ENGINE_INTERP_OP_H
#define RING3_ENGINE_INTERP_OP_H

#include "engine/interp/cache.h"
#include "engine/interp/interp.h"
#include "engine/interp/simd.h"

#define G_ZERO (sizeof(struct cpu_state) / 8)
#define G_RIP (G_ZERO + 1) /* RIP of the running block's first instruction */
#define G_FSBASE (offsetof(struct cpu_state, seg[FS].base) / 8)
#define G_GSBASE (offsetof(struct cpu_state, seg[GS].base) / 8)

/* Continues with op n. Sanitizer and debug builds cannot rely on sibling-call optimisation, so there
 * handlers return the next op to the loop in run.c instead: see dispatch.h. */
#include "engine/interp/dispatch.h"

/* A fully general instruction: its plain function and decoded form. */
struct plain {
    insn_fn fn;
    struct simd_op simd; /* vector instructions: prepared once */
    struct insn insn;
};

/* Fills *p for i as the vCPU's processor has it in the current mode. True if p->simd.run is the way to run it,
 * else p->fn is. */
bool plain_prepare(struct cpu *c, struct plain *p, const struct insn *i);

/* ---- leaving a block ---- */
/* Goes on at rip: through the jump cache, or back to the run loop for events and misses. */
static inline const struct op *enter_rip(struct cpu *c, uint64_t rip)
{
    struct jump_entry *j = jump_slot(c->jc, rip);

    c->g[G_RIP] = rip;
    if (unlikely(j->rip != rip || (j->key != c->key && j->key != c->gkey) ||
                 atomic_load_explicit(c->events, memory_order_relaxed)))
        return &op_leave;
    return j->block->op;
}

/* ---- memory: the TLB hit path inline, everything else in mem.c ---- */
/* After every walk: drops code in frames whose entries it has marked accessed or dirty. */
void mem_walked(struct cpu *c, const struct walk *w);
uint64_t slow_ld(struct cpu *c, const struct op *o, uint64_t la, unsigned n);
void slow_st(struct cpu *c, const struct op *o, uint64_t la, unsigned n, uint64_t v);
/* Checks that [la, la+n) may be written; a host pointer for a store at once, or NULL when slow_ld and slow_st must
 * be used. */
void *slow_rmw(struct cpu *c, const struct op *o, uint64_t la, unsigned n);

static inline uint64_t op_ea(const struct cpu *c, const struct op *o)
{
    return c->g[o->b] + (c->g[o->x] << o->sc) + (uint64_t)(int64_t)o->disp;
}

#define DEFINE_MEM(n, T)                                                                           \
    static inline T ld##n(struct cpu *c, const struct op *o, uint64_t la)                          \
    {                                                                                              \
        const struct tlb_entry *e = tlb_slot(c->tlb, la);                                          \
        if (likely(((la + sizeof(T) - 1) & ~PAGE_MASK) == e->rtag))                                \
            return *(const T *)(uintptr_t)(la + e->addend);                                        \
        return (T)slow_ld(c, o, la, sizeof(T));                                                    \
    }                                                                                              \
    static inline void st##n(struct cpu *c, const struct op *o, uint64_t la, T v)                  \
    {                                                                                              \
        const struct tlb_entry *e = tlb_slot(c->tlb, la);                                          \
        if (likely(((la + sizeof(T) - 1) & ~PAGE_MASK) == e->wtag))                                \
            *(T *)(uintptr_t)(la + e->addend) = v;                                                 \
        else                                                                                       \
            slow_st(c, o, la, sizeof(T), v);                                                       \
    }                                                                                              \
    static inline T *rmw##n(struct cpu *c, const struct op *o, uint64_t la)                        \
    {                                                                                              \
        const struct tlb_entry *e = tlb_slot(c->tlb, la);                                          \
        if (likely(((la + sizeof(T) - 1) & ~PAGE_MASK) == e->wtag))                                \
            return (T *)(uintptr_t)(la + e->addend);                                               \
        return slow_rmw(c, o, la, sizeof(T));                                                      \
    }

typedef uint16_t __attribute__((may_alias, aligned(1))) u16u;
typedef uint32_t __attribute__((may_alias, aligned(1))) u32u;
typedef uint64_t __attribute__((may_alias, aligned(1))) u64u;
DEFINE_MEM(8, uint8_t)
DEFINE_MEM(16, u16u)
DEFINE_MEM(32, u32u)
DEFINE_MEM(64, u64u)

/* ---- registers by width; 8-bit registers are byte offsets into g (AH is 1) ---- */
#define R8(c, r) (((uint8_t *)(c)->g)[r])
#define R16(c, r) (*(u16u *)&(c)->g[r])
#define R32(c, r) (*(const u32u *)&(c)->g[r])
#define R64(c, r) ((c)->g[r])

/* RIP of op o, and of the instruction after it. */
static inline uint64_t op_rip(const struct cpu *c, const struct op *o) { return c->g[G_RIP] + o->off; }
static inline uint64_t op_next_rip(const struct cpu *c, const struct op *o)
{
    return c->g[G_RIP] + o->off + o->len;
}

/* Picks a fast handler for i at offset off of a 64-bit block, filling o; false if it has none.
 * flags_dead: nobody will see the status flags it writes. */
bool fast_pick(struct op *o, const struct insn *i, bool flags_dead);
bool fast_pick_mov(struct op *o, const struct insn *i);
bool fast_pick_alu(struct op *o, const struct insn *i, bool flags_dead);
bool fast_pick_shift(struct op *o, const struct insn *i, bool flags_dead);
bool fast_pick_flow(struct op *o, const struct insn *i);

/* Turns o, a compare already picked, and the conditional branch behind it into one operation that runs
 * both; o[1] keeps the branch's link. Nothing happens if there is no fused form. */
void fast_fuse(struct op *o, const struct insn *i, const struct insn *jcc);
/* Fills o's b, x, sc, disp from i->mem; false if the form is too rare for a fast handler. */
bool fast_ea(struct op *o, const struct insn *i);

#endif
