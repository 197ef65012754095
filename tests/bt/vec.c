/*
 * The guest's vector state in and out of the host's registers. What the registers hold is seen and
 * set by XSAVE and XRSTOR of all of them, in the same assembly routine that calls the function
 * under test, so that no compiled code comes between.
 *
 * vec --bench prints nanoseconds for a save and a load.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <cpuid.h>

#undef REG_RIP /* glibc's; insn.h has one, too */
#include "cpu/cpuid.h"
#include "engine/bt/vec.h"
#include "engine/interp/simd.h"

#define ROUNDS 40

/* Components of an XSAVE area, by bit number. */
enum { SSE = 1, AVX = 2, OPMASK = 5, ZMM_HI = 6, HI16 = 7, COMPS = 8 };
#define BV_VEC (BIT(SSE) | BIT(AVX) | XCR0_AVX512)

struct area {
    _Alignas(64) uint8_t b[4096];
};

struct regs {
    uint64_t zmm[32][8];
    uint64_t k[8];
    uint32_t mxcsr;
};

struct fixture {
    _Alignas(64) struct cpu c;
    struct vm vm;
    struct cpuid_policy policy;
    uint32_t off[COMPS];
    uint64_t host; /* vector components the host has */
    enum vec_set best;
    uint64_t rng;
};

static uint64_t rnd(struct fixture *f)
{
    f->rng ^= f->rng << 13;
    f->rng ^= f->rng >> 7;
    f->rng ^= f->rng << 17;
    return f->rng * 0x2545f4914f6cdd1dull;
}

static void rnd_fill(struct fixture *f, void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)(rnd(f) >> 40);
}

static uint32_t rnd_mxcsr(struct fixture *f)
{
    static const uint32_t some[] = {MXCSR_DEFAULT, MXCSR_DEFAULT | MXCSR_PE};
    uint64_t r = rnd(f) >> 20;

    return r & 1 ? some[r >> 1 & 1] : (uint32_t)(r >> 8 & MXCSR_VALID);
}

/* ---- areas ---- */
/* The piece of component comp that belongs to row r of 64 bytes: its bytes, and where in the row
 * and area. */
static unsigned piece(const struct fixture *f, unsigned comp, unsigned r, unsigned *row_off,
                      unsigned *area_off)
{
    switch (comp) {
    case SSE:
        *row_off = 0;
        *area_off = 160 + 16 * r;
        return r < 16 ? 16 : 0;
    case AVX:
        *row_off = 16;
        *area_off = f->off[AVX] + 16 * r;
        return r < 16 ? 16 : 0;
    case ZMM_HI:
        *row_off = 32;
        *area_off = f->off[ZMM_HI] + 32 * r;
        return r < 16 ? 32 : 0;
    case HI16:
        *row_off = 0;
        *area_off = f->off[HI16] + 64 * (r - 16);
        return r < 16 ? 0 : 64;
    default:
        return 0;
    }
}

/* Components not in bv are left out of the area, and zero in the registers. */
static void to_area(const struct fixture *f, const struct regs *g, uint64_t bv, struct area *a)
{
    unsigned in_row, in_area;

    memset(a, 0, sizeof(*a));
    bv &= f->host;
    memcpy(a->b + 24, &g->mxcsr, 4);
    memcpy(a->b + 512, &bv, 8);
    for (unsigned comp = SSE; comp < COMPS; comp++)
        for (unsigned r = 0; r < 32 && (bv >> comp & 1); r++) {
            unsigned n = piece(f, comp, r, &in_row, &in_area);
            if (n)
                memcpy(a->b + in_area, (const uint8_t *)g->zmm[r] + in_row, n);
        }
    if (bv >> OPMASK & 1)
        memcpy(a->b + f->off[OPMASK], g->k, sizeof(g->k));
}

