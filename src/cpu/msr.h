/*
 * The MSRs that live in struct cpu_state, and the constant ones (Intel SDM vol. 4; AMD APM vol. 2
 * appendix A). Those of the APIC (IA32_APIC_BASE, x2APIC, TSC deadline) and of paravirtual clocks
 * belong to their devices: the engine asks here first and passes -ENOENT on to its environment.
 * Privilege is the caller's to check. Only the vCPU's own thread.
 */
#ifndef RING3_CPU_MSR_H
#define RING3_CPU_MSR_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/cpuid.h"
#include "cpu/state.h"

#define MSR_TSC 0x10u
#define MSR_SPEC_CTRL 0x48u
#define MSR_PRED_CMD 0x49u
#define MSR_SYSENTER_CS 0x174u
#define MSR_SYSENTER_ESP 0x175u
#define MSR_SYSENTER_EIP 0x176u
#define MSR_PAT 0x277u
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u

#define MSR_PAT_RESET 0x0007040600070406ull
/* Fast strings on; no BTS, no PEBS. */
#define MSR_MISC_ENABLE_RESET (BIT(0) | BIT(11) | BIT(12))
#define MSR_MISC_ENABLE_DEFINED MSR_MISC_ENABLE_RESET
/* IBRS, STIBP, SSBD, BHI_DIS_S; the AMD model has IBRS only. */
#define MSR_SPEC_CTRL_DEFINED (BIT(0) | BIT(1) | BIT(2) | BIT(10))
#define MSR_DEBUGCTL_DEFINED (BIT(0) | BIT(1)) /* LBR, BTF */
#define MSR_MTRR_DEF_DEFINED (0xffull | BIT(10) | BIT(11))
#define MSR_MTRRCAP (ARRAY_LEN(((struct cpu_state *)0)->mtrr_var) / 2 | BIT(8) | BIT(10))

/* Bits 63..47 alike. */
static inline bool msr_canonical(uint64_t v) { return sext(v, 48) == v; }
/* UC, WC, WT, WP, WB. */
static inline bool msr_mtrr_type(unsigned t) { return t < 7 && (0x73 >> t & 1); }
/* As for MTRRs, and UC-. */
bool msr_pat_valid(uint64_t v);
bool msr_mtrr_types_valid(uint64_t v); /* eight types, as in a fixed-range MTRR */

/* RDMSR. tsc is the guest's TSC now, without s->tsc_offset. Returns 0 with *out set, -EINVAL for
 * #GP, -ENOENT when the MSR is not one of ours. */
int msr_read(const struct cpu_state *s, const struct cpuid_policy *p, uint32_t msr, uint64_t tsc,
             uint64_t *out);
/* WRMSR; as above. The caller recomputes what it derives from the state: mode and translations
 * after EFER, segment bases after FS_BASE and GS_BASE. */
int msr_write(struct cpu_state *s, const struct cpuid_policy *p, uint32_t msr, uint64_t tsc,
              uint64_t v);

#endif
