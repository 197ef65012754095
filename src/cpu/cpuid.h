/*
 * What the guest's CPUID says. A policy is a table of leaves computed once per machine from what the
 * host has and what we support, and then constant; engines and MSR code ask it which features exist,
 * so CPUID, #UD and reserved control-register bits can never disagree. Read-only after cpuid_build;
 * any thread.
 */
#ifndef RING3_CPU_CPUID_H
#define RING3_CPU_CPUID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "cpu/state.h"

struct cpuid_leaf {
    uint32_t leaf, subleaf;
    uint32_t eax, ebx, ecx, edx;
    bool any_subleaf; /* same answer for every ECX */
};

#define CPUID_MAX_LEAVES 96

/* Every CPU feature that decoding or execution depends on: X(name, leaf, subleaf, register, bit).
 * `name` is what insn tables and messages use. */
#define CPU_FEATURES(X)                                                                            \
    X(FPU, 1, 0, 'd', 0) X(VME, 1, 0, 'd', 1) X(DE, 1, 0, 'd', 2) X(PSE, 1, 0, 'd', 3)             \
    X(TSC, 1, 0, 'd', 4) X(MSR, 1, 0, 'd', 5) X(PAE, 1, 0, 'd', 6) X(MCE, 1, 0, 'd', 7)            \
    X(CX8, 1, 0, 'd', 8) X(APIC, 1, 0, 'd', 9) X(SEP, 1, 0, 'd', 11) X(MTRR, 1, 0, 'd', 12)        \
    X(PGE, 1, 0, 'd', 13) X(MCA, 1, 0, 'd', 14) X(CMOV, 1, 0, 'd', 15) X(PAT, 1, 0, 'd', 16)       \
    X(PSE36, 1, 0, 'd', 17) X(CLFSH, 1, 0, 'd', 19) X(MMX, 1, 0, 'd', 23) X(FXSR, 1, 0, 'd', 24)   \
    X(SSE, 1, 0, 'd', 25) X(SSE2, 1, 0, 'd', 26)                                                   \
    X(SSE3, 1, 0, 'c', 0) X(PCLMUL, 1, 0, 'c', 1) X(SSSE3, 1, 0, 'c', 9) X(FMA, 1, 0, 'c', 12)     \
    X(CX16, 1, 0, 'c', 13) X(PCID, 1, 0, 'c', 17) X(SSE41, 1, 0, 'c', 19) X(SSE42, 1, 0, 'c', 20)  \
    X(X2APIC, 1, 0, 'c', 21) X(MOVBE, 1, 0, 'c', 22) X(POPCNT, 1, 0, 'c', 23)                      \
    X(TSCDEADLINE, 1, 0, 'c', 24) X(AES, 1, 0, 'c', 25) X(XSAVE, 1, 0, 'c', 26)                    \
    X(AVX, 1, 0, 'c', 28) X(F16C, 1, 0, 'c', 29) X(RDRAND, 1, 0, 'c', 30)                          \
    X(FSGSBASE, 7, 0, 'b', 0) X(TSCADJUST, 7, 0, 'b', 1) X(BMI1, 7, 0, 'b', 3)                     \
    X(AVX2, 7, 0, 'b', 5) X(SMEP, 7, 0, 'b', 7) X(BMI2, 7, 0, 'b', 8) X(ERMS, 7, 0, 'b', 9)        \
    X(INVPCID, 7, 0, 'b', 10) X(AVX512F, 7, 0, 'b', 16) X(AVX512DQ, 7, 0, 'b', 17)                 \
    X(RDSEED, 7, 0, 'b', 18) X(ADX, 7, 0, 'b', 19) X(SMAP, 7, 0, 'b', 20)                          \
    X(AVX512IFMA, 7, 0, 'b', 21) X(CLFLUSHOPT, 7, 0, 'b', 23) X(CLWB, 7, 0, 'b', 24)               \
    X(AVX512CD, 7, 0, 'b', 28) X(SHA, 7, 0, 'b', 29) X(AVX512BW, 7, 0, 'b', 30)                    \
    X(AVX512VL, 7, 0, 'b', 31) X(AVX512VBMI, 7, 0, 'c', 1) X(UMIP, 7, 0, 'c', 2)                   \
    X(AVX512VBMI2, 7, 0, 'c', 6) X(GFNI, 7, 0, 'c', 8) X(VAES, 7, 0, 'c', 9)                       \
    X(VPCLMUL, 7, 0, 'c', 10) X(AVX512VNNI, 7, 0, 'c', 11) X(AVX512BITALG, 7, 0, 'c', 12)          \
    X(AVX512VPOPCNTDQ, 7, 0, 'c', 14) X(RDPID, 7, 0, 'c', 22) X(FSRM, 7, 0, 'd', 4)                \
    X(XSAVEOPT, 13, 1, 'a', 0) X(XSAVEC, 13, 1, 'a', 1) X(XGETBV1, 13, 1, 'a', 2)                  \
    X(LAHF64, 0x80000001, 0, 'c', 0) X(LZCNT, 0x80000001, 0, 'c', 5)                               \
    X(PREFETCHW, 0x80000001, 0, 'c', 8) X(SYSCALL, 0x80000001, 0, 'd', 11)                         \
    X(NX, 0x80000001, 0, 'd', 20) X(PDPE1GB, 0x80000001, 0, 'd', 26)                               \
    X(RDTSCP, 0x80000001, 0, 'd', 27) X(LM, 0x80000001, 0, 'd', 29)

