/* The probe's child process: a VM of one vCPU and 2 MiB that runs probe_guest.S to its end. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/kvm/probe.h"
#include "engine/kvm/probe_child.h"

#define TSS_ADDR 0xfffbd000ul /* what KVM takes for itself on some CPUs: below 4 GiB, far from memory */
#define CPUID_MAX 256u
/* Plain computing in a guest may take this much more CPU time than outside; emulation takes much more. */
#define SLOW_NS 20000000u
#define SLOW_RATIO 100u

#define PTE_P BIT(0)
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_PS BIT(7)

struct kvm {
    int sys, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *mem;
    uint32_t mmio, echo; /* what the guest wrote last */
    bool irq_wanted;
    uint64_t computing; /* CPU time used when the guest began with it */
};

static const char *const step_names[PG_STEPS] = {
    [PG_ENTRY] = "loading segments in long mode",
    [PG_PRIVILEGE] = "reading its privilege level",
    [PG_FLAGS] = "changing its interrupt flag",
    [PG_TABLES] = "reading its descriptor table registers",
    [PG_PAGING] = "mapping pages as it touches them",
    [PG_PROTECTION] = "changing the protection of pages",
    [PG_USER] = "going to user mode and back",
    [PG_IO] = "port I/O",
    [PG_MMIO_STEP] = "MMIO",
    [PG_HALT] = "waiting for interrupts",
    [PG_WINDOW] = "letting interrupts wait",
    [PG_COMPUTE] = "plain computing",
};

const char *probe_step_name(uint32_t step) { return step < PG_STEPS ? step_names[step] : "nothing it should do"; }

static const char *const exit_names[] = {
    [KVM_EXIT_UNKNOWN] = "unknown",
    [KVM_EXIT_EXCEPTION] = "exception",
    [KVM_EXIT_IO] = "port I/O",
    [KVM_EXIT_HYPERCALL] = "hypercall",
    [KVM_EXIT_DEBUG] = "debug",
    [KVM_EXIT_HLT] = "halt",
    [KVM_EXIT_MMIO] = "MMIO",
    [KVM_EXIT_IRQ_WINDOW_OPEN] = "interrupt window",
    [KVM_EXIT_SHUTDOWN] = "shutdown",
    [KVM_EXIT_FAIL_ENTRY] = "failed entry",
    [KVM_EXIT_INTERNAL_ERROR] = "internal error",
};

static int open_node(struct kvm *k, const char *node, struct err *e)
{
    k->sys = open(node, O_RDWR | O_CLOEXEC);
    if (k->sys >= 0)
        return 0;
    if (errno == EACCES || errno == EPERM)
        return err_sys(e, "%s: it is for root and the group kvm ('adduser USER kvm')", node);
    if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
        return err_sys(e, "%s: no KVM here, it needs VT-x or AMD-V and the module kvm_intel or kvm_amd", node);
    return err_sys(e, "%s", node);
}

static int check_offers(const struct kvm *k, const char *node, struct err *e)
{
    int version = ioctl(k->sys, KVM_GET_API_VERSION, 0);
    const char *lacks;

    if (version < 0)
        return err_sys(e, "%s: no KVM device", node);
    if (version != KVM_API_VERSION)
        return err_set(e, ENOTSUP, "%s: version %d of the interface, not %d", node, version, KVM_API_VERSION);
    lacks = kvm_lacks(k->sys);
    if (lacks)
        return err_set(e, ENOTSUP, "%s: KVM_CAP_%s is missing (Linux 5.10 has it)", node, lacks);
    if (!kvm_tsc_trusted(KVM_CLOCKSOURCES))
        return err_set(e, ENOTSUP, "the host's kernel has found its TSC unreliable (no tsc in %s)", KVM_CLOCKSOURCES);
    return 0;
}

static void put64(uint8_t *mem, uint64_t gpa, uint64_t val) { memcpy(mem + gpa, &val, sizeof(val)); }

