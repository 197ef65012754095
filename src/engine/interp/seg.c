/*
 * Descriptors and segment registers: reading tables, the checks of a segment load, and the
 * instructions that load or store a segment register. SDM vol. 3 §3.4, §5.
 */
#include "engine/interp/sys.h"

_Noreturn void raise_sel(struct cpu *c, enum vector vec, uint16_t sel)
{
    cpu_raise(c, vec, sel & 0xfffcu);
}

void need_cpl0(struct cpu *c)
{
    if (c->cpl)
        cpu_raise(c, X_GP, 0);
}

void need_prot(struct cpu *c)
{
    if (!in_prot(c))
        cpu_raise(c, X_UD, 0);
}

uint64_t sys_la(struct cpu *c, uint64_t la)
{
    if (!cpu_long_mode(&c->s))
        return (uint32_t)la;
    if (!is_canonical(la))
        cpu_raise(c, X_GP, 0);
    return la;
}

/* Base and limit of the table that sel indexes; false if there is none. */
static bool table_of(const struct cpu *c, uint16_t sel, uint64_t *base, uint32_t *limit)
{
    if (!(sel & 4)) {
        *base = c->s.gdtr.base;
        *limit = c->s.gdtr.limit;
        return true;
    }
    *base = c->s.ldtr.base;
    *limit = c->s.ldtr.limit;
    return !(c->s.ldtr.attr & SEG_UNUSABLE);
}

bool desc_fetch(struct cpu *c, uint16_t sel, struct desc *d)
{
    uint64_t base;
    uint32_t limit;

    if (!table_of(c, sel, &base, &limit) || (sel | 7u) > limit)
        return false;
    d->sel = sel;
    d->upper = 0;
    d->la = sys_la(c, base + (sel & ~7u));
    d->raw = lin_ld(c, d->la, 8, PRIV_SUPER);
    return true;
}

bool desc_upper(struct cpu *c, struct desc *d)
{
    uint64_t base;
    uint32_t limit;

    if (!table_of(c, d->sel, &base, &limit) || (d->sel & ~7u) + 15 > limit)
        return false;
    d->upper = lin_ld(c, sys_la(c, d->la + 8), 8, PRIV_SUPER);
    return !(d->upper >> 40 & 0x1f);
}

void desc_read(struct cpu *c, uint16_t sel, struct desc *d, enum vector vec)
{
    if (!desc_fetch(c, sel, d))
        raise_sel(c, vec, sel);
}

void desc_set_bits(struct cpu *c, struct desc *d, unsigned set)
{
    d->raw |= (uint64_t)set << 40;
    lin_set_bits(c, d->la + DESC_TYPE_BYTE, (uint8_t)set);
}

void desc_mark_accessed(struct cpu *c, struct desc *d)
{
    if (!(desc_type(d) & SEG_ACCESSED))
        desc_set_bits(c, d, SEG_ACCESSED);
}

void desc_to_segment(const struct desc *d, uint16_t sel, struct segment *s)
{
    uint32_t limit = (d->raw & 0xffff) | (d->raw >> 32 & 0xf0000);

    *s = (struct segment){
        .base = (d->raw >> 16 & 0xffffff) | (d->raw >> 32 & 0xff000000),
        .attr = desc_attr(d),
        .sel = sel,
    };
    s->limit = s->attr & SEG_G ? limit << 12 | 0xfff : limit;
}

void segment_null(struct segment *s, uint16_t sel, unsigned dpl)
{
    *s = (struct segment){ .attr = SEG_UNUSABLE | dpl << SEG_DPL_SHIFT, .sel = sel };
}

void segment_real(const struct cpu *c, struct segment *s, uint16_t sel, bool v86)
{
    if (v86) {
        s->limit = 0xffff;
        s->attr = SEG_P | 3u << SEG_DPL_SHIFT | SEG_S | SEG_WRITE | SEG_ACCESSED;
    } else if (s->attr & SEG_UNUSABLE) {
        /* A null selector carried over from protected mode; limit and attributes otherwise stay. */
        s->limit = 0xffff;
        s->attr = SEG_P | SEG_S | SEG_WRITE | SEG_ACCESSED;
    }
    s->base = (uint32_t)sel << 4;
    s->sel = sel;
}

void segment_stack(struct cpu *c, uint16_t sel, unsigned cpl, enum vector vec, struct segment *s)
{
    struct desc d;

    desc_read(c, sel, &d, vec);
    if ((sel & 3u) != cpl || !desc_is_seg(&d) || desc_is_code(&d) || !(desc_type(&d) & SEG_WRITE) ||
        desc_dpl(&d) != cpl)
        raise_sel(c, vec, sel);
    if (!desc_present(&d))
        raise_sel(c, X_SS, sel);
    desc_mark_accessed(c, &d);
    desc_to_segment(&d, sel, s);
}

