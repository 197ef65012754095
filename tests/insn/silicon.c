/*
 * What the table says of vector instructions, against the processor the test runs on: #UD or not,
 * IF_ALIGN, IF_FP, the size of memory operands, which registers are written and whether the
 * destination's old value matters. Each encoding is single-stepped in a traced child; instructions
 * that the host lacks are left out. silicon              fixed seed silicon ROUNDS SEED  by hand
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <cpuid.h>

#include "base/util.h"
#include "gen.h"
#include "oracle.h"
#include "traced.h"

enum { OFF_MXCSR = 24, OFF_XMM = 160, OFF_XSTATE_BV = 512 };
enum { SIG_ILL = 4, SIG_SEGV = 11 };

struct silicon {
    struct traced t;
    struct cpuid_policy host;
    uint64_t xcr0;
    uint32_t off[8]; /* of state components in x */
    size_t xsize;
    struct traced_state base;
    struct rng rng;
    struct oracle oracle;
    unsigned bad, ran;
};

struct row_facts {
    bool ran, fp_seen, dep_seen, dep_tried;
};

/* ---- host ---- */
static void host_features(struct silicon *s)
{
#define X(name, leaf, sub, reg, bit) {leaf, sub, reg, bit},
    static const struct {
        uint32_t leaf, sub;
        char reg;
        uint8_t bit;
    } f[] = {CPU_FEATURES(X)};
#undef X
    uint32_t lo, hi, a, b, c, d;

    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    s->xcr0 = (lo | (uint64_t)hi << 32) & 0xe7;
    for (unsigned k = 0; k < CPUF_COUNT; k++) {
        if (!__get_cpuid_count(f[k].leaf, f[k].sub, &a, &b, &c, &d))
            continue;
        uint32_t v = f[k].reg == 'a' ? a : f[k].reg == 'b' ? b : f[k].reg == 'c' ? c : d;
        if (v >> f[k].bit & 1)
            s->host.feature[k / 64] |= 1ull << (k % 64);
    }
    for (unsigned k = 2; k < 8; k++) {
        if (s->xcr0 >> k & 1) {
            __cpuid_count(13, k, a, b, c, d);
            s->off[k] = b;
            s->xsize = MAX(s->xsize, (size_t)(b + a));
        }
    }
    s->xsize = MAX(s->xsize, 576u);
}

/* ---- state ---- */
/* Numbers that make floating point misbehave now and then. */
static uint64_t odd_number(struct rng *r)
{
    static const uint64_t f64[] = {0, 0x3ff0000000000000, 0x7ff0000000000000, 0x7ff4000000000000,
                                   1, 0x7fefffffffffffff, 0xbfe5555555555555, 0x0010000000000000};
    static const uint32_t f32[] = {0, 0x3f800000, 0x7f800000, 0x7fa00000,
                                   1, 0x7f7fffff, 0xbeaaaaab, 0x00800000};

    switch (below(r, 5)) {
    case 4:
        return 0x7d017c0000013c00; /* half precision: SNaN, infinity, denormal, 1 */
    case 0:
        return f64[below(r, 8)];
    case 1:
        return f32[below(r, 8)] | (uint64_t)f32[below(r, 8)] << 32;
    case 2:
        return below(r, 16) | (uint64_t)below(r, 16) << 32;
    default:
        return rnd(r);
    }
}

/* Bytes [at, at+16) of vector register n. */
static uint8_t *vec_part(const struct silicon *s, uint8_t *x, unsigned n, unsigned at)
{
    if (n >= 16)
        return s->off[7] ? x + s->off[7] + (n - 16) * 64 + at : NULL;
    if (at < 16)
        return x + OFF_XMM + n * 16;
    if (at < 32)
        return s->off[2] ? x + s->off[2] + n * 16 : NULL;
    return s->off[6] ? x + s->off[6] + n * 32 + (at - 32) : NULL;
}

static void randomise_vec(struct silicon *s, uint8_t *x, unsigned n)
{
    for (unsigned at = 0; at < 64; at += 16) {
        uint8_t *p = vec_part(s, x, n, at);
        uint64_t v[2] = {odd_number(&s->rng), odd_number(&s->rng)};
        if (p)
            memcpy(p, v, 16);
    }
}

