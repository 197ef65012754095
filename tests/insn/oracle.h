/*
 * Compares insn_decode() with Zydis on one byte string. Everything in which the two differ on
 * purpose is a row of a table in oracle-diff.c with its reason; nothing is skipped otherwise.
 */
#ifndef RING3_TESTS_INSN_ORACLE_H
#define RING3_TESTS_INSN_ORACLE_H

#include <Zydis/Zydis.h>

#include "insn/insn.h"

struct oracle {
    ZydisDecoder dec[3]; /* by enum cpu_bits */
    uint64_t accepted, rejected, excused;
};

/* One decoding of both. */
struct pair {
    const uint8_t *code;
    enum cpu_bits bits;
    int ours;
    struct insn i;
    bool theirs;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand zop[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecodedOperand vis[INSN_MAX_OPS + 1]; /* visible, without the opmask */
    unsigned nvis;
};

/* What a deliberate difference excuses. */
enum diff_what {
    DIFF_WE_REJECT, /* Zydis accepts, we must not */
    DIFF_WE_ACCEPT, /* Zydis rejects, we must not */
    DIFF_NAME,
    DIFF_LENGTH,
    DIFF_OPERANDS, /* number or kind */
    DIFF_ROLE,
    DIFF_SIZE,
    DIFF_FLAGS,
    DIFF_VECTOR, /* IF_FP, IF_ALIGN, vector length, masking, broadcast */
    DIFF_OTHER
};

void oracle_init(struct oracle *o);
/* true if both agree on code[0..16); else a description in msg. row_seen[row] is set when accepted.
 */
bool oracle_compare(struct oracle *o, const uint8_t code[16], enum cpu_bits bits, bool *row_seen,
                    char *msg, size_t len);
/* Does Zydis know it as an instruction of a set that is not ours? */
bool oracle_foreign(struct oracle *o, const uint8_t code[16], enum cpu_bits bits);
/* The reason why this difference is right, or NULL. */
const char *diff_excuse(const struct pair *p, enum diff_what what);

#endif
