/*
 * The run loop. Between two KVM_RUNs: events that other threads posted, interrupts of our APIC, and what the guest's last
 * instruction wanted of the world.
 *
 * Whoever kicks sets run->immediate_exit and sends a signal if the vCPU is `inside`; the vCPU clears immediate_exit, then looks at
 * its events, then is inside. So a kick is seen here, by KVM as it enters, or by the signal.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/kvm/kvm.h"

#define MSR_APIC_BASE 0x1bu
#define APIC_BASE_BSP BIT(8)

static void set_immediate(struct kvm_cpu *c, uint8_t v)
{
    __atomic_store_n(&c->run->immediate_exit, v, __ATOMIC_SEQ_CST);
}

void kvm_kick(struct vcpu *v)
{
    struct kvm_cpu *c = v->priv;

    if (!c)
        return;
    set_immediate(c, 1);
    if (atomic_load(&c->inside))
        syscall(SYS_tgkill, getpid(), c->tid, KVM_KICK_SIGNAL);
}

static int failed(struct kvm_cpu *c, int code, const char *what)
{
    err_set(&c->v->error, code, "KVM: vCPU %u: %s: %s", c->v->index, what, strerror(code));
    return STOP_ERROR;
}

/* ---- exits ---- */

static int exit_io(struct kvm_cpu *c)
{
    struct kvm_run *r = c->run;
    const struct cpu_env *env = c->v->vm->env;
    uint64_t end = r->io.data_offset + (uint64_t)r->io.size * r->io.count;
    uint8_t *data = (uint8_t *)r + r->io.data_offset;

    if ((r->io.size != 1 && r->io.size != 2 && r->io.size != 4) || end > c->vm->run_size)
        return failed(c, EPROTO, "port I/O");
    c->unfinished = true;
    for (uint32_t i = 0; i < r->io.count; i++, data += r->io.size) {
        uint32_t val = 0;

        if (r->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&val, data, r->io.size);
            env->pio_write(c->v, r->io.port, r->io.size, val);
        } else {
            val = env->pio_read(c->v, r->io.port, r->io.size);
            memcpy(data, &val, r->io.size);
        }
    }
    return GO_ON;
}

static int exit_mmio(struct kvm_cpu *c)
{
    struct kvm_run *r = c->run;
    const struct cpu_env *env = c->v->vm->env;

    if (r->mmio.len < 1 || r->mmio.len > sizeof(r->mmio.data))
        return failed(c, EPROTO, "memory-mapped I/O");
    c->unfinished = true;
    if (r->mmio.is_write && (p2m_get(physmap_p2m(c->v->vm->map), r->mmio.phys_addr >> PAGE_SHIFT) & P2M_READONLY))
        return GO_ON; /* stores to ROM are dropped */
    if (r->mmio.is_write)
        env->mmio_write(c->v, r->mmio.phys_addr, r->mmio.data, r->mmio.len);
    else
        env->mmio_read(c->v, r->mmio.phys_addr, r->mmio.data, r->mmio.len);
    return GO_ON;
}

static int exit_rdmsr(struct kvm_cpu *c)
{
    uint64_t val = 0;

    c->unfinished = true;
    c->run->msr.error = kvm_exit_rdmsr(c, c->run->msr.index, &val) != 0;
    c->run->msr.data = val;
    return GO_ON;
}

static int exit_wrmsr(struct kvm_cpu *c)
{
    c->unfinished = true;
    c->run->msr.error = kvm_exit_wrmsr(c, c->run->msr.index, c->run->msr.data) != 0;
    return GO_ON;
}

static int exit_hlt(struct kvm_cpu *c)
{
    c->s.activity = CPU_HALTED;
    return c->v->budget && !c->check ? STOP_BUDGET : GO_ON; /* it is done, though no trap tells of it */
}

static int exit_nothing(struct kvm_cpu *c) { return GO_ON; }

static int exit_shutdown(struct kvm_cpu *c)
{
    c->s.activity = CPU_SHUTDOWN;
    return STOP_SHUTDOWN;
}

