/* Memory operands, registers and immediates. SDM vol. 2 §2.1.5, §2.2.1, §2.3.12 (VSIB), §2.7.5
 * (disp8*N). */
#include "insn/decode.h"

/* Bytes of an operand in memory, by operand size / 2, for sizes that depend on nothing else. */
#define FIXED                                                                               \
    [SZ_b] = 1, [SZ_w] = 2, [SZ_d] = 4, [SZ_q] = 8, [SZ_o] = 16, [SZ_t] = 10, [SZ_yy] = 32, \
    [SZ_zz] = 64, [SZ_vw] = 2, [SZ_dw] = 2, [SZ_db] = 1
static const uint8_t size_table[5][SZ_s] = {
    [0] = {FIXED, [SZ_v] = 1, [SZ_z] = 1, [SZ_y] = 4, [SZ_qq] = 8},
    [1] = {FIXED, [SZ_v] = 2, [SZ_z] = 2, [SZ_y] = 4, [SZ_p] = 4, [SZ_a] = 4, [SZ_qq] = 8,
           [SZ_e] = 14},
    [2] = {FIXED, [SZ_v] = 4, [SZ_z] = 4, [SZ_y] = 4, [SZ_p] = 6, [SZ_a] = 8, [SZ_qq] = 8,
           [SZ_e] = 28},
    [4] = {FIXED, [SZ_v] = 8, [SZ_z] = 4, [SZ_y] = 8, [SZ_p] = 10, [SZ_a] = 16, [SZ_qq] = 16,
           [SZ_e] = 28},
};
#undef FIXED

static unsigned spec_bytes(const struct dec *d, const struct insn *i, unsigned size)
{
    if (likely(size < SZ_s))
        return size_table[i->opsize >> 1][size];
    if (size >= SZ_x)
        return i->vlen >> (size - SZ_x);
    if (size == SZ_s)
        return d->bits == CPU_64 ? 10 : 6;
    return d->bits == CPU_64 ? 8 : 4;
}

/* Bytes of an operand in a general register. */
static unsigned spec_gpr_bytes(const struct dec *d, const struct insn *i, unsigned size)
{
    if (unlikely(size == SZ_vw))
        return i->opsize;
    if (unlikely(size == SZ_dw || size == SZ_db))
        return 4;
    return spec_bytes(d, i, size);
}

static bool spec_is_rm(unsigned spec)
{
    switch (SPEC_LOC(spec)) {
    case LOC_E:
    case LOC_M:
    case LOC_W:
    case LOC_Q:
    case LOC_KE:
    case LOC_MV:
        return true;
    default:
        return false;
    }
}

/* What an EVEX disp8 is multiplied with. */
static unsigned disp8_scale(const struct dec *d, const struct insn *i)
{
    unsigned n = d->attr >> 9 & 7;

    if (n)
        return 1u << (n - 1);
    if (i->bcst)
        return i->bcst;
    for (int k = 0; k < INSN_MAX_OPS; k++)
        if (spec_is_rm(i->row->opspec[k]))
            return spec_bytes(d, i, SPEC_SIZE(i->row->opspec[k]));
    return 1;
}

