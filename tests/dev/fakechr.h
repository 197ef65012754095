/* A chardev backend for tests: keeps what the device wrote, as far as it has room. */
#ifndef RING3_TESTS_DEV_FAKECHR_H
#define RING3_TESTS_DEV_FAKECHR_H

#include "back/chardev.h"

struct fakechr {
    struct chardev base;
    uint8_t out[4096];
    size_t len, room; /* takes no more than room bytes in all */
    unsigned accepts; /* calls of chardev_accept_input */
    uint16_t columns, rows; /* 0: no terminal */
};

void fakechr_init(struct fakechr *c);

#endif
