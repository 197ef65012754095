/*
 * Random vector, MMX and x87 instructions on the silicon and through the interpreter's code,
 * everything compared: simd-diff [CASES [SEED [FIRST]]] The silicon runs the original bytes in a
 * child process; what the interpreter makes of an instruction has nothing in common with that but
 * the host's arithmetic.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gen.h"
#include "native.h"
#include "world.h"

#define MAX_FAILURES 20

struct run {
    struct world w;
    struct test_case t;
    uint8_t *mem; /* the data pages */
    uint8_t before[DATA_BYTES], after[DATA_BYTES];
    unsigned failures;
    uint32_t *row_cases, *row_faults; /* by row of insn_table */
};

static void report(struct run *u, uint64_t n, const char *what, unsigned at)
{
    const struct insn *i = &u->t.insn[MIN(at, u->t.n - 1)];

    printf("case %llu: %s [%s]:", (unsigned long long)n, what, i->row->mnemonic);
    for (unsigned k = 0; k < u->t.len; k++)
        printf(" %02x", u->t.code[k]);
    printf(" (instruction %u of %u, mxcsr %04x fcw %04x fsw %04x)\n", at + 1, u->t.n, u->t.s.mxcsr,
           u->t.s.x87.fcw, u->t.s.x87.fsw);
}

static void show_diff(const char *name, unsigned index, const void *want, const void *got,
                      unsigned n)
{
    const uint8_t *a = want, *b = got;

    if (!memcmp(want, got, n))
        return;
    printf("  %s%u silicon ", name, index);
    for (unsigned k = n; k-- > 0;)
        printf("%02x%s", a[k], k && k % 8 == 0 ? "_" : "");
    printf("\n  %s%u ours    ", name, index);
    for (unsigned k = n; k-- > 0;)
        printf("%02x%s", b[k], k && k % 8 == 0 ? "_" : "");
    printf("\n");
}

static void show_states(const struct cpu_state *want, const struct cpu_state *got)
{
    for (unsigned n = 0; n < 16; n++)
        show_diff("gpr", n, &want->gpr[n], &got->gpr[n], 8);
    for (unsigned n = 0; n < 32; n++)
        show_diff("zmm", n, want->zmm[n], got->zmm[n], 64);
    for (unsigned n = 0; n < 8; n++)
        show_diff("k", n, &want->k[n], &got->k[n], 8);
    for (unsigned n = 0; n < 8; n++)
        show_diff("st", n, want->x87.st[n], got->x87.st[n], 16);
    show_diff("mxcsr", 0, &want->mxcsr, &got->mxcsr, 4);
    show_diff("rflags", 0, &want->rflags, &got->rflags, 8);
    show_diff("fcw", 0, &want->x87.fcw, &got->x87.fcw, 2);
    show_diff("fsw", 0, &want->x87.fsw, &got->x87.fsw, 2);
    show_diff("tag", 0, &want->x87.tag, &got->x87.tag, 1);
    show_diff("fop", 0, &want->x87.fop, &got->x87.fop, 2);
    show_diff("fip", 0, &want->x87.fip, &got->x87.fip, 8);
    show_diff("fdp", 0, &want->x87.fdp, &got->x87.fdp, 8);
}

/* Flags of MXCSR that may differ: with an unmasked overflow or underflow the silicon tells whether
 * the result was inexact but for its exponent, which the masked response we rely on does not; dot
 * products are several operations, the first of which that faults wins. */
static uint32_t mxcsr_slack(const struct insn *i, uint32_t mxcsr, bool xm)
{
    uint32_t unmasked = ~mxcsr >> MXCSR_MASK_SHIFT & mxcsr;

    if (!xm)
        return 0;
    if (i->map == 3 && (i->opcode == 0x40 || i->opcode == 0x41))
        return MXCSR_FLAGS;
    return unmasked & (MXCSR_OE | MXCSR_UE) ? MXCSR_PE : 0;
}

