/* Memory that the oracle process shares with native.c. */
#ifndef RING3_TESTS_DIFF_ORACLE_H
#define RING3_TESTS_DIFF_ORACLE_H

#include "native.h"

/* Descriptors of the oracle: shared memory, requests in, answers out (a byte for each batch). */
enum { ORACLE_FD_BATCH = 3, ORACLE_FD_IN = 4, ORACLE_FD_OUT = 5 };

struct slot {
    struct test_case t;
    struct outcome out;
};

struct native_batch {
    unsigned count;
    volatile unsigned at;
    struct slot slot[NATIVE_BATCH];
};

#endif
