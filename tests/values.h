/* Random numbers, and values biased to what breaks things: limits, special numbers, powers of two
 * and their neighbours. */
#ifndef RING3_TESTS_VALUES_H
#define RING3_TESTS_VALUES_H

#include "cpu/state.h"
#include "cpu/cpuid.h"

struct rng {
    uint64_t s; /* the seed */
};

uint64_t rnd(struct rng *r);
static inline unsigned pick(struct rng *r, unsigned n) /* below n */
{
    return (unsigned)((rnd(r) >> 32) * n >> 32);
}

/* n (a multiple of 16) bytes of numbers as vector instructions like them. */
void value_vector(struct rng *r, void *p, unsigned n);
void value_x87(struct rng *r, struct x87_state *x);
uint32_t value_mxcsr(struct rng *r);
/* XRSTOR and FXRSTOR images that are sometimes valid. */
void value_xsave_image(struct rng *r, uint8_t *p, const struct cpuid_policy *pol);

#endif
