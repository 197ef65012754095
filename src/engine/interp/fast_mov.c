/* Fast handlers: moves. */
#include "engine/interp/fast.h"

#define MOVES(n, T)                                                                                \
    HANDLER(mov_rr_##n) { W##n(c, o->r, R##n(c, o->r2)); NEXT(); }                                 \
    HANDLER(mov_ri_##n) { W##n(c, o->r, o->imm); NEXT(); }                                         \
    HANDLER(mov_rm_##n) { W##n(c, o->r, ld##n(c, o, op_ea(c, o))); NEXT(); }                       \
    HANDLER(mov_mr_##n) { st##n(c, o, op_ea(c, o), R##n(c, o->r)); NEXT(); }                       \
    HANDLER(mov_mi_##n) { st##n(c, o, op_ea(c, o), (T)o->imm); NEXT(); }
MOVES(8, uint8_t)
MOVES(16, uint16_t)
MOVES(32, uint32_t)
MOVES(64, uint64_t)

/* Base and displacement only: the most common addresses by far. */
#define BASED(n)                                                                                   \
    HANDLER(mov_rb_##n) { W##n(c, o->r, ld##n(c, o, c->g[o->b] + (uint64_t)(int64_t)o->disp)); NEXT(); } \
    HANDLER(mov_br_##n) { st##n(c, o, c->g[o->b] + (uint64_t)(int64_t)o->disp, R##n(c, o->r)); NEXT(); }
BASED(32)
BASED(64)

#define EXTEND(name, dst, src, cast)                                                               \
    HANDLER(name##_rr) { W##dst(c, o->r, (cast)R##src(c, o->r2)); NEXT(); }                        \
    HANDLER(name##_rm) { W##dst(c, o->r, (cast)ld##src(c, o, op_ea(c, o))); NEXT(); }
EXTEND(movzx_8, 64, 8, uint8_t)
EXTEND(movzx_16, 64, 16, uint16_t)
EXTEND(movsx_8_32, 32, 8, int8_t)
EXTEND(movsx_16_32, 32, 16, int16_t)
#define EXTEND64(name, src, cast)                                                                  \
    HANDLER(name##_rr) { c->g[o->r] = (uint64_t)(int64_t)(cast)R##src(c, o->r2); NEXT(); }         \
    HANDLER(name##_rm) { c->g[o->r] = (uint64_t)(int64_t)(cast)ld##src(c, o, op_ea(c, o)); NEXT(); }
EXTEND64(movsx_8_64, 8, int8_t)
EXTEND64(movsx_16_64, 16, int16_t)
EXTEND64(movsx_32_64, 32, int32_t)

HANDLER(lea_64) { c->g[o->r] = op_ea(c, o); NEXT(); }
HANDLER(lea_32) { c->g[o->r] = (uint32_t)op_ea(c, o); NEXT(); }

HANDLER(xchg_64)
{
    uint64_t t = c->g[o->r];

    c->g[o->r] = c->g[o->r2];
    c->g[o->r2] = t;
    NEXT();
}
HANDLER(xchg_32)
{
    uint32_t t = R32(c, o->r);

    c->g[o->r] = R32(c, o->r2);
    c->g[o->r2] = t;
    NEXT();
}

HANDLER(bswap_64) { c->g[o->r] = __builtin_bswap64(c->g[o->r]); NEXT(); }
HANDLER(bswap_32) { c->g[o->r] = __builtin_bswap32(R32(c, o->r)); NEXT(); }
HANDLER(cdqe) { c->g[RAX] = (uint64_t)(int64_t)(int32_t)c->g[RAX]; NEXT(); }
HANDLER(cwde) { c->g[RAX] = (uint32_t)(int16_t)c->g[RAX]; NEXT(); }
HANDLER(cqo) { c->g[RDX] = (uint64_t)((int64_t)c->g[RAX] >> 63); NEXT(); }
HANDLER(cdq) { c->g[RDX] = (uint32_t)((int32_t)c->g[RAX] >> 31); NEXT(); }
HANDLER(nop) { NEXT(); }

#define COND(n)                                                                                    \
    HANDLER(set_##n) { R8(c, o->r) = cond_true(c->cc, n); NEXT(); }                                \
    HANDLER(cmov64_##n) { if (cond_true(c->cc, n)) c->g[o->r] = c->g[o->r2]; NEXT(); }             \
    HANDLER(cmov32_##n)                                                                            \
    {                                                                                              \
        c->g[o->r] = cond_true(c->cc, n) ? R32(c, o->r2) : R32(c, o->r);                           \
        NEXT();                                                                                    \
    }
#define CONDS(X)                                                                                   \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
CONDS(COND)

/* Conditional moves from memory: the load happens in any case. */
HANDLER(cmov_rm_64)
{
    uint64_t v = ld64(c, o, op_ea(c, o));

    if (cond_true(c->cc, (unsigned)o->imm))
        c->g[o->r] = v;
    NEXT();
}
HANDLER(cmov_rm_32)
{
    uint32_t v = ld32(c, o, op_ea(c, o));

    c->g[o->r] = cond_true(c->cc, (unsigned)o->imm) ? v : R32(c, o->r);
    NEXT();
}

#define BY_COND(name)                                                                              \
    { name##_0, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8,     \
      name##_9, name##_10, name##_11, name##_12, name##_13, name##_14, name##_15 }
#define BY_SIZE(name) { name##_8, name##_16, name##_32, name##_64 }

static bool pick_mov(struct op *o, const struct insn *i)
{
    static const op_fn tab[FORMS][4] = { BY_SIZE(mov_rr), BY_SIZE(mov_ri), BY_SIZE(mov_rm),
                                         BY_SIZE(mov_mr), BY_SIZE(mov_mi) };
    int form = fast_form(i);
    unsigned size = size_log(i->op[0].size);

    if (form < 0 || !fast_operands(o, i, form))
        return false;
    o->fn = tab[form][size];
    if (o->x == G_ZERO && size >= 2 && form == FORM_RM)
        o->fn = size == 2 ? mov_rb_32 : mov_rb_64;
    if (o->x == G_ZERO && size >= 2 && form == FORM_MR)
        o->fn = size == 2 ? mov_br_32 : mov_br_64;
    return true;
}

static bool pick_extend(struct op *o, const struct insn *i)
{
    unsigned dst = i->op[0].size, src = i->op[1].size;
    int form = fast_form(i);
    bool mem = form == FORM_RM;

    if ((form != FORM_RR && !mem) || dst < 4)
        return false;
    /* A byte source is named by byte offset, the wider destination by index. */
    o->r = i->op[0].reg;
    if (mem ? !fast_ea(o, i) : (o->r2 = fast_reg(&i->op[1]), false))
        return false;
    if (i->id == INSN_MOVZX) {
        if (src == 1)
            o->fn = mem ? movzx_8_rm : movzx_8_rr;
        else
            o->fn = mem ? movzx_16_rm : movzx_16_rr;
    } else if (src == 1 && dst == 4) {
        o->fn = mem ? movsx_8_32_rm : movsx_8_32_rr;
    } else if (src == 1) {
        o->fn = mem ? movsx_8_64_rm : movsx_8_64_rr;
    } else if (src == 2 && dst == 4) {
        o->fn = mem ? movsx_16_32_rm : movsx_16_32_rr;
    } else if (src == 2) {
        o->fn = mem ? movsx_16_64_rm : movsx_16_64_rr;
    } else if (dst == 8) {
        o->fn = mem ? movsx_32_64_rm : movsx_32_64_rr;
    } else {
        return false;
    }
    return true;
}

static bool pick_cond(struct op *o, const struct insn *i)
{
    static const op_fn set[16] = BY_COND(set), cmov64[16] = BY_COND(cmov64),
                       cmov32[16] = BY_COND(cmov32);
    int form = fast_form(i);

    if (i->id == INSN_SETCC) {
        if (i->op[0].kind != OP_REG)
            return false;
        o->r = fast_reg(&i->op[0]);
        o->fn = set[i->cond];
        return true;
    }
    if (i->opsize < 4 || (form != FORM_RR && form != FORM_RM) || !fast_operands(o, i, form))
        return false;
    if (form == FORM_RR) {
        o->fn = i->opsize == 8 ? cmov64[i->cond] : cmov32[i->cond];
    } else {
        o->imm = i->cond;
        o->fn = i->opsize == 8 ? cmov_rm_64 : cmov_rm_32;
    }
    return true;
}

bool fast_pick_mov(struct op *o, const struct insn *i)
{
    switch (i->id) {
    case INSN_MOV:
    case INSN_MOVNTI:
        return pick_mov(o, i);
    case INSN_MOVZX:
    case INSN_MOVSX:
    case INSN_MOVSXD:
        return pick_extend(o, i);
    case INSN_LEA:
        o->r = i->op[0].reg;
        /* LEA knows no segments. */
        if (i->opsize < 4 || i->mem.seg == FS || i->mem.seg == GS || !fast_ea(o, i))
            return false;
        o->fn = i->opsize == 8 ? lea_64 : lea_32;
        return true;
    case INSN_XCHG:
        if (fast_form(i) != FORM_RR || i->op[0].size < 4 || !fast_operands(o, i, FORM_RR))
            return false;
        o->fn = i->op[0].size == 8 ? xchg_64 : xchg_32;
        return true;
    case INSN_BSWAP:
        o->r = i->op[0].reg;
        o->fn = i->opsize == 8 ? bswap_64 : bswap_32;
        return i->opsize >= 4;
    case INSN_CBW:
        o->fn = i->opsize == 8 ? cdqe : cwde;
        return i->opsize >= 4;
    case INSN_CWD:
        o->fn = i->opsize == 8 ? cqo : cdq;
        return i->opsize >= 4;
    case INSN_SETCC:
    case INSN_CMOVCC:
        return pick_cond(o, i);
    case INSN_NOP:
    case INSN_ENDBR:
        o->fn = nop;
        return true;
    default:
        return false;
    }
}
