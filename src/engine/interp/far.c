/*
 * Far JMP, CALL and RET in every mode, with call gates. SDM vol. 2 CALL, JMP, RET; vol. 3 §5.8.
 */
#include "engine/interp/sys.h"

void check_ip(struct cpu *c, const struct segment *cs, uint64_t off)
{
    if (cpu_long_mode(&c->s) && (cs->attr & SEG_L)) {
        if (!is_canonical(off))
            cpu_raise(c, X_GP, 0);
    } else if (off > cs->limit) {
        cpu_raise(c, X_GP, 0);
    }
}

uint64_t ip_in(const struct cpu *c, const struct segment *cs, uint64_t off)
{
    return cpu_long_mode(&c->s) && (cs->attr & SEG_L) ? off : (uint32_t)off;
}

/* Marks the code descriptor accessed and prepares CS with privilege cpl. L and D together are
 * reserved in long mode. */
static void code_segment(struct cpu *c, struct desc *d, unsigned cpl, struct segment *cs)
{
    desc_mark_accessed(c, d);
    desc_to_segment(d, (d->sel & 0xfffcu) | cpl, cs);
}

static bool bad_l_and_d(const struct cpu *c, const struct desc *d)
{
    return cpu_long_mode(&c->s) && (desc_attr(d) & SEG_L) && (desc_attr(d) & SEG_DB);
}

static void commit(struct cpu *c, const struct segment *cs, uint64_t rip)
{
    c->s.seg[CS] = *cs;
    c->next_rip = rip;
    cpu_update_mode(c);
}

/* JMP or CALL to a code segment named directly. */
static void direct(struct cpu *c, struct desc *d, uint64_t off, unsigned size, bool call)
{
    struct segment cs;
    uint64_t sp = c->s.gpr[RSP];
    bool is64;

    if (desc_is_conforming(d) ? desc_dpl(d) > c->cpl
                              : (d->sel & 3u) > c->cpl || desc_dpl(d) != c->cpl)
        raise_sel(c, X_GP, d->sel);
    if (bad_l_and_d(c, d))
        raise_sel(c, X_GP, d->sel);
    if (!desc_present(d))
        raise_sel(c, X_NP, d->sel);
    code_segment(c, d, c->cpl, &cs);
    /* The new mode's widths already. */
    is64 = cpu_long_mode(&c->s) && (cs.attr & SEG_L);
    off = ip_in(c, &cs, off);
    if (call) {
        uint64_t val[2] = { c->s.seg[CS].sel, c->next_rip };

        sp = frame_push(c, &c->s.seg[SS], sp, is64, val, 2, size, PRIV_CPL, 0);
    }
    /* The return address is stored even if the target then proves to be no address. */
    check_ip(c, &cs, off);
    if (call)
        set_sp(c, sp, is64);
    commit(c, &cs, off);
}

struct gate {
    uint16_t sel;
    uint64_t off;
    unsigned params, size;
};

/* CALL through a gate to an inner ring: a new stack with the old one's pointer, the parameters and
 * the return address. */
static void gate_call_inner(struct cpu *c, const struct gate *g, struct desc *d)
{
    unsigned dpl = desc_dpl(d), n = 0;
    uint64_t val[FRAME_MAX], sp;
    bool is64 = g->size == 8;
    struct segment cs, ss;

    if (is64) {
        segment_null(&ss, dpl, dpl);
        sp = tss_stack64(c, dpl, 0);
    } else {
        tss_stack(c, dpl, &ss, &sp);
    }
    val[n++] = c->s.seg[SS].sel;
    val[n++] = c->s.gpr[RSP];
    if (g->params) {
        uint64_t mask = c->s.seg[SS].attr & SEG_DB ? 0xffffffff : 0xffff;

        for (unsigned k = g->params; k-- > 0;)
            val[n++] = seg_ld(c, SS, (c->s.gpr[RSP] + k * g->size) & mask, g->size);
    }
    val[n++] = c->s.seg[CS].sel;
    val[n++] = c->next_rip;
    code_segment(c, d, dpl, &cs);
    check_ip(c, &cs, g->off);
    sp = frame_push(c, &ss, sp, is64, val, n, g->size, PRIV_SUPER, ss.sel & 0xfffcu);
    c->s.seg[SS] = ss;
    set_sp(c, sp, is64);
    commit(c, &cs, g->off);
}

