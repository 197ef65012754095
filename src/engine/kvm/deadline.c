/*
 * Who sees a guest's write of IA32_TSC_DEADLINE? Where the processor has a timer for KVM's own APIC, KVM answers that write
 * before it looks at the MSR filter, also without such an APIC: the write is lost, and with it the guest's timer. Then the
 * register must not be offered. Which KVMs do so depends on processor and version, so it is tried.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/state.h"
#include "engine/kvm/kvm.h"

#define MSR_TSC_DEADLINE 0x6e0u
#define TSC_DEADLINE BIT(24) /* CPUID leaf 1, ECX */
#define TRIES 8

/* In real mode, at 0: mov ecx, 6E0h; xor eax, eax; xor edx, edx; wrmsr; hlt */
static const uint8_t code[] = {0x66, 0xb9, 0xe0, 0x06, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30, 0xf4};

static bool prepare(const struct kvm_vm *k, int cpu, const uint8_t *page)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 e;
    } id = {.head.nent = 1, .e = {.function = 1, .ecx = TSC_DEADLINE}};
    struct kvm_userspace_memory_region memory = {.memory_size = PAGE_SIZE, .userspace_addr = (uintptr_t)page};
    struct kvm_regs regs = {.rflags = FL_R1};
    struct kvm_sregs sregs;

    if (ioctl(k->fd, KVM_SET_USER_MEMORY_REGION, &memory) || ioctl(cpu, KVM_SET_CPUID2, &id) ||
        ioctl(cpu, KVM_GET_SREGS, &sregs))
        return false;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    return !ioctl(cpu, KVM_SET_SREGS, &sregs) && !ioctl(cpu, KVM_SET_REGS, &regs);
}

static bool asks(int cpu, const struct kvm_run *r)
{
    int rc = -1;

    for (unsigned i = 0; i < TRIES && rc; i++) {
        rc = ioctl(cpu, KVM_RUN, 0);
        if (rc && errno != EINTR && errno != EAGAIN)
            return false;
    }
    return !rc && r->exit_reason == KVM_EXIT_X86_WRMSR && r->msr.index == MSR_TSC_DEADLINE;
}

bool kvm_sees_deadline(int sys)
{
    int size = ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0), cpu = -1;
    struct kvm_vm k = {.sys = sys, .fd = ioctl(sys, KVM_CREATE_VM, 0)};
    struct kvm_run *r = MAP_FAILED;
    uint8_t *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool sees = false;

    if (page == MAP_FAILED || k.fd < 0 || size < (int)sizeof(*r) || kvm_msrs_init(&k, NULL))
        goto out;
    memcpy(page, code, sizeof(code));
    cpu = ioctl(k.fd, KVM_CREATE_VCPU, 0);
    if (cpu >= 0)
        r = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    sees = r != MAP_FAILED && prepare(&k, cpu, page) && asks(cpu, r);
out:
    if (r != MAP_FAILED)
        munmap(r, (size_t)size);
    if (cpu >= 0)
        close(cpu);
    if (k.fd >= 0)
        close(k.fd);
    if (page != MAP_FAILED)
        munmap(page, PAGE_SIZE);
    return sees;
}
