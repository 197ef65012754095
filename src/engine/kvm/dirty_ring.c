/*
 * Dirty pages as a ring for each vCPU, into which KVM puts a page when the vCPU first writes it
 * (Documentation/virt/kvm/api.rst, "KVM_CAP_DIRTY_LOG_RING"). A fetch costs something for every
 * page written, and a vCPU whose ring is full has to leave the guest. Whoever holds the VM's lock
 * takes entries out of all rings.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "engine/kvm/kvm.h"

/* The one with acquire and release came later (Linux 6.1), and x86 has both then. */
static int ring_vm_init(struct kvm_vm *k, uint32_t entries)
{
    static const int caps[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};

    for (unsigned i = 0; i < ARRAY_LEN(caps); i++) {
        struct kvm_enable_cap cap = {.cap = (uint32_t)caps[i],
                                     .args[0] = entries * sizeof(struct kvm_dirty_gfn)};
        int most = ioctl(k->fd, KVM_CHECK_EXTENSION, (long)caps[i]);

        if (most <= 0)
            continue;
        cap.args[0] = MIN(cap.args[0], (uint64_t)most);
        if (ioctl(k->fd, KVM_ENABLE_CAP, &cap))
            return -errno;
        k->ring_entries = (uint32_t)(cap.args[0] / sizeof(struct kvm_dirty_gfn));
        return 0;
    }
    return -ENOTSUP;
}

static int ring_vcpu_init(struct kvm_cpu *c)
{
    void *ring = mmap(NULL, c->vm->ring_entries * sizeof(*c->ring), PROT_READ | PROT_WRITE,
                      MAP_SHARED, c->fd, (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);

    if (ring == MAP_FAILED)
        return -errno;
    c->ring = ring;
    return 0;
}

static void mark(struct vm *vm, uint32_t slot, uint64_t offset)
{
    const struct kvm_vm *k = vm->engine_priv;

    for (uint32_t i = 0; i < k->nslots; i++)
        if (k->slot[i].id == slot && offset < k->slot[i].size >> PAGE_SHIFT)
            p2m_set_flags(physmap_p2m(vm->map), (k->slot[i].gpa >> PAGE_SHIFT) + offset, P2M_DIRTY);
}

/* Takes out what there is; KVM protects these pages again when it is told to. True if there was
 * any. */
static bool harvest(struct vm *vm, struct kvm_cpu *c)
{
    uint32_t begin = c->ring_next;

    for (;;) {
        struct kvm_dirty_gfn *g = &c->ring[c->ring_next % c->vm->ring_entries];

        if (__atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
            return c->ring_next != begin;
        mark(vm, g->slot, g->offset);
        __atomic_store_n(&g->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        c->ring_next++;
    }
}

static int ring_collect(struct vm *vm)
{
    struct kvm_vm *k = vm->engine_priv;
    bool any = false;

    for (uint32_t i = 0; i < vm->nvcpu; i++) {
        struct kvm_cpu *c = vm->vcpu[i]->priv;

        if (c && c->ring)
            any |= harvest(vm, c);
    }
    return any && ioctl(k->fd, KVM_RESET_DIRTY_RINGS, 0) < 0 ? -errno : 0;
}

/* The vCPU is gone before its VM, and nobody protects anything again. */
static void ring_vcpu_fini(struct kvm_cpu *c)
{
    if (!c->ring)
        return;
    pthread_mutex_lock(&c->vm->lock);
    harvest(c->v->vm, c);
    munmap(c->ring, c->vm->ring_entries * sizeof(*c->ring));
    c->ring = NULL;
    pthread_mutex_unlock(&c->vm->lock);
}

const struct kvm_dirty_ops kvm_dirty_ring = {
    .name = "ring",
    .vm_init = ring_vm_init,
    .vcpu_init = ring_vcpu_init,
    .vcpu_fini = ring_vcpu_fini,
    .collect = ring_collect,
};