static void gate_same(struct cpu *c, const struct gate *g, struct desc *d, bool call)
{
    bool is64 = g->size == 8;
    struct segment cs;

    code_segment(c, d, c->cpl, &cs);
    check_ip(c, &cs, g->off);
    if (call) {
        uint64_t val[2] = { c->s.seg[CS].sel, c->next_rip };
        uint64_t sp = frame_push(c, &c->s.seg[SS], c->s.gpr[RSP], is64, val, 2, g->size,
                                 PRIV_CPL, 0);

        set_sp(c, sp, is64);
    }
    commit(c, &cs, g->off);
}

static void through_gate(struct cpu *c, struct desc *gd, bool call)
{
    bool lm = cpu_long_mode(&c->s);
    struct desc d;
    struct gate g;

    if (desc_dpl(gd) < c->cpl || desc_dpl(gd) < (gd->sel & 3u))
        raise_sel(c, X_GP, gd->sel);
    if (!desc_present(gd))
        raise_sel(c, X_NP, gd->sel);
    if (lm && !desc_upper(c, gd))
        raise_sel(c, X_GP, gd->sel);
    g.sel = gd->raw >> 16;
    g.off = gd->raw & 0xffff;
    g.size = lm ? 8 : desc_type(gd) == SYS_CALL32 ? 4 : 2;
    g.params = lm ? 0 : gd->raw >> 32 & 0x1f;
    if (g.size > 2)
        g.off |= gd->raw >> 32 & 0xffff0000;
    if (lm)
        g.off |= gd->upper << 32;

    if (sel_is_null(g.sel))
        cpu_raise(c, X_GP, 0);
    desc_read(c, g.sel, &d, X_GP);
    if (!desc_is_code(&d) || desc_dpl(&d) > c->cpl ||
        (!call && !desc_is_conforming(&d) && desc_dpl(&d) != c->cpl))
        raise_sel(c, X_GP, g.sel);
    if (lm && (desc_attr(&d) & (SEG_L | SEG_DB)) != SEG_L)
        raise_sel(c, X_GP, g.sel);
    if (!desc_present(&d))
        raise_sel(c, X_NP, g.sel);
    if (call && !desc_is_conforming(&d) && desc_dpl(&d) < c->cpl)
        gate_call_inner(c, &g, &d);
    else
        gate_same(c, &g, &d, call);
}

static void to_task(struct cpu *c, struct desc *d, bool call)
{
    enum task_cause why = call ? TASK_CALL : TASK_JMP;
    struct desc tss;

    if (desc_dpl(d) < c->cpl || desc_dpl(d) < (d->sel & 3u))
        raise_sel(c, X_GP, d->sel);
    if (desc_type(d) == SYS_TASK_GATE) {
        if (!desc_present(d))
            raise_sel(c, X_NP, d->sel);
        task_tss(c, d->raw >> 16, &tss);
    } else {
        task_tss(c, d->sel, &tss);
    }
    task_switch(c, &tss, why, c->next_rip, cpu_flags(c));
    check_ip(c, &c->s.seg[CS], c->next_rip);
}

static void protected_branch(struct cpu *c, uint16_t sel, uint64_t off, unsigned size, bool call)
{
    struct desc d;

    if (sel_is_null(sel))
        cpu_raise(c, X_GP, 0);
    desc_read(c, sel, &d, X_GP);
    if (desc_is_code(&d)) {
        direct(c, &d, off, size, call);
        return;
    }
    if (desc_is_seg(&d))
        raise_sel(c, X_GP, sel);
    switch (desc_type(&d)) {
    case SYS_CALL32:
        through_gate(c, &d, call);
        return;
    case SYS_CALL16:
        if (cpu_long_mode(&c->s))
            break;
        through_gate(c, &d, call);
        return;
    case SYS_TASK_GATE:
    case SYS_TSS16:
    case SYS_TSS32:
        if (cpu_long_mode(&c->s))
            break;
        to_task(c, &d, call);
        return;
    }
    raise_sel(c, X_GP, sel);
}

