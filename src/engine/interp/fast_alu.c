/* Fast handlers: two-operand arithmetic, INC DEC NEG NOT, multiplication. Each comes with its flags and,
 * where nobody will see them, without. */
#include "engine/interp/fast.h"

/* Expands X(n, T) for each width. */
#define WIDTHS(X, ...)                                                                             \
    X(8, uint8_t, __VA_ARGS__) X(16, uint16_t, __VA_ARGS__) X(32, uint32_t, __VA_ARGS__)           \
    X(64, uint64_t, __VA_ARGS__)

/* fl_*: with flags by the host; nf_*: without. */
#define FL(n, nm, a, b) alu_##nm##n(a, b, &c->cc)
#define BIN(n, T, nm)                                                                              \
    HANDLER(nm##_rr_##n) { W##n(c, o->r, FL(n, nm, R##n(c, o->r), R##n(c, o->r2))); NEXT(); }      \
    HANDLER(nm##_ri_##n) { W##n(c, o->r, FL(n, nm, R##n(c, o->r), (T)o->imm)); NEXT(); }           \
    HANDLER(nm##_rm_##n)                                                                           \
    {                                                                                              \
        T v = ld##n(c, o, op_ea(c, o));                                                            \
        W##n(c, o->r, FL(n, nm, R##n(c, o->r), v));                                                \
        NEXT();                                                                                    \
    }                                                                                              \
    static __attribute__((noinline)) void nm##_slow_##n(struct cpu *c, const struct op *o,         \
                                                        uint64_t la, T arg)                        \
    {                                                                                              \
        uint16_t cc = c->cc;                                                                       \
        T v = alu_##nm##n((T)slow_ld(c, o, la, sizeof(T)), arg, &cc);                              \
        slow_st(c, o, la, sizeof(T), v);                                                           \
        c->cc = cc;                                                                                \
    }                                                                                              \
    HANDLER(nm##_mr_##n)                                                                           \
    {                                                                                              \
        uint64_t la = op_ea(c, o);                                                                 \
        __typeof__(rmw##n(c, o, la)) p = rmw##n(c, o, la);                                         \
        if (likely(p))                                                                             \
            *p = FL(n, nm, *p, R##n(c, o->r));                                                     \
        else                                                                                       \
            nm##_slow_##n(c, o, la, R##n(c, o->r));                                                \
        NEXT();                                                                                    \
    }                                                                                              \
    HANDLER(nm##_mi_##n)                                                                           \
    {                                                                                              \
        uint64_t la = op_ea(c, o);                                                                 \
        __typeof__(rmw##n(c, o, la)) p = rmw##n(c, o, la);                                         \
        if (likely(p))                                                                             \
            *p = FL(n, nm, *p, (T)o->imm);                                                         \
        else                                                                                       \
            nm##_slow_##n(c, o, la, (T)o->imm);                                                    \
        NEXT();                                                                                    \
    }
WIDTHS(BIN, add)
WIDTHS(BIN, or)
WIDTHS(BIN, adc)
WIDTHS(BIN, sbb)
WIDTHS(BIN, and)
WIDTHS(BIN, sub)
WIDTHS(BIN, xor)

#define NOFLAGS(n, T, nm, sign)                                                                    \
    HANDLER(nm##nf_rr_##n) { W##n(c, o->r, (T)(R##n(c, o->r) sign R##n(c, o->r2))); NEXT(); }      \
    HANDLER(nm##nf_ri_##n) { W##n(c, o->r, (T)(R##n(c, o->r) sign (T)o->imm)); NEXT(); }           \
    HANDLER(nm##nf_rm_##n)                                                                         \
    {                                                                                              \
        T v = ld##n(c, o, op_ea(c, o));                                                            \
        W##n(c, o->r, (T)(R##n(c, o->r) sign v));                                                  \
        NEXT();                                                                                    \
    }
#define NOFLAGS_WIDE(nm, sign) NOFLAGS(32, uint32_t, nm, sign) NOFLAGS(64, uint64_t, nm, sign)
NOFLAGS_WIDE(add, +)
NOFLAGS_WIDE(or, |)
NOFLAGS_WIDE(and, &)
NOFLAGS_WIDE(sub, -)
NOFLAGS_WIDE(xor, ^)

#define CMPTEST(n, T, nm)                                                                          \
    HANDLER(nm##_rr_##n) { FL(n, nm, R##n(c, o->r), R##n(c, o->r2)); NEXT(); }                     \
    HANDLER(nm##_ri_##n) { FL(n, nm, R##n(c, o->r), (T)o->imm); NEXT(); }                          \
    HANDLER(nm##_rm_##n) { FL(n, nm, R##n(c, o->r), ld##n(c, o, op_ea(c, o))); NEXT(); }           \
    HANDLER(nm##_mr_##n) { FL(n, nm, ld##n(c, o, op_ea(c, o)), R##n(c, o->r)); NEXT(); }           \
    HANDLER(nm##_mi_##n) { FL(n, nm, ld##n(c, o, op_ea(c, o)), (T)o->imm); NEXT(); }
WIDTHS(CMPTEST, cmp)
WIDTHS(CMPTEST, test)

#define UNARY(n, T, nm)                                                                            \
    HANDLER(nm##_r_##n) { W##n(c, o->r, alu_##nm##n(R##n(c, o->r), &c->cc)); NEXT(); }             \
    HANDLER(nm##_m_##n)                                                                            \
    {                                                                                              \
        uint64_t la = op_ea(c, o);                                                                 \
        __typeof__(rmw##n(c, o, la)) p = rmw##n(c, o, la);                                         \
        if (likely(p)) {                                                                           \
            *p = alu_##nm##n(*p, &c->cc);                                                          \
        } else {                                                                                   \
            uint16_t cc = c->cc;                                                                   \
            slow_st(c, o, la, sizeof(T), alu_##nm##n((T)slow_ld(c, o, la, sizeof(T)), &cc));       \
            c->cc = cc;                                                                            \
        }                                                                                          \
        NEXT();                                                                                    \
    }
WIDTHS(UNARY, inc)
WIDTHS(UNARY, dec)
WIDTHS(UNARY, neg)
#define NOT_R(n, T, x) HANDLER(not_r_##n) { W##n(c, o->r, (T)~R##n(c, o->r)); NEXT(); }
WIDTHS(NOT_R, )
HANDLER(incnf_r_32) { W32(c, o->r, R32(c, o->r) + 1); NEXT(); }
HANDLER(incnf_r_64) { c->g[o->r]++; NEXT(); }
HANDLER(decnf_r_32) { W32(c, o->r, R32(c, o->r) - 1); NEXT(); }
HANDLER(decnf_r_64) { c->g[o->r]--; NEXT(); }

/* IMUL with two or three operands. */
#define IMUL(n, T, sfx)                                                                            \
    static inline T imul_##n(T a, T b, uint16_t *cc)                                               \
    {                                                                                              \
        uint16_t f;                                                                                \
        __asm__("imul" sfx " %2, %0\n\t" CC_GET : "+r"(a), "=&a"(f) : "r"(b) : "cc");              \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }                                                                                              \
    HANDLER(imul_rr_##n) { W##n(c, o->r, imul_##n(R##n(c, o->r), R##n(c, o->r2), &c->cc)); NEXT(); } \
    HANDLER(imul_rri_##n) { W##n(c, o->r, imul_##n(R##n(c, o->r2), (T)o->imm, &c->cc)); NEXT(); }  \
    HANDLER(imul_rm_##n)                                                                           \
    {                                                                                              \
        T v = ld##n(c, o, op_ea(c, o));                                                            \
        W##n(c, o->r, imul_##n(R##n(c, o->r), v, &c->cc));                                         \
        NEXT();                                                                                    \
    }                                                                                              \
    HANDLER(imul_rmi_##n)                                                                          \
    {                                                                                              \
        T v = ld##n(c, o, op_ea(c, o));                                                            \
        W##n(c, o->r, imul_##n(v, (T)o->imm, &c->cc));                                             \
        NEXT();                                                                                    \
    }
IMUL(32, uint32_t, "l")
IMUL(64, uint64_t, "q")

#define BY_SIZE(name) { name##_8, name##_16, name##_32, name##_64 }
#define BY_WIDE(name) { NULL, NULL, name##_32, name##_64 }

struct bin_row {
    uint16_t id;
    op_fn fl[FORMS][4]; /* by form and size */
    op_fn nf[FORMS][4]; /* without flags, NULL where there is none */
};

#define ROW(ID, nm)                                                                                \
    { .id = ID, .fl = { BY_SIZE(nm##_rr), BY_SIZE(nm##_ri), BY_SIZE(nm##_rm), BY_SIZE(nm##_mr),    \
                        BY_SIZE(nm##_mi) } }
#define ROW_NF(ID, nm)                                                                             \
    { .id = ID, .fl = { BY_SIZE(nm##_rr), BY_SIZE(nm##_ri), BY_SIZE(nm##_rm), BY_SIZE(nm##_mr),    \
                        BY_SIZE(nm##_mi) },                                                        \
      .nf = { BY_WIDE(nm##nf_rr), BY_WIDE(nm##nf_ri), BY_WIDE(nm##nf_rm) } }

static bool pick_binary(struct op *o, const struct insn *i, bool dead)
{
    static const struct bin_row rows[] = {
        ROW_NF(INSN_ADD, add), ROW_NF(INSN_OR, or),   ROW(INSN_ADC, adc), ROW(INSN_SBB, sbb),
        ROW_NF(INSN_AND, and), ROW_NF(INSN_SUB, sub), ROW_NF(INSN_XOR, xor),
        ROW(INSN_CMP, cmp),    ROW(INSN_TEST, test),
    };
    int form = fast_form(i);
    unsigned size;

    for (unsigned k = 0; k < ARRAY_LEN(rows); k++) {
        if (rows[k].id != i->id)
            continue;
        size = size_log(i->op[0].size);
        if (form < 0 || !fast_operands(o, i, form))
            return false;
        o->fn = dead && rows[k].nf[form][size] ? rows[k].nf[form][size] : rows[k].fl[form][size];
        return true;
    }
    return false;
}

static bool pick_unary(struct op *o, const struct insn *i, bool dead)
{
    static const op_fn inc_r[4] = BY_SIZE(inc_r), inc_m[4] = BY_SIZE(inc_m);
    static const op_fn dec_r[4] = BY_SIZE(dec_r), dec_m[4] = BY_SIZE(dec_m);
    static const op_fn neg_r[4] = BY_SIZE(neg_r), neg_m[4] = BY_SIZE(neg_m);
    static const op_fn not_r[4] = BY_SIZE(not_r);
    static const op_fn incnf[4] = BY_WIDE(incnf_r), decnf[4] = BY_WIDE(decnf_r);
    bool mem = i->op[0].kind == OP_MEM;
    unsigned size = size_log(i->op[0].size);

    if (mem ? !fast_ea(o, i) : (o->r = fast_reg(&i->op[0]), false))
        return false;
    switch (i->id) {
    case INSN_INC: o->fn = mem ? inc_m[size] : dead && incnf[size] ? incnf[size] : inc_r[size]; break;
    case INSN_DEC: o->fn = mem ? dec_m[size] : dead && decnf[size] ? decnf[size] : dec_r[size]; break;
    case INSN_NEG: o->fn = mem ? neg_m[size] : neg_r[size]; break;
    default:
        if (mem)
            return false;
        o->fn = not_r[size];
    }
    return true;
}

static bool pick_imul(struct op *o, const struct insn *i)
{
    int form = fast_form(i);
    bool wide = i->opsize == 8, three = i->nops == 3;

    if (i->nops < 2 || i->opsize < 4 || (form != FORM_RR && form != FORM_RM) ||
        !fast_operands(o, i, form))
        return false;
    if (three)
        o->imm = i->imm;
    if (form == FORM_RR)
        o->fn = three ? (wide ? imul_rri_64 : imul_rri_32) : (wide ? imul_rr_64 : imul_rr_32);
    else
        o->fn = three ? (wide ? imul_rmi_64 : imul_rmi_32) : (wide ? imul_rm_64 : imul_rm_32);
    return true;
}

bool fast_pick_alu(struct op *o, const struct insn *i, bool flags_dead)
{
    switch (i->id) {
    case INSN_INC:
    case INSN_DEC:
    case INSN_NEG:
    case INSN_NOT:
        return pick_unary(o, i, flags_dead);
    case INSN_IMUL:
        return pick_imul(o, i);
    default:
        return pick_binary(o, i, flags_dead);
    }
}
