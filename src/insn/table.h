/*
 * How a row of the instruction table is written (table-*.h), private to src/insn.
 *
 * mktable, run at build time, includes the table files, turns the rows into `insn_table` and makes
 * for each (space, map, opcode) the list of candidate rows with their match words; insn_decode()
 * compares the bits of an encoding, packed into one key, against these until one fits.
 *
 *   I(NAME, opcode, match, traits, flags, operands...)
 *     NAME     INSN_NAME is the id; the mnemonic is NAME in lower case up to a '_'
 *     opcode   OP(x) one-byte, OP0F, OP38, OP3A, with V before for VEX, E for EVEX
 *     match    what else must hold of the encoding: REG_(n), RM_(n), MEM, RR, NP, P66 ...
 *     traits   IF_* flags and AT_* attributes
 *     flags    EF(read, written, undefined), NOFL
 *     operands R(spec), W(spec), RW(spec), N(spec): read, written, both, not accessed (LEA's)
 * FEAT and FEAT2 are what is defined at the row's place: feature names without CPUF_.
 */
#ifndef RING3_INSN_TABLE_H
#define RING3_INSN_TABLE_H

#include "base/util.h"
#include "insn/insn.h"

/* ---- opcode: bits 7..0 opcode, 11..8 map, 13..12 space, 14 span ---- */
enum { SPACE_LEGACY, SPACE_VEX, SPACE_EVEX, SPACE_COUNT };
enum { MAP_COUNT = 4 };

#define OPC(space, map, op) ((op) | (map) << 8 | (space) << 12)
#define OP(op) OPC(SPACE_LEGACY, 0, op)
#define OP0F(op) OPC(SPACE_LEGACY, 1, op)
#define OP38(op) OPC(SPACE_LEGACY, 2, op)
#define OP3A(op) OPC(SPACE_LEGACY, 3, op)
#define V0F(op) OPC(SPACE_VEX, 1, op)
#define V38(op) OPC(SPACE_VEX, 2, op)
#define V3A(op) OPC(SPACE_VEX, 3, op)
#define E0F(op) OPC(SPACE_EVEX, 1, op)
#define E38(op) OPC(SPACE_EVEX, 2, op)
#define E3A(op) OPC(SPACE_EVEX, 3, op)
#define SPAN8 (1 << 14)  /* eight opcodes, the low three bits name a register */

/* ---- match key ---- */
#define KEY_REG 0    /* 3 bits: ModRM.reg without extension */
#define KEY_RM 3     /* 3 bits */
#define KEY_MOD3 6   /* ModRM.mod = 3 */
#define KEY_PP 7     /* 2 bits: insn.pp */
#define KEY_W 9      /* VEX.W, EVEX.W or REX.W */
#define KEY_L 10     /* 2 bits: VEX.L, EVEX.L'L; 2 for EVEX with rounding or SAE */
#define KEY_64 12    /* 64-bit code */
#define KEY_REXB 13  /* REX.B */

#define MATCH(field, width, val)                                                                   \
    (((1ull << (width)) - 1) << ((field) + 32) | (uint64_t)(val) << (field))
#define REG_(n) MATCH(KEY_REG, 3, n)
#define RM_(n) MATCH(KEY_RM, 3, n)
#define MEM MATCH(KEY_MOD3, 1, 0)
#define RR MATCH(KEY_MOD3, 1, 1)
#define NP MATCH(KEY_PP, 2, 0)
#define P66 MATCH(KEY_PP, 2, 1)
#define PF3 MATCH(KEY_PP, 2, 2)
#define PF2 MATCH(KEY_PP, 2, 3)
#define NOREP MATCH(KEY_PP + 1, 1, 0) /* no prefix or 66 */
#define W0 MATCH(KEY_W, 1, 0)
#define W1 MATCH(KEY_W, 1, 1)
#define L0 MATCH(KEY_L, 2, 0)
#define L1 MATCH(KEY_L, 2, 1)
#define L01 MATCH(KEY_L + 1, 1, 0)
#define L2 MATCH(KEY_L, 2, 2)
#define X64 MATCH(KEY_64, 1, 1)
#define N64 MATCH(KEY_64, 1, 0)
#define NOREXB MATCH(KEY_REXB, 1, 0)

