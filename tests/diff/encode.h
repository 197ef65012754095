/* Random encodings of one row of the instruction table, and random values for instructions to work
 * on. */
#ifndef RING3_TESTS_DIFF_ENCODE_H
#define RING3_TESTS_DIFF_ENCODE_H

#include "../values.h"
#include "case.h"

/* The kinds of rows, to choose between them evenly. */
enum row_kind { ROW_GENERAL, ROW_X87, ROW_MMX, ROW_SSE, ROW_VEX, ROW_EVEX, ROW_KINDS };
enum row_kind encode_kind(const struct insn_row *row);
/* Bytes that are probably an encoding of row in code of this size; the rest of b is random. */
void encode_row(struct rng *r, const struct insn_row *row, enum cpu_bits bits, uint8_t b[16]);

/* Numbers, flags, and addresses in the case. */
uint64_t value_gpr(struct rng *r);

#endif