static void random_state(struct silicon *s, struct traced_state *m)
{
    const uint32_t mxcsr = 0x1f80;
    const uint64_t bv = s->xcr0;

    *m = s->base;
    for (size_t k = 0; k < 16; k++)
        m->gpr[k] = k < 8 ? TRACED_DATA + TRACED_PAGE / 2 : rnd(&s->rng);
    m->rflags = 0x202;
    for (unsigned n = 0; n < 32; n++)
        randomise_vec(s, m->x, n);
    for (unsigned n = 0; n < 8; n++) {
        uint64_t k = rnd(&s->rng) | 1;
        uint64_t mm = odd_number(&s->rng);
        if (s->off[5])
            memcpy(m->x + s->off[5] + n * 8, &k, 8);
        memcpy(m->x + 32 + n * 16, &mm, 8);
    }
    memcpy(m->x + OFF_MXCSR, &mxcsr, 4);
    memcpy(m->x + OFF_XSTATE_BV, &bv, 8);
    for (size_t k = 0; k < TRACED_PAGE; k += 8) {
        uint64_t v = odd_number(&s->rng);
        memcpy(s->t.data + k, &v, 8);
    }
}

/* ---- checks ---- */
static void complain(struct silicon *s, const struct insn *i, const char *fmt, ...)
{
    va_list ap;

    if (s->bad++ >= 60)
        return;
    printf("%-14s", i->row ? i->row->mnemonic : "(none)");
    for (unsigned k = 0; k < INSN_MAX_LEN && i->len != 0xff && (k < i->len || !i->len); k++)
        printf(" %02x", i->raw[k]);
    printf(": ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

static bool implicit_xmm0(const struct insn *i)
{
    return i->id == INSN_PCMPESTRM || i->id == INSN_PCMPISTRM || i->id == INSN_VPCMPESTRM ||
           i->id == INSN_VPCMPISTRM;
}

static bool writes_vec(const struct insn *i, unsigned n)
{
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_REG && i->op[k].cls == RC_VEC && i->op[k].reg == n &&
            i->op[k].write)
            return true;
    return (n == 0 && implicit_xmm0(i)) || i->id == INSN_VZEROALL || i->id == INSN_VZEROUPPER;
}

static bool writes_k(const struct insn *i, unsigned n)
{
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_REG && i->op[k].cls == RC_K && i->op[k].reg == n && i->op[k].write)
            return true;
    /* gathers and scatters clear their mask as they go */
    return i->mem.vsib && (i->prefix & PFX_EVEX) && n == i->evex_aaa;
}

static void check_written(struct silicon *s, const struct insn *i, struct traced_state *a,
                          struct traced_state *b)
{
    for (unsigned n = 0; n < 32; n++) {
        if (writes_vec(i, n))
            continue;
        for (unsigned at = 0; at < 64; at += 16) {
            uint8_t *p = vec_part(s, a->x, n, at), *q = vec_part(s, b->x, n, at);
            if (p && memcmp(p, q, 16)) {
                complain(s, i, "vector register %u changed", n);
                break;
            }
        }
    }
    for (unsigned n = 0; s->off[5] && n < 8; n++)
        if (!writes_k(i, n) && memcmp(a->x + s->off[5] + 8 * n, b->x + s->off[5] + 8 * n, 8))
            complain(s, i, "opmask %u changed", n);
    bool flags = (a->rflags ^ b->rflags) & i->row->fl_write & FL_STATUS;
    bool others = (a->rflags ^ b->rflags) & ~(uint64_t)i->row->fl_write & FL_STATUS;
    if (others || (flags && !(i->row->flags & IF_FLAGS_OUT)))
        complain(s, i, "EFLAGS changed");
}

static bool mxcsr_changed(const struct traced_state *b)
{
    uint32_t v;

    memcpy(&v, b->x + OFF_MXCSR, 4);
    return v != 0x1f80;
}

static bool same_vec(struct silicon *s, struct traced_state *a, struct traced_state *b, unsigned n,
                     unsigned bytes)
{
    for (unsigned at = 0; at < bytes; at += 16) {
        uint8_t *p = vec_part(s, a->x, n, at), *q = vec_part(s, b->x, n, at);
        if (p && memcmp(p, q, 16))
            return false;
    }
    return true;
}

/* Runs again with another old value in the destination: does the result depend on it? */
static void check_dest_read(struct silicon *s, const struct insn *i, struct traced_state *in,
                            struct traced_state *out, struct row_facts *facts)
{
    const struct opnd *o = &i->op[0];
    struct traced_state in2 = *in, out2;
    bool gp;

    if (!i->nops || o->kind != OP_REG || o->cls != RC_VEC || !o->write)
        return;
    for (unsigned k = 1; k < i->nops; k++)
        if (i->op[k].kind == OP_REG && i->op[k].cls == RC_VEC && i->op[k].reg == o->reg)
            return;
    if (i->mem.vsib && i->mem.index == o->reg)
        return;
    randomise_vec(s, in2.x, o->reg);
    if (traced_step(&s->t, &in2, &out2, &gp))
        return;
    bool depends =
        !same_vec(s, out, &out2, o->reg, i->prefix & (PFX_VEX | PFX_EVEX) ? 64 : o->size);
    if (depends && !o->read)
        complain(s, i, "destination is read");
    if (!i->evex_aaa || i->evex_z) {
        facts->dep_tried |= o->read;
        facts->dep_seen |= depends;
    }
}