void segment_data(struct cpu *c, uint16_t sel, unsigned cpl, enum vector vec, struct segment *s)
{
    struct desc d;

    if (sel_is_null(sel)) {
        segment_null(s, sel, 0);
        return;
    }
    desc_read(c, sel, &d, vec);
    if (!desc_is_seg(&d) || (desc_is_code(&d) && !(desc_type(&d) & SEG_WRITE)))
        raise_sel(c, vec, sel);
    if (!desc_is_conforming(&d) && MAX(sel & 3u, cpl) > desc_dpl(&d))
        raise_sel(c, vec, sel);
    if (!desc_present(&d))
        raise_sel(c, X_NP, sel);
    desc_mark_accessed(c, &d);
    desc_to_segment(&d, sel, s);
}

void seg_load(struct cpu *c, enum sreg r, uint16_t sel)
{
    struct segment s = c->s.seg[r];

    if (!in_prot(c)) {
        segment_real(c, &s, sel, cpu_v86(&c->s));
    } else if (r != SS) {
        segment_data(c, sel, c->cpl, X_GP, &s);
    } else if (!sel_is_null(sel)) {
        segment_stack(c, sel, c->cpl, X_GP, &s);
    } else {
        if (c->bits != CPU_64 || c->cpl == 3 || (sel & 3u) != c->cpl)
            cpu_raise(c, X_GP, 0);
        segment_null(&s, sel, c->cpl);
    }
    c->s.seg[r] = s;
    if (r == SS)
        cpu_update_mode(c);
}

/* MOV SS and POP SS hold off interrupts and debug traps for one instruction, so that the stack
 * pointer can follow; LSS does not need to. */
static void ss_shadow(struct cpu *c)
{
    c->s.mov_ss_shadow = 1;
    c->mode_changed = true;
}

void sys_mov_sreg(struct cpu *c, const struct insn *i)
{
    if (i->op[0].cls != RC_SREG || i->op[0].kind != OP_REG) {
        op_write(c, i, 0, c->s.seg[i->op[1].reg].sel);
        return;
    }
    enum sreg r = i->op[0].reg;

    if (r == CS || r >= SREG_COUNT)
        cpu_raise(c, X_UD, 0);
    seg_load(c, r, op_read(c, i, 1));
    if (r == SS)
        ss_shadow(c);
}

void sys_push_sreg(struct cpu *c, const struct insn *i)
{
    struct stack st;

    /* With 32 bits Intel's processors write 16 only, but move the stack pointer by four (SDM vol. 2, PUSH). */
    stack_begin(&st, c);
    if (i->opsize == 4 && !c->vm->cpuid->amd) {
        st.sp = (st.sp & ~st.mask) | ((st.sp - 2) & st.mask);
        stack_push(&st, 2, c->s.seg[i->op[0].reg].sel);
    } else {
        stack_push(&st, i->opsize, c->s.seg[i->op[0].reg].sel);
    }
    stack_commit(&st);
}

void sys_pop_sreg(struct cpu *c, const struct insn *i)
{
    enum sreg r = i->op[0].reg;
    struct stack st;

    stack_begin(&st, c);
    uint16_t sel = stack_pop(&st, i->opsize);
    uint64_t mask = st.mask; /* the old stack's width governs the increment */
    seg_load(c, r, sel);
    c->s.gpr[RSP] = (c->s.gpr[RSP] & ~mask) | (st.sp & mask);
    if (r == SS)
        ss_shadow(c);
}

uint64_t far_pointer(struct cpu *c, const struct insn *i, unsigned n, uint16_t *sel)
{
    uint64_t ea = insn_ea(c, i), mask = i->addrsize == 8 ? ~0ull : BIT(i->addrsize * 8) - 1;
    uint64_t off = seg_ld(c, i->mem.seg, ea, n);

    *sel = (uint16_t)seg_ld(c, i->mem.seg, (ea + n) & mask, 2);
    return off;
}

static void load_far_pointer(struct cpu *c, const struct insn *i, enum sreg r)
{
    /* AMD has no m16:64 pointers. */
    unsigned n = i->opsize == 8 && c->vm->cpuid->amd ? 4 : i->opsize;
    uint16_t sel;
    uint64_t off = far_pointer(c, i, n, &sel);

    seg_load(c, r, sel);
    gpr_write(c, i->op[0].reg, n, off);
}

void sys_lds(struct cpu *c, const struct insn *i) { load_far_pointer(c, i, DS); }
void sys_les(struct cpu *c, const struct insn *i) { load_far_pointer(c, i, ES); }
void sys_lfs(struct cpu *c, const struct insn *i) { load_far_pointer(c, i, FS); }
void sys_lgs(struct cpu *c, const struct insn *i) { load_far_pointer(c, i, GS); }
void sys_lss(struct cpu *c, const struct insn *i) { load_far_pointer(c, i, SS); }
