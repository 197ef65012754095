/*
 * One guest instruction written again for the host with other general registers and another memory
 * operand: x86-64 to x86-64, the translator's work-horse. Pure: no state, no allocation; any
 * thread. Intel SDM vol. 2 ch. 2 (formats, ModRM, SIB, REX, VEX, EVEX).
 */
#ifndef RING3_ENGINE_BT_RECODE_H
#define RING3_ENGINE_BT_RECODE_H

#include <stdint.h>

#include "insn/insn.h"

#define RECODE_MAX 16 /* bytes of room; no result is longer than INSN_MAX_LEN */

/* The host's memory operand: registers by number 0..15. */
struct recode_mem {
    uint8_t base;  /* always present */
    uint8_t index; /* not 4 (RSP); REG_NONE: none */
    uint8_t scale; /* shift count 0..3 */
    int32_t disp;
};

/* Where the guest's registers are for this one instruction. */
struct recode_map {
    uint8_t gpr[16]; /* host register 0..15 that stands for each guest register */
    uint8_t high[4]; /* host register whose low byte stands for AH, CH, DH, BH; REG_NONE: the
                        operand stays the host's AH, CH, DH, BH */
};

/*
 * Writes the host form of i, decoded for 64-bit code, to out. General registers named in ModRM,
 * VEX.vvvv and the opcode are replaced as m says; registers of other kinds and immediates stay. The
 * memory operand becomes *mem (mem is ignored when there is none): the full 64-bit address is the
 * caller's to make, so address-size and segment prefixes are dropped, for LEA too. LOCK and
 * whatever prefix bears meaning are kept, F2 and F3 that bear none are not. Forms that name the
 * accumulator without ModRM (ADD EAX, imm; XCHG; MOV moffs) get a ModRM byte where they need one.
 *
 * Returns the length, or 0 when there is no such form:
 *  - a register that the instruction uses without naming it is not in its place (m->gpr[r] != r),
 *    or AH, for SAHF and LAHF, is elsewhere (m->high[0] != REG_NONE);
 *  - AH..BH stay, beside an operand that needs a REX prefix;
 *  - memory that ModRM does not name alone: the stack, rSI, rDI, rBX + AL, vectors of indices;
 *  - BT, BTS, BTR, BTC of memory with the bit number in a register, which reach beyond the operand:
 *    the guest would choose the host's address;
 *  - branches, IN and OUT, and what has IF_BRANCH, IF_PRIV or IF_SYS;
 *  - mem is NULL though there is a memory operand, or mem or m name what is no register.
 * Whether an instruction may see the host's state (CPUID, RDTSC, RDFSBASE, MOV from a segment
 * register ...) is for the caller to say.
 */
unsigned recode(uint8_t out[RECODE_MAX], const struct insn *i, const struct recode_map *m,
                const struct recode_mem *mem);

/* General registers among RAX to RBX, bit n for number n, that i uses without an operand that says so. They must be in
 * their places. */
unsigned recode_hidden(const struct insn *i);

#endif
