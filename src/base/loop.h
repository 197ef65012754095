/*
 * The main event loop (epoll). Runs in one thread; loop_post and loop_stop may be called from any
 * thread (loop_stop also from a signal handler), everything else only from the loop's own thread or
 * before it runs.
 */
#ifndef RING3_BASE_LOOP_H
#define RING3_BASE_LOOP_H

#include <stdint.h>

#include "base/err.h"

struct loop;
struct loop_fd; /* a registration */

int loop_new(struct loop **out, struct err *e);
void loop_free(struct loop *l);

/* events is EPOLLIN|EPOLLOUT...; cb gets what happened, and is not called while events is 0. The fd
 * stays the caller's. A callback may remove any registration, its own included. Regular files
 * (which epoll refuses) count as always readable and writable. */
int loop_add(struct loop *l, int fd, uint32_t events, void (*cb)(void *arg, uint32_t events),
             void *arg, struct loop_fd **out, struct err *e);
void loop_mod(struct loop_fd *r, uint32_t events);
void loop_del(struct loop_fd *r);

/* Runs fn(arg) once in the loop's thread, in the order posted. Returns 0 or -ENOMEM. What was
 * posted before loop_stop runs before loop_run returns; what is left at loop_free is dropped. */
int loop_post(struct loop *l, void (*fn)(void *arg), void *arg);
void loop_stop(struct loop *l);
int loop_run(struct loop *l, struct err *e); /* until loop_stop; 0 or negative errno */

#endif
