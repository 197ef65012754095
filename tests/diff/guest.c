#include "guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>


#define RAM_SIZE (2 * MIB)
#define TICK_US 200000
#define TICKS_MAX 20

/* Guest-physical pages. All linear addresses lie in one 2 MiB, so one page table does. */
enum {
    PA_PML4 = 0x1000,
    PA_PDPT = 0x2000,
    PA_PD = 0x3000,
    PA_PT = 0x4000,
    PA_GDT = 0x5000,
    PA_IDT = 0x6000,
    PA_TSS = 0x7000,
    PA_STACK = 0x8000,
    PA_HALT = 0x9000,
    PA_CODE = 0x10000,
    PA_DATA = 0x20000
};
/* Supervisor pages, from PA_GDT on. */
#define LA(pa) (SUP_ADDR + (pa)-PA_GDT)
#define STACK_TOP (LA(PA_STACK) + 0x1000)

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_AD 0x60ull
#define PTE_NX (1ull << 63)

#define SEL_KCODE 0x10
#define SEL_KDATA 0x18
#define SEL_TSS 0x40
#define ATTR_DATA (SEG_P | SEG_S | SEG_WRITE | SEG_ACCESSED | SEG_G | SEG_DB)
#define ATTR_CODE (SEG_P | SEG_S | SEG_CODE | SEG_WRITE | SEG_ACCESSED | SEG_G)
#define ATTR_USER (3u << SEG_DPL_SHIFT)

const char *const guest_mode_name[GUEST_MODES] = {"free", "other", "step"};

struct guest {
    struct vm vm;
    struct vcpu vcpu, *list;
    struct clock clock;
    struct cpuid_policy policy;
    struct trace trace;
    struct log log;
    struct physmap *map;
    struct physmap_listener listener;
    struct ram *ram;
    struct cpu_state base; /* what every case starts from, the user's registers apart */
    uint64_t cr8;
};

/* For the signal handler only. */
static struct vcpu *running;
static volatile sig_atomic_t ticks;

/* ---- the world around the engine: nothing ---- */
static uint32_t pio_read(struct vcpu *v, uint16_t port, unsigned size) { return 0xffffffffu; }
static void pio_write(struct vcpu *v, uint16_t port, unsigned size, uint32_t val) {}
static void mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size)
{
    memset(buf, 0xff, size);
}
static void mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size) {}
static int rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val) { return -EINVAL; }
static int wrmsr(struct vcpu *v, uint32_t msr, uint64_t val) { return -EINVAL; }
static uint64_t get_cr8(struct vcpu *v) { return ((struct guest *)v->vm->owner)->cr8; }
static void set_cr8(struct vcpu *v, uint64_t val) { ((struct guest *)v->vm->owner)->cr8 = val; }
static bool irq_pending(struct vcpu *v) { return false; }
static int irq_ack(struct vcpu *v) { return -1; }
static void do_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    memset(out, 0, 16);
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
};

static void code_write(void *ctx, uint64_t gpa, uint64_t len)
{
    struct guest *g = ctx;

    g->vcpu.engine->code_write(&g->vm, gpa, len);
}

static void on_tick(int sig)
{
    if (running && ++ticks >= TICKS_MAX)
        vcpu_post(running, VCPU_EV_KICK);
}

/* ---- the guest's tables ---- */
static void put64(struct guest *g, uint64_t gpa, uint64_t v) { memcpy(g->ram->host + gpa, &v, 8); }

static void map_pages(struct guest *g, uint64_t la, uint64_t pa, unsigned bytes, uint64_t flags)
{
    for (unsigned at = 0; at < bytes; at += PAGE_SIZE)
        put64(g, PA_PT + ((la + at) >> PAGE_SHIFT & 511) * 8, (pa + at) | flags | PTE_P | PTE_AD);
}

