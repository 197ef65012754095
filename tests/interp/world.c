#include "world.h"

#include <sched.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct world *world_of(struct vcpu *v) { return v->vm->owner; }

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

static void note(struct world *w, enum io_kind kind, uint64_t addr, unsigned size, uint64_t val)
{
    if (w->nlog < WORLD_LOG)
        w->log[w->nlog] = (struct io){kind, addr, size, val};
    w->nlog++;
    w->io_hash = mix(mix(mix(w->io_hash, kind), addr), (uint64_t)size << 56 ^ val);
}

static uint64_t value(const struct world *w, uint64_t addr)
{
    return w->mmio_value ? w->mmio_value : mix(0x1234567, addr);
}

static void move_alias(struct world *w, bool there, uint32_t page)
{
    struct region r = {.name = "alias",
                       .kind = REGION_RAM,
                       .base = WORLD_ALIAS,
                       .size = 4 * PAGE_SIZE,
                       .prio = 1,
                       .ram = w->ram};
    struct err e;

    if (w->alias)
        physmap_del(w->map, w->alias, &e);
    w->alias = NULL;
    w->moves++;
    r.ram_off = page % (WORLD_RAM / PAGE_SIZE - 4) * PAGE_SIZE;
    if (there)
        w->alias = physmap_add(w->map, &r, &e);
}

static uint32_t pio_read(struct vcpu *v, uint16_t port, unsigned size)
{
    uint32_t val = (uint32_t)value(world_of(v), port) & (uint32_t)((1ull << size * 8) - 1);

    note(world_of(v), IO_PIO_READ, port, size, val);
    return val;
}

static void pio_write(struct vcpu *v, uint16_t port, unsigned size, uint32_t val)
{
    struct world *w = world_of(v);

    note(w, IO_PIO_WRITE, port, size, val);
    switch (port) {
    case PORT_STOP:
        vcpu_post(v, VCPU_EV_KICK);
        break;
    case PORT_IRQ:
        atomic_store(&w->irq[v->index], (int)(val & 0xff));
        vcpu_post(v, VCPU_EV_INTR);
        break;
    case PORT_NMI:
        vcpu_post(v, VCPU_EV_NMI);
        break;
    case PORT_ALIAS:
    case PORT_NOALIAS:
        move_alias(w, port == PORT_ALIAS, val);
        break;
    }
}

/* Instruction bytes at RIP, or beyond the end of its page? How often those are read is the engine's
 * affair. */
static bool is_fetch(struct vcpu *v, uint64_t gpa, unsigned size)
{
    struct cpu_state s;
    uint64_t at;

    v->engine->get_state(v, &s);
    at = (s.seg[CS].base * (cpu_code_bits(&s) != CPU_64) + s.rip) & PAGE_MASK;
    if ((gpa & PAGE_MASK) == at)
        return size == MIN(15u, PAGE_SIZE - at);
    return !(gpa & PAGE_MASK) && at > PAGE_SIZE - 15 && size == 15 - (PAGE_SIZE - at);
}

static void mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size)
{
    struct world *w = world_of(v);
    uint64_t first = 0, hash = w->io_hash;

    for (unsigned k = 0; k < size; k++)
        ((uint8_t *)buf)[k] = (uint8_t)(value(w, (gpa + k) & ~7ull) >> ((gpa + k) % 8 * 8));
    memcpy(&first, buf, MIN(size, 8u));
    note(w, IO_MMIO_READ, gpa, size, first);
    if (is_fetch(v, gpa, size))
        w->io_hash = hash;
}

static void mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size)
{
    uint64_t val = 0;

    memcpy(&val, buf, MIN(size, 8u));
    note(world_of(v), IO_MMIO_WRITE, gpa, size, val);
}

static int rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val)
{
    if (msr == WORLD_MSR_IRQ) {
        atomic_store(&world_of(v)->irq[v->index], 0x51);
        vcpu_post(v, VCPU_EV_INTR);
    }
    if (msr != 0x1b)
        return -EINVAL;
    *val = 0xfee00800 | (v->index ? 0 : BIT(8));
    return 0;
}

static int wrmsr(struct vcpu *v, uint32_t msr, uint64_t val) { return -EINVAL; }
static uint64_t get_cr8(struct vcpu *v) { return world_of(v)->cr8[v->index]; }
static void set_cr8(struct vcpu *v, uint64_t val) { world_of(v)->cr8[v->index] = val; }
static bool irq_pending(struct vcpu *v) { return atomic_load(&world_of(v)->irq[v->index]) >= 0; }
static int irq_ack(struct vcpu *v) { return atomic_exchange(&world_of(v)->irq[v->index], -1); }

static void do_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    struct cpu_state s;

    v->engine->get_state(v, &s);
    cpuid_query(v->vm->cpuid, &s, v->index, true, leaf, subleaf, out);
}

static void tsc_moved(struct vcpu *v, uint64_t offset)
{
    world_of(v)->tsc_moved = offset;
    world_of(v)->tsc_moves++;
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
    .tsc_moved = tsc_moved,
};

static void on_changed(void *arg, const struct flat_view *view)
{
    struct world *w = arg;

    w->engine->map_changed(&w->vm, view);
}

static void on_code_write(void *arg, uint64_t gpa, uint64_t len)
{
    struct world *w = arg;

    w->engine->code_write(&w->vm, gpa, len);
}

static _Noreturn void fail(const char *what, const struct err *e)
{
    fprintf(stderr, "world: %s: %s\n", what, e->msg);
    abort();
}

