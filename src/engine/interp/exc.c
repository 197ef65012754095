/*
 * Delivery of exceptions and interrupts in every mode, nested faults, double fault and shutdown,
 * and the instructions that raise software interrupts. SDM vol. 3 ch. 6, §20.3 (virtual-8086);
 * vol. 2 INT n.
 *
 * Delivery changes no register before the frame is on the stack, so a nested fault sees the state
 * of the first one, except past the commit point of a task switch.
 */
#include <string.h>

#include "base/trace.h"
#include "engine/interp/sys.h"

enum { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT, CLASS_DOUBLE_FAULT };

/* Error-code bits of faults met in delivery */
#define ERR_EXT 1u
#define ERR_IDT 2u

#define VEC_BIT(v) (1u << (v))
#define CONTRIBUTORY                                                                               \
    (VEC_BIT(X_DE) | VEC_BIT(X_TS) | VEC_BIT(X_NP) | VEC_BIT(X_SS) | VEC_BIT(X_GP))
#define SELECTOR_ERROR (VEC_BIT(X_TS) | VEC_BIT(X_NP) | VEC_BIT(X_SS) | VEC_BIT(X_GP))
#define HAS_ERROR (SELECTOR_ERROR | VEC_BIT(X_DF) | VEC_BIT(X_PF) | VEC_BIT(X_AC))

static bool vec_in(uint8_t vec, uint32_t set) { return vec < 32 && (set >> vec & 1); }

static unsigned class_of(const struct event *e)
{
    if (e->kind != EV_FAULT)
        return CLASS_BENIGN;
    if (e->vector == X_PF)
        return CLASS_PAGE_FAULT;
    if (e->vector == X_DF)
        return CLASS_DOUBLE_FAULT;
    return vec_in(e->vector, CONTRIBUTORY) ? CLASS_CONTRIBUTORY : CLASS_BENIGN;
}

static bool is_software(const struct event *e) { return e->kind == EV_SOFT_INT; }

/* The instruction pointer pushed: after the instruction for INT and its kin. */
static uint64_t return_rip(const struct cpu *c, const struct event *e)
{
    return e->kind == EV_SOFT_INT || e->kind == EV_ICEBP ? c->next_rip : c->s.rip;
}

/* The flags pushed. RF is set for faults, so that an instruction breakpoint does not hit again on
 * restart, except for the fault of such a breakpoint itself (SDM vol. 3 §18.3.1.1). */
static uint64_t return_flags(const struct cpu *c, const struct event *e)
{
    uint64_t fl = cpu_flags(c);

    switch (e->kind) {
    case EV_FAULT:
        if (e->vector == X_DF || (e->vector == X_DB && !(e->error & DR6_BD)))
            return fl;
        return fl | FL_RF;
    case EV_TRAP: /* set between two iterations of a repeated string instruction */
    case EV_EXT_INT:
    case EV_NMI_INT:
        return fl;
    default:
        return fl & ~FL_RF;
    }
}

static void commit(struct cpu *c, const struct segment *cs, uint64_t rip, uint64_t clear)
{
    c->s.seg[CS] = *cs;
    c->s.rip = c->next_rip = rip;
    cpu_set_flags(c, cpu_flags(c) & ~clear);
    cpu_update_mode(c);
}

/* ---- real mode, and software interrupts redirected to the virtual-8086 program ---- */

static void deliver_ivt(struct cpu *c, const struct event *e, uint64_t table, uint64_t flags,
                        uint64_t clear)
{
    uint32_t entry = lin_ld(c, sys_la(c, table + e->vector * 4u), 4, PRIV_SUPER);
    uint64_t val[3] = { flags, c->s.seg[CS].sel, return_rip(c, e) };
    struct segment cs = c->s.seg[CS];

    segment_real(c, &cs, entry >> 16, cpu_v86(&c->s));
    check_ip(c, &cs, entry & 0xffff);
    set_sp(c, frame_push(c, &c->s.seg[SS], c->s.gpr[RSP], false, val, 3, 2, PRIV_CPL, 0), false);
    commit(c, &cs, entry & 0xffff, clear);
}

static void deliver_real(struct cpu *c, const struct event *e)
{
    if (e->vector * 4u + 3 > c->s.idtr.limit)
        cpu_raise(c, X_GP, e->vector * 8u + ERR_IDT);
    deliver_ivt(c, e, c->s.idtr.base, return_flags(c, e), FL_IF | FL_TF | FL_AC | FL_RF);
}

