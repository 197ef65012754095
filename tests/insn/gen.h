/* Makes encodings from the decoder's own table, for fuzzing. */
#ifndef RING3_TESTS_INSN_GEN_H
#define RING3_TESTS_INSN_GEN_H

#include "insn/insn.h"

struct rng {
    uint64_t s; /* the seed; any value */
};

uint64_t rnd(struct rng *r);
unsigned below(struct rng *r, unsigned n); /* 0..n-1 */

/* An encoding that is probably, not surely, of this row. */
void make_from_row(struct rng *r, const struct insn_row *row, uint8_t code[16]);
/* A well-formed prefix of any space before any opcode: finds what the table lacks. */
void make_from_space(struct rng *r, uint8_t code[16]);

#endif
