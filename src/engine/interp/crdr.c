/*
 * Control and debug registers, and the invalidation of translations. SDM vol. 3 §2.5, §4.10, §18.2;
 * vol. 2 MOV CR, MOV DR, LMSW, INVLPG, INVPCID.
 */
#include "base/trace.h"
#include "engine/interp/sys.h"

#define CR0_KEPT                                                                                   \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR3_NOFLUSH BIT(63)
#define DR6_FIXED 0xffff0ff0ull
#define DR6_KEPT (0xfull | DR6_BD | DR6_BS | DR6_BT)
#define DR7_FIXED 0x400ull
#define DR7_KEPT (0xffff03ffull | DR7_GD)

static unsigned pcid_of(const struct cpu_state *s)
{
    return s->cr4 & CR4_PCIDE ? s->cr3 & 0xfff : 0;
}

/* Loads the PAE pointers that state s would use; false if one is malformed. */
static bool load_pdptes(struct cpu *c, const struct cpu_state *s, struct paging *pg)
{
    const struct cpuid_policy *p = c->vm->cpuid;

    *pg = c->pg;
    paging_init(pg, s, p->maxphys, cpuid_has(p, CPUF_PDPE1GB));
    return paging_load_pdptes(pg, physmap_p2m(c->vm->map));
}

static bool uses_pae(const struct cpu_state *s)
{
    return (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !(s->efer & EFER_LMA);
}

/* Takes over new control registers: PAE pointers first, because they can fault. */
static void take(struct cpu *c, uint64_t cr0, uint64_t cr4, uint64_t efer, bool reload, bool flush)
{
    struct cpu_state want = { .cr0 = cr0, .cr3 = c->s.cr3, .cr4 = cr4, .efer = efer };
    struct paging pg;
    bool pae = uses_pae(&want);

    if (pae && reload && !load_pdptes(c, &want, &pg))
        cpu_raise(c, X_GP, 0);
    c->s.cr0 = cr0;
    c->s.cr4 = cr4;
    c->s.efer = efer;
    cpu_update_mode(c);
    if (pae && reload)
        for (unsigned k = 0; k < ARRAY_LEN(pg.pdpte); k++)
            c->pg.pdpte[k] = pg.pdpte[k];
    if (flush)
        cpu_flush_tlb(c, true);
    trace(c->vm->trace, cpu_mode, "vcpu %u: cr0 %#llx cr4 %#llx efer %#llx", c->v->index,
          (unsigned long long)cr0, (unsigned long long)cr4, (unsigned long long)efer);
}

void cr0_write(struct cpu *c, uint64_t v)
{
    uint64_t old = c->s.cr0, efer = c->s.efer, want = (v & CR0_KEPT) | CR0_ET, diff = old ^ want;

    if (v >> 32 || ((want & CR0_PG) && !(want & CR0_PE)) || ((want & CR0_NW) && !(want & CR0_CD)))
        cpu_raise(c, X_GP, 0);
    if ((diff & want & CR0_PG) && (efer & EFER_LME)) {
        const struct segment *tr = &c->s.tr;

        /* Entering long mode: no 64-bit CS yet, and no 16-bit task. */
        if (!(c->s.cr4 & CR4_PAE) || (c->s.seg[CS].attr & SEG_L) ||
            (!sel_is_null(tr->sel) && !(tr->attr & 8)))
            cpu_raise(c, X_GP, 0);
        efer |= EFER_LMA;
    }
    if (diff & old & CR0_PG) {
        if (c->bits == CPU_64 || (c->s.cr4 & CR4_PCIDE))
            cpu_raise(c, X_GP, 0);
        efer &= ~EFER_LMA;
    }
    take(c, want, c->s.cr4, efer, diff & (CR0_PG | CR0_CD | CR0_NW),
         diff & (CR0_PG | CR0_WP | CR0_PE));
}

void cr3_write(struct cpu *c, uint64_t v, bool keep, enum vector vec, uint32_t err)
{
    struct cpu_state want = { .cr0 = c->s.cr0, .cr3 = v, .cr4 = c->s.cr4, .efer = c->s.efer };
    struct paging pg;
    bool pae = uses_pae(&want);

    if (cpu_long_mode(&c->s) && v >> c->vm->cpuid->maxphys)
        cpu_raise(c, vec, err);
    if (pae && !load_pdptes(c, &want, &pg))
        cpu_raise(c, vec, err);
    c->s.cr3 = v;
    tlbs_switch(&c->tlbs, v & ~0xfffull, pcid_of(&c->s), !keep);
    cpu_update_mode(c);
    if (pae)
        for (unsigned k = 0; k < ARRAY_LEN(pg.pdpte); k++)
            c->pg.pdpte[k] = pg.pdpte[k];
}

static void cr4_write(struct cpu *c, uint64_t v)
{
    static const struct { uint64_t bits; uint8_t feature; } allowed[] = {
        { CR4_VME | CR4_PVI, CPUF_VME },
        { CR4_TSD, CPUF_TSC },
        { CR4_DE, CPUF_DE },
        { CR4_PSE, CPUF_PSE },
        { CR4_PAE, CPUF_PAE },
        { CR4_MCE, CPUF_MCE },
        { CR4_PGE, CPUF_PGE },
        { CR4_PCE, CPUF_FPU },
        { CR4_OSFXSR, CPUF_FXSR },
        { CR4_OSXMMEXCPT, CPUF_SSE },
        { CR4_UMIP, CPUF_UMIP },
        { CR4_FSGSBASE, CPUF_FSGSBASE },
        { CR4_PCIDE, CPUF_PCID },
        { CR4_OSXSAVE, CPUF_XSAVE },
        { CR4_SMEP, CPUF_SMEP },
        { CR4_SMAP, CPUF_SMAP },
    };
    uint64_t mask = 0, diff = c->s.cr4 ^ v;

    for (unsigned k = 0; k < ARRAY_LEN(allowed); k++)
        if (cpuid_has(c->vm->cpuid, allowed[k].feature))
            mask |= allowed[k].bits;
    if (v & ~mask)
        cpu_raise(c, X_GP, 0);
    if (cpu_long_mode(&c->s) && !(v & CR4_PAE))
        cpu_raise(c, X_GP, 0);
    if ((diff & v & CR4_PCIDE) && (!cpu_long_mode(&c->s) || (c->s.cr3 & 0xfff)))
        cpu_raise(c, X_GP, 0);
    take(c, c->s.cr0, v, c->s.efer, diff & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP),
         diff & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP));
    /* Without PCIDs there is one context, and it is number 0's. */
    if (diff & CR4_PCIDE) {
        tlbs_switch(&c->tlbs, c->s.cr3 & ~0xfffull, pcid_of(&c->s), true);
        cpu_update_mode(c);
    }
}

