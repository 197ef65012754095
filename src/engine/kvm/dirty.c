/*
 * Dirty pages. The p2m's DIRTY flags are what every engine reports from. Until somebody has fetched them all are set, and
 * KVM logs nothing, which is fastest. From the first fetch on KVM logs, and what it has logged is moved into the p2m before
 * anybody looks: at a fetch, when a slot goes, when the VM leaves this engine.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

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

int kvm_slot_merge(struct vm *vm, struct kvm_slot *s)
{
    struct kvm_vm *k = vm->engine_priv;
    uint64_t n = s->size >> PAGE_SHIFT, first = s->gpa >> PAGE_SHIFT;
    uint64_t *bits = calloc(ALIGN_UP(n, 64) / 64, 8);
    struct kvm_dirty_log log = {.slot = s->id, .dirty_bitmap = bits};
    struct kvm_clear_dirty_log clear = {.slot = s->id, .num_pages = (uint32_t)n, .dirty_bitmap = bits};
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

/* Brings the p2m up to date, and has everything logged from now on. */
static int merge_all(struct vm *vm)
{
    struct kvm_vm *k = vm->engine_priv;
    int rc = 0;

    pthread_mutex_lock(&k->lock);
    k->logging = true;
    for (uint32_t i = 0; i < k->nslots && !rc; i++) {
        struct kvm_slot *s = &k->slot[i];

        if (s->readonly)
            continue;
        if (s->logged) {
            rc = kvm_slot_merge(vm, s);
        } else {
            s->logged = true;
            rc = kvm_slot_set(k, s);
        }
    }
    pthread_mutex_unlock(&k->lock);
    return rc;
}

int kvm_dirty_fetch(struct vm *vm, struct ram *ram, uint64_t *bits_out)
{
    const struct flat_view *view = physmap_view(vm->map);
    int rc = merge_all(vm);

    for (uint32_t i = 0; i < view->n && !rc; i++) {
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
                bits_out[(off + n) / 64] |= BIT((off + n) % 64);
        free(tmp);
    }
    return rc;
}