static int mem16(struct dec *d, struct insn *i)
{
    static const uint8_t base[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const uint8_t index[8] = {RSI, RDI, RSI, RDI, REG_NONE, REG_NONE, REG_NONE, REG_NONE};
    unsigned mod = i->modrm >> 6, rm = i->modrm & 7, n = mod == 1 ? 1 : mod == 2 ? 2 : 0;
    uint64_t disp = 0;

    i->mem.base = base[rm];
    i->mem.index = index[rm];
    if (mod == 0 && rm == 6) {
        i->mem.base = REG_NONE;
        n = 2;
    }
    if (n) {
        if (!dec_u(d, n, &disp))
            return dec_short(d);
        disp = sext(disp, 8 * n);
        if (n == 1 && d->space == SPACE_EVEX)
            disp *= disp8_scale(d, i);
    }
    i->mem.disp = (int64_t)disp;
    return INSN_OK;
}

static int mem_sib(struct dec *d, struct insn *i, bool vsib, bool *no_base)
{
    uint8_t sib;

    if (!dec_u8(d, &sib))
        return dec_short(d);
    i->mem.scale = sib >> 6;
    i->mem.index = (uint8_t)((sib >> 3 & 7) | d->x);
    i->mem.base = (uint8_t)((sib & 7) | d->b);
    if (vsib) {
        i->mem.vsib = true;
        if (d->space == SPACE_EVEX)
            i->mem.index |= d->v2;
    } else if (i->mem.index == RSP) {
        i->mem.index = REG_NONE;
    }
    *no_base = (sib & 7) == RBP;
    return INSN_OK;
}

static int mem32(struct dec *d, struct insn *i, bool vsib)
{
    unsigned mod = i->modrm >> 6, rm = i->modrm & 7, n = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    bool no_base = false;
    uint64_t disp = 0;

    i->mem.base = (uint8_t)(rm | d->b);
    if (rm == 4) {
        int e = mem_sib(d, i, vsib, &no_base);
        if (e != INSN_OK)
            return e;
    } else if (vsib) {
        return INSN_E_UD;
    }
    if (mod == 0 && (rm == 5 || no_base)) {
        i->mem.base = rm == 5 && d->bits == CPU_64 ? REG_RIP : REG_NONE;
        n = 4;
    }
    if (n) {
        if (!dec_u(d, n, &disp))
            return dec_short(d);
        disp = sext(disp, 8 * n);
        if (n == 1 && d->space == SPACE_EVEX)
            disp *= disp8_scale(d, i);
    }
    i->mem.disp = (int64_t)disp;
    return INSN_OK;
}

static void default_segment(struct insn *i)
{
    if (i->mem.seg != SREG_COUNT)
        i->mem.seg_override = true;
    else
        i->mem.seg = i->mem.base == RSP || i->mem.base == RBP ? SS : DS;
}

static int memory(struct dec *d, struct insn *i)
{
    bool vsib = attr_has(d, AT_VSIB);

    if (vsib && i->addrsize == 2)
        return INSN_E_UD;
    int e = i->addrsize == 2 ? mem16(d, i) : mem32(d, i, vsib);
    if (e == INSN_OK)
        default_segment(i);
    return e;
}

static void set_reg(struct opnd *o, enum reg_class cls, unsigned reg, unsigned size)
{
    o->kind = OP_REG;
    o->cls = (uint8_t)cls;
    o->reg = (uint8_t)reg;
    o->size = (uint8_t)size;
}

static void set_gpr(struct dec *d, struct insn *i, struct opnd *o, unsigned reg, unsigned spec)
{
    unsigned size = spec_gpr_bytes(d, i, SPEC_SIZE(spec));

    if (size == 1 && !i->rex && reg >= 4)
        set_reg(o, RC_GPRH, reg & 3, 1);
    else
        set_reg(o, RC_GPR, reg, size);
}

static void set_vec(struct dec *d, struct insn *i, struct opnd *o, unsigned reg, unsigned spec)
{
    unsigned size = spec_bytes(d, i, SPEC_SIZE(spec));

    set_reg(o, RC_VEC, reg, MAX(size, 16u));
}

static void set_mem(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    o->kind = OP_MEM;
    o->size = i->bcst ? i->bcst : (uint8_t)spec_bytes(d, i, SPEC_SIZE(spec));
}

/* String operands: the memory description is that of the one which takes segment overrides. */
static void set_string(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    unsigned loc = SPEC_LOC(spec);

    o->kind = OP_MEM;
    o->size = (uint8_t)spec_bytes(d, i, SPEC_SIZE(spec));
    if (loc == LOC_YDI) {
        if (i->mem.base != REG_NONE)
            return;
        for (int k = 0; k < INSN_MAX_OPS; k++)
            if (SPEC_LOC(i->row->opspec[k]) == LOC_XSI)
                return;
        i->mem.seg = ES;
        i->mem.base = RDI;
        return;
    }
    if (i->mem.seg != SREG_COUNT)
        i->mem.seg_override = true;
    else
        i->mem.seg = DS;
    i->mem.base = loc == LOC_XSI ? RSI : RDI;
}

static int immediate(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    unsigned n = spec_bytes(d, i, SPEC_SIZE(spec)), loc = SPEC_LOC(spec);
    uint64_t v;

    if (!i->off_imm)
        i->off_imm = d->pos;
    if (!dec_u(d, n, &v))
        return dec_short(d);
    o->kind = loc == LOC_J ? OP_REL : OP_IMM;
    o->size = (uint8_t)n;
    if (loc == LOC_I2) {
        i->imm2 = v;
        return INSN_OK;
    }
    if (loc != LOC_I)
        v = sext(v, 8 * n);
    if (loc == LOC_IS)
        o->size = i->opsize;
    i->imm = v;
    return INSN_OK;
}

static int far_pointer(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    unsigned n = spec_bytes(d, i, SPEC_SIZE(spec));

    i->off_imm = d->pos;
    if (!dec_u(d, n - 2, &i->imm) || !dec_u(d, 2, &i->imm2))
        return dec_short(d);
    o->kind = OP_FARPTR;
    o->size = (uint8_t)n;
    return INSN_OK;
}

static int moffs(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    uint64_t disp;

    if (!dec_u(d, i->addrsize, &disp))
        return dec_short(d);
    i->mem.disp = (int64_t)disp;
    default_segment(i);
    set_mem(d, i, o, spec);
    return INSN_OK;
}

/* Registers named by ModRM.reg, general ones apart. */
static int reg_operand(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    unsigned low = i->modrm >> 3 & 7, reg = low | d->r;

    switch (SPEC_LOC(spec)) {
    case LOC_S:
        if (low > GS || (low == CS && spec & SPEC_WRITE))
            return INSN_E_UD;
        set_reg(o, RC_SREG, low, 2);
        break;
    case LOC_C:
        if (reg > 8)
            return INSN_E_UD;
        set_reg(o, RC_CR, reg, spec_bytes(d, i, SPEC_SIZE(spec)));
        break;
    case LOC_D:
        if (reg > 7)
            return INSN_E_UD;
        set_reg(o, RC_DR, reg, spec_bytes(d, i, SPEC_SIZE(spec)));
        break;
    case LOC_P:
        set_reg(o, RC_MMX, low, 8);
        break;
    case LOC_KG:
        if (d->r | d->r2)
            return INSN_E_UD;
        set_reg(o, RC_K, low, 8);
        break;
    default:
        set_vec(d, i, o, reg | d->r2, spec);
        break;
    }
    return INSN_OK;
}

/* Registers and memory named by ModRM.rm; memory itself has been read. */
static int rm_operand(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    unsigned low = i->modrm & 7;

    if (i->modrm < 0xc0) {
        set_mem(d, i, o, spec);
        return INSN_OK;
    }
    switch (SPEC_LOC(spec)) {
    case LOC_E:
        set_gpr(d, i, o, low | d->b, spec);
        break;
    case LOC_STI:
        set_reg(o, RC_ST, low, 10);
        break;
    case LOC_Q:
        set_reg(o, RC_MMX, low, 8);
        break;
    case LOC_KE:
        set_reg(o, RC_K, low, 8);
        break;
    case LOC_W:
        set_vec(d, i, o, low | d->b | d->x2, spec);
        break;
    default:
        return INSN_E_UD;
    }
    return INSN_OK;
}

static int vvvv_operand(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    unsigned reg = d->bits == CPU_64 ? d->vvvv : d->vvvv & 7;

    switch (SPEC_LOC(spec)) {
    case LOC_B:
        if (reg > 15)
            return INSN_E_UD;
        set_reg(o, RC_GPR, reg, spec_bytes(d, i, SPEC_SIZE(spec)));
        break;
    case LOC_KB:
        if (reg > 7)
            return INSN_E_UD;
        set_reg(o, RC_K, reg, 8);
        break;
    default:
        set_vec(d, i, o, reg, spec);
        break;
    }
    return INSN_OK;
}

static int is4_operand(struct dec *d, struct insn *i, struct opnd *o, unsigned spec)
{
    i->off_imm = d->pos;
    if (!dec_u(d, 1, &i->imm))
        return dec_short(d);
    set_vec(d, i, o, i->imm >> 4 & (d->bits == CPU_64 ? 15 : 7), spec);
    return INSN_OK;
}

static int operand(struct dec *d, struct insn *i, unsigned k)
{
    unsigned spec = i->row->opspec[k];
    struct opnd *o = &i->op[k];
    uint8_t *slot = &i->slot[k];

    o->read = spec >> 12 & 1;
    o->write = spec >> 13 & 1;
    *slot = SLOT_IMPLICIT;
    switch (SPEC_LOC(spec)) {
    case LOC_G:
        *slot = SLOT_REG;
        if (unlikely(d->r2))
            return INSN_E_UD;
        set_gpr(d, i, o, (i->modrm >> 3 & 7u) | d->r, spec);
        return INSN_OK;
    case LOC_S:
    case LOC_C:
    case LOC_D:
    case LOC_V:
    case LOC_P:
    case LOC_KG:
        *slot = SLOT_REG;
        return reg_operand(d, i, o, spec);
    case LOC_E:
    case LOC_M:
    case LOC_STI:
    case LOC_W:
    case LOC_Q:
    case LOC_KE:
    case LOC_MV:
        *slot = SLOT_RM;
        return rm_operand(d, i, o, spec);
    case LOC_B:
    case LOC_H:
    case LOC_KB:
        *slot = SLOT_VVVV;
        return vvvv_operand(d, i, o, spec);
    case LOC_I:
    case LOC_IS:
    case LOC_I2:
    case LOC_J:
        *slot = SLOT_IMM;
        return immediate(d, i, o, spec);
    case LOC_AP:
        *slot = SLOT_IMM;
        return far_pointer(d, i, o, spec);
    case LOC_L:
        *slot = SLOT_IS4;
        return is4_operand(d, i, o, spec);
    case LOC_Z:
        *slot = SLOT_OPCODE;
        set_gpr(d, i, o, (i->opcode & 7) | d->b, spec);
        return INSN_OK;
    case LOC_SOP:
        set_reg(o, RC_SREG, i->opcode >> 3 & 7, 2);
        return INSN_OK;
    case LOC_O:
        return moffs(d, i, o, spec);
    case LOC_ACC:
        set_reg(o, RC_GPR, RAX, spec_bytes(d, i, SPEC_SIZE(spec)));
        return INSN_OK;
    case LOC_CX:
        set_reg(o, RC_GPR, RCX, spec_bytes(d, i, SPEC_SIZE(spec)));
        return INSN_OK;
    case LOC_DX:
        set_reg(o, RC_GPR, RDX, 2);
        return INSN_OK;
    case LOC_ONE:
        o->kind = OP_IMM;
        o->size = 1;
        i->imm = 1;
        return INSN_OK;
    case LOC_ST0:
        set_reg(o, RC_ST, 0, 10);
        return INSN_OK;
    case LOC_XMM0:
        set_vec(d, i, o, 0, spec);
        return INSN_OK;
    default:
        set_string(d, i, o, spec);
        return INSN_OK;
    }
}

int insn_decode_operands(struct dec *d, struct insn *i)
{
    i->mem.base = i->mem.index = REG_NONE;
    if (i->has_modrm && i->modrm < 0xc0) {
        int e = memory(d, i);
        if (e != INSN_OK)
            return e;
    }
    for (unsigned k = 0; k < INSN_MAX_OPS && i->row->opspec[k]; k++) {
        int e = operand(d, i, k);
        if (e != INSN_OK)
            return e;
        i->nops++;
    }
    /* Merge-masking keeps elements of the destination, so it is read as well. */
    if (i->evex_aaa && !i->evex_z && i->op[0].kind == OP_REG && i->op[0].cls == RC_VEC &&
        i->op[0].write && !attr_has(d, AT_SELECT))
        i->op[0].read = 1;
    if (i->mem.seg == SREG_COUNT)
        i->mem.seg = DS;
    return INSN_OK;
}