static uint64_t cr8_read(struct cpu *c)
{
    return c->vm->env->get_cr8 ? c->vm->env->get_cr8(c->v) : c->s.cr8;
}

static void cr8_write(struct cpu *c, uint64_t v)
{
    if (v > 15)
        cpu_raise(c, X_GP, 0);
    c->s.cr8 = v;
    c->bt.intr = true;
    if (c->vm->env->set_cr8)
        c->vm->env->set_cr8(c->v, v);
    c->mode_changed = true; /* an interrupt may have become deliverable */
}

static uint64_t cr_read(struct cpu *c, unsigned n)
{
    switch (n) {
    case 0: return c->s.cr0;
    case 2: return c->s.cr2;
    case 3: return c->s.cr3;
    case 4: return c->s.cr4;
    case 8: return cr8_read(c);
    }
    cpu_raise(c, X_UD, 0);
}

static void cr_write(struct cpu *c, unsigned n, uint64_t v)
{
    bool pcide = c->s.cr4 & CR4_PCIDE;

    switch (n) {
    case 0: cr0_write(c, v); return;
    case 2: c->s.cr2 = v; return;
    case 3:
        cr3_write(c, pcide ? v & ~CR3_NOFLUSH : v, pcide && (v & CR3_NOFLUSH), X_GP, 0);
        return;
    case 4: cr4_write(c, v); return;
    case 8: cr8_write(c, v); return;
    }
    cpu_raise(c, X_UD, 0);
}

void sys_mov_cr(struct cpu *c, const struct insn *i)
{
    unsigned size = c->bits == CPU_64 ? 8 : 4;

    need_cpl0(c);
    cpu_fence();
    if (i->op[0].cls == RC_CR)
        cr_write(c, i->op[0].reg, gpr_read(c, i->op[1].reg, size));
    else
        gpr_write(c, i->op[0].reg, size, cr_read(c, i->op[1].reg));
}

