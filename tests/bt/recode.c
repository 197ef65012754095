/*
 * recode(): the traps of the encoding by hand, then random encodings of the whole table with random
 * maps, judged by Zydis and by our decoder. bt-recode                  the test suite bt-recode
 * CASES [SEED]     by hand: that many random cases, every kind of difference once
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../insn/gen.h"
#include "base/util.h"
#include "recode_judge.h"

/* ---- by hand ---- */

/* clang-format off */
#define BYTES(...) {sizeof((uint8_t[]){__VA_ARGS__}), {__VA_ARGS__}}
#define REFUSED {0, {0}}
#define AT_(b) {.base = (b), .index = REG_NONE}
#define T(...) {.name = __VA_ARGS__}
/* clang-format on */

struct bytes {
    uint8_t n, b[15];
};

struct named_case {
    const char *name;
    struct bytes in, out;
    struct {
        uint8_t guest, host;
    } moved[3]; /* {RAX, RAX}, which changes nothing, where there are fewer */
    struct {
        uint8_t host, which; /* host 0: AH..BH stay */
    } high;
    struct recode_mem mem;
};

/* clang-format off */
static const struct named_case named_cases[] = {
    /* memory operands: the special numbers of ModRM and SIB */
    T("base RSP", BYTES(0x48, 0x8b, 0x00), BYTES(0x48, 0x8b, 0x04, 0x24), .mem = AT_(RSP)),
    T("base R12", BYTES(0x48, 0x8b, 0x00), BYTES(0x49, 0x8b, 0x04, 0x24), .mem = AT_(R12)),
    T("base RBP", BYTES(0x48, 0x8b, 0x00), BYTES(0x48, 0x8b, 0x45, 0x00), .mem = AT_(RBP)),
    T("base R13", BYTES(0x48, 0x8b, 0x00), BYTES(0x49, 0x8b, 0x45, 0x00), .mem = AT_(R13)),
    T("base RBP, index R12", BYTES(0x48, 0x8b, 0x00),
      BYTES(0x4a, 0x8b, 0x84, 0xe5, 0x80, 0, 0, 0), .mem = {RBP, R12, 3, 0x80}),
    T("base R13, index RBP", BYTES(0x8b, 0x00), BYTES(0x41, 0x8b, 0x44, 0x2d, 0x00),
      .mem = {R13, RBP, 0, 0}),
    T("index RSP", BYTES(0x48, 0x8b, 0x00), REFUSED, .mem = {RBX, RSP, 0, 0}),
    T("no base", BYTES(0x48, 0x8b, 0x00), REFUSED, .mem = AT_(REG_NONE)),
    T("scale of 16", BYTES(0x48, 0x8b, 0x00), REFUSED, .mem = {RBX, RCX, 4, 0}),
    T("scale without index", BYTES(0x48, 0x8b, 0x00), BYTES(0x48, 0x8b, 0x03),
      .mem = {RBX, REG_NONE, 0xff, 0}),
    T("disp -128", BYTES(0x8b, 0x00), BYTES(0x8b, 0x43, 0x80), .mem = {RBX, REG_NONE, 0, -128}),
    T("disp -129", BYTES(0x8b, 0x00), BYTES(0x8b, 0x83, 0x7f, 0xff, 0xff, 0xff),
      .mem = {RBX, REG_NONE, 0, -129}),
    T("RIP-relative", BYTES(0x8b, 0x05, 1, 2, 3, 4), BYTES(0x8b, 0x07), .mem = AT_(RDI)),
    T("FS and 67", BYTES(0x64, 0x67, 0x48, 0x8b, 0x00), BYTES(0x48, 0x8b, 0x03), .mem = AT_(RBX)),
    T("immediate after displacement", BYTES(0xc7, 0x00, 1, 2, 3, 4),
      BYTES(0x41, 0xc7, 0x81, 0, 1, 0, 0, 1, 2, 3, 4), .mem = {R9, REG_NONE, 0, 0x100}),

    /* bytes: SPL..DIL need REX, AH..BH exclude it */
    T("MOV AL, SIL", BYTES(0x88, 0xc8), BYTES(0x40, 0x88, 0xf0), .moved = {{RCX, RSI}}),
    T("useless REX goes", BYTES(0x40, 0x88, 0xc8), BYTES(0x88, 0xc8)),
    T("SPL to BL", BYTES(0x40, 0x88, 0xe0), BYTES(0x88, 0xd8), .moved = {{RSP, RBX}}),
    T("MOV CL, AH", BYTES(0x88, 0xe1), BYTES(0x88, 0xe1)),
    T("MOV SIL, AH", BYTES(0x88, 0xe1), REFUSED, .moved = {{RCX, RSI}}),
    T("MOV R8B, AH", BYTES(0x88, 0xe1), REFUSED, .moved = {{RCX, R8}}),
    T("MOV [R8], AH", BYTES(0x88, 0x20), REFUSED, .mem = AT_(R8)),
    T("MOV [RBX + R8], AH", BYTES(0x88, 0x20), REFUSED, .mem = {RBX, R8, 0, 0}),
    T("MOV [RSI], AH", BYTES(0x88, 0x20), BYTES(0x88, 0x26), .mem = AT_(RSI)),
    T("MOV [R8], AH as SIL", BYTES(0x88, 0x20), BYTES(0x41, 0x88, 0x30), .high = {RSI, RAX},
      .mem = AT_(R8)),
    T("MOV CL, AH as R9B", BYTES(0x88, 0xe1), BYTES(0x44, 0x88, 0xc9), .high = {R9, RAX}),
    T("MOV AH, BH as DL", BYTES(0x88, 0xfc), BYTES(0x88, 0xd4), .high = {RDX, RBX}),
    T("MOV AH, BH as DIL", BYTES(0x88, 0xfc), REFUSED, .high = {RDI, RBX}),
    T("MOVZX EAX, AH", BYTES(0x0f, 0xb6, 0xc4), BYTES(0x0f, 0xb6, 0xc4)),
    T("MOVZX R9D, AH", BYTES(0x0f, 0xb6, 0xc4), REFUSED, .moved = {{RAX, R9}}),
    T("MOVZX R9D, AH as DL", BYTES(0x0f, 0xb6, 0xc4), BYTES(0x44, 0x0f, 0xb6, 0xca),
      .moved = {{RAX, R9}}, .high = {RDX, RAX}),
    T("MOVZX of a byte, not its destination", BYTES(0x0f, 0xb6, 0xc1), BYTES(0x0f, 0xb6, 0xf9),
      .moved = {{RAX, RDI}}),
    T("MOV AH, imm", BYTES(0xb4, 0x7f), BYTES(0xb4, 0x7f)),
    T("MOV AH as BPL, imm", BYTES(0xb4, 0x7f), BYTES(0x40, 0xb5, 0x7f), .high = {RBP, RAX}),
    T("MOV DIL, imm", BYTES(0xb0, 0x12), BYTES(0x40, 0xb7, 0x12), .moved = {{RAX, RDI}}),
    T("MOV R8B to BL, imm", BYTES(0x41, 0xb0, 0x12), BYTES(0xb3, 0x12), .moved = {{R8, RBX}}),
    T("SETE DIL", BYTES(0x0f, 0x94, 0xc0), BYTES(0x40, 0x0f, 0x94, 0xc7), .moved = {{RAX, RDI}}),
    T("CRC32 EAX, DIL", BYTES(0xf2, 0x0f, 0x38, 0xf0, 0xc1),
      BYTES(0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc7), .moved = {{RCX, RDI}}),
    T("CRC32 R8D, CX", BYTES(0x66, 0xf2, 0x0f, 0x38, 0xf1, 0xc1),
      BYTES(0x66, 0xf2, 0x44, 0x0f, 0x38, 0xf1, 0xc1), .moved = {{RAX, R8}}),

    /* prefixes */
    T("REX before 66 does not count", BYTES(0x48, 0x66, 0x89, 0xc8), BYTES(0x66, 0x89, 0xc8)),
    T("only the last REX counts", BYTES(0x4f, 0x48, 0x89, 0xc8), BYTES(0x48, 0x89, 0xc8)),
    T("prefixes without meaning", BYTES(0xf2, 0xf3, 0x66, 0x2e, 0x89, 0xc8),
      BYTES(0x66, 0x89, 0xc8)),
    T("last of F2 and F3 counts", BYTES(0xf2, 0xf3, 0x0f, 0x58, 0xc1),
      BYTES(0xf3, 0x0f, 0x58, 0xc1)),
    T("66 beside F3", BYTES(0x66, 0xf3, 0x0f, 0xb8, 0xc1), BYTES(0x66, 0xf3, 0x0f, 0xb8, 0xc1)),
    T("LOCK stays", BYTES(0xf0, 0x48, 0x01, 0x08), BYTES(0xf0, 0x4c, 0x01, 0x03),
      .moved = {{RCX, R8}}, .mem = AT_(RBX)),
    T("XACQUIRE goes", BYTES(0xf2, 0xf0, 0x01, 0x08), BYTES(0xf0, 0x01, 0x0b), .mem = AT_(RBX)),
    T("RDSSP stays a hint", BYTES(0xf3, 0x48, 0x0f, 0x1e, 0xc8), BYTES(0x48, 0x0f, 0x1e, 0xc8)),
    T("PAUSE", BYTES(0xf3, 0x90), BYTES(0xf3, 0x90)),
    T("ENDBR64", BYTES(0xf3, 0x0f, 0x1e, 0xfa), BYTES(0xf3, 0x0f, 0x1e, 0xfa)),

    /* registers in the opcode byte */
    T("NOP", BYTES(0x90), BYTES(0x90), .moved = {{RAX, R8}}),
    T("NOP with 66", BYTES(0x66, 0x90), BYTES(0x66, 0x90)),
    T("XCHG ECX, EAX with ECX in RAX", BYTES(0x91), BYTES(0x87, 0xd0),
      .moved = {{RCX, RAX}, {RAX, RDX}}),
    T("XCHG R8D, EAX swapped", BYTES(0x41, 0x90), BYTES(0x44, 0x87, 0xc0),
      .moved = {{R8, RAX}, {RAX, R8}}),
    T("XCHG R8D, EAX both in RAX clears the high half", BYTES(0x41, 0x90), BYTES(0x87, 0xc0),
      .moved = {{R8, RAX}}),
    T("BSWAP to R14", BYTES(0x48, 0x0f, 0xc8), BYTES(0x49, 0x0f, 0xce), .moved = {{RAX, R14}}),
    T("BSWAP from R8", BYTES(0x41, 0x0f, 0xc8), BYTES(0x0f, 0xc9), .moved = {{R8, RCX}}),
    T("MOV R11, imm64", BYTES(0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8),
      BYTES(0x49, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8), .moved = {{RAX, R11}}),

    /* the accumulator's short forms */
    T("ADD AL in place", BYTES(0x04, 5), BYTES(0x04, 5)),
    T("ADD SIL", BYTES(0x04, 5), BYTES(0x40, 0x80, 0xc6, 5), .moved = {{RAX, RSI}}),
    T("CMP DL", BYTES(0x3c, 5), BYTES(0x80, 0xfa, 5), .moved = {{RAX, RDX}}),
    T("ADD R10, imm32", BYTES(0x48, 0x05, 1, 2, 3, 4), BYTES(0x49, 0x81, 0xc2, 1, 2, 3, 4),
      .moved = {{RAX, R10}}),
    T("TEST CX, imm16", BYTES(0x66, 0xa9, 0x34, 0x12), BYTES(0x66, 0xf7, 0xc1, 0x34, 0x12),
      .moved = {{RAX, RCX}}),
    T("TEST DL, imm8", BYTES(0xa8, 0x80), BYTES(0xf6, 0xc2, 0x80), .moved = {{RAX, RDX}}),
    T("MOV AL, moffs", BYTES(0xa0, 1, 2, 3, 4, 5, 6, 7, 8), BYTES(0x8a, 0x03), .mem = AT_(RBX)),
    T("MOV R9, moffs", BYTES(0x48, 0xa1, 1, 2, 3, 4, 5, 6, 7, 8), BYTES(0x4c, 0x8b, 0x0b),
      .moved = {{RAX, R9}}, .mem = AT_(RBX)),
    T("MOV moffs, SIL", BYTES(0xa2, 1, 2, 3, 4, 5, 6, 7, 8), BYTES(0x40, 0x88, 0x33),
      .moved = {{RAX, RSI}}, .mem = AT_(RBX)),
    T("MOV moffs32, AX", BYTES(0x67, 0x66, 0xa3, 1, 2, 3, 4), BYTES(0x66, 0x89, 0x03),
      .mem = AT_(RBX)),

    /* ModRM */
    T("MOVSXD", BYTES(0x48, 0x63, 0xc1), BYTES(0x49, 0x63, 0xc7), .moved = {{RCX, R15}}),
    T("CMOVE", BYTES(0x48, 0x0f, 0x44, 0xc1), BYTES(0x4d, 0x0f, 0x44, 0xc1),
      .moved = {{RAX, R8}, {RCX, R9}}),
    T("RSP as an operand", BYTES(0x48, 0x83, 0xc4, 8), BYTES(0x49, 0x83, 0xc7, 8),
      .moved = {{RSP, R15}}),
    T("BTS of memory by an immediate", BYTES(0x0f, 0xba, 0x28, 5), BYTES(0x0f, 0xba, 0x2b, 5),
      .mem = AT_(RBX)),
    T("FLD", BYTES(0xdd, 0x00), BYTES(0x41, 0xdd, 0x00), .mem = AT_(R8)),
    T("FXCH", BYTES(0xd9, 0xc9), BYTES(0xd9, 0xc9), .moved = {{RCX, R8}}),

    /* general registers beside vectors */
    T("PINSRW", BYTES(0x66, 0x0f, 0xc4, 0xc1, 5), BYTES(0x66, 0x41, 0x0f, 0xc4, 0xc4, 5),
      .moved = {{RCX, R12}}),
    T("PEXTRW", BYTES(0x66, 0x0f, 0xc5, 0xc8, 7), BYTES(0x66, 0x44, 0x0f, 0xc5, 0xc8, 7),
      .moved = {{RCX, R9}}),
    T("MOVQ XMM", BYTES(0x66, 0x48, 0x0f, 0x6e, 0xc8), BYTES(0x66, 0x49, 0x0f, 0x6e, 0xc8),
      .moved = {{RAX, R8}}),
    T("XMM9 keeps its REX", BYTES(0x66, 0x44, 0x0f, 0x6e, 0xc8),
      BYTES(0x66, 0x45, 0x0f, 0x6e, 0xca),
      .moved = {{RAX, R10}}),
    T("MOVD MM", BYTES(0x0f, 0x6e, 0xc0), BYTES(0x41, 0x0f, 0x6e, 0xc5), .moved = {{RAX, R13}}),
    T("KMOVQ K, R9", BYTES(0xc4, 0xe1, 0xfb, 0x92, 0xc8), BYTES(0xc4, 0xc1, 0xfb, 0x92, 0xc9),
      .moved = {{RAX, R9}}),
    T("KMOVW K, R8D", BYTES(0xc5, 0xf8, 0x92, 0xc8), BYTES(0xc4, 0xc1, 0x78, 0x92, 0xc8),
      .moved = {{RAX, R8}}),
    T("KMOVW R8D, K", BYTES(0xc5, 0xf8, 0x93, 0xc1), BYTES(0xc5, 0x78, 0x93, 0xc1),
      .moved = {{RAX, R8}}),

    /* VEX and EVEX */
    T("ANDN, vvvv", BYTES(0xc4, 0xe2, 0xe0, 0xf2, 0xc1), BYTES(0xc4, 0xe2, 0x80, 0xf2, 0xc1),
      .moved = {{RBX, R15}}),
    T("VEX grows", BYTES(0xc5, 0xfc, 0x10, 0x08), BYTES(0xc4, 0xc1, 0x7c, 0x10, 0x08),
      .mem = AT_(R8)),
    T("VEX shrinks", BYTES(0xc4, 0xc1, 0x7c, 0x10, 0x08), BYTES(0xc5, 0xfc, 0x10, 0x0b),
      .mem = AT_(RBX)),
    T("VEX.W needs three bytes", BYTES(0xc4, 0xe1, 0xf9, 0x6e, 0xc8),
      BYTES(0xc4, 0xe1, 0xf9, 0x6e, 0xca),
      .moved = {{RAX, RDX}}),
    T("register in an immediate", BYTES(0xc4, 0xe3, 0x69, 0x4a, 0xcb, 0x40),
      BYTES(0xc4, 0xe3, 0x69, 0x4a, 0xcb, 0x40), .moved = {{RSP, R8}}),
    T("VZEROUPPER", BYTES(0xc5, 0xf8, 0x77), BYTES(0xc5, 0xf8, 0x77)),
    T("VZEROALL", BYTES(0xc5, 0xfc, 0x77), BYTES(0xc5, 0xfc, 0x77)),
    T("EVEX fifth bits", BYTES(0x62, 0x81, 0x7c, 0x48, 0x10, 0xc9),
      BYTES(0x62, 0x81, 0x7c, 0x48, 0x10, 0xc9)),
    T("EVEX disp8 becomes disp32", BYTES(0x62, 0xf1, 0x7c, 0x48, 0x10, 0x48, 0x01),
      BYTES(0x62, 0xf1, 0x7c, 0x48, 0x10, 0x8b, 0x40, 0, 0, 0), .mem = {RBX, REG_NONE, 0, 0x40}),
    T("EVEX base R13", BYTES(0x62, 0xf1, 0x7c, 0x48, 0x10, 0x48, 0x01),
      BYTES(0x62, 0xd1, 0x7c, 0x48, 0x10, 0x4d, 0), .mem = AT_(R13)),
    T("EVEX mask, zeroing, broadcast", BYTES(0x62, 0xf1, 0x6c, 0xd9, 0x58, 0x08),
      BYTES(0x62, 0x91, 0x6c, 0xd9, 0x58, 0x0c, 0x91), .mem = {R9, R10, 2, 0}),
    T("EVEX general register in rm", BYTES(0x62, 0xf2, 0x7d, 0x48, 0x7c, 0xc8),
      BYTES(0x62, 0xd2, 0x7d, 0x48, 0x7c, 0xca), .moved = {{RAX, R10}}),
    T("EVEX general register in reg, XMM20, SAE", BYTES(0x62, 0xb1, 0x7f, 0x18, 0x78, 0xc4),
      BYTES(0x62, 0x31, 0x7f, 0x18, 0x78, 0xcc), .moved = {{RAX, R9}}),

    /* registers used without being named */
    T("MUL ECX", BYTES(0xf7, 0xe1), BYTES(0x41, 0xf7, 0xe0), .moved = {{RCX, R8}}),
    T("MUL ECX, EDX moved", BYTES(0xf7, 0xe1), REFUSED, .moved = {{RDX, R8}}),
    T("MUL CL, EDX moved", BYTES(0xf6, 0xe1), BYTES(0xf6, 0xe1), .moved = {{RDX, R8}}),
    T("MUL CL, EAX moved", BYTES(0xf6, 0xe1), REFUSED, .moved = {{RAX, R8}}),
    T("IDIV EBX, EDX moved", BYTES(0xf7, 0xfb), REFUSED, .moved = {{RDX, R8}}),
    T("IMUL EAX, ECX", BYTES(0x0f, 0xaf, 0xc1), BYTES(0x44, 0x0f, 0xaf, 0xc1),
      .moved = {{RAX, R8}}),
    T("IMUL EAX, ECX, imm8", BYTES(0x6b, 0xc1, 3), BYTES(0x44, 0x6b, 0xc1, 3),
      .moved = {{RAX, R8}}),
    T("SHL EBX, CL", BYTES(0xd3, 0xe0), BYTES(0xd3, 0xe3), .moved = {{RAX, RBX}}),
    T("SHL EAX, CL, ECX moved", BYTES(0xd3, 0xe0), REFUSED, .moved = {{RCX, RDX}}),
    T("SHL EAX, 1, ECX moved", BYTES(0xd1, 0xe0), BYTES(0xd1, 0xe0), .moved = {{RCX, RDX}}),
    T("SHLD by CL, ECX moved", BYTES(0x0f, 0xa5, 0xc2), REFUSED, .moved = {{RCX, R8}}),
    T("CMPXCHG", BYTES(0xf0, 0x0f, 0xb1, 0x18), BYTES(0xf0, 0x44, 0x0f, 0xb1, 0x06),
      .moved = {{RBX, R8}}, .mem = AT_(RSI)),
    T("CMPXCHG, EAX moved", BYTES(0xf0, 0x0f, 0xb1, 0x18), REFUSED, .moved = {{RAX, R8}},
      .mem = AT_(RSI)),
    T("CMPXCHG16B", BYTES(0xf0, 0x48, 0x0f, 0xc7, 0x0e), BYTES(0xf0, 0x48, 0x0f, 0xc7, 0x0f),
      .mem = AT_(RDI)),
    T("CMPXCHG16B, RBX moved", BYTES(0xf0, 0x48, 0x0f, 0xc7, 0x0e), REFUSED, .moved = {{RBX, R8}},
      .mem = AT_(RDI)),
    T("CDQ, EDX moved", BYTES(0x99), REFUSED, .moved = {{RDX, R8}}),
    T("CWDE, EDX moved", BYTES(0x98), BYTES(0x98), .moved = {{RDX, R8}}),
    T("CWDE, EAX moved", BYTES(0x98), REFUSED, .moved = {{RAX, R8}}),
    T("LAHF", BYTES(0x9f), BYTES(0x9f)),
    T("LAHF, AH moved", BYTES(0x9f), REFUSED, .high = {RDX, RAX}),
    T("CPUID, EBX moved", BYTES(0x0f, 0xa2), REFUSED, .moved = {{RBX, R8}}),
    T("RDTSC, ECX moved", BYTES(0x0f, 0x31), BYTES(0x0f, 0x31), .moved = {{RCX, R8}}),
    T("RDTSCP, ECX moved", BYTES(0x0f, 0x01, 0xf9), REFUSED, .moved = {{RCX, R8}}),
    T("MULX, EDX moved", BYTES(0xc4, 0xe2, 0xe3, 0xf6, 0xc1), REFUSED, .moved = {{RDX, R8}}),
    T("PCMPESTRI, ECX moved", BYTES(0x66, 0x0f, 0x3a, 0x61, 0xc1, 0), REFUSED,
      .moved = {{RCX, R8}}),
    T("PCMPESTRM, ECX moved", BYTES(0x66, 0x0f, 0x3a, 0x60, 0xc1, 0),
      BYTES(0x66, 0x0f, 0x3a, 0x60, 0xc1, 0), .moved = {{RCX, R8}}),
    T("PCMPISTRI, ECX moved", BYTES(0x66, 0x0f, 0x3a, 0x63, 0xc1, 0), REFUSED,
      .moved = {{RCX, R8}}),
    T("PCMPISTRI, EDX moved", BYTES(0x66, 0x0f, 0x3a, 0x63, 0xc1, 0),
      BYTES(0x66, 0x0f, 0x3a, 0x63, 0xc1, 0), .moved = {{RDX, R8}}),
    T("XSAVE, EDX moved", BYTES(0x0f, 0xae, 0x20), REFUSED, .moved = {{RDX, R8}}, .mem = AT_(RBX)),
    T("FNSTSW AX, EAX moved", BYTES(0xdf, 0xe0), REFUSED, .moved = {{RAX, R8}}),

    /* never */
    T("MOVS", BYTES(0xa4), REFUSED),
    T("STOS", BYTES(0xf3, 0x48, 0xab), REFUSED),
    T("XLAT", BYTES(0xd7), REFUSED),
    T("MASKMOVQ", BYTES(0x0f, 0xf7, 0xc1), REFUSED),
    T("VPGATHERDD", BYTES(0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08), REFUSED, .mem = AT_(RBX)),
    T("PUSH", BYTES(0x50), REFUSED),
    T("PUSH memory", BYTES(0xff, 0x30), REFUSED, .mem = AT_(RBX)),
    T("POP memory", BYTES(0x8f, 0x00), REFUSED, .mem = AT_(RBX)),
    T("PUSH FS", BYTES(0x0f, 0xa0), REFUSED),
    T("PUSHF", BYTES(0x9c), REFUSED),
    T("ENTER", BYTES(0xc8, 1, 2, 3), REFUSED),
    T("LEAVE", BYTES(0xc9), REFUSED),
    T("RET", BYTES(0xc3), REFUSED),
    T("CALL", BYTES(0xe8, 0, 0, 0, 0), REFUSED),
    T("JMP RAX", BYTES(0xff, 0xe0), REFUSED),
    T("JE", BYTES(0x74, 0), REFUSED),
    T("LOOP", BYTES(0xe2, 0), REFUSED),
    T("SYSCALL", BYTES(0x0f, 0x05), REFUSED),
    T("HLT", BYTES(0xf4), REFUSED),
    T("IN", BYTES(0xe4, 0x60), REFUSED),
    T("OUT", BYTES(0xee), REFUSED),
    T("WRFSBASE", BYTES(0xf3, 0x48, 0x0f, 0xae, 0xd0), REFUSED),
    T("BTS of memory by a register", BYTES(0x0f, 0xab, 0x08), REFUSED, .mem = AT_(RBX)),

    /* what is no register */
    T("register 16", BYTES(0x89, 0xc8), REFUSED, .moved = {{RCX, 16}}),
    T("accumulator in register 16", BYTES(0x04, 5), REFUSED, .moved = {{RAX, 16}}),
    T("AH in register 16", BYTES(0x88, 0xe1), REFUSED, .high = {16, RAX}),
};
/* clang-format on */

