/*
 * The least world in which vector instructions run without the rest of the interpreter:
 * identity-mapped memory at the addresses of native.h, the operand and memory functions of interp.h
 * over it, faults by longjmp.
 */
#ifndef RING3_TESTS_SIMD_WORLD_H
#define RING3_TESTS_SIMD_WORLD_H

#include "engine/interp/simd.h"

struct world {
    struct cpu c;
    struct vm vm;
    struct vcpu v;
    struct cpuid_policy policy;
    struct cpu_env env;
    struct tlb_set tlb;
    bool raised;
    uint64_t cr2;
    bool restarted;
    bool ferr;
};

/* Features and layout are the host's. 64-bit user code, everything enabled. Returns 0 or what
 * simd_init does. */
int world_init(struct world *w, struct err *e);
void world_fini(struct world *w);
/* Lets the soft TLB answer for the data pages, or for none. */
void world_tlb(struct world *w, bool fill);
/* Executes i at c.s.rip; true if it completed (c.s.rip advanced), false if it raised c.event. */
bool world_step(struct world *w, const struct insn *i, struct simd_op *op);

#endif