/* ---- attributes: bits 63..32 of traits ---- */
#define AT(bit) BIT(32 + (bit))
#define AT_FIELD(bit, val) ((uint64_t)(val) << (32 + (bit)))
/* operand size rule, bits 2..0 */
enum os_rule {
    OS_STD,  /* REX.W, 66 and the code's default */
    OS_BYTE, /* always 1 */
    OS_D64,  /* in 64-bit code 8, or 2 with 66 */
    OS_F64,  /* in 64-bit code always 8 */
    OS_CR,   /* 8 in 64-bit code, else 4 */
    OS_Z     /* as OS_STD but at most 4 */
};
#define AT_BYTE AT_FIELD(0, OS_BYTE)
#define AT_D64 AT_FIELD(0, OS_D64)
#define AT_F64 AT_FIELD(0, OS_F64)
#define AT_CR AT_FIELD(0, OS_CR)
#define AT_Z AT_FIELD(0, OS_Z)
/* EVEX: broadcast element, bits 4..3 */
#define AT_B4 AT_FIELD(3, 1)
#define AT_B8 AT_FIELD(3, 2)
/* EVEX.b with registers, bits 6..5 */
#define AT_SAE AT_FIELD(5, 1)
#define AT_ER AT_FIELD(5, 2)
/* EVEX opmask, bits 8..7: none unless said */
enum { MASK_NONE, MASK_MERGE, MASK_FULL, MASK_NEEDED };
#define AT_MASKM AT_FIELD(7, MASK_MERGE)  /* mask allowed, zeroing not (stores, compares) */
#define AT_MASK AT_FIELD(7, MASK_FULL)    /* and zeroing, for a register destination */
#define AT_MASKN AT_FIELD(7, MASK_NEEDED) /* a mask other than k0 required, no zeroing */
/* EVEX disp8 scale where it is not the size of the memory operand: 1 << (field - 1), bits 11..9 */
#define AT_N1 AT_FIELD(9, 1)
#define AT_N2 AT_FIELD(9, 2)
#define AT_N4 AT_FIELD(9, 3)
#define AT_N8 AT_FIELD(9, 4)
#define AT_LIG AT(12)    /* vector length ignored: scalar */
#define AT_NOMOD AT(13)  /* ModRM.mod ignored, always registers (MOV CR, DR) */
#define AT_GATHER AT(14) /* destination, index and mask must differ */
#define AT_HASMODRM AT(15) /* made by mktable */
#define AT_VVVV AT(16)     /* made by mktable: some operand uses vvvv */
#define AT_CC AT(18)       /* the opcode's low four bits are a condition */
#define AT_NOVL AT(19)     /* EVEX: a vector shorter than 512 bits does not need AVX512VL */
#define AT_YMM2 AT(21)     /* VEX: the 256-bit form needs AVX2 */
#define AT_SELECT AT(22)   /* the opmask selects a source: nothing of the destination is kept */
#define AT_VSIB AT(23)     /* made by mktable: some operand is LOC_MV */

