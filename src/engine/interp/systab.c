/*
 * Descriptor-table registers, LDTR and TR, and the queries of descriptors: LGDT, SIDT, LTR, LAR and
 * so on. SDM vol. 2; vol. 3 §2.4, §5.10.
 */
#include <string.h>

#include "engine/interp/sys.h"

static void umip(struct cpu *c)
{
    if ((c->s.cr4 & CR4_UMIP) && c->cpl)
        cpu_raise(c, X_GP, 0);
}

static void store_table(struct cpu *c, const struct insn *i, const struct table_reg *t)
{
    unsigned n = c->bits == CPU_64 ? 10 : 6;
    uint8_t buf[10];

    umip(c);
    memcpy(buf, &t->limit, 2);
    memcpy(buf + 2, &t->base, 8);
    lin_write(c, insn_lin(c, i, n, ACCESS_WRITE), buf, n, PRIV_CPL);
}

static void load_table(struct cpu *c, const struct insn *i, struct table_reg *t)
{
    unsigned n = c->bits == CPU_64 ? 10 : 6;
    uint8_t buf[10] = { 0 };
    uint64_t base;

    need_cpl0(c);
    lin_read(c, insn_lin(c, i, n, ACCESS_READ), buf, n, PRIV_CPL);
    memcpy(&base, buf + 2, 8);
    if (n == 10 && !is_canonical(base))
        cpu_raise(c, X_GP, 0);
    if (n == 6 && i->opsize == 2)
        base &= 0xffffff;
    t->base = base;
    memcpy(&t->limit, buf, 2);
}

void sys_lgdt(struct cpu *c, const struct insn *i) { load_table(c, i, &c->s.gdtr); }
void sys_lidt(struct cpu *c, const struct insn *i) { load_table(c, i, &c->s.idtr); }
void sys_sgdt(struct cpu *c, const struct insn *i) { store_table(c, i, &c->s.gdtr); }
void sys_sidt(struct cpu *c, const struct insn *i) { store_table(c, i, &c->s.idtr); }

/* LDT and TSS descriptors have 16 bytes in long mode. */
static void system_base(struct cpu *c, struct desc *d, struct segment *s)
{
    desc_to_segment(d, d->sel, s);
    if (!cpu_long_mode(&c->s))
        return;
    if (!desc_upper(c, d))
        raise_sel(c, X_GP, d->sel);
    s->base |= d->upper << 32;
    if (!is_canonical(s->base))
        raise_sel(c, X_GP, d->sel);
}

void sys_lldt(struct cpu *c, const struct insn *i)
{
    struct segment s;
    struct desc d;

    need_prot(c);
    need_cpl0(c);
    uint16_t sel = op_read(c, i, 0);

    if (sel_is_null(sel)) {
        segment_null(&c->s.ldtr, sel, 0);
        return;
    }
    if ((sel & 4) || !desc_fetch(c, sel, &d) || desc_is_seg(&d) || desc_type(&d) != SYS_LDT)
        raise_sel(c, X_GP, sel);
    if (!desc_present(&d))
        raise_sel(c, X_NP, sel);
    system_base(c, &d, &s);
    c->s.ldtr = s;
}

void sys_ltr(struct cpu *c, const struct insn *i)
{
    struct segment s;
    struct desc d;

    need_prot(c);
    need_cpl0(c);
    uint16_t sel = op_read(c, i, 0);

    if (sel_is_null(sel))
        cpu_raise(c, X_GP, 0);
    if ((sel & 4) || !desc_fetch(c, sel, &d) || desc_is_seg(&d) ||
        (desc_type(&d) != SYS_TSS32 && (cpu_long_mode(&c->s) || desc_type(&d) != SYS_TSS16)))
        raise_sel(c, X_GP, sel);
    if (!desc_present(&d))
        raise_sel(c, X_NP, sel);
    system_base(c, &d, &s);
    desc_set_bits(c, &d, SYS_BUSY);
    s.attr |= SYS_BUSY;
    c->s.tr = s;
}

