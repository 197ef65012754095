/*
 * Hardware task switches, 16- and 32-bit TSS. SDM vol. 3 §8.3: every access that the switch makes
 * is checked first; then state is saved and loaded as one step; after that, faults (bad selectors
 * in the new TSS) belong to the new task.
 */
#include <string.h>

#include "engine/interp/sys.h"

#define TSS16_SIZE 44u
#define TSS32_SIZE 104u
#define TSS32_CR3 0x1c
#define TSS32_EIP 0x20
#define TSS32_LDT 0x60
#define TSS32_T 0x64
#define TSS16_IP 0x0e
#define TSS16_LDT 0x2a
#define DR7_LOCAL 0x155u /* L0..L3, LE */

/* What a TSS holds of a task, free of its format. */
struct task_state {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t seg[SREG_COUNT], ldt;
    bool trap, is32;
};

static uint32_t get(const uint8_t *p, unsigned n)
{
    uint32_t v = 0;

    memcpy(&v, p, n);
    return v;
}

void task_tss(struct cpu *c, uint16_t sel, struct desc *d)
{
    if ((sel & 4) || sel_is_null(sel) || !desc_fetch(c, sel, d))
        raise_sel(c, X_GP, sel);
    if (desc_is_seg(d) || (desc_type(d) != SYS_TSS16 && desc_type(d) != SYS_TSS32))
        raise_sel(c, X_GP, sel);
    if (!desc_present(d))
        raise_sel(c, X_NP, sel);
}

/* The part of the TSS that a switch writes: EIP up to GS, or IP up to DS. */
static void save(struct cpu *c, bool is32, uint32_t eflags, uint32_t eip)
{
    unsigned n = is32 ? 4 : 2, nseg = is32 ? 6 : 4, at = is32 ? TSS32_EIP : TSS16_IP, len = 0;
    uint8_t buf[64] = { 0 };

    memcpy(buf + len, &eip, n);
    memcpy(buf + (len += n), &eflags, n);
    for (unsigned k = 0; k < 8; k++)
        memcpy(buf + (len += n), &c->s.gpr[k], n);
    len += n;
    for (unsigned k = 0; k < nseg; k++, len += n)
        memcpy(buf + len, &c->s.seg[k].sel, 2);
    lin_write(c, sys_la(c, c->s.tr.base + at), buf, len, PRIV_SUPER);
}

static void load(struct cpu *c, uint64_t la, bool is32, struct task_state *t)
{
    unsigned n = is32 ? 4 : 2, nseg = is32 ? 6 : 4, at = is32 ? TSS32_EIP : TSS16_IP;
    uint8_t buf[TSS32_SIZE];

    memset(t, 0, sizeof(*t));
    t->is32 = is32;
    lin_read(c, la, buf, is32 ? TSS32_SIZE : TSS16_SIZE, PRIV_SUPER);
    t->eip = get(buf + at, n);
    t->eflags = get(buf + at + n, n);
    for (unsigned k = 0; k < 8; k++)
        t->gpr[k] = is32 ? get(buf + at + n * (2 + k), 4)
                         : get(buf + at + n * (2 + k), 2) | 0xffff0000u;
    for (unsigned k = 0; k < nseg; k++)
        t->seg[k] = get(buf + at + n * (10 + k), 2);
    t->ldt = get(buf + (is32 ? TSS32_LDT : TSS16_LDT), 2);
    if (is32) {
        t->cr3 = get(buf + TSS32_CR3, 4);
        t->trap = buf[TSS32_T] & 1;
    }
}

static void load_ldtr(struct cpu *c, uint16_t sel)
{
    struct desc d;

    if (sel_is_null(sel))
        return;
    if ((sel & 4) || !desc_fetch(c, sel, &d) || desc_is_seg(&d) || desc_type(&d) != SYS_LDT ||
        !desc_present(&d))
        raise_sel(c, X_TS, sel);
    desc_to_segment(&d, sel, &c->s.ldtr);
}

static void load_cs(struct cpu *c, uint16_t sel)
{
    struct desc d;

    if (sel_is_null(sel) || !desc_fetch(c, sel, &d) || !desc_is_code(&d) ||
        (desc_is_conforming(&d) ? desc_dpl(&d) > (sel & 3u) : desc_dpl(&d) != (sel & 3u)))
        raise_sel(c, X_TS, sel);
    if (!desc_present(&d))
        raise_sel(c, X_NP, sel);
    desc_mark_accessed(c, &d);
    desc_to_segment(&d, sel, &c->s.seg[CS]);
    cpu_update_mode(c);
}

