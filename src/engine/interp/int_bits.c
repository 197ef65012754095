/* Bit test, scan and manipulation; CRC32, BSWAP, random numbers. */
#include "engine/interp/alu.h"
#include "engine/interp/integer.h"

static uint64_t bit_set(uint64_t old, uint64_t arg, uint16_t *cc) { return old | arg; }
static uint64_t bit_clear(uint64_t old, uint64_t arg, uint16_t *cc) { return old & ~arg; }
static uint64_t bit_flip(uint64_t old, uint64_t arg, uint16_t *cc) { return old ^ arg; }

PLAIN(int_bt)
{
    unsigned size = i->op[0].size, nb = size * 8;
    uint64_t off = op_read(c, i, 1), mask, old;
    rmw_fn fn = i->id == INSN_BTS ? bit_set : i->id == INSN_BTR ? bit_clear : bit_flip;

    mask = BIT(off & (nb - 1));
    if (i->op[0].kind == OP_MEM) {
        uint64_t ea = insn_ea(c, i), la;

        /* A register offset reaches beyond the operand, signed. */
        if (i->op[1].kind == OP_REG)
            ea += (uint64_t)((int64_t)sext(off, nb) >> (size_log(size) + 3)) << size_log(size);
        if (i->addrsize < 8)
            ea &= size_bits(i->addrsize);
        if (i->id == INSN_BT) {
            old = lin_ld(c, seg_lin(c, i->mem.seg, ea, size, ACCESS_READ), size, PRIV_CPL);
        } else {
            la = seg_lin(c, i->mem.seg, ea, size, ACCESS_WRITE);
            old = int_rmw_at(c, la, size, fn, mask, i->prefix & PFX_LOCK);
        }
    } else if (i->id == INSN_BT) {
        old = op_read(c, i, 0);
    } else {
        old = int_rmw(c, i, 0, fn, mask, false);
    }
    c->cc = (uint16_t)((c->cc & ~CC_CF) | (old & mask ? CC_CF : 0));
}

PLAIN(int_scan)
{
    unsigned size = i->op[0].size;
    uint64_t src = op_read(c, i, 1), dst = op_read(c, i, 0);
    uint16_t f;

    switch (i->id << 4 | size) {
#define HOST(insn, n, T, sfx)                                                                      \
    case INSN_##insn << 4 | (n / 8): {                                                             \
        T d = (T)dst;                                                                              \
        __asm__(#insn sfx " %2, %0\n\t" CC_GET : "+&r"(d), "=&a"(f) : "r"((T)src) : "cc");         \
        dst = d;                                                                                   \
        break;                                                                                     \
    }
#define HOSTS(insn) HOST(insn, 16, uint16_t, "w") HOST(insn, 32, uint32_t, "l") HOST(insn, 64, uint64_t, "q")
        HOSTS(BSF)
        HOSTS(BSR)
        HOSTS(LZCNT)
        HOSTS(TZCNT)
        HOSTS(POPCNT)
#undef HOSTS
#undef HOST
    default: return;
    }
    /* BSF and BSR of zero leave the destination as it was: in 64-bit code all of it. */
    if (src || (i->id != INSN_BSF && i->id != INSN_BSR))
        op_write(c, i, 0, dst);
    c->cc = f;
}

