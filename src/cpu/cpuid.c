/* Which features a guest gets, and the CPUID instruction itself. */
#include <assert.h>
#include <cpuid.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "cpu/cpuid_priv.h"
#include "cpu/msr.h"

#define FEATURE_ROW(name, leaf, sub, reg, bit) {leaf, sub, reg - 'a', bit},
static const struct cpuid_place features[] = {CPU_FEATURES(FEATURE_ROW)};

static const char *const feature_names[] = {
    [CPUF_FPU] = "fpu",
    [CPUF_VME] = "vme",
    [CPUF_DE] = "de",
    [CPUF_PSE] = "pse",
    [CPUF_TSC] = "tsc",
    [CPUF_MSR] = "msr",
    [CPUF_PAE] = "pae",
    [CPUF_MCE] = "mce",
    [CPUF_CX8] = "cx8",
    [CPUF_APIC] = "apic",
    [CPUF_SEP] = "sep",
    [CPUF_MTRR] = "mtrr",
    [CPUF_PGE] = "pge",
    [CPUF_MCA] = "mca",
    [CPUF_CMOV] = "cmov",
    [CPUF_PAT] = "pat",
    [CPUF_PSE36] = "pse36",
    [CPUF_CLFSH] = "clfsh",
    [CPUF_MMX] = "mmx",
    [CPUF_FXSR] = "fxsr",
    [CPUF_SSE] = "sse",
    [CPUF_SSE2] = "sse2",
    [CPUF_SSE3] = "sse3",
    [CPUF_PCLMUL] = "pclmul",
    [CPUF_SSSE3] = "ssse3",
    [CPUF_FMA] = "fma",
    [CPUF_CX16] = "cx16",
    [CPUF_PCID] = "pcid",
    [CPUF_SSE41] = "sse41",
    [CPUF_SSE42] = "sse42",
    [CPUF_X2APIC] = "x2apic",
    [CPUF_MOVBE] = "movbe",
    [CPUF_POPCNT] = "popcnt",
    [CPUF_TSCDEADLINE] = "tscdeadline",
    [CPUF_AES] = "aes",
    [CPUF_XSAVE] = "xsave",
    [CPUF_AVX] = "avx",
    [CPUF_F16C] = "f16c",
    [CPUF_RDRAND] = "rdrand",
    [CPUF_FSGSBASE] = "fsgsbase",
    [CPUF_TSCADJUST] = "tscadjust",
    [CPUF_BMI1] = "bmi1",
    [CPUF_AVX2] = "avx2",
    [CPUF_SMEP] = "smep",
    [CPUF_BMI2] = "bmi2",
    [CPUF_ERMS] = "erms",
    [CPUF_INVPCID] = "invpcid",
    [CPUF_AVX512F] = "avx512f",
    [CPUF_AVX512DQ] = "avx512dq",
    [CPUF_RDSEED] = "rdseed",
    [CPUF_ADX] = "adx",
    [CPUF_SMAP] = "smap",
    [CPUF_AVX512IFMA] = "avx512ifma",
    [CPUF_CLFLUSHOPT] = "clflushopt",
    [CPUF_CLWB] = "clwb",
    [CPUF_AVX512CD] = "avx512cd",
    [CPUF_SHA] = "sha",
    [CPUF_AVX512BW] = "avx512bw",
    [CPUF_AVX512VL] = "avx512vl",
    [CPUF_AVX512VBMI] = "avx512vbmi",
    [CPUF_UMIP] = "umip",
    [CPUF_AVX512VBMI2] = "avx512vbmi2",
    [CPUF_GFNI] = "gfni",
    [CPUF_VAES] = "vaes",
    [CPUF_VPCLMUL] = "vpclmul",
    [CPUF_AVX512VNNI] = "avx512vnni",
    [CPUF_AVX512BITALG] = "avx512bitalg",
    [CPUF_AVX512VPOPCNTDQ] = "avx512vpopcntdq",
    [CPUF_RDPID] = "rdpid",
    [CPUF_FSRM] = "fsrm",
    [CPUF_XSAVEOPT] = "xsaveopt",
    [CPUF_XSAVEC] = "xsavec",
    [CPUF_XGETBV1] = "xgetbv1",
    [CPUF_LAHF64] = "lahf64",
    [CPUF_LZCNT] = "lzcnt",
    [CPUF_PREFETCHW] = "prefetchw",
    [CPUF_SYSCALL] = "syscall",
    [CPUF_NX] = "nx",
    [CPUF_PDPE1GB] = "pdpe1gb",
    [CPUF_RDTSCP] = "rdtscp",
    [CPUF_LM] = "lm",
};

