/*
 * x87 instructions. Computation runs on the host's x87 unit. As long as the guest masks every
 * exception its registers stay there between instructions (c->x87_live); fcw and fsw in c->s.x87
 * are always current. With an exception unmasked each instruction loads the registers, runs and
 * takes them back, and the host is left with FNINIT state, so that no host code ever meets a
 * pending exception. The instruction, data and opcode pointers are kept by us (SDM vol. 1
 * §8.1.8, 8.1.9).
 */
#include "engine/interp/simd.h"

#include <string.h>

/* The FXSAVE image used to move registers to and from the host. */
struct fx_image {
    uint16_t fcw, fsw;
    uint8_t tag, pad0;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16];
    uint8_t rest[352];
} __attribute__((aligned(16)));

#define CLOBBER_XMM                                                                          \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static void host_load(const struct x87_state *x)
{
    struct fx_image f = {.fcw = x->fcw, .fsw = x->fsw, .tag = x->tag, .mxcsr = MXCSR_DEFAULT};

    memcpy(f.st, x->st, sizeof(f.st));
    __asm__ volatile("fxrstor64 %0" : : "m"(f) : CLOBBER_XMM);
}

static void host_save(struct x87_state *x)
{
    struct fx_image f;

    __asm__ volatile("fxsave64 %0\n\tfninit" : "=m"(f) : : "memory");
    for (unsigned n = 0; n < 8; n++)
        memcpy(x->st[n], f.st[n], 10);
    x->fcw = f.fcw;
    x->fsw = f.fsw;
    x->tag = f.tag;
}

void x87_sync(struct cpu *c)
{
    if (!c->x87_live)
        return;
    host_save(&c->s.x87);
    c->x87_live = false;
}

void x87_update_es(struct x87_state *x)
{
    x->fsw &= ~(FSW_ES | FSW_B);
    if (x->fsw & ~x->fcw & FSW_EXC)
        x->fsw |= FSW_ES | FSW_B;
}

/* The registers are numbered from TOP: a new TOP renumbers them, their contents stay where they
 * are. */
void x87_set_top(struct x87_state *x, unsigned top)
{
    unsigned by = (top - (x->fsw >> FSW_TOP_SHIFT)) & 7;
    uint8_t st[8][16];

    if (by) {
        memcpy(st, x->st, sizeof(st));
        for (unsigned n = 0; n < 8; n++)
            memcpy(x->st[n], st[(n + by) & 7], 16);
    }
    x->fsw = (x->fsw & ~FSW_TOP) | top << FSW_TOP_SHIFT;
}

void x87_reset(struct x87_state *x)
{
    x87_set_top(x, 0);
    x->fcw = FCW_DEFAULT;
    x->fsw = 0;
    x->tag = 0;
    x->fop = x->fcs = x->fds = 0;
    x->fip = x->fdp = 0;
}

void x87_to_mmx(struct cpu *c)
{
    x87_sync(c);
    x87_set_top(&c->s.x87, 0);
    c->s.x87.tag = 0xff;
}

/* The FERR# pin, which IRQ 13 hangs on when CR0.NE is clear. */
static void ferr(struct cpu *c, bool level)
{
    if (!(c->s.cr0 & CR0_NE) && c->vm->env->ferr)
        c->vm->env->ferr(c->v, level);
}

void x87_check_pending(struct cpu *c)
{
    if (likely(!(c->s.x87.fsw & FSW_ES)))
        return;
    if ((c->s.cr0 & CR0_NE) || !c->vm->env->ferr)
        cpu_raise(c, X_MF, 0);
    /* The processor stops before the waiting instruction until the interrupt comes. */
    ferr(c, true);
    cpu_restart(c);
}

void x87_enter(struct cpu *c, const struct insn *i)
{
    if (unlikely(c->s.cr0 & (CR0_EM | CR0_TS)))
        cpu_raise(c, X_NM, 0);
    if (i->row->flags & IF_WAIT)
        x87_check_pending(c);
}

/* ---- instructions that compute ---- */
static void set_pointers(struct cpu *c, const struct insn *i, bool mem, uint64_t ea)
{
    struct x87_state *x = &c->s.x87;
    const struct simd *s = c->simd;
    bool excepted = x->fsw & FSW_ES;

    x->fip = c->s.rip;
    x->fcs = s->no_fcs_fds ? 0 : c->s.seg[CS].sel;
    if (excepted || !s->fdp_excptn_only)
        x->fop = (i->opcode & 7) << 8 | i->modrm;
    if (mem && (excepted || !s->fdp_excptn_only)) {
        x->fdp = ea;
        x->fds = s->no_fcs_fds ? 0 : c->s.seg[i->mem.seg].sel;
    }
}

