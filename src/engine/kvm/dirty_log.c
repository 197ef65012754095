/* Dirty pages as a bitmap for each slot: costs nothing until it is fetched, and then something for
 * every page that there is. */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm.h"

/* Where KVM can, it protects pages again when we say, and not all of a slot while vCPUs wait for
 * it. */
static int log_vm_init(struct kvm_vm *k, uint32_t entries)
{
    struct kvm_enable_cap manual = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                                    .args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE};

    k->manual_protect = ioctl(k->fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) > 0 &&
                        !ioctl(k->fd, KVM_ENABLE_CAP, &manual);
    return 0;
}

static int merge(struct vm *vm, const struct kvm_slot *s)
{
    struct kvm_vm *k = vm->engine_priv;
    uint64_t n = s->size >> PAGE_SHIFT, first = s->gpa >> PAGE_SHIFT;
    uint64_t *bits = calloc(ALIGN_UP(n, 64) / 64, 8);
    struct kvm_dirty_log log = {.slot = s->id, .dirty_bitmap = bits};
    struct kvm_clear_dirty_log clear = {
        .slot = s->id, .num_pages = (uint32_t)n, .dirty_bitmap = bits};
    int rc = 0;

    if (!bits)
        return -ENOMEM;
    if (ioctl(k->fd, KVM_GET_DIRTY_LOG, &log) ||
        (k->manual_protect && ioctl(k->fd, KVM_CLEAR_DIRTY_LOG, &clear)))
        rc = -errno;
    for (uint64_t w = 0; !rc && w < (n + 63) / 64; w++)
        for (uint64_t b = bits[w]; b; b &= b - 1)
            p2m_set_flags(physmap_p2m(vm->map), first + w * 64 + (unsigned)__builtin_ctzll(b),
                          P2M_DIRTY);
    free(bits);
    return rc;
}

static int log_collect(struct vm *vm)
{
    const struct kvm_vm *k = vm->engine_priv;
    int rc = 0;

    for (uint32_t i = 0; i < k->nslots && !rc; i++)
        if (k->slot[i].logged)
            rc = merge(vm, &k->slot[i]);
    return rc;
}

static int log_vcpu_init(struct kvm_cpu *c) { return 0; }
static void log_vcpu_fini(struct kvm_cpu *c) {}

const struct kvm_dirty_ops kvm_dirty_log = {
    .name = "log",
    .vm_init = log_vm_init,
    .vcpu_init = log_vcpu_init,
    .vcpu_fini = log_vcpu_fini,
    .collect = log_collect,
};
