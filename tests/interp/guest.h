/*
 * A 64-bit guest in a world: flat kernel and user segments, an IDT whose handlers halt, identical
 * mapping of the first 2 MiB in 4 KiB pages of which tests change some, I/O memory at GUEST_IO.
 */
#ifndef RING3_TESTS_INTERP_GUEST_H
#define RING3_TESTS_INTERP_GUEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "world.h"

#define GUEST_CODE 0x10000ull
#define GUEST_STACK 0x1f000ull /* top */
#define GUEST_DATA 0x20000ull
#define GUEST_IO 0x200000ull /* linear; physical GUEST_IO_PA */
#define GUEST_IO_PA 0xa00000ull
#define GUEST_WINDOW 0x400000ull /* linear, 2 MiB with nothing mapped at first */
#define GUEST_PML4 0x4000ull
#define GUEST_PT 0x7000ull
#define GUEST_PML4_OTHER 0x9000ull /* the same tables but for the window, which has its own */
#define GUEST_PT_OTHER 0xb000ull

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_RW (PTE_P | PTE_W)

struct world *guest_new(unsigned ncpu);
/* Ready to run at GUEST_CODE in ring 0, interrupts off. */
void guest_state(struct cpu_state *s);
/* Maps the page of la (below GUEST_IO, or in the window) in the first or the other address space.
 * Nothing is flushed. */
void guest_map(struct world *w, uint64_t la, uint64_t pte);
void guest_map_other(struct world *w, uint64_t la, uint64_t pte);
uint64_t guest_pte(struct world *w, uint64_t la);
/* Writes code as a device would. */
#define guest_code(w, gpa, ...) \
    world_write(w, gpa, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))
/* Sets *s, runs vCPU 0 until it halts and gets *s back. The vector whose handler it halted in, or
 * -1 for another HLT. Anything else fails the test. */
int guest_run(struct world *w, struct cpu_state *s);
/* The error code that handler found on its stack. */
uint64_t guest_error(struct world *w, const struct cpu_state *s);

uint64_t guest_u64(struct world *w, uint64_t gpa);
void guest_put64(struct world *w, uint64_t gpa, uint64_t v);

#define LE16(v) (uint8_t)(v), (uint8_t)((v) >> 8)
#define LE32(v) LE16(v), LE16((v) >> 16)
#define LE64(v) LE32(v), LE32((uint64_t)(v) >> 32)
/* Pieces of code */
#define HLT 0xf4
#define MOV_RAX(v) 0x48, 0xb8, LE64(v)
#define MOV_RCX(v) 0x48, 0xb9, LE64(v)
#define MOV_RDX(v) 0x48, 0xba, LE64(v)
#define MOV_RBX(v) 0x48, 0xbb, LE64(v)
#define MOV_RSI(v) 0x48, 0xbe, LE64(v)
#define MOV_RDI(v) 0x48, 0xbf, LE64(v)
#define MOV_EAX(v) 0xb8, LE32(v)
#define CALL_RDX 0xff, 0xd2
#define JMP_RDX 0xff, 0xe2
#define RET 0xc3
#define INVLPG_RDI 0x0f, 0x01, 0x3f
#define MOV_CR3_RAX 0x0f, 0x22, 0xd8

#endif
