/*
 * Extended state in memory: FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XSAVEC, XRSTOR, XGETBV, XSETBV,
 * LDMXCSR, STMXCSR. Intel SDM vol. 1 ch. 13 and §10.5. The areas are the guest's: every field read
 * from them is checked.
 */
#include "engine/interp/simd.h"

#include <string.h>

#include "cpu/xsave.h"

#define XCOMP_COMPACT BIT(63)

/* An area in guest memory. */
struct area {
    struct cpu *c;
    const struct insn *i;
    uint64_t ea;
    bool wide; /* REX.W: 64-bit pointers */
};

static void area_read(const struct area *a, unsigned off, void *p, unsigned n)
{
    struct cpu *c = a->c;
    lin_read(c, seg_lin(c, a->i->mem.seg, a->ea + off, n, ACCESS_READ), p, n, PRIV_CPL);
}
static void area_write(const struct area *a, unsigned off, const void *p, unsigned n)
{
    struct cpu *c = a->c;
    lin_write(c, seg_lin(c, a->i->mem.seg, a->ea + off, n, ACCESS_WRITE), p, n, PRIV_CPL);
}
static void area_check(const struct area *a, unsigned n, enum access acc)
{
    struct cpu *c = a->c;
    lin_check(c, seg_lin(c, a->i->mem.seg, a->ea, n, acc), n, acc, PRIV_CPL);
}

/* #NM by CR0, then the area with its alignment checked. Which misalignments alignment checking
 * takes for its own is up to the processor: Intel's take what is not aligned to four bytes. */
static struct area area_open(struct cpu *c, const struct insn *i, unsigned align)
{
    struct area a = {.c = c, .i = i, .ea = insn_ea(c, i), .wide = i->rex & 8};

    uint64_t la = seg_lin(c, i->mem.seg, a.ea, 1, ACCESS_READ);
    if (la & (align - 1))
        cpu_raise(c, c->align && (la & 3) ? X_AC : X_GP, 0);
    return a;
}

static unsigned xmm_count(const struct cpu *c) { return c->bits == CPU_64 ? 16 : 8; }

/* ---- the legacy region ---- */
static void put_x87(const struct area *a, uint8_t *b)
{
    const struct x87_state *x = &a->c->s.x87;

    memcpy(b + FX_FCW, &x->fcw, 2);
    memcpy(b + FX_FSW, &x->fsw, 2);
    b[FX_TAG] = x->tag;
    b[FX_TAG + 1] = 0;
    memcpy(b + FX_FOP, &x->fop, 2);
    memcpy(b + FX_FIP, &x->fip, 8);
    memcpy(b + FX_FDP, &x->fdp, 8);
    if (!a->wide) {
        uint32_t cs = x->fcs, ds = x->fds;
        memcpy(b + FX_FIP + 4, &cs, 4);
        memcpy(b + FX_FDP + 4, &ds, 4);
    }
    for (unsigned n = 0; n < 8; n++)
        memcpy(b + FX_ST + 16 * n, x->st[n], 16);
}

/* Older AMD processors save and restore the pointers only while an exception is pending. */
static bool keeps_pointers(const struct cpu *c)
{
    return c->simd->error_pointers || (c->s.x87.fsw & FSW_ES);
}

static void get_x87(const struct area *a, const uint8_t *b)
{
    struct x87_state *x = &a->c->s.x87, old;

    x87_sync(a->c);
    old = *x;
    memset(x, 0, sizeof(*x));
    memcpy(&x->fcw, b + FX_FCW, 2);
    x->fcw = (x->fcw & FCW_VALID) | FCW_ONE;
    memcpy(&x->fsw, b + FX_FSW, 2);
    x->tag = b[FX_TAG];
    memcpy(&x->fop, b + FX_FOP, 2);
    x->fop &= 0x7ff;
    memcpy(&x->fip, b + FX_FIP, 8);
    memcpy(&x->fdp, b + FX_FDP, 8);
    if (!a->wide) {
        x->fcs = (uint16_t)(x->fip >> 32);
        x->fds = (uint16_t)(x->fdp >> 32);
        x->fip = (uint32_t)x->fip;
        x->fdp = (uint32_t)x->fdp;
        if (a->c->simd->no_fcs_fds)
            x->fcs = x->fds = 0;
    } else {
        x->fip = sext(x->fip, a->c->simd->la_bits);
    }
    for (unsigned n = 0; n < 8; n++)
        memcpy(x->st[n], b + FX_ST + 16 * n, 10);
    x87_update_es(x);
    if (!keeps_pointers(a->c)) {
        x->fop = old.fop;
        x->fip = old.fip;
        x->fdp = old.fdp;
        x->fcs = old.fcs;
        x->fds = old.fds;
    }
}