#define CPU_FEATURE_ENUM(name, leaf, sub, reg, bit) CPUF_##name,
enum cpu_feature { CPU_FEATURES(CPU_FEATURE_ENUM) CPUF_COUNT };
#undef CPU_FEATURE_ENUM

struct cpuid_policy {
    uint32_t n;
    struct cpuid_leaf leaf[CPUID_MAX_LEAVES];
    uint64_t feature[(CPUF_COUNT + 63) / 64];
    uint64_t xcr0_mask;    /* XCR0 bits the guest may set */
    uint32_t maxphys;      /* physical address bits */
    uint32_t xsave_off[64], xsave_size[64]; /* standard-format component layout (the host's) */
    bool amd;              /* vendor behaves as AMD (SYSCALL in compatibility mode, SYSRET, ...) */
    uint64_t arch_capabilities; /* IA32_ARCH_CAPABILITIES, Intel models */
};

/* Which processors a policy is good for: the host's kind, or the levels of the x86-64 psABI (§3.1.1). A level has the
 * instructions that the psABI counts up to it and no other extension; what our engines do themselves (system
 * features) comes with each. */
enum cpuid_level { CPUID_HOST, CPUID_V2, CPUID_V3, CPUID_V4 };

#define CPUID_LIMIT_MAX 128

/* What bounds a policy from below: what a hypervisor lets its guests have. A leaf that is not there has no bits. */
struct cpuid_limit {
    uint32_t n;
    struct cpuid_leaf leaf[CPUID_LIMIT_MAX];
    uint64_t arch_capabilities;
    bool no_deadline; /* IA32_TSC_DEADLINE cannot be ours */
};

struct cpuid_cfg {
    uint32_t cpus;    /* vCPUs, for topology leaves */
    uint64_t tsc_khz; /* for leaves 0x15, 0x16 and 0x40000010 */
    bool kvm_leaves;  /* offer the KVM paravirtual leaves at 0x40000000 */
    enum cpuid_level level;
    const struct cpuid_limit *limit; /* offer nothing that it lacks; NULL: there is none */
};

/* Where a policy starts from: a processor's CPUID, and the XCR0 its operating system enabled. */
struct cpuid_host {
    void (*query)(const void *ctx, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
    const void *ctx;
    uint64_t xcr0;
};

/* Builds the policy of the host CPU restricted to what ring3 supports, with the choices of
 * docs (PCID on, not vulnerable, invariant TSC). Fails with a message naming a baseline feature
 * (x86-64-v1 plus CX16, XSAVE, FXSR) the host lacks, or one of cfg's level. */
int cpuid_build(struct cpuid_policy *p, const struct cpuid_cfg *cfg, struct err *e);
/* "host", "x86-64-v2", "x86-64-v3", "x86-64-v4"; 0, or -EINVAL with e set. */
int cpuid_level_parse(const char *name, enum cpuid_level *out, struct err *e);
/* The same for any processor's CPUID (tests, models). */
int cpuid_build_from(struct cpuid_policy *p, const struct cpuid_cfg *cfg,
                     const struct cpuid_host *host, struct err *e);

static inline bool cpuid_has(const struct cpuid_policy *p, enum cpu_feature f)
{
    return p->feature[f / 64] >> (f % 64) & 1;
}

/* Executes CPUID for a vCPU with this state: dynamic bits (OSXSAVE, APIC enable, XSAVE sizes by XCR0,
 * initial APIC ID `apic_id`) are filled in. Out-of-range leaves answer as the vendor does. */
void cpuid_query(const struct cpuid_policy *p, const struct cpu_state *s, uint32_t apic_id,
                 bool apic_enabled, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/* Leaf 1 EAX: family, model, stepping; what RDX holds after RESET and INIT. */
uint32_t cpuid_signature(const struct cpuid_policy *p);

/* Control-register bits that this processor has; all others are reserved (#GP when set). XCR0's
 * are in xcr0_mask. */
uint64_t cpuid_cr4_mask(const struct cpuid_policy *p);
uint64_t cpuid_efer_mask(const struct cpuid_policy *p);
/* Can this processor be in that state? To be asked after cpu_state_validate about a state that
 * comes from outside: reserved bits of CR3, CR4, EFER, XCR0 and the MTRRs. 0, or -EINVAL with e
 * naming the field. */
int cpuid_check_state(const struct cpuid_policy *p, const struct cpu_state *s, struct err *e);

/* Does the limit allow what the policy says? 0, or -EINVAL with e naming a feature. */
int cpuid_check_limit(const struct cpuid_policy *p, const struct cpuid_limit *limit, struct err *e);

const char *cpu_feature_name(enum cpu_feature f); /* "avx2", lower case */

#endif
