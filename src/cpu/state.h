/*
 * Architectural state of one x86-64 logical processor: the lingua franca of engines, snapshots,
 * migration and tests. Plain data: no pointers, no host addresses, nothing an engine caches.
 * Sections: Intel SDM vol. 3 ch. 2 and 3, vol. 1 ch. 8, 10, 13; AMD APM vol. 2 ch. 3 and 4.
 */
#ifndef RING3_CPU_STATE_H
#define RING3_CPU_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum sreg { ES, CS, SS, DS, FS, GS, SREG_COUNT };

/* RFLAGS */
#define FL_CF BIT(0)
#define FL_R1 BIT(1) /* always 1 */
#define FL_PF BIT(2)
#define FL_AF BIT(4)
#define FL_ZF BIT(6)
#define FL_SF BIT(7)
#define FL_TF BIT(8)
#define FL_IF BIT(9)
#define FL_DF BIT(10)
#define FL_OF BIT(11)
#define FL_IOPL (3ull << 12)
#define FL_NT BIT(14)
#define FL_RF BIT(16)
#define FL_VM BIT(17)
#define FL_AC BIT(18)
#define FL_VIF BIT(19)
#define FL_VIP BIT(20)
#define FL_ID BIT(21)
#define FL_STATUS (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

/* CR0, CR4, EFER */
#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)
#define CR4_VME BIT(0)
#define CR4_PVI BIT(1)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_MCE BIT(6)
#define CR4_PGE BIT(7)
#define CR4_PCE BIT(8)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_LA57 BIT(12)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)
#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)
#define EFER_FFXSR BIT(14)
#define EFER_AUTOIBRS BIT(21) /* AMD */

/* DR6 and DR7: bits that always read as 1 */
#define DR6_FIXED 0xffff0ff0ull
#define DR7_FIXED 0x400ull

/* XCR0 */
#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)
#define XCR0_AVX512 (7ull << 5)

/* Exception vectors */
enum vector {
    X_DE = 0, X_DB = 1, X_NMI = 2, X_BP = 3, X_OF = 4, X_BR = 5, X_UD = 6, X_NM = 7, X_DF = 8,
    X_TS = 10, X_NP = 11, X_SS = 12, X_GP = 13, X_PF = 14, X_MF = 16, X_AC = 17, X_MC = 18, X_XM = 19,
};

/* Page-fault error code */
#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u

/* Segment attributes as descriptor bits 40..55: type 3..0, S 4, DPL 6..5, P 7, AVL 12, L 13, D/B 14,
 * G 15. Bits 11..8 (limit 19..16) are zero here. SEG_UNUSABLE marks a null selector in a register;
 * an unusable SS keeps its DPL, which is the CPL. */
#define SEG_TYPE 0xfu
#define SEG_ACCESSED 1u
#define SEG_WRITE 2u  /* data: writable; code: readable */
#define SEG_EXPDOWN 4u /* data: expand-down; code: conforming */
#define SEG_CODE 8u
#define SEG_S (1u << 4)
#define SEG_DPL_SHIFT 5
#define SEG_DPL(attr) (((attr) >> 5) & 3u)
#define SEG_P (1u << 7)
#define SEG_AVL (1u << 12)
#define SEG_L (1u << 13)
#define SEG_DB (1u << 14)
#define SEG_G (1u << 15)
#define SEG_UNUSABLE (1u << 16)

struct segment {
    uint64_t base;
    uint32_t limit; /* in bytes, granularity applied */
    uint32_t attr;
    uint16_t sel;
    uint16_t pad[3];
};

struct table_reg { /* GDTR, IDTR */
    uint64_t base;
    uint16_t limit;
    uint16_t pad[3];
};

/* x87, stored by physical register R0..R7 would be the manual's view; we keep stack order ST0..ST7
 * as FXSAVE does. tag: the abridged FXSAVE byte by physical register (1 = not empty). */
struct x87_state {
    uint8_t st[8][16]; /* 80 bits used, the rest zero; index is relative to TOP */
    uint16_t fcw, fsw;
    uint8_t tag, pad0;
    uint16_t fop; /* 11 bits */
    uint64_t fip, fdp;
    uint16_t fcs, fds;
    uint32_t pad1;
};

