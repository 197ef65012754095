/* Fast handlers: shifts and rotates of registers, and the flag-free BMI2 forms. */
#include "engine/interp/fast.h"

#define SHIFT(n, nm)                                                                               \
    HANDLER(nm##_i_##n) { W##n(c, o->r, alu_##nm##n(R##n(c, o->r), (uint8_t)o->imm, &c->cc)); NEXT(); } \
    HANDLER(nm##_c_##n) { W##n(c, o->r, alu_##nm##n(R##n(c, o->r), (uint8_t)c->g[RCX], &c->cc)); NEXT(); }
#define SHIFTS(nm) SHIFT(8, nm) SHIFT(16, nm) SHIFT(32, nm) SHIFT(64, nm)
SHIFTS(shl)
SHIFTS(shr)
SHIFTS(sar)
SHIFTS(rol)
SHIFTS(ror)

/* Count not zero, flags unseen. */
HANDLER(shlnf_i_32) { W32(c, o->r, R32(c, o->r) << (o->imm & 31)); NEXT(); }
HANDLER(shlnf_i_64) { c->g[o->r] <<= o->imm & 63; NEXT(); }
HANDLER(shrnf_i_32) { W32(c, o->r, R32(c, o->r) >> (o->imm & 31)); NEXT(); }
HANDLER(shrnf_i_64) { c->g[o->r] >>= o->imm & 63; NEXT(); }
HANDLER(sarnf_i_32) { W32(c, o->r, (int32_t)R32(c, o->r) >> (o->imm & 31)); NEXT(); }
HANDLER(sarnf_i_64) { c->g[o->r] = (uint64_t)((int64_t)c->g[o->r] >> (o->imm & 63)); NEXT(); }
HANDLER(rolnf_i_32)
{
    uint32_t v = R32(c, o->r);
    unsigned n = o->imm & 31;

    W32(c, o->r, v << n | v >> (-n & 31));
    NEXT();
}
HANDLER(rornf_i_32)
{
    uint32_t v = R32(c, o->r);
    unsigned n = o->imm & 31;

    W32(c, o->r, v >> n | v << (-n & 31));
    NEXT();
}
HANDLER(rornf_i_64)
{
    uint64_t v = c->g[o->r];
    unsigned n = o->imm & 63;

    c->g[o->r] = v >> n | v << (-n & 63);
    NEXT();
}
HANDLER(rolnf_i_64)
{
    uint64_t v = c->g[o->r];
    unsigned n = o->imm & 63;

    c->g[o->r] = v << n | v >> (-n & 63);
    NEXT();
}
/* RORX: r from r2. */
HANDLER(rorx_32)
{
    uint32_t v = R32(c, o->r2);
    unsigned n = o->imm & 31;

    W32(c, o->r, v >> n | v << (-n & 31));
    NEXT();
}
HANDLER(rorx_64)
{
    uint64_t v = c->g[o->r2];
    unsigned n = o->imm & 63;

    c->g[o->r] = v >> n | v << (-n & 63);
    NEXT();
}

#define BY_SIZE(name) { name##_8, name##_16, name##_32, name##_64 }
#define BY_WIDE(name) { NULL, NULL, name##_32, name##_64 }

bool fast_pick_shift(struct op *o, const struct insn *i, bool flags_dead)
{
    static const struct {
        uint16_t id;
        op_fn imm[4], cl[4], nf[4];
    } rows[] = {
        { INSN_SHL, BY_SIZE(shl_i), BY_SIZE(shl_c), BY_WIDE(shlnf_i) },
        { INSN_SHR, BY_SIZE(shr_i), BY_SIZE(shr_c), BY_WIDE(shrnf_i) },
        { INSN_SAR, BY_SIZE(sar_i), BY_SIZE(sar_c), BY_WIDE(sarnf_i) },
        { INSN_ROL, BY_SIZE(rol_i), BY_SIZE(rol_c), BY_WIDE(rolnf_i) },
        { INSN_ROR, BY_SIZE(ror_i), BY_SIZE(ror_c), BY_WIDE(rornf_i) },
    };
    unsigned size;

    if (i->id == INSN_RORX) {
        if (i->op[1].kind != OP_REG)
            return false;
        o->r = i->op[0].reg;
        o->r2 = i->op[1].reg;
        o->imm = i->imm;
        o->fn = i->opsize == 8 ? rorx_64 : rorx_32;
        return true;
    }
    for (unsigned k = 0; k < ARRAY_LEN(rows); k++) {
        if (rows[k].id != i->id)
            continue;
        if (i->op[0].kind != OP_REG)
            return false;
        size = size_log(i->op[0].size);
        o->r = fast_reg(&i->op[0]);
        if (i->op[1].kind != OP_IMM) {
            o->fn = rows[k].cl[size];
            return true;
        }
        o->imm = i->imm & 0xff;
        o->fn = flags_dead && rows[k].nf[size] ? rows[k].nf[size] : rows[k].imm[size];
        return true;
    }
    return false;
}
