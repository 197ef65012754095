/* Multiplication, division, sign extension and decimal adjustment. */
#include "engine/interp/alu.h"
#include "engine/interp/integer.h"

/* lo:hi of accumulator pairs: AX for bytes, DX:AX, EDX:EAX, RDX:RAX. */
static void put_pair(struct cpu *c, unsigned size, uint64_t lo, uint64_t hi)
{
    if (size == 1) {
        gpr_write(c, RAX, 2, (lo & 0xff) | (hi & 0xff) << 8);
        return;
    }
    gpr_write(c, RAX, size, lo);
    gpr_write(c, RDX, size, hi);
}

/* MUL or one-operand IMUL on the host, its undefined flags included. */
#define HOST_MUL(insn, n, T)                                                                       \
    do {                                                                                           \
        T lo_ = (T)a, hi_;                                                                         \
        uint16_t f_;                                                                               \
        __asm__(insn " %3\n\tpushfq\n\tpopq %2" : "+a"(lo_), "=d"(hi_), "=r"(fl) : "r"((T)b) : "cc"); \
        f_ = flags_to_cc(fl);                                                                      \
        lo = lo_;                                                                                  \
        hi = hi_;                                                                                  \
        cc = f_;                                                                                   \
    } while (0)
#define HOST_MUL8(insn)                                                                            \
    do {                                                                                           \
        uint16_t ax_ = (uint8_t)a;                                                                 \
        __asm__(insn " %2\n\tpushfq\n\tpopq %1" : "+a"(ax_), "=r"(fl) : "r"((uint8_t)b) : "cc");    \
        lo = ax_ & 0xff;                                                                           \
        hi = ax_ >> 8;                                                                             \
        cc = flags_to_cc(fl);                                                                      \
    } while (0)

static void mul_one(struct cpu *c, const struct insn *i, bool sign)
{
    unsigned size = i->op[0].size;
    uint64_t a = gpr_read(c, RAX, size), b = op_read(c, i, 0), lo, hi, fl;
    uint16_t cc;

    switch (size << 1 | sign) {
    case 2: HOST_MUL8("mulb"); break;
    case 3: HOST_MUL8("imulb"); break;
    case 4: HOST_MUL("mulw", 16, uint16_t); break;
    case 5: HOST_MUL("imulw", 16, uint16_t); break;
    case 8: HOST_MUL("mull", 32, uint32_t); break;
    case 9: HOST_MUL("imull", 32, uint32_t); break;
    case 16: HOST_MUL("mulq", 64, uint64_t); break;
    default: HOST_MUL("imulq", 64, uint64_t); break;
    }
    put_pair(c, size, lo, hi);
    c->cc = cc;
}

PLAIN(int_mul) { mul_one(c, i, false); }

PLAIN(int_imul)
{
    unsigned size = i->op[0].size;
    uint64_t a, b;

    if (i->nops == 1) {
        mul_one(c, i, true);
        return;
    }
    a = op_read(c, i, i->nops - 2);
    b = i->nops == 3 ? i->imm : op_read(c, i, 1);
    switch (size) {
#define CASE(n, T, sfx)                                                                            \
    case n / 8: {                                                                                  \
        T r = (T)a;                                                                                \
        uint16_t f;                                                                                \
        __asm__("imul" sfx " %2, %0\n\t" CC_GET : "+r"(r), "=&a"(f) : "r"((T)b) : "cc");           \
        c->cc = f;                                                                                 \
        a = r;                                                                                     \
        break;                                                                                     \
    }
        CASE(16, uint16_t, "w")
        CASE(32, uint32_t, "l")
        CASE(64, uint64_t, "q")
#undef CASE
    }
    op_write(c, i, 0, a);
}

PLAIN(int_mulx)
{
    unsigned size = i->op[0].size;
    __uint128_t p = (__uint128_t)gpr_read(c, RDX, size) * op_read(c, i, 2);

    /* The high half wins when both destinations are the same register. */
    op_write(c, i, 1, (uint64_t)p);
    op_write(c, i, 0, (uint64_t)(p >> (size * 8)));
}