/* All of memory at 0 and PG_HIGH, then the pages that fault, and MMIO. */
static void put_page_tables(uint8_t *mem)
{
    const uint64_t all = PTE_P | PTE_W | PTE_U;

    put64(mem, PG_PML4, PG_PDPT | all);
    put64(mem, PG_PML4 + 511 * 8, PG_PDPT | all);
    put64(mem, PG_PDPT, PG_PD | all);
    put64(mem, PG_PDPT + 510 * 8, PG_PD | all);
    put64(mem, PG_PD, PG_PT | all);
    put64(mem, PG_PD + 8, PG_PT_FAULT | all);
    put64(mem, PG_PD + (PG_MMIO_GPA >> 21) * 8, PG_MMIO_GPA | PTE_PS | PTE_P | PTE_W);
    for (uint64_t i = 0; i < PG_MEM_SIZE / PAGE_SIZE; i++)
        put64(mem, PG_PT + i * 8, i * PAGE_SIZE | all);
}

static void put_gate(uint8_t *mem, unsigned vector, const unsigned char *handler)
{
    uint64_t to = PG_HIGH + PG_CODE + (uint64_t)(handler - pg_code);

    put64(mem, PG_IDT + vector * 16, bits(to, 15, 0) | PG_SEL_CODE << 16 | 0x8eull << 40 | bits(to, 31, 16) << 48);
    put64(mem, PG_IDT + vector * 16 + 8, to >> 32);
}

/* Limit 0xfffff pages each; SDM vol. 3, figure 3-8. */
static uint64_t segment(uint64_t type, uint64_t dpl, uint64_t lng)
{
    return 0xffff | 0xfull << 48 | (type | 1 << 4 | dpl << 5 | 1 << 7) << 40 | lng << 53 | (1 - lng) << 54 | 1ull << 55;
}

static void put_descriptors(uint8_t *mem)
{
    const uint64_t tss = PG_HIGH + PG_TSS;
    const uint16_t idt_limit = 256 * 16 - 1, gdt_limit = PG_GDT_SIZE - 1;

    for (unsigned v = 0; v < 256; v++)
        put_gate(mem, v, v == 14 ? pg_fault : v == PG_VECTOR ? pg_irq : pg_unexpected);
    put64(mem, PG_GDT + PG_SEL_CODE, segment(0xb, 0, 1));
    put64(mem, PG_GDT + PG_SEL_DATA, segment(0x3, 0, 0));
    put64(mem, PG_GDT + PG_SEL_USER + 8, segment(0x3, 3, 0));
    put64(mem, PG_GDT + PG_SEL_USER + 16, segment(0xb, 3, 1));
    put64(mem, PG_GDT + PG_SEL_TSS,
          PG_TSS_LIMIT | bits(tss, 23, 0) << 16 | 0x89ull << 40 | bits(tss, 31, 24) << 56);
    put64(mem, PG_GDT + PG_SEL_TSS + 8, tss >> 32);
    put64(mem, PG_TSS + 4, PG_HIGH + PG_STACK_TOP);
    memcpy(mem + PG_IDTR, &idt_limit, 2);
    put64(mem, PG_IDTR + 2, PG_HIGH + PG_IDT);
    memcpy(mem + PG_GDTR, &gdt_limit, 2);
    put64(mem, PG_GDTR + 2, PG_HIGH + PG_GDT);
}

