/* The table of MSRs and their rules. */
#include <errno.h>

#include "cpu/msr.h"

enum rule {
    PLAIN,     /* setting a bit outside `valid` is #GP */
    TRUNCATED, /* bits outside `valid` are ignored and read as 0 */
    CANONICAL, /* an address */
    TYPES,     /* fixed-range MTRR: eight memory types */
    PAT,       /* the same and UC- */
    MTRR_BASE,
    MTRR_MASK,
    MTRR_DEF,
    CONSTANT, /* reads as `valid`; any write is #GP */
    IGNORED,  /* reads as `valid`; writes are dropped */
    ZERO,     /* reads as 0; writing anything else is #GP */
    COMMAND,  /* write-only; bits outside `valid` are #GP */
    RULE_MISC_ENABLE,
    RULE_EFER,
    RULE_TSC,
    RULE_TSC_ADJUST,
    RULE_ARCH_CAPABILITIES,
};

enum vendor { BOTH, INTEL, AMD };

struct row {
    uint32_t first;
    uint8_t count; /* a run of registers with one rule */
    uint8_t rule;
    uint8_t vendor;
    uint8_t step; /* between their indices, and their fields in units of 8 bytes; 0 means 1 */
    size_t off;   /* of the first one's field in cpu_state */
    uint64_t valid;
};

#define AT(m) offsetof(struct cpu_state, m)
#define ANY (~0ull)
#define LOW32 0xffffffffull
#define MC_BANKS 4

