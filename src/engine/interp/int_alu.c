/* General arithmetic and logic in every mode and form, and the locked read-modify-write operations. */
#include "engine/interp/alu.h"
#include "engine/interp/integer.h"

typedef uint16_t __attribute__((may_alias, aligned(1))) u16u;
typedef uint32_t __attribute__((may_alias, aligned(1))) u32u;
typedef uint64_t __attribute__((may_alias, aligned(1))) u64u;

/* Host functions by operand size 1, 2, 4, 8. */
#define WRAP_BIN(op, n, T) \
    static uint64_t op##_##n(uint64_t a, uint64_t b, uint16_t *cc) { return alu_##op##n((T)a, (T)b, cc); }
#define WRAP_UN(op, n, T) \
    static uint64_t op##_##n(uint64_t a, uint64_t b, uint16_t *cc) { return alu_##op##n((T)a, cc); }
#define WRAP_SHIFT(op, n, T) \
    static uint64_t op##_##n(uint64_t a, uint64_t b, uint16_t *cc) { return alu_##op##n((T)a, (uint8_t)b, cc); }
#define ALL(W, op) W(op, 8, uint8_t) W(op, 16, uint16_t) W(op, 32, uint32_t) W(op, 64, uint64_t)
ALL(WRAP_BIN, add) ALL(WRAP_BIN, or) ALL(WRAP_BIN, adc) ALL(WRAP_BIN, sbb)
ALL(WRAP_BIN, and) ALL(WRAP_BIN, sub) ALL(WRAP_BIN, xor)
ALL(WRAP_UN, inc) ALL(WRAP_UN, dec) ALL(WRAP_UN, neg)
ALL(WRAP_SHIFT, rol) ALL(WRAP_SHIFT, ror) ALL(WRAP_SHIFT, rcl) ALL(WRAP_SHIFT, rcr)
ALL(WRAP_SHIFT, shl) ALL(WRAP_SHIFT, shr) ALL(WRAP_SHIFT, sar)

static uint64_t not_any(uint64_t a, uint64_t b, uint16_t *cc) { return ~a; }

#define ROW(op) { op##_8, op##_16, op##_32, op##_64 }

static rmw_fn binary_fn(uint16_t id, unsigned size)
{
    static const struct {
        uint16_t id;
        rmw_fn fn[4];
    } tab[] = {
        { INSN_ADD, ROW(add) }, { INSN_OR, ROW(or) },   { INSN_ADC, ROW(adc) },
        { INSN_SBB, ROW(sbb) }, { INSN_AND, ROW(and) }, { INSN_SUB, ROW(sub) },
        { INSN_XOR, ROW(xor) }, { INSN_INC, ROW(inc) }, { INSN_DEC, ROW(dec) },
        { INSN_NEG, ROW(neg) }, { INSN_NOT, { not_any, not_any, not_any, not_any } },
        { INSN_ROL, ROW(rol) }, { INSN_ROR, ROW(ror) }, { INSN_RCL, ROW(rcl) },
        { INSN_RCR, ROW(rcr) }, { INSN_SHL, ROW(shl) }, { INSN_SHR, ROW(shr) },
        { INSN_SAR, ROW(sar) },
    };

    for (unsigned k = 0; k < ARRAY_LEN(tab); k++)
        if (tab[k].id == id)
            return tab[k].fn[size_log(size)];
    return NULL;
}

#define RMW_HOST(T)                                                                                \
    do {                                                                                           \
        T *p = r.p;                                                                                \
        if (atomic) {                                                                              \
            T seen = __atomic_load_n(p, __ATOMIC_RELAXED), want;                                   \
            do {                                                                                   \
                cc = c->cc;                                                                        \
                old = seen;                                                                        \
                want = (T)fn(old, arg, &cc);                                                       \
            } while (!__atomic_compare_exchange_n(p, &seen, want, false, __ATOMIC_SEQ_CST,         \
                                                  __ATOMIC_RELAXED));                              \
        } else {                                                                                   \
            old = *p;                                                                              \
            *p = (T)fn(old, arg, &cc);                                                             \
        }                                                                                          \
    } while (0)