static int create(struct kvm *k, struct err *e)
{
    struct kvm_userspace_memory_region slot = {.memory_size = PG_MEM_SIZE, .userspace_addr = (uintptr_t)k->mem};
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[CPUID_MAX];
    } cpuid;

    k->vm = ioctl(k->sys, KVM_CREATE_VM, 0);
    if (k->vm < 0)
        return err_sys(e, "KVM_CREATE_VM");
    if (ioctl(k->vm, KVM_SET_TSS_ADDR, TSS_ADDR))
        return err_sys(e, "KVM_SET_TSS_ADDR");
    if (ioctl(k->vm, KVM_SET_USER_MEMORY_REGION, &slot))
        return err_sys(e, "KVM_SET_USER_MEMORY_REGION");
    k->vcpu = ioctl(k->vm, KVM_CREATE_VCPU, 0);
    if (k->vcpu < 0)
        return err_sys(e, "KVM_CREATE_VCPU");
    int size = ioctl(k->sys, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(*k->run))
        return err_set(e, ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE: %d", size);
    k->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, k->vcpu, 0);
    if (k->run == MAP_FAILED)
        return err_sys(e, "memory of a vCPU");

    cpuid.head.nent = CPUID_MAX;
    cpuid.head.padding = 0;
    if (ioctl(k->sys, KVM_GET_SUPPORTED_CPUID, &cpuid))
        return err_sys(e, "KVM_GET_SUPPORTED_CPUID");
    if (ioctl(k->vcpu, KVM_SET_CPUID2, &cpuid))
        return err_sys(e, "KVM_SET_CPUID2");
    return 0;
}

/* Long mode, CPL 0; the guest loads all but CS itself. */
static int set_registers(const struct kvm *k, struct err *e)
{
    struct kvm_regs regs = {.rip = PG_HIGH + PG_CODE, .rflags = 2, .rsp = PG_HIGH + PG_STACK_TOP};
    struct kvm_sregs sregs;

    if (ioctl(k->vcpu, KVM_GET_SREGS, &sregs))
        return err_sys(e, "KVM_GET_SREGS");
    struct kvm_segment code = {.limit = 0xffffffff, .selector = PG_SEL_CODE, .type = 0xb, .present = 1, .s = 1,
                               .l = 1, .g = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = PG_SEL_DATA, .type = 0x3, .present = 1, .s = 1,
                               .db = 1, .g = 1};
    struct kvm_segment tss = {.base = PG_HIGH + PG_TSS, .limit = PG_TSS_LIMIT, .type = 0xb, .present = 1};
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = tss;
    sregs.gdt.base = PG_HIGH + PG_GDT;
    sregs.gdt.limit = PG_GDT_SIZE - 1;
    sregs.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
    sregs.cr3 = PG_PML4;
    sregs.cr4 = 0x6a0; /* PAE PGE OSFXSR OSXMMEXCPT */
    sregs.efer = 0x500; /* LME LMA */
    if (ioctl(k->vcpu, KVM_SET_SREGS, &sregs))
        return err_sys(e, "KVM_SET_SREGS");
    if (ioctl(k->vcpu, KVM_SET_REGS, &regs))
        return err_sys(e, "KVM_SET_REGS");
    return 0;
}

static int inject(const struct kvm *k, struct err *e)
{
    struct kvm_interrupt irq = {.irq = PG_VECTOR};

    return ioctl(k->vcpu, KVM_INTERRUPT, &irq) ? err_sys(e, "KVM_INTERRUPT") : 0;
}

static const char *step_of(const struct kvm *k)
{
    uint32_t step;

    memcpy(&step, k->mem + PG_STEP, sizeof(step));
    return probe_step_name(step);
}

static int complain(const struct kvm *k, struct err *e)
{
    uint64_t detail;

    memcpy(&detail, k->mem + PG_DETAIL, sizeof(detail));
    return err_set(e, ENOTSUP, "a small test guest goes wrong at %s (it sees %#llx)", step_of(k), (unsigned long long)detail);
}

static int stopped(const struct kvm *k, struct err *e)
{
    uint32_t reason = k->run->exit_reason;
    const char *name = reason < ARRAY_LEN(exit_names) && exit_names[reason] ? exit_names[reason] : "other";

    if (reason == KVM_EXIT_INTERNAL_ERROR)
        return err_set(e, ENOTSUP, "a small test guest stopped with KVM's internal error %u at %s",
                       k->run->internal.suberror, step_of(k));
    return err_set(e, ENOTSUP, "a small test guest stopped with exit %u (%s) at %s", reason, name, step_of(k));
}