static void identity(struct recode_map *m)
{
    for (unsigned r = 0; r < 16; r++)
        m->gpr[r] = (uint8_t)r;
    memset(m->high, REG_NONE, sizeof(m->high));
}

static bool run_named(const struct named_case *c)
{
    uint8_t out[RECODE_MAX];
    struct recode_map m;
    struct insn i;

    identity(&m);
    for (size_t k = 0; k < ARRAY_LEN(c->moved); k++)
        if (c->moved[k].guest || c->moved[k].host)
            m.gpr[c->moved[k].guest] = c->moved[k].host;
    if (c->high.host)
        m.high[c->high.which] = c->high.host;
    assert_int_equal(insn_decode(&i, c->in.b, c->in.n, CPU_64), INSN_OK);
    assert_int_equal(i.len, c->in.n);
    unsigned n = recode(out, &i, &m, &c->mem);
    if (n == c->out.n && !memcmp(out, c->out.b, n))
        return true;
    printf("%s:", c->name);
    for (unsigned k = 0; k < n; k++)
        printf(" %02x", out[k]);
    printf("%s\n", n ? "" : " refused");
    return false;
}

static void test_named(void **state)
{
    unsigned bad = 0;

    for (size_t k = 0; k < ARRAY_LEN(named_cases); k++)
        bad += !run_named(&named_cases[k]);
    assert_int_equal(bad, 0);
}

