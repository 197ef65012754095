/*
 * Plain moves between vector registers and memory: the bulk of the vector instructions of kernels
 * and C libraries. Done in C on struct cpu_state; no stub, no flags, no MXCSR. Non-temporal hints
 * are ordinary, more strongly ordered accesses here.
 */
#include "engine/interp/simd.h"

#include <string.h>

/* pp bits a row accepts: 1 none, 2 66, 4 F3, 8 F2 */
struct move_row {
    uint8_t map, opcode, pp;
    bool store; /* the ModRM.rm operand is the destination */
};

static const struct move_row whole_moves[] = {
    {1, 0x10, 1 | 2, false},     {1, 0x11, 1 | 2, true},     /* MOVUPS MOVUPD */
    {1, 0x28, 1 | 2, false},     {1, 0x29, 1 | 2, true},     /* MOVAPS MOVAPD */
    {1, 0x2b, 1 | 2, true},                                  /* MOVNTPS MOVNTPD */
    {1, 0x6f, 2 | 4 | 8, false}, {1, 0x7f, 2 | 4 | 8, true}, /* MOVDQA MOVDQU, EVEX sizes */
    {1, 0xe7, 2, true},                                      /* MOVNTDQ */
    {1, 0xf0, 8, false},                                     /* LDDQU */
    {2, 0x2a, 2, false},                                     /* MOVNTDQA */
};

/* One set of functions per size, so that the copies are single instructions. The 16-byte legacy
 * forms keep the rest of the register. */
#define DEFINE_MOVES(name, n)                                                                  \
    static void run_reg##name(struct cpu *c, const struct insn *i, const struct simd_op *op)   \
    {                                                                                          \
        simd_avail(c, i);                                                                      \
        set_vec##name(c, i->op[0].reg, c->s.zmm[i->op[1].reg]);                                \
    }                                                                                          \
    static void run_load##name(struct cpu *c, const struct insn *i, const struct simd_op *op)  \
    {                                                                                          \
        simd_avail(c, i);                                                                      \
        set_vec##name(c, i->op[0].reg, simd_load(c, i, n));                                    \
    }                                                                                          \
    static void run_store##name(struct cpu *c, const struct insn *i, const struct simd_op *op) \
    {                                                                                          \
        uint64_t la = 0;                                                                       \
                                                                                               \
        simd_avail(c, i);                                                                      \
        void *p = simd_store_begin(c, i, n, &la);                                              \
        memcpy(p, c->s.zmm[i->op[1].reg], n);                                                  \
        simd_store_end(c, n, la, p);                                                           \
    }

static inline void set_vec_sse(struct cpu *c, unsigned reg, const void *p)
{
    memmove(c->s.zmm[reg], p, 16);
}
static inline void set_vec_16(struct cpu *c, unsigned reg, const void *p)
{
    memmove(c->s.zmm[reg], p, 16);
    memset(&c->s.zmm[reg][2], 0, 48);
}
static inline void set_vec_32(struct cpu *c, unsigned reg, const void *p)
{
    memmove(c->s.zmm[reg], p, 32);
    memset(&c->s.zmm[reg][4], 0, 32);
}
static inline void set_vec_64(struct cpu *c, unsigned reg, const void *p)
{
    memmove(c->s.zmm[reg], p, 64);
}
DEFINE_MOVES(_sse, 16)
DEFINE_MOVES(_16, 16)
DEFINE_MOVES(_32, 32)
DEFINE_MOVES(_64, 64)

typedef void (*run_fn)(struct cpu *c, const struct insn *i, const struct simd_op *op);
static const struct {
    run_fn reg, load, store;
} moves[] = {
    {run_reg_sse, run_load_sse, run_store_sse},
    {run_reg_16, run_load_16, run_store_16},
    {run_reg_32, run_load_32, run_store_32},
    {run_reg_64, run_load_64, run_store_64},
};

/* 4 or 8 bytes of a register to memory. */
static void run_store_low(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    uint64_t la = 0;

    simd_avail(c, i);
    void *p = simd_store_begin(c, i, op->size, &la);
    memcpy(p, c->s.zmm[i->op[1].reg], op->size == 8 ? 8 : 4);
    simd_store_end(c, op->size, la, p);
}

/* MOVD and MOVQ: size bytes, zero-extended to 16 in the register. */
static void set_low(struct cpu *c, const struct insn *i, uint64_t v)
{
    uint64_t q[2] = {v, 0};

    if (i->prefix & (PFX_VEX | PFX_EVEX))
        set_vec_16(c, i->op[0].reg, q);
    else
        set_vec_sse(c, i->op[0].reg, q);
}

static void run_movq_load(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    uint64_t v = 0;

    simd_avail(c, i);
    memcpy(&v, simd_load(c, i, op->size), op->size == 8 ? 8 : 4);
    set_low(c, i, v);
}

static void run_movq_reg(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    simd_avail(c, i);
    set_low(c, i, c->s.zmm[i->op[1].reg][0]);
}

static void run_movq_from_gpr(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    uint64_t v = c->s.gpr[i->op[1].reg];

    simd_avail(c, i);
    set_low(c, i, op->size == 8 ? v : (uint32_t)v);
}

static void run_movq_to_gpr(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    uint64_t v = c->s.zmm[i->op[1].reg][0];

    simd_avail(c, i);
    c->s.gpr[i->op[0].reg] = op->size == 8 ? v : (uint32_t)v;
}

static bool prepare_whole(const struct insn *i, struct simd_op *out)
{
    const struct opnd *a = &i->op[0], *b = &i->op[1];
    const struct move_row *r = whole_moves, *end = whole_moves + ARRAY_LEN(whole_moves);

    while (r < end && !(r->map == i->map && r->opcode == i->opcode && r->pp >> i->pp & 1))
        r++;
    if (r == end)
        return false;
    unsigned k = !(i->prefix & (PFX_VEX | PFX_EVEX)) ? 0
                 : i->vlen == 64                     ? 3
                 : i->vlen == 32                     ? 2
                                                     : 1;
    out->run = b->kind == OP_MEM   ? moves[k].load
               : a->kind == OP_MEM ? moves[k].store
                                   : moves[k].reg;
    return true;
}

/* 66 0F 6E, 66 0F 7E, F3 0F 7E, 66 0F D6 */
static bool prepare_movq(const struct insn *i, struct simd_op *out)
{
    const struct opnd *a = &i->op[0], *b = &i->op[1];
    bool load = (i->opcode == 0x6e && i->pp == 1) || (i->opcode == 0x7e && i->pp == 2);
    bool store = (i->opcode == 0x7e && i->pp == 1) || (i->opcode == 0xd6 && i->pp == 1);

    if (i->map != 1 || (!load && !store))
        return false;
    if (a->kind == OP_MEM) {
        out->size = a->size;
        out->run = run_store_low;
    } else if (b->kind == OP_MEM) {
        out->size = b->size;
        out->run = run_movq_load;
    } else if (b->cls == RC_GPR) {
        out->size = b->size;
        out->run = run_movq_from_gpr;
    } else if (a->cls == RC_GPR) {
        out->size = a->size;
        out->run = run_movq_to_gpr;
    } else {
        out->run = run_movq_reg;
    }
    return true;
}

bool simd_move_prepare(const struct insn *i, struct simd_op *out)
{
    if ((i->row->flags & IF_MMX) || ((i->prefix & PFX_EVEX) && i->evex_aaa))
        return false;
    return prepare_whole(i, out) || prepare_movq(i, out);
}
