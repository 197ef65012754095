/*
 * Memory operands accessed in part, element by element: EVEX opmasks, VMASKMOV, MASKMOVDQU, gathers
 * and scatters. An element that is masked off is not accessed and cannot fault; elements go from
 * the lowest to the highest (SDM vol. 2 §2.7.4, 2.8.9 and the instructions' own pages).
 */
#include "engine/interp/simd.h"

#include <assert.h>
#include <string.h>

static uint64_t low_bits(unsigned n) { return n >= 64 ? ~0ull : BIT(n) - 1; }

/* ---- which element size an opmask bit stands for ---- */

/* It is 4 or 8 by EVEX.W except for these. */
enum grain { G_B, G_W, G_D, G_Q, G_BW /* 1 or 2 by W */, G_SCALAR };
struct grain_row {
    uint8_t map, pp /* bit set: 1 none, 2 66, 4 F3, 8 F2 */, first, last, grain;
};
static const struct grain_row grains[] = {
    {1, 4 | 8, 0x10, 0x11, G_SCALAR},                           /* VMOVSS VMOVSD */
    {1, 4 | 8, 0x51, 0x51, G_SCALAR},                           /* VSQRT */
    {1, 4 | 8, 0x58, 0x5a, G_SCALAR},                           /* VADD VMUL VCVTSS2SD */
    {1, 4 | 8, 0x5c, 0x5f, G_SCALAR},                           /* VSUB VMIN VDIV VMAX */
    {1, 4 | 8, 0xc2, 0xc2, G_SCALAR},                           /* VCMP */
    {1, 1, 0x5a, 0x5a, G_Q},                                    /* VCVTPS2PD */
    {1, 2, 0x64, 0x64, G_B},                                    /* VPCMPGTB */
    {1, 2, 0x65, 0x65, G_W},          {1, 8, 0x6f, 0x6f, G_BW}, /* VMOVDQU8 VMOVDQU16 */
    {1, 8, 0x7f, 0x7f, G_BW},         {1, 2, 0x71, 0x71, G_W},  /* VPSRLW and others by immediate */
    {1, 2, 0x74, 0x74, G_B},                                    /* VPCMPEQB */
    {1, 2, 0x75, 0x75, G_W},          {1, 2, 0x78, 0x7b, G_Q},  /* VCVTPS2QQ and the like */
    {1, 4, 0x7a, 0x7a, G_Q},                                    /* VCVTUDQ2PD */
    {1, 2, 0xd5, 0xd5, G_W},                                    /* VPMULLW */
    {1, 2, 0xd8, 0xd8, G_B},                                    /* VPSUBUSB */
    {1, 2, 0xd9, 0xd9, G_W},          {1, 2, 0xda, 0xda, G_B},  /* VPMINUB */
    {1, 2, 0xdc, 0xdc, G_B},                                    /* VPADDUSB */
    {1, 2, 0xdd, 0xdd, G_W},          {1, 2, 0xde, 0xde, G_B},  /* VPMAXUB */
    {1, 2, 0xe0, 0xe0, G_B},                                    /* VPAVGB */
    {1, 2, 0xe3, 0xe5, G_W},                                    /* VPAVGW VPMULHUW VPMULHW */
    {1, 4, 0xe6, 0xe6, G_Q},                                    /* VCVTDQ2PD */
    {1, 2, 0xe8, 0xe8, G_B},                                    /* VPSUBSB */
    {1, 2, 0xe9, 0xea, G_W},                                    /* VPSUBSW VPMINSW */
    {1, 2, 0xec, 0xec, G_B},                                    /* VPADDSB */
    {1, 2, 0xed, 0xee, G_W},                                    /* VPADDSW VPMAXSW */
    {1, 2, 0xf8, 0xf8, G_B},                                    /* VPSUBB */
    {1, 2, 0xf9, 0xf9, G_W},          {1, 2, 0xfc, 0xfc, G_B},  /* VPADDB */
    {1, 2, 0xfd, 0xfd, G_W},          {2, 2, 0x0b, 0x0b, G_W},  /* VPMULHRSW */
    {2, 2, 0x10, 0x12, G_W},                                    /* VPSRLVW VPSRAVW VPSLLVW */
    {2, 4, 0x10, 0x10, G_W},                                    /* VPMOVUSWB */
    {2, 4, 0x12, 0x12, G_Q},                                    /* VPMOVUSQB */
    {2, 4, 0x14, 0x15, G_Q},                                    /* VPMOVUSQW VPMOVUSQD */
    {2, 2, 0x1c, 0x1c, G_B},                                    /* VPABSB */
    {2, 2, 0x1d, 0x1d, G_W},          {2, 2 | 4, 0x20, 0x20, G_W}, /* VPMOVSXBW VPMOVSWB */
    {2, 2 | 4, 0x21, 0x21, G_D},                                   /* VPMOVSXBD VPMOVSDB */
    {2, 2 | 4, 0x22, 0x22, G_Q},      {2, 2 | 4, 0x23, 0x23, G_D},
    {2, 2 | 4, 0x24, 0x25, G_Q},  /* VPMOVSXWQ, DQ; VPMOVSQW, QD */
    {2, 2 | 4, 0x26, 0x26, G_BW}, /* VPTESTMB VPTESTNMB */
    {2, 2, 0x2d, 0x2d, G_SCALAR}, /* VSCALEFSS */
    {2, 2 | 4, 0x30, 0x30, G_W},  /* VPMOVZXBW VPMOVWB */
    {2, 2 | 4, 0x31, 0x31, G_D},      {2, 2 | 4, 0x32, 0x32, G_Q},
    {2, 2 | 4, 0x33, 0x33, G_D},      {2, 2 | 4, 0x34, 0x35, G_Q},
    {2, 2, 0x38, 0x38, G_B},                                        /* VPMINSB */
    {2, 2, 0x3a, 0x3a, G_W},                                        /* VPMINUW */
    {2, 2, 0x3c, 0x3c, G_B},                                        /* VPMAXSB */
    {2, 2, 0x3e, 0x3e, G_W},                                        /* VPMAXUW */
    {2, 2, 0x43, 0x43, G_SCALAR},                                   /* VGETEXPSS */
    {2, 2, 0x4d, 0x4d, G_SCALAR},                                   /* VRCP14SS */
    {2, 2, 0x4f, 0x4f, G_SCALAR},                                   /* VRSQRT14SS */
    {2, 2, 0x54, 0x54, G_BW},                                       /* VPOPCNTB */
    {2, 2, 0x62, 0x63, G_BW},                                       /* VPEXPANDB VPCOMPRESSB */
    {2, 2, 0x66, 0x66, G_BW},                                       /* VPBLENDMB */
    {2, 2, 0x70, 0x70, G_W},                                        /* VPSHLDVW */
    {2, 2, 0x72, 0x72, G_W},                                        /* VPSHRDVW */
    {2, 2, 0x78, 0x78, G_B},                                        /* VPBROADCASTB */
    {2, 2, 0x79, 0x79, G_W},          {2, 2, 0x99, 0x99, G_SCALAR}, /* scalar FMA */
    {2, 2, 0x9b, 0x9b, G_SCALAR},     {2, 2, 0x9d, 0x9d, G_SCALAR},
    {2, 2, 0x9f, 0x9f, G_SCALAR},     {2, 2, 0xa9, 0xa9, G_SCALAR},
    {2, 2, 0xab, 0xab, G_SCALAR},     {2, 2, 0xad, 0xad, G_SCALAR},
    {2, 2, 0xaf, 0xaf, G_SCALAR},     {2, 2, 0xb9, 0xb9, G_SCALAR},
    {2, 2, 0xbb, 0xbb, G_SCALAR},     {2, 2, 0xbd, 0xbd, G_SCALAR},
    {2, 2, 0xbf, 0xbf, G_SCALAR},     {2, 2, 0xcf, 0xcf, G_B}, /* VGF2P8MULB */
    {3, 2, 0x0a, 0x0b, G_SCALAR},                              /* VRNDSCALESS, SD */
    {3, 2, 0x27, 0x27, G_SCALAR},                              /* VGETMANTSS */
    {3, 2, 0x3e, 0x3f, G_BW},                                  /* VPCMPUB VPCMPB */
    {3, 2, 0x51, 0x51, G_SCALAR},                              /* VRANGESS */
    {3, 2, 0x55, 0x55, G_SCALAR},                              /* VFIXUPIMMSS */
    {3, 2, 0x57, 0x57, G_SCALAR},                              /* VREDUCESS */
    {3, 2, 0x67, 0x67, G_SCALAR},                              /* VFPCLASSSS */
    {3, 2, 0x70, 0x70, G_W},                                   /* VPSHLDW */
    {3, 2, 0x72, 0x72, G_W},                                   /* VPSHRDW */
};

