/*
 * x86 instruction decoding, driven by tables (Intel SDM vol. 2, AMD APM vol. 3). Pure: no malloc, no
 * globals that change, no I/O; any thread. The decoder knows every instruction of the supported set
 * in 16-, 32- and 64-bit code and rejects everything else as #UD would be raised by a processor that has
 * all supported features (feature checks against a CPUID policy are the caller's: row->feature).
 *
 * Naming of ids: INSN_<Intel mnemonic>, with these groupings:
 *   INSN_JCC INSN_SETCC INSN_CMOVCC             condition in insn.cond
 *   INSN_JMP INSN_JMP_IND INSN_JMP_FAR INSN_JMP_FAR_IND, the same four for CALL; INSN_RET INSN_RET_FAR
 *   INSN_MOV  general moves (moffs forms too)   INSN_MOV_SREG  either direction, op[] tells
 *   INSN_MOV_CR INSN_MOV_DR                     either direction
 *   INSN_PUSH INSN_POP (reg, mem, imm)          INSN_PUSH_SREG INSN_POP_SREG
 *   INSN_PUSHA INSN_POPA INSN_PUSHF INSN_POPF INSN_IRET INSN_CBW (CWDE, CDQE) INSN_CWD (CDQ, CQO)
 *   INSN_MOVS INSN_CMPS INSN_STOS INSN_LODS INSN_SCAS INSN_INS INSN_OUTS   element size in op[0].size
 *   INSN_JCXZ (by addrsize) INSN_LOOP INSN_LOOPE INSN_LOOPNE INSN_INT INSN_INT1 INSN_INT3 INSN_INTO
 *   INSN_NOP covers all hint NOPs, prefetches and CLDEMOTE; INSN_PAUSE, INSN_ENDBR apart
 *   INSN_SHL also for the /6 alias (SAL)        INSN_TEST both /0 and /1
 * Operands are those that assembly language shows, destination first (OUTS and MASKMOVQ have their memory
 * operand too, OUTS first); what an instruction uses beyond them (PUSH's stack, MUL's RDX:RAX, PCMPESTRI's ECX,
 * XMM0 of PCMPESTRM, ST0 of one-operand x87 forms) follows from the id. String instructions have their memory
 * operands in op[]; insn.mem describes the one with rSI where there are two, its segment override applied.
 * INSN_TZCNT and INSN_LZCNT run as BSF and BSR on a processor without the feature: the caller's affair.
 * SIMD ids use the VEX/EVEX mnemonic with V for VEX and EVEX encodings (INSN_VADDPS) and without for
 * legacy SSE (INSN_ADDPS). x87 ids: INSN_FADD, INSN_FIADD, INSN_FADDP ...
 */
#ifndef RING3_INSN_INSN_H
#define RING3_INSN_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/cpuid.h"
#include "cpu/state.h"

#define INSN_MAX_LEN 15
#define INSN_MAX_OPS 5

#include "insn/ids.h" /* enum insn_id, made from the table's mnemonics; INSN_INVALID = 0 */

enum opnd_kind { OP_NONE, OP_REG, OP_MEM, OP_IMM, OP_REL, OP_FARPTR };

enum reg_class {
    RC_NONE,
    RC_GPR,  /* reg 0..15, size 1, 2, 4, 8; size 1 with reg 4..7 is SPL..DIL (REX) */
    RC_GPRH, /* AH CH DH BH as reg 0..3 (the register that holds it), size 1 */
    RC_SREG,
    RC_CR,
    RC_DR,
    RC_ST,  /* x87 stack register, relative to TOP */
    RC_MMX,
    RC_VEC, /* XMM, YMM, ZMM by size 16, 32, 64; reg 0..31 */
    RC_K
};

struct opnd {
    uint8_t kind;  /* enum opnd_kind */
    uint8_t cls;   /* enum reg_class, for OP_REG */
    uint8_t reg;
    uint8_t size;  /* bytes of the operand; for memory the bytes accessed (64 at most; larger areas as of
                      FXSAVE, XSAVE, FSAVE: 0). Scalars inside vector registers: register size 16 here,
                      while the memory form has the scalar's size. */
    uint8_t read : 1, write : 1;
};

/* Where an operand sits in the encoding: for rewriting an instruction with other registers. */
enum opnd_slot { SLOT_NONE, SLOT_REG, SLOT_RM, SLOT_VVVV, SLOT_IMM, SLOT_IS4, SLOT_OPCODE, SLOT_IMPLICIT, SLOT_VSIB };

#define REG_NONE 0xff
#define REG_RIP 0xfe

struct insn_mem {
    uint8_t seg;   /* enum sreg: after defaults and overrides */
    uint8_t base;  /* gpr, REG_RIP or REG_NONE */
    uint8_t index; /* gpr, vector register for VSIB, or REG_NONE */
    uint8_t scale; /* shift count 0..3 */
    bool vsib;
    bool seg_override;
    int64_t disp;  /* sign-extended and, for EVEX disp8, scaled; full 64 bits for moffs */
};

/* Prefix bits */
#define PFX_LOCK 0x01
#define PFX_REP 0x02   /* F3 seen (last of F2/F3 counts) and not part of the opcode */
#define PFX_REPNE 0x04 /* F2 likewise */
#define PFX_OPSIZE 0x08
#define PFX_ADDRSIZE 0x10
#define PFX_REX 0x20
#define PFX_VEX 0x40
#define PFX_EVEX 0x80