static const struct row rows[] = {
    {0x0, 2, ZERO, BOTH, 0, 0, 0}, /* P5_MC_ADDR, P5_MC_TYPE */
    {MSR_TSC, 1, RULE_TSC, BOTH, 0, 0, 0},
    {0x17, 1, CONSTANT, INTEL, 0, 0, 0}, /* IA32_PLATFORM_ID */
    {0x2a, 1, IGNORED, INTEL, 0, 0, 0},  /* EBL_CR_POWERON */
    {0x3a, 1, CONSTANT, INTEL, 0, 0, 1}, /* IA32_FEATURE_CONTROL: locked */
    {0x3b, 1, RULE_TSC_ADJUST, BOTH, 0, 0, 0},
    {MSR_SPEC_CTRL, 1, PLAIN, INTEL, 0, AT(spec_ctrl), MSR_SPEC_CTRL_DEFINED},
    {MSR_SPEC_CTRL, 1, PLAIN, AMD, 0, AT(spec_ctrl), BIT(0)},
    {MSR_PRED_CMD, 1, COMMAND, INTEL, 0, 0, BIT(0)},
    {MSR_PRED_CMD, 1, COMMAND, AMD, 0, 0, BIT(0) | BIT(7)},
    {0x79, 1, COMMAND, INTEL, 0, 0, ANY},    /* IA32_BIOS_UPDT_TRIG */
    {0x8b, 1, IGNORED, BOTH, 0, 0, BIT(32)}, /* microcode revision */
    {0xce, 1, CONSTANT, INTEL, 0, 0, 0},     /* PLATFORM_INFO */
    {0xfe, 1, CONSTANT, BOTH, 0, 0, MSR_MTRRCAP},
    {0x10a, 1, RULE_ARCH_CAPABILITIES, INTEL, 0, 0, 0},
    {0x140, 1, ZERO, INTEL, 0, 0, 0}, /* MISC_FEATURES_ENABLES */
    {MSR_SYSENTER_CS, 1, TRUNCATED, BOTH, 0, AT(sysenter_cs), LOW32},
    {MSR_SYSENTER_ESP, 1, CANONICAL, INTEL, 0, AT(sysenter_esp), 0},
    {MSR_SYSENTER_EIP, 1, CANONICAL, INTEL, 0, AT(sysenter_eip), 0},
    {MSR_SYSENTER_ESP, 1, TRUNCATED, AMD, 0, AT(sysenter_esp), LOW32}, /* it has no SYSENTER in long mode */
    {MSR_SYSENTER_EIP, 1, TRUNCATED, AMD, 0, AT(sysenter_eip), LOW32},
    {0x179, 1, CONSTANT, BOTH, 0, 0, MC_BANKS}, /* IA32_MCG_CAP */
    {0x17a, 1, PLAIN, BOTH, 0, AT(mcg_status), 7},
    {0x1a0, 1, RULE_MISC_ENABLE, INTEL, 0, AT(misc_enable), MSR_MISC_ENABLE_DEFINED},
    {0x1d9, 1, PLAIN, BOTH, 0, AT(debugctl), MSR_DEBUGCTL_DEFINED},
    {0x1db, 4, CONSTANT, AMD, 0, 0, 0}, /* last branch and exception */
    {0x200, 8, MTRR_BASE, BOTH, 2, AT(mtrr_var[0]), 0},
    {0x201, 8, MTRR_MASK, BOTH, 2, AT(mtrr_var[1]), 0},
    {0x250, 1, TYPES, BOTH, 0, AT(mtrr_fixed[0]), 0},
    {0x258, 2, TYPES, BOTH, 0, AT(mtrr_fixed[1]), 0},
    {0x268, 8, TYPES, BOTH, 0, AT(mtrr_fixed[3]), 0},
    {MSR_PAT, 1, PAT, BOTH, 0, AT(pat), 0},
    {0x2ff, 1, MTRR_DEF, BOTH, 0, AT(mtrr_def), MSR_MTRR_DEF_DEFINED},
    /* machine-check banks: present, and nothing ever happens there */
    {0x400, MC_BANKS, IGNORED, BOTH, 4, 0, 0}, /* MCi_CTL */
    {0x401, MC_BANKS, ZERO, BOTH, 4, 0, 0},    /* MCi_STATUS */
    {0x402, MC_BANKS, ZERO, BOTH, 4, 0, 0},    /* MCi_ADDR */
    {0x403, MC_BANKS, ZERO, BOTH, 4, 0, 0},    /* MCi_MISC */
    {MSR_EFER, 1, RULE_EFER, BOTH, 0, AT(efer), 0},
    {MSR_STAR, 1, PLAIN, BOTH, 0, AT(star), ANY},
    {MSR_LSTAR, 1, CANONICAL, BOTH, 0, AT(lstar), 0},
    {MSR_CSTAR, 1, CANONICAL, BOTH, 0, AT(cstar), 0},
    {MSR_SFMASK, 1, TRUNCATED, BOTH, 0, AT(sfmask), LOW32},
    {MSR_FS_BASE, 1, CANONICAL, BOTH, 0, AT(seg[FS].base), 0},
    {MSR_GS_BASE, 1, CANONICAL, BOTH, 0, AT(seg[GS].base), 0},
    {MSR_KERNEL_GS_BASE, 1, CANONICAL, BOTH, 0, AT(kernel_gs_base), 0},
    {MSR_TSC_AUX, 1, PLAIN, INTEL, 0, AT(tsc_aux), LOW32},
    {MSR_TSC_AUX, 1, TRUNCATED, AMD, 0, AT(tsc_aux), LOW32},
    {0xc0010010, 1, IGNORED, AMD, 0, 0, 0},       /* SYSCFG */
    {0xc0010015, 1, IGNORED, AMD, 0, 0, BIT(24)}, /* HWCR: TSC counts at P0 */
    {0xc001001a, 1, IGNORED, AMD, 0, 0, 0},       /* TOP_MEM */
    {0xc001001d, 1, IGNORED, AMD, 0, 0, 0},       /* TOP_MEM2 */
    {0xc001001f, 1, IGNORED, AMD, 0, 0, 0},       /* NB_CFG */
    {0xc0010020, 1, COMMAND, AMD, 0, 0, ANY},     /* PATCH_LOADER */
    {0xc0010055, 1, IGNORED, AMD, 0, 0, 0},       /* interrupt pending message */
    {0xc0010058, 1, CONSTANT, AMD, 0, 0, 0},      /* MMIO configuration base: off */
    {0xc0011021, 2, IGNORED, AMD, 0, 0, 0},       /* IC_CFG, DC_CFG */
    {0xc0011029, 1, IGNORED, AMD, 0, 0, BIT(1)},  /* DE_CFG: LFENCE serialises */
    {0xc001102a, 1, IGNORED, AMD, 0, 0, 0},       /* BU_CFG2 */
};

static const struct row *find(const struct cpuid_policy *p, uint32_t msr, uint32_t *nth)
{
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const struct row *r = &rows[i];
        uint32_t step = r->step ? r->step : 1, d = msr - r->first;
        if (d % step == 0 && d / step < r->count &&
            (r->vendor == BOTH || (r->vendor == AMD) == p->amd)) {
            *nth = d;
            return r;
        }
    }
    return NULL;
}

