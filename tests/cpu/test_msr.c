/* The MSR table: what reads as what, what may be written, what is #GP, what is not ours. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/msr.h"
#include "fake_host.h"
#include "rng.h"

#define XCR0_ALL 0xe7

struct fix {
    struct cpuid_policy intel, amd;
    struct cpu_state s;
};

static int setup(void **state)
{
    static struct fix f;
    struct err e;

    if (fake_build(&f.intel, FAKE_HOST(fake_intel_leaves), XCR0_ALL, 1, &e) ||
        fake_build(&f.amd, FAKE_HOST(fake_amd_leaves), XCR0_ALL, 1, &e))
        return -1;
    cpu_state_reset(&f.s);
    *state = &f;
    return 0;
}

static uint64_t rd(struct fix *f, const struct cpuid_policy *p, uint32_t msr)
{
    uint64_t v = 0xdead;

    assert_int_equal(msr_read(&f->s, p, msr, 0, &v), 0);
    return v;
}

static void ok(struct fix *f, const struct cpuid_policy *p, uint32_t msr, uint64_t v, uint64_t want)
{
    assert_int_equal(msr_write(&f->s, p, msr, 0, v), 0);
    assert_int_equal(rd(f, p, msr), want);
}

static void gp(struct fix *f, const struct cpuid_policy *p, uint32_t msr, uint64_t v)
{
    struct cpu_state before = f->s;

    assert_int_equal(msr_write(&f->s, p, msr, 0, v), -EINVAL);
    assert_memory_equal(&f->s, &before, sizeof(before));
}

static void test_plain(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;

    ok(f, p, MSR_STAR, 0x0123456789abcdef, 0x0123456789abcdef);
    assert_int_equal(f->s.star, 0x0123456789abcdef);
    ok(f, p, MSR_SFMASK, 0x1234567800047700, 0x47700);
    ok(f, p, MSR_SYSENTER_CS, 0xffff00000010, 0x10);
    ok(f, p, MSR_SPEC_CTRL, 0x401, 0x401);
    gp(f, p, MSR_SPEC_CTRL, BIT(3));
    ok(f, &f->amd, MSR_SPEC_CTRL, 1, 1);
    gp(f, &f->amd, MSR_SPEC_CTRL, 4);
    ok(f, p, 0x1d9, 2, 2);
    gp(f, p, 0x1d9, BIT(6));
    ok(f, p, MSR_TSC_AUX, 0xffffffff, 0xffffffff);
    gp(f, p, MSR_TSC_AUX, BIT(32));
    ok(f, &f->amd, MSR_TSC_AUX, BIT(32) | 5, 5);
    ok(f, p, 0x17a, 4, 4);
    gp(f, p, 0x17a, 8);
}

static void test_canonical(void **state)
{
    struct fix *f = *state;
    static const struct {
        uint32_t msr;
        size_t off;
    } m[] = {
        {MSR_LSTAR, offsetof(struct cpu_state, lstar)},
        {MSR_CSTAR, offsetof(struct cpu_state, cstar)},
        {MSR_FS_BASE, offsetof(struct cpu_state, seg[FS].base)},
        {MSR_GS_BASE, offsetof(struct cpu_state, seg[GS].base)},
        {MSR_KERNEL_GS_BASE, offsetof(struct cpu_state, kernel_gs_base)},
        {MSR_SYSENTER_ESP, offsetof(struct cpu_state, sysenter_esp)},
        {MSR_SYSENTER_EIP, offsetof(struct cpu_state, sysenter_eip)},
    };

    for (unsigned i = 0; i < ARRAY_LEN(m); i++) {
        uint64_t v = 0xffff800000000000 + i;
        ok(f, &f->intel, m[i].msr, v, v);
        assert_memory_equal((char *)&f->s + m[i].off, &v, 8);
        ok(f, &f->intel, m[i].msr, 0x7fffffffffff, 0x7fffffffffff);
        gp(f, &f->intel, m[i].msr, 0x800000000000);
        gp(f, &f->intel, m[i].msr, 0xffff7fffffffffff);
    }
    /* AMD's SYSENTER registers have 32 bits, and do not mind more. */
    ok(f, &f->amd, MSR_SYSENTER_EIP, 0xffffffff81c017b0, 0x81c017b0);
    ok(f, &f->amd, MSR_SYSENTER_ESP, 0x800000000000, 0);
    assert_int_equal(f->s.sysenter_eip, 0x81c017b0);
}