static void make_tables(struct guest *g)
{
    uint64_t la = CODE_ADDR;

    put64(g, PA_PML4 + (la >> 39 & 511) * 8, PA_PDPT | PTE_P | PTE_W | PTE_U | 0x20);
    put64(g, PA_PDPT + (la >> 30 & 511) * 8, PA_PD | PTE_P | PTE_W | PTE_U | 0x20);
    put64(g, PA_PD + (la >> 21 & 511) * 8, PA_PT | PTE_P | PTE_W | PTE_U | 0x20);
    map_pages(g, CODE_ADDR, PA_CODE, CODE_BYTES, PTE_W | PTE_U);
    map_pages(g, DATA_ADDR, PA_DATA, DATA_BYTES, PTE_W | PTE_U | PTE_NX);
    map_pages(g, RO_ADDR, PA_DATA + DATA_BYTES, RO_BYTES, PTE_U | PTE_NX);
    map_pages(g, SUP_ADDR, PA_GDT, SUP_BYTES, PTE_W);
    case_ro_page(g->ram->host + PA_DATA + DATA_BYTES);

    memset(g->ram->host + PA_HALT, 0xf4, PAGE_SIZE);
    put64(g, PA_GDT + SEL_KCODE, 0x00af9b000000ffff);
    put64(g, PA_GDT + SEL_KDATA, 0x00cf93000000ffff);
    put64(g, PA_GDT + (SEL_CODE32 & ~7), 0x00cffb000000ffff);
    put64(g, PA_GDT + (SEL_DATA & ~7), 0x00cff3000000ffff);
    put64(g, PA_GDT + (SEL_CODE64 & ~7), 0x00affb000000ffff);
    for (unsigned v = 0; v < 256; v++) {
        uint64_t to = LA(PA_HALT) + v, dpl = v == X_BP || v == X_OF ? 3 : 0;

        put64(g, PA_IDT + 16 * v,
              (to & 0xffff) | SEL_KCODE << 16 | (0x8eull | dpl << 5) << 40 |
                  (to >> 16 & 0xffff) << 48);
        put64(g, PA_IDT + 16 * v + 8, to >> 32);
    }
    put64(g, PA_TSS + 4, STACK_TOP);
    g->ram->host[PA_TSS + 102] = 104; /* the I/O permission map lies beyond the limit: no ports */
}

static void make_base(struct guest *g, uint64_t xcr0)
{
    struct cpu_state *s = &g->base;

    cpu_state_reset(s);
    s->cr0 = CR0_PE | CR0_PG | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM;
    s->cr3 = PA_PML4;
    s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    s->xcr0 = xcr0;
    s->gdtr = (struct table_reg){.base = LA(PA_GDT), .limit = 0x4f};
    s->idtr = (struct table_reg){.base = LA(PA_IDT), .limit = 0xfff};
    s->tr = (struct segment){.base = LA(PA_TSS), .limit = 103, .attr = SEG_P | 11, .sel = SEL_TSS};
    s->ldtr = (struct segment){.attr = SEG_UNUSABLE};
    for (unsigned k = 0; k < SREG_COUNT; k++)
        s->seg[k] = (struct segment){.limit = ~0u, .attr = ATTR_DATA | ATTR_USER, .sel = SEL_DATA};
    for (unsigned k = FS; k <= GS; k++)
        s->seg[k] = (struct segment){.attr = SEG_UNUSABLE};
    s->seg[GS].base = GS_BASE;
    s->rflags = FL_R1 | FL_IF;
}

/* ---- */

/* The processor that the engine can honour. */
static int make_policy(struct guest *g, const struct engine_ops *engine, struct cpuid_cfg *cfg, struct err *e)
{
    struct engine_demands d = {.limit = calloc(1, sizeof(*d.limit)), .tsc_khz = cfg->tsc_khz};
    int rc = d.limit ? 0 : err_set(e, ENOMEM, "out of memory for a guest");

    if (!rc && engine->demand)
        rc = engine->demand(&d, e);
    cfg->limit = d.limited ? d.limit : NULL;
    if (!rc)
        rc = cpuid_build(&g->policy, cfg, e);
    free(d.limit);
    return rc;
}

static bool setup(struct guest *g, const struct engine_ops *engine, uint64_t xcr0, struct err *e)
{
    struct region region = {.name = "ram", .kind = REGION_RAM, .size = RAM_SIZE};
    struct cpuid_cfg cfg = {.cpus = 1, .tsc_khz = 1000000};
    struct itimerval tick = {{0, TICK_US}, {0, TICK_US}};

    trace_init(&g->trace, &g->log);
    clock_init_stepped(&g->clock, cfg.tsc_khz, 0);
    if (make_policy(g, engine, &cfg, e) < 0)
        return false;
    g->list = &g->vcpu;
    g->vm = (struct vm){.env = &env,
                        .clock = &g->clock,
                        .cpuid = &g->policy,
                        .trace = &g->trace,
                        .vcpu = &g->list,
                        .nvcpu = 1,
                        .owner = g};
    g->vcpu = (struct vcpu){.vm = &g->vm, .engine = engine};
    if (physmap_new(&g->map, g->policy.maxphys, e) < 0 || ram_new(&g->ram, "ram", RAM_SIZE, e) < 0)
        return false;
    region.ram = g->ram;
    g->vm.map = g->map;
    if (!physmap_add(g->map, &region, e))
        return false;
    make_tables(g);
    make_base(g, xcr0 & g->policy.xcr0_mask);
    if (engine->vm_init(&g->vm, e) < 0 || engine->vcpu_init(&g->vcpu, e) < 0)
        return false;
    test_engine_tune(&g->vm, engine);
    g->listener = (struct physmap_listener){.arg = g, .code_write = code_write};
    physmap_set_listener(g->map, &g->listener);
    signal(SIGALRM, on_tick);
    setitimer(ITIMER_REAL, &tick, NULL);
    return true;
}

