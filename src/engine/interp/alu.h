/*
 * Integer arithmetic with exact flags, done by the host's own instructions: each function computes a
 * result and its status flags in LAHF/SETO form (see struct cpu.cc), undefined flags included, so that they are
 * what this processor would give. No state; shared by the fast handlers and the plain functions.
 */
#ifndef RING3_ENGINE_INTERP_ALU_H
#define RING3_ENGINE_INTERP_ALU_H

#include <stdint.h>

#include "base/util.h"

/* Bits of the LAHF/SETO form. */
#define CC_CF 0x0100u
#define CC_PF 0x0400u
#define CC_AF 0x1000u
#define CC_ZF 0x4000u
#define CC_SF 0x8000u
#define CC_OF 0x0001u
#define CC_ALL (CC_CF | CC_PF | CC_AF | CC_ZF | CC_SF | CC_OF)

/* Loads CF from the cc value in operand %n. */
#define CC_TO_CF(n) "btw $8, %w" #n "\n\t"
#define CC_GET "lahf\n\tseto %%al"

#define ALU_SIZES(X)                                                                               \
    X(8, uint8_t, int8_t, "b", "q")                                                                \
    X(16, uint16_t, int16_t, "w", "r")                                                             \
    X(32, uint32_t, int32_t, "l", "r")                                                             \
    X(64, uint64_t, int64_t, "q", "r")

