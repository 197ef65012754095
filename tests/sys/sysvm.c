/* See sysvm.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sysvm.h"

static struct sysvm *world_of(struct vcpu *v) { return v->vm->owner; }

static uint32_t pio_read(struct vcpu *v, uint16_t port, unsigned size)
{
    struct sysvm *w = world_of(v);
    uint32_t val = 0xffffffffu;

    if (port >= PORT_SCRATCH && port + size <= PORT_SCRATCH + SCRATCH_SIZE) {
        val = 0;
        memcpy(&val, w->scratch + port - PORT_SCRATCH, size);
    }
    return val;
}

static void pio_write(struct vcpu *v, uint16_t port, unsigned size, uint32_t val)
{
    struct sysvm *w = world_of(v);

    switch (port) {
    case PORT_RESULT:
        w->done = true;
        w->result = val;
        vcpu_post(v, VCPU_EV_KICK);
        break;
    case PORT_DETAIL:
        if (w->ndetail < ARRAY_LEN(w->detail))
            w->detail[w->ndetail++] = val;
        break;
    case PORT_IRQ:
        w->irq_vector = val;
        w->irq = true;
        vcpu_post(v, VCPU_EV_INTR);
        break;
    case PORT_NMI:
        vcpu_post(v, VCPU_EV_NMI);
        break;
    case PORT_STAGE:
        w->stage = val;
        break;
    case PORT_HALT_IRQ:
        w->halt_vector = val;
        w->halt_irq = true;
        break;
    default:
        if (port >= PORT_SCRATCH && port + size <= PORT_SCRATCH + SCRATCH_SIZE)
            memcpy(w->scratch + port - PORT_SCRATCH, &val, size);
    }
}

static void mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size)
{
    memset(buf, 0xff, size);
}

static void mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size) {}
static int rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val) { return -EINVAL; }
static int wrmsr(struct vcpu *v, uint32_t msr, uint64_t val) { return -EINVAL; }
static uint64_t get_cr8(struct vcpu *v) { return world_of(v)->cr8; }
static void set_cr8(struct vcpu *v, uint64_t val) { world_of(v)->cr8 = val; }
static bool irq_pending(struct vcpu *v) { return world_of(v)->irq; }

static int irq_ack(struct vcpu *v)
{
    struct sysvm *w = world_of(v);

    if (!w->irq)
        return -1;
    w->irq = false;
    return w->irq_vector;
}

static void do_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    static const struct cpu_state none;

    cpuid_query(v->vm->cpuid, &none, v->index, true, leaf, subleaf, out);
}

/* VMCALL with RAX = 1 answers 42 in RAX; everything else is #UD. */
static bool hypercall(struct vcpu *v, struct cpu_state *s)
{
    if (s->gpr[RAX] != 1)
        return false;
    s->gpr[RAX] = 42;
    return true;
}

static const struct cpu_env env = {
    .pio_read = pio_read,
    .pio_write = pio_write,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .rdmsr = rdmsr,
    .wrmsr = wrmsr,
    .cpuid = do_cpuid,
    .get_cr8 = get_cr8,
    .set_cr8 = set_cr8,
    .irq_pending = irq_pending,
    .irq_ack = irq_ack,
    .hypercall = hypercall,
};

/* What the engine demands of the processor and the clock. */
static int demands(const struct engine_ops *engine, struct cpuid_cfg *cfg,
                   struct cpuid_limit *limit, struct clock *clock, struct err *e)
{
    struct engine_demands d = {.limit = limit, .tsc_khz = cfg->tsc_khz};
    int rc = engine->demand ? engine->demand(&d, e) : 0;

    cfg->tsc_khz = d.tsc_khz;
    if (d.limited)
        cfg->limit = limit;
    if (d.counter_khz)
        clock_init_counter(clock, d.tsc_khz, d.counter_khz);
    else
        clock_init(clock, d.tsc_khz);
    return rc;
}

/* The cases test what the engine does itself, so they must not depend on the host's features. */
static void force_features(struct cpuid_policy *p, uint32_t vendor, bool limited)
{
    static const uint8_t need[] = {
        CPUF_VME, CPUF_DE, CPUF_PSE, CPUF_PAE, CPUF_PGE, CPUF_PSE36, CPUF_PCID, CPUF_INVPCID,
        CPUF_FSGSBASE, CPUF_SMEP, CPUF_SMAP, CPUF_UMIP, CPUF_NX, CPUF_PDPE1GB, CPUF_SEP,
        CPUF_SYSCALL, CPUF_RDTSCP, CPUF_RDPID,
    };

    for (unsigned i = 0; i < ARRAY_LEN(need) && !limited; i++)
        p->feature[need[i] / 64] |= BIT(need[i] % 64);
    if (vendor != VENDOR_HOST)
        p->amd = vendor == VENDOR_AMD;
}

struct sysvm *sysvm_new(const struct engine_ops *engine, uint64_t ram, uint32_t vendor,
                        struct err *e)
{
    struct region region = { .name = "ram", .kind = REGION_RAM, .size = ram };
    struct cpuid_cfg cfg = { .cpus = 1, .tsc_khz = 1000000 };
    struct sysvm *w = calloc(1, sizeof(*w));
    struct cpuid_limit *limit = calloc(1, sizeof(*limit));

    if (!w || !limit)
        goto fail;
    log_init(&w->log, LOG_WARN, STDERR_FILENO);
    trace_init(&w->trace, &w->log);
    if (getenv("SYSRUN_TRACE") && trace_enable(&w->trace, getenv("SYSRUN_TRACE"), e) < 0)
        goto fail;
    if (demands(engine, &cfg, limit, &w->clock, e) < 0 || cpuid_build(&w->policy, &cfg, e) < 0)
        goto fail;
    force_features(&w->policy, vendor, cfg.limit);
    w->list = &w->vcpu;
    w->vcpu = (struct vcpu){ .vm = &w->vm, .engine = engine };
    w->vm = (struct vm){ .env = &env, .clock = &w->clock, .cpuid = &w->policy, .trace = &w->trace,
                         .vcpu = &w->list, .nvcpu = 1, .owner = w };
    if (physmap_new(&w->map, w->policy.maxphys, e) < 0 || ram_new(&w->ram, "ram", ram, e) < 0)
        goto fail;
    region.ram = w->ram;
    w->vm.map = w->map;
    if (!physmap_add(w->map, &region, e) || engine->vm_init(&w->vm, e) < 0)
        goto fail;
    test_engine_tune(&w->vm, engine);
    if (engine->vcpu_init(&w->vcpu, e) < 0)
        goto fail;
    free(limit);
    return w;
fail:
    free(limit);
    sysvm_free(w);
    return NULL;
}

void sysvm_free(struct sysvm *w)
{
    if (!w)
        return;
    if (w->vcpu.priv)
        w->vcpu.engine->vcpu_fini(&w->vcpu);
    if (w->vm.engine_priv)
        w->vcpu.engine->vm_fini(&w->vm);
    if (w->map)
        physmap_free(w->map);
    if (w->ram)
        ram_free(w->ram);
    free(w);
}