static int exit_debug(struct kvm_cpu *c) { return c->stepping ? STOP_BUDGET : STOP_DEBUG; }

static int exit_ring_full(struct kvm_cpu *c)
{
    int rc = kvm_dirty_full(c);

    return rc ? failed(c, -rc, "KVM_RESET_DIRTY_RINGS") : GO_ON;
}

/* KVM met an instruction that its emulator does not know, or a state that the hardware does not take. */
static int exit_error(struct kvm_cpu *c)
{
    struct kvm_run *r = c->run;
    bool unknown = r->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
                   r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION;
    /* Some kernels have put an #UD on its way as well. */
    int rc = unknown ? kvm_drop_exception(c) : 0;
    enum stop st = rc ? (enum stop)failed(c, -rc, "KVM_SET_VCPU_EVENTS") : kvm_interpret(c);
    uint64_t why = r->exit_reason == KVM_EXIT_FAIL_ENTRY
                       ? r->fail_entry.hardware_entry_failure_reason
                       : r->internal.suberror;

    log_limited(c->v->vm->trace->log, &c->vm->fallbacks, LOG_INFO,
                "kvm: vCPU %u: one instruction interpreted before %04x:%#llx (%s %#llx)",
                c->v->index, c->scratch.seg[CS].sel, (unsigned long long)c->scratch.rip,
                r->exit_reason == KVM_EXIT_FAIL_ENTRY ? "failed entry" : "internal error",
                (unsigned long long)why);
    if (st == STOP_HLT || st == STOP_BUDGET)
        return GO_ON;
    return st;
}

static int (*const handlers[])(struct kvm_cpu *) = {
    [KVM_EXIT_IO] = exit_io,
    [KVM_EXIT_MMIO] = exit_mmio,
    [KVM_EXIT_X86_RDMSR] = exit_rdmsr,
    [KVM_EXIT_X86_WRMSR] = exit_wrmsr,
    [KVM_EXIT_HLT] = exit_hlt,
    [KVM_EXIT_INTR] = exit_nothing,
    [KVM_EXIT_IRQ_WINDOW_OPEN] = exit_nothing,
    [KVM_EXIT_SET_TPR] = exit_nothing,
    [KVM_EXIT_SHUTDOWN] = exit_shutdown,
    [KVM_EXIT_DEBUG] = exit_debug,
    [KVM_EXIT_INTERNAL_ERROR] = exit_error,
    [KVM_EXIT_FAIL_ENTRY] = exit_error,
    [KVM_EXIT_DIRTY_RING_FULL] = exit_ring_full,
};

int kvm_once(struct kvm_cpu *c)
{
    const struct cpu_env *env = c->v->vm->env;
    struct kvm_run *r = c->run;
    uint64_t cr8 = env->get_cr8(c->v);
    uint32_t why;
    int rc, code;

    r->cr8 = cr8;
    c->changes++;
    kvm_enter(c);
    rc = ioctl(c->fd, KVM_RUN, 0);
    code = errno;
    kvm_leave(c);
    c->unfinished = false;
    c->stale = false;
    if (r->cr8 != cr8)
        env->set_cr8(c->v, r->cr8 & 15);
    if (rc < 0) {
        c->exits[KVM_EXIT_INTR]++;
        r->exit_reason = KVM_EXIT_INTR; /* after an immediate exit it is an old one */
        return code == EINTR || code == EAGAIN ? GO_ON : failed(c, code, "KVM_RUN");
    }
    why = r->exit_reason;
    c->exits[MIN(why, KVM_EXITS - 1)]++;
    if (why >= ARRAY_LEN(handlers) || !handlers[why])
        return err_set(&c->v->error, EPROTO, "KVM: vCPU %u: unexpected exit %u", c->v->index, why),
               STOP_ERROR;
    return handlers[why](c);
}