static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Does the guest compute as this CPU does? Compares CPU time, so it matters little what else the host does. */
static int judge_speed(const struct kvm *k, struct err *e)
{
    uint64_t guest = cpu_ns() - k->computing, scratch, host = cpu_ns();

    pg_compute(&scratch);
    host = cpu_ns() - host;
    if (guest <= SLOW_NS + SLOW_RATIO * host)
        return 1;
    return err_set(e, ENOTSUP, "a small test guest needs %llu us to compute what the processor does in %llu us",
                   (unsigned long long)(guest / 1000), (unsigned long long)(host / 1000));
}

/* 1 if the guest has come to its end. */
static int on_io(struct kvm *k, struct err *e)
{
    struct kvm_run *r = k->run;
    uint8_t *data = (uint8_t *)r + r->io.data_offset;

    switch (r->io.port) {
    case PG_PORT_DONE:
        return judge_speed(k, e);
    case PG_PORT_COMPUTE:
        k->computing = cpu_ns();
        return 0;
    case PG_PORT_FAIL:
        return complain(k, e);
    case PG_PORT_IRQ:
        k->irq_wanted = true;
        return 0;
    case PG_PORT_ECHO:
        if (r->io.size != sizeof(k->echo) || r->io.count != 1)
            break;
        if (r->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&k->echo, data, sizeof(k->echo));
        } else {
            k->echo = ~k->echo;
            memcpy(data, &k->echo, sizeof(k->echo));
        }
        return 0;
    }
    return stopped(k, e);
}

static int on_mmio(struct kvm *k, struct err *e)
{
    struct kvm_run *r = k->run;

    if (r->mmio.phys_addr != PG_MMIO_GPA || r->mmio.len != sizeof(k->mmio))
        return stopped(k, e);
    if (r->mmio.is_write) {
        memcpy(&k->mmio, r->mmio.data, sizeof(k->mmio));
    } else {
        k->mmio = ~k->mmio;
        memcpy(r->mmio.data, &k->mmio, sizeof(k->mmio));
    }
    return 0;
}

static int on_exit_of_guest(struct kvm *k, struct err *e)
{
    switch (k->run->exit_reason) {
    case KVM_EXIT_IO:
        return on_io(k, e);
    case KVM_EXIT_MMIO:
        return on_mmio(k, e);
    case KVM_EXIT_HLT:
        return inject(k, e);
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return 0;
    default:
        return stopped(k, e);
    }
}

static int run_guest(struct kvm *k, struct err *e)
{
    int rc = 0;

    while (!rc) {
        if (k->irq_wanted && k->run->ready_for_interrupt_injection && k->run->if_flag) {
            k->irq_wanted = false;
            rc = inject(k, e);
            if (rc)
                break;
        }
        k->run->request_interrupt_window = k->irq_wanted;
        if (ioctl(k->vcpu, KVM_RUN, 0) == 0)
            rc = on_exit_of_guest(k, e);
        else if (errno != EINTR && errno != EAGAIN)
            rc = err_sys(e, "KVM_RUN, with a small test guest at %s", step_of(k));
    }
    return rc < 0 ? rc : 0;
}

static int probe(struct probe_share *s, const char *node, struct err *e)
{
    struct kvm k = {.sys = -1, .vm = -1, .vcpu = -1, .mem = s->guest};
    int rc = open_node(&k, node, e);

    if (rc || (rc = check_offers(&k, node, e)) || (rc = create(&k, e)) || (rc = set_registers(&k, e)))
        return rc;
    memcpy(k.mem + PG_CODE, pg_code, (size_t)(pg_code_end - pg_code));
    put_page_tables(k.mem);
    put_descriptors(k.mem);
    s->running = true;
    return run_guest(&k, e);
}

void probe_child(struct probe_share *s, const char *node, pid_t parent)
{
    sigset_t none;

    /* The parent's handlers are not for the child's signals, and it does not outlive the parent. */
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        return;
    /* A child that hangs must not keep the parent's locks, sockets and images. */
    syscall(SYS_close_range, 0u, ~0u, 0u);
    s->rc = probe(s, node, &s->err);
    atomic_store(&s->done, true);
}