/* What our engines do themselves, whatever the host has: paging, segmentation, system calls,
 * timers, cache control (which has nothing to act on), and string moves, which the engines turn
 * into host copies. Everything else runs on the host's own unit and follows the host. */
#define OURS(X)                                                                             \
    X(VME)                                                                                  \
    X(DE)                                                                                   \
    X(PSE) X(TSC) X(MSR) X(PAE) X(MCE) X(APIC) X(SEP) X(MTRR) X(PGE) X(MCA) X(PAT) X(PSE36) \
        X(CLFSH) X(PCID) X(X2APIC) X(TSCDEADLINE) X(FSGSBASE) X(TSCADJUST) X(SMEP) X(ERMS)  \
            X(INVPCID) X(SMAP) X(CLFLUSHOPT) X(CLWB) X(UMIP) X(RDPID) X(FSRM) X(LAHF64)     \
                X(PREFETCHW) X(SYSCALL) X(NX) X(PDPE1GB) X(RDTSCP) X(LM)

#define CPUF_ITEM(name) CPUF_##name,
static const uint8_t ours[] = {OURS(CPUF_ITEM)};

/* Without these a host cannot run our engines at all. */
static const uint8_t baseline[] = {
    CPUF_FPU, CPUF_CX8,  CPUF_CMOV, CPUF_MMX,   CPUF_FXSR,
    CPUF_SSE, CPUF_SSE2, CPUF_CX16, CPUF_XSAVE, CPUF_LM,
};

/* `feature` is not offered without `needs`. In an order that lets one pass settle it. */
static const struct {
    uint8_t feature, needs;
} depends[] = {
    {CPUF_SSSE3, CPUF_SSE3},
    {CPUF_SSE41, CPUF_SSSE3},
    {CPUF_SSE42, CPUF_SSE41},
    {CPUF_AVX, CPUF_SSE42},
    {CPUF_FMA, CPUF_AVX},
    {CPUF_F16C, CPUF_AVX},
    {CPUF_AVX2, CPUF_AVX},
    {CPUF_VAES, CPUF_AVX},
    {CPUF_VAES, CPUF_AES},
    {CPUF_VPCLMUL, CPUF_AVX},
    {CPUF_VPCLMUL, CPUF_PCLMUL},
    {CPUF_AVX512F, CPUF_AVX2},
    {CPUF_AVX512F, CPUF_FMA},
    {CPUF_AVX512DQ, CPUF_AVX512F},
    {CPUF_AVX512IFMA, CPUF_AVX512F},
    {CPUF_AVX512CD, CPUF_AVX512F},
    {CPUF_AVX512BW, CPUF_AVX512F},
    {CPUF_AVX512VL, CPUF_AVX512F},
    {CPUF_AVX512VBMI, CPUF_AVX512BW},
    {CPUF_AVX512VBMI2, CPUF_AVX512BW},
    {CPUF_AVX512VNNI, CPUF_AVX512F},
    {CPUF_AVX512BITALG, CPUF_AVX512BW},
    {CPUF_AVX512VPOPCNTDQ, CPUF_AVX512F},
};

void cpuid_host_leaf(const struct cpuid_draft *d, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    if (leaf > (leaf >= 0x80000000 ? d->host_max_ext : d->host_max))
        memset(out, 0, 4 * sizeof(out[0]));
    else
        d->host->query(d->host->ctx, leaf, sub, out);
}

static struct cpuid_leaf *find(const struct cpuid_policy *p, uint32_t leaf, uint32_t sub)
{
    for (uint32_t i = 0; i < p->n; i++)
        if (p->leaf[i].leaf == leaf && (p->leaf[i].any_subleaf || p->leaf[i].subleaf == sub))
            return (struct cpuid_leaf *)&p->leaf[i];
    return NULL;
}

