/*
 * Zydis and our decoder judge what recode() made of an instruction: whether it had to refuse, and
 * whether the result is the same instruction with the registers and the memory operand that were
 * asked for.
 */
#ifndef RING3_TESTS_BT_RECODE_JUDGE_H
#define RING3_TESTS_BT_RECODE_JUDGE_H

#include <Zydis/Zydis.h>

#include "engine/bt/recode.h"

struct judge {
    ZydisDecoder dec;
    uint64_t recoded, refused;
    uint64_t unknown; /* Zydis does not know what our decoder takes: not judged */
};

void judge_init(struct judge *j);
/* NULL, or what is wrong with the n bytes at out that recode() made of i. */
const char *judge_recode(struct judge *j, const struct insn *i, const struct recode_map *m,
                         const struct recode_mem *mem, const uint8_t *out, unsigned n);

#endif
