/*
 * Runs instruction bytes on the silicon with a given architectural state: the oracle of the vector
 * tests. Everything lies at fixed low addresses, so that 32-bit addressing reaches it. One thread,
 * one process; native_init installs signal handlers for good, so call it in a child.
 */
#ifndef RING3_TESTS_SIMD_NATIVE_H
#define RING3_TESTS_SIMD_NATIVE_H

#include "cpu/state.h"

#define CODE_ADDR 0x10010000ull
#define DATA_ADDR \
    0x10020000ull /* two pages read-write, one read-only, all else around is unmapped */
#define DATA_BYTES 0x2000ull
#define RO_BYTES 0x1000ull

struct native_fault {
    int vector; /* -1: none */
    uint32_t error;
    uint64_t cr2;
};

/* Calls fn in a child process and returns what it returned, 1 with a message if it died. */
int native_in_child(int (*fn)(void *), void *arg);
/* Maps the pages and takes the signals. False if this host cannot (no XSAVE, addresses taken). */
bool native_init(void);
/* After native_init: the components that states carry here, the host's XCR0 restricted to x87, SSE,
 * AVX, AVX-512. */
uint64_t native_xcr0(void);
/* Places code (at most 256 bytes) at CODE_ADDR and runs it from state s (GPRs, status flags, x87,
 * MXCSR, vectors, opmasks); s becomes the state after the last instruction or at the fault, s->rip
 * says where. */
struct native_fault native_run(struct cpu_state *s, const uint8_t *code, unsigned len);

#endif
