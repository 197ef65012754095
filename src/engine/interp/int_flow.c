/* Near branches and stack operations in every mode. */
#include "engine/interp/alu.h"
#include "engine/interp/integer.h"

/* Goes to target (an offset in CS), after operand-size masking and the checks a branch makes. */
static uint64_t branch_check(struct cpu *c, const struct insn *i, uint64_t target)
{
    if (c->bits == CPU_64) {
        if (sext(target, 48) != target)
            cpu_raise(c, X_GP, 0);
        return target;
    }
    target &= i->opsize == 2 ? 0xffff : 0xffffffff;
    if (target > c->s.seg[CS].limit)
        cpu_raise(c, X_GP, 0);
    return target;
}

static uint64_t rel_target(struct cpu *c, const struct insn *i)
{
    return branch_check(c, i, c->next_rip + i->imm);
}

PLAIN(int_jmp) { c->next_rip = rel_target(c, i); }

PLAIN(int_jmp_ind) { c->next_rip = branch_check(c, i, op_read(c, i, 0)); }

static void call_to(struct cpu *c, const struct insn *i, uint64_t target)
{
    struct stack st;

    /* The return address is stored even if the target then proves to be no address. */
    stack_begin(&st, c);
    stack_push(&st, i->opsize, c->next_rip);
    target = branch_check(c, i, target);
    stack_commit(&st);
    c->next_rip = target;
}

PLAIN(int_call) { call_to(c, i, c->next_rip + i->imm); }

PLAIN(int_call_ind) { call_to(c, i, op_read(c, i, 0)); }

PLAIN(int_ret)
{
    struct stack st;
    uint64_t target;

    stack_begin(&st, c);
    target = branch_check(c, i, stack_pop(&st, i->opsize));
    if (i->nops)
        st.sp = (st.sp & ~st.mask) | ((st.sp + (i->imm & 0xffff)) & st.mask);
    stack_commit(&st);
    c->next_rip = target;
}

PLAIN(int_jcc)
{
    if (cond_true(c->cc, i->cond))
        c->next_rip = rel_target(c, i);
}

PLAIN(int_jcxz)
{
    if (gpr_read(c, RCX, i->addrsize) == 0)
        c->next_rip = rel_target(c, i);
}

PLAIN(int_loop)
{
    uint64_t n = (gpr_read(c, RCX, i->addrsize) - 1) & size_bits(i->addrsize);
    bool zf = c->cc & CC_ZF;
    bool taken = n && (i->id == INSN_LOOP || zf == (i->id == INSN_LOOPE));
    uint64_t target = taken ? rel_target(c, i) : c->next_rip;

    gpr_write(c, RCX, i->addrsize, n);
    c->next_rip = target;
}

PLAIN(int_push)
{
    struct stack st;
    uint64_t v = i->op[0].kind == OP_IMM ? i->imm : op_read(c, i, 0);

    stack_begin(&st, c);
    stack_push(&st, i->opsize, v);
    stack_commit(&st);
}

PLAIN(int_pop)
{
    struct stack st;
    uint64_t v, rsp = c->s.gpr[RSP], ea;

    stack_begin(&st, c);
    v = stack_pop(&st, i->opsize);
    if (i->op[0].kind == OP_REG) {
        stack_commit(&st);
        op_write(c, i, 0, v);
        return;
    }
    /* An address based on RSP sees the incremented value; a fault must not. */
    stack_commit(&st);
    ea = insn_ea(c, i);
    c->s.gpr[RSP] = rsp;
    seg_st(c, i->mem.seg, ea, i->opsize, v);
    stack_commit(&st);
}

PLAIN(int_pusha)
{
    struct stack st, probe;

    stack_begin(&st, c);
    probe = st;
    for (unsigned r = 0; r < 8; r++)
        stack_probe(&probe, i->opsize);
    for (unsigned r = 0; r < 8; r++)
        stack_push(&st, i->opsize, c->s.gpr[r]); /* RSP is still the old one */
    stack_commit(&st);
}

PLAIN(int_popa)
{
    struct stack st;
    uint64_t v[8];

    stack_begin(&st, c);
    for (unsigned r = 8; r-- > 0;)
        v[r] = stack_pop(&st, i->opsize);
    stack_commit(&st);
    for (unsigned r = 0; r < 8; r++)
        if (r != RSP)
            gpr_write(c, r, i->opsize, v[r]);
}

PLAIN(int_enter)
{
    struct stack st;
    unsigned size = i->opsize, level = i->imm2 & 31, alloc = i->imm & 0xffff;
    uint64_t frame, bp = c->s.gpr[RBP];

    stack_begin(&st, c);
    stack_push(&st, size, bp);
    frame = st.sp;
    for (unsigned n = 1; n < level; n++) {
        bp = (bp & ~st.mask) | ((bp - size) & st.mask);
        stack_push(&st, size, seg_ld(c, SS, bp & st.mask, size));
    }
    if (level)
        stack_push(&st, size, frame);
    st.sp = (st.sp & ~st.mask) | ((st.sp - alloc) & st.mask);
    /* The processor tries a write at the new top of stack. */
    lin_check(c, seg_lin(c, SS, st.sp & st.mask, size, ACCESS_WRITE), size, ACCESS_WRITE, PRIV_CPL);
    gpr_write(c, RBP, size == 2 ? 2 : st.mask == ~0ull ? 8 : size, frame);
    stack_commit(&st);
}

PLAIN(int_leave)
{
    struct stack st;
    uint64_t bp;

    stack_begin(&st, c);
    st.sp = (st.sp & ~st.mask) | (c->s.gpr[RBP] & st.mask);
    bp = stack_pop(&st, i->opsize);
    stack_commit(&st);
    gpr_write(c, RBP, i->opsize, bp);
}
