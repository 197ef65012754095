/*
 * The interpreter as the foundation of another software engine: its engine_ops (engine.h) to be called or
 * handed on as they are, and the pieces of its run loop. struct interp_vm.run may be replaced after
 * interp_vm_init. Private to src/engine.
 */
#ifndef RING3_ENGINE_INTERP_CORE_H
#define RING3_ENGINE_INTERP_CORE_H

#include "engine/interp/interp.h"

struct op;

int interp_vm_init(struct vm *vm, struct err *e);
void interp_vm_fini(struct vm *vm);
int interp_vcpu_init(struct vcpu *v, struct err *e);
void interp_vcpu_fini(struct vcpu *v);
enum stop interp_run(struct vcpu *v);
int interp_get_state(struct vcpu *v, struct cpu_state *s);
int interp_set_state(struct vcpu *v, const struct cpu_state *s);
int interp_map_changed(struct vm *vm, const struct flat_view *view);
void interp_code_write(struct vm *vm, uint64_t gpa, uint64_t len);
int interp_dirty_fetch(struct vm *vm, struct ram *ram, uint64_t *bits);

/* The block at c->s.rip; one that is not live is good for running once. Raises what fetching does. */
struct block *interp_find(struct cpu *c);
/* Remembers b as that, for branches there; global: it lies in global pages of the upper half. */
void interp_know(struct cpu *c, struct block *b, bool global);
/* Runs from o, the code at c->s.rip, until something wants the run loop; c->s.rip is then where. */
void interp_run_from(struct cpu *c, const struct op *o);
/* Must the next instruction be run by itself (TF, shadows, breakpoints, a budget)? */
bool interp_must_step(const struct cpu *c);

#endif
