/* Generated host routines, one for each instruction encoding met (simd.h). */
#include "engine/interp/simd.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STUB_BYTES (1u << 20)
#define STUB_MAX 320u  /* longest routine */
#define STUB_FIRST 64u /* the routines begin behind the constants */
#define STUB_FILL (STUB_SLOTS / 4 * 3)

/* Where a guest register lives, relative to the struct cpu in %rdi. */
#define OFF(field) ((uint32_t)offsetof(struct cpu, field))
#define OFF_GPR(n) (OFF(s.gpr) + 8u * (n))
#define OFF_ZMM(n) (OFF(s.zmm) + 64u * (n))
#define OFF_K(n) (OFF(s.k) + 8u * (n))
#define OFF_ST(n) (OFF(s.x87.st) + 16u * (n))

/* Host registers that stand for general-purpose operands. */
enum { HOST_REG_GPR = RAX, HOST_RM_GPR = RCX };

/* ---- normalised encoding ---- */
static bool is_prefix(uint8_t b)
{
    switch (b) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
        return true;
    default:
        return false;
    }
}

static const struct opnd *op_in_slot(const struct insn *i, enum opnd_slot slot)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->slot[n] == slot && i->op[n].kind != OP_NONE)
            return &i->op[n];
    return NULL;
}

static bool is_gpr(const struct opnd *o)
{
    return o && o->kind == OP_REG && (o->cls == RC_GPR || o->cls == RC_GPRH);
}

static bool has_mem(const struct insn *i) { return i->has_modrm && i->modrm < 0xc0; }

/* VEX.W and EVEX.W widen a general-purpose operand in 64-bit code only (SDM vol. 2 §2.3.4.2). */
static bool w_is_gpr_size(const struct insn *i)
{
    if (i->map == 1)
        switch (i->opcode) {
        case 0x6e:
            return i->pp == 1;
        case 0x7e:
            return i->pp == 1;
        case 0x2a:
        case 0x2c:
        case 0x2d:
        case 0x78:
        case 0x79:
        case 0x7b:
            return i->pp >= 2;
        case 0x92: case 0x93: /* KMOVD, KMOVQ */
            return i->pp == 3;
        }
    if (i->map == 2)
        return i->opcode == 0x7c && (i->prefix & PFX_EVEX); /* VPBROADCASTD, Q from a register */
    if (i->map == 3 && (i->opcode == 0x60 || i->opcode == 0x61)) /* lengths of PCMPESTRM, PCMPESTRI */
        return true;
    return i->map == 3 && (i->opcode == 0x16 || i->opcode == 0x22);
}

struct enc {
    uint8_t b[16];
    unsigned n;
};

static void enc_put(struct enc *e, uint8_t b) { e->b[e->n++] = b; }

/* The instruction with (%rsi) for its memory operand, %rax and %rcx for general-purpose ones, and
 * without prefixes that only concern addresses; bits that 16- and 32-bit code ignores are made
 * neutral. */