static void from_area(const struct fixture *f, const struct area *a, struct regs *g)
{
    unsigned in_row, in_area;
    uint64_t bv;

    memset(g, 0, sizeof(*g));
    memcpy(&g->mxcsr, a->b + 24, 4);
    memcpy(&bv, a->b + 512, 8);
    for (unsigned comp = SSE; comp < COMPS; comp++)
        for (unsigned r = 0; r < 32 && (bv >> comp & 1); r++) {
            unsigned n = piece(f, comp, r, &in_row, &in_area);
            if (n)
                memcpy((uint8_t *)g->zmm[r] + in_row, a->b + in_area, n);
        }
    if (bv >> OPMASK & 1)
        memcpy(g->k, a->b + f->off[OPMASK], sizeof(g->k));
}

/* ---- calls with nothing in between ---- */
struct call {
    void (*fn)(struct cpu *);
    struct cpu *c;
    const struct area *in, *clean;
    struct area *out;
    uint64_t comps;
};
_Static_assert(offsetof(struct call, comps) == 40, "vec_test_call knows the layout");

/* A function of its own, so that the compiler takes every vector and mask register for clobbered.
 * Not static only for that. */
void vec_test_call(const struct call *call);
__asm__(".pushsection .text\n"
        ".globl vec_test_call\n"
        "vec_test_call:\n\t"
        "push %rbx\n\t"
        "mov %rdi, %rbx\n\t"
        "mov 16(%rbx), %rcx\n\t"
        "mov 40(%rbx), %eax\n\t"
        "xor %edx, %edx\n\t"
        "xrstor64 (%rcx)\n\t"
        "mov 8(%rbx), %rdi\n\t"
        "call *(%rbx)\n\t"
        "mov 32(%rbx), %rcx\n\t"
        "mov 40(%rbx), %eax\n\t"
        "xor %edx, %edx\n\t"
        "xsave64 (%rcx)\n\t"
        "mov 24(%rbx), %rcx\n\t"
        "xrstor64 (%rcx)\n\t"
        "pop %rbx\n\t"
        "ret\n"
        ".popsection");

/* Registers := in, fn(c), out := registers; then the host's own are made clean again. */
static void call_with(struct fixture *f, void (*fn)(struct cpu *), const struct area *in,
                      struct area *out)
{
    static const struct area clean = {
        .b = {[24] = MXCSR_DEFAULT & 0xff, [25] = MXCSR_DEFAULT >> 8}};
    const struct call call = {fn, &f->c, in, &clean, out, f->host};

    memset(out, 0, sizeof(*out));
    vec_test_call(&call);
}

/* ---- what is expected ---- */
static unsigned set_rows(enum vec_set set) { return set == VEC_AVX512 ? 32 : 16; }
static unsigned set_words(enum vec_set set) { return 2u << set; }

/* The part of g that the set moves, over what is in s. */
static void put_regs(const struct fixture *f, struct cpu_state *s, const struct regs *g)
{
    enum vec_set set = f->c.vec.set;

    for (unsigned r = 0; r < set_rows(set); r++)
        memcpy(s->zmm[r], g->zmm[r], set_words(set) * 8);
    for (unsigned k = 0; k < 8 && set == VEC_AVX512; k++)
        s->k[k] = f->c.vec.k64 ? g->k[k] : g->k[k] & 0xffff;
    s->mxcsr = g->mxcsr;
}

static void assert_regs(const struct fixture *f, const struct regs *g, const struct cpu_state *s)
{
    enum vec_set set = f->c.vec.set;

    for (unsigned r = 0; r < set_rows(set); r++)
        assert_memory_equal(g->zmm[r], s->zmm[r], set_words(set) * 8);
    for (unsigned k = 0; k < 8 && set == VEC_AVX512; k++)
        assert_int_equal(g->k[k], f->c.vec.k64 ? s->k[k] : s->k[k] & 0xffff);
    assert_int_equal(g->mxcsr, s->mxcsr);
}