static bool same_state(const struct cpu_state *a, const struct cpu_state *b, uint64_t flags)
{
    return !memcmp(a->gpr, b->gpr, sizeof(a->gpr)) && !memcmp(a->zmm, b->zmm, sizeof(a->zmm)) &&
           !memcmp(a->k, b->k, sizeof(a->k)) && a->mxcsr == b->mxcsr &&
           !memcmp(&a->x87, &b->x87, sizeof(a->x87)) && !((a->rflags ^ b->rflags) & flags);
}

/* Runs the case in the interpreter; the number of instructions completed. */
static unsigned run_ours(struct run *u, struct rng *r)
{
    struct cpu *c = &u->w.c;
    const struct cpu_state *s = &u->t.s;
    unsigned n;

    memcpy(c->s.gpr, s->gpr, sizeof(s->gpr));
    memcpy(c->s.zmm, s->zmm, sizeof(s->zmm));
    memcpy(c->s.k, s->k, sizeof(s->k));
    c->s.x87 = s->x87;
    c->s.mxcsr = s->mxcsr;
    c->s.rflags = s->rflags;
    cpu_set_status(c, s->rflags);
    c->s.rip = CODE_ADDR;
    c->event.vector = 0xff;
    world_tlb(&u->w, pick(r, 2));
    for (n = 0; n < u->t.n; n++) {
        struct simd_op op;
        bool prepared = pick(r, 2) && simd_prepare(c, &u->t.insn[n], &op);
        if (!world_step(&u->w, &u->t.insn[n], prepared ? &op : NULL))
            break;
    }
    x87_sync(c);
    c->s.rflags = cpu_flags(c);
    return n;
}

static uint64_t defined_flags(const struct test_case *t, unsigned done)
{
    uint64_t undef = 0;

    for (unsigned n = 0; n < done; n++)
        undef |= t->insn[n].row->fl_undef;
    return FL_STATUS & ~undef;
}

static bool is_maskmov(const struct insn *i) { return i->map == 1 && i->opcode == 0xf7; }

static bool is_xrstor(const struct insn *i)
{
    return i->map == 1 && i->opcode == 0xae && i->modrm < 0xc0 && (i->modrm >> 3 & 7) == 5;
}

/* Instructions that access more than one item do so in an order of the processor's own: which byte
 * of a page CR2 names is then its choice, and whether a part was stored before the fault. */
static bool many_items(const struct insn *i)
{
    bool masked = i->evex_aaa || i->mem.vsib || is_maskmov(i) ||
                  ((i->prefix & PFX_VEX) && i->map == 2 &&
                   (i->opcode == 0x8e || i->opcode == 0x8c || (i->opcode & 0xfc) == 0x2c));
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM &&
            (masked || ((i->op[n].size >= 10 || !i->op[n].size) && !i->vlen)))
            return true;
    return false;
}

static bool same_fault(const struct insn *i, const struct native_fault *f, const struct cpu *c,
                       uint64_t cr2)
{
    if (f->vector == X_XM || f->vector == X_MF || is_maskmov(i))
        return true; /* Linux passes no error code; MASKMOV may begin with either of two bad pages
                      */
    if (f->vector == X_PF && (f->cr2 ^ cr2) & (many_items(i) ? ~PAGE_MASK : ~0ull))
        return false;
    return f->error == c->event.error;
}

