/* What the silicon oracle cannot show in user mode: control registers, XCR0, FERR#, 16- and 32-bit
 * code, the bound of the routine cache. Expected results are the manuals'. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "native.h"
#include "world.h"

#define NONE (-1)
#define MEM DATA_ADDR

static uint8_t *const mem = (uint8_t *)MEM;

static int setup(void **state)
{
    struct world *w = aligned_alloc(64, ALIGN_UP(sizeof(*w), 64));
    struct err e;

    if (!w || world_init(w, &e))
        return -1;
    w->c.s.mxcsr = MXCSR_DEFAULT;
    x87_reset(&w->c.s.x87);
    w->c.s.gpr[RDI] = MEM;
    memset(mem, 0, DATA_BYTES);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    world_fini(*state);
    free(*state);
    return 0;
}

/* The vector raised, or NONE. */
static int exec(struct world *w, const char *bytes, unsigned n)
{
    uint8_t code[INSN_MAX_LEN] = {0};
    struct insn i;

    memcpy(code, bytes, n);
    assert_int_equal(insn_decode(&i, code, sizeof(code), w->c.bits), INSN_OK);
    assert_int_equal(i.len, n);
    assert_non_null(simd_fn(&i));
    w->c.s.rip = CODE_ADDR;
    return world_step(w, &i, NULL) ? NONE : w->c.event.vector;
}
#define EXEC(w, s) exec(w, s, sizeof(s) - 1)

static bool host_has(struct world *w, enum cpu_feature f) { return cpuid_has(&w->policy, f); }

#define ADDPS "\x0f\x58\xc1"
#define PADDB_MMX "\x0f\xfc\xc1"
#define CVTPI2PS "\x0f\x2a\xc1"
#define VADDPS "\xc5\xf0\x58\xc2"
#define VADDPS_ZMM "\x62\xf1\x74\x48\x58\xc2"
#define FLD1 "\xd9\xe8"
#define FWAIT "\x9b"
#define FXSAVE "\x0f\xae\x07"
#define XSAVE "\x0f\xae\x27"
#define XGETBV "\x0f\x01\xd0"
#define XSETBV "\x0f\x01\xd1"

static void test_legacy_availability(void **state)
{
    struct world *w = *state;
    uint64_t *cr0 = &w->c.s.cr0, *cr4 = &w->c.s.cr4;

    assert_int_equal(EXEC(w, ADDPS), NONE);
    *cr0 |= CR0_TS;
    assert_int_equal(EXEC(w, ADDPS), X_NM);
    assert_int_equal(EXEC(w, PADDB_MMX), X_NM);
    assert_int_equal(EXEC(w, FLD1), X_NM);
    assert_int_equal(EXEC(w, FXSAVE), X_NM);
    assert_int_equal(EXEC(w, XSAVE), X_NM);
    assert_int_equal(EXEC(w, FWAIT), X_NM); /* MP is set */
    *cr0 &= ~CR0_MP;
    assert_int_equal(EXEC(w, FWAIT), NONE);
    assert_int_equal(EXEC(w, FLD1), X_NM);
    *cr0 |= CR0_EM; /* #UD wins over #NM */
    assert_int_equal(EXEC(w, ADDPS), X_UD);
    assert_int_equal(EXEC(w, PADDB_MMX), X_UD);
    assert_int_equal(EXEC(w, FLD1), X_NM);
    *cr0 = (*cr0 & ~(CR0_EM | CR0_TS)) | CR0_MP;
    *cr4 &= ~CR4_OSFXSR;
    assert_int_equal(EXEC(w, ADDPS), X_UD);
    assert_int_equal(EXEC(w, CVTPI2PS), X_UD);
    assert_int_equal(EXEC(w, PADDB_MMX), NONE);
}

static void test_vex_availability(void **state)
{
    struct world *w = *state;
    struct cpu_state *s = &w->c.s;

    if (!host_has(w, CPUF_AVX))
        skip();
    assert_int_equal(EXEC(w, VADDPS), NONE);
    s->cr0 |= CR0_EM; /* no concern of VEX */
    assert_int_equal(EXEC(w, VADDPS), NONE);
    s->cr0 |= CR0_TS;
    assert_int_equal(EXEC(w, VADDPS), X_NM);
    s->xcr0 = XCR0_X87 | XCR0_SSE;
    assert_int_equal(EXEC(w, VADDPS), X_UD);
    s->xcr0 |= XCR0_AVX;
    s->cr4 &= ~CR4_OSXSAVE;
    assert_int_equal(EXEC(w, VADDPS), X_UD);
    assert_int_equal(EXEC(w, XSAVE), X_UD);
    assert_int_equal(EXEC(w, XGETBV), X_UD);
}

static void test_evex_availability(void **state)
{
    struct world *w = *state;

    if (!host_has(w, CPUF_AVX512F))
        skip();
    assert_int_equal(EXEC(w, VADDPS_ZMM), NONE);
    w->c.s.xcr0 &= ~(1ull << 6);
    assert_int_equal(EXEC(w, VADDPS_ZMM), X_UD);
    assert_int_equal(EXEC(w, VADDPS), NONE);
}