static const struct opnd *mem_opnd(const struct insn *i)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM)
            return &i->op[n];
    return NULL;
}

static unsigned grain_bytes(const struct insn *i, bool *scalar)
{
    unsigned w = i->vex_w;

    for (const struct grain_row *r = grains; r < grains + ARRAY_LEN(grains); r++)
        if (r->map == i->map && r->pp >> i->pp & 1 && i->opcode >= r->first && i->opcode <= r->last)
            switch ((enum grain)r->grain) {
            case G_B:
                return 1;
            case G_W:
                return 2;
            case G_D:
                return 4;
            case G_BW:
                return w ? 2 : 1;
            case G_Q:
                return 8;
            case G_SCALAR:
                *scalar = true;
                break;
            }
    return w ? 8 : 4;
}

/* VBROADCAST*: memory holds one group of elements that the destination repeats. */
static bool repeats_memory(const struct insn *i)
{
    if (i->map != 2 || i->pp != 1)
        return false;
    switch (i->opcode) {
    case 0x18:
    case 0x19:
    case 0x1a:
    case 0x1b:
    case 0x58:
    case 0x59:
    case 0x5a:
    case 0x5b:
    case 0x78:
    case 0x79:
        return true;
    default:
        return false;
    }
}

/* Compressed stores and expanding loads touch as many elements as the mask has bits, one after the
 * other. */
