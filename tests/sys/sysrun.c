/*
 * Runs one assembly case (tests/sys/cases) in a bare VM: RAM, fake environment, one vCPU, no
 * machine.
 *
 * sysrun [-e ENGINE] case.bin
 *
 * The case is loaded at CASE_BASE and entered in real mode at 0:CASE_BASE after its header. It
 * talks through ports: RESULT ends it (0 = passed, otherwise the address of the failed check),
 * DETAIL adds a number to the failure message, the others make events. Each case runs three times:
 * freely, and one instruction at a time under a budget, so that both of an engine's paths are
 * covered, and with the plain functions' state read and written back now and then.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"

#define RAM_SIZE (32 * MIB)
#define CASE_BASE 0x8000u
#define CASE_MAX 0x10000u
#define CASE_MAGIC 0x59533352u /* "R3SY" */
#define STEP_SLICE 97          /* instructions between state transfers in the stepped run */
#define TIMEOUT_S 60

/* Where the header is: straight after a short jump over it. */
struct header {
    uint8_t jump[4];
    uint32_t magic;
    uint32_t expect;  /* enum expect */
    uint32_t vendor;  /* enum vendor */
    uint32_t stage;   /* EXPECT_SHUTDOWN: the stage that must have been reached */
};
enum expect { EXPECT_PASS, EXPECT_SHUTDOWN };
enum vendor { VENDOR_HOST, VENDOR_INTEL, VENDOR_AMD };

enum port {
    PORT_RESULT = 0xf4, /* dword */
    PORT_DETAIL = 0xf5, /* dword */
    PORT_IRQ = 0xf6,    /* byte: raise this vector, until it is acknowledged */
    PORT_NMI = 0xf7,    /* any write */
    PORT_STAGE = 0xf8,  /* byte */
    PORT_HALT_IRQ = 0xf9, /* byte: raise this vector when the vCPU halts */
    PORT_SCRATCH = 0x200, /* 256 bytes of memory */
    SCRATCH_SIZE = 256
};

struct world {
    struct vm vm;
    struct vcpu vcpu, *list;
    struct clock clock;
    struct cpuid_policy policy;
    struct trace trace;
    struct log log;
    uint8_t scratch[SCRATCH_SIZE];
    uint64_t cr8;
    bool done, irq, halt_irq;
    uint8_t irq_vector, halt_vector, stage;
    uint32_t result, detail[16];
    unsigned ndetail;
};

static const struct engine_ops *const engines[] = { &interp_engine };

static struct vcpu *alarmed; /* for the signal handler only */

static struct world *world_of(struct vcpu *v) { return v->vm->owner; }

static uint32_t pio_read(struct vcpu *v, uint16_t port, unsigned size)
{
    struct world *w = world_of(v);
    uint32_t val = 0xffffffffu;

    if (port >= PORT_SCRATCH && port + size <= PORT_SCRATCH + SCRATCH_SIZE) {
        val = 0;
        memcpy(&val, w->scratch + port - PORT_SCRATCH, size);
    }
    return val;
}