static void put_xmm(const struct cpu *c, uint8_t *b)
{
    for (unsigned n = 0; n < xmm_count(c); n++)
        memcpy(b + 16 * n, c->s.zmm[n], 16);
}

static void get_xmm(struct cpu *c, const uint8_t *b)
{
    for (unsigned n = 0; n < xmm_count(c); n++)
        memcpy(c->s.zmm[n], b + 16 * n, 16);
}

static void put_mxcsr(const struct cpu *c, uint8_t b[8])
{
    uint32_t mask = MXCSR_VALID;
    memcpy(b, &c->s.mxcsr, 4);
    memcpy(b + 4, &mask, 4);
}

static uint32_t get_mxcsr(struct cpu *c, const uint8_t b[4])
{
    uint32_t v;

    memcpy(&v, b, 4);
    if (v & ~MXCSR_VALID)
        cpu_raise(c, X_GP, 0);
    return v;
}

/* EFER.FFXSR leaves the XMM registers out at CPL 0 in 64-bit mode. */
static bool skips_xmm(const struct cpu *c)
{
    return (c->s.efer & EFER_FFXSR) && c->bits == CPU_64 && c->cpl == 0;
}

static void fx_enter(struct cpu *c)
{
    if (c->s.cr0 & (CR0_EM | CR0_TS))
        cpu_raise(c, X_NM, 0);
}

static void fxsave(struct cpu *c, const struct insn *i)
{
    uint8_t b[XSAVE_LEGACY] = {0};

    fx_enter(c);
    struct area a = area_open(c, i, 16);
    x87_sync(c);
    unsigned n = skips_xmm(c) ? FX_XMM : FX_XMM + 16 * xmm_count(c);
    put_x87(&a, b);
    put_mxcsr(c, b + FX_MXCSR);
    put_xmm(c, b + FX_XMM);
    area_check(&a, XSAVE_LEGACY, ACCESS_WRITE);
    area_write(&a, 0, b, keeps_pointers(c) ? FX_MXCSR : FX_FOP);
    area_write(&a, FX_MXCSR, b + FX_MXCSR, n - FX_MXCSR);
}

static void fxrstor(struct cpu *c, const struct insn *i)
{
    uint8_t b[XSAVE_LEGACY];

    fx_enter(c);
    struct area a = area_open(c, i, 16);
    area_read(&a, 0, b, sizeof(b));
    uint32_t mxcsr = get_mxcsr(c, b + FX_MXCSR);
    get_x87(&a, b);
    c->s.mxcsr = mxcsr;
    if (!skips_xmm(c))
        get_xmm(c, b + FX_XMM);
}

/* ---- extended components: where the registers of each lie ---- */
struct reg_part {
    unsigned first, count, off, n; /* rows of s.zmm and the bytes of each */
};

static struct reg_part comp_part(const struct cpu *c, enum xsave_component k)
{
    unsigned n = xmm_count(c);

    switch (k) {
    case COMP_SSE:
        return (struct reg_part){0, n, 0, 16};
    case COMP_AVX:
        return (struct reg_part){0, n, 16, 16};
    case COMP_ZMM_HI256:
        return (struct reg_part){0, n, 32, 32};
    case COMP_HI16_ZMM:
        return (struct reg_part){16, n == 16 ? 16 : 0, 0, 64};
    default:
        return (struct reg_part){0};
    }
}

