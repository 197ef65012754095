/* What the test programs without cmocka share: random numbers that a seed gives again, and giving up. */
#ifndef RING3_TESTS_BLOCK_PROGRAM_H
#define RING3_TESTS_BLOCK_PROGRAM_H

#include <stdint.h>

/* Begins anew; any number as text. Without it the numbers are those of one certain seed. */
void chance_seed(const char *text);
uint64_t chance_bits(void);
/* Below n; 0 for n = 0. */
uint64_t chance(uint64_t n);

/* Ends the program with what went wrong, and a number about it. */
_Noreturn void die(const char *what, uint64_t v);

#endif