bool msr_pat_valid(uint64_t v)
{
    for (unsigned b = 0; b < 64; b += 8) {
        unsigned t = v >> b & 0xff;
        if (t != 7 && !msr_mtrr_type(t))
            return false;
    }
    return true;
}

bool msr_mtrr_types_valid(uint64_t v)
{
    for (unsigned b = 0; b < 64; b += 8)
        if (!msr_mtrr_type(v >> b & 0xff))
            return false;
    return true;
}

int msr_read(const struct cpu_state *s, const struct cpuid_policy *p, uint32_t msr, uint64_t tsc,
             uint64_t *out)
{
    uint32_t nth;
    const struct row *r = find(p, msr, &nth);

    if (!r)
        return -ENOENT;
    switch (r->rule) {
    case CONSTANT:
    case IGNORED:
        *out = r->valid;
        return 0;
    case ZERO:
        *out = 0;
        return 0;
    case COMMAND:
        return -EINVAL;
    case RULE_TSC:
        *out = tsc + s->tsc_offset;
        return 0;
    case RULE_TSC_ADJUST:
        *out = s->tsc_adjust;
        return 0;
    case RULE_ARCH_CAPABILITIES:
        *out = p->arch_capabilities;
        return 0;
    default:
        *out = *(const uint64_t *)((const char *)s + r->off + nth * 8);
        return 0;
    }
}

static int write_efer(struct cpu_state *s, const struct cpuid_policy *p, uint64_t v)
{
    if (v & ~cpuid_efer_mask(p))
        return -EINVAL;
    if (((v ^ s->efer) & EFER_LME) && (s->cr0 & CR0_PG))
        return -EINVAL;
    s->efer = (v & ~EFER_LMA) | (s->efer & EFER_LMA);
    return 0;
}

/* May v be written under this rule? Only rules that store it. */
static bool acceptable(const struct row *r, const struct cpuid_policy *p, uint64_t old, uint64_t v)
{
    uint64_t above = ~(BIT(p->maxphys) - 1);

    switch (r->rule) {
    case PLAIN:
        return !(v & ~r->valid);
    case TRUNCATED:
        return true;
    case CANONICAL:
        return msr_canonical(v);
    case TYPES:
        return msr_mtrr_types_valid(v);
    case PAT:
        return msr_pat_valid(v);
    case MTRR_BASE:
        return !(v & (above | 0xf00)) && msr_mtrr_type(v & 0xff);
    case MTRR_MASK:
        return !(v & (above | 0x7ff));
    case MTRR_DEF:
        return !(v & ~r->valid) && msr_mtrr_type(v & 0xff);
    case RULE_MISC_ENABLE: /* what is missing (BTS, PEBS) cannot be made to exist */
        return !(v & ~r->valid) && !((v ^ old) & (BIT(11) | BIT(12)));
    default:
        return false;
    }
}

int msr_write(struct cpu_state *s, const struct cpuid_policy *p, uint32_t msr, uint64_t tsc,
              uint64_t v)
{
    uint32_t nth;
    const struct row *r = find(p, msr, &nth);

    if (!r)
        return -ENOENT;
    switch (r->rule) {
    case IGNORED:
        return 0;
    case ZERO:
        return v ? -EINVAL : 0;
    case COMMAND:
        return v & ~r->valid ? -EINVAL : 0;
    case CONSTANT:
    case RULE_ARCH_CAPABILITIES:
        return -EINVAL;
    case RULE_EFER:
        return write_efer(s, p, v);
    case RULE_TSC: /* moves TSC_ADJUST by as much (SDM vol. 3 §18.17.3) */
        s->tsc_adjust += v - (tsc + s->tsc_offset);
        s->tsc_offset = v - tsc;
        return 0;
    case RULE_TSC_ADJUST:
        s->tsc_offset += v - s->tsc_adjust;
        s->tsc_adjust = v;
        return 0;
    default:
        break;
    }
    uint64_t *at = (uint64_t *)((char *)s + r->off + nth * 8);
    if (!acceptable(r, p, *at, v))
        return -EINVAL;
    *at = r->rule == TRUNCATED ? v & r->valid : v;
    return 0;
}