static void pio_write(struct vcpu *v, uint16_t port, unsigned size, uint32_t val)
{
    struct world *w = world_of(v);

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
    struct world *w = world_of(v);

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

/* The cases test what the engine does itself, so they must not depend on the host's features. */
static void force_features(struct cpuid_policy *p, uint32_t vendor)
{
    static const uint8_t need[] = {
        CPUF_VME, CPUF_DE, CPUF_PSE, CPUF_PAE, CPUF_PGE, CPUF_PSE36, CPUF_PCID, CPUF_INVPCID,
        CPUF_FSGSBASE, CPUF_SMEP, CPUF_SMAP, CPUF_UMIP, CPUF_NX, CPUF_PDPE1GB, CPUF_SEP,
        CPUF_SYSCALL, CPUF_RDTSCP, CPUF_RDPID,
    };

    for (unsigned i = 0; i < ARRAY_LEN(need); i++)
        p->feature[need[i] / 64] |= BIT(need[i] % 64);
    if (vendor != VENDOR_HOST)
        p->amd = vendor == VENDOR_AMD;
}

static void on_alarm(int sig)
{
    vcpu_post(alarmed, VCPU_EV_KICK);
}

/* Runs the case to its end; 0 if it went as the header says. */
static int run_case(const struct engine_ops *engine, const uint8_t *image, size_t len, bool stepped)
{
    const struct header *h = (const void *)image;
    struct region region = { .name = "ram", .kind = REGION_RAM, .size = RAM_SIZE };
    struct world *w = calloc(1, sizeof(*w));
    struct cpuid_cfg cfg = { .cpus = 1, .tsc_khz = 1000000 };
    struct physmap *map = NULL;
    struct ram *ram = NULL;
    struct cpu_state *s = calloc(1, sizeof(*s));
    struct err e = { .msg = "" };
    const char *what = stepped ? "stepped" : "free";
    enum stop stop = STOP_ERROR;
    int rc = 1;

    if (!w || !s)
        goto out;
    log_init(&w->log, LOG_WARN, STDERR_FILENO);
    trace_init(&w->trace, &w->log);
    if (getenv("SYSRUN_TRACE"))
        trace_enable(&w->trace, getenv("SYSRUN_TRACE"), &e);
    clock_init(&w->clock, cfg.tsc_khz);
    if (cpuid_build(&w->policy, &cfg, &e) < 0)
        goto out;
    force_features(&w->policy, h->vendor);
    w->list = &w->vcpu;
    w->vm = (struct vm){ .env = &env, .clock = &w->clock, .cpuid = &w->policy, .trace = &w->trace,
                         .vcpu = &w->list, .nvcpu = 1, .owner = w };
    if (physmap_new(&map, w->policy.maxphys, &e) < 0 || ram_new(&ram, "ram", RAM_SIZE, &e) < 0)
        goto out;
    region.ram = ram;
    w->vm.map = map;
    if (!physmap_add(map, &region, &e))
        goto out;
    w->vcpu = (struct vcpu){ .vm = &w->vm, .engine = engine };
    if (engine->vm_init(&w->vm, &e) < 0 || engine->vcpu_init(&w->vcpu, &e) < 0)
        goto out;
    mem_write(map, CASE_BASE, image, len);
    cpu_state_reset(s);
    s->seg[CS].sel = 0;
    s->seg[CS].base = 0;
    s->rip = CASE_BASE;
    s->gpr[RSP] = 0x7000;
    if (engine->set_state(&w->vcpu, s) < 0) {
        e = w->vcpu.error;
        goto out;
    }

    w->vcpu.budget = stepped ? STEP_SLICE : 0;
    alarmed = &w->vcpu;
    alarm(TIMEOUT_S);
    for (;;) {
        stop = engine->run(&w->vcpu);
        if (stop == STOP_BUDGET) {
            engine->get_state(&w->vcpu, s);
            if (engine->set_state(&w->vcpu, s) < 0) {
                e = w->vcpu.error;
                goto out;
            }
        } else if (stop == STOP_HLT && w->halt_irq) {
            w->halt_irq = false;
            w->irq_vector = w->halt_vector;
            w->irq = true;
            vcpu_post(&w->vcpu, VCPU_EV_INTR);
        } else {
            break;
        }
    }
    alarm(0);
    engine->get_state(&w->vcpu, s);

    if (w->done && h->expect == EXPECT_PASS && w->result == 0) {
        rc = 0;
    } else if (stop == STOP_SHUTDOWN && h->expect == EXPECT_SHUTDOWN && w->stage == h->stage) {
        rc = 0;
    } else if (w->done) {
        fprintf(stderr, "%s: check at %#x failed:", what, w->result);
        for (unsigned i = 0; i < w->ndetail; i++)
            fprintf(stderr, " %#x", w->detail[i]);
        fprintf(stderr, "\n");
    } else {
        fprintf(stderr, "%s: stop %d at %04x:%llx, stage %u, cr2 %#llx\n", what, stop,
                s->seg[CS].sel, (unsigned long long)s->rip, w->stage, (unsigned long long)s->cr2);
    }
out:
    if (e.msg[0])
        fprintf(stderr, "%s: %s\n", what, e.msg);
    if (w && w->vcpu.priv)
        engine->vcpu_fini(&w->vcpu);
    if (w && w->vm.engine_priv)
        engine->vm_fini(&w->vm);
    if (map)
        physmap_free(map);
    if (ram)
        ram_free(ram);
    free(s);
    free(w);
    return rc;
}

static const struct engine_ops *find(const char *name)
{
    for (unsigned i = 0; i < ARRAY_LEN(engines); i++)
        if (!strcmp(engines[i]->name, name))
            return engines[i];
    return NULL;
}

int main(int argc, char **argv)
{
    const struct engine_ops *engine = &interp_engine;
    static uint8_t image[CASE_MAX];
    const struct header *h = (const void *)image;
    size_t len;
    FILE *f;
    int opt;

    while ((opt = getopt(argc, argv, "e:")) != -1) {
        engine = opt == 'e' ? find(optarg) : NULL;
        if (!engine) {
            fprintf(stderr, "usage: %s [-e ENGINE] case.bin\n", argv[0]);
            return 2;
        }
    }
    f = optind < argc ? fopen(argv[optind], "rb") : NULL;
    len = f ? fread(image, 1, sizeof(image), f) : 0;
    if (f)
        fclose(f);
    if (len < sizeof(*h) || h->magic != CASE_MAGIC) {
        fprintf(stderr, "%s: not a case\n", optind < argc ? argv[optind] : "(none)");
        return 2;
    }
    signal(SIGALRM, on_alarm);
    return run_case(engine, image, len, false) | run_case(engine, image, len, true);
}