/* ---- the fixture ---- */
static int setup(void **state)
{
    const struct cpuid_cfg cfg = {.cpus = 1, .tsc_khz = 1000000};
    struct fixture *f = aligned_alloc(64, ALIGN_UP(sizeof(*f), 64));
    uint32_t a, b, c, d;
    struct err e;

    if (!f)
        return -1;
    memset(f, 0, sizeof(*f));
    if (cpuid_build(&f->policy, &cfg, &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        return -1;
    }
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    f->host = a & BV_VEC;
    for (unsigned k = AVX; k < COMPS; k++) {
        __cpuid_count(13, k, a, b, c, d);
        f->off[k] = b;
    }
    f->vm.cpuid = &f->policy;
    f->c.vm = &f->vm;
    f->rng = 0x9e3779b97f4a7c15ull;
    vec_init(&f->c, VEC_AVX512);
    f->best = f->c.vec.set;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

/* A CPU full of noise that moves `set`. */
static void new_cpu(struct fixture *f, enum vec_set set, bool k64)
{
    rnd_fill(f, &f->c, sizeof(f->c));
    f->c.vm = &f->vm;
    vec_init(&f->c, set);
    f->c.vec.k64 = f->c.vec.k64 && k64;
    f->c.s.mxcsr = rnd_mxcsr(f);
}

/* Values in the components of bv, some rows of them only, the rest zero. */
static void rnd_regs(struct fixture *f, struct regs *g, uint64_t bv)
{
    struct regs noise;
    struct area a;

    rnd_fill(f, &noise, sizeof(noise));
    for (unsigned r = 0; r < 32; r++)
        if (rnd(f) >> 30 & 1)
            memset(noise.zmm[r], 0, sizeof(noise.zmm[r]));
    noise.mxcsr = rnd_mxcsr(f);
    to_area(f, &noise, bv, &a);
    from_area(f, &a, g);
}

/* The five components that n's bits choose. */
static uint64_t subset(unsigned n) { return (n & 3) << SSE | (uint64_t)(n >> 2 & 7) << OPMASK; }
#define SUBSETS 32

#define FOR_EACH_SET(f, set, k64)                             \
    for (enum vec_set set = VEC_SSE; set <= (f)->best; set++) \
        for (unsigned k64 = 0; k64 < 2; k64++)

/* XINUSE as XSAVE saw it. */
static uint64_t area_use(const struct area *a)
{
    uint64_t bv;

    memcpy(&bv, a->b + 512, 8);
    return bv;
}

static void only_clean(struct cpu *c) { __asm__ volatile("vzeroupper" ::: "memory"); }

/* Does this processor see that VZEROUPPER has made upper parts unused? It need not. */
static bool notices_clean(struct fixture *f)
{
    struct area in, out;
    struct regs g;

    if (f->best == VEC_SSE)
        return false;
    rnd_regs(f, &g, ~0ull);
    to_area(f, &g, ~0ull, &in);
    call_with(f, only_clean, &in, &out);
    return !(area_use(&out) & (BIT(AVX) | BIT(ZMM_HI)));
}

/* ---- tests ---- */
static void test_save(void **state)
{
    struct fixture *f = *state;
    struct area in, out;
    struct regs g, after;
    static struct cpu want;

    FOR_EACH_SET(f, set, k64)
    for (unsigned n = 0; n < SUBSETS * 4; n++) {
        new_cpu(f, set, k64);
        f->c.vec_live = true;
        rnd_regs(f, &g, subset(n % SUBSETS));
        memcpy(&want, &f->c, sizeof(want));
        put_regs(f, &want.s, &g);
        want.vec_live = false;
        to_area(f, &g, subset(n % SUBSETS), &in);
        call_with(f, vec_save, &in, &out);
        want.vec.mxcsr = f->c.vec.mxcsr;
        assert_memory_equal(&f->c, &want, sizeof(want));

        from_area(f, &out, &after);
        assert_int_equal(after.mxcsr & ~MXCSR_FLAGS, MXCSR_DEFAULT);
        for (unsigned r = 0; r < 16 && set > VEC_SSE; r++)
            for (unsigned w = 2; w < 8; w++)
                assert_int_equal(after.zmm[r][w], 0);
    }
}

static void test_load(void **state)
{
    struct fixture *f = *state;
    struct area in, out;
    struct regs g, stale, after;
    static struct cpu want;

    FOR_EACH_SET(f, set, k64)
    for (unsigned n = 0; n < SUBSETS * 4; n++) {
        new_cpu(f, set, k64);
        rnd_regs(f, &g, subset(n % SUBSETS));
        put_regs(f, &f->c.s, &g);
        rnd_regs(f, &stale, subset(rnd(f) >> 40 & (SUBSETS - 1)));
        memcpy(&want, &f->c, sizeof(want));
        want.vec_live = true;
        to_area(f, &stale, ~0ull, &in);
        call_with(f, vec_load, &in, &out);
        want.vec.mxcsr = f->c.vec.mxcsr;
        assert_memory_equal(&f->c, &want, sizeof(want));
        from_area(f, &out, &after);
        assert_regs(f, &after, &f->c.s);
    }
}

/* Zero upper parts are left unused, whatever was in the registers before. */
static void test_load_leaves_unused(void **state)
{
    struct fixture *f = *state;
    struct area in, out;
    struct regs g;

    if (!notices_clean(f))
        skip();
    for (enum vec_set set = VEC_AVX; set <= f->best; set++)
        for (unsigned n = 0; n < SUBSETS; n++) {
            new_cpu(f, set, true);
            rnd_regs(f, &g, subset(n));
            put_regs(f, &f->c.s, &g);
            rnd_regs(f, &g, ~0ull);
            to_area(f, &g, ~0ull, &in);
            call_with(f, vec_load, &in, &out);

            uint64_t upper = set == VEC_AVX ? BIT(AVX) : BIT(AVX) | BIT(ZMM_HI);
            if (!(subset(n) & upper))
                assert_int_equal(area_use(&out) & (BIT(AVX) | BIT(ZMM_HI)), 0);
            else if (!(subset(n) & upper & BIT(ZMM_HI)))
                assert_int_equal(area_use(&out) & BIT(ZMM_HI), 0);
        }
}

/* One bit somewhere in memory must not be taken for nothing. */
static void test_load_single_bits(void **state)
{
    struct fixture *f = *state;
    struct area in, out;
    struct regs after, stale;

    rnd_regs(f, &stale, ~0ull);
    to_area(f, &stale, ~0ull, &in);
    FOR_EACH_SET(f, set, k64)
    for (unsigned r = 0; r < set_rows(set); r++)
        for (unsigned w = 0; w < set_words(set); w++) {
            new_cpu(f, set, k64);
            memset(f->c.s.zmm, 0, sizeof(f->c.s.zmm));
            f->c.s.zmm[r][w] = BIT(rnd(f) >> 58);
            call_with(f, vec_load, &in, &out);
            from_area(f, &out, &after);
            assert_regs(f, &after, &f->c.s);
        }
}

/* What a C program does to registers: string functions, floating point. */
static void use_vectors(struct fixture *f)
{
    char buf[256], copy[256];
    double x = (double)(rnd(f) >> 11);

    snprintf(buf, sizeof(buf), "%.17g %200s", x / 3, "text");
    memcpy(copy, buf, sizeof(copy));
    assert_int_equal(strlen(copy), strlen(buf));
    assert_true(memchr(copy, 't', sizeof(copy)) && !strcmp(copy, buf));
}

static void test_round_trips(void **state)
{
    struct fixture *f = *state;
    struct area in, out;
    struct regs g;
    static struct cpu_state kept;

    FOR_EACH_SET(f, set, k64)
    {
        new_cpu(f, set, k64);
        rnd_regs(f, &g, ~0ull);
        put_regs(f, &f->c.s, &g);
        for (unsigned n = 0; n < ROUNDS; n++) {
            memcpy(&kept, &f->c.s, sizeof(kept));
            use_vectors(f);
            rnd_regs(f, &g, ~0ull);
            to_area(f, &g, ~0ull, &in);
            call_with(f, vec_load, &in, &out);
            from_area(f, &out, &g);
            assert_regs(f, &g, &kept);

            /* The guest changes a register or clears some. */
            if (n % 3 == 0)
                rnd_regs(f, &g, subset(rnd(f) >> 40 & (SUBSETS - 1)));
            else
                rnd_fill(f, g.zmm[n % 32], sizeof(g.zmm[0]));
            put_regs(f, &kept, &g);
            to_area(f, &g, ~0ull, &in);
            call_with(f, vec_save, &in, &out);
            assert_memory_equal(&f->c.s, &kept, sizeof(kept));
        }
    }
}

static void assert_does_nothing(struct fixture *f, void (*fn)(struct cpu *))
{
    struct area in, out;
    struct regs g, after;
    static struct cpu want;

    rnd_regs(f, &g, ~0ull);
    to_area(f, &g, ~0ull, &in);
    memcpy(&want, &f->c, sizeof(want));
    call_with(f, fn, &in, &out);
    from_area(f, &out, &after);
    assert_memory_equal(&f->c, &want, sizeof(want));
    assert_memory_equal(after.zmm, g.zmm, sizeof(g.zmm));
    assert_memory_equal(after.k, g.k, sizeof(g.k));
    assert_int_equal(after.mxcsr, g.mxcsr);
}

static void test_nothing_to_do(void **state)
{
    struct fixture *f = *state;

    FOR_EACH_SET(f, set, k64)
    {
        new_cpu(f, set, k64);
        assert_does_nothing(f, vec_save);
        f->c.vec_live = true;
        assert_does_nothing(f, vec_load);
    }
}

static volatile sig_atomic_t signals;

static void on_signal(int sig)
{
    __asm__ volatile(".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
                     "pcmpeqd %%xmm\\i, %%xmm\\i\n\t.endr" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                           "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory");
    signals++;
}

/* Translated code is interrupted by a signal: tgkill to itself. */
__attribute__((target("general-regs-only"))) static void load_and_signal(struct cpu *c)
{
    long pid, ret;

    vec_load(c);
    __asm__ volatile("syscall" : "=a"(pid) : "a"(39) : "rcx", "r11", "memory");
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(62), "D"(pid), "S"((long)SIGUSR1)
                     : "rcx", "r11", "memory");
}

static void test_signals(void **state)
{
    struct fixture *f = *state;
    struct sigaction sa = {.sa_handler = on_signal}, old;
    struct area in, out;
    struct regs g;
    int want = 0;

    signals = 0;
    assert_int_equal(sigaction(SIGUSR1, &sa, &old), 0);
    FOR_EACH_SET(f, set, k64)
    for (unsigned n = 0; n < SUBSETS; n++) {
        new_cpu(f, set, k64);
        rnd_regs(f, &g, subset(n));
        put_regs(f, &f->c.s, &g);
        rnd_regs(f, &g, ~0ull);
        to_area(f, &g, ~0ull, &in);
        call_with(f, load_and_signal, &in, &out);
        from_area(f, &out, &g);
        assert_regs(f, &g, &f->c.s);
        assert_int_equal(signals, ++want);
    }
    assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
}

static enum vec_set set_for(struct fixture *f, uint64_t xcr0, enum vec_set most)
{
    f->policy.xcr0_mask = xcr0;
    vec_init(&f->c, most);
    return f->c.vec.set;
}

static void test_set(void **state)
{
    struct fixture *f = *state;
    const uint64_t sse = XCR0_X87 | XCR0_SSE, avx = sse | XCR0_AVX, all = avx | XCR0_AVX512;
    enum vec_set host = (f->host & XCR0_AVX512) == XCR0_AVX512 ? VEC_AVX512
                        : f->host & XCR0_AVX                   ? VEC_AVX
                                                               : VEC_SSE;

    assert_int_equal(set_for(f, sse, VEC_AVX512), VEC_SSE);
    assert_int_equal(set_for(f, avx, VEC_AVX512), MIN(host, VEC_AVX));
    assert_int_equal(set_for(f, all, VEC_AVX512), host);
    assert_int_equal(set_for(f, all, VEC_AVX), MIN(host, VEC_AVX));
    assert_int_equal(set_for(f, all, VEC_SSE), VEC_SSE);
    f->c.vec_live = true;
    vec_init(&f->c, VEC_SSE);
    assert_false(f->c.vec_live);
}

/* ---- what it costs ---- */
static double pair_ns(struct cpu *c)
{
    const unsigned n = 1000000;
    struct timespec t[2];
    double best = 1e9;

    for (unsigned run = 0; run < 9; run++) {
        clock_gettime(CLOCK_MONOTONIC, &t[0]);
        for (unsigned i = 0; i < n; i++) {
            vec_load(c);
            vec_save(c);
        }
        clock_gettime(CLOCK_MONOTONIC, &t[1]);
        double ns =
            (double)(t[1].tv_sec - t[0].tv_sec) * 1e9 + (double)(t[1].tv_nsec - t[0].tv_nsec);
        best = MIN(best, ns / n);
    }
    return best;
}

static void bench_set(struct fixture *f, enum vec_set set)
{
    static const char *const names[] = {"16 XMM", "16 YMM", "32 ZMM and 8 opmasks"};
    static const struct {
        const char *name;
        uint64_t bv;
        enum vec_set needs;
        uint32_t mxcsr;
    } row[] = {
        {"all zero", 0, VEC_SSE, MXCSR_DEFAULT},
        {"XMM", BIT(SSE), VEC_SSE, MXCSR_DEFAULT},
        {"XMM, and MXCSR other than the host's", BIT(SSE), VEC_SSE, MXCSR_DEFAULT | MXCSR_FZ},
        {"YMM", BIT(SSE) | BIT(AVX), VEC_AVX, MXCSR_DEFAULT},
        {"YMM, opmasks and registers 16-31", BV_VEC & ~BIT(ZMM_HI), VEC_AVX512, MXCSR_DEFAULT},
        {"everything", BV_VEC, VEC_AVX512, MXCSR_DEFAULT},
    };
    struct regs g;

    for (unsigned i = 0; i < ARRAY_LEN(row); i++) {
        if (row[i].needs > set)
            continue;
        memset(&f->c.s, 0, sizeof(f->c.s));
        vec_init(&f->c, set);
        rnd_regs(f, &g, row[i].bv);
        g.mxcsr = row[i].mxcsr;
        put_regs(f, &f->c.s, &g);
        printf("%-22s %-38s %6.1f ns\n", names[set], row[i].name, pair_ns(&f->c));
    }
}

static int bench(void)
{
    void *state;

    if (setup(&state) < 0)
        return 1;
    struct fixture *f = state;
    printf("%-22s %-38s %s\n", "guest has", "in use", "load and save");
    for (enum vec_set set = VEC_SSE; set <= f->best; set++)
        bench_set(f, set);
    teardown(&state);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_save, setup, teardown),
        cmocka_unit_test_setup_teardown(test_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_load_leaves_unused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_load_single_bits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_round_trips, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_to_do, setup, teardown),
        cmocka_unit_test_setup_teardown(test_signals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_set, setup, teardown),
    };

    if (argc == 2 && !strcmp(argv[1], "--bench"))
        return bench();
    return cmocka_run_group_tests_name("vec", tests, NULL, NULL);
}
