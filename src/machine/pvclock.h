/*
 * The KVM paravirtual clock (Linux' Documentation/virt/kvm/x86/msr.rst): MSRs 0x4b564d00/01 and,
 * for older guests, 0x11/0x12. One per vCPU; the wall-clock MSR, which is the VM's, is kept in each
 * because guests write it on one. Guest memory is written only from the owning vCPU's thread or
 * while vCPUs are stopped; no locking.
 */
#ifndef RING3_MACHINE_PVCLOCK_H
#define RING3_MACHINE_PVCLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/state.h"
#include "mem/physmap.h"

struct pvclock_state {
    uint64_t system_time; /* as written: address | 1 when enabled */
    uint64_t wall_clock;  /* as written: address */
    uint32_t version;     /* of the time page, even */
    uint32_t wall_version;
};

struct pvclock {
    struct pvclock_state s;
    const struct clock *clock;
    struct physmap *map;
};

extern const struct state_desc pvclock_state_desc;

void pvclock_init(struct pvclock *p, const struct clock *c, struct physmap *map);
void pvclock_reset(struct pvclock *p);
bool pvclock_owns_msr(uint32_t msr);
/* 0, or -EINVAL for #GP. tsc_offset: guest TSC minus clock_tsc(). An address that is not memory is
 * accepted and nothing is written, as KVM does. */
int pvclock_rdmsr(const struct pvclock *p, uint32_t msr, uint64_t *val);
int pvclock_wrmsr(struct pvclock *p, uint32_t msr, uint64_t val, uint64_t tsc_offset);
/* Rewrites the time page, if there is one: after the clock stood still or the TSC offset changed.
 */
void pvclock_update(struct pvclock *p, uint64_t tsc_offset);

/* Scale of the page: ns = ((ticks << shift, or >> -shift) * mul) >> 32. */
void pvclock_scale(uint64_t tsc_khz, uint32_t *mul, int8_t *shift);

#endif