/* ---- protected mode, 16- and 32-bit gates ---- */

/* Reads the gate and makes the checks that come before its target is looked at. */
static void read_gate(struct cpu *c, const struct event *e, unsigned size, uint32_t types,
                      struct desc *g)
{
    uint32_t err = e->vector * 8u + ERR_IDT, off = e->vector * size;

    if (off + size - 1 > c->s.idtr.limit)
        cpu_raise(c, X_GP, err);
    g->la = sys_la(c, c->s.idtr.base + off);
    g->sel = 0;
    g->upper = 0;
    g->raw = lin_ld(c, g->la, 8, PRIV_SUPER);
    if (size == 16)
        g->upper = lin_ld(c, sys_la(c, g->la + 8), 8, PRIV_SUPER);
    if (desc_is_seg(g) || !(types >> desc_type(g) & 1) || (is_software(e) && desc_dpl(g) < c->cpl))
        cpu_raise(c, X_GP, err);
    if (!desc_present(g))
        cpu_raise(c, X_NP, err);
}

/* The handler's code segment; returns the privilege it will run at. */
static unsigned gate_target(struct cpu *c, const struct desc *g, struct desc *d)
{
    uint16_t sel = g->raw >> 16;

    if (sel_is_null(sel))
        cpu_raise(c, X_GP, 0);
    desc_read(c, sel, d, X_GP);
    if (!desc_is_code(d) || desc_dpl(d) > c->cpl)
        raise_sel(c, X_GP, sel);
    if (cpu_long_mode(&c->s) && (desc_attr(d) & (SEG_L | SEG_DB)) != SEG_L)
        raise_sel(c, X_GP, sel);
    if (!desc_present(d))
        raise_sel(c, X_NP, sel);
    return desc_is_conforming(d) ? c->cpl : desc_dpl(d);
}

static void deliver_task(struct cpu *c, const struct event *e, const struct desc *g)
{
    struct desc tss;

    task_tss(c, g->raw >> 16, &tss);
    task_switch(c, &tss, TASK_EVENT, return_rip(c, e), return_flags(c, e));
    if (e->has_error) {
        uint64_t val = e->error;
        bool is32 = c->s.tr.attr & 8;

        set_sp(c, frame_push(c, &c->s.seg[SS], c->s.gpr[RSP], false, &val, 1, is32 ? 4 : 2,
                             PRIV_CPL, 0),
               false);
    }
    check_ip(c, &c->s.seg[CS], c->s.rip);
}

static void deliver_protected(struct cpu *c, const struct event *e)
{
    static const uint32_t types = VEC_BIT(SYS_TASK_GATE) | VEC_BIT(SYS_INT16) |
                                  VEC_BIT(SYS_TRAP16) | VEC_BIT(SYS_INT32) | VEC_BIT(SYS_TRAP32);
    uint64_t clear = FL_TF | FL_NT | FL_VM | FL_RF, val[10], sp = c->s.gpr[RSP];
    bool v86 = cpu_v86(&c->s);
    struct segment cs, ss = c->s.seg[SS];
    enum priv priv = PRIV_CPL;
    struct desc g, d;
    unsigned n = 0, cpl, size, err = 0;

    read_gate(c, e, 8, types, &g);
    if (desc_type(&g) == SYS_TASK_GATE) {
        deliver_task(c, e, &g);
        return;
    }
    cpl = gate_target(c, &g, &d);
    size = desc_type(&g) & 8 ? 4 : 2;
    if (v86 && cpl)
        raise_sel(c, X_GP, d.sel);
    if (cpl < c->cpl) {
        tss_stack(c, cpl, &ss, &sp);
        priv = PRIV_SUPER;
        err = ss.sel & 0xfffcu;
        if (v86) {
            val[n++] = c->s.seg[GS].sel;
            val[n++] = c->s.seg[FS].sel;
            val[n++] = c->s.seg[DS].sel;
            val[n++] = c->s.seg[ES].sel;
        }
        val[n++] = c->s.seg[SS].sel;
        val[n++] = c->s.gpr[RSP];
    }
    val[n++] = return_flags(c, e);
    val[n++] = c->s.seg[CS].sel;
    val[n++] = return_rip(c, e);
    if (e->has_error)
        val[n++] = e->error;

    uint32_t off = (g.raw & 0xffff) | (size == 4 ? g.raw >> 32 & 0xffff0000 : 0);

    desc_mark_accessed(c, &d);
    desc_to_segment(&d, (d.sel & 0xfffcu) | cpl, &cs);
    check_ip(c, &cs, off);
    sp = frame_push(c, &ss, sp, false, val, n, size, priv, err);

    if (v86) {
        segment_null(&c->s.seg[GS], 0, 0);
        segment_null(&c->s.seg[FS], 0, 0);
        segment_null(&c->s.seg[DS], 0, 0);
        segment_null(&c->s.seg[ES], 0, 0);
    }
    c->s.seg[SS] = ss;
    set_sp(c, sp, false);
    if (!(desc_type(&g) & 1))
        clear |= FL_IF;
    commit(c, &cs, off, clear);
}