PLAIN(int_div)
{
    unsigned size = i->op[0].size, nb = size * 8;
    uint64_t d = op_read(c, i, 0), lo, hi, q, r;

    if (size == 1) {
        lo = c->s.gpr[RAX] & 0xff;
        hi = c->s.gpr[RAX] >> 8 & 0xff;
    } else {
        lo = gpr_read(c, RAX, size);
        hi = gpr_read(c, RDX, size);
    }
    if (d == 0)
        cpu_raise(c, X_DE, 0);
    if (i->id == INSN_DIV) {
        __uint128_t n = (__uint128_t)hi << nb | lo;

        if (hi >= d)
            cpu_raise(c, X_DE, 0);
        q = (uint64_t)(n / d);
        r = (uint64_t)(n % d);
    } else {
        __int128_t n = (__int128_t)((__uint128_t)(__int128_t)(int64_t)sext(hi, nb) << nb | lo);
        __int128_t sd = (int64_t)sext(d, nb), sq;

        /* The one quotient that 128 bits cannot hold. */
        if (sd == -1 && n == (__int128_t)((__uint128_t)1 << 127))
            cpu_raise(c, X_DE, 0);
        sq = n / sd;
        if (sq != (__int128_t)(int64_t)sext((uint64_t)sq, nb))
            cpu_raise(c, X_DE, 0);
        q = (uint64_t)sq;
        r = (uint64_t)(n % sd);
    }
    put_pair(c, size, q, r);
}

PLAIN(int_cbw) /* CBW CWDE CDQE */
{
    gpr_write(c, RAX, i->opsize, sext(c->s.gpr[RAX], i->opsize * 4));
}

PLAIN(int_cwd) /* CWD CDQ CQO */
{
    gpr_write(c, RDX, i->opsize, sext(c->s.gpr[RAX], i->opsize * 8) >> 63 ? ~0ull : 0);
}

/* SF, ZF and PF of a byte. */
static uint16_t byte_flags(uint8_t v)
{
    uint16_t cc;

    alu_test8(v, v, &cc);
    return cc & (CC_SF | CC_ZF | CC_PF);
}

PLAIN(int_bcd)
{
    uint8_t al = (uint8_t)c->s.gpr[RAX], ah = (uint8_t)(c->s.gpr[RAX] >> 8), old = al;
    bool af = c->cc & CC_AF, cf = c->cc & CC_CF;
    uint16_t out = 0;

    switch (i->id) {
    case INSN_DAA:
    case INSN_DAS: {
        bool sub = i->id == INSN_DAS, cf2 = cf;

        if ((al & 15) > 9 || af) {
            cf2 = cf || (sub ? al < 6 : al > 0xf9);
            al = (uint8_t)(sub ? al - 6 : al + 6);
            out |= CC_AF;
        }
        if (old > 0x99 || cf) {
            al = (uint8_t)(sub ? al - 0x60 : al + 0x60);
            cf2 = true;
        } else if (!sub) {
            cf2 = false;
        }
        out |= (cf2 ? CC_CF : 0);
        break;
    }
    case INSN_AAA:
    case INSN_AAS:
        if ((al & 15) > 9 || af) {
            uint16_t ax = (uint16_t)(ah << 8 | al);

            ax = (uint16_t)(i->id == INSN_AAA ? ax + 0x106 : ax - 0x106);
            ah = (uint8_t)(ax >> 8);
            al = (uint8_t)ax;
            out |= CC_AF | CC_CF;
        }
        al &= 15;
        break;
    case INSN_AAM: {
        uint8_t base = (uint8_t)i->imm;

        if (!base)
            cpu_raise(c, X_DE, 0);
        ah = al / base;
        al = al % base;
        break;
    }
    default: /* AAD */
        al = (uint8_t)(al + ah * (uint8_t)i->imm);
        ah = 0;
        break;
    }
    gpr_write(c, RAX, 2, (uint64_t)ah << 8 | al);
    c->cc = out | byte_flags(al);
}
