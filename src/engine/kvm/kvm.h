/*
 * The KVM engine's own structures (docs/kvm.md). KVM runs the processor; interrupt controllers, timers, clocks and every MSR
 * that does not change how instructions execute stay ours, so that the machine's state is the same under every engine.
 *
 * Threads: a struct kvm_cpu belongs to its vCPU's thread, or to whoever holds the vCPU outside of run(); `inside` and
 * run->immediate_exit are the kicker's too. struct kvm_vm.lock guards the slots. Lock order: physmap's, then this one; no
 * callback of struct cpu_env is called with it held.
 */
#ifndef RING3_ENGINE_KVM_KVM_H
#define RING3_ENGINE_KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/engine.h"

/* Reasons that are counted by number; later ones together in the last. */
#define KVM_EXITS 48u

/* Ends KVM_RUN. A standard signal is never refused for want of room in a queue, as a real-time one may be. Nobody else uses this one
 * (it tells of urgent data on a socket, of those who ask for that), and before there is a handler it is ignored. */
#define KVM_KICK_SIGNAL SIGURG

struct kvm_slot {
    uint64_t gpa, size; /* bytes, whole pages */
    uint8_t *host;
    uint32_t id;
    bool readonly;
    bool logged; /* KVM logs its dirty pages; if not, all its frames are P2M_DIRTY */
};

struct kvm_vm;
struct kvm_cpu;

/* How KVM tells which pages vCPUs have written. Only slots that are `logged` take part. */
struct kvm_dirty_ops {
    const char *name;
    /* Before there are vCPUs and slots; entries: a ring's, if there are rings. 0, or negative errno (-ENOTSUP: this host's KVM
     * does not know this way). */
    int (*vm_init)(struct kvm_vm *k, uint32_t entries);
    /* Negative errno; after c->fd is there. Fini loses nothing; also called if init failed or never came. */
    int (*vcpu_init)(struct kvm_cpu *c);
    void (*vcpu_fini)(struct kvm_cpu *c);
    /* Moves all that KVM knows into the p2m, and what is written from then on KVM notices again. Any thread, vCPUs may run;
     * struct kvm_vm.lock held. 0 or negative errno. */
    int (*collect)(struct vm *vm);
};

struct kvm_vm {
    int sys, fd;
    size_t run_size; /* of the shared page run of a vCPU */
    size_t xsave_size;
    bool tsc_scaling, tsc_offset_attr, manual_protect, sregs2;
    uint64_t msr_owned; /* which of kvm_msrs[] KVM has here, a bit each */
    struct log_limit fallbacks;

    /* Stopping the vCPUs for a change of slots: they wait outside KVM_RUN while `changing`. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    _Atomic bool changing;
    struct kvm_slot *slot;
    uint32_t nslots, max_slots;
    bool logging; /* new slots are logged */
    const struct kvm_dirty_ops *dirty;
    uint32_t ring_entries; /* of each vCPU's ring */

    /* Hardware TSC + tsc_base = clock_tsc(), since the clock's change of that number; without the offset attribute, the offset
     * that was written last. Under lock. */
    uint64_t tsc_base;
    uint32_t tsc_changes;
    bool tsc_known;
};

struct kvm_fallback;
struct kvm_check;

struct kvm_cpu {
    struct vcpu *v;
    struct kvm_vm *vm;
    int fd;
    struct kvm_run *run;
    uint8_t *xsave; /* scratch, vm->xsave_size bytes */
    /* What KVM does not keep: MSRs of ours, activity, TSC offset. Fields that KVM keeps are stale in here. */
    struct cpu_state s;
    struct cpu_state scratch;
    _Atomic bool inside; /* in KVM_RUN, or about to be */
    pid_t tid;           /* the thread that runs it */
    bool unfinished;     /* KVM waits for the rest of an instruction that did I/O */
    bool stale;          /* run->if_flag and its like are from before set_state */
    bool stepping;       /* KVM_GUESTDBG_SINGLESTEP is on */
    uint64_t changes;    /* how often KVM's state may have changed: runs and transfers */
    bool nmi_posted;     /* KVM may have an NMI that is not delivered */
    uint64_t tsc_offset; /* that KVM was given */
    bool tsc_given;
    uint32_t tsc_changes; /* the clock's, when it was; without the offset attribute */
    uint64_t apic_base;  /* that KVM was given */
    struct kvm_dirty_gfn *ring; /* of dirty pages, if there are rings; under the VM's lock */
    uint32_t ring_next;         /* entry that is taken out next */
    struct kvm_fallback *fallback;
    struct kvm_check *check; /* NULL: not asked for */
    uint64_t exits[KVM_EXITS];
};

/* ---- kvm.c ---- */
/* engine_ops.vm_init with a choice. */
int kvm_vm_init_dirty(struct vm *vm, const struct kvm_dirty_ops *dirty, uint32_t entries, struct err *e);

/* ---- run.c ---- */
enum stop kvm_run(struct vcpu *v);
void kvm_kick(struct vcpu *v);
/* What tells that the vCPU goes on, where enum stop says why not. */
#define GO_ON (-1)
/* One KVM_RUN and what follows from it: GO_ON or enum stop; STOP_BUDGET after a single step. */
int kvm_once(struct kvm_cpu *c);
/* Single steps, counted from where it stands now: GO_ON or STOP_ERROR. An event that is delivered, and SYSCALL, end them. */
int kvm_set_stepping(struct kvm_cpu *c, bool on);
/* KVM_RUN that enters no guest code: finishes an instruction that did I/O, refreshes run->*. */
int kvm_finish(struct kvm_cpu *c);