#define ALU_BIN(op, n, T, sfx)                                                                     \
    static inline T alu_##op##n(T a, T b, uint16_t *cc)                                            \
    {                                                                                              \
        uint16_t f;                                                                                \
        __asm__(#op sfx " %2, %0\n\t" CC_GET : "+r"(a), "=&a"(f) : "r"(b) : "cc");                 \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }
#define ALU_CARRY(op, n, T, sfx)                                                                   \
    static inline T alu_##op##n(T a, T b, uint16_t *cc)                                            \
    {                                                                                              \
        uint16_t f = *cc;                                                                          \
        __asm__(CC_TO_CF(1) #op sfx " %2, %0\n\t" CC_GET : "+r"(a), "+&a"(f) : "r"(b) : "cc");     \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }
#define ALU_TEST(op, n, T, sfx)                                                                    \
    static inline void alu_##op##n(T a, T b, uint16_t *cc)                                         \
    {                                                                                              \
        uint16_t f;                                                                                \
        __asm__(#op sfx " %2, %1\n\t" CC_GET : "=&a"(f) : "r"(a), "r"(b) : "cc");                  \
        *cc = f;                                                                                   \
    }
/* INC and DEC keep CF. */
#define ALU_STEP(op, n, T, sfx)                                                                    \
    static inline T alu_##op##n(T a, uint16_t *cc)                                                 \
    {                                                                                              \
        uint16_t f = *cc;                                                                          \
        __asm__(CC_TO_CF(1) #op sfx " %0\n\t" CC_GET : "+r"(a), "+&a"(f) : : "cc");                \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }
#define ALU_NEG(n, T, sfx)                                                                         \
    static inline T alu_neg##n(T a, uint16_t *cc)                                                  \
    {                                                                                              \
        uint16_t f;                                                                                \
        __asm__("neg" sfx " %0\n\t" CC_GET : "+r"(a), "=&a"(f) : : "cc");                          \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }
/* SHL, SHR, SAR: a masked count of 0 leaves all flags. */
#define ALU_SHIFT(op, n, T, sfx, cmask)                                                            \
    static inline T alu_##op##n(T a, uint8_t count, uint16_t *cc)                                  \
    {                                                                                              \
        uint16_t f;                                                                                \
        if (!(count & cmask))                                                                      \
            return a;                                                                              \
        __asm__(#op sfx " %%cl, %0\n\t" CC_GET : "+r"(a), "=&a"(f) : "c"(count) : "cc");           \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }
/* Rotates change CF and OF only. RCL and RCR take CF in. */
#define ALU_ROT(op, n, T, sfx, cmask)                                                              \
    static inline T alu_##op##n(T a, uint8_t count, uint16_t *cc)                                  \
    {                                                                                              \
        uint16_t f = *cc;                                                                          \
        if (!(count & cmask))                                                                      \
            return a;                                                                              \
        __asm__(CC_TO_CF(1) #op sfx " %%cl, %0\n\t" CC_GET : "+r"(a), "+&a"(f) : "c"(count) : "cc"); \
        *cc = (*cc & ~(CC_CF | CC_OF)) | (f & (CC_CF | CC_OF));                                    \
        return a;                                                                                  \
    }

#define ALU_DEFINE(n, T, S, sfx, con)                                                              \
    ALU_BIN(add, n, T, sfx)                                                                        \
    ALU_BIN(sub, n, T, sfx)                                                                        \
    ALU_BIN(and, n, T, sfx)                                                                        \
    ALU_BIN(or, n, T, sfx)                                                                         \
    ALU_BIN(xor, n, T, sfx)                                                                        \
    ALU_CARRY(adc, n, T, sfx)                                                                      \
    ALU_CARRY(sbb, n, T, sfx)                                                                      \
    ALU_TEST(cmp, n, T, sfx)                                                                       \
    ALU_TEST(test, n, T, sfx)                                                                      \
    ALU_STEP(inc, n, T, sfx)                                                                       \
    ALU_STEP(dec, n, T, sfx)                                                                       \
    ALU_NEG(n, T, sfx)                                                                             \
    ALU_SHIFT(shl, n, T, sfx, (n == 64 ? 63 : 31))                                                 \
    ALU_SHIFT(shr, n, T, sfx, (n == 64 ? 63 : 31))                                                 \
    ALU_SHIFT(sar, n, T, sfx, (n == 64 ? 63 : 31))                                                 \
    ALU_ROT(rol, n, T, sfx, (n == 64 ? 63 : 31))                                                   \
    ALU_ROT(ror, n, T, sfx, (n == 64 ? 63 : 31))                                                   \
    ALU_ROT(rcl, n, T, sfx, (n == 64 ? 63 : 31))                                                   \
    ALU_ROT(rcr, n, T, sfx, (n == 64 ? 63 : 31))

ALU_SIZES(ALU_DEFINE)

/* Double shifts, 16, 32, 64 bits. */
#define ALU_DSHIFT(op, n, T, sfx, cmask)                                                           \
    static inline T alu_##op##n(T a, T b, uint8_t count, uint16_t *cc)                             \
    {                                                                                              \
        uint16_t f;                                                                                \
        if (!(count & cmask))                                                                      \
            return a;                                                                              \
        __asm__(#op sfx " %%cl, %2, %0\n\t" CC_GET : "+r"(a), "=&a"(f) : "r"(b), "c"(count) : "cc"); \
        *cc = f;                                                                                   \
        return a;                                                                                  \
    }
ALU_DSHIFT(shld, 16, uint16_t, "w", 31)
ALU_DSHIFT(shld, 32, uint32_t, "l", 31)
ALU_DSHIFT(shld, 64, uint64_t, "q", 63)
ALU_DSHIFT(shrd, 16, uint16_t, "w", 31)
ALU_DSHIFT(shrd, 32, uint32_t, "l", 31)
ALU_DSHIFT(shrd, 64, uint64_t, "q", 63)

/* Is condition code cc (0..15, as in Jcc) true? */
static inline bool cond_true(uint16_t cc, unsigned cond)
{
    bool v;

    switch (cond >> 1) {
    case 0: v = cc & CC_OF; break;
    case 1: v = cc & CC_CF; break;
    case 2: v = cc & CC_ZF; break;
    case 3: v = cc & (CC_CF | CC_ZF); break;
    case 4: v = cc & CC_SF; break;
    case 5: v = cc & CC_PF; break;
    case 6: v = ((cc >> 15) ^ cc) & 1; break;
    default: v = (cc & CC_ZF) || (((cc >> 15) ^ cc) & 1); break;
    }
    return v ^ (cond & 1);
}

#endif
