/* What KVM can offer of a processor, and telling it the machine's policy. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine/kvm/kvm.h"

#define MSR_ARCH_CAPABILITIES 0x10au

/* With room for n entries. */
static struct kvm_cpuid2 *cpuid_new(uint32_t n)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + n * sizeof(c->entries[0]));

    if (c)
        c->nent = n;
    return c;
}

/* A guest of KVM runs on the silicon: what that says of its weaknesses holds. */
static uint64_t arch_capabilities(int sys)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry e;
    } m = {.head.nmsrs = 1, .e.index = MSR_ARCH_CAPABILITIES};

    return ioctl(sys, KVM_GET_MSRS, &m) == 1 ? m.e.data : 0;
}

int kvm_cpuid_limit(int sys, struct cpuid_limit *l, struct err *e)
{
    struct kvm_cpuid2 *c = cpuid_new(CPUID_LIMIT_MAX);
    int rc = 0;

    if (!c)
        return err_set(e, ENOMEM, "no memory");
    if (ioctl(sys, KVM_GET_SUPPORTED_CPUID, c))
        rc = err_sys(e, "KVM_GET_SUPPORTED_CPUID");
    l->n = 0;
    for (uint32_t i = 0; !rc && i < MIN(c->nent, CPUID_LIMIT_MAX); i++) {
        const struct kvm_cpuid_entry2 *x = &c->entries[i];

        l->leaf[l->n++] = (struct cpuid_leaf){
            .leaf = x->function,
            .subleaf = x->index,
            .eax = x->eax,
            .ebx = x->ebx,
            .ecx = x->ecx,
            .edx = x->edx,
            .any_subleaf = !(x->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        };
    }
    l->arch_capabilities = arch_capabilities(sys);
    l->no_deadline = !kvm_sees_deadline(sys);
    free(c);
    return rc;
}

/* The rate of the TSC that KVM gives to guests by itself, which is the host's; 0 if it does not tell. */
static uint64_t host_tsc_khz(int sys)
{
    int vm = ioctl(sys, KVM_CREATE_VM, 0), cpu, khz = 0;

    if (vm < 0)
        return 0;
    cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (cpu >= 0) {
        khz = ioctl(cpu, KVM_GET_TSC_KHZ, 0);
        close(cpu);
    }
    close(vm);
    return khz > 0 ? (uint64_t)khz : 0;
}

int kvm_demand(struct engine_demands *d, struct err *e)
{
    int sys = open("/dev/kvm", O_RDWR | O_CLOEXEC), rc;
    uint64_t khz;

    if (sys < 0)
        return err_sys(e, "/dev/kvm");
    rc = kvm_cpuid_limit(sys, d->limit, e);
    if (rc)
        goto out;
    khz = host_tsc_khz(sys);
    if (!khz) {
        rc = err_set(e, ENOTSUP, "KVM does not tell the rate of the TSC");
        goto out;
    }
    d->limited = true;
    d->counter_khz = khz;
    if (ioctl(sys, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) <= 0)
        d->tsc_khz = khz;
out:
    close(sys);
    return rc;
}

int kvm_set_cpuid(struct kvm_cpu *c, struct err *e)
{
    const struct cpuid_policy *p = c->v->vm->cpuid;
    struct kvm_cpuid2 *k = cpuid_new(p->n);
    /* KVM itself follows CR4, XCR0 and the APIC's enable bit; SYSCALL is to be seen. */
    static const struct cpu_state in_64_bit_mode = {
        .efer = EFER_LMA, .seg[CS].attr = SEG_L, .xcr0 = XCR0_X87};
    int rc = 0;

    if (!k)
        return err_set(e, ENOMEM, "no memory");
    for (uint32_t i = 0; i < p->n; i++) {
        const struct cpuid_leaf *l = &p->leaf[i];
        uint32_t r[4];

        cpuid_query(p, &in_64_bit_mode, c->v->index, true, l->leaf, l->subleaf, r);
        k->entries[i] = (struct kvm_cpuid_entry2){
            .function = l->leaf,
            .index = l->subleaf,
            .flags = l->any_subleaf ? 0 : KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            .eax = r[0],
            .ebx = r[1],
            .ecx = r[2],
            .edx = r[3],
        };
    }
    if (ioctl(c->fd, KVM_SET_CPUID2, k))
        rc = err_sys(e, "KVM_SET_CPUID2");
    free(k);
    return rc;
}