uint64_t int_rmw_at(struct cpu *c, uint64_t la, unsigned size, rmw_fn fn, uint64_t arg, bool atomic)
{
    uint16_t cc = c->cc;
    uint64_t old;
    struct rmw r;

    lin_rmw_begin(c, &r, la, size, atomic);
    switch (size) {
    case 1: RMW_HOST(uint8_t); break;
    case 2: RMW_HOST(u16u); break;
    case 4: RMW_HOST(u32u); break;
    default: RMW_HOST(u64u); break;
    }
    lin_rmw_end(c, &r);
    c->cc = cc;
    return old;
}

uint64_t int_rmw(struct cpu *c, const struct insn *i, unsigned n, rmw_fn fn, uint64_t arg, bool atomic)
{
    const struct opnd *o = &i->op[n];
    uint16_t cc = c->cc;
    uint64_t old;

    if (o->kind == OP_MEM)
        return int_rmw_at(c, insn_lin(c, i, o->size, ACCESS_WRITE), o->size, fn, arg, atomic);
    old = op_read(c, i, n);
    op_write(c, i, n, fn(old, arg, &cc));
    c->cc = cc;
    return old;
}

PLAIN(int_binary)
{
    uint64_t arg = op_read(c, i, 1);

    int_rmw(c, i, 0, binary_fn(i->id, i->op[0].size), arg, i->prefix & PFX_LOCK);
}

PLAIN(int_unary)
{
    int_rmw(c, i, 0, binary_fn(i->id, i->op[0].size), 0, i->prefix & PFX_LOCK);
}

PLAIN(int_shift)
{
    uint64_t count = op_read(c, i, 1) & 0xff;

    int_rmw(c, i, 0, binary_fn(i->id, i->op[0].size), count, false);
}

PLAIN(int_compare)
{
    uint64_t a = op_read(c, i, 0), b = op_read(c, i, 1);
    bool test = i->id == INSN_TEST;

    switch (i->op[0].size) {
#define CASE(n, T)                                                                                 \
    case n / 8:                                                                                    \
        if (test)                                                                                  \
            alu_test##n((T)a, (T)b, &c->cc);                                                       \
        else                                                                                       \
            alu_cmp##n((T)a, (T)b, &c->cc);                                                        \
        break;
        CASE(8, uint8_t)
        CASE(16, uint16_t)
        CASE(32, uint32_t)
        CASE(64, uint64_t)
#undef CASE
    }
}

PLAIN(int_dshift)
{
    unsigned size = i->op[0].size;
    uint64_t a, b = op_read(c, i, 1), la = 0, v;
    uint8_t n = (uint8_t)op_read(c, i, 2);
    uint16_t cc = c->cc;
    bool left = i->id == INSN_SHLD, mem = i->op[0].kind == OP_MEM;

    if (mem) {
        la = insn_lin(c, i, size, ACCESS_WRITE);
        lin_check(c, la, size, ACCESS_WRITE, PRIV_CPL);
        a = lin_ld(c, la, size, PRIV_CPL);
    } else {
        a = op_read(c, i, 0);
    }
    if (size == 2)
        v = left ? alu_shld16((uint16_t)a, (uint16_t)b, n, &cc)
                 : alu_shrd16((uint16_t)a, (uint16_t)b, n, &cc);
    else if (size == 4)
        v = left ? alu_shld32((uint32_t)a, (uint32_t)b, n, &cc)
                 : alu_shrd32((uint32_t)a, (uint32_t)b, n, &cc);
    else
        v = left ? alu_shld64(a, b, n, &cc) : alu_shrd64(a, b, n, &cc);
    if (mem)
        lin_st(c, la, size, v, PRIV_CPL);
    else
        op_write(c, i, 0, v);
    c->cc = cc;
}

PLAIN(int_xadd)
{
    uint64_t arg = op_read(c, i, 1);
    uint64_t old = int_rmw(c, i, 0, binary_fn(INSN_ADD, i->op[0].size), arg, i->prefix & PFX_LOCK);

    /* With both operands the same register the sum stays. */
    if (i->op[0].kind == OP_MEM || i->op[0].reg != i->op[1].reg || i->op[0].cls != i->op[1].cls)
        op_write(c, i, 1, old);
}

