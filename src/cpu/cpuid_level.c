/* Named processor models, the levels of the x86-64 psABI, and what a hypervisor below us allows. */
#include <errno.h>
#include <string.h>

#include "cpu/cpuid_priv.h"

/* The lowest level that has an instruction-set extension. OUTSIDE: no level does. System features are not listed: they come
 * with every level. */
enum { OUTSIDE = CPUID_V4 + 1 };

static const struct {
    uint8_t feature, level;
} levels[] = {
    {CPUF_CX16, CPUID_V2},
    {CPUF_LAHF64, CPUID_V2},
    {CPUF_POPCNT, CPUID_V2},
    {CPUF_SSE3, CPUID_V2},
    {CPUF_SSE41, CPUID_V2},
    {CPUF_SSE42, CPUID_V2},
    {CPUF_SSSE3, CPUID_V2},
    {CPUF_AVX, CPUID_V3},
    {CPUF_AVX2, CPUID_V3},
    {CPUF_BMI1, CPUID_V3},
    {CPUF_BMI2, CPUID_V3},
    {CPUF_F16C, CPUID_V3},
    {CPUF_FMA, CPUID_V3},
    {CPUF_LZCNT, CPUID_V3},
    {CPUF_MOVBE, CPUID_V3},
    {CPUF_XSAVE, CPUID_V3},
    {CPUF_AVX512F, CPUID_V4},
    {CPUF_AVX512BW, CPUID_V4},
    {CPUF_AVX512CD, CPUID_V4},
    {CPUF_AVX512DQ, CPUID_V4},
    {CPUF_AVX512VL, CPUID_V4},
    {CPUF_PCLMUL, OUTSIDE},
    {CPUF_AES, OUTSIDE},
    {CPUF_RDRAND, OUTSIDE},
    {CPUF_RDSEED, OUTSIDE},
    {CPUF_ADX, OUTSIDE},
    {CPUF_SHA, OUTSIDE},
    {CPUF_GFNI, OUTSIDE},
    {CPUF_VAES, OUTSIDE},
    {CPUF_VPCLMUL, OUTSIDE},
    {CPUF_AVX512IFMA, OUTSIDE},
    {CPUF_AVX512VBMI, OUTSIDE},
    {CPUF_AVX512VBMI2, OUTSIDE},
    {CPUF_AVX512VNNI, OUTSIDE},
    {CPUF_AVX512BITALG, OUTSIDE},
    {CPUF_AVX512VPOPCNTDQ, OUTSIDE},
    {CPUF_XSAVEOPT, OUTSIDE},
    {CPUF_XSAVEC, OUTSIDE},
    {CPUF_XGETBV1, OUTSIDE},
};

static const char *const names[] = {
    [CPUID_HOST] = "host",
    [CPUID_V2] = "x86-64-v2",
    [CPUID_V3] = "x86-64-v3",
    [CPUID_V4] = "x86-64-v4",
};

/* What belongs to us even where a hypervisor runs the instructions: registers of the APIC and the TSC. */
static const uint8_t always[] = {CPUF_APIC, CPUF_X2APIC, CPUF_TSCDEADLINE, CPUF_TSCADJUST};

/* Registers of leaves outside the table of features that a limit bounds: what the processor says about
 * speculation. */
static const struct {
    uint32_t leaf, sub;
    uint8_t reg;
    uint32_t mask;
} bounded[] = {
    {7, 0, EDX, ~0u},
    {7, 2, EDX, ~0u},
    {0x80000008, 0, EBX, ~0u},
    {0x80000021, 0, EAX, ~0u},
    {0x80000021, 0, ECX, ~0u},
    {0x80000001, 0, EDX, 1u << 22}, /* MMXEXT */
};

int cpuid_level_parse(const char *name, enum cpuid_level *out, struct err *e)
{
    for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
        if (!strcmp(name, names[i])) {
            *out = i;
            return 0;
        }
    }
    return err_set(e, EINVAL, "'%s' is none of host, x86-64-v2, x86-64-v3, x86-64-v4", name);
}

int cpuid_level_apply(struct cpuid_policy *p, enum cpuid_level level, struct err *e)
{
    if (level == CPUID_HOST)
        return 0;
    for (unsigned i = 0; i < ARRAY_LEN(levels); i++) {
        if (levels[i].level > level)
            cpuid_set_feature(p, levels[i].feature, false);
        else if (!cpuid_has(p, levels[i].feature))
            return err_set(e, ENOTSUP, "--cpu %s: there is no %s here", names[level],
                           cpu_feature_name(levels[i].feature));
    }
    return 0;
}

static uint32_t limit_reg(const struct cpuid_limit *l, uint32_t leaf, uint32_t sub, unsigned reg)
{
    for (uint32_t i = 0; i < l->n; i++) {
        const struct cpuid_leaf *x = &l->leaf[i];

        if (x->leaf == leaf && (x->any_subleaf || x->subleaf == sub))
            return reg == EAX ? x->eax : reg == EBX ? x->ebx : reg == ECX ? x->ecx : x->edx;
    }
    return 0;
}

bool cpuid_limit_allows(const struct cpuid_limit *l, enum cpu_feature f)
{
    struct cpuid_place at = cpuid_feature_place(f);

    if (f == CPUF_TSCDEADLINE && l->no_deadline)
        return false;
    if (memchr(always, f, sizeof(always)))
        return true;
    return limit_reg(l, at.leaf, at.sub, at.reg) >> at.bit & 1;
}

void cpuid_limit_rest(struct cpuid_draft *d)
{
    const struct cpuid_limit *l = d->cfg->limit;

    for (unsigned i = 0; i < ARRAY_LEN(bounded); i++) {
        uint32_t *reg = cpuid_leaf_reg(cpuid_draft_leaf(d, bounded[i].leaf, bounded[i].sub),
                                       bounded[i].reg);

        *reg &= limit_reg(l, bounded[i].leaf, bounded[i].sub, bounded[i].reg) | ~bounded[i].mask;
    }
    d->p->arch_capabilities &= l->arch_capabilities;
}

int cpuid_check_limit(const struct cpuid_policy *p, const struct cpuid_limit *limit, struct err *e)
{
    for (unsigned f = 0; f < CPUF_COUNT; f++)
        if (cpuid_has(p, f) && !cpuid_limit_allows(limit, f))
            return err_set(e, EINVAL, "the guest's processor has %s, which is not available here",
                           cpu_feature_name(f));
    for (uint32_t i = 0; i < p->n; i++)
        for (unsigned k = 0; k < ARRAY_LEN(bounded); k++) {
            struct cpuid_leaf l = p->leaf[i];

            if (l.leaf != bounded[k].leaf || l.subleaf != bounded[k].sub)
                continue;
            if (*cpuid_leaf_reg(&l, bounded[k].reg) & bounded[k].mask &
                ~limit_reg(limit, l.leaf, l.subleaf, bounded[k].reg))
                return err_set(e, EINVAL, "bits of CPUID leaf 0x%x are not available here", l.leaf);
        }
    if (p->arch_capabilities & ~limit->arch_capabilities)
        return err_set(e, EINVAL, "the guest's processor claims to be less vulnerable than this one");
    return 0;
}
