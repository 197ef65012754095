/*
 * When KVM is checked, if not always (check.c): for some instructions in a row, then not until a time has passed. KVM_RUN is
 * interrupted then, so that windows begin anywhere, not just where the guest does I/O. Private to src/engine/kvm.
 */
#ifndef RING3_ENGINE_KVM_WINDOW_H
#define RING3_ENGINE_KVM_WINDOW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* All zero to begin with. */
struct kvm_window {
    unsigned left; /* instructions that it still has */
    uint64_t next; /* when the next one begins, ns */
    timer_t timer;
    pid_t tid; /* the thread that the timer signals; 0: there is no timer */
};

/* Is the next instruction of a vCPU whose thread is tid to be checked, with pauses of so many milliseconds? The vCPU's thread. */
bool kvm_window_open(struct kvm_window *w, uint32_t pause_ms, pid_t tid);
void kvm_window_free(struct kvm_window *w);

#endif