static void test_no_memory_operand_given(void **state)
{
    static const uint8_t load[] = {0x8b, 0x00}, add[] = {0x01, 0xc8};
    uint8_t out[RECODE_MAX];
    struct recode_map m;
    struct insn i;

    identity(&m);
    assert_int_equal(insn_decode(&i, load, sizeof(load), CPU_64), INSN_OK);
    assert_int_equal(recode(out, &i, &m, NULL), 0);
    assert_int_equal(insn_decode(&i, add, sizeof(add), CPU_64), INSN_OK);
    assert_int_equal(recode(out, &i, &m, NULL), 2);
}

static void test_other_modes(void **state)
{
    static const uint8_t add[] = {0x01, 0xc8};
    uint8_t out[RECODE_MAX];
    struct recode_map m;
    struct insn i;

    identity(&m);
    for (unsigned bits = CPU_16; bits <= CPU_32; bits++) {
        assert_int_equal(insn_decode(&i, add, sizeof(add), (enum cpu_bits)bits), INSN_OK);
        assert_int_equal(recode(out, &i, &m, NULL), 0);
    }
}

/* ---- at random ---- */

static void random_code(struct rng *r, uint64_t n, uint8_t code[16])
{
    if (n % 32 == 0) {
        for (unsigned k = 0; k < 16; k++)
            code[k] = (uint8_t)rnd(r);
    } else if (n % 8 == 1) {
        make_from_space(r, code);
    } else {
        make_from_row(r, &insn_table[below(r, (unsigned)insn_table_len)], code);
    }
}

