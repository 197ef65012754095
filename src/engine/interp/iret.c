/*
 * IRET in all its forms: real mode, virtual-8086 mode with IOPL and VME, protected mode to the same
 * or an outer ring, to virtual-8086 mode, the NT task return, and long mode. SDM vol. 2 IRET.
 */
#include "engine/interp/sys.h"

#define FL_LOW16 (FL_STATUS | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT)
#define FL_HIGH (FL_RF | FL_AC | FL_ID)

static uint64_t merge(uint64_t old, uint64_t new, uint64_t mask)
{
    return (old & ~mask) | (new & mask);
}

/* Real mode, and virtual-8086 mode that may change flags itself. */
static void iret_8086(struct cpu *c, unsigned size)
{
    bool v86 = cpu_v86(&c->s);
    struct segment cs = c->s.seg[CS];
    uint64_t mask = FL_LOW16;
    struct stack st;

    if (v86)
        mask &= ~FL_IOPL;
    if (size == 4)
        mask |= FL_HIGH;
    else
        mask |= FL_RF; /* a 16-bit image has RF = 0 */
    stack_begin(&st, c);
    uint64_t ip = stack_pop(&st, size);
    uint16_t sel = stack_pop(&st, size);
    uint64_t fl = stack_pop(&st, size);

    segment_real(c, &cs, sel, v86);
    check_ip(c, &cs, ip);
    stack_commit(&st);
    c->s.seg[CS] = cs;
    c->next_rip = ip;
    cpu_set_flags(c, merge(cpu_flags(c), fl, mask));
    cpu_update_mode(c);
}

/* Virtual-8086 mode with IOPL < 3: only the 16-bit form with CR4.VME, on the virtual interrupt
 * flag. */
static void iret_vme(struct cpu *c, unsigned size)
{
    struct segment cs = c->s.seg[CS];
    uint64_t old = cpu_flags(c);
    struct stack st;

    if (!(c->s.cr4 & CR4_VME) || size != 2)
        cpu_raise(c, X_GP, 0);
    stack_begin(&st, c);
    uint64_t ip = stack_pop(&st, 2);
    uint16_t sel = stack_pop(&st, 2);
    uint64_t fl = stack_pop(&st, 2);

    if ((fl & FL_TF) || ((fl & FL_IF) && (old & FL_VIP)))
        cpu_raise(c, X_GP, 0);
    segment_real(c, &cs, sel, true);
    check_ip(c, &cs, ip);
    stack_commit(&st);
    c->s.seg[CS] = cs;
    c->next_rip = ip;
    old = merge(old, fl & FL_IF ? FL_VIF : 0, FL_VIF);
    cpu_set_flags(c, merge(old, fl, (FL_LOW16 & ~(FL_IOPL | FL_IF)) | FL_RF));
    cpu_update_mode(c);
}

/* Back to the task that this one was called from. */
static void iret_task(struct cpu *c)
{
    struct desc d;
    uint16_t link = lin_ld(c, sys_la(c, c->s.tr.base), 2, PRIV_SUPER);

    if ((link & 4) || !desc_fetch(c, link, &d))
        raise_sel(c, X_TS, link);
    if (desc_is_seg(&d) || (desc_type(&d) != SYS_TSS16_BUSY && desc_type(&d) != SYS_TSS32_BUSY))
        raise_sel(c, X_TS, link);
    if (!desc_present(&d))
        raise_sel(c, X_NP, link);
    task_switch(c, &d, TASK_IRET, c->next_rip, cpu_flags(c));
    check_ip(c, &c->s.seg[CS], c->next_rip);
}

static void iret_to_v86(struct cpu *c, struct stack *st, uint64_t ip, uint16_t sel, uint64_t fl)
{
    static const uint8_t order[] = { SS, ES, DS, FS, GS };
    struct segment seg[SREG_COUNT];
    uint32_t sp = stack_pop(st, 4);

    segment_real(c, &seg[CS], sel, true);
    for (unsigned k = 0; k < ARRAY_LEN(order); k++)
        segment_real(c, &seg[order[k]], stack_pop(st, 4), true);
    check_ip(c, &seg[CS], ip);
    for (unsigned k = 0; k < SREG_COUNT; k++)
        c->s.seg[k] = seg[k];
    c->s.gpr[RSP] = sp;
    c->next_rip = ip;
    cpu_set_flags(c, fl);
    cpu_update_mode(c);
}

/* Which flags a return from the current CPL may change. */
static uint64_t iret_mask(const struct cpu *c, unsigned size)
{
    uint64_t mask = FL_STATUS | FL_TF | FL_DF | FL_NT | FL_RF;

    if (size > 2)
        mask |= FL_HIGH;
    if (c->cpl <= cpu_iopl(c))
        mask |= FL_IF;
    if (c->cpl == 0) {
        mask |= FL_IOPL;
        if (size > 2)
            mask |= FL_VIF | FL_VIP;
    }
    return mask;
}

static void iret_protected(struct cpu *c, unsigned size)
{
    bool from64 = c->bits == CPU_64;
    struct segment cs, ss;
    struct stack st;

    stack_begin(&st, c);
    uint64_t rip = stack_pop(&st, size);
    uint16_t sel = stack_pop(&st, size);
    uint64_t fl = stack_pop(&st, size);
    unsigned rpl = sel & 3u;

    if (size == 4 && (fl & FL_VM) && c->cpl == 0 && !cpu_long_mode(&c->s)) {
        iret_to_v86(c, &st, rip, sel, fl);
        return;
    }
    return_cs(c, sel, &cs);
    rip = ip_in(c, &cs, rip);

    uint64_t flags = merge(cpu_flags(c), fl, iret_mask(c, size));

    if (rpl == c->cpl && !from64) {
        check_ip(c, &cs, rip);
        stack_commit(&st);
    } else {
        bool to64 = cpu_long_mode(&c->s) && (cs.attr & SEG_L);
        uint64_t sp = stack_pop(&st, size);

        return_ss(c, stack_pop(&st, size), rpl, to64, &ss);
        check_ip(c, &cs, rip);
        c->s.seg[SS] = ss;
        if (rpl != c->cpl)
            drop_inner_segments(c, rpl);
        set_sp(c, sp, to64);
    }
    c->s.seg[CS] = cs;
    c->next_rip = rip;
    cpu_set_flags(c, flags);
    cpu_update_mode(c);
}

void sys_iret(struct cpu *c, const struct insn *i)
{
    cpu_fence();
    c->s.nmi_blocked = 0; /* even if IRET itself faults */
    c->mode_changed = true;
    if (cpu_real(&c->s)) {
        iret_8086(c, i->opsize);
    } else if (cpu_v86(&c->s)) {
        if (cpu_iopl(c) == 3)
            iret_8086(c, i->opsize);
        else
            iret_vme(c, i->opsize);
    } else if (c->s.rflags & FL_NT) {
        if (cpu_long_mode(&c->s))
            cpu_raise(c, X_GP, 0);
        iret_task(c);
    } else {
        iret_protected(c, i->opsize);
    }
}
