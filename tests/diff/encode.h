/* Random encodings of one row of the instruction table, and random values for instructions to work
 * on. */
#ifndef RING3_TESTS_DIFF_ENCODE_H
#define RING3_TESTS_DIFF_ENCODE_H

#include "case.h"

struct rng {
    uint64_t s;
};
uint64_t rnd(struct rng *r);
static inline unsigned pick(struct rng *r, unsigned n)
{
    return (unsigned)((rnd(r) >> 32) * n >> 32);
}

/* The kinds of rows, to choose between them evenly. */
enum row_kind { ROW_GENERAL, ROW_X87, ROW_MMX, ROW_SSE, ROW_VEX, ROW_EVEX, ROW_KINDS };
enum row_kind encode_kind(const struct insn_row *row);
/* Bytes that are probably an encoding of row in code of this size; the rest of b is random. */
void encode_row(struct rng *r, const struct insn_row *row, enum cpu_bits bits, uint8_t b[16]);

/* values.c */
uint64_t value_gpr(struct rng *r);
/* n (a multiple of 16) bytes of numbers as vector instructions like them. */
void value_vector(struct rng *r, void *p, unsigned n);
void value_x87(struct rng *r, struct x87_state *x);
uint32_t value_mxcsr(struct rng *r);

#endif
