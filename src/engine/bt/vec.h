/*
 * The guest's vector state in the host's registers: XMM, YMM, ZMM, K0-K7 and MXCSR (not x87 and
 * MMX) are simply the host's own while translated code runs (cpu.vec_live), and lie in cpu.s.zmm,
 * s.k and s.mxcsr otherwise, as the interpreter wants them. Intel SDM vol. 1 ch. 10, 13, 14 and 15.
 *
 * vec_save and vec_load are ordinary C functions, to be called on the vCPU's own thread. Between
 * vec_load and vec_save nothing may run but translated code and code compiled for general registers
 * only: vec_load must be the last call before it, vec_save the first one after. Host signals may
 * come at any time; the kernel gives their handlers clean registers and then ours back.
 *
 * A vec_load and the vec_save after it together, on a Sapphire Rapids with the vCPU's state in the
 * first-level cache (tests/bt/vec.c --bench): 8 ns for a guest with SSE only, 10 ns with AVX, 23 ns
 * with AVX-512, whatever of it is in use; 3 ns more if MXCSR is not the host's.
 */
#ifndef RING3_ENGINE_BT_VEC_H
#define RING3_ENGINE_BT_VEC_H

#include "engine/interp/interp.h"

/* What is moved: sixteen XMM, sixteen YMM, or 32 ZMM and eight opmask registers; MXCSR always. */
enum vec_set { VEC_SSE, VEC_AVX, VEC_AVX512 };

/* Chooses the set by what the host has, the guest's CPUID offers (c->vm->cpuid must be set) and
 * `most` (for tests; else VEC_AVX512). To be called once, before the others; the state is in c->s
 * afterwards. Parts of s.zmm and s.k beyond the set, which such a guest cannot see, are never
 * touched. */
void vec_init(struct cpu *c, enum vec_set most);

/* The host's registers -> c->s. Afterwards c->vec_live is false, the upper parts of registers 0-15
 * are clean, and the host's MXCSR is the default one but for sticky exception flags, which mean
 * nothing to C code. Does nothing if the registers are not live. */
void vec_save(struct cpu *c);

/* c->s -> the host's registers, and c->vec_live becomes true. s.mxcsr must have no reserved bits
 * set. Upper parts that are zero in all of registers 0-15 are left in their initial state, so that
 * legacy SSE code of the guest does not merge into dirty registers. Does nothing if the registers
 * are live already. */
void vec_load(struct cpu *c);

#endif