static void normalise(const struct insn *i, struct enc *e)
{
    bool gpr_reg = is_gpr(op_in_slot(i, SLOT_REG)), gpr_rm = is_gpr(op_in_slot(i, SLOT_RM));
    bool mem = has_mem(i), narrow = i->bits != CPU_64;
    uint8_t modrm = i->modrm;

    if (mem)
        modrm = (modrm & 0x38) | RSI;
    else if (gpr_rm)
        modrm = (modrm & 0xf8) | HOST_RM_GPR;
    if (gpr_reg)
        modrm = (modrm & 0xc7) | HOST_REG_GPR << 3;

    e->n = 0;
    if (i->prefix & (PFX_VEX | PFX_EVEX)) {
        const uint8_t *p = i->raw;
        /* A REX prefix that is not the last one counts for nothing. */
        while (is_prefix(*p) || (!narrow && (*p & 0xf0) == 0x40))
            p++;
        /* p[1] holds inverted R X B and the map, p[2] W, inverted vvvv, L and pp; EVEX has more. */
        uint8_t p0, p1;
        if (*p == 0xc5) {
            p0 = (p[1] & 0x80) | 0x61;
            p1 = p[1] & 0x7f;
        } else {
            p0 = p[1];
            p1 = p[2];
        }
        if (mem || gpr_rm || narrow)
            p0 |= 0x60;
        if (gpr_reg || narrow)
            p0 |= 0x80 | (*p == 0x62 ? 0x10 : 0);
        if (narrow) {
            p1 |= 0x40;
            if (w_is_gpr_size(i))
                p1 &= 0x7f;
        }
        enc_put(e, *p == 0x62 ? 0x62 : 0xc4);
        enc_put(e, p0);
        enc_put(e, p1);
        if (*p == 0x62)
            enc_put(e, narrow ? p[3] | 0x08 : p[3]);
    } else {
        static const uint8_t mandatory[] = {0, 0x66, 0xf3, 0xf2};
        uint8_t rex = i->rex & 0xf;

        if (mem || gpr_rm)
            rex &= 0xc;
        else
            rex &= 0xd;
        if (gpr_reg)
            rex &= ~4u;
        if (i->pp && i->map)
            enc_put(e, mandatory[i->pp]);
        if (rex && i->map)
            enc_put(e, 0x40 | rex);
        if (i->map)
            enc_put(e, 0x0f);
        if (i->map == 2)
            enc_put(e, 0x38);
        if (i->map == 3)
            enc_put(e, 0x3a);
    }
    enc_put(e, i->opcode);
    if (i->has_modrm)
        enc_put(e, modrm);
    if (i->off_imm)
        for (unsigned n = i->off_imm; n < i->len; n++) {
            bool is4 = op_in_slot(i, SLOT_IS4);
            enc_put(e, is4 && narrow ? i->raw[n] & 0x7f : i->raw[n]);
        }
}

/* ---- emission ---- */
struct emit {
    uint8_t *p;
};

static void e8(struct emit *m, uint8_t b) { *m->p++ = b; }
static void e32(struct emit *m, uint32_t v)
{
    memcpy(m->p, &v, 4);
    m->p += 4;
}
static void ebytes(struct emit *m, const void *b, unsigned n)
{
    memcpy(m->p, b, n);
    m->p += n;
}
/* ModRM for reg, disp32(%rdi). */
static void erdi(struct emit *m, unsigned reg, uint32_t off)
{
    e8(m, 0x80 | (reg & 7) << 3 | RDI);
    e32(m, off);
}

static void e_gpr(struct emit *m, bool store, unsigned host, unsigned guest)
{
    e8(m, 0x48);
    e8(m, store ? 0x89 : 0x8b);
    erdi(m, host, OFF_GPR(guest));
}

/* MOVUPS between a register and its place: 16 bytes, the rest of the place untouched. */
static void e_xmm(struct emit *m, bool store, unsigned reg)
{
    if (reg & 8)
        e8(m, 0x44);
    e8(m, 0x0f);
    e8(m, store ? 0x11 : 0x10);
    erdi(m, reg, OFF_ZMM(reg));
}

/* VMOVUPS of 16, 32 or 64 bytes. */
static void e_vec(struct emit *m, bool store, unsigned reg, unsigned size)
{
    if (reg >= 16 || size == 64) {
        e8(m, 0x62);
        e8(m, 0x61 | (reg & 8 ? 0 : 0x80) | (reg & 16 ? 0 : 0x10));
        e8(m, 0x7c);
        e8(m, 0x48);
    } else {
        e8(m, 0xc5);
        e8(m, (reg & 8 ? 0 : 0x80) | 0x78 | (size == 32 ? 4 : 0));
    }
    e8(m, store ? 0x11 : 0x10);
    erdi(m, reg, OFF_ZMM(reg));
}