/* Bytes of component k that this mode stores: registers 8 up exist only in 64-bit code. */
static unsigned comp_bytes(const struct cpu *c, enum xsave_component k)
{
    struct reg_part r = comp_part(c, k);
    return k == COMP_K ? 64 : r.count * r.n;
}

static void put_comp(const struct cpu *c, enum xsave_component k, uint8_t *b)
{
    struct reg_part r = comp_part(c, k);

    if (k == COMP_K)
        memcpy(b, c->s.k, 64);
    for (unsigned n = 0; n < r.count; n++)
        memcpy(b + n * r.n, (const uint8_t *)c->s.zmm[r.first + n] + r.off, r.n);
}

/* b NULL: to the initial state, which is zero. */
static void get_comp(struct cpu *c, enum xsave_component k, const uint8_t *b)
{
    struct reg_part r = comp_part(c, k);
    static const uint8_t zero[64];

    if (k == COMP_K)
        memcpy(c->s.k, b ? b : zero, 64);
    for (unsigned n = 0; n < r.count; n++)
        memcpy((uint8_t *)c->s.zmm[r.first + n] + r.off, b ? b + n * r.n : zero, r.n);
}

static bool all_zero(const void *p, size_t n)
{
    uint64_t any = 0, v;

    for (; n >= 8; n -= 8, p = (const uint8_t *)p + 8) {
        memcpy(&v, p, 8);
        any |= v;
    }
    return !any;
}

static bool comp_in_use(const struct cpu *c, enum xsave_component k)
{
    struct reg_part r = comp_part(c, k);

    if (k == COMP_K)
        return !all_zero(c->s.k, sizeof(c->s.k));
    for (unsigned n = 0; n < r.count; n++)
        if (!all_zero((const uint8_t *)c->s.zmm[r.first + n] + r.off, r.n))
            return true;
    return false;
}

/* XINUSE of the components in want: those not in their initial state. */
static uint64_t in_use(struct cpu *c, uint64_t want)
{
    uint64_t bv = 0;

    x87_sync(c);
    const struct x87_state *x = &c->s.x87;
    if (x->fcw != FCW_DEFAULT || x->fsw || x->tag || x->fop || x->fip || x->fdp || x->fcs ||
        x->fds || !all_zero(x->st, sizeof(x->st)))
        bv |= XCR0_X87;
    for (unsigned k = COMP_SSE; k < COMP_COUNT; k++)
        if (want >> k & 1 && comp_in_use(c, k))
            bv |= BIT(k);
    return bv;
}

/* ---- XSAVE ---- */
static void xsave_enter(struct cpu *c)
{
    if (!(c->s.cr4 & CR4_OSXSAVE))
        cpu_raise(c, X_UD, 0);
    if (c->s.cr0 & CR0_TS)
        cpu_raise(c, X_NM, 0);
}

static uint64_t rfbm(const struct cpu *c)
{
    return ((c->s.gpr[RDX] << 32) | (uint32_t)c->s.gpr[RAX]) & c->s.xcr0;
}

/* Offset of component k in an area whose XCOMP_BV is xcomp (0: standard format). */
static unsigned comp_off(const struct cpu *c, uint64_t xcomp, unsigned k)
{
    const struct cpuid_policy *p = c->vm->cpuid;
    unsigned off = XSAVE_EXTENDED;

    if (!(xcomp & XCOMP_COMPACT))
        return p->xsave_off[k];
    for (unsigned j = COMP_AVX; j < k; j++)
        if (xcomp >> j & 1)
            off += p->xsave_size[j];
    return off;
}

/* Bytes from the start of the area to the end of its last component in bv. */
static unsigned area_bytes(const struct cpu *c, uint64_t xcomp, uint64_t bv)
{
    unsigned n = XSAVE_EXTENDED;

    for (unsigned k = COMP_AVX; k < COMP_COUNT; k++)
        if (bv >> k & 1)
            n = MAX(n, comp_off(c, xcomp, k) + c->vm->cpuid->xsave_size[k]);
    return n;
}