/* Loads the hidden parts of the new task's segment registers; faults are the new task's. */
static void load_segments(struct cpu *c, const struct task_state *t)
{
    static const uint8_t data[] = { DS, ES, FS, GS };

    load_ldtr(c, t->ldt);
    if (cpu_v86(&c->s))
        return;
    load_cs(c, t->seg[CS]);
    if (sel_is_null(t->seg[SS]))
        raise_sel(c, X_TS, t->seg[SS]);
    segment_stack(c, t->seg[SS], t->seg[CS] & 3u, X_TS, &c->s.seg[SS]);
    for (unsigned k = 0; k < ARRAY_LEN(data); k++)
        segment_data(c, t->seg[data[k]], t->seg[CS] & 3u, X_TS, &c->s.seg[data[k]]);
    cpu_update_mode(c);
}

void task_switch(struct cpu *c, struct desc *d, enum task_cause why, uint64_t ret, uint64_t eflags)
{
    bool new32 = desc_type(d) & 8, old32 = c->s.tr.attr & 8;
    bool nested = why == TASK_CALL || why == TASK_EVENT;
    uint64_t old_la = sys_la(c, c->s.gdtr.base + (c->s.tr.sel & ~7u));
    uint16_t old_sel = c->s.tr.sel;
    struct task_state t;
    struct segment tr;

    desc_to_segment(d, d->sel, &tr);
    if (tr.limit < (new32 ? TSS32_SIZE : TSS16_SIZE) - 1)
        raise_sel(c, X_TS, d->sel);
    lin_check(c, sys_la(c, c->s.tr.base + (old32 ? TSS32_EIP : TSS16_IP)), old32 ? 64 : 28,
              ACCESS_WRITE, PRIV_SUPER);
    if (nested)
        lin_check(c, sys_la(c, tr.base), 2, ACCESS_WRITE, PRIV_SUPER);
    lin_check(c, sys_la(c, tr.base), new32 ? TSS32_SIZE : TSS16_SIZE, ACCESS_READ, PRIV_SUPER);
    if (why != TASK_IRET)
        lin_check(c, d->la, 8, ACCESS_WRITE, PRIV_SUPER);
    if (!nested)
        lin_check(c, old_la, 8, ACCESS_WRITE, PRIV_SUPER);

    /* Nothing below faults until the new state is in place. */
    if (!nested)
        lin_clear_bits(c, old_la + DESC_TYPE_BYTE, SYS_BUSY);
    if (why == TASK_IRET)
        eflags &= ~FL_NT;
    save(c, old32, eflags, ret);
    load(c, sys_la(c, tr.base), new32, &t);
    if (nested) {
        lin_st(c, sys_la(c, tr.base), 2, old_sel, PRIV_SUPER);
        t.eflags |= FL_NT;
    }
    if (why != TASK_IRET)
        lin_set_bits(c, d->la + DESC_TYPE_BYTE, SYS_BUSY);
    tr.attr |= SYS_BUSY;
    c->s.tr = tr;
    c->s.cr0 |= CR0_TS;
    c->s.dr[7] &= ~(uint64_t)DR7_LOCAL;
    for (unsigned k = 0; k < 8; k++)
        c->s.gpr[k] = t.gpr[k];
    c->s.rip = c->next_rip = t.eip;
    c->s.sti_shadow = c->s.mov_ss_shadow = 0;
    if (!new32)
        t.eflags &= 0xffff;
    cpu_set_flags(c, t.eflags);
    for (unsigned k = 0; k < SREG_COUNT; k++) {
        if (t.eflags & FL_VM)
            segment_real(c, &c->s.seg[k], t.seg[k], true);
        else
            segment_null(&c->s.seg[k], t.seg[k], t.seg[CS] & 3u);
    }
    segment_null(&c->s.ldtr, t.ldt, 0);
    cpu_update_mode(c);
    if (new32 && (c->s.cr0 & CR0_PG))
        cr3_write(c, t.cr3, false, X_TS, d->sel & 0xfffcu);
    load_segments(c, &t);
    if (t.trap)
        c->s.pending_dbg |= DR6_BT;
    c->mode_changed = true;
}
