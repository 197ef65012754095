/*
 * The calls out of the engine that may take locks of devices or change the memory map. While one is
 * under way the vCPU counts as stopped (sync.h); translations it found before are stale afterwards.
 * Private to src/engine/interp.
 */
#ifndef RING3_ENGINE_INTERP_WORLD_H
#define RING3_ENGINE_INTERP_WORLD_H

#include "engine/interp/interp.h"
#include "engine/interp/sync.h"

static inline void world_mmio_read(struct cpu *c, uint64_t gpa, void *buf, unsigned n)
{
    sync_pause(c);
    c->vm->env->mmio_read(c->v, gpa, buf, n);
    sync_resume(c);
}

static inline void world_mmio_write(struct cpu *c, uint64_t gpa, const void *buf, unsigned n)
{
    c->bt.intr = true;
    sync_pause(c);
    c->vm->env->mmio_write(c->v, gpa, buf, n);
    sync_resume(c);
}

static inline uint32_t world_pio_read(struct cpu *c, uint16_t port, unsigned size)
{
    uint32_t v;

    sync_pause(c);
    v = c->vm->env->pio_read(c->v, port, size);
    sync_resume(c);
    return v;
}

static inline void world_pio_write(struct cpu *c, uint16_t port, unsigned size, uint32_t val)
{
    c->bt.intr = true;
    sync_pause(c);
    c->vm->env->pio_write(c->v, port, size, val);
    sync_resume(c);
}

static inline int world_rdmsr(struct cpu *c, uint32_t msr, uint64_t *val)
{
    int rc;

    sync_pause(c);
    rc = c->vm->env->rdmsr(c->v, msr, val);
    sync_resume(c);
    return rc;
}

static inline int world_wrmsr(struct cpu *c, uint32_t msr, uint64_t val)
{
    int rc;

    c->bt.intr = true;
    sync_pause(c);
    rc = c->vm->env->wrmsr(c->v, msr, val);
    sync_resume(c);
    return rc;
}

static inline bool world_hypercall(struct cpu *c)
{
    bool known;

    if (!c->vm->env->hypercall)
        return false;
    sync_pause(c);
    known = c->vm->env->hypercall(c->v, &c->s);
    sync_resume(c);
    return known;
}

#endif