/* KMOVQ, or KMOVW where masks have 16 bits at most. */
static void e_k(struct emit *m, const struct stub_cache *sc, bool store, unsigned reg)
{
    if (sc->avx512bw) {
        e8(m, 0xc4);
        e8(m, 0xe1);
        e8(m, 0xf8);
    } else {
        e8(m, 0xc5);
        e8(m, 0xf8);
    }
    e8(m, store ? 0x91 : 0x90);
    erdi(m, reg, OFF_K(reg));
}

static void e_mmx(struct emit *m, bool store, unsigned reg)
{
    e8(m, 0x0f);
    e8(m, store ? 0x7f : 0x6f);
    erdi(m, reg, OFF_ST(reg & 7));
    if (store) { /* sign and exponent become all ones */
        e8(m, 0x66);
        e8(m, 0xc7);
        erdi(m, 0, OFF_ST(reg & 7) + 8);
        e8(m, 0xff);
        e8(m, 0xff);
    }
}

static void e_flags_in(struct emit *m)
{
    static const uint8_t set[] = {0x04, 0x7f, 0x9e}; /* add $0x7f,%al; sahf */

    e8(m, 0x0f);
    e8(m, 0xb7); /* movzwl cc(%rdi),%eax */
    erdi(m, RAX, OFF(cc));
    ebytes(m, set, sizeof(set));
}

static void e_flags_out(struct emit *m)
{
    static const uint8_t get[] = {0x9f, 0x0f, 0x90,
                                  0xc0, 0x66, 0x89}; /* lahf; seto %al; mov %ax, */

    ebytes(m, get, sizeof(get));
    erdi(m, RAX, OFF(cc));
}

/* Takes MXCSR and gives the host back its own, which lies at the start of the cache. An LDMXCSR
 * that changes anything costs 80 ns on current processors, and one from where STMXCSR has just
 * written 40 ns; hence the guest's is stored only if it changed, and sticky flags, which mean
 * nothing to host code, stay. */
static void e_mxcsr_out(struct emit *m, const struct stub_cache *sc)
{
    static const uint8_t take[] = {0x0f, 0xae, 0x5c, 0x24, 0xf8,  /* stmxcsr -8(%rsp) */
                                   0x8b, 0x54, 0x24, 0xf8, 0x3b}; /* mov -8(%rsp),%edx; cmp */
    static const uint8_t put_changed[] = {0x74, 0x06, 0x89};      /* je past; mov %edx, */
    static const uint8_t restore[] = {
        0x83, 0xe2, 0xc0, 0x81, 0xfa,  /* and $~0x3f,%edx; cmp */
        0x80, 0x1f, 0x00, 0x00,        /* $0x1f80,%edx */
        0x74, 0x07, 0x0f, 0xae, 0x15}; /* je past; ldmxcsr host(%rip) */

    ebytes(m, take, sizeof(take));
    erdi(m, RDX, OFF(s.mxcsr));
    ebytes(m, put_changed, sizeof(put_changed));
    erdi(m, RDX, OFF(s.mxcsr));
    ebytes(m, restore, sizeof(restore));
    e32(m, (uint32_t)(sc->rw - (m->p + 4)));
}

/* Registers that an instruction uses without naming them. */
struct implicit {
    bool xmm0_in, xmm0_out, rax_rdx_in, rcx_out;
};

static struct implicit implicit_regs(const struct insn *i)
{
    struct implicit r = {0};
    bool vex = i->prefix & (PFX_VEX | PFX_EVEX);

    if (i->map == 3 && i->opcode >= 0x60 && i->opcode <= 0x63) { /* PCMPESTRM ESTRI ISTRM ISTRI */
        r.rax_rdx_in = i->opcode < 0x62;
        r.rcx_out = i->opcode & 1;
        r.xmm0_out = !(i->opcode & 1);
    }
    if (i->map == 2 && !vex) /* PBLENDVB BLENDVPS BLENDVPD, SHA256RNDS2 */
        r.xmm0_in =
            i->opcode == 0x10 || i->opcode == 0x14 || i->opcode == 0x15 || i->opcode == 0xcb;
    return r;
}

