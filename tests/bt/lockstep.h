/*
 * A stand-in for a translator: the interpreter's fast handlers run one block, as far as its instructions
 * can be translated, and come back as translated code does. What it did is checked against a dry run
 * by the plain functions. Vcpu 0 of a world.
 */
#ifndef RING3_TESTS_BT_LOCKSTEP_H
#define RING3_TESTS_BT_LOCKSTEP_H

#include "../interp/world.h"
#include "engine/bt/check.h"
#include "engine/interp/dry.h"

struct lock {
    struct world *w;
    struct cpu *c;
    struct check *ck;
    struct dry *dry; /* a look of the test's own at what the check will see */
    int log;         /* where reports go: a file of its own */
};

/* Aborts when something fails: that is not what is tested. */
void lock_open(struct lock *l, struct world *w);
void lock_close(struct lock *l);

/* The block at RIP in the current mode, or NULL if fetching it faults. */
struct block *lock_block(struct lock *l);
/* A dry run of b, from its byte `from` on, into l->dry, and the beginning of a check. */
void lock_begin(struct lock *l, const struct block *b, unsigned from);
/* Really runs the first n instructions of b, or until it is left. */
void lock_run(struct lock *l, struct block *b, unsigned n);
/* The end of the check. */
bool lock_end(struct lock *l);

#endif