static void run_host(struct cpu *c, stub_fn stub, void *mem)
{
    struct x87_state *x = &c->s.x87;

    if (likely((x->fcw & FCW_MASKS) == FCW_MASKS)) {
        if (!c->x87_live) {
            host_load(x);
            c->x87_live = true;
        }
        stub(c, mem);
        return;
    }
    x87_sync(c);
    host_load(x);
    stub(c, mem);
    host_save(x);
}

/* An unmasked invalid operation, overflow or underflow suppresses the store, and does so before
 * memory is looked at; otherwise faults of the store come before any change of state. */
static void run_store(struct cpu *c, const struct insn *i, stub_fn stub, unsigned n)
{
    struct x87_state *x = &c->s.x87, before, after;
    bool unmasked = (x->fcw & FCW_MASKS) != FCW_MASKS;
    uint64_t la = 0;
    uint8_t tmp[16];

    if (unmasked) {
        x87_sync(c);
        before = *x;
        run_host(c, stub, tmp);
        if (x->fsw & ~x->fcw & (FSW_IE | FSW_OE | FSW_UE))
            return;
        after = *x;
        *x = before;
    }
    void *p = simd_store_begin(c, i, n, &la);
    if (unmasked)
        *x = after;
    else
        run_host(c, stub, tmp);
    memcpy(p, tmp, n);
    simd_store_end(c, n, la, p);
}

void x87_run(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    stub_fn stub = simd_stub(c, i, op);

    x87_enter(c, i);
    if (op->mem_op == NO_MEM) {
        run_host(c, stub, NULL);
        set_pointers(c, i, false, 0);
        return;
    }

    const struct opnd *o = &i->op[op->mem_op];
    uint64_t ea = insn_ea(c, i);
    if (o->write)
        run_store(c, i, stub, o->size);
    else
        run_host(c, stub, (void *)(uintptr_t)simd_load(c, i, o->size));
    set_pointers(c, i, true, ea);
}

/* ---- control instructions: no host needed ---- */
static void fwait(struct cpu *c, const struct insn *i)
{
    if ((c->s.cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        cpu_raise(c, X_NM, 0);
    x87_check_pending(c);
}

static void fldcw(struct cpu *c, const struct insn *i)
{
    uint16_t fcw;

    x87_enter(c, i);
    memcpy(&fcw, simd_load(c, i, 2), 2);
    fcw = (fcw & FCW_VALID) | FCW_ONE;
    /* Float-to-integer conversions change the rounding mode back and forth: do that in the unit. */
    if (c->x87_live && (fcw & FCW_MASKS) == FCW_MASKS)
        __asm__ volatile("fldcw %0" : : "m"(fcw));
    else
        x87_sync(c);
    c->s.x87.fcw = fcw;
    x87_update_es(&c->s.x87);
}

static void store16(struct cpu *c, const struct insn *i, uint16_t v)
{
    uint64_t la = 0;
    void *p = simd_store_begin(c, i, 2, &la);

    memcpy(p, &v, 2);
    simd_store_end(c, 2, la, p);
}

static void fnstcw(struct cpu *c, const struct insn *i)
{
    x87_enter(c, i);
    store16(c, i, c->s.x87.fcw);
}

static void fnstsw(struct cpu *c, const struct insn *i)
{
    x87_enter(c, i);
    if (i->modrm >= 0xc0)
        gpr_write(c, RAX, 2, c->s.x87.fsw);
    else
        store16(c, i, c->s.x87.fsw);
}

static void fnclex(struct cpu *c, const struct insn *i)
{
    x87_enter(c, i);
    x87_sync(c);
    c->s.x87.fsw &= ~(0xffu | FSW_B);
    ferr(c, false);
}

static void fninit(struct cpu *c, const struct insn *i)
{
    x87_enter(c, i);
    x87_sync(c);
    x87_reset(&c->s.x87);
    ferr(c, false);
}

/* FNENI, FNDISI, FNSETPM: of the 8087 and 80287, nothing since. */
static void fnobsolete(struct cpu *c, const struct insn *i) { x87_enter(c, i); }

insn_fn x87_fn(const struct insn *i)
{
    bool mem = i->modrm < 0xc0;
    unsigned reg = i->modrm >> 3 & 7;

    if (i->opcode == 0x9b)
        return fwait;
    if (mem) {
        if (i->opcode == 0xd9 && reg == 5)
            return fldcw;
        if (i->opcode == 0xd9 && reg == 7)
            return fnstcw;
        if (i->opcode == 0xdd && reg == 7)
            return fnstsw;
        return x87_env_fn(i);
    }
    if (i->opcode == 0xdf && i->modrm == 0xe0)
        return fnstsw;
    if (i->opcode == 0xdb)
        switch (i->modrm) {
        case 0xe0:
        case 0xe1:
        case 0xe4:
            return fnobsolete;
        case 0xe2:
            return fnclex;
        case 0xe3:
            return fninit;
        }
    return NULL;
}