/* ---- long mode ---- */

static void deliver_long(struct cpu *c, const struct event *e)
{
    uint64_t clear = FL_TF | FL_NT | FL_VM | FL_RF, val[6], sp = c->s.gpr[RSP];
    struct segment cs, ss = c->s.seg[SS];
    enum priv priv = PRIV_CPL;
    struct desc g, d;
    unsigned n = 0, cpl, ist;

    read_gate(c, e, 16, VEC_BIT(SYS_INT32) | VEC_BIT(SYS_TRAP32), &g);
    cpl = gate_target(c, &g, &d);
    ist = g.raw >> 32 & 7;
    if (cpl < c->cpl) {
        segment_null(&ss, cpl, cpl);
        priv = PRIV_SUPER;
    }
    if (ist || cpl < c->cpl)
        sp = tss_stack64(c, cpl, ist);
    val[n++] = c->s.seg[SS].sel;
    val[n++] = c->s.gpr[RSP];
    val[n++] = return_flags(c, e);
    val[n++] = c->s.seg[CS].sel;
    val[n++] = return_rip(c, e);
    if (e->has_error)
        val[n++] = e->error;

    uint64_t off = (g.raw & 0xffff) | (g.raw >> 32 & 0xffff0000) | g.upper << 32;

    desc_mark_accessed(c, &d);
    desc_to_segment(&d, (d.sel & 0xfffcu) | cpl, &cs);
    check_ip(c, &cs, off);
    sp = frame_push(c, &ss, sp & ~15ull, true, val, n, 8, priv, 0);

    c->s.seg[SS] = ss;
    c->s.gpr[RSP] = sp;
    if (!(desc_type(&g) & 1))
        clear |= FL_IF;
    commit(c, &cs, off, clear);
}

static void deliver(struct cpu *c, const struct event *e)
{
    if (cpu_real(&c->s))
        deliver_real(c, e);
    else if (cpu_long_mode(&c->s))
        deliver_long(c, e);
    else
        deliver_protected(c, e);
}

/* ---- the loop over nested faults ---- */

/* DR6 and DR7 change when the exception is recognised, whatever becomes of its delivery. #DB has no
 * error code; the event's field holds what it was raised for. */
static void note_debug(struct cpu *c, struct event *e)
{
    if (e->vector != X_DB || (e->kind != EV_FAULT && e->kind != EV_TRAP))
        return;
    e->error = c->s.pending_dbg;
    c->s.dr[6] |= c->s.pending_dbg;
    c->s.pending_dbg = 0;
    c->s.dr[7] &= ~DR7_GD;
}

/* A fault while c->deliver_class was being delivered: what is delivered next (SDM table 6-5).
 * Returns false for shutdown. */
static bool merge_fault(struct cpu *c, bool ext)
{
    unsigned first = c->deliver_class, second = class_of(&c->event);

    if (vec_in(c->event.vector, SELECTOR_ERROR) && ext)
        c->event.error |= ERR_EXT;
    if (first == CLASS_DOUBLE_FAULT && second != CLASS_BENIGN)
        return false;
    if ((first == CLASS_CONTRIBUTORY && second == CLASS_CONTRIBUTORY) ||
        (first == CLASS_PAGE_FAULT && second != CLASS_BENIGN))
        c->event = (struct event){ .kind = EV_FAULT, .vector = X_DF, .has_error = true };
    c->deliver_class = class_of(&c->event);
    return true;
}

