/*
 * Which engine a test runs, and how. Tests of behaviour that every engine must show read it from the
 * environment, so that the build can register each of them once for each engine:
 *
 *   RING3_TEST_ENGINE=NAME    one of engine_list; interp if it is not set
 *   RING3_TEST_THRESHOLD=N    after how many entries bt translates a block: 1, if it is not set, is at once;
 *                             0 is what it does by itself
 *   RING3_TEST_CHECK=1        one vCPU, and an engine that can be: compared with the interpreter as it runs
 */
#ifndef RING3_TESTS_ENGINE_H
#define RING3_TESTS_ENGINE_H

#include <stdbool.h>

#include "engine/engine.h"

/* The engine with that name, or the environment's if name is NULL. Ends the program with 77, which is
 * "skipped", if this build does not have it or this host cannot run it. */
const struct engine_ops *test_engine(const char *name);
/* Is that engine, with so many vCPUs, to be compared with the interpreter? For vm.check. */
bool test_engine_check(const struct engine_ops *engine, unsigned ncpu);
/* Has the engine do its own work at once and not only where it pays. After vm_init. */
void test_engine_tune(struct vm *vm, const struct engine_ops *engine);
/* Some engines have a second way to run the same code: the interpreter without its fast handlers, bt with
 * loops that begin interpreted and go on translated. Takes it or leaves it; false if there is none. */
bool test_engine_other(struct vcpu *v, bool other);

#endif