static unsigned host_gpr(const struct insn *i, unsigned n)
{
    return i->slot[n] == SLOT_REG ? HOST_REG_GPR : HOST_RM_GPR;
}

static void emit_vector(struct emit *m, const struct stub_cache *sc, const struct insn *i,
                        const struct enc *enc)
{
    bool vex = i->prefix & (PFX_VEX | PFX_EVEX), mmx = false;
    unsigned vlen = i->vlen ? i->vlen : 16;
    struct implicit imp = implicit_regs(i);

    /* Every register is loaded, also those only written: merging forms keep part of them. */
    for (unsigned n = 0; n < i->nops; n++) {
        const struct opnd *o = &i->op[n];
        if (o->kind != OP_REG || i->slot[n] == SLOT_IMPLICIT)
            continue;
        if (o->cls == RC_VEC && vex)
            e_vec(m, false, o->reg, vlen);
        else if (o->cls == RC_VEC)
            e_xmm(m, false, o->reg);
        else if (o->cls == RC_K)
            e_k(m, sc, false, o->reg);
        else if (o->cls == RC_GPR)
            e_gpr(m, false, host_gpr(i, n), o->reg);
        else if (o->cls == RC_MMX) {
            e_mmx(m, false, o->reg);
            mmx = true;
        }
    }
    if ((i->prefix & PFX_EVEX) && i->evex_aaa)
        e_k(m, sc, false, i->evex_aaa);
    if (imp.xmm0_in)
        e_xmm(m, false, 0);
    if (imp.rax_rdx_in) {
        e_gpr(m, false, RAX, RAX);
        e_gpr(m, false, RDX, RDX);
    }
    if (i->row->flags & IF_FP) { /* ldmxcsr */
        e8(m, 0x0f);
        e8(m, 0xae);
        erdi(m, 2, OFF(s.mxcsr));
    }

    ebytes(m, enc->b, enc->n);

    if (i->row->fl_write)
        e_flags_out(m);
    if (i->row->flags & IF_FP)
        e_mxcsr_out(m, sc);
    for (unsigned n = 0; n < i->nops; n++) {
        const struct opnd *o = &i->op[n];
        if (o->kind != OP_REG || !o->write || i->slot[n] == SLOT_IMPLICIT)
            continue;
        if (o->cls == RC_VEC && vex) /* the host has zeroed the rest of the register */
            e_vec(m, true, o->reg, sc->avx512f ? 64 : 32);
        else if (o->cls == RC_VEC)
            e_xmm(m, true, o->reg);
        else if (o->cls == RC_K)
            e_k(m, sc, true, o->reg);
        else if (o->cls == RC_GPR)
            e_gpr(m, true, host_gpr(i, n), o->reg);
        else if (o->cls == RC_MMX)
            e_mmx(m, true, o->reg);
    }
    if (imp.xmm0_out && vex)
        e_vec(m, true, 0, sc->avx512f ? 64 : 32);
    else if (imp.xmm0_out)
        e_xmm(m, true, 0);
    if (imp.rcx_out)
        e_gpr(m, true, RCX, RCX);
    if (mmx) {
        e8(m, 0x0f);
        e8(m, 0x77);
    }
    if (vex && vlen > 16) { /* vzeroupper: C code after us uses legacy SSE */
        e8(m, 0xc5);
        e8(m, 0xf8);
        e8(m, 0x77);
    }
}

/* x87: the registers are in the unit already; only flags and the status word travel. */
static void emit_x87(struct emit *m, const struct insn *i, const struct enc *enc)
{
    if (i->row->fl_read || i->row->fl_write)
        e_flags_in(m);
    ebytes(m, enc->b, enc->n);
    if (i->row->fl_write)
        e_flags_out(m);
    e8(m, 0xdd); /* fnstsw */
    erdi(m, 7, OFF(s.x87.fsw));
}

