/*
 * The engine under test: one vCPU in long mode with paging, user code at CPL 3 and the pages of
 * case.h at the same linear addresses as in the oracle. Every exception ends at a HLT of its own in
 * supervisor code.
 */
#ifndef RING3_TESTS_DIFF_GUEST_H
#define RING3_TESTS_DIFF_GUEST_H

#include "case.h"
#include "../engine.h"

struct guest;

/* How an engine is driven. */
enum guest_mode {
    GUEST_FREE,  /* unlimited */
    GUEST_OTHER, /* by the engine's other way, if it has one (test_engine_other) */
    GUEST_STEP,  /* under a budget that never ends: one instruction at a time */
    GUEST_MODES
};
extern const char *const guest_mode_name[GUEST_MODES];

struct guest *guest_new(const struct engine_ops *engine, uint64_t xcr0, struct err *e);
void guest_free(struct guest *g);
const struct cpuid_policy *guest_policy(const struct guest *g);
const char *guest_engine(const struct guest *g);
/* Runs a case to its end. False if the engine has no such mode. */
bool guest_run(struct guest *g, const struct test_case *t, enum guest_mode mode,
               struct outcome *out);

#endif