/* Why a vCPU is not running instructions. */
enum cpu_activity { CPU_RUNNING, CPU_HALTED, CPU_WAIT_SIPI, CPU_SHUTDOWN };

struct cpu_state {
    uint64_t gpr[16];
    uint64_t rip;
    uint64_t rflags; /* bit 1 set, reserved bits clear */
    struct segment seg[SREG_COUNT], ldtr, tr;
    struct table_reg gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t dr[8]; /* 4 and 5 unused */
    uint64_t xcr0, xss;

    /* MSRs with no other home; the rest (APIC, kvmclock ...) belong to their devices */
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, misc_enable, spec_ctrl, debugctl;
    uint64_t mtrr_def, mtrr_fixed[11], mtrr_var[16]; /* base,mask pairs */
    uint64_t mcg_status;
    uint64_t tsc_offset; /* guest TSC = clock_tsc() + tsc_offset; TSC_ADJUST below is bookkeeping */
    uint64_t tsc_adjust;
    uint64_t pending_dbg; /* DR6 bits of a debug trap not yet delivered */

    struct x87_state x87;
    uint32_t mxcsr;
    uint32_t activity; /* enum cpu_activity */
    uint64_t zmm[32][8]; /* XMM = [0..1], YMM = [0..3] of each row; see bt/vec.c */
    uint64_t k[8];

    /* PAE paging outside long mode: the four page-directory pointers that the processor has loaded, which memory may no
     * longer hold (SDM vol. 3 §4.4.1). They count if pdptes_valid; else they are to be loaded from where CR3 points. */
    uint64_t pdpte[4];

    /* Interruptibility and pending events between instructions. */
    uint8_t sti_shadow;    /* maskable interrupts blocked until the next instruction has run */
    uint8_t mov_ss_shadow; /* as sti_shadow, and debug traps and NMI too */
    uint8_t nmi_blocked;   /* until IRET */
    uint8_t nmi_pending;
    uint8_t init_pending, sipi_pending, sipi_vector;

    uint8_t pdptes_valid;
};

/* Is la canonical for 48-bit linear addresses (SDM vol. 1 §3.3.7.1)? */
static inline bool is_canonical(uint64_t la) { return sext(la, 48) == la; }

/* The mode an instruction is decoded and executed in. */
enum cpu_bits { CPU_16, CPU_32, CPU_64 };

static inline bool cpu_long_mode(const struct cpu_state *s) { return s->efer & EFER_LMA; }
static inline bool cpu_v86(const struct cpu_state *s) { return s->rflags & FL_VM; }
static inline bool cpu_real(const struct cpu_state *s) { return !(s->cr0 & CR0_PE); }
static inline unsigned cpu_cpl(const struct cpu_state *s)
{
    return cpu_real(s) ? 0 : cpu_v86(s) ? 3 : SEG_DPL(s->seg[SS].attr);
}
static inline enum cpu_bits cpu_code_bits(const struct cpu_state *s)
{
    if (cpu_long_mode(s) && (s->seg[CS].attr & SEG_L))
        return CPU_64;
    return s->seg[CS].attr & SEG_DB ? CPU_32 : CPU_16;
}

/* Do PDPTEs matter in this mode? */
static inline bool cpu_pae(const struct cpu_state *s)
{
    return (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !cpu_long_mode(s);
}

/* Power-on reset state (SDM vol. 3 table 10-1): real mode, CS F000:FFF0 base FFFF0000, running.
 * RDX is the processor's signature after RESET and INIT: callers set it from cpuid_signature(),
 * and activity to CPU_WAIT_SIPI for application processors. */
void cpu_state_reset(struct cpu_state *s);
/* INIT: as reset but keeps the MSRs (all but EFER), CR0.CD/NW, XCR0, TSC and FPU/SSE state. */
void cpu_state_init(struct cpu_state *s);

struct err;
/* Is the state one that a processor can be in? Snapshots and set_state() use it: reserved bits, canonical
 * addresses, consistent modes. 0, or -EINVAL with e naming the field. */
int cpu_state_validate(const struct cpu_state *s, struct err *e);

struct state_desc;
extern const struct state_desc cpu_state_desc;

#endif