static bool is_packing(const struct insn *i)
{
    return i->map == 2 && i->pp == 1 &&
           (i->opcode == 0x62 || i->opcode == 0x63 || (i->opcode >= 0x88 && i->opcode <= 0x8b));
}

static bool is_extract(const struct insn *i)
{
    return i->map == 3 && i->pp == 1 &&
           (i->opcode == 0x19 || i->opcode == 0x1b || i->opcode == 0x39 || i->opcode == 0x3b);
}

static void evex_partial(const struct cpu *c, const struct insn *i, const struct opnd *mem,
                         struct simd_elems *el)
{
    bool scalar = false;
    unsigned grain = grain_bytes(i, &scalar);
    unsigned n = scalar ? 1 : is_extract(i) ? mem->size / grain : i->vlen / grain;
    uint64_t k = c->s.k[i->evex_aaa] & low_bits(n);

    if (i->bcst || repeats_memory(i)) {
        el->size = i->bcst ? i->bcst : grain;
        if (el->size > mem->size)
            el->size = mem->size;
        assert(el->size);
        el->count = mem->size / el->size;
        el->active = 0;
        for (unsigned b = 0; b < n; b++)
            if (k >> b & 1)
                el->active |= BIT(b % el->count);
        return;
    }
    el->count = n;
    if (is_packing(i)) {
        el->size = grain;
        el->active = low_bits(__builtin_popcountll(k));
        return;
    }
    el->size = mem->size / n;
    el->active = k;
}

/* VMASKMOVPS, PD and VPMASKMOVD, Q: the sign bits of the vvvv operand. */
static void vex_partial(const struct cpu *c, const struct insn *i, struct simd_elems *el)
{
    const uint8_t *mask = (const uint8_t *)c->s.zmm[i->bits == CPU_64 ? i->vvvv : i->vvvv & 7];
    bool wide = i->opcode >= 0x8c ? i->vex_w : i->opcode & 1;

    el->size = wide ? 8 : 4;
    el->count = i->vlen / el->size;
    el->active = 0;
    for (unsigned n = 0; n < el->count; n++)
        el->active |= (uint64_t)(mask[n * el->size + el->size - 1] >> 7) << n;
}

void simd_partial(const struct cpu *c, const struct insn *i, struct simd_elems *el)
{
    if (i->prefix & PFX_EVEX)
        evex_partial(c, i, mem_opnd(i), el);
    else
        vex_partial(c, i, el);
}

/* Linear address of element n. */
static uint64_t elem_lin(struct cpu *c, const struct insn *i, uint64_t ea,
                         const struct simd_elems *el, unsigned n, enum access a)
{
    uint64_t off = ea + (uint64_t)n * el->size;

    if (i->addrsize < 8)
        off &= low_bits(8 * i->addrsize);
    return seg_lin(c, i->mem.seg, off, el->size, a);
}

/* Alignment concerns the whole operand, unless nothing at all is accessed. Alignment checking is for
 * operands of up to eight bytes. */