/* Runs again with another MXCSR: DAZ, FTZ, rounding up. Does the result depend on it? */
static bool depends_on_mxcsr(struct silicon *s, const struct insn *i, struct traced_state *in,
                             struct traced_state *out)
{
    const uint32_t other = 0xdfc0;
    struct traced_state in2 = *in, out2;
    bool gp;

    memcpy(in2.x + OFF_MXCSR, &other, 4);
    if (traced_step(&s->t, &in2, &out2, &gp))
        return false;
    for (unsigned k = 0; k < i->nops; k++) {
        const struct opnd *o = &i->op[k];
        if (o->kind != OP_REG || !o->write)
            continue;
        if (o->cls == RC_VEC && !same_vec(s, out, &out2, o->reg, MAX(o->size, 16u)))
            return true;
        if (o->cls == RC_K && s->off[5] &&
            memcmp(out->x + s->off[5] + 8 * o->reg, out2.x + s->off[5] + 8 * o->reg, 8))
            return true;
        if (o->cls == RC_GPR && out->gpr[o->reg] != out2.gpr[o->reg])
            return true;
    }
    return false;
}

static bool vector_row(const struct insn_row *r)
{
    return (r->flags & (IF_SSE | IF_AVX | IF_AVX512 | IF_MMX)) && r->id != INSN_LDMXCSR &&
           r->id != INSN_STMXCSR && r->id != INSN_VLDMXCSR && r->id != INSN_VSTMXCSR;
}

static bool writes_memory(const struct insn *i)
{
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_MEM && i->op[k].write)
            return true;
    return false;
}

static void try_case(struct silicon *s, const uint8_t code[16], struct row_facts *facts)
{
    struct traced_state in, out;
    bool gp;
    struct insn i;
    int e = insn_decode(&i, code, INSN_MAX_LEN, CPU_64);

    if (e == INSN_OK && (!vector_row(i.row) || !insn_supported(&i, &s->host)))
        return;
    random_state(s, &in);
    memset(s->t.code, 0xcc, 64);
    memcpy(s->t.code, code, 16);
    int sig = traced_step(&s->t, &in, &out, &gp);
    s->ran++;
    if (e != INSN_OK) {
        if (sig != SIG_ILL && !(e == INSN_E_LONG && sig == SIG_SEGV) &&
            !oracle_foreign(&s->oracle, code, CPU_64)) {
            i.len = 0;
            complain(s, &i, "the processor accepts it, we do not");
        }
        return;
    }
    if (sig == SIG_ILL) {
        complain(s, &i, "#UD");
        return;
    }
    if (sig)
        return;
    struct row_facts *f = &facts[i.row - insn_table];
    f->ran = true;
    bool fp = mxcsr_changed(&out) || (!writes_memory(&i) && depends_on_mxcsr(s, &i, &in, &out));
    f->fp_seen |= fp;
    if (fp && !(i.row->flags & IF_FP))
        complain(s, &i, "MXCSR matters");
    check_written(s, &i, &in, &out);
    /* A single-step trap may come between two elements of a gather or scatter. */
    if (out.rip != TRACED_CODE + i.len && !i.mem.vsib)
        complain(s, &i, "length");
    check_dest_read(s, &i, &in, &out, f);
}

/* ---- memory operands: [RBX] without displacement, put where it matters ---- */
static int mem_at(struct silicon *s, uint64_t ea, bool *gp)
{
    struct traced_state in, out;

    random_state(s, &in);
    in.gpr[RBX] = ea;
    return traced_step(&s->t, &in, &out, gp);
}

/* VMASKMOV and the like touch only what their mask selects. */
static bool partial(const struct insn *i)
{
    switch (i->id) {
    case INSN_VMASKMOVPS:
    case INSN_VMASKMOVPD:
    case INSN_VPMASKMOVD:
    case INSN_VPMASKMOVQ:
    case INSN_MASKMOVQ:
    case INSN_MASKMOVDQU:
    case INSN_VMASKMOVDQU:
        return true;
    default:
        return i->mem.vsib || i->evex_aaa;
    }
}