int kvm_finish(struct kvm_cpu *c)
{
    int st = GO_ON;

    while (st == GO_ON && (c->unfinished || c->stale)) {
        set_immediate(c, 1);
        st = kvm_once(c);
    }
    return st;
}

/* ---- between instructions ---- */

/* KVM's state, with nothing of it on its way; to be changed and written back. */
static int stand(struct kvm_cpu *c, struct cpu_state *s)
{
    int st = kvm_finish(c), rc;

    if (st != GO_ON)
        return st;
    rc = kvm_read_state(c, s);
    return rc ? failed(c, -rc, "reading its state") : GO_ON;
}

static int take_init(struct kvm_cpu *c)
{
    const struct vm *vm = c->v->vm;
    struct cpu_state *s = &c->scratch;
    uint64_t base = 0;
    int st = stand(c, s);

    if (st != GO_ON)
        return st;
    if (vm->env->init)
        vm->env->init(c->v);
    cpu_state_init(s);
    s->gpr[RDX] = cpuid_signature(vm->cpuid);
    /* The bootstrap processor restarts at the reset vector, the others wait for SIPI. */
    if (vm->env->rdmsr(c->v, MSR_APIC_BASE, &base) == 0 && !(base & APIC_BASE_BSP))
        s->activity = CPU_WAIT_SIPI;
    trace(vm->trace, cpu_reset, "cpu%u INIT", c->v->index);
    return kvm_write_state(c, s) ? STOP_ERROR : GO_ON;
}

static int take_sipi(struct kvm_cpu *c, uint8_t vector)
{
    struct cpu_state *s = &c->scratch;
    int st;

    if (c->s.activity != CPU_WAIT_SIPI)
        return GO_ON;
    st = stand(c, s);
    if (st != GO_ON)
        return st;
    s->seg[CS].sel = (uint16_t)(vector << 8);
    s->seg[CS].base = (uint64_t)vector << 12;
    s->rip = 0;
    s->activity = CPU_RUNNING;
    trace(c->v->vm->trace, cpu_reset, "cpu%u SIPI %#x", c->v->index, vector);
    return kvm_write_state(c, s) ? STOP_ERROR : GO_ON;
}

static int take_nmi(struct kvm_cpu *c)
{
    if (c->s.activity == CPU_WAIT_SIPI) /* it hears nothing else, now or later */
        return GO_ON;
    if (ioctl(c->fd, KVM_NMI, 0))
        return failed(c, errno, "KVM_NMI");
    c->nmi_posted = true;
    return GO_ON;
}

/* Looks at posted events. */
static int take_events(struct kvm_cpu *c)
{
    uint32_t ev = atomic_exchange(&c->v->events, 0);
    int st = GO_ON;

    if ((ev & VCPU_EV_INIT) || c->s.init_pending) {
        c->s.init_pending = 0;
        st = take_init(c);
    }
    if (st == GO_ON && (ev & VCPU_EV_NMI))
        st = take_nmi(c);
    if (st == GO_ON && (ev & VCPU_EV_SIPI))
        st = take_sipi(c, atomic_load(&c->v->sipi));
    if (st != GO_ON) /* it stands in the middle of something: next time */
        atomic_fetch_or(&c->v->events, ev);
    else if (ev & VCPU_EV_KICK)
        st = STOP_KICK;
    return st;
}

/* May an NMI that we gave to KVM end a halt? */
static bool nmi_deliverable(struct kvm_cpu *c)
{
    struct kvm_vcpu_events ev;

    if (!c->nmi_posted || ioctl(c->fd, KVM_GET_VCPU_EVENTS, &ev))
        return false;
    c->nmi_posted = ev.nmi.pending;
    return ev.nmi.pending && !ev.nmi.masked;
}

