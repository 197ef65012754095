/* Fast handlers: near branches, calls and the stack. */
#include "engine/interp/fast.h"

const struct op *take_slow(struct cpu *c, const struct op *o)
{
    uint64_t from = c->g[G_RIP], to = from + (uint64_t)(int64_t)o->disp;
    const struct op *next;

    if (unlikely(sext(to, 48) != to)) {
        c->ninsn -= o->cnt;
        c->op = o;
        c->s.rip = op_rip(c, o);
        cpu_raise(c, X_GP, 0);
    }
    next = enter_rip(c, to);
    /* Within the page the target stays where it is for as long as this block is valid, in every address
     * space, so the link needs no guard but the target's own life. */
    if (next != &op_leave && (from ^ to) >> PAGE_SHIFT == 0)
        __atomic_store_n((struct block **)(uintptr_t)&o->link,
                         container_of(next, struct block, op[0]), __ATOMIC_RELEASE);
    return next;
}

static inline const struct op *indirect(struct cpu *c, const struct op *o, uint64_t to)
{
    c->ninsn += o->cnt;
    GO(enter_rip(c, to));
}

static inline void check_target(struct cpu *c, const struct op *o, uint64_t to)
{
    if (unlikely(sext(to, 48) != to)) {
        c->op = o;
        c->s.rip = op_rip(c, o);
        cpu_raise(c, X_GP, 0);
    }
}

HANDLER(jmp) { return take(c, o); }

#define JCC(n)                                                                                     \
    HANDLER(jcc_##n)                                                                               \
    {                                                                                              \
        if (cond_true(c->cc, n))                                                                   \
            return take(c, o);                                                                     \
        NEXT();                                                                                    \
    }
JCC(0) JCC(1) JCC(2) JCC(3) JCC(4) JCC(5) JCC(6) JCC(7)
JCC(8) JCC(9) JCC(10) JCC(11) JCC(12) JCC(13) JCC(14) JCC(15)

HANDLER(call)
{
    uint64_t rsp = c->g[RSP] - 8;

    /* A target that has been jumped to before is canonical. */
    if (unlikely(!o->link->live))
        check_target(c, o, c->g[G_RIP] + (uint64_t)(int64_t)o->disp);
    st64(c, o, rsp, op_next_rip(c, o));
    c->g[RSP] = rsp;
    return take(c, o);
}

HANDLER(call_r)
{
    uint64_t rsp = c->g[RSP] - 8, to = c->g[o->r];

    /* The return address is stored even if the target then proves to be no address. */
    st64(c, o, rsp, op_next_rip(c, o));
    check_target(c, o, to);
    c->g[RSP] = rsp;
    return indirect(c, o, to);
}

HANDLER(jmp_r)
{
    uint64_t to = c->g[o->r];

    check_target(c, o, to);
    return indirect(c, o, to);
}

HANDLER(jmp_m)
{
    uint64_t to = ld64(c, o, op_ea(c, o));

    check_target(c, o, to);
    return indirect(c, o, to);
}

HANDLER(ret)
{
    uint64_t rsp = c->g[RSP], to = ld64(c, o, rsp);

    check_target(c, o, to);
    c->g[RSP] = rsp + 8 + o->imm;
    return indirect(c, o, to);
}

HANDLER(push_r)
{
    uint64_t rsp = c->g[RSP] - 8;

    st64(c, o, rsp, c->g[o->r]);
    c->g[RSP] = rsp;
    NEXT();
}

HANDLER(push_i)
{
    uint64_t rsp = c->g[RSP] - 8;

    st64(c, o, rsp, o->imm);
    c->g[RSP] = rsp;
    NEXT();
}

HANDLER(pop_r)
{
    uint64_t rsp = c->g[RSP], v = ld64(c, o, rsp);

    c->g[RSP] = rsp + 8;
    c->g[o->r] = v;
    NEXT();
}

HANDLER(leave)
{
    uint64_t rbp = c->g[RBP], v = ld64(c, o, rbp);

    c->g[RSP] = rbp + 8;
    c->g[RBP] = v;
    NEXT();
}

static bool pick_direct(struct op *o, const struct insn *i, op_fn fn)
{
    int64_t disp = (int64_t)i->imm + o->off + o->len;

    o->disp = (int32_t)disp;
    o->link = &block_unlinked;
    o->fn = fn;
    return o->disp == disp;
}

bool fast_pick_flow(struct op *o, const struct insn *i)
{
    static const op_fn jcc[16] = { jcc_0, jcc_1, jcc_2, jcc_3, jcc_4, jcc_5, jcc_6, jcc_7, jcc_8,
                                   jcc_9, jcc_10, jcc_11, jcc_12, jcc_13, jcc_14, jcc_15 };
    bool reg = i->op[0].kind == OP_REG && i->op[0].cls == RC_GPR;

    if (i->opsize != 8)
        return false;
    switch (i->id) {
    case INSN_JMP:
        return pick_direct(o, i, jmp);
    case INSN_JCC:
        return pick_direct(o, i, jcc[i->cond]);
    case INSN_CALL:
        o->b = RSP; /* stack accesses of these fault as #SS */
        return pick_direct(o, i, call);
    case INSN_CALL_IND:
        if (!reg)
            return false;
        o->b = RSP;
        o->r = i->op[0].reg;
        o->fn = call_r;
        return true;
    case INSN_JMP_IND:
        o->r = i->op[0].reg;
        o->fn = reg ? jmp_r : jmp_m;
        return reg || fast_ea(o, i);
    case INSN_RET:
        o->b = RSP;
        o->imm = i->nops ? i->imm & 0xffff : 0;
        o->fn = ret;
        return true;
    case INSN_PUSH:
        o->b = RSP;
        if (i->op[0].kind == OP_IMM) {
            o->imm = i->imm;
            o->fn = push_i;
            return true;
        }
        o->r = i->op[0].reg;
        o->fn = push_r;
        return reg;
    case INSN_POP:
        o->b = RSP;
        o->r = i->op[0].reg;
        o->fn = pop_r;
        return reg;
    case INSN_LEAVE:
        o->b = RBP;
        o->fn = leave;
        return true;
    default:
        return false;
    }
}
