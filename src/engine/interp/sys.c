/* Which system instruction is whose, and the few that fit nowhere else. */
#include "engine/interp/sys.h"
#include "engine/interp/world.h"

static void sys_hlt(struct cpu *c, const struct insn *i)
{
    need_cpl0(c);
    c->s.activity = CPU_HALTED;
    c->mode_changed = true;
}

/* INVD, WBINVD: guest memory is always coherent. */
static void sys_cache(struct cpu *c, const struct insn *i) { need_cpl0(c); }

/* UD0..UD2, RSM outside SMM, MONITOR and MWAIT (not in CPUID). */
static void sys_ud(struct cpu *c, const struct insn *i) { cpu_raise(c, X_UD, 0); }

static void sys_hypercall(struct cpu *c, const struct insn *i)
{
    c->s.rflags = cpu_flags(c);
    if (!world_hypercall(c))
        cpu_raise(c, X_UD, 0);
    cpu_set_flags(c, c->s.rflags);
    c->mode_changed = true;
}

static const insn_fn table[INSN_COUNT] = {
    [INSN_JMP_FAR] = sys_jmp_far,
    [INSN_JMP_FAR_IND] = sys_jmp_far,
    [INSN_CALL_FAR] = sys_call_far,
    [INSN_CALL_FAR_IND] = sys_call_far,
    [INSN_RET_FAR] = sys_ret_far,
    [INSN_IRET] = sys_iret,
    [INSN_INT] = sys_int,
    [INSN_INT1] = sys_int1,
    [INSN_INT3] = sys_int3,
    [INSN_INTO] = sys_into,

    [INSN_MOV_SREG] = sys_mov_sreg,
    [INSN_PUSH_SREG] = sys_push_sreg,
    [INSN_POP_SREG] = sys_pop_sreg,
    [INSN_LDS] = sys_lds,
    [INSN_LES] = sys_les,
    [INSN_LFS] = sys_lfs,
    [INSN_LGS] = sys_lgs,
    [INSN_LSS] = sys_lss,

    [INSN_MOV_CR] = sys_mov_cr,
    [INSN_MOV_DR] = sys_mov_dr,
    [INSN_LMSW] = sys_lmsw,
    [INSN_SMSW] = sys_smsw,
    [INSN_CLTS] = sys_clts,
    [INSN_INVLPG] = sys_invlpg,
    [INSN_INVPCID] = sys_invpcid,
    [INSN_INVD] = sys_cache,
    [INSN_WBINVD] = sys_cache,

    [INSN_LGDT] = sys_lgdt,
    [INSN_LIDT] = sys_lidt,
    [INSN_SGDT] = sys_sgdt,
    [INSN_SIDT] = sys_sidt,
    [INSN_LLDT] = sys_lldt,
    [INSN_SLDT] = sys_sldt,
    [INSN_LTR] = sys_ltr,
    [INSN_STR] = sys_str,
    [INSN_LAR] = sys_lar,
    [INSN_LSL] = sys_lsl,
    [INSN_VERR] = sys_verr,
    [INSN_VERW] = sys_verw,
    [INSN_ARPL] = sys_arpl,

    [INSN_RDMSR] = sys_rdmsr,
    [INSN_WRMSR] = sys_wrmsr,
    [INSN_RDTSC] = sys_rdtsc,
    [INSN_RDTSCP] = sys_rdtscp,
    [INSN_RDPID] = sys_rdpid,
    [INSN_RDPMC] = sys_rdpmc,
    [INSN_CPUID] = sys_cpuid,
    [INSN_SWAPGS] = sys_swapgs,
    [INSN_RDFSBASE] = sys_rdfsbase,
    [INSN_RDGSBASE] = sys_rdgsbase,
    [INSN_WRFSBASE] = sys_wrfsbase,
    [INSN_WRGSBASE] = sys_wrgsbase,
    [INSN_SYSCALL] = sys_syscall,
    [INSN_SYSRET] = sys_sysret,
    [INSN_SYSENTER] = sys_sysenter,
    [INSN_SYSEXIT] = sys_sysexit,

    [INSN_CLI] = sys_cli,
    [INSN_STI] = sys_sti,
    [INSN_CLAC] = sys_clac,
    [INSN_STAC] = sys_stac,
    [INSN_PUSHF] = sys_pushf,
    [INSN_POPF] = sys_popf,

    [INSN_IN] = sys_in,
    [INSN_OUT] = sys_out,
    [INSN_INS] = sys_ins,
    [INSN_OUTS] = sys_outs,

    [INSN_HLT] = sys_hlt,
    [INSN_VMCALL] = sys_hypercall,
    [INSN_VMMCALL] = sys_hypercall,
    [INSN_MONITOR] = sys_ud,
    [INSN_MWAIT] = sys_ud,
    [INSN_UD0] = sys_ud,
    [INSN_UD1] = sys_ud,
    [INSN_UD2] = sys_ud,
    [INSN_RSM] = sys_ud,
};

insn_fn sys_fn(enum insn_id id)
{
    return id < INSN_COUNT ? table[id] : NULL;
}
