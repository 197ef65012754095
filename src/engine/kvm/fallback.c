/*
 * What KVM cannot do itself our interpreter does: an instruction that KVM's emulator does not know, the delivery of an event that
 * KVM took and did not finish, a debug trap that struct cpu_state carries and KVM cannot. It works on the same
 * memory and environment, as a vCPU of its own that exists from the first use on and knows nothing from one use to the next.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/kvm/fallback.h"
#include "engine/kvm/kvm.h"

/* Events that settling delivers at most: each brings the vCPU nearer to a triple fault, if not to an end. */
#define SETTLE_MAX 8u

static bool no_irq(struct vcpu *v) { return false; }

void kvm_fallback_free(struct kvm_fallback *f)
{
    if (!f)
        return;
    if (f->v.priv)
        interp_vcpu_fini(&f->v);
    interp_vm_fini(&f->vm);
    free(f);
}

struct kvm_fallback *kvm_fallback_new(const struct vcpu *v, const struct cpu_env *env, struct err *e)
{
    struct kvm_fallback *f = calloc(1, sizeof(*f));

    if (!f) {
        err_set(e, ENOMEM, "no memory");
        return NULL;
    }
    f->env = *env;
    f->env.irq_pending = no_irq; /* interrupts are KVM's to take */
    f->list = &f->v;
    f->vm = (struct vm){.env = &f->env,
                        .map = v->vm->map,
                        .clock = v->vm->clock,
                        .cpuid = v->vm->cpuid,
                        .trace = v->vm->trace,
                        .vcpu = &f->list,
                        .nvcpu = 1,
                        .owner = v->vm->owner};
    f->v = (struct vcpu){
        .vm = &f->vm, .index = v->index, .engine = &interp_engine, .owner = v->owner, .budget = 1};
    if (interp_vm_init(&f->vm, e) || interp_vcpu_init(&f->v, e)) {
        kvm_fallback_free(f);
        return NULL;
    }
    return f;
}

struct event kvm_event(const struct kvm_vcpu_events *ev)
{
    if (ev->exception.injected)
        return (struct event){.kind = ev->exception.nr == X_DB ? EV_TRAP : EV_FAULT,
                              .vector = ev->exception.nr,
                              .error = ev->exception.has_error_code ? ev->exception.error_code : 0};
    if (ev->nmi.injected)
        return (struct event){.kind = EV_NMI_INT, .vector = X_NMI};
    return (struct event){.kind = EV_EXT_INT, .vector = ev->interrupt.nr};
}

enum stop kvm_interpret(struct kvm_cpu *c)
{
    struct kvm_fallback *f = c->fallback;
    struct kvm_vcpu_events ev;
    struct cpu_state *s = &c->scratch;
    enum stop st;
    int rc;

    if (!f)
        f = c->fallback = kvm_fallback_new(c->v, c->v->vm->env, &c->v->error);
    if (!f)
        return STOP_ERROR;
    rc = kvm_read_state(c, s);
    if (!rc)
        rc = interp_set_state(&f->v, s);
    if (rc) {
        if (rc != -EINVAL || !f->v.error.msg[0])
            err_set(&c->v->error, -rc, "cannot read KVM's state");
        else
            c->v->error = f->v.error;
        return STOP_ERROR;
    }
    if (kvm_in_delivery(c, &ev)) {
        struct cpu *x = f->v.priv;

        x->event = kvm_event(&ev);
        x->deliver = true;
        s->activity = CPU_RUNNING;
    }
    do
        st = interp_run(&f->v);
    while (st == STOP_PAUSE);
    if (st == STOP_KICK) { /* the environment kicked the vCPU that it was called with */
        atomic_fetch_or(&c->v->events, VCPU_EV_KICK);
        st = STOP_BUDGET;
    }
    interp_get_state(&f->v, s);
    interp_map_changed(&f->vm, physmap_view(f->vm.map)); /* other agents' stores are not tracked: no code is kept */
    return kvm_write_state(c, s) || kvm_tsc_sync(c) ? STOP_ERROR : st;
}

int kvm_settle(struct kvm_cpu *c)
{
    struct kvm_vcpu_events ev;

    for (unsigned i = 0; i < SETTLE_MAX && kvm_in_delivery(c, &ev); i++)
        if (kvm_interpret(c) == STOP_ERROR)
            return -EIO;
    return 0;
}