/* From the identity over one or a few moved registers to anything, with registers that share one.
 */
static void random_map(struct rng *r, struct recode_map *m)
{
    unsigned moved = below(r, 4) ? below(r, 4) : 16;

    identity(m);
    for (unsigned k = 0; k < moved; k++)
        m->gpr[moved == 16 ? k : below(r, 16)] = (uint8_t)below(r, 16);
    if (below(r, 2))
        for (unsigned k = 0; k < 4; k++)
            m->high[k] = below(r, 4) ? (uint8_t)below(r, 16) : REG_NONE;
}

static void random_mem(struct rng *r, struct recode_mem *mem)
{
    static const int32_t disp[] = {0, 0, 1, -1, 64, 127, 128, -128, -129, INT32_MAX, INT32_MIN};

    mem->base = (uint8_t)below(r, 16);
    mem->index = (uint8_t)below(r, 16);
    if (mem->index == RSP || below(r, 2))
        mem->index = REG_NONE;
    mem->scale = (uint8_t)below(r, 4);
    mem->disp = below(r, 8) ? disp[below(r, ARRAY_LEN(disp))] : (int32_t)rnd(r);
}

static void print_bytes(const char *what, const uint8_t *b, unsigned n)
{
    printf("%s", what);
    for (unsigned k = 0; k < n; k++)
        printf(" %02x", b[k]);
}

