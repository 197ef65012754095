/*
 * CLI, STI, PUSHF, POPF, CLAC, STAC: the flags that privilege, IOPL and the virtual interrupt flag
 * guard. SDM vol. 2; vol. 3 §20.3-20.4.
 */
#include "engine/interp/sys.h"

#define FL_POP16 (FL_STATUS | FL_TF | FL_DF | FL_NT)

/* Which interrupt flag may CLI and STI change? #GP(0) if none. */
static uint64_t interrupt_flag(struct cpu *c)
{
    if (c->cpl <= cpu_iopl(c) || cpu_real(&c->s))
        return FL_IF;
    if (cpu_v86(&c->s) ? c->s.cr4 & CR4_VME : c->cpl == 3 && (c->s.cr4 & CR4_PVI))
        return FL_VIF;
    cpu_raise(c, X_GP, 0);
}

void sys_cli(struct cpu *c, const struct insn *i)
{
    uint64_t flag = interrupt_flag(c);

    cpu_set_flags(c, cpu_flags(c) & ~flag);
}

void sys_sti(struct cpu *c, const struct insn *i)
{
    uint64_t flag = interrupt_flag(c), fl = cpu_flags(c);

    if (flag == FL_VIF && (fl & FL_VIP))
        cpu_raise(c, X_GP, 0);
    if (flag == FL_IF && !(fl & FL_IF))
        c->s.sti_shadow = 1;
    cpu_set_flags(c, fl | flag);
    c->mode_changed = true;
}

static void set_ac(struct cpu *c, uint64_t ac)
{
    if (c->cpl || cpu_v86(&c->s))
        cpu_raise(c, X_UD, 0);
    cpu_set_flags(c, (cpu_flags(c) & ~FL_AC) | ac);
}

void sys_clac(struct cpu *c, const struct insn *i) { set_ac(c, 0); }
void sys_stac(struct cpu *c, const struct insn *i) { set_ac(c, FL_AC); }

/* Virtual-8086 mode with IOPL < 3: PUSHF and POPF work on VIF in their 16-bit forms with
 * CR4.VME. */
static bool uses_vif(struct cpu *c, unsigned size)
{
    if (!cpu_v86(&c->s) || cpu_iopl(c) == 3)
        return false;
    if (!(c->s.cr4 & CR4_VME) || size != 2)
        cpu_raise(c, X_GP, 0);
    return true;
}

void sys_pushf(struct cpu *c, const struct insn *i)
{
    uint64_t fl = cpu_flags(c) & ~(FL_VM | FL_RF);
    struct stack st;

    if (uses_vif(c, i->opsize))
        fl = (fl & ~FL_IF) | FL_IOPL | (fl & FL_VIF ? FL_IF : 0);
    stack_begin(&st, c);
    stack_push(&st, i->opsize, fl);
    stack_commit(&st);
}

void sys_popf(struct cpu *c, const struct insn *i)
{
    uint64_t old = cpu_flags(c), mask = FL_POP16 | FL_RF, new;
    bool vif = uses_vif(c, i->opsize);
    struct stack st;

    stack_begin(&st, c);
    new = stack_pop(&st, i->opsize) & ~FL_RF;
    if (vif) {
        if ((new & FL_TF) || ((new & FL_IF) && (old & FL_VIP)))
            cpu_raise(c, X_GP, 0);
        old = (old & ~FL_VIF) | (new & FL_IF ? FL_VIF : 0);
    } else {
        if (c->cpl <= cpu_iopl(c) || cpu_real(&c->s))
            mask |= FL_IF;
        if (c->cpl == 0)
            mask |= FL_IOPL;
        if (i->opsize > 2)
            mask |= FL_AC | FL_ID;
    }
    stack_commit(&st);
    cpu_set_flags(c, (old & ~mask) | (new & mask));
    c->mode_changed = true;
}
