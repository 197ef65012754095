/*
 * Is a cpu_state one that a processor can be in? The state may come from a hostile snapshot, so
 * everything an engine takes for granted is checked here: consistent modes, canonical addresses
 * where the hardware keeps them canonical, reserved bits. The rules follow those of VM entry on
 * guest state (SDM vol. 3 §27.3.1), which exist for the same reason.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/err.h"
#include "cpu/msr.h"
#include "cpu/paging.h"
#include "cpu/state.h"

#define RFLAGS_DEFINED                                                                     \
    (FL_R1 | FL_STATUS | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | \
     FL_VIF | FL_VIP | FL_ID)
#define CR0_DEFINED                                                                            \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | \
     CR0_PG)
#define CR4_DEFINED                                                                               \
    (CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE |     \
     CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | \
     CR4_SMAP)
#define EFER_DEFINED (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_FFXSR | EFER_AUTOIBRS)
#define ATTR_DEFINED                                                                     \
    (SEG_TYPE | SEG_S | 3u << SEG_DPL_SHIFT | SEG_P | SEG_AVL | SEG_L | SEG_DB | SEG_G | \
     SEG_UNUSABLE)
#define PENDING_DBG_DEFINED 0xe00full /* B0-B3, BD, BS, BT */

static int bad(struct err *e, const char *field, uint64_t v)
{
    return err_set(e, EINVAL, "cpu state: %s 0x%" PRIx64 " is not possible", field, v);
}

/* Fields whose forbidden bits do not depend on anything else. */
#define PLAIN(m, zero, one)                          \
    {                                                \
#m, offsetof(struct cpu_state, m), zero, one \
    }
static const struct {
    const char *name;
    size_t off;
    uint64_t zero, one; /* bits that must be 0 and 1 */
} plain[] = {
    PLAIN(rflags, ~RFLAGS_DEFINED, FL_R1),
    PLAIN(cr0, ~CR0_DEFINED, CR0_ET),
    PLAIN(cr3, ~0ull << 52, 0),
    PLAIN(cr4, ~CR4_DEFINED, 0),
    PLAIN(cr8, ~0xfull, 0),
    PLAIN(dr[4], ~0ull, 0),
    PLAIN(dr[5], ~0ull, 0),
    PLAIN(dr[6], ~(uint64_t)(DR6_FIXED | 0xe00f), DR6_FIXED),
    PLAIN(dr[7], ~0xffff27ffull, DR7_FIXED),
    PLAIN(xcr0, ~(XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512), XCR0_X87),
    PLAIN(xss, ~0ull, 0),
    PLAIN(efer, ~EFER_DEFINED, 0),
    PLAIN(sfmask, ~0xffffffffull, 0),
    PLAIN(tsc_aux, ~0xffffffffull, 0),
    PLAIN(sysenter_cs, ~0xffffffffull, 0),
    PLAIN(misc_enable, ~MSR_MISC_ENABLE_DEFINED, 0),
    PLAIN(spec_ctrl, ~MSR_SPEC_CTRL_DEFINED, 0),
    PLAIN(debugctl, ~MSR_DEBUGCTL_DEFINED, 0),
    PLAIN(mcg_status, ~7ull, 0),
    PLAIN(pending_dbg, ~PENDING_DBG_DEFINED, 0),
};

#define CANON(m)                          \
    {                                     \
#m, offsetof(struct cpu_state, m) \
    }
static const struct {
    const char *name;
    size_t off;
} canonical[] = {
    CANON(seg[FS].base),   CANON(seg[GS].base), CANON(ldtr.base),    CANON(tr.base),
    CANON(gdtr.base),      CANON(idtr.base),    CANON(lstar),        CANON(cstar),
    CANON(kernel_gs_base), CANON(sysenter_esp), CANON(sysenter_eip),
};

static uint64_t field(const struct cpu_state *s, size_t off)
{
    return *(const uint64_t *)((const char *)s + off);
}

static int check_plain(const struct cpu_state *s, struct err *e)
{
    for (size_t i = 0; i < ARRAY_LEN(plain); i++) {
        uint64_t v = field(s, plain[i].off);
        if ((v & plain[i].zero) || (v & plain[i].one) != plain[i].one)
            return bad(e, plain[i].name, v);
    }
    for (size_t i = 0; i < ARRAY_LEN(canonical); i++) {
        uint64_t v = field(s, canonical[i].off);
        if (!msr_canonical(v))
            return bad(e, canonical[i].name, v);
    }
    return 0;
}