void event_deliver(struct cpu *c)
{
    /* Nested faults come back here; the caller's own landing place is put back at the end. */
    jmp_buf caller;
    volatile bool ext = !is_software(&c->event);

    memcpy(&caller, &c->fault, sizeof(caller));
    c->deliver_class = class_of(&c->event);
    c->in_delivery = true;
    if (setjmp(c->fault)) {
        if (!merge_fault(c, ext)) {
            trace(c->vm->trace, cpu_reset, "vcpu %u: triple fault at %#llx", c->v->index,
                  (unsigned long long)c->s.rip);
            c->shutdown = true;
            c->mode_changed = true;
            goto out;
        }
        ext = true;
    }

    struct event e = c->event;

    e.has_error = e.kind == EV_FAULT && vec_in(e.vector, HAS_ERROR);
    trace(c->vm->trace, cpu_exception, "vcpu %u: vector %u error %#x rip %#llx cr2 %#llx",
          c->v->index, e.vector, e.has_error ? e.error : 0, (unsigned long long)c->s.rip,
          (unsigned long long)c->s.cr2);
    note_debug(c, &e);
    deliver(c, &e);
    if (e.kind == EV_NMI_INT)
        c->s.nmi_blocked = 1;
    c->s.activity = CPU_RUNNING; /* a debug trap after HLT */
    c->s.sti_shadow = c->s.mov_ss_shadow = 0;
out:
    c->deliver = c->in_delivery = false;
    memcpy(&c->fault, &caller, sizeof(caller));
}

/* ---- software interrupts ---- */

static void software(struct cpu *c, uint8_t vec)
{
    struct event e = { .kind = EV_SOFT_INT, .vector = vec };

    deliver(c, &e);
    c->trap_taken = true; /* TF was cleared: no single-step trap after the instruction */
    c->s.sti_shadow = c->s.mov_ss_shadow = 0;
}

/* CR4.VME: does the TSS's bitmap (below the I/O map) send INT vec to the 8086 program's own
 * handler? */
static bool vme_redirects(struct cpu *c, uint8_t vec)
{
    const struct segment *tr = &c->s.tr;

    if ((tr->attr & SEG_UNUSABLE) || !(tr->attr & 8) || tr->limit < 103)
        cpu_raise(c, X_GP, 0);
    uint32_t map = lin_ld(c, sys_la(c, tr->base + 102), 2, PRIV_SUPER);
    uint32_t at = map - 32 + vec / 8;

    if (map < 32 || at > tr->limit)
        cpu_raise(c, X_GP, 0);
    return !(lin_ld(c, sys_la(c, tr->base + at), 1, PRIV_SUPER) >> (vec % 8) & 1);
}

static void int_v86(struct cpu *c, uint8_t vec)
{
    struct event e = { .kind = EV_SOFT_INT, .vector = vec };
    bool iopl3 = cpu_iopl(c) == 3;

    if (!(c->s.cr4 & CR4_VME) || !vme_redirects(c, vec)) {
        if (!iopl3)
            cpu_raise(c, X_GP, 0);
        software(c, vec);
        return;
    }

    uint64_t fl = cpu_flags(c);

    if (!iopl3)
        fl = (fl & ~FL_IF) | FL_IOPL | (fl & FL_VIF ? FL_IF : 0);
    deliver_ivt(c, &e, 0, fl, FL_TF | FL_RF | (iopl3 ? FL_IF : FL_VIF));
    c->trap_taken = true;
}

void sys_int(struct cpu *c, const struct insn *i)
{
    if (cpu_v86(&c->s))
        int_v86(c, i->imm);
    else
        software(c, i->imm);
}

void sys_int3(struct cpu *c, const struct insn *i) { software(c, X_BP); }

void sys_into(struct cpu *c, const struct insn *i)
{
    if (cpu_flags(c) & FL_OF)
        software(c, X_OF);
}

void sys_int1(struct cpu *c, const struct insn *i)
{
    /* Delivered as the hardware's own event: no DPL check, EXT set in nested faults. */
    c->event = (struct event){ .kind = EV_ICEBP, .vector = X_DB };
    event_deliver(c);
    c->trap_taken = true;
    c->next_rip = c->s.rip;
}