uint32_t *cpuid_leaf_reg(struct cpuid_leaf *l, unsigned reg)
{
    return reg == EAX ? &l->eax : reg == EBX ? &l->ebx : reg == ECX ? &l->ecx : &l->edx;
}

/* Leaves whose answer depends on ECX. */
static bool has_subleaves(uint32_t leaf)
{
    return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x1f ||
           leaf == 0x8000001d;
}

struct cpuid_leaf *cpuid_draft_leaf(struct cpuid_draft *d, uint32_t leaf, uint32_t sub)
{
    struct cpuid_policy *p = d->p;
    struct cpuid_leaf *l = find(p, leaf, sub);

    if (!l) {
        assert(p->n < CPUID_MAX_LEAVES);
        l = &p->leaf[p->n++];
        *l = (struct cpuid_leaf){.leaf = leaf, .subleaf = sub, .any_subleaf = !has_subleaves(leaf)};
    }
    return l;
}

void cpuid_draft_set(struct cpuid_draft *d, uint32_t leaf, uint32_t sub, const uint32_t v[4])
{
    struct cpuid_leaf *l = cpuid_draft_leaf(d, leaf, sub);

    l->eax = v[EAX];
    l->ebx = v[EBX];
    l->ecx = v[ECX];
    l->edx = v[EDX];
}

struct cpuid_place cpuid_feature_place(enum cpu_feature f) { return features[f]; }

void cpuid_set_feature(struct cpuid_policy *p, unsigned f, bool on)
{
    p->feature[f / 64] &= ~BIT(f % 64);
    p->feature[f / 64] |= (uint64_t)on << (f % 64);
}

/* Decides every feature. The host's operating system must have enabled the state a vector feature
 * needs, or its instructions would fault under us. */
static int choose_features(struct cpuid_draft *d, struct err *e)
{
    struct cpuid_policy *p = d->p;
    uint64_t xcr0 = d->host->xcr0;

    for (unsigned f = 0; f < CPUF_COUNT; f++) {
        uint32_t r[4];
        cpuid_host_leaf(d, features[f].leaf, features[f].sub, r);
        cpuid_set_feature(p, f, r[features[f].reg] >> features[f].bit & 1);
    }
    for (unsigned i = 0; i < ARRAY_LEN(baseline); i++)
        if (!cpuid_has(p, baseline[i]))
            return err_set(e, ENOTSUP, "this host's processor lacks %s, which ring3 needs",
                           cpu_feature_name(baseline[i]));
    if ((xcr0 & (XCR0_X87 | XCR0_SSE)) != (XCR0_X87 | XCR0_SSE))
        return err_set(e, ENOTSUP, "this host's kernel does not enable XSAVE, which ring3 needs");
    for (unsigned i = 0; i < ARRAY_LEN(ours); i++)
        cpuid_set_feature(p, ours[i], true);
    for (unsigned f = 0; d->cfg->limit && f < CPUF_COUNT; f++)
        if (!cpuid_limit_allows(d->cfg->limit, f))
            cpuid_set_feature(p, f, false);
    if (!(xcr0 & XCR0_AVX))
        cpuid_set_feature(p, CPUF_AVX, false);
    if ((xcr0 & XCR0_AVX512) != XCR0_AVX512)
        cpuid_set_feature(p, CPUF_AVX512F, false);
    for (unsigned i = 0; i < ARRAY_LEN(depends); i++)
        if (!cpuid_has(p, depends[i].needs))
            cpuid_set_feature(p, depends[i].feature, false);

    int rc = cpuid_level_apply(p, d->cfg->level, e);
    if (rc)
        return rc;
    p->xcr0_mask = XCR0_X87 | XCR0_SSE | (cpuid_has(p, CPUF_AVX) ? XCR0_AVX : 0) |
                   (cpuid_has(p, CPUF_AVX512F) ? XCR0_AVX512 : 0);
    for (unsigned f = 0; f < CPUF_COUNT; f++) {
        struct cpuid_leaf *l = cpuid_draft_leaf(d, features[f].leaf, features[f].sub);
        *cpuid_leaf_reg(l, features[f].reg) |= (uint32_t)cpuid_has(p, f) << features[f].bit;
    }
    return 0;
}

