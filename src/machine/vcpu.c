#include "machine/vcpu.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "irq/pic.h"
#include "machine/env.h"
#include "machine/gate.h"
#include "machine/machine.h"

/* A vCPU that spins on, with no more than RELAX_GAP instructions from one STOP_PAUSE to the next,
 * yields RELAX_YIELDS times and then sleeps for RELAX_NS at a time. */
#define RELAX_GAP 16384u
#define RELAX_YIELDS 4u
#define RELAX_NS 50000

void vcpu_wake(struct vcpu_host *h, uint32_t events)
{
    vcpu_post(&h->v, events);
    /* Pairs with wait_events: either it sees the event before it waits, or we see that it waits. */
    if (atomic_load(&h->asleep))
        syscall(SYS_futex, &h->v.events, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Until an event is posted, or the time is over (NULL: none), or for no reason at all. */
static void wait_events(struct vcpu_host *h, const struct timespec *most)
{
    atomic_store(&h->asleep, true);
    if (atomic_load(&h->v.events) == 0)
        syscall(SYS_futex, &h->v.events, FUTEX_WAIT_PRIVATE, 0, most, NULL, 0);
    atomic_store(&h->asleep, false);
}

/* After HLT: until any event is posted. The engine decides whether it ends the halt. */
static void vcpu_sleep(struct vcpu_host *h)
{
    while (atomic_load(&h->v.events) == 0)
        wait_events(h, NULL);
}

/* The guest spins. Whom it waits for may be a vCPU that has no core: this one gives its own away,
 * and if that does not help, keeps off it for a moment. */
static void vcpu_relax(struct vcpu_host *h)
{
    static const struct timespec moment = {.tv_nsec = RELAX_NS};

    h->spins = h->v.insns - h->spun_at < RELAX_GAP ? h->spins + 1 : 0;
    h->spun_at = h->v.insns;
    if (h->spins < RELAX_YIELDS)
        sched_yield();
    else
        wait_events(h, &moment);
}

/* What the local APIC tells its processor. */
static void on_apic(void *owner, enum lapic_event ev, uint32_t arg)
{
    struct vcpu_host *h = owner;

    switch (ev) {
    case LAPIC_EV_INTR:
        vcpu_wake(h, VCPU_EV_INTR);
        break;
    case LAPIC_EV_NMI:
        vcpu_wake(h, VCPU_EV_NMI);
        break;
    case LAPIC_EV_INIT: /* not after a SIPI from before it */
        atomic_fetch_and(&h->v.events, ~(uint32_t)VCPU_EV_SIPI);
        vcpu_wake(h, VCPU_EV_INIT);
        break;
    case LAPIC_EV_SIPI:
        atomic_store(&h->v.sipi, (uint8_t)arg);
        vcpu_wake(h, VCPU_EV_SIPI);
        break;
    case LAPIC_EV_SMI: /* there is no system management mode */
        break;
    }
}

int vcpu_init(struct vcpu_host *h, struct machine *m, uint32_t index,
              const struct engine_ops *engine, struct err *e)
{
    struct lapic_cfg cfg = {.id = index,
                            .bsp = index == 0,
                            .maxphys = (uint8_t)m->cpuid.maxphys,
                            .timers = &m->timers,
                            .trace = m->ctx.trace,
                            .event = on_apic,
                            .owner = h,
                            .pic_pending = pic_pending,
                            .pic_ack = pic_ack,
                            .pic = m->pic};
    int rc;

    h->m = m;
    h->v = (struct vcpu){.vm = &m->vm, .index = index, .owner = h};
    pvclock_init(&h->pvclock, &m->clock, m->map);
    rc = lapic_new(&h->lapic, m->apics, &cfg, e);
    if (rc)
        return rc;
    rc = engine->vcpu_init(&h->v, e);
    if (rc)
        return err_prefix(e, rc, "engine %s", engine->name);
    h->v.engine = engine;
    return 0;
}

void vcpu_fini(struct vcpu_host *h)
{
    if (h->v.engine)
        h->v.engine->vcpu_fini(&h->v);
    h->v.engine = NULL;
    lapic_free(h->lapic);
    h->lapic = NULL;
}

/* What firmware leaves behind in the boot processor's APIC: enabled in virtual-wire mode, so that
 * the PIC and NMI reach it (MultiProcessor Specification 1.4 §3.6.2.2). */
static void virtual_wire(struct lapic *l)
{
    const uint32_t enabled = 0x1ff, extint = 0x700, nmi = 0x400;

    lapic_mmio_write(l, 0xf0, enabled);
    lapic_mmio_write(l, 0x350, extint);
    lapic_mmio_write(l, 0x360, nmi);
}

int vcpu_reset(struct vcpu_host *h, const struct cpu_state *s, struct err *e)
{
    int rc;

    lapic_reset(h->lapic, false);
    if (h->v.index == 0)
        virtual_wire(h->lapic);
    pvclock_reset(&h->pvclock);
    vcpu_set_tsc_offset(h, s->tsc_offset);
    atomic_fetch_and(&h->v.events, VCPU_EV_FLUSH);
    rc = h->v.engine->set_state(&h->v, s);
    return rc ? err_set(e, -rc, "engine %s refuses the reset state", h->v.engine->name) : 0;
}

void vcpu_set_tsc_offset(struct vcpu_host *h, uint64_t offset)
{
    h->tsc_offset = offset;
    lapic_set_tsc_offset(h->lapic, offset);
    pvclock_update(&h->pvclock, offset);
}

/* Where a dead processor stopped, for the last words of the machine. */
static void report_death(struct vcpu_host *h)
{
    struct cpu_state s;

    if (h->v.engine->get_state(&h->v, &s))
        memset(&s, 0, sizeof(s));
    machine_died(h->m, h->v.index, s.seg[CS].sel, s.rip);
}

static void *vcpu_main(void *arg)
{
    struct vcpu_host *h = arg;
    char name[16];

    snprintf(name, sizeof(name), "vcpu%u", h->v.index);
    pthread_setname_np(pthread_self(), name);
    while (gate_pass(h->m)) {
        switch (h->v.engine->run(&h->v)) {
        case STOP_HLT:
            vcpu_sleep(h);
            break;
        case STOP_SHUTDOWN:
            report_death(h);
            break;
        case STOP_ERROR:
            machine_failed(h->m, &h->v.error);
            break;
        case STOP_PAUSE:
            vcpu_relax(h);
            break;
        case STOP_KICK:
        case STOP_DEBUG:
        case STOP_BUDGET:
            break;
        }
    }
    return NULL;
}

/* Signals are the main thread's affair, except those that an instruction of this thread raises. */
int vcpu_start(struct vcpu_host *h, struct err *e)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t block, old;
    int rc;

    sigfillset(&block);
    for (size_t i = 0; i < ARRAY_LEN(own); i++)
        sigdelset(&block, own[i]);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    rc = pthread_create(&h->thread, NULL, vcpu_main, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return err_set(e, rc, "cannot create a vCPU thread: %s", strerror(rc));
    h->started = true;
    return 0;
}
