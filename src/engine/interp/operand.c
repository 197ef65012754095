/* Operands of plain functions: registers, effective addresses, segmentation checks, the stack. */
#include "engine/interp/interp.h"

static uint64_t size_mask(unsigned size) { return size == 8 ? ~0ull : (1ull << size * 8) - 1; }

uint64_t gpr_read(const struct cpu *c, unsigned reg, unsigned size)
{
    return c->s.gpr[reg] & size_mask(size);
}

void gpr_write(struct cpu *c, unsigned reg, unsigned size, uint64_t v)
{
    if (size >= 4)
        c->s.gpr[reg] = v & size_mask(size);
    else
        c->s.gpr[reg] = (c->s.gpr[reg] & ~size_mask(size)) | (v & size_mask(size));
}

uint64_t insn_ea(struct cpu *c, const struct insn *i)
{
    const struct insn_mem *m = &i->mem;
    uint64_t ea = (uint64_t)m->disp;

    if (m->base == REG_RIP)
        ea += c->s.rip + i->len;
    else if (m->base != REG_NONE)
        ea += c->s.gpr[m->base];
    if (m->index != REG_NONE && !m->vsib)
        ea += c->s.gpr[m->index] << m->scale;
    return ea & size_mask(i->addrsize);
}

uint64_t seg_lin(struct cpu *c, enum sreg seg, uint64_t ea, unsigned n, enum access a)
{
    const struct segment *s = &c->s.seg[seg];
    enum vector vec = seg == SS ? X_SS : X_GP;
    uint64_t last;

    if (c->bits == CPU_64) {
        uint64_t la = seg >= FS ? ea + s->base : ea;

        if (!is_canonical(la) || (n && !is_canonical(la + n - 1)))
            cpu_raise(c, vec, 0);
        return la;
    }
    last = ea + (n ? n - 1 : 0);
    if (!cpu_real(&c->s) && !cpu_v86(&c->s)) {
        if (s->attr & SEG_UNUSABLE)
            cpu_raise(c, vec, 0);
        if (a == ACCESS_WRITE ? (s->attr & SEG_CODE) || !(s->attr & SEG_WRITE)
                              : (s->attr & SEG_CODE) && !(s->attr & SEG_WRITE))
            cpu_raise(c, vec, 0);
    }
    if (!(s->attr & SEG_CODE) && (s->attr & SEG_EXPDOWN)) {
        if (ea <= s->limit || last > (s->attr & SEG_DB ? 0xffffffff : 0xffff))
            cpu_raise(c, vec, 0);
    } else if (last > s->limit) {
        cpu_raise(c, vec, 0);
    }
    return (s->base + ea) & 0xffffffff;
}

uint64_t insn_lin(struct cpu *c, const struct insn *i, unsigned n, enum access a)
{
    return seg_lin(c, i->mem.seg, insn_ea(c, i), n, a);
}

uint64_t op_read(struct cpu *c, const struct insn *i, unsigned n)
{
    const struct opnd *o = &i->op[n];

    switch (o->kind) {
    case OP_REG:
        switch (o->cls) {
        case RC_GPR: return gpr_read(c, o->reg, o->size);
        case RC_GPRH: return c->s.gpr[o->reg] >> 8 & 0xff;
        case RC_SREG: return c->s.seg[o->reg].sel;
        default: return 0;
        }
    case OP_MEM:
        return lin_ld(c, insn_lin(c, i, o->size, ACCESS_READ), o->size, PRIV_CPL);
    default:
        return i->imm & size_mask(o->size ? o->size : 8);
    }
}

void op_write(struct cpu *c, const struct insn *i, unsigned n, uint64_t v)
{
    const struct opnd *o = &i->op[n];

    if (o->kind == OP_MEM)
        lin_st(c, insn_lin(c, i, o->size, ACCESS_WRITE), o->size, v, PRIV_CPL);
    else if (o->cls == RC_GPRH)
        c->s.gpr[o->reg] = (c->s.gpr[o->reg] & ~0xff00ull) | (v & 0xff) << 8;
    else
        gpr_write(c, o->reg, o->size, v);
}

void stack_begin_on(struct stack *st, struct cpu *c, const struct segment *ss, uint64_t sp)
{
    st->c = c;
    st->sp = sp;
    st->ss = *ss;
    st->priv = PRIV_CPL;
    if (c->bits == CPU_64) {
        st->mask = ~0ull;
        st->base = 0;
    } else {
        st->mask = ss->attr & SEG_DB ? 0xffffffff : 0xffff;
        st->base = ss->base;
    }
}

void stack_begin(struct stack *st, struct cpu *c)
{
    stack_begin_on(st, c, &c->s.seg[SS], c->s.gpr[RSP]);
}

/* The linear address of n bytes at the stack offset, after limit or canonical checks (#SS). */
static uint64_t stack_lin(struct stack *st, uint64_t off, unsigned n)
{
    const struct segment *s = &st->ss;
    uint64_t last = off + n - 1;

    if (st->mask == ~0ull) {
        if (!is_canonical(off) || !is_canonical(last))
            cpu_raise(st->c, X_SS, 0);
        return off;
    }
    if (s->attr & SEG_UNUSABLE)
        cpu_raise(st->c, X_SS, 0);
    if (!(s->attr & SEG_CODE) && (s->attr & SEG_EXPDOWN)) {
        if (off <= s->limit || last > (s->attr & SEG_DB ? 0xffffffff : 0xffff))
            cpu_raise(st->c, X_SS, 0);
    } else if (last > s->limit) {
        cpu_raise(st->c, X_SS, 0);
    }
    return (st->base + off) & 0xffffffff;
}

void stack_probe(struct stack *st, unsigned n)
{
    uint64_t off = (st->sp - n) & st->mask;

    lin_check(st->c, stack_lin(st, off, n), n, ACCESS_WRITE, st->priv);
    st->sp = (st->sp & ~st->mask) | off;
}

void stack_push(struct stack *st, unsigned n, uint64_t v)
{
    uint64_t off = (st->sp - n) & st->mask;

    lin_st(st->c, stack_lin(st, off, n), n, v, st->priv);
    st->sp = (st->sp & ~st->mask) | off;
}

uint64_t stack_pop(struct stack *st, unsigned n)
{
    uint64_t off = st->sp & st->mask;
    uint64_t v = lin_ld(st->c, stack_lin(st, off, n), n, st->priv);

    st->sp = (st->sp & ~st->mask) | ((off + n) & st->mask);
    return v;
}

void stack_commit(struct stack *st)
{
    struct cpu *c = st->c;

    if (st->mask == 0xffff)
        gpr_write(c, RSP, 2, st->sp);
    else
        c->s.gpr[RSP] = st->sp & st->mask;
}
