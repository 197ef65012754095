/*
 * The chardev backend on file descriptors: a bounded output ring that the loop's thread drains, an
 * input buffer with back-pressure, and the console's escape keys. Used through chardev.h only.
 */
#ifndef RING3_BACK_CHARDEV_FD_H
#define RING3_BACK_CHARDEV_FD_H

#include <stdbool.h>

#include "back/chardev.h"

struct chardev_fd_cfg {
    int in, out;  /* -1: absent */
    bool own_out; /* close out with the backend (only when chardev_fd_new succeeded) */
    bool console; /* escape keys; raw mode if `in` is a terminal */
};

int chardev_fd_new(struct chardev **out, const struct chardev_fd_cfg *cfg,
                   const struct chardev_host *host, struct err *e);

#endif