static void try_memory(struct silicon *s, const struct insn_row *row)
{
    const uint64_t end = TRACED_DATA + TRACED_PAGE;
    uint8_t code[16];
    struct insn i;
    unsigned k, tries;
    bool gp;

    for (tries = 0; tries < 400; tries++) {
        make_from_row(&s->rng, row, code);
        if (insn_decode(&i, code, 16, CPU_64) != INSN_OK || i.row != row || !i.has_modrm ||
            (i.modrm & 0xc7) != 3 || i.mem.base != RBX || i.mem.seg_override || i.addrsize != 8 ||
            partial(&i) || !insn_supported(&i, &s->host))
            continue;
        for (k = 0; k < i.nops && i.op[k].kind != OP_MEM; k++)
            ;
        if (k < i.nops && i.op[k].size)
            break;
    }
    if (tries == 400)
        return;
    unsigned size = i.op[k].size;
    memset(s->t.code, 0xcc, 64);
    memcpy(s->t.code, code, 16);
    if (mem_at(s, end - size, &gp))
        complain(s, &i, "%u bytes at the end of a page fault", size);
    bool align = i.row->flags & IF_ALIGN;
    if (mem_at(s, align ? end : end - size + 1, &gp) != SIG_SEGV || gp)
        complain(s, &i, "%u bytes beyond the end of a page do not fault", size);
    int sig = mem_at(s, TRACED_DATA + 64 + 1, &gp);
    if (size > 1 && (sig == SIG_SEGV && gp) != align)
        complain(s, &i, align ? "needs no alignment" : "needs alignment");
}

/* ---- */
/* Instructions whose exceptions depend on an immediate or on operands too special for random ones.
 */
static bool fp_rare(const struct insn_row *r)
{
    switch (r->id) {
    case INSN_VFIXUPIMMPS:
    case INSN_VFIXUPIMMPD:
    case INSN_VFIXUPIMMSS:
    case INSN_VFIXUPIMMSD:
        return true;
    default:
        return false;
    }
}

static bool fp_missing(const struct row_facts *f, const struct insn_row *r)
{
    return f->ran && (r->flags & IF_FP) && !f->fp_seen && !fp_rare(r);
}

static bool dep_missing(const struct row_facts *f) { return f->dep_tried && !f->dep_seen; }

static bool facts_missing(const struct row_facts *f, const struct insn_row *r)
{
    return fp_missing(f, r) || dep_missing(f);
}

static void judge_rows(struct silicon *s, const struct row_facts *facts)
{
    unsigned ran = 0, could = 0;

    for (size_t k = 0; k < insn_table_len; k++) {
        const struct insn_row *r = &insn_table[k];
        struct insn i = {.row = r, .len = 0xff};
        if (!vector_row(r))
            continue;
        could++;
        ran += facts[k].ran;
        if (fp_missing(&facts[k], r))
            complain(s, &i, "row %zu: MXCSR never mattered", k);
        if (dep_missing(&facts[k]))
            complain(s, &i, "row %zu: the destination's old value never mattered", k);
    }
    printf("%u encodings run, %u of %u vector rows, %u differences\n", s->ran, ran, could, s->bad);
}

static unsigned silicon(unsigned rounds, uint64_t seed)
{
    struct silicon *s = calloc(1, sizeof(*s));
    struct row_facts *facts = calloc(insn_table_len, sizeof(*facts));

    assert_non_null(s);
    assert_non_null(facts);
    s->rng.s = seed;
    host_features(s);
    oracle_init(&s->oracle);
    if (!traced_start(&s->t, s->xsize) || !traced_get(&s->t, &s->base)) {
        printf("cannot trace a child here: skipped\n");
        skip();
    }
    for (size_t k = 0; k < insn_table_len; k++) {
        if (!vector_row(&insn_table[k]))
            continue;
        /* Rare events get more chances. */
        for (unsigned n = 0;
             n < rounds || (n < 40 * rounds && facts_missing(&facts[k], &insn_table[k])); n++) {
            uint8_t code[16];
            make_from_row(&s->rng, &insn_table[k], code);
            try_case(s, code, facts);
        }
        try_memory(s, &insn_table[k]);
    }
    judge_rows(s, facts);
    unsigned bad = s->bad;
    traced_stop(&s->t);
    free(facts);
    free(s);
    return bad;
}

static void test_silicon(void **state) { assert_int_equal(silicon(24, 1), 0); }

static void test_by_hand(void **state)
{
    char *const *argv = *state;

    assert_int_equal(
        silicon((unsigned)strtoul(argv[1], NULL, 0), argv[2] ? strtoull(argv[2], NULL, 0) : 1), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest fixed[] = {cmocka_unit_test(test_silicon)};
    const struct CMUnitTest by_hand[] = {cmocka_unit_test_prestate(test_by_hand, argv)};

    return argc > 1 ? cmocka_run_group_tests(by_hand, NULL, NULL)
                    : cmocka_run_group_tests(fixed, NULL, NULL);
}
