/*
 * Lockstep checking of the translator against the interpreter, block by block, one vCPU.
 *
 * Before a translated block runs, the interpreter runs the same instructions dry (interp/dry.h). When
 * the translation comes back, wherever it left the block, the state and the words stored to are
 * compared with what the interpreter had at that instruction. Memory that device threads write
 * between the two runs makes them differ for a good reason: then the interpreter runs once more
 * from the old state and has to agree with what the translation did.
 *
 * Not seen: stores of the translation to places where the interpreter stores nothing. They show
 * when something reads them.
 *
 * On the vCPU's own thread. Private to src/engine/bt.
 */
#ifndef RING3_ENGINE_BT_CHECK_H
#define RING3_ENGINE_BT_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct block;
struct check;
struct cpu;

struct check_stats {
    uint64_t blocks; /* compared and found alike */
    uint64_t insns;  /* instructions in them */
    uint64_t unsure; /* not comparable: time, random numbers, very long string instructions */
    uint64_t raced;  /* alike only at a second look */
};

int check_new(struct check **out, struct err *e);
void check_free(struct check *ck);

/* The translation of b is about to run from the block's byte `from` on, where c->s.rip is. The state must be in c, flags in c->cc, and the
 * host's vector registers free (!c->vec_live); afterwards the host's x87 unit is free too. Nothing
 * that the guest can see changes. */
void check_begin(struct check *ck, struct cpu *c, const struct block *b, unsigned from);
/* It has come back with the state in c, as above: RIP at the next instruction, before anything else is done
 * about that (events, faults, an instruction that the interpreter is to run). True if it did what the
 * interpreter does; else the report is written to the log and c->v->error is set, and the caller
 * ends with STOP_ERROR. */
bool check_end(struct check *ck, struct cpu *c);

const struct check_stats *check_stats(const struct check *ck);
/* The report of the last mismatch: lines of text. */
const char *check_report(const struct check *ck);

#endif