static void check_whole_align(struct cpu *c, const struct insn *i, const struct simd_elems *el)
{
    unsigned size = mem_opnd(i)->size;
    uint64_t la;

    if (!el->active)
        return;
    if (i->row->flags & IF_ALIGN)
        simd_lin(c, i, size, ACCESS_READ);
    /* VCVTPS2PH and VCVTPH2PS are left alone. */
    if (unlikely(c->align) && size <= 8 && !(i->map == 3 && i->opcode == 0x1d) &&
        !(i->map == 2 && i->opcode == 0x13 && i->pp == 1)) {
        la = seg_lin(c, i->mem.seg, insn_ea(c, i), 1, ACCESS_READ);
        if (la & (size - 1))
            cpu_raise(c, X_AC, 0);
    }
}

void simd_partial_load(struct cpu *c, const struct insn *i, const struct simd_elems *el, uint8_t *buf)
{
    uint64_t ea = insn_ea(c, i);

    check_whole_align(c, i, el);
    for (unsigned n = 0; n < el->count; n++)
        if (el->active >> n & 1)
            lin_read(c, elem_lin(c, i, ea, el, n, ACCESS_READ), buf + n * el->size, el->size,
                     PRIV_ELEMENT);
}

void simd_partial_check(struct cpu *c, const struct insn *i, const struct simd_elems *el)
{
    uint64_t ea = insn_ea(c, i);
    unsigned whole = mem_opnd(i)->size;

    check_whole_align(c, i, el);
    if (i->row->flags & IF_STRICT_WHOLE)
        lin_check(c, insn_lin(c, i, whole, ACCESS_WRITE), whole, ACCESS_WRITE, PRIV_CPL);
    for (unsigned n = 0; n < el->count; n++)
        if (el->active >> n & 1)
            lin_check(c, elem_lin(c, i, ea, el, n, ACCESS_WRITE), el->size, ACCESS_WRITE, PRIV_ELEMENT);
}

void simd_partial_store(struct cpu *c, const struct insn *i, const struct simd_elems *el,
                        const uint8_t *buf)
{
    uint64_t ea = insn_ea(c, i);

    for (unsigned n = 0; n < el->count; n++)
        if (el->active >> n & 1)
            lin_write(c, elem_lin(c, i, ea, el, n, ACCESS_WRITE), buf + n * el->size, el->size,
                      PRIV_ELEMENT);
}

/* ---- MASKMOVQ, MASKMOVDQU: bytes of op[1] to seg:rDI where op[2] has its sign bit set ---- */
static void maskmov(struct cpu *c, const struct insn *i)
{
    bool mmx = i->pp == 0;
    const struct opnd *reg[2] = {0};
    const void *data, *mask;
    struct simd_elems el = {.count = mmx ? 8 : 16, .size = 1};

    simd_avail(c, i);
    for (unsigned n = 0, r = 0; n < i->nops && r < 2; n++)
        if (i->op[n].kind == OP_REG)
            reg[r++] = &i->op[n];
    assert(reg[0] && reg[1]);
    if (mmx) {
        x87_to_mmx(c);
        data = c->s.x87.st[reg[0]->reg];
        mask = c->s.x87.st[reg[1]->reg];
    } else {
        data = c->s.zmm[reg[0]->reg];
        mask = c->s.zmm[reg[1]->reg];
    }
    for (unsigned n = 0; n < el.count; n++)
        el.active |= (uint64_t)(((const uint8_t *)mask)[n] >> 7) << n;

    /* All of the operand is checked, masked off or not, as processors do. */
    uint64_t ea = c->s.gpr[RDI] & low_bits(8 * i->addrsize);
    uint64_t la = seg_lin(c, i->mem.seg, ea, el.count, ACCESS_WRITE);

    if (c->align && (la & 7))
        cpu_raise(c, X_AC, 0);
    lin_check(c, la, el.count, ACCESS_WRITE, PRIV_CPL);
    for (unsigned n = 0; n < el.count; n++)
        if (el.active >> n & 1)
            lin_write(c, elem_lin(c, i, ea, &el, n, ACCESS_WRITE), (const uint8_t *)data + n, 1,
                      PRIV_CPL);
}

/* ---- gathers and scatters ---- */
struct vsib {
    uint8_t data; /* the vector register moved from or to */
    uint8_t isz, dsz, count;
};

static struct vsib vsib_shape(const struct insn *i)
{
    struct vsib v = {.isz = i->opcode & 1 ? 8 : 4, .dsz = i->vex_w ? 8 : 4};