static int check_modes(const struct cpu_state *s, struct err *e)
{
    bool lma = s->efer & EFER_LMA;

    if ((s->cr0 & CR0_PG) && !(s->cr0 & CR0_PE))
        return bad(e, "cr0 (PG without PE)", s->cr0);
    if ((s->cr0 & CR0_NW) && !(s->cr0 & CR0_CD))
        return bad(e, "cr0 (NW without CD)", s->cr0);
    if (lma != ((s->efer & EFER_LME) && (s->cr0 & CR0_PG)))
        return bad(e, "efer (LMA is not LME and CR0.PG)", s->efer);
    if (lma && !(s->cr4 & CR4_PAE))
        return bad(e, "cr4 (long mode without PAE)", s->cr4);
    if (!lma && (s->cr4 & CR4_PCIDE))
        return bad(e, "cr4 (PCIDE outside long mode)", s->cr4);
    if ((s->rflags & FL_VM) && (cpu_real(s) || lma))
        return bad(e, "rflags (VM outside protected mode)", s->rflags);
    if ((s->xcr0 & XCR0_AVX) && !(s->xcr0 & XCR0_SSE))
        return bad(e, "xcr0 (AVX without SSE)", s->xcr0);
    if ((s->xcr0 & XCR0_AVX512) &&
        ((s->xcr0 & XCR0_AVX512) != XCR0_AVX512 || !(s->xcr0 & XCR0_AVX)))
        return bad(e, "xcr0 (AVX-512 in part)", s->xcr0);
    return 0;
}

static int check_limit(const struct segment *g, const char *name, struct err *e)
{
    if (g->attr & SEG_UNUSABLE)
        return 0;
    if (((g->limit & 0xfff) != 0xfff && (g->attr & SEG_G)) ||
        ((g->limit >> 20) && !(g->attr & SEG_G)))
        return err_set(e, EINVAL, "cpu state: %s limit 0x%x does not fit its granularity", name,
                       g->limit);
    return 0;
}

static int bad_attr(const char *name, const struct segment *g, struct err *e)
{
    return err_set(e, EINVAL, "cpu state: %s attributes 0x%x are not possible", name, g->attr);
}

static int check_cs_ss(const struct cpu_state *s, struct err *e)
{
    const struct segment *cs = &s->seg[CS], *ss = &s->seg[SS];
    unsigned cpl = cpu_cpl(s), dpl = SEG_DPL(cs->attr);

    if (cpu_v86(s))
        return 0;
    if (cpu_real(s)) /* MOV CR0 needs CPL 0, and loads in real mode give DPL 0 */
        return dpl ? bad_attr("cs", cs, e) : SEG_DPL(ss->attr) ? bad_attr("ss", ss, e) : 0;

    if ((cs->attr & (SEG_UNUSABLE | SEG_S | SEG_P)) != (SEG_S | SEG_P))
        return bad_attr("cs", cs, e);
    if (cs->attr & SEG_CODE) {
        bool conforming = cs->attr & SEG_EXPDOWN;
        if (conforming ? dpl > cpl : dpl != cpl)
            return bad_attr("cs", cs, e);
        if (cpu_long_mode(s) && (cs->attr & SEG_L) && (cs->attr & SEG_DB))
            return bad_attr("cs", cs, e);
    } else if (cpl || dpl || !(cs->attr & SEG_WRITE) || cpu_long_mode(s)) {
        return bad_attr("cs", cs, e); /* data only just after CR0.PE was set */
    }

    if (ss->attr & SEG_UNUSABLE) {
        if (!cpu_long_mode(s))
            return bad_attr("ss", ss, e);
    } else if ((ss->attr & (SEG_S | SEG_P | SEG_CODE | SEG_WRITE)) != (SEG_S | SEG_P | SEG_WRITE)) {
        return bad_attr("ss", ss, e);
    }
    return 0;
}

static int check_system_segments(const struct cpu_state *s, struct err *e)
{
    unsigned type = s->tr.attr & SEG_TYPE;

    if ((s->tr.attr & (SEG_UNUSABLE | SEG_S | SEG_P)) != SEG_P ||
        (type != 11 && (type != 3 || cpu_long_mode(s))))
        return bad_attr("tr", &s->tr, e);
    if (!(s->ldtr.attr & SEG_UNUSABLE) &&
        ((s->ldtr.attr & (SEG_S | SEG_P)) != SEG_P || (s->ldtr.attr & SEG_TYPE) != 2))
        return bad_attr("ldtr", &s->ldtr, e);
    return 0;
}