/* What the engine demands, of the processor only: time is the test's. */
static void demands(struct world *w, struct cpuid_cfg *cfg, struct cpuid_limit *limit)
{
    struct engine_demands d = {.limit = limit, .tsc_khz = cfg->tsc_khz};
    struct err e;

    if (!w->engine->demand)
        return;
    if (w->engine->demand(&d, &e) < 0)
        fail("demand", &e);
    if (d.limited)
        cfg->limit = limit;
}

static void force_features(struct cpuid_policy *p, bool limited)
{
    static const uint8_t on[] = {
        CPUF_VME,  CPUF_DE,      CPUF_PSE,      CPUF_PAE,     CPUF_PGE,  CPUF_PSE36,
        CPUF_PCID, CPUF_INVPCID, CPUF_FSGSBASE, CPUF_SMEP,    CPUF_SMAP, CPUF_UMIP,
        CPUF_NX,   CPUF_PDPE1GB, CPUF_SEP,      CPUF_SYSCALL,
    };
    static const uint8_t off[] = {CPUF_RDRAND, CPUF_RDSEED};

    for (unsigned i = 0; i < ARRAY_LEN(on) && !limited; i++)
        p->feature[on[i] / 64] |= BIT(on[i] % 64);
    for (unsigned i = 0; i < ARRAY_LEN(off); i++)
        p->feature[off[i] / 64] &= ~BIT(off[i] % 64);
}

static void map(struct world *w, const char *name, enum region_kind kind, uint64_t base,
                uint64_t size, struct ram *ram)
{
    struct region r = {.name = name, .kind = kind, .base = base, .size = size, .ram = ram};
    struct err e;

    if (!physmap_add(w->map, &r, &e))
        fail(name, &e);
}

struct world *world_new(unsigned ncpu)
{
    struct cpuid_cfg cfg = {.cpus = ncpu, .tsc_khz = 1000000};
    struct cpuid_limit *limit = calloc(1, sizeof(*limit));
    struct physmap_listener listener = {.changed = on_changed, .code_write = on_code_write};
    struct world *w = calloc(1, sizeof(*w));
    struct err e = {.msg = "no memory"};

    if (!w || !limit)
        fail("world", &e);
    w->engine = test_engine(NULL);
    log_init(&w->trace_log, LOG_WARN, STDERR_FILENO);
    trace_init(&w->trace, &w->trace_log);
    clock_init_stepped(&w->clock, cfg.tsc_khz, 0);
    demands(w, &cfg, limit);
    if (cpuid_build(&w->policy, &cfg, &e) < 0)
        fail("cpuid", &e);
    force_features(&w->policy, cfg.limit);
    free(limit);
    w->vm = (struct vm){.env = &env,
                        .clock = &w->clock,
                        .cpuid = &w->policy,
                        .trace = &w->trace,
                        .vcpu = w->list,
                        .nvcpu = ncpu,
                        .check = test_engine_check(w->engine, ncpu),
                        .owner = w};
    if (physmap_new(&w->map, w->policy.maxphys, &e) < 0 ||
        ram_new(&w->ram, "ram", WORLD_RAM, &e) < 0 || ram_new(&w->rom, "rom", PAGE_SIZE, &e) < 0)
        fail("memory", &e);
    w->mem = w->ram->host;
    w->vm.map = w->map;
    map(w, "ram", REGION_RAM, 0, WORLD_RAM, w->ram);
    map(w, "rom", REGION_ROM, WORLD_ROM, PAGE_SIZE, w->rom);
    for (unsigned i = 0; i < ncpu; i++) {
        w->list[i] = &w->vcpu[i];
        w->vcpu[i] = (struct vcpu){.vm = &w->vm, .index = i, .engine = w->engine};
        atomic_init(&w->irq[i], -1);
    }
    if (w->engine->vm_init(&w->vm, &e) < 0)
        fail("vm_init", &e);
    test_engine_tune(&w->vm, w->engine);
    for (unsigned i = 0; i < ncpu; i++)
        if (w->engine->vcpu_init(&w->vcpu[i], &e) < 0)
            fail("vcpu_init", &e);
    listener.arg = w;
    physmap_set_listener(w->map, &listener);
    return w;
}

void world_free(struct world *w)
{
    for (unsigned i = 0; i < w->vm.nvcpu; i++)
        w->engine->vcpu_fini(&w->vcpu[i]);
    w->engine->vm_fini(&w->vm);
    physmap_free(w->map);
    ram_free(w->ram);
    ram_free(w->rom);
    free(w);
}

void world_forget_io(struct world *w)
{
    w->nlog = 0;
    w->io_hash = 0;
}

void world_write(struct world *w, uint64_t gpa, const void *p, size_t n)
{
    if (mem_write_rom(w->map, gpa, p, n)) {
        fprintf(stderr, "world: no memory at %#llx\n", (unsigned long long)gpa);
        abort();
    }
}

void world_get(struct world *w, unsigned cpu, struct cpu_state *s)
{
    w->engine->get_state(&w->vcpu[cpu], s);
}

int world_set(struct world *w, unsigned cpu, const struct cpu_state *s)
{
    return w->engine->set_state(&w->vcpu[cpu], s);
}

enum stop world_run(struct world *w, unsigned cpu, uint64_t budget)
{
    w->vcpu[cpu].budget = budget;
    enum stop st;

    /* Guests that spin are told so; what they wait for comes from other threads. */
    while ((st = w->engine->run(&w->vcpu[cpu])) == STOP_PAUSE)
        sched_yield();
    return st;
}

bool world_on_hardware(const struct world *w) { return !strcmp(w->vcpu[0].engine->name, "kvm"); }
