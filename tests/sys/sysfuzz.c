/*
 * Hostile guests: random system instructions on random descriptors, in every mode, at every
 * privilege. Nothing a guest does may hurt the host (run it under sanitizers), and the architectural
 * state must stay one that a processor can be in.
 *
 *   sysfuzz [-e ENGINE] [-s SEED] [-n ROUNDS]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "sysvm.h"

#define RAM_SIZE (4 * MIB)
#define IDT_AT 0x1000u
#define GDT_AT 0x2000u
#define TSS_AT 0x3000u
#define CODE_AT 0x8000u
#define CODE_LEN 0x400u
#define STACK_AT 0x7000u
#define TABLES_AT 0x100000u
#define SLICES 24
#define SLICE 16 /* instructions between looks at the state */

/* A handler that faults at once retires no instruction, so a budget alone does not end such a
 * round: a timer kicks it out. */
#define KICK_US 50000
static struct vcpu *volatile running; /* for the signal handler only */

static void on_alarm(int sig)
{
    if (running)
        vcpu_post(running, VCPU_EV_KICK);
}

struct rng {
    uint64_t s;
};

static uint64_t rnd(struct rng *r)
{
    r->s ^= r->s << 13;
    r->s ^= r->s >> 7;
    r->s ^= r->s << 17;
    return r->s * 0x2545f4914f6cdd1dull;
}

static uint32_t below(struct rng *r, uint32_t n) { return (rnd(r) >> 32) % n; }

/* Opcodes of the system half; a random ModRM and immediate follow. */
static const uint16_t opcodes[] = {
    0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x62, 0x63, 0x6c, 0x6d, 0x6e, 0x6f, 0x8c, 0x8e, 0x9a,
    0x9c, 0x9d, 0xc4, 0xc5, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf, 0xe4, 0xe5, 0xe6, 0xe7, 0xea, 0xec,
    0xed, 0xee, 0xef, 0xf1, 0xf4, 0xfa, 0xfb, 0xff, 0x0f00, 0x0f01, 0x0f02, 0x0f03, 0x0f05, 0x0f06,
    0x0f07, 0x0f08, 0x0f09, 0x0f0b, 0x0f20, 0x0f21, 0x0f22, 0x0f23, 0x0f30, 0x0f31, 0x0f32, 0x0f33,
    0x0f34, 0x0f35, 0x0fa0, 0x0fa1, 0x0fa2, 0x0fa8, 0x0fa9, 0x0fae, 0x0fb2, 0x0fb4, 0x0fb5, 0x0fc7,
};
static const uint8_t prefixes[] = { 0x66, 0x67, 0xf2, 0xf3, 0x48, 0x2e, 0x64, 0x36 };

static void make_code(struct rng *r, uint8_t *p, size_t len)
{
    size_t at = 0;

    while (at + 16 < len) {
        uint16_t op = opcodes[below(r, ARRAY_LEN(opcodes))];

        while (below(r, 3) == 0)
            p[at++ % len] = prefixes[below(r, ARRAY_LEN(prefixes))];
        /* Registers get selectors, small numbers and addresses of something now and then. */
        if (below(r, 2)) {
            uint32_t v = below(r, 2) ? below(r, 0x80) : (uint32_t)rnd(r) & 0x3fffff;

            p[at++ % len] = 0xb8 + below(r, 8);
            for (unsigned k = 0; k < 4; k++)
                p[(at + k) % len] = v >> (8 * k);
            at += 4;
        }
        if (op >> 8)
            p[at++ % len] = op >> 8;
        p[at++ % len] = op;
        for (unsigned k = below(r, 7); k > 0; k--)
            p[at++ % len] = below(r, 2) ? rnd(r) : below(r, 0x80);
    }
}

static void put64(uint8_t *ram, uint64_t at, uint64_t v) { memcpy(ram + at, &v, 8); }