static uint64_t take_arg(uint64_t old, uint64_t arg, uint16_t *cc) { return arg; }

PLAIN(int_xchg)
{
    /* The memory operand may be either one; XCHG with memory is always locked. */
    unsigned m = i->op[1].kind == OP_MEM;
    uint64_t arg = op_read(c, i, !m);
    uint64_t old = int_rmw(c, i, m, take_arg, arg, true);

    op_write(c, i, !m, old);
}

#define CMPXCHG_HOST(T)                                                                            \
    do {                                                                                           \
        T seen = (T)acc;                                                                           \
        if (!(i->prefix & PFX_LOCK)) {                                                             \
            seen = *(T *)r.p;                                                                      \
            if (seen == (T)acc)                                                                    \
                *(T *)r.p = (T)src;                                                                \
        } else {                                                                                   \
            __atomic_compare_exchange_n((T *)r.p, &seen, (T)src, false, __ATOMIC_SEQ_CST,          \
                                        __ATOMIC_SEQ_CST);                                         \
        }                                                                                          \
        old = seen;                                                                                \
    } while (0)

static void cmp_flags(struct cpu *c, unsigned size, uint64_t a, uint64_t b)
{
    switch (size) {
    case 1: alu_cmp8((uint8_t)a, (uint8_t)b, &c->cc); break;
    case 2: alu_cmp16((uint16_t)a, (uint16_t)b, &c->cc); break;
    case 4: alu_cmp32((uint32_t)a, (uint32_t)b, &c->cc); break;
    default: alu_cmp64(a, b, &c->cc); break;
    }
}

PLAIN(int_cmpxchg)
{
    unsigned size = i->op[0].size;
    uint64_t acc = gpr_read(c, RAX, size), src = op_read(c, i, 1), old;
    struct rmw r;

    if (i->op[0].kind == OP_MEM) {
        lin_rmw_begin(c, &r, insn_lin(c, i, size, ACCESS_WRITE), size, i->prefix & PFX_LOCK);
        switch (size) {
        case 1: CMPXCHG_HOST(uint8_t); break;
        case 2: CMPXCHG_HOST(u16u); break;
        case 4: CMPXCHG_HOST(u32u); break;
        default: CMPXCHG_HOST(u64u); break;
        }
        lin_rmw_end(c, &r);
        if (old != acc)
            gpr_write(c, RAX, size, old);
    } else {
        old = op_read(c, i, 0);
        if (old == acc)
            op_write(c, i, 0, src);
        else
            gpr_write(c, RAX, size, old);
    }
    cmp_flags(c, size, acc, old);
}

PLAIN(int_cmpxchg8b)
{
    unsigned half = i->id == INSN_CMPXCHG16B ? 8 : 4;
    uint64_t la = insn_lin(c, i, 2 * half, ACCESS_WRITE);
    uint64_t cmp[2] = { gpr_read(c, RAX, half), gpr_read(c, RDX, half) };
    uint64_t new[2] = { gpr_read(c, RBX, half), gpr_read(c, RCX, half) };
    uint64_t old[2];
    struct rmw r;
    bool equal;

    if (half == 8 && (la & 15))
        cpu_raise(c, X_GP, 0);
    lin_rmw_begin(c, &r, la, 2 * half, i->prefix & PFX_LOCK);
    if (half == 4) {
        uint64_t seen = cmp[0] | cmp[1] << 32;

        equal = __atomic_compare_exchange_n((u64u *)r.p, &seen, new[0] | new[1] << 32, false,
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        old[0] = (uint32_t)seen;
        old[1] = seen >> 32;
    } else {
        old[0] = cmp[0];
        old[1] = cmp[1];
        __asm__ volatile("lock cmpxchg16b %1\n\tsete %0"
                         : "=q"(equal), "+m"(*(char(*)[16])r.p), "+a"(old[0]), "+d"(old[1])
                         : "b"(new[0]), "c"(new[1])
                         : "cc");
    }
    lin_rmw_end(c, &r);
    if (!equal) {
        gpr_write(c, RAX, half, old[0]);
        gpr_write(c, RDX, half, old[1]);
    }
    c->cc = (uint16_t)((c->cc & ~CC_ZF) | (equal ? CC_ZF : 0));
}
