/* Dispatch of vector instructions and the way most of them run: operands in, stub, operands out. */
#include "engine/interp/simd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- MXCSR exceptions ---- */

/* What an instruction may have written: put back when it turns out to fault. */
struct undo {
    uint64_t zmm[2][8];
    uint64_t k[2], gpr[2];
    struct x87_state x87;
    uint16_t cc;
};

static void copy_dests(struct cpu *c, const struct insn *i, struct undo *u, bool restore)
{
    for (unsigned n = 0, v = 0, k = 0, g = 0; n < i->nops; n++) {
        const struct opnd *o = &i->op[n];
        if (o->kind != OP_REG || !o->write)
            continue;
        void *reg, *save;
        size_t len = 8;
        if (o->cls == RC_VEC && v < 2) {
            reg = c->s.zmm[o->reg];
            save = u->zmm[v++];
            len = sizeof(u->zmm[0]);
        } else if (o->cls == RC_K && k < 2) {
            reg = &c->s.k[o->reg];
            save = &u->k[k++];
        } else if (o->cls == RC_GPR && g < 2) {
            reg = &c->s.gpr[o->reg];
            save = &u->gpr[g++];
        } else if (o->cls == RC_MMX) {
            reg = &c->s.x87;
            save = &u->x87;
            len = sizeof(u->x87);
        } else {
            continue;
        }
        memcpy(restore ? reg : save, restore ? save : reg, len);
    }
    if (restore)
        c->cc = u->cc;
    else
        u->cc = c->cc;
}

/* Runs the stub with every exception masked and returns the flags it raised. */
static uint32_t run_masked(struct cpu *c, stub_fn stub, void *mem, uint32_t mxcsr)
{
    c->s.mxcsr = (mxcsr | MXCSR_MASKS) & ~MXCSR_FLAGS;
    stub(c, mem);
    return c->s.mxcsr & MXCSR_FLAGS;
}

/* Embedded rounding and {sae}: every exception masked, no flag set. */
static bool suppresses_exceptions(const struct insn *i)
{
    return (i->prefix & PFX_EVEX) && i->evex_b && !i->bcst;
}

/* VREDUCE and the 14-bit approximations neither signal underflow nor let its mask keep them from
 * flushing to zero. */
static bool signals_underflow(const struct insn *i)
{
    if (i->map == 3)
        return i->opcode != 0x56 && i->opcode != 0x57;
    return !(i->map == 2 && i->opcode >= 0x4c && i->opcode <= 0x4f);
}

/* VCVTPS2PH keeps denormal results whatever MXCSR.FZ says: has it made one? */
static bool half_denormal(const struct cpu *c, const struct insn *i, const void *mem)
{
    const struct opnd *o = &i->op[0];
    const uint8_t *p = o->kind == OP_REG ? (const uint8_t *)c->s.zmm[o->reg] : mem;
    bool masked = (i->prefix & PFX_EVEX) && i->evex_aaa;

    for (unsigned n = 0; n < o->size / 2u; n++) {
        uint16_t h;

        memcpy(&h, p + 2 * n, 2);
        if ((h & 0x3ff) && !(h & 0x7c00) && !(masked && !(c->s.k[i->evex_aaa] >> n & 1)))
            return true;
    }
    return false;
}

/*
 * The guest has unmasked some exception: run masked, see what was raised, and take it back if that
 * would have faulted (SDM vol. 1 §11.5.2 and 11.5.3). Unmasked underflow is signalled for every
 * tiny result, exact ones too, which the masked flag does not tell; flushing to zero does.
 */
static void run_unmasked(struct cpu *c, const struct insn *i, stub_fn stub, void *mem)
{
    uint32_t guest = c->s.mxcsr, unmasked = ~guest >> MXCSR_MASK_SHIFT & MXCSR_FLAGS;
    bool ue = (unmasked & MXCSR_UE) && signals_underflow(i);
    struct undo before, after;

    if (suppresses_exceptions(i)) {
        run_masked(c, stub, mem, guest);
        c->s.mxcsr = guest;
        return;
    }
    copy_dests(c, i, &before, false);
    uint32_t raised = run_masked(c, stub, mem, ue ? guest & ~MXCSR_FZ : guest);
    if (ue && i->id == INSN_VCVTPS2PH) {
        if (half_denormal(c, i, mem))
            raised |= MXCSR_UE;
    } else if (ue && !(raised & MXCSR_UE)) {
        copy_dests(c, i, &after, false);
        copy_dests(c, i, &before, true);
        raised |= run_masked(c, stub, mem, guest | MXCSR_FZ) & MXCSR_UE;
        copy_dests(c, i, &after, true);
    }
    if (raised & unmasked & MXCSR_PRE)
        raised &= MXCSR_PRE;
    c->s.mxcsr = guest | raised;
    if (raised & unmasked) {
        copy_dests(c, i, &before, true);
        cpu_raise(c, c->s.cr4 & CR4_OSXMMEXCPT ? X_XM : X_UD, 0);
    }
}