static void test_efer(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;

    ok(f, p, MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE, EFER_SCE | EFER_LME | EFER_NXE);
    ok(f, p, MSR_EFER, EFER_LMA | EFER_LME, EFER_LME); /* LMA is not software's */
    gp(f, p, MSR_EFER, BIT(1));
    gp(f, p, MSR_EFER, EFER_FFXSR);
    gp(f, p, MSR_EFER, EFER_AUTOIBRS);
    gp(f, p, MSR_EFER, BIT(12)); /* SVM */
    ok(f, &f->amd, MSR_EFER, EFER_LME | EFER_AUTOIBRS, EFER_LME | EFER_AUTOIBRS);
    f->s.cr0 |= CR0_PE | CR0_PG;
    f->s.efer = EFER_LME | EFER_LMA;
    gp(f, p, MSR_EFER, EFER_SCE); /* LME while paging */
    ok(f, p, MSR_EFER, EFER_LME | EFER_NXE, EFER_LME | EFER_LMA | EFER_NXE);
    f->s.efer = 0;
    gp(f, p, MSR_EFER, EFER_LME);
}

static void test_tsc(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;
    uint64_t v;

    f->s.tsc_offset = 0;
    f->s.tsc_adjust = 0;
    assert_int_equal(msr_read(&f->s, p, MSR_TSC, 1000, &v), 0);
    assert_int_equal(v, 1000);
    assert_int_equal(msr_write(&f->s, p, MSR_TSC, 1000, 5000), 0);
    assert_int_equal(msr_read(&f->s, p, MSR_TSC, 1010, &v), 0);
    assert_int_equal(v, 5010);
    assert_int_equal(rd(f, p, 0x3b), 4000); /* TSC_ADJUST follows */
    assert_int_equal(msr_write(&f->s, p, 0x3b, 1010, 4500), 0);
    assert_int_equal(msr_read(&f->s, p, MSR_TSC, 1010, &v), 0);
    assert_int_equal(v, 5510);
    assert_int_equal(msr_write(&f->s, p, 0x3b, 1010, (uint64_t)-1000), 0);
    assert_int_equal(msr_read(&f->s, p, MSR_TSC, 1010, &v), 0);
    assert_int_equal(v, 10);
}

static void test_mtrr_pat(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;
    static const uint32_t fixed[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                     0x26b, 0x26c, 0x26d, 0x26e, 0x26f};

    assert_int_equal(rd(f, p, 0xfe), 0x508);
    gp(f, p, 0xfe, 0x508);
    for (unsigned i = 0; i < ARRAY_LEN(fixed); i++) {
        uint64_t v = 0x0606060601000400 + (i % 2);
        ok(f, p, fixed[i], v, v);
        assert_int_equal(f->s.mtrr_fixed[i], v);
        gp(f, p, fixed[i], 2);
        gp(f, p, fixed[i], 7ull << 40);
    }
    for (unsigned i = 0; i < 16; i += 2) {
        ok(f, p, 0x200 + i, 0x3fff00000000 | (i << 12) | 6, 0x3fff00000000 | (i << 12) | 6);
        assert_int_equal(f->s.mtrr_var[i], 0x3fff00000000 | (i << 12) | 6);
        gp(f, p, 0x200 + i, BIT(46));
        gp(f, p, 0x200 + i, 0x100);
        gp(f, p, 0x200 + i, 3);
        ok(f, p, 0x201 + i, 0x3fffff000800 | i << 12, 0x3fffff000800 | i << 12);
        assert_int_equal(f->s.mtrr_var[i + 1], 0x3fffff000800 | i << 12);
        gp(f, p, 0x201 + i, BIT(46));
        gp(f, p, 0x201 + i, 1);
    }
    uint64_t v;
    assert_int_equal(msr_read(&f->s, p, 0x210, 0, &v), -ENOENT);
    ok(f, p, 0x2ff, 0xc06, 0xc06);
    gp(f, p, 0x2ff, 0xc02);
    gp(f, p, 0x2ff, 0x1000);
    ok(f, p, MSR_PAT, 0x0007040600070406, 0x0007040600070406);
    ok(f, p, MSR_PAT, 0x0105040600070406, 0x0105040600070406);
    gp(f, p, MSR_PAT, 0x02);
    gp(f, p, MSR_PAT, 0x0300000000000000);
    gp(f, p, MSR_PAT, 0x08);
}

static void test_constants(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;
    uint64_t v;

    assert_int_equal(rd(f, p, 0x10a), p->arch_capabilities);
    gp(f, p, 0x10a, 0);
    assert_int_equal(msr_read(&f->s, &f->amd, 0x10a, 0, &v), -ENOENT);
    assert_int_equal(rd(f, p, 0x17), 0);
    assert_int_equal(rd(f, p, 0x3a), 1);
    gp(f, p, 0x3a, 5); /* locked */
    assert_int_equal(rd(f, p, 0xce), 0);
    assert_int_equal(rd(f, p, 0x179), 4);
    ok(f, p, 0x8b, 0, BIT(32)); /* software clears it before CPUID loads it again */
    ok(f, &f->amd, 0x8b, 0, BIT(32));
    ok(f, p, 0x140, 0, 0);
    gp(f, p, 0x140, 1); /* no CPUID faulting */
    for (unsigned b = 0; b < 4; b++) {
        ok(f, p, 0x400 + 4 * b, ~0ull, 0);
        for (unsigned i = 1; i < 4; i++) {
            ok(f, p, 0x400 + 4 * b + i, 0, 0);
            gp(f, p, 0x400 + 4 * b + i, 1);
        }
    }
    assert_int_equal(msr_read(&f->s, p, 0x410, 0, &v), -ENOENT);
}