enum save_kind { SAVE_PLAIN, SAVE_OPT, SAVE_COMPACT };

static void save(struct cpu *c, const struct insn *i, enum save_kind kind)
{
    uint8_t b[1024];

    xsave_enter(c);
    struct area a = area_open(c, i, 64);
    uint64_t want = rfbm(c), use = in_use(c, want), xcomp = 0, old = 0;

    /* MXCSR belongs to SSE where the init optimisation is concerned. */
    if (kind == SAVE_COMPACT) {
        xcomp = XCOMP_COMPACT | want;
        if (c->s.mxcsr != MXCSR_DEFAULT)
            use |= XCR0_SSE;
    }
    area_check(&a, area_bytes(c, xcomp, want), ACCESS_WRITE);
    if (kind != SAVE_COMPACT)
        area_read(&a, XSAVE_LEGACY, &old, 8);

    uint64_t write = kind == SAVE_PLAIN ? want : want & use;
    if (write & XCR0_X87) {
        put_x87(&a, b);
        area_write(&a, 0, b, keeps_pointers(c) ? FX_MXCSR : FX_FOP);
        area_write(&a, FX_ST, b + FX_ST, FX_XMM - FX_ST);
    }
    if (kind == SAVE_COMPACT ? write & XCR0_SSE : want & (XCR0_SSE | XCR0_AVX)) {
        put_mxcsr(c, b);
        area_write(&a, FX_MXCSR, b, 8);
    }
    if (write & XCR0_SSE) {
        put_xmm(c, b);
        area_write(&a, FX_XMM, b, 16 * xmm_count(c));
    }
    for (unsigned k = COMP_AVX; k < COMP_COUNT; k++)
        if (write >> k & 1 && comp_bytes(c, k)) {
            put_comp(c, k, b);
            area_write(&a, comp_off(c, xcomp, k), b, comp_bytes(c, k));
        }
    uint64_t hdr[2] = {(old & ~want) | (use & want), xcomp};
    area_write(&a, XSAVE_LEGACY, hdr, kind == SAVE_COMPACT ? 16 : 8);
}

static void xsave(struct cpu *c, const struct insn *i) { save(c, i, SAVE_PLAIN); }
static void xsaveopt(struct cpu *c, const struct insn *i) { save(c, i, SAVE_OPT); }
static void xsavec(struct cpu *c, const struct insn *i) { save(c, i, SAVE_COMPACT); }

/* The header's rules, SDM vol. 1 §13.8.1 and 13.8.2. */
static bool header_valid(const struct cpu *c, const uint64_t h[8])
{
    uint64_t bv = h[0], comp = h[1];

    if (!(comp & XCOMP_COMPACT))
        return !comp && !h[2] && !(bv & ~c->s.xcr0);
    return cpuid_has(c->vm->cpuid, CPUF_XSAVEC) && !(comp & ~XCOMP_COMPACT & ~c->s.xcr0) &&
           !(bv & ~(comp & ~XCOMP_COMPACT)) && all_zero(h + 2, 48);
}

static void xrstor(struct cpu *c, const struct insn *i)
{
    uint8_t legacy[XSAVE_LEGACY], b[COMP_COUNT][1024];
    uint64_t h[8], want = rfbm(c);

    xsave_enter(c);
    struct area a = area_open(c, i, 64);
    area_read(&a, XSAVE_LEGACY, h, sizeof(h));
    if (!header_valid(c, h))
        cpu_raise(c, X_GP, 0);

    bool compact = h[1] & XCOMP_COMPACT;
    uint64_t load = want & h[0];
    uint32_t mxcsr = c->s.mxcsr;
    bool load_mxcsr = compact ? load & XCR0_SSE : want & (XCR0_SSE | XCR0_AVX);

    /* Everything that can fault comes first. */
    area_read(&a, 0, legacy, sizeof(legacy));
    if (load_mxcsr)
        mxcsr = get_mxcsr(c, legacy + FX_MXCSR);
    else if (compact && (want & XCR0_SSE))
        mxcsr = MXCSR_DEFAULT;
    for (unsigned k = COMP_AVX; k < COMP_COUNT; k++)
        if (load >> k & 1 && comp_bytes(c, k))
            area_read(&a, comp_off(c, h[1], k), b[k], comp_bytes(c, k));

    c->s.mxcsr = mxcsr;
    if (want & XCR0_X87) {
        if (load & XCR0_X87) {
            get_x87(&a, legacy);
        } else {
            x87_sync(c);
            x87_reset(&c->s.x87);
            memset(c->s.x87.st, 0, sizeof(c->s.x87.st));
        }
    }
    if (want & XCR0_SSE) {
        if (!(load & XCR0_SSE))
            memset(legacy + FX_XMM, 0, 256);
        get_xmm(c, legacy + FX_XMM);
    }
    for (unsigned k = COMP_AVX; k < COMP_COUNT; k++)
        if (want >> k & 1)
            get_comp(c, k, load >> k & 1 ? b[k] : NULL);
}

