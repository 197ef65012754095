/*
 * The silicon as an oracle: cases run in a child process, a batch at a time. The child enters each
 * case by returning from a signal with the case's whole state in the frame, and the signal that the
 * case's end raises brings the state back; so one system call starts a case and one exception ends
 * it, in 64-bit code as well as in compatibility mode. Whatever a case does to the child's memory
 * stays there: a child that dies is replaced.
 */
#ifndef RING3_TESTS_DIFF_NATIVE_H
#define RING3_TESTS_DIFF_NATIVE_H

#include "case.h"

#define NATIVE_BATCH 16

struct native;

/* NULL with a message if this host cannot be an oracle. */
struct native *native_new(void);
void native_free(struct native *n);
static inline uint64_t native_host_xcr0(void)
{
    uint32_t a, d;

    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a | (uint64_t)d << 32;
}
/* Components of the extended state that a case carries: the host's XCR0 as far as struct cpu_state
 * holds it. */
static inline uint64_t native_xcr0(void)
{
    return native_host_xcr0() & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
}
/* True if the host has enabled nothing beyond, so that XSAVE images agree. */
static inline bool native_xcr0_complete(void) { return native_host_xcr0() == native_xcr0(); }
/* Is the "silicon" QEMU's TCG, which leaves RF out of what a fault saves? */
bool native_tcg(void);
/* The batch's cases, to be filled in before native_run and left alone until it returns. */
struct test_case *native_case(struct native *n, unsigned k);
/* Runs the first count cases; out of each by native_outcome until the next run. */
void native_run(struct native *n, unsigned count);
const struct outcome *native_outcome(const struct native *n, unsigned k);

#endif
