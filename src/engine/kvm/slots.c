/* Memory slots that follow the flat view. RAM slots change rarely (a region of RAM or ROM comes, goes or moves, or I/O covers
 * a part of one), and then the vCPUs wait outside of guest code: KVM cannot exchange slots atomically. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm.h"

void kvm_enter(struct kvm_cpu *c)
{
    struct kvm_vm *k = c->vm;

    atomic_store(&c->inside, true);
    while (unlikely(atomic_load(&k->changing))) {
        atomic_store(&c->inside, false);
        pthread_mutex_lock(&k->lock);
        pthread_cond_broadcast(&k->changed);
        while (atomic_load(&k->changing))
            pthread_cond_wait(&k->changed, &k->lock);
        pthread_mutex_unlock(&k->lock);
        atomic_store(&c->inside, true);
    }
}

void kvm_leave(struct kvm_cpu *c)
{
    struct kvm_vm *k = c->vm;

    atomic_store(&c->inside, false);
    if (likely(!atomic_load(&k->changing)))
        return;
    pthread_mutex_lock(&k->lock);
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->lock);
}

/* Waits until no vCPU is in guest code. Lock held, until start(). */
static void stop(struct vm *vm)
{
    struct kvm_vm *k = vm->engine_priv;

    atomic_store(&k->changing, true);
    for (uint32_t i = 0; i < vm->nvcpu; i++) {
        struct kvm_cpu *c = vm->vcpu[i]->priv;

        while (c && atomic_load(&c->inside)) {
            kvm_kick(vm->vcpu[i]);
            pthread_cond_wait(&k->changed, &k->lock);
        }
    }
}

static void start(struct kvm_vm *k)
{
    atomic_store(&k->changing, false);
    pthread_cond_broadcast(&k->changed);
}

int kvm_slot_set(struct kvm_vm *k, const struct kvm_slot *s)
{
    struct kvm_userspace_memory_region r = {
        .slot = s->id,
        .flags = (s->readonly ? KVM_MEM_READONLY : 0) | (s->logged ? KVM_MEM_LOG_DIRTY_PAGES : 0),
        .guest_phys_addr = s->gpa,
        .memory_size = s->size,
        .userspace_addr = (uintptr_t)s->host,
    };

    return ioctl(k->fd, KVM_SET_USER_MEMORY_REGION, &r) ? -errno : 0;
}

static bool same(const struct kvm_slot *a, const struct kvm_slot *b)
{
    return a->gpa == b->gpa && a->size == b->size && a->host == b->host &&
           a->readonly == b->readonly;
}

/* The slot of a range's whole pages; the p2m leaves the others to I/O, too. */
static bool slot_of(const struct flat_range *r, struct kvm_slot *s)
{
    uint64_t first = ALIGN_UP(r->start, PAGE_SIZE), end = ALIGN_DOWN(r->end + 1, PAGE_SIZE);

    if (r->kind == REGION_IO || end <= first)
        return false;
    *s = (struct kvm_slot){.gpa = first,
                           .size = end - first,
                           .host = physmap_host(r, first),
                           .readonly = r->kind == REGION_ROM};
    return true;
}

static uint32_t free_id(const struct kvm_slot *s, uint32_t n)
{
    for (uint32_t id = 0;; id++) {
        uint32_t i = 0;

        while (i < n && s[i].id != id)
            i++;
        if (i == n)
            return id;
    }
}

/* Fills now[] with the view's slots, which get the ids of those that stay as they are; true if any differs. */
static bool compare(const struct kvm_vm *k, const struct flat_view *view, struct kvm_slot *now,
                    uint32_t *n)
{
    bool differ = false;
    uint32_t kept = 0;

    *n = 0;
    for (uint32_t i = 0; i < view->n; i++) {
        struct kvm_slot *s = &now[*n];
        uint32_t j = 0;

        if (!slot_of(&view->r[i], s))
            continue;
        while (j < k->nslots && !same(s, &k->slot[j]))
            j++;
        s->id = j < k->nslots ? k->slot[j].id : UINT32_MAX;
        s->logged = j < k->nslots ? k->slot[j].logged : false;
        differ |= j == k->nslots;
        kept += j < k->nslots;
        ++*n;
    }
    return differ || kept != k->nslots;
}

/* Removes the slots that are not in now[], then adds those without an id. The vCPUs stand. */
static int exchange(struct vm *vm, struct kvm_slot *now, uint32_t n)
{
    struct kvm_vm *k = vm->engine_priv;
    int rc = kvm_dirty_collect(vm), err;

    for (uint32_t i = 0; i < k->nslots; i++) {
        struct kvm_slot old = k->slot[i];
        uint32_t j = 0;

        while (j < n && !same(&old, &now[j]))
            j++;
        if (j < n)
            continue;
        old.size = 0;
        err = kvm_slot_set(k, &old);
        rc = rc ? rc : err;
    }
    for (uint32_t j = 0; j < n; j++) {
        if (now[j].id != UINT32_MAX)
            continue;
        now[j].id = free_id(now, n);
        now[j].logged = !now[j].readonly &&
                        (k->logging || kvm_dirty_wanted(vm, now[j].gpa, now[j].size));
        k->logging |= now[j].logged;
        err = now[j].id < k->max_slots ? kvm_slot_set(k, &now[j]) : -ENOSPC;
        rc = rc ? rc : err;
    }
    free(k->slot);
    k->slot = now;
    k->nslots = n;
    return rc;
}

static int update(struct vm *vm, const struct flat_view *view)
{
    struct kvm_vm *k = vm->engine_priv;
    struct kvm_slot *now = calloc(view->n + 1, sizeof(*now));
    uint32_t n;
    int rc = 0;

    if (!now)
        return -ENOMEM;
    pthread_mutex_lock(&k->lock);
    if (compare(k, view, now, &n)) {
        stop(vm);
        rc = exchange(vm, now, n);
        start(k);
    } else {
        free(now);
    }
    pthread_mutex_unlock(&k->lock);
    return rc;
}

int kvm_map_changed(struct vm *vm, const struct flat_view *view)
{
    int rc = vm->engine_priv ? update(vm, view) : 0;

    if (rc)
        log_msg(vm->trace->log, LOG_ERROR, "kvm: cannot follow the memory map: %s", strerror(-rc));
    return rc;
}

int kvm_slots_init(struct vm *vm, struct err *e)
{
    int rc = update(vm, physmap_view(vm->map));

    return rc ? err_set(e, -rc, "KVM takes no memory: %s", strerror(-rc)) : 0;
}