/* ---- the cache ---- */
int stub_init(struct stub_cache *sc, struct err *e)
{
    unsigned a, b = 0, c, d;

    memset(sc, 0, sizeof(*sc));
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        sc->avx512f = b >> 16 & 1 && __builtin_cpu_supports("avx512f");
        sc->avx512bw = sc->avx512f && b >> 30 & 1;
    }
    sc->slot = calloc(STUB_SLOTS, sizeof(*sc->slot));
    if (!sc->slot)
        return err_set(e, ENOMEM, "no memory for the vector routine index");

    int fd = memfd_create("ring3-simd", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, STUB_BYTES) < 0)
        goto fail;
    sc->rw = mmap(NULL, STUB_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (sc->rw == MAP_FAILED) {
        sc->rw = NULL;
        goto fail;
    }
    sc->rx = mmap(NULL, STUB_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (sc->rx == MAP_FAILED) {
        sc->rx = NULL;
        goto fail;
    }
    close(fd);
    uint32_t mxcsr = MXCSR_DEFAULT;
    memcpy(sc->rw, &mxcsr, sizeof(mxcsr));
    sc->used = STUB_FIRST;
    return 0;

fail:;
    int rc = err_sys(e, "cannot map memory for vector routines");
    if (fd >= 0)
        close(fd);
    stub_fini(sc);
    return rc;
}

void stub_fini(struct stub_cache *sc)
{
    if (sc->rw)
        munmap(sc->rw, STUB_BYTES);
    if (sc->rx)
        munmap(sc->rx, STUB_BYTES);
    free(sc->slot);
    memset(sc, 0, sizeof(*sc));
}

static void stub_reset(struct stub_cache *sc)
{
    unsigned a = 0, b, c = 0, d;

    memset(sc->slot, 0, STUB_SLOTS * sizeof(*sc->slot));
    sc->used = STUB_FIRST;
    sc->count = 0;
    /* Addresses that were executed get new code through another mapping: SDM vol. 3 §8.1.3 asks for
     * a serialising instruction in between. */
    __cpuid_count(0, 0, a, b, c, d);
}

uint64_t stub_key(const struct insn *i)
{
    struct enc enc;
    uint64_t key = 0;

    normalise(i, &enc);
    /* Nothing normalised is longer than EVEX with an immediate: seven bytes. The eighth is the
     * guest's general-purpose register, which the routine knows. */
    memcpy(&key, enc.b, MIN(enc.n, 7u));
    for (unsigned n = 0; n < i->nops; n++)
        if (is_gpr(&i->op[n]) && i->slot[n] != SLOT_IMPLICIT)
            key |= (uint64_t)(i->op[n].reg + 1) << 56;
    return key;
}

stub_fn stub_make(struct stub_cache *sc, const struct insn *i, uint64_t key)
{
    struct enc enc;
    unsigned h = stub_hash(key);

    if (sc->used + STUB_MAX > STUB_BYTES || sc->count >= STUB_FILL)
        stub_reset(sc);
    while (sc->slot[h].key)
        h = (h + 1) & (STUB_SLOTS - 1);
    normalise(i, &enc);
    struct emit m = {.p = sc->rw + sc->used};
    if (i->row->flags & IF_X87)
        emit_x87(&m, i, &enc);
    else
        emit_vector(&m, sc, i, &enc);
    e8(&m, 0xc3);
    stub_fn fn = (stub_fn)(uintptr_t)(sc->rx + sc->used);
    sc->slot[h] = (struct stub_slot){.key = key, .off = sc->used};
    sc->count++;
    sc->used = (uint32_t)ALIGN_UP((uint64_t)(m.p - sc->rw), 16);
    return fn;
}
