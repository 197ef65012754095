/*
 * Dirty pages. The p2m's DIRTY flags are what every engine reports from. Until somebody has fetched
 * them all are set, and KVM logs nothing, which is fastest. From the first fetch on KVM logs, in
 * one of two ways (struct kvm_dirty_ops), and what it has logged is moved into the p2m before
 * anybody looks: at a fetch, when a slot goes, when the VM leaves this engine.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kvm/kvm.h"

bool kvm_dirty_wanted(struct vm *vm, uint64_t gpa, uint64_t size)
{
    const struct p2m *p = physmap_p2m(vm->map);

    for (uint64_t at = gpa; at < gpa + size; at += PAGE_SIZE) {
        uint64_t e = p2m_get(p, at >> PAGE_SHIFT);

        if ((e & P2M_PRESENT) && !(e & P2M_DIRTY))
            return true;
    }
    return false;
}

/* For frames of which nobody knows any more. */
static void mark_all(struct vm *vm)
{
    const struct kvm_vm *k = vm->engine_priv;

    for (uint32_t i = 0; i < k->nslots; i++)
        for (uint64_t at = 0; k->slot[i].logged && at < k->slot[i].size; at += PAGE_SIZE)
            p2m_set_flags(physmap_p2m(vm->map), (k->slot[i].gpa + at) >> PAGE_SHIFT, P2M_DIRTY);
}

int kvm_dirty_collect(struct vm *vm)
{
    struct kvm_vm *k = vm->engine_priv;
    int rc = k->logging ? k->dirty->collect(vm) : 0;

    if (rc)
        mark_all(vm);
    return rc;
}

/* Has everything logged from now on. */
static int log_all(struct kvm_vm *k)
{
    int rc = 0;

    k->logging = true;
    for (uint32_t i = 0; i < k->nslots && !rc; i++) {
        struct kvm_slot *s = &k->slot[i];

        if (s->readonly || s->logged)
            continue;
        s->logged = true;
        rc = kvm_slot_set(k, s);
        s->logged = !rc;
    }
    return rc;
}

/* The p2m's flags of ram's frames, wherever the view has it. */
static int report(struct vm *vm, struct ram *ram, uint64_t *bits)
{
    const struct flat_view *view = physmap_view(vm->map);

    for (uint32_t i = 0; i < view->n; i++) {
        const struct flat_range *r = &view->r[i];
        uint64_t first = ALIGN_UP(r->start, PAGE_SIZE) >> PAGE_SHIFT;
        uint64_t end = (r->end + 1) >> PAGE_SHIFT, off, *tmp;

        if (r->kind == REGION_IO || r->region->ram != ram || end <= first)
            continue;
        off = (uint64_t)(physmap_host(r, first << PAGE_SHIFT) - ram->host) >> PAGE_SHIFT;
        tmp = calloc((end - first + 63) / 64, sizeof(*tmp));
        if (!tmp)
            return -ENOMEM;
        p2m_dirty_fetch(physmap_p2m(vm->map), first, end - first, tmp);
        for (uint64_t n = 0; n < end - first; n++)
            if (tmp[n / 64] >> (n % 64) & 1)
                bits[(off + n) / 64] |= BIT((off + n) % 64);
        free(tmp);
    }
    return 0;
}

/* The lock is held to the end: a frame whose flag another thread has set, but which KVM does not
 * protect again yet, must not be reported as all that was written. */
int kvm_dirty_fetch(struct vm *vm, struct ram *ram, uint64_t *bits)
{
    struct kvm_vm *k = vm->engine_priv;
    int rc;

    pthread_mutex_lock(&k->lock);
    rc = kvm_dirty_collect(vm);
    if (!rc)
        rc = log_all(k);
    if (!rc)
        rc = report(vm, ram, bits);
    pthread_mutex_unlock(&k->lock);
    return rc;
}

int kvm_dirty_full(struct kvm_cpu *c)
{
    int rc;

    pthread_mutex_lock(&c->vm->lock);
    rc = kvm_dirty_collect(c->v->vm);
    pthread_mutex_unlock(&c->vm->lock);
    return rc;
}

int kvm_dirty_init(struct vm *vm, const struct kvm_dirty_ops *ops, uint32_t entries, struct err *e)
{
    struct kvm_vm *k = vm->engine_priv;
    int rc;

    k->dirty = ops;
    rc = ops->vm_init(k, entries);
    return rc ? err_set(e, -rc, "KVM's dirty %s: %s", ops->name, strerror(-rc)) : 0;
}