struct guest *guest_new(const struct engine_ops *engine, uint64_t xcr0, struct err *e)
{
    struct guest *g = aligned_alloc(64, ALIGN_UP(sizeof(*g), 64));

    if (!g) {
        err_set(e, ENOMEM, "out of memory for a guest");
        return NULL;
    }
    memset(g, 0, sizeof(*g));
    if (!setup(g, engine, xcr0, e)) {
        guest_free(g);
        return NULL;
    }
    return g;
}

void guest_free(struct guest *g)
{
    const struct itimerval none = {{0, 0}, {0, 0}};

    if (!g)
        return;
    setitimer(ITIMER_REAL, &none, NULL);
    if (g->vcpu.priv)
        g->vcpu.engine->vcpu_fini(&g->vcpu);
    if (g->vm.engine_priv)
        g->vcpu.engine->vm_fini(&g->vm);
    if (g->map)
        physmap_free(g->map);
    if (g->ram)
        ram_free(g->ram);
    free(g);
}

const char *guest_engine(const struct guest *g) { return g->vcpu.engine->name; }

const struct cpuid_policy *guest_policy(const struct guest *g) { return &g->policy; }

static void load(struct guest *g, const struct test_case *t)
{
    struct cpu_state s = g->base;
    uint8_t code[CODE_BYTES];

    memcpy(s.gpr, t->s.gpr, sizeof(s.gpr));
    memcpy(s.zmm, t->s.zmm, sizeof(s.zmm));
    memcpy(s.k, t->s.k, sizeof(s.k));
    s.x87 = t->s.x87;
    s.mxcsr = t->s.mxcsr;
    s.rflags = t->s.rflags;
    s.rip = CODE_ADDR + t->start;
    s.seg[CS].sel = t->bits == CPU_64 ? SEL_CODE64 : SEL_CODE32;
    s.seg[CS].attr = ATTR_CODE | ATTR_USER | (t->bits == CPU_64 ? SEG_L : SEG_DB);
    if (!case_assemble(t, code, NULL))
        abort();
    mem_write(g->map, PA_CODE, code, CODE_BYTES);
    mem_write(g->map, PA_DATA, t->data, DATA_BYTES);
    if (g->vcpu.engine->set_state(&g->vcpu, &s) < 0) {
        printf("%s\n", g->vcpu.error.msg);
        abort();
    }
}

static bool has_error_code(int vector)
{
    return vector == X_DF || (vector >= X_TS && vector <= X_PF) || vector == X_AC;
}

/* Where the exception's frame says the user program was. */
static void read_frame(struct guest *g, struct outcome *out)
{
    bool error = has_error_code(out->vector);
    uint64_t f[6];

    mem_read(g->map, PA_STACK + PAGE_SIZE - (error ? 48 : 40), f, error ? 48 : 40);
    if (error) {
        out->error = (uint32_t)f[0];
        memmove(f, f + 1, 40);
    }
    out->s.rip = f[0];
    out->s.seg[CS].sel = (uint16_t)f[1];
    out->s.rflags = f[2];
    out->s.gpr[RSP] = f[3];
    out->s.seg[SS].sel = (uint16_t)f[4]; /* DS and ES are still the program's */
}

bool guest_run(struct guest *g, const struct test_case *t, enum guest_mode mode,
               struct outcome *out)
{
    const struct engine_ops *engine = g->vcpu.engine;
    enum stop stop;

    if (!test_engine_other(&g->vcpu, mode == GUEST_OTHER) && mode == GUEST_OTHER)
        return false;
    if (mode == GUEST_STEP && engine == &kvm_engine) /* PUSHF shows its trap flag */
        return false;
    load(g, t);
    g->vcpu.budget = mode == GUEST_STEP ? 1ull << 40 : 0;
    ticks = 0;
    running = &g->vcpu;
    stop = engine->run(&g->vcpu);
    running = NULL;
    atomic_store(&g->vcpu.events, 0);
    engine->get_state(&g->vcpu, &out->s);
    out->error = 0;
    out->cr2 = out->s.cr2;
    if (stop == STOP_HLT && out->s.rip > LA(PA_HALT) && out->s.rip <= LA(PA_HALT) + 256) {
        out->vector = (int)(out->s.rip - LA(PA_HALT) - 1);
        read_frame(g, out);
    } else {
        out->vector = stop == STOP_KICK ? END_TIMEOUT : END_BROKEN;
    }
    mem_read(g->map, PA_CODE, out->code, CODE_BYTES);
    mem_read(g->map, PA_DATA, out->data, DATA_BYTES);
    return true;
}