struct insn {
    const struct insn_row *row;
    uint16_t id;   /* enum insn_id */
    uint8_t len;
    uint8_t bits;  /* enum cpu_bits it was decoded for */
    uint8_t opsize;   /* effective operand size in bytes: 2, 4, 8 (1 for byte instructions) */
    uint8_t addrsize; /* 2, 4, 8 */
    uint8_t prefix;   /* PFX_* */
    uint8_t cond;     /* low nibble for the CC groups */
    uint8_t nops;
    struct opnd op[INSN_MAX_OPS];
    uint8_t slot[INSN_MAX_OPS]; /* enum opnd_slot */
    struct insn_mem mem; /* valid when some op is OP_MEM (LEA and INVLPG included) */
    uint64_t imm;     /* sign-extended to 64 bits where the instruction sign-extends */
    uint64_t imm2;    /* ENTER level, EXTRQ/INSERTQ, selector of a far pointer */
    /* raw encoding, for the host-execution of vector instructions */
    uint8_t rex;      /* last REX byte, 0 if none */
    uint8_t map;      /* 0 one-byte, 1 0F, 2 0F38, 3 0F3A; EVEX maps 5, 6 */
    uint8_t opcode;
    uint8_t pp;       /* mandatory prefix: 0 none, 1 66, 2 F3, 3 F2 */
    uint8_t modrm;
    bool has_modrm;
    uint8_t vlen;     /* 16, 32, 64; 0 for non-vector */
    uint8_t vex_w;
    uint8_t vvvv;     /* VEX/EVEX second source as register number (already un-inverted) */
    uint8_t evex_aaa; /* opmask register */
    bool evex_z, evex_b; /* zeroing; broadcast, rounding or SAE */
    uint8_t bcst;     /* element size when the memory operand is a broadcast, else 0 */
    uint8_t raw[INSN_MAX_LEN]; /* bytes beyond len are unspecified */
    uint8_t off_modrm, off_imm; /* byte offsets in raw, 0 if absent */
};

/* Row flags */
#define IF_LOCK BIT(0)      /* LOCK allowed with a memory destination */
#define IF_PRIV BIT(1)      /* CPL 0 only, else #GP(0) (others check IOPL or CR4 themselves) */
#define IF_BRANCH BIT(2)    /* changes RIP: near branch, ends a block */
#define IF_SYS BIT(3)       /* may change mode, mappings, interruptibility: ends a block */
#define IF_X87 BIT(4)       /* x87: #NM by CR0.EM/TS, and #MF when IF_WAIT */
#define IF_WAIT BIT(5)      /* x87: reports pending exceptions (#MF) first */
#define IF_MMX BIT(6)
#define IF_SSE BIT(7)       /* legacy SSE: #UD by CR0.EM / CR4.OSFXSR, #NM by TS */
#define IF_AVX BIT(8)       /* VEX vector: #UD unless CR4.OSXSAVE and XCR0 SSE+AVX; #NM by TS */
#define IF_AVX512 BIT(9)    /* EVEX or opmask: XCR0 needs AVX512 too */
#define IF_FP BIT(10)       /* reads and sets MXCSR; may raise #XM */
#define IF_ALIGN BIT(11)    /* memory operand must be aligned to its size, else #GP(0) */
#define IF_FLAGS_OUT BIT(12) /* vector instruction that writes EFLAGS (COMISS, PTEST, KTEST ...) */
#define IF_REP BIT(13)      /* string instruction: REP/REPNE repeat it */
#define IF_NOREAL BIT(14)   /* #UD in real and virtual-8086 mode */
#define IF_NOPREFIX66 BIT(15)
#define IF_STRICT_WHOLE BIT(16) /* reads whole memory operand even when masked off (no fault suppression) */

/* One row of the instruction table; extra fields for the table's own use may follow in table.h. */
struct insn_row {
    uint16_t id;
    uint8_t feature;   /* enum cpu_feature that must be present */
    uint8_t feature2;  /* second requirement or the same (AVX512VL for shorter vectors is by vlen) */
    uint32_t flags;    /* IF_* */
    /* EFLAGS effects: status bits and DF. fl_undef, part of fl_write, may be anything afterwards. An
     * instruction that may leave flags alone (shift by a count of 0) has them in fl_read as well; the same
     * holds for CMPS and SCAS with a REP prefix, which the row does not show, as it does not show that REPE and REPNE
     * test ZF. Instructions that push or store all flags read them all. */
    uint16_t fl_read, fl_write, fl_undef;
    const char *mnemonic; /* lower case */
    /* encoding part, private to decode.c */
    uint32_t enc[4];
    uint16_t opspec[INSN_MAX_OPS];
};

enum insn_error {
    INSN_OK = 0,
    INSN_E_TRUNC = -1, /* bytes ran out: fetch more (only when avail < 15) */
    INSN_E_UD = -2,    /* #UD; insn.len is how many bytes were looked at */
    INSN_E_LONG = -3   /* longer than 15 bytes: #GP(0) */
};

/* Decodes one instruction at code[0..avail). Never reads beyond avail. LOCK on an instruction or operand that
 * does not allow it, and every other encoding that is #UD by itself, is INSN_E_UD. */
int insn_decode(struct insn *i, const uint8_t *code, size_t avail, enum cpu_bits bits);

/* Does the policy offer what this instruction needs (feature, feature2, AVX512VL by vector length)? */
bool insn_supported(const struct insn *i, const struct cpuid_policy *p);

/* All rows, for tests. */
extern const struct insn_row insn_table[];
extern const size_t insn_table_len;

#endif