/* ---- operand specs: location << 6 | size, role in bits 13..12 ---- */
enum loc {
    LOC_NONE,
    LOC_E,    /* r/m: GPR or memory */
    LOC_M,    /* r/m: memory */
    LOC_G,    /* reg: GPR */
    LOC_B,    /* vvvv: GPR */
    LOC_Z,    /* low opcode bits: GPR */
    LOC_ACC,  /* accumulator */
    LOC_CX,   /* CL, CX */
    LOC_DX,
    LOC_S,    /* reg: segment register */
    LOC_SOP,  /* segment register named by the opcode */
    LOC_C,    /* reg: control register */
    LOC_D,    /* reg: debug register */
    LOC_ONE,  /* the constant 1 */
    LOC_I,    /* immediate, zero-extended */
    LOC_IS,   /* immediate, sign-extended */
    LOC_I2,   /* second immediate byte */
    LOC_J,    /* relative branch target */
    LOC_AP,   /* far pointer */
    LOC_O,    /* moffs */
    LOC_XSI,  /* seg:rSI */
    LOC_YDI,  /* ES:rDI */
    LOC_ST0,
    LOC_STI,  /* r/m */
    LOC_V,    /* reg: vector */
    LOC_W,    /* r/m: vector or memory */
    LOC_H,    /* vvvv: vector */
    LOC_L,    /* imm8[7:4]: vector */
    LOC_P,    /* reg: MMX */
    LOC_Q,    /* r/m: MMX or memory */
    LOC_XMM0,
    LOC_KG,   /* reg: opmask */
    LOC_KE,   /* r/m: opmask or memory */
    LOC_KB,   /* vvvv: opmask */
    LOC_MV,   /* r/m: memory with a vector index */
    LOC_DDI   /* seg:rDI (MASKMOVQ) */
};
/* Sizes. Registers of class VEC are 16 bytes at least. */
enum osz {
    SZ_0, SZ_b, SZ_w, SZ_d, SZ_q, SZ_o, SZ_t, SZ_yy, SZ_zz, /* 0 1 2 4 8 16 10 32 64 */
    SZ_v,  /* operand size */
    SZ_z,  /* 2 or 4 */
    SZ_y,  /* 4 or 8 */
    SZ_p,  /* far pointer: 2 + operand size */
    SZ_a,  /* BOUND: twice the operand size */
    SZ_vw, /* register: operand size; memory 2 */
    SZ_dw, /* register 4; memory 2 */
    SZ_db, /* register 4; memory 1 */
    SZ_qq, /* CMPXCHG8B/16B: twice SZ_y */
    SZ_e,  /* FLDENV: 14 or 28 by operand size */
    SZ_s,  /* GDTR: 6, or 10 in 64-bit code */
    SZ_c,  /* CR and the like: 8 in 64-bit code, else 4 */
    SZ_x,  /* vector length */
    SZ_x2, /* half, quarter, eighth of it */
    SZ_x4,
    SZ_x8
};
#define SPEC(loc, size) ((loc) << 6 | (size))
#define SPEC_SIZE(s) ((s) & 0x3f)
#define SPEC_LOC(s) ((s) >> 6 & 0x3f)
#define SPEC_READ 0x1000
#define SPEC_WRITE 0x2000
#define N(s) (s)
#define R(s) ((s) | SPEC_READ)
#define W(s) ((s) | SPEC_WRITE)
#define RW(s) ((s) | SPEC_READ | SPEC_WRITE)