static void test_commands(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;
    uint64_t v;

    assert_int_equal(msr_write(&f->s, p, MSR_PRED_CMD, 0, 1), 0);
    gp(f, p, MSR_PRED_CMD, 2);
    gp(f, p, MSR_PRED_CMD, BIT(7));
    assert_int_equal(msr_write(&f->s, &f->amd, MSR_PRED_CMD, 0, BIT(7)), 0); /* SBPB */
    assert_int_equal(msr_read(&f->s, p, MSR_PRED_CMD, 0, &v), -EINVAL);
    assert_int_equal(msr_write(&f->s, p, 0x79, 0, 0xffff888001234000), 0);
    assert_int_equal(msr_read(&f->s, p, 0x79, 0, &v), -EINVAL);
}

static void test_misc_enable(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->intel;
    uint64_t v;

    assert_int_equal(rd(f, p, 0x1a0), BIT(0) | BIT(11) | BIT(12));
    ok(f, p, 0x1a0, BIT(11) | BIT(12), BIT(11) | BIT(12));
    gp(f, p, 0x1a0, BIT(12));
    gp(f, p, 0x1a0, BIT(11) | BIT(12) | BIT(18)); /* MONITOR */
    assert_int_equal(msr_read(&f->s, &f->amd, 0x1a0, 0, &v), -ENOENT);
}

static void test_amd(void **state)
{
    struct fix *f = *state;
    const struct cpuid_policy *p = &f->amd;
    uint64_t v;

    ok(f, p, 0xc0011029, BIT(1), BIT(1));
    assert_int_equal(rd(f, p, 0xc0010015), BIT(24));
    ok(f, p, 0xc0010015, BIT(18), BIT(24));
    ok(f, p, 0xc0010010, 0, 0);
    assert_int_equal(rd(f, p, 0x1de), 0);
    gp(f, p, 0x1db, 0);
    assert_int_equal(msr_read(&f->s, &f->intel, 0xc0011029, 0, &v), -ENOENT);
    assert_int_equal(msr_read(&f->s, &f->intel, 0xc0010015, 0, &v), -ENOENT);
}

static void test_not_ours(void **state)
{
    struct fix *f = *state;
    static const uint32_t msr[] = {0x1b, 0x6e0, 0x800,      0x83f,      0x4b564d00, 0x4b564d01,
                                   0x12, 0x480, 0xffffffff, 0xc0000105, 0x3f};
    uint64_t v;

    for (unsigned i = 0; i < ARRAY_LEN(msr); i++) {
        assert_int_equal(msr_read(&f->s, &f->intel, msr[i], 0, &v), -ENOENT);
        assert_int_equal(msr_write(&f->s, &f->intel, msr[i], 0, 0), -ENOENT);
        assert_int_equal(msr_read(&f->s, &f->amd, msr[i], 0, &v), -ENOENT);
        assert_int_equal(msr_write(&f->s, &f->amd, msr[i], 0, 0), -ENOENT);
    }
}

/* Whatever is written, a state that was valid stays valid, and what was written can be written
 * again. */
static void test_any_write(void **state)
{
    struct fix *f = *state;
    static const uint32_t base[] = {0,          0x200,      0x250,      0x2f0, 0x400, 0xc0000080,
                                    0xc0000100, 0xc0010000, 0xc0011020, 0x170, 0x1a0, 0x100};
    struct rng r = {99};
    struct err e = {""};
    unsigned accepted = 0;

    for (unsigned n = 0; n < 400000; n++) {
        const struct cpuid_policy *p = rng_chance(&r, 50) ? &f->intel : &f->amd;
        uint32_t msr = base[rng_below(&r, ARRAY_LEN(base))] + (uint32_t)rng_below(&r, 0x120);
        uint64_t v = rng_next(&r) >> rng_below(&r, 64), got, tsc = rng_next(&r);

        if (rng_chance(&r, 30))
            v = BIT(rng_below(&r, 64));
        if (msr_write(&f->s, p, msr, tsc, v))
            continue;
        accepted++;
        if (cpu_state_validate(&f->s, &e))
            fail_msg("MSR 0x%x = 0x%llx: %s", msr, (unsigned long long)v, e.msg);
        if (msr_read(&f->s, p, msr, tsc, &got) == 0 && got)
            assert_int_not_equal(msr_write(&f->s, p, msr, tsc, got), -ENOENT);
    }
    assert_true(accepted > 5000);
}

#define T(t) cmocka_unit_test_setup(t, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_plain),    T(test_canonical), T(test_efer),      T(test_tsc),
        T(test_mtrr_pat), T(test_constants), T(test_commands),  T(test_misc_enable),
        T(test_amd),      T(test_not_ours),  T(test_any_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
