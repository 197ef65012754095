/* The KVM engine: making and freeing its VM and vCPUs. */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kvm/probe.h"

/* Where KVM on Intel may keep three pages of its own: below the firmware's end of the address space, which is I/O. */
#define TSS_ADDR 0xfffbd000ull

static int extension(const struct kvm_vm *k, long what)
{
    int n = ioctl(k->fd, KVM_CHECK_EXTENSION, what);

    return MAX(n, 0);
}

/* Once for the process, and always the same: the signal only has to end a system call. */
static void on_kick(int sig) {}

static void kvm_vm_fini(struct vm *vm)
{
    struct kvm_vm *k = vm->engine_priv;

    if (!k)
        return;
    pthread_mutex_lock(&k->lock);
    kvm_dirty_collect(vm);
    pthread_mutex_unlock(&k->lock);
    vm->engine_priv = NULL;
    if (k->fd >= 0)
        close(k->fd);
    if (k->sys >= 0)
        close(k->sys);
    pthread_mutex_destroy(&k->lock);
    pthread_cond_destroy(&k->changed);
    free(k->slot);
    free(k);
}

static int setup(struct vm *vm, const struct kvm_dirty_ops *dirty, uint32_t entries, struct err *e)
{
    struct kvm_enable_cap emulation = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args[0] = 1};
    struct sigaction act = {.sa_handler = on_kick, .sa_flags = SA_RESTART};
    struct kvm_vm *k = vm->engine_priv;
    struct cpuid_limit *limit;
    const char *lacks;
    int rc;

    k->sys = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (k->sys < 0)
        return err_sys(e, "/dev/kvm");
    k->fd = ioctl(k->sys, KVM_CREATE_VM, 0);
    if (k->fd < 0)
        return err_sys(e, "KVM_CREATE_VM");
    lacks = kvm_lacks(k->fd);
    if (lacks)
        return err_set(e, ENOTSUP, "this host's KVM lacks KVM_CAP_%s (Linux 5.10 has it)", lacks);
    limit = malloc(sizeof(*limit));
    if (!limit)
        return err_set(e, ENOMEM, "no memory");
    rc = kvm_cpuid_limit(k->sys, limit, e);
    if (!rc)
        rc = cpuid_check_limit(vm->cpuid, limit, e);
    free(limit);
    if (rc)
        return rc;
    k->run_size = (size_t)MAX(ioctl(k->sys, KVM_GET_VCPU_MMAP_SIZE, 0), 0);
    if (k->run_size < sizeof(struct kvm_run))
        return err_set(e, ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE: too small");
    k->xsave_size = MAX((size_t)extension(k, KVM_CAP_XSAVE2), sizeof(struct kvm_xsave));
    k->max_slots = (uint32_t)MAX(extension(k, KVM_CAP_NR_MEMSLOTS), 32);
    k->sregs2 = extension(k, KVM_CAP_SREGS2);
    k->tsc_scaling = extension(k, KVM_CAP_TSC_CONTROL);
    /* Before Linux 5.14 it raises #UD in user code instead of asking us. */
    if (extension(k, KVM_CAP_EXIT_ON_EMULATION_FAILURE) && ioctl(k->fd, KVM_ENABLE_CAP, &emulation))
        return err_sys(e, "KVM_CAP_EXIT_ON_EMULATION_FAILURE");
    if (ioctl(k->fd, KVM_SET_TSS_ADDR, TSS_ADDR))
        return err_sys(e, "KVM_SET_TSS_ADDR");
    rc = kvm_msrs_init(k, e);
    if (rc)
        return rc;
    if (sigaction(KVM_KICK_SIGNAL, &act, NULL))
        return err_sys(e, "sigaction");
    rc = kvm_dirty_init(vm, dirty, entries, e);
    if (rc)
        return rc;
    return kvm_slots_init(vm, e);
}

int kvm_vm_init_dirty(struct vm *vm, const struct kvm_dirty_ops *dirty, uint32_t entries, struct err *e)
{
    struct kvm_vm *k = calloc(1, sizeof(*k));
    int rc;

    if (!k)
        return err_set(e, ENOMEM, "no memory");
    k->sys = k->fd = -1;
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->changed, NULL);
    vm->engine_priv = k;
    rc = setup(vm, dirty, entries, e);
    if (rc)
        kvm_vm_fini(vm);
    return rc;
}

static int kvm_vm_init(struct vm *vm, struct err *e) { return kvm_vm_init_dirty(vm, &kvm_dirty_log, 0, e); }