static inline void run_stub(struct cpu *c, const struct insn *i, stub_fn stub, void *mem)
{
    if ((i->row->flags & IF_FP) && unlikely((c->s.mxcsr & MXCSR_MASKS) != MXCSR_MASKS))
        run_unmasked(c, i, stub, mem);
    else
        stub(c, mem);
}

/* ---- the ways to run ---- */
static void run_regs(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    simd_avail(c, i);
    run_stub(c, i, simd_stub(c, i, op), NULL);
}

static void run_mem_in(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    simd_avail(c, i);
    /* A stub only reads its source; guest memory is never const to the guest. */
    void *p = (void *)(uintptr_t)simd_load(c, i, i->op[op->mem_op].size);
    run_stub(c, i, simd_stub(c, i, op), p);
}

static void run_mem_out(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    unsigned n = i->op[op->mem_op].size;
    uint64_t la = 0;

    simd_avail(c, i);
    void *p = simd_store_begin(c, i, n, &la);
    simd_stub(c, i, op)(c, p);
    simd_store_end(c, n, la, p);
}

/* VCVTPS2PH: the conversion with its MXCSR flags and #XM comes before faults of the store. */
static void run_fp_out(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    unsigned n = i->op[op->mem_op].size;
    uint8_t tmp[64] __attribute__((aligned(64))) = {0};
    struct simd_elems el = {.count = 1, .size = (uint8_t)n, .active = 1};

    simd_avail(c, i);
    run_stub(c, i, simd_stub(c, i, op), tmp);
    if ((i->prefix & PFX_EVEX) && i->evex_aaa)
        simd_partial(c, i, &el);
    simd_partial_check(c, i, &el);
    simd_partial_store(c, i, &el, tmp);
}

/* EVEX under a mask, VMASKMOV: whole if it is cheap to see that nothing can fault, else element by
 * element. */
static void run_partial_in(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    unsigned n = i->op[op->mem_op].size;
    struct simd_elems el;

    simd_avail(c, i);
    void *p = simd_fast_ptr(c, i, n, false);
    if (!p && (i->row->flags & IF_STRICT_WHOLE)) {
        p = (void *)(uintptr_t)simd_load(c, i, n);
    } else if (!p) {
        p = c->simd->bounce;
        memset(p, 0, sizeof(c->simd->bounce));
        simd_partial(c, i, &el);
        simd_partial_load(c, i, &el, p);
    }
    run_stub(c, i, simd_stub(c, i, op), p);
}

static void run_partial_out(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    struct simd_elems el;
    void *p;

    simd_avail(c, i);
    p = simd_fast_ptr(c, i, i->op[op->mem_op].size, true);
    if (p) {
        simd_stub(c, i, op)(c, p);
        return;
    }
    simd_partial(c, i, &el);
    simd_partial_check(c, i, &el);
    uint8_t tmp[64] __attribute__((aligned(64))) = {0};
    simd_stub(c, i, op)(c, tmp);
    simd_partial_store(c, i, &el, tmp);
}

/* MMX registers alias the x87 ones. As on silicon a load that faults changes nothing, while a store
 * that faults has reset TOP already. */
static void run_mmx(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    void *p = NULL;
    uint64_t la = 0;
    const struct opnd *o = op->mem_op == NO_MEM ? NULL : &i->op[op->mem_op];

    simd_avail(c, i);
    if (o && !o->write)
        p = (void *)(uintptr_t)simd_load(c, i, o->size);
    if (o && o->write) {
        x87_sync(c);
        x87_set_top(&c->s.x87, 0);
        p = simd_store_begin(c, i, o->size, &la);
    }
    x87_to_mmx(c);
    run_stub(c, i, simd_stub(c, i, op), p);
    if (o && o->write)
        simd_store_end(c, o->size, la, p);
}

static void emms(struct cpu *c, const struct insn *i)
{
    simd_avail(c, i);
    x87_sync(c);
    x87_set_top(&c->s.x87, 0);
    c->s.x87.tag = 0;
}