static void far_branch(struct cpu *c, const struct insn *i, bool call)
{
    unsigned size = i->opsize;
    uint16_t sel;
    uint64_t off = 0;

    if (size == 8 && c->vm->cpuid->amd)
        size = 4; /* no m16:64 pointers */
    if (i->op[0].kind == OP_FARPTR) {
        off = i->imm & (size == 2 ? 0xffff : 0xffffffff);
        sel = i->imm2;
    } else {
        off = far_pointer(c, i, size, &sel);
    }
    if (in_prot(c)) {
        protected_branch(c, sel, off, size, call);
        return;
    }

    struct segment cs = c->s.seg[CS];

    segment_real(c, &cs, sel, cpu_v86(&c->s));
    check_ip(c, &cs, off);
    if (call) {
        uint64_t val[2] = { c->s.seg[CS].sel, c->next_rip };

        set_sp(c, frame_push(c, &c->s.seg[SS], c->s.gpr[RSP], false, val, 2, size, PRIV_CPL, 0),
               false);
    }
    commit(c, &cs, off);
}

void sys_jmp_far(struct cpu *c, const struct insn *i) { far_branch(c, i, false); }
void sys_call_far(struct cpu *c, const struct insn *i) { far_branch(c, i, true); }

/* ---- returns ---- */

void return_cs(struct cpu *c, uint16_t sel, struct segment *cs)
{
    unsigned rpl = sel & 3u;
    struct desc d;

    if (sel_is_null(sel))
        cpu_raise(c, X_GP, 0);
    desc_read(c, sel, &d, X_GP);
    if (!desc_is_code(&d) || rpl < c->cpl ||
        (desc_is_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl) || bad_l_and_d(c, &d))
        raise_sel(c, X_GP, sel);
    if (!desc_present(&d))
        raise_sel(c, X_NP, sel);
    code_segment(c, &d, rpl, cs);
}

void return_ss(struct cpu *c, uint16_t sel, unsigned rpl, bool to64, struct segment *ss)
{
    if (!sel_is_null(sel)) {
        segment_stack(c, sel, rpl, X_GP, ss);
        return;
    }
    if (!to64 || rpl == 3)
        cpu_raise(c, X_GP, 0);
    segment_null(ss, sel, rpl);
}

void drop_inner_segments(struct cpu *c, unsigned cpl)
{
    static const uint8_t regs[] = { ES, DS, FS, GS };

    for (unsigned k = 0; k < ARRAY_LEN(regs); k++) {
        struct segment *s = &c->s.seg[regs[k]];
        bool conforming = (s->attr & SEG_CODE) && (s->attr & SEG_EXPDOWN);

        if (!(s->attr & SEG_UNUSABLE) && !conforming && SEG_DPL(s->attr) < cpl)
            segment_null(s, 0, 0);
    }
}

static void protected_return(struct cpu *c, unsigned size, uint16_t release)
{
    struct segment cs, ss;
    struct stack st;

    stack_begin(&st, c);
    uint64_t rip = stack_pop(&st, size);
    uint16_t sel = stack_pop(&st, size);

    return_cs(c, sel, &cs);
    rip = ip_in(c, &cs, rip);
    check_ip(c, &cs, rip);
    st.sp = (st.sp & ~st.mask) | ((st.sp + release) & st.mask);
    if ((sel & 3u) == c->cpl) {
        stack_commit(&st);
        commit(c, &cs, rip);
        return;
    }

    bool to64 = cpu_long_mode(&c->s) && (cs.attr & SEG_L);
    uint64_t sp = stack_pop(&st, size);

    return_ss(c, stack_pop(&st, size), sel & 3u, to64, &ss);
    c->s.seg[SS] = ss;
    drop_inner_segments(c, sel & 3u);
    set_sp(c, sp + release, to64);
    commit(c, &cs, rip);
}

void sys_ret_far(struct cpu *c, const struct insn *i)
{
    uint16_t release = i->nops ? i->imm : 0;

    if (in_prot(c)) {
        protected_return(c, i->opsize, release);
        return;
    }

    struct segment cs = c->s.seg[CS];
    struct stack st;

    stack_begin(&st, c);
    uint64_t ip = stack_pop(&st, i->opsize);

    segment_real(c, &cs, stack_pop(&st, i->opsize), cpu_v86(&c->s));
    check_ip(c, &cs, ip);
    st.sp = (st.sp & ~st.mask) | ((st.sp + release) & st.mask);
    stack_commit(&st);
    commit(c, &cs, ip);
}
