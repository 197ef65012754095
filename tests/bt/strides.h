/* Random loops whose accesses move by constants from round to round, or by what is not constant. */
#ifndef RING3_TESTS_BT_STRIDES_H
#define RING3_TESTS_BT_STRIDES_H

#include <stddef.h>
#include <stdint.h>

#define STRIDES_BYTES 1024
/* How far an access may come from where its base register began, in bytes, if RBX begins with less than 64. */
#define STRIDES_REACH 100000
#define STRIDES_ROUNDS 60

/* Writes a loop, position-independent and without a branch behind its end, and returns its length. RDI, RSI and R9 are
 * bases, RBX an index; RCX begins with STRIDES_ROUNDS and R13 with 2. RAX, RDX, R10, R12, RBP, R14 and R15 may change. */
size_t strides_make(uint8_t code[STRIDES_BYTES], uint64_t seed);

#endif