enum {
    Eb = SPEC(LOC_E, SZ_b), Ew = SPEC(LOC_E, SZ_w), Ed = SPEC(LOC_E, SZ_d), Eq = SPEC(LOC_E, SZ_q),
    Ev = SPEC(LOC_E, SZ_v), Ey = SPEC(LOC_E, SZ_y), Ez = SPEC(LOC_E, SZ_z), Ec = SPEC(LOC_E, SZ_c),
    Evw = SPEC(LOC_E, SZ_vw), Edw = SPEC(LOC_E, SZ_dw), Edb = SPEC(LOC_E, SZ_db),
    M0 = SPEC(LOC_M, SZ_0), Mb = SPEC(LOC_M, SZ_b), Mw = SPEC(LOC_M, SZ_w), Md = SPEC(LOC_M, SZ_d),
    Mq = SPEC(LOC_M, SZ_q), Mo = SPEC(LOC_M, SZ_o), Mt = SPEC(LOC_M, SZ_t), Mv = SPEC(LOC_M, SZ_v),
    My = SPEC(LOC_M, SZ_y), Mp = SPEC(LOC_M, SZ_p), Ma = SPEC(LOC_M, SZ_a), Ms = SPEC(LOC_M, SZ_s),
    Mqq = SPEC(LOC_M, SZ_qq), Me = SPEC(LOC_M, SZ_e), Mx = SPEC(LOC_M, SZ_x),
    Myy = SPEC(LOC_M, SZ_yy), Gb = SPEC(LOC_G, SZ_b), Gw = SPEC(LOC_G, SZ_w),
    Gd = SPEC(LOC_G, SZ_d), Gq = SPEC(LOC_G, SZ_q), Gv = SPEC(LOC_G, SZ_v), Gy = SPEC(LOC_G, SZ_y),
    Gc = SPEC(LOC_G, SZ_c), By = SPEC(LOC_B, SZ_y), Zb = SPEC(LOC_Z, SZ_b), Zv = SPEC(LOC_Z, SZ_v),
    AL = SPEC(LOC_ACC, SZ_b), AX = SPEC(LOC_ACC, SZ_w), rAX = SPEC(LOC_ACC, SZ_v),
    zAX = SPEC(LOC_ACC, SZ_z), CL = SPEC(LOC_CX, SZ_b), DX = SPEC(LOC_DX, SZ_w),
    Sw = SPEC(LOC_S, SZ_w), SOP = SPEC(LOC_SOP, SZ_w), Cc = SPEC(LOC_C, SZ_c),
    Dc = SPEC(LOC_D, SZ_c), I1 = SPEC(LOC_ONE, SZ_b), Ib = SPEC(LOC_I, SZ_b),
    Iw = SPEC(LOC_I, SZ_w), Iv = SPEC(LOC_I, SZ_v), ISb = SPEC(LOC_IS, SZ_b),
    ISz = SPEC(LOC_IS, SZ_z), I2b = SPEC(LOC_I2, SZ_b), Jb = SPEC(LOC_J, SZ_b),
    Jz = SPEC(LOC_J, SZ_z), Ap = SPEC(LOC_AP, SZ_p), Ob = SPEC(LOC_O, SZ_b), Ov = SPEC(LOC_O, SZ_v),
    Xb = SPEC(LOC_XSI, SZ_b), Xv = SPEC(LOC_XSI, SZ_v), Xz = SPEC(LOC_XSI, SZ_z),
    ST0 = SPEC(LOC_ST0, SZ_t), STi = SPEC(LOC_STI, SZ_t), Yb = SPEC(LOC_YDI, SZ_b),
    Yv = SPEC(LOC_YDI, SZ_v), Yz = SPEC(LOC_YDI, SZ_z), DDIo = SPEC(LOC_DDI, SZ_o),
    DDIq = SPEC(LOC_DDI, SZ_q), Ho = SPEC(LOC_H, SZ_o), Hx = SPEC(LOC_H, SZ_x),
    Hx2 = SPEC(LOC_H, SZ_x2), Hyy = SPEC(LOC_H, SZ_yy), Hzz = SPEC(LOC_H, SZ_zz),
    KB = SPEC(LOC_KB, SZ_q), KEb = SPEC(LOC_KE, SZ_b), KEd = SPEC(LOC_KE, SZ_d),
    KEq = SPEC(LOC_KE, SZ_q), KEw = SPEC(LOC_KE, SZ_w), KG = SPEC(LOC_KG, SZ_q),
    Lx = SPEC(LOC_L, SZ_x), MVd = SPEC(LOC_MV, SZ_d), MVq = SPEC(LOC_MV, SZ_q),
    Pq = SPEC(LOC_P, SZ_q), Qd = SPEC(LOC_Q, SZ_d), Qq = SPEC(LOC_Q, SZ_q), Vo = SPEC(LOC_V, SZ_o),
    Vx = SPEC(LOC_V, SZ_x), Vx2 = SPEC(LOC_V, SZ_x2), Vyy = SPEC(LOC_V, SZ_yy),
    Vzz = SPEC(LOC_V, SZ_zz), Wb = SPEC(LOC_W, SZ_b), Wd = SPEC(LOC_W, SZ_d),
    Wo = SPEC(LOC_W, SZ_o), Wq = SPEC(LOC_W, SZ_q), Ww = SPEC(LOC_W, SZ_w), Wx = SPEC(LOC_W, SZ_x),
    Wx2 = SPEC(LOC_W, SZ_x2), Wx4 = SPEC(LOC_W, SZ_x4), Wx8 = SPEC(LOC_W, SZ_x8),
    Wyy = SPEC(LOC_W, SZ_yy), Wzz = SPEC(LOC_W, SZ_zz)
};

/* ---- what mktable makes ---- */
struct insn_cand {
    uint32_t mask, value;
    uint16_t row;
};
struct insn_index {
    uint16_t first; /* in insn_cands */
    uint8_t n;
    bool modrm : 1, sole : 1; /* sole: one candidate that asks for nothing more */
};
extern const struct insn_cand insn_cands[];
extern const struct insn_index insn_index[SPACE_COUNT][MAP_COUNT][256];

/* ---- flags ---- */
#define EF(r, w, u) ((uint64_t)(r) | (uint64_t)(w) << 16 | (uint64_t)(u) << 32)
#define NOFL 0
#define fALL FL_STATUS

#endif
