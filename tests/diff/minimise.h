/* Shrinking a failing case: fewer instructions, less state, as long as it still fails. */
#ifndef RING3_TESTS_DIFF_MINIMISE_H
#define RING3_TESTS_DIFF_MINIMISE_H

#include "case.h"

/* Does the case still fail in the way that matters? It may assume nothing about the last call. */
typedef bool (*still_fails)(void *ctx, const struct test_case *t);
void minimise(struct test_case *t, still_fails fails, void *ctx);

#endif