static void run_case(struct run *u, uint64_t seed, uint64_t n)
{
    struct rng r = {seed * 0x2545f4914f6cdd1dull + n};
    struct cpu *c = &u->w.c;

    gen_case(&r, &u->w.policy, &u->t, u->mem);
    memcpy(u->before, u->mem, DATA_BYTES);
    struct cpu_state want = u->t.s;
    struct native_fault f = native_run(&want, u->t.code, u->t.len);
    memcpy(u->after, u->mem, DATA_BYTES);
    memcpy(u->mem, u->before, DATA_BYTES);

    if (f.vector ==
        X_UD) { /* must not reach the host outside of the oracle: the decoder is wrong */
        u->failures++;
        report(u, n, "decoder accepts an instruction that the silicon rejects", 0);
        return;
    }
    unsigned done = run_ours(u, &r);
    const char *what = NULL;
    bool faulted = done < u->t.n;
    for (unsigned k = 0; k < u->t.n && k <= done; k++) {
        u->row_cases[u->t.insn[k].row - insn_table]++;
        u->row_faults[u->t.insn[k].row - insn_table] += k == done;
    }
    if (faulted != (f.vector >= 0) || (faulted && f.vector != c->event.vector))
        what = "fault";
    else if (want.rip != c->s.rip)
        what = "address";
    else if (faulted && !same_fault(&u->t.insn[done], &f, c, u->w.cr2))
        what = "error code or CR2";
    if (!what && faulted)
        want.mxcsr ^=
            (want.mxcsr ^ c->s.mxcsr) & mxcsr_slack(&u->t.insn[done], want.mxcsr, f.vector == X_XM);
    /* XRSTOR that finds a bad MXCSR late has loaded some components, which ones is its choice. */
    bool part = faulted && is_xrstor(&u->t.insn[done]);
    if (!what && !part && !same_state(&want, &c->s, defined_flags(&u->t, done)))
        what = "state";
    if (!what && !(faulted && many_items(&u->t.insn[done])) && memcmp(u->mem, u->after, DATA_BYTES))
        what = "memory";
    if (!what)
        return;
    u->failures++;
    report(u, n, what, done);
    printf("  silicon: vector %d error %x cr2 %llx rip %llx; ours: vector %d error %x cr2 %llx rip "
           "%llx\n",
           f.vector, f.error, (unsigned long long)f.cr2, (unsigned long long)want.rip,
           faulted ? c->event.vector : -1, c->event.error, (unsigned long long)u->w.cr2,
           (unsigned long long)c->s.rip);
    show_states(&want, &c->s);
    for (unsigned k = 0; k < DATA_BYTES; k += 16)
        show_diff("mem", k, u->after + k, u->mem + k, 16);
}

struct job {
    uint64_t cases, seed, first;
    bool verbose;
};

/* Is it a row that simd_fn takes and this host has? */
static bool expected(const struct insn_row *r, const struct cpuid_policy *p)
{
    return (r->flags & (IF_X87 | IF_MMX | IF_SSE | IF_AVX | IF_AVX512)) &&
           cpuid_has(p, r->feature) && cpuid_has(p, r->feature2);
}

static int run_all(void *arg)
{
    const struct job *j = arg;
    struct run *u = aligned_alloc(64, ALIGN_UP(sizeof(*u), 64));
    struct err e;

    setvbuf(stdout, NULL, _IOLBF, 0); /* nothing is lost should the child die */
    if (!u || !native_init()) {
        printf("this host cannot run the oracle\n");
        free(u);
        return 77;
    }
    memset(u, 0, sizeof(*u));
    u->mem = (uint8_t *)DATA_ADDR;
    u->row_cases = calloc(insn_table_len, sizeof(uint32_t));
    u->row_faults = calloc(insn_table_len, sizeof(uint32_t));
    if (!u->row_cases || !u->row_faults)
        abort();
    if (world_init(&u->w, &e)) {
        printf("%s\n", e.msg);
        free(u);
        return 1;
    }
    for (uint64_t n = j->first; n < j->first + j->cases && u->failures < MAX_FAILURES; n++)
        run_case(u, j->seed, n);
    unsigned rows = 0, all = 0;
    for (size_t k = 0; k < insn_table_len; k++) {
        rows += u->row_cases[k] != 0;
        all += expected(&insn_table[k], &u->w.policy);
        if (j->verbose && (u->row_cases[k] || expected(&insn_table[k], &u->w.policy)))
            printf("%8u cases %8u faults  %s\n", u->row_cases[k], u->row_faults[k],
                   insn_table[k].mnemonic);
    }
    printf("seed %llu: %llu cases of %u table rows out of %u, %u failures\n",
           (unsigned long long)j->seed, (unsigned long long)j->cases, rows, all, u->failures);
    int rc = u->failures != 0;
    world_fini(&u->w);
    free(u->row_cases);
    free(u->row_faults);
    free(u);
    return rc;
}

int main(int argc, char **argv)
{
    struct job j = {
        .cases = argc > 1 ? strtoull(argv[1], NULL, 0) : 120000,
        .seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1,
        .first = argc > 3 ? strtoull(argv[3], NULL, 0) : 0,
        .verbose = argc > 2,
    };
    return native_in_child(run_all, &j);
}
