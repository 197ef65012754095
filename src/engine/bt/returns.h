/*
 * The host stack of translated code: a guest's CALL is a host's CALL, and its RET a host's RET, so that the processor
 * predicts it. What is returned to is no more than a guess: the code there looks whether it is where the guest
 * returns to (branch.c). So it does not matter that guests switch stacks, return to elsewhere or never, or that the
 * interpreter does some of their calls.
 *
 * Below the stack lies a page that cannot be written: when a CALL gets there the stack is emptied. At its bottom there
 * is the address of a stub. Owned by one vCPU's thread.
 */
#ifndef RING3_ENGINE_BT_RETURNS_H
#define RING3_ENGINE_BT_RETURNS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/util.h"

#define RETURNS_BYTES (128 * KIB)

/* The addresses are host stack pointers, and where signal handlers may have theirs. */
struct returns {
    uintptr_t guard; /* the page below the stack */
    uintptr_t empty; /* stack pointer when nothing is on it */
    void *handlers;
    size_t handlers_size;
    void *map;
    size_t size;
};

/* bottom: where a return from the empty stack leads to. */
int returns_new(struct returns **out, const void *bottom, struct err *e);
void returns_free(struct returns *r);

#endif
