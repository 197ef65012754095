/*
 * A differential test case: a few instructions, the state they start from and the memory around
 * them. It is what the generator makes, both runners execute, the minimiser shrinks and a .case
 * file holds.
 *
 * Everything lies at fixed linear addresses, the same natively and in the guest, all below 4 GiB so
 * that compatibility mode reaches it. Code that runs past its end, or jumps into nowhere, meets
 * HLT: the #GP that it raises in user code is how every case ends that takes no other exception.
 */
#ifndef RING3_TESTS_DIFF_CASE_H
#define RING3_TESTS_DIFF_CASE_H

#include <signal.h>
#include <stdio.h>

#undef REG_RIP /* <signal.h> has it and so has insn.h */

#include "cpu/state.h"
#include "insn/insn.h"

#define CODE_ADDR 0x10010000ull /* readable, writable, executable; not mapped before and behind */
#define CODE_BYTES 0x2000u
#define DATA_ADDR 0x10020000ull /* readable, writable, not executable; not mapped before */
#define DATA_BYTES 0x2000u
#define RO_ADDR (DATA_ADDR + DATA_BYTES) /* read-only, not executable; not mapped behind */
#define RO_BYTES 0x1000u
#define SUP_ADDR 0x10100000ull /* the guest's supervisor; natively nothing is here */
#define SUP_BYTES 0x5000u
#define GS_BASE (DATA_ADDR + 0x340)

#define SEL_CODE32 0x23
#define SEL_DATA 0x2b
#define SEL_CODE64 0x33

#define ITEMS_MAX 56

/* What in an item's bytes depends on where it and its target lie. The field is the last of the
 * item. */
enum item_fix { FIX_NONE, FIX_REL8, FIX_REL32, FIX_IMM /* to the last byte of the target, in 4 bytes */ };

struct item {
    uint8_t b[INSN_MAX_LEN];
    uint8_t len;
    uint8_t fix;   /* enum item_fix */
    int8_t target; /* item the field leads to; n is the end */
};

struct test_case {
    uint8_t bits;   /* CPU_64 or CPU_32 */
    uint16_t start; /* offset of the first item in the code pages */
    unsigned n;
    struct item item[ITEMS_MAX];
    /* GPRs, RIP, RFLAGS, x87, MXCSR, vectors and opmasks count */
    struct cpu_state s;
    uint8_t data[DATA_BYTES];
};

/* How a run ended. */
enum { END_TIMEOUT = -1, END_BROKEN = -2 };
struct outcome {
    int vector; /* of the exception, or END_* */
    uint32_t error;
    uint64_t cr2;
    struct cpu_state s; /* at the exception */
    uint8_t code[CODE_BYTES], data[DATA_BYTES];
};

/* The code pages of the case, fix-ups applied. False if an item does not reach its target or the
 * code does not fit. off, if not NULL, receives n + 1 offsets of the items and the end. */
bool case_assemble(const struct test_case *t, uint8_t code[CODE_BYTES],
                   unsigned off[ITEMS_MAX + 1]);
/* Decodes item k as it would be placed; false if it is not an instruction. */
bool case_decode(const struct test_case *t, unsigned k, struct insn *i);
/* The item whose bytes hold rip, or n. */
unsigned case_item_at(const struct test_case *t, uint64_t rip);
/* A state with everything in its reset value but for what a user program needs. */
void case_init(struct test_case *t, enum cpu_bits bits);
/* The read-only page's bytes. */
void case_ro_page(uint8_t page[RO_BYTES]);

/* Text form (.case): only what differs from case_init is written. load: 0, or -EINVAL with a
 * message. */
void case_save(const struct test_case *t, FILE *f);
int case_load(struct test_case *t, const char *path);

#endif
