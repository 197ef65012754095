/* Makes random cases. The same seed and number make the same case on the same host. */
#ifndef RING3_TESTS_DIFF_GEN_H
#define RING3_TESTS_DIFF_GEN_H

#include "case.h"
#include "encode.h"

struct gen_cfg {
    const struct cpuid_policy *policy;
    const char *only; /* a mnemonic: every case is made of it; "far" for far transfers and segment
                         loads; NULL for all */
    bool xsave;       /* XSAVE and the like can be compared */
    bool general;     /* mostly instructions of integers */
    bool sequences;   /* nothing but sequences */
    unsigned block;   /* how many instructions a sequence has at most */
};

void gen_case(struct rng *r, const struct gen_cfg *cfg, struct test_case *t);
/* undefined.c: flags that may differ when the case ends at rip: undefined by the manual on some way
 * there and not written since. */
uint64_t gen_undefined(const struct test_case *t, uint64_t rip);

#endif
