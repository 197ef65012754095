/*
 * What the old engine keeps in struct vm and struct vcpu is taken out, the new one is made in its place and given every
 * vCPU's state, and only then is one of the two unmade: the old one, or the new one if any of that failed. Whatever else
 * belongs to a vCPU (its APIC, posted events) is not the engine's and stays where it is.
 *
 * Code that was translated or decoded does not survive: the old engine forgets all of it, the new one begins without any,
 * so that stores into code need no thought here.
 */
#include "engine/change.h"

#include <errno.h>
#include <stdlib.h>

/* One engine's data, and the vCPUs' states on their way. */
struct change {
    void *vm;
    struct {
        void *priv;
        struct cpu_state s;
    } vcpu[];
};

static void swap(void **a, void **b)
{
    void *was = *a;

    *a = *b;
    *b = was;
}

/* Puts c's data into the VM and what was there into c. */
static void exchange(struct vm *vm, struct change *c)
{
    swap(&vm->engine_priv, &c->vm);
    for (uint32_t i = 0; i < vm->nvcpu; i++)
        swap(&vm->vcpu[i]->priv, &c->vcpu[i].priv);
}

/* Unmakes the engine's data in the VM, which the first n vCPUs have. */
static void unmake(struct vm *vm, const struct engine_ops *engine, uint32_t n)
{
    while (n-- > 0)
        engine->vcpu_fini(vm->vcpu[n]);
    engine->vm_fini(vm);
}

/* Makes the engine's data in a VM that has none. */
static int make(struct vm *vm, const struct engine_ops *engine, const struct change *c, struct err *e)
{
    int rc = engine->vm_init(vm, e);
    uint32_t n = 0;

    if (rc)
        return rc;
    while (n < vm->nvcpu && !rc) {
        rc = engine->vcpu_init(vm->vcpu[n], e);
        n += !rc;
    }
    for (uint32_t i = 0; i < vm->nvcpu && !rc; i++) {
        rc = engine->set_state(vm->vcpu[i], &c->vcpu[i].s);
        if (rc)
            err_set(e, -rc, "refuses the state of vCPU %u: %s", i, vm->vcpu[i]->error.msg);
    }
    if (rc)
        unmake(vm, engine, n);
    return rc;
}

/* The old engine's data is back in the VM, the new one's in c, when this fails; else c has nothing any more. */
static int replace(struct vm *vm, const struct engine_ops *from, const struct engine_ops *to, struct change *c,
                   struct err *e)
{
    int rc;

    exchange(vm, c);
    rc = make(vm, to, c, e);
    exchange(vm, c);
    if (rc)
        return rc;
    unmake(vm, from, vm->nvcpu);
    exchange(vm, c);
    return 0;
}

static int get_states(struct vm *vm, const struct engine_ops *from, struct change *c, struct err *e)
{
    for (uint32_t i = 0; i < vm->nvcpu; i++) {
        int rc = from->get_state(vm->vcpu[i], &c->vcpu[i].s);

        if (rc)
            return err_set(e, -rc, "engine %s cannot give the state of vCPU %u: %s", from->name, i,
                           vm->vcpu[i]->error.msg);
    }
    return 0;
}

int engine_change(struct vm *vm, const struct engine_ops *from, const struct engine_ops *to, struct err *e)
{
    struct change *c = calloc(1, sizeof(*c) + vm->nvcpu * sizeof(c->vcpu[0]));
    int rc = c ? get_states(vm, from, c, e) : err_set(e, ENOMEM, "no memory");

    if (rc) {
        free(c);
        return rc;
    }
    for (uint32_t i = 0; i < vm->nvcpu; i++)
        vcpu_detach(vm->vcpu[i]);
    rc = replace(vm, from, to, c, e);
    free(c);
    for (uint32_t i = 0; i < vm->nvcpu; i++) {
        struct vcpu *v = vm->vcpu[i];

        /* Stopping vCPUs is over, and an interrupt that the old engine was told of and could not deliver yet is news
         * to the new one. */
        atomic_fetch_and(&v->events, ~(uint32_t)VCPU_EV_FLUSH);
        atomic_store(&v->engine, rc ? from : to);
        vcpu_post(v, VCPU_EV_INTR);
    }
    return rc ? err_prefix(e, rc, "engine %s", to->name) : 0;
}
