/*
 * Random but plausible surroundings for guest code: descriptor tables, page tables, a TSS, handlers
 * that halt, data, code, and processor states of every mode that fit them. Physical layout in the
 * low 256 KiB.
 */
#ifndef RING3_TESTS_INTERP_SCENE_H
#define RING3_TESTS_INTERP_SCENE_H

#include "../insn/gen.h"
#include "cpu/state.h"

#define SCENE_BYTES (256 * KIB)
#define SCENE_CODE 0x10000u
#define SCENE_CODE_BYTES 0x8000u
#define SCENE_CHUNK 0x400u /* bytes of code between two entry points */
#define SCENE_STACK 0x18000u
#define SCENE_DATA 0x20000u
#define SCENE_MMIO 0xa00000u /* nothing there */

enum scene_mode {
    MODE_REAL,
    MODE_V86,
    MODE_P16,
    MODE_P32,
    MODE_PG32,
    MODE_PAE,
    MODE_LONG,
    MODE_COMPAT,
    SCENE_MODES
};
const char *scene_mode_name(enum scene_mode m);

/* Fills mem[SCENE_BYTES]. wild: tables are more random, and page tables are mapped. */
void scene_memory(struct rng *r, uint8_t *mem, bool wild);
/* One chunk of code for a mode at physical address gpa. */
void scene_code(struct rng *r, uint8_t *mem, uint32_t gpa, enum scene_mode mode);
/* A state about to run the chunk at gpa. wild: fields are mutated as long as the state is one that
 * a processor can be in. */
void scene_state(struct rng *r, struct cpu_state *s, enum scene_mode mode, uint32_t gpa, bool wild,
                 const struct cpuid_policy *p);

#endif