    v.count = i->vlen / MAX(v.isz, v.dsz);
    for (unsigned n = 0; n < i->nops; n++)
        if (i->slot[n] == SLOT_REG)
            v.data = i->op[n].reg;
    return v;
}

static uint64_t vsib_lin(struct cpu *c, const struct insn *i, const struct vsib *v, unsigned n,
                         enum access a)
{
    const struct insn_mem *m = &i->mem;
    uint64_t index = 0;

    memcpy(&index, (uint8_t *)c->s.zmm[m->index] + n * v->isz, v->isz);
    uint64_t ea = (sext(index, 8 * v->isz) << m->scale) + (uint64_t)m->disp;
    if (m->base != REG_NONE)
        ea += c->s.gpr[m->base];
    if (i->addrsize < 8)
        ea &= low_bits(8 * i->addrsize);
    return seg_lin(c, m->seg, ea, v->dsz, a);
}

/* AVX2: the vvvv register is the mask by sign bits; elements done are cleared in it as we go, so
 * that a fault leaves the rest to be done. */
static void gather_vex(struct cpu *c, const struct insn *i)
{
    simd_avail(c, i);
    struct vsib v = vsib_shape(i);
    unsigned mreg = i->bits == CPU_64 ? i->vvvv : i->vvvv & 7, bytes = v.count * v.dsz;
    uint8_t *dst = (uint8_t *)c->s.zmm[v.data], *mask = (uint8_t *)c->s.zmm[mreg];
    const size_t beyond = sizeof(c->s.zmm[0]) - i->vlen;

    /* Sign bits fill their elements before the first access. */
    for (unsigned n = 0; n < i->vlen; n += v.dsz)
        memset(mask + n, mask[n + v.dsz - 1] & 0x80 ? 0xff : 0, v.dsz);
    memset(mask + i->vlen, 0, beyond);
    for (unsigned n = 0; n < v.count; n++) {
        if (!mask[n * v.dsz])
            continue;
        uint64_t la = vsib_lin(c, i, &v, n, ACCESS_READ);
        lin_read(c, la, dst + n * v.dsz, v.dsz, PRIV_ELEMENT);
        c->partly = true;
        memset(mask + n * v.dsz, 0, v.dsz);
        memset(dst + i->vlen, 0, beyond);
    }
    c->partly = false;
    memset(mask, 0, sizeof(c->s.zmm[0]));
    memset(dst + bytes, 0, sizeof(c->s.zmm[0]) - bytes);
}

static void gather_evex(struct cpu *c, const struct insn *i)
{
    simd_avail(c, i);
    struct vsib v = vsib_shape(i);
    uint8_t *dst = (uint8_t *)c->s.zmm[v.data];
    uint64_t *k = &c->s.k[i->evex_aaa];
    unsigned bytes = v.count * v.dsz;

    for (unsigned n = 0; n < v.count; n++) {
        if (!(*k >> n & 1))
            continue;
        lin_read(c, vsib_lin(c, i, &v, n, ACCESS_READ), dst + n * v.dsz, v.dsz, PRIV_ELEMENT);
        c->partly = true;
        *k &= ~BIT(n);
        memset(dst + i->vlen, 0, sizeof(c->s.zmm[0]) - i->vlen);
    }
    c->partly = false;
    *k = 0;
    memset(dst + bytes, 0, sizeof(c->s.zmm[0]) - bytes);
}

static void scatter(struct cpu *c, const struct insn *i)
{
    simd_avail(c, i);
    struct vsib v = vsib_shape(i);
    uint64_t *k = &c->s.k[i->evex_aaa];

    for (unsigned n = 0; n < v.count; n++) {
        if (!(*k >> n & 1))
            continue;
        uint64_t la = vsib_lin(c, i, &v, n, ACCESS_WRITE);
        lin_write(c, la, (uint8_t *)c->s.zmm[v.data] + n * v.dsz, v.dsz, PRIV_ELEMENT);
        c->partly = true;
        *k &= ~BIT(n);
    }
    c->partly = false;
    *k = 0;
}

insn_fn simd_mask_fn(const struct insn *i)
{
    if (i->map == 1 && i->opcode == 0xf7 && i->pp <= 1)
        return maskmov;
    if (!i->mem.vsib || i->map != 2)
        return NULL;
    if (i->opcode >= 0xa0 && i->opcode <= 0xa3)
        return scatter;
    return i->prefix & PFX_EVEX ? gather_evex : gather_vex;
}