static void report_exits(struct kvm_cpu *c)
{
    static const char *const names[KVM_EXITS] = {
        [KVM_EXIT_IO] = "pio",
        [KVM_EXIT_MMIO] = "mmio",
        [KVM_EXIT_HLT] = "hlt",
        [KVM_EXIT_IRQ_WINDOW_OPEN] = "window",
        [KVM_EXIT_SHUTDOWN] = "shutdown",
        [KVM_EXIT_FAIL_ENTRY] = "fail-entry",
        [KVM_EXIT_INTR] = "kick",
        [KVM_EXIT_SET_TPR] = "tpr",
        [KVM_EXIT_INTERNAL_ERROR] = "emulation",
        [KVM_EXIT_DEBUG] = "debug",
        [KVM_EXIT_X86_RDMSR] = "rdmsr",
        [KVM_EXIT_X86_WRMSR] = "wrmsr",
        [KVM_EXIT_DIRTY_RING_FULL] = "ring",
    };
    char line[512];
    uint64_t total = 0;
    size_t n = 0;

    for (unsigned i = 0; i < KVM_EXITS; i++)
        total += c->exits[i];
    if (!total)
        return;
    for (unsigned i = 0; i < KVM_EXITS && n < sizeof(line) - 32; i++)
        if (c->exits[i])
            n += (size_t)snprintf(line + n, sizeof(line) - n, " %s %" PRIu64,
                                  names[i] ? names[i] : "other", c->exits[i]);
    log_msg(c->v->vm->trace->log, LOG_INFO, "kvm: vcpu%u: %" PRIu64 " exits:%s", c->v->index, total,
            line);
}

static void kvm_vcpu_fini(struct vcpu *v)
{
    struct kvm_cpu *c = v->priv;

    if (!c)
        return;
    report_exits(c);
    kvm_check_free(c);
    kvm_fallback_free(c->fallback);
    c->vm->dirty->vcpu_fini(c);
    if (c->run)
        munmap(c->run, c->vm->run_size);
    if (c->fd >= 0)
        close(c->fd);
    free(c->xsave);
    free(c);
    v->priv = NULL;
}

static int make_vcpu(struct kvm_cpu *c, struct err *e)
{
    struct kvm_vm *k = c->vm;
    void *run;
    int rc;

    c->xsave = calloc(1, k->xsave_size);
    if (!c->xsave)
        return err_set(e, ENOMEM, "no memory");
    c->fd = ioctl(k->fd, KVM_CREATE_VCPU, (unsigned long)c->v->index);
    if (c->fd < 0)
        return err_sys(e, "KVM_CREATE_VCPU");
    run = mmap(NULL, k->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    if (run == MAP_FAILED)
        return err_sys(e, "mmap of a vCPU");
    c->run = run;
    rc = k->dirty->vcpu_init(c);
    if (rc)
        return err_set(e, -rc, "KVM's dirty %s: %s", k->dirty->name, strerror(-rc));
    rc = kvm_set_cpuid(c, e);
    if (rc)
        return rc;
    rc = kvm_tsc_init(c, e);
    if (rc)
        return rc;
    cpu_state_reset(&c->s);
    if (kvm_write_state(c, &c->s)) {
        *e = c->v->error;
        return -EINVAL;
    }
    return c->v->vm->check ? kvm_check_new(c, e) : 0;
}

static int kvm_vcpu_init(struct vcpu *v, struct err *e)
{
    struct kvm_cpu *c = calloc(1, sizeof(*c));
    int rc;

    if (!c)
        return err_set(e, ENOMEM, "no memory");
    c->fd = -1;
    c->v = v;
    c->vm = v->vm->engine_priv;
    rc = make_vcpu(c, e);
    v->priv = c;
    if (rc)
        kvm_vcpu_fini(v);
    return rc;
}

/* Nothing is decoded ahead. */
static void kvm_code_write(struct vm *vm, uint64_t gpa, uint64_t len) {}

const struct engine_ops kvm_engine = {
    .name = "kvm",
    .checks = true,
    .summary = "the host's hardware through /dev/kvm",
    .probe = kvm_probe,
    .demand = kvm_demand,
    .vm_init = kvm_vm_init,
    .vcpu_init = kvm_vcpu_init,
    .run = kvm_run,
    .kick = kvm_kick,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .map_changed = kvm_map_changed,
    .code_write = kvm_code_write,
    .dirty_fetch = kvm_dirty_fetch,
    .vcpu_fini = kvm_vcpu_fini,
    .vm_fini = kvm_vm_fini,
};