/* Gives KVM the interrupt that our APIC wants delivered, or has it say when it can take one. */
static int inject(struct kvm_cpu *c)
{
    const struct cpu_env *env = c->v->vm->env;
    struct kvm_run *r = c->run;

    r->request_interrupt_window = 0;
    if (!env->irq_pending(c->v))
        return GO_ON;
    if (c->unfinished) {
        /* What KVM said of its readiness was in the middle of an instruction, whose fault would displace the interrupt. */
        int st = kvm_finish(c);

        if (st != GO_ON)
            return st;
    }
    if (r->ready_for_interrupt_injection) {
        int vec = env->irq_ack(c->v);
        struct kvm_interrupt irq = {.irq = (uint32_t)vec};

        if (vec >= 0) {
            if (ioctl(c->fd, KVM_INTERRUPT, &irq))
                return failed(c, errno, "KVM_INTERRUPT");
            r->ready_for_interrupt_injection = 0;
            c->s.activity = CPU_RUNNING;
        }
    }
    r->request_interrupt_window = env->irq_pending(c->v);
    return GO_ON;
}

/* Everything that is due before the next instruction. */
static int prepare(struct kvm_cpu *c)
{
    int st = take_events(c);

    if (st != GO_ON)
        return st;
    if (c->s.activity == CPU_SHUTDOWN)
        return STOP_SHUTDOWN;
    if (c->s.activity == CPU_WAIT_SIPI)
        return STOP_HLT;
    while (c->s.pending_dbg) { /* KVM has no such thing */
        st = kvm_interpret(c);
        if (st == STOP_BUDGET)
            st = take_events(c);
        if (st != GO_ON)
            return st;
    }
    if (c->stale) {
        st = kvm_finish(c);
        if (st != GO_ON)
            return st;
    }
    st = inject(c);
    if (st == GO_ON && c->s.activity == CPU_HALTED && c->run->request_interrupt_window) {
        /* Nobody will tell of that interrupt again: is it really not to be taken now? */
        c->stale = true;
        st = kvm_finish(c);
        st = st == GO_ON ? inject(c) : st;
    }
    if (st == GO_ON && c->s.activity == CPU_HALTED) {
        if (!nmi_deliverable(c))
            return STOP_HLT;
        c->s.activity = CPU_RUNNING;
    }
    return st;
}

/* Makes the calling thread the one that runs the vCPU: signals go to it. */
static void adopt(struct kvm_cpu *c)
{
    pid_t tid = (pid_t)syscall(SYS_gettid);
    sigset_t set;

    if (c->tid == tid)
        return;
    c->tid = tid;
    sigemptyset(&set);
    sigaddset(&set, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int kvm_set_stepping(struct kvm_cpu *c, bool on)
{
    struct kvm_guest_debug d = {.control = on ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0};

    if (!c->stepping && !on)
        return GO_ON;
    c->stepping = on;
    return ioctl(c->fd, KVM_SET_GUEST_DEBUG, &d) ? failed(c, errno, "KVM_SET_GUEST_DEBUG") : GO_ON;
}

enum stop kvm_run(struct vcpu *v)
{
    struct kvm_cpu *c = v->priv;
    uint64_t left = v->budget;
    int st, rc;

    adopt(c);
    rc = kvm_tsc_sync(c);
    if (rc)
        return failed(c, -rc, "its TSC");
    st = v->budget ? GO_ON : kvm_set_stepping(c, false);
    while (st == GO_ON) {
        set_immediate(c, 0);
        st = prepare(c);
        /* KVM steps only from where the vCPU was when it was told; what its emulator does moves the vCPU on. */
        if (st == GO_ON && v->budget)
            st = kvm_set_stepping(c, true);
        if (st == GO_ON)
            st = c->check ? kvm_check_step(c) : kvm_once(c);
        if (st == STOP_BUDGET) {
            v->insns++;
            st = --left ? GO_ON : STOP_BUDGET;
        }
    }
    /* Outside of run() the state is complete: nothing is half done. */
    if (st != STOP_ERROR && st != STOP_SHUTDOWN) {
        int end = kvm_finish(c);

        if (end != GO_ON && end != STOP_BUDGET)
            st = end;
        rc = kvm_settle(c);
        if (rc)
            st = STOP_ERROR;
    }
    return st;
}
