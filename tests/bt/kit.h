/*
 * Guest programs for the tests of this folder. They are written in assembly where they are used, run on bare vCPUs (tests/interp's
 * world.h and guest.h) by whatever engine the environment names (tests/engine.h), and tell by memory and registers what
 * they saw.
 */
#ifndef RING3_TESTS_BT_KIT_H
#define RING3_TESTS_BT_KIT_H

#include "../interp/guest.h"

/* Position-independent guest code: bytes name to name_end. */
#define GUEST_ASM(name, text)                                          \
    extern const uint8_t name[], name##_end[];                         \
    __asm__(".pushsection .rodata.guest,\"a\"\n.intel_syntax noprefix\n" \
            ".balign 16\n" #name ":\n" text "\n" #name                 \
            "_end:\n.att_syntax prefix\n.popsection\n")
#define GUEST_ASM_LEN(name) ((size_t)(name##_end - name))
/* Writes it; the address behind it. */
#define kit_put(w, gpa, name) kit_bytes(w, gpa, name, GUEST_ASM_LEN(name))
/* Where a label of the same piece, made extern by KIT_LABEL, is when the piece lies at gpa. */
#define KIT_LABEL(label) extern const uint8_t label[]
#define kit_at(gpa, name, label) ((gpa) + (uint64_t)((label) - (name)))

#define KIT_IST_STACK 0xbe000ull /* top of the stack of gates with one of their own */

uint64_t kit_bytes(struct world *w, uint64_t gpa, const uint8_t *code, size_t n);
/* Interrupt gate to gpa, below 4 GiB, on KIT_IST_STACK if own_stack. */
void kit_gate(struct world *w, unsigned vector, uint64_t gpa, bool own_stack);
/* A state that runs at rip in ring 0 with interrupts as given and a stack of its own for each vCPU. There are no global
 * pages: with them translators may keep less about kernel code in pages that are not. */
void kit_state(struct cpu_state *s, unsigned cpu, uint64_t rip, bool interrupts);
/* Runs all vCPUs, each in a thread, until every one halts by itself; a hang or another stop fails the test. Meanwhile, if
 * not NULL, meddle(w, arg) is called again and again in the caller's thread. */
void kit_run_all(struct world *w, void (*meddle)(struct world *, void *), void *arg);
/* xorshift: never 0 if *s is not */
uint64_t kit_random(uint64_t *s);

#endif
