/*
 * Stopping the other vCPUs of a VM for what cannot be done while they run: setting P2M_CODE on a
 * frame that they may be storing to, a new memory map, emptying the code cache, a locked access
 * that the host cannot do in one instruction.
 *
 * A vCPU is in one of three places. Whoever wants the others stopped waits, inside sync_begin,
 * until each of them is no deeper than it can bear, and holds the lock until sync_end; a vCPU that
 * wants to go deeper meanwhile waits for the lock. So that this cannot deadlock, the requester
 * itself must not be SYNC_RUNNING, and a vCPU counts as stopped (SYNC_WORLD) while it is in a
 * callback of struct cpu_env that may wait for locks of devices.
 */
#ifndef RING3_ENGINE_INTERP_SYNC_H
#define RING3_ENGINE_INTERP_SYNC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct cpu;
struct vm;

enum sync_place {
    SYNC_OUTSIDE, /* between blocks, or not in run(): holds nothing of the code cache, no
                     translation */
    SYNC_WORLD, /* in the middle of an instruction, in a callback: looks at neither until it is back
                 */
    SYNC_RUNNING
};

/* What a requester may leave for a stopped vCPU to do before it goes on. */
#define SYNC_FLUSH 1u  /* drop all translations */
#define SYNC_WRITES 2u /* drop the translations that let stores through */
#define SYNC_JUMPS 4u  /* the code cache was emptied: forget its blocks */

struct sync {
    pthread_mutex_t lock;
    pthread_cond_t changed;   /* a vCPU went to a shallower place, or a request ended */
    _Atomic unsigned pending; /* requests that wait or are being served */
    struct vm *vm;
};

/* A vCPU's side of it. */
struct sync_cpu {
    _Atomic int place;     /* enum sync_place; only its own thread changes it */
    _Atomic unsigned work; /* SYNC_FLUSH ... */
};

void sync_init(struct sync *s, struct vm *vm);
void sync_fini(struct sync *s);

/* For the vCPU's own thread. Going deeper does the work that was left. */
void sync_enter(struct cpu *c);  /* OUTSIDE -> RUNNING */
void sync_leave(struct cpu *c);  /* RUNNING -> OUTSIDE */
void sync_pause(struct cpu *c);  /* RUNNING -> WORLD */
void sync_resume(struct cpu *c); /* WORLD -> RUNNING */

/* Stops all vCPUs at `deepest` or before. Any thread whose own vCPU, if it has one, is there too.
 * Not recursive; in between nothing may be waited for but the code cache's lock. */
void sync_begin(struct sync *s, enum sync_place deepest);
void sync_end(struct sync *s);
/* Within: leaves work for every vCPU. */
void sync_post(struct sync *s, unsigned work);

#endif