static uint64_t descriptor(struct rng *r)
{
    static const uint16_t attrs[] = {
        0xc09b, 0xc093, 0x009b, 0x0093, 0xa09b, 0xc0fb, 0xc0f3, 0xa0fb, 0x4097, 0xc09f, 0x0082,
        0x0089, 0x0081, 0x00e5, 0x00ec, 0x00e4, 0x008e, 0x008f, 0x0086, 0xc013, 0xc0bb, 0xc0b3,
    };
    uint64_t attr = below(r, 8) ? attrs[below(r, ARRAY_LEN(attrs))] : rnd(r) & 0xf0ff;
    uint64_t base = below(r, 4) ? 0 : rnd(r) & 0x3fffff;
    uint64_t limit = below(r, 3) ? 0xfffff : rnd(r) & 0xfffff;

    return (limit & 0xffff) | (base & 0xffffff) << 16 | attr << 40 | (limit >> 16) << 48 |
           (base >> 24) << 56;
}

static void make_tables(struct rng *r, uint8_t *ram, bool lm)
{
    for (unsigned k = 1; k < 16; k++)
        put64(ram, GDT_AT + 8 * k, descriptor(r));
    put64(ram, GDT_AT + 0x08, lm ? 0x00af9b000000ffff : 0x00cf9b000000ffff);
    put64(ram, GDT_AT + 0x10, 0x00cf93000000ffff);
    for (unsigned k = 0; k < 256; k++) {
        uint64_t off = CODE_AT + below(r, CODE_LEN), sel = below(r, 4) ? 8 : 8 * below(r, 16);
        uint64_t attr = below(r, 4) ? 0x8e : below(r, 2) ? 0xee : rnd(r) & 0xff;
        uint64_t gate = (off & 0xffff) | sel << 16 | attr << 40 | (uint64_t)below(r, 2) << 32;

        if (lm && 16 * k + 16 <= 0x1000)
            put64(ram, IDT_AT + 16 * k, gate);
        else if (!lm)
            put64(ram, IDT_AT + 8 * k, gate);
    }
    for (unsigned k = 0; k < 0x100; k += 8)
        put64(ram, TSS_AT + k, below(r, 2) ? STACK_AT : rnd(r) & 0x00180018003ffff8);
    put64(ram, TABLES_AT, (TABLES_AT + 0x1000) | 7);
    put64(ram, TABLES_AT + 0x1000, (TABLES_AT + 0x2000) | 7);
    for (unsigned k = 0; k < 2; k++)
        put64(ram, TABLES_AT + 0x2000 + 8 * k, k * 2 * MIB | (below(r, 8) ? 0x87 : rnd(r) & 0x1ff));
}

static void flat(struct segment *s, uint16_t sel, uint32_t attr)
{
    *s = (struct segment){ .limit = ~0u, .attr = attr, .sel = sel };
}

enum mode { MODE_REAL, MODE_V86, MODE_PROT, MODE_PROT_PAGED, MODE_LONG, MODES };