/* ---- XCR0 ---- */
static void xgetbv(struct cpu *c, const struct insn *i)
{
    uint32_t reg = (uint32_t)c->s.gpr[RCX];
    uint64_t v;

    if (!(c->s.cr4 & CR4_OSXSAVE))
        cpu_raise(c, X_UD, 0);
    if (reg > 1 || (reg == 1 && !cpuid_has(c->vm->cpuid, CPUF_XGETBV1)))
        cpu_raise(c, X_GP, 0);
    v = c->s.xcr0;
    if (reg == 1)
        v &= in_use(c, v);
    c->s.gpr[RAX] = (uint32_t)v;
    c->s.gpr[RDX] = v >> 32;
}

/* SDM vol. 2 XSETBV: x87 always on, AVX needs SSE, the AVX-512 bits go together and need AVX. */
static bool xcr0_valid(const struct cpuid_policy *p, uint64_t v)
{
    uint64_t z = v & XCR0_AVX512;

    if (!(v & XCR0_X87) || (v & ~p->xcr0_mask))
        return false;
    if ((v & XCR0_AVX) && !(v & XCR0_SSE))
        return false;
    return !z || (z == XCR0_AVX512 && (v & XCR0_AVX));
}

static void xsetbv(struct cpu *c, const struct insn *i)
{
    uint64_t v = (c->s.gpr[RDX] << 32) | (uint32_t)c->s.gpr[RAX];

    if (!(c->s.cr4 & CR4_OSXSAVE))
        cpu_raise(c, X_UD, 0);
    if (c->cpl || (uint32_t)c->s.gpr[RCX] || !xcr0_valid(c->vm->cpuid, v))
        cpu_raise(c, X_GP, 0);
    c->s.xcr0 = v;
}

/* ---- MXCSR ---- */
static void ldmxcsr(struct cpu *c, const struct insn *i)
{
    simd_avail(c, i);
    c->s.mxcsr = get_mxcsr(c, simd_load(c, i, 4));
}

static void stmxcsr(struct cpu *c, const struct insn *i)
{
    uint64_t la = 0;

    simd_avail(c, i);
    void *p = simd_store_begin(c, i, 4, &la);
    memcpy(p, &c->s.mxcsr, 4);
    simd_store_end(c, 4, la, p);
}

insn_fn xsave_fn(const struct insn *i)
{
    static const insn_fn ae[8] = {fxsave, fxrstor, ldmxcsr, stmxcsr, xsave, xrstor, xsaveopt, NULL};
    unsigned reg = i->modrm >> 3 & 7;
    bool mem = i->modrm < 0xc0;

    if (i->map != 1)
        return NULL;
    if (i->opcode == 0xae && mem && i->pp == 0)
        return ae[reg];
    if (i->opcode == 0xc7 && mem && reg == 4 && i->pp == 0)
        return xsavec;
    if (i->opcode == 0x01 && i->modrm == 0xd0)
        return xgetbv;
    if (i->opcode == 0x01 && i->modrm == 0xd1)
        return xsetbv;
    return NULL;
}