static void print_case(const struct insn *i, const struct recode_map *m,
                       const struct recode_mem *mem, const uint8_t *out, unsigned n,
                       const char *why)
{
    print_bytes("guest", i->raw, i->len);
    print_bytes(", host", out, n);
    print_bytes("\n  map", m->gpr, 16);
    print_bytes(" high", m->high, 4);
    printf(" mem %u + %u * %u + %d\n  %s: %s\n", mem->base, mem->index, 1u << mem->scale, mem->disp,
           i->row->mnemonic, why);
}

/* Runs until that many instructions were judged; returns the number of differences. */
static unsigned fuzz(uint64_t cases, uint64_t seed, unsigned max_print)
{
    struct rng r = {seed};
    struct judge j;
    unsigned bad = 0;

    judge_init(&j);
    for (uint64_t n = 0; j.recoded + j.refused + bad < cases; n++) {
        uint8_t code[16], out[RECODE_MAX + 1];
        struct recode_map m;
        struct recode_mem mem;
        struct insn i;
        random_code(&r, n, code);
        random_map(&r, &m);
        random_mem(&r, &mem);
        if (insn_decode(&i, code, sizeof(code), CPU_64) != INSN_OK)
            continue;
        out[RECODE_MAX] = 0xa5;
        unsigned len = recode(out, &i, &m, &mem);
        const char *why = out[RECODE_MAX] != 0xa5 ? "overflow" : NULL;
        if (!why)
            why = judge_recode(&j, &i, &m, &mem, out, len);
        if (why && bad++ < max_print)
            print_case(&i, &m, &mem, out, len, why);
    }
    printf("seed %llu: %llu recoded, %llu refused, %llu unknown to Zydis, %u differences\n",
           (unsigned long long)seed, (unsigned long long)j.recoded, (unsigned long long)j.refused,
           (unsigned long long)j.unknown, bad);
    return bad;
}

static void test_random(void **state)
{
    for (uint64_t seed = 1; seed <= 2; seed++)
        assert_int_equal(fuzz(1250000, seed, 20), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named),
        cmocka_unit_test(test_no_memory_operand_given),
        cmocka_unit_test(test_other_modes),
        cmocka_unit_test(test_random),
    };

    if (argc > 1)
        return fuzz(strtoull(argv[1], NULL, 0), argc > 2 ? strtoull(argv[2], NULL, 0) : 1, 1000)
                   ? EXIT_FAILURE
                   : EXIT_SUCCESS;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
