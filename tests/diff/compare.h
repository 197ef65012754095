/* Comparing how a case ended on the silicon and in an engine. */
#ifndef RING3_TESTS_DIFF_COMPARE_H
#define RING3_TESTS_DIFF_COMPARE_H

#include "case.h"

/* What differs first, in words, or NULL. Flags in undefined are not looked at. */
const char *compare(const struct test_case *t, const struct outcome *silicon,
                    const struct outcome *ours, uint64_t undefined);
/* Prints everything that differs. */
void compare_show(const struct test_case *t, const struct outcome *silicon,
                  const struct outcome *ours, uint64_t undefined);

#endif
