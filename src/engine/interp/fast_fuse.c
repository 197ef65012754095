/* Fast handlers: a compare or test with the conditional branch behind it, in one dispatch. The flags are
 * still written: what follows the branch may read them. */
#include "engine/interp/fast.h"

/* SF != OF as one more bit of the LAHF/SETO form, so that every condition is a mask and its sense. */
#define CC_LT 0x0002u

static inline bool fused_true(uint16_t cc, const struct op *jcc)
{
    uint16_t bits = (uint16_t)(cc | (((cc >> 15) ^ cc) & 1) << 1);

    bool any = bits & jcc->b;

    return any != jcc->r;
}

#define FUSED(name, n, a, b)                                                                       \
    HANDLER(name##_##n)                                                                            \
    {                                                                                              \
        uint16_t cc;                                                                               \
        FUSED_OP##n(a, b);                                                                         \
        c->cc = cc;                                                                                \
        if (fused_true(cc, o + 1))                                                                 \
            return take(c, o + 1);                                                                 \
        GO(o + 2);                                                                                 \
    }
#define FUSED_FORMS(nm, n, T)                                                                      \
    FUSED(nm##_rr, n, R##n(c, o->r), R##n(c, o->r2))                                               \
    FUSED(nm##_ri, n, R##n(c, o->r), (T)o->imm)                                                    \
    FUSED(nm##_rm, n, R##n(c, o->r), ld##n(c, o, op_ea(c, o)))                                     \
    FUSED(nm##_mr, n, ld##n(c, o, op_ea(c, o)), R##n(c, o->r))                                     \
    FUSED(nm##_mi, n, ld##n(c, o, op_ea(c, o)), (T)o->imm)

#define FUSED_OP8(a, b) alu_cmp8(a, b, &cc)
#define FUSED_OP32(a, b) alu_cmp32(a, b, &cc)
#define FUSED_OP64(a, b) alu_cmp64(a, b, &cc)
FUSED_FORMS(cmp, 8, uint8_t)
FUSED_FORMS(cmp, 32, uint32_t)
FUSED_FORMS(cmp, 64, uint64_t)
#undef FUSED_OP8
#undef FUSED_OP32
#undef FUSED_OP64
#define FUSED_OP8(a, b) alu_test8(a, b, &cc)
#define FUSED_OP32(a, b) alu_test32(a, b, &cc)
#define FUSED_OP64(a, b) alu_test64(a, b, &cc)
FUSED_FORMS(test, 8, uint8_t)
FUSED_FORMS(test, 32, uint32_t)
FUSED_FORMS(test, 64, uint64_t)

#define BY_SIZE(name) { name##_8, NULL, name##_32, name##_64 }
#define BY_FORM(name)                                                                              \
    { BY_SIZE(name##_rr), BY_SIZE(name##_ri), BY_SIZE(name##_rm), BY_SIZE(name##_mr),              \
      BY_SIZE(name##_mi) }

void fast_fuse(struct op *o, const struct insn *i, const struct insn *jcc)
{
    static const op_fn cmp[FORMS][4] = BY_FORM(cmp), test[FORMS][4] = BY_FORM(test);
    /* By cond >> 1. */
    static const uint16_t mask[8] = { CC_OF, CC_CF, CC_ZF, CC_CF | CC_ZF,
                                      CC_SF, CC_PF, CC_LT, CC_LT | CC_ZF };
    int form = fast_form(i);
    op_fn fn = NULL;

    if (form >= 0 && i->id == INSN_CMP)
        fn = cmp[form][size_log(i->op[0].size)];
    else if (form >= 0 && i->id == INSN_TEST)
        fn = test[form][size_log(i->op[0].size)];
    if (!fn)
        return;
    o->fn = fn;
    o[1].b = mask[jcc->cond >> 1];
    o[1].r = jcc->cond & 1;
}