int cpuid_build_from(struct cpuid_policy *p, const struct cpuid_cfg *cfg,
                     const struct cpuid_host *host, struct err *e)
{
    struct cpuid_draft d = {.p = p, .cfg = cfg, .host = host};
    uint32_t r[4];

    if (!cfg->cpus || !cfg->tsc_khz)
        return err_set(e, EINVAL, "a processor model needs a number of CPUs and a TSC rate");
    memset(p, 0, sizeof(*p));
    host->query(host->ctx, 0, 0, r);
    d.host_max = r[EAX];
    d.intel = r[EBX] == signature_INTEL_ebx && r[ECX] == signature_INTEL_ecx;
    p->amd = (r[EBX] == signature_AMD_ebx && r[ECX] == signature_AMD_ecx) ||
             (r[EBX] == 0x6f677948 && r[ECX] == 0x656e6975); /* HygonGenuine */
    host->query(host->ctx, 0x80000000, 0, r);
    d.host_max_ext = r[EAX] >= 0x80000000 ? r[EAX] : 0x80000000;

    int rc = choose_features(&d, e);
    if (rc)
        return rc;
    cpuid_model_build(&d);
    if (cfg->limit)
        cpuid_limit_rest(&d);
    return 0;
}

static void real_query(const void *ctx, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    (void)ctx;
    __cpuid_count(leaf, sub, out[EAX], out[EBX], out[ECX], out[EDX]);
}

int cpuid_build(struct cpuid_policy *p, const struct cpuid_cfg *cfg, struct err *e)
{
    struct cpuid_host host = {.query = real_query};
    uint32_t r[4];

    real_query(NULL, 1, 0, r);
    if (r[ECX] & bit_OSXSAVE) {
        uint32_t lo, hi;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        host.xcr0 = (uint64_t)hi << 32 | lo;
    }
    return cpuid_build_from(p, cfg, &host, e);
}

uint32_t cpuid_signature(const struct cpuid_policy *p) { return find(p, 1, 0)->eax; }

const char *cpu_feature_name(enum cpu_feature f)
{
    return f < CPUF_COUNT ? feature_names[f] : "unknown";
}

/* Bytes of an XSAVE area for the components in mask. */
static uint32_t xsave_bytes(const struct cpuid_policy *p, uint64_t mask, bool compact)
{
    uint32_t end = 512 + 64;

    for (unsigned i = 2; i < 64; i++) {
        if (!(mask >> i & 1))
            continue;
        if (compact) {
            if (find(p, 0xd, i)->ecx & 2)
                end = (uint32_t)ALIGN_UP(end, 64);
            end += p->xsave_size[i];
        } else {
            end = MAX(end, p->xsave_off[i] + p->xsave_size[i]);
        }
    }
    return end;
}

/* Which leaf answers for one that does not exist (SDM vol. 2 CPUID: the highest basic leaf; APM
 * vol. 3 appendix E: zeros). */
static const struct cpuid_leaf *out_of_range(const struct cpuid_policy *p, uint32_t *leaf,
                                             uint32_t sub)
{
    uint32_t max = find(p, 0, 0)->eax, max_ext = find(p, 0x80000000, 0)->eax;

    if (p->amd || *leaf <= max || (*leaf >= 0x80000000 && *leaf <= max_ext) ||
        (*leaf >= 0x40000000 && *leaf < 0x50000000))
        return NULL;
    *leaf = max;
    return find(p, max, sub);
}

