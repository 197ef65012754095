/*
 * Whether a vector instruction may run: CR0, CR4 and XCR0 (SDM vol. 2 §2.4 to 2.8, exception
 * classes; vol. 3 table 14-1). CPUID is the decoder's caller's matter.
 */
#include "engine/interp/simd.h"

static bool uses(const struct insn *i, enum reg_class cls)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_REG && i->op[n].cls == cls)
            return true;
    return false;
}

void simd_avail_slow(struct cpu *c, const struct insn *i)
{
    const struct cpu_state *s = &c->s;
    uint32_t f = i->row->flags;

    if (i->prefix & (PFX_VEX | PFX_EVEX)) {
        uint64_t need = XCR0_SSE | XCR0_AVX | (f & IF_AVX512 ? XCR0_AVX512 : 0);
        if (cpu_real(s) || cpu_v86(s) || !(s->cr4 & CR4_OSXSAVE) || (s->xcr0 & need) != need)
            cpu_raise(c, X_UD, 0);
    } else {
        if (s->cr0 & CR0_EM)
            cpu_raise(c, X_UD, 0);
        if ((!(f & IF_MMX) || uses(i, RC_VEC)) && !(s->cr4 & CR4_OSFXSR))
            cpu_raise(c, X_UD, 0);
    }
    if (s->cr0 & CR0_TS)
        cpu_raise(c, X_NM, 0);
    /* CVTPI2PS and CVTPI2PD from memory have nothing to do with the x87 registers. */
    if ((f & IF_MMX) && (!(f & IF_SSE) || uses(i, RC_MMX)))
        x87_check_pending(c);
}
