/* Random vector, MMX and x87 instructions and random state for them, biased to what breaks things.
 */
#ifndef RING3_TESTS_SIMD_GEN_H
#define RING3_TESTS_SIMD_GEN_H

#include "../values.h"
#include "engine/interp/simd.h"

#define SEQ_MAX 4

struct test_case {
    struct insn insn[SEQ_MAX];
    unsigned n; /* instructions, executed one after the other */
    uint8_t code[SEQ_MAX * INSN_MAX_LEN];
    unsigned len;
    struct cpu_state s;
};

/* Fills mem (DATA_BYTES) and *t. The instructions are ones simd_fn takes and policy p has. */
void gen_case(struct rng *r, const struct cpuid_policy *p, struct test_case *t, uint8_t *mem);

#endif