void cpuid_query(const struct cpuid_policy *p, const struct cpu_state *s, uint32_t apic_id,
                 bool apic_enabled, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct cpuid_leaf *l = find(p, leaf, subleaf);

    if (!l)
        l = out_of_range(p, &leaf, subleaf);
    out[EAX] = l ? l->eax : 0;
    out[EBX] = l ? l->ebx : 0;
    out[ECX] = l ? l->ecx : 0;
    out[EDX] = l ? l->edx : 0;

    switch (leaf) {
    case 1:
        out[EBX] |= apic_id << 24;
        if (s->cr4 & CR4_OSXSAVE)
            out[ECX] |= bit_OSXSAVE;
        if (!apic_enabled)
            out[EDX] &= ~(1u << 9);
        break;
    case 0xb:
    case 0x1f:
        if (!find(p, leaf, 0))
            break;
        if (!l)
            out[ECX] = subleaf & 0xff;
        out[EDX] = apic_id;
        break;
    case 0xd:
        if (subleaf == 0)
            out[EBX] = xsave_bytes(p, s->xcr0 & p->xcr0_mask, false);
        else if (subleaf == 1 && cpuid_has(p, CPUF_XSAVEC))
            out[EBX] = xsave_bytes(p, s->xcr0 & p->xcr0_mask, true);
        break;
    case 0x80000001:
        /* Intel shows SYSCALL in 64-bit mode only. */
        if (!p->amd && cpu_code_bits(s) != CPU_64)
            out[EDX] &= ~(1u << 11);
        else if (p->amd && !apic_enabled)
            out[EDX] &= ~(1u << 9);
        break;
    case 0x8000001e:
        if (l) {
            out[EAX] = apic_id;
            out[EBX] |= apic_id & 0xff;
        }
        break;
    default:
        break;
    }
}

#define CR4_BIT(feature, mask) (cpuid_has(p, CPUF_##feature) ? (mask) : 0)

uint64_t cpuid_cr4_mask(const struct cpuid_policy *p)
{
    return CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_BIT(VME, CR4_VME | CR4_PVI) |
           CR4_BIT(TSC, CR4_TSD) | CR4_BIT(DE, CR4_DE) | CR4_BIT(PSE, CR4_PSE) |
           CR4_BIT(PAE, CR4_PAE) | CR4_BIT(MCE, CR4_MCE) | CR4_BIT(PGE, CR4_PGE) |
           CR4_BIT(UMIP, CR4_UMIP) | CR4_BIT(FSGSBASE, CR4_FSGSBASE) | CR4_BIT(PCID, CR4_PCIDE) |
           CR4_BIT(XSAVE, CR4_OSXSAVE) | CR4_BIT(SMEP, CR4_SMEP) | CR4_BIT(SMAP, CR4_SMAP);
}

uint64_t cpuid_efer_mask(const struct cpuid_policy *p)
{
    const struct cpuid_leaf *l = find(p, 0x80000021, 0);

    return (cpuid_has(p, CPUF_SYSCALL) ? EFER_SCE : 0) | (cpuid_has(p, CPUF_NX) ? EFER_NXE : 0) |
           (cpuid_has(p, CPUF_LM) ? EFER_LME | EFER_LMA : 0) |
           (l && (l->eax & BIT(8)) ? EFER_AUTOIBRS : 0);
}

int cpuid_check_state(const struct cpuid_policy *p, const struct cpu_state *s, struct err *e)
{
    uint64_t above = ~(BIT(p->maxphys) - 1);
    const struct {
        const char *name;
        uint64_t v, reserved;
    } check[] = {
        {"cr3", s->cr3, above},
        {"cr4", s->cr4, ~cpuid_cr4_mask(p)},
        {"efer", s->efer, ~cpuid_efer_mask(p)},
        {"xcr0", s->xcr0, ~p->xcr0_mask},
    };

    for (unsigned i = 0; i < ARRAY_LEN(check); i++)
        if (check[i].v & check[i].reserved)
            return err_set(e, EINVAL, "cpu state: %s 0x%" PRIx64 " needs what this processor lacks",
                           check[i].name, check[i].v);
    for (unsigned i = 0; i < ARRAY_LEN(s->pdpte) && s->pdptes_valid; i++)
        if ((s->pdpte[i] & 1) && (s->pdpte[i] & above))
            return err_set(e, EINVAL, "cpu state: PDPTE 0x%" PRIx64 " is beyond %u address bits",
                           s->pdpte[i], p->maxphys);
    for (unsigned i = 0; i < ARRAY_LEN(s->mtrr_var); i++)
        if (s->mtrr_var[i] & above)
            return err_set(e, EINVAL, "cpu state: MTRR 0x%" PRIx64 " is beyond %u address bits",
                           s->mtrr_var[i], p->maxphys);
    return 0;
}