static int check_segments(const struct cpu_state *s, struct err *e)
{
    static const char *const name[] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};
    const struct segment *all[] = {&s->seg[ES], &s->seg[CS], &s->seg[SS], &s->seg[DS],
                                   &s->seg[FS], &s->seg[GS], &s->ldtr,    &s->tr};

    for (unsigned i = 0; i < ARRAY_LEN(all); i++) {
        const struct segment *g = all[i];
        if (g->attr & ~ATTR_DEFINED)
            return bad_attr(name[i], g, e);
        int rc = check_limit(g, name[i], e);
        if (rc)
            return rc;
        if (i >= SREG_COUNT)
            continue;
        if (i != FS && i != GS && g->base >> 32)
            return bad(e, "segment base", g->base);
        if (cpu_v86(s)) {
            if (g->base != (uint64_t)g->sel << 4 || g->limit != 0xffff)
                return err_set(e, EINVAL, "cpu state: %s is not a virtual-8086 segment", name[i]);
        } else if (!cpu_real(s) && !(g->attr & SEG_UNUSABLE) &&
                   ((g->attr & (SEG_S | SEG_P)) != (SEG_S | SEG_P) ||
                    (i != CS && (g->attr & SEG_CODE) && !(g->attr & SEG_WRITE)))) {
            return bad_attr(name[i], g, e); /* not present, or code that cannot be read */
        }
    }
    int rc = check_cs_ss(s, e);
    return rc ? rc : check_system_segments(s, e);
}

static int check_rip(const struct cpu_state *s, struct err *e)
{
    /* One past the last canonical address is where straight-line code may have arrived. */
    if (cpu_code_bits(s) == CPU_64) {
        if (s->rip >> 48 != 0 && s->rip >> 48 != 0xffff)
            return bad(e, "rip", s->rip);
    } else if (s->rip >> 32) {
        return bad(e, "rip", s->rip);
    }
    return 0;
}

static int check_mtrr(const struct cpu_state *s, struct err *e)
{
    if ((s->mtrr_def & ~MSR_MTRR_DEF_DEFINED) || !msr_mtrr_type(s->mtrr_def & 0xff))
        return bad(e, "mtrr_def", s->mtrr_def);
    if (!msr_pat_valid(s->pat))
        return bad(e, "pat", s->pat);
    for (unsigned i = 0; i < ARRAY_LEN(s->mtrr_fixed); i++)
        if (!msr_mtrr_types_valid(s->mtrr_fixed[i]))
            return bad(e, "mtrr_fixed", s->mtrr_fixed[i]);
    for (unsigned i = 0; i < ARRAY_LEN(s->mtrr_var); i += 2) {
        uint64_t base = s->mtrr_var[i], mask = s->mtrr_var[i + 1];
        if (base >> 52 || (base & 0xf00) || !msr_mtrr_type(base & 0xff))
            return bad(e, "mtrr_var base", base);
        if (mask >> 52 || (mask & 0x7ff))
            return bad(e, "mtrr_var mask", mask);
    }
    return 0;
}

/* What MOV to CR3 would have refused (SDM vol. 3 §4.4.1). */
static int check_pdptes(const struct cpu_state *s, struct err *e)
{
    if (s->pdptes_valid > 1 || (s->pdptes_valid && !cpu_pae(s)))
        return bad(e, "pdptes_valid", s->pdptes_valid);
    for (unsigned i = 0; i < ARRAY_LEN(s->pdpte) && s->pdptes_valid; i++)
        if ((s->pdpte[i] & PTE_P) && (s->pdpte[i] & PDPTE_RSVD))
            return bad(e, "pdpte", s->pdpte[i]);
    return 0;
}

static int check_rest(const struct cpu_state *s, struct err *e)
{
    const struct {
        const char *name;
        uint8_t v;
    } flag[] = {
        {"sti_shadow", s->sti_shadow},     {"mov_ss_shadow", s->mov_ss_shadow},
        {"nmi_blocked", s->nmi_blocked},   {"nmi_pending", s->nmi_pending},
        {"init_pending", s->init_pending}, {"sipi_pending", s->sipi_pending},
    };

    for (unsigned i = 0; i < ARRAY_LEN(flag); i++)
        if (flag[i].v > 1)
            return bad(e, flag[i].name, flag[i].v);
    if (s->activity > CPU_SHUTDOWN)
        return bad(e, "activity", s->activity);
    if (s->activity == CPU_HALTED && cpu_cpl(s))
        return bad(e, "activity (halted outside ring 0)", s->activity);
    if (s->mxcsr & ~0xffffu)
        return bad(e, "mxcsr", s->mxcsr);
    if (s->x87.fop > 0x7ff)
        return bad(e, "x87.fop", s->x87.fop);
    for (unsigned i = 0; i < 8; i++)
        for (unsigned b = 10; b < 16; b++)
            if (s->x87.st[i][b])
                return bad(e, "x87.st (bytes above 80 bits)", s->x87.st[i][b]);
    return 0;
}

int cpu_state_validate(const struct cpu_state *s, struct err *e)
{
    int (*const check[])(const struct cpu_state *, struct err *) = {
        check_plain, check_modes, check_segments, check_rip, check_mtrr, check_pdptes, check_rest,
    };

    for (unsigned i = 0; i < ARRAY_LEN(check); i++) {
        int rc = check[i](s, e);
        if (rc)
            return rc;
    }
    return 0;
}