/* ---- debug registers ---- */

static void dr_write(struct cpu *c, unsigned n, uint64_t v)
{
    switch (n) {
    case 6: c->s.dr[6] = (v & DR6_KEPT) | DR6_FIXED; return;
    case 7: c->s.dr[7] = (v & DR7_KEPT) | DR7_FIXED; break;
    default: c->s.dr[n] = v;
    }
    /* Breakpoints are checked where the TLB misses. */
    cpu_update_mode(c);
    cpu_flush_tlb(c, true);
}

void sys_mov_dr(struct cpu *c, const struct insn *i)
{
    bool write = i->op[0].cls == RC_DR;
    unsigned size = c->bits == CPU_64 ? 8 : 4, n = i->op[write ? 0 : 1].reg;

    if (n > 7 || ((n == 4 || n == 5) && (c->s.cr4 & CR4_DE)))
        cpu_raise(c, X_UD, 0);
    need_cpl0(c);
    if (n == 4 || n == 5)
        n += 2;
    if (c->s.dr[7] & DR7_GD) {
        c->s.pending_dbg |= DR6_BD;
        cpu_raise(c, X_DB, 0);
    }
    if (!write) {
        gpr_write(c, i->op[0].reg, size, c->s.dr[n]);
        return;
    }

    uint64_t v = gpr_read(c, i->op[1].reg, size);

    if (n >= 6 && v >> 32)
        cpu_raise(c, X_GP, 0);
    dr_write(c, n, v);
}

/* ---- machine status word ---- */

void sys_lmsw(struct cpu *c, const struct insn *i)
{
    need_cpl0(c);
    uint64_t v = op_read(c, i, 0) & (CR0_PE | CR0_MP | CR0_EM | CR0_TS);

    /* LMSW can set PE but not clear it. */
    cr0_write(c, (c->s.cr0 & ~(CR0_MP | CR0_EM | CR0_TS)) | v);
}

void sys_smsw(struct cpu *c, const struct insn *i)
{
    if ((c->s.cr4 & CR4_UMIP) && c->cpl)
        cpu_raise(c, X_GP, 0);
    op_write(c, i, 0, c->s.cr0);
}

void sys_clts(struct cpu *c, const struct insn *i)
{
    need_cpl0(c);
    c->s.cr0 &= ~CR0_TS;
    cpu_update_mode(c);
}

/* ---- invalidation ---- */

/* The next instruction may be mapped elsewhere now, so the running block ends. */
static void invalidated(struct cpu *c)
{
    cpu_fence();
    cpu_update_mode(c);
    c->mode_changed = true;
}

void sys_invlpg(struct cpu *c, const struct insn *i)
{
    uint64_t la = insn_ea(c, i);

    need_cpl0(c);
    if (c->bits != CPU_64)
        la = (uint32_t)(la + c->s.seg[i->mem.seg].base);
    else if (i->mem.seg == FS || i->mem.seg == GS)
        la += c->s.seg[i->mem.seg].base;
    if (!is_canonical(la))
        return;
    tlbs_flush_page(&c->tlbs, la);
    invalidated(c);
}

void sys_invpcid(struct cpu *c, const struct insn *i)
{
    unsigned size = c->bits == CPU_64 ? 8 : 4;
    uint64_t type, pcid, la;

    need_cpl0(c);
    type = gpr_read(c, i->op[0].reg, size);
    uint64_t desc[2];

    lin_read(c, insn_lin(c, i, sizeof(desc), ACCESS_READ), desc, sizeof(desc), PRIV_CPL);
    pcid = desc[0];
    la = desc[1];
    if (type > 3 || pcid >> 12)
        cpu_raise(c, X_GP, 0);
    if (type <= 1 && pcid && !(c->s.cr4 & CR4_PCIDE))
        cpu_raise(c, X_GP, 0);
    switch (type) {
    case 0:
        if (!is_canonical(la))
            cpu_raise(c, X_GP, 0);
        tlbs_flush_page_pcid(&c->tlbs, la, pcid);
        break;
    case 1:
        tlbs_flush_pcid(&c->tlbs, pcid);
        break;
    default: /* 2: all and globals; 3: all but globals, for which dropping more is allowed */
        if (itlb_unmoved(c))
            tlbs_flush_data(&c->tlbs);
        else
            tlbs_flush(&c->tlbs);
    }
    invalidated(c);
}
