/*
 * Seam 1 (machine -> engine) and seam 2 (engine -> world). An engine runs vCPUs; several may serve
 * one VM, and a vCPU may change engine at any run() boundary because struct cpu_state is complete.
 * Nothing here knows of a machine or a device: tests give a fake env and a physmap with RAM.
 */
#ifndef RING3_ENGINE_ENGINE_H
#define RING3_ENGINE_ENGINE_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/trace.h"
#include "cpu/cpuid.h"
#include "cpu/state.h"
#include "mem/physmap.h"

struct vcpu;
struct vm;

/* Seam 2. Called from the vCPU's own thread, at an instruction boundary or in the middle of one that has
 * had no other side effect yet. Port I/O, MMIO, MSR and hypercall callbacks may wait for whatever thread changes the
 * memory map, and may change it themselves; the others must not. */
struct cpu_env {
    /* Port I/O of 1, 2 or 4 bytes; permission checks are the engine's. */
    uint32_t (*pio_read)(struct vcpu *v, uint16_t port, unsigned size);
    void (*pio_write)(struct vcpu *v, uint16_t port, unsigned size, uint32_t val);
    /* Physical accesses of 1..64 bytes that the p2m does not map. */
    void (*mmio_read)(struct vcpu *v, uint64_t gpa, void *buf, unsigned size);
    void (*mmio_write)(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size);
    /* MSRs the engine does not know (APIC, kvmclock ...): 0, or -EINVAL for #GP. */
    int (*rdmsr)(struct vcpu *v, uint32_t msr, uint64_t *val);
    int (*wrmsr)(struct vcpu *v, uint32_t msr, uint64_t val);
    void (*cpuid)(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
    /* CR8 lives in the APIC's TPR. */
    uint64_t (*get_cr8)(struct vcpu *v);
    void (*set_cr8)(struct vcpu *v, uint64_t val);
    /* Is a maskable interrupt waiting? / take it: vector 0..255, or -1 if it went away. */
    bool (*irq_pending)(struct vcpu *v);
    int (*irq_ack)(struct vcpu *v);
    /* x87 error with CR0.NE = 0 (IRQ 13); hypercall instruction (VMCALL/VMMCALL): true if handled,
     * false for #UD. Both may be NULL. */
    void (*ferr)(struct vcpu *v, bool level);
    /* The guest has set its TSC: it is clock_tsc() + offset from now on. May be NULL. */
    void (*tsc_moved)(struct vcpu *v, uint64_t offset);
    bool (*hypercall)(struct vcpu *v, struct cpu_state *s);
    /* The vCPU takes an INIT: whatever belongs to it outside of the engine, its APIC, does too. May be NULL. */
    void (*init)(struct vcpu *v);
};

/* Why run() returned. */
enum stop {
    STOP_KICK,     /* vcpu_kick was called */
    STOP_HLT,      /* halted: wait for an event, then run again */
    STOP_SHUTDOWN, /* triple fault; state is as at the fault */
    STOP_DEBUG,    /* debugger stop (later) */
    STOP_BUDGET,   /* vcpu.budget is used up (tests, lockstep) */
    STOP_PAUSE,    /* only with several vCPUs: the guest spins, other threads may be more useful; run again */
    STOP_ERROR     /* the engine cannot go on; vcpu.error says why */
};

/* Events posted to a vCPU by any thread; the engine looks at them at least at every loop
 * back-edge. */
#define VCPU_EV_KICK BIT(0)  /* return from run() */
#define VCPU_EV_INTR BIT(1)  /* ask env->irq_pending */
#define VCPU_EV_NMI BIT(2)
#define VCPU_EV_INIT BIT(3)
#define VCPU_EV_SIPI BIT(4)  /* vector in vcpu.sipi */
#define VCPU_EV_FLUSH BIT(5) /* engine-internal: another thread wants the vCPU to stop for a moment */

struct vcpu {
    struct vm *vm;
    uint32_t index; /* 0-based; the APIC ID unless the machine says otherwise */
    _Atomic uint32_t events;
    _Atomic uint8_t sipi;
    _Atomic uint32_t posting; /* threads in vcpu_post that may be about to kick */
    /* Which engine runs it now; NULL while it has none, that is before the first and during a change. */
    const struct engine_ops *_Atomic engine;
    void *priv;                      /* that engine's per-vCPU data */
    void *owner;                     /* the machine's per-vCPU data */
    /* in: instructions to run before STOP_BUDGET, where an exception or interrupt delivered counts as one too, so that
     * a budget always ends; 0 = unlimited */
    uint64_t budget;
    uint64_t insns;  /* out: instructions retired so far, a statistic (exact with a budget; 0: not counted) */
    struct err error;
};

struct vm {
    const struct cpu_env *env;
    struct physmap *map;
    struct clock *clock;
    const struct cpuid_policy *cpuid;
    struct trace *trace;
    struct vcpu **vcpu;
    uint32_t nvcpu;
    bool check;        /* compare the engine with the interpreter as it runs; one vCPU, engine_ops.checks */
    uint32_t check_every; /* kvm: ms between some instructions that are compared and the next; 0: all are */
    void *owner;       /* the machine */
    void *engine_priv; /* engine's per-VM data */
};

/* What an engine demands of every machine that it is to run. */
struct engine_demands {
    struct cpuid_limit *limit; /* in: room; out: bounds the machine's CPUID policy */
    bool limited;              /* out: it does */
    uint64_t tsc_khz;          /* in: the guest TSC's rate that the machine would like; out: that it must have */
    uint64_t counter_khz;      /* out: the clock must follow the host's TSC, of this rate; 0: it need not */
};

/*
 * Seam 1. A VM's first engine lives as long as the VM, or until the machine changes to another one, with all vCPUs
 * outside run(): get_state of the old engine; vm_init, vcpu_init and set_state of the new one, while the old one's data,
 * which vm.engine_priv and vcpu.priv do not show then, still exists; vcpu_fini and vm_fini of the old one (or, if the
 * new one failed anywhere, of the new one). No thread calls kick, map_changed or code_write meanwhile. Events stay
 * posted, and VCPU_EV_INTR is posted to every vCPU afterwards. Init, set_state and fini run on another thread than run.
 */
struct engine_ops {
    const char *name;
    const char *summary; /* for `ring3 engines` */
    bool checks;         /* heeds vm.check */
    /* Can it run on this host? 0, or negative errno with the reason. */
    int (*probe)(struct err *e);
    /* NULL: nothing. Asked before the machine is made, also of engines that it may change to. A failure leaves d unchanged
     * (but for what limit holds). */
    int (*demand)(struct engine_demands *d, struct err *e);
    /* Fails, saying why, also where the guest could not have the processor that vm.cpuid has promised it. */
    int (*vm_init)(struct vm *vm, struct err *e);
    int (*vcpu_init)(struct vcpu *v, struct err *e);
    /* Runs until a reason to stop. Only the vCPU's own thread. */
    enum stop (*run)(struct vcpu *v);
    /* Makes run() return soon (or look at events). Any thread, async-signal-safe. NULL: setting the event
     * is enough. */
    void (*kick)(struct vcpu *v);
    /* State transfer, only while run() is not running. get_state changes nothing that the guest can tell; if
     * set_state fails vcpu.error says why. */
    int (*get_state)(struct vcpu *v, struct cpu_state *s);
    int (*set_state)(struct vcpu *v, const struct cpu_state *s);
    /* The flat view changed: drop every cached translation on every vCPU before guest code can tell. Waits until
     * all running vCPUs have noticed. Any thread; on a vCPU's own only inside a callback that may (struct cpu_env). */
    int (*map_changed)(struct vm *vm, const struct flat_view *view);
    /* A non-vCPU agent wrote [gpa, gpa+len): drop code decoded from it. */
    void (*code_write)(struct vm *vm, uint64_t gpa, uint64_t len);
    /* Dirty bits of ram since the last fetch, ORed into bits; vCPUs are outside run(). */
    int (*dirty_fetch)(struct vm *vm, struct ram *ram, uint64_t *bits);
    void (*vcpu_fini)(struct vcpu *v);
    /* Leaves no P2M_CODE behind, and in P2M_DIRTY what the engine alone knows to be dirty. */
    void (*vm_fini)(struct vm *vm);
};

/* All engines in order of preference, NULL-terminated (engines.c). */
extern const struct engine_ops *const engine_list[];
extern const struct engine_ops interp_engine, bt_engine, kvm_engine;
const struct engine_ops *engine_find(const char *name);

/* Posts events and kicks. Any thread, async-signal-safe. */
static inline void vcpu_post(struct vcpu *v, uint32_t ev)
{
    const struct engine_ops *engine;

    atomic_fetch_or_explicit(&v->events, ev, memory_order_seq_cst);
    atomic_fetch_add(&v->posting, 1);
    engine = atomic_load(&v->engine);
    if (engine && engine->kick)
        engine->kick(v);
    atomic_fetch_sub(&v->posting, 1);
}

/* Takes the engine from the vCPU; on return nobody is in its kick, nor will be. Not while run() is running. */
static inline const struct engine_ops *vcpu_detach(struct vcpu *v)
{
    const struct engine_ops *engine = atomic_exchange(&v->engine, NULL);

    while (atomic_load(&v->posting))
        sched_yield();
    return engine;
}

#endif