PLAIN(int_bmi)
{
    unsigned size = i->op[0].size, nb = size * 8;
    uint64_t a = op_read(c, i, 1), b = i->nops > 2 ? op_read(c, i, 2) : 0, v = 0;
    uint16_t f = c->cc;

    switch (i->id << 4 | size) {
#define HOST2(insn, n, T, sfx)                                                                     \
    case INSN_##insn << 4 | (n / 8): {                                                             \
        T d;                                                                                       \
        __asm__(#insn sfx " %2, %0\n\t" CC_GET : "=&r"(d), "=&a"(f) : "r"((T)a) : "cc");           \
        v = d;                                                                                     \
        break;                                                                                     \
    }
#define HOST3(insn, n, T, sfx)                                                                     \
    case INSN_##insn << 4 | (n / 8): {                                                             \
        T d;                                                                                       \
        __asm__(#insn sfx " %3, %2, %0\n\t" CC_GET                                                 \
                : "=&r"(d), "=&a"(f) : "r"((T)a), "r"((T)b) : "cc");                               \
        v = d;                                                                                     \
        break;                                                                                     \
    }
#define BOTH(H, insn) H(insn, 32, uint32_t, "l") H(insn, 64, uint64_t, "q")
        BOTH(HOST2, BLSI)
        BOTH(HOST2, BLSMSK)
        BOTH(HOST2, BLSR)
        BOTH(HOST3, ANDN)
        BOTH(HOST3, BEXTR)
        BOTH(HOST3, BZHI)
#undef HOST2
#undef HOST3
#define HOST3Q(insn, n, T, sfx)                                                                    \
    case INSN_##insn << 4 | (n / 8): {                                                             \
        T d;                                                                                       \
        __asm__(#insn sfx " %2, %1, %0" : "=r"(d) : "r"((T)a), "r"((T)b));                         \
        v = d;                                                                                     \
        break;                                                                                     \
    }
        BOTH(HOST3Q, PDEP)
        BOTH(HOST3Q, PEXT)
#undef HOST3Q
#undef BOTH
    default:
        b = (i->id == INSN_RORX ? i->imm : b) & (nb - 1);
        if (i->id == INSN_RORX)
            v = b ? a >> b | a << (nb - b) : a;
        else if (i->id == INSN_SARX)
            v = (uint64_t)((int64_t)sext(a, nb) >> b);
        else if (i->id == INSN_SHLX)
            v = a << b;
        else
            v = a >> b;
    }
    op_write(c, i, 0, v);
    c->cc = f;
}

PLAIN(int_adx)
{
    unsigned size = i->op[0].size;
    uint16_t bit = i->id == INSN_ADCX ? CC_CF : CC_OF;
    uint64_t a = op_read(c, i, 0), b = op_read(c, i, 1), mask = size_bits(size);
    __uint128_t sum = (__uint128_t)a + b + !!(c->cc & bit);

    op_write(c, i, 0, (uint64_t)sum & mask);
    c->cc = (uint16_t)((c->cc & ~bit) | (sum >> (size * 8) ? bit : 0));
}

PLAIN(int_crc32)
{
    uint64_t src = op_read(c, i, 1), crc = (uint32_t)c->s.gpr[i->op[0].reg];

    switch (i->op[1].size) {
    case 1: __asm__("crc32b %1, %0" : "+r"(crc) : "r"((uint8_t)src)); break;
    case 2: __asm__("crc32w %1, %k0" : "+r"(crc) : "r"((uint16_t)src)); break;
    case 4: __asm__("crc32l %1, %k0" : "+r"(crc) : "r"((uint32_t)src)); break;
    default: __asm__("crc32q %1, %0" : "+r"(crc) : "r"(src)); break;
    }
    op_write(c, i, 0, (uint32_t)crc);
}

PLAIN(int_bswap)
{
    uint64_t v = op_read(c, i, 0);

    if (i->opsize == 8)
        v = __builtin_bswap64(v);
    else if (i->opsize == 4)
        v = __builtin_bswap32((uint32_t)v);
    else
        v = 0; /* undefined for 16 bits; processors give zero */
    op_write(c, i, 0, v);
}

PLAIN(int_random)
{
    uint64_t v;
    bool ok;

    if (i->id == INSN_RDRAND)
        __asm__ volatile("rdrand %0\n\tsetc %1" : "=r"(v), "=qm"(ok) : : "cc");
    else
        __asm__ volatile("rdseed %0\n\tsetc %1" : "=r"(v), "=qm"(ok) : : "cc");
    op_write(c, i, 0, ok ? v : 0);
    c->cc = ok ? CC_CF : 0;
}
