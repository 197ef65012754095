/*
 * Model-specific registers, time stamps, CPUID, and the FS and GS bases. SDM vol. 2; vol. 4.
 */
#include <errno.h>

#include "base/trace.h"
#include "cpu/msr.h"
#include "engine/interp/sys.h"
#include "engine/interp/world.h"

static uint64_t edx_eax(const struct cpu *c)
{
    return c->s.gpr[RDX] << 32 | (uint32_t)c->s.gpr[RAX];
}

static void set_edx_eax(struct cpu *c, uint64_t v)
{
    c->s.gpr[RAX] = (uint32_t)v;
    c->s.gpr[RDX] = v >> 32;
}

void sys_rdmsr(struct cpu *c, const struct insn *i)
{
    uint32_t msr = c->s.gpr[RCX];
    uint64_t v = 0;
    int err;

    need_cpl0(c);
    err = msr_read(&c->s, c->vm->cpuid, msr, clock_tsc(c->vm->clock), &v);
    if (err == -ENOENT)
        err = world_rdmsr(c, msr, &v);
    trace(c->vm->trace, cpu_msr, "vcpu %u: rdmsr %#x = %#llx%s", c->v->index, msr,
          (unsigned long long)v, err ? " #GP" : "");
    if (err)
        cpu_raise(c, X_GP, 0);
    set_edx_eax(c, v);
}

void sys_wrmsr(struct cpu *c, const struct insn *i)
{
    uint32_t msr = c->s.gpr[RCX];
    uint64_t v = edx_eax(c), efer = c->s.efer, tsc_offset = c->s.tsc_offset;
    int err;

    need_cpl0(c);
    cpu_fence();
    err = msr_write(&c->s, c->vm->cpuid, msr, clock_tsc(c->vm->clock), v);
    if (err == -ENOENT)
        err = world_wrmsr(c, msr, v);
    trace(c->vm->trace, cpu_msr, "vcpu %u: wrmsr %#x = %#llx%s", c->v->index, msr,
          (unsigned long long)v, err ? " #GP" : "");
    if (err)
        cpu_raise(c, X_GP, 0);
    if (c->s.tsc_offset != tsc_offset && c->vm->env->tsc_moved)
        c->vm->env->tsc_moved(c->v, c->s.tsc_offset);
    if (c->s.efer != efer) {
        cpu_update_mode(c);
        if ((c->s.efer ^ efer) & EFER_NXE)
            cpu_flush_tlb(c, true);
    }
    /* It may have been the APIC's: an interrupt may be deliverable now. */
    c->mode_changed = true;
}

static uint64_t read_tsc(struct cpu *c)
{
    if ((c->s.cr4 & CR4_TSD) && c->cpl)
        cpu_raise(c, X_GP, 0);
    return clock_tsc(c->vm->clock) + c->s.tsc_offset;
}

void sys_rdtsc(struct cpu *c, const struct insn *i) { set_edx_eax(c, read_tsc(c)); }

void sys_rdtscp(struct cpu *c, const struct insn *i)
{
    set_edx_eax(c, read_tsc(c));
    c->s.gpr[RCX] = (uint32_t)c->s.tsc_aux;
}

void sys_rdpid(struct cpu *c, const struct insn *i)
{
    gpr_write(c, i->op[0].reg, c->bits == CPU_64 ? 8 : 4, c->s.tsc_aux);
}

/* The policy offers no performance counters (CPUID leaf 0AH is empty), so every index is out of
 * range. */
void sys_rdpmc(struct cpu *c, const struct insn *i) { cpu_raise(c, X_GP, 0); }

void sys_cpuid(struct cpu *c, const struct insn *i)
{
    uint32_t out[4];

    cpu_fence();
    c->vm->env->cpuid(c->v, c->s.gpr[RAX], c->s.gpr[RCX], out);
    c->s.gpr[RAX] = out[0];
    c->s.gpr[RBX] = out[1];
    c->s.gpr[RCX] = out[2];
    c->s.gpr[RDX] = out[3];
}

/* ---- segment bases ---- */

void sys_swapgs(struct cpu *c, const struct insn *i)
{
    uint64_t base = c->s.seg[GS].base;

    if (c->bits != CPU_64)
        cpu_raise(c, X_UD, 0);
    need_cpl0(c);
    c->s.seg[GS].base = c->s.kernel_gs_base;
    c->s.kernel_gs_base = base;
}

static void need_fsgsbase(struct cpu *c)
{
    if (c->bits != CPU_64 || !(c->s.cr4 & CR4_FSGSBASE))
        cpu_raise(c, X_UD, 0);
}

static void read_base(struct cpu *c, const struct insn *i, enum sreg r)
{
    need_fsgsbase(c);
    op_write(c, i, 0, c->s.seg[r].base);
}

static void write_base(struct cpu *c, const struct insn *i, enum sreg r)
{
    need_fsgsbase(c);
    uint64_t v = op_read(c, i, 0);

    if (!is_canonical(v))
        cpu_raise(c, X_GP, 0);
    c->s.seg[r].base = v;
}

void sys_rdfsbase(struct cpu *c, const struct insn *i) { read_base(c, i, FS); }
void sys_rdgsbase(struct cpu *c, const struct insn *i) { read_base(c, i, GS); }
void sys_wrfsbase(struct cpu *c, const struct insn *i) { write_base(c, i, FS); }
void sys_wrgsbase(struct cpu *c, const struct insn *i) { write_base(c, i, GS); }