/* ---- state.c ---- */
/* What KVM has, as it stands in the middle of an exit too. */
int kvm_read_state(struct kvm_cpu *c, struct cpu_state *s);
int kvm_write_state(struct kvm_cpu *c, const struct cpu_state *s);
/* General registers, RIP and RFLAGS alone; 0 or negative errno. */
int kvm_write_regs(struct kvm_cpu *c, const struct cpu_state *s);
/* Is an event on its way that KVM took but has not delivered? */
bool kvm_in_delivery(struct kvm_cpu *c, struct kvm_vcpu_events *ev);
/* Forgets an exception that is on its way; 0 or negative errno. */
int kvm_drop_exception(struct kvm_cpu *c);
int kvm_get_state(struct vcpu *v, struct cpu_state *s);
int kvm_set_state(struct vcpu *v, const struct cpu_state *s);
/* Tells KVM of a new IA32_APIC_BASE, which CPUID shows. */
void kvm_sync_apic_base(struct kvm_cpu *c);

/* ---- xstate.c ---- */
int kvm_read_xstate(struct kvm_cpu *c, struct cpu_state *s);
int kvm_write_xstate(struct kvm_cpu *c, const struct cpu_state *s);

/* ---- msrs.c ---- */
/* Reads which MSRs KVM has, and makes all others ours. */
int kvm_msrs_init(struct kvm_vm *k, struct err *e);
int kvm_read_msrs(struct kvm_cpu *c, struct cpu_state *s);
int kvm_write_msrs(struct kvm_cpu *c, const struct cpu_state *s);
/* A guest's RDMSR or WRMSR that KVM left to us; 0, or -EINVAL for #GP. */
int kvm_exit_rdmsr(struct kvm_cpu *c, uint32_t msr, uint64_t *val);
int kvm_exit_wrmsr(struct kvm_cpu *c, uint32_t msr, uint64_t val);

/* ---- tsc.c ---- */
/* Can the machine's clock be the guest's TSC here? 0, or negative errno with the reason. */
int kvm_tsc_init(struct kvm_cpu *c, struct err *e);
/* Makes the hardware's TSC that of c->s.tsc_offset. The vCPU's thread. */
int kvm_tsc_sync(struct kvm_cpu *c);

/* ---- slots.c ---- */
int kvm_map_changed(struct vm *vm, const struct flat_view *view);
int kvm_slots_init(struct vm *vm, struct err *e);
/* The vCPU's way into KVM_RUN and out of it. */
void kvm_enter(struct kvm_cpu *c);
void kvm_leave(struct kvm_cpu *c);
/* Turns the log of a slot on or off. */
int kvm_slot_set(struct kvm_vm *k, const struct kvm_slot *s);

/* ---- dirty.c ---- */
/* Which way, with `entries` in each ring; while the VM is made, before kvm_slots_init. */
int kvm_dirty_init(struct vm *vm, const struct kvm_dirty_ops *ops, uint32_t entries, struct err *e);
/* Brings the p2m up to date; if that fails, with a negative errno, all that is logged is dirty. The VM's lock held. */
int kvm_dirty_collect(struct vm *vm);
/* A vCPU's ring is full: makes room. Its own thread; 0 or negative errno. */
int kvm_dirty_full(struct kvm_cpu *c);
int kvm_dirty_fetch(struct vm *vm, struct ram *ram, uint64_t *bits);
/* Is there a frame that somebody has fetched as clean? */
bool kvm_dirty_wanted(struct vm *vm, uint64_t gpa, uint64_t size);

/* ---- dirty_log.c, dirty_ring.c ---- */
extern const struct kvm_dirty_ops kvm_dirty_log, kvm_dirty_ring;

/* ---- deadline.c ---- */
/* Do guests' writes of IA32_TSC_DEADLINE reach us? sys: /dev/kvm. Runs a guest of one instruction. */
bool kvm_sees_deadline(int sys);

/* ---- model.c ---- */
int kvm_demand(struct engine_demands *d, struct err *e);
int kvm_cpuid_limit(int sys, struct cpuid_limit *l, struct err *e);
int kvm_set_cpuid(struct kvm_cpu *c, struct err *e);

/* ---- fallback.c ---- */
/* Has our interpreter execute one instruction, or deliver an event that KVM took. STOP_BUDGET: done. */
enum stop kvm_interpret(struct kvm_cpu *c);
/* So that nothing is left to be delivered; 0 or negative errno. */
int kvm_settle(struct kvm_cpu *c);
void kvm_fallback_free(struct kvm_fallback *f); /* or NULL */

/* ---- check.c ---- */
int kvm_check_new(struct kvm_cpu *c, struct err *e);
/* Says what was compared. */
void kvm_check_free(struct kvm_cpu *c);
/* In the place of kvm_once: one instruction, compared with what the interpreter makes of it, or until the next exit without that.
 * STOP_ERROR with a report in the log if they differ. */
int kvm_check_step(struct kvm_cpu *c);

#endif
