/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, Intel's and AMD's rules. SDM vol. 2; AMD APM vol. 3, vol. 2
 * §6.1.
 */
#include "engine/interp/sys.h"

#define FLAT_CODE (SEG_P | SEG_S | SEG_CODE | SEG_WRITE | SEG_ACCESSED | SEG_G)
#define FLAT_DATA (SEG_P | SEG_S | SEG_WRITE | SEG_ACCESSED | SEG_G | SEG_DB)
#define SYSRET_FLAGS                                                                               \
    (FL_STATUS | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_AC | FL_VIF | FL_VIP | FL_ID)

static void flat(struct segment *s, uint16_t sel, uint32_t attr, unsigned dpl)
{
    *s = (struct segment){
        .limit = ~0u,
        .attr = attr | dpl << SEG_DPL_SHIFT,
        .sel = sel,
    };
}

/* The flat CS and SS that these instructions load without looking at a descriptor. */
static void enter(struct cpu *c, uint16_t cs, uint16_t ss, unsigned dpl, bool code64, uint64_t rip)
{
    flat(&c->s.seg[CS], cs, FLAT_CODE | (code64 ? SEG_L : SEG_DB), dpl);
    flat(&c->s.seg[SS], ss, FLAT_DATA, dpl);
    c->next_rip = rip;
}

void sys_syscall(struct cpu *c, const struct insn *i)
{
    bool amd = c->vm->cpuid->amd, lm = cpu_long_mode(&c->s);
    uint64_t fl = cpu_flags(c) & ~FL_RF;
    uint16_t sel = c->s.star >> 32 & 0xfffc;

    if (!(c->s.efer & EFER_SCE) || (c->bits != CPU_64 && !amd) || cpu_real(&c->s))
        cpu_raise(c, X_UD, 0);
    c->s.gpr[RCX] = c->next_rip;
    if (lm) {
        c->s.gpr[R11] = fl;
        enter(c, sel, sel + 8, 0, true, c->bits == CPU_64 ? c->s.lstar : c->s.cstar);
        fl &= ~c->s.sfmask;
    } else {
        enter(c, sel, sel + 8, 0, false, (uint32_t)c->s.star);
        fl &= ~(FL_VM | FL_IF);
    }
    /* A masked TF ends single-stepping before the trap of SYSCALL itself. */
    c->trap_taken = !(fl & FL_TF);
    cpu_set_flags(c, fl);
    cpu_update_mode(c);
}

void sys_sysret(struct cpu *c, const struct insn *i)
{
    bool amd = c->vm->cpuid->amd, from64 = c->bits == CPU_64, to64 = from64 && i->opsize == 8;
    uint16_t base = c->s.star >> 48;
    uint64_t fl;

    if (!(c->s.efer & EFER_SCE) || (!from64 && !amd))
        cpu_raise(c, X_UD, 0);
    need_cpl0(c);
    if (cpu_real(&c->s))
        cpu_raise(c, amd ? X_UD : X_GP, 0);
    /* AMD loads any RIP and faults on the fetch, at CPL 3. */
    if (to64 && !amd && !is_canonical(c->s.gpr[RCX]))
        cpu_raise(c, X_GP, 0);
    fl = from64 ? c->s.gpr[R11] & SYSRET_FLAGS : cpu_flags(c) | FL_IF;
    enter(c, (base + (to64 ? 16 : 0)) | 3, (base + 8) | 3, 3, to64,
          to64 ? c->s.gpr[RCX] : (uint32_t)c->s.gpr[RCX]);
    /* TF counts as it is afterwards: the trap comes as if SYSCALL had just completed. */
    if (fl & FL_TF)
        c->s.pending_dbg |= DR6_BS;
    c->trap_taken = true;
    cpu_set_flags(c, fl);
    cpu_update_mode(c);
}

void sys_sysenter(struct cpu *c, const struct insn *i)
{
    bool lm = cpu_long_mode(&c->s);
    uint16_t sel = c->s.sysenter_cs & 0xfffc;

    if (lm && c->vm->cpuid->amd)
        cpu_raise(c, X_UD, 0);
    if (cpu_real(&c->s) || !sel)
        cpu_raise(c, X_GP, 0);
    enter(c, sel, sel + 8, 0, lm, lm ? c->s.sysenter_eip : (uint32_t)c->s.sysenter_eip);
    c->s.gpr[RSP] = lm ? c->s.sysenter_esp : (uint32_t)c->s.sysenter_esp;
    cpu_set_flags(c, cpu_flags(c) & ~(FL_VM | FL_IF | FL_RF));
    cpu_update_mode(c);
}

void sys_sysexit(struct cpu *c, const struct insn *i)
{
    bool to64 = c->bits == CPU_64 && i->opsize == 8;
    uint16_t sel = c->s.sysenter_cs & 0xfffc;
    uint64_t rip = c->s.gpr[RDX], sp = c->s.gpr[RCX];

    if (cpu_long_mode(&c->s) && c->vm->cpuid->amd)
        cpu_raise(c, X_UD, 0);
    if (cpu_real(&c->s) || !sel)
        cpu_raise(c, X_GP, 0);
    need_cpl0(c);
    if (to64 && (!is_canonical(rip) || !is_canonical(sp)))
        cpu_raise(c, X_GP, 0);
    sel += to64 ? 32 : 16;
    enter(c, sel | 3, (sel + 8) | 3, 3, to64, to64 ? rip : (uint32_t)rip);
    c->s.gpr[RSP] = to64 ? sp : (uint32_t)sp;
    cpu_update_mode(c);
}