static int xsetbv(struct world *w, uint32_t reg, uint64_t v)
{
    w->c.s.gpr[RCX] = reg;
    w->c.s.gpr[RAX] = (uint32_t)v;
    w->c.s.gpr[RDX] = v >> 32;
    return EXEC(w, XSETBV);
}

static void test_xsetbv(void **state)
{
    struct world *w = *state;
    uint64_t all = w->policy.xcr0_mask;

    assert_int_equal(xsetbv(w, 0, 1), X_GP); /* CPL 3 */
    w->c.cpl = 0;
    assert_int_equal(xsetbv(w, 0, 1), NONE);
    assert_int_equal(w->c.s.xcr0, 1);
    assert_int_equal(xsetbv(w, 0, all), NONE);
    assert_int_equal(w->c.s.xcr0, all);
    assert_int_equal(xsetbv(w, 1, 1), X_GP);
    assert_int_equal(xsetbv(w, 0, 2), X_GP);             /* x87 must stay */
    assert_int_equal(xsetbv(w, 0, 5), X_GP);             /* AVX without SSE */
    assert_int_equal(xsetbv(w, 0, all | BIT(62)), X_GP); /* not offered */
    if (all & XCR0_AVX512) {
        assert_int_equal(xsetbv(w, 0, 7 | BIT(5)), X_GP); /* AVX-512 in parts */
        assert_int_equal(xsetbv(w, 0, 3 | XCR0_AVX512), X_GP);
    }
    assert_int_equal(w->c.s.xcr0, all);
}

static void test_simd_exception(void **state)
{
    struct world *w = *state;
    static const float big[4] = {3e38f, 1, 1, 1};

    memcpy(w->c.s.zmm[0], big, 16);
    memcpy(w->c.s.zmm[1], big, 16);
    w->c.s.mxcsr = MXCSR_DEFAULT & ~(MXCSR_OE << MXCSR_MASK_SHIFT);
    assert_int_equal(EXEC(w, ADDPS), X_XM);
    assert_true(w->c.s.mxcsr & MXCSR_OE);
    assert_memory_equal(w->c.s.zmm[0], big, 16);
    w->c.s.mxcsr &= ~MXCSR_FLAGS;
    w->c.s.cr4 &= ~CR4_OSXMMEXCPT;
    assert_int_equal(EXEC(w, ADDPS), X_UD);
}

static void test_ferr(void **state)
{
    struct world *w = *state;
    struct x87_state *x = &w->c.s.x87;

    x->fcw = FCW_DEFAULT & ~FSW_IE;
    x->fsw = FSW_IE;
    x87_update_es(x);
    assert_int_equal(EXEC(w, FLD1), X_MF);
    assert_int_equal(EXEC(w, PADDB_MMX), X_MF);
    w->c.s.cr0 &= ~CR0_NE;
    EXEC(w, FWAIT);
    assert_true(w->restarted);
    assert_true(w->ferr);
    assert_int_equal(EXEC(w, "\xdb\xe2"), NONE); /* FNCLEX */
    assert_false(w->ferr);
    assert_int_equal(EXEC(w, FWAIT), NONE);
    assert_false(w->restarted);
}

static void set_bits(struct world *w, enum cpu_bits bits)
{
    w->c.bits = (uint8_t)bits;
    w->c.flat = bits == CPU_64;
    w->c.s.efer = bits == CPU_64 ? EFER_LMA : 0;
}

static uint16_t word(unsigned off) { return (uint16_t)(mem[off] | mem[off + 1] << 8); }

/* SDM vol. 1 figures 8-9 to 8-12. */
static void test_environment_layouts(void **state)
{
    struct world *w = *state;
    struct x87_state *x = &w->c.s.x87;
    static const char fnstenv[] = "\xd9\x37", fldenv[] = "\xd9\x27";

    set_bits(w, CPU_32);
    w->c.s.gpr[RDI] = MEM;
    x->fip = 0x12345;
    x->fdp = 0x6789a;
    x->fop = 0x123;
    assert_int_equal(exec(w, fnstenv, 2), NONE);
    assert_int_equal(word(0), FCW_DEFAULT);
    assert_int_equal(word(8), 0xffff); /* all empty */
    assert_int_equal(word(12), 0x2345);
    assert_int_equal(word(14), 0x0001);
    assert_int_equal(word(18), 0x123);
    assert_int_equal(word(20), 0x789a);
    assert_int_equal(word(22), 0x0006);

    assert_int_equal(exec(w, "\x66\xd9\x37", 3), NONE); /* 16-bit form */
    assert_int_equal(word(6), 0x2345);
    assert_int_equal(word(10), 0x789a);

    w->c.s.cr0 &= ~(CR0_PE | CR0_PG); /* real mode: linear addresses and the opcode */
    assert_int_equal(exec(w, "\x66\xd9\x37", 3), NONE);
    assert_int_equal(word(6), 0x2345);
    assert_int_equal(word(8), 0x1123);
    assert_int_equal(word(10), 0x789a);
    assert_int_equal(word(12), 0x6000);
    assert_int_equal(exec(w, fnstenv, 2), NONE);
    assert_int_equal(word(12), 0x2345);
    assert_int_equal(mem[16] | mem[17] << 8, 0x1123);
    x->fip = x->fdp = x->fop = 0;
    assert_int_equal(exec(w, fldenv, 2), NONE);
    assert_int_equal(x->fip, 0x12345);
    assert_int_equal(x->fdp, 0x6789a);
    assert_int_equal(x->fop, 0x123);
}

