/*
 * MSRs. KVM keeps those that change how instructions execute; every other access of the guest comes to us (a filter
 * that denies by default), where src/cpu/msr.c and the machine answer as they do for every engine.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpu/msr.h"
#include "engine/kvm/kvm.h"

#define MSR_APIC_BASE 0x1bu

static const struct {
    uint32_t msr;
    uint32_t off; /* in struct cpu_state */
} owned[] = {
    {MSR_STAR, offsetof(struct cpu_state, star)},
    {MSR_LSTAR, offsetof(struct cpu_state, lstar)},
    {MSR_CSTAR, offsetof(struct cpu_state, cstar)},
    {MSR_SFMASK, offsetof(struct cpu_state, sfmask)},
    {MSR_KERNEL_GS_BASE, offsetof(struct cpu_state, kernel_gs_base)},
    {MSR_TSC_AUX, offsetof(struct cpu_state, tsc_aux)},
    {MSR_SYSENTER_CS, offsetof(struct cpu_state, sysenter_cs)},
    {MSR_SYSENTER_ESP, offsetof(struct cpu_state, sysenter_esp)},
    {MSR_SYSENTER_EIP, offsetof(struct cpu_state, sysenter_eip)},
    {MSR_PAT, offsetof(struct cpu_state, pat)},
    {MSR_SPEC_CTRL, offsetof(struct cpu_state, spec_ctrl)},
};

/* KVM's too, but transferred as segments and with the control registers, or not a register at all. */
static const uint32_t others[] = {MSR_EFER, MSR_FS_BASE, MSR_GS_BASE, MSR_PRED_CMD};

static bool in_list(const struct kvm_msr_list *l, uint32_t msr)
{
    for (uint32_t i = 0; i < l->nmsrs; i++)
        if (l->indices[i] == msr)
            return true;
    return false;
}

static int read_list(struct kvm_vm *k, struct err *e)
{
    struct kvm_msr_list head = {0}, *l;

    if (ioctl(k->sys, KVM_GET_MSR_INDEX_LIST, &head) && errno != E2BIG)
        return err_sys(e, "KVM_GET_MSR_INDEX_LIST");
    l = calloc(1, sizeof(*l) + head.nmsrs * sizeof(l->indices[0]));
    if (!l)
        return err_set(e, ENOMEM, "no memory");
    l->nmsrs = head.nmsrs;
    if (ioctl(k->sys, KVM_GET_MSR_INDEX_LIST, l)) {
        free(l);
        return err_sys(e, "KVM_GET_MSR_INDEX_LIST");
    }
    for (unsigned i = 0; i < ARRAY_LEN(owned); i++)
        k->msr_owned |= (uint64_t)in_list(l, owned[i].msr) << i;
    free(l);
    return 0;
}

/* Is it KVM's to execute? */
static bool is_kvms(const struct kvm_vm *k, uint32_t msr)
{
    for (unsigned i = 0; i < ARRAY_LEN(owned); i++)
        if (owned[i].msr == msr)
            return k->msr_owned >> i & 1;
    for (unsigned i = 0; i < ARRAY_LEN(others); i++)
        if (others[i] == msr)
            return msr != MSR_PRED_CMD || is_kvms(k, MSR_SPEC_CTRL);
    return false;
}

int kvm_msrs_init(struct kvm_vm *k, struct err *e)
{
    static const uint32_t first[] = {MSR_SPEC_CTRL, MSR_SYSENTER_CS, MSR_PAT, MSR_EFER, MSR_FS_BASE};
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args[0] = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN |
                   KVM_MSR_EXIT_REASON_FILTER,
    };
    struct kvm_msr_filter f = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};
    unsigned long allowed[ARRAY_LEN(first)] = {0}; /* KVM reads whole words */
    int rc = read_list(k, e);

    if (rc)
        return rc;
    for (unsigned i = 0; i < ARRAY_LEN(first); i++) {
        for (unsigned b = 0; b < 8; b++)
            allowed[i] |= (unsigned long)is_kvms(k, first[i] + b) << b;
        f.ranges[i] = (struct kvm_msr_filter_range){
            .flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
            .nmsrs = 8,
            .base = first[i],
            .bitmap = (uint8_t *)&allowed[i],
        };
    }
    if (ioctl(k->fd, KVM_ENABLE_CAP, &cap) || ioctl(k->fd, KVM_X86_SET_MSR_FILTER, &f))
        return err_sys(e, "this host's KVM does not leave MSRs to us (Linux 5.10 does)");
    return 0;
}

struct transfer {
    struct kvm_msrs head;
    struct kvm_msr_entry e[ARRAY_LEN(owned)];
};

int kvm_read_msrs(struct kvm_cpu *c, struct cpu_state *s)
{
    struct transfer t = {.head.nmsrs = 0};
    uint32_t n = 0;

    for (unsigned i = 0; i < ARRAY_LEN(owned); i++)
        if (c->vm->msr_owned >> i & 1)
            t.e[t.head.nmsrs++].index = owned[i].msr;
    if (ioctl(c->fd, KVM_GET_MSRS, &t) != (int)t.head.nmsrs)
        return -EIO;
    for (unsigned i = 0; i < ARRAY_LEN(owned); i++)
        if (c->vm->msr_owned >> i & 1)
            memcpy((char *)s + owned[i].off, &t.e[n++].data, 8);
    return 0;
}

int kvm_write_msrs(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct transfer t = {.head.nmsrs = 0};

    for (unsigned i = 0; i < ARRAY_LEN(owned); i++) {
        struct kvm_msr_entry *x = &t.e[t.head.nmsrs];

        if (!(c->vm->msr_owned >> i & 1))
            continue;
        x->index = owned[i].msr;
        memcpy(&x->data, (const char *)s + owned[i].off, 8);
        t.head.nmsrs++;
    }
    return ioctl(c->fd, KVM_SET_MSRS, &t) == (int)t.head.nmsrs ? 0 : -EINVAL;
}

int kvm_exit_rdmsr(struct kvm_cpu *c, uint32_t msr, uint64_t *val)
{
    struct vm *vm = c->v->vm;
    int rc;

    if (is_kvms(c->vm, msr))
        return -EINVAL;
    rc = msr_read(&c->s, vm->cpuid, msr, clock_tsc(vm->clock), val);
    if (rc == -ENOENT)
        rc = vm->env->rdmsr(c->v, msr, val);
    trace(vm->trace, cpu_msr, "vcpu %u: rdmsr %#x = %#llx%s", c->v->index, msr,
          (unsigned long long)*val, rc ? " #GP" : "");
    return rc;
}

int kvm_exit_wrmsr(struct kvm_cpu *c, uint32_t msr, uint64_t val)
{
    struct vm *vm = c->v->vm;
    uint64_t offset = c->s.tsc_offset;
    int rc;

    if (is_kvms(c->vm, msr))
        return -EINVAL;
    rc = msr_write(&c->s, vm->cpuid, msr, clock_tsc(vm->clock), val);
    if (rc == -ENOENT)
        rc = vm->env->wrmsr(c->v, msr, val);
    trace(vm->trace, cpu_msr, "vcpu %u: wrmsr %#x = %#llx%s", c->v->index, msr,
          (unsigned long long)val, rc ? " #GP" : "");
    if (c->s.tsc_offset != offset) {
        if (vm->env->tsc_moved)
            vm->env->tsc_moved(c->v, c->s.tsc_offset);
        kvm_tsc_sync(c);
    }
    if (msr == MSR_APIC_BASE && !rc)
        kvm_sync_apic_base(c);
    return rc;
}