static void make_state(struct rng *r, struct cpu_state *s, enum mode mode)
{
    unsigned cpl = mode == MODE_REAL ? 0 : below(r, 2) ? 0 : 3;
    uint32_t dpl = cpl << SEG_DPL_SHIFT;

    cpu_state_reset(s);
    for (unsigned k = 0; k < 16; k++)
        s->gpr[k] = below(r, 2) ? below(r, 0x100) : rnd(r) & 0x3fffff;
    s->gpr[RSP] = STACK_AT;
    s->rip = CODE_AT;
    s->seg[CS].base = 0;
    s->seg[CS].sel = 0;
    s->rflags = (rnd(r) & (FL_STATUS | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_AC)) | FL_R1;
    if (mode == MODE_REAL)
        return;
    s->cr0 |= CR0_PE;
    s->gdtr = (struct table_reg){ .base = GDT_AT, .limit = 0x7f };
    s->idtr = (struct table_reg){ .base = IDT_AT, .limit = below(r, 4) ? 0x7ff : 0x3ff };
    s->tr = (struct segment){ .base = TSS_AT, .limit = 0x67 + below(r, 0x80), .attr = 0x8b,
                              .sel = 0x48 };
    flat(&s->seg[CS], 8 | cpl, (mode == MODE_LONG ? 0xa09b : 0xc09b) | dpl);
    for (unsigned k = 0; k < SREG_COUNT; k++)
        if (k != CS)
            flat(&s->seg[k], 0x10 | cpl, 0xc093 | dpl);
    s->cr4 = rnd(r) & (CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_UMIP);
    if (mode == MODE_V86) {
        s->rflags |= FL_VM;
        for (unsigned k = 0; k < SREG_COUNT; k++)
            s->seg[k] = (struct segment){ .limit = 0xffff, .attr = 0xf3 };
    }
    if (mode == MODE_PROT_PAGED || mode == MODE_LONG) {
        s->cr0 |= CR0_PG;
        s->cr3 = TABLES_AT;
        s->cr4 |= CR4_PAE;
    }
    if (mode == MODE_LONG) {
        s->efer = EFER_LME | EFER_LMA | EFER_SCE;
        s->cr4 |= CR4_FSGSBASE;
        s->star = (uint64_t)8 << 32;
        s->lstar = CODE_AT;
    }
}

static int round_once(const struct engine_ops *engine, uint64_t seed)
{
    struct rng r = { seed * 0x9e3779b97f4a7c15ull + 1 };
    struct err e = { .msg = "" };
    enum mode mode = below(&r, MODES);
    struct sysvm *w = sysvm_new(engine, RAM_SIZE, VENDOR_INTEL + below(&r, 2), &e);
    struct cpu_state *s = calloc(1, sizeof(*s));
    enum stop stop = STOP_BUDGET;
    int rc = 1;

    if (!w || !s)
        goto out;
    make_tables(&r, w->ram->host, mode == MODE_LONG);
    make_code(&r, w->ram->host + CODE_AT, CODE_LEN);
    if (mode == MODE_PROT_PAGED) /* PAE: the top level has other reserved bits */
        put64(w->ram->host, TABLES_AT, (TABLES_AT + 0x2000) | 1);
    make_state(&r, s, mode);
    if (engine->set_state(&w->vcpu, s) < 0) {
        e = w->vcpu.error;
        goto out;
    }
    running = &w->vcpu;
    for (unsigned k = 0; k < SLICES && stop != STOP_SHUTDOWN && stop != STOP_KICK; k++) {
        w->vcpu.budget = below(&r, 2) ? SLICE : 1;
        w->irq = below(&r, 4) == 0;
        w->irq_vector = 0x20 + below(&r, 0x20);
        stop = engine->run(&w->vcpu);
        engine->get_state(&w->vcpu, s);
        if (cpu_state_validate(s, &e) < 0)
            goto out;
    }
    rc = 0;
out:
    running = NULL;
    if (rc)
        fprintf(stderr, "seed %llu, mode %d: %s\n", (unsigned long long)seed, mode, e.msg);
    sysvm_free(w);
    free(s);
    return rc;
}

int main(int argc, char **argv)
{
    uint64_t seed = 1, n = 2000;
    const char *name = NULL;
    const struct engine_ops *engine;
    int opt, rc = 0;

    while ((opt = getopt(argc, argv, "e:s:n:")) != -1) {
        switch (opt) {
        case 'e': name = optarg; break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'n': n = strtoull(optarg, NULL, 0); break;
        default: fprintf(stderr, "usage: %s [-e ENGINE] [-s SEED] [-n ROUNDS]\n", argv[0]); return 2;
        }
    }
    engine = test_engine(name);
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL,
              &(struct itimerval){ .it_interval.tv_usec = KICK_US, .it_value.tv_usec = KICK_US },
              NULL);
    for (uint64_t k = 0; k < n; k++)
        rc |= round_once(engine, seed + k);
    return rc;
}