/* Outside 64-bit code registers 8 and up do not exist for anybody. */
static void test_eight_registers(void **state)
{
    struct world *w = *state;

    for (unsigned r = 0; r < 32; r++)
        memset(w->c.s.zmm[r], 0x11 + (int)r, 64);
    set_bits(w, CPU_32);
    memset(mem, 0xee, 1024);
    assert_int_equal(EXEC(w, FXSAVE), NONE);
    assert_int_equal(mem[160 + 7 * 16], 0x18);
    assert_int_equal(mem[160 + 8 * 16], 0xee);
    assert_int_equal(EXEC(w, "\x0f\xae\x0f"), NONE); /* FXRSTOR */
    assert_int_equal(w->c.s.zmm[8][0] & 0xff, 0x19);
    if (!host_has(w, CPUF_AVX))
        return;
    assert_int_equal(EXEC(w, "\xc5\xfc\x77"), NONE); /* VZEROALL */
    assert_int_equal(w->c.s.zmm[7][0], 0);
    assert_int_equal(w->c.s.zmm[8][0] & 0xff, 0x19);
    /* VPXOR xmm0, xmm1, xmm1 with the vvvv bit that 32-bit code ignores; W on a move that ignores
     * it */
    memset(w->c.s.zmm[0], 0x99, 64);
    memset(w->c.s.zmm[1], 0x77, 64);
    assert_int_equal(EXEC(w, "\xc4\xe1\x31\xef\xc1"), NONE);
    assert_int_equal(w->c.s.zmm[0][0], 0);
    memset(w->c.s.zmm[1], 0x77, 64);
    w->c.s.gpr[RAX] = 0x1122334455667788;
    assert_int_equal(EXEC(w, "\xc4\xe1\xf9\x6e\xc8"), NONE); /* VMOVD xmm1, eax */
    assert_int_equal(w->c.s.zmm[1][0], 0x55667788);
    assert_int_equal(w->c.s.zmm[1][7], 0);
}

/* The cache starts over when it is full; results stay right and memory bounded. */
static void test_cache_bound(void **state)
{
    struct world *w = *state;
    unsigned before = 0, resets = 0;

    for (unsigned n = 0; n < 3 * STUB_SLOTS; n++) { /* PSHUFD xmm, xmm, imm8 */
        unsigned dst = n >> 8 & 7, src = n >> 11 & 7, imm = n & 0xff;
        char code[5] = {0x66, 0x0f, 0x70, (char)(0xc0 | dst << 3 | src), (char)imm};
        uint32_t in[4] = {n, ~n, n * 3, n ^ 0x5555}, out[4];

        memcpy(w->c.s.zmm[src], in, 16);
        assert_int_equal(exec(w, code, 5), NONE);
        memcpy(out, w->c.s.zmm[dst], 16);
        for (unsigned k = 0; k < 4; k++)
            assert_int_equal(out[k], in[imm >> 2 * k & 3]);
        resets += w->c.simd->stubs.count < before;
        before = w->c.simd->stubs.count;
        assert_true(before < STUB_SLOTS);
    }
    assert_true(resets > 0);
}

/* The stack survives instructions of other kinds in between, and x87_sync may come at any time. */
static void test_x87_stays_live(void **state)
{
    struct world *w = *state;
    double d;

    assert_int_equal(EXEC(w, FLD1), NONE);
    assert_true(w->c.x87_live);
    assert_int_equal(EXEC(w, ADDPS), NONE);
    x87_sync(&w->c);
    assert_false(w->c.x87_live);
    assert_int_equal(EXEC(w, "\xd8\xc0"), NONE); /* FADD st0, st0 */
    assert_int_equal(EXEC(w, "\xdd\x1f"), NONE); /* FSTP [rdi] */
    memcpy(&d, mem, 8);
    assert_true(d == 2.0);
    x87_sync(&w->c);
    assert_int_equal(w->c.s.x87.tag, 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_legacy_availability), T(test_vex_availability),
        T(test_evex_availability),   T(test_xsetbv),
        T(test_simd_exception),      T(test_ferr),
        T(test_environment_layouts), T(test_eight_registers),
        T(test_cache_bound),         T(test_x87_stays_live),
    };

    if (!native_init())
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
