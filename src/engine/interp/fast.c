/* Picking fast handlers: 64-bit code only; whatever is rare goes to its plain function. */
#include "engine/interp/fast.h"

bool fast_ea(struct op *o, const struct insn *i)
{
    const struct insn_mem *m = &i->mem;
    int64_t disp = m->disp;

    if (i->addrsize != 8 || m->vsib)
        return false;
    /* Addresses that are not canonical raise #SS or #GP by the base register (slow_begin). */
    if ((m->seg == SS) != (m->base == RSP || m->base == RBP))
        return false;
    o->b = m->base == REG_NONE ? G_ZERO : m->base;
    o->x = m->index == REG_NONE ? G_ZERO : m->index;
    o->sc = m->index == REG_NONE ? 0 : m->scale;
    if (m->base == REG_RIP) {
        o->b = G_RIP;
        disp += o->off + o->len;
    }
    if (m->seg == FS || m->seg == GS) {
        if (m->index != REG_NONE)
            return false;
        o->x = m->seg == FS ? G_FSBASE : G_GSBASE;
    }
    o->disp = (int32_t)disp;
    return o->disp == disp;
}

uint8_t fast_reg(const struct opnd *o)
{
    if (o->size > 1)
        return o->reg;
    return (uint8_t)(o->reg * 8 + (o->cls == RC_GPRH));
}

int fast_form(const struct insn *i)
{
    const struct opnd *a = &i->op[0], *b = &i->op[1];
    bool ra = a->kind == OP_REG && (a->cls == RC_GPR || a->cls == RC_GPRH);
    bool rb = b->kind == OP_REG && (b->cls == RC_GPR || b->cls == RC_GPRH);

    if (ra && rb)
        return FORM_RR;
    if (ra && b->kind == OP_IMM)
        return FORM_RI;
    if (ra && b->kind == OP_MEM)
        return FORM_RM;
    if (a->kind == OP_MEM && rb)
        return FORM_MR;
    if (a->kind == OP_MEM && b->kind == OP_IMM)
        return FORM_MI;
    return -1;
}

bool fast_operands(struct op *o, const struct insn *i, int form)
{
    switch (form) {
    case FORM_RR:
        o->r = fast_reg(&i->op[0]);
        o->r2 = fast_reg(&i->op[1]);
        return true;
    case FORM_RI:
        o->r = fast_reg(&i->op[0]);
        o->imm = i->imm;
        return true;
    case FORM_RM:
        o->r = fast_reg(&i->op[0]);
        return fast_ea(o, i);
    case FORM_MR:
        o->r = fast_reg(&i->op[1]);
        return fast_ea(o, i);
    case FORM_MI:
        o->imm = i->imm;
        return fast_ea(o, i);
    default:
        return false;
    }
}

bool fast_pick(struct op *o, const struct insn *i, bool flags_dead)
{
    struct op saved = *o;

    if (i->prefix & PFX_LOCK)
        return false;
    if (fast_pick_mov(o, i) || fast_pick_alu(o, i, flags_dead) ||
        fast_pick_shift(o, i, flags_dead) || fast_pick_flow(o, i))
        return true;
    *o = saved;
    return false;
}
