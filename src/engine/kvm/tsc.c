/*
 * The time stamp counter. Guests read the hardware's, so it must be that of the machine: clock_tsc() plus the vCPU's offset. The
 * machine's clock follows the host's TSC (engine_demands.counter_khz), so one number relates the two until the clock is
 * stopped or set; all vCPUs use the same, and so agree to the tick.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "cpu/msr.h"
#include "engine/kvm/kvm.h"

#define TRIES 5

static int attr(struct kvm_cpu *c, unsigned long what, uint64_t *offset)
{
    struct kvm_device_attr a = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset};

    return ioctl(c->fd, what, &a) ? -errno : 0;
}

static int tsc_msr(struct kvm_cpu *c, unsigned long what, uint64_t *tsc)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry e;
    } m = {.head.nmsrs = 1, .e = {.index = MSR_TSC, .data = *tsc}};

    if (ioctl(c->fd, what, &m) != 1)
        return -EIO;
    *tsc = m.e.data;
    return 0;
}

/* What the hardware shows with an offset of 0 at the moment `*counter` of the host's TSC. How it scales exactly is the hardware's
 * affair: it is measured, as well as can be. */
static int hardware(struct kvm_cpu *c, uint64_t *counter, uint64_t *tsc)
{
    uint64_t best = UINT64_MAX, offset = 0;
    int rc;

    if (!c->vm->tsc_scaling) {
        *counter = *tsc = __rdtsc();
        return 0;
    }
    rc = attr(c, KVM_GET_DEVICE_ATTR, &offset);
    for (unsigned i = 0; i < TRIES && !rc; i++) {
        uint64_t before = __rdtsc(), now = 0, after;

        rc = tsc_msr(c, KVM_GET_MSRS, &now);
        after = __rdtsc();
        if (!rc && after - before < best) {
            best = after - before;
            *counter = before + best / 2;
            *tsc = now - offset;
        }
    }
    return rc;
}

/* The number that relates the two. */
static int base(struct kvm_cpu *c, uint64_t *out)
{
    struct kvm_vm *k = c->vm;
    const struct clock *clock = c->v->vm->clock;
    uint64_t counter = 0, tsc = 0;
    int rc = 0;

    pthread_mutex_lock(&k->lock);
    if (!k->tsc_known || k->tsc_changes != clock_changes(clock)) {
        rc = hardware(c, &counter, &tsc);
        if (!rc) {
            k->tsc_changes = clock_changes(clock);
            k->tsc_base = clock_tsc_at(clock, counter) - tsc;
            k->tsc_known = true;
        }
    }
    *out = k->tsc_base;
    pthread_mutex_unlock(&k->lock);
    return rc;
}

/*
 * Before Linux 5.16: as near as writing the register gets. What is within a second of what KVM expects it takes for an attempt
 * to synchronise, and goes on with the offset it has: right for all vCPUs but the first, and wrong if the clock has been stopped
 * for less. So the first writes something far away before.
 */
static int sync_by_msr(struct kvm_cpu *c)
{
    const struct clock *clock = c->v->vm->clock;
    uint32_t changes = clock_changes(clock);
    struct kvm_vm *k = c->vm;
    uint64_t tsc;
    int rc = 0;

    if (c->tsc_given && c->tsc_changes == changes && c->tsc_offset == c->s.tsc_offset)
        return 0;
    pthread_mutex_lock(&k->lock);
    if (!k->tsc_known || k->tsc_changes != changes || k->tsc_base != c->s.tsc_offset) {
        tsc = (clock_tsc(clock) + c->s.tsc_offset) ^ BIT(62);
        rc = tsc_msr(c, KVM_SET_MSRS, &tsc);
    }
    tsc = clock_tsc(clock) + c->s.tsc_offset;
    if (!rc)
        rc = tsc_msr(c, KVM_SET_MSRS, &tsc);
    if (!rc) {
        k->tsc_known = true;
        k->tsc_changes = c->tsc_changes = changes;
        k->tsc_base = c->tsc_offset = c->s.tsc_offset; /* the last that was written */
        c->tsc_given = true;
    }
    pthread_mutex_unlock(&k->lock);
    return rc;
}

int kvm_tsc_init(struct kvm_cpu *c, struct err *e)
{
    struct kvm_device_attr offset = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
    const struct clock *clock = c->v->vm->clock;
    struct kvm_vm *k = c->vm;
    int khz = ioctl(c->fd, KVM_GET_TSC_KHZ, 0);
    bool follows = khz > 0 && clock->counter_khz == (uint64_t)khz;

    if (!atomic_load(&clock->stepped) &&
        (!follows || (!k->tsc_scaling && clock->tsc_khz != (uint64_t)khz)))
        return err_set(e, EINVAL, "the guest's clock is not one that KVM can show it here");
    k->tsc_offset_attr = !ioctl(c->fd, KVM_HAS_DEVICE_ATTR, &offset);
    if (k->tsc_scaling && ioctl(c->fd, KVM_SET_TSC_KHZ, clock->tsc_khz))
        return err_sys(e, "KVM_SET_TSC_KHZ");
    return 0;
}

int kvm_tsc_sync(struct kvm_cpu *c)
{
    uint64_t offset;
    int rc;

    if (!c->vm->tsc_offset_attr)
        return sync_by_msr(c);
    rc = base(c, &offset);
    offset += c->s.tsc_offset;
    if (rc || (c->tsc_given && offset == c->tsc_offset))
        return rc;
    c->tsc_offset = offset;
    c->tsc_given = true;
    return attr(c, KVM_SET_DEVICE_ATTR, &offset);
}
