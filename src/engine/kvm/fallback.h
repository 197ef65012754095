/*
 * A vCPU of the interpreter beside one of KVM's, on the same memory: for what KVM cannot do (fallback.c), and for comparing
 * (check.c). Private to src/engine/kvm.
 */
#ifndef RING3_ENGINE_KVM_FALLBACK_H
#define RING3_ENGINE_KVM_FALLBACK_H

#include "engine/interp/core.h"

struct kvm_vcpu_events;

struct kvm_fallback {
    struct cpu_env env;
    struct vm vm;
    struct vcpu v, *list; /* runs one instruction at a time */
};

/* One for v that reaches the world through env, but never sees an interrupt. NULL with e set. */
struct kvm_fallback *kvm_fallback_new(const struct vcpu *v, const struct cpu_env *env, struct err *e);

/* The event that KVM has on its way (kvm_in_delivery), as the interpreter has it. */
struct event kvm_event(const struct kvm_vcpu_events *ev);

#endif