void sys_sldt(struct cpu *c, const struct insn *i)
{
    need_prot(c);
    umip(c);
    op_write(c, i, 0, c->s.ldtr.sel);
}

void sys_str(struct cpu *c, const struct insn *i)
{
    need_prot(c);
    umip(c);
    op_write(c, i, 0, c->s.tr.sel);
}

/* ---- queries: the answer is ZF, and nothing about the selector faults ---- */

#define T(t) (1u << (t))
#define LAR_TYPES                                                                                  \
    (T(SYS_TSS16) | T(SYS_LDT) | T(SYS_TSS16_BUSY) | T(SYS_CALL16) | T(SYS_TASK_GATE) |            \
     T(SYS_TSS32) | T(SYS_TSS32_BUSY) | T(SYS_CALL32))
#define LAR_TYPES64 (T(SYS_LDT) | T(SYS_TSS32) | T(SYS_TSS32_BUSY) | T(SYS_CALL32))
#define LSL_TYPES                                                                                  \
    (T(SYS_TSS16) | T(SYS_LDT) | T(SYS_TSS16_BUSY) | T(SYS_TSS32) | T(SYS_TSS32_BUSY))
#define LSL_TYPES64 (T(SYS_LDT) | T(SYS_TSS32) | T(SYS_TSS32_BUSY))

static void set_zf(struct cpu *c, bool z)
{
    uint64_t f = cpu_flags(c);

    cpu_set_status(c, z ? f | FL_ZF : f & ~FL_ZF);
}

/* Is sel's descriptor visible at CPL and RPL, and of a type that the instruction knows? */
static bool visible(struct cpu *c, uint16_t sel, uint32_t types, uint32_t types64, struct desc *d)
{
    if (sel_is_null(sel) || !desc_fetch(c, sel, d))
        return false;
    if (!desc_is_seg(d)) {
        bool lm = cpu_long_mode(&c->s);

        if (!((lm ? types64 : types) >> desc_type(d) & 1))
            return false;
        if (lm && !desc_upper(c, d))
            return false;
    }
    return desc_is_conforming(d) || desc_dpl(d) >= MAX(c->cpl, sel & 3u);
}

void sys_lar(struct cpu *c, const struct insn *i)
{
    struct desc d;

    need_prot(c);
    bool ok = visible(c, op_read(c, i, 1), LAR_TYPES, LAR_TYPES64, &d);

    if (ok)
        op_write(c, i, 0, d.raw >> 32 & 0x00ffff00);
    set_zf(c, ok);
}

void sys_lsl(struct cpu *c, const struct insn *i)
{
    struct segment s;
    struct desc d;

    need_prot(c);
    bool ok = visible(c, op_read(c, i, 1), LSL_TYPES, LSL_TYPES64, &d);

    if (ok) {
        desc_to_segment(&d, 0, &s);
        op_write(c, i, 0, s.limit);
    }
    set_zf(c, ok);
}

void sys_verr(struct cpu *c, const struct insn *i)
{
    struct desc d;

    need_prot(c);
    bool ok = visible(c, op_read(c, i, 0), 0, 0, &d);

    set_zf(c, ok && (!desc_is_code(&d) || (desc_type(&d) & SEG_WRITE)));
}

void sys_verw(struct cpu *c, const struct insn *i)
{
    struct desc d;

    need_prot(c);
    bool ok = visible(c, op_read(c, i, 0), 0, 0, &d);

    set_zf(c, ok && !desc_is_code(&d) && (desc_type(&d) & SEG_WRITE));
}

void sys_arpl(struct cpu *c, const struct insn *i)
{
    need_prot(c);
    uint16_t dst = op_read(c, i, 0), src = op_read(c, i, 1);
    bool lower = (dst & 3) < (src & 3);

    if (lower)
        op_write(c, i, 0, (dst & ~3u) | (src & 3));
    set_zf(c, lower);
}