/* VZEROALL and VZEROUPPER concern ZMM0-15, eight of them outside 64-bit code. */
static void vzero(struct cpu *c, const struct insn *i)
{
    unsigned keep = i->vlen == 32 ? 0 : 2, n = i->bits == CPU_64 ? 16 : 8;

    simd_avail(c, i);
    for (unsigned r = 0; r < n; r++)
        memset(c->s.zmm[r] + keep, 0, sizeof(c->s.zmm[r]) - keep * 8);
}

static void run_fn(struct cpu *c, const struct insn *i, const struct simd_op *op) { op->fn(c, i); }

/* ---- dispatch ---- */
static insn_fn special_fn(const struct insn *i)
{
    insn_fn fn = xsave_fn(i);

    if (fn)
        return fn;
    if (i->row->flags & IF_X87)
        return x87_fn(i);
    if (i->map == 1 && i->opcode == 0x77)
        return i->prefix & PFX_VEX ? vzero : emms;
    return simd_mask_fn(i);
}

static uint8_t find_mem(const struct insn *i)
{
    for (uint8_t n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM)
            return n;
    return NO_MEM;
}

/* Is it a vector instruction whose memory operand a mask may cut? */
static bool may_be_partial(const struct insn *i)
{
    if (i->prefix & PFX_EVEX)
        return i->evex_aaa;
    return (i->prefix & PFX_VEX) && i->map == 2 &&
           ((i->opcode >= 0x2c && i->opcode <= 0x2f) || i->opcode == 0x8c || i->opcode == 0x8e);
}

static bool uses_mmx(const struct insn *i)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_REG && i->op[n].cls == RC_MMX)
            return true;
    return false;
}

static void prepare(const struct insn *i, struct simd_op *out)
{
    memset(out, 0, sizeof(*out));
    out->mem_op = find_mem(i);
    out->fn = special_fn(i);
    if (out->fn) {
        out->run = run_fn;
        return;
    }
    if (simd_move_prepare(i, out))
        return;
    out->key = stub_key(i);
    if (i->row->flags & IF_X87)
        out->run = x87_run;
    else if (uses_mmx(i))
        out->run = run_mmx;
    else if (out->mem_op == NO_MEM)
        out->run = run_regs;
    else if ((i->row->flags & IF_FP) && i->op[out->mem_op].write)
        out->run = run_fp_out;
    else if (may_be_partial(i))
        out->run = i->op[out->mem_op].write ? run_partial_out : run_partial_in;
    else
        out->run = i->op[out->mem_op].write ? run_mem_out : run_mem_in;
}

static void simd_exec(struct cpu *c, const struct insn *i)
{
    struct simd_op op;

    prepare(i, &op);
    op.run(c, i, &op);
}

insn_fn simd_fn(const struct insn *i)
{
    if (i->row->flags & (IF_X87 | IF_MMX | IF_SSE | IF_AVX | IF_AVX512))
        return simd_exec;
    return xsave_fn(i);
}

bool simd_prepare(struct cpu *c, const struct insn *i, struct simd_op *out)
{
    if (!simd_fn(i))
        return false;
    prepare(i, out);
    return true;
}

int simd_init(struct cpu *c, struct err *e)
{
    const struct cpuid_policy *p = c->vm->cpuid;
    struct simd *s = aligned_alloc(64, ALIGN_UP(sizeof(*s), 64));

    if (!s)
        return err_set(e, ENOMEM, "no memory for vector state");
    memset(s, 0, sizeof(*s));
    int rc = stub_init(&s->stubs, e);
    if (rc) {
        free(s);
        return rc;
    }
    s->la_bits = 48;
    s->error_pointers = !p->amd;
    for (uint32_t n = 0; n < p->n; n++) {
        const struct cpuid_leaf *l = &p->leaf[n];
        if (l->leaf == 7 && l->subleaf == 0) {
            s->fdp_excptn_only = l->ebx >> 6 & 1;
            s->no_fcs_fds = l->ebx >> 13 & 1;
        } else if (l->leaf == 0x80000008) {
            s->la_bits = bits(l->eax, 15, 8);
            s->error_pointers = !p->amd || (l->ebx >> 2 & 1);
        }
    }
    c->simd = s;
    return 0;
}

void simd_fini(struct cpu *c)
{
    if (!c->simd)
        return;
    x87_sync(c);
    stub_fini(&c->simd->stubs);
    free(c->simd);
    c->simd = NULL;
}
